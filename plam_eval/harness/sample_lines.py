"""The lines of a sample log, one per document and filter: read, and held against the results beside them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from plam_eval.errors import quoted
from plam_eval.files import LARGEST_JSON, check_depth, writable
from plam_eval.harness.errors import RecordError, why_no_sample
from plam_eval.harness.run_files import RECORD_KEY, documents_of
from plam_eval.harness.tasks import filters_of
from plam_eval.harness.text_tasks import chosen
from plam_eval.spec import digest_of

Log = TypeVar("Log")
"""What stands for a log: its path, or what messages call it."""

Expected = int | frozenset[int] | None
"""Which documents a log has to hold, or how many; None where nobody knows."""


class Lines(Protocol):
    """What is read line by line: a file, a member of an archive."""

    def readline(self, most: int, /) -> bytes:
        """The next line, with its end.

        Args:
            most: bytes of it.
        """


class Digests:
    """Which weights answered the lines of a log, as far as the lines say so.

    Those of other models, and of ours until 0.1, do not.

    Args:
        log: what messages call it.
    """

    def __init__(self, log: object) -> None:
        self._log = log
        self._found: dict[Any, Any] = {}  # digest, None for none -> the first document that has it

    def add(self, sample: Mapping[str, Any]) -> None:
        """Take in a line of the log.

        Args:
            sample: the line, of whatever filter.
        """
        digest = sample.get("digest")
        # What is no text equals no digest, and may have no hash.
        self._found.setdefault(
            digest if digest is None or isinstance(digest, str) else (quoted(digest),), sample["doc_id"]
        )

    @property
    def are_told(self) -> bool:
        """Whether any line said so."""
        return not set(self._found) <= {None}

    def check(self, results: Mapping[str, Any]) -> None:
        """Whether all lines were answered by the weights that the results are of.

        Args:
            results: the results JSON beside the log.

        Raises:
            RecordError: two digests, another one than that of the results, or some lines without one.
        """
        if not self.are_told:
            return
        told = ", ".join(f"{_told(digest)} (document {quoted(document)})" for digest, document in self._found.items())
        provenance = (results.get(RECORD_KEY) or {}).get("provenance") or {}
        expected = (provenance["digest"] or digest_of(None)) if "digest" in provenance else None
        if len(self._found) > 1 or (expected is not None and [*self._found] != [expected]):
            raise RecordError(
                f"{self._log}: its lines say that they were answered by weights of digest {told:.400}; expected one "
                f"for all{f', {quoted(expected)}, as in the results beside it' if expected is not None else ''}: the "
                "log is of another run, or weights changed while it was made; run again"
            )


def _told(digest: str | tuple[str] | None) -> str:
    if digest is None:
        return "none"
    return quoted(digest) if isinstance(digest, str) else digest[0]


def silent_logs(results: Mapping[str, Any], are_told: Mapping[Log, bool]) -> dict[Log, RecordError]:
    """By log, why it is refused: its lines do not say what answered, and those of other logs of the run do.

    Our wrappers write all logs of a run alike: with digests, or until 0.1 without. Of other models none has any.

    Args:
        results: the results JSON that the logs are of.
        are_told: by log that has lines, whether they carry digests.
    """
    others = [log for log, told in are_told.items() if told]
    if not others or not (results.get(RECORD_KEY) or {}).get("provenance"):
        return {}
    return {
        log: RecordError(
            f"{log}: its lines do not say which weights answered them; expected a digest in each, as in {others[0]} of "
            "the same run: the log is of another run; copy it again, or run again"
        )
        for log, told in are_told.items()
        if not told
    }


def read_samples(
    log: Path, results: Mapping[str, Any], task: str, filter_name: str | None = None
) -> list[dict[str, Any]]:
    """One sample per document: those of one of the task's filters. The lines of all filters are checked.

    Args:
        log: the task's, JSON lines.
        results: the results JSON beside it.
        task: its name.
        filter_name: of the filter; by default the task's first, which lmms-eval logs first.

    Raises:
        RecordError: a line is no sample, a document stands there too often, their number is another, or lines were
            answered by other weights than the results are of.
    """
    config = results["configs"].get(task) or {}
    names = filters_of(config)
    number = names.index(filter_name) if filter_name in names else 0
    digests = Digests(log)
    with log.open("rb") as stream:
        expected = expected_documents(results, task)
        samples = samples_by_filter(stream, log, config, expected, only=number, digests=digests)[number]
    digests.check(results)
    return samples


def samples_by_filter(
    stream: Lines,
    log: object,
    config: Mapping[str, Any],
    expected: Expected,
    *,
    only: int | None = None,
    digests: Digests | None = None,
) -> list[list[dict[str, Any]]]:
    """The samples of a log, for each of the task's filters one per document, in the order of the log.

    Args:
        stream: the log, JSON lines.
        log: what messages call it.
        config: the task's, as the results have it.
        expected: which documents there have to be, or how many; None where nobody knows.
        only: keep those of this filter alone, by its place among the task's; the others' are empty.
        digests: takes in every line, of whatever filter.

    Raises:
        RecordError: a line is no sample, a document stands there too often, or their number is another.
    """
    filters = filters_of(config)
    samples: list[list[dict[str, Any]]] = [[] for _ in filters]
    counts: Counter[Any] = Counter()
    for number, line in enumerate(lines_of(stream, log), start=1):
        try:
            sample = writable(check_depth(json.loads(line)), line)
            _check_sample(sample)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RecordError(f"{log}, line {number} is not a sample of lmms-eval: {why_no_sample(error)}") from error
        document = sample["doc_id"]
        counts[document] += 1
        if counts[document] > len(filters):
            raise RecordError(
                f"{log}, line {number}: document {document} once more than the task has filters "
                f"({', '.join(filters)}); two runs that started in one second write into one log: run again"
            )
        if digests is not None:
            digests.add(sample)
        if only is None or counts[document] == only + 1:
            samples[counts[document] - 1].append(sample)
    if missing := [document for document, count in counts.items() if count < len(filters)]:
        raise RecordError(
            f"{log}: document {missing[0]} stands there {counts[missing[0]]} times, expected once for each of the "
            f"task's filters ({', '.join(filters)}): the log is not whole; run again"
        )
    if isinstance(expected, frozenset):
        if differing := sorted(expected.symmetric_difference(counts), key=str):
            which = "no" if differing[0] in expected else "a"
            raise RecordError(
                f"{log} holds {which} document {differing[0]}, unlike the results beside it (config/documents): the "
                "log is of another sample, or not whole; copy it again, or run again"
            )
    elif expected is not None and len(counts) != expected:
        raise RecordError(
            f"{log} holds {len(counts)} documents, but the results beside it are of {expected} (n-samples): the log is "
            "not whole; copy it again, or run again"
        )
    return samples


def lines_of(stream: Lines, log: object) -> Iterator[bytes]:
    """The lines of a sample log, without their ends.

    Args:
        stream: the log.
        log: what messages call it.

    Raises:
        RecordError: a line is longer than that of any document.
    """
    while line := stream.readline(LARGEST_JSON + 1):
        if len(line) > LARGEST_JSON:
            raise RecordError(f"{log}: has a line of more than {LARGEST_JSON} bytes, which is no sample; run again")
        yield line.rstrip(b"\r\n")


def log_lines(log: Path) -> Iterator[bytes]:
    """The lines of the sample log `log`, without their ends; raises RecordError as `lines_of`."""
    with log.open("rb") as stream:
        yield from lines_of(stream, log)


def _check_sample(sample: Any) -> None:
    """Raises KeyError, TypeError or ValueError when a line of a log is no sample."""
    if not isinstance(sample, dict):
        raise TypeError(f"found {type(sample).__name__}, expected a JSON object")
    if not isinstance(sample["doc_id"], (int, str)) or isinstance(sample["doc_id"], bool):
        raise TypeError(f"doc_id is {sample['doc_id']!r}, expected a number or text")
    if isinstance(sample["doc_id"], int) and not -(2**63) <= sample["doc_id"] < 2**63:
        raise ValueError(f"doc_id is {quoted(sample['doc_id'])}, expected a number of at most 64 bits")
    if "filtered_resps" not in sample:
        raise ValueError("it has no answer (filtered_resps); expected a log of --log_samples")
    _ = sample["target"]


def expected_documents(results: Mapping[str, Any], task: str) -> Expected:
    """Which documents of a task the results are of, or how many; None where they do not say.

    Args:
        results: the results JSON.
        task: its name.
    """
    if (documents := documents_of(results)) is not None and task in documents:
        return frozenset(documents[task])
    counts = (results.get("n-samples") or {}).get(task) or {}
    config = results.get("config") or {}
    numbers = [counts.get("original"), counts.get("effective"), config.get("offset") or 0]
    whole = [int(n) for n in numbers if isinstance(n, (int, float)) and math.isfinite(n) and n == int(n)]
    if len(whole) < len(numbers):
        return None  # a fractional --limit: lmms-eval leaves it as it was given
    original, effective, offset = whole
    return max(0, min(effective, original - offset))


def texts_of(sample: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a document was asked, the right answer, and what was answered, as a filter of the task leaves it.

    Of a task that is answered by likelihoods the answer is the number of the likeliest choice, as its target is.

    Args:
        sample: its line of a sample log.
    """
    answer = sample["filtered_resps"]
    if (choice := chosen(answer)) is not None:
        answer = str(choice)
    while isinstance(answer, list):
        answer = answer[0] if answer else ""
    answer = "" if answer is None else answer
    prompt, target, answer = (_storable(str(text)) for text in (sample.get("input", ""), sample["target"], answer))
    return prompt, target, answer


def _storable(text: str) -> str:
    """Half a surrogate pair, which a log may hold and no file of text, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
