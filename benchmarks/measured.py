"""What the scripts of this folder share: figures in rounds, `--json`, processes and rates that are measured.

A script hands on rows. A row holds two ways, A and B, round by round, in which they took turns, so that what else the
machine does falls on both; its ratio is A / B of each round, and the page says the median, the smallest and the
largest. Beside it stands the ideal: the ratio if nothing but the bytes or operations that have to be took time, at
rates that were measured in the same run. `make bench` (benchmarks/bench) calls the scripts, and writes
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Row = dict[str, Any]
Way = tuple[str, Sequence[float]]
Figure = TypeVar("Figure")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--json FILE` to `parser`: where the figures go for `make bench`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rounds, ratios and ideals there, too")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of `values`."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def row(
    what: str, first: Way, second: Way, *, ideal: float | None, ideal_is: str, unit: str = "s", **more: object
) -> Row:
    """Two ways of one thing, round by round.

    Args:
        what: is done.
        first: what A is, and its figure in every round.
        second: what B is, and its figure in the same rounds.
        ideal: A / B, if all that has to be done took the time that it takes at measured rates; None where no count
            says so.
        ideal_is: what the ideal counts, or why there is none.
        unit: of the figures.
        more: further columns, with "_" for spaces.

    Raises:
        ValueError: the ways have other numbers of rounds, or none, or a figure that no ratio can be had of.
    """
    (name, own), (other_name, other) = first, second
    if len(own) != len(other) or not own:
        raise ValueError(f"{what}: {len(own)} rounds of {name} and {len(other)} of {other_name}; expected as many")
    if bad := [value for value in (*own, *other) if not (math.isfinite(value) and value > 0)]:
        raise ValueError(f"{what}: found {bad[0]} {unit}; expected figures above zero")
    return {
        "what": what,
        "A": {"is": name, "unit": unit, "rounds": [*own], **spread(own)},
        "B": {"is": other_name, "unit": unit, "rounds": [*other], **spread(other)},
        "ratio": spread([one / two for one, two in zip(own, other, strict=True)]),
        "ideal": ideal,
        "ideal is": ideal_is,
        "more": {key.replace("_", " "): value for key, value in more.items()},
    }


def write_rows(file: Path | None, rows: Sequence[Row], setting: str, **raw: object) -> None:
    """Write what `--json` asks for; nothing where it does not.

    Args:
        file: of `--json`.
        rows: as `row` makes them.
        setting: what was measured on, in a sentence without its full stop.
        raw: what else was measured.
    """
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"setting": setting, "rows": [*rows], "raw": raw}, indent=1, default=str) + "\n")


def in_turn(ways: Mapping[str, Callable[[], Figure]], rounds: int) -> dict[str, list[Figure]]:
    """The figures of all ways, which take turns; each round begins with another.

    Args:
        ways: by name, what measures one.
        rounds: so many.
    """
    figures: dict[str, list[Figure]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            figures[name].append(ways[name]())
    return figures


def clock(action: Callable[[], object], now: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that `action` takes.

    Args:
        action: what is timed.
        now: the clock; `time.process_time` for CPU seconds.
    """
    started = now()
    action()
    return now() - started


