"""What a premise check says of three runs that were written without a model."""

from __future__ import annotations

import math
from pathlib import Path

from plam_eval.evaluation.premise.findings import PremiseFindings, findings_of
from plam_eval.evaluation.records import read_run
from tests.helpers.run_folders import documents, write_run


def found(folder: Path, base: int, plain: int, merged: int) -> PremiseFindings:
    """A check of 60 documents, of which so many are right."""
    right = {"base": base, "plain": plain, "merged": merged}
    runs = {name: read_run(write_run(folder / name, documents(["gqa"], 60, count))) for name, count in right.items()}
    return findings_of(folder, "base", "mllm", runs)


def test_a_share_is_of_a_loss_that_the_verdict_says_is_shown(tmp_path: Path) -> None:
    """6 lost of 6 that changed: p = 0.031 of one comparison, 0.062 of two."""
    not_shown = found(tmp_path / "6", 60, 54, 54)
    lost = not_shown.table.iloc[-1]
    assert lost["lost_p"] < 0.05 < not_shown.p_holm[0]
    assert math.isnan(lost["share"]) and "no loss is shown" in lost["no_share"]
    assert "No loss" in not_shown.verdict() and "Of what was lost" not in not_shown.verdict()
    shown = found(tmp_path / "20", 60, 40, 50)
    assert "has lost" in shown.verdict() and "Of what was lost, 50% came back" in shown.verdict()
