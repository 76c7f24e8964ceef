"""What `plam submit --hub` says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plam_eval.terminal import Terminal, text


def publish(console: Terminal, runs: Sequence[Path], repository: str, **options: Any) -> None:
    """Show the files of a model's repository that hold the results of some runs, and push them if that was asked for.

    Args:
        console: where.
        runs: folders or results files.
        repository: owner/name.
        **options: as `api.hub_results` takes them.
    """
    from plam_eval import api

    done = api.hub_results(runs, repository, **options)
    console.data = done.to_dict()
    for path, content in done.files.items():
        console.say(text(f"{path} in {repository}:", "bold"))
        console.say(content.rstrip() + "\n")
    for line in done.replaced:
        console.warn([line])
    for note in done.notes:
        console.say(f"note: {note}")
    if done.pushed:
        console.say(f"Pushed: {done.pushed}")
    else:
        console.say("Nothing was pushed; the same command with --push does it.")
