"""What several sections use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from plam_eval.evaluation.findings import Selection, describe
from plam_eval.report.blocks import (
    NONE,
    count_of,
    interval,
    p_value,
    signed,
    text_of,
)

if TYPE_CHECKING:
    pass


def selection_note(selection: Selection, cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Which cell is the chosen one, and on what it was chosen."""
    cell = describe(cells[selection.cell])
    reported = count_of(sum(selection.reported_on.values()), "document")
    if selection.tried == 1:
        return f"Merged: {cell}. It is the only merge there is, so nothing was chosen; figures are of {reported}."
    best = f"Chosen: {cell}. It scored best of {selection.tried} merges"
    if selection.held_out:
        others = count_of(sum(selection.chosen_on.values()), "other document")
        return (
            f"{best} on {others} ({signed(selection.difference_chosen)} there); figures here are of the {reported} "
            "held out."
        )
    return f"{best}, chosen on the same {reported} that these figures are of: they are optimistic."


def place(row: Mapping[str, Any]) -> tuple[int, int]:
    return int(row["start"]), int(row["end"])


PAIRED: dict[str, Callable[[Any], str]] = {  # columns that every comparison has
    "95%": lambda row: interval(row["low"], row["high"]),
    "gained": lambda row: text_of(row["gained"]) or NONE,
    "lost": lambda row: text_of(row["lost"]) or NONE,
    "p": lambda row: p_value(row["p"]),
}
