"""The table of `plam premise` for the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich import box

from plam_eval.evaluation.stats import OVERALL, format_p
from plam_eval.terminal import PlainTable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from plam_eval.evaluation.premise.findings import PremiseFindings


def premise(findings: PremiseFindings, *, narrow: bool = False) -> PlainTable:
    """One line per task and the mean over tasks last: three scores, both differences, and the share that came back.

    Args:
        findings: of the check.
        narrow: for 80 columns, in two lines per task.
    """
    merged = bool(findings.back)
    if narrow:
        table = PlainTable(caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("task", min_width=16, overflow="fold")
        names = ["base\nMLLM", "lost\n95 %", "p"]
        names += ["merged", "back\n95 %", "p", "share"] if merged else []
    else:
        table = PlainTable(caption_justify="left")
        table.add_column("task", no_wrap=True)
        names = ["n", "base", "MLLM", "lost", "95 %", "p"]
        names += ["merged", "back", "95 %", "p", "share", "95 %"] if merged else []
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in findings.table.to_dict("records"):
        overall = row["task"] == OVERALL
        if overall:
            table.add_section()
        name = "mean over tasks" if overall else str(row["task"])
        lost, back = _cells(row, "lost"), _cells(row, "back")
        share = "-" if math.isnan(row["share"]) else f"{row['share']:.0%}"
        ends = "" if math.isnan(row["share"]) else f"{_end(row['share_low'])} to {_end(row['share_high'])}"
        if narrow:
            cells = [f"{name}\n  n = {row['documents']}", f"{row['base']:.3f}\n{row['plain']:.3f}"]
            cells += ["\n".join(lost[:2]), lost[2]]
            cells += [f"{row['merged']:.3f}", "\n".join(back[:2]), back[2], f"{share}\n{ends}"] if merged else []
        else:
            cells = [name, str(row["documents"]), f"{row['base']:.3f}", f"{row['plain']:.3f}", *lost]
            cells += [f"{row['merged']:.3f}", *back, share, ends] if merged else []
        table.add_row(*cells, style="bold" if overall else None)
    lines = [f"lost: MLLM minus base{'; back: merged minus MLLM' if merged else ''}"]
    lines += ["p of one comparison each, by document: exact McNemar test, or sign flips of clusters of documents"]
    if merged:
        lines.append("share of the loss: what the merge gives back of it; - where no loss is shown (mean: by p Holm)")
    table.caption = "\n".join(lines)
    return table


def _cells(row: Mapping[Any, Any], which: str) -> list[str]:
    low, high = row[f"{which}_low"], row[f"{which}_high"]
    return [f"{row[f'{which}_difference']:+.3f}", f"{low:+.3f} to {high:+.3f}", format_p(row[f"{which}_p"])]


def _end(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else "open"
