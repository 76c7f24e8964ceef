"""The files of an lmms-eval run, ours or not: named, written, and the results read (sample logs: `sample_lines`).

What is read is checked: it may be damaged, or of another program.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from plam_eval.beside import is_partial
from plam_eval.document_sets import read_by_task
from plam_eval.errors import DamagedFileError, quoted
from plam_eval.files import check_writable, moved_when_whole, read_json
from plam_eval.harness.errors import EvaluationError, RecordError
from plam_eval.layer_sets import layers_of
from plam_eval.weight_ramps import read_weights

RECORD_KEY = "plam_eval"
"""Where our block stands in a results JSON."""

_RESULTS, _RUN = "_results.json", "run"
_DATED = re.compile(r"\d{8}_\d{6}_")
_STOCK = re.compile(r"\d{8}_\d{6}_stock")


# --- names and dates --------------------------------------------------------------------------------------------------


def result_files(folder: Path) -> list[Path]:
    """Results JSONs below a folder, oldest first, without the files of like names that tasks write.

    Args:
        folder: that lmms-eval wrote into, or one above it.
    """
    files = [file for file in folder.rglob(f"*{_RESULTS}") if not _is_of_a_task(file) and not _is_of_a_kill(file)]
    dated = [file for file in files if _DATED.match(file.name)]  # a task's beside them has a name of its own
    return sorted(dated or files, key=lambda file: file.name)


def _is_of_a_kill(file: Path) -> bool:
    """Whether a file lies where `write_run` has files before they are whole."""
    return any(is_partial(part, _RUN) for part in file.parts)


def _is_of_a_task(file: Path) -> bool:
    return file.parent.name == "submissions" or any(map(_STOCK.fullmatch, file.parts))


def stock_folder(run: Path, date: str) -> Path:
    """Where the files lie that tasks wrote themselves during a run, such as those for a server.

    They are in a folder, since one of them may be named as results are.

    Args:
        run: the folder with the run's results.
        date: when it began, as in the names of its other files.
    """
    return run / f"{date}_stock"


def is_results_file(file: Path) -> bool:
    """Whether a file is there and named as lmms-eval names results.

    Args:
        file: any path.
    """
    return file.name.endswith(_RESULTS) and not _is_of_a_task(file) and file.is_file()


def is_hidden(file: Path, folder: Path) -> bool:
    """Whether a file lies in a hidden folder below another: cells that are being written, somebody else's rubbish.

    lmms-eval calls the folder of a model "../name" "..__name", which is not hidden.

    Args:
        file: the file.
        folder: the other folder.
    """
    return any(re.match(r"\.(?!\.?__)", name) for name in file.relative_to(folder).parts)


def date_of(results_file: Path) -> str:
    """When a run began, as the names of its files have it, such as "20260301_120000".

    Args:
        results_file: its results JSON.
    """
    return results_file.name.removesuffix(_RESULTS)


def sample_logs(results_file: Path) -> Iterator[Path]:
    """The sample logs that lie beside a results JSON and are of the same run.

    Args:
        results_file: the results JSON.
    """
    return results_file.parent.glob(f"{date_of(results_file)}_samples_*.jsonl")


def samples_file(results_file: Path, task: str) -> Path:
    """Where the sample log of a task lies that belongs to a results JSON.

    Args:
        results_file: the results JSON.
        task: name of one of its tasks.
    """
    return results_file.with_name(f"{date_of(results_file)}_samples_{task}.jsonl")


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


# --- writing ----------------------------------------------------------------------------------------------------------


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

    It writes into a hidden folder. From there files are moved into place when all are whole, the results last: a run
    whose results are there has its sample logs.

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
        EvaluationError: a file that could not be written whole. FolderError: the disk is full.
        OSError: a file cannot be moved into place.
    """
    from lmms_eval.loggers import EvaluationTracker

    with moved_when_whole(output, _RUN) as hidden:
        tracker = EvaluationTracker(output_path=str(hidden))
        tracker.general_config_tracker.log_experiment_args(model_id, source, None, None, False)
        # The tracker strips documents and prompts from the samples it is given.
        date = later_than_others(date, output)
        tracker.save_results_aggregated(results=results, samples=samples, datetime_str=date)
        for task, lines in samples.items():
            tracker.save_results_samples(task_name=task, samples=[dict(line) for line in lines])
        name = tracker.general_config_tracker.model_name_sanitized
        written, folder = hidden / name, output / name
        file = written / f"{getattr(tracker, 'date_id', date)}{_RESULTS}"
        lengths = {file: None, **{samples_file(file, task): len(lines) for task, lines in samples.items()}}
        if halves := [str(folder / path.name) for path, lines in lengths.items() if not _is_whole(path, lines)]:
            check_writable(output)  # says so where the disk is still full
            raise EvaluationError(
                f"lmms-eval could not write {', '.join(halves)}, or not whole; look for its warning above. If the disk "
                "was full, free some space, and the same command goes on"
            )
        folder.mkdir(exist_ok=True)
        for path in sorted(written.iterdir(), key=lambda path: path == file):
            path.replace(folder / path.name)
    return folder / file.name


def _is_whole(file: Path, lines: int | None) -> bool:
    """Whether lmms-eval has written a log of so many lines, or results (None), to the end; it goes on where not."""
    try:
        content = file.read_bytes()
        return bool(json.loads(content)) if lines is None else content.count(b"\n") == lines
    except (OSError, ValueError):
        return False


