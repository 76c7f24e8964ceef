"""Lets a checkout's `plam_eval` folder be imported where it lies, also beside an installed plam-eval.

Three folders at the top of the checkout are installed below the package (see pyproject.toml). Python started in the
checkout, as by `python -m lmms_eval`, a notebook or PYTHONPATH, takes `./plam_eval` before an installed one, and there
they are missing. The finder below looks for these three, and for nothing else, one folder up.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parent
_MAPPED = ("configs", "model_wrappers", "tasks")


class _MappedFolders:
    """Asked before an editable installation of another checkout, whose folders would not fit this package."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, folder = name.rpartition(".")
        if package != "plam_eval" or folder not in _MAPPED:
            return None
        return PathFinder.find_spec(name, [str(_PACKAGE.parent)])


def is_checkout(package: Path) -> bool:
    """Whether `package`, a `plam_eval` folder, lies in a checkout of plam-eval, with the three folders beside it."""
    root = package.parent
    if not all((root / name / "__init__.py").is_file() and not (package / name).exists() for name in _MAPPED):
        return False
    try:
        return 'name = "plam-eval"' in (root / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False


if is_checkout(_PACKAGE):
    sys.meta_path.insert(0, _MappedFolders)
