"""Paired comparisons of runs on the same documents. scipy and statsmodels do the arithmetic; docs: "Comparing"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from plam_eval.bootstrap import Floats, Reweighted, mean_over_tasks, reweighted
from plam_eval.evaluation.records import share

OVERALL = "overall"
"""The `task` of the comparison that is the unweighted mean over tasks."""

_FLIPS = 19_999  # random sign flips where there are too many to try all: p is at least 1e-4
_NOTICED = 0.01  # a difference of one point, for `Paired.needed`
_CELLS = 1 << 23  # random signs held at once


def proportion_interval(right: int, total: int) -> tuple[float, float]:
    """95 % Wilson interval of a share (Wilson 1927)."""
    interval = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def is_binary(scores: pd.Series) -> bool:
    """Whether every document is right or wrong."""
    return bool(scores.isin([0.0, 1.0]).all())


@dataclass(frozen=True)
class Paired:
    """Two runs on the same documents of one task, or on average over tasks.

    Attributes:
        task: its name, or OVERALL.
        documents, groups: how many, and how many independent groups of them.
        first, second: mean scores; difference: second minus first.
        low, high: confidence interval of the difference, from the paired bootstrap over groups, with one unseen group
            as in `bootstrap`: of as many documents as count for one here (`_Task.alike`).
        gained, lost: documents that the second run scores better or worse on.
        p: two-sided; of `test`: "mcnemar" (exact; right or wrong, independent documents) or "sign-flip" (of the
            groups' summed differences: graded scores, groups of documents, the mean over tasks).
        parsable_first, parsable_second: share of answers in the form asked for; NaN for free words.
        needed: documents (of a like mix) with which a true difference of 0.01 would be found in four of five
            comparisons at p < 0.05; None where no score differs, so that nothing is known of their variance.
    """

    task: str
    documents: int
    groups: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p: float
    test: str
    parsable_first: float
    parsable_second: float
    needed: int | None


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: a binomial test of gained among gained + lost at one half (McNemar 1947)."""
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def sign_flip(differences: Floats) -> float:
    """Two-sided p of a mean difference when each difference might as well have had the other sign (Fisher 1935).

    Exact up to 14 differences other than zero, from 19,999 random flips beyond (then p is at least 1e-4).
    """
    found = differences[~np.isclose(differences, 0, atol=1e-12)]
    if len(found) < 2:  # one difference may as well have had the other sign
        return 1.0
    result = stats.permutation_test(
        (found,),
        lambda values, axis: np.sum(values, axis=axis),
        permutation_type="samples",
        n_resamples=_FLIPS,
        batch=max(1, _CELLS // len(found)),
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return min(1.0, float(result.pvalue))


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979): the chance that any is that small if none differs."""
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(p, method="holm")[1]] if len(p) else []


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    directions: Mapping[str, int] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> list[Paired]:
    """One comparison per task, in the order of `first`, and OVERALL last; see `compare_many`."""
    return compare_many(first, {"": second}, directions=directions, confidence=confidence, resamples=resamples)[""]


def compare_many(
    first: pd.DataFrame,
    others: Mapping[str, pd.DataFrame],
    *,
    directions: Mapping[str, int] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> dict[str, list[Paired]]:
    """Compare several runs with one, on one draw of the bootstrap.

    Args:
        first, others: tables as `records.Run.samples`; whether they may be compared is `records.check_comparable`'s.
        directions: as `Run.directions`; for gained and lost.
        confidence: of the intervals, two-sided, one comparison at a time.

    Raises:
        ValueError: a document is in one table only, or has no score.
    """
    by_name: dict[str, list[Paired]] = {name: [] for name in others}
    parts: list[_Task] = []
    for task, rows in first.groupby("task", sort=False):
        part = _Task(str(task), rows, others, resamples)
        parts.append(part)
        for column, name in enumerate(others, start=1):
            by_name[name].append(part.paired(column, (directions or {}).get(part.name, 1), confidence))
    for name, frame in others.items():
        extra = set(frame["task"]) - {part.name for part in parts}
        if extra:
            raise ValueError(f"{', '.join(sorted(extra))}: in {name or 'the second run'} only")
    if not parts:
        raise ValueError("no documents to compare")
    for column, name in enumerate(others, start=1):
        by_name[name].append(_overall(parts, column, by_name[name], confidence))
    return by_name


class _Task:
    """One task's scores: (documents, 1 + others), and the groups of its documents."""

    def __init__(self, name: str, rows: pd.DataFrame, others: Mapping[str, pd.DataFrame], resamples: int) -> None:
        self.name = name
        first = rows.set_index("doc_id")
        columns, self.parsable = [first["score"]], [share(first["parsable"])]
        for label, frame in others.items():
            other = frame[frame["task"] == name].set_index("doc_id")
            if set(other.index) != set(first.index) or len(other) != len(first):
                raise ValueError(
                    f"{name}: the documents of {label or 'the second run'} are others than the first run's"
                )
            columns.append(other["score"].reindex(first.index))
            self.parsable.append(share(other["parsable"]))
        self.scores: Floats = np.column_stack([column.to_numpy(dtype=float) for column in columns])
        if np.isnan(self.scores).any():
            document = first.index[np.isnan(self.scores).any(axis=1)][0]
            raise ValueError(f"{name}: document {document} has no score; the task's log holds none that can be read")
        self.group: NDArray[np.intp] = pd.factorize(first["group"])[0]
        self.groups = int(self.group.max()) + 1
        self.binary = bool(np.isin(self.scores, (0, 1)).all())
        self.scale = max(1.0, float(np.ptp(self.scores)))
        generator = np.random.default_rng([0, *name.encode()])
        self.resampled: Reweighted = reweighted(self.scores, self.group, resamples, generator, unseen_documents=1)

    def differences(self, column: int) -> Floats:
        return np.asarray(self.scores[:, column] - self.scores[:, 0])

    def by_group(self, column: int) -> Floats:
        """Summed differences of each group."""
        return np.asarray(np.bincount(self.group, self.differences(column), minlength=self.groups), dtype=float)

    def alike(self, column: int) -> float:
        """How many documents count for one, because those of a group are alike: from 1 to those of the mean group.

        The design effect (Kish 1965): the variance of a mean over that of as many independent documents. The largest of
        both runs' scores and of their difference, which alone says little where few answers differ.
        """
        mean_size, effects = len(self.scores) / self.groups, []
        for values in (self.scores[:, 0], self.scores[:, column], self.differences(column)):
            spread = values - values.mean()
            if (total := float(spread @ spread)) > 1e-12:
                effects.append(float(np.sum(np.bincount(self.group, spread) ** 2)) / total)
        return float(np.clip(max(effects, default=mean_size), 1, mean_size))

    def resampled_difference(self, column: int) -> Reweighted:
        means, unseen = self.resampled
        return Reweighted((means[:, column] - means[:, 0])[:, None], unseen).enlarged(self.alike(column))

    def variance(self, column: int) -> float:
        """Estimated variance of the mean difference, groups being independent."""
        if self.groups < 2:
            return math.nan
        difference = self.differences(column)
        spread = self.by_group(column) - np.bincount(self.group, minlength=self.groups) * difference.mean()
        return float(np.sum(spread**2)) / len(difference) ** 2 * self.groups / (self.groups - 1)

    def paired(self, column: int, direction: int, confidence: float) -> Paired:
        difference = self.differences(column)
        gained, lost = (int((sign * direction * difference > 0).sum()) for sign in (1, -1))
        exact = self.binary and self.groups == len(difference)
        low, high = _interval(self.resampled_difference(column).with_unseen(), self.scale, confidence)
        return Paired(
            task=self.name,
            documents=len(difference),
            groups=self.groups,
            first=float(self.scores[:, 0].mean()),
            second=float(self.scores[:, column].mean()),
            difference=float(difference.mean()),
            low=low,
            high=high,
            gained=gained,
            lost=lost,
            p=mcnemar(gained, lost) if exact else sign_flip(self.by_group(column)),
            test="mcnemar" if exact else "sign-flip",
            parsable_first=self.parsable[0],
            parsable_second=self.parsable[column],
            needed=_needed(len(difference), self.variance(column)),
        )


def _overall(parts: list[_Task], column: int, tasks: list[Paired], confidence: float) -> Paired:
    if len(tasks) == 1:
        return Paired(**{**asdict(tasks[0]), "task": OVERALL})
    resampled = mean_over_tasks(
        {part.name: part.resampled_difference(column) for part in parts},
        {part.name: len(part.scores) / part.alike(column) for part in parts},
    )
    low, high = _interval(resampled, max(part.scale for part in parts), confidence)
    shares = np.concatenate([part.by_group(column) / len(part.scores) for part in parts]) / len(parts)
    documents = sum(task.documents for task in tasks)
    variance = sum(part.variance(column) for part in parts) / len(parts) ** 2
    return Paired(
        task=OVERALL,
        documents=documents,
        groups=sum(part.groups for part in parts),
        first=float(np.mean([task.first for task in tasks])),
        second=float(np.mean([task.second for task in tasks])),
        difference=float(np.mean([task.difference for task in tasks])),
        low=low,
        high=high,
        gained=sum(task.gained for task in tasks),
        lost=sum(task.lost for task in tasks),
        p=sign_flip(shares),
        test="sign-flip",
        parsable_first=_mean(task.parsable_first for task in tasks),
        parsable_second=_mean(task.parsable_second for task in tasks),
        needed=_needed(documents, variance),
    )


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _interval(difference: Reweighted, scale: float, confidence: float) -> tuple[float, float]:
    """Two-sided interval of a difference that the unseen documents may change by -scale or +scale."""
    tail = (1 + confidence) / 2
    low, high = difference.lower(difference.means, -scale, tail), difference.upper(difference.means, scale, tail)
    return float(low[0]), float(high[0])


def _needed(documents: int, variance: float) -> int | None:
    """Documents for 80 % power at a two-sided 0.05: n = (z_0.975 + z_0.8)^2 s^2 / 0.01^2, s^2 per document."""
    if not variance > 0:
        return None
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    return math.ceil(z**2 * variance * documents / _NOTICED**2)


def frame(comparisons: Sequence[Paired]) -> pd.DataFrame:
    """Comparisons as a table, one row each; `needed` is a nullable whole number."""
    table = pd.DataFrame([asdict(comparison) for comparison in comparisons])
    return table.astype({"needed": "Int64"}) if len(table) else table
