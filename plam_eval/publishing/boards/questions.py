"""Files of questions that a board publishes: whether one is the known one, and the rows that complete a log."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plam_eval.errors import DamagedFileError, quoted
from plam_eval.files import check_depth, check_size, digest_of
from plam_eval.publishing.boards.checks import as_id
from plam_eval.publishing.boards.files import LARGEST
from plam_eval.publishing.boards.record import TABLE, Board, Line, Table

_PICTURE = re.compile(r"<image(?: \d+)?>")


@dataclass(frozen=True)
class Questions:
    """A board's own questions.

    Attributes:
        ids: of those that are to be answered.
        notes: what there is to say of the file.
        rows: what a question is known by in a log -> the rows of the file that it may be; empty where a log has it all.
    """

    ids: frozenset[Hashable]
    notes: tuple[str, ...] = ()
    rows: Mapping[Hashable, list[dict[str, str]]] = field(default_factory=dict)

    def completed(self, board: Board, line: Line) -> Line:
        """A line of a log with the row of its question, as the board's `read` wants it.

        Args:
            board: the board.
            line: the line.

        Raises:
            ValueError: it is of no row, or of several, or its prompt does not hold the row's question.
            KeyError, TypeError: it is of another task.
        """
        if board.table is None:
            return line
        key = board.table.of_line(line)
        rows = self.rows.get(key, [])
        prompt = _words(str(line.get("input")))
        asked = [row for row in rows if _words(board.table.question(row)) in prompt]
        right = [row for row in asked if _words(str(line.get("target"))) in _answers(row)]
        fitting = right if board.table.same_answer else right or asked
        if len(fitting) != 1:
            what = "none" if not rows else "another question or answer" if not fitting else f"{len(fitting)} alike"
            raise ValueError(f"found {what} in {board.table.name} for {quoted(key)}, expected the one that was asked")
        return {**line, TABLE: fitting[0]}


def read_board_questions(board: Board, file: Path) -> Questions:
    """A board's own questions from a file.

    Args:
        board: the board.
        file: JSON (a list of questions, one below "questions" or "data", or an object by id), JSON lines, a table with
            a header (.csv, .tsv), or text with one id per line; for a board with a `table`, that table, of tabs.

    Raises:
        DamagedFileError: it holds none, lacks columns, or is too large to be one.
        OSError: it cannot be read.
    """
    remedy = f"give the questions of {board.title} as the board publishes them"
    check_size(file, LARGEST, remedy)
    notes = _notes(board, file)
    if board.table is not None:
        return _joined(board, board.table, file, notes)
    try:
        text = file.read_bytes().decode("utf-8-sig")
        ids = frozenset(as_id(board.id, name) for name in _question_ids(board, text, file.suffix))
    except (ValueError, RecursionError, csv.Error) as error:
        raise DamagedFileError(f"{file}: cannot be read ({error}); {remedy}") from error
    if not ids:
        raise DamagedFileError(f"{file}: holds no question with {' or '.join(board.question_ids)}; {remedy}")
    return Questions(ids, notes)


def _joined(board: Board, table: Table, file: Path, notes: tuple[str, ...]) -> Questions:
    """The questions of a table whose rows complete a log."""
    ids: set[Hashable] = set()
    rows: dict[Hashable, list[dict[str, str]]] = {}
    try:
        for number, row in enumerate(_read(file)):
            key = table.of_row(row, number)
            if key is None:
                continue
            _ = row["question"]
            ids.add(as_id(board.id, row["index"]))
            rows.setdefault(key, []).append(row)
    except KeyError as error:
        raise DamagedFileError(f"{file}: holds no column {error}, expected {table.name} of VLMEvalKit") from error
    except (ValueError, csv.Error) as error:
        raise DamagedFileError(f"{file}: {error}; give {table.name} as VLMEvalKit publishes it") from error
    if not rows:
        raise DamagedFileError(f"{file}: holds no questions; give {table.name} as VLMEvalKit publishes it")
    return Questions(frozenset(ids), notes, rows)


def _read(file: Path) -> list[dict[str, str]]:
    """The rows of a table of tabs, without pictures."""
    csv.field_size_limit(LARGEST)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        table = csv.DictReader(stream, delimiter="\t")
        return [{k: v or "" for k, v in row.items() if k not in (None, "image")} for row in table]


def _question_ids(board: Board, text: str, suffix: str) -> Iterator[Any]:
    if suffix in (".csv", ".tsv"):
        csv.field_size_limit(LARGEST)
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",")
        yield from (_id_of(row, board) for row in table)
        return
    if not text.lstrip().startswith(("[", "{")):
        yield from (line.strip() for line in text.splitlines() if line.strip())
        return
    try:
        content = check_depth(json.loads(text))
    except json.JSONDecodeError:
        content = [check_depth(json.loads(line)) for line in text.splitlines() if line.strip()]
    if isinstance(content, dict):
        below = next((content[key] for key in ("questions", "data") if isinstance(content.get(key), list)), None)
        if below is None:
            yield from content if not any(name in content for name in board.question_ids) else [_id_of(content, board)]
            return
        content = below
    yield from (_id_of(each, board) if isinstance(each, dict) else each for each in content)


def _id_of(question: Mapping[str, Any], board: Board) -> Any:
    names = (board.id.name, *board.question_ids)
    value = next((question[name] for name in names if question.get(name) is not None), None)
    if value is None:
        raise ValueError(f"found a question without {' or '.join(dict.fromkeys(names))}")
    return value


def _notes(board: Board, file: Path) -> tuple[str, ...]:
    if not board.question_files:
        return ()
    with file.open("rb") as stream:
        md5 = digest_of(stream, "md5")
    if md5 in dict(board.question_files):
        return ()
    published = ", ".join(f"{name} ({digest})" for digest, name in board.question_files)
    return (f"{file.name} has the MD5 {md5}, which is not that of {published}: another file, or another version",)


def _answers(row: Mapping[str, str]) -> set[str]:
    """How a task may write the right answer of a row: as it stands there, or as the words of its choice."""
    letter = row.get("answer", "")
    return {_words(letter), *([_words(row[letter])] if len(letter) == 1 and row.get(letter) else [])}


def _words(text: str) -> str:
    return " ".join(_PICTURE.sub(" ", text).casefold().split())
