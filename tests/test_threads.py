"""Small models take one thread on a CPU, unless somebody says otherwise."""

from __future__ import annotations

import os
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
    assert threads.threads_wanted(threads.SMALL) == small
    assert threads.threads_wanted(threads.SMALL + 1) == large
    assert threads.environment() == ({} if any(map(str.strip, said.values())) else dict.fromkeys(threads.STANDARD, "1"))


@pytest.mark.parametrize("said", ["0", "-1", "two", "1.5", "٣", "99999"])
def test_a_number_that_is_none(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAM_THREADS", said)
    with pytest.raises(InputError, match=r"PLAM_THREADS is .*expected a whole number of threads"):
        threads.threads_wanted(1)


@pytest.fixture
def torchs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What torch was told, its number of threads last.

    A process in which an engine of vLLM has run computes in one thread from then on, whatever torch is told.
    """
    import torch

    said = [torch.get_num_threads()]
    monkeypatch.setattr(torch, "set_num_threads", said.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: said[-1])
    monkeypatch.setattr(threads, "_changed", None)
    return said


def test_a_wrapper_sets_it(pico: Any, torchs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    from plam_eval.model_wrappers.llava import PlamLlava

    folder = str(pico("llava").mllm)
    torchs.append(2)
    PlamLlava(folder, device_map="cpu")
    assert torchs[-1] == 1
    monkeypatch.setenv("PLAM_THREADS", "3")
    PlamLlava(folder, device_map="cpu")
    assert torchs[-1] == 3
    monkeypatch.setenv("PLAM_THREADS", "many")
    with pytest.raises(InputError, match="PLAM_THREADS"):
        PlamLlava.check(folder)


def test_a_large_model_gets_torchs_own_number_back_after_a_small_one(torchs: list[int]) -> None:
    torchs.append(3)
    left = []
    for size in (1, 1, threads.SMALL + 1, threads.SMALL + 1, 1):
        threads.use(size)
        left.append(torchs[-1])
    assert left == [1, 1, 3, 3, 1]
    torchs.append(2)  # by somebody else, who is left alone
    threads.use(threads.SMALL + 1)
    assert torchs[-1] == 2


def test_torch_does_as_it_is_told() -> None:
    code = "import torch\nfrom plam_eval import threads\nthreads.use(1)\nprint(torch.get_num_threads())"
    said = {**os.environ, "PLAM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=said, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["3"], done.stderr
