"""What the evaluations of boards do with a file, in words of our own: each gives id -> answer, or raises.

Facts only, read in November 2026 from what the benchmarks publish:
- VQA (GT-Vision-Lab/VQA, vqaTools/vqa.py, `loadRes`): a JSON array; every question_id has to be one of the annotations,
  whose ids are numbers. TextVQA's and VizWiz's evaluations are made after it; VizWiz's goes by the name of the image.
- GQA (eval.py of its download): a JSON array of questionId and prediction; a question without one ends it; the keys of
  its questions are text, being keys of a JSON object.
- SEED-Bench (AILab-CVC/SEED-Bench, eval.py writes it): one JSON object per line, question_id and prediction.
- Robust Reading Competition (channels 11 and 17): a JSON array, ids as numbers, answers as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Parser = Callable[[Path, Iterable[Any]], dict[Any, str]]


def _vqa(key: str) -> Parser:
    def parse(file: Path, questions: Iterable[Any]) -> dict[Any, str]:
        with file.open(encoding="utf-8") as stream:
            rows = json.load(stream)
        assert type(rows) is list, "results is not an array of objects"
        ids = {row[key] for row in rows}
        assert ids <= set(questions), "results do not correspond to the questions"
        assert ids == set(questions) and len(ids) == len(rows), "a question without an answer, or with two"
        return {row[key]: row["answer"] for row in rows}

    return parse


def _gqa(file: Path, questions: Iterable[Any]) -> dict[Any, str]:
    with file.open(encoding="utf-8") as stream:
        predictions = {row["questionId"]: row["prediction"] for row in json.load(stream)}
    for question in questions:
        if question not in predictions:
            raise ValueError(f"no prediction for {question}")
    return predictions


def _seed(file: Path, questions: Iterable[Any]) -> dict[Any, str]:
    given = {}
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            given[row["question_id"]] = row["prediction"]
    assert given.keys() == set(questions)
    return given


def _reading(key: str) -> Parser:
    def parse(file: Path, questions: Iterable[Any]) -> dict[Any, str]:
        rows = json.loads(file.read_bytes().decode("utf-8"))
        assert isinstance(rows, list)
        for row in rows:
            assert set(row) == {key, "answer"} and type(row[key]) is int and type(row["answer"]) is str, row
        assert sorted(row[key] for row in rows) == sorted(questions)
        return {row[key]: row["answer"] for row in rows}

    return parse


PARSERS: dict[str, Parser] = {
    "vqav2": _vqa("question_id"),
    "textvqa": _vqa("question_id"),
    "vizwiz": _vqa("image"),
    "gqa": _gqa,
    "seedbench_2_plus": _seed,
    "docvqa": _reading("questionId"),
    "infovqa": _reading("questionId"),
    "stvqa": _reading("question_id"),
}
"""By the name of the board."""


QUESTION_FILES: dict[str, Callable[[list[Any]], str]] = {
    "vqav2": lambda ids: json.dumps({"info": {}, "questions": [{"question_id": n, "image_id": 1} for n in ids]}),
    "textvqa": lambda ids: json.dumps({"dataset_name": "textvqa", "data": [{"question_id": n} for n in ids]}),
    "vizwiz": lambda ids: json.dumps([{"image": name, "question": "?"} for name in ids]),
    "gqa": lambda ids: json.dumps({name: {"question": "?", "imageId": "1", "isBalanced": True} for name in ids}),
    "seedbench_2_plus": lambda ids: json.dumps({"questions": [{"question_id": name, "answer": "A"} for name in ids]}),
    "docvqa": lambda ids: json.dumps({"dataset_name": "docvqa", "data": [{"questionId": n} for n in ids]}),
    "infovqa": lambda ids: json.dumps({"dataset_name": "InfographicVQA", "data": [{"questionId": n} for n in ids]}),
    "stvqa": lambda ids: json.dumps({"dataset_name": "ST-VQA", "data": [{"question_id": n} for n in ids]}),
}
"""The board's own file of questions, with these ids."""
