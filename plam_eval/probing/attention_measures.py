"""What an attention row says: how much of it goes to the image, how spread out it is there, how much meets a box.

Pure functions of rows, of the image's token grid, and of sinks. Leading dimensions are free: rows of all layers, of all
heads, or of one. Measures are of a row; of the mean row of several heads where such a one is given.

Every share has two denominators, and both are told: all keys, where what text tokens draw counts, and the image alone.
And every measure is there with the sinks and without: sinks are tokens that draw attention whatever is asked. They are
to be found once, in the plain model, and used for every setting: a merged model would move its own yardstick.

Sharpening every softmax, as larger query and key weights do, makes attention look more focused with nothing of a base
model in it. No difference between a plain and a merged model is to be read off these measures without the control
`self_scale` beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from plam_eval.bootstrap import Floats
from plam_eval.errors import InputError
from plam_eval.probing.token_grid import TILES, WHOLE, ImageTokens

Mask = NDArray[np.bool_]
Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the image."""

LARGEST_BOX = 0.5
"""A box over more than this share of the image says nothing of where a model looks."""
_EIGHT = np.ones((3, 3), int)


@dataclass(frozen=True, eq=False)
class Measures:
    """Measures of rows over one image, or over several as one; all of the rows' leading shape (...).

    NaN where there is nothing to measure: a row without any attention to the image, a document without boxes.

    Attributes:
        image_share: attention to the image's tokens, of that to all keys.
        entropy: nats; of the row over the image's tokens, renormalised there. From 0 to ln(tokens).
        spatial_entropy: nats; see `spatial_entropy`.
        box_share: attention to cells inside boxes, of that to all keys.
        box_share_of_image: the same of the attention to the image's tokens that are of a place in it.
        chance: `box_share_of_image` of a row that looks at every token alike: the share of the tokens inside boxes.
        over_chance: ln(box_share_of_image / chance); 0 is chance.
        sink_share: attention to sinks among the image's tokens, of that to all keys; 0 without any.
        sink_share_of_image: the same of the attention to the image's tokens.
    """

    image_share: Floats
    entropy: Floats
    spatial_entropy: Floats
    box_share: Floats
    box_share_of_image: Floats
    chance: Floats
    over_chance: Floats
    sink_share: Floats
    sink_share_of_image: Floats


def measures(
    rows: NDArray[Any],
    images: Sequence[ImageTokens],
    *,
    boxes: Sequence[Sequence[Box]] | None = None,
    sinks: Mask | None = None,
    without: Mask | None = None,
) -> Measures:
    """Every measure of attention rows of one document.

    Args:
        rows: (..., keys); attention, of any sum.
        images: the document's, from `token_grids`.
        boxes: of each image; none where a document has none.
        sinks: (..., keys) bool; for `sink_share`. Of the plain model, for every setting.
        without: (..., keys) bool; keys that are left out of everything, as if the row gave them nothing: the same
            sinks, for the measures without them. Their cells then count neither as places nor for chance.

    Raises:
        InputError: no image, or boxes for another number of images.
    """
    if not images:
        raise InputError("a document without images has no attention to one; expected at least one image")
    if boxes is not None and len(boxes) != len(images):
        raise InputError(f"boxes are given for {len(boxes)} images; expected {len(images)}")
    rows, seen = _rows_without(rows, without)
    where = np.concatenate([image.positions for image in images])
    everything, tokens, seen = rows.sum(-1), rows[..., where], seen[..., where]
    of_image = tokens.sum(-1)
    sunk = np.zeros(tokens.shape, bool) if sinks is None else np.broadcast_to(sinks, rows.shape)[..., where]
    sink = np.where(sunk, tokens, 0.0).sum(-1)
    box, share, chance = in_boxes(rows, images, boxes or [()] * len(images), without=without)
    with np.errstate(divide="ignore"):
        over = np.log(_ratio(share, chance))
    return Measures(
        image_share=_ratio(of_image, everything),
        entropy=entropy(tokens),
        spatial_entropy=spatial_entropy(tokens, images, seen),
        box_share=box,
        box_share_of_image=share,
        chance=chance,
        over_chance=over,
        sink_share=_ratio(sink, everything),
        sink_share_of_image=_ratio(sink, of_image),
    )


