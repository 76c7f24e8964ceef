"""Searches: plan, run and read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.api.shared import Arguments, Words, free_memory, read_config
from plam_eval.arguments import ARGUMENTS, PATH, PATH_OR_MAPPING, PATHS, count, takes

if TYPE_CHECKING:
    from plam_eval.evaluation.costs import Estimate
    from plam_eval.evaluation.search.findings import SearchFindings
    from plam_eval.evaluation.search.job import SearchJob


@takes(config=PATH_OR_MAPPING, output=PATH, model_args=ARGUMENTS, include_path=PATH, exclude=PATHS)
def search(
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    model_args: Arguments | None = None,
    tasks: Words | None = None,
    output: str | Path = "search",
    select: int | None = None,
    trials: int | None = None,
    sampler: str | None = None,
    seed: int | None = None,
    base: str | Path | None = None,
    ancestor: str | Path | None = None,
    layers: str | None = None,
    within: str | Sequence[int] | None = None,
    min_layers: int | None = None,
    max_layers: int | None = None,
    model_weight: str | float | Sequence[float] | None = None,
    base_weight: str | float | Sequence[float] | None = None,
    modules: Words | None = None,
    rules: Words | None = None,
    rungs: str | Sequence[float] | None = None,
    prune: float | None = None,
    controls: Words | None = None,
    seeds: str | Sequence[int] | None = None,
    draws: int | None = None,
    limit: int | None = None,
    offset: int | None = None,
    sample: int | None = None,
    exclude: Words | Path | Sequence[Path] | None = None,
    gen_kwargs: str | None = None,
    include_path: str | Path | None = None,
    batch_size: int | None = None,
    force_simple: bool | None = None,
) -> SearchFindings:
    """Search for the merge that gains most over plain on some documents, and report on the others.

    Answers are kept in `output`, so that a stopped search goes on, and several processes may be at one search.

    Args:
        config: YAML file or mapping of a search; the other arguments go over it.
        model: id of one of our wrappers.
        model_args: its arguments; a `plateau=` among them gives the base LLM, the rule and modules where these are left
            out, and is tried first.
        tasks: names of tasks or groups.
        output: folder of the search.
        select: choose on so many documents of each task, and those that share an image with them.
        trials: settings that are tried, so many in all.
        sampler: "tpe", "gp", "random" or "grid".
        seed: of the sampler, of the drawing of documents, and of which of them are answered first.
        base: base LLM, where no plateau says it.
        ancestor: what MLLM and base were both tuned from, where no plateau says it.
        layers: "ranges" (without a gap) or "sets".
        within: only layers of this range: "4:20" or [4, 20].
        min_layers: of a merge.
        max_layers: of a merge.
        model_weight: "0.5:1.0:0.1", "0.5:1.0" (any between), one number, or a list of these.
        base_weight: the same.
        modules: qkvo, qk, vo, mlp, all, or names joined by "+"; several are searched among.
        rules: "trim", "dare:drop_rate:0.5"; several are searched among; by default the plateau's own.
        rungs: shares of the documents after which a hopeless setting is given up.
        prune: p below which a setting is hopeless; 0 gives none up.
        controls: beside the chosen merge, on the other documents.
        seeds: of the controls that draw numbers.
        draws: sets of layers that "random_layers" draws, 5 by default.
        limit: at most so many documents of each task.
        offset: leave out as many documents of each task.
        sample: so many documents of each task, drawn by category and in whole clusters.
        exclude: leave out what was looked at before: folders, or "scan" for that of the plateau.
        gen_kwargs: generation settings over the tasks' own.
        include_path: folder of further tasks.
        batch_size: as for lmms-eval.
        force_simple: the wrapper's simple mode.

    Returns:
        What was found: `trials` is a table, `held_out` the sweep on the other documents, `verdict()` the answer.

    Raises:
        SearchError: every problem of the config; a folder of other settings. MergeError, SpecError, CheckpointError: a
            space that cannot be merged. EvaluationError: tasks or datasets. FolderError: `output`. InputError,
            ArgumentError: arguments.
    """
    from plam_eval.evaluation.search import findings, runner

    job = _plan_job(
        config=config,
        output=output,
        model=model,
        model_args=model_args,
        tasks=tasks,
        select=select,
        trials=trials,
        sampler=sampler,
        seed=seed,
        base=base,
        ancestor=ancestor,
        layers=layers,
        within=within,
        min_layers=min_layers,
        max_layers=max_layers,
        model_weight=model_weight,
        base_weight=base_weight,
        modules=modules,
        rules=rules,
        rungs=rungs,
        prune=prune,
        controls=controls,
        seeds=seeds,
        draws=draws,
        limit=limit,
        offset=offset,
        sample=sample,
        exclude=exclude,
        gen_kwargs=gen_kwargs,
        include_path=include_path,
        batch_size=batch_size,
        force_simple=force_simple,
    )
    failed = runner.run(job)
    free_memory()
    found = findings.read_search(job.folder, failed)
    found.write()
    return found


@dataclass(frozen=True, repr=False)
class SearchPlan:
    """What a search would do.

    Attributes:
        job: its space and folder.
        documents: by task, those of the whole task; None where they cannot be counted here.
        tried: settings that have answers already.
        size: different settings that the space has; None where there is no end of them.
        warnings: what a reader should know, such as tasks that have no score per document.
        estimate: what all of it takes, from documents that were answered for it; None where none were.
    """

    job: SearchJob
    documents: dict[str, int] | None
    tried: int
    size: int | None
    warnings: tuple[str, ...]
    estimate: Estimate | None = None

    def __repr__(self) -> str:
        return f"SearchPlan({self.job.folder}, {self.tried} of {self.job.config.options.trials} settings tried)"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: folder, trials, tried, space, size, documents by task, select, warnings."""
        return {
            "folder": str(self.job.folder),
            "trials": self.job.config.options.trials,
            "tried": self.tried,
            "space": self.job.space.to_dict(),
            "size": self.size,
            "documents": self.documents,
            "select": self.job.config.select,
            "warnings": list(self.warnings),
            "estimate": None if self.estimate is None else self.estimate.to_dict(),
        }


