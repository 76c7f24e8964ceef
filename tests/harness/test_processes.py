"""Which of a launcher's processes is the first, and what all of them say."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import distributed

from plam_eval.harness.processes import all_ranks, end_together, is_first_process, is_of_another, which


def test_the_launcher_says_which_process_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert is_first_process()
    for rank, first in (("0", True), ("1", False), ("10", False)):
        monkeypatch.setenv("RANK", rank)
        assert is_first_process() is first


def test_a_message_says_of_which_process_it_is_and_whether_another_one_is_the_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_off = RuntimeError("[transport/tcp/pair.cc:537] Read error [127.0.0.1]:19169: Connection reset by peer")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert which() == "" and not is_of_another(cut_off)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert which() == " (rank 3 of 8)" and is_of_another(cut_off)
    assert is_of_another(RuntimeError("NCCL communicator was aborted on rank 3."))
    assert not is_of_another(RuntimeError("CUDA error: out of memory")) and not is_of_another(OSError("reset by peer"))


def test_one_process_says_what_it_says_and_waits_for_none() -> None:
    assert all_ranks({"calls": 3}) == [{"calls": 3}]
    end_together()


def test_a_group_of_one_is_left_to_whoever_made_it(tmp_path: Path) -> None:
    """vLLM makes one in the process of its engine, and could make no second engine there without it."""
    if distributed.is_initialized():  # of a test before, in this process
        distributed.destroy_process_group()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        end_together()
        assert distributed.is_initialized()
    finally:
        distributed.destroy_process_group()
