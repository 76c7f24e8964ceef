"""The one module that knows lmms-eval's internals: the patches our wrappers need, and evaluation in process.

Four functions of lmms-eval 0.7 are wrapped, each once and only where no hook exists:

- `TaskManager.__init__`: our task folder is searched without `--include_path`, and a wrapper of ours gets the prompts
  and generation settings of the model id it wraps.
- `ResponseCache.execute`: answers are keyed by what the weights are, not by the text of `--model_args`.
- `evaluator.evaluate`: what the wrapper recorded (merge report, provenance, failed generations) joins the results, the
  sample logs say which documents share an image, and a run with too many failed generations ends in an error.
- `EvaluationTracker.save_results_aggregated`: plain and merged runs of one checkpoint get folders of their own.

How tasks are loaded is made faster (`harness.loading`), with the same tasks as outcome.

Models that are not ours pass through all four untouched. Importing this module imports neither torch nor lmms-eval.
"""

from __future__ import annotations

import difflib
import functools
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

from plam_eval.arguments import read_words
from plam_eval.errors import PlamError
from plam_eval.harness import loading
from plam_eval.harness import tasks as known_tasks
from plam_eval.harness.dataset_errors import dataset_error
from plam_eval.harness.registry import WRAPPERS

RECORD_KEY = "plam_eval"
"""Where our block stands in a results JSON."""


class EvaluationError(PlamError, RuntimeError):
    """An evaluation that has no results worth keeping; the message says what failed and what to do."""


class TaskNameError(EvaluationError):
    """A task or group that is not known; the message has the near names."""


class GenerationError(EvaluationError):
    """More generations raised than `max_error_share` allows."""


# --- patches ----------------------------------------------------------------------------------------------------------


def _once(owner: Any, name: str) -> bool:
    """True the first time it is asked for this attribute, so that no function is wrapped twice."""
    return not hasattr(getattr(owner, name), "_plam_eval")


def prompt_id(model: Any) -> Any:
    """The id under which lmms-eval looks up prompts and generation settings for `model` (an id or an instance)."""
    if isinstance(model, str):
        return WRAPPERS[model].wrapped_id if model in WRAPPERS else model
    return getattr(model, "wrapped_id", model)


def task_folder() -> str:
    """Folder of our task YAMLs."""
    return str(resources.files("plam_eval.tasks"))


def extend_task_manager() -> None:
    """Our tasks without `--include_path`, the wrapped model's prompts for our model ids, and tasks loaded faster."""
    from lmms_eval.tasks import TaskManager

    loading.patch_yaml_loading()
    loading.patch_dataset_loading()
    if not _once(TaskManager, "__init__"):
        return
    stock = TaskManager.__init__

    @functools.wraps(stock)
    def init(
        self: Any,
        verbosity: str = "INFO",
        include_path: str | list[str] | None = None,
        include_defaults: bool = True,
        model_name: Any = None,
    ) -> None:
        paths = [include_path] if isinstance(include_path, str) else list(include_path or [])
        if include_defaults:  # last: a user's own folder wins over ours
            paths.append(task_folder())
        stock(self, verbosity, paths or None, include_defaults, prompt_id(model_name))

    init._plam_eval = True  # type: ignore[attr-defined]
    TaskManager.__init__ = init


def install() -> None:
    """All patches. Called when one of our wrappers is imported; calling it again does nothing."""
    extend_task_manager()
    _patch_response_cache()
    _patch_evaluate()
    _patch_run_folder()


def _patch_response_cache() -> None:
    from lmms_eval.caching import response_cache

    cache = response_cache.ResponseCache
    if not _once(cache, "execute"):
        return
    stock = cache.execute

    @functools.wraps(stock)
    def execute(self: Any, lm: Any, reqtype: str, requests: list[Any]) -> list[Any]:
        fingerprint = getattr(lm, "cache_fingerprint", None)
        if fingerprint is not None:
            # One cache object serves one evaluation, but a resident model may have been merged again since the last.
            self.model_fingerprint = fingerprint()
            self._model_fingerprint_hash = response_cache._short_hash(self.model_fingerprint)
        return stock(self, lm, reqtype, requests)

    execute._plam_eval = True  # type: ignore[attr-defined]
    cache.execute = execute


