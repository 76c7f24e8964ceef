"""The picture of a `plam attend`: measures by layer, plain beside merged beside its scale alone. No pyplot."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from plam_eval.evaluation.attend.compared import COMPARED, OTHER_OVER_CHANCE, OVER_CHANCE
from plam_eval.evaluation.attend.folder import MERGED, PLAIN, QUERIES, WITH_SINKS, WITHOUT_SINKS, Attended
from plam_eval.evaluation.attend.summary import AttendFindings
from plam_eval.evaluation.stats import count_of
from plam_eval.figures import COLOURS, LINE_STYLES, MARKED, PLATEAU_COLOUR, add_legend
from plam_eval.layer_sets import label_layers, runs_of
from plam_eval.rules import SELF_SCALE
from plam_eval.terminal import one_line

_ROWS = (OVER_CHANCE, "entropy", "spatial_entropy", "image_share")
_STYLES: dict[str, dict[str, Any]] = {
    PLAIN: {"color": "black", "linestyle": "-", "linewidth": 2.0},
    MERGED: {"color": COLOURS[1], "linestyle": "-", "linewidth": 2.0},
    SELF_SCALE: {"color": COLOURS[0], "linestyle": (0, (5, 2)), "linewidth": 2.0},
}
_THIN_STYLES = tuple(style for style in LINE_STYLES if style != ":")  # dotted are the boxes of other documents
_QUOTED: dict[str, Any] = {"color": "#707070", "linewidth": 0.8, "linestyle": "-"}


class _Series(NamedTuple):
    """A line over layers with its band."""

    layers: Sequence[int]
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def attention_figure(attended: Attended, findings: AttendFindings) -> Figure:
    """Measures by layer: of every setting, with sinks left out and counted, and as differences from plain.

    The merge's layers are shaded, the layer that is quoted has a line. In the boxes 0 is chance; dotted lines are those
    of the boxes of other documents, which belong there. Bands are 95 % intervals: of means, which differ between
    documents, in the first two columns; of paired differences in the third.

    Args:
        attended: a folder's content.
        findings: of it.
    """
    levels = findings.levels
    rows = [measure for measure in _ROWS if (levels["measure"] == measure).any()]
    figure = Figure(figsize=(10.4, 1.9 * len(rows) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), 3, sharex=True, squeeze=False)
    styles = _styles(attended.settings)
    for measure, (without, counted, difference) in zip(rows, panels, strict=True):
        for axes, sinks in ((without, WITHOUT_SINKS), (counted, WITH_SINKS)):
            for setting, series in _of_levels(levels, measure, sinks, attended.settings):
                _draw(axes, series, styles[setting])
        for setting, series in _of_differences(findings.differences, measure, attended.settings):
            _draw(difference, series, styles[setting])
        if measure == OVER_CHANCE:
            for axes, sinks in ((without, WITHOUT_SINKS), (counted, WITH_SINKS)):
                for setting, series in _of_levels(levels, OTHER_OVER_CHANCE, sinks, (PLAIN, MERGED)):
                    _draw(axes, series, {**styles[setting], "linestyle": ":", "linewidth": 1.2}, band=False)
                axes.axhline(0, color="black", linewidth=0.8, alpha=0.6)
        _share_y(without, counted)
        difference.axhline(0, color="black", linewidth=0.8, alpha=0.6)
        without.set_ylabel(textwrap.fill(COMPARED[measure], 20))
        for axes in (without, counted, difference):
            _finish(axes, findings, findings.chosen_layer(measure))
    for axes, title in zip(panels[0], ("sinks left out", "sinks counted", "minus plain (sinks left out)"), strict=True):
        axes.set_title(title, fontsize=9.5)
    for axes in panels[-1]:
        axes.set_xlabel("decoder layer", fontsize=8.5)
    figure.align_ylabels()
    figure.suptitle(textwrap.fill(_headline(findings), 110), x=0.01, ha="left", fontsize=11, parse_math=False)
    add_legend(
        figure, [*_handles(attended.settings, styles), *_marks(findings, rows)], loc="outside lower center", ncols=3
    )
    return figure


def _styles(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How the line of each setting is drawn: plain, merged and its scale alone stand out."""
    colours = [colour for colour in COLOURS if colour not in (style["color"] for style in _STYLES.values())]
    others = [name for name in settings if name not in _STYLES]
    thin = {
        name: {
            "color": colours[number % len(colours)],
            "linestyle": _THIN_STYLES[number % len(_THIN_STYLES)],
            "linewidth": 1.1,
        }
        for number, name in enumerate(others)
    }
    return {name: _STYLES.get(name) or thin[name] for name in settings}


