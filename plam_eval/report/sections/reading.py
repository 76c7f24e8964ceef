"""How to read this page."""

from __future__ import annotations

from typing import Any

from plam_eval.report.blocks import Paragraph
from plam_eval.report.sources import Sources


def reading_section(sources: Sources) -> tuple[Any, ...]:
    """What figures, intervals and p values of a page of `sources` mean, and what they do not say."""
    lines = ["Scores are means of the documents' own scores, from 0 to 1. The mean over tasks weighs every task alike."]
    if sources.sweeps or sources.runs:
        lines[0] += " A task's stock metric, on its own scale, is in the table metrics."
        lines.append(
            "In the tables as CSV an apostrophe stands before texts that a spreadsheet would run as a formula (those "
            "that begin with =, +, - or @); parquet holds them as they are."
        )
    lines += [
        "An interval of 95% says how far a figure might move if other documents of the same kind had been asked. p "
        "says how often chance alone would give so large a difference; Holm p, how often it would in any of the "
        "settings compared. Documents that share an image or a question count together.",
        "That no difference is shown does not say that there is none: look at how wide the interval is.",
        "This page does not say what another model, task, prompt or way of decoding would show, or whether the model "
        "saw these documents in training.",
    ]
    return tuple(Paragraph(line) for line in lines)
