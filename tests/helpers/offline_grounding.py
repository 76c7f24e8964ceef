"""Offline copies of datasets that say where a thing is, and where it is, in pixels of the copy's image.

Columns are those of the datasets' cards, and of the stock tasks' code. Every first document is answered by its own box,
written as its task asks for it; by the task's own scoring that answer is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.helpers.offline_copies import Copy, Document, strings

WIDTH, HEIGHT = 32, 24
"""Of every image."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Grounding:
    """A copy, and for each of its documents the boxes; none where it has none."""

    copy: Copy
    boxes: Sequence[list[Box]]


def _grounding(
    repo: str, config: str, task: str, columns: dict[str, Any], planned: Sequence[Any], *, named: bool = False
) -> Grounding:
    """Of rows as (columns, picture, answer, score, boxes)."""
    documents = [
        Document({**row, **_numbered(row, number)}, picture, answer, score)
        for number, (row, picture, answer, score, _) in enumerate(planned)
    ]
    return Grounding(Copy(repo, config, "test", columns, (task,), documents, named), [boxes for *_, boxes in planned])


def _numbered(row: dict[str, Any], number: int) -> dict[str, str]:
    """No two rows are the same."""
    return {"instruction": f"{row['instruction']} {number}"} if "instruction" in row else {}


_INSTRUCTED = {"image": "image", "bbox": ["float64"], **strings("instruction data_type data_source")}
_HALF = (8.0, 6.0, 24.0, 12.0)
"""The box of most rows: a quarter of the image."""


def _screen(box: Any, kind: str = "text", **more: Any) -> dict[str, Any]:
    return {"bbox": box, "instruction": "Close this window", "data_type": kind, "data_source": "macos", **more}


def _screenspot() -> Grounding:
    """Shares of the image; two instructions about one screenshot."""
    return _grounding(
        "rootsautomation/ScreenSpot",
        "default",
        "screenspot_rec_test",
        {**_INSTRUCTED, "file_name": "string"},
        [
            (_screen([0.25, 0.25, 0.75, 0.5], file_name="a.png"), 0, "[0.25, 0.25, 0.75, 0.50]", 1.0, [_HALF]),
            (_screen([0.0, 0.5, 0.5, 1.0], file_name="a.png"), 0, "[0.5, 0.5, 1.0, 1.0]", 0.0, [(0, 12, 16, 24)]),
            (
                _screen([0.5, 0.0, 1.0, 0.5], "icon", file_name="b.png"),
                1,
                "(500, 0, 1000, 500)",
                1.0,
                [(16, 0, 32, 12)],
            ),
            (_screen([0.5, 0.0, 0.5, 0.5], "icon", file_name="c.png"), 2, "[0, 0, 0.1, 0.1]", 0.0, []),  # no width
        ],
        named=True,
    )


def _screenspot_v2() -> Grounding:
    """Shares, as they are published, pixels, or a corner and a size: the task takes all three."""
    return _grounding(
        "HongxinLi/ScreenSpot_v2",
        "default",
        "screenspot_v2",
        _INSTRUCTED,
        [
            (_screen([0.25, 0.25, 0.75, 0.5]), 0, "[0.5, 0.375]", 1.0, [_HALF]),
            (_screen([0.25, 0.25, 0.75, 0.5]), 0, "[0.5, 0.6]", 0.0, [_HALF]),
            (_screen([8, 6, 24, 12], "icon"), 1, "[16, 9]", 1.0, [_HALF]),
            (_screen([20, 6, 12, 4], "icon"), 2, "[4, 4]", 0.0, [(20, 6, 32, 10)]),
        ],
    )


def _screenspot_pro() -> Grounding:
    columns = {
        **strings("bbox instruction img_size ui_type"),
        "image": "image",
    }
    size = f"[{WIDTH}, {HEIGHT}]"

    def row(box: str) -> dict[str, Any]:
        return {"bbox": box, "instruction": "Bold", "img_size": size, "ui_type": "icon"}

    return _grounding(
        "TIGER-Lab/ScreenSpot-Pro",
        "default",
        "screenspot_pro",
        columns,
        [
            (row("[8, 6, 24, 12]"), 0, "[16, 9]", 1.0, [_HALF]),
            (row("[8, 6, 24, 12]"), 1, "[0.5, 0.375]", 1.0, [_HALF]),
            (row("no box"), 2, "[0.5, 0.9]", 0.0, []),
        ],
    )


