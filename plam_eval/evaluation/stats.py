"""Paired comparisons of runs on the same documents. scipy does the arithmetic; docs: "Comparing"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plam_eval.bootstrap import Floats, Reweighted, halves, mean_over_tasks, reweighted
from plam_eval.errors import InputError

OVERALL = "overall"
"""The `task` of the comparison that is the unweighted mean over tasks."""

SIGNIFICANT = 0.05
"""From this p on, no difference is shown."""

_FLIPS = 19_999  # random sign flips where there are too many to try all
SMALLEST_P = 2 / (_FLIPS + 1)
"""The smallest p that random sign flips give."""

_NOTICED = 0.01  # a difference of one point, for `Paired.needed`
_FIRST, _SECOND = "the first run", "the second run"  # names where the caller gives none
_CELLS = 1 << 23  # random signs held at once
_SINGLY = 64  # up to so many differences signs are drawn one by one, which costs little
_REPEATED = 20  # a binomial number takes as long as so many signs, about


def proportion_interval(right: int, total: int) -> tuple[float, float]:
    """95 % Wilson interval of a share (Wilson 1927).

    Args:
        right: documents, or whatever else has the share.
        total: of so many.
    """
    from scipy import stats  # here and below, since it takes long to import

    interval = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def is_binary(scores: pd.Series) -> bool:
    """Whether every document is right or wrong.

    Args:
        scores: of documents.
    """
    return bool(scores.isin([0.0, 1.0]).all())


def parsable_share(parsable: pd.Series) -> float:
    """Share of true among what is true or false; NaN where no answer has a form to keep.

    Args:
        parsable: as the column of `records.Run.samples`.
    """
    judged = parsable.dropna()
    return float(judged.astype(float).mean()) if len(judged) else math.nan


@dataclass(frozen=True)
class Paired:
    """Two runs on the same documents of one task, or on average over tasks.

    Attributes:
        task: its name, or OVERALL.
        documents, groups: how many, and in how many clusters (documents of one image, say): these are independent.
        first, second: mean scores; difference: second minus first.
        low, high: confidence interval of the difference. Right or wrong: from the paired bootstrap over clusters,
            with one unseen cluster as in `bootstrap`, of as many documents as count for one here
            (`_Difference.alike`). Graded scores: the differences that sign flips would not reject, by
            `bootstrap.halves`; where too few clusters differ for sign flips to reject anything (fewer than six at
            95 %), as right or wrong.
        gained, lost: documents that the second run scores better or worse on.
        p: two-sided; of `test`: "mcnemar" (exact; right or wrong, independent documents) or "sign-flip" (of the
            clusters' summed differences: graded scores, clusters of documents, the mean over tasks).
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


DIFFERENCE = tuple(field.name for field in fields(Paired) if field.name != "task")
"""The fields of a comparison, without what it is of."""


def effect(difference: float, p: float, sign: int) -> str | None:
    """Whether the second of two runs is "better" or "worse"; None where no difference is shown.

    Args:
        difference: of their scores, second minus first.
        p: its p, adjusted where it is one of several.
        sign: 1 where a higher score is better, -1 where a lower one is.
    """
    if p >= SIGNIFICANT:
        return None
    return "better" if (difference > 0) == (sign > 0) else "worse"


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: a binomial test of gained among gained + lost at one half (McNemar 1947).

    Args:
        gained: documents that only the second run has right.
        lost: documents that only the first run has right.
    """
    from scipy import stats

    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def sign_flip(differences: Floats) -> float:
    """Two-sided p of a mean difference when each difference might as well have had the other sign (Fisher 1935).

    Exact up to 14 differences other than zero, from 19,999 random flips beyond (then p is at least 1e-4). Twice the
    smaller tail.

    Args:
        differences: independent ones, (clusters,).
    """
    changed = differences[_differ(differences)]
    if len(changed) < 2:  # one difference may as well have had the other sign
        return 1.0
    observed, sums = float(changed.sum()), _flipped(changed)
    close = 1e-12 * float(np.abs(changed).sum())  # sums that rounding alone tells apart are equal
    extra = int(len(sums) == _FLIPS)  # among random patterns the observed one counts as one more
    tails = [int(np.sum(sums <= observed + close)), int(np.sum(sums >= observed - close))]
    return min(1.0, 2 * (min(tails) + extra) / (len(sums) + extra))


def _flipped(values: Floats) -> Floats:
    """Sums of values under every pattern of their signs, or under `_FLIPS` random ones where there are more."""
    number = len(values)
    if 2**number <= _FLIPS:
        patterns = np.arange(2**number)[:, None] >> np.arange(number) & 1
        return np.asarray((2.0 * patterns - 1) @ values)
    generator, sums = np.random.default_rng(0), np.zeros(_FLIPS)
    if number > _SINGLY:  # of many differences of one size a binomial number keeps its sign
        values, sizes, counts = _repeated(values)
        sums += (2.0 * generator.binomial(counts, 0.5, (_FLIPS, len(sizes))) - counts) @ sizes
    step = max(1, _CELLS // max(1, len(values)))
    for start in range(0, _FLIPS if len(values) else 0, step):
        rows = min(step, _FLIPS - start)
        octets = generator.integers(0, 256, (rows, -(-len(values) // 8)), dtype=np.uint8)
        kept = np.unpackbits(octets, axis=1, count=len(values)).astype(float)
        sums[start : start + rows] += 2 * (kept @ values) - values.sum()
    return sums


def _repeated(values: Floats) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Values of sizes that are rare, and the sizes of the others with how many there are of each; no signs."""
    ordered = np.sort(np.abs(values))
    first = np.flatnonzero(np.diff(ordered, prepend=-1.0) > 1e-12 * ordered[-1])  # rounding aside
    counts = np.diff(first, append=len(ordered))
    sizes, many = np.add.reduceat(ordered, first) / counts, counts > _REPEATED
    return ordered[np.repeat(~many, counts)], sizes[many], counts[many]


def _differ(differences: Floats) -> NDArray[np.bool_]:
    """Which are other than zero, rounding aside."""
    return np.asarray(~np.isclose(differences, 0, atol=1e-12))


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979): the chance that any is that small if none differs.

    Args:
        p: of every comparison that was made.
    """
    # Not by statsmodels, whose function collects garbage at every call: tenths of a second where a model is loaded.
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1))
    return [float(value) for value in np.minimum(adjusted, 1)[np.argsort(order)]]


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    directions: Mapping[str, int] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> list[Paired]:
    """Compare two runs: one comparison per task, in the order of `first`, and OVERALL last.

    Args:
        first: as `records.Run.samples`.
        second: likewise; differences are second minus first.
        directions: as `Run.directions`; for gained and lost.
        confidence: of the intervals, two-sided, one comparison at a time.
        resamples: draws of the bootstrap.
    """
    compared = compare_many(first, {_SECOND: second}, directions=directions, confidence=confidence, resamples=resamples)
    return compared[_SECOND]


def compare_many(
    first: pd.DataFrame,
    others: Mapping[str, pd.DataFrame],
    *,
    directions: Mapping[str, int] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> dict[str, list[Paired]]:
    """Compare several runs with one: for each, by name, what `compare` gives.

    Args:
        first: as `records.Run.samples`.
        others: likewise, by name; differences are theirs minus first.
        directions: as `Run.directions`; for gained and lost.
        confidence: of the intervals, two-sided, one comparison at a time.
        resamples: draws of the bootstrap.
    """
    pairs = [(_FIRST, name) for name in others]
    runs = {_FIRST: first, **others}
    compared = compare_pairs(runs, pairs, directions=directions, confidence=confidence, resamples=resamples)
    return {name: compared[_FIRST, name] for name in others}


def compare_pairs(
    runs: Mapping[str, pd.DataFrame],
    pairs: Iterable[tuple[str, str]],
    *,
    directions: Mapping[str, int] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> dict[tuple[str, str], list[Paired]]:
    """Compare any pairs of some runs, all on one draw of the bootstrap.

    Args:
        runs: tables as `records.Run.samples`, by name; whether they may be compared is for
            `comparable.check_comparable`. Clusters (the column `group`), and the order of tasks, are those of the
            first.
        pairs: (first, second), names of `runs`.
        directions: as `Run.directions`; for gained and lost.
        confidence: of the intervals, two-sided, one comparison at a time.
        resamples: draws of the bootstrap.

    Returns:
        For each pair one comparison per task, and OVERALL last.

    Raises:
        ValueError: a document is in some tables only, or has no score.
    """
    reference = next(iter(runs.values()))
    rows_of = {name: dict(iter(samples.groupby("task"))) for name, samples in runs.items()}
    tasks = [
        _Task(str(task), rows, {name: own.get(task, rows[:0]) for name, own in rows_of.items()}, resamples)
        for task, rows in reference.groupby("task", sort=False)
    ]
    for name, samples in runs.items():
        extra = set(samples["task"]) - {task.name for task in tasks}
        if extra:
            raise InputError(f"{', '.join(sorted(extra))}: in {name} only")
    if not tasks:
        raise InputError("no documents to compare")
    columns = {name: column for column, name in enumerate(runs)}
    compared = {}
    for first, second in pairs:
        differences = [_Difference(task, columns[first], columns[second]) for task in tasks]
        by_task = [d.paired((directions or {}).get(d.task.name, 1), confidence) for d in differences]
        compared[first, second] = [*by_task, _overall(differences, by_task, confidence)]
    return compared


def count_for_one(columns: Iterable[Floats], cluster: NDArray[np.intp]) -> float:
    """How many documents count for one, because those of a cluster are alike: from 1 to those of the mean cluster.

    The design effect (Kish 1965): the variance of a mean over that of as many independent documents.

    Args:
        columns: scores and differences, (documents,) each, of which the largest effect counts.
        cluster: (documents,), the number of the cluster that each is in, from 0 without a gap.
    """
    mean_size, effects = len(cluster) / (int(cluster.max()) + 1), []
    for values in columns:
        spread = values - values.mean()
        if (total := float(spread @ spread)) > 1e-12:
            effects.append(float(np.sum(np.bincount(cluster, spread) ** 2)) / total)
    return float(np.clip(max(effects, default=mean_size), 1, mean_size))


class _Task:
    """One task's scores, (documents, runs), the clusters of its documents, and one draw of the bootstrap."""

    def __init__(self, name: str, rows: pd.DataFrame, runs: Mapping[str, pd.DataFrame], resamples: int) -> None:
        self.name, self._resamples = name, resamples
        reference = rows.set_index("doc_id")
        columns, self.parsable = [], []
        for label, samples in runs.items():
            score = pd.Series(samples["score"].to_numpy(dtype=float), index=samples["doc_id"])
            if not score.index.equals(reference.index):
                if set(score.index) != set(reference.index) or len(score) != len(reference):
                    raise InputError(f"{name}: the documents of {label} are others than the first run's")
                score = score.reindex(reference.index)
            columns.append(score.to_numpy())
            self.parsable.append(parsable_share(samples["parsable"]))
        self.scores: Floats = np.column_stack(columns)
        if np.isnan(self.scores).any():
            document = reference.index[np.isnan(self.scores).any(axis=1)][0]
            raise InputError(f"{name}: document {document} has no score; the task's log holds none that can be read")
        self.cluster: NDArray[np.intp] = pd.factorize(reference["group"])[0]
        self.clusters = int(self.cluster.max()) + 1
        self.scale = max(1.0, float(np.ptp(self.scores)))
        self.binary = bool(np.isin(self.scores, (0, self.scale)).all())  # right or wrong, in whatever unit

    @cached_property
    def resampled(self) -> Reweighted:
        generator = np.random.default_rng([0, *self.name.encode()])
        return reweighted(self.scores, self.cluster, self._resamples, generator, unseen_documents=1)

    @cached_property
    def halves(self) -> Reweighted:
        return halves(self.scores, self.cluster, self._resamples, np.random.default_rng([1, *self.name.encode()]))


