"""Sets of decoder layers: how they are written, read and told. Layers count from 0, and ends are exclusive."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from plam_eval.errors import quoted

MOST_LAYERS = 10_000
"""No decoder has as many layers: what a file or a user gives is held against it before anything counts them."""
_LONGEST_TEXT = 20_000
_LONGEST_NAME = 60
_LONGEST_LABEL = 40
_TWO_NUMBERS = re.compile(r"\D*(\d{1,5})\D+(\d{1,5})\D*", re.ASCII)
_RUN = re.compile(r"\s*(\d{1,19})\s*(?::\s*(\d{1,19})\s*)?", re.ASCII)


def range_hint(value: Any) -> str:
    """For an error about layers: the range that two numbers in `value` may stand for, as it is to be written.

    Args:
        value: what was found in place of a range.
    """
    ends = _TWO_NUMBERS.fullmatch(value) if isinstance(value, str) else None
    return f"; write {ends[1]}:{ends[2]}" if ends and ":" not in value and "+" not in value else ""


def read_range(value: Any) -> tuple[int, int]:
    """The ends of a range.

    Args:
        value: [start, end], or "start:end".

    Raises:
        ValueError: it is no range, or an empty one; the message says what to write.
    """
    ends: Any = value.split(":", 2) if isinstance(value, str) else value
    if isinstance(value, str) and all(end.strip().isdecimal() and len(end) < 20 for end in ends):
        ends = [int(end) for end in ends]
    if not isinstance(ends, (list, tuple)) or len(ends) != 2 or any(type(end) is not int for end in ends):
        raise ValueError(
            f"found {quoted(value)}, expected [start, end] (in model_args start:end) in whole numbers"
            f"{range_hint(value)}"
        )
    start, end = ends
    if max(start, end) > MOST_LAYERS:
        raise ValueError(f"found {quoted(value)}, expected layers below {MOST_LAYERS}: no decoder has as many")
    if start < 0:
        raise ValueError(f"found [{start}, {end}), expected a start of 0 or more: layers count from 0")
    if end <= start:
        what = "is empty" if end == start else "runs backwards"
        raise ValueError(f"[{start}, {end}) {what}; expected start < end, end exclusive")
    return start, end


def read_layers(value: Any) -> tuple[int, ...]:
    """The layers of a set, in order.

    Args:
        value: a list of layers, or text such as "3+9+20" and "4:8+20:24", in which ranges have exclusive ends.

    Raises:
        ValueError: it is no such list, or names a layer twice; the message says what to write.
    """
    form = "expected a list of layers, as [3, 9, 20] (in model_args 3+9+20, or with ranges 4:8+20:24)"
    if isinstance(value, str) and len(value) <= _LONGEST_TEXT:
        layers: list[int] = []
        for word in value.split("+"):
            run = _RUN.fullmatch(word)
            if run is None:
                raise ValueError(f"found {quoted(value)}, {form}{range_hint(value)}")
            layers += range(*read_range(word)) if run[2] else [int(run[1])]
            if len(layers) > MOST_LAYERS:
                raise ValueError(f"found {quoted(value)}, expected layers below {MOST_LAYERS}, each once")
    elif isinstance(value, (list, tuple)) and value and all(type(layer) is int for layer in value):
        layers = list(value)
    else:
        raise ValueError(f"found {quoted(value)}, {form}")
    if min(layers) < 0 or max(layers) >= MOST_LAYERS or len(layers) > MOST_LAYERS:
        raise ValueError(f"found {quoted(value)}, expected layers from 0 to {MOST_LAYERS - 1}")
    if len(set(layers)) < len(layers):
        twice = next(layer for layer in sorted(layers) if layers.count(layer) > 1)
        raise ValueError(f"found {quoted(value)}, which names layer {twice} more than once; expected each once")
    return tuple(sorted(layers))


def as_range(layers: Sequence[int]) -> tuple[int, int] | None:
    """Start and end of layers without a gap between them; None for others.

    Args:
        layers: in order, each once, at least one.
    """
    start, end = layers[0], layers[-1] + 1
    return (start, end) if end - start == len(layers) else None


def runs_of(layers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The ranges [start, end) that layers are made of, longest first possible and in order.

    Args:
        layers: in order, each once.
    """
    start = 0
    for place in range(1, len(layers) + 1):
        if place == len(layers) or layers[place] != layers[place - 1] + 1:
            yield layers[start], layers[place - 1] + 1
            start = place


