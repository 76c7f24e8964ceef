"""What a board would say to some answers: every fault at once, with how many rows have it and where the first are."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from plam_eval.errors import did_you_mean, quoted
from plam_eval.publishing.boards.record import Board, Column

LARGEST_CELL = 32_767
"""Characters that a cell of an xlsx workbook holds."""
EXAMPLES = 5
"""Places that a message names, of all that it is about."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
SURROGATE = re.compile(r"[\ud800-\udfff]")
MOST_KINDS = 100
"""Kinds of faults that are told apart: a crafted file has a kind of its own in every row."""
TABLES = ("xlsx", "csv", "tsv")


@dataclass(frozen=True)
class Row:
    """One answer: where it stands ("line 3"), and its columns."""

    where: str
    values: Mapping[str, Any]


class Tally:
    """What there is to say of many rows, by kind: how many rows, and the first of them as examples."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: str, where: str, what: str = "") -> None:
        """One row more.

        Args:
            kind: what there is to say, in words that hold for every such row.
            where: the row.
            what: what was found in it.
        """
        self.add_all(kind, [f"{where}: {what}" if what else where], 1)

    def add_all(self, kind: str, places: Iterable[str], count: int) -> None:
        """Several rows more.

        Args:
            kind: as for `add`.
            places: where they are; the first ones are enough.
            count: how many they are; 0 for what is no matter of rows.
        """
        if len(self._counts) >= MOST_KINDS and kind not in self._counts:
            kind = "something else wrong"
        self._counts[kind] = self._counts.get(kind, 0) + count
        examples = self._places.setdefault(kind, [])
        examples += itertools.islice(places, EXAMPLES - len(examples))

    def __bool__(self) -> bool:
        return bool(self._counts)

    def lines(self) -> list[str]:
        """One line for each kind."""
        return [
            f"{kind}{f' ({count})' if count else ''}: {'; '.join(self._places[kind])}"
            + (f"; and {count - len(self._places[kind])} more" if count > len(self._places[kind]) else "")
            for kind, count in self._counts.items()
        ]


@dataclass
class Checked:
    """What a check of some rows came to.

    Attributes:
        rows: how many there are.
        empty: how many answers are empty.
        problems: what the board would refuse, or read as something else; every one.
        notes: what is no fault, and should be known.
    """

    rows: int = 0
    empty: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dict(vars(self))


def first_twice(names: Iterable[str]) -> str:
    """The first of `names` that was there before; "" where all differ."""
    seen = set[str]()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


def check_rows(board: Board, rows: Iterable[Row], questions: Collection[Hashable] | None = None) -> Checked:
    """What a board would say to some rows.

    Args:
        board: its record.
        rows: the answers.
        questions: the ids that there are; None where only their number may be known.
    """
    faults, notes, checked = Tally(), Tally(), Checked()
    names = [column.name for column in board.columns]
    places: dict[Hashable, str] = {}
    universe = None if questions is None else set(questions)
    rows = list(rows)
    for row in rows:
        checked.rows += 1
        target = notes if board.form in TABLES else faults
        unknown = [name for name in row.values if name not in names]
        if len(unknown) > MOST_KINDS:
            target.add("columns by the hundred, which the board does not have", row.where, f"{len(unknown)}")
            unknown = []
        for name in unknown:
            target.add(f"column {quoted(name)}, which the board does not have{did_you_mean(name, names)}", row.where)
        for column in board.columns:
            _check_value(board, column, row, faults, notes)
        answer = row.values.get(board.answer.name)
        if isinstance(answer, str) and not answer.strip():
            checked.empty += 1
            notes.add("an empty answer", row.where)
        question = row.values.get(board.id.name)
        if not isinstance(question, (str, int)) or isinstance(question, bool):
            continue
        if question in places:
            faults.add(f"{board.id.name} twice", row.where, f"{quoted(question)}, as in {places[question]}")
        places.setdefault(question, row.where)
        if universe is not None and question not in universe:
            faults.add(f"{board.id.name} that is none of the questions", row.where, quoted(question))
    _check_number(board, checked.rows, places, universe, faults)
    problems, said = board.together([row.values for row in rows], universe is not None)
    checked.problems, checked.notes = [*faults.lines(), *problems], [*notes.lines(), *said]
    return checked


def _check_number(
    board: Board, count: int, places: Collection[Hashable], universe: set[Hashable] | None, faults: Tally
) -> None:
    if universe is not None:
        if missing := [name for name in universe if name not in places]:
            shown = map(quoted, sorted(missing, key=str))
            faults.add_all(f"without an answer, of {len(universe)} questions", shown, len(missing))
    elif board.questions is not None and len(places) != board.questions:
        faults.add_all("another number of questions", [f"found {len(places)}, expected {board.questions}"], 0)
    elif not count:
        faults.add_all("no answers", ["the file holds none"], 0)


def _check_value(board: Board, column: Column, row: Row, faults: Tally, notes: Tally) -> None:
    """One value of a row: there, of its type, of its form, and nothing that a file or a reader would change."""
    name, is_answer = column.name, column is board.answer
    value = row.values.get(name)
    if value is None and (board.form in TABLES or name not in row.values):
        if is_answer and name in row.values:  # an empty cell
            notes.add("an empty answer", row.where)
        elif column.needed:
            faults.add(f"no {name}", row.where)
        return
    if column.kind is object or not _has_type(board, column, value, row.where, faults, notes):
        return
    if isinstance(value, str):
        _check_text(board, name, value, row.where, faults, notes)
        if is_answer and not value.strip():
            return
    if not column.fits(value):
        expected = column.expected or f"a match of {column.pattern}"
        faults.add(f"{outside(column)}, expected {expected}", row.where, f"found {quoted(value)}")
        return
    try:
        same = column.canonical(value) == value
    except ValueError as error:
        faults.add(f"{name} is refused", row.where, str(error))
        return
    if not same and is_answer:
        notes.add(f"{name} not {board.answers or 'as plam submit writes it'}", row.where, quoted(value))
    elif not same:
        faults.add(f"{name} written otherwise than the board has it", row.where, quoted(value))


def outside(column: Column) -> str:
    """What is said of values that have not the form of `column`."""
    return f"{column.name} outside the form"


def _has_type(board: Board, column: Column, value: Any, where: str, faults: Tally, notes: Tally) -> bool:
    if type(value) is column.kind:
        return True
    if column.kind is str and board.form == "xlsx" and type(value) in (int, float):
        notes.add(f"{column.name} as a number, which a reader may write otherwise", where, quoted(value))
        return False
    expected = "text" if column.kind is str else "a whole number, as a number"
    faults.add(f"{column.name} of another type, expected {expected}", where, f"found {quoted(value)}")
    return False


def _check_text(board: Board, name: str, value: str, where: str, faults: Tally, notes: Tally) -> None:
    if SURROGATE.search(value):
        faults.add(f"{name} with half of a surrogate pair, which no file of text holds", where)
    if CONTROL.search(value):
        (faults if board.form == "xlsx" else notes).add(f"{name} with a control character", where, quoted(value))
    if board.form == "xlsx" and len(value) > LARGEST_CELL:
        faults.add(f"{name} longer than a cell of {LARGEST_CELL} characters", where, f"{len(value)} characters")
    if board.form in TABLES and name == board.answer.name and value.strip() in _READ_AS_MISSING:
        notes.add(f"{name} that pandas reads as missing unless it is told not to", where, quoted(value))


_READ_AS_MISSING = frozenset(
    (
        *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
        *("NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)


def as_id(column: Column, value: Any) -> Hashable:
    """An id as a board has it, from whatever a log or a file of questions has.

    Args:
        column: of the id.
        value: a number or text.

    Raises:
        ValueError: it is none; the message says what was found and what is expected.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"found {quoted(value)} as {column.name}")
    if column.kind is int:
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if isinstance(value, str) and re.fullmatch(r"(0|[1-9]\d{0,17})(\.0+)?", value.strip(), re.ASCII):
            value = int(value.strip().partition(".")[0])
        if not isinstance(value, int) or not 0 <= value < 2**63:
            raise ValueError(f"found {quoted(value)} as {column.name}, expected a whole number")
    elif isinstance(value, float):
        raise ValueError(f"found {quoted(value)} as {column.name}, expected text")
    else:
        value = str(value)
    name: Hashable = column.canonical(value)
    if not column.fits(name):
        raise ValueError(f"found {quoted(value)} as {column.name}, expected {column.expected or column.pattern}")
    return name
