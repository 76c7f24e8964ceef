"""Run folders against one of them, and all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plam_eval.evaluation import records
from plam_eval.evaluation.comparison import Comparisons
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.stock_scores import stock_scores
from plam_eval.evaluation.sweep.grid import describe_cell, module_group
from plam_eval.report import plots
from plam_eval.report.blocks import Listing, Paragraph, Section, picture, records_of, table_block
from plam_eval.report.plots import Estimate
from plam_eval.report.sections.changed import Looking, changed_documents
from plam_eval.report.sections.second import note_on_second, second_of_task
from plam_eval.report.sections.shared import PAIRED
from plam_eval.report.sections.tasks import folded_metrics, stock_metrics, task_by_task
from plam_eval.report.stock_table import stock_blocks
from plam_eval.report.text import (
    NONE,
    SPACE,
    cut_short,
    interval,
    is_known,
    number,
    p_value,
    percent,
    signed,
    text_or_empty,
)

_BESIDE = 6  # runs whose stock metrics stand beside each other
_DETAILED = 6  # comparisons of plain run folders that get a section of their own


def runs_sections(
    runs: Mapping[str, Run], compared: Comparisons | None, looking: Looking, changed: str
) -> list[Section]:
    """One run by task, or each against the reference, with stock metrics and a table of all.

    Args:
        runs: by name, at least one.
        compared: against one of them; None where there is one run.
        looking: where example images are looked for.
        changed: the file that lists all documents whose score or answer changed.
    """
    tables = records.tables(dict(runs))
    if compared is None:
        rows = records_of(tables.tasks)
        figure = plots.forest(
            [Estimate(row["task"], row["accuracy"], row["low"], row["high"]) for row in rows], label="score", zero=False
        )
        table = table_block(
            "Mean score of the documents, by task",
            rows,
            {
                "task": lambda row: row["task"],
                "n": lambda row: f"{row['documents']:,}",
                "score": lambda row: number(row["accuracy"]),
                "95%": lambda row: interval(row["low"], row["high"], plus=False),
                "parsable": lambda row: percent(row["parsable"]),
            },
        )
        shown = picture(figure, "Score of every task.", "Lines are 95% intervals, where answers are right or wrong.")
        return [Section("Task by task", (shown, table)), *_stock(runs)]
    reference = compared.reference
    blocks: list[Any] = []
    if len(compared.rows) > 1:
        estimates = [Estimate(n, r[-1].difference, r[-1].low, r[-1].high) for n, r in compared.rows.items()]
        figure = plots.forest(estimates, label=f"difference against {reference}")
        alt = f"Differences of {len(estimates)} runs against {reference}, with 95% intervals."
        blocks.append(picture(figure, alt, "Lines are 95% intervals."))
    if compared.rows:
        again = compared.second_means()
        second = {"second parser": lambda row: second_of_task(again.get(row["run"]))} if again else {}
        table = table_block(
            f"Runs against {reference}, mean over tasks",
            [{"run": name, "p_holm": compared.p_holm[name], **vars(rows[-1])} for name, rows in compared.rows.items()],
            {
                "run": lambda row: row["run"],
                "n": lambda row: f"{row['documents']:,}",
                "score": lambda row: number(row["second"]),
                "difference": lambda row: signed(row["difference"]),
                **PAIRED,
                f"Holm{SPACE}p": lambda row: p_value(row["p_holm"]),
                **second,
            },
            words={"second parser"} if again else (),
        )
        blocks += [table, *(note_on_second(", adjusted for all runs") if again else [])]
    for name, problems in compared.problems.items():
        why = "they were not asked alike" if name not in compared.warnings else "no document has a score in all"
        blocks.append(Paragraph(f"{name} is not compared with {reference}: {why}.", "warning"))
        blocks.append(Listing("What differs", tuple(map(cut_short, problems)), code=False, open=True))
    if len(compared.rows) > _DETAILED:
        text = f"Task by task, only the first {_DETAILED} follow; the table of tasks beside this page has all."
        blocks.append(Paragraph(text, "note"))
    sections = [Section(f"Runs against {reference}", tuple(blocks))]
    for name, by_task in list(compared.rows.items())[:_DETAILED]:
        directions = runs[reference].directions
        blocks = task_by_task(by_task, reference, name, directions, again=compared.second.get(name))
        if looking.examples:
            blocks += changed_documents({reference: runs[reference], name: runs[name]}, looking, changed)
        sections.append(Section(f"{name} against {reference}", tuple(blocks)))
    shares = tables.parsable_by_run()
    table = table_block(
        "Scores are means over tasks of the documents' scores",
        records_of(tables.runs),
        {
            "run": lambda row: row["run"],
            "model": lambda row: text_or_empty(row["pretrained"]) or text_or_empty(row["model"]),
            "merge": _merge,
            "documents": lambda row: f"{row['documents']:,}",
            "score": lambda row: number(row["accuracy"]),
            "parsable": lambda row: percent(shares[row["run"]]),
            "mode": lambda row: text_or_empty(row["mode"]) or NONE,
            "dtype": lambda row: text_or_empty(row["dtype"]) or NONE,
            "date": lambda row: text_or_empty(row["date"]) or NONE,
        },
        words={"model", "merge", "mode", "dtype", "date"},
    )
    beside = [
        block
        for name in list(compared.rows)[:_DETAILED]
        for block in stock_blocks(stock_scores(runs[reference], runs[name]), reference, name)
    ]
    return [*sections, *_stock(runs, beside), Section("All runs", (table,))]


def _stock(runs: Mapping[str, Run], compared: Sequence[Any] = ()) -> list[Section]:
    beside = dict([*runs.items()][:_BESIDE])
    more = f"; of {len(runs)} runs the first {_BESIDE}, all are in the table metrics" if len(runs) > _BESIDE else ""
    blocks = stock_metrics(beside, more)
    blocks = [*compared, *folded_metrics(blocks)] if compared else blocks
    return [Section("Stock metrics", tuple(blocks))] if blocks else []


def _merge(row: Mapping[str, Any]) -> str:
    if not is_known(row["layers"]):
        return "plain" if row["plain"] is True else NONE
    modules = module_group(row["modules"].split("+"))
    return describe_cell({**row, "kind": "merged", "modules": modules, "seed": None})
