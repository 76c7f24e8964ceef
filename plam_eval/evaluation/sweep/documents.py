"""Which documents of a sweep a merge is chosen on, and which it is reported on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plam_eval.document_sets import read_clusters_by_task, write_clusters
from plam_eval.errors import DamagedFileError, InputError
from plam_eval.evaluation.records import Run, clusters_by_content
from plam_eval.evaluation.sweep.grid import PLAIN
from plam_eval.harness.sampling import beginning

Drawn = Mapping[str, Sequence[Sequence[int]]]
"""By task, its documents cluster by cluster, in the order in which some to choose on are drawn."""


def write_drawn(drawn: Drawn, seed: int) -> dict[str, Any]:
    """The order of documents as a plan holds it.

    Args:
        drawn: by task.
        seed: that it comes of.
    """
    return {"seed": seed, "order": {task: write_clusters(clusters) for task, clusters in drawn.items()}}


def read_drawn(plan: Mapping[str, Any], origin: str, samples: pd.DataFrame | None = None) -> Drawn | None:
    """The order of documents that a plan holds; None in a plan of before there was one: the first ones are chosen on.

    Args:
        plan: of a sweep, or whatever holds `write_drawn` under "drawn".
        origin: where it was read, for messages.
        samples: columns task and doc_id, of the documents that were asked, which are all among those of the order.

    Raises:
        DamagedFileError: it is none that we write, or none of these documents.
    """
    stored = plan.get("drawn")
    if not stored:
        return None
    try:
        drawn = read_clusters_by_task(stored["order"])
        for task, own in () if samples is None or not drawn else samples.groupby("task"):
            ordered = {doc_id for cluster in drawn.get(str(task), ()) for doc_id in cluster}
            if others := sorted(set(pd.to_numeric(own["doc_id"], errors="coerce")) - ordered):
                raise ValueError(f"{task}: found no document {others[0]:g} in it, which was asked")
        return drawn
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{origin}: drawn: {error}; restore it from a copy, or name another --output") from error


def documents_of(drawn: Drawn) -> dict[str, list[int]]:
    """Task -> its documents, in order.

    Args:
        drawn: by task.
    """
    return {task: sorted(doc_id for cluster in clusters for doc_id in cluster) for task, clusters in drawn.items()}


def split_documents(
    samples: pd.DataFrame, select: int | None, drawn: Drawn | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(task, doc_id) of the documents to choose on, and of those to report on; None gives all of them twice.

    Documents to choose on are the first `select` of those that are drawn, as near to it as whole clusters allow. Where
    nothing was drawn they are the first of each task, with those that share an image or a question with one.
    Sharing a subject (MMMU) is no reason: what is asked is another question.

    Args:
        samples: as `records.Run.samples`.
        select: so many of each task; None for all.
        drawn: the order in which documents are drawn.

    Raises:
        InputError: that leaves nothing of a task to report on.
    """
    keys = samples[["task", "doc_id"]]
    if select is None:
        return keys, keys
    chosen = _is_to_choose_on(samples, select, drawn)
    counts = samples[~chosen].groupby("task").size()
    if short := [str(task) for task in samples["task"].unique() if counts.get(task, 0) == 0]:
        raise InputError(
            f"choosing on {select} documents leaves none of {', '.join(short)} to report on; choose on fewer, or "
            "evaluate more"
        )
    return keys[chosen], keys[~chosen]


def _is_to_choose_on(samples: pd.DataFrame, select: int, drawn: Drawn | None) -> NDArray[np.bool_]:
    """Which rows are of documents to choose on."""
    numbers = pd.to_numeric(samples["doc_id"], errors="coerce")
    bound = samples.assign(cluster=clusters_by_content(samples))
    ordered = bound.assign(order=numbers).sort_values(["task", "order"])
    first = ordered.groupby("task").head(select)
    clusters = pd.MultiIndex.from_frame(first[["task", "cluster"]])
    chosen = np.asarray(pd.MultiIndex.from_frame(bound[["task", "cluster"]]).isin(clusters))
    for task, order in (drawn or {}).items():
        own = (samples["task"] == task).to_numpy()
        picked = {doc_id for cluster in beginning(order, select) for doc_id in cluster} if select else set()
        chosen[own] = numbers[own].isin(picked)
    return chosen


def to_choose_without_labels(
    samples: pd.DataFrame, select: int | None, reported_on: pd.DataFrame, drawn: Drawn | None = None
) -> pd.DataFrame:
    """(task, doc_id) of the documents to choose on where only answers are read: also those that have no score.

    Args:
        samples: as `records.Run.samples`, whole.
        select: so many of each task; None for all.
        reported_on: (task, doc_id) of what is reported; with `select`, none of these is chosen on.
        drawn: the order in which documents are drawn.
    """
    keys = samples[["task", "doc_id"]]
    if select is None:
        return keys
    reported = pd.MultiIndex.from_frame(keys).isin(pd.MultiIndex.from_frame(reported_on))
    return keys[_is_to_choose_on(samples, select, drawn) & ~reported]


def with_documents_to_report(
    runs: dict[str, Run], whole: pd.DataFrame, select: int | None, drawn: Drawn | None = None
) -> tuple[dict[str, Run], list[str]]:
    """Runs without the tasks of which a judge left so few documents that none is there to report on, and their names.

    Args:
        runs: with the documents that have a score, by name.
        whole: the documents before those without a verdict were left out.
        select: so many of each task to choose on; None for all.
        drawn: the order in which documents are drawn.
    """

    def enough(samples: pd.DataFrame, task: str) -> bool:
        try:
            split_documents(samples[samples["task"] == task], select, drawn)
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
