"""What goes to a terminal: text as it was written, control sequences shown and not sent, no markup but our own styles.

Names, paths, answers and messages hold brackets, which rich takes for markup, and may hold escape sequences, which a
terminal obeys. Everything that prints uses the consoles and tables of this module; plots, logs and progress bars use
`shown`. It imports rich only.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table
from rich.text import Text

LEAST = 80
"""Columns that every table fits in."""

_SPECIAL = re.compile(r"[^\n\t\x20-\x7e]")
_HARMLESS = "\u200c\u200d"  # joiners: a part of how some scripts and symbols are written


def shown(value: object) -> str:
    r"""`value` as text in which control characters, bidirectional overrides and the like are written out: ESC is \x1b.

    Line feeds and tabs stay. Lone surrogates, which no terminal can be sent, are written out as well.
    """
    return _SPECIAL.sub(_written_out, str(value))


def one_line(value: object) -> str:
    r"""`value` as `shown` gives it, with line feeds and tabs written out: for names, captions and progress bars."""
    return shown(value).replace("\n", r"\n").replace("\t", r"\t")


def _written_out(match: re.Match[str]) -> str:
    letter = match.group()
    # Cc: controls, Cf: invisible and directional, Cs: surrogates, Zl and Zp: line ends that are none of ours.
    if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in _HARMLESS:
        return letter.encode("unicode_escape").decode("ascii")
    return letter


def text(value: object, style: str | Style = "") -> Text:
    """A piece of text for a table or a line.

    Args:
        value: what it says, as `shown` gives it.
        style: of ours, as rich names it; "" is none.
    """
    return Text(shown(value), style=style)


def labelled(label: str, style: str, value: object) -> Text:
    """A line such as "warning: ...", with only the label in a style.

    Args:
        label: what stands before the colon.
        style: of the label, as rich names it.
        value: what stands behind, as `shown` gives it.
    """
    return Text.assemble((label, style), f": {shown(value)}")


class Terminal(Console):
    """A console to which strings are text: no markup, no emoji codes, no guessed highlighting, no control sequences.

    Args:
        least_width: columns to count on where none are known: in a pipe or a log, which has no edge.
        quiet: print nothing but what `warn` and `insist` are given.
        **options: of rich's Console; markup, emoji and highlighting are off.

    `data` is what `--json` writes: whoever prints a result puts it there, too.
    """

    def __init__(self, *, least_width: int = 0, **options: Any) -> None:  # quiet is rich's own
        # Not left to rich, which keeps the `os.environ` of its import: `datasets` puts a copy in its place.
        said = os.environ.get("COLUMNS", "")
        columns = int(said) if said.isdecimal() else 0
        if columns:
            options.setdefault("width", columns)
        super().__init__(markup=False, emoji=False, highlight=False, **options)
        self.data: dict[str, Any] = {}
        if least_width > self.width and not (self.is_terminal or columns):
            self.width = least_width

    def render_str(self, text: str, **options: Any) -> Text:
        """`text` as `shown` gives it, whatever `options` rich asks for by itself."""
        return super().render_str(shown(text), **{**options, "markup": False, "emoji": False, "highlight": False})

    def say(self, value: str | Text) -> None:
        """Print `value`, a text, broken only where the terminal ends."""
        self.print(value, soft_wrap=True)

    def warn(self, warnings: Iterable[object]) -> None:
        """Print each of `warnings` on a line of its own, also where the console is quiet."""
        for warning in warnings:
            self.insist(labelled("warning", "yellow", warning))

    def insist(self, value: str | Text) -> None:
        """`say` the text `value`, also where the console is quiet."""
        quiet, self.quiet = self.quiet, False
        self.say(value)
        self.quiet = quiet

    def show(self, *tables: Table) -> None:
        """Print the first of `tables`, forms of one, that fits the console, or the last, at 80 columns or more."""
        for table in tables:
            if (
                table is tables[-1]
                or Measurement.get(self, self.options.update(width=10_000), table).maximum <= self.width
            ):
                self.print(table, width=max(self.width, LEAST), crop=False)
                return


class PlainTable(Table):
    """A rich table whose strings are text on any console, and whose title and caption are.

    Args:
        *headers: of its columns.
        title: above it; None is none.
        caption: below it; None is none.
        **options: of rich's Table.
    """

    def __init__(self, *headers: Any, title: Any = None, caption: Any = None, **options: Any) -> None:
        super().__init__(*headers, title=_as_text(title), caption=_as_text(caption), **options)

    def add_column(self, header: RenderableType = "", footer: RenderableType = "", **options: Any) -> None:
        """Add a column, as rich's Table does.

        Args:
            header: above it.
            footer: below it.
            **options: style, width and the like, as rich takes them.
        """
        super().add_column(_as_text(header), _as_text(footer), **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row, as rich's Table does.

        Args:
            *cells: one for each column; None is an empty one.
            **options: style and the like, as rich takes them.
        """
        super().add_row(*map(_as_text, cells), **options)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _as_text(value) if name in ("title", "caption") else value)


def _as_text(value: Any) -> Any:
    return text(value) if isinstance(value, str) else value
