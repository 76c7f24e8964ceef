from __future__ import annotations

import pytest

from tests.helpers.commands import Call, command_line


@pytest.fixture
def plam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`plam(words...)` runs a command through its entry point: exit status, standard output, standard error."""
    return command_line(monkeypatch, capsys)
