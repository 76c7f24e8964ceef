"""The picture of an accuracy curve and its stages, drawn with matplotlib's own objects: no pyplot."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from plam_eval.figures import (
    COLOURS,
    LIMIT_COLOUR,
    LINE_STYLES,
    STAGE_COLOURS,
    WITHOUT_COLOUR,
    add_legend,
    save_figure,
)
from plam_eval.probing.closed import READERS
from plam_eval.probing.curve import OVERALL, Curve
from plam_eval.probing.plateau import Stages, confidence_in_words
from plam_eval.terminal import one_line

_KL_FLOOR = 1e-6  # nats: where the logarithmic axis ends


def plot_curve(curve: Curve, stages: Stages, path: str | Path) -> Path:
    """Write the plot of a curve and its stages; equal curves give equal files.

    Args:
        curve: scores per document at every cut.
        stages: what was found on it.
        path: its suffix, .png or .svg, says in which format.

    Returns:
        The path.

    Raises:
        InputError: another suffix.
    """
    return save_figure(curve_figure(curve, stages), path)


class _Panels(NamedTuple):
    """One below the other, over the same cut layers."""

    accuracy: Axes
    parsable: Axes
    kl: Axes


def curve_figure(curve: Curve, stages: Stages) -> Figure:
    """Accuracy with its 95 % interval, the share of parsable answers and the KL divergence, over cut layers.

    The mean over tasks is thick, tasks are thin. Stages are shaded between cuts: the layers from cut a to cut b are
    those that see the image at b and not at a. Where it was closed to some of the text alone, nothing is called a
    stage: only the layers in which that text does without it are shaded.

    Args:
        curve: scores per document at every cut.
        stages: what was found on it.
    """
    table = curve.table()
    overall = table[table["task"] == OVERALL]
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = _Panels(*figure.subplots(3, 1, sharex=True, height_ratios=(5, 1.3, 1.6)))

    shades = _shade(panels, stages)
    tasks = _draw_tasks(panels, curve, table) if len(curve.tasks) > 1 else []
    mean = _draw_mean(panels, curve, overall)
    bound, limit = _draw_rule(panels.accuracy, curve, stages, float(overall["accuracy"].iloc[-1]))
    _draw_kl_rule(panels.kl, stages)
    if overall["parsable"].isna().all():
        place = panels.parsable.transAxes
        panels.parsable.text(0.5, 0.5, "answers of free words", transform=place, ha="center", va="center")
    _finish_axes(panels, curve, stages)
    figure.align_ylabels()

    title = textwrap.fill(one_line(_headline(stages)), 125)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11 if stages.plateau else 9.5, parse_math=False)
    add_legend(figure, [*shades, mean, limit, bound], loc="outside lower center", ncols=2)
    if tasks:
        add_legend(figure, tasks, loc="outside right center", title="tasks")
    return figure


def _draw_tasks(panels: _Panels, curve: Curve, table: pd.DataFrame) -> list[Line2D]:
    """A thin line for each task; returns them."""
    lines: list[Line2D] = []
    for number, task in enumerate(curve.tasks):
        rows = table[table["task"] == task]
        look: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": LINE_STYLES[(number + 2 * (number // len(COLOURS))) % len(LINE_STYLES)],
            "linewidth": 1.1,
            "alpha": 0.9,
        }
        lines += panels.accuracy.plot(curve.cuts, rows["accuracy"], label=one_line(task), **look)
        panels.parsable.plot(curve.cuts, rows["parsable"], **{**look, "linewidth": 0.8})
        panels.kl.plot(curve.cuts, _logarithmic(rows["kl"]), **{**look, "linewidth": 0.8})
    return lines


def _draw_mean(panels: _Panels, curve: Curve, overall: pd.DataFrame) -> Line2D:
    """A thick line for the mean over tasks, with the interval of its accuracy; returns that of accuracy."""
    cuts, tasks = curve.cuts, curve.tasks
    name = f"mean over {len(tasks)} tasks" if len(tasks) > 1 else one_line(tasks[0])
    panels.accuracy.fill_between(cuts, overall["low"], overall["high"], color="black", alpha=0.18, linewidth=0)
    (line,) = panels.accuracy.plot(
        cuts,
        overall["accuracy"],
        color="black",
        linewidth=2.4,
        marker="o",
        markersize=3.5,
        label=f"{name}, 95 % interval",
    )
    panels.parsable.plot(cuts, overall["parsable"], color="black", linewidth=1.8)
    panels.kl.plot(cuts, _logarithmic(overall["kl"]), color="black", linewidth=1.8, marker="o", markersize=2.5)
    return line


def _draw_rule(axes: Axes, curve: Curve, stages: Stages, unmasked: float) -> tuple[Line2D, Line2D]:
    """The rule's bound at each cut, and the accuracy that it must stay above; returns both lines."""
    sided = curve.table(confidence=2 * stages.confidence - 1)  # its lower ends are the rule's one-sided bounds
    (bound,) = axes.plot(
        curve.cuts,
        unmasked + sided.loc[sided["task"] == OVERALL, "difference_low"],
        color="black",
        linewidth=1.0,
        linestyle=":",
        label=f"unmasked plus {confidence_in_words(stages.confidence)} lower bound of the paired difference",
    )
    axes.axhline(unmasked, color="black", linewidth=0.8, alpha=0.6)
    limit = axes.axhline(
        unmasked - stages.margin,
        color=LIMIT_COLOUR,
        linewidth=1.2,
        linestyle=(0, (6, 3)),
        label=f"unmasked minus margin ({stages.margin:g})",
    )
    return bound, limit