# ---- processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Of a process that has ended.

    Attributes:
        seconds: until it had ended.
        cpu: seconds of processors.
        peak: the most resident bytes, as seen every ten milliseconds.
        written: bytes that it handed to the system.
        said: its output.
    """

    seconds: float
    cpu: float
    peak: int
    written: int
    said: str

    def result(self) -> dict[str, Any]:
        """The JSON object in the last line that it printed."""
        found: dict[str, Any] = json.loads(self.said.strip().splitlines()[-1])
        return found


def run_process(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Spent:
    """Run `command` to its end.

    Bytes written are those handed to the system for files and pipes (`wchar`): whether they were on a disk at the end
    is the system's affair.

    Args:
        command: words.
        environment: variables beside this process's own.

    Raises:
        RuntimeError: it failed; the text is the end of what it said.
    """
    started = time.perf_counter()
    work = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **(environment or {})},
    )
    said: dict[str, str] = {}
    readers = [
        threading.Thread(target=lambda name=name, stream=stream: said.update({name: stream.read()}))
        for name, stream in (("out", work.stdout), ("error", work.stderr))
    ]
    for reader in readers:
        reader.start()
    # The system's own count (ru_maxrss) begins with what this process has held, and so says nothing of a smaller child.
    ended, peaks = threading.Event(), [0]

    def look() -> None:
        while not ended.wait(0.01):
            with contextlib.suppress(OSError, KeyError):
                peaks[0] = max(peaks[0], memory_of("VmHWM", work.pid))

    looking = threading.Thread(target=look)
    looking.start()
    os.waitid(os.P_PID, work.pid, os.WEXITED | os.WNOWAIT)  # its counts are there until it is waited for
    seconds, written = time.perf_counter() - started, written_by(work.pid)
    ended.set()
    looking.join()
    _, status, usage = os.wait4(work.pid, 0)
    work.returncode = os.waitstatus_to_exitcode(status)
    for reader in readers:
        reader.join()
    if work.returncode:
        words = " ".join(str(word) for word in command)[:300]
        raise RuntimeError(f"{words}: exit status {work.returncode}\n{(said['error'] or said['out'])[-2000:]}")
    return Spent(seconds, usage.ru_utime + usage.ru_stime, peaks[0], written, said["out"])


def written_by(process: int | str = "self") -> int:
    """Bytes that a process has handed to the system to write; 0 where the system does not say.

    Args:
        process: its number.
    """
    try:
        lines = Path(f"/proc/{process}/io").read_text().splitlines()
    except OSError:
        return 0
    return int(dict(line.split(": ") for line in lines)["wchar"])


def memory_of(field: str, process: int | str = "self") -> int:
    """Bytes that /proc says a process has of `field`, such as VmRSS, VmHWM or RssAnon.

    Args:
        field: its name there.
        process: its number.

    Raises:
        KeyError: the process has ended.
    """
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


class PeakMemory(threading.Thread):
    """Peak of this process's own (anonymous) memory in bytes; mapped checkpoint files are not counted."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._go = 0, True

    def run(self) -> None:
        """Look every two milliseconds, until it is stopped."""
        while self._go:
            self.peak = max(self.peak, memory_of("RssAnon"))
            time.sleep(0.002)

    def stop(self) -> int:
        """Stop looking. Returns the peak in bytes."""
        self._go = False
        self.join()
        return max(self.peak, memory_of("RssAnon"))


# ---- rates of the machine --------------------------------------------------------------------------------------------

PART = 1 << 24
"""Bytes that rates are measured by, more than a core's cache holds."""


def memory_rate(rounds: int = 5) -> float:
    """Bytes a second that copying in memory reads and writes, both counted, the median of `rounds`."""
    import torch

    one, other = (torch.ones(1 << 27, dtype=torch.uint8) for _ in range(2))
    return 2 * one.nbytes / statistics.median(clock(lambda: other.copy_(one)) for _ in range(rounds))


def read_seconds(file: Path) -> float:
    """Seconds that reading a whole file takes, part by part into one buffer.

    Args:
        file: that is in the page cache, if the rate of that is wanted.
    """
    buffer = bytearray(PART)

    def read() -> None:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass

    return clock(read)


def write_rate(folder: Path, size: int = 1 << 29) -> float:
    """Bytes a second that the system takes for a new file; when they are on the disk is its affair, as for any `write`.

    Args:
        folder: of the file system in question.
        size: bytes to write.
    """
    file, part = folder / "rate.bin", os.urandom(PART)

    def write() -> None:
        with file.open("wb", buffering=0) as opened:
            for _ in range(max(1, size // PART)):
                opened.write(part)

    try:
        return max(1, size // PART) * PART / clock(write)
    finally:
        file.unlink(missing_ok=True)


def hash_rate() -> float:
    """Bytes a second of SHA-256."""
    part = bytes(PART)
    return 4 * PART / clock(lambda: [hashlib.sha256(part).digest() for _ in range(4)])


def python(script: str | Path, *words: object) -> list[str]:
    """The command that starts a script with this Python.

    Args:
        script: its file.
        words: arguments.
    """
    return [sys.executable, str(script), *map(str, words)]
