"""Paired comparisons of many columns at once, layers for instance: means over tasks, intervals and p by cluster.

The tests are those of `evaluation.stats` for graded scores: random halves of clusters give the intervals, sign flips of
clusters' sums the p values, and every task counts the same. Here one draw serves all columns.

Shares against chance are compared as log ratios of means, ln(mean share / mean chance): the log of one document's share
is minus infinity where nothing falls into its boxes. Both tests carry over. A half's ln(second / first) is the value
that sign flips of second - first * exp(value) put at the edge, and under exchange of the two settings
ln(second / first) is an increasing function of second - first, whose sum with them does not change.

Halves are drawn of the clusters of all tasks together: the interval of a difference is then what its sign flips do not
reject, also where a task has few clusters. For a mean of one setting, which tasks may well differ in, they are drawn of
deviations from each task's own mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plam_eval.bootstrap import Floats, halves

LEAST_CLUSTERS = 6
"""From so many clusters that differ on, sign flips can give p < 0.05."""

_TAIL = 0.025  # on either side of an interval
_RESAMPLES = 4_000
_FLIPS = 9_999  # smallest p: 2e-4, which Holm's correction over 80 layers makes 0.016
_EXACT = 13  # clusters up to which all patterns of signs are tried
_CELLS = 1 << 22  # numbers held at once
_COLUMNS = 512  # columns of resamples held at once


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents that rows of values belong to.

    Attributes:
        keys: columns task, doc_id, cluster; a row for each document.
    """

    keys: pd.DataFrame

    @cached_property
    def task(self) -> NDArray[np.intp]:
        """The number of each document's task."""
        return np.asarray(pd.factorize(self.keys["task"])[0])

    @cached_property
    def cluster(self) -> NDArray[np.intp]:
        """The number of each document's cluster; those of different tasks are different ones."""
        return np.asarray(self.keys.groupby(["task", "cluster"], sort=False).ngroup())

    def only(self, kept: NDArray[np.bool_]) -> Documents:
        """Some of them.

        Args:
            kept: (documents,) bool.
        """
        return Documents(self.keys[kept].reset_index(drop=True))

    @cached_property
    def by_task(self) -> list[NDArray[np.intp]]:
        """The rows of each task."""
        return [np.flatnonzero(self.task == task) for task in range(int(self.task.max(initial=-1)) + 1)]


class Estimates(NamedTuple):
    """A number for each column; NaN where there is none.

    Attributes:
        value: mean over tasks.
        low, high: its 95 % interval; NaN where there are fewer than `LEAST_CLUSTERS` clusters.
        documents, clusters, tasks: how many have a value in the column.
    """

    value: Floats
    low: Floats
    high: Floats
    documents: NDArray[np.intp]
    clusters: NDArray[np.intp]
    tasks: NDArray[np.intp]


class Differences(NamedTuple):
    """A difference for each column; documents without a value on one of the sides are left out of it.

    Attributes:
        first, second: means of both, or their log ratios to chance.
        difference: second minus first, with its interval.
        p: two-sided, of sign flips.
    """

    first: Floats
    second: Floats
    difference: Estimates
    p: Floats


def levels(documents: Documents, values: Floats, chance: Floats | None = None) -> Estimates:
    """Means of columns, or their log ratios to chance.

    Args:
        documents: of the rows.
        values: (documents, columns); NaN where there is none.
        chance: likewise.
    """
    blocks = (values,) if chance is None else (chance, values)
    return _estimates(documents, blocks, centred=True)


def differences(documents: Documents, first: Floats, second: Floats, chance: Floats | None = None) -> Differences:
    """Second minus first of columns: of means, or of log ratios to one chance.

    Args:
        documents: of the rows.
        first: (documents, columns); NaN where there is none.
        second: likewise.
        chance: likewise; None compares means.
    """
    lacks = np.isnan(first) | np.isnan(second)
    if chance is not None:
        lacks |= np.isnan(chance)
    first, second = (np.where(lacks, np.nan, side) for side in (first, second))
    if chance is None:
        difference = _estimates(documents, (second - first,), centred=False)
        sides = [_means(documents, (side,)) for side in (first, second)]
    else:
        difference = _estimates(documents, (first, second), centred=False)
        chance = np.where(lacks, np.nan, chance)
        sides = [_means(documents, (chance, side)) for side in (first, second)]
    p = np.full(first.shape[1], np.nan)
    changes = _changes(documents, first, second, relative=chance is not None)
    defined = np.isfinite(difference.value)
    p[defined] = _sign_flips(documents, changes[:, defined])
    return Differences(sides[0], sides[1], difference, p)