def _draw_kl_rule(axes: Axes, stages: Stages) -> None:
    axes.axhline(stages.kl_threshold, color=LIMIT_COLOUR, linewidth=1.0, linestyle=(0, (6, 3)))
    axes.axvline(stages.kl_cut, color=LIMIT_COLOUR, linewidth=1.0, linestyle=":")
    late = stages.kl_cut > stages.num_layers / 2
    axes.annotate(
        f"KL rule: {stages.kl_in_words}",
        (stages.kl_cut, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if late else 4, -4),
        textcoords="offset points",
        ha="right" if late else "left",
        va="top",
        fontsize=8,
        color=LIMIT_COLOUR,
        bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
    )


def _finish_axes(panels: _Panels, curve: Curve, stages: Stages) -> None:
    accuracy, parsable, kl = panels
    accuracy.set_ylabel("accuracy")
    parsable.set_ylabel("parsable")
    parsable.set_ylim(-0.05, 1.05)
    parsable.yaxis.set_major_formatter(PercentFormatter(1.0))
    parsable.set_yticks([0, 0.5, 1])
    kl.set_yscale("log")
    kl.set_ylabel("KL (nats)")
    what, least = "hidden", "blind"
    if stages.closed_to != "text":
        what, least = f"closed to {READERS[stages.closed_to]}", "in every layer"
    kl.set_xlabel(f"cut layer: the image is {what} from it on (0: {least}, {curve.num_layers}: unmasked)")
    set_layer_ticks(kl, curve.num_layers, curve.cuts)
    kl.set_xlim(curve.cuts[0] - 0.02 * curve.num_layers, curve.num_layers * 1.02)
    for axes in panels:
        axes.grid(axis="y", linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)


def _shade(panels: _Panels, stages: Stages) -> list[Patch]:
    """Shade the stages, names and layers in the legend: a stage may be too narrow for its name."""
    if stages.needed_until is not None and stages.needed_until < stages.num_layers:
        name = f"{READERS[stages.closed_to]} no longer needs to see the image"
        for axes in panels:
            axes.axvspan(
                stages.needed_until, stages.num_layers, color=WITHOUT_COLOUR, linewidth=0, zorder=0, label=name
            )
        return [Patch(color=WITHOUT_COLOUR, label=f"{name}: {_layers(stages.needed_until, stages.num_layers)}")]
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
                axes.axvspan(low, high, color=STAGE_COLOURS[name], linewidth=0, zorder=0, label=name)
            patches.append(Patch(color=STAGE_COLOURS[name], label=f"{name}: {_layers(low, high)}"))
    for axes in panels:
        axes.axvline(start, color="#0072B2", linewidth=1.0, alpha=0.8)
    return patches


def _headline(stages: Stages) -> str:
    documents = sum(stages.documents.values())
    tasks = f"{len(stages.documents)} tasks" if len(stages.documents) > 1 else next(iter(stages.documents))
    asked = f"({documents} documents of {tasks})"
    if stages.plateau is not None:
        return f"Plateau: {_layers(*stages.plateau)} of {stages.num_layers} {asked}"
    reason = stages.reason[0].upper() + stages.reason[1:]
    if stages.closed_to == "text":
        return reason
    reader = READERS[stages.closed_to]
    if stages.needed_until:
        reason = f"not needed from layer {stages.needed_until} of {stages.num_layers} on {asked}"
    elif stages.needed_until == 0:
        reason = f"not needed in any of {stages.num_layers} layers {asked}"
    return f"Image closed to {reader} alone: {reason}"


def _layers(start: int, end: int) -> str:
    return f"layers {start}:{end}"


def set_layer_ticks(axes: Axes, layers: int, cuts: Sequence[int] = ()) -> None:
    """Whole numbers from 0 to the number of layers, both ends among them.

    Args:
        axes: whose x axis has cuts, layers or depths.
        layers: of the decoder.
        cuts: that have a small mark.
    """
    step = next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, 1000) if layers / step <= 18)
    ticks = [tick for tick in range(0, layers, step) if layers - tick >= step * 0.7]
    axes.set_xticks([*ticks, layers])
    axes.set_xticks(cuts, minor=True)


def _logarithmic(kl: pd.Series) -> pd.Series:
    """KL by cut as far as a logarithmic axis shows it: without the unmasked model's 0, nothing below the floor."""
    shown = kl.clip(lower=_KL_FLOOR)
    shown.iloc[-1] = float("nan")
    return shown
