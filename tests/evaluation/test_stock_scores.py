"""Stock scores of two runs: values, intervals, and what is said where there are none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.stock_scores import drawn_from, expanded, held, invented, summed, write_run
from plam_eval.evaluation import stock_scores as module
from plam_eval.evaluation.comparison import compare_runs
from plam_eval.evaluation.records import Run, read_run
from plam_eval.evaluation.stock_scores import NoIntervalError, StockScore, paired_interval, stock_scores, stock_table
from plam_eval.harness.evaluate import evaluate
from plam_eval.harness.stock_metrics import Summed
from tests.helpers.answering import Answering
from tests.helpers.bundles import SAID

Logs = dict[str, list[dict[str, Any]]]
SMALL = {"mmstar": 300, "mme": 120, "mmmu_val": 30, "pope": 60, "mmbench_en_dev_static": 120}


def write_pair(folder: Path, sizes: dict[str, int], seed: int = 3) -> tuple[Path, Path]:
    made = {task: invented(task, clusters, np.random.default_rng(seed)) for task, clusters in sizes.items()}
    first, second = (
        write_run(folder / name, {task: lines[number] for task, lines in made.items()})
        for number, name in enumerate(("plain", "merged"))
    )
    return first, second


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Results files of two invented runs. Do not modify."""
    return write_pair(tmp_path_factory.mktemp("pair"), SMALL)


@pytest.fixture(scope="module")
def runs(written: tuple[Path, Path]) -> tuple[Run, Run]:
    return read_run(written[0]), read_run(written[1])


@pytest.fixture(scope="module")
def scores(runs: tuple[Run, Run]) -> dict[tuple[str, str, str], StockScore]:
    return by_name(stock_scores(*runs))


def by_name(scores: tuple[StockScore, ...]) -> dict[tuple[str, str, str], StockScore]:
    return {(score.task, score.metric, score.part): score for score in scores}


def edited(folder: Path, change: Callable[[dict[str, Any], Logs], None], **sizes: int) -> tuple[StockScore, ...]:
    """Stock scores of invented runs, of which the second was changed by somebody."""
    first, second = write_pair(folder, sizes)
    results = json.loads(second.read_text())
    logs = {task: second.with_name(second.name.replace("results.json", f"samples_{task}.jsonl")) for task in sizes}
    lines = {task: [json.loads(line) for line in log.read_text().splitlines()] for task, log in logs.items()}
    change(results, lines)
    second.write_text(json.dumps(results))
    for task, log in logs.items():
        log.write_text("".join(json.dumps(line) + "\n" for line in lines[task]))
    return stock_scores(read_run(first), read_run(second))


