"""`plam scan`: find the plateau."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plam_eval.cli.app import app
from plam_eval.cli.options import (
    MOST_DOCUMENTS,
    DryRun,
    DryRunCommand,
    Exclude,
    GenKwargs,
    IncludePath,
    Json,
    Limit,
    Quiet,
    Sample,
    SampleSeed,
    WandbArgs,
    complete_wrapper,
    example,
)
from plam_eval.cli.speaking import working


@app.command(
    cls=DryRunCommand,
    short_help="Find the plateau, and write a spec.",
    epilog=example(
        """plam scan --model plam_llava --model_args pretrained=llava-hf/llava-1.5-7b-hf \\
    --tasks mmstar,pope --limit 500 --base lmsys/vicuna-7b-v1.5 --output scan"""
    ),
)
def scan(
    model: Annotated[
        str, typer.Option(help="One of our HF wrappers, such as plam_llava.", autocompletion=complete_wrapper)
    ],
    model_args: Annotated[str, typer.Option("--model_args", "--model-args", help="As for lmms-eval: key=value,...")],
    tasks: Annotated[str, typer.Option(help="Task or group names, separated by commas.")],
    output: Annotated[Path, typer.Option(help="Folder of the scan; a stopped scan there goes on.")] = Path("scan"),
    limit: Limit = None,
    offset: Annotated[
        int, typer.Option(help="Leave out as many documents of each task.", min=0, max=MOST_DOCUMENTS)
    ] = 0,
    sample: Sample = None,
    seed: SampleSeed = None,
    exclude: Exclude = None,
    cuts: Annotated[str | None, typer.Option(help='Cut layers, such as "0,4,8:28"; all by default.')] = None,
    gen_kwargs: GenKwargs = None,
    include_path: IncludePath = None,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch_size",
            "--batch-size",
            help="Documents in one generation; over 1 for Qwen2.5-VL and Qwen3-VL.",
            min=1,
        ),
    ] = 1,
    closed_to: Annotated[
        str,
        typer.Option(
            "--closed_to",
            "--closed-to",
            help="Whom the image is closed to: all text, the question or the last token (no spec with these two).",
            metavar="text|question|last",
            autocompletion=lambda: ["text", "question", "last"],
        ),
    ] = "text",
    force_simple: Annotated[
        bool, typer.Option("--force_simple", "--force-simple", help="The wrapper's simple mode.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="Base LLM for the spec; known for the packaged models. Without one no spec is written."),
    ] = None,
    margin: Annotated[float, typer.Option(help="Accuracy that a plateau may lose.")] = 0.02,
    confidence: Annotated[float, typer.Option(help="Of the one-sided bounds.")] = 0.95,
    dry_run: DryRun = None,
    wandb_args: WandbArgs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the plateau: answer benchmarks with the image hidden from every layer on, and write a spec."""
    from plam_eval import api
    from plam_eval.report import tables
    from plam_eval.report.estimate import estimate_table

    given: dict[str, Any] = {
        "limit": limit,
        "offset": offset,
        "sample": sample,
        "seed": seed or 0,
        "exclude": exclude or (),
        "cuts": cuts,
        "gen_kwargs": gen_kwargs,
        "include_path": include_path,
        "batch_size": batch_size,
        "closed_to": closed_to,
        "force_simple": force_simple,
        "base": base,
        "margin": margin,
        "confidence": confidence,
    }
    with working(as_json, quiet, least_width=100, logs="INFO" if dry_run is None else "WARNING") as console:
        if dry_run is not None:
            planned = api.plan_scan(model, model_args, tasks, output, measure=dry_run, **given)
            console.data = planned.to_dict()
            console.warn(planned.warnings)
            console.say(
                f"{sum(planned.documents.values()):,} documents of {', '.join(planned.documents)}, each under every cut"
            )
            if planned.estimate is not None:
                console.show(estimate_table(planned.estimate))
            return
        finished = api.scan(model, model_args, tasks, output, **given, wandb_args=wandb_args)
        if finished is not None:
            console.data = finished.to_dict()
            tables.show_scan(finished, console)
