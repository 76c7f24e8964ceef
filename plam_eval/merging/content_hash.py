"""SHA-256 of weight files, each computed once: the hub's cache names files by it, and ours remembers the rest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from plam_eval.errors import DamagedFileError
from plam_eval.files import read_json, sha256_of_file, write_json

SWITCH = "PLAM_CONTENT_HASHES"
"""Environment variable: "off" leaves content hashes out of provenance, for checkpoints that are slow to read."""

_REMEMBERED = 64 << 20  # bytes: what is smaller is hashed again, in less time than a user would notice
_SHA256 = re.compile(r"[0-9a-f]{64}")


def hashes_wanted() -> bool:
    """Whether content hashes belong into provenance: `SWITCH` does not say no."""
    return os.environ.get(SWITCH, "on").lower() not in ("off", "0", "no", "false")


def sha256_of(paths: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of each file's content, with a progress bar where that takes long.

    A file in the hub's cache is known by the name of its blob, if it is a large file. Another one is read, and what
    came of it is kept in the user's cache folder until its size or one of its times changes.

    Args:
        paths: of the files, each hashed on its own.

    Returns:
        SHA-256 in hex, by path.

    Raises:
        OSError: a file cannot be read, or changed meanwhile.
    """
    digests = {path: digest for path in paths if (digest := _blob(path) or _remembered(path))}
    left = [path for path in paths if path not in digests]
    total = sum(path.stat().st_size for path in left)
    with tqdm(
        desc="hashing weights", total=total, unit="B", unit_scale=True, leave=False, disable=total < 1 << 30
    ) as progress:
        for path in left:
            digests[path] = _read(path, progress)
    return digests


def _blob(path: Path) -> str | None:
    """Of a file in the hub's cache, the name of its blob: for large files (LFS, Xet) that is the SHA-256.

    In a folder that only looks like the cache, somebody else may have chosen the name.
    """
    real = path.resolve()
    if real.parent.name != "blobs" or not path.is_symlink() or not _SHA256.fullmatch(real.name):
        return None
    return real.name if in_hub_cache(real) else None


def in_hub_cache(path: Path) -> bool:
    """Whether `path`, links followed, lies in the hub's own cache, whose names its client has chosen."""
    from huggingface_hub import constants

    return path.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve())


def _read(path: Path, progress: tqdm) -> str:
    before = _state(path)
    digest = sha256_of_file(path, progress.update)
    if _state(path) != before:
        raise OSError(f"{path}: changed while it was read")
    if path.stat().st_size >= _REMEMBERED:
        memory = _memory(path)
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, {**before, "sha256": digest})
        except OSError:
            pass  # a cache that cannot be written costs time, nothing else
    return digest


def _remembered(path: Path) -> str | None:
    if path.stat().st_size < _REMEMBERED:
        return None
    try:
        content = read_json(_memory(path), "delete it")
    except (OSError, DamagedFileError):
        return None
    digest = content.pop("sha256", None)
    return digest if content == _state(path) and isinstance(digest, str) and _SHA256.fullmatch(digest) else None


def _state(path: Path) -> dict[str, str | int]:
    stat = path.stat()
    return {"path": str(path.resolve()), "size": stat.st_size, "mtime": stat.st_mtime_ns, "ctime": stat.st_ctime_ns}


def _memory(path: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        cache / "plam-eval" / "sha256" / f"{hashlib.sha256(json.dumps(str(path.resolve())).encode()).hexdigest()}.json"
    )
