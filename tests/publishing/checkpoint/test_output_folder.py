"""Where an export goes: it is there when it is complete, and nothing of anybody else's is deleted for it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from plam_eval import export
from plam_eval.errors import ExportError, FolderError
from plam_eval.files import locked
from plam_eval.merging.export_record import FILE, read_export_record
from plam_eval.publishing.card.licences import README
from tests.helpers.hub import sha256
from tests.helpers.llamas import Pair, shard, write_llama

LAYERS = "1:3"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A sharded MLLM and its base. Do not modify."""
    folder = tmp_path_factory.mktemp("pair")
    return Pair(shard(write_llama(folder / "mllm", 1)), write_llama(folder / "base", 2))


def write(pair: Pair, output: Path, **given: Any) -> Path:
    return export(pair.mllm, None, output, base=pair.base, layers=LAYERS, **given).folder


def is_complete(folder: Path) -> bool:
    record = read_export_record(folder)
    return {path.name for path in folder.iterdir()} == {FILE, README, *record.files} and all(
        sha256(folder / name) == file.sha256 for name, file in record.files.items()
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- replacing -------------------------------------------------------------------------------------------------------


def test_an_export_is_replaced_only_when_asked_for(pair: Pair, tmp_path: Path) -> None:
    first = read_export_record(write(pair, tmp_path / "out"))
    with pytest.raises(ExportError, match="--overwrite"):
        write(pair, tmp_path / "out", base_weight=0.1)
    assert read_export_record(tmp_path / "out") == first
    write(pair, tmp_path / "out", base_weight=0.1, overwrite=True)
    assert read_export_record(tmp_path / "out").digest != first.digest
    assert is_complete(tmp_path / "out") and names(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["a folder of files", "a file", "a link", "a checkpoint"])
def test_what_is_no_export_stays(pair: Pair, tmp_path: Path, what: str, overwrite: bool) -> None:
    out = tmp_path / "out"
    if what == "a file":
        out.write_text("mine")
    elif what == "a link":
        write(pair, tmp_path / "elsewhere")
        out.symlink_to("elsewhere")
    elif what == "a checkpoint":
        shutil.copytree(pair.mllm, out)
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(ExportError, match="name another output"):
        write(pair, out, overwrite=overwrite)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["mine.gguf", ".git/refs/heads/unpushed"])
def test_a_file_that_was_put_into_an_export_is_not_deleted_with_it(pair: Pair, tmp_path: Path, name: str) -> None:
    write(pair, tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(ExportError, match=name.replace(".", r"\.")):
        write(pair, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / name).read_text() == "mine" and names(tmp_path) == ["out"]


def test_a_record_that_cannot_be_read_decides_nothing(pair: Pair, tmp_path: Path) -> None:
    write(pair, tmp_path / "out")
    (tmp_path / "out" / FILE).write_text("{")
    with pytest.raises(ExportError, match=FILE):
        write(pair, tmp_path / "out", overwrite=True)
    assert "config.json" in names(tmp_path / "out")


def test_an_empty_folder_is_taken(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert is_complete(write(pair, tmp_path / "out")) and names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("pair/mllm", "is the folder of the checkpoint"),
        ("pair/base", "is the folder of the checkpoint"),
        ("pair/mllm/out", "lies inside of"),
        ("pair/base/deep/out", "lies inside of"),
        ("pair", "holds"),
        ("here", "is the working directory"),
        (".", "is the working directory"),
        ("link/out", "lies inside of"),
    ],
)
def test_the_source_is_never_written_to(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, said: str
) -> None:
    shutil.copytree(pair.mllm.parent, tmp_path / "pair")
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("pair/mllm")
    monkeypatch.chdir(tmp_path / "here")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    own = Pair(tmp_path / "pair" / "mllm", tmp_path / "pair" / "base")
    with pytest.raises(ExportError, match=said):
        write(own, Path() if output == "." else tmp_path / output, overwrite=True)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name",
    ["x" * 250, "x" * 300, "x" * 300 + "/out", "模" * 84, "a\0b"],
    ids=["with its hidden folder", "alone", "above it", "in bytes", "null"],
)
def test_a_name_that_cannot_be_is_said_before_the_first_byte(pair: Pair, tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match=r"too long a name|null character"):
        write(pair, tmp_path / name)
    assert names(tmp_path) == []


