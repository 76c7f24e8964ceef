"""Runs as they are handed in: which one a path means, what speaks against it, and its answers as a board takes them."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from plam_eval.errors import OutsideError, quoted
from plam_eval.files import check_depth, inside
from plam_eval.harness.errors import RecordError
from plam_eval.harness.run_files import RECORD_KEY, date_of, read_results, result_files, sample_logs, samples_file
from plam_eval.harness.sample_lines import Digests, log_lines, silent_logs
from plam_eval.harness.tasks import filters_of
from plam_eval.publishing.boards.checks import (
    CONTROL,
    EXAMPLES,
    SURROGATE,
    Checked,
    Row,
    Tally,
    as_id,
    check_rows,
    first_twice,
    outside,
)
from plam_eval.publishing.boards.questions import Questions
from plam_eval.publishing.boards.record import Board

_THOUGHT = re.compile(r"</?(?:think|thinking|analysis|reasoning)>")


@dataclass
class SourceRun:
    """A results JSON that was read.

    Attributes:
        file: the JSON.
        results: what it holds.
        notes: what to say of the choice of it.
    """

    file: Path
    results: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def block(self) -> dict[str, Any]:
        """What our wrappers recorded; empty for a run of another model."""
        return self.results.get(RECORD_KEY) or {}

    @property
    def config(self) -> dict[str, Any]:
        """How lmms-eval was called, in its own record."""
        return self.results.get("config") or {}

    @property
    def tasks(self) -> list[str]:
        """The names of its tasks."""
        return list(self.results["configs"])

    @property
    def lmms_eval(self) -> str | None:
        """The version of lmms-eval that made it; None where the results do not say."""
        installed = ((self.block.get("provenance") or {}).get("versions") or {}).get("lmms-eval")
        stated = str(self.results.get("lmms_eval_version"))
        return installed or (stated if re.match(r"\d+\.", stated) else None)

    def task_config(self, task: str) -> dict[str, Any]:
        """A task's configuration.

        Args:
            task: its name.
        """
        return self.results["configs"].get(task) or {}

    def documents(self, task: str, which: str = "original") -> float | None:
        """How many documents a task has, or how many of them were answered; None where the results do not say.

        Args:
            task: its name.
            which: "original" or "effective", as the results call them.
        """
        count = ((self.results.get("n-samples") or {}).get(task) or {}).get(which)
        return count if _is_number(count) else None


@dataclass
class Answers:
    """A run's answers to one task, as a board takes them.

    Attributes:
        run: of which they are.
        board: that they are for.
        task: that they answer.
        log: in which they stand.
        rows: column -> value.
        checked: what speaks against handing them in, and what there is to say of them.
    """

    run: SourceRun
    board: Board
    task: str
    log: Path
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    checked: Checked = field(default_factory=Checked)


def open_run(path: Path) -> SourceRun:
    """The run that a path names.

    Args:
        path: a results JSON, or a folder with the results of one model, of which the newest is read.

    Raises:
        RecordError: there is none, or it is damaged, or there are those of several models.
        OutsideError: it is a link that leads out of the folder.
    """
    if not path.exists():
        raise RecordError(f"{path}: no such file or folder; give a run's folder or its results JSON")
    if path.is_file():
        return _read(path, [])
    files = result_files(path)
    if not files:
        logs = sorted(file.name for file in path.rglob("*_samples_*.jsonl"))
        half = f"; the folder holds {logs[0]}, so it may be copied in part: copy all of it" if logs else ""
        raise RecordError(f"no *_results.json below {path}: expected the --output_path of an lmms-eval run{half}")
    if len(folders := sorted({str(file.parent) for file in files})) > 1:
        raise RecordError(f"{path} holds the results of several models: name the folders: {', '.join(folders)}")
    file = inside(path, files[-1].relative_to(path).as_posix(), str(path))
    notes = []
    if len(files) > 1:
        others = ", ".join(date_of(other) for other in files[:-1][-EXAMPLES:])
        notes.append(f"the newest of {len(files)} runs in {file.parent} is used, {date_of(file)}; others: {others}")
    return _read(file, notes)


def _read(file: Path, notes: list[str]) -> SourceRun:
    results = read_results(file)
    if odd := [task for task in results["configs"] if "/" in task or "\0" in task]:
        raise RecordError(f"{file}: found a task named {quoted(odd[0])}, expected the name of a task of lmms-eval")
    return SourceRun(file, results, notes)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_answers(
    run: SourceRun,
    board: Board,
    task: str,
    questions: Questions | None = None,
    *,
    blank_invalid: bool = False,
) -> Answers:
    """A run's answers to a task as a board takes them, with every reason why it would not.

    Args:
        run: the run.
        board: the board.
        task: one of the run's.
        questions: the board's own; None where only their number may be known.
        blank_invalid: an answer outside the form that the board takes becomes an empty one, and is counted.
    """
    answers = Answers(run, board, task, samples_file(run.file, task))
    faults, notes = faults_of_run(run, task)
    try:
        answers.log = inside(run.file.parent, answers.log.name, str(run.file))
    except OutsideError as error:
        answers.checked.problems = [*faults, str(error)]
        return answers
    if not answers.log.is_file():
        logs = [log.name for log in sample_logs(run.file) if log.is_file()][:EXAMPLES]
        others = f" (there is {', '.join(logs)})" if logs else ""
        remedy = f"there is no {answers.log.name}{others}: copy it from where the run was made, or run again"
        answers.checked.problems = [*faults, f"{remedy} with --log_samples"]
        return answers
    if board.table is not None and questions is None:
        remedy = f"give {board.table.name} of VLMEvalKit with --questions"
        answers.checked.problems = [*faults, f"a log does not hold all that VLMEvalKit reads: {remedy}"]
        return answers
    universe = questions.ids if questions is not None else None
    problems, mended = Tally(), Tally()
    digests = Digests(answers.log)
    lines = _read_log(answers, problems, digests)
    try:
        digests.check(run.results)
    except RecordError as error:
        faults.append(str(error))
    if lines and not digests.are_told:
        faults += map(str, silent_logs(run.results, {answers.log: False} | _others_told(answers)).values())
    rows = [_row(board, number, line, questions, problems, mended) for number, line in lines]
    rows_made = [row for row in rows if row is not None]
    _check_documents(run, task, [line["doc_id"] for _, line in lines], problems)
    if blank_invalid:
        _blank(board, rows_made, mended)
    answers.rows = [row.values for row in rows_made]
    checked = check_rows(board, rows_made, universe)
    if any(line.startswith(outside(board.answer)) for line in checked.problems):
        checked.problems.append("--blank-invalid writes answers outside the form as empty ones, which count as wrong")
    checked.problems = [*faults, *problems.lines(), *checked.problems]
    about = questions.notes if questions is not None else ()
    checked.notes = [*run.notes, *notes, *about, *mended.lines(), *checked.notes]
    if universe is None and board.questions is None:
        checked.notes.append(f"how many questions {board.title} has is not known here; --questions FILE would say it")
    if universe is not None and board.questions not in (None, len(universe)):
        checked.notes.append(
            f"the file of questions has {len(universe)}, {board.title} is known to have {board.questions}"
        )
    answers.checked = checked
    return answers


def faults_of_run(run: SourceRun, task: str) -> tuple[list[str], list[str]]:
    """What results alone say against handing a task's answers in, and what there is to say beside that.

    Args:
        run: the run.
        task: one of its tasks.
    """
    faults, notes = [], []
    original, effective = run.documents(task), run.documents(task, "effective")
    asked = run.config.get("resolved_cli_args") or {}
    for option in ("limit", "offset"):
        given = run.config.get(option) or asked.get(option)
        if given and given != -1:
            number = int(given) if isinstance(given, float) and given.is_integer() else given  # logged as 120.0
            faults.append(f"was made with --{option} {quoted(number)}: run again without it")
    if not faults and run.config.get("documents") and original is not None and effective is not None:
        if effective < original:
            faults.append(f"is of a sample, {effective:g} of {original:g} documents: run again on all of them")
    elif not faults and original is not None and effective is not None and effective < original:
        faults.append(f"answered {effective:g} of {original:g} documents: run again without --limit")
    if original is None:
        notes.append("the results do not say how many documents the task has")
    generation = run.block.get("generation") or {}
    if failed := generation.get("failed"):
        faults.append(f"{failed:g} generations failed, and stand there as empty answers: run again")
    faults += _mixed_settings(run, generation)
    config = run.task_config(task)
    repeats = config.get("repeats")
    if _is_number(repeats) and repeats > 1:
        faults.append(f"each document was answered {repeats:g} times (repeats): a board takes one answer; run again")
    filters = filters_of(config)
    if len(filters) > 1:
        notes.append(f"{task} reads answers by several filters ({', '.join(filters)}): these are of {filters[0]}")
    altered = [
        row for row in run.block.get("altered_answers") or () if isinstance(row, Mapping) and row.get("task") == task
    ]
    if altered:
        notes.append(f"{len(altered)} answers held characters that no worksheet takes, and were logged without them")
    return faults, notes


def _mixed_settings(run: SourceRun, generation: Mapping[str, Any]) -> list[str]:
    """Whether one task's documents were answered under several generation settings."""
    used = {
        json.dumps({key: value for key, value in entry.items() if key != "calls"}, sort_keys=True)
        for entry in generation.get("settings") or ()
        if entry
    }
    declared = {json.dumps(run.task_config(task).get("generation_kwargs"), sort_keys=True) for task in run.tasks}
    if len(used) > len(declared):
        return [f"its documents were answered under several generation settings ({'; '.join(sorted(used))}): run again"]
    return []


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _others_told(answers: Answers) -> dict[Path, bool]:
    """By log of the run's other tasks: True where its first line says which weights answered it; no others."""
    told = {}
    for task in answers.run.tasks:
        if task == answers.task:
            continue
        # Whether such a log can be read is no matter of this task.
        with contextlib.suppress(OSError, ValueError, RecursionError, OutsideError, RecordError):
            log = inside(answers.run.file.parent, samples_file(answers.run.file, task).name, str(answers.run.file))
            if _sample(next(log_lines(log), b"")).get("digest") is not None:
                told[log] = True
    return told


