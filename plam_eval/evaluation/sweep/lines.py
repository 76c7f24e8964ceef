"""Which merges of a grid are on one line, so that each has neighbours."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping

from plam_eval.evaluation.label_free import Coordinates
from plam_eval.evaluation.sweep.grid import Cell
from plam_eval.spec import PlateauSpec

_SAYS_NOTHING = ("model", "evidence", "source")  # of the merge


def coordinates_of(cells: Iterable[Cell]) -> dict[str, Coordinates]:
    """For each merge, by name, its line and its place there; merges on no line are left out.

    Merges that differ in nothing but their weights are a line, in the order of the base's share of the two weights, and
    among equal shares of their sum. A merge that is alone in this is on a line of layers, if those with the same
    weights, modules and rule, and as alone, are one within the next: in the order of how many layers they have.

    Args:
        cells: of a grid; only merges are looked at.
    """
    specs = {cell.name: cell.spec for cell in cells if cell.kind == "merged" and cell.spec is not None}
    placed: dict[str, Coordinates] = {}
    for line, names in _lines_of("weights", specs).items():
        if len(names) > 1:
            placed |= {name: (line, _share(specs[name])) for name in names}
    alone = {name: spec for name, spec in specs.items() if name not in placed}
    for line, names in _lines_of("layers", alone).items():
        sets = sorted((set(specs[name].layers) for name in names), key=len)
        if all(small < large for small, large in itertools.pairwise(sets)):
            placed |= {name: (line, (len(specs[name].layers),)) for name in names}
    return {name: placed[name] for name in specs if name in placed}


def _lines_of(along: str, specs: Mapping[str, PlateauSpec]) -> dict[tuple[str, str], list[str]]:
    """Merges that are the same but for `along`, "weights" or "layers", by that word and what they have in common."""
    lines: dict[tuple[str, str], list[str]] = {}
    for name, spec in specs.items():
        own = {"layers": "layer_range"}.get(along, along)
        content = {key: value for key, value in spec.to_dict().items() if key not in (along, own, *_SAYS_NOTHING)}
        lines.setdefault((along, json.dumps(content, sort_keys=True)), []).append(name)
    return lines


def _share(spec: PlateauSpec) -> tuple[float, float]:
    """The base's share of the weights, as an angle (so that no sum of weights is refused), and their sum."""
    weights = spec.weights
    return math.atan2(weights.base_model, weights.model), weights.model + weights.base_model
