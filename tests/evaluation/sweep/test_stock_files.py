"""Files that tasks write themselves, in runs of real wrappers: cells of a sweep, Ray's workers, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from plam_eval.evaluation.records import read_run
from plam_eval.harness.run_files import result_files
from tests.helpers.offline_copies import write_copies
from tests.helpers.offline_tests import TESTS
from tests.helpers.sweeps import SPEC, plam

pytestmark = pytest.mark.slow

FILE = "stvqa_test_for_submission.json"


@pytest.fixture
def hub(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with MMBench's dev split and ST-VQA."""
    folder = tmp_path / "hub"
    write_copies(folder, [copy for copy in TESTS if "stvqa" in copy.tasks])
    (folder / "lmms-lab-encoder" / "MMBench").symlink_to(suite / "lmms-lab-encoder" / "MMBench")
    monkeypatch.chdir(folder)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def check_files(run: Path) -> list[str]:
    """A run's own file holds what its log says was answered, which is returned."""
    (file,) = result_files(run)
    stock = file.with_name(file.name.replace("_results.json", "_stock"))
    assert {path.name for path in stock.iterdir()} > {FILE, "mmbench_en_dev_static_results.json"}
    samples = read_run(run).samples
    answered = samples.loc[samples["task"] == "stvqa", "answer"].tolist()
    assert [row["answer"] for row in json.loads((stock / FILE).read_text())] == answered and len(answered) == 4
    return answered


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=[pytest.mark.needs("ray"), pytest.mark.long])])
def test_cells_of_a_sweep_keep_their_files(hub: Path, tmp_path: Path, workers: str) -> None:
    before = names(hub)
    given = ["--tasks", "mmbench_en_dev_static,stvqa", "--limit", "4", "--gen_kwargs", "max_new_tokens=4"]
    given += ["--layers", "all", "--weights", "0.9+0.3,0.0+1.0", "--controls", "none", "--output", str(tmp_path / "s")]
    on_ray = ["--ray", "--workers", workers] if workers != "1" else []
    plam("sweep", "--model", "plam_llava", "--model_args", SPEC, *given, *on_ray)
    cells = sorted((tmp_path / "s" / "cells").iterdir())
    answers = [check_files(cell) for cell in cells]
    assert len(cells) == 3 and answers[0] != answers[1], "the base alone answers otherwise"
    assert names(hub) == before


def test_two_processes_write_one_file_and_leave_the_working_directory(hub: Path, tmp_path: Path) -> None:
    before = set(names(hub))
    common = {"model": "plam_llava", "model_args": SPEC, "tasks": "mmbench_en_dev_static,stvqa", "limit": 4}
    common |= {"batch_size": 1, "gen_kwargs": "max_new_tokens=4"}
    runs = [common | {"output_path": str(tmp_path / "runs"), "log_samples": True}, common]
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump(runs))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lmms_eval"]
    done = subprocess.run(
        [sys.executable, *launcher, "--config", str(tmp_path / "runs.yaml")],
        cwd=hub,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check_files(tmp_path / "runs")
    new = set(names(hub)) - before
    (file,) = [name for name in new if name.endswith(FILE)]
    assert Path(file).match(f"submissions/*__plam-*/*_stock/{FILE}")
    assert {Path(name).parts[0] for name in new} == {"submissions"}
    assert file in done.stdout, "where it is, is said"
