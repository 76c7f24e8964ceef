"""What the checks need of a Python, said before anything is imported: `python -m tools.gpu_check.needed`.

Standard library only. Without a word and with status 0 where nothing is missing; otherwise says what is, with 2.
"""

from __future__ import annotations

import importlib.util
import sys

NEEDED = ("accelerate", "pydantic", "torch", "transformers")
"""Modules; what these depend on comes with them. Pairs of checkpoints need no more of plam-eval's dependencies."""


def missing() -> list[str]:
    """Which of `NEEDED` this Python lacks."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def message() -> str:
    """What to do about those; "" where nothing is missing."""
    absent = missing()
    if not absent:
        return ""
    return (
        f"make gpu: {sys.executable} lacks {', '.join(absent)}; it needs {', '.join(NEEDED)}. Install what is missing, "
        "name another with `make gpu PYTHON=...`, or run `make env` first, which makes .venv"
    )


if __name__ == "__main__":
    if said := message():
        print(said, file=sys.stderr)
        sys.exit(2)
