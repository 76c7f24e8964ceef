"""Names and dates of what an evaluation leaves on disk: the newest run is the one that was made last."""

from __future__ import annotations

from pathlib import Path

import pytest

from plam_eval.harness.run_files import is_hidden, later_than_others, samples_file


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([], "20260301_120000"),
        (["20260228_235959_results.json"], "20260301_120000"),
        (["20260301_120000_samples_gqa.jsonl"], "20260301_120001"),  # samples would be appended to it
        (["20270630_115959_results.json", "20260101_000000_results.json"], "20270630_120000"),  # the clock was set back
        (["20271231_235959_samples_a.jsonl"], "20280101_000000"),
        (["99991231_235959_results.json", "20261399_999999_results.json", "notes_of_mine.txt"], "20260301_120000"),
    ],
)
def test_dates_follow_those_that_are_there(tmp_path: Path, written: list[str], expected: str) -> None:
    (tmp_path / "model").mkdir()
    for name in written:
        (tmp_path / "model" / name).touch()
    assert later_than_others("20260301_120000", tmp_path) == expected
    assert later_than_others("20260301_120000", tmp_path / "absent") == "20260301_120000"


def test_a_sample_log_lies_beside_the_results_under_their_date() -> None:
    file = Path("runs", "model", "20260301_120000_results.json")
    assert samples_file(file, "pope") == Path("runs", "model", "20260301_120000_samples_pope.jsonl")


@pytest.mark.parametrize(("name", "hidden"), [("..__model", False), (".__model", False), (".cell", True), ("a", False)])
def test_the_folder_of_a_relative_model_is_not_hidden(name: str, hidden: bool) -> None:
    assert is_hidden(Path("runs") / name / "x_results.json", Path("runs")) is hidden
