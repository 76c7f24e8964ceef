"""Where in its image the thing is that a document asks about: boxes, as rows of datasets and files of users have them.

Datasets write boxes in several ways: corners or a corner and a size, in pixels or in shares of the image. The functions
here read one way each, and give boxes in pixels of the image that the task shows. What a row has is not to be trusted:
`plausible` says which boxes are some.

Importing this module imports neither torch nor lmms-eval.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plam_eval.errors import DamagedFileError, InputError, did_you_mean, listed, quoted
from plam_eval.files import json_object, read_at_most
from plam_eval.harness.requests import Key
from plam_eval.harness.task_row import Box, Boxes, Document

BOXES_FILE = "plam_boxes.jsonl"
"""In the folder of a local dataset, such as the offline suite's: boxes of its documents, as `read_boxes` takes them."""

_LARGEST_FILE = 1 << 28  # bytes
_MOST_PROBLEMS = 20
_KEYS = ("task", "doc_id", "boxes")

Reader = Callable[[Document], Boxes]


# --- rows of datasets -------------------------------------------------------------------------------------------------


def corner_and_size(column: str = "bbox") -> Reader:
    """Boxes as COCO writes them: left, top, width, height in pixels.

    Args:
        column: that holds one.
    """
    return lambda document: [[_corners(document[column])]]


def pixels(column: str = "bbox") -> Reader:
    """Left, top, right, bottom in pixels.

    Args:
        column: that holds one.
    """
    return lambda document: [[_numbers(document[column])]]


def shares(column: str = "bbox") -> Reader:
    """Left, top, right, bottom as shares of the image's width and height.

    Args:
        column: that holds one.
    """
    return lambda document: [[_scaled(_numbers(document[column]), image_size(document))]]


def shares_or_pixels(column: str = "bbox") -> Reader:
    """Left, top, right, bottom: shares of the image where none is above 1, and pixels otherwise.

    Args:
        column: that holds one, as numbers or as a text with numbers in it.
    """
    return lambda document: [[_shares_or_pixels(document[column], document)]]


def of_choice(document: Document) -> Boxes:
    """VisualWebBench labels elements of a page by letters; the right one is `options[answer]`.

    Args:
        document: a row.
    """
    return [[_shares_or_pixels(document["options"][document["answer"]], document)]]


def screenspot_v2(document: Document) -> Boxes:
    """ScreenSpot-V2's as its task reads them: shares or pixels, and a size where it is no right bottom corner.

    Args:
        document: a row.
    """
    left, top, right, bottom = box = _numbers(document["bbox"])
    if right > left and bottom > top:
        return [[_shares_or_pixels(box, document)]]
    return [[_corners(box)]]


def groundingme(document: Document) -> Boxes:
    """GroundingME's, in pixels; a description of the category Rejection fits nothing in the image.

    Args:
        document: a row.
    """
    return [[]] if document["subtask_l1"] == "Rejection" else pixels()(document)


def osworld_g(document: Document) -> Boxes:
    """OSWorld-G's: a corner and a size, or a polygon, of which the rectangle around it; a refusal has none.

    They are in pixels of `image_size`.

    Args:
        document: a row.
    """
    kind, numbers = str(document["box_type"]).lower(), [float(number) for number in document["box_coordinates"]]
    if kind == "bbox":
        box = _corners(numbers)
    elif kind == "polygon" and len(numbers) % 2 == 0:
        across, down = numbers[::2], numbers[1::2]
        box = min(across), min(down), max(across), max(down)
    else:
        return [[]]
    (width, height), stated = image_size(document), document.get("image_size")
    if not stated or 0 in stated:
        return [[box]]
    return [[_scaled(box, (width / stated[0], height / stated[1]))]]


def several(column: str = "bboxes") -> Reader:
    """Left, top, right, bottom in pixels of every thing that is asked for.

    Args:
        column: that holds a list of them.
    """
    return lambda document: [[_numbers(box) for box in document[column]]]


def image_size(document: Document, column: str = "image") -> tuple[int, int]:
    """Width and height in pixels of a row's image. One that is not decoded stays so: its header is enough.

    Args:
        document: a row.
        column: of the image, as PIL has it or as bytes.
    """
    if "image_width" in document and "image_height" in document:
        return int(document["image_width"]), int(document["image_height"])
    image = document[column]
    if isinstance(image, Mapping):
        from PIL import Image

        with Image.open(io.BytesIO(image["bytes"])) as opened:
            return opened.size
    width, height = image.size
    return int(width), int(height)


def plausible(boxes: Any) -> Boxes | None:
    """Boxes that are some: finite, none of them turned round, and at least one; None for anything else.

    Args:
        boxes: of each image, as they were read.
    """
    try:
        whole = [[_numbers(box) for box in image] for image in boxes]
    except (TypeError, ValueError):
        return None
    every = [box for image in whole for box in image]
    return whole if every and all(box[0] < box[2] and box[1] < box[3] for box in every) else None


def scaled_to(boxes: Boxes, sizes: Sequence[tuple[int, int]], wanted: Sequence[tuple[int, int]]) -> Boxes:
    """Boxes in the same place of images of another size.

    Args:
        boxes: of each image.
        sizes: (width, height) in pixels of the images that they are of.
        wanted: of those that they are to be in.
    """
    factors = [(to[0] / size[0], to[1] / size[1]) for size, to in zip(sizes, wanted, strict=True)]
    return [[_scaled(box, factor) for box in image] for image, factor in zip(boxes, factors, strict=True)]


