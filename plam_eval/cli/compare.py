"""`plam compare`: plain against merged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from plam_eval.arguments import BOTH
from plam_eval.cli.app import app
from plam_eval.cli.options import (
    BatchSize,
    ForceSimple,
    GenKwargs,
    IncludePath,
    Json,
    Limit,
    Model,
    ModelArgs,
    Offset,
    Quiet,
    Tasks,
    WandbArgs,
    example,
)
from plam_eval.cli.speaking import working


class _Compare(TyperCommand):
    """Takes `--together` without a number, too: both cells at once. What follows it may be a run folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = list(args)
        for place, word in enumerate(args):
            number = args[place + 1].lstrip("-") if place + 1 < len(args) else ""
            if word == "--together" and not number.isdecimal():
                words[place] = f"{word}={BOTH}"
        return super().parse_args(ctx, words)


@app.command(
    cls=_Compare,
    short_help="Plain against merged, or two runs that are there.",
    epilog=example(
        """plam compare --model plam_qwen3_vl --tasks plam9 --output compare \\
    --model_args pretrained=Qwen/Qwen3-VL-8B-Instruct,plateau=qwen3-vl-8b
  plam compare runs/plain runs/merged --tasks mmstar"""
    ),
)
def compare(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Two run folders to compare as they are, instead of a model.")
    ] = None,
    model: Model = None,
    model_args: ModelArgs = None,
    tasks: Tasks = None,
    output: Annotated[Path, typer.Option(help="Folder for both runs; a stopped comparison there goes on.")] = Path(
        "compare"
    ),
    limit: Limit = None,
    offset: Offset = None,
    gen_kwargs: GenKwargs = None,
    include_path: IncludePath = None,
    batch_size: BatchSize = None,
    force_simple: ForceSimple = None,
    together: Annotated[
        int | None,
        typer.Option(
            help="Answer each document for so many at once (HF wrappers); without a number for both.",
            metavar="[INTEGER]",
            min=1,
        ),
    ] = None,
    wandb_args: WandbArgs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Plain against merged on the same documents, on one resident model: difference, interval, p, parsable answers."""
    from plam_eval import api
    from plam_eval.report import tables

    with working(as_json, quiet) as console:
        compared = api.compare(
            runs,
            model=model,
            model_args=model_args,
            tasks=tasks,
            output=output,
            limit=limit,
            offset=offset,
            gen_kwargs=gen_kwargs,
            include_path=include_path,
            batch_size=batch_size,
            force_simple=force_simple,
            together=together,
            wandb_args=wandb_args,
        )
        if compared is None:
            return
        console.data = compared.to_dict()
        console.warn(compared.warnings)
        names = ("first", "second") if runs else compared.names
        forms = (
            tables.comparison(compared.rows, *names, compared.directions, second_parser=compared.second, narrow=narrow)
            for narrow in (False, True)
        )
        console.show(*forms)
        if not runs:
            console.say("Whether the base has a part in it, plam sweep says: it runs controls beside the merge.")
            console.say(f"Run folders: {compared.folder}")
