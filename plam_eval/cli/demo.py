"""`plam demo`: all of it on the embedded pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plam_eval.cli.app import app
from plam_eval.cli.options import Json, Quiet, example
from plam_eval.cli.speaking import WIDE, speaking


@app.command(short_help="All of it on the embedded pair, offline.", epilog=example("plam demo --output out/demo"))
def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for the suite, the pair, the scan, the merge, the sweep and the page.")
    ] = Path("out/demo"),
    documents: Annotated[int, typer.Option(help="Documents per benchmark to evaluate.", min=30, max=10_000)] = 120,
    scanned: Annotated[int, typer.Option(help="Documents per benchmark to scan, besides.", min=2, max=10_000)] = 120,
    limit: Annotated[int | None, typer.Option(help="Evaluate only the first documents of each.", min=1)] = None,
    fresh: Annotated[bool, typer.Option(help="Evaluate again what is already evaluated.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the embedded pair's plateau, merge there, sweep ranges with controls, on nine offline benchmarks."""
    from plam_eval.demo import run

    with speaking(as_json, quiet, least_width=WIDE) as console:
        done = run.run(
            output.absolute(), documents=documents, scanned=scanned, limit=limit, fresh=fresh, console=console
        )
        run.report(done, console)