class _Difference:
    """The scores of one run (column `second`) minus those of another on one task's documents."""

    def __init__(self, task: _Task, first: int, second: int) -> None:
        self.task, self._first, self._second = task, first, second
        self.values: Floats = task.scores[:, second] - task.scores[:, first]
        totals = np.bincount(task.cluster, self.values, minlength=task.clusters)
        self.by_cluster: Floats = np.asarray(totals, dtype=float)

    def alike(self) -> float:
        """How many documents count for one: by both runs' scores, too, as where few answers differ these say little."""
        scores = self.task.scores
        return count_for_one((scores[:, self._first], scores[:, self._second], self.values), self.task.cluster)

    def differing(self) -> int:
        """Clusters whose mean difference is other than 0, or than that of the middle cluster if these are fewer."""
        means = self.by_cluster / np.bincount(self.task.cluster)
        return min(int(_differ(values).sum()) for values in (means, means - np.median(means)))

    def resampled(self, cautious: bool) -> Reweighted:
        means, unseen = self.task.resampled if cautious else self.task.halves
        difference = Reweighted((means[:, self._second] - means[:, self._first])[:, None], unseen)
        return difference.enlarged(self.alike()) if cautious else difference

    def independent(self) -> float:
        """Documents that count as independent, by the range of scores: the fewer, the more one unseen weighs."""
        return len(self.values) / self.alike() / self.task.scale

    def variance(self) -> float:
        """Estimated variance of the mean difference, clusters being independent."""
        clusters = self.task.clusters
        if clusters < 2:
            return math.nan
        spread = self.by_cluster - np.bincount(self.task.cluster, minlength=clusters) * self.values.mean()
        spread = np.where(_differ(spread), spread, 0.0)
        return float(np.sum(spread**2)) / len(self.values) ** 2 * clusters / (clusters - 1)

    def paired(self, direction: int, confidence: float) -> Paired:
        task = self.task
        changed = _differ(self.values)
        gained, lost = (int((changed & (sign * direction * self.values > 0)).sum()) for sign in (1, -1))
        exact = task.binary and task.clusters == len(self.values)
        (cautious,) = _cautious([self], confidence)
        low, high = _interval(self.resampled(cautious).with_unseen(), task.scale, confidence)
        return Paired(
            task=task.name,
            documents=len(self.values),
            groups=task.clusters,
            first=float(task.scores[:, self._first].mean()),
            second=float(task.scores[:, self._second].mean()),
            difference=float(self.values.mean()),
            low=low,
            high=high,
            gained=gained,
            lost=lost,
            p=mcnemar(gained, lost) if exact else sign_flip(self.by_cluster),
            test="mcnemar" if exact else "sign-flip",
            parsable_first=task.parsable[self._first],
            parsable_second=task.parsable[self._second],
            needed=_needed(len(self.values), self.variance()),
        )


