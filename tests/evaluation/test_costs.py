"""What a dry run says of a whole sweep, scan or search, held against what these then did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import plam_eval
from plam_eval.errors import InputError
from plam_eval.evaluation.costs import Measured
from plam_eval.evaluation.machine import sizes
from plam_eval.evaluation.sweep import runner
from plam_eval.harness.wrapper import Timed
from tests.helpers.offline_text import write_text_tasks
from tests.helpers.sweeps import ARGUMENTS, SPEC

SWEEP: dict[str, Any] = {
    "model": "plam_llava",
    "model_args": SPEC,
    "tasks": "pope,mme",
    "layers": "plateau",
    "controls": "self_scale",
    "limit": 24,
}
FACTOR = 1.5
"""How far the bytes that were written may be from those that were expected."""


def bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_a_sweep_is_as_it_was_estimated(in_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sweep"
    estimate = plam_eval.plan_sweep(**SWEEP, output=folder, measure=8).estimate
    assert estimate is not None and not folder.exists()
    found = plam_eval.sweep(**SWEEP, output=folder)
    assert found is not None and len(found.runs) == estimate.cells == 3
    assert estimate.documents == {"pope": 24, "mme": 24} and 8 <= estimate.sampled <= 9
    assert estimate.generations == sum(len(run.samples) for run in found.runs.values()) == 144
    assert bytes_below(folder / "cells") / FACTOR < estimate.disk < bytes_below(folder / "cells") * FACTOR
    assert 0 < estimate.low <= estimate.seconds <= estimate.high and estimate.load < estimate.seconds
    assert 20 < estimate.prompt_tokens / 144 < 60 and estimate.answer_tokens == 288  # two tokens to an answer
    assert estimate.memory_of == "host" and estimate.memory > 50e6 and "torch" in estimate.machine
    assert "GB" not in repr(estimate) and json.dumps(estimate.to_dict())
    monkeypatch.setattr(runner, "load_model", lambda config: pytest.fail("a model was loaded"))
    left = plam_eval.plan_sweep(**SWEEP, output=folder, measure=4).estimate
    assert left is not None and left.cells == left.generations == left.disk == 0 and "finished" in left.notes[0]


@pytest.mark.slow
@pytest.mark.long
def test_a_scan_is_as_it_was_estimated(in_suite: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    given: dict[str, Any] = {"limit": 24, "cuts": "0,4"}
    planned = plam_eval.plan_scan("plam_llava", ARGUMENTS, "pope,mme", folder, measure=8, **given)
    assert not folder.exists() and planned.estimate is not None
    done = plam_eval.scan("plam_llava", ARGUMENTS, "pope,mme", folder, **given)
    assert done is not None
    assert planned.estimate.generations == sum(done.curve.documents.values()) == 48 == sum(planned.documents.values())
    assert bytes_below(folder) / FACTOR < planned.estimate.disk < bytes_below(folder) * FACTOR
    assert "3 cuts" in planned.estimate.notes[0] and any("No plateau spec" in warning for warning in planned.warnings)


@pytest.mark.slow
def test_a_search_has_its_report_in_the_estimate(in_suite: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {**SWEEP, "layers": "ranges", "select": 6, "trials": 5}
    planned = plam_eval.plan_search(**given, output=tmp_path / "search", measure=4)
    estimate = planned.estimate
    assert estimate is not None and not (tmp_path / "search").exists()
    settings, cells = 5 + 1, 4  # the plain model is answered, too; plain, the merge, its scale, and all layers or more
    assert estimate.generations >= settings * 12 + cells * 48 and estimate.low < estimate.seconds < estimate.high


def test_a_plan_alone_loads_nothing(in_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "load_model", lambda config: pytest.fail("a model was loaded"))
    for planned in (
        plam_eval.plan_sweep(**SWEEP, output=tmp_path / "a"),
        plam_eval.plan_scan("plam_llava", ARGUMENTS, "pope,mme", tmp_path / "b", limit=24),
        plam_eval.plan_compare(model="plam_llava", model_args=SPEC, tasks="pope,mme", limit=24, output=tmp_path / "c"),
    ):
        assert planned.documents == {"pope": 24, "mme": 24} and planned.estimate is None
    assert not any(tmp_path.iterdir())


def test_several_processes_are_refused(in_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(runner, "load_model", lambda config: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=r"the launcher started 2.*--dry-run 0"):
        plam_eval.plan_sweep(**SWEEP, output=tmp_path / "a", measure=4)


def test_two_run_folders_have_no_dry_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="with two run folders"):
        plam_eval.plan_compare([tmp_path, tmp_path], measure=4)
    with pytest.raises(InputError, match="give --model"):
        plam_eval.plan_compare(measure=4)


def test_tasks_count_by_their_documents() -> None:
    times = [Timed("pope", 1, 1.0), Timed("pope", 1, 1.2), Timed("pope", 1, 0.8), Timed("mme", 2, 8.0)]
    measured = Measured(times=times, rest=3.0, rest_growth=0.5, files=100, growing=10)
    seconds, error = measured.answering({"pope": 100, "mme": 10})
    assert seconds == pytest.approx(100 * 1.0 + 10 * 4.0) and 0 < error < 40
    assert measured.answering({"other": 4})[0] == pytest.approx(4 * (1.0 + 1.2 + 0.8 + 4.0) / 4)
    assert measured.sampled == 5 and measured.evaluating({"pope": 105}) == pytest.approx(3 + 0.5 * 100)
    assert measured.disk({"pope": 5}) == 150


def test_files_that_grow_are_told_from_others(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a_samples_pope.jsonl").write_text("x" * 30)
    (tmp_path / "run" / "a_results.json").write_text("x" * 7)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "run" / "a_samples_pope.jsonl")
    assert sizes(tmp_path) == (7, 30)


@pytest.mark.slow
def test_choices_that_are_scored_count_as_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text_tasks(tmp_path, 4)
    monkeypatch.chdir(tmp_path)
    planned = plam_eval.plan_compare(
        model="plam_llava", model_args=SPEC, tasks="arc_easy", output=tmp_path / "compare", measure=3
    )
    estimate = planned.estimate
    assert estimate is not None and estimate.sampled == 3 and estimate.documents == {"arc_easy": 4}
    assert estimate.disk > 0 and estimate.load < estimate.seconds and estimate.answer_tokens == 0
    each = estimate.prompt_tokens / estimate.generations
    assert each > 4 * 10, "four choices of a document are four times its prompt, of more than ten tokens"
