"""Commands that something happens to at a chosen one of their file operations: a kill, a full disk, Ctrl-C.

A stage is a process that has imported everything; each command runs in a child forked from it, so that a kill is a kill
and costs no imports. Every operation on files below a watched folder is a step: opening for writing, each write as it
reaches the system, fsync, mkdir, rename, unlink, rmdir, truncate. What is to happen happens before a step, or in the
middle of a write, of which half is written then.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import fcntl
import io
import itertools
import json
import os
import random
import re
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from tests.helpers import forked

Kind = Literal["nothing", "kill", "full", "once", "interrupt", "read-only", "removed"]

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_TOLD = {"os.mkdir": 2, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.truncate": None, "os.link": 2}
"""Events that Python tells of before it does them, with the place of their folder's descriptor among what it tells."""
_BY_NUMBER = ("fsync", "write", "pwrite", "copy_file_range", "sendfile")
_TAKES_ROOM = ("open", "os.mkdir", "write", "pwrite", "copy_file_range", "sendfile")


@dataclass(frozen=True)
class Fault:
    """What is to happen in a command.

    Attributes:
        kind: "kill" ends the process as a kill does; "full" is a disk that is full from then on, "once" one that has
            room again after; "read-only" refuses every change from then on; "interrupt" is Ctrl-C; "removed" deletes
            the watched folder's `out` and goes on.
        step: before which it happens, from 0.
        again: "interrupt" comes a second time so many steps later.
    """

    kind: Kind
    step: int = 0
    again: int | None = None


@dataclass
class Outcome:
    """How a command ended: `status` as a shell has it, below 0 for a signal; what it printed; and its steps."""

    status: int
    said: str
    data: Any
    steps: list[str]


class _Watch:
    """Counts the steps below a folder, and lets a fault happen."""

    def __init__(self, root: Path, fault: Fault) -> None:
        self.root, self.fault = str(root), fault
        self.steps: list[str] = []
        self.busy = False

    def concerns(self, path: Any, folder: int = -1) -> bool:
        if isinstance(path, int):
            try:
                name = Path(f"/proc/self/fd/{path}").readlink()
            except OSError:
                return False
        else:
            name = Path(os.fsdecode(path))
            if not name.is_absolute():
                name = (Path(f"/proc/self/fd/{folder}").readlink() if folder >= 0 else Path.cwd()) / name
        return str(name) == self.root or str(name).startswith(f"{self.root}/")

    def step(self, what: str, name: Any, half: Callable[[], Any] = lambda: None) -> None:
        """One operation, before it is done; `half` does half of it."""
        if self.busy:
            return
        self.busy = True
        try:
            number = len(self.steps)
            self.steps.append(f"{what} {name if isinstance(name, int) else Path(os.fsdecode(name)).name}")
            self._happen(what, name, number, half)
        finally:
            self.busy = False

    def _happen(self, what: str, name: Any, number: int, half: Callable[[], Any]) -> None:
        fault = self.fault
        if fault.kind == "kill" and number == fault.step:
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == "interrupt" and number in (fault.step, fault.step + (fault.again or 0)):
            os.kill(os.getpid(), signal.SIGINT)
        if fault.kind == "removed" and number == fault.step:
            import shutil

            shutil.rmtree(Path(self.root, "out"))
        late = number >= fault.step if fault.kind != "once" else number == fault.step
        if fault.kind in ("full", "once") and late and what in _TAKES_ROOM:
            half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if fault.kind == "read-only" and late:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), *([] if isinstance(name, int) else [str(name)]))


_watch: _Watch | None = None


