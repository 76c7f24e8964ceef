"""Plots, drawn with matplotlib's own objects: no pyplot, no state shared with a user's figures, no display needed."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from plam_eval.figures import COLOURS as _COLOURS
from plam_eval.figures import LIMIT_COLOUR as _LIMIT
from plam_eval.figures import SALT as _SALT
from plam_eval.figures import STAGE_COLOURS as _STAGES
from plam_eval.figures import add_legend as _legend
from plam_eval.figures import names_as_text as _names_as_text
from plam_eval.figures import write_plainly as _plainly
from plam_eval.probing.plot import curve_figure as curve_figure  # shim
from plam_eval.probing.plot import plot_curve as plot_curve  # shim
from plam_eval.terminal import one_line, shown

_BETTER, _WORSE, _HATCH, _QUIET = "#2166AC", "#B3182C", "#8A8F96", "#555555"

# --- differences against plain ----------------------------------------------------------------------------------------

_RULES = {  # colours and marks of a merge and its controls
    "weighted_sum": ("merge", "#000000", "o"),
    "self_scale": ("self_scale", "#D55E00", "s"),
    "normalized": ("normalized", "#0072B2", "^"),
    "noise": ("noise", "#8C6D00", "x"),
}
_OTHER_RULE = ("#6A3D9A", "D")  # of a rule that somebody registered
# Variables of the page's style, by the colours that figures are drawn in.
_VARIABLES = {
    "#000000": "ink",
    "#ffffff": "page",
    "#b0b0b0": "grid",  # matplotlib's own
    _QUIET: "ink-soft",
    _LIMIT: "limit",
    _BETTER: "better",
    _WORSE: "worse",
    _HATCH: "hatch",
    **{colour: f"c{number}" for number, colour in enumerate(_COLOURS, 1)},
    **dict(zip(_STAGES.values(), ("separation", "alignment", "plateau"), strict=True)),
}
_VARIABLE_OF = {colour.lower(): f"var(--{name}, {colour.lower()})" for colour, name in _VARIABLES.items()}
_OPAQUE = 0.6  # of a heat map's strongest colour: figures on it stay readable, on a light page and a dark one
_FAINT = 0.15  # of the strongest of those that are not shown to differ
_PER_ROW = 12  # merges beside each other in `controls`
_WIDE = 12  # columns of a heat map from which on their names are upright


class Estimate(NamedTuple):
    """A number with its interval, and the name of what it belongs to. `low` and `high` may be NaN: no interval."""

    name: str
    value: float
    low: float
    high: float


def to_svg(figure: Figure) -> bytes:
    """A figure as SVG with its letters as outlines, so that it needs no font; figures made alike give equal bytes."""
    buffer = io.BytesIO()
    _names_as_text(figure)
    with matplotlib.rc_context({"svg.hashsalt": _SALT, "svg.fonttype": "path", "hatch.linewidth": 0.6}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def to_markup(figure: Figure, title: str) -> str:
    """A figure as SVG to stand within a page, whose style gives it its colours: variables such as `--ink`.

    It refers to nothing outside, and holds no style of its own, which a strict content security policy would forbid.

    Args:
        title: what it shows, in words.
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    content = to_svg(figure)
    root = ElementTree.fromstring(content)
    mark = f"f{hashlib.sha256(content + title.encode()).hexdigest()[:8]}-"  # ids of a page's figures are told apart
    used = set(re.findall(rb'(?:href="#|url\(#)([^")]+)', content))
    for parent in [*root.iter()]:
        for child in [*parent]:
            if _local(child.tag) in ("metadata", "style") or (_local(child.tag) == "defs" and not _holds(child)):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes: dict[str, str] = {}
        for name, value in element.attrib.items():
            name = _local(name)
            if name == "style":
                attributes |= _declared(value, mark)
            elif name == "id":
                if value.encode() in used:
                    attributes[name] = mark + value
            elif name == "href":
                attributes[name] = f"#{mark}{value.removeprefix('#')}"
            elif name in ("d", "x", "y", "width", "height"):
                attributes[name] = re.sub(r"(\.\d\d)\d+", r"\1", " ".join(value.split()))
            else:
                attributes[name] = value.replace("url(#", f"url(#{mark}")
        element.attrib.clear()
        element.attrib.update(attributes)
    wide, high = (round(inches * 96) for inches in figure.get_size_inches())
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib |= {
        "viewBox": box,
        "width": str(wide),
        "height": str(high),
        "role": "img",
        "fill": _VARIABLE_OF["#000000"],
    }
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt", "aria-label": title}
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    """A name without its namespace: there are none within a page."""
    return name.rpartition("}")[2]


