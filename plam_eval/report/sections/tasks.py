"""Task by task: two runs, plain and merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plam_eval.evaluation import records, stats
from plam_eval.evaluation.noise.floor import Noise
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.second_parser import Second
from plam_eval.evaluation.stats import OVERALL, Paired
from plam_eval.report import plots
from plam_eval.report.blocks import Folded, Paragraph, picture, records_of, table_block
from plam_eval.report.noise import COLUMNS, page_columns
from plam_eval.report.plots import Estimate
from plam_eval.report.sections.second import note_on_second, second_of_task
from plam_eval.report.sections.shared import PAIRED
from plam_eval.report.text import NONE, interval, minus_signs, number, percent, signed


def task_by_task(
    rows: Sequence[Paired],
    first: str,
    second: str,
    directions: Mapping[str, int],
    noise: Noise | None = None,
    again: Mapping[str, Second] | None = None,
) -> list[Any]:
    """Two runs task by task: figure and table.

    Args:
        rows: of the tasks, and last of the mean over them, as `stats.compare` gives them.
        first: name of the first run.
        second: name of the second, from whose scores the first's are taken.
        directions: by task, 1 where higher is better, -1 where lower is.
        noise: the noise floor, beside each difference; None where it was not measured.
        again: by task, what is left of the difference under the second parser.
    """
    tasks, overall = rows[:-1], rows[-1]
    many = len(tasks) > 1
    figure = plots.forest(
        [Estimate(row.task, row.difference, row.low, row.high) for row in tasks],
        overall=Estimate("mean over tasks", overall.difference, overall.low, overall.high) if many else None,
        label=f"{second} minus {first}",
    )
    alt = (
        f"Difference {second} minus {first} with 95% intervals by task; mean over tasks "
        f"{signed(overall.difference)}, {interval(overall.low, overall.high)}."
    )
    caption = "Lines are 95% intervals, one task at a time. Where one crosses 0, no difference is shown."

    def name(row: Any) -> str:
        falling = directions.get(row["task"]) == -1
        return "mean over tasks" if row["task"] == OVERALL else row["task"] + (" (lower is better)" if falling else "")

    table = table_block(
        f"{second} against {first}, by task; p of single tasks is not adjusted",
        records_of(stats.comparison_table(rows if many else tasks)),
        {
            "task": name,
            "n": lambda row: f"{row['documents']:,}",
            first: lambda row: number(row["first"]),
            second: lambda row: number(row["second"]),
            "difference": lambda row: signed(row["difference"]),
            **page_columns(noise, {row.task: row for row in rows}),
            **PAIRED,
            "test": lambda row: {"mcnemar": "McNemar", "sign-flip": "sign flips"}[row["test"]],
            f"parsable, {first}": lambda row: percent(row["parsable_first"]),
            f"parsable, {second}": lambda row: percent(row["parsable_second"]),
            **({"second parser": lambda row: second_of_task((again or {}).get(row["task"]))} if again else {}),
        },
        words={"test", *(COLUMNS[1:] if noise else ()), *(["second parser"] if again else [])},
        look=lambda row: "total" if row["task"] == OVERALL else "",
    )
    blocks: list[Any] = [picture(figure, alt, caption), table, *(note_on_second() if again else [])]
    if overall.needed is not None:
        text = (
            f"To find a true difference of 0.01 in the mean four times in five would take about {overall.needed:,} "
            f"documents like these; here are {overall.documents:,}."
        )
        blocks.append(Paragraph(text, "note"))
    return blocks


def stock_metrics(runs: Mapping[str, Run], note: str) -> list[Any]:
    """What lmms-eval itself reports of each task, run beside run; nothing where it reports no numbers.

    Args:
        runs: by the names of their columns.
        note: which documents these are of.
    """
    metrics = records.tables(dict(runs)).metrics
    if metrics.empty:
        return []
    table = {name: rows.set_index(["task", "metric"])["value"] for name, rows in metrics.groupby("run", sort=False)}
    rows = list(dict.fromkeys(zip(metrics["task"], metrics["metric"], strict=True)))
    better: dict[tuple[str, str], Any] = {}
    for run in runs.values():
        for task, by_metric in run.higher_is_better.items():
            better |= {(task, metric): higher for metric, higher in by_metric.items()}
    words: dict[Any, str] = {True: "higher", False: "lower"}

    def column(name: str) -> Callable[[Any], str]:
        values = table.get(name)
        return lambda row: NONE if values is None or row not in values else minus_signs(f"{values[row]:,.5g}")

    shown = table_block(
        "Stock metrics, by task",
        rows,
        {
            "task": lambda row: row[0],
            "metric": lambda row: row[1],
            "better": lambda row: words.get(better.get((row[0], row[1].partition(", ")[0])), NONE),
            **{name: column(name) for name in runs},
        },
        words={"metric", "better"},
    )
    return [
        Paragraph(f"As lmms-eval reports them, each on its own scale{note}. They have no intervals here.", "note"),
        shown,
    ]


def folded_metrics(blocks: Sequence[Any]) -> list[Any]:
    """What `stock_metrics` gives, behind a title: below figures that have intervals.

    Args:
        blocks: of it.
    """
    return [Folded("All runs, as their results files have it", tuple(blocks))] if blocks else []
