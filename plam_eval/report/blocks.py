"""What a report page is made of: blocks, of which `page.html.j2` knows the form."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from plam_eval.figures import names_as_text
from plam_eval.report.svg import to_markup
from plam_eval.report.text import minus_signs, printable

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

_DPI = 96  # CSS pixels per inch of a figure
_SHARPER = 1.5  # pixels of an image for one of the page's


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
class TableBlock:
    """A table. The first column names its rows; of the others, `words` holds those that are text and no numbers."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    words: frozenset[int] = frozenset()

    @property
    def long(self) -> bool:
        """Whether it has so many rows that the page scrolls it in a frame of its own."""
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
class Raster:
    """A figure with photographs in it, as an image: `source` is a data URI, `alt` what it shows, in words."""

    kind: ClassVar[str] = "raster"
    source: str
    width: int
    alt: str
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
class Folded:
    """Other blocks, behind a title that opens them."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: tuple[Any, ...]


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
        """The blocks behind `lead`."""
        return self.blocks[self._parted :]

    @property
    def _parted(self) -> int:
        first = next(
            (index for index, block in enumerate(self.blocks) if not isinstance(block, Paragraph)), len(self.blocks)
        )
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


def table_block(
    caption: str,
    items: Iterable[Any],
    columns: Mapping[str, Callable[[Any], str]],
    *,
    words: Iterable[str] = (),
    look: Callable[[Any], str] = lambda item: "",
    kind: Callable[[Any], str] = lambda item: "",
) -> TableBlock:
    """A table of one row per item.

    Args:
        caption: what it holds, in a line.
        items: what `columns`, `look` and `kind` are asked about.
        columns: by title, what a column shows of an item; the first names the row.
        words: titles of those that hold text and no numbers.
        look: of an item's row, as in `Row`.
        kind: of an item's row; rows of one kind can be shown alone.
    """
    rows = tuple(Row(tuple(show(item) for show in columns.values()), look(item), kind(item)) for item in items)
    return TableBlock(caption, tuple(columns), rows, frozenset(list(columns).index(word) for word in words))


def records_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of `frame` as mappings by column."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def picture(figure: Figure, alt: str, caption: str) -> Picture:
    """A figure in the page's own colours.

    Args:
        figure: what is drawn; its background is made transparent.
        alt: what it shows, in words; the first sentence is its name.
        caption: what stands below it.
    """
    from markupsafe import Markup

    alt = minus_signs(alt)
    drawing = Markup(to_markup(figure, printable(alt)))
    return Picture(drawing, alt.partition(". ")[0].rstrip("."), caption, _least(figure))


def raster(figure: Figure, alt: str, caption: str) -> Raster:
    """A figure in which there are photographs, as the smaller one of JPEG and PNG of a palette.

    Args:
        figure: what is drawn, on its own background.
        alt: what it shows, in words.
        caption: what stands below it.
    """
    from PIL import Image

    names_as_text(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI * _SHARPER, metadata={"Software": None})
    image = Image.open(buffer).convert("RGB")
    contents = {}
    for kind, made, options in (
        ("jpeg", image, {"quality": 85, "optimize": True, "subsampling": 0}),
        ("png", image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE), {"optimize": True}),
    ):
        buffer = io.BytesIO()
        made.save(buffer, kind, **options)
        contents[kind] = buffer.getvalue()
    kind = min(contents, key=lambda kind: len(contents[kind]))
    width = round(figure.get_figwidth() * _DPI)
    return Raster(data_uri(f"image/{kind}", contents[kind]), width, minus_signs(alt), caption, _least(figure))


def _least(figure: Figure) -> str:
    """How small a figure may get, as in `Picture`."""
    width = figure.get_figwidth() * _DPI
    return "" if width <= 520 else "s" if width < 900 else "m" if width < 1100 else "l"


def data_uri(kind: str, content: bytes) -> str:
    """`content` as an address that holds it, such as `data:image/png;base64,...`, where `kind` is image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def clip_text(text: str, length: int, whole: int) -> Clip:
    """The start of a text, and what opens behind it.

    Args:
        text: without line breaks at its ends, or else they are cut off.
        length: letters that are seen at once.
        whole: letters that are on the page at all.
    """
    text = text.strip("\n") or "(nothing)"
    if len(text) <= length:
        return Clip(text, None, 0)
    return Clip(text[:length], text[:whole], max(0, len(text) - whole))
