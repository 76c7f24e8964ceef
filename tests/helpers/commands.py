"""The command line in this process, through its entry point."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest

from plam_eval import cli

Call = Callable[..., tuple[int, str, str]]


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`command_line(...)(words...)` runs a command: exit status, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plam", *map(str, words)])
        capsys.readouterr()
        interrupted = signal.getsignal(signal.SIGINT)
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        else:
            code = 0
        finally:
            signal.signal(signal.SIGINT, interrupted)  # a command that is stopped ends with its process
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
