"""Commands that write folders, each as cheap as it can be and still be itself; for what may happen to them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.helpers.llamas import shard, write_llama
from tests.helpers.searching import Fake, job
from tests.helpers.submission_runs import questions_file, submission_run
from tests.helpers.sweeps import ARGUMENTS, SPEC

OUT = "out"
"""Name of what a command writes, below the folder that it is given."""


def inputs(root: Path) -> Path:
    """The folder beside `root` that commands only read."""
    return root.parent / "inputs"


def plam(words: tuple[str, ...], root: Path) -> None:
    """`plam WORDS`, in which {root} stands for a folder and {inputs} for the one beside it that is only read."""
    from plam_eval.cli.app import main

    sys.argv = ["plam", *(word.replace("{root}", str(root)).replace("{inputs}", str(inputs(root))) for word in words)]
    main()


def _told(act: Callable[[], Any]) -> None:
    """Has what is no command of its own end as one does."""
    from plam_eval.cli.app import explained

    try:
        act()
    except Exception as error:
        if (message := explained(error)) is None:
            raise
        print(message, file=sys.stderr)
        sys.exit(1)


def search_known_answers(root: Path) -> None:
    """A search up to its table, by an evaluator whose answers are known."""
    from plam_eval.evaluation.search.findings import read_search
    from plam_eval.evaluation.search.runner import try_settings

    def search() -> None:
        try_settings(job(root / OUT, trials=5), Fake())
        read_search(root / OUT).write()

    _told(search)


def attend_tables(root: Path) -> None:
    """`plam attend` up to its tables: what is concluded of them, and drawn, takes longer than all else."""
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        nothing_found = SimpleNamespace(to_dict=dict)
        patch.setattr("plam_eval.evaluation.attend.run.conclude", lambda where, **given: nothing_found)
        patch.setattr("plam_eval.report.tables.show_attention", lambda *given: None)
        plam(_ATTEND, root)


# ---- what they read --------------------------------------------------------------------------------------------------


def nothing(root: Path) -> None:
    """A command that reads no folder of its own."""


def a_pair(root: Path) -> None:
    """A sharded checkpoint and its base."""
    shard(write_llama(inputs(root) / "mllm", 1))
    write_llama(inputs(root) / "base", 2)


def an_export(root: Path) -> None:
    """Such a pair, and an export of it that is to be replaced."""
    from plam_eval import export

    a_pair(root)
    export(inputs(root) / "mllm", None, root / OUT, base=inputs(root) / "base", layers="1:3", base_weight=0.1)


def a_run(root: Path) -> None:
    """A run of a test split."""
    submission_run(root / OUT, "docvqa", ["The Two Dogs.", "yes", "NA", "1,000"])
    questions_file(inputs(root), "docvqa", 4)


def finished_work(root: Path) -> None:
    """A sweep and a scan, written by hand."""
    from tests.helpers.run_folders import changed, documents, write_scan, write_sweep

    given = documents(["pope", "mmstar"], 40, right=20)
    better = changed(given, {("pope", n): ("yes", 1.0) for n in range(20, 30)})
    cells = {"plain": given, "layers-6-8_qkvo_0.9+0.3": better, "layers-6-8_qkvo_0.9+0.3_self_scale": given}
    write_sweep(inputs(root) / "sweep", cells, layers="6:8")
    write_scan(inputs(root) / "scan")


# ---- the commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One command: what it reads, what it does, and how many kill points of it are tried.

    Attributes:
        act: does it, to what lies below a folder.
        reads: writes what it finds there, and what it reads into the folder beside it.
        few: kill points in `make test`.
        many: kill points in `make test-long`.
        finished: exit status of the same command where all is finished.
        at_once: what it writes appears in one step: all of it, or what was there before.
    """

    act: Callable[[Path], Any]
    reads: Callable[[Path], Any] = nothing
    few: int = 2
    many: int = 6
    finished: int = 0
    at_once: bool = False


