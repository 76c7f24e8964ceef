"""Two tiny Llamas of one shape, for what asks for no MLLM."""

from __future__ import annotations

import pytest

from tests.helpers.llamas import Pair, write_llama


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Bits are compared here."""


@pytest.fixture(scope="session")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two float32 Llamas of one shape. Do not modify."""
    folder = tmp_path_factory.mktemp("llamas")
    return Pair(write_llama(folder / "mllm", 1), write_llama(folder / "base", 2))
