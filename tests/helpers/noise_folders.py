"""Folders of `plam compare --noise`, written without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plam_eval.evaluation.sweep.config import SweepConfig
from plam_eval.evaluation.sweep.folder import CELLS, PLAN
from plam_eval.evaluation.sweep.grid import PLAIN, pair_grid
from tests.helpers.run_folders import VERSIONS, Document, write_cell

ARGUMENTS = "pretrained=pair/mllm,plateau=demo,base=pair/base"


def write_pair(folder: Path, plain: Sequence[Document], merged: Sequence[Document] | str | None) -> None:
    """A comparison's folder; of a text for documents a cell that failed so, of None one that has not been run."""
    config = SweepConfig.load(model="plam_llava", model_args=ARGUMENTS, tasks="pope,mmstar", controls="none")
    grid = pair_grid(config)
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "model": "plam_llava",
        "model_args": {"pretrained": "pair/mllm"},
        "checkpoint": {"folder": "/models/pair/mllm", "sha256": "ab" * 32},
        "bases": {"pair/base": {"sha256": "cd" * 32}},
        "versions": VERSIONS,
    }
    plan = {
        "config": config.model_dump(mode="json"),
        "settings": settings,
        "grid": grid.to_dict(),
        "num_layers": 8,
        "working_directory": "/no/such/folder",
        "command": ["plam", "compare"],
    }
    (folder / PLAN).write_text(json.dumps(plan), encoding="utf-8")
    for cell, content in zip(grid.cells, (plain, merged), strict=True):
        if content is not None:
            write_cell(folder / CELLS / cell.name, cell, content)
    assert grid.cells[0].name == PLAIN


def again(
    folder: Path, variant: str, plain: Sequence[Document] | str, merged: Sequence[Document] | str | None = None
) -> None:
    """What answering again has left below a comparison's folder."""
    write_pair(folder / "noise" / variant, plain, merged)  # type: ignore[arg-type]
