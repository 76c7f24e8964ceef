"""What leaves the house: merged checkpoints, and files for leaderboards."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.api.shared import Words, words_of
from plam_eval.arguments import NAME, PATH, TEXT, WORDS, paths, takes
from plam_eval.errors import InputError
from plam_eval.spec import PlateauSpec, load_spec

if TYPE_CHECKING:
    from plam_eval.publishing.board_checks import Checked
    from plam_eval.publishing.checkpoint import Export
    from plam_eval.publishing.submission import Submission


@takes(model=NAME, output=PATH, base=NAME)
def export(
    model: str | Path | None,
    plateau: str | Path | Mapping[str, Any] | PlateauSpec | None,
    output: str | Path,
    *,
    base: str | Path | None = None,
    layers: str | Sequence[int] | None = None,
    modules: str | Sequence[str] | None = None,
    model_weight: float | None = None,
    base_weight: float | None = None,
    rule: str | None = None,
    seed: int | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a merged checkpoint in the MLLM's own layout, which loads wherever the MLLM itself does.

    Files that nothing is merged into are copied byte for byte; merged tensors have the bits of `merge` on a model that
    was loaded in their stored dtype. Nothing is loaded into a model: memory is that of two tensors.

    Args:
        model: folder or hub id of the MLLM; the spec's own if None.
        plateau: as for `merge`; "none" with `base` and `layers` makes one.
        output: the new folder. It has this name only once it is complete.
        base: as for `merge`.
        layers: as for `merge`.
        modules: as for `merge`.
        model_weight: as for `merge`.
        base_weight: as for `merge`.
        rule: as for `merge`.
        seed: as for `merge`.
        overwrite: replace an export that is there, once the new one is complete.

    Returns:
        Its folder and its record: SHA-256 of every file that was read or written, the merge, notes for readers.

    Raises:
        SpecError: listing every problem of the spec. InputError: there is nothing to merge, or no model is named.
            ExportError: listing every problem of the checkpoints and the output; nothing was written. FolderError:
            another process writes there.
    """
    overrides = {
        "base": None if base is None else str(base),
        "layers": layers,
        "modules": modules,
        "model_weight": model_weight,
        "base_weight": base_weight,
        "rule": rule,
        "seed": seed,
    }
    spec = load_spec(plateau, overrides)
    if spec is None:
        raise InputError("plateau none: nothing would be merged, and the plain model is there already; name a plateau")
    name = model if model is not None else spec.model
    if name is None:
        raise InputError(f"plateau {plateau} names no model; give one with --model")

    from plam_eval.publishing.checkpoint import export_checkpoint

    words = ["plam", "export", "--model", str(name)]
    if plateau is None or isinstance(plateau, (str, Path)):
        given = {"plateau": plateau, **overrides}
        words += [word for key, value in given.items() if value is not None for word in _option(key, value)]
    else:
        words += ["--plateau", "plateau.yaml"]  # as the export has it, overrides and all
    return export_checkpoint(
        name, spec, output, overwrite=overwrite, command=shlex.join([*words, "--output", str(output)])
    )


def _option(key: str, value: Any) -> tuple[str, str]:
    """An option of the command line, and its value as that takes it."""
    if not isinstance(value, str) and isinstance(value, Sequence):
        value = (":" if key == "layers" else "+").join(map(str, value))
    return f"--{key.replace('_', '-')}", str(value)


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
    from plam_eval.publishing import board_files, submission

    record = submission.board_named(board)
    universe = board_files.read_questions(record, Path(questions)) if questions is not None else None
    return board_files.check_file(record, Path(file), universe)
