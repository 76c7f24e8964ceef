"""Which part of the image each image token is of: its row, its column, and its rectangle in the image's own pixels.

Every family lays out its tokens otherwise. What there is to know is read from the model's config, the processor and
what the processor gave out; where a family's model code itself places the tokens (anyres tiles, cut back to the image
and ended by newlines), that code is run, on coordinates in place of features.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from plam_eval.errors import InputError
from plam_eval.probing.decoder import ProbeError, vision_positions

Frame = tuple[float, float, float, float]
"""(left, top, right, bottom) of a grid, as shares of the image's width and height; beyond 0 to 1 lies padding."""
_WHOLE_IMAGE: Frame = (0.0, 0.0, 1.0, 1.0)
WHOLE, TILES = 0, 1
"""Planes: a view of the whole image (the only one, a base tile or a thumbnail), and the tiles side by side."""


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """The tokens of one image, in the order of the prompt.

    Attributes:
        positions: (tokens,) int64; where they are in the prompt, padding included.
        plane: (tokens,) int64; `WHOLE`, `TILES`, or -1 for a token that is of no place: a newline, a class token.
        row, column: (tokens,) int64 in the grid of the plane, -1 for a token of no place.
        boxes: (tokens, 4) float64; left, top, right, bottom of the token's cell in pixels of the image, cut at its
            edges; NaN for a token of no place. A cell of padding alone has no area.
        size: (width, height) of the image in pixels.
    """

    positions: NDArray[np.int64]
    plane: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    boxes: NDArray[np.float64]
    size: tuple[int, int]

    @property
    def placed(self) -> NDArray[np.bool_]:
        """(tokens,) bool; which are of a place in the image."""
        return np.asarray(self.plane >= 0)

    def shape(self, plane: int) -> tuple[int, int]:
        """Rows and columns of a plane; (0, 0) where the image has none.

        Args:
            plane: `WHOLE` or `TILES`.
        """
        inside = self.plane == plane
        return (int(self.row[inside].max()) + 1, int(self.column[inside].max()) + 1) if inside.any() else (0, 0)

    def image(self, values: NDArray[Any], plane: int = WHOLE) -> NDArray[Any]:
        """Values of the tokens as the grid of a plane: (..., rows, columns).

        Args:
            values: (..., tokens).
            plane: `WHOLE` or `TILES`.
        """
        inside = self.plane == plane
        grid = np.zeros((*values.shape[:-1], *self.shape(plane)), values.dtype)
        grid[..., self.row[inside], self.column[inside]] = values[..., inside]
        return grid


@dataclass(frozen=True, eq=False)
class _Cells:
    """Tokens in order: (tokens, 3) of plane, row and column, and (tokens, 4) of their rectangles as shares."""

    places: NDArray[np.int64]
    frames: NDArray[np.float64]

    @classmethod
    def grid(cls, rows: int, columns: int, frame: Frame = _WHOLE_IMAGE, plane: int = WHOLE) -> _Cells:
        """A grid that fills a frame, row by row."""
        row, column = (each.ravel() for each in np.mgrid[:rows, :columns])
        left, top, right, bottom = frame
        width, height = (right - left) / columns, (bottom - top) / rows
        corner = np.stack([left + column * width, top + row * height], 1)
        places = np.stack([np.full_like(row, plane), row, column], 1)
        return cls(places, np.concatenate([corner, corner + np.array([width, height])], 1))

    @classmethod
    def nowhere(cls, tokens: int) -> _Cells:
        """Tokens of no place."""
        return cls(np.full((tokens, 3), -1), np.full((tokens, 4), np.nan))

    def __add__(self, other: _Cells) -> _Cells:
        return _Cells(np.concatenate([self.places, other.places]), np.concatenate([self.frames, other.frames]))

    def at(self, order: NDArray[np.int64]) -> _Cells:
        return _Cells(self.places[order], self.frames[order])

    def placed(self, positions: NDArray[np.int64], size: tuple[int, int]) -> ImageTokens:
        width, height = size
        boxes = np.clip(self.frames, 0.0, 1.0) * [width, height, width, height]
        plane, row, column = self.places.T
        return ImageTokens(positions, plane, row, column, boxes, size)


