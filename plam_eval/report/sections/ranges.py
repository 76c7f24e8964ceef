"""Layer ranges and weights: a heat map of the merges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plam_eval.evaluation.stats import SIGNIFICANT
from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.folder import DAMAGED, FAILED
from plam_eval.report import plots
from plam_eval.report.blocks import Picture, picture
from plam_eval.report.plots import Estimate
from plam_eval.report.sections.shared import layers_of_cell
from plam_eval.report.text import is_known


def heat_map(findings: Findings, cells: Mapping[str, Mapping[str, Any]]) -> Picture | None:
    """Differences by layer range and weights; None where there is one merge, or none finished.

    Args:
        findings: the sweep's.
        cells: the rows of `findings.cells`, by the cell's name.
    """
    merged = [row for row in cells.values() if row["kind"] == "merged"]
    if len(merged) < 2 or not any(is_known(row["difference"]) for row in merged):
        return None
    several = len({row["modules"] for row in merged}) > 1
    ranges = sorted({layers_of_cell(row) for row in merged})
    pairs = list(dict.fromkeys((row["modules"], row["weights"]) for row in merged))
    estimates: list[list[Estimate | None]] = [[None] * len(ranges) for _ in pairs]
    marked = [[False] * len(ranges) for _ in pairs]
    words: dict[tuple[int, int], str] = {}
    framed = None
    for row in merged:
        down = pairs.index((row["modules"], row["weights"]))
        across = ranges.index(layers_of_cell(row))
        if is_known(row["difference"]):
            estimates[down][across] = Estimate("", *(float(row[key]) for key in ("difference", "low", "high")))
            marked[down][across] = bool(row["p_holm"] < SIGNIFICANT)
        else:
            words[down, across] = row["status"] if row["status"] in (FAILED, DAMAGED) else "not run"
        if findings.selection is not None and row["cell"] == findings.selection.cell:
            framed = (down, across)
    figure = plots.heat_map(
        estimates,
        [f"{modules}, {weights}" if several else weights for modules, weights in pairs],
        [layers for _, _, layers in ranges],
        marked=marked,
        words=words,
        chosen=framed,
        label="difference against plain, mean over tasks",
    )
    count = sum(map(sum, marked))
    drawn = [cell for cells_of in estimates for cell in cells_of if cell is not None]
    hatched = sum(not plots.differs(cell) for cell in drawn)
    rows = "Rows: modules, weight of the model + weight of the base." if several else "Rows: weights, model + base."
    caption = (
        f"{rows} Hatched and pale, whatever the size: the 95% interval holds 0, no difference is shown ({hatched} of "
        f"{len(drawn)}). Full colour: the largest difference shown, or twice what intervals reach to either side if "
        "that is more. Intervals are of one cell each: of twenty without any effect, about one would not be hatched. "
        f"* Holm p below 0.05, adjusted for all cells{'' if count else ', which none reaches'}."
    )
    alt = (
        f"Heat map of the difference against plain by layer range and weights; {count} of {len(merged)} cells are "
        f"marked, {hatched} not shown to differ. Its numbers are in the table of all cells."
    )
    return picture(figure, alt, caption)
