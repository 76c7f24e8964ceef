"""Where each process writes what is to become a file or a folder, and what killed ones left there."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from pathlib import Path

from plam_eval.errors import FolderError


def _here() -> str:
    """This machine and, in a container, its numbers of processes: elsewhere another process may have the same one."""
    numbers = Path("/proc/self/ns/pid")  # of Linux
    told = f"{platform.node()} {numbers.readlink() if numbers.is_symlink() else ''}"
    return hashlib.sha256(told.encode()).hexdigest()[:6]


_HERE = _here()


def gone(folder: Path) -> FolderError:
    """The error for an output folder that was there and no longer is.

    Args:
        folder: the output.
    """
    return FolderError(f"{folder}: was deleted or moved while it was written to; the same command begins it anew")


def beside(path: Path) -> Path:
    """Where this process writes what is to become `path`: hidden, and no other process's."""
    return path.with_name(f".{path.stem}.{_HERE}-{os.getpid()}.partial{path.suffix}")


def is_partial(name: str, of: str) -> bool:
    """Whether a name is one under which some process, here or elsewhere, writes what is to become another.

    Args:
        name: of a file or folder.
        of: what it is to become, without an ending.
    """
    return re.fullmatch(rf"\.{re.escape(of)}\.[0-9a-f]{{6}}-\d{{1,9}}\.partial", name) is not None


def left_behind(path: Path) -> list[Path]:
    """What lies beside `path` of processes that were killed while they wrote it, and of versions with one name for all.

    What another machine's processes write is left alone.

    Raises OSError where the folder cannot be read.
    """
    written = re.compile(rf"\.{re.escape(path.stem)}(\.{_HERE}-(\d{{1,9}}))?\.partial{re.escape(path.suffix)}")
    found = ((each, written.fullmatch(each.name)) for each in path.parent.iterdir())
    return [each for each, match in found if match and not _lives(match[2])]


def _lives(number: str | None) -> bool:
    """Whether a process of this machine is there, by what `beside` writes of it; nobody knows on Windows."""
    if number is None or os.name != "posix":
        return number is not None
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True
