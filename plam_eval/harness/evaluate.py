"""lmms-eval in this process, as its command line would run it, with errors where that exits 0."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plam_eval.arguments import read_words
from plam_eval.harness import asked
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.lookup import check_limit, check_names, leaves_of, task_manager, task_names
from plam_eval.harness.patches import install_patches
from plam_eval.harness.run_files import date_of, stock_folder, write_run
from plam_eval.harness.submission_files import taken


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that has ended.

    Attributes:
        results: lmms-eval's results dictionary. `results["plam_eval"]` is our block: plateau spec, provenance, merge
            report, failed generations, altered answers.
        samples: task -> lines of its sample log.
        results_file: where they were written, if they were.
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
    documents: Mapping[str, Sequence[int]] | None = None,
    sample: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    gen_kwargs: str | None = None,
    batch_size: int = 1,
    use_cache: str | Path | None = None,
    include_path: str | Path | None = None,
    force_simple: bool = False,
    seed: int = 0,
) -> Evaluation | None:
    """Runs lmms-eval in this process, as its command line would, and raises where the command line exits 0.

    Args:
        model: a ready wrapper instance (stays alive) or a model id, then made from `model_args`.
        tasks: task or group names, as a list or separated by commas.
        model_args: "key=value,..." for a model that is made.
        limit: documents per task, an absolute count (a fraction leaks from one task to the next in lmms-eval).
        offset: of the first document of each task.
        documents: task -> doc_ids to ask about, of every task, instead of limit and offset. The results note them.
        sample: how they were drawn, which the results note, too.
        output: folder for results and samples in lmms-eval's own layout; None writes nothing.
        gen_kwargs: generation settings ("max_new_tokens=8") over the tasks' own.
        batch_size: of the wrapper; documents that it answers at once.
        use_cache: folder of lmms-eval's response cache.
        include_path: folder of further tasks.
        force_simple: a model that is made is made in simple mode.
        seed: of Python's `random`; MMMU draws from it when an answer cannot be parsed.

    Returns:
        The evaluation; None on every process but the first of a distributed run.

    Raises:
        EvaluationError: unknown task, documents that a task has not, a task without results, failed generations,
            results that could not be written.
    """
    from lmms_eval import evaluator
    from lmms_eval.__main__ import parse_eval_args
    from lmms_eval.utils import get_datetime_str

    install_patches()
    names = task_names(tasks)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise EvaluationError(f"limit is {limit!r}; expected a whole number of documents per task, at least 1")
    manager = task_manager(include_path, model)
    check_names(names, manager.all_tasks)
    leaves = leaves_of(manager, names)
    check_limit(limit, leaves)
    if documents is not None:
        if limit is not None or offset:
            raise EvaluationError("documents, and limit or offset beside them; give the documents alone")
        asked.check_documents(documents, leaves)
    model_id = model if isinstance(model, str) else getattr(model, "model_id", type(model).__name__)

    with _argv("lmms-eval"), tempfile.TemporaryDirectory() as scratch, _ends_in_an_error(), asked.only(documents):
        args = parse_eval_args()[1]
        # Files that tasks write are not wanted in the working directory, which is where they go without a path.
        args.output_path = str(output) if output is not None else scratch
        args.model, args.model_args, args.tasks = model_id, model_args, ",".join(names)
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
    if documents is not None:
        asked.note(results, documents, sample)
    try:
        _check_results(results, samples)
    except EvaluationError:
        taken(results).discard()
        raise
    if output is None:
        taken(results).discard()
        return Evaluation(results, samples, None)
    source = model_args or f"pretrained={getattr(model, 'pretrained_name', model_id)}"
    stock_files = taken(results)
    try:
        file = write_run(results, samples, Path(output), model_id=model_id, source=source, date=date)
    except BaseException:
        stock_files.discard()
        raise
    stock_files.move_to(stock_folder(file.parent, date_of(file)))
    return Evaluation(results, samples, file)


def parse_model_args(model_args: str, origin: str = "model_args") -> dict[str, Any]:
    """`key=value,...` as lmms-eval's command line reads it.

    Args:
        model_args: the text.
        origin: where it was given, for messages.

    Raises:
        ArgumentError, InputError: it is no such text.
    """
    from lmms_eval.utils import simple_parse_args_string

    # Without the spaces around commas and equals signs, which lmms-eval takes for parts of values and keys.
    words = read_words(model_args, origin)
    arguments: dict[str, Any] = simple_parse_args_string(",".join(f"{key}={value}" for key, value in words.items()))
    return arguments


def check_model(model_id: str, arguments: Mapping[str, Any], *, force_simple: bool = False) -> Any:
    """What can be known to be wrong with the arguments of one of our wrappers before anything is loaded.

    Args:
        model_id: of the wrapper.
        arguments: those it would be made with.
        force_simple: whether it would be made in simple mode.

    Returns:
        The checkpoint and the spec that they name; None for `plam_vllm`, which checks them itself when it is made.

    Raises:
        ArgumentError, InputError: names and values of arguments. CheckpointError, SpecError, MergeError: what the
            headers of the checkpoints show.
    """
    from lmms_eval.models import get_model

    install_patches()
    check = getattr(get_model(model_id, force_simple=force_simple), "check", None)
    return None if check is None else check(**arguments)  # vLLM's is made before its engine starts


def make_model(model_id: str, arguments: Mapping[str, Any], *, batch_size: int = 1, force_simple: bool = False) -> Any:
    """A wrapper as lmms-eval's command line would make it: chat mode where there is one, unless `force_simple`.

    Args:
        model_id: of the wrapper.
        arguments: `model_args` by name.
        batch_size: where `arguments` have none.
        force_simple: simple mode where there are both.
    """
    from lmms_eval.models import get_model

    install_patches()
    return get_model(model_id, force_simple=force_simple)(**{"batch_size": batch_size, **arguments})


@contextmanager
def _argv(*argv: str) -> Iterator[None]:
    """lmms-eval's argument parser reads `sys.argv` itself; this gives it the defaults."""
    before = sys.argv
    sys.argv = list(argv)
    try:
        yield
    finally:
        sys.argv = before


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


def _check_results(results: dict[str, Any], samples: dict[str, list[dict[str, Any]]]) -> None:
    empty = [
        task
        for task in results["configs"]
        if not samples.get(task) or not any("," in key for key in results["results"].get(task, {}))
    ]
    if empty or not results["configs"]:
        raise EvaluationError(f"no results for {', '.join(empty) or 'any task'}: no document was evaluated or scored")
