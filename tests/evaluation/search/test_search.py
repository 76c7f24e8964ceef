"""A search of the embedded pair, on the offline suite, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from plam_eval.evaluation.search.runner import standing_of
from plam_eval.evaluation.sweep import runner as sweep_runner
from plam_eval.evaluation.sweep.findings import read_findings
from tests.helpers.searching import job
from tests.helpers.sweeps import SPEC, plam

WORDS = ("search", "--model", "plam_llava", "--model_args", SPEC, "--tasks", "pope,mmstar", "--limit", "12")
OPTIONS = (
    "--select",
    "4",
    "--trials",
    "4",
    "--draws",
    "1",
    "--controls",
    "self_scale,random_layers",
    "--within",
    "4:8",
)


def result(output: str) -> dict[str, Any]:
    """What --json wrote, among what went to standard error."""
    found: dict[str, Any] = json.JSONDecoder().raw_decode(output[output.index("{\n") :])[0]
    return found


@pytest.mark.slow
def test_a_search_from_the_command_line(in_suite, tmp_path, monkeypatch) -> None:
    words = (*WORDS, *OPTIONS, "--output", str(tmp_path / "search"))
    planned = result(plam(*words, "--dry-run=0", "--json"))
    assert planned["documents"] == {"pope": 12, "mmstar": 12} and planned["size"] == 10 * 36
    assert not (tmp_path / "search").exists(), "nothing is written"

    found = result(plam(*words, "--json"))
    assert found["tried"] == len(found["trials"]) == 4 and found["failures"] == []
    chosen = [row for row in found["trials"] if row["chosen"]]
    assert len(chosen) == 1 and found["verdict"].startswith("Chosen of 4 settings (tpe)")
    assert "against plain, p =" in found["verdict"] and "times 4 settings" in found["verdict"]

    held_out = read_findings(tmp_path / "search" / "heldout")
    assert held_out.selection.tried == 4 and held_out.selection.held_out
    cells = held_out.cells.set_index("cell")
    assert cells.loc[held_out.selection.cell, "digest"] == chosen[0]["setting"]
    assert {*held_out.controls["rule"]} >= {"self_scale"}
    documents = json.loads((tmp_path / "search" / "documents.json").read_text())["documents"]
    asked = {(row["task"], row["doc_id"]) for row in documents}
    reported = {*map(tuple, held_out.runs["plain"].samples[["task", "doc_id"]].itertuples(index=False))}
    assert not asked & reported and len(asked) + len(reported) == 24

    # The answers are those of the model merged and evaluated by itself.
    run = held_out.runs[held_out.selection.cell]
    assert run.block["provenance"]["digest"] == chosen[0]["setting"]
    stored = json.loads((tmp_path / "search" / "answers" / f"{chosen[0]['setting']}.json").read_text())["answers"]
    whole = _whole_run(tmp_path / "search" / "heldout", held_out.selection.cell)
    for row in stored:
        (same,) = whole[(whole["task"] == row["task"]) & (whole["doc_id"] == row["doc_id"])].to_dict("records")
        assert (same["answer"], same["score"]) == (row["answer"], row["score"])

    def no_model(*_: object) -> None:
        raise AssertionError("a finished search loads no model")

    monkeypatch.setattr(sweep_runner, "load_model", no_model)
    assert result(plam(*words, "--json"))["trials"] == found["trials"]
    page = plam("report", str(tmp_path / "search"), "--output", str(tmp_path / "page"))
    assert "page" in page and list((tmp_path / "page").glob("*.html"))
    assert standing_of(job(tmp_path / "none")) is None


def _whole_run(folder: Path, cell: str) -> pd.DataFrame:
    from plam_eval.evaluation import records

    return records.read_run(folder / "cells" / cell).samples


def test_mistakes_are_told_before_a_model_is_loaded(in_suite, tmp_path) -> None:
    output = ("--output", str(tmp_path / "search"))
    for words in (
        (*WORDS, *output),
        (*WORDS, *OPTIONS, *output, "--sampler", "cmaes"),
        (*WORDS, *OPTIONS, *output, "--within", "4:99"),
        (*WORDS, *OPTIONS[2:], *output, "--select", "12"),
        (*WORDS, *OPTIONS, *output, "--tasks", "popee"),
        (*WORDS, *OPTIONS, *output, "--rules", "trimm"),
    ):
        plam(*words, exit_code=1)
        assert not (tmp_path / "search").exists()
