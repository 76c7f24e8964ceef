"""What a report page is made of: blocks, of which `page.html.j2` knows the form, and figures and numbers as text."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from plam_eval.evaluation.sweep import findings
from plam_eval.provenance import read_identity
from plam_eval.report import plots

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

_MINUS, NONE, SPACE = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{NO-BREAK SPACE}"
_DPI = 96  # CSS pixels per inch of a figure


@dataclass(frozen=True)
class Paragraph:
    """`look`: "", "answer", "note" (how to take what is beside it) or "warning"."""

    kind: ClassVar[str] = "paragraph"
    text: str
    look: str = ""


@dataclass(frozen=True)
class Row:
    """`look`: "", "chosen", "total", "quiet" or "failed"; rows of one `kind` can be shown alone."""

    cells: tuple[str, ...]
    look: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Grid:
    """A table. The first column names its rows; of the others, `words` holds those that are text and no numbers."""

    kind: ClassVar[str] = "grid"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    words: frozenset[int] = frozenset()

    @property
    def long(self) -> bool:
        return len(self.rows) > 24


@dataclass(frozen=True)
class Picture:
    """A figure: its drawing as markup of the page, which says in words what it shows, and how small it may get.

    `least`: "" (as small as the window), "s", "m" or "l"; from there on it is scrolled.
    """

    kind: ClassVar[str] = "picture"
    drawing: Markup
    name: str
    caption: str
    least: str


@dataclass(frozen=True)
class Clip:
    """A text: what is shown at once, all of it where that is more, and how many letters even that leaves out."""

    start: str
    whole: str | None
    omitted: int


@dataclass(frozen=True)
class Example:
    """A document whose score changed. `images` are (data URI, width to show it in, whether it is enlarged)."""

    title: str
    images: tuple[tuple[str, int, bool], ...]
    more_images: int
    question: Clip
    target: Clip
    answers: tuple[tuple[str, str, Clip], ...]


@dataclass(frozen=True)
class Examples:
    """Documents: those that are seen at once, `more` behind a title that opens them, and what is said of the others."""

    kind: ClassVar[str] = "examples"
    title: str
    examples: tuple[Example, ...]
    more: tuple[Example, ...] = ()
    more_title: str = ""
    rest: str = ""


@dataclass(frozen=True)
class Listing:
    """Lines to copy, or a list, behind a title that opens it."""

    kind: ClassVar[str] = "listing"
    title: str
    lines: tuple[str, ...]
    code: bool = True
    open: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page with a title; `anchor` is its name for links."""

    title: str
    blocks: tuple[Any, ...]
    anchor: str = ""

    @property
    def lead(self) -> tuple[Any, ...]:
        """What stays with the title where pages are turned: the first paragraphs, and the figure that follows them."""
        return self.blocks[: self._parted]

    @property
    def rest(self) -> tuple[Any, ...]:
        return self.blocks[self._parted :]

    @property
    def _parted(self) -> int:
        first = next((at for at, block in enumerate(self.blocks) if not isinstance(block, Paragraph)), len(self.blocks))
        return first + (first < len(self.blocks) and isinstance(self.blocks[first], Picture))


@dataclass(frozen=True)
class Answer:
    """What a source says in a sentence or two, how to take it, and what qualifies it.

    `name` tells sources apart. `further` is the number of warnings that stand in their own section.
    """

    name: str
    text: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    further: int = 0


# --- making them ------------------------------------------------------------------------------------------------------


def grid(
    caption: str,
    items: Iterable[Any],
    columns: Mapping[str, Callable[[Any], str]],
    *,
    words: Iterable[str] = (),
    look: Callable[[Any], str] = lambda item: "",
    kind: Callable[[Any], str] = lambda item: "",
) -> Grid:
    """A table of one row per item. `columns` say what each shows of it; `words` are those that hold no numbers."""
    rows = tuple(Row(tuple(show(item) for show in columns.values()), look(item), kind(item)) for item in items)
    return Grid(caption, tuple(columns), rows, frozenset(list(columns).index(word) for word in words))


