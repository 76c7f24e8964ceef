"""The machine, and who else works on it."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import subprocess
import time
from pathlib import Path

from plam_eval.provenance import versions

ROOT = Path(__file__).resolve().parents[2]
CODE = ("plam_eval", "model_wrappers", "tasks", "configs", "benchmarks/*.py", "benchmarks/bench", "tools/*.py")


def machine() -> dict[str, str | int]:
    """Processor, cores, memory, system and threads."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    pages, size = (os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE"))
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory GB": round(pages * size / 1e9),
        "system": f"{platform.system()} {platform.release()}",
        "threads": os.environ.get("OMP_NUM_THREADS", "as libraries choose"),
    }


def software() -> dict[str, str]:
    """Versions of what the figures depend on."""
    return versions()


def commit() -> str:
    """Commit of the checkout, with "and changes" where the measured code differs from it; "" outside one."""
    try:
        changed = _git("status", "--porcelain", "--", *CODE)
        return _git("rev-parse", "--short=12", "HEAD") + (" and changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def code() -> str:
    """Hash of the files that are measured and that measure, as they are now; "" outside a checkout."""
    try:
        names = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *CODE).split("\0")
    except (OSError, subprocess.CalledProcessError):
        return ""
    whole = hashlib.sha256()
    for file in sorted(ROOT / name for name in set(names) if name):
        if file.is_file():
            whole.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode())
            whole.update(file.read_bytes())
    return whole.hexdigest()


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Others:
    """Cores that processes of others keep busy, from its making to `share`."""

    def __init__(self) -> None:
        self._started, self._busy, self._own = time.monotonic(), _busy(), _own()

    def share(self) -> float | None:
        """The mean number of cores since; None where the system does not say."""
        if self._busy is None or (busy := _busy()) is None:
            return None
        passed = max(time.monotonic() - self._started, 1e-9)
        return max(0.0, (busy - self._busy - (_own() - self._own)) / passed)


def _busy() -> float | None:
    """Seconds that all cores together have worked."""
    try:
        fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    user, nice, system, _, _, interrupts, soft, stolen = fields
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Those of this process and of its children that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))
