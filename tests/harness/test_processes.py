"""Which of a launcher's processes is the first, and what all of them say."""

from __future__ import annotations

import pytest

from plam_eval.harness.processes import all_ranks, end_together, is_first_process


def test_the_launcher_says_which_process_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert is_first_process()
    for rank, first in (("0", True), ("1", False), ("10", False)):
        monkeypatch.setenv("RANK", rank)
        assert is_first_process() is first


def test_one_process_says_what_it_says_and_waits_for_none() -> None:
    assert all_ranks({"calls": 3}) == [{"calls": 3}]
    end_together()
