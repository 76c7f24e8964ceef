"""`plam compare --noise` on the embedded pair and on a pico model that answers in batches, through lmms-eval."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import plam_eval
from plam_eval.errors import InputError
from plam_eval.evaluation.noise import run as noise_run
from plam_eval.evaluation.noise.run import NoisePlan
from plam_eval.evaluation.sweep.config import SweepError
from plam_eval.report import report
from tests.helpers.paths import PAIR
from tests.helpers.sweeps import SPEC, plam

GIVEN: dict[str, Any] = {"model": "plam_llava", "model_args": SPEC, "tasks": "pope,mme", "limit": 12}


def logged_documents(folder: Path) -> dict[str, list[int]]:
    """By task, the documents of a run below a folder."""
    found = {}
    for log in sorted(folder.rglob("*_samples_*.jsonl")):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        found[log.stem.partition("_samples_")[2]] = sorted(line["doc_id"] for line in lines)
    return found


@pytest.mark.slow
def test_a_comparison_is_answered_again_in_another_way(
    in_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "compare"
    words = [word for key, value in GIVEN.items() for word in (f"--{key}", str(value))]
    said = plam("compare", *words, "--output", str(folder), "--noise", "dtype=bfloat16", "--noise_documents", "10")
    assert "flip rate" in said and "dtype=bfloat16" in said and "few documents of" in said
    again = folder / "noise" / "dtype=bfloat16"
    for cell in ("plain", "merged"):
        asked, whole = logged_documents(again / "cells" / cell), logged_documents(folder / "cells" / cell)
        assert set(asked) == {"pope", "mme"} and all(set(asked[task]) <= set(whole[task]) for task in asked)
        assert 9 <= len(asked["pope"]) <= 11 and len(asked["mme"]) == 10
        assert {number // 2 for number in asked["mme"]} == {number // 2 for number in asked["mme"] if number % 2}
    assert asked == logged_documents(again / "cells" / "plain")

    monkeypatch.setattr(noise_run.runner, "load_model", lambda config: pytest.fail("a model was loaded"))
    found = plam_eval.compare(**GIVEN, output=folder)  # --noise is not needed to find it again
    assert found is not None and found.noise is not None
    floor = found.noise.table
    assert {*floor["variant"]} == {"dtype=bfloat16"} and {*floor["cell"]} == {"plain", "merged"}
    assert list(floor.loc[floor["cell"] == "plain", "task"]) == ["mme", "pope", "overall"]
    assert found.to_dict()["noise"]["standings"].keys() == {"pope", "mme", "overall"}
    page = report([folder], tmp_path / "page").read_text(encoding="utf-8")
    assert "Is it noise?" in page and "flip rate" in page and page.count("<h2") > 3
    with pytest.raises(SweepError, match=r"noise_documents \(was 10, is 12\)"):
        plam_eval.compare(**GIVEN, output=folder, noise="dtype=bfloat16", noise_documents=12)
    with pytest.raises(InputError, match="runs in float32 itself"):
        plam_eval.compare(**GIVEN, output=folder, noise="dtype=float32")


@pytest.mark.slow
def test_another_batch_size_is_answered_by_the_model_that_is_loaded(
    pico: Any, in_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pico("qwen2_5_vl")
    arguments = f"pretrained={pair.mllm},device=cpu,dtype=float32,base={pair.base},layers=1:3"
    given: dict[str, Any] = {"model": "plam_qwen2_5_vl", "model_args": arguments, "tasks": "pope", "limit": 12}
    given["gen_kwargs"] = "max_new_tokens=2"
    sizes, loaded = [], []
    stock_run, stock_load = noise_run.runner.run, noise_run.runner.load_model

    def run(job: Any, model: Any, **more: Any) -> Any:
        sizes.append(model.batch_size_per_gpu)
        return stock_run(job, model, **more)

    def load(config: Any) -> Any:
        loaded.append(config.batch_size)
        return stock_load(config)

    monkeypatch.setattr(noise_run.runner, "run", run)
    monkeypatch.setattr(noise_run.runner, "load_model", load)
    found = plam_eval.compare(**given, output=tmp_path / "compare", noise=True, noise_documents=10)
    assert sizes == [1, 4] and loaded == [1]
    assert found is not None and found.noise is not None and not found.noise.failures
    assert {*found.noise.table["variant"]} == {"batch_size=4"} and len(found.noise.flips) == 4


def test_what_cannot_start_costs_nothing(in_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems of the noise are told before the comparison itself begins."""
    monkeypatch.setattr("plam_eval.evaluation.sweep.runner.load_model", lambda config: pytest.fail("loaded"))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"noise": True}, "plam_llava answers one document at a time"),
        ({"noise": "dtype=bfloat16", "noise_documents": 4}, "noise_documents is 4.*expected at least 10"),
        ({"noise_documents": 40}, "noise_documents is 40 without noise"),
        ({"noise": "dtype=half"}, "known: float32"),
        ({"noise": ""}, "found nothing, expected such as batch_size=4"),
        ({"noise": []}, "found nothing, expected such as batch_size=4"),
        ({"runs": ["../x=1"], "noise": True}, "found 1 as run folders .'../x=1'. and --model.*--noise is written"),
    ]
    for given, said in refused:
        with pytest.raises(InputError, match=said):
            plam_eval.compare(**GIVEN, output=tmp_path / "compare", **given)
    with pytest.raises(InputError, match=r"--noise.*with two run folders"):
        plam_eval.compare([tmp_path, PAIR], noise=True)
    assert not (tmp_path / "compare").exists()


