"""Commands in processes of their own, forked from one that has imported what they need and has done nothing else.

They do what `python -m MODULE ...` does, several at once what torchrun starts, without five seconds of imports each.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


@cache
def context() -> ForkServerContext:
    """What starts processes out of one that has imported what `warm` imports."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.helpers.warm"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # wherever the test that needs it first has gone to
        forkserver.ensure_running()
    return found


def _run(module: str, words: Sequence[str], folder: str, environment: dict[str, str], log: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run(
    module: str, words: Sequence[str], folder: Path | str = ".", *, processes: int = 1, log: Path | None = None
) -> tuple[int, str]:
    """Exit status (the first that is not 0) and output of `python -m module words`, or of torchrun with it.

    Args:
        module: to be run.
        words: of its command line.
        folder: to run it in.
        processes: of one group on the CPU; 1 is none.
        log: where the output goes; a file of its own by default.
    """
    environment = dict(os.environ)
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", **size}
    with tempfile.TemporaryDirectory() as own:
        log = log or Path(own, "log")
        log.touch()
        started = []
        for rank in range(processes):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            given = (module, list(words), str(Path(folder).absolute()), environment | ranks, str(log.absolute()))
            process = context().Process(target=_run, args=given)
            process.start()
            started.append(process)
        try:
            for process in started:
                process.join(300)
            codes = [process.exitcode for process in started]
        finally:
            for process in started:
                if process.is_alive():
                    process.kill()
                    process.join()
        said = log.read_text(encoding="utf-8", errors="replace")
    return next((code if code is not None else 124 for code in codes if code != 0), 0), said
