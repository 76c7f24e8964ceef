"""The findings of a `plam attend` in words: only what is shown against plain *and* against the scale of the weights.

Larger query and key weights sharpen every softmax by themselves. So nothing is said of a merge that focuses attention
where `self_scale`, the same scale without the base, is not among the settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
from plam_eval.evaluation.attend.folder import MERGED, PLAIN, QUERIES, WITH_SINKS, WITHOUT_SINKS, Attended
from plam_eval.evaluation.attend.paired import LEAST_CLUSTERS
from plam_eval.evaluation.stats import SIGNIFICANT, count_of, format_p
from plam_eval.layer_sets import write_layers
from plam_eval.rules import SELF_SCALE


class _Measure(NamedTuple):
    """How a measure is spoken of: its name, the sign of a difference towards focus, and both directions."""

    name: str
    focus: int
    more: str
    less: str

    def direction(self, row: Mapping[str, Any]) -> int:
        """1 where the second setting is more focused, -1 where less, 0 where no difference is shown."""
        if not row["p_holm"] < SIGNIFICANT:  # NaN as well
            return 0
        return self.focus if row["difference"] > 0 else -self.focus

    def words(self, direction: int) -> str:
        return self.more if direction > 0 else self.less


_SAID = {
    OVER_CHANCE: _Measure("Boxes (ln of share over chance)", 1, "more focused on them", "less focused on them"),
    "entropy": _Measure("Entropy over the image (nats)", -1, "more focused", "more diffuse"),
}


class _Place(NamedTuple):
    """Where a measure is quoted, and on which documents."""

    place: str
    on: str


class _Pair(NamedTuple):
    """Merged against plain and against its scale alone: rows of `Compared.quoted`."""

    plain: dict[str, Any]
    scale: dict[str, Any]


def sentence_of(attended: Attended, compared: Compared) -> str:
    """Whether merged looks elsewhere than plain, and than the same scale without the base.

    Args:
        attended: a folder's content.
        compared: its tables.
    """
    scale = _scale(attended)
    if MERGED not in attended.settings:
        return f"Nothing is said of a merge: there is no setting {MERGED} among {', '.join(attended.settings)}."
    if scale is None:
        return (
            f"Whether merging focuses attention is not said: the setting {SELF_SCALE} is missing, and larger weights "
            "sharpen attention by themselves, with nothing of a base in them."
        )
    if scale == MERGED:
        return f"Nothing is said of a base: {MERGED} is {SELF_SCALE} itself, to the bit."
    documents, clusters = len(compared.documents), len(compared.documents.drop_duplicates(["task", "cluster"]))
    if clusters < LEAST_CLUSTERS:
        what = f"{count_of(documents, 'document')} of {count_of(clusters, 'cluster')} (of one image each)"
        return (
            f"{what} can show no difference, which takes {LEAST_CLUSTERS} clusters at least: figures describe "
            f"{'it' if documents == 1 else 'them'}, and say nothing of others."
        )
    return " ".join(
        [
            f"Attention of {QUERIES[attended.made_with['queries']]}, sinks left out.",
            *_Words(attended, compared, scale).clauses(),
        ]
    )


def warnings_of(attended: Attended, compared: Compared) -> list[str]:
    """What a reader of the figures should know.

    Args:
        attended: a folder's content.
        compared: its tables.
    """
    clusters = compared.documents.drop_duplicates(["task", "cluster"]).groupby("task", sort=False).size()
    warnings = list(_Words(attended, compared, _scale(attended) or PLAIN).of_boxes())
    if 1 < clusters.sum() < LEAST_CLUSTERS:
        warnings.append(f"{clusters.sum()} clusters in all: no interval and no p below 0.05 can be had of so few")
    if MERGED in attended.settings and clusters.sum() >= LEAST_CLUSTERS:
        unchosen = [str(task) for task in clusters.index if task not in compared.chosen_on]
        if not compared.held_out:
            warnings.append("layers were chosen on the documents that are reported: figures look better than they are")
        elif unchosen:
            warnings.append(f"layers were chosen without {', '.join(unchosen)}, whose documents are all of one cluster")
    return warnings


def _scale(attended: Attended) -> str | None:
    """The setting that is the merge's scale without the base; None where it was not looked at."""
    equal = attended.made_with.get("equal")
    other = equal.get(SELF_SCALE) if isinstance(equal, dict) else None  # looked at under another name
    name = SELF_SCALE if other is None else other
    return name if name in attended.settings else None


