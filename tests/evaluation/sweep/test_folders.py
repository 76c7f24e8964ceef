"""What a sweep does with folders that are damaged, foreign, or changed while it runs. No model is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from plam_eval.errors import DamagedFileError, FolderError, OutsideError
from plam_eval.evaluation import answer_store, scan, scan_folder
from plam_eval.evaluation.scan_folder import ScanError
from plam_eval.evaluation.sweep import runner
from plam_eval.evaluation.sweep.config import SweepConfig, SweepError
from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.evaluation.sweep.folder import PLAN, lock_sweep, read_cell, read_plan, read_run
from plam_eval.evaluation.sweep.grid import Cell, Grid, make_grid
from plam_eval.evaluation.sweep.job import Job, sweep_settings, with_cells_before
from plam_eval.harness import checks, evaluate
from plam_eval.harness.errors import EvaluationError
from plam_eval.merging.checkpoint import Checkpoint
from tests.helpers.run_folders import documents, write_run, write_sweep

MERGED = "layers-6-8_qkvo_0.9+0.3"
SCALE = f"{MERGED}_self_scale"
PLAIN_DOCUMENTS = documents(["pope"], 4, right=3)


def checkpoint(folder: Path, value: float = 0.0) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    save_file({"w": torch.full((4,), value)}, folder / "model.safetensors")
    return folder


CHECKED = checks.CheckedTasks({"pope": 4}, {"pope": 4}, {}, ("pope",))


class Sweeping:
    """A sweep of plain, a merge and its scale control, whose evaluations are written by hand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "sweep"
        self.model, self.base = checkpoint(folder / "mllm"), checkpoint(folder / "base")
        self.evaluated: list[str] = []
        self.during: Callable[[str], Any] = lambda name: None
        monkeypatch.setattr(checks, "check_tasks", lambda tasks, **given: CHECKED)
        monkeypatch.setattr(evaluate, "evaluate", self._evaluate)
        self._spec: Any = None

    def job(self, **changes: Any) -> Job:
        given = {"layers": "6:8", "controls": "self_scale", "tasks": "pope"} | changes
        config = SweepConfig.load(
            model="plam_llava", model_args=f"pretrained={self.model},base={self.base},layers=6:8", **given
        )
        grid, bases = make_grid(config, 8), {str(self.base): Checkpoint.open(self.base)}
        settings = sweep_settings(config, Checkpoint.open(self.model), bases)
        if (self.folder / PLAN).is_file():
            grid = with_cells_before(self.folder, settings, grid)
        return Job(config, grid, self.folder, settings, 8, {}, {})

    def run(self, **changes: Any) -> dict[str, dict[str, Any]]:
        self.evaluated.clear()
        return runner.run(self.job(**changes), SimpleNamespace(rank=0, world_size=1, merge=self._merge))

    def _merge(self, spec: Any) -> None:
        self._spec = spec

    def _evaluate(self, lm: Any, tasks: Any, *, output: Path, **given: Any) -> Any:
        name = output.name[1:].removesuffix(".partial")
        self.evaluated.append(name)
        self.during(name)
        spec = self._spec
        made = {"checkpoint": {"name": "m", **Checkpoint.open(self.model).identity()}, "base": None, "digest": None}
        if spec is not None:
            made |= {"base": {"name": "b", **Checkpoint.open(self.base).identity()}, "digest": spec.digest()}
        file = write_run(output / "run", PLAIN_DOCUMENTS, plain=spec is None, provenance=made)
        return SimpleNamespace(results_file=file)

    def cell(self, name: str) -> Path:
        return self.folder / "cells" / name

    def states(self) -> dict[str, str]:
        return read_findings(self.folder).cells.set_index("cell")["status"].to_dict()


@pytest.fixture
def sweeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweeping:
    return Sweeping(tmp_path, monkeypatch)


FINISHED = dict.fromkeys(("plain", MERGED, SCALE), "finished")


