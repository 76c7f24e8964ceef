"""`plam`: the commands. Each exits non-zero when it failed, with what was found and what to do as its last line."""

from __future__ import annotations

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from plam_eval.errors import InputError, PlamError, system_error
from plam_eval.terminal import Terminal, labelled, shown, text

app = typer.Typer(
    help="Plateau-guided model merging for multimodal LLMs, evaluated through lmms-eval.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help and usage errors hold brackets and words of the user's
    add_completion=False,
)
TRACEBACK = "--traceback"
_MOST = 2**31 - 1  # documents


@app.callback()
def _options(
    traceback: Annotated[
        bool, typer.Option(TRACEBACK, help="Show where an error came from, too; also PLAM_TRACEBACK=1.")
    ] = False,
) -> None:
    """Plateau-guided model merging for multimodal LLMs, evaluated through lmms-eval."""
    # `main` has taken the option out, wherever it stood; it is declared here to be in the help.


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for the suite, the pair, the scan, the merge, the sweep and the page.")
    ] = Path("out/demo"),
    documents: Annotated[int, typer.Option(help="Documents per benchmark to evaluate.", min=30, max=10_000)] = 120,
    scanned: Annotated[int, typer.Option(help="Documents per benchmark to scan, besides.", min=2, max=10_000)] = 120,
    limit: Annotated[int | None, typer.Option(help="Evaluate only the first documents of each.", min=1)] = None,
    fresh: Annotated[bool, typer.Option(help="Evaluate again what is already evaluated.")] = False,
) -> None:
    """Find the embedded pair's plateau, merge there, sweep ranges with controls, on nine offline benchmarks."""
    from plam_eval.demo import run

    run.report(run.run(output.absolute(), documents=documents, scanned=scanned, limit=limit, fresh=fresh))


@app.command()
def doctor(
    plateau: Annotated[str | None, typer.Option(help="Plateau spec: packaged name or file.")] = None,
    model: Annotated[str | None, typer.Option(help="MLLM: folder or hub id; the spec's own if left out.")] = None,
    base: Annotated[str | None, typer.Option(help="Override of the base LLM.")] = None,
    layers: Annotated[str | None, typer.Option(help="Override of the layer range, START:END.")] = None,
    modules: Annotated[str | None, typer.Option(help="Override of the modules, joined by +.")] = None,
    model_weight: Annotated[str | None, typer.Option(help="Override of the MLLM's weight.")] = None,
    base_weight: Annotated[str | None, typer.Option(help="Override of the base LLM's weight.")] = None,
    rule: Annotated[str | None, typer.Option(help="Override of the merge rule.")] = None,
    vllm: Annotated[bool, typer.Option("--vllm", help="Also say how vLLM would serve and re-merge.")] = False,
) -> None:
    """Say what is installed and works, and what a spec would merge (from file headers alone)."""
    from plam_eval import doctor as checks

    console = Terminal()
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
    if plateau is not None or any(value is not None for value in overrides.values()):
        checks.check_merge(console, model, "none" if plateau is None else plateau, overrides)
    elif model:
        raise InputError("--model without a spec: name one with --plateau, or give --base and --layers")
    if not fine:
        raise typer.Exit(1)


