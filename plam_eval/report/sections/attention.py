"""Where it looks: attention of settings side by side, and what can be said of a merge beside its scale alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

from plam_eval.errors import PlamError
from plam_eval.evaluation.attend.compared import COMPARED, OTHER_OVER_CHANCE, OVER_CHANCE, PLATEAU, REPORTED
from plam_eval.evaluation.attend.folder import MERGED, PLAIN, QUERIES, WITHOUT_SINKS
from plam_eval.evaluation.attend.overlays import layers_in_words, layers_to_show, overlay_figure
from plam_eval.evaluation.attend.plot import attention_figure
from plam_eval.evaluation.attend.shown import ShownDocument
from plam_eval.evaluation.attend.summary import AttendFindings
from plam_eval.layer_sets import write_layers
from plam_eval.report.blocks import Folded, Paragraph, Section, TableBlock, picture, raster, records_of, table_block
from plam_eval.report.sources import Look
from plam_eval.report.text import NONE, count_of, cut_short, interval, minus_signs, number, p_value, percent, signed
from plam_eval.rules import SELF_SCALE

_BY_LAYER = (OVER_CHANCE, "entropy")
_SHOWN = 6  # documents whose attention is drawn on the page
_LETTERS = 300  # of a question in the words that stand for a drawing


def attention_section(look: Look, suffix: str, *, said: bool) -> Section:
    """The sentence, the measures by layer, what is quoted of them with its controls, and a few documents.

    Args:
        look: what `plam attend` has measured.
        suffix: of the section's title, which tells it from others on the page.
        said: whether the sentence and its warnings stand right above, as on a page of nothing else.
    """
    attended, findings = look
    blocks: list[Any] = []
    if not said:
        blocks.append(Paragraph(minus_signs(findings.sentence), "answer"))
        blocks += [Paragraph(minus_signs(cut_short(warning)), "warning") for warning in findings.warnings]
    blocks.append(
        picture(
            attention_figure(attended, findings),
            "Measures of attention by decoder layer, a line for each setting. Its numbers are in the tables below.",
            f"Attention of {QUERIES[findings.queries]} in each layer, mean over heads and over tasks. What {MERGED} "
            f"and {SELF_SCALE} have alike is the scale of the weights, and nothing of the base LLM.",
        )
    )
    blocks += _quoted(findings)
    blocks += _control(findings)
    blocks.append(
        table_block(
            "Answers by setting",
            records_of(findings.answers),
            {
                "setting": lambda row: str(row["setting"]),
                "score": lambda row: number(row["score"]),
                "parsable": lambda row: percent(row["parsable"]),
                "documents": lambda row: f"{row['documents']:,}",
            },
        )
    )
    blocks += _drawn(look)
    blocks += _by_layer(findings)
    blocks += [Paragraph(text, "note") for text in _CANNOT]
    return Section(f"Where it looks{suffix}", tuple(blocks))


_CANNOT = (
    "What these figures cannot say. Attention describes: a token that is attended to need not be used, and one that is "
    "used need not be attended to in that layer. Only hiding the image, as a scan does, says what a layer needs.",
    f"Larger queries and keys sharpen every softmax. Where {MERGED} differs from {PLAIN} and not from {SELF_SCALE}, "
    "the scale of the weights is all that is shown, and nothing of the base LLM is.",
    "Entropy says how concentrated attention is, not on what; a mean over heads hides heads that disagree; a box says "
    "where the answer is, not where one has to look for it. Drawings are of single documents, and show no effect.",
)


# --- what is quoted ---------------------------------------------------------------------------------------------------


def _quoted(findings: AttendFindings) -> list[Any]:
    """A row for each measure and place: all settings, and merged against plain and against its scale alone."""
    if not (places := [*_places(findings)]):
        return []
    if findings.held_out:
        others = count_of(sum(findings.chosen_on.values()), "other document")
        how = f"Layers were chosen on {others}, where merged differs most from plain."
    else:
        how = (
            "Layers were chosen on these documents, where merged differs most from plain; p is adjusted for all layers."
        )
    reported = count_of(sum(findings.reported_on.values()), "document")
    merged = write_layers(findings.merged_layers) if findings.merged_layers else ""
    means = f" Means of layers {merged} are over all that are merged, and were not chosen." if merged else ""
    caption = f"{reported}. {how}{means} p is of one row each"
    seen = [rows for rows in places if _any(rows)["sinks"] == WITHOUT_SINKS]
    counted = [rows for rows in places if _any(rows)["sinks"] != WITHOUT_SINKS]
    blocks: list[Any] = [_quoted_table(findings, seen, f"Sinks left out. {caption}")] if seen else []
    if counted:
        blocks.append(Folded("The same with sinks counted", (_quoted_table(findings, counted, caption),)))
    return blocks


def _quoted_table(findings: AttendFindings, places: list[dict[str, dict[str, Any]]], caption: str) -> TableBlock:
    def mean(setting: str) -> Callable[[Any], str]:
        def show(rows: Mapping[str, Mapping[str, Any]]) -> str:
            if setting == MERGED:
                return number(_any(rows)["second_mean"])
            return number(rows[setting]["first_mean"]) if setting in rows else NONE

        return show

    def against(other: str) -> Callable[[Any], str]:
        return lambda rows: _with_interval(rows[other]) if other in rows else NONE

    def p(other: str) -> Callable[[Any], str]:
        return lambda rows: p_value(rows[other]["p_holm"]) if other in rows else NONE

    columns: dict[str, Callable[[Any], str]] = {
        "measure": lambda rows: COMPARED[_any(rows)["measure"]],
        "layers": lambda rows: _where(findings, _any(rows)),
        **{name: mean(name) for name in findings.settings},
    }
    for other in (name for name in (PLAIN, SELF_SCALE) if name in findings.settings):
        columns |= {f"{MERGED} minus {other} (95%)": against(other), f"p ({other})": p(other)}
    return table_block(
        caption,
        places,
        columns,
        words=("layers",),
        look=lambda rows: "quiet" if _any(rows)["measure"] == OTHER_OVER_CHANCE else "",
    )


def _any(rows: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(iter(rows.values()))


def _places(findings: AttendFindings) -> Iterator[dict[str, dict[str, Any]]]:
    """For each measure, with and without sinks, and place: rows of `AttendFindings.quoted` by the first setting."""
    rows = findings.quoted
    rows = rows[(rows["second"] == MERGED) & (rows["on"] == REPORTED)]
    for _, group in rows.groupby(["measure", "sinks", "place"], sort=False):
        yield {str(row["first"]): row for row in records_of(group)}


def _where(findings: AttendFindings, row: Mapping[str, Any]) -> str:
    if row["place"] == PLATEAU:
        return write_layers(findings.merged_layers)
    return str(row["layer"])


def _with_interval(row: Mapping[str, Any]) -> str:
    between = f" ({interval(row['low'], row['high'])})" if pd.notna(row["low"]) else ""
    return f"{signed(row['difference'])}{between}"


def _control(findings: AttendFindings) -> list[Any]:
    """Own boxes beside those of other documents, in which attention should be near chance."""
    layer = findings.chosen_layer(OVER_CHANCE)
    levels = findings.levels
    levels = (
        levels[(levels["layer"] == layer) & (levels["sinks"] == WITHOUT_SINKS)] if layer is not None else levels[:0]
    )
    by = {(row["measure"], row["setting"]): row for row in records_of(levels)}
    settings = [name for name in findings.settings if (OVER_CHANCE, name) in by]
    if not settings:
        return []

    def times(measure: str) -> Callable[[str], str]:
        def show(setting: str) -> str:
            row = by.get((measure, setting))
            return NONE if row is None or pd.isna(row["mean"]) else number(math.exp(row["mean"]))

        return show

    def between(measure: str) -> Callable[[str], str]:
        def show(setting: str) -> str:
            row = by.get((measure, setting))
            if row is None or pd.isna(row["low"]):
                return NONE
            return interval(math.exp(row["low"]), math.exp(row["high"]), plus=False)

        return show

    return [
        table_block(
            f"Attention in boxes in layer {layer}, as a multiple of chance (1), sinks left out. In boxes of other "
            "documents it should be near 1: what is not there is of where boxes lie, whatever is asked. All documents",
            settings,
            {
                "setting": str,
                "own boxes": times(OVER_CHANCE),
                "95%": between(OVER_CHANCE),
                "other documents' boxes": times(OTHER_OVER_CHANCE),
                "95% of that": between(OTHER_OVER_CHANCE),
                "documents": lambda setting: f"{by[OVER_CHANCE, setting]['documents']}",
            },
        )
    ]


def _by_layer(findings: AttendFindings) -> list[Any]:
    """Boxes and entropy in every layer, behind a title that opens them."""
    tables = []
    others = [name for name in (PLAIN, SELF_SCALE) if name in findings.settings]
    for measure in _BY_LAYER:
        level = findings.levels
        level = level[(level["measure"] == measure) & (level["sinks"] == WITHOUT_SINKS)]
        if level.empty:
            continue
        means = {(row["layer"], row["setting"]): row["mean"] for row in records_of(level)}
        rows = findings.differences
        rows = rows[(rows["measure"] == measure) & (rows["sinks"] == WITHOUT_SINKS) & (rows["second"] == MERGED)]
        pairs = {(row["layer"], row["first"]): row for row in records_of(rows)}

        def mean(setting: str, means: Mapping[Any, Any] = means) -> Callable[[int], str]:
            return lambda layer: number(means.get((layer, setting), math.nan))

        def against(other: str, pairs: Mapping[Any, Any] = pairs) -> Callable[[int], str]:
            return lambda layer: _with_interval(pairs[layer, other]) if (layer, other) in pairs else NONE

        def p(other: str, pairs: Mapping[Any, Any] = pairs) -> Callable[[int], str]:
            return lambda layer: p_value(pairs[layer, other]["p_holm"]) if (layer, other) in pairs else NONE

        columns: dict[str, Callable[[int], str]] = {"layer": str, **{name: mean(name) for name in findings.settings}}
        for other in others if pairs else ():
            columns |= {f"{MERGED} minus {other} (95%)": against(other), f"Holm p ({other})": p(other)}
        tables.append(
            table_block(
                f"{COMPARED[measure]}, sinks left out, all documents; Holm p is adjusted for all layers",
                range(findings.num_layers),
                columns,
                look=_outside(findings),
            )
        )
    return [Folded("Every layer", tuple(tables))] if tables else []


def _outside(findings: AttendFindings) -> Callable[[int], str]:
    """Layers that are not merged are quiet."""
    merged = frozenset(findings.merged_layers or range(findings.num_layers))
    return lambda layer: "" if layer in merged else "quiet"


# --- documents --------------------------------------------------------------------------------------------------------


def _drawn(look: Look) -> list[Any]:
    """The attention of a few documents over their images; which they are was decided by the command."""
    attended, findings = look
    layers, how = layers_to_show(findings), layers_in_words(findings)
    blocks: list[Any] = []
    for path in attended.shown[:_SHOWN]:
        try:
            shown = ShownDocument.read(path)
            settings = [name for name in attended.settings if name in shown.maps]
            answers = "; ".join(f"{name}: {shown.answers[name]}" for name in settings)
            words = cut_short(f"{shown.question} Right is {shown.target}. {answers}", _LETTERS)
            blocks.append(
                raster(
                    overlay_figure(shown, layers, settings, how=how),
                    f"Attention over the image of {shown.task}, document {shown.doc_id}. {words}",
                    f"{shown.task}, document {shown.doc_id}",
                )
            )
        except (PlamError, OSError) as error:
            blocks.append(Paragraph(f"A document is not drawn: {cut_short(str(error))}", "note"))
    if blocks:
        more = len(attended.shown) - _SHOWN
        rest = f" {count_of(more, 'more document')} of the folder are not on this page." if more > 0 else ""
        blocks.insert(
            0,
            Paragraph(
                f"{count_of(min(len(attended.shown), _SHOWN), 'document')}, the first ones and not chosen for what is "
                "seen: attention to each part of the image, boxes outlined, all settings of a document on one scale of "
                f"colours.{rest}",
                "note",
            ),
        )
    return blocks
