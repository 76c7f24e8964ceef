"""Reading and writing files of ours: in one step, inside their own folder, and with errors that name the file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from plam_eval.beside import beside, gone, left_behind
from plam_eval.errors import DamagedFileError, FolderError, InputError, OutsideError

MARKER = ".plam-eval"
"""File in a folder that plam-eval has made and may delete."""

LARGEST_JSON = 1 << 27
"""Bytes of a JSON file that is read as one: ten times what a sweep of the most cells, or the largest index, takes."""

DEEPEST_JSON = 100
"""Lists and objects inside each other: several times those of any record, and few enough for code that recurses."""

_PROBE = 1 << 16  # bytes: a full disk may still take an empty file
_BLOCK = 8 << 20  # bytes that are hashed at once
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def write_in_one_step(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a path beside `path`, and move what it wrote there: a kill leaves the old file or the new one.

    Of several processes that do so each writes beside `path` for itself; the last one's file stays, whole.

    Raises OSError when it cannot be written; nothing is left beside `path` then. FolderError: its folder is gone.
    """
    partial = beside(path)
    try:
        for left in left_behind(path):
            with suppress(OSError):  # a folder, or another user's
                left.unlink()
        # In a folder of somebody else it may be a link to any file, or a pipe, which would be waited for.
        partial.unlink(missing_ok=True)
        write(partial)
        partial.replace(path)
    except BaseException as error:
        if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
            raise gone(path.parent) from error
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a write to an open file does not say which
        with suppress(OSError):  # of a disk that fails, which has said so already
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def moved_when_whole(folder: Path, name: str) -> Iterator[Path]:
    """While entered, a hidden folder below `folder` for this process to write into; it is deleted at the end.

    Whatever is to stay is moved out of it; a kill leaves it to the next call, which deletes it if it can.

    Args:
        folder: made where it is missing.
        name: of what is written.

    Raises:
        FolderError: something that plam-eval has not made has its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mine = beside(folder / name)
    for left in left_behind(folder / name):
        with suppress(OSError, FolderError):  # another process deletes it just now, or it is another user's
            remove_own(left)
    remove_own(mine)
    make_own(mine)
    try:
        yield mine
    finally:
        with suppress(OSError):
            remove_own(mine)


def write_json(path: Path, content: Any) -> None:
    """Write `content`, anything that JSON holds, to the file `path`, in one step; raises OSError when it cannot."""
    text = json.dumps(content, indent=2) + "\n"
    write_in_one_step(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file. Half a surrogate pair in a text, which no file of text can hold, becomes "?".

    Whole numbers beyond 64 bits become floats.

    Args:
        path: of the file.
        remedy: what to do where it is none, such as "download it again".

    Raises:
        DamagedFileError: the file is none, or larger than `LARGEST_JSON`, not UTF-8, not JSON, or holds something
            else than an object.
        OSError: it cannot be opened.
    """
    return json_object(read_at_most(path, LARGEST_JSON, remedy), str(path), remedy)


def read_at_most(path: Path, most: int, remedy: str) -> bytes:
    """The content of a file that may be anybody's.

    Args:
        path: of the file.
        most: bytes that it may have.
        remedy: what to do where it cannot be taken.

    Raises:
        DamagedFileError: as `check_size`.
        OSError: it cannot be opened.
    """
    check_size(path, most, remedy)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:  # it has grown meanwhile
        raise DamagedFileError(f"{path}: is larger than {most} bytes; {remedy}")
    return content


def check_size(path: Path, most: int, remedy: str) -> None:
    """Refuse what would be read, or waited for, without end.

    Args:
        path: of a file.
        most: bytes that it may have.
        remedy: what to do where it cannot be taken.

    Raises:
        DamagedFileError: it is no file, but a folder, a pipe or a device; or it is larger.
        OSError: it is not there.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        what = "a folder, and a file is expected" if path.is_dir() else "no file that holds something"
        raise DamagedFileError(f"{path}: is {what}; {remedy}")
    if status.st_size > most:
        raise DamagedFileError(f"{path}: is larger than {most} bytes; {remedy}")


def sha256_of_file(path: Path, progress: Callable[[int], Any] = lambda count: None) -> str:
    """SHA-256 (hex) of a file's content, read as a stream.

    Args:
        path: of the file.
        progress: told how many bytes were just read.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return digest_of(file, progress=progress)


