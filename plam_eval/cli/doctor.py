"""`plam doctor`: what is installed and works, and what a spec would merge."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from plam_eval.cli.app import app
from plam_eval.cli.options import Json, Quiet, complete_spec, example
from plam_eval.cli.speaking import speaking
from plam_eval.errors import InputError


@app.command(
    short_help="What is installed and works; what a spec would merge.",
    epilog=example("plam doctor --plateau qwen3-vl-8b --layers 28:36"),
)
def doctor(
    plateau: Annotated[
        str | None,
        typer.Option(
            help="Plateau spec: packaged name, file, owner/repo[:FILE] on the hub.", autocompletion=complete_spec
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="MLLM: folder or hub id; the spec's own if left out.")] = None,
    base: Annotated[str | None, typer.Option(help="Override of the base LLM.")] = None,
    layers: Annotated[str | None, typer.Option(help="Override of the layer range, START:END.")] = None,
    modules: Annotated[str | None, typer.Option(help="Override of the modules, joined by +.")] = None,
    model_weight: Annotated[str | None, typer.Option(help="Override of the MLLM's weight.")] = None,
    base_weight: Annotated[str | None, typer.Option(help="Override of the base LLM's weight.")] = None,
    rule: Annotated[str | None, typer.Option(help="Override of the merge rule.")] = None,
    seed: Annotated[str | None, typer.Option(help="Override of the seed, of a rule that draws.")] = None,
    vllm: Annotated[bool, typer.Option("--vllm", help="Also say how vLLM would serve and re-merge.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what is installed and works, and what a spec would merge (from file headers alone)."""
    from plam_eval import doctor as checks
    from plam_eval.spec import load_spec

    overrides: dict[str, Any] = {
        "base": base,
        "layers": layers,
        "modules": modules,
        "model_weight": model_weight,
        "base_weight": base_weight,
        "rule": rule,
        "seed": seed,
    }
    with speaking(as_json, quiet) as console:
        load_spec(plateau, overrides)  # a mistake in it is told first: looking at the installation takes seconds
        fine = checks.check_installation(console)
        if vllm:
            fine = checks.check_vllm(console) and fine
        if plateau is not None or any(value is not None for value in overrides.values()):
            checks.check_merge(console, model, "none" if plateau is None else plateau, overrides)
        elif model:
            raise InputError("--model without a spec: name one with --plateau, or give --base and --layers")
    if not fine:
        raise typer.Exit(1)
