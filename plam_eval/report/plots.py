"""Figures of differences: heat map, forest and merges beside controls. `probing/plot.py` draws the masking curve.

They are drawn with matplotlib's own objects: no pyplot, no state shared with a user's figures, no display needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from plam_eval.figures import COLOURS, add_legend, write_plainly
from plam_eval.report.svg import BETTER, HATCH, QUIET, WORSE
from plam_eval.report.text import signed
from plam_eval.rules import LAYER_CONTROLS, RANDOM_LAYERS, RULES, SELF_SCALE, WEIGHTED_SUM, Rule
from plam_eval.terminal import one_line, shown

CLOUD = 3
"""More estimates of one rule beside a merge than these share a place in `controls`."""

_OPAQUE = 0.6  # of a heat map's strongest colour: figures on it stay readable, on a light page and a dark one
_FAINT = 0.15  # of the strongest of those that are not shown to differ
_PER_ROW = 12  # merges beside each other in `controls`
_WIDE = 12  # columns of a heat map from which on their names are upright
_LONG = 12  # letters of a line of such a name from which on it is


class Estimate(NamedTuple):
    """A number with its interval, and the name of what it belongs to. `low` and `high` may be NaN: no interval."""

    name: str
    value: float
    low: float
    high: float


def heat_map(
    cells: Sequence[Sequence[Estimate | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    marked: Sequence[Sequence[bool]],
    words: Mapping[tuple[int, int], str] | None = None,
    chosen: tuple[int, int] | None = None,
    label: str = "difference against plain",
    groups: Sequence[tuple[str, int]] = (),
) -> Figure:
    """Differences with colours as strong as their intervals allow; blue is above, red below.

    A difference has full colour where no other that is shown is larger, and where it is at least twice as large as
    intervals are wide to either side (their median). One whose interval holds 0, or that has none, is not shown to
    differ: it is hatched, and pale whatever its size.

    Args:
        cells: by row and column; None where there is no value.
        rows: their names.
        columns: their names.
        marked: whether a value gets an asterisk.
        words: what to write where there is no value, by (row, column).
        chosen: the cell with a frame.
        label: of the colours' bar.
        groups: titles that stand above so many rows each, together all of them; none for no titles.
    """
    given = [cell for row in cells for cell in row if cell is not None and not math.isnan(cell.value)]
    widths = [(cell.high - cell.low) / 2 for cell in given if not math.isnan(cell.low)]
    most = max([abs(cell.value) for cell in given if differs(cell)] + [2 * float(np.median(widths or [0])), 1e-6])
    lines = max((len(line) for name in columns for line in name.split("\n")), default=0)
    upright = len(columns) > _WIDE or lines > _LONG
    cell_width = 0.47 if upright else max(0.72, 0.085 * lines)
    names = max(map(len, rows), default=0) * 0.075 + 0.2
    width = max(5.2, names + cell_width * len(columns) + 0.4)
    places, titles = _grouped(len(rows), groups)
    height = 0.36 * (len(rows) + len(titles)) + _height_of_names(columns, lines, upright=upright) + 1.0
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, column in np.ndindex(len(rows), len(columns)):
        cell, place = cells[row][column], places[row]
        has_value = cell is not None and not math.isnan(cell.value)
        hatched = has_value and cell is not None and not differs(cell)
        if cell is None or not has_value:
            text, weight, colour = (words or {}).get((row, column), ""), "normal", QUIET
        else:
            text = signed(cell.value) + ("*" if marked[row][column] else "")
            weight, colour = "bold" if marked[row][column] else "normal", "black"
            axes.add_patch(_square(place, column, facecolor=_tint(cell.value / most, hatched=hatched), linewidth=0))
        if hatched:
            axes.add_patch(_square(place, column, fill=False, hatch="////", edgecolor=HATCH, linewidth=0, alpha=0.8))
        elif not has_value:
            axes.add_patch(_square(place, column, fill=False, edgecolor=HATCH, linewidth=0.5, alpha=0.5))
        written = axes.text(
            column,
            place,
            text,
            ha="center",
            va="center",
            fontsize=7 if upright else 9,
            color=colour,
            weight=weight,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1} if hatched else None,
        )
        write_plainly(written)
    axes.set_xticks(
        range(len(columns)), list(map(shown, columns)), rotation=90 if upright else 0, fontsize=8 if upright else 9
    )
    axes.set_yticks(places, list(map(shown, rows)), fontsize=9)
    write_plainly(*axes.get_xticklabels(), *axes.get_yticklabels())
    _write_titles(axes, titles, -0.48)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) + len(titles) - 0.5, -0.5)
    axes.set_xlabel("decoder layers", fontsize=9, loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    handles: list[Line2D | Patch] = []
    if chosen is not None:
        axes.add_patch(_square(places[chosen[0]], chosen[1], fill=False, edgecolor="black", linewidth=2))
        handles.append(Patch(fill=False, edgecolor="black", linewidth=2, label="chosen"))
    if any(not differs(cell) for cell in given):
        name = "not shown to differ: the 95% interval holds 0"
        handles.append(Patch(fill=False, hatch="//////", edgecolor=HATCH, linewidth=0, label=name))
    if handles:
        add_legend(figure, handles, loc="outside lower left", ncols=len(handles))
    shades = ListedColormap([_tint(strength, hatched=False) for strength in np.linspace(-1, 1, 41)])
    bar = figure.colorbar(
        ScalarMappable(Normalize(-most, most), shades),
        ax=axes,
        location="bottom",
        shrink=min(1.0, 3.2 / width),
        anchor=(0.0, 1.0),
        aspect=30,
        pad=0.02,
    )
    bar.set_label(label, fontsize=8)
    write_plainly(bar.ax.xaxis.label)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    bar.locator = matplotlib.ticker.MaxNLocator(5, symmetric=True)
    bar.update_ticks()
    return figure


def differs(cell: Estimate) -> bool:
    """Whether the interval of `cell` is there and does not hold 0."""
    return not math.isnan(cell.low) and not cell.low <= 0 <= cell.high


def _tint(strength: float, *, hatched: bool) -> tuple[float, float, float, float]:
    """Blue above 0, red below, the stronger the more opaque: what lies under it is the page, light or dark."""
    most = _FAINT if hatched else _OPAQUE
    return to_rgba(BETTER if strength > 0 else WORSE, round(most * min(abs(strength), 1), 3))


def _square(place: float, column: int, **look: Any) -> Rectangle:
    return Rectangle((column - 0.48, place - 0.46), 0.96, 0.92, **look)


def _grouped(rows: int, groups: Sequence[tuple[str, int]]) -> tuple[list[float], list[tuple[float, str]]]:
    """Where rows stand from above, and titles with their places: one line above the rows of each group."""
    places: list[float] = []
    titles: list[tuple[float, str]] = []
    for title, count in groups:
        line = len(places) + len(titles)
        titles.append((float(line), title))
        places += range(line + 1, line + 1 + count)
    return (places, titles) if groups else ([float(row) for row in range(rows)], [])


def _write_titles(axes: Axes, titles: Sequence[tuple[float, str]], left: float, **how: Any) -> None:
    written = [
        axes.text(left, place + 0.2, shown(title), ha="left", va="center", fontsize=9, weight="bold", **how)
        for place, title in titles
    ]
    write_plainly(*written)


def _height_of_names(columns: Sequence[str], letters: int, *, upright: bool) -> float:
    """What the names of columns need below a heat map, in inches; `letters` is the length of their longest line."""
    if upright:
        return max(0.62, 0.08 * letters + 0.2)
    return 0.26 + 0.14 * max((name.count("\n") + 1 for name in columns), default=1)


def forest(
    estimates: Sequence[Estimate],
    *,
    label: str = "difference against plain",
    overall: Estimate | None = None,
    zero: bool = True,
) -> Figure:
    """Estimates one below the other, each with its interval.

    Args:
        estimates: from above.
        label: of the axis.
        overall: below them, apart and thick.
        zero: whether to mark 0, as differences ask for; without it the axis is that of shares.
    """
    rows = [*estimates, *([overall] if overall else [])]
    names = max((len(row.name) for row in rows), default=0)
    figure = Figure(figsize=(5.4 + 0.075 * names, 0.29 * len(rows) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = np.arange(len(rows), dtype=float)
    if overall:
        places[-1] += 0.35
    if zero:
        axes.axvline(0, color="black", linewidth=0.9)
    for place, row in zip(places, rows, strict=True):
        thick = row is overall
        colour = "black" if thick else COLOURS[0]
        if not math.isnan(row.low):
            axes.hlines(place, row.low, row.high, color=colour, linewidth=2.6 if thick else 1.6)
        axes.plot(row.value, place, "D" if thick else "o", color=colour, markersize=6.5 if thick else 5)
    axes.set_yticks(places, [shown(row.name) for row in rows], fontsize=9)
    write_plainly(*axes.get_yticklabels())
    if overall:
        axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.set_ylim(places[-1] + 0.6 if len(places) else 1, -0.6)
    axes.set_xlabel(label, fontsize=9)
    write_plainly(axes.xaxis.label)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if not zero:
        axes.set_xlim(-0.02, 1.02)
    return figure


class Cloud(NamedTuple):
    """A merge, its `draws` in random layers (differences), and its scale control if there is one."""

    merge: Estimate
    draws: Sequence[float]
    scale: Estimate | None


def clouds(
    rows: Sequence[Cloud],
    *,
    chosen: int | None = None,
    label: str = "difference against plain",
    groups: Sequence[tuple[str, int]] = (),
) -> Figure:
    """Merges one below the other, each with its interval above the cloud of its draws and above its scale control.

    The band behind the draws reaches from their mean by their standard deviation to either side.

    Args:
        rows: from above; their merges' names are those of the rows.
        chosen: the row whose name is bold.
        label: of the axis.
        groups: titles that stand above so many rows each, together all of them; none for no titles.
    """
    places, titles = _grouped(len(rows), groups)
    names = max((len(row.merge.name) for row in rows), default=0)
    figure = Figure(figsize=(5.6 + 0.075 * names, 0.44 * len(rows) + 0.44 * len(titles) + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axvline(0, color="black", linewidth=0.9)
    draws, merge, scale = _look(RANDOM_LAYERS), _look(WEIGHTED_SUM), _look(SELF_SCALE)
    for place, row in zip(places, rows, strict=True):
        mean = float(np.mean(row.draws))
        if len(row.draws) > 1:
            reach = float(np.std(row.draws, ddof=1))
            band = Rectangle((mean - reach, place - 0.14), 2 * reach, 0.28, color=draws[1], alpha=0.22, linewidth=0)
            axes.add_patch(band)
        axes.plot(row.draws, place + _apart(row.draws), draws[2], color=draws[1], markersize=4, linestyle="none")
        axes.vlines(mean, place - 0.16, place + 0.16, color=draws[1], linewidth=2.2)
        for estimate, look, above in ((row.merge, merge, -0.27), (row.scale, scale, 0.27)):
            if estimate is not None:
                if not math.isnan(estimate.low):
                    axes.hlines(place + above, estimate.low, estimate.high, color=look[1], linewidth=1.6)
                axes.plot(estimate.value, place + above, look[2], color=look[1], markersize=5)
    axes.set_yticks(places, [shown(row.merge.name) for row in rows], fontsize=9)
    write_plainly(*axes.get_yticklabels())
    for number, tick in enumerate(axes.get_yticklabels()):
        tick.set_fontweight("bold" if number == chosen else "normal")
    _write_titles(axes, titles, 0.005, transform=axes.get_yaxis_transform())
    axes.set_ylim(len(rows) + len(titles) - 0.45, -0.55)
    for edge in places:
        axes.axhline(edge + 0.5, color="black", linewidth=0.5, alpha=0.15)
    axes.set_xlabel(label, fontsize=9)
    write_plainly(axes.xaxis.label)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    several = any(len(row.draws) > 1 for row in rows)
    drawn = "draws of random layers" + (", their mean and standard deviation" if several else "")
    handles = [
        Line2D([], [], color=merge[1], marker=merge[2], markersize=5, label="merge"),
        Line2D([], [], color=draws[1], marker=draws[2], markersize=5, linestyle="none", label=drawn),
    ]
    if any(row.scale for row in rows):
        handles.append(Line2D([], [], color=scale[1], marker=scale[2], markersize=5, label=SELF_SCALE))
    add_legend(figure, handles, loc="outside upper left", ncols=len(handles))
    return figure


def _apart(values: Sequence[float]) -> np.ndarray:
    """How far values that are close to each other stand below or above their line, so that none hides another."""
    order = np.argsort(values, kind="stable")
    steps = np.empty(len(order))
    steps[order] = np.array([0.0, -0.09, 0.09])[np.arange(len(order)) % 3]
    return steps


def controls(
    panels: Mapping[str, Mapping[str, Sequence[Estimate]]],
    *,
    chosen: tuple[str, str] | None = None,
    label: str = "difference against plain",
) -> Figure:
    """Merges beside their controls, each with its interval: one column per merge, its estimates named by their rule.

    Of a control with many draws the draws share one place, without their intervals, behind a line at their mean.

    Args:
        panels: by title ("" for none) and the name of the merge; lines of a name are parted by newlines.
        chosen: title and name of the merge whose name is bold.
        label: of the axis.
    """
    rows = [
        (title, names[start : start + _PER_ROW])
        for title, by_merge in panels.items()
        for names in [list(by_merge)]
        for start in range(0, len(names), _PER_ROW)
    ]
    most = max(len(names) for _, names in rows)
    across = min(most, 6)
    figure = Figure(
        figsize=(max(6.4, 0.9 + (1.25 if most <= across else 0.82) * most), 2.5 * len(rows) + 0.9), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes_of_rows = figure.subplots(len(rows), 1, sharey=True, squeeze=False)[:, 0]
    present = {row.name for by_merge in panels.values() for estimates_of in by_merge.values() for row in estimates_of}
    known = RULES | LAYER_CONTROLS
    rules = [*(rule for rule in known if rule in present), *sorted(present - known.keys())]
    rules.sort(key=lambda rule: rule in known and known[rule].role != "merge")  # merges first, then controls
    several = sum(rule in known and known[rule].role == "merge" for rule in rules) > 1
    looks = {rule: (rule, *_look(rule)[1:]) if several else _look(rule) for rule in rules}
    for axes, (title, names) in zip(axes_of_rows, rows, strict=True):
        axes.axhline(0, color="black", linewidth=0.9)
        for number, name in enumerate(names):
            by_rule: dict[str, list[Estimate]] = {}
            for estimate in panels[title][name]:
                by_rule.setdefault(estimate.name, []).append(estimate)
            columns = [
                one
                for rule in rules
                if (same := by_rule.get(rule, []))
                for one in ([same] if len(same) > CLOUD else [[estimate] for estimate in same])
            ]
            for place, column in zip(number + _dodged(len(columns)), columns, strict=True):
                _draw_column(axes, float(place), column, looks[column[0].name])
        axes.set_xticks(range(len(names)), list(map(shown, names)), fontsize=8 if most <= across else 7)
        write_plainly(*axes.get_xticklabels())
        for tick, name in zip(axes.get_xticklabels(), names, strict=True):
            tick.set_fontweight("bold" if (title, name) == chosen else "normal")
        if title:
            written = axes.set_title(shown(title), fontsize=9, loc="left", weight="bold")
            write_plainly(written)
        axes.set_xlim(-0.6, most - 0.4)
        for edge in np.arange(len(names) - 1) + 0.5:
            axes.axvline(edge, color="black", linewidth=0.5, alpha=0.15)
        axes.set_ylabel(label, fontsize=8)
        write_plainly(axes.yaxis.label)
        axes.tick_params(axis="y", labelsize=8)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y", linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    handles = [
        Line2D([], [], color=colour, marker=mark, markersize=5.5, label=one_line(name))
        for name, colour, mark in looks.values()
    ]
    add_legend(figure, handles, loc="outside upper left", ncols=min(len(handles), 6 if most > 4 else 4))
    return figure


def _draw_column(axes: Axes, place: float, column: Sequence[Estimate], look: tuple[str, str, str]) -> None:
    """One estimate with its interval, or several as a cloud with their mean."""
    _, colour, mark = look
    if len(column) == 1:
        if not math.isnan(column[0].low):
            axes.vlines(place, column[0].low, column[0].high, color=colour, linewidth=1.5)
        axes.plot(place, column[0].value, mark, color=colour, markersize=5.5)
        return
    values = [estimate.value for estimate in column]
    axes.plot(place + 0.35 * _apart(values), values, mark, color=colour, markersize=4, linestyle="none", alpha=0.7)
    axes.hlines(float(np.mean(values)), place - 0.06, place + 0.06, color=colour, linewidth=2.2)


def _look(name: str) -> tuple[str, str, str]:
    """Label, colour and mark of a rule's estimates."""
    rule = (RULES | LAYER_CONTROLS).get(
        name, Rule(name)
    )  # names of another kind have the look of a rule that somebody registered
    return "merge" if name == WEIGHTED_SUM else name, rule.colour, rule.mark


def _dodged(count: int) -> np.ndarray:
    step = min(0.17, 0.7 / max(count, 1))
    return (np.arange(count) - (count - 1) / 2) * step
