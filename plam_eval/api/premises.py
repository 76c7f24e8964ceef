"""Whether an MLLM has lost text ability to its base LLM, and whether a merge gives any back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from plam_eval.api.shared import Arguments, Words
from plam_eval.api.sweeps import evaluate_job
from plam_eval.arguments import ARGUMENTS, PATH, TEXT, WORDS, count, takes, write_words
from plam_eval.errors import InputError

if TYPE_CHECKING:
    from plam_eval.evaluation.premise.findings import PremiseFindings


@takes(
    model=TEXT,
    model_args=ARGUMENTS,
    tasks=WORDS,
    output=PATH,
    template=TEXT,
    limit=count(1),
    offset=count(0),
    sample=count(1),
    seed=count(0),
    gen_kwargs=TEXT,
    include_path=PATH,
    batch_size=count(1),
)
def premise(
    *,
    model: str | None = None,
    model_args: Arguments | None = None,
    tasks: Words | None = None,
    base: str | Path | None = None,
    output: str | Path = "premise",
    template: str = "mllm",
    limit: int | None = None,
    offset: int | None = None,
    sample: int | None = None,
    seed: int | None = None,
    gen_kwargs: str | None = None,
    include_path: str | Path | None = None,
    batch_size: int | None = None,
    force_simple: bool | None = None,
) -> PremiseFindings | None:
    """Base LLM, plain and merged MLLM on the same tasks of text alone; a stopped check goes on.

    Args:
        model: id of one of our wrappers.
        model_args: its arguments; with `plateau=` among them the merge is evaluated as well.
        tasks: names of tasks or groups of text alone, such as gsm8k, mmlu, arc_challenge, hellaswag, ifeval.
        base: base LLM, folder or hub id, in place of the plateau's own.
        output: folder for the runs.
        template: whose chat template the base is asked in: "mllm", the MLLM's, or "own".
        limit: at most so many documents of each task.
        offset: leave out as many documents of each task.
        sample: so many documents of each task, drawn by category and in whole clusters.
        seed: of the drawing; 0 by default.
        gen_kwargs: generation settings over the tasks' own.
        include_path: folder of further tasks.
        batch_size: as for lmms-eval.
        force_simple: the wrapper's simple mode.

    Returns:
        What was found: `table` has a row per task, `verdict()` the answer in words. Under several processes None on all
        but the first.

    Raises:
        InputError: an argument is missing. PremiseError: no base LLM; a folder of another check; a run that failed,
            with the name of its log. EvaluationError: tasks that show images, or cannot be loaded. MergeError,
            CheckpointError: a base of another geometry, or without a tokenizer.
    """
    from plam_eval.evaluation.premise import findings as premises
    from plam_eval.evaluation.premise.job import PremiseError, PremiseJob
    from plam_eval.evaluation.sweep.config import SweepConfig
    from plam_eval.harness import processes

    if not model or not model_args or not tasks:
        raise InputError("give --model, --model_args with pretrained=, and --tasks")
    config = SweepConfig.load(
        model=model,
        model_args=write_words(model_args, "model_args"),
        base_model=None if base is None else str(base),
        tasks=tasks,
        controls="none",
        limit=limit,
        offset=offset,
        sample=sample,
        seed=seed,
        gen_kwargs=gen_kwargs,
        include_path=include_path and str(include_path),
        batch_size=batch_size,
        force_simple=force_simple,
    )
    job = PremiseJob.plan(config, output, template)
    first = processes.is_first_process()
    if first:
        job.write()
    findings = evaluate_job(job.pair, notes_prompts=True)
    if findings is not None and (failures := findings.failures()):
        raise PremiseError(*failures, "the same command tries again what failed", origin=str(job.folder))
    processes.all_ranks({})  # the first one has written what the base is asked by
    findings = evaluate_job(job.base_job(), notes_prompts=True)
    if findings is not None and (failures := findings.failures()):
        raise PremiseError(*failures, "the same command tries again what failed", origin=str(job.folder))
    return premises.read_premise(job.folder) if first else None


@takes(folder=PATH)
def read_premise(folder: str | Path) -> PremiseFindings:
    """What a finished premise check found.

    Args:
        folder: the `output` of `premise`.

    Raises:
        PremiseError: none there, or one that has not finished. IncomparableError, RecordError: its runs.
    """
    from plam_eval.evaluation.premise import findings as premises

    return premises.read_premise(Path(folder))
