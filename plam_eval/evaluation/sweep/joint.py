"""`plam sweep --together`: several cells' answers to a document in one generation.

Each cell is still evaluated by itself, on the model merged in place for it. But the first of a group that is asked
for a document has it answered under the merges of all of them (`probing/merges.py`), and the others look their answers
up. Some documents of each task are asked of every merged model again, the ordinary way: how many, and how many answers
differed, is recorded with the cell.
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

from plam_eval.evaluation import variants
from plam_eval.evaluation.harness import EvaluationError, GenerationError
from plam_eval.spec import PlateauSpec

if TYPE_CHECKING:
    from plam_eval.decoding.all_merges import Merges
    from plam_eval.model_wrappers.hf import HFPlateauMixin

RECHECKED = 2
"""Documents of each task and process that every merged model answers again by itself."""

PATIENCE = 3
"""Documents of a task that may fail (for want of memory, say) before no others of it are answered together."""


class Together:
    """Stands in for a wrapper's `generate_until` while the cells of a group are evaluated one after the other.

    Answers are kept in `folder`, a line per document, so that a sweep that was killed goes on where it was. Documents
    that cannot be answered together (a task that samples, say) are answered by each merged model as without this.

    Args:
        specs: of the group; None is the plain model.
        terminal: where progress is shown, since what lmms-eval prints of a cell goes into its log.
    """

    def __init__(
        self,
        model: HFPlateauMixin,
        specs: Sequence[PlateauSpec | None],
        folder: Path,
        terminal: TextIO | None = None,
    ) -> None:
        self.model, self.specs = model, list(specs)
        self._digests = [_digest(spec) for spec in specs]
        self._terminal = terminal
        self._file = variants.AnswerFile(folder, model.rank)
        self._known: dict[variants.Key, list[dict[str, Any]]] = {}
        for line in self._file.read(_is_whole):
            self._learn(line)
        self._apart: dict[str, str] = {}  # task -> why its documents are answered one cell at a time
        self._alone: dict[variants.Key, str] = {}  # the same of single documents

    def record(self) -> dict[str, Any]:
        """Of the present cell, on this process.

        `documents` were answered together with other cells, `apart` by this one alone, for `reasons`. Of those
        `rechecked`, which this one answered alone as well, the answers of so many `differ`. `seconds` went into
        answering for `cells` cells, if it was the first of its group to be asked.
        """
        return {**self._counts, "reasons": sorted({*self._apart.values(), *self._alone.values()})}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """For the evaluation of one cell."""
        self._counts: dict[str, Any] = dict.fromkeys(("documents", "apart", "rechecked", "differ", "cells"), 0)
        self._counts["seconds"] = 0.0
        model: Any = self.model
        model.generate_until = self.generate_until
        try:
            yield
        finally:
            del model.generate_until

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """The present merge's answers."""
        self._answer(requests)
        digest = _digest(self.model.spec)
        lines = [self._find(request, digest) for request in requests]
        alone = [request for request, line in zip(requests, lines, strict=True) if line is None]
        rest = iter(type(self.model).generate_until(self.model, alone) if alone else [])
        answers = [
            next(rest) if line is None else self._replayed(request, line, digest)
            for request, line in zip(requests, lines, strict=True)
        ]
        for request, line in zip(requests, lines, strict=True):
            if not _is_padding(request):
                self._counts["apart" if line is None else "documents"] += 1
        self._recheck(requests, lines, answers)
        return answers

    def _find(self, request: Any, digest: str) -> dict[str, Any] | None:
        """The line that has a merge's answer to a document."""
        lines = self._known.get((request.task_name, request.doc_id), ())
        return next((line for line in lines if digest in line["of"]), None)

    def _learn(self, line: dict[str, Any]) -> None:
        of = {digest: line["of"][digest] for digest in self._digests if digest in line["of"]}
        if of:  # not another group's
            self._known.setdefault((line["task"], line["doc_id"]), []).append({**line, "of": of})

    def _answer(self, requests: list[Any]) -> None:
        """Have documents answered under all merges that lack an answer; those that cannot be are left unknown."""
        from plam_eval.decoding.all_merges import Merges

        present = _digest(self.model.spec)
        asked = {(request.task_name, request.doc_id): request for request in requests}
        asked = {
            key: request
            for key, request in asked.items()
            if key[0] not in self._apart and key not in self._alone and self._find(request, present) is None
        }
        if not asked:
            return
        lacking = [
            (digest, spec)
            for digest, spec in zip(self._digests, self.specs, strict=True)
            if any(self._find(request, digest) is None for request in asked.values())
        ]
        model, spec, journal, started = self.model, self.model.spec, self.model.journal, time.perf_counter()
        model.merge(None)
        try:
            try:
                merges = Merges.of(model.model, [spec for _, spec in lacking], checkpoint=model.checkpoint)
            except Exception as error:  # whatever it is: cells that have it too will fail with it, one by one
                for task in {task for task, _ in asked}:
                    self._set_apart(task, f"{type(error).__name__}: {error}")
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
                if request.task_name not in self._apart:
                    self._answer_one(request, merges, [digest for digest, _ in lacking])
        finally:
            model.journal = journal
            model.merge(spec)
            self._counts["seconds"] += time.perf_counter() - started
            self._counts["cells"] = len(lacking)

    def _answer_one(self, request: Any, merges: Merges, digests: list[str]) -> None:
        from plam_eval.decoding.all_merges import generate_all_merges
        from plam_eval.probing.decoder import ProbeError

        model, unsupported = self.model, []

        def all_merges(**inputs: Any) -> list[Any]:
            try:
                answers = generate_all_merges(model.model, merges, **inputs)
            except ProbeError as error:
                unsupported.append(str(error))
                raise
            pairs = zip(answers.tokens[:, 0], answers.lengths[:, 0].tolist(), strict=True)
            return [tokens[:length] for tokens, length in pairs]

        model.begin_run()  # a journal of this document alone
        try:
            found = variants.answer_all(model, request, all_merges)
            why = "; ".join(model.journal.errors)
        except GenerationError as error:
            found, why = [], str(error)
        except EvaluationError as error:
            found, why = [], str(error)
            unsupported.append(why)
        if unsupported:
            self._set_apart(request.task_name, unsupported[0])
            return
        if why or not found:
            self._alone[request.task_name, request.doc_id] = why
            if sum(task == request.task_name for task, _ in self._alone) >= PATIENCE:
                self._set_apart(request.task_name, why)
            return
        given = [_stored(answer) for answer in found]
        different = [answer for index, answer in enumerate(given) if answer not in given[:index]]
        line = {
            "task": request.task_name,
            "doc_id": request.doc_id,
            "prompt": variants.prompt_of(request),
            "settings": next(iter(model.journal.settings)),
            "answers": different,
            "of": {digest: different.index(answer) for digest, answer in zip(digests, given, strict=True)},
        }
        self._file.add(line)
        self._learn(line)

    def _set_apart(self, task: str, why: str) -> None:
        self._apart[task] = why
        logger.warning(f"{task}: answered for one cell at a time from here on: {why}")

    def _replayed(self, request: Any, line: dict[str, Any], digest: str) -> Any:
        """A known answer, noted in the wrapper's journal as if it had been generated now."""
        if line["prompt"] != variants.prompt_of(request):
            raise EvaluationError(
                f"document {request.doc_id} of {request.task_name} is another than the one that was answered (its "
                "prompt changed); name another --output"
            )
        self.model.journal.calls += 1
        self.model.journal.settings[line["settings"]] += 1
        return self.model.recorded(_restored(line["answers"][line["of"][digest]]), request)

    def _recheck(self, requests: list[Any], lines: list[Any], answers: list[Any]) -> None:
        """Ask the merged model itself for some documents; one that it fails on says nothing."""
        model, journal = self.model, self.model.journal
        done: Counter[str] = Counter()
        for request, line, answer in zip(requests, lines, answers, strict=True):
            if line is None or _is_padding(request) or done[request.task_name] == RECHECKED:
                continue
            done[request.task_name] += 1
            model.begin_run()
            try:
                with variants.quiet(model):
                    (again,) = type(model).generate_until(model, [request])
                failed = model.journal.failed > 0
            except GenerationError:
                failed = True
            finally:
                model.journal = journal
            if not failed:
                self._counts["rechecked"] += 1
                self._counts["differ"] += int(variants.text_of(again) != variants.text_of(answer))


