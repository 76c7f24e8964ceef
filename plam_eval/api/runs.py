"""Runs: read one, compare two, and read the answers of any again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from plam_eval.api.shared import Arguments, Words, words_of
from plam_eval.api.sweeps import evaluate_job
from plam_eval.arguments import (
    ARGUMENTS,
    BOTH,
    PATH,
    TEXT,
    WORDS,
    count,
    paths,
    switch_or_count,
    takes,
    write_words,
)
from plam_eval.errors import InputError

if TYPE_CHECKING:
    from plam_eval.evaluation.comparison import Comparison
    from plam_eval.evaluation.records import Run
    from plam_eval.evaluation.rescore import Rescored


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
    together=switch_or_count,
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
    together: bool | int | None = None,
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
        gen_kwargs: generation settings over the tasks' own.
        include_path: folder of further tasks.
        batch_size: as for lmms-eval.
        force_simple: the wrapper's simple mode.
        together: answer for so many models in one generation (HF wrappers): 2, or True, for both at once.
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
        settings |= {"batch_size": batch_size, "force_simple": force_simple, "together": _at_once(together)}
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

    from plam_eval.evaluation.sweep.config import SweepConfig, SweepError
    from plam_eval.evaluation.sweep.grid import pair_grid
    from plam_eval.evaluation.sweep.job import Job

    config = SweepConfig.load(
        model=model,
        model_args=write_words(model_args, "model_args"),
        tasks=tasks,
        controls="none",
        together=_at_once(together),
        limit=limit,
        offset=offset,
        gen_kwargs=gen_kwargs,
        include_path=include_path and str(include_path),
        batch_size=batch_size,
        force_simple=force_simple,
    )
    job = Job.plan(config, output, pair_grid(config))
    logged = wandb.Settings.read(wandb_args)
    with logged.run("compare", model, config.model_dump(mode="json")) as log:
        findings = evaluate_job(job)
        if findings is None:
            return None
        if failures := findings.failures():
            raise SweepError("\n".join([*failures, "The same command tries again what failed."]))
        findings.write()
        done = comparison.comparison_of(findings)
        log.comparison(done)
    return done


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