def in_boxes(
    rows: NDArray[Any], images: Sequence[ImageTokens], boxes: Sequence[Sequence[Box]], *, without: Mask | None = None
) -> tuple[Floats, Floats, Floats]:
    """`box_share`, `box_share_of_image` and `chance` of `Measures`, each of the rows' leading shape.

    Args:
        rows: (..., keys); attention, of any sum.
        images: the document's, from `token_grids`.
        boxes: of each image; NaN comes of none, and of boxes that are all dropped.
        without: (..., keys) bool; as for `measures`.
    """
    rows, seen = _rows_without(rows, without)
    where = np.concatenate([image.positions for image in images])
    tokens, nothing = rows[..., where], np.full(rows.shape[:-1], np.nan)
    inside = np.concatenate([coverage(image, own) for image, own in zip(images, boxes, strict=True)])
    if not inside.any():
        return nothing, nothing, nothing
    placed = seen[..., where] & np.concatenate([image.placed for image in images])
    box = (tokens * inside).sum(-1)
    chance = _ratio(np.where(placed, inside, 0.0).sum(-1), placed.sum(-1))
    return _ratio(box, rows.sum(-1)), _ratio(box, np.where(placed, tokens, 0.0).sum(-1)), chance


def _rows_without(rows: NDArray[Any], without: Mask | None) -> tuple[Floats, Mask]:
    """Rows that give what is left out nothing, and which keys are not left out, both of the rows' shape."""
    rows = np.asarray(rows, float)
    seen = np.ones(rows.shape, bool) if without is None else ~np.broadcast_to(without, rows.shape)
    return np.where(seen, rows, 0.0), seen


def entropy(values: NDArray[Any]) -> Floats:
    """Entropy in nats of values renormalised to sum to 1, (...); NaN where they sum to 0.

    Args:
        values: (..., tokens), none negative.
    """
    shares = _ratio(values, np.sum(values, -1, keepdims=True))
    terms = np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1.0)), shares)
    return np.asarray(0.0 - terms.sum(-1))


def spatial_entropy(values: NDArray[Any], images: Sequence[ImageTokens], seen: Mask | None = None) -> Floats:
    """Over how many separate regions attention is spread, in nats: (...).

    What is above the mean of the image's tokens is divided into 8-connected components; the entropy of their shares of
    it. One region has 0, n equal ones ln(n). So LocalizationHeads, arXiv 2503.06287, for one square grid; here the mean
    is that of all placed tokens of all images, and no component reaches from one plane or image into another. NaN where
    nothing is above the mean.

    Args:
        values: (..., tokens) of the images' tokens, one image behind the other.
        images: whose tokens they are.
        seen: (..., tokens) bool; tokens that are no sinks left out; all by default. Those left out are of no region.
    """
    placed = np.concatenate([image.placed for image in images]) & (
        np.ones(values.shape, bool) if seen is None else seen
    )
    mean = _ratio(np.where(placed, values, 0.0).sum(-1), placed.sum(-1))
    above = np.where(placed, np.maximum(values - mean[..., None], 0.0), 0.0)
    above[above < 1e-6 * mean[..., None]] = 0.0  # what rounding leaves of a uniform row
    ends = np.cumsum([len(image.positions) for image in images])[:-1]
    grids = [
        image.image(own, plane)
        for image, own in zip(images, np.split(above, ends, axis=-1), strict=True)
        for plane in (WHOLE, TILES)
        if image.shape(plane) != (0, 0)
    ]
    result = np.empty(mean.shape)
    for index in np.ndindex(mean.shape):
        masses = [mass for grid in grids for mass in _components(grid[index])]
        result[index] = entropy(np.array(masses)) if masses else np.nan
    return result


def _components(grid: Floats) -> list[float]:
    """The sums of a grid's 8-connected components."""
    labels, count = ndimage.label(grid > 0, structure=_EIGHT)
    return [] if not count else list(np.atleast_1d(ndimage.sum_labels(grid, labels, np.arange(1, count + 1))))


