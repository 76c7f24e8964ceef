"""What layers are needed for and what they do, one above the other over one axis of layers. No pyplot."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from loguru import logger
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from plam_eval.bootstrap import Floats
from plam_eval.evaluation.attend.folder import (
    DEPTH_OF_LAYERS,
    MERGED,
    PLAIN,
    QUERIES,
    WITH_SINKS,
    Attended,
    AttendError,
)
from plam_eval.evaluation.attend.paired import Documents, levels
from plam_eval.evaluation.scan_folder import Scan, whole_settings
from plam_eval.figures import COLOURS, MARKED, PLATEAU_COLOUR, add_legend
from plam_eval.layer_sets import label_layers, runs_of
from plam_eval.probing.closed import READERS
from plam_eval.probing.curve import OVERALL
from plam_eval.probing.plot import set_layer_ticks
from plam_eval.rules import SELF_SCALE
from plam_eval.terminal import one_line

_KL_FLOOR = 1e-6  # nats: where the logarithmic axis ends
_SETTINGS = 3  # that are drawn: plain, merged and its scale alone, or whichever there are
_OF_SETTING: tuple[dict[str, Any], ...] = (
    {"color": "black", "linestyle": "-"},
    {"color": COLOURS[1], "linestyle": (0, (4, 1.5))},
    {"color": COLOURS[0], "linestyle": ":"},
)
_OF_KIND = {"image": COLOURS[2], "text": COLOURS[3], "image to text": COLOURS[6]}
_OF_READER = {"text": "black", "question": COLOURS[4], "last": COLOURS[7]}


class _Line(NamedTuple):
    """Means over tasks along the layers, and their 95 % interval: arrays of one length."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


class _Drawn(NamedTuple):
    """A line, how it is drawn, and what it is called."""

    line: _Line
    style: dict[str, Any]
    name: str


class _Panel(NamedTuple):
    """Lines of one unit."""

    unit: str
    lines: list[_Drawn]
    logarithmic: bool = False


class _Shaded(NamedTuple):
    """Layers that are shaded in all panels, in order, and why."""

    layers: Sequence[int]
    name: str


