"""Boxes from rows of datasets, read as their tasks' own scoring reads them, and from files of users."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from plam_eval.errors import DamagedFileError, InputError
from plam_eval.harness import boxes as reading
from plam_eval.harness.boxes import boxes_line, plausible, read_boxes, scaled_to
from plam_eval.harness.documents import Documents
from plam_eval.harness.lookup import load_tasks, task_manager
from plam_eval.harness.tasks import TASKS, boxes_of_document
from tests.helpers.offline_copies import write_copies
from tests.helpers.offline_grounding import GROUNDED, HEIGHT, WIDTH, Grounding, odinw, of_other_repository
from tests.helpers.offline_tasks import COPIES

REGIONS = {  # of the RefCOCO family: a task of each template, and which copy it reads
    "refcoco_bbox_rec_val": ("lmms-lab-encoder/RefCOCO", "val"),
    "refcoco_bbox_val": ("lmms-lab-encoder/RefCOCO", "val"),
    "refcoco_seg_val": ("lmms-lab-encoder/RefCOCO", "val"),
    "refcoco_grounding_test": ("lmms-lab-encoder/RefCOCO", "test"),
    "refcoco+_bbox_rec_val": ("lmms-lab-encoder/RefCOCOplus", "val"),
    "refcoco+_seg_val": ("lmms-lab-encoder/RefCOCOplus", "val"),
    "refcocog_bbox_rec_test": ("lmms-lab-encoder/RefCOCOg", "test"),
    "refcocog_bbox_test": ("lmms-lab-encoder/RefCOCOg", "test"),
}
LEFT_HALF = (0.0, 0.0, WIDTH / 2, HEIGHT)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grounding")
    refcoco = {copy.split: copy for copy in COPIES if copy.repo.endswith("/RefCOCO")}
    family = [of_other_repository(refcoco["val"], repo, split) for repo, split in sorted(set(REGIONS.values()))]
    write_copies(folder, [*(grounding.copy for grounding in (*GROUNDED, odinw())), *family])
    return folder


@pytest.fixture
def in_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(hub)
    return hub


def task_of(name: str) -> Any:
    (output,) = load_tasks(task_manager(), [name])
    return output.task


@pytest.mark.parametrize("grounding", [*GROUNDED, odinw()], ids=lambda grounding: grounding.copy.tasks[0])
def test_boxes_are_where_the_dataset_has_them(in_hub: Path, grounding: Grounding) -> None:
    task, documents = task_of(grounding.copy.tasks[0]), Documents()
    for number, expected in enumerate(grounding.boxes):
        pictures = documents.of_task(task, number)
        assert pictures.sizes == [(WIDTH, HEIGHT)]
        if expected:
            assert pictures.boxes is not None and len(pictures.boxes) == 1
            assert pictures.boxes[0] == [pytest.approx(box) for box in expected]
        else:
            assert pictures.boxes is None and pictures.problem is None


@pytest.mark.parametrize("name", REGIONS)
def test_every_form_of_refcoco_has_its_region(in_hub: Path, name: str) -> None:
    task, documents = task_of(name), Documents()
    for number in range(len(task.eval_docs)):
        assert documents.of_task(task, number).boxes == [[pytest.approx(LEFT_HALF)]]


# Answers made of a box as each task asks for it, and the metric that is 1 for the very box.
ANSWERS = {
    "refcoco_bbox_rec_val": (
        "refcoco_IoU",
        lambda box: f"[{box[0] / 32}, {box[1] / 24}, {box[2] / 32}, {box[3] / 24}]",
    ),
    "refcocog_bbox_rec_test": (
        "refcoco_IoU",
        lambda box: f"[{box[0] / 32}, {box[1] / 24}, {box[2] / 32}, {box[3] / 24}]",
    ),
    "refcoco_grounding_test": ("refcoco_grounding_IoU", lambda box: json.dumps([{"bbox_2d": list(box)}])),
    "screenspot_rec_test": (
        "screenspot_IoU",
        lambda box: f"[{box[0] / 32}, {box[1] / 24}, {box[2] / 32}, {box[3] / 24}]",
    ),
    "groundingme": ("groundingme_IoU", lambda box: json.dumps({"bbox_2d": list(box)})),
    "odinw13": ("odinw13_IoU", lambda box: json.dumps([{"bbox_2d": list(box), "label": "dog"}])),
    "multihopspatial": (
        "avg_iou",
        lambda box: f"Answer: (a) it\n{json.dumps({'bbox_2d': [box[0] / 32, box[1] / 24, box[2] / 32, box[3] / 24]})}",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_box_as_an_answer_overlaps_wholly_by_the_tasks_own_metric(in_hub: Path, name: str) -> None:
    task, (metric, answer) = task_of(name), ANSWERS[name]
    boxes = Documents().of_task(task, 0).boxes
    assert boxes is not None
    full = 100 if name == "multihopspatial" else len(boxes[0]) and 1 / len(boxes[0])  # of several, one is answered

    def overlap(box: Any) -> float:
        document = task.eval_docs[0]
        return float(task.aggregation()[metric]([task.process_results(document, [answer(box)])[metric]]))

    assert overlap(boxes[0][0]) == pytest.approx(full, abs=1e-4)
    left, top, right, bottom = boxes[0][0]
    assert overlap((left, top, right, top + (bottom - top) / 2)) == pytest.approx(full / 2, abs=1e-4)


@pytest.mark.parametrize("name", ["screenspot_v2", "screenspot_pro", "osworld_g"])
def test_points_are_right_inside_the_box_alone_by_the_tasks_own_metric(in_hub: Path, name: str) -> None:
    task, documents = task_of(name), Documents()
    metric = next(iter(task.aggregation()))
    for number in range(2):
        boxes = documents.of_task(task, number).boxes
        assert boxes is not None
        left, top, right, bottom = boxes[0][0]
        inside = [(left + 0.1, top + 0.1), (right - 0.1, bottom - 0.1)]
        outside = [(left - 0.1, top + 0.1), (right + 0.1, bottom - 0.1), (left + 0.1, bottom + 0.1)]
        for (x, y), expected in [*((point, True) for point in inside), *((point, False) for point in outside)]:
            answer = f"[{x / WIDTH}, {y / HEIGHT}]"
            assert task.process_results(task.eval_docs[number], [answer])[metric]["correct"] is expected


@pytest.mark.parametrize("task", ["visualwebbench_element_ground", "visualwebbench_action_ground"])
def test_of_labelled_elements_the_right_one_is_meant(monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    rouge = ModuleType("rouge")
    rouge.Rouge = object  # type: ignore[attr-defined]  # of other tasks; the package need not be installed
    monkeypatch.setitem(sys.modules, "rouge", rouge)
    from lmms_eval.tasks.visualwebbench import utils

    options = [[0.0, 0.0, 0.25, 0.5], [0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0]]
    row = {"image": Image.new("RGB", (80, 40)), "options": options, "answer": 2, "task_type": task[15:]}
    pixels = [[[left * 80, top * 40, right * 80, bottom * 40]] for left, top, right, bottom in options]
    for letter, boxes in zip("ABC", pixels, strict=True):
        right = utils.visualwebbench_process_results_accuracy(row, [letter])["accuracy"] == 100.0
        assert (boxes_of_document(task, row) == [[tuple(boxes[0])]]) is right
    assert boxes_of_document(task, {**row, "options": [[0, 0, 20, 20], [40, 20, 80, 40], [20, 20, 40, 40]]}) == [
        [(20, 20, 40, 40)]
    ]


@pytest.mark.parametrize("task", ["visualwebbench_element_ocr", "visualwebbench_action_prediction"])
def test_of_an_element_that_is_marked_its_place(task: str) -> None:
    row = {"image": Image.new("RGB", (80, 40)), "bbox": [0.25, 0.5, 0.5, 1.0], "options": ["a", "b"], "answer": 1}
    assert boxes_of_document(task, row) == [[(20, 20, 40, 40)]]


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, format="PNG")
    return buffer.getvalue()


def test_of_an_image_that_is_not_decoded_the_header_is_enough() -> None:
    row = {"image": {"bytes": png((80, 40))[:60], "path": None}, "bbox": [0.25, 0.5, 0.5, 1.0]}
    assert boxes_of_document("screenspot_rec_test", row) == [[(20, 20, 40, 40)]]


BROKEN: list[Any] = [None, [], [1, 2, 3], [1, 2, 3, 4, 5], "", "four numbers", [[1, 2, 3, 4]], {"x": 1}, 7]
BROKEN += [[5, 5, 5, 9], [5, 5, 1, 9], [math.nan, 0, 1, 1], [0, 0, math.inf, 1], [0, 0, 0, 0], [None] * 4]
WITH_BOXES = sorted(task for task, known in TASKS.items() if known.boxes is not None)


@pytest.mark.parametrize("task", WITH_BOXES)
def test_a_row_with_a_broken_box_has_none(task: str) -> None:
    """Whatever the columns are called: a copy without them, or with something else in them."""
    image = Image.new("RGB", (80, 40))
    for broken in BROKEN:
        if isinstance(broken, list) and broken[:2] == [5, 5]:  # a corner and a size, to some
            broken = [5, 5, 0, 9] if broken[2] == 5 else [5, 5, -1, 9]
        for columns in ({}, {"box_type": "bbox", "subtask_l1": "Spatial", "answer": 0, "image_size": [80, 40]}):
            row = {"image": image, "bbox": broken, "bboxes": [broken], "box_coordinates": broken, "options": [broken]}
            assert boxes_of_document(task, {**row, **columns}) is None, broken
    assert boxes_of_document(task, {}) is None


@pytest.mark.parametrize("task", ["mmstar", "gqa", "pope", "unheard_of"])
def test_a_task_that_is_not_known_to_have_boxes_has_none(task: str) -> None:
    assert boxes_of_document(task, {"image": Image.new("RGB", (8, 8)), "bbox": [1, 1, 4, 4]}) is None


def test_boxes_are_scaled_with_their_image() -> None:
    assert scaled_to([[(1, 2, 3, 4)], []], [(10, 10), (5, 5)], [(20, 5), (7, 7)]) == [[(2, 1, 6, 2)], []]
    assert plausible([[(1, 2, 3, 4)], []]) == [[(1, 2, 3, 4)], []]
    assert plausible([[], []]) is None


# --- files of users ---------------------------------------------------------------------------------------------------


def test_a_file_of_boxes(tmp_path: Path) -> None:
    file = tmp_path / "boxes.jsonl"
    two = [[(0.0, 1.0, 2.5, 3.0), (4.0, 4.0, 9.0, 9.0)], []]
    file.write_text(boxes_line(("textvqa_val", 3), two) + "\n\r\n" + boxes_line(("mmmu_val", 0), [[(1, 1, 2, 2)]]))
    assert read_boxes(file) == {("textvqa_val", 3): two, ("mmmu_val", 0): [[(1, 1, 2, 2)]]}
    assert read_boxes(file, ["mmmu_val", "textvqa_val"]) == read_boxes(file)


def line(task: Any = "gqa", doc_id: Any = 0, boxes: Any = ([[1, 1, 2, 2]],), **more: Any) -> str:
    return json.dumps({"task": task, "doc_id": doc_id, "boxes": boxes, **more})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("{", "line 1: cannot be read as JSON"),
        ("[]", "line 1: found list, expected a JSON object"),
        ('{"task": "gqa"}', "line 1: has no doc_id, boxes; expected task, doc_id and boxes"),
        (line(task=7), "line 1: task is 7; expected the name of a task"),
        (line(task="gqaa"), r"line 1: there is no task 'gqaa' \(did you mean gqa\?\)"),
        (line(doc_id=-1), "line 1: doc_id is -1; expected a whole number from 0"),
        (line(doc_id=True), "line 1: doc_id is True"),
        (line(doc_id=1.0), "line 1: doc_id is 1.0"),
        (line(boxes={"a": 1}), "line 1: boxes is {'a': 1}; expected a list of boxes for each image"),
        (line(boxes=[[1, 1, 2, 2]]), "put a list around the boxes of each image"),
        (line(boxes=[[[1, 1, 2]]]), r"line 1: found the box \[1, 1, 2\]; expected \[left, top, right, bottom\]"),
        (line(boxes=[[[1, 1, 1, 2]]]), "with left < right and top < bottom"),
        (line(boxes=[[[1, 1, float("nan"), 2]]]), "found the box"),
        (line(boxes=[[["1", 1, 2, 2]]]), "found the box"),
        (line(boxes=[[[True, 1, 2, 2]]]), "found the box"),
        (line(boxes=[[]]), "line 1: boxes holds none; leave the line out"),
        (line(boxs=[]), r"line 1: unknown key 'boxs' \(did you mean boxes\?\)"),
        (line() + "\n" + line(), "line 2: a second line for document 0 of gqa"),
        ("", "holds no boxes"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path: Path, wrong: str, said: str) -> None:
    file = tmp_path / "boxes.jsonl"
    file.write_text(wrong)
    with pytest.raises(InputError, match=said):
        read_boxes(file, ["gqa", "pope"])


def test_all_of_it_at_once_and_of_very_many_the_first(tmp_path: Path) -> None:
    file = tmp_path / "boxes.jsonl"
    file.write_text("\n".join([line(doc_id=-1), line(doc_id=3, boxes=[[[3, 1, 2, 2]]]), "?"]))
    with pytest.raises(InputError) as raised:
        read_boxes(file)
    assert [problem.split(":")[0] for problem in raised.value.problems] == ["line 1", "line 2", "line 3"]
    file.write_text("?\n" * 10_000)
    with pytest.raises(InputError, match="and 9980 more"):
        read_boxes(file)


def test_what_is_no_file_of_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_boxes(tmp_path / "boxes.jsonl")
    with pytest.raises(DamagedFileError, match="is a folder"):
        read_boxes(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedFileError, match="no file that holds something"):
        read_boxes(tmp_path / "pipe")
    (tmp_path / "large").write_text(line())
    monkeypatch.setattr("plam_eval.harness.boxes._LARGEST_FILE", 10)
    with pytest.raises(DamagedFileError, match="is larger than 10 bytes"):
        read_boxes(tmp_path / "large")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="line 1: cannot be read as JSON"):
        monkeypatch.undo()
        read_boxes(tmp_path / "bytes")


def test_like_names_are_looked_for_in_the_lines_that_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each search takes milliseconds, and a file may have a million lines."""
    asked: list[Any] = []

    def searched(word: Any, names: Any) -> str:
        asked.append(word)
        return ""

    monkeypatch.setattr(reading, "did_you_mean", searched)
    file = tmp_path / "boxes.jsonl"
    file.write_text("\n".join(line(f"task{number}") for number in range(500)))
    with pytest.raises(InputError, match="and 480 more"):
        read_boxes(file, ["gqa"])
    assert len(asked) == 20
