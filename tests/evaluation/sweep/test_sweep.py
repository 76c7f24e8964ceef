"""Sweeps and comparisons on one resident model, in the offline suite, against evaluations one by one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from plam_eval import cli
from plam_eval.errors import MergeError
from plam_eval.evaluation import records
from plam_eval.evaluation.sweep import grid, runner
from plam_eval.evaluation.sweep import ray as ray_workers
from plam_eval.evaluation.sweep.config import SweepConfig, SweepError
from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.evaluation.sweep.folder import lock_sweep, read_cell, read_plan
from plam_eval.harness.evaluate import evaluate
from plam_eval.merging.rules import register_rule
from plam_eval.report import plots
from plam_eval.report.blocks import records_of
from plam_eval.report.sections.controls import beside_controls
from plam_eval.spec import Weights
from tests.helpers import forked
from tests.helpers.paths import PAIR, ROOT
from tests.helpers.sweeps import ARGUMENTS, CELLS, SPEC, TASKS, answers, job, plam, words
from tests.helpers.wrappers import arguments


@pytest.fixture(scope="module")
def lm() -> Any:
    from plam_eval.model_wrappers.llava import PlamLlavaChat

    return PlamLlavaChat(pretrained=str(PAIR / "mllm"), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def finished(lm: Any, suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep. Do not modify."""
    folder = tmp_path_factory.mktemp("sweep")
    before = Path.cwd()
    os.chdir(suite)
    try:
        done = runner.run(job(folder), lm)
    finally:
        os.chdir(before)
    assert len(done) == CELLS
    return folder


def test_every_cell_is_an_evaluation_of_its_merge(lm, finished, in_suite):
    found = answers(finished)
    assert len(found) == CELLS
    for cell in job(finished).grid.cells:
        lm.merge(cell.spec)
        run = evaluate(lm, TASKS, limit=6)
        expected = {
            (task, row["doc_id"]): row["filtered_resps"][0] for task, rows in run.samples.items() for row in rows
        }
        assert found[cell.name] == expected, cell.name
    lm.merge(None)
    assert len({json.dumps(sorted((str(k), v) for k, v in a.items())) for a in found.values()}) > 1


def test_a_cell_is_a_stock_results_folder_with_our_provenance(finished):
    found = read_findings(finished)
    for name, run in found.runs.items():
        assert set(run.tasks) == set(TASKS.split(",")) and len(run.samples) == 18
        spec = run.block["provenance"]["spec"]
        record = read_cell(finished, name)
        assert (spec or None) == (record["spec"] or None)
        assert run.results["config"]["limit"] == 6 and set(record["seconds"]) == {"merge", "evaluate"}
        assert not list((finished / "cells" / name).rglob("*.safetensors"))
    merged = found.runs["layers-6-8_qkvo_0.3+1.2"]
    assert merged.results["config"]["model_args"] == (
        f"{ARGUMENTS},base={PAIR}/base,layers=6:8,modules=qkvo,model_weight=0.3,base_weight=1.2,rule=weighted_sum"
    )
    groups = merged.samples.groupby("task")["group"].agg(lambda rows: ", ".join({row.split()[0] for row in rows}))
    assert groups.to_dict() == {"mme": "image", "mmstar": "document", "pope": "image"}
    assert found.warnings == () and list(found.cells["status"].unique()) == ["finished"]


def test_a_finished_sweep_runs_nothing_and_grows(lm, finished, in_suite, tmp_path):
    folder = tmp_path / "sweep"
    shutil.copytree(finished, folder)
    assert runner.run(job(folder), lm) == {}
    more = job(folder, layers="6:8", weights="0.3+1.2,0.7+0.3", controls="none")
    assert len(more.grid.cells) == CELLS + 1  # what was tried before still counts
    assert list(runner.run(more, lm)) == ["layers-6-8_qkvo_0.7+0.3"]
    assert len(read_findings(folder).runs) == CELLS + 1


