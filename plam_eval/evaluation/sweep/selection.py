"""Which merge of a sweep is chosen, by scores or without labels, and on which documents."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from plam_eval.evaluation.label_free import Neighbours, compare_neighbours, least_differing
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.stats import Paired, format_p
from plam_eval.evaluation.sweep.documents import names_of, rows_of
from plam_eval.evaluation.sweep.grid import PLAIN, Grid, describe_cell
from plam_eval.evaluation.sweep.lines import coordinates_of


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
        gains: that of every merged cell, by name, lower-is-better tasks negated.
    """

    cell: str
    tried: int
    held_out: bool
    chosen_on: dict[str, int]
    reported_on: dict[str, int]
    difference_chosen: float
    gains: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelFreeChoice:
    """The merge that differs least from its neighbours, for which no label is read, and what it scores elsewhere.

    Attributes:
        cell: its name; of several that differ as little, the one with the smallest share of the base on the first line.
        description: it in words, "layers 6:8, qkvo, 0.9 + 0.3".
        along: what the settings of its line differ in, "weights" or "layers".
        before, after: its neighbours: cells, plain maybe.
        differ: documents that it answers otherwise than at least one neighbour; documents: of so many.
        tied: settings that differ in as few, itself among them.
        candidates: settings that have two neighbours.
        by_line: the choice on each line, in the order of the grid.
        held_out: whether the documents below are others.
        difference, low, high, p: against plain on the reported documents, as in `Findings.cells`.
    """

    cell: str
    description: str
    along: str
    before: str
    after: str
    differ: int
    documents: int
    tied: int
    candidates: int
    by_line: tuple[str, ...]
    held_out: bool
    difference: float
    low: float
    high: float
    p: float

    def text(self) -> str:
        """The same in a sentence or two."""
        tied = f", the first of {self.tied} that differ as little" if self.tied > 1 else ""
        where = "other" if self.held_out else "the same"
        return (
            f"Chosen without labels, as the one of {self.candidates} that differs least from its neighbours: "
            f"{self.description} ({self.differ} of {self.documents} answers{tied}). On {where} documents it scores "
            f"{self.difference:+.3f} against plain (p = {format_p(self.p)})."
        )


def neighbours_of(grid: Grid, runs: Mapping[str, Run], documents: pd.DataFrame) -> dict[str, Neighbours]:
    """Each finished merge beside its neighbours, by `lines.coordinates_of` and from answers alone.

    Args:
        grid: of the sweep.
        runs: finished ones, plain among them.
        documents: (task, doc_id) to compare answers on.
    """
    places = coordinates_of(cell for cell in grid.cells if cell.name in runs)
    answers = {name: _answers(runs[name], documents) for name in (PLAIN, *places)}
    return compare_neighbours({name: (place, answers[name]) for name, place in places.items()}, answers[PLAIN])


def _answers(run: Run, documents: pd.DataFrame) -> dict[tuple[Any, Any], str]:
    rows = rows_of(run, documents)
    return dict(zip(names_of(rows), rows["answer"], strict=True))


def choose_without_labels(
    compared: Mapping[str, Neighbours],
    table: pd.DataFrame,
    with_plain: Mapping[str, Sequence[Paired]],
    *,
    held_out: bool,
) -> LabelFreeChoice | None:
    """The merge that differs least from its neighbours; None where none has two.

    Args:
        compared: as `neighbours_of` gives it.
        table: as `Findings.cells`.
        with_plain: comparisons with plain by cell, the mean over tasks last.
        held_out: whether they are of other documents than `compared`.
    """
    cell = least_differing(compared)
    if cell is None:
        return None
    own, against = compared[cell], with_plain[cell][-1]
    lines: dict[Hashable, dict[str, Neighbours]] = {}
    for name, neighbours in compared.items():
        lines.setdefault(neighbours.line, {})[name] = neighbours
    return LabelFreeChoice(
        cell=cell,
        description=describe_cell(table.set_index("cell").loc[cell]),
        along=str(own.line[0]) if isinstance(own.line, tuple) else str(own.line),
        before=own.before or PLAIN,
        after=own.after or PLAIN,
        differ=own.differ,
        documents=own.documents,
        tied=sum(neighbours.differ == own.differ for neighbours in compared.values()),
        candidates=len(compared),
        by_line=tuple(str(least_differing(line)) for line in lines.values()),
        held_out=held_out,
        difference=against.difference,
        low=against.low,
        high=against.high,
        p=against.p,
    )


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
    plain = signed_mean(rows_of(runs[PLAIN], chosen_on), runs[PLAIN].directions)
    gains = {name: signed_mean(rows_of(runs[name], chosen_on), runs[PLAIN].directions) - plain for name in candidates}
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
        gains=gains,
    )


def signed_mean(samples: pd.DataFrame, directions: Mapping[str, int]) -> float:
    """Mean over tasks, lower-is-better ones negated: more is better, whatever the tasks.

    Args:
        samples: with task and score.
        directions: as `Run.directions`.
    """
    by_task = samples.groupby("task")["score"].mean()
    return float(np.mean([directions.get(str(task), 1) * value for task, value in by_task.items()]))
