"""Run folders as lmms-eval's own logs of two tasks would be, written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plam_eval.evaluation.records import Run, read_run

# The metric that a task of no row in the table declares
MEAN = {"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}


def write_logs(
    folder: Path, tasks: dict[str, list[dict[str, Any]]], date: str = "20260101_000000", **results: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in tasks.items():
        (folder / f"{date}_samples_{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / f"{date}_results.json"
    file.write_text(json.dumps({"configs": dict.fromkeys(tasks, MEAN), "results": {}, **results}))
    return file


def graded_rows(scores: list[float], **more: Any) -> list[dict[str, Any]]:
    words = {"target": "yes", "filtered_resps": ["yes"], "input": "?"}
    return [{"doc_id": n, **words, "exact_match": score, **more} for n, score in enumerate(scores)]


def logged_run(
    folder: Path, change: Callable[[dict[str, Any], dict[str, list[dict[str, Any]]]], None] | None = None
) -> Run:
    """A run of ours over two tasks; `change` edits its results and its logs before they are written."""
    logs = {"pope": graded_rows([1, 1, 0, 1]), "gqa": graded_rows([0.5, 1, 0])}
    for sample in logs["pope"]:
        sample["pope_accuracy"] = {"question_id": "0", "score": sample.pop("exact_match")}
    logs["pope"][3] |= {"filtered_resps": ["maybe"]}
    for sample in logs["gqa"]:
        sample |= {"target": "red", "group": "i"}
    setting = {"max_new_tokens": 16, "do_sample": False, "calls": 7}
    spec = {"base_model": "org/base", "layer_range": [2, 5], "modules": ["q_proj", "v_proj"], "rule": "noise"}
    results: dict[str, Any] = {
        "configs": {
            task: {"generation_kwargs": {"max_new_tokens": 16}, "repeats": 1, "num_fewshot": 0} for task in logs
        },
        "results": {
            "group": {" ": " ", "alias": "group"},
            "pope": {"alias": "pope", "accuracy,none": 75.0, "accuracy_stderr,none": "N/A", "submission,none": None},
            "gqa": {"exact_match,none": 0.5, "exact_match_stderr,none": 0.1},
        },
        "versions": {"pope": 1.0, "gqa": "Yaml"},
        "config": {"model": "plam_llava", "model_args": "pretrained=org/mllm", "gen_kwargs": "", "limit": 4.0},
        "date": "today",
        "total_evaluation_time_seconds": "12.5",
        "lmms_eval_version": "0.7.3",
        "plam_eval": {
            "wrapper": "plam_llava",
            "mode": "chat",
            "plain": False,
            "dtype": "float32",
            "arguments": {"pretrained": "org/mllm"},
            "generation": {"calls": 7, "settings": [setting]},
            "provenance": {
                "spec": spec | {"weights": {"model": 0.9, "base_model": 0.3}},
                "digest": "d1",
                "checkpoint": {"name": "org/mllm"},
                "versions": {"torch": "2.0", "plam-eval": "0.1"},
            },
        },
    }
    if change is not None:
        change(results, logs)
    return read_run(write_logs(folder, logs, **results))
