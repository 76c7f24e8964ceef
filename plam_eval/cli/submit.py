"""`plam submit`: files for leaderboards, results for the hub, and bundles for a paper, from runs that are there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plam_eval.cli import bundles, hub_results
from plam_eval.cli.app import app
from plam_eval.cli.options import Json, Quiet, example
from plam_eval.cli.speaking import quiet_logs, speaking
from plam_eval.errors import InputError
from plam_eval.terminal import PlainTable, Terminal, one_line, text

if TYPE_CHECKING:
    from plam_eval.publishing.boards.submission import Submission


def _complete_board(incomplete: str) -> list[str]:
    """Names of boards that begin with `incomplete`."""
    from plam_eval.publishing.boards.table import BOARDS

    return [name for name in BOARDS if name.startswith(incomplete)]


@app.command(
    short_help="Files for leaderboards and papers, from finished runs.",
    epilog=example(
        """plam submit runs/plain runs/merged --board docvqa
  plam submit --check answers.json --board vqav2
  plam submit runs/merged --hub me/merged
  plam submit runs/plain runs/merged --bundle appendix.zip
  plam submit --verify appendix.zip"""
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
    bundle: Annotated[
        Path | None, typer.Option(help="Write the runs (sweeps, comparisons, scans) into one .zip for a paper instead.")
    ] = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="With --bundle: leave out commits and free text that name authors.")
    ] = False,
    hide: Annotated[
        list[str] | None, typer.Option(help="With --bundle: a word to leave out of every record; may be repeated.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Recompute a bundle's metrics from its answers, and compare its hashes.")
    ] = None,
    hub: Annotated[
        str | None,
        typer.Option(help="Show the results as files of this model's repository on the hub.", metavar="REPO"),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(help="With --hub: fraction, percent or own (the task's); else the benchmark's board is asked."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="With --hub: the benchmark's dataset on the hub, where it is not known.")
    ] = None,
    task_id: Annotated[
        str | None, typer.Option("--task-id", help="With --dataset: the task in it, as its eval.yaml names it.")
    ] = None,
    source_url: Annotated[
        str | None, typer.Option("--source-url", help="With --hub: where readers find more of the runs.")
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="With --hub: push the files that are shown.")] = False,
    boards: Annotated[bool, typer.Option("--boards", help="List the boards, and what is known of each.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the files that leaderboards take, each beside the results it is made of, after checking every answer."""
    from plam_eval import api

    modes = {
        "run folders": bool(runs) or bundle is not None or hub is not None,
        "--check": check is not None,
        "--boards": boards,
        "--verify": verify is not None,
    }
    given = [name for name, chosen in modes.items() if chosen]
    fine = True
    with speaking(as_json, quiet) as console:
        if len(given) != 1:
            raise InputError(
                f"{', '.join(given[:-1])} and {given[-1]} exclude each other"
                if given
                else "give run folders to write files of, --check FILE, --verify FILE, or --boards"
            )
        if (anonymous or hide) and bundle is None:
            raise InputError("--anonymous and --hide are of --bundle FILE; give it, or leave them out")
        of_hub: dict[str, Any] = {
            "scale": scale,
            "dataset": dataset,
            "task_id": task_id,
            "source_url": source_url,
            "push": push,
        }
        others = {"--board": board, "--questions": questions, "--blank-invalid": blank_invalid, "--bundle": bundle}
        _check_hub(hub, of_hub, others)
        if boards:
            _list(console)
        elif hub is not None:
            hub_results.publish(console, runs or [], hub, task=task, **of_hub)
        elif bundle is not None or verify is not None:
            own = {"--board": board, "--task": task, "--questions": questions, "--blank-invalid": blank_invalid}
            if idle := [name for name, used in own.items() if used]:
                raise InputError(f"{' and '.join(idle)}: of leaderboards, not of bundles; leave it out")
            quiet_logs()
            if verify is not None:
                fine = bundles.verify(console, verify)
            elif bundle is not None:
                bundles.write_bundle(console, runs or [], bundle, anonymous, hide or [])
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


def _check_hub(hub: str | None, of_hub: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Raises InputError for options of --hub without it, and for others with it."""
    idle = [f"--{name.replace('_', '-')}" for name, value in of_hub.items() if value and hub is None]
    if idle:
        raise InputError(f"{' and '.join(idle)}: of --hub REPO; give it, or leave them out")
    if wrong := [name for name, value in others.items() if value and hub is not None]:
        raise InputError(f"{' and '.join(wrong)} with --hub, which writes no such file: leave it out")


def _say(console: Terminal, written: list[Submission]) -> None:
    from plam_eval.publishing.boards.table import BOARDS

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
    console.data = {"file": str(file), "board": boards[0], **checked.to_dict()}
    console.warn(checked.notes)
    for problem in checked.problems:
        console.insist(text(f"{file}: {problem}", "red"))
    if checked.problems:
        console.say(f"{boards[0]} would refuse it: {len(checked.problems)} problem(s), {checked.rows} rows read")
    else:
        console.say(f"{file}: {checked.rows} answers, fit for {boards[0]}")
    return not checked.problems


def _list(console: Terminal) -> None:
    from plam_eval.publishing.boards.table import BOARDS, SELF_REPORTED

    table = PlainTable(title="Boards", title_justify="left")
    for name in ("board", "tasks", "file", "questions", "server"):
        table.add_column(name, overflow="fold")
    for board in BOARDS.values():
        count = f"{board.questions:,}" if board.questions is not None else "not known"
        table.add_row(board.name, " ".join(board.tasks) or "your own (--task)", board.form, count, board.server)
    console.print(table)
    standings: dict[str, list[str]] = {}
    for board in BOARDS.values():
        standings.setdefault(f"{board.standing} (read {board.read_on})", []).append(board.name)
    for standing, names in standings.items():
        console.say(one_line(f"{', '.join(names)}: {standing}"))
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
