"""Which documents folders and specs stand for, that are to be left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import plam_eval
from plam_eval.errors import DamagedFileError, InputError
from plam_eval.evaluation import scan_folder as scan_folder_of
from plam_eval.evaluation.attend import folder as attend_folder
from plam_eval.evaluation.excluded import read_excluded
from plam_eval.harness.errors import EvaluationError
from plam_eval.probing.plateau import find_plateau
from plam_eval.probing.spec_file import to_spec, write_spec
from plam_eval.spec import load_spec
from tests.helpers.curves import curve, three_stages
from tests.helpers.run_folders import changed, documents, write_run, write_sweep

STAGES = find_plateau(curve(three_stages, tasks=["mme", "gqa"]))


def scan_folder(folder: Path) -> Path:
    folder.mkdir()
    settings = {"pretrained": "m", "wrapper": "w", "mode": "chat", "dtype": "float32", "spec": None, "versions": {}}
    (folder / "scan.json").write_text(json.dumps(settings))
    rows = [
        {"task": "pope", "doc_id": doc_id, "cut": cut, "group": f"image COCO_val2014_{doc_id:012d}"}
        for doc_id in (4, 2)
        for cut in (0, 8)
    ]
    pd.DataFrame(rows).to_parquet(folder / "samples.parquet")
    return folder


def test_of_a_scan_all_and_the_images_that_they_show(tmp_path: Path) -> None:
    folder = scan_folder(tmp_path / "scan")
    found = read_excluded([str(folder)])
    assert (found.documents, found.shared) == ({"pope": (2, 4)}, {"COCO 2", "COCO 4"}) and not found.nameless
    assert found.origins == (str(folder),)


def test_of_a_run_all(two_runs: list[Path]) -> None:
    assert read_excluded([str(two_runs[0])]).documents["pope"] == tuple(range(40))


@pytest.mark.parametrize("select", [None, 5])
def test_of_a_sweep_those_it_chose_on(tmp_path: Path, select: int | None) -> None:
    plain = documents(["pope"], 12, right=6)
    name = "layers-6-8_qkvo_0.9+0.3"
    write_sweep(tmp_path / "s", {"plain": plain, name: changed(plain, {("pope", 1): ("yes", 1.0)})})
    file = tmp_path / "s" / "sweep.json"
    plan = json.loads(file.read_text())
    plan["config"]["select"] = select
    file.write_text(json.dumps(plan))
    first = read_excluded([str(tmp_path / "s")]).documents["pope"]
    assert first == (tuple(range(12)) if select is None else tuple(range(5)))  # made before documents were drawn
    plan["drawn"] = {"seed": 0, "order": {"pope": "7 3 11 0 9 1 2 4 5 6 8 10"}}
    file.write_text(json.dumps(plan))
    drawn = read_excluded([str(tmp_path / "s")]).documents["pope"]
    assert drawn == (tuple(range(12)) if select is None else (0, 3, 7, 9, 11))
    plan["drawn"] = {"seed": 0, "order": {"pope": "7 7"}}
    file.write_text(json.dumps(plan))
    with pytest.raises(DamagedFileError, match=r"drawn: .*each document once"):
        read_excluded([str(tmp_path / "s")])
    for order in ({"pope": "0:11"}, {"pope": "999 1000"}, {"mme": "0:12"}):  # nothing would be left out
        plan["drawn"] = {"seed": 0, "order": order}
        file.write_text(json.dumps(plan))
        for read in (lambda: read_excluded([str(tmp_path / "s")]), lambda: plam_eval.read_sweep(tmp_path / "s")):
            with pytest.raises(DamagedFileError, match=r"drawn: pope: found no document \d+ in it, which was asked"):
                read()
    plan["config"]["select"] = -5
    file.write_text(json.dumps(plan))
    with pytest.raises(DamagedFileError, match="config/select: found -5, expected 0 or more"):
        read_excluded([str(tmp_path / "s")])


def test_of_a_search_those_it_chooses_on(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text("{}")
    with pytest.raises(InputError, match="has not begun"):
        read_excluded([str(tmp_path)])
    rows = [{"task": "pope", "doc_id": 3, "cluster": "image a", "prompt": "?"}]
    (tmp_path / "documents.json").write_text(json.dumps({"documents": rows}))
    assert read_excluded([str(tmp_path)]).documents == {"pope": (3,)}
    rows[0]["doc_id"] = "x"
    (tmp_path / "documents.json").write_text(json.dumps({"documents": rows}))
    with pytest.raises(DamagedFileError, match="documents without a number"):
        read_excluded([str(tmp_path)])


def test_the_scan_of_a_spec_is_told_by_its_evidence_or_by_the_folder_it_lies_in(tmp_path: Path) -> None:
    spec = to_spec(STAGES, model="m", base_model="b", doc_ids={"pope": [1, 2, 3], "mmstar": [9]})
    assert spec.evidence is not None and spec.evidence["doc_ids"] == {"pope": "1:4", "mmstar": "9"}
    assert spec.digest() == to_spec(STAGES, model="m", base_model="b").digest()
    elsewhere = write_spec(spec, tmp_path / "plateau.yaml")
    assert read_excluded(["scan"], str(elsewhere)).documents == {"mmstar": (9,), "pope": (1, 2, 3)}
    assert read_excluded([str(elsewhere)]).documents == {"mmstar": (9,), "pope": (1, 2, 3)}
    assert read_excluded([str(elsewhere)]).nameless == {"mmstar", "pope"}
    folder = scan_folder(tmp_path / "made")
    beside = write_spec(spec, folder / "plateau.yaml")
    assert read_excluded(["scan"], str(beside)).documents == {"pope": (2, 4)}
    assert load_spec(beside) == spec


def test_a_spec_that_does_not_name_them_is_refused(tmp_path: Path) -> None:
    long = to_spec(STAGES, model="m", base_model="b", doc_ids={"gqa": range(0, 9000, 2)})
    assert "doc_ids" not in (long.evidence or {})  # a server takes no specs with such texts
    file = write_spec(long, tmp_path / "plateau.yaml")
    with pytest.raises(InputError, match=r"scan: .*says nothing of a scan but the number .* name the scan's folder"):
        read_excluded(["scan"], str(file))
    with pytest.raises(InputError, match="the model is plain"):
        read_excluded(["scan"], None)
    damaged = long.to_dict() | {"evidence": {"doc_ids": {"pope": "4+2"}}}
    with pytest.raises(DamagedFileError, match="doc_ids: pope: found '2'"):
        read_excluded(["scan"], load_spec(damaged))


def test_every_word_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "scan.json").write_text("{}")
    with pytest.raises(InputError) as caught:
        read_excluded([str(tmp_path / "absent"), str(tmp_path / "empty"), str(unfinished), " "])
    absent, empty, begun, nothing = caught.value.problems
    assert "found an empty word; expected the folder of a scan" in nothing  # as of a variable that is not set
    assert "no such folder; expected the folder of a scan" in absent
    assert "no *_results.json below" in empty and "the scan has not finished" in begun


def test_a_user_whom_the_machine_does_not_know_is_told() -> None:
    with pytest.raises(
        InputError, match=r"~nobody-of-this-name/x: .*home directory.*; write \./~nobody-of-this-name/x"
    ):
        read_excluded(["~nobody-of-this-name/x"])


@pytest.mark.parametrize("open_store", [scan_folder_of.open_store, attend_folder.open_store])
def test_a_folder_goes_on_where_what_it_leaves_out_was_moved(tmp_path: Path, open_store: Callable[..., Any]) -> None:
    def settings(folder: str, digest: str) -> dict[str, Any]:
        told: dict[str, Any] = dict.fromkeys(("wrapper", "pretrained", "mode", "dtype"), "x")
        told |= {"settings": {"plain": None}, "queries": "last", "num_layers": 8}
        told |= {"depth": False, "gen_kwargs": None, "versions": {}}
        return {**told, "sample": {"seed": 0, "excluded": [folder], "excluded_digest": digest}}

    open_store(tmp_path, settings("scan", "a"), 0).add({"task": "pope", "doc_id": 1})
    open_store(tmp_path, settings("elsewhere/scan", "a"), 0)
    assert json.loads(next(tmp_path.glob("*.json")).read_text()) == settings("scan", "a")
    with pytest.raises(EvaluationError, match=r"sample \(was .*'scan'.*, is .*'scan'"):
        open_store(tmp_path, settings("scan", "b"), 0)


def test_several_folders_add_up(tmp_path: Path, two_runs: list[Path]) -> None:
    folder = scan_folder(tmp_path / "scan")
    write_run(tmp_path / "run", documents(["mmstar"], 3, right=1))
    found = read_excluded([str(folder), str(tmp_path / "run")])
    assert found.documents == {"mmstar": (0, 1, 2), "pope": (2, 4)}