def _cautious(differences: Sequence[_Difference], confidence: float) -> list[bool]:
    """For each task, whether a document that nobody has seen may change by the whole range of scores.

    So it is where every document is right or wrong; and in graded tasks if so few clusters differ, in all of them, that
    no pattern of their signs is rare enough to be told from chance: too little is known of how far others may change.
    A task with so few clusters at all is one of these, whatever the others are: it makes up a whole share of the mean.
    """

    def few(number: int) -> bool:
        return bool(0.5**number >= (1 - confidence) / 2)

    differing = sum(d.differing() for d in differences if not d.task.binary)
    return [d.task.binary or few(differing) or few(d.task.clusters) for d in differences]


def _overall(differences: list[_Difference], tasks: list[Paired], confidence: float) -> Paired:
    if len(tasks) == 1:
        return Paired(**{**asdict(tasks[0]), "task": OVERALL})
    cautious = _cautious(differences, confidence)
    independent = [d.independent() if c else math.inf for d, c in zip(differences, cautious, strict=True)]
    resampled = mean_over_tasks(
        {d.task.name: d.resampled(c) for d, c in zip(differences, cautious, strict=True)},
        {d.task.name: number for d, number in zip(differences, independent, strict=True)},
    )
    low, high = _interval(resampled, differences[independent.index(min(independent))].task.scale, confidence)
    shares = np.concatenate([d.by_cluster / len(d.values) for d in differences]) / len(tasks)
    documents = sum(task.documents for task in tasks)
    variance = sum(d.variance() for d in differences) / len(tasks) ** 2
    return Paired(
        task=OVERALL,
        documents=documents,
        groups=sum(task.groups for task in tasks),
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
    numbers = [value for value in values if not math.isnan(value)]
    return float(np.mean(numbers)) if numbers else math.nan


def _interval(difference: Reweighted, scale: float, confidence: float) -> tuple[float, float]:
    """Two-sided interval of a difference that the unseen documents may change by -scale or +scale."""
    tail = (1 + confidence) / 2
    low, high = difference.lower(difference.means, -scale, tail), difference.upper(difference.means, scale, tail)
    return float(low[0]), float(high[0])


def _needed(documents: int, variance: float) -> int | None:
    """Documents for 80 % power at a two-sided 0.05: n = (z_0.975 + z_0.8)^2 s^2 / 0.01^2, s^2 per document."""
    if not variance > 0:
        return None
    from scipy import stats

    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    return math.ceil(z**2 * variance * documents / _NOTICED**2)


def format_p(p: float) -> str:
    """A p value in words: two digits that count, one below 0.001; "-" where there is none.

    Args:
        p: from 0 to 1, or NaN.
    """
    if math.isnan(p):
        return "-"
    return f"{p:.2f}" if p >= 0.1 else f"{p:.2g}" if p >= 0.001 else f"{p:.1g}"


def count_of(number: int, what: str) -> str:
    """ "1 document", "1,080 documents".

    Args:
        number: how many.
        what: the noun, in the singular.
    """
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def comparison_table(comparisons: Sequence[Paired]) -> pd.DataFrame:
    """Comparisons as a table, one row each; `needed` is a nullable whole number.

    Args:
        comparisons: of one pair of runs, or of several.
    """
    table = pd.DataFrame([asdict(comparison) for comparison in comparisons])
    return table.astype({"needed": "Int64"}) if len(table) else table