def standardised(documents: Documents, first: Floats, second: Floats, *, relative: bool) -> Floats:
    """The mean change of columns over its standard error, both over tasks and by cluster, (columns,).

    Args:
        documents: of the rows.
        first: (documents, columns); NaN where there is none.
        second: likewise.
        relative: to the mean of both, as a log ratio is.

    Returns:
        0 where nothing changes; NaN where it cannot be known: no value, or one cluster.
    """
    by_cluster = _by_cluster(documents, _changes(documents, first, second, relative=relative))
    task_of_cluster = np.zeros(len(by_cluster), np.intp)
    task_of_cluster[documents.cluster] = documents.task
    tasks = [by_cluster[task_of_cluster == task] for task in np.unique(documents.task)]
    spreads = [own.var(0, ddof=1) * len(own) for own in tasks if len(own) > 1]
    if not spreads:
        return np.full(first.shape[1], np.nan)
    total = by_cluster.sum(0)
    result = np.where(np.abs(total) > 1e-12, total / np.sqrt(np.maximum(sum(spreads), 1e-24)), 0.0)
    return np.asarray(np.where(np.isnan(first * second).all(0), np.nan, result))


def _statistic(means: Sequence[Floats]) -> Floats:
    """What is estimated of the means of one block, or of two: the mean, or ln(second / first)."""
    if len(means) == 1:
        return means[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(means[1]) - np.log(means[0]))


def _patterns(lacks: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.intp]]]:
    """Columns that have a value in the same rows: those rows, (rows,) bool, and the numbers of the columns."""
    by_rows: dict[bytes, list[int]] = {}
    for column, packed in enumerate(np.packbits(lacks, axis=0).T):
        by_rows.setdefault(packed.tobytes(), []).append(column)
    for columns in by_rows.values():
        yield ~lacks[:, columns[0]], np.array(columns)


def _means(documents: Documents, blocks: Sequence[Floats]) -> Floats:
    """The statistic of columns, mean over tasks."""
    result = np.full(blocks[0].shape[1], np.nan)
    for rows, columns in _patterns(np.isnan(sum(blocks))):
        if rows.any():
            own, inner = documents.only(rows), [block[np.ix_(rows, columns)] for block in blocks]
            by_task = [_statistic([block[task].mean(0) for block in inner]) for task in own.by_task]
            result[columns] = np.mean(by_task, axis=0)
    return _finite(result)


