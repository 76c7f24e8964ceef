"""What documents show, where in it the thing asked about is, and the boxes of another document as a control."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from plam_eval.demo.hub import TASKS as SUITE
from plam_eval.demo.hub import read_manifest
from plam_eval.demo.scenes import COLORS
from plam_eval.harness.boxes import BOXES_FILE
from plam_eval.harness.documents import Documents, may_have_boxes
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.lookup import dataset_of, load_tasks, task_manager
from plam_eval.probing.attention_measures import measures
from plam_eval.probing.token_grid import ImageTokens

WHOLE_SCENE = ("most_color", "count_all", "count_is")


def task_of(name: str) -> Any:
    (output,) = load_tasks(task_manager(), [name])
    return output.task


# --- the offline suite ------------------------------------------------------------------------------------------------


def drawn(image: Image.Image) -> np.ndarray:
    """Which pixels are not background."""
    pixels = np.asarray(image).astype(int)
    return np.abs(pixels - pixels[0, 0]).sum(-1) > 20


def inside(shape: tuple[int, int], boxes: Any) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for left, top, right, bottom in boxes:
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    return mask


@pytest.mark.parametrize("name", SUITE)
def test_boxes_of_drawn_scenes_are_around_the_things_that_are_asked_about(in_suite: Path, name: str) -> None:
    records, task, documents = read_manifest(in_suite)["tasks"][name]["documents"], task_of(name), Documents()
    for doc_id, record in enumerate(records):
        pictures = documents.of_task(task, doc_id)
        (image,) = pictures.images
        things = [record["cells"][cell] for cell in record["about"]]
        if record["kind"] in WHOLE_SCENE or (record["kind"].startswith("exists") and record["answer"].lower() == "no"):
            assert not things
        if not things:
            assert pictures.boxes is None and pictures.other_boxes is None
            continue
        assert pictures.boxes is not None
        (boxes,) = pictures.boxes
        assert len(boxes) == len(things) == len(set(record["about"]))
        for box, thing in zip(boxes, things, strict=True):
            color, _ = thing.split()
            of_thing = np.asarray(image)[inside((64, 64), [box]) & drawn(image)]
            assert len(of_thing) > 40
            assert np.abs(np.median(of_thing, 0) - COLORS[color]).max() <= 16, (record, box)
        # Nothing of them is outside: what is drawn elsewhere is of the cells that are not asked about.
        others = [box for cell, box in enumerate(record["boxes"]) if box and cell not in record["about"]]
        grown = [(left - 1, top - 1, right + 2, bottom + 2) for left, top, right, bottom in others]
        assert not (drawn(image) & ~inside((64, 64), boxes) & ~inside((64, 64), grown)).any()
        assert len([cell for cell in record["cells"] if cell]) == len(boxes) + len(others)


PLACES = (
    *("color_at", "shape_at", "color_of", "shape_of", "where", "neighbour", "same_color_as", "sum", "largest"),
    *("is_color_at", "is_shape_at", "same_color", "more", "sum_is"),
)


def test_every_question_for_a_thing_or_a_place_has_boxes(suite: Path) -> None:
    datasets_of = read_manifest(suite)["datasets"]
    kinds = set()
    for record in (record for dataset in datasets_of.values() for record in dataset["documents"]):
        if record["kind"] in PLACES:
            assert record["about"], record
            kinds.add(record["kind"])
        if record["kind"] in ("neighbour", "same_color_as", "same_color"):
            assert len(record["about"]) == 2, "the one that is asked for, and the one that it is told by"
        if record["kind"] == "where":
            assert len(record["about"]) == 1
    assert len(kinds) > 10


def planted(boxes: Any) -> tuple[np.ndarray, list[ImageTokens]]:
    """Attention to the cells of an 8 x 8 grid by how much of them lies in the boxes."""
    row, column = (each.ravel() for each in np.mgrid[:8, :8])
    edges = np.stack([column, row, column + 1, row + 1], 1) * 8.0
    tokens = ImageTokens(np.arange(64), np.zeros(64, int), row, column, edges, (64, 64))
    attention = inside((64, 64), boxes).reshape(8, 8, 8, 8).mean((1, 3)).ravel()
    return attention, [tokens]


def test_attention_to_the_boxes_is_over_chance_and_to_another_documents_is_not(in_suite: Path) -> None:
    task, documents = task_of("mmstar"), Documents()
    over, other = [], []
    for doc_id in range(30):
        pictures = documents.of_task(task, doc_id)
        if pictures.boxes is None:
            continue
        attention, tokens = planted(pictures.boxes[0])
        seen = measures(attention, tokens, boxes=pictures.boxes)
        assert seen.box_share_of_image > 0.6 and seen.over_chance > np.log(1.4)
        over.append(float(seen.over_chance))
        assert pictures.other_boxes is not None
        control = measures(attention, tokens, boxes=pictures.other_boxes)
        other.append(float(control.box_share_of_image - control.chance))
        flat = measures(np.ones(64), tokens, boxes=pictures.boxes)
        assert flat.box_share_of_image == pytest.approx(flat.chance)
    assert len(over) > 15 and np.mean(over) > 0.8
    assert abs(np.mean(other)) < 0.15


@pytest.mark.parametrize("name", ["mme", "gqa", "mmbench_en_dev_static", "mmmu_val"])
def test_the_control_is_of_the_next_document_of_another_image_that_has_boxes(in_suite: Path, name: str) -> None:
    task, documents = task_of(name), Documents()
    all_of_them = [documents.of_task(task, doc_id) for doc_id in range(30)]
    pixels = [pictures.images[0].tobytes() for pictures in all_of_them]
    for doc_id, pictures in enumerate(all_of_them):
        if pictures.boxes is None:
            continue
        ahead = [(doc_id + step) % 30 for step in range(1, 30)]
        fitting = [at for at in ahead if all_of_them[at].boxes is not None and pixels[at] != pixels[doc_id]]
        assert pictures.other_boxes == all_of_them[fitting[0]].boxes
    if name == "mme":  # each image is asked about twice, one after the other
        assert any(pixels[at] == pixels[at + 1] and all_of_them[at + 1].boxes for at in range(0, 30, 2))


def test_it_is_the_same_in_whichever_order_documents_come(in_suite: Path) -> None:
    task = task_of("pope")
    forwards, backwards = Documents(), Documents()
    one = [forwards.of_task(task, doc_id) for doc_id in range(30)]
    other = [backwards.of_task(task, doc_id) for doc_id in reversed(range(30))]
    for first, second in zip(one, reversed(other), strict=True):
        assert (first.boxes, first.other_boxes) == (second.boxes, second.other_boxes)


def test_boxes_beside_a_dataset_are_of_that_folder_alone(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy without the file, as every dataset of the hub is, has none; a file elsewhere is not looked at."""
    shutil.copytree(suite / "lmms-lab-encoder" / "POPE", tmp_path / "lmms-lab-encoder" / "POPE")
    file = tmp_path / "lmms-lab-encoder" / "POPE" / BOXES_FILE
    monkeypatch.chdir(tmp_path)
    assert may_have_boxes("pope", dataset_of(task_manager(), "pope"))
    assert Documents().of_task(task_of("pope"), 0).boxes is not None
    file.rename(tmp_path / BOXES_FILE)
    assert not may_have_boxes("pope", dataset_of(task_manager(), "pope"))
    assert Documents().of_task(task_of("pope"), 0).boxes is None
    file.symlink_to(tmp_path / BOXES_FILE)  # which leads out of the dataset's folder
    assert Documents().of_task(task_of("pope"), 0).boxes is None
    file.unlink()
    file.write_text((tmp_path / BOXES_FILE).read_text() + "{")
    assert Documents().of_task(task_of("pope"), 0).boxes is None, "a damaged file is not used in part"