# --- reading ----------------------------------------------------------------------------------------------------------

_TEXT, _NUMBER, _LIST, _OBJECT = (str,), (int, float), (list,), (dict,)  # or null
_KINDS: dict[str, tuple[type, ...]] = {
    "configs/*": _OBJECT,
    "configs/*/metric_list": _LIST,
    "results/*": _OBJECT,
    "higher_is_better/*": _OBJECT,
    "n-samples/*": _OBJECT,
    "versions": _OBJECT,
    "config/resolved_cli_args": _OBJECT,
    "config/limit": _NUMBER,
    "config/offset": _NUMBER,
    "config/documents/*": _TEXT,
    "config/sample": _OBJECT,
    f"{RECORD_KEY}/provenance/versions": _OBJECT,
    f"{RECORD_KEY}/provenance/digest": _TEXT,
    f"{RECORD_KEY}/provenance/checkpoint": _OBJECT,
    f"{RECORD_KEY}/provenance/base": _OBJECT,
    f"{RECORD_KEY}/provenance/spec/modules/[]": _TEXT,
    f"{RECORD_KEY}/provenance/spec/layer_range/[]": _NUMBER,
    f"{RECORD_KEY}/provenance/spec/layers/[]": _NUMBER,
    f"{RECORD_KEY}/provenance/spec/weights/*": (*_NUMBER, *_LIST),
    f"{RECORD_KEY}/provenance/spec/parameters/*": _NUMBER,
    f"{RECORD_KEY}/provenance/ancestor": _OBJECT,
    f"{RECORD_KEY}/provenance/merge/relative_change/*": _NUMBER,
    f"{RECORD_KEY}/provenance/merge/warnings/[]": _TEXT,
    f"{RECORD_KEY}/generation/calls": _NUMBER,
    f"{RECORD_KEY}/generation/failed": _NUMBER,
    f"{RECORD_KEY}/generation/settings/[]": _OBJECT,
    f"{RECORD_KEY}/altered_answers": _LIST,
}
"""What a results file holds where it is read, by path: "*" is every value of an object, "[]" every entry of a list."""


def read_results(file: Path) -> dict[str, Any]:
    """A results file whose values are of the kinds that its readers take for granted, or null.

    Args:
        file: a results JSON.

    Raises:
        RecordError: it is none, or was damaged.
    """
    try:
        results = read_json(file, "copy it again, or run again")
    except DamagedFileError as error:
        raise RecordError(f"{file} is not a results file of lmms-eval: {error}") from error
    return check_results(results, file)


def check_results(results: dict[str, Any], file: object) -> dict[str, Any]:
    """Results whose values are of the kinds that their readers take for granted, or null.

    Args:
        results: as they were read.
        file: what messages call the file.

    Raises:
        RecordError: they are none of lmms-eval, or were damaged.
    """
    if not isinstance(results.get("configs"), dict):
        raise RecordError(f"{file} is not a results file of lmms-eval: found no object 'configs'")
    results["results"] = {} if results.get("results") is None else results["results"]
    for path, kinds in _KINDS.items():
        for where, value in _values(file, results, path):
            if value is not None:
                _check_kind(file, where, value, kinds)
    try:
        documents_of(results)
    except ValueError as error:
        raise RecordError(f"{file}: config/documents: {error}; it was damaged: copy it again, or run again") from None
    for limit in ("limit", "offset"):
        if not math.isfinite((results.get("config") or {}).get(limit) or 0):
            raise RecordError(f"{file}: config/{limit}: found no finite number; copy it again, or run again")
    spec = ((results.get(RECORD_KEY) or {}).get("provenance") or {}).get("spec")
    if spec and not (_names_layers(spec) and spec.get("modules")):
        raise RecordError(f"{file}: found a spec without layers or modules; copy it again, or run again")
    if spec and spec.get("weights"):
        try:
            read_weights(spec["weights"])
        except ValueError as error:
            raise RecordError(f"{file}: {error}; it was damaged: copy it again, or run again") from error
    return results


def _names_layers(spec: Mapping[str, Any]) -> bool:
    try:
        return bool(layers_of(spec))
    except ValueError:
        return False


def _values(file: object, content: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Where a path of `_KINDS` leads in a results file, and what is there. Raises RecordError for another shape."""
    reached = [("", content)]
    for step in path.split("/"):
        deeper: list[tuple[str, Any]] = []
        for where, value in reached:
            if value is None:
                continue
            _check_kind(file, where, value, list if step == "[]" else dict)
            if step in ("*", "[]"):
                pairs: Iterable[tuple[Any, Any]] = enumerate(value) if step == "[]" else value.items()
            else:
                pairs = [(step, value.get(step))]
            deeper += [(f"{where}/{key}".lstrip("/"), inner) for key, inner in pairs]
        reached = deeper
    yield from reached


def _check_kind(file: object, where: str, value: Any, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind):
        expected = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise RecordError(
            f"{file}: {where}: found {quoted(value)}, expected {expected}; it was damaged: copy it again, or run again"
        )


def documents_of(results: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Task -> the documents that results say they are of; None where they are lmms-eval's first ones, or all.

    Args:
        results: the results JSON.

    Raises:
        ValueError: they are not written as we write them.
    """
    stored = (results.get("config") or {}).get("documents")
    return None if stored is None else read_by_task(stored)