def _osworld_g() -> Grounding:
    """Coordinates are of a screen of `image_size`, which may be another than that of the stored image."""
    columns = {
        "image": "image",
        **strings("instruction box_type"),
        "box_coordinates": ["float64"],
        "image_size": ["int64"],
    }

    def row(kind: str, numbers: list[float], size: tuple[int, int] = (WIDTH, HEIGHT)) -> dict[str, Any]:
        return {"instruction": "Save", "box_type": kind, "box_coordinates": numbers, "image_size": list(size)}

    return _grounding(
        "MMInstruction/OSWorld-G",
        "default",
        "osworld_g",
        columns,
        [
            (row("bbox", [8, 6, 16, 6]), 0, "[16, 9]", 1.0, [_HALF]),
            (row("bbox", [16, 12, 32, 12], (64, 48)), 1, "[0.5, 0.375]", 1.0, [_HALF]),
            (row("polygon", [8, 6, 24, 6, 24, 12, 8, 12]), 2, "[16, 9]", 1.0, [_HALF]),
            (row("refusal", [-1, -1, -1, -1]), 3, "[-1, -1]", 1.0, []),
            (row("refusal", [-1, -1, -1, -1]), 3, "[16, 9]", 0.0, []),
        ],
    )


def _groundingme() -> Grounding:
    """Corners in pixels; a description that fits nothing still has the box of what it was made from."""
    columns = {
        "id": "int64",
        "image": "image",
        "bbox": ["int64"],
        **strings("description detection_type subtask_l1 subtask_l2"),
        "width": "int64",
        "height": "int64",
    }

    def row(number: int, kind: str) -> dict[str, Any]:
        words = {"description": "The left cup.", "detection_type": "object", "subtask_l1": kind, "subtask_l2": "Text"}
        return {"id": number, "bbox": [8, 6, 24, 12], **words, "width": WIDTH, "height": HEIGHT}

    return _grounding(
        "lirang04/GroundingME",
        "default",
        "groundingme",
        columns,
        [
            (row(0, "Discriminative"), 0, '{"bbox_2d": [8, 6, 24, 12]}', 1.0, [_HALF]),
            (row(1, "Spatial"), 1, '{"bbox_2d": [0, 0, 4, 4]}', 0.0, [_HALF]),
            (row(2, "Rejection"), 2, '{"bbox_2d": null}', 1.0, []),
        ],
    )


def _multihop() -> Grounding:
    """A corner and a size in pixels."""
    columns = {
        "image": "image",
        **strings("question answer image_resolution view"),
        "bbox": ["float64"],
        "hop": "int64",
    }

    def row(letter: str) -> dict[str, Any]:
        question = "What is <POS>left of</POS> the cup? (a) book (b) pen (c) key (d) lamp"
        more = {"image_resolution": f"{WIDTH}x{HEIGHT}", "view": "ego", "hop": 1}
        return {"question": question, "answer": f"({letter}) it", "bbox": [8.0, 6.0, 16.0, 6.0], **more}

    box = 'Bounding Box: {"bbox_2d": [0.25, 0.25, 0.75, 0.5]}'
    return _grounding(
        "etri-vilab/MultihopSpatial",
        "benchmark",
        "multihopspatial",
        columns,
        [
            (row("a"), 0, f"Answer: (a) book\n{box}", 1.0, [_HALF]),
            (row("b"), 1, f"Answer: (a) book\n{box}", 0.0, [_HALF]),
        ],
    )


GROUNDED: tuple[Grounding, ...] = (
    _screenspot(),
    _screenspot_v2(),
    _screenspot_pro(),
    _osworld_g(),
    _groundingme(),
    _multihop(),
)


def odinw() -> Grounding:
    """Corners in pixels of everything that is to be found. It is scored over all documents together."""
    columns = {
        "image": "image",
        "dataset_name": "string",
        "categories": ["string"],
        "bboxes": [["float64"]],
        "labels": ["string"],
    }

    def row(*boxes: Box) -> dict[str, Any]:
        labels = ["dog"] * len(boxes)
        return {"dataset_name": "PascalVOC", "categories": ["dog"], "bboxes": list(map(list, boxes)), "labels": labels}

    other = (0.0, 12.0, 4.0, 24.0)
    said = '[{"bbox_2d": [8, 6, 24, 12], "label": "dog"}, {"bbox_2d": [0, 12, 4, 24], "label": "dog"}]'
    return _grounding(
        "kcz358/ODinW-13",
        "default",
        "odinw13",
        columns,
        [(row(_HALF, other), 0, said, 1.0, [_HALF, other]), (row(), 1, "[]", 1.0, [])],
    )


def of_other_repository(copy: Copy, repo: str, split: str) -> Copy:
    """The same documents as those of another dataset: the RefCOCO family has one form."""
    return replace(copy, repo=repo, split=split)
