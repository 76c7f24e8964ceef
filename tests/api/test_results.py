"""What is finished or planned, as values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plam_eval
from plam_eval.errors import InputError, PlamError
from plam_eval.harness.errors import RecordError


def test_compare_gives_a_table(two_runs: list[Path]) -> None:
    found = plam_eval.compare(two_runs)
    assert found is not None
    assert list(found.table["task"]) == ["pope", "mmstar", "overall"]
    row = found.table.set_index("task").loc["pope"]
    assert (row["first"], row["second"], row["gained"], row["lost"]) == (0.5, 0.75, 10, 0)
    assert found.runs[0].samples["answer"].nunique() > 1 and "+0.125" in repr(found)
    assert list(plam_eval.compare(two_runs, tasks="mmstar").table["task"]) == ["mmstar", "overall"]
    with pytest.raises(InputError, match="two run folders"):
        plam_eval.compare([two_runs[0]])
    with pytest.raises(InputError, match="--limit, --together, --output with two run folders, which are compared as"):
        plam_eval.compare(two_runs, limit=5, together=True, output="there")
    with pytest.raises(InputError, match="--together with two run folders"):
        plam_eval.compare(two_runs, together=2)
    assert plam_eval.compare(two_runs, together=False) is not None
    with pytest.raises(RecordError, match="nowhere: no such folder"):
        plam_eval.compare([two_runs[0], "/nowhere"])
    run = plam_eval.read_run(str(two_runs[0]))
    assert repr(run) == f"Run({run.file}, 80 documents of pope, mmstar)"
    assert len(run.samples) == 80 and run.accuracy().to_dict() == {"pope": 0.5, "mmstar": 0.5}


def test_a_sweep_is_read_again(small_sweep: Path) -> None:
    found = plam_eval.read_sweep(small_sweep)
    assert "layers 6:8" in found.verdict() and str(small_sweep) in repr(found)
    (failure,) = found.failures()
    assert failure.startswith("failed: layers-0-8_qkvo_0.9+0.3: RuntimeError: out of memory") and "log.txt" in failure


def test_a_report_from_python(two_runs: list[Path], tmp_path: Path) -> None:
    page = plam_eval.report(two_runs[0], tmp_path / "page")
    assert page == tmp_path / "page" / "index.html" and page.is_file()


def test_a_plan_from_python(pico: Callable[[str], Any], tmp_path: Path, in_suite: Path) -> None:
    pair = pico("llava")
    arguments = {"pretrained": pair.mllm, "base": pair.base, "layers": "2:4"}
    planned = plam_eval.plan_sweep(
        model="plam_llava", model_args=arguments, tasks=["pope"], weights=[(0.9, 0.3)], limit=4, output=tmp_path / "s"
    )
    assert repr(planned) == f"SweepPlan({tmp_path / 's'}, 5 of 5 cells to run, 4 documents each)"
    with pytest.raises(
        PlamError, match="choosing on 4 documents leaves none of pope to report on, which has 4; choose"
    ):
        plam_eval.plan_sweep(
            model="plam_llava", model_args=arguments, tasks="pope", limit=4, select=4, output=tmp_path / "s"
        )
    assert planned.documents == {"pope": 4} and not (tmp_path / "s").exists()
    assert planned.cells["kind"].value_counts().to_dict() == {"control": 3, "plain": 1, "merged": 1}
    assert (planned.cells["bytes_to_read"] > 0).sum() == 4 and not planned.cells["finished"].any()
