"""lmms-eval's own command line on our wrappers: one process, and two CPU processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from plam_eval.evaluation.harness import evaluate
from tests.helpers.wrappers import NINE, answers, arguments

pytestmark = pytest.mark.slow

COMMON: dict[str, Any] = {"gen_kwargs": "max_new_tokens=6", "batch_size": 1, "log_samples": True, "force_simple": False}


def lmms_eval(
    runs: list[dict[str, Any]], folder: Path, suite: Path, *launcher: str
) -> subprocess.CompletedProcess[str]:
    """Several runs in one call of the command line, since each call spends its first quarter of a minute importing."""
    config = folder / "runs.yaml"
    config.write_text(yaml.safe_dump([COMMON | run for run in runs]))
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "-m", "lmms_eval", "--config", str(config)]
    done = subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def results(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*__plam-*/*_results.json")  # MMBench writes a *_results.json of its own
    return json.loads(file.read_text())


def logged(folder: Path) -> dict[tuple[str, int], str]:
    rows: dict[tuple[str, int], str] = {}
    for file in folder.rglob("*_samples_*.jsonl"):
        task = file.stem.partition("_samples_")[2]
        for line in file.open():  # not splitlines(): an answer may hold other line ends
            row = json.loads(line)
            assert (task, row["doc_id"]) not in rows, f"document {row['doc_id']} of {task} was evaluated twice"
            rows[task, row["doc_id"]] = row["filtered_resps"]
    return rows


def test_nine_tasks_and_a_clear_last_word(pico, suite, tmp_path):
    pair = pico("llava")
    good = arguments(pair, base=pair.base, layers="2:4", device=None, device_map="cpu")
    runs: list[dict[str, Any]] = [
        {
            "model": "plam_llava",
            "model_args": good,
            "tasks": "plam9",
            "limit": 2,
            "output_path": str(tmp_path / "good"),
        },
        {
            "model": "plam_llava",
            "model_args": arguments(pair, base=pair.base, layers="2:7"),
            "tasks": "mmstar",
            "output_path": str(tmp_path / "bad"),
        },
    ]
    done = lmms_eval(runs, tmp_path, suite)
    found = results(tmp_path / "good")
    assert set(found["configs"]) == set(NINE) and len(logged(tmp_path / "good")) == 2 * len(NINE)
    block = found["plam_eval"]
    assert block["provenance"]["spec"]["layer_range"] == [2, 4] and not block["plain"]
    assert block["provenance"]["merge"]["tensors"] == 8 and block["generation"]["calls"] == 2 * len(NINE)

    assert not (tmp_path / "bad").exists()
    _, _, last = done.stdout.rpartition("Error during evaluation:")
    assert "[2, 7) does not fit" in last and "4 decoder layers" in last


def test_two_cpu_processes_answer_like_one(pico, suite, tmp_path, monkeypatch):
    tasks, limit = "mmstar,pope", 5  # an odd number: one process has a document less and is padded
    runs: list[dict[str, Any]] = []
    expected = {}
    for family, model_id in (("llava", "plam_llava"), ("qwen2_5_vl", "plam_qwen2_5_vl")):
        pair = pico(family)
        model_args = arguments(pair, base=pair.base, layers="2:4")
        output = tmp_path / family
        runs.append(
            {"model": model_id, "model_args": model_args, "tasks": tasks, "limit": limit, "output_path": str(output)}
        )
        with monkeypatch.context() as patch:
            patch.chdir(suite)
            expected[output] = answers(
                evaluate(model_id, tasks, model_args=model_args, limit=limit, gen_kwargs=COMMON["gen_kwargs"])
            )
    lmms_eval(runs, tmp_path, suite, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    for output, one in expected.items():
        assert len(one) == 2 * limit
        assert logged(output) == one
        assert results(output)["plam_eval"]["processes"] == 2
