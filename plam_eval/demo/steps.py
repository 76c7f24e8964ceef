"""The commands of the demo, each in a process of its own that ends with this one; what is finished is not repeated."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from plam_eval import threads
from plam_eval.demo import hub
from plam_eval.errors import PlamError
from plam_eval.files import MARKER, inside, make_own, read_json, remove_own, sha256_of_file, write_json
from plam_eval.harness import run_files
from plam_eval.provenance import git_commit, versions
from plam_eval.terminal import Terminal, text

DONE, LOG = "finished.json", "log.txt"
MODULES = {"lmms-eval": "lmms_eval", "plam": "plam_eval.cli"}  # by command
MODELS = ("pair", "trio")  # folders beside the datasets, of checkpoints
_PROGRESS = re.compile(
    r"(?:Model Responding|answering under every cut|looking under \d+ settings|answering for \d+ cells|sweep):\s+(\d+)%"
)


class DemoError(PlamError, RuntimeError):
    """An evaluation of the demo failed; the message names the log."""


@dataclass(frozen=True)
class Steps:
    """Commands that run in the folder of one suite.

    Args:
        suite: with its models beside the datasets.
        fresh: whether to repeat what is finished, too.
        console: where to say what happens.
    """

    suite: Path
    fresh: bool
    console: Terminal

    def run(self, label: str, words: list[str], output: Path) -> None:
        """Run a command unless it has finished before, on the same files and versions.

        Args:
            label: what it is called beside its progress.
            words: `plam ...` or `lmms-eval ...`.
            output: its folder, which also gets its log and the record that it has finished.

        Raises:
            DemoError: it fails or writes no results, or `output` holds something else. FolderError: the same.
        """
        done, identity = output / DONE, _identity(self.suite, words)
        if not self.fresh and _finished(done) == identity:
            self.console.say(f"{label}: already done ({near(output)})")
            return
        self.console.say(text(f"\n$ HF_HUB_OFFLINE=1 {shlex.join(words)}", "bold"))
        again = words[1] in ("scan", "attend", "sweep") and (self.fresh or done.is_file())
        if words[1] == "export" or again:
            remove_own(output, DONE, LOG)  # of another suite or version: neither mixes them
        if not output.is_dir():
            make_own(output)
        elif not any((output / mark).is_file() for mark in (MARKER, DONE, LOG)) and any(output.iterdir()):
            raise DemoError(f"{output}: holds something that the demo has not made; name another --output")
        done.unlink(missing_ok=True)
        before = set(run_files.result_files(output))
        _run(words, self.suite, output / LOG, label, self.console)
        new = sorted(set(run_files.result_files(output)) - before)
        if words[0] == "lmms-eval" and len(new) != 1:
            raise DemoError(_failed(label, output / LOG, f"{len(new)} results files, expected 1"))
        # By name: the newest by date is another one where the clock was set back.
        write_json(done, identity | ({"results": str(new[0].relative_to(output))} if words[0] == "lmms-eval" else {}))


def _finished(done: Path) -> dict[str, Any] | None:
    """What was evaluated to the end in a folder of the demo; None where nothing was, or the record is damaged."""
    try:
        record = read_json(done, "delete it")
    except (OSError, ValueError):
        return None
    record.pop("results", None)
    return record


def results(output: Path) -> Path:
    """The results file of the last call, or the folder, where an earlier version has not recorded which it is.

    Args:
        output: of a finished step.
    """
    name = read_json(output / DONE, "run the demo with --fresh").get("results")
    return inside(output, name, str(output / DONE)) if name is not None else output


def _run(words: list[str], suite: Path, log: Path, label: str, console: Terminal) -> None:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with tethered(MODULES[words[0]], words[1:], suite) as process, log.open("wb") as file:
        assert process.stdout is not None
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(f"{label}: starting", total=100)
            while chunk := os.read(process.stdout.fileno(), 65536):
                file.write(chunk)
                if percents := _PROGRESS.findall(chunk.decode(errors="replace")):
                    progress.update(bar, description=f"{label}: answering", completed=int(percents[-1]))
            progress.update(bar, description=f"{label}: done", completed=100)
        code = process.wait()
    if code:
        raise DemoError(_failed(label, log, f"exit status {code}"))


@contextmanager
def tethered(module: str, arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module arguments` in a folder, in a group of processes that ends when this process or block does.

    Args:
        module: to be run.
        arguments: of its command line.
        folder: to run it in.
    """
    environment = (
        os.environ
        | threads.environment()
        | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "plam_eval.demo.tethered", module, *arguments],
        cwd=folder,
        # Python files in that folder are not imported (from Python 3.11 on).
        env=environment | {"PYTHONSAFEPATH": "1"},
        stdin=subprocess.PIPE,  # never written to: its end is how the process learns of the end of this one
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()


def _failed(label: str, log: Path, why: str) -> str:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return f"the command for {label} failed ({why}); the end of {log}:\n{tail}"


def _identity(suite: Path, words: list[str]) -> dict[str, Any]:
    models = sorted(file for name in MODELS for file in (suite / name).glob("*/model.safetensors"))
    manifest = suite / hub.MANIFEST
    return {
        "command": words,
        "files": {str(file.relative_to(suite)): sha256_of_file(file) for file in (manifest, *models)},
        "versions": versions(),
        "commit": git_commit(),
    }


def near(path: Path) -> Path:
    """A path for people: relative to the working directory where it lies below it.

    Args:
        path: absolute.
    """
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
