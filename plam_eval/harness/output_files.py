"""What an evaluation leaves on disk: lmms-eval's files, their names and dates."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from plam_eval.harness.errors import EvaluationError

RECORD_KEY = "plam_eval"
"""Where our block stands in a results JSON."""

_RESULTS = "_results.json"


def samples_file(results_file: Path, task: str) -> Path:
    """Where the sample log of a task lies that belongs to a results JSON.

    Args:
        results_file: the results JSON.
        task: name of one of its tasks.
    """
    return results_file.with_name(f"{results_file.name.removesuffix(_RESULTS)}_samples_{task}.jsonl")


def later_than_others(date: str, output: Path) -> str:
    """A run's date for its file names, moved behind every run in its folder.

    Names have a resolution of one second and samples are appended to; and the newest run is known by its name, which a
    clock that was set back would make the older one.

    Args:
        date: as lmms-eval writes it, such as "20260301_120000".
        output: the folder; it need not exist.
    """
    form = "%Y%m%d_%H%M%S"
    dates = [datetime.strptime(date, form)]
    for path in output.rglob("*_*_*"):
        with suppress(ValueError, OverflowError):  # a file of somebody else's, or of the last second there is
            dates.append(datetime.strptime(path.name[: len(date)], form) + timedelta(seconds=1))
    return max(dates).strftime(form)


def write_run(
    results: dict[str, Any],
    samples: Mapping[str, list[dict[str, Any]]],
    output: Path,
    *,
    model_id: str,
    source: str,
    date: str,
) -> Path:
    """Writes results and samples through lmms-eval's own tracker, which logs what it cannot write and goes on.

    Args:
        results: lmms-eval's results, without samples.
        samples: task -> lines of its log.
        output: the folder, as `--output_path` names it.
        model_id: the id that the results name.
        source: the `model_args` that they name, from which lmms-eval makes the name of the run's folder.
        date: when the run began, as lmms-eval writes it.

    Returns:
        The results JSON.

    Raises:
        EvaluationError: a file that is not there afterwards.
    """
    from lmms_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(output))
    tracker.general_config_tracker.log_experiment_args(model_id, source, None, None, False)
    # The tracker strips documents and prompts from the samples it is given.
    tracker.save_results_aggregated(results=results, samples=samples, datetime_str=later_than_others(date, output))
    for task, lines in samples.items():
        tracker.save_results_samples(task_name=task, samples=[dict(line) for line in lines])
    folder = output / tracker.general_config_tracker.model_name_sanitized
    file = folder / f"{tracker.date_id}{_RESULTS}"
    missing = [str(path) for path in (file, *(samples_file(file, task) for task in samples)) if not path.exists()]
    if missing:
        raise EvaluationError(f"lmms-eval could not write {', '.join(missing)}; look for its warning above")
    return file
