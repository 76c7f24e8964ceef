"""Pictures of single documents: where each setting looks, over the image, with its answer. No pyplot."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from plam_eval import files
from plam_eval.errors import DamagedFileError, InputError, did_you_mean
from plam_eval.evaluation.attend.compared import OVER_CHANCE
from plam_eval.evaluation.attend.folder import MERGED, PLAIN, SHOWN, Attended
from plam_eval.evaluation.attend.shown import ShownDocument
from plam_eval.evaluation.attend.summary import AttendFindings
from plam_eval.figures import names_as_text, save_figure
from plam_eval.layer_sets import write_layers
from plam_eval.probing.attention_measures import Box
from plam_eval.terminal import shown as as_text

LONGEST_TEXT = 600
"""Letters of a question or an answer that are drawn; what is longer is cut."""

_BY = (OVER_CHANCE, "entropy")  # measures by which a layer is chosen, the first that has one
_PANEL = 2.5  # inches
_COLUMNS = 4
_SIZES = {"question": 10, "answer": 9}  # points
_HINTED = 1.12  # letters are drawn in whole dots: a little wider than their font says
_MOST_LINES = {"question": 8, "answer": 3}
_CLIPPED = 5.0  # colours end at so many times the value that a cell in twenty exceeds: a sink would hide all others
_WIDE_FONTS = ("CJK", "Noto Sans", "WenQuanYi", "Arial Unicode", "PingFang", "Hiragino Sans", "YaHei", "Malgun")
_MOST_FONTS = 40
_NO_GLYPH = "\N{WHITE SQUARE}"
_HEAT = LinearSegmentedColormap.from_list(
    "heat", [(0.99, 0.85, 0.2, 0.0), (0.99, 0.78, 0.2, 0.6), (0.9, 0.3, 0.1, 0.8), (0.5, 0.0, 0.15, 0.92)]
)
_CHANGE = LinearSegmentedColormap.from_list(
    "change",
    [(0.0, 0.25, 0.6, 0.92), (0.0, 0.45, 0.7, 0.6), (1.0, 1.0, 1.0, 0.0), (0.84, 0.4, 0.0, 0.6), (0.6, 0.2, 0.0, 0.92)],
)


def write_overlays(attended: Attended, findings: AttendFindings) -> list[str]:
    """Draw the documents that a folder holds for it, each beside its file as .png, at the layer that is quoted.

    Args:
        attended: a folder's content.
        findings: of it.

    Returns:
        Why documents were not drawn, in words.
    """
    layers, how = layers_to_show(findings), layers_in_words(findings)
    problems = []
    for file in attended.shown:
        target = files.inside(attended.folder, f"{SHOWN}/{file.stem}.png", str(attended.folder))
        try:
            document = ShownDocument.read(file)
            settings = [name for name in attended.settings if name in document.maps]
            figure = overlay_figure(document, layers, settings, how=how)
        except (DamagedFileError, InputError) as error:  # damaged, or of another model
            problems.append(f"a document was not drawn: {error}")
            continue
        files.write_in_one_step(target, lambda path, figure=figure: save_figure(figure, path))  # type: ignore[misc]
    return problems


def layers_to_show(findings: AttendFindings) -> list[int]:
    """The layers that documents are drawn at: the one that is quoted, or else those that are merged.

    Args:
        findings: of a folder.
    """
    for measure in _BY:
        if (layer := findings.chosen_layer(measure)) is not None:
            return [layer]
    return list(findings.merged_layers or range(findings.num_layers))


def layers_in_words(findings: AttendFindings) -> str:
    """Which layers `layers_to_show` names, and how they were chosen.

    Args:
        findings: of a folder.
    """
    layers = layers_to_show(findings)
    if any(findings.chosen_layer(measure) is not None for measure in _BY):
        return f"layer {layers[0]}, chosen on {'other' if findings.held_out else 'the same'} documents"
    return f"mean of layers {write_layers(layers)}, {'the merged ones' if findings.merged_layers else 'all'}"


def overlay_figure(
    shown: ShownDocument, layers: Sequence[int], settings: Sequence[str], *, how: str | None = None
) -> Figure:
    """One document: its image, and for each setting the attention over it, on one scale of colours, with its answer.

    A last panel has the difference of merged from plain on a scale of its own. Colours of attention go with its square
    root, and all end at five times what a cell in twenty exceeds, or a single sink would hide everything else. The grid
    of the model may reach beyond the image, where it was padded, or end within, where it was cropped: the map lies
    where the model saw it.

    Args:
        shown: the document.
        layers: over which the mean is drawn.
        settings: which of the document's, in their order.
        how: these layers in words, and how they were chosen; by default their numbers.

    Raises:
        InputError: settings or layers that the document has not, or none.
    """
    _check(shown, layers, settings)
    maps = {name: np.nan_to_num(shown.maps[name][list(layers)].mean(0)) for name in settings}
    change = maps[MERGED] - maps[PLAIN] if {PLAIN, MERGED} <= maps.keys() else None
    number = 1 + len(maps) + (change is not None)
    columns = min(_COLUMNS, number) if number != 5 else 5
    rows = -(-number // columns)
    left, top, right, bottom = _extent(shown)
    panel_height = float(np.clip(_PANEL * (bottom - top) / (right - left), 1.0, 1.5 * _PANEL))
    width = _PANEL * columns + 2.0
    question = _lines(shown.question, "question", width - 0.4)
    named = how or f"{'layer' if len(layers) == 1 else 'mean of layers'} {', '.join(map(str, layers))}"
    foot = _lines(f"{named}; right answer: {shown.target}", "answer", width - 0.4)
    answers = {name: _lines(shown.answers[name], "answer", _PANEL - 0.35) for name in maps}
    below = max(map(len, answers.values())) * 0.16 + 0.35
    figure = Figure(
        figsize=(width, rows * (panel_height + below) + 0.19 * (len(question) + len(foot)) + 0.8), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    _draw_image(panels[0], shown, shown.image)
    panels[0].set_title("image", fontsize=9)

    grey = _greyed(shown.image)
    largest, clipped = _scale(list(maps.values()))
    heat = ScalarMappable(PowerNorm(0.5, 0, largest), _HEAT)
    for axes, (name, values) in zip(panels[1:], maps.items(), strict=False):
        _draw_map(axes, shown, grey, values, heat)
        axes.set_title(_plainly(name, 40), fontsize=9)
        axes.set_xlabel("\n".join(answers[name]), fontsize=_SIZES["answer"])
    bars = [(heat, "attention to a cell, of that to all keys (root scale)", "max" if clipped else "neither")]
    if change is not None:
        most, over = _scale([np.abs(change)])
        differing = ScalarMappable(Normalize(-most, most), _CHANGE)
        _draw_map(panels[number - 1], shown, grey, change, differing)
        panels[number - 1].set_title(f"{MERGED} minus {PLAIN}", fontsize=9)
        bars.append((differing, "difference", "both" if over else "neither"))
    for axes in panels[number:]:
        axes.set_axis_off()
    for mappable, label, extend in bars:
        bar = figure.colorbar(mappable, ax=list(panels), label=label, extend=extend, pad=0.01, aspect=30, fraction=0.04)
        bar.ax.tick_params(labelsize=8)
        bar.ax.yaxis.label.set_fontsize(8.5)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    figure.suptitle("\n".join(question), x=0.01, ha="left", fontsize=_SIZES["question"])
    figure.supxlabel("\n".join(foot), x=0.01, ha="left", fontsize=_SIZES["answer"])
    names_as_text(figure)
    for text in figure.findobj(Text):
        text.set_fontfamily(list(_families()[0]))
    return figure


def _check(shown: ShownDocument, layers: Sequence[int], settings: Sequence[str]) -> None:
    problems = [
        f"setting {name!r} is not drawn of this document{did_you_mean(name, shown.maps)}"
        for name in settings
        if name not in shown.maps
    ]
    number = min((len(maps) for maps in shown.maps.values()), default=0)
    problems += [f"layer {layer} is none of its {number}" for layer in layers if not 0 <= layer < number]
    if not settings or not layers:
        problems.append("found no settings or no layers; expected one of each at least")
    if problems:
        raise InputError(*problems, origin=f"{shown.task}, document {shown.doc_id}")


def _scale(maps: Sequence[NDArray[Any]]) -> tuple[float, bool]:
    """Where the colours of some maps end, and whether values lie beyond."""
    values = np.concatenate([own.ravel() for own in maps])
    largest = float(values.max(initial=0.0))
    usual = _CLIPPED * float(np.quantile(values, 0.95)) if values.size else 0.0
    return (usual, True) if 0 < usual < largest else (largest or 1e-9, False)


def _extent(shown: ShownDocument) -> Box:
    """What a panel shows, in pixels of the image: all of it, and all of the model's grid."""
    width, height = shown.size
    left, top, right, bottom = shown.frame
    return min(0.0, left), min(0.0, top), max(float(width), right), max(float(height), bottom)