def halfway(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    return w_mllm.add_(w_base).mul_(0.5)


@pytest.mark.usefixtures("own_rules")
def test_a_registered_rule_is_swept_and_reported_like_any_other(lm, in_suite, tmp_path, monkeypatch):
    register_rule("half-way", halfway, elementwise=True, meaning="the middle of both")
    given = {"model_args": f"{SPEC},rule=half-way", "tasks": "pope", "limit": 4, "controls": "self_scale"}
    swept = job(tmp_path, layers="6:8,all", weights="0.9+0.3", **given)
    merges = [f"layers-{layers}_qkvo_0.9+0.3_half-way" for layers in ("6-8", "0-8")]
    assert [cell.name for cell in swept.grid.cells if cell.kind == "merged"] == merges
    with pytest.raises(SweepError, match="--ray: the workers do not know half-way, registered in this process alone"):
        ray_workers.run(swept)
    assert {record["status"] for record in runner.run(swept, lm).values()} == {"finished"}
    lm.merge(None)

    found = read_findings(tmp_path)
    rows = found.cells.set_index("cell")
    assert list(rows.loc[merges, "rule"]) == ["half-way"] * 2 and rows.loc[merges, "difference"].notna().all()
    assert [(row.merged, row.rule) for row in found.controls.itertuples()] == [(name, "self_scale") for name in merges]
    figures: list[Any] = []
    draw = plots.controls

    def kept(*args: Any, **given: Any) -> Any:
        figures.append(draw(*args, **given))
        return figures[-1]

    monkeypatch.setattr(plots, "controls", kept)
    _, table = beside_controls(found, {row["cell"]: row for row in records_of(found.cells)})
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert sorted(legend) == ["half-way", "self_scale"] and len(table.rows) == 2


def test_a_failing_cell_is_recorded_and_the_others_go_on(lm, in_suite, tmp_path, monkeypatch):
    bring = lm.bring_weights_to

    def failing(spec: Any, base: Any) -> Any:
        if spec is not None and spec.rule == "self_scale":
            raise MergeError("no disk left")
        return bring(spec, base)

    with monkeypatch.context() as patch:
        patch.setattr(lm, "bring_weights_to", failing)
        done = runner.run(job(tmp_path, layers="6:8"), lm)
    assert [record["status"] for record in done.values()] == ["finished", "finished", "failed", "finished"]
    name = "layers-6-8_qkvo_0.3+1.2_self_scale"
    error = read_cell(tmp_path, name)["error"]
    assert error.startswith("MergeError: ") and error.endswith("no disk left")
    assert "Traceback" in (tmp_path / "cells" / name / "log.txt").read_text()
    found = read_findings(tmp_path)
    assert found.cells.set_index("cell").loc[name, "status"] == "failed" and len(found.controls) == 1
    # The cells around it are what they would have been.
    assert found.runs["layers-6-8_qkvo_0.3+1.2_noise0"].block["provenance"]["spec"]["rule"] == "noise"
    assert list(runner.run(job(tmp_path, layers="6:8"), lm)) == [name]
    assert "self_scale" in set(read_findings(tmp_path).controls["rule"])


def test_settings_are_not_mixed(finished, in_suite, tmp_path):
    for given, says in (
        ({"limit": 4}, r"limit \(was 6, is 4\)"),
        ({"tasks": "pope"}, "tasks"),
        ({"gen_kwargs": "max_new_tokens=2"}, "gen_kwargs"),
        ({"model_args": SPEC.replace("float32", "bfloat16")}, "model_args"),
    ):
        with pytest.raises(SweepError, match=says):
            job(finished, **given)
    base = tmp_path / "base"
    shutil.copytree(PAIR / "base", base)
    with pytest.raises(SweepError, match="bases"):
        job(finished, model_args=SPEC.replace(f"{PAIR}/base", str(base)))


def test_a_folder_is_worked_on_by_one_process(finished, lm, in_suite):
    with lock_sweep(finished), pytest.raises(SweepError, match="another process"):
        runner.run(job(finished), lm)


def test_what_cannot_be_merged_is_said_before_anything_is_loaded(in_suite, tmp_path):
    with pytest.raises(SweepError, match=r"'6:9'.*within 0:8"):
        job(tmp_path / "one", layers="6:9")
    with pytest.raises(MergeError, match="no such folder"):
        job(tmp_path / "two", model_args=f"{ARGUMENTS},plateau=demo,base=/nowhere/base")
    with pytest.raises(SweepError, match="pretrained="):
        job(tmp_path / "three", model_args="device=cpu", base_model=str(PAIR / "base"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "sweeps").iterdir()), ids=str)
