"""What a command would take, in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plam_eval.terminal import PlainTable

if TYPE_CHECKING:
    from plam_eval.evaluation.costs import Estimate


def estimate_table(estimate: Estimate) -> PlainTable:
    """Documents, tokens, time, memory and disk of the whole, one a line.

    Args:
        estimate: what was worked out.
    """
    title = f"The whole {estimate.what}, by {estimate.sampled} documents that were answered here"
    table = PlainTable(title=title, title_justify="left", caption_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("how much", overflow="fold")
    each = sum(estimate.documents.values())
    tasks = f"{len(estimate.documents)} task{'s' * (len(estimate.documents) != 1)}"
    generations = f"{estimate.generations:,} generations"
    if estimate.what == "search":
        table.add_row("documents", f"{each:,} of {tasks}; at most {generations}")
    else:
        cells = f" x {estimate.cells} cells" if estimate.what != "scan" else ""
        table.add_row("documents", f"{each:,} of {tasks}{cells}: {generations}")
    table.add_row("tokens", f"{estimate.prompt_tokens:,} of prompts, {estimate.answer_tokens:,} of answers")
    table.add_row("time", duration(estimate.seconds, estimate.low, estimate.high))
    memory = "not known here" if estimate.memory is None else f"{gigabytes(estimate.memory)} at most so far"
    table.add_row(f"{estimate.memory_of} memory", memory)
    table.add_row("disk", gigabytes(estimate.disk))
    table.add_row("measured on", estimate.machine)
    table.caption = "\n".join(estimate.notes)
    return table


def duration(seconds: float, low: float, high: float) -> str:
    """A time and its range, in hours, or in minutes or seconds where these say more.

    Args:
        seconds: of the time.
        low: least, in seconds.
        high: most, in seconds.
    """
    unit, size = ("hours", 3600) if seconds >= 3600 else ("minutes", 60) if seconds >= 120 else ("seconds", 1)
    hours = f"; {seconds / 3600:.3f} hours" if unit != "hours" else ""
    return f"{seconds / size:.1f} {unit} ({low / size:.1f} to {high / size:.1f}{hours})"


def gigabytes(size: float) -> str:
    """A number of bytes in GB, or in MB or kB where these say more.

    Args:
        size: of bytes.
    """
    unit, one = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6) if size >= 1e6 else ("kB", 1e3)
    return f"{size / one:.1f} {unit}"
