"""What a folder says of its settings: planted differences, controls, documents to choose on, words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest

from plam_eval.errors import DamagedFileError, InputError, OutsideError
from plam_eval.evaluation import stats
from plam_eval.evaluation.attend import folder as layout
from plam_eval.evaluation.attend.compared import COMPARED, OVER_CHANCE
from plam_eval.evaluation.attend.findings import conclude, find
from plam_eval.evaluation.attend.folder import Attended, AttendError, load
from tests.helpers.attend_folders import write_attend_folder

SAME = {"merged": 0.1, "self_scale": 0.1, "normalized": 0.0}
BASE = {"merged": 0.1, "self_scale": 0.0}
NULL = {"merged": 0.0, "self_scale": 0.0}


@cache
def _attended(
    shift: tuple[tuple[str, float], ...], tasks: tuple[tuple[str, int], ...], how: tuple[Any, ...]
) -> Attended:
    with TemporaryDirectory() as folder:
        return load(write_attend_folder(Path(folder), shift=dict(shift), tasks=dict(tasks), shown=0, **dict(how)))


def attended(shift: Mapping[str, float], tasks: Mapping[str, int] | None = None, **how: Any) -> Attended:
    """A folder's content; what is asked for twice is made once."""
    tasks = {"gqa": 40, "pope": 20} if tasks is None else tasks
    return _attended(tuple(shift.items()), tuple(tasks.items()), tuple(sorted(how.items())))


def changed(own: Attended, change: Any, column: str = "box_share_of_image", **rows: Any) -> Attended:
    """With `change` of the values of a column, in rows that have these values or one of them."""
    measures = own.measures.copy()
    chosen = pd.Series(True, index=measures.index)
    for name, value in rows.items():
        chosen &= measures[name].isin(value if isinstance(value, (list, range)) else [value])
    assert chosen.any()
    measures.loc[chosen, column] = change(measures.loc[chosen, column])
    return replace(own, measures=measures)


def quoted(findings: Any, measure: str, first: str, second: str = "merged", place: str = "chosen", **other: Any) -> Any:
    asked = {"sinks": "without", "on": "reported"} | other
    rows = findings.quoted.query("measure == @measure and first == @first and second == @second and place == @place")
    (row,) = [row for row in rows.to_dict("records") if asked.items() <= row.items()]
    return row


# ---- differences -----------------------------------------------------------------------------------------------------


def test_a_planted_difference_is_found_in_its_layers_alone() -> None:
    table = find(attended(BASE)).differences
    rows = table[(table["first"] == "plain") & (table["second"] == "merged") & (table["sinks"] == "without")]
    for measure, sign in (("over_chance", 1), ("entropy", -1), ("spatial_entropy", -1), ("box_share", 1)):
        own = rows[rows["measure"] == measure]
        assert own["layer"].tolist() == list(range(8))
        assert (own["p_holm"] < 0.05).tolist() == [False] * 4 + [True] * 4
        assert (np.sign(own["difference"])[4:] == sign).all()
        assert ((own["low"] < own["difference"]) & (own["difference"] < own["high"])).all()
    ratio = rows[rows["measure"] == OVER_CHANCE].set_index("layer").loc[5]
    assert ratio["difference"] == pytest.approx(np.log(0.4 / 0.3), abs=0.03)
    assert ratio["first_mean"] == pytest.approx(np.log(0.3 / 0.25), abs=0.03)
    assert (ratio["documents"], ratio["clusters"], ratio["tasks"]) == (60, 30, 2)
    other = rows[rows["measure"].isin(["other_over_chance", "image_share"])]
    assert len(other) == 16 and (other["p_holm"] >= 0.05).all()