class _Raw(io.FileIO):
    """A file each of whose writes to the system is a step."""

    def write(self, data: Any, /) -> int:
        content = memoryview(data).cast("B")
        if _watch is not None:
            _watch.step("write", str(self.name), lambda: io.FileIO.write(self, content[: len(content) // 2]))
        return int(super().write(content) or 0)


def _open(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    plain = isinstance(file, int) or opener is not None or not set(mode) & set("wax+")
    if plain or _watch is None or _watch.busy or not _watch.concerns(file):
        return _stock_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    raw = _Raw(file, mode.replace("b", "").replace("t", ""))
    if buffering == 0:
        return raw
    size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
    buffer: Any = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
    if "b" in mode:
        return buffer
    text = io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)
    text.mode = mode  # type: ignore[misc]
    return text


def _audit(event: str, given: tuple[Any, ...]) -> None:
    if _watch is None or _watch.busy:
        return
    if event == "open":
        path, _, flags = given
        if isinstance(flags, int) and flags & _WRITES and not isinstance(path, int) and _watch.concerns(path):
            _watch.step(event, path)
    elif event in _TOLD and given and given[0] is not None:
        place = _TOLD[event]
        folder = given[place] if place is not None and len(given) > place else -1
        if _watch.concerns(given[0], folder if isinstance(folder, int) else -1):
            _watch.step(event, given[0])


def _by_number(name: str) -> Callable[..., Any]:
    original = getattr(os, name)

    def call(first: int, *given: Any, **more: Any) -> Any:
        if _watch is not None and not _watch.busy:
            target = given[0] if name == "copy_file_range" else first
            half: Callable[[], Any] = lambda: None  # noqa: E731
            if name == "copy_file_range":
                half = lambda: original(first, given[0], given[1] // 2, *given[2:])  # noqa: E731
            elif name in ("write", "pwrite"):
                half = lambda: original(first, memoryview(given[0])[: len(given[0]) // 2], *given[1:])  # noqa: E731
            if _watch.concerns(target):
                _watch.step(name, target, half)
        return original(first, *given, **more)

    return call


_stock_open = io.open


def _install() -> None:
    builtins.open = io.open = _open
    for name in _BY_NUMBER:
        if hasattr(os, name):
            setattr(os, name, _by_number(name))
    sys.addaudithook(_audit)


@contextmanager
def _watching(root: Path, fault: Fault) -> Iterator[_Watch]:
    global _watch
    _watch = _Watch(root, fault)
    try:
        yield _watch
    finally:
        _watch = None


# ---- the stage -------------------------------------------------------------------------------------------------------

Action = Callable[[Path], None]
"""Does something to `out` below a folder; it may end as a command does."""


_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def _status(act: Action, root: Path) -> int:
    try:
        act(root)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def _own_progress_bars() -> None:
    """tqdm's lock is one for all processes of a family: who is killed while he holds it leaves the others waiting."""
    import tqdm

    kinds: list[Any] = [tqdm.tqdm]
    for kind in kinds:
        kind.set_lock(threading.RLock())
        kinds += kind.__subclasses__()


def _child(act: Action, root: Path, fault: Fault, limit: int | None, files: tuple[str, ...]) -> None:
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGKILL)
    _own_progress_bars()
    printed = [os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in files[:2]]
    # A limit on files is one on these, too: what is printed waits in pipes until it is lifted.
    pipes = [os.pipe() for _ in printed] if limit is not None else []
    for number, output in enumerate([end for _, end in pipes] or printed, 1):
        os.dup2(output, number)
    sys.stdout, sys.stderr = _stock_open(1, "w", closefd=False), _stock_open(2, "w", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if limit is not None:
        for _, end in pipes:
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 1 << 20)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with _watching(root, fault) as watch:
        status = _status(act, root)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for number, ((end, _), output) in enumerate(zip(pipes, printed, strict=True), 1):
            os.dup2(output, number)
            os.set_blocking(end, False)
            with contextlib.suppress(BlockingIOError):
                os.write(output, os.read(end, 1 << 20))
    with _stock_open(files[2], "w") as file:
        json.dump([status, watch.steps], file)
    os._exit(0)


def _serve(connection: Connection, environment: Mapping[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    import torch

    torch.set_num_threads(1)
    _install()
    while True:
        try:
            act, root, fault, count, limit, files = connection.recv()
        except EOFError:
            return
        if count == 0:  # in this process, which is warm for it then
            files = tuple(f"{name}0" for name in files)
            kept = sys.stdout, sys.stderr, os.dup(1), os.dup(2)
            for number, name in ((1, files[0]), (2, files[1])):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = _stock_open(1, "w", closefd=False), _stock_open(2, "w", closefd=False)
            with _watching(root, fault) as watch:
                status = _status(act, root)
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = kept[:2]
            os.dup2(kept[2], 1)
            os.dup2(kept[3], 2)
            connection.send([(status, watch.steps)])
            continue
        children = []
        for number in range(count):
            own = tuple(f"{name}{number}" for name in files)
            pid = os.fork()
            if pid == 0:
                try:
                    _child(act, root, fault, limit, own)
                finally:
                    os._exit(71)
            children.append((pid, own))
        ended = []
        for pid, own in children:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            ended.append(json.loads(Path(own[2]).read_text()) if code == 0 else (code, []))
        connection.send(ended)


class Stage:
    """A process in which commands are run one after the other, each in a child, unless it is to warm the stage.

    Args:
        folder: working directory of the commands.
        scratch: for what they print.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._folder, self._scratch = folder, scratch
        self._begin()

    def _begin(self) -> None:
        context = forked.context()
        self._connection, theirs = context.Pipe()
        given = (theirs, dict(os.environ), str(self._folder))
        self._process = context.Process(target=_serve, args=given, daemon=True)
        self._process.start()
        theirs.close()

    def run(
        self,
        act: Action,
        root: Path,
        fault: Fault = Fault("nothing"),
        *,
        here: bool = False,
        largest_file: int | None = None,
    ) -> Outcome:
        """Run one command and wait for it.

        Args:
            act: importable by name.
            root: whose files' operations are steps.
            fault: what happens at one of them.
            here: in the stage itself, which has imported and cached what the command needs from then on.
            largest_file: bytes beyond which no file may grow.
        """
        return self._run(act, root, fault, 0 if here else 1, largest_file)[0]

    def run_beside(self, act: Action, root: Path, count: int = 2) -> list[Outcome]:
        """Run a command in so many processes at once.

        Args:
            act: as for `run`.
            root: as for `run`.
            count: of processes.
        """
        return self._run(act, root, Fault("nothing"), count, None)

    def _run(self, act: Action, root: Path, fault: Fault, count: int, limit: int | None) -> list[Outcome]:
        files = tuple(str(self._scratch / name) for name in ("out", "err", "steps"))
        self._connection.send((act, root, fault, count, limit, files))
        if not self._connection.poll(300):
            self._process.kill()  # and with it its child
            self._connection.close()
            self._begin()
            raise TimeoutError(f"{act} did not end: {Path(f'{files[1]}0').read_text()[-2000:]}")
        outcomes = []
        for number, (status, steps) in enumerate(self._connection.recv()):
            printed, said = (Path(f"{name}{number}").read_text(errors="replace") for name in files[:2])
            try:
                data = json.loads(printed)
            except ValueError:
                data, said = None, printed + said
            outcomes.append(Outcome(status, said, data, steps))
        return outcomes

    def close(self) -> None:
        """End the stage."""
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


# ---- points ----------------------------------------------------------------------------------------------------------


def points(steps: Sequence[str], count: int, seed: int) -> list[int]:
    """So many steps, drawn by seed, one in each of `count` stretches of equal length: from the beginning to the end.

    All of them where there are no more than `count`.
    """
    if count >= len(steps):
        return list(range(len(steps)))
    draw = random.Random(f"{seed} {len(steps)}")
    edges = [len(steps) * part // count for part in range(count + 1)]
    return [draw.randrange(low, high) for low, high in itertools.pairwise(edges) if high > low]


# ---- what a folder holds ---------------------------------------------------------------------------------------------

_DATE = re.compile(r"\d{8}_\d{6}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(\+[\d:]+)?")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_OF_TIME = {
    "seconds",
    "date",
    "time",
    "written",
    "created",
    "replaced",
    "command",
    "started",
    "ended",
    "throughput",
    "calls",
}
_OF_A_CALL = {"generation": ("settings",), "merge": ("bytes_read", "restored")}
"""By what holds it: what the last call itself did, and not the ones before it that were killed."""
_LINES = ("answers.rank", "study.jsonl")
_LEFT_OUT = re.compile(r".*\.lock|log\.txt|study\.jsonl|\.plam-eval")


def _of_time(key: str) -> bool:
    return key in _OF_TIME or "seconds" in key or key.endswith(("_time", "_date"))


def plain(value: Any, root: Path) -> Any:
    """A value of JSON without times, and without where it lies."""
    if isinstance(value, dict):
        known = {key: plain(item, root) for key, item in value.items() if not _of_time(key)}
        known.pop("together", None)  # how it was answered: what is left over by a kill may be answered alone
        for name, of_the_call in _OF_A_CALL.items():
            if isinstance(known.get(name), dict):
                known[name] = {key: item for key, item in known[name].items() if key not in of_the_call}
        return known
    if isinstance(value, list):
        return [plain(item, root) for item in value]
    if isinstance(value, str):
        return _ADDRESS.sub("", _TIME.sub("TIME", _DATE.sub("DATE", value.replace(str(root), "ROOT"))))
    return value


def _without_times(table: Any) -> str:
    return str(table[[name for name in table.columns if not _of_time(str(name))]].to_csv())


def read_whole(file: Path) -> Any:
    """What a file holds; raises where it is no whole file of its kind."""
    import pandas as pd

    if file.suffix == ".json":
        return json.loads(file.read_text())
    if file.suffix == ".jsonl":
        text = file.read_text()
        if text and not text.endswith("\n") and not file.name.startswith(_LINES):
            raise ValueError("its last line is cut off")
        lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
        return [json.loads(line) for line in lines]
    if file.suffix == ".parquet":
        return _without_times(pd.read_parquet(file))
    if file.suffix == ".csv":
        return _without_times(pd.read_csv(file))
    if file.suffix == ".png":
        from PIL import Image

        with Image.open(file) as image:
            image.load()
            return image.tobytes()
    if file.suffix in (".zip", ".npz"):
        import zipfile

        with zipfile.ZipFile(file) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    if file.suffix in (".html", ".svg") and f"</{file.suffix[1:]}>" not in file.read_text()[-20:]:
        raise ValueError("it has no end")
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name).tolist() for name in opened.keys()}  # noqa: SIM118
    return file.read_bytes()


def visible(folder: Path) -> list[Path]:
    """The files below a folder that bear their final names: none of them, and no folder of theirs, is hidden."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(re.match(r"\.(?!\.?__)", part) for part in file.relative_to(folder).parts)
    )


def check_visible(folder: Path) -> None:
    """Raises AssertionError where a file with its final name is no whole one, or a run's results lack a log."""
    for file in visible(folder):
        if _LEFT_OUT.fullmatch(file.name):
            continue
        try:
            content = read_whole(file)
        except Exception as error:
            raise AssertionError(f"{file.relative_to(folder)} is visible and not whole: {error}") from error
        if _DATE.match(file.name) and file.name.endswith("_results.json"):
            logs = [file.with_name(f"{file.name[:15]}_samples_{task}.jsonl") for task in content["configs"]]
            missing = [log.name for log in logs if not log.is_file()]
            assert not missing, f"{file.name} is visible before {missing}"


def content(folder: Path) -> dict[str, Any]:
    """What lies below a folder, by name: of what only differs in its date the newest, and nothing of times."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        name = _DATE.sub("DATE", file.relative_to(folder).as_posix())
        if not file.is_file() or _LEFT_OUT.fullmatch(file.name):
            continue
        value = read_whole(file)
        if file.name.startswith("answers.rank"):  # lines of what failed stay, and later ones stand in their place
            value = [line for line in value if not line.get("failed")]
        if file.suffix in (".json", ".jsonl"):
            value = plain(value, folder)
        elif file.suffix in (".html", ".md", ".yaml"):
            value = plain(file.read_text(), folder)
        found[name] = value
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where two folders' content differs, in words."""
    said = [f"{name}: in one of them alone" for name in sorted(one.keys() ^ other.keys())]
    for name in sorted(one.keys() & other.keys()):
        if one[name] != other[name]:
            said += [f"{name}{where}" for where in _where(one[name], other[name])]
    return said


def _where(one: Any, other: Any, path: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}, key=str):
            if one.get(key) != other.get(key):
                yield from _where(one.get(key), other.get(key), f"{path}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            if first != second:
                yield from _where(first, second, f"{path}/{number}")
    else:
        yield f"{path}: {one!r:.200} and {other!r:.200}"