def _of_levels(
    levels: pd.DataFrame, measure: str, sinks: str, settings: Sequence[str]
) -> Iterator[tuple[str, _Series]]:
    rows = levels[(levels["measure"] == measure) & (levels["sinks"] == sinks)]
    for setting in reversed(settings):  # plain on top
        if len(own := rows[rows["setting"] == setting]):
            yield setting, _series(own, "mean")


def _of_differences(differences: pd.DataFrame, measure: str, settings: Sequence[str]) -> Iterator[tuple[str, _Series]]:
    wanted = (differences["measure"] == measure) & (differences["sinks"] == WITHOUT_SINKS)
    rows = differences[wanted & (differences["first"] == PLAIN)]
    for setting in reversed(settings):
        if len(own := rows[rows["second"] == setting]):
            yield setting, _series(own, "difference")


def _series(rows: pd.DataFrame, column: str) -> _Series:
    return _Series(rows["layer"].tolist(), rows[column].tolist(), rows["low"].tolist(), rows["high"].tolist())


def _draw(axes: Axes, series: _Series, style: dict[str, Any], *, band: bool = True) -> None:
    thick = style["linewidth"] >= 2
    marker: dict[str, Any] = {"marker": "o", "markersize": 3 if thick else 2} if len(series.layers) <= MARKED else {}
    if band and thick:
        axes.fill_between(series.layers, series.low, series.high, color=style["color"], alpha=0.16, linewidth=0)
    axes.plot(series.layers, series.values, zorder=3 if thick else 2, **style, **marker)


def _share_y(*panels: Axes) -> None:
    """One scale in panels that show the same."""
    ends = [axes.get_ylim() for axes in panels]
    for axes in panels:
        axes.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))


def _finish(axes: Axes, findings: AttendFindings, chosen: int | None) -> None:
    for start, end in runs_of(findings.merged_layers):
        axes.axvspan(start - 0.5, end - 0.5, color=PLATEAU_COLOUR, linewidth=0, zorder=0)
    if chosen is not None:
        axes.axvline(chosen, zorder=1, **_QUOTED)
    axes.set_xlim(-0.5, findings.num_layers - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(labelsize=8)
    axes.yaxis.label.set_fontsize(8.5)
    axes.grid(axis="y", linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)


def _handles(settings: Sequence[str], styles: dict[str, dict[str, Any]]) -> list[Line2D]:
    return [Line2D([], [], label=one_line(name), **styles[name]) for name in settings]


def _marks(findings: AttendFindings, rows: Sequence[str]) -> list[Line2D | Patch]:
    """What the marks of all panels mean."""
    marks: list[Line2D | Patch] = []
    if OVER_CHANCE in rows:
        marks.append(
            Line2D([], [], color="black", linewidth=1.2, linestyle=":", label="in the boxes of other documents")
        )
    if findings.merged_layers:
        marks.append(Patch(color=PLATEAU_COLOUR, label=f"merged layers: {label_layers(findings.merged_layers)}"))
    if any(findings.chosen_layer(measure) is not None for measure in rows):
        how = "on other documents" if findings.held_out else "on the same documents"
        marks.append(Line2D([], [], label=f"layer quoted, chosen {how}", **_QUOTED))
    return marks


def _headline(findings: AttendFindings) -> str:
    documents = int(findings.levels["documents"].max())
    tasks = dict.fromkeys([*findings.chosen_on, *findings.reported_on])
    names = f"{len(tasks)} tasks" if len(tasks) > 1 else one_line(next(iter(tasks), ""))
    bands = "; bands are 95 % intervals" if findings.levels["low"].notna().any() else ""
    return f"Attention of {QUERIES[findings.queries]}, by layer ({count_of(documents, 'document')} of {names}{bands})"
