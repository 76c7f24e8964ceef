"""The files of an lmms-eval run, ours or not: its results and its sample logs, checked where they are read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plam_eval.errors import DamagedFileError, PlamError, quoted
from plam_eval.files import LARGEST_JSON, read_json
from plam_eval.harness.output_files import RECORD_KEY
from plam_eval.harness.tasks import filters_of


class RecordError(PlamError, ValueError):
    """A folder that holds no readable run; the message names the file and what was expected in it."""


def result_files(folder: Path) -> list[Path]:
    """Results JSONs below a folder, oldest first, without the files of like names that tasks put into `submissions`.

    Args:
        folder: that lmms-eval wrote into, or one above it.
    """
    files = [file for file in folder.rglob("*_results.json") if file.parent.name != "submissions"]
    return sorted(files, key=lambda file: file.name)


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
    f"{RECORD_KEY}/provenance/versions": _OBJECT,
    f"{RECORD_KEY}/provenance/checkpoint": _OBJECT,
    f"{RECORD_KEY}/provenance/base": _OBJECT,
    f"{RECORD_KEY}/provenance/spec/modules/[]": _TEXT,
    f"{RECORD_KEY}/provenance/spec/layer_range/[]": _NUMBER,
    f"{RECORD_KEY}/provenance/spec/weights/*": _NUMBER,
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
    if not isinstance(results.get("configs"), dict):
        raise RecordError(f"{file} is not a results file of lmms-eval: found no object 'configs'")
    results["results"] = {} if results.get("results") is None else results["results"]
    for path, kinds in _KINDS.items():
        for where, value in _values(file, results, path):
            if value is not None:
                _check_kind(file, where, value, kinds)
    for limit in ("limit", "offset"):
        if not math.isfinite((results.get("config") or {}).get(limit) or 0):
            raise RecordError(f"{file}: config/{limit}: found no finite number; copy it again, or run again")
    spec = ((results.get(RECORD_KEY) or {}).get("provenance") or {}).get("spec")
    if spec and (len(spec.get("layer_range") or ()) != 2 or not spec.get("modules")):
        raise RecordError(f"{file}: found a spec without a layer range or modules; copy it again, or run again")
    return results


def _values(file: Path, content: Any, path: str) -> Iterator[tuple[str, Any]]:
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


def _check_kind(file: Path, where: str, value: Any, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind):
        expected = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise RecordError(
            f"{file}: {where}: found {quoted(value)}, expected {expected}; it was damaged: copy it again, or run again"
        )


def read_samples(log: Path, config: Mapping[str, Any], expected: int | None) -> list[dict[str, Any]]:
    """One sample per document: those of the task's first filter, which lmms-eval logs first.

    Args:
        log: the task's, JSON lines.
        config: the task's, as the results have it.
        expected: how many documents there have to be; None where nobody knows.

    Raises:
        RecordError: a line is no sample, a document stands there too often, or their number is another.
    """
    filters = filters_of(config)
    first: dict[Any, dict[str, Any]] = {}
    counts: Counter[Any] = Counter()
    for number, line in enumerate(_lines(log), start=1):
        try:
            sample = json.loads(line)
            _check_sample(sample)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RecordError(f"{log}, line {number} is not a sample of lmms-eval: {error!r}") from error
        document = sample["doc_id"]
        counts[document] += 1
        first.setdefault(document, sample)
        if counts[document] > len(filters):
            raise RecordError(
                f"{log}, line {number}: document {document} once more than the task has filters "
                f"({', '.join(filters)}); two runs that started in one second write into one log: run again"
            )
    if missing := [document for document, count in counts.items() if count < len(filters)]:
        raise RecordError(
            f"{log}: document {missing[0]} stands there {counts[missing[0]]} times, expected once for each of the "
            f"task's filters ({', '.join(filters)}): the log is not whole; run again"
        )
    if expected is not None and len(first) != expected:
        raise RecordError(
            f"{log} holds {len(first)} documents, but the results beside it are of {expected} (n-samples): the log is "
            "not whole; copy it again, or run again"
        )
    return list(first.values())


def _lines(log: Path) -> Iterator[bytes]:
    """The lines of a log. Raises RecordError for a longer one than any document has."""
    with log.open("rb") as file:
        while line := file.readline(LARGEST_JSON + 1):
            if len(line) > LARGEST_JSON:
                raise RecordError(f"{log}: has a line of more than {LARGEST_JSON} bytes, which is no sample; run again")
            yield line.rstrip(b"\r\n")


def _check_sample(sample: Any) -> None:
    """Raises KeyError, TypeError or ValueError when a line of a log is no sample."""
    if not isinstance(sample, dict):
        raise TypeError(f"found {type(sample).__name__}, expected a JSON object")
    if not isinstance(sample["doc_id"], (int, str)) or isinstance(sample["doc_id"], bool):
        raise TypeError(f"doc_id is {sample['doc_id']!r}, expected a number or text")
    if isinstance(sample["doc_id"], int) and not -(2**63) <= sample["doc_id"] < 2**63:
        raise ValueError(f"doc_id is {quoted(sample['doc_id'])}, expected a number of at most 64 bits")
    _ = sample["target"], sample["filtered_resps"]


def expected_documents(results: Mapping[str, Any], task: str) -> int | None:
    """How many documents of a task the results are of; None where they do not say.

    Args:
        results: the results JSON.
        task: its name.
    """
    counts = (results.get("n-samples") or {}).get(task) or {}
    config = results.get("config") or {}
    numbers = [counts.get("original"), counts.get("effective"), config.get("offset") or 0]
    whole = [int(n) for n in numbers if isinstance(n, (int, float)) and math.isfinite(n) and n == int(n)]
    if len(whole) < len(numbers):
        return None  # a fractional --limit: lmms-eval leaves it as it was given
    original, effective, offset = whole
    return max(0, min(effective, original - offset))
