"""An accuracy curve over cut layers -> the three stages -> a `PlateauSpec`. Pure arithmetic: no model, no torch.

A cut c hides the image from later text in decoder layers >= c: c = L is the unmasked model, c = 0 the blind one. The
definitions, and which of them are our own, are on the docs page "Finding the plateau".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from plam_eval.bootstrap import Floats, Reweighted, mean_over_tasks, reweighted
from plam_eval.errors import InputError, PlamError
from plam_eval.spec import GROUPS, PlateauSpec, Weights, load_spec

OVERALL = "overall"  # the `task` of rows that are the unweighted mean over tasks

# Mean KL (nats) under which hiding the image counts as no change: the default of VTW's code (arXiv 2405.05803), which
# sets 0.0005 and 0.0001 for two models. It is an opinion beside the accuracy rule, never part of it.
KL_THRESHOLD = 0.003

_NEEDED = ("task", "doc_id", "cut", "score", "parsable", "kl")
_OPTIONAL = ("group", "metric", "num_layers")
_SAME = 1e-4  # nats: what rounding may leave of the unmasked model's KL against itself


_FAIR = 0.8  # the chance that `what_can_be_found` speaks of
# Where nine in ten changes are the same at the next cut, each further cut is so much of a first: plateau_power.py.
_ALIKE = 0.2
_ALL_CUTS = "up to about four times as many for a good one at eight late cuts"  # simulated, as above


class CurveError(PlamError, ValueError):
    """A table that is no accuracy curve. The message lists every problem; `problems` holds them one by one."""

    def __init__(self, problems: list[str], origin: str = "accuracy curve") -> None:
        self.problems = problems
        super().__init__(f"{origin}: {len(problems)} problem(s)\n" + "\n".join(f"  - {p}" for p in problems))


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores of the same documents at every evaluated cut.

    Args:
        samples: one row per (task, doc_id, cut). Columns: `task`; `doc_id`; `cut`; `score`, 0 to 1; `parsable`, true,
            false, or missing where an answer has no form to keep; `kl`, nats, of the first answer token's distribution
            against the unmasked model's. Optional: `group`, documents of one task that are resampled together because
            they share an image; `metric`, the name of a task's score. Other columns are dropped.
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
        """Read what `write` wrote. Raises CurveError when it cannot be read or is no curve."""
        path = Path(path)
        try:
            if path.suffix == ".parquet":
                samples = pd.read_parquet(path)
            else:
                text = {"task": str, "doc_id": str, "group": str, "metric": str}
                # Python's own float is exact; pandas before 3 may miss the last digit, and with it the digest.
                exact = dict.fromkeys(("score", "kl"), lambda word: float(word) if word else math.nan)
                samples = pd.read_csv(
                    path, dtype=text, converters=exact, keep_default_na=False, na_values=_empty_is_missing()
                )
        except (OSError, ValueError) as error:
            raise CurveError([f"cannot be read: {error}"], f"accuracy curve {path}") from error
        layers = samples["num_layers"].unique().tolist() if "num_layers" in samples.columns else []
        try:
            if len(layers) != 1 and set(_NEEDED) <= set(samples.columns):
                raise CurveError([f"num_layers: found {layers or 'no such column'}, expected one number in every row"])
            return cls(samples, layers[0] if layers else 1, **kwargs)
        except CurveError as error:
            raise CurveError(error.problems, f"accuracy curve {path}") from None

    def write(self, path: str | Path) -> Path:
        """Write the scores per document, as parquet or CSV by suffix; `read` gives back an equal curve."""
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
        return tuple(self.documents)

    @cached_property
    def groups(self) -> dict[str, int]:
        """Number of independent documents by task: those that share a `group` count once."""
        return {task: int(self._arrays[task][1].max()) + 1 for task in self.tasks}

    def only(self, tasks: Iterable[str]) -> Curve:
        """The curve of some tasks."""
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
        kl_median. Intervals are two-sided at `confidence`. Overall, every column is the unweighted mean over tasks.
        """
        documents, tail = self.documents, (1 + confidence) / 2
        metric = self.samples.groupby("task")["metric"].first()
        by_cut = self.samples.groupby(["task", "cut"])
        means = by_cut[["score", "parsable", "kl"]].mean().assign(kl_median=by_cut["kl"].median())
        parts = []
        for task in (*self.tasks, OVERALL):
            mean = means.groupby("cut").mean() if task == OVERALL else means.loc[[task]]
            score, resampled = mean["score"].to_numpy(), self._resampled(task)
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
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def _arrays(self) -> dict[str, tuple[Floats, NDArray[np.intp]]]:
        """By task: scores (documents, cuts) and the number of the group that each document is in."""
        arrays = {}
        for task, rows in self.samples.groupby("task"):
            scores = rows["score"].to_numpy().reshape(-1, len(self.cuts))
            first = rows.iloc[:: len(self.cuts)]
            names = ("group " + first["group"]).fillna("document " + first["doc_id"])
            arrays[str(task)] = (scores, pd.factorize(names)[0])
        return arrays

    @cached_property
    def _by_task(self) -> dict[str, Reweighted]:
        """By task: means of reweighted documents (resamples, cuts) and the weight of one unseen group."""
        return {
            task: reweighted(scores, group, self.resamples, np.random.default_rng([self.seed, *task.encode()]))
            for task, (scores, group) in self._arrays.items()
        }

    def _resampled(self, task: str) -> Reweighted:
        if task != OVERALL:
            return self._by_task[task].with_unseen()
        return mean_over_tasks(self._by_task, self.groups)


