"""`plam attend` from the start to its tables: on tasks, on one image, stopped and gone on, in two processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import plam_eval
from plam_eval.errors import ArgumentError, InputError
from plam_eval.evaluation.answer_store import AnswerStore
from plam_eval.evaluation.attend import folder as layout
from plam_eval.evaluation.attend.checks import tasks_without_boxes
from plam_eval.evaluation.attend.findings import find
from plam_eval.evaluation.attend.folder import MERGED, PLAIN, AttendError, load
from plam_eval.evaluation.attend.run import attend
from plam_eval.evaluation.attend.settings import Settings
from plam_eval.evaluation.attend.shown import ShownDocument
from plam_eval.evaluation.records import read_run
from plam_eval.harness.documents import Documents
from plam_eval.harness.tasks import TASKS
from plam_eval.merging.merge import is_merged
from plam_eval.spec import load_spec
from tests.helpers import forked
from tests.helpers.mllm import picture
from tests.helpers.paths import PAIR
from tests.helpers.run_folders import write_scan
from tests.helpers.sweeps import SPEC, plam


@pytest.fixture(scope="module")
def lm() -> Any:
    from plam_eval.model_wrappers.llava import PlamLlavaChat

    return PlamLlavaChat(pretrained=str(PAIR / "mllm"), device="cpu", dtype="float32")


@pytest.fixture
def tables_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is concluded from tables, and drawn, is tested elsewhere: one slow test here waits for it."""
    monkeypatch.setattr("plam_eval.evaluation.attend.run.conclude", lambda folder, **given: load(folder))


@pytest.fixture
def settings() -> Settings:
    return Settings.read(load_spec("demo", {"base": str(PAIR / "base")}), [MERGED, "self_scale"])


def same(one: layout.Attended, other: layout.Attended, atol: float = 0.0) -> None:
    """Equal tables; other numbers of threads and of settings at once round in another way."""
    for name in ("answers", "measures"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), rtol=0, atol=atol)


@pytest.mark.usefixtures("tables_only")
def test_a_folder_has_the_plain_run_the_tables_and_what_to_draw(lm, in_suite, settings, tmp_path):
    attend(lm, "gqa,pope", tmp_path, settings, limit=6, show=3, depth=True)
    attended = load(tmp_path)
    assert len(attended.measures) == 12 * 3 * 8 * 2 and len(attended.answers) == 12 * 3
    assert attended.depth is not None and len(attended.depth) == 12 * 3 * 9
    # The plain run beside it is lmms-eval's own, and the clusters are those of its log.
    stock = read_run(tmp_path / layout.PLAIN_RUN).samples.sort_values(["task", "doc_id"])
    plain = attended.answers[attended.answers["setting"] == PLAIN]
    for column, own in (("answer", "answer"), ("score", "score"), ("cluster", "group"), ("target", "target")):
        assert list(plain[column]) == list(stock[own]), column
    assert attended.measures.groupby(["task", "doc_id"])["cluster"].nunique().max() == 1
    with_boxes = attended.measures.dropna(subset="box_share")
    assert with_boxes["doc_id"].nunique() > 0 and (with_boxes["other_chance"] > 0).all()
    below = attended.measures[attended.measures["layer"] < 4].drop(columns="setting")
    assert len(below.drop_duplicates()) == len(below) // 3  # below the merge all settings agree
    drawn = [ShownDocument.read(file) for file in attended.shown]
    assert len(drawn) == 3 and {document.task for document in drawn} == {"gqa", "pope"}
    assert all(document.boxes and document.question and document.maps[PLAIN].shape == (8, 4, 4) for document in drawn)
    assert all(document.frame == (0, 0, *document.size) for document in drawn)


