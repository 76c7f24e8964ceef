"""A sweep on one resident model against one `lmms-eval` call per setting: `python benchmarks/sweep.py`.

On the embedded pair and the offline suite, for each number of documents per task, in turn, each round
beginning with another of these:

- `plam sweep`   one call: every setting re-merged in place (HF), plain and controls among them
- `together`     the same with `--together` for all settings: each document answered for all of them at once
- `on Ray`       the same as the first with `--ray --workers N`, if `--workers N` is given
- `lmms-eval`    one call per setting, one after the other, with the model_args that the sweep's results name

as users would type them, imports and loading included, on an otherwise idle machine. The answers of all are compared
document by document. `in merging` is the share of the first sweep's time that went into bringing the model from one
setting to the next. The fewer documents, the more of a call is start-up, which is what a resident model saves: the
ratio of the first falls towards 1 as documents grow.

`--few` takes plain and two merges in place of these.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import measured
import pandas as pd
import torch

from plam_eval.demo import run as demo
from plam_eval.evaluation import records
from plam_eval.evaluation.sweep.folder import CELLS, read_cell
from plam_eval.provenance import versions

# Twelve settings and plain: weights that sum to one have no scale to control, and are normalized already.
GRID = ["--layers", "6:8,early", "--weights", "0.9+0.3,0.8+0.4,0.7+0.3", "--controls", "self_scale,normalized"]
FEW = ["--layers", "6:8", "--weights", "0.9+0.3,0.7+0.3", "--controls", "none"]
ARGUMENTS = "pretrained=pair/mllm,base=pair/base,layers=6:8,device_map=cpu"


def timed(words: list[str], suite: Path, log: Path) -> float:
    """Seconds of a command, as `python -m`.

    Args:
        words: `plam` or `lmms-eval` and its arguments.
        suite: the folder that it runs in.
        log: the file that its output goes into.
    """
    modules = {"plam": "plam_eval.cli", "lmms-eval": "lmms_eval"}
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.perf_counter()
    with log.open("a") as file:
        command = [sys.executable, "-m", modules[words[0]], *words[1:]]
        subprocess.run(command, cwd=suite, env=environment, stdout=file, stderr=file, check=True)
    return time.perf_counter() - started


def measure(
    suite: Path, folder: Path, documents: int, workers: int | None, grid: list[str], repeats: int
) -> list[dict[str, Any]]:
    """All ways at one number of documents per task, in every round.

    Args:
        suite: folder of the offline suite.
        folder: for results; what lies there is lost.
        documents: of each task.
        workers: of Ray; None leaves that way out.
        grid: options that say which settings there are.
        repeats: so many rounds.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "log.txt"
    common = ["--tasks", "plam9", "--limit", str(documents)]
    words = ["plam", "sweep", "--model", "plam_llava", "--model_args", ARGUMENTS, *common, *grid]
    ways: dict[str, list[str]] = {"plam sweep": [], "together": ["--together", "99"]}
    if workers:
        ways[f"on Ray ({workers})"] = ["--ray", "--workers", str(workers)]
    settings: dict[str, str] = {}

    def swept(way: str, number: int) -> float:
        output = folder / str(number) / way
        taken = timed([*words, *ways[way], "--output", str(output)], suite, log)
        for path in sorted((output / CELLS).iterdir()):
            settings.setdefault(path.name, finished(output, path.name).results["config"]["model_args"])
        return taken

    def apart(number: int) -> float:
        taken = 0.0
        for name, model_args in settings.items():
            call = ["lmms-eval", "--model", "plam_llava", "--model_args", model_args, *common]
            output = str(folder / str(number) / "apart" / name)
            taken += timed([*call, "--batch_size", "1", "--log_samples", "--output_path", output], suite, log)
        return taken

    def counting(way: Callable[[int], float]) -> Callable[[], float]:
        numbers = count()
        return lambda: way(next(numbers))

    turns = {way: counting(partial(swept, way)) for way in ways} | {"lmms-eval": counting(apart)}
    seconds = measured.in_turn(turns, repeats)
    rows = []
    for number in range(repeats):
        took = {way: rounds[number] for way, rounds in seconds.items()}
        merging, answering, differ, compared = 0.0, 0.0, 0, 0
        for name in settings:
            first, *others = (folder / str(number) / way for way in ways)
            resident, record = finished(first, name), read_cell(first, name)
            assert record is not None
            merging += record["seconds"]["merge"]
            answering += record["seconds"]["evaluate"]
            alone = records.read_run(folder / str(number) / "apart" / name)
            for other in (alone, *(finished(each, name) for each in others)):
                both = resident.samples.merge(other.samples, on=["task", "doc_id"], suffixes=("", "_other"))
                assert len(both) == len(resident.samples) == len(other.samples)
                differ += int((both["answer"] != both["answer_other"]).sum())
                compared += len(both)
        row: dict[str, Any] = {"documents per task": documents, "settings": len(settings)}
        row["lmms-eval, s"] = took["lmms-eval"]
        for way in ways:
            row |= {f"{way}, s": took[way], f"{way}, ratio": took["lmms-eval"] / took[way]}
        row |= {"in merging": merging / took["plam sweep"], "in answering": answering / took["plam sweep"]}
        rows.append({**row, "answers that differ": f"{differ} of {compared}"})
    return rows