def test_every_setting_is_held_against_plain_and_merged_against_every_other() -> None:
    findings = find(attended(SAME))
    pairs = list(dict.fromkeys(zip(findings.differences["first"], findings.differences["second"], strict=True)))
    assert pairs == [
        ("plain", "merged"),
        ("plain", "self_scale"),
        ("plain", "normalized"),
        ("self_scale", "merged"),
        ("normalized", "merged"),
    ]
    table = findings.differences
    by = table[(table["measure"] == OVER_CHANCE) & (table["sinks"] == "without") & (table["layer"] >= 4)]
    smallest = by.groupby(["first", "second"])["p_holm"].min()
    assert smallest["plain", "self_scale"] < 0.05 and smallest["normalized", "merged"] < 0.05
    assert smallest["plain", "normalized"] > 0.05 and smallest["self_scale", "merged"] > 0.05


def test_measures_of_sinks_are_compared_where_sinks_count() -> None:
    table = find(attended(BASE)).differences
    variants = table.groupby("measure", sort=False)["sinks"].unique().map(sorted).to_dict()
    assert list(variants) == list(COMPARED)
    for measure, sinks in variants.items():
        assert sinks == (["with"] if str(measure).startswith("sink") else ["with", "without"])
    assert (table[table["measure"] == "sink_share"]["p"] == 1).all()


def test_holm_is_over_the_layers_of_a_measure_and_pair() -> None:
    table = find(attended(BASE)).differences
    pairs = list(table.groupby(["measure", "sinks", "first", "second"]))
    assert len(pairs) == 14 * 3
    for _, rows in pairs[::10]:
        assert rows["p_holm"].tolist() == pytest.approx(stats.holm(rows["p"].tolist()))


def test_the_order_of_rows_says_nothing() -> None:
    own = attended(BASE)
    shuffled = replace(own, measures=own.measures.sample(frac=1, random_state=1))
    here, there = find(own), find(shuffled)
    for name in ("differences", "levels", "quoted"):
        pd.testing.assert_frame_equal(getattr(here, name), getattr(there, name))
    assert (there.sentence, there.chosen_on) == (here.sentence, here.chosen_on)


def test_documents_of_one_image_are_one() -> None:
    own = attended({"merged": 0.004, "self_scale": 0.0})
    singly = replace(own, measures=own.measures.assign(cluster=own.measures["doc_id"].astype(str)))
    # Twins: the second document of each image says what the first one says.
    first = own.measures[own.measures["doc_id"] % 2 == 0]
    twins = pd.concat([first, first.assign(doc_id=first["doc_id"] + 1)], ignore_index=True)
    together, alone = find(replace(own, measures=twins)), find(replace(own, measures=first))
    merged = "second == 'merged' and first == 'plain'"
    assert together.differences.query(merged)["p"].tolist() == pytest.approx(
        alone.differences.query(merged)["p"].tolist()
    )
    assert set(together.differences["clusters"]) == {30} and set(find(singly).differences["clusters"]) == {60}


def test_documents_without_boxes_are_left_out_and_counted() -> None:
    own = changed(attended(BASE), lambda values: values * np.nan, task="gqa", doc_id=range(10))
    own = changed(own, lambda values: values * np.nan, "chance", task="gqa", doc_id=range(10))
    findings = find(own)
    counts = findings.differences.groupby("measure")[["documents", "clusters"]].max()
    assert counts.loc[OVER_CHANCE].tolist() == [50, 25] and counts.loc["entropy"].tolist() == [60, 30]
    assert any("10 of 60 documents have no boxes" in warning for warning in findings.warnings)
    one_side = find(changed(attended(BASE), lambda values: values * np.nan, "entropy", setting="merged", doc_id=[3]))
    by_pair = one_side.differences.query("measure == 'entropy'").groupby(["first", "second"])["documents"].max()
    assert by_pair.to_dict() == {("plain", "merged"): 58, ("plain", "self_scale"): 60, ("self_scale", "merged"): 58}


def test_without_any_boxes_nothing_is_said_of_them() -> None:
    findings = find(attended(BASE, boxes=False))
    assert not {OVER_CHANCE, "box_share"} & set(findings.differences["measure"])
    assert "No document has boxes." in findings.sentence and "Entropy" in findings.sentence
    assert any("no document has boxes" in warning for warning in findings.warnings)
    assert findings.chosen_layer(OVER_CHANCE) is None and findings.chosen_layer("entropy") in range(4, 8)