def write_layers(layers: Sequence[int]) -> str:
    """Layers as model_args have them: "24:36", "3+9+20", "4:8+20:24". `read_layers` reads all but a single one back.

    Args:
        layers: in order, each once, at least one.
    """
    alone = as_range(layers)
    if alone is not None:
        return f"{alone[0]}:{alone[1]}"
    return "+".join(str(start) if end == start + 1 else f"{start}:{end}" for start, end in runs_of(layers))


def name_layers(layers: Sequence[int]) -> str:
    """Layers as a part of a folder's name: "24-36", "3+9+20", "4-8+20-24"; of a long set its ends, size and a hash.

    Args:
        layers: in order, each once, at least one.
    """
    name = write_layers(layers).replace(":", "-")
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{len(layers)}+of+{layers[0]}-{layers[-1] + 1}+{digest}"


def label_layers(layers: Sequence[int]) -> str:
    """Layers as a label in a figure: as `write_layers`; of a set that is long so, how many there are and its ends.

    Args:
        layers: in order, each once, at least one.
    """
    written = write_layers(layers)
    return written if len(written) <= _LONGEST_LABEL else f"{len(layers)} from {layers[0]} to {layers[-1]}"


def tell_layers(layers: Iterable[int]) -> str:
    """Layers for a reader: "[24, 36)" for a range, else "3, 9, 20" or "4 to 7, 20 to 23".

    Args:
        layers: in order, each once, at least one.
    """
    layers = tuple(layers)
    alone = as_range(layers)
    if alone is not None:
        return f"[{alone[0]}, {alone[1]})"
    return ", ".join(_in_words(start, end) for start, end in runs_of(layers))


def _in_words(start: int, end: int) -> str:
    if end - start < 3:
        return ", ".join(map(str, range(start, end)))
    return f"{start} to {end - 1}"


def layers_of(spec: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers that a spec's stored fields name, in order.

    Args:
        spec: as `PlateauSpec.to_dict` gives it: with `layer_range`, or with `layers`.

    Raises:
        ValueError: it names none, or not as a spec does.
    """
    if spec.get("layer_range") is not None:
        return tuple(range(*read_range(spec["layer_range"])))
    return read_layers(spec.get("layers"))


def random_layer_sets(size: int, num_layers: int, draws: int, other_than: Sequence[int] = ()) -> list[tuple[int, ...]]:
    """Sets of layers drawn at random, all different, each set of the size as likely as any other.

    The draws are those of the size and the decoder: two merges of as many layers get the same ones.

    Args:
        size: layers in each set.
        num_layers: decoder layers of the model.
        draws: how many sets; fewer are returned where there are no more.
        other_than: a set that is not to be among them, in order.

    Returns:
        The sets, each in order.
    """
    if not 0 < size <= num_layers:
        return []
    own = tuple(other_than)
    if math.comb(num_layers, size) <= 2 * (draws + 1):
        every = list(itertools.combinations(range(num_layers), size))
        random.Random(f"random_layers:{num_layers}:{size}").shuffle(every)
        return [layers for layers in every if layers != own][:draws]
    drawn: dict[tuple[int, ...], None] = {}
    for number in itertools.count():
        chooser = random.Random(f"random_layers:{num_layers}:{size}:{number}")
        layers = tuple(sorted(chooser.sample(range(num_layers), size)))
        if layers != own:
            drawn[layers] = None
        if len(drawn) >= draws:
            break
    return list(drawn)
