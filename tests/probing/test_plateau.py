"""The stages of made-up curves."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plam_eval.probing.curve import OVERALL, Curve
from plam_eval.probing.plateau import Stages, find_plateau
from plam_eval.probing.spec_file import to_spec
from tests.helpers.curves import curve, rows, three_stages


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
def test_parameters_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: found"):
        find_plateau(curve(three_stages), **wrong)


# Closed to some of the text


def test_what_is_said_of_some_of_the_text_is_no_plateau() -> None:
    found = find_plateau(curve(three_stages), closed_to="question")
    assert (found.outcome, found.needed_until, found.plateau, found.plateau_after) == ("needed_until", 5, None, None)
    assert (found.separation_end, found.separation_before) == (None, None)
    assert found.reason.startswith("from cut 5 on, the question no longer needs to see the image: no evaluated cut")
    assert found.accuracy == {"unmasked": 0.7, "needed_until": 0.7, "closed": 0.3} and found.loss is not None
    assert not any("plateau" in text or "blind" in text for text in (found.reason, *found.warnings, found.kl_in_words))
    assert [found.stage_from(cut) for cut in range(9)] == [""] * 9
    assert Stages.from_dict(found.to_dict()) == found
    with pytest.raises(ValueError, match="no spec without a plateau"):
        to_spec(found, model="m", base_model="b")


def test_of_all_text_nothing_new_is_stored() -> None:
    stored = find_plateau(curve(three_stages)).to_dict()
    assert {"closed_to", "needed_until"}.isdisjoint(stored)


@pytest.mark.parametrize(
    ("accuracy", "how", "outcome", "says"),
    [
        (lambda cut: 0.6, {}, "image_not_needed", "the last token needs to see the image in no layer: closed to it in"),
        (lambda cut: 0.3 + 0.05 * cut, {}, "image_used_to_the_end", "the last token needs to see the image up to the"),
        (three_stages, {"documents": 40}, "too_few_documents", "cannot tell: 40 independent documents"),
        (lambda cut: 0.6, {"cuts": [3, 8]}, "rise_not_seen", "cannot tell from which layer on the last token no"),
    ],
)
def test_every_outcome_has_words_of_its_own_for_some_of_the_text(
    accuracy: Any, how: dict[str, Any], outcome: str, says: str
) -> None:
    found = find_plateau(curve(accuracy, **how), closed_to="last")
    assert (found.outcome, found.plateau) == (outcome, None) and found.reason.startswith(says)
    assert found.needed_until == (0 if outcome == "image_not_needed" else None)
    assert "plateau" not in found.reason and "blind" not in found.reason


def test_a_cost_that_may_be_chance_says_nothing_of_some_of_the_text() -> None:
    calm = rows(lambda cut: 0.6, documents=200)
    turned = calm["cut"].eq(0) & calm["doc_id"].isin([*range(8), *range(180, 186)])  # 8 lost, 6 gained
    calm.loc[turned, "score"] = 1 - calm.loc[turned, "score"]
    found = find_plateau(Curve(calm, 8), closed_to="question")
    assert (found.outcome, found.needed_until) == ("image_gain_not_shown", None)
    assert "(cut 0) it is not shown to cost anything" in found.reason


def test_single_cuts_that_cost_are_told_where_closing_everywhere_costs_nothing() -> None:
    found = find_plateau(curve(lambda cut: {0: 0.7, 8: 0.7}.get(cut, 0.5)), closed_to="question")
    assert found.needed_until == 0
    assert any("cut(s) 0 before 8 are within the margin too, but a larger cut is not" in w for w in found.warnings)


def test_skipped_cuts_are_told_of_some_of_the_text_too() -> None:
    found = find_plateau(curve(three_stages, cuts=[0, 2, 5, 8]), closed_to="last")
    assert found.needed_until == 5
    assert "cuts 3 to 4 were not evaluated: what is said of the layers from a cut on starts at one of them or at 5" in (
        found.warnings
    )


@pytest.mark.parametrize("wrong", [{"needed_until": 2}, {"closed_to": "question"}, {"closed_to": "words"}])
def test_stages_that_contradict_themselves_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needed_until|closed to the question|closed_to"):
        Stages.from_dict(find_plateau(curve(three_stages)).to_dict() | wrong)


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


# Stages as a record


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


def test_plateau_needs_neither_torch_nor_the_harness() -> None:
    heavy = "{'torch', 'transformers', 'lmms_eval', 'matplotlib'}"
    code = f"import sys, plam_eval.probing.plateau; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
