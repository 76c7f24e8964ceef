"""Plots, drawn with matplotlib's own objects: no pyplot, no state shared with a user's figures, no display needed."""

from __future__ import annotations

import hashlib
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, PercentFormatter

from plam_eval.errors import InputError
from plam_eval.terminal import one_line, shown

if TYPE_CHECKING:
    import pandas as pd

    from plam_eval.probing.plateau import Curve, Stages

# Okabe and Ito's colours, told apart with any colour vision (jfly.uni-koeln.de/color); line styles tell them twice.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00", "#6A3D9A")
_STYLES = ("-", "--", ":", "-.")
_STAGES = {"modal separation": "#E8E8E8", "modal alignment": "#FDF0CF", "modal degradation (plateau)": "#D6E8F5"}
_LIMIT = "#B2182B"
_BETTER, _WORSE, _HATCH, _QUIET = "#2166AC", "#B3182C", "#8A8F96", "#555555"
_OVERALL = "overall"
_KL_FLOOR = 1e-6  # nats: where the logarithmic axis ends


def plot_curve(curve: Curve, stages: Stages, path: str | Path) -> Path:
    """Write the plot of a curve and its stages; the suffix of `path` (.png or .svg) gives the format."""
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"{path}: found suffix {path.suffix!r}, expected .png or .svg")
    # Without a date and with fixed ids, equal curves give equal files.
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure = curve_figure(curve, stages)
    _names_as_text(figure)
    with matplotlib.rc_context({"svg.hashsalt": "plam-eval"}):
        figure.savefig(path, dpi=150, metadata=metadata)
    return path