@dataclass(frozen=True, eq=False)
class _Batch:
    """What the tokens of one image are told from.

    Attributes:
        count: how many vision tokens there are for each image, on average.
    """

    model: nn.Module
    processor: Any
    inputs: Mapping[str, Any]
    sizes: Sequence[tuple[int, int]]
    count: float

    @property
    def config(self) -> Any:
        return self.model.config

    def given(self, name: str) -> Any:
        value = self.inputs.get(name)
        if value is None:
            raise ProbeError(f"{type(self.model).__name__}: found no {name} in inputs; expected all the processor gave")
        return value

    def uneven(self, actual: str, expected: str) -> ProbeError:
        return ProbeError(
            f"{type(self.model).__name__}: found {actual}; expected {expected}. The images' sizes, or the processor, "
            "are not those of inputs"
        )


def token_grids(
    model: nn.Module, processor: Any, inputs: Mapping[str, Any], sizes: Sequence[tuple[int, int]]
) -> list[list[ImageTokens]]:
    """Where the image tokens of a batch of prompts are, and which part of its image each is of.

    Args:
        model: an HF MLLM.
        processor: the one that made the inputs, its image processor as it was then.
        inputs: what it gave out.
        sizes: (width, height) in pixels of every image that it was given, in the order of the prompts.

    Returns:
        For each document its images.

    Raises:
        InputError: sizes that are none.
        ProbeError: a family whose layout is not known, videos, or inputs that are not of these images.
    """
    check_grid(model)
    videos = [name for name, value in inputs.items() if "video" in name and value is not None]
    if videos:
        raise ProbeError(f"found {', '.join(videos)} in inputs; the place of video tokens is not worked out")
    wrong = [size for size in sizes if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size)]
    if wrong:
        raise InputError(f"sizes has {wrong[:3]}; expected (width, height) in pixels for each image")
    layout = _LAYOUTS[_family(model)]
    vision = [row.nonzero()[:, 0].cpu().numpy() for row in vision_positions(model, inputs["input_ids"])]
    tokens, images, documents = sum(map(len, vision)), len(sizes), []
    batch = _Batch(model, processor, inputs, sizes, tokens / max(images, 1))
    index = 0
    for positions in vision:
        own = []
        while len(positions):
            if index == images:
                raise batch.uneven(f"{tokens} image tokens for {images} images", "no more than these images have")
            cells = layout(batch, index, _run(positions))
            used = len(cells.places)
            if used > len(positions):
                raise batch.uneven(f"{len(positions)} tokens for image {index} of {sizes[index]}", f"{used}")
            own.append(cells.placed(positions[:used], sizes[index]))
            positions, index = positions[used:], index + 1
        documents.append(own)
    if index != images:
        raise batch.uneven(f"tokens of {index} images", f"those of {images}")
    return documents


def check_grid(model: nn.Module) -> None:
    """Refuse a model, or a skeleton of one, whose layout of image tokens is not known.

    Args:
        model: an HF MLLM.

    Raises:
        ProbeError: naming it, and the families that are known.
    """
    if (family := _family(model)) not in _LAYOUTS:
        raise ProbeError(
            f"{type(model).__name__} is of the family {family}, whose layout of image tokens is not known; expected "
            f"one of {', '.join(_LAYOUTS)}"
        )


def _family(model: nn.Module) -> str:
    """The model type of the config; LLaVA with a tower that takes images of any shape is Pixtral."""
    config: Any = model.config
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    return "pixtral" if config.model_type == "llava" and tower == "pixtral" else str(config.model_type)


def _run(positions: NDArray[np.int64]) -> int:
    """How many positions follow each other from the first one on."""
    ahead = positions - np.arange(len(positions))
    return len(list(next(groupby(ahead.tolist()))[1]))


# ---- the families ----------------------------------------------------------------------------------------------------


def _one_square(batch: _Batch, index: int, _: int) -> _Cells:
    """LLaVA-1.5, PaliGemma, Gemma 3: one square of tokens an image, with a class token before it or without."""
    count = int(batch.count)
    if count != batch.count:
        raise batch.uneven(f"{batch.count:.1f} image tokens an image", "as many for each")
    if getattr(batch.processor.image_processor, "do_pan_and_scan", None):
        raise ProbeError(f"{type(batch.model).__name__} with pan and scan: where its crops lie is not worked out")
    extra = 0 if math.isqrt(count) ** 2 == count else 1
    side = math.isqrt(count - extra)
    if side**2 != count - extra:
        raise batch.uneven(f"{count} tokens an image", "a square, or one more than that")
    return _Cells.nowhere(extra) + _Cells.grid(side, side, _frame(batch, batch.sizes[index]))


