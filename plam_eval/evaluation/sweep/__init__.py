"""`plam sweep` and `plam compare`: many merges on one resident model, each an lmms-eval run folder of its own.

A sweep is a grid of merges (layer ranges, weights, modules) with controls beside each, and the plain model. Cells are
finished one by one, each moved into place when it is complete, so that a sweep that was killed goes on with the first
unfinished cell. What the cells say is read back from their folders (`findings.read_findings`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loguru import logger
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from tqdm import tqdm

from plam_eval import files
from plam_eval.arguments import split_words
from plam_eval.errors import DamagedFileError, quoted, system_error
from plam_eval.evaluation import harness, records, variants
from plam_eval.evaluation.harness import EvaluationError
from plam_eval.evaluation.sweep.joint import Together
from plam_eval.harness.registry import WRAPPERS
from plam_eval.merging.checkpoint import Checkpoint, MergeError
from plam_eval.provenance import read_identity, versions
from plam_eval.spec import (
    GROUPS,
    LARGEST_SEED,
    MOST_LAYERS,
    OVERRIDE_KEYS,
    RULES,
    PlateauSpec,
    hint,
    load_spec,
    not_a_mapping,
    number,
    range_hint,
    whole_number,
)
from plam_eval.terminal import one_line
from plam_eval.yaml_reader import YamlError, read_yaml

PLAN, CELLS, CELL, LOG, LOCK = "sweep.json", "cells", "cell.json", "log.txt", "sweep.lock"
TOGETHER = ".together"
"""Folder of answers that several cells were given at once, until all cells are finished."""
PLAIN = "plain"
MERGED = "merged"
"""The merge of `plam compare`; in a sweep, cells are named by their spec."""
FINISHED, FAILED, DAMAGED = "finished", "failed", "damaged"
TABLES = tuple(f"{name}{suffix}" for name in ("cells", "tasks", "controls") for suffix in (".csv", ".parquet"))
MOST_CELLS = 10_000
MOST_DOCUMENTS = 2**31 - 1
_LONGEST_WORD = 500
_WEIGHT = r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*"
_PAIR = re.compile(rf"{_WEIGHT}\+{_WEIGHT}", re.ASCII)
CONTROLS = tuple(rule for rule in RULES if rule != "weighted_sum")


class SweepError(EvaluationError):
    """A sweep that cannot start or go on; the message says what was found and what to do. Finished cells are kept."""


# --- what is swept ----------------------------------------------------------------------------------------------------


class SweepConfig(BaseModel):
    """What to sweep, as written in a YAML file or given as flags.

    Attributes:
        model, model_args: as for lmms-eval. A `plateau` among the arguments, with its overrides, gives the base LLM and
            whatever of layers, weights and modules the grid leaves out.
        base_model: the base LLM, where no plateau says it.
        tasks, limit, offset, gen_kwargs, include_path, batch_size, force_simple: as for lmms-eval.
        layers: decoder layers [start, end): "24:36", "plateau" (the spec's own), "early", "middle", "late" (thirds),
            "all", "starts" or "starts:4" (from each, or each fourth, layer to the last), "windows:4" (of four layers,
            side by side) or "windows:4:2" (two layers apart).
        weights: "0.9+0.3" or [0.9, 0.3]: of the MLLM and of the base.
        modules: names or groups (qkvo, qk, vo, mlp, all), joined by "+".
        controls: rules to run beside every merge.
        seeds: of the controls that draw.
        select: choose the best merge on so many documents of each task, and report on the others; on all without it.
        together: so many cells have a document answered in one generation (HF wrappers, without Ray). It takes memory
            for the merged tensors of all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str
    model_args: str = ""
    base_model: str | None = None
    tasks: tuple[str, ...] = Field(min_length=1)
    layers: tuple[str, ...] = ("plateau",)
    weights: tuple[tuple[float, float], ...] = ()
    modules: tuple[str, ...] = ()
    controls: tuple[str, ...] = CONTROLS
    seeds: tuple[int, ...] = (0,)
    select: int | None = Field(default=None, ge=0, le=MOST_DOCUMENTS)
    limit: int | None = Field(default=None, ge=1, le=MOST_DOCUMENTS)
    offset: int = Field(default=0, ge=0, le=MOST_DOCUMENTS)
    gen_kwargs: str | None = None
    include_path: str | None = None
    batch_size: int = Field(default=1, ge=1, le=MOST_DOCUMENTS)
    force_simple: bool = False
    together: int = Field(default=1, ge=1, le=MOST_CELLS)

    @field_validator("model", "model_args", "base_model", "gen_kwargs", "include_path", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if isinstance(value, (int, float)):
            raise ValueError(f'found {quoted(value)}, expected text; put it into quotes, as "{quoted(value)}"')
        return value

    @field_validator("tasks", "layers", "modules", "controls", mode="before")
    @classmethod
    def _words(cls, value: Any, info: ValidationInfo) -> Any:
        words = _listed(value)
        strange = [word for word in words if not isinstance(word, str)]
        if strange and info.field_name == "layers":
            is_nested = isinstance(strange[0], (list, tuple))  # [[4, 8], ...] in place of [4, 8]
            ends = list(strange[0]) if is_nested else words
            if all(isinstance(end, (int, float)) for end in (ends if is_nested else strange)):
                pair = len(ends) == 2 and all(type(end) is int and 0 <= end <= MOST_LAYERS for end in ends)
                write = f'"{ends[0]}:{ends[1]}"' if pair else "24:36, or words such as plateau"
                raise ValueError(f"found {quoted(value)}, expected ranges start:end, end exclusive; write {write}")
        if strange:
            named = type(strange[0]) is int
            write = f'; put it into quotes, as "{quoted(strange[0])}"' if named else ", as a list or with commas"
            raise ValueError(f"found {quoted(strange[0])}, expected words{write}")
        words = [word.strip() for word in words]
        if long := [word for word in words if len(word) > _LONGEST_WORD]:
            raise ValueError(f"found {quoted(long[0])}, expected a word")
        if not any(words) and info.field_name in ("tasks", "layers"):
            raise ValueError(f"found {quoted(value)}, expected at least one word")
        if info.field_name == "layers":
            for word in words:
                if meant := range_hint(word):
                    raise ValueError(f"found {word!r}, expected start:end{meant}")
        return [word for word in words if word]

    @field_validator("seeds", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return [whole_number(word, LARGEST_SEED, "whole numbers") for word in _listed(value)]

    @field_validator("weights", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        form = "expected pairs such as 0.9+0.3 or [0.9, 0.3] (of the MLLM and the base)"
        if not isinstance(value, (str, list, tuple)):
            raise ValueError(f"found {quoted(value)}, {form}")
        if isinstance(value, str) and re.search(r"(^|\+)\s*\d+,\d+\s*\+", value):
            form += "; a decimal fraction has a point"
        words = _listed(value)
        if len(words) == 2 and all(isinstance(word, (int, float)) for word in words):
            words = [words]  # one pair, written without the outer brackets
        if len(words) == 4 and all(type(word) is int for word in words):
            form += f"; a decimal fraction has a point: write [{words[0]}.{words[1]}, {words[2]}.{words[3]}]"
        pairs = []
        for word in words:
            if isinstance(word, str):
                found = _PAIR.fullmatch(word)
                word = list(found.groups()) if found else word
            if not isinstance(word, (list, tuple)):
                raise ValueError(f"found {quoted(word)}, {form}")
            pairs.append([number(part) for part in word])
        return pairs

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        value = tuple(word for word in value if word != "none")
        for word in value:
            if word not in RULES or word == "weighted_sum":
                raise ValueError(f"unknown control {word!r}, {hint(word, [*CONTROLS, 'none'])}")
        return value

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: str) -> str:
        if value not in WRAPPERS:
            raise ValueError(f"unknown model {value!r}, {hint(value, WRAPPERS)}")
        return value

    @field_validator("together")
    @classmethod
    def _together(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("model") == "plam_vllm":
            raise ValueError("plam_vllm answers for one merge at a time; expected 1, or an HF wrapper")
        return value

    @classmethod
    def load(cls, file: str | Path | None = None, **given: Any) -> SweepConfig:
        """From a YAML file, with values that are not None over it. Raises SweepError listing every problem."""
        data: dict[str, Any] = {}
        origin = f"sweep {file}" if file else "sweep"
        if file is not None:
            try:
                data = read_yaml(file)
            except (OSError, YamlError) as error:
                why = system_error(error) if isinstance(error, OSError) else str(error)
                raise SweepError(f"{origin} cannot be read: {why}") from error
            if not isinstance(data, dict):
                raise SweepError(
                    f"{origin}: found {not_a_mapping(data)}, expected keys, one a line, as `tasks: [pope]`"
                )
            if strange := [key for key in data if not isinstance(key, str)]:
                raise SweepError(f"{origin}: found {quoted(strange[0])} as a key, expected a word")
        data = {**data, **{key: value for key, value in given.items() if value is not None}}
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = []
            for found in error.errors(include_url=False):
                key = ".".join(map(str, found["loc"]))
                if found["type"] == "extra_forbidden":
                    lines.append(f"{key}: unknown key, {hint(key, cls.model_fields)}")
                elif found["type"] == "missing":
                    lines.append(f"{key}: missing; expected a value")
                elif found["type"] == "value_error":
                    lines.append(f"{key}: {found['ctx']['error']}")
                else:
                    lines.append(f"{key}: found {quoted(found['input'])}: {found['msg']}")
            text = "\n".join(f"  - {line}" for line in lines)
            raise SweepError(f"{origin}: {len(lines)} problem(s)\n{text}") from None


def _listed(value: Any) -> list[Any]:
    """A list, or the words of a text with commas, or the one value."""
    return value.split(",") if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [value]


@dataclass(frozen=True)
class Cell:
    """One setting. `kind` is "plain", "merged" or "control"; `name` is its folder's."""

    name: str
    kind: str
    spec: PlateauSpec | None

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "spec": self.spec.to_dict() if self.spec else None}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Cell:
        """Raises SweepError where it is no cell that `make_grid` or `pair_grid` makes; SpecError for its spec."""
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
        return {"cells": [cell.to_dict() for cell in self.cells], "controls": self.controls}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Grid:
        """Raises SweepError, SpecError where it is none that `to_dict` gives."""
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
        if unknown := sorted({rule for by_rule in controls.values() for rule in by_rule} - set(RULES)):
            raise SweepError(f"controls: unknown rule {unknown[0]!r}, {hint(unknown[0], RULES)}")
        return cls(cells, controls)

    def with_earlier(self, earlier: Grid) -> Grid:
        """These cells, and those of an earlier call: whatever was tried counts. One merge keeps its earlier name.

        Raises SweepError where one is a sweep and the other the pair of a comparison, or one name has two merges.
        """
        if (paired := earlier._is_pair()) is not None and self._is_pair() not in (None, paired):
            held, called = ("compare", "sweep") if paired else ("sweep", "compare")
            raise SweepError(f"holds what `plam {held}` has found, and this is `plam {called}`; name another --output")
        before = {cell.spec.digest() if cell.spec else None: cell for cell in earlier.cells}
        cells, named = [], dict[str, str]()
        for cell in self.cells:
            same = before.pop(cell.spec.digest() if cell.spec else None, None)
            named[cell.name] = same.name if same else cell.name
            kind = "merged" if same and "merged" in (same.kind, cell.kind) else cell.kind
            cells.append(replace(cell, name=named[cell.name], kind=kind))
        more = [*before.values()]
        if taken := {cell.name for cell in cells} & {cell.name for cell in more}:
            raise SweepError(
                f"{', '.join(sorted(taken))}: finished before with another merge; name another --output, or delete it"
            )
        controls = {
            named[name]: {rule: tuple(named.get(n, n) for n in names) for rule, names in by_rule.items()}
            for name, by_rule in self.controls.items()
        }
        return Grid((*cells, *more), {**earlier.controls, **controls})

    def _is_pair(self) -> bool | None:
        """Whether the merges are that of `pair_grid`; None where there are none."""
        merges = [cell.name for cell in self.cells if cell.spec]
        return MERGED in merges if merges else None


def make_grid(config: SweepConfig, num_layers: int) -> Grid:
    """Every setting of a config, for a decoder of `num_layers` layers.

    Raises:
        SweepError, SpecError: a word or value that means nothing, a range beyond the decoder, no base LLM.
    """
    _, given = split_arguments(config.model_args)
    start = _starting_spec(config, given)
    _check_size(config, num_layers)
    found: dict[str, Cell] = {}  # by digest
    controls: dict[str, dict[str, tuple[str, ...]]] = {}
    ranges = list(dict.fromkeys(r for word in config.layers for r in layer_ranges(word, num_layers, start)))
    modules = config.modules or ((module_group(start.modules),) if start else ("qkvo",))
    pairs = config.weights or (((start.weights.model, start.weights.base_model),) if start else ((0.9, 0.3),))
    base = config.base_model or (start.base_model if start else None)
    if base is None:
        raise SweepError("no base LLM: give --base, or a plateau in --model_args")

    def add(spec: PlateauSpec, kind: str) -> str | None:
        if spec.is_plain:
            return None
        digest = spec.digest()
        if digest not in found or (kind == "merged" and found[digest].kind == "control"):
            name = found[digest].name if digest in found else _cell_name(spec)
            found[digest] = Cell(name, kind, spec)
        return found[digest].name

    for pair in pairs:
        for words in modules:
            for layer_range in ranges:
                merged = load_spec(
                    {
                        "base_model": base,
                        "layer_range": list(layer_range),
                        "modules": words,
                        "weights": {"model": pair[0], "base_model": pair[1]},
                    }
                )
                assert merged is not None
                merged.check_layers(num_layers, "the model")
                name = add(merged, "merged")
                if name is None:
                    continue
                beside: dict[str, tuple[str, ...]] = {}
                for rule in config.controls:
                    seeds = config.seeds if RULES[rule] else (0,)
                    specs = [load_spec({**merged.to_dict(), "rule": rule, "seed": seed}) for seed in seeds]
                    names = [add(spec, "control") or PLAIN for spec in specs if spec is not None]
                    beside[rule] = tuple(n for n in dict.fromkeys(names) if n != name)
                controls[name] = {rule: names for rule, names in beside.items() if names}
    if not found:
        raise SweepError("every merge of this grid leaves the model as it is; expected other weights than 1 + 0")
    return Grid((Cell(PLAIN, "plain", None), *found.values()), controls)


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
    beside = sum(len(config.seeds) if RULES[rule] else 1 for rule in config.controls)
    merges = ranges * max(1, len(config.modules)) * max(1, len(config.weights))
    if merges * (1 + beside) > MOST_CELLS:
        raise SweepError(
            f"up to {merges * (1 + beside)} cells: {ranges} layer ranges x {max(1, len(config.modules))} modules x "
            f"{max(1, len(config.weights))} weights x (1 merge + {beside} controls); expected at most {MOST_CELLS}"
        )


def split_arguments(model_args: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """model_args without the plateau and its overrides, and these."""
    arguments = harness.parse_model_args(model_args)
    ours = {key: arguments.pop(key) for key in ("plateau", *OVERRIDE_KEYS) if key in arguments}
    return arguments, ours


def _starting_spec(config: SweepConfig, given: Mapping[str, Any]) -> PlateauSpec | None:
    overrides = {key: value for key, value in given.items() if key != "plateau"}
    if config.base_model is not None:
        overrides["base"] = config.base_model
    if given.get("plateau", "none") == "none" and not {"base", "layers"} <= set(overrides):
        if ignored := {key: value for key, value in given.items() if key != "plateau"}:
            words = ", ".join(f"{key}={value}" for key, value in ignored.items())
            raise SweepError(
                f"model_args: found {words} without a plateau to override; give a plateau, or --base and --layers "
                "(with --weights, --modules, --controls)"
            )
        return None
    spec = load_spec(given.get("plateau"), overrides)
    if spec is not None and spec.rule != "weighted_sum":
        raise SweepError(f"the plateau's rule is {spec.rule}; controls are named by --controls, beside the merge")
    return spec


def layer_ranges(word: str, num_layers: int, start: PlateauSpec | None = None) -> list[tuple[int, int]]:
    """The layer ranges that a word of `SweepConfig.layers` stands for."""
    third, two = num_layers // 3, num_layers - num_layers // 3
    named = {"early": (0, third), "middle": (third, two), "late": (two, num_layers), "all": (0, num_layers)}
    name, *numbers = word.split(":")
    if name == "plateau" and not numbers:
        if start is None:
            raise SweepError("layers: 'plateau' needs a plateau in --model_args; expected one, or other layers")
        return [start.layer_range]
    if name in named and not numbers:
        if named[name][0] == named[name][1]:
            raise SweepError(f"layers: {name!r} of a decoder of {num_layers} layers is empty")
        return [named[name]]
    if all(digits.isdecimal() and len(digits) < 10 for digits in (*numbers, *([name] if name.isdecimal() else []))):
        values = [int(digits) for digits in numbers]
        if name == "starts" and len(values) <= 1 and (not values or values[0] > 0):
            return [(first, num_layers) for first in range(0, num_layers, values[0] if values else 1)]
        if name == "windows" and values and len(values) <= 2 and min(values) > 0:
            width, step = values[0], values[-1]
            if width <= num_layers:
                return [(first, first + width) for first in range(0, num_layers - width + 1, step)]
        if name.isdecimal() and len(values) == 1 and int(name) < values[0] <= num_layers:
            return [(int(name), values[0])]
    raise SweepError(
        f"layers: found {word!r}; expected start:end within 0:{num_layers}, plateau, {', '.join(named)}, starts, "
        "starts:STEP, windows:WIDTH or windows:WIDTH:STEP"
    )


def module_group(modules: Sequence[str]) -> str:
    """The short name of a set of modules: a group's, or the modules' joined by "+"."""
    names = (name for name, group in GROUPS.items() if group == tuple(modules))
    return next(names, "+".join(modules))


def _cell_name(spec: PlateauSpec) -> str:
    weights = f"{_exact(spec.weights.model)}+{_exact(spec.weights.base_model)}"
    words = [f"layers-{spec.layer_range[0]}-{spec.layer_range[1]}", module_group(spec.modules), weights]
    if spec.rule != "weighted_sum":
        words.append(spec.rule + (str(spec.seed) if RULES[spec.rule] else ""))
    return "_".join(words)


def _is_name(cell: Cell) -> bool:
    """Whether a cell is named as `make_grid` and `pair_grid` name it, now and in earlier versions.

    A merge that is the control of another one keeps the name that it got as such, with the weights of the other.
    """
    if cell.spec is None:
        return cell.name == PLAIN
    start, end = cell.spec.layer_range
    number = r"-?[\d.]+(?:e[+-]?\d+)?"
    rest = rf"{number}\+{number}(?:_(?:{'|'.join(RULES)})\d*)?"
    own = re.escape(f"layers-{start}-{end}_{module_group(cell.spec.modules)}_")
    return (cell.name == MERGED and cell.kind == "merged") or bool(re.fullmatch(own + rest, cell.name, re.ASCII))


def _exact(weight: float) -> str:
    """The shortest text that reads back as this number: 0.9, 1, 0.3333333."""
    return repr(int(weight)) if weight == int(weight) else repr(weight)


# --- running it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A sweep's grid in its folder: what is done, and what is left to do."""

    config: SweepConfig
    grid: Grid
    folder: Path
    settings: dict[str, Any]
    num_layers: int
    bytes_to_read: dict[str, int]
    """By merged or control cell: of both checkpoints, to reach it."""
    bytes_merged: dict[str, int]
    """By merged or control cell: of the tensors that are not plain in it, as they are stored."""

    @classmethod
    def plan(cls, config: SweepConfig, folder: str | Path, grid: Grid | None = None) -> Job:
        """Check every cell against the headers of both checkpoints; nothing is loaded or written.

        Raises:
            SweepError: the folder holds a sweep of other settings, or of another base. MergeError, SpecError: a cell
                cannot be merged. FolderError: the folder cannot be written, or holds something else.
        """
        from plam_eval.merging.plan import plan_merge

        folder = Path(folder)
        files.check_writable(folder)
        files.check_free(folder, TABLES, PLAN)
        checkpoint = _open_model(config)
        num_layers = _num_layers(checkpoint)
        grid = grid or make_grid(config, num_layers)
        bases: dict[str, Checkpoint] = {}
        sizes: dict[str, int] = {}
        merged: dict[str, int] = {}
        for cell in grid.cells:
            if cell.spec is not None:
                if cell.spec.base_model not in bases:
                    bases[cell.spec.base_model] = Checkpoint.open(cell.spec.base_model, role="base")
                merge = plan_merge(cell.spec, model=checkpoint, base=bases[cell.spec.base_model])
                sizes[cell.name], merged[cell.name] = merge.model_bytes + merge.base_bytes, merge.model_bytes
        settings = _settings(config, checkpoint, bases)
        if (folder / PLAN).is_file():
            grid = _going_on(folder, settings, grid)
        return cls(config, grid, folder, settings, num_layers, sizes, merged)

    def write(self) -> None:
        """Write the plan, in one step, and drop what only an unfinished sweep needs from a finished one."""
        content = {
            "config": self.config.model_dump(mode="json"),
            "settings": self.settings,
            "grid": self.grid.to_dict(),
            "num_layers": self.num_layers,
            "working_directory": str(Path.cwd()),
            "command": _command_line(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(self.folder / PLAN, content)
        if not self.left():
            variants.delete_answers(self.folder / TOGETHER)

    @property
    def answers_together(self) -> Path:
        """Where answers that several cells were given at once are kept, for these settings and no others."""
        text = json.dumps(self.settings, sort_keys=True, default=str)
        return self.folder / TOGETHER / hashlib.sha256(text.encode()).hexdigest()[:16]

    def seconds_per_cell(self) -> float | None:
        """Mean time of the finished cells; None before there are any."""
        found = [read_cell(self.folder, cell) or {} for cell in self.grid.cells]
        found = [record for record in found if record.get("status") == FINISHED]
        if not found:
            return None
        own = sum(sum(record["seconds"].values()) for record in found) / len(found)
        # Answering for many cells is counted with the first of them.
        together = [record["together"] for record in found if record.get("together", {}).get("cells")]
        cells = sum(part["cells"] for part in together)
        return own + (sum(part["seconds"] for part in together) / cells if cells else 0)

    def left(self) -> list[Cell]:
        """Cells that have no finished run, failed and damaged ones included."""
        return [c for c in self.grid.cells if read_state(self.folder, c, self.settings)[0].get("status") != FINISHED]


def _command_line() -> list[str]:
    """What this process was started as; nothing in a notebook or console, whose own command does not say it."""
    name = Path(sys.argv[0]).name
    if name in ("plam", "cli.py"):
        return ["plam", *sys.argv[1:]]
    return [] if hasattr(sys, "ps1") or name in ("", "-c") else list(sys.argv)


def _going_on(folder: Path, settings: Mapping[str, Any], grid: Grid) -> Grid:
    """The grid with the cells of the sweep that a folder holds; alone, where nothing of that sweep is worth keeping.

    Raises SweepError where its cells are of other settings.
    """
    before = read_plan(folder)
    earlier = Grid.from_dict(before["grid"])
    changed = [
        f"{key} (was {before['settings'].get(key)!r}, is {settings.get(key)!r})"
        for key in dict.fromkeys([*before["settings"], *settings])
        if before["settings"].get(key) != settings.get(key)
    ]
    if not changed:
        unknown = {cell.spec.base_model for cell in earlier.cells if cell.spec} - set(settings["bases"])
        if unknown:  # it would be fetched, or opened wherever it is
            raise SweepError(
                f"{folder / PLAN}: has cells of the base {', '.join(sorted(unknown))}, which this sweep does not name; "
                "name another --output"
            )
        try:
            return grid.with_earlier(earlier)
        except SweepError as error:
            raise SweepError(f"{folder}: {error}") from None
    if not any((read_cell(folder, cell) or {}).get("status") == FINISHED for cell in earlier.cells):
        return grid
    raise SweepError(
        f"{folder} holds a sweep of other settings: {'; '.join(changed)}. Cells of both cannot be compared: name "
        "another --output, or delete this one"
    )


def groups(cells: Sequence[Cell], size: int) -> list[Sequence[Cell]]:
    """Cells that are answered together."""
    return [cells[start : start + size] for start in range(0, len(cells), size)]


def _open_model(config: SweepConfig) -> Checkpoint:
    arguments, _ = split_arguments(config.model_args)
    if not arguments.get("pretrained"):
        raise SweepError(f"model_args is {config.model_args!r}; expected pretrained=FOLDER_OR_HUB_ID in it")
    return Checkpoint.open(str(arguments["pretrained"]), revision=arguments.get("revision"), role="pretrained")


def _id_of(checkpoint: Checkpoint) -> dict[str, Any]:
    return checkpoint.identity()


def _num_layers(checkpoint: Checkpoint) -> int:
    from plam_eval.merging.plan import decoder_names

    layers = {layer for layer, _ in decoder_names(checkpoint)}
    if not layers:
        raise MergeError(f"{checkpoint.name} has no decoder layers that are known by name")
    return max(layers) + 1


def _settings(config: SweepConfig, checkpoint: Checkpoint, bases: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """What answers depend on besides the cell; equal settings make cells comparable."""
    arguments, _ = split_arguments(config.model_args)
    return {
        "model": config.model,
        "model_args": {key: str(value) for key, value in sorted(arguments.items())},
        "tasks": list(config.tasks),
        **{key: getattr(config, key) for key in ("limit", "offset", "gen_kwargs", "include_path", "force_simple")},
        "checkpoint": _id_of(checkpoint),
        "bases": {name: _id_of(base) for name, base in sorted(bases.items())},
        "versions": versions(),
    }


def pair_grid(config: SweepConfig) -> Grid:
    """The two cells of `plam compare`: plain, and the merge that `config.model_args` describes.

    Raises SweepError where it describes none.
    """
    _, given = split_arguments(config.model_args)
    overrides = {key: value for key, value in given.items() if key != "plateau"}
    spec = load_spec(given.get("plateau"), overrides)
    if spec is None:
        raise SweepError("nothing to compare the plain model with: expected plateau=SPEC in --model_args")
    return Grid((Cell(PLAIN, "plain", None), Cell("merged", "merged", spec)), {})


def load_model(config: SweepConfig) -> Any:
    """The plain model in its wrapper, as lmms-eval's command line would make it.

    Raises, before anything is loaded, what `harness.check_model` and `harness.check_tasks` raise.
    """
    arguments, _ = split_arguments(config.model_args)
    harness.check_model(config.model, arguments, force_simple=config.force_simple)
    check_tasks(config)
    return harness.make_model(config.model, arguments, batch_size=config.batch_size, force_simple=config.force_simple)


def check_tasks(config: SweepConfig) -> harness.CheckedTasks:
    """`harness.check_tasks` of what a sweep asks for; raises SweepError, too, where `select` leaves none to report."""
    checked = harness.check_tasks(
        config.tasks,
        limit=config.limit,
        offset=config.offset,
        include_path=config.include_path,
        gen_kwargs=config.gen_kwargs,
        model=config.model,
    )
    if short := [task for task in checked.clusters if checked.documents[task] <= (config.select or 0)]:
        raise SweepError(
            f"choosing on {config.select} documents leaves none of {', '.join(short)} to report on, which has "
            f"{min(checked.documents[task] for task in short)}; choose on fewer, or evaluate more"
        )
    return checked


def run(job: Job, model: Any = None) -> dict[str, dict[str, Any]]:
    """Evaluate every unfinished cell on one resident model, in order.

    Args:
        model: the wrapper; loaded from the job's config by default.

    Returns:
        The record of every cell of this call, by name. A cell that failed has `status` "failed", and the others go on;
        under several processes a failure in one of them ends them all.

    Raises:
        SweepError: another process is at work in this folder, or it was deleted or replaced meanwhile; a checkpoint
            has changed since the sweep began. EvaluationError: as `harness.check_tasks`.
    """
    checked = check_tasks(job.config)  # before a plan with a mistyped one is written
    lm = model if model is not None else load_model(job.config)
    first, alone = lm.rank == 0, lm.world_size == 1
    if first:
        for task, why in checked.unscored.items():
            logger.warning("{}: evaluated, but not compared, no score per document is known: {}", task, why)
    done: dict[str, dict[str, Any]] = {}
    with locked(job.folder) if first else nullcontext():
        if first:
            job.write()
        # One process decides for all: another may see the folder before the first one's files reach it.
        mine = [cell.to_dict() for cell in job.left()] if first else []
        left = harness.all_ranks({"cells": mine})[0]["cells"]
        cells = [Cell.from_dict(stored) for stored in left]
        with tqdm(total=len(cells), desc="sweep", unit="cell", disable=not first) as progress:
            for group in groups(cells, job.config.together):
                specs = [cell.spec for cell in group]
                together = Together(lm, specs, job.answers_together, sys.stderr) if len(group) > 1 else None
                for cell in group:
                    progress.set_postfix_str(one_line(cell.name))
                    done[cell.name] = run_cell(lm, cell, job.config, job.folder, alone=alone, together=together)
                    progress.update()
        if first:
            check_there(job.folder, done)
            job.write()
    return done


def check_there(folder: Path, done: Iterable[str] = ()) -> None:
    """Raises SweepError where the folder, or one of its cells, was deleted while the sweep ran."""
    gone = [name for name in done if not (folder / CELLS / name / CELL).is_file()]
    if gone or not (folder / PLAN).is_file():
        what = ", ".join(gone) or str(PLAN)
        raise SweepError(f"{folder}: {what} was deleted while the sweep ran; the same command evaluates it again")


def _check_unchanged(folder: Path, cell: Cell, config: SweepConfig) -> None:
    """Raises SweepError where a checkpoint is no longer what `sweep.json` says: cells would not be of one model.

    Hub ids are left to what the wrapper recorded: they would be asked for over the network.
    """
    check_there(folder)
    settings = read_plan(folder)["settings"]
    opened: list[tuple[str, Mapping[str, Any], Callable[[], Checkpoint]]] = []
    if "folder" in settings["checkpoint"]:
        opened.append(("pretrained", settings["checkpoint"], lambda: _open_model(config)))
    if cell.spec is not None and "folder" in settings["bases"].get(cell.spec.base_model, {}):
        base = cell.spec.base_model
        opened.append(("base", settings["bases"][base], lambda: Checkpoint.open(base)))
    for what, before, open_again in opened:
        if problem := _other(before, _id_of(open_again())):
            raise SweepError(
                f"{what}: the checkpoint was changed since this sweep began ({problem}), so cells would not be of one "
                "model; name another --output, or put the files back as they were"
            )


def _other(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs between two records of a checkpoint, as far as both say it; None where nothing does."""
    differ = [key for key in before if key in now and before[key] != now[key]]
    return "; ".join(f"{key} was {before[key]}, is {now[key]}" for key in differ) or None


def run_cell(
    lm: Any, cell: Cell, config: SweepConfig, folder: Path, *, alone: bool = True, together: Together | None = None
) -> dict[str, Any]:
    """Merge, evaluate and store one cell; what goes wrong is stored, too.

    Everything is written beside the cell's folder and moved there once it is complete.

    Args:
        together: answers of the group of cells that this one is of.

    Raises:
        SweepError: the sweep's folder is gone, or a checkpoint has changed since it began. FolderError: something that
            is no cell stands where this one is to be.
    """
    first = lm.rank == 0
    _check_unchanged(folder, cell, config)
    target, partial = _places(folder, cell.name)
    if first:
        files.check_own(target, CELL)  # known before the cell is paid for
        files.remove_own(partial, LOG, CELL)
        files.make_own(partial)
    harness.all_ranks({})
    record: dict[str, Any] = {**cell.to_dict(), "digest": cell.spec.digest() if cell.spec else None}
    seconds: dict[str, float] = {}
    try:
        with _logged(partial / LOG if first else None), together.installed() if together else nullcontext():
            started = time.perf_counter()
            lm.merge(cell.spec)
            seconds["merge"] = time.perf_counter() - started
            started = time.perf_counter()
            found = harness.evaluate(
                lm,
                list(config.tasks),
                model_args=cell_arguments(config, cell),
                limit=config.limit,
                offset=config.offset,
                output=partial,
                gen_kwargs=config.gen_kwargs,
                batch_size=config.batch_size,
                include_path=config.include_path,
                force_simple=config.force_simple,
            )
            seconds["evaluate"] = time.perf_counter() - started
        _check_unchanged(folder, cell, config)
        record["status"] = FINISHED
        if together is not None:
            seconds["evaluate"] -= together.record()["seconds"]
            record["together"] = _added_up(harness.all_ranks(together.record()))
        if found is not None and found.results_file is not None:
            record["results"] = str(found.results_file.relative_to(partial))
    except Exception as error:  # whatever it is, it is this cell's, and is kept with it
        if not alone:
            raise
        if not partial.is_dir():
            raise SweepError(f"{folder}: was deleted while the sweep ran; the same command begins it anew") from error
        record |= {"status": FAILED, "error": f"{type(error).__name__}: {error}"}
        with (partial / LOG).open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
    record["seconds"] = {key: round(value, 4) for key, value in seconds.items()}
    if first:
        _finish(partial, target, record)
    return record


def _added_up(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The processes' records of a cell that was answered together with others, as one."""
    return {
        **{key: sum(part[key] for part in parts) for key in ("documents", "apart", "rechecked", "differ")},
        **{key: round(max(part[key] for part in parts), 4) for key in ("cells", "seconds")},
        "reasons": sorted({reason for part in parts for reason in part["reasons"]}),
    }


def record_failure(folder: Path, cell: Cell, error: str) -> dict[str, Any]:
    """Store that a cell failed, where the process that was at it could not."""
    target, partial = _places(folder, cell.name)
    if not partial.is_dir():  # else with the log of what was done
        files.make_own(partial)
    digest = cell.spec.digest() if cell.spec else None
    record = {**cell.to_dict(), "digest": digest, "status": FAILED, "error": error, "seconds": {}}
    _finish(partial, target, record)
    return record


def _places(folder: Path, name: str) -> tuple[Path, Path]:
    """Where a cell's folder is, and where it is made. Raises OutsideError where a link leads elsewhere."""
    return files.inside(folder, f"{CELLS}/{name}", PLAN), files.inside(folder, f"{CELLS}/.{name}.partial", PLAN)


def _finish(partial: Path, target: Path, record: dict[str, Any]) -> None:
    files.write_json(partial / CELL, record)
    files.remove_own(target, CELL)  # it failed before, or was damaged
    partial.replace(target)


def cell_arguments(config: SweepConfig, cell: Cell) -> str:
    """model_args with which lmms-eval's own command line makes this cell."""
    words = [
        word for word in split_words(config.model_args) if word.partition("=")[0] not in ("plateau", *OVERRIDE_KEYS)
    ]
    if cell.spec is None:
        return ",".join([*words, "plateau=none"])
    spec = cell.spec
    ours = {
        "base": spec.base_model,
        "layers": f"{spec.layer_range[0]}:{spec.layer_range[1]}",
        "modules": module_group(spec.modules),
        "model_weight": _exact(spec.weights.model),
        "base_weight": _exact(spec.weights.base_model),
        "rule": spec.rule,
        **({"seed": spec.seed} if RULES[spec.rule] else {}),
    }
    return ",".join([*words, *(f"{key}={value}" for key, value in ours.items())])


def locked(folder: Path) -> contextlib.AbstractContextManager[None]:
    """One sweep at a time in a folder; the system lifts the lock when its process ends, however it ends."""
    return files.locked(folder, LOCK, SweepError)


@contextmanager
def _logged(file: Path | None) -> Iterator[None]:
    """What lmms-eval prints and logs goes into a file: a sweep would print a screenful per cell."""
    from loguru import logger

    with contextlib.ExitStack() as stack:
        stream = stack.enter_context((file or Path(os.devnull)).open("a", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(stream))
        stack.enter_context(contextlib.redirect_stderr(stream))
        handler = logger.add(stream, level="INFO")
        stack.callback(logger.remove, handler)
        yield


def read_plan(folder: Path) -> dict[str, Any]:
    """What a sweep's folder was made with: `config`, `settings`, `grid` and more, as `Job.write` writes them.

    Raises:
        SweepError: there is no sweep, or its plan is none that we write. DamagedFileError: it cannot be read.
    """
    file = folder / PLAN
    if not file.is_file():
        raise SweepError(
            f"{folder}: no sweep there (no {PLAN}); expected the --output of `plam sweep` or `plam compare`"
        )
    remedy = "name another --output, or restore it from a copy"
    plan = files.read_json(files.inside(folder, PLAN, str(folder)), remedy)
    plan.setdefault("settings", {})  # from here on, whoever reads it finds these of their kind
    for path, kind in _PLAN_KINDS.items():
        *parents, key = path.split("/")
        holder = functools.reduce(lambda inner, name: inner.setdefault(name, {}), parents, plan)
        if holder.setdefault(key, kind()) is None and path in _MAY_BE_NONE:
            continue
        if not isinstance(holder[key], kind) or isinstance(holder[key], bool):
            raise DamagedFileError(f"{file}: {path}: found {holder[key]!r:.80}, expected {kind.__name__}; {remedy}")
    bad = [id_ for id_ in plan["settings"]["bases"].values() if not isinstance(id_, dict)]
    if bad or not all(isinstance(word, str) for word in (*plan["config"]["tasks"], *plan["command"])):
        raise DamagedFileError(f"{file}: bases, tasks or the command are of another kind than we write; {remedy}")
    try:
        Grid.from_dict(plan["grid"])
    except (EvaluationError, ValueError) as error:
        raise SweepError(f"{file}: {error}. It was damaged, or not written by plam-eval; {remedy}") from error
    settings = plan["settings"]  # of an earlier version, maybe
    settings["checkpoint"] = read_identity(settings["checkpoint"])
    settings["bases"] = {name: read_identity(stored) for name, stored in settings["bases"].items()}
    return plan


_PLAN_KINDS: dict[str, type] = {
    "config": dict,
    "config/tasks": list,
    "config/select": int,
    "config/limit": int,
    "settings": dict,
    "settings/model": str,
    "settings/model_args": dict,
    "settings/checkpoint": dict,
    "settings/bases": dict,
    "settings/versions": dict,
    "grid": dict,
    "working_directory": str,
    "command": list,
}
_MAY_BE_NONE = ("config/select", "config/limit")


def read_cell(folder: Path, cell: Cell | str) -> dict[str, Any] | None:
    """The record of a cell that has ended; None for one that has not.

    `status` is "finished", "failed" or, where the record or its results are not what we write, "damaged", with `error`.
    """
    name = cell if isinstance(cell, str) else cell.name
    try:
        own = files.inside(folder, f"{CELLS}/{name}", str(folder))
        if not (own / CELL).is_file():
            return None
        file = files.inside(own, CELL, str(own))
        record = files.read_json(file, "the same sweep evaluates it again")
        if record.get("status") not in (FINISHED, FAILED):
            raise DamagedFileError(f"{file}: found the status {record.get('status')!r}")
        seconds = record.setdefault("seconds", {})
        if not isinstance(seconds, dict) or not all(isinstance(value, (int, float)) for value in seconds.values()):
            raise DamagedFileError(f"{file}: found {seconds!r:.80} as its seconds")
        _check_together(record.get("together"), file)
        digest = cell.spec.digest() if isinstance(cell, Cell) and cell.spec else None
        if digest and record.get("digest", digest) != digest:
            raise DamagedFileError(f"{file}: it is of another merge (digest {record['digest']!r:.80})")
        if record["status"] == FINISHED:
            results_file(own, record)
    except (OSError, ValueError) as error:  # OutsideError among them
        return {"status": DAMAGED, "error": str(error), "seconds": {}}
    return record


def _check_together(found: Any, file: Path) -> None:
    if found is None:
        return
    numbers = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(value, (int, float, list)) for value in numbers) or not all(
        isinstance(reason, str) for reason in found.get("reasons", ())
    ):
        raise DamagedFileError(f"{file}: found {found!r:.80} of answers together")


def results_file(cell_folder: Path, record: Mapping[str, Any]) -> Path:
    """The results that a finished cell's record names. Raises OutsideError, DamagedFileError where they are none."""
    origin = str(cell_folder / CELL)
    file = files.inside(cell_folder, record.get("results"), origin)
    if not file.name.endswith("_results.json") or not file.is_file():
        raise DamagedFileError(f"{origin}: names {record.get('results')!r:.80} as its results, which is no such file")
    date = file.name.removesuffix("results.json")
    for log in file.parent.glob(f"{date}samples_*.jsonl"):
        files.inside(cell_folder, str(log.relative_to(cell_folder).as_posix()), origin)
    return file


def read_run(folder: Path) -> records.Run:
    """A run folder: the results that a cell's record names, and of other folders those that `records.read_run` takes.

    Raises RecordError; OutsideError, DamagedFileError for a record.
    """
    if not (folder / CELL).is_file():
        return records.read_run(folder)
    return records.read_run(results_file(folder, files.read_json(folder / CELL, "evaluate it again")))


def read_state(folder: Path, cell: Cell, settings: Mapping[str, Any]) -> tuple[dict[str, Any], records.Run | None]:
    """A cell's record (`status` "missing" where there is none), and its run where it is finished and whole.

    Args:
        settings: of the sweep: a cell of other checkpoints than these is "damaged" as well, and says so.
    """
    record = read_cell(folder, cell) or {"status": "missing"}
    if record["status"] != FINISHED:
        return record, None
    file = results_file(folder / CELLS / cell.name, record)
    try:
        run = _read_run(file, _stamp(file))
        _check_same(run, cell, settings)
    except (OSError, ValueError) as error:
        return {**record, "status": DAMAGED, "error": str(error)}, None
    if (spent := record["seconds"].get("evaluate")) is not None:
        # lmms-eval times its writing of the results here, which begins when the evaluation has ended.
        run = replace(run, results={**run.results, "total_evaluation_time_seconds": spent})
    return record, run


def _stamp(file: Path) -> tuple[tuple[str, int, int], ...]:
    date = file.name.removesuffix("results.json")
    beside = [file, *sorted(file.parent.glob(f"{date}samples_*.jsonl"))]
    return tuple((one.name, stat.st_size, stat.st_mtime_ns) for one in beside if (stat := one.stat()))


@functools.lru_cache(maxsize=512)
def _read_run(file: Path, stamp: tuple[tuple[str, int, int], ...]) -> records.Run:
    """Once for each state of its files: whether cells are whole is asked at the begin and at the end of a sweep."""
    return records.read_run(file)


def _check_same(run: records.Run, cell: Cell, settings: Mapping[str, Any]) -> None:
    """Raises DamagedFileError where a run is of another merge, model or base than the sweep is."""
    made = run.block.get("provenance") or {}
    digest = cell.spec.digest() if cell.spec else None
    if "digest" in made and made["digest"] != digest:
        raise DamagedFileError(f"{run.file}: is of another merge: digest {made['digest']}, expected {digest}")
    base = cell.spec.base_model if cell.spec else None
    sides = (("model", "checkpoint", settings.get("checkpoint")), ("base", "base", settings.get("bases", {}).get(base)))
    for what, key, expected in sides:
        if problem := _other(expected or {}, read_identity(made.get(key) or {})):
            raise DamagedFileError(f"{run.file}: was evaluated with another {what} than this sweep's: {problem}")
