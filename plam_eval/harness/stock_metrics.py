"""Metrics of lmms-eval's tasks as functions of sums over clusters of documents.

A bootstrap calls a metric ten thousand times. MMBench's aggregation takes seconds for one call, and merges documents
that a resample draws twice (it groups by their index), as MME's does. As a function of sums neither is a problem: a
cluster that is drawn twice is added twice. What stands here is what the aggregation of that name does, and nothing
like it: tests hold each against the real one, on resamples whose copies have ids of their own, and whoever uses it
compares it with the metric in the results file first.

Importing this module imports neither torch nor lmms-eval.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plam_eval.harness import scoring
from plam_eval.harness.task_row import Entry, Score, as_score
from plam_eval.harness.task_scores import equal_letters, field
from plam_eval.test_sets.mmbench import STEP

Floats = NDArray[np.float64]
Clusters = NDArray[np.intp]
Entries = Sequence[Entry]
SHARE, PERCENT, POINTS = "share", "percent", "points"
"""Units: from 0 to 1, from 0 to 100, and MME's points."""


@dataclass(frozen=True)
class Summed:
    """A metric of some runs on the same documents.

    Attributes:
        totals: (runs, clusters, columns), what is summed of each cluster's documents.
        value: sums (..., columns) -> the metric (...); NaN where nothing is left of what it is of.
        exact: how far the metric may be from the task's own, which may round: times the metric, where it is above 1.
    """

    totals: Floats
    value: Callable[[Floats], Floats]
    exact: float = 1e-9

    def of_all(self) -> Floats:
        """(runs,), the metric of every run on all documents."""
        return self.value(self.totals.sum(axis=1))


Sums = Callable[[Sequence[Entries], Clusters], Summed]
"""(for each run the entries of the documents, the number of each document's cluster) -> the metric.

May raise anything for entries of another shape, and raises ValueError where what the aggregation takes together lies in
several clusters.
"""


@dataclass(frozen=True)
class Known:
    """What is known of an aggregation: its unit, and how it is had of sums."""

    unit: str
    sums: Sums


# --- means ------------------------------------------------------------------------------------------------------------


def mean_of(read: Callable[[Entry], float], scale: float = 1.0, exact: float = 1e-9) -> Sums:
    """The mean over documents.

    Args:
        read: entry -> score of a document.
        scale: what the mean is multiplied by.
        exact: as in `Summed`.
    """

    def sums(runs: Sequence[Entries], cluster: Clusters) -> Summed:
        scores = _scores(runs, read)
        totals = _by_cluster(np.stack([scores, np.ones_like(scores)], axis=-1), cluster)
        return Summed(totals, lambda s: scale * _ratio(s[..., 0], s[..., 1]), exact)

    return sums


def _of_thousand(runs: Sequence[Entries], cluster: Clusters) -> Summed:
    """OCRBench: right documents, by a thousand, which the whole benchmark has, however many were asked."""
    summed = mean_of(field("score"))(runs, cluster)
    return Summed(summed.totals, lambda s: s[..., 0] / 1000)


def _macro_mean(runs: Sequence[Entries], cluster: Clusters) -> Summed:
    """MMStar: the mean over second-level categories of their means; those of which no document is left are no part."""
    scores = _scores(runs, field("score"))
    names = _same(runs, lambda entry: str(entry["l2_category"]))
    number = _numbered(names)
    documents, categories = np.arange(len(number)), int(number.max()) + 1
    columns = np.zeros((*scores.shape, 2 * categories))
    columns[:, documents, number] = scores
    columns[:, documents, categories + number] = 1

    def value(s: Floats) -> Floats:
        means = _ratio(s[..., :categories], s[..., categories:])
        left = ~np.isnan(means)
        return _ratio(np.where(left, means, 0).sum(axis=-1), left.sum(axis=-1))

    return Summed(_by_cluster(columns, cluster), value)


def _mmmu(runs: Sequence[Entries], cluster: Clusters) -> Summed:
    """MMMU: the mean over documents, by way of subjects, rounded to five digits."""
    return mean_of(scoring.mmmu, exact=6e-6)(runs, cluster)


# --- counts -----------------------------------------------------------------------------------------------------------


