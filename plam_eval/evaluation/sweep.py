"""`plam sweep` and `plam compare`: many merges on one resident model, each an lmms-eval run folder of its own.

A sweep is a grid of merges (layer ranges, weights, modules) with controls beside each, and the plain model. Cells are
finished one by one, each moved into place when it is complete, so that a sweep that was killed goes on with the first
unfinished cell. What the cells say is read back from their folders (`read_sweep`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from tqdm import tqdm

from plam_eval.evaluation import harness
from plam_eval.evaluation.harness import EvaluationError
from plam_eval.evaluation.together import Together
from plam_eval.merging.checkpoint import Checkpoint, MergeError
from plam_eval.model_wrappers.manifest import WRAPPERS
from plam_eval.provenance import versions
from plam_eval.spec import GROUPS, OVERRIDE_KEYS, RULES, PlateauSpec, hint, load_spec

PLAN, CELLS, CELL, LOG, LOCK = "sweep.json", "cells", "cell.json", "log.txt", "sweep.lock"
TOGETHER = ".together"
"""Folder of answers that several cells were given at once, until all cells are finished."""
PLAIN = "plain"
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

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    model_args: str = ""
    base_model: str | None = None
    tasks: tuple[str, ...] = Field(min_length=1)
    layers: tuple[str, ...] = ("plateau",)
    weights: tuple[tuple[float, float], ...] = ()
    modules: tuple[str, ...] = ()
    controls: tuple[str, ...] = CONTROLS
    seeds: tuple[int, ...] = (0,)
    select: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    offset: int = Field(default=0, ge=0)
    gen_kwargs: str | None = None
    include_path: str | None = None
    batch_size: int = Field(default=1, ge=1)
    force_simple: bool = False
    together: int = Field(default=1, ge=1)

    @field_validator("tasks", "layers", "modules", "controls", mode="before")
    @classmethod
    def _words(cls, value: Any, info: ValidationInfo) -> Any:
        words = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        if strange := [word for word in words if not isinstance(word, (str, int)) or isinstance(word, bool)]:
            raise ValueError(f"found {strange[0]!r}, expected words, as a list or with commas")
        words = [str(word).strip() for word in words]
        if not any(words) and info.field_name in ("tasks", "layers"):
            raise ValueError(f"found {value!r}, expected at least one word")
        return [word for word in words if word]

    @field_validator("seeds", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        words = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        for word in words:
            if isinstance(word, bool) or not str(word).strip().isdecimal():
                raise ValueError(f"found {word!r}, expected whole numbers, 0 or more")
        return [int(word) for word in words]

    @field_validator("weights", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        form = "expected pairs such as 0.9+0.3 or [0.9, 0.3] (of the MLLM and the base)"
        if not isinstance(value, (str, list, tuple)):
            raise ValueError(f"found {value!r}, {form}")
        words: list[Any] = value.split(",") if isinstance(value, str) else list(value)
        if len(words) == 2 and all(isinstance(word, (int, float)) for word in words):
            words = [words]  # one pair, written without the outer brackets
        pairs = []
        for word in words:
            if isinstance(word, str):
                found = re.fullmatch(r"\s*(-?[\d.]+)\s*\+\s*(-?[\d.]+)\s*", word)
                if not found:
                    raise ValueError(f"found {word!r}, {form}")
                word = [float(part) for part in found.groups()]
            pairs.append(word)
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
                data = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise SweepError(f"{origin} cannot be read: {error}") from error
            if not isinstance(data, dict):
                raise SweepError(f"{origin}: found {type(data).__name__}, expected a mapping of keys")
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
                    lines.append(f"{key}: found {found['input']!r}: {found['msg']}")
            text = "\n".join(f"  - {line}" for line in lines)
            raise SweepError(f"{origin}: {len(lines)} problem(s)\n{text}") from None


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
        return cls(stored["name"], stored["kind"], load_spec(stored["spec"]))


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep, each setting once, and for each merged cell the cells that control it, by rule."""

    cells: tuple[Cell, ...]
    controls: dict[str, dict[str, tuple[str, ...]]]

    def to_dict(self) -> dict[str, Any]:
        return {"cells": [cell.to_dict() for cell in self.cells], "controls": self.controls}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Grid:
        controls = {name: {rule: tuple(names) for rule, names in c.items()} for name, c in stored["controls"].items()}
        return cls(tuple(Cell.from_dict(cell) for cell in stored["cells"]), controls)

    def with_earlier(self, earlier: Grid) -> Grid:
        """These cells, and those of an earlier call: whatever was tried counts."""
        digests = {cell.spec.digest() if cell.spec else None for cell in self.cells}
        more = [cell for cell in earlier.cells if (cell.spec.digest() if cell.spec else None) not in digests]
        if taken := {cell.name for cell in self.cells} & {cell.name for cell in more}:
            raise SweepError(
                f"{', '.join(sorted(taken))}: finished before with another merge; name another --output, or delete it"
            )
        return Grid((*self.cells, *more), {**earlier.controls, **self.controls})


