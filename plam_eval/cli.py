"""`plam`: the commands. Each exits non-zero when it failed, with what was found and what to do as its last line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    help="Plateau-guided model merging for multimodal LLMs, evaluated through lmms-eval.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _version() -> None:
    """Keeps `plam COMMAND` as the form of the call, however many commands there are."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the suite, the pair and both evaluations.")] = Path(
        "out/demo"
    ),
    documents: Annotated[int, typer.Option(help="Documents per benchmark.", min=30)] = 120,
    limit: Annotated[int | None, typer.Option(help="Evaluate only the first documents of each.", min=1)] = None,
    fresh: Annotated[bool, typer.Option(help="Evaluate again what is already evaluated.")] = False,
) -> None:
    """Evaluate the embedded pair, plain and merged, on nine offline benchmarks through lmms-eval."""
    from plam_eval.demo import run

    run.report(run.run(output.absolute(), documents=documents, limit=limit, fresh=fresh))


@app.command()
def doctor(
    plateau: Annotated[str | None, typer.Option(help="Plateau spec: packaged name or file.")] = None,
    model: Annotated[str | None, typer.Option(help="MLLM: folder or hub id; the spec's own if left out.")] = None,
    base: Annotated[str | None, typer.Option(help="Override of the base LLM.")] = None,
    layers: Annotated[str | None, typer.Option(help="Override of the layer range, START:END.")] = None,
    modules: Annotated[str | None, typer.Option(help="Override of the modules, joined by +.")] = None,
    model_weight: Annotated[float | None, typer.Option(help="Override of the MLLM's weight.")] = None,
    base_weight: Annotated[float | None, typer.Option(help="Override of the base LLM's weight.")] = None,
    rule: Annotated[str | None, typer.Option(help="Override of the merge rule.")] = None,
    vllm: Annotated[bool, typer.Option("--vllm", help="Also say how vLLM would serve and re-merge.")] = False,
) -> None:
    """Say what is installed and works, and what a spec would merge (from file headers alone)."""
    from plam_eval import doctor as checks

    console = Console()
    overrides: dict[str, Any] = {
        "base": base,
        "layers": layers,
        "modules": modules,
        "model_weight": model_weight,
        "base_weight": base_weight,
        "rule": rule,
    }
    fine = checks.check_installation(console)
    if vllm:
        fine = checks.check_vllm(console) and fine
    if plateau or any(value is not None for value in overrides.values()):
        checks.check_merge(console, model, plateau or "none", overrides)
    elif model:
        raise ValueError("--model without a spec: name one with --plateau, or give --base and --layers")
    if not fine:
        raise typer.Exit(1)


def main() -> None:
    """Entry point: turns the errors that explain themselves into one message and exit status 1."""
    import sys

    try:
        app()
    except (ValueError, RuntimeError) as error:
        # SpecError, MergeError, HubError, EvaluationError and DemoError say what to do; a traceback would bury it.
        Console(stderr=True).print(f"[bold red]error[/]: {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; the same command goes on where it was")
        sys.exit(130)


if __name__ == "__main__":
    main()
