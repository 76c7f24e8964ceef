"""lmms-eval run folders as tidy pandas tables: one row per document, with a 0..1 score whatever the task logs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from plam_eval.evaluation import harness

_LETTER = re.compile(r"^\(?([A-H])(?![A-Za-z0-9])")
_YES_NO = re.compile(r"^(yes|no)(?![a-z])", re.IGNORECASE)


class RecordError(ValueError):
    """A folder that holds no readable run; the message names the file and what was expected in it."""


@dataclass(frozen=True)
class Run:
    """One run read back from disk.

    `results` is the results JSON. `samples` has one row per document: task, doc_id, prompt, target, answer, score
    (0 to 1, NaN where the log holds nothing that can be scored) and parsable (whether the answer has the form its
    target asks for: a letter, yes or no; None for tasks of free words).
    """

    file: Path
    results: dict[str, Any]
    samples: pd.DataFrame

    def accuracy(self) -> pd.Series:
        """Mean score by task, in the order of the results."""
        return self.samples.groupby("task", sort=False)["score"].mean()


def result_files(folder: Path) -> list[Path]:
    """Results JSONs below `folder`, oldest first, without the files of like names that tasks put into `submissions`."""
    files = [file for file in folder.rglob("*_results.json") if file.parent.name != "submissions"]
    return sorted(files, key=lambda file: file.name)


def read_run(path: str | Path) -> Run:
    """Read a results JSON, or the newest one below a folder, with its sample logs.

    Raises RecordError when there is none, or its samples are missing (lmms-eval writes them with `--log_samples`).
    """
    path = Path(path)
    files = [path] if path.is_file() else result_files(path)
    if not files:
        raise RecordError(f"no *_results.json below {path}: expected the --output_path of an lmms-eval run")
    file = files[-1]
    results = json.loads(file.read_text(encoding="utf-8"))
    date = file.name.removesuffix("_results.json")
    rows: list[dict[str, Any]] = []
    for task in results["configs"]:
        log = file.with_name(f"{date}_samples_{task}.jsonl")
        if not log.is_file():
            raise RecordError(f"{file} has results of {task} but there is no {log.name}: run again with --log_samples")
        with log.open(encoding="utf-8") as lines:
            rows.extend(row(task, json.loads(line)) for line in lines)
    return Run(file, results, pd.DataFrame(rows))


def row(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    answer = sample["filtered_resps"]
    answer = answer[0] if isinstance(answer, list) else answer
    target = str(sample["target"])
    parsable: bool | None = None
    if re.fullmatch(r"[A-H]", target):
        parsable = bool(_LETTER.match(answer.strip()))
    elif target.lower() in ("yes", "no"):
        parsable = bool(_YES_NO.match(answer.strip()))
    return {
        "task": task,
        "doc_id": sample["doc_id"],
        "prompt": sample.get("input", ""),
        "target": target,
        "answer": answer,
        "score": _score(sample),
        "parsable": parsable,
    }


def _score(sample: dict[str, Any]) -> float:
    """A document's score, from whichever of the forms in use its task logs it in."""
    for metric in harness.DOCUMENT_SCORES:
        if metric in sample:
            return float(harness.DOCUMENT_SCORES[metric](sample[metric]))
    for value in sample.values():
        if isinstance(value, dict):
            if isinstance(value.get("score"), (int, float)):
                return float(value["score"])
            if "pred" in value and "answer" in value:
                return float(str(value["pred"]).strip().lower() == str(value["answer"]).strip().lower())
    known = {"doc_id", "target", "doc_hash"}
    numbers = [v for k, v in sample.items() if k not in known and isinstance(v, (int, float))]
    return float(numbers[0]) if numbers else float("nan")
