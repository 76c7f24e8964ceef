"""Whatever vLLM serves, on merged weights."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmms_eval.models.chat.vllm import VLLM as StockChat
from lmms_eval.models.simple.vllm import VLLM as StockSimple

from plam_eval.errors import InputError, MergeError
from plam_eval.harness.requests import asking_the_same, scored_text_of
from plam_eval.harness.wrapper import Prompt
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.report import MergeReport
from plam_eval.model_wrappers.checks import check_arguments, check_share, check_trust
from plam_eval.model_wrappers.likelihoods import continuation
from plam_eval.model_wrappers.mixin import PlateauMixin, stock_class
from plam_eval.serving import versions
from plam_eval.serving.options import LOAD_FORMAT
from plam_eval.spec import OVERRIDE_KEYS, PlateauSpec, digest_of, load_spec

_OURS = ("model", "load_format", "model_loader_extra_config", "worker_extension_cls")


class VLLMPlateauMixin(PlateauMixin):
    """Merges while vLLM loads the checkpoint, and re-merges the running engine.

    Arguments it takes from model_args; all others go to vLLM's engine:

    - `pretrained`, `revision`, `plateau` and its overrides, `trust_remote_code`, `max_error_share`: as in the HF
      wrappers.
    - `max_new_tokens`: the limit where a task sets none; default 1024, as in lmms-eval's HF wrapper of LLaVA. A task's
      own limit holds, unlike in the stock class, which takes the larger of the two.
    - `until`: whether answers stop at the task's stop strings; default true. lmms-eval's chat-mode HF wrappers ignore
      them.
    - `device`: only to agree with what vLLM runs on, which the installed build decides.

    Raises:
        SpecError, MergeError: before the engine starts where headers show it. LayoutError: the installed vLLM is
            another than this was written for.
    """

    disable_log_stats: bool

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        plateau: str | Path | Mapping[str, Any] | PlateauSpec | None = None,
        device: str | None = None,
        max_new_tokens: int = 1024,
        until: bool = True,
        trust_remote_code: bool = False,
        max_error_share: float = 0.0,
        **kwargs: Any,
    ) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform

        from plam_eval.serving import engine as serving

        versions.check_installed(versions.LOADING, versions.OFFLINE, versions.ANSWERING)
        parameters = dict(inspect.signature(stock_class(type(self))).parameters)
        default = parameters.pop("model").default  # the stock class's name for `pretrained`
        overrides = {key: kwargs.pop(key) for key in OVERRIDE_KEYS if key in kwargs}
        engine = [field.name for field in dataclasses.fields(EngineArgs) if field.name not in _OURS]
        given = {"max_new_tokens": max_new_tokens, **kwargs}
        check_arguments(self.model_id, given, parameters, ("device", "until", *engine))
        check_share(max_error_share)
        check_trust(trust_remote_code)
        if device is not None and str(device).split(":")[0] != current_platform.device_type:
            raise InputError(
                f"device is {device}, but the installed vLLM runs on {current_platform.device_type}; leave device out "
                "(which GPUs: CUDA_VISIBLE_DEVICES)"
            )
        self.pretrained_name = str(pretrained or default)
        checkpoint = Checkpoint.open(self.pretrained_name, revision=kwargs.pop("revision", None), role="pretrained")
        checkpoint.check_read_by_vllm()
        self.pretrained_name = checkpoint.name
        spec = load_spec(plateau, overrides)
        self.until = until
        self._serving = serving  # imports vLLM
        super().__init__(
            model=checkpoint.loaded_by,
            max_new_tokens=max_new_tokens,
            trust_remote_code=trust_remote_code,
            load_format=LOAD_FORMAT,
            model_loader_extra_config={"plateau": spec.to_dict() if spec is not None else None},
            **({"revision": checkpoint.commit} if checkpoint.commit else {}),
            **kwargs,
        )
        serving.label_engine(self.client)
        self._chat = self.client.chat
        self.client.chat = self._watched_chat
        self._special_tokens: bool | None = None
        self._penalty = self.client.get_default_sampling_params().repetition_penalty
        self._begin(checkpoint, {**kwargs, "max_new_tokens": max_new_tokens, "until": until}, max_error_share)
        self._merged(spec, Checkpoint.open(spec.base_model, role="base") if spec is not None else None, self._report())

    @property
    def running_dtype(self) -> str:
        return str(self.client.model_config.dtype).removeprefix("torch.")

    def _report(self) -> MergeReport | None:
        stored = self.client.collective_rpc("plam_state")[0]["report"]
        return MergeReport.from_dict(stored) if stored else None

    def bring_weights_to(self, spec: PlateauSpec | None, base: Checkpoint | None) -> MergeReport | None:
        """Merge the weights that the engine's workers hold, and reset its caches.

        Args:
            spec: what they are to be merged by; None for the checkpoint's own.
            base: as the contract has it; the workers open the base themselves.
        """
        try:
            return self._serving.merge_engine(self.client, spec)
        except MergeError:
            raise
        except BaseException:  # such as Ctrl-C: the engine may have finished all the same
            held = self.client.collective_rpc("plam_state")[0]["spec"]
            spec = load_spec(held)
            self._merged(
                spec, Checkpoint.open(spec.base_model, role="base") if spec is not None else None, self._report()
            )
            with contextlib.suppress(self._serving.EngineBrokenError):  # it refuses to answer, and Ctrl-C stays one
                self._serving.label_engine(self.client)
            raise

    def run_record(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """The block of a results JSON, with vLLM's version and the engine's arguments.

        Args:
            records: of the generations, from all processes.
        """
        remerge, why = versions.remerge_way()
        engine = {"vllm": versions.vllm_version(), "arguments": self._arguments, "remerge": f"{remerge}: {why}"}
        return {**super().run_record(records), "engine": engine}

    # --- generation ---------------------------------------------------------------------------------------------------

    def _select_max_new_tokens(self, request_max_new_tokens: Any) -> int:
        return self.max_new_tokens if request_max_new_tokens is None else int(request_max_new_tokens)

    def _build_sampling_params_dict(self, gen_kwargs: dict[str, Any]) -> dict[str, Any]:
        parameters = super()._build_sampling_params_dict(gen_kwargs)
        until = gen_kwargs.get("until") or []
        stop = [until] if isinstance(until, str) else [text for text in until if text]
        if stop and self.until:
            parameters["stop"] = stop
        # HF's generate takes it from the checkpoint's generation_config, which vLLM leaves out once it is given
        # sampling parameters.
        if self._penalty != 1:
            parameters.setdefault("repetition_penalty", self._penalty)
        return parameters

    def _resolve_sampling_params(self, gen_kwargs: dict[str, Any] | None) -> dict[str, Any]:
        given = dict(gen_kwargs or {})
        given["max_new_tokens"] = self._select_max_new_tokens(given.get("max_new_tokens"))
        return self._build_sampling_params_dict({"temperature": 0, "top_p": 0.95, **given})

    def _lacks_special_tokens(self, kwargs: dict[str, Any]) -> bool:
        """Whether the chat template leaves it to the tokenizer to start a prompt with, say, <s>, as LLaVA-1.5's does.

        HF's processors add what is missing. vLLM's chat never does, and answers without <s> are other answers.
        """
        from vllm import SamplingParams

        added = list(self.client.get_tokenizer()("").input_ids)
        if not added:
            return False
        one = SamplingParams(temperature=0, max_tokens=1)
        told = self._chat(messages=[[{"role": "user", "content": "."}]], sampling_params=one, **kwargs, use_tqdm=False)
        return list(told[0].prompt_token_ids[: len(added)]) != added

    def prompt_of(self, request: Any) -> Prompt:
        """What the model would be asked for a request, as vLLM's chat renders it.

        Args:
            request: lmms-eval's.
        """
        scored = request.request_type == "loglikelihood"
        ids = self._prompt_ids(asking_the_same(request, simple=self.is_simple) if scored else request)
        return Prompt(self.client.get_tokenizer().decode(ids, skip_special_tokens=False), tuple(ids))

    def score_texts(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Minus the log-likelihood of each request's text behind their common prompt, and whether it is the greedy one.

        Args:
            requests: lmms-eval's, of one prompt.

        Raises:
            InputError: the document shows an image.
        """
        from vllm import SamplingParams

        ids = self._prompt_ids(asking_the_same(requests[0], simple=self.is_simple), of_text=True)
        texts = [scored_text_of(request, self.task_dict) for request in requests]
        rows = [continuation(self.client.get_tokenizer(), ids, text) for text in texts]
        self.generation.prompt_tokens += sum(len(ids) + len(row) for row in rows)
        told = self.client.generate(
            [{"prompt_token_ids": [*ids, *row]} for row in rows],
            SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0),
            use_tqdm=False,
        )
        likelihoods = []
        for row, output in zip(rows, told, strict=True):
            self._check(output)
            each = [chances[one] for chances, one in zip(output.prompt_logprobs[-len(row) :], row, strict=True)]
            likelihoods.append((-sum(one.logprob for one in each), all(one.rank == 1 for one in each)))
        return likelihoods

    def _prompt_ids(self, request: Any, *, of_text: bool = False) -> list[int]:
        """Token ids of what vLLM makes of a request's conversation. Raises InputError for an image where `of_text`."""
        from vllm import SamplingParams

        handed: list[tuple[Any, dict[str, Any]]] = []

        def keep(messages: list[Any], sampling_params: Any = None, **kwargs: Any) -> list[Any]:
            handed.append((messages, kwargs))
            return [_EMPTY] * len(messages)

        watched, self.client.chat = self.client.chat, keep
        # What the stock loop makes of the engine's counts is divided by the answers, of which there may be none yet.
        quiet, self.disable_log_stats = self.disable_log_stats, True
        try:
            self.stock_answers([request], counted=False)
        finally:
            self.client.chat, self.disable_log_stats = watched, quiet
        [(messages, kwargs)] = handed
        contents = [message["content"] for message in messages[0] if isinstance(message["content"], list)]
        if of_text and any(part["type"] != "text" for content in contents for part in content):
            raise InputError(
                f"{self.model_id} scores texts by their likelihood behind text alone; this document shows an image: "
                "take one of the HF wrappers"
            )
        if self._special_tokens is None:
            self._special_tokens = self._lacks_special_tokens(kwargs)
        kwargs |= {"tokenization_kwargs": {"add_special_tokens": self._special_tokens}, "use_tqdm": False}
        told = self._chat(messages=messages, sampling_params=SamplingParams(temperature=0, max_tokens=1), **kwargs)
        return list(told[0].prompt_token_ids)

    def _check(self, answer: Any) -> None:
        """Raises MixedWeightsError where other weights than those of the spec had a share in it, as vLLM tells."""
        if self._serving.is_labelled(self.client.llm_engine.vllm_config):
            self._serving.check_answered_by(answer, digest_of(self.spec))

    def _checked(self, answers: list[Any]) -> list[Any]:
        """Answers, with empty ones, counted as failed, for those that other weights had a share in."""
        checked: list[Any] = []
        for answer in self._counted_tokens(answers):
            try:
                self._check(answer)
                checked.append(answer)
            except self._serving.MixedWeightsError as error:
                self._generation_raised(error, 1)
                checked.append(_EMPTY)
        return checked

    def _counted_tokens(self, answers: list[Any]) -> list[Any]:
        self.generation.prompt_tokens += sum(len(answer.prompt_token_ids or ()) for answer in answers)
        self.generation.answer_tokens += sum(len(answer.outputs[0].token_ids) for answer in answers)
        return answers

    def _watched_chat(self, messages: list[Any], sampling_params: Any, **kwargs: Any) -> list[Any]:
        """`LLM.chat`, counted. A conversation that vLLM refuses becomes an empty answer, and not its whole batch."""
        if self._special_tokens is None:
            self._special_tokens = self._lacks_special_tokens(kwargs)
        kwargs["tokenization_kwargs"] = {"add_special_tokens": self._special_tokens}
        each = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(messages)
        self.generation.calls += len(messages)
        keys = ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "stop")
        for parameters in each:
            self.generation.settings[json.dumps({key: getattr(parameters, key) for key in keys})] += 1
        try:
            return self._checked(self._chat(messages=messages, sampling_params=each, **kwargs))
        except self._serving.REFUSALS as error:
            if len(messages) == 1:
                self._generation_raised(error, 1)
                return [_EMPTY]
        answers: list[Any] = []
        for message, parameters in zip(messages, each, strict=True):
            try:
                answers += self._checked(self._chat(messages=[message], sampling_params=[parameters], **kwargs))
            except self._serving.REFUSALS as error:
                self._generation_raised(error, 1)
                answers.append(_EMPTY)
        return answers


@dataclasses.dataclass(frozen=True)
class _Text:
    text: str = ""


@dataclasses.dataclass(frozen=True)
class _Answer:
    outputs: tuple[_Text, ...] = (_Text(),)


_EMPTY = _Answer()
"""What a failed generation looks like to the stock class, which reads `outputs[0].text`."""


class _OneSettingAtATime(StockSimple):
    """The stock class hands the generation settings of a batch's last request to all of it."""

    def generate_until(self, requests: list[Any]) -> list[Any]:
        if self._tp_world_size > 1 and self.batch_size_per_gpu > 1:  # its ranks have to make the same calls
            raise InputError("simple mode in an external launch with tensor_parallel_size > 1 needs --batch_size 1")
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        answers: list[Any] = [None] * len(requests)
        for indices in alike.values():
            for index, answer in zip(indices, super().generate_until([requests[i] for i in indices]), strict=True):
                answers[index] = answer
        return answers


class PlamVLLM(VLLMPlateauMixin, _OneSettingAtATime):
    model_id = "plam_vllm"


class PlamVLLMChat(VLLMPlateauMixin, StockChat):
    model_id = "plam_vllm"