def make_grid(config: SweepConfig, num_layers: int) -> Grid:
    """Every setting of a config, for a decoder of `num_layers` layers.

    Raises:
        SweepError, SpecError: a word or value that means nothing, a range beyond the decoder, no base LLM.
    """
    _, given = split_arguments(config.model_args)
    start = _starting_spec(config, given)
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
    if all(number.isdecimal() and int(number) >= 0 for number in numbers):
        values = [int(number) for number in numbers]
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
                cannot be merged.
        """
        from plam_eval.merging.plan import plan_merge

        folder = Path(folder)
        checkpoint = Checkpoint.open(
            _pretrained(config), revision=split_arguments(config.model_args)[0].get("revision"), role="pretrained"
        )
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
            before = read_plan(folder)
            changed = [
                f"{key} (was {before['settings'].get(key)!r}, is {settings.get(key)!r})"
                for key in dict.fromkeys([*before["settings"], *settings])
                if before["settings"].get(key) != settings.get(key)
            ]
            if changed:
                raise SweepError(
                    f"{folder} holds a sweep of other settings: {'; '.join(changed)}. Cells of both cannot be "
                    "compared: name another --output, or delete this one"
                )
            grid = grid.with_earlier(Grid.from_dict(before["grid"]))
        return cls(config, grid, folder, settings, num_layers, sizes, merged)

    def write(self) -> None:
        """Write the plan, in one step, and drop what only an unfinished sweep needs from a finished one."""
        content = {
            "config": self.config.model_dump(mode="json"),
            "settings": self.settings,
            "grid": self.grid.to_dict(),
            "num_layers": self.num_layers,
            "working_directory": str(Path.cwd()),
            "command": ["plam", *sys.argv[1:]] if Path(sys.argv[0]).name in ("plam", "cli.py") else sys.argv,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_json(self.folder / PLAN, content)
        if not self.left():
            shutil.rmtree(self.folder / TOGETHER, ignore_errors=True)

    @property
    def answers_together(self) -> Path:
        """Where answers that several cells were given at once are kept, for these settings and no others."""
        text = json.dumps(self.settings, sort_keys=True, default=str)
        return self.folder / TOGETHER / hashlib.sha256(text.encode()).hexdigest()[:16]

    def seconds_per_cell(self) -> float | None:
        """Mean time of the finished cells; None before there are any."""
        records = [read_cell(self.folder, cell.name) or {} for cell in self.grid.cells]
        records = [record for record in records if record.get("status") == "finished"]
        if not records:
            return None
        own = sum(record["seconds"]["merge"] + record["seconds"]["evaluate"] for record in records) / len(records)
        # Answering for many cells is counted with the first of them.
        together = [record["together"] for record in records if record.get("together", {}).get("cells")]
        cells = sum(part["cells"] for part in together)
        return own + (sum(part["seconds"] for part in together) / cells if cells else 0)

    def left(self) -> list[Cell]:
        """Cells that have no finished run, failed ones included."""
        return [c for c in self.grid.cells if (read_cell(self.folder, c.name) or {}).get("status") != "finished"]


def groups(cells: Sequence[Cell], size: int) -> list[Sequence[Cell]]:
    """Cells that are answered together."""
    return [cells[start : start + size] for start in range(0, len(cells), size)]


def _pretrained(config: SweepConfig) -> str:
    arguments, _ = split_arguments(config.model_args)
    if not arguments.get("pretrained"):
        raise SweepError(f"model_args is {config.model_args!r}; expected pretrained=FOLDER_OR_HUB_ID in it")
    return str(arguments["pretrained"])


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
        "checkpoint": checkpoint.identity(),
        "bases": {name: base.identity() for name, base in sorted(bases.items())},
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
    """The plain model in its wrapper, as lmms-eval's command line would make it."""
    arguments, _ = split_arguments(config.model_args)
    return harness.make_model(config.model, arguments, batch_size=config.batch_size, force_simple=config.force_simple)


