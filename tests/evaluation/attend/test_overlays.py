"""Pictures of documents: heat lies where the model looks, on one scale, with every word as it was written."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from plam_eval.errors import InputError
from plam_eval.evaluation.attend.overlays import LONGEST_TEXT, overlay_figure
from plam_eval.evaluation.attend.shown import ShownDocument
from plam_eval.figures import save_figure

SETTINGS = ["plain", "merged", "self_scale"]


def document(
    size: tuple[int, int],
    frame: tuple[float, float, float, float],
    square: tuple[int, int, int, int],
    *,
    grid: int = 8,
    settings: list[str] = SETTINGS,
    **words: Any,
) -> ShownDocument:
    """A dark image with one bright square, which every setting looks at in layer 1, and at nothing in layer 0."""
    width, height = size
    left, top, right, bottom = square
    image = np.full((height, width, 3), 20, np.uint8)
    image[top:bottom, left:right] = 255
    x = frame[0] + (np.arange(grid) + 0.5) * (frame[2] - frame[0]) / grid
    y = frame[1] + (np.arange(grid) + 0.5) * (frame[3] - frame[1]) / grid
    inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
    assert inside.any() and not inside.all()
    maps = {
        name: np.stack([np.full((grid, grid), 1e-3), 0.02 * inside * (1 + 0.5 * number)]).astype(np.float32)
        for number, name in enumerate(settings)
    }
    about = {"question": "What?", "target": "white", "answers": dict.fromkeys(settings, "white")} | words
    return ShownDocument("gqa", 3, image=image, size=size, boxes=[square], maps=maps, frame=frame, **about)


def pixels(figure: Figure) -> NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)  # type: ignore[attr-defined]


def panel(figure: Figure, title: str) -> Axes:
    (axes,) = [axes for axes in figure.axes if axes.get_title() == title]
    return axes


def hot(figure: Figure, title: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is drawn in strong colours in a panel, in pixels of the document's image."""
    image, axes = pixels(figure), panel(figure, title)
    height = len(image)
    box = axes.get_window_extent()
    rows, columns = np.mgrid[int(height - box.y1) + 2 : int(height - box.y0) - 1, int(box.x0) + 2 : int(box.x1) - 1]
    red, _, blue = np.moveaxis(image[rows, columns], -1, 0)
    strong = red - blue > 40
    assert strong.any()
    places = axes.transData.inverted().transform(
        np.stack([columns[strong] + 0.5, height - rows[strong] - 0.5], axis=1).astype(float)
    )
    (left, top), (right, bottom) = places.min(0), places.max(0)
    return left, top, right, bottom


CASES = {
    "wide": ((160, 80), (0.0, 0.0, 160.0, 80.0), (100, 20, 140, 40)),
    "tall": ((80, 160), (0.0, 0.0, 80.0, 160.0), (10, 100, 30, 140)),
    "padded": ((160, 80), (0.0, -40.0, 160.0, 120.0), (100, 20, 140, 40)),
    "padded at the end": ((80, 160), (0.0, 0.0, 160.0, 160.0), (20, 100, 60, 140)),
    "cropped": ((160, 80), (40.0, 0.0, 120.0, 80.0), (90, 20, 110, 40)),
    "cropped and tall": ((80, 160), (0.0, 40.0, 80.0, 120.0), (20, 90, 40, 110)),
}


@pytest.mark.parametrize("case", CASES)
def test_heat_lies_on_the_square(case: str) -> None:
    size, frame, square = CASES[case]
    figure = overlay_figure(document(size, frame, square), [1], SETTINGS)
    for title in ("plain", "merged"):
        assert hot(figure, title) == pytest.approx(square, abs=2.5), title
    limits = panel(figure, "plain").axis()
    assert (limits[0], limits[1]) == (min(0, frame[0]), max(size[0], frame[2]))
    assert (limits[3], limits[2]) == (min(0, frame[1]), max(size[1], frame[3]))


def test_the_image_and_its_box_lie_where_they_are_in_every_panel() -> None:
    size, frame, square = CASES["padded"]
    figure = overlay_figure(document(size, frame, square), [1], SETTINGS)
    for title in ("image", *SETTINGS, "merged minus plain"):
        axes = panel(figure, title)
        assert axes.images[0].get_extent() == [0, 160, 80, 0]
        assert [[*patch.get_bbox().extents] for patch in axes.patches if isinstance(patch, Rectangle)] == [
            [100, 20, 140, 40]
        ] * 2
    assert len(panel(figure, "image").images) == 1


