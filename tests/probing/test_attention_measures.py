from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plam_eval.errors import InputError
from plam_eval.probing.attention_measures import (
    coverage,
    entropy,
    measures,
    other_boxes,
    sink_dimensions,
    sink_tokens,
    spatial_entropy,
)
from plam_eval.probing.token_grid import TILES, WHOLE, ImageTokens

SIDE, TEXT_BEFORE, KEYS = 6, 3, 3 + 36 + 5
BOX = (20.0, 10.0, 40.0, 40.0)
"""In an image of 60 x 60 pixels with 6 x 6 cells: cells of rows 1 to 3 and columns 2 and 3."""


def square(start: int = TEXT_BEFORE, side: int = SIDE, plane: int = WHOLE) -> ImageTokens:
    row, column = (each.ravel() for each in np.mgrid[:side, :side])
    cell = 60 / side
    boxes = np.stack([column * cell, row * cell, (column + 1) * cell, (row + 1) * cell], 1)
    return ImageTokens(start + np.arange(side**2), np.full(side**2, plane), row, column, boxes, (60, 60))


def row_of(image_values, text: float = 0.0) -> np.ndarray:
    row = np.full(KEYS, text)
    row[TEXT_BEFORE : TEXT_BEFORE + SIDE**2] = np.ravel(image_values)
    return row


def test_uniform_attention_is_chance():
    image = square()
    uniform = np.full((2, 3, KEYS), 1 / KEYS, np.float32)  # as rows of layers and heads are
    got = measures(uniform, [image], boxes=[[BOX]])
    np.testing.assert_allclose(got.image_share, np.full((2, 3), 36 / KEYS), rtol=1e-6)
    np.testing.assert_allclose(got.entropy, np.log(36), rtol=1e-6)
    np.testing.assert_allclose(got.chance, 6 / 36)
    np.testing.assert_allclose(got.box_share_of_image, 6 / 36, rtol=1e-6)
    np.testing.assert_allclose(got.box_share, 6 / KEYS, rtol=1e-6)
    np.testing.assert_allclose(got.over_chance, 0, atol=1e-6)
    assert np.isnan(got.spatial_entropy).all()  # nothing stands out
    rounded = uniform * (1 + 1e-7 * np.random.default_rng(0).standard_normal(KEYS))
    assert np.isnan(measures(rounded, [image]).spatial_entropy).all()
    assert (got.sink_share == 0).all()


def test_attention_planted_in_a_box_is_all_in_it():
    planted = np.zeros((SIDE, SIDE))
    planted[1:4, 2:4] = 1
    got = measures(row_of(planted, text=1.0), [square()], boxes=[[BOX]])
    assert got.box_share_of_image == pytest.approx(1)
    assert got.over_chance == pytest.approx(np.log(6))
    assert got.spatial_entropy == 0 and got.entropy == pytest.approx(np.log(6))
    elsewhere = measures(row_of(1 - planted), [square()], boxes=[[BOX]])
    assert elsewhere.box_share_of_image == 0 and elsewhere.over_chance == -np.inf


def test_two_denominators_tell_text_that_draws_attention_from_a_move_within_the_image():
    values = np.random.default_rng(0).random((SIDE, SIDE))
    little, much = (measures(row_of(values, text), [square()], boxes=[[BOX]]) for text in (0.1, 10.0))
    assert much.image_share < little.image_share / 5 and much.box_share < little.box_share / 5
    for name in ("entropy", "spatial_entropy", "box_share_of_image", "over_chance"):
        assert getattr(much, name) == pytest.approx(getattr(little, name)), name
    assert little.box_share == pytest.approx(little.image_share * little.box_share_of_image)


