"""The settings that a search may propose: what each is made of, and the spec that it stands for."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plam_eval.evaluation.search.config import SearchConfig, SearchError, Span
from plam_eval.evaluation.sweep.config import MOST_CELLS
from plam_eval.evaluation.sweep.grid import module_group, starting_spec
from plam_eval.layer_sets import MOST_LAYERS
from plam_eval.spec import PlateauSpec, load_spec

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Parameters = Mapping[str, Any]
"""A proposal: `start` and `length`, or `size` and a key for each layer; and, where there is a choice, `model_weight`,
`base_weight`, `modules` and `rule`."""


@dataclass(frozen=True)
class Space:
    """What a search proposes settings from.

    A range that would reach beyond the last layer ends there. Of a set, the `size` layers with the highest keys are
    taken, so that every proposal is a set of a size that was asked for (random keys, Bean 1994).

    Attributes:
        kind: "ranges" or "sets".
        first, end: layers that may be merged, end exclusive.
        least, most: layers of a merge.
        weights: of `model_weight` and `base_weight`.
        modules: sets of modules, joined by "+" or as groups.
        rules: names, with ":" and parameters behind them.
        base: the base LLM; ancestor: what it and the MLLM were tuned from, if that is said.
        start: the spec that model_args describe, if they do.
    """

    kind: str
    first: int
    end: int
    least: int
    most: int
    weights: dict[str, Span]
    modules: tuple[str, ...]
    rules: tuple[str, ...]
    base: str
    ancestor: str | None
    start: PlateauSpec | None

    @classmethod
    def of(cls, config: SearchConfig, num_layers: int) -> Space:
        """The space of a configuration, for a decoder of so many layers.

        Args:
            config: what is searched.
            num_layers: decoder layers of the model.

        Raises:
            SearchError, SpecError: it does not fit the decoder, or names no base LLM.
        """
        options, swept = config.options, config.sweep
        if num_layers > MOST_LAYERS:
            raise SearchError(f"the checkpoint names {num_layers} decoder layers; expected at most {MOST_LAYERS}")
        start = starting_spec(swept)
        first, end = options.within or (0, num_layers)
        problems = []
        if end > num_layers:
            problems.append(f"within: found {first}:{end}, expected layers of 0:{num_layers}, which the decoder has")
        width = min(end, num_layers) - first
        most = options.max_layers or width
        if not options.min_layers <= most <= width and not problems:
            problems.append(f"found merges of {options.min_layers} to {most} layers, expected at most {width}")
        base = swept.base_model or (start.base_model if start else None)
        if base is None:
            problems.append("no base LLM: give --base, or a plateau in --model_args")
        if problems or base is None:
            raise SearchError(*problems, origin="search")
        own_rule = [start.rule, *(f"{name}:{value!r}" for name, value in start.parameters.items())] if start else []
        return cls(
            options.layers,
            *(first, end, options.min_layers, most),
            {"model_weight": options.model_weight, "base_weight": options.base_weight},
            tuple(dict.fromkeys(swept.modules or ((module_group(start.modules),) if start else ("qkvo",)))),
            tuple(dict.fromkeys(swept.rules or (_joined(own_rule),))),
            base,
            swept.ancestor or (start.ancestor if start else None),
            start,
        )

    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna draws from, by the name of the parameter; nothing for what is given."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, BaseDistribution] = {}
        if self.kind == "ranges":
            found["start"] = IntDistribution(self.first, self.end - self.least)
            found["length"] = IntDistribution(self.least, self.most)
        else:
            found["size"] = IntDistribution(self.least, self.most)
            found |= {f"layer_{layer}": FloatDistribution(0.0, 1.0) for layer in range(self.first, self.end)}
        for name, span in self.weights.items():
            values = span.values()
            if values is None:
                found[name] = FloatDistribution(span.low, span.high)
            elif len(values) > 1:
                found[name] = IntDistribution(0, len(values) - 1)  # the number of the step
        for name, words in (("modules", self.modules), ("rule", self.rules)):
            if len(words) > 1:
                found[name] = CategoricalDistribution(words)
        return found

    def spec(self, parameters: Parameters) -> PlateauSpec:
        """The merge that a proposal stands for.

        Args:
            parameters: by name, as Optuna drew them from `distributions`.

        Raises:
            SpecError: it is none, as where a rule refuses these weights.
        """
        rule, _, rest = str(parameters.get("rule", self.rules[0])).partition(":")
        spec = load_spec(
            {
                "base_model": self.base,
                "layers": list(self._layers(parameters)),
                "modules": parameters.get("modules", self.modules[0]),
                "weights": {
                    "model": self._weight("model_weight", parameters),
                    "base_model": self._weight("base_weight", parameters),
                },
                "rule": rule,
                **({"parameters": rest} if rest else {}),
                **({"seed": self.start.seed} if self.start else {}),
                **({"ancestor": self.ancestor} if self.ancestor else {}),
            }
        )
        assert spec is not None
        return spec

    def _layers(self, parameters: Parameters) -> tuple[int, ...]:
        if self.kind == "ranges":
            start = parameters["start"]
            return tuple(range(start, min(start + parameters["length"], self.end)))
        keys = {layer: parameters[f"layer_{layer}"] for layer in range(self.first, self.end)}
        return tuple(sorted(sorted(keys, key=lambda layer: (-keys[layer], layer))[: parameters["size"]]))

    def _weight(self, name: str, parameters: Parameters) -> float:
        values = self.weights[name].values()
        if values is None:
            return float(parameters[name])
        return values[parameters.get(name, 0)]

    def corners(self) -> list[PlateauSpec]:
        """Merges whose tensors are those of all settings: by each rule, all modules in all layers that may be merged.

        A rule that refuses the highest weights is left out: each of its settings is checked when it is proposed.
        """
        from plam_eval.spec import SpecError

        found, refused = [], None
        choice: dict[str, Any] = {name: len(span.values() or [0]) - 1 for name, span in self.weights.items()}
        choice |= {name: span.high for name, span in self.weights.items() if span.values() is None}
        if self.kind == "ranges":
            choice |= {"start": self.first, "length": self.end - self.first}
        else:
            choice |= {"size": self.end - self.first, **{f"layer_{n}": 0.0 for n in range(self.first, self.end)}}
        for modules, rule in itertools.product(self.modules, self.rules):
            try:
                found.append(self.spec({**choice, "modules": modules, "rule": rule}))
            except SpecError as error:
                refused = error
        if not found and refused is not None:
            raise refused
        return found

    def reference_settings(self, num_layers: int) -> list[PlateauSpec]:
        """What a search begins with, whatever it proposes: the merge of model_args, and that in all layers.

        Args:
            num_layers: decoder layers of the model.
        """
        if self.start is None:
            return []
        whole = load_spec(self.start, {"layers": f"0:{num_layers}"})
        assert whole is not None
        settings = [self.start, whole.model_copy(update={"source": self.start.source})]
        return list({spec.digest(): spec for spec in settings if not spec.is_plain}.values())

    def points(self, seed: int) -> list[dict[str, Any]]:
        """Every proposal once, in an order that `seed` draws; ranges that would reach beyond the last layer left out.

        Args:
            seed: of the order.

        Raises:
            SearchError: there are more than a search ever tries.
        """
        axes: dict[str, list[Any]] = {
            "start": list(range(self.first, self.end - self.least + 1)),
            "length": list(range(self.least, self.most + 1)),
            **{name: list(range(len(span.values() or []))) for name, span in self.weights.items()},
            "modules": list(self.modules),
            "rule": list(self.rules),
        }
        wanted = self.distributions()
        axes = {name: values for name, values in axes.items() if name in wanted}
        size = 1
        for values in axes.values():
            size *= len(values)
        if size > 100 * MOST_CELLS:
            raise SearchError(f"a grid of {size} settings; expected fewer layers or steps, or another sampler")
        combined = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
        points = [point for point in combined if point["start"] + point["length"] <= self.end]
        random.Random(f"search grid:{seed}").shuffle(points)
        return points

    def size(self) -> int | None:
        """How many different proposals there are; None where a weight has no steps."""
        steps = [span.values() for span in self.weights.values()]
        if None in steps:
            return None
        width, layers = self.end - self.first, 0
        subsets = math.comb(width, self.least)
        for length in range(self.least, self.most + 1):
            layers += subsets if self.kind == "sets" else width - length + 1
            subsets = subsets * (width - length) // (length + 1)  # each from the one before: they have many digits
        return layers * math.prod(len(values or []) for values in steps) * len(self.modules) * len(self.rules)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all that decides what a proposal stands for."""
        return {
            "layers": self.kind,
            "within": [self.first, self.end],
            "layers of a merge": [self.least, self.most],
            **{name: span.to_list() for name, span in self.weights.items()},
            "modules": list(self.modules),
            "rules": list(self.rules),
            "base": self.base,
            "ancestor": self.ancestor,
            "start": self.start.to_dict() if self.start else None,
        }


def _joined(rule: list[str]) -> str:
    """A rule as the option `rules` writes it; the weighted sum where there is none."""
    from plam_eval.rules import WEIGHTED_SUM

    return ":".join([rule[0], "+".join(rule[1:])]).rstrip(":") if rule else WEIGHTED_SUM
