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
    output: Annotated[Path, typer.Option(help="Folder for the suite, the pair, the scan and both evaluations.")] = Path(
        "out/demo"
    ),
    documents: Annotated[int, typer.Option(help="Documents per benchmark to evaluate.", min=30)] = 120,
    scanned: Annotated[int, typer.Option(help="Documents per benchmark to scan, besides.", min=2)] = 120,
    limit: Annotated[int | None, typer.Option(help="Evaluate only the first documents of each.", min=1)] = None,
    fresh: Annotated[bool, typer.Option(help="Evaluate again what is already evaluated.")] = False,
) -> None:
    """Find the embedded pair's plateau, then evaluate it plain and merged, on nine offline benchmarks."""
    from plam_eval.demo import run

    run.report(run.run(output.absolute(), documents=documents, scanned=scanned, limit=limit, fresh=fresh))


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


@app.command()
def scan(
    model: Annotated[str, typer.Option(help="One of our HF wrappers, such as plam_llava.")],
    model_args: Annotated[str, typer.Option("--model_args", "--model-args", help="As for lmms-eval: key=value,...")],
    tasks: Annotated[str, typer.Option(help="Task or group names, separated by commas.")],
    output: Annotated[Path, typer.Option(help="Folder of the scan; a stopped scan there goes on.")] = Path("scan"),
    limit: Annotated[int | None, typer.Option(help="Only the first documents of each task.", min=1)] = None,
    offset: Annotated[int, typer.Option(help="Leave out as many documents of each task.", min=0)] = 0,
    cuts: Annotated[str | None, typer.Option(help='Cut layers, such as "0,4,8:28"; all by default.')] = None,
    gen_kwargs: Annotated[
        str | None, typer.Option("--gen_kwargs", "--gen-kwargs", help="Generation settings over the tasks' own.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include_path", "--include-path", help="Folder of further tasks.")
    ] = None,
    force_simple: Annotated[
        bool, typer.Option("--force_simple", "--force-simple", help="The wrapper's simple mode.")
    ] = False,
    base: Annotated[str | None, typer.Option(help="Base LLM for the spec; known for the packaged models.")] = None,
    margin: Annotated[float, typer.Option(help="Accuracy that a plateau may lose.")] = 0.02,
    confidence: Annotated[float, typer.Option(help="Of the one-sided bounds.")] = 0.95,
) -> None:
    """Find the plateau: answer benchmarks with the image hidden from every layer on, and write a spec."""
    from lmms_eval.models import get_model

    from plam_eval.evaluation import harness
    from plam_eval.evaluation import scan as scans
    from plam_eval.model_wrappers.manifest import WRAPPERS

    if model not in WRAPPERS or model == "plam_vllm":
        known = ", ".join(name for name in WRAPPERS if name != "plam_vllm")
        raise ValueError(f"model is {model!r}; a scan needs one of our HF wrappers: {known}")
    harness.install()
    wrapper = get_model(model, force_simple=force_simple).create_from_arg_string(model_args, {"batch_size": 1})
    found = scans.scan(
        wrapper,
        tasks,
        output,
        cuts=cuts,
        limit=limit,
        offset=offset,
        gen_kwargs=gen_kwargs,
        include_path=include_path,
        base_model=base,
        margin=margin,
        confidence=confidence,
    )
    if found is not None:
        scans.show(found, _wide())
    if wrapper.world_size > 1:
        harness.end_together()


@app.command()
def plateau(
    curve: Annotated[Path, typer.Argument(help="Folder of a scan, or a file in it.")],
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, separated by commas.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM for the spec; that of the last spec by default.")] = None,
    margin: Annotated[float, typer.Option(help="Accuracy that a plateau may lose.")] = 0.02,
    confidence: Annotated[float, typer.Option(help="Of the one-sided bounds.")] = 0.95,
    kl_threshold: Annotated[float | None, typer.Option(help="Nats, for the second opinion.")] = None,
) -> None:
    """Find the plateau again in a finished scan, by another margin or for other tasks; no model is needed."""
    from plam_eval.evaluation import scan as scans

    found = scans.conclude(
        curve.parent if curve.is_file() else curve,
        tasks=tasks.split(",") if tasks else None,
        base_model=base,
        margin=margin,
        confidence=confidence,
        **({} if kl_threshold is None else {"kl_threshold": kl_threshold}),
    )
    scans.show(found, _wide())


def _wide() -> Console:
    """A console at least as wide as the table of a curve."""
    return Console(width=max(Console().width, 100))


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
