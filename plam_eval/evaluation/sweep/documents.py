"""Which documents of a sweep a merge is chosen on, and which it is reported on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plam_eval.errors import InputError
from plam_eval.evaluation.records import Run, clusters_by_content
from plam_eval.evaluation.sweep.grid import PLAIN


def split_documents(samples: pd.DataFrame, select: int | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(task, doc_id) of the documents to choose on, and of those to report on; None gives all of them twice.

    Documents to choose on are the first `select` of each task and those that share an image or a question with one.
    Sharing a subject (MMMU) is no reason: what is asked is another question.

    Args:
        samples: as `records.Run.samples`.
        select: so many of each task; None for all.

    Raises:
        InputError: that leaves nothing of a task to report on.
    """
    keys = samples[["task", "doc_id"]]
    if select is None:
        return keys, keys
    chosen = _is_to_choose_on(samples, select)
    counts = samples[~chosen].groupby("task").size()
    if short := [str(task) for task in samples["task"].unique() if counts.get(task, 0) == 0]:
        raise InputError(
            f"choosing on {select} documents leaves none of {', '.join(short)} to report on; choose on fewer, or "
            "evaluate more"
        )
    return keys[chosen], keys[~chosen]


def _is_to_choose_on(samples: pd.DataFrame, select: int) -> NDArray[np.bool_]:
    """Which rows are of documents to choose on."""
    bound = samples.assign(cluster=clusters_by_content(samples))
    ordered = bound.assign(order=pd.to_numeric(samples["doc_id"], errors="coerce")).sort_values(["task", "order"])
    first = ordered.groupby("task").head(select)
    clusters = pd.MultiIndex.from_frame(first[["task", "cluster"]])
    return np.asarray(pd.MultiIndex.from_frame(bound[["task", "cluster"]]).isin(clusters))


def to_choose_without_labels(samples: pd.DataFrame, select: int | None, reported_on: pd.DataFrame) -> pd.DataFrame:
    """(task, doc_id) of the documents to choose on where only answers are read: also those that have no score.

    Args:
        samples: as `records.Run.samples`, whole.
        select: so many of each task; None for all.
        reported_on: (task, doc_id) of what is reported; with `select`, none of these is chosen on.
    """
    keys = samples[["task", "doc_id"]]
    if select is None:
        return keys
    reported = pd.MultiIndex.from_frame(keys).isin(pd.MultiIndex.from_frame(reported_on))
    return keys[_is_to_choose_on(samples, select) & ~reported]


def with_documents_to_report(
    runs: dict[str, Run], whole: pd.DataFrame, select: int | None
) -> tuple[dict[str, Run], list[str]]:
    """Runs without the tasks of which a judge left so few documents that none is there to report on, and their names.

    Args:
        runs: with the documents that have a score, by name.
        whole: the documents before those without a verdict were left out.
        select: so many of each task to choose on; None for all.
    """

    def enough(samples: pd.DataFrame, task: str) -> bool:
        try:
            split_documents(samples[samples["task"] == task], select)
        except InputError:
            return False
        return True

    kept = runs[PLAIN].samples
    if len(kept) == len(whole):  # a judge left none out
        return runs, []
    short = [task for task in runs[PLAIN].tasks if not enough(kept, task) and enough(whole, task)]
    if not short or len(short) == len(runs[PLAIN].tasks):
        return runs, []
    left = [task for task in runs[PLAIN].tasks if task not in short]
    notes = [
        f"{task}: left out, its documents that a judge came to a verdict on are all among the {select} to choose on"
        for task in short
    ]
    return {name: run.only(left) for name, run in runs.items()}, notes


def rows_of(run: Run, keys: pd.DataFrame) -> pd.DataFrame:
    """The samples of a run that `keys` (task, doc_id) name.

    Args:
        run: which one.
        keys: columns task and doc_id.
    """
    wanted, own = set(names_of(keys)), names_of(run.samples)
    return run.samples[[document in wanted for document in own]].reset_index(drop=True)


def names_of(samples: pd.DataFrame) -> list[tuple[Any, Any]]:
    """(task, doc_id) of each row.

    Args:
        samples: with these columns.
    """
    return list(zip(samples["task"].tolist(), samples["doc_id"].tolist(), strict=True))
