"""`PlateauMixin`: what turns one of lmms-eval's HF wrappers into ours.

A wrapper class is `class PlamX(PlateauMixin, StockX)`. The stock class loads the model, builds prompts and generates;
the mixin decides where and in which dtype it loads, merges in place afterwards, and watches what is generated.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import hashlib
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from loguru import logger
from transformers import PreTrainedModel

from plam_eval.evaluation import harness
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import MergeReport, merge_in_place
from plam_eval.merging.plan import plan_merge
from plam_eval.model_wrappers.manifest import WRAPPERS
from plam_eval.provenance import provenance
from plam_eval.spec import OVERRIDE_KEYS, PlateauSpec, load_spec

# XML 1.0 has no way to write these, so a worksheet refuses them, and MMBench writes worksheets while it aggregates.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_KEPT_ERRORS = 5


def writable(answer: str) -> str:
    """`answer` without the characters a worksheet refuses.

    Those that Python counts as white space become spaces, so that a parser strips them as before; the others become
    U+FFFD, which no parser takes for an answer.
    """
    return _UNWRITABLE.sub(lambda found: " " if found.group().isspace() else "\ufffd", answer)


class _TooManyFailures(BaseException):
    """Ends a stock generation loop; not an `Exception`, because the loops swallow those."""


@dataclass
class Journal:
    """What one run's generation did on this rank; calls and failures count documents, whatever the batch size."""

    calls: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    settings: Counter[str] = field(default_factory=Counter)
    altered: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "settings": dict(self.settings)}