def test_one_scale_for_all_settings_and_one_for_their_difference() -> None:
    shown = document(*CASES["wide"])
    figure = overlay_figure(shown, [1], SETTINGS)
    maps = [panel(figure, name).images[1] for name in SETTINGS]
    assert [drawing.get_clim() for drawing in maps] == [(0, pytest.approx(0.04))] * 3
    for name, drawing in zip(SETTINGS, maps, strict=True):
        assert np.asarray(drawing.get_array()) == pytest.approx(shown.maps[name][1])
    change = panel(figure, "merged minus plain").images[1]
    assert np.asarray(change.get_array()) == pytest.approx(shown.maps["merged"][1] - shown.maps["plain"][1])
    assert change.get_clim() == (pytest.approx(-0.01), pytest.approx(0.01))
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert "attention to a cell, of that to all keys (root scale)" in labels and "difference" in labels
    assert not [
        axes for axes in overlay_figure(shown, [1], ["plain", "self_scale"]).axes if "minus" in axes.get_title()
    ]


def test_a_sink_does_not_hide_the_rest() -> None:
    shown = document(*CASES["wide"], grid=16)
    for maps in shown.maps.values():
        maps[1] += 1e-3
        maps[1, 0, 0] = 0.9
    figure = overlay_figure(shown, [1], SETTINGS)
    assert panel(figure, "plain").images[1].get_clim()[1] < 0.2
    bars = [axes for axes in figure.axes if axes.get_ylabel().startswith("attention")]
    assert len(bars) == 1


def test_layers_are_averaged_and_named() -> None:
    shown = document(*CASES["wide"])
    figure = overlay_figure(shown, [0, 1], SETTINGS)
    assert np.asarray(panel(figure, "plain").images[1].get_array()) == pytest.approx(shown.maps["plain"].mean(0))
    assert figure.get_supxlabel() == "mean of layers 0, 1; right answer: white"
    named = overlay_figure(shown, [1], SETTINGS, how="layer 1, chosen on other documents")
    assert named.get_supxlabel() == "layer 1, chosen on other documents; right answer: white"


def test_answers_are_under_their_panels_and_the_question_above() -> None:
    answers = {"plain": "black", "merged": "white", "self_scale": "grey"}
    figure = overlay_figure(document(*CASES["wide"], answers=answers, question="Which?\nSay it."), [1], SETTINGS)
    assert {name: panel(figure, name).get_xlabel() for name in SETTINGS} == answers
    assert figure.get_suptitle() == "Which?\nSay it."


@pytest.mark.parametrize(
    "text",
    [
        "word " * 2000,
        "x" * 5000,
        "W" * 5000,
        "左の写真には何が写っていますか" * 100,
        "مرحبا كيف الحال " * 20,
        "$\\frac{1}{2}$ _a_ <b> \x1b[31m \u202e \ud800 \N{GRINNING FACE}",
        "line\n" * 50,
        "",
        " \n ",
    ],
)
def test_any_text_is_drawn_plainly_within_the_figure(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shown = document(*CASES["wide"], question=text, target=text, answers=dict.fromkeys(SETTINGS, text))
    with caplog.at_level(logging.WARNING):
        figure = overlay_figure(shown, [1], SETTINGS)
        pixels(figure)
        save_figure(figure, tmp_path / "overlay.png")
    assert not caplog.records
    assert len(figure.get_suptitle()) <= LONGEST_TEXT + 20
    width, height = figure.get_size_inches() * figure.dpi
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for written in figure.texts:
        box = written.get_window_extent(renderer)
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height
        assert not written.get_parse_math()
    panels = [panel(figure, name) for name in SETTINGS]
    for axes in panels:
        below = axes.xaxis.label.get_window_extent(renderer)
        assert below.width <= 1.05 * axes.get_window_extent(renderer).width
    assert "\x1b" not in figure.get_suptitle() and "\u202e" not in figure.get_suptitle()
    if "frac" in text:
        assert figure.get_suptitle().startswith("$\\frac{1}{2}$ _a_ <b> \\x1b[31m \\u202e \\ud800")


@pytest.mark.parametrize("number", [1, 2, 7])
def test_any_number_of_settings(number: int, tmp_path: Path) -> None:
    names = ["plain", "merged", "self_scale", "a", "b", "c", "_d"][:number]
    figure = overlay_figure(document(*CASES["tall"], settings=names), [1], names)
    pixels(figure)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["image", *names, *(["merged minus plain"] if number > 1 else [])]


def test_maps_of_nothing_are_drawn() -> None:
    shown = document(*CASES["wide"])
    for maps in shown.maps.values():
        maps[:] = 0
        maps[1, 0] = np.nan
    pixels(overlay_figure(shown, [1], SETTINGS))


def test_what_a_document_has_not_is_refused() -> None:
    shown = document(*CASES["wide"])
    with pytest.raises(InputError) as error:
        overlay_figure(shown, [1, 2], ["plain", "mergd"])
    assert error.value.problems == [
        "setting 'mergd' is not drawn of this document (did you mean merged?)",
        "layer 2 is none of its 2",
    ]
    with pytest.raises(InputError, match="no settings or no layers"):
        overlay_figure(shown, [], SETTINGS)
