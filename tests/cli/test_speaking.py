"""Words around a result: `--json` and `--quiet`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from plam_eval.cli.speaking import plain
from tests.helpers.commands import Call


def test_results_as_json(plam: Call, two_runs: list[Path], small_sweep: Path, tmp_path: Path) -> None:
    code, out, _ = plam("compare", *two_runs, "--json")
    found = json.loads(out)
    assert code == 0 and found["rows"][0]["gained"] == 10 and found["rows"][-1]["task"] == "overall"
    code, out, err = plam("report", small_sweep, two_runs[0], "--output", tmp_path / "page", "--json")
    assert code == 0 and json.loads(out)["page"] == str(tmp_path / "page" / "index.html") and "Report:" in err
    assert any(name.endswith(".parquet") for name in json.loads(out)["tables"])
    code, out, err = plam("compare", two_runs[0], "--json")
    assert code == 1 and out == "" and err.startswith("error: ")


def test_quiet_is_quiet_and_errors_are_said(plam: Call, two_runs: list[Path], tmp_path: Path) -> None:
    assert plam("compare", *two_runs, "--quiet") == (0, "", "")
    code, out, err = plam("compare", *two_runs, "-q", "--json")
    assert code == 0 and json.loads(out)["names"] == list(map(str, two_runs)) and err == ""
    code, out, err = plam("report", tmp_path / "nowhere", "-q", "--output", tmp_path / "page")
    assert code == 1 and out == "" and "no such folder" in err


def test_a_report_says_what_it_leaves_out(plam: Call, small_sweep: Path, two_runs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(small_sweep, tmp_path / "sweep")
    cells = tmp_path / "sweep" / "cells"
    log = next(log for log in sorted(cells.rglob("*_samples_*.jsonl")) if log.relative_to(cells).parts[0] != "plain")
    rows = [json.loads(line) | {"digest": "b" * 64} for line in log.read_text(encoding="utf-8").splitlines()]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.copytree(two_runs[0], tmp_path / "run")
    (results,) = (tmp_path / "run").rglob("*_results.json")
    results.write_text("{", encoding="utf-8")
    asked = ("report", tmp_path / "sweep", tmp_path / "run", "--output", tmp_path / "page", "--examples", "0", "-q")
    code, out, err = plam(*asked)
    assert code == 0 and out == ""
    ours, theirs = sorted(err.splitlines())
    assert ours.startswith("warning: A run was left out: ") and str(results) in ours
    assert (
        theirs.startswith(f"warning: sweep: {log.relative_to(cells).parts[0]} counts as not evaluated: ")
        and "b" * 64 in theirs
    )
    assert json.loads(plam(*asked, "--json")[1])["warnings"] == [
        line.removeprefix("warning: ") for line in (ours, theirs)
    ]


def test_json_is_alone_on_standard_output(two_runs: list[Path]) -> None:
    """Also where another process of the command's, or a library in C, writes to it."""
    code = (
        "import os, subprocess, sys\n"
        "from plam_eval.cli.speaking import speaking\n"
        "with speaking(True, False) as console:\n"
        "    console.say('words'); print('more words')\n"
        "    subprocess.run([sys.executable, '-c', 'print(\"of a child\")'])\n"
        "    os.write(1, b'of a library\\n')\n"
        "    console.data = {'number': float('nan'), 'text': '\\x1b[31m\\udc80'}\n"
        "print('behind')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result, _, rest = done.stdout.partition("}\n")
    assert json.loads(result + "}") == {"number": None, "text": "\x1b[31m\udc80"} and rest == "behind\n"
    assert [word in done.stderr for word in ("words", "more words", "of a child", "of a library")] == [True] * 4


def test_whatever_a_result_holds_is_json() -> None:
    values = {
        "array": np.array([[1.5, np.nan]]), "series": pd.Series([1, 2]), "none": [pd.NaT, pd.NA, np.float32("inf")],
        "number": np.int64(3), "truth": np.bool_(True),
    }  # fmt: skip
    assert json.loads(json.dumps(plain(values), allow_nan=False)) == {
        "array": [[1.5, None]], "series": [1, 2], "none": [None] * 3, "number": 3, "truth": True,
    }  # fmt: skip
