"""All cells of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.folder import DAMAGED, FAILED, FINISHED
from plam_eval.evaluation.sweep.grid import PLAIN, describe_cell
from plam_eval.report.blocks import Listing, Paragraph, table_block
from plam_eval.report.sections.second import has_second, note_on_second, second_of_cell
from plam_eval.report.sections.shared import PAIRED
from plam_eval.report.text import NONE, SPACE, count_of, cut_short, number, p_value, percent, signed, text_or_empty


def all_cells(findings: Findings, cells: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """The table of all cells against plain, what is chosen without labels, and what failed or is damaged.

    Args:
        findings: the sweep's.
        cells: the rows of `findings.cells`, by the cell's name.
    """
    chosen = findings.selection.cell if findings.selection else None

    def look(row: Any) -> str:
        if row["status"] in (FAILED, DAMAGED):
            return "failed"
        return "chosen" if row["cell"] == chosen else "quiet" if row["kind"] == "control" else ""

    reported = len(findings.runs[PLAIN].samples) if findings.compared else 0
    again = bool(reported) and has_second(cells.values())
    done = all(row["status"] == FINISHED for row in cells.values())
    against_plain: dict[str, Callable[[Any], str]] = {
        "score": lambda row: number(row["second"]),
        "difference": lambda row: signed(row["difference"]),
        **PAIRED,
        f"Holm{SPACE}p": lambda row: p_value(row["p_holm"]),
        "parsable": lambda row: percent(row["parsable_second"]),
        **({"second parser": second_of_cell} if again else {}),
        **(
            {"neighbours differ": lambda row: text_or_empty(row["differ_from_neighbours"]) or NONE}
            if findings.label_free
            else {}
        ),
    }
    table = table_block(
        f"Every cell against plain, mean over tasks of {count_of(reported, 'document')}" if reported else "Every cell",
        list(cells.values()),
        {
            "cell": describe_cell,
            **({} if done else {"status": lambda row: "not run" if row["status"] == "missing" else str(row["status"])}),
            **(against_plain if reported else {}),
            "change of weights": lambda row: percent(row["relative_change"]),
            "seconds": lambda row: number(row["merge_seconds"] + row["evaluate_seconds"], 1),
        },
        words={*(() if done else ("status",)), *(("second parser",) if again else ())},
        look=look,
        kind=lambda row: {"merged": "merge", "control": "control"}.get(row["kind"], str(row["kind"])),
    )
    listings = []
    for status, title in ((FAILED, "What failed"), (DAMAGED, "What is damaged, and was left out")):
        rows = [row for row in cells.values() if row["status"] == status]
        lines = tuple(f"{describe_cell(row)}: {cut_short(text_or_empty(row['error']))}" for row in rows)
        listings += [Listing(f"{title} ({len(lines)})", lines, code=False, open=True)] if lines else []
    unlabelled = [Paragraph(findings.label_free.text(), "note")] if findings.label_free else []
    second = note_on_second(", adjusted for all cells") if again else []
    return [table, *unlabelled, *second, *listings]