def _patch_evaluate() -> None:
    from lmms_eval import evaluator

    if not _once(evaluator, "evaluate"):
        return
    stock = evaluator.evaluate

    @functools.wraps(stock)
    def evaluate(lm: Any, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        if not hasattr(lm, "begin_run"):
            return stock(lm, *args, **kwargs)
        lm.begin_run()
        results = stock(lm, *args, **kwargs)
        tasks = args[0] if args else kwargs["task_dict"]
        lm.end_run(tasks)
        # Every rank has to come to the same verdict: one that raised alone would leave the others waiting.
        journals = all_ranks(lm.generation.to_dict())
        check_failures(journals, lm.max_error_share)
        if results is not None:
            results[RECORD_KEY] = lm.run_record(journals)
            _note_groups(tasks, results.get("samples") or {})
        return results

    evaluate._plam_eval = True  # type: ignore[attr-defined]
    evaluator.evaluate = evaluate


def _patch_run_folder() -> None:
    from lmms_eval.loggers.evaluation_tracker import EvaluationTracker

    if not _once(EvaluationTracker, "save_results_aggregated"):
        return
    stock = EvaluationTracker.save_results_aggregated

    @functools.wraps(stock)
    def save_results_aggregated(self: Any, results: dict[str, Any], samples: Any, datetime_str: str) -> None:
        if RECORD_KEY in results:
            tracker = self.general_config_tracker
            tracker.model_name_sanitized = f"{tracker.model_name_sanitized}__{results[RECORD_KEY]['folder']}"
            if self.output_path:
                datetime_str = _later_than_others(datetime_str, Path(self.output_path, tracker.model_name_sanitized))
        stock(self, results, samples, datetime_str)

    save_results_aggregated._plam_eval = True  # type: ignore[attr-defined]
    EvaluationTracker.save_results_aggregated = save_results_aggregated


def all_ranks(value: dict[str, Any]) -> list[dict[str, Any]]:
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, value)
    return gathered


def end_together() -> None:
    """Waits for the other processes and leaves their group; a process that just exits may abort while it is in one."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def check_failures(journals: Sequence[dict[str, Any]], max_error_share: float) -> None:
    """Raises `GenerationError` when more than `max_error_share` of all ranks' generations raised."""
    calls = sum(journal["calls"] for journal in journals)
    failed = sum(journal["failed"] for journal in journals)
    if failed > max_error_share * calls:
        errors = "; ".join(dict.fromkeys(error for journal in journals for error in journal["errors"]))
        raise GenerationError(
            f"{failed} of {calls} generations raised, and max_error_share={max_error_share:g} allows "
            f"{math.floor(max_error_share * calls)}; no results were written. First errors: {errors}"
        )


