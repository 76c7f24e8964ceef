"""A folder that is written beside its place and moved there when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from plam_eval.errors import ExportError, FolderError, PlamError, listed
from plam_eval.files import MARKER, check_own, check_writable, locked, remove_own
from plam_eval.hub import in_words
from plam_eval.merging.export_record import FILE, read_export_record
from plam_eval.publishing.card.licences import README

_LOCK = ".lock"
_CONTENT, _REPLACED = "content", "replaced"
_MARGIN = 1 << 20  # bytes that the record, the card and the file system's own records take
_OF_OTHERS = (".gitattributes", ".gitignore", ".cache")
"""What the hub's client puts into a folder that is pushed; git's own folder may hold what was never pushed."""


def check_output(output: Path, sources: Sequence[Path], *, overwrite: bool) -> list[str]:
    """Why an export cannot be written to a folder, each reason in words; nothing is written to find out.

    Args:
        output: where the export is to be.
        sources: folders that are read.
        overwrite: whether an export that is there is replaced.
    """
    if problem := _name_problem(output):
        return [problem]
    problems = []
    try:
        place = output.resolve()
    except RuntimeError:  # Python before 3.13
        return [f"{output}: is a link that leads to itself; name another output"]
    for source in sources:
        real = source.resolve()
        if place == real:
            problems.append(f"{output}: is the folder of the checkpoint that is read; name another output")
        elif place.is_relative_to(real):
            problems.append(f"{output}: lies inside of {source}, which is read; name a folder outside of it")
        elif real.is_relative_to(place):
            problems.append(f"{output}: holds {source}, which is read; name another output")
    if Path.cwd().is_relative_to(place):
        problems.append(f"{output}: is the working directory, or holds it; name a new folder in it")
    if problems:
        return problems
    try:
        _check_place(output, overwrite)
        check_own(_work_folder(output))
        check_writable(output.parent)
    except PlamError as error:
        problems.append(str(error))
    return problems


def _name_problem(output: Path) -> str | None:
    """Why there can be no folder of that name, whatever else there is."""
    for path in (output, _work_folder(output)):
        try:
            os.lstat(path)
        except ValueError:
            return f"{str(output)!r}: holds a null character, which no name can; name another output"
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return f"{output}: is too long a name for the file system; give a shorter one"
    return None


def _check_place(output: Path, overwrite: bool) -> None:
    """Raises FolderError where something is that the export may not replace."""
    if not os.path.lexists(output):
        return
    if output.is_symlink() or not output.is_dir():
        what = "a link" if output.is_symlink() else "a file"
        raise FolderError(f"{output}: found {what} where a folder is to be; name another output")
    if os.path.ismount(output):
        raise FolderError(f"{output}: a file system begins there, so no folder can be moved there; name a folder in it")
    if not any(output.iterdir()):
        return
    if not (output / FILE).is_file():
        raise FolderError(f"{output}: holds something that is no export, and is not overwritten; name another output")
    if not overwrite:
        raise FolderError(f"{output}: an export is there; name another output, or replace it with --overwrite")
    written = {FILE, README, *read_export_record(output).files}
    files = (path.relative_to(output) for path in output.rglob("*") if path.is_symlink() or not path.is_dir())
    others = sorted(str(file) for file in files if file.as_posix() not in written and file.parts[0] not in _OF_OTHERS)
    if others:
        raise FolderError(
            f"{output}: holds {listed(others)}, which no export wrote, so it is not replaced; move that, or "
            "name another output"
        )


def check_space(output: Path, size: int) -> None:
    """Raise ExportError where the file system has less room than an export takes.

    A file system that shares the content of copies takes less; nobody can tell before how much.

    Args:
        output: where the export is to be.
        size: bytes of it.
    """
    nearest = _nearest(output)
    free, needed = shutil.disk_usage(nearest).free, size + _MARGIN
    if free < needed:
        raise ExportError(
            f"{output}: the export takes {in_words(needed)} ({needed:,} bytes), and {nearest} has {in_words(free)} "
            f"({free:,} bytes) free; free some space, or name another output"
        )


def on_one_disk(one: Path, other: Path) -> bool:
    """Whether two paths, `one` and `other`, lie on one file system; neither has to be there yet."""
    return _nearest(one).stat().st_dev == _nearest(other).stat().st_dev


def _nearest(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _work_folder(output: Path) -> Path:
    return output.parent / f".{output.name}.partial"


@contextlib.contextmanager
def built(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """While entered, a folder to write into: at the end it is moved to `output`, or nothing is left of it.

    A kill leaves a hidden folder beside `output`, which the next export to it deletes.

    Args:
        output: as `check_output` has found it to be fit; in no case is something replaced that is not.
        overwrite: whether an export that is there is replaced, once the new one is complete.

    Raises:
        FolderError: another process writes there, or what is there may not be replaced.
        OSError: it cannot be written or moved.
    """
    output = output.parent.resolve() / output.name
    work = _work_folder(output)
    made = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _own(work):
            if (work / _REPLACED / FILE).is_file() and not os.path.lexists(output):  # killed between two renames
                (work / _REPLACED).rename(output)
            _empty(work)
            _check_place(output, overwrite)
            content = work / _CONTENT
            content.mkdir()
            yield content
            _sync_folders(content)
            _move(content, output, overwrite)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else may use it by now
                folder.rmdir()
        raise


@contextlib.contextmanager
def _own(work: Path) -> Iterator[None]:
    """The hidden folder, for this process alone; it is deleted at the end, however that comes."""
    check_own(work)
    work.mkdir(exist_ok=True)
    (work / MARKER).touch()
    with locked(work, _LOCK):
        try:
            yield
        finally:
            if not (work / _REPLACED).exists():  # which is there only where it could not be moved back
                with contextlib.suppress(OSError):  # a disk that fails has said so already
                    remove_own(work)


def _empty(work: Path) -> None:
    for entry in work.iterdir():
        if entry.name not in (MARKER, _LOCK):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _sync_folders(folder: Path) -> None:
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync(path)


def sync(path: Path) -> None:
    """Wait until a file or a folder at `path` is on disk; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(content: Path, output: Path, overwrite: bool) -> None:
    _check_place(output, overwrite)  # hours may have passed
    if (output / FILE).is_file():
        replaced = content.with_name(_REPLACED)
        output.rename(replaced)
        try:
            content.rename(output)
        except BaseException:
            replaced.rename(output)
            raise
        with contextlib.suppress(OSError):  # the new one is in its place
            shutil.rmtree(replaced)
    else:
        content.rename(output)  # over an empty folder, too
    with contextlib.suppress(OSError):
        sync(output.parent)
