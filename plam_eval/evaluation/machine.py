"""What computes here, how much of its memory was in use, and what lies in a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_GROWING = (".jsonl", ".parquet")
"""Files that grow with documents: samples, answers, and tables with a row for each."""


def machine() -> str:
    """What computes here, in words: the GPUs, or the CPU and its threads, and torch's version."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        what = " + ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    else:
        what = f"{_cpu()}, {torch.get_num_threads()} of {os.cpu_count()} threads"
    return f"{what}, torch {torch.__version__}"


def _cpu() -> str:
    import platform

    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        name = ""
    return name or platform.processor() or platform.machine() or "CPU"


def reset_peak() -> None:
    """What was in use at most is counted from here on, on GPUs."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def peak_memory() -> tuple[int | None, str]:
    """Bytes that were in use at most, and whose: of all GPUs, or of this process on the host."""
    import torch

    if torch.cuda.is_available():
        # What this process took, or what is taken now, by another process of an engine, too.
        own = sum(torch.cuda.max_memory_reserved(index) for index in range(torch.cuda.device_count()))
        free = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
        return own or sum(total - left for left, total in free), "GPU"
    try:
        import resource
    except ImportError:  # not on Windows
        return None, "host"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "host"


def sizes(folder: Path) -> tuple[int, int]:
    """Bytes of the files below a folder that do not grow with documents, and of those that do.

    Args:
        folder: of a run, a cell or a scan.
    """
    fixed = growing = 0
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            size = file.stat().st_size
            fixed, growing = (fixed, growing + size) if file.suffix in _GROWING else (fixed + size, growing)
    return fixed, growing
