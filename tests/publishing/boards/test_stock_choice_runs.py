"""Stock tasks of MMBench, MMMU, MM-Vet and MathVista, run by lmms-eval itself: their logs become files of boards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import plam_eval
from plam_eval.harness.evaluate import evaluate
from plam_eval.publishing.boards.table import BOARDS
from tests.helpers import board_parsers_mm
from tests.helpers.offline_copies import PlannedModel, write_copies
from tests.helpers.offline_tasks import judged
from tests.helpers.offline_tests import BOARD_COPIES, BOARD_TASKS

pytestmark = pytest.mark.slow

TASKS = {
    "mmbench_en": "mmbench_en_test",
    "mmbench_cn": "mmbench_cn_test",
    "mmmu_test": "mmmu_test",
    "mmmu_pro_standard": "mmmu_pro_standard",
    "mmmu_pro_vision": "mmmu_pro_vision",
    "mmvet": "mmvet",
    "mathvista_testmini": "mathvista_testmini_cot",
    "mathvista_test": "mathvista_test",
}
"""Board -> stock task."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The results JSON of one run over all of them."""
    hub = tmp_path_factory.mktemp("tests")
    with pytest.MonkeyPatch.context() as patch, judged():
        write_copies(hub, [copy for copy in BOARD_COPIES if {*copy.tasks} & {*TASKS.values()}])
        patch.chdir(hub)
        run = evaluate(PlannedModel(BOARD_TASKS), list(TASKS.values()), output=tmp_path_factory.mktemp("run"))
        assert run.results_file is not None
        yield run.results_file


def handed_in(results: Path, tmp_path: Path, board: str) -> tuple[Any, list[Any]]:
    """What was written for a board, and its documents."""
    _, documents = BOARD_TASKS[TASKS[board]]
    name = {"mmmu_test": "id", "mmmu_pro_standard": "id", "mmmu_pro_vision": "id"}.get(board, BOARDS[board].id.name)
    ids = [document.row[name] for document in documents]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    (made,) = plam_eval.submit(results, board=board, questions=tmp_path / "ids.json")
    assert plam_eval.check_submission(made.file, board, questions=tmp_path / "ids.json").problems == []
    return made, list(documents)


@pytest.mark.parametrize("language", ["en", "cn"])
def test_mmbench(results: Path, tmp_path: Path, language: str) -> None:
    made, documents = handed_in(results, tmp_path, f"mmbench_{language}")
    truths = {document.row["index"]: "A" for document in documents}
    dataset, right = board_parsers_mm.mmbench_server(made.file, truths)
    assert dataset == ("MMBench_CN" if language == "cn" else "MMBench") and right.keys() == {241, 252, 300}
    asked = [document for document in documents if document.row["hint"] == "nan"]
    notes = [note for note in made.notes if '"nan "' in note]
    assert len(notes) == (language == "cn") and all(f"({len(asked)})" in note for note in notes)


def test_mmmu(results: Path, tmp_path: Path) -> None:
    made, documents = handed_in(results, tmp_path, "mmmu_test")
    answers = json.loads(made.file.read_text(encoding="utf-8"))
    expected = {"test_Accounting_1": "B", "test_Accounting_2": "A", "test_Art_1": ""}
    expected |= {"test_Art_2": "The vanishing point", "test_Art_10": "12.5", "test_Agriculture_and_Food_3": "A"}
    assert answers == expected and made.empty == 1 and len(documents) == 6
    assert any("no letter" in note and "test_Art_1" in note for note in made.notes)


@pytest.mark.parametrize(
    ("board", "letters"),
    [("mmmu_pro_standard", ["C", "C", "C", "J", "I"]), ("mmmu_pro_vision", ["C", "C", "", "J", "B"])],
)
def test_mmmu_pro(results: Path, tmp_path: Path, board: str, letters: list[str]) -> None:
    made, _ = handed_in(results, tmp_path, board)
    assert list(json.loads(made.file.read_text(encoding="utf-8")).values()) == letters


def test_mmvet(results: Path, tmp_path: Path) -> None:
    made, documents = handed_in(results, tmp_path, "mmvet")
    asked = {document.row["question_id"]: (document.row["question"], "t") for document in documents}
    prompts = board_parsers_mm.mmvet_prompts(made.file, asked)
    model = PlannedModel(BOARD_TASKS)
    for number, (name, (question, truth)) in enumerate(asked.items()):
        assert prompts[name] == f"{question} | {truth} | {model.says('mmvet', number)} | "


def test_mathvista(results: Path, tmp_path: Path) -> None:
    made, documents = handed_in(results, tmp_path, "mathvista_testmini")
    truths = {document.row["pid"]: document.row["answer"] for document in documents}
    without = board_parsers_mm.mathvista_to_extract(made.file)
    problems = json.loads(made.file.read_text(encoding="utf-8"))
    assert without == ["6"]  # no verdict of the judge
    judged_file = tmp_path / "judged.json"
    judged_file.write_text(json.dumps({pid: each for pid, each in problems.items() if pid not in without}))
    share, other = board_parsers_mm.mathvista_score(judged_file, truths)
    assert other == [] and share == 3 / 5


def test_mathvista_test_has_no_verdicts(results: Path, tmp_path: Path) -> None:
    made, documents = handed_in(results, tmp_path, "mathvista_test")
    problems = json.loads(made.file.read_text(encoding="utf-8"))
    assert len(problems) == len(documents) and all("true_false" not in each for each in problems.values())
    assert board_parsers_mm.mathvista_to_extract(made.file) == ["5"]
