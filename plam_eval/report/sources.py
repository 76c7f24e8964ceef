"""Which runs, scans, sweeps, looks inside and exports lie in the folders that a report is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from plam_eval.errors import PlamError
from plam_eval.evaluation import records, scan_folder
from plam_eval.evaluation.attend import folder as attend_folder
from plam_eval.evaluation.attend.findings import find, selected
from plam_eval.evaluation.attend.folder import Attended
from plam_eval.evaluation.attend.summary import AttendFindings
from plam_eval.evaluation.noise.floor import NOISE
from plam_eval.evaluation.premise.findings import PremiseFindings, read_premise
from plam_eval.evaluation.premise.job import BASE, PREMISE
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.scan_folder import Scan
from plam_eval.evaluation.sweep import findings
from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.folder import PLAN
from plam_eval.files import inside
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.run_files import date_of, is_hidden, result_files
from plam_eval.merging import export_record
from plam_eval.merging.export_record import ExportRecord


class ReportError(PlamError, ValueError):
    """Nothing to report on; the message says what was found in each folder and what was expected."""


class Look(NamedTuple):
    """What `plam attend` has measured, and what follows from it."""

    attended: Attended
    findings: AttendFindings


@dataclass
class Sources:
    """What was found in the folders, by name; `notes` names what was left out, and why."""

    sweeps: dict[str, Findings] = field(default_factory=dict)
    scans: dict[str, Scan] = field(default_factory=dict)
    looks: dict[str, Look] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    exports: dict[str, ExportRecord] = field(default_factory=dict)
    premises: dict[str, PremiseFindings] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def left_out(self) -> list[str]:
        """`notes`, and the damaged cells of each sweep, with its name."""
        cells = [(name, line) for name, sweep in self.sweeps.items() for line in findings.of_damaged(sweep.cells)]
        return [*self.notes, *(f"{name}: {line}" for name, line in cells)]


def read_sources(folders: Sequence[Path], select: int | None) -> Sources:
    """Read everything that is finished in the folders; what is damaged, or a link that leads out, becomes a note.

    Args:
        folders: of sweeps, comparisons, scans, `plam attend`, lmms-eval runs and exports, or folders above such.
        select: as in `findings.read_findings`, for every sweep.

    Raises:
        ReportError: a folder is missing, or nothing can be shown; an export alone has no figures.
    """
    sources, seen = Sources(), set[Path]()
    for folder in folders:
        before = len(seen)
        if not folder.exists():
            raise ReportError(f"{folder}: no such folder")
        owners: list[Path] = []  # folders whose runs are not listed by themselves
        for read in (_read_premises, _read_sweeps, _read_scans, _read_looks, _read_exports):
            owners += read(folder, sources, seen, select)
        _read_runs(folder, owners, sources, seen)
        if len(seen) == before and not owners:
            sources.notes.append(f"{folder}: nothing of a sweep, a scan, a look inside, a run or an export in it.")
    if not (sources.sweeps or sources.scans or sources.looks or sources.runs or sources.premises):
        sources.notes += [f"{name}: an export, which has no figures of its own" for name in sources.exports]
        notes = "\n".join(f"  - {note}" for note in sources.notes) or "  - no folders"
        raise ReportError(
            f"nothing to report on:\n{notes}\nExpected folders of `plam sweep` or `plam compare` ({PLAN}), of "
            f"a finished `plam scan` ({scan_folder.SETTINGS} and {scan_folder.STAGES}) or `plam attend` "
            f"({attend_folder.SETTINGS_FILE} and {attend_folder.MEASURES_FILE}), or of lmms-eval with --log_samples "
            "(*_results.json beside its sample logs)"
        )
    return sources


def _read_premises(folder: Path, sources: Sources, seen: set[Path], _: int | None) -> list[Path]:
    """Add the premise checks in a folder; the base LLM's run below one is a part of it, and no sweep of its own."""
    found = sorted(_visible(folder, PREMISE))
    for file in found:
        key = file.parent / PREMISE
        if _new(key, seen):
            _new(file.parent / BASE, seen)
            name = _name(file.parent, sources.premises)
            with _noted(sources, "A premise check", file.parent):
                sources.premises[name] = read_premise(_own(file, folder).parent)
    return [file.parent / BASE for file in found]


