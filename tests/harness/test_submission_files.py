"""Files that tasks write themselves: in the run's own folder, neither where it was started nor at its cost."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from loguru import logger

from plam_eval.demo.hub import MINIMUM_DOCUMENTS, write_hub
from plam_eval.evaluation.records import read_run
from plam_eval.harness.evaluate import Evaluation, evaluate
from plam_eval.harness.run_files import is_results_file, result_files
from plam_eval.harness.submission_files import StockFiles
from tests.helpers.offline_copies import PlannedModel, StockModel, write_copies
from tests.helpers.offline_tasks import judged
from tests.helpers.offline_tests import SUBMITTED, TESTS, UNWRITABLE
from tests.helpers.stock_runs import command_line
from tests.helpers.wrappers import NINE

FIXED = {  # names that are the same for every model
    "mmbench_en_test_results.xlsx",
    "mmbench_cn_test_results.xlsx",
    "mmmu_test_for_submission.json",
    "docvqa_test_for_submission.json",
    "infovqa_test_for_submission.json",
    "stvqa_test_for_submission.json",
}
TIMED = {"vqav2-test-submission-", "vizwiz_vqa-test-submission-", "textvqa_submission_"}  # to the second

OWN_WAYS = """
import json
import os
from pathlib import Path

import pandas as pd
from lmms_eval.tasks.seedbench_2_plus.utils import seed_aggregation_result_all as seed


def visual(doc):
    return [doc["image"]]


def process(doc, results):
    row = {"pred": results[0], "answer": "", "question_id": doc["question_id"]}
    return {"submission": row, "share": 1.0, "seed": row}


def submission(results):
    Path("own.txt").write_text("own")
    pd.DataFrame(results[:1]).to_excel("own.xlsx")
    os.makedirs("own/deep", exist_ok=True)
    with open(os.path.join(os.getcwd(), "own", "deep", "own.csv"), "w") as file:
        file.write("own")


def share(results):
    with open("truth.json") as file:
        return sum(results) / json.load(file)
"""
OWN_TASK = """
task: own_ways
dataset_path: lmms-lab-encoder/ST-VQA
test_split: test
output_type: generate_until
doc_to_visual: !function ways.visual
doc_to_text: "{{question}}"
doc_to_target: "{{question_id}}"
process_results: !function ways.process
metric_list:
"""


class Talkative(PlannedModel):
    """Answers every task: as planned, or "A"."""

    def says(self, task: str, number: int) -> str:
        return super().says(task, number) if task in self._planned else "A"

    def end_run(self, tasks: dict[str, Any]) -> None:
        """Nothing is scored again."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nine, the test splits, and a file that a task reads."""
    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder, documents_per_task=MINIMUM_DOCUMENTS)
    write_copies(folder, TESTS)
    (folder / "truth.json").write_text("12")
    return folder


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of the user's that writes wherever it likes."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "ways.py").write_text(OWN_WAYS)
    metrics = [
        f"  - metric: {name}\n    aggregation: !function ways.{name}" for name in ("submission", "share", "seed")
    ]
    (folder / "own_ways.yaml").write_text(
        OWN_TASK + "\n".join(f"{metric}\n    higher_is_better: true" for metric in metrics) + "\n"
    )
    return folder


def run(hub: Path, model: Any, tasks: Any, output: Path | None, **settings: Any) -> Evaluation:
    with pytest.MonkeyPatch.context() as patch, judged():
        patch.chdir(hub)
        done = evaluate(model, list(tasks), output=output, **settings)
    assert done is not None
    return done


@pytest.fixture(scope="module")
def both(hub: Path, own_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[str]]:
    """A plain and a merged run of all tasks into one folder, and what they left in the working directory."""
    output, before = tmp_path_factory.mktemp("runs"), listing(hub)
    files = []
    for shift, name in enumerate(("plam-plain", "plam-abc")):
        model = Talkative(SUBMITTED, folder=name, shift=shift)
        done = run(hub, model, [*NINE, *SUBMITTED, "own_ways"], output, include_path=own_tasks)
        assert done.results_file is not None
        files.append(done.results_file)
    return output, files, sorted(set(listing(hub)) ^ set(before))


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def written(results_file: Path) -> dict[str, Path]:
    """The files of a run's tasks, by name."""
    folder = results_file.with_name(results_file.name.replace("_results.json", "_stock"))
    return {path.name: path for path in folder.rglob("*") if path.is_file()}


def test_plain_and_merged_runs_of_one_folder_keep_their_files(both: Any) -> None:
    output, (plain, merged), _ = both
    assert plain.parent != merged.parent
    of_plain, of_merged = written(plain), written(merged)
    assert set(of_plain) >= FIXED and set(of_merged) >= FIXED
    for start in TIMED:
        assert sum(name.startswith(start) for name in of_plain) == 1
    for name in FIXED:
        assert of_plain[name].read_bytes() != of_merged[name].read_bytes(), name
    frame = pd.read_excel(of_plain["mmbench_en_test_results.xlsx"], keep_default_na=False)
    model = PlannedModel(SUBMITTED)
    assert frame["prediction"].tolist() == [
        model.says("mmbench_en_test", number).strip() for number in range(len(frame))
    ]
    assert not (output / "submissions").exists()


def test_nothing_lands_in_the_working_directory(both: Any) -> None:
    assert both[2] == []


def test_tasks_that_write_where_they_stand_write_into_the_run(both: Any) -> None:
    for file in both[1]:
        assert set(written(file)) >= {"own.txt", "own.xlsx", "own.csv", "seed_submission.json"}