def depth_figure(attended: Attended, scans: Sequence[Scan]) -> Figure:
    """Interventions above and descriptions below, over one axis of layers; what was not measured is left out.

    What is of a cut, or of the stream at a depth, stands at its number: cut l and depth l are the edge at which layer l
    begins. What is of a layer stands between its edges, at l + 1/2. Bands are 95 % intervals, by clusters of documents.

    Args:
        attended: a folder's content.
        scans: of its model, with the image closed to whatever text.

    Raises:
        AttendError: a scan is of another number of layers, or nothing was measured. A scan of a model of another name
            is drawn, with a warning.
    """
    _check(attended, scans)
    groups = [
        ("Intervention: what the answers need", [panel for panel in [_accuracy(scans)] if panel.lines]),
        ("Description: what layers are seen to do, needed or not", [p for p in _described(attended) if p.lines]),
    ]
    groups = [(heading, panels) for heading, panels in groups if panels]
    if not groups:
        raise AttendError(f"{attended.folder}: nothing to draw by layer; no document with an image was measured")
    heights = [each for _, panels in groups for each in (0.22, *(_height(panel) for panel in panels))]
    figure = Figure(figsize=(10.4, sum(heights) + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    rows: Iterator[Axes] = iter(grid[:, 0])
    shaded = _shaded(attended, scans)
    for heading, panels in groups:
        _write_heading(next(rows), heading)
        axes = [next(rows) for _ in panels]
        for panel, own in zip(panels, axes, strict=True):
            _draw(own, panel, attended.num_layers, shaded)
        axes[-1].tick_params(labelbottom=True)
        axes[-1].set_xlabel(_X_LABELS[heading.partition(":")[0]], fontsize=8.5)
    figure.align_ylabels()
    figure.suptitle(_headline(attended), x=0.01, ha="left", fontsize=11, parse_math=False)
    if shaded is not None:
        add_legend(figure, [Patch(color=PLATEAU_COLOUR, label=shaded.name)], loc="outside lower left")
    return figure


_X_LABELS = {
    "Intervention": "cut: the image is closed from this layer on",
    "Description": "depth; what is of a layer stands between its two depths",
}


def _check(attended: Attended, scans: Sequence[Scan]) -> None:
    problems = [
        f"{scan.folder}: a scan of {scan.curve.num_layers} layers; expected {attended.num_layers}, as in "
        f"{attended.folder}: name scans of the same model"
        for scan in scans
        if scan.curve.num_layers != attended.num_layers
    ]
    if problems:
        raise AttendError("\n".join(problems))
    name = attended.made_with["pretrained"]
    for scan in scans:
        if (own := whole_settings(scan.folder)["pretrained"]) != name:
            logger.warning("{}: a scan of {}, drawn above what layers of {} do", scan.folder, own, name)


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def _accuracy(scans: Sequence[Scan]) -> _Panel:
    """Accuracy by cut, a line for each scan."""
    lines = []
    order = [*READERS]
    for scan in sorted(scans, key=lambda scan: order.index(scan.stages.closed_to)):
        closed_to, table = scan.stages.closed_to, scan.curve.table()
        rows = table[table["task"] == OVERALL]
        line = _Line(*(rows[name].to_numpy(float) for name in ("cut", "accuracy", "low", "high")))
        twins = [other for other in scans if other.stages.closed_to == closed_to]
        style = {"color": _OF_READER[closed_to], "linestyle": (0, (4, 1.5)) if twins.index(scan) % 2 else "-"}
        of = "a merged model, " if whole_settings(scan.folder)["spec"] else ""
        whom = "all text" if closed_to == "text" else f"{READERS[closed_to]} alone"
        more = f", {scan.folder.name}" if len(twins) > 1 else ""
        documents = sum(scan.curve.documents.values())
        lines.append(_Drawn(line, style, f"image closed to {whom}\n({of}{documents} documents{more})"))
    return _Panel("accuracy", lines)


def _described(attended: Attended) -> Iterator[_Panel]:
    settings = _settings(attended)
    styles = dict(zip(settings, _OF_SETTING, strict=False))
    shares = attended.measures[attended.measures["sinks"] == WITH_SINKS]
    whose = textwrap.fill(f"image share ({QUERIES[attended.made_with['queries']]})", 20)
    yield _Panel(whose, [*_by_setting(shares, "layer", "image_share", styles)])
    if attended.depth is None:
        return
    depth = attended.depth.assign(decided=_decided(attended.depth))
    first_two = dict(list(styles.items())[:2])
    yield _Panel("drift: cosine\nwith the next depth", [*_by_kind(depth, ("image", "text"), "{}_drift", first_two)])
    clouds = {"image": "image_image", "text": "text_text", "image to text": "image_text"}
    plain = {PLAIN: styles[PLAIN]}
    yield _Panel(
        "clouds: cosine\nbetween tokens",
        [each for kind, column in clouds.items() for each in _by_kind(depth, (kind,), column, plain)],
    )
    contributed = [*_by_setting(depth, "depth", "contribution", plain)]
    yield _Panel("layer contribution\n(KL, nats)", contributed, logarithmic=True)
    yield _Panel("logit lens: ln p of\nplain's next token", [*_by_setting(depth, "depth", "lens_log_prob", styles)])
    yield _Panel("decided: likeliest\nfrom here on", [*_by_setting(depth, "depth", "decided", styles)])
    others = {setting: style for setting, style in styles.items() if setting != PLAIN}
    yield _Panel("cosine with\nthe plain model", [*_by_kind(depth, ("image", "text"), "{}_cosine", others)])
    yield _Panel("CKA with\nthe plain model", [*_by_kind(depth, ("image", "text"), "{}_cka", others)])


def _settings(attended: Attended) -> list[str]:
    """Plain first, then the merge, its scale alone, and whichever else there are, as many as can be told apart."""
    first = [name for name in (PLAIN, MERGED, SELF_SCALE) if name in attended.settings]
    return [*first, *(name for name in attended.settings if name not in first)][:_SETTINGS]


def _decided(depth: pd.DataFrame) -> pd.Series:
    """1 where the plain model's next token is the likeliest from a depth on, of each document and setting, else 0."""
    ordered = depth.sort_values("depth", ascending=False)
    leads = ordered["lens_rank"].eq(0).astype(float).where(ordered["lens_rank"].notna())
    keys = [ordered[name] for name in ("task", "doc_id", "setting")]
    decided: pd.Series = leads.groupby(keys, sort=False).cummin()
    return decided.reindex(depth.index)


def _by_setting(frame: pd.DataFrame, at: str, column: str, styles: dict[str, dict[str, Any]]) -> Iterator[_Drawn]:
    """A line for each setting, of a column."""
    for setting, style in styles.items():
        line = _line(frame[frame["setting"] == setting], at, column)
        if line is not None:
            yield _Drawn(line, style, one_line(setting))


def _by_kind(
    depth: pd.DataFrame, kinds: Sequence[str], column: str, styles: dict[str, dict[str, Any]]
) -> Iterator[_Drawn]:
    """A line for each kind of token, told by its colour, and setting, told by its dashes."""
    for kind in kinds:
        for setting, style in styles.items():
            line = _line(depth[depth["setting"] == setting], "depth", column.format(kind))
            if line is not None:
                yield _Drawn(line, {**style, "color": _OF_KIND[kind]}, f"{kind}, {one_line(setting)}")


def _line(frame: pd.DataFrame, at: str, column: str) -> _Line | None:
    """Means over tasks of a column, as in the figure of attention; None where no document has it."""
    values = frame.set_index(["task", "doc_id", "cluster", at])[column].unstack(at)
    values = values.where(np.isfinite(values)).dropna(axis="columns", how="all").dropna(axis="index", how="all")
    if values.empty:
        return None
    means = levels(Documents(values.index.to_frame(index=False)), values.to_numpy(float))
    of_layer = at == "layer" or column in DEPTH_OF_LAYERS
    return _Line(values.columns.to_numpy(float) + 0.5 * of_layer, means.value, means.low, means.high)


# ---- how it is drawn -------------------------------------------------------------------------------------------------


def _height(panel: _Panel) -> float:
    """Inches: as the lines of the legend beside it need, at least."""
    lines = sum(1 + line.name.count("\n") for line in panel.lines)
    return max(2.4 if panel.unit == "accuracy" else 1.15, 0.17 * lines + 0.2)


def _write_heading(axes: Axes, heading: str) -> None:
    axes.axis("off")
    axes.axhline(0.5, color="black", linewidth=0.8)
    name, _, rest = heading.partition(":")
    axes.set_ylim(0, 1)
    axes.text(
        0,
        0.5,
        f"{name}:{rest} ",
        transform=axes.transAxes,
        va="center",
        fontsize=10,
        fontweight="bold",
        bbox={"facecolor": "white", "linewidth": 0, "pad": 1.5},
    )


def _draw(axes: Axes, panel: _Panel, layers: int, shaded: _Shaded | None) -> None:
    for start, end in runs_of(shaded.layers if shaded is not None else ()):
        axes.axvspan(start, end, color=PLATEAU_COLOUR, linewidth=0, zorder=0)
    handles: list[Line2D] = []
    for line, style, name in panel.lines:
        floor = _KL_FLOOR if panel.logarithmic else -np.inf
        mean, low, high = (np.maximum(values, floor) for values in (line.mean, line.low, line.high))
        whole = {"linewidth": 1.7, **style, **({"marker": "o", "markersize": 2.5} if layers <= MARKED else {})}
        if np.isfinite(line.low).all():
            axes.fill_between(line.x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        handles += axes.plot(line.x, mean, label=name, **whole)
    if panel.logarithmic:
        axes.set_yscale("log")
    axes.set_ylabel(panel.unit, fontsize=8)
    axes.tick_params(labelsize=8)
    set_layer_ticks(axes, layers)
    axes.set_xlim(-0.02 * layers, 1.02 * layers)
    axes.grid(axis="y", linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    add_legend(axes, handles, loc="center left", bbox_to_anchor=(1.005, 0.5), fontsize=8, borderaxespad=0)


def _shaded(attended: Attended, scans: Sequence[Scan]) -> _Shaded | None:
    """The layers that are merged; where nothing is, the plateau that a scan has found."""
    if merged := attended.merged_layers:
        return _Shaded(merged, f"merged layers: {label_layers(merged)}")
    for scan in scans:
        if scan.stages.plateau is not None:
            start, end = scan.stages.plateau
            return _Shaded(range(start, end), f"plateau, layers {start}:{end}")
    return None


def _headline(attended: Attended) -> str:
    answers = attended.answers[["task", "doc_id"]].drop_duplicates()
    tasks = answers["task"].unique()
    of = f"{len(tasks)} tasks" if len(tasks) != 1 else str(tasks[0])
    model = Path(str(attended.made_with["pretrained"])).name
    asked = f"described on {len(answers)} documents of {of}; bands are 95 % intervals"
    return textwrap.fill(one_line(f"Layer by layer: {model} ({asked})"), 115)
