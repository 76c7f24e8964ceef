"""`plam submit`: files for leaderboards, from runs that are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plam_eval.cli.app import app
from plam_eval.cli.options import Json, Quiet, example
from plam_eval.cli.speaking import speaking
from plam_eval.errors import InputError
from plam_eval.terminal import PlainTable, Terminal, one_line, text

if TYPE_CHECKING:
    from plam_eval.publishing.submission import Submission


def _complete_board(incomplete: str) -> list[str]:
    """Names of boards that begin with `incomplete`."""
    from plam_eval.publishing.boards import BOARDS

    return [name for name in BOARDS if name.startswith(incomplete)]


@app.command(
    short_help="Files for leaderboards, from finished runs.",
    epilog=example(
        """plam submit runs/plain runs/merged --board docvqa
  plam submit --check answers.json --board vqav2"""
    ),
)
def submit(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders (of each the newest run) or results files.")
    ] = None,
    board: Annotated[
        list[str] | None,
        typer.Option(
            help="Board to write for; may be repeated. By default all that the runs' tasks are for.",
            autocompletion=_complete_board,
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task whose log holds the answers, of another name.")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="The board's own file of questions: its ids are then all that there are.")
    ] = None,
    blank_invalid: Annotated[
        bool, typer.Option("--blank-invalid", help="Write answers outside the board's form as empty ones, and say so.")
    ] = False,
    check: Annotated[Path | None, typer.Option(help="Check a file that was made elsewhere, and write nothing.")] = None,
    boards: Annotated[bool, typer.Option("--boards", help="List the boards, and what is known of each.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the files that leaderboards take, each beside the results it is made of, after checking every answer."""
    from plam_eval import api

    modes = {"run folders": bool(runs), "--check": check is not None, "--boards": boards}
    given = [name for name, chosen in modes.items() if chosen]
    fine = True
    with speaking(as_json, quiet) as console:
        if len(given) != 1:
            raise InputError(
                f"{' and '.join(given)} exclude each other"
                if given
                else "give run folders to write files of, --check FILE, or --boards"
            )
        if boards:
            _list(console)
        elif check is not None:
            if idle := [name for name, used in (("--task", task), ("--blank-invalid", blank_invalid)) if used]:
                raise InputError(f"{' and '.join(idle)} with --check, which changes no file: leave it out")
            fine = _check(console, check, board or [], questions)
        else:
            written = api.submit(
                runs or [], board=board or None, task=task, questions=questions, blank_invalid=blank_invalid
            )
            _say(console, written)
    if not fine:
        raise typer.Exit(1)


def _say(console: Terminal, written: list[Submission]) -> None:
    from plam_eval.publishing.boards import BOARDS

    console.data = {"submissions": [submission.to_dict() for submission in written]}
    for submission in written:
        console.say(
            f"{submission.file}: {submission.rows} answers to {submission.task} for {submission.board}, checked"
        )
        console.warn(submission.notes)
        record = BOARDS[submission.board]
        console.say(f"  server: {record.server}: {record.standing} (read {record.read_on})")
        for rule in record.rules:
            console.say(f"  rule: {rule}")


def _check(console: Terminal, file: Path, boards: list[str], questions: Path | None) -> bool:
    from plam_eval import api

    if len(boards) != 1:
        raise InputError("--check needs the board that the file is for: one --board")
    checked = api.check_submission(file, boards[0], questions=questions)
    console.data = {"file": str(file), "board": boards[0], **vars(checked)}
    console.warn(checked.notes)
    for problem in checked.problems:
        console.insist(text(f"{file}: {problem}", "red"))
    if checked.problems:
        console.say(f"{boards[0]} would refuse it: {len(checked.problems)} problem(s), {checked.rows} rows read")
    else:
        console.say(f"{file}: {checked.rows} answers, fit for {boards[0]}")
    return not checked.problems


def _list(console: Terminal) -> None:
    from plam_eval.publishing.boards import BOARDS, SELF_REPORTED

    table = PlainTable(title="Boards", title_justify="left")
    for name in ("board", "tasks", "file", "questions", "server"):
        table.add_column(name, overflow="fold")
    for board in BOARDS.values():
        count = f"{board.questions:,}" if board.questions is not None else "not known"
        table.add_row(board.name, " ".join(board.tasks) or "none", board.form, count, board.server)
    console.print(table)
    for board in BOARDS.values():
        console.say(one_line(f"{board.name}: {board.standing} (read {board.read_on})"))
    for benchmark in SELF_REPORTED:
        console.say(f"{' '.join(benchmark.tasks)}: {benchmark.title} {benchmark.say}")
    console.data = {
        "boards": [
            {
                "name": board.name,
                "title": board.title,
                "tasks": board.tasks,
                "form": board.form,
                "columns": [column.name for column in board.columns],
                "questions": board.questions,
                "split": board.split,
                "server": board.server,
                "standing": board.standing,
                "rules": board.rules,
                "sources": board.sources,
                "read_on": board.read_on,
            }
            for board in BOARDS.values()
        ],
        "self_reported": list(SELF_REPORTED),
    }
