"""Flip rates, and which differences are below them, on runs and folders written by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plam_eval.errors import DamagedFileError
from plam_eval.evaluation import records, stats
from plam_eval.evaluation.noise.floor import ABOVE, BELOW, UNCLEAR, Noise, flips_between, read_noise
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.stats import OVERALL, Paired
from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.evaluation.sweep.folder import PLAN
from tests.helpers.noise_folders import again, write_pair
from tests.helpers.run_folders import Document, changed, documents, write_run

PLAIN = documents(["pope", "mmstar"], 100, right=50)


def runs(folder: Path) -> dict[str, Run]:
    return dict(read_findings(folder).runs)


def flipped(task: str, better: int, worse: int) -> Mapping[tuple[str, int], tuple[str, float]]:
    up = {(task, number): ("yes", 1.0) for number in range(99, 99 - better, -1)}
    return up | {(task, number): ("perhaps", 0.0) for number in range(worse)}


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A comparison: on pope merged is better by 0.02, on mmstar by 0.3."""
    folder = tmp_path / "compare"
    merged = changed(PLAIN, {**flipped("pope", 3, 1), **flipped("mmstar", 30, 0)})
    write_pair(folder, PLAIN, merged)
    return folder


def noise_of(folder: Path) -> Noise:
    found = read_noise(folder, runs(folder))
    assert found is not None
    return found


def by_task(noise: Noise, cell: str = "plain") -> dict[str, Any]:
    return {each.task: each for each in noise.flips if each.cell == cell}


def test_a_comparison_without_noise_has_none(pair: Path) -> None:
    assert read_noise(pair, runs(pair)) is None


def test_flips_are_counted_in_both_directions(pair: Path) -> None:
    again(pair, "dtype=bfloat16", changed(PLAIN, flipped("pope", 4, 3)))
    flips = by_task(noise_of(pair))
    pope, star, overall = flips["pope"], flips["mmstar"], flips[OVERALL]
    assert (pope.documents, pope.gained, pope.lost) == (100, 4, 3)
    assert pope.rate == pytest.approx(0.07) and pope.net == pytest.approx(0.01) and pope.answers == pytest.approx(0.07)
    assert pope.low < 0.07 < pope.high < 0.16 and pope.p == 1.0
    assert star.rate == 0 and star.low == 0 and star.high == pytest.approx(1 - 0.025 ** (1 / 100), abs=0.003)
    assert overall.rate == pytest.approx(0.035) and overall.gained == 4 and overall.documents == 200


def test_an_answer_may_change_without_its_score(pair: Path) -> None:
    other = [{**each, "answer": each["answer"] + "."} if each["doc_id"] < 10 else each for each in PLAIN]
    again(pair, "dtype=bfloat16", other)
    flips = by_task(noise_of(pair))
    assert flips["pope"].answers == pytest.approx(0.1) and flips["pope"].rate == 0


def test_only_the_documents_that_were_answered_again_count(pair: Path) -> None:
    sample = [each for each in changed(PLAIN, flipped("pope", 2, 2)) if each["doc_id"] % 2]
    again(pair, "dtype=bfloat16", sample)
    pope = by_task(noise_of(pair))["pope"]
    assert pope.documents == 50 and pope.rate == pytest.approx(2 / 50)  # two of the four have odd numbers


def test_the_floor_is_the_largest_of_variants_and_models(pair: Path) -> None:
    again(pair, "dtype=bfloat16", changed(PLAIN, flipped("pope", 1, 0)))
    merged = changed(PLAIN, {**flipped("pope", 3, 1), **flipped("mmstar", 30, 0)})
    again(pair, "attn_implementation=eager", PLAIN, changed(merged, flipped("pope", 3, 8)))
    floor = noise_of(pair).floor("pope")
    assert floor is not None and (floor.variant, floor.cell) == ("attn_implementation=eager", "merged")
    assert floor.rate == pytest.approx(0.07)


def row(difference: float, task: str = "pope") -> Paired:
    return Paired(task, 100, 100, 0.5, 0.5 + difference, difference, -1, 1, 0, 0, 1.0, "mcnemar", 1, 1, None)


def test_a_difference_is_below_unclear_or_above(pair: Path) -> None:
    again(pair, "dtype=bfloat16", changed(PLAIN, flipped("pope", 4, 3)))
    noise = noise_of(pair)
    high = by_task(noise)["pope"].high
    for difference, standing in [(0.02, BELOW), (0.069, BELOW), (0.0701, UNCLEAR), (high + 0.001, ABOVE)]:
        assert noise.standing(row(difference)) == noise.standing(row(-difference)) == standing
    assert noise.standing(row(0.5, "mme")) is None
    assert noise.standing(row(0.0, "mmstar")) == UNCLEAR  # no flip was seen, and there is no difference


def test_what_is_below_is_said(pair: Path) -> None:
    again(pair, "dtype=bfloat16", changed(PLAIN, flipped("pope", 4, 3)))
    rows = read_findings(pair).compared["merged"]
    said = noise_of(pair).in_words(rows)
    assert said[0].startswith("pope: the difference of +0.020 is below the noise floor: with nothing changed but dtype")
    assert "0.070 (" in said[0] and "4 better, 3 worse of 100" in said[0]
    assert not any("mmstar" in sentence for sentence in said)


