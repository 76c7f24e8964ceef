"""What a reader does to the machine while it reads: watched through Python's audit events, and bounded."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.utime": 1,
    "shutil.rmtree": 1,
}
"""Events that change what lies on disk -> how many of their first arguments are paths."""
_PROGRAMS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
)
_MEMORY = 4 << 30  # bytes beyond what the process has
_SECONDS = 30  # of a CPU: a reader that does not end is a fault, too


class Fault(AssertionError):
    """A reader did what no reader may do."""


class _Watch:
    """One folder that is being read; `done` holds what was done that may not be."""

    def __init__(self, folder: Path, scratch: Path, secret: Path | None) -> None:
        self.folders = [os.path.realpath(folder), os.path.realpath(scratch)]
        self.secret = None if secret is None else os.path.realpath(secret)
        self.done: list[str] = []

    def inside(self, path: Any) -> bool:
        if isinstance(path, int) or path is None:  # a descriptor, which was opened before
            return True
        own = os.path.realpath(os.fsdecode(path))
        return own == os.devnull or any(own == folder or own.startswith(folder + os.sep) for folder in self.folders)

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            if isinstance(path, int) or path is None:
                return
            if (mode and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & _WRITES):
                if not self.inside(path):
                    self.done.append(f"opened {path!r} for writing")
            elif self.secret is not None and os.path.realpath(os.fsdecode(path)) == self.secret:
                self.done.append(f"opened {path!r}, which is outside of what it was given")
        elif event in _PATHS:
            others = [path for path in args[: _PATHS[event]] if not self.inside(path)]
            if event == "os.mkdir":
                # What may exist is tried all the same.
                others = [path for path in others if not Path(os.fsdecode(path)).is_dir()]
            self.done += [f"{event} of {path!r}" for path in others]
        elif event in _PROGRAMS:
            self.done.append(f"{event}{args!r:.200}")
        elif event in ("exec", "compile"):
            name = getattr(args[0], "co_filename", None) if event == "exec" else args[1]
            if isinstance(name, (str, bytes)) and Path(os.fsdecode(name)).is_absolute() and self.inside(name):
                self.done.append(f"{event} of {name!r}")


_watches: list[_Watch] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watches:
        watch = _watches.pop()  # what it asks of the system is no event of the reader's
        try:
            watch.see(event, args)
        finally:
            _watches.append(watch)


_installed: list[bool] = []


@contextlib.contextmanager
def watched(folder: Path, scratch: Path, secret: Path | None = None) -> Iterator[None]:
    """While it lasts, nothing is written outside of a folder, and no code of data runs; it ends, in bounded memory.

    Args:
        folder: that may be read and written.
        scratch: where temporary files are made meanwhile.
        secret: a file that may not be opened, if any.

    Raises:
        Fault: something of that was done.
    """
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)
    watch, before = _Watch(folder, scratch, secret), tempfile.tempdir
    tempfile.tempdir = str(scratch)
    _watches.append(watch)
    try:
        with _bounded():
            yield
    finally:
        _watches.remove(watch)
        tempfile.tempdir = before
    if watch.done:
        raise Fault("; ".join(watch.done))


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Too much time of a CPU is a Fault, too much memory a MemoryError."""

    def ring(*_: Any) -> None:
        raise Fault(f"not done after {_SECONDS} s of a CPU")

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    before, limits = signal.signal(signal.SIGPROF, ring), resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        most = pages * resource.getpagesize() + _MEMORY
        hard = limits[1]
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)
