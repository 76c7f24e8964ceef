"""What the checks found: a row each, written as soon as it is known, so that a run cut short leaves its table."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import math
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

Figures = dict[str, Any]
PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "pydantic", "flash_attn", "lmms_eval", "vllm")


class Skipped(Exception):
    """A check that cannot be made here; says why."""


class Fault(Exception):
    """A check that found what must not be."""


@dataclass
class Row:
    """One check.

    Attributes:
        group: the pair, or what else it is about.
        name: what was checked.
        verdict: ok, FAULT or skipped.
        says: why, of a fault and of what was skipped.
        figures: name -> what was measured.
        seconds: that the whole check took.
        peak_gib: of device memory allocated at once, beside what was there before; None on a CPU.
    """

    group: str
    name: str
    verdict: str = "ok"
    says: str = ""
    figures: Figures = field(default_factory=dict)
    seconds: float = 0.0
    peak_gib: float | None = None


class Board:
    """Runs checks one after the other, and goes on behind one that fails.

    Args:
        output: folder of `gpu.json` and `gpu.md`.
        device: that is checked.
        size: of the pairs.
        time_limit: seconds from now on, behind which no check is begun.
        without: words; checks with one of them in their name are not made.
    """

    def __init__(
        self, output: Path, device: str, size: str, time_limit: float = math.inf, without: Sequence[str] = ()
    ) -> None:
        self.output, self.device, self.is_cuda, self.size = output, device, device.startswith("cuda"), size
        self.machine = {"size": size, **describe_machine(device)}
        self.rows: list[Row] = []
        self._ends, self._without = time.monotonic() + time_limit, without
        self._total = time.perf_counter()

    @property
    def faults(self) -> list[Row]:
        """The rows of checks that failed."""
        return [row for row in self.rows if row.verdict == "FAULT"]

    def check(self, group: str, name: str, work: Callable[..., Figures | None], *given: Any, **named: Any) -> bool:
        """Make one check; whether it ended well.

        Args:
            group: of the row.
            name: of the row.
            work: returns figures; raises `Skipped` or, for whatever must not be, anything else.
            given: for `work`.
            named: for `work`.
        """
        row, before = Row(group, name), self._begin_memory()
        started = time.perf_counter()
        try:
            if time.monotonic() > self._ends:
                raise Skipped("no time was left")
            if any(word in name for word in self._without):
                raise Skipped("left out, as --without says")
            row.figures = work(*given, **named) or {}
            self.synchronize()
        except Skipped as skipped:
            row.verdict, row.says = "skipped", str(skipped)
        except Exception as error:
            row.verdict, row.says = "FAULT", str(error) if isinstance(error, Fault) else _short(error)
            traceback.print_exc()
        row.seconds = time.perf_counter() - started
        if before is not None:
            row.peak_gib = max(0, torch.cuda.max_memory_allocated() - before) / 2**30
        self.rows.append(row)
        print(_line(row), file=sys.stderr, flush=True)
        self.write()
        return row.verdict == "ok"

    def _begin_memory(self) -> int | None:
        if not self.is_cuda:
            return None
        gc.collect()
        self.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def synchronize(self) -> None:
        """Wait until the device has done everything."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def timed(self, work: Callable[..., Any], *given: Any, **named: Any) -> tuple[float, Any]:
        """Seconds that `work` took until the device was done, and what it returned.

        Args:
            work: to be measured.
            given: for it.
            named: for it.
        """
        self.synchronize()
        started = time.perf_counter()
        result = work(*given, **named)
        self.synchronize()
        return time.perf_counter() - started, result

    def peak_of(self, work: Callable[..., Any], *given: Any, **named: Any) -> tuple[float, Any]:
        """GiB that `work` had allocated at once, beside what there was (0 on a CPU), and what it returned.

        Args:
            work: to be measured.
            given: for it.
            named: for it.
        """
        if not self.is_cuda:
            return 0.0, work(*given, **named)
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = work(*given, **named)
        self.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**30, result

    def write(self) -> None:
        """Write both files anew."""
        self.output.mkdir(parents=True, exist_ok=True)
        took = time.perf_counter() - self._total
        record = {"machine": self.machine, "seconds": took, "rows": [asdict(row) for row in self.rows]}
        (self.output / "gpu.json").write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
        (self.output / "gpu.md").write_text(markdown(record), encoding="utf-8")


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures are of: card, driver, versions.

    Args:
        device: that is checked.
    """
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    machine: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "device": device,
        "card": "none",
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "card": properties.name,
            "cards": torch.cuda.device_count(),
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return machine


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def markdown(record: Mapping[str, Any]) -> str:
    """The table.

    Args:
        record: as it is in `gpu.json`.
    """
    machine, rows = record["machine"], record["rows"]
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("ok", "FAULT", "skipped")}
    lines = [
        f"# {machine['card'] if machine['card'] != 'none' else machine['processor'] + ', no GPU'}",
        "",
        ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("card",) and value is not None),
        "",
        f"{counts['ok']} checks ended well, {counts['FAULT']} found a fault, {counts['skipped']} were skipped; "
        f"{record['seconds']:.0f} s.",
        "",
        "| of | check | verdict | figures | s | GiB |",
        "|---|---|---|---|---:|---:|",
    ]
    for row in rows:
        figures = ", ".join(f"{name} {shown(value)}" for name, value in row["figures"].items())
        says = row["says"].replace("|", "\\|").replace("\n", " ")
        peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}"
        cells = (row["group"], row["name"], row["verdict"], says or figures, f"{row['seconds']:.1f}", peak)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A figure as a cell shows it.

    Args:
        value: a number, a word, or several of them by name.
    """
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{name} {shown(each)}" for name, each in value.items()) + ")"
    if isinstance(value, float):
        if value == 0 or not math.isfinite(value) or 0.01 <= abs(value) < 1e5:
            return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        return f"{value:.1e}"
    return str(value)


def _short(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:400]}"


def _line(row: Row) -> str:
    figures = ", ".join(f"{name} {shown(value)}" for name, value in row.figures.items())
    return f"{row.verdict:8}{row.group} · {row.name} ({row.seconds:.1f} s): {row.says or figures}"
