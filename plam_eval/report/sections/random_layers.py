"""As many random layers: each merge before the cloud of its draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plam_eval.evaluation.sweep.by_rule import rule_of
from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.grid import PLAIN, describe_cell
from plam_eval.evaluation.sweep.random_layers import NEEDED, draws_of, standing
from plam_eval.report import plots
from plam_eval.report.blocks import Paragraph, picture, records_of, table_block
from plam_eval.report.plots import Cloud, Estimate
from plam_eval.report.sections.shared import PAIRED, chosen_note, layers_of_cell, rule_titles, setting_of
from plam_eval.report.text import is_known, minus_signs, number, p_value, signed
from plam_eval.rules import RANDOM_LAYERS, SELF_SCALE

_MOST = 36  # merges of one figure


def beside_random_layers(findings: Findings, cells: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """What the draws say of the chosen merge, in words, and a figure and a table of all merges; nothing without draws.

    Args:
        findings: the sweep's.
        cells: the rows of `findings.cells`, by the cell's name.
    """
    rows = records_of(findings.random_layers)
    if not rows:
        return []
    chosen = findings.selection.cell if findings.selection else None
    rules = rule_titles(cells[row["merged"]] for row in rows)
    rows.sort(key=lambda row: (rules.index(rule_of(cells[row["merged"]])), layers_of_cell(cells[row["merged"]])))
    said = findings.random_layers_in_words()
    blocks: list[Any] = [*chosen_note(findings, cells), Paragraph(minus_signs(said))] if said else []
    blocks.append(_figure(findings, cells, rows, chosen))
    blocks.append(
        table_block(
            "Merges before their draws of random layers, mean over tasks; p is of one comparison each, not adjusted",
            rows,
            {
                "merge": lambda row: describe_cell(cells[row["merged"]]),
                "it does": standing,
                "rank p": lambda row: p_value(row["rank_p"]),
                "against plain": lambda row: signed(cells[row["merged"]]["difference"]),
                "draws against plain": lambda row: signed(row["mean"]),
                "standard deviation": lambda row: number(row["spread"]),
                "from": lambda row: signed(row["least"]),
                "to": lambda row: signed(row["most"]),
                "layers shared": lambda row: f"{row['shared']:.0%}",
                "merge minus mean of draws": lambda row: signed(row["difference"]),
                "95%": PAIRED["95%"],
                "p": PAIRED["p"],
            },
            words={"it does"},
            look=lambda row: "chosen" if row["merged"] == chosen else "",
        )
    )
    none = [
        describe_cell(cells[name])
        for name in findings.plan["grid"]["controls"]
        if RANDOM_LAYERS in findings.plan["config"].get("controls", ()) and not draws_of(_controls(findings), name)
    ]
    without = f" No other set of as many layers: {'; '.join(none)}." if none else ""
    blocks.append(
        Paragraph(
            "Interval and p of the last columns are about other documents, the sets being those that were drawn. The "
            "rank is about other sets, on these documents: rank p is the share of merge and draws that do at least as "
            f"well as the merge, so n draws give no p below 1 / (n + 1), and one below 0.05 takes {NEEDED}. It "
            "holds for layers that were named before anything was scored, not for the best of several. Draws share "
            f"layers with the merge, and by that much they do what it does.{without}",
            "note",
        )
    )
    return blocks


def _controls(findings: Findings) -> Mapping[str, Mapping[str, Any]]:
    controls: Mapping[str, Mapping[str, Any]] = findings.plan["grid"]["controls"]
    return controls


def _figure(
    findings: Findings, cells: Mapping[str, Mapping[str, Any]], rows: list[dict[str, Any]], chosen: str | None
) -> Any:
    best = sorted(rows, key=lambda row: (row["merged"] != chosen, -abs(cells[row["merged"]]["difference"])))[:_MOST]
    drawn = [row for row in rows if row in best]
    several = len({cells[row["merged"]]["modules"] for row in rows}) > 1
    rules = rule_titles(cells[row["merged"]] for row in drawn)
    clouds = [_cloud(findings, cells, row["merged"], several) for row in drawn]
    figure = plots.clouds(
        clouds,
        chosen=next((at for at, row in enumerate(drawn) if row["merged"] == chosen), None),
        label="difference against plain, mean over tasks",
        groups=[(rule, sum(rule_of(cells[row["merged"]]) == rule for row in drawn)) for rule in rules]
        if len(rules) > 1
        else (),
    )
    left = f" Of {len(rows)} merges, the {_MOST} of the largest differences." if len(rows) > _MOST else ""
    plain = any(PLAIN in _controls(findings)[row["merged"]].get(SELF_SCALE, ()) for row in drawn)
    scale = " Where no scale control stands, weights sum to one and it is the plain model: 0." if plain else ""
    return picture(
        figure,
        f"Differences against plain of {len(drawn)} merges before the draws of their random layers. Its numbers are "
        "in the table below.",
        "Above: the merge, with its 95% interval. Behind it: the same merge in as many layers drawn at random, a mark "
        "each, without intervals; the line is their mean, the band one standard deviation of them to either side. "
        f"Below: its scale control.{scale} Where a merge stands within its cloud, other layers do as well as its own; "
        f"where it stands with its scale control, no part of the base is shown.{left}",
    )


def _cloud(findings: Findings, cells: Mapping[str, Mapping[str, Any]], merged: str, modules: bool) -> Cloud:
    row = cells[merged]
    name = f"{row['layers']}, {setting_of(row, modules=modules)}"
    draws = [cells[name]["difference"] for name in draws_of(_controls(findings), merged)]
    none: Mapping[str, Any] = {"difference": None}
    scale = next((cells[name] for name in _controls(findings)[merged].get(SELF_SCALE, ()) if name != PLAIN), none)
    keys = ("difference", "low", "high")
    return Cloud(
        Estimate(name, *(float(row[key]) for key in keys)),
        [float(value) for value in draws if is_known(value)],
        Estimate(SELF_SCALE, *(float(scale[key]) for key in keys)) if is_known(scale["difference"]) else None,
    )
