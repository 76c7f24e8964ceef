"""HF models in lmms-eval's own wrappers, merged in place.

A wrapper class is `class PlamX(HFPlateauMixin, StockX)`. The stock class loads the model, builds prompts and generates;
the mixin decides where and in which dtype it loads, merges in place afterwards, and watches what is generated.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    AutoVideoProcessor,
    PreTrainedModel,
)

from plam_eval import threads
from plam_eval.errors import InputError, first_line, hint
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.registry import WRAPPERS
from plam_eval.harness.requests import asking_the_same, scored_text_of
from plam_eval.harness.wrapper import Prompt
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import merge_in_place
from plam_eval.merging.plan import plan_merge
from plam_eval.merging.report import MergeReport
from plam_eval.model_wrappers.checks import check_arguments, check_share, check_trust
from plam_eval.model_wrappers.likelihoods import continuation, is_per_token, score_rows
from plam_eval.model_wrappers.mixin import PlateauMixin, stock_class
from plam_eval.model_wrappers.processors import Noting, Processed, Remembering, is_processor
from plam_eval.spec import OVERRIDE_KEYS, PlateauSpec, load_spec

_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class HFPlateauMixin(PlateauMixin):
    """Merges at load time, runs where it is told, and counts what it generates and what of it fails.

    Arguments it takes from model_args; all others go to the stock class unchanged:

    - `pretrained`: folder or hub id, `owner/name@revision` for a branch, tag or commit of the hub; `revision` says the
      same beside it. The model, its config, tokenizer and processor are loaded from the one commit that it was found to
      be, also where the stock class takes no revision.
    - `plateau`: name or path of a plateau spec, "none" (the default) for the plain model; `base`, `layers`, `modules`,
      `model_weight`, `base_weight`, `rule`, `parameters`, `seed`, `ancestor` override single fields.
    - `device`: "cpu", "cuda", "cuda:1"; default: CUDA where there is one. `device_map`: as transformers takes it.
    - `dtype`: "float32", "bfloat16", "float16" or "auto"; default: the stock wrapper's.
    - `trust_remote_code`: whether code that lies in the checkpoint may run; default false, for every stock class.
    - `max_error_share`: share of generations that may raise before the run fails; default 0.

    Raises:
        SpecError, MergeError: before the model is loaded where headers show it, otherwise there is no wrapper to use.
        ArgumentError: an argument that nobody takes, or text where it wants a number.
    """

    _exchanged: Callable[..., Any] | None = None  # in place of `own_generate`

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        plateau: str | Path | Mapping[str, Any] | PlateauSpec | None = None,
        device: str | torch.device | None = None,
        device_map: str | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        max_error_share: float = 0.0,
        **kwargs: Any,
    ) -> None:
        stock = stock_class(type(self))
        parameters = inspect.signature(stock).parameters
        checkpoint, spec = self.check(
            pretrained,
            plateau=plateau,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            max_error_share=max_error_share,
            **kwargs,
        )
        self.pretrained_name = checkpoint.name
        kwargs = {key: value for key, value in kwargs.items() if key not in (*OVERRIDE_KEYS, "revision")}

        # Without a launcher of lmms-eval (a scan or sweep under torchrun) this makes the process group, and processes
        # that finish early have to wait for the others for longer than NCCL's ten minutes.
        accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(weeks=52))])
        if accelerator.distributed_type in _SHARDED:
            raise InputError(
                f"{self.model_id} runs one whole model per process, but the launcher asks for "
                f"{accelerator.distributed_type.value}, which shards it; launch with --multi_gpu, or with one process "
                "and device_map=auto"
            )
        place, mapped = _placement(device, device_map, accelerator)
        wanted = _dtype(dtype)
        if wanted is not None and "dtype" in parameters:
            kwargs["dtype"] = wanted
        forced = {} if wanted is None or "dtype" in parameters else {"dtype": wanted}
        with _one_process(stock), _loading_with(trust_remote_code, forced, checkpoint):
            try:
                super().__init__(pretrained=checkpoint.loaded_by, device=place, device_map=mapped, **kwargs)
            except ImportError as error:  # FlashAttention, for one
                raise InputError(f"{self.model_id} cannot be loaded as asked: {first_line(error)}") from error
        if place.startswith("cpu"):
            threads.use(sum(parameter.numel() for parameter in self.model.parameters()))
        self.accelerator = accelerator
        self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        self.own_generate = self.model.generate
        self.model.generate = self._watched_generate
        trusted = {"trust_remote_code": True} if trust_remote_code else {}
        self._begin(checkpoint, {**kwargs, **trusted}, max_error_share)
        self._is_loaded = False
        self.merge(spec)
        self._is_loaded = True

    @classmethod
    def check(
        cls,
        pretrained: str | None = None,
        *,
        plateau: str | Path | Mapping[str, Any] | PlateauSpec | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        max_error_share: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Checkpoint, PlateauSpec | None]:
        """The checkpoint and the spec that the constructor's arguments name; raises what can be known beforehand.

        Args:
            pretrained: folder or hub id; None for the stock class's default.
            plateau: a spec, its name, file or content; None or "none" for the plain model.
            dtype: a torch dtype or its name; None for the stock class's default.
            trust_remote_code: whether code that lies in the checkpoint may run.
            max_error_share: share of generations that may raise, from 0 to 1.
            kwargs: the stock class's arguments, and overrides of the spec's fields by their names in model_args.

        Raises:
            ArgumentError: an argument that nobody takes, or text where it wants a number. InputError: a value that
                cannot be. SpecError, CheckpointError, MergeError: as headers show.
        """
        parameters = inspect.signature(stock_class(cls)).parameters
        overrides = {key: kwargs.pop(key) for key in OVERRIDE_KEYS if key in kwargs}
        check_arguments(
            cls.model_id, kwargs, parameters, ("device", "device_map", "dtype", "revision", "trust_remote_code")
        )
        check_share(max_error_share)
        check_trust(trust_remote_code)
        _dtype(dtype)
        threads.threads_wanted(0)  # what PLAM_THREADS says, if it says anything
        attention = kwargs.get("attn_implementation")
        if isinstance(attention, str) and attention not in _ATTENTION and not re.search("[/|]", attention):  # kernels
            raise InputError(f"attn_implementation is {attention!r}; {hint(attention, _ATTENTION)}")
        if pretrained is not None and not str(pretrained).strip():
            raise InputError("pretrained is empty; expected a folder or a hub id")
        name = str(pretrained or parameters["pretrained"].default)
        checkpoint = Checkpoint.open(name, revision=kwargs.get("revision"), role="pretrained")
        cls._check_checkpoint(checkpoint, trust_remote_code)
        spec = load_spec(plateau, overrides)
        if spec is not None:  # headers are enough to find most faults, before minutes of loading
            base = Checkpoint.open(spec.base_model, role="base")
            plan = plan_merge(spec, model=checkpoint, base=base)
            base.announce(tensor.base_name for tensor in plan.tensors)
            if plan.ancestor is not None:
                plan.ancestor.announce(str(tensor.ancestor_name) for tensor in plan.tensors)
        checkpoint.announce()
        return checkpoint, spec

    @classmethod
    def _check_checkpoint(cls, checkpoint: Checkpoint, trust_remote_code: bool) -> None:
        """Raise InputError for a checkpoint that the stock class cannot load, as its config shows."""
        if not trust_remote_code:
            _check_kind(cls.model_id, checkpoint)

    @property
    def model(self) -> Any:
        """The model. Nothing wraps it, which the stock classes look for, module by module, at every access."""
        return self._model

    @property
    def input_processor(self) -> Any:
        """What makes the model's inputs of texts and images."""
        return next(value for value in vars(self).values() if isinstance(value, Remembering) or is_processor(value))

    @property
    def running_dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def running_attention(self) -> str | None:
        return getattr(self.model.config.get_text_config(), "_attn_implementation", None)

    def bring_weights_to(self, spec: PlateauSpec | None, base: Checkpoint | None) -> MergeReport | None:
        """Merge the model's parameters in place, as `merge_in_place` does.

        Args:
            spec: what they are to be merged by; None for the checkpoint's own.
            base: the checkpoint of the spec's base LLM.
        """
        # A wrapper whose constructor raises is nobody's, and its model with it.
        return merge_in_place(
            self.model, spec, checkpoint=self.checkpoint, base=base, thrown_away_on_error=not self._is_loaded
        )

    @contextlib.contextmanager
    def generating(self, generate: Callable[..., Any]) -> Iterator[None]:
        """While it lasts, the stock loop gets what `generate` returns where it calls `model.generate`.

        Args:
            generate: takes what the loop hands over, and returns token ids of (documents, prompt and new tokens).
        """
        before, self._exchanged = self._exchanged, generate
        try:
            yield
        finally:
            self._exchanged = before

    @contextlib.contextmanager
    def generating_itself(self) -> Iterator[None]:
        """While it lasts, `model.generate` is the model's own: neither exchanged nor counted."""
        before, self._exchanged = self._exchanged, None
        try:
            with self._uncounted():
                yield
        finally:
            self._exchanged = before

    @contextlib.contextmanager
    def processing_once(self) -> Iterator[Callable[[], None]]:
        """While it lasts, processors keep what they made of their inputs; the function it gives starts a replay."""
        processed = Processed()
        before = {name: value for name, value in vars(self).items() if is_processor(value)}
        for name, processor in before.items():
            setattr(self, name, Remembering(processor, processed))
        try:
            yield processed.replay
        finally:
            for name, processor in before.items():
                setattr(self, name, processor)

    def score_texts(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Minus the log-likelihood of each request's text behind their common prompt, and whether it is the greedy one.

        Args:
            requests: lmms-eval's, of one prompt.
        """
        prompt = self._prompt_inputs(requests[0])
        texts = [scored_text_of(request, self.task_dict) for request in requests]
        ids = prompt["input_ids"][0]
        rows = [continuation(self.tokenizer, ids.tolist(), text) for text in texts]
        self.generation.prompt_tokens += sum(len(ids) + len(row) for row in rows)
        alone = {name for name, value in prompt.items() if not is_per_token(value, prompt["input_ids"])}
        if alone:  # of images: laid out by a family's own rules, which a second row would change
            return [likelihood for row in rows for likelihood in score_rows(self.model, prompt, [row])]
        return score_rows(self.model, prompt, rows)

    def prompt_of(self, request: Any) -> Prompt:
        """What the model would be asked for a request, by the stock loop's own template and processor.

        Args:
            request: lmms-eval's.
        """
        scored = request.request_type == "loglikelihood"
        asked = asking_the_same(request, simple=self.is_simple) if scored else request
        texts: list[str] = []
        before = {name: value for name, value in vars(self).items() if is_processor(value)}
        for name, processor in before.items():
            setattr(self, name, Noting(processor, texts))
        try:
            handed = self._handed(asked)
        finally:
            for name, processor in before.items():
                setattr(self, name, processor)
        settings = request.args[1 if self.is_simple else 2]
        limited = scored or "max_new_tokens" in (settings or {})
        ids = tuple(handed["input_ids"][0].tolist())
        text = texts[0] if len(texts) == 1 else self.tokenizer.decode(ids, skip_special_tokens=False)
        return Prompt(text, ids, None if limited else handed.get("max_new_tokens"))

    def _handed(self, request: Any) -> dict[str, Any]:
        """What the stock loop hands to `model.generate` for a request."""
        handed: list[dict[str, Any]] = []

        def keep(**inputs: Any) -> Any:
            handed.append(inputs)
            return inputs["input_ids"]

        with self._uncounted(), self.generating(keep):
            self.stock_answers([request], counted=False)
        if len(handed) != 1 or len(handed[0]["input_ids"]) != 1:
            raise EvaluationError(f"{self.model_id} made {len(handed)} prompts of one document; expected one")
        return handed[0]

    def _prompt_inputs(self, request: Any) -> dict[str, Any]:
        """What the stock loop hands to the model itself for a request of a likelihood, were it to answer."""
        handed = self._handed(asking_the_same(request, simple=self.is_simple))
        takes = inspect.signature(self.model.forward).parameters
        return {
            name: value
            for name, value in handed.items()
            if name in takes and isinstance(value, torch.Tensor) and name != "logits_to_keep"
        }

    def _watched_generate(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate`, counted. A failure becomes an empty answer here, whatever the stock loop does with one."""
        generate = self.own_generate if self._exchanged is None else self._exchanged
        if self._planned is None:
            return generate(*args, **kwargs)
        documents = len(kwargs["input_ids"])
        self.generation.calls += documents
        keys = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams", "use_cache")
        self.generation.settings[json.dumps({key: kwargs[key] for key in keys if kwargs.get(key) is not None})] += (
            documents
        )
        try:
            with _checked_before(self.model.config):
                generated = generate(*args, **kwargs)
        except Exception as error:
            self._generation_raised(error, documents)
            return kwargs["input_ids"]
        self._count_tokens(kwargs["input_ids"], kwargs.get("attention_mask"), generated)
        return generated

    def _count_tokens(self, prompts: Any, mask: Any, generated: Any) -> None:
        """Tokens of a batch's prompts, without padding, and of its answers, up to the longest."""
        self.generation.prompt_tokens += int(mask.sum()) if mask is not None else prompts.numel()
        if isinstance(generated, torch.Tensor):
            self.generation.answer_tokens += len(prompts) * max(0, generated.shape[-1] - prompts.shape[-1])


# --- what the stock classes assume -----------------------------------------------------------------------------------


def _check_kind(model_id: str, checkpoint: Checkpoint) -> None:
    """Raise InputError for a checkpoint that the stock class of a wrapper cannot load, as its config shows."""
    kind = checkpoint.config.get("model_type")
    if kind in WRAPPERS[model_id].model_types:
        return
    owner = next((name for name, wrapper in WRAPPERS.items() if kind in wrapper.model_types), None)
    takes = ", ".join(WRAPPERS[model_id].model_types)
    stated = f"pretrained={checkpoint.name}: its config.json says model_type {kind!r}"
    if owner is not None:
        raise InputError(f"{stated}, and {model_id} loads {takes}; give --model {owner}")
    if "auto_map" in checkpoint.config:
        raise InputError(
            f"{stated}, which code of the checkpoint's own defines; it runs only with trust_remote_code=True"
        )
    if "vision_config" not in checkpoint.config:
        raise InputError(
            f"{stated} and has no vision_config, so it is no multimodal model in Hugging Face format; {model_id} loads "
            f"{takes}. A base LLM is named with base="
        )
    raise InputError(f"{stated}; {model_id} loads {takes}. For others there is --model plam_hf")


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype | None:
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    dtypes = ("float32", "bfloat16", "float16")
    if dtype not in dtypes:
        raise InputError(f"dtype is {dtype!r}; expected auto, {', '.join(dtypes)}")
    return getattr(torch, dtype)


def _placement(device: str | torch.device | None, device_map: str | None, accelerator: Accelerator) -> tuple[str, str]:
    """(device, device_map) for the stock class, neither ever left to its default.

    The stock classes default to CUDA, move inputs to "cuda" when `device_map` is "auto", and take `device_map` as
    licence to forget their rank.
    """
    has_cuda = torch.cuda.is_available()
    spread = device_map in ("auto", "balanced", "balanced_low_0", "sequential")
    single = device_map if device_map and not spread else None
    place = _device(device or single or ("cuda" if has_cuda else "cpu"))
    if single and _device(single).type != place.type:
        raise InputError(f"device is {place} and device_map is {single}; give one of them")
    if place.type == "cuda" and not has_cuda:
        raise InputError(f"device is {place}, but torch finds no CUDA device here; give device=cpu")
    if place.type == "cuda" and place.index is None and accelerator.num_processes > 1 and not spread:
        place = torch.device("cuda", accelerator.local_process_index)
    if spread and place.type == "cuda":
        return str(place), str(device_map)
    return str(place), single or str(place)


def _device(name: Any) -> torch.device:
    try:
        return torch.device(name)
    except (RuntimeError, TypeError) as error:
        devices = "cpu, cuda, cuda:N; as device_map also auto, balanced, balanced_low_0, sequential"
        raise InputError(f"device is {name!r}; expected {devices}") from error


class _OneProcess:
    """Stands in for `accelerate.Accelerator` while a stock wrapper is constructed.

    For more than one process the stock constructors insist on CUDA and on a distributed type of their list, and then
    only move the model to a device, which `_placement` has already decided.
    """

    num_processes = 1
    process_index = local_process_index = 0
    is_main_process = is_local_main_process = True
    distributed_type = DistributedType.NO

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes whatever the stock wrapper hands to `Accelerator`."""

    def unwrap_model(self, model: Any) -> Any:
        return model


@contextlib.contextmanager
def _one_process(stock: type) -> Iterator[None]:
    owner = next(cls for cls in stock.__mro__ if "__init__" in vars(cls))
    module = sys.modules[owner.__module__]
    real = module.Accelerator
    module.Accelerator = _OneProcess  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.Accelerator = real  # type: ignore[attr-defined]


@contextlib.contextmanager
def _checked_before(config: Any) -> Iterator[None]:
    """While it lasts, `config` is known to hold no generation settings, if it held none at the start.

    transformers asks at every `generate`, and builds a whole default config of the model for the answer, which takes
    some milliseconds: a third of the time of a small model's short answer.
    """
    name = "_get_generation_parameters"
    holds_none = _WITHOUT_SETTINGS.get(id(config)) is config
    if not holds_none and hasattr(config, name) and not getattr(config, name)():
        _WITHOUT_SETTINGS.clear()  # of one model at a time, so that it keeps no other one alive
        _WITHOUT_SETTINGS[id(config)] = config
        holds_none = True
    if holds_none:
        vars(config)[name] = dict
    try:
        yield
    finally:
        vars(config).pop(name, None)


_WITHOUT_SETTINGS: dict[int, Any] = {}


_LOADERS = (
    *(AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer, AutoVideoProcessor),
    PreTrainedModel,
)


@contextlib.contextmanager
def _loading_with(trust_remote_code: bool, model: Mapping[str, Any], checkpoint: Checkpoint) -> Iterator[None]:
    """transformers loads with these settings meanwhile, whatever its caller says.

    One stock wrapper hard-codes trust in a checkpoint's code, others leave the question to a prompt on the terminal,
    most hard-code bfloat16, and those that take a revision hand it to some loaders and not to others.

    Args:
        trust_remote_code: whether code that lies in the checkpoint may run.
        model: keyword arguments for the model alone, such as its dtype.
        checkpoint: on the hub, whatever is loaded under its name is of its commit.
    """
    before = {loader: vars(loader)["from_pretrained"] for loader in _LOADERS}

    def replacement(stock: Any, settings: Mapping[str, Any]) -> Any:
        def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
            if "dtype" in settings:
                kwargs.pop("torch_dtype", None)
            name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
            pinned = {"revision": checkpoint.commit} if checkpoint.commit and name == checkpoint.loaded_by else {}
            return stock.__func__(cls, *args, **{**kwargs, **settings, **pinned})

        return classmethod(from_pretrained)

    trust = {"trust_remote_code": trust_remote_code}
    for loader, stock in before.items():
        settings = {**trust, **model} if loader is PreTrainedModel else trust
        setattr(loader, "from_pretrained", replacement(stock, settings))  # noqa: B010 (a method, to mypy)
    try:
        yield
    finally:
        for loader, stock in before.items():
            setattr(loader, "from_pretrained", stock)  # noqa: B010
