"""An accuracy curve over cut layers: scores per document, checked, stored, and summed up. No model, no torch.

A cut c hides the image from later text in decoder layers >= c: c = L is the unmasked model, c = 0 the blind one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plam_eval.bootstrap import Floats, Reweighted, mean_over_tasks, reweighted
from plam_eval.errors import InputError, ProblemsError
from plam_eval.table_files import read_parquet

OVERALL = "overall"
"""The `task` of rows that are the unweighted mean over tasks."""

_NEEDED = ("task", "doc_id", "cut", "score", "parsable", "kl")
_OPTIONAL = ("group", "metric", "num_layers")
_DOCUMENT = ["task", "doc_id"]
_REMEDY = "restore it from a copy, or measure the curve again"
_SAME = 1e-4  # nats: what rounding may leave of the unmasked model's KL against itself


class CurveError(ProblemsError, ValueError):
    """A table that is no accuracy curve.

    Args:
        *problems: in words.
        origin: what they are problems of.
    """

    def __init__(self, *problems: str, origin: str | None = "accuracy curve") -> None:
        super().__init__(*problems, origin=origin)


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores of the same documents at every evaluated cut.

    Args:
        samples: one row per (task, doc_id, cut). Columns: `task`; `doc_id`; `cut`; `score`, 0 to 1; `parsable`, true,
            false, or missing where an answer has no form to keep; `kl`, nats, of the first answer token's distribution
            against the unmasked model's. Optional: `group`, the cluster of documents of one task that are resampled
            together because they share an image; `metric`, the name of a task's score. Other columns are dropped.
        num_layers: L, the decoder's layers.
        resamples: of the bootstrap.
        seed: of the bootstrap. A task's draws depend on the seed and its name alone.

    Raises:
        CurveError: listing every problem of the table.
    """

    samples: pd.DataFrame
    num_layers: int
    resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", _checked(self.samples, self.num_layers))

    @classmethod
    def read(cls, path: str | Path, **kwargs: Any) -> Curve:
        """Read what `write` wrote.

        Args:
            path: of a parquet file, or of CSV under any other suffix.
            **kwargs: `resamples` and `seed` of the curve.

        Raises:
            CurveError: the file cannot be read, or holds no curve.
        """
        path = Path(path)
        try:
            if path.suffix == ".parquet":
                samples = read_parquet(path, None, _REMEDY)
            else:
                text = {"task": str, "doc_id": str, "group": str, "metric": str}
                # Python's own float is exact; pandas before 3 may miss the last digit, and with it the digest.
                exact = dict.fromkeys(("score", "kl"), lambda word: float(word) if word else math.nan)
                samples = pd.read_csv(
                    path, dtype=text, converters=exact, keep_default_na=False, na_values=_empty_is_missing()
                )
        except (OSError, ValueError) as error:
            raise CurveError(f"cannot be read: {error}", origin=f"accuracy curve {path}") from error
        layers = samples["num_layers"].unique().tolist() if "num_layers" in samples.columns else []
        try:
            if len(layers) != 1 and set(_NEEDED) <= set(samples.columns):
                raise CurveError(f"num_layers: found {layers or 'no such column'}, expected one number in every row")
            return cls(samples, layers[0] if layers else 1, **kwargs)
        except CurveError as error:
            raise CurveError(*error.problems, origin=f"accuracy curve {path}") from None

    def write(self, path: str | Path) -> Path:
        """Write the scores per document; `read` gives back an equal curve.

        Args:
            path: its suffix, .parquet or .csv, says in which format.

        Returns:
            The path.

        Raises:
            InputError: another suffix.
        """
        path = Path(path)
        if path.suffix not in (".csv", ".parquet"):
            raise InputError(f"{path}: found suffix {path.suffix!r}, expected .csv or .parquet")
        samples = self.samples.assign(num_layers=self.num_layers)
        if path.suffix == ".parquet":
            samples.to_parquet(path, index=False)
        else:
            samples.to_csv(path, index=False)
        return path

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Evaluated cuts, ascending; the last is `num_layers`."""
        return tuple(sorted(int(cut) for cut in self.samples["cut"].unique()))

    @cached_property
    def documents(self) -> dict[str, int]:
        """Number of documents by task, tasks in alphabetical order."""
        return {str(task): len(rows) // len(self.cuts) for task, rows in self.samples.groupby("task")}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in alphabetical order."""
        return tuple(self.documents)

    @cached_property
    def clusters(self) -> dict[str, int]:
        """Number of independent documents by task: those of one cluster, which the column `group` names, count once."""
        return {task: int(self._arrays[task][1].max()) + 1 for task in self.tasks}

    @property
    def groups(self) -> dict[str, int]:
        """`clusters`, by its earlier name."""
        return self.clusters

    def only(self, tasks: Iterable[str]) -> Curve:
        """The curve of some tasks.

        Args:
            tasks: their names.

        Raises:
            InputError: a name that no task of this curve has.
        """
        tasks = list(tasks)
        if unknown := [task for task in tasks if task not in self.tasks]:
            raise InputError(f"no task {', '.join(unknown)} in this curve; it has {', '.join(self.tasks)}")
        return Curve(
            self.samples[self.samples["task"].isin(tasks)], self.num_layers, resamples=self.resamples, seed=self.seed
        )

    def digest(self) -> str:
        """SHA-256 (hex) of the scores: two curves with one digest give the same stages."""
        rows = self.samples.drop(columns="metric").to_csv(index=False)
        return hashlib.sha256(f"accuracy-curve/1 {self.num_layers}\n{rows}".encode()).hexdigest()

    def table(self, confidence: float = 0.95) -> pd.DataFrame:
        """The curve to look at: one row per task and cut, and per cut for the mean over tasks, `task` "overall".

        Columns: task, cut, n (documents), metric, accuracy, low, high, difference (accuracy minus that of the unmasked
        model), difference_low, difference_high, parsable (share; missing where no answer has a form), kl (mean, nats),
        kl_median. Overall, every column is the unweighted mean over tasks.

        Args:
            confidence: of the intervals, which are two-sided.
        """
        documents, tail = self.documents, (1 + confidence) / 2
        metric = self.samples.groupby("task")["metric"].first()
        by_cut = self.samples.groupby(["task", "cut"])
        means = by_cut[["score", "parsable", "kl"]].mean().assign(kl_median=by_cut["kl"].median())
        tables = []
        for task in (*self.tasks, OVERALL):
            mean = means.groupby("cut").mean() if task == OVERALL else means.loc[[task]]
            score, resampled = mean["score"].to_numpy(), self.resampled(task)
            gain = resampled.means - resampled.means[:, -1:]
            low, high = resampled.lower(gain, -1, tail), resampled.upper(gain, 1, tail)
            low[-1] = high[-1] = 0.0  # the unmasked model against itself: known, not estimated
            columns = {
                "task": task,
                "cut": self.cuts,
                "n": sum(documents.values()) if task == OVERALL else documents[task],
                "metric": "mean over tasks" if task == OVERALL else metric[task],
                "accuracy": score,
                "low": np.clip(resampled.lower(resampled.means, 0, tail), 0, None),
                "high": np.clip(resampled.upper(resampled.means, 1, tail), None, 1),
                "difference": score - score[-1],
                "difference_low": low,
                "difference_high": high,
                "parsable": mean["parsable"].to_numpy(),
                "kl": mean["kl"].to_numpy(),
                "kl_median": mean["kl_median"].to_numpy(),
            }
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)

    def accuracy(self, task: str = OVERALL) -> Floats:
        """Accuracy at each evaluated cut, (cuts,).

        Args:
            task: a task, or the unweighted mean over all of them.
        """
        if task != OVERALL:
            return np.asarray(self._arrays[task][0].mean(axis=0))
        return np.asarray(np.mean([scores.mean(axis=0) for scores, _ in self._arrays.values()], axis=0))

    def resampled(self, task: str = OVERALL) -> Reweighted:
        """Accuracy at each evaluated cut in resampled documents, `means` of (resamples, cuts).

        Args:
            task: a task, or the unweighted mean over all of them.
        """
        if task != OVERALL:
            return self._by_task[task].with_unseen()
        return mean_over_tasks(self._by_task, self.clusters)

    @cached_property
    def _arrays(self) -> dict[str, tuple[Floats, NDArray[np.intp]]]:
        """By task: scores (documents, cuts) and the number of the cluster that each document is in."""
        arrays = {}
        for task, rows in self.samples.groupby("task"):
            scores = rows["score"].to_numpy().reshape(-1, len(self.cuts))
            first = rows.iloc[:: len(self.cuts)]
            names = ("group " + first["group"]).fillna("document " + first["doc_id"])
            arrays[str(task)] = (scores, pd.factorize(names)[0])
        return arrays

    @cached_property
    def _by_task(self) -> dict[str, Reweighted]:
        """By task: means of reweighted documents (resamples, cuts) and the weight of one unseen cluster."""
        return {
            task: reweighted(scores, cluster, self.resamples, np.random.default_rng([self.seed, *task.encode()]))
            for task, (scores, cluster) in self._arrays.items()
        }