def test_what_a_finished_comparison_runs_with_is_no_other_way(
    in_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plam_eval.evaluation.sweep.runner.load_model", lambda config: pytest.fail("loaded"))
    plain = SimpleNamespace(block={"dtype": "float32", "attention": "sdpa"})
    monkeypatch.setattr(noise_run, "read_state", lambda folder, cell, settings: ({"status": "finished"}, plain))
    given = {**GIVEN, "model_args": SPEC.replace(",dtype=float32", ""), "output": tmp_path / "compare"}
    with pytest.raises(InputError) as told:
        plam_eval.compare(**given, noise="dtype=float32,attn_implementation=sdpa,attn_implementation=eager")
    assert told.value.problems == [
        "dtype=float32: the model runs in float32 by itself; expected another dtype",
        "attn_implementation=sdpa: the model runs with sdpa by itself; expected another one",
    ]


def test_what_the_loaded_model_runs_with_is_no_other_way(in_suite: Path, tmp_path: Path) -> None:
    job = plam_eval.plan_compare(**GIVEN, output=tmp_path / "compare").job
    plan = NoisePlan.plan(job, "attn_implementation=sdpa", None)
    running: Any = SimpleNamespace(running_dtype="float32", running_attention="eager")
    plan.check_resident(running)
    running.running_attention = "sdpa"
    with pytest.raises(InputError, match="runs with sdpa by itself"):
        plan.check_resident(running)


def test_tasks_without_scores_are_not_answered_again(
    in_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = plam_eval.plan_compare(**GIVEN, output=tmp_path / "compare").job
    plan = NoisePlan.plan(job, "attn_implementation=eager", 10)
    checked = SimpleNamespace(
        drawn={"pope": ((0,), (1,)), "mme": ((0, 1),)}, unscored={"mme": "a judge"}, scored=("pope",)
    )
    monkeypatch.setattr(noise_run.runner, "check_tasks", lambda config: checked)
    monkeypatch.setattr(NoisePlan, "_plain", lambda self: SimpleNamespace(block={}))
    asked: list[Any] = []
    monkeypatch.setattr(noise_run.runner, "run", lambda job, model, **more: asked.append((job, more["documents"])))
    (part,) = plan.parts.values()
    plan._run(part, lambda: None)
    ((ran, documents),) = asked
    assert ran.config.tasks == ("pope",) and documents == {"pope": [0, 1]}
    assert ran.settings == part.settings, "by which a stopped one goes on"


@pytest.mark.parametrize("processes", [1, 2])
def test_what_one_of_several_processes_raises_waits_for_nobody(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", str(processes))

    def all_ranks(value: Any) -> list[Any]:
        asked.append(value)
        return [value]

    monkeypatch.setattr(noise_run.processes, "all_ranks", all_ranks)
    monkeypatch.setattr(NoisePlan, "_documents", lambda self: {"pope": [0]})
    monkeypatch.setattr(NoisePlan, "_of_scored", lambda self, part: part)
    part: Any = SimpleNamespace(folder=tmp_path, write=lambda: None, left=lambda: [])
    plan = NoisePlan(part, {}, 10)

    def start() -> Any:
        raise OSError("no such engine")

    if processes > 1:
        with pytest.raises(OSError, match="no such engine"):
            plan._run(part, start)
    else:
        plan._run(part, start)
    assert len(asked) == 1, "which documents; nobody is asked after it was raised"