def test_no_net_change_exceeds_the_flip_rate(tmp_path: Path) -> None:
    first = _run(documents(["pope"], 100), tmp_path)
    first = replace(first, samples=first.samples.assign(score=first.samples["doc_id"] % 7 / 7))
    moved = (first.samples["score"] + 0.1 * (first.samples["doc_id"] % 3 - 1)).clip(0, 1)
    second = replace(first, samples=first.samples.assign(score=moved))
    flips, overall = flips_between(first, second, "dtype=bfloat16", "plain")
    assert abs(flips.net) <= flips.rate == pytest.approx(overall.rate)
    assert flips.low <= flips.rate <= flips.high
    equal = flips_between(first, first, "dtype=bfloat16", "plain")[0]
    assert equal.rate == equal.answers == 0 and equal.high > 0


def _run(given: list[Document], folder: Path) -> Run:
    return records.read_run(write_run(folder, given))


def test_clusters_widen_the_interval(pair: Path, tmp_path: Path) -> None:
    grouped = [{**each, "group": f"image {each['doc_id'] // 10}"} for each in PLAIN]
    flips = {("pope", number): ("yes", 1.0) for number in range(90, 100)}
    widths = list[float]()
    for given in (PLAIN, grouped):
        folder = tmp_path / str(len(widths))
        write_pair(folder, given, given)
        again(folder, "dtype=bfloat16", changed(given, flips))
        pope = by_task(noise_of(folder))["pope"]
        assert pope.rate == pytest.approx(0.1)
        widths.append(pope.high - pope.low)
    assert widths[1] > 1.5 * widths[0]


def test_failures_damage_and_strangers_are_named(pair: Path, tmp_path: Path) -> None:
    again(pair, "dtype=bfloat16", changed(PLAIN, flipped("pope", 4, 3)))
    again(pair, "dtype=float16", "RuntimeError: out of memory")
    again(pair, "attn_implementation=eager", PLAIN)
    damaged = pair / "noise" / "attn_implementation=eager" / PLAN
    damaged.write_text("{}")
    outside = tmp_path / "outside"
    shutil.copytree(pair / "noise" / "dtype=bfloat16", outside)
    (pair / "noise" / "dtype=float32").symlink_to(outside)
    (pair / "noise" / "notes").mkdir()
    noise = noise_of(pair)
    assert {each.variant for each in noise.flips} == {"dtype=bfloat16"}
    assert any("out of memory" in failure and "noise, dtype=float16, plain" in failure for failure in noise.failures)
    assert any("attn_implementation=eager: left out" in warning for warning in noise.warnings)
    plan = json.loads((pair / "noise" / "dtype=bfloat16" / PLAN).read_text())
    plan["settings"]["checkpoint"]["sha256"] = "00" * 32
    (pair / "noise" / "dtype=bfloat16" / PLAN).write_text(json.dumps(plan))
    other = noise_of(pair)
    assert not other.flips and any("is of another model" in warning for warning in other.warnings)


def test_a_task_that_is_lost_the_second_time_is_named(pair: Path) -> None:
    again(pair, "dtype=bfloat16", PLAIN)
    run = pair / "noise" / "dtype=bfloat16" / "cells" / "plain" / "run"
    log = next(run.glob("*_pope.jsonl"))
    log.write_text(log.read_text().replace('"score": 0.0', '"score": "none"'))
    noise = noise_of(pair)
    assert set(by_task(noise)) == {"mmstar", OVERALL}
    assert "noise, dtype=bfloat16, plain: pope: no flips are known" in noise.warnings[0]
    log.write_text("")
    assert "pope: no flips are known" in noise_of(pair).warnings[0]


def test_a_folder_that_is_a_link_is_named(pair: Path, tmp_path: Path) -> None:
    again(pair, "dtype=bfloat16", PLAIN)
    shutil.move(pair / "noise", tmp_path / "elsewhere")
    (pair / "noise").symlink_to(tmp_path / "elsewhere")
    noise = noise_of(pair)
    assert not noise.flips and "is a link" in noise.warnings[0]


@pytest.mark.parametrize("value", ["2", None, [2], 2.5])
def test_a_damaged_number_of_models_at_once_is_told(pair: Path, value: Any) -> None:
    again(pair, "dtype=bfloat16", PLAIN)
    plan = json.loads((pair / PLAN).read_text())
    (pair / PLAN).write_text(json.dumps(plan | {"config": plan["config"] | {"together": value}}))
    with pytest.raises(DamagedFileError, match="config/together: found"):
        noise_of(pair)


def test_answers_for_both_at_once_are_another_way_too(pair: Path) -> None:
    again(pair, "dtype=bfloat16", PLAIN)
    assert not [text for text in noise_of(pair).warnings if "--together" in text]
    plan = json.loads((pair / PLAN).read_text())
    (pair / PLAN).write_text(json.dumps(plan | {"config": plan["config"] | {"together": 2}}))
    assert [text for text in noise_of(pair).warnings if "(--together)" in text]


def test_other_prompts_are_no_noise(pair: Path) -> None:
    other = [{**each, "prompt": f"{each['prompt']} Now."} for each in PLAIN]
    again(pair, "model=plam_vllm", other)
    noise = noise_of(pair)
    assert not noise.flips and any("prompts of 100 documents differ" in warning for warning in noise.warnings)


def test_the_flip_rates_interval_is_a_share(pair: Path) -> None:
    again(pair, "dtype=bfloat16", changed(PLAIN, flipped("pope", 4, 3)))
    pope = by_task(noise_of(pair))["pope"]
    low, high = stats.proportion_interval(7, 100)
    assert pope.low == pytest.approx(low, abs=0.03) and pope.high == pytest.approx(high, abs=0.03)
