"""What `plam rescore` prints: tables, examples, and what was left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box

from plam_eval.evaluation.stats import OVERALL, format_p
from plam_eval.terminal import PlainTable, one_line

if TYPE_CHECKING:
    from plam_eval.evaluation.rescore import Rescored
    from plam_eval.terminal import Terminal

_PROMPT, _ANSWER = 90, 160  # letters of an example


def show(done: Rescored, console: Terminal, examples: int) -> None:
    """Print rescored runs: scores by task, what a pair shows under both, examples, and what was left out.

    Args:
        done: the runs.
        console: where to.
        examples: so many disagreements of each run and task.
    """
    if len(done.tasks):
        console.show(by_task(done))
    if len(done.pair):
        console.show(*(pair(done, narrow=narrow) for narrow in (False, True)))
    for (run, task), rows in done.disagreements.groupby(["run", "task"], sort=False) if examples else ():
        for row in rows.head(examples).to_dict("records"):
            console.say(_example(str(run), str(task), row))
    for name, tasks in done.left_out.items():
        console.warn(f"{name}: {task} is not rescored: {why}" for task, why in tasks.items())
    console.warn(done.notes)


def by_task(done: Rescored) -> PlainTable:
    """One line per task and run: both scores, and how often the parsers disagree or the second abstains.

    Args:
        done: the runs.
    """
    table = PlainTable(caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    several = len(done.names) > 1
    for name in ("task", *(["run"] if several else [])):
        table.add_column(name, overflow="fold")
    for name in ("n", "score", "rescored", "disagree", "abstains"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, rows in done.tasks.groupby("task", sort=False):
        for number, row in enumerate(rows.to_dict("records")):
            shares = (_share(row["disagree"]), _share(row["abstain"]))
            cells = (str(row["documents"]), _score(row["score"]), _score(row["rescored"]), *shares)
            table.add_row("" if number else str(task), *([row["run"]] if several else []), *cells)
    table.caption = (
        "score: by the task's own rule, which stays the score; rescored: by the second parser, version "
        f"{done.version}, declared beforehand and the same for every run; what it abstains on counts as wrong"
    )
    return table


def pair(done: Rescored, *, narrow: bool = False) -> PlainTable:
    """One line per task: the paired difference under both parsers, and whether it survives.

    Args:
        done: two runs that were compared.
        narrow: for 80 columns, in two lines per task.
    """
    table = PlainTable(caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("task", overflow="fold")
    heads: Sequence[str] = ("difference", "95 %", "p", "rescored", "95 %", "p")
    heads = tuple("\n".join(two) for two in zip(heads[:3], heads[3:], strict=True)) if narrow else heads
    for name in (*heads, "survives?"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in done.pair.to_dict("records"):
        cells = [*_difference(row, ""), *_difference(row, "rescored_")]
        if narrow:
            cells = ["\n".join(two) for two in zip(cells[:3], cells[3:], strict=True)]
        overall = row["task"] == OVERALL
        table.add_row("mean over tasks" if overall else row["task"], *cells, row["survives"])
    table.caption = f"{done.names[1]} minus {done.names[0]}; survives: p < 0.05 under both, in one direction"
    return table


def _difference(row: Mapping[Any, Any], prefix: str) -> list[str]:
    between = f"{row[f'{prefix}low']:+.3f} to {row[f'{prefix}high']:+.3f}"
    return [f"{row[f'{prefix}difference']:+.3f}", between, format_p(row[f"{prefix}p"])]


def _score(score: float) -> str:
    return "-" if math.isnan(score) else f"{score:.3f}"


def _share(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def _example(run: str, task: str, row: Mapping[Any, Any]) -> str:
    prompt, answer = (one_line(row[name]) for name in ("prompt", "answer"))
    prompt = f"...{prompt[-_PROMPT:]}" if len(prompt) > _PROMPT else prompt
    answer = f"{answer[:_ANSWER]}..." if len(answer) > _ANSWER else answer
    read = "nothing" if row["read"] is None or row["read"] != row["read"] else row["read"]
    verdicts = (
        "right" if score == 1 else "wrong" if score == 0 else f"{score:.2f}"
        for score in (row["score"], row["rescored"])
    )
    own, again = verdicts
    return (
        f"{task}, document {row['doc_id']}, {run}:\n  asked    {prompt}\n  answered {answer}\n  right is "
        f"{one_line(row['target'])[:80]}; by the task's rule {own}; second parser read {read}, {again}"
    )
