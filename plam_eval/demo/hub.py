"""Offline copies of the nine benchmarks' datasets: drawn scenes with true answers, in the shape of the real ones.

`write_hub(folder)` writes one sub-folder per dataset, named like its hub repository. `datasets.load_dataset` prefers a
relative folder of that name to the hub, so with `folder` as the working directory the *stock* lmms-eval tasks run
unmodified and without a network:

    python -m plam_eval.demo.hub suite && cd suite && HF_HUB_OFFLINE=1 lmms-eval --tasks plam9 ...

Repository names, configs, splits, columns, column types and category names are the real ones; category names are a
convention here (a drawn scene has no emotion and no accounting), the questions behind them are those of
`plam_eval.demo.questions`. Every scene belongs to the "eval" split of `scenes.split_of` and is used once. Answer
letters are uniform and yes/no answers balanced within each task, so a constant answer scores the share that the
manifest gives in `answers`. MMBench rows are single questions: the circular repetitions of the real data are left out.

The manifest, `plam_offline_suite.json`, holds for every document its question kind, the scene's cells, the
ground-truth boxes in pixels (left, top, right, bottom), in the order of `scenes.POSITIONS`, and which of the cells the
question is about. The columns of the real data have no place for boxes. So those of the things that a question is about
lie beside each dataset, in `plam_boxes.jsonl`, by task and document.

With `images="swapped"` every question is asked of the image of another scene. What a model still answers right then,
and what a merge still gains, is knowledge of what answers look like, not of the image.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import random
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from plam_eval import files
from plam_eval.demo import questions, scenes
from plam_eval.demo.questions import WORD_KINDS, YES_NO_KINDS, Question, ask_about
from plam_eval.demo.scenes import Drawing, Scene, scene_of
from plam_eval.errors import InputError, PlamError, quoted, system_error
from plam_eval.harness.boxes import BOXES_FILE, boxes_line
from plam_eval.terminal import Terminal, labelled

MANIFEST = "plam_offline_suite.json"
VERSION = 1
GQA_KINDS: dict[str, tuple[str, ...]] = {
    "all": tuple(questions.KINDS),
    "reasoning": questions.REASONING_KINDS,
    "perception": questions.PERCEPTION_KINDS,
}
IMAGES = ("own", "swapped")
MINIMUM_DOCUMENTS = 30  # every category of every task needs at least one: 30 MMMU subjects, 14 MME categories in pairs

Row = dict[str, Any]
ColumnType = str | Mapping[str, str]  # a `datasets` value type, "image", or a struct of value types


class SuiteError(PlamError, RuntimeError):
    """The suite cannot be written where it was asked for, or a folder holds no usable suite."""


# --- the datasets: names, configs, splits, columns --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Table:
    """One parquet file: a split of one config of a dataset. `columns` maps column names to their types."""

    repo: str
    config: str
    split: str
    columns: Mapping[str, ColumnType]


def _strings(names: str) -> dict[str, ColumnType]:
    return dict.fromkeys(names.split(), "string")


_MMBENCH_COLUMNS: dict[str, ColumnType] = {
    "index": "int64",
    **_strings("question hint answer A B C D category"),
    "image": "image",
    **_strings("source L2-category comment split"),
}

TABLES: dict[str, Table] = {
    "mmstar": Table(
        "Lin-Chen/MMStar",
        "val",
        "val",
        {
            "index": "int64",
            "question": "string",
            "image": "image",
            **_strings("answer category l2_category"),
            "meta_info": {"source": "string", "split": "string", "image_path": "string"},
        },
    ),
    "mmbench_en": Table("lmms-lab-encoder/MMBench", "en", "dev", _MMBENCH_COLUMNS),
    "mmbench_cn": Table("lmms-lab-encoder/MMBench", "cn", "dev", _MMBENCH_COLUMNS),
    "mme": Table(
        "lmms-lab-encoder/MME",
        "default",
        "test",
        {"question_id": "string", "image": "image", **_strings("question answer category")},
    ),
    "mmmu": Table(
        "lmms-lab-encoder/MMMU",
        "default",
        "validation",
        {
            **_strings("id question options explanation"),
            **{f"image_{i}": "image" for i in range(1, 8)},
            **_strings("img_type answer topic_difficulty question_type subfield"),
        },
    ),
    "gqa": Table(
        "lmms-lab-encoder/GQA",
        "testdev_balanced_instructions",
        "testdev",
        {**_strings("id imageId question answer fullAnswer"), "isBalanced": "bool"},
    ),
    "gqa_images": Table(
        "lmms-lab-encoder/GQA", "testdev_balanced_images", "testdev", {"id": "string", "image": "image"}
    ),
    "pope": Table(
        "lmms-lab-encoder/POPE",
        "default",
        "test",
        {**_strings("id question_id question answer image_source"), "image": "image", "category": "string"},
    ),
    "realworldqa": Table(
        "lmms-lab-encoder/RealWorldQA",
        "default",
        "test",
        {"image": "image", **_strings("image_path question answer")},
    ),
    "seedbench_2_plus": Table(
        "doolayer/SEED-Bench-2-Plus",
        "default",
        "test",
        {
            **_strings("question_id question choice_A choice_B choice_C choice_D answer"),
            "image": "image",
            **_strings(
                "question_image_type question_image_subtype data_id data_type level subpart data_source version"
            ),
        },
    ),
}

# Which dataset serves which tasks of lmms-eval (and of plam_eval.tasks).
TASKS: dict[str, str] = {
    "mmstar": "mmstar",
    "mmbench_en_dev_static": "mmbench_en",
    "mmbench_en_dev": "mmbench_en",
    "mmbench_cn_dev_static": "mmbench_cn",
    "mmbench_cn_dev": "mmbench_cn",
    "mme": "mme",
    "mmmu_val": "mmmu",
    "gqa": "gqa",
    "pope": "pope",
    "realworldqa": "realworldqa",
    "seedbench_2_plus": "seedbench_2_plus",
}


# --- drawing documents ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Picture:
    """A scene as it is stored: PNG bytes and the boxes of what was drawn."""

    scene: Scene
    png: bytes
    boxes: tuple[scenes.Box | None, ...]

    def column(self, path: str) -> Row:
        return {"bytes": self.png, "path": path}


@dataclasses.dataclass(frozen=True)
class _Document:
    row: Row
    answer: str
    question: Question
    picture: _Picture  # of the scene that is asked about

    def record(self) -> Row:
        """What the manifest holds of it."""
        question = self.question
        return {
            "kind": question.kind,
            "question": question.text,
            "choices": question.choices if self.answer in questions.LETTERS else None,
            "answer": self.answer,
            "cells": [str(thing) if thing else None for thing in self.picture.scene.cells],
            "boxes": self.picture.boxes,
            "about": self.question.about,
        }

    def about(self) -> list[list[int]]:
        """Boxes of the things that it is about, by their edges in pixels: scenes name the last pixel, not the edge."""
        boxes = [box for cell in self.question.about if (box := self.picture.boxes[cell]) is not None]
        return [[left, top, right + 1, bottom + 1] for left, top, right, bottom in boxes]


class _Asker:
    """Questions about evaluation scenes, each scene used once in the whole suite."""

    def __init__(self, name: str, seed: int, used: set[str]) -> None:
        self.rng = random.Random(f"{seed}:{name}")
        self._used = used

    def _picture(self, scene: Scene) -> _Picture:
        self._used.add(scene.key)
        drawing: Drawing = scenes.draw(scene, seed=self.rng.getrandbits(32))
        return _Picture(scene, _png(drawing.image), drawing.boxes)

    def _scenes(self) -> Iterator[Scene]:
        while True:
            scene = scene_of("eval", self.rng)
            if scene.key not in self._used:
                yield scene

    def lettered(self, kind: str, letter: str, *, digits: bool = True) -> tuple[Question, _Picture]:
        """A question with four choices, its answer at `letter`; `digits=False` refuses answers that are numbers."""
        question, picture = self.word(kind, lambda q: digits or not q.answer.isdigit())
        others = [choice for choice in question.choices if choice != question.answer]
        others.insert(questions.LETTERS.index(letter), question.answer)
        return dataclasses.replace(question, choices=tuple(others)), picture

    def word(self, kind: str, wanted: Callable[[Question], bool] = lambda _: True) -> tuple[Question, _Picture]:
        for scene in self._scenes():
            question = ask_about(scene, kind, self.rng)
            if question and wanted(question):
                return question, self._picture(scene)
        raise AssertionError("the scene stream does not end")

    def yes_no(self, kind: str, answer: str) -> tuple[Question, _Picture]:
        return self.word(kind, lambda q: q.answer == answer)

    def pair(self, kind: str) -> tuple[Question, Question, _Picture]:
        """A "yes" and a "no" question of one kind about one scene."""
        for scene in self._scenes():
            by_answer = {q.answer: q for _ in range(16) if (q := ask_about(scene, kind, self.rng))}
            if len(by_answer) == 2:
                return by_answer["yes"], by_answer["no"], self._picture(scene)
        raise AssertionError("the scene stream does not end")

    def balanced(self, values: Sequence[str], count: int) -> list[str]:
        """`count` values, each as often as the others (to within one), in random order."""
        dealt = [values[i % len(values)] for i in range(count)]
        self.rng.shuffle(dealt)
        return dealt


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _turn(values: Sequence[str], index: int, period: int) -> str:
    """The kind for document `index` where a category comes up every `period` documents: each kind in its turn."""
    return values[(index // period) % len(values)]


_MMSTAR: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("coarse perception", "image scene and topic", ("most_color",)),
    ("coarse perception", "image style & quality", ("count_all",)),
    ("coarse perception", "image emotion", ("most_color", "color_at")),
    ("fine-grained perception", "object counting", ("count_color", "count_shape", "count_all")),
    ("fine-grained perception", "recognition", ("shape_at", "color_at")),
    ("fine-grained perception", "localization", ("where",)),
    ("instance reasoning", "single-instance reasoning", ("color_of", "shape_of")),
    ("instance reasoning", "cross-instance attribute reasoning", ("same_color_as",)),
    ("instance reasoning", "cross-instance relation reasoning", ("neighbour",)),
    ("logical reasoning", "code & sequence reasoning", ("largest",)),
    ("logical reasoning", "diagram reasoning", ("where", "neighbour")),
    ("logical reasoning", "common reasoning", ("shape_of",)),
    ("science & technology", "biology & chemistry & physics", ("color_of",)),
    ("science & technology", "electronics & energy & mechanical eng.", ("shape_at",)),
    ("science & technology", "geography & earth science & agriculture", ("where", "color_at")),
    ("math", "geometry", ("count_shape",)),
    ("math", "numeric commonsense and calculation", ("sum",)),
    ("math", "statistical reasoning", ("count_color", "largest")),
)


def _mmstar(asker: _Asker, count: int) -> list[_Document]:
    documents = []
    for i, letter in enumerate(asker.balanced(questions.LETTERS, count)):
        category, l2_category, kinds = _MMSTAR[i % len(_MMSTAR)]
        question, picture = asker.lettered(_turn(kinds, i, len(_MMSTAR)), letter)
        path = f"images/{i}.png"
        row = {
            "index": i,
            "question": questions.mmstar_question(question),
            "image": picture.column(path),
            "answer": letter,
            "category": category,
            "l2_category": l2_category,
            "meta_info": {"source": "scenes", "split": "val", "image_path": path},
        }
        documents.append(_Document(row, letter, question, picture))
    return documents


_MMBENCH: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("action_recognition", "finegrained_perception (cross-instance)", ("neighbour",)),
    ("attribute_comparison", "finegrained_perception (cross-instance)", ("same_color_as", "most_color")),
    ("attribute_recognition", "finegrained_perception (instance-level)", ("color_of", "color_at")),
    ("celebrity_recognition", "finegrained_perception (instance-level)", ("shape_at",)),
    ("function_reasoning", "attribute_reasoning", ("shape_of",)),
    ("future_prediction", "logic_reasoning", ("sum",)),
    ("identity_reasoning", "attribute_reasoning", ("shape_of", "color_of")),
    ("image_emotion", "coarse_perception", ("most_color",)),
    ("image_quality", "coarse_perception", ("count_all",)),
    ("image_scene", "coarse_perception", ("count_all", "color_at")),
    ("image_style", "coarse_perception", ("shape_at",)),
    ("image_topic", "coarse_perception", ("color_at",)),
    ("nature_relation", "relation_reasoning", ("same_color_as",)),
    ("object_localization", "finegrained_perception (instance-level)", ("where",)),
    ("ocr", "finegrained_perception (instance-level)", ("largest",)),
    ("physical_property_reasoning", "attribute_reasoning", ("color_of",)),
    ("physical_relation", "relation_reasoning", ("neighbour",)),
    ("social_relation", "relation_reasoning", ("same_color_as", "where")),
    ("spatial_relationship", "finegrained_perception (cross-instance)", ("neighbour", "where")),
    ("structuralized_imagetext_understanding", "logic_reasoning", ("count_color", "count_shape")),
)


def _mmbench(asker: _Asker, count: int) -> tuple[list[_Document], list[_Document]]:
    """The English rows and their Chinese translation: same pictures, indices and answers."""
    english: list[_Document] = []
    chinese: list[_Document] = []
    for i, letter in enumerate(asker.balanced(questions.LETTERS, count)):
        category, l2_category, kinds = _MMBENCH[i % len(_MMBENCH)]
        question, picture = asker.lettered(_turn(kinds, i, len(_MMBENCH)), letter)
        for documents, text, choices in (
            (english, question.text, question.choices),
            (chinese, question.text_zh, question.choices_zh),
        ):
            row = {
                "index": i,
                "question": text,
                "hint": "nan",
                "answer": letter,
                **dict(zip(questions.LETTERS, choices, strict=True)),
                "category": category,
                "image": picture.column(f"{i}.png"),
                "source": "scenes",
                "L2-category": l2_category,
                "comment": "nan",
                "split": "dev",
            }
            documents.append(_Document(row, letter, question, picture))
    return english, chinese


_MME: dict[str, tuple[str, ...]] = {
    "existence": ("exists_shape", "exists_color"),
    "count": ("count_is",),
    "position": ("is_shape_at",),
    "color": ("is_color_at",),
    "posters": ("exists_thing",),
    "celebrity": ("is_shape_at",),
    "scene": ("exists_color",),
    "landmark": ("is_color_at", "is_shape_at"),
    "artwork": ("exists_thing", "exists_shape"),
    "OCR": ("sum_is",),
    "commonsense_reasoning": ("same_color",),
    "numerical_calculation": ("sum_is",),
    "text_translation": ("more",),
    "code_reasoning": ("more", "count_is"),
}


def _mme(asker: _Asker, count: int) -> list[_Document]:
    documents = []
    for i in range(count // 2):
        category = list(_MME)[i % len(_MME)]
        yes, no, picture = asker.pair(_turn(_MME[category], i, len(_MME)))
        for question in (yes, no):
            answer = question.answer.capitalize()
            row = {
                "question_id": f"{category}/{i:04d}.png",
                "image": picture.column(f"{i:04d}.png"),
                "question": f"{question.text} Please answer yes or no.",
                "answer": answer,
                "category": category,
            }
            documents.append(_Document(row, answer, question, picture))
    return documents


MMMU_SUBJECTS = (
    "Accounting",
    "Agriculture",
    "Architecture_and_Engineering",
    "Art",
    "Art_Theory",
    "Basic_Medical_Science",
    "Biology",
    "Chemistry",
    "Clinical_Medicine",
    "Computer_Science",
    "Design",
    "Diagnostics_and_Laboratory_Medicine",
    "Economics",
    "Electronics",
    "Energy_and_Power",
    "Finance",
    "Geography",
    "History",
    "Literature",
    "Manage",
    "Marketing",
    "Materials",
    "Math",
    "Mechanical_Engineering",
    "Music",
    "Pharmacy",
    "Physics",
    "Psychology",
    "Public_Health",
    "Sociology",
)
_DIFFICULTY = {
    "Easy": ("color_at", "shape_at", "color_of", "shape_of"),
    "Medium": ("where", "count_all", "count_color", "count_shape", "largest"),
    "Hard": ("neighbour", "same_color_as", "most_color", "sum"),
}
_DIFFICULTY_OF = {kind: level for level, kinds in _DIFFICULTY.items() for kind in kinds}
_OPEN_EVERY = 5  # one document in five is an open question


def _mmmu(asker: _Asker, count: int) -> list[_Document]:
    kinds = asker.balanced(tuple(WORD_KINDS), count)
    # Each round over the subjects is one step off, so that every subject gets open questions.
    is_open = [(i + i // len(MMMU_SUBJECTS)) % _OPEN_EVERY == _OPEN_EVERY - 1 for i in range(count)]
    letters = iter(asker.balanced(questions.LETTERS, is_open.count(False)))
    seen: Counter[str] = Counter()
    documents = []
    for i, kind in enumerate(kinds):
        subject = MMMU_SUBJECTS[i % len(MMMU_SUBJECTS)]
        seen[subject] += 1
        question, picture = asker.word(kind) if is_open[i] else asker.lettered(kind, next(letters))
        answer = question.answer if is_open[i] else question.letter
        name = f"validation_{subject}_{seen[subject]}"
        row = {
            "id": name,
            "question": f"<image 1> {question.text}",
            "options": repr([] if is_open[i] else list(question.choices)),
            "explanation": "",
            "image_1": picture.column(f"{name}_1.png"),
            **dict.fromkeys(f"image_{n}" for n in range(2, 8)),
            "img_type": "['Icons and Symbols']",
            "answer": answer,
            "topic_difficulty": _DIFFICULTY_OF[kind],
            "question_type": "open" if is_open[i] else "multiple-choice",
            "subfield": "Scenes",
        }
        documents.append(_Document(row, answer, question, picture))
    return documents


def _gqa(asker: _Asker, count: int, kinds: Sequence[str]) -> tuple[list[_Document], list[Row]]:
    """Questions and, in another order, the images they refer to by id. One question in three is a yes/no question."""
    truths = iter(asker.balanced(("yes", "no"), count))
    kinds_yes_no = iter(asker.balanced([kind for kind in YES_NO_KINDS if kind in kinds], count))
    kinds_word = iter(asker.balanced([kind for kind in WORD_KINDS if kind in kinds], count))
    answers = [next(truths) if i % 3 == 2 else None for i in range(count)]
    documents, images = [], []
    for i, truth in enumerate(answers):
        question, picture = asker.yes_no(next(kinds_yes_no), truth) if truth else asker.word(next(kinds_word))
        image_id = f"n{100000 + asker.rng.randrange(400000)}{i:03d}"
        row = {
            "id": f"20{i:07d}",
            "imageId": image_id,
            "question": question.text,
            "answer": question.answer,
            "fullAnswer": f"The answer is {question.answer}.",
            "isBalanced": True,
        }
        documents.append(_Document(row, question.answer, question, picture))
        images.append({"id": image_id, "image": picture.column(f"{image_id}.png")})
    asker.rng.shuffle(images)
    return documents, images


_POPE: dict[str, tuple[str, ...]] = {
    "random": ("exists_shape",),
    "popular": ("exists_color",),
    "adversarial": ("exists_thing",),  # the "no" form names a colour and a shape that are there, on different things
}


def _pope(asker: _Asker, count: int) -> list[_Document]:
    documents = []
    for i in range(count):
        category = list(_POPE)[(i // 2) % len(_POPE)]
        question, picture = asker.yes_no(_turn(_POPE[category], i, 2 * len(_POPE)), ("yes", "no")[i % 2])
        row = {
            "id": str(i),
            "question_id": str(i + 1),
            "question": question.text,
            "answer": question.answer,
            "image_source": f"scene_{i:06d}",
            "image": picture.column(f"scene_{i:06d}.png"),
            "category": category,
        }
        documents.append(_Document(row, question.answer, question, picture))
    return documents


_REALWORLDQA_LETTER = (
    *("color_at", "shape_at", "where", "color_of", "neighbour", "shape_of", "same_color_as", "most_color"),
)
_REALWORLDQA_NUMBER = ("count_all", "count_color", "count_shape", "sum", "largest")


def _realworldqa(asker: _Asker, count: int) -> list[_Document]:
    """Half letters, half numbers: the two instructions of the real data."""
    letters = asker.balanced(questions.LETTERS, (count + 1) // 2)
    documents = []
    for i in range(count):
        if i % 2 == 0:
            kind = _turn(_REALWORLDQA_LETTER, i, 2)
            question, picture = asker.lettered(kind, letters[i // 2], digits=False)
            answer = question.letter
        else:
            question, picture = asker.word(_turn(_REALWORLDQA_NUMBER, i, 2))
            answer = question.answer
        row = {
            "image": picture.column(f"{i}.png"),
            "image_path": f"{i}.png",
            "question": questions.realworldqa_question(question),
            "answer": answer,
        }
        documents.append(_Document(row, answer, question, picture))
    return documents


_SEED: dict[str, tuple[str, ...]] = {
    "chart": ("count_color", "most_color", "count_shape", "sum", "largest", "count_all"),
    "map": ("where", "neighbour", "color_at", "shape_at"),
    "web": ("color_of", "shape_of", "same_color_as"),
}


def _seedbench_2_plus(asker: _Asker, count: int) -> list[_Document]:
    documents = []
    for i, letter in enumerate(asker.balanced(questions.LETTERS, count)):
        image_type = list(_SEED)[i % len(_SEED)]
        question, picture = asker.lettered(_turn(_SEED[image_type], i, len(_SEED)), letter)
        path = f"{image_type}/{i}.png"
        row = {
            "question_id": f"{i}",
            "question": question.text,
            **{f"choice_{x}": choice for x, choice in zip(questions.LETTERS, question.choices, strict=True)},
            "answer": letter,
            "image": picture.column(path),
            "question_image_type": image_type,
            "question_image_subtype": question.kind,
            "data_id": path,
            "data_type": "Single Image",
            "level": "L1",
            "subpart": "Single-Image & Text Comprehension",
            "data_source": "scenes",
            "version": "v1.0",
        }
        documents.append(_Document(row, letter, question, picture))
    return documents


def _documents(count: int, seed: int, gqa_kinds: Sequence[str]) -> tuple[dict[str, list[_Document]], list[Row]]:
    """All documents by dataset, and the rows of GQA's image table."""
    used: set[str] = set()

    def asker(name: str) -> _Asker:
        return _Asker(name, seed, used)

    documents = {"mmstar": _mmstar(asker("mmstar"), count)}
    documents["mmbench_en"], documents["mmbench_cn"] = _mmbench(asker("mmbench"), count)
    documents["mme"] = _mme(asker("mme"), count)
    documents["mmmu"] = _mmmu(asker("mmmu"), count)
    documents["gqa"], images = _gqa(asker("gqa"), count, gqa_kinds)
    documents["pope"] = _pope(asker("pope"), count)
    documents["realworldqa"] = _realworldqa(asker("realworldqa"), count)
    documents["seedbench_2_plus"] = _seedbench_2_plus(asker("seedbench_2_plus"), count)
    return documents, images


