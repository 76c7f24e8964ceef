"""Runs against one of them, and which documents changed, from runs written by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from plam_eval.evaluation.comparison import changed_table, compare_runs, compare_with_one, comparison_of, worse_tasks
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.stats import OVERALL, Paired, effect, holm
from plam_eval.evaluation.sweep.findings import read_findings
from tests.helpers.noise_folders import write_pair
from tests.helpers.run_folders import documents


def run(scores: list[float], *, task: str = "pope", answers: str = "", falls: bool = False, **block: Any) -> Run:
    """Documents of one task, each in a cluster of its own; `answers` has a letter for each."""
    samples = pd.DataFrame(
        {
            "task": task,
            "doc_id": range(len(scores)),
            "group": [f"document {number}" for number in range(len(scores))],
            "prompt": [f"question {number}" for number in range(len(scores))],
            "target": "yes",
            "answer": list(answers or "y" * len(scores)),
            "score": scores,
            "metric": "score",
            "parsable": True,
        }
    )
    results = {"configs": {task: {}}, "results": {}, "higher_is_better": {task: {"score": not falls}}}
    return Run(Path(f"{task}.json"), {**results, "plam_eval": block}, samples)


def test_every_run_is_held_against_the_plain_one() -> None:
    first, plain, second = run([1, 1, 1, 1]), run([0, 0, 1, 1], plain=True), run([0, 1, 1, 1])
    compared = compare_with_one({"first": first, "plain": plain, "second": second})
    assert compared is not None and compared.reference == "plain"
    assert {name: rows[-1].difference for name, rows in compared.rows.items()} == {"first": 0.5, "second": 0.25}
    unadjusted = [rows[-1].p for rows in compared.rows.values()]
    assert list(compared.p_holm.values()) == holm(unadjusted) and not compared.problems


@pytest.mark.parametrize("plain", [(False, False), (True, True)])
def test_without_one_plain_run_the_first_is_the_reference(plain: tuple[bool, bool]) -> None:
    compared = compare_with_one({name: run([0, 1], plain=is_plain) for name, is_plain in zip("ab", plain, strict=True)})
    assert compared is not None and compared.reference == "a" and list(compared.rows) == ["b"]


def test_one_run_is_compared_with_nothing() -> None:
    assert compare_with_one({"only": run([1, 0])}) is None


def test_runs_that_cannot_be_compared_are_named_with_the_reason() -> None:
    runs = {
        "plain": run([0, 1, 1, 1], plain=True),
        "merged": run([1, 1, 1, math.nan]),
        "other": run([1, 1], task="mme"),
        "judged": run([math.nan, math.nan, math.nan, 1]),
        "nothing": run([math.nan] * 4),
    }
    compared = compare_with_one(runs)
    assert compared is not None and list(compared.rows) == ["merged"]
    assert compared.rows["merged"][-1].documents == 3
    assert "tasks: pope in plain only" in compared.problems["other"][0]
    assert compared.problems["judged"] == [
        "no document has a score in judged and in all of plain, merged; report on fewer of them"
    ]
    assert "4 documents left out that a judge came to no verdict on" in compared.problems["nothing"][0]
    assert set(compared.warnings) == {"merged", "judged", "nothing"}  # asked alike
    assert any("1 documents left out" in warning for warning in compared.warnings["merged"])


@pytest.mark.parametrize(("falls", "kinds"), [(False, ["gained", "lost"]), (True, ["lost", "gained"])])
def test_documents_that_changed(falls: bool, kinds: list[str]) -> None:
    first = run([0, 1, 1, 1], answers="abcd", falls=falls)
    second = run([1, 0, 1, 1], answers="abxd", falls=falls)
    table = changed_table({"plain": first, "merged": second, "control": run([0, 0], answers="pq", falls=falls)})
    assert table["doc_id"].tolist() == [0, 1, 2] and table["change"].tolist() == [*kinds, "other answer"]
    assert table["merged_answer"].tolist() == ["a", "b", "x"] and table["control_answer"].tolist()[:2] == ["p", "q"]
    assert table["control_score"].isna().tolist() == [False, False, True]


def test_two_runs_are_second_minus_first() -> None:
    compared = compare_runs(run([0, 0, 1, 1], plain=True), run([1, 0, 1, 1]), ("plain", "merged"))
    (row,) = compared.table[compared.table["task"] == "overall"].to_dict("records")
    assert (row["difference"], row["gained"], row["lost"]) == (0.25, 1, 0)
    assert repr(compared).startswith("Comparison(merged against plain, 4 documents: +0.250, 95 % ")


@pytest.mark.parametrize(
    ("difference", "p", "sign", "expected"),
    [
        (0.1, 0.049, 1, "better"),
        (-0.1, 0.049, 1, "worse"),
        (0.1, 0.049, -1, "worse"),
        (-0.1, 0.049, -1, "better"),
        (0.1, 0.05, 1, None),
        (-0.1, 0.5, -1, None),
    ],
)
def test_an_effect_is_shown_below_five_percent_and_has_the_scores_direction(
    difference: float, p: float, sign: int, expected: str | None
) -> None:
    assert effect(difference, p, sign) == expected


def paired(task: str, low: float, high: float) -> Paired:
    return Paired(task, 10, 10, 0.5, 0.6, 0.1, low, high, 2, 1, 0.5, "mcnemar", 1.0, 1.0, 100)


def test_worse_tasks_have_their_whole_interval_on_the_worse_side() -> None:
    rows = [paired("gqa", -0.3, -0.1), paired("pope", -0.3, 0.1), paired("wer", 0.1, 0.3), paired("mme", 0.1, 0.3)]
    rows.append(paired(OVERALL, -0.3, -0.1))
    assert [row.task for row in worse_tasks(rows, {"wer": -1})] == ["gqa", "wer"]
    assert worse_tasks([rows[0], rows[-1]], {}) == []  # of one task the mean hides nothing


def test_a_comparison_that_was_made_has_stock_scores_of_tasks_without_documents_scores(tmp_path: Path) -> None:
    """As that of two run folders has."""
    tasks = ["pope", "coco_cap_chair"]
    write_pair(tmp_path / "compare", documents(tasks, 20, 8), documents(tasks, 20, 15))
    made = comparison_of(read_findings(tmp_path / "compare"))
    assert {row.task for row in made.rows} == {"pope", OVERALL}
    assert {score.task for score in made.stock} == set(tasks)