# --- evaluation in process --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One evaluation: lmms-eval's results dictionary, the samples by task, and where they were written (if they were).

    `results["plam_eval"]` is our block: plateau spec, provenance, merge report, failed generations, altered answers.
    """

    results: dict[str, Any]
    samples: dict[str, list[dict[str, Any]]]
    results_file: Path | None


def evaluate(
    model: Any,
    tasks: str | Sequence[str],
    *,
    model_args: str = "",
    limit: int | None = None,
    offset: int = 0,
    output: str | Path | None = None,
    gen_kwargs: str | None = None,
    batch_size: int = 1,
    use_cache: str | Path | None = None,
    include_path: str | Path | None = None,
    force_simple: bool = False,
    seed: int = 0,
) -> Run | None:
    """Runs lmms-eval in this process, as its command line would, and raises where the command line exits 0.

    Args:
        model: a ready wrapper instance (stays alive) or a model id, then made from `model_args` ("key=value,...").
        tasks: task or group names, as a list or separated by commas.
        limit: documents per task, an absolute count (a fraction leaks from one task to the next in lmms-eval).
        output: folder for results and samples in lmms-eval's own layout; None writes nothing.
        gen_kwargs: generation settings ("max_new_tokens=8") over the tasks' own.
        use_cache: folder of lmms-eval's response cache.
        seed: of Python's `random`; MMMU draws from it when an answer cannot be parsed.

    Returns:
        The run; None on every process but the first of a distributed run.

    Raises:
        EvaluationError: unknown task, a task without results, failed generations, results that could not be written.
    """
    from lmms_eval import evaluator
    from lmms_eval.__main__ import parse_eval_args
    from lmms_eval.utils import get_datetime_str

    install()
    names = _names(tasks)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise EvaluationError(f"limit is {limit!r}; expected a whole number of documents per task, at least 1")
    manager = _task_manager(str(include_path) if include_path else None)
    manager.model_name = prompt_id(model)
    _check_names(names, manager.all_tasks)
    _check_pairs(limit, _leaves(manager, names))

    with _argv("lmms-eval"), tempfile.TemporaryDirectory() as scratch, _ends_in_an_error():
        args = parse_eval_args()[1]
        # Some tasks write submission files during aggregation, to the working directory unless told where.
        args.output_path = str(output) if output is not None else scratch
        args.model, args.model_args, args.tasks = _model_id(model), model_args, ",".join(names)
        # Besides, what is noted of the call in the results.
        args.limit, args.offset, args.gen_kwargs, args.batch_size = limit, offset, gen_kwargs, batch_size
        args.include_path, args.force_simple = str(include_path) if include_path else None, force_simple
        date = get_datetime_str()
        results = evaluator.simple_evaluate(
            model=model,
            model_args=model_args,
            tasks=names,
            batch_size=batch_size,
            limit=limit,
            offset=offset,
            use_cache=str(use_cache) if use_cache is not None else None,
            gen_kwargs=gen_kwargs,
            task_manager=manager,
            force_simple=force_simple,
            bootstrap_iters=0,
            random_seed=seed,
            datetime_str=date,
            cli_args=args,
            process_docs_parallel=1,  # threads would draw from the seeded generator in any order
        )
    if results is None:
        return None
    samples = results.pop("samples")
    _check_results(results, samples)
    file = None if output is None else _write(results, samples, Path(output), _model_id(model), model, model_args, date)
    return Run(results=results, samples=samples, results_file=file)


def parse_model_args(model_args: str, origin: str = "model_args") -> dict[str, Any]:
    """`key=value,...` as lmms-eval's command line reads it; `origin`: where it was given, for messages."""
    from lmms_eval.utils import simple_parse_args_string

    # Without the spaces around commas and equals signs, which lmms-eval takes for parts of values and keys.
    words = read_words(model_args, origin)
    found: dict[str, Any] = simple_parse_args_string(",".join(f"{key}={value}" for key, value in words.items()))
    return found


def check_model(model_id: str, arguments: Mapping[str, Any], *, force_simple: bool = False) -> Any:
    """What can be known to be wrong with the arguments of one of our wrappers before anything is loaded.

    Returns:
        The checkpoint and the spec that they name; None for `plam_vllm`, which checks them itself when it is made.

    Raises:
        ArgumentError, InputError: names and values of arguments. CheckpointError, SpecError, MergeError: what the
            headers of the checkpoints show.
    """
    from lmms_eval.models import get_model

    install()
    check = getattr(get_model(model_id, force_simple=force_simple), "check", None)
    return None if check is None else check(**arguments)  # vLLM's is made before its engine starts


def make_model(model_id: str, arguments: Mapping[str, Any], *, batch_size: int = 1, force_simple: bool = False) -> Any:
    """A wrapper as lmms-eval's command line would make it: chat mode where there is one, unless `force_simple`."""
    from lmms_eval.models import get_model

    install()
    return get_model(model_id, force_simple=force_simple)(**{"batch_size": batch_size, **arguments})


@dataclass(frozen=True)
class CheckedTasks:
    """What can be known of tasks before a model answers them.

    Attributes:
        documents: task -> documents that an evaluation would ask about.
        clusters: scored task -> how many of them are independent: documents that share an image count once.
        unscored: task -> why its documents will have no score that could be compared.
        scored: the names that were given, groups that have unscored tasks in them being replaced by their other tasks.
    """

    documents: dict[str, int]
    clusters: dict[str, int]
    unscored: dict[str, str]
    scored: tuple[str, ...]


def check_tasks(
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
    offset: int = 0,
    include_path: str | Path | None = None,
    gen_kwargs: str | None = None,
    model: Any = None,
    by_document: bool = False,
) -> CheckedTasks:
    """What an evaluation of these tasks would ask and score; datasets are loaded for it, no model is.

    A task that `harness.tasks` does not know has answers to a few of these documents scored, right ones and wrong ones,
    as its evaluation would: some log a metric for a part of their documents only.

    Args:
        by_document: answers will be scored one by one (`score_answers`), without the aggregation of all of them.

    Raises:
        EvaluationError: unknown task, a task or dataset that cannot be loaded, no documents, a limit that MME cannot
            have, or no task at all whose documents have a score. InputError: `gen_kwargs` are no `key=value`.
    """
    read_words(gen_kwargs or "", "gen_kwargs")
    include = str(include_path) if include_path else None
    if include is not None and not Path(include).is_dir():
        raise EvaluationError(f"include_path {include}: no such folder; expected the folder of your task files")
    return _checked(tuple(_names(tasks)), limit, offset, include, prompt_id(model), str(Path.cwd()), by_document)


