"""What leaves the house: files for leaderboards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from plam_eval.api.shared import Words, words_of
from plam_eval.arguments import PATH, TEXT, WORDS, paths, takes
from plam_eval.errors import InputError

if TYPE_CHECKING:
    from plam_eval.publishing.board_checks import Checked
    from plam_eval.publishing.submission import Submission


@takes(runs=paths, board=WORDS, task=TEXT, questions=PATH)
def submit(
    runs: str | Path | Iterable[str | Path],
    *,
    board: Words | None = None,
    task: str | None = None,
    questions: str | Path | None = None,
    blank_invalid: bool = False,
) -> list[Submission]:
    """Write the files that leaderboards take, out of runs' sample logs, each beside its run's results.

    Every fault of every run is told at once, and nothing is written while there is one. Beside each file lies one that
    says what it was made of (`.about.json`).

    Args:
        runs: results files of lmms-eval (with `--log_samples`), of our wrappers or not, or folders, of each the newest.
        board: names of boards; by default every one that the runs' tasks are for.
        task: whose answers they are, where the log of another task than the board's own has them.
        questions: the board's own file of questions, whose ids are then all that there are.
        blank_invalid: write answers outside a board's form as empty ones, which it counts as wrong, and say how many.

    Returns:
        What was written: `file`, `about`, `rows`, `empty`, `sha256`, `notes`.

    Raises:
        InputError: no runs, an unknown board, or no board for any task.
        SubmissionError: every reason why the answers cannot be handed in.
    """
    from plam_eval.publishing import submission

    folders = [Path(folder) for folder in paths(runs)]
    if not folders:
        raise InputError("give run folders, or results files, to hand in")
    boards = [submission.board_named(name) for name in dict.fromkeys(words_of(board))] if board is not None else []
    return submission.submit(
        folders,
        boards=boards,
        task=task,
        questions=Path(questions) if questions is not None else None,
        blank_invalid=blank_invalid,
    )


@takes(file=PATH, board=TEXT, questions=PATH)
def check_submission(file: str | Path, board: str, *, questions: str | Path | None = None) -> Checked:
    """What a leaderboard would say to a file that was made anywhere.

    Args:
        file: the file.
        board: name of the board.
        questions: the board's own file of questions, whose ids are then all that there are.

    Returns:
        `problems`, each with the lines or rows that have it (none: the file is whole), `notes`, `rows` and `empty`.

    Raises:
        InputError: an unknown board. DamagedFileError: a file of questions without any. OSError: no such file.
    """
    from plam_eval.publishing import board_files, question_tables, submission

    record = submission.board_named(board)
    given = question_tables.read_board_questions(record, Path(questions)) if questions is not None else None
    checked = board_files.check_file(record, Path(file), given.ids if given is not None else None)
    checked.notes += given.notes if given is not None else ()
    return checked
