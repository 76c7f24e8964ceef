"""Whatever happens to a command, the same command finishes, as if nothing had been; and nothing half-written is seen.

It is killed between any two operations on files and in the middle of a write, its disk is full or read-only, it is
stopped, its folder is deleted, another process is at work, the clock goes back, memory ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.kill_points import Action, Fault, Outcome, Stage, check_visible, content, differences, plain, points
from tests.helpers.small_commands import COMMANDS, OUT, Command, set_back, without_memory

SEED = 20261126
KILLS = int(os.environ.get("PLAM_KILLS", "0"))
"""Kill points of each command in place of its own number; more than it has steps are all of them."""


@dataclass(frozen=True)
class Undisturbed:
    """What a command leaves that nothing happens to, in how many steps; `root` is where it works, anew each time."""

    command: Command
    root: Path
    content: dict[str, Any]
    data: Any
    steps: list[str]

    def begin(self) -> Path:
        """The folder as it was before the command."""
        shutil.rmtree(self.root, ignore_errors=True)
        return Path(shutil.copytree(self.root.with_name("before"), self.root))


Get = Callable[[str], Undisturbed]


@pytest.fixture(scope="module")
def stage(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    found = Stage(suite, tmp_path_factory.mktemp("stage"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def undisturbed(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Get:
    known: dict[str, Undisturbed] = {}

    def get(name: str) -> Undisturbed:
        if name not in known:
            # Elsewhere than what is disturbed: the stage's locks would go over to its children.
            command, once = COMMANDS[name], tmp_path_factory.mktemp("folder") / "once"
            once.mkdir()
            command.reads(once)
            shutil.copytree(once, once.with_name("before"))
            done = stage.run(command.act, once, here=True)
            assert done.status == 0, done.said
            check_visible(once)
            root = once.with_name("root")
            known[name] = Undisturbed(command, root, content(once), plain(done.data, once), done.steps)
        return known[name]

    return get


def goes_on(stage: Stage, whole: Undisturbed, at: str, act: Action | None = None) -> None:
    """The same command finishes, and leaves and says what an undisturbed one does."""
    check_visible(whole.root)
    again = stage.run(act or whole.command.act, whole.root)
    finished = again.status != 0 and again.status == whole.command.finished and (whole.root / OUT).exists()
    assert again.status == 0 or finished, f"{at}, then: {again.said}"
    check_visible(whole.root)
    assert not (found := differences(whole.content, content(whole.root))), f"{at}: {found}"
    if not finished:
        assert plain(again.data, whole.root) == whole.data, at


def disturbed(stage: Stage, whole: Undisturbed, fault: Fault) -> tuple[str, Outcome]:
    """What a command comes to that something happens to, and where it happened."""
    root = whole.begin()
    at = f"{fault} of {len(whole.steps)}, {whole.steps[fault.step]}"
    return at, stage.run(whole.command.act, root, fault)


def calm(at: str, done: Outcome, *words: str) -> None:
    """A message without a traceback, which holds one of these words where the command failed."""
    assert done.status in (0, 1), f"{at}: {done.status} {done.said}"
    assert "Traceback" not in done.said and "did not expect" not in done.said, f"{at}: {done.said}"
    assert done.status == 0 or any(word in done.said for word in words), f"{at}: {done.said}"


def _cases(number: Callable[[Command], int]) -> list[str]:
    return [name for name, command in COMMANDS.items() if number(command)]


# ---- a kill ----------------------------------------------------------------------------------------------------------


def killed(stage: Stage, whole: Undisturbed, count: int, seed: int) -> None:
    for step in points(whole.steps, KILLS or count, seed):
        at, done = disturbed(stage, whole, Fault("kill", step))
        assert done.status == -9, f"{at}: {done.status} {done.said}"
        if whole.command.at_once:
            now, before = content(whole.root / OUT), whole.root.with_name("before") / OUT
            # Between two renames what was there lies whole beside its place, and the same command finds it.
            aside = [content(folder) for folder in whole.root.glob(".*/replaced")]
            assert now in (content(before), content(whole.root.with_name("once") / OUT)) or (
                not (whole.root / OUT).exists() and content(before) in aside
            ), at
        finished = {cell: cell.stat().st_mtime_ns for cell in whole.root.glob(f"{OUT}/cells/[!.]*/cell.json")}
        goes_on(stage, whole, at)
        assert {cell: cell.stat().st_mtime_ns for cell in finished} == finished, f"{at}: evaluated again"


@pytest.mark.parametrize("name", _cases(lambda command: command.few))
def test_killed_anywhere_the_same_command_finishes(name: str, stage: Stage, undisturbed: Get) -> None:
    whole = undisturbed(name)
    killed(stage, whole, whole.command.few, SEED)


@pytest.mark.long
@pytest.mark.parametrize("name", _cases(lambda command: command.many))
def test_killed_at_more_points(name: str, stage: Stage, undisturbed: Get) -> None:
    whole = undisturbed(name)
    killed(stage, whole, whole.command.many, SEED + 1)


@pytest.mark.long
def test_killed_again_and_again_it_comes_to_its_end(stage: Stage, undisturbed: Get) -> None:
    """Each run comes only a few steps further than the one before."""
    for name in ("sweep", "export --overwrite", "search, known answers"):
        whole = undisturbed(name)
        root = whole.begin()
        for step in points(whole.steps, 5, SEED):
            assert stage.run(whole.command.act, root, Fault("kill", step)).status in (-9, 0)
        goes_on(stage, whole, f"{name}, killed five times")


# ---- the disk --------------------------------------------------------------------------------------------------------

FULL = ("free some space", "No space left")


@pytest.mark.parametrize("name", ["search, known answers", "export --overwrite", "submit"])
def test_a_disk_that_is_full_is_said_and_costs_nothing(name: str, stage: Stage, undisturbed: Get) -> None:
    full(name, stage, undisturbed, 2)


@pytest.mark.long
@pytest.mark.parametrize("name", [*COMMANDS])
def test_a_disk_that_is_full_at_more_points(name: str, stage: Stage, undisturbed: Get) -> None:
    full(name, stage, undisturbed, 4)


def full(name: str, stage: Stage, undisturbed: Get, count: int) -> None:
    whole = undisturbed(name)
    for kind in ("full", "once"):
        for step in points(whole.steps, count, SEED + 2):
            at, done = disturbed(stage, whole, Fault(kind, step))
            calm(at, done, *FULL)
            goes_on(stage, whole, at)


READ_ONLY = ("name a folder that can be written", "name another output", "Read-only")


@pytest.mark.parametrize("name", ["search, known answers", "submit"])
def test_an_output_that_cannot_be_written_is_said(name: str, stage: Stage, undisturbed: Get) -> None:
    read_only(name, stage, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("name", [*COMMANDS])
def test_an_output_of_every_command_that_cannot_be_written(name: str, stage: Stage, undisturbed: Get) -> None:
    read_only(name, stage, undisturbed)


def read_only(name: str, stage: Stage, undisturbed: Get) -> None:
    """From the start, and from its middle on."""
    whole = undisturbed(name)
    for step in (0, len(whole.steps) // 2):
        at, done = disturbed(stage, whole, Fault("read-only", step))
        calm(at, done, *READ_ONLY)
        assert done.status == 1, at
        goes_on(stage, whole, at)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of so many bytes in place of a folder; gives what makes it larger. Skips where none can be had."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("no file system can be mounted here")

    def larger(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    try:
        yield larger
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("export --overwrite", "submit")])
def test_a_file_system_that_is_full(name: str, stage: Stage, undisturbed: Get) -> None:
    """A real one, of which all writers are told: those that are no Python, too."""
    whole = undisturbed(name)
    for pages in (1, 17, 40):
        root = whole.begin()
        with small_disk(root, pages * 4096) as larger:
            done = stage.run(whole.command.act, root)
            calm(f"{name}, {pages} pages", done, *FULL, "free some")
            larger(64 << 20)
            goes_on(stage, whole, f"{name}, {pages} pages")


@pytest.mark.long
@pytest.mark.parametrize("name", ["scan", "sweep", "export", "report", "search, known answers"])
def test_a_limit_on_the_size_of_files(name: str, stage: Stage, undisturbed: Get) -> None:
    whole = undisturbed(name)
    for size in (100, 3000, 20_000):
        done = stage.run(whole.command.act, whole.begin(), largest_file=size)
        calm(f"{name}, {size} bytes", done, "File too large")
        goes_on(stage, whole, f"{name}, {size} bytes")


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------

STOPPED = "stopped; the same command goes on with what was finished"


def stopped(stage: Stage, whole: Undisturbed, step: int, again: int | None) -> None:
    at, done = disturbed(stage, whole, Fault("interrupt", step, again))
    assert done.status == 130 and "Traceback" not in done.said, f"{at}: {done.status} {done.said}"
    assert done.said.count(STOPPED) == 1 and done.said.rstrip().endswith(STOPPED), f"{at}: {done.said}"
    goes_on(stage, whole, at)


@pytest.mark.parametrize("name", ["export", "submit"])
def test_ctrl_c_is_one_line(name: str, stage: Stage, undisturbed: Get) -> None:
    whole = undisturbed(name)
    stopped(stage, whole, points(whole.steps, 1, SEED)[0], 1)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in COMMANDS if COMMANDS[name].many and "known" not in name])
def test_ctrl_c_of_every_command_and_again_while_it_ends(name: str, stage: Stage, undisturbed: Get) -> None:
    whole = undisturbed(name)
    for step in points(whole.steps, 3, SEED + 3):
        for again in (None, 1, 3):
            stopped(stage, whole, step, again)


# ---- others ----------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", ["sweep", "sweep --together", "compare"])
def test_an_output_of_every_command_that_is_deleted_meanwhile(name: str, stage: Stage, undisturbed: Get) -> None:
    deleted(name, stage, undisturbed, 4)


def deleted(name: str, stage: Stage, undisturbed: Get, count: int) -> None:
    whole = undisturbed(name)
    for step in points(whole.steps[10:], count, SEED + 4):
        at, done = disturbed(stage, whole, Fault("removed", step + 10))
        calm(at, done, "deleted or moved while", "was deleted while")
        if done.status == 0:
            assert not (found := differences(whole.content, content(whole.root))), f"{at}: {found}"
        goes_on(stage, whole, at)


@pytest.mark.parametrize("name", ["report", "submit"])
def test_two_processes_in_one_folder(name: str, stage: Stage, undisturbed: Get) -> None:
    two(name, stage, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("name", [*COMMANDS])
def test_two_processes_of_every_command_in_one_folder(name: str, stage: Stage, undisturbed: Get) -> None:
    two(name, stage, undisturbed)


def two(name: str, stage: Stage, undisturbed: Get) -> None:
    whole = undisturbed(name)
    whole.begin()
    ended = stage.run_beside(whole.command.act, whole.root)
    for done in ended:
        calm(name, done, "another process is at work", "an export is there")
    assert any(done.status == 0 for done in ended)
    goes_on(stage, whole, f"two processes of {name}")


@pytest.mark.long
@pytest.mark.parametrize("name", ["scan", "sweep", "sweep --together", "compare", "search", "attend"])
def test_a_clock_that_goes_back_for_every_command(name: str, stage: Stage, undisturbed: Get) -> None:
    clock(name, stage, undisturbed)


def clock(name: str, stage: Stage, undisturbed: Get) -> None:
    """The runs that are there seem to be of the future, and the newest is still the one that was made last."""
    whole = undisturbed(name)
    for step in points(whole.steps, 2, SEED + 5)[1:]:
        at, _ = disturbed(stage, whole, Fault("kill", step))
        goes_on(stage, whole, at, partial(set_back, whole.command.act))
        goes_on(stage, whole, at, partial(set_back, whole.command.act))  # on what is finished


@pytest.mark.long
@pytest.mark.parametrize("name", ["scan", "sweep", "compare", "attend", "search"])
def test_memory_that_ends_in_a_generation_of_every_command(name: str, stage: Stage, undisturbed: Get) -> None:
    memory(name, stage, undisturbed)


def memory(name: str, stage: Stage, undisturbed: Get) -> None:
    whole = undisturbed(name)
    for call in (0, 2):
        done = stage.run(partial(without_memory, whole.command.act, call), whole.begin())
        calm(f"{name}, call {call}", done, "MemoryError", "out of memory")
        # One document that could not be looked at is left out of `plam attend`, with a warning.
        assert done.status == 1 or (name == "attend" and "MemoryError" in done.said)
        goes_on(stage, whole, f"{name}, call {call}")
