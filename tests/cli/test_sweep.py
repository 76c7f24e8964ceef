"""What `plam sweep` says of a plan before anything is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import Call


def test_a_dry_run_of_an_unknown_task_fails(plam: Call, pico: Any, tmp_path: Path) -> None:
    pair = pico("llava")
    words = ["--model_args", f"pretrained={pair.mllm},base={pair.base},layers=2:4", "--dry-run=0", "--layers", "all"]
    code, out, err = plam("sweep", "--model", "plam_llava", "--tasks", "pop", *words, "--output", str(tmp_path / "s"))
    assert code == 1 and "no task or group of this name: 'pop'" in err and not out


@pytest.mark.parametrize("command", ["sweep", "compare"])
def test_a_mistake_in_a_plan_is_told_without_torch_or_scipy(command: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom plam_eval.cli import main\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'scipy', 'lmms_eval'} & set(sys.modules)"
    )
    words = [command, "--model", "plam_lava", "--model_args", "pretrained=x", "--tasks", "pope", "--output", "out"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "did you mean 'plam_llava'" in done.stderr, done.stderr
    assert "AssertionError" not in done.stderr
