"""One archive of runs for a paper's appendix: metrics, answers, specs, provenance, hashes, and how to check them."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plam_eval.errors import PlamError
from plam_eval.evaluation import records, scan_folder
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.sweep import folder as sweep_folder
from plam_eval.evaluation.sweep.grid import Grid
from plam_eval.files import LARGEST_JSON, check_size, inside, json_object, read_at_most, sha256_of_file
from plam_eval.harness import lookup, run_files, sample_lines
from plam_eval.provenance import versions
from plam_eval.publishing.bundle.archive import BundleError, Writer, open_archive, write_archive
from plam_eval.publishing.bundle.manifest import (
    LARGEST,
    NAME,
    README,
    BundledFile,
    BundledRun,
    BundledTask,
    Manifest,
    TaskFile,
    config_digest,
    parse_manifest,
)
from plam_eval.publishing.bundle.readme import readme_of
from plam_eval.publishing.bundle.scrub import Scrubber

_LARGEST_TEXT = 1 << 24  # bytes of a plateau.yaml or a curve
_SHOWN = 200  # lines of a log of which something was left out that are named one by one


@dataclass(frozen=True)
class Bundle:
    """A bundle that was written.

    Attributes:
        path: of the archive.
        sha256: of the archive, in hex: what a paper can print.
        bytes: its size.
        manifest: what is in it.
    """

    path: Path
    sha256: str
    bytes: int
    manifest: Manifest

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "bytes": self.bytes,
            "runs": {run.label: list(run.tasks) for run in self.manifest.runs},
            "files": len(self.manifest.files) + 1,
            "notes": self.manifest.notes,
        }


@dataclass
class _Sources:
    """What goes into a bundle: runs by label, and other files by the name of their member, with what they are."""

    runs: dict[str, Run] = field(default_factory=dict)
    records: dict[str, tuple[Path, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add_run(self, label: str, run: Run, folder: Path | None = None) -> str:
        """Add a run once; returns its label, which has a number where another run has the same one.

        It lies in a folder that was named; None where its results file was, which may be a link then.
        """
        root = folder or run.file.parent
        for file in _files_of(run)[0 if folder else 1 :]:
            inside(root, file.relative_to(root).as_posix(), str(root))
        for present, other in self.runs.items():
            if run.file.resolve() == other.file.resolve():
                return present
        number, own = 2, label
        while own in self.runs:
            own, number = f"{label} ({number})", number + 1
        self.runs[own] = run
        return own


def make_bundle(folders: Sequence[Path], file: Path, *, anonymous: bool = False, hide: Iterable[str] = ()) -> Bundle:
    """Write runs, with all that is needed to check them, into one archive.

    The same folders give the same bytes, on the same versions and zlib.

    Args:
        folders: of runs (the newest of each model) or results files, of sweeps, comparisons and scans.
        file: the archive, a .zip; an older bundle there is replaced.
        anonymous: leave out what names authors, too: commits, free text of specs.
        hide: words that are left out of every record, whatever their case: an organisation, a project.

    Raises:
        BundleError: a run is damaged or has no sample log, a cell is damaged, nothing is in a folder, or something
            else lies at `file`; every problem is listed, and nothing is written.
        DamagedFileError: a record was damaged meanwhile, or is larger than any.
        OSError: it cannot be written.
    """
    sources = _Sources()
    sources.problems += _file_problems(file)
    for folder in folders:
        _collect(folder, sources)
    if not sources.runs and not sources.problems:
        sources.problems.append("no finished run in these folders")
    if sources.problems:
        raise BundleError(*sources.problems, origin="nothing was bundled")
    scrub = Scrubber([*folders, file.parent], anonymous=anonymous, hide=hide)
    manifests: list[Manifest] = []
    write_archive(file, lambda writer: manifests.append(_write(writer, sources, scrub, anonymous)))
    return Bundle(file, sha256_of_file(file), file.stat().st_size, manifests[0])


def _file_problems(file: Path) -> Iterator[str]:
    if file.suffix != ".zip":
        yield f"{file}: a bundle is a zip file; end its name in .zip"
    elif file.is_dir() or not file.parent.is_dir():
        yield f"{file}: is a folder, or lies in none; name a file in a folder that is there"
    elif file.exists():
        try:
            with open_archive(file) as archive:
                parse_manifest(archive.read(NAME, LARGEST) if NAME in archive.names else b"", str(file))
        except (BundleError, OSError):
            yield f"{file}: holds something that is no bundle, and is not overwritten; name another file"


# --- what there is ----------------------------------------------------------------------------------------------------


def _collect(folder: Path, sources: _Sources) -> None:
    """Add what lies in a folder, or what is wrong with it."""
    try:
        if (folder / sweep_folder.PLAN).is_file():
            _collect_sweep(folder, sources)
        elif (folder / scan_folder.SETTINGS).is_file():
            _collect_scan(folder, sources)
        else:
            _collect_run(folder, sources)
    except (PlamError, OSError) as error:
        sources.problems.append(str(error))


def _collect_run(folder: Path, sources: _Sources) -> None:
    by_model: dict[Path, list[Path]] = {}
    if folder.is_dir() and not (folder / sweep_folder.CELL).is_file():
        for file in run_files.result_files(folder):
            by_model.setdefault(file.parent, []).append(file)
    for named in [files[-1] for files in by_model.values()] or [folder]:
        try:
            run = sweep_folder.read_run(named)
            label = sources.add_run(_label(run), run, folder if folder.is_dir() else None)
        except (PlamError, OSError) as error:
            sources.problems.append(str(error))
            continue
        if (older := len(by_model.get(run.file.parent, ())) - 1) > 0:
            what = "lies an older run, which is" if older == 1 else f"lie {older} older runs, which are"
            sources.notes.append(f"Beside {label} {what} not in this bundle.")


def _collect_sweep(folder: Path, sources: _Sources) -> None:
    plan = sweep_folder.read_plan(folder)
    where = f"sweeps/{1 + sum(name.endswith('/sweep.json') for name in sources.records):02}"
    sources.records[f"{where}/sweep.json"] = (
        inside(folder, sweep_folder.PLAN, str(folder)),
        "settings of a sweep or a comparison",
    )
    unfinished: dict[str, list[str]] = {}
    for cell in Grid.from_dict(plan["grid"]).cells:
        record, run = sweep_folder.read_state(folder, cell, plan["settings"])
        if record["status"] == sweep_folder.DAMAGED:
            sources.problems.append(f"{folder}: cell {cell.name}: {record['error']}")
        elif run is None:
            unfinished.setdefault(record["status"], []).append(cell.name)
        else:
            sources.add_run(cell.name, run, folder)
        stored = folder / sweep_folder.CELLS / cell.name / sweep_folder.CELL
        if stored.is_file() and record["status"] != sweep_folder.DAMAGED:
            stored = inside(folder, stored.relative_to(folder).as_posix(), str(folder))
            sources.records[f"{where}/{cell.name}.json"] = (stored, "record of a cell")
    for status, names in unfinished.items():
        sources.notes.append(f"Cells that are {status}, and have no run here: {', '.join(names)}.")


def _collect_scan(folder: Path, sources: _Sources) -> None:
    scan_folder.load(folder)
    where = f"scans/{1 + sum(name.endswith('/scan.json') for name in sources.records):02}"
    kinds = {
        scan_folder.SETTINGS: "settings of a scan",
        scan_folder.STAGES: "what a scan concluded",
        scan_folder.SPEC: "the spec that a scan wrote",
        "curve.csv": "the curve of a scan",
    }
    for name, kind in kinds.items():
        if (folder / name).is_file():
            file = inside(folder, name, str(folder))
            check_size(file, _most_of(file), "copy it again")
            sources.records[f"{where}/{name}"] = (file, kind)
    if run_files.result_files(folder / scan_folder.UNMASKED):
        sources.add_run("unmasked run of a scan", records.read_run(folder / scan_folder.UNMASKED), folder)


def _files_of(run: Run) -> list[Path]:
    return [run.file, *(run_files.samples_file(run.file, task) for task in run.tasks)]


def _label(run: Run) -> str:
    """What a bundle calls a run: not its folder, whose name lmms-eval makes of the model's path."""
    digest = (run.block.get("provenance") or {}).get("digest")
    if digest:
        return f"merged {str(digest)[:12]}"
    return "plain" if run.block.get("plain") else "run"


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(writer: Writer, sources: _Sources, scrub: Scrubber, anonymous: bool) -> Manifest:
    files: dict[str, BundledFile] = {}
    bundled: list[BundledRun] = []
    for number, (label, run) in enumerate(sources.runs.items(), start=1):
        bundled.append(_write_run(writer, f"runs/{number:03}", scrub.text(label), run, scrub, files))
    for name, (path, _) in sorted(sources.records.items()):
        _write_record(writer, name, path, scrub, files)
    kinds = {name: kind for name, (_, kind) in sorted(sources.records.items())}
    readme = readme_of(bundled, kinds, anonymous, any(each.left_out for each in files.values()))
    written = writer.add(README, [readme.encode()])
    files[README] = BundledFile(sha256=written.sha256, bytes=written.bytes)
    manifest = Manifest(
        runs=bundled,
        records=kinds,
        files=dict(sorted(files.items())),
        versions=versions(),
        platform={"system": platform.system(), "machine": platform.machine()},
        task_files=_task_files(sorted({task for run in bundled for task in run.tasks})),
        anonymous=anonymous,
        notes=[scrub.text(note) for note in sources.notes],
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
    if len(text) > LARGEST:
        raise BundleError(f"{NAME}: would be larger than {LARGEST} bytes; bundle fewer runs")
    writer.add(NAME, [text.encode()])
    return manifest


def _write_run(
    writer: Writer, where: str, label: str, run: Run, scrub: Scrubber, files: dict[str, BundledFile]
) -> BundledRun:
    results = f"{where}/results.json"
    _write_record(writer, results, run.file, scrub, files)
    bundled: dict[str, BundledTask] = {}
    counts = run.samples["task"].value_counts()
    task_versions = run.results.get("versions") or {}
    for task in sorted(run.tasks):
        name = f"{where}/samples_{re.sub(r'[^A-Za-z0-9._+-]', '-', task)[:150]}.jsonl"
        if name in files:  # names of tasks that differ in what a file's may not hold
            name = name.replace(".jsonl", f"-{len(bundled)}.jsonl")
        _write_log(writer, name, run_files.samples_file(run.file, task), scrub, files)
        bundled[task] = BundledTask(
            samples=name,
            documents=int(counts.get(task, 0)),
            version=str(task_versions.get(task, "")),
            config_sha256=config_digest(run.results["configs"][task] or {}),
        )
    digest, made_by = (run.block.get("provenance") or {}).get("digest"), run.summary()["lmms_eval"]
    return BundledRun(
        label=label,
        results=results,
        tasks=bundled,
        digest=str(digest) if digest else None,
        lmms_eval=str(made_by) if made_by else None,
    )


def _write_record(writer: Writer, name: str, path: Path, scrub: Scrubber, files: dict[str, BundledFile]) -> None:
    """A JSON record without what is left out, or a text; as it is where nothing is."""
    original = read_at_most(path, _most_of(path), "copy it again")
    if path.suffix == ".json":
        kept, left_out = scrub.record(json_object(original, str(path), "copy it again"))
        content = (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode("utf-8") if left_out else original
    else:
        text = original.decode("utf-8", "replace")
        lines = text.splitlines(keepends=True)
        kept_lines = [scrub.text(line) for line in lines]
        changed = (n for n, pair in enumerate(zip(lines, kept_lines, strict=True), start=1) if pair[0] != pair[1])
        left_out = {str(number): "a path or a name" for number in changed}
        content = "".join(kept_lines).encode() if left_out else original
    written = writer.add(name, [content])
    before = hashlib.sha256(original).hexdigest() if left_out else None
    files[name] = BundledFile(sha256=written.sha256, bytes=written.bytes, original=before, left_out=left_out)


def _most_of(record: Path) -> int:
    return LARGEST_JSON if record.suffix == ".json" else _LARGEST_TEXT


def _write_log(writer: Writer, name: str, log: Path, scrub: Scrubber, files: dict[str, BundledFile]) -> None:
    """A sample log, line by line: as it is but for images, secrets and places of the machine."""
    changed: list[int] = []
    original = hashlib.sha256()

    def lines() -> Iterator[bytes]:
        with log.open("rb") as stream:
            for number, line in enumerate(sample_lines.lines_of(_Hashed(stream, original), log), start=1):
                kept, left_out = scrub.sample(line)
                if left_out:
                    changed.append(number)
                yield kept + b"\n"

    written = writer.add(name, lines())
    why = dict.fromkeys(map(str, changed[:_SHOWN]), "an image, a secret or a path")
    if len(changed) > _SHOWN:
        why["more"] = f"{len(changed) - _SHOWN} more lines"
    before = original.hexdigest() if original.hexdigest() != written.sha256 else None
    files[name] = BundledFile(sha256=written.sha256, bytes=written.bytes, original=before, left_out=why)


class _Hashed:
    """A stream whose lines go through a digest as they are read."""

    def __init__(self, stream: Any, digest: Any) -> None:
        self._stream, self._digest = stream, digest

    def readline(self, most: int) -> bytes:
        line: bytes = self._stream.readline(most)
        self._digest.update(line)
        return line


def _task_files(names: Sequence[str]) -> dict[str, TaskFile]:
    manager = lookup.task_manager()
    files: dict[str, TaskFile] = {}
    for name in names:
        digest, paths = hashlib.sha256(), lookup.yaml_files(manager, name)
        for path in paths:
            digest.update(path.read_bytes())
        if paths:
            files[name] = TaskFile(sha256=digest.hexdigest(), files=len(paths))
    return files
