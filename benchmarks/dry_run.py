"""Is a dry run right? What it says of a scan, a comparison, a sweep and a search of the demo pair, and what it was.

`python benchmarks/dry_run.py FOLDER` writes an offline suite into FOLDER, asks for a dry run of each command, runs the
command itself, and prints a Markdown table: the estimate, its range, and what was measured, with their ratio. Times are
those of single calls in this process, imports aside, one after the other: other work on the machine should be even.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import measured
import pandas as pd

import plam_eval
from plam_eval.demo.hub import write_hub

PAIR = Path(str(resources.files("plam_eval.demo"))) / "pair"


def calls(tasks: str) -> dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]]:
    """By command: what plans it, what does it, and the arguments of both, without `output`.

    Args:
        tasks: of all.
    """
    arguments = f"pretrained={PAIR}/mllm,device=cpu,dtype=float32"
    spec = f"{arguments},base={PAIR}/base,plateau=demo"
    swept: dict[str, Any] = {"model": "plam_llava", "model_args": spec, "tasks": tasks}
    scanned = {**swept, "model_args": arguments, "base": f"{PAIR}/base"}
    layers = {"layers": "plateau,all", "weights": "0.9+0.3"}
    return {
        "scan": (plam_eval.plan_scan, plam_eval.scan, scanned),
        "compare": (plam_eval.plan_compare, plam_eval.compare, swept),
        "sweep": (plam_eval.plan_sweep, plam_eval.sweep, swept | layers),
        "sweep, together=4": (plam_eval.plan_sweep, plam_eval.sweep, swept | layers | {"together": 4}),
        "search": (plam_eval.plan_search, plam_eval.search, swept | {"select": 20, "trials": 8}),
    }


def bytes_below(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=60, help="of each task")
    parser.add_argument("--tasks", default="plam9")
    parser.add_argument("--sampled", type=int, default=20, help="documents of the dry run")
    parser.add_argument("--only", help="commands, with commas")
    parser.add_argument("--repeats", type=int, default=1)
    measured.add_json_argument(parser)
    given = parser.parse_args(arguments)
    folder = given.folder.resolve()
    write_hub(folder, documents_per_task=given.documents)
    os.chdir(folder)
    rows, estimate = [], None
    figures: dict[str, list[tuple[float, float]]] = {}
    for number, (name, (plan, do, words)) in product(range(given.repeats), calls(given.tasks).items()):
        if given.only and name.split(",")[0] not in given.only.split(","):
            continue
        output = folder / f"{name.replace(' ', '')}{number or ''}"
        shutil.rmtree(output, ignore_errors=True)  # what an earlier call finished would not be answered again
        estimate = plan(**words, output=output, measure=given.sampled).estimate
        started = time.perf_counter()
        do(**words, output=output)
        taken, disk = time.perf_counter() - started, bytes_below(output)
        figures.setdefault(name, []).append((estimate.seconds, taken))
        rows.append(
            {
                "command": name,
                "generations": f"{estimate.generations:,}",
                "seconds, estimated": f"{estimate.seconds:.1f} ({estimate.low:.1f} to {estimate.high:.1f})",
                "taken": f"{taken:.1f}",
                "estimated / taken": f"{estimate.seconds / taken:.2f}",
                "MB, estimated": f"{estimate.disk / 1e6:.2f}",
                "written": f"{disk / 1e6:.2f}",
                "estimated / written": f"{estimate.disk / disk:.2f}",
                "memory, GB": f"{(estimate.memory or 0) / 1e9:.2f}",
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    print(pd.DataFrame(rows).to_markdown(index=False))
    if estimate is not None:
        print(f"\nMeasured on: {estimate.machine}")
    told = [
        measured.row(
            f"dry run of `plam {name}`",
            ("estimated", [one for one, _ in pairs]),
            ("taken", [other for _, other in pairs]),
            ideal=1.0,
            ideal_is="an estimate that is right",
        )
        for name, pairs in figures.items()
    ]
    setting = f"the embedded pair, {given.documents} documents of each of {given.tasks}, {given.sampled} sampled"
    measured.write_rows(given.json, told, setting, table=rows)


if __name__ == "__main__":
    main()
