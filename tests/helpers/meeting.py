"""`python -m tests.helpers.meeting FOLDER RUNG WORDS...`: `plam WORDS...`, a search that is held in its first proposal.

It stops before it answers the RUNG-th part of the proposal's documents, from 1 on, says so (`FOLDER/at.PROCESS`), and
goes on when `FOLDER/go` is there. What it has answered it notes in `FOLDER/answered.PROCESS`, a line of JSON for each
setting and part.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plam_eval.evaluation.search.answers import setting_of
from plam_eval.evaluation.search.evaluator import _Resident
from plam_eval.evaluation.search.runner import _Search
from plam_eval.harness.requests import Key
from plam_eval.spec import PlateauSpec

PATIENCE = 300.0  # seconds: who started it may have ended


def hold(folder: Path, rung: int) -> None:
    """Have the searches of this process held, and note what they answer.

    Args:
        folder: where it is told and noted.
        rung: before which it is held.
    """
    answers, take = _Resident.answers, _Search.take
    parts: list[int] = []  # of proposals; none before the first

    def taking(search: Any, trial: Any) -> None:
        if not parts:
            parts.append(0)
        take(search, trial)

    def answering(model: Any, spec: PlateauSpec | None, keys: Sequence[Key]) -> Any:
        if parts:
            parts[0] += 1
            if parts[0] == rung:
                wait(folder)
        found = answers(model, spec, keys)
        with (folder / f"answered.{os.getpid()}").open("a") as file:
            file.write(json.dumps([setting_of(spec), list(keys)]) + "\n")
        return found

    _Search.take, _Resident.answers = taking, answering  # type: ignore[method-assign,assignment]


def wait(folder: Path) -> None:
    """Until all may go on."""
    (folder / f"at.{os.getpid()}").touch()
    deadline = time.monotonic() + PATIENCE
    while not (folder / "go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder}/go did not come")
        time.sleep(0.02)


def held(folder: Path) -> list[int]:
    """The processes that have come to where they are held."""
    return [int(file.suffix[1:]) for file in folder.glob("at.*")]


def answered(folder: Path) -> list[tuple[str, Key]]:
    """Setting and document of every answer, of all processes."""
    lines = [json.loads(line) for file in folder.glob("answered.*") for line in file.read_text().splitlines()]
    return [(setting, (task, doc_id)) for setting, keys in lines for task, doc_id in keys]


if __name__ == "__main__":
    hold(Path(sys.argv[1]), int(sys.argv[2]))
    del sys.argv[1:3]
    from plam_eval.cli import main

    main()
