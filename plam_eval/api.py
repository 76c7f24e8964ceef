"""plam-eval from Python: what the commands do, as functions. `import plam_eval` gives them all.

Arguments have the names that they have on the command line, results are records with pandas tables in them, and what
goes wrong is raised as one of the errors of `plam_eval.errors`. Nothing here ends the process or needs a terminal;
progress and notes go to standard error. Importing this module imports nothing heavy.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.arguments import (
    ARGUMENTS,
    NAME,
    PATH,
    PATH_OR_MAPPING,
    TEXT,
    WORDS,
    count,
    paths,
    real,
    takes,
    write_words,
)
from plam_eval.errors import ArgumentError, InputError
from plam_eval.spec import PlateauSpec, load_spec

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from plam_eval.evaluation.comparison import Comparison
    from plam_eval.evaluation.records import Run
    from plam_eval.evaluation.scan import Scan
    from plam_eval.evaluation.sweep import Job
    from plam_eval.evaluation.sweep.findings import Findings
    from plam_eval.merging.merge import MergeReport

__all__ = [
    "SweepPlan",
    "compare",
    "load_spec",
    "merge",
    "plan_sweep",
    "plateau",
    "read_run",
    "read_scan",
    "read_sweep",
    "report",
    "scan",
    "sweep",
]

Words = str | Sequence[str]
"""Words, as a list or in one text with commas."""
Arguments = str | Mapping[str, Any]
"""`key=value,...` as lmms-eval takes it, or a mapping."""

_FROM_PARAMETERS = "_plam_from_parameters"  # kept on a model that was merged so


# ---- merging ---------------------------------------------------------------------------------------------------------


@takes()
def merge(
    model: nn.Module,
    plateau: str | Path | Mapping[str, Any] | PlateauSpec | None,
    *,
    base: str | Path | None = None,
    layers: str | Sequence[int] | None = None,
    modules: str | Sequence[str] | None = None,
    model_weight: float | None = None,
    base_weight: float | None = None,
    rule: str | None = None,
    seed: int | None = None,
    pretrained: str | Path | None = None,
    from_parameters: bool = False,
) -> MergeReport:
    """Bring a loaded Hugging Face model to a plateau spec, in place, whatever it was merged by before.

    The model may be on any devices, in float32, bfloat16 or float16. Its tensors become
    `model_weight * W_model + base_weight * W_base` (of the rule `weighted_sum`), computed in float32 from both
    checkpoints' own tensors and rounded once to the model's dtype; all tensors that the spec does not name keep their
    bits. `merge(model, "none")` puts every merged tensor back, to the bit.

    Args:
        model: what `from_pretrained` gave: a decoder whose layers are found by name. (A wrapper of ours has a method
            `merge` of its own.)
        plateau: name of a packaged spec, path of a YAML file, a mapping, or a spec. None or "none" with `base` and
            `layers` makes one (q, k, v, o; 0.9 + 0.3), and without them means the plain model.
        base: base LLM, folder or hub id, in place of the spec's.
        layers: decoder layers, 0-based, end exclusive: "24:36" or (24, 36).
        modules: "q_proj+k_proj", a group (qkvo, qk, vo, mlp, all), or a list of either.
        model_weight, base_weight: coefficients; they need not sum to one.
        rule, seed: the merge rule or control, and the seed of one that draws.
        pretrained: folder or hub id of the checkpoint that `model` was loaded from; by default the one that it names
            itself (`model.name_or_path`).
        from_parameters: take the model's own parameters for W_model, because no checkpoint holds them (it was trained
            here). Such a model is merged once and cannot be put back.

    Returns:
        What was merged: tensors, bytes read, seconds, and the relative change of each layer (a number without unit).

    Raises:
        SpecError: listing every problem of the spec. MergeError: a base that is not there, or every tensor that does
            not fit, or is not the checkpoint's. CheckpointError: no such checkpoint of `model`. ArgumentError: `model`
            is none. The model is then as it was.
    """
    overrides = {
        "base": None if base is None else str(base),
        "layers": layers,
        "modules": modules,
        "model_weight": model_weight,
        "base_weight": base_weight,
        "rule": rule,
        "seed": seed,
    }
    if not hasattr(model, "named_parameters"):
        own = "; a wrapper's own method is wrapper.merge(plateau)" if hasattr(model, "merge") else ""
        raise ArgumentError(f"model is a {type(model).__name__}; expected what from_pretrained gives{own}")
    if from_parameters and pretrained is not None:
        raise InputError(f"pretrained={pretrained} and from_parameters: give one of them")
    spec = load_spec(plateau, overrides)

    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.merging.merge import merge_in_place

    checkpoint = None
    name = pretrained if pretrained is not None else getattr(model, "name_or_path", None)
    if not (from_parameters or getattr(model, _FROM_PARAMETERS, False)) and name:
        revision = None if pretrained is not None else getattr(getattr(model, "config", None), "_commit_hash", None)
        checkpoint = Checkpoint.open(name, revision, role="pretrained")
    report = merge_in_place(model, spec, checkpoint=checkpoint)
    if from_parameters:
        setattr(model, _FROM_PARAMETERS, True)
    return report


# ---- scans -----------------------------------------------------------------------------------------------------------


@takes(
    model_args=ARGUMENTS,
    tasks=WORDS,
    output=PATH,
    limit=count(1),
    offset=count(0),
    cuts=TEXT,
    gen_kwargs=TEXT,
    include_path=PATH,
    batch_size=count(1),
    base=NAME,
    margin=real,
    confidence=real,
    wandb_args=ARGUMENTS,
)
def scan(
    model: Any,
    model_args: Arguments | None = None,
    tasks: Words = (),
    output: str | Path = "scan",
    *,
    limit: int | None = None,
    offset: int = 0,
    cuts: str | None = None,
    gen_kwargs: str | None = None,
    include_path: str | Path | None = None,
    batch_size: int = 1,
    force_simple: bool = False,
    base: str | Path | None = None,
    margin: float = 0.02,
    confidence: float = 0.95,
    wandb_args: Arguments | None = None,
) -> Scan | None:
    """Find the plateau: answer benchmarks with the image hidden from every layer on, and write a spec.

    Everything that can be known to be wrong is raised before the model is loaded. A scan that was stopped goes on where
    it was, with the same `output`; a higher `limit` or more tasks add to it.

    Args:
        model: id of one of our HF wrappers ("plam_llava"), or such a wrapper, loaded, which stays loaded.
        model_args: its arguments ("pretrained=...,dtype=bfloat16" or a mapping); none for a loaded one.
        tasks: names of tasks or groups.
        output: folder of the scan.
        limit, offset: documents of each task: at most so many, after leaving out so many.
        cuts: cut layers such as "0,4,8:28"; all by default.
        gen_kwargs: generation settings over the tasks' own.
        include_path: folder of further tasks.
        batch_size: documents in one generation, each under every cut; more than 1 for Qwen2.5-VL and Qwen3-VL
            alone. A loaded wrapper must have been made with as much.
        force_simple: the wrapper's simple mode.
        base: base LLM for the spec. Without one, known from a packaged spec or an earlier scan, no spec is written.
        margin: accuracy (0 to 1) that a plateau may lose. confidence: of the one-sided bounds.
        wandb_args: as lmms-eval takes them, such as "project=plam,job_type=scan".

    Returns:
        The scan: `curve.table()` is the accuracy by cut and task, `stages` what was concluded, `spec` the plateau spec,
        None where there is no plateau. Under several processes None on all but the first.

    Raises:
        InputError, ArgumentError: arguments. EvaluationError: tasks or datasets, an evaluation that failed. ScanError,
            FolderError: `output` holds something else. ProbeError: cuts, or a model whose image tokens or attention
            cannot be masked. MergeError, SpecError, CheckpointError: checkpoints and specs.
    """
    from plam_eval.evaluation import harness, wandb
    from plam_eval.evaluation import scan as scans
    from plam_eval.harness.registry import WRAPPERS
    from plam_eval.probing.plateau import check_criteria

    model_id = model if isinstance(model, str) else getattr(model, "model_id", type(model).__name__)
    if model_id not in WRAPPERS or model_id == "plam_vllm":
        known = ", ".join(name for name in WRAPPERS if name != "plam_vllm")
        raise InputError(f"model is {model_id!r}; a scan needs one of our HF wrappers: {known}")
    base = None if base is None else str(base)
    check_criteria(margin, confidence)
    scans.check_batch(model_id, batch_size)
    arguments = harness.parse_model_args(write_words(model_args or "", "model_args"))
    scans.check_folder(output)
    scans.check_base(base)
    logged = wandb.Settings.read(wandb_args)
    if isinstance(model, str):
        found = harness.check_model(model, arguments, force_simple=force_simple)
        if arguments.get("pretrained"):
            trusted = bool(arguments.get("trust_remote_code"))
            scans.check_layout(str(arguments["pretrained"]), arguments.get("revision"), trust_remote_code=trusted)
        if cuts and arguments.get("pretrained"):
            scans.check_cuts(cuts, str(arguments["pretrained"]), arguments.get("revision"))
        pretrained, merged = (found[0].name, found[1] is not None) if found else (None, False)
    elif model_args:
        raise ArgumentError("model_args with a model that is loaded; expected them with the id of a wrapper")
    else:
        pretrained, merged = model.pretrained_name, model.spec is not None
    asked: dict[str, Any] = {"limit": limit, "offset": offset, "gen_kwargs": gen_kwargs}
    asked["include_path"] = include_path and str(include_path)
    scans.check(output, tasks, model=model, **asked)
    note = scans.no_spec(output, pretrained, base, merged=merged) if pretrained else None
    if note and os.environ.get("RANK", "0") == "0":  # of a launcher's processes the first
        print(note, file=sys.stderr, flush=True)
    settings = {"model": model_id, "model_args": arguments, "tasks": _listed(tasks), **asked}
    with logged.run("scan", pretrained or model_id, settings) as log:
        wrapper = model
        if isinstance(model, str):
            wrapper = harness.make_model(model, arguments, batch_size=batch_size, force_simple=force_simple)
        try:
            done = scans.scan(
                wrapper,
                tasks,
                output,
                cuts=cuts,
                batch_size=batch_size,
                base_model=base,
                margin=margin,
                confidence=confidence,
                **asked,
            )
        finally:
            del wrapper
            _free()
        if done is not None:
            log.scan(done)
    return done


@takes(curve=PATH, tasks=WORDS, base=NAME, margin=real, confidence=real, kl_threshold=real)
def plateau(
    curve: str | Path,
    *,
    tasks: Words | None = None,
    base: str | Path | None = None,
    margin: float = 0.02,
    confidence: float = 0.95,
    kl_threshold: float | None = None,
) -> Scan:
    """Find the plateau again in a finished scan, by another margin or for other tasks; no model is needed.

    Writes the scan's conclusion, its spec included, anew.

    Args:
        curve: folder of the scan, or a file in it.
        tasks: only these.
        base: base LLM for the spec; that of the last spec by default.
        margin: accuracy (0 to 1) that a plateau may lose. confidence: of the one-sided bounds.
        kl_threshold: nats, for the second opinion.

    Raises:
        ScanError: no finished scan there. CurveError, InputError: no such tasks, or criteria that are none.
            DamagedFileError: it cannot be read.
    """
    from plam_eval.evaluation import scan as scans

    base = None if base is None else str(base)
    scans.check_base(base)
    folder = Path(curve)
    return scans.conclude(
        folder.parent if folder.is_file() else folder,
        tasks=_listed(tasks) if tasks else None,
        base_model=base,
        margin=margin,
        confidence=confidence,
        **({} if kl_threshold is None else {"kl_threshold": kl_threshold}),
    )


@takes(folder=PATH)
def read_scan(folder: str | Path) -> Scan:
    """A finished scan as it was concluded last.

    Raises:
        ScanError: none there. DamagedFileError, CurveError, SpecError: it cannot be read.
    """
    from plam_eval.evaluation import scan as scans

    return scans.load(Path(folder))


# ---- comparisons and sweeps ------------------------------------------------------------------------------------------


@takes(
    runs=paths,
    model=TEXT,
    model_args=ARGUMENTS,
    tasks=WORDS,
    output=PATH,
    limit=count(1),
    offset=count(0),
    gen_kwargs=TEXT,
    include_path=PATH,
    batch_size=count(1),
    wandb_args=ARGUMENTS,
)
def compare(
    runs: str | Path | Iterable[str | Path] | None = None,
    *,
    model: str | None = None,
    model_args: Arguments | None = None,
    tasks: Words | None = None,
    output: str | Path = "compare",
    limit: int | None = None,
    offset: int | None = None,
    gen_kwargs: str | None = None,
    include_path: str | Path | None = None,
    batch_size: int | None = None,
    force_simple: bool | None = None,
    together: bool = False,
    wandb_args: Arguments | None = None,
) -> Comparison | None:
    """Plain against merged on the same documents, on one resident model; or two runs that are there already.

    `compare(["runs/a", "runs/b"])` compares what lmms-eval wrote (with `--log_samples`), of our wrappers or not.
    `compare(model=..., model_args=..., tasks=...)` evaluates both halves first; a stopped comparison goes on.

    Args:
        runs: two run folders or results files, instead of a model.
        model, model_args: as for lmms-eval, with `plateau=` among the arguments.
        tasks: names of tasks or groups; of two runs, only these.
        output: folder for both runs.
        limit, offset, gen_kwargs, include_path, batch_size, force_simple: as for lmms-eval.
        together: answer each document for both models in one generation (HF wrappers).
        wandb_args: as lmms-eval takes them.

    Returns:
        The comparison: `table` has a row per task (scores, difference, 95 % interval, gained and lost documents, p).
        Under several processes None on all but the first.

    Raises:
        InputError: neither runs nor a model, or both. IncomparableError, RecordError: runs that cannot be compared.
            SweepError: one of both evaluations failed; the message names its log. Besides, what `sweep` raises.
    """
    from plam_eval.evaluation import comparison, wandb

    if runs:
        folders = [Path(folder) for folder in paths(runs)]
        if len(folders) != 2 or model or model_args:
            raise InputError("give two run folders, or --model with --model_args and --tasks")
        settings = {"limit": limit, "offset": offset, "gen_kwargs": gen_kwargs, "include_path": include_path}
        settings |= {"batch_size": batch_size, "force_simple": force_simple, "together": together or None}
        settings["output"] = None if str(output) == "compare" else output
        if idle := [f"--{key}" for key, value in settings.items() if value is not None]:
            raise InputError(f"{', '.join(idle)} with two run folders, which are compared as they are; leave it out")
        logged = wandb.Settings.read(wandb_args)
        first, second = (read_run(folder) for folder in folders)
        if tasks:
            first, second = (run.only(_listed(tasks)) for run in (first, second))
        names = [str(folder) for folder in folders]
        if names[0] == names[1]:
            names = ["first", "second"]
        done = comparison.compare_runs(first, second, (names[0], names[1]))
        with logged.run("compare", " ".join(names), {"runs": names}) as log:
            log.comparison(done)
        return done
    if not model or not model_args or not tasks:
        raise InputError("give --model, --model_args with a plateau, and --tasks; or two run folders")

    from plam_eval.evaluation import sweep as sweeps

    config = sweeps.SweepConfig.load(
        model=model,
        model_args=write_words(model_args, "model_args"),
        tasks=tasks,
        controls="none",
        together=2 if together else None,
        limit=limit,
        offset=offset,
        gen_kwargs=gen_kwargs,
        include_path=include_path and str(include_path),
        batch_size=batch_size,
        force_simple=force_simple,
    )
    job = sweeps.Job.plan(config, output, sweeps.pair_grid(config))
    logged = wandb.Settings.read(wandb_args)
    with logged.run("compare", model, config.model_dump(mode="json")) as log:
        found = _run(job)
        if found is None:
            return None
        if failures := found.failures():
            raise sweeps.SweepError("\n".join([*failures, "The same command tries again what failed."]))
        found.write()
        done = comparison.comparison_of(found)
        log.comparison(done)
    return done


@takes(
    config=PATH_OR_MAPPING,
    output=PATH,
    model_args=ARGUMENTS,
    include_path=PATH,
    workers=count(1),
    wandb_args=ARGUMENTS,
)
def sweep(
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    model_args: Arguments | None = None,
    tasks: Words | None = None,
    output: str | Path = "sweep",
    base: str | Path | None = None,
    layers: Words | None = None,
    weights: str | Sequence[tuple[float, float]] | None = None,
    modules: Words | None = None,
    controls: Words | None = None,
    seeds: str | Sequence[int] | None = None,
    select: int | None = None,
    limit: int | None = None,
    offset: int | None = None,
    gen_kwargs: str | None = None,
    include_path: str | Path | None = None,
    batch_size: int | None = None,
    force_simple: bool | None = None,
    together: int | None = None,
    ray: bool = False,
    workers: int | None = None,
    wandb_args: Arguments | None = None,
) -> Findings | None:
    """Evaluate many merges and their controls on one resident model, and compare them with the plain model.

    Cells that are finished in `output` are not evaluated again, so that a stopped sweep goes on. A cell that fails does
    not stop the others: `failures()` of what is returned names it, and the same call tries it again.

    Args:
        config: YAML file or mapping of a sweep; the other arguments go over it.
        model, model_args, tasks, limit, offset, gen_kwargs, include_path, batch_size, force_simple: as for lmms-eval.
            `plateau=` among the model_args gives the base LLM, and the layers, weights and modules that are left out.
        output: folder of the sweep.
        base: base LLM, where no plateau says it.
        layers: "24:36", "plateau", "early", "middle", "late", "all", "starts[:STEP]", "windows:WIDTH[:STEP]".
        weights: of the MLLM and the base: "0.9+0.3,0.8+0.4" or [(0.9, 0.3), (0.8, 0.4)].
        modules: qkvo, qk, vo, mlp, all, or names joined by "+".
        controls: beside every merge: self_scale, normalized, noise (all by default), or "none".
        seeds: of the controls that draw.
        select: choose the best merge on so many documents of each task, and report on the others.
        together: answer for so many cells in one generation (HF wrappers); their merged tensors are held in memory.
        ray, workers: cells as Ray tasks, on so many workers (by default one per GPU).
        wandb_args: as lmms-eval takes them.

    Returns:
        What was found: `cells`, `tasks` and `controls` are tables, `verdict()` the answer in words. Under several
        processes None on all but the first.

    Raises:
        SweepError: every problem of the config; a folder of other settings. MergeError, SpecError, CheckpointError: a
            cell that cannot be merged. EvaluationError: tasks or datasets. FolderError: `output`. InputError,
            ArgumentError: arguments.
    """
    from plam_eval.evaluation import wandb

    job = _job(
        config=config,
        output=output,
        model=model,
        model_args=model_args,
        tasks=tasks,
        base=base,
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
    logged = wandb.Settings.read(wandb_args)
    with logged.run("sweep", job.config.model, job.config.model_dump(mode="json")) as log:
        found = _run(job, ray=ray, workers=workers)
        if found is not None:
            found.write()
            log.sweep(found)
    return found


@dataclass(frozen=True, repr=False)
class SweepPlan:
    """What a sweep would do.

    Attributes:
        job: its grid and folder.
        documents: by task; None where they cannot be counted here.
        warnings: what a reader should know, such as tasks that have no score per document.
    """

    job: Job
    documents: dict[str, int] | None
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        each = "an unknown number of" if self.documents is None else sum(self.documents.values())
        cells = self.job.grid.cells
        return (
            f"SweepPlan({self.job.folder}, {len(self.job.left())} of {len(cells)} cells to run, {each} documents each)"
        )

    @property
    def cells(self) -> pd.DataFrame:
        """One row per cell: cell, kind ("plain", "merged", "control"), bytes_to_read, finished."""
        import pandas as pd

        left = {cell.name for cell in self.job.left()}
        rows = [
            {
                "cell": cell.name,
                "kind": cell.kind,
                "bytes_to_read": self.job.bytes_to_read.get(cell.name, 0),
                "finished": cell.name not in left,
            }
            for cell in self.job.grid.cells
        ]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: folder, cells, documents by task, seconds per finished cell, warnings."""
        return {
            "folder": str(self.job.folder),
            "cells": self.cells.to_dict("records"),
            "documents": self.documents,
            "seconds_per_cell": self.job.seconds_per_cell(),
            "warnings": list(self.warnings),
        }


