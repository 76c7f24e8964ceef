"""Names and dates of what an evaluation leaves on disk: the newest run is the one that was made last."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.run_files import is_hidden, later_than_others, result_files, samples_file, write_run


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


GIVEN: dict[str, Any] = {"model_id": "m", "source": "pretrained=org/m", "date": "20260301_120000"}
RESULTS = {"results": {"pope": {}}, "configs": {"pope": {"task": "pope"}}, "config": {}}


def samples() -> dict[str, list[dict[str, Any]]]:
    line = {"doc_id": 0, "target": "yes", "resps": [["yes"]], "filtered_resps": ["yes"], "doc": {}, "doc_hash": "ab"}
    return {"pope": [{**line, "arguments": ["?"]}, {**line, "doc_id": 1, "arguments": ["?"]}]}


METHODS = ["save_results_aggregated", "save_results_samples"]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_seen_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Results and logs of a run that was stopped while they were written are none."""
    from lmms_eval.loggers import EvaluationTracker

    stock = getattr(EvaluationTracker, method)

    def stopped(self: Any, *words: Any, **named: Any) -> None:
        stock(self, *words, **named)
        assert [file for file in tmp_path.rglob("*.json*") if not is_hidden(file, tmp_path)] == []
        assert result_files(tmp_path) == []
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EvaluationTracker, method, stopped)
        write_run(dict(RESULTS), samples(), tmp_path, **GIVEN)
    assert list(tmp_path.iterdir()) == []
    file = write_run(dict(RESULTS), samples(), tmp_path, **GIVEN)
    assert result_files(tmp_path) == [file] and samples_file(file, "pope").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [file.parent.name]


@pytest.mark.parametrize("method", METHODS)
def test_what_lmms_eval_wrote_half_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """On a disk that fills up it logs a warning and goes on."""
    from lmms_eval.loggers import EvaluationTracker

    stock = getattr(EvaluationTracker, method)

    def half(self: Any, *words: Any, **named: Any) -> None:
        stock(self, *words, **named)
        newest = max(tmp_path.rglob("2026*"), key=lambda file: file.stat().st_mtime_ns)
        os.truncate(newest, newest.stat().st_size - 5)

    with monkeypatch.context() as patch, pytest.raises(EvaluationError, match=r"or not whole.*free some space"):
        patch.setattr(EvaluationTracker, method, half)
        write_run(dict(RESULTS), samples(), tmp_path, **GIVEN)
    assert list(tmp_path.iterdir()) == []
