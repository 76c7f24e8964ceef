"""How every figure looks: its colours, its names as they are written, its file. No pyplot, no display needed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from plam_eval.errors import InputError
from plam_eval.terminal import shown

# Okabe and Ito's colours, told apart with any colour vision (jfly.uni-koeln.de/color); line styles tell them twice.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00", "#6A3D9A")
LINE_STYLES = ("-", "--", ":", "-.")
STAGE_COLOURS = {
    "modal separation": "#E8E8E8",
    "modal alignment": "#FDF0CF",
    "modal degradation (plateau)": "#D6E8F5",
}
PLATEAU_COLOUR = STAGE_COLOURS["modal degradation (plateau)"]
MARKED = 16
"""Layers up to which each has a mark on its line."""
WITHOUT_COLOUR = "#DCEFE4"
"""Of layers in which some of the text does without the image."""
LIMIT_COLOUR = "#B2182B"
SALT = "plam-eval"
"""Of ids in an SVG, which are drawn at random otherwise: equal figures give equal files."""


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure; figures made alike give equal files.

    Args:
        figure: what to write; its names are made plain text.
        path: its suffix, .png or .svg, says in which format.

    Returns:
        The path.

    Raises:
        InputError: another suffix.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"{path}: found suffix {path.suffix!r}, expected .png or .svg")
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    names_as_text(figure)
    with matplotlib.rc_context({"svg.hashsalt": SALT}):
        figure.savefig(path, dpi=150, metadata=metadata)
    return path


def add_legend(figure: Figure | Axes, handles: Sequence[Line2D | Patch], **where: Any) -> None:
    """A legend with the handles' names as they are: matplotlib leaves out those that begin with an underscore.

    Args:
        figure: what it is added to, or one panel of it.
        handles: what it explains, each with its label.
        **where: place, columns, size and title, as `Figure.legend` takes them.
    """
    names = [str(handle.get_label()) for handle in handles]
    # The stand-ins are as long as the names, by which a legend is laid out.
    stand_ins = ["x" * max(1, len(name)) for name in names]
    legend = figure.legend(list(handles), stand_ins, **{"fontsize": 8.5, "frameon": False, **where})
    for written, name in zip(legend.get_texts(), names, strict=True):
        written.set_text(name)
        written.set_parse_math(False)


def names_as_text(figure: Figure) -> None:
    """Make every name in a figure text that its file and its fonts can hold, and no formula.

    Args:
        figure: changed in place.
    """
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    texts = [text for legend in legends for text in (*legend.get_texts(), legend.get_title())]
    texts += [text for axes in figure.axes for text in (*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label)]
    texts += figure.texts
    for text in texts:
        text.set_text(_drawn(text.get_text()))
    write_plainly(*texts)
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


def write_plainly(*texts: Text) -> None:
    """Make names of tasks and folders no formulas, whatever dollar signs are in them; SVG holds no control characters.

    Args:
        *texts: changed in place.
    """
    for text in texts:
        text.set_text(shown(text.get_text()))
        text.set_parse_math(False)
