"""`plam`: one file per command. Each exits non-zero when it failed, with what was found and what to do said last."""

from __future__ import annotations

# In the order in which the help lists them: importing a command's file registers it.
from plam_eval.cli import demo, doctor, scan, plateau, attend, compare, sweep  # noqa: F401  # isort: skip
from plam_eval.cli import search, rescore, premise, report, export, submit  # noqa: F401  # isort: skip
from plam_eval.cli.app import app, explained, main

__all__ = ["app", "explained", "main"]
