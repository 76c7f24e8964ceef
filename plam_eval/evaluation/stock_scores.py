"""What lmms-eval itself reports of two runs' tasks, of the same documents: difference and paired interval.

The interval is of the stock metric: clusters of documents are drawn with replacement, the same in both runs, and the
metric is made of what was drawn. Where the metric is a function of sums over clusters (`harness.stock_metrics`) that
takes no call of the task's code; else its own aggregation is called for every resample. docs: "Comparing".
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plam_eval.errors import PlamError, first_line
from plam_eval.evaluation.records import Run, clusters_by_content
from plam_eval.harness import tasks as known_tasks
from plam_eval.harness.errors import NoScoreError, RecordError
from plam_eval.harness.run_files import samples_file
from plam_eval.harness.sample_lines import read_samples
from plam_eval.harness.stock_metrics import Floats, Known, Summed, counts_copies, known_metric, parts_of
from plam_eval.terminal import one_line

Log = dict[Any, dict[str, Any]]
"""The lines of a sample log by document."""

LEAST = 6
"""Clusters that have to differ for an interval: fewer lie all on one side of the truth in more than one of 20 draws."""
FEW = 10
"""Clusters below which an interval is marked, and below which subjects (MMMU) are no clusters."""

_LARGEST = 1e300  # of what a results file may say
_CHUNK = 1 << 22  # counts held at once
_CALLS, _LEAST_CALLS = 1_000, 200  # of a task's own aggregation, for one interval
_SECONDS = 60.0  # that these may take


@dataclass(frozen=True)
class StockScore:
    """One metric of one task, of both runs, on the documents that are compared.

    Attributes:
        task, metric: as lmms-eval names them.
        part: of the benchmark, such as "Science", one of MMMU's domains; "" is all of it.
        unit: "share" (0 to 1), "percent" (0 to 100), "points" (MME), or "" where it is not known.
        higher_is_better: as the results say; None where they do not.
        documents: that are compared and log the metric.
        clusters: of documents, that were drawn; `over` says what they are: "clusters", or "documents" where each is one
            of its own.
        differing: of these, in what the metric is made of.
        first, second: the metric in both runs, NaN where it is not known; difference: second minus first.
        low, high: 95 % interval of the difference, NaN where there is none, for the reason `why`.
        resamples: draws behind it.
        complete: whether these are all documents that the results files are of.
        first_stored, second_stored: what the results files say, of all of theirs; NaN where they say nothing.
        note: where a results file says another value than its own entries come to.
    """

    task: str
    metric: str
    part: str = ""
    unit: str = ""
    higher_is_better: bool | None = None
    documents: int = 0
    clusters: int = 0
    over: str = "documents"
    differing: int = 0
    first: float = math.nan
    second: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    resamples: int = 0
    why: str = ""
    complete: bool = True
    first_stored: float = math.nan
    second_stored: float = math.nan
    note: str = ""


def stock_scores(
    first: Run, second: Run, *, confidence: float = 0.95, resamples: int = 10_000
) -> tuple[StockScore, ...]:
    """Every metric that lmms-eval reports of the tasks of two runs, in the order of the first run's results.

    What cannot be had of a task is said in its rows (`why`, `note`); the other tasks stay.

    Args:
        first: a run, such as the plain model's; its sample logs are read again.
        second: the other. Documents compared are those that have a score in both; of a task without such scores, all
            that both have.
        confidence: of the intervals, two-sided, one metric at a time.
        resamples: draws of the bootstrap, where it does not call the task's own aggregation.
    """
    rows: list[StockScore] = []
    for task in first.tasks:
        if task in second.tasks:
            rows += _Task(task, (first, second), confidence, resamples).rows()
    return tuple(rows)


def stock_table(scores: Sequence[StockScore]) -> pd.DataFrame:
    """Stock scores as a table, one row each.

    Args:
        scores: as `stock_scores` gives them.
    """
    return pd.DataFrame([asdict(score) for score in scores])


# --- one task ---------------------------------------------------------------------------------------------------------


class NoIntervalError(PlamError, ValueError):
    """Why there is no interval, or no metric at all."""


class _Task:
    """One task of two runs."""

    def __init__(self, task: str, runs: tuple[Run, Run], confidence: float, resamples: int) -> None:
        self.task, self.runs, self.confidence, self.resamples = task, runs, confidence, resamples
        self.config: Mapping[str, Any] = runs[0].results["configs"].get(task) or {}
        self.filter = known_tasks.headline_filter(task, self.config)
        self.stored = [_reported(run, task, self.filter) for run in runs]
        declared = known_tasks.declared_metrics(self.config).items()
        self.aggregations = {name: known_tasks.function_name(function) for name, function in declared}
        frames = [run.samples[run.samples["task"] == task].set_index("doc_id") for run in runs]
        both = pd.Series(frames[0].index.isin(frames[1].index), index=frames[0].index)
        if not any(task in run.unscored for run in runs):
            both = frames[0]["score"].notna() & frames[1]["score"].reindex(frames[0].index).notna()
        self.samples = frames[0][both].reset_index()

    @cached_property
    def logs(self) -> tuple[Log, Log]:
        """Raises RecordError where a log is not what it was."""
        logs = []
        for run in self.runs:
            log = samples_file(run.file, self.task)
            if not log.is_file():
                raise RecordError(f"{log.name} is no longer there")
            samples = read_samples(log, run.results, self.task, self.filter)
            logs.append({sample["doc_id"]: sample for sample in samples})
            if not logs[-1].keys() >= set(self.samples["doc_id"]):
                raise RecordError(f"{log.name} is no longer the one that was compared")
        return logs[0], logs[1]

    @cached_property
    def own(self) -> Any:
        """The installed task, as `recompute.StockTask`; raises UnavailableError."""
        from plam_eval.harness.recompute import find_task

        return find_task(self.task, self.config)

    def rows(self) -> list[StockScore]:
        """Of every metric, and of the parts that the task reports of it."""
        rows: list[StockScore] = []
        for name in dict.fromkeys([*self.stored[0], *self.stored[1], *self.aggregations]):
            metric = _Metric(self, name)
            try:
                rows += metric.rows()
            except (RecordError, NoIntervalError) as error:
                if metric.reported:
                    rows.append(metric.as_stored(first_line(error)))
        return rows


class _Metric:
    """One metric of a task."""

    def __init__(self, task: _Task, name: str) -> None:
        self.task, self.name = task, name
        self.aggregation = task.aggregations.get(name)
        self.stored = [stored.get(name, math.nan) for stored in task.stored]
        self.reported = not all(map(math.isnan, self.stored))
        try:
            score = known_tasks.score_of_task(task.task, task.config)
        except NoScoreError:
            score = None
        self.known = known_metric(self.aggregation, name, score)
        self.row = StockScore(
            task.task,
            name if task.filter == "none" else f"{name}, {task.filter}",
            unit=(self.known.unit if self.known else "") or known_tasks.unit_of(task.task, name),
            higher_is_better=task.runs[0].higher_is_better.get(task.task, {}).get(name),
            first_stored=self.stored[0],
            second_stored=self.stored[1],
        )
        self.notes: list[str] = []

    @cached_property
    def complete(self) -> bool:
        """Whether all documents of both results files are compared."""
        ids = set(self.task.samples["doc_id"])
        return all(log.keys() == ids for log in self.task.logs)

    @cached_property
    def documents(self) -> pd.DataFrame:
        """The compared documents that log it, as rows of `Run.samples`."""
        logged = [[self.name in log[document] for document in self.task.samples["doc_id"]] for log in self.task.logs]
        if logged[0] != logged[1]:
            raise NoIntervalError("it is logged for other documents in the second run")
        if not any(logged[0]):
            raise NoIntervalError("no document logs it")
        return self.task.samples[np.array(logged[0])].reset_index(drop=True)

    @cached_property
    def entries(self) -> list[list[Any]]:
        """Of both runs, what these documents log."""
        return [[log[document][self.name] for document in self.documents["doc_id"]] for log in self.task.logs]

    def as_stored(self, why: str) -> StockScore:
        """What the results files say, without an interval."""
        first, second = self.stored
        try:
            if not self.complete:
                return replace(self.row, complete=False, why=why)
        except RecordError:  # nothing says that these are other documents
            pass
        return replace(self.row, first=first, second=second, difference=second - first, why=why)

    def rows(self) -> list[StockScore]:
        """The metric, and what its task reports of parts of it."""
        row = replace(self.row, documents=len(self.documents), complete=self.complete)
        if self.known is None:
            return [self._by_calls(row)]
        summed = self._summed(self.known, self.entries, self.documents)
        values = self._checked(self.known, summed)
        rows = [self._with_interval(replace(row, note="; ".join(self.notes)), summed, values, self.documents)]
        part_of = parts_of(self.aggregation)
        parts = [part_of(entry) for entry in self.entries[0]]
        for part in dict.fromkeys(part for part in parts if part is not None):
            chosen = np.array([each == part for each in parts])
            entries = [[entry for entry, own in zip(run, chosen, strict=True) if own] for run in self.entries]
            documents = self.documents[chosen].reset_index(drop=True)
            own = replace(row, part=part, documents=len(documents), first_stored=math.nan, second_stored=math.nan)
            made = self._summed(self.known, entries, documents)
            rows.append(self._with_interval(own, made, made.of_all(), documents))
        return rows

    def _summed(self, known: Known, entries: Sequence[Sequence[Any]], documents: pd.DataFrame) -> Summed:
        try:
            return known.sums(entries, pd.factorize(_clusters(documents))[0])
        except Exception as error:  # entries may be of any shape, and lmms-eval's own scoring reads some
            raise NoIntervalError(f"its entries are not as they are known ({first_line(error)})") from error

    def _checked(self, known: Known, summed: Summed) -> Floats:
        """The metric of both runs, once it is known that it is had of sums rightly."""
        from plam_eval.harness.recompute import UnavailableError

        values = summed.of_all()
        for number, (log, stored) in enumerate(zip(self.task.logs, self.stored, strict=True)):
            whole = [sample[self.name] for sample in log.values() if self.name in sample]
            own = float(values[number])
            if not self.complete:
                own = float(self._summed(known, [whole], pd.DataFrame({"group": [""] * len(whole)})).of_all()[0])
            if _close(own, stored, summed.exact):
                if self.complete:
                    values[number] = stored  # to the last digit
                continue
            which = ("first", "second")[number]
            said = "does not have it" if math.isnan(stored) else f"says {stored:.6g}"
            try:
                [value] = self.task.own.again(self.name, [whole])
            except UnavailableError as error:
                raise NoIntervalError(
                    f"the {which} run's entries come to {own:.6g}, its results file {said}, and {error}"
                ) from error
            if not _close(own, value, summed.exact):
                raise NoIntervalError(
                    f"the {which} run's entries come to {value:.6g} by the installed aggregation, which is not as it "
                    f"is known ({own:.6g}); its results file {said}"
                )
            self.notes.append(f"the {which} run's results file {said}, its entries come to {value:.6g}")
        return values

    def _with_interval(self, row: StockScore, summed: Summed, values: Floats, documents: pd.DataFrame) -> StockScore:
        first, second = (float(value) for value in values)
        clusters = _clusters(documents)
        row = replace(row, first=first, second=second, difference=second - first)
        row = replace(row, clusters=clusters.nunique(), over=_over(clusters))
        row = replace(row, differing=int((summed.totals[0] != summed.totals[1]).any(axis=-1).sum()))
        try:
            _check_differing(row)
            seed = [2, *row.task.encode(), *row.metric.encode(), *row.part.encode()]
            generator = np.random.default_rng(seed)
            low, high = paired_interval(
                summed, generator, confidence=self.task.confidence, resamples=self.task.resamples
            )
        except NoIntervalError as error:
            return replace(row, why=str(error))
        return replace(row, low=low, high=high, resamples=self.task.resamples)

    def _by_calls(self, row: StockScore) -> StockScore:
        """By the task's own aggregation, called again and again."""
        from plam_eval.harness.recompute import UnavailableError

        if not counts_copies(self.aggregation):
            how = f" ({self.aggregation})" if self.aggregation else ""
            raise NoIntervalError(f"how its aggregation{how} counts a document that is drawn twice is not known")
        clusters = _clusters(self.documents)
        differ = [one != other for one, other in zip(*self.entries, strict=True)]
        row = replace(row, clusters=clusters.nunique(), over=_over(clusters), differing=clusters[differ].nunique())
        try:
            own = [float(self.task.own.again(self.name, [entries])[0]) for entries in self.entries]
            row = replace(row, first=own[0], second=own[1], difference=own[1] - own[0])
            for which, stored, value in zip(("first", "second"), self.stored, own, strict=True):
                if self.complete and not _close(stored, value, 1e-9):
                    self.notes.append(f"the {which} run's results file says {stored:.6g}, its entries {value:.6g}")
            _check_differing(row)
            cluster = pd.factorize(clusters)[0]
            made = _by_calls(self.task.own, self.name, self.entries, cluster, self.task.confidence)
        except UnavailableError as error:
            raise NoIntervalError(str(error)) from error
        except NoIntervalError as error:
            return replace(row, why=str(error), note="; ".join(self.notes))
        return replace(row, low=made[0], high=made[1], resamples=made[2], note="; ".join(self.notes))


