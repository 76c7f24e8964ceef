"""Content hashes: right, remembered, and computed again whenever what is remembered may not hold."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from plam_eval.merging import content_hash
from plam_eval.merging.content_hash import sha256_of


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content_hash, "_REMEMBERED", 10)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"0123456789" * 1000)
    return path


def right(path: Path) -> bool:
    return sha256_of([path])[path] == hashlib.sha256(path.read_bytes()).hexdigest()


def memory(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "plam-eval" / "sha256").iterdir())


def test_a_file_is_read_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert right(file) and len(memory(tmp_path)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(content_hash, "_read", None)
        assert right(file)
    stat = file.stat()
    file.write_bytes(b"9876543210" * 1000)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and mtime as before: ctime tells
    assert right(file) and len(memory(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"sha256": 3}', "null", "\udcff"])
def test_a_damaged_memory_is_not_believed(file: Path, tmp_path: Path, damage: str) -> None:
    assert right(file)
    (entry,) = memory(tmp_path)
    entry.write_bytes(damage.encode("utf-8", "surrogateescape"))
    assert right(file)
    stored = json.loads(entry.read_text())
    entry.write_text(json.dumps({**stored, "sha256": "not one"}))
    assert right(file)


def test_a_cache_that_cannot_be_written_costs_time_only(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert right(file)


def test_small_files_leave_nothing_behind(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"small")
    assert right(file) and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("cache", [".", "elsewhere"])
def test_a_blob_of_the_hub_is_known_by_its_name(cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files only: the others are named by another hash, of 40 digits. A folder of others may claim any name."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / cache))
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "commit"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, content in (("ab" * 32, b"large"), ("cd" * 20, b"small")):
        (blobs / name).write_bytes(content)
        (snapshot / content.decode()).symlink_to(f"../../blobs/{name}")
    large, small = snapshot / "large", snapshot / "small"
    name = "ab" * 32 if cache == "." else hashlib.sha256(b"large").hexdigest()
    assert sha256_of([large, small]) == {large: name, small: hashlib.sha256(b"small").hexdigest()}
