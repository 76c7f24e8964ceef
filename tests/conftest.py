from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.pico import PicoPair

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


def pytest_sessionfinish() -> None:
    shutil.rmtree(_DATASETS_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PicoPair]:
    """`pico(family)` gives the folders of a random MLLM and its base LLM, written once per session. Do not modify."""
    from tests.pico import write_pico

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