def coverage(image: ImageTokens, boxes: Iterable[Box]) -> Floats:
    """Which share of each token's cell lies inside boxes, (tokens,); 0 for tokens of no place.

    Boxes over more than half of the image are dropped. What two boxes share counts once.

    Args:
        image: the tokens.
        boxes: left, top, right, bottom in pixels of the image.

    Raises:
        InputError: a box that is none.
    """
    width, height = image.size
    kept = []
    for box in boxes:
        left, top, right, bottom = (float(edge) for edge in box)
        if not (left < right and top < bottom):  # NaN as well
            raise InputError(f"found the box {tuple(box)}; expected left, top, right, bottom in pixels")
        left, right = (min(max(edge, 0.0), width) for edge in (left, right))
        top, bottom = (min(max(edge, 0.0), height) for edge in (top, bottom))
        if 0 < (right - left) * (bottom - top) <= LARGEST_BOX * width * height:
            kept.append((left, top, right, bottom))
    x0, y0, x1, y1 = image.boxes.T
    inside = np.zeros(len(image.positions))
    for left, top, right, bottom in _disjoint(kept):
        shared = np.clip(np.minimum(x1, right) - np.maximum(x0, left), 0, None)
        inside += np.nan_to_num(shared * np.clip(np.minimum(y1, bottom) - np.maximum(y0, top), 0, None))
    area = np.nan_to_num((x1 - x0) * (y1 - y0))
    return np.asarray(np.clip(np.divide(inside, area, out=np.zeros_like(inside), where=area > 0), 0, 1))


def _disjoint(boxes: Sequence[Box]) -> list[Box]:
    """Rectangles that share nothing and cover what the boxes cover."""
    across = sorted({edge for box in boxes for edge in (box[0], box[2])})
    rectangles = []
    for left, right in pairwise(across):
        spans = sorted((box[1], box[3]) for box in boxes if box[0] <= left and right <= box[2])
        end = -np.inf
        for top, bottom in spans:
            if bottom > end:
                rectangles.append((left, max(top, end), right, bottom))
                end = bottom
    return rectangles


def other_boxes(boxes: Sequence[Any], seed: int = 0) -> list[Any]:
    """A control: the boxes of another document for each, by which attention should be at chance.

    Args:
        boxes: of each document; for images of one size.
        seed: of the draw.

    Raises:
        InputError: of fewer than two documents.
    """
    if len(boxes) < 2:
        raise InputError(f"boxes of {len(boxes)} documents cannot be exchanged; expected at least two")
    order = np.random.default_rng(seed).permutation(len(boxes))
    others = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))  # one cycle: nobody keeps its own
    return [boxes[others[index]] for index in range(len(boxes))]


# ---- sinks -----------------------------------------------------------------------------------------------------------


def sink_dimensions(massive: Iterable[NDArray[np.int64]], texts: Iterable[Mask], least: float = 0.5) -> tuple[int, ...]:
    """The dimensions of a model's hidden states in which its sinks are massive.

    Those in which text tokens, its first one foremost, are massive. VisAttnSink (ICLR 2025) takes the ones that are
    known of the language model, {1415, 2533} for Llama-2-7B; here they are looked for in the plain model.

    Args:
        massive: of each document, (entries, 3) of layer, token and dimension.
        texts: of each document, (tokens,) bool; the text tokens.
        least: in which share of the documents a dimension has to be massive.
    """
    counts, documents = dict[int, int](), 0
    for entries, text in zip(massive, texts, strict=True):
        documents += 1
        for dimension in np.unique(entries[text[entries[:, 1]], 2]).tolist():
            counts[dimension] = counts.get(dimension, 0) + 1
    return tuple(sorted(dimension for dimension, count in counts.items() if count >= least * documents))


def sink_tokens(massive: NDArray[np.int64], dimensions: Iterable[int], layers: int, tokens: int) -> Mask:
    """The sinks of one document, (layers, tokens) bool: tokens that are massive in a sink dimension.

    The hidden state x that enters a layer has max over the sink dimensions of abs(x_d) / rms(x) above 20: VisAttnSink,
    ICLR 2025. To be found once, in the plain model.

    Args:
        massive: (entries, 3) of layer, token and dimension.
        dimensions: from `sink_dimensions`.
        layers: of the decoder.
        tokens: of the prompt.
    """
    result = np.zeros((layers, tokens), bool)
    own = massive[np.isin(massive[:, 2], list(dimensions))]
    result[own[:, 0], own[:, 1]] = True
    return result


def _ratio(above: Any, below: Any) -> Floats:
    """Their ratio, NaN where the denominator is 0."""
    above, below = np.broadcast_arrays(np.asarray(above, float), np.asarray(below, float))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)
