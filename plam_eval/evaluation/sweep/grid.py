"""The cells of a sweep: every setting of its configuration once, with the controls beside each merge."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from plam_eval.arguments import split_words
from plam_eval.errors import hint
from plam_eval.evaluation.sweep.config import (
    MOST_CELLS,
    SweepConfig,
    SweepError,
    split_arguments,
)
from plam_eval.layer_sets import MOST_LAYERS, name_layers, random_layer_sets, read_layers, write_layers
from plam_eval.rule_parameters import write_parameters
from plam_eval.rules import LAYER_CONTROLS, RULES, WEIGHTED_SUM, control_names
from plam_eval.spec import GROUPS, OVERRIDE_KEYS, PlateauSpec, load_spec
from plam_eval.weight_ramps import write_weight

if TYPE_CHECKING:
    import pandas as pd

PLAIN = "plain"
MERGED = "merged"
"""The merge of `plam compare`; in a sweep, cells are named by their spec."""


@dataclass(frozen=True)
class Cell:
    """One setting. `kind` is "plain", "merged" or "control"; `name` is its folder's."""

    name: str
    kind: str
    spec: PlateauSpec | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "kind": self.kind, "spec": self.spec.to_dict() if self.spec else None}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Cell:
        """A cell as `to_dict` gives it.

        Args:
            stored: name, kind and spec, from a folder's plan.

        Raises:
            SweepError: it is no cell that `make_grid` or `pair_grid` makes. SpecError: its spec is none.
        """
        name, kind, spec = (stored.get(key) for key in ("name", "kind", "spec"))
        if spec is not None and not isinstance(spec, Mapping):  # text would be read as the path of a spec
            raise SweepError(f"cell {name!r}: found {spec!r} as its spec, expected a mapping or none")
        cell = cls(str(name), str(kind), load_spec(spec))
        plain = cell.spec is None
        if cell.kind not in ("plain", "merged", "control") or plain != (cell.kind == "plain"):
            raise SweepError(f"cell {name!r}: found the kind {kind!r} {'without' if plain else 'with'} a spec")
        if not _is_name(cell):
            expected = PLAIN if cell.spec is None else _cell_name(cell.spec)
            raise SweepError(f"found a cell named {name!r}, expected {expected!r}, which is the name of its folder")
        return cell


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep, each setting once, and for each merged cell the cells that control it, by rule."""

    cells: tuple[Cell, ...]
    controls: dict[str, dict[str, tuple[str, ...]]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: cells and controls."""
        return {"cells": [cell.to_dict() for cell in self.cells], "controls": self.controls}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Grid:
        """A grid as `to_dict` gives it.

        Args:
            stored: cells and controls, from a folder's plan.

        Raises:
            SweepError, SpecError: it is none.
        """
        try:
            cells = tuple(Cell.from_dict(cell) for cell in stored["cells"])
            controls = {
                str(name): {str(rule): tuple(map(str, names)) for rule, names in by_rule.items()}
                for name, by_rule in stored["controls"].items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise SweepError(f"found no grid of cells and controls ({error!r})") from error
        names = [cell.name for cell in cells]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SweepError(f"{', '.join(twice)}: found twice, expected one cell of a name")
        named = {*controls, *(name for by_rule in controls.values() for beside in by_rule.values() for name in beside)}
        if unknown := sorted(named - {PLAIN, *names}):
            raise SweepError(f"{', '.join(map(repr, unknown))}: found among the controls and not among the cells")
        if unknown := sorted({rule for by_rule in controls.values() for rule in by_rule} - {*RULES, *LAYER_CONTROLS}):
            raise SweepError(f"controls: unknown rule {unknown[0]!r}, {hint(unknown[0], [*RULES, *LAYER_CONTROLS])}")
        return cls(cells, controls)

    def with_earlier(self, earlier: Grid) -> Grid:
        """These cells, and those of an earlier call: whatever was tried counts. One merge keeps its earlier name.

        Args:
            earlier: the grid that the folder's plan holds.

        Raises:
            SweepError: one is a sweep and the other the pair of a comparison, or one name has two merges.
        """
        if (paired := earlier.is_pair()) is not None and self.is_pair() not in (None, paired):
            held, called = ("compare", "sweep") if paired else ("sweep", "compare")
            raise SweepError(f"holds what `plam {held}` has found, and this is `plam {called}`; name another --output")
        before = {cell.spec.digest() if cell.spec else None: cell for cell in earlier.cells}
        cells, kept_names = [], dict[str, str]()
        for cell in self.cells:
            same = before.pop(cell.spec.digest() if cell.spec else None, None)
            kept_names[cell.name] = same.name if same else cell.name
            kind = "merged" if same and "merged" in (same.kind, cell.kind) else cell.kind
            cells.append(replace(cell, name=kept_names[cell.name], kind=kind))
        of_earlier_only = [*before.values()]
        if taken := {cell.name for cell in cells} & {cell.name for cell in of_earlier_only}:
            raise SweepError(
                f"{', '.join(sorted(taken))}: finished before with another merge; name another --output, or delete it"
            )
        controls = {
            kept_names[name]: {rule: tuple(kept_names.get(n, n) for n in names) for rule, names in by_rule.items()}
            for name, by_rule in self.controls.items()
        }
        return Grid((*cells, *of_earlier_only), {**earlier.controls, **controls})

    def is_pair(self) -> bool | None:
        """Whether the merges are that of `pair_grid`; None where there are none."""
        merges = [cell.name for cell in self.cells if cell.spec]
        return MERGED in merges if merges else None


def make_grid(config: SweepConfig, num_layers: int) -> Grid:
    """Every setting of a config, for a decoder of `num_layers` layers.

    Args:
        config: what is swept.
        num_layers: decoder layers of the model.

    Raises:
        SweepError, SpecError: a word or value that means nothing, a range beyond the decoder, no base LLM.
    """
    start = starting_spec(config)
    if _ancestor(config, start) and "controls" not in config.model_fields_set:
        config = config.model_copy(update={"controls": control_names(ancestor=True)})
    _check_size(config, num_layers)
    merges = ((merge, config.controls) for merge in _merges(config, start, num_layers))
    grid = grid_of(merges, config, num_layers)
    if len(grid.cells) == 1:
        raise SweepError("every merge of this grid leaves the model as it is; expected other weights than 1 + 0")
    return grid


def grid_of(merges: Iterable[tuple[PlateauSpec, Sequence[str]]], config: SweepConfig, num_layers: int) -> Grid:
    """The plain model, these merges, and the controls of each.

    Args:
        merges: specs, each with the names of its controls.
        config: has the seeds and draws of controls.
        num_layers: decoder layers of the model.
    """
    cells = _Cells()
    controls: dict[str, dict[str, tuple[str, ...]]] = {}
    for merge, rules in merges:
        name = cells.add(merge, "merged")
        if name is None:
            continue
        beside: dict[str, tuple[str, ...]] = {}
        for rule in rules:
            specs = _controls_of(merge, rule, config, num_layers)
            names = [cells.add(spec, "control") or PLAIN for spec in specs]
            beside[rule] = tuple(n for n in dict.fromkeys(names) if n != name)
        controls[name] = {rule: names for rule, names in beside.items() if names}
    return Grid((Cell(PLAIN, "plain", None), *cells.by_digest.values()), controls)


@dataclass
class _Cells:
    """Cells of a grid in the making: one of each merge, whatever it is named."""

    by_digest: dict[str, Cell] = field(default_factory=dict)

    def add(self, spec: PlateauSpec, kind: str) -> str | None:
        """The name of the cell that has this merge; None where it leaves the model as it is."""
        if spec.is_plain:
            return None
        digest = spec.digest()
        before = self.by_digest.get(digest)
        if before is None or (kind == "merged" and before.kind == "control"):
            self.by_digest[digest] = Cell(before.name if before else _cell_name(spec), kind, spec)
        return self.by_digest[digest].name


def _ancestor(config: SweepConfig, start: PlateauSpec | None) -> str | None:
    return config.ancestor or (start.ancestor if start else None)


def _merges(config: SweepConfig, start: PlateauSpec | None, num_layers: int) -> Iterator[PlateauSpec]:
    """The merges of a config in order: rules, weights, modules, layers. What it leaves out is of `start`."""
    sets = list(dict.fromkeys(layers for word in config.layers for layers in layers_of_word(word, num_layers, start)))
    modules = config.modules or ((module_group(start.modules),) if start else ("qkvo",))
    pairs = config.weights or (((start.weights.model, start.weights.base_model),) if start else ((0.9, 0.3),))
    base = config.base_model or (start.base_model if start else None)
    if base is None:
        raise SweepError("no base LLM: give --base, or a plateau in --model_args")
    own = {"rule": start.rule, "seed": start.seed, "parameters": start.parameters} if start else {}
    rules = [{**own, "rule": (word := text.partition(":"))[0], "parameters": word[2] or None} for text in config.rules]
    ancestor = {"ancestor": name} if (name := _ancestor(config, start)) else {}
    for rule, (model_weight, base_weight) in itertools.product(rules or [own], pairs):
        for words in modules:
            for layers in sets:
                merge = load_spec(
                    {
                        "base_model": base,
                        "layers": layers,
                        "modules": words,
                        "weights": {"model": model_weight, "base_model": base_weight},
                        **{key: value for key, value in rule.items() if value is not None},
                        **ancestor,
                    }
                )
                assert merge is not None
                merge.check_layers(num_layers, "the model")
                yield merge


def _controls_of(merge: PlateauSpec, rule: str, config: SweepConfig, num_layers: int) -> list[PlateauSpec]:
    if rule in LAYER_CONTROLS:
        sets = random_layer_sets(len(merge.layers), num_layers, config.draws, merge.layers)
        return [_changed(merge, {"layers": write_layers(layers)}) for layers in sets]
    return [_changed(merge, {"rule": rule, "seed": seed}) for seed in config.seeds_of(rule)]


def _changed(merge: PlateauSpec, overrides: Mapping[str, Any]) -> PlateauSpec:
    spec = load_spec(merge, overrides)
    assert spec is not None
    return spec.model_copy(update={"source": merge.source})


def pair_grid(config: SweepConfig) -> Grid:
    """The two cells of `plam compare`: plain, and the merge that `config.model_args` describes.

    Raises SweepError where it describes none.
    """
    _, given = split_arguments(config.model_args)
    overrides = {key: value for key, value in given.items() if key != "plateau"}
    spec = load_spec(given.get("plateau"), overrides)
    if spec is None:
        raise SweepError("nothing to compare the plain model with: expected plateau=SPEC in --model_args")
    return Grid((Cell(PLAIN, "plain", None), Cell(MERGED, "merged", spec)), {})


def _check_size(config: SweepConfig, num_layers: int) -> None:
    """Raise SweepError for more cells than a sweep ever has, before any of them is made."""
    if num_layers > MOST_LAYERS:
        raise SweepError(f"the checkpoint names {num_layers} decoder layers; expected at most {MOST_LAYERS}")
    # A word gives as many ranges as there are steps between the layers; one that means nothing is refused elsewhere.
    ranges = 0
    for word in config.layers:
        step = int(word.rpartition(":")[2]) if re.fullmatch(r"(starts|windows:\d+):\d{1,9}", word) else 1
        many = word.startswith(("starts", "windows"))
        ranges += -(-num_layers // max(step, 1)) if many else 1
    beside = sum(len(config.seeds_of(rule)) for rule in config.controls)
    modules, weights, rules = (max(1, len(words)) for words in (config.modules, config.weights, config.rules))
    merges = ranges * modules * weights * rules
    if merges * (1 + beside) > MOST_CELLS:
        raise SweepError(
            f"up to {merges * (1 + beside)} cells: {ranges} layer ranges x {modules} modules x {weights} weights x "
            f"{rules} rules x (1 merge + {beside} controls); expected at most {MOST_CELLS}"
        )


def starting_spec(config: SweepConfig) -> PlateauSpec | None:
    """The merge that a configuration's model_args describe; None where they describe none.

    Args:
        config: of a sweep.

    Raises:
        SweepError, SpecError: what they say of one means nothing.
    """
    _, given = split_arguments(config.model_args)
    overrides = {key: value for key, value in given.items() if key != "plateau"}
    if config.base_model is not None:
        overrides["base"] = config.base_model
    if config.ancestor is not None:
        overrides["ancestor"] = config.ancestor
    if given.get("plateau", "none") == "none" and not {"base", "layers"} <= set(overrides):
        if ignored := {key: value for key, value in given.items() if key != "plateau"}:
            words = ", ".join(f"{key}={value}" for key, value in ignored.items())
            raise SweepError(
                f"model_args: found {words} without a plateau to override; give a plateau, or both base= and layers= "
                "among them, which make one; or --base, and what is to be merged as options"
            )
        return None
    spec = load_spec(given.get("plateau"), overrides)
    if spec is not None and spec.rule in control_names(ancestor=True):
        raise SweepError(f"the plateau's rule is {spec.rule}; controls are named by --controls, beside the merge")
    return spec


def layers_of_word(word: str, num_layers: int, start: PlateauSpec | None = None) -> list[tuple[int, ...]]:
    """The sets of layers that a word stands for, each in order.

    Args:
        word: of `SweepConfig.layers`.
        num_layers: decoder layers of the model.
        start: the spec whose own layers "plateau" is.

    Raises:
        SweepError: it means nothing, or nothing for a decoder of so many layers.
    """
    third, two = num_layers // 3, num_layers - num_layers // 3
    named = {"early": (0, third), "middle": (third, two), "late": (two, num_layers), "all": (0, num_layers)}
    name, *numbers = word.split(":")
    if name == "plateau" and not numbers:
        if start is None:
            raise SweepError("layers: 'plateau' needs a plateau in --model_args; expected one, or other layers")
        return [start.layers]
    if name in named and not numbers:
        if named[name][0] == named[name][1]:
            raise SweepError(f"layers: {name!r} of a decoder of {num_layers} layers is empty")
        return [tuple(range(*named[name]))]
    if "+" in word:
        with suppress(ValueError):
            if (layers := read_layers(word))[-1] < num_layers:
                return [layers]
    elif all(digits.isdecimal() and len(digits) < 10 for digits in (*numbers, *([name] if name.isdecimal() else []))):
        values = [int(digits) for digits in numbers]
        if name == "starts" and len(values) <= 1 and (not values or values[0] > 0):
            return [tuple(range(first, num_layers)) for first in range(0, num_layers, values[0] if values else 1)]
        if name == "windows" and values and len(values) <= 2 and min(values) > 0:
            width, step = values[0], values[-1]
            if width <= num_layers:
                return [tuple(range(first, first + width)) for first in range(0, num_layers - width + 1, step)]
        if name.isdecimal() and len(values) == 1 and int(name) < values[0] <= num_layers:
            return [tuple(range(int(name), values[0]))]
    raise SweepError(
        f"layers: found {word!r}; expected start:end within 0:{num_layers}, plateau, {', '.join(named)}, starts, "
        "starts:STEP, windows:WIDTH, windows:WIDTH:STEP, or a set such as 3+9+20:24"
    )


def module_group(modules: Sequence[str]) -> str:
    """The short name of a set of modules: a group's, or the modules' joined by "+".

    Args:
        modules: names such as "q_proj", in the order of `spec.GROUPS`.
    """
    names = (name for name, group in GROUPS.items() if group == tuple(modules))
    return next(names, "+".join(modules))


def describe_cell(row: Mapping[str, Any] | pd.Series) -> str:
    """A cell in words: "layers 6:8, qkvo, 0.9 + 0.3".

    Args:
        row: of `Findings.cells`.
    """
    if row["kind"] == "plain":
        return "plain"
    return ", ".join([f"layers {row['layers']}", row["modules"], describe_weights(row), *describe_rule(row)])


SPEC_COLUMNS = ("layers", "modules", "weights", "model_weight", "base_weight", "rule", "seed", "parameters")
"""Of `spec_columns`."""


def spec_columns(spec: PlateauSpec | None) -> dict[str, Any]:
    """What a table says of a merge, in the form that `describe_cell` reads.

    Args:
        spec: of the merge; None for the plain model, of which it is all None.
    """
    if spec is None:
        return dict.fromkeys(SPEC_COLUMNS)
    model_weight, base_weight = spec.weights_at(spec.layers[0]).coefficients
    return {
        "layers": write_layers(spec.layers),
        "modules": module_group(spec.modules),
        "weights": spec.weights.tell(),
        "model_weight": model_weight,
        "base_weight": base_weight,
        "rule": spec.rule,
        "seed": spec.seed,
        "parameters": ", ".join(f"{name} {value:g}" for name, value in spec.parameters.items()),
    }


def describe_weights(row: Mapping[str, Any] | pd.Series) -> str:
    """The weights of a cell in words: "0.9 + 0.3", or its own text where they are no single pair.

    Args:
        row: of `Findings.cells`; `weights`, if it has that, is the text.
    """
    text = row.get("weights")
    return text if isinstance(text, str) and text else f"{row['model_weight']:g} + {row['base_weight']:g}"


def describe_rule(row: Mapping[str, Any] | pd.Series) -> list[str]:
    """The rule of a cell that is not the stock one, and its seed if that is not the first.

    Args:
        row: of `Findings.cells`.
    """
    if row["rule"] == WEIGHTED_SUM:
        return []
    words = [str(row["rule"]), *([f"seed {row['seed']}"] if row["seed"] else [])]
    return [*words, *([str(row["parameters"])] if row.get("parameters") else [])]


def cell_arguments(config: SweepConfig, cell: Cell) -> str:
    """model_args with which lmms-eval's own command line makes this cell.

    Args:
        config: of the sweep; its plateau and overrides give way to the cell's.
        cell: one of the sweep's.
    """
    words = [
        word for word in split_words(config.model_args) if word.partition("=")[0] not in ("plateau", *OVERRIDE_KEYS)
    ]
    if cell.spec is None:
        return ",".join([*words, "plateau=none"])
    spec = cell.spec
    ours = {
        "base": spec.base_model,
        **({"ancestor": spec.ancestor} if spec.needs_ancestor else {}),
        "layers": write_layers(spec.layers),
        "modules": module_group(spec.modules),
        "model_weight": spec.weights.written[0],
        "base_weight": spec.weights.written[1],
        "rule": spec.rule,
        **({"parameters": write_parameters(spec.parameters)} if spec.parameters else {}),
        **({"seed": spec.seed} if RULES[spec.rule].draws else {}),
    }
    return ",".join([*words, *(f"{key}={value}" for key, value in ours.items())])


def _cell_name(spec: PlateauSpec) -> str:
    weights = "+".join(spec.weights.written).replace(":", "to")
    words = [f"layers-{name_layers(spec.layers)}", module_group(spec.modules), weights]
    if spec.rule != WEIGHTED_SUM:
        words.append(spec.rule + (str(spec.seed) if RULES[spec.rule].draws else ""))
    words += [f"{name}={write_weight(value)}" for name, value in spec.parameters.items()]
    return "_".join(words)


def _is_name(cell: Cell) -> bool:
    """Whether a cell is named as `make_grid` and `pair_grid` name it, now and in earlier versions.

    A merge that is the control of another one keeps the name that it got as such, with the weights of the other.
    """
    if cell.spec is None:
        return cell.name == PLAIN
    number = r"-?[\d.]+(?:e[+-]?\d+)?"
    weight = rf"{number}(?:to{number})?"
    rest = rf"{weight}\+{weight}(?:_(?:{'|'.join(map(re.escape, RULES))})\d*)?(?:_\w+={number})*"
    own = re.escape(f"layers-{name_layers(cell.spec.layers)}_{module_group(cell.spec.modules)}_")
    return (cell.name == MERGED and cell.kind == "merged") or bool(re.fullmatch(own + rest, cell.name, re.ASCII))