@takes(config=PATH_OR_MAPPING, output=PATH)
def plan_sweep(
    config: str | Path | Mapping[str, Any] | None = None, *, output: str | Path = "sweep", **given: Any
) -> SweepPlan:
    """What `sweep` with the same arguments would do; nothing is loaded or written.

    Args:
        config, output, given: as for `sweep`, without ray, workers and wandb_args.

    Raises:
        What `sweep` raises before it loads a model.
    """
    from plam_eval.evaluation import harness
    from plam_eval.evaluation import sweep as sweeps

    job = _job(config=config, output=output, **given)
    try:
        checked = sweeps.check_tasks(job.config)
    except (harness.TaskNameError, sweeps.SweepError):
        raise
    except harness.EvaluationError as error:
        return SweepPlan(job, None, (f"documents not counted: {error}",))
    warnings = [f"{task}: no score per document is known: {why}" for task, why in checked.unscored.items()]
    return SweepPlan(job, checked.documents, tuple(warnings))


@takes(folder=PATH, select=count(0))
def read_sweep(folder: str | Path, select: int | None = None) -> Findings:
    """What a sweep's folder, or a comparison's, holds now, finished or not.

    Args:
        select: choose the best merge on so many documents of each task, instead of as the sweep was told.

    Raises:
        SweepError: no sweep there. DamagedFileError: its plan cannot be read. RecordError: no task has a score.
    """
    from plam_eval.evaluation.sweep import findings

    return findings.read_findings(Path(folder), select)