def test_what_may_have_boxes_is_known_before_anything_is_loaded() -> None:
    assert may_have_boxes("refcoco_bbox_rec_val") and not may_have_boxes("gqa", "lmms-lab-encoder/GQA")
    assert may_have_boxes("gqa", None, {("gqa", 5): [[(0, 0, 1, 1)]]})
    assert not may_have_boxes("pope", None, {("gqa", 5): [[(0, 0, 1, 1)]]})
    assert not may_have_boxes("unheard_of")


# --- boxes of the user's ----------------------------------------------------------------------------------------------


def test_boxes_that_are_given_go_before_the_datasets(in_suite: Path) -> None:
    task = task_of("pope")
    given: dict[Any, Any] = {
        ("pope", 0): [[(1.0, 2.0, 30.0, 40.0)]],
        ("pope", 4): [[(0.0, 0.0, 8.0, 8.0)]],
        ("gqa", 1): [[]],
    }
    documents = Documents(given)
    pictures = documents.of_task(task, 0)
    assert pictures.boxes == given["pope", 0] and pictures.other_boxes == given["pope", 4]
    assert documents.of_task(task, 4).other_boxes == given["pope", 0], "behind the last one is the first"
    assert documents.of_task(task, 2).boxes is None, "a task that is in the file has no other boxes"
    assert documents.of_task(task_of("mmstar"), 0).boxes == Documents().of_task(task_of("mmstar"), 0).boxes