def _estimates(documents: Documents, blocks: Sequence[Floats], *, centred: bool) -> Estimates:
    """The statistic of columns with its interval, by random halves of the clusters."""
    number = blocks[0].shape[1]
    value, counts = _means(documents, blocks), np.zeros((3, number), np.intp)
    low, high = np.full(number, np.nan), np.full(number, np.nan)
    for rows, columns in _patterns(np.isnan(sum(blocks))):
        own = documents.only(rows)
        clusters = len(np.unique(own.cluster))
        counts[:, columns] = [[rows.sum()], [clusters], [len(own.by_task)]]
        if clusters < LEAST_CLUSTERS:
            continue
        for some in np.array_split(columns, -(-len(columns) // _COLUMNS)):
            halved = _halved(own, [block[np.ix_(rows, some)] for block in blocks], centred=centred)
            for end, bound in zip((low, high), _quantiles(own, *halved, logarithm=len(blocks) == 2), strict=True):
                end[some] = bound + (value[some] if centred else 0.0)
    return Estimates(value, _finite(low), _finite(high), *counts)


def _halved(documents: Documents, blocks: Sequence[Floats], *, centred: bool) -> tuple[Floats, Floats]:
    """Two blocks whose ratio, or its logarithm, is the statistic of a half, or its deviation where it is centred.

    Every task counts the same: values are divided by its documents, and for a log ratio by its mean of both sides.
    """
    weights = np.empty((len(documents.keys), 1))
    scaled = [np.array(block) for block in blocks]
    for task in documents.by_task:
        weights[task] = 1 / len(task)
        means = [block[task].mean(0) for block in blocks]
        if len(blocks) == 1:
            scaled[0][task] -= means[0] if centred else 0.0
            continue
        for side, mean in zip(scaled, means, strict=True):
            with np.errstate(divide="ignore", invalid="ignore"):
                side[task] /= mean if centred else np.add(*means) / 2
    below = weights if len(blocks) == 1 else scaled[0] * weights
    return below, scaled[-1] * weights


def _quantiles(documents: Documents, below: Floats, above: Floats, *, logarithm: bool) -> tuple[Floats, Floats]:
    """Ends of a 95 % interval of above / below, or of its logarithm; a half without a cluster may be anything."""
    cluster = np.unique(documents.cluster, return_inverse=True)[1]
    means, empty = halves(np.hstack([below, above]), cluster, _RESAMPLES, np.random.default_rng(1))
    sides = np.split(means, [below.shape[1]], axis=1)
    halved = _statistic(sides) if logarithm else sides[1] / sides[0]
    halved = np.ascontiguousarray(halved.T)
    low = np.quantile(np.where(empty > 0, -np.inf, halved), _TAIL, axis=1, method="lower")
    high = np.quantile(np.where(empty > 0, np.inf, halved), 1 - _TAIL, axis=1, method="higher")
    return low, high


def _changes(documents: Documents, first: Floats, second: Floats, *, relative: bool) -> Floats:
    """What each document adds to the mean difference over tasks, or to that of log ratios; 0 where it has no value."""
    lacks = np.isnan(first) | np.isnan(second)
    change = np.where(lacks, 0.0, second - first)
    middle = np.where(lacks, 0.0, (first + second) / 2)
    weights = np.zeros(change.shape)
    tasks = np.zeros(change.shape[1])
    for rows in documents.by_task:
        counted = (~lacks[rows]).sum(0)
        below = middle[rows].sum(0) if relative else counted.astype(float)
        weights[rows] = np.divide(1.0, below, out=np.zeros(len(tasks)), where=below > 0)
        tasks += counted > 0
    return change * weights / np.maximum(tasks, 1)


def _by_cluster(documents: Documents, values: Floats) -> Floats:
    """Sums (clusters, columns) of values (documents, columns)."""
    total = np.zeros((int(documents.cluster.max(initial=-1)) + 1, values.shape[1]))
    np.add.at(total, documents.cluster, values)
    return total


def _sign_flips(documents: Documents, changes: Floats) -> Floats:
    """Two-sided p of the sums of columns, each as `stats.sign_flip` of one."""
    values = _by_cluster(documents, changes)
    clusters, columns = values.shape
    observed, close = values.sum(0), 1e-12 * np.abs(values).sum(0)
    below, above, patterns = np.zeros(columns), np.zeros(columns), 0
    for kept in _coins(clusters, columns):
        sums = 2 * (kept @ values) - observed
        below += (sums <= observed + close).sum(0)
        above += (sums >= observed - close).sum(0)
        patterns += len(kept)
    extra = int(clusters > _EXACT)  # among random patterns the observed one counts as one more
    p = np.minimum(1.0, 2 * (np.minimum(below, above) + extra) / (patterns + extra))
    # Rounding aside; one difference may as well have had the other sign.
    return np.asarray(np.where((np.abs(values) > 1e-12).sum(0) < 2, 1.0, p))


def _coins(clusters: int, columns: int) -> Iterator[Floats]:
    """Patterns of kept signs, (patterns, clusters) of 0 and 1: all of them, or random ones where there are more."""
    if clusters <= _EXACT:
        yield (np.arange(2**clusters)[:, None] >> np.arange(clusters) & 1).astype(float)
        return
    generator = np.random.default_rng(0)
    step = max(1, _CELLS // max(clusters, columns))
    for start in range(0, _FLIPS, step):
        rows = min(step, _FLIPS - start)
        octets = generator.integers(0, 256, (rows, -(-clusters // 8)), dtype=np.uint8)
        yield np.unpackbits(octets, axis=1, count=clusters).astype(float)


def _finite(values: Floats) -> Floats:
    return np.asarray(np.where(np.isfinite(values), values, np.nan))
