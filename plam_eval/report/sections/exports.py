"""Which merged checkpoints were exported, and which of the figures are theirs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from plam_eval.evaluation.exported_merge import ran_files, same_content
from plam_eval.evaluation.sweep.grid import describe_cell
from plam_eval.hub import in_words
from plam_eval.merging.export_record import ExportRecord
from plam_eval.report.blocks import Listing, Paragraph, Row, Section, TableBlock, records_of
from plam_eval.report.sources import Sources
from plam_eval.report.text import NONE, identity_of

ANCHOR = "exports"


def export_links(sources: Sources) -> list[tuple[str, str]]:
    """For the head of the page: the digest of every export, and where it is described.

    Args:
        sources: what the page is of.
    """
    digests = dict.fromkeys(record.digest for record in sources.exports.values())
    return [(f"exported as {digest[:16]}", f"#{ANCHOR}") for digest in digests]


def evaluated_as(record: ExportRecord, sources: Sources) -> list[str]:
    """Names of the cells and runs on the page that were merged as an export was, or ran its files.

    Args:
        record: the export's.
        sources: what the page is of.
    """
    names = []
    for name, findings in sources.sweeps.items():
        where = f" of {name}" if len(sources.sweeps) > 1 else ""
        for row in records_of(findings.cells):
            run = findings.runs.get(str(row["cell"]))
            if run is not None and _is_of(run.block.get("provenance") or {}, record):
                names.append(f"{describe_cell(row)}{where}")
    names += [name for name, run in sources.runs.items() if _is_of(run.block.get("provenance") or {}, record)]
    return names


def _is_of(provenance: dict[str, Any], record: ExportRecord) -> bool:
    """By the digest of the spec, and the content of all checkpoints where both sides recorded it; or by the files."""
    checkpoint, base, ancestor = (provenance.get(side) or {} for side in ("checkpoint", "base", "ancestor"))
    if provenance.get("digest") is None:
        return ran_files(checkpoint, {name: file.sha256 for name, file in record.files.items()})
    pairs = ((checkpoint, record.model), (base, record.base), (ancestor, record.ancestor or {}))
    return provenance["digest"] == record.digest and all(same_content(*pair) is not False for pair in pairs)


def exports_section(sources: Sources) -> list[Section]:
    """A section where there are exports: their digests, whose figures they have, and the hashes of their files.

    Args:
        sources: what the page is of.
    """
    if not sources.exports:
        return []
    blocks: list[Any] = []
    for name, record in sources.exports.items():
        evaluated = evaluated_as(record, sources)
        rows = {
            "spec digest": record.digest,
            "figures on this page": ", ".join(evaluated) or NONE,
            "files": _counts(record),
            "made from": _checkpoint(record.model),
            "base LLM": _checkpoint(record.base),
            **({"ancestor": _checkpoint(record.ancestor)} if record.ancestor else {}),
            "made": record.created,
        }
        blocks.append(TableBlock(name, ("of", "what"), tuple(Row(row) for row in rows.items()), frozenset({1})))
        if not evaluated:
            blocks.append(
                Paragraph(
                    f"No run or cell on this page is of {name}, or was merged as it was: no figure here is of it.",
                    "warning",
                )
            )
        lines = tuple(f"{file.sha256}  {path}" for path, file in sorted(record.files.items()))
        blocks.append(Listing(f"SHA-256 of the files of {name} ({len(lines)}), for sha256sum --check", lines))
        if record.notes:
            blocks.append(Listing(f"Notes of {name} ({len(record.notes)})", record.notes, code=False))
    return [Section("Exported checkpoints", tuple(blocks), ANCHOR)]


def _checkpoint(described: dict[str, Any]) -> str:
    rest = {key: value for key, value in described.items() if key != "name"}
    return f"{described.get('name')} ({identity_of(rest)})"


def _counts(record: ExportRecord) -> str:
    """How many files came about how, such as "3 copied, 1 merged, 14.1 GB"."""
    hows = Counter(file.how for file in record.files.values())
    size = sum(file.bytes for file in record.files.values())
    return ", ".join([*(f"{count} {how}" for how, count in sorted(hows.items())), in_words(size)])