def _empty_is_missing() -> dict[str, list[str]]:
    """pandas' own list of missing values would turn a document called "NA" or "None" into none."""
    return {column: [""] for column in (*_NEEDED, *_OPTIONAL)}


def _checked(samples: pd.DataFrame, num_layers: int) -> pd.DataFrame:
    """The table in one canonical form (columns, types, order of rows); raises CurveError."""
    _check_columns(samples)
    if isinstance(num_layers, bool) or not isinstance(num_layers, int) or num_layers < 1:
        raise CurveError(f"num_layers: found {num_layers!r}, expected a whole number, 1 or more")
    problems = _Problems(samples)
    frame = _typed(samples, problems)
    _check_cells(frame, num_layers, problems)
    frame["cut"] = frame["cut"].astype(int)
    frame["kl"] = frame["kl"].clip(lower=0.0)
    _check_grid(frame, num_layers, problems)
    if problems.texts:
        raise CurveError(*problems.texts)
    for column in ("task", "doc_id", "metric"):
        frame[column] = frame[column].astype(str)
    return frame.sort_values([*_DOCUMENT, "cut"], ignore_index=True)


class _Problems:
    """What is wrong with a table; `texts` grows from step to step, so that all of it is told at once."""

    def __init__(self, samples: pd.DataFrame) -> None:
        self.samples, self.texts = samples, list[str]()

    def of_rows(self, wrong: pd.Series, what: str) -> None:
        if wrong.any():
            row = self.samples[wrong.to_numpy()].iloc[0]
            where = f"document {row['doc_id']} of {row['task']}, cut {row['cut']}"
            self.texts.append(f"{int(wrong.sum())} row(s) with {what}; the first: {where}")