def finished(folder: Path, name: str) -> records.Run:
    """The run of the cell `name` in a sweep's `folder`, which has to have one."""
    record = read_cell(folder, name)
    if record is None or record["status"] != "finished":
        sys.exit(f"{folder / CELLS / name} has not finished: {record}")
    return records.read_run(folder / CELLS / name / record["results"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[10, 40, 120], help="per task, even numbers")
    parser.add_argument("--workers", type=int, help="of a second sweep, on Ray")
    parser.add_argument("--output", type=Path, default=Path("out/benchmark-sweep"))
    parser.add_argument("--repeats", type=int, default=1, help="rounds of each")
    parser.add_argument("--few", action="store_true", help="three settings in place of thirteen")
    measured.add_json_argument(parser)
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    suite = demo.prepare(output / "suite", max(30, *arguments.documents))
    rows = []
    for documents in arguments.documents:
        folder, grid = output / f"documents-{documents}", FEW if arguments.few else GRID
        rows += measure(suite, folder, documents, arguments.workers, grid, arguments.repeats)
        print(pd.DataFrame(rows[-arguments.repeats :]).to_string(index=False), file=sys.stderr)
    table = pd.DataFrame(rows)
    formats = {", s": ".0f", "ratio": ".1f", "in merging": ".2%", "in answering": ".0%"}
    floats = [next((f for end, f in formats.items() if name.endswith(end)), "") for name in table.columns]
    print(table.to_markdown(index=False, floatfmt=floats))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{machine}; {', '.join(f'{name} {version}' for name, version in versions().items())}")
    measured.write_rows(arguments.json, told_of(rows, arguments.documents), "the embedded pair, plam9", table=rows)


def told_of(rows: list[dict[str, Any]], documents: list[int]) -> list[measured.Row]:
    """Rows for `--json`.

    Args:
        rows: as `measure` gives them, several of one number of documents.
        documents: of each task; the numbers that were measured.
    """
    told = []
    for number in documents:
        rounds = [row for row in rows if row["documents per task"] == number]
        settings = rounds[0]["settings"]
        apart = [row["lmms-eval, s"] for row in rounds]
        answering = [row["in answering"] * row["plam sweep, s"] for row in rounds]
        typical, answers = (measured.spread(values)["median"] for values in (apart, answering))
        start = max(0.0, (typical - answers) / settings)
        for way in [name.removesuffix(", ratio") for name in rounds[0] if name.endswith(", ratio")]:
            resident = way == "plam sweep"
            told.append(
                measured.row(
                    f"{settings} settings, {number} documents of each of nine tasks",
                    ("a call of lmms-eval per setting", apart),
                    (way, [row[f"{way}, s"] for row in rounds]),
                    ideal=typical / (start + answers) if resident and answers else None,
                    ideal_is="one start, and every answer"
                    if resident
                    else "of so small a model most of an answer is no arithmetic: see joint answering",
                    answers_that_differ=", ".join(dict.fromkeys(row["answers that differ"] for row in rounds)),
                )
            )
    return told


if __name__ == "__main__":
    main()
