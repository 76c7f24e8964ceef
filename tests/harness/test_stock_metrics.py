"""Metrics as functions of sums come to what the tasks' own aggregations do, on resamples with copies, too."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks.stock_scores import AGGREGATIONS, invented
from plam_eval.harness import tasks
from plam_eval.harness.recompute import StockTask, find_task
from plam_eval.harness.stock_metrics import KNOWN, known_metric, parts_of

Line = dict[str, Any]


def installed(task: str) -> StockTask:
    scoring = "mmbench_process_results" if task.startswith("mmbench") else None
    names = {
        "mmstar": "mmstar_process_results",
        "mme": "mme_process_results",
        "mmmu_val": "mmmu_process_results",
        "gqa": "None",
        "pope": "pope_process_results",
        "realworldqa": "realworldqa_process_results",
        "seedbench_2_plus": "seed_process_result",
    }
    return find_task(task, {"process_results": scoring or names[task]})


def drawn(lines: Sequence[Line], clusters: np.ndarray, seed: int) -> list[int]:
    """Clusters drawn with replacement."""
    return list(np.random.default_rng(seed).integers(0, clusters.max() + 1, clusters.max() + 1))


def with_copies(task: str, metric: str, lines: Sequence[Line], clusters: np.ndarray, drawn: Iterable[int]) -> list[Any]:
    """Entries of drawn clusters, each draw with ids of its own: what as many other documents like these would log."""
    entries = []
    for number, cluster in enumerate(drawn):
        for line, own in zip(lines, clusters, strict=True):
            if own == cluster and metric in line:
                entry = copy.deepcopy(line[metric])
                if task == "mme":
                    entry["question_id"] = f"{number}"
                if task.startswith("mmbench"):
                    entry["index"] = entry["index"] // 1_000_000 * 1_000_000 + number
                entries.append(entry)
    return entries


def test_all_metrics_of_the_nine_are_declared_so() -> None:
    for task, metrics in AGGREGATIONS.items():
        declared = {
            row["metric"]: getattr(row["aggregation"], "__name__", row["aggregation"])
            for row in installed(task).task.config.metric_list
        }
        declared = {name: each for name, each in declared.items() if name != "submission"}
        assert declared == metrics
        assert set(metrics.values()) <= KNOWN.keys()


@pytest.mark.parametrize("task", [*AGGREGATIONS])
def test_sums_are_what_the_aggregation_gives(task: str) -> None:
    """Of all documents, of resamples in which clusters stand several times, and of the second run as well."""
    size = {"mmmu_val": 12, "mmstar": 150}.get(task, 60)
    made = invented(task, size, np.random.default_rng(5))
    stock = installed(task)
    groups = [tasks.cluster_of(task, line)[0] for line in made[0]]
    clusters = np.unique(groups, return_inverse=True)[1]
    for metric, aggregation in AGGREGATIONS[task].items():
        logging = np.array([metric in line for line in made[0]])
        kept, numbers = np.unique(clusters[logging], return_inverse=True)
        runs = [[line for line, logs in zip(lines, logging, strict=True) if logs] for lines in made]
        summed = KNOWN[aggregation].sums([[line[metric] for line in lines] for lines in runs], numbers)
        assert summed.totals.shape[:2] == (2, len(kept))
        draws: list[list[int]] = [list(range(len(kept))), *(drawn(runs[0], numbers, seed) for seed in range(4))]
        assert len(set(draws[1])) < len(draws[1])
        for number, lines in enumerate(runs):
            ours = [float(summed.value(summed.totals[number, rows].sum(axis=0))) for rows in draws]
            theirs = stock.again(metric, [with_copies(task, metric, lines, numbers, rows) for rows in draws])
            assert ours == pytest.approx(theirs, rel=1e-12, abs=6e-6 if task == "mmmu_val" else 1e-12)
            assert len({round(value, 9) for value in theirs}) > 1 or metric == "pope_yes_ratio"


def test_without_ids_of_their_own_mme_refuses_copies_and_mmbench_takes_them_for_one() -> None:
    """Which is why resamples are sums."""
    for task, metric in (("mme", "mme_perception_score"), ("mmbench_en_dev_static", "gpt_eval_score")):
        lines, _ = invented(task, 12, np.random.default_rng(0))
        entries = [line[metric] for line in lines if metric in line]
        stock = installed(task)
        if task == "mme":
            with pytest.raises(ValueError, match="MME only supports pairwise"):
                stock.again(metric, [[*entries, *entries]])
        else:
            rows = {index: [entry for entry in entries if entry["index"] % 1_000_000 == index] for index in range(12)}
            value = {index: stock.again(metric, [own])[0] for index, own in rows.items()}
            wrong = next(index for index, own in value.items() if own == 0 and len(rows[index]) > 1)
            right = next(index for index, own in value.items() if own == 100)
            spoilt = [{**entry, "index": entry["index"] % 1_000_000} for entry in rows[wrong][:1]]
            both = [*rows[right], *({**entry, "index": right} for entry in spoilt)]
            assert stock.again(metric, [both]) == [0], "rows of one index are one question"


def test_ocrbench_is_a_sum_whatever_was_called_before() -> None:
    """Its aggregation divides by a thousand and adds to a variable of its module, which stays."""
    score = tasks.TASKS["ocrbench"].score
    known = known_metric("ocrbench_aggregate_accuracy", "ocrbench_accuracy", score)
    assert known is not None and known.unit == "share"
    kinds = ["Doc-oriented VQA", "Digit String Recognition", "Scene Text-centric VQA"]
    entries = [{"question_type": kind, "score": right} for kind, right in zip(kinds, (1, 0, 1), strict=True)]
    summed = known.sums([entries], np.arange(3))
    stock = find_task("ocrbench", {"process_results": "ocrbench_process_results"})
    draws = [[0, 1, 2], [0, 0, 2], [1, 1, 1]]
    theirs = stock.again("ocrbench_accuracy", [[entries[at] for at in rows] for rows in draws])
    assert theirs == [2 / 1000, 3 / 1000, 0]
    assert [float(summed.value(summed.totals[0, rows].sum(axis=0))) for rows in draws] == pytest.approx(theirs)
    assert stock.again("ocrbench_accuracy", [entries]) == [2 / 1000]


def test_mmmu_is_reported_by_domain() -> None:
    lines, _ = invented("mmmu_val", 30, np.random.default_rng(0))
    entries = [line["mmmu_acc"] for line in lines]
    part_of = parts_of("mmmu_aggregate_results")
    domains = {part_of(entry) for entry in entries}
    assert domains == {
        "Art and Design",
        "Business",
        "Science",
        "Health and Medicine",
        "Humanities and Social Science",
        "Tech and Engineering",
    }
    assert part_of({"subdomain": "Alchemy"}) is None and part_of("x") is None and part_of({"subdomain": []}) is None
    stock = installed("mmmu_val")
    for domain in domains:
        own = [entry for entry in entries if part_of(entry) == domain]
        summed = KNOWN["mmmu_aggregate_results"].sums([own], np.zeros(len(own), dtype=int))
        assert summed.of_all() == pytest.approx(stock.again("mmmu_acc", [own]), abs=6e-6)


@pytest.mark.parametrize(
    ("aggregation", "entries", "clusters", "message"),
    [
        ("mme_aggregate_results", [("a", "1"), ("a", "1")], [0, 1], "several clusters"),
        ("mme_aggregate_results", [("a", "1"), ("a", "2")], [0, 0], "without its partner"),
        ("mmbench_aggregate_dev_results_static", [1, 1_000_001], [0, 1], "several clusters"),
        ("mmbench_aggregate_dev_results_static", [1, 1], [0, 0], "twice"),
        ("mean", [float("inf"), 1.0], [0, 1], "finite"),
    ],
)
def test_what_does_not_fit_is_refused(aggregation: str, entries: list[Any], clusters: list[int], message: str) -> None:
    if aggregation.startswith("mme"):
        entries = [{"category": category, "question_id": own, "score": 1.0} for category, own in entries]
    if aggregation.startswith("mmbench"):
        choices = {letter: f"thing {letter * 3}" for letter in "ABCD"}
        entries = [{"index": index, "answer": "A", "prediction": "A", **choices} for index in entries]
    with pytest.raises(ValueError, match=message):
        KNOWN[aggregation].sums([entries], np.array(clusters))


def test_other_categories_in_the_second_run_are_refused() -> None:
    first, second = ([{"l2_category": name, "score": 1.0}] for name in "ab")
    with pytest.raises(ValueError, match="other ids or categories"):
        KNOWN["mmstar_aggregate_results"].sums([first, second], np.array([0]))


def test_a_task_of_the_table_is_known_by_its_mean() -> None:
    score = tasks.TASKS["cv_bench"].score
    known = known_metric("cv_bench_aggregate_results", "cv_bench_acc", score)
    assert known is not None and known.unit == "share"
    assert known.sums([[{"is_correct": True}, {"is_correct": False}]], np.array([0, 1])).of_all() == [0.5]
    assert known_metric("cv_bench_aggregate_results", "another", score) is None
    judged = tasks.TASKS["mmvet"].score
    percent = known_metric("another", "gpt_eval_score", judged)
    assert percent is not None and percent.unit == "percent"