@app.command()
def scan(
    model: Annotated[str, typer.Option(help="One of our HF wrappers, such as plam_llava.")],
    model_args: Annotated[str, typer.Option("--model_args", "--model-args", help="As for lmms-eval: key=value,...")],
    tasks: Annotated[str, typer.Option(help="Task or group names, separated by commas.")],
    output: Annotated[Path, typer.Option(help="Folder of the scan; a stopped scan there goes on.")] = Path("scan"),
    limit: Annotated[int | None, typer.Option(help="Only the first documents of each task.", min=1, max=_MOST)] = None,
    offset: Annotated[int, typer.Option(help="Leave out as many documents of each task.", min=0, max=_MOST)] = 0,
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
    from plam_eval.evaluation import harness
    from plam_eval.evaluation import scan as scans
    from plam_eval.model_wrappers.manifest import WRAPPERS
    from plam_eval.probing.plateau import check_criteria

    if model not in WRAPPERS or model == "plam_vllm":
        known = ", ".join(name for name in WRAPPERS if name != "plam_vllm")
        raise InputError(f"model is {model!r}; a scan needs one of our HF wrappers: {known}")
    _quiet_logs("INFO")
    check_criteria(margin, confidence)
    arguments = harness.parse_model_args(model_args)
    scans.check_folder(output)
    harness.check_model(model, arguments, force_simple=force_simple)
    if cuts and arguments.get("pretrained"):
        scans.check_cuts(cuts, str(arguments["pretrained"]), arguments.get("revision"))
    scans.check(
        output,
        tasks,
        limit=limit,
        offset=offset,
        include_path=include_path,
        gen_kwargs=gen_kwargs,
        model=model,
    )
    wrapper = harness.make_model(model, arguments, force_simple=force_simple)
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


_Model = Annotated[str | None, typer.Option(help="One of our wrappers, such as plam_llava or plam_vllm.")]
_Arguments = Annotated[str | None, typer.Option("--model_args", "--model-args", help="As for lmms-eval: key=value,...")]
_Tasks = Annotated[str | None, typer.Option(help="Task or group names, separated by commas.")]
_Limit = Annotated[int | None, typer.Option(help="Only the first documents of each task.", min=1, max=_MOST)]
_Offset = Annotated[int | None, typer.Option(help="Leave out as many documents of each task.", min=0, max=_MOST)]
_Settings = Annotated[
    str | None, typer.Option("--gen_kwargs", "--gen-kwargs", help="Generation settings over the tasks' own.")
]
_Include = Annotated[str | None, typer.Option("--include_path", "--include-path", help="Folder of further tasks.")]
_Batch = Annotated[int | None, typer.Option("--batch_size", "--batch-size", help="As for lmms-eval.", min=1)]
_Simple = Annotated[
    bool | None, typer.Option("--force_simple/--no-force_simple", help="The wrapper's simple mode.", show_default=False)
]


@app.command()
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
) -> None:
    """Plain against merged on the same documents, on one resident model: difference, interval, p, parsable answers."""
    from plam_eval.evaluation import findings, harness, records, stats, sweep
    from plam_eval.report import tables

    console = Terminal(least_width=150)
    if runs:
        if len(runs) != 2 or model or model_args:
            raise InputError("give two run folders, or --model with --model_args and --tasks")
        first, second = (sweep.read_run(folder) for folder in runs)
        if tasks:
            first, second = (run.only(tasks.split(",")) for run in (first, second))
        names = [str(folder) for folder in runs]
        names = names if names[0] != names[1] else ["first", "second"]
        warnings = records.check_comparable(first, second, names)
        compared, left_out = records.scored(dict(zip(names, (first, second), strict=True)))
        first, second = compared.values()
        mixed = records.mixed_directions(first.directions)
        console.warn([*warnings, *records.notes_of(compared), *left_out, *mixed])
        rows = stats.compare(first.samples, second.samples, directions=first.directions)
        console.print(tables.comparison(rows, "first", "second", first.directions))
        return
    if not model or not model_args or not tasks:
        raise InputError("give --model, --model_args with a plateau, and --tasks; or two run folders")
    config = sweep.SweepConfig.load(
        model=model,
        model_args=model_args,
        tasks=tasks,
        controls="none",
        together=2 if together else None,
        limit=limit,
        offset=offset,
        gen_kwargs=gen_kwargs,
        include_path=include_path,
        batch_size=batch_size,
        force_simple=force_simple,
    )
    job = sweep.Job.plan(config, output, sweep.pair_grid(config))
    _quiet_logs()
    resident = sweep.load_model(config) if job.left() else None
    if resident is not None:
        sweep.run(job, resident)
    if resident is None or resident.rank == 0:
        found = findings.read_findings(output)
        _show_failures(found, console)
        found.write()
        console.warn(found.warnings)
        console.print(tables.comparison(found.compared["merged"], directions=found.runs[sweep.PLAIN].directions))
        console.say("Whether the base has a part in it, plam sweep says: it runs controls beside the merge.")
        console.say(f"Run folders: {output / sweep.CELLS}")
    if resident is not None and resident.world_size > 1:
        harness.end_together()


