"""The noise floor beside the differences of a comparison: in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plam_eval.evaluation.noise.floor import Flips, Noise
from plam_eval.evaluation.stats import OVERALL, Paired, format_p
from plam_eval.report.blocks import Listing, Paragraph, table_block
from plam_eval.report.text import interval, number, p_value, percent, signed
from plam_eval.terminal import PlainTable, Terminal

COLUMNS = ("flip rate", "noise")
"""What stands beside a difference: the floor with its interval, and where the difference stands."""

CAPTION = (
    "flip rate: how far scores change with nothing but the way of computing; below: the difference is smaller,\n"
    "above: larger than the whole interval"
)


def beside(noise: Noise, row: Paired) -> list[str]:
    """The cells of `COLUMNS` for a difference.

    Args:
        noise: of the comparison.
        row: the difference.
    """
    floor = noise.floor(row.task)
    if floor is None:
        return ["", ""]
    return [f"{floor.rate:.3f} ({floor.low:.3f} to {floor.high:.3f})", str(noise.standing(row))]


def below(noise: Noise, row: Paired) -> str:
    """The same in one short line, for a narrow table.

    Args:
        noise: of the comparison.
        row: the difference.
    """
    floor = noise.floor(row.task)
    return "" if floor is None else f"flips {floor.rate:.3f}, {noise.standing(row)}"


def flips_table(noise: Noise) -> PlainTable:
    """One line for each variant, model and task: what changed when the same weights answered again.

    Args:
        noise: of the comparison.
    """
    table = PlainTable(title="The same weights, computed with otherwise", title_justify="left", caption_justify="left")
    table.add_column("changed, model", overflow="fold")
    table.add_column("task", overflow="fold")
    for name in ("n", "answers\nchanged", "better\nworse", "flip rate\n95 %", "net\np"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in _shown(noise.flips):
        table.add_row(
            f"{each.variant}\n{each.cell}",
            "mean over tasks" if each.task == OVERALL else each.task,
            str(each.documents),
            f"{each.answers:.1%}",
            f"{each.gained}\n{each.lost}",
            f"{each.rate:.3f}\n{each.low:.3f} to {each.high:.3f}",
            f"{each.net:+.3f}\n{format_p(each.p)}",
        )
    return table


def show_noise(noise: Noise, rows: Sequence[Paired], console: Terminal) -> None:
    """Print what changed, which differences are below the floor, and what a reader should know.

    Args:
        noise: of the comparison.
        rows: its differences, the mean over tasks last.
        console: where to.
    """
    if noise.flips:
        console.show(flips_table(noise))
    for sentence in noise.in_words(rows):
        console.say(sentence)
    console.warn(noise.warnings)


def _shown(flips: Sequence[Flips]) -> list[Flips]:
    """Without the mean over tasks where there is one task."""
    tasks = {each.task for each in flips}
    return [each for each in flips if each.task != OVERALL or len(tasks) > 2]


def page_columns(noise: Noise | None, rows: Mapping[str, Paired]) -> dict[str, Any]:
    """Columns of the page's table of tasks; none without noise.

    Args:
        noise: of the comparison; None where it was made without.
        rows: the differences, by task.
    """
    if noise is None:
        return {}

    def column(place: int) -> Any:
        return lambda row: beside(noise, rows[row["task"]])[place]

    return {name: column(place) for place, name in enumerate(COLUMNS)}


def noise_blocks(noise: Noise, rows: Sequence[Paired]) -> tuple[str, list[Any]]:
    """The section of the page, its title and its blocks: what is below the floor, and what changed in detail.

    Args:
        noise: of the comparison.
        rows: its differences, the mean over tasks last.
    """
    said = noise.in_words(rows) or (["Every difference is above the noise floor."] if noise.flips else [])
    blocks: list[Any] = [Paragraph(text) for text in said]
    if noise.flips:
        blocks.append(
            table_block(
                "The same weights on the same documents, computed with otherwise",
                _shown(noise.flips),
                {
                    "changed": lambda each: each.variant,
                    "model": lambda each: each.cell,
                    "task": lambda each: "mean over tasks" if each.task == OVERALL else each.task,
                    "n": lambda each: f"{each.documents:,}",
                    "answers changed": lambda each: percent(each.answers),
                    "better": lambda each: str(each.gained),
                    "worse": lambda each: str(each.lost),
                    "flip rate": lambda each: number(each.rate),
                    "95%": lambda each: interval(each.low, each.high, plus=False),
                    "net": lambda each: signed(each.net),
                    "p": lambda each: p_value(each.p),
                },
                words={"model", "task"},
                look=lambda each: "total" if each.task == OVERALL else "",
            )
        )
        blocks.append(
            Paragraph(
                "The flip rate is the mean absolute change of a document's score. No net change can be larger, so a "
                "difference that is smaller might be nothing but flips, all in one direction; p says whether it is "
                "more one-sided than flips that go either way alike.",
                "note",
            )
        )
    lines = (*noise.warnings, *noise.failures)
    if lines:
        blocks.append(Listing("What a reader should know of it", lines, code=False, open=True))
    return "Is it noise?", blocks
