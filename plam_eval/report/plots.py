"""Plots, drawn with matplotlib's own objects: no pyplot, no state shared with a user's figures, no display needed."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

if TYPE_CHECKING:
    import pandas as pd

    from plam_eval.probing.plateau import Curve, Stages

# Okabe and Ito's colours, told apart with any colour vision (jfly.uni-koeln.de/color); line styles tell them twice.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00", "#6A3D9A")
_STYLES = ("-", "--", ":", "-.")
_STAGES = {"modal separation": "#E8E8E8", "modal alignment": "#FDF0CF", "modal degradation (plateau)": "#D6E8F5"}
_OVERALL = "overall"
_KL_FLOOR = 1e-6  # nats: where the logarithmic axis ends


def plot_curve(curve: Curve, stages: Stages, path: str | Path) -> Path:
    """Write the plot of a curve and its stages; the suffix of `path` (.png or .svg) gives the format."""
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"{path}: found suffix {path.suffix!r}, expected .png or .svg")
    # Without a date and with fixed ids, equal curves give equal files.
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "plam-eval"}):
        curve_figure(curve, stages).savefig(path, dpi=150, metadata=metadata)
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
        handles += accuracy.plot(cuts, rows["accuracy"], label=task, **look)
        parsable.plot(cuts, rows["parsable"], **{**look, "linewidth": 0.8})
        kl.plot(cuts, _logarithmic(rows["kl"]), **{**look, "linewidth": 0.8})
    rows = table[table["task"] == _OVERALL]
    name = f"mean over {len(curve.tasks)} tasks" if many else curve.tasks[0]
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
        label=f"unmasked plus {stages.confidence:.0%} lower bound of the paired difference",
    )
    accuracy.axhline(unmasked, color="black", linewidth=0.8, alpha=0.6)
    limit = accuracy.axhline(
        unmasked - stages.margin,
        color="#B2182B",
        linewidth=1.2,
        linestyle=(0, (6, 3)),
        label=f"unmasked minus margin ({stages.margin:g})",
    )
    kl.axhline(stages.kl_threshold, color="#B2182B", linewidth=1.0, linestyle=(0, (6, 3)))
    kl.axvline(stages.kl_cut, color="#B2182B", linewidth=1.0, linestyle=":")
    kl.annotate(
        f"KL rule: cut {stages.kl_cut}" if stages.kl_cut < stages.num_layers else "KL rule: no plateau",
        (stages.kl_cut, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if stages.kl_cut > stages.num_layers / 2 else 4, -4),
        textcoords="offset points",
        ha="right" if stages.kl_cut > stages.num_layers / 2 else "left",
        va="top",
        fontsize=8,
        color="#B2182B",
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

    figure.suptitle(textwrap.fill(_headline(stages), 125), x=0.01, ha="left", fontsize=11 if stages.plateau else 9.5)
    figure.legend(
        handles=[*shades, *overall, limit, *bound], loc="outside lower center", ncols=2, fontsize=8.5, frameon=False
    )
    if handles:
        figure.legend(handles=handles, loc="outside right center", fontsize=8.5, frameon=False, title="tasks")
    return figure


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
    return f"layer {start}" if end == start + 1 else f"layers {start} to {end - 1}"


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
