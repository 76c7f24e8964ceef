"""Files of questions that a board publishes: whether one is the known one, and the rows that complete a log."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plam_eval.errors import DamagedFileError, quoted
from plam_eval.publishing.boards.checks import as_id
from plam_eval.publishing.boards.files import LARGEST, read_questions
from plam_eval.publishing.boards.record import TABLE, Board, Line

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
            found = "none" if not rows else "another question or answer" if not fitting else f"{len(fitting)} alike"
            raise ValueError(f"found {found} in {board.table.name} for {quoted(key)}, expected the one that was asked")
        return {**line, TABLE: fitting[0]}


def read_board_questions(board: Board, file: Path) -> Questions:
    """A board's own questions from a file.

    Args:
        board: the board.
        file: as `board_files.read_questions` takes it; for a board with a `table`, that table, of tabs.

    Raises:
        DamagedFileError: it holds none, or lacks columns.
        OSError: it cannot be read.
    """
    notes = _notes(board, file)
    if board.table is None:
        return Questions(frozenset(read_questions(board, file)), notes)
    ids: set[Hashable] = set()
    rows: dict[Hashable, list[dict[str, str]]] = {}
    try:
        for number, row in enumerate(_read(file)):
            key = board.table.of_row(row, number)
            if key is None:
                continue
            _ = row["question"]
            ids.add(as_id(board.id, row["index"]))
            rows.setdefault(key, []).append(row)
    except KeyError as error:
        raise DamagedFileError(f"{file}: holds no column {error}, expected {board.table.name} of VLMEvalKit") from error
    except (ValueError, csv.Error) as error:
        raise DamagedFileError(f"{file}: {error}; give {board.table.name} as VLMEvalKit publishes it") from error
    if not rows:
        raise DamagedFileError(f"{file}: holds no questions; give {board.table.name} as VLMEvalKit publishes it")
    return Questions(frozenset(ids), notes, rows)


def _read(file: Path) -> list[dict[str, str]]:
    """The rows of a table of tabs, without pictures."""
    if file.stat().st_size > LARGEST:
        raise ValueError(f"is larger than {LARGEST} bytes")
    csv.field_size_limit(LARGEST)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        table = csv.DictReader(stream, delimiter="\t")
        return [{k: v or "" for k, v in row.items() if k not in (None, "image")} for row in table]


def _notes(board: Board, file: Path) -> tuple[str, ...]:
    if not board.question_files:
        return ()
    with file.open("rb") as stream:
        digest: Any = hashlib.md5(usedforsecurity=False)
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() in dict(board.question_files):
        return ()
    known = ", ".join(f"{name} ({md5})" for md5, name in board.question_files)
    return (
        f"{file.name} has the MD5 {digest.hexdigest()}, which is not that of {known}: another file, or another version",
    )


def _answers(row: Mapping[str, str]) -> set[str]:
    """How a task may write the right answer of a row: as it stands there, or as the words of its choice."""
    letter = row.get("answer", "")
    return {_words(letter), *([_words(row[letter])] if len(letter) == 1 and row.get(letter) else [])}


def _words(text: str) -> str:
    return " ".join(_PICTURE.sub(" ", text).casefold().split())
