"""What a reader should know of the runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plam_eval.evaluation import records
from plam_eval.evaluation.records import Run
from plam_eval.report.blocks import (
    Listing,
    Section,
    count_of,
    cut_short,
    minus_signs,
)
from plam_eval.report.sources import Sources

if TYPE_CHECKING:
    pass


from plam_eval.report.comparisons import Comparisons


def warnings_section(sources: Sources, compared: Comparisons | None) -> list[Section]:
    found: dict[str, list[str]] = {}  # by warning: where
    for note in sources.notes:
        found.setdefault(note, [])
    for name, scanned in sources.scans.items():
        for warning in scanned.stages.warnings:
            found.setdefault(f"scan: {warning}", []).append(name)
    groups = [(name, result.runs) for name, result in sources.sweeps.items()] + [("", sources.runs)]
    for result in sources.sweeps.values():
        notes = [note for run in result.runs.values() for note in run.notes]
        for warning in result.warnings:
            if warning.endswith((records.UNKNOWN_CLUSTERS, *notes)):  # below, with the cells it is of
                continue
            cell, _, text = warning.partition(": ")
            inside = cell in result.runs and text
            found.setdefault(text if inside else warning, []).extend([cell] if inside else [])
    for _, runs in groups:
        for name, run in runs.items():
            for warning in _run_warnings(run):
                found.setdefault(warning, []).append(name)
    if compared is not None:
        for name, warnings in compared.warnings.items():
            for warning in warnings:
                found.setdefault(warning, []).append(name)
    lines = []
    for warning, where in records.joined(found).items():
        places = ", ".join(where) if len(where) <= 4 else f"{', '.join(where[:3])} and {len(where) - 3} others"
        lines.append(minus_signs(f"{cut_short(warning)} ({places})" if where else cut_short(warning)))
    if not lines:
        return []
    return [Section("Warnings", (Listing(f"{count_of(len(lines), 'warning')}", tuple(lines), code=False, open=True),))]


def _run_warnings(run: Run) -> list[str]:
    merge = (run.block.get("provenance") or {}).get("merge") or {}
    found = [str(warning) for warning in merge.get("warnings") or []]
    found += [*run.notes, *(f"{task}: {records.LEFT_OUT}: {why}" for task, why in run.unscored.items())]
    generation = run.block.get("generation") or {}
    if generation.get("failed"):
        found.append(f"{generation['failed']} of {generation['calls']} generations failed and count as wrong answers")
    if altered := run.block.get("altered_answers"):
        found.append(f"{count_of(len(altered), 'answer')} could not be written as given and were altered")
    return found
