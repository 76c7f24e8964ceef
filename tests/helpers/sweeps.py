"""A small sweep of the embedded pair, and the command line."""

from __future__ import annotations

from typer.testing import CliRunner

from plam_eval import cli
from tests.helpers.paths import PAIR

ARGUMENTS = f"pretrained={PAIR}/mllm,device=cpu,dtype=float32"
SPEC = f"{ARGUMENTS},plateau=demo,base={PAIR}/base"
GRID = {"layers": "6:8,all", "weights": "0.3+1.2", "controls": "self_scale,noise"}
CELLS = 1 + 2 * 3


def plam(*arguments: str, exit_code: int = 0) -> str:
    """What `plam` prints for these words; it ends with `exit_code`."""
    done = CliRunner().invoke(cli.app, list(arguments))
    assert done.exit_code == exit_code, f"{done.output}{done.exception!r}"
    return done.output