# ---- layers to quote -------------------------------------------------------------------------------------------------


def test_a_layer_is_chosen_on_half_of_each_task_and_reported_on_the_rest() -> None:
    findings = find(attended(BASE))
    assert findings.held_out and findings.chosen_on == findings.reported_on == {"gqa": 20, "pope": 10}
    assert quoted(findings, OVER_CHANCE, "plain")["documents"] == 30
    assert quoted(findings, OVER_CHANCE, "plain", place="plateau")["documents"] == 30
    assert quoted(findings, OVER_CHANCE, "plain", place="plateau", on="all")["documents"] == 60
    assert find(attended(BASE), select=4).chosen_on == {"gqa": 4, "pope": 4}
    assert find(attended(BASE), select=5).chosen_on == {"gqa": 6, "pope": 6}  # whole clusters
    own = attended(NULL)
    layer = find(changed(own, lambda values: values + 0.1, setting="merged", layer=2)).chosen_layer(OVER_CHANCE)
    assert layer == 2
    other = find(changed(own, lambda values: values - 0.1, setting="merged", layer=3)).chosen_layer(OVER_CHANCE)
    assert other == 3


def test_what_is_only_in_the_documents_to_choose_on_is_not_reported() -> None:
    own, chosen = attended(NULL, seed=1), range(10)
    planted = changed(own, lambda values: values + 0.2, setting="merged", doc_id=chosen, layer=6)
    findings = find(planted, select=10)
    assert findings.chosen_layer(OVER_CHANCE) == 6
    row = quoted(findings, OVER_CHANCE, "plain")
    assert row["p"] > 0.05 and abs(row["difference"]) < 0.05
    assert "focused on them than" not in findings.sentence
    assert "not shown to differ from plain" in findings.sentence
    # Chosen on the documents that are reported, it is.
    same = find(planted, select=0)
    assert quoted(same, OVER_CHANCE, "plain")["p"] < 0.05 and not same.held_out
    assert "p adjusted for all layers" in same.sentence
    assert any("look better than they are" in warning for warning in same.warnings)


def test_the_control_of_boxes_is_quoted_in_the_layer_of_the_boxes() -> None:
    own = changed(attended(BASE), lambda values: values + 0.05, "other_box_share_of_image", setting="merged", layer=0)
    findings = find(own)
    assert findings.chosen_layer("other_over_chance") == findings.chosen_layer(OVER_CHANCE) != 0


def test_choosing_has_to_leave_something() -> None:
    with pytest.raises(InputError, match="choosing on 20 documents leaves none of pope to report on"):
        find(attended(BASE), select=20)
    with pytest.raises(InputError, match="select is -1"):
        find(attended(BASE), select=-1)


def test_a_task_of_one_image_is_not_chosen_on() -> None:
    findings = find(attended(BASE, {"gqa": 40, "pope": 2}))
    assert findings.chosen_on == {"gqa": 20} and findings.reported_on == {"gqa": 20, "pope": 2}
    assert any("layers were chosen without pope" in warning for warning in findings.warnings)


# ---- the sentence ----------------------------------------------------------------------------------------------------


def test_more_focused_than_plain_and_than_its_scale() -> None:
    text = find(attended(BASE)).sentence
    assert "merged is more focused on them than plain (+0.2" in text and "and than self_scale (+0.2" in text
    assert "merged is more focused than plain (-0.1" in text and "and than self_scale (-0.1" in text
    assert "Attention of the last token of the prompt" in text
    assert "chosen on other documents; 30 documents of 15 clusters." in text
    assert "scale of the weights" not in text


