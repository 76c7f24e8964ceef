"""The table of tasks, and what is read where a task has no row in it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from plam_eval.harness.errors import NoScoreError
from plam_eval.harness.task_row import entries_of
from plam_eval.harness.tasks import (
    TASKS,
    cluster_of,
    cluster_of_document,
    filters_of,
    score_of_task,
)

MEAN = {"metric_list": [{"metric": "exact_match", "aggregation": "mean"}]}


def sample(**logged: Any) -> dict[str, Any]:
    return {"doc_id": 3, "doc": {"number": 1.0}, "target": "x", "filtered_resps": ["x"], "turn": 2, **logged}


@pytest.mark.parametrize(
    "logged",
    [
        {"flickr_CIDEr": {"answer": ["a dog"], "pred": "a dog", "image_id": 1}},  # equal strings mean nothing there
        {"score": 1.0},  # a number, but no metric of the task
        {"doc_2": 1.0},
        {},
    ],
)
def test_an_unknown_task_is_never_scored_by_the_form_of_an_entry(logged: dict[str, Any]) -> None:
    """Before, the first of these was right by string equality and the others scored by the first number there was."""
    score = score_of_task("unheard_of", MEAN)
    with pytest.raises(NoScoreError, match=r"expected exact_match in its log, found "):
        score.of(sample(**logged))


def test_what_a_line_holds_besides_metrics_is_never_a_score() -> None:
    assert entries_of(sample(group="i1", input="?", exact_match=1.0)) == ["exact_match"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "declares no metric that is a mean over documents; it declares nothing"),
        ({"metric_list": None}, "declares nothing"),
        ({"metric_list": [{"metric": "CIDEr", "aggregation": "<function utils.cider at 0x7f00>"}]}, r"CIDEr \(cider\)"),
        ({"metric_list": [{"metric": "wer", "aggregation": "median"}, 3, {}]}, r"wer \(median\)"),
    ],
)
def test_a_task_without_a_mean_says_what_it_declares(config: dict[str, Any], message: str) -> None:
    with pytest.raises(NoScoreError, match=message):
        score_of_task("unheard_of", config)


def test_the_first_declared_mean_is_the_score() -> None:
    rows = [
        {"metric": "submission", "aggregation": "<function f at 0x1>"},
        {"metric": "anls", "aggregation": "mean"},
        {"metric": "exact_match", "aggregation": "mean"},
    ]
    score = score_of_task("unheard_of", {"metric_list": rows})
    assert (score.metric, score.stock) == ("anls", "anls")
    assert score.of(sample(exact_match=0.0, anls=0.5)) == 0.5 and score.of(sample(anls=True)) == 1.0


@pytest.mark.parametrize("value", [-1, 1.5, 1e308, math.inf, -math.inf, 10**400])
def test_a_number_out_of_range_is_no_score(value: float) -> None:
    with pytest.raises(NoScoreError, match="exact_match"):
        score_of_task("unheard_of", MEAN).of(sample(exact_match=value))


@pytest.mark.parametrize("value", [None, "1.0", [1.0], {"score": 1.0}, math.nan])
def test_what_is_no_number_is_no_score(value: Any) -> None:
    with pytest.raises(NoScoreError, match="exact_match is not logged in the form that is known: found"):
        score_of_task("unheard_of", MEAN).of(sample(exact_match=value))


@pytest.mark.parametrize("task", ["mmbench_en_dev", "mmbench_cn_dev_static", "mmmu_val", "seedbench_2_plus", "mmstar"])
@pytest.mark.parametrize("entry", [None, 3, "x", [], {}, {"score": None}, {"pred": 3, "answer": "A"}, {"score": 0.7}])
def test_an_entry_of_another_task_under_the_same_name_is_no_crash(task: str, entry: Any) -> None:
    """MM-Vet logs under MMBench's name and MMMU-Pro under MMMU's; that was a KeyError that made the run unreadable."""
    score = score_of_task(task, {})
    if task == "mmstar" and entry == {"score": 0.7}:
        assert score.of(sample(average=entry)) == 0.7
        return
    with pytest.raises(NoScoreError):
        score.of(sample(**{score.metric: entry}))


def test_filters_in_the_tasks_own_order() -> None:
    assert filters_of({}) == filters_of({"filter_list": None}) == ["none"]
    assert filters_of({"filter_list": [{"name": "strict-match", "filter": []}, {"name": "flexible-extract"}]}) == [
        "strict-match",
        "flexible-extract",
    ]


def test_clusters_of_documents_are_those_of_logs() -> None:
    document = {"imageId": "n12", "image_source": "COCO_1", "question_id": "OCR/0.jpg", "data_id": 7}
    for task in ("gqa", "pope", "mme", "seedbench_2_plus"):
        noted = cluster_of_document(task, document)
        assert noted is not None and cluster_of(task, sample(group=noted)) == (f"image {noted}", True)
        assert cluster_of_document(task, {"question": "?"}) is None  # a copy of the dataset that lacks the column
    assert cluster_of_document("mmstar", document) is None and cluster_of_document("unheard_of", document) is None


def test_every_row_has_a_score_or_a_reason() -> None:
    for name, task in TASKS.items():
        assert (task.score is None) == bool(task.unscored), name
