"""Sweep and run folders in the layout that evaluations leave, written without a model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plam_eval.evaluation import scan, scan_folder
from plam_eval.evaluation.sweep.config import SweepConfig
from plam_eval.evaluation.sweep.folder import CELL, CELLS, PLAN
from plam_eval.evaluation.sweep.grid import PLAIN, Cell, Grid, make_grid
from tests.helpers.curves import curve_of

Document = dict[str, Any]
"""task, doc_id, prompt, target, answer, score; group where documents share an image."""

VERSIONS = {"python": "3.11", "plam-eval": "0.1.0", "lmms-eval": "0.7.3"}


METRIC_OF = {"pope": "pope_accuracy", "mmstar": "average", "mme": "mme_perception_score", "gqa": "exact_match"}
SCORE = [{"metric": "score", "aggregation": "mean", "higher_is_better": True}]
"""What tasks declare that have no row in the table of tasks."""


def _logged(task: str, score: float) -> dict[str, Any]:
    """What a task logs for a document."""
    metric = METRIC_OF.get(task, "score")
    return {metric: score if metric in ("score", "exact_match") else {"question_id": "0", "score": score}}


def _stock(task: str, given: Sequence[Document]) -> dict[str, float]:
    """A task's own metric, where it is the mean of its documents' scores."""
    scores = [document["score"] for document in given if document["task"] == task]
    metric = METRIC_OF.get(task, "score")
    return {f"{metric},none": sum(scores) / len(scores)} if None not in scores and metric != "average" else {}


def documents(tasks: Sequence[str], count: int, right: int | None = None) -> list[Document]:
    """Yes/no documents; of each task the first `right` (all by default) are answered right."""
    return [
        {
            "task": task,
            "doc_id": number,
            "prompt": f"Is there a cat in picture {number} of {task}?",
            "target": "yes" if number % 2 else "no",
            "answer": ("yes" if number % 2 else "no") if right is None or number < right else "perhaps",
            "score": float(right is None or number < right),
        }
        for task in tasks
        for number in range(count)
    ]


def changed(given: Iterable[Document], answers: Mapping[tuple[str, int], tuple[str, float]]) -> list[Document]:
    """Documents with other answers and scores for some, by (task, doc_id)."""
    return [
        {**document, **dict(zip(("answer", "score"), answers[key], strict=True))}
        if (key := (document["task"], document["doc_id"])) in answers
        else document
        for document in given
    ]


def write_run(folder: Path, given: Sequence[Document], **block: Any) -> Path:
    """A results file and its sample logs; `block` goes over what our wrappers record. Gives the results file."""
    tasks = list(dict.fromkeys(document["task"] for document in given))
    folder.mkdir(parents=True, exist_ok=True)
    recorded = {
        "wrapper": "plam_llava",
        "plain": True,
        "mode": "chat",
        "dtype": "float32",
        "arguments": {},
        "provenance": {
            "versions": VERSIONS,
            "commit": "c0ffee",
            "spec": None,
            "digest": None,
            "checkpoint": {"name": "pair/mllm", "sha256": "ab" * 32},
            "base": None,
            "merge": None,
        },
    }
    results = {
        "results": {t: {"alias": t, "other,none": 0.5, "other_stderr,none": "N/A", **_stock(t, given)} for t in tasks},
        "configs": {
            task: {"task": task, "generation_kwargs": {"max_new_tokens": 8}, "metric_list": SCORE} for task in tasks
        },
        "higher_is_better": {task: {"score": True, METRIC_OF.get(task, "score"): True} for task in tasks},
        "versions": dict.fromkeys(tasks, 0),
        "config": {
            "model": "pair/mllm",
            "model_args": "pretrained=pair/mllm,plateau=none",
            "batch_size": 1,
            "limit": 8.0,
            "offset": 0,
            "gen_kwargs": None,
            "resolved_cli_args": {"model": "plam_llava", "tasks": ",".join(tasks)},
        },
        "date": "20260101_000000",
        "lmms_eval_version": "0.7.3",
        "total_evaluation_time_seconds": "3.5",
        "plam_eval": recorded | block,
    }
    file = folder / "20260101_000000_results.json"
    file.write_text(json.dumps(results), encoding="utf-8")
    for task in tasks:
        lines = [
            {
                "doc_id": document["doc_id"],
                "target": document["target"],
                "filtered_resps": [document["answer"]],
                "input": document["prompt"],
                **_logged(task, document["score"]),
                "group": document.get("group", f"i{document['doc_id']}"),
            }
            for document in given
            if document["task"] == task
        ]
        log = folder / f"20260101_000000_samples_{task}.jsonl"
        log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def write_sweep(
    folder: Path,
    cells: Mapping[str, Sequence[Document] | str],
    *,
    layers: str = "6:8,all",
    weights: str = "0.9+0.3",
    controls: str = "self_scale",
    num_layers: int = 8,
    model_args: str = "pretrained=pair/mllm",
    **config: Any,
) -> Grid:
    """A sweep's folder. `cells` holds documents by name, or the error of a cell that failed; others are not run."""
    read = SweepConfig.load(
        model="plam_llava",
        model_args=model_args,
        base_model="pair/base",
        tasks="pope,mmstar",
        layers=layers,
        weights=weights,
        controls=controls,
        **config,
    )
    grid = make_grid(read, num_layers)
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "config": read.model_dump(mode="json"),
        "settings": {
            "model": "plam_llava",
            "model_args": {"pretrained": "pair/mllm"},
            "checkpoint": {"folder": "/models/pair/mllm", "sha256": "ab" * 32},
            "bases": {"pair/base": {"sha256": "cd" * 32}},
            "versions": VERSIONS,
        },
        "grid": grid.to_dict(),
        "num_layers": num_layers,
        "working_directory": "/no/such/folder",
        "command": ["plam", "sweep", "--model", "plam_llava", "--output", "a b"],
    }
    (folder / PLAN).write_text(json.dumps(plan), encoding="utf-8")
    names = {cell.name: cell for cell in grid.cells}
    for name, content in cells.items():
        write_cell(folder / CELLS / name, names[name], content)
    return grid


