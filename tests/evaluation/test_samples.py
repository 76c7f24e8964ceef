"""Samples through the commands: what is asked, remembered, gone on with, refused and left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import plam_eval
from plam_eval.errors import InputError
from plam_eval.evaluation.records import read_run
from plam_eval.evaluation.scan_folder import ScanError
from plam_eval.evaluation.sweep.config import SweepError
from plam_eval.harness import checks
from plam_eval.harness.checks import check_tasks
from plam_eval.harness.errors import EvaluationError, RecordError
from plam_eval.harness.evaluate import evaluate
from plam_eval.harness.lookup import load_tasks, task_manager
from plam_eval.harness.sampling import Excluded, Sample
from tests.helpers import forked
from tests.helpers.pico import PicoPair
from tests.helpers.wrappers import arguments

SHORT: dict[str, Any] = {"gen_kwargs": "max_new_tokens=2"}


@pytest.fixture(scope="module")
def pair(pico: Callable[[str], PicoPair]) -> PicoPair:
    return pico("llava")


@pytest.fixture(scope="module")
def lm(pair: PicoPair) -> Any:
    from plam_eval.harness.evaluate import make_model, parse_model_args

    return make_model("plam_llava", parse_model_args(arguments(pair)))


def keys(folder: Path) -> set[tuple[str, int]]:
    samples = read_run(folder).samples
    return set(zip(samples["task"], samples["doc_id"], strict=True))


DOCUMENTS = {"mme": [20, 21, 4, 5], "pope": [29, 3], "mmmu_val": [7], "mmstar": [1, 2, 2]}


def test_an_evaluation_asks_about_the_documents_that_are_named(lm: Any, in_suite: Path, tmp_path: Path) -> None:
    run = evaluate(lm, list(DOCUMENTS), documents=DOCUMENTS, output=tmp_path, sample={"size": 2, "seed": 0}, **SHORT)
    assert run is not None and run.results_file is not None
    found = {task: [line["doc_id"] for line in lines] for task, lines in run.samples.items()}
    assert found == {task: sorted(set(doc_ids)) for task, doc_ids in DOCUMENTS.items()}
    whole = evaluate(lm, ["pope"], **SHORT)
    assert whole is not None  # the same documents under the same numbers
    expected = {line["doc_id"]: (line["target"], line["filtered_resps"]) for line in whole.samples["pope"]}
    assert [(line["target"], line["filtered_resps"]) for line in run.samples["pope"]] == [expected[3], expected[29]]
    assert "documents" not in whole.results["config"]
    assert run.results["config"]["documents"] == {"mme": "4:6+20:22", "pope": "3+29", "mmmu_val": "7", "mmstar": "1:3"}
    assert run.results["n-samples"]["mme"] == {"original": 30, "effective": 4}
    read = read_run(run.results_file)
    assert len(read.samples) == 9 and (read.summary()["sample"], read.summary()["seed"]) == (2, 0)
    log = next(tmp_path.rglob("*_samples_pope.jsonl"))
    log.write_text(log.read_text().replace('"doc_id": 29', '"doc_id": 28'))
    with pytest.raises(RecordError, match=r"document 28.*another sample"):
        read_run(run.results_file)
    results = json.loads(run.results_file.read_text())
    results["config"]["documents"]["pope"] = "29+3"
    run.results_file.write_text(json.dumps(results))
    with pytest.raises(RecordError, match="config/documents: pope: found '3'"):
        read_run(run.results_file)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ({"pope": [1]}, "mme: found no document of it"),
        ({"pope": [1], "mme": []}, "mme: found no document of it"),
        ({"pope": [-1], "mme": ["0"]}, r"mme: found the document '0'[\s\S]*pope: found the document -1"),
        ({"pope": [30], "mme": [0, 1]}, "documents of pope: found document 30, expected some of its 30"),
        ({"pope": [1], "mme": [0, 2]}, "found one of the two of .*MME scores documents in pairs"),
    ],
)
def test_documents_that_cannot_be_asked_for(lm: Any, in_suite: Path, documents: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate(lm, ["mme", "pope"], documents=documents, **SHORT)
    with pytest.raises(EvaluationError, match="limit or offset beside them"):
        evaluate(lm, ["pope"], documents={"pope": [1]}, limit=3, **SHORT)


def test_what_is_asked_is_known_before_a_model_is_loaded(in_suite: Path) -> None:
    checked = check_tasks("mmstar,pope,mme", sample=Sample(5, seed=2))
    assert checked.documents == {"mmstar": 5, "pope": 5, "mme": 4}
    assert checked.asking["documents"] == {task: checked.asked(task) for task in checked.documents}
    assert checked.notes == ("mme: 4 documents, as near to 5 as whole images or questions allow",)
    larger = check_tasks("mmstar,pope,mme", sample=Sample(9, seed=2))
    assert all(set(checked.asked(task)) < set(larger.asked(task)) for task in checked.documents)
    assert check_tasks("mmstar,pope,mme", sample=Sample(5, seed=3)).asked("mmstar") != checked.asked("mmstar")
    assert (
        "mmstar: all of its 30 documents, which are not more than 99" in check_tasks("mmstar", sample=Sample(99)).notes
    )
    assert "no categories of its documents are known" in check_tasks("realworldqa", sample=Sample(5)).notes[0]
    assert check_tasks("mmstar", limit=4).asking == {"limit": 4, "offset": 0}


def test_a_limit_says_which_categories_it_takes(in_suite: Path) -> None:
    (note,) = check_tasks("mmmu_val", limit=2, offset=1).notes
    assert note.startswith("mmmu_val: the documents 1 to 2 that a limit takes are of 2 of its 30 categories (")
    assert check_tasks("mmmu_val", limit=30).notes == () == check_tasks("mmmu_val").notes


def test_what_is_left_out_by_task(in_suite: Path) -> None:
    excluded = Excluded({"mme": (4,), "mmbench_en_dev": (3,), "gqa": (1,)}, frozenset(), ("scan",))
    tasks = "mme,mmbench_en_dev_static,pope,mmstar"
    checked = check_tasks(tasks, sample=Sample(None, 0, excluded))
    assert set(range(30)) - set(checked.asked("mme")) == {4, 5}  # the pair
    assert 3 not in checked.asked("mmbench_en_dev_static")  # another task over these rows
    assert len(checked.asked("mmstar")) == 30
    assert any(note.startswith("pope: shows images of COCO, as gqa") for note in checked.notes)
    everything = Excluded({"mmstar": tuple(range(30))}, frozenset(), ("scan",))
    with pytest.raises(EvaluationError, match="exclude: scan has every document of mmstar"):
        check_tasks("mmstar,pope", sample=Sample(3, 0, everything))


def test_what_another_language_asked_is_left_out(in_suite: Path) -> None:
    def left(excluded: Excluded) -> set[int]:
        return set(
            check_tasks("mmbench_cn_dev_static", sample=Sample(None, 0, excluded)).asked("mmbench_cn_dev_static")
        )

    rows = load_tasks(task_manager(), ["mmbench_en_dev"])[0].task.eval_docs_no_media
    same = [doc_id for doc_id, row in enumerate(rows) if row["index"] in (rows[3]["index"], rows[5]["index"])]
    by_name = Excluded({"mmbench_en_dev": (3, 5)}, frozenset({f"MMBench dev {rows[at]['index']}" for at in (3, 5)}))
    by_number = Excluded({"mmbench_en_dev": (3, 5)}, frozenset(), ("plateau.yaml",), frozenset({"mmbench_en_dev"}))
    assert left(replace(by_name, origins=("scan",))) == left(by_number) == set(range(30)) - set(same)


def test_of_what_was_left_out_nothing_is_known_without_its_dataset(
    in_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    excluded = Excluded({"textvqa_val": (3,)}, frozenset(), ("plateau.yaml",), frozenset({"textvqa_val"}))
    assert check_tasks("mmstar", sample=Sample(None, 0, excluded)).documents == {"mmstar": 30}
    number = replace(excluded, documents={"mmbench_en_dev": (3,)}, nameless=frozenset({"mmbench_en_dev"}))
    stock = checks.load_tasks
    monkeypatch.setattr(
        checks, "load_tasks", lambda manager, names: stock(manager, names) if "mmbench_en_dev" not in names else 1 / 0
    )
    with pytest.raises(
        EvaluationError, match=r"numbers of documents of mmbench_en_dev.*mmbench_cn_dev_static may show"
    ):
        check_tasks("mmbench_cn_dev_static", sample=Sample(None, 0, number))


def test_what_another_version_of_a_dataset_was_asked_is_no_exclusion(in_suite: Path) -> None:
    excluded = Excluded({"mmstar": (3, 30), "pope": (1,)}, frozenset(), ("scan",))
    with pytest.raises(EvaluationError, match=r"scan has document 30 of mmstar, whose dataset has 30 here: .* another"):
        check_tasks("mmstar,pope", sample=Sample(None, 0, excluded))
    by_number = Excluded({"mmbench_en_dev": (3, 30)}, frozenset(), ("plateau.yaml",), frozenset({"mmbench_en_dev"}))
    with pytest.raises(EvaluationError, match=r"document 30 of mmbench_en_dev, whose dataset has 30 here"):
        check_tasks("mmbench_cn_dev_static", sample=Sample(None, 0, by_number))


def test_an_empty_word_leaves_nothing_out_and_is_refused(tmp_path: Path) -> None:
    given: dict[str, Any] = {"tasks": "pope", "model_args": "pretrained=nowhere", "output": tmp_path / "out"}
    for command in (plam_eval.scan, plam_eval.attend):
        for empty in ("", [""], "scan,"):
            with pytest.raises(ValueError, match=r"empty word|plain, so no scan"):
                command("plam_llava", exclude=empty, **given)
    for named in (plam_eval.compare, plam_eval.sweep):
        for empty in ("", [""], "scan,"):
            with pytest.raises(SweepError, match=r"exclude: found .*an empty word leaves nothing out"):
                named(model="plam_llava", exclude=empty, **given)


@pytest.mark.parametrize("beside", [{"limit": 3}, {"offset": 2}])
def test_a_sample_beside_a_limit_is_refused(in_suite: Path, tmp_path: Path, beside: dict[str, Any]) -> None:
    given: dict[str, Any] = {"tasks": "pope", "model_args": "pretrained=nowhere", "sample": 5, **beside}
    by_place: tuple[Callable[..., Any], ...] = (plam_eval.scan, plam_eval.attend)
    for command in by_place:
        with pytest.raises(ValueError, match="beside sample"):
            command("plam_llava", output=tmp_path / "out", **given)
    by_name: tuple[Callable[..., Any], ...] = (plam_eval.compare, plam_eval.sweep)
    for command in by_name:
        with pytest.raises(SweepError, match=r"sample: .* beside sample"):
            command(model="plam_llava", output=tmp_path / "out", **given)
    with pytest.raises(InputError, match="beside exclude"):
        check_tasks("pope", sample=Sample(None, 0, Excluded(origins=("scan",))), **beside)


def test_a_scan_grows_and_is_left_out_by_what_comes_after(
    lm: Any, pair: PicoPair, in_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"tasks": "mmstar,pope", "output": tmp_path / "scan", "cuts": "0,1", **SHORT}
    plam_eval.scan(lm, sample=4, seed=1, **given)
    first = keys(tmp_path / "scan" / "unmasked")
    answered = (tmp_path / "scan" / "answers.rank0.jsonl").read_text().count("\n")
    plam_eval.scan(lm, sample=6, seed=1, **given)
    second = keys(tmp_path / "scan" / "unmasked")
    assert first < second and answered == len(first) == 8
    assert (tmp_path / "scan" / "answers.rank0.jsonl").read_text().count("\n") == len(second) == 12
    for other in ({"sample": 6}, {"sample": 6, "seed": 1, "exclude": [tmp_path / "scan"]}, {"limit": 6}):
        with pytest.raises(ScanError, match=r"of other settings: sample \(was {'seed': 1}, is"):
            plam_eval.scan(lm, **given, **other)

    merged = f"{arguments(pair)},base={pair.base},layers=0:1"
    swept: dict[str, Any] = {"model": "plam_llava", "model_args": merged, "tasks": "mmstar,pope", "controls": "none"}
    swept |= {"output": tmp_path / "sweep", "exclude": tmp_path / "scan", "select": 4, **SHORT}
    found = plam_eval.sweep(sample=10, **swept)
    assert found is not None and found.selection is not None
    assert found.selection.chosen_on == {"mmstar": 4, "pope": 4}
    plain = keys(tmp_path / "sweep" / "cells" / "plain")
    assert len(plain) == 20 and not plain & second
    order = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["drawn"]["order"]["mmstar"].split()
    reported = found.runs["plain"].samples
    mine = set(reported.loc[reported["task"] == "mmstar", "doc_id"])
    assert mine == {int(word) for word in order[4:]}  # chosen on the first four that were drawn
    again = plam_eval.read_sweep(tmp_path / "sweep", select=6).runs["plain"].samples
    assert set(again.loc[again["task"] == "mmstar", "doc_id"]) == {int(word) for word in order[6:]}
    for other in ({"sample": 9}, {"sample": 10, "seed": 1}, {"limit": 10, "exclude": None}):
        with pytest.raises(SweepError, match=r"of other settings: .*sample \(was {'size': 10, 'seed': 0, 'excluded'"):
            plam_eval.sweep(**(swept | other))

    plan = tmp_path / "sweep" / "sweep.json"
    content = json.loads(plan.read_text())
    (tmp_path / "scan").rename(tmp_path / "moved")  # no other exclusion
    swept["exclude"] = tmp_path / "moved"
    with monkeypatch.context() as patch:
        patch.setattr("plam_eval.evaluation.sweep.runner.load_model", lambda *_: pytest.fail("its cells are finished"))
        assert plam_eval.sweep(sample=10, **swept) is not None
    assert json.loads(plan.read_text())["settings"] == content["settings"]
    content["drawn"]["order"]["mmstar"] = " ".join(order[1:])
    plan.write_text(json.dumps(content))
    with pytest.raises(SweepError, match="cells of other documents of mmstar"):
        plam_eval.sweep(sample=10, layers="0:1,1:2", **swept)


@pytest.mark.slow
def test_two_processes_share_a_sample(pair: PicoPair, in_suite: Path, tmp_path: Path) -> None:
    words = ["scan", "--model", "plam_llava", "--model_args", arguments(pair), "--tasks", "mme,mmstar,realworldqa"]
    words += ["--sample", "5", "--seed", "4", "--cuts", "0", "--gen_kwargs", "max_new_tokens=2", "--output"]
    for processes, name in ((1, "one"), (2, "two")):
        status, said = forked.run("plam_eval.cli", [*words, str(tmp_path / name)], processes=processes)
        assert status == 0, said
    one, two = (read_run(tmp_path / name / "unmasked") for name in ("one", "two"))
    assert one.config["documents"] == two.config["documents"]
    tables = (run.samples.sort_values(["task", "doc_id"], ignore_index=True) for run in (one, two))
    assert next(tables).equals(next(tables)) and len(one.samples) == 14
