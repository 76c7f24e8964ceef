"""What a start costs: `python benchmarks/start.py`.

CPU seconds, each in a process of its own, of: lmms-eval's task index by PyYAML's loader in Python and through libyaml,
the nine tasks on the offline suite loaded for the first time and again (as for each cell of a sweep), with and without
the datasets that are kept; a sweep's plan with a mistake in it; `plam --help`. The index is compared entry by entry and
every file of it value by value. `--repeats` measures all of it so often, and medians are printed.

Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import measured

INDEX = """
import sys, time
from loguru import logger
logger.remove()
from lmms_eval import utils
from lmms_eval.tasks import TaskManager
from plam_eval.harness import loading
stock, started = utils.load_yaml_config, time.process_time()
first = TaskManager("ERROR")
between = time.process_time()
loading.patch_yaml_loading()
second = TaskManager("ERROR")
ended = time.process_time()
assert first.task_index == second.task_index and list(first.task_index) == list(second.task_index)
def plain(value):
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return (value.tag, value.value) if hasattr(value, "tag") else (type(value), value)
import yaml
texts = [open(entry["yaml_path"], "rb").read() for entry in first.task_index.values() if entry["yaml_path"] != -1]
began = time.process_time()
for text in texts:
    for _ in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        pass
parsed = time.process_time() - began
fast = utils.load_yaml_config
for entry in first.task_index.values():
    if entry["yaml_path"] != -1:
        utils.load_yaml_config = stock
        expected = plain(stock(entry["yaml_path"], mode="simple"))
        utils.load_yaml_config = fast
        assert expected == plain(fast(entry["yaml_path"], mode="simple")), entry
print(between - started, ended - between, parsed)
"""

TASKS = """
import contextlib, os, sys, time
from loguru import logger
logger.remove()
from lmms_eval.tasks import get_task_dict
from plam_eval.harness import loading, lookup
manager = lookup.task_manager()
def load():
    manager.task_group_map.clear()
    started = time.process_time()
    with contextlib.redirect_stderr(open(os.devnull, "w")):
        get_task_dict(["plam9"], manager, "chat")
    return time.process_time() - started
first, kept = load(), load()
loading._KEPT.clear()
print(first, kept, load())
"""


def numbers(code: str, folder: Path | None = None) -> list[float]:
    """The numbers that Python `code` prints in a process of its own, in `folder` if there is one."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def spent(*words: str) -> float:
    """CPU seconds of the `plam` command `words`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "plam_eval.cli", *words], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


LABELS = {
    "stock": "task index, PyYAML's own loader",
    "fast": "through libyaml",
    "parsed": "libyaml's parsing alone, of the files of all entries",
    "first": "nine tasks, first time",
    "anew": "again, datasets built anew",
    "kept": "again, datasets kept",
    "mistake": "`plam sweep` with a mistake in its plan",
    "help": "`plam --help`",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--documents", type=int, default=240, help="of each task of the offline suite")
    measured.add_json_argument(parser)
    options = parser.parse_args()
    from plam_eval.demo.hub import write_hub

    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    started, found = time.time(), {name: list[float]() for name in LABELS}
    mistake = ("sweep", "--model", "plam_lava", "--model_args", "pretrained=x", "--tasks", "pope", "--output", "x")
    with tempfile.TemporaryDirectory() as scratch:
        write_hub(Path(scratch, "suite"), documents_per_task=options.documents)
        caches = count()

        def tasks() -> list[float]:
            os.environ["HF_DATASETS_CACHE"] = str(Path(scratch, f"cache{next(caches)}"))  # a first time again
            return numbers(TASKS, Path(scratch, "suite"))

        ways: dict[tuple[str, ...], Callable[[], list[float]]] = {
            ("stock", "fast", "parsed"): lambda: numbers(INDEX),
            ("first", "kept", "anew"): tasks,
            ("mistake",): lambda: [spent(*mistake)],
            ("help",): lambda: [spent("--help")],
        }
        turns = measured.in_turn({" ".join(names): way for names, way in ways.items()}, options.repeats)
        for names, rounds in turns.items():
            for name, figures in zip(names.split(), zip(*rounds, strict=True), strict=True):
                found[name] = [*figures]
    print("| | CPU seconds |\n|---|---|")
    for name, label in LABELS.items():
        print(f"| {label} | {measured.spread(found[name])['median']:.2f} |")
    print(f"\n{time.time() - started:.0f} s in all")
    stock, parsed = (measured.spread(found[name])["median"] for name in ("stock", "parsed"))
    told = [
        measured.row(
            "lmms-eval's task index",
            ("PyYAML's own loader", found["stock"]),
            ("through libyaml", found["fast"]),
            ideal=stock / parsed,
            ideal_is="libyaml's parsing of these files alone",
        ),
        measured.row(
            "the nine tasks for another cell of a sweep",
            ("datasets built anew", found["anew"]),
            ("datasets kept", found["kept"]),
            ideal=None,
            ideal_is="the tasks' own objects are made anew, for they are written to; nothing else is left",
        ),
        measured.row(
            "a plan with a mistake in it",
            ("`plam sweep`", found["mistake"]),
            ("`plam --help`", found["help"]),
            ideal=1.0,
            ideal_is="the start of a command",
        ),
    ]
    measured.write_rows(options.json, told, f"{options.documents} documents of each task; CPU seconds", **found)


if __name__ == "__main__":
    main()
