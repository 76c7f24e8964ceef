"""Drawn scenes with known content: a 2 x 2 grid of coloured shapes and digits.

A scene is small enough that a network of 1.6 million parameters can learn to read it on two CPU cores, and rich enough
to ask about colour, shape, position, count, relation, comparison and arithmetic. Scenes are split by a hash of their
content, so that no scene shown in training is ever asked about in evaluation.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 158, 64),
    "blue": (40, 84, 214),
    "yellow": (240, 200, 24),
    "purple": (140, 52, 180),
}
SHAPES = ("circle", "square", "triangle", "star")
DIGITS = ("1", "2", "3", "4")
POSITIONS = ("top left", "top right", "bottom left", "bottom right")
IMAGE_SIZE = 64

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Thing:
    """One object: a colour and a shape; a digit such as "3" counts as a shape."""

    color: str
    shape: str

    @property
    def is_digit(self) -> bool:
        """Whether its shape is a digit."""
        return self.shape in DIGITS

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Four cells in the order of POSITIONS (row by row); None is an empty cell."""

    cells: tuple[Thing | None, Thing | None, Thing | None, Thing | None]

    @property
    def things(self) -> list[tuple[int, Thing]]:
        """The occupied cells as (index into POSITIONS, thing)."""
        return [(i, thing) for i, thing in enumerate(self.cells) if thing is not None]

    @property
    def key(self) -> str:
        """The scene's content in one line, the same on every machine; what `split_of` hashes."""
        return "|".join(str(thing) if thing else "empty" for thing in self.cells)


@dataclass(frozen=True)
class Drawing:
    """A picture of a scene and where its things are.

    `boxes` has one entry per cell, (left, top, right, bottom) in pixels, or None for an empty cell.
    """

    image: Image.Image
    boxes: tuple[Box | None, ...]


def random_scene(rng: random.Random) -> Scene:
    """One to four things, drawn from `rng`; cells are filled independently, an empty scene is drawn again."""
    while True:
        cells: list[Thing | None] = []
        for _ in POSITIONS:
            kind = rng.random()
            if kind < 0.15:
                cells.append(None)
                continue
            cells.append(Thing(rng.choice(tuple(COLORS)), rng.choice(DIGITS if kind < 0.40 else SHAPES)))
        if any(cells):
            return Scene(tuple(cells))  # type: ignore[arg-type]


def split_of(scene: Scene) -> str:
    """The split of `scene`: "train" (90 %), "heldout" (5 %, to choose a checkpoint) or "eval" (5 %, the benchmarks)."""
    bucket = hashlib.sha256(scene.key.encode()).digest()[0]
    if bucket < 13:
        return "eval"
    return "heldout" if bucket < 26 else "train"


def scene_of(which: str, rng: random.Random) -> Scene:
    """A random scene of one split, drawn from `rng`; `which` is "train", "heldout" or "eval"."""
    while True:
        scene = random_scene(rng)
        if split_of(scene) == which:
            return scene


def draw(scene: Scene, seed: int = 0, size: int = IMAGE_SIZE) -> Drawing:
    """Draw a scene on a light background, with seeded jitter of place, extent and shade.

    Args:
        scene: what is drawn.
        seed: of the jitter.
        size: of the square picture's sides, in pixels.
    """
    rng = random.Random(f"{seed}:{scene.key}")
    shade = rng.randint(222, 250)
    image = Image.new("RGB", (size, size), (shade + rng.randint(-4, 4), shade, shade + rng.randint(-4, 4)))
    canvas = ImageDraw.Draw(image)
    cell = size // 2
    boxes: list[Box | None] = []
    for index, thing in enumerate(scene.cells):
        if thing is None:
            boxes.append(None)
            continue
        extent = round(cell * rng.uniform(0.66, 0.84))
        slack = cell - extent
        left = (index % 2) * cell + rng.randint(slack // 4, slack - slack // 4)
        top = (index // 2) * cell + rng.randint(slack // 4, slack - slack // 4)
        box = (left, top, left + extent, top + extent)
        color = tuple(min(255, max(0, c + rng.randint(-14, 14))) for c in COLORS[thing.color])
        _draw_thing(canvas, thing.shape, box, color)
        boxes.append(box)
    return Drawing(image, tuple(boxes))


def _draw_thing(canvas: ImageDraw.ImageDraw, shape: str, box: Box, color: tuple[int, ...]) -> None:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if shape == "circle":
        canvas.ellipse(box, fill=color)
    elif shape == "square":
        canvas.rectangle((left + 2, top + 2, right - 2, bottom - 2), fill=color)
    elif shape == "triangle":
        canvas.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=color)
    elif shape == "star":
        points = [
            (0.5, 0),
            (0.62, 0.36),
            (1, 0.38),
            (0.7, 0.61),
            (0.8, 1),
            (0.5, 0.77),
            (0.2, 1),
            (0.3, 0.61),
            (0, 0.38),
            (0.38, 0.36),
        ]
        canvas.polygon([(left + x * width, top + y * height) for x, y in points], fill=color)
    elif shape in DIGITS:
        font = ImageFont.load_default(size=height * 1.25)
        middle = ((left + right) / 2, (top + bottom) / 2)
        canvas.text(middle, shape, fill=color, font=font, anchor="mm", stroke_width=1, stroke_fill=color)
    else:
        raise ValueError(f"cannot draw a {shape!r}: expected one of {', '.join((*SHAPES, *DIGITS))}")
