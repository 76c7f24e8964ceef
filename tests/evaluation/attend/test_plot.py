"""The picture of measures by layer: lines, bands, marks, names."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from plam_eval.evaluation.attend.findings import AttendFindings, find
from plam_eval.evaluation.attend.folder import Attended, load
from plam_eval.evaluation.attend.plot import attention_figure
from plam_eval.figures import save_figure
from tests.helpers.attend_folders import write_attend_folder

SHIFT = {"merged": 0.1, "self_scale": 0.05}


def looked(folder: Path, **how: Any) -> tuple[Attended, AttendFindings]:
    asked: dict[str, Any] = {"shift": SHIFT, "tasks": {"gqa": 24}, "shown": 0} | how
    attended = load(write_attend_folder(folder, **asked))
    return attended, find(attended)


def panels(figure: Figure, rows: int) -> np.ndarray[Any, Any]:
    assert len(figure.axes) == 3 * rows
    return np.array(figure.axes).reshape(rows, 3)


def curves(axes: Axes, layers: int) -> dict[tuple[str, str], list[float]]:
    """By colour and style the values of lines that have one at each layer."""
    return {
        (to_hex(line.get_color()), str(line.get_linestyle())): np.asarray(line.get_ydata(), float).tolist()
        for line in axes.lines
        if len(np.asarray(line.get_xdata())) == layers
    }


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def drawn(figure: Figure, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return save_figure(figure, path)


def test_lines_are_the_levels_and_differences_with_their_bands(tmp_path: Path) -> None:
    attended, findings = looked(tmp_path)
    figure = attention_figure(attended, findings)
    (without, counted, difference), *_ = panels(figure, 4)
    levels = findings.levels.query("measure == 'over_chance'")
    for axes, sinks in ((without, "without"), (counted, "with")):
        rows = levels[(levels["sinks"] == sinks)].set_index("setting")
        lines = curves(axes, 8)
        assert lines["#000000", "-"] == pytest.approx(rows.loc["plain", "mean"].tolist())
        assert lines["#d55e00", "-"] == pytest.approx(rows.loc["merged", "mean"].tolist())
        assert lines["#0072b2", "--"] == pytest.approx(rows.loc["self_scale", "mean"].tolist())
        assert min(abs(value) for value in lines["#000000", ":"]) < 0.05  # the boxes of other documents
        assert any(set(np.asarray(line.get_ydata())) == {0} for line in axes.lines)  # chance
        ends = [np.asarray(band.get_paths()[0].vertices)[:, 1] for band in axes.collections]
        own = rows.loc["plain"]
        assert any(end.min() == pytest.approx(own["low"].min()) for end in ends)
        assert any(end.max() == pytest.approx(own["high"].max()) for end in ends)
    table = findings.differences
    rows = table[(table["measure"] == "over_chance") & (table["sinks"] == "without") & (table["first"] == "plain")]
    merged = rows[rows["second"] == "merged"]
    assert curves(difference, 8)["#d55e00", "-"] == pytest.approx(merged["difference"].tolist())
    assert "#000000" not in {colour for colour, _ in curves(difference, 8)}
    assert without.get_ylim() == counted.get_ylim()


def test_merged_layers_are_shaded_and_quoted_ones_marked(tmp_path: Path) -> None:
    attended, findings = looked(tmp_path)
    figure = attention_figure(attended, findings)
    for measure, row in zip(("over_chance", "entropy"), panels(figure, 4), strict=False):
        for axes in row:
            (span,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
            assert (span.get_x(), span.get_x() + span.get_width()) == (3.5, 7.5)
            verticals = {
                float(np.asarray(line.get_xdata())[0]) for line in axes.lines if len(set(line.get_xdata())) == 1
            }
            assert verticals == {findings.chosen_layer(measure)}
    said = legend(figure)
    assert {"plain", "merged", "self_scale", "merged layers: 4:8", "in the boxes of other documents"} <= set(said)
    assert "layer quoted, chosen on other documents" in said
    same = replace(findings, held_out=False)
    assert "layer quoted, chosen on the same documents" in legend(attention_figure(attended, same))
    title = figure.get_suptitle()
    assert (
        title == "Attention of the last token of the prompt, by layer (24 documents of gqa; bands are 95 % intervals)"
    )


@pytest.mark.parametrize(
    ("how", "rows"),
    [
        ({"layers": 36}, 4),
        ({"boxes": False}, 3),
        ({"shift": {"merged": 0.1}}, 4),
        ({"tasks": {"image": 1}}, 4),
        ({"shift": dict.fromkeys(["merged", "self_scale", "normalized", "noise", "random_layers", "a"], 0.1)}, 4),
    ],
)
def test_every_kind_of_folder_is_drawn_without_a_warning(how: dict[str, Any], rows: int, tmp_path: Path) -> None:
    attended, findings = looked(tmp_path, **how)
    figure = attention_figure(attended, findings)
    drawn(figure, tmp_path / "figure.png")
    width, height = figure.get_size_inches() * figure.dpi
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    ends = [axes.get_tightbbox(renderer) for axes in panels(figure, rows).ravel()]
    for box in ends:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    (below,) = [box.get_window_extent(renderer) for box in figure.legends]
    assert below.x0 >= 0 and below.x1 <= width and below.y1 <= min(box.y0 for box in ends)
    lines = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in figure.legends[0].get_lines()}
    assert len(set(lines.values())) == len(lines)  # told apart


def test_one_document_has_no_bands_and_says_of_none(tmp_path: Path) -> None:
    attended, findings = looked(tmp_path, tasks={"image": 1})
    title = attention_figure(attended, findings).get_suptitle()
    assert title == "Attention of the last token of the prompt, by layer (1 document of image)"


def test_names_are_text(tmp_path: Path) -> None:
    nasty = "_[x] $\\frac{a_b$"
    attended, findings = looked(tmp_path, shift={**SHIFT, nasty: 0.0}, tasks={nasty: 12})
    figure = attention_figure(attended, findings)
    svg = drawn(figure, tmp_path / "figure.svg")
    assert nasty in legend(figure) and f"12 documents of {nasty}" in figure.get_suptitle()
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert drawn(attention_figure(attended, findings), tmp_path / "again.svg").read_bytes() == svg.read_bytes()


def test_each_run_of_merged_layers_is_shaded(tmp_path: Path) -> None:
    figure = attention_figure(*looked(tmp_path, merged=(1, 4, 6, 7)))
    for axes in figure.axes:
        spans = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert [(span.get_x(), span.get_x() + span.get_width()) for span in spans] == [
            (0.5, 1.5),
            (3.5, 4.5),
            (5.5, 7.5),
        ]
    assert "merged layers: 1+4+6:8" in legend(figure)
    many = attention_figure(*looked(tmp_path / "many", layers=80, merged=range(0, 80, 2)))
    assert "merged layers: 40 from 0 to 78" in legend(many)
