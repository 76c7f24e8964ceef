"""The findings of a `plam attend` in words: only what is shown against plain *and* against the scale of the weights.

Larger query and key weights sharpen every softmax by themselves. So nothing is said of a merge that focuses attention
where `self_scale`, the same scale without the base, is not among the settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from plam_eval.evaluation.attend.compared import (
    ALL,
    CHOSEN,
    OTHER_OVER_CHANCE,
    OVER_CHANCE,
    PLATEAU,
    REPORTED,
    Compared,
)
from plam_eval.evaluation.attend.folder import MERGED, PLAIN, WITH_SINKS, WITHOUT_SINKS, Attended
from plam_eval.evaluation.attend.paired import LEAST_CLUSTERS
from plam_eval.evaluation.stats import SIGNIFICANT, format_p
from plam_eval.rules import SELF_SCALE

QUERIES = {
    "last": "the last token of the prompt",
    "question": "the tokens of the question",
    "answer": "the tokens of the answer",
}
"""Whose attention it is, in words."""


class _Measure(NamedTuple):
    """How a measure is spoken of: its name, the sign of a difference towards focus, and both directions."""

    name: str
    focus: int
    more: str
    less: str


_SAID = {
    OVER_CHANCE: _Measure("Boxes", 1, "more focused on the boxes", "less focused on the boxes"),
    "entropy": _Measure("Entropy", -1, "more focused (of lower entropy)", "more diffuse (of higher entropy)"),
}


def sentence_of(attended: Attended, compared: Compared) -> str:
    """Whether merged looks elsewhere than plain, and than the same scale without the base.

    Args:
        attended: a folder's content.
        compared: its tables.
    """
    if MERGED not in attended.settings:
        return f"Nothing is said of a merge: there is no setting {MERGED} among {', '.join(attended.settings)}."
    if SELF_SCALE not in attended.settings:
        return (
            f"Whether merging focuses attention is not said: the setting {SELF_SCALE} is missing, and larger weights "
            "sharpen attention by themselves, with nothing of a base in them."
        )
    clusters = len(compared.documents.drop_duplicates(["task", "cluster"]))
    if clusters < LEAST_CLUSTERS:
        return (
            f"{_count(len(compared.documents), 'document')} of {_count(clusters, 'cluster')} (a cluster is one image) "
            f"can show no difference, which takes {LEAST_CLUSTERS} clusters at least: the figures describe "
            f"{'it' if len(compared.documents) == 1 else 'them'}, and say nothing of others."
        )
    who = QUERIES.get(attended.made_with["queries"], str(attended.made_with["queries"]))
    said = [f"{_SAID[measure].name}: {_clause(measure, attended, compared)}." for measure in _SAID]
    return f"Attention of {who}, {_sinks_in_words(WITHOUT_SINKS)}. {' '.join(said)}"


def warnings_of(attended: Attended, compared: Compared) -> list[str]:
    """What a reader of the figures should know.

    Args:
        attended: a folder's content.
        compared: its tables.
    """
    keys = compared.documents
    clusters = keys.drop_duplicates(["task", "cluster"]).groupby("task", sort=False).size()
    few = [f"{task} ({count})" for task, count in clusters.items() if count < LEAST_CLUSTERS]
    warnings = list(_of_boxes(attended, compared))
    if few:
        warnings.append(
            f"no intervals can be given where a task has fewer than {LEAST_CLUSTERS} clusters: {', '.join(few)}"
        )
    if MERGED in attended.settings and not compared.held_out:
        where = "the documents that are reported" if compared.chosen_on else "nothing: there are too few clusters"
        warnings.append(f"layers were chosen on {where}")
    return warnings


# ---- a measure -------------------------------------------------------------------------------------------------------


class _Quoted(NamedTuple):
    """A measure in one place against plain and against its scale: rows of `Compared.quoted`, p as it counts there."""

    plain: dict[str, Any]
    scale: dict[str, Any]

    @property
    def enough(self) -> bool:
        return min(self.plain["clusters"], self.scale["clusters"]) >= LEAST_CLUSTERS

    def directions(self, focus: int) -> tuple[int, int]:
        """Against plain and against scale: 1 more focused, -1 less, 0 not shown to differ."""
        return _direction(self.plain, focus), _direction(self.scale, focus)


def _direction(row: dict[str, Any], focus: int) -> int:
    if not row["p"] < SIGNIFICANT:  # NaN as well
        return 0
    return focus if row["difference"] > 0 else -focus


def _quoted(compared: Compared, measure: str, sinks: str, place: str, on: str) -> _Quoted | None:
    """None where there is no such place."""
    table = compared.quoted
    rows = table[
        (table["measure"] == measure)
        & (table["sinks"] == sinks)
        & (table["place"] == place)
        & (table["on"] == on)
        & (table["second"] == MERGED)
    ]
    by_first = {row["first"]: row for row in rows.to_dict("records")}
    if PLAIN not in by_first or SELF_SCALE not in by_first:
        return None
    pair = []
    for name in (PLAIN, SELF_SCALE):
        row = {str(key): value for key, value in by_first[name].items()}
        if place == CHOSEN and not compared.held_out:
            row["p"] = _for_all_layers(compared.differences, row)
        pair.append(row)
    return _Quoted(*pair)


def _for_all_layers(differences: pd.DataFrame, row: dict[str, Any]) -> float:
    """The p of a layer that was chosen on the documents it is reported on, adjusted for all of them."""
    same = [differences[key] == row[key] for key in ("measure", "sinks", "first", "second", "layer")]
    return float(differences.loc[pd.concat(same, axis=1).all(axis=1), "p_holm"].iloc[0])


def _place(compared: Compared, measure: str) -> tuple[str, str] | None:
    """Where a measure is quoted: at the chosen layer, else over the plateau; None where documents are too few."""
    for place, on in ((CHOSEN, REPORTED), (PLATEAU, REPORTED), (PLATEAU, ALL)):
        quoted = _quoted(compared, measure, WITHOUT_SINKS, place, on)
        if quoted is not None and quoted.enough:
            return place, on
    return None


def _clause(measure: str, attended: Attended, compared: Compared) -> str:
    """What is said of a measure, without a full stop."""
    said, table = _SAID[measure], compared.quoted
    if not (table["measure"] == measure).any():
        return "no document has any" if measure == OVER_CHANCE else "nothing was measured"
    place = _place(compared, measure)
    if place is None:
        return f"too few documents for a test, which takes {LEAST_CLUSTERS} clusters at least"
    quoted = _quoted(compared, measure, WITHOUT_SINKS, *place)
    assert quoted is not None  # as _place has seen
    directions = quoted.directions(said.focus)
    text = f"{_where(quoted, place, attended, compared)}, "
    if measure == OVER_CHANCE and any(directions) and (other := _of_others(compared, place)):
        return (
            f"{text}merged differs from plain {_numbers(quoted.plain)} or from {SELF_SCALE} {_numbers(quoted.scale)}, "
            f"but so it does in the boxes of other documents, from {other['first']} {_numbers(other)}: that is of "
            "where boxes lie in images, and shows no looking at what is asked"
        )
    text += _in_words(said, directions, _numbers(quoted.plain), _numbers(quoted.scale))
    beside = _quoted(compared, measure, WITH_SINKS, *place)
    if beside is not None and (counted := beside.directions(said.focus)) != directions:
        text += f". With sinks counted {_in_words(said, counted, _numbers(beside.plain), _numbers(beside.scale))}"
    return text


def _in_words(said: _Measure, directions: tuple[int, int], plain: str, scale: str) -> str:
    """The verdict on both differences, with their numbers."""
    words = {1: said.more, -1: said.less}
    from_plain, from_scale = directions
    if not from_plain:
        text = f"merged is not shown to differ from plain {plain}"
        if from_scale:
            return f"{text}; it is {words[from_scale]} than {SELF_SCALE} {scale}"
        return f"{text} nor from {SELF_SCALE} {scale}"
    text = f"merged is {words[from_plain]} than plain {plain}"
    if not from_scale:
        return (
            f"{text}, but not shown to differ from {SELF_SCALE} {scale}: the scale of the weights may be all there is "
            "to it"
        )
    if from_scale == from_plain:
        return f"{text} and than {SELF_SCALE} {scale}"
    return f"{text}, but {words[from_scale]} than {SELF_SCALE} {scale}: the scale of the weights alone goes further"


def _where(quoted: _Quoted, place: tuple[str, str], attended: Attended, compared: Compared) -> str:
    row = quoted.plain
    counts = f"{_count(row['documents'], 'document')} of {_count(row['clusters'], 'cluster')}"
    if place[0] == CHOSEN:
        how = "on other documents" if compared.held_out else "on the same documents, p adjusted for all layers"
        return f"in layer {row['layer']} (chosen {how}; {counts})"
    assert attended.plateau is not None  # there is no such place without
    return f"in the mean of layers {attended.plateau[0]}:{attended.plateau[1]} ({counts})"


def _numbers(row: dict[str, Any]) -> str:
    difference = f"{row['difference']:+.3f}"
    if not math.isnan(row["low"]):
        difference += f", 95 % interval {row['low']:+.3f} to {row['high']:+.3f}"
    return f"({difference}, p = {format_p(row['p'])})"


def _sinks_in_words(sinks: str) -> str:
    return "sinks left out" if sinks == WITHOUT_SINKS else "sinks counted"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ---- boxes -----------------------------------------------------------------------------------------------------------


def _of_others(compared: Compared, place: tuple[str, str]) -> dict[str, Any] | None:
    """A difference of merged in the boxes of other documents, where one is shown."""
    others = _quoted(compared, OTHER_OVER_CHANCE, WITHOUT_SINKS, *place)
    return next((row for row in others or () if row["p"] < SIGNIFICANT), None)


def _of_boxes(attended: Attended, compared: Compared) -> Iterator[str]:
    """Whether boxes say something of looking, and of how many documents."""
    table = compared.levels
    own = table[(table["measure"] == OVER_CHANCE) & (table["sinks"] == WITHOUT_SINKS) & (table["setting"] == PLAIN)]
    everything = len(compared.documents)
    if not len(own):
        yield "no document has boxes: where in the image the model looks is not compared"
        return
    if (having := int(own["documents"].max())) < everything:
        yield f"{everything - having} of {everything} documents have no boxes, and are left out where boxes are needed"
    place = _place(compared, OVER_CHANCE)
    if place is None:
        return
    if other := _of_others(compared, place):
        yield (
            f"boxes of other documents, in which nothing should change, show a difference of {MERGED} from "
            f"{other['first']} {_numbers(other)}: boxes then say something of images, and nothing of looking"
        )
    control = table[
        (table["measure"] == OTHER_OVER_CHANCE) & (table["sinks"] == WITHOUT_SINKS) & (table["setting"] == PLAIN)
    ]
    quoted = _quoted(compared, OVER_CHANCE, WITHOUT_SINKS, *place)
    layer = quoted.plain["layer"] if quoted is not None else pd.NA
    for row in control[control["layer"] == layer].to_dict("records") if not pd.isna(layer) else ():
        if row["low"] > 0 or row["high"] < 0:
            yield (
                f"boxes of other documents have {math.exp(row['mean']):.2f} times their chance in the plain model "
                f"(layer {layer}): some of what boxes draw is of where they lie, whatever is asked"
            )
