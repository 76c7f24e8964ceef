"""Answers by document on disk, so that a scan or a sweep that was killed goes on where it was.

A store is a folder with a file for each process. Each line is one document that is answered: which one it is
(`document_of`), and whatever the strategy that answered it has to say of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plam_eval import files
from plam_eval.beside import gone
from plam_eval.errors import FolderError
from plam_eval.harness.requests import Key, prompt_of

Record = dict[str, Any]
"""A line of a store."""

_FILES = "answers.rank*.jsonl"


def document_of(request: Any) -> Record:
    """The part of a record that says which document it is of, and what was asked.

    Args:
        request: lmms-eval's.
    """
    return {"task": request.task_name, "doc_id": request.doc_id, "prompt": prompt_of(request)}


def prompt_problem(request: Any, record: Mapping[str, Any], whose: str) -> str | None:
    """Why a record does not answer a request, in a sentence; None where it does.

    Args:
        request: lmms-eval's, of the document that the record is of.
        record: of a store.
        whose: the document that was answered, in words that follow "the one".
    """
    if record["prompt"] == prompt_of(request):
        return None
    return (
        f"document {request.doc_id} of {request.task_name} is another than the one {whose} (its prompt changed); "
        "name another --output"
    )


def delete_answers(folder: Path) -> None:
    """Delete the stores in the folders below `folder`, and what is empty then; all else stays.

    Args:
        folder: one that holds a folder for each store.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for below in folder.iterdir():
        if below.is_symlink() or not below.is_dir():
            continue
        for file in below.glob(_FILES):
            file.unlink()
        if not any(below.iterdir()):
            below.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


def stores_in(folder: Path) -> list[str]:
    """Names of the files of stores that lie in a folder, of whatever process.

    Args:
        folder: need not exist.
    """
    return sorted({"answers.rank0.jsonl", *(file.name for file in folder.glob(_FILES))})


def open_noted(
    folder: Path, note: str, made_with: dict[str, Any], rank: int, changed: Callable[[], str], error: type[Exception]
) -> AnswerStore:
    """The store of a folder that notes what its answers depend on, in a file that is written where there is none.

    Args:
        folder: made where it is missing.
        note: name of the JSON file in it.
        made_with: what answers depend on, apart from the documents.
        rank: number of this process; the first one, 0, writes the file.
        changed: how what is noted differs from `made_with`, in words, empty where it does not; asked where there is
            such a file.
        error: what is raised where answers of both would be mixed.

    Raises:
        FolderError: as `AnswerStore`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = AnswerStore(folder, rank)
    if (folder / note).is_file():
        if not (differing := changed()):
            return store
        if any(store.read()):  # else there is nothing that could be mixed
            raise error(
                f"{folder} holds answers of other settings: {differing}. Answers of both cannot be mixed: name another "
                "--output, or delete this one"
            )
    if rank == 0:
        files.write_json(folder / note, made_with)
    return store


class AnswerStore:
    """Answers by document, a line each, written as soon as they are known; every process writes a file of its own.

    Args:
        folder: made where it is missing.
        rank: number of this process.

    Raises:
        FolderError: this process's file is a link or a pipe.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._file = folder / f"answers.rank{rank}.jsonl"
        self._known: dict[Key, list[Record]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self._file.is_symlink() or (self._file.exists() and not self._file.is_file()):
            what = "a link" if self._file.is_symlink() else "no file that can be written"
            raise FolderError(f"{self._file}: found {what}, expected a file of plam-eval's own; name another output")
        if self._file.is_file():  # a line that a kill cut off is not finished work
            content = self._file.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(self._file, content.rfind(b"\n") + 1)

    def read(self, is_whole: Callable[[Record], bool] = bool) -> Iterator[Record]:
        """What all processes have written. Lines that are damaged are left out, and named in a warning.

        Args:
            is_whole: whether a line holds what it should; may raise ValueError, LookupError or TypeError where not.
        """
        from loguru import logger

        for file in sorted(self._folder.glob(_FILES)):
            if file.is_symlink() or not file.is_file():  # a pipe would be waited for
                continue
            *lines, _ = file.read_bytes().split(b"\n")  # the last is empty, or another process is writing it
            damaged = []
            for number, line in enumerate(lines, start=1):
                try:
                    record = files.writable(files.check_depth(json.loads(line)), line)
                    whole = isinstance(record, dict) and is_whole(record)
                except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
                    whole = False
                if whole:
                    yield record
                else:
                    damaged.append(number)
            if damaged:
                numbers = ", ".join(map(str, damaged[:10])) + (", ..." if len(damaged) > 10 else "")
                logger.warning(f"{file}: damaged in line {numbers}; these documents are answered again")

    def load(self, is_whole: Callable[[Record], bool], concerns: Callable[[Record], bool] = bool) -> None:
        """Have `of` know what all processes have written.

        Args:
            is_whole: as `read` takes it.
            concerns: whether a whole record is wanted.
        """
        for record in self.read(is_whole):
            if concerns(record):
                self._remember(record)

    def of(self, key: Key) -> Sequence[Record]:
        """The records of a document that were loaded or added, in that order.

        Args:
            key: the document.
        """
        return self._known.get(key, ())

    def add(self, record: Record) -> None:
        """Append a line, or nothing of it; `of` knows it from then on.

        Args:
            record: JSON-able, with what `document_of` gives.

        Raises:
            FolderError: the folder is gone. OSError: it cannot be written.
        """
        try:
            self._file.touch()
        except FileNotFoundError:
            raise gone(self._folder) from None
        size = self._file.stat().st_size
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError:  # a full disk, of which the next line must not become a part
            os.truncate(self._file, size)
            raise
        self._remember(record)

    def _remember(self, record: Record) -> None:
        self._known.setdefault((record["task"], record["doc_id"]), []).append(record)