# ---- what is finished ------------------------------------------------------------------------------------------------


@takes(folder=PATH)
def read_run(folder: str | Path) -> Run:
    """A run that lmms-eval wrote with `--log_samples`, or a cell of a sweep.

    Args:
        folder: of the run, or above it, where the newest run counts; or its results file.

    Returns:
        The run: `samples` is a table with a row per document (task, doc_id, prompt, target, answer, score, parsable,
        group), `accuracy()` the mean score by task, `results` lmms-eval's own results.

    Raises:
        RecordError: no readable run there. DamagedFileError, OutsideError: a cell's record.
    """
    from plam_eval.evaluation import sweep as sweeps

    return sweeps.read_run(Path(folder))


@takes(folders=paths, output=PATH, title=TEXT, select=count(0), data=PATH, include_path=PATH, examples=count(0))
def report(
    folders: str | Path | Iterable[str | Path],
    output: str | Path = "report",
    *,
    title: str | None = None,
    select: int | None = None,
    data: str | Path | None = None,
    include_path: str | Path | None = None,
    examples: int = 6,
) -> Path:
    """Write one self-contained HTML page, and its tables as CSV and parquet, from finished work.

    Args:
        folders: of sweeps, comparisons, scans and lmms-eval runs, or folders above such.
        output: folder for index.html and tables/.
        title: of the page; by default it names the models.
        select: choose the best merge on so many documents of each task, for every sweep.
        data: folder from which the tasks find their datasets, for example images; by default the working directory.
        include_path: folder of further tasks, whose Python code is run to find example images.
        examples: gained and lost documents to show, of each.

    Returns:
        The page's path.

    Raises:
        ReportError: nothing could be read. FolderError: `output` cannot be written, or holds another page.
    """
    from plam_eval.report.page import write_report

    return write_report(
        [Path(folder) for folder in paths(folders)],
        Path(output),
        title=title,
        select=select,
        data=None if data is None else Path(data),
        include_path=None if include_path is None else Path(include_path),
        examples=examples,
    )