def _empty_is_missing() -> dict[str, list[str]]:
    """pandas' own list of missing values would turn a document called "NA" or "None" into none."""
    return {column: [""] for column in (*_NEEDED, *_OPTIONAL)}


def _checked(samples: pd.DataFrame, num_layers: int) -> pd.DataFrame:
    """The table in one canonical form (columns, types, order of rows); raises CurveError."""
    if missing := [column for column in _NEEDED if column not in samples.columns]:
        problem = f"no column {', '.join(missing)}; found {', '.join(map(str, samples.columns)) or 'none'}"
        if {"accuracy", "low", "high"} <= set(samples.columns):
            problem += "; this is a table of means, expected the scores per document that it was made from"
        raise CurveError([problem])
    if samples.empty:
        raise CurveError(["no rows; expected one per task, document and cut"])

    if isinstance(num_layers, bool) or not isinstance(num_layers, int) or num_layers < 1:
        raise CurveError([f"num_layers: found {num_layers!r}, expected a whole number, 1 or more"])

    problems: list[str] = []
    frame = pd.DataFrame(
        {
            "task": samples["task"].astype("string"),
            "doc_id": samples["doc_id"].astype("string"),
            "cut": pd.to_numeric(samples["cut"], errors="coerce"),
            "score": pd.to_numeric(samples["score"], errors="coerce").astype(float),
            "parsable": _share(samples["parsable"], problems),
            "kl": pd.to_numeric(samples["kl"], errors="coerce").astype(float),
            "group": samples["group"].astype("string") if "group" in samples.columns else pd.NA,
            "metric": samples["metric"].astype("string") if "metric" in samples.columns else "score",
        }
    ).astype({"group": "string", "metric": "string"})

    def complain(wrong: pd.Series, what: str) -> None:
        if wrong.any():
            row = samples[wrong.to_numpy()].iloc[0]
            where = f"document {row['doc_id']} of {row['task']}, cut {row['cut']}"
            problems.append(f"{int(wrong.sum())} row(s) with {what}; the first: {where}")

    unnamed = frame["task"].isna() | frame["doc_id"].isna() | frame["metric"].isna()
    complain(unnamed, "no task, doc_id or metric")
    complain(frame["task"].eq(OVERALL).fillna(False), f"the task name {OVERALL!r}, which the mean over tasks has")
    whole = frame["cut"].between(0, num_layers) & (frame["cut"] % 1 == 0)
    complain(~whole, f"a cut that is no whole number from 0 to {num_layers}")
    complain(~frame["score"].between(0, 1), "a score that is missing or outside 0..1")
    complain(~(frame["kl"].ge(-_SAME) & np.isfinite(frame["kl"])), "a kl that is missing, infinite or below 0")
    complain(
        frame["cut"].eq(num_layers) & frame["kl"].gt(_SAME),
        f"a kl above {_SAME} at cut {num_layers}, which is the unmasked model itself",
    )
    if unnamed.any() or not whole.all():
        raise CurveError(problems)

    frame["cut"] = frame["cut"].astype(int)
    frame["kl"] = frame["kl"].clip(lower=0.0)
    cuts = sorted(frame["cut"].unique())
    if cuts[-1] != num_layers:
        problems.append(f"no cut {num_layers}, the unmasked model that all others are compared with")
    elif len(cuts) == 1:
        problems.append(f"only cut {num_layers}; expected at least one cut that hides the image somewhere")
    document = ["task", "doc_id"]
    complain(frame.duplicated([*document, "cut"]), "a task, doc_id and cut that an earlier row has")
    counts = frame.drop_duplicates([*document, "cut"]).groupby(document).size()
    if len(partial := counts[counts < len(cuts)].index):
        task, doc_id = partial[0]
        has = set(frame["cut"][frame["task"].eq(task) & frame["doc_id"].eq(doc_id)])
        problems.append(
            f"{len(partial)} document(s) not scored at every cut; the first: document {doc_id} of {task} lacks "
            + ", ".join(str(cut) for cut in cuts if cut not in has)
        )
    for column, keys in (("group", document), ("metric", ["task"])):
        varying = frame.groupby(keys)[column].nunique(dropna=False)
        if len(varying := varying[varying > 1]):
            problems.append(f"{column}: more than one for {len(varying)} {keys[-1]}(s); the first: {varying.index[0]}")
    if problems:
        raise CurveError(problems)
    frame["task"], frame["doc_id"] = frame["task"].astype(str), frame["doc_id"].astype(str)
    frame["metric"] = frame["metric"].astype(str)
    return frame.sort_values([*document, "cut"], ignore_index=True)


