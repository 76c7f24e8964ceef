"""From runs to the files that boards take, written beside each run's results out of its sample logs.

The logs are read, not the files that tasks themselves write: those have fixed names, so that a later run replaces an
earlier one's. Every fault of every run is told at once, and nothing is written while there is one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from plam_eval.errors import DamagedFileError, FolderError, InputError, OutsideError, ProblemsError, hint, quoted
from plam_eval.files import check_writable, read_json, sha256_of_file, write_in_one_step, write_json
from plam_eval.harness.errors import RecordError
from plam_eval.harness.run_files import date_of
from plam_eval.provenance import versions
from plam_eval.publishing.boards.checks import Checked, check_rows
from plam_eval.publishing.boards.files import check_file, read_rows, write_rows
from plam_eval.publishing.boards.questions import read_board_questions
from plam_eval.publishing.boards.record import Board
from plam_eval.publishing.boards.run_answers import Answers, SourceRun, open_run, read_answers
from plam_eval.publishing.boards.table import boards_of, without_board

ABOUT = ".about.json"
"""Ending of the file that says what a submission was made of; the submission itself names no model."""
_FORMAT = 1


class SubmissionError(ProblemsError, ValueError):
    """Runs whose answers cannot be handed in as they are: every reason. Nothing was written."""

    def _heading(self) -> str:
        return "nothing was written:"


@dataclass(frozen=True)
class Submission:
    """One file that was written for a board.

    Attributes:
        board: name of the board.
        task: whose answers it holds.
        run: the results JSON of their run.
        file: what the board takes.
        about: what says where it comes from, beside it.
        rows: how many answers it holds.
        empty: how many of them are empty.
        sha256: of the file.
        notes: what to know before it is handed in.
    """

    board: str
    task: str
    run: Path
    file: Path
    about: Path
    rows: int
    empty: int
    sha256: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        paths = {name: str(getattr(self, name)) for name in ("run", "file", "about")}
        return {**vars(self), **paths, "notes": list(self.notes)}


def submit(
    runs: Sequence[Path],
    *,
    boards: Sequence[Board] = (),
    task: str | None = None,
    questions: Path | None = None,
    blank_invalid: bool = False,
) -> list[Submission]:
    """Write the files of boards, each into the folder of its run.

    Args:
        runs: results files of lmms-eval, ours or not, or folders with the results of one model, of which the newest.
        boards: for which; none for every board that the runs' tasks are for.
        task: of which the answers are, in place of the board's own.
        questions: the board's own file of questions, whose ids are then all that there are.
        blank_invalid: write answers outside a board's form as empty ones, and say how many.

    Returns:
        What was written, in the order of the runs.

    Raises:
        InputError: boards, task and questions that do not go together, or no board for any task.
        SubmissionError: every reason why these answers cannot be handed in.
        DamagedFileError: a file of questions without any.
        OSError: a file cannot be read or written.
    """
    if task is not None and len(boards) != 1:
        raise InputError("--task says which task holds a board's answers: name that board with --board")
    if questions is not None and len(boards) != 1:
        raise InputError("--questions is the file of one board: name that board with --board")
    given = read_board_questions(boards[0], questions) if questions is not None else None
    universe = given.ids if given is not None else None
    problems: list[str] = []
    prepared: list[Answers] = []
    for path in dict.fromkeys(runs):
        try:
            run = open_run(path)
            jobs = _jobs(run, boards, task)
        except (RecordError, InputError, OutsideError) as error:
            problems.append(str(error))
            continue
        for board, name in jobs:
            answers = read_answers(run, board, name, given, blank_invalid=blank_invalid)
            prepared.append(answers)
            faults = [*answers.checked.problems, *_in_the_way(answers)]
            problems += [f"{run.file}, {board.name}: {fault}" for fault in faults]
    files = Counter(_targets(answers)[0] for answers in prepared)
    problems += [
        f"{file} would be written {count} times: name each run once, and of several tasks one, with --task"
        for file, count in files.items()
        if count > 1
    ]
    if problems:
        raise SubmissionError(*problems)
    _note_differences(prepared)
    return [_write(answers, universe) for answers in prepared]


def check_submission(file: Path, board: Board, questions: Path | None = None) -> Checked:
    """What a board would say to a file that was made anywhere.

    Args:
        file: the file.
        board: the board.
        questions: the board's own file of questions, whose ids are then all that there are.

    Raises:
        DamagedFileError: a file of questions without any.
        OSError: a file cannot be read.
    """
    given = read_board_questions(board, questions) if questions is not None else None
    checked = check_file(board.as_named(file.name), file, given.ids if given is not None else None)
    checked.notes += given.notes if given is not None else ()
    return checked


# --- choosing ---------------------------------------------------------------------------------------------------------


def _jobs(run: SourceRun, boards: Sequence[Board], task: str | None) -> list[tuple[Board, str]]:
    """The boards a run is submitted to, each with the task that holds its answers."""
    if task is not None:
        if task not in run.tasks:
            raise InputError(f"{run.file} has no task {quoted(task)}; {hint(task, run.tasks)}")
        return [(board, task) for board in boards]
    if not boards:
        jobs = [(board, name) for name in run.tasks for board in boards_of(name)]
        rest = [without_board(name) for name in run.tasks if not boards_of(name)]
        if not jobs:
            raise InputError(f"{run.file}: nothing to hand in: {'; '.join(rest) or 'it has no tasks'}")
        run.notes += rest
        return jobs
    jobs = [(board, name) for board in boards for name in run.tasks if name in board.tasks]
    served = {board.name for board, _ in jobs}
    if missing := [board for board in boards if board.name not in served]:
        raise InputError(
            *(
                f"{run.file}: {board.name} wants answers to {' or '.join(board.tasks) or 'a task of your own'}, the "
                f"run has {', '.join(run.tasks)}; name the task that holds them with --task, or name another run"
                for board in missing
            )
        )
    return jobs


def _note_differences(prepared: Iterable[Answers]) -> None:
    """Says of runs for one board what is not the same in all."""
    by_board: dict[str, list[Answers]] = {}
    for answers in prepared:
        by_board.setdefault(answers.board.name, []).append(answers)
    for several in by_board.values():
        for what, of in _COMPARED.items():
            values = {quoted(of(answers)) for answers in several}
            if len(values) > 1:
                for answers in several:
                    answers.checked.notes.append(f"{what} differs between these runs: {' and '.join(sorted(values))}")


_COMPARED = {
    "task": lambda answers: answers.task,
    "lmms-eval": lambda answers: answers.run.lmms_eval,
    "gen_kwargs": lambda answers: answers.run.config.get("gen_kwargs") or None,
    "generation_kwargs": lambda answers: answers.run.task_config(answers.task).get("generation_kwargs"),
    "prompt": lambda answers: answers.run.task_config(answers.task).get("lmms_eval_specific_kwargs"),
}


# --- writing ----------------------------------------------------------------------------------------------------------


def _targets(answers: Answers) -> tuple[Path, Path]:
    """The file of a submission, and the one beside it that says where it comes from."""
    results = answers.run.file
    file = results.with_name(f"{date_of(results)}_submission_{answers.board.name}{answers.board.suffix}")
    return file, file.with_suffix(ABOUT)


def _in_the_way(answers: Answers) -> list[str]:
    """Why the file cannot be put where it belongs. Only one of ours, of this run, is replaced."""
    file, about = _targets(answers)
    try:
        check_writable(file.parent)
    except FolderError as error:
        return [str(error)]
    for path in (file, about):
        if path.is_symlink() or (os.path.lexists(path) and not path.is_file()):
            return [f"{path} is {'a link' if path.is_symlink() else 'no file'}; move it away"]
    if not file.exists() and not about.exists():
        return []
    foreign = [f"{file if file.exists() else about} is not of plam submit and this run, and stays; move it away"]
    try:
        content = read_json(about, "move it away")
    except (OSError, DamagedFileError):
        return foreign
    if content.get("run") != answers.run.file.name or content.get("board") != answers.board.name:
        return foreign
    if file.exists() and sha256_of_file(file) not in (content.get("sha256"), content.get("replaced")):
        return [f"{file} was changed since plam submit wrote it, and stays; move it away"]
    return []


def _write(answers: Answers, universe: Collection[Hashable] | None) -> Submission:
    """The file, read back and checked before it is there, and what says where it comes from."""
    (file, about), board = _targets(answers), answers.board
    before = sha256_of_file(file) if file.exists() else None
    sha256 = ""

    def write(partial: Path) -> None:
        nonlocal sha256
        write_rows(board, answers.rows, partial)
        faults: list[str] = []
        again = read_rows(board, partial, faults)
        faults += check_rows(board, again, universe).problems
        if not faults and not _same(board, answers.rows, [row.values for row in again]):
            faults = ["what was read back is not what was written"]
        if faults:
            raise SubmissionError(*(f"{file}: {fault}" for fault in faults))
        sha256 = sha256_of_file(partial)
        write_json(about, _about(answers, file, sha256, before))

    write_in_one_step(file, write)
    checked = answers.checked
    return Submission(
        board.name,
        answers.task,
        answers.run.file,
        file,
        about,
        len(answers.rows),
        checked.empty,
        sha256,
        tuple(checked.notes),
    )


def _same(board: Board, rows: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rows came back as they were, but for empty cells, which a table has in place of empty text."""
    names = [column.name for column in board.columns]

    def plain(row: Mapping[str, Any]) -> list[Any]:
        return ["" if row.get(name) is None else row[name] for name in names]

    return len(rows) == len(again) and all(plain(one) == plain(other) for one, other in zip(rows, again, strict=True))


def _about(answers: Answers, file: Path, sha256: str, before: str | None) -> dict[str, Any]:
    """Where a submission comes from."""
    run, board = answers.run, answers.board
    provenance = run.block.get("provenance") or {}
    return {
        "format": _FORMAT,
        "board": board.name,
        "title": board.title,
        "file": file.name,
        "sha256": sha256,
        "replaced": before,
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "run": run.file.name,
        "run_sha256": sha256_of_file(run.file),
        "log": answers.log.name,
        "log_sha256": sha256_of_file(answers.log),
        "task": answers.task,
        "split": board.split,
        "answers": len(answers.rows),
        "empty_answers": answers.checked.empty,
        "normalisation": board.answers or None,
        "model": run.block.get("wrapper") or run.config.get("model"),
        "model_args": run.config.get("model_args"),
        "gen_kwargs": run.config.get("gen_kwargs") or None,
        **{key: provenance.get(key) for key in ("checkpoint", "base", "spec", "digest", "commit")},
        **({"ancestor": provenance["ancestor"]} if provenance.get("ancestor") else {}),
        "run_versions": {"lmms-eval": run.lmms_eval, **(provenance.get("versions") or {})},
        "versions": versions(),
        "notes": answers.checked.notes,
    }
