"""Stock tasks of test splits, on copies of their data: they run to their end, and their answers are read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from plam_eval.evaluation.records import Run, read_run
from plam_eval.harness.evaluate import evaluate
from tests.helpers.offline_copies import PlannedModel, write_copies
from tests.helpers.offline_tasks import judged
from tests.helpers.offline_tests import SUBMITTED, TESTS


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