def _swap(dataset: Sequence[_Document], rows: Sequence[Row], columns: Mapping[str, ColumnType]) -> list[Row]:
    """Rows in which each picture stands where the one before it stood; documents of one picture share one again.

    Args:
        dataset: the documents.
        rows: that hold their pictures; they are left as they are.
        columns: of the rows, with their types.
    """
    pictures = list(dict.fromkeys(document.picture.png for document in dataset))
    shown = dict(zip(pictures, [*pictures[1:], pictures[0]], strict=True))
    images = [column for column, kind in columns.items() if kind == "image"]
    return [
        row | {column: row[column] | {"bytes": shown[row[column]["bytes"]]} for column in images if row.get(column)}
        for row in rows
    ]


# --- writing ----------------------------------------------------------------------------------------------------------


def write_hub(
    folder: str | Path, *, documents_per_task: int = 120, seed: int = 0, gqa: str = "all", images: str = "own"
) -> Path:
    """Write the offline suite into `folder` and return it.

    A folder that already holds the same suite, intact, is left as it is; one with another version of it has its
    datasets replaced and everything else in it (results, caches) kept. Nothing is visible under `folder` before it is
    complete. The same arguments give the same rows on every machine with the same Pillow.

    Args:
        folder: of the suite; new, empty, or one that holds a suite.
        documents_per_task: of each of the nine tasks; an even number, since MME asks each of its images twice.
        seed: of the scenes and the questions about them.
        gqa: which questions GQA's copy asks: "all", "reasoning" or "perception" (`GQA_KINDS`).
        images: "own", or "swapped": the same questions and answers, each with the image of another scene.

    Raises:
        SuiteError: `folder` holds files but no suite. InputError: fewer than `MINIMUM_DOCUMENTS`, or an odd number, or
            another word for `gqa` or `images`.
    """
    if documents_per_task < MINIMUM_DOCUMENTS or documents_per_task % 2:
        raise InputError(
            f"documents_per_task is {documents_per_task}: expected an even number (MME asks in pairs) of at least "
            f"{MINIMUM_DOCUMENTS} (every category of every task needs a document)"
        )
    if gqa not in GQA_KINDS:
        raise InputError(f"gqa is {quoted(gqa)}: expected one of {', '.join(GQA_KINDS)}")
    if images not in IMAGES:
        raise InputError(f"images is {quoted(images)}: expected one of {', '.join(IMAGES)}")
    folder = Path(folder).absolute()
    identity = _identity(documents_per_task, seed, gqa, images)
    if _is_current(folder, identity):
        return folder
    if folder.exists() and not folder.is_dir():
        raise SuiteError(f"{folder} is a file: expected a folder for the offline suite")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise SuiteError(f"{folder} is not empty and holds no {MANIFEST}: choose a new or an empty folder")

    folder.parent.mkdir(parents=True, exist_ok=True)
    building = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}"
    building.mkdir()
    try:
        _write(building, identity)
        _move(building, folder, identity)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of the suite in `folder`; `manifest["tasks"]` is keyed by lmms-eval task name.

    Raises:
        SuiteError: there is none, or it is of another version.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise SuiteError(f"no {MANIFEST} in {path.parent}: write the suite with `python -m plam_eval.demo.hub FOLDER`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise SuiteError(f"{path} is not JSON ({error}): write the suite again with plam_eval.demo.hub") from error
    if manifest.get("version") != VERSION or not manifest.get("complete"):
        raise SuiteError(f"{path} is incomplete or not of version {VERSION}: write it again with plam_eval.demo.hub")
    manifest["tasks"] = {task: manifest["datasets"][name] for task, name in TASKS.items()}
    return manifest


def text_prior(folder: str | Path, draws: int = 4000) -> dict[str, float]:
    """The accuracy, by task, of answering the suite's questions without their images, as well as that can be done.

    Each question gets the answer (among its choices, where it has any) that is most often true of it in `draws`
    training scenes. A model that looks at nothing should come out near this, not near chance: "one" is a good guess at
    how many stars there are. MME counts single questions here.

    Args:
        folder: of the suite.
        draws: training scenes; the more, the nearer to what the questions alone allow.
    """
    rng = random.Random(0)
    said: dict[str, Counter[str]] = {}
    for _ in range(draws):
        scene = scene_of("train", rng)
        for kind in questions.KINDS:
            if question := ask_about(scene, kind, rng):
                for about in (question.text, kind):
                    said.setdefault(about, Counter())[question.answer] += 1

    def guess(document: Row) -> str:
        by_text, by_kind = said.get(document["question"], Counter()), said.get(document["kind"], Counter())
        options = document["choices"] or sorted(by_kind)
        best = max(options, key=lambda option: (by_text[option], by_kind[option]))
        return questions.LETTERS[options.index(best)] if document["choices"] else best

    prior = {}
    for task, dataset in read_manifest(folder)["tasks"].items():
        right = [guess(document).lower() == document["answer"].lower() for document in dataset["documents"]]
        prior[task] = sum(right) / len(right)
    return prior


def _identity(documents_per_task: int, seed: int, gqa: str, images: str) -> dict[str, Any]:
    """What decides the content. The sources are part of it: a suite written by older code is not current."""
    sources = hashlib.sha256()
    for module in (scenes.__file__, questions.__file__, __file__):
        sources.update(Path(module).read_bytes())
    return {
        "version": VERSION,
        "seed": seed,
        "documents_per_task": documents_per_task,
        "gqa": gqa,
        "images": images,
        "generator": sources.hexdigest()[:16],
    }


def _is_current(folder: Path, identity: Mapping[str, Any]) -> bool:
    try:
        manifest = read_manifest(folder)
    except SuiteError:
        return False
    return all(manifest.get(key) == value for key, value in identity.items()) and all(
        (folder / path).is_file() and _sha256(folder / path) == digest for path, digest in manifest["files"].items()
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(folder: Path, identity: Mapping[str, Any]) -> None:
    documents, images = _documents(identity["documents_per_task"], identity["seed"], GQA_KINDS[identity["gqa"]])
    rows = {name: [document.row for document in dataset] for name, dataset in documents.items()}
    rows["gqa_images"] = images
    swapped = identity["images"] == "swapped"
    if swapped:
        for name, dataset in documents.items():
            holding = "gqa_images" if name == "gqa" else name
            rows[holding] = _swap(dataset, rows[holding], TABLES[holding].columns)
    paths = {name: _write_table(folder, table, rows[name]) for name, table in TABLES.items()}
    for repo in {table.repo for table in TABLES.values()}:
        tables = {paths[name]: table for name, table in TABLES.items() if table.repo == repo}
        (folder / repo / "README.md").write_text(_readme(repo, tables, swapped), encoding="utf-8")
        lines = [
            boxes_line((task, doc_id), [boxes])
            for task, name in TASKS.items()
            if TABLES[name].repo == repo
            for doc_id, document in enumerate(documents[name])
            if (boxes := document.about())
        ]
        if not swapped:  # what a question is about is not in its image then
            (folder / repo / BOXES_FILE).write_text("".join(lines), encoding="utf-8")
    manifest = {
        **identity,
        "complete": True,
        "image_size": scenes.IMAGE_SIZE,
        "positions": scenes.POSITIONS,
        "files": {
            path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()
        },
        "datasets": {
            name: {
                "repo": TABLES[name].repo,
                "config": TABLES[name].config,
                "split": TABLES[name].split,
                "answers": dict(Counter(document.answer for document in dataset).most_common()),
                "documents": [document.record() for document in dataset],
            }
            for name, dataset in documents.items()
        },
    }
    _write_manifest(folder, manifest)


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, ensure_ascii=False)
    files.write_in_one_step(folder / MANIFEST, lambda partial: partial.write_text(text, encoding="utf-8"))


def _write_table(folder: Path, table: Table, rows: list[Row]) -> Path:
    """Write one parquet file; its name carries a digest of its content.

    `datasets` caches a local dataset by what its card says, file names included, and by neither content nor folder:
    with equal names, a suite of another seed would be answered from the first one's cache.
    """
    import datasets

    def feature(kind: ColumnType) -> Any:
        if isinstance(kind, Mapping):
            return {name: datasets.Value(value) for name, value in kind.items()}
        return datasets.Image() if kind == "image" else datasets.Value(kind)

    features = datasets.Features({name: feature(kind) for name, kind in table.columns.items()})
    path = folder / table.repo / table.config / "partial"
    path.parent.mkdir(parents=True, exist_ok=True)
    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    finally:
        if not quiet:
            datasets.enable_progress_bars()
    return path.rename(path.with_name(f"{table.split}-00000-of-00001-{_sha256(path)[:16]}.parquet"))


def _readme(repo: str, tables: Mapping[Path, Table], swapped: bool) -> str:
    """A dataset card whose `configs:` header tells `load_dataset` which file is which split of which config."""
    lines = ["---", "configs:"]
    for path, table in tables.items():
        lines += [f"- config_name: {table.config}", "  data_files:", f"  - split: {table.split}"]
        lines += [f"    path: {table.config}/{path.name}"]
    lines += ["---", f"Drawn scenes in the columns of {repo}, written by plam_eval.demo.hub. Not the real benchmark."]
    lines += ["The images are those of other documents than the questions are about."] if swapped else []
    return "\n".join(lines) + "\n"


def _move(building: Path, folder: Path, identity: Mapping[str, Any]) -> None:
    """Put the finished suite in place: in one rename where `folder` is new or empty, else dataset by dataset.

    While datasets are being exchanged the manifest says so, and an interrupted exchange is taken up by the next call.
    """
    if not folder.exists() or not any(folder.iterdir()):
        try:
            building.rename(folder)
        except OSError:
            if not _is_current(folder, identity):  # else another process was first, with the same suite
                raise
        return
    _write_manifest(folder, {**identity, "complete": False})
    for repo in sorted({table.repo for table in TABLES.values()}):
        target = folder / repo
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        (building / repo).rename(target)
    (building / MANIFEST).replace(folder / MANIFEST)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the suite as the command line says; returns the exit status.

    Args:
        arguments: words of the command line; None for those of this process.
    """
    parser = argparse.ArgumentParser(prog="python -m plam_eval.demo.hub", description="Write the offline suite.")
    parser.add_argument("folder", help="where to write it; cd there to evaluate")
    parser.add_argument("--documents-per-task", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gqa", choices=tuple(GQA_KINDS), default="all", help="the questions that GQA's copy asks")
    parser.add_argument("--images", choices=IMAGES, default="own", help="of the scene asked about, or of another one")
    options = parser.parse_args(arguments)
    try:
        folder = write_hub(
            options.folder,
            documents_per_task=options.documents_per_task,
            seed=options.seed,
            gqa=options.gqa,
            images=options.images,
        )
    except (PlamError, OSError) as error:
        said = system_error(error) if isinstance(error, OSError) else error
        Terminal(stderr=True).say(labelled("error", "bold red", said))
        return 1
    console = Terminal()
    for name, dataset in read_manifest(folder)["datasets"].items():
        constant, count = next(iter(dataset["answers"].items()))
        total = len(dataset["documents"])
        console.say(f"{name:18} {total:5d} documents, always {constant!r} is right in {count / total:.0%}")
    console.say(f"offline suite in {folder}: cd there and run HF_HUB_OFFLINE=1 lmms-eval --tasks plam9 ...")
    return 0


if __name__ == "__main__":
    sys.exit(main())
