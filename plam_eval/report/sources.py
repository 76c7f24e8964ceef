"""Which runs, scans and sweeps lie in the folders that a report is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plam_eval.errors import PlamError
from plam_eval.evaluation import findings, records, scan, sweep
from plam_eval.evaluation.findings import Findings
from plam_eval.evaluation.records import RecordError, Run
from plam_eval.evaluation.scan import Scan


class ReportError(PlamError, ValueError):
    """Nothing to report on; the message says what was found in each folder and what was expected."""


@dataclass
class Sources:
    """What was found in the folders, by name."""

    sweeps: dict[str, Findings] = field(default_factory=dict)
    scans: dict[str, Scan] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_sources(folders: Sequence[Path], select: int | None) -> Sources:
    sources, seen = Sources(), set[Path]()
    for folder in folders:
        before = len(seen)
        if not folder.exists():
            raise ReportError(f"{folder}: no such folder")
        owners = []  # folders whose runs are not listed by themselves
        for file in sorted(_visible(folder, sweep.PLAN)):
            owners.append(file.parent)
            if _new(file.parent, seen):
                sources.sweeps[_name(file.parent, sources.sweeps)] = findings.read_findings(file.parent, select)
        for file in sorted(_visible(folder, scan.SETTINGS)):
            owners.append(file.parent)
            if not _new(file.parent, seen):
                continue
            if (file.parent / scan.STAGES).is_file():
                sources.scans[_name(file.parent, sources.scans)] = scan.load(file.parent)
            else:
                sources.notes.append(f"{file.parent}: a scan that has not finished; nothing of it is shown.")
        files = [folder] if folder.is_file() else records.result_files(folder)
        files = [f for f in files if not any(owner in f.parents for owner in owners) and not _hidden(f, folder)]
        for file in files:
            if not _new(file, seen):
                continue
            try:
                run = records.read_run(file)
            except RecordError as error:
                sources.notes.append(f"A run was left out: {error}")
                continue
            sources.runs[_run_name(file, folder, files, sources.runs)] = run
        if len(seen) == before and not owners:
            sources.notes.append(f"{folder}: nothing of a sweep, a scan or a run in it.")
    if not (sources.sweeps or sources.scans or sources.runs):
        found = "\n".join(f"  - {note}" for note in sources.notes) or "  - no folders"
        raise ReportError(
            f"nothing to report on:\n{found}\nExpected folders of `plam sweep` or `plam compare` ({sweep.PLAN}), of a "
            f"finished `plam scan` ({scan.SETTINGS} and {scan.STAGES}), or of lmms-eval with --log_samples "
            "(*_results.json beside its sample logs)"
        )
    return sources


def _visible(folder: Path, name: str) -> list[Path]:
    """Files of a name in a folder and below, without what lies in hidden folders: cells that are being written."""
    return [file for file in folder.rglob(name) if not _hidden(file, folder)] if folder.is_dir() else []


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _new(path: Path, seen: set[Path]) -> bool:
    known = path.resolve() in seen
    seen.add(path.resolve())
    return not known


def _name(folder: Path, taken: Iterable[str]) -> str:
    """A folder's own name, or with that of the folder above it where another has the same."""
    folder = folder.resolve()
    return _untaken([folder.name, f"{folder.parent.name}-{folder.name}"], taken)


def _run_name(file: Path, folder: Path, files: Sequence[Path], taken: Iterable[str]) -> str:
    """That of the given folder, where one run lies in it; else the run's own folder below it."""
    given = folder.resolve() if folder.is_dir() else folder.resolve().parent
    below = file.parent.resolve().relative_to(given).as_posix()
    date = file.name.removesuffix("_results.json")
    if len(files) == 1 or below == ".":
        names = [given.name, f"{given.parent.name}/{given.name}", f"{given.name}/{date}"]
    else:
        beside = [f for f in files if f.parent == file.parent]
        names = [f"{below}/{date}"] if len(beside) > 1 else [below, f"{given.name}/{below}"]
    return _untaken(names, taken)


def _untaken(names: Sequence[str], taken: Iterable[str]) -> str:
    free = [name for name in names if name not in set(taken)]
    number = 2
    while not free:
        name = f"{names[-1]} {number}"
        free, number = ([name] if name not in set(taken) else []), number + 1
    return free[0]