def _reported(run: Run, task: str, filter_name: str) -> dict[str, float]:
    """Metric -> value, of one filter, as a results file has them."""
    stored = (run.results.get("results") or {}).get(task) or {}
    named = {str(key).rpartition(",")[::2]: value for key, value in stored.items() if "_stderr" not in str(key)}
    return {
        metric: float(value)
        for (metric, own), value in named.items()
        if metric and own == filter_name and type(value) in (int, float) and abs(value) < _LARGEST
    }


def _close(one: float, other: float, exact: float) -> bool:
    return abs(one - other) <= exact * max(1.0, abs(other))


def _clusters(documents: pd.DataFrame) -> pd.Series:
    """The clusters that the paired test has, but for a few subjects: these are what was asked about, and no sample."""
    groups = documents["group"]
    if groups.nunique() < FEW and groups.str.startswith("subject ").any():
        return clusters_by_content(documents)
    return groups


def _over(clusters: pd.Series) -> str:
    return "documents" if clusters.is_unique else "clusters"


def _check_differing(row: StockScore) -> None:
    """Raises NoIntervalError where too few clusters differ."""
    if row.differing < LEAST:
        some = f"only {row.differing} differ{'' if row.differing > 1 else 's'}"
        raise NoIntervalError(some if row.differing else f"no {row.over.removesuffix('s')} differs")