def _greyed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image in light greys, on which colours stand out."""
    grey = np.asarray(Image.fromarray(image).convert("L"), float)
    return np.repeat((90 + grey * 165 / 255).astype(np.uint8)[..., None], 3, axis=2)


def _draw_image(axes: Axes, shown: ShownDocument, image: NDArray[np.uint8]) -> None:
    """An image with its boxes, where it lies in what a panel shows."""
    width, height = shown.size
    left, top, right, bottom = _extent(shown)
    axes.imshow(image, extent=(0, width, height, 0), interpolation="antialiased")
    for box in shown.boxes:
        corner, size = (box[0], box[1]), (box[2] - box[0], box[3] - box[1])
        for colour, thick in (("black", 2.6), ("white", 1.2)):
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=thick, zorder=4))
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], facecolor="#D8D8D8")
    axes.set_aspect("equal")
    axes.spines[:].set_color("#A0A0A0")


def _draw_map(
    axes: Axes, shown: ShownDocument, image: NDArray[np.uint8], values: NDArray[Any], mappable: ScalarMappable
) -> None:
    """A map over the image: its cells fill the model's frame."""
    _draw_image(axes, shown, image)
    left, top, right, bottom = shown.frame
    own = axes.imshow(
        values,
        cmap=mappable.cmap,
        norm=mappable.norm,  # type: ignore[arg-type]
        extent=(left, right, bottom, top),
        interpolation="nearest",
        zorder=2,
    )
    own.set_clip_on(True)
    limits = _extent(shown)
    axes.set(xlim=(limits[0], limits[2]), ylim=(limits[3], limits[1]))