def _check_columns(samples: pd.DataFrame) -> None:
    if missing := [column for column in _NEEDED if column not in samples.columns]:
        problem = f"no column {', '.join(missing)}; found {', '.join(map(str, samples.columns)) or 'none'}"
        if {"accuracy", "low", "high"} <= set(samples.columns):
            problem += "; this is a table of means, expected the scores per document that it was made from"
        raise CurveError(problem)
    if samples.empty:
        raise CurveError("no rows; expected one per task, document and cut")


def _typed(samples: pd.DataFrame, problems: _Problems) -> pd.DataFrame:
    """The columns of a curve, each in its type; what is not of it is missing."""
    return pd.DataFrame(
        {
            "task": samples["task"].astype("string"),
            "doc_id": samples["doc_id"].astype("string"),
            "cut": pd.to_numeric(samples["cut"], errors="coerce"),
            "score": pd.to_numeric(samples["score"], errors="coerce").astype(float),
            "parsable": _parsable(samples["parsable"], problems),
            "kl": pd.to_numeric(samples["kl"], errors="coerce").astype(float),
            "group": samples["group"].astype("string") if "group" in samples.columns else pd.NA,
            "metric": samples["metric"].astype("string") if "metric" in samples.columns else "score",
        }
    ).astype({"group": "string", "metric": "string"})