def _counts(formula: Callable[..., Floats], *kinds: str) -> Sums:
    """POPE: a function of how many documents are of some kinds, such as "yes no": what is true, and what was said."""

    def sums(runs: Sequence[Entries], cluster: Clusters) -> Summed:
        columns = [[[float(_is(entry, kind)) for kind in kinds] for entry in entries] for entries in runs]
        return Summed(_by_cluster(np.array(columns), cluster), lambda s: formula(*np.moveaxis(s, -1, 0)))

    return sums


def _is(entry: Mapping[str, Any], kind: str) -> bool:
    true, _, said = kind.partition(" ")
    return bool(entry["ground_truth"] == true and said in ("", entry["prediction"]))


def _among(ones: Floats, others: Floats) -> Floats:
    """The share of ones; 0 where there are neither."""
    return np.asarray(np.nan_to_num(_ratio(ones, ones + others), nan=0.0))


def _f1(hits: Floats, false: Floats, missed: Floats) -> Floats:
    precision, recall = _among(hits, false), _among(hits, missed)
    return np.asarray(np.nan_to_num(_ratio(2 * precision * recall, precision + recall), nan=0.0))


# --- documents that count together ------------------------------------------------------------------------------------


def _mme(runs: Sequence[Entries], cluster: Clusters) -> Summed:
    """MME: by category the mean over pairs of 100 for the share that is right and 100 more if both are; summed up."""
    scores = _scores(runs, field("score"))
    names = _same(runs, lambda entry: (str(entry["category"]), str(entry["question_id"])))
    pair = _numbered(names)
    if (np.bincount(pair) != 2).any():
        raise ValueError("found a question without its partner, expected pairs")
    first = _first_of(pair)
    _within(pair, cluster, "the questions of a pair")
    right = np.stack([np.bincount(pair, row) for row in scores])
    points = 50.0 * right + 100.0 * (right == 2)
    number = _numbered([names[index][0] for index in first])
    pairs, categories = np.arange(len(number)), int(number.max()) + 1
    columns = np.zeros((*points.shape, 2 * categories))
    columns[:, pairs, number] = points
    columns[:, pairs, categories + number] = 1

    def value(s: Floats) -> Floats:
        means = _ratio(s[..., :categories], s[..., categories:])
        return np.where(np.isnan(means).all(axis=-1), np.nan, np.nansum(means, axis=-1))

    return Summed(_by_cluster(columns, cluster[first]), value)


def _mmbench(runs: Sequence[Entries], cluster: Clusters) -> Summed:
    """MMBench: a question is right if it is under every rotation of its choices; one without its first row is none."""
    scores = _scores(runs, scoring.mmbench)
    index = np.array(_same(runs, lambda entry: int(entry["index"])))
    if len(np.unique(index)) < len(index):
        raise ValueError("found an index twice, expected one for each row")
    question = _numbered(list(index % STEP))
    _within(question, cluster, "the rotations of a question")
    first = _first_of(question)
    counts = np.bincount(question, index < STEP)  # of rows of their own: 1, or 0
    right = np.stack([np.bincount(question, row) == np.bincount(question) for row in scores]) * counts
    columns = np.stack([right, np.broadcast_to(counts, right.shape)], axis=-1).astype(float)
    return Summed(_by_cluster(columns, cluster[first]), lambda s: 100 * _ratio(s[..., 0], s[..., 1]))


# --- the table --------------------------------------------------------------------------------------------------------

_SEED = Known(SHARE, mean_of(equal_letters))
_MME = Known(POINTS, _mme)
_MMBENCH = Known(PERCENT, _mmbench)