@functools.lru_cache(maxsize=8)  # a command checks before it loads a model, and the evaluation that it calls does, too
def _checked(
    tasks: tuple[str, ...],
    limit: int | None,
    offset: int,
    include_path: str | None,
    model: Any,
    folder: str,
    by_document: bool,
) -> CheckedTasks:
    from lmms_eval.evaluator_utils import get_task_list
    from lmms_eval.tasks import get_task_dict

    extend_task_manager()
    manager = _task_manager(include_path)
    manager.model_name = model
    _check_names(tasks, manager.all_tasks)
    below = _leaves(manager, tasks)
    _check_pairs(limit, below)
    never = {leaf: known_tasks.TASKS[leaf].unscored for leaf in sorted(below) if leaf in known_tasks.TASKS}
    if len(never) == len(below) and all(never.values()):  # without fetching a dataset to find it out
        raise EvaluationError(_nothing_scored(never))
    documents, clusters, unscored = dict[str, int](), dict[str, int](), dict[str, str]()
    with _one_attempt():
        try:
            for output in get_task_list(get_task_dict(list(tasks), manager, "simple")):
                name, rows = output.task_name, output.task.eval_docs_no_media
                total = max(0, len(rows) - offset)
                documents[name] = min(total, limit) if limit is not None else total
                asked = range(offset, offset + documents[name])
                if (why := _no_score(output, asked, by_document)) is not None:
                    unscored[name] = why
                else:
                    clusters[name] = _count_clusters(name, rows, asked)
        except Exception as error:  # a task's own code: some want a package that is not there, or a key for their judge
            raise EvaluationError(_not_loaded(manager, tasks, error)) from error
    if empty := [task for task, count in documents.items() if not count]:
        raise EvaluationError(f"offset is {offset}, which leaves no document of {', '.join(empty)}; give a smaller one")
    if unscored and len(unscored) == len(documents):
        raise EvaluationError(_nothing_scored(unscored))
    scored = []
    for name in tasks:
        members = sorted(_leaves(manager, [name]))
        without = [leaf for leaf in members if leaf in documents and leaf not in unscored]
        scored += without if set(members) & set(unscored) else [name]
    return CheckedTasks(documents, clusters, unscored, tuple(scored))


def _nothing_scored(unscored: Mapping[str, str]) -> str:
    reasons = "\n".join(f"  - {task}: {why}" for task, why in unscored.items())
    return f"no score per document is known for any of these tasks:\n{reasons}"


def _not_loaded(manager: Any, tasks: Sequence[str], error: Exception) -> str:
    """Which of the tasks cannot be loaded, and why; `error` is what loading all of them raised."""
    from lmms_eval.tasks import get_task_dict

    lines = []
    for leaf in sorted(_leaves(manager, tasks)):
        manager.task_group_map.clear()
        try:
            get_task_dict([leaf], manager, "simple")
        except Exception as own:  # as above
            lines.append(dataset_error(leaf, _dataset_of(manager, leaf), own))
    lines = lines or [dataset_error(", ".join(tasks), None, error)]
    text = f" {lines[0]}" if len(lines) == 1 else "".join(f"\n  - {line}" for line in lines)
    return f"a task or its dataset could not be loaded:{text}"


def _dataset_of(manager: Any, task: str) -> str | None:
    """Hub id or folder of a task's dataset, if its YAML can be read at all."""
    try:
        path = manager._get_config(task).get("dataset_path")
    except Exception:  # it imports the task's code
        return None
    return None if path is None else str(path)


def _count_clusters(task: str, rows: Any, numbers: range) -> int:
    if not known_tasks.has_clusters(task):
        return len(numbers)
    return len({known_tasks.cluster_of_document(task, rows[number]) or number for number in numbers})


_TRIED = 8  # documents of a task that is not known
_PATIENCE = 2.0  # seconds: a judge is asked over the network


