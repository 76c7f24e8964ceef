"""What several sections use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plam_eval.evaluation.records import Run
from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.grid import PLAIN, describe_cell
from plam_eval.evaluation.sweep.selection import Selection
from plam_eval.report.blocks import Paragraph
from plam_eval.report.text import NONE, count_of, interval, p_value, signed, text_or_empty
from plam_eval.rules import SELF_SCALE


def selection_note(selection: Selection) -> str:
    """How the cell of `selection` was chosen, and on what."""
    reported = count_of(sum(selection.reported_on.values()), "document")
    if selection.tried == 1:
        return f"It is the only merge there is, so nothing was chosen; figures are of {reported}."
    if not selection.held_out:
        return f"Figures on this page are of the {reported} on which it was chosen: its own are optimistic."
    others = count_of(sum(selection.chosen_on.values()), "other document")
    difference = signed(selection.difference_chosen)
    return f"It was chosen on {others} ({difference} there); figures on this page are of the {reported} held out."


def chosen_note(findings: Findings, cells: Mapping[str, Mapping[str, Any]]) -> list[Paragraph]:
    """Which cell is meant, in sections that show no other.

    Args:
        findings: the sweep's.
        cells: the rows of `findings.cells`, by the cell's name.
    """
    if findings.selection is None:
        return []
    optimistic = findings.selection.tried > 1 and not findings.selection.held_out
    more = " (optimistic: see the answer above)" if optimistic else ""
    return [Paragraph(f"Merged: {describe_cell(cells[findings.selection.cell])}{more}.", "note")]


def chosen_beside(findings: Findings) -> dict[str, Run]:
    """Plain, the chosen merge, and its finished controls, the scale control first, by short names.

    Args:
        findings: of a sweep in which a merge was chosen.
    """
    assert findings.selection is not None
    controls = {}
    for rule, cells in findings.plan["grid"]["controls"].get(findings.selection.cell, {}).items():
        for number, cell in enumerate(cells, 1):
            if cell in findings.runs and cell != PLAIN:
                controls[rule if len(cells) == 1 else f"{rule} {number}"] = findings.runs[cell]
    ordered = dict(sorted(controls.items(), key=lambda item: item[0] != SELF_SCALE))
    return {PLAIN: findings.runs[PLAIN], "merged": findings.runs[findings.selection.cell], **ordered}


def layers_of_cell(row: Mapping[str, Any]) -> tuple[int, int, str]:
    """The first layer of a cell, the end of its last and how they are written, by which cells are sorted.

    Args:
        row: of `Findings.cells`.
    """
    return int(row["start"]), int(row["end"]), str(row["layers"])


PAIRED: dict[str, Callable[[Any], str]] = {  # columns that every comparison has
    "95%": lambda row: interval(row["low"], row["high"]),
    "gained": lambda row: text_or_empty(row["gained"]) or NONE,
    "lost": lambda row: text_or_empty(row["lost"]) or NONE,
    "p": lambda row: p_value(row["p"]),
}
