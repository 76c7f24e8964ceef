"""The records of boards: complete, consistent with each other, and with lmms-eval's own tasks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plam_eval.publishing.boards.table import BOARDS, SELF_REPORTED, boards_of, without_board
from tests.helpers.paths import DOCS, ROOT


@pytest.mark.parametrize("name", BOARDS)
def test_a_record_is_whole(name: str) -> None:
    board = BOARDS[name]
    assert re.fullmatch(r"[A-Za-z0-9_]+", name), "it is a part of file names"
    assert board.sources and board.standing and re.fullmatch(r"20\d\d-\d\d", board.read_on)
    assert all(source.startswith("https://") for source in board.sources)
    names = [column.name for column in board.columns]
    assert len(set(names)) == len(names) and {board.id.name, board.answer.name} <= set(names)
    assert all(column.expected for column in board.columns if column.pattern)
    assert board.questions is None or board.questions > 0


def test_a_task_is_for_a_board_or_for_none() -> None:
    alone = {task for benchmark in SELF_REPORTED for task in benchmark.tasks}
    assert not alone & {task for board in BOARDS.values() for task in board.tasks if not board.by_name}
    assert [board.name for board in boards_of("docvqa_test")] == ["docvqa"]
    assert "no server" in without_board("mmstar") and "no board is known" in without_board("whatever")


def test_lmms_eval_has_the_tasks() -> None:
    import lmms_eval

    folders = (Path(lmms_eval.__file__).parent / "tasks", ROOT / "tasks")
    text = "\n".join(file.read_text(encoding="utf-8") for folder in folders for file in folder.rglob("*.yaml"))
    declared = set(re.findall(r"^task: *[\"']?([^\"'\s]+)", text, re.MULTILINE))
    ours = {task for board in BOARDS.values() for task in board.tasks}
    ours |= {task for benchmark in SELF_REPORTED for task in benchmark.tasks}
    assert ours - declared == set()


@pytest.mark.parametrize("name", BOARDS)
def test_writing_an_answer_twice_changes_nothing(name: str) -> None:
    answer = BOARDS[name].answer
    for text in ("The Two Dogs.", "it's 1,000 m", "Don't know?", "a", "A/B (c)", " b ", "none", "", "john's, car"):
        once = answer.canonical(text)
        assert answer.canonical(once) == once


@pytest.mark.parametrize("name", ["vqav2", "textvqa", "vizwiz"])
def test_answers_are_those_that_the_validation_task_compares(name: str) -> None:
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    processor = EvalAIAnswerProcessor()
    for text in ("The Two Dogs.", "it's 1,000 m", "Don't know?", "dont, no", "A/B (c)", "john's, car", "ten-four"):
        whole = processor(text)
        own = processor.process_digit_article(processor.process_punctuation(text))
        assert BOARDS[name].answer.canonical(text) == (own if name == "vqav2" else whole)


def test_the_page_has_every_board() -> None:
    page = (DOCS / "leaderboards.md").read_text(encoding="utf-8")
    for board in BOARDS.values():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{board.name}` |"))
        assert all(f"`{task}`" in row for task in board.tasks) and board.server in row
    for benchmark in SELF_REPORTED:
        assert benchmark.title in page