def _read_log(answers: Answers, problems: Tally, digests: Digests) -> list[tuple[int, dict[str, Any]]]:
    """The lines of a log, one per document, those of the task's first filter; by the number of the line.

    `digests` takes in every line.
    """
    filters = len(filters_of(answers.run.task_config(answers.task)))
    first: dict[Any, tuple[int, dict[str, Any]]] = {}
    counts: Counter[Any] = Counter()
    try:
        for number, line in enumerate(log_lines(answers.log), start=1):
            try:
                sample = _sample(line)
            except (ValueError, RecursionError) as error:
                problems.add("no line of a sample log; copy it again, or run again", f"line {number}", f"{error}"[:160])
                continue
            digests.add(sample)
            counts[sample["doc_id"]] += 1
            first.setdefault(sample["doc_id"], (number, sample))
    except RecordError as error:
        problems.add("the log cannot be read", answers.log.name, str(error))
    for document, count in counts.items():
        if count != filters:
            problems.add(
                f"another number of lines of one document, expected {filters}; two runs that started in one second "
                "write into one log: run again",
                f"document {document}",
                f"{count} lines",
            )
    return sorted(first.values(), key=lambda each: _order(each[1]["doc_id"]))


def _order(document: Any) -> tuple[bool, int, str]:
    return (isinstance(document, str), document if isinstance(document, int) else 0, str(document))


