"""`plam`: the commands. Each exits non-zero when it failed, with what was found and what to do as its last line."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from plam_eval.cli.speaking import speaking
from plam_eval.errors import InputError, PlamError, first_line, system_error
from plam_eval.terminal import Terminal, labelled, shown, text

app = typer.Typer(
    help="Plateau-guided model merging for multimodal LLMs, evaluated through lmms-eval.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help and usage errors hold brackets and words of the user's
    context_settings={"help_option_names": ["-h", "--help"]},
)
TRACEBACK = "--traceback"
_MOST = 2**31 - 1  # documents


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"plam-eval {metadata.version('plam-eval')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option(TRACEBACK, help="Show where an error came from, too; also PLAM_TRACEBACK=1.")
    ] = False,
) -> None:
    """Plateau-guided model merging for multimodal LLMs, evaluated through lmms-eval."""
    # `main` has taken the option out, wherever it stood; it is declared here to be in the help.


def _example(command: str) -> str:
    """The end of a command's help; lines stay as they are."""
    return f"\b\nExample:\n  {command}"


def _wrappers(incomplete: str) -> list[str]:
    """For shell completion."""
    from plam_eval.harness.registry import WRAPPERS

    return [name for name in WRAPPERS if name.startswith(incomplete)]


def _specs(incomplete: str) -> list[str]:
    """For shell completion: packaged specs, and YAML files."""
    from plam_eval.spec import packaged_specs

    folder, _, start = incomplete.rpartition("/")
    found = sorted(Path(folder or ("/" if incomplete.startswith("/") else ".")).glob(f"{start}*"))
    files = [f"{path}/" if path.is_dir() else str(path) for path in found if path.is_dir() or path.suffix == ".yaml"]
    return [*(name for name in packaged_specs() if name.startswith(incomplete)), *files]


_Json = Annotated[
    bool, typer.Option("--json", help="The result as JSON on standard output; all else on standard error.")
]
_Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Nothing but warnings and errors, on standard error (and --json).")
]
_Model = Annotated[
    str | None,
    typer.Option(help="One of our wrappers, such as plam_llava or plam_vllm.", autocompletion=_wrappers),
]
_Arguments = Annotated[str | None, typer.Option("--model_args", "--model-args", help="As for lmms-eval: key=value,...")]
_Tasks = Annotated[str | None, typer.Option(help="Task or group names, separated by commas.")]
_Limit = Annotated[int | None, typer.Option(help="Only the first documents of each task.", min=1, max=_MOST)]
_Offset = Annotated[
    int | None, typer.Option(help="Leave out as many documents of each task; none by default.", min=0, max=_MOST)
]
_Settings = Annotated[
    str | None, typer.Option("--gen_kwargs", "--gen-kwargs", help="Generation settings over the tasks' own.")
]
_Include = Annotated[Path | None, typer.Option("--include_path", "--include-path", help="Folder of further tasks.")]
_Batch = Annotated[
    int | None, typer.Option("--batch_size", "--batch-size", help="As for lmms-eval; 1 by default.", min=1)
]
_Simple = Annotated[
    bool | None, typer.Option("--force_simple/--no-force_simple", help="The wrapper's simple mode.", show_default=False)
]
_Wandb = Annotated[
    str | None,
    typer.Option(
        "--wandb_args", "--wandb-args", help="Log the result by wandb.init(key=value,...), as project=plam,name=first."
    ),
]


@app.command(short_help="All of it on the embedded pair, offline.", epilog=_example("plam demo --output out/demo"))
def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for the suite, the pair, the scan, the merge, the sweep and the page.")
    ] = Path("out/demo"),
    documents: Annotated[int, typer.Option(help="Documents per benchmark to evaluate.", min=30, max=10_000)] = 120,
    scanned: Annotated[int, typer.Option(help="Documents per benchmark to scan, besides.", min=2, max=10_000)] = 120,
    limit: Annotated[int | None, typer.Option(help="Evaluate only the first documents of each.", min=1)] = None,
    fresh: Annotated[bool, typer.Option(help="Evaluate again what is already evaluated.")] = False,
    as_json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Find the embedded pair's plateau, merge there, sweep ranges with controls, on nine offline benchmarks."""
    from plam_eval.demo import run

    with speaking(as_json, quiet, least_width=_WIDE) as console:
        done = run.run(
            output.absolute(), documents=documents, scanned=scanned, limit=limit, fresh=fresh, console=console
        )
        run.report(done, console)


