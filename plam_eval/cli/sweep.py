"""`plam sweep`: many merges and their controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
)
from plam_eval.cli.speaking import tell_failures, working
from plam_eval.rules import LAYER_CONTROLS, control_names


@app.command(
    cls=DryRunCommand,
    short_help="Many merges and their controls on one resident model.",
    epilog=example(
        """plam sweep --model plam_llava --tasks plam9 --select 100 --output sweep \\
    --model_args pretrained=llava-hf/llava-1.5-7b-hf,plateau=scan/plateau.yaml \\
    --layers plateau,early,middle --weights 0.9+0.3,0.7+0.3"""
    ),
)
def sweep(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a sweep; options below go over it.")] = None,
    model: Model = None,
    model_args: ModelArgs = None,
    tasks: Tasks = None,
    output: Annotated[Path, typer.Option(help="Folder of the sweep; a stopped sweep there goes on.")] = Path("sweep"),
    base: Annotated[str | None, typer.Option(help="Base LLM, where no plateau in --model_args says it.")] = None,
    ancestor: Annotated[
        str | None,
        typer.Option(help="What MLLM and base were both tuned from, where no plateau in --model_args says it."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="With commas: 24:36, plateau (the default), early, middle, late, all, starts[:STEP], "
            "windows:WIDTH[:STEP]."
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Of the MLLM and the base: 0.9+0.3,0.8+0.4; the plateau's by default.")
    ] = None,
    modules: Annotated[
        str | None,
        typer.Option(help="qkvo, qk, vo, mlp, all, or names joined by +; with commas; the plateau's by default."),
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(help="Merges by each: weighted_sum,trim,dare:drop_rate:0.5; the plateau's own rule by default."),
    ] = None,
    controls: Annotated[
        str | None,
        typer.Option(
            help=f"Beside every merge: {','.join(control_names())} (these by default), {','.join(LAYER_CONTROLS)}, "
            "or none."
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Of the controls that draw; with commas; 0 by default.")] = None,
    draws: Annotated[
        int | None, typer.Option(help="Sets of layers that random_layers draws for a merge, 5 by default.", min=1)
    ] = None,
    select: Annotated[
        int | None, typer.Option(help="Choose the best on so many documents of each task, report on the others.", min=0)
    ] = None,
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
            help="Answer for so many cells at once, 1 by default; their merged tensors are held in memory.", min=1
        ),
    ] = None,
    use_ray: Annotated[bool, typer.Option("--ray", help="Cells as Ray tasks, a resident model per worker.")] = False,
    workers: Annotated[int | None, typer.Option(help="Of --ray; by default one per GPU.", min=1)] = None,
    dry_run: DryRun = None,
    stock: Stock = True,
    wandb_args: WandbArgs = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Many merges and their controls on one resident model: layer ranges, weights and modules, compared with plain."""
    from plam_eval import api
    from plam_eval.report import stock_table, tables
    from plam_eval.report.estimate import estimate_table

    given: dict[str, Any] = {
        "model": model,
        "model_args": model_args,
        "tasks": tasks,
        "output": output,
        "base": base,
        "ancestor": ancestor,
        "layers": layers,
        "weights": weights,
        "modules": modules,
        "rules": rules,
        "controls": controls,
        "seeds": seeds,
        "draws": draws,
        "select": select,
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
    }
    with working(as_json, quiet) as console:
        if dry_run is not None:
            planned = api.plan_sweep(config, **given, measure=dry_run)
            console.data = planned.to_dict()
            console.warn(planned.warnings)
            estimate = planned.estimate
            console.show(tables.plan(planned.job, planned.documents, measured=estimate is not None))
            if estimate is not None:
                console.show(estimate_table(estimate))
            return
        findings = api.sweep(config, **given, ray=use_ray, workers=workers, wandb_args=wandb_args)
        if findings is None:
            return
        console.data = findings.to_dict(stock=stock)
        console.warn(findings.warnings)
        console.show(tables.sweep(findings), tables.sweep(findings, narrow=True))
        console.say(findings.verdict())
        for said in findings.further_verdicts():
            console.say(said)
        if stock:
            stock_table.show_sweep(console, findings)
        console.say(f"Cells and tables: {output}; as a page: plam report {output}")
        tell_failures(
            console, findings.failures(), "The same command tries them again, after what is said above, if anything."
        )
    if findings.failures():
        raise typer.Exit(1)
