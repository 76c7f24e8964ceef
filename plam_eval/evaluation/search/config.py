"""What a search is asked for: its options, from a YAML file or flags, checked before anything is opened."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from plam_eval.arguments import read_number
from plam_eval.errors import hint, quoted, validation_problems
from plam_eval.evaluation.sweep.config import MOST_CELLS, SweepConfig, SweepError, read_file
from plam_eval.layer_sets import MOST_LAYERS, read_range
from plam_eval.rules import RANDOM_LAYERS
from plam_eval.spec import LARGEST_SEED

OF_SWEEP = (
    *("model", "model_args", "base_model", "ancestor", "tasks", "modules", "rules", "controls", "seeds", "draws"),
    *("select", "limit", "offset", "sample", "exclude", "gen_kwargs", "include_path", "batch_size", "force_simple"),
)
"""Options that mean what they mean in a sweep."""

SAMPLERS = ("tpe", "gp", "random", "grid")
_NOT_SAMPLERS = {
    "cmaes": "Optuna keeps its state in the study's file as a pickle, and reading a search's folder must run no code; "
    "gp is the one for weights without steps"
}
_MOST_STEPS = 1000


class SearchError(SweepError):
    """A search that cannot start or go on; the message says what was found and what to do. Answers are kept."""


@dataclass(frozen=True)
class Span:
    """Numbers that a weight may be: from `low` to `high`, in steps of `step`; any between them where that is None."""

    low: float
    high: float
    step: float | None = None

    @classmethod
    def read(cls, value: Any) -> Span:
        """The span that was written.

        Args:
            value: "0.5:1.0:0.1", "0.5:1.0", "0.9" for that number alone, or a list of these numbers.

        Raises:
            ValueError: it is none.
        """
        if isinstance(value, cls):
            return value
        form = "expected LOW:HIGH:STEP, LOW:HIGH, or one number"
        words = value.split(":") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        if not 1 <= len(words) <= 3:
            raise ValueError(f"found {quoted(value)}, {form}")
        low, high, *step = [read_number(word) + 0.0 for word in (words if len(words) > 1 else [*words, *words])]
        if high < low or (step and step[0] <= 0):
            raise ValueError(f"found {quoted(value)}, {form}, the higher one second and the step above 0")
        if low == high:
            return cls(low, high)
        if step and (high - low) / step[0] > _MOST_STEPS:
            raise ValueError(
                f"found {quoted(value)}, more than {_MOST_STEPS} steps; leave the step out for all between"
            )
        return cls(low, high, step[0] if step else None)

    def values(self) -> list[float] | None:
        """Every number in it; None where there are all between two."""
        if self.low == self.high:
            return [self.low]
        if self.step is None:
            return None
        steps = math.floor((self.high - self.low) / self.step + 1e-9)
        return [round(self.low + number * self.step, 9) for number in range(steps + 1)]

    def to_list(self) -> list[float]:
        """For JSON, as `read` takes it."""
        return [self.low, self.high, *([] if self.step is None else [self.step])]


class SearchOptions(BaseModel):
    """What a search is asked for beside what it shares with a sweep.

    Attributes:
        layers: "ranges": decoder layers without a gap; "sets": any.
        within: "4:20": only layers of this range, end exclusive; of the whole decoder without it.
        min_layers, max_layers: of a merge.
        model_weight, base_weight: "0.5:1.0:0.1", "0.5:1.0" (any between), or one number.
        trials: settings that are tried, so many in all.
        sampler: what proposes settings: "tpe", "gp", "random", or "grid" (each once, in random order).
        seed: of the sampler, of the drawing of documents, and of which of them are answered first.
        rungs: shares of the documents to choose on after which a hopeless setting is given up.
        prune: p of the Wilcoxon test against the best setting so far, below which one is hopeless; 0 gives none up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    layers: Literal["ranges", "sets"] = "ranges"
    within: tuple[int, int] | None = None
    min_layers: int = Field(default=1, ge=1, le=MOST_LAYERS)
    max_layers: int | None = Field(default=None, ge=1, le=MOST_LAYERS)
    model_weight: Span = Span(0.5, 1.0, 0.1)
    base_weight: Span = Span(0.1, 0.6, 0.1)
    trials: int = Field(default=40, ge=1, le=MOST_CELLS)
    sampler: str = "tpe"
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    rungs: tuple[float, ...] = (0.25, 0.5)
    prune: float = Field(default=0.05, ge=0, le=0.5)

    @field_validator("within", mode="before")
    @classmethod
    def _within(cls, value: Any) -> Any:
        return None if value is None else read_range(value)

    @field_validator("model_weight", "base_weight", mode="before")
    @classmethod
    def _span(cls, value: Any) -> Span:
        return Span.read(value)

    @field_validator("rungs", mode="before")
    @classmethod
    def _rungs(cls, value: Any) -> Any:
        words = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        shares = [read_number(word) for word in words if word not in ("", "none")]
        if shares != sorted(set(shares)) or any(not 0 < share < 1 for share in shares) or len(shares) > 20:
            raise ValueError(
                f"found {quoted(value)}, expected rising shares between 0 and 1, such as 0.25,0.5; or none"
            )
        return shares

    @field_validator("sampler")
    @classmethod
    def _sampler(cls, value: str) -> str:
        if value in SAMPLERS:
            return value
        if reason := _NOT_SAMPLERS.get(re.sub(r"[^a-z]", "", value[:100].lower())):
            raise ValueError(f"{quoted(value)} is none here: {reason}; known: {', '.join(SAMPLERS)}")
        raise ValueError(f"unknown sampler {quoted(value)}, {hint(value, SAMPLERS)}")

    def misfits(self) -> list[str]:
        """What is wrong with options that are right one by one."""
        problems = []
        width = self.within[1] - self.within[0] if self.within else MOST_LAYERS
        most = self.max_layers or width
        if not self.min_layers <= most <= width:
            problems.append(
                f"found merges of {self.min_layers} to {most} layers within {width}; expected min_layers of at most "
                "max_layers, and both within them"
            )
        if self.sampler == "grid" and (why := self.without_grid()):
            problems.append(f"sampler grid: {why}")
        return problems

    def without_grid(self) -> str | None:
        """Why no grid can be made of these options; None where one can."""
        if self.layers == "sets":
            return "sets of layers are too many for one; expected layers: ranges"
        if endless := [name for name in ("model_weight", "base_weight") if getattr(self, name).values() is None]:
            return f"{' and '.join(endless)} without a step has no end of values; expected LOW:HIGH:STEP"
        return None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: spans as lists."""
        return {
            name: value.to_list() if isinstance(value, Span) else list(value) if isinstance(value, tuple) else value
            for name, value in ((name, getattr(self, name)) for name in type(self).model_fields)
        }


@dataclass(frozen=True)
class SearchConfig:
    """What to search: `sweep` has what a sweep is asked for, too, `options` the rest.

    `sweep` is also the configuration of the sweep that reports on the other documents. `own_controls` says whether its
    controls were named: those that need an ancestor join none that were.
    """

    sweep: SweepConfig
    options: SearchOptions
    own_controls: bool = field(default=True, compare=False)

    @property
    def select(self) -> int:
        """Documents of each task to choose on, and those that share an image with them."""
        assert self.sweep.select is not None
        return self.sweep.select

    @classmethod
    def load(cls, file: str | Path | None = None, **given: Any) -> SearchConfig:
        """From a YAML file, with values that are not None over it.

        Args:
            file: of a search; None where everything is given.
            given: options of a search, by name.

        Raises:
            SearchError: listing every problem.
        """
        origin = f"search {file}" if file else "search"
        content = dict(read_file(origin, file)) if file is not None else {}
        return cls.of(content | {key: value for key, value in given.items() if value is not None}, origin)

    @classmethod
    def of(cls, content: Mapping[str, Any], origin: str) -> SearchConfig:
        """From options by name.

        Args:
            content: as a YAML file or `to_dict` has them.
            origin: what they are of, for messages.

        Raises:
            SearchError: listing every problem.
        """
        keys = {"": [*OF_SWEEP, *SearchOptions.model_fields]}
        shared = {key: value for key, value in content.items() if key in OF_SWEEP}
        problems: list[str] = []
        swept = _validated(SweepConfig, shared, keys, problems)
        own = _validated(SearchOptions, {k: v for k, v in content.items() if k not in OF_SWEEP}, keys, problems)
        problems += own.misfits() if own is not None else []
        if not content.get("select"):
            problems.append(
                "select: missing; expected so many documents of each task to choose on, such as 200; the report is on "
                "the others"
            )
        if swept is None or own is None or problems:
            raise SearchError(*problems, origin=origin)
        swept = swept.model_copy(update={"seed": own.seed})
        if "controls" not in content:
            swept = swept.model_copy(update={"controls": (*swept.controls, RANDOM_LAYERS)})
        return cls(swept, own, own_controls="controls" in content)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, by the names of the options."""
        return {key: getattr(self.sweep, key) for key in OF_SWEEP} | self.options.to_dict()


def _validated(kind: Any, content: Mapping[str, Any], keys: Mapping[str, Any], problems: list[str]) -> Any:
    """A record of `kind`; None where there are problems, which are added to the list."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems += [f"{key}: {text}" for key, text in validation_problems(error, keys)]
        return None
