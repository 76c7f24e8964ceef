"""`plam rescore`: the same answers under a second parser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plam_eval.cli.app import app
from plam_eval.cli.options import Json, Quiet, Tasks, example
from plam_eval.cli.speaking import working


@app.command(
    short_help="Is it the parser? The same answers, read again.",
    epilog=example("plam rescore runs/plain runs/merged --output rescored"),
)
def rescore(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, written with --log_samples, of any model.")],
    tasks: Tasks = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for rescored.json and disagreements.csv; none by default.")
    ] = None,
    examples: Annotated[int, typer.Option(help="Disagreements that are shown, of each run and task.", min=0)] = 2,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Logged answers under a second parser that abstains: scores, disagreements, and what a pair of runs shows."""
    from plam_eval import api
    from plam_eval.report import rescored

    with working(as_json, quiet) as console:
        done = api.rescore(runs, tasks=tasks, output=output)
        console.data = done.to_dict()
        rescored.show(done, console, examples)
        if output is not None:
            console.say(f"Every disagreement: {output / 'disagreements.csv'}; all of it: {output / 'rescored.json'}")
