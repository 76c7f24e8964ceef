"""Single answers are scored as lmms-eval's own functions score them, without importing it."""

from __future__ import annotations

import random
import subprocess
import sys

import pandas as pd
import pytest

from plam_eval.harness import scoring

LINES = (
    "B", "b", "B.", "(B)", "The answer is B because A is too small.", "A triangle has three sides.", "cat", "a CAT, or",
    "B or C.", "", " ", "D", "E", "Answer: C", "dog and cat", "nan", "none of these", "A B", "(C). horse", "答案是B",
)  # fmt: skip


def _rows() -> list[dict[str, object]]:
    draw = random.Random(0)
    options = ["dog", "cat", "7", "", "nan", "none", None, float("nan"), 3, 2.5, True, "A"]
    return [
        {
            "index": draw.randrange(5_000_000),
            "answer": draw.choice("ABCD"),
            "prediction": line,
            "question": "?",
            "hint": None,
            **{letter: draw.choice(options) for letter in "ABCD"},
        }
        for line in LINES
        for _ in range(12)
    ]


def test_mmbench_is_scored_as_its_evaluator_does():
    from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator

    rows = _rows()
    stock = [
        mmbench_evaluator.eval_sub_data(pd.DataFrame([row]), {row["index"]: row["answer"]}, static_only=True)
        for row in rows
    ]
    assert [scoring.mmbench(row) for row in rows] == stock
    assert 0 < sum(stock) < len(stock)


def test_mmmu_is_scored_as_its_task_does():
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu

    entries = [
        {"id": "x", "question_type": kind, "answer": answer, "parsed_pred": [parsed]}
        for kind, answer, parsed in (
            ("multiple-choice", "B", "B"),
            ("multiple-choice", "B", "A"),
            ("multiple-choice", ["A", "B"], "B"),
            ("open", "3.5", [3.5, "x"]),
            ("open", "1,000", [1000.0]),
            ("open", ["Cat", "dog"], ["a cat"]),
            ("open", "b", [" b "]),
            ("open", "cat", ["horse", 1.0]),
        )
    ]
    alone = scoring._alone(scoring._file_of("lmms_eval.tasks.mmmu.utils"), "evaluate_mmmu")
    assert alone is not None and alone is not evaluate_mmmu
    for entry in entries:
        expected = evaluate_mmmu([entry])[1]["acc"]
        assert alone([entry])[1]["acc"] == scoring.mmmu(entry) == expected


def test_what_cannot_be_had_alone_is_imported(tmp_path):
    file = tmp_path / "other.py"
    file.write_text(
        "import math\nfrom lmms_eval.utils import sanitize_list\nTAU = math.tau\n\n"
        "def own(x):\n    return helper(x) + TAU\n\ndef helper(x):\n    return [y for y in (x,)][0]\n\n"
        "def needs(x):\n    return sanitize_list(x)\n"
    )
    assert scoring._alone(file, "own")(1) == pytest.approx(7.28318, abs=1e-4)
    assert scoring._alone(file, "needs") is None
    assert scoring._alone(file, "absent") is None


def test_reading_scores_imports_neither_lmms_eval_nor_torch():
    code = (
        "import sys; from plam_eval.harness import tasks\n"
        "row = dict(index=1, answer='B', prediction='I think (B)', A='dog', B='cat', C='x', D='y')\n"
        "assert tasks.TASKS['mmbench_en_dev'].score.of({'gpt_eval_score': row}) == 1\n"
        "entry = dict(id='1', question_type='open', answer='2', parsed_pred=[[2.0]])\n"
        "assert tasks.TASKS['mmmu_val'].score.of({'mmmu_acc': entry}) == 1\n"
        "assert not {'lmms_eval', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "changed",
    ['TABLE["a"] = 2', "TABLE |= {}", "if True:\n    TABLE = {}", "TABLE.update(a=2)", "from os.path import *"],
)
def test_values_that_a_file_goes_on_to_change_are_not_had_alone(tmp_path, changed):
    file = tmp_path / "other.py"
    file.write_text(
        f"TABLE = {{'a': 1}}\n{changed}\n\ndef own():\n    return TABLE['a']\n\ndef free():\n    return 1\n"
    )
    assert scoring._alone(file, "own") is None
    if "*" not in changed:
        assert scoring._alone(file, "free")() == 1


def test_what_a_definition_is_made_with_comes_along(tmp_path):
    file = tmp_path / "other.py"
    file.write_text(
        "import abc\nLEAST = 3\n\nclass Base:\n    def go(self):\n        return 4\n\n"
        "class Own(Base, metaclass=abc.ABCMeta):\n    pass\n\n"
        "def own(x: Base = Own(), *, least=LEAST) -> Base:\n    return x.go() + least\n"
    )
    assert scoring._alone(file, "own")() == 7


def test_a_letter_is_read_as_mmmu_reads_it_and_never_drawn():
    from lmms_eval.tasks.mmmu.utils import parse_multi_choice_response

    choices = {"A": "a dog", "B": "Two\ncats", "C": "", "D": "the Red Fox"}
    answers = (*LINES, "it can only be the red fox, says he", "I do not know what to say about it", "(A) or (B)", "D:")
    for answer in answers:
        read = scoring.mmmu_letter(answer, choices)
        state = random.getstate()
        # Stock code gives one letter whatever it would have drawn, or as many as there are draws
        stock = {parse_multi_choice_response(answer, [*choices], choices) for _ in range(200)}
        random.setstate(state)
        assert stock == ({read} if read else {*choices}), answer
    assert {scoring.mmmu_letter(answer, choices) for answer in answers} >= {None, "A", "B", "D"}


def test_reading_a_letter_leaves_the_random_state_alone():
    random.seed(3)
    expected = random.Random(3).random()
    assert scoring.mmmu_letter("?", {"A": "x", "B": "y"}) is None
    assert random.random() == expected