# --- drawing ----------------------------------------------------------------------------------------------------------


def paired_interval(
    summed: Summed, generator: np.random.Generator, *, confidence: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """Of a metric's difference, the second run's minus the first's: percentiles over resamples of clusters.

    Args:
        summed: the metric of two runs.
        generator: of the resamples.
        confidence: two-sided.
        resamples: so many.

    Raises:
        NoIntervalError: resamples do not say it.
    """
    differences = resampled_differences(summed, generator, resamples)
    return _between(differences, summed.totals.shape[1], confidence)


def resampled_differences(summed: Summed, generator: np.random.Generator, resamples: int) -> Floats:
    """(resamples,), the difference of a metric, the second run's minus the first's, in resamples of the clusters.

    Args:
        summed: the metric of two runs.
        generator: of the resamples.
        resamples: so many.
    """
    runs, clusters, columns = summed.totals.shape
    rows = np.moveaxis(summed.totals, 0, 1).reshape(clusters, runs * columns)
    kinds, counts = np.unique(rows, axis=0, return_counts=True)  # clusters that are alike are drawn as one kind
    differences = np.empty(resamples)
    step = max(1, _CHUNK // len(kinds))
    for start in range(0, resamples, step):
        drawn = generator.multinomial(clusters, counts / clusters, size=min(step, resamples - start))
        values = summed.value((drawn @ kinds).reshape(len(drawn), runs, columns))
        differences[start : start + step] = values[:, 1] - values[:, 0]
    return differences


def _by_calls(
    task: Any, name: str, entries: Sequence[Sequence[Any]], cluster: NDArray[np.intp], confidence: float
) -> tuple[float, float, int]:
    """Likewise, by calling the task's own aggregation; and how many resamples there were."""
    began = time.monotonic()
    task.again(name, [entries[0]])
    calls = min(_CALLS, int(_SECONDS / 2 / max(time.monotonic() - began, 1e-6)))
    if calls < _LEAST_CALLS:
        raise NoIntervalError(
            f"one call of its aggregation takes {time.monotonic() - began:.1f} seconds, and an interval takes "
            f"{2 * _LEAST_CALLS} calls"
        )
    generator = np.random.default_rng([2, *name.encode()])
    members = [np.flatnonzero(cluster == number) for number in range(int(cluster.max()) + 1)]
    drawn = [
        np.concatenate([members[number] for number in generator.integers(0, len(members), len(members))])
        for _ in range(calls)
    ]
    first, second = (np.array(_called(task, name, own, drawn)) for own in entries)
    return (*_between(second - first, len(members), confidence), calls)


def _called(task: Any, name: str, entries: Sequence[Any], drawn: Sequence[NDArray[np.intp]]) -> list[float]:
    """The metric of every resample of one run."""
    from tqdm import tqdm

    from plam_eval.harness.recompute import time_limit

    progress = tqdm(drawn, desc=f"resamples of {one_line(name)}", leave=False)  # here: in there output is silenced
    with time_limit(_SECONDS):
        values: list[float] = task.again(name, ([entries[index] for index in rows] for rows in progress))
    return values


def _between(differences: Floats, clusters: int, confidence: float) -> tuple[float, float]:
    """Percentiles, further out where there are few clusters (Hesterberg 2015)."""
    from scipy import stats

    if np.isnan(differences).any():
        raise NoIntervalError("some resamples hold no document that it is made of")
    if not np.ptp(differences) > 1e-12 * max(1.0, float(np.abs(differences).max())):
        raise NoIntervalError("all resamples have one difference")
    quantile = stats.t.ppf((1 + confidence) / 2, clusters - 1)
    tail = float(stats.norm.cdf(-math.sqrt(clusters / (clusters - 1)) * quantile))
    low, high = np.quantile(differences, [tail, 1 - tail])
    return float(low), float(high)
