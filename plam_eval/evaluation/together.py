"""`plam sweep --together`: several cells' answers to a document in one generation.

Each cell is still evaluated by itself, on the model merged in place for it. But the first of a group that is asked
for a document has it answered under the merges of all of them (`probing/merges.py`), and the others look their answers
up. Some documents of each task are asked of every merged model again, the ordinary way: how many, and how many answers
differed, is recorded with the cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from loguru import logger
from tqdm import tqdm

from plam_eval.evaluation import variants
from plam_eval.evaluation.harness import EvaluationError
from plam_eval.spec import PlateauSpec

if TYPE_CHECKING:
    from plam_eval.model_wrappers.hf import HFPlateauMixin

RECHECKED = 2
"""Documents of each task and process that every merged model answers again by itself."""


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
        for line in self._file.read():
            self._learn(line)
        self._apart: dict[str, str] = {}  # task -> why its documents are answered one cell at a time

    def record(self) -> dict[str, Any]:
        """Of the present cell, on this process.

        How many documents were answered together with other cells and how many by this one alone, and of how many that
        were answered again by this one alone the answer differed.
        """
        return {**self._counts, "reasons": sorted(set(self._apart.values()))}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """For the evaluation of one cell."""
        self._counts = dict.fromkeys(("documents", "apart", "rechecked", "differ"), 0)
        model: Any = self.model
        model.generate_until = self.generate_until
        try:
            yield
        finally:
            del model.generate_until

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """The present merge's answers."""
        self._answer([request for request in requests if self._find(request) is None])
        known = [request for request in requests if self._find(request) is not None]
        alone = [request for request in requests if self._find(request) is None]
        model: Any = self.model
        answers = {id(request): self._replayed(request) for request in known}
        if alone:
            answers |= dict(zip(map(id, alone), type(model).generate_until(model, alone), strict=True))
        self._recheck(known, answers)
        self._counts["documents"] += sum(not _is_padding(request) for request in known)
        self._counts["apart"] += sum(not _is_padding(request) for request in alone)
        return [answers[id(request)] for request in requests]

    def _find(self, request: Any) -> dict[str, Any] | None:
        """The line that has the present merge's answer to a document."""
        digest, lines = _digest(self.model.spec), self._known.get((request.task_name, request.doc_id), ())
        return next((line for line in lines if digest in line["of"]), None)

    def _learn(self, line: dict[str, Any]) -> None:
        of = {digest: line["of"][digest] for digest in self._digests if digest in line["of"]}
        if of:  # not another group's
            self._known.setdefault((line["task"], line["doc_id"]), []).append({**line, "of": of})

    def _answer(self, requests: list[Any]) -> None:
        """Have documents answered under all merges; those that cannot be are left unknown."""
        import torch

        from plam_eval.merging.checkpoint import MergeError
        from plam_eval.probing.decoder import ProbeError
        from plam_eval.probing.merges import Merges, generate_all_merges

        requests = [request for request in requests if request.task_name not in self._apart]
        if not requests:
            return
        model, spec, journal = self.model, self.model.spec, self.model.journal

        def all_merges(**inputs: Any) -> list[Any]:
            answers = generate_all_merges(model.model, merges, **inputs)
            pairs = zip(answers.tokens[:, 0], answers.lengths[:, 0].tolist(), strict=True)
            return [tokens[:length] for tokens, length in pairs]

        model.merge(None)
        try:
            merges = Merges.of(model.model, self.specs, checkpoint=model.checkpoint)
            progress = tqdm(
                requests,
                f"answering for {len(self.specs)} cells",
                unit="document",
                file=self._terminal,
                leave=False,
                disable=model.rank != 0,
            )
            for request in progress:
                if request.task_name in self._apart:
                    continue
                model.begin_run()  # a journal of this document alone
                try:
                    found = variants.answer_all(model, request, all_merges)
                    why = "; ".join(model.journal.errors)
                except EvaluationError as error:
                    found, why = [], str(error)
                if why or not found:
                    self._set_apart([request.task_name], why)
                    continue
                given = [_stored(answer) for answer in found]
                different = [answer for index, answer in enumerate(given) if answer not in given[:index]]
                line = {
                    "task": request.task_name,
                    "doc_id": request.doc_id,
                    "prompt": variants.prompt_of(request),
                    "settings": next(iter(model.journal.settings)),
                    "answers": different,
                    "of": {d: different.index(answer) for d, answer in zip(self._digests, given, strict=True)},
                }
                self._file.add(line)
                self._learn(line)
        except (MergeError, ProbeError, torch.OutOfMemoryError) as error:  # of the merged tensors of all
            self._set_apart({request.task_name for request in requests}, f"{type(error).__name__}: {error}")
        finally:
            model.journal = journal
            model.merge(spec)

    def _set_apart(self, tasks: Iterable[str], why: str) -> None:
        self._apart |= dict.fromkeys(tasks, why)
        logger.warning(f"{', '.join(sorted(tasks))}: answered for one merge at a time: {why}")

    def _replayed(self, request: Any) -> Any:
        """A known answer, noted in the wrapper's journal as if it had been generated now."""
        line = self._find(request)
        assert line is not None
        if line["prompt"] != variants.prompt_of(request):
            raise EvaluationError(
                f"document {request.doc_id} of {request.task_name} is another than the one that was answered (its "
                "prompt changed); name another --output"
            )
        self.model.journal.calls += 1
        self.model.journal.settings[line["settings"]] += 1
        answer = line["answers"][line["of"][_digest(self.model.spec)]]
        return self.model.recorded(_restored(answer), request)

    def _recheck(self, requests: list[Any], answers: dict[int, Any]) -> None:
        by_task: dict[str, list[Any]] = {}
        for request in requests:
            of_task = by_task.setdefault(request.task_name, [])
            if len(of_task) < RECHECKED and not _is_padding(request):
                of_task.append(request)
        chosen = [request for of_task in by_task.values() for request in of_task]
        if not chosen:
            return
        model, journal = self.model, self.model.journal
        model.begin_run()
        try:
            again = type(model).generate_until(model, chosen)
        finally:
            model.journal = journal
        self._counts["rechecked"] += len(chosen)
        self._counts["differ"] += sum(
            variants.text_of(answer) != variants.text_of(answers[id(request)])
            for request, answer in zip(chosen, again, strict=True)
        )


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