# ---- what they share -------------------------------------------------------------------------------------------------


def _listed(words: Words) -> list[str]:
    return [word.strip() for word in words.split(",")] if isinstance(words, str) else list(words)


def _job(*, config: Any, output: str | Path, **given: Any) -> Job:
    """A sweep's job from arguments of `sweep`."""
    from plam_eval.evaluation import sweep as sweeps

    base = given.pop("base", None)
    given["base_model"] = str(base) if isinstance(base, Path) else base
    if given.get("model_args") is not None:
        given["model_args"] = write_words(given["model_args"], "model_args")
    if given.get("include_path") is not None:
        given["include_path"] = str(given["include_path"])
    if isinstance(config, Mapping):
        config, given = None, {**config, **{key: value for key, value in given.items() if value is not None}}
    return sweeps.Job.plan(sweeps.SweepConfig.load(config, **given), output)


def _run(job: Job, *, ray: bool = False, workers: int | None = None) -> Findings | None:
    """Evaluate what is left of a job, and read back all of it; None on every process but the first."""
    from plam_eval.evaluation import sweep as sweeps
    from plam_eval.evaluation.sweep import findings

    if not job.left():
        job.write()
    elif ray:
        from plam_eval.evaluation.sweep import ray as ray_workers

        ray_workers.run(job, workers)
        job.write()
    else:
        resident = sweeps.load_model(job.config)
        try:
            sweeps.run(job, resident)
            first = resident.rank == 0
        finally:
            del resident
            _free()
        if not first:
            return None
    return findings.read_findings(job.folder)


def _free() -> None:
    """Give a GPU back what a dropped model held of it: in a notebook the next call loads another, beside it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()  # a wrapper refers to itself
        torch.cuda.empty_cache()