# Names and paths from files


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../x", "/tmp/x", f"{MERGED}/../..", ".hidden", "other", None, 3, "plain", MERGED + "\n"]
)
def test_a_cell_is_named_as_we_name_it(sweeping: Sweeping, name: Any) -> None:
    sweeping.run()
    plan = json.loads((sweeping.folder / "sweep.json").read_text())
    plan["grid"]["cells"][1]["name"] = name
    (sweeping.folder / "sweep.json").write_text(json.dumps(plan))
    kept = sweeping.folder / "notes.txt"
    kept.write_text("mine")
    with pytest.raises(SweepError, match=r"sweep\.json: (found|plain)"):
        sweeping.run()
    assert kept.read_text() == "mine" and sorted(p.name for p in sweeping.cell("").iterdir()) == sorted(FINISHED)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"spec": "/etc/passwd"}, "expected a mapping"),
        ({"spec": "demo"}, "expected a mapping"),
        ({"kind": "plain"}, "found the kind"),
        ({"spec": None}, "found the kind"),
        ({"name": "layers-6-8_qk_0.9+0.3"}, "expected 'layers-6-8_qkvo"),
        ({"name": "layers-0-8_qkvo_0.9+0.3"}, "expected 'layers-6-8_qkvo"),
    ],
)
def test_what_is_no_cell(sweeping: Sweeping, change: dict[str, Any], says: str) -> None:
    stored = sweeping.job().grid.cells[1].to_dict()
    with pytest.raises(SweepError, match=says):
        Cell.from_dict(stored | change)


@pytest.mark.parametrize("name", [MERGED, "merged", "layers-6-8_qkvo_0.333333+1e-05", f"{MERGED}_normalized"])
def test_names_of_earlier_versions_are_read(sweeping: Sweeping, name: str) -> None:
    stored = sweeping.job().grid.cells[1].to_dict() | {"name": name}
    assert Cell.from_dict(stored).name == name


@pytest.mark.parametrize(
    "change",
    [
        {"controls": {"other": {}}},
        {"controls": {MERGED: {"self_scale": ["../x"]}}},
        {"controls": {MERGED: {"shell": []}}},
        {"controls": [1]},
        {"cells": {"a": 1}},
        {"cells": None},
        {"cells": [{"name": "plain", "kind": "plain", "spec": None}] * 2},
    ],
)
def test_what_is_no_grid(sweeping: Sweeping, change: dict[str, Any]) -> None:
    with pytest.raises(SweepError, match=r"found|unknown rule"):
        Grid.from_dict(sweeping.job().grid.to_dict() | change)


def test_results_elsewhere_are_not_read(sweeping: Sweeping) -> None:
    sweeping.run()
    elsewhere = write_run(sweeping.folder.parent / "elsewhere", PLAIN_DOCUMENTS)
    (sweeping.cell(SCALE) / "link").symlink_to(elsewhere.parent)
    file = sweeping.cell(SCALE) / "cell.json"
    record = json.loads(file.read_text())
    for name in (str(elsewhere), f"../../../elsewhere/{elsewhere.name}", f"link/{elsewhere.name}", "cell.json", None):
        file.write_text(json.dumps(record | {"results": name}))
        found = read_findings(sweeping.folder)
        assert set(found.runs) == {"plain", MERGED}, name
        assert sweeping.states() == FINISHED | {SCALE: "damaged"}
    assert [cell.name for cell in sweeping.job().left()] == [SCALE]


def test_links_that_lead_out_are_neither_followed_nor_deleted(sweeping: Sweeping, tmp_path: Path) -> None:
    sweeping.run()
    elsewhere = tmp_path / "elsewhere"
    shutil.move(str(sweeping.cell("")), elsewhere)
    sweeping.cell("").symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    with pytest.raises(OutsideError, match="leads to"):
        sweeping.run()
    assert set(sweeping.states().values()) == {"damaged"} and sorted(elsewhere.rglob("*")) == before


def test_what_no_mark_of_ours_owns_is_not_deleted(sweeping: Sweeping) -> None:
    for name in (MERGED, f".{MERGED}.partial"):
        place = sweeping.cell(name)
        place.mkdir(parents=True)
        (place / "thesis.txt").write_text("mine")
        with pytest.raises(FolderError, match="plam-eval has not made it"):
            sweeping.run()
        assert (place / "thesis.txt").read_text() == "mine" and MERGED not in sweeping.evaluated
        shutil.rmtree(place)
    assert sweeping.run() and sweeping.states() == FINISHED


