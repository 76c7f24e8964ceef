"""Words around a result: `--json` and `--quiet`."""

from __future__ import annotations

import json
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
