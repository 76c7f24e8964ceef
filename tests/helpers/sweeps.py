"""A small sweep of the embedded pair, and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from plam_eval import cli
from plam_eval.evaluation import records
from plam_eval.evaluation.sweep import folder as sweep_folder
from plam_eval.evaluation.sweep.config import SweepConfig
from plam_eval.evaluation.sweep.job import Job
from tests.helpers.paths import PAIR

ARGUMENTS = f"pretrained={PAIR}/mllm,device=cpu,dtype=float32"
SPEC = f"{ARGUMENTS},plateau=demo,base={PAIR}/base"
GRID = {"layers": "6:8,all", "weights": "0.3+1.2", "controls": "self_scale,noise"}
CELLS = 1 + 2 * 3
TASKS = "pope,mmstar,mme"


def plam(*arguments: str, exit_code: int = 0) -> str:
    """What `plam` prints for these words; it ends with `exit_code`."""
    done = CliRunner().invoke(cli.app, list(arguments))
    assert done.exit_code == exit_code, f"{done.output}{done.exception!r}"
    return done.output


def job(folder: Path, **given: Any) -> Job:
    settings: dict[str, Any] = {"model": "plam_llava", "model_args": SPEC, "tasks": TASKS, "limit": 6, **GRID}
    return Job.plan(SweepConfig.load(**(settings | given)), folder)


def words(folder: Path, *more: str) -> list[str]:
    """The command line of `job`."""
    given = ["--model", "plam_llava", "--model_args", SPEC, "--tasks", TASKS, "--limit", "6"]
    grid = [word for key, value in GRID.items() for word in (f"--{key}", value)]
    return ["sweep", *given, *grid, "--output", str(folder), *more]


def answers(folder: Path) -> dict[str, dict[tuple[str, int], str]]:
    """By cell and document."""
    found: dict[str, dict[Any, Any]] = {}
    for cell in sorted((folder / sweep_folder.CELLS).iterdir()):
        record = sweep_folder.read_cell(folder, cell.name)
        assert record is not None and record["status"] == "finished", cell
        samples = records.read_run(cell / record["results"]).samples
        found[cell.name] = {(row.task, row.doc_id): row.answer for row in samples.itertuples()}
    return found
