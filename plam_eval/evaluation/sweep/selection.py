"""Which merge of a sweep is chosen, and on which documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from plam_eval.evaluation.records import Run
from plam_eval.evaluation.sweep.documents import rows_of
from plam_eval.evaluation.sweep.grid import PLAIN


@dataclass(frozen=True)
class Selection:
    """The merge that scored best, and on what.

    Attributes:
        cell: its name.
        tried: merged cells it was chosen from.
        held_out: whether it was chosen on other documents than those it is reported on. If not, its figures look better
            than they are.
        chosen_on, reported_on: documents by task.
        difference_chosen: its gain over plain on the documents it was chosen on, mean over tasks.
    """

    cell: str
    tried: int
    held_out: bool
    chosen_on: dict[str, int]
    reported_on: dict[str, int]
    difference_chosen: float


def best_merge(
    table: pd.DataFrame,
    runs: Mapping[str, Run],
    chosen_on: pd.DataFrame,
    reported_on: pd.DataFrame,
    *,
    held_out: bool,
    by_search: Mapping[str, Any] | None = None,
) -> Selection | None:
    """The merge that scored best on the documents to choose on; None where none is finished.

    Args:
        table: as `Findings.cells`.
        runs: by cell, with the documents of both parts.
        chosen_on: (task, doc_id) of the documents to choose on.
        reported_on: of those to report on.
        held_out: whether these are others.
        by_search: `digest` of the merge that a search has chosen, and how many settings it has `tried`: that merge is
            the choice wherever it is finished.
    """
    candidates = [str(name) for name in table.loc[table["kind"] == "merged", "cell"] if name in runs]
    if not candidates:
        return None
    plain = _mean(rows_of(runs[PLAIN], chosen_on), runs[PLAIN].directions)
    gains = {name: _mean(rows_of(runs[name], chosen_on), runs[PLAIN].directions) - plain for name in candidates}
    digests, given = table.set_index("cell")["digest"], by_search or {"digest": "", "tried": 0}
    searched = [name for name in candidates if digests[name] == given["digest"]]
    best = searched[0] if searched else max(gains, key=lambda name: gains[name])  # the first of equals
    return Selection(
        cell=best,
        tried=max(len(candidates), given["tried"]) if searched else len(candidates),
        held_out=held_out,
        chosen_on={str(task): int(n) for task, n in chosen_on.groupby("task", sort=False).size().items()},
        reported_on={str(task): int(n) for task, n in reported_on.groupby("task", sort=False).size().items()},
        difference_chosen=gains[best],
    )


def _mean(samples: pd.DataFrame, directions: Mapping[str, int]) -> float:
    """Mean over tasks, lower-is-better ones negated."""
    by_task = samples.groupby("task")["score"].mean()
    return float(np.mean([directions.get(str(task), 1) * value for task, value in by_task.items()]))
