"""Stock tasks of test splits, on copies of their data: they run to their end, and their answers are read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plam_eval.evaluation.records import Run, read_run
from plam_eval.harness.checks import check_tasks
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.evaluate import evaluate
from tests.helpers.offline_copies import PlannedModel, write_copies
from tests.helpers.offline_tasks import judged
from tests.helpers.offline_tests import SUBMITTED, TESTS
from tests.helpers.stock_runs import two_stock_runs


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tests")
    write_copies(folder, TESTS)
    return folder


@pytest.fixture(scope="module")
def run(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All tasks in one call, read back from disk."""
    output = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch, judged():
        patch.chdir(hub)
        evaluate(PlannedModel(SUBMITTED), list(SUBMITTED), output=output)
    return read_run(output)


def test_every_task_runs_to_its_end(run: Run) -> None:
    assert set(run.tasks) == set(SUBMITTED)


@pytest.mark.parametrize("task", SUBMITTED)
def test_every_planned_answer_is_logged(run: Run, task: str) -> None:
    rows = run.samples[run.samples["task"] == task]
    model = PlannedModel(SUBMITTED)
    assert rows["answer"].tolist() == [model.says(task, number).strip() for number in range(len(rows))]
    assert len(rows) == len(SUBMITTED[task][1])


def test_no_test_split_has_scores(run: Run) -> None:
    assert run.samples["score"].isna().all()
    assert set(run.unscored) == set(SUBMITTED)
    assert {why.partition(",")[0] for why in run.unscored.values()} == {"its answers are scored by a server"}


def test_where_nothing_can_be_compared_the_way_to_answers_is_said(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub)
    with pytest.raises(EvaluationError, match=r"lmms-eval --tasks stvqa,vqav2_test --log_samples(.|\n)*plam submit"):
        check_tasks(["vqav2_test", "stvqa"])


def test_two_stock_runs_of_one_folder_overwrote_each_others_files(tmp_path: Path) -> None:
    """Which is what others start from: real logs, and the files of the last run alone."""
    runs = two_stock_runs(tmp_path, ["docvqa_test", "mmbench_en_test", "mmmu_pro_vision"])
    submitted = json.loads((runs.output / "submissions" / "docvqa_test_for_submission.json").read_text())
    logged = [read_run(folder).only(["docvqa_test"]).samples["answer"].tolist() for folder in runs.folders]
    assert [row["answer"] for row in submitted] == logged[1] != logged[0]
    assert sorted(path.name for path in runs.output.iterdir()) == ["stock__first", "stock__second", "submissions"]
