"""What is measured of one document under one setting, and how it is written into a line of a store."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plam_eval.evaluation.attend.folder import MEASURES, WITH_SINKS, WITHOUT_SINKS
from plam_eval.probing.attention_measures import in_boxes, measures, sink_dimensions, sink_tokens
from plam_eval.probing.token_grid import TILES, WHOLE, ImageTokens

if TYPE_CHECKING:
    from plam_eval.harness.task_row import Box, Boxes
    from plam_eval.probing.attention import AttentionRows

SINKS = (WITH_SINKS, WITHOUT_SINKS)
"""What the first dimension of the measures of a document is of."""


def sinks_of(rows: AttentionRows) -> NDArray[np.int64]:
    """The sinks of the one document in a batch, (sinks, 2) of layer and token: to be asked of the plain model.

    Tokens that are massive in a dimension in which one of the document's text tokens is.

    Args:
        rows: with massive activations.
    """
    massive, text = rows.massive_of(0), rows.text_of(0)
    return np.argwhere(sink_tokens(massive, sink_dimensions([massive], [text]), len(rows.weights), len(text)))


def measured(
    rows: AttentionRows,
    images: Sequence[ImageTokens],
    sinks: NDArray[np.int64],
    boxes: Boxes | None,
    others: Boxes | None,
) -> NDArray[np.float32]:
    """The measures of the one document in a batch, (`SINKS`, `MEASURES`, layers); of several rows their mean.

    NaN where there is nothing to measure, as in an answer of a single token, which is never fed back.

    Args:
        rows: of one setting, heads averaged.
        images: of the document.
        sinks: (sinks, 2) of layer and token; the plain model's.
        boxes: none where the dataset has none.
        others: those of another document.
    """
    own = rows.rows_of(0)[:, 0]
    layers, count, keys = own.shape
    result = np.full((len(SINKS), len(MEASURES), layers), np.nan, np.float32)
    if not count:
        return result
    sunk = np.zeros((layers, 1, keys), bool)
    sunk[sinks[:, 0], 0, sinks[:, 1]] = True
    for number, without in enumerate((None, sunk)):
        found = measures(own, images, boxes=boxes, sinks=sunk, without=without)
        nothing = np.full((layers, count), np.nan)
        _, of_image, chance = in_boxes(own, images, others, without=without) if others else (nothing,) * 3
        beside = {"other_box_share_of_image": of_image, "other_chance": chance}
        for column, name in enumerate(MEASURES):
            values = beside[name] if name in beside else getattr(found, name)
            result[number, column] = _mean(np.asarray(values, float))
    return result


def mapped(rows: AttentionRows, image: ImageTokens) -> NDArray[np.float32]:
    """Attention to each cell of an image, of that to all keys: (layers, rows, columns); of several rows their mean.

    Args:
        rows: of one setting and one document, heads averaged.
        image: whose finest plane it is.
    """
    own = rows.rows_of(0)[:, 0]
    row = _mean(own.astype(float)) if own.shape[1] else np.zeros((own.shape[0], own.shape[2]))
    return image.image(row[:, image.positions], finest(image)).astype(np.float32)


def finest(image: ImageTokens) -> int:
    """The plane of an image with the most cells, `WHOLE` or `TILES`.

    Args:
        image: with one of them at least.
    """
    return max((WHOLE, TILES), key=lambda plane: np.prod(image.shape(plane)))


def frame_of(image: ImageTokens, plane: int) -> Box:
    """Left, top, right, bottom of a plane's grid, in pixels of the image: beyond it lies padding.

    Cells are cut at the image's edges; those that are not say how large they are.

    Args:
        image: the tokens.
        plane: `WHOLE` or `TILES`.
    """
    inside = image.plane == plane
    rows, columns = image.shape(plane)
    left, right = _ends(image.boxes[inside][:, [0, 2]], image.column[inside], columns)
    top, bottom = _ends(image.boxes[inside][:, [1, 3]], image.row[inside], rows)
    return left, top, right, bottom


def _ends(edges: NDArray[np.float64], number: NDArray[np.int64], count: int) -> tuple[float, float]:
    """Where the first of `count` equal cells begins and the last one ends; the largest is whole and says it for all."""
    largest = int((edges[:, 1] - edges[:, 0]).argmax())
    first, last = edges[largest]
    start = first - number[largest] * (last - first)
    return float(start), float(start + count * (last - first))


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the second dimension, without NaN; NaN where there is nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=1))


# ---- in a line of JSON -----------------------------------------------------------------------------------------------


def packed(values: NDArray[Any]) -> str:
    """Numbers as text, to the bit of float32.

    Args:
        values: of any shape, which `unpacked` has to be told.
    """
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode("ascii")


def unpacked(text: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What `packed` was given.

    Args:
        text: as it was written.
        shape: of the numbers.

    Raises:
        ValueError, TypeError: it is no such text.
    """
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").reshape(shape)
