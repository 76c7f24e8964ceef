"""`plam` itself: its entry point, what all commands share, and what a user is told of an error."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from plam_eval.errors import PlamError, first_line, system_error
from plam_eval.harness import processes
from plam_eval.terminal import Terminal, labelled, text

app = typer.Typer(
    help="Plateau-guided model merging for multimodal LLMs, evaluated through lmms-eval.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help and usage errors hold brackets and words of the user's
    context_settings={"help_option_names": ["-h", "--help"]},
)
TRACEBACK = "--traceback"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"plam-eval {metadata.version('plam-eval')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option(TRACEBACK, help="Show where an error came from, too; also PLAM_TRACEBACK=1.")
    ] = False,
) -> None:
    """Plateau-guided model merging for multimodal LLMs, evaluated through lmms-eval."""
    # `main` has taken the option out, wherever it stood; it is declared here to be in the help.


def main() -> None:
    """Entry point. Exit status: 0 done, 1 error, 2 a call that is none, 130 stopped.

    Errors that explain themselves are one message; any other is a mistake of ours, and comes with its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of few letters must not cost the results of a run
        sys.stdout.reconfigure(errors="backslashreplace")
    wanted = os.environ.get("PLAM_TRACEBACK", "") not in ("", "0")
    if TRACEBACK in sys.argv[1:]:
        sys.argv, wanted = [word for word in sys.argv if word != TRACEBACK], True
    try:
        app()
    except KeyboardInterrupt:
        _stopped()
    except SystemExit as ended:
        if ended.code == 130:  # typer has caught the interrupt
            _stopped()
        raise
    except Exception as error:
        console, message = Terminal(stderr=True), explained(error)
        if message is None:
            heading = f"plam-eval did not expect this error{processes.which()}. Please report it with these lines:"
            console.say(text(heading, "bold red"))
        if message is None or wanted:
            console.say("".join(traceback.format_exception(error)).rstrip())
        if message is not None:
            console.say(labelled(f"error{processes.which()}", "bold red", message))
        sys.exit(1)


def explained(error: BaseException) -> str | None:
    """What `error` says to a user: cause, place and remedy. None for a mistake of ours."""
    if isinstance(error, PlamError):
        return str(error)
    if isinstance(error, OSError):
        return system_error(error)
    if processes.is_of_another(error):
        return (
            f"another process of this evaluation has ended ({first_line(error)}); what it said itself, or the launcher "
            "says of it, is the cause. The same command goes on with what was finished"
        )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without torch
        return f"out of memory ({first_line(error)}); give a smaller dtype, device_map=auto, or a smaller --together"
    if isinstance(error, ModuleNotFoundError) and error.name in ("vllm", "ray"):
        return f"{error.name} is not installed: pip install '.[{error.name}]' in a checkout of plam-eval"
    if type(error).__module__.partition(".")[0] in ("httpx", "httpx2"):  # huggingface_hub has either
        return f"the network failed ({type(error).__name__}: {error}); the same command goes on where it was"
    return None


def _stopped() -> NoReturn:
    # Who presses Ctrl-C again while processes and threads are ended gets no traceback for it.
    with contextlib.suppress(ValueError):  # not in the main thread, which signals are for
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    Terminal(stderr=True).say("stopped; the same command goes on with what was finished")
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what hangs at the end can be ended
    sys.exit(130)