def test_what_a_task_reads_where_it_stands_is_read(both: Any) -> None:
    results = json.loads(both[1][0].read_text())["results"]["own_ways"]
    assert results["share,none"] == pytest.approx(6 / 12)


def test_the_files_of_tasks_are_not_taken_for_results(both: Any) -> None:
    output, files, _ = both
    file = written(files[0])["mmbench_en_dev_static_results.json"]
    assert not is_results_file(file)
    assert result_files(output) == sorted(files, key=lambda path: path.name)
    assert result_files(files[0].parent) == [files[0]]
    assert set(read_run(output).tasks) == {*NINE, *SUBMITTED, "own_ways"}


def test_a_file_that_cannot_be_written_does_not_end_the_run(hub: Path, tmp_path: Path) -> None:
    assert UNWRITABLE in [document.answer for document in SUBMITTED["mmbench_en_test"][1]]
    said: list[str] = []
    sink = logger.add(said.append, level="WARNING", format="{message}")
    try:
        done = run(hub, PlannedModel(SUBMITTED, raw=True), ["mmbench_en_test", "docvqa_test"], tmp_path)
    finally:
        logger.remove(sink)
    assert done.results["results"]["mmbench_en_test"]["submission,none"] is None
    assert done.results_file is not None
    assert list(written(done.results_file)) == ["docvqa_test_for_submission.json"], "half a worksheet is none"
    assert UNWRITABLE in read_run(tmp_path).samples["answer"].tolist()
    (warning,) = [text for text in said if "IllegalCharacterError" in text]
    assert "mmbench_en_test" in warning and "plam submit" in warning


def test_an_error_of_a_score_is_one(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("no documents")

    monkeypatch.setattr(MMBench_Evaluator, "eval_result", fails)
    before = listing(hub)
    with pytest.raises(ZeroDivisionError):
        run(hub, Talkative(SUBMITTED), ["mmbench_en_dev_static"], tmp_path)
    assert listing(hub) == before


def test_a_run_without_a_folder_leaves_nothing(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = listing(hub)
    done = run(hub, PlannedModel(SUBMITTED), ["mmbench_en_test", "docvqa_test"], None)
    assert not any("stock" in key for key in done.results)
    assert listing(hub) == before
    assert listing(tmp_path) == []


def test_command_lines_without_an_output_path_have_folders_of_their_own(tmp_path: Path) -> None:
    write_copies(tmp_path, TESTS)
    before = {path.name for path in tmp_path.iterdir()}
    for shift in range(3):
        command_line(tmp_path, PlannedModel(SUBMITTED, shift=shift), ["stvqa"], pretrained="some/model")
    assert {path.name for path in tmp_path.iterdir()} - before == {"submissions"}
    files = sorted(tmp_path.glob("submissions/planned__planned/*_stock/stvqa_test_for_submission.json"))
    assert len({file.read_text() for file in files}) == 3
    assert len([path for path in (tmp_path / "submissions").rglob("*") if path.is_file()]) == 3


def test_two_tasks_may_give_their_files_one_name(tmp_path: Path) -> None:
    files = StockFiles()
    for task in ("mmmu_test", "mmmu_group_img_test"):
        folder = files.folder_for(task) / "submissions"
        folder.mkdir()
        (folder / "mmmu_test_for_submission.json").write_text(task)
        (folder / f"{task}.json").symlink_to(tmp_path)
    files.move_to(tmp_path / "stock")
    moved = {path.relative_to(tmp_path / "stock"): path for path in tmp_path.rglob("*.json")}
    assert {path.parts[0]: file.read_text() for path, file in moved.items()} == {
        "mmmu_test": "mmmu_test",
        "mmmu_group_img_test": "mmmu_group_img_test",
    }


_ENDS = """
from plam_eval.harness.submission_files import StockFiles, move_to_submissions
import sys
files = StockFiles()
(files.folder_for("stvqa") / "stvqa.json").write_text(sys.argv[1])
sys.stdin.readline()
move_to_submissions(files, "model__plam-plain", "20260301_120000")
"""


def test_processes_that_end_in_one_second_keep_their_files(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen([sys.executable, "-c", _ENDS, str(n)], cwd=tmp_path, stdin=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    for worker in workers:
        worker.communicate("\n", timeout=60)
    assert {file.read_text() for file in tmp_path.rglob("stvqa.json")} == {"0", "1", "2"}


def test_models_that_are_not_ours_write_as_ever(hub: Path, tmp_path: Path) -> None:
    run(hub, PlannedModel(SUBMITTED), ["stvqa"], None)  # ours has run in this process
    for shift in range(2):
        command_line(hub, StockModel(SUBMITTED, shift=shift), ["stvqa"], output=tmp_path, pretrained=f"stock/{shift}")
    file = tmp_path / "submissions" / "stvqa_test_for_submission.json"
    answers = [row["answer"] for row in json.loads(file.read_text())]
    last = StockModel(SUBMITTED, shift=1)
    assert answers == [last.says("stvqa", number).strip() for number in range(len(answers))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stock__0", "stock__1", "submissions"]
    from openpyxl.utils.exceptions import IllegalCharacterError

    with pytest.raises(IllegalCharacterError):
        command_line(hub, StockModel(SUBMITTED, raw=True), ["mmbench_en_test"], output=tmp_path, pretrained="raw")


@pytest.mark.parametrize("name", ["mmbench_en_dev_static_results.json", "jmmmu_pro_subdomain_results.json"])
def test_folders_of_stock_runs_are_read_as_before(tmp_path: Path, name: str) -> None:
    results = tmp_path / "model" / "20260301_120000_results.json"
    for file in (results, tmp_path / "submissions" / "mmbench_en_dev_results.json", tmp_path / "model" / name):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert result_files(tmp_path) == [results]