def _no_score(output: Any, asked: range, by_document: bool) -> str | None:
    """Why the documents of a task will have no score; None where they will have one, as far as trying tells."""
    name, task = output.task_name, output.task
    config = dict(output.task_config)
    try:
        score = known_tasks.score_of_task(name, config)
    except known_tasks.NoScoreError as error:
        return str(error)
    if by_document:
        if score.late:
            return f"{score.metric} is only judged when all answers are there"
        if known_tasks.falls(score.metric, config):
            return f"lower is better in {score.metric}, and a curve is of scores from 0 to 1 in which higher is better"
    if name in known_tasks.TASKS or not asked:
        return None
    kind = getattr(task, "OUTPUT_TYPE", None)
    if kind in ("loglikelihood", "multiple_choice"):  # scored by likelihoods, not by an answer that could be tried
        return f"it is answered by likelihoods ({kind}), and a scan generates answers" if by_document else None
    return _tried(task, score, asked)


def _tried(task: Any, score: known_tasks.Score, asked: range) -> str | None:
    """What is wrong with the scores of a few documents, each answered as it should be and as another one should be."""
    numbers = sorted({asked[round(step * (len(asked) - 1) / (_TRIED - 1))] for step in range(_TRIED)})
    started, docs = time.monotonic(), task.eval_docs
    for index, number in enumerate(numbers):
        try:
            document = docs[number]
            for other in {number, numbers[index - 1]}:
                score.of(task.process_results(document, [str(task.doc_to_target(docs[other]))]))
        except known_tasks.NoScoreError as error:
            return str(error)
        except Exception as error:  # a task's own code runs here, and may raise anything
            cause = _cause(error)
            return f"scoring an answer to document {number} raised {type(cause).__name__}: {cause}"
        if time.monotonic() - started > _PATIENCE:
            break
    return None


def _cause(error: BaseException) -> BaseException:
    """What raised, where lmms-eval tried again and again."""
    import tenacity

    if isinstance(error, tenacity.RetryError):
        return error.last_attempt.exception() or error
    return error


@contextmanager
def _ends_in_an_error() -> Iterator[None]:
    """Where tasks end the process, with whatever status, or lmms-eval gives up, an evaluation has failed."""
    import tenacity

    try:
        yield
    except tenacity.RetryError as error:
        cause = error.last_attempt.exception()
        raise EvaluationError(f"lmms-eval tried several times and gave up: {type(cause).__name__}: {cause}") from error
    except SystemExit as error:
        raise EvaluationError(f"the code of a task ended the process, saying {error.code!r}") from error


@contextmanager
def _one_attempt() -> Iterator[None]:
    """lmms-eval tries to load a dataset again for half a minute; what is not there does not come by waiting."""
    import tenacity
    from lmms_eval.api.task import ConfigurableTask

    retry: Any = ConfigurableTask.download.retry
    before, retry.stop = retry.stop, tenacity.stop_after_attempt(1)
    try:
        yield
    finally:
        retry.stop = before


def _model_id(model: Any) -> str:
    return model if isinstance(model, str) else getattr(model, "model_id", type(model).__name__)


@contextmanager
def _argv(*argv: str) -> Iterator[None]:
    """lmms-eval's argument parser reads `sys.argv` itself; this gives it the defaults."""
    before = sys.argv
    sys.argv = list(argv)
    try:
        yield
    finally:
        sys.argv = before


@functools.lru_cache(maxsize=4)
def _task_index(include_path: str | None) -> Any:
    from lmms_eval.tasks import TaskManager

    return TaskManager("WARNING", include_path=include_path)


def _task_manager(include_path: str | None) -> Any:
    """A task manager; indexing two thousand YAML files takes seconds and depends on no model, so it is done once."""
    manager = _task_index(include_path)
    manager.task_group_map.clear()  # it counts group members, and would rename those it has met before
    return manager


def _leaves(manager: Any, names: Iterable[str]) -> set[str]:
    """Names of the tasks below these tasks, groups and tags."""
    found: set[str] = set()
    for name in names:
        entry = manager.task_index.get(name, {"type": "task"})
        if entry["type"] == "group":
            members = manager._get_config(name)["task"]
            found |= _leaves(manager, [m["task"] if isinstance(m, dict) else m for m in members])
        elif entry["type"] == "tag":
            found |= _leaves(manager, entry["task"])
        else:
            found.add(name)
    return found


def _names(tasks: str | Sequence[str]) -> list[str]:
    words = tasks.split(",") if isinstance(tasks, str) else tasks
    return [word.strip() for word in words if word.strip()]


