from __future__ import annotations

import math
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from plam_eval.report import plots
from plam_eval.report.plots import Estimate
from plam_eval.report.svg import to_svg


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def test_names_are_drawn_as_they_are_written() -> None:
    """No formula between dollar signs, no control in a file."""
    nasty = "_[x] $\\frac{a_b$ \x1b[31m\x07"
    written = r"_[x] $\frac{a_b$ \x1b[31m\x07"
    made = Estimate(nasty, 0.1, 0.0, 0.2)
    for figure in (
        plots.heat_map([[None]], [nasty], [nasty], marked=[[False]], words={(0, 0): nasty}, label=nasty),
        plots.forest([made], label=nasty, overall=made),
        plots.controls({nasty: {nasty: [made]}}, chosen=(nasty, nasty), label=nasty),
    ):
        assert b"\x1b" not in to_svg(figure)
        ElementTree.fromstring(to_svg(figure))
        texts = [text for text in figure.findobj(match=Text) if "frac" in text.get_text() and text.get_visible()]
        assert len(texts) >= 3 and {text.get_text() for text in texts} == {written}
        assert not any(text.get_parse_math() for text in texts)


def test_no_pyplot() -> None:
    code = "import sys, plam_eval.report.plots; print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# --- differences ------------------------------------------------------------------------------------------------------


def cell(value: float, reach: float = 0.01) -> Estimate:
    return Estimate("", value, value - reach, value + reach)


def fills(figure: Figure) -> list[Any]:
    """Colours of a heat map's squares, with their opacity, in the order of its cells."""
    return [patch.get_facecolor() for patch in figure.axes[0].patches if patch.get_fill()]


def hatches(figure: Figure) -> list[tuple[int, int]]:
    """(row, column) of what is hatched."""
    found = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    return [(math.floor(patch.get_y() + 0.5), math.floor(patch.get_x() + 0.5)) for patch in found]  # type: ignore[attr-defined]


def test_heat_map() -> None:
    figure = plots.heat_map(
        [[cell(0.02), cell(-0.04), None], [cell(0.0), cell(math.nan), cell(-0.0001)]],
        ["0.9 + 0.3", "$x$"],
        ["0:8", "4:8", "6:8"],
        marked=[[False, True, False], [False, False, False]],
        words={(0, 2): "failed"},
        chosen=(0, 1),
    )
    axes = figure.axes[0]
    minus = "\N{MINUS SIGN}"
    assert [t.get_text() for t in axes.texts] == ["+0.020", f"{minus}0.040*", "failed", "0.000", "", "0.000"]
    blue, red, *_ = fills(figure)
    assert blue[2] > blue[0] and red[0] > red[2] and red[3] == pytest.approx(2 * blue[3])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0:8", "4:8", "6:8"]
    (frame,) = [patch for patch in axes.patches if patch.get_linewidth() == 2]
    assert math.floor(frame.get_x() + 0.5) == 1 and math.floor(frame.get_y() + 0.5) == 0  # type: ignore[attr-defined]
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())  # "$x$" is no formula
    assert hatches(figure) == [(1, 0), (1, 2)]


def test_what_is_not_shown_to_differ_is_hatched_and_pale_whatever_its_size() -> None:
    figure = plots.heat_map(
        [[cell(0.05, 0.06), cell(0.03, 0.01), Estimate("", 0.04, math.nan, math.nan)]],
        ["a"],
        ["0:8", "4:8", "6:8"],
        marked=[[False] * 3],
    )
    uncertain, certain, unknown = (colour[3] for colour in fills(figure))
    assert hatches(figure) == [(0, 0), (0, 2)] and certain > 2 * max(uncertain, unknown) > 0
    assert [text for text in legend(figure) if "not shown to differ: the 95% interval holds 0" in text]
    sure = plots.heat_map([[cell(0.05), cell(0.03)]], ["a"], ["0:8", "4:8"], marked=[[False] * 2])
    assert hatches(sure) == [] and not legend(sure)


def test_small_differences_are_pale() -> None:
    """Full colour is for what is twice as large as its interval reaches."""
    (barely,) = fills(plots.heat_map([[cell(0.011, 0.01)]], ["a"], ["0:8"], marked=[[False]]))
    (clearly,) = fills(plots.heat_map([[cell(0.02, 0.01)]], ["a"], ["0:8"], marked=[[False]]))
    (largest,) = fills(plots.heat_map([[cell(0.2, 0.01)]], ["a"], ["0:8"], marked=[[False]]))
    assert barely[3] == pytest.approx(0.55 * clearly[3]) and clearly == largest
    none = plots.heat_map([[None, Estimate("", 0.0, math.nan, math.nan)]], ["a"], ["0:8", "4:8"], marked=[[False] * 2])
    assert to_svg(none)


def test_heat_map_of_many_columns_is_wide_and_its_names_upright() -> None:
    columns = [f"{start}:36" for start in range(36)]
    figure = plots.heat_map([[cell(0.01)] * 36], ["0.9 + 0.3"], columns, marked=[[False] * 36])
    assert figure.get_figwidth() > 15
    assert {label.get_rotation() for label in figure.axes[0].get_xticklabels()} == {90.0}


@pytest.mark.parametrize("count", [1, 9, 60])
def test_forest(count: int) -> None:
    estimates = [Estimate(f"task {n}", 0.01 * n, 0.01 * n - 0.02, 0.01 * n + 0.02) for n in range(count)]
    estimates[0] = Estimate("graded", 0.5, math.nan, math.nan)
    figure = plots.forest(estimates, overall=Estimate("mean", 0.0, -0.1, 0.1))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [*(e.name for e in estimates), "mean"]
    assert len(axes.collections) == count  # an interval each, but for the one without
    low, high = axes.get_ylim()
    assert low > high and figure.get_figheight() > 0.25 * count
    assert to_svg(figure).startswith(b"<?xml")


def test_controls_beside_merges() -> None:
    rules = ("weighted_sum", "noise", "self_scale", "noise")
    groups = {f"{n}:36\n0.9 + 0.3": [Estimate(rule, 0.01, 0.0, 0.02) for rule in rules] for n in range(30)}
    figure = plots.controls({"": groups}, chosen=("", "3:36\n0.9 + 0.3"))
    assert len(figure.axes) == 3  # rows of merges
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["merge", "self_scale", "noise"]
    first = figure.axes[0]
    bold = [label.get_text() for label in first.get_xticklabels() if label.get_fontweight() == "bold"]
    assert bold == ["3:36\n0.9 + 0.3"]
    places = sorted(float(np.asarray(drawn.get_xdata())[0]) for drawn in first.lines if drawn.get_marker() != "None")
    assert len(places) == len(set(places)) == 12 * 4  # none hides another
    assert len(plots.controls({"": {"6:8": groups["3:36\n0.9 + 0.3"]}}).axes) == 1
    own = plots.controls(
        {"": {"6:8": [Estimate("weighted_sum", 0.01, 0.0, 0.02), Estimate("my_rule", 0.0, -0.01, 0.01)]}}
    )
    assert [text.get_text() for text in own.legends[0].get_texts()] == ["merge", "my_rule"]