@app.command(name="sweep")
def sweep_command(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a sweep; options below go over it.")] = None,
    model: _Model = None,
    model_args: _Arguments = None,
    tasks: _Tasks = None,
    output: Annotated[Path, typer.Option(help="Folder of the sweep; a stopped sweep there goes on.")] = Path("sweep"),
    base: Annotated[str | None, typer.Option(help="Base LLM, where no plateau in --model_args says it.")] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="24:36, plateau, early, middle, late, all, starts[:STEP], windows:WIDTH[:STEP]; with commas."
        ),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Of the MLLM and the base: 0.9+0.3,0.8+0.4")] = None,
    modules: Annotated[
        str | None, typer.Option(help="qkvo, qk, vo, mlp, all, or names joined by +; with commas.")
    ] = None,
    controls: Annotated[
        str | None, typer.Option(help="Beside every merge: self_scale,normalized,noise (all by default), or none.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Of the controls that draw; with commas.")] = None,
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
        typer.Option(help="Answer for so many cells at once; their merged tensors are held in memory.", min=1),
    ] = None,
    use_ray: Annotated[bool, typer.Option("--ray", help="Cells as Ray tasks, a resident model per worker.")] = False,
    workers: Annotated[int | None, typer.Option(help="Of --ray; by default one per GPU.", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Many merges and their controls on one resident model: layer ranges, weights and modules, compared with plain."""
    from plam_eval.evaluation import findings, harness, sweep
    from plam_eval.report import tables

    console = Terminal(least_width=150)
    read = sweep.SweepConfig.load(
        config,
        model=model,
        model_args=model_args,
        tasks=tasks,
        base_model=base,
        layers=layers,
        weights=weights,
        modules=modules,
        controls=controls,
        seeds=seeds,
        select=select,
        limit=limit,
        offset=offset,
        gen_kwargs=gen_kwargs,
        include_path=include_path,
        batch_size=batch_size,
        force_simple=force_simple,
        together=together,
    )
    job = sweep.Job.plan(read, output)
    _quiet_logs()
    if dry_run:
        try:
            checked = sweep.check_tasks(read)
        except harness.TaskNameError:
            raise
        except harness.EvaluationError as error:
            console.warn([f"documents not counted: {error}"])
            checked = None
        if checked is not None:
            console.warn(f"{task}: no score per document is known: {why}" for task, why in checked.unscored.items())
        console.print(tables.plan(job, checked.documents if checked is not None else None))
        return
    resident = None
    if job.left() and use_ray:
        from plam_eval.evaluation import workers as ray_workers

        ray_workers.run(job, workers)
    elif job.left():
        resident = sweep.load_model(read)
        sweep.run(job, resident)
    if resident is None or resident.rank == 0:
        job.write()
        found = findings.read_findings(output)
        found.write()
        console.warn(found.warnings)
        console.print(tables.sweep(found))
        console.say(found.verdict())
        console.say(f"Cells and tables: {output}; as a page: plam report {output}")
        _show_failures(found, console)
    if resident is not None and resident.world_size > 1:
        harness.end_together()


@app.command()
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
) -> None:
    """One self-contained HTML page, and its tables as CSV and parquet, from finished work."""
    from plam_eval.report.page import write_report

    _quiet_logs()
    page = write_report(
        folders, output, title=title, select=select, data=data, include_path=include_path, examples=examples
    )
    Terminal().say(f"Report: {page}")


def _show_failures(found: Any, console: Terminal) -> None:
    """Name the cells that failed, and end with exit status 1 if there are any."""
    failed = found.cells[found.cells["status"].isin(["failed", "damaged"])]
    for row in failed.to_dict("records"):
        log = found.folder / "cells" / row["cell"] / "log.txt"
        console.say(labelled(row["status"], "red", f"{row['cell']}: {row['error']} ({log})"))
    if len(failed):
        console.say("The same command tries them again, after what is said above, if anything.")
        raise typer.Exit(1)


def _quiet_logs(level: str = "WARNING") -> None:
    """Warnings and errors only on the terminal, if nothing else is said: each cell's folder has the whole log."""
    from loguru import logger

    logger.remove()
    stream = sys.stderr  # of now: a cell's goes into its log
    # Messages quote answers and names of files, so they pass through `shown`, which would take colours for data.
    logger.add(lambda line: print(shown(line), end="", file=stream), level=level, colorize=False)


def _wide() -> Terminal:
    """A console at least as wide as the table of a curve."""
    return Terminal(least_width=100)


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
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return f"out of memory ({first}); give a smaller dtype, device_map=auto, or a smaller --together"
    if isinstance(error, ModuleNotFoundError) and error.name in ("vllm", "ray"):
        return f"{error.name} is not installed: pip install 'plam-eval[{error.name}]'"
    if type(error).__module__.partition(".")[0] == "httpx":
        return f"the network failed ({type(error).__name__}: {error}); the same command goes on where it was"
    return None


def _stopped() -> NoReturn:
    Terminal(stderr=True).say("stopped; the same command goes on where it was")
    sys.exit(130)


if __name__ == "__main__":
    main()