def _share(values: pd.Series, problems: list[str]) -> pd.Series:
    """True, false or missing, in whichever way a file or a log spells it, as 1, 0 or NaN."""
    words = values.astype("string").str.lower()
    known = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
    share = words.map(known).astype(float)
    strange = words[share.isna() & words.notna()]
    if len(strange):
        problems.append(
            f"{len(strange)} row(s) with a parsable that is neither true, false nor missing: {strange.iloc[0]!r}"
        )
    return share


# Why there is, or is not, a plateau. In words: `Stages.reason`.
Outcome = Literal[
    "plateau",
    "image_not_needed",  # blind, too, is as good as unmasked
    "image_gain_not_shown",  # unmasked is not shown to be better than blind
    "image_used_to_the_end",  # hiding the image from the last layers alone costs more than the margin
    "too_few_documents",  # the intervals are too wide for the margin
    "rise_not_seen",  # every evaluated cut is as good as unmasked, and blind was not evaluated
]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Stages(_Record):
    """The stages of one curve. With e = `separation_end` and k = `plateau[0]`, decoder layers [0, e) are modal
    separation, [e, k) modal alignment, [k, L) modal degradation, the plateau.

    Attributes:
        num_layers: L.
        cuts: those evaluated.
        outcome, reason: whether there is a plateau and why, for programs and for readers.
        plateau: (k, L), or None.
        plateau_after: the evaluated cut before k; the first layer of the plateau lies in (plateau_after, k].
        separation_end: e, or None where there is no plateau or cut 0 was not evaluated.
        separation_before: the evaluated cut after e; the end of separation lies in [e, separation_before).
        accuracy: mean over tasks of the unmasked model, at k (`plateau`) and of the blind one (`blind`).
        loss: accuracy at k minus unmasked (`difference`) and its one-sided lower bound (`lower`); None as `plateau`.
        margin, confidence: of the rule; confidence is one-sided.
        kl_cut: the KL rule's k; `num_layers` where it finds no plateau.
        kl_threshold: its threshold, nats.
        documents: by task.
        curve_digest: `Curve.digest` of the curve they were found on.
        warnings: what a reader should know before using the plateau.
    """

    num_layers: int
    cuts: tuple[int, ...]
    outcome: Outcome
    reason: str
    plateau: tuple[int, int] | None
    plateau_after: int | None
    separation_end: int | None
    separation_before: int | None
    accuracy: dict[str, float]
    loss: dict[str, float] | None
    margin: float
    confidence: float
    kl_cut: int
    kl_threshold: float
    documents: dict[str, int]
    curve_digest: str
    warnings: tuple[str, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Stages:
        if (self.outcome == "plateau") != (self.plateau is not None):
            raise ValueError(f"outcome is {self.outcome!r} and plateau is {self.plateau}")
        if self.plateau and not (self.plateau[0] in self.cuts and self.plateau[0] < self.plateau[1] == self.num_layers):
            raise ValueError(f"plateau is {self.plateau}, expected [k, {self.num_layers}), k among the cuts")
        return self

    def stage_from(self, cut: int) -> str:
        """The stage of the layers from this cut to the next: "separation", "alignment", "plateau", "" if unknown."""
        if self.plateau is None or cut == self.num_layers:
            return ""
        if cut >= self.plateau[0]:
            return "plateau"
        return "separation" if self.separation_end is not None and cut < self.separation_end else "alignment"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields; `from_dict` reads them back to equal stages."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Stages:
        """Raises ValueError when a field is missing, unknown or of the wrong kind."""
        return cls.model_validate(dict(fields))


def percent(confidence: float) -> str:
    """A confidence in words: 95%, 99.9%; never rounded up to 100%."""
    return f"{100 * confidence:.10g}%"


def check_criteria(margin: float, confidence: float, kl_threshold: float = KL_THRESHOLD) -> None:
    """Raise InputError for criteria that `find_plateau` cannot use; a scan asks before it answers anything."""
    if not 0 < margin < 1:
        raise InputError(f"margin: found {margin}, expected a share of accuracy, between 0 and 1")
    if not 0.5 < confidence < 1:
        raise InputError(f"confidence: found {confidence}, expected a number between 0.5 and 1")
    if not kl_threshold >= 0:
        raise InputError(f"kl_threshold: found {kl_threshold}, expected 0 nats or more")


def find_plateau(
    curve: Curve, *, margin: float = 0.02, confidence: float = 0.95, kl_threshold: float = KL_THRESHOLD
) -> Stages:
    """The stages of a curve, from the mean over its tasks.

    The plateau starts at the smallest cut k such that every evaluated cut >= k is not worse than the unmasked model by
    `margin`: the one-sided lower bound of the paired difference lies above -margin. Separation ends at the largest cut
    e such that every evaluated cut <= e is not better than blind by `margin`: the upper bound lies below it. There is a
    plateau only if the image is shown to be needed: the upper bound of blind minus unmasked lies below 0.

    Args:
        margin: in accuracy, 0 to 1.
        confidence: of each one-sided bound, 0.5 to 1. Cuts are tested in a fixed order up to the first failure, so it
            is also the confidence of "every cut from k on", without a correction (Maurer, Hothorn and Lehmacher 1995).
        kl_threshold: nats, for the second opinion: the smallest cut from which on the mean KL stays at or under it.
    """
    check_criteria(margin, confidence, kl_threshold)
    facts = _Facts(curve, margin, confidence)
    cuts, first = curve.cuts, facts.first
    k = cuts[first]
    outcome, reason = _outcome(facts)
    warnings: list[str] = []
    end = before = None
    if outcome == "plateau":
        if cuts[0] == 0:
            calm = [c < margin for c in facts.over_blind_upper[1:first]]  # up to k: what follows is the plateau
            last = calm.index(False) if False in calm else len(calm)
            end, before = cuts[last], cuts[last + 1]
        else:
            warnings.append("cut 0 was not evaluated: chance is not known, nor is the end of the separation stage")
        warnings += _warnings(facts)
    kl = curve.samples.groupby(["task", "cut"])["kl"].mean().groupby("cut").mean().to_numpy()
    found = outcome == "plateau"
    accuracy = {"unmasked": facts.accuracy[-1]}
    if found:
        accuracy["plateau"] = facts.accuracy[first]
    if cuts[0] == 0:
        accuracy["blind"] = facts.accuracy[0]
    return Stages(
        num_layers=curve.num_layers,
        cuts=cuts,
        outcome=outcome,
        reason=reason,
        plateau=(k, curve.num_layers) if found else None,
        plateau_after=cuts[first - 1] if found else None,
        separation_end=end,
        separation_before=before,
        accuracy={name: round(float(value), 6) for name, value in accuracy.items()},
        loss={"difference": round(float(facts.gain[first]), 6), "lower": round(float(facts.lower[first]), 6)}
        if found
        else None,
        margin=margin,
        confidence=confidence,
        kl_cut=cuts[_first_of_run(kl <= kl_threshold)],
        kl_threshold=kl_threshold,
        documents=curve.documents,
        curve_digest=curve.digest(),
        warnings=tuple(warnings),
    )


def _first_of_run(holds: NDArray[np.bool_]) -> int:
    """Index from which on all hold; that of the last (the unmasked model, for which both rules hold) at most."""
    fails = np.flatnonzero(~holds[:-1])
    return int(fails[-1]) + 1 if len(fails) else 0


def _least(tasks: int, margin: float, confidence: float) -> int:
    """In each task, how many documents let a bound lie within the margin when no score differs at all."""
    reach = margin * tasks  # one task alone may lose this much
    return 1 if reach >= 1 else math.floor(math.log(1 - confidence) / math.log1p(-reach)) + 1


def chance(
    documents: Mapping[str, int], changed: float, margin: float = 0.02, confidence: float = 0.95, *, late: int = 8
) -> tuple[float, float]:
    """Chance that `find_plateau` finds the true plateau: that every late cut is shown to be within the margin.

    For right or wrong answers of which a share `changed` is other than the unmasked model's at each late cut, for the
    better as often as for the worse, so that gained and lost are Poisson counts; the bound that they give, from its
    first three moments (Cornish and Fisher 1938). `benchmarks/plateau_power.py` simulates the rule itself beside it;
    docs: "Finding the plateau".

    Args:
        documents: independent documents by task.
        late: evaluated cuts from the true plateau on, the unmasked model aside.

    Returns:
        Where changes are independent from cut to cut, and where nine in ten are the same at the next cut.
    """
    sizes = np.array(list(documents.values()), dtype=float)
    if not len(sizes) or sizes.min() < _least(len(sizes), margin, confidence):
        return 0.0, 0.0
    number = len(sizes) ** 2 / float(np.sum(1 / sizes))  # documents in all, were all tasks of one size
    one = _passes(number, number / (len(sizes) * sizes.min()), changed, margin, confidence)
    return one**late, one ** (1 + _ALIKE * (late - 1))


def _passes(documents: float, unseen: float, changed: float, margin: float, confidence: float) -> float:
    """Chance that one cut is shown to be within the margin; `unseen`: what the unseen document counts for."""
    if changed == 0:
        return 1.0  # there are enough documents for that
    mean, z = documents * changed / 2, NormalDist().inv_cdf(confidence)
    if mean > 1000:  # normal, and too many counts to go through
        reach = documents * margin - unseen - z * math.sqrt(2 * mean + unseen**2)
        return NormalDist().cdf(reach / math.sqrt(2 * mean))
    counts = np.arange(math.ceil(mean + 8 * math.sqrt(mean)) + 1)
    share = np.exp(counts * math.log(mean) - mean - np.array([math.lgamma(count + 1) for count in counts]))
    lost, gained = counts[:, None], counts[None]
    variance, skew = lost + gained + unseen**2, 2 * (lost - gained + unseen**3)
    bound = lost - gained + unseen + z * np.sqrt(variance) + (z**2 - 1) / 6 * skew / variance
    return min(1.0, float(share @ (bound < documents * margin) @ share))


def what_can_be_found(
    documents: Mapping[str, int], margin: float = 0.02, confidence: float = 0.95, *, late: int = 8
) -> list[str]:
    """What a scan of so many documents can find, in sentences; before a model has answered any.

    Args:
        documents: independent documents by task: those that share an image count once.
        margin, confidence: of `find_plateau`.
        late: cuts that the true plateau is taken to have; see `chance`.
    """
    if not documents:
        return []
    enough, task = _least(len(documents), margin, confidence), min(documents, key=documents.__getitem__)
    rule = f"margin {margin:g}, {percent(confidence)} confidence"
    if documents[task] < enough:
        return [
            f"{documents[task]} documents of {task} cannot show a plateau even where no answer changes: at least "
            f"{enough} in each task are needed ({rule})."
        ]
    limits = []
    for which in (0, 1):
        low, high = 0.0, 0.5  # bisection: the more answers change, the smaller the chance
        for _ in range(12):
            middle = (low + high) / 2
            fine = chance(documents, middle, margin, confidence, late=late)[which] >= _FAIR
            low, high = (middle, high) if fine else (low, middle)
        limits.append(low)
    independently, alike = (f"{100 * limit:.1f} %" for limit in limits)
    tasks, cuts = "task" if len(documents) == 1 else "tasks", "cut" if late == 1 else "cuts"
    return [
        f"{sum(documents.values())} documents of {len(documents)} {tasks} (those on one image count as one) find a "
        f"plateau of {late} {cuts} in four scans of five if, at each of them, up to about {independently} of the "
        f"answers change, independently from cut to cut, or {alike}, nine in ten of them the same at the next cut "
        f"({rule}).",
        "Where more change, it is found too late or not at all. A guide, from simulated right or wrong answers.",
    ]


class _Facts:
    """What the rule looks at, for the mean over tasks; arrays are over the evaluated cuts, the last one unmasked."""

    def __init__(self, curve: Curve, margin: float, confidence: float) -> None:
        self.curve, self.margin, self.confidence = curve, margin, confidence
        resampled = self.resampled = curve._resampled(OVERALL)
        scores = [array.mean(axis=0) for array, _ in curve._arrays.values()]
        self.accuracy: Floats = np.mean(scores, axis=0)
        self.gain = self.accuracy - self.accuracy[-1]
        gain, over_blind = resampled.means - resampled.means[:, -1:], resampled.means - resampled.means[:, :1]
        self.lower = resampled.lower(gain, -1, confidence)
        self.upper = resampled.upper(gain, 1, confidence)
        self.over_blind_upper = resampled.upper(over_blind, 1, confidence)
        self.first = _first_of_run(self.lower > -margin)

    @property
    def groups(self) -> int:
        """Independent documents of the task with the fewest."""
        return min(self.curve.groups.values())

    def groups_for(self, half_width: float, needed: float) -> str:
        """In words, how many documents would narrow a bound to `needed`: widths go with one over the square root.

        So many give an even chance: the difference that is found then falls on either side as often.
        """
        if needed <= 0:
            return "no number of documents would help if the difference is what it looks like"
        number = max(
            self.groups * (half_width / needed) ** 2, _least(len(self.curve.tasks), self.margin, self.confidence)
        )
        if number > 1e6:
            return "more than a million documents would be needed if the difference is what it looks like"
        digits = max(0, len(str(math.ceil(number))) - 2)
        return f"about {math.ceil(number / 10**digits) * 10**digits} in each task would be needed"


def _outcome(facts: _Facts) -> tuple[Outcome, str]:
    curve, cuts, margin = facts.curve, facts.curve.cuts, facts.margin
    first, sure = facts.first, percent(facts.confidence)
    least = f"{facts.groups} independent documents in the smallest task"

    def at(index: int) -> str:
        return (
            f"{facts.accuracy[index]:.3f} against {facts.accuracy[-1]:.3f} unmasked "
            f"(difference {facts.gain[index]:+.3f}, one-sided {sure} bounds {facts.lower[index]:+.3f} and "
            f"{facts.upper[index]:+.3f}; margin {margin:g})"
        )

    if cuts[0] == 0 and facts.lower[0] > -margin:
        compared = "better than" if facts.lower[0] > 0 else "as good as"
        return (
            "image_not_needed",
            f"no plateau can be located: the blind model (cut 0) is {compared} the unmasked one, {at(0)}; choose tasks "
            "that need the image",
        )
    if first == len(cuts) - 1:
        last = first - 1
        where = f"at cut {cuts[last]}, the last evaluated before {cuts[-1]}, accuracy is {at(last)}"
        if facts.upper[last] < -margin:
            hint = "" if cuts[last] == curve.num_layers - 1 else "; evaluate the cuts in between"
            return "image_used_to_the_end", f"no plateau: {where}, so the image is used up to the last layers{hint}"
        if facts.groups < (enough := _least(len(curve.tasks), margin, facts.confidence)):
            number = f"at least {enough} in each task are needed"
            tell = f"{least} cannot show a difference smaller than the margin even where no answer changes"
            return "too_few_documents", f"cannot tell: {tell}; {number}"
        if facts.gain[last] < -margin:  # looks worse than the margin; shown it would be image_used_to_the_end
            number = facts.groups_for(facts.upper[last] - facts.gain[last], -margin - facts.gain[last])
        else:
            number = facts.groups_for(facts.gain[last] - facts.lower[last], facts.gain[last] + margin)
            if last > 0 and number.startswith("about"):
                number += f", as a guide, for an even chance at this cut alone, and {_ALL_CUTS}"
        return "too_few_documents", f"cannot tell: {where}, neither within the margin nor beyond it; {number} ({least})"
    if first == 0:
        return (
            "rise_not_seen",
            f"no plateau can be located: every evaluated cut is as good as unmasked, the smallest, {cuts[0]}, with "
            f"{at(0)}; evaluate smaller cuts, 0 among them",
        )
    if cuts[0] == 0 and facts.upper[0] >= 0:
        number = facts.groups_for(facts.upper[0] - facts.gain[0], -facts.gain[0])
        return (
            "image_gain_not_shown",
            f"no plateau can be located: the image is not shown to help, blind accuracy is {at(0)}; {number} "
            f"({least}), or tasks that need the image",
        )
    k = cuts[first]
    return (
        "plateau",
        f"from cut {k} on, no evaluated cut is worse than unmasked by the margin: at cut {k} accuracy is {at(first)}",
    )


def _warnings(facts: _Facts) -> list[str]:
    """What qualifies a plateau that was found."""
    curve, cuts, margin, first = facts.curve, facts.curve.cuts, facts.margin, facts.first
    means, k, warnings = facts.resampled.means, facts.curve.cuts[facts.first], []
    if k - cuts[first - 1] > 1:
        warnings.append(
            f"cuts {cuts[first - 1] + 1} to {k - 1} were not evaluated: the plateau starts at one of them or at {k}"
        )
    if skipped := sorted(set(range(k, cuts[-1])) - set(cuts)):
        warnings.append(
            f"cuts {', '.join(map(str, skipped))} were not evaluated and are taken to be like their neighbours"
        )
    if early := [cut for cut, lower in zip(cuts[:first], facts.lower[:first], strict=True) if lower > -margin]:
        names = ", ".join(map(str, early))
        warnings.append(f"not monotone: cut(s) {names} before {k} are within the margin too, but a larger cut is not")
    drops = []
    for later in range(1, len(cuts)):
        best = int(np.argmax(facts.accuracy[:later]))
        upper = facts.resampled.upper((means[:, later] - means[:, best])[:, None], 1, facts.confidence)[0]
        if upper < -margin:
            drops.append((facts.accuracy[best] - facts.accuracy[later], cuts[best], cuts[later]))
    if drops:
        size, best, later = max(drops, key=lambda drop: (round(drop[0], 9), -drop[2]))  # the first of equal ones
        warnings.append(f"not monotone: accuracy falls by {size:.3f} between cut {best} and cut {later}")
    top = int(np.argmax(facts.accuracy))
    if facts.lower[top] > margin:
        warnings.append(
            f"the image hurts in late layers: cut {cuts[top]} is better than unmasked by {facts.gain[top]:.3f}, more "
            "than the margin"
        )
    worse = []
    for task in curve.tasks if len(curve.tasks) > 1 else ():
        resampled = curve._resampled(task)
        gain = (resampled.means[:, first] - resampled.means[:, -1])[:, None]
        if resampled.upper(gain, 1, facts.confidence)[0] < -margin:
            scores = curve._arrays[task][0].mean(axis=0)
            worse.append(f"{task} ({scores[first] - scores[-1]:+.3f})")
    if worse:
        warnings.append(f"at cut {k} single tasks are worse than unmasked by more than the margin: {', '.join(worse)}")
    return warnings


def to_spec(
    stages: Stages,
    *,
    model: str | None,
    base_model: str,
    weights: Weights | Mapping[str, float] = Weights(model=0.9, base_model=0.3),  # noqa: B008
    modules: Iterable[str] = GROUPS["qkvo"],
    scan: str | None = None,
    source: str | None = None,
    commits: Mapping[str, str] | None = None,
) -> PlateauSpec:
    """A spec that merges in the plateau, with its evidence.

    The default weights and modules are those of the authors' Qwen3-VL runs (arXiv 2601.07645).

    Args:
        model, base_model: hub ids or folders of the MLLM that was scanned and of its base LLM.
        weights: `Weights`, or a mapping with its fields. A scan says nothing about them.
        scan: where the scan is, for the evidence.
        source: the spec's free text; a sentence on the scan if left out.
        commits: of "model" and "base_model" on the hub at the time of the scan, for the evidence.

    Raises:
        ValueError: there is no plateau; the message is the reason. SpecError: the spec has another fault.
    """
    if stages.plateau is None:
        raise InputError(f"no spec without a plateau. {stages.reason}")
    evidence: dict[str, Any] = {"scan": scan} if scan else {}
    if commits:
        evidence["commits"] = dict(commits)
    fields = stages.to_dict()
    for derived in ("num_layers", "plateau", "outcome"):  # told by the layer range, and by there being a spec
        del fields[derived]
    evidence.update({name: value for name, value in fields.items() if value is not None and value != []})
    if source is None:
        source = (
            f"Scan of {model or 'the model'}: {sum(stages.documents.values())} documents of {len(stages.documents)} "
            f"task(s), margin {stages.margin:g}, {percent(stages.confidence)} confidence. The weights are not from the "
            "scan."
        )
    spec = load_spec(
        {
            "model": model,
            "base_model": base_model,
            "layer_range": list(stages.plateau),
            "modules": list(modules),
            "weights": weights.model_dump() if isinstance(weights, Weights) else dict(weights),
            "evidence": evidence,
            "source": source,
        }
    )
    assert spec is not None  # only "none" gives None
    return spec


def write_spec(spec: PlateauSpec, path: str | Path) -> Path:
    """Write a spec as YAML that `load_spec` reads back to an equal spec."""
    path = Path(path)
    text = yaml.dump(spec.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    path.write_text(text, encoding="utf-8")
    return path


class _Dumper(yaml.SafeDumper):
    """Lists on one line each, as specs are written by hand; everything else in block style."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
