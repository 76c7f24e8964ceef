"""Beside the controls: each merge next to changes that hold nothing of the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.grid import PLAIN, describe_cell
from plam_eval.report import plots
from plam_eval.report.blocks import picture, records_of, table_block
from plam_eval.report.plots import Estimate
from plam_eval.report.sections.shared import PAIRED, layers_of_cell
from plam_eval.report.text import is_known, number, signed
from plam_eval.rules import LAYER_CONTROLS, RULES, WEIGHTED_SUM, rule_or_control


def beside_controls(findings: Findings, cells: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """A figure and a table of each merge beside its own controls; nothing where no control is finished.

    Args:
        findings: the sweep's.
        cells: the rows of `findings.cells`, by the cell's name.
    """
    chosen = findings.selection.cell if findings.selection else None
    several = len({row["modules"] for row in cells.values() if row["kind"] != "plain"}) > 1
    by_merge: dict[str, list[Estimate]] = {}
    bold = None
    controls = findings.plan["grid"]["controls"]
    for name in sorted(controls, key=lambda name: layers_of_cell(cells[name])):
        row = cells[name]
        label = f"{row['layers']}\n{row['weights']}"
        label += f"\n{row['modules']}" if several else ""
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
            by_merge[label] = estimates
            bold = label if name == chosen else bold
    if not by_merge:
        return []
    shown = {estimate.name for estimates in by_merge.values() for estimate in estimates}
    swept = {cells[name]["rule"] for name in controls}
    meanings, others = _meanings(shown - swept), _meanings(swept - {WEIGHTED_SUM})
    merged = f"Merged is by {'; '.join(others)}. " if others else ""
    blocks: list[Any] = [
        picture(
            plots.controls(by_merge, chosen=bold),
            "Differences against plain of each merge and of its controls, with 95% intervals. Their numbers are in "
            "the table of all cells.",
            f"Lines are 95% intervals. {merged}Beside each merge stand {'; '.join(meanings)}. What only the base can "
            "do would set the merge apart from them.",
        )
    ]
    if len(findings.controls):
        table = table_block(
            "Merges against their own controls, mean over tasks; p is of one comparison each, not adjusted",
            records_of(findings.controls),
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


def _control_label(row: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    if row["rule"] in LAYER_CONTROLS:
        return f"{row['rule']} {cell['layers']}"
    return f"{row['rule']} {cell['seed']}" if rule_or_control(row["rule"]).draws else str(row["rule"])


def _meanings(names: set[str]) -> list[str]:
    """What the rules of these names make, each behind its name."""
    return [
        f"{name}, {rule.meaning}" if rule.meaning else name
        for name, rule in (RULES | LAYER_CONTROLS).items()
        if name in names
    ]