@pytest.mark.slow
def test_values_are_those_that_lmms_eval_wrote(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(suite)
    answering = Answering(lambda task, number: SAID[(number * 7 + len(task)) % len(SAID)])
    run = read_run(evaluate(answering, "plam9", output=tmp_path / "run").results_file)
    monkeypatch.setattr("plam_eval.harness.recompute.find_task", None)  # it is not needed
    made = by_name(stock_scores(run, run))
    reported = {
        (task, key.partition(",")[0]): value
        for task in run.tasks
        for key, value in run.results["results"][task].items()
        if "_stderr" not in key and isinstance(value, float)
    }
    assert len(reported) > 20
    for (task, metric), value in reported.items():
        score = made[task, metric, ""]
        assert score.first == score.second == value and score.complete
        assert not score.note and score.why in ("no cluster differs", "no document differs")
    assert {score.task for score in made.values()} == set(run.tasks)


def test_every_metric_has_its_difference_and_interval(scores: dict[tuple[str, str, str], StockScore]) -> None:
    assert list(dict.fromkeys(task for task, _, _ in scores)) == [*SMALL]
    for score in scores.values():
        assert score.difference == score.second - score.first
        if score.metric == "pope_yes_ratio":
            assert score.why == "no cluster differs" and math.isnan(score.low)
        elif score.why:
            assert "differ" in score.why and score.differing < module.LEAST
        else:
            assert score.low < score.difference < score.high and score.resamples == 10_000
    points, percent = scores["mme", "mme_perception_score", ""], scores["mmbench_en_dev_static", "gpt_eval_score", ""]
    assert (points.unit, percent.unit) == ("points", "percent")
    assert points.clusters == points.documents / 2 and points.over == "clusters"
    assert percent.clusters == 120 and percent.documents > 200
    average = scores["mmstar", "average", ""]
    assert (average.over, average.clusters, average.unit) == ("documents", 300, "share")


def test_mmmu_is_told_by_domain_over_its_questions(scores: dict[tuple[str, str, str], StockScore]) -> None:
    whole, *parts = (score for score in scores.values() if score.task == "mmmu_val")
    assert (whole.over, whole.clusters, whole.documents) == ("clusters", 30, 900)
    assert len(parts) == 6 and sum(part.documents for part in parts) == 900
    assert all(part.over == "documents" and part.clusters == part.documents for part in parts)
    mean = sum(part.second * part.documents for part in parts) / 900
    assert mean == pytest.approx(whole.second, abs=1e-5)


def test_the_same_twice_is_the_same(runs: tuple[Run, Run], scores: dict[tuple[str, str, str], StockScore]) -> None:
    one = tuple(run.only(["pope"]) for run in runs)
    again = by_name(stock_scores(*one))
    assert again == pytest.approx({key: score for key, score in scores.items() if key[0] == "pope"}, nan_ok=True)


def test_equal_runs_have_no_interval(runs: tuple[Run, Run]) -> None:
    for score in stock_scores(runs[0], runs[0]):
        assert score.difference == 0 and math.isnan(score.low) and score.why.startswith("no ")


def test_of_some_documents_both_are_said(runs: tuple[Run, Run]) -> None:
    """As where a sweep chooses on others, or a judge came to no verdict."""
    first, second = (run.only(["mme", "pope"]) for run in runs)
    groups = first.samples["group"].unique()[: len(first.samples["group"].unique()) // 2]
    kept = first.samples["group"].isin([*groups, *first.samples.loc[first.samples["task"] == "pope", "group"]])
    half = [replace(run, samples=run.samples[kept.to_numpy()].reset_index(drop=True)) for run in (first, second)]
    made, whole = by_name(stock_scores(*half)), by_name(stock_scores(first, second))
    key = ("mme", "mme_perception_score", "")
    assert not made[key].complete and made["pope", "pope_f1_score", ""].complete
    assert made[key].documents < whole[key].documents and made[key].first != whole[key].first
    assert [made[key].first_stored, made[key].second_stored] == [whole[key].first, whole[key].second]
    scored = half[1].samples.assign(score=lambda rows: rows["score"].mask(rows["task"] == "mme"))
    unjudged = by_name(stock_scores(first, replace(half[1], samples=scored)))
    assert math.isnan(unjudged[key].first) and unjudged[key].first_stored == whole[key].first


def test_a_results_file_that_says_another_value(tmp_path: Path) -> None:
    """Its own entries count, by the installed task's aggregation, and both are said."""

    files = write_pair(tmp_path, {"pope": 60})
    for file in files:
        results = json.loads(file.read_text())
        results["configs"]["pope"]["process_results"] = "pope_process_results"
        if file == files[1]:
            results["results"]["pope"]["pope_f1_score,none"] = 0.99
        file.write_text(json.dumps(results))
    made = by_name(stock_scores(*map(read_run, files)))
    score = made["pope", "pope_f1_score", ""]
    assert score.second < 0.9 and score.second_stored == 0.99 and score.low < score.difference < score.high
    assert score.note.startswith("the second run's results file says 0.99, its entries come to 0.")
    assert not made["pope", "pope_accuracy", ""].note


def test_bad_input_is_told_by_metric_and_the_others_stay(tmp_path: Path) -> None:
    def change(results: dict[str, Any], logs: Logs) -> None:
        results["results"]["pope"]["pope_f1_score,none"] = 0.99  # and nothing says what scored it
        results["results"]["pope"] |= {"new,none": 0.5, "huge,none": 10**400, "yes,none": True, "nan,none": math.nan}
        results["results"]["pope"]["pope_accuracy_stderr,none"] = 0.1
        logs["mmstar"][0]["average"] = [1]
        for line in logs["mme"]:
            if "mme_perception_score" in line:
                line["mme_perception_score"]["question_id"] = "?"

    made = by_name(edited(tmp_path, change, pope=60, mmstar=100, mme=60))
    why = {metric: score.why for (_, metric, _), score in made.items()}
    assert "process_results" not in why["pope_f1_score"]
    assert (
        why["pope_f1_score"].startswith("the second run's entries come to 0.")
        and "scored by None" in why["pope_f1_score"]
    )
    assert made["pope", "pope_f1_score", ""].second == 0.99, "what the file says stays"
    assert why["new"] == "no document logs it" and not {"huge", "yes", "nan"} & why.keys()
    assert "not as they are known" in why["average"] and "not as they are known" in why["mme_perception_score"]
    assert why["pope_accuracy"] == "" and made["pope", "pope_accuracy", ""].low < 1


def test_a_log_that_has_gone_leaves_what_the_results_say(tmp_path: Path) -> None:
    first, second = write_pair(tmp_path, {"pope": 60, "gqa": 60})
    pair = read_run(first), read_run(second)
    second.with_name("20260101_000000_samples_pope.jsonl").unlink()
    made = by_name(stock_scores(*pair))
    assert made["gqa", "exact_match", ""].why == ""
    assert "no longer there" in made["pope", "pope_f1_score", ""].why and made["pope", "pope_f1_score", ""].first > 0


def test_a_log_that_other_weights_have_written_meanwhile_is_none(tmp_path: Path) -> None:
    first, second = write_pair(tmp_path, {"pope": 60})
    pair = read_run(first), read_run(second)
    log = second.with_name("20260101_000000_samples_pope.jsonl")
    start, rest = log.read_text().split("\n", 1)
    log.write_text(json.dumps(json.loads(start) | {"digest": "a" * 16}) + "\n" + rest)
    assert "expected one for all" in by_name(stock_scores(*pair))["pope", "pope_f1_score", ""].why


def test_a_metric_of_an_unknown_aggregation_has_its_value_and_why(tmp_path: Path) -> None:
    first, second = write_pair(tmp_path, {"gqa": 60})
    for file in (first, second):
        results = json.loads(file.read_text())
        results["configs"]["gqa"]["metric_list"].append({"metric": "cider", "aggregation": "coco_cider"})
        results["results"]["gqa"] |= {"cider,none": 0.5 if file == first else 0.75, "exact_match,strict": 0.1}
        file.write_text(json.dumps(results))
        log = file.with_name("20260101_000000_samples_gqa.jsonl")
        log.write_text(
            "".join(json.dumps({**json.loads(line), "cider": {"a": 1}}) + "\n" for line in log.read_text().splitlines())
        )
    made = by_name(stock_scores(read_run(first), read_run(second)))
    cider = made["gqa", "cider", ""]
    assert (cider.first, cider.second, cider.difference) == (0.5, 0.75, 0.25)
    assert "coco_cider" in cider.why and "drawn twice" in cider.why
    assert made["gqa", "exact_match", ""].second > 0.2


def test_a_task_that_is_not_installed_has_the_intervals_of_its_means(tmp_path: Path) -> None:
    generator, files = np.random.default_rng(0), []
    for name, share in (("a", 0.5), ("b", 0.6)):
        lines = [
            {
                "doc_id": n,
                "target": "?",
                "filtered_resps": ["?"],
                "input": "?",
                "wer": float(generator.random() < share),
            }
            for n in range(200)
        ]
        folder = tmp_path / name
        folder.mkdir()
        files.append(folder / "20260101_000000_results.json")
        listed = [{"metric": "wer", "aggregation": "mean", "higher_is_better": False}]
        value = float(np.mean([line["wer"] for line in lines]))
        content = {"configs": {"mine": {"metric_list": listed}}, "results": {"mine": {"wer,none": value}}}
        content["higher_is_better"] = {"mine": {"wer": False}}
        files[-1].write_text(json.dumps(content))
        log = folder / "20260101_000000_samples_mine.jsonl"
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    [score] = stock_scores(*map(read_run, files))
    assert score.low < score.difference < score.high and score.higher_is_better is False and score.unit == ""


def test_an_aggregation_that_is_called_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IoU is no score of ours: RefCOCO's own aggregation makes it, of every resample."""
    generator, files = np.random.default_rng(0), []
    names = {"refcoco_IoU": "refcoco_bbox_rec_iou", "refcoco_ACC@0.5": "refcoco_bbox_rec_acc05"}
    task = "refcoco_bbox_rec_val"
    for name, error in (("a", 0.2), ("b", 0.1)):
        lines: list[dict[str, Any]] = []
        for n in range(80):
            entry = {
                "bbox": [0.0, 0.0, 0.5, 0.5],
                "pred": [0.0, 0.0, 0.5, 0.5 - error * generator.random()],
                "answer": "",
            }
            words = {"doc_id": n, "target": "?", "filtered_resps": ["?"], "input": "?", "group": f"i{n // 2}"}
            lines.append({**words, **dict.fromkeys(names, entry)})
        folder = tmp_path / name
        folder.mkdir()
        files.append(folder / "20260101_000000_results.json")
        listed = [{"metric": metric, "aggregation": f"<function {own} at 0x0>"} for metric, own in names.items()]
        overlaps = [line["refcoco_IoU"]["pred"][3] / 0.5 for line in lines]
        values = {"refcoco_IoU,none": sum(overlaps) / 80, "refcoco_ACC@0.5,none": 1.0}
        config = {"metric_list": listed, "process_results": "refcoco_bbox_rec_process_result"}
        files[-1].write_text(json.dumps({"configs": {task: config}, "results": {task: values}}))
        log = folder / f"20260101_000000_samples_{task}.jsonl"
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(module, "_CALLS", 250)
    made = by_name(stock_scores(*map(read_run, files)))
    iou = made[task, "refcoco_IoU", ""]
    assert iou.why == "" and iou.resamples == 250 and iou.clusters == 40 and not iou.note
    assert iou.low < iou.difference < iou.high and 0.05 < iou.difference < 0.15
    assert made[task, "refcoco_ACC@0.5", ""].why == "no cluster differs"
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    slow = by_name(stock_scores(*map(read_run, files)))[task, "refcoco_IoU", ""]
    assert "one call of its aggregation takes" in slow.why and slow.difference == pytest.approx(iou.difference)


# --- the interval -----------------------------------------------------------------------------------------------------


def mean_of(differences: list[float]) -> Summed:
    ones = np.ones(len(differences))
    totals = np.stack([np.stack([np.zeros(len(ones)), ones], -1), np.stack([np.array(differences), ones], -1)])
    return Summed(totals, lambda s: s[..., 0] / s[..., 1])


def test_few_clusters_widen_the_interval_as_students_t_does() -> None:
    values = [*np.random.default_rng(0).normal(size=8)]
    low, high = paired_interval(mean_of(values), np.random.default_rng(0), resamples=40_000)
    error = np.std(values, ddof=1) / np.sqrt(8)
    assert (high - low) / 2 == pytest.approx(2.365 * error, rel=0.1)
    resampled = module.resampled_differences(mean_of(values), np.random.default_rng(0), 40_000)
    plain = np.subtract(*np.quantile(resampled, [0.975, 0.025]))
    assert plain < 0.85 * (high - low)


def test_a_cluster_that_is_drawn_twice_counts_twice() -> None:
    resampled = module.resampled_differences(mean_of([0.0, 1.0]), np.random.default_rng(0), 4000)
    values, counts = np.unique(resampled, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert (counts / 4000).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_no_interval_of_one_value_or_of_nothing() -> None:
    with pytest.raises(NoIntervalError, match="one difference"):
        paired_interval(mean_of([0.1] * 10), np.random.default_rng(0), resamples=100)
    sometimes = replace(mean_of([0.1, 0.2]), value=lambda s: np.where(s[..., 0] > 0.35, np.nan, s[..., 0]))
    with pytest.raises(NoIntervalError, match="no document"):
        paired_interval(sometimes, np.random.default_rng(0), resamples=100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("mmstar", "average"),
        ("mmbench_en_dev_static", "gpt_eval_score"),
        ("mmbench_cn_dev_static", "gpt_eval_score"),
        ("mme", "mme_perception_score"),
        ("mmmu_val", "mmmu_acc"),
        ("gqa", "exact_match"),
        ("pope", "pope_f1_score"),
        ("realworldqa", "exact_match"),
        ("seedbench_2_plus", "seedbench_2_plus_Chart"),
    ],
)
def test_nineteen_of_twenty_intervals_hold_the_true_difference(task: str, metric: str) -> None:
    """Of samples from invented populations; with 200 samples 0.95 shows as 0.905 to 0.985 in 199 of 200 tests."""
    size = 60 if task == "mmmu_val" else 150
    population = summed(task, metric, invented(task, 300 if task == "mmmu_val" else 3000, np.random.default_rng(1)))
    right, count, _ = held(population, size, 200, expanded)
    assert count > 150 and 0.9 <= right / count <= 0.99


def test_intervals_are_paired() -> None:
    """Runs that rise and fall together are told apart where two samples on their own are not."""
    population = summed("gqa", "exact_match", invented("gqa", 400, np.random.default_rng(0)))
    low, high = paired_interval(population, np.random.default_rng(0), resamples=2000)
    other = drawn_from(population, 400, np.random.default_rng(5))
    apart = replace(population, totals=np.stack([population.totals[0], other.totals[1]]))
    wide = paired_interval(apart, np.random.default_rng(0), resamples=2000)
    assert high - low < 0.7 * (wide[1] - wide[0])


# --- where it is handed on --------------------------------------------------------------------------------------------


def test_a_comparison_has_them_and_its_json(runs: tuple[Run, Run]) -> None:
    done = compare_runs(runs[0].only(["pope"]), runs[1].only(["pope"]), ("plain", "merged"))
    rows = done.to_dict()["stock"]
    assert [row["metric"] for row in rows] == [score.metric for score in done.stock] and len(rows) == 5
    assert "stock" not in done.to_dict(stock=False)
    assert stock_table(done.stock)["difference"].tolist() == [score.difference for score in done.stock]
