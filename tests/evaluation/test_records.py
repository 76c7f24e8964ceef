from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from plam_eval.evaluation.records import RecordError, read_run

MMBENCH = {"index": 1, "answer": "B", "A": "red", "B": "blue", "C": "green", "D": "purple", "E": "nan"}
MMBENCH |= {"question": "?", "hint": "nan", "category": "c", "L2-category": "l", "source": "s", "split": "dev"}
MMMU = {"id": "validation_Art_1", "subdomain": "Art", "question_type": "multiple-choice", "answer": "D"}

# (what the task logs beside the answer, target, answer, score, parsable)
FORMS: dict[str, tuple[dict[str, Any], str, str, float, bool | None]] = {
    "number": ({"exact_match": 1.0}, "red", "red", 1.0, None),
    "score": ({"average": {"question_id": 0, "score": 0.0}}, "A", "B", 0.0, True),
    "yes": ({"pope_accuracy": {"score": 1.0, "prediction": "yes"}}, "yes", "Yes", 1.0, True),
    "no_form": ({"pope_accuracy": {"score": 0.0, "prediction": "maybe"}}, "yes", "maybe", 0.0, False),
    "pred": ({"seedbench_2_plus_all": {"pred": "c", "answer": "C"}}, "C", "c", 1.0, False),
    "mmbench": ({"gpt_eval_score": MMBENCH | {"prediction": "(B)"}}, "B", "(B)", 1.0, True),
    "mmbench_text": ({"gpt_eval_score": MMBENCH | {"prediction": "it is blue"}}, "B", "it is blue", 1.0, False),
    "mmbench_wrong": ({"gpt_eval_score": MMBENCH | {"prediction": "lorem"}}, "B", "lorem", 0.0, False),
    "mmmu": ({"mmmu_acc": MMMU | {"parsed_pred": ["D"]}}, "D", "D.", 1.0, True),
    "mmmu_wrong": ({"mmmu_acc": MMMU | {"parsed_pred": ["A"]}}, "D", "A", 0.0, True),
    "mmmu_open": (
        {"mmmu_acc": MMMU | {"question_type": "open", "answer": "blue", "parsed_pred": [["it is blue"]]}},
        *("blue", "it is blue", 1.0, None),
    ),
}


def _write(folder: Path, tasks: dict[str, list[dict[str, Any]]], date: str = "20260101_000000") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in tasks.items():
        (folder / f"{date}_samples_{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / f"{date}_results.json"
    file.write_text(json.dumps({"configs": {task: {} for task in tasks}, "results": {}}))
    return file


def _sample(form: str) -> dict[str, Any]:
    logged, target, answer, _, _ = FORMS[form]
    return {"doc_id": 0, "target": target, "filtered_resps": [answer], "input": "?", "doc_hash": "0", **logged}


def test_every_form_of_log_gives_a_score(tmp_path: Path) -> None:
    run = read_run(_write(tmp_path, {form: [_sample(form)] for form in FORMS}))
    rows = run.samples.set_index("task")
    for form, (_, target, answer, score, parsable) in FORMS.items():
        row = rows.loc[form]
        assert (row["target"], row["answer"], row["score"], row["parsable"]) == (target, answer, score, parsable), form
    assert run.accuracy()["mmbench"] == 1.0


def test_a_log_without_a_score_is_not_a_wrong_answer(tmp_path: Path) -> None:
    row = {"doc_id": 0, "target": "x", "filtered_resps": ["x"], "input": "?", "submission": {"0": "x"}}
    assert math.isnan(read_run(_write(tmp_path, {"odd": [row]})).samples["score"][0])


def test_the_newest_run_of_a_folder_is_read(tmp_path: Path) -> None:
    _write(tmp_path / "model", {"number": [_sample("number")]})
    newest = _write(tmp_path / "model", {"yes": [_sample("yes")]}, date="20260102_000000")
    run = read_run(tmp_path)
    assert run.file == newest and list(run.samples["task"]) == ["yes"]


def test_missing_results_or_samples_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no \*_results\.json"):
        read_run(tmp_path)
    file = _write(tmp_path, {"yes": [_sample("yes")]})
    (tmp_path / "20260101_000000_samples_yes.jsonl").unlink()
    with pytest.raises(RecordError, match="--log_samples"):
        read_run(file)
