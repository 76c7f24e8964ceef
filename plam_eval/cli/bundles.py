"""What `plam submit --bundle` and `plam submit --verify` say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plam_eval.terminal import PlainTable, Terminal, text

if TYPE_CHECKING:
    from plam_eval.publishing.bundle.verification import Verification

_SHOWN = 50  # lines of a kind; --json has all


def write_bundle(console: Terminal, runs: Sequence[Path], file: Path, anonymous: bool, hide: Sequence[str]) -> None:
    """Write a bundle, and say what is in it and what was left out.

    Args:
        console: where.
        runs: folders.
        file: the archive.
        anonymous: as in `api.bundle`.
        hide: as in `api.bundle`.
    """
    from plam_eval import api

    written = api.bundle(runs, file, anonymous=anonymous, hide=list(hide))
    console.data = written.to_dict()
    manifest = written.manifest
    for run in manifest.runs:
        documents = sum(task.documents for task in run.tasks.values())
        console.say(f"{run.label}: {documents} answers to {', '.join(run.tasks)}")
    changed = {name: entry.left_out for name, entry in manifest.files.items() if entry.left_out}
    kinds = dict.fromkeys(why for left_out in changed.values() for why in left_out.values())
    if changed:
        fields = sum(map(len, changed.values()))
        where = f"{'1 file' if len(changed) == 1 else f'{len(changed)} files'}, {fields} field{'s' * (fields > 1)}"
        console.say(f"Left out of {where}: {'; '.join(kinds)}. manifest.json names each.")
    console.warn(manifest.notes)
    if anonymous:
        console.warn(
            ["names of models and datasets on the hub stay in it; an owner that is yours is left out by --hide"]
        )
    console.say(f"{written.path}: {len(manifest.files) + 1} files, {written.bytes} bytes")
    console.say(f"SHA-256, to be printed beside it: {written.sha256}")


def verify(console: Terminal, file: Path) -> bool:
    """Verify a bundle, and say of each task what was recomputed; gives whether nothing differs.

    Args:
        console: where.
        file: the archive.
    """
    from plam_eval import api

    done = api.verify_bundle(file)
    console.data = done.to_dict()
    console.print(_table(done))
    differences = done.differences()
    for line in differences[:_SHOWN]:
        console.insist(text(line, "red"))
    if len(differences) > _SHOWN:
        console.insist(f"and {len(differences) - _SHOWN} more differences; --json has all")
    console.warn(f"not checked: {line}" for line in done.unverified[:_SHOWN])
    if len(done.unverified) > _SHOWN:
        console.warn([f"{len(done.unverified) - _SHOWN} more were not checked; --json has all"])
    if differences:
        verdict = f"does not hold: {len(differences)} difference(s)"
    elif done.unverified:
        verdict = f"what could be checked holds; {len(done.unverified)} thing(s) could not be, see above"
    else:
        verdict = "holds: every hash, metric and answer"
    console.say(f"{file}: {verdict}")
    console.say(f"SHA-256: {done.sha256}; compare it with the one that was published")
    return done.holds


def _table(done: Verification) -> PlainTable:
    caption = (
        "Metrics: how many are equal. Answers: scored again by the tasks' own code: on the dataset where it is on "
        "this machine, else from what the log holds of each document."
    )
    table = PlainTable(title="Recomputed", title_justify="left", caption=caption)
    for name in ("run", "task", "metrics", "answers", "how"):
        table.add_column(name, overflow="fold")
    for answers in done.answers:
        metrics = [each for each in done.metrics if (each.run, each.task) == (answers.run, answers.task)]
        equal = sum(each.equal is True for each in metrics)
        fine = equal == len(metrics)
        table.add_row(
            answers.run,
            answers.task,
            text(f"{equal} of {len(metrics)}", "" if fine else "red"),
            text(f"{answers.checked} of {answers.documents}", "red" if answers.differing else ""),
            answers.how,
        )
    return table
