"""Rules, layers and weights: a heat map of the merges, and the best merge by each rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plam_eval.evaluation.stats import SIGNIFICANT
from plam_eval.evaluation.sweep.by_rule import rule_of
from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.folder import DAMAGED, FAILED
from plam_eval.report import plots
from plam_eval.report.blocks import Paragraph, Picture, picture, records_of, table_block
from plam_eval.report.plots import Estimate
from plam_eval.report.sections.shared import PAIRED, layer_labels, layers_of_cell, rule_titles, setting_of
from plam_eval.report.text import NONE, SPACE, is_known, minus_signs, p_value, signed
from plam_eval.rules import RULES


def ranges_section(findings: Findings, cells: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[Any]] | None:
    """Title and blocks of what merges differ in: the heat map, and rules beside each other; None where there is one.

    Args:
        findings: the sweep's.
        cells: the rows of `findings.cells`, by the cell's name.
    """
    drawn = heat_map(findings, cells)
    if drawn is None:
        return None
    several = len(rule_titles(row for row in cells.values() if row["kind"] == "merged")) > 1
    title = "Rules, layers and weights" if several else "Layer ranges and weights"
    return title, [drawn, *(_rules_beside_each_other(findings, cells) if len(findings.rules) else ())]


def heat_map(findings: Findings, cells: Mapping[str, Mapping[str, Any]]) -> Picture | None:
    """Differences by rule, layers, modules and weights; None where there is one merge, or none finished.

    Args:
        findings: the sweep's.
        cells: the rows of `findings.cells`, by the cell's name.
    """
    merged = [row for row in cells.values() if row["kind"] == "merged"]
    if len(merged) < 2 or not any(is_known(row["difference"]) for row in merged):
        return None
    several = len({row["modules"] for row in merged}) > 1
    sets = [written for _, _, written in sorted({layers_of_cell(row) for row in merged})]
    rules = rule_titles(merged)
    rows = [  # rules in order, and below each its settings
        (rule, setting)
        for rule in rules
        for setting in dict.fromkeys(setting_of(row, modules=several) for row in merged if rule_of(row) == rule)
    ]
    estimates: list[list[Estimate | None]] = [[None] * len(sets) for _ in rows]
    marked = [[False] * len(sets) for _ in rows]
    words: dict[tuple[int, int], str] = {}
    framed = None
    for row in merged:
        down = rows.index((rule_of(row), setting_of(row, modules=several)))
        across = sets.index(str(row["layers"]))
        if is_known(row["difference"]):
            estimates[down][across] = Estimate("", *(float(row[key]) for key in ("difference", "low", "high")))
            marked[down][across] = bool(row["p_holm"] < SIGNIFICANT)
        else:
            words[down, across] = row["status"] if row["status"] in (FAILED, DAMAGED) else "not run"
        if findings.selection is not None and row["cell"] == findings.selection.cell:
            framed = (down, across)
    grouped = len(rules) > 1 and len(rows) > len(rules)  # one row of each rule is named by the rule alone
    alone = len(rules) > 1 and not grouped
    one_setting = len({setting for _, setting in rows}) == 1
    labels = layer_labels(sets)
    figure = plots.heat_map(
        estimates,
        [(rule if one_setting else f"{rule}, {setting}") if alone else setting for rule, setting in rows],
        [labels[written] for written in sets],
        marked=marked,
        words=words,
        chosen=framed,
        label="difference against plain, mean over tasks",
        groups=[(rule, sum(of == rule for of, _ in rows)) for rule in rules] if grouped else (),
    )
    count = sum(map(sum, marked))
    drawn = [cell for cells_of in estimates for cell in cells_of if cell is not None]
    hatched = sum(not plots.differs(cell) for cell in drawn)
    of_weights = "modules, weight of the model + weight of the base" if several else "weights, model + base"
    if alone and one_setting:
        what = f"Rows: rules, all of {rows[0][1]}."
    elif len(rules) > 1:
        what = f"Rows: {of_weights}, by rule."
    else:
        what = f"Rows: {of_weights}."
    long = [written for written, label in labels.items() if " of\n" in label]
    if long:
        what += f" Of sets too long to write, columns tell size and ends: {'; '.join(long)}."
    empty = sum(cell is None for cells_of in estimates for cell in cells_of) - len(words)
    same = " Empty: a merge that another cell makes too, or none that was asked for." if empty else ""
    caption = (
        f"{what} Hatched and pale, whatever the size: the 95% interval holds 0, no difference is shown ({hatched} of "
        f"{len(drawn)}). Full colour: the largest difference shown, or twice what intervals reach to either side if "
        "that is more. Intervals are of one cell each: of twenty without any effect, about one would not be hatched. "
        f"* Holm p below 0.05, adjusted for all cells{'' if count else ', which none reaches'}.{same}"
    )
    by = "rule, layers and weights" if len(rules) > 1 else "layer range and weights"
    alt = (
        f"Heat map of the difference against plain by {by}; {count} of {len(merged)} cells are "
        f"marked, {hatched} not shown to differ. Its numbers are in the table of all cells."
    )
    return picture(figure, alt, caption)


def _rules_beside_each_other(findings: Findings, cells: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Which rule did best of how many, and the table that says so."""
    best = records_of(findings.rules)

    def merge_of(cell: Mapping[str, Any]) -> str:
        return f"layers {cell['layers']}, {setting_of(cell, modules=True)}"

    chosen_on = "other documents" if findings.selection and findings.selection.held_out else "these same documents"
    table = table_block(
        f"The best merge by each rule, chosen on {chosen_on}, best first; p of the last columns is of one comparison "
        "each, not adjusted",
        best,
        {
            "rule": rule_of,
            "its best merge": lambda row: merge_of(cells[row["cell"]]),
            "of": lambda row: str(row["merges"]),
            "against plain": lambda row: signed(row["against_plain"]),
            f"Holm{SPACE}p": lambda row: p_value(row["p_holm"]),
            "minus its scale control": lambda row: signed(row["minus_scale"]),
            "p of that": lambda row: p_value(row["scale_p"]),
            "best of all minus this": lambda row: NONE if row is best[0] else signed(row["difference"]),
            "its 95%": lambda row: NONE if row is best[0] else PAIRED["95%"](row),
            "its p": lambda row: NONE if row is best[0] else PAIRED["p"](row),
        },
        words={"its best merge"},
        look=lambda row: "chosen" if row is best[0] else "",
    )
    meanings = [
        f"{name}: {RULES[name].meaning}"
        for name in dict.fromkeys(str(row["rule"]) for row in best)
        if name in RULES and RULES[name].meaning
    ]
    said = findings.rules_in_words()
    return [
        Paragraph(minus_signs(said)),
        table,
        Paragraph(f"What the rules make. {'; '.join(meanings)}.", "note"),
    ]
