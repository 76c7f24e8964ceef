"""How much of what was lost a merge gives back: a ratio of two paired differences, with an interval.

lost = first - second (base LLM and MLLM), back = third - second (merged and MLLM), share = back / lost. All three are
scored on the same documents, so that the bootstrap draws one set of weights for all: of whole clusters, by task, as
everywhere here (`bootstrap`). A ratio means nothing where its denominator may be 0, so none is given unless a loss is
shown; where resamples lose their loss all the same, an end of the interval is open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from plam_eval.bootstrap import Floats, reweighted
from plam_eval.evaluation.stats import OVERALL, SIGNIFICANT, Paired, effect

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
    draws: dict[str, Floats] = {}
    means: dict[str, Floats] = {}
    for task, rows in first.groupby("task", sort=False):
        name, documents = str(task), rows["doc_id"]
        columns = [
            samples[samples["task"] == task].set_index("doc_id")["score"].reindex(documents).to_numpy(dtype=float)
            for samples in (first, second, third)
        ]
        scores = np.column_stack(columns) * directions.get(name, 1)
        cluster = pd.factorize(rows["group"])[0]
        generator = np.random.default_rng([2, *name.encode()])
        draws[name] = reweighted(scores, cluster, resamples, generator, unseen_documents=0).means
        means[name] = scores.mean(axis=0)
    draws[OVERALL] = np.mean([draws[name] for name in means], axis=0)
    means[OVERALL] = np.mean([*means.values()], axis=0)
    return [_share(row, means[row.task], draws[row.task], directions, confidence) for row in lost]


def _share(row: Paired, mean: Floats, draws: Floats, directions: Mapping[str, int], confidence: float) -> Restored:
    sign = directions.get(row.task, 1) if row.task != OVERALL else next(iter(directions.values()), 1)
    if len(set(directions.values())) > 1 and row.task == OVERALL:
        return Restored(row.task, math.nan, math.nan, math.nan, "lower is better in some tasks, higher in others")
    if effect(row.difference, row.p, sign) != "worse":
        return Restored(row.task, math.nan, math.nan, math.nan, f"no loss is shown (p {_at_least(row.p)})")
    lost, back = draws[:, 0] - draws[:, 1], draws[:, 2] - draws[:, 1]
    share = float((mean[2] - mean[1]) / (mean[0] - mean[1]))
    ratios = np.where(lost > 0, back / np.where(lost > 0, lost, 1), np.where(back < 0, -math.inf, math.inf))
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, tail, method="lower"), np.quantile(ratios, 1 - tail, method="higher")
    return Restored(row.task, share, float(low), float(high))


def _at_least(p: float) -> str:
    return f">= {SIGNIFICANT}" if p >= SIGNIFICANT else f"{p:.2g}, and the score is not lower"