def _is_whole(line: dict[str, Any]) -> bool:
    """Whether a line of an answer file is one that `Together` writes."""
    texts = [
        line["task"],
        line["prompt"],
        line["settings"],
        *(answer["text"] for answer in line["answers"]),
        *line["of"],
    ]
    indices = [line["doc_id"], *line["of"].values(), *(answer.get("tokens") or 0 for answer in line["answers"])]
    whole = all(isinstance(text, str) for text in texts) and all(type(index) is int for index in indices)
    return whole and all(0 <= index < len(line["answers"]) for index in line["of"].values())


def _is_padding(request: Any) -> bool:
    """Whether lmms-eval only asks so that all processes are asked equally often."""
    return bool(request.metadata.get("__padding_only__"))


def _stored(answer: Any) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"text": answer}
    counts = answer.token_counts
    return {"text": answer.text, "tokens": counts.output_tokens if counts is not None else None}


def _restored(stored: dict[str, Any]) -> Any:
    from lmms_eval.api.instance import GenerationResult, TokenCounts

    if "tokens" not in stored:
        return stored["text"]
    tokens = stored["tokens"]
    counts = TokenCounts(output_tokens=tokens) if tokens is not None else None
    return GenerationResult(text=stored["text"], token_counts=counts)


def _digest(spec: PlateauSpec | None) -> str:
    return spec.digest()[:16] if spec is not None else "plain"