def test_the_examples_are_sweeps(file):
    config = SweepConfig.load(file, base_model="base")
    assert len(grid.make_grid(config, 36).cells) > 10


# ---- the commands ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long  # tests/faults kills sweeps in processes that are warm
def test_killed_at_any_moment_it_goes_on(finished, suite, tmp_path, monkeypatch):
    command = [sys.executable, "-m", "plam_eval.cli", *words(tmp_path)]
    process = subprocess.Popen(command, cwd=suite, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cells = tmp_path / "cells"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:  # until it is in the middle of the third cell
        if len(list(cells.glob("[!.]*/cell.json"))) == 2 and list(cells.glob(".*.partial/log.txt")):
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {file: file.stat().st_mtime_ns for file in cells.glob("[!.]*/cell.json")}
    assert 2 <= len(before) < CELLS
    monkeypatch.chdir(suite)
    output = plam(*words(tmp_path, "--select", "2"))
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert not list(cells.glob(".*.partial"))
    assert answers(tmp_path) == answers(finished)
    assert "chosen on other documents" in output.replace("\n", " ") and "minus self_scale" in output
    table = (tmp_path / "cells.csv").read_text().splitlines()
    assert len(table) == 1 + CELLS and (tmp_path / "controls.parquet").is_file()


@pytest.mark.slow
def test_two_processes_sweep_together_like_one_cell_by_cell(pico: Callable[[str], Any], suite, tmp_path, monkeypatch):
    pair = pico("llava")
    given = ["sweep", "--model", "plam_llava", "--model_args", arguments(pair, base=pair.base, layers="2:4")]
    given += ["--tasks", "pope,mmstar", "--limit", "5", "--gen_kwargs", "max_new_tokens=4"]
    given += ["--controls", "self_scale,from_ancestor", "--ancestor", str(pair.mllm)]
    monkeypatch.chdir(suite)
    plam(*given, "--output", str(tmp_path / "one"))
    status, said = forked.run(
        "plam_eval.cli", [*given, "--output", str(tmp_path / "two"), "--together", "4"], processes=2
    )
    assert status == 0, said
    assert answers(tmp_path / "one") == answers(tmp_path / "two")
    assert read_plan(tmp_path / "two")["command"][:2] == ["plam", "sweep"]
    counts = {"documents": 10, "apart": 0, "rechecked": 8, "differ": 0, "reasons": []}  # two of each task and process
    for name in answers(tmp_path / "two"):
        together = read_cell(tmp_path / "two", name)["together"]
        assert {key: together[key] for key in counts} == counts


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", pytest.param("raises", marks=pytest.mark.long)])
def test_a_process_that_fails_ends_the_others_and_costs_no_finished_cell(
    pico: Callable[[str], Any], suite, tmp_path, monkeypatch, how
):
    """Without a launcher that would stop the one that is left."""
    pair = pico("llava")
    given = ["sweep", "--model", "plam_llava", "--model_args", arguments(pair, base=pair.base, layers="2:4")]
    given += ["--tasks", "pope", "--limit", "4", "--gen_kwargs", "max_new_tokens=4", "--controls", "none", "--output"]
    monkeypatch.chdir(suite)
    status, said = forked.run("tests.helpers.failing", [how, "2", *given, str(tmp_path / "two")], processes=2)
    assert status == 1, said  # that of the one that was left; 124 if it had waited without end
    told = " ".join(said.split())
    assert "error (rank 0 of 2): another process of this evaluation has ended" in told
    if how == "raises":
        assert "plam-eval did not expect this error (rank 1 of 2)" in told and "the device is lost" in told
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "two" / "cells").glob("[!.]*/cell.json")}
    assert [file.parent.name for file in kept] == ["plain"]

    for folder in ("two", "one"):
        plam(*given, str(tmp_path / folder))
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert answers(tmp_path / "two") == answers(tmp_path / "one")


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/venv/bin/plam", "sweep"], ["plam", "sweep"]),
        (["/venv/lib/python3.12/site-packages/plam_eval/cli/__main__.py", "sweep"], ["plam", "sweep"]),
        (["/home/me/other/cli/__main__.py", "sweep"], ["/home/me/other/cli/__main__.py", "sweep"]),
        (["mine.py", "a"], ["mine.py", "a"]),
        (["-c"], []),
    ],
)
def test_the_command_that_is_stored_is_what_a_user_would_type(argv, command, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    job(tmp_path).write()
    assert read_plan(tmp_path)["command"] == command


def test_dry_run_says_and_does_nothing_else(in_suite, finished, tmp_path):
    output = plam(*words(tmp_path / "sweep", "--dry-run=0"))
    assert f"{CELLS} cells to run, 18 documents each, {CELLS * 18} generations" in output and "1.0 MB" in output
    assert not (tmp_path / "sweep").exists()
    os.chdir(tmp_path)  # where no dataset is; the fixture goes back
    elsewhere = plam(*words(tmp_path / "sweep", "--dry-run=0"))
    assert "documents not counted: a task or its dataset could not be loaded" in elsewhere
    assert "number of documents is not known" in elsewhere
    os.chdir(in_suite)
    assert "0 cells to run" in plam(*words(finished, "--dry-run=0")) and "finished" in output


def test_results_as_json(in_suite, finished, monkeypatch):
    monkeypatch.setattr(runner, "load_model", lambda config: pytest.fail("a model was loaded"))
    planned = json.loads(CliRunner().invoke(cli.app, words(finished, "--dry-run=0", "--json")).stdout)
    assert len(planned["cells"]) == CELLS and all(cell["finished"] for cell in planned["cells"])
    assert planned["documents"] == dict.fromkeys(TASKS.split(","), 6)
    found = json.loads(CliRunner().invoke(cli.app, words(finished, "--json")).stdout)
    assert len(found["cells"]) == CELLS and found["failures"] == [] and found["verdict"].startswith("Best of 2 merges")
    assert found["cells"][0]["difference"] is None and found["selection"]["tried"] == 2


def test_a_sweep_with_a_failed_cell_ends_with_status_1(lm, in_suite, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "load_model", lambda config: lm)
    merge = type(lm).merge

    def failing(self: Any, plateau: Any, **overrides: Any) -> Any:
        if getattr(plateau, "rule", None) == "noise":
            raise RuntimeError("out of memory")
        return merge(self, plateau, **overrides)

    monkeypatch.setattr(type(lm), "merge", failing)
    output = plam(*words(tmp_path, "--layers", "6:8"), exit_code=1)
    assert "RuntimeError: out of memory" in output and "tries them again" in output and "self_scale" in output


def test_compare_writes_two_stock_folders_and_one_table(lm, in_suite, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "load_model", lambda config: lm)
    given = ["compare", "--model", "plam_llava", "--model_args", SPEC, "--tasks", TASKS, "--limit", "6", "--no-stock"]
    output = plam(*given, "--output", str(tmp_path))
    for word in ("plain", "merged", "difference", "95 %", "gained", "parsable", "mean over tasks", *TASKS.split(",")):
        assert word in output
    plain, merged = (records.read_run(tmp_path / "cells" / name) for name in ("plain", "merged"))
    assert plain.block["plain"] and merged.block["provenance"]["spec"]["layer_range"] == [4, 8]
    # Two folders that are there already give the same table.
    again = plam("compare", str(tmp_path / "cells" / "plain"), str(tmp_path / "cells" / "merged"), "--no-stock")
    figures = [line.split("│")[4:8] for line in output.splitlines() if "│" in line]
    assert figures == [line.split("│")[4:8] for line in again.splitlines() if "│" in line] and len(figures) == 4

    refused = CliRunner().invoke(cli.app, [*given[:4], ARGUMENTS, *given[5:], "--output", str(tmp_path / "none")])
    assert "expected plateau=SPEC" in str(refused.exception)
    other = [*given[:4], f"{SPEC},layers=2:4", *given[5:], "--output", str(tmp_path)]
    assert "merged: finished before with another merge" in str(CliRunner().invoke(cli.app, other).exception)