def test_cells_of_a_base_that_is_not_named_are_refused(sweeping: Sweeping) -> None:
    sweeping.run()
    plan = json.loads((sweeping.folder / "sweep.json").read_text())
    cell = json.loads(json.dumps(plan["grid"]["cells"][1]).replace("0.9", "0.8").replace(str(sweeping.base), "evil/x"))
    plan["grid"]["cells"].append(cell)
    (sweeping.folder / "sweep.json").write_text(json.dumps(plan))
    with pytest.raises(SweepError, match="base evil/x, which this sweep does not name"):
        sweeping.run()


def test_tables_of_something_else_are_not_overwritten(sweeping: Sweeping) -> None:
    sweeping.folder.mkdir()
    (sweeping.folder / "tasks.csv").write_text("mine")
    with pytest.raises(FolderError, match=r"holds tasks\.csv and no sweep\.json"):
        Job.plan(sweeping.job().config, sweeping.folder)


def test_answers_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "answers.rank0.jsonl").touch()
    folder = tmp_path / ".together"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        (folder / name / "answers.rank0.jsonl").touch()
    (folder / "two" / "mine.txt").touch()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    answer_store.delete_answers(folder)
    assert sorted(p.name for p in folder.rglob("*")) == ["link", "mine.txt", "two"]
    assert (tmp_path / "elsewhere" / "answers.rank0.jsonl").exists()
    (tmp_path / "to").symlink_to(tmp_path / "elsewhere")
    answer_store.delete_answers(tmp_path / "to")
    assert (tmp_path / "elsewhere").is_dir()


# Damage


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("cell.json", "{"),
        ("cell.json", "[]"),
        ("cell.json", '{"status": "done"}'),
        ("cell.json", '{"status": "finished", "seconds": 3}'),
        ("cell.json", '{"status": "finished", "together": "x"}'),
        ("run/20260101_000000_results.json", "{"),
        ("run/20260101_000000_results.json", '{"configs": {"pope": {}}, "results": {"pope": 3}}'),
        ("run/20260101_000000_results.json", "[" * 100_000),
        ("run/20260101_000000_samples_pope.jsonl", '{"doc_id": 0'),
    ],
)
def test_a_damaged_cell_is_left_out_and_evaluated_again(sweeping: Sweeping, file: str, content: str) -> None:
    sweeping.run()
    (sweeping.cell(SCALE) / file).write_text(content)
    found = read_findings(sweeping.folder)
    assert sweeping.states() == FINISHED | {SCALE: "damaged"} and set(found.runs) == {"plain", MERGED}
    (warning,) = found.warnings
    assert warning.startswith(f"{SCALE} counts as not evaluated: ") and Path(file).name in warning
    assert found.selection is not None
    assert list(sweeping.run()) == sweeping.evaluated == [SCALE] and sweeping.states() == FINISHED


def test_a_cell_of_another_merge_is_no_result(sweeping: Sweeping) -> None:
    sweeping.run()
    shutil.rmtree(sweeping.cell(SCALE))
    shutil.copytree(sweeping.cell(MERGED), sweeping.cell(SCALE))
    assert sweeping.states()[SCALE] == "damaged"
    assert "another merge" in read_findings(sweeping.folder).cells.set_index("cell").loc[SCALE, "error"]


@pytest.mark.parametrize(
    "change",
    [
        *({"config": 3}, {"settings": []}, {"grid": None}, {"command": "rm"}, {"working_directory": 3}),
        *({"settings": {"bases": {"a": 1}}}, {"command": [3]}, {"config": {"tasks": "x"}}, {"config": {"select": "1"}}),
    ],
)
def test_a_damaged_plan_names_its_file(sweeping: Sweeping, change: dict[str, Any]) -> None:
    sweeping.run()
    file = sweeping.folder / "sweep.json"
    plan = json.loads(file.read_text())
    file.write_text(json.dumps(plan | change))
    with pytest.raises(DamagedFileError, match=r"sweep\.json: "):
        read_plan(sweeping.folder)
    file.write_text("{")
    with pytest.raises(DamagedFileError, match=r"sweep\.json: cannot be read as JSON"):
        read_plan(sweeping.folder)


