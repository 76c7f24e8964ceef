"""The bootstrap behind every interval: paired, of whole clusters of documents, stratified by task.

Bayesian bootstrap (Rubin 1981): weights drawn from a flat Dirichlet distribution over the clusters of documents and one
more, the same weights for every column of scores. The one more, a cluster nobody has seen that scores the worst that
could be, is what keeps a bound honest where the seen documents agree: with scores of 0 and 1 in clusters of one, its
bounds are those of Clopper and Pearson (Learned-Miller and Thomas, arXiv 1905.06208), and -(1 - alpha^(1/n)) when n
answers do not differ, where resampling alone would give 0.

Where scores are graded the worst that could be is far beyond what is seen, and such bounds are far too wide. `halves`
gives the interval of a difference that agrees with its sign flips instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CHUNK = 1 << 22  # random weights held at once


class Reweighted(NamedTuple):
    """Means of reweighted copies of the documents, and the weight of the one cluster nobody has seen.

    Attributes:
        means: (resamples, columns); of the seen documents alone, or, after `with_unseen`, their part of the mean.
        unseen: (resamples,), what a score of 1 of the unseen cluster would add to it.
    """

    means: Floats
    unseen: Floats

    def with_unseen(self) -> Reweighted:
        """The seen documents' part of a mean in which the unseen cluster counts."""
        return Reweighted((1 - self.unseen)[:, None] * self.means, self.unseen)

    def enlarged(self, factor: float) -> Reweighted:
        """The same copies, with a larger unseen cluster.

        Args:
            factor: of so many times as many documents.
        """
        return Reweighted(self.means, factor * self.unseen / (1 + (factor - 1) * self.unseen))

    def lower(self, values: Floats, worst: float, level: float) -> Floats:
        """One-sided lower bounds of columns made from `means`.

        Args:
            values: (resamples, columns).
            worst: what the unseen cluster could score.
            level: of confidence, such as 0.95.
        """
        return np.asarray(np.quantile(values + worst * self.unseen[:, None], 1 - level, axis=0))

    def upper(self, values: Floats, best: float, level: float) -> Floats:
        """One-sided upper bounds of columns made from `means`.

        Args:
            values: (resamples, columns).
            best: what the unseen cluster could score.
            level: of confidence, such as 0.95.
        """
        return -self.lower(-values, -best, level)


def reweighted(
    scores: Floats,
    cluster: NDArray[np.intp],
    resamples: int,
    generator: np.random.Generator,
    *,
    unseen_documents: float | None = None,
) -> Reweighted:
    """Reweighted means of one task.

    Args:
        scores: (documents, columns), columns being cuts or settings scored on the same documents.
        cluster: (documents,), the number of the cluster that each document is in, from 0 without a gap.
        resamples: so many copies.
        generator: of the weights.
        unseen_documents: in the unseen cluster; by default as many as in the mean cluster.
    """
    size, total = _sums(scores, cluster)
    unseen_size = size.mean() if unseen_documents is None else unseen_documents
    means, unseen = np.empty((resamples, scores.shape[1])), np.empty(resamples)
    for chunk in _chunks(resamples, len(size) + 1):
        weights = generator.standard_exponential((chunk.stop - chunk.start, len(size) + 1))
        seen, extra = weights[:, :-1], weights[:, -1] * unseen_size
        mass = seen @ size
        means[chunk] = (seen @ total) / mass[:, None]
        unseen[chunk] = extra / (mass + extra)
    return Reweighted(means, unseen)


def halves(scores: Floats, cluster: NDArray[np.intp], resamples: int, generator: np.random.Generator) -> Reweighted:
    """Means of random halves of one task: every cluster is in or out by the toss of a coin (Hartigan 1969).

    For a column of differences their quantiles at alpha / 2 and 1 - alpha / 2 are the values that sign flips do not
    reject at alpha: the summed signed deviations from a value are as large as the plain sum exactly where the value
    lies between the mean of the clusters that keep their sign and that of the others. Exact at every n where
    differences are as often above the true one as below, by as much.

    Args:
        scores: (documents, columns), as `reweighted` takes them.
        cluster: (documents,), likewise.
        resamples: so many halves.
        generator: of the coins.

    Returns:
        `unseen` is 1 for a half with no cluster in it, which says nothing, and 0 for all others.
    """
    size, total = _sums(scores, cluster)
    means, unseen = np.empty((resamples, scores.shape[1])), np.empty(resamples)
    for chunk in _chunks(resamples, len(size)):
        chosen = generator.integers(0, 2, (chunk.stop - chunk.start, len(size)), dtype=np.int8).astype(float)
        mass = chosen @ size
        empty = mass == 0
        chosen[empty], mass[empty] = 1, size.sum()
        means[chunk] = (chosen @ total) / mass[:, None]
        unseen[chunk] = empty
    return Reweighted(means, unseen)


def _sums(scores: Floats, cluster: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Documents (clusters,) and summed scores (clusters, columns) of each cluster."""
    size = np.bincount(cluster).astype(float)
    total = np.zeros((len(size), scores.shape[1]))
    np.add.at(total, cluster, scores)
    return size, total


def _chunks(resamples: int, weights: int) -> Iterator[slice]:
    """Resamples of so many weights each, as many at once as may be held."""
    step = max(1, _CHUNK // weights)
    return (slice(start, min(start + step, resamples)) for start in range(0, resamples, step))


def mean_over_tasks(by_task: Mapping[str, Reweighted], clusters: Mapping[str, float]) -> Reweighted:
    """The unweighted mean over tasks, each reweighted on its own, with one unseen cluster counted in all.

    One for each task would count it as often. It is in the task with the fewest `clusters` (the first of equal ones),
    where it weighs most: a bound for the worst case.

    Args:
        by_task: as `reweighted` or `halves` gives them, of one number of resamples.
        clusters: of each task, or so many documents as count as independent.
    """
    smallest = min(clusters, key=clusters.__getitem__)
    means, unseen = by_task[smallest]
    mean = np.mean([task.means for task in by_task.values()], axis=0) - unseen[:, None] * means / len(by_task)
    return Reweighted(np.asarray(mean), unseen / len(by_task))
