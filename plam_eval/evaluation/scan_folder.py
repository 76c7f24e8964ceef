"""What a scan's folder holds: the settings it was made with, the answers, and what was concluded from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plam_eval import files
from plam_eval.errors import DamagedFileError, changed_settings
from plam_eval.evaluation.answer_store import AnswerStore, open_noted, stores_in
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.sampling import named_as_before
from plam_eval.probing.closed import READERS
from plam_eval.probing.curve import Curve
from plam_eval.probing.plateau import Stages
from plam_eval.spec import PlateauSpec, load_spec

SETTINGS, SAMPLES, STAGES, SPEC = "scan.json", "samples.parquet", "stages.json", "plateau.yaml"
LOCK = "scan.lock"
UNMASKED = "unmasked"
"""Folder in it: the run without a cut, as lmms-eval writes one."""
CURVE_FILES = ("curve.csv", "curve.parquet", "curve.png", "curve.svg")


class ScanError(EvaluationError):
    """A scan that cannot go on; the message says what was found and what to do. Finished documents are kept."""


@dataclass(frozen=True, repr=False)
class Scan:
    """A finished scan: its folder, the curve, its stages, and the spec written from them (None without a plateau)."""

    folder: Path
    curve: Curve
    stages: Stages
    spec: PlateauSpec | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: folder, spec (its file and content), stages, and the curve, a row for each task and cut."""
        return {
            "folder": str(self.folder),
            "spec_file": str(self.folder / SPEC) if self.spec is not None else None,
            "spec": self.spec.to_dict() if self.spec is not None else None,
            "stages": self.stages.to_dict(),
            "curve": self.curve.table().to_dict("records"),
        }

    def __repr__(self) -> str:
        return f"Scan({self.folder}, {sum(self.curve.documents.values())} documents: {self.stages.reason})"


def check_folder(output: str | Path) -> None:
    """Raise FolderError where `output` cannot be written, or holds files of a scan's names that are no scan's.

    Args:
        output: folder of the scan; need not exist.
    """
    files.check_writable(output)
    names = (SAMPLES, STAGES, SPEC, *CURVE_FILES, UNMASKED, *stores_in(Path(output)))
    files.check_free(Path(output), (*names, *files.used_locks(Path(output), LOCK)), SETTINGS)


def load(folder: Path) -> Scan:
    """A finished scan as it was concluded last.

    Args:
        folder: of the scan.

    Raises:
        ScanError: there is none. DamagedFileError, CurveError, SpecError, OutsideError: it cannot be read.
    """
    if not (folder / STAGES).is_file():
        raise ScanError(f"{folder}: no finished scan (no {STAGES})")
    closed_to = whole_settings(folder).get("closed_to", "text")
    stages = concluded(folder)[0]
    if stages.closed_to != closed_to:
        raise DamagedFileError(
            f"{folder}: {SETTINGS} says closed to {closed_to}, {STAGES} closed to {stages.closed_to}; `plam plateau "
            f"{folder}` writes the latter again"
        )
    curve = Curve.read(files.inside(folder, SAMPLES, str(folder))).only(stages.documents)
    spec = load_spec(files.inside(folder, SPEC, str(folder))) if (folder / SPEC).is_file() else None
    return Scan(folder, curve, stages, spec)


def concluded(folder: Path) -> tuple[Stages, str | None]:
    """The stages that were concluded last, and the base LLM that was known then.

    Args:
        folder: of a scan that has a conclusion.

    Raises:
        DamagedFileError: it cannot be read.
    """
    file, remedy = files.inside(folder, STAGES, str(folder)), f"`plam plateau {folder}` writes it again"
    content = files.read_json(file, remedy)
    base = content.get("base_model")
    try:
        if not isinstance(base, (str, type(None))):
            raise ValueError(f"base_model: found {base!r:.80}")
        return Stages.from_dict(content["stages"]), base
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{file}: holds no stages that a scan writes ({error}); {remedy}") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """What a scan was made with, as it was stored.

    Args:
        folder: of the scan.

    Raises:
        ScanError: there is no scan. DamagedFileError: it cannot be read.
    """
    file = folder / SETTINGS
    if not file.is_file():
        raise ScanError(f"{folder}: no scan there (no {SETTINGS}); expected the --output of `plam scan`")
    return files.read_json(files.inside(folder, SETTINGS, str(folder)), _REMEDY)


_REMEDY = "restore it from a copy, or scan into another --output"
_KINDS: dict[str, Any] = {
    "pretrained": str,
    "wrapper": str,
    "mode": str,
    "dtype": str,
    "spec": (dict, type(None)),
    "versions": dict,
}


def whole_settings(folder: Path) -> dict[str, Any]:
    """As `read_settings`, known to hold what a scan writes; `closed_to` is there only where it is not all text.

    Args:
        folder: of the scan.

    Raises:
        DamagedFileError: it does not.
    """
    settings = read_settings(folder)
    for key, kind in _KINDS.items():
        if key not in settings or not isinstance(settings[key], kind):
            raise DamagedFileError(f"{folder / SETTINGS}: {key}: found {settings.get(key)!r:.80}; {_REMEDY}")
    if (closed_to := settings.get("closed_to", "text")) not in [*READERS]:
        expected = ", ".join(READERS)
        raise DamagedFileError(
            f"{folder / SETTINGS}: closed_to: found {closed_to!r:.80}, expected one of {expected}; {_REMEDY}"
        )
    return settings


def open_store(folder: Path, settings: dict[str, Any], rank: int) -> AnswerStore:
    """The answers that a scan's folder holds so far, and the settings noted in it where there are none.

    Args:
        folder: made where it is missing.
        settings: what answers depend on, apart from the documents.
        rank: number of this process; the first one, 0, writes the settings.

    Raises:
        ScanError: the folder holds answers of other settings.
    """

    def changed() -> str:
        before = read_settings(folder)
        return changed_settings(before, named_as_before(before, settings))

    return open_noted(folder, SETTINGS, settings, rank, changed, ScanError)