def test_damaged_answers_are_given_again(tmp_path: Path) -> None:
    file = answer_store.AnswerStore(tmp_path, 0)
    for number in range(4):
        file.add({"task": "pope", "doc_id": number})
    path = tmp_path / "answers.rank0.jsonl"
    lines = path.read_text().splitlines()
    lines[1], lines[2] = lines[1][:9], '["pope"]'
    path.write_text("\n".join(lines) + "\n")
    whole = answer_store.AnswerStore(tmp_path, 0).read(lambda line: line["task"] == "pope")
    assert [line["doc_id"] for line in whole] == [0, 3]
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "answers.rank1.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FolderError, match="found a link"):
        answer_store.AnswerStore(tmp_path, 1)
    assert (tmp_path / "elsewhere").read_text() == "mine"


# Checkpoints that change


@pytest.mark.parametrize("which", ["model", "base"])
def test_a_checkpoint_that_changes_ends_the_sweep(sweeping: Sweeping, which: str) -> None:
    folder = getattr(sweeping, which)
    sweeping.during = lambda name: checkpoint(folder, 1.0) if name == MERGED else None
    with pytest.raises(SweepError, match="checkpoint was changed since this sweep began"):
        sweeping.run()
    assert sweeping.evaluated == ["plain", MERGED]  # and not the control, which would be of another model
    assert sweeping.states() == {"plain": "finished", MERGED: "failed", SCALE: "missing"}
    with pytest.raises(SweepError, match="holds a sweep of other settings"):
        sweeping.run()


@pytest.mark.parametrize("which", ["checkpoint", "base"])
def test_cells_of_two_checkpoints_are_not_compared(sweeping: Sweeping, which: str) -> None:
    sweeping.run()
    file = next(sweeping.cell(SCALE).glob("run/*_results.json"))
    results = json.loads(file.read_text())
    results["plam_eval"]["provenance"][which]["fingerprint"] = "00"
    file.write_text(json.dumps(results))
    assert sweeping.states() == FINISHED | {SCALE: "damaged"}
    (warning,) = read_findings(sweeping.folder).warnings
    assert SCALE in warning and f"another {'model' if which == 'checkpoint' else 'base'} than this sweep's" in warning
    assert [cell.name for cell in sweeping.job().left()] == [SCALE]


# The output folder