def _check_pairs(limit: int | None, tasks: Iterable[str]) -> None:
    if limit is not None and limit % 2 and "mme" in tasks:
        raise EvaluationError(f"limit is {limit}, but MME scores documents in pairs; give an even number")


def _check_names(names: Sequence[str], known: list[str]) -> None:
    unknown = [name for name in names if name not in known]
    if not names:
        raise TaskNameError("tasks: found no name, expected names of tasks or groups, separated by commas")
    if unknown:
        hints = []
        for name in unknown:
            near = difflib.get_close_matches(name, known, n=3)
            hints.append(f"{name!r}" + (f" (did you mean {', '.join(near)}?)" if near else ""))
        apart = any(mark in name for name in unknown for mark in " ;\t")
        raise TaskNameError(
            f"no task or group of this name: {'; '.join(hints)}{'; names are separated by commas' if apart else ''}"
        )


def _check_results(results: dict[str, Any], samples: dict[str, list[dict[str, Any]]]) -> None:
    empty = [
        task
        for task in results["configs"]
        if not samples.get(task) or not any("," in key for key in results["results"].get(task, {}))
    ]
    if empty or not results["configs"]:
        raise EvaluationError(f"no results for {', '.join(empty) or 'any task'}: no document was evaluated or scored")


def _later_than_others(date: str, output: Path) -> str:
    """A run's date for its file names, moved behind every run in its folder.

    Names have a resolution of one second and samples are appended to; and the newest run is known by its name, which a
    clock that was set back would make the older one.
    """
    form = "%Y%m%d_%H%M%S"
    dates = [datetime.strptime(date, form)]
    for path in output.rglob("*_*_*"):
        with suppress(ValueError, OverflowError):  # a file of somebody else's, or of the last second there is
            dates.append(datetime.strptime(path.name[: len(date)], form) + timedelta(seconds=1))
    return max(dates).strftime(form)


def _write(
    results: dict[str, Any],
    samples: dict[str, list[dict[str, Any]]],
    output: Path,
    model_id: str,
    model: Any,
    model_args: str,
    date: str,
) -> Path:
    """Results and samples through lmms-eval's own tracker, which logs what it cannot write and goes on."""
    from lmms_eval.loggers import EvaluationTracker

    date = _later_than_others(date, output)
    tracker = EvaluationTracker(output_path=str(output))
    source = model_args or f"pretrained={getattr(model, 'pretrained_name', model_id)}"
    tracker.general_config_tracker.log_experiment_args(model_id, source, None, None, False)
    # The tracker strips documents and prompts from the samples it is given.
    tracker.save_results_aggregated(results=results, samples=samples, datetime_str=date)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=[dict(row) for row in rows])
    folder, date = output / tracker.general_config_tracker.model_name_sanitized, tracker.date_id
    file = folder / f"{date}_results.json"
    missing = [str(p) for p in (file, *(folder / f"{date}_samples_{task}.jsonl" for task in samples)) if not p.exists()]
    if missing:
        raise EvaluationError(f"lmms-eval could not write {', '.join(missing)}; look for its warning above")
    return file


# --- what a sample log holds ------------------------------------------------------------------------------------------


def _note_groups(tasks: dict[str, Any], samples: dict[str, list[dict[str, Any]]]) -> None:
    """Adds `group` to the sample logs of tasks whose documents share images: the logs themselves do not say it."""
    from lmms_eval.evaluator_utils import get_task_list

    for output in get_task_list(tasks):
        if not known_tasks.has_clusters(output.task_name):
            continue
        docs = output.task.eval_docs_no_media  # rebuilt at every access
        for sample in samples.get(output.task_name, ()):
            cluster = known_tasks.cluster_of_document(output.task_name, docs[sample["doc_id"]])
            if cluster is not None:
                sample["group"] = cluster


def tasks_of(tasks: dict[str, Any]) -> set[str]:
    """Names of the tasks in a task dictionary, which may nest them in groups."""
    from lmms_eval.evaluator_utils import get_task_list

    return {output.task_name for output in get_task_list(tasks)}