def _sample(line: bytes) -> dict[str, Any]:
    """A line of a log. Raises ValueError for what is none, in words."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    try:
        # NaN in a score does no harm; as an answer it is no text.
        sample = check_depth(json.loads(text, object_pairs_hook=_object))
    except json.JSONDecodeError as error:
        raise ValueError(f"not whole JSON: {error}") from error
    document = sample.get("doc_id") if isinstance(sample, dict) else None
    if (isinstance(document, float) and document.is_integer()) or (
        isinstance(document, str) and re.fullmatch("0|[1-9][0-9]{0,17}", document)
    ):
        sample["doc_id"] = document = int(document)
    if not isinstance(document, (int, str)) or isinstance(document, bool):
        raise ValueError(f"found {quoted(sample)}, expected an object with a doc_id")
    return sample


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"{quoted(first_twice(name for name, _ in pairs))} stands twice in one object")
    return content


def _row(
    board: Board,
    number: int,
    line: dict[str, Any],
    questions: Questions | None,
    problems: Tally,
    mended: Tally,
) -> Row | None:
    """What a board takes of a line; None, with the reason in `problems`, where it has none."""
    where = f"line {number}, document {line['doc_id']}"
    responses = line.get("filtered_resps")
    if isinstance(responses, list) and len(responses) > 1:
        problems.add("several responses to one document; a board takes one", where, f"{len(responses)}")
        return None
    try:
        whole = questions.completed(board, line) if questions is not None else line
        logged = board.read(whole)
        notes = list(board.notes(line))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        problems.add(f"nothing to read for {board.name}: of another task, or another version of lmms-eval", where, said)
        return None
    for kind, what in notes:
        mended.add(kind, where, what)
    if _THOUGHT.search(str(responses)):
        mended.add(
            "the model's thoughts are in its answer, and count as answered: they were cut off, or the run was made "
            "without --reasoning_tags of theirs",
            where,
        )
    values: dict[str, Any] = {}
    for column in board.columns:
        value = logged.get(column.name)
        try:
            if column is board.id:
                values[column.name] = as_id(column, value)
            elif value is None and not column.needed and (column.kind is not object or column.name not in logged):
                continue
            elif column.kind is str:
                values[column.name] = column.canonical(_text(board, column.name, value, where, mended))
            else:
                values[column.name] = column.canonical(value)
        except (ValueError, TypeError) as error:
            problems.add(f"no {column.name} that can be written", where, str(error))
            return None
    return Row(where, values)


def _text(board: Board, name: str, value: Any, where: str, mended: Tally) -> str:
    """A text that every file of text holds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        mended.add(f"{name} logged as a number, written as text", where, quoted(value))
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"found {quoted(value)}, expected text")
    if SURROGATE.search(value):
        mended.add(f"{name} with half of a surrogate pair, written as ?", where)
        value = SURROGATE.sub("?", value)
    if CONTROL.search(value):
        mended.add(f"{name} with control characters, written as spaces", where, quoted(value))
        value = CONTROL.sub(" ", value)
    return re.sub(r"\r\n?", "\n", value) if board.form == "xlsx" else value


def _blank(board: Board, rows: list[Row], mended: Tally) -> None:
    """Make answers outside the form empty: a board counts them as wrong."""
    column = board.answer
    for number, row in enumerate(rows):
        answer = row.values.get(column.name)
        if isinstance(answer, str) and answer.strip() and not column.fits(answer):
            mended.add(f"{outside(column)}, written as an empty one", row.where, quoted(answer))
            rows[number] = Row(row.where, {**row.values, column.name: ""})


def _check_documents(run: SourceRun, task: str, documents: Iterable[Any], problems: Tally) -> None:
    """Whether the log has every document that the results are of, and no other."""
    original = run.documents(task)
    if original is None or original != int(original) or not 0 <= original < 2**40:
        return
    seen = set(documents)
    numbers = {document for document in seen if isinstance(document, int) and 0 <= document < original}
    if others := sorted(seen - numbers, key=str):
        problems.add_all(f"documents beyond the task's {original:g}", map(quoted, others), len(others))
    if missing := int(original) - len(numbers):
        absent = (f"document {number}" for number in range(int(original)) if number not in numbers)
        remedy = "copy the log again, or run again"
        problems.add_all(f"documents missing in the log, of {original:g}; {remedy}", absent, missing)