class PlateauMixin:
    """Merges at load time, runs where it is told, and keeps what it generates from costing a run.

    Arguments it takes from model_args; all others go to the stock class unchanged:

    - `plateau`: name or path of a plateau spec, "none" (the default) for the plain model; `base`, `layers`, `modules`,
      `model_weight`, `base_weight`, `rule`, `seed` override single fields.
    - `device`: "cpu", "cuda", "cuda:1"; default: CUDA where there is one. `device_map`: as transformers takes it.
    - `dtype`: "float32", "bfloat16", "float16" or "auto"; default: the stock wrapper's.
    - `max_error_share`: share of generations that may raise before the run fails; default 0.

    Raises:
        SpecError, MergeError: before the model is loaded where headers show it, otherwise with the model unchanged.
    """

    model_id: ClassVar[str]

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        plateau: str | Path | Mapping[str, Any] | PlateauSpec | None = None,
        device: str | torch.device | None = None,
        device_map: str | None = None,
        dtype: str | torch.dtype | None = None,
        max_error_share: float = 0.0,
        **kwargs: Any,
    ) -> None:
        stock = _stock_class(type(self))
        parameters = inspect.signature(stock).parameters
        overrides = {key: kwargs.pop(key) for key in OVERRIDE_KEYS if key in kwargs}
        _check_arguments(self.model_id, kwargs, parameters)
        if not 0 <= max_error_share <= 1:
            raise ValueError(f"max_error_share is {max_error_share}; expected a share from 0 to 1")
        self.max_error_share = float(max_error_share)
        self.pretrained_name = str(pretrained or parameters["pretrained"].default)
        self.checkpoint = Checkpoint.open(self.pretrained_name, revision=kwargs.get("revision"))
        spec = load_spec(plateau, overrides)
        if spec is not None:  # headers are enough to find most faults, before minutes of loading
            plan_merge(spec, model=self.checkpoint, base=Checkpoint.open(spec.base_model))

        accelerator = Accelerator()
        if accelerator.distributed_type in _SHARDED:
            raise ValueError(
                f"{self.model_id} runs one whole model per process, but the launcher asks for "
                f"{accelerator.distributed_type.value}, which shards it; launch with --multi_gpu, or with one process "
                "and device_map=auto"
            )
        place, mapped = _placement(device, device_map, accelerator)
        wanted = _dtype(dtype)
        if wanted is not None and "dtype" in parameters:
            kwargs["dtype"] = wanted
        with _one_process(stock), _loading_in(wanted if "dtype" not in parameters else None):
            super().__init__(pretrained=self.pretrained_name, device=place, device_map=mapped, **kwargs)  # type: ignore[call-arg]
        # Identities are those of what was read: the files may be others by the time answers are cached.
        self._identity = self.checkpoint.identity()
        self._base_identity: dict[str, Any] | None = None
        self.accelerator = accelerator
        self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        self._arguments = {key: str(value) for key, value in sorted(kwargs.items()) if "batch_size" not in key}

        self.journal = Journal()
        self._planned: int | None = None
        self._generate = self.model.generate  # type: ignore[attr-defined]
        self.model.generate = self._watched_generate  # type: ignore[attr-defined]
        self.spec: PlateauSpec | None = None
        self.base: Checkpoint | None = None
        self.merge_report: MergeReport | None = None
        if spec is not None:
            self.merge(spec)
        else:
            logger.info(f"{self.model_id}: plain model, nothing merged")

    @property
    def wrapped_id(self) -> str:
        """The stock model id whose prompts and generation settings this wrapper uses."""
        return WRAPPERS[self.model_id].wrapped_id

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
        """As in lmms-eval, except that one setting given in both places is an error only if the two differ."""
        from lmms_eval.utils import simple_parse_args_string

        given = simple_parse_args_string(arg_string)
        added = {key: value for key, value in (additional_config or {}).items() if value is not None}
        # batch_size always arrives with a default from the command line, so there model_args is the more explicit one.
        for key in given.keys() & added.keys() - {"batch_size"}:
            if str(given[key]) != str(added[key]):
                raise ValueError(f"{key} is {given[key]} in --model_args and {added[key]} as --{key}; give one of them")
        return cls(**{**added, **given})

    # --- merging ------------------------------------------------------------------------------------------------------

    def merge(
        self, plateau: str | Path | Mapping[str, Any] | PlateauSpec | None, **overrides: Any
    ) -> MergeReport | None:
        """Brings the resident model to this plateau spec (None or "none": back to plain), without reloading it."""
        spec = load_spec(plateau, overrides)
        base = Checkpoint.open(spec.base_model) if spec is not None else None
        report = merge_in_place(self.model, spec, checkpoint=self.checkpoint, base=base)  # type: ignore[attr-defined]
        self.spec, self.base = spec, base
        self._base_identity = base.identity() if base is not None else None
        self.merge_report = report if spec is not None else None
        if spec is not None and self._rank == 0:
            logger.info(f"{self.model_id}: merged {spec.base_model}\n{report}")
        return self.merge_report

    def cache_fingerprint(self) -> str:
        """Names the weights and settings that answers depend on: spec digest, both checkpoints, dtype, arguments."""
        stock = _stock_class(type(self))
        content = {
            "wrapper": f"{stock.__module__}.{stock.__qualname__}",
            "arguments": self._arguments,
            "dtype": str(self.model.dtype),  # type: ignore[attr-defined]
            "device": self.device.type,  # type: ignore[attr-defined]
            "checkpoint": self._identity,
            "spec": self.spec.digest() if self.spec is not None else None,
            "base": self._base_identity,
        }
        return f"plam-eval:{hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()}"

    def clean(self) -> None:
        """Keeps the model: lmms-eval deletes it after every evaluation, and this one may be evaluated again."""

    # --- generation ---------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """The stock class's answers, in a form every task can write down; raises where too many generations raised."""
        return self._watched(super().generate_until, requests)  # type: ignore[misc]

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        return self._watched(super().generate_until_multi_round, requests)  # type: ignore[misc]

    def _watched(self, generate: Any, requests: list[Any]) -> list[Any]:
        # Stock wrappers edit the generation settings they are given, and the response cache would then store answers
        # under keys it never looks up.
        copies = [_with_own_settings(request) for request in requests]
        self._planned = len(requests)
        try:
            answers = generate(copies)
        except _TooManyFailures:
            harness.check_failures([self.journal.to_dict()], self.max_error_share)
            raise
        finally:
            self._planned = None
        return [self._recorded(answer, request) for answer, request in zip(answers, requests, strict=True)]

    def _watched_generate(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate`, counted. A failure becomes an empty answer here, whatever the stock loop does with one."""
        if self._planned is None:
            return self._generate(*args, **kwargs)
        documents = len(kwargs["input_ids"])
        self.journal.calls += documents
        keys = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams", "use_cache")
        self.journal.settings[json.dumps({key: kwargs[key] for key in keys if kwargs.get(key) is not None})] += (
            documents
        )
        try:
            return self._generate(*args, **kwargs)
        except Exception as error:
            self.journal.failed += documents
            logger.error(f"{self.model_id}: generation raised {type(error).__name__}: {error}")
            if len(self.journal.errors) < _KEPT_ERRORS:
                self.journal.errors.append(f"{type(error).__name__}: {error}")
            # With several processes the verdict falls at the end, on all of them: one that stopped here would leave
            # the others waiting.
            if self._world_size == 1 and self.journal.failed > self.max_error_share * self._planned:
                raise _TooManyFailures from error
            return kwargs["input_ids"]

    def _recorded(self, answer: Any, request: Any) -> Any:
        """The answer without unwritable characters; what it was before goes to the journal."""
        if isinstance(answer, str):
            text, clean = answer, writable(answer)
        elif isinstance(answer, (list, tuple)):
            return type(answer)(self._recorded(part, request) for part in answer)
        elif isinstance(getattr(answer, "text", None), str):
            text = answer.text
            clean = replace(answer, text=writable(text))
        else:
            return answer
        if text != (clean if isinstance(clean, str) else clean.text) and not request.metadata.get("__padding_only__"):
            self.journal.altered.append({"task": request.task_name, "doc_id": request.doc_id, "raw": text})
        return clean

    # --- record -------------------------------------------------------------------------------------------------------

    def begin_run(self) -> None:
        """Starts a fresh journal; called at the start of every evaluation."""
        self.journal = Journal()

    def run_record(self, journals: list[dict[str, Any]]) -> dict[str, Any]:
        """Our block of a results JSON, from the journals of all ranks."""
        settings: Counter[str] = Counter()
        for journal in journals:
            settings.update(journal["settings"])
        return {
            "folder": f"plam-{self.spec.digest()[:12]}" if self.spec is not None else "plam-plain",
            "wrapper": self.model_id,
            "wraps": self.wrapped_id,
            "mode": "simple" if self.is_simple else "chat",  # type: ignore[attr-defined]
            "plain": self.spec is None,
            "dtype": str(self.model.dtype).removeprefix("torch."),  # type: ignore[attr-defined]
            "device": str(self.device),  # type: ignore[attr-defined]
            "processes": len(journals),
            "provenance": provenance(self.spec, checkpoint=self.checkpoint, base=self.base, report=self.merge_report),
            "generation": {
                "calls": sum(journal["calls"] for journal in journals),
                "failed": sum(journal["failed"] for journal in journals),
                "errors": [error for journal in journals for error in journal["errors"]][:_KEPT_ERRORS],
                "settings": [{**json.loads(text), "calls": count} for text, count in sorted(settings.items())],
            },
            "altered_answers": [row for journal in journals for row in journal["altered"]],
        }


# --- what the stock classes assume ------------------------------------------------------------------------------------


def _stock_class(cls: type) -> type:
    """The class after the mixin: the harness's own wrapper."""
    order = cls.__mro__
    return order[order.index(PlateauMixin) + 1]


def _check_arguments(model_id: str, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Refuses names nobody takes: some stock wrappers swallow them, and a misspelt `plateau` would then be ignored."""
    stock = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    known = [*dict.fromkeys(["plateau", *OVERRIDE_KEYS, "device", "device_map", "dtype", "max_error_share", *stock])]
    unknown = [name for name in given if name not in stock and name != "max_batch_size"]
    if unknown:
        hints = []
        for name in unknown:
            near = difflib.get_close_matches(name, known, n=1)
            hints.append(f"{name}" + (f" (did you mean {near[0]}?)" if near else ""))
        raise TypeError(f"{model_id} takes no argument {', '.join(hints)}; known: {', '.join(known)}")


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype | None:
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    known = ("float32", "bfloat16", "float16")
    if dtype not in known:
        raise ValueError(f"dtype is {dtype!r}; expected auto, {', '.join(known)}")
    return getattr(torch, dtype)


def _placement(device: str | torch.device | None, device_map: str | None, accelerator: Accelerator) -> tuple[str, str]:
    """(device, device_map) for the stock class, neither ever left to its default.

    The stock classes default to CUDA, move inputs to "cuda" when `device_map` is "auto", and take `device_map` as
    licence to forget their rank.
    """
    has_cuda = torch.cuda.is_available()
    spread = device_map in ("auto", "balanced", "balanced_low_0", "sequential")
    single = device_map if device_map and not spread else None
    place = torch.device(device or single or ("cuda" if has_cuda else "cpu"))
    if single and torch.device(single).type != place.type:
        raise ValueError(f"device is {place} and device_map is {single}; give one of them")
    if place.type == "cuda" and not has_cuda:
        raise ValueError(f"device is {place}, but torch finds no CUDA device here; give device=cpu")
    if place.type == "cuda" and place.index is None and accelerator.num_processes > 1 and not spread:
        place = torch.device("cuda", accelerator.local_process_index)
    if spread and place.type == "cuda":
        return str(place), str(device_map)
    return str(place), single or str(place)


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
def _loading_in(dtype: str | torch.dtype | None) -> Iterator[None]:
    """Models load in `dtype` meanwhile, whatever dtype the caller names: most stock wrappers hard-code bfloat16."""
    if dtype is None:
        yield
        return
    stock = vars(PreTrainedModel)["from_pretrained"]

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("torch_dtype", None)
        kwargs["dtype"] = dtype
        return stock.__func__(cls, *args, **kwargs)

    setattr(PreTrainedModel, "from_pretrained", classmethod(from_pretrained))  # noqa: B010 (a method, to mypy)
    try:
        yield
    finally:
        setattr(PreTrainedModel, "from_pretrained", stock)  # noqa: B010


def _with_own_settings(request: Any) -> Any:
    own = copy.copy(request)
    own.arguments = tuple(copy.deepcopy(part) if isinstance(part, dict) else part for part in request.args)
    return own


harness.install()
