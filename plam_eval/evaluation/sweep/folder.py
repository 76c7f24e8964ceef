"""A sweep's folder: its plan, its cells' records, and which of them are finished and whole."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from plam_eval import files
from plam_eval.errors import DamagedFileError, changes
from plam_eval.evaluation import records
from plam_eval.evaluation.sweep.config import SweepError
from plam_eval.evaluation.sweep.grid import Cell, Grid
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.run_files import is_results_file, sample_logs
from plam_eval.provenance import read_identity

PLAN, CELLS, CELL, LOG, LOCK = "sweep.json", "cells", "cell.json", "log.txt", "sweep.lock"
TOGETHER = ".together"
"""Folder of answers that several cells were given at once, until all cells are finished."""
FINISHED, FAILED, DAMAGED = "finished", "failed", "damaged"
_TABLES = ("cells", "tasks", "controls", "rules", "random_layers")
TABLES = tuple(f"{name}{suffix}" for name in _TABLES for suffix in (".csv", ".parquet"))


def read_plan(folder: Path) -> dict[str, Any]:
    """What a sweep's folder was made with: `config`, `settings`, `grid` and more, as `Job.write` writes them.

    Args:
        folder: the --output of `plam sweep` or `plam compare`.

    Raises:
        SweepError: there is no sweep, or its plan is none that we write. DamagedFileError: it cannot be read.
    """
    file = folder / PLAN
    if not file.is_file():
        raise SweepError(
            f"{folder}: no sweep there (no {PLAN}); expected the --output of `plam sweep` or `plam compare`"
        )
    remedy = "name another --output, or restore it from a copy"
    plan = files.read_json(files.inside(folder, PLAN, str(folder)), remedy)
    plan.setdefault("settings", {})  # from here on, whoever reads it finds these of their kind
    for path, kind in _PLAN_KINDS.items():
        *parents, key = path.split("/")
        holder = functools.reduce(lambda inner, name: inner.setdefault(name, {}), parents, plan)
        if holder.setdefault(key, kind()) is None and path in _MAY_BE_NONE:
            continue
        if not isinstance(holder[key], kind) or isinstance(holder[key], bool):
            raise DamagedFileError(f"{file}: {path}: found {holder[key]!r:.80}, expected {kind.__name__}; {remedy}")
        if kind is int and holder[key] < 0:
            raise DamagedFileError(f"{file}: {path}: found {holder[key]!r:.80}, expected 0 or more; {remedy}")
    bad = [id_ for id_ in plan["settings"]["bases"].values() if not isinstance(id_, dict)]
    if bad or not all(isinstance(word, str) for word in (*plan["config"]["tasks"], *plan["command"])):
        raise DamagedFileError(f"{file}: bases, tasks or the command are of another kind than we write; {remedy}")
    try:
        Grid.from_dict(plan["grid"])
    except (EvaluationError, ValueError) as error:
        raise SweepError(f"{file}: {error}. It was damaged, or not written by plam-eval; {remedy}") from error
    settings = plan["settings"]  # of an earlier version, maybe
    settings["checkpoint"] = read_identity(settings["checkpoint"])
    settings["bases"] = {name: read_identity(stored) for name, stored in settings["bases"].items()}
    return plan


_PLAN_KINDS: dict[str, type] = {
    "config": dict,
    "config/tasks": list,
    "config/select": int,
    "config/limit": int,
    "config/sample": int,
    "config/seed": int,
    "config/together": int,
    "settings": dict,
    "settings/model": str,
    "settings/model_args": dict,
    "settings/checkpoint": dict,
    "settings/bases": dict,
    "settings/versions": dict,
    "grid": dict,
    "drawn": dict,
    "chosen": dict,
    "chosen/digest": str,
    "chosen/tried": int,
    "chosen/layer_sets": int,
    "working_directory": str,
    "command": list,
}
_MAY_BE_NONE = ("config/select", "config/limit", "config/sample")


def read_cell(folder: Path, cell: Cell | str) -> dict[str, Any] | None:
    """The record of a cell that has ended; None for one that has not.

    `status` is "finished", "failed" or, where the record or its results are not what we write, "damaged", with `error`.

    Args:
        folder: the sweep's.
        cell: one of its cells, whose record has to be of this merge; or only its name.
    """
    name = cell if isinstance(cell, str) else cell.name
    try:
        cell_folder = files.inside(folder, f"{CELLS}/{name}", str(folder))
        if not (cell_folder / CELL).is_file():
            return None
        file = files.inside(cell_folder, CELL, str(cell_folder))
        record = files.read_json(file, "the same sweep evaluates it again")
        if record.get("status") not in (FINISHED, FAILED):
            raise DamagedFileError(f"{file}: found the status {record.get('status')!r}")
        seconds = record.setdefault("seconds", {})
        if not isinstance(seconds, dict) or not all(isinstance(value, (int, float)) for value in seconds.values()):
            raise DamagedFileError(f"{file}: found {seconds!r:.80} as its seconds")
        _check_together(record.get("together"), file)
        digest = cell.spec.digest() if isinstance(cell, Cell) and cell.spec else None
        if digest and record.get("digest", digest) != digest:
            raise DamagedFileError(f"{file}: it is of another merge (digest {record['digest']!r:.80})")
        if record["status"] == FINISHED:
            results_file(cell_folder, record)
    except (OSError, ValueError) as error:  # OutsideError among them
        return {"status": DAMAGED, "error": str(error), "seconds": {}}
    return record


def _check_together(stored: Any, file: Path) -> None:
    """Raises DamagedFileError where a record holds something else of answers together than `Together.record`."""
    if stored is None:
        return
    numbers = stored.values() if isinstance(stored, dict) else [None]
    if not all(isinstance(value, (int, float, list)) for value in numbers) or not all(
        isinstance(reason, str) for reason in stored.get("reasons", ())
    ):
        raise DamagedFileError(f"{file}: found {stored!r:.80} of answers together")


def results_file(cell_folder: Path, record: Mapping[str, Any]) -> Path:
    """The results that a finished cell's record names.

    Args:
        cell_folder: the cell's own.
        record: of the cell.

    Raises:
        OutsideError, DamagedFileError: they are none, or lie elsewhere.
    """
    origin = str(cell_folder / CELL)
    file = files.inside(cell_folder, record.get("results"), origin)
    if not is_results_file(file):
        raise DamagedFileError(f"{origin}: names {record.get('results')!r:.80} as its results, which is no such file")
    for log in sample_logs(file):
        files.inside(cell_folder, str(log.relative_to(cell_folder).as_posix()), origin)
    return file


def read_run(folder: Path, unreadable: dict[str, str] | None = None) -> records.Run:
    """A run folder: the results that a cell's record names, and of other folders those that `records.read_run` takes.

    Args:
        folder: of a cell, or as for `records.read_run`.
        unreadable: as for `records.read_run`.

    Raises:
        RecordError: no readable run there. OutsideError, DamagedFileError: a cell's record.
    """
    if not (folder / CELL).is_file():
        return records.read_run(folder, unreadable)
    file = results_file(folder, files.read_json(folder / CELL, "evaluate it again"))
    return records.read_run(file, unreadable)


def read_state(folder: Path, cell: Cell, settings: Mapping[str, Any]) -> tuple[dict[str, Any], records.Run | None]:
    """A cell's record (`status` "missing" where there is none), and its run where it is finished and whole.

    Args:
        folder: the sweep's.
        cell: one of its cells.
        settings: of the sweep: a cell of other checkpoints than these is "damaged" as well, and says so.
    """
    record = read_cell(folder, cell) or {"status": "missing"}
    if record["status"] != FINISHED:
        return record, None
    file = results_file(folder / CELLS / cell.name, record)
    try:
        run = _read_run(file, _stamp(file))
        _check_same(run, cell, settings)
    except (OSError, ValueError) as error:
        return {**record, "status": DAMAGED, "error": str(error)}, None
    if (spent := record["seconds"].get("evaluate")) is not None:
        # lmms-eval times its writing of the results here, which begins when the evaluation has ended.
        run = replace(run, results={**run.results, "total_evaluation_time_seconds": spent})
    return record, run


def _stamp(file: Path) -> tuple[tuple[str, int, int], ...]:
    date = file.name.removesuffix("results.json")
    beside = [file, *sorted(file.parent.glob(f"{date}samples_*.jsonl"))]
    return tuple((one.name, stat.st_size, stat.st_mtime_ns) for one in beside if (stat := one.stat()))


@functools.lru_cache(maxsize=512)
def _read_run(file: Path, stamp: tuple[tuple[str, int, int], ...]) -> records.Run:
    """Once for each state of its files: whether cells are whole is asked at the begin and at the end of a sweep."""
    return records.read_run(file)


def _check_same(run: records.Run, cell: Cell, settings: Mapping[str, Any]) -> None:
    """Raises DamagedFileError where a run is of another merge, model or base than the sweep is."""
    provenance = run.block.get("provenance") or {}
    digest = cell.spec.digest() if cell.spec else None
    if "digest" in provenance and provenance["digest"] != digest:
        raise DamagedFileError(f"{run.file}: is of another merge: digest {provenance['digest']}, expected {digest}")
    base = cell.spec.base_model if cell.spec else None
    old = cell.spec.ancestor if cell.spec and cell.spec.needs_ancestor else None
    bases = settings.get("bases", {})
    sides = (
        ("model", "checkpoint", settings.get("checkpoint")),
        ("base", "base", bases.get(base)),
        ("ancestor", "ancestor", bases.get(old)),
    )
    for what, key, expected in sides:
        if problem := identity_changes(expected or {}, read_identity(provenance.get(key) or {})):
            raise DamagedFileError(f"{run.file}: was evaluated with another {what} than this sweep's: {problem}")


def identity_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs between two identities of a checkpoint, in words, as far as both say it; None where nothing does.

    Args:
        before: the one that a sweep began with.
        now: the other.
    """
    both = [key for key in before if key in now]
    return "; ".join(f"{key} was {was}, is {value}" for key, was, value in changes(before, now, both)) or None


