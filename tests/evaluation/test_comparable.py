"""Whether two runs may be compared: what is refused, what is only warned of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plam_eval.evaluation.comparable import IncomparableError, check_comparable
from tests.helpers.logged_runs import graded_rows, logged_run


def _task(results: dict[str, Any], logs: Any) -> None:
    results["configs"]["mme"] = {}
    logs["mme"] = [{**row, "mme_perception_score": {"score": 1.0, "question_id": "a/1"}} for row in graded_rows([1.0])]


def _fewer(results: dict[str, Any], logs: Any) -> None:
    del logs["pope"][2]
    results["plam_eval"]["generation"]["calls"] = 6


def _set(*keys: str, value: Any) -> Callable[[dict[str, Any], Any], None]:
    def change(results: dict[str, Any], logs: Any) -> None:
        for key in keys[:-1]:
            results = results[key]
        results[keys[-1]] = value

    return change


def _sample_set(**changes: Any) -> Callable[[Any, dict[str, list[dict[str, Any]]]], None]:
    return lambda results, logs: logs["pope"][1].update(changes)


OTHER_SETTINGS = [{"max_new_tokens": 4, "do_sample": False, "calls": 7}]
VLLM_SETTINGS = [{"max_tokens": 16, "temperature": 0.0, "calls": 7}]
REFUSED = {
    "tasks": (_task, "tasks: mme in b only; compare the others with --tasks"),
    "documents": (_fewer, "pope: 1 documents in a only, such as 2"),
    "prompt": (
        _sample_set(input="!"),
        "pope: the prompts of 1 documents differ, such as that of document 1: '?' and '!'",
    ),
    "target": (_sample_set(target="no"), "pope: the targets of 1 documents differ, such as that of document 1: 'yes'"),
    "mode": (_set("plam_eval", "mode", value="simple"), "mode: chat and simple"),
    "gen_kwargs": (_set("config", "gen_kwargs", value="max_new_tokens=4"), "gen_kwargs: None and 'max_new_tokens=4'"),
    "system": (_set("system_instruction", value="Be brief."), "system_instruction: None and 'Be brief.'"),
    "task setting": (
        _set("configs", "gqa", "generation_kwargs", value={"max_new_tokens": 4}),
        "gqa, generation_kwargs: {'max_new_tokens': 16} and {'max_new_tokens': 4}",
    ),
    "repeats": (_set("configs", "gqa", "repeats", value=2), "gqa, repeats: 1 and 2"),
    "used": (_set("plam_eval", "generation", "settings", value=OTHER_SETTINGS), "generation settings in use: "),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(tmp_path: Path, what: str) -> None:
    change, message = REFUSED[what]
    a, b = logged_run(tmp_path / "a"), logged_run(tmp_path / "b", change)
    with pytest.raises(IncomparableError) as error:
        check_comparable(a, b, ("a", "b"))
    (problem,) = error.value.problems
    assert problem.startswith(message)
    assert str(error.value).startswith("a and b cannot be compared:\n  - ")
    with pytest.raises(IncomparableError):
        check_comparable(b, a)


def test_all_differences_are_told_at_once(tmp_path: Path) -> None:
    def all_of_them(results: dict[str, Any], logs: Any) -> None:
        for change, _ in REFUSED.values():
            change(results, logs)
        results["plam_eval"]["generation"]["calls"] = 7

    with pytest.raises(IncomparableError) as error:
        check_comparable(logged_run(tmp_path / "a"), logged_run(tmp_path / "b", all_of_them), ("a", "b"))
    assert len(error.value.problems) == len(REFUSED)
    assert all(message in str(error.value) for _, message in REFUSED.values())


def test_equal_runs_compare_without_a_word(tmp_path: Path) -> None:
    def like(results: dict[str, Any], logs: Any) -> None:
        results["plam_eval"]["generation"]["settings"] *= 2  # the same settings, counted in two parts
        results["plam_eval"]["provenance"] |= {"digest": "d2", "spec": None}
        logs["pope"].reverse()

    assert check_comparable(logged_run(tmp_path / "a"), logged_run(tmp_path / "b", like)) == []


def test_answers_from_a_cache_have_no_settings_of_their_own(tmp_path: Path) -> None:
    def cached(results: dict[str, Any], logs: Any) -> None:
        results["plam_eval"]["generation"] |= {"calls": 3, "settings": OTHER_SETTINGS}

    assert check_comparable(logged_run(tmp_path / "a"), logged_run(tmp_path / "b", cached)) == []


def test_settings_of_tasks_that_are_left_out_do_not_count(tmp_path: Path) -> None:
    def one_task(results: dict[str, Any], logs: Any) -> None:
        del logs["gqa"], results["configs"]["gqa"]
        results["plam_eval"]["generation"] |= {"calls": 4, "settings": OTHER_SETTINGS}

    nine, one = logged_run(tmp_path / "a"), logged_run(tmp_path / "b", one_task)
    assert check_comparable(nine.only(["pope"]), one) == []
    with pytest.raises(IncomparableError):  # all of both
        check_comparable(logged_run(tmp_path / "c"), nine.only(["pope"]))


def test_hf_against_vllm_is_a_warning(tmp_path: Path) -> None:
    vllm = logged_run(tmp_path / "b", _set("plam_eval", "generation", "settings", value=VLLM_SETTINGS))
    (warning,) = check_comparable(logged_run(tmp_path / "a"), vllm)
    assert warning == "engine differs: hf and vllm; which settings each used is not compared"
    other = [{"max_tokens": 4, "temperature": 0.0, "calls": 7}]
    with pytest.raises(IncomparableError, match="generation settings in use"):
        check_comparable(vllm, logged_run(tmp_path / "c", _set("plam_eval", "generation", "settings", value=other)))


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (_set("plam_eval", "dtype", value="bfloat16"), "dtype differs: float32 and bfloat16"),
        (_set("plam_eval", "wrapper", value="plam_vllm"), "model differs: plam_llava and plam_vllm"),
        (_set("plam_eval", "provenance", "checkpoint", value={"name": "x"}), "pretrained differs: org/mllm and x"),
        (_set("plam_eval", "provenance", "versions", value={"torch": "2.1"}), "torch differs: 2.0 and 2.1"),
        (_set("lmms_eval_version", value="0.8"), "lmms_eval differs: 0.7.3 and 0.8"),
        (_set("versions", "gqa", value=2.0), "version of gqa differs: Yaml and 2.0"),
        (
            _set("plam_eval", "arguments", value={"pretrained": "org/mllm", "max_pixels": 9}),
            "model arguments differ: {'pretrained': 'org/mllm'} and {'pretrained': 'org/mllm', 'max_pixels': 9}",
        ),
    ],
)
def test_what_is_only_warned_of(tmp_path: Path, change: Callable[[dict[str, Any], Any], None], warning: str) -> None:
    assert check_comparable(logged_run(tmp_path / "a"), logged_run(tmp_path / "b", change)) == [warning]


def test_what_one_run_does_not_say_is_no_difference(tmp_path: Path) -> None:
    def foreign(results: dict[str, Any], logs: Any) -> None:
        del results["plam_eval"]

    assert check_comparable(logged_run(tmp_path / "a"), logged_run(tmp_path / "b", foreign)) == []