@pytest.mark.parametrize(
    "boxes", [[[(64.0, 0.0, 80.0, 8.0)]], [[(-9.0, 0.0, 0.0, 8.0)]], [[(0.0, 0.0, 8.0, 8.0)], [(0.0, 0.0, 8.0, 8.0)]]]
)
def test_boxes_outside_of_the_image_are_told_and_not_used(in_suite: Path, boxes: Any) -> None:
    pictures = Documents({("pope", 0): boxes}).of_task(task_of("pope"), 0)
    assert pictures.boxes is None and pictures.problem is not None
    assert "expected some in each image" in pictures.problem and "(64, 64)" in pictures.problem


# --- tasks made by hand -----------------------------------------------------------------------------------------------


class Task:
    """As much of a task of lmms-eval as is asked for: one or several images in a row."""

    DATASET_PATH = None

    def __init__(self, rows: Any, name: str = "groundingme") -> None:
        self.dataset, self.name, self.decoded = {"test": rows}, name, 0
        self.config = SimpleNamespace(task=name, test_split="test", validation_split=None)

    def has_test_docs(self) -> bool:
        return True

    def doc_to_visual(self, row: Any) -> list[Any]:
        self.decoded += 1
        images = row["images"] if "images" in row else [row["image"]]
        return [image.convert("RGB") for image in images]

    def doc_to_messages(self, row: Any) -> list[Any]:
        """The images in reverse, with text between them."""
        content: list[Any] = []
        for image in reversed(self.doc_to_visual(row)):
            content += [{"type": "text", "text": "and"}, {"type": "image", "url": image}]
        return [{"role": "user", "content": content}]

    def request(self, doc_id: int, *, chat: bool = False) -> Any:
        function = (self.doc_to_messages, {}) if chat else ({}, self.doc_to_visual)
        return SimpleNamespace(args=("?", *function, doc_id, self.name, "test"), task_name=self.name, doc_id=doc_id)


def image(color: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, (color, 0, 0))


def row(color: int, box: Any = (4, 3, 20, 15), size: tuple[int, int] = (40, 30)) -> dict[str, Any]:
    return {"image": image(color, size), "bbox": box, "subtask_l1": "Spatial"}


def test_the_other_documents_boxes_are_scaled_to_this_image() -> None:
    task = Task([row(0), row(1, (10, 10, 50, 40), (80, 120))])
    documents = Documents()
    assert documents.of_request(task.request(0)).other_boxes == [[(5, 2.5, 25, 10)]]
    assert documents.of_request(task.request(1)).other_boxes == [[(8, 12, 40, 60)]]


def test_there_is_none_where_all_documents_are_of_one_image_or_none_has_boxes() -> None:
    assert Documents().of_request(Task([row(0), row(0, (1, 1, 2, 2))]).request(0)).other_boxes is None
    assert Documents().of_request(Task([row(0)]).request(0)).other_boxes is None
    pictures = Documents().of_request(Task([row(0), row(1, (9, 9, 9, 9)), row(2, (50, 1, 60, 9))]).request(0))
    assert pictures.boxes == [[(4, 3, 20, 15)]] and pictures.other_boxes is None


