from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from plam_eval import beside as beside_module
from plam_eval.beside import beside
from plam_eval.errors import DamagedFileError, FolderError, OutsideError, system_error
from plam_eval.files import (
    MARKER,
    check_free,
    check_writable,
    inside,
    locked,
    make_own,
    moved_when_whole,
    read_json,
    remove_own,
    write_in_one_step,
    write_json,
)


@pytest.mark.parametrize(
    "content", [b"{", b"", b"\xff\xfe{}", b'["\xed\xa0\x80"]', b"[" * 100_000, b"[1]", b"null", b"3"]
)
def test_damaged_json_names_the_file_and_the_remedy(tmp_path, content):
    file = tmp_path / "index.json"
    file.write_bytes(content)
    with pytest.raises(DamagedFileError, match=re.escape(str(file)) + ".*; download it again"):
        read_json(file, "download it again")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    file = tmp_path / "sweep.json"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)  # takes no space
    with pytest.raises(DamagedFileError, match=re.escape(str(file)) + ": is larger than .*; restore it"):
        read_json(file, "restore it")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "cell.json")
    with pytest.raises(DamagedFileError, match="no file that holds something; delete it"):
        read_json(tmp_path / "cell.json", "delete it")


def test_numbers_that_no_table_holds_are_floats(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(f'{{"a": [{2**63 - 1}, {-(2**63)}, {2**63}, 1{"0" * 30}, -1{"0" * 400}, 1{"0" * 6000}]}}')
    found = read_json(file, "")["a"]
    assert found == [2**63 - 1, -(2**63), 2.0**63, 1e30, -float("inf"), float("inf")]
    assert [type(number) for number in found] == [int, int, float, float, float, float]


def test_half_a_surrogate_pair_can_be_written_again(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(r'{"\ud800": ["\udfff", "\ud83d\ude00", "\\ud800"]}')
    assert read_json(file, "") == {"?": ["?", "\N{GRINNING FACE}", r"\ud800"]}


@pytest.mark.parametrize("depth", [99, 100, 400, 900, 100_000])
def test_json_is_as_deep_as_any_code_can_go(tmp_path, depth):
    file = tmp_path / "a.json"
    file.write_text('{"a": ' + "[" * depth + "]" * depth + "}")
    if depth < 100:
        assert "a" in read_json(file, "")
        return
    with pytest.raises(DamagedFileError, match=r"more than 100 lists|recursion"):
        read_json(file, "")


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_in_one_step(file, fail)
    assert read_json(file, "") == {"a": 1} and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "/etc/passwd", "", ".", 3, None, "a\0b", "..\\x", "C:x"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(OutsideError, match=r"sweep\.json"):
        inside(tmp_path, name, "sweep.json")


def test_links_that_lead_to_themselves_are_refused(tmp_path):
    (tmp_path / "cells").symlink_to("cells")
    with pytest.raises(OutsideError, match=r"sweep\.json: 'cells/plain'"):
        inside(tmp_path, "cells/plain", "sweep.json")


def test_links_that_lead_out_are_refused_unless_they_are_usual(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "blob").write_text("x")
    (folder / "link").symlink_to(tmp_path / "blob")
    (folder / "within").symlink_to(folder / "cells")
    with pytest.raises(OutsideError, match="leads to"):
        inside(folder, "link", "index.json")
    assert inside(folder, "link", "index.json", follow_links=False) == folder / "link"
    assert inside(folder, "within", "index.json") == folder / "within"
    assert inside(folder, "cells/a.json", "index.json") == folder / "cells" / "a.json"


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for name in ("a.json", ".a.partial.json"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "mine").read_text() == "mine" and read_json(tmp_path / "a.json", "") == {"a": 1}


def test_nothing_is_written_into_what_lies_beside(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".a.partial.json").hardlink_to(tmp_path / "mine")
    os.mkfifo(tmp_path / ".b.partial.json")  # to open it would take as long as nobody reads it
    for name in ("a.json", "b.json"):
        write_json(tmp_path / name, {"a": 1})
        assert read_json(tmp_path / name, "") == {"a": 1}
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_folder_that_can_be_written_is_left_as_it_is(tmp_path):
    check_writable(tmp_path / "new" / "er")
    check_writable(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "No space left on device.*free some space, and the same command goes on"),
        (errno.EROFS, "Read-only file system.*name another output"),
        (errno.EACCES, "Permission denied.*name another output"),
    ],
)
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, number, says):
    def fail(**given: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(FolderError, match=says):
        check_writable(tmp_path / "out")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name, what in (("file", "a file"), ("file/below", "a file"), ("link", "a link to nothing")):
        with pytest.raises(FolderError, match=f"is {what}, expected a folder"):
            check_writable(tmp_path / name)


def test_only_folders_of_ours_are_deleted(tmp_path):
    ours = tmp_path / "a" / "ours"
    make_own(ours)
    (ours / "x").touch()
    remove_own(ours)
    assert not ours.exists() and (tmp_path / "a").exists()
    remove_own(ours)  # there is none
    ours.mkdir()
    remove_own(ours)  # a kill may come between its making and its mark
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "log.txt").touch()
    link = tmp_path / "link"
    link.symlink_to(theirs)
    for folder in (theirs, link, theirs / "log.txt"):
        with pytest.raises(FolderError):
            remove_own(folder, "cell.json")
    (theirs / MARKER).mkdir()
    with pytest.raises(FolderError, match="has not made it"):
        remove_own(theirs)
    assert (theirs / "log.txt").exists()
    remove_own(theirs, "log.txt")
    assert not theirs.exists()


