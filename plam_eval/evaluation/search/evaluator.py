"""A search's evaluator: the resident model, inside of one evaluation of lmms-eval's that asks for every setting.

lmms-eval lays out the requests of all documents once. While that evaluation lasts, the model is brought from setting to
setting and asked some of them; answers are scored by the tasks' own code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import pandas as pd

from plam_eval.evaluation import records
from plam_eval.evaluation.search.config import SearchError
from plam_eval.evaluation.sweep.config import SweepConfig
from plam_eval.evaluation.sweep.runner import check_tasks
from plam_eval.harness import evaluate
from plam_eval.harness.answers import score_answers, task_configs, tasks_of
from plam_eval.harness.errors import EvaluationError, NoScoreError
from plam_eval.harness.requests import Key, key_of, prompt_of
from plam_eval.harness.tasks import falls, score_of_task
from plam_eval.harness.wrapper import HFWrapper, PlateauWrapper, text_of
from plam_eval.spec import PlateauSpec


class Evaluator(Protocol):
    """What a search asks of a model."""

    def documents(self) -> pd.DataFrame:
        """Every document of the tasks: task, doc_id, group (as `records.Run.samples` has it), prompt (a digest)."""

    def directions(self) -> dict[str, int]:
        """By task, 1 where a higher score is better and -1 where a lower one is."""

    def answers(self, spec: PlateauSpec | None, keys: Sequence[Key]) -> pd.DataFrame:
        """A setting's answers: task, doc_id, answer, score (NaN where a judge gave none).

        Args:
            spec: of the merge; None for the plain model.
            keys: (task, doc_id) of the documents.

        Raises:
            EvaluationError: documents that could not be answered. MergeError: the merge.
        """


def evaluate_inside(model: PlateauWrapper, config: SweepConfig, work: Callable[[Evaluator], None]) -> None:
    """Run a search's work inside of an evaluation of its tasks; tasks without a score per document are left out.

    Args:
        model: the wrapper.
        config: the tasks, and how they are asked.
        work: what is done with the model.

    Raises:
        What `work` raises. SearchError: several processes share the model's documents, or a task is answered otherwise
            than by generated text. EvaluationError: as `evaluate.evaluate`.
    """
    if model.world_size > 1:
        raise SearchError(
            f"{model.world_size} processes split the documents of each task, and a search asks for some of them at a "
            "time; start the same command once on each GPU instead (CUDA_VISIBLE_DEVICES): they share one study"
        )
    inside = _Inside(model, work)
    checked = check_tasks(config, by_document=True)
    with model.answering(inside):
        evaluate.evaluate(
            model,
            list(checked.scored),
            **checked.asking,
            gen_kwargs=config.gen_kwargs,
            batch_size=config.batch_size,
            include_path=config.include_path,
            force_simple=config.force_simple,
        )


class _Inside:
    """Answers nothing itself; when lmms-eval has asked for everything, the work begins."""

    def __init__(self, model: PlateauWrapper, work: Callable[[Evaluator], None]) -> None:
        self._model, self._work = model, work
        self._requests: dict[Key, Any] = {}

    def answer(self, requests: list[Any]) -> list[Any]:
        """No answers: what this evaluation finds is looked at by nobody.

        Args:
            requests: lmms-eval's.
        """
        self._requests |= {key_of(request): request for request in requests}
        return [""] * len(requests)

    def end_run(self, tasks: dict[str, Any]) -> None:
        """Everything has been asked for: the work begins.

        Args:
            tasks: lmms-eval's.
        """
        if missing := sorted(tasks_of(tasks) - {task for task, _ in self._requests}):
            raise SearchError(f"{', '.join(missing)}: not answered by generate_until, so it cannot be searched on")
        self._work(_Resident(self._model, tasks, self._requests))


class _Resident:
    """The evaluator on the resident model."""

    def __init__(self, model: PlateauWrapper, tasks: dict[str, Any], requests: dict[Key, Any]) -> None:
        self._model, self._tasks, self._requests = model, tasks, requests
        configs = task_configs(tasks)
        try:
            self._scores = {task: score_of_task(task, config) for task, config in configs.items()}
        except NoScoreError as error:
            raise SearchError(f"a task has no score per document: {error}") from error
        self._directions = {task: -1 if falls(s.metric, configs[task]) else 1 for task, s in self._scores.items()}

    def documents(self) -> pd.DataFrame:
        """As `Evaluator.documents`."""
        rows = self._scored(dict.fromkeys(self._requests, ""))
        prompts = {key: prompt_of(request) for key, request in self._requests.items()}
        return pd.DataFrame(
            [
                {k: row[k] for k in ("task", "doc_id", "group")} | {"prompt": prompts[row["task"], row["doc_id"]]}
                for row in rows
            ]
        )

    def directions(self) -> dict[str, int]:
        """As `Evaluator.directions`."""
        return self._directions

    def answers(self, spec: PlateauSpec | None, keys: Sequence[Key]) -> pd.DataFrame:
        """As `Evaluator.answers`.

        Args:
            spec: of the merge; None for the plain model.
            keys: (task, doc_id) of the documents.
        """
        model = self._model
        if model.spec != spec:
            model.merge(spec)
        local = model if isinstance(model, HFWrapper) else None
        apart = local.recorded_apart() if local else nullcontext(model.generation)
        with apart as generation, local.quiet() if local else nullcontext():
            failed = generation.failed
            texts = [text_of(answer) for answer in model.own_answers([self._requests[key] for key in keys])]
            if generation.failed > failed:
                raise EvaluationError(
                    f"{generation.failed - failed} of {len(keys)} documents could not be answered: "
                    f"{next(iter(generation.errors), 'no error was kept')}"
                )
        rows = self._scored(dict(zip(keys, texts, strict=True)))
        return pd.DataFrame([{k: row[k] for k in ("task", "doc_id", "answer", "score")} for row in rows])

    def _scored(self, texts: dict[Key, str]) -> list[dict[str, Any]]:
        logs = score_answers(self._tasks, {key: [text] for key, text in texts.items()})
        return [records.sample_row(log["task"], log, self._scores[log["task"]]) for log in logs]
