"""`PlateauMixin`: what turns one of lmms-eval's wrappers into ours, whatever runs the model."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, get_args

import torch
from loguru import logger

from plam_eval.errors import ArgumentError, InputError, near_names
from plam_eval.evaluation import harness
from plam_eval.harness.registry import WRAPPERS
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import MergeReport
from plam_eval.provenance import provenance
from plam_eval.spec import OVERRIDE_KEYS, PlateauSpec, load_spec
from plam_eval.terminal import shown

# XML 1.0 has no way to write these, so a worksheet refuses them, and MMBench writes worksheets while it aggregates.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
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
    """What every wrapper shares: its plateau spec, the record of a run, and answers that cannot cost one.

    A subclass loads the model and says, in `_bring_to`, how its weights go to another spec.
    """

    model_id: ClassVar[str]
    checkpoint: Checkpoint
    max_error_share: float

    def _begin(self, checkpoint: Checkpoint, arguments: Mapping[str, Any], max_error_share: float) -> None:
        """To be called once the model is loaded. `arguments`: those that answers depend on, by name."""
        # Identities are those of what was read: the files may be others by the time answers are cached.
        self.checkpoint, self._identity = checkpoint, checkpoint.identity()
        self._arguments = {key: str(value) for key, value in sorted(arguments.items()) if "batch_size" not in key}
        self.max_error_share = float(max_error_share)
        self.journal = Journal()
        self._planned: int | None = None
        self.spec: PlateauSpec | None = None
        self.base: Checkpoint | None = None
        self._base_identity: dict[str, Any] | None = None
        self.merge_report: MergeReport | None = None

    @property
    def wrapped_id(self) -> str:
        """The stock model id whose prompts and generation settings this wrapper uses."""
        return WRAPPERS[self.model_id].wrapped_id

    @property
    def running_dtype(self) -> str:
        """Dtype of the weights, such as "bfloat16"."""
        raise NotImplementedError

    def _bring_to(self, spec: PlateauSpec | None, base: Checkpoint | None) -> MergeReport | None:
        """Change the weights, or raise with the old ones in place."""
        raise NotImplementedError

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
        """As in lmms-eval, except that one setting given in both places is an error only if the two differ."""
        given = harness.parse_model_args(arg_string)
        added = {key: value for key, value in (additional_config or {}).items() if value is not None}
        # batch_size always arrives with a default from the command line, so there model_args is the more explicit one.
        for key in given.keys() & added.keys() - {"batch_size"}:
            if str(given[key]) != str(added[key]):
                raise InputError(f"{key} is {given[key]} in --model_args and {added[key]} as --{key}; give one of them")
        return cls(**{**added, **given})

    # --- merging ------------------------------------------------------------------------------------------------------

    def merge(
        self, plateau: str | Path | Mapping[str, Any] | PlateauSpec | None, **overrides: Any
    ) -> MergeReport | None:
        """Brings the resident model to this plateau spec (None or "none": back to plain), without reloading it."""
        spec = load_spec(plateau, overrides)
        base = Checkpoint.open(spec.base_model, role="base") if spec is not None else None
        report = self._bring_to(spec, base)
        self._merged(spec, base, report)
        return self.merge_report

    def _merged(self, spec: PlateauSpec | None, base: Checkpoint | None, report: MergeReport | None) -> None:
        self.spec, self.base = spec, base
        self._base_identity = base.identity() if base is not None else None
        self.merge_report = report if spec is not None else None
        if self._rank != 0:  # type: ignore[attr-defined]
            return
        if spec is not None:
            logger.info(shown(f"{self.model_id}: merged {spec.base_model}\n{report}"))
        else:
            logger.info(f"{self.model_id}: plain model, nothing merged")

    def cache_fingerprint(self) -> str:
        """Names the weights and settings that answers depend on: spec digest, both checkpoints, dtype, arguments."""
        stock = stock_class(type(self))
        content = {
            "wrapper": f"{stock.__module__}.{stock.__qualname__}",
            "arguments": self._arguments,
            "dtype": self.running_dtype,
            "device": torch.device(self.device).type,  # type: ignore[attr-defined]
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
        answers = self.generated(generate, requests)
        return [self.recorded(answer, request) for answer, request in zip(answers, requests, strict=True)]

    def generated(self, generate: Any, requests: list[Any]) -> list[Any]:
        """What `generate` answers, as it is, with the calls of the model counted and failures kept from costing a run.

        Raises GenerationError where too many generations raised.
        """
        # Stock wrappers edit the generation settings they are given, and the response cache would then store answers
        # under keys it never looks up.
        copies = [with_own_settings(request) for request in requests]
        self._planned = len(requests)
        try:
            answers: list[Any] = generate(copies)
        except _TooManyFailures:
            harness.check_failures([self.journal.to_dict()], self.max_error_share)
            raise
        finally:
            self._planned = None
        return answers

    def _generation_raised(self, error: Exception, documents: int) -> None:
        """Count a failure; raises when one process alone already knows that there are too many."""
        self.journal.failed += documents
        logger.error(shown(f"{self.model_id}: generation raised {type(error).__name__}: {error}"))
        if len(self.journal.errors) < _KEPT_ERRORS:
            self.journal.errors.append(f"{type(error).__name__}: {error}")
        # With several processes the verdict falls at the end, on all of them: one that stopped here would leave
        # the others waiting.
        if self._world_size == 1 and self.journal.failed > self.max_error_share * (self._planned or 0):  # type: ignore[attr-defined]
            raise _TooManyFailures from error

    def recorded(self, answer: Any, request: Any) -> Any:
        """The answer without unwritable characters; what it was before goes to the journal."""
        if isinstance(answer, str):
            text, clean = answer, writable(answer)
        elif isinstance(answer, (list, tuple)):
            return type(answer)(self.recorded(part, request) for part in answer)
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

    def end_run(self, tasks: dict[str, Any]) -> None:
        """Called with lmms-eval's tasks once they are answered and scored."""

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
            "dtype": self.running_dtype,
            "device": str(self.device),  # type: ignore[attr-defined]
            "processes": len(journals),
            "arguments": self._arguments,
            "provenance": provenance(
                self.spec,
                checkpoint=self.checkpoint,
                base=self.base,
                report=self.merge_report,
                loaded=(self._identity, self._base_identity),
            ),
            "generation": {
                "calls": sum(journal["calls"] for journal in journals),
                "failed": sum(journal["failed"] for journal in journals),
                "errors": [error for journal in journals for error in journal["errors"]][:_KEPT_ERRORS],
                "settings": [{**json.loads(text), "calls": count} for text, count in sorted(settings.items())],
            },
            "altered_answers": [row for journal in journals for row in journal["altered"]],
        }


