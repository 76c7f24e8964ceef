"""What a reader should know of the runs: beside the answer that it qualifies, and what is left of it at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plam_eval.evaluation import comparable, records
from plam_eval.evaluation.comparison import Comparisons, worse_tasks
from plam_eval.evaluation.noise.floor import Noise
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.stats import OVERALL, Paired
from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.grid import PLAIN, describe_cell
from plam_eval.report.blocks import Listing, Section, records_of
from plam_eval.report.sources import Sources
from plam_eval.report.text import count_of, cut_short, interval, minus_signs, signed

ANCHOR = "warnings"
_BESIDE = 5  # warnings that stand with one answer
_PLACES = 4  # runs that a warning names


@dataclass(frozen=True)
class Warned:
    """Warnings of one source: those that stand with its answer, and those that are left for the end of the page."""

    beside: tuple[str, ...] = ()
    further: tuple[str, ...] = ()


def of_notes(sources: Sources) -> Warned:
    """What was left out of the folders of `sources`, which no answer is of."""
    return _parted([minus_signs(cut_short(note)) for note in sources.notes], ())


def of_one_answer(warnings: Iterable[str]) -> Warned:
    """The `warnings` of a scan or a look inside, all of which are of its one answer."""
    return _parted([minus_signs(cut_short(warning)) for warning in warnings], ())


def of_sweep(findings: Findings, noise: Noise | None = None) -> Warned:
    """Those of the plain model, of the chosen merge and its controls, and of all cells stand with the answer.

    Args:
        findings: the sweep's, with its warnings and its runs' notes.
        noise: the noise floor, where it was measured.
    """
    texts: dict[str, list[str]] = {}  # by warning: the cells it is of
    notes = [note for run in findings.runs.values() for note in run.notes]
    for warning in findings.warnings:
        if warning.endswith((records.UNKNOWN_CLUSTERS, *notes)):  # below, with the cells it is of
            continue
        cell, _, text = warning.partition(": ")
        inside = cell in findings.runs and text
        texts.setdefault(text if inside else warning, []).extend([cell] if inside else [])
    _of_runs(findings.runs, texts)
    names = {str(row["cell"]): describe_cell(row) for row in records_of(findings.cells)}
    chosen = findings.selection.cell if findings.selection else None
    by_rule = findings.plan["grid"]["controls"].get(chosen, {}) if chosen else {}
    meant = {PLAIN, chosen, *(control for controls in by_rule.values() for control in controls)}
    near: list[str] = []
    far: list[str] = []
    if chosen is not None:
        near += [minus_signs(text) for text in noise.in_words(findings.compared[chosen][-1:])] if noise else []
        near += _worse_in_tasks(findings.compared[chosen], findings.runs[PLAIN].directions, PLAIN)
    for text, where in comparable.join_notes(texts).items():
        close = not where or meant & set(where)
        every = len(where) == len(findings.runs) - 1 and PLAIN not in where
        places = ["every cell but plain"] if every and len(where) > 1 else [names.get(cell, cell) for cell in where]
        (near if close else far).append(_line(text, places, len(findings.runs)))
    return _parted(near, far)


def of_runs(runs: Mapping[str, Run], compared: Comparisons | None) -> Warned:
    """Of run folders, and of what keeps them from being compared as they are.

    Args:
        runs: by name, at least one.
        compared: against one of them; None where there is one run.
    """
    texts: dict[str, list[str]] = {}
    _of_runs(runs, texts)
    near = []
    if compared is not None:
        for name, warnings in compared.warnings.items():
            for warning in warnings:
                texts.setdefault(warning, []).append(name)
        for name, rows in compared.rows.items():
            near += [f"{name}: {text}" for text in _worse_in_tasks(rows, compared.directions, compared.reference)]
    lines = [_line(text, where, len(runs)) for text, where in comparable.join_notes(texts).items()]
    return _parted([*near, *lines], ())


def further_section(warned: Iterable[Warned]) -> list[Section]:
    """What does not stand with an answer, of all that is `warned`; no section where that is nothing."""
    lines = tuple(dict.fromkeys(line for source in warned for line in source.further))
    if not lines:
        return []
    listing = Listing(count_of(len(lines), "further warning"), lines, code=False, open=True)
    return [Section("Further warnings", (listing,), ANCHOR)]


def _parted(near: Sequence[str], far: Sequence[str]) -> Warned:
    return Warned(tuple(near[:_BESIDE]), (*near[_BESIDE:], *far))


def _worse_in_tasks(rows: Sequence[Paired], directions: Mapping[str, int], reference: str) -> list[str]:
    """What `worse_tasks` finds, as one warning or none."""
    worse = worse_tasks(rows, directions)
    if not worse:
        return []
    of = sum(row.task != OVERALL for row in rows)
    named = [f"{row.task} {signed(row.difference)} (95% {interval(row.low, row.high)})" for row in worse[:_PLACES]]
    shown = ", ".join(named) + (f" and {len(worse) - _PLACES} others" if len(worse) > _PLACES else "")
    return [f"worse than {reference} in single tasks: {shown}; each interval is of one task, not adjusted for {of}"]


def _line(text: str, where: Sequence[str], of: int) -> str:
    if not where or len(where) == of > 1:
        return minus_signs(cut_short(text))
    places = "; ".join(where) if len(where) <= _PLACES else f"{'; '.join(where[:3])} and {len(where) - 3} others"
    return minus_signs(f"{cut_short(text)} ({places})")


def _of_runs(runs: Mapping[str, Run], texts: dict[str, list[str]]) -> None:
    for name, run in runs.items():
        for warning in _run_warnings(run):
            texts.setdefault(warning, []).append(name)


def _run_warnings(run: Run) -> list[str]:
    merge: Mapping[str, Any] = (run.block.get("provenance") or {}).get("merge") or {}
    texts = [str(warning) for warning in merge.get("warnings") or []]
    texts += [*run.notes, *(f"{task}: {comparable.LEFT_OUT}: {why}" for task, why in run.unscored.items())]
    generation = run.block.get("generation") or {}
    if generation.get("failed"):
        texts.append(f"{generation['failed']} of {generation['calls']} generations failed and count as wrong answers")
    if altered := run.block.get("altered_answers"):
        texts.append(f"{count_of(len(altered), 'answer')} could not be written as given and were altered")
    return texts
