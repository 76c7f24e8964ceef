"""vLLM on merged weights: `load_format="plam"`, and the re-merge of a running engine.

With `plam_eval.serving` the only module that knows vLLM's internals. vLLM finds it through the group of entry points
`vllm.general_plugins` (`register`, in every process).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from vllm import envs
from vllm.config import set_current_vllm_config
from vllm.exceptions import VLLMClientError
from vllm.logger import init_logger
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.version import __version__ as VLLM_VERSION

from plam_eval import hub
from plam_eval.errors import PlamError
from plam_eval.merging.checkpoint import Checkpoint, MergeError
from plam_eval.merging.merge import MergeReport, merged_weights
from plam_eval.merging.names import decoder_tensor
from plam_eval.merging.plan import plan_merge
from plam_eval.serving import versions
from plam_eval.spec import MODULES, OVERRIDE_KEYS, PlateauSpec, load_spec
from plam_eval.versions import VLLM_READ, VLLM_TESTED

LOAD_FORMAT = "plam"
TESTED_VERSIONS = VLLM_TESTED
READ_VERSIONS = VLLM_READ
"""Never run here: there is no CPU build. What is used of them was compared with the tested ones in their source."""
REFUSALS = (ValueError, VLLMClientError)
"""What a request raises that vLLM will not take, such as a prompt longer than max_model_len; the engine lives on."""

WATCH_SECONDS = 0.5
"""How often a call that waits for the engine looks whether the engine lives."""

# In vLLM's own namespace: its logging is configured for that one alone.
logger = init_logger("vllm.plam_eval")

_STATE = "_plam_state"
_BASE = "plateau_base"  # set by us, from the process the user started to its workers
_OPTIONS = ("plateau", *OVERRIDE_KEYS, _BASE)


def __getattr__(name: str) -> Any:
    if name == "MergeEndpoint":  # where installed entry points of earlier versions look for it
        from plam_eval.serving.endpoint import MergeEndpoint

        return MergeEndpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ---- loading ---------------------------------------------------------------------------------------------------------


class BaseFiles(TypedDict):
    """Which files a spec's base is, found once, so that every worker opens the same: JSON-able."""

    location: str
    commit: str | None


def _open_base(spec: PlateauSpec, files: BaseFiles | None) -> Checkpoint:
    return Checkpoint.open(files["location"], revision=files["commit"]) if files else Checkpoint.open(spec.base_model)


def _open_model(config: Any) -> Checkpoint:
    """The checkpoint of an engine's arguments or model config.

    While offline vLLM puts the folder of the hub's cache in the place of the name, and leaves the revision beside it.
    """
    revision = None if hub.is_folder(str(config.model)) else config.revision
    return Checkpoint.open(config.model, revision=revision, role="model")


def _base_files(base: Checkpoint) -> BaseFiles:
    return {"location": base.location, "commit": base.commit}


@dataclass(frozen=True)
class _Files:
    """A checkpoint that was read: what opens it again from any working directory, and what it was."""

    location: str
    commit: str | None
    identity: dict[str, Any]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Files:
        return cls(checkpoint.location, checkpoint.commit, checkpoint.identity())

    def open(self) -> Checkpoint:
        """Raises MergeError when it has changed, or is gone."""
        checkpoint = Checkpoint.open(self.location, revision=self.commit)
        self.verify(checkpoint)
        return checkpoint

    def verify(self, checkpoint: Checkpoint) -> None:
        """Raises MergeError when `checkpoint`, opened at the same location, is another than the engine has read."""
        now = _Files.of(checkpoint)
        if now.identity != self.identity:
            raise MergeError(
                f"{checkpoint.name}: changed since the engine loaded it (was {self.identity}, is {now.identity}); "
                "start the engine again"
            )


@dataclass(frozen=True)
class _State:
    """Kept on a worker's model: what it was merged by, from which files, and why it must not be used, if so.

    Attributes:
        bases: name in a spec -> files of every base that was merged so far. A digest holds the name of a base, not what
            is in it, so a base that changed on disk must not be merged under the same digest.
    """

    spec: PlateauSpec | None = None
    report: MergeReport | None = None
    model: _Files | None = None
    base: _Files | None = None
    broken: str | None = None
    bases: Mapping[str, _Files] = field(default_factory=dict)


