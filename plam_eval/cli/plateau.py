"""`plam plateau`: find the plateau of a finished scan again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plam_eval.cli.app import app
from plam_eval.cli.options import Json, Quiet, example
from plam_eval.cli.speaking import speaking


@app.command(
    short_help="Find the plateau of a finished scan again, by another margin.",
    epilog=example("plam plateau scan --margin 0.03 --tasks mmstar"),
)
def plateau(
    curve: Annotated[Path, typer.Argument(help="Folder of a scan, or a file in it.")],
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, separated by commas.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM for the spec; that of the last spec by default.")] = None,
    margin: Annotated[float, typer.Option(help="Accuracy that a plateau may lose.")] = 0.02,
    confidence: Annotated[float, typer.Option(help="Of the one-sided bounds.")] = 0.95,
    kl_threshold: Annotated[float | None, typer.Option(help="Nats, for the second opinion.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the plateau again in a finished scan, by another margin or for other tasks; no model is needed."""
    from plam_eval import api
    from plam_eval.report import tables

    with speaking(as_json, quiet, least_width=100) as console:
        finished = api.plateau(
            curve, tasks=tasks, base=base, margin=margin, confidence=confidence, kl_threshold=kl_threshold
        )
        console.data = finished.to_dict()
        tables.show_scan(finished, console)
