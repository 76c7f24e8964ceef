"""Choosing among merges without labels: the one whose answers differ least from those of its two neighbours.

It is the search of AdaMMS (Du et al., CVPR 2025): along a line of merges from one model to the other, the setting at
which least changes. Nothing but answers is read, letter case and spaces around them aside; no scores, no targets.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from plam_eval.errors import InputError

Coordinates = tuple[Hashable, Sequence[float]]
"""The line that a setting is on, and its place there: settings of a line are ordered by it."""


@dataclass(frozen=True)
class Neighbours:
    """A setting between two others.

    Attributes:
        line: that it is on.
        before, after: the settings next to it; None is plain.
        differ: documents that it answers otherwise than at least one of them.
        documents: of so many.
    """

    line: Hashable
    before: str | None
    after: str | None
    differ: int
    documents: int


def compare_neighbours(
    settings: Mapping[str, tuple[Coordinates, Mapping[Any, str]]], plain: Mapping[Any, str] | None = None
) -> dict[str, Neighbours]:
    """Each setting that has two neighbours, beside them; lines in the order of `settings`, each from its begin on.

    The ends of a line have one neighbour: they are compared with, and cannot be chosen. A line of fewer than three,
    plain among them, has none that can.

    Args:
        settings: by name, its coordinates and its answer to each document; documents have to be the same in all.
        plain: answers of the plain model, which is a point of every line, at 0: a merge of no layer, or with no share
            of the base. None where it is not to be one.

    Raises:
        InputError: two settings at one place, or of other documents.
    """
    lines: dict[Hashable, list[tuple[tuple[float, ...], str | None]]] = {}
    for name, ((line, place), _) in settings.items():
        lines.setdefault(line, [] if plain is None else [((0.0,), None)]).append((tuple(place), name))
    answers = _aligned({name: given for name, (_, given) in settings.items()}, plain)
    compared: dict[str, Neighbours] = {}
    for line, points in lines.items():
        places = [place for place, _ in points]
        if len(set(places)) < len(places):
            raise InputError(f"line {line!r}: found settings at one place, expected another place for each: {places}")
        ordered = [point for _, point in sorted(points, key=lambda point: point[0])]
        for before, between, after in zip(ordered, ordered[1:], ordered[2:], strict=False):
            if between is not None:
                own = answers[between]
                differ = int(((own != answers[before]) | (own != answers[after])).sum())
                compared[between] = Neighbours(line, before, after, differ, len(own))
    return compared


def least_differing(compared: Mapping[str, Neighbours]) -> str | None:
    """The setting that differs in the fewest documents from its neighbours; of equals the first; None where none can.

    Args:
        compared: as `compare_neighbours` gives it.
    """
    return min(compared, key=lambda name: compared[name].differ, default=None)


def _aligned(settings: Mapping[str, Mapping[Any, str]], plain: Mapping[Any, str] | None) -> dict[str | None, pd.Series]:
    """Answers by setting (plain's by None), all in the order of one of them."""
    everything: dict[str | None, Mapping[Any, str]] = dict(settings.items())
    if plain is not None:
        everything[None] = plain
    aligned: dict[str | None, pd.Series] = {}
    documents: list[Any] | None = None
    for name, given in everything.items():
        documents = list(given) if documents is None else documents
        if len(given) != len(documents) or any(document not in given for document in documents):
            raise InputError(f"{name or 'plain'}: its documents are others than those of {next(iter(everything))}")
        aligned[name] = pd.Series([str(given[document]).strip().casefold() for document in documents], dtype=object)
    return aligned