def _holds(defs: ElementTree.Element) -> bool:
    return any(_local(child.tag) != "style" for child in defs)


def _declared(style: str, mark: str) -> dict[str, str]:
    """Declarations of a style attribute as attributes of their own, colours as the page's variables."""
    pairs = (part.partition(":") for part in style.split(";") if part.strip())
    found = {name.strip(): value.strip().replace("url(#", f"url(#{mark}") for name, _, value in pairs}
    return {name: _VARIABLE_OF.get(value.lower(), value) for name, value in found.items()}


def heat_map(
    cells: Sequence[Sequence[Estimate | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    marked: Sequence[Sequence[bool]],
    words: Mapping[tuple[int, int], str] | None = None,
    chosen: tuple[int, int] | None = None,
    label: str = "difference against plain",
) -> Figure:
    """Differences with colours as strong as their intervals allow; blue is above, red below.

    A difference has full colour where no other that is shown is larger, and where it is at least twice as large as
    intervals are wide to either side (their median). One whose interval holds 0, or that has none, is not shown to
    differ: it is hatched, and pale whatever its size.

    Args:
        cells: by row and column; None where there is no value.
        marked: whether a value gets an asterisk.
        words: what to write where there is no value, by (row, column).
        chosen: the cell with a frame.
    """
    given = [cell for row in cells for cell in row if cell is not None and not math.isnan(cell.value)]
    widths = [(cell.high - cell.low) / 2 for cell in given if not math.isnan(cell.low)]
    most = max([abs(cell.value) for cell in given if differs(cell)] + [2 * float(np.median(widths or [0])), 1e-6])
    upright = len(columns) > _WIDE
    cell_width = 0.47 if upright else 0.72
    names = max(map(len, rows), default=0) * 0.075 + 0.2
    width = max(5.2, names + cell_width * len(columns) + 0.4)
    height = 0.36 * len(rows) + (0.62 if upright else 0.4) + 1.0
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, column in np.ndindex(len(rows), len(columns)):
        cell = cells[row][column]
        known = cell is not None and not math.isnan(cell.value)
        hatched = known and cell is not None and not differs(cell)
        if cell is None or not known:
            text, weight, colour = (words or {}).get((row, column), ""), "normal", _QUIET
        else:
            text = _signed(cell.value) + ("*" if marked[row][column] else "")
            weight, colour = "bold" if marked[row][column] else "normal", "black"
            axes.add_patch(_square(row, column, facecolor=_tint(cell.value / most, hatched=hatched), linewidth=0))
        if hatched:
            axes.add_patch(_square(row, column, fill=False, hatch="////", edgecolor=_HATCH, linewidth=0, alpha=0.8))
        elif not known:
            axes.add_patch(_square(row, column, fill=False, edgecolor=_HATCH, linewidth=0.5, alpha=0.5))
        written = axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=7 if upright else 9,
            color=colour,
            weight=weight,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1} if hatched else None,
        )
        _plainly(written)
    axes.set_xticks(
        range(len(columns)), list(map(shown, columns)), rotation=90 if upright else 0, fontsize=8 if upright else 9
    )
    axes.set_yticks(range(len(rows)), list(map(shown, rows)), fontsize=9)
    _plainly(*axes.get_xticklabels(), *axes.get_yticklabels())
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("decoder layers", fontsize=9, loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    handles: list[Line2D | Patch] = []
    if chosen is not None:
        axes.add_patch(_square(*chosen, fill=False, edgecolor="black", linewidth=2))
        handles.append(Patch(fill=False, edgecolor="black", linewidth=2, label="chosen"))
    if any(not differs(cell) for cell in given):
        name = "not shown to differ: the 95% interval holds 0"
        handles.append(Patch(fill=False, hatch="//////", edgecolor=_HATCH, linewidth=0, label=name))
    if handles:
        _legend(figure, handles, loc="outside lower left", ncols=len(handles))
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
    _plainly(bar.ax.xaxis.label)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    bar.locator = matplotlib.ticker.MaxNLocator(5, symmetric=True)
    bar.update_ticks()
    return figure


def differs(cell: Estimate) -> bool:
    """Whether an estimate's interval is there and does not hold 0."""
    return not math.isnan(cell.low) and not cell.low <= 0 <= cell.high


def _tint(strength: float, *, hatched: bool) -> tuple[float, float, float, float]:
    """Blue above 0, red below, the stronger the more opaque: what lies under it is the page, light or dark."""
    most = _FAINT if hatched else _OPAQUE
    return to_rgba(_BETTER if strength > 0 else _WORSE, round(most * min(abs(strength), 1), 3))


def _square(row: int, column: int, **look: Any) -> Rectangle:
    return Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, **look)


