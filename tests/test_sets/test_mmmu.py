"""MMMU's test answers: which files are refused, and with what words."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from plam_eval.test_sets.answer_file import AnswerFileError, Located
from plam_eval.test_sets.mmmu import SUBJECTS, read_answers, truth_of, with_answers, written

LARGEST = 1 << 26


def entry(truth: Any = "B", kind: Any = "multiple-choice") -> dict[str, Any]:
    return {"question_type": kind, "ground_truth": truth}


WHOLE = {f"test_{subject}_{number}": entry() for subject in sorted(SUBJECTS) for number in range(1, 351)}
SMALL = {
    "test_Art_1": entry(),
    "test_Art_2": entry("12.5", "short-answer"),
    "test_Art_Theory_1": entry(["a", "b"], "open"),
}


def located(path: Path, content: bytes | dict[str, Any], *, vouched: bool = True) -> Located:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return Located(path, hashlib.md5(path.read_bytes()).hexdigest(), vouched)


def refusal(file: Located) -> str:
    with pytest.raises(AnswerFileError) as caught:
        read_answers(file, LARGEST)
    assert str(file.path) in str(caught.value)
    return str(caught.value)


def test_the_form_that_was_released(tmp_path: Path) -> None:
    answers, released = read_answers(located(tmp_path / "a.json", WHOLE, vouched=False), LARGEST)
    assert released and len(answers) == 10_500 and answers["test_Art_1"] == ("multiple-choice", "B")


def test_part_of_it_is_refused_unless_it_is_vouched_for(tmp_path: Path) -> None:
    file = located(tmp_path / "a.json", SMALL, vouched=False)
    said = refusal(file)
    assert "3 answers of 2 subjects, expected 10500 of 30" in said and file.md5 in said
    answers, released = read_answers(located(tmp_path / "a.json", SMALL), LARGEST)
    assert not released and answers == {
        "test_Art_1": ("multiple-choice", "B"),
        "test_Art_2": ("open", "12.5"),
        "test_Art_Theory_1": ("open", ["a", "b"]),
    }
    lacking = {name: value for name, value in WHOLE.items() if name != "test_Art_7"}
    assert "10499 answers" in refusal(located(tmp_path / "a.json", lacking, vouched=False))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"test_Art_1": {"question_type": "open", "gr', "no JSON that can be read"),
        (b"[1, 2]", "found list, expected a JSON object"),
        (b"3", "found int, expected a JSON object"),
        ('{"test_Art_1": "\u00e9"}'.encode("latin-1"), "no JSON that can be read"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "lists and objects inside each other"),
        (
            b'{"test_Art_1": {"question_type": "open", "ground_truth": "1"},'
            b' "test_Art_1": {"question_type": "open", "ground_truth": "2"}}',
            "ids that stand there twice (1): test_Art_1",
        ),
        ({"validation_Art_1": entry()}, "keys that are no id of the test split"),
        ({"test_Astrology_1": entry()}, "'test_Astrology_1'"),
        ({"test_Art_x": entry()}, "'test_Art_x'"),
        ({"test_Art_1": "B"}, "found 'B', expected question_type and ground_truth"),
        ({"test_Art_1": {"ground_truth": "B"}}, "no question_type"),
        ({"test_Art_1": {}}, "no question_type and no ground_truth"),
        ({"test_Art_1": entry(kind="essay")}, "question_type 'essay'"),
        ({"test_Art_1": entry(kind=["open"])}, "question_type ['open']"),
        ({"test_Art_1": entry("\ud800")}, "surrogates not allowed"),
        *(
            ({"test_Art_1": entry(truth)}, "ground_truth")
            for truth in (None, 3, "", " ", "?", [], ["B", 2], {"B": 1}, [["B"]])
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, content: bytes | dict[str, Any], said: str) -> None:
    assert said in refusal(located(tmp_path / "a.json", content))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    said = refusal(located(tmp_path / "a.json", {"x": entry(), "test_Art_1": entry(""), "test_Art_2": entry(3)}))
    assert "no id of the test split" in said and "of the known form (2)" in said


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    file = located(tmp_path / "a.json", SMALL)
    file.path.write_text("{}")
    assert "has changed while it was read" in refusal(file)


# --- beside the dataset -----------------------------------------------------------------------------------------------

IDS, TYPES = list(SMALL), ["multiple-choice", "open", "open"]
OPTIONS = ["['red', 'blue']", "[]", "[]"]


def column(tmp_path: Path, **changed: Any) -> list[str]:
    file = located(tmp_path / "a.json", changed.pop("content", SMALL))
    asked = {"ids": IDS, "types": TYPES, "options": OPTIONS, **changed}
    return with_answers(file, read_answers(file, LARGEST)[0], **asked)


def test_answers_come_in_the_datasets_order(tmp_path: Path) -> None:
    assert column(tmp_path) == ["B", "12.5", '["a", "b"]']
    turned = {"ids": IDS[::-1], "types": TYPES[::-1], "options": OPTIONS[::-1]}
    assert column(tmp_path, **turned) == ['["a", "b"]', "12.5", "B"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ids": [*IDS[:2], "test_Art_Theory_2"]}, "without an answer in the file (1): test_Art_Theory_2"),
        ({"ids": [*IDS[:2], "test_Art_Theory_2"]}, "answers to no question of the dataset (1): test_Art_Theory_1"),
        ({"types": ["open", "open", "open"]}, "test_Art_1 (multiple-choice in the file, open in the dataset)"),
        ({"options": ["['red']", "[]", "[]"]}, "test_Art_1 ('B' of 1 choices)"),
        ({"options": ["no list", "[]", "[]"]}, "test_Art_1 ('B' of 0 choices)"),
        ({"content": {**SMALL, "test_Art_1": entry(["A", "C"])}}, "['A', 'C'] of 2 choices"),
    ],
)
def test_a_file_of_other_questions_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(AnswerFileError) as caught:
        column(tmp_path, **changed)
    assert said in str(caught.value) and "another version than the dataset" in str(caught.value)


@pytest.mark.parametrize("truth", ["B", "12.5", "[1, 2]", '["a"]', "[", "['a', 'b']", ["a", "b"], ['"', "]"], "\u6c34"])
def test_a_truth_comes_back_as_it_was(truth: Any) -> None:
    assert truth_of(written(truth)) == truth


def test_one_truth_in_a_list_is_that_truth() -> None:
    assert truth_of(written(["B"])) == "B"
