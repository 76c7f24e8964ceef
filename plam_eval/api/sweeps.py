"""Sweeps: plan, evaluate and read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.api.shared import Arguments, Words, free_memory, read_config
from plam_eval.arguments import ARGUMENTS, PATH, PATH_OR_MAPPING, PATHS, count, takes

if TYPE_CHECKING:
    import pandas as pd

    from plam_eval.evaluation.costs import Estimate
    from plam_eval.evaluation.noise.run import NoisePlan
    from plam_eval.evaluation.sweep.findings import Findings
    from plam_eval.evaluation.sweep.job import Job


@takes(
    config=PATH_OR_MAPPING,
    output=PATH,
    model_args=ARGUMENTS,
    include_path=PATH,
    workers=count(1),
    exclude=PATHS,
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
    ancestor: str | Path | None = None,
    layers: Words | None = None,
    weights: str | Sequence[tuple[float, float]] | None = None,
    modules: Words | None = None,
    rules: Words | None = None,
    controls: Words | None = None,
    seeds: str | Sequence[int] | None = None,
    draws: int | None = None,
    select: int | None = None,
    limit: int | None = None,
    offset: int | None = None,
    sample: int | None = None,
    seed: int | None = None,
    exclude: Words | Path | Sequence[Path] | None = None,
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
        model: id of one of our wrappers.
        model_args: its arguments; `plateau=` among them gives the base LLM, and the layers, weights and modules that
            are left out.
        tasks: names of tasks or groups.
        output: folder of the sweep.
        base: base LLM, where no plateau says it.
        ancestor: what MLLM and base were both tuned from, where no plateau says it; the control `from_ancestor` joins.
        layers: "24:36", "plateau", "early", "middle", "late", "all", "starts[:STEP]", "windows:WIDTH[:STEP]".
        weights: of the MLLM and the base: "0.9+0.3,0.8+0.4" or [(0.9, 0.3), (0.8, 0.4)].
        modules: qkvo, qk, vo, mlp, all, or names joined by "+".
        rules: merges by each of these: "trim", "dare:drop_rate:0.5"; by the plateau's own rule by default.
        controls: beside every merge: names of registered controls (all by default), "random_layers", or "none".
        seeds: of the controls that draw numbers.
        draws: sets of layers that "random_layers" draws for a merge, 5 by default.
        select: choose the best merge on so many documents of each task, and report on the others.
        limit: at most so many documents of each task.
        offset: leave out as many documents of each task.
        sample: so many documents of each task, drawn by category and in whole clusters.
        exclude: leave out what was looked at before: folders, or "scan" for that of the plateau.
        seed: of the drawing of documents, those to choose on included; 0 by default.
        gen_kwargs: generation settings over the tasks' own.
        include_path: folder of further tasks.
        batch_size: as for lmms-eval.
        force_simple: the wrapper's simple mode.
        together: answer for so many cells in one generation (HF wrappers); their merged tensors are held in memory.
        ray: cells as Ray tasks, a resident model per worker.
        workers: of `ray`; by default one per GPU.
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

    job = _plan_job(
        config=config,
        output=output,
        model=model,
        model_args=model_args,
        tasks=tasks,
        base=base,
        ancestor=ancestor,
        layers=layers,
        weights=weights,
        modules=modules,
        rules=rules,
        controls=controls,
        seeds=seeds,
        draws=draws,
        select=select,
        limit=limit,
        offset=offset,
        sample=sample,
        seed=seed,
        exclude=exclude,
        gen_kwargs=gen_kwargs,
        include_path=include_path,
        batch_size=batch_size,
        force_simple=force_simple,
        together=together,
    )
    logged = wandb.Settings.read(wandb_args)
    with logged.run("sweep", job.config.model, job.config.model_dump(mode="json")) as log:
        findings = evaluate_job(job, ray=ray, workers=workers)
        if findings is not None:
            findings.write()
            log.sweep(findings)
    return findings


@dataclass(frozen=True, repr=False)
class SweepPlan:
    """What a sweep would do.

    Attributes:
        job: its grid and folder.
        documents: by task; None where they cannot be counted here.
        warnings: what a reader should know, such as tasks that have no score per document.
        estimate: what all of it takes, from documents that were answered for it; None where none were.
    """

    job: Job
    documents: dict[str, int] | None
    warnings: tuple[str, ...]
    estimate: Estimate | None = None

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
            "estimate": None if self.estimate is None else self.estimate.to_dict(),
        }


@takes(config=PATH_OR_MAPPING, output=PATH, measure=count(0))
def plan_sweep(
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    output: str | Path = "sweep",
    measure: int = 0,
    **given: Any,
) -> SweepPlan:
    """What `sweep` with the same arguments would do; nothing is written into its folder.

    Args:
        config: as for `sweep`.
        output: as for `sweep`.
        measure: so many documents are answered, to tell the time, memory and disk of all; with 0 nothing is loaded.
        **given: what else `sweep` takes, without ray, workers and wandb_args.

    Raises:
        What `sweep` raises before it loads a model.
    """
    job = _plan_job(config=config, output=output, **given)
    return plan_of(job, measure)


def plan_of(job: Job, measure: int, what: str = "sweep") -> SweepPlan:
    """What a job would do.

    Args:
        job: the sweep or comparison.
        measure: so many documents are answered; with 0 nothing is loaded.
        what: it is called.
    """
    from plam_eval.evaluation.sweep import runner
    from plam_eval.evaluation.sweep.config import SweepError
    from plam_eval.harness.errors import EvaluationError, TaskNameError

    try:
        checked = runner.check_tasks(job.config)
    except (TaskNameError, SweepError):
        raise
    except EvaluationError as error:
        if measure:
            raise
        return SweepPlan(job, None, (f"documents not counted: {error}",))
    warnings = [f"{task}: no score per document is known: {why}" for task, why in checked.unscored.items()]
    estimate = None
    if measure:
        from plam_eval.evaluation import costs

        try:
            estimate = costs.of_job(job, checked.documents, checked.drawn, measure, what)
        finally:
            free_memory()
    return SweepPlan(job, checked.documents, (*warnings, *checked.notes), estimate)


@takes(folder=PATH, select=count(0))
def read_sweep(folder: str | Path, select: int | None = None) -> Findings:
    """What a sweep's folder, or a comparison's, holds now, finished or not.

    Args:
        folder: of the sweep or comparison.
        select: choose the best merge on so many documents of each task, instead of as the sweep was told.

    Raises:
        SweepError: no sweep there. DamagedFileError: its plan cannot be read. RecordError: no task has a score.
    """
    from plam_eval.evaluation.sweep import findings

    return findings.read_findings(Path(folder), select)


def _plan_job(*, config: Any, output: str | Path, **given: Any) -> Job:
    """A sweep's job from arguments of `sweep`."""
    from plam_eval.evaluation.sweep.config import SweepConfig
    from plam_eval.evaluation.sweep.job import Job

    file, fields = read_config(config, given)
    return Job.plan(SweepConfig.load(file, **fields), output)


