"""Rules beside each other: the best merge by each, chosen as the sweep chooses, and what parts it from the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from plam_eval.evaluation import stats
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.stats import DIFFERENCE, format_p
from plam_eval.rules import SELF_SCALE

_SCALE = ("minus_scale", "scale_low", "scale_high", "scale_p")
COLUMNS = ("rule", "parameters", "cell", "merges", "gain", "against_plain", "p_holm", *_SCALE, *DIFFERENCE)
"""Of `best_by_rule`."""


def rule_of(row: Mapping[str, Any]) -> str:
    """The rule of a cell and its parameters, as a reader is told: "dare, drop_rate 0.5".

    Args:
        row: of `Findings.cells`.
    """
    return f"{row['rule']}, {row['parameters']}" if row["parameters"] else str(row["rule"])


def best_by_rule(
    runs: Mapping[str, Run], cells: pd.DataFrame, controls: pd.DataFrame, gains: Mapping[str, float]
) -> pd.DataFrame:
    """One row for every rule, with its parameters, that has a finished merge; no rows where there is one such rule.

    Args:
        runs: finished ones by cell, with the documents to report on.
        cells: as `Findings.cells`.
        controls: as `Findings.controls`.
        gains: over plain on the documents to choose on, by merged cell.

    Returns:
        In the order of their gains: rule, parameters; cell, the merge by it that gained most on the documents to choose
        on; merges, by it; gain, on those documents; over the reported ones against_plain and
        p_holm, as in `cells`; minus_scale with scale_low, scale_high and scale_p, against its scale control, NaN where
        none is finished; and the fields of `stats.Paired` without `task`, of this merge (`first`) and that of the first
        row (`second`): what the rule that did best has before it.
    """
    merged = cells[cells["cell"].isin(list(gains))]
    groups = {rule: list(rows) for rule, rows in _by_rule(merged).items()}
    if len(groups) < 2:
        return pd.DataFrame(columns=list(COLUMNS))
    best = [(max(rows, key=lambda row: gains[row["cell"]]), len(rows)) for rows in groups.values()]
    best.sort(key=lambda pair: -gains[pair[0]["cell"]])  # stable: the first of equals is that of `Selection`
    first = best[0][0]["cell"]
    reference = next(iter(runs))
    names = list(dict.fromkeys([reference, first, *(row["cell"] for row, _ in best)]))
    compared = stats.compare_pairs(
        {name: runs[name].samples for name in names},
        [(row["cell"], first) for row, _ in best],
        directions=runs[reference].directions,
    )
    scale = controls[controls["rule"] == SELF_SCALE].drop_duplicates("merged").set_index("merged")
    rows = []
    for row, count in best:
        name = row["cell"]
        beside = [scale.loc[name, key] for key in ("difference", "low", "high", "p")] if name in scale.index else ()
        paired = asdict(compared[name, first][-1])
        rows.append(
            {
                **{key: row[key] for key in ("rule", "parameters", "cell")},
                "merges": count,
                "gain": gains[name],
                "against_plain": row["difference"],
                "p_holm": row["p_holm"],
                **dict(zip(_SCALE, beside or (math.nan,) * len(_SCALE), strict=True)),
                **{key: paired[key] for key in DIFFERENCE},
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"needed": "Int64"})


def _by_rule(merged: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in _records(merged):
        groups.setdefault(rule_of(row), []).append(row)
    return groups


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def in_words(table: pd.DataFrame, sign: int, *, held_out: bool) -> str:
    """Which rule did best of how many, and whether it is shown to do better than the others.

    Args:
        table: of `best_by_rule`, of two rules or more.
        sign: 1 where a higher score is better, -1 where a lower one is.
        held_out: whether the merges were chosen on other documents than those reported.
    """
    first, *others = _records(table)
    told = f"Rules: of {len(table)}, {rule_of(first)} did best on the documents to choose on"
    adjusted = stats.holm([row["p"] for row in others])
    shown = [stats.effect(row["difference"], p, sign) for row, p in zip(others, adjusted, strict=True)]
    beaten = [row for row, effect in zip(others, shown, strict=True) if effect == "better"]
    lost = [row for row, effect in zip(others, shown, strict=True) if effect == "worse"]
    where = "on those reported" if held_out else "on these same documents, which flatters it,"
    if not beaten:
        text = f"{told}; {where} it is not shown to do better than the best merge by any other"
    elif len(beaten) == len(others):
        text = f"{told}; {where} it does better than the best merge by each of the others"
    else:
        text = f"{told}; {where} it does better than the best merge by {_listed(beaten)}, not shown for the others"
    text += f", and does worse than that by {_listed(lost)}" if lost else ""
    next_best = others[0]
    return (
        f"{text} (next: {rule_of(next_best)}, {next_best['difference']:+.3f}, {next_best['low']:+.3f} to "
        f"{next_best['high']:+.3f}, p Holm over {len(others)} rules = {format_p(adjusted[0])}). "
        "Rules may differ in scale too: hold each against its own scale control."
    )


def _listed(rows: list[dict[str, Any]]) -> str:
    return "; ".join(map(rule_of, rows))