def run(job: Job, model: Any = None) -> dict[str, dict[str, Any]]:
    """Evaluate every unfinished cell on one resident model, in order.

    Args:
        model: the wrapper; loaded from the job's config by default.

    Returns:
        The record of every cell of this call, by name. A cell that failed has `status` "failed", and the others go on;
        under several processes a failure in one of them ends them all.

    Raises:
        SweepError: another process is at work in this folder.
    """
    lm = model if model is not None else load_model(job.config)
    first, alone = lm.rank == 0, lm.world_size == 1
    done: dict[str, dict[str, Any]] = {}
    with locked(job.folder) if first else nullcontext():
        if first:
            job.write()
        # One process decides for all: another may see the folder before the first one's files reach it.
        left = harness.all_ranks({"cells": [cell.to_dict() for cell in job.left()]})[0]["cells"]
        cells = [Cell.from_dict(stored) for stored in left]
        with tqdm(total=len(cells), desc="sweep", unit="cell", disable=not first) as progress:
            for group in groups(cells, job.config.together):
                specs = [cell.spec for cell in group]
                together = Together(lm, specs, job.answers_together, sys.stderr) if len(group) > 1 else None
                for cell in group:
                    progress.set_postfix_str(cell.name)
                    done[cell.name] = run_cell(lm, cell, job.config, job.folder, alone=alone, together=together)
                    progress.update()
        if first:
            job.write()
    return done


def run_cell(
    lm: Any, cell: Cell, config: SweepConfig, folder: Path, *, alone: bool = True, together: Together | None = None
) -> dict[str, Any]:
    """Merge, evaluate and store one cell; what goes wrong is stored, too.

    Everything is written beside the cell's folder and moved there once it is complete.

    Args:
        together: answers of the group of cells that this one is of.
    """
    target = folder / CELLS / cell.name
    partial = target.with_name(f".{cell.name}.partial")
    first = lm.rank == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
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
        record["status"] = "finished"
        if together is not None:
            seconds["evaluate"] -= together.record()["seconds"]
            record["together"] = _added_up(harness.all_ranks(together.record()))
        if found is not None and found.results_file is not None:
            record["results"] = str(found.results_file.relative_to(partial))
    except Exception as error:  # whatever it is, it is this cell's, and is kept with it
        if not alone:
            raise
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
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
    target = folder / CELLS / cell.name
    partial = target.with_name(f".{cell.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)  # with the log of what was done
    digest = cell.spec.digest() if cell.spec else None
    record = {**cell.to_dict(), "digest": digest, "status": "failed", "error": error, "seconds": {}}
    _finish(partial, target, record)
    return record


def _finish(partial: Path, target: Path, record: dict[str, Any]) -> None:
    _write_json(partial / CELL, record)
    if target.exists():  # it failed before
        shutil.rmtree(target)
    partial.replace(target)


def cell_arguments(config: SweepConfig, cell: Cell) -> str:
    """model_args with which lmms-eval's own command line makes this cell."""
    words = [
        word for word in _split_text(config.model_args) if word.partition("=")[0] not in ("plateau", *OVERRIDE_KEYS)
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


def _split_text(model_args: str) -> list[str]:
    """`key=value` words; commas inside braces, brackets and quotes do not part them."""
    words, depth, quote = [""], 0, ""
    for letter in model_args:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "{[(":
            depth += 1
        elif letter in "}])":
            depth -= 1
        elif letter == "," and depth == 0:
            words.append("")
            continue
        words[-1] += letter
    return [word.strip() for word in words if word.strip()]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One sweep at a time in a folder; the system lifts the lock when its process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(f"{folder}: another process is at work on this sweep; wait for it, or stop it") from None
        yield


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


def _write_json(path: Path, content: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def read_plan(folder: Path) -> dict[str, Any]:
    """What a sweep's folder was made with. Raises SweepError where there is no sweep."""
    file = folder / PLAN
    if not file.is_file():
        raise SweepError(
            f"{folder}: no sweep there (no {PLAN}); expected the --output of `plam sweep` or `plam compare`"
        )
    plan: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return plan


def read_cell(folder: Path, name: str) -> dict[str, Any] | None:
    """The record of a cell that has ended; None for one that has not."""
    file = folder / CELLS / name / CELL
    if not file.is_file():
        return None
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record