def _read_sweeps(folder: Path, sources: Sources, seen: set[Path], select: int | None) -> list[Path]:
    """Add the sweeps in a folder to `sources`; returns where they lie, also those that had been seen."""
    found = sorted(_visible(folder, PLAN))
    for file in found:
        if _is_noise(file.parent) and file.parent != folder:  # it is shown with the comparison that it is of
            continue
        if _new(file.parent, seen):
            name = _name(file.parent, sources.sweeps)
            with _noted(sources, "A sweep", file.parent):
                sources.sweeps[name] = findings.read_findings(_own(file, folder).parent, select)
    return [file.parent for file in found]


def _is_noise(folder: Path) -> bool:
    return folder.parent.name == NOISE and (folder.parent.parent / PLAN).is_file()


def _read_scans(folder: Path, sources: Sources, seen: set[Path], _: int | None) -> list[Path]:
    found = sorted(_visible(folder, scan_folder.SETTINGS))
    for file in found:
        if not _new(file.parent, seen):
            continue
        if (file.parent / scan_folder.STAGES).is_file():
            name = _name(file.parent, sources.scans)
            with _noted(sources, "A scan", file.parent):
                sources.scans[name] = scan_folder.load(_own(file, folder).parent)
        else:
            sources.notes.append(f"{file.parent}: a scan that has not finished; nothing of it is shown.")
    return [file.parent for file in found]


def _read_looks(folder: Path, sources: Sources, seen: set[Path], _: int | None) -> list[Path]:
    found = sorted(_visible(folder, attend_folder.SETTINGS_FILE))
    for file in found:
        if not _new(file.parent, seen):
            continue
        if (file.parent / attend_folder.MEASURES_FILE).is_file():
            name = _name(file.parent, sources.looks)
            with _noted(sources, "A look inside", file.parent):
                attended = attend_folder.load(_own(file, folder).parent)
                sources.looks[name] = Look(attended, find(attended, select=selected(attended.folder)))
        else:
            sources.notes.append(f"{file.parent}: a look inside that has not finished; nothing of it is shown.")
    return [file.parent for file in found]


def _read_exports(folder: Path, sources: Sources, seen: set[Path], _: int | None) -> list[Path]:
    found = sorted(_visible(folder, export_record.FILE))
    for file in found:
        if _new(file.parent, seen):
            name = _name(file.parent, sources.exports)
            with _noted(sources, "An export", file.parent):
                sources.exports[name] = export_record.read_export_record(_own(file, folder).parent)
    return [file.parent for file in found]


def _read_runs(folder: Path, owners: Sequence[Path], sources: Sources, seen: set[Path]) -> None:
    """Add the runs in a folder, or the one of a results file, to `sources`; those below `owners` are theirs."""
    files = [folder] if folder.is_file() else result_files(folder)
    files = [f for f in files if not any(owner in f.parents for owner in owners) and not is_hidden(f, folder)]
    for file in files:
        if not _new(file, seen):
            continue
        with _noted(sources, "A run", file):
            for one in (file, *file.parent.glob(f"{file.name.removesuffix('results.json')}samples_*.jsonl")):
                _own(one, folder)
            run = records.read_run(file)
            sources.runs[_run_name(file, folder, files, sources.runs)] = run


@contextmanager
def _noted(sources: Sources, what: str, path: Path) -> Iterator[None]:
    """One source that cannot be read does not keep the others from being shown."""
    try:
        yield
    except (ValueError, EvaluationError, OSError) as error:
        text = str(error)
        sources.notes.append(f"{what} was left out: {text if str(path) in text else f'{path}: {text}'}")


def _own(file: Path, folder: Path) -> Path:
    """A file that was found in a folder. Raises OutsideError for a link that leads out of it."""
    return inside(folder, file.relative_to(folder).as_posix(), str(folder)) if folder.is_dir() else file


def _visible(folder: Path, name: str) -> list[Path]:
    """Files of a name in a folder and below, without what lies in hidden folders: cells that are being written."""
    return [file for file in folder.rglob(name) if not is_hidden(file, folder)] if folder.is_dir() else []


def _new(path: Path, seen: set[Path]) -> bool:
    seen_before = path.resolve() in seen
    seen.add(path.resolve())
    return not seen_before


def _name(folder: Path, taken: Iterable[str]) -> str:
    """A folder's own name, or with that of the folder above it where another has the same."""
    folder = folder.resolve()
    return _untaken([folder.name, f"{folder.parent.name}-{folder.name}"], taken)


def _run_name(file: Path, folder: Path, files: Sequence[Path], taken: Iterable[str]) -> str:
    """That of the given folder, where one run lies in it; else the run's own folder below it."""
    given = folder.resolve() if folder.is_dir() else folder.resolve().parent
    below = file.parent.resolve().relative_to(given).as_posix()
    date = date_of(file)
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
