"""Every path of this project that runs on a device, checked on random checkpoints: `make gpu`.

Needs a Python with accelerate, pydantic, torch and transformers (`tools/gpu_check/needed.py`), for the checks of
lmms-eval and vLLM these as well, no network. On a GPU the decoders have the shapes of published 7B models (the first
of `--families` all of its layers, the others `--layers`), on a CPU 64 dimensions and four layers. Writes `gpu.md` and
`gpu.json` into the output folder after each check, goes on behind a check that fails, and exits with 1 where one did or
all were skipped, with 2 and nothing written where an option cannot be followed.
What cannot be checked here is in the table as skipped, with the reason.

What may differ on a GPU, and by how much, before it is a fault: bits of a merge not at all, nor answers in float32. An
answer in bfloat16 whose first other token was within `probes.TIES` times what another batch size or kernel does to a
logit (itself bounded by `probes.MOST_STEPS`); through lmms-eval and vLLM, where no logits are at hand,
`harness.MOST_FLIPS` of the answers; rows of attention by `probes.ROWS_APART`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tools.gpu_check import needed

if needed.missing():
    sys.exit(needed.message())
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers

from plam_eval import threads
from tools.gpu_check.board import Board, Figures
from tools.gpu_check.harness import check_harness, check_vllm
from tools.gpu_check.merges import check_bf16, check_places, check_rates, check_rules
from tools.gpu_check.pairs import FAMILIES, Pair, write_pair
from tools.gpu_check.probes import check_against_cpu, check_probes
from tools.gpu_check.session import Session

RATES, PAIR = "rates", "a random pair"
"""Names of what precedes the checks: by these alone nothing of this project is checked."""
GROUPS = ("merges", "probes", "cpu", "harness", "vllm")


def main(words: list[str] | None = None) -> int:
    """Make the checks; the exit status.

    Args:
        words: of the command line; its own by default.
    """
    options = _options(words)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = options.device
    size = options.size or ("7b" if device.startswith("cuda") else "pico")
    board = Board(options.output, device, size, options.time_limit, options.without)
    if not board.is_cuda:
        threads.use(0)
    with tempfile.TemporaryDirectory(prefix="plam-gpu-", dir=options.scratch) as folder:
        board.check("machine", RATES, check_rates, board)
        if "harness" in options.groups:
            check_harness(board, Path(folder) / "harness")
        if "vllm" in options.groups:
            check_vllm(board, Path(folder) / "harness")
        for number, family in enumerate(options.families):
            if "cpu" in options.groups and board.is_cuda:
                _with_pair(board, Path(folder) / f"{family}-pico", family, "pico", None, ["cpu"])
            layers = options.layers if number or options.few else None
            groups = [group for group in ("merges", "probes") if group in options.groups]
            _with_pair(board, Path(folder) / family, family, size, layers if size == "7b" else None, groups)
    board.write()
    print((board.output / "gpu.md").read_text(encoding="utf-8"))
    if not board.faults and not any(row.verdict == "ok" for row in board.rows if row.name not in (RATES, PAIR)):
        print("gpu_check: nothing was checked: every check was skipped", file=sys.stderr)
        return 1
    return 1 if board.faults else 0


def _with_pair(board: Board, folder: Path, family: str, size: str, layers: int | None, groups: list[str]) -> None:
    made: list[Pair] = []
    shape = FAMILIES[family].shape(size, layers)

    def make() -> Figures:
        made.append(write_pair(family, shape, folder, board.device))
        return {"layers": shape.layers, "hidden": shape.hidden, "GB": made[0].nbytes / 1e9}

    if not groups or not board.check(family if groups != ["cpu"] else f"{family}, pico", PAIR, make):
        return
    _check_pair(Session(made[0], board, folder), groups)


def _check_pair(session: Session, groups: Collection[str]) -> None:
    if "cpu" in groups:
        check_against_cpu(session)
    if "merges" in groups:
        check_bf16(session)
    if "probes" in groups:
        check_probes(session, torch.bfloat16)
    if "merges" in groups:
        check_rules(session, torch.float32, "weighted_sum", "noise")
    if "probes" in groups:
        check_probes(session, torch.float32)
    if "merges" in groups:
        check_rules(session, torch.float16, "weighted_sum", "noise")
        check_places(session)
    session.drop()


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/gpu"))
    parser.add_argument("--device", help="default: cuda:0 where there is a GPU, otherwise cpu")
    parser.add_argument("--size", choices=["7b", "pico"], help="default: 7b on a GPU, otherwise pico")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--layers", type=int, default=8, help="of all but the first family, at 7b (default: 8)")
    parser.add_argument("--few", action="store_true", help="of the first family, too")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--scratch", type=Path, help="folder with room for a pair and an export (45 GB at 7b)")
    parser.add_argument("--time-limit", type=float, default=float("inf"), help="seconds; no check is begun behind it")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="WORD", help="leave out checks with it in their name"
    )
    options = parser.parse_args(words)
    try:
        options.device = _device(options.device)
    except ValueError as error:
        parser.error(f"--device {error}")
    known = known_names()
    if bad := [word for word in options.without if not word or not any(word in name for name in known)]:
        parser.error(f"--without {bad[0]!r}: in no check's name; expected a part of one: {'; '.join(known)}")
    for option, folder in (("--output", options.output), ("--scratch", options.scratch)):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"{option} {folder}: {error.strerror}; expected a folder, or a place for one")
    return options


class _Names:
    """A board that makes no check, and a session of no pair: what `known_names` hands to the checks."""

    def __init__(self) -> None:
        self.names = [RATES, PAIR]
        self.board, self.layers, self.pair = self, FAMILIES["llava"].shape("pico").layers, self
        self.family = "llava"

    def check(self, group: str, name: str, *work: Any) -> bool:
        self.names.append(name)
        return True

    def spec(self, *given: Any, **named: Any) -> None:
        """None is merged."""

    def drop(self) -> None:
        """None is held."""


def known_names() -> list[str]:
    """Of every check that there is, whatever is here and whichever groups are asked for."""
    told: Any = _Names()
    check_harness(told, Path())
    check_vllm(told, Path())
    _check_pair(told, GROUPS)
    return list(dict.fromkeys(told.names))


def _device(word: str | None) -> str:
    """The device that `--device` names, or the first GPU, or the CPU; raises ValueError where it is not here."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if word is None:
        return "cuda:0" if cards else "cpu"
    known = ["cpu", *(["cuda"] if cards else []), *(f"cuda:{number}" for number in range(cards))]
    if word not in known:
        why = "" if cards else " (torch finds no GPU that it can use)"
        raise ValueError(f"{word!r}: expected one of {', '.join(known)}{why}")
    return word


if __name__ == "__main__":
    sys.exit(main())
