"""A sweep with Ray, of which a worker or the process that shares cells out is killed: the same command finishes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.kill_points import check_visible, content, differences
from tests.helpers.paths import PAIR
from tests.helpers.sweeps import SPEC, plam

pytestmark = [pytest.mark.long, pytest.mark.needs("ray")]


def words(folder: Path, *more: str) -> list[str]:
    given = ["--model", "plam_llava", "--model_args", SPEC, "--tasks", "pope", "--limit", "6"]
    grid = ["--layers", "6:8", "--weights", "0.3+1.2", "--controls", "self_scale,noise"]
    return ["sweep", *given, *grid, *more, "--output", str(folder)]


def workers_in(folder: Path) -> list[int]:
    """Ray's workers that stand in a folder: those of other tests stand elsewhere."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title, place = (process / "cmdline").read_bytes(), (process / "cwd").readlink()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # one that has just ended
        if title.startswith(b"ray::_Worker") and place == folder:
            found.append(int(process.name))
    return found


@pytest.mark.parametrize("killed", ["worker", "driver"])
def test_killed_in_its_second_cell_the_same_command_finishes(
    killed: str, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(suite)
    plam(*words(tmp_path / "whole" / "out"))
    command = [sys.executable, "-m", "plam_eval.cli", *words(tmp_path / "ray" / "out", "--ray", "--workers", "1")]
    cells, said = tmp_path / "ray" / "out" / "cells", tmp_path / "said"
    with said.open("w") as log:
        process = subprocess.Popen(command, cwd=suite, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 180
    while len([*cells.glob("[!.]*/cell.json")]) < 1 or not [*cells.glob(".*.partial/log.txt")]:
        assert process.poll() is None and time.monotonic() < deadline, said.read_text()
        time.sleep(0.02)
    (worker,) = workers_in(suite)
    os.kill(process.pid if killed == "driver" else worker, signal.SIGKILL)
    assert process.wait(180) == (-9 if killed == "driver" else 0), said.read_text()  # another worker answers the cell
    check_visible(tmp_path / "ray")
    again = subprocess.run(command, cwd=suite, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    found = differences(content(tmp_path / "whole"), content(tmp_path / "ray"))
    assert not [line for line in found if not line.startswith("out/sweep.json")], found
    assert PAIR.is_dir() and not [*cells.glob(".*.partial")]
