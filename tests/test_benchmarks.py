"""Each script of benchmarks/ starts: all that it imports is there, and nothing runs before its options are read."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import power
from plam_eval.files import locked
from tests.helpers.paths import ROOT

SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if path.name != "measured.py")


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


def test_power_sweeps_a_case_once_and_none_that_another_process_is_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second, third = power.cases({"undamaged": [1.0, 2.0], "noise": [0.0]}, range(4, 5))
    swept: list[power.Case] = []

    def sweep(case: power.Case, folder: Path, *, command: bool) -> Any:
        assert not folder.exists()
        folder.mkdir(parents=True)
        swept.append(case)
        if len(swept) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(power, "sweep", sweep)
    monkeypatch.setattr(power, "record", lambda case, findings, seconds: {"kind": case.kind, "damage": case.damage})
    with pytest.raises(KeyboardInterrupt):
        power.run(first, tmp_path, command=False)
    assert [power.run(case, tmp_path, command=False) for case in (first, second, first)] == [True, True, False]
    with locked(tmp_path / "locks", f"{third.name}.lock"):
        assert not power.run(third, tmp_path, command=False)
    assert swept == [first, first, second]
    assert sorted(path.stem for path in (tmp_path / "cases").iterdir()) == [first.name, second.name]


def test_shares_of_power_have_exact_intervals() -> None:
    rows = [("noise", False)] * 20 + [("undamaged", True)] * 19 + [("undamaged", False)]
    scores = {"plain": 0.5, "merged": 0.75, "scale": 0.5}
    table = power.shares(pd.DataFrame([{"kind": k, "damage": 1.0, "positive": p, **scores} for k, p in rows]))
    noise, undamaged = table.to_dict("records")
    assert (noise["share"], noise["low"]) == (0, 0) and noise["high"] == pytest.approx(1 - 0.025 ** (1 / 20))
    assert undamaged["called better"] == 19 and undamaged["low"] == pytest.approx(0.7513, abs=1e-4)  # of tables
    assert undamaged["gain"] == 0.25
