"""What a search says of its folder: settings in words, and the chosen merge beside others on the other documents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plam_eval.errors import DamagedFileError
from plam_eval.evaluation.search.findings import SearchFindings, read_search
from plam_eval.evaluation.search.runner import standing_of, try_settings
from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.report import tables
from plam_eval.spec import load_spec
from tests.helpers.run_folders import documents, write_sweep
from tests.helpers.searching import Fake, job
from tests.helpers.sweeps import SPEC

MERGED = "layers-4-8_qkvo_0.9+0.3"


def test_a_ramp_to_begin_with_is_told(tmp_path: Path) -> None:
    planned = job(tmp_path, trials=4, model_args=f"{SPEC},model_weight=0.9:0.5,base_weight=0.1:0.5")
    try_settings(planned, Fake(lambda spec: 0.9 if spec == planned.space.start else 0.5))
    standing = standing_of(planned)
    assert standing is not None and standing.best == 0
    found = read_search(tmp_path)
    row = found.trials[found.trials["chosen"]].iloc[0]
    assert (row["weights"], row["model_weight"], row["base_weight"]) == ("0.9:0.5 + 0.1:0.5", 0.9, 0.1)
    assert "0.9:0.5 + 0.1:0.5" in found.verdict()
    assert tables.search(found).row_count == 4


@pytest.mark.parametrize("sign", [1, -1])
def test_random_layers_are_told_with_their_rank_and_the_sets_that_were_tried(tmp_path: Path, sign: int) -> None:
    settings: dict[str, Any] = {"layers": "4:8", "controls": "self_scale,random_layers", "draws": 3, "select": 10}
    grid = write_sweep(tmp_path, {}, **settings)
    plain, merged, drawn = (20, 40, (25, 25, 45)) if sign > 0 else (40, 20, (35, 35, 15))
    right = {"plain": plain, MERGED: merged, f"{MERGED}_self_scale": plain}
    right |= dict(zip(grid.controls[MERGED]["random_layers"], drawn, strict=True))
    write_sweep(tmp_path, {name: documents(["pope"], 60, right=count) for name, count in right.items()}, **settings)
    if sign < 0:
        for file in tmp_path.rglob("*_results.json"):
            file.write_text(file.read_text().replace('"pope_accuracy": true', '"pope_accuracy": false'))
    held_out = read_findings(tmp_path)
    digest = held_out.cells.set_index("cell").loc[MERGED, "digest"]
    chosen = {"digest": digest, "tried": 40, "layer_sets": 14, "difference": 0.1}
    held_out = replace(held_out, plan={**held_out.plan, "chosen": chosen})
    spec = next(cell.spec for cell in grid.cells if cell.name == MERGED)
    trials = held_out.cells[held_out.cells["cell"] == MERGED].assign(
        number=0, setting=digest, gain=0.1, whole=True, chosen=True
    )
    found = SearchFindings(tmp_path, trials, "tpe", 10, held_out, None, load_spec(spec), {})
    said = found.verdict()
    assert "better than 2 of 3 draws of as many layers, rank p = 0.50." in said
    assert "The rank does not count that the layers are the best of 14 sets." in said
    assert ("a gain is a difference below zero" in said) == (sign < 0)


def test_a_document_that_is_listed_twice_is_damage(tmp_path: Path) -> None:
    try_settings(job(tmp_path, trials=3), Fake())
    file = tmp_path / "documents.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "documents": [*content["documents"], content["documents"][0]]}))
    with pytest.raises(DamagedFileError, match=r"documents\.json: holds no documents as a search writes them"):
        read_search(tmp_path)
