"""Sweeps by rules that take an ancestor: each cell is the merge that it names, and the third checkpoint is watched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plam_eval.errors import MergeError
from plam_eval.evaluation import records
from plam_eval.evaluation.sweep import folder as sweep_folder
from plam_eval.evaluation.sweep import runner
from plam_eval.evaluation.sweep.config import SweepConfig, SweepError
from plam_eval.evaluation.sweep.folder import read_cell
from plam_eval.evaluation.sweep.job import Job
from plam_eval.harness.evaluate import evaluate
from plam_eval.merging.checkpoint import Checkpoint
from tests.helpers.ancestors import write_ancestor
from tests.helpers.paths import PAIR
from tests.helpers.sweeps import ARGUMENTS, plam

NAMES = ["plain", "weighted_sum", "task_arithmetic", "self_scale", "ties"]
RULES = "weighted_sum,ties:density:0.6,task_arithmetic"


@pytest.fixture(scope="module")
def lm() -> Any:
    from plam_eval.model_wrappers.llava import PlamLlavaChat

    return PlamLlavaChat(pretrained=str(PAIR / "mllm"), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def ancestor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In another dtype than the pair. Do not modify."""
    return write_ancestor(tmp_path_factory.mktemp("ancestor") / "old", torch.bfloat16)


def job(folder: Path, ancestor: Path, together: int = 1, **given: Any) -> Job:
    settings: dict[str, Any] = {
        "model": "plam_llava",
        "model_args": ARGUMENTS,
        "base_model": str(PAIR / "base"),
        "ancestor": str(ancestor),
        "layers": "all",
        "weights": "0.2+1.6",
        "modules": "all",
        "rules": RULES,
        "controls": "self_scale,from_ancestor",
        "tasks": "pope,mmstar",
        "limit": 5,
        "together": together,
    }
    return Job.plan(SweepConfig.load(**(settings | given)), folder)


def answers(folder: Path) -> dict[str, dict[tuple[str, int], str]]:
    """By cell and document."""
    found: dict[str, dict[Any, Any]] = {}
    for cell in sorted((folder / sweep_folder.CELLS).iterdir()):
        record = read_cell(folder, cell.name)
        assert record is not None and record["status"] == "finished", record
        run = records.read_run(cell / record["results"])
        found[cell.name] = {(row.task, row.doc_id): row.answer for row in run.samples.itertuples()}
    return found


