"""Which runs are of an exported merge: by the digest of the spec, and by the content of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plam_eval.errors import quoted
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.sweep.grid import PLAIN
from plam_eval.merging.export_record import ExportRecord
from plam_eval.provenance import read_identity
from plam_eval.rules import control_names
from plam_eval.spec import PlateauSpec, SpecError, load_spec

MERGED, CONTROL, EXPORTED = "merged", "control", "exported"
"""What a run is to an export, beside `PLAIN`: of the merge in memory, of a control, or of the exported files."""

_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class ExportedMerge:
    """A merge that was exported, or is about to be, as far as runs are told by it to be of it.

    Attributes:
        spec, digest: of the merge.
        model, base: as `provenance.describe_checkpoint` gives them.
        files: name -> SHA-256 of the exported files; None while there are none.
        ancestor: like `base`; None where the rule takes none.
    """

    spec: PlateauSpec
    digest: str
    model: Mapping[str, Any]
    base: Mapping[str, Any]
    files: Mapping[str, str] | None = None
    ancestor: Mapping[str, Any] | None = None

    @classmethod
    def of_record(cls, record: ExportRecord) -> ExportedMerge:
        """The merge that an export says that it holds.

        Args:
            record: of the export.

        Raises:
            SpecError: its spec cannot be read.
        """
        spec = load_spec(record.spec)
        assert spec is not None  # a record's spec is a mapping
        files = {name: file.sha256 for name, file in record.files.items()}
        return cls(spec, record.digest, record.model, record.base, files, record.ancestor)

    def problem_or_role(self, run: Run) -> tuple[str, str]:
        """("", role) of a run that may stand on the card; (the reason, "") of another.

        Args:
            run: of lmms-eval, ours or not.
        """
        provenance = run.block.get("provenance") or {}
        checkpoint = provenance.get("checkpoint") or {}
        if not checkpoint:
            return (
                "records no checkpoint, as runs of stock models do, so nothing ties it to this export; run the export "
                "by one of our wrappers with plateau=none",
                "",
            )
        digest = provenance.get("digest")
        same = same_content(checkpoint, self.model)
        if digest is None:
            if same:
                return "", PLAIN
            if self.files is not None and ran_files(checkpoint, self.files):
                return "", EXPORTED
            return f"is a plain run of {_which(checkpoint)}, {_why(same)}", ""
        role, problem = self._merge(provenance)
        if problem or not role:
            return (
                problem or f"is of another merge, digest {quoted(digest)[:18]}; this export is of {self.digest[:16]}",
                "",
            )
        if not same:
            return f"is of {_which(checkpoint)}, {_why(same)}", ""
        for side, mine in (("base", self.base), ("ancestor", self.ancestor)):
            theirs = provenance.get(side) or {}
            if same_content(theirs, mine or {}) is False:
                return f"was merged with another {side} ({_which(theirs)}), whose content differs", ""
        return "", role

    def _merge(self, provenance: Mapping[str, Any]) -> tuple[str, str]:
        """ "merged" or "control" for a merge that this export is of, or is held against, and what is wrong with it."""
        try:
            spec = load_spec(provenance.get("spec"))
        except SpecError as error:
            return "", f"its spec cannot be read: {'; '.join(error.problems)}"
        if spec is None or spec.digest() != provenance["digest"]:
            return "", "its digest is not that of the spec beside it; the file was changed, or is of another version"
        if spec.digest() == self.digest:
            return MERGED, ""
        fields = ("layers", "modules", "weights")
        alike = all(getattr(spec, field) == getattr(self.spec, field) for field in fields)
        return (CONTROL if alike and spec.rule in control_names(ancestor=True) else "", "")


def ran_files(checkpoint: Mapping[str, Any], exported: Mapping[str, str]) -> bool:
    """Whether a run's checkpoint is what was exported: every weight file, and nothing else.

    Args:
        checkpoint: as the run recorded it.
        exported: name -> SHA-256 of the files of the export.
    """
    ran = checkpoint.get("files") or {}
    weights = {name for name in exported if name.endswith(_WEIGHTS)}
    return bool(weights) and weights <= ran.keys() and all(exported.get(name) == ran[name] for name in ran)


def same_content(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    """Whether two recorded checkpoints hold the same; None where they do not record enough to tell.

    Args:
        one: as `provenance.describe_checkpoint` gives it.
        other: likewise.
    """
    one, other = read_identity(one), read_identity(other)
    if one.get("sha256") and other.get("sha256"):
        return bool(one["sha256"] == other["sha256"])
    ours, theirs = one.get("files") or {}, other.get("files") or {}
    if any(ours[name] != theirs[name] for name in ours.keys() & theirs.keys()):
        return False
    unchanged = [(identity.get("commit"), identity.get("fingerprint")) for identity in (one, other)]
    return True if any(before and before == now for before, now in zip(*unchanged, strict=True)) else None


def _which(checkpoint: Mapping[str, Any]) -> str:
    name = str(checkpoint.get("name") or "an unnamed checkpoint")
    return Path(name).name if "folder" in checkpoint else name


def _why(same: bool | None) -> str:
    if same is None:
        return "which records too little to tell whether it is this export's source (no content hash, no commit)"
    return "which holds something else than this export's source and than the export itself"
