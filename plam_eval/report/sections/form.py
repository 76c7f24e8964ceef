"""Answers in the form asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from plam_eval.evaluation.stats import OVERALL
from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.grid import PLAIN, describe_cell
from plam_eval.report.blocks import Paragraph, table_block
from plam_eval.report.text import count_of, percent


def in_form(findings: Findings, cells: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """The share of parsable answers by cell and task, or a sentence where it is 1 or means nothing.

    Args:
        findings: the sweep's, of which a cell has been compared.
        cells: the rows of `findings.cells`, by the cell's name.
    """
    first = next(iter(findings.compared.values()))
    shares = {PLAIN: {row.task: row.parsable_first for row in first}}
    shares |= {name: {row.task: row.parsable_second for row in rows} for name, rows in findings.compared.items()}
    defined = [share for by_task in shares.values() for share in by_task.values() if not math.isnan(share)]
    if not defined:
        return [Paragraph("These tasks ask for free words; there is no form that an answer could miss.")]
    if min(defined) == 1:
        return [Paragraph(f"Every answer of all {count_of(len(shares), 'cell')} has the form its task asks for.")]

    many = len(first) > 2

    def column(task: str) -> Callable[[Any], str]:
        return lambda name: percent(shares[name][task])

    table = table_block(
        "Share of answers in the form asked for (a letter, yes or no), by cell and task",
        [name for name in cells if name in shares],
        {
            "cell": lambda name: describe_cell(cells[name]),
            **{
                "mean" if row.task == OVERALL else row.task: column(row.task) for row in (first if many else first[:-1])
            },
        },
        look=lambda name: "chosen" if findings.selection is not None and name == findings.selection.cell else "",
    )
    return [Paragraph("A difference in this share is one of format, and may be all there is to one in score."), table]
