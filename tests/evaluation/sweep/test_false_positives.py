"""A small part of benchmarks/verdict.py: sweeps in which nothing is better than anything, and what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from plam_eval.evaluation.records import Run
from plam_eval.evaluation.sweep.conclusion import Conclusion
from plam_eval.evaluation.sweep.config import SweepConfig
from plam_eval.evaluation.sweep.findings import findings_of
from plam_eval.evaluation.sweep.grid import Grid, make_grid

SWEEPS, DOCUMENTS, SELECT = 30, 240, 80
CHANGED = 0.1  # of a cell's answers, against plain's


def grid() -> Grid:
    return make_grid(
        SweepConfig.load(
            model="plam_llava",
            model_args="pretrained=mllm,base=org/base,layers=6:8",
            tasks="gqa",
            layers="windows:1:2,starts:4",
            weights="0.9+0.3",
            controls="self_scale",
        ),
        8,
    )


def runs_of(grid: Grid, rng: np.random.Generator, gain: float = 0) -> dict[str, Run]:
    """Plain is right half the time; each other cell changes some answers, as many for the better as for the worse.

    Args:
        grid: of the sweep.
        rng: what answers are drawn from.
        gain: share of documents that merges are made right on, beyond that.
    """
    plain = rng.random(DOCUMENTS) < 0.5
    runs = {}
    for cell in grid.cells:
        right = plain ^ (rng.random(DOCUMENTS) < (CHANGED if cell.kind != "plain" else 0))
        if cell.kind == "merged":
            right |= rng.random(DOCUMENTS) < gain
        samples = pd.DataFrame({"task": "gqa", "doc_id": range(DOCUMENTS), "score": right.astype(float)})
        samples = samples.assign(group=[f"i{n}" for n in range(DOCUMENTS)], answer=np.where(right, "yes", "no"))
        samples = samples.assign(prompt="?", target="yes", metric="exact_match", parsable=True)
        runs[cell.name] = Run(Path(cell.name), {"configs": {"gqa": {}}}, samples)
    return runs


def conclusions(select: int | None, gain: float = 0, sweeps: int = SWEEPS) -> list[Conclusion]:
    swept, said = grid(), []
    for number in range(sweeps):
        runs = runs_of(swept, np.random.default_rng([7, number]), gain)
        said.append(findings_of(swept, runs, select, resamples=2).conclusion)
    assert None not in said
    return [one for one in said if one is not None]


def test_the_best_of_several_is_not_called_better_for_being_the_best() -> None:
    said = conclusions(select=None)
    assert {(one.tried, one.held_out) for one in said} == {(6, False)}
    by_itself = [one for one in said if one.plain.p < 0.05 and one.plain.difference > 0]
    scale_by_itself = [one for one in said if one.scale and one.scale.p < 0.05 and one.scale.difference > 0]
    for raw, called in (
        (len(by_itself), sum(one.against_plain == "better" for one in said)),
        (len(scale_by_itself), sum(one.against_scale == "better" for one in said)),
    ):
        assert called <= 1 < raw  # what the adjustment is for
    assert sum(one.positive for one in said) <= 1


def test_on_other_documents_the_best_is_as_good_as_any() -> None:
    said = conclusions(select=SELECT)
    assert {(one.tried, one.held_out, one.documents) for one in said} == {(6, True, DOCUMENTS - SELECT)}
    assert sum(one.against_plain is not None for one in said) <= 4
    assert sum(one.against_plain == "better" for one in said) <= 2
    assert not any(one.positive for one in said)


@pytest.mark.parametrize("select", [None, SELECT])
def test_what_is_there_is_seen(select: int | None) -> None:
    assert all(one.positive for one in conclusions(select, gain=0.4, sweeps=4))