def test_a_mistyped_task_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeping = Sweeping(tmp_path, monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(evaluate, "evaluate", sweeping._evaluate)

    def check(tasks: Any, **given: Any) -> checks.CheckedTasks:
        if "poppe" in tasks:
            raise EvaluationError("no task or group of this name: 'poppe'")
        return CHECKED

    monkeypatch.setattr(checks, "check_tasks", check)
    with pytest.raises(EvaluationError, match="no task"):
        sweeping.run(tasks="poppe")
    assert not sweeping.folder.exists()
    with pytest.raises(EvaluationError, match="no task"):  # before the model is loaded
        runner.load_model(sweeping.job(tasks="poppe").config)
    with pytest.raises(EvaluationError, match="no task"):
        scan.check(tmp_path / "scan", "poppe")
    assert sweeping.run() and not (tmp_path / "scan").exists()


def test_a_sweep_of_an_earlier_version_goes_on(sweeping: Sweeping) -> None:
    """It called the fingerprint of a checkpoint's folder "sha256"."""
    sweeping.run()
    for file in (sweeping.folder / "sweep.json", *sweeping.folder.rglob("*_results.json")):
        assert '"fingerprint"' in file.read_text()
        file.write_text(file.read_text().replace('"fingerprint"', '"sha256"'))
    assert sweeping.states() == FINISHED and sweeping.run() == {} and sweeping.evaluated == []


def test_a_sweep_without_a_finished_cell_refuses_nothing(sweeping: Sweeping) -> None:
    def fails(name: str) -> None:
        raise EvaluationError("limit is 5, but MME scores documents in pairs; give an even number")

    sweeping.during = fails
    sweeping.run(limit=5)
    sweeping.during = lambda name: None
    assert set(sweeping.run(limit=6)) == set(FINISHED) and sweeping.states() == FINISHED
    with pytest.raises(SweepError, match=r"limit \(was 6, is 5\)"):
        sweeping.run(limit=5)


def test_a_file_as_output_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_text("mine")
    config = SweepConfig.load(model="plam_llava", model_args="pretrained=/no/such", tasks="pope")
    with pytest.raises(FolderError, match="is a file, expected a folder"):
        Job.plan(config, tmp_path / "out")
    with pytest.raises(FolderError, match="is a file, expected a folder"):
        scan.check(tmp_path / "out" / "scan", "no-such-task")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("when", ["plain", MERGED, SCALE])
def test_a_folder_deleted_meanwhile_is_an_error(sweeping: Sweeping, when: str) -> None:
    sweeping.during = lambda name: shutil.rmtree(sweeping.folder) if name == when else None
    with pytest.raises(SweepError, match="deleted while the sweep ran"):
        sweeping.run()


def test_a_finished_cell_deleted_meanwhile_is_an_error(sweeping: Sweeping) -> None:
    sweeping.during = lambda name: shutil.rmtree(sweeping.cell("plain")) if name == SCALE else None
    with pytest.raises(SweepError, match="plain was deleted while the sweep ran"):
        sweeping.run()


def test_seconds_are_those_of_the_evaluation(sweeping: Sweeping) -> None:
    sweeping.run()
    file = sweeping.cell(MERGED) / "cell.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": {"merge": 0.5, "evaluate": 42.0}}))
    assert read_findings(sweeping.folder).runs[MERGED].summary()["seconds"] == 42


def test_a_cells_results_are_those_of_its_record(sweeping: Sweeping) -> None:
    """Not the newest by date, which another clock may have given."""
    sweeping.run()
    record = read_cell(sweeping.folder, MERGED)
    assert record is not None
    (file,) = sweeping.cell(MERGED).glob("run/*_results.json")
    for one in file.parent.iterdir():
        shutil.copyfile(one, one.with_name(one.name.replace("20260101", "20270101")))
    assert read_run(sweeping.cell(MERGED)).file == file == sweeping.cell(MERGED) / record["results"]


def test_two_scans_in_one_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plam_eval.files import locked

    monkeypatch.setattr(checks, "check_tasks", lambda tasks, **given: CHECKED)
    monkeypatch.setattr("plam_eval.probing.decoder.decoder_layers", lambda model: [None] * 4)
    monkeypatch.setattr(scan, "_settings", lambda *given: {})
    model: Any = SimpleNamespace(rank=0, model=None, model_id="plam_llava")
    with locked(tmp_path, scan_folder.LOCK), pytest.raises(ScanError, match="another process is at work"):
        scan.scan(model, "pope", tmp_path)
    assert not (tmp_path / scan_folder.SETTINGS).exists()


def test_a_scan_leaves_files_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "plateau.yaml").write_text("mine")
    with pytest.raises(FolderError, match=r"holds plateau\.yaml and no scan\.json"):
        scan.check(tmp_path, "pope")


def test_reading_a_sweep_of_other_hands(tmp_path: Path) -> None:
    """The folders that other tests write by hand are whole, too."""
    write_sweep(tmp_path, {"plain": PLAIN_DOCUMENTS}, layers="6:8")
    assert read_findings(tmp_path).cells["status"].tolist() == ["finished", "missing", "missing"]


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("evaluated_before", [False, True])
def test_two_sweeps_in_one_folder_are_refused(sweeping: Sweeping, evaluated_before: bool, finished: bool) -> None:
    if evaluated_before:  # which makes file locks of this process reentrant
        from lmms_eval.evaluator import _enable_reentrant_filelocks

        _enable_reentrant_filelocks()
    if finished:
        sweeping.run()
    with lock_sweep(sweeping.folder), pytest.raises(SweepError, match="another process"):
        sweeping.run()
