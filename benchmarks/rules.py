"""What each merge rule costs, side by side in one run: `python benchmarks/rules.py`.

One tensor of random weights, WIDTH x WIDTH, goes through `merge_tensor`, as in every merge: operands to working
precision, the rule, its checks, one rounding. The rules take turns after a round that is not counted; the smallest time
of each stands in the table, all rounds in `--json`.

- `float32`, `bfloat16`: CPU seconds where the checkpoints are stored so; `times`: over those of `weighted_sum`.
- `--memory` measures instead what a rule needs at its peak beside the stored tensors, in tensors of its working
  precision, next to what its record declares, which is what `plam doctor` goes by. The process starts itself anew with
  an allocator that gives freed memory back.

Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

import measured
import torch
from torch import Tensor

from plam_eval.merging.arithmetic import Buffers, Operand, merge_tensor
from plam_eval.rules import RULES, WEIGHTED_SUM
from plam_eval.spec import PlateauSpec, load_spec

KEY = (0, "self_attn.q_proj.weight")
AT_ONCE = "MALLOC_MMAP_THRESHOLD_"
"""Variable of glibc: from so many bytes on, memory that is freed goes back to the system."""


def spec_of(rule: str) -> PlateauSpec:
    """A spec of the rule with its defaults, in the middle of their limits where it has none.

    Args:
        rule: its name.
    """
    parameters = {p.name: min(0.5, p.most) for p in RULES[rule].parameters if p.default is None}
    overrides = {"base": "base", "layers": "0:1", "rule": rule, "ancestor": "ancestor"}
    words = "+".join(f"{name}:{value}" for name, value in parameters.items())
    spec = load_spec(None, {**overrides, **({"parameters": words} if words else {})})
    assert spec is not None
    return spec


def stored(width: int, dtype: torch.dtype) -> list[Tensor]:
    """MLLM, base and ancestor of the size that trained weights have.

    Args:
        width: rows and columns.
        dtype: as they are stored.
    """
    generator = torch.Generator().manual_seed(0)
    old, one, two = (torch.randn(width, width, generator=generator) for _ in range(3))
    return [(0.02 * old + 0.002 * change).to(dtype) for change in (one, two, torch.zeros(()))]


def merge(rule: str, sides: list[Tensor], out: Tensor, buffers: Buffers) -> None:
    """One tensor, by one rule.

    Args:
        rule: its name.
        sides: as stored.
        out: of their shape, written to.
        buffers: memory to work in.
    """
    mllm, base, old = (Operand(side, "random weights") for side in sides)
    merge_tensor(spec_of(rule), KEY, mllm, base, out, buffers, old if RULES[rule].needs_ancestor else None)


def seconds(rules: list[str], width: int, dtype: torch.dtype, repeats: int) -> dict[str, list[float]]:
    """The CPU times of each rule.

    Args:
        rules: their names.
        width: rows and columns of the tensor.
        dtype: as the checkpoints are stored.
        repeats: of each.
    """
    sides, buffers = stored(width, dtype), Buffers()
    out = torch.empty_like(sides[0])

    def timed(rule: str) -> float:
        return measured.clock(lambda: merge(rule, sides, out, buffers), time.process_time)

    ways = {rule: partial(timed, rule) for rule in rules}
    measured.in_turn(ways, 1)  # buffers are taken, and libraries read, before anything counts
    return measured.in_turn(ways, repeats)


def peak(rule: str, width: int) -> float:
    """Tensors of float32 that a merge needs at its peak beside the stored ones.

    Args:
        rule: its name.
        width: rows and columns of the tensor.
    """
    merge(rule, small := stored(512, torch.bfloat16), torch.empty_like(small[0]), Buffers())  # libraries are there now
    sides = stored(width, torch.bfloat16)
    out = torch.empty_like(sides[0]).zero_()
    Path("/proc/self/clear_refs").write_text("5")  # the most is that of now
    before = measured.memory_of("VmRSS")
    merge(rule, sides, out, Buffers())
    return (measured.memory_of("VmHWM") - before) / (4 * width**2)


def show_memory(rules: list[str], width: int) -> None:
    """Print what each rule needs, and what its record declares.

    Args:
        rules: their names.
        width: rows and columns of the tensor.
    """
    print(f"{width} x {width} of bfloat16, in tensors of float32\n")
    print("| rule | at its peak | declared |\n|---|---|---|")
    for name in rules:
        rule = RULES[name]
        declared = 3 + 2 * rule.needs_ancestor + rule.memory
        print(
            f"| `{name}` | {peak(name, width):.1f} | {'parts' if rule.elementwise else f'{declared:g}'} |", flush=True
        )


def show_seconds(rules: list[str], width: int, repeats: int, file: Path | None = None) -> None:
    """Print what each rule takes.

    Args:
        rules: their names.
        width: rows and columns of the tensor.
        repeats: of each.
        file: where the figures go as JSON.
    """
    print(f"{width} x {width}, {torch.get_num_threads()} thread(s)\n")
    rounds = [seconds(rules, width, dtype, repeats) for dtype in (torch.float32, torch.bfloat16)]
    single, half = ({rule: min(taken) for rule, taken in each.items()} for each in rounds)
    print("| rule | float32 | times | bfloat16 | times |\n|---|---|---|---|---|")
    for rule in rules:
        cells = (f"{taken[rule]:.3g} s | {taken[rule] / taken[WEIGHTED_SUM]:.3g}" for taken in (single, half))
        print(f"| `{rule}` | {' | '.join(cells)} |")
    told = []
    for rule in rules:
        if rule != WEIGHTED_SUM:
            ways = (rule, rounds[1][rule]), (WEIGHTED_SUM, rounds[1][WEIGHTED_SUM])
            why = "each rule computes something else; none is asked to cost what a sum does"
            told.append(measured.row(f"rule `{rule}`", *ways, ideal=None, ideal_is=why))
    setting = f"one tensor of {width} x {width}, bfloat16, {torch.get_num_threads()} thread(s); CPU seconds"
    measured.write_rows(file, told, setting, float32=rounds[0], bfloat16=rounds[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rules", help="names joined by commas; all of them unless given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    measured.add_json_argument(parser)
    options = parser.parse_args()
    names = options.rules.split(",") if options.rules else list(RULES)
    if unknown := [name for name in names if name not in RULES]:
        parser.error(f"no rules: {', '.join(unknown)}; expected some of {', '.join(RULES)}")
    torch.set_num_threads(options.threads)
    if not options.memory:
        show_seconds(list(dict.fromkeys([WEIGHTED_SUM, *names])), options.width, options.repeats, options.json)
    elif AT_ONCE in os.environ:
        show_memory(names, options.width)
    else:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, AT_ONCE: str(1 << 20)})


if __name__ == "__main__":
    main()
