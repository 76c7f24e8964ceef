"""Which merges of a grid are on one line, so that each has neighbours."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from statistics import fmean

from plam_eval.evaluation.label_free import Coordinates
from plam_eval.evaluation.sweep.grid import Cell
from plam_eval.spec import PlateauSpec

_SAYS_NOTHING = ("model", "evidence", "source")  # of the merge


def coordinates_of(cells: Iterable[Cell]) -> dict[str, Coordinates]:
    """For each merge, by name, its line and its place there; merges on no line are left out.

    Merges that differ in nothing but their weights are a line, in the order of the base's share of the two weights,
    among equal shares of their sum, and among equal sums of the weights in the first layer. A merge that is alone in
    this is on a line of layers, if those with the same weights, modules and rule, and as alone, are one within the
    next: in the order of how many layers they have.

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


def _share(spec: PlateauSpec) -> tuple[float, ...]:
    """The base's share of the weights, as an angle (so that no sum of weights is refused), and their sum; of a ramp's
    mean over layers. Behind them both weights of the first layer, so that a ramp and the pair that is its mean, or two
    pairs that sum to zero, have places of their own."""
    pairs = [spec.weights_at(layer) for layer in spec.layers]
    model, base = fmean(pair.model for pair in pairs), fmean(pair.base_model for pair in pairs)
    return math.atan2(base, model), model + base, *pairs[0].coefficients