def test_what_its_scale_does_as_well_is_not_of_the_merge() -> None:
    text = find(attended(SAME)).sentence
    assert text.count("but not shown to differ from self_scale") == 2
    assert text.count("the scale of the weights may be all of it") == 2
    assert "and than self_scale" not in text


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        ((-0.1, 0.0), ["less focused on them than plain", "and than self_scale", "more diffuse than plain"]),
        ((0.1, 0.2), ["more focused on them than plain", "but less focused on them than self_scale"]),
        ((0.0, 0.0), ["not shown to differ from plain", "nor from self_scale"]),
        ((0.0, 0.2), ["not shown to differ from plain", "but is less focused on them than self_scale"]),
    ],
)
def test_other_directions_are_told(shift: tuple[float, float], words: list[str]) -> None:
    text = find(attended(dict(zip(("merged", "self_scale"), shift, strict=True)), seed=4)).sentence
    assert all(word in text for word in words), text


def test_without_the_scale_there_is_no_sentence() -> None:
    text = find(attended({"merged": 0.1, "normalized": 0.0})).sentence
    assert "the setting self_scale is missing" in text and "than plain" not in text
    text = find(attended({"other": 0.1, "self_scale": 0.0})).sentence
    assert text == "Nothing is said of a merge: there is no setting merged among plain, other, self_scale."


@pytest.mark.parametrize(
    ("shift", "equal", "words"),
    [
        ({"merged": 0.1}, "plain", "more focused on them than plain (+0.2"),
        ({"merged": 0.1}, "merged", "Nothing is said of a base: merged is self_scale itself"),
        ({"merged": 0.1, "tuned": 0.1}, "tuned", "but not shown to differ from tuned (which is self_scale)"),
    ],
)
def test_a_scale_that_was_looked_at_under_another_name(shift: dict[str, float], equal: str, words: str) -> None:
    own = attended(shift)
    text = find(replace(own, made_with={**own.made_with, "equal": {"self_scale": equal}})).sentence
    assert words in text
    assert ("which self_scale is to the bit" in text) == (equal == "plain")


def test_boxes_of_other_documents_take_the_words_back() -> None:
    own = changed(attended(BASE), lambda values: values + 0.05, "other_box_share_of_image", setting="merged")
    findings = find(own)
    assert (
        "nothing is said of them, since merged differs from plain in the boxes of other documents" in findings.sentence
    )
    assert "focused on them" not in findings.sentence and "merged is more focused than plain" in findings.sentence
    assert any("show a difference of merged" in warning for warning in findings.warnings)
    everywhere = changed(attended(BASE), lambda values: values + 0.05, "other_box_share_of_image")
    (warning,) = find(everywhere).warnings
    assert "boxes of other documents draw 1.20 times their chance in the plain model" in warning


def test_what_sinks_change_is_told() -> None:
    own = attended(BASE, seed=2)
    own = changed(own, lambda values: values - 0.1, setting="merged", sinks="with", layer=range(4, 8))
    text = find(own).sentence
    assert "With sinks counted merged is not shown to differ from plain" in text
    assert "With sinks counted" not in find(attended(BASE)).sentence


def test_few_documents_and_one_image_show_nothing() -> None:
    one = find(attended(BASE, {"image": 1}), select=0)
    assert one.sentence.startswith("1 document of 1 cluster (of one image each) can show no difference")
    assert "figures describe it" in one.sentence
    few = find(attended(BASE, {"gqa": 6, "pope": 4}))
    assert few.sentence.startswith("10 documents of 5 clusters (of one image each) can show no difference")
    assert any("no interval and no p below 0.05" in warning for warning in few.warnings)
    # Too few to choose a layer on and report on the rest: then the mean of layers, which needs no choice.
    some = find(attended(BASE, {"gqa": 16}))
    assert "In the mean of layers 4:8; 16 documents of 8 clusters." in some.sentence
    assert "more focused on them than plain" in some.sentence


def test_nothing_is_claimed_of_nothing() -> None:
    """An effect is claimed against plain and scale where both differ by chance: seldom."""
    claims = 0
    for seed in range(6):
        text = find(attended(NULL, {"gqa": 24}, seed=seed)).sentence
        claims += "and than self_scale" in text
    assert claims <= 1


# ---- answers, files --------------------------------------------------------------------------------------------------


