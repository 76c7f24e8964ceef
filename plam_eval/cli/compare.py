"""`plam compare`: plain against merged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from plam_eval.arguments import BOTH, DEFAULT_NOISE
from plam_eval.cli.app import app
from plam_eval.cli.options import (
    BatchSize,
    DryRun,
    DryRunCommand,
    Exclude,
    ForceSimple,
    GenKwargs,
    IncludePath,
    Json,
    Limit,
    Model,
    ModelArgs,
    Offset,
    Quiet,
    Sample,
    SampleSeed,
    Stock,
    Tasks,
    WandbArgs,
    example,
    filled,
)
from plam_eval.cli.speaking import tell_failures, working


class _Compare(DryRunCommand):
    """Takes `--together` and `--noise` without a value, too: both cells, another batch size. Run folders may follow."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = filled(args, "--together", str(BOTH), re.compile(r"-*\d+$", re.ASCII))
        return super().parse_args(ctx, filled(words, "--noise", DEFAULT_NOISE, _CHANGE))


_CHANGE = re.compile(r"(\w+=|default(,|$))", re.ASCII)
"""How a value of `--noise` begins; a run folder is named otherwise."""


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
    sample: Sample = None,
    seed: SampleSeed = None,
    exclude: Exclude = None,
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
    stock: Stock = True,
    noise: Annotated[
        str | None,
        typer.Option(
            help="Answer documents again with equal weights, and show how many flip: in another batch size, or as "
            "given: batch_size=4, dtype=float32, attn_implementation=eager, model=plam_vllm; with commas one after the "
            "other, joined by + at once.",
            metavar="[KEY=VALUE,...]",
        ),
    ] = None,
    noise_documents: Annotated[
        int | None,
        typer.Option(
            "--noise_documents", "--noise-documents", help="Of each task, answered again; 200 by default.", min=1
        ),
    ] = None,
    dry_run: DryRun = None,
    wandb_args: WandbArgs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Plain against merged on the same documents, on one resident model: difference, interval, p, parsable answers."""
    from plam_eval import api
    from plam_eval.report import stock_table, tables
    from plam_eval.report.estimate import estimate_table
    from plam_eval.report.noise import show_noise

    given: dict[str, Any] = {
        "model": model,
        "model_args": model_args,
        "tasks": tasks,
        "output": output,
        "limit": limit,
        "offset": offset,
        "sample": sample,
        "seed": seed,
        "exclude": exclude,
        "gen_kwargs": gen_kwargs,
        "include_path": include_path,
        "batch_size": batch_size,
        "force_simple": force_simple,
        "together": together,
        "noise": noise,
        "noise_documents": noise_documents,
    }
    with working(as_json, quiet) as console:
        if dry_run is not None:
            planned = api.plan_compare(runs, **given, measure=dry_run)
            console.data = planned.to_dict()
            console.warn(planned.warnings)
            estimate = planned.estimate
            console.show(tables.plan(planned.job, planned.documents, measured=estimate is not None))
            if estimate is not None:
                console.show(estimate_table(estimate))
            return
        compared = api.compare(runs, **given, wandb_args=wandb_args)
        if compared is None:
            return
        console.data = compared.to_dict(stock=stock)
        console.warn(compared.warnings)
        names = ("first", "second") if runs else compared.names
        measured = compared.noise
        forms = (
            tables.comparison(
                compared.rows,
                *names,
                compared.directions,
                noise=measured,
                second_parser=compared.second,
                narrow=narrow,
            )
            for narrow in (False, True)
        )
        console.show(*forms)
        if measured is not None:
            show_noise(measured, compared.rows, console)
        if stock:
            stock_table.show(console, compared.stock, *names)
        if not runs:
            console.say("Whether the base has a part in it, plam sweep says: it runs controls beside the merge.")
            console.say(f"Run folders: {compared.folder}")
        if measured is not None:
            tell_failures(console, measured.failures, "The same command tries it again; the comparison itself is done.")
    if measured is not None and measured.failures:
        raise typer.Exit(1)
