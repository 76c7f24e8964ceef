from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from plam_eval.evaluation import stats
from plam_eval.evaluation.stats import OVERALL, Paired, compare, compare_many, holm, mcnemar, proportion_interval
from tests.helpers.paths import DOCS

PLAM = pytest.mark.parametrize(("gained", "lost", "p"), [(43, 33, 0.30), (30, 6, 7e-5)])  # the authors' MMStar logs


def table(scores: Any, *, task: str = "pope", group: Any = None, parsable: Any = True) -> pd.DataFrame:
    ids = range(len(scores))
    groups = [f"document {n}" for n in ids] if group is None else [f"image {g}" for g in group]
    rows = {"task": task, "doc_id": ids, "group": groups, "score": [float(s) for s in scores], "parsable": parsable}
    return pd.DataFrame(rows)


def changed(gained: int, lost: int, documents: int, **how: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two runs: the first `gained` documents are gained, the next `lost` lost, of the others two thirds are right."""
    first = np.arange(documents) % 3 > 0
    first[:gained], first[gained : gained + lost] = False, True
    second = first.copy()
    second[: gained + lost] ^= True
    return table(first.tolist(), **how), table(second.tolist(), **how)


def one(first: pd.DataFrame, second: pd.DataFrame, **how: Any) -> Paired:
    """The comparison of the only task."""
    found, overall = compare(first, second, **how)
    assert (found.task, overall.task) == (first["task"][0], OVERALL)
    return found


def width(paired: Paired) -> float:
    return paired.high - paired.low


# The tests


@pytest.mark.parametrize(("gained", "lost", "p"), [(0, 0, 1.0), (1, 0, 1.0), (6, 0, 0.03125), (0, 6, 0.03125)])
def test_exact_mcnemar(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p)


@PLAM
def test_published_numbers_through_compare(gained: int, lost: int, p: float) -> None:
    found = one(*changed(gained, lost, 1500))
    assert (found.gained, found.lost, found.documents, found.groups) == (gained, lost, 1500, 1500)
    assert found.test == "mcnemar"
    assert found.p == pytest.approx(p, rel=0.05)
    assert found.difference == pytest.approx((gained - lost) / 1500)
    assert found.difference == pytest.approx(found.second - found.first)
    assert (found.low > 0) == (p < 0.05) and found.low < found.difference < found.high


@PLAM
def test_sign_flip_agrees_with_mcnemar_on_independent_right_and_wrong(gained: int, lost: int, p: float) -> None:
    differences = np.repeat([1.0, -1.0, 0.0], [gained, lost, 1500 - gained - lost])
    assert stats.sign_flip(differences) == pytest.approx(mcnemar(gained, lost), abs=0.015)


@pytest.mark.parametrize(("gained", "lost"), [(8, 2), (5, 5), (0, 9), (13, 1)])
def test_small_sign_flip_is_exactly_mcnemar(gained: int, lost: int) -> None:
    differences = np.repeat([1.0, -1.0, 0.0], [gained, lost, 30])
    assert stats.sign_flip(differences) == pytest.approx(mcnemar(gained, lost))


@pytest.mark.parametrize("sizes", [(1.0,), (1 / 3, 2 / 3, 1 / 7)], ids=["one-size", "sizes"])
def test_signs_of_equal_differences_are_drawn_together_from_the_same_distribution(sizes, monkeypatch) -> None:
    generator = np.random.default_rng(3)
    values = generator.choice(sizes, 400) * generator.choice([-1.0, 1.0], 400)
    values = np.concatenate([values, generator.normal(0, 0.3, 30)])  # and some that are alone with their size
    together = stats._flipped(values)
    rare, repeated, counts = stats._repeated(values)
    assert len(rare) == 30 and repeated == pytest.approx(sorted(sizes)) and counts.sum() == 400
    monkeypatch.setattr(stats, "_SINGLY", len(values))
    singly = stats._flipped(values)
    assert scipy.stats.ks_2samp(together, singly).pvalue > 0.01
    assert together.std() == pytest.approx(np.sqrt(np.sum(values**2)), rel=0.03)


def test_many_equal_differences_are_drawn_by_their_sizes() -> None:
    values = np.tile([1.0, -1.0, 1.0, 0.5, -0.5], 20_000)
    rare, sizes, counts = stats._repeated(values)  # one sign each would be 2 billion draws
    assert len(rare) == 0 and sizes == pytest.approx([0.5, 1.0]) and counts.tolist() == [40_000, 60_000]
    assert stats.sign_flip(values) == pytest.approx(2 / 20_000)


def test_sign_flip_by_hand() -> None:
    # 3, -1, 2: the eight sums are 6, 4, 2, 0 and their negatives; four of them are as far from 0 as the found 4.
    assert stats.sign_flip(np.array([3.0, -1.0, 2.0])) == pytest.approx(0.5)
    values = [0.5, 0.25, -0.125, 1.0, 0.0, 0.75, -0.5]
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in itertools.product((1, -1), repeat=7)
    ]
    assert stats.sign_flip(np.array(values)) == pytest.approx(np.mean([s >= abs(sum(values)) - 1e-9 for s in sums]))


def test_many_signs_are_drawn_and_p_is_never_0() -> None:
    assert stats.sign_flip(np.ones(60)) == pytest.approx(2 / 20_000)
    assert stats.sign_flip(np.array([1.0, *[0.0] * 50])) == 1.0  # alone, it may as well have had the other sign
    # Thousands: the sum of flipped differences is normal, with their squares' sum as its variance.
    differences = np.random.default_rng(0).exponential(1, 4001) - 0.97
    expected = 2 * scipy.stats.norm.sf(abs(differences.sum()) / math.sqrt(float(differences @ differences)))
    assert stats.sign_flip(differences) == pytest.approx(expected, abs=0.01)
    assert stats.sign_flip(-differences) == pytest.approx(expected, abs=0.01)


def test_signs_are_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(1).normal(0.1, 1, 100)
    whole = stats.sign_flip(differences)
    monkeypatch.setattr(stats, "_CELLS", 104 * 1000)
    assert stats.sign_flip(differences) == pytest.approx(whole, abs=0.02)
    assert stats.sign_flip(np.ones(100)) == pytest.approx(2 / 20_000)


def test_what_rounding_alone_tells_apart_is_no_difference() -> None:
    first = table([0.1 + 0.2] * 10 + [0.25] * 30)
    found = one(first, table([0.3] * 10 + [0.25] * 30))
    assert (found.gained, found.lost, found.p, found.needed) == (0, 0, 1.0, None)
    alike = one(table(np.linspace(0, 0.8, 20)), table(np.linspace(0, 0.8, 20) + 0.1))
    assert (alike.gained, alike.needed) == (20, None), "every document gains the same: their variance is not known"


def test_one_document_of_a_graded_task_makes_the_mean_over_tasks_no_surer() -> None:
    scores = np.random.default_rng(2).random(200)
    first = pd.concat([table(scores, task="anls"), table([0.2], task="few")])
    second = pd.concat([table(np.clip(scores + 0.1, 0, 1), task="anls"), table([0.9], task="few")])
    few, overall = compare(first, second)[1:]
    assert width(few) > 1.8
    assert width(overall) >= width(few) / 2 - 0.01, "half of the mean is that one document"


def test_holm_by_hand() -> None:
    # The worked example of geeksforgeeks.org/data-science/holm-bonferroni-method (0.005 and 0.01 are rejected at 0.05),
    # adjusted by hand: 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04 no less than the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_is_that_of_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    draws = np.random.default_rng(0)
    for count in (1, 2, 7, 40):
        p = draws.beta(0.5, 2, count).round(2)  # with ties, and zeros
        assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)
    p = np.array([0.2, np.nan, 0.01, 0.01])
    assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1], nan_ok=True)


def test_wilson_interval() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263.
    assert proportion_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


# Comparisons


def test_pairs_go_by_document_not_by_row() -> None:
    first, second = changed(7, 2, 40)
    assert compare(first, second.sample(frac=1, random_state=0)) == compare(first, second)


def test_groups_are_summed_and_not_taken_for_independent() -> None:
    first, second = changed(20, 8, 200)
    alone = one(first, second)
    twice = [pd.concat([t, t], ignore_index=True).assign(doc_id=range(400)) for t in (first, second)]  # pairs alike
    paired = one(*twice)
    assert (paired.documents, paired.groups, paired.test) == (400, 200, "sign-flip")
    assert (paired.gained, paired.lost) == (40, 16)
    assert paired.p == pytest.approx(alone.p, abs=0.01)
    assert (paired.low, paired.high) == pytest.approx((alone.low, alone.high))  # on the same draws
    assert paired.needed == pytest.approx(2 * (alone.needed or 0), rel=0.01)
    ignored = one(*(t.assign(group=[f"document {n}" for n in range(400)]) for t in twice))
    assert ignored.p < alone.p / 5
    assert width(ignored) < 0.75 * width(alone)


def test_groups_that_share_nothing_cost_nothing() -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random((2, 900)) < 0.6).tolist()
    alone = one(table(scores[0]), table(scores[1]))
    grouped = one(*(table(s, group=np.arange(900) % 300) for s in scores))
    assert width(grouped) == pytest.approx(width(alone), rel=0.15)


def test_graded_scores() -> None:
    found = one(table([0.5, 0.25, 1, 0, 0.75]), table([0.75, 0.25, 0.5, 1, 1]))
    assert found.test == "sign-flip"
    assert (found.gained, found.lost, found.difference) == (3, 1, pytest.approx(0.2))
    assert found.p == pytest.approx(10 / 16)  # sums of 0.25, 0.5, 1 and 0.25 that are at least 1 in size
    assert -1 < found.low < 0.2 < found.high < 1


def test_scores_beyond_1_have_a_wider_unknown() -> None:
    percent = one(*(table([100 * s for s in t["score"]]) for t in changed(20, 8, 200)))
    share = one(*changed(20, 8, 200))
    assert (percent.low, percent.high) == pytest.approx((100 * share.low, 100 * share.high))


def test_lower_is_better_turns_gained_and_lost_round() -> None:
    first, second = changed(20, 8, 200)
    up, down = one(first, second), one(first, second, directions={"pope": -1})
    assert (down.gained, down.lost) == (up.lost, up.gained) == (8, 20)
    assert (down.difference, down.p, down.low) == (up.difference, up.p, up.low)


def test_overall_is_the_unweighted_mean_over_tasks() -> None:
    small, large = changed(10, 0, 100, task="b"), changed(3, 9, 300, task="a", parsable=None)
    small[1]["parsable"] = [False] * 25 + [True] * 75
    first, second = (pd.concat(pair, ignore_index=True) for pair in zip(small, large, strict=True))
    b, a, overall = compare(first, second)
    assert [b.task, a.task, overall.task] == ["b", "a", OVERALL]
    assert overall.difference == pytest.approx((0.1 - 0.02) / 2)
    assert overall.first == pytest.approx((b.first + a.first) / 2)
    assert (overall.documents, overall.groups, overall.gained, overall.lost) == (400, 400, 13, 9)
    assert overall.test == "sign-flip"
    assert (b.parsable_first, b.parsable_second) == (1.0, 0.75)
    assert math.isnan(a.parsable_first)
    assert (overall.parsable_first, overall.parsable_second) == (1.0, 0.75)  # of the tasks that ask for a form
    assert overall.low < 0.04 < overall.high


def test_a_document_of_a_small_task_weighs_more_in_the_overall_p() -> None:
    small, large = changed(2, 0, 10, task="b"), changed(0, 3, 100, task="a")
    overall = compare(*(pd.concat(pair, ignore_index=True) for pair in zip(small, large, strict=True)))[-1]
    assert overall.p == pytest.approx(0.5)  # 0.1, 0.1 and three of 0.01: the first two agree in half of all patterns


def test_a_lone_task_is_the_overall() -> None:
    found, overall = compare(*changed(20, 8, 200))
    assert {**vars(overall), "task": "pope"} == vars(found)


def test_no_difference_is_not_certainty() -> None:
    scores, _ = changed(0, 0, 100)
    found = one(scores, scores, resamples=40_000)
    assert (found.difference, found.gained, found.lost, found.p, found.needed) == (0, 0, 0, 1.0, None)
    rule_of_three = 1 - 0.025 ** (1 / 100)
    assert (found.low, found.high) == pytest.approx((-rule_of_three, rule_of_three), rel=0.04)
    three = pd.concat([scores.assign(task=task) for task in "abc"], ignore_index=True)
    overall = compare(three, three)[-1]
    assert (overall.p, overall.needed) == (1.0, None)
    assert overall.high == pytest.approx(rule_of_three / 3, rel=0.05)


def test_wider_confidence_wider_interval() -> None:
    narrow, wide = (one(*changed(20, 8, 200), confidence=c) for c in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert narrow.p == wide.p


def test_each_of_many_is_as_if_alone() -> None:
    first, second = changed(20, 8, 200, group=np.arange(200) // 2)
    others = {"x": second, "y": first, "z": changed(2, 30, 200, group=np.arange(200) // 2)[1]}
    found = compare_many(first, others)
    assert list(found) == ["x", "y", "z"]
    assert found["x"] == compare(first, second)
    assert found["y"][0].p == 1.0


def test_other_documents_are_refused() -> None:
    first, second = changed(3, 1, 20)
    message = "pope: the documents of {} are others than the first run's"
    for other in (second[:-1], second.assign(doc_id=range(1, 21)), pd.concat([second, second[:1]])):
        with pytest.raises(ValueError, match=message.format("the second run")):
            compare(first, other)
    with pytest.raises(ValueError, match=message.format("merged")):
        compare_many(first, {"merged": second.assign(task="mme")})
    with pytest.raises(ValueError, match="mme: in the second run only"):
        compare(first, pd.concat([second, second.assign(task="mme")]))
    with pytest.raises(ValueError, match="no documents"):
        compare(first[:0], second[:0])


def test_a_missing_score_names_its_document() -> None:
    first, second = changed(3, 1, 20)
    second.loc[7, "score"] = math.nan
    for pair in ((first, second), (second, first)):
        with pytest.raises(ValueError, match="pope: document 7 has no score"):
            compare(*pair)


def test_comparisons_as_a_table() -> None:
    first, second = changed(20, 8, 200)
    shown = stats.comparison_table([*compare(first, second), *compare(first, first)])
    assert shown["task"].tolist() == ["pope", OVERALL] * 2
    assert shown["needed"].isna().tolist() == [False, False, True, True]
    assert str(shown["needed"].dtype) == "Int64"
    assert stats.comparison_table([]).empty


# How many documents


def test_needed_is_the_textbook_formula() -> None:
    from statsmodels.stats.power import NormalIndPower

    found = one(*changed(40, 30, 1000))
    spread = np.repeat([1.0, -1.0, 0.0], [40, 30, 930]).std(ddof=1)
    textbook = NormalIndPower().solve_power(effect_size=0.01 / spread, alpha=0.05, power=0.8, ratio=0)
    assert found.needed == math.ceil(textbook)


def test_the_guide_says_what_the_code_gives() -> None:
    guide = (DOCS / "comparing.md").read_text(encoding="utf-8").replace("\n", " ")
    said = re.search(
        r"([\d,]+) times the share that changes, or ([\d,]+) documents at 2 %, ([\d,]+) at 7 %\. A comparison of "
        r"300 documents in which 7 % change sees differences of (\w+) points",
        guide,
    )
    assert said is not None
    each, two, seven = (int(number.replace(",", "")) for number in said.groups()[:3])
    factor = (1.959964 + 0.841621) ** 2
    assert each == pytest.approx(factor / 0.01**2, rel=1e-3)
    assert math.sqrt(factor * 0.07 / 300) == pytest.approx({"four": 0.04}[said[4]], abs=0.005)
    for share, documents in ((0.02, two), (0.07, seven)):
        half = round(share * 5000)
        assert one(*changed(half, half, 10_000), resamples=100).needed == pytest.approx(documents, rel=2e-3)
        assert each * share == pytest.approx(documents, rel=2e-3)


def test_with_the_documents_needed_four_of_five_comparisons_find_a_point() -> None:
    needed = one(*changed(40, 30, 1000)).needed
    assert needed is not None
    counts = np.random.default_rng(0).multinomial(needed, [0.04, 0.03, 0.93], size=1500)
    assert np.mean([mcnemar(gained, lost) < 0.05 for gained, lost, _ in counts]) == pytest.approx(0.8, abs=0.035)


def test_needed_over_tasks_is_of_the_same_mix() -> None:
    first, second = changed(40, 30, 1000)
    first, second = (pd.concat([t.assign(task=task) for task in "abcd"], ignore_index=True) for t in (first, second))
    *tasks, overall = compare(first, second)
    assert overall.needed == pytest.approx(tasks[0].needed, abs=5)  # equal tasks: their documents count together


# Graded scores

Draw = Callable[[np.random.Generator, int], tuple[Any, Any]]


def _soft(rng: np.random.Generator, documents: int) -> tuple[Any, Any]:
    """TextVQA's soft accuracy; a third of the answers are drawn anew."""
    first, other = (rng.choice([0, 0.3, 0.6, 0.9, 1], documents, p=[0.3, 0.05, 0.05, 0.1, 0.5]) for _ in range(2))
    return first, np.where(rng.random(documents) < 0.33, other, first)


def _anls(rng: np.random.Generator, documents: int) -> tuple[Any, Any]:
    """A quarter 0, half 1, the others between; a quarter drawn anew."""
    first, other = (np.clip(rng.uniform(-1, 3, documents), 0, 1) for _ in range(2))
    return first, np.where(rng.random(documents) < 0.25, other, first)


def _small(rng: np.random.Generator, documents: int) -> tuple[Any, Any]:
    return np.full(documents, 0.5), 0.5 + rng.normal(0, 0.05, documents)


def _errors(rng: np.random.Generator, documents: int) -> tuple[Any, Any]:
    return rng.poisson(4, documents), rng.poisson(4, documents)


def _experiments(
    draws: Sequence[Draw], documents: int, of: int = 1, *, number: int = 200, known: bool = True, **how: Any
) -> list[Paired]:
    """The overall of many made-up pairs of runs without a true difference, one task for each of `draws`.

    Images have `of` questions each, half of which share the fate of the first; `known`: whether the tables say so.
    """
    rng = np.random.default_rng(0)
    group = np.arange(documents) // of
    runs = {}
    for n in range(number):
        pairs = []
        for task, draw in enumerate(draws):
            alike = np.where(rng.random(documents) < 0.5, group * of, np.arange(documents))
            said = group if known else None
            pairs.append([table(scores[alike], task=f"t{task}", group=said) for scores in draw(rng, documents)])
        runs[f"{n} first"], runs[f"{n} second"] = (
            pd.concat(tables, ignore_index=True) for tables in zip(*pairs, strict=True)
        )
    found = stats.compare_pairs(runs, [(f"{n} first", f"{n} second") for n in range(number)], **how)
    return [comparison[-1] for comparison in found.values()]


@pytest.mark.parametrize(
    ("draws", "documents", "of"),
    [
        ([_soft], 40, 1),
        ([_anls], 100, 1),
        ([_small], 20, 1),
        ([_small], 100, 1),
        ([_small], 80, 4),
        ([_errors], 30, 1),
        ([_soft, _anls, _small], 60, 1),
    ],
)
def test_graded_intervals_cover_and_agree_with_p(
    draws: list[Draw], documents: int, of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "_FLIPS", 999)
    found = _experiments(draws, documents, of, resamples=2000)
    covered = np.mean([paired.low <= 0 <= paired.high for paired in found])
    assert 0.91 <= covered <= 0.99
    assert np.mean([(paired.low <= 0 <= paired.high) == (paired.p >= 0.05) for paired in found]) >= 0.97


def test_graded_intervals_are_about_as_wide_as_students() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(0.3, 0.7, 60)
    second = first + rng.normal(0.01, 0.05, 60)
    student = scipy.stats.ttest_rel(second, first).confidence_interval(0.95)
    found = one(table(first.tolist()), table(second.tolist()))
    assert (found.low, found.high) == pytest.approx((student.low, student.high), abs=0.1 * (student.high - student.low))


def test_graded_intervals_are_the_values_that_sign_flips_do_not_reject() -> None:
    group = np.repeat(range(9), [1, 2, 3, 1, 2, 3, 1, 2, 3])
    difference = np.random.default_rng(3).normal(0.02, 0.1, len(group))
    found = one(table([0.5] * 18, group=group), table((0.5 + difference).tolist(), group=group), resamples=200_000)

    def p(value: float) -> float:
        sums = np.bincount(group, difference - value)
        flipped = np.array(list(itertools.product((1, -1), repeat=9))) @ sums
        return float(np.mean(abs(flipped) >= abs(sums.sum()) - 1e-12))

    assert found.p == pytest.approx(p(0))
    small = 0.02 * width(found)
    for end, outwards in ((found.low, -small), (found.high, small)):
        assert p(end + outwards) < 0.05 < p(end - outwards)


def test_graded_scores_that_do_not_differ_keep_the_rule_of_three() -> None:
    scores = np.random.default_rng(0).random(100).tolist()
    rule_of_three = 1 - 0.025 ** (1 / 100)
    same = one(table(scores), table(scores), resamples=40_000)
    assert (same.low, same.high) == pytest.approx((-rule_of_three, rule_of_three), rel=0.04)
    by_as_much = one(table(scores), table([score + 0.25 for score in scores]), resamples=40_000)  # nor from each other
    assert (by_as_much.low, by_as_much.high) == pytest.approx((0.25 - 1.25 * rule_of_three, 0.25 + rule_of_three), 0.1)
    five = one(table(scores), table([*(score / 2 for score in scores[:5]), *scores[5:]]))
    assert width(five) > 2 * rule_of_three


def test_graded_intervals_go_with_the_unit_of_the_scores() -> None:
    first, second = _errors(np.random.default_rng(0), 50)
    share, count = (one(*(table((unit * s).tolist()) for s in (first, second))) for unit in (0.5, 10))
    assert (count.low, count.high) == pytest.approx((20 * share.low, 20 * share.high))
    assert count.p == share.p


def test_right_or_wrong_keeps_its_unseen_document_beside_graded_tasks() -> None:
    rng = np.random.default_rng(0)
    graded = [_small(rng, 200) for _ in range(3)]
    quiet = rng.random(20) < 0.5  # right or wrong, and no answer changes
    first, second = (
        pd.concat(
            [table(quiet.tolist(), task="mme"), *(table(g[run], task=f"t{n}") for n, g in enumerate(graded))],
            ignore_index=True,
        )
        for run in (0, 1)
    )
    mme, *tasks, overall = compare(first, second)
    assert mme.high == pytest.approx(1 - 0.025 ** (1 / 20), rel=0.05)
    assert max(width(task) for task in tasks) < 0.02
    assert overall.high - overall.difference > 0.9 * mme.high / 4
    alone = compare(*(t[t["task"] != "mme"] for t in (first, second)))[-1]
    assert width(alone) < 0.01


@pytest.mark.parametrize(
    "draw", [_soft, lambda rng, n: (rng.random((2, n)) < 0.6).astype(float)], ids=["soft", "right"]
)
def test_questions_on_one_image_give_false_alarms_only_if_taken_singly(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "_FLIPS", 999)
    known = _experiments([draw], 100, 5, number=400, resamples=10)
    assert np.mean([paired.p < 0.05 for paired in known]) < 0.08
    singly = _experiments([draw], 100, 5, number=400, known=False, resamples=10)
    assert np.mean([paired.p < 0.05 for paired in singly]) > 0.1


# Do the intervals cover?


def _draw(
    rng: np.random.Generator, documents: int, gain: float, loss: float, *, of: int = 1, alike: float = 1, task: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One made-up experiment: groups of `of` documents that share their fate with probability `alike`."""
    groups = documents // of
    shared = rng.random((groups, 1)) < alike
    right, fate = (np.where(shared, rng.random((groups, 1)), rng.random((groups, of))).ravel() for _ in range(2))
    first = right < 0.6
    second = np.where(first, fate >= loss / 0.6, fate < gain / 0.4)
    group = np.arange(documents) // of
    return table(first.tolist(), task=task, group=group), table(second.tolist(), task=task, group=group)


@pytest.mark.parametrize(
    ("documents", "gain", "loss", "how"),
    [
        (60, 0.10, 0.05, {}),
        (60, 0.05, 0.05, {}),
        (120, 0.10, 0.05, {"of": 2}),
        (120, 0.05, 0.05, {"of": 2, "alike": 0.5}),
        (120, 0.05, 0.0, {"of": 6}),
    ],
)
def test_intervals_cover_the_true_difference(
    documents: int, gain: float, loss: float, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "sign_flip", lambda differences: 1.0)  # takes time and has no part in this
    rng = np.random.default_rng(0)
    made = [_draw(rng, documents, gain, loss, task=f"t{n}", **how) for n in range(250)]  # every task an experiment
    first, second = (pd.concat(frames, ignore_index=True) for frames in zip(*made, strict=True))
    found = compare(first, second, resamples=1000)[:-1]
    covered = [task.low <= gain - loss <= task.high for task in found]
    assert np.mean(covered) >= 0.93
    assert np.mean([width(task) for task in found]) < (0.5 if how.get("of") == 6 else 0.26)


@pytest.mark.parametrize(
    "tasks",
    [
        [(30, 0.10, 0.05), (60, 0.10, 0.05), (120, 0.10, 0.05)],
        [(30, 0.05, 0.05), (60, 0.05, 0.05), (120, 0.05, 0.05)],
        [(20, 0.05, 0.0), (200, 0.02, 0.02), (300, 0.0, 0.0)],  # what there is to find is in the smallest
    ],
)
def test_intervals_of_the_mean_over_tasks_cover(
    tasks: list[tuple[int, float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "sign_flip", lambda differences: 1.0)
    rng, covered = np.random.default_rng(0), []
    truth = np.mean([gain - loss for _, gain, loss in tasks])
    for _ in range(150):
        made = [_draw(rng, *task, task=f"t{n}") for n, task in enumerate(tasks)]
        first, second = (pd.concat(frames, ignore_index=True) for frames in zip(*made, strict=True))
        overall = compare(first, second, resamples=500)[-1]
        covered.append(overall.low <= truth <= overall.high)
    assert np.mean(covered) >= 0.93