def test_files_of_something_else_are_not_overwritten(tmp_path):
    check_free(tmp_path, ["a.csv"], "sweep.json")
    (tmp_path / "a.csv").symlink_to(tmp_path / "nothing")
    with pytest.raises(FolderError, match=r"holds a\.csv and no sweep\.json"):
        check_free(tmp_path, ["a.csv", "b.csv"], "sweep.json")
    (tmp_path / "sweep.json").touch()
    check_free(tmp_path, ["a.csv"], "sweep.json")


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys, pathlib; from plam_eval.files import locked\nwith locked(pathlib.Path(sys.argv[1]), 'x.lock'):\n"
    )
    command = [sys.executable, "-c", code + "    print('locked', flush=True); sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        with pytest.raises(FolderError, match="another process is at work"), locked(tmp_path, "x.lock"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with locked(tmp_path, "x.lock"), pytest.raises(KeyError), locked(tmp_path, "x.lock", KeyError):
        pass
    with locked(tmp_path, "x.lock"):
        pass
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "y.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(FolderError, match="found a link"), locked(tmp_path, "y.lock"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_folder_that_is_deleted_as_soon_as_it_is_made_is_told(tmp_path, monkeypatch):
    touch = Path.touch

    def late(path: Path) -> None:
        shutil.rmtree(path.parent)
        touch(path)

    monkeypatch.setattr(Path, "touch", late)
    with pytest.raises(FolderError, match="was deleted or moved while it was written to"):
        make_own(tmp_path / "cell")


def test_a_container_that_counts_processes_for_itself_is_elsewhere(monkeypatch):
    here = beside_module._here()
    monkeypatch.setattr(Path, "is_symlink", lambda path: True)
    monkeypatch.setattr(Path, "readlink", lambda path: Path("pid:[1]"))
    assert beside_module._here() != here == beside_module._HERE


def test_where_the_system_has_no_locks_the_message_names_the_file_that_stands_for_one(tmp_path, monkeypatch):
    import fcntl

    def flock(*given: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path, "x.lock"):
        pass
    (tmp_path / "x.lock").write_text("1\nanother machine\n")
    with pytest.raises(FolderError, match=r"no locks, so x\.lock stands for one"), locked(tmp_path, "x.lock"):
        pass


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError) as error:
        write_in_one_step(tmp_path / "curve.png", full)
    assert system_error(error.value) == (
        f"{tmp_path / 'curve.png'}: No space left on device; free some space, and the same command goes on where it was"
    )
    assert not list(tmp_path.iterdir())


# ---- kills, and processes beside each other --------------------------------------------------------------------------


def test_what_a_kill_leaves_of_a_folder_is_still_known_to_be_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cell"
    make_own(folder)
    for name in ("log.txt", "zzz", "a/b/c"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    unlink, rounds = os.unlink, 0
    while folder.exists():
        deleted = 0

        def killed(path: Any, *given: Any, **more: Any) -> None:
            nonlocal deleted
            if deleted == 1:
                raise KeyboardInterrupt
            deleted += 1
            unlink(path, *given, **more)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(os, "unlink", killed)
            remove_own(folder, "log.txt")
        rounds += 1
    assert rounds >= 4


def test_processes_that_write_one_file_do_not_move_each_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(partial: Path) -> None:
        with partial.open("w") as stream:
            stream.write("half")
            stream.flush()
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", os.getppid)  # which lives, too
                write_in_one_step(tmp_path / "a.txt", lambda other: other.write_text("theirs"))
            assert (tmp_path / "a.txt").read_text() == "theirs"
            stream.write(" and whole")

    write_in_one_step(tmp_path / "a.txt", write)
    assert (tmp_path / "a.txt").read_text() == "half and whole" and len(list(tmp_path.iterdir())) == 1


def test_what_killed_processes_left_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: ended.pid)
        left, folder = beside(tmp_path / "a.json"), beside(tmp_path / "run")
    left.write_text("{")
    make_own(folder)
    for name in (f".a.ffffff-{ended.pid}.partial.json", ".a.mine.partial.json", ".ab.partial.json"):
        (tmp_path / name).touch()
    write_json(tmp_path / "a.json", {})
    with moved_when_whole(tmp_path, "run") as mine:
        (mine / "x").touch()
        assert not left.exists() and not folder.exists() and mine.is_dir()
    assert not mine.exists() and len(list(tmp_path.iterdir())) == 4


def test_what_was_left_and_cannot_be_deleted_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another user's process, say, or while another process deletes it."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: ended.pid)
        left, folder = beside(tmp_path / "a.json"), beside(tmp_path / "run")
    left.write_text("{")
    folder.mkdir()
    (folder / "x").touch()
    stock = Path.unlink

    def refused(path: Path, **given: Any) -> None:
        if path == left:
            raise PermissionError(1, "Operation not permitted", str(path))
        stock(path, **given)

    monkeypatch.setattr(Path, "unlink", refused)
    write_json(tmp_path / "a.json", {})
    with moved_when_whole(tmp_path, "run") as mine:
        (mine / "y").touch()
        (mine / "y").replace(tmp_path / "y")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([left.name, folder.name, "a.json", "y"])


def test_an_output_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()

    def write(partial: Path) -> None:
        partial.write_text("half")
        shutil.rmtree(folder)

    for each in (write, lambda partial: partial.touch()):
        with pytest.raises(FolderError, match="out: was deleted or moved while it was written to; the same command"):
            write_in_one_step(folder / "a.txt", each)
