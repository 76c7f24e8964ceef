"""A search at work, on an evaluator whose answers are known: budget, repeats, pruning, kills, several processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plam_eval import files
from plam_eval.errors import DamagedFileError, FolderError, OutsideError
from plam_eval.evaluation.search.answers import SEARCH, Answers, Setting, setting_of
from plam_eval.evaluation.search.config import SearchError
from plam_eval.evaluation.search.findings import read_search
from plam_eval.evaluation.search.job import SearchJob
from plam_eval.evaluation.search.runner import held_out_left, standing_of, try_settings
from plam_eval.evaluation.search.study import RUNNING
from plam_eval.evaluation.sweep.documents import split_documents
from tests.helpers.paths import PAIR, ROOT
from tests.helpers.searching import Fake, config, job, layers_matter


def outcome(folder, options) -> list[tuple]:
    found = standing_of(SearchJob.plan(options, folder))
    return [
        (setting.number, setting.spec.digest(), gain, whole)
        for setting, gain, whole in zip(found.settings, found.gains, found.whole, strict=True)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[list[tuple], int]:
    """What a search that nothing stopped has found, and for how many documents."""
    folder, fake = tmp_path_factory.mktemp("whole"), Fake()
    try_settings(job(folder), fake)
    return outcome(folder, config()), fake.asked()


def test_so_many_different_settings_are_tried_and_each_document_is_asked_once(tmp_path) -> None:
    fake = Fake()
    planned = job(tmp_path, trials=14, within="2:6")
    assert try_settings(planned, fake) == {}
    found = standing_of(planned)
    assert len(found.settings) == 14 and found.settings[0].number == -2
    asked = [(setting_of(spec), key) for spec, keys in fake.calls for key in keys]
    assert len(asked) == len(set(asked)), "what comes again is not answered again"
    gain, best = max((gain, -index) for index, gain in enumerate(found.gains) if found.whole[index])
    assert found.best == -best and gain > 0
    table = read_search(tmp_path).trials
    assert table["chosen"].sum() == 1 and table.loc[table["chosen"], "gain"].item() == gain == table["gain"].max()
    again = Fake()
    try_settings(job(tmp_path, trials=14, within="2:6"), again)
    assert again.calls == []


def test_only_documents_to_choose_on_are_asked_and_none_shares_an_image_with_the_others(tmp_path) -> None:
    fake = Fake()
    planned = job(tmp_path)
    try_settings(planned, fake)
    asked = {key for _, keys in fake.calls for key in keys}
    table = fake.documents()
    group = table.set_index(["task", "doc_id"])["group"]
    chosen, others = split_documents(table, planned.config.select)
    assert asked == {*map(tuple, chosen.itertuples(index=False))}
    assert len(asked) > 2 * 24, "with those that share an image"
    for task in ("pope", "mmstar"):
        mine = {group[key] for key in asked if key[0] == task}
        assert not mine & {group[key] for key in map(tuple, others.itertuples(index=False)) if key[0] == task}


def test_hopeless_settings_are_given_up_and_the_best_is_not(tmp_path) -> None:
    given = {"sampler": "grid", "trials": 16, "select": 60, "rungs": "0.4,0.7"}
    every, some = Fake(documents=110), Fake(documents=110)
    try_settings(job(tmp_path / "every", prune=0, **given), every)
    try_settings(job(tmp_path / "some", prune=0.1, **given), some)
    whole, pruned = (standing_of(job(tmp_path / name, **given)) for name in ("every", "some"))
    assert all(whole.whole) and not all(pruned.whole) and some.asked() < 0.9 * every.asked()
    assert pruned.settings[pruned.best].spec.digest() == whole.settings[whole.best].spec.digest()
    given_up = [gain for gain, is_whole in zip(pruned.gains, pruned.whole, strict=True) if not is_whole]
    assert max(given_up) < pruned.gains[pruned.best]


@pytest.mark.parametrize("call", [0, 2, 4, 9, 13])
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, call, whole) -> None:
    def kill(number: int) -> None:
        if number == call:
            raise KeyboardInterrupt

    killed, after = Fake(at_call=kill), Fake()
    with pytest.raises(KeyboardInterrupt):
        try_settings(job(tmp_path / "killed"), killed)
    assert len(killed.calls) == call
    try_settings(job(tmp_path / "killed"), after)
    settings, asked = whole
    assert outcome(tmp_path / "killed", config()) == settings
    assert killed.asked() + after.asked() == asked, "nothing is answered twice"


def test_a_larger_budget_goes_on(tmp_path) -> None:
    try_settings(job(tmp_path, trials=6), Fake())
    before = outcome(tmp_path, config(trials=6))
    try_settings(job(tmp_path, trials=9), Fake())
    after = outcome(tmp_path, config(trials=9))
    assert len(after) == 9 and after[:6] == before


def test_a_setting_that_fails_is_told_and_others_go_on(tmp_path) -> None:
    def fail(spec):
        if spec.layers[0] in (1, 3, 6):
            raise RuntimeError("no memory")
        return layers_matter(spec)

    failed = try_settings(job(tmp_path, sampler="random", trials=15), Fake(fail))
    assert failed and all("no memory" in error for error in failed.values())
    answered = {setting.spec.digest(): setting for setting in Answers(tmp_path).merges()}
    assert not answered.keys() & failed.keys() and len(answered) + len(failed) == 15
    found = read_search(tmp_path, failed)
    assert all("no memory" in line for line in found.failures()) and found.verdict().startswith("Chosen of")


def test_a_search_gives_up_where_everything_fails(tmp_path) -> None:
    planned = job(tmp_path)
    known = {spec.digest() for spec in planned.space.reference_settings(8)}

    def fail(spec):
        if spec.digest() in known:
            return 0.5
        raise RuntimeError("no memory")

    with pytest.raises(SearchError, match="5 settings in a row failed, the last one with: RuntimeError: no memory"):
        try_settings(planned, Fake(fail))


def test_a_full_disk_ends_it(tmp_path, monkeypatch) -> None:
    def full(number: int) -> None:
        if number == 5:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        try_settings(job(tmp_path), Fake(at_call=full))
    try_settings(job(tmp_path), Fake())
    assert len(standing_of(job(tmp_path)).settings) == 9


@pytest.mark.parametrize("call", [0, 2, 4, 9])
def test_where_its_folder_is_deleted_the_same_search_begins_anew(tmp_path, call, whole) -> None:
    def delete(number: int) -> None:
        if number == call:
            shutil.rmtree(tmp_path / "search")

    with pytest.raises(FolderError, match="was deleted or moved while it was written to; the same command begins it"):
        try_settings(job(tmp_path / "search"), Fake(at_call=delete))
    try_settings(job(tmp_path / "search"), Fake())
    assert outcome(tmp_path / "search", config()) == whole[0]


def killed_in_its_first_setting(folder: Path) -> Setting:
    """What is known of one that a search begins with, after a kill: one rung of it is answered."""

    def kill(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        try_settings(job(folder), Fake(at_call=kill))
    (begun,) = Answers(folder).merges()
    return begun


@pytest.mark.parametrize("at", [2, 6])
def test_what_a_killed_process_had_begun_is_answered_before_the_report(tmp_path, at, whole) -> None:
    """It holds one of the settings that a search begins with, of which one rung is answered, until it is killed."""
    begun = killed_in_its_first_setting(tmp_path)
    other = files.locked(tmp_path / RUNNING, f"{setting_of(begun.spec)}.lock")
    other.__enter__()

    def end(number: int) -> None:
        if number == at:
            other.__exit__(None, None, None)

    try_settings(job(tmp_path), Fake(at_call=end))
    found = standing_of(job(tmp_path))
    (place,) = (place for place, setting in enumerate(found.settings) if setting.number == begun.number)
    assert found.whole[place] and len(found.settings) == 9
    assert held_out_left(job(tmp_path)) is not None


def test_a_setting_that_another_process_is_at_is_waited_for_with_the_report(tmp_path) -> None:
    begun = killed_in_its_first_setting(tmp_path)
    with files.locked(tmp_path / RUNNING, f"{setting_of(begun.spec)}.lock"):
        try_settings(job(tmp_path), Fake())
    assert held_out_left(job(tmp_path)) is None, "it may be the best one"


@pytest.mark.parametrize("which", ["the best", "all"])
def test_answers_that_were_damaged_and_deleted_are_answered_again(tmp_path, which, whole) -> None:
    """As the message on a damaged file says."""
    try_settings(job(tmp_path), Fake())
    standing = standing_of(job(tmp_path))
    best = setting_of(standing.settings[standing.best].spec)
    (tmp_path / "answers" / f"{best}.json").write_text("{")
    with pytest.raises(DamagedFileError, match="delete it, and the same search answers it again"):
        try_settings(job(tmp_path), Fake())
    for file in (tmp_path / "answers").glob("*.json" if which == "all" else f"{best}.json"):
        file.unlink()
    assert held_out_left(job(tmp_path)) is None, "there is something to answer"
    again = Fake()
    try_settings(job(tmp_path), again)
    assert held_out_left(job(tmp_path)) is not None and again.calls
    found = outcome(tmp_path, config())
    assert len(found) == 9 and max(found, key=lambda each: each[2]) == max(whole[0], key=lambda each: each[2])


def test_lost_answers_that_cannot_be_had_again_are_told(tmp_path) -> None:
    try_settings(job(tmp_path), Fake())
    lost = Answers(tmp_path).merges()[-1].spec
    (tmp_path / "answers" / f"{setting_of(lost)}.json").unlink()

    def fail(spec):
        raise RuntimeError("no memory")

    assert try_settings(job(tmp_path), Fake(fail)) == {setting_of(lost): "RuntimeError: no memory"}
    assert held_out_left(job(tmp_path)) is None, "it may be the best one"
    assert try_settings(job(tmp_path), Fake()) == {} and held_out_left(job(tmp_path)) is not None


def test_answers_that_are_deleted_meanwhile_end_the_search(tmp_path) -> None:
    def delete(number: int) -> None:
        if number == 4:
            shutil.rmtree(tmp_path / "answers")

    with pytest.raises(FolderError, match="was deleted or moved while it was written to"):
        try_settings(job(tmp_path), Fake(at_call=delete))
    try_settings(job(tmp_path), Fake())
    assert len(standing_of(job(tmp_path)).settings) == 9 and held_out_left(job(tmp_path)) is not None


def test_a_small_space_ends_before_the_budget(tmp_path) -> None:
    given = {"within": "4:6", "model_weight": "0.9", "base_weight": "0.1:0.3:0.2"}
    try_settings(job(tmp_path, **given), Fake())
    assert len(standing_of(job(tmp_path, **given)).settings) == 3 * 2 + 2


@pytest.mark.parametrize("change", [{"limit": 58}, {"select": 25}, {"seed": 1}, {"within": "0:7"}, {"tasks": "pope"}])
def test_a_folder_of_other_settings_is_refused(tmp_path, change) -> None:
    try_settings(job(tmp_path, trials=3), Fake())
    with pytest.raises(SearchError, match="other settings"):
        job(tmp_path, trials=3, **change)
    for free in ({"trials": 5}, {"sampler": "random"}, {"prune": 0.1}, {"rungs": "0.2"}):
        job(tmp_path, **free)


def test_other_documents_are_refused(tmp_path) -> None:
    try_settings(job(tmp_path, trials=3), Fake())
    with pytest.raises(SearchError, match="prompts changed"):
        try_settings(job(tmp_path, trials=4), Fake(documents=62))


def test_what_is_left_of_the_report(tmp_path) -> None:
    planned = job(tmp_path, trials=4)
    assert held_out_left(planned) is None
    try_settings(planned, Fake())
    left = held_out_left(planned)
    assert left[0] == "plain" and any("self_scale" in name for name in left)
    assert held_out_left(job(tmp_path, trials=5)) is None, "one more is wanted"
    chosen = standing_of(planned).best
    assert read_search(tmp_path).chosen == standing_of(planned).settings[chosen].spec


def test_the_chosen_merge_is_beside_its_controls_the_plateau_and_all_layers(tmp_path) -> None:
    planned = job(tmp_path, draws=3)
    try_settings(planned, Fake())
    standing = standing_of(planned)
    chosen = standing.settings[standing.best]
    sweep = planned.held_out(chosen, 12, 7, 0.25)
    names = {cell.spec.digest() if cell.spec else None: cell.name for cell in sweep.grid.cells}
    beside = sweep.grid.controls[names[chosen.spec.digest()]]
    assert {*beside} >= {"self_scale", "noise", "random_layers"} and len(beside["random_layers"]) == 3
    assert names[planned.space.start.digest()] and any("layers-0-8" in name for name in names.values())
    sweep.write()
    stored = json.loads((tmp_path / "heldout" / "sweep.json").read_text())
    assert stored["chosen"] == {"digest": chosen.spec.digest(), "tried": 12, "layer_sets": 7, "difference": 0.25}


def test_where_the_plateau_is_chosen_it_has_all_controls(tmp_path) -> None:
    planned = job(tmp_path, draws=2)
    try_settings(planned, Fake(lambda spec: 0.9 if spec == planned.space.start else 0.5))
    standing = standing_of(planned)
    chosen = standing.settings[standing.best]
    assert chosen.spec == planned.space.start
    grid = planned.held_out(chosen, 12, 7, 0.4).grid
    merged = [cell.name for cell in grid.cells if cell.kind == "merged"]
    assert len(merged) == 2 and "random_layers" in grid.controls[merged[0]]


@pytest.mark.parametrize("controls", [None, "self_scale"])
def test_controls_that_need_an_ancestor_join_none_that_were_named(tmp_path, controls) -> None:
    trio = PAIR.parent / "trio"
    given = {"model_args": f"pretrained={trio}/mllm,device=cpu", "base_model": f"{trio}/base"}
    planned = job(tmp_path, **given, ancestor=f"{trio}/ancestor", controls=controls, trials=2)
    try_settings(planned, Fake())
    standing = standing_of(planned)
    report = planned.held_out(standing.settings[standing.best], 2, 2, 0.1)
    assert any("from_ancestor" in beside for beside in report.grid.controls.values()) == (controls is None)
    report.write()
    again = job(tmp_path, **given, ancestor=f"{trio}/ancestor", controls=controls, trials=3)
    assert again.settings == planned.settings, "the same call goes on where a report has begun"


def test_a_report_elsewhere_is_neither_read_nor_gone_on_with(tmp_path) -> None:
    planned = job(tmp_path / "search", trials=3)
    try_settings(planned, Fake())
    planned.held_out(standing_of(planned).settings[0], 3, 1, 0.1).write()
    (tmp_path / "search" / "heldout").rename(tmp_path / "elsewhere")
    (tmp_path / "search" / "heldout").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutsideError, match="elsewhere"):
        read_search(tmp_path / "search")
    with pytest.raises(OutsideError, match="elsewhere"):
        job(tmp_path / "search", trials=3)


def test_a_damaged_plan_is_named(tmp_path) -> None:
    try_settings(job(tmp_path, trials=3), Fake())
    plan = json.loads((tmp_path / SEARCH).read_text())
    changes: list[dict] = [{"config": []}, {"settings": {"checkpoint": 1, "bases": {}}}, {"num_layers": "8"}]
    for change in changes:
        (tmp_path / SEARCH).write_text(json.dumps(plan | change))
        with pytest.raises(ValueError, match=SEARCH):
            read_search(tmp_path)
    (tmp_path / SEARCH).unlink()
    with pytest.raises(SearchError, match="no search there"):
        read_search(tmp_path)


_WORKER = """
import os, sys, time
from pathlib import Path
from plam_eval.evaluation.search.runner import try_settings
from tests.helpers.searching import Fake, job
folder, deadline = Path(sys.argv[1]), time.monotonic() + 240

def at_call(number):
    # The plain model is answered by one of them, and the other one waits for that: they meet behind it.
    (folder / f"at.{os.getpid()}").touch()
    while number == 2 and len([*folder.glob("at.*")]) < 2:
        assert time.monotonic() < deadline, "the other process did not come"
        time.sleep(0.01)
    time.sleep(0.05)

fake = Fake(at_call=at_call)
try_settings(job(folder / "search", trials=12), fake)
print(fake.asked())
"""


@pytest.mark.slow
def test_two_processes_are_at_one_search(tmp_path) -> None:
    command = [sys.executable, "-c", _WORKER, str(tmp_path)]
    workers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    asked = [int(worker.communicate(timeout=300)[0].split()[-1]) for worker in workers]
    assert all(worker.returncode == 0 for worker in workers)
    planned = job(tmp_path / "search", trials=12)
    assert len(standing_of(planned).settings) == 12 and held_out_left(planned) is not None
    assert all(asked), "both had a part in it"
