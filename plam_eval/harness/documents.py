"""The documents of an evaluation: the images that the model is shown, and where in them the thing asked about is.

Where that is known: from a file of the user's, from a file that lies in a local dataset, as in the offline suite, or
from a row of the dataset as `tasks` says. The first of them that has the task decides.

Sizes and boxes are in pixels of the images as the task gives them. The wrappers pass them on whole: LLaVA's, InternVL's
and the general one as they are, those of Qwen-VL stretched to multiples of a patch by `process_vision_info`, so that a
place is the same share of the image before and after, and the token grid of the image is the same for both sizes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from plam_eval.errors import DamagedFileError, InputError, OutsideError
from plam_eval.files import inside
from plam_eval.harness.boxes import BOXES_FILE, read_boxes, scaled_to, within
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.requests import Key, key_of
from plam_eval.harness.task_row import Boxes
from plam_eval.harness.tasks import TASKS, boxes_of_document, cluster_of_document

_ROWS_AHEAD, _IMAGES_AHEAD = 1000, 16
"""Of how many documents that follow the boxes are looked at, and of how many the images, for another one's boxes."""


def may_have_boxes(task: str, dataset: str | None = None, given: Mapping[Key, Boxes] | None = None) -> bool:
    """Whether anything says of a task where in its images the things are that it asks about; nothing is loaded.

    Args:
        task: its name.
        dataset: hub id or folder of its dataset, as `lookup.dataset_of` finds it.
        given: the user's own boxes.
    """
    known = task in TASKS and TASKS[task].boxes is not None
    if known or any(name == task for name, _ in given or ()):
        return True
    return any(name == task for name, _ in _boxes_beside(dataset))


@dataclass(frozen=True, eq=False)
class Pictures:
    """What a document shows.

    Attributes:
        images: PIL images, in the order of the prompt.
        boxes: of each of them, in its pixels; None where the document has none.
        other_boxes: those of another document, about another image, scaled to these images; None where there is none.
        problem: why the boxes that a file has for the document are not used; None where they are, or it has none.
    """

    images: list[Any]
    boxes: Boxes | None = None
    other_boxes: Boxes | None = None
    problem: str | None = None

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of each image in pixels."""
        return [image.size for image in self.images]


class Documents:
    """Images and boxes of the documents that a wrapper is asked about.

    Args:
        given: boxes of the user's own, from `read_boxes`. Of a task that is among them no others are used.
    """

    def __init__(self, given: Mapping[Key, Boxes] | None = None) -> None:
        self._given = _by_task(given or {})
        self._tasks: dict[tuple[str, str], _TaskDocuments] = {}

    def of_request(self, request: Any) -> Pictures:
        """What the document of a request shows.

        Images are those that the wrapper's own loop gets from the request, read again. Boxes that lie in no image are
        none.

        Args:
            request: lmms-eval's, as it comes to the wrapper, in simple or in chat mode.

        Raises:
            EvaluationError: it does not have its task's own functions any more.
        """
        task, doc_id = key_of(request)
        function = next(argument for argument in request.args if callable(argument))
        if (owner := getattr(function, "__self__", None)) is None:
            raise EvaluationError(
                f"document {doc_id} of {task}: found {function!r} in its request; expected a method of its task, as "
                "lmms-eval gives it"
            )
        documents = self._documents(owner, task, request.args[-1])
        return documents.pictures(doc_id, lambda row: shown_images(function(row)))

    def of_task(self, task: Any, doc_id: int) -> Pictures:
        """What a document shows, without a request.

        Args:
            task: lmms-eval's task object.
            doc_id: of the document.
        """
        split = task.config.test_split if task.has_test_docs() else task.config.validation_split
        documents = self._documents(task, task.config.task, split)
        return documents.pictures(doc_id, documents.visuals)

    def _documents(self, task: Any, name: str, split: str) -> _TaskDocuments:
        if (name, split) not in self._tasks:
            own = self._given.get(name) or _by_task(_boxes_beside(getattr(task, "DATASET_PATH", None))).get(name)
            self._tasks[name, split] = _TaskDocuments(name, task, task.dataset[split], own)
        return self._tasks[name, split]


class _TaskDocuments:
    """The documents of one task.

    Args:
        name: of the task.
        task: lmms-eval's object.
        rows: of its dataset, by doc_id.
        own: doc_id -> boxes, where they come from a file.
    """

    def __init__(self, name: str, task: Any, rows: Any, own: Mapping[int, Boxes] | None) -> None:
        self.name, self.task, self.rows, self.own = name, task, rows, own
        self.numbered = sorted(doc_id for doc_id in own or () if doc_id < len(rows))
        self.undecoded = _undecoded(rows)

    def pictures(self, doc_id: int, shown: Callable[[Any], list[Any]]) -> Pictures:
        """What a document shows.

        Args:
            doc_id: of the document.
            shown: row -> PIL images, in the order of the prompt.
        """
        row = self.rows[doc_id]
        images, boxes = shown(row), self.boxes(doc_id)
        if not images or boxes is None:
            return Pictures(images)
        visuals = self.visuals(row)
        sizes, order = [image.size for image in visuals], _order(images, visuals)
        if order is None or not within(boxes, sizes):
            found = f"boxes of {len(boxes)} images for images of {sizes} pixels: {boxes}"
            return Pictures(images, problem=None if self.own is None else f"{found}; expected some in each image")
        others = self.other_boxes(doc_id, visuals)
        return Pictures(images, [boxes[at] for at in order], None if others is None else [others[at] for at in order])

    def visuals(self, row: Any) -> list[Any]:
        """The images of a row, in the task's own order.

        Args:
            row: of the dataset.
        """
        return shown_images(self.task.doc_to_visual(row))

    def boxes(self, doc_id: int) -> Boxes | None:
        """A document's boxes, of each image in the task's own order.

        Args:
            doc_id: of the document.
        """
        if self.own is not None:
            return self.own.get(doc_id)
        return boxes_of_document(self.name, self.undecoded[doc_id])

    def other_boxes(self, doc_id: int, visuals: Sequence[Any]) -> Boxes | None:
        """The boxes of the next document that has some, and other images, as many; behind the last one is the first.

        It depends on the dataset alone, and on no limit, so that every process and a resumed run find the same.

        Args:
            doc_id: of the document.
            visuals: its images, in the task's own order.
        """
        sizes = [image.size for image in visuals]
        cluster = self._cluster(doc_id)
        images_left = _IMAGES_AHEAD
        for other in self._following(doc_id):
            boxes = self.boxes(other)
            if boxes is None or len(boxes) != len(visuals) or (cluster and cluster == self._cluster(other)):
                continue
            theirs = self.visuals(self.rows[other])
            their_sizes = [image.size for image in theirs]
            if within(boxes, their_sizes) and not any(map(_same, theirs, visuals)):
                return scaled_to(boxes, their_sizes, sizes)
            images_left -= 1
            if not images_left:
                return None
        return None

    def _following(self, doc_id: int) -> Iterator[int]:
        if self.own is not None:
            first = bisect_right(self.numbered, doc_id)
            ahead = [*self.numbered[first:], *self.numbered[:first]]
        else:
            count = len(self.rows)
            ahead = [(doc_id + step) % count for step in range(1, min(count, _ROWS_AHEAD + 1))]
        return (other for other in ahead[:_ROWS_AHEAD] if other != doc_id)

    def _cluster(self, doc_id: int) -> str | None:
        """What tells the document's image from others without looking at it, where the dataset has that."""
        known = TASKS[self.name].cluster if self.name in TASKS else None
        if known is None or known.kind != "image":
            return None
        return cluster_of_document(self.name, self.undecoded[doc_id])