def forest(
    estimates: Sequence[Estimate],
    *,
    label: str = "difference against plain",
    overall: Estimate | None = None,
    zero: bool = True,
) -> Figure:
    """Estimates one below the other, each with its interval; `overall` is below them, apart and thick.

    Args:
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
        colour = "black" if thick else _COLOURS[0]
        if not math.isnan(row.low):
            axes.hlines(place, row.low, row.high, color=colour, linewidth=2.6 if thick else 1.6)
        axes.plot(row.value, place, "D" if thick else "o", color=colour, markersize=6.5 if thick else 5)
    axes.set_yticks(places, [shown(row.name) for row in rows], fontsize=9)
    _plainly(*axes.get_yticklabels())
    if overall:
        axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.set_ylim(places[-1] + 0.6 if len(places) else 1, -0.6)
    axes.set_xlabel(label, fontsize=9)
    _plainly(axes.xaxis.label)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if not zero:
        axes.set_xlim(-0.02, 1.02)
    return figure


def controls(
    groups: Mapping[str, Sequence[Estimate]], *, chosen: str | None = None, label: str = "difference against plain"
) -> Figure:
    """Merges beside their controls, each with its interval: one group per merge, its estimates named by their rule.

    Args:
        groups: by the name of the merge; lines of a name are parted by newlines.
        chosen: the merge whose name is bold.
    """
    names = list(groups)
    rows = [names[start : start + _PER_ROW] for start in range(0, len(names), _PER_ROW)]
    most = max(map(len, rows))
    across = min(most, 6)
    figure = Figure(
        figsize=(max(6.4, 0.9 + (1.25 if most <= across else 0.82) * most), 2.5 * len(rows) + 0.9), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), 1, sharey=True, squeeze=False)[:, 0]
    present = {row.name for group in groups.values() for row in group}
    rules = [*(rule for rule in _RULES if rule in present), *sorted(present - _RULES.keys())]
    looks = {rule: _RULES.get(rule, (rule, *_OTHER_RULE)) for rule in rules}
    for axes, row in zip(panels, rows, strict=True):
        axes.axhline(0, color="black", linewidth=0.9)
        for number, name in enumerate(row):
            found = sorted(groups[name], key=lambda estimate: rules.index(estimate.name))
            for place, estimate in zip(number + _dodged(len(found)), found, strict=True):
                _, colour, mark = looks[estimate.name]
                if not math.isnan(estimate.low):
                    axes.vlines(place, estimate.low, estimate.high, color=colour, linewidth=1.5)
                axes.plot(place, estimate.value, mark, color=colour, markersize=5.5)
        axes.set_xticks(range(len(row)), list(map(shown, row)), fontsize=8 if most <= across else 7)
        _plainly(*axes.get_xticklabels())
        for tick, name in zip(axes.get_xticklabels(), row, strict=True):
            tick.set_fontweight("bold" if name == chosen else "normal")
        axes.set_xlim(-0.6, most - 0.4)
        for edge in np.arange(len(row) - 1) + 0.5:
            axes.axvline(edge, color="black", linewidth=0.5, alpha=0.15)
        axes.set_ylabel(label, fontsize=8)
        _plainly(axes.yaxis.label)
        axes.tick_params(axis="y", labelsize=8)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y", linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    handles = [
        Line2D([], [], color=colour, marker=mark, markersize=5.5, label=one_line(name))
        for name, colour, mark in looks.values()
    ]
    _legend(figure, handles, loc="outside upper left", ncols=len(handles))
    return figure


def _dodged(count: int) -> np.ndarray:
    step = min(0.17, 0.7 / max(count, 1))
    return (np.arange(count) - (count - 1) / 2) * step


def _signed(value: float) -> str:
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")
