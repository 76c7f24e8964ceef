"""Bundles of runs over test splits: without a metric, but what is handed in follows from the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plam_eval.harness.evaluate import evaluate
from plam_eval.harness.recompute import UnavailableError, find_task
from plam_eval.publishing.bundle.verify import verify_bundle
from plam_eval.publishing.bundle.write import make_bundle
from tests.helpers.bundles import edited_sample, forged
from tests.helpers.offline_copies import PlannedModel, write_copies
from tests.helpers.offline_tests import SUBMITTED, TESTS

CHECKED = sorted(set(SUBMITTED) - {"mathvista_test"})  # its answers are extracted by a judge


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hub = tmp_path_factory.mktemp("tests")
    write_copies(hub, [copy for copy in TESTS if set(copy.tasks) & set(CHECKED)])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(hub)
        run = evaluate(PlannedModel(SUBMITTED), CHECKED, output=tmp_path_factory.mktemp("run"))
    assert run.results_file is not None
    return make_bundle([run.results_file], tmp_path_factory.mktemp("bundle") / "b.zip").path


def test_answers_to_test_splits_are_scored_again(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no dataset is
    done = verify_bundle(bundle)
    assert done.holds and done.differences() == []
    assert {each.task: each.checked for each in done.answers} == {task: len(SUBMITTED[task][1]) for task in CHECKED}
    (said,) = done.unverified
    assert "mmmu_test" in said and "drawn at random" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", CHECKED)
def test_a_changed_answer_is_found(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    monkeypatch.chdir(tmp_path)

    def change(sample: dict[str, Any]) -> None:
        sample.pop("resps", None)
        sample["filtered_resps"] = "C" if task == "mmmu_test" else "another answer"

    done = verify_bundle(forged(bundle, tmp_path / "f.zip", edited_sample(task, change, run="runs/001")))
    (difference,) = done.differences()
    assert task in difference and "does not follow from the answer" in difference


def test_an_answer_in_a_list_of_its_own_is_checked(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As versions of lmms-eval before 0.7 log it."""
    monkeypatch.chdir(tmp_path)

    def alone(sample: dict[str, Any]) -> None:
        sample["filtered_resps"] = [sample["filtered_resps"]]

    done = verify_bundle(forged(bundle, tmp_path / "f.zip", edited_sample("docvqa_test", alone, run="runs/001")))
    assert done.holds and not any("docvqa" in line for line in done.unverified)


def test_code_that_cannot_be_loaded_is_not_checked_and_said(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plam_eval.harness.lookup import task_manager

    def missing(*_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'Levenshtein'")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(task_manager()), "_get_config", missing)
    with pytest.raises(UnavailableError, match=r"cannot be loaded.*Levenshtein"):
        find_task("mathvista_testmini_cot", {})
    done = verify_bundle(bundle)
    assert done.holds and not done.complete and len(done.unverified) == len(CHECKED)