# ---- texts -----------------------------------------------------------------------------------------------------------


def _plainly(text: str, most: int) -> str:
    """A text on one line, cut where it is long, of letters that can be drawn."""
    text = " ".join(as_text(text[: 2 * LONGEST_TEXT]).split())
    return _drawable(text if len(text) <= most else f"{text[: most - 1]}…")


def _lines(text: str, kind: str, inches: float) -> list[str]:
    """A text in lines that are no longer than this, cut where there are too many; one empty line of none.

    Args:
        text: as it was written, line ends kept.
        kind: "question" or "answer".
        inches: of a line.
    """
    width, most = 72 * inches / _SIZES[kind] / _HINTED, _MOST_LINES[kind]
    text = _drawable(as_text(text.strip()[: 2 * LONGEST_TEXT]))  # of megabytes each letter would be looked up
    cut = len(text) > LONGEST_TEXT
    lines = [line for given in text[:LONGEST_TEXT].split("\n") for line in _wrapped(" ".join(given.split()), width)]
    if cut or len(lines) > most:
        lines = lines[:most]
        lines[-1] = f"{lines[-1][: max(1, len(lines[-1]) - 1)]}…"
    return lines or [""]


def _wrapped(text: str, width: float) -> list[str]:
    """Lines of one paragraph, broken at spaces, or anywhere in what is longer than a line, as texts without spaces."""
    lines, line = [], ""
    for word in text.split(" "):
        while word:
            glue = " " if line else ""
            if _width(line + glue + word) <= width:
                line, word = line + glue + word, ""
            elif line and _width(word) <= width:
                lines.append(line)
                line = ""
            else:  # a word that no line holds
                kept = _longest_start(word, width - _width(line + glue))
                if not kept and line:
                    lines.append(line)
                    line = ""
                    continue
                lines.append(line + glue + word[: max(1, kept)])
                line, word = "", word[max(1, kept) :]
    return [*lines, line] if line else lines


def _longest_start(word: str, width: float) -> int:
    """How many letters of a word fit."""
    total = 0.0
    for number, letter in enumerate(word):
        total += _width(letter)
        if total > width:
            return number
    return len(word)


def _width(text: str) -> float:
    """How wide a text is drawn, in its size."""
    return sum(map(_width_of, text))


@cache
def _width_of(letter: str) -> float:
    """The same of one letter; of fonts other than the usual one about so."""
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    font.set_size(1000, 72)
    return float(font.load_char(ord(letter)).linearHoriAdvance) / 65536 / 1000


@cache
def _families() -> tuple[tuple[str, ...], frozenset[int]]:
    """Fonts to draw texts with, the usual one first, and the letters that they have."""
    usual = font_manager.FontProperties().get_name()
    by_name = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    names = [usual, *(name for name in sorted(by_name) if name != usual and any(word in name for word in _WIDE_FONTS))]
    letters: set[int] = set()
    kept = []
    for name in names[:_MOST_FONTS]:
        try:
            charmap = font_manager.get_font(by_name[name]).get_charmap()
        except (OSError, RuntimeError, KeyError):  # a font that is listed and gone, or damaged
            continue
        kept.append(name)
        letters.update(charmap)
    return tuple(kept), frozenset(letters)


def _drawable(text: str) -> str:
    """A text of letters that some font on this machine has; of others their number."""
    letters = _families()[1]
    pieces = []
    for known, run in groupby(text, lambda letter: ord(letter) in letters or letter.isspace()):
        piece = "".join(run)
        pieces.append(
            piece if known else _NO_GLYPH * len(piece) if len(piece) < 4 else f"[{len(piece)} letters without a font]"
        )
    return "".join(pieces)
