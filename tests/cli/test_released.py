"""What `plam doctor` says of files of released test sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from plam_eval import cli
from plam_eval.test_sets import TEST_SETS
from tests.helpers.commands import Call
from tests.helpers.released import md5, tsv_rows, vouch, write_tsv

ENGLISH = "plam_mmbench_en_test_v11"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for test_set in TEST_SETS.values():
        monkeypatch.delenv(test_set.file.variable, raising=False)
        monkeypatch.delenv(test_set.file.md5_variable, raising=False)
    monkeypatch.setattr(cli.doctor, "_say_installation", lambda console: True)


def test_nothing_is_named(plam: Call) -> None:
    code, out, _ = plam("doctor")
    assert code == 0 and out.count("is not set") == 3 and all(task in out for task in TEST_SETS)


def test_a_file_that_can_be_used(plam: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tsv(tmp_path / "a.tsv", tsv_rows())
    vouch(monkeypatch, ENGLISH, path)
    state = TEST_SETS[ENGLISH].state()
    assert state.works and md5(path) in state.said and "another version, which you vouch for" in state.said
    code, out, _ = plam("doctor", "--json")
    assert code == 0 and '"works": true' in out and "another version" in out


def test_a_file_that_cannot(plam: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TEST_SETS[ENGLISH].file.variable, str(write_tsv(tmp_path / "a.tsv", tsv_rows())))
    code, out, err = plam("doctor")
    assert code == 1 and "cannot be used" in out
    assert "expected 8d1a704e791df6f5d9fb3ef782b65365" in " ".join((out + err).split())


def test_the_doctor_fetches_nothing(plam: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TEST_SETS[ENGLISH].file.variable, "http://127.0.0.1:1/MMBench_TEST_EN_V11.tsv")
    code, out, _ = plam("doctor")
    assert code == 0 and "not fetched yet" in out


def test_the_doctor_says_that_nothing_can_be_kept(plam: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vouch(monkeypatch, ENGLISH, write_tsv(tmp_path / "a.tsv", tsv_rows()))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    code, out, _ = plam("doctor", "--json")
    assert code == 1 and "set XDG_CACHE_HOME to a folder" in out
