"""Is a dry run right? What it says of a scan, a comparison, a sweep and a search of the demo pair, and what it was.

`python benchmarks/dry_run.py FOLDER` writes an offline suite into FOLDER, asks for a dry run of each command, runs the
command itself, and prints a Markdown table: the estimate, its range, and what was measured, with their ratio. Times are
those of single calls; both of one row are made one after the other, so other work on the machine should be even.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from plam_eval.demo.hub import write_hub

PAIR = Path(str(resources.files("plam_eval.demo"))) / "pair"


def commands(tasks: str) -> dict[str, list[str]]:
    """The words of each command, without `--output`.

    Args:
        tasks: of all.
    """
    arguments = f"pretrained={PAIR}/mllm,device=cpu,dtype=float32"
    spec = f"{arguments},base={PAIR}/base,plateau=demo"
    swept = ["--model", "plam_llava", "--model_args", spec, "--tasks", tasks]
    scanned = ["--model", "plam_llava", "--model_args", arguments, "--tasks", tasks, "--base", f"{PAIR}/base"]
    return {
        "scan": ["scan", *scanned],
        "compare": ["compare", *swept],
        "sweep": ["sweep", *swept, "--layers", "plateau,all", "--weights", "0.9+0.3"],
        "sweep --together 4": ["sweep", *swept, "--layers", "plateau,all", "--weights", "0.9+0.3", "--together", "4"],
        "search": ["search", *swept, "--select", "20", "--trials", "8"],
    }


def called(words: Sequence[str]) -> tuple[float, Any, int]:
    """Seconds that a command took, what it wrote with --json, and the peak of its memory in bytes.

    Args:
        words: behind `plam`.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "plam_eval.cli", *words, "--json"], capture_output=True, text=True, check=False
    )
    taken = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return taken, json.loads(done.stdout), max(before, peak) * 1024


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
    given = parser.parse_args(arguments)
    folder = given.folder.resolve()
    write_hub(folder, documents_per_task=given.documents)
    os.chdir(folder)
    start, _, _ = called(["doctor"])
    rows = []
    for name, words in commands(given.tasks).items():
        if given.only and name.split()[0] not in given.only.split(","):
            continue
        output = folder / name.replace(" ", "")
        _, planned, _ = called([*words, "--output", str(output), f"--dry-run={given.sampled}"])
        estimate = planned["estimate"]
        taken, _, _ = called([*words, "--output", str(output)])
        disk = bytes_below(output)
        rows.append(
            {
                "command": name,
                "generations": f"{estimate['generations']:,}",
                "seconds, estimated": f"{estimate['seconds']:.0f} ({estimate['low']:.0f} to {estimate['high']:.0f})",
                "taken": f"{taken:.0f}",
                "estimated / taken": f"{estimate['seconds'] / taken:.2f}",
                "MB, estimated": f"{estimate['disk'] / 1e6:.2f}",
                "written": f"{disk / 1e6:.2f}",
                "estimated / written": f"{estimate['disk'] / disk:.2f}",
                "memory, GB": f"{(estimate['memory'] or 0) / 1e9:.2f}",
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    print(pd.DataFrame(rows).to_markdown(index=False))
    print(f"\n`plam doctor` alone, which is mostly imports: {start:.0f} s, not in the estimates.")
    print(f"Measured on: {estimate['machine']}")


if __name__ == "__main__":
    main()
