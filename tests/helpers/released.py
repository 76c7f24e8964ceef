"""Files of released test sets, invented, and models that answer their questions."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from plam_eval.test_sets import TEST_SETS
from tests.helpers.offline_copies import Document, Planned

COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image")
STEP = 1_000_000


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def vouch(patch: pytest.MonkeyPatch, task: str, path: Path) -> None:
    """Name a file for a task, and its MD5."""
    patch.setenv(TEST_SETS[task].file.variable, str(path))
    patch.setenv(TEST_SETS[task].file.md5_variable, md5(path))


def png(colour: int = 90, size: tuple[int, int] = (8, 6), *, noisy: bool = False) -> str:
    """A picture as base64."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.new("RGB", size, (colour % 256, 90, 160))
    (Image.effect_noise(size, 100) if noisy else image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def tsv_rows(questions: int = 3) -> list[dict[str, str]]:
    """Questions of two choices under both rotations; the second of each refers to the first one's image."""
    rows = []
    for number in range(questions):
        for turn in range(2):
            choices = ["left", "right"] if turn == 0 else ["right", "left"]
            row = {"index": str(3000 + number + turn * STEP), "question": f"Where is it, {number}?", "hint": ""}
            row |= {"A": choices[0], "B": choices[1], "C": "", "D": "", "answer": "AB"[turn]}
            row |= {"category": "ocr", "l2-category": "fine", "image": str(3000 + number) if turn else png(40 * number)}
            rows.append(row)
    return rows


def write_tsv(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str] = COLUMNS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def truths(folder: Path) -> dict[str, list[Any]]:
    """By task, the right answers in the order of its documents, read without any code of plam-eval's."""
    answers = json.loads((folder / "answer_dict_test.json").read_text())
    right: dict[str, list[Any]] = {"plam_mmmu_test": [entry["ground_truth"] for entry in answers.values()]}
    for language in ("en", "cn"):
        rows = tsv(folder, language)
        right[f"plam_mmbench_{language}_test_v11"] = [row["answer"] for row in rows]
    return right


def tsv(folder: Path, language: str) -> list[dict[str, str]]:
    """The rows of MMBench's file in the order of its documents: rotations of a question side by side."""
    csv.field_size_limit(1 << 30)
    with (folder / f"MMBench_TEST_{language.upper()}_V11.tsv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return sorted(rows, key=lambda row: (int(row["index"]) % STEP, int(row["index"])))


def planned(answers: Mapping[str, Sequence[str]]) -> Planned:
    """What a `PlannedModel` is to say, by task and document."""
    return {task: (None, [Document({}, 0, answer, math.nan) for answer in own]) for task, own in answers.items()}
