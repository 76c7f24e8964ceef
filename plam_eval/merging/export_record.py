"""What an exported checkpoint says of itself: the file `plam_export.json` in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from plam_eval.errors import CheckpointError, DamagedFileError, validation_problems
from plam_eval.files import read_json, write_json

FILE = "plam_export.json"
"""Its name in the folder of the export."""

How = Literal["copied", "merged", "converted"]
"""How a file of an export came about: see `ExportedFile`."""

FORMAT: Literal[1] = 1
"""Version of the record's form."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ExportedFile(_Strict):
    """One file of the export.

    Attributes:
        sha256: of its content, in hex.
        bytes: its size.
        how: "copied" byte for byte; "merged": copied, and its merged tensors written over; "converted": the same
            tensors in another format, merged ones among them.
    """

    sha256: str
    bytes: int
    how: How


class ExportRecord(_Strict):
    """Where an exported checkpoint comes from, and what it holds.

    Attributes:
        format: version of this form.
        created: when, in ISO form with its zone.
        command: that makes it again.
        spec: the plateau spec, as `PlateauSpec.to_dict` gives it; `digest` is the spec's.
        model: the MLLM, as `provenance.describe_checkpoint` describes it; `base` is the base LLM, `ancestor` that of a
            rule that takes one, and None, and no key of the file, with any other rule.
        inputs: side ("model", "base", "ancestor") -> file -> SHA-256 of every file that was read.
        files: relative name -> file, of everything in the folder but this record and the card.
        merge: the merge's report, as `MergeReport.to_dict` gives it.
        versions: of what made it.
        notes: what a reader has to know, one sentence each.
    """

    format: Literal[1] = FORMAT
    created: str
    command: str
    spec: dict[str, Any]
    digest: str
    model: dict[str, Any]
    base: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    files: dict[str, ExportedFile]
    merge: dict[str, Any]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    ancestor: dict[str, Any] | None = None

    @property
    def sides(self) -> dict[str, dict[str, Any]]:
        """What was merged, by side: "model", "base" and, where there is one, "ancestor"."""
        third = {} if self.ancestor is None else {"ancestor": self.ancestor}
        return {"model": self.model, "base": self.base, **third}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, as it is written."""
        return self.model_dump(mode="json", exclude=None if self.ancestor else {"ancestor"})

    def write(self, folder: Path) -> None:
        """Write it into the folder of the export, in one step; raises OSError when it cannot.

        Args:
            folder: of the export.
        """
        write_json(folder / FILE, self.to_dict())


def read_export_record(folder: Path) -> ExportRecord:
    """The record of an exported checkpoint.

    Args:
        folder: of the export.

    Raises:
        CheckpointError: there is none, or it is damaged or of another version; every problem is named.
    """
    file = folder / FILE
    try:
        content: Mapping[str, Any] = read_json(file, "export again")
    except (OSError, DamagedFileError) as error:
        raise CheckpointError(f"{file}: cannot be read as the record of an export ({error})") from error
    try:
        # Strictly, but a list is what JSON has for a tuple.
        return ExportRecord.model_validate({**content, "notes": tuple(content.get("notes") or ())})
    except ValidationError as error:
        keys = {"": ExportRecord.model_fields}
        raise CheckpointError(*(f"{file}: {key}: {text}" for key, text in _problems(error, keys))) from error
    except TypeError as error:
        raise CheckpointError(f"{file}: notes: {error}") from error


def _problems(error: ValidationError, keys: dict[str, Any]) -> list[tuple[str, str]]:
    """What pydantic met; unknown keys of a file's entry are named by that entry."""
    files = {
        ".".join(str(word) for word in finding["loc"][:-1]): ExportedFile.model_fields for finding in error.errors()
    }
    return validation_problems(error, {**files, **keys})