def evaluate_job(
    job: Job,
    *,
    ray: bool = False,
    workers: int | None = None,
    notes_prompts: bool = False,
    again: NoisePlan | None = None,
) -> Findings | None:
    """Evaluate what is left of a job, and read back all of it. A cell that fails is recorded, not raised.

    Args:
        job: the sweep or comparison; its folder may hold finished cells.
        ray: whether cells are tasks of Ray rather than of this process.
        workers: Ray's resident models; by default as many as there are GPUs for, or one without any.
        notes_prompts: whether the runs note what every document's prompt was; not with Ray.
        again: what is answered once more with equal weights, when the cells are finished.

    Returns:
        The findings; None on every process but the first.
    """
    from plam_eval.evaluation.sweep import findings, runner

    first = True
    if not job.left():
        job.write()
    elif ray:
        from plam_eval.evaluation.sweep import ray as ray_workers

        ray_workers.run(job, workers)
        job.write()
    else:
        resident = runner.load_model(job.config)
        resident.notes_prompts = notes_prompts
        try:
            if again is not None:
                again.check_resident(resident)
            runner.run(job, resident)
            if again is not None:
                again.run_on(resident)
            first = resident.rank == 0
        finally:
            del resident
            free_memory()
    if again is not None:
        again.run_others(free_memory)
    if not first:
        return None
    return findings.read_findings(job.folder)