def curve_figure(curve: Curve, stages: Stages) -> Figure:
    """Accuracy with its 95 % interval, the share of parsable answers and the KL divergence, over cut layers.

    The mean over tasks is thick, tasks are thin. Stages are shaded between cuts: the layers from cut a to cut b are
    those that see the image at b and not at a.
    """
    table = curve.table()
    cuts = list(curve.cuts)
    many = len(curve.tasks) > 1
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, parsable, kl = figure.subplots(3, 1, sharex=True, height_ratios=(5, 1.3, 1.6))

    shades = _shade((accuracy, parsable, kl), stages)
    handles: list[Line2D | Patch] = []
    for number, task in enumerate(curve.tasks if many else ()):
        rows = table[table["task"] == task]
        look = {
            "color": _COLOURS[number % len(_COLOURS)],
            "linestyle": _STYLES[(number + 2 * (number // len(_COLOURS))) % len(_STYLES)],
            "linewidth": 1.1,
            "alpha": 0.9,
        }
        handles += accuracy.plot(cuts, rows["accuracy"], label=one_line(task), **look)
        parsable.plot(cuts, rows["parsable"], **{**look, "linewidth": 0.8})
        kl.plot(cuts, _logarithmic(rows["kl"]), **{**look, "linewidth": 0.8})
    rows = table[table["task"] == _OVERALL]
    name = f"mean over {len(curve.tasks)} tasks" if many else one_line(curve.tasks[0])
    accuracy.fill_between(cuts, rows["low"], rows["high"], color="black", alpha=0.18, linewidth=0)
    overall = accuracy.plot(
        cuts, rows["accuracy"], color="black", linewidth=2.4, marker="o", markersize=3.5, label=f"{name}, 95 % interval"
    )
    parsable.plot(cuts, rows["parsable"], color="black", linewidth=1.8)
    kl.plot(cuts, _logarithmic(rows["kl"]), color="black", linewidth=1.8, marker="o", markersize=2.5)

    unmasked = float(rows["accuracy"].iloc[-1])
    sided = curve.table(confidence=2 * stages.confidence - 1)  # its lower ends are the rule's one-sided bounds
    bound = accuracy.plot(
        cuts,
        unmasked + sided.loc[sided["task"] == _OVERALL, "difference_low"],
        color="black",
        linewidth=1.0,
        linestyle=":",
        label=f"unmasked plus {100 * stages.confidence:.10g}% lower bound of the paired difference",
    )
    accuracy.axhline(unmasked, color="black", linewidth=0.8, alpha=0.6)
    limit = accuracy.axhline(
        unmasked - stages.margin,
        color=_LIMIT,
        linewidth=1.2,
        linestyle=(0, (6, 3)),
        label=f"unmasked minus margin ({stages.margin:g})",
    )
    kl.axhline(stages.kl_threshold, color=_LIMIT, linewidth=1.0, linestyle=(0, (6, 3)))
    kl.axvline(stages.kl_cut, color=_LIMIT, linewidth=1.0, linestyle=":")
    kl.annotate(
        f"KL rule: cut {stages.kl_cut}" if stages.kl_cut < stages.num_layers else "KL rule: no plateau",
        (stages.kl_cut, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if stages.kl_cut > stages.num_layers / 2 else 4, -4),
        textcoords="offset points",
        ha="right" if stages.kl_cut > stages.num_layers / 2 else "left",
        va="top",
        fontsize=8,
        color=_LIMIT,
        bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
    )

    accuracy.set_ylabel("accuracy")
    parsable.set_ylabel("parsable")
    parsable.set_ylim(-0.05, 1.05)
    parsable.yaxis.set_major_formatter(PercentFormatter(1.0))
    parsable.set_yticks([0, 0.5, 1])
    if rows["parsable"].isna().all():
        parsable.text(0.5, 0.5, "answers of free words", transform=parsable.transAxes, ha="center", va="center")
    kl.set_yscale("log")
    kl.set_ylabel("KL (nats)")
    kl.set_xlabel(f"cut layer: the image is hidden from it on (0: blind, {stages.num_layers}: unmasked)")
    _ticks(kl, cuts, stages.num_layers)
    kl.set_xlim(cuts[0] - 0.02 * stages.num_layers, stages.num_layers * 1.02)
    for axes in (accuracy, parsable, kl):
        axes.grid(axis="y", linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()

    title = textwrap.fill(one_line(_headline(stages)), 125)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11 if stages.plateau else 9.5, parse_math=False)
    _legend(figure, [*shades, *overall, limit, *bound], loc="outside lower center", ncols=2)
    if handles:
        _legend(figure, handles, loc="outside right center", title="tasks")
    return figure


def _legend(figure: Figure, handles: Sequence[Line2D | Patch], **where: Any) -> None:
    """A legend with the handles' names as they are: matplotlib leaves out those that begin with an underscore."""
    names = [str(handle.get_label()) for handle in handles]
    # The stand-ins are as long as the names, by which a legend is laid out.
    stand_ins = ["x" * max(1, len(name)) for name in names]
    legend = figure.legend(list(handles), stand_ins, fontsize=8.5, frameon=False, **where)
    for written, name in zip(legend.get_texts(), names, strict=True):
        written.set_text(name)
        written.set_parse_math(False)


def _shade(panels: tuple[Axes, ...], stages: Stages) -> list[Patch]:
    """Shade the stages, names and layers in the legend: a stage may be too narrow for its name."""
    if stages.plateau is None:
        return []
    start, end = stages.plateau
    first = stages.separation_end
    ends = {
        "modal separation": (0, first or 0),
        "modal alignment": (first, start),
        "modal degradation (plateau)": (start, end),
    }
    patches = []
    for name, (low, high) in ends.items():
        if low is None:  # cut 0 was not evaluated: where alignment begins is not known
            continue
        if high > low:
            for axes in panels:
                axes.axvspan(low, high, color=_STAGES[name], linewidth=0, zorder=0, label=name)
            patches.append(Patch(color=_STAGES[name], label=f"{name}: {_layers(low, high)}"))
    for axes in panels:
        axes.axvline(start, color="#0072B2", linewidth=1.0, alpha=0.8)
    return patches


def _headline(stages: Stages) -> str:
    if stages.plateau is None:
        return stages.reason[0].upper() + stages.reason[1:]
    documents = sum(stages.documents.values())
    tasks = f"{len(stages.documents)} tasks" if len(stages.documents) > 1 else next(iter(stages.documents))
    return f"Plateau: {_layers(*stages.plateau)} of {stages.num_layers} ({documents} documents of {tasks})"


def _layers(start: int, end: int) -> str:
    return f"layers {start}:{end}"


def _ticks(axes: Axes, cuts: list[int], layers: int) -> None:
    """Whole numbers with both ends; small marks at the evaluated cuts."""
    step = next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, 1000) if layers / step <= 18)
    ticks = [tick for tick in range(0, layers, step) if layers - tick >= step * 0.7]
    axes.set_xticks([*ticks, layers])
    axes.set_xticks(cuts, minor=True)


def _logarithmic(kl: pd.Series) -> pd.Series:
    """KL by cut as far as a logarithmic axis shows it: without the unmasked model's 0, nothing below the floor."""
    shown = kl.clip(lower=_KL_FLOOR)
    shown.iloc[-1] = float("nan")
    return shown


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
    with matplotlib.rc_context({"svg.hashsalt": "plam-eval", "svg.fonttype": "path", "hatch.linewidth": 0.6}):
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


def _names_as_text(figure: Figure) -> None:
    """Names of tasks and folders are no formulas; a figure's file may hold no control characters, nor its fonts."""
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    texts = [text for legend in legends for text in (*legend.get_texts(), legend.get_title())]
    texts += [text for axes in figure.axes for text in (*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label)]
    texts += figure.texts
    for text in texts:
        text.set_text(_drawn(text.get_text()))
    _plainly(*texts)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(given := axis.get_major_formatter(), FuncFormatter):  # of names, as set_xticks makes it
                axis.set_major_formatter(FuncFormatter(lambda x, place, given=given: _drawn(given(x, place))))


def _drawn(text: str) -> str:
    return re.sub(
        "[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ufffe\\uffff]",
        "\N{REPLACEMENT CHARACTER}",
        text,
    )


def _plainly(*texts: matplotlib.text.Text) -> None:
    """Names of tasks and folders are no formulas, whatever dollar signs are in them, and SVG holds no controls."""
    for text in texts:
        text.set_text(shown(text.get_text()))
        text.set_parse_math(False)
