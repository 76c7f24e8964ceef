"""What several sections use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from plam_eval.evaluation.records import Run
from plam_eval.evaluation.sweep.by_rule import rule_of
from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.grid import PLAIN, describe_cell, describe_weights
from plam_eval.evaluation.sweep.selection import Selection
from plam_eval.layer_sets import as_range, read_layers
from plam_eval.report.blocks import Paragraph
from plam_eval.report.text import NONE, count_of, interval, is_known, p_value, signed, text_or_empty
from plam_eval.rules import LAYER_CONTROLS, SELF_SCALE


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

    Draws of random layers are left out: beside these they are one cloud, which has a section of its own.

    Args:
        findings: of a sweep in which a merge was chosen.
    """
    assert findings.selection is not None
    controls = {}
    for rule, cells in findings.plan["grid"]["controls"].get(findings.selection.cell, {}).items():
        if rule in LAYER_CONTROLS:
            continue
        for number, cell in enumerate(cells, 1):
            if cell in findings.runs and cell != PLAIN:
                controls[rule if len(cells) == 1 else f"{rule} {number}"] = findings.runs[cell]
    ordered = dict(sorted(controls.items(), key=lambda item: item[0] != SELF_SCALE))
    return {PLAIN: findings.runs[PLAIN], "merged": findings.runs[findings.selection.cell], **ordered}


def layers_of_cell(row: Mapping[str, Any]) -> tuple[bool, tuple[int, ...], str]:
    """By what cells are sorted: whether their layers have gaps, the layers in order, and how they are written.

    Args:
        row: of `Findings.cells`.
    """
    layers = read_layers(str(row["layers"]))
    return as_range(layers) is None, layers, str(row["layers"])


def layer_labels(written: Sequence[str]) -> dict[str, str]:
    """Short names of sets of layers for the axis of a figure, in lines; of a long set its size and ends.

    Args:
        written: the sets, each once, as specs write them.
    """
    labels: dict[str, str] = {}
    for text in written:
        lines: list[str] = []
        for word in text.split("+"):
            if lines and len(lines[-1]) + len(word) < _LINE:
                lines[-1] += f"+{word}"
            else:
                lines.append(f"+{word}" if lines else word)
        layers = read_layers(text)
        label = "\n".join(lines) if len(lines) <= _LINES else f"{len(layers)} of\n{layers[0]}:{layers[-1] + 1}"
        same = sum(other == label or other.startswith(f"{label} #") for other in labels.values())
        labels[text] = f"{label} #{same + 1}" if same else label
    return labels


_LINE, _LINES = 9, 4  # letters of a line of such a name, and lines


def rule_titles(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The rules of cells with their parameters, each once, in the order in which they were swept.

    Args:
        rows: of `Findings.cells`.
    """
    return list(dict.fromkeys(rule_of(row) for row in rows))


def setting_of(row: Mapping[str, Any], *, modules: bool) -> str:
    """What a cell's rule and layers leave open, for a figure that is sorted by these: weights, modules, seed.

    Args:
        row: of `Findings.cells`.
        modules: whether modules are told: where cells differ in them.
    """
    seed = f", seed {row['seed']}" if is_known(row["seed"]) and row["seed"] else ""
    return f"{row['modules']}, {describe_weights(row)}{seed}" if modules else f"{describe_weights(row)}{seed}"


PAIRED: dict[str, Callable[[Any], str]] = {  # columns that every comparison has
    "95%": lambda row: interval(row["low"], row["high"]),
    "gained": lambda row: text_or_empty(row["gained"]) or NONE,
    "lost": lambda row: text_or_empty(row["lost"]) or NONE,
    "p": lambda row: p_value(row["p"]),
}