@pytest.mark.usefixtures("tables_only")
def test_what_was_stopped_goes_on_and_more_is_added(lm, in_suite, settings, tmp_path, monkeypatch):
    from plam_eval.decoding import merge_rows

    looked, stock = list[int](), merge_rows.generate_with_rows

    def counted(*args: Any, **given: Any) -> Any:
        looked.append(1)
        return stock(*args, **given)

    monkeypatch.setattr(merge_rows, "generate_with_rows", counted)
    attend(lm, "pope,gqa", tmp_path / "whole", settings, limit=4)
    assert len(looked) == 8
    add, folder = AnswerStore.add, tmp_path / "stopped"

    def stopped(self: Any, record: Any) -> None:
        if len(list(self.read())) == 5:
            with self._file.open("a") as file:
                file.write('{"task": "pope", "doc')  # a line that was being written
            raise KeyboardInterrupt
        add(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerStore, "add", stopped)
        with pytest.raises(KeyboardInterrupt):
            attend(lm, "pope,gqa", folder, settings, limit=4)
    with pytest.raises(AttendError, match="has not finished"):
        load(folder)
    looked.clear()
    attend(lm, "pope,gqa", folder, settings, limit=4)
    assert len(looked) == 3
    same(load(folder), load(tmp_path / "whole"))
    shown = [file.read_bytes() for file in sorted((tmp_path / "whole" / layout.SHOWN).iterdir())]
    assert [file.read_bytes() for file in sorted((folder / layout.SHOWN).iterdir())] == shown
    looked.clear()
    attend(lm, "pope,gqa,mmstar", folder, settings, limit=6, show=0)
    assert len(looked) == 2 + 2 + 6 and len(load(folder).answers) == 18 * 3
    with pytest.raises(AttendError, match=r"queries \(was 'last', is 'answer'\)"):
        attend(lm, "pope", folder, settings, limit=4, queries="answer")
    with pytest.raises(AttendError, match=r"setting self_scale \(was .*, is None\)"):
        attend(lm, "pope", folder, Settings.read(settings.specs[MERGED], [MERGED]), limit=4)


def test_a_task_without_any_image_is_a_warning_that_says_why(lm, in_suite, settings, tmp_path, monkeypatch):
    monkeypatch.setattr("plam_eval.evaluation.attend.run.conclude", lambda folder, **given: find(load(folder)))
    stock = Documents.of_request

    def of_request(self: Documents, request: Any) -> Any:
        found = stock(self, request)
        if request.task_name == "pope":
            found.images.clear()
        return found

    monkeypatch.setattr(Documents, "of_request", of_request)
    said: list[str] = []
    from loguru import logger

    sink = logger.add(lambda line: said.append(str(line)), level="WARNING", format="{message}")
    try:
        found = attend(lm, "gqa,pope", tmp_path / "both", settings, limit=2)
        assert "pope: all of its documents are skipped: it has no image (2)\n" in said
        assert found.skipped == {"it has no image": 2}
        with pytest.raises(AttendError, match="no document has measures: it has no image"):
            attend(lm, "pope", tmp_path / "none", settings, limit=2)
        assert load(tmp_path / "none").answers["score"].notna().all()
    finally:
        logger.remove(sink)


@pytest.mark.usefixtures("tables_only")
def test_a_loaded_wrapper_is_plain_meanwhile_and_merged_again_after(lm, in_suite, tmp_path):
    lm.merge("demo", base=str(PAIR / "base"))
    spec = lm.spec
    try:
        with pytest.raises(ArgumentError, match="model_args with a model that is loaded"):
            plam_eval.attend(lm, "pretrained=x", "pope", tmp_path / "other")
        found = plam_eval.attend(lm, tasks="pope", output=tmp_path / "out", limit=2, settings="merged", show=0)
        assert lm.spec == spec and is_merged(lm.model)
    finally:
        lm.merge(None)
    assert found.settings == [PLAIN, MERGED]
    made_with = json.loads((tmp_path / "out" / layout.SETTINGS_FILE).read_text())
    assert load_spec(made_with["settings"][MERGED]) == spec


