"""Sets of documents of a task, by their numbers in its dataset: how they are written and read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from plam_eval.errors import quoted
from plam_eval.layer_sets import runs_of

MOST_DOCUMENTS = 10_000_000
"""No run has as many: what a file gives, of all tasks together, is held against it before anything counts them."""
_Read = TypeVar("_Read")
_RUN = re.compile(r"(\d{1,9})(?::(\d{1,9}))?", re.ASCII)


def write_documents(doc_ids: Iterable[int]) -> str:
    """Documents as records have them: "0:500", "3+9+20:24", with exclusive ends; of none the empty text.

    Args:
        doc_ids: from 0, in any order.
    """
    ordered = sorted(set(doc_ids))
    runs = runs_of(ordered)
    return "+".join(str(start) if end == start + 1 else f"{start}:{end}" for start, end in runs)


def read_documents(text: Any) -> tuple[int, ...]:
    """The documents that were written, in order.

    Args:
        text: as `write_documents` gives it.

    Raises:
        ValueError: it is no such text, or names a document twice.
    """
    return _documents(text, MOST_DOCUMENTS)


def _documents(text: Any, most: int) -> tuple[int, ...]:
    """As `read_documents`, at most so many: a few letters stand for any number of them."""
    if not isinstance(text, str):
        raise ValueError(f"found {quoted(text)}, expected numbers of documents, as 0:500 or 3+9+20:24")
    doc_ids: list[int] = []
    for word in text.split("+") if text else ():
        run = _RUN.fullmatch(word)
        start, end = (int(run[1]), int(run[2] or int(run[1]) + 1)) if run else (0, 0)
        if end <= start or end > MOST_DOCUMENTS or (doc_ids and start <= doc_ids[-1]):
            raise ValueError(f"found {quoted(word)}, expected numbers of documents in order, as 0:500 or 3+9+20:24")
        if len(doc_ids) + end - start > most:
            raise ValueError(f"found {quoted(word)}, with which there are more than {MOST_DOCUMENTS} documents in all")
        doc_ids += range(start, end)
    return tuple(doc_ids)


def write_by_task(documents: Mapping[str, Iterable[int]]) -> dict[str, str]:
    """Task -> its documents, as `write_documents` has them.

    Args:
        documents: task -> doc_ids.
    """
    return {task: write_documents(doc_ids) for task, doc_ids in documents.items()}


def read_by_task(stored: Any) -> dict[str, tuple[int, ...]]:
    """Task -> its documents.

    Args:
        stored: as `write_by_task` gives it.

    Raises:
        ValueError: it is none, and which task it is of.
    """
    return _by_task(stored, _documents, len)


def _by_task(stored: Any, read: Callable[[Any, int], _Read], count: Callable[[_Read], int]) -> dict[str, _Read]:
    """What `read` makes of each task's text, given how many documents are left of `MOST_DOCUMENTS`."""
    if not isinstance(stored, Mapping) or not all(isinstance(task, str) for task in stored):
        raise ValueError(f"found {quoted(stored)}, expected documents by task")
    documents, left = dict[str, _Read](), MOST_DOCUMENTS
    for task, text in stored.items():
        try:
            documents[task] = read(text, left)
        except ValueError as error:
            raise ValueError(f"{task}: {error}") from None
        left -= count(documents[task])
    return documents


def write_clusters(clusters: Iterable[Iterable[int]]) -> str:
    """Clusters of documents in a given order, as "17+18 5 0:2".

    Args:
        clusters: doc_ids of each.
    """
    return " ".join(write_documents(doc_ids) for doc_ids in clusters)


def read_clusters(text: Any) -> tuple[tuple[int, ...], ...]:
    """The clusters that were written, in their order.

    Args:
        text: as `write_clusters` gives it.

    Raises:
        ValueError: it is no such text, or names a document twice.
    """
    return _clusters(text, MOST_DOCUMENTS)


def read_clusters_by_task(stored: Any) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Task -> its clusters.

    Args:
        stored: task -> text as `write_clusters` gives it.

    Raises:
        ValueError: it is none, and which task it is of.
    """
    return _by_task(stored, _clusters, lambda clusters: sum(map(len, clusters)))


def _clusters(text: Any, most: int) -> tuple[tuple[int, ...], ...]:
    """As `read_clusters`, of at most so many documents."""
    if not isinstance(text, str):
        raise ValueError(f"found {quoted(text)}, expected clusters of documents, as 17+18 5 0:2")
    clusters, seen = list[tuple[int, ...]](), set[int]()
    for word in text.split():
        cluster = _documents(word, most - len(seen))
        if not seen.isdisjoint(cluster):
            raise ValueError(f"found {quoted(text)}, expected each document once")
        seen.update(cluster)
        clusters.append(cluster)
    return tuple(clusters)
