"""The form of what is known of a leaderboard: which file it takes, and what has to hold of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Line = Mapping[str, Any]
"""A line of a sample log."""
Values = Sequence[Mapping[str, Any]]
"""Rows of a file, column -> value."""
TABLE = "row of the table"
"""Where `Board.read` finds the row of a file of questions that a line is of."""
Together = Callable[[Values, bool], tuple[list[str], list[str]]]
"""Values of all rows, and whether they were compared with the ids of all questions -> problems and notes."""
Form = Literal["json list", "json object", "jsonl", "xlsx", "csv", "tsv"]

SUFFIXES: dict[str, str] = {
    "json list": ".json",
    "json object": ".json",
    "jsonl": ".jsonl",
    "xlsx": ".xlsx",
    "csv": ".csv",
    "tsv": ".tsv",
}
"""Form of a board's file -> the suffix of its name."""


@dataclass(frozen=True)
class Column:
    """One column of a board's file: a field of its JSON objects, or a column of its table.

    Attributes:
        name: as the board spells it.
        kind: `str` or `int`, or `object` for whatever JSON holds.
        pattern: regular expression that a whole text has to match; "" takes any. Of a number, its digits match it.
        expected: what the pattern means, in words.
        canonical: turns what a log holds into what the board takes; it may raise ValueError, in words. It leaves what
            it has made as it is, so that a file can be checked by it.
        needed: whether every row of a file has to have it.
    """

    name: str
    kind: type = str
    pattern: str = ""
    expected: str = ""
    canonical: Callable[[Any], Any] = lambda value: value
    needed: bool = True

    def fits(self, value: object) -> bool:
        """Whether a value has the form of the column.

        Args:
            value: text, or a number.
        """
        return not self.pattern or re.fullmatch(self.pattern, str(value)) is not None


@dataclass(frozen=True)
class Table:
    """How the rows of a file of questions are joined to the lines of a log; `Board.read` finds them under `TABLE`.

    Attributes:
        name: of the file, without its suffix.
        of_row: a row, and its number from 0 on -> what it is known by; None for one that the task does not ask.
        of_line: a line -> the same.
        question: a row -> the words that a line's prompt has to hold, wherever white space stands.
        same_answer: whether the row's `answer` is written as the task writes the line's target, and has to be it.
    """

    name: str
    of_row: Callable[[Mapping[str, str], int], Hashable | None]
    of_line: Callable[[Line], Hashable]
    question: Callable[[Mapping[str, str]], str]
    same_answer: bool = True


@dataclass(frozen=True)
class Board:
    """What one leaderboard takes, and what is known of it.

    Attributes:
        name: of ours, as `--board` takes it and as file names have it.
        title: the benchmark's.
        form: of the file. An object of JSON has ids as its keys, and as values the one other column or, where there
            are several, objects of them.
        also: further forms that the board takes; files of these are checked, and never written.
        id: the column that names a question.
        answer: the column that holds the model's answer.
        read: a line of a sample log -> column -> value. It raises KeyError, TypeError or ValueError for a line without.
        tasks: those of lmms-eval whose logs hold its answers, whole; empty where lmms-eval carries none.
        more: further columns, in the file's own order behind the id; the answer is put at its place by `order`.
        order: names of all columns, in the file's order; empty for id, answer, more.
        questions: how many there are; None where that is not known.
        split: of the data set, in words.
        encoding: of a file of text.
        answers: what becomes of an answer before it is written, in words; "" where it is written as it was logged.
        question_ids: where the board's own question file has its ids: under which names a question has its own.
        notes: a line of a sample log -> what is to be said of it beside its answer: a kind, in words that hold for
            every such line, and what is there. They are counted by kind.
        together: what speaks against all rows of a file together, and what there is to say of them; it is given their
            values, and whether the ids of all questions are known and were compared.
        question_files: MD5 and name of each file of questions that the board publishes.
        table: how a file of questions completes what a log holds; None where a log holds all columns itself.
        by_name: whether its file is written only where it is named: the runs' tasks alone do not ask for it.
        rules: for whoever hands a file in.
        server: "closed" (reads nothing more), "open" (somebody read it when this was written), "unclear" (it may),
            "mail" (by hand), or "none" (there never was one; the file is for a program of yours).
        standing: what is known of that, in words.
        sources: where the facts come from.
        read_on: when they were read there, year and month.
    """

    name: str
    title: str
    form: Form
    id: Column
    answer: Column
    read: Callable[[Line], Mapping[str, Any]]
    tasks: tuple[str, ...] = ()
    more: tuple[Column, ...] = ()
    order: tuple[str, ...] = ()
    questions: int | None = None
    split: str = "test"
    encoding: str = "utf-8"
    answers: str = ""
    question_ids: tuple[str, ...] = ("question_id", "questionId")
    notes: Callable[[Line], Iterable[tuple[str, str]]] = lambda line: ()
    together: Together = lambda rows, compared: ([], [])
    question_files: tuple[tuple[str, str], ...] = ()
    table: Table | None = None
    by_name: bool = False
    rules: tuple[str, ...] = ()
    server: Literal["closed", "open", "unclear", "mail", "none"] = "unclear"
    standing: str = ""
    sources: tuple[str, ...] = ()
    read_on: str = ""
    also: tuple[Form, ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns, in the file's order."""
        columns = (self.id, self.answer, *self.more)
        by_name = {column.name: column for column in columns}
        return tuple(by_name[name] for name in self.order) if self.order else columns

    def as_named(self, name: str) -> Board:
        """The board as it reads a file of some name: in one of its further forms, where the name has that suffix.

        Args:
            name: of the file.
        """
        form = next((form for form in self.also if name.lower().endswith(SUFFIXES[form])), self.form)
        return replace(self, form=form)

    @property
    def suffix(self) -> str:
        """Of the name of its file, such as ".json"."""
        return SUFFIXES[self.form]


@dataclass(frozen=True)
class SelfReported:
    """A benchmark that nobody takes a file for: authors report their own numbers.

    Attributes:
        title: the benchmark's.
        tasks: those of lmms-eval.
        say: what a reader has to be told beside a number.
    """

    title: str
    tasks: tuple[str, ...]
    say: str


def entry(metric: str, **columns: str) -> Callable[[Line], dict[str, Any]]:
    """Reads columns from what a task logs under the name of a metric.

    Args:
        metric: the name.
        **columns: column -> the field of the entry that it is read from.
    """

    def read(line: Line) -> dict[str, Any]:
        logged = line[metric]
        if not isinstance(logged, Mapping):
            raise TypeError(f"{metric} is {type(logged).__name__}, expected an object")
        return {column: logged[name] for column, name in columns.items()}

    return read


def stripped(answer: str) -> str:
    """An answer without white space around it.

    Args:
        answer: the model's.
    """
    return answer.strip()