def check_not_deleted(folder: Path, done: Iterable[str] = ()) -> None:
    """Raises SweepError where a sweep's folder, or one of its cells, was deleted while the sweep ran.

    Args:
        folder: the sweep's.
        done: names of cells that have ended.
    """
    gone = [name for name in done if not (folder / CELLS / name / CELL).is_file()]
    if gone or not (folder / PLAN).is_file():
        what = ", ".join(gone) or str(PLAN)
        raise SweepError(f"{folder}: {what} was deleted while the sweep ran; the same command evaluates it again")


def cell_places(folder: Path, name: str, attempt: int = 0) -> tuple[Path, Path]:
    """Where a cell's folder is, and where it is made. Raises OutsideError where a link leads elsewhere.

    Args:
        folder: the sweep's.
        name: of the cell.
        attempt: how often it was begun in vain by this call. Each attempt has a place of its own: a worker that was
            given up may still write, on a machine that cannot be reached.
    """
    again = f".again{attempt}" if attempt else ""  # letters: the name of another cell may go on with .1
    made = files.inside(folder, f"{CELLS}/.{name}{again}.partial", PLAN)
    return files.inside(folder, f"{CELLS}/{name}", PLAN), made


def finish_cell(partial: Path, target: Path, record: Mapping[str, Any]) -> None:
    """Store a cell's record, and move its folder into place in one step.

    Args:
        partial: where the cell's folder was made, as `cell_places` gives it.
        target: where it is to be.
        record: of the cell, with its `status`.
    """
    files.write_json(partial / CELL, record)
    files.remove_own(target, CELL)  # it failed before, or was damaged
    partial.replace(target)


def record_failure(folder: Path, cell: Cell, error: str, attempt: int = 0) -> dict[str, Any]:
    """Store that a cell failed, where the process that was at it could not.

    Args:
        folder: the sweep's.
        cell: the one that failed.
        error: what happened, in words.
        attempt: at it, as for `cell_places`.

    Returns:
        The record that was stored.
    """
    target, partial = cell_places(folder, cell.name, attempt)
    if not partial.is_dir():  # else with the log of what was done
        files.make_own(partial)
    digest = cell.spec.digest() if cell.spec else None
    record = {**cell.to_dict(), "digest": digest, "status": FAILED, "error": error, "seconds": {}}
    finish_cell(partial, target, record)
    return record


def lock_sweep(folder: Path) -> contextlib.AbstractContextManager[None]:
    """One sweep at a time in a folder; the system lifts the lock when its process ends, however it ends.

    Args:
        folder: the sweep's.

    Raises:
        SweepError: on entering, where another process has it.
    """
    return files.locked(folder, LOCK, SweepError)
