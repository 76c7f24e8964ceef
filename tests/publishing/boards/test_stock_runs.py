"""Stock tasks of test splits, run by lmms-eval itself: their logs become files that the boards' evaluations read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import plam_eval
from plam_eval.harness.evaluate import evaluate
from plam_eval.publishing.boards.submission import SubmissionError
from plam_eval.publishing.boards.table import BOARDS
from tests.helpers.answering import Answering
from tests.helpers.board_parsers import PARSERS, QUESTION_FILES
from tests.helpers.offline_copies import PlannedModel, write_copies
from tests.helpers.offline_tests import SUBMITTED, TESTS

ANSWERED = {board: task for board in PARSERS for task in BOARDS[board].tasks if task in SUBMITTED}
"""By board, the stock task."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The results JSON of one run over all of them."""
    hub = tmp_path_factory.mktemp("tests")
    write_copies(hub, [copy for copy in TESTS if set(copy.tasks) & set(ANSWERED.values())])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(hub)
        run = evaluate(PlannedModel(SUBMITTED), list(ANSWERED.values()), output=tmp_path_factory.mktemp("run"))
        assert run.results_file is not None
        yield run.results_file


@pytest.mark.parametrize("board", ANSWERED)
def test_a_stock_run_becomes_a_file_that_its_board_reads(results: Path, tmp_path: Path, board: str) -> None:
    copy, documents = SUBMITTED[ANSWERED[board]]
    record = BOARDS[board]
    names = [document.row[record.id.name if board != "vizwiz" else "question_id"] for document in documents]
    ids = [int(name) if record.id.kind is int else name.removesuffix(".jpg") + ".jpg" for name in names]
    questions = tmp_path / "questions.json"
    questions.write_text(QUESTION_FILES[board](ids), encoding="utf-8")
    (written,) = plam_eval.submit(results, board=board, questions=questions)
    model = PlannedModel(SUBMITTED)
    said = [model.says(copy.tasks[0], number).replace("\x0b", " ") for number in range(len(documents))]
    assert PARSERS[board](written.file, ids) == {
        name: record.answer.canonical(text) for name, text in zip(ids, said, strict=True)
    }
    assert written.file.parent == results.parent and written.empty == sum(not text.strip() for text in said)


def test_a_run_without_its_questions_is_short_of_the_whole_test_set(results: Path) -> None:
    with pytest.raises(SubmissionError) as caught:
        plam_eval.submit(results)
    for board in ANSWERED:
        if (count := BOARDS[board].questions) is not None:
            assert any(f"{board}:" in line and f"expected {count}" in line for line in caught.value.problems)


def test_letters_become_lines_for_seed_bench(in_suite: Path, tmp_path: Path) -> None:
    """One of the nine: scored here, and handed in besides."""
    run = evaluate(Answering(lambda _, number: "ABCD"[number % 4]), ["seedbench_2_plus"], output=tmp_path / "run")
    assert run.results_file is not None
    ids = [entry["seedbench_2_plus_all"]["question_id"] for entry in run.samples["seedbench_2_plus"]]
    questions = tmp_path / "questions.json"
    questions.write_text(QUESTION_FILES["seedbench_2_plus"](ids), encoding="utf-8")
    (written,) = plam_eval.submit(run.results_file, board="seedbench_2_plus", questions=questions)
    given = PARSERS["seedbench_2_plus"](written.file, ids)
    assert list(given.values()) == ["ABCD"[number % 4] for number in range(30)]
