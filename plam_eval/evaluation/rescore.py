"""Runs whose answers are read a second time: scores by both parsers, where they disagree, and what a pair shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from plam_eval.errors import DamagedFileError, FolderError, InputError
from plam_eval.evaluation import comparable, stats
from plam_eval.evaluation.comparable import IncomparableError
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.second_parser import judge, rescored
from plam_eval.evaluation.stats import Paired
from plam_eval.evaluation.sweep.folder import CELL, CELLS, PLAN, read_run
from plam_eval.files import check_free, check_writable, inside, read_json, write_json
from plam_eval.harness.answer_parser import VERSION
from plam_eval.harness.errors import RecordError
from plam_eval.harness.run_files import result_files
from plam_eval.harness.second_reading import not_read_again
from plam_eval.table_files import write_csv

RESULT, DISAGREEMENTS = "rescored.json", "disagreements.csv"
_MOST_NAMED = 6

_TASK_COLUMNS = ("run", "task", "documents", "score", "rescored", "disagree", "abstain")
_PAIR_COLUMNS = (
    *("task", "documents", "difference", "low", "high", "p"),
    *("rescored_difference", "rescored_low", "rescored_high", "rescored_p", "survives"),
)
_DOCUMENT_COLUMNS = ("run", "task", "doc_id", "prompt", "target", "answer", "score", "read", "rescored")


@dataclass(frozen=True, repr=False)
class Rescored:
    """Runs under their tasks' own rules and under the second parser.

    Attributes:
        version: of the second parser's rules.
        names: of the runs.
        tasks: one row per run and task: run, task, documents, score (mean by the task's own rule; missing where that
            gives none), rescored (mean by the second parser, whose abstentions count as wrong), disagree and abstain
            (shares of the documents).
        disagreements: one row per document that one parser finds right and the other wrong: run, task, doc_id, prompt,
            target, answer, score, read (None where the second abstains), rescored.
        pair: of two runs that were asked alike, one row per task and "overall" last: documents, difference (second
            minus first), low, high and p by the tasks' own rules, the same with `rescored_`, survives. No rows else.
        left_out: by run, the tasks that are not rescored, and why.
        notes: what a reader should know.
    """

    version: int
    names: tuple[str, ...]
    tasks: pd.DataFrame
    disagreements: pd.DataFrame
    pair: pd.DataFrame
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the second parser's version, runs, tasks, disagreements, pair, left_out, notes."""
        return {
            "second_parser": self.version,
            "runs": list(self.names),
            "tasks": _rows(self.tasks),
            "pair": _rows(self.pair),
            "disagreements": _rows(self.disagreements),
            "left_out": {name: dict(tasks) for name, tasks in self.left_out.items()},
            "notes": list(self.notes),
        }

    def write(self, folder: Path) -> None:
        """Write all of it into rescored.json, and every disagreement into disagreements.csv.

        Args:
            folder: need not exist.

        Raises:
            FolderError: it cannot be written, or holds files of these names that are none of ours.
        """
        check_output(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(inside(folder, RESULT, str(folder)), self.to_dict())  # first: by it a folder is known to be ours
        write_csv(self.disagreements, inside(folder, DISAGREEMENTS, str(folder)))

    def __repr__(self) -> str:
        return f"Rescored({', '.join(self.names)}: {len(self.tasks)} tasks, {len(self.disagreements)} disagreements)"


def check_output(folder: Path) -> None:
    """Raise FolderError where nothing can be written to `folder`, or files of our names are of something else."""
    check_writable(folder)
    check_free(folder, (DISAGREEMENTS,), RESULT)
    if (file := inside(folder, RESULT, str(folder))).is_file():
        try:
            ours = "second_parser" in read_json(file, "name another output")
        except DamagedFileError:
            ours = False
        if not ours:
            raise FolderError(f"{file}: was not written by plam rescore, so it is not overwritten; name another output")


def rescore_folders(folders: Sequence[Path], tasks: Sequence[str] | None = None) -> Rescored:
    """Read runs, ours or not, and their answers a second time.

    A task whose log cannot be read costs that task and no other, and a run of nothing else costs no other run.

    Args:
        folders: run folders, cells of a sweep, or results files.
        tasks: only these.

    Raises:
        RecordError: a folder has no run, a run has none of the tasks, or no log of any run can be read.
        InputError: no folder, or that of a whole sweep, whose runs have to be named.
    """
    if not folders:
        raise InputError("give a run folder, or several")
    names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    runs: dict[str, Run] = {}
    left_out: dict[str, dict[str, str]] = {}
    newest: list[str] = []
    for name, folder in zip(names, folders, strict=True):
        _check_one_run(folder)
        unreadable: dict[str, str] = {}
        run = read_run(folder, unreadable)
        if not run.tasks and not unreadable:
            raise RecordError(f"{run.file}: names no task (configs is empty); expected the results of an evaluation")
        wanted = [task for task in tasks if task not in unreadable] if tasks else run.tasks
        left_out[name] = {task: why for task, why in unreadable.items() if not tasks or task in tasks}
        if wanted:
            runs[name] = run.only(wanted)
            if folder.is_dir() and not (folder / CELL).is_file() and (number := len(result_files(folder))) > 1:
                newest.append(f"{name}: the newest of {number} runs there is read: {run.file}")
    if not runs:
        causes = [f"{name}: {task}: {why}" for name, by_task in left_out.items() for task, why in by_task.items()]
        raise RecordError("no log of answers can be read:\n" + "\n".join(f"  - {cause}" for cause in causes))
    done = rescore_runs(runs, left_out)
    return replace(done, notes=(*newest, *done.notes))


def _check_one_run(folder: Path) -> None:
    """Raise InputError for the folder of a sweep, comparison or premise check: which of its runs is meant?"""
    if not (folder / PLAN).is_file():
        return
    cells = sorted(file.parent for file in folder.glob(f"*/{CELLS}/*/{CELL}"))
    cells = [*sorted(file.parent for file in folder.glob(f"{CELLS}/*/{CELL}")), *cells]
    found = ", ".join(str(cell) for cell in cells[:_MOST_NAMED]) or "no finished one"
    more = f" and {len(cells) - _MOST_NAMED} more" if len(cells) > _MOST_NAMED else ""
    raise InputError(f"{folder}: holds the runs of several models; expected one or more of them: {found}{more}")


def rescore_runs(runs: Mapping[str, Run], left_out: Mapping[str, Mapping[str, str]] | None = None) -> Rescored:
    """The answers of some runs, read a second time.

    Args:
        runs: by name.
        left_out: by name, tasks that could not be read, and why.
    """
    without = {name: dict((left_out or {}).get(name, {})) for name in [*runs, *(left_out or {})]}
    rows, documents, notes = list[dict[str, Any]](), list[pd.DataFrame](), list[str]()
    for name, run in runs.items():
        for task in run.tasks:
            samples = run.samples[run.samples["task"] == task]
            if why := _why_not(task, samples):
                without[name][task] = why
                continue
            known = samples[samples["rescored"].notna()]
            if len(known) < len(samples):
                notes.append(f"{name}: {task}: what {len(samples) - len(known)} documents ask for is not in its log")
            if empty := int((known["answer"] == "").sum()):
                notes.append(f"{name}: {task}: {empty} of {len(known)} documents have no answer in its log")
            differ = known[known["score"].notna() & ((known["score"] - known["rescored"]).abs() > 1e-9)]
            documents.append(differ.assign(run=name)[list(_DOCUMENT_COLUMNS)])
            abstain = known["read"].isna()
            rows.append(
                {
                    "run": name,
                    "task": task,
                    "documents": len(known),
                    "score": float(known["score"].mean()),
                    "rescored": float(known["rescored"].mean()),
                    "disagree": len(differ) / int(known["score"].notna().sum())
                    if known["score"].notna().any()
                    else math.nan,
                    "abstain": float(abstain.mean()),
                }
            )
            if task in run.unscored:
                notes.append(f"{name}: {task}: no score by its own rule ({run.unscored[task]})")
    pair, said = _pair(runs, {row["task"] for row in rows}) if len(runs) == 2 else (pd.DataFrame(), [])
    return Rescored(
        VERSION,
        tuple(runs),
        pd.DataFrame(rows, columns=list(_TASK_COLUMNS)),
        pd.concat(documents, ignore_index=True) if documents else pd.DataFrame(columns=list(_DOCUMENT_COLUMNS)),
        pair if len(pair) else pd.DataFrame(columns=list(_PAIR_COLUMNS)),
        {name: tasks for name, tasks in without.items() if tasks},
        (*notes, *said),
    )


def _why_not(task: str, samples: pd.DataFrame) -> str:
    """Why a task is not rescored; "" where it is."""
    if not len(samples):
        return "its log has no documents"
    if (samples["answer"] == "").all():
        return "its log has no answers"
    if samples["rescored"].isna().all():
        return not_read_again(task) or "its log does not say what its documents ask for"
    return ""


def _pair(runs: Mapping[str, Run], tasks: set[str]) -> tuple[pd.DataFrame, list[str]]:
    """Two runs on what both have, under both parsers; and what to say of it."""
    names = tuple(runs)
    first, second = runs.values()
    common = [task for task in first.tasks if task in second.tasks and task in tasks]
    if not common:
        return pd.DataFrame(), [f"{names[0]} and {names[1]} have no rescored task in common, so they are not compared"]
    try:
        said = comparable.check_comparable(first.only(common), second.only(common), names)
        both, left_out = comparable.only_scored({name: run.only(common) for name, run in runs.items()})
    except (IncomparableError, RecordError) as error:
        return pd.DataFrame(), [str(error)]
    one, other = both.values()
    rows = stats.compare(one.samples, other.samples, directions=one.directions)
    again = stats.compare(rescored(one.samples)[0], rescored(other.samples)[0], directions=one.directions)
    table = [_pair_row(own, new) for own, new in zip(rows, again, strict=True)]
    return pd.DataFrame(table, columns=list(_PAIR_COLUMNS)), [*said, *left_out]


def _pair_row(own: Paired, again: Paired) -> dict[str, Any]:
    kept = ("task", "documents", "difference", "low", "high", "p")
    more = {f"rescored_{name}": asdict(again)[name] for name in ("difference", "low", "high", "p")}
    verdict = judge(own.difference, own.p, again.difference, again.p)
    return {**{name: asdict(own)[name] for name in kept}, **more, "survives": verdict}


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON: missing numbers are None."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): value.item() if hasattr(value, "item") else value for key, value in row.items()} for row in rows]