def _cli(*words: str) -> Callable[[Path], None]:
    return partial(plam, (*words, "--json"))


_POPE = ("--tasks", "pope", "--limit", "3", "--output", f"{{root}}/{OUT}")
_ATTEND = ("attend", "--model", "plam_llava", "--model_args", SPEC, *_POPE, "--settings", "merged", "--show", "1")
_SWEEP = ("sweep", "--model", "plam_llava", "--model_args", SPEC, *_POPE, "--layers", "6:8", "--weights", "0.3+1.2")
_SEARCH = ("search", "--model", "plam_llava", "--model_args", SPEC, "--tasks", "pope", "--limit", "8", "--select", "4")
_SPACE = ("--trials", "3", "--rungs", "0.5", "--model_weight", "0.7:0.9:0.2", "--base_weight", "0.1:0.3:0.2")
_EXPORT = (
    "export",
    "--model",
    "{inputs}/mllm",
    "--base",
    "{inputs}/base",
    "--layers",
    "1:3",
    "--output",
    f"{{root}}/{OUT}",
)
_QUESTIONS = ("--questions", "{inputs}/docvqa_questions.json")

COMMANDS = {
    "scan": Command(
        _cli("scan", "--model", "plam_llava", "--model_args", ARGUMENTS, *_POPE, "--cuts", "0,4"), few=0, many=8
    ),
    "sweep": Command(_cli(*_SWEEP, "--controls", "self_scale"), few=3, many=8),
    "sweep --together": Command(_cli(*_SWEEP, "--controls", "self_scale", "--together", "3"), few=0, many=8),
    "compare": Command(_cli("compare", "--model", "plam_llava", "--model_args", SPEC, *_POPE), few=0, many=6),
    "search, known answers": Command(search_known_answers, few=4, many=12),
    "search": Command(_cli(*_SEARCH, *_SPACE, "--output", f"{{root}}/{OUT}"), few=0, many=4),
    "attend, tables": Command(attend_tables, few=0, many=6),
    "attend": Command(_cli(*_ATTEND), few=0, many=3),
    "export": Command(_cli(*_EXPORT), a_pair, few=6, many=1000, finished=1, at_once=True),
    "export --overwrite": Command(_cli(*_EXPORT, "--overwrite"), an_export, few=6, many=1000, at_once=True),
    "submit": Command(_cli("submit", f"{{root}}/{OUT}", "--board", "docvqa", *_QUESTIONS), a_run, few=4, many=20),
    "submit --bundle": Command(
        _cli("submit", "{inputs}/sweep", "--bundle", f"{{root}}/{OUT}.zip"), finished_work, many=6
    ),
    "report": Command(
        _cli("report", "{inputs}/sweep", "{inputs}/scan", "--output", f"{{root}}/{OUT}"), finished_work, many=6
    ),
}


# ---- what may happen to their surroundings ---------------------------------------------------------------------------


def set_back(act: Callable[[Path], Any], root: Path) -> None:
    """A command under a clock that was set back by two years."""
    import time

    import lmms_eval.utils
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        now, date = time.time, lmms_eval.utils.get_datetime_str
        patch.setattr(time, "time", lambda: now() - 2 * 365 * 86400)
        patch.setattr(lmms_eval.utils, "get_datetime_str", lambda *given, **more: f"2024{date(*given, **more)[4:]}")
        act(root)


def without_memory(act: Callable[[Path], Any], call: int, root: Path) -> None:
    """A command whose model has no memory at one of its calls, from 0, and at all after it."""
    import pytest
    from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration

    forward, calls = LlavaForConditionalGeneration.forward, iter(range(1 << 30))

    @functools.wraps(forward)  # generation looks at its parameters
    def short(self: Any, *given: Any, **more: Any) -> Any:
        if next(calls) >= call:
            raise MemoryError("Unable to allocate 3.2 GiB")
        return forward(self, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlavaForConditionalGeneration, "forward", short)
        act(root)
