"""A search's answers: of each setting, by its digest, to the documents to choose on; and what they are worth.

Whatever proposes a setting, and in whatever process, its answers are the same, so a setting is answered once. A file
is written anew, in one step, each time that more of its documents are answered.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plam_eval import files
from plam_eval.beside import gone
from plam_eval.errors import DamagedFileError
from plam_eval.evaluation.search.config import SearchError
from plam_eval.harness.requests import Key
from plam_eval.spec import PlateauSpec, load_spec

SEARCH, ANSWERS, JOURNAL, PLAIN_SETTING = "search.json", "answers", "study.jsonl", "plain"
_FEWEST = 6
"""Images on which a setting has to differ from the best one before it is given up."""
COLUMNS = ("task", "doc_id", "answer", "score")
_LARGEST = 1e15  # no task's score is near it, and sums of larger ones overflow
_LOCK, _PATIENCE = "answers.lock", 60.0  # seconds: another process writes a file
_REMEDY = "delete it, and the same search answers it again"


def setting_of(spec: PlateauSpec | None) -> str:
    """The name of a setting's answers: its digest, or that of the plain model.

    Args:
        spec: of the merge; None for the plain model.
    """
    return PLAIN_SETTING if spec is None else spec.digest()


@dataclass(frozen=True)
class Setting:
    """What is known of one setting.

    Attributes:
        spec: of the merge; None for the plain model.
        number: of the proposal that it was first, from 0; below 0 for what a search begins with.
        rows: `COLUMNS`, a row for each document that is answered.
    """

    spec: PlateauSpec | None
    number: int
    rows: pd.DataFrame


class Answers:
    """The answers in a search's folder.

    Args:
        folder: the search's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[tuple[int, int], Setting]] = {}

    def of(self, name: str) -> Setting | None:
        """What is known of a setting; None where nothing is.

        Args:
            name: as `setting_of` gives it.

        Raises:
            DamagedFileError: its file is none that this writes. OutsideError: it is a link that leads out.
        """
        file = files.inside(self._folder, f"{ANSWERS}/{name}.json", str(self._folder))
        try:
            status = file.stat()
        except FileNotFoundError:
            return None
        stamp = status.st_mtime_ns, status.st_size
        if name not in self._read or self._read[name][0] != stamp:
            self._read[name] = stamp, _setting(files.read_json(file, _REMEDY), name, file)
        return self._read[name][1]

    def add(self, spec: PlateauSpec | None, number: int, rows: pd.DataFrame) -> Setting:
        """Keep more answers of a setting; returns all that is known of it then.

        Args:
            spec: of the merge; None for the plain model.
            number: as `Setting.number`; that of the first who gave it stays.
            rows: as `Setting.rows`.

        Raises:
            FolderError: the search's folder was deleted meanwhile.
        """
        name, folder = setting_of(spec), self._folder / ANSWERS
        if not (self._folder / SEARCH).is_file():  # answers without their search would stand in the way of a new one
            raise gone(self._folder)
        with files.locked(folder, _LOCK, SearchError, patience=_PATIENCE):
            known = self.of(name)
            both = rows[list(COLUMNS)]
            if known is not None:
                both, number = pd.concat([known.rows, both]), known.number
            both = both.drop_duplicates(["task", "doc_id"]).sort_values(["task", "doc_id"])
            content = {
                "setting": name,
                "number": number,
                "spec": spec.to_dict() if spec is not None else None,
                "answers": both.astype(object).where(both.notna(), None).to_dict("records"),
            }
            files.write_json(folder / f"{name}.json", content)
            stored = self.of(name)
        assert stored is not None
        return stored

    def merges(self) -> list[Setting]:
        """Every setting but the plain model, in the order in which they were proposed."""
        names = sorted(file.stem for file in (self._folder / ANSWERS).glob("*.json") if file.stem != PLAIN_SETTING)
        settings = [setting for name in names if not name.startswith(".") and (setting := self.of(name)) is not None]
        return sorted(settings, key=lambda setting: setting.number)


def _setting(content: Mapping[str, Any], name: str, file: Path) -> Setting:
    rows, number, stored = content.get("answers"), content.get("number"), content.get("spec")
    if not isinstance(rows, list) or type(number) is not int or not isinstance(stored, (dict, type(None))):
        raise DamagedFileError(f"{file}: holds no answers as a search writes them; {_REMEDY}")
    try:
        spec = load_spec(stored)
    except ValueError as error:
        raise DamagedFileError(f"{file}: {error}; {_REMEDY}") from error
    if content.get("setting") != name or setting_of(spec) != name:
        raise DamagedFileError(f"{file}: is of another merge than its name says; {_REMEDY}")
    for row in rows:
        whole = isinstance(row, dict) and row.keys() == {*COLUMNS}
        texts = whole and isinstance(row["task"], str) and isinstance(row["answer"], str)
        if not texts or type(row["doc_id"]) is not int or type(row["score"]) not in (int, float, type(None)):
            raise DamagedFileError(f"{file}: found {row!r:.80}, expected {', '.join(COLUMNS)}; {_REMEDY}")
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"score": float})
    if (table["score"].abs() > _LARGEST).any():  # beside it no other gain would count
        raise DamagedFileError(f"{file}: found a score above {_LARGEST:g}, expected one that a task gives; {_REMEDY}")
    if table.duplicated(["task", "doc_id"]).any():
        raise DamagedFileError(f"{file}: has two answers to one document; {_REMEDY}")
    return Setting(spec, number, table)


