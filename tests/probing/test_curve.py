"""An accuracy curve: its table, its intervals, its file, and tables that are none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from plam_eval import table_files
from plam_eval.probing.curve import OVERALL, Curve, CurveError
from plam_eval.probing.plateau import find_plateau
from tests.helpers.curves import curve, rows, three_stages


def test_table_columns_and_the_mean_over_tasks() -> None:
    frame = pd.concat(
        [
            rows(three_stages, tasks=["mme"], documents=200).assign(metric="accuracy"),
            rows(lambda cut: 0.5, tasks=["gqa"], documents=100).assign(metric="exact_match", parsable=None),
        ]
    )
    frame.loc[(frame["task"] == "mme") & (frame["cut"] == 0) & (frame["doc_id"] < 50), "parsable"] = False
    frame.loc[(frame["task"] == "gqa") & (frame["cut"] == 0) & (frame["doc_id"] == 0), "kl"] = 9.0
    table = Curve(frame, 8).table()
    assert table["task"].tolist() == ["gqa"] * 9 + ["mme"] * 9 + [OVERALL] * 9
    assert table.columns.tolist() == [
        *("task", "cut", "n", "metric", "accuracy", "low", "high"),
        *("difference", "difference_low", "difference_high", "parsable", "kl", "kl_median"),
    ]
    at = table.set_index(["task", "cut"])
    assert at.loc[("mme", 3), ["n", "metric", "accuracy", "parsable"]].tolist() == [200, "accuracy", 0.45, 1.0]
    assert at.loc[("mme", 0), "parsable"] == 0.75
    assert math.isnan(at.loc[("gqa", 0), "parsable"])
    assert at.loc[("gqa", 0), ["kl", "kl_median"]].tolist() == pytest.approx([2.0 + 7.0 / 100, 2.0])
    assert at.loc[(OVERALL, 3), ["n", "metric"]].tolist() == [300, "mean over tasks"]
    assert at.loc[(OVERALL, 3), "accuracy"] == pytest.approx((0.45 + 0.5) / 2)
    assert at.loc[(OVERALL, 0), "parsable"] == 0.75
    assert at.loc[(OVERALL, 3), "difference"] == pytest.approx((0.45 - 0.7) / 2)
    assert at.loc[(OVERALL, 8), ["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    assert table["low"].ge(0).all() and table["high"].le(1).all()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    frame = rows(three_stages, tasks=["mme", "gqa"], noise=0.1)
    frame["doc_id"] = frame["doc_id"].map("{:03d}".format).replace("007", "NA")  # text that a reader may take for more
    frame["score"] = frame["score"] * 0.1 + 0.7
    frame["parsable"] = np.where(frame["task"] == "gqa", None, frame["score"] > 0.75)
    frame["group"] = np.where(frame["task"] == "mme", frame["doc_id"].str[:2], None)
    frame["answer"] = 'A, "so"\n'
    made = Curve(frame, 8)
    back = Curve.read(made.write(tmp_path / f"curve.{suffix}"))
    pd.testing.assert_frame_equal(made.samples, back.samples)
    assert "answer" not in back.samples
    assert (back.num_layers, back.digest()) == (8, made.digest())
    assert find_plateau(back) == find_plateau(made)


@pytest.mark.parametrize("column", ["num_layers", "score"])
def test_columns_of_lists_are_told(tmp_path: Path, column: str) -> None:
    curve(three_stages).write(tmp_path / "curve.parquet")
    samples = pd.read_parquet(tmp_path / "curve.parquet")
    samples[column] = [[1]] * len(samples)
    samples.to_parquet(tmp_path / "curve.parquet")
    with pytest.raises(CurveError, match=column):
        Curve.read(tmp_path / "curve.parquet")


def test_a_small_file_of_many_rows_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "_MOST_ROWS", 10)
    curve(three_stages).write(tmp_path / "curve.parquet")
    with pytest.raises(CurveError, match=r"cannot be read: .* rows, of 10 at most"):
        Curve.read(tmp_path / "curve.parquet")


def test_other_suffixes_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found suffix '.txt', expected .csv or .parquet"):
        curve(three_stages).write(tmp_path / "curve.txt")
    for name in ("absent.csv", "absent.parquet"):
        with pytest.raises(CurveError, match=f"{name}.*\n.*cannot be read"):
            Curve.read(tmp_path / name)
    (tmp_path / "table.csv").write_text(curve(three_stages).table().to_csv(index=False))
    with pytest.raises(CurveError, match="expected the scores per document that it was made from"):
        Curve.read(tmp_path / "table.csv")
    rows(three_stages).to_csv(tmp_path / "bare.csv", index=False)
    with pytest.raises(CurveError, match="num_layers: found no such column"):
        Curve.read(tmp_path / "bare.csv")


def test_a_task_has_the_same_interval_alone_and_among_others() -> None:
    made = curve(three_stages, tasks=["b", "a"], noise=0.05)
    table = made.table()
    alone = made.only(["a"]).table()
    pd.testing.assert_frame_equal(table[table["task"] == "a"], alone[alone["task"] == "a"], check_index_type=False)
    with pytest.raises(ValueError, match="no task c in this curve; it has a, b"):
        made.only(["a", "c"])


# Intervals


@pytest.mark.parametrize(("right", "total"), [(0, 20), (1, 20), (7, 50), (120, 120), (299, 300)])
def test_accuracy_intervals_are_those_of_clopper_and_pearson(right: int, total: int) -> None:
    made = curve(lambda cut: right / total, layers=1, documents=total, resamples=40_000)
    row = made.table().iloc[0]
    exact = stats.binomtest(right, total).proportion_ci(0.95, method="exact")
    assert (row["low"], row["high"]) == pytest.approx((exact.low, exact.high), abs=0.06 / math.sqrt(total))


def test_equal_answers_leave_the_rule_of_three() -> None:
    row = curve(lambda cut: 0.5, layers=1, documents=100, resamples=40_000).table(confidence=0.9).iloc[0]
    assert row["difference"] == 0
    assert row["difference_low"] == pytest.approx(-(1 - 0.05 ** (1 / 100)), rel=0.03)
    assert row["difference_high"] == pytest.approx(1 - 0.05 ** (1 / 100), rel=0.03)


def test_intervals_are_paired() -> None:
    # 300 documents of which half are right everywhere: their spread is that of accuracy, not of the difference.
    row = curve(lambda cut: {0: 0.4}.get(cut, 0.5), layers=1, documents=300, resamples=20_000).table().iloc[0]
    lost = stats.binomtest(30, 300).proportion_ci(0.95, method="exact")
    assert row["difference_low"] == pytest.approx(-lost.high, abs=0.004)
    assert row["difference_high"] == pytest.approx(-lost.low, abs=0.008)
    assert row["high"] - row["low"] > 1.5 * (row["difference_high"] - row["difference_low"])


def test_groups_widen_intervals_by_what_they_share() -> None:
    frame = rows(lambda cut: 0.5, layers=1, documents=400)
    alone, paired = Curve(frame, 1).table().iloc[0], Curve(frame.assign(group=frame["doc_id"] // 4), 1).table().iloc[0]
    # Answers are ordered by document, so the four of a group agree: a quarter of the documents, twice the width.
    assert paired["high"] - paired["low"] == pytest.approx(2 * (alone["high"] - alone["low"]), rel=0.05)


def test_scores_between_0_and_1() -> None:
    rng = np.random.default_rng(0)
    frame = rows(three_stages, documents=500).assign(score=lambda f: rng.beta(2, 2, len(f)))
    row = Curve(frame, 8).table().iloc[0]
    scores = frame.loc[frame["cut"] == 0, "score"]
    student = stats.t.interval(0.95, 499, scores.mean(), scores.sem())
    assert row["accuracy"] == pytest.approx(scores.mean())
    assert (row["low"], row["high"]) == pytest.approx(student, abs=0.004)


def test_bounds_cover_the_true_difference() -> None:
    # Each task is one experiment: hiding the image turns a tenth of the answers wrong and a twentieth right, so that
    # in truth P(right) goes from 0.8 to 0.95 * 0.9 * 0.8 + 0.05 = 0.734.
    experiments, documents = 800, 150
    rng = np.random.default_rng(0)
    unmasked = rng.random((experiments, documents)) < 0.8
    masked = (unmasked & (rng.random(unmasked.shape) > 0.1)) | (rng.random(unmasked.shape) < 0.05)
    parts = [
        {"task": f"t{task}", "cut": cut, "score": score[task].astype(float)}
        for task in range(experiments)
        for cut, score in enumerate((masked, unmasked))
    ]
    frame = pd.concat([pd.DataFrame(part).assign(doc_id=range(documents)) for part in parts], ignore_index=True)
    table = Curve(frame.assign(parsable=True, kl=0.0), 1, resamples=500).table(confidence=0.9)  # 5 % on either side
    at = table[(table["cut"] == 0) & (table["task"] != OVERALL)]
    spread = 3 * math.sqrt(0.05 * 0.95 / experiments)
    for beyond in (at["difference_low"] > 0.734 - 0.8, at["difference_high"] < 0.734 - 0.8):
        assert 0.01 < beyond.mean() < 0.05 + spread


# Tables that are no curve


def problems(frame: pd.DataFrame, layers: Any = 8) -> list[str]:
    with pytest.raises(CurveError) as error:
        Curve(frame, layers)
    assert all(problem in str(error.value) for problem in error.value.problems)
    return error.value.problems


def _set(frame: pd.DataFrame, column: str, value: Any, *, doc: int = 3, cut: int = 2) -> pd.DataFrame:
    changed = frame.astype({column: object})
    changed.loc[(changed["doc_id"] == doc) & (changed["cut"] == cut), column] = value
    return changed


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("score", 1.5, "outside 0..1"),
        ("score", -0.1, "outside 0..1"),
        ("score", float("nan"), "missing or outside 0..1"),
        ("score", "right", "missing or outside 0..1"),
        ("kl", float("nan"), "missing, infinite or below 0"),
        ("kl", float("inf"), "missing, infinite or below 0"),
        ("kl", -0.5, "missing, infinite or below 0"),
        ("parsable", 0.5, "neither true, false nor missing"),
        ("cut", 2.5, "no whole number from 0 to 8"),
        ("cut", 9, "no whole number from 0 to 8"),
        ("cut", None, "no whole number from 0 to 8"),
        ("task", None, "no task, doc_id or metric"),
        ("task", "overall", "'overall'"),
    ],
)
def test_single_faults(column: str, value: Any, said: str) -> None:
    found = problems(_set(rows(three_stages), column, value))
    assert any(said in problem for problem in found)
    if column != "parsable":
        assert "1 row(s)" in next(problem for problem in found if said in problem)


def test_rounding_below_zero_is_no_fault() -> None:
    made = Curve(_set(rows(three_stages), "kl", -1e-7), 8)
    assert made.samples["kl"].min() == 0


def test_missing_cuts_documents_and_columns() -> None:
    frame = rows(three_stages)
    assert "no column score, kl; found" in problems(frame.drop(columns=["score", "kl"]))[0]
    assert "no rows" in problems(frame.iloc[:0])[0]
    assert "no cut 8, the unmasked model" in problems(frame[frame["cut"] < 8])[0]
    assert "only cut 8" in problems(frame[frame["cut"] == 8])[0]
    (lacks,) = problems(frame[(frame["doc_id"] != 3) | ~frame["cut"].isin([2, 5])])
    assert lacks == "1 document(s) not scored at every cut; the first: document 3 of pope lacks 2, 5"
    (twice,) = problems(pd.concat([frame, frame[(frame["doc_id"] == 3) & (frame["cut"] == 2)]]))
    assert "1 row(s) with a task, doc_id and cut that an earlier row has" in twice
    (unmasked,) = problems(_set(frame, "kl", 0.1, cut=8))
    assert "kl above 0.0001 at cut 8" in unmasked
    (group,) = problems(_set(frame.assign(group="a"), "group", "b"))
    assert "group: more than one for 1 doc_id(s)" in group
    (metric,) = problems(_set(frame.assign(metric="a"), "metric", "b"))
    assert "metric: more than one for 1 task(s); the first: pope" in metric


@pytest.mark.parametrize("layers", [0, True, 8.0, None, "8"])
def test_num_layers_is_a_number_of_layers(layers: Any) -> None:
    assert "num_layers: found" in problems(rows(three_stages), layers)[0]


def test_all_faults_are_told_at_once() -> None:
    frame = _set(_set(_set(rows(three_stages), "score", 2.0), "kl", -1.0), "parsable", "maybe")
    found = problems(frame[frame["cut"] < 8])
    assert [any(word in problem for problem in found) for word in ("score", "kl", "parsable", "no cut 8")] == [True] * 4
