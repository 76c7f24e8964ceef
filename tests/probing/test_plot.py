"""The picture of a curve: its lines, its stages, its file."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from plam_eval.probing.closed import ClosedTo
from plam_eval.probing.curve import OVERALL, Curve
from plam_eval.probing.plateau import Stages, find_plateau
from plam_eval.probing.plot import curve_figure, plot_curve
from tests.helpers.curves import NINE
from tests.helpers.curves import curve_of as scan


def drawn(figure: Figure) -> tuple[Axes, Axes, Axes]:
    accuracy, parsable, kl = figure.axes
    return accuracy, parsable, kl


def line(axes: Axes, label: str) -> Line2D:
    (found,) = [drawing for drawing in axes.lines if str(drawing.get_label()).startswith(label)]
    return found


def spans(axes: Axes) -> dict[str, tuple[float, float]]:
    return {
        str(patch.get_label()): (patch.get_x(), patch.get_x() + patch.get_width())
        for patch in axes.patches
        if isinstance(patch, Rectangle)
    }


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def test_accuracy_interval_and_margin() -> None:
    curve = scan(36, NINE)
    stages = find_plateau(curve)
    figure = curve_figure(curve, stages)
    accuracy, _, _ = drawn(figure)
    table = curve.table().set_index(["task", "cut"])
    for label, task, width in [
        ("mean over 9 tasks, 95 % interval", OVERALL, 2.0),
        *((name, name, 0.0) for name in NINE),
    ]:
        shown = line(accuracy, label)
        assert np.asarray(shown.get_xdata()).tolist() == list(range(37))
        assert np.asarray(shown.get_ydata()) == pytest.approx(table.loc[task, "accuracy"].to_numpy())
        assert shown.get_linewidth() >= width
    (band,) = accuracy.collections
    corners = np.asarray(band.get_paths()[0].vertices)
    assert corners[:, 1].min() == pytest.approx(table.loc[OVERALL, "low"].min())
    assert corners[:, 1].max() == pytest.approx(table.loc[OVERALL, "high"].max())
    unmasked = table.loc[(OVERALL, 36), "accuracy"]
    assert set(np.asarray(line(accuracy, "unmasked minus margin (0.02)").get_ydata())) == {unmasked - 0.02}
    bound = np.asarray(line(accuracy, "unmasked plus 95% lower bound").get_ydata())
    assert stages.plateau is not None and stages.loss is not None
    k = stages.plateau[0]
    assert bound[k] == pytest.approx(unmasked + stages.loss["lower"], abs=1e-6)
    assert (bound[k:] > unmasked - 0.02).all() and bound[k - 1] <= unmasked - 0.02


def test_nine_tasks_can_be_told_apart() -> None:
    curve = scan(8, NINE)
    accuracy, _, _ = drawn(curve_figure(curve, find_plateau(curve)))
    looks = {(to_hex(line(accuracy, task).get_color()), line(accuracy, task).get_linestyle()) for task in NINE}
    assert len(looks) == 9


@pytest.mark.parametrize("layers", [8, 36])
def test_stages_are_shaded_on_every_panel_and_named_with_their_layers(layers: int) -> None:
    curve = scan(layers, NINE)
    stages = find_plateau(curve)
    figure = curve_figure(curve, stages)
    quarter, half = layers // 4, layers // 2
    assert (stages.separation_end, stages.plateau) == (quarter, (half, layers))
    for axes in drawn(figure):
        assert spans(axes) == {
            "modal separation": (0, quarter),
            "modal alignment": (quarter, half),
            "modal degradation (plateau)": (half, layers),
        }
    assert f"modal separation: layers 0:{quarter}" in legend(figure)
    assert f"modal alignment: layers {quarter}:{half}" in legend(figure)
    assert f"modal degradation (plateau): layers {half}:{layers}" in legend(figure)
    assert figure.get_suptitle() == f"Plateau: layers {half}:{layers} of {layers} (1800 documents of 9 tasks)"
    ticks = drawn(figure)[2].get_xticks().tolist()
    assert ticks[0] == 0 and ticks[-1] == layers and len(ticks) <= 19


def test_kl_is_logarithmic_and_shows_its_rule() -> None:
    curve = scan(8, ["pope"])
    stages = find_plateau(curve)
    _, _, kl = drawn(curve_figure(curve, stages))
    assert kl.get_yscale() == "log"
    shown = [drawing for drawing in kl.lines if len(np.asarray(drawing.get_xdata())) == 9]
    values = np.asarray(shown[0].get_ydata(), dtype=float)
    assert values[:-1] == pytest.approx([math.exp(-1.5 * cut) for cut in range(8)])
    assert math.isnan(values[-1])  # the unmasked model's 0 has no place on the axis
    assert [text.get_text() for text in kl.texts] == ["KL rule: cut 4"]  # exp(-6) = 0.0025
    assert any(set(np.asarray(drawing.get_ydata())) == {0.003} for drawing in kl.lines)
    _, _, strict = drawn(curve_figure(curve, find_plateau(curve, kl_threshold=0)))
    assert [text.get_text() for text in strict.texts] == ["KL rule: no plateau"]


def test_parsable_share() -> None:
    curve = scan(8, ["pope"])
    _, parsable, _ = drawn(curve_figure(curve, find_plateau(curve)))
    shown = [drawing for drawing in parsable.lines if len(np.asarray(drawing.get_xdata())) == 9]
    assert np.asarray(shown[0].get_ydata()) == pytest.approx([1 - (8 - cut) / 200 for cut in range(9)])
    low, high = parsable.get_ylim()
    assert low <= 0 and high >= 1
    free = Curve(curve.samples.assign(parsable=None), 8)
    _, parsable, _ = drawn(curve_figure(free, find_plateau(free)))
    assert [text.get_text() for text in parsable.texts] == ["answers of free words"]


def test_one_task_is_not_drawn_twice() -> None:
    curve = scan(8, ["pope"])
    figure = curve_figure(curve, find_plateau(curve))
    assert len([name for name in legend(figure) if name.startswith("pope")]) == 1
    assert not any("mean over" in name for name in legend(figure))


def test_without_a_plateau_the_plot_says_why_and_shades_nothing() -> None:
    curve = scan(8, NINE, flat=True)
    figure = curve_figure(curve, find_plateau(curve))
    assert all(spans(axes) == {} for axes in drawn(figure))
    assert figure.get_suptitle().startswith("No plateau can be located: the blind model")
    assert not any("modal" in name for name in legend(figure))


@pytest.mark.parametrize(("closed_to", "reader"), [("question", "the question"), ("last", "the last token")])
def test_closed_to_some_of_the_text_no_stage_is_named(closed_to: ClosedTo, reader: str) -> None:
    curve = scan(8, NINE)
    figure = curve_figure(curve, find_plateau(curve, closed_to=closed_to, kl_threshold=0))
    name = f"{reader} no longer needs to see the image"
    assert all(spans(axes) == {name: (4, 8)} for axes in drawn(figure))
    assert f"{name}: layers 4:8" in legend(figure)
    assert figure.get_suptitle().startswith(
        f"Image closed to {reader} alone: not needed from layer 4 of 8 on (1800 doc"
    )
    kl = drawn(figure)[2]
    assert f"the image is closed to {reader} from it on (0: in every layer, 8: unmasked)" in kl.get_xlabel()
    assert [text.get_text() for text in kl.texts] == ["KL rule: no cut"]
    written = " ".join([*legend(figure), figure.get_suptitle(), *(axes.get_xlabel() for axes in figure.axes)])
    assert not any(word in written for word in ("modal", "plateau", "Plateau", "blind"))
    flat = scan(8, NINE, flat=True)
    free = curve_figure(flat, find_plateau(flat, closed_to=closed_to))
    assert free.get_suptitle().startswith(f"Image closed to {reader} alone: not needed in any of 8 layers")
    assert spans(drawn(free)[0]) == {name: (0, 8)}


def test_without_cut_0_nothing_is_said_of_the_early_stages() -> None:
    curve = scan(8, NINE, cuts=[2, 3, 4, 6, 8])
    stages = find_plateau(curve)
    assert stages.plateau == (4, 8)
    figure = curve_figure(curve, stages)
    assert spans(figure.axes[0]) == {"modal degradation (plateau)": (4, 8)}
    assert np.asarray(line(figure.axes[0], "mean over").get_xdata()).tolist() == [2, 3, 4, 6, 8]


@pytest.mark.parametrize("layers", [8, 36])
@pytest.mark.parametrize("tasks", [["pope"], NINE])
def test_files(tmp_path: Path, layers: int, tasks: list[str]) -> None:
    curve = scan(layers, tasks)
    stages: Stages = find_plateau(curve)
    png, svg = plot_curve(curve, stages, tmp_path / "curve.png"), plot_curve(curve, stages, str(tmp_path / "curve.svg"))
    with Image.open(png) as image:
        assert image.format == "PNG"
        assert len(set(image.convert("L").tobytes())) > 20  # not blank
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    before: dict[Path, Any] = {path: path.read_bytes() for path in (png, svg)}
    for path, content in before.items():
        plot_curve(curve, stages, path)
        assert path.read_bytes() == content


def test_names_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    """No formula between dollar signs, no name left out for its underscore, no control in a file."""
    nasty = "_[x] $\\frac{a_b$ \x1b[31m\x07"
    written = r"_[x] $\frac{a_b$ \x1b[31m\x07"
    for tasks in ([nasty], [nasty, "pope"]):
        curve = scan(8, tasks)
        figure = curve_figure(curve, find_plateau(curve))
        figure.draw_without_rendering()
        texts = [text for legend in figure.legends for text in legend.get_texts()]
        said = [text.get_text() for text in texts]
        assert any(text.startswith(written) for text in said) and not any("xxx" in text for text in said)
        assert not any(text.get_parse_math() for text in texts)
        if len(tasks) == 1:
            assert figure._suptitle.get_text().endswith(f"{written})")  # type: ignore[attr-defined]
            assert not figure._suptitle.get_parse_math()  # type: ignore[attr-defined]
        ElementTree.parse(plot_curve(curve, find_plateau(curve), tmp_path / "curve.svg"))


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    curve = scan(8, ["pope"])
    with pytest.raises(ValueError, match=r"found suffix '\.pdf', expected \.png or \.svg"):
        plot_curve(curve, find_plateau(curve), tmp_path / "curve.pdf")
    assert not list(tmp_path.iterdir())


def test_no_pyplot() -> None:
    code = "import sys, plam_eval.probing.plot; print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
