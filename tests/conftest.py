from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pico import PicoPair, write_pico

# Tests never reach for the hub, and share the machine's cores with whatever else runs there.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PicoPair]:
    """`pico(family)` gives the folders of a random MLLM and its base LLM, written once per session. Do not modify."""
    written: dict[str, PicoPair] = {}

    def get(family: str) -> PicoPair:
        if family not in written:
            folder: Path = tmp_path_factory.mktemp(f"pico-{family}")
            written[family] = write_pico(family, folder)
        return written[family]

    return get
