"""`plam sweep --together`: several cells' answers to a document in one generation.

Each cell is still evaluated by itself, on the model merged in place for it. But the first of a chunk that is asked
for a document has it answered under the merges of all of them (`plam_eval.decoding.all_merges`), and the others look
their answers up. Some documents of each task are asked of every merged model again, the ordinary way: how many, and how
many answers differed, is recorded with the cell.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from loguru import logger
from tqdm import tqdm

from plam_eval.evaluation import answer_store, variants
from plam_eval.evaluation.answer_store import AnswerStore, Record
from plam_eval.harness.errors import EvaluationError, GenerationError
from plam_eval.harness.requests import Key, is_padding, key_of
from plam_eval.harness.wrapper import HFWrapper, answer_from_dict, answer_to_dict, text_of
from plam_eval.spec import PlateauSpec

if TYPE_CHECKING:
    from plam_eval.decoding.all_merges import Merges

RECHECKED = 2
"""Documents of each task and process that every merged model answers again by itself."""

PATIENCE = 3
"""Documents of a task that may fail (for want of memory, say) before no others of it are answered together."""


class Together:
    """Answers in a wrapper's place while the cells of a chunk are evaluated one after the other.

    Answers are kept in `folder`, a line per document, so that a sweep that was killed goes on where it was. Documents
    that cannot be answered together (a task that samples, say) are answered by each merged model as without this.

    Args:
        model: the wrapper that the cells are evaluated on.
        specs: of the chunk; None is the plain model.
        folder: of the answers.
        terminal: where progress is shown, since what lmms-eval prints of a cell goes into its log.
    """

    def __init__(
        self,
        model: HFWrapper,
        specs: Sequence[PlateauSpec | None],
        folder: Path,
        terminal: TextIO | None = None,
    ) -> None:
        self.model, self.specs = model, list(specs)
        self._digests = [_digest(spec) for spec in specs]
        self._terminal = terminal
        self._store = AnswerStore(folder, model.rank)
        self._store.load(_is_whole, lambda record: any(digest in record["of"] for digest in self._digests))
        self._tasks_apart: dict[str, str] = {}  # task -> why its documents are answered one cell at a time
        self._documents_apart: dict[Key, str] = {}  # the same of single documents

    def record(self) -> dict[str, Any]:
        """Of the present cell, on this process.

        `documents` were answered together with other cells, `apart` by this one alone, for `reasons`. Of those
        `rechecked`, which this one answered alone as well, the answers of so many `differ`. `seconds` went into
        answering for `cells` cells, if it was the first of its chunk to be asked.
        """
        reasons = sorted({*self._tasks_apart.values(), *self._documents_apart.values()})
        return {**self._counts, "reasons": reasons}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """For the evaluation of one cell."""
        self._counts: dict[str, Any] = dict.fromkeys(("documents", "apart", "rechecked", "differ", "cells"), 0)
        self._counts["seconds"] = 0.0
        with self.model.answering(self):
            yield

    def answer(self, requests: list[Any]) -> list[Any]:
        """The present merge's answers.

        Args:
            requests: lmms-eval's.
        """
        self._answer_together(requests)
        digest = _digest(self.model.spec)
        records = [self._find(request, digest) for request in requests]
        alone = [request for request, record in zip(requests, records, strict=True) if record is None]
        own_answers = iter(self.model.own_answers(alone) if alone else [])
        answers = [
            next(own_answers) if record is None else self._replayed(request, record, digest)
            for request, record in zip(requests, records, strict=True)
        ]
        for request, record in zip(requests, records, strict=True):
            if not is_padding(request):
                self._counts["apart" if record is None else "documents"] += 1
        self._recheck(requests, records, answers)
        return answers

    def end_run(self, tasks: dict[str, Any]) -> None:
        """What was answered is scored as ever; nothing is to be done.

        Args:
            tasks: lmms-eval's.
        """

    def _find(self, request: Any, digest: str) -> Record | None:
        """The record that has a merge's answer to a document."""
        return next((record for record in self._store.of(key_of(request)) if digest in record["of"]), None)

    def _answer_together(self, requests: list[Any]) -> None:
        """Have documents answered under all merges that lack an answer; those that cannot be are left unanswered."""
        from plam_eval.decoding.all_merges import Merges

        present = _digest(self.model.spec)
        asked = {
            key: request
            for key, request in {key_of(request): request for request in requests}.items()
            if key[0] not in self._tasks_apart
            and key not in self._documents_apart
            and self._find(request, present) is None
        }
        if not asked:
            return
        lacking = [
            (digest, spec)
            for digest, spec in zip(self._digests, self.specs, strict=True)
            if any(self._find(request, digest) is None for request in asked.values())
        ]
        model, spec, started = self.model, self.model.spec, time.perf_counter()
        model.merge(None)
        try:
            try:
                merges = Merges.of(model.model, [spec for _, spec in lacking], checkpoint=model.checkpoint)
            except Exception as error:  # whatever it is: cells that have it too will fail with it, one by one
                for task in {task for task, _ in asked}:
                    self._set_task_apart(task, f"{type(error).__name__}: {error}")
                return
            progress = tqdm(
                asked.values(),
                f"answering for {len(lacking)} cells",
                unit="document",
                file=self._terminal,
                leave=False,
                disable=model.rank != 0,
            )
            for request in progress:
                if request.task_name not in self._tasks_apart:
                    self._answer_document(request, merges, [digest for digest, _ in lacking])
        finally:
            model.merge(spec)
            self._counts["seconds"] += time.perf_counter() - started
            self._counts["cells"] = len(lacking)

    def _answer_document(self, request: Any, merges: Merges, digests: list[str]) -> None:
        """Have one document answered under all of these merges and stored, or set it or its task apart."""
        from plam_eval.decoding.all_merges import generate_all_merges
        from plam_eval.probing.decoder import ProbeError

        model, unsupported = self.model, []

        def all_merges(**inputs: Any) -> list[Any]:
            try:
                generated = generate_all_merges(model.model, merges, **inputs)
            except ProbeError as error:
                unsupported.append(str(error))
                raise
            pairs = zip(generated.tokens[:, 0], generated.lengths[:, 0].tolist(), strict=True)
            return [tokens[:length] for tokens, length in pairs]

        answers, why = list[Any](), ""
        with model.recorded_apart() as generation:
            try:
                answers = variants.answer_all(model, request, all_merges)
                why = "; ".join(generation.errors)
            except GenerationError as error:
                why = str(error)
            except EvaluationError as error:
                why = str(error)
                unsupported.append(why)
        if unsupported:
            self._set_task_apart(request.task_name, unsupported[0])
            return
        if why or not answers:
            self._documents_apart[key_of(request)] = why
            if sum(task == request.task_name for task, _ in self._documents_apart) >= PATIENCE:
                self._set_task_apart(request.task_name, why)
            return
        stored = [answer_to_dict(answer) for answer in answers]
        distinct = [answer for index, answer in enumerate(stored) if answer not in stored[:index]]
        self._store.add(
            {
                **answer_store.document_of(request),
                "settings": next(iter(generation.settings)),
                "answers": distinct,
                "of": {digest: distinct.index(answer) for digest, answer in zip(digests, stored, strict=True)},
            }
        )

    def _set_task_apart(self, task: str, why: str) -> None:
        self._tasks_apart[task] = why
        logger.warning(f"{task}: answered for one cell at a time from here on: {why}")

    def _replayed(self, request: Any, record: Record, digest: str) -> Any:
        """A known answer, counted by the wrapper as if it had been generated now."""
        if problem := answer_store.prompt_problem(request, record, "that was answered"):
            raise EvaluationError(problem)
        answer = answer_from_dict(record["answers"][record["of"][digest]])
        return self.model.replayed(answer, request, record["settings"])

    def _recheck(self, requests: list[Any], records: list[Record | None], answers: list[Any]) -> None:
        """Ask the merged model itself for some documents; one that it fails on says nothing."""
        rechecked: Counter[str] = Counter()
        for request, record, answer in zip(requests, records, answers, strict=True):
            if record is None or is_padding(request) or rechecked[request.task_name] == RECHECKED:
                continue
            rechecked[request.task_name] += 1
            with self.model.recorded_apart() as generation, self.model.quiet():
                try:
                    (own_answer,) = self.model.own_answers([request])
                except GenerationError:
                    continue
            if not generation.failed:
                self._counts["rechecked"] += 1
                self._counts["differ"] += int(text_of(own_answer) != text_of(answer))


def _is_whole(record: Record) -> bool:
    """Whether a record of a store is one that `Together` writes."""
    texts = [
        record["task"],
        record["prompt"],
        record["settings"],
        *(answer["text"] for answer in record["answers"]),
        *record["of"],
    ]
    indices = [record["doc_id"], *record["of"].values(), *(answer.get("tokens") or 0 for answer in record["answers"])]
    whole = all(isinstance(text, str) for text in texts) and all(type(index) is int for index in indices)
    return whole and all(0 <= index < len(record["answers"]) for index in record["of"].values())


def _digest(spec: PlateauSpec | None) -> str:
    return spec.digest()[:16] if spec is not None else "plain"
