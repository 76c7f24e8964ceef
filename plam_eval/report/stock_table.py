"""Stock scores of two runs: the table for the terminal, and the one for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box

from plam_eval.evaluation.stock_scores import FEW, StockScore
from plam_eval.evaluation.sweep.grid import PLAIN
from plam_eval.report.blocks import Listing, Paragraph, table_block
from plam_eval.report.text import NONE, minus_signs, sentence
from plam_eval.terminal import PlainTable

if TYPE_CHECKING:
    from plam_eval.evaluation.sweep.findings import Findings
    from plam_eval.terminal import Terminal

_DIGITS = {"share": 3, "percent": 2, "points": 1}
_SHORT = 30  # letters of a reason that stand in place of an interval
_FEW = "!"  # behind an interval of few clusters
HOW = "95 %: of the metric itself, in resamples of clusters of documents, the same in both runs; one metric at a time"


# --- words ------------------------------------------------------------------------------------------------------------


def _value(score: StockScore, value: float, form: str = "") -> str:
    """A value on the metric's own scale; "-" where there is none."""
    if math.isnan(value):
        return "-"
    digits = _DIGITS.get(score.unit, 3 if abs(value) < 10 else 1)
    return f"{round(value, digits) + 0.0:{form}.{digits}f}"


def _metric(score: StockScore) -> str:
    name = f"{score.metric}: {score.part}" if score.part else score.metric
    return f"{name} (lower is better)" if score.higher_is_better is False else name


class _Reasons:
    """Why there are no intervals: short reasons stand in the table, long ones below it, by number."""

    def __init__(self) -> None:
        self.long: dict[str, int] = {}

    def interval(self, score: StockScore) -> str:
        """What stands in the column of intervals."""
        if not math.isnan(score.low):
            few = f" {_FEW}" if score.clusters < FEW else ""
            return f"{_value(score, score.low, '+')} to {_value(score, score.high, '+')}{few}"
        if len(score.why) <= _SHORT:
            return score.why
        return f"none ({self.long.setdefault(score.why, len(self.long) + 1)})"


def _stored(score: StockScore) -> str:
    """What the results files say, where that is another value."""
    pairs = ((score.first, score.first_stored), (score.second, score.second_stored))
    if all(math.isnan(stored) or stored == value for value, stored in pairs):
        return ""
    return f"{_value(score, score.first_stored)}, {_value(score, score.second_stored)}"


def _below(scores: Sequence[StockScore], reasons: _Reasons) -> list[str]:
    """Lines below a table: how to read it, and what does not fit into it."""
    lines = [HOW]
    few = {score.clusters for score in scores if score.clusters < FEW and not math.isnan(score.low)}
    if few:
        lines.append(f"{_FEW}: of {min(few)} to {FEW - 1} clusters alone; rough")
    if any(score.part and score.over == "documents" for score in scores):
        lines.append("domains of MMMU: its questions are drawn, since its few subjects are no sample of subjects")
    if any(not score.complete for score in scores):
        lines.append("of the documents compared; what the results files say is of all that were evaluated")
    lines += [f"({number}) {why}" for why, number in reasons.long.items()]
    lines += dict.fromkeys(f"{score.task}, {score.metric}: {score.note}" for score in scores if score.note)
    return lines


# --- the terminal -----------------------------------------------------------------------------------------------------