def _frame(batch: _Batch, size: tuple[int, int]) -> Frame:
    """What a processor that resizes and crops leaves of an image."""
    images = batch.processor.image_processor
    if getattr(images, "do_pad", None):
        raise ProbeError(f"{type(images).__name__} pads images; where they lie then is not worked out")
    width, height = size
    if images.do_resize:
        edge, tall, wide = (_side(images.size, name) for name in ("shortest_edge", "height", "width"))
        if edge is not None and _side(images.size, "longest_edge") is None:
            short = min(size)
            width, height = (edge if side == short else int(edge * side / short) for side in size)
        elif tall is not None and wide is not None:
            width, height = wide, tall
        else:
            raise ProbeError(
                f"{type(images).__name__} resizes to {images.size}; expected a shortest edge, or both sides"
            )
    if not getattr(images, "do_center_crop", None):
        return _WHOLE_IMAGE
    (left, right), (top, bottom) = (
        _cropped(side, _side(images.crop_size, name)) for side, name in ((width, "width"), (height, "height"))
    )
    return left, top, right, bottom


def _side(size: Any, name: str) -> int | None:
    value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
    return None if value is None else int(value)


def _cropped(side: int, kept: int | None) -> tuple[float, float]:
    """Start and end of what a crop in the middle keeps of a side, as shares of it."""
    if kept is None:
        return 0.0, 1.0
    start = (side - kept) // 2 if side >= kept else -((kept - side) // 2)
    return start / side, (start + kept) / side


