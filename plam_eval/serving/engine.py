"""The re-merge of a running engine, from outside: what is looked at before, what is reset, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from threading import Event, Thread
from typing import Any

from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError

from plam_eval.errors import MergeError, PlamError
from plam_eval.merging.plan import plan_merge
from plam_eval.merging.report import MergeReport
from plam_eval.merging.spec_checkpoints import SpecCheckpoints
from plam_eval.serving import versions
from plam_eval.serving.options import SpecFiles, open_engine_model, spec_files
from plam_eval.serving.worker import why_not_remerged
from plam_eval.spec import PlateauSpec, digest_of, load_spec

REFUSALS = (ValueError, VLLMClientError)
"""What a request raises that vLLM will not take, such as a prompt longer than max_model_len; the engine lives on."""

WATCH_SECONDS = 0.5
"""How often a call that waits for the engine looks whether the engine lives."""


class EngineError(PlamError, RuntimeError):
    """An engine that cannot be re-merged just now; its weights were left as they are."""


class EngineBrokenError(EngineError):
    """A re-merge left an engine with neither the old nor the new weights; it refuses to generate."""


class MixedWeightsError(EngineError):
    """An answer that was not given by the weights in place alone: it must not pass for theirs."""


def digest_held(states: list[dict[str, Any]]) -> str:
    """What an engine's weights are merged by: the spec's digest, or "plain".

    Args:
        states: what `plam_state` gave on every worker.

    Raises:
        EngineBrokenError: a worker is broken, or two of them hold different weights.
    """
    for state in states:
        if state["broken"]:
            raise EngineBrokenError(state["broken"])
    held = list(dict.fromkeys(digest_of(None) if state["digest"] is None else state["digest"] for state in states))
    if len(held) > 1:
        raise EngineBrokenError(f"workers of this engine hold different weights: {', '.join(held)}; start it again")
    return str(held[0])


def is_labelled(vllm_config: Any) -> bool:
    """Whether an engine's answers say which weights gave them.

    Those of several data-parallel replicas do not: vLLM labels one of them. They are never re-merged.

    Args:
        vllm_config: the engine's.
    """
    return bool(vllm_config.parallel_config.data_parallel_size == 1)


def label_engine(llm: Any) -> str:
    """Have the answers of a `vllm.LLM` carry the digest of its weights, as `check_answered_by` reads it.

    `merge_engine` does it after each merge. An engine that was just started labels its answers "default".

    Args:
        llm: started with `load_format="plam"`, or with our `worker_extension_cls`.

    Returns:
        The spec's digest, or "plain".

    Raises:
        EngineBrokenError: its workers do not hold the same weights.
    """
    digest = digest_held(llm.collective_rpc("plam_state"))
    if is_labelled(llm.llm_engine.vllm_config):
        llm.update_weight_version(digest)
    return digest


def check_answered_by(answer: Any, digest: str) -> None:
    """Whether all tokens of an answer were drawn under one label.

    Args:
        answer: a `RequestOutput` of vLLM's that has ended. One without tokens passes.
        digest: the label, see `label_engine`.

    Raises:
        MixedWeightsError: tokens were drawn under another one.
    """
    spans = [span for one in answer.outputs for span in getattr(one, "weight_versions", None) or ()]
    if any(span.version != digest for span in spans):
        told = ", ".join(f"tokens {span.start} to {span.end} by {span.version}" for span in spans)
        raise MixedWeightsError(
            f"request {answer.request_id}: {told}; expected all by {digest}: the weights changed meanwhile. Ask again"
        )


def check_engine_merge(vllm_config: Any, spec: PlateauSpec | None) -> SpecFiles | None:
    """Look at all that can be known before an engine is disturbed.

    Args:
        vllm_config: the engine's.
        spec: what it is to be brought to; None: back to plain.

    Returns:
        The files of the spec's base, and of its ancestor where its rule takes one.

    Raises:
        MergeError: the engine cannot be re-merged, or the spec does not fit it.
    """
    problems = why_not_remerged(vllm_config)
    if problems:
        raise MergeError(*problems)
    if spec is None:
        return None
    opened = SpecCheckpoints.open(spec)
    model = open_engine_model(vllm_config.model_config)
    plan_merge(spec, model=model, base=opened.base, ancestor=opened.ancestor)
    return spec_files(opened)


def outcome_of(results: list[dict[str, Any]]) -> MergeReport | None:
    """The report of a re-merge; None of one back to plain.

    Args:
        results: what `plam_merge` gave on every worker.

    Raises:
        MergeError: the old weights are still in place.
        EngineBrokenError: neither the old nor the new weights are.
    """
    for result in results:
        if "broken" in result:
            raise EngineBrokenError(result["broken"])
    problems = [problem for result in results for problem in result.get("faults", ())]
    if problems:
        raise MergeError(*dict.fromkeys(problems))
    report = results[0]["report"]
    return MergeReport.from_dict(report) if report else None


def _while_alive(engine: Any, *calls: Callable[[], Any]) -> Any:
    """What the last of `calls` gives, one after the other; EngineDeadError when the engine's process dies meanwhile,
    which vLLM would never tell. After Ctrl-C it waits for the call that runs, and begins no other.
    """
    resources = getattr(engine.engine_core, "resources", None)
    if resources is None:  # the engine runs in this process
        return [call() for call in calls][-1]
    outcome: futures.Future[Any] = futures.Future()
    stopped = Event()

    def run() -> None:
        result = None
        try:
            for call in calls:
                if stopped.is_set():
                    raise EngineError("stopped")
                result = call()
            outcome.set_result(result)
        except BaseException as error:
            outcome.set_exception(error)

    def wait() -> None:
        while not futures.wait([outcome], timeout=WATCH_SECONDS).done:
            if resources.engine_dead:
                raise EngineDeadError()

    thread = Thread(target=run, daemon=True)
    try:
        thread.start()
        wait()
    except KeyboardInterrupt:
        stopped.set()
        if thread.ident is not None:
            wait()  # what is asked of the engine next is asked of the weights that it ends with
        raise
    return outcome.result()


def merge_engine(
    llm: Any, plateau: str | Path | Mapping[str, Any] | PlateauSpec | None, **overrides: Any
) -> MergeReport | None:
    """Bring a running `vllm.LLM` to this plateau spec (None or "none": back to plain) and reset its caches.

    Args:
        llm: started with `load_format="plam"`, or with our `worker_extension_cls`.
        plateau: a spec, its name, its file or its content; None or "none" for the plain model.
        **overrides: of the spec, as in `load_format="plam"`.

    Returns:
        What was merged; None of the plain model.

    Raises:
        SpecError, MergeError: the old weights are still in place.
        EngineBrokenError: neither weights are; the engine refuses to generate.
        EngineDeadError: (vLLM's) the engine's process died.
        RuntimeError: requests are running, or (LayoutError) the installed vLLM is another than this was written for;
            nothing was changed.
    """
    versions.check_installed(versions.OFFLINE)
    spec = load_spec(plateau, overrides)
    engine = llm.llm_engine
    files = check_engine_merge(engine.vllm_config, spec)
    if engine.has_unfinished_requests():
        raise EngineError("the engine has unfinished requests; collect their answers before another merge")
    content = spec.to_dict() if spec is not None else None

    def drop_caches() -> None:
        # Before the merge, when a refusal costs nothing: cached keys and values are those of the old weights.
        if not engine.reset_prefix_cache(reset_running_requests=False, reset_connector=True):
            raise EngineError("vLLM could not reset its prefix cache, so its weights were left as they are")
        engine.reset_encoder_cache()

    def merge() -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = llm.collective_rpc("plam_merge", args=(content, files))
        return results

    report = outcome_of(_while_alive(engine, drop_caches, merge))
    label_engine(llm)
    return report
