"""Figures as SVG: files that need no font, and drawings within a page, in the page's own colours."""

from __future__ import annotations

import hashlib
import io
import re
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from plam_eval.figures import COLOURS, LIMIT_COLOUR, SALT, STAGE_COLOURS, names_as_text

BETTER, WORSE, HATCH, QUIET = "#2166AC", "#B3182C", "#8A8F96", "#555555"
# Variables of the page's style, by the colours that figures are drawn in.
_VARIABLES = {
    "#000000": "ink",
    "#ffffff": "page",
    "#b0b0b0": "grid",  # matplotlib's own
    QUIET: "ink-soft",
    LIMIT_COLOUR: "limit",
    BETTER: "better",
    WORSE: "worse",
    HATCH: "hatch",
    **{colour: f"c{number}" for number, colour in enumerate(COLOURS, 1)},
    **dict(zip(STAGE_COLOURS.values(), ("separation", "alignment", "plateau"), strict=True)),
}
_VARIABLE_OF = {colour.lower(): f"var(--{name}, {colour.lower()})" for colour, name in _VARIABLES.items()}


def to_svg(figure: Figure) -> bytes:
    """`figure` as SVG with its letters as outlines, so that it needs no font; figures made alike give equal bytes."""
    buffer = io.BytesIO()
    names_as_text(figure)
    with matplotlib.rc_context({"svg.hashsalt": SALT, "svg.fonttype": "path", "hatch.linewidth": 0.6}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def to_markup(figure: Figure, title: str) -> str:
    """A figure as SVG to stand within a page, whose style gives it its colours: variables such as `--ink`.

    It refers to nothing outside, and holds no style of its own, which a strict content security policy would forbid.

    Args:
        figure: what is drawn; its background is made transparent.
        title: what it shows, in words.
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    content = to_svg(figure)
    root = ElementTree.fromstring(content)
    mark = f"f{hashlib.sha256(content + title.encode()).hexdigest()[:8]}-"  # ids of a page's figures are told apart
    used = set(re.findall(rb'(?:href="#|url\(#)([^")]+)', content))
    for parent in [*root.iter()]:
        for child in [*parent]:
            if _local(child.tag) in ("metadata", "style") or (_local(child.tag) == "defs" and not _holds(child)):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes: dict[str, str] = {}
        for name, value in element.attrib.items():
            name = _local(name)
            if name == "style":
                attributes |= _declared(value, mark)
            elif name == "id":
                if value.encode() in used:
                    attributes[name] = mark + value
            elif name == "href":
                attributes[name] = f"#{mark}{value.removeprefix('#')}"
            elif name in ("d", "x", "y", "width", "height"):
                attributes[name] = re.sub(r"(\.\d\d)\d+", r"\1", " ".join(value.split()))
            else:
                attributes[name] = value.replace("url(#", f"url(#{mark}")
        element.attrib.clear()
        element.attrib.update(attributes)
    wide, high = (round(inches * 96) for inches in figure.get_size_inches())
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib |= {
        "viewBox": box,
        "width": str(wide),
        "height": str(high),
        "role": "img",
        "fill": _VARIABLE_OF["#000000"],
    }
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt", "aria-label": title}
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    """A name without its namespace: there are none within a page."""
    return name.rpartition("}")[2]


def _holds(defs: ElementTree.Element) -> bool:
    return any(_local(child.tag) != "style" for child in defs)


def _declared(style: str, mark: str) -> dict[str, str]:
    """Declarations of a style attribute as attributes of their own, colours as the page's variables."""
    pairs = (declaration.partition(":") for declaration in style.split(";") if declaration.strip())
    values = {name.strip(): value.strip().replace("url(#", f"url(#{mark}") for name, _, value in pairs}
    return {name: _VARIABLE_OF.get(value.lower(), value) for name, value in values.items()}