def _merged_patches(batch: _Batch, index: int, _: int) -> _Cells:
    """Qwen-VL, GLM-4V: a grid of patches, merged to squares of `spatial_merge_size`."""
    frames, rows, columns = (int(number) for number in batch.given("image_grid_thw")[index])
    merge = int(batch.config.vision_config.spatial_merge_size)
    if frames != 1:
        raise batch.uneven(f"{frames} frames in image {index}", "one")
    return _Cells.grid(rows // merge, columns // merge)


def _rows_of_patches(batch: _Batch, index: int, _: int) -> _Cells:
    """Pixtral, Mistral 3: rows of patches, with text tokens between them."""
    height, width = (int(side) for side in batch.given("image_sizes")[index])
    side = int(batch.config.vision_config.patch_size) * int(getattr(batch.config, "spatial_merge_size", 1))
    return _Cells.grid(height // side, width // side)


def _tiles(batch: _Batch, index: int, run: int) -> _Cells:
    """InternVL: tiles row by row, each of them a square of tokens, and a thumbnail behind more than one."""
    each = int(batch.config.image_seq_length)
    tiles, side = run // each, math.isqrt(each)
    if run % each or tiles == 2 or side**2 != each:
        raise batch.uneven(f"{run} tokens for image {index}", f"tiles of {each}, and a thumbnail behind more than one")
    if tiles == 1:
        return _Cells.grid(side, side)
    width, height = batch.sizes[index]
    size = batch.processor.image_processor.size
    # Of all numbers of tiles the best was this one; what is left to tell is which arrangement of so many.
    across, down = get_optimal_tiled_canvas(
        (height, width), (_side(size, "height"), _side(size, "width")), tiles - 1, tiles - 1
    )
    order = np.arange(down * side * across * side).reshape(down, side, across, side).transpose(0, 2, 1, 3).ravel()
    return _Cells.grid(down * side, across * side, plane=TILES).at(order) + _Cells.grid(side, side)


def _anyres(batch: _Batch, index: int, _: int) -> _Cells:
    """LLaVA-NeXT and OneVision: a base tile, then tiles cut back to the image, whose rows end in a newline each."""
    config = batch.config
    tile = int(config.vision_config.image_size)
    side = tile // int(config.vision_config.patch_size)
    width, height = batch.sizes[index]
    if [int(each) for each in batch.given("image_sizes")[index]] != [height, width]:
        raise batch.uneven(f"image_sizes {batch.inputs['image_sizes'][index]} for image {index}", f"{[height, width]}")
    numbers = batch.inputs.get("batch_num_images")
    alone = numbers is None or [int(n) == 1 for n in numbers for _ in range(int(n))][index]
    if not alone:  # OneVision sees several images without tiles, each in the middle of a square
        longest = max(width, height)
        x, y = (longest - width) // 2, (longest - height) // 2
        square = (-x / width, -y / height, (longest - x) / width, (longest - y) / height)
        return _Cells.grid(side, side, square) + _Cells.nowhere(1)
    best = select_best_resolution((height, width), config.image_grid_pinpoints)
    tiles = int(best[0]) // tile, int(best[1]) // tile
    rows, columns, _ = _packed(batch, tiles, side, (height, width), shrunk=True).shape
    # Centres are in cells of the tiles' canvas, on which the image lies in the middle, resized and padded. OneVision
    # shrinks what is left of the canvas where that is large, evenly.
    unshrunk = _packed(batch, tiles, side, (height, width), shrunk=False)
    resized = get_patch_output_size(np.zeros((3, height, width), np.uint8), best, ChannelDimension.FIRST)
    (left, top), (right, bottom) = (
        [
            (float(end) * tile / side - (canvas - image) // 2) / image
            for end, canvas, image in zip(corner, best[::-1], resized[::-1], strict=True)
        ]
        for corner in (unshrunk[0, 0] - 0.5, unshrunk[-1, -1] + 0.5)
    )
    order = np.full((rows, columns + 1), rows * columns)  # the token of no place behind the grid
    order[:, :columns] = np.arange(rows * columns).reshape(rows, columns)
    cells = _Cells.grid(rows, columns, (left, top, right, bottom), TILES) + _Cells.nowhere(1)
    return _Cells.grid(side, side) + cells.at(order.ravel())


def _packed(
    batch: _Batch, tiles: tuple[int, int], side: int, size: tuple[int, int], *, shrunk: bool
) -> NDArray[np.float64]:
    """(rows, columns, 2); x and y of the middle of each token behind the base tile, by the model's own packing.

    Args:
        batch: with the model.
        tiles: rows and columns of tiles.
        side: rows of a tile.
        size: height and width of the image.
        shrunk: as the model does; otherwise as if it took any number of tokens.
    """
    packers: list[Any] = [module for module in batch.model.modules() if hasattr(module, "pack_image_features")]
    if not packers:
        raise ProbeError(
            f"{type(batch.model).__name__} has no pack_image_features, by which it is known how it packs the tokens of "
            "tiles: install a version of transformers that `plam doctor` names as tested"
        )
    down, across = tiles
    y, x = np.mgrid[: down * side, : across * side] + 0.5
    canvas = torch.tensor(np.stack([x, y], -1)).reshape(down, side, across, side, 2).permute(0, 2, 1, 3, 4)
    features = torch.cat([torch.zeros(1, side * side, 2, dtype=canvas.dtype), canvas.reshape(-1, side * side, 2)])
    packing: Callable[..., tuple[list[Tensor], Tensor]] = packers[-1].pack_image_features  # outer ones pass it on
    settings = {
        "vision_feature_select_strategy": getattr(batch.config, "vision_feature_select_strategy", None),
        "vision_aspect_ratio": getattr(batch.config, "vision_aspect_ratio", None) if shrunk else "anyres_max_1000000",
    }
    taken = inspect.signature(packing).parameters
    packed, _ = packing(
        image_features=[features],
        image_sizes=torch.tensor([size]),
        image_newline=torch.full((2,), math.nan, dtype=canvas.dtype),
        **{name: value for name, value in settings.items() if name in taken},
    )
    centres = packed[0][side * side :].numpy()
    newline = np.isnan(centres[:, 0])
    length = int(newline.argmax()) + 1
    if (
        length < 2
        or len(centres) % length
        or not newline[length - 1 :: length].all()
        or newline.sum() * length != len(centres)
    ):
        raise batch.uneven(f"{len(centres)} tokens of tiles", "rows of one length, each ended by a newline")
    return np.asarray(centres.reshape(-1, length, 2)[:, :-1])


_LAYOUTS: dict[str, Callable[[_Batch, int, int], _Cells]] = {
    **dict.fromkeys(("llava", "paligemma", "gemma3"), _one_square),
    **dict.fromkeys(("llava_next", "llava_onevision", "llava_next_video"), _anyres),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v"), _merged_patches),
    **dict.fromkeys(("pixtral", "mistral3"), _rows_of_patches),
    "internvl": _tiles,
}
