"""Columns compared at once are compared as one by one: means over tasks, intervals, p by cluster."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from plam_eval.bootstrap import Floats
from plam_eval.evaluation import stats
from plam_eval.evaluation.attend import paired
from plam_eval.evaluation.attend.paired import Documents, differences, levels, standardised


def documents(**tasks: int) -> Documents:
    """So many documents of each task, two of each image."""
    keys = [
        {"task": task, "doc_id": number, "cluster": f"image{number // 2}"}
        for task, count in tasks.items()
        for number in range(count)
    ]
    return Documents(pd.DataFrame(keys))


def by_cluster(own: Documents, values: Floats) -> Floats:
    return np.array(pd.DataFrame(values).groupby(own.cluster).sum())


def null(own: Documents, columns: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Shares of two settings that differ by chance alone, alike within an image."""
    draw = np.random.default_rng(seed)
    images = int(own.cluster.max()) + 1
    level = 0.3 + 0.1 * draw.random((images, columns))[own.cluster] + own.task[:, None] * 0.2
    first, second = (
        level + draw.normal(0, 0.03, (images, columns))[own.cluster] + draw.normal(0, 0.01, level.shape)
        for _ in range(2)
    )
    return first, second


@pytest.mark.parametrize("count", [12, 24, 60])
def test_p_is_that_of_sign_flips_of_clusters(count: int) -> None:
    own = documents(gqa=count)
    first, second = null(own, 6)
    second = second + np.array([0, 0.01, 0.02, -0.02, 0.05, -0.05])
    p = differences(own, first, second).p
    expected = [stats.sign_flip(column) for column in by_cluster(own, second - first).T]
    assert p == pytest.approx(expected, abs=0 if count // 2 <= 13 else 0.02)
    assert p.min() < 0.05


def test_one_task_has_the_interval_that_runs_have() -> None:
    own = documents(gqa=80)
    first, second = null(own, 1)
    frames = [
        own.keys.rename(columns={"cluster": "group"}).assign(score=side[:, 0], parsable=True)
        for side in (first, second + 0.02)
    ]
    (expected, _) = stats.compare(*frames)
    measured = differences(own, first, second + 0.02)
    found = measured.difference
    assert (found.documents[0], found.clusters[0], found.tasks[0]) == (80, 40, 1)
    assert measured.first[0] == pytest.approx(expected.first) and measured.second[0] == pytest.approx(expected.second)
    assert found.value[0] == pytest.approx(expected.difference)
    assert found.low[0] == pytest.approx(expected.low, abs=0.001)
    assert found.high[0] == pytest.approx(expected.high, abs=0.001)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("tasks", [{"gqa": 40}, {"gqa": 60, "pope": 16}])
def test_nothing_is_found_in_one_of_twenty_comparisons_of_nothing(relative: bool, tasks: dict[str, int]) -> None:
    own = documents(**tasks)
    first, second = null(own, 1000)
    measured = differences(own, first, second, np.full(first.shape, 0.2) if relative else None)
    assert 0.03 < np.mean(measured.p < 0.05) < 0.07
    inside = (measured.difference.low <= 0) & (measured.difference.high >= 0)
    assert 0.93 < inside.mean() < 0.975
    # An interval is what the test does not reject, but for the draws of both.
    assert np.mean(inside == (measured.p >= 0.05)) > 0.98


@pytest.mark.parametrize("relative", [False, True])
def test_intervals_hold_a_true_difference_that_tasks_have_alike(relative: bool) -> None:
    own = documents(gqa=60, pope=16, mme=30)
    first, second = null(own, 500)
    larger = 1.2 * second if relative else second + 0.1
    found = differences(own, first, larger, np.full(first.shape, 0.2) if relative else None).difference
    true = np.log(1.2) if relative else 0.1
    assert 0.92 < np.mean((found.low <= true) & (true <= found.high)) < 0.98


def test_a_mean_has_an_interval_that_tasks_of_other_levels_do_not_widen() -> None:
    own = documents(gqa=60, pope=60)
    values: Floats = null(own, 300)[0] - own.task[:, None] * 0.2
    apart: Floats = values + own.task[:, None] * 5.0
    same, other = levels(own, values), levels(own, apart)
    assert other.value == pytest.approx(same.value + 2.5)
    assert other.high - other.low == pytest.approx(same.high - same.low)
    assert 0.92 < np.mean((same.low <= 0.35) & (same.high >= 0.35)) < 0.98


def test_clusters_count_and_not_documents() -> None:
    one = documents(gqa=40)
    single = one.only(np.arange(40) % 2 == 0)
    first, second = null(single, 4)
    second = second + 0.015
    alone = differences(single, first, second)
    twice = differences(one, np.repeat(first, 2, 0), np.repeat(second, 2, 0))
    assert twice.p == pytest.approx(alone.p)
    assert twice.difference.low == pytest.approx(alone.difference.low)
    taken_singly = Documents(one.keys.assign(cluster=[f"image{number}" for number in range(40)]))
    assert (differences(taken_singly, np.repeat(first, 2, 0), np.repeat(second, 2, 0)).p < alone.p).all()


def test_images_of_two_tasks_are_not_one_cluster() -> None:
    own = documents(gqa=12, pope=12)
    assert differences(own, *null(own, 1)).difference.clusters.tolist() == [12]


def test_every_task_counts_the_same() -> None:
    own = documents(gqa=90, pope=10)
    first = np.where(own.task == 0, 0.5, 0.2)[:, None]
    second = np.where(own.task == 0, 0.5, 0.4)[:, None]
    assert differences(own, first, second).difference.value == pytest.approx([0.1])
    ratios = differences(own, first, second, np.full(first.shape, 0.1))
    assert ratios.difference.value == pytest.approx([np.log(2) / 2])
    assert ratios.first == pytest.approx([(np.log(5) + np.log(2)) / 2])


def test_a_ratio_is_of_means_and_takes_documents_without_anything_in_their_boxes() -> None:
    own = documents(gqa=40)
    first, second = null(own, 1)
    first[:7], second[3:9] = 0.0, 0.0
    chance = 0.1 + 0.1 * np.random.default_rng(1).random(first.shape)
    measured = differences(own, first, second, chance)
    assert measured.first == pytest.approx(np.log(first.mean(0) / chance.mean(0)))
    assert measured.difference.value == pytest.approx(np.log(second.mean(0) / first.mean(0)))
    assert np.isfinite([measured.difference.low, measured.difference.high, measured.p]).all()
    nothing = differences(own, first, np.zeros(first.shape), chance)
    assert np.isnan(nothing.difference.value).all() and np.isnan(nothing.p).all()


def test_documents_without_a_value_are_left_out_of_their_column_alone() -> None:
    own = documents(gqa=40, pope=20)
    first, second = null(own, 3)
    first[5:15, 1], second[10:30, 1] = np.nan, np.nan
    second[own.task == 1, 2] = np.nan
    whole = differences(own, first, second)
    for column in range(3):
        kept = ~np.isnan(first[:, column] * second[:, column])
        sides = [side[kept][:, [column]] for side in (first, second)]
        alone = differences(own.only(kept), *sides)
        for name, mine in zip(
            ("value", "low", "high", "documents", "clusters", "tasks"), alone.difference, strict=True
        ):
            assert getattr(whole.difference, name)[column] == pytest.approx(mine[0]), name
        assert whole.first[column] == pytest.approx(alone.first[0])
        # Signs are drawn for all clusters: those without a value take some and add nothing.
        assert whole.p[column] == pytest.approx(alone.p[0], abs=0.02)
    assert whole.difference.documents.tolist() == [60, 35, 40]
    assert whole.difference.tasks.tolist() == [2, 2, 1]
    empty = differences(own, np.full((60, 1), np.nan), second[:, :1])
    assert np.isnan(empty.difference.value).all() and empty.difference.documents.tolist() == [0]


def test_the_order_of_documents_says_nothing() -> None:
    own = documents(gqa=40, pope=20)
    first, second = null(own, 2)
    order = np.random.default_rng(3).permutation(60)
    inverse = Documents(own.keys.iloc[order].reset_index(drop=True))
    here, there = differences(own, first, second), differences(inverse, first[order], second[order])
    assert there.difference.value == pytest.approx(here.difference.value)
    assert there.p == pytest.approx(here.p, abs=0.02)


@pytest.mark.parametrize(("count", "shown"), [(10, False), (12, True)])
def test_too_few_clusters_show_nothing(count: int, shown: bool) -> None:
    own = documents(gqa=count)
    first, second = null(own, 1)
    measured = differences(own, first, second + 1)
    assert (measured.p < 0.05).all() == shown
    assert np.isfinite(measured.difference.low).all() == shown
    assert np.isfinite(levels(own, first).low).all() == shown


def test_one_document_has_a_difference_and_nothing_else() -> None:
    own = documents(gqa=1)
    measured = differences(own, np.array([[0.2]]), np.array([[0.5]]))
    assert measured.difference.value == pytest.approx([0.3]) and measured.p.tolist() == [1.0]
    assert np.isnan(measured.difference.low).all()
    assert np.isnan(standardised(own, np.array([[0.2]]), np.array([[0.5]]), relative=False)).all()


@pytest.mark.parametrize("relative", [False, True])
def test_standardised_is_the_mean_over_its_standard_error(relative: bool) -> None:
    own = documents(gqa=400)
    first, second = null(own, 3)
    second = second + np.array([0, 0.01, -0.03])
    second[:, 0] = first[:, 0]
    zero, small, large = standardised(own, first, second, relative=relative)
    assert zero == 0 and 0 < small < -large
    sums = by_cluster(own, second - first)[:, 1]
    expected = sums.sum() / np.sqrt(len(sums) * sums.var(ddof=1))
    assert small == pytest.approx(expected)


def test_all_patterns_of_signs_are_tried_where_they_are_few(monkeypatch: Any) -> None:
    own = documents(gqa=24)
    first, second = null(own, 5)
    exact = differences(own, first, second + 0.01).p
    monkeypatch.setattr(paired, "_EXACT", 3)
    drawn = differences(own, first, second + 0.01).p
    assert drawn == pytest.approx(exact, abs=0.02) and not np.array_equal(drawn, exact)
