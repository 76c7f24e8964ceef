"""A scan's answers: every document under every cut layer, in one generation each.

`CutRecorder` answers in the wrapper's place while it is evaluated: the wrapper's generation loop runs as in any
evaluation; only its `model.generate` is exchanged for `generate_all_cuts`, and the loop runs once more for each other
answer that some cut gave, to decode it, with images and inputs kept from the first time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tqdm import tqdm

from plam_eval.evaluation import records, variants
from plam_eval.evaluation.answer_store import AnswerStore, Record, document_of, prompt_problem
from plam_eval.evaluation.scan_folder import ScanError
from plam_eval.harness.answers import score_answers, task_configs, tasks_of
from plam_eval.harness.errors import NoScoreError
from plam_eval.harness.requests import Key, generated_alike, key_of
from plam_eval.harness.tasks import score_of_task
from plam_eval.harness.wrapper import HFWrapper, text_of, writable
from plam_eval.probing.closed import ClosedTo

_COLUMNS = ("task", "doc_id", "group", "target", "answer", "score", "parsable")


class CutRecorder:
    """Answers each document under every cut, gives the unmasked answer, and scores all of them at the end of the run.

    Args:
        model: the wrapper that is evaluated.
        cuts: the last one is the number of layers: the unmasked model.
        store: has the answers that are known, and gets those that come.
        batch_size: documents in one generation, at most.
        closed_to: whom the image is closed to.

    Attributes:
        rows: once the run has ended, one for each document and cut, of this process's share.
        unscored: task -> why its documents have no score.
    """

    def __init__(
        self, model: HFWrapper, cuts: tuple[int, ...], store: AnswerStore, batch_size: int, closed_to: ClosedTo = "text"
    ) -> None:
        self.model, self.cuts, self.store, self.batch_size, self.closed_to = model, cuts, store, batch_size, closed_to
        self.rows: list[dict[str, Any]] = []
        self.unscored: dict[str, str] = {}
        self._asked: set[Key] = set()
        store.load(self._is_whole)

    def _is_whole(self, record: Record) -> bool:
        """Whether a record of a store is one that this writes for these cuts."""
        texts = [record["task"], record["prompt"], *record["answers"]]
        numbers = [record["doc_id"], *record["by_cut"]]
        whole = all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)
        return (
            whole
            and len(record["by_cut"]) == len(record["kl"]) == len(self.cuts)
            and all(0 <= index < len(record["answers"]) for index in record["by_cut"])
            and all(isinstance(value, (int, float)) for value in record["kl"])
        )

    def installed(self) -> AbstractContextManager[None]:
        """For the evaluation that is the scan: a curve needs every document at every cut, so none may fail."""
        return self.model.answering(self, max_error_share=0.0)

    def answer(self, requests: list[Any]) -> list[str]:
        """The unmasked answers; those of every cut are stored.

        Args:
            requests: lmms-eval's.

        Raises:
            ScanError: a document is another than the one that was answered, or could not be answered.
        """
        asked = {key_of(request): request for request in requests}
        for key, request in asked.items():
            for record in self.store.of(key)[-1:]:
                if problem := prompt_problem(request, record, "this scan has answered"):
                    raise ScanError(problem)
        left = [key for key in asked if not self.store.of(key)]
        bar = tqdm(total=len(asked), desc="answering under every cut", unit="document", disable=self.model.rank != 0)
        with bar:
            bar.update(len(asked) - len(left))
            for keys in self._batches(left, asked):
                batch = [asked[key] for key in keys]
                for request, answers in zip(batch, self._answer_batch(batch), strict=True):
                    self.store.add({**document_of(request), **answers})
                bar.update(len(keys))
        self._asked |= asked.keys()
        answered = [self._answered(key_of(request)) for request in requests]
        return [record["answers"][record["by_cut"][-1]] for record in answered]

    def _answered(self, key: Key) -> Record:
        """What is known of an answered document; where several processes answered it, what was read last."""
        return self.store.of(key)[-1]

    def _batches(self, keys: list[Key], asked: Mapping[Key, Any]) -> Iterator[list[Key]]:
        """Documents to be answered together: neighbours that are to be generated for alike."""
        batch: list[Key] = []
        for key in keys:
            if batch and (len(batch) == self.batch_size or not generated_alike(asked[batch[0]], asked[key])):
                yield batch
                batch = []
            batch.append(key)
        if batch:
            yield batch

    def _answer_batch(self, requests: list[Any]) -> list[dict[str, Any]]:
        """By document: distinct answers in the order of their first cut, which of them each cut gave, each cut's KL."""
        from plam_eval.decoding.all_cuts import CutAnswers, generate_all_cuts

        model = self.model
        generated: list[CutAnswers] = []
        single = len(requests) == 1

        def all_cuts(**inputs: Any) -> Sequence[Any]:
            generated.append(generate_all_cuts(model.model, self.cuts, closed_to=self.closed_to, **inputs))
            return list(generated[-1].tokens[:, 0] if single else generated[-1].tokens)

        if single:
            by_document, rows = [variants.answer_all(model, requests[0], all_cuts)], [0]
        else:
            by_document, rows = variants.answer_batch(model, requests, all_cuts)
        if model.generation.errors:  # with several processes the wrapper only counts a failure
            which = ", ".join(f"{request.doc_id} of {request.task_name}" for request in requests)
            document = "document" if single else "documents"
            raise ScanError(f"{document} {which} could not be answered: {model.generation.errors[0]}")
        return [_compact(answers, generated[0].kl[:, row]) for answers, row in zip(by_document, rows, strict=True)]

    def end_run(self, tasks: dict[str, Any]) -> None:
        """Score every distinct answer, as the tasks do, and give each cut the row of its answer.

        Args:
            tasks: lmms-eval's task dictionary.

        Raises:
            ScanError: a task was answered otherwise than by `generate_until`.
        """
        answered = {key: self._answered(key) for key in self._asked}
        missing = sorted(tasks_of(tasks) - {task for task, _ in answered})
        if missing and self.model.world_size == 1:
            raise ScanError(f"{', '.join(missing)}: not answered by generate_until, so it cannot be scanned")
        scored = self._scored(tasks, {key: record["answers"] for key, record in answered.items()})
        layers = self.cuts[-1]
        for (task, doc_id), record in sorted(answered.items(), key=lambda item: item[0]):
            if task in self.unscored:
                continue
            for cut, index, kl in zip(self.cuts, record["by_cut"], record["kl"], strict=True):
                row = scored[task, doc_id, index]
                self.rows.append({**{c: row[c] for c in _COLUMNS}, "cut": cut, "kl": kl, "num_layers": layers})

    def _scored(self, tasks: dict[str, Any], answers: dict[Key, list[str]]) -> dict[tuple[str, int, int], Any]:
        """The row of each answer, by task, doc_id and the answer's number; tasks without a score are noted."""
        configs = task_configs(tasks)
        scored: dict[tuple[str, int, int], Any] = {}
        for log in score_answers(tasks, answers):
            task = log["task"]
            try:
                row = records.sample_row(task, log, score_of_task(task, configs[task]))
            except NoScoreError as error:
                self.unscored[task] = str(error)
                continue
            scored[task, log["doc_id"], log["turn"]] = row
        return scored


def _compact(answers: list[Any], kl: Any) -> dict[str, Any]:
    """What is stored of the answers of each cut, and of each cut's divergence in nats."""
    texts = [writable(text_of(answer)) for answer in answers]
    distinct = list(dict.fromkeys(texts))
    rounded = [round(float(value), 7) for value in kl]
    return {"answers": distinct, "by_cut": [distinct.index(text) for text in texts], "kl": rounded}