@pytest.fixture(scope="module")
def finished(lm: Any, suite: Path, ancestor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells that were answered one by one. Do not modify."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(suite)
        runner.run(job(folder, ancestor), lm)
    return folder


def test_every_cell_is_an_evaluation_of_its_merge(lm, finished, ancestor, in_suite):
    found, cells = answers(finished), job(finished, ancestor).grid.cells
    rules = [cell.spec.rule if cell.spec else "plain" for cell in cells]
    assert sorted(rules) == sorted(NAMES), "from_ancestor is task_arithmetic: one cell"
    for cell in cells:
        lm.merge(cell.spec)
        run = evaluate(lm, "pope,mmstar", limit=5)
        expected = {
            (task, row["doc_id"]): row["filtered_resps"][0] for task, rows in run.samples.items() for row in rows
        }
        assert found[cell.name] == expected, cell.name
    lm.merge(None)
    assert len({json.dumps(sorted((str(k), v) for k, v in a.items())) for a in found.values()}) > 2
    third = [cell.name for cell in cells if cell.spec and cell.spec.needs_ancestor]
    for name in found:
        record = read_cell(finished, name)
        block = records.read_run(finished / "cells" / name / record["results"]).block["provenance"]
        assert ("ancestor" in block) == (name in third)
        if name in third:
            assert block["ancestor"]["name"] == str(ancestor)
            assert block["ancestor"]["sha256"] == Checkpoint.open(ancestor).content()["sha256"]


@pytest.mark.parametrize("together", [len(NAMES), 2])
def test_answers_of_many_merges_are_those_of_each_alone(together, lm, finished, ancestor, in_suite, tmp_path):
    done = runner.run(job(tmp_path, ancestor, together), lm)
    assert answers(tmp_path) == answers(finished)
    parts = [record["together"] for record in done.values() if "together" in record]
    assert len(parts) == len(NAMES) // together * together
    assert all(part["apart"] == part["differ"] == 0 and part["documents"] == 10 for part in parts)


@pytest.mark.parametrize("together", [len(NAMES), 1])
def test_a_killed_sweep_goes_on_where_it_was(together, lm, finished, ancestor, in_suite, tmp_path, monkeypatch):
    real = runner.run_cell

    def killed(lm: Any, cell: Any, *args: Any, **kwargs: Any) -> Any:
        if cell.spec is not None and cell.spec.rule == "ties":
            raise KeyboardInterrupt
        return real(lm, cell, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_cell", killed)
        with pytest.raises(KeyboardInterrupt):
            runner.run(job(tmp_path, ancestor, together), lm)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cells").glob("[!.]*/cell.json")}
    assert 0 < len(before) < len(NAMES)
    runner.run(job(tmp_path, ancestor, together), lm)
    assert answers(tmp_path) == answers(finished) and {f: f.stat().st_mtime_ns for f in before} == before


def test_another_ancestor_under_the_name_is_refused(lm, finished, ancestor, in_suite, tmp_path):
    """Between two runs, while one goes on, and in a cell that was put there."""
    old = shutil.copytree(ancestor, tmp_path / "old")
    folder = tmp_path / "sweep"
    first = job(folder, old, rules="ties", controls="none")
    first.write()
    stamp = old / "model.safetensors"
    os.utime(stamp, ns=(1, 1))
    with pytest.raises(SweepError, match="ancestor: the checkpoint was changed since this sweep began"):
        runner.run(first, lm)
    assert read_cell(folder, "plain")["status"] == "finished", "which reads none"
    with pytest.raises(SweepError, match=f"holds a sweep of other settings: .*{old}"):
        job(folder, old, rules="ties", controls="none")
    mixed = shutil.copytree(finished, tmp_path / "mixed")
    plan = json.loads((mixed / "sweep.json").read_text())
    plan["settings"]["bases"][str(ancestor)]["fingerprint"] = "0" * 64
    (mixed / "sweep.json").write_text(json.dumps(plan))
    with pytest.raises(SweepError, match="holds a sweep of other settings"):
        job(mixed, ancestor)


def test_a_rule_that_takes_an_ancestor_is_added_to_a_sweep_without_one(tmp_path: Path, ancestor: Path) -> None:
    job(tmp_path, ancestor, rules="weighted_sum", controls="self_scale").write()
    added = job(tmp_path, ancestor, rules="ties", controls="self_scale")
    assert {cell.spec.rule for cell in added.grid.cells if cell.spec} == {"weighted_sum", "self_scale", "ties"}
    assert set(added.settings["bases"]) == {str(PAIR / "base"), str(ancestor)}


def faulty(kind: str, old: Path, folder: Path) -> tuple[Path, str]:
    """A folder and what is said of it."""
    if kind == "nowhere":
        return folder / "none", "ancestor=.*none: no such folder"
    bad = shutil.copytree(old, folder / "bad")
    tensors = load_file(bad / "model.safetensors")
    name = "model.layers.5.self_attn.v_proj.weight"
    if kind == "missing":
        del tensors[name]
    elif kind == "shape":
        tensors[name] = tensors[name][:5].contiguous()
    elif kind == "integers":
        tensors[name] = tensors[name].to(torch.int8)
    elif kind == "absent module":
        tensors = {n: tensor for n, tensor in tensors.items() if ".v_proj." not in n}
    elif kind == "fewer layers":
        tensors = {n: tensor for n, tensor in tensors.items() if ".layers.7." not in n}
        config = json.loads((bad / "config.json").read_text()) | {"num_hidden_layers": 7}
        (bad / "config.json").write_text(json.dumps(config))
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    said = {
        "missing": r"bad: layer 5, self_attn.v_proj.weight: missing",
        "shape": r"\[5, 128\] in .*bad",
        "integers": r"torch.int8; expected float32",
        "absent module": r"layer 0, self_attn.v_proj.weight: missing(?s:.*)layer 7, self_attn.v_proj.weight: missing",
        "fewer layers": r"8 decoder layers, .*bad has 7",
    }
    return bad, said[kind]


@pytest.mark.parametrize("kind", ["nowhere", "missing", "shape", "integers", "absent module", "fewer layers"])
def test_an_ancestor_that_does_not_fit_is_refused_before_anything_is_loaded(kind, ancestor, in_suite, tmp_path):
    bad, said = faulty(kind, ancestor, tmp_path)
    with pytest.raises((MergeError, ValueError), match=said):
        job(tmp_path / "sweep", bad)
    assert not (tmp_path / "sweep").exists()
    job(tmp_path / "sweep", bad, rules="weighted_sum", controls="none")  # which reads none


@pytest.mark.parametrize("form", ["bin", "base", "mllm"])
def test_other_checkpoints_that_may_be_an_ancestor(form, lm, ancestor, in_suite, tmp_path):
    """Weights of the other format; and MLLM or base themselves, of which a sum is left."""
    old = PAIR / form
    if form == "bin":
        old = shutil.copytree(ancestor, tmp_path / "old")
        torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
        (old / "model.safetensors").unlink()
    done = job(tmp_path / "sweep", old, rules="task_arithmetic", controls="none", limit=2)
    runner.run(done, lm)
    (cell,) = [cell for cell in done.grid.cells if cell.spec]
    record = read_cell(tmp_path / "sweep", cell.name)
    assert record["status"] == "finished", record["error"]
    expected = cell.spec.model_copy(update={"ancestor": str(ancestor)})
    if form != "bin":
        share = 0.2 if form == "base" else -0.6
        content = {**cell.spec.to_dict(), "rule": "weighted_sum"}
        weights = {"model": share, "base_model": 1 - share}
        expected = type(cell.spec).model_validate({**content, "weights": weights})
    change = lm.merge(cell.spec).relative_change
    assert change == pytest.approx(lm.merge(expected).relative_change, rel=1e-3)
    lm.merge(None)


def test_from_the_command_line(ancestor, in_suite, tmp_path):
    words = ["--model", "plam_llava", "--tasks", "pope", "--limit", "2", "--layers", "4:8", "--dry-run=0"]
    given = ["--base", str(PAIR / "base"), "--ancestor", str(ancestor), "--output", str(tmp_path / "sweep")]
    planned = plam("sweep", "--model_args", ARGUMENTS, *words, *given, "--rules", "ties:density:0.6")
    assert "from_ancestor" in planned, "a control where one is given"
    merges = f"{ARGUMENTS},base={PAIR}/base,layers=4:8,rule=ties,ancestor={ancestor}"
    assert "from_ancestor" in plam("sweep", "--model_args", merges, *words, "--output", str(tmp_path / "other"))


@pytest.mark.slow
@pytest.mark.needs("ray")
@pytest.mark.long
def test_ray_gives_the_same_answers(finished, ancestor, in_suite, tmp_path):
    from plam_eval.evaluation.sweep import ray

    done = ray.run(job(tmp_path, ancestor, rules="ties:density:0.6", controls="from_ancestor"), workers=1)
    assert {record["status"] for record in done.values()} == {"finished"}
    expected = answers(finished)
    assert answers(tmp_path) == {name: expected[name] for name in answers(tmp_path)}