def test_regions_that_are_drawn_into_one_image_are_of_one_image() -> None:
    """RefCOCO's files are named by image and region, and its captions are asked for with the region drawn in."""
    from lmms_eval.tasks.refcoco.utils import refcoco_bbox_doc_to_visual

    class Drawn(Task):
        def doc_to_visual(self, row: Any) -> list[Any]:
            return list(refcoco_bbox_doc_to_visual(row))

    places = [(1, 0, [1, 1, 5, 5]), (1, 1, [9, 9, 5, 5]), (2, 0, [20, 10, 8, 8])]
    rows = [
        {"image": image(number), "bbox": box, "file_name": f"COCO_train2014_{number:012d}_{region}.jpg"}
        for number, region, box in places
    ]
    pictures = Documents().of_request(Drawn(rows, "refcoco_bbox_val").request(0))
    assert pictures.boxes == [[(1, 1, 6, 6)]] and pictures.other_boxes == [[(20, 10, 28, 18)]]
    assert pictures.images[0].getpixel((1, 1)) == (255, 0, 0), "the box is where the task draws it"


def test_a_request_without_its_tasks_functions_is_refused() -> None:
    request = Task([row(0)]).request(0)
    request.args = ("?", {}, lambda row: [row["image"]], 0, "groundingme", "test")
    with pytest.raises(EvaluationError, match=r"document 0 of groundingme: found <function .*; expected a method"):
        Documents().of_request(request)


def test_the_boxes_of_a_large_dataset_are_found_without_reading_it() -> None:
    class Rows(list[Any]):
        read = 0

        def __len__(self) -> int:
            return 200_000

        def __getitem__(self, doc_id: Any) -> Any:
            Rows.read += 1
            return row(doc_id % 256, (9, 9, 9, 9)) if doc_id % 100_000 else row(doc_id % 256)

    task = Task(Rows())
    assert Documents().of_request(task.request(0)).other_boxes is None, "the next one that has boxes is too far"
    assert Rows.read < 3000 and task.decoded <= 3
    same = Task([row(0)] * 500)
    assert Documents().of_request(same.request(0)).other_boxes is None
    assert same.decoded < 20, "one image, so that many in a row are of it"


def test_images_of_a_table_are_not_decoded_to_look_at_its_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "bbox": datasets.Sequence(datasets.Value("int64")),
            "subtask_l1": datasets.Value("string"),
        }
    )
    boxes = [[4, 3, 20, 15], *([[9, 9, 9, 9]] * 20), [1, 1, 5, 5]]
    rows = datasets.Dataset.from_list([row(at, box) for at, box in enumerate(boxes)], features=features)
    stock = datasets.Image.decode_example

    def counted(*args: Any, **kwargs: Any) -> Any:
        decoded.append(1)
        return stock(*args, **kwargs)

    monkeypatch.setattr(datasets.Image, "decode_example", counted)
    pictures = Documents().of_request(Task(rows).request(0))
    assert pictures.boxes == [[(4, 3, 20, 15)]] and pictures.other_boxes == [[(1, 1, 5, 5)]]
    assert len(decoded) == 2


def several(*colors: int) -> dict[str, Any]:
    return {"images": [image(color) for color in colors]}


def test_boxes_go_with_their_image_where_a_prompt_orders_them_otherwise() -> None:
    task = Task([several(1, 2, 3), several(4, 5, 6), several(7, 8)], "many")
    own: list[Any] = [[(0, 0, 1, 1)], [(0, 0, 2, 2)], []]
    other: list[Any] = [[(0, 0, 4, 4)], [], [(0, 0, 6, 6)]]
    documents = Documents({("many", 0): own, ("many", 1): other, ("many", 2): [[(0, 0, 1, 1)], []]})
    simple, chat = documents.of_request(task.request(0)), documents.of_request(task.request(0, chat=True))
    assert [each.getpixel((0, 0))[0] for each in simple.images] == [1, 2, 3]
    assert [each.getpixel((0, 0))[0] for each in chat.images] == [3, 2, 1]
    assert (simple.boxes, simple.other_boxes) == (own, other)
    assert (chat.boxes, chat.other_boxes) == (own[::-1], other[::-1])


def test_documents_without_images_and_videos_show_none() -> None:
    class Words(Task):
        def doc_to_visual(self, row: Any) -> Any:
            return row["visuals"]

        def doc_to_messages(self, row: Any) -> list[Any]:
            return [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}]

    task = Words([{"visuals": None}, {"visuals": []}, {"visuals": ["film.mp4"]}])
    for doc_id in range(3):
        for chat in (False, True):
            assert Documents().of_request(task.request(doc_id, chat=chat)).images == []