def test_permuted_boxes_are_no_effect():
    """Every document looks into its own box and a little everywhere else: by another document's box that is chance."""
    rng, image, rows, boxes = np.random.default_rng(0), square(), [], []
    for _ in range(400):
        x, y = rng.integers(0, 5, 2) * 10
        boxes.append([[(float(x), float(y), x + 20.0, y + 20.0)]])
        values = rng.gamma(1.0, size=(SIDE, SIDE))
        values[y // 10 : y // 10 + 2, x // 10 : x // 10 + 2] += 3
        rows.append(row_of(values, 0.5))
    own, others = (
        np.array([measures(r, [image], boxes=b).box_share_of_image for r, b in zip(rows, each, strict=True)])
        for each in (boxes, other_boxes(boxes, seed=1))
    )
    shares = np.array([row[image.positions] / row[image.positions].sum() for row in rows])
    mean = (shares @ np.array([coverage(image, b[0]) for b in boxes]).T).mean()  # of all pairs
    assert own.mean() > 2 * mean
    assert abs(others.mean() - mean) < 3 * others.std() / np.sqrt(len(others))


def test_boxes_of_others_are_never_ones_own():
    boxes = [[number] for number in range(7)]
    for seed in range(20):
        drawn = other_boxes(boxes, seed)
        assert sorted(drawn) == boxes and all(a != b for a, b in zip(boxes, drawn, strict=True))
    with pytest.raises(InputError, match="at least two"):
        other_boxes([1])


def test_cells_that_a_box_cuts_count_for_what_is_in_it():
    inside = coverage(square(), [(5.0, 0.0, 20.0, 5.0), (15.0, 0.0, 25.0, 10.0)])
    assert inside.reshape(SIDE, SIDE)[0].tolist() == [0.25, 0.75, 0.5, 0, 0, 0] and inside.sum() == 1.5
    # Where boxes overlap, once; where they leave the image, what is inside of it.
    np.testing.assert_array_equal(coverage(square(), [BOX, BOX, (25, 15, 35, 20)]), coverage(square(), [BOX]))
    assert coverage(square(), [(-50.0, -50.0, 10.0, 10.0)]).sum() == 1
    assert coverage(square(), [(70.0, 0.0, 90.0, 10.0)]).sum() == 0


def test_large_boxes_are_dropped():
    assert coverage(square(), [(0.0, 0.0, 60.0, 30.0)]).sum() == 18  # half of the image
    assert coverage(square(), [(0.0, 0.0, 60.0, 30.1)]).sum() == 0
    uniform = np.ones(KEYS)
    got = measures(uniform, [square()], boxes=[[(0.0, 0.0, 60.0, 40.0)]])
    assert np.isnan([got.box_share, got.box_share_of_image, got.chance, got.over_chance]).all()
    both = measures(uniform, [square()], boxes=[[BOX, (0.0, 0.0, 60.0, 40.0)]])
    assert both.chance == pytest.approx(6 / 36)


def test_random_boxes_cover_what_pixels_say():
    rng = np.random.default_rng(3)
    for _ in range(20):
        edges = np.sort(rng.integers(0, 31, (rng.integers(1, 6), 2, 2)) * 1.0, axis=1)
        boxes = [(x0, y0, x1, y1) for (x0, y0), (x1, y1) in edges if x0 < x1 and y0 < y1]
        pixels = np.zeros((60, 60))
        for x0, y0, x1, y1 in boxes:
            pixels[int(y0) : int(y1), int(x0) : int(x1)] = 1
        expected = pixels.reshape(6, 10, 6, 10).mean((1, 3)).ravel()
        np.testing.assert_allclose(coverage(square(), boxes), expected, atol=1e-12)


@pytest.mark.parametrize("box", [(10, 0, 10, 5), (0, 5, 10, 0), (0, 0, float("nan"), 5)])
def test_a_box_that_is_none_is_refused(box):
    with pytest.raises(InputError, match="expected left, top, right, bottom in pixels"):
        coverage(square(), [box])


def test_spatial_entropy_counts_separate_regions():
    image, values = square(), np.zeros((SIDE, SIDE))
    values[0, 0] = values[1, 1] = 1  # diagonal neighbours: one region
    assert spatial_entropy(values.ravel(), [image]) == 0
    values[5, 5] = 2
    shares = np.array([2 * (1 - 4 / 36), 2 - 4 / 36])  # what is above the mean
    shares /= shares.sum()
    assert spatial_entropy(values.ravel(), [image]) == pytest.approx(-(shares * np.log(shares)).sum())
    values[5, 5], values[0, 5] = 1, 1
    shares = np.array([2, 1, 1]) / 4
    assert spatial_entropy(values.ravel(), [image]) == pytest.approx(-(shares * np.log(shares)).sum())
    assert spatial_entropy(np.stack([values.ravel()] * 2), [image]).shape == (2,)


def test_regions_do_not_reach_from_one_plane_into_another():
    whole, tiles = square(side=2), square(TEXT_BEFORE + 4, side=4, plane=TILES)
    values = np.zeros(20)
    values[3] = values[4] = 1  # the last token of the one and the first of the other
    assert spatial_entropy(values, [whole, tiles]) == pytest.approx(np.log(2))
    names = ("positions", "plane", "row", "column", "boxes")
    both: dict[str, Any] = {name: np.concatenate([getattr(whole, name), getattr(tiles, name)]) for name in names}
    joined = ImageTokens(**both, size=(60, 60))
    assert spatial_entropy(values, [joined]) == pytest.approx(np.log(2))
    assert joined.image(values, TILES)[0, 0] == 1 and joined.image(values, WHOLE)[1, 1] == 1


def test_tokens_of_no_place_are_image_but_in_no_box():
    image = square()
    nowhere = {name: np.append(getattr(image, name), -1) for name in ("plane", "row", "column")}
    newline = ImageTokens(
        positions=np.append(image.positions, image.positions[-1] + 1),
        boxes=np.concatenate([image.boxes, np.full((1, 4), np.nan)]),
        size=(60, 60),
        **nowhere,
    )
    got = measures(np.full(KEYS, 1 / KEYS), [newline], boxes=[[BOX]])
    assert got.image_share == pytest.approx(37 / KEYS) and got.entropy == pytest.approx(np.log(37))
    assert got.over_chance == pytest.approx(0) and got.chance == pytest.approx(6 / 36)


def test_without_sinks_nothing_is_left_of_them():
    values = np.ones((SIDE, SIDE))
    values[0, 0] = 1000  # as Qwen-VL's top left
    row, sunk = row_of(values, text=1.0), np.zeros(KEYS, bool)
    row[0], sunk[[0, TEXT_BEFORE]] = 5000, True
    drawn = measures(row, [square()], boxes=[[BOX]], sinks=sunk)
    assert drawn.sink_share == pytest.approx(1000 / row.sum())  # text sinks are none of the image
    assert drawn.sink_share_of_image == pytest.approx(1000 / 1035)
    assert drawn.over_chance < -3 and drawn.entropy < 0.5
    rest = measures(row, [square()], boxes=[[BOX]], sinks=sunk, without=sunk)
    assert rest.sink_share == 0 and rest.image_share == pytest.approx(35 / 42)
    assert rest.entropy == pytest.approx(np.log(35)) and rest.chance == pytest.approx(6 / 35)
    assert rest.over_chance == pytest.approx(0) and np.isnan(rest.spatial_entropy)
    by_layer = measures(np.stack([row, row]), [square()], boxes=[[BOX]], without=np.stack([sunk, ~sunk & sunk]))
    assert by_layer.over_chance.tolist() == pytest.approx([0, float(drawn.over_chance)])


def test_a_row_that_gives_the_image_nothing_is_not_measured():
    got = measures(row_of(np.zeros((SIDE, SIDE)), text=1.0), [square()], boxes=[[BOX]])
    assert got.image_share == 0 and got.box_share == 0
    assert np.isnan([got.entropy, got.spatial_entropy, got.box_share_of_image, got.over_chance]).all()


def test_several_images_are_measured_as_one():
    images = [square(0, 2), square(6, 2)]
    row = np.array([1, 1, 1, 1, 9, 9, 1, 1, 1, 5.0])
    got = measures(row, images, boxes=[[], [(30.0, 30.0, 60.0, 60.0)]])
    assert got.image_share == pytest.approx(12 / 30) and got.chance == pytest.approx(1 / 8)
    assert got.box_share_of_image == pytest.approx(5 / 12) and got.spatial_entropy == 0
    with pytest.raises(InputError, match="boxes are given for 1 images; expected 2"):
        measures(row, images, boxes=[[]])
    with pytest.raises(InputError, match="at least one image"):
        measures(row, [])


def test_entropy_of_known_distributions():
    assert entropy(np.array([0.5, 0.25, 0.25, 0])) == pytest.approx(1.5 * np.log(2))
    assert np.isnan(entropy(np.zeros(3))) and entropy(np.array([0.0, 7.0])) == 0


def test_sinks_are_massive_in_the_dimensions_in_which_text_is():
    text = np.array([True, True, False, False, False])
    entries = [
        np.array([[2, 0, 7], [3, 0, 7], [3, 3, 7], [3, 4, 9]]),  # (layer, token, dimension)
        np.array([[2, 0, 7], [2, 1, 8]]),
        np.array([[4, 2, 9]]),
    ]
    assert sink_dimensions(entries, [text] * 3) == (7,)  # 8 in one document of three, 9 in image tokens alone
    assert sink_dimensions(entries, [text] * 3, least=0.3) == (7, 8)
    sunk = sink_tokens(entries[0], (7,), layers=5, tokens=5)
    assert np.argwhere(sunk).tolist() == [[2, 0], [3, 0], [3, 3]]
    assert not sink_tokens(entries[0], (), 5, 5).any()