def stock_class(cls: type) -> type:
    """The harness's own wrapper: the first class behind ours."""
    return next(parent for parent in cls.__mro__ if not issubclass(parent, PlateauMixin))


def check_arguments(
    model_id: str, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], own: Iterable[str]
) -> None:
    """Refuses names nobody takes: some stock wrappers swallow them, and a misspelt `plateau` would then be ignored.

    Args:
        parameters: of the stock class's constructor; `own`: names that our class takes besides those of every wrapper.

    Raises:
        ArgumentError: listing every name that nobody takes, or every text that stands for a number.
    """
    stock = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    known = [*dict.fromkeys(["pretrained", "plateau", *OVERRIDE_KEYS, "max_error_share", *own, *stock])]
    unknown = [name for name in given if name not in known and name != "max_batch_size"]
    if unknown:
        hints = []
        for name in unknown:
            near = near_names(name, known, cutoff=0.6)
            hints.append(f"{name}" + (f" (did you mean {near[0]}?)" if near else ""))
        raise ArgumentError(f"{model_id} takes no argument {', '.join(hints)}; known: {', '.join(known)}")
    faults = [
        f"{name} is {value!r}; expected {' or '.join(kind.__name__ for kind in kinds)}"
        for name, value in given.items()
        if isinstance(value, str)
        and name in parameters
        and (kinds := _numbers(parameters[name].annotation))
        and not _reads_as(value, kinds)
    ]
    if faults:
        raise ArgumentError(f"{model_id}: {'; '.join(faults)}")


def _numbers(annotation: Any) -> tuple[type, ...]:
    """The types that an annotation names, if text is none of them: numbers and truth values alone."""
    kinds = tuple(kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType)
    return kinds if all(kind in (bool, int, float) for kind in kinds) else ()


def _reads_as(text: str, kinds: tuple[type, ...]) -> bool:
    """Whether a text stands for a number, as lmms-eval's command line hands over the batch size."""
    for kind in set(kinds) - {bool}:
        with contextlib.suppress(ValueError):
            kind(text)
            return True
    return False


def check_trust(trust_remote_code: Any) -> None:
    """Refuses what is neither True nor False: the text "no" would count as yes."""
    if not isinstance(trust_remote_code, bool):
        raise ArgumentError(f"trust_remote_code is {trust_remote_code!r}; expected true or false")


def check_share(max_error_share: Any) -> None:
    if not isinstance(max_error_share, (int, float)):
        raise ArgumentError(f"max_error_share is {max_error_share!r}; expected a number")
    if not 0 <= max_error_share <= 1:
        raise InputError(f"max_error_share is {max_error_share}; expected a share from 0 to 1")


def with_own_settings(request: Any) -> Any:
    own = copy.copy(request)
    own.arguments = tuple(copy.deepcopy(part) if isinstance(part, dict) else part for part in request.args)
    return own


harness.install()
