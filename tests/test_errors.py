from __future__ import annotations

import pickle

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from plam_eval.errors import (
    ArgumentError,
    CheckpointError,
    InputError,
    MergeError,
    ProblemsError,
    changed_settings,
    did_you_mean,
    hint,
    listed,
    near_names,
    validation_problems,
)
from plam_eval.evaluation.comparable import IncomparableError
from plam_eval.evaluation.sweep.config import SweepError
from plam_eval.harness.errors import EvaluationError
from plam_eval.probing.curve import CurveError
from plam_eval.spec import SpecError

LISTS = [
    (SpecError("one", "two", origin="spec 'a'"), "spec 'a': 2 problem(s)\n  - one\n  - two"),
    (CurveError("one"), "accuracy curve: 1 problem(s)\n  - one"),
    (CurveError("one", origin="accuracy curve a.csv"), "accuracy curve a.csv: 1 problem(s)\n  - one"),
    (MergeError("one"), "nothing was merged:\n  - one"),
    (CheckpointError("one"), "one"),
    (CheckpointError("one", "two"), "a checkpoint cannot be read:\n  - one\n  - two"),
    (IncomparableError("one", origin="a and b"), "a and b cannot be compared:\n  - one"),
    (SweepError("one"), "one"),
    (SweepError("one", origin="sweep a.yaml"), "sweep a.yaml: 1 problem(s)\n  - one"),
    (InputError("one", "two", origin="model_args"), "model_args: 2 problem(s)\n  - one\n  - two"),
    (ArgumentError("one"), "one"),
]


@pytest.mark.parametrize(("error", "message"), LISTS, ids=lambda value: type(value).__name__)
def test_every_list_of_problems_is_told_and_travels(error: ProblemsError, message: str) -> None:
    assert str(error) == message
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == message
    assert (copy.problems, copy.origin) == (error.problems, error.origin)


def test_errors_are_caught_by_what_they_were() -> None:
    assert all(
        issubclass(kind, ValueError)
        for kind in (SpecError, CurveError, MergeError, CheckpointError, IncomparableError, InputError)
    )
    assert issubclass(ArgumentError, TypeError) and issubclass(SweepError, EvaluationError)
    assert issubclass(SweepError, RuntimeError) and MergeError("one").faults == ["one"]


def test_a_near_name_is_offered_and_all_are_told() -> None:
    assert hint("popes", ["pope", "mme"]) == "did you mean 'pope'? known: pope, mme"
    assert hint("xyz", ["pope", "mme"]) == "known: pope, mme"
    assert did_you_mean("popes", ["pope", "mme"]) == " (did you mean pope?)" and did_you_mean("xyz", ["pope"]) == ""
    assert near_names("gqa_x", ["gqa", "gqa_y", "pope"], most=2) == ["gqa_y", "gqa"]


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: float


class _Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weights: _Inner
    limit: int


def test_what_pydantic_finds_is_told_in_our_words() -> None:
    keys = {"": _Outer.model_fields, "weights": _Inner.model_fields}
    with pytest.raises(ValidationError) as raised:
        _Outer.model_validate({"weights": {"modle": 1, "model": "x"}, "limits": 3, "most": 1})
    problems = validation_problems(raised.value, keys, meant={"most": "limit", "modle": "elsewhere"})
    assert dict(problems) == {
        "weights.model": "found 'x': Input should be a valid number, unable to parse string as a number",
        "weights.modle": "unknown key, did you mean 'model'? known: model",
        "limit": "missing; expected a value",
        "limits": "unknown key, did you mean 'limit'? known: weights, limit",
        "most": "unknown key, did you mean 'limit'? known: weights, limit",
    }


def test_settings_that_differ_are_told_with_both_values() -> None:
    assert changed_settings({"limit": 8, "tasks": "pope"}, {"limit": 8, "tasks": "pope"}) == ""
    before, now = {"limit": 8, "old": 1}, {"limit": 16, "new": "x"}
    assert changed_settings(before, now) == "limit (was 8, is 16); old (was 1, is None); new (was None, is 'x')"


@pytest.mark.parametrize(
    ("words", "said"),
    [("", ""), ("a", "a"), ("abc", "a, b, c"), ("abcd", "a, b, c and 1 more"), ("abcde", "a, b, c and 2 more")],
)
def test_of_many_words_the_first_are_listed(words: str, said: str) -> None:
    assert listed(iter(words), 3) == said