def write_cell(folder: Path, cell: Cell, content: Sequence[Document] | str) -> None:
    """A cell's folder: a run of these documents, or what is left where it failed with this error."""
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {**cell.to_dict(), "seconds": {"merge": 0.02, "evaluate": 3.0}}
    if isinstance(content, str):
        record |= {"status": "failed", "error": content}
    else:
        spec = cell.spec.to_dict() if cell.spec else None
        provenance = {
            "versions": VERSIONS,
            "commit": "c0ffee",
            "spec": spec,
            "digest": cell.spec.digest() if cell.spec else None,
            "checkpoint": {"name": "pair/mllm", "sha256": "ab" * 32},
            "merge": {"relative_change": {"6": 0.2, "7": 0.3}, "warnings": ["rope_theta differs"]} if spec else None,
        }
        file = write_run(folder / "run", content, plain=cell.name == PLAIN, provenance=provenance)
        record |= {"status": "finished", "results": str(file.relative_to(folder))}
    (folder / CELL).write_text(json.dumps(record), encoding="utf-8")


def write_scan(folder: Path, tasks: Sequence[str] = ("pope", "mmstar"), closed_to: str = "text") -> None:
    folder.mkdir(parents=True)
    settings = {"pretrained": "pair/mllm", "wrapper": "plam_llava", "mode": "chat", "dtype": "float32", "spec": None}
    more: dict[str, Any] = {"weights and arguments": "abc", "versions": {"torch": "2"}}
    more |= {} if closed_to == "text" else {"closed_to": closed_to}
    (folder / scan_folder.SETTINGS).write_text(json.dumps(settings | more))
    curve_of(8, tasks).write(folder / scan_folder.SAMPLES)
    scan.conclude(folder, base_model="pair/base")
    write_run(folder / scan_folder.UNMASKED / "model", documents(tasks, 4))
