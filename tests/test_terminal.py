"""What is printed, drawn and logged is what was written: no markup in data, and no control sequence sent."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import sys

import pytest
from loguru import logger
from rich.console import Console

from plam_eval.cli.speaking import quiet_logs
from plam_eval.terminal import PlainTable, Terminal, labelled, one_line, shown, text
from tests.helpers.nasty import NASTY, SHOWN


def printed(*values: object, console: type[Console] = Terminal) -> str:
    stream = io.StringIO()
    terminal = console(file=stream, width=200, force_terminal=True, color_system="truecolor")
    for value in values:
        terminal.print(value)
    return stream.getvalue()


def test_controls_are_written_out_and_letters_kept() -> None:
    assert shown(NASTY) == SHOWN
    kept = "Grüße 你好 🎉 a\u200db ‘quoted’ two\nlines\tand a tab"
    assert shown(kept) == kept
    assert one_line("two\nlines\t") == r"two\nlines\t"
    assert shown(3) == "3"


def test_a_terminal_prints_strings_as_they_are() -> None:
    out = printed(NASTY)
    assert out == SHOWN + "\n"  # no escape sequence at all, and no colour of rich's own
    assert printed(labelled("failed", "red", NASTY)) == f"\x1b[31mfailed\x1b[0m: {SHOWN}\n"


@pytest.mark.parametrize("console", [Terminal, Console])
def test_tables_are_text_on_any_console(console: type[Console]) -> None:
    table = PlainTable(title=NASTY)
    table.add_column(NASTY)
    table.add_column("styled")
    table.add_row(NASTY, text(NASTY, "red"), style="bold")
    table.caption = f"{NASTY}!"
    out = printed(table, console=console)
    assert out.count(r"[x] [/x] [bold] :smile: \x1b[31m\x1b]0;title\x07 \r \x9b2J \u202eabc \udc80") == 5
    assert "\x07" not in out and "\r" not in out and "\u202e" not in out and "\x1b]" not in out


def test_lines_are_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.StringIO()
    console = Terminal(file=stream, width=20)
    console.say("/a/long/path/[parts]/of/a/folder/that/can/be/copied")
    assert stream.getvalue() == "/a/long/path/[parts]/of/a/folder/that/can/be/copied\n"
    assert Terminal(file=stream, width=20, least_width=150).width == 150


def test_columns_are_those_of_the_environment_also_where_a_library_has_put_a_copy_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", copy.deepcopy(os.environ))
    monkeypatch.setenv("COLUMNS", "150")
    assert Terminal(file=io.StringIO(), least_width=200).width == 150
    monkeypatch.setenv("COLUMNS", "0")
    assert Terminal(file=io.StringIO(), least_width=200).width == 200


def test_logs_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    quiet_logs()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # as a cell's log does
            logger.warning(f"{NASTY} {{braces}} <red>tags</red>")
    finally:
        logger.remove()
        logger.add(sys.stderr)
    said = capsys.readouterr().err
    assert f"{SHOWN} {{braces}} <red>tags</red>\n" in said and "\x1b" not in said
