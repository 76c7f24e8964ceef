"""The functions of lmms-eval 0.7 that are wrapped for our models, each once and only where no hook exists.

- `TaskManager.__init__`: our task folder is searched without `--include_path`, and a wrapper of ours gets the prompts
  and generation settings of the model id it wraps (`registry.extend_task_manager`).
- `ResponseCache.execute`: answers are keyed by what the weights are, not by the text of `--model_args`.
- `evaluator.evaluate`: what the wrapper recorded (merge report, provenance, failed generations) joins the results, the
  sample logs say which documents share an image and which weights answered, and a run with too many failed generations
  ends in an error.
- `TaskOutput.calculate_aggregate_metric`: what tasks write while they sum up goes to the run's own files
  (`submission_files`), and what they fail to write does not end it.
- `EvaluationTracker.save_results_aggregated`: plain and merged runs of one checkpoint get folders of their own, with
  these files in them.

Models that are not ours pass through all five untouched. For any model two more make loading faster (`loading`), four
let tasks of text alone run that cannot run without them (`text_tasks`), and one looks at the files of released test
sets before a model is loaded (`registry.extend_task_manager`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plam_eval import test_sets
from plam_eval.harness import submission_files
from plam_eval.harness.answers import note_clusters, note_digests, task_configs
from plam_eval.harness.errors import EvaluationError, GenerationError
from plam_eval.harness.processes import all_ranks
from plam_eval.harness.registry import extend_task_manager
from plam_eval.harness.run_files import RECORD_KEY, later_than_others, stock_folder
from plam_eval.harness.text_tasks import patch_text_tasks
from plam_eval.patching import wrap_once
from plam_eval.spec import digest_of


def install_patches() -> None:
    """All patches. Called when one of our wrappers is imported; calling it again does nothing."""
    extend_task_manager()
    patch_text_tasks()
    from lmms_eval import evaluator
    from lmms_eval.caching.response_cache import ResponseCache
    from lmms_eval.evaluator_utils import TaskOutput
    from lmms_eval.loggers.evaluation_tracker import EvaluationTracker

    wrap_once(ResponseCache, "execute", _execute)
    wrap_once(evaluator, "evaluate", _evaluate)
    wrap_once(TaskOutput, "calculate_aggregate_metric", submission_files.aggregate)
    wrap_once(EvaluationTracker, "save_results_aggregated", _save_results_aggregated)


def _execute(stock: Any, self: Any, lm: Any, reqtype: str, requests: list[Any]) -> list[Any]:
    from lmms_eval.caching.response_cache import _short_hash

    fingerprint = getattr(lm, "cache_fingerprint", None)
    if fingerprint is not None:
        # One cache object serves one evaluation, but a resident model may have been merged again since the last.
        self.model_fingerprint = fingerprint()
        self._model_fingerprint_hash = _short_hash(self.model_fingerprint)
    answers: list[Any] = stock(self, lm, reqtype, requests)
    return answers


def _evaluate(stock: Any, lm: Any, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
    from lmms_eval.utils import get_datetime_str, sanitize_model_name

    results: dict[str, Any] | None
    if not hasattr(lm, "begin_run"):
        results = stock(lm, *args, **kwargs)
        return results
    with submission_files.collected() as written:
        lm.begin_run()
        results = stock(lm, *args, **kwargs)
        tasks = args[0] if args else kwargs["task_dict"]
        lm.end_run(tasks)
        # Every rank has to come to the same verdict: one that raised alone would leave the others waiting.
        records = all_ranks(lm.generation.to_dict())
        check_failures(records, lm.max_error_share)
        check_same_files(all_ranks(_files_of(tasks)))
        if results is not None:
            results[RECORD_KEY] = lm.run_record(records)
            note_clusters(tasks, results.get("samples") or {})
            note_digests(results.get("samples") or {}, records, digest_of(lm.spec))
            if getattr(kwargs.get("cli_args"), "output_path", None):
                submission_files.keep(written, results)
            else:
                name = f"{sanitize_model_name(lm.pretrained_name)}__{results[RECORD_KEY]['folder']}"
                submission_files.move_to_submissions(written, name, get_datetime_str())
    return results


def _save_results_aggregated(stock: Any, self: Any, results: dict[str, Any], samples: Any, datetime_str: str) -> None:
    tracker, written = self.general_config_tracker, submission_files.taken(results)
    if RECORD_KEY in results:
        tracker.model_name_sanitized = f"{tracker.model_name_sanitized}__{results[RECORD_KEY]['folder']}"
        if self.output_path:
            datetime_str = later_than_others(datetime_str, Path(self.output_path, tracker.model_name_sanitized))
    stock(self, results, samples, datetime_str)
    if self.output_path:
        written.move_to(stock_folder(Path(self.output_path, tracker.model_name_sanitized), datetime_str))


def _files_of(tasks: Any) -> dict[str, Any]:
    """Released test set -> the file that this process scores it with."""
    metadata = {task: config.get("metadata") or {} for task, config in task_configs(tasks).items()}
    return {
        task: metadata[task][test_sets.RECORD]
        for task in test_sets.TEST_SETS
        if test_sets.RECORD in metadata.get(task, {})
    }


def check_same_files(files: Sequence[dict[str, Any]]) -> None:
    """Whether all processes scored with the same files: each node may have another one under the same name.

    Args:
        files: of all ranks, released test set -> its file.

    Raises:
        EvaluationError: one has another file.
    """
    if other := sorted({task for own in files for task in own if own[task] != files[0].get(task)}):
        found = "; ".join(f"rank {rank}: {own}" for rank, own in enumerate(files))
        raise EvaluationError(
            f"{', '.join(other)}: processes scored with other files ({found}); name one for all nodes"
        )


def check_failures(records: Sequence[dict[str, Any]], max_error_share: float) -> None:
    """Whether so many generations raised that an evaluation has no results worth keeping.

    Args:
        records: of all ranks: the numbers of `calls` and of those that `failed`, and the first `errors`.
        max_error_share: the share of calls that may fail, from 0 to 1.

    Raises:
        GenerationError: more of all ranks' generations raised.
    """
    calls = sum(record["calls"] for record in records)
    failed = sum(record["failed"] for record in records)
    if failed > max_error_share * calls:
        errors = "; ".join(dict.fromkeys(error for record in records for error in record["errors"]))
        raise GenerationError(
            f"{failed} of {calls} generations raised, and max_error_share={max_error_share:g} allows "
            f"{math.floor(max_error_share * calls)}; no results were written. First errors: {errors}"
        )