def test_answers_and_skipped_documents() -> None:
    own = attended(BASE)
    answers = own.answers.copy()
    answers.loc[answers["doc_id"] == 0, ["score", "parsable"]] = [None, None]
    skipped = answers["doc_id"].isin([1, 2])
    answers["skipped"] = answers["skipped"].mask(skipped, "no image").astype(object)
    measures = own.measures[~own.measures["doc_id"].isin([1, 2])]
    findings = find(replace(own, answers=answers, measures=measures))
    assert findings.skipped == {"no image": 4}
    assert findings.warnings[0] == "4 documents without measures: no image"
    table = findings.answers.set_index("setting")
    plain = answers[answers["setting"] == "plain"]
    assert table.loc["plain", "score"] == pytest.approx(plain.groupby("task")["score"].mean().mean())
    assert table.loc["plain", "documents"] == 60 and table.loc["plain", "parsable"] == 1
    nothing = replace(own, answers=answers.assign(skipped="no image"), measures=own.measures.iloc[:0])
    with pytest.raises(AttendError, match=r"no document has measures: no image \(60\)"):
        find(nothing)


def test_conclude_writes_what_it_finds(tmp_path: Path) -> None:
    folder = write_attend_folder(tmp_path / "attend", shift=BASE)
    findings = conclude(folder)
    stored = json.loads((folder / "findings.json").read_text())
    assert stored == json.loads(json.dumps(findings.to_dict(), allow_nan=False))
    assert stored["sentence"] == findings.sentence and stored["chosen_on"] == {"gqa": 20, "pope": 10}
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "differences.parquet"), findings.differences)
    assert len(pd.read_csv(folder / "differences.csv")) == len(findings.differences)
    for name in ("attention.png", "attention.svg", "shown/0.png", "shown/1.png"):
        assert (folder / name).stat().st_size > 1000
    before = (folder / "attention.svg").read_bytes()
    assert conclude(folder).sentence == findings.sentence and (folder / "attention.svg").read_bytes() == before
    assert repr(findings).startswith(f"AttendFindings({folder}, plain, merged, self_scale: Attention of")


def test_what_layers_do_is_drawn_where_it_was_measured(tmp_path: Path) -> None:
    for depth in (False, True):
        folder = write_attend_folder(tmp_path / str(depth), shift=BASE, tasks={"gqa": 12}, shown=0, depth=depth)
        conclude(folder)
        assert [(folder / f"depth{suffix}").is_file() for suffix in (".png", ".svg")] == [depth] * 2


def test_a_terminal_gets_the_quoted_rows() -> None:
    findings = find(attended(BASE))
    table = findings.table()
    assert list(table)[:4] == ["measure", "layers", "first", "second"]
    assert set(table["layers"]) >= {"4:8", str(findings.chosen_layer(OVER_CHANCE))}
    assert set(table["second"]) == {"merged"} and set(table["documents"]) == {30}


def test_p_of_a_layer_chosen_on_the_documents_it_is_reported_on_is_adjusted_wherever_it_is_read() -> None:
    own = changed(attended(NULL, seed=1), lambda values: values + 0.02, setting="merged", doc_id=range(40), layer=6)
    findings = find(own, select=0)
    row = quoted(findings, OVER_CHANCE, "plain")
    same = {"measure": OVER_CHANCE, "sinks": "without", "first": "plain", "second": "merged", "layer": 6}
    (by_layer,) = (row for row in findings.differences.to_dict("records") if same.items() <= row.items())
    assert row["p"] < row["p_holm"] == by_layer["p_holm"]
    table = findings.table()
    (shown,) = table.query("measure == 'over_chance' and first == 'plain' and layers == '6'").to_dict("records")
    assert shown["p"] == row["p_holm"]
    mean = quoted(findings, OVER_CHANCE, "plain", place="plateau", on="all")
    assert mean["p_holm"] == mean["p"]
    held_out = find(own).quoted.dropna(subset="p")
    assert held_out["p"].tolist() == held_out["p_holm"].tolist()


