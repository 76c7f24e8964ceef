"""`plam export`: a merged checkpoint as files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plam_eval.cli.app import app
from plam_eval.cli.options import (
    Ancestor,
    Base,
    BaseWeight,
    Json,
    Layers,
    MllmCheckpoint,
    ModelWeight,
    Modules,
    Parameters,
    Plateau,
    Quiet,
    Rule,
    Seed,
    example,
)
from plam_eval.cli.speaking import speaking
from plam_eval.terminal import PlainTable, Terminal

if TYPE_CHECKING:
    from plam_eval.publishing.checkpoint.export import Export


@app.command(
    short_help="A merged checkpoint as files, in the model's own layout.",
    epilog=example(
        """plam export --model Qwen/Qwen3-VL-8B-Instruct --plateau qwen3-vl-8b \\
    --output qwen3-vl-8b-plam"""
    ),
)
def export(
    output: Annotated[Path, typer.Option(help="The new folder; it has this name once it is complete.")],
    model: MllmCheckpoint = None,
    plateau: Plateau = None,
    base: Base = None,
    layers: Layers = None,
    modules: Modules = None,
    model_weight: ModelWeight = None,
    base_weight: BaseWeight = None,
    rule: Rule = None,
    seed: Seed = None,
    parameters: Parameters = None,
    ancestor: Ancestor = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="<path>",
            help="Folder of a run, comparison or sweep of this merge, for the card; may be given again.",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Push the finished export to this repository, owner/name; private by default.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Push it where everybody may read it.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an export that is there, once the new one is complete.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a merged checkpoint in the model's own layout: files copied byte for byte, merged tensors written over."""
    from plam_eval import api

    given: dict[str, Any] = {"model_weight": model_weight, "base_weight": base_weight, "seed": seed}  # numbers as text
    with speaking(as_json, quiet) as console:
        exported = api.export(
            model,
            plateau,
            output,
            results=results,
            push_to_hub=push_to_hub,
            public=public,
            overwrite=overwrite,
            base=base,
            layers=layers,
            modules=modules,
            rule=rule,
            parameters=parameters,
            ancestor=ancestor,
            **given,
        )
        console.data = exported.to_dict()
        _say(console, exported)


def _say(console: Terminal, exported: Export) -> None:
    from plam_eval.hub import in_words
    from plam_eval.merging.report import MergeReport

    record = exported.record
    console.print(MergeReport.from_dict(record.merge).table())
    table = PlainTable(title=f"Export: {exported.folder}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    counts = Counter(file.how for file in record.files.values())
    table.add_row("files", ", ".join(f"{count} {how}" for how, count in counts.items()))
    table.add_row("bytes", in_words(exported.bytes))
    table.add_row("again", record.command)
    if exported.address:
        table.add_row("pushed to", exported.address)
    console.print(table)
    if console.quiet:
        console.warn(record.merge["warnings"])  # the table has them otherwise
    for note in record.notes:
        console.say(note)
