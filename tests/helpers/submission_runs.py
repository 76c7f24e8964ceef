"""Runs whose answers are for a board, as lmms-eval 0.7.3 logs them, written by hand; and the boards' question files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.board_parsers import QUESTION_FILES
from tests.helpers.logged_runs import write_logs

Line = dict[str, Any]

DATE = "20260301_120000"
TASKS = {
    "seedbench_2_plus": "seedbench_2_plus",
    "vqav2": "vqav2_test",
    "vizwiz": "vizwiz_vqa_test",
    "textvqa": "textvqa_test",
    "docvqa": "docvqa_test",
    "infovqa": "infovqa_test",
    "stvqa": "stvqa",
    "gqa": "my_gqa_test",
}
"""By board, the task whose log holds its answers."""


def question(board: str, number: int) -> Any:
    """The id of a question, as the board has it."""
    if board == "vizwiz":
        return f"VizWiz_test_{number:08d}.jpg"
    return {"gqa": f"0{number}", "seedbench_2_plus": f"{number}"}.get(board, 262144000 + number)


def logged(board: str, number: int, answer: str) -> Line:
    """What the task logs for a document, beside the response itself."""
    name = question(board, number)
    if board == "seedbench_2_plus":
        entry = {"pred": answer.strip()[:1], "answer": "A", "question_id": name}
        return {"seedbench_2_plus_Chart": entry, "seedbench_2_plus_all": entry}
    fields = {"vizwiz": "image", "gqa": "questionId", "docvqa": "questionId", "infovqa": "questionId"}
    kind = {"gqa": "prediction"}.get(board, "answer")
    return {"submission": {fields.get(board, "question_id"): name, kind: answer}}


def lines(board: str, answers: Sequence[str]) -> list[Line]:
    """The lines of the sample log."""
    return [
        {"doc_id": n, "target": "None", "filtered_resps": answer, "input": "?", **logged(board, n, answer)}
        for n, answer in enumerate(answers)
    ]


def submission_run(
    folder: Path,
    board: str,
    answers: Sequence[str],
    change: Callable[[dict[str, Any], list[Line]], object] | None = None,
    *,
    date: str = DATE,
    task: str | None = None,
) -> Path:
    """A run's results JSON and log; `change` edits both before they are written. Gives the results JSON."""
    task = task or TASKS[board]
    rows = lines(board, answers)
    results: dict[str, Any] = {
        "configs": {task: {"task": task, "generation_kwargs": {"max_new_tokens": 16}, "repeats": 1}},
        "results": {task: {"alias": task, "submission,none": None}},
        "n-samples": {task: {"original": len(rows), "effective": len(rows)}},
        "config": {"model": "llava_hf", "model_args": "pretrained=org/mllm", "limit": None, "offset": 0},
        "lmms_eval_version": "0.7.3",
    }
    if change is not None:
        change(results, rows)
    return write_logs(folder, {task: rows}, date, **results)


def questions_file(folder: Path, board: str, count: int) -> Path:
    """The board's own file of questions, of so many."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{board}_questions.json"
    file.write_text(QUESTION_FILES[board]([question(board, n) for n in range(count)]), encoding="utf-8")
    return file