def _check_cells(frame: pd.DataFrame, num_layers: int, problems: _Problems) -> None:
    """Look at each row by itself; raises CurveError where rows cannot be told apart by task, document and cut."""
    unnamed = frame["task"].isna() | frame["doc_id"].isna() | frame["metric"].isna()
    problems.of_rows(unnamed, "no task, doc_id or metric")
    overall = frame["task"].eq(OVERALL).fillna(False)
    problems.of_rows(overall, f"the task name {OVERALL!r}, which the mean over tasks has")
    whole = frame["cut"].between(0, num_layers) & (frame["cut"] % 1 == 0)
    problems.of_rows(~whole, f"a cut that is no whole number from 0 to {num_layers}")
    problems.of_rows(~frame["score"].between(0, 1), "a score that is missing or outside 0..1")
    measured = frame["kl"].ge(-_SAME) & np.isfinite(frame["kl"])
    problems.of_rows(~measured, "a kl that is missing, infinite or below 0")
    problems.of_rows(
        frame["cut"].eq(num_layers) & frame["kl"].gt(_SAME),
        f"a kl above {_SAME} at cut {num_layers}, which is the unmasked model itself",
    )
    if unnamed.any() or not whole.all():
        raise CurveError(*problems.texts)


def _check_grid(frame: pd.DataFrame, num_layers: int, problems: _Problems) -> None:
    """Look at the rows together: every document once at every cut, in one cluster and by one metric."""
    cuts = sorted(frame["cut"].unique())
    if cuts[-1] != num_layers:
        problems.texts.append(f"no cut {num_layers}, the unmasked model that all others are compared with")
    elif len(cuts) == 1:
        problems.texts.append(f"only cut {num_layers}; expected at least one cut that hides the image somewhere")
    row = [*_DOCUMENT, "cut"]
    problems.of_rows(frame.duplicated(row), "a task, doc_id and cut that an earlier row has")
    counts = frame.drop_duplicates(row).groupby(_DOCUMENT).size()
    if len(partial := counts[counts < len(cuts)].index):
        task, doc_id = partial[0]
        scored = set(frame["cut"][frame["task"].eq(task) & frame["doc_id"].eq(doc_id)])
        problems.texts.append(
            f"{len(partial)} document(s) not scored at every cut; the first: document {doc_id} of {task} lacks "
            + ", ".join(str(cut) for cut in cuts if cut not in scored)
        )
    for column, keys in (("group", _DOCUMENT), ("metric", ["task"])):
        varying = frame.groupby(keys)[column].nunique(dropna=False)
        if len(varying := varying[varying > 1]):
            problems.texts.append(
                f"{column}: more than one for {len(varying)} {keys[-1]}(s); the first: {varying.index[0]}"
            )


def _parsable(values: pd.Series, problems: _Problems) -> pd.Series:
    """True, false or missing, in whichever way a file or a log spells it, as 1, 0 or NaN."""
    words = values.astype("string").str.lower()
    spelt = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
    parsable = words.map(spelt).astype(float)
    strange = words[parsable.isna() & words.notna()]
    if len(strange):
        problems.texts.append(
            f"{len(strange)} row(s) with a parsable that is neither true, false nor missing: {strange.iloc[0]!r}"
        )
    return parsable
