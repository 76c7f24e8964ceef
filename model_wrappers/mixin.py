"""`PlateauMixin`: what turns one of lmms-eval's wrappers into ours, whatever runs the model."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from loguru import logger

from plam_eval.errors import InputError
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.evaluate import parse_model_args
from plam_eval.harness.patches import check_failures, install_patches
from plam_eval.harness.registry import WRAPPERS
from plam_eval.harness.requests import is_padding, key_of, parts_of, with_own_settings
from plam_eval.harness.wrapper import AnsweringStrategy, GenerationRecord, Prompt, Timed, noted_prompts, writable
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.plan import open_ancestor
from plam_eval.merging.report import MergeReport
from plam_eval.provenance import provenance
from plam_eval.spec import PlateauSpec, load_spec
from plam_eval.terminal import shown

_KEPT_ERRORS = 5
_UNLIKELY = 1e30  # minus the log-likelihood of a text that could not be scored: never the smallest


class _TooManyFailures(BaseException):
    """Ends a stock generation loop; not an `Exception`, because the loops swallow those."""


class PlateauMixin:
    """What every wrapper shares: its plateau spec, who answers, and the record of a run.

    Failed generations are counted, and not fatal up to a share of a run's. A subclass loads the model and says, in
    `bring_weights_to`, how its weights go to another spec. The contract that this keeps is `plam_eval.harness.wrapper`.
    """

    model_id: ClassVar[str]
    pretrained_name: str
    checkpoint: Checkpoint
    spec: PlateauSpec | None
    base: Checkpoint | None
    merge_report: MergeReport | None
    generation: GenerationRecord
    max_error_share: float

    # Of lmms-eval's own class, which stands behind this one.
    is_simple: bool
    rank: int
    world_size: int
    device: Any
    task_dict: Any
    batch_size_per_gpu: int
    _rank: int

    notes_prompts = False
    _planned: int | None = None  # documents that are being generated for, while they count
    _strategy: AnsweringStrategy | None = None
    _times: list[Timed] | None = None  # where parts of requests are timed
    _part: int = 1  # documents of such a part

    def _begin(self, checkpoint: Checkpoint, arguments: Mapping[str, Any], max_error_share: float) -> None:
        """To be called once the model is loaded.

        Args:
            checkpoint: it was loaded from.
            arguments: those that answers depend on, by name.
            max_error_share: share of a run's generations that may raise.
        """
        # Identities are those of what was read: the files may be others by the time answers are cached.
        self.checkpoint, self._identity = checkpoint, checkpoint.identity()
        self._arguments = {key: str(value) for key, value in sorted(arguments.items()) if "batch_size" not in key}
        self.max_error_share = float(max_error_share)
        self.generation = GenerationRecord()
        self.spec = self.base = self.merge_report = None
        self._base_identity: dict[str, Any] | None = None
        self._ancestor: Checkpoint | None = None
        self._ancestor_identity: dict[str, Any] | None = None

    @property
    def wrapped_id(self) -> str:
        """The stock model id whose prompts and generation settings this wrapper uses."""
        return WRAPPERS[self.model_id].wrapped_id

    @property
    def running_dtype(self) -> str:
        """Dtype of the weights, such as "bfloat16"."""
        raise NotImplementedError

    @property
    def running_attention(self) -> str | None:
        """Name of the decoder's attention, such as "sdpa"; None where the engine chooses it from call to call."""
        return None

    def bring_weights_to(self, spec: PlateauSpec | None, base: Checkpoint | None) -> MergeReport | None:
        """Change the weights, or raise with the old ones in place. `merge` is what calls it.

        Args:
            spec: what they are to be merged by; None for the checkpoint's own.
            base: the checkpoint of the spec's base LLM.
        """
        raise NotImplementedError

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
        """As in lmms-eval, except that one setting given in both places is an error only if the two differ.

        Args:
            arg_string: --model_args, `key=value,...`.
            additional_config: what lmms-eval's other flags say, such as batch_size and device.

        Raises:
            InputError: a setting has two values.
        """
        given = parse_model_args(arg_string)
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
        """Brings the resident model to another plateau spec, without reloading it.

        Args:
            plateau: a spec, its name, file or content; None or "none" for the plain model.
            overrides: single fields of the spec, by their names in model_args.

        Returns:
            The merge's report; None for the plain model.

        Raises:
            SpecError, CheckpointError, MergeError: with the weights as they were.
        """
        spec = load_spec(plateau, overrides)
        base = Checkpoint.open(spec.base_model, role="base") if spec is not None else None
        report = self.bring_weights_to(spec, base)
        self._merged(spec, base, report)
        return self.merge_report

    def _merged(self, spec: PlateauSpec | None, base: Checkpoint | None, report: MergeReport | None) -> None:
        self.spec, self.base = spec, base
        self._base_identity = base.identity() if base is not None else None
        self._ancestor = open_ancestor(spec) if spec is not None else None
        self._ancestor_identity = self._ancestor.identity() if self._ancestor is not None else None
        self.merge_report = report if spec is not None else None
        if self.rank != 0:
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
            "device": torch.device(self.device).type,
            "checkpoint": self._identity,
            "spec": self.spec.digest() if self.spec is not None else None,
            "base": self._base_identity,
        }
        if self._ancestor_identity is not None:
            content["ancestor"] = self._ancestor_identity
        return f"plam-eval:{hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()}"

    def clean(self) -> None:
        """Keeps the model: lmms-eval deletes it after every evaluation, and this one may be evaluated again."""

    # --- generation ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def answering(self, strategy: AnsweringStrategy, *, max_error_share: float | None = None) -> Iterator[None]:
        """While it lasts, `strategy` answers in this wrapper's place, and is told of the end of each run.

        Args:
            strategy: what answers.
            max_error_share: in place of the wrapper's own, if it is given.
        """
        before, self._strategy = (self._strategy, self.max_error_share), strategy
        if max_error_share is not None:
            self.max_error_share = max_error_share
        try:
            yield
        finally:
            self._strategy, self.max_error_share = before

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """The answers of the strategy in place, or else the stock class's in a form every task can write down.

        Args:
            requests: lmms-eval's, of one evaluation.
        """
        answer = self.own_answers if self._strategy is None else self._strategy.answer
        if self._times is None:
            return answer(requests)
        answers: list[Any] = []
        for part in parts_of(requests, self._part):
            started = time.perf_counter()
            answers += answer(part)
            self._times.append(Timed(part[0].task_name, len(part), time.perf_counter() - started))
        return answers

    @contextlib.contextmanager
    def timed(self, documents: int) -> Iterator[list[Timed]]:
        """While it lasts, requests are answered in parts of up to so many `documents` of a task, each of them timed."""
        before, self._part = (self._times, self._part), documents
        self._times = []
        try:
            yield self._times
        finally:
            self._times, self._part = before

    def own_answers(self, requests: list[Any]) -> list[Any]:
        """The stock class's answers, in a form every task can write down.

        Args:
            requests: lmms-eval's, of one evaluation.

        Raises:
            GenerationError: more than `max_error_share` of the generations raised.
        """
        self._note_prompts(requests)
        return self._watched(super().generate_until, requests)  # type: ignore[misc]

    def prompt_of(self, request: Any) -> Prompt:
        """What the model would be asked for a request, by the stock loop's own template and processor.

        Args:
            request: lmms-eval's.
        """
        raise NotImplementedError

    def _note_prompts(self, requests: list[Any]) -> None:
        if not self.notes_prompts:
            return
        noted = set()
        for request in requests:
            if is_padding(request) or key_of(request) in noted:
                continue
            noted.add(key_of(request))
            with self.quiet(), self._uncounted():
                self.generation.note(request.task_name, request.doc_id, self.prompt_of(request))

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        """The stock class's answers to tasks of several rounds, counted and cleaned as those of one round are.

        Args:
            requests: lmms-eval's, of one evaluation.
        """
        return self._watched(super().generate_until_multi_round, requests)  # type: ignore[misc]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Of each request's text behind its prompt, minus its log-likelihood, and whether it is what is said greedily.

        Prompts are those of answers: the stock loop's own, chat template and images included. Log-likelihoods are
        summed over the tokens of the whole text, in nats, of float32 log-probabilities. Where a prompt ends in a space
        or a new line, the text is scored without the space that tasks put in front of it.

        Args:
            requests: lmms-eval's, of one evaluation.

        Raises:
            GenerationError: more of them raised than `max_error_share` allows.
        """
        self._note_prompts(requests)
        self._planned = len(requests)
        try:
            return self._likelihoods(requests)
        except _TooManyFailures:
            check_failures([self.generation.to_dict()], self.max_error_share)
            raise
        finally:
            self._planned = None

    def _likelihoods(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """`loglikelihood`, document by document: what stands next to each other in `requests` and has one prompt."""
        likelihoods: list[tuple[float, bool]] = []
        for _, alike in itertools.groupby(requests, lambda request: (*key_of(request), request.args[0])):
            of_document, started = list(alike), time.perf_counter()
            self.generation.calls += len(of_document)
            self.generation.settings[json.dumps({"scored": "log-likelihood"})] += len(of_document)
            try:
                with self.quiet():
                    likelihoods += self.score_texts(of_document)
                self.generation.answered(of_document[0], self.spec)
            except Exception as error:
                self._generation_raised(error, len(of_document))
                likelihoods += [(_UNLIKELY, False)] * len(of_document)
            if self._times is not None:
                self._times.append(Timed(of_document[0].task_name, 1, time.perf_counter() - started))
        return likelihoods

    def score_texts(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """What `loglikelihood` gives, for requests of one prompt.

        Args:
            requests: lmms-eval's.
        """
        raise NotImplementedError

    def stock_answers(self, requests: list[Any], *, counted: bool = True) -> list[Any]:
        """The stock class's answers, as they are.

        Args:
            requests: lmms-eval's.
            counted: whether they are generations of the present run, of which only so many may fail.
        """
        stock = super().generate_until  # type: ignore[misc]
        return self._counted(stock, requests) if counted else list(stock(with_own_settings(requests)))

    def _watched(self, generate: Any, requests: list[Any]) -> list[Any]:
        answers = self._counted(generate, requests)
        for request in requests:
            self.generation.answered(request, self.spec)
        return [self._recorded(answer, request) for answer, request in zip(answers, requests, strict=True)]

    def _counted(self, generate: Any, requests: list[Any]) -> list[Any]:
        """What `generate` answers, as it is, with the calls of the model and those that failed counted.

        Raises GenerationError where too many generations raised.
        """
        self._planned = len(requests)
        calls = self.generation.calls
        try:
            answers: list[Any] = generate(with_own_settings(requests))
            if (never := len(requests) - (self.generation.calls - calls)) > 0:
                # A stock loop that catches whatever happens before the model is asked gives empty answers.
                self.generation.calls += never
                raised = EvaluationError("the model was not asked: see what the stock loop logged above")
                self._generation_raised(raised, never)
        except _TooManyFailures:
            check_failures([self.generation.to_dict()], self.max_error_share)
            raise
        finally:
            self._planned = None
        return answers

    @contextlib.contextmanager
    def _uncounted(self) -> Iterator[None]:
        """While it lasts, what the model generates is no generation of the run."""
        planned, self._planned = self._planned, None
        try:
            yield
        finally:
            self._planned = planned

    def _generation_raised(self, error: Exception, documents: int) -> None:
        """Count a failure; raises when one process alone already knows that there are too many."""
        self.generation.failed += documents
        logger.error(shown(f"{self.model_id}: generation raised {type(error).__name__}: {error}"))
        if len(self.generation.errors) < _KEPT_ERRORS:
            self.generation.errors.append(f"{type(error).__name__}: {error}")
        # With several processes the verdict falls at the end, on all of them: one that stopped here would leave
        # the others waiting.
        if self.world_size == 1 and self.generation.failed > self.max_error_share * (self._planned or 0):
            raise _TooManyFailures from error

    def replayed(self, answer: Any, request: Any, settings: str) -> Any:
        """A known answer, counted as if it had been generated now, in a form every task can write down.

        Args:
            answer: as `stock_answers` gave it.
            request: which it answers.
            settings: of its generation, as a key of `GenerationRecord.settings`.
        """
        self.generation.calls += 1
        self.generation.settings[settings] += 1
        self.generation.answered(request, self.spec)
        return self._recorded(answer, request)

    def _recorded(self, answer: Any, request: Any) -> Any:
        """The answer without unwritable characters; what it was before goes to the record of the run."""
        if isinstance(answer, str):
            text, clean = answer, writable(answer)
        elif isinstance(answer, (list, tuple)):
            return type(answer)(self._recorded(each, request) for each in answer)
        elif isinstance(getattr(answer, "text", None), str):
            text = answer.text
            clean = replace(answer, text=writable(text))
        else:
            return answer
        if text != (clean if isinstance(clean, str) else clean.text) and not is_padding(request):
            self.generation.altered.append({"task": request.task_name, "doc_id": request.doc_id, "raw": text})
        return clean

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """While it lasts, no progress bar and no log line of the stock loop, which would come once per document."""
        rank, self._rank = self._rank, -1
        logger.disable("lmms_eval")
        try:
            yield
        finally:
            logger.enable("lmms_eval")
            self._rank = rank

    @contextlib.contextmanager
    def in_batches_of(self, documents: int) -> Iterator[None]:
        """While it lasts, so many `documents` are answered at once, where the stock loop takes batches."""
        before, self.batch_size_per_gpu = self.batch_size_per_gpu, documents
        try:
            yield
        finally:
            self.batch_size_per_gpu = before

    # --- record -------------------------------------------------------------------------------------------------------

    def begin_run(self) -> None:
        """Starts a fresh record; called at the start of every evaluation."""
        self.generation = GenerationRecord()

    def end_run(self, tasks: dict[str, Any]) -> None:
        """Called once everything is answered and scored.

        Args:
            tasks: lmms-eval's task dictionary of the evaluation.
        """
        if self._strategy is not None:
            self._strategy.end_run(tasks)

    @contextlib.contextmanager
    def recorded_apart(self) -> Iterator[GenerationRecord]:
        """While it lasts, generations go to a record of their own, which it gives, and not to that of the run."""
        before, self.generation = self.generation, GenerationRecord()
        try:
            yield self.generation
        finally:
            self.generation = before

    def run_record(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Our block of a results JSON.

        Args:
            records: of the generations, from all processes.
        """
        settings: Counter[str] = Counter()
        for record in records:
            settings.update(record["settings"])
        return {
            "folder": f"plam-{self.spec.digest()[:12]}" if self.spec is not None else "plam-plain",
            "wrapper": self.model_id,
            "wraps": self.wrapped_id,
            "mode": "simple" if self.is_simple else "chat",
            "plain": self.spec is None,
            "dtype": self.running_dtype,
            "attention": self.running_attention,
            "device": str(self.device),
            "processes": len(records),
            "arguments": self._arguments,
            "provenance": provenance(
                self.spec,
                checkpoint=self.checkpoint,
                base=self.base,
                report=self.merge_report,
                loaded=(self._identity, self._base_identity),
                ancestor=(self._ancestor, self._ancestor_identity),
            ),
            "generation": {
                "calls": sum(record["calls"] for record in records),
                "failed": sum(record["failed"] for record in records),
                "errors": [error for record in records for error in record["errors"]][:_KEPT_ERRORS],
                "settings": [{**json.loads(text), "calls": count} for text, count in sorted(settings.items())],
            },
            "altered_answers": [row for record in records for row in record["altered"]],
            **noted_prompts(records),
        }


def stock_class(cls: type) -> type:
    """The harness's own wrapper: the first class behind ours.

    Args:
        cls: one of our wrappers.
    """
    return next(parent for parent in cls.__mro__ if not issubclass(parent, PlateauMixin))


install_patches()
