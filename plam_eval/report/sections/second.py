"""What is left of differences under the second parser, in tables of other sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from plam_eval.evaluation.second_parser import VERSION, Second
from plam_eval.report.blocks import Paragraph
from plam_eval.report.text import NONE, p_value, signed


def has_second(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether some cells were read by the second parser.

    Args:
        rows: of `Findings.cells`.
    """
    return any(isinstance(row.get("survives"), str) for row in rows)


def second_of_cell(row: Mapping[str, Any]) -> str:
    """A cell's difference under the second parser, its p and whether it survives.

    Args:
        row: of `Findings.cells`.
    """
    if not isinstance(row.get("survives"), str):
        return NONE
    return f"{signed(row['rescored_difference'])} (p {p_value(row['rescored_p'])}) {row['survives']}"


def second_of_task(look: Second | None) -> str:
    """The same of a task of two runs.

    Args:
        look: of the task; None where the second parser does not read it.
    """
    return NONE if look is None else f"{signed(look.difference)} (p {p_value(look.p)}) {look.verdict}"


def note_on_second(more: str = "") -> list[Paragraph]:
    """What the column is.

    Args:
        more: said of its p.
    """
    return [
        Paragraph(
            f"Second parser, version {VERSION}: the difference when the same answers are read by other rules, which "
            f"were declared beforehand, its p{more}, and whether the difference survives. The score is the task's own.",
            "note",
        )
    ]
