"""A board's own questions, from whatever file has them; files that join a log are tested in test_openvlm."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from plam_eval.errors import DamagedFileError
from plam_eval.publishing.boards import questions as board_questions
from plam_eval.publishing.boards.questions import read_board_questions
from plam_eval.publishing.boards.table import BOARDS
from tests.helpers.board_parsers import QUESTION_FILES
from tests.helpers.submission_runs import question

DOCVQA, SEED, TABLE = BOARDS["docvqa"], BOARDS["seedbench_2_plus"], BOARDS["mmbench_en"]


@pytest.mark.parametrize("board", QUESTION_FILES)
def test_a_boards_own_questions_are_read(tmp_path: Path, board: str) -> None:
    ids = [question(board, n) for n in range(3)]
    file = tmp_path / "questions.json"
    for text in (QUESTION_FILES[board](ids), json.dumps(ids), "\n".join(map(str, ids))):
        file.write_text(text, encoding="utf-8")
        assert read_board_questions(BOARDS[board], file).ids == set(ids)


def test_questions_of_a_table_and_of_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("index\tquestion\n1\t?\n2\t?\n")
    assert read_board_questions(TABLE, tmp_path / "q.tsv").ids == {1, 2}
    (tmp_path / "q.jsonl").write_text('{"question_id": "7"}\n{"question_id": "8"}\n')
    assert read_board_questions(SEED, tmp_path / "q.jsonl").ids == {"7", "8"}


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no question"), ('[{"id": 1}]', "a question without"), ("x\n", "found 'x'"), ("[1", "cannot be read")],
)
def test_a_file_without_questions_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "q.json").write_text(text)
    with pytest.raises(DamagedFileError, match=said):
        read_board_questions(DOCVQA, tmp_path / "q.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("board", ["docvqa", "mmbench_en", "openvlm_MMStar"])  # plain, with a known MD5, a table
def test_a_pipe_is_not_waited_for(tmp_path: Path, board: str) -> None:
    os.mkfifo(tmp_path / "q.tsv")
    with pytest.raises(DamagedFileError, match="no file that holds something; give the questions"):
        read_board_questions(BOARDS[board], tmp_path / "q.tsv")


@pytest.mark.parametrize("board", ["docvqa", "mmbench_en", "openvlm_MMStar"])
def test_what_is_too_large_to_be_questions_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, board: str
) -> None:
    (tmp_path / "q.tsv").write_text("index\tquestion\n" + "1\t?\n" * 50)
    monkeypatch.setattr(board_questions, "LARGEST", 100)
    with pytest.raises(DamagedFileError, match="is larger than 100 bytes"):
        read_board_questions(BOARDS[board], tmp_path / "q.tsv")
