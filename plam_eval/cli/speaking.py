"""Where a command's words and logs go (`--json`, `--quiet`), and its result as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from plam_eval.terminal import Terminal, labelled, shown

WIDE = 170  # columns, where a pipe or a log has none: those of the table of a sweep


@contextlib.contextmanager
def speaking(as_json: bool, quiet: bool, *, least_width: int = 0) -> Iterator[Terminal]:
    """A console for one command.

    Args:
        as_json: when the block has ended without an error, `console.data` is written to standard output as JSON, if
            anything is in it; all else goes to standard error.
        quiet: nothing is said but warnings, on standard error. Progress bars and notes are dropped.
        least_width: as `Terminal` takes it.
    """
    errors = sys.stderr
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(_for_the_result()) if as_json else None
        if quiet:
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(_nowhere())))
            console = Terminal(file=errors, quiet=True)
        else:
            console = Terminal(stderr=as_json, least_width=least_width)
        yield console
        if out is not None and console.data:
            out.write(json.dumps(plain(console.data), indent=2, allow_nan=False) + "\n")
            out.flush()


def tell_failures(console: Terminal, failures: Sequence[str], then: str) -> None:
    """Say what failed, however quiet a command is; nothing where there is nothing.

    Args:
        console: of the command.
        failures: each as "status: what, and why".
        then: what the same command does next.
    """
    for failure in failures:
        status, _, rest = failure.partition(": ")
        console.insist(labelled(status, "red", rest))
    if failures:
        console.insist(then)


@contextlib.contextmanager
def working(as_json: bool, quiet: bool, *, least_width: int = WIDE, logs: str = "WARNING") -> Iterator[Terminal]:
    """`speaking`, for a command that evaluates: with few logs, and the other processes waited for at its end.

    Args:
        as_json: as for `speaking`.
        quiet: as for `speaking`.
        least_width: as `Terminal` takes it.
        logs: level from which on messages of the evaluation are shown; with `quiet`, warnings and errors.
    """
    quiet_logs("WARNING" if quiet else logs)
    with speaking(as_json, quiet, least_width=least_width) as console:
        yield console
    if "torch" in sys.modules:
        from plam_eval.harness.processes import end_together

        end_together()


def quiet_logs(level: str = "WARNING") -> None:
    """Leave out what is logged below `level`: on the terminal, since each cell's folder has the whole log."""
    from loguru import logger

    logger.remove()
    stream = sys.stderr  # of now: a cell's goes into its log
    # Messages quote answers and names of files, so they pass through `shown`, which would take colours for data.
    logger.add(lambda line: print(shown(line), end="", file=stream), level=level, colorize=False)


@contextlib.contextmanager
def _for_the_result() -> Iterator[TextIO]:
    """Standard output for one writer; what others write there, other processes too, goes to standard error."""
    own = sys.stdout
    try:
        is_real = own.fileno() == 1
    except (OSError, ValueError, AttributeError):  # replaced by an object, as tests and notebooks do
        is_real = False
    with contextlib.redirect_stdout(sys.stderr):
        if not is_real:
            yield own
            return
        own.flush()
        saved = os.dup(1)
        os.dup2(2, 1)
        try:
            with io.open(saved, "w", encoding="utf-8", closefd=False) as stream:  # noqa: UP020  a descriptor
                yield stream
        finally:
            os.dup2(saved, 1)
            os.close(saved)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def plain(value: Any) -> Any:
    """`value` in what JSON has: tables as lists of rows, numbers that are none as null, all else as text."""
    if hasattr(value, "to_dict") and hasattr(value, "columns"):  # a data frame, without pandas
        value = value.to_dict("records")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # of numpy, pandas or torch: a number, or a list of them
        value = value.tolist()
        if isinstance(value, list):
            return plain(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return None if type(value).__name__ in ("NAType", "NaTType") else str(value)
