from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from plam_eval.bootstrap import Reweighted, halves, mean_over_tasks, reweighted
from plam_eval.probing.curve import Curve


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _scores(documents: int, columns: int = 2) -> np.ndarray:
    return (np.random.default_rng(1).random((documents, columns)) < 0.7).astype(float)


def test_shapes_and_the_mean_of_copies() -> None:
    scores, group = _scores(200), np.arange(200) // 2
    made = reweighted(scores, group, 4000, _rng())
    assert made.means.shape == (4000, 2) and made.unseen.shape == (4000,)
    assert made.means.mean(axis=0) == pytest.approx(scores.mean(axis=0), abs=0.005)
    assert made.unseen.mean() == pytest.approx(1 / 101, rel=0.05)  # one group of 101


def test_every_column_has_the_same_weights() -> None:
    scores = _scores(50, 1)
    made = reweighted(np.column_stack([scores, scores + 0.25]), np.arange(50), 100, _rng())
    assert made.means[:, 1] - made.means[:, 0] == pytest.approx(np.full(100, 0.25))


def test_draws_in_parts_are_those_of_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, group = _scores(30), np.arange(30)
    whole = reweighted(scores, group, 100, _rng())
    monkeypatch.setattr("plam_eval.bootstrap._CHUNK", 31 * 7)
    parts = reweighted(scores, group, 100, _rng())
    assert parts.means == pytest.approx(whole.means) and parts.unseen == pytest.approx(whole.unseen)


@pytest.mark.parametrize(("unseen_documents", "counts"), [(None, 5), (1, 1), (10, 10)])
def test_size_of_the_unseen_group(unseen_documents: float | None, counts: int) -> None:
    group = np.arange(500) // 5
    made = reweighted(_scores(500), group, 20_000, _rng(), unseen_documents=unseen_documents)
    weights = _rng().standard_exponential((20_000, 101))
    extra = counts * weights[:, -1]
    assert made.unseen == pytest.approx(extra / (5 * weights[:, :-1].sum(axis=1) + extra))


def test_enlarged_is_a_larger_unseen_group() -> None:
    group = np.arange(120) // 3
    one, four = (reweighted(_scores(120), group, 50, _rng(), unseen_documents=n) for n in (1, 4))
    assert one.enlarged(4).unseen == pytest.approx(four.unseen)
    assert np.array_equal(one.enlarged(4).means, four.means)
    assert one.enlarged(1).unseen == pytest.approx(one.unseen)


def test_halves_are_means_of_some_of_the_groups() -> None:
    scores, group = np.array([[1.0], [2.0], [4.0], [8.0]]), np.array([0, 0, 1, 2])
    made = halves(scores, group, 4000, _rng())
    seen = made.means[made.unseen == 0, 0]
    assert set(seen.round(9)) == {1.5, 4.0, 8.0, round(7 / 3, 9), round(11 / 3, 9), 6.0, 3.75}
    assert set(made.means[made.unseen == 1, 0]) == {3.75}  # no group: the mean of all, and it says nothing
    assert made.unseen.mean() == pytest.approx(1 / 8, abs=0.02)
    assert set(made.unseen) == {0, 1}
    assert made.with_unseen().lower(made.with_unseen().means, -1, 0.975)[0] == -1


def test_bounds_are_those_of_clopper_and_pearson() -> None:
    scores = np.repeat([1.0, 0.0], [45, 5])[:, None]
    made = reweighted(scores, np.arange(50), 40_000, _rng()).with_unseen()
    exact = stats.binomtest(45, 50).proportion_ci(0.95, method="exact")
    low, high = made.lower(made.means, 0, 0.975)[0], made.upper(made.means, 1, 0.975)[0]
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.004)


def test_mean_over_tasks_has_one_unseen_group_in_the_smallest() -> None:
    small, large = Reweighted(np.array([[0.4]]), np.array([0.2])), Reweighted(np.array([[0.8]]), np.array([0.1]))
    for order in (["small", "large"], ["large", "small"]):
        by_task = {name: {"small": small, "large": large}[name] for name in order}
        mean = mean_over_tasks(by_task, {"large": 9, "small": 4.5})
        assert mean.means[0, 0] == pytest.approx((0.4 * (1 - 0.2) + 0.8) / 2)
        assert mean.unseen[0] == pytest.approx(0.2 / 2)


def test_it_is_what_plateau_uses() -> None:
    tasks, parts = {"b": 40, "a": 60}, []
    for task, documents in tasks.items():
        scores = _scores(documents)
        groups = [f"g{n // 2}" for n in range(documents)]
        columns = {"task": task, "doc_id": [f"{n:02d}" for n in range(documents)], "group": groups}
        parts += [pd.DataFrame({**columns, "cut": cut, "score": scores[:, cut]}) for cut in (0, 1)]
    curve = Curve(pd.concat(parts, ignore_index=True).assign(kl=0.0, parsable=True), 1, resamples=500)
    table = curve.table().set_index(["task", "cut"])
    by_task = {
        task: reweighted(_scores(n), np.arange(n) // 2, 500, np.random.default_rng([0, *task.encode()]))
        for task, n in sorted(tasks.items())
    }
    for task, made in [*by_task.items(), ("overall", mean_over_tasks(by_task, {"a": 30, "b": 20}))]:
        seen = made if task == "overall" else made.with_unseen()
        assert table.loc[(task, 0), "low"] == pytest.approx(seen.lower(seen.means, 0, 0.975)[0])
        assert table.loc[(task, 0), "high"] == pytest.approx(seen.upper(seen.means, 1, 0.975)[0])
