"""`plam premise`: what of the base LLM's text ability the MLLM has lost, and what a merge gives back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    Sample,
    SampleSeed,
    Tasks,
    example,
)
from plam_eval.cli.speaking import working


@app.command(
    short_help="Was text ability lost, and does a merge give it back?",
    epilog=example(
        """plam premise --model plam_qwen3_vl --tasks gsm8k,mmlu,arc_challenge,hellaswag \\
    --model_args pretrained=Qwen/Qwen3-VL-8B-Instruct,plateau=qwen3-vl-8b --output premise"""
    ),
)
def premise(
    model: Model = None,
    model_args: ModelArgs = None,
    tasks: Tasks = None,
    base: Annotated[
        str | None, typer.Option(help="Base LLM: folder or hub id, in place of the plateau's; without one, no merge.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the runs; a stopped check there goes on.")] = Path("premise"),
    template: Annotated[
        str, typer.Option(help="Whose chat template the base LLM is asked in: mllm, the MLLM's, or own.")
    ] = "mllm",
    limit: Limit = None,
    offset: Offset = None,
    sample: Sample = None,
    seed: SampleSeed = None,
    gen_kwargs: GenKwargs = None,
    include_path: IncludePath = None,
    batch_size: BatchSize = None,
    force_simple: ForceSimple = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Base LLM, plain and merged MLLM on tasks of text alone: was anything lost, and what of it comes back?"""
    from plam_eval import api
    from plam_eval.report import premise_table

    with working(as_json, quiet) as console:
        findings = api.premise(
            model=model,
            model_args=model_args,
            tasks=tasks,
            base=base,
            output=output,
            template=template,
            limit=limit,
            offset=offset,
            sample=sample,
            seed=seed,
            gen_kwargs=gen_kwargs,
            include_path=include_path,
            batch_size=batch_size,
            force_simple=force_simple,
        )
        if findings is None:
            return
        console.data = findings.to_dict()
        console.warn(findings.warnings)
        console.show(*(premise_table.premise(findings, narrow=narrow) for narrow in (False, True)))
        console.say(findings.verdict())
        console.say(findings.prompts.sentence())
        console.say(f"Run folders: {findings.folder}")