class _Words:
    """What is said of a folder with a merge and its scale.

    Args:
        attended: a folder's content.
        compared: its tables.
        scale: the setting that is the scale of the merge.
    """

    def __init__(self, attended: Attended, compared: Compared, scale: str) -> None:
        self._attended, self._compared, self._scale = attended, compared, scale

    def clauses(self) -> Iterator[str]:
        """A sentence for each measure, and where and on what they were taken."""
        told: dict[str, list[str]] = {}
        for measure, said in _SAID.items():
            if not (self._compared.quoted["measure"] == measure).any():
                yield "No document has boxes." if measure == OVER_CHANCE else f"{said.name}: nothing to compare."
                continue
            place = self._place(measure)
            if place is None:
                yield f"{said.name}: of too few clusters to show a difference, which takes {LEAST_CLUSTERS} at least."
                continue
            pair = self._pair(measure, WITHOUT_SINKS, place)
            assert pair is not None  # as _place has seen
            yield f"{said.name}: {self._clause(measure, pair, place)}."
            told.setdefault(self._taken(pair, place), []).append(said.name.split(" (")[0])
        for taken, names in told.items():
            yield f"{taken}." if len(told) == 1 else f"{' and '.join(names)}: {taken[0].lower()}{taken[1:]}."

    def of_boxes(self) -> Iterator[str]:
        """Whether boxes say something of looking, and of how many documents."""
        levels = self._compared.levels
        levels = levels[(levels["sinks"] == WITHOUT_SINKS) & (levels["setting"] == PLAIN)]
        own, everything = levels[levels["measure"] == OVER_CHANCE], len(self._compared.documents)
        if not len(own):
            yield "no document has boxes: where in the image the model looks is not compared"
            return
        if (having := int(own["documents"].max())) < everything:
            yield f"{everything - having} of {everything} documents have no boxes, and do not count where boxes do"
        place = self._place(OVER_CHANCE)
        pair = self._pair(OVER_CHANCE, WITHOUT_SINKS, place) if place is not None else None
        if place is None or pair is None:
            return
        if other := self._of_others(place):
            yield (
                f"boxes of other documents, in which nothing should change, show a difference of {MERGED} from "
                f"{other['first']} {_numbers(other)}: boxes say something of images then, and nothing of looking"
            )
        if not pd.isna(layer := pair.plain["layer"]):
            others = levels[(levels["measure"] == OTHER_OVER_CHANCE) & (levels["layer"] == layer)]
            for row in others.to_dict("records"):
                if row["low"] > 0 or row["high"] < 0:
                    yield (
                        f"boxes of other documents draw {math.exp(row['mean']):.2f} times their chance in the plain "
                        f"model (layer {layer}): some of what boxes draw is of where they lie, whatever is asked"
                    )

    def _place(self, measure: str) -> _Place | None:
        """Where a measure is quoted: in the chosen layer, else the mean of those merged; None for too few clusters."""
        for place in (_Place(CHOSEN, REPORTED), _Place(PLATEAU, REPORTED), _Place(PLATEAU, ALL)):
            pair = self._pair(measure, WITHOUT_SINKS, place)
            if pair is not None and min(row["clusters"] for row in pair) >= LEAST_CLUSTERS:
                return place
        return None

    def _pair(self, measure: str, sinks: str, place: _Place) -> _Pair | None:
        """None where there is no such place."""
        table = self._compared.quoted
        same = (table["measure"] == measure) & (table["sinks"] == sinks) & (table["second"] == MERGED)
        rows = table[same & (table["place"] == place.place) & (table["on"] == place.on)]
        by_first = {row["first"]: row for row in rows.to_dict("records")}
        if PLAIN not in by_first or self._scale not in by_first:
            return None
        plain, scale = ({str(key): value for key, value in by_first[name].items()} for name in (PLAIN, self._scale))
        return _Pair(plain, scale)

    def _of_others(self, place: _Place) -> dict[str, Any] | None:
        """A difference of merged in the boxes of other documents, where one is shown."""
        others = self._pair(OTHER_OVER_CHANCE, WITHOUT_SINKS, place)
        return next((row for row in others or () if row["p_holm"] < SIGNIFICANT), None)

    def _clause(self, measure: str, pair: _Pair, place: _Place) -> str:
        """What is said of a measure."""
        said = _SAID[measure]
        directions = [said.direction(row) for row in pair]
        if measure == OVER_CHANCE and any(directions) and (other := self._of_others(place)):
            return (
                f"nothing is said of them, since merged differs from {other['first']} in the boxes of other documents, "
                f"too {_numbers(other)}"
            )
        text = self._verdict(said, pair)
        counted = self._pair(measure, WITH_SINKS, place)
        if counted is not None and [said.direction(row) for row in counted] != directions:
            text += f". With sinks counted {self._verdict(said, counted)}"
        return text

    def _verdict(self, said: _Measure, pair: _Pair) -> str:
        """Both differences in words, with their numbers."""
        from_plain, from_scale = (said.direction(row) for row in pair)
        plain, scale = (_numbers(row) for row in pair)
        name = SELF_SCALE if self._scale in (PLAIN, SELF_SCALE) else f"{self._scale} (which is {SELF_SCALE})"
        text = f"merged is {said.words(from_plain)} than plain {plain}"
        if not from_plain:
            text = f"merged is not shown to differ from plain {plain}"
        if self._scale == PLAIN:
            return f"{text}, which {SELF_SCALE} is to the bit"
        if not from_plain:
            return (
                text
                + (f", but is {said.words(from_scale)} than {name}" if from_scale else f" nor from {name}")
                + f" {scale}"
            )
        if not from_scale:
            return f"{text}, but not shown to differ from {name} {scale}: the scale of the weights may be all of it"
        if from_scale == from_plain:
            return f"{text} and than {name} {scale}"
        return f"{text}, but {said.words(from_scale)} than {name} {scale}: the scale of the weights alone goes further"

    def _taken(self, pair: _Pair, place: _Place) -> str:
        """Where, and of how many documents."""
        row = pair.plain
        counts = f"{count_of(row['documents'], 'document')} of {count_of(row['clusters'], 'cluster')}"
        if place.place == CHOSEN:
            how = (
                "on other documents" if self._compared.held_out else "on the same documents, p adjusted for all layers"
            )
            return f"In layer {row['layer']}, chosen {how}; {counts}"
        return f"In the mean of layers {write_layers(self._attended.merged_layers)}; {counts}"


def _numbers(row: Mapping[str, Any]) -> str:
    difference = f"{row['difference']:+.3f}"
    if not math.isnan(row["low"]):
        difference += f", 95 % interval {row['low']:+.3f} to {row['high']:+.3f}"
    return f"({difference}, p = {format_p(row['p_holm'])})"
