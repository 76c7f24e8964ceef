"""The command line as a whole: its help, its version, its completion."""

from __future__ import annotations

import subprocess
import sys

import pytest

from plam_eval.cli.options import complete_spec, complete_wrapper
from tests.helpers.commands import Call


def test_version_and_help(plam: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    monkeypatch.setenv("COLUMNS", "80")
    assert plam("--version") == (0, f"plam-eval {metadata.version('plam-eval')}\n", "")
    code, out, _ = plam("-h")
    assert code == 0 and "--install-completion" in out and "..." not in out.partition("Commands:")[2]
    for command in ("demo", "doctor", "scan", "plateau", "attend", "compare", "sweep", "report"):
        code, out, _ = plam(command, "-h")
        assert code == 0 and f"Example:\n    plam {command} " in out, out
    assert "[default: 0.02]" in plam("plateau", "-h")[1] and "[default: sweep]" in plam("sweep", "-h")[1]


def test_completion_knows_wrappers_and_specs() -> None:
    assert complete_wrapper("plam_q") == ["plam_qwen2_vl", "plam_qwen2_5_vl", "plam_qwen3_vl"]
    assert "qwen3-vl-8b" in complete_spec("qwen3") and "demo" not in complete_spec("qwen3")


def test_help_is_said_without_the_libraries_that_a_command_needs() -> None:
    code = "import sys, plam_eval.cli; print({'pydantic', 'yaml', 'numpy', 'pandas', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
