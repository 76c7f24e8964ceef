"""Small models take one thread on a CPU, unless somebody says otherwise."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from plam_eval import threads
from plam_eval.errors import InputError

EVERY = (threads.OWN, *threads.STANDARD)


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EVERY:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("said", "small", "large"),
    [
        ({}, 1, None),
        ({"OMP_NUM_THREADS": "2"}, None, None),
        ({"MKL_NUM_THREADS": "1"}, None, None),
        ({"OMP_NUM_THREADS": "2", "PLAM_THREADS": "3"}, 3, 3),
        ({"PLAM_THREADS": " 4 "}, 4, 4),
        ({"PLAM_THREADS": ""}, 1, None),
    ],
)
def test_who_says_how_many(said: dict[str, str], small: Any, large: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert threads.wanted(threads.SMALL) == small
    assert threads.wanted(threads.SMALL + 1) == large
    assert threads.environment() == ({} if any(map(str.strip, said.values())) else dict.fromkeys(threads.STANDARD, "1"))


@pytest.mark.parametrize("said", ["0", "-1", "two", "1.5", "٣", "99999"])
def test_a_number_that_is_none(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAM_THREADS", said)
    with pytest.raises(InputError, match=r"PLAM_THREADS is .*expected a whole number of threads"):
        threads.wanted(1)


def test_a_wrapper_sets_it(pico: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from plam_eval.model_wrappers.llava import PlamLlava

    before, folder = torch.get_num_threads(), str(pico("llava").mllm)
    try:
        torch.set_num_threads(2)
        PlamLlava(folder, device_map="cpu")
        assert torch.get_num_threads() == 1
        monkeypatch.setenv("PLAM_THREADS", "3")
        PlamLlava(folder, device_map="cpu")
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("PLAM_THREADS", "many")
        with pytest.raises(InputError, match="PLAM_THREADS"):
            PlamLlava.check(folder)
    finally:
        torch.set_num_threads(before)


def test_a_large_model_gets_torchs_own_number_back_after_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(threads, "_changed", None)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = []
        for size in (1, 1, threads.SMALL + 1, threads.SMALL + 1, 1):
            threads.use(size)
            found.append(torch.get_num_threads())
        assert found == [1, 1, 3, 3, 1]
        torch.set_num_threads(2)  # by somebody else, who is left alone
        threads.use(threads.SMALL + 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        monkeypatch.setattr(threads, "_changed", None)


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, plam_eval.threads; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