def test_merged_layers_are_layers_of_the_decoder() -> None:
    own = attended(BASE)
    measures = own.measures[own.measures["layer"] < 6]
    with pytest.raises(AttendError, match="layers 4:8 are merged, and the decoder has 6"):
        find(replace(own, measures=measures, made_with={**own.made_with, "num_layers": 6}))


def test_nothing_is_written_outside_of_the_folder(tmp_path: Path) -> None:
    folder = write_attend_folder(tmp_path / "attend", shift=BASE, tasks={"gqa": 12}, shown=0)
    for name in ("findings.json", "attention.png"):
        outside = tmp_path / "outside"
        outside.write_text("kept")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside)
        with pytest.raises(OutsideError):
            conclude(folder)
        assert outside.read_text() == "kept"
        (folder / name).unlink()


def test_a_document_that_cannot_be_drawn_is_told_and_stops_nothing(tmp_path: Path) -> None:
    folder = write_attend_folder(tmp_path / "attend", shift=BASE, tasks={"gqa": 12})
    (folder / "shown" / "0.npz").write_bytes(b"nothing")
    findings = conclude(folder)
    assert any("0.npz: holds no document to draw" in warning for warning in findings.warnings)
    assert (folder / "shown" / "1.png").is_file() and not (folder / "shown" / "0.png").exists()


@pytest.mark.parametrize(("queries", "says"), [("last", "has a number"), ("answer", "look with --queries last")])
def test_measures_that_are_all_missing_are_told(tmp_path: Path, queries: str, says: str) -> None:
    """As of answers of one token each, which are never fed back."""
    folder = write_attend_folder(tmp_path, tasks={"gqa": 2}, shown=0)
    table = pd.read_parquet(folder / layout.MEASURES_FILE)
    table.assign(**dict.fromkeys(layout.MEASURES, np.nan)).to_parquet(folder / layout.MEASURES_FILE)
    file = folder / layout.SETTINGS_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "queries": queries}))
    with pytest.raises(AttendError, match=says):
        conclude(folder)


def test_one_measure_alone_that_is_not_infinite_is_compared(tmp_path: Path) -> None:
    folder = write_attend_folder(tmp_path, tasks={"gqa": 8}, shown=0)
    table = pd.read_parquet(folder / layout.MEASURES_FILE)
    table.assign(**{name: np.inf for name in layout.MEASURES if name != "entropy"}).to_parquet(
        folder / layout.MEASURES_FILE
    )
    findings = conclude(folder)
    assert set(findings.differences["measure"]) == {"entropy"}


def test_numbers_that_no_measure_has_are_told(tmp_path: Path) -> None:
    folder = write_attend_folder(tmp_path, tasks={"gqa": 2}, shown=0)
    table = pd.read_parquet(folder / layout.MEASURES_FILE)
    table.assign(entropy=1e308).to_parquet(folder / layout.MEASURES_FILE)
    with pytest.raises(DamagedFileError, match="entropy: found values"):
        conclude(folder)


def test_a_merge_of_layers_with_gaps_is_quoted_in_the_mean_of_exactly_these() -> None:
    gaps = attended(BASE, merged=(1, 4, 6, 7))
    findings = find(gaps)
    assert gaps.merged_layers == findings.merged_layers == (1, 4, 6, 7)
    row = quoted(findings, "entropy", "plain", place="plateau", on="all")
    own = gaps.measures[(gaps.measures["sinks"] == "without") & gaps.measures["layer"].isin([1, 4, 6, 7])]
    by_document = own.groupby(["task", "doc_id", "setting"])["entropy"].mean()
    means = by_document.groupby(["task", "setting"]).mean().groupby("setting").mean()
    assert row["difference"] == pytest.approx(means["merged"] - means["plain"])
    assert row["difference"] != pytest.approx(
        quoted(find(attended(BASE)), "entropy", "plain", place="plateau", on="all")["difference"]
    )
    assert "1+4+6:8" in set(findings.table()["layers"]) and findings.to_dict()["merged_layers"] == [1, 4, 6, 7]
    with pytest.raises(AttendError, match=r"layers 1\+9 are merged, and the decoder has 8"):
        find(attended(NULL, merged=(1, 9)))