def within(boxes: Boxes, sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether there are as many lists of boxes as images, and every box has something of its image in it.

    Args:
        boxes: of each image.
        sizes: (width, height) in pixels of each image.
    """
    return len(boxes) == len(sizes) and all(
        left < width and top < height and right > 0 and bottom > 0
        for image, (width, height) in zip(boxes, sizes, strict=True)
        for left, top, right, bottom in image
    )


def _numbers(value: Any) -> Box:
    """Four numbers, from a list of them or from a text that has them in it; raises ValueError for others."""
    if isinstance(value, str):
        value = re.findall(r"-?\d+(?:\.\d+)?", value)
    left, top, right, bottom = (float(number) for number in value)
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise ValueError(f"found {value}, expected finite numbers")
    return left, top, right, bottom


def _corners(value: Any) -> Box:
    left, top, width, height = _numbers(value)
    return left, top, left + width, top + height


def _scaled(box: Box, by: tuple[float, float]) -> Box:
    left, top, right, bottom = box
    return left * by[0], top * by[1], right * by[0], bottom * by[1]


def _shares_or_pixels(value: Any, document: Document) -> Box:
    box = _numbers(value)
    return _scaled(box, image_size(document)) if max(box) <= 1 else box


# --- files of users ---------------------------------------------------------------------------------------------------


def read_boxes(path: str | Path, names: Iterable[str] | None = None) -> dict[Key, Boxes]:
    """Boxes of documents from a file, one document a line.

    A line is `{"task": "textvqa_val", "doc_id": 0, "boxes": [[[12, 30, 80, 64]]]}`: for each image of the document its
    boxes, each as left, top, right, bottom in pixels of the image.

    Args:
        path: of the file.
        names: of all tasks that there are; a line of another one is a problem. None: any name will do.

    Raises:
        InputError: with every line that is wrong. DamagedFileError: it is no such file, or too large.
    """
    path = Path(path)
    remedy = "give a file with a JSON object on each line, with task, doc_id and boxes"
    try:
        lines = read_at_most(path, _LARGEST_FILE, remedy).split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    known = None if names is None else set(names)
    boxes: dict[Key, Boxes] = {}
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            entry = json_object(line, where, remedy)
        except DamagedFileError as error:
            problems.append(str(error))
            continue
        if wrong := _problems(entry, known, hints=len(problems) < _MOST_PROBLEMS):
            problems += [f"{where}: {problem}" for problem in wrong]
            continue
        key = entry["task"], entry["doc_id"]
        if key in boxes:
            problems.append(f"{where}: a second line for document {key[1]} of {key[0]}; keep one of them")
        boxes[key] = [[_numbers(box) for box in image] for image in entry["boxes"]]
    if not problems and not boxes:
        problems.append(f"holds no boxes; {remedy}")
    if len(problems) > _MOST_PROBLEMS:
        problems = [*problems[:_MOST_PROBLEMS], f"and {len(problems) - _MOST_PROBLEMS} more"]
    if problems:
        raise InputError(*problems, origin=str(path))
    return boxes


def _problems(entry: Mapping[str, Any], names: set[str] | None, *, hints: bool) -> list[str]:
    """What is wrong with one line; `hints` says whether like names are looked for, which takes long for all lines."""
    near = did_you_mean if hints else lambda word, names: ""
    problems = [f"unknown key {quoted(key)}{near(key, _KEYS)}" for key in entry if key not in _KEYS]
    missing = [key for key in _KEYS if key not in entry]
    if missing:
        return [*problems, f"has no {listed(missing)}; expected task, doc_id and boxes"]
    task, doc_id, boxes = (entry[key] for key in _KEYS)
    if not isinstance(task, str) or not task:
        problems.append(f"task is {quoted(task)}; expected the name of a task")
    elif names is not None and task not in names:
        problems.append(f"there is no task {quoted(task)}{near(task, names)}")
    if type(doc_id) is not int or doc_id < 0:
        problems.append(f"doc_id is {quoted(doc_id)}; expected a whole number from 0")
    if not isinstance(boxes, list) or not all(isinstance(image, list) for image in boxes):
        problems.append(f"boxes is {quoted(boxes)}; expected a list of boxes for each image: [[[12, 30, 80, 64]]]")
    elif any(_is_number(box) for image in boxes for box in image):
        problems.append(
            f"boxes is {quoted(boxes)}: found numbers where boxes are expected; put a list around the boxes of each "
            "image: [[[12, 30, 80, 64]]]"
        )
    else:
        problems += [
            f"found the box {quoted(box)}; expected [left, top, right, bottom] in pixels, with left < right and top < "
            "bottom"
            for image in boxes
            for box in image
            if not _is_box(box)
        ]
        if not any(boxes):
            problems.append("boxes holds none; leave the line out where a document has none")
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_box(box: Any) -> bool:
    whole = isinstance(box, list) and len(box) == 4 and all(_is_number(n) and math.isfinite(n) for n in box)
    return whole and box[0] < box[2] and box[1] < box[3]


def boxes_line(key: Key, boxes: Sequence[Sequence[Sequence[float]]]) -> str:
    """One line of such a file, with its end.

    Args:
        key: the document's.
        boxes: of each of its images.
    """
    task, doc_id = key
    return json.dumps({"task": task, "doc_id": doc_id, "boxes": boxes}) + "\n"
