"""A document that is drawn: its image, and where each setting looks in every layer; a file of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plam_eval.errors import DamagedFileError
from plam_eval.files import read_at_most, write_in_one_step
from plam_eval.probing.attention_measures import Box

LONGEST_SIDE = 640
"""Pixels that the longer side of a stored image has at most."""
_LARGEST = 1 << 27  # bytes


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
        import io

        remedy = "delete it; the document is then not drawn"
        content = read_at_most(path, _LARGEST, remedy)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                words = json.loads(stored["words"].tobytes())
                image, maps = stored["image"], stored["maps"]
            answers = {str(setting): str(answer) for setting, answer in words["answers"].items()}
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(f"an image of {image.shape} {image.dtype}")
            if maps.ndim != 4 or len(maps) != len(answers) or maps.dtype != np.float32:
                raise ValueError(f"maps of {maps.shape} {maps.dtype} for {len(answers)} settings")
            width, height = (int(side) for side in words["size"])
            boxes = [(float(a), float(b), float(c), float(d)) for a, b, c, d in words["boxes"]]
            left, top, right, bottom = (float(edge) for edge in words["frame"])
            return cls(
                task=str(words["task"]),
                doc_id=int(words["doc_id"]),
                question=str(words["question"]),
                target=str(words["target"]),
                answers=answers,
                image=image,
                size=(width, height),
                boxes=boxes,
                maps=dict(zip(answers, maps, strict=True)),
                frame=(left, top, right, bottom),
            )
        except Exception as error:  # zip, npy and JSON readers raise their own, and anything for damaged bytes
            raise DamagedFileError(f"{path}: holds no document to draw ({error}); {remedy}") from error