@takes(config=PATH_OR_MAPPING, output=PATH, measure=count(0))
def plan_search(
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    output: str | Path = "search",
    measure: int = 0,
    **given: Any,
) -> SearchPlan:
    """What `search` with the same arguments would do; nothing is written into its folder.

    Args:
        config: as for `search`.
        output: as for `search`.
        measure: so many documents are answered, to tell the time, memory and disk of all; with 0 nothing is loaded.
        **given: what else `search` takes.

    Raises:
        What `search` raises before it loads a model.
    """
    from plam_eval.evaluation.search import runner
    from plam_eval.evaluation.sweep.config import SweepError
    from plam_eval.evaluation.sweep.runner import check_tasks
    from plam_eval.harness.errors import EvaluationError, TaskNameError

    job = _plan_job(config=config, output=output, **given)
    standing = runner.standing_of(job)
    tried, size = len(standing.settings) if standing is not None else 0, job.space.size()
    try:
        checked = check_tasks(job.config.sweep, by_document=True)
    except (TaskNameError, SweepError):
        raise
    except EvaluationError as error:
        if measure:
            raise
        return SearchPlan(job, None, tried, size, (f"documents not counted: {error}",))
    warnings = [f"{task}: left out, no score per document is known: {why}" for task, why in checked.unscored.items()]
    estimate = None
    if measure:
        from plam_eval.evaluation import costs

        scored = {task: count for task, count in checked.documents.items() if task not in checked.unscored}
        try:
            estimate = costs.of_search(job, scored, checked.drawn, tried, measure)
        finally:
            free_memory()
    return SearchPlan(job, checked.documents, tried, size, (*warnings, *checked.notes), estimate)


@takes(folder=PATH)
def read_search(folder: str | Path) -> SearchFindings:
    """What a search's folder holds now, finished or not.

    Args:
        folder: of the search.

    Raises:
        SearchError: no search there. DamagedFileError: it cannot be read.
    """
    from plam_eval.evaluation.search import findings

    return findings.read_search(Path(folder))


def _plan_job(*, config: Any, output: str | Path, **given: Any) -> SearchJob:
    """A search's job from arguments of `search`."""
    from plam_eval.evaluation.search.config import SearchConfig
    from plam_eval.evaluation.search.job import SearchJob

    file, fields = read_config(config, given)
    return SearchJob.plan(SearchConfig.load(file, **fields), output)
