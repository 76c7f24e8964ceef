"""How much of what was lost a merge gives back: a ratio of two paired differences, with an interval.

lost = first - second (base LLM and MLLM), back = third - second (merged and MLLM), share = back / lost. All three are
scored on the same documents, so that the bootstrap draws one set of weights for all: of whole clusters, by task, as
everywhere here (`bootstrap`), and of one document more that nobody has seen, which each of the three may have right or
wrong. Without it a merge that changes no answer would have a share of 0, from 0 to 0. A ratio means nothing where its
denominator may be 0, so none is given unless a loss is shown; where resamples lose their loss all the same, an end of
the interval is open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from plam_eval.bootstrap import Floats, Reweighted, mean_over_tasks, reweighted
from plam_eval.evaluation.stats import OVERALL, SIGNIFICANT, Paired, count_for_one, effect

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Restored:
    """The share of a loss that comes back.

    Attributes:
        task: its name, or OVERALL.
        share: 1 where all of it comes back, 0 where nothing does; negative where more is lost. NaN where no loss is
            shown.
        low, high: interval, an infinite end being open; NaN where there is no share.
        why: there is none; "" where there is one.
    """

    task: str
    share: float
    low: float
    high: float
    why: str = ""


def restored(
    first: pd.DataFrame,
    second: pd.DataFrame,
    third: pd.DataFrame,
    lost: Sequence[Paired],
    directions: Mapping[str, int],
    *,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
) -> list[Restored]:
    """The share of each task's loss, and of the loss of the mean over tasks, that the third run gives back.

    Args:
        first: samples of the run that lost nothing, as `records.Run.samples`.
        second: of the one that may have.
        third: of the one that may have got it back; all three are of the same documents.
        lost: `stats.compare` of first and second, the mean over tasks last.
        directions: as `Run.directions`.
        confidence: of the intervals, two-sided.
        resamples: draws of the bootstrap.
    """
    draws: dict[str, Reweighted] = {}
    means: dict[str, Floats] = {}
    independent: dict[str, float] = {}
    scales: dict[str, float] = {}
    for task, rows in first.groupby("task", sort=False):
        name, documents = str(task), rows["doc_id"]
        columns = [
            samples[samples["task"] == task].set_index("doc_id")["score"].reindex(documents).to_numpy(dtype=float)
            for samples in (first, second, third)
        ]
        scores = np.column_stack(columns) * directions.get(name, 1)
        cluster = pd.factorize(rows["group"])[0]
        generator = np.random.default_rng([2, *name.encode()])
        columns = [*scores.T, scores[:, 0] - scores[:, 1], scores[:, 2] - scores[:, 1]]
        alike = count_for_one(columns, cluster)
        drawn = reweighted(scores, cluster, resamples, generator, unseen_documents=1)
        draws[name] = drawn.enlarged(alike)
        means[name], scales[name] = scores.mean(axis=0), float(np.ptp(scores))
        independent[name] = len(scores) / alike
    overall = mean_over_tasks(draws, independent)
    draws = {**{name: drawn.with_unseen() for name, drawn in draws.items()}, OVERALL: overall}
    scales[OVERALL] = scales[min(independent, key=independent.__getitem__)]
    means[OVERALL] = np.mean([*means.values()], axis=0)
    return [_share(row, means[row.task], draws[row.task], scales[row.task], directions, confidence) for row in lost]


_UNSEEN = np.array([pattern for pattern in np.ndindex(2, 2, 2) if len({*pattern}) > 1], dtype=float)
"""What the unseen document may score in each of the three, of the range of scores; the same in all changes little."""


def _share(
    row: Paired, mean: Floats, draws: Reweighted, scale: float, directions: Mapping[str, int], confidence: float
) -> Restored:
    sign = directions.get(row.task, 1) if row.task != OVERALL else next(iter(directions.values()), 1)
    if len(set(directions.values())) > 1 and row.task == OVERALL:
        return Restored(row.task, math.nan, math.nan, math.nan, "lower is better in some tasks, higher in others")
    if effect(row.difference, row.p, sign) != "worse":
        return Restored(row.task, math.nan, math.nan, math.nan, f"no loss is shown (p {_at_least(row.p)})")
    share = float((mean[2] - mean[1]) / (mean[0] - mean[1]))
    ratios = [_ratios(draws.means + scale * draws.unseen[:, None] * pattern) for pattern in _UNSEEN]
    tail = (1 - confidence) / 2
    low = np.quantile(np.min(ratios, axis=0), tail, method="lower")
    high = np.quantile(np.max(ratios, axis=0), 1 - tail, method="higher")
    return Restored(row.task, share, float(low), float(high))


def _ratios(means: Floats) -> Floats:
    """What comes back of what was lost, by resample of the three means; without a loss it is beyond any bound."""
    lost, back = means[:, 0] - means[:, 1], means[:, 2] - means[:, 1]
    return np.where(lost > 0, back / np.where(lost > 0, lost, 1), np.where(back < 0, -math.inf, math.inf))


def _at_least(p: float) -> str:
    return f">= {SIGNIFICANT}" if p >= SIGNIFICANT else f"{p:.2g}, and the score is not lower"
