from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from plam_eval.probing.plateau import (
    OVERALL,
    Curve,
    CurveError,
    Stages,
    chance,
    find_plateau,
    to_spec,
    what_can_be_found,
    write_spec,
)
from plam_eval.spec import SpecError, Weights, load_spec
from tests.helpers.paths import DOCS


def rows(
    accuracy: Callable[[int], float],
    *,
    layers: int = 8,
    documents: int = 400,
    tasks: Sequence[str] = ("pope",),
    cuts: Sequence[int] | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """A scan of right and wrong answers in which exactly round(accuracy(cut) * documents) are right, but for noise.

    Easy documents stay right as accuracy falls; `noise` is the share of answers that a cut turns round at random.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for task in tasks:
        for cut in range(layers + 1) if cuts is None else cuts:
            right = np.arange(documents) < round(accuracy(cut) * documents)
            if cut < layers:
                right ^= rng.random(documents) < noise
            kl = 0.0 if cut == layers else 2.0 * math.exp(-cut)
            parts.append({"task": task, "cut": cut, "score": right.astype(float), "kl": kl})
    frame = pd.concat([pd.DataFrame(part).assign(doc_id=range(documents)) for part in parts], ignore_index=True)
    return frame.assign(parsable=True)


def curve(accuracy: Callable[[int], float], *, layers: int = 8, resamples: int = 2000, **how: Any) -> Curve:
    return Curve(rows(accuracy, layers=layers, **how), layers, resamples=resamples)


def three_stages(cut: int) -> float:
    """Blind up to cut 2, as good as unmasked from cut 5 on."""
    return {3: 0.45, 4: 0.6}.get(cut, 0.3 if cut < 3 else 0.7)


# The stages of made-up curves


def test_three_clean_stages() -> None:
    found = find_plateau(curve(three_stages))
    assert (found.outcome, found.plateau, found.separation_end) == ("plateau", (5, 8), 2)
    assert (found.plateau_after, found.separation_before) == (4, 3)
    assert found.accuracy == {"unmasked": 0.7, "plateau": 0.7, "blind": 0.3}
    assert found.documents == {"pope": 400}
    assert found.warnings == ()


def test_a_step_has_no_layer_to_spare_between_the_stages() -> None:
    found = find_plateau(curve(lambda cut: 0.7 if cut >= 4 else 0.3))
    assert (found.separation_end, found.plateau) == (3, (4, 8))  # layer 3 alone brings the image in


def test_noise_below_the_margin_does_not_move_the_plateau() -> None:
    tasks = [f"task{n}" for n in range(9)]
    found = find_plateau(curve(three_stages, tasks=tasks, documents=200, noise=0.02))
    assert (found.plateau, found.separation_end) == ((5, 8), 2)


def test_a_loss_just_within_the_margin_is_accepted_only_with_documents_enough() -> None:
    def loses_one_percent(cut: int) -> float:
        return {0: 0.3, 8: 0.7}.get(cut, 0.69)

    assert find_plateau(curve(loses_one_percent, documents=3000)).plateau == (1, 8)
    few = find_plateau(curve(loses_one_percent, documents=300))
    assert (few.outcome, few.plateau) == ("too_few_documents", None)
    needed = int(few.reason.split("about ")[1].split()[0])
    assert find_plateau(curve(loses_one_percent, documents=2 * needed)).plateau == (1, 8)


def test_flat_curve_image_not_needed() -> None:
    found = find_plateau(curve(lambda cut: 0.6))
    assert (found.outcome, found.plateau, found.separation_end) == ("image_not_needed", None, None)
    assert "blind model (cut 0) is as good as" in found.reason


def test_blind_within_the_margin_locates_nothing_even_if_cuts_between_are_worse() -> None:
    found = find_plateau(curve(lambda cut: {0: 0.7, 8: 0.7}.get(cut, 0.5)))
    assert found.outcome == "image_not_needed"


def test_falling_curve_the_image_hurts() -> None:
    found = find_plateau(curve(lambda cut: 0.8 - 0.05 * cut))
    assert found.outcome == "image_not_needed"
    assert "better than the unmasked one" in found.reason


def test_better_before_the_end_is_a_plateau_with_a_warning() -> None:
    found = find_plateau(curve(lambda cut: 0.3 if cut < 3 else {5: 0.8}.get(cut, 0.7)))
    assert found.plateau == (3, 8)
    assert any("image hurts in late layers: cut 5 is better than unmasked by 0.100" in w for w in found.warnings)
    assert any("accuracy falls by 0.100 between cut 5 and cut 6" in w for w in found.warnings)


def test_non_monotone_curve_waits_for_the_last_dip() -> None:
    found = find_plateau(curve(lambda cut: 0.3 if cut < 3 else {5: 0.6}.get(cut, 0.7)))
    assert found.plateau == (6, 8)
    assert any("not monotone: cut(s) 3, 4 before 6 are within the margin too" in w for w in found.warnings)


def test_rising_to_the_end_has_no_plateau() -> None:
    found = find_plateau(curve(lambda cut: 0.3 + 0.05 * cut))
    assert (found.outcome, found.plateau) == ("image_used_to_the_end", None)
    assert "cut 7, the last evaluated before 8" in found.reason
    sparse = find_plateau(curve(lambda cut: 0.3 + 0.05 * cut, cuts=[0, 4, 8]))
    assert sparse.outcome == "image_used_to_the_end"
    assert "evaluate the cuts in between" in sparse.reason


@pytest.mark.parametrize("documents", [5, 40, 120])
def test_tiny_n_certifies_nothing_even_where_no_answer_changes(documents: int) -> None:
    found = find_plateau(curve(three_stages, documents=documents))
    assert (found.outcome, found.plateau) == ("too_few_documents", None)
    assert "at least 149 in each task are needed" in found.reason  # the rule of three: ln 0.05 / ln 0.98 = 148.3
    assert find_plateau(curve(three_stages, documents=170)).plateau == (5, 8)


def test_documents_of_all_tasks_count_together() -> None:
    tasks = [f"task{n}" for n in range(4)]
    assert find_plateau(curve(three_stages, documents=40, tasks=tasks)).plateau == (5, 8)  # 160 in all
    one_is_tiny = pd.concat([rows(three_stages, tasks=tasks[1:]), rows(three_stages, documents=10, tasks=tasks[:1])])
    found = find_plateau(Curve(one_is_tiny, 8))  # a quarter of the mean rests on 10 documents
    assert found.outcome == "too_few_documents"
    assert "at least 36 in each task are needed" in found.reason  # ln 0.05 / ln(1 - 4 * 0.02) = 35.9


def test_documents_of_one_image_count_once() -> None:
    frame = rows(three_stages, documents=200)
    assert find_plateau(Curve(frame, 8)).outcome == "plateau"
    pairs = Curve(frame.assign(group=frame["doc_id"] // 2), 8)
    assert (pairs.documents, pairs.groups) == ({"pope": 200}, {"pope": 100})
    assert find_plateau(pairs).outcome == "too_few_documents"


def test_an_image_gain_that_may_be_chance_locates_nothing() -> None:
    # Blind is not shown to be within the margin, nor to be worse at all.
    found = find_plateau(curve(lambda cut: {0: 0.59}.get(cut, 0.6), documents=200, noise=0.05))
    assert (found.outcome, found.plateau) in [("image_gain_not_shown", None), ("too_few_documents", None)]
    calm = rows(lambda cut: 0.6, documents=200)
    turned = calm["cut"].eq(0) & calm["doc_id"].isin([*range(8), *range(180, 186)])  # 8 lost, 6 gained
    calm.loc[turned, "score"] = 1 - calm.loc[turned, "score"]
    assert find_plateau(Curve(calm, 8)).outcome == "image_gain_not_shown"


def test_some_cuts_only_say_how_far_the_answer_resolves() -> None:
    found = find_plateau(curve(three_stages, cuts=[0, 2, 6, 8]))
    assert (found.plateau, found.plateau_after) == ((6, 8), 2)
    assert (found.separation_end, found.separation_before) == (2, 6)
    assert "cuts 3 to 5 were not evaluated: the plateau starts at one of them or at 6" in found.warnings
    assert "cuts 7 were not evaluated and are taken to be like their neighbours" in found.warnings


def test_without_cut_0() -> None:
    found = find_plateau(curve(three_stages, cuts=[3, 4, 5, 6, 7, 8]))
    assert (found.plateau, found.separation_end) == ((5, 8), None)
    assert "blind" not in found.accuracy
    assert any("cut 0 was not evaluated" in warning for warning in found.warnings)
    unseen = find_plateau(curve(three_stages, cuts=[5, 6, 7, 8]))
    assert (unseen.outcome, unseen.plateau) == ("rise_not_seen", None)


def test_a_task_that_loses_is_named_though_the_mean_does_not() -> None:
    late = rows(lambda cut: three_stages(cut) if cut in (0, 8) else three_stages(cut) - 0.1, tasks=["ocr"])
    others = rows(three_stages, tasks=[f"task{n}" for n in range(8)])
    found = find_plateau(Curve(pd.concat([late, others]), 8))
    assert found.plateau == (5, 8)  # 0.1 / 9 on the mean
    assert any(
        "single tasks are worse than unmasked by more than the margin: ocr (-0.100)" in w for w in found.warnings
    )


def test_kl_rule_is_a_second_opinion_only() -> None:
    frame = rows(three_stages)
    kl = {0: 1.0, 1: 0.5, 2: 0.001, 3: 0.1, 4: 0.01, 5: 0.004, 6: 0.003, 7: 0.001, 8: 0.0}
    made = Curve(frame.assign(kl=frame["cut"].map(kl)), 8)
    assert find_plateau(made).kl_cut == 6  # at cut 2 it is low, but does not stay so; at 6 it is the threshold itself
    assert find_plateau(made, kl_threshold=0.2).kl_cut == 2
    assert find_plateau(made, kl_threshold=0.0).kl_cut == 8
    assert find_plateau(made, kl_threshold=0.0).plateau == (5, 8)


@pytest.mark.parametrize("wrong", [{"margin": 0.0}, {"margin": 1.0}, {"confidence": 95}, {"kl_threshold": -1}])
def test_parameters_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: found"):
        find_plateau(curve(three_stages), **wrong)


# Properties

_accuracies = st.lists(st.integers(0, 20), min_size=4, max_size=7).map(lambda steps: [step / 20 for step in steps])


def _first(stages: Stages) -> int:
    """k as a number for every outcome that has one."""
    return {"image_not_needed": 0}.get(stages.outcome, stages.plateau[0] if stages.plateau else stages.num_layers)


@settings(max_examples=60, deadline=None)
@given(_accuracies, st.floats(0.01, 0.3), st.floats(0.01, 0.3), st.integers(30, 300), st.floats(0, 0.1))
def test_a_larger_margin_never_gives_a_later_plateau(
    levels: list[float], one: float, other: float, documents: int, noise: float
) -> None:
    made = curve(lambda cut: levels[cut], layers=len(levels) - 1, documents=documents, noise=noise, resamples=300)
    narrow, wide = (find_plateau(made, margin=margin) for margin in sorted((one, other)))
    assert _first(wide) <= _first(narrow)
    if narrow.plateau:
        assert wide.outcome in ("plateau", "image_not_needed")
    if narrow.plateau and wide.plateau and narrow.plateau == wide.plateau:
        assert narrow.separation_end is not None and wide.separation_end is not None
        assert narrow.separation_end <= wide.separation_end


@settings(max_examples=60, deadline=None)
@given(_accuracies, st.floats(0.6, 0.99), st.floats(0.6, 0.99), st.integers(30, 300))
def test_more_confidence_never_gives_an_earlier_plateau(
    levels: list[float], one: float, other: float, documents: int
) -> None:
    made = curve(lambda cut: levels[cut], layers=len(levels) - 1, documents=documents, resamples=300)
    loose, strict = (find_plateau(made, margin=0.05, confidence=confidence) for confidence in sorted((one, other)))
    assert _first(loose) <= _first(strict)


@settings(max_examples=60, deadline=None)
@given(_accuracies, st.integers(30, 300), st.floats(0, 0.1))
def test_stages_are_in_order_and_agree_with_the_table(levels: list[float], documents: int, noise: float) -> None:
    layers = len(levels) - 1
    made = curve(lambda cut: levels[cut], layers=layers, documents=documents, noise=noise, resamples=300)
    stages = find_plateau(made, margin=0.1)
    table = made.table(confidence=0.9).set_index(["task", "cut"]).loc[OVERALL]  # two-sided 90 %, one-sided 95 %
    within = table["difference_low"] > -0.1
    if stages.plateau:
        k = stages.plateau[0]
        assert within[k:].all() and not within[k - 1]
        assert stages.separation_end is not None
        assert 0 <= stages.separation_end < k < layers
    else:
        assert stages.reason
    assert Stages.from_dict(stages.to_dict()) == stages


def test_order_of_rows_does_not_matter() -> None:
    frame = rows(three_stages, tasks=["b", "a"], noise=0.05)
    made, shuffled = Curve(frame, 8), Curve(frame.sample(frac=1, random_state=1), 8)
    assert made.digest() == shuffled.digest()
    pd.testing.assert_frame_equal(made.table(), shuffled.table())
    assert find_plateau(made) == find_plateau(shuffled)


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


# What can be found


@pytest.mark.parametrize(("documents", "changed"), [(300, 0.02), (700, 0.03), (700, 0.05)])
def test_the_chance_is_that_of_the_rule(documents: int, changed: float) -> None:
    def half(cut: int) -> float:  # at one half, turned answers are gained and lost alike
        return {0: 0.1, 4: 0.3}.get(cut, 0.5)

    scans = 60
    made = [
        Curve(rows(half, documents=documents, cuts=[0, 4, 5, 6, 7, 8], noise=changed, seed=seed), 8, resamples=500)
        for seed in range(scans)
    ]
    right = np.mean([find_plateau(one).plateau == (5, 8) for one in made])
    expected = chance({"pope": documents}, changed, late=3)[0]
    assert right == pytest.approx(expected, abs=0.06 + 3 * math.sqrt(expected * (1 - expected) / scans))


def test_the_chance_grows_with_documents_and_falls_with_changes_and_cuts() -> None:
    grid = [[chance({"pope": n}, d)[0] for d in (0.01, 0.02, 0.05, 0.1)] for n in (340, 500, 1000, 2000, 4000)]
    assert (np.diff(grid, axis=0) > -1e-6).all() and (np.diff(grid, axis=1) < 1e-6).all()
    independent, alike = chance({"pope": 1000}, 0.05)
    assert independent < alike < chance({"pope": 1000}, 0.05, late=1)[0]
    assert chance({f"t{n}": 200 for n in range(5)}, 0.05)[0] == pytest.approx(independent, abs=0.02)
    assert chance({"pope": 148}, 0.0) == (0, 0) and chance({"pope": 149}, 0.0) == (1, 1)
    assert chance({"pope": 10**6}, 0.3) == (1, 1)


def test_340_documents_do_not_find_a_plateau_at_five_percent() -> None:
    assert chance({"pope": 340}, 0.05)[0] < 0.01
    assert chance({"pope": 440}, 0.05, late=1)[0] == pytest.approx(0.5, abs=0.01)
    assert chance({"pope": 1730}, 0.05)[0] == pytest.approx(0.8, abs=0.01)
    reported = [0.023, 0.54, 0.82]  # simulated by others, with four late cuts
    assert [chance({"pope": n}, 0.05, late=4)[0] for n in (340, 1000, 1500)] == pytest.approx(reported, abs=0.05)


def test_what_can_be_found_is_said_in_sentences() -> None:
    (few,) = what_can_be_found({"pope": 148, "mme": 500}, margin=0.01)
    assert few.startswith(
        "148 documents of pope cannot show a plateau even where no answer changes: at least 149 in each"
    )
    enough = what_can_be_found({"pope": 1000})
    limits = [float(limit) / 100 for limit in re.findall(r"([\d.]+) %", enough[0])]
    for which, limit in enumerate(limits):
        assert chance({"pope": 1000}, limit - 0.001)[which] >= 0.8 > chance({"pope": 1000}, limit + 0.001)[which]
    assert "1000 documents of 1 task " in enough[0] and "plateau of 8 cuts" in enough[0]
    assert what_can_be_found({}) == []
    (sure,) = what_can_be_found({"pope": 300}, confidence=0.999)
    assert sure.endswith("342 in each task are needed (margin 0.02, 99.9% confidence).")
    assert "plateau of 1 cut in four" in what_can_be_found({"pope": 1000}, late=1)[0]


def test_the_guides_table_is_what_the_code_gives() -> None:
    guide = (DOCS / "plateau.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (\d+) % \| (\w+) \| (.+) \|$", guide, flags=re.MULTILINE)
    header = re.search(r"^\| changed \| changes \| (.+) \|$", guide, flags=re.MULTILINE)
    assert header is not None and len(cells) == 8
    for changed, how, numbers in cells:
        for documents, shares in list(zip(header[1].split(" | "), numbers.split(" | "), strict=True))[1:]:  # not 150
            right = float(shares.split(" / ")[0]) / 100
            expected = chance({"one": int(documents.replace(",", ""))}, int(changed) / 100)[how == "alike"]
            assert right == pytest.approx(expected, abs=0.11 if expected < 0.3 else 0.07), (changed, how, documents)


# The table


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


# Stages as a record, and the spec


def test_stages_are_strict() -> None:
    fields = find_plateau(curve(three_stages)).to_dict()
    with pytest.raises(ValueError, match="extra"):
        Stages.from_dict({**fields, "extra": 1})
    with pytest.raises(ValueError, match="margin"):
        Stages.from_dict({name: value for name, value in fields.items() if name != "margin"})
    with pytest.raises(ValueError, match="outcome is 'image_not_needed' and plateau is"):
        Stages.from_dict({**fields, "outcome": "image_not_needed"})
    for wrong in ([5, 7], [8, 8], [9, 8]):
        with pytest.raises(ValueError, match="expected \\[k, 8\\)"):
            Stages.from_dict({**fields, "plateau": wrong})


def test_spec_from_stages(tmp_path: Path) -> None:
    made = curve(three_stages, tasks=["mme", "gqa"])
    spec = to_spec(find_plateau(made), model="org/mllm", base_model="org/base", scan="out/scan")
    assert spec.layer_range == (5, 8)
    assert (spec.model, spec.base_model, spec.rule) == ("org/mllm", "org/base", "weighted_sum")
    assert spec.weights == Weights(model=0.9, base_model=0.3)
    assert spec.evidence is not None
    assert spec.evidence["documents"] == {"gqa": 400, "mme": 400}
    assert spec.evidence["accuracy"] == {"unmasked": 0.7, "plateau": 0.7, "blind": 0.3}
    assert spec.evidence["cuts"] == list(range(9))
    assert (spec.evidence["margin"], spec.evidence["confidence"]) == (0.02, 0.95)
    assert spec.evidence["kl_cut"] == 7  # 2 exp(-7) = 0.0018
    assert (spec.evidence["scan"], spec.evidence["curve_digest"]) == ("out/scan", made.digest())
    path = write_spec(spec, tmp_path / "plateau.yaml")
    assert load_spec(path) == spec
    assert "layer_range: [5, 8]\n" in path.read_text()
    assert yaml.safe_load(path.read_text()) == spec.to_dict()


def test_evidence_and_source_change_no_digest() -> None:
    found = find_plateau(curve(three_stages))
    one = to_spec(found, model="m", base_model="b", scan="here")
    other = to_spec(find_plateau(curve(three_stages), margin=0.03), model=None, base_model="b", source="by hand")
    assert one.evidence != other.evidence
    assert other.source == "by hand"
    assert one.digest() == other.digest()
    assert to_spec(found, model="m", base_model="b", weights={"model": 1.0, "base_model": 0.2}).digest() != one.digest()


def test_no_spec_without_a_plateau() -> None:
    found = find_plateau(curve(lambda cut: 0.6))
    with pytest.raises(ValueError, match=r"no spec without a plateau\. no plateau can be located: the blind model"):
        to_spec(found, model="m", base_model="b")
    with pytest.raises(SpecError, match="unknown module"):
        to_spec(find_plateau(curve(three_stages)), model="m", base_model="b", modules=["q_prj"])


def test_plateau_needs_neither_torch_nor_the_harness() -> None:
    heavy = "{'torch', 'transformers', 'lmms_eval', 'matplotlib'}"
    code = f"import sys, plam_eval.probing.plateau; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
