"""The measures of settings beside each other: by layer on all documents, and in few places on those held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plam_eval.bootstrap import Floats
from plam_eval.errors import InputError
from plam_eval.evaluation.attend.folder import MERGED, PLAIN, WITH_SINKS, WITHOUT_SINKS, Attended
from plam_eval.evaluation.attend.paired import Documents, differences, levels, standardised
from plam_eval.evaluation.stats import holm
from plam_eval.evaluation.sweep.documents import Drawn, split_documents

OVER_CHANCE, OTHER_OVER_CHANCE = "over_chance", "other_over_chance"
"""ln(mean share of the image's attention in boxes / mean chance), and the same with the boxes of another document."""

COMPARED = {
    OVER_CHANCE: "in boxes, over chance (ln)",
    OTHER_OVER_CHANCE: "in other documents' boxes (ln)",
    "box_share": "in boxes, of all keys",
    "entropy": "entropy over the image (nats)",
    "spatial_entropy": "spatial entropy (nats)",
    "image_share": "on the image, of all keys",
    "sink_share": "on sinks in the image, of all keys",
    "sink_share_of_image": "on sinks, of that on the image",
}
"""The measures that are compared, and what tables and figures call them."""

CHOSEN, PLATEAU = "chosen", "plateau"
"""Places that are quoted: the layer that was chosen, and the mean over all that are merged, for which none is."""

ALL, REPORTED = "all", "reported"
"""The documents that a place is quoted on: all, or those that nothing was chosen on."""

_SHARES = {
    OVER_CHANCE: ("box_share_of_image", "chance"),
    OTHER_OVER_CHANCE: ("other_box_share_of_image", "other_chance"),
}
"""Measures that are log ratios of means: of which share, and to which chance."""

_OF_SINKS = ("sink_share", "sink_share_of_image")  # 0 where sinks are left out
_PAIR = ("first", "second")
DIFFERENCE = ("first_mean", "second_mean", "difference", "low", "high", "p", "documents", "clusters", "tasks")
"""Columns of a comparison."""
_LEVEL = ("mean", "low", "high", "documents", "clusters", "tasks")
_ABOUT = ("measure", "sinks")

Chosen = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Compared:
    """Tables of a folder; `findings.AttendFindings` says what is in them.

    Attributes:
        differences, levels, quoted: tables.
        held_out: whether layers were chosen on other documents than those they are reported on.
        chosen_on, reported_on: documents by task.
        documents: columns task, doc_id, cluster, of those that have measures.
    """

    differences: pd.DataFrame
    levels: pd.DataFrame
    quoted: pd.DataFrame
    held_out: bool
    chosen_on: dict[str, int]
    reported_on: dict[str, int]
    documents: pd.DataFrame


def compare(attended: Attended, select: int | None) -> Compared:
    """Compare every setting with plain, and merged with every other one.

    Args:
        attended: a folder's content, with measures of one document at least.
        select: documents of each task to choose layers on; None is half of them, 0 all that are reported.

    Raises:
        InputError: `select` leaves none of a task to report on.
    """
    documents, columns = _columns(attended)
    chosen, reported = _split(documents.keys, select, attended.drawn)
    by_layer, by_setting, quoted = [], [], []
    for measure in COMPARED:
        of_measure = {sinks: _Values.of(columns[sinks], measure) for sinks in _variants(measure)}
        of_measure = {sinks: values for sinks, values in of_measure.items() if values.any()}
        if not of_measure:
            continue
        if measure != OTHER_OVER_CHANCE:  # a control, looked at where the boxes themselves are
            layer = _choose(documents.only(chosen), next(iter(of_measure.values())).only(chosen), attended.settings)
        for sinks, values in of_measure.items():
            about = {"measure": measure, "sinks": sinks}
            each = np.arange(attended.num_layers)
            by_layer += [about | row for row in _differences(documents, values, attended.settings, each)]
            by_setting += [about | row for row in _levels(documents, values, attended.settings)]
            for place, on, row in _quoted(documents, values, attended, layer, reported):
                quoted.append(about | {"place": place, "on": on} | row)
    differing = _table(by_layer, (*_ABOUT, *_PAIR, "layer", *DIFFERENCE))
    differing.insert(list(differing).index("p") + 1, "p_holm", _holm(differing))
    quoting = _table(quoted, (*_ABOUT, "place", "on", "layer", *_PAIR, *DIFFERENCE))
    counted = _counted(quoting, differing, held_out=not reported.all())
    quoting.insert(list(quoting).index("p") + 1, "p_holm", counted)
    return Compared(
        differences=differing,
        levels=_table(by_setting, (*_ABOUT, "setting", "layer", *_LEVEL)),
        quoted=quoting,
        held_out=not reported.all(),
        chosen_on=_by_task(documents.keys[chosen]),
        reported_on=_by_task(documents.keys[reported]),
        documents=documents.keys,
    )


def _variants(measure: str) -> tuple[str, ...]:
    """With sinks, without, or both; layers are chosen by the first of them."""
    return (WITH_SINKS,) if measure in _OF_SINKS else (WITHOUT_SINKS, WITH_SINKS)


class _Values(NamedTuple):
    """One measure, (documents, settings, layers), and its chance (documents, layers), that of the plain model."""

    values: Floats
    chance: Floats | None

    @classmethod
    def of(cls, columns: dict[str, Floats], measure: str) -> _Values:
        share, chance = _SHARES.get(measure, (measure, None))
        return cls(columns[share], None if chance is None else columns[chance][:, 0])

    def only(self, kept: Chosen) -> _Values:
        return _Values(self.values[kept], None if self.chance is None else self.chance[kept])

    def at(self, layers: NDArray[np.intp]) -> _Values:
        """Of some layers, in their order."""
        return _Values(self.values[:, :, layers], None if self.chance is None else self.chance[:, layers])

    def mean(self, layers: Sequence[int]) -> _Values:
        """The mean over some layers, as one."""
        own = self.at(np.array(layers))
        chance = None if own.chance is None else own.chance.mean(1, keepdims=True)
        return _Values(own.values.mean(2, keepdims=True), chance)

    def any(self) -> bool:
        """Whether there is anything to compare."""
        return bool(np.isfinite(self.values).any())


def _columns(attended: Attended) -> tuple[Documents, dict[str, dict[str, Floats]]]:
    """The documents that have measures, and by sinks and column their values (documents, settings, layers)."""
    table = attended.measures
    table = table[table["setting"].isin(attended.settings)]
    keys = table[["task", "doc_id", "cluster"]].drop_duplicates(["task", "doc_id"])
    keys = keys.sort_values(["task", "doc_id"]).reset_index(drop=True)
    index = pd.MultiIndex.from_frame(keys[["task", "doc_id"]])
    document = index.get_indexer(pd.MultiIndex.from_frame(table[["task", "doc_id"]]))
    setting = pd.Index(attended.settings).get_indexer(table["setting"])
    layer, sinks = table["layer"].to_numpy(), table["sinks"].to_numpy()
    shape = (len(keys), len(attended.settings), attended.num_layers)
    columns: dict[str, dict[str, Floats]] = {}
    for variant in (WITH_SINKS, WITHOUT_SINKS):
        rows = np.flatnonzero(sinks == variant)
        places = document[rows], setting[rows], layer[rows]
        columns[variant] = {}
        for name in table.columns.difference(["task", "doc_id", "cluster", "setting", "layer", "sinks"]):
            values = np.full(shape, np.nan)
            values[places] = table[name].to_numpy(dtype=float)[rows]
            columns[variant][str(name)] = np.where(np.isfinite(values), values, np.nan)
    return Documents(keys), columns


def _split(keys: pd.DataFrame, select: int | None, drawn: Drawn | None) -> tuple[Chosen, Chosen]:
    """Which documents layers are chosen on, and which are reported: both of one length, (documents,) bool.

    A task whose documents are all of one cluster cannot be divided. Where half of each is asked for, as by default,
    nothing is chosen on it; where there is no other task, layers are chosen on nothing.
    """
    whole = np.ones(len(keys), bool)
    if select == 0:
        return whole, whole
    samples = keys.rename(columns={"cluster": "group"})
    drawn = None if drawn is None else _of_measured(keys, drawn)
    if select is not None:
        picked = split_documents(samples, select, drawn)[0]
    else:
        halves = []
        for _, rows in samples.groupby("task", sort=False):
            try:
                halves.append(split_documents(rows, len(rows) // 2, drawn)[0])
            except InputError:
                continue
        picked = pd.concat(halves) if halves else samples.iloc[:0]
    pairs = (pd.MultiIndex.from_frame(table[["task", "doc_id"]]) for table in (keys, picked))
    chosen = np.asarray(next(pairs).isin(next(pairs)))
    return chosen, ~chosen


def _of_measured(keys: pd.DataFrame, drawn: Drawn) -> Drawn:
    """The order in which documents are drawn, of those alone that have measures."""
    measured = {str(task): set(rows["doc_id"].tolist()) for task, rows in keys.groupby("task", sort=False)}
    kept = {
        task: [[doc_id for doc_id in cluster if doc_id in measured[task]] for cluster in clusters]
        for task, clusters in drawn.items()
        if task in measured
    }
    return {task: [cluster for cluster in clusters if cluster] for task, clusters in kept.items()}


def _by_task(keys: pd.DataFrame) -> dict[str, int]:
    return {str(task): int(count) for task, count in keys.groupby("task", sort=False).size().items()}


def _choose(documents: Documents, values: _Values, settings: Sequence[str]) -> int | None:
    """The layer in which merged differs most from plain, in standard errors; None where nothing is known or changes."""
    if MERGED not in settings or not len(documents.keys):
        return None
    plain, merged = (values.values[:, settings.index(name)] for name in (PLAIN, MERGED))
    sizes = np.nan_to_num(np.abs(standardised(documents, plain, merged, relative=values.chance is not None)))
    return int(sizes.argmax()) if sizes.max() > 0 else None


def _pairs(settings: Sequence[str]) -> list[tuple[str, str]]:
    """Every setting against plain, and merged against every other one."""
    others = [name for name in settings if name != PLAIN]
    against = [(name, MERGED) for name in others if name != MERGED] if MERGED in settings else []
    return [*((PLAIN, name) for name in others), *against]


def _differences(
    documents: Documents, values: _Values, settings: Sequence[str], layers: Sequence[Any] | NDArray[np.intp]
) -> Iterator[dict[str, Any]]:
    """A row for each pair and layer; `layers` names those of `values`."""
    pairs = _pairs(settings)
    if not pairs:
        return
    first, second = (
        np.hstack([values.values[:, settings.index(name)] for name in side]) for side in zip(*pairs, strict=True)
    )
    chance = None if values.chance is None else np.tile(values.chance, len(pairs))
    compared = differences(documents, first, second, chance)
    difference = compared.difference
    columns = (compared.first, compared.second, difference.value, difference.low, difference.high, compared.p)
    counts = (difference.documents, difference.clusters, difference.tasks)
    names = [(*pair, layer) for pair in pairs for layer in layers]
    for (one, other, layer), *numbers in zip(names, *columns, *counts, strict=True):
        yield {"first": one, "second": other, "layer": layer, **dict(zip(DIFFERENCE, numbers, strict=True))}


def _levels(documents: Documents, values: _Values, settings: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each setting and layer."""
    chance = None if values.chance is None else np.tile(values.chance, len(settings))
    number = values.values.shape[2]
    told = levels(documents, values.values.reshape(len(documents.keys), -1), chance)
    names = [(setting, layer) for setting in settings for layer in range(number)]
    for (setting, layer), *numbers in zip(names, *told, strict=True):
        yield {"setting": setting, "layer": layer, **dict(zip(_LEVEL, numbers, strict=True))}


def _quoted(
    documents: Documents, values: _Values, attended: Attended, layer: int | None, reported: Chosen
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Place, documents and row of each pair, at the chosen layer and over those that are merged."""
    kept = documents.only(reported), values.only(reported)
    if layer is not None:
        for row in _differences(kept[0], kept[1].at(np.array([layer])), attended.settings, [layer]):
            yield CHOSEN, REPORTED, row
    if attended.merged_layers:
        for on, (some, own) in ((REPORTED, kept), (ALL, (documents, values))):
            for row in _differences(some, own.mean(attended.merged_layers), attended.settings, [pd.NA]):
                yield PLATEAU, on, row


def _holm(table: pd.DataFrame) -> pd.Series:
    """p adjusted for the layers of its measure and pair; NaN where there is none."""
    given = table.dropna(subset="p").astype({"p": float})
    adjusted = given.groupby([*_ABOUT, *_PAIR], sort=False)["p"].transform(lambda p: np.asarray(holm(p.tolist())))
    return adjusted.reindex(table.index)


def _counted(quoted: pd.DataFrame, differing: pd.DataFrame, *, held_out: bool) -> pd.Series:
    """p of what is quoted, for all layers where the layer was chosen on the documents that it is reported on."""
    keys = [*_ABOUT, *_PAIR, "layer"]
    for_all_layers = quoted[keys].merge(differing[[*keys, "p_holm"]], how="left", on=keys)["p_holm"]
    chosen = (quoted["place"] == CHOSEN) & (not held_out)
    return quoted["p"].mask(chosen, for_all_layers)


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(columns))
    return table.astype(dict.fromkeys(("layer", "documents", "clusters", "tasks"), "Int64"))
