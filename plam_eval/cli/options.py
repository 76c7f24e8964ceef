"""Options that several commands have, and what a shell completes them by."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

MOST_DOCUMENTS = 2**31 - 1  # of a task, that an option takes


def example(command: str) -> str:
    """The end of a command's help: a call whose lines stay as they are, indented by two spaces from the second on.

    Args:
        command: the call, as it is typed.
    """
    return f"\b\nExample:\n  {command}"


DRY_RUN = 20
"""Documents that a dry run answers where no number is given."""


class DryRunCommand(TyperCommand):
    """Takes `--dry-run` without a number, too. What follows it may be the file of a sweep."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's, of `args` with the number that is meant.

        Args:
            ctx: typer's.
            args: as they were typed.
        """
        return super().parse_args(ctx, filled(args, "--dry-run", str(DRY_RUN), _NUMBER))


_NUMBER = re.compile(r"-?\d+$", re.ASCII)


def filled(args: list[str], option: str, value: str, fits: re.Pattern[str]) -> list[str]:
    """The words of a command line, an option without a value being given one.

    Args:
        args: the words.
        option: its name.
        value: what it means alone.
        fits: how a value begins; another word behind the option is none of it.
    """
    behind = [*args, ""][1:]
    return [
        f"{word}={value}" if word == option and not fits.match(after) else word
        for word, after in zip(args, behind, strict=True)
    ]


def complete_wrapper(incomplete: str) -> list[str]:
    """Our wrappers' ids that begin with `incomplete`."""
    from plam_eval.harness.registry import WRAPPERS

    return [name for name in WRAPPERS if name.startswith(incomplete)]


def complete_spec(incomplete: str) -> list[str]:
    """Packaged specs, folders and YAML files that begin with `incomplete`."""
    from plam_eval.spec import packaged_specs

    folder, _, start = incomplete.rpartition("/")
    paths = sorted(Path(folder or ("/" if incomplete.startswith("/") else ".")).glob(f"{start}*"))
    files = [f"{path}/" if path.is_dir() else str(path) for path in paths if path.is_dir() or path.suffix == ".yaml"]
    return [*(name for name in packaged_specs() if name.startswith(incomplete)), *files]


Json = Annotated[
    bool, typer.Option("--json", help="The result as JSON on standard output; all else on standard error.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Nothing but warnings and errors, on standard error (and --json).")
]
Model = Annotated[
    str | None,
    typer.Option(help="One of our wrappers, such as plam_llava or plam_vllm.", autocompletion=complete_wrapper),
]
ModelArgs = Annotated[str | None, typer.Option("--model_args", "--model-args", help="As for lmms-eval: key=value,...")]
Plateau = Annotated[
    str | None,
    typer.Option(help="Plateau spec: packaged name, file, owner/repo[:FILE] on the hub.", autocompletion=complete_spec),
]
MllmCheckpoint = Annotated[str | None, typer.Option(help="MLLM: folder or hub id; the spec's own if left out.")]
Base = Annotated[str | None, typer.Option(help="Override of the base LLM.")]
Layers = Annotated[str | None, typer.Option(help="Override of the layers: START:END, or a set such as 3+9+20:24.")]
Modules = Annotated[str | None, typer.Option(help="Override of the modules, joined by +.")]
ModelWeight = Annotated[
    str | None, typer.Option(help="Override of the MLLM's weight; 0.9:0.5 is a ramp over the layers.")
]
BaseWeight = Annotated[str | None, typer.Option(help="Override of the base LLM's weight, likewise.")]
Rule = Annotated[str | None, typer.Option(help="Override of the merge rule.")]
Ancestor = Annotated[str | None, typer.Option(help="Override of what MLLM and base LLM were both tuned from.")]
Parameters = Annotated[
    str | None, typer.Option(help="Override of the rule's parameters, such as density:0.2; several joined by +.")
]
Seed = Annotated[str | None, typer.Option(help="Override of the seed, of a rule that draws.")]
Tasks = Annotated[str | None, typer.Option(help="Task or group names, separated by commas.")]
Limit = Annotated[
    int | None,
    typer.Option(help="Only the first documents of each task, to try things out.", min=1, max=MOST_DOCUMENTS),
]
Sample = Annotated[
    int | None,
    typer.Option(
        help="So many documents of each task, drawn by category and in whole clusters.", min=1, max=MOST_DOCUMENTS
    ),
]
SampleSeed = Annotated[int | None, typer.Option("--seed", help="Of the drawing of documents; 0 by default.", min=0)]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave out what was looked at: folder of a scan, sweep or run, or scan, the plateau's; may be repeated."
    ),
]
Offset = Annotated[
    int | None,
    typer.Option(help="Leave out as many documents of each task; none by default.", min=0, max=MOST_DOCUMENTS),
]
GenKwargs = Annotated[
    str | None, typer.Option("--gen_kwargs", "--gen-kwargs", help="Generation settings over the tasks' own.")
]
IncludePath = Annotated[Path | None, typer.Option("--include_path", "--include-path", help="Folder of further tasks.")]
BatchSize = Annotated[
    int | None, typer.Option("--batch_size", "--batch-size", help="As for lmms-eval; 1 by default.", min=1)
]
ForceSimple = Annotated[
    bool | None, typer.Option("--force_simple/--no-force_simple", help="The wrapper's simple mode.", show_default=False)
]
Stock = Annotated[bool, typer.Option("--stock/--no-stock", help="Also what lmms-eval itself reports, with intervals.")]
DryRun = Annotated[
    int | None,
    typer.Option(
        "--dry-run",
        help="Answer so many documents (20 without a number) and say what all would take; 0 loads nothing. Nothing is "
        "written.",
        metavar="[INTEGER]",
        min=0,
    ),
]
WandbArgs = Annotated[
    str | None,
    typer.Option(
        "--wandb_args", "--wandb-args", help="Log the result by wandb.init(key=value,...), as project=plam,name=first."
    ),
]
