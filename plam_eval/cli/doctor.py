"""`plam doctor`: what is installed and works, and what a spec would merge.

Its tables are not in report/tables.py, which needs pandas: the doctor has to work where other parts do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

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
from plam_eval.errors import InputError
from plam_eval.layer_sets import tell_layers
from plam_eval.rule_parameters import describe_parameters
from plam_eval.terminal import PlainTable, Terminal, text


@app.command(
    short_help="What is installed and works; what a spec would merge.",
    epilog=example("plam doctor --plateau qwen3-vl-8b --layers 28:36"),
)
def doctor(
    plateau: Plateau = None,
    model: MllmCheckpoint = None,
    base: Base = None,
    layers: Layers = None,
    modules: Modules = None,
    model_weight: ModelWeight = None,
    base_weight: BaseWeight = None,
    rule: Rule = None,
    seed: Seed = None,
    parameters: Parameters = None,
    ancestor: Ancestor = None,
    vllm: Annotated[bool, typer.Option("--vllm", help="Also say how vLLM would serve and re-merge.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what is installed and works, and what a spec would merge (from file headers alone)."""
    from plam_eval.spec import load_spec

    overrides: dict[str, Any] = {
        "base": base,
        "layers": layers,
        "modules": modules,
        "model_weight": model_weight,
        "base_weight": base_weight,
        "rule": rule,
        "seed": seed,
        "parameters": parameters,
        "ancestor": ancestor,
    }
    with speaking(as_json, quiet) as console:
        load_spec(plateau, overrides)  # a mistake in it is told first: looking at the installation takes seconds
        fine = _say_installation(console)
        fine = _say_test_sets(console) and fine
        if vllm:
            fine = _say_vllm(console) and fine
        if plateau is not None or any(value is not None for value in overrides.values()):
            _say_merge(console, model, "none" if plateau is None else plateau, overrides)
        elif model:
            raise InputError("--model without a spec: name one with --plateau, or give --base and --layers")
    if not fine:
        raise typer.Exit(1)


def _say_installation(console: Terminal) -> bool:
    from plam_eval import doctor as checks

    installation = checks.check_installation()
    console.data |= installation.to_dict()
    table = PlainTable(title="Installation", title_justify="left")
    for name in ("part", "version", "standing", "works"):
        table.add_column(name, overflow="fold")
    table.add_row("plam-eval", installation.version, "", f"commit {(installation.commit or 'unknown')[:12]}")
    table.add_row("python", installation.python, installation.python_standing, "")
    for part in installation.parts:
        if part.version is None:
            table.add_row(part.name, "", "", part.said)
            continue
        standing = text(part.standing, "red" if part.standing == "refused" else "")
        table.add_row(part.name, part.version, standing, text(part.said, "green" if part.works else "red"))
    console.print(table)
    console.warn(installation.refused)
    console.say(installation.accelerators)
    console.say(f"Packaged plateau specs: {', '.join(installation.specs)}")
    return installation.works


def _say_test_sets(console: Terminal) -> bool:
    """The files of released test sets; whether those that are named can be used."""
    from plam_eval.test_sets import TEST_SETS

    states = [each.state() for each in TEST_SETS.values()]
    console.data["test_sets"] = {state.task: {"works": state.works, "said": state.said} for state in states}
    table = PlainTable(title="Released test sets (docs/test-sets.md)", title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("file", overflow="fold")
    for state in states:
        table.add_row(state.task, text("cannot be used", "red") if state.works is False else state.said)
    console.print(table)
    problems = [state.said for state in states if state.works is False]
    console.warn(problems)
    return not problems


def _say_vllm(console: Terminal) -> bool:
    from plam_eval import doctor as checks

    checked = checks.check_vllm()
    for line in checked.lines:
        if line.kind == "warning":
            console.warn([line.text])
        else:
            console.say(text(line.text, "red" if line.kind == "problem" else ""))
    if checked.version is not None:
        console.data["vllm"] = {
            "version": checked.version,
            "registered": checked.registered,
            "remerge": checked.remerge,
        }
    return checked.works


def _say_merge(console: Terminal, model: str | None, plateau: str, overrides: Mapping[str, Any]) -> None:
    from plam_eval import doctor as checks
    from plam_eval.hub import in_words

    forecast = checks.check_merge(model, plateau, overrides)
    if forecast is None:
        console.say("plateau none: the plain model, nothing would be merged")
        return
    spec, plan, checkpoint, base = forecast.spec, forecast.plan, forecast.checkpoint, forecast.base
    table = PlainTable(title=f"{plateau} would merge", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    third = [("ancestor", plan.ancestor)] if plan.ancestor is not None else []
    for side, opened in (("model", checkpoint), ("base", base), *third):
        commit = f" (commit {opened.recorded_commit})" if opened.recorded_commit else ""
        table.add_row(side, f"{opened.name}{commit}")
    weights = "{} model, {} base".format(*spec.weights.written)
    table.add_row("rule", f"{spec.rule}: {weights}{describe_parameters(spec.parameters)}")
    table.add_row("layers", tell_layers(spec.layers))
    table.add_row("digest", spec.digest()[:16])
    shapes: Counter[tuple[str, tuple[int, ...], str]] = Counter()
    for tensor in plan.tensors:
        each = [dtype for dtype in (tensor.model_dtype, tensor.base_dtype, tensor.ancestor_dtype) if dtype is not None]
        dtypes = " and ".join(str(dtype).removeprefix("torch.") for dtype in each)
        shapes[tensor.suffix, tensor.shape, dtypes] += 1
    for (suffix, shape, dtypes), count in shapes.items():
        table.add_row(suffix, f"{count} x {' x '.join(map(str, shape))}, {dtypes}")
    table.add_row("tensors", f"{len(plan.tensors)}")
    to_read = f"{plan.model_bytes / 1e6:.1f} MB of the model, {plan.base_bytes / 1e6:.1f} MB of the base"
    to_read += f", {plan.ancestor_bytes / 1e6:.1f} MB of the ancestor" if third else ""
    table.add_row("to read", to_read)
    for side, files in (
        ("model", checkpoint.to_download()),
        ("base", base.to_download(tensor.base_name for tensor in plan.tensors)),
        *((s, one.to_download(str(tensor.ancestor_name) for tensor in plan.tensors)) for s, one in third),
    ):
        if files:
            sizes = [size for size in files.values() if size is not None]
            said = in_words(sum(sizes) if len(sizes) == len(files) else None)
            table.add_row("to download", f"{said} of the {side}, {len(files)} file(s), before a merge can begin")
    said = f"about {forecast.seconds:.1f} s" if forecast.seconds >= 0.1 else "under 0.1 s"
    table.add_row("time", f"{said} of arithmetic here, besides reading the files")
    table.add_row("memory", f"{forecast.memory / 1e6:.0f} MB at a time, besides the model")
    for warning in plan.warnings:
        table.add_row("warning", warning, style="yellow")
    console.data["merge"] = forecast.to_dict()
    console.print(table)
    if console.quiet:
        console.warn(plan.warnings)
    if spec.source:
        console.say(f"Source: {spec.source}")
