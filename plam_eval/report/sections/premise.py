"""Was text ability lost: base LLM, plain and merged MLLM on tasks of text alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from plam_eval.evaluation.stats import OVERALL
from plam_eval.report.blocks import Paragraph, Section, records_of, table_block
from plam_eval.report.text import NONE, interval, minus_signs, number, p_value, signed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plam_eval.evaluation.premise.findings import PremiseFindings

_SHOWN = 1200  # letters of a prompt


def premise_sections(premises: Mapping[str, PremiseFindings]) -> list[Section]:
    """A section for each check: the answer, the tasks, and how both were asked.

    Args:
        premises: by name.
    """
    return [
        Section(f"Was anything lost?{f': {name}' if len(premises) > 1 else ''}", tuple(_blocks(findings)))
        for name, findings in premises.items()
    ]


def _blocks(findings: PremiseFindings) -> list[Any]:
    columns: dict[str, Any] = {
        "task": lambda row: "mean over tasks" if row["task"] == OVERALL else str(row["task"]),
        "documents": lambda row: f"{row['documents']:,}",
        "base": lambda row: number(row["base"]),
        "MLLM": lambda row: number(row["plain"]),
        "MLLM minus base": lambda row: signed(row["lost_difference"]),
        "95%": lambda row: interval(row["lost_low"], row["lost_high"]),
        "p": lambda row: p_value(row["lost_p"]),
    }
    if findings.back:
        columns |= {
            "merged": lambda row: number(row["merged"]),
            "merged minus MLLM": lambda row: signed(row["back_difference"]),
            "95% of it": lambda row: interval(row["back_low"], row["back_high"]),
            "p of it": lambda row: p_value(row["back_p"]),
            "share of the loss": _share,
        }
    blocks: list[Any] = [
        Paragraph(minus_signs(findings.verdict())),
        Paragraph(f"Base LLM: {findings.base}. MLLM: {findings.model}. {findings.prompts.sentence()}", "note"),
        table_block(
            "Tasks of text alone, paired by document; p is of one comparison each, not adjusted",
            records_of(findings.table),
            columns,
            look=lambda row: "chosen" if row["task"] == OVERALL else "",
        ),
    ]
    if findings.back:
        blocks.append(
            Paragraph(
                "The share of the loss is (merged minus MLLM) / (base minus MLLM), with an interval from the bootstrap "
                "over clusters of documents. Where no loss is shown there is none: it would divide by what may be 0.",
                "note",
            )
        )
    prompts = findings.prompts
    if prompts.task:
        same = prompts.mllm == prompts.base
        shown = [("both", prompts.mllm)] if same else [("the MLLM", prompts.mllm), ("the base LLM", prompts.base)]
        blocks.append(
            table_block(
                f"What was asked, template included, in a document of {prompts.task}",
                shown,
                {"asked of": lambda row: row[0], "prompt": lambda row: _cut(row[1])},
                words={"asked of", "prompt"},
            )
        )
    if findings.warnings:
        blocks += [Paragraph(minus_signs(text), "note") for text in findings.warnings]
    return blocks


def _cut(text: str) -> str:
    """The end of a prompt, where the template is, behind its beginning."""
    if len(text) <= _SHOWN:
        return text
    half = _SHOWN // 2
    return f"{text[:half]} [{len(text) - 2 * half:,} letters more] {text[-half:]}"


def _share(row: Mapping[str, Any]) -> str:
    if math.isnan(row["share"]):
        return NONE
    low, high = (f"{end:.0%}" if math.isfinite(end) else "open" for end in (row["share_low"], row["share_high"]))
    return minus_signs(f"{row['share']:.0%} ({low} to {high})")
