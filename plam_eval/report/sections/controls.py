"""Beside the controls: each merge next to changes that hold nothing of the base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from plam_eval.evaluation.sweep.by_rule import rule_of
from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.grid import PLAIN, describe_cell
from plam_eval.report import plots
from plam_eval.report.blocks import picture, records_of, table_block
from plam_eval.report.plots import Estimate
from plam_eval.report.sections.shared import PAIRED, layer_labels, layers_of_cell, rule_titles, setting_of
from plam_eval.report.text import is_known, number, signed
from plam_eval.rules import LAYER_CONTROLS, RULES, WEIGHTED_SUM, rule_or_control


def beside_controls(findings: Findings, cells: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """A figure and a table of each merge beside its own controls; nothing where no control is finished.

    Args:
        findings: the sweep's.
        cells: the rows of `findings.cells`, by the cell's name.
    """
    chosen = findings.selection.cell if findings.selection else None
    controls = findings.plan["grid"]["controls"]
    several = len({row["modules"] for row in cells.values() if row["kind"] != "plain"}) > 1
    rules = rule_titles(cells[name] for name in controls)
    panels: dict[str, dict[str, list[Estimate]]] = {rule if len(rules) > 1 else "": {} for rule in rules}
    bold = None
    for name in sorted(controls, key=lambda name: layers_of_cell(cells[name])):
        row = cells[name]
        title, label = _place(row, several, panels)
        roles = [
            (row["rule"], name),
            *((rule, control) for rule, beside in controls[name].items() for control in beside),
        ]
        estimates = [
            Estimate(role, *(float(cells[cell][key]) for key in ("difference", "low", "high")))
            for role, cell in roles
            if cell != PLAIN and is_known(cells[cell]["difference"])
        ]
        if len(estimates) > 1:
            panels[title][label] = estimates
            bold = (title, label) if name == chosen else bold
    panels = {title: by_merge for title, by_merge in panels.items() if by_merge}
    if not panels:
        return []
    every = [estimates for by_merge in panels.values() for estimates in by_merge.values()]
    shown = {estimate.name for estimates in every for estimate in estimates}
    swept = {cells[name]["rule"] for name in controls}
    meanings, others = _meanings(shown - swept), _meanings(swept - {WEIGHTED_SUM})
    merged = f"Merged is by {'; '.join(others)}. " if others and len(rules) == 1 else ""
    merged += "Above each panel stands the rule. " if len(panels) > 1 else ""
    most = max(Counter(e.name for e in estimates).most_common(1)[0][1] for estimates in every)
    cloud = " Many draws of one control share a place, with a line at their mean." if most > plots.CLOUD else ""
    blocks: list[Any] = [
        picture(
            plots.controls(panels, chosen=bold),
            "Differences against plain of each merge and of its controls, with 95% intervals. Their numbers are in "
            "the table of all cells.",
            f"Lines are 95% intervals. {merged}Beside each merge stand {'; '.join(meanings)}. What only the base can "
            f"do would set the merge apart from them.{cloud}",
        )
    ]
    beside = [row for row in records_of(findings.controls) if row["rule"] not in LAYER_CONTROLS]
    if beside:
        table = table_block(
            "Merges against their own controls, mean over tasks; p is of one comparison each, not adjusted",
            beside,
            {
                "merge": lambda row: describe_cell(cells[row["merged"]]),
                "control": lambda row: _control_label(row, cells[row["control"]]),
                "merge scores": lambda row: number(row["second"]),
                "control scores": lambda row: number(row["first"]),
                "merge minus control": lambda row: signed(row["difference"]),
                **PAIRED,
                "answers that differ": lambda row: f"{row['answers_differ']} of {row['documents']}",
            },
            words={"control"},
            kind=lambda row: str(row["rule"]),
            look=lambda row: "chosen" if row["merged"] == chosen else "",
        )
        blocks.append(table)
    return blocks


def _place(row: Mapping[str, Any], modules: bool, panels: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Title of a merge's panel and its name there, which no other has."""
    title = rule_of(row) if "" not in panels else ""
    (layers,) = layer_labels([str(row["layers"])]).values()
    label = f"{layers}\n{setting_of(row, modules=False)}" + (f"\n{row['modules']}" if modules else "")
    number = 1 + sum(name.partition(" #")[0] == label for name in panels[title])
    return title, f"{label} #{number}" if number > 1 else label


def _control_label(row: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    return f"{row['rule']} {cell['seed']}" if rule_or_control(row["rule"]).draws else str(row["rule"])


def _meanings(names: set[str]) -> list[str]:
    """What the rules of these names make, each behind its name."""
    return [
        f"{name}, {rule.meaning}" if rule.meaning else name
        for name, rule in (RULES | LAYER_CONTROLS).items()
        if name in names
    ]
