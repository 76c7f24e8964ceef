"""`plam report`: one HTML page from finished work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plam_eval.cli.app import app
from plam_eval.cli.options import Json, Quiet, example
from plam_eval.cli.speaking import working


@app.command(
    short_help="One HTML page, and its tables, from finished work.",
    epilog=example("plam report scan sweep --output report"),
)
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, scans, comparisons and sweeps.")],
    output: Annotated[Path, typer.Option(help="Folder for index.html and its tables.")] = Path("report"),
    select: Annotated[
        int | None, typer.Option(help="Choose the best merge on so many documents of each task instead.", min=0)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder from which the tasks find their datasets, for example images.")
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(
            "--include_path", "--include-path", help="Folder of further tasks; their code is run to find images."
        ),
    ] = None,
    examples: Annotated[int, typer.Option(help="Gained and lost documents seen at once, of each.", min=0)] = 6,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """One self-contained HTML page, and its tables as CSV and parquet, from finished work."""
    from plam_eval.report.page import write_report

    with working(as_json, quiet) as console:
        left_out: list[str] = []
        page = write_report(
            folders,
            output,
            title=title,
            select=select,
            data=data,
            include_path=include_path,
            examples=examples,
            left_out=left_out,
        )
        tables = sorted(map(str, (page.parent / "tables").glob("*.*")))
        console.data = {"page": str(page), "tables": tables, "warnings": left_out}
        console.warn(left_out)
        console.say(f"Report: {page}")