def task_configs(tasks: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Task -> its configuration as a results file has it, of a task dictionary."""
    from lmms_eval.evaluator_utils import get_task_list

    return {output.task_name: dict(output.task_config) for output in get_task_list(tasks)}


def score_answers(tasks: dict[str, Any], answers: dict[tuple[str, int], list[str]]) -> Iterator[dict[str, Any]]:
    """Score any number of answers to each document by the tasks' own filters and metrics.

    Args:
        tasks: the task dictionary of an evaluation that has ended (`end_run` is given it).
        answers: (task, doc_id) -> answers. Documents of this process's share that are missing are left out.

    Yields:
        For each answer, lmms-eval's log of the document as if it had been given, with `task`, `turn` (the answer's
        number) and, where the task's documents share images, `group` beside it. Several filters: the task's first.
    """
    from lmms_eval import evaluator
    from lmms_eval.api.reasoning import parse_reasoning_tags_config
    from lmms_eval.evaluator_utils import get_task_list

    for output in get_task_list(tasks):
        task, name = output.task, output.task_name
        instances = {request.doc_id: request for request in task.instances}
        known = {doc_id: answers[name, doc_id] for doc_id in instances if (name, doc_id) in answers}
        docs = task.eval_docs_no_media
        asked = getattr(getattr(task, "args", None), "reasoning_tags", None)
        tags = parse_reasoning_tags_config(cli_value=asked, task_value=getattr(task.config, "reasoning_tags", None))
        for turn in range(max(map(len, known.values()), default=0)):
            now = {doc_id: given[turn] for doc_id, given in known.items() if turn < len(given)}
            for doc_id, request in instances.items():
                request.resps = [now.get(doc_id, "")]
                request.filtered_resps, request.raw_filtered_resps = {}, {}
            task.apply_filters()
            for doc_id in sorted(now):
                request = instances[doc_id]
                doc = docs[doc_id]
                log = evaluator._process_document_results(
                    (doc_id, doc, [request]),
                    task=task,
                    filter_key=next(iter(request.filtered_resps)),
                    reasoning_tags=tags,
                    log_samples=True,
                ).logged_sample
                cluster = known_tasks.cluster_of_document(name, doc)
                yield {**log, "task": name, "turn": turn, **({} if cluster is None else {"group": cluster})}


# --- what documents look like -----------------------------------------------------------------------------------------


def document_images(
    documents: Mapping[str, Mapping[int, str]],
    folder: Path | None = None,
    *,
    model: str | None = None,
    include_path: str | Path | None = None,
) -> tuple[dict[tuple[str, int], list[Any]], dict[str, str]]:
    """Images of documents, which sample logs do not hold, from the tasks' datasets as far as this machine has them.

    Args:
        documents: task -> doc_id -> the prompt that was logged. A document that is asked otherwise now gets no image:
            the dataset that was found is not the one that was evaluated.
        folder: where datasets are looked for that a relative path names; the working directory by default.
        model: id of the model that was evaluated, for its prompts.

    Returns:
        PIL images by (task, doc_id), and by task why some are missing. Nothing is downloaded.
    """
    import datasets
    import huggingface_hub.constants
    from lmms_eval.evaluator_utils import get_task_list
    from lmms_eval.tasks import get_task_dict
    from PIL.Image import Image

    extend_task_manager()
    manager = _task_manager(str(include_path) if include_path else None)
    manager.model_name = prompt_id(model)
    images: dict[tuple[str, int], list[Any]] = {}
    missing: dict[str, str] = {}
    with _one_attempt(), ExitStack() as stack:
        for owner in (datasets.config, huggingface_hub.constants):
            stack.callback(setattr, owner, "HF_HUB_OFFLINE", owner.HF_HUB_OFFLINE)
            setattr(owner, "HF_HUB_OFFLINE", True)  # noqa: B010  (a constant, to mypy)
        if folder is not None:
            stack.callback(os.chdir, Path.cwd())
            os.chdir(folder)
        for name, prompts in documents.items():
            try:
                manager.task_group_map.clear()
                (output,) = get_task_list(get_task_dict([name], manager, "simple"))
                docs = output.task.eval_docs
                for doc_id, prompt in prompts.items():
                    doc = docs[doc_id] if doc_id < len(docs) else None
                    if doc is None or output.task.doc_to_text(doc) != prompt:
                        missing[name] = "the dataset that was found holds other questions"
                        continue
                    found = output.task.doc_to_visual(doc) or []
                    images[name, doc_id] = [image for image in found if isinstance(image, Image)]
            except Exception as error:  # a task's own code runs here, and may raise anything
                cause = _cause(error)
                absent = isinstance(cause, (ConnectionError, FileNotFoundError))
                missing[name] = "its dataset is not on this machine" if absent else f"{type(cause).__name__}: {cause}"
    return images, missing