@pytest.mark.usefixtures("tables_only")
def test_one_image_gives_the_same_record_table_and_picture(lm, tmp_path, monkeypatch):
    picture(4, (48, 40)).save(tmp_path / "cat.png")
    lm.merge("demo", base=str(PAIR / "base"))
    boxes: Any = [(4, 4, 20, 20), "24,8,40,30"]
    given: dict[str, Any] = {"image": tmp_path / "cat.png", "question": "What color is it?", "depth": True}
    try:
        plam_eval.attend(lm, output=tmp_path / "out", box=boxes, **given)
        attended = load(tmp_path / "out")
        with pytest.raises(AttendError, match="image"):
            plam_eval.attend(lm, output=tmp_path / "out", **given)  # without the boxes
        picture(5, (48, 40)).save(tmp_path / "cat.png")
        with pytest.raises(AttendError, match="image"):
            plam_eval.attend(lm, output=tmp_path / "out", box=boxes, **given)
    finally:
        lm.merge(None)
    assert len(attended.measures) == 4 * 8 * 2 and attended.measures["box_share"].notna().all()
    assert attended.measures["other_chance"].isna().all() and attended.depth is not None
    assert attended.answers["score"].isna().all() and attended.answers["answer"].notna().all()
    (file,) = attended.shown
    drawn = ShownDocument.read(file)
    assert drawn.boxes == [(4, 4, 20, 20), (24, 8, 40, 30)] and drawn.size == (48, 40)
    assert drawn.question == "What color is it?"


@pytest.mark.usefixtures("tables_only")
def test_boxes_of_a_file_are_taken_in_place_of_a_datasets(lm, in_suite, settings, tmp_path):
    file = tmp_path / "boxes.jsonl"
    file.write_text(
        '{"task": "mmstar", "doc_id": 0, "boxes": [[[0, 0, 20, 20]]]}\n'
        '{"task": "mmstar", "doc_id": 2, "boxes": [[[20, 20, 40, 40]]]}\n'
    )
    assert tasks_without_boxes(["mmstar", "mmmu_pro_vision"], boxes=file) == ["mmmu_pro_vision"]
    misspelt = tmp_path / "misspelt.jsonl"
    misspelt.write_text(file.read_text().replace("mmstar", "mmstra", 1))
    with pytest.raises(InputError, match=r"line 1: there is no task 'mmstra'.*mmstar"):
        tasks_without_boxes(["mmstar"], boxes=misspelt)
    attend(lm, "mmstar", tmp_path / "out", settings, limit=3, boxes=file, show=1)
    attended = load(tmp_path / "out")
    assert set(attended.measures.dropna(subset="box_share")["doc_id"]) == {0, 2}
    assert [ShownDocument.read(drawn).boxes for drawn in attended.shown] == [[(0, 0, 20, 20)]]
    file.write_text(file.read_text().replace("[0, 0, 20, 20]", "[0, 0, 30, 20]"))
    with pytest.raises(AttendError, match="boxes"):
        attend(lm, "mmstar", tmp_path / "out", settings, limit=3, boxes=file, show=1)


@pytest.mark.usefixtures("tables_only")
def test_tasks_without_scores_can_be_looked_at_all_the_same(lm, in_suite, settings, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "pope", replace(TASKS["pope"], score=None, unscored="a server scores it"))
    attend(lm, "pope", tmp_path, settings, limit=2, show=0)
    attended = load(tmp_path)
    assert len(attended.measures) == 2 * 3 * 8 * 2 and attended.answers["score"].isna().all()
    assert attended.answers["answer"].notna().all()


@pytest.mark.slow
def test_two_processes_look_as_one_does(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And `plam attend` from its command line to its end."""
    monkeypatch.chdir(suite)
    words = ["attend", "--model", "plam_llava", "--model_args", SPEC, "--tasks", "gqa,pope", "--limit", "6"]
    words += ["--settings", "merged,self_scale", "--show", "3", "--output"]
    write_scan(tmp_path / "scan")
    output = plam(*words, str(tmp_path / "one"), "--scan", str(tmp_path / "scan"))
    found = plam_eval.read_attend(tmp_path / "one")
    assert "".join(found.sentence.split()) in "".join(output.split()) and "self_scale" in output
    assert found.settings == (PLAIN, MERGED, "self_scale")
    assert all((tmp_path / "one" / name).is_file() for name in ("attention.png", "depth.png", "findings.json"))
    status, said = forked.run("plam_eval.cli", [*words, str(tmp_path / "two")], processes=2)
    assert status == 0, said
    one, two = (load(tmp_path / name) for name in ("one", "two"))
    same(one, two, 1e-5)
    assert [file.name for file in one.shown] == [file.name for file in two.shown] and len(one.shown) == 3
    files = sorted((tmp_path / "two").glob("answers.rank*.jsonl"))
    assert [len(file.read_text().splitlines()) for file in files] == [6, 6]
