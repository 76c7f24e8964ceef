"""A sweep with Ray, of which a worker or the process that shares cells out is killed: the same command finishes."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.kill_points import check_visible, content, differences
from tests.helpers.sweeps import SPEC, plam

pytestmark = [pytest.mark.long, pytest.mark.needs("ray")]
SEED = 20261127
CELLS = 4


def words(folder: Path, *more: str) -> list[str]:
    given = ["--model", "plam_llava", "--model_args", SPEC, "--tasks", "pope", "--limit", "12"]
    grid = ["--layers", "6:8", "--weights", "0.3+1.2", "--controls", "self_scale,noise"]
    return ["sweep", *given, *grid, *more, "--output", str(folder)]


@dataclass(frozen=True)
class Moment:
    """When a process is killed: so many cells have ended, and a share of the next one's time has passed."""

    killed: str
    ended: int
    share: float

    def __str__(self) -> str:
        return f"{self.killed}, cell {self.ended + 1}, {self.share:.0%}"


def moments(*killed: str) -> list[Moment]:
    """One for each, in cells of their own: never the last, as what is drawn late in a cell may come to the next."""
    draw = random.Random(SEED)
    cells = draw.sample(range(CELLS - 1), len(killed))
    return [Moment(who, cell, draw.random()) for who, cell in zip(killed, cells, strict=True)]


@pytest.fixture(scope="module")
def whole(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep by one process, in `out`. Do not modify."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(suite)
        plam(*words(folder / "out"))
    return folder


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


def ended(folder: Path) -> dict[str, int]:
    """Cells that have ended, and when."""
    return {file.parent.name: file.stat().st_mtime_ns for file in folder.glob("out/cells/[!.]*/cell.json")}


def begun(folder: Path) -> list[str]:
    return [
        made.name[1 : -len(".partial")] for made in folder.glob("out/cells/.*.partial") if (made / "log.txt").exists()
    ]


def seconds(whole: Path, place: int) -> float:
    """What a cell took in one process, by its place among them."""
    name = sorted(ended(whole), key=ended(whole).__getitem__)[place]
    found = json.loads((whole / "out" / "cells" / name / "cell.json").read_text())["seconds"]
    return float(sum(found.values()))


def plan(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "sweep.json").read_text())
    return found


def check_equal(folder: Path, whole: Path, again: str | None, command: list[str]) -> None:
    """All that is left is what one process leaves, but for what is named here.

    Args:
        folder: of the sweep on Ray.
        whole: of the one by one process.
        again: the cell that a second worker has answered, if any: lmms-eval notes the folder it was made in.
        command: by which the sweep on Ray was begun.
    """
    found = differences(content(whole), content(folder))
    if again is not None:
        key, made = "config/resolved_cli_args/output_path", f"ROOT/out/cells/.{again}"
        of_the_cell = re.compile(
            rf"out/cells/{re.escape(again)}/[^/]+/DATE_results\.json/{key}: "
            + re.escape(f"'{made}.partial' and '{made}.again1.partial'")
        )
        assert len([line for line in found if of_the_cell.fullmatch(line)]) == 1, found
        found = [line for line in found if not of_the_cell.fullmatch(line)]
    assert not found
    ours, theirs = plan(folder), plan(whole)
    assert {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)} == {"command"}
    assert ours["command"] == ["plam", *command]
    assert not [*folder.glob("out/cells/.*")] and not [*folder.glob("out/.ray-*")]


@pytest.mark.parametrize("moment", moments("worker", "worker", "driver"), ids=str)
def test_killed_at_any_moment_the_same_command_finishes(
    moment: Moment, whole: Path, suite: Path, tmp_path: Path
) -> None:
    given = words(tmp_path / "out", "--ray", "--workers", "1")
    command, said = [sys.executable, "-m", "plam_eval.cli", *given], tmp_path.with_name(f"{tmp_path.name}-said")
    with said.open("w") as log:
        process = subprocess.Popen(command, cwd=suite, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 180
    while len(ended(tmp_path)) < moment.ended or not begun(tmp_path):
        assert process.poll() is None and time.monotonic() < deadline, said.read_text()
        time.sleep(0.005)
    (worker,) = workers_in(suite)
    time.sleep(moment.share * seconds(whole, moment.ended))
    while True:
        os.kill(worker, signal.SIGSTOP)  # what is seen from here on is what the kill leaves
        kept, at = ended(tmp_path), begun(tmp_path)
        if at:
            break
        assert len(kept) < CELLS
        os.kill(worker, signal.SIGCONT)  # it was between two cells
        time.sleep(0.005)
    (lost,), again = at, None
    assert len(kept) >= moment.ended
    check_visible(tmp_path)
    if moment.killed == "driver":
        os.kill(process.pid, signal.SIGKILL)
        os.kill(worker, signal.SIGCONT)
        assert process.wait(60) == -signal.SIGKILL
    else:
        os.kill(worker, signal.SIGKILL)
        assert process.wait(180) == 0, said.read_text()  # another worker answers the cell
        again = lost
        check_equal(tmp_path, whole, again, given)
    while workers_in(suite):  # which Ray ends
        assert time.monotonic() < deadline + 180
        time.sleep(0.1)

    left = ended(tmp_path)
    done = subprocess.run(command, cwd=suite, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    check_equal(tmp_path, whole, again, given)
    for before in (kept, left):  # no cell was evaluated again
        assert {name: ended(tmp_path)[name] for name in before} == before
