"""The recipes of docs/multi-gpu.md, run as they stand there, on CPU processes.

Those of vLLM and Ray run beside the engine and the sweep that tests/serving/test_server.py and
tests/evaluation/sweep/test_sweep.py start.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import recipes
from tests.helpers.pico import PicoPair

FEW = "mmstar --limit 3 --gen_kwargs max_new_tokens=4"  # more words, as the recipes do not quote the name


@pytest.fixture
def shared(pico: Callable[[str], PicoPair], suite: Path, tmp_path: Path) -> dict[str, str]:
    """The names that recipes share, as they are here."""
    pair = pico("llava")
    spec = tmp_path / "plateau.yaml"
    content = {"base_model": str(pair.base), "layer_range": [1, 3], "modules": ["q_proj", "k_proj"]}
    spec.write_text(yaml.safe_dump({**content, "weights": {"model": 0.9, "base_model": 0.3}}))
    return recipes.environment(
        tmp_path, MODEL=str(pair.mllm), SPEC=str(spec), TASKS=FEW, GPUS="2", NODES="2", PYTHONUNBUFFERED="1"
    )


def run(name: str, folder: Path, environment: dict[str, str], suite: Path) -> list[dict[str, Any]]:
    """Run a recipe where the offline suite lies, and give the results that it wrote."""
    for data in suite.iterdir():  # datasets are found from the working directory
        (folder / data.name).symlink_to(data)
    command = ["bash", "-euo", "pipefail", "-c", recipes.recipe(name)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(file.read_text()) for file in folder.glob("runs/*__plam-*/*_results.json")]


def test_every_recipe_is_run_somewhere() -> None:
    shared = re.findall(r"^export (\w+)=", recipes.recipe("names"), re.M)
    assert shared == ["MODEL", "SPEC", "TASKS", "GPUS", "NODES"]
    here, beside = (
        {"names", "accelerate", "plam.sbatch", "slurm"},
        {"tensor parallel", "serve", "data parallel", "client", "ray"},
    )
    assert set(recipes.names()) == here | beside


@pytest.mark.slow
def test_accelerate(shared: dict[str, str], suite: Path, tmp_path: Path) -> None:
    (found,) = run("accelerate", tmp_path, shared, suite)
    assert found["plam_eval"]["processes"] == 2 and found["plam_eval"]["provenance"]["merge"]["tensors"] == 4


@pytest.mark.slow
def test_slurm_with_two_nodes(shared: dict[str, str], suite: Path, tmp_path: Path) -> None:
    (tmp_path / "plam.sbatch").write_text(recipes.recipe("plam.sbatch"))
    (found,) = run("slurm", tmp_path, {**shared, "GPUS": "1"}, suite)
    assert found["plam_eval"]["processes"] == 2 and found["plam_eval"]["provenance"]["merge"]["tensors"] == 4
