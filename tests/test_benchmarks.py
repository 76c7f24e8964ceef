"""Each script of benchmarks/ starts: all that it imports is there, and nothing runs before its options are read."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_is_all_that_help_gives(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    imported = set(sys.modules)
    monkeypatch.syspath_prepend(str(script.parent))  # as where it is started by its path
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.chdir(tmp_path)
    try:
        if "argparse" in script.read_text(encoding="utf-8"):
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(script), run_name="__main__")
            assert ended.value.code == 0
            assert "usage: " + script.name in capsys.readouterr().out
        else:
            assert callable(runpy.run_path(str(script))["main"])
            assert capsys.readouterr().out == ""
    finally:
        for name in {other.stem for other in SCRIPTS} - imported:
            sys.modules.pop(name, None)  # what one script has of another
    assert not list(tmp_path.iterdir())
