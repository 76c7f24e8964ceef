"""A document that is drawn: its image, and where each setting looks in every layer; a file of its own."""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plam_eval.errors import DamagedFileError
from plam_eval.files import json_object, read_at_most, write_in_one_step
from plam_eval.probing.attention_measures import Box

LONGEST_SIDE = 640
"""Pixels that the longer side of a stored image has at most."""
_LARGEST = 1 << 27  # bytes
_LARGEST_WORDS = 1 << 24
_FARTHEST = 10_000_000  # pixels
_MOST_BOXES = 1000
_REMEDY = "delete it; the document is then not drawn"


def file_of(task: str, doc_id: int) -> str:
    """Name of the file of a document, in `folder.SHOWN`.

    Args:
        task: its name, of which letters that a file's name may not have are left out.
        doc_id: its number.
    """
    return f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', task).lstrip('.')}-{doc_id}.npz"


@dataclass(frozen=True, eq=False)
class ShownDocument:
    """A document and its attention over its first image.

    Attributes:
        task, doc_id: which one.
        question: its prompt.
        target: the right answer.
        answers: setting -> what it answered.
        image: (height, width, 3) uint8; shrunk to at most `LONGEST_SIDE`.
        size: (width, height) of the image as the model was given it; boxes and `frame` are in its pixels.
        boxes: left, top, right, bottom; none where the dataset has none.
        maps: setting -> (layers, rows, columns) float32; attention to each cell, of that to all keys.
        frame: left, top, right, bottom of the whole grid; beyond the image lies padding, within it what was cropped.
    """

    task: str
    doc_id: int
    question: str
    target: str
    answers: Mapping[str, str]
    image: NDArray[np.uint8]
    size: tuple[int, int]
    boxes: Sequence[Box]
    maps: Mapping[str, NDArray[np.float32]]
    frame: Box

    @classmethod
    def of_image(cls, image: Any, **others: Any) -> ShownDocument:
        """A document whose image is stored shrunk.

        Args:
            image: PIL image, as the model was given it.
            others: all other attributes but `size`.
        """
        small = image.convert("RGB")
        small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        return cls(image=np.asarray(small, np.uint8), size=image.size, **others)

    def write(self, path: Path) -> None:
        """Write it as an .npz file, in one step.

        Args:
            path: of the file.
        """
        words: dict[str, Any] = {
            "task": self.task,
            "doc_id": self.doc_id,
            "question": self.question,
            "target": self.target,
            "answers": dict(self.answers),
            "size": list(self.size),
            "boxes": [list(box) for box in self.boxes],
            "frame": list(self.frame),
        }
        text = np.frombuffer(json.dumps(words).encode(), np.uint8)
        maps = np.stack([self.maps[setting] for setting in self.answers]).astype(np.float32)
        write_in_one_step(path, lambda partial: np.savez_compressed(partial, words=text, image=self.image, maps=maps))

    @classmethod
    def read(cls, path: Path) -> ShownDocument:
        """Read one back.

        Args:
            path: of the file.

        Raises:
            DamagedFileError: it holds no such document.
        """
        content = read_at_most(path, _LARGEST, _REMEDY)
        try:
            words, image, maps = _arrays(content)
            stored = json_object(words.tobytes(), str(path), _REMEDY)
            answers = {str(setting): str(answer) for setting, answer in stored["answers"].items()}
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(f"an image of {image.shape} {image.dtype}")
            if not 0 < min(image.shape[:2]) <= max(image.shape[:2]) <= LONGEST_SIDE:
                raise ValueError(f"an image of {image.shape[1]} x {image.shape[0]} pixels")
            if maps.ndim != 4 or len(maps) != len(answers) or maps.dtype != np.float32 or not maps.size:
                raise ValueError(f"maps of {maps.shape} {maps.dtype} for {len(answers)} settings")
            if np.isinf(maps).any():
                raise ValueError("maps with infinite values")
            width, height = (int(side) for side in stored["size"])
            boxes = [_box(box) for box in stored["boxes"]]
            if not 0 < min(width, height) <= max(width, height) <= _FARTHEST or len(boxes) > _MOST_BOXES:
                raise ValueError(f"{len(boxes)} boxes in {width} x {height} pixels")
            return cls(
                task=str(stored["task"]),
                doc_id=int(stored["doc_id"]),
                question=str(stored["question"]),
                target=str(stored["target"]),
                answers=answers,
                image=image,
                size=(width, height),
                boxes=boxes,
                maps=dict(zip(answers, maps, strict=True)),
                frame=_box(stored["frame"]),
            )
        except Exception as error:  # zip, npy and JSON readers raise their own, and anything for damaged bytes
            raise DamagedFileError(f"{path}: holds no document to draw ({error}); {_REMEDY}") from error


def _arrays(content: bytes) -> list[NDArray[Any]]:
    """`words`, `image` and `maps` of an .npz file, none of which is unpacked further than it may be large."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [
            _array(archive, name, most)
            for name, most in (("words", _LARGEST_WORDS), ("image", 4 * LONGEST_SIDE**2), ("maps", _LARGEST))
        ]


def _array(archive: zipfile.ZipFile, name: str, most: int) -> NDArray[Any]:
    """An array of a file, without pickles; numpy would make room for as many numbers as its head says."""
    with archive.open(f"{name}.npy") as packed:
        unpacked = io.BytesIO(packed.read(most + 1))
    if (size := unpacked.getbuffer().nbytes) > most:
        raise ValueError(f"{name} of more than {most} bytes")
    if (version := np.lib.format.read_magic(unpacked)) != (1, 0):
        raise ValueError(f"{name} in numpy's format {version}, expected (1, 0)")
    shape, _, kind = np.lib.format.read_array_header_1_0(unpacked)
    if kind.hasobject or math.prod(shape) * kind.itemsize > size:
        raise ValueError(f"{name} of {shape} {kind} in {size} bytes")
    unpacked.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(unpacked, allow_pickle=False)
    return array


def _box(given: Any) -> Box:
    """Left, top, right, bottom of something that has a size, in pixels."""
    left, top, right, bottom = (float(edge) for edge in given)
    if not (-_FARTHEST <= left < right <= _FARTHEST and -_FARTHEST <= top < bottom <= _FARTHEST):
        raise ValueError(f"a box of {left:g}, {top:g}, {right:g}, {bottom:g}")
    return left, top, right, bottom