def records_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as mappings."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def picture(figure: Figure, alt: str, caption: str) -> Picture:
    """A figure in the page's own colours. `alt` says in words what it shows, in its first sentence for short."""
    from markupsafe import Markup

    width = figure.get_figwidth() * _DPI
    least = "" if width <= 520 else "s" if width < 900 else "m" if width < 1100 else "l"
    alt = minus_signs(alt)
    drawing = Markup(plots.to_markup(figure, printable(alt)))
    return Picture(drawing, alt.partition(". ")[0].rstrip("."), caption, least)


def data_uri(kind: str, content: bytes) -> str:
    """Bytes as an address that holds them, such as `data:image/png;base64,...`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def is_known(value: Any) -> bool:
    """Whether a value of a table is there: None, NaN and NA are not."""
    return value is not None and not pd.isna(value)


def text_of(value: Any) -> str:
    """A value as text, "" where there is none."""
    return str(value) if is_known(value) else ""


def number(value: float, digits: int = 3) -> str:
    """A number with so many decimals, or a dash."""
    return minus_signs(f"{value:.{digits}f}") if is_known(value) else NONE


def signed(value: float) -> str:
    """A difference with its sign and three decimals, or a dash."""
    if not is_known(value):
        return NONE
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else minus_signs(text)


def interval(low: float, high: float, *, plus: bool = True) -> str:
    """ "low to high", or a dash; `plus`: of differences, which have a sign."""
    if not is_known(low):
        return NONE
    form = signed if plus else number
    return f"{form(low)} to {form(high)}"


def percent(share: float) -> str:
    """Whole percents; one digit more where that alone would hide that some, or not all, are left."""
    if not is_known(share):
        return NONE
    return f"{share:.1%}" if share not in (0, 1) and f"{share:.0%}" in ("0%", "100%") else f"{share:.0%}"


def p_value(p: float) -> str:
    """A p value for a cell of a table, or a dash."""
    return NONE if not is_known(p) else "<0.0001" if p < 1e-4 else findings.format_p(p)


def equal_p(p: float) -> str:
    """ "= 0.03", for a sentence."""
    return "< 0.0001" if p < 1e-4 else f"= {findings.format_p(p)}"


def minus_signs(text: str) -> str:
    """Hyphens that stand before a number as minus signs; those within names and dates stay."""
    return re.sub(r"(?<![\w.+-])-(?=\d)", _MINUS, text)


def count_of(number: int, what: str) -> str:
    """ "1 document", "1,080 documents"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def tasks_named(names: Sequence[str], said: list[Sequence[str]]) -> str:
    """Tasks by name, or by their number where there are many or the names have been said."""
    known = sorted(names) in said
    said.append(sorted(names))
    if len(names) == 1:
        return str(names[0])
    return f"{len(names)} tasks" + ("" if known or len(names) > 12 else f" ({', '.join(names)})")


def listed(names: Sequence[str]) -> str:
    """Names with "and" before the last; many are only counted."""
    if len(names) > 5:
        return f"{len(names)} others"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sentence(text: str) -> str:
    """A text with a capital letter in front and a full stop behind, unless it has them."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def cut_short(text: str, length: int = 600) -> str:
    """A text on one line, of at most about so many letters."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]}… ({len(text) - length:,} more letters)"


def clip(text: str, length: int, whole: int) -> Clip:
    """The first `length` letters of a text, and behind them as many as `whole`."""
    text = text.strip("\n") or "(nothing)"
    if len(text) <= length:
        return Clip(text, None, 0)
    return Clip(text[:length], text[:whole], max(0, len(text) - whole))


def printable(text: str) -> str:
    """Control characters as their pictures: they are not allowed in a page, and should be seen.

    Among them are those that turn the order of letters around, so that a command reads otherwise than it runs.
    """
    return str(text).translate(_PICTURES)


_PICTURES = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFFFE, 0xFFFF), 0xFFFD),
}


def breakable(text: str) -> Markup:
    """A name that may be parted into lines after its underscores."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(part) for part in text.split("_"))


def identity_of(identity: Mapping[str, Any] | None) -> str:
    """What tells a checkpoint from others, as its record holds it."""
    shown = {key: value for key, value in read_identity(identity or {}).items() if value and key != "files"}
    return ", ".join(f"{key} {value}" for key, value in shown.items()) or "identity not known"


def pairs_of(values: Mapping[str, Any] | None) -> str:
    """ "key value, key value", such as versions."""
    return ", ".join(f"{key} {value}" for key, value in (values or {}).items()) or "not known"
