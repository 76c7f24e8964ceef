"""`plam`: one file per command. Each exits non-zero when it failed, with what was found and what to do said last."""

from __future__ import annotations

from importlib import import_module

from plam_eval.cli.app import app, explained, main

__all__ = ["app", "explained", "main"]

_COMMANDS = "demo doctor scan plateau attend compare sweep search rescore premise report export submit"

for _name in _COMMANDS.split():  # in the order in which the help lists them: importing a command's file registers it
    import_module(f"plam_eval.cli.{_name}")
