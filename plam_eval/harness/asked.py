"""Which documents of its tasks an evaluation asks about, where that is not lmms-eval's first ones.

lmms-eval 0.7 knows `limit` and `offset`, which take neighbours of every task. Both places where it goes through the
documents of a task, to lay out requests and to score answers, call `create_iterator`; while `only` lasts, that gives
the documents that are asked for, shared out to processes one by one. Their doc_ids are those of the whole dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from plam_eval.document_sets import write_by_task
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.tasks import TASKS, cluster_of_document
from plam_eval.patching import wrap_once


@dataclass
class _Asked:
    """What the evaluation that is running asks about."""

    documents: Mapping[str, tuple[int, ...]]
    rows: dict[str, Any] = field(default_factory=dict)  # of a task, without media
    task: str | None = None  # whose documents lmms-eval goes through


_running: list[_Asked] = []  # at most one; lmms-eval evaluates in one thread


@contextmanager
def only(documents: Mapping[str, Sequence[int]] | None) -> Iterator[None]:
    """Evaluations ask about these documents alone while it lasts.

    Args:
        documents: task -> doc_ids; None asks as lmms-eval does.
    """
    if documents is None:
        yield
        return
    _install()
    _running.append(_Asked({task: tuple(sorted(set(doc_ids))) for task, doc_ids in documents.items()}))
    try:
        yield
    finally:
        _running.pop()


def note(results: dict[str, Any], documents: Mapping[str, Sequence[int]], sample: Mapping[str, Any] | None) -> None:
    """Write into results which documents they are of.

    Args:
        results: lmms-eval's results, which are changed.
        documents: task -> doc_ids, of all of its tasks.
        sample: how they were drawn, if they were.
    """
    own = {task: documents[task] for task in results["configs"]}
    for task, doc_ids in own.items():
        results["n-samples"][task]["effective"] = len(set(doc_ids))
    results["config"]["documents"] = write_by_task(own)
    if sample is not None:
        results["config"]["sample"] = dict(sample)


def check_documents(documents: Mapping[str, Sequence[int]], leaves: set[str]) -> None:
    """Whether every task has documents that can be asked for.

    Args:
        documents: task -> doc_ids.
        leaves: names of the tasks.

    Raises:
        EvaluationError: one has none, or something else than numbers.
    """
    problems = []
    for task in sorted(leaves):
        doc_ids = documents.get(task, ())
        if not len(doc_ids):
            problems.append(f"{task}: found no document of it; expected some of every task that is evaluated")
        elif strange := [doc_id for doc_id in doc_ids if type(doc_id) is not int or doc_id < 0]:
            problems.append(f"{task}: found the document {strange[0]!r}; expected whole numbers from 0")
    if problems:
        raise EvaluationError("documents: " + "\n".join(problems))


def _install() -> None:
    from lmms_eval import evaluator, utils
    from lmms_eval.api.task import Task

    wrap_once(Task, "build_all_requests", _build_all_requests)
    wrap_once(evaluator, "set_task_context", _set_task_context)
    wrap_once(utils, "create_iterator", _create_iterator)
    wrap_once(evaluator, "create_iterator", _create_iterator)


def _build_all_requests(stock: Any, self: Any, **kwargs: Any) -> None:
    if not _running:
        stock(self, **kwargs)
        return
    asked, name, rows = _running[-1], self.config.task, self.eval_docs_no_media
    _check_rows(name, rows, asked.documents.get(name, ()))
    asked.task, asked.rows[name] = name, rows
    try:
        stock(self, **{**kwargs, "limit": None, "offset": 0})
    finally:
        asked.task = None


def _set_task_context(stock: Any, task_name: str | None) -> None:
    if _running:
        _running[-1].task = task_name
    stock(task_name)


def _create_iterator(stock: Any, raw_iterator: Any, *args: Any, **kwargs: Any) -> Any:
    """The documents of this process's share: numbers where the documents are counted, (number, row) elsewhere."""
    if not _running or (asked := _running[-1]).task is None:
        return stock(raw_iterator, *args, **kwargs)
    mine = asked.documents[asked.task][int(kwargs["rank"]) :: int(kwargs["world_size"])]
    if isinstance(raw_iterator, range):
        return iter(mine)
    rows = asked.rows[asked.task]
    return ((doc_id, rows[doc_id]) for doc_id in mine)


def _check_rows(task: str, rows: Any, doc_ids: tuple[int, ...]) -> None:
    """Raises EvaluationError where a dataset has not these documents, or they part some that are scored together."""
    if not doc_ids or doc_ids[-1] >= len(rows):
        wanted = f"document {doc_ids[-1]}" if doc_ids else "none"
        raise EvaluationError(f"documents of {task}: found {wanted}, expected some of its {len(rows)}")
    known = TASKS.get(task)
    if known is None or not known.in_pairs:
        return
    halves = set[str]()
    for doc_id in doc_ids:
        halves ^= {cluster_of_document(task, rows[doc_id]) or f"document {doc_id}"}
    if halves:
        raise EvaluationError(
            f"documents of {task}: found one of the two of {sorted(halves)[0]}; {known.in_pairs} scores documents in "
            "pairs: give both, or none"
        )