KNOWN: dict[str, Known] = {
    "mmstar_aggregate_results": Known(SHARE, _macro_mean),
    # The variants with a judge come to the same where he is not asked, and else there is no metric to compare.
    "mmbench_aggregate_dev_results_static": _MMBENCH,
    "mmbench_aggregate_dev_results_eval": _MMBENCH,
    "aggregate_static": _MMBENCH,
    "circular_eval_en": _MMBENCH,
    "circular_eval_cn": _MMBENCH,
    "mme_aggregate_results": _MME,
    "mmmu_aggregate_results": Known(SHARE, _mmmu),
    "plam_mmmu_test_overall": Known(SHARE, _mmmu),
    "plam_mmmu_test_domain": Known(SHARE, _mmmu),
    "pope_aggregate_accuracy": Known(SHARE, mean_of(field("score"))),
    "pope_aggregate_precision": Known(SHARE, _counts(_among, "yes yes", "no yes")),
    "pope_aggregate_recall": Known(SHARE, _counts(_among, "yes yes", "yes no")),
    "pope_aggregate_f1_score": Known(SHARE, _counts(_f1, "yes yes", "no yes", "yes no")),
    "pope_aggregate_yes_ratio": Known(SHARE, _counts(_among, "yes", "no")),  # of what is true, not of what was said
    "seed_aggregation_result": _SEED,
    "ocrbench_aggregate_accuracy": Known(SHARE, _of_thousand),
    "mean": Known("", mean_of(as_score)),
}
"""Aggregations by the name of their function, as results have it."""


def known_metric(aggregation: str | None, metric: str, score: Score | None) -> Known | None:
    """How a task's metric is had of sums; None where that is not known.

    Args:
        aggregation: the name of its function; None where the results do not say it.
        metric: its name.
        score: how the task's documents are scored, if they are.
    """
    score = score if score is not None and score.stock == metric else None
    unit = {1.0: SHARE, 100.0: PERCENT}.get(score.scale, "") if score is not None and score.high == 1 else ""
    if (known := KNOWN.get(aggregation or "")) is not None:
        return Known(known.unit or unit, known.sums)
    if score is None or score.aggregate is not Score.aggregate:
        return None
    return Known(unit, mean_of(score.read, score.scale, exact=1e-4))


def counts_copies(aggregation: str | None) -> bool:
    """Whether an aggregation that is not known as sums counts every entry on its own: one that stands twice, twice.

    Args:
        aggregation: the name of its function.
    """
    return re.match(_SEPARATE, aggregation or "") is not None


_SEPARATE = r"(refcoco|screenspot|osworld_g|groundingme|multihopspatial)_"  # read in lmms-eval 0.7.3: no ids in them


def parts_of(aggregation: str | None) -> Callable[[Entry], str | None]:
    """Of an entry, the part of the benchmark that its task reports beside the whole, such as one of MMMU's domains.

    Args:
        aggregation: the name of the metric's function.

    Returns:
        Gives None for entries of no such part, or of another shape.
    """
    if aggregation != "mmmu_aggregate_results":
        return lambda entry: None
    domains = scoring.mmmu_domains()

    def domain(entry: Entry) -> str | None:
        subject = entry.get("subdomain") if isinstance(entry, Mapping) else None
        return domains.get(subject) if isinstance(subject, str) else None

    return domain


# --- arithmetic -------------------------------------------------------------------------------------------------------


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, NaN where there is no whole."""
    whole = np.asarray(whole, dtype=float)
    return np.asarray(np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole != 0))


def _scores(runs: Sequence[Entries], read: Callable[[Entry], float]) -> Floats:
    """(runs, documents)."""
    scores = np.array([[float(read(entry)) for entry in entries] for entries in runs])
    if not np.isfinite(scores).all():
        raise ValueError("found a score that is no finite number")
    return scores


def _same(runs: Sequence[Entries], read: Callable[[Entry], Any]) -> list[Any]:
    """What entries say of their documents, which has to be the same in every run."""
    first, *others = [[read(entry) for entry in entries] for entries in runs]
    if any(other != first for other in others):
        raise ValueError("found other ids or categories of the same documents in the second run")
    return first


def _numbered(values: Sequence[Any]) -> Clusters:
    """Values as numbers from 0 on, equal ones as the same."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.intp)


def _first_of(group: Clusters) -> Clusters:
    """By group, which document is the first of it."""
    return np.asarray(np.unique(group, return_index=True)[1], dtype=np.intp)


def _within(group: Clusters, cluster: Clusters, what: str) -> None:
    if (cluster != cluster[_first_of(group)][group]).any():
        raise ValueError(f"found {what} in several clusters, expected one")


def _by_cluster(columns: Floats, cluster: Clusters) -> Floats:
    """(runs, clusters, columns) of (runs, documents, columns)."""
    totals = np.zeros((columns.shape[0], int(cluster.max()) + 1, columns.shape[2]))
    for run, rows in zip(totals, columns, strict=True):
        np.add.at(run, cluster, rows)
    return totals
