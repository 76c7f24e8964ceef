"""What a command says when it fails: one message with cause, place and remedy, in the words in which it was raised."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plam_eval import cli, doctor
from plam_eval.demo.hub import SuiteError
from plam_eval.demo.run import DemoError
from plam_eval.errors import ArgumentError, DamagedFileError, InputError, MergeError, OutsideError, PlamError
from plam_eval.evaluation.comparable import IncomparableError
from plam_eval.evaluation.scan_folder import ScanError
from plam_eval.evaluation.sweep.config import SweepError
from plam_eval.harness.errors import EvaluationError, RecordError
from plam_eval.probing.curve import CurveError
from plam_eval.probing.decoder import ProbeError
from plam_eval.report.sources import ReportError
from plam_eval.spec import SpecError
from tests.helpers.commands import Call
from tests.helpers.nasty import NASTY, SHOWN


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], list[str]]:
    """`failing(error)` makes a command raise it; returns the words of the call."""

    def prepare(error: BaseException) -> list[str]:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(doctor, "check_installation", fail)
        return ["doctor"]

    return prepare


def test_errors_are_printed_as_they_were_written(plam: Call, failing: Any) -> None:
    for message in (NASTY, "pip install '.[ray]'", "expected [start, end] in /a/[parts]/b", "[/INST] [USER]"):
        code, out, err = plam(*failing(EvaluationError(message)))
        assert (code, out, err) == (1, "", f"error: {message if message != NASTY else SHOWN}\n")


@pytest.mark.parametrize(
    "error",
    [
        SpecError(NASTY, origin="spec"),
        CurveError(NASTY, origin="curve"),
        IncomparableError(NASTY, origin="a and b"),
        *(
            kind(NASTY)
            for kind in (
                *(MergeError, EvaluationError, RecordError, SweepError, ScanError, ReportError),
                *(DemoError, SuiteError, ProbeError, DamagedFileError, OutsideError, InputError, ArgumentError),
            )
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_of_ours_is_one_message(plam: Call, failing: Any, error: PlamError) -> None:
    code, _, err = plam(*failing(error))
    assert code == 1 and isinstance(error, PlamError)
    assert err.startswith("error: ") and SHOWN in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/out/[x]/cell.json"),
            "/out/[x]/cell.json: No space left on device; free some space, and the same command goes on where it was",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/out"), "name a folder that can be written"),
        (PermissionError(errno.EACCES, "Permission denied", "/out/a"), "/out/a: Permission denied; give yourself"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"), "a file lies where a folder is expected"),
        (FileExistsError(errno.EEXIST, "File exists", "/a"), "/a: File exists; something of this name is in the way"),
        (OSError("[x/y] is not the id of a model"), "OSError: [x/y] is not the id of a model"),
        (MemoryError(), "out of memory (MemoryError)"),
        (ModuleNotFoundError("No module named 'vllm'", name="vllm"), "pip install '.[vllm]' in a checkout"),
    ],
)
def test_errors_of_the_system_are_one_line(plam: Call, failing: Any, error: Exception, says: str) -> None:
    code, _, err = plam(*failing(error))
    assert code == 1 and says in err
    assert len(err.splitlines()) == 1 and "Traceback" not in err


@pytest.mark.parametrize("error", [ValueError(NASTY), KeyError("index"), TypeError("x"), RuntimeError("y")])
def test_what_we_did_not_expect_shows_where_it_came_from(plam: Call, failing: Any, error: Exception) -> None:
    code, _, err = plam(*failing(error))
    assert code == 1
    first, *_, last = err.splitlines()
    assert first.startswith("plam-eval did not expect this error") and "Traceback" in err
    assert last.startswith(type(error).__name__) and "\x1b" not in err and "\x07" not in err


def test_tracebacks_are_shown_on_demand(plam: Call, failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = failing(InputError("no"))
    assert "Traceback" not in plam(*words)[2]
    for given in (["--traceback", *words], [*words, "--traceback"]):
        code, _, err = plam(*given)
        assert code == 1 and "Traceback" in err and err.splitlines()[-1] == "error: no"
    monkeypatch.setenv("PLAM_TRACEBACK", "1")
    assert "Traceback" in plam(*words)[2]


def test_stopped_is_130_and_says_so(plam: Call, failing: Any) -> None:
    code, _, err = plam(*failing(KeyboardInterrupt()))
    assert code == 130 and err.splitlines()[-1] == "stopped; the same command goes on with what was finished"


def test_a_call_that_is_none_is_2_and_keeps_its_brackets(plam: Call) -> None:
    code, _, err = plam("doctor", "--no[x][/x]")
    assert code == 2 and "--no[x][/x]" in err
    code, out, _ = plam("sweep", "--help")
    assert code == 0 and "starts[:STEP]" in out.replace("\n", "").replace(" ", "")


def test_an_output_that_is_a_file(plam: Call, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError) as error:
        (tmp_path / "a" / "b").mkdir(parents=True)
    assert cli.explained(error.value) is not None
    assert str(tmp_path / "a" / "b") in str(cli.explained(error.value))
