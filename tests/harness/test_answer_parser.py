"""The second parser: cases of our own, what is hostile, and what is read of words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from plam_eval.harness.answer_forms import LETTER, MMBENCH, MMMU, VERDICT
from plam_eval.harness.answer_parser import Asked, Reading, is_right, read_answer
from plam_eval.harness.answer_text import LONGEST, cleaned, plain_words
from plam_eval.harness.choices import choices_on_one_line
from plam_eval.harness.tasks import TASKS
from tests.helpers.answer_cases import CASES, asked_of

ABCD = Asked("letter", ("B",), dict.fromkeys("ABCD", ""))


@pytest.mark.parametrize("of", sorted({case.of for case in CASES}))
def test_cases(of: str) -> None:
    """Each line of the file: what it wants, an answer, and the reading that it should have."""
    wrong = {
        case.answer: (read.value, case.reads)
        for case in CASES
        if case.of == of and (read := read_answer(case.answer, asked_of(case.asks))).value != case.reads
    }
    assert wrong == {}


def test_there_are_cases_of_every_kind() -> None:
    kinds = Counter(case.of for case in CASES)
    assert len(CASES) >= 150 and min(kinds.values()) >= 1
    assert {"declared", "negated", "lower case", "bracketed", "Chinese", "several", "article", "refused"} <= set(kinds)
    assert {"thinking", "quoted", "yes or no", "words"} <= set(kinds)
    assert sum(case.reads is None for case in CASES) > 60, "it abstains"


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        ("The answer is B. C", "declared"),
        ("B", "lone"),
        ("B or C", "several"),
        ("Dogs", "nothing"),
        ("<think>B", "nothing"),
    ],
)
def test_a_declared_answer_beats_a_lone_letter_beats_nothing(answer: str, level: str) -> None:
    assert read_answer(answer, ABCD).level == level


def test_only_letters_of_the_choices_are_read() -> None:
    two = Asked("letter", ("A",), {"A": "up", "B": "down"})
    assert [read_answer(text, two).value for text in ("C", "The answer is D.", "B")] == [None, None, "B"]
    assert read_answer("B", Asked("letter")).value is None, "no choices, no letters"


HOSTILE = (
    *("the answer is B ", "answer : - : - ", "(", "not A, ", "A or ", "<think>", "\\boxed{{", "<answer>", " ", "a."),
    *("答案是", "is red ", "\ufdfa", "n't ", "B\n"),
)


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_megabyte_of_anything_is_read(unit: str) -> None:
    """What makes patterns try again: were time to grow with the square of the length, this would not end."""
    text = unit * (1_000_000 // len(unit))
    asked = asked_of("texts")
    assert read_answer(text, asked).value in (None, "B")
    for other in (asked_of("yes or no"), Asked("words", ("red",))):
        assert not is_right(read_answer(text[:100_000], other), text[:100_000], other)


def test_of_a_long_answer_both_ends_are_read() -> None:
    padding = "It goes on and on. " * 4000
    assert read_answer(f"{padding}\nThe answer is B.", ABCD) == Reading("B", "declared")
    assert read_answer(f"B\n{padding}", ABCD) == Reading("B", "lone")
    assert len(cleaned(padding)) <= LONGEST + 1


def test_readings_do_not_depend_on_the_target() -> None:
    for answer in ("The answer is C.", "B or C", "nothing"):
        readings = {read_answer(answer, Asked("letter", (target,), dict.fromkeys("ABCD", ""))) for target in "ABCD"}
        assert len(readings) == 1


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("Red.", "red", True),
        ("The answer is two.", "2", True),
        ("12 cm", "12", True),
        ("1,200", "1200", True),
        ("0.50", "1/2", True),
        ("12 or 13", "12", False),
        ("12 of 13", "12", False),
        ("a horse", "horse", True),
        ("the man is sleeping", "man is sleeping", True),  # abstains, but the whole answer is the right one
        ("The man on the left is sleeping", "sleeping", False),
        ("The answer is red. The answer is blue.", "red", False),
        ("", "red", False),
        ("horses", "horse", False),
    ],
)
def test_words_are_right_after_normalisation(answer: str, target: str, right: bool) -> None:
    asked = Asked("words", (target,))
    assert is_right(read_answer(answer, asked), answer, asked) is right


def test_plain_words() -> None:
    assert plain_words("The RED, one!") == "red 1" and plain_words("3.5 %") == "3.5 %" and plain_words("The") == "the"


# --- forms ------------------------------------------------------------------------------------------------------------


def test_choices_on_one_line_are_read_as_mmstar_writes_them() -> None:
    prompt = "Which? Options: no\nOptions: A: =a cat, B: 2, 3 or B, C: x: y, D: none\nAnswer with the letter."
    assert choices_on_one_line(prompt) == {"A": "=a cat", "B": "2, 3 or B", "C": "x: y", "D": "none"}
    assert choices_on_one_line("Options:\nA: up, B: down") == {"A": "up", "B": "down"}
    assert choices_on_one_line("Options: none") == choices_on_one_line("A: up, B: down") == {}


def test_what_a_document_asks_for_is_told_by_its_line() -> None:
    line = {"target": "B", "input": "What?\nA. red\nB. blue\nAnswer."}
    asked = LETTER.ask(line)
    assert asked is not None and (asked.targets, asked.choices) == (("B",), {"A": "red", "B": "blue"})
    assert list(LETTER.ask({"target": "(C)", "input": "?"}).choices) == list("ABCDEFGH")
    assert LETTER.ask({"target": "red", "input": "?"}) is None and VERDICT.ask({"target": "maybe"}) is None
    assert VERDICT.ask({"target": "Yes"}).targets == ("yes",)
    entry = {"A": "cat", "B": "dog", "C": "nan", "D": None}
    assert MMBENCH.ask({"target": "B", "gpt_eval_score": entry}).choices == {"A": "cat", "B": "dog"}
    assert len(MMBENCH.ask({"target": "B", "submission": {}}).choices) == 8
    opened = {"target": "['24/7', '3.43']", "mmmu_acc": {"question_type": "open"}, "input": "?"}
    assert MMMU.ask(opened) == Asked("words", ("24/7", "3.43"))
    assert MMMU.ask({**opened, "target": "[not a list"}).targets == ("[not a list",)
    assert MMMU.ask({**opened, "target": "J", "mmmu_acc": {"question_type": "multiple-choice"}}).kind == "letter"


def test_the_nine_have_a_form_and_others_a_reason() -> None:
    nine = "gqa mmbench_en_dev_static mmbench_cn_dev mme mmmu_val mmstar pope realworldqa seedbench_2_plus"
    assert not any(TASKS[task].form.unread for task in nine.split())
    assert all(task.form.words != "no" or task.form.unread for task in TASKS.values())


def test_the_file_of_cases_has_one_line_for_each() -> None:
    file = Path(__file__).with_name("answer_cases.jsonl")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len({(asks, answer) for _, asks, answer, _ in lines}) == len(lines) == len(CASES)
