"""The share of a loss that comes back."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from plam_eval.evaluation import stats
from plam_eval.evaluation.premise.restored import Restored, restored


def samples(right: dict[str, list[float]], in_group: int = 1) -> pd.DataFrame:
    rows = [
        {"task": task, "doc_id": number, "group": f"{number // in_group}", "score": score, "parsable": None}
        for task, scores in right.items()
        for number, score in enumerate(scores)
    ]
    return pd.DataFrame(rows)


def shares(first: pd.DataFrame, second: pd.DataFrame, third: pd.DataFrame, sign: int = 1) -> dict[str, Restored]:
    directions = dict.fromkeys(first["task"].unique(), sign)
    lost = stats.compare(first, second, directions=directions)
    return {row.task: row for row in restored(first, second, third, lost, directions)}


def test_the_share_is_what_comes_back_of_what_was_lost():
    """40 of 100 lost, 10 of them come back."""
    base, mllm, merged = ([1.0] * right + [0.0] * (100 - right) for right in (90, 50, 60))
    one = shares(samples({"a": base}), samples({"a": mllm}), samples({"a": merged}))["overall"]
    assert one.share == pytest.approx(0.25) and one.why == ""
    assert 0 < one.low < 0.25 < one.high < 0.5


def test_of_a_mean_over_tasks_it_is_the_ratio_of_the_means():
    base = samples({"a": [1.0] * 40, "b": [1.0] * 40})
    mllm = samples({"a": [0.0] * 40, "b": [0.0] * 20 + [1.0] * 20})
    merged = samples({"a": [0.0] * 30 + [1.0] * 10, "b": [0.0] * 20 + [1.0] * 20})
    by_task = shares(base, mllm, merged)
    assert by_task["a"].share == pytest.approx(0.25) and by_task["b"].share == 0
    assert by_task["overall"].share == pytest.approx(0.125 / 0.75)


def test_there_is_none_where_no_loss_is_shown():
    same = samples({"a": [1.0] * 20 + [0.0] * 20})
    better = samples({"a": [1.0] * 40})
    none, gained = shares(same, same, better)["overall"], shares(same, better, better)["overall"]
    assert math.isnan(none.share) and math.isnan(none.low) and "no loss is shown" in none.why
    assert math.isnan(gained.share) and "not lower" in gained.why


def test_where_lower_is_better_a_loss_is_a_rise():
    base, mllm, merged = (samples({"a": [value] * 30 + [0.1] * 10}) for value in (0.2, 0.6, 0.4))
    assert shares(base, mllm, merged, sign=-1)["overall"].share == pytest.approx(0.5)


def test_an_end_is_open_where_resamples_lose_their_loss():
    """Few clusters: the loss is shown by McNemar's test over 6 documents, and hangs on them."""
    base = samples({"a": [1.0] * 6 + [0.0] * 400})
    mllm = samples({"a": [0.0] * 406})
    merged = samples({"a": [1.0] * 3 + [0.0] * 403})
    one = shares(base, mllm, merged)["overall"]
    assert one.share == pytest.approx(0.5) and one.low < 0.5 < one.high


def test_a_merge_that_changes_no_answer_leaves_the_share_open():
    """One unseen document might come back: of 100 documents 40 are lost, none comes back, and it weighs up to 3.6 %."""
    base, mllm = ([1.0] * right + [0.0] * (100 - right) for right in (90, 50))
    first, second = samples({"a": base, "b": base}), samples({"a": mllm, "b": mllm})
    by_task = shares(first, second, second)
    weight = 1 - 0.025 ** (1 / 100)
    assert by_task["a"].share == 0 and by_task["a"].low == pytest.approx(-weight / 0.4, rel=0.25)
    assert by_task["a"].high == pytest.approx(weight / 0.4, rel=0.25)
    assert 0 < by_task["overall"].high < by_task["a"].high, "one unseen document counts in the mean over tasks, too"


@pytest.mark.slow
def test_intervals_hold_where_documents_come_in_few_clusters():
    """100 draws of 15 scenes of four questions each; without an unseen document 88 % of such intervals hold."""
    generator, held, given = np.random.default_rng(7), 0, 0
    for _ in range(100):
        scenes = np.repeat(generator.random((3, 15)), 4, axis=1)
        luck = np.where(generator.random((3, 60)) < 0.5, scenes, generator.random((3, 60)))
        luck[1:] = np.where(generator.random((2, 60)) < 0.6, luck[0], luck[1:])
        first, second, third = (
            samples({"a": (row < rate).astype(float).tolist()}, in_group=4)
            for row, rate in zip(luck, (0.9, 0.6, 0.7), strict=True)
        )
        one = restored(first, second, third, stats.compare(first, second, resamples=200), {"a": 1}, resamples=1000)[-1]
        if not one.why:
            given += 1
            held += one.low <= 1 / 3 <= one.high
    assert given > 80 and held / given >= 0.94


@pytest.mark.slow
def test_intervals_hold_as_often_as_they_say():
    """300 draws of 150 documents, of which base, MLLM and merge know 80, 50 and 60 in a hundred, not independently."""
    generator, held, given = np.random.default_rng(7), 0, 0
    for _ in range(300):
        luck = generator.random((3, 150))
        luck[1:] = np.where(generator.random((2, 150)) < 0.6, luck[0], luck[1:])
        base, mllm, merged = (
            (row < rate).astype(float).tolist() for row, rate in zip(luck, (0.8, 0.5, 0.6), strict=True)
        )
        first, second, third = samples({"a": base}), samples({"a": mllm}), samples({"a": merged})
        lost = stats.compare(first, second, resamples=200)
        one = restored(first, second, third, lost, {"a": 1}, resamples=1000)[-1]
        if not one.why:
            given += 1
            held += one.low <= 1 / 3 <= one.high
    assert given > 290 and 0.91 <= held / given <= 0.99