def stock(
    scores: Sequence[StockScore],
    first: str = "plain",
    second: str = "merged",
    *,
    beside: Mapping[str, Sequence[StockScore]] | None = None,
    narrow: bool = False,
) -> PlainTable:
    """One line per metric, as `stock_scores` gives them.

    Args:
        scores: of two runs.
        first: name of the first run.
        second: name of the second.
        beside: by name of another run, the same metrics of the second run against it.
        narrow: for 80 columns, in two lines per metric.
    """
    reasons, others = _Reasons(), beside or {}
    against = {name: {(score.task, score.metric, score.part): score for score in rows} for name, rows in others.items()}
    stored = [_stored(score) for score in scores]
    title = "Stock scores, as lmms-eval reports them"
    options: dict[str, Any] = {"title": title, "title_justify": "left", "caption_justify": "left"}
    if narrow:
        table = PlainTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, **options)
        columns = [f"{first}\n{second}", "difference\n95 %", *(f"minus {name}\n95 %" for name in others)]
    else:
        table = PlainTable(**options)
        table.add_column("task", no_wrap=True)
        columns = [first, second, "difference", "95 %"]
        columns += [title for name in others for title in (f"minus {name}", "95 %")]
    table.add_column("metric", overflow="fold")
    for name in [*columns, *(["results files"] if any(stored) else [])]:
        table.add_column(name, justify="right", no_wrap=not narrow)
    last = ""
    for score, in_files in zip(scores, stored, strict=True):
        if last and score.task != last and not narrow:
            table.add_section()
        pairs = [(_value(score, score.difference, "+"), reasons.interval(score))]
        for rows in against.values():
            other = rows.get((score.task, score.metric, score.part))
            pairs.append((_value(other, other.difference, "+"), reasons.interval(other)) if other else ("", ""))
        values = [_value(score, score.first), _value(score, score.second)]
        if narrow:
            name = f"  {_metric(score)}" if score.task == last else f"{score.task}\n  {_metric(score)}"
            cells = [name, "\n".join(values), *("\n".join(pair) for pair in pairs)]
        else:
            cells = [score.task if score.task != last else "", _metric(score), *values]
            cells += [word for pair in pairs for word in pair]
        table.add_row(*cells, *([in_files] if any(stored) else []))
        last = score.task
    everything = [*scores, *(score for rows in others.values() for score in rows)]
    table.caption = "\n".join(_below(everything, reasons))
    return table


def show(
    console: Terminal,
    scores: Sequence[StockScore],
    first: str,
    second: str,
    beside: Mapping[str, Sequence[StockScore]] | None = None,
) -> None:
    """Print the table, if there is anything in it.

    Args:
        console: where to.
        scores: as `stock` takes them.
        first: likewise.
        second: likewise.
        beside: likewise.
    """
    if scores:
        console.show(*(stock(scores, first, second, beside=beside, narrow=narrow) for narrow in (False, True)))


def show_sweep(console: Terminal, findings: Findings) -> None:
    """Print those of a sweep's chosen merge, against plain and against its scale control.

    Args:
        console: where to.
        findings: of the sweep.
    """
    if PLAIN in findings.stock:
        controls = {name: scores for name, scores in findings.stock.items() if name != PLAIN}
        show(console, findings.stock[PLAIN], PLAIN, "chosen", controls)


# --- the page ---------------------------------------------------------------------------------------------------------


def stock_blocks(scores: Sequence[StockScore], first: str, second: str) -> list[Any]:
    """The same for the page; nothing without any.

    Args:
        scores: of two runs.
        first: name of the first run.
        second: name of the second.
    """
    if not scores:
        return []
    reasons = _Reasons()
    # Asked for one by one, since a reason gets its number when its row is made.
    shown = [(score, reasons.interval(score), _stored(score)) for score in scores]

    def of(words: Callable[[StockScore], str]) -> Callable[[tuple[StockScore, str, str]], str]:
        return lambda row: NONE if (said := words(row[0])) == "-" else minus_signs(said)

    columns: dict[str, Callable[[Any], str]] = {
        "task": lambda row: row[0].task,
        "metric": lambda row: _metric(row[0]),
        "unit": lambda row: row[0].unit or NONE,
        "n": lambda row: f"{row[0].documents:,}" if row[0].documents else NONE,
        "drawn": lambda row: f"{row[0].clusters:,} {row[0].over}" if row[0].clusters else NONE,
        first: of(lambda score: _value(score, score.first)),
        second: of(lambda score: _value(score, score.second)),
        "difference": of(lambda score: _value(score, score.difference, "+")),
        "95%": lambda row: minus_signs(row[1]),
    }
    if any(in_files for _, _, in_files in shown):
        columns["results files"] = lambda row: row[2] or NONE
    table = table_block(f"Stock scores of {second} against {first}", shown, columns, words={"metric", "unit", "drawn"})
    how, *more = _below(scores, reasons)
    blocks: list[Any] = [Paragraph(sentence(how.replace("95 %", "95%")), "note"), table]
    if more:
        blocks.append(Listing("About these figures", tuple(map(sentence, more)), code=False, open=True))
    return blocks
