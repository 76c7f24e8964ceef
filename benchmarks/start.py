"""What a start costs: `python benchmarks/start.py`.

CPU seconds, each in a process of its own, of: lmms-eval's task index by PyYAML's loader in Python and through libyaml,
the nine tasks on the offline suite loaded for the first time and again (as for each cell of a sweep), with and without
the datasets that are kept; a sweep's plan with a mistake in it; `plam --help`. The index is compared entry by entry and
every file of it value by value.

Prints a Markdown table.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
fast = utils.load_yaml_config
for entry in first.task_index.values():
    if entry["yaml_path"] != -1:
        utils.load_yaml_config = stock
        expected = plain(stock(entry["yaml_path"], mode="simple"))
        utils.load_yaml_config = fast
        assert expected == plain(fast(entry["yaml_path"], mode="simple")), entry
print(between - started, ended - between)
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
    """CPU seconds of the `plam` command `words`, the least of three."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "plam_eval.cli", *words], capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def main() -> None:
    from plam_eval.demo.hub import write_hub

    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    started = time.time()
    print("| | CPU seconds |\n|---|---|")
    stock, fast = numbers(INDEX)
    print(f"| task index, PyYAML's own loader | {stock:.1f} |\n| through libyaml | {fast:.2f} |")
    with tempfile.TemporaryDirectory() as name:
        os.environ["HF_DATASETS_CACHE"] = str(Path(name, "cache"))
        write_hub(Path(name, "suite"), documents_per_task=240)
        first, kept, anew = numbers(TASKS, Path(name, "suite"))
    print(f"| nine tasks, first time | {first:.2f} |\n| again, datasets built anew | {anew:.2f} |")
    print(f"| again, datasets kept | {kept:.2f} |")
    mistake = ("sweep", "--model", "plam_lava", "--model_args", "pretrained=x", "--tasks", "pope", "--output", "x")
    for label, words in (("`plam sweep` with a mistake in its plan", mistake), ("`plam --help`", ("--help",))):
        print(f"| {label} | {spent(*words):.2f} |")
    print(f"\n{time.time() - started:.0f} s in all")


if __name__ == "__main__":
    main()