class PlamModelLoader(DefaultModelLoader):
    """vLLM's default loader on merged weights.

    `model_loader_extra_config` takes `plateau` (name, path, mapping or "none") and the overrides of the wrappers, next
    to the default loader's own keys. Tensors are merged as they stream from the checkpoint, before vLLM fuses and
    shards them, so that every tensor-parallel size holds slices of the same bits.

    Raises:
        SpecError, MergeError: before the first tensor is loaded where headers show it. LayoutError: the installed vLLM
            is another than this was written for.
    """

    def __init__(self, load_config: Any) -> None:
        versions.check(versions.LOADING)
        options, rest = _split(load_config.model_loader_extra_config)
        self._base_files: BaseFiles | None = options.pop(_BASE, None)
        self.spec = load_spec(options.pop("plateau", None), options)
        self._checkpoint: Checkpoint | None = None
        super().__init__(dataclasses.replace(load_config, load_format="auto", model_loader_extra_config=rest))

    def get_all_weights(self, model_config: Any, model: nn.Module) -> Generator[tuple[str, Tensor], None, None]:
        """The checkpoint's (name, tensor) pairs, merged as the spec says, in the dtype the model runs in."""
        weights = super().get_all_weights(model_config, model)
        if getattr(model_config, "runner_type", None) == "draft":  # a speculative draft model has no plateau
            yield from weights
            return
        checkpoint = _open_model(model_config)
        checkpoint.check_read_by_vllm()
        self._checkpoint = checkpoint
        files = _Files.of(checkpoint)
        setattr(model, _STATE, _State(model=files))
        if self.spec is None:
            yield from weights
            return
        base = _open_base(self.spec, self._base_files)
        base_files = _Files.of(base)
        plan = plan_merge(self.spec, model=checkpoint, base=base)

        def on_report(report: MergeReport) -> None:
            report = _named(report, checkpoint, self.spec, plan.warnings)
            bases = {plan.spec.base_model: base_files}
            setattr(model, _STATE, _State(self.spec, report, files, base_files, bases=bases))
            logger.info("%s", report)

        yield from merged_weights(weights, self.spec, base, model_config.dtype, on_report)

    def _prepare_weights(self, model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        """vLLM's choice of files, which has to be that of `Checkpoint`, through which a re-merge reads the MLLM."""
        chosen = super()._prepare_weights(model_name_or_path, *args, **kwargs)
        checkpoint, self._checkpoint = self._checkpoint, None  # for the model itself, not for encoders beside it
        if checkpoint is not None:
            _check_files(checkpoint, [Path(file).name for file in chosen[1]])
        return chosen


def _named(
    report: MergeReport, checkpoint: Checkpoint, spec: PlateauSpec | None, warnings: tuple[str, ...]
) -> MergeReport:
    """The report of a stream of tensors, with what only its caller knows: names of models, warnings of the plan."""
    base, commit = spec.base_model if spec is not None else None, checkpoint.recorded_commit
    return dataclasses.replace(report, model=checkpoint.name, model_commit=commit, base_model=base, warnings=warnings)


def _check_files(checkpoint: Checkpoint, loaded: list[str]) -> None:
    """Raises MergeError when vLLM loads other weight files than `checkpoint` holds."""
    expected = {checkpoint.file(name) for name in checkpoint.names()}
    if set(loaded) == expected:
        return
    mine, theirs = sorted(expected - set(loaded)), sorted(set(loaded) - expected)
    raise MergeError(
        f"{checkpoint.name}: holds more than one set of weights: only vLLM loads {', '.join(theirs) or 'nothing'}, "
        f"only transformers loads {', '.join(mine) or 'nothing'}. Keep one set in the folder"
    )


def _split(extra: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our options, and those of vLLM's default loader."""
    extra = dict(extra or {})
    return {key: extra.pop(key) for key in _OPTIONS if key in extra}, extra


def register() -> None:
    """Make `load_format="plam"` known to vLLM; called by vLLM in every one of its processes, any number of times."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor import model_loader

    if getattr(model_loader, "_LOAD_FORMAT_TO_MODEL_LOADER", {}).get(LOAD_FORMAT) is not PlamModelLoader:
        register_model_loader(LOAD_FORMAT)(PlamModelLoader)
    stock = EngineArgs.create_engine_config
    if hasattr(stock, "_plam_eval"):
        return

    @functools.wraps(stock)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.load_format == LOAD_FORMAT:
            _prepare(self)
        return stock(self, *args, **kwargs)

    _find_revisions_offline()
    create_engine_config._plam_eval = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config  # type: ignore[method-assign]


def _find_revisions_offline() -> None:
    """While offline vLLM looks the model's name up before it makes its configs, and so before `_prepare` sees it."""
    from vllm.engine import arg_utils

    stock = getattr(arg_utils, "get_model_path", None)
    if stock is None:  # then it is looked up elsewhere, and only names without a revision are found
        return

    @functools.wraps(stock)
    def get_model_path(model: Any, revision: str | None = None) -> Any:
        repository, named = hub.split_revision(str(model))
        if named is None or Path(model).exists():
            return stock(model, revision)
        if problem := hub.revision_problem(named):
            raise MergeError(f"model={model}: {problem}")
        if revision not in (None, named):
            raise MergeError(f"model={model}: names another revision than revision={revision}; give one of them")
        return stock(repository, named)

    arg_utils.get_model_path = get_model_path


def _prepare(arguments: Any) -> None:
    """Check the spec in the process the user started: what fails in a worker ends with vLLM's message, not ours.

    The workers get the spec itself, which need not exist as a file where they run.
    """
    versions.check(versions.LOADING)
    options, rest = _split(arguments.model_loader_extra_config)
    options.pop(_BASE, None)  # of an earlier start with the same arguments
    spec = load_spec(options.pop("plateau", None), options)
    model = _open_model(arguments)
    model.check_read_by_vllm()
    files: BaseFiles | None = None
    if spec is not None:
        base = Checkpoint.open(spec.base_model, role="base")
        plan = plan_merge(spec, model=model, base=base)
        base.announce(tensor.base_name for tensor in plan.tensors)
        files = _base_files(base)
    if model.commit is not None:
        if envs.VLLM_USE_MODELSCOPE:
            raise MergeError(
                f"{arguments.model}: vLLM would load it from ModelScope (VLLM_USE_MODELSCOPE is set), and merging "
                "reads the Hugging Face hub; download it and pass the folder, or unset VLLM_USE_MODELSCOPE"
            )
        # A branch may move before vLLM, or a worker, looks where it leads; and vLLM knows no revisions behind a name.
        arguments.model, arguments.revision = model.loaded_by, model.commit
    model.announce()
    arguments.model_loader_extra_config = {
        **rest,
        "plateau": spec.to_dict() if spec is not None else None,
        _BASE: files,
    }
    extension = f"{PlateauWorker.__module__}.{PlateauWorker.__qualname__}"
    if arguments.worker_extension_cls not in ("", extension):
        logger.warning("worker_extension_cls=%s: this engine cannot be re-merged", arguments.worker_extension_cls)
    else:
        arguments.worker_extension_cls = extension
    if not _is_tested():
        logger.warning("%s", untested())


# ---- re-merging, in a worker -----------------------------------------------------------------------------------------


def _is_tested() -> bool:
    return VLLM_VERSION.split("+")[0] in TESTED_VERSIONS


def untested() -> str:
    """What is known of an installed version that is none of `TESTED_VERSIONS`."""
    tested = f"plam-eval was tested with vLLM {', '.join(TESTED_VERSIONS)} (CPU build), not with {VLLM_VERSION}"
    read = VLLM_VERSION.split("+")[0] in READ_VERSIONS
    return f"{tested}, of which what is used was compared in the source" if read else tested


def remerge_way() -> tuple[str, str]:
    """How a running engine is re-merged under the installed vLLM: "layers" or "all", and why.

    "layers" reloads only the attention and MLP blocks whose weights change, through functions that vLLM does not
    promise to keep. "all" is vLLM's own `reload_weights`: every tensor is read and loaded again.
    """
    if problems := versions.problems(versions.LAYERWISE, versions.installed):
        return "all", f"vLLM {VLLM_VERSION} has another layerwise reload: {'; '.join(problems)}"
    if not _is_tested():
        return "all", f"vLLM {VLLM_VERSION} was never tested here ({', '.join(TESTED_VERSIONS)} was)"
    return "layers", f"vLLM {VLLM_VERSION} is a tested version"


class PlateauWorker:
    """What `worker_extension_cls` adds to vLLM's workers; called by name through `collective_rpc`."""

    def plam_state(self) -> dict[str, Any]:
        """Spec and merge report of this worker's model (None and None when plain), and why it is broken, if it is."""
        state = _state(self)
        return {
            "spec": state.spec.to_dict() if state.spec else None,
            "digest": state.spec.digest() if state.spec else None,
            "report": state.report.to_dict() if state.report else None,
            "broken": state.broken,
        }

    def plam_merge(self, spec: dict[str, Any] | None, base: BaseFiles | None = None) -> dict[str, Any]:
        """Bring the model to `spec` (None: back to plain), on all workers or on none.

        The caller sees to it that no request is running, and resets the prefix cache: `merge_engine` does both.

        Args:
            base: the files that the spec's base was found to be; None: each worker looks for it by its name.

        Returns:
            {"report": ...}, or {"faults": [...]} with the old weights in place. After a failure that left neither the
            old nor the new weights, also {"broken": why}: this engine refuses to generate from then on.
        """
        old = _state(self)
        if old.broken:
            return {"faults": [old.broken], "broken": old.broken}
        faults = versions.problems(versions.REMERGING, versions.installed)
        faults = [f"vLLM {VLLM_VERSION}: {fault}" for fault in faults] or _unfit(self.vllm_config)  # type: ignore[attr-defined]
        if faults:
            return {"faults": faults}
        wanted = PlateauSpec.model_validate(spec) if spec is not None else None
        there = _Reload(self, old, wanted, base)
        try:
            faults, new = there.run()
            faults = _all_workers(faults)
            if not faults:
                setattr(self.get_model(), _STATE, new)  # type: ignore[attr-defined]
                return {"report": new.report.to_dict() if new.report else None}
            lost = ["a module is half loaded"] if there.torn else list[str]()
            if there.touched and not there.torn:
                lost, _ = _Reload(self, old, old.spec, None, there.blocks).run()
            lost = _all_workers(lost)
        except BaseException:  # Ctrl-C, in an engine that runs in the user's process
            if there.touched:
                _break(self, "plam-eval: a re-merge was interrupted half-way; start the engine again")
            raise
        if not lost:
            return {"faults": faults}
        why = (
            "plam-eval: a re-merge failed and so did the way back, so this engine holds neither the old nor the new "
            f"weights; start it again. Failed: {'; '.join(faults)}. Way back: {'; '.join(lost)}"
        )
        _break(self, why)
        return {"faults": faults, "broken": why}


def _unfit(vllm_config: Any) -> list[str]:
    """Why an engine of this kind cannot be re-merged."""
    faults = []
    replicas = vllm_config.parallel_config.data_parallel_size
    if replicas > 1:  # vLLM reports the outcome of the first one only
        faults.append(f"this engine has {replicas} data-parallel replicas; start it with the new spec instead")
    if vllm_config.lora_config is not None:
        faults.append("this engine has LoRA enabled, which wraps the layers; start it with the new spec instead")
    return faults


def _state(worker: Any) -> _State:
    return getattr(worker.get_model(), _STATE, _State())


def _all_workers(faults: list[str]) -> list[str]:
    """The faults of all workers of this engine, on each of them: they go on together, or back together."""
    from torch import distributed
    from vllm.distributed.parallel_state import get_world_group

    group = get_world_group()
    if group.world_size == 1:
        return faults
    gathered: list[Any] = [None] * group.world_size
    distributed.all_gather_object(gathered, faults, group=group.cpu_group)
    return list(dict.fromkeys(fault for part in gathered for fault in part))


def _break(worker: Any, why: str) -> None:
    def execute_model(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(why)

    worker.model_runner.execute_model = execute_model
    setattr(worker.get_model(), _STATE, dataclasses.replace(_state(worker), broken=why))


Block = tuple[int, str]
"""A decoder layer's attention or MLP, such as (3, "self_attn"): what vLLM keeps under one module of the same name."""


def _block(name: str) -> Block | None:
    """Block of a tensor or module, by its name in a checkpoint or in vLLM; None outside the decoder layers."""
    key = decoder_tensor(name)
    return (key[0], key[1].split(".")[0]) if key else None


def _changed_blocks(*specs: PlateauSpec | None) -> set[Block]:
    return {
        (layer, MODULES[module].split(".")[0])
        for spec in specs
        if spec is not None
        for layer in spec.layers
        for module in spec.modules
    }


class _Reload:
    """Loads the weights of `spec` into blocks of a worker's model, whatever they hold: those that change, unless given.

    Attributes:
        touched: whether a block may hold other weights than before.
        torn: whether vLLM was stopped while it loaded into a module, from which there is no way back.
    """

    def __init__(
        self,
        worker: Any,
        old: _State,
        spec: PlateauSpec | None,
        base: BaseFiles | None,
        blocks: set[Block] | None = None,
    ) -> None:
        self.worker, self.old, self.spec, self.base = worker, old, spec, base
        self.blocks = blocks or set[Block]()
        self.touched = self.torn = False

    def run(self) -> tuple[list[str], _State]:
        """What went wrong, and the state that the model is in if nothing did."""
        try:
            return [], self._run()
        except MergeError as error:
            return error.faults, self.old
        except Exception as error:
            logger.exception("loading other weights into the running engine failed")
            return [f"{type(error).__name__}: {error}"], self.old

    def _run(self) -> _State:
        model_config = self.worker.vllm_config.model_config
        # There is no old one where another load_format than ours has loaded it.
        checkpoint = self.old.model.open() if self.old.model is not None else _open_model(model_config)
        base, warnings = None, tuple[str, ...]()
        bases = dict(self.old.bases)
        if self.spec is not None:
            back = self.old.base if self.spec is self.old.spec else None
            base = back.open() if back else _open_base(self.spec, self.base)
            if self.spec.base_model in bases:
                bases[self.spec.base_model].verify(base)
            bases[self.spec.base_model] = _Files.of(base)
            warnings = plan_merge(self.spec, model=checkpoint, base=base).warnings
            self.base = _base_files(base)
        # Not before the plan: it is what finds a range that is longer than any model.
        self.blocks = self.blocks or _changed_blocks(self.old.spec, self.spec)
        reports: list[MergeReport] = []

        def stream() -> Iterator[tuple[str, Tensor]]:
            names = sorted((block, name) for name in checkpoint.names() if (block := _block(name)) in self.blocks)
            stored = ((name, checkpoint.tensor(name)) for _, name in names)
            return merged_weights(stored, self.spec, base, model_config.dtype, reports.append)

        with set_current_vllm_config(self.worker.vllm_config), torch.inference_mode():
            if remerge_way()[0] == "layers":
                self._load_blocks(stream())
            else:
                for _ in stream():  # vLLM's own reload cannot stop half-way, so what may fail here has to fail before
                    pass
                self._load_all()
        report = _named(reports[0], checkpoint, self.spec, warnings) if reports else None
        base_files = bases[self.spec.base_model] if self.spec is not None else None
        return _State(self.spec, report, _Files.of(checkpoint), base_files, bases=bases)

    def _load_blocks(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """Load a stream that is ordered by block, one block at a time.

        All of a block is merged before the block is touched: a fault in the data leaves it as it was.
        """
        from vllm.model_executor.model_loader.reload.layerwise import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        model, model_config = self.worker.get_model(), self.worker.vllm_config.model_config
        here = {  # with pipeline parallelism, not all of them
            block: (name, module)
            for name, module in model.named_modules()
            if (block := _block(name)) is not None and name.endswith(f".{block[0]}.{block[1]}")
        }
        if self.worker.vllm_config.parallel_config.pipeline_parallel_size == 1 and self.blocks - here.keys():
            absent = ", ".join(f"{part} of layer {layer}" for layer, part in sorted(self.blocks - here.keys()))
            raise MergeError(f"{type(model).__name__}: vLLM has no module of its own for {absent}")
        for block, pairs in itertools.groupby(stream, key=lambda pair: _block(pair[0])):
            tensors = list(pairs)
            if block not in here:
                continue
            name, module = here[block]
            self.touched = self.torn = True
            parts = [
                part for part in module.modules() if part._parameters or hasattr(part, "process_weights_after_loading")
            ]
            for part in parts:  # all but such as the rotary embedding, which every block shares and no checkpoint holds
                initialize_layerwise_reload(part)
            loaded = model.load_weights(iter(tensors))
            for part in parts:
                finalize_layerwise_reload(part, model_config)
            missing = [
                parameter
                for parameter, tensor in module.named_parameters()
                if tensor.is_meta or (loaded is not None and f"{name}.{parameter}" not in loaded)
            ]
            if missing:
                raise RuntimeError(f"{name}: vLLM took {len(tensors)} tensors, but loaded no {', '.join(missing)}")
            self.torn = False

    def _load_all(self) -> None:
        _, extra = _split(self.worker.vllm_config.load_config.model_loader_extra_config)
        extra["plateau"] = self.spec.to_dict() if self.spec is not None else None
        extra[_BASE] = self.base
        overrides = {"load_format": LOAD_FORMAT, "model_loader_extra_config": extra}
        self.touched = self.torn = True
        self.worker.update_config({"load_config": overrides})
        self.worker.reload_weights()
        self.torn = False


# ---- re-merging, from outside ----------------------------------------------------------------------------------------


class EngineError(PlamError, RuntimeError):
    """An engine that cannot be re-merged just now; its weights were left as they are."""


class EngineBrokenError(EngineError):
    """A re-merge left an engine with neither the old nor the new weights; it refuses to generate."""


def check_merge(vllm_config: Any, spec: PlateauSpec | None) -> BaseFiles | None:
    """Find what can be known before the engine is disturbed, and the files of the spec's base. Raises MergeError."""
    faults = _unfit(vllm_config)
    if faults:
        raise MergeError(*faults)
    if spec is None:
        return None
    config = vllm_config.model_config
    base = Checkpoint.open(spec.base_model)
    plan_merge(spec, model=_open_model(config), base=base)
    return _base_files(base)


def outcome_of(results: list[dict[str, Any]]) -> MergeReport | None:
    """The report in what `plam_merge` gave on every worker. Raises MergeError and EngineBrokenError."""
    for result in results:
        if "broken" in result:
            raise EngineBrokenError(result["broken"])
    faults = [fault for result in results for fault in result.get("faults", ())]
    if faults:
        raise MergeError(*dict.fromkeys(faults))
    report = results[0]["report"]
    return MergeReport.from_dict(report) if report else None


def _while_alive(engine: Any, call: Callable[[], Any]) -> Any:
    """What `call` gives; EngineDeadError when the engine's process dies meanwhile, which vLLM would never tell."""
    resources = getattr(engine.engine_core, "resources", None)
    if resources is None:  # the engine runs in this process
        return call()
    outcome: futures.Future[Any] = futures.Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    while not futures.wait([outcome], timeout=WATCH_SECONDS).done:
        if resources.engine_dead:
            raise EngineDeadError()
    return outcome.result()


def merge_engine(
    llm: Any, plateau: str | Path | Mapping[str, Any] | PlateauSpec | None, **overrides: Any
) -> MergeReport | None:
    """Bring a running `vllm.LLM` to this plateau spec (None or "none": back to plain) and reset its caches.

    Args:
        llm: started with `load_format="plam"`, or with our `worker_extension_cls`.
        plateau, overrides: as in `load_format="plam"`.

    Raises:
        SpecError, MergeError: the old weights are still in place.
        EngineBrokenError: neither weights are; the engine refuses to generate.
        EngineDeadError: (vLLM's) the engine's process died.
        RuntimeError: requests are running, or (LayoutError) the installed vLLM is another than this was written for;
            nothing was changed.
    """
    versions.check(versions.OFFLINE)
    spec = load_spec(plateau, overrides)
    engine = llm.llm_engine
    base = check_merge(engine.vllm_config, spec)
    if engine.has_unfinished_requests():
        raise EngineError("the engine has unfinished requests; collect their answers before another merge")
    content = spec.to_dict() if spec is not None else None

    def merge() -> list[dict[str, Any]]:
        # Before the merge, when a refusal costs nothing: cached keys and values are those of the old weights.
        if not engine.reset_prefix_cache(reset_running_requests=False, reset_connector=True):
            raise EngineError("vLLM could not reset its prefix cache, so its weights were left as they are")
        engine.reset_encoder_cache()
        results: list[dict[str, Any]] = llm.collective_rpc("plam_merge", args=(content, base))
        return results

    return outcome_of(_while_alive(engine, merge))