def digest_of(
    stream: IO[bytes], algorithm: str = "sha256", *, progress: Callable[[int], Any] = lambda count: None
) -> str:
    """The digest (hex) of what is left of a stream.

    Args:
        stream: open for reading.
        algorithm: as hashlib calls it.
        progress: told how many bytes were just read.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    while block := stream.read(_BLOCK):
        digest.update(block)
        progress(len(block))
    return digest.hexdigest()


def json_object(text: bytes, origin: str, remedy: str) -> dict[str, Any]:
    """The JSON object that `text` is, read as `read_json` reads a file.

    Args:
        text: the content of a file, of more than `LARGEST_JSON` bytes at most one more.
        origin: what messages call it.
        remedy: what to do where it is none.

    Raises:
        DamagedFileError: it is none.
    """
    if len(text) > LARGEST_JSON:
        raise DamagedFileError(f"{origin}: is larger than {LARGEST_JSON} bytes, expected a JSON object; {remedy}")
    try:
        content = writable(check_depth(json.loads(text.decode("utf-8-sig"), parse_int=_number)), text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{origin}: cannot be read as JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{origin}: found {type(content).__name__}, expected a JSON object; {remedy}")
    return content


def check_depth(content: Any) -> Any:
    """`content`, read of JSON; raises ValueError where it has more than `DEEPEST_JSON` levels.

    Code that recurses, such as repr, would end at some depth, and at another one in every place.
    """
    level = [content]
    for _ in range(DEEPEST_JSON):
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return content
    raise ValueError(f"more than {DEEPEST_JSON} lists and objects inside each other")


def _number(digits: str) -> int | float:
    """A whole number beyond 64 bits, which no column of a table holds, as the nearest float: as JavaScript reads it."""
    value = int(digits) if len(digits) <= 20 else float(digits)
    return value if -(2**63) <= value < 2**63 else float(value)


def writable(content: Any, text: bytes) -> Any:
    """JSON in whose texts half a surrogate pair, which no file of text can hold, is a "?".

    Args:
        content: as it was read.
        text: that it was read from.
    """
    return _writable(content) if _SURROGATE.search(text) else content


def _writable(content: Any) -> Any:
    if isinstance(content, dict):
        return {_writable(key): _writable(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_writable(value) for value in content]
    return content.encode("utf-8", "replace").decode("utf-8") if isinstance(content, str) else content


def inside(folder: Path, name: object, origin: str, *, follow_links: bool = True) -> Path:
    """The path of `name`, which stood in a file, below the folder that it belongs into.

    Args:
        folder: that it belongs into.
        name: a relative path, as it was read.
        origin: where the name was read, for the message.
        follow_links: refuse symbolic links that lead out, too. False where links are usual, as in a hub's cache.

    Raises:
        OutsideError: it is no relative path of plain names, or leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise OutsideError(f"{origin}: found {name!r} as the name of a file, expected text")
    path = PurePosixPath(name)
    plain = not path.is_absolute() and ".." not in path.parts and path.parts and "\\" not in name
    if not plain or PureWindowsPath(name).drive:
        raise OutsideError(f"{origin}: names {name!r}, expected a file inside {folder}")
    below = folder / path
    if follow_links:
        try:
            target = below.resolve()
        except RuntimeError as error:  # Python before 3.13, of links that lead to each other
            raise OutsideError(f"{origin}: {name!r} is a link that leads to itself; delete it") from error
        if not target.is_relative_to(folder.resolve()):
            raise OutsideError(f"{origin}: {name!r} leads to {target}, expected a file inside {folder}")
    return below


