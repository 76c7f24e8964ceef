"""Runs: read one, compare two, and read the answers of any again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.api.shared import Arguments, Words, paths_of, words_of
from plam_eval.api.sweeps import evaluate_job
from plam_eval.arguments import (
    ARGUMENTS,
    BOTH,
    DEFAULT_NOISE,
    PATH,
    PATHS,
    TEXT,
    WORDS,
    count,
    paths,
    switch_or_count,
    switch_or_words,
    takes,
    write_words,
)
from plam_eval.errors import InputError, quoted

if TYPE_CHECKING:
    from plam_eval.api.sweeps import SweepPlan
    from plam_eval.evaluation.comparison import Comparison
    from plam_eval.evaluation.noise.run import NoisePlan
    from plam_eval.evaluation.records import Run
    from plam_eval.evaluation.rescore import Rescored
    from plam_eval.evaluation.sweep.job import Job


@takes(
    runs=paths,
    model=TEXT,
    model_args=ARGUMENTS,
    tasks=WORDS,
    output=PATH,
    limit=count(1),
    offset=count(0),
    sample=count(1),
    seed=count(0),
    exclude=PATHS,
    gen_kwargs=TEXT,
    include_path=PATH,
    batch_size=count(1),
    together=switch_or_count,
    noise=switch_or_words,
    noise_documents=count(1),
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
    sample: int | None = None,
    seed: int | None = None,
    exclude: Words | Path | Sequence[Path] | None = None,
    gen_kwargs: str | None = None,
    include_path: str | Path | None = None,
    batch_size: int | None = None,
    force_simple: bool | None = None,
    together: bool | int | None = None,
    noise: bool | Words | None = None,
    noise_documents: int | None = None,
    wandb_args: Arguments | None = None,
) -> Comparison | None:
    """Plain against merged on the same documents, on one resident model; or two runs that are there already.

    `compare(["runs/a", "runs/b"])` compares what lmms-eval wrote (with `--log_samples`), of our wrappers or not.
    `compare(model=..., model_args=..., tasks=...)` evaluates both halves first; a stopped comparison goes on.

    Args:
        runs: two run folders or results files, instead of a model.
        model: id of one of our wrappers.
        model_args: its arguments, with `plateau=` among them.
        tasks: names of tasks or groups; of two runs, only these.
        output: folder for both runs.
        limit: at most so many documents of each task.
        offset: leave out as many documents of each task.
        sample: so many documents of each task, drawn by category and in whole clusters.
        exclude: leave out what was looked at before: folders, or "scan" for that of the plateau.
        seed: of the drawing; 0 by default.
        gen_kwargs: generation settings over the tasks' own.
        include_path: folder of further tasks.
        batch_size: as for lmms-eval.
        force_simple: the wrapper's simple mode.
        together: answer for so many models in one generation (HF wrappers): 2, or True, for both at once.
        noise: answer documents again with equal weights, computed with otherwise, and show how many flip: True for
            another batch size, or "batch_size=4", "dtype=float32", "attn_implementation=eager", "model=plam_vllm"; with
            commas one after the other, joined by + at once.
        noise_documents: of each task, so many are answered again at most; 200 by default.
        wandb_args: as lmms-eval takes them.

    Returns:
        The comparison: `table` has a row per task (scores, difference, 95 % interval, gained and lost documents, p);
        `noise` the flip rates, where they were asked for.
        Under several processes None on all but the first.

    Raises:
        InputError: neither runs nor a model, or both. IncomparableError, RecordError: runs that cannot be compared.
            SweepError: one of both evaluations failed; the message names its log. Besides, what `sweep` raises.
    """
    from plam_eval.evaluation import comparison, wandb

    if runs:
        folders = [Path(folder) for folder in paths(runs)]
        if len(folders) != 2 or model or model_args:
            named = ", ".join(map(quoted, map(str, folders[:3])))
            beside = " and --model or --model_args" if model or model_args else ""
            raise InputError(
                f"give two run folders, or --model with --model_args and --tasks; found {len(folders)} as run folders "
                f"({named}){beside}. A value of --noise is written as batch_size=4"
            )
        settings: dict[str, Any] = {"limit": limit, "offset": offset, "gen_kwargs": gen_kwargs}
        settings["include_path"] = include_path
        settings |= {"batch_size": batch_size, "force_simple": force_simple, "together": _at_once(together)}
        settings |= {"noise": noise or None, "noise_documents": noise_documents}
        settings |= {"sample": sample, "seed": seed, "exclude": exclude or None}
        settings["output"] = None if str(output) == "compare" else output
        if idle := [f"--{key}" for key, value in settings.items() if value is not None]:
            raise InputError(f"{', '.join(idle)} with two run folders, which are compared as they are; leave it out")
        logged = wandb.Settings.read(wandb_args)
        first, second = (read_run(folder) for folder in folders)
        if tasks:
            first, second = (run.only(words_of(tasks)) for run in (first, second))
        names = [str(folder) for folder in folders]
        if names[0] == names[1]:
            names = ["first", "second"]
        done = comparison.compare_runs(first, second, (names[0], names[1]))
        with logged.run("compare", " ".join(names), {"runs": names}) as log:
            log.comparison(done)
        return done
    if not model or not model_args or not tasks:
        raise InputError("give --model, --model_args with a plateau, and --tasks; or two run folders")

    from plam_eval.evaluation.sweep.config import SweepError

    job = _plan_job(
        output,
        model=model,
        model_args=model_args,
        tasks=tasks,
        limit=limit,
        offset=offset,
        sample=sample,
        seed=seed,
        exclude=None if exclude is None else paths_of(exclude),
        gen_kwargs=gen_kwargs,
        include_path=include_path,
        batch_size=batch_size,
        force_simple=force_simple,
        together=together,
    )
    config = job.config
    again = _plan_noise(job, noise, noise_documents)
    logged = wandb.Settings.read(wandb_args)
    with logged.run("compare", model, config.model_dump(mode="json")) as log:
        findings = evaluate_job(job, again=again)
        if findings is None:
            return None
        if failures := findings.failures():
            raise SweepError("\n".join([*failures, "The same command tries again what failed."]))
        findings.write()
        done = comparison.comparison_of(findings)
        log.comparison(done)
    return done


@takes(model=TEXT, model_args=ARGUMENTS, tasks=WORDS, output=PATH, measure=count(0))
def plan_compare(
    runs: object = None,
    *,
    model: str | None = None,
    model_args: Arguments | None = None,
    tasks: Words | None = None,
    output: str | Path = "compare",
    measure: int = 0,
    noise: bool | Words | None = None,
    noise_documents: int | None = None,
    **given: Any,
) -> SweepPlan:
    """What `compare` with the same arguments would do; nothing is written into its folder.

    Args:
        runs: None: of two runs that are there nothing is to be planned.
        model: as for `compare`.
        model_args: as for `compare`.
        tasks: as for `compare`.
        output: as for `compare`.
        measure: so many documents are answered, to tell the time, memory and disk of all; with 0 nothing is loaded.
        noise: as for `compare`: checked, and not counted in what all of it takes.
        noise_documents: as for `compare`.
        **given: what else `compare` takes to evaluate two models.

    Raises:
        What `compare` raises before it loads a model.
    """
    from plam_eval.api.sweeps import plan_of

    if runs:
        raise InputError("--dry-run with two run folders, which are compared in a moment; leave it out")
    if not model or not model_args or not tasks:
        raise InputError("give --model, --model_args with a plateau, and --tasks")
    job = _plan_job(output, model=model, model_args=model_args, tasks=tasks, **given)
    again = _plan_noise(job, noise, noise_documents)
    planned = plan_of(job, measure, "comparison")
    if again is None:
        return planned
    names = ", ".join(variant.name for variant in again.parts)
    note = (
        f"noise: up to {again.documents} documents of each task are answered twice more, not counted here, for {names}"
    )
    return replace(planned, warnings=(*planned.warnings, note))


def _plan_job(
    output: str | Path,
    *,
    model_args: Arguments,
    include_path: str | Path | None = None,
    together: bool | int | None = None,
    **given: Any,
) -> Job:
    """The job of a comparison, from arguments of `compare`."""
    from plam_eval.evaluation.sweep.config import SweepConfig
    from plam_eval.evaluation.sweep.grid import pair_grid
    from plam_eval.evaluation.sweep.job import Job

    config = SweepConfig.load(
        model_args=write_words(model_args, "model_args"),
        controls="none",
        together=_at_once(together),
        include_path=include_path and str(include_path),
        **given,
    )
    return Job.plan(config, output, pair_grid(config))


def _plan_noise(job: Job, noise: bool | Words | None, documents: int | None) -> NoisePlan | None:
    """What is answered again beside a comparison; None where nothing is."""
    from plam_eval.evaluation.noise.run import NoisePlan

    if noise is None or noise is False:
        if documents is not None:
            raise InputError(
                f"noise_documents is {documents} without noise; give --noise (noise=True), or leave it out"
            )
        return None
    return NoisePlan.plan(job, DEFAULT_NOISE if isinstance(noise, bool) else noise, documents)


@takes(runs=paths, tasks=WORDS, output=PATH)
def rescore(
    runs: str | Path | Iterable[str | Path],
    *,
    tasks: Words | None = None,
    output: str | Path | None = None,
) -> Rescored:
    """The answers of runs, ours or not, read a second time by a parser that abstains: is a difference the parser's?

    Args:
        runs: run folders, cells of a sweep, or results files, written with `--log_samples`.
        tasks: only these.
        output: folder for rescored.json and disagreements.csv; nothing is written without one.

    Returns:
        `tasks` has a row per run and task (score by the task's own rule and by the second parser, shares that disagree
        and abstain), `disagreements` a row per document that they disagree on, `pair` what two runs show under both.
        Tasks that cannot be rescored are in `left_out`, with the reason.

    Raises:
        RecordError: no run there, or no log of one can be read. FolderError: `output` cannot be written, or holds
            files of something else. DamagedFileError, OutsideError: a cell's record.
    """
    from plam_eval.evaluation import rescore as rescoring

    if output is not None:
        rescoring.check_output(Path(output))
    done = rescoring.rescore_folders([Path(run) for run in paths(runs)], words_of(tasks) if tasks else None)
    if output is not None:
        done.write(Path(output))
    return done


def _at_once(together: bool | int | None) -> int | None:
    """So many cells are answered at once; None where nothing was asked for."""
    if isinstance(together, bool):
        return BOTH if together else None
    return together


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
    from plam_eval.evaluation.sweep import folder as sweep_folders

    return sweep_folders.read_run(Path(folder))