def _by_task(boxes: Mapping[Key, Boxes]) -> dict[str, dict[int, Boxes]]:
    tasks: dict[str, dict[int, Boxes]] = {}
    for (task, doc_id), own in boxes.items():
        tasks.setdefault(task, {})[doc_id] = own
    return tasks


def _boxes_beside(dataset: str | None) -> dict[Key, Boxes]:
    """Boxes that lie in the folder of a local dataset, which `load_dataset` prefers to the hub; none for others.

    They are of that folder's documents, and of no other copy of the dataset: a folder that has no such file, and every
    dataset of the hub, has none.
    """
    folder = Path(dataset) if dataset is not None else None
    if folder is None or not (folder / BOXES_FILE).is_file():
        return {}
    try:
        return read_boxes(inside(folder, BOXES_FILE, str(folder)))
    except (InputError, DamagedFileError, OutsideError) as error:
        logger.warning("{}: not used: {}", folder / BOXES_FILE, error)
        return {}


def _undecoded(rows: Any) -> Any:
    """The rows with images as bytes, so that none is decoded where a row is only read; as they are if that cannot be.

    It cannot where they are no table of `datasets`, or where images are files of their own beside it.
    """
    from datasets import Dataset, Image

    if not isinstance(rows, Dataset) or not len(rows):
        return rows
    columns = [column for column, feature in rows.features.items() if isinstance(feature, Image)]
    stored = rows
    for column in columns:
        stored = stored.cast_column(column, Image(decode=False))
    row = stored[0]
    return stored if all(row[column] is None or row[column]["bytes"] is not None for column in columns) else rows


def shown_images(given: Any) -> list[Any]:
    """The PIL images of what a task shows; videos are none.

    Args:
        given: what `doc_to_visual` or `doc_to_messages` returned: images and videos, messages, or None.
    """
    from PIL.Image import Image

    if given and all(isinstance(message, Mapping) for message in given):
        contents = [content for message in given for content in message["content"]]
        given = [content["url"] for content in contents if isinstance(content, Mapping) and content["type"] == "image"]
    return [visual for visual in given or [] if isinstance(visual, Image)]


def _order(images: Sequence[Any], visuals: Sequence[Any]) -> list[int] | None:
    """Which of the task's images each one of the prompt is; None where that cannot be told."""
    if len(images) == len(visuals) == 1:
        return [0]
    order = [next((at for at, visual in enumerate(visuals) if _same(visual, image)), None) for image in images]
    return None if None in order else order  # type: ignore[return-value]


def _same(one: Any, other: Any) -> bool:
    return one is other or (one.size == other.size and one.convert("RGB").tobytes() == other.convert("RGB").tobytes())