def expanded(path: str | Path) -> Path:
    """A path of the user's with the home folder in the place of "~", as a shell would have it.

    Args:
        path: as it was written.

    Raises:
        InputError: it begins with "~" and a user whom this machine does not know.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: {error}; write ./{path} for a file of that name") from error


def check_writable(folder: str | Path) -> None:
    """Raise FolderError when nothing can be written to `folder`, which need not exist yet. It is left as it is."""
    folder = Path(folder)
    nearest = folder
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        what = "a file" if nearest.exists() else "a link to nothing"
        raise FolderError(f"{folder}: {nearest} is {what}, expected a folder; name another output")
    try:
        with tempfile.TemporaryFile(dir=nearest) as probe:
            probe.write(bytes(_PROBE))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        remedy = "free some space, and the same command goes on" if full else "name another output"
        raise FolderError(f"{folder}: cannot be written ({error.strerror or error}); {remedy}") from error


def make_own(folder: Path) -> None:
    """Make `folder`, which is not there yet, as one that `remove_own` may delete; FolderError where it is gone."""
    folder.mkdir(parents=True)
    try:
        (folder / MARKER).touch()
    except FileNotFoundError:
        raise gone(folder) from None


def remove_own(folder: Path, *marks: str) -> None:
    """Delete a folder of ours with all that is in it; nothing happens where there is none.

    Its marks go last: what a kill leaves of it is still known to be ours.

    Args:
        folder: to be deleted.
        marks: files that mark a folder of ours as well: those of versions that wrote no `MARKER`.

    Raises:
        FolderError: it is a link or a file, or it holds something and no mark.
    """
    check_own(folder, *marks)
    if not os.path.lexists(folder):
        return
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name in (MARKER, *marks)):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    folder.rmdir()


def check_own(folder: Path, *marks: str) -> None:
    """Raise what `remove_own` would raise, and delete nothing.

    Args:
        folder: that would be deleted.
        marks: files that mark a folder of ours as well.

    Raises:
        FolderError: it is a link or a file, or it holds something and no mark.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise FolderError(f"{folder}: found {'a link' if folder.is_symlink() else 'a file'} where a folder is to be")
    if any(folder.iterdir()) and not any((folder / mark).is_file() for mark in (MARKER, *marks)):
        raise FolderError(f"{folder}: plam-eval has not made it, so it is not deleted; move it, or name another output")


def check_free(folder: Path, names: Iterable[str], marker: str) -> None:
    """Raise FolderError where one of the files `names` is in a folder without `marker`, the file that makes it ours."""
    if (folder / marker).is_file():
        return
    if taken := [name for name in names if os.path.lexists(folder / name)]:
        raise FolderError(
            f"{folder}: holds {', '.join(taken)} and no {marker}, so they are of something else and are not "
            "overwritten; name another output"
        )


def used_locks(folder: Path, name: str) -> list[str]:
    """`name` where the file that would be the lock of a folder holds something, which no lock of ours does; or nothing.

    Args:
        folder: need not exist.
        name: of the lock.
    """
    file = folder / name
    return [name] if os.path.lexists(file) and (file.is_symlink() or not file.is_file() or file.stat().st_size) else []


@contextmanager
def locked(folder: Path, name: str, error: type[Exception] = FolderError, *, patience: float = 0) -> Iterator[None]:
    """While entered, no other process is; the system lifts the lock when the process ends, however it ends.

    Args:
        folder: that is locked; it is made where there is none.
        name: of the file in it that is the lock, and stays.
        error: what is raised when another process holds it, or the file is a link.
        patience: seconds that are waited for it; below 0 as long as it takes.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    if file.is_symlink():
        raise error(f"{file}: found a link, expected a file of plam-eval's own; delete it")
    own, lock = file.resolve(), FileLock(file)
    try:
        # lmms-eval makes file locks of one process reentrant, so that this process has to know its own.
        if own in _HELD:
            raise Timeout(str(file))
        lock.acquire(timeout=patience)
    except Timeout:
        told = f"{folder}: another process is at work in it; wait for it, or stop it"
        if isinstance(lock, SoftFileLock):  # which stays where its machine is gone
            told += f". This file system has no locks, so {file.name} stands for one: if no process is there, delete it"
        raise error(told) from None
    _HELD.add(own)
    try:
        yield
    finally:
        _HELD.discard(own)
        lock.release()


_HELD: set[Path] = set()