def test_a_hidden_folder_of_somebody_else_stays(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="plam-eval has not made it"):
        write(pair, tmp_path / "out")
    assert (tmp_path / ".out.partial" / "mine.txt").read_text() == "mine"


def test_two_exports_do_not_write_to_one_place(pair: Pair, tmp_path: Path) -> None:
    work = tmp_path / ".out.partial"
    work.mkdir()
    (work / ".plam-eval").touch()
    with locked(work, ".lock"), pytest.raises(FolderError, match="another process"):
        write(pair, tmp_path / "out")
    assert is_complete(write(pair, tmp_path / "out")) and names(tmp_path) == ["out"]


# ---- disks -----------------------------------------------------------------------------------------------------------


def test_too_little_disk_is_said_before_the_first_byte(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(path.stat().st_size for path in pair.mllm.iterdir())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, size))
    with pytest.raises(ExportError) as caught:
        write(pair, tmp_path / "new" / "out")
    assert f"({size:,} bytes) free" in str(caught.value) and f"{size + (1 << 20):,} bytes" in str(caught.value)
    assert names(tmp_path) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, size + (1 << 20)))
    assert is_complete(write(pair, tmp_path / "new" / "out"))


def test_a_folder_that_cannot_be_written_is_said_before(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="is a file, expected a folder"):
        write(pair, tmp_path / "file" / "out")


class Steps:
    """Counts what reaches the disk, and does something at one of these steps or from it on."""

    CALLS = ("copy_file_range", "pwrite", "fsync", "mkdir", "rename", "replace")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: int, *, for_good: bool) -> None:
        self.count = 0
        for name in self.CALLS:
            original = getattr(os, name)

            def call(*given: Any, _original: Any = original, **more: Any) -> Any:
                self.count += 1
                if self.count == fail or (for_good and self.count > fail):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return _original(*given, **more)

            monkeypatch.setattr(os, name, call)


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_disk_that_is_full_at_any_write_leaves_nothing(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool, for_good: bool
) -> None:
    out = tmp_path / "deep" / "out"
    if replaced:
        write(pair, out)
        before = read_export_record(out)
    for step in range(1, 1000):
        with monkeypatch.context() as patch:
            counted = Steps(patch, step, for_good=for_good)
            try:
                write(pair, out, base_weight=0.1, overwrite=True)
            except (OSError, ExportError):
                failed = True
            else:
                failed = False
        if failed and not replaced:
            assert names(tmp_path) == [], step
        elif failed and not out.exists():  # neither of two renames could be taken back
            assert for_good and names(out.parent) == [".out.partial"]
        else:
            assert is_complete(out) and names(out.parent) == ["out"], step
            assert not replaced or (read_export_record(out) == before) == failed, step
        if not failed:
            if counted.count < step:
                break
            shutil.rmtree(out)
            if replaced:
                write(pair, out)
                before = read_export_record(out)
            else:
                out.parent.rmdir()
    assert 20 < step < 999
    write(pair, out, base_weight=0.2, overwrite=True)
    assert is_complete(out) and names(out.parent) == ["out"]


def test_a_kill_between_two_renames_loses_no_export(pair: Pair, tmp_path: Path) -> None:
    write(pair, tmp_path / "out")
    work = tmp_path / ".out.partial"
    work.mkdir()
    (work / ".plam-eval").touch()
    (tmp_path / "out").rename(work / "replaced")
    with pytest.raises(FolderError, match="--overwrite"):
        write(pair, tmp_path / "out")
    assert is_complete(tmp_path / "out") and names(tmp_path) == ["out"]


def test_a_source_that_changes_meanwhile_is_noticed(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plam_eval.publishing.checkpoint import export as checkpoint

    own = Pair(Path(shutil.copytree(pair.mllm, tmp_path / "mllm")), pair.base)
    copy = checkpoint.copy_file

    def change(source: Path, target: Path, progress: Any) -> None:
        copy(source, target, progress)
        if source.name == "config.json":
            content = json.loads(source.read_text())
            source.write_text(json.dumps({**content, "changed": True}))

    monkeypatch.setattr(checkpoint, "copy_file", change)
    with pytest.raises(ExportError, match="changed on disk"):
        write(own, tmp_path / "out")
    assert names(tmp_path) == ["mllm"]
