"""Optuna's study in a search's folder: read as data, shared by processes, and gone on with after a kill."""

from __future__ import annotations

import json
import re

import pytest
from optuna.trial import TrialState

from plam_eval.errors import DamagedFileError, OutsideError
from plam_eval.evaluation.search.answers import JOURNAL
from plam_eval.evaluation.search.config import SearchError
from plam_eval.evaluation.search.study import RUNNING, Study
from tests.helpers.searching import config, space


def opened(folder, settings=None, **given) -> Study:
    return Study(folder, space(**given), config(**given).options, settings or {"of": "this"})


def always(trials) -> bool:
    return True


def proposed(study: Study, count: int, value: float = 0.1) -> list[dict]:
    found = []
    for _ in range(count):
        with study.next(always) as trial:
            found.append(trial.params)
            study.tell(trial, value + trial.params["start"] / 10)
    return found


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "grid"])
def test_a_study_that_was_opened_anew_proposes_what_it_would_have(tmp_path, sampler) -> None:
    whole = proposed(opened(tmp_path / "whole", sampler=sampler), 8)
    parts = [proposed(opened(tmp_path / "parts", sampler=sampler), count) for count in (1, 5, 2)]
    assert [params for part in parts for params in part] == whole
    assert len({json.dumps(params) for params in whole}) > 5, "and does not begin again"
    assert proposed(opened(tmp_path / "other", sampler=sampler, seed=1), 3) != whole[:3]


def test_a_proposal_that_a_process_left_is_taken_up(tmp_path) -> None:
    study = opened(tmp_path)
    with pytest.raises(KeyboardInterrupt), study.next(always) as left:
        raise KeyboardInterrupt
    again = opened(tmp_path)
    assert again.unfinished()
    with again.next(lambda trials: False) as trial:
        assert trial.number == left.number and trial.params == left.params
        again.tell(trial, 0.5)
    assert not again.unfinished() and [trial.value for trial in again.trials()] == [0.5]
    with again.next(lambda trials: False) as trial:
        assert trial is None


def test_a_proposal_that_another_is_at_is_not_taken(tmp_path) -> None:
    one, two = opened(tmp_path), opened(tmp_path)
    with one.next(always) as first, two.next(always) as second:
        assert first.number == 0 and second.number == 1
        with two.next(lambda trials: False) as third:
            assert third is None


def test_a_proposal_that_another_has_finished_since_is_not_taken(tmp_path, monkeypatch) -> None:
    one, two = opened(tmp_path), opened(tmp_path)
    with one.next(always) as first:
        running = two._running()  # before the other has ended
        one.tell(first, 0.5)
    monkeypatch.setattr(two, "_running", lambda: running)
    with two.next(lambda trials: False) as trial:
        assert trial is None
    assert [trial.value for trial in two.trials()] == [0.5] and not [*(tmp_path / RUNNING).iterdir()]


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_a_kill_while_a_proposal_is_written_costs_nothing(tmp_path, sampler) -> None:
    whole = proposed(opened(tmp_path / "whole", sampler=sampler), 3)
    study = opened(tmp_path, sampler=sampler)
    assert proposed(study, 1) == whole[:1]
    with pytest.raises(KeyboardInterrupt), study.next(always):
        raise KeyboardInterrupt
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join(lines[:-1]) + lines[-1][:-20])
    again = opened(tmp_path, sampler=sampler)
    assert not again.unfinished() and proposed(again, 2) == whole[1:]


def test_a_proposal_of_an_earlier_version_that_a_kill_cut_off_costs_that_one(tmp_path) -> None:
    study = opened(tmp_path)
    with pytest.raises(KeyboardInterrupt), study.next(always):
        raise KeyboardInterrupt
    lines = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines()]
    entries = [entry for line in lines for entry in (line if isinstance(line, list) else [line])]
    one_each = "".join(json.dumps(entry) + "\n" for entry in entries[:-1])
    (tmp_path / JOURNAL).write_text(one_each + json.dumps(entries[-1])[:10])  # the last parameter is half written
    again = opened(tmp_path)
    with again.next(always) as trial:
        assert trial.number == 1 and again.is_whole(trial)
        again.tell(trial, 0.2)
    assert [trial.state for trial in opened(tmp_path).trials()] == [TrialState.FAIL, TrialState.COMPLETE]


def test_what_failed_is_told(tmp_path) -> None:
    study = opened(tmp_path)
    with study.next(always) as trial:
        study.tell(trial, None)
    assert study.trials()[0].state == TrialState.FAIL


def test_a_grid_ends(tmp_path) -> None:
    study = opened(tmp_path, sampler="grid", min_layers=7)
    assert len(proposed(study, 12)) == 12  # [0, 7), [1, 8), [0, 8) by four weights
    with study.next(always) as trial:
        assert trial is None


def test_other_settings_are_another_study(tmp_path) -> None:
    proposed(opened(tmp_path), 2)
    assert opened(tmp_path, {"of": "another"}, layers="sets").trials() == []
    assert len(opened(tmp_path).trials()) == 2


class _Marked:
    """Leaves a file where it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("key", ["system_attr", "system_attrs"])
def test_nothing_that_optuna_would_unpickle_is_taken(tmp_path, key) -> None:
    import pickle

    mark = tmp_path / "mark"
    study = opened(tmp_path / "search")
    proposed(study, 2)
    state = pickle.dumps(_Marked(str(mark))).hex()
    entry = {"op_code": 9, "worker_id": "w", "trial_id": 0, key: {"cma:optimizer:0": state}}
    with (tmp_path / "search" / JOURNAL).open("a") as file:
        file.write(json.dumps(entry) + "\n")
    with pytest.raises(DamagedFileError, match="cma:optimizer"):
        opened(tmp_path / "search")
    assert not mark.exists()


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        '{"op_code": "9"}',
        '{"op_code": 99}',
        '{"op_code": 5, "trial_id": 77}',
        '{"op_code": 4, "study_id": 0, "worker_id": "w", "distributions": {"x": "{}"}, "params": {"x": 1}}',
        '{"op_code": 0}',
        "[" * 2000,
    ],
)
def test_a_damaged_journal_is_named(tmp_path, line) -> None:
    proposed(opened(tmp_path), 1)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DamagedFileError, match=JOURNAL):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["start", "base_weight"])
def test_a_proposal_outside_of_the_space_is_damage(tmp_path, name) -> None:
    proposed(opened(tmp_path), 1)
    text = (tmp_path / JOURNAL).read_text()
    changed, count = re.subn(rf'("param_name": "{name}", "param_value_internal": )[0-9.]+', r"\g<1>99.0", text)
    assert count == 1
    (tmp_path / JOURNAL).write_text(changed)
    with pytest.raises(DamagedFileError, match=JOURNAL):
        opened(tmp_path)


def test_locks_elsewhere_are_not_deleted(tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.lock").touch()
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / RUNNING).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutsideError, match=RUNNING):
        proposed(opened(tmp_path / "search"), 1)
    assert (tmp_path / "elsewhere" / "0.lock").exists()


def test_a_link_is_not_written_to(tmp_path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / JOURNAL).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SearchError, match="link"):
        opened(tmp_path / "search")
    assert not (tmp_path / "elsewhere").read_bytes()
