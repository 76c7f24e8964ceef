from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.helpers.mllm import Mllm
    from tests.helpers.pico import PicoPair

# Before anything imports huggingface_hub or datasets, which read these once. Subprocesses of tests inherit them.
_DATASETS_CACHE = tempfile.mkdtemp(prefix="plam-eval-datasets-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = _DATASETS_CACHE
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # every model here is small, and a second thread only waits
# Set by pytest's workers, or by a shell: tables are as wide here as in a log, whoever starts the tests.
os.environ.pop("COLUMNS", None)


_NAMES = {"vllm": "vLLM", "ray": "Ray"}


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") and not os.environ.get("PLAM_LONG"):
            item.add_marker(pytest.mark.skip(reason="a further case of what others show: `make test-long`"))
        for mark in item.iter_markers("needs"):
            for module in mark.args:
                if module == "vllm":
                    item.add_marker(pytest.mark.vllm)
                if importlib.util.find_spec(module) is None:
                    item.add_marker(pytest.mark.skip(reason=f"{_NAMES.get(module, module)} is not installed"))
    if hasattr(config, "workerinput"):
        # Of several workers none should meet a long file when the others have nothing left (--no-loadscope-reorder).
        long = {item.path for item in items if any(mark.name in ("slow", "vllm") for mark in item.iter_markers())}
        items.sort(key=lambda item: item.path not in long)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was skipped and why, and why a part that was missing could not be had."""
    skipped = Counter[tuple[str, bool]]()
    for report in terminalreporter.getreports("skipped"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped[reason.removeprefix("Skipped: "), isinstance(report, pytest.CollectReport)] += 1
    for (reason, whole), count in sorted(skipped.items()):
        what = "file" if whole else "test"
        terminalreporter.write_line(f"skipped {count} {what}{'s' * (count > 1)}: {reason}")
    try:
        absent = json.loads(Path(sys.prefix, ".plam-eval-setup").read_text())["absent"]
    except (OSError, ValueError, KeyError, TypeError):
        absent = []
    for line in absent:
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _one_environment() -> Iterator[None]:
    """`os.environ` stays the object it is.

    `datasets` puts a copy in its place when it maps in several processes. What monkeypatch has set would then be in the
    copy for good, and libraries that hold the object itself, as rich does, would see no later change.
    """
    before = os.environ
    yield
    os.environ = before  # noqa: B003  the very object, not its content


def pytest_sessionfinish() -> None:
    shutil.rmtree(_DATASETS_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PicoPair]:
    """`pico(family)` gives the folders of a random MLLM and its base LLM, written once per session. Do not modify."""
    from tests.helpers.pico import write_pico

    written: dict[str, PicoPair] = {}

    def get(family: str) -> PicoPair:
        if family not in written:
            written[family] = write_pico(family, tmp_path_factory.mktemp(f"pico-{family}"))
        return written[family]

    return get


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small offline suite: the nine datasets with 30 documents each. Do not modify."""
    from plam_eval.demo.hub import write_hub

    folder: Path = tmp_path_factory.mktemp("suite")
    write_hub(folder, documents_per_task=30)
    return folder


@pytest.fixture
def in_suite(suite: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The offline suite as the working directory, which is how lmms-eval's tasks find it."""
    monkeypatch.chdir(suite)
    yield suite


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run folders of a plain and a merged model, written by hand: the merged one has gained on pope. Do not modify."""
    from tests.helpers.run_folders import changed, documents, write_run

    folder = tmp_path_factory.mktemp("runs")
    plain = documents(["pope", "mmstar"], 40, right=20)
    better = changed(plain, {("pope", n): ("yes", 1.0) for n in range(20, 30)})
    write_run(folder / "plain", plain)
    write_run(folder / "merged", better)
    return [folder / "plain", folder / "merged"]


@pytest.fixture(scope="session")
def small_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep folder, written by hand: one cell has gained on pope, one ran out of memory. Do not modify."""
    from tests.helpers.run_folders import changed, documents, write_sweep

    folder = tmp_path_factory.mktemp("swept")
    plain = documents(["pope", "mmstar"], 40, right=20)
    better = changed(plain, {("pope", n): ("yes", 1.0) for n in range(20, 30)})
    names = ["layers-6-8_qkvo_0.9+0.3", "layers-6-8_qkvo_0.9+0.3_self_scale", "layers-0-8_qkvo_0.9+0.3"]
    write_sweep(folder, {"plain": plain, names[0]: better, names[1]: plain, names[2]: "RuntimeError: out of memory"})
    return folder


@pytest.fixture(scope="session")
def mllm(pico: Callable[[str], PicoPair]) -> Callable[[str], Mllm]:
    """`mllm(family)`: the family's pico model with sdpa attention, in float32. Leave it as it was."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from tests.helpers.mllm import Mllm

    loaded: dict[str, Mllm] = {}

    def get(family: str) -> Mllm:
        if family not in loaded:
            folder = pico(family).mllm
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
            loaded[family] = Mllm(family, model, AutoProcessor.from_pretrained(folder))
        return loaded[family]

    return get


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes in one thread: in several it adds up in another order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_rules() -> Iterator[None]:
    """The merge rules that a test registers are forgotten behind it."""
    from plam_eval.merging.rules import FUNCTIONS
    from plam_eval.rules import RULES

    functions, records = dict(FUNCTIONS), dict(RULES)
    yield
    for table, before in ((FUNCTIONS, functions), (RULES, records)):
        for name in table.keys() - before.keys():
            del table[name]