@app.command(
    short_help="What is installed and works; what a spec would merge.",
    epilog=_example("plam doctor --plateau qwen3-vl-8b --layers 28:36"),
)
def doctor(
    plateau: Annotated[
        str | None,
        typer.Option(help="Plateau spec: packaged name, file, owner/repo[:FILE] on the hub.", autocompletion=_specs),
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
    as_json: _Json = False,
    quiet: _Quiet = False,
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


@app.command(
    short_help="Find the plateau, and write a spec.",
    epilog=_example(
        """plam scan --model plam_llava --model_args pretrained=llava-hf/llava-1.5-7b-hf \\
    --tasks mmstar,pope --limit 500 --base lmsys/vicuna-7b-v1.5 --output scan"""
    ),
)
def scan(
    model: Annotated[str, typer.Option(help="One of our HF wrappers, such as plam_llava.", autocompletion=_wrappers)],
    model_args: Annotated[str, typer.Option("--model_args", "--model-args", help="As for lmms-eval: key=value,...")],
    tasks: Annotated[str, typer.Option(help="Task or group names, separated by commas.")],
    output: Annotated[Path, typer.Option(help="Folder of the scan; a stopped scan there goes on.")] = Path("scan"),
    limit: _Limit = None,
    offset: Annotated[int, typer.Option(help="Leave out as many documents of each task.", min=0, max=_MOST)] = 0,
    cuts: Annotated[str | None, typer.Option(help='Cut layers, such as "0,4,8:28"; all by default.')] = None,
    gen_kwargs: _Settings = None,
    include_path: _Include = None,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch_size",
            "--batch-size",
            help="Documents in one generation; over 1 for Qwen2.5-VL and Qwen3-VL.",
            min=1,
        ),
    ] = 1,
    force_simple: Annotated[
        bool, typer.Option("--force_simple", "--force-simple", help="The wrapper's simple mode.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="Base LLM for the spec; known for the packaged models. Without one no spec is written."),
    ] = None,
    margin: Annotated[float, typer.Option(help="Accuracy that a plateau may lose.")] = 0.02,
    confidence: Annotated[float, typer.Option(help="Of the one-sided bounds.")] = 0.95,
    wandb_args: _Wandb = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Find the plateau: answer benchmarks with the image hidden from every layer on, and write a spec."""
    from plam_eval import api
    from plam_eval.evaluation.scan import show

    with _working(as_json, quiet, least_width=100, logs="INFO") as console:
        found = api.scan(
            model,
            model_args,
            tasks,
            output,
            limit=limit,
            offset=offset,
            cuts=cuts,
            gen_kwargs=gen_kwargs,
            include_path=include_path,
            batch_size=batch_size,
            force_simple=force_simple,
            base=base,
            margin=margin,
            confidence=confidence,
            wandb_args=wandb_args,
        )
        if found is not None:
            console.data = found.to_dict()
            show(found, console)


@app.command(
    short_help="Find the plateau of a finished scan again, by another margin.",
    epilog=_example("plam plateau scan --margin 0.03 --tasks mmstar"),
)
def plateau(
    curve: Annotated[Path, typer.Argument(help="Folder of a scan, or a file in it.")],
    tasks: Annotated[str | None, typer.Option(help="Only these tasks, separated by commas.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM for the spec; that of the last spec by default.")] = None,
    margin: Annotated[float, typer.Option(help="Accuracy that a plateau may lose.")] = 0.02,
    confidence: Annotated[float, typer.Option(help="Of the one-sided bounds.")] = 0.95,
    kl_threshold: Annotated[float | None, typer.Option(help="Nats, for the second opinion.")] = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Find the plateau again in a finished scan, by another margin or for other tasks; no model is needed."""
    from plam_eval import api
    from plam_eval.evaluation.scan import show

    with speaking(as_json, quiet, least_width=100) as console:
        found = api.plateau(
            curve, tasks=tasks, base=base, margin=margin, confidence=confidence, kl_threshold=kl_threshold
        )
        console.data = found.to_dict()
        show(found, console)


@app.command(
    short_help="Plain against merged, or two runs that are there.",
    epilog=_example(
        """plam compare --model plam_qwen3_vl --tasks plam9 --output compare \\
    --model_args pretrained=Qwen/Qwen3-VL-8B-Instruct,plateau=qwen3-vl-8b
  plam compare runs/plain runs/merged --tasks mmstar"""
    ),
)
def compare(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Two run folders to compare as they are, instead of a model.")
    ] = None,
    model: _Model = None,
    model_args: _Arguments = None,
    tasks: _Tasks = None,
    output: Annotated[Path, typer.Option(help="Folder for both runs; a stopped comparison there goes on.")] = Path(
        "compare"
    ),
    limit: _Limit = None,
    offset: _Offset = None,
    gen_kwargs: _Settings = None,
    include_path: _Include = None,
    batch_size: _Batch = None,
    force_simple: _Simple = None,
    together: Annotated[
        bool, typer.Option("--together", help="Answer each document for both at once (HF wrappers).")
    ] = False,
    wandb_args: _Wandb = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Plain against merged on the same documents, on one resident model: difference, interval, p, parsable answers."""
    from plam_eval import api
    from plam_eval.report import tables

    with _working(as_json, quiet) as console:
        found = api.compare(
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
        if found is None:
            return
        console.data = found.to_dict()
        console.warn(found.warnings)
        names = ("first", "second") if runs else found.names
        forms = (tables.comparison(found.rows, *names, found.directions, narrow=narrow) for narrow in (False, True))
        console.show(*forms)
        if not runs:
            console.say("Whether the base has a part in it, plam sweep says: it runs controls beside the merge.")
            console.say(f"Run folders: {found.folder}")


@app.command(
    short_help="Many merges and their controls on one resident model.",
    epilog=_example(
        """plam sweep --model plam_llava --tasks plam9 --select 100 --output sweep \\
    --model_args pretrained=llava-hf/llava-1.5-7b-hf,plateau=scan/plateau.yaml \\
    --layers plateau,early,middle --weights 0.9+0.3,0.7+0.3"""
    ),
)
def sweep(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a sweep; options below go over it.")] = None,
    model: _Model = None,
    model_args: _Arguments = None,
    tasks: _Tasks = None,
    output: Annotated[Path, typer.Option(help="Folder of the sweep; a stopped sweep there goes on.")] = Path("sweep"),
    base: Annotated[str | None, typer.Option(help="Base LLM, where no plateau in --model_args says it.")] = None,
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
    controls: Annotated[
        str | None, typer.Option(help="Beside every merge: self_scale,normalized,noise (all by default), or none.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Of the controls that draw; with commas; 0 by default.")] = None,
    select: Annotated[
        int | None, typer.Option(help="Choose the best on so many documents of each task, report on the others.", min=0)
    ] = None,
    limit: _Limit = None,
    offset: _Offset = None,
    gen_kwargs: _Settings = None,
    include_path: _Include = None,
    batch_size: _Batch = None,
    force_simple: _Simple = None,
    together: Annotated[
        int | None,
        typer.Option(
            help="Answer for so many cells at once, 1 by default; their merged tensors are held in memory.", min=1
        ),
    ] = None,
    use_ray: Annotated[bool, typer.Option("--ray", help="Cells as Ray tasks, a resident model per worker.")] = False,
    workers: Annotated[int | None, typer.Option(help="Of --ray; by default one per GPU.", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    wandb_args: _Wandb = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """Many merges and their controls on one resident model: layer ranges, weights and modules, compared with plain."""
    from plam_eval import api
    from plam_eval.report import tables

    given: dict[str, Any] = {
        "model": model,
        "model_args": model_args,
        "tasks": tasks,
        "output": output,
        "base": base,
        "layers": layers,
        "weights": weights,
        "modules": modules,
        "controls": controls,
        "seeds": seeds,
        "select": select,
        "limit": limit,
        "offset": offset,
        "gen_kwargs": gen_kwargs,
        "include_path": include_path,
        "batch_size": batch_size,
        "force_simple": force_simple,
        "together": together,
    }
    with _working(as_json, quiet) as console:
        if dry_run:
            planned = api.plan_sweep(config, **given)
            console.data = planned.to_dict()
            console.warn(planned.warnings)
            console.show(tables.plan(planned.job, planned.documents))
            return
        found = api.sweep(config, **given, ray=use_ray, workers=workers, wandb_args=wandb_args)
        if found is None:
            return
        console.data = found.to_dict()
        console.warn(found.warnings)
        console.show(tables.sweep(found), tables.sweep(found, narrow=True))
        console.say(found.verdict())
        console.say(f"Cells and tables: {output}; as a page: plam report {output}")
        for failure in found.failures():
            status, _, rest = failure.partition(": ")
            console.insist(labelled(status, "red", rest))
        if found.failures():
            console.insist("The same command tries them again, after what is said above, if anything.")
    if found.failures():
        raise typer.Exit(1)


@app.command(
    short_help="One HTML page, and its tables, from finished work.",
    epilog=_example("plam report scan sweep --output report"),
)
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, scans, comparisons and sweeps.")],
    output: Annotated[Path, typer.Option(help="Folder for index.html and its tables.")] = Path("report"),
    select: Annotated[
        int | None, typer.Option(help="Choose the best merge on so many documents of each task instead.", min=0)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder from which the tasks find their datasets, for example images.")
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(
            "--include_path", "--include-path", help="Folder of further tasks; their code is run to find images."
        ),
    ] = None,
    examples: Annotated[int, typer.Option(help="Gained and lost documents seen at once, of each.", min=0)] = 6,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
) -> None:
    """One self-contained HTML page, and its tables as CSV and parquet, from finished work."""
    from plam_eval import api

    with _working(as_json, quiet) as console:
        page = api.report(
            folders, output, title=title, select=select, data=data, include_path=include_path, examples=examples
        )
        console.data = {"page": str(page), "tables": sorted(map(str, (page.parent / "tables").glob("*.*")))}
        console.say(f"Report: {page}")


_WIDE = 150  # columns, where a pipe or a log has none: those of the table of a sweep


@contextlib.contextmanager
def _working(as_json: bool, quiet: bool, *, least_width: int = _WIDE, logs: str = "WARNING") -> Iterator[Terminal]:
    """`speaking`, for a command that evaluates: with few logs, and the other processes waited for at its end."""
    _quiet_logs("WARNING" if quiet else logs)
    with speaking(as_json, quiet, least_width=least_width) as console:
        yield console
    if "torch" in sys.modules:
        from plam_eval.evaluation import harness

        harness.end_together()


def _quiet_logs(level: str = "WARNING") -> None:
    """Warnings and errors only on the terminal, if nothing else is said: each cell's folder has the whole log."""
    from loguru import logger

    logger.remove()
    stream = sys.stderr  # of now: a cell's goes into its log
    # Messages quote answers and names of files, so they pass through `shown`, which would take colours for data.
    logger.add(lambda line: print(shown(line), end="", file=stream), level=level, colorize=False)


def main() -> None:
    """Entry point. Exit status: 0 done, 1 error, 2 a call that is none, 130 stopped.

    Errors that explain themselves are one message; any other is a mistake of ours, and comes with its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of few letters must not cost the results of a run
        sys.stdout.reconfigure(errors="backslashreplace")
    wanted = os.environ.get("PLAM_TRACEBACK", "") not in ("", "0")
    if TRACEBACK in sys.argv[1:]:
        sys.argv, wanted = [word for word in sys.argv if word != TRACEBACK], True
    try:
        app()
    except KeyboardInterrupt:
        _stopped()
    except SystemExit as ended:
        if ended.code == 130:  # typer has caught the interrupt
            _stopped()
        raise
    except Exception as error:
        console, message = Terminal(stderr=True), explained(error)
        if message is None:
            console.say(text("plam-eval did not expect this error. Please report it with these lines:", "bold red"))
        if message is None or wanted:
            console.say("".join(traceback.format_exception(error)).rstrip())
        if message is not None:
            console.say(labelled("error", "bold red", message))
        sys.exit(1)


def explained(error: BaseException) -> str | None:
    """What an error says to a user: cause, place and remedy. None for a mistake of ours."""
    if isinstance(error, PlamError):
        return str(error)
    if isinstance(error, OSError):
        return system_error(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without torch
        return f"out of memory ({first_line(error)}); give a smaller dtype, device_map=auto, or a smaller --together"
    if isinstance(error, ModuleNotFoundError) and error.name in ("vllm", "ray"):
        return f"{error.name} is not installed: pip install '.[{error.name}]' in a checkout of plam-eval"
    if type(error).__module__.partition(".")[0] in ("httpx", "httpx2"):  # huggingface_hub has either
        return f"the network failed ({type(error).__name__}: {error}); the same command goes on where it was"
    return None


def _stopped() -> NoReturn:
    Terminal(stderr=True).say("stopped; the same command goes on where it was")
    sys.exit(130)
