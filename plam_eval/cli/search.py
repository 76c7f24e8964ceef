"""`plam search`: the merge that gains most, chosen on some documents and reported on others."""

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
    Tasks,
    example,
)
from plam_eval.cli.speaking import tell_failures, working

_SAMPLERS = ("tpe", "gp", "random", "grid")


def complete_sampler(incomplete: str) -> list[str]:
    """Samplers that begin with `incomplete`."""
    return [name for name in _SAMPLERS if name.startswith(incomplete)]


@app.command(
    cls=DryRunCommand,
    short_help="Search layers, modules, weights and rules, and report on other documents.",
    epilog=example(
        """plam search --model plam_llava --tasks plam9 --select 200 --trials 40 --output search \\
    --model_args pretrained=llava-hf/llava-1.5-7b-hf,plateau=scan/plateau.yaml \\
    --within 8:32 --min_layers 4 --model_weight 0.5:1.0:0.1 --base_weight 0.1:0.5:0.1"""
    ),
)
def search(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a search; options below go over it.")] = None,
    model: Model = None,
    model_args: ModelArgs = None,
    tasks: Tasks = None,
    output: Annotated[Path, typer.Option(help="Folder of the search; a stopped search there goes on.")] = Path(
        "search"
    ),
    select: Annotated[
        int | None, typer.Option(help="Choose on so many documents of each task, report on the others.", min=1)
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Settings that are tried in all, 40 by default.", min=1)] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="tpe (the default), gp, random, or grid: each once.", autocompletion=complete_sampler),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the sampler, the drawing and the order of documents; 0 by default.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM, where no plateau in --model_args says it.")] = None,
    ancestor: Annotated[
        str | None,
        typer.Option(help="What MLLM and base were both tuned from, where no plateau in --model_args says it."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="ranges (without a gap, the default), or sets of any layers.")
    ] = None,
    within: Annotated[str | None, typer.Option(help="Only layers of this range, START:END; all by default.")] = None,
    min_layers: Annotated[
        int | None, typer.Option("--min_layers", "--min-layers", help="Of a merge, 1 by default.", min=1)
    ] = None,
    max_layers: Annotated[
        int | None, typer.Option("--max_layers", "--max-layers", help="Of a merge; all by default.", min=1)
    ] = None,
    model_weight: Annotated[
        str | None,
        typer.Option(
            "--model_weight", "--model-weight", help="LOW:HIGH:STEP (0.5:1.0:0.1 by default), LOW:HIGH, or a number."
        ),
    ] = None,
    base_weight: Annotated[
        str | None,
        typer.Option(
            "--base_weight", "--base-weight", help="LOW:HIGH:STEP (0.1:0.6:0.1 by default), LOW:HIGH, or a number."
        ),
    ] = None,
    modules: Annotated[
        str | None,
        typer.Option(help="qkvo, qk, vo, mlp, all, or names joined by +; with commas: one of these; the plateau's."),
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(help="One of these: weighted_sum,trim,dare:drop_rate:0.5; the plateau's own rule by default."),
    ] = None,
    rungs: Annotated[
        str | None,
        typer.Option(help="Shares of the documents after which a hopeless setting is given up; 0.25,0.5 by default."),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(help="p below which a setting is hopeless, 0.05 by default; 0 gives none up.", min=0, max=0.5),
    ] = None,
    controls: Annotated[
        str | None, typer.Option(help="Beside the chosen merge: as for plam sweep, with random_layers by default.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Of the controls that draw; with commas; 0 by default.")] = None,
    draws: Annotated[
        int | None, typer.Option(help="Sets of layers that random_layers draws, 5 by default.", min=1)
    ] = None,
    limit: Limit = None,
    offset: Offset = None,
    sample: Sample = None,
    exclude: Exclude = None,
    gen_kwargs: GenKwargs = None,
    include_path: IncludePath = None,
    batch_size: BatchSize = None,
    force_simple: ForceSimple = None,
    dry_run: DryRun = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The merge that gains most over plain on some documents, found by trying settings; one report on the others."""
    from plam_eval import api
    from plam_eval.report import tables
    from plam_eval.report.estimate import estimate_table

    given: dict[str, Any] = {
        "model": model,
        "model_args": model_args,
        "tasks": tasks,
        "output": output,
        "select": select,
        "trials": trials,
        "sampler": sampler,
        "seed": seed,
        "base": base,
        "ancestor": ancestor,
        "layers": layers,
        "within": within,
        "min_layers": min_layers,
        "max_layers": max_layers,
        "model_weight": model_weight,
        "base_weight": base_weight,
        "modules": modules,
        "rules": rules,
        "rungs": rungs,
        "prune": prune,
        "controls": controls,
        "seeds": seeds,
        "draws": draws,
        "limit": limit,
        "offset": offset,
        "sample": sample,
        "exclude": exclude,
        "gen_kwargs": gen_kwargs,
        "include_path": include_path,
        "batch_size": batch_size,
        "force_simple": force_simple,
    }
    with working(as_json, quiet) as console:
        if dry_run is not None:
            planned = api.plan_search(config, **given, measure=dry_run)
            console.data = planned.to_dict()
            console.warn(planned.warnings)
            console.show(tables.search_plan(planned.job, planned.tried, planned.documents))
            if planned.estimate is not None:
                console.show(estimate_table(planned.estimate))
            return
        findings = api.search(config, **given)
        console.data = findings.to_dict()
        console.warn(findings.warnings)
        console.show(tables.search(findings))
        if findings.held_out is not None:
            console.show(tables.sweep(findings.held_out), tables.sweep(findings.held_out, narrow=True))
        console.say(findings.verdict())
        console.say(f"Settings and answers: {output}; the other documents as a page: plam report {output}")
        tell_failures(
            console,
            findings.failures(),
            "The same command tries others in their place, after what is said above, if anything.",
        )
    if findings.failures():
        raise typer.Exit(1)