@dataclass(frozen=True)
class Documents:
    """The documents to choose on.

    Attributes:
        table: task, doc_id, cluster, rung: after which rung of the search it is asked, 0 being the first.
        rungs: how many there are.
        directions: 1 for tasks in which a higher score is better, -1 for others.
    """

    table: pd.DataFrame
    rungs: int
    directions: Mapping[str, int]

    @classmethod
    def of(cls, chosen: pd.DataFrame, directions: Mapping[str, int], shares: Sequence[float], seed: int) -> Documents:
        """Documents in rungs: random ones of each task, those of one cluster together.

        Args:
            chosen: task, doc_id and cluster of the documents to choose on.
            directions: of their tasks.
            shares: of each task's clusters that are asked up to each rung but the last, rising.
            seed: of the order.
        """
        table = chosen.reset_index(drop=True).copy()
        table["rung"] = len(shares)
        for number, task in enumerate(sorted(table["task"].unique())):
            clusters = sorted(table.loc[table["task"] == task, "cluster"].unique())
            order = np.random.default_rng([seed, number]).permutation(len(clusters))
            place = {clusters[index]: position for position, index in enumerate(order)}
            ends = [math.ceil(share * len(clusters)) for share in shares]
            rung = {cluster: sum(place[cluster] >= end for end in ends) for cluster in clusters}
            mine = table["task"] == task
            table.loc[mine, "rung"] = table.loc[mine, "cluster"].map(rung)
        return cls(table, len(shares) + 1, directions)

    def missing(self, rows: pd.DataFrame | None, rung: int | None = None) -> list[Key]:
        """(task, doc_id) of the documents up to a rung that have no answer.

        Args:
            rows: the answers that there are.
            rung: its number; all documents without one.
        """
        answered = set() if rows is None else {*_keys(rows)}
        return [key for key, own in self._clusters.items() if key not in answered and (rung is None or own[1] <= rung)]

    @cached_property
    def _clusters(self) -> dict[Key, tuple[str, int]]:
        """By document: its cluster and its rung."""
        return dict(zip(_keys(self.table), zip(self.table["cluster"], self.table["rung"], strict=True), strict=True))

    def gains(self, plain: pd.DataFrame, setting: pd.DataFrame) -> pd.DataFrame:
        """By document that both have answered with a score, the setting's gain over plain.

        Args:
            plain: the plain model's answers, as `Setting.rows`.
            setting: the setting's.

        Returns:
            task, doc_id, cluster, gain.
        """
        first, second = (dict(zip(_keys(rows), rows["score"], strict=True)) for rows in (plain, setting))
        found = [
            (task, doc_id, cluster, self.directions.get(task, 1) * difference)
            for (task, doc_id), (cluster, _) in self._clusters.items()
            if (difference := second.get((task, doc_id), math.nan) - first.get((task, doc_id), math.nan)) == difference
        ]
        return pd.DataFrame(found, columns=["task", "doc_id", "cluster", "gain"])


def _keys(rows: pd.DataFrame) -> Iterator[Key]:
    """(task, doc_id) of each row."""
    return zip(rows["task"].tolist(), rows["doc_id"].tolist(), strict=True)


def mean_gain(gains: pd.DataFrame) -> float:
    """The unweighted mean over tasks of the mean gains over plain; NaN where there are none.

    Args:
        gains: as `Documents.gains` returns them.
    """
    return float(gains.groupby("task")["gain"].mean().mean()) if len(gains) else math.nan


def is_hopeless(gains: pd.DataFrame, best: pd.DataFrame, p: float) -> bool:
    """Whether a setting is worse than the best one so far, by Optuna's `WilcoxonPruner` on the documents of both.

    It pairs clusters: each one's share of the mean over tasks is a value of its own, whose order is not looked at.
    It never gives up a setting whose mean so far is above that of the best, or that differs on fewer than six images.

    Args:
        gains: of the setting, as `Documents.gains` returns them.
        best: of the best setting, all of its documents.
        p: of the test, below which it is hopeless.
    """
    import optuna

    if not p or not len(gains) or not len(best):
        return False
    together = best.merge(gains, on=["task", "doc_id"], suffixes=("", "_own"))
    counts = together.groupby("task")["gain"].transform("size")
    scaled = together.assign(first=together["gain"] / counts, second=together["gain_own"] / counts)
    clusters = scaled.groupby(["task", "cluster"], sort=True)[["first", "second"]].sum() * len(together)
    differing = int((clusters["first"] != clusters["second"]).sum())
    if differing < _FEWEST or clusters["second"].mean() >= clusters["first"].mean():
        return False
    study = optuna.create_study(direction="maximize")
    study.add_trial(_frozen(clusters["first"].to_numpy()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of its interface, since 3.6
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=p)
    return pruner.prune(study, _frozen(clusters["second"].to_numpy()))


def _frozen(values: NDArray[np.float64]) -> Any:
    """A trial of Optuna's whose steps are clusters."""
    import optuna

    steps = {step: float(value) for step, value in enumerate(values)}
    return optuna.trial.create_trial(value=float(values.mean()), intermediate_values=steps)
