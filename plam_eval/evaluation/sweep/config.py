"""What a sweep is asked for: its configuration, from a YAML file or flags, checked before anything is opened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from plam_eval.arguments import read_whole_number
from plam_eval.errors import ProblemsError, hint, quoted, system_error, validation_problems
from plam_eval.harness.checks import check_sample
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.evaluate import parse_model_args
from plam_eval.harness.registry import WRAPPERS
from plam_eval.layer_sets import MOST_LAYERS, range_hint
from plam_eval.rule_parameters import split_parameters
from plam_eval.rules import LAYER_CONTROLS, RULES, WEIGHTED_SUM, control_names, rule_or_control, why_not
from plam_eval.spec import LARGEST_SEED, OVERRIDE_KEYS
from plam_eval.weight_ramps import Ends, read_ends
from plam_eval.yaml_reader import YamlError, mapping_problems, read_yaml

MOST_CELLS = 10_000
MOST_DOCUMENTS = 2**31 - 1
_LONGEST_WORD = 500
_NUMBER = r"[-+]?[\d.]+(?:[eE][-+]?\d+)?"
_WEIGHT = rf"\s*({_NUMBER}(?:\s*:\s*{_NUMBER})?)\s*"
_PAIR = re.compile(rf"{_WEIGHT}\+{_WEIGHT}", re.ASCII)


class SweepError(ProblemsError, EvaluationError):
    """A sweep that cannot start or go on; the message says what was found and what to do. Finished cells are kept."""


class SweepConfig(BaseModel):
    """What to sweep, as written in a YAML file or given as flags.

    Attributes:
        model, model_args: as for lmms-eval. A `plateau` among the arguments, with its overrides, gives the base LLM,
            the merge rule, and whatever of layers, weights and modules the grid leaves out.
        base_model, ancestor: the base LLM, and what it and the MLLM were tuned from, where no plateau says it.
        tasks, limit, offset, gen_kwargs, include_path, batch_size, force_simple: as for lmms-eval.
        sample: so many documents of each task, drawn by category and in whole clusters; all without it.
        exclude: leave out what was looked at before: folders of scans, sweeps, runs and the like, or "scan".
        seed: of the drawing of documents, those to choose on included.
        layers: decoder layers [start, end): "24:36", "plateau" (the spec's own), "early", "middle", "late" (thirds),
            "all", "starts" or "starts:4" (from each, or each fourth, layer to the last), "windows:4" (of four layers,
            side by side), "windows:4:2" (two layers apart), or a set of layers and ranges, "3+9+20:24".
        weights: "0.9+0.3" or [0.9, 0.3]: of the MLLM and of the base; "0.9:0.5+0.1:0.5": ramps over depth.
        modules: names or groups (qkvo, qk, vo, mlp, all), joined by "+".
        rules: "trim", "dare:drop_rate:0.5", "della:density:0.4+epsilon:0.1": merges by each of these rules; by the
            plateau's own without any.
        controls: rules to run beside every merge, and `random_layers`, which is not among them unless it is named.
        seeds: of the controls that draw numbers; `draws`: sets of layers that `random_layers` draws for a merge.
        select: choose the best merge on so many documents of each task, and report on the others; on all without it.
        together: so many cells have a document answered in one generation (HF wrappers, without Ray). It takes memory
            for the merged tensors of all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str
    model_args: str = ""
    base_model: str | None = None
    ancestor: str | None = None
    tasks: tuple[str, ...] = Field(min_length=1)
    layers: tuple[str, ...] = ("plateau",)
    weights: tuple[tuple[float | Ends, float | Ends], ...] = ()
    modules: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    controls: tuple[str, ...] = Field(default_factory=control_names)
    seeds: tuple[int, ...] = (0,)
    draws: int = Field(default=5, ge=1, le=MOST_CELLS)
    select: int | None = Field(default=None, ge=0, le=MOST_DOCUMENTS)
    limit: int | None = Field(default=None, ge=1, le=MOST_DOCUMENTS)
    offset: int = Field(default=0, ge=0, le=MOST_DOCUMENTS)
    sample: int | None = Field(default=None, ge=1, le=MOST_DOCUMENTS)
    exclude: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    gen_kwargs: str | None = None
    include_path: str | None = None
    batch_size: int = Field(default=1, ge=1, le=MOST_DOCUMENTS)
    force_simple: bool = False
    together: int = Field(default=1, ge=1, le=MOST_CELLS)

    @field_validator("model", "model_args", "base_model", "ancestor", "gen_kwargs", "include_path", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if isinstance(value, (int, float)):
            raise ValueError(f'found {quoted(value)}, expected text; put it into quotes, as "{quoted(value)}"')
        return value

    @field_validator("tasks", "layers", "modules", "rules", "controls", "exclude", mode="before")
    @classmethod
    def _words(cls, value: Any, info: ValidationInfo) -> Any:
        words = _listed(value)
        strange = [word for word in words if not isinstance(word, str)]
        if strange and info.field_name == "layers":
            _check_no_pairs(value, words, strange)
        if strange:
            named = type(strange[0]) is int
            write = f'; put it into quotes, as "{quoted(strange[0])}"' if named else ", as a list or with commas"
            raise ValueError(f"found {quoted(strange[0])}, expected words{write}")
        words = [word.strip() for word in words]
        if info.field_name == "exclude" and "" in words:  # of a variable of the shell that is not set
            raise ValueError(f"found {quoted(value)}, expected folders, or scan; an empty word leaves nothing out")
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
        return [read_whole_number(word, LARGEST_SEED, "whole numbers") for word in _listed(value)]

    @field_validator("weights", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        form = "expected pairs such as 0.9+0.3 or [0.9, 0.3] (of the MLLM and the base), or ramps, 0.9:0.5+0.1:0.5"
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
                match = _PAIR.fullmatch(word)
                word = list(match.groups()) if match else word
            if not isinstance(word, (list, tuple)):
                raise ValueError(f"found {quoted(word)}, {form}")
            ends = [read_ends(weight) for weight in word]
            pairs.append([first if first == last else (first, last) for first, last in ends])
        return pairs

    @field_validator("sample", "exclude")
    @classmethod
    def _alone(cls, value: Any, info: ValidationInfo) -> Any:
        sample, leaves_out = (value, False) if info.field_name == "sample" else (None, bool(value))
        check_sample(sample, leaves_out, info.data.get("limit"), info.data.get("offset"))
        return value

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        value = tuple(word for word in value if word != "none")
        for word in value:
            if (word not in RULES or word == WEIGHTED_SUM) and word not in LAYER_CONTROLS:
                raise ValueError(f"unknown control {word!r}, {hint(word, [*control_names(), *LAYER_CONTROLS, 'none'])}")
        return value

    @field_validator("rules")
    @classmethod
    def _known_rules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            name, _, parameters = word.partition(":")
            if name in control_names(ancestor=True) or name in LAYER_CONTROLS:
                raise ValueError(f"found {word!r}, a control; controls run beside every merge (controls), not as one")
            if name not in RULES:
                reason = why_not(name)
                raise ValueError(
                    f"{word!r} is no rule here: {reason}" if reason else f"unknown rule {word!r}, {hint(name, RULES)}"
                )
            try:
                RULES[name].read_parameters(split_parameters(parameters or {}))
            except ValueError as error:
                raise ValueError(f"{word}: {error}") from None
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
        wrapper = WRAPPERS.get(info.data.get("model", ""))
        if value > 1 and wrapper is not None and not wrapper.hf:
            raise ValueError(f"{wrapper.model_id} answers for one merge at a time; expected 1, or an HF wrapper")
        return value

    def seeds_of(self, rule: str) -> tuple[int, ...]:
        """The seeds that `rule` is run with, or the numbers of its draws of layers: one where it draws nothing."""
        if rule in LAYER_CONTROLS:
            return tuple(range(self.draws))
        return self.seeds if rule_or_control(rule).draws else (0,)

    @classmethod
    def load(cls, file: str | Path | None = None, **given: Any) -> SweepConfig:
        """From a YAML file, with values that are not None over it.

        Args:
            file: of a sweep; None where everything is given.
            given: fields of a sweep, by name.

        Raises:
            SweepError: listing every problem.
        """
        origin = f"sweep {file}" if file else "sweep"
        content = read_file(origin, file) if file is not None else {}
        content = {**content, **{key: value for key, value in given.items() if value is not None}}
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = validation_problems(error, {"": cls.model_fields})
            raise SweepError(*(f"{field}: {text}" for field, text in problems), origin=origin) from None


def read_file(origin: str, file: str | Path) -> dict[str, Any]:
    """The unchecked content of a sweep's file.

    Args:
        origin: what it is, for messages.
        file: its path.

    Raises:
        SweepError: it cannot be read, or is no mapping of words.
    """
    try:
        content = read_yaml(file)
    except (OSError, YamlError) as error:
        why = system_error(error) if isinstance(error, OSError) else str(error)
        raise SweepError(f"{origin} cannot be read: {why}") from error
    if problems := mapping_problems(content, "keys, one a line, as `tasks: [pope]`"):
        raise SweepError(f"{origin}: {problems[0]}")
    return dict(content)


def _check_no_pairs(value: Any, words: Sequence[Any], strange: Sequence[Any]) -> None:
    """Raises ValueError where layers are given as numbers, [4, 8] or [[4, 8], ...]: what to write in their place."""
    is_nested = isinstance(strange[0], (list, tuple))
    ends = list(strange[0]) if is_nested else list(words)
    if all(isinstance(end, (int, float)) for end in (ends if is_nested else strange)):
        is_pair = len(ends) == 2 and all(type(end) is int and 0 <= end <= MOST_LAYERS for end in ends)
        write = f'"{ends[0]}:{ends[1]}"' if is_pair else "24:36, or words such as plateau"
        raise ValueError(f"found {quoted(value)}, expected ranges start:end, end exclusive; write {write}")


def _listed(value: Any) -> list[Any]:
    """A list, or the words of a text with commas, or the one value."""
    return value.split(",") if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [value]


def split_arguments(model_args: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """model_args without the plateau and its overrides, and these.

    Args:
        model_args: `key=value,...`, as lmms-eval takes it.

    Raises:
        ArgumentError: it is not of that form.
    """
    arguments = parse_model_args(model_args)
    ours = {key: arguments.pop(key) for key in ("plateau", *OVERRIDE_KEYS) if key in arguments}
    return arguments, ours
