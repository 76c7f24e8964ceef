"""What a merge rule says of itself: the record that specs, sweeps and reports read. And sums of a spec's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from plam_eval.errors import hint, quoted
from plam_eval.rule_parameters import Parameter

_OTHER_COLOUR, _OTHER_MARK = "#6A3D9A", "D"


class Coefficients(NamedTuple):
    """The weights of a spec: of the MLLM and of the base."""

    model: float
    base_model: float


@dataclass(frozen=True)
class Rule:
    """One way to make a tensor of an MLLM's, its base's, and the weights of both.

    Attributes:
        name: as a spec writes it, and the name of its function.
        meaning: what it makes, for a reader, as "a random change of the same size".
        role: "merge", which brings something of the base in, or "control", which a merge is held against.
        reads: fields of a spec that it reads; `ancestor` where it takes a third tensor, `seed` where it draws random
            numbers or layers.
        elementwise: whether each element of the result depends on the same element of the operands alone, so that
            tensors may be handed to it in parts, as vectors; others are handed over whole.
        reference: where it comes from.
        equal_to: for weights, the rule and weights by which the same merge is written shortest; specs of one merge have
            one digest. None where there is no other.
        refused: for weights, why they cannot be used; None where they can.
        colour: of its estimates in figures; `mark`: theirs, as matplotlib names it.
        parameters: numbers that it takes beside the weights; its function has them as keyword arguments.
        clash: for the values of all parameters, why they cannot be used together; None where they can.
        leaves: for the values of all parameters, the simpler rule that is left of it, bit by bit, with those of them
            that it has too; None where it is itself.
        unit_is_plain: whether weights of 1 + 0 leave the MLLM as it is.
        memory: what it needs beside its operands and the result, in tensors of their size and working precision;
            of rules that are not elementwise, which are given whole tensors.
        growth: the power of a tensor's entries with which its time grows.
    """

    name: str
    meaning: str = ""
    role: Literal["merge", "control"] = "merge"
    reads: tuple[str, ...] = ("weights",)
    elementwise: bool = False
    reference: str = ""
    equal_to: Callable[[Coefficients], tuple[str, Coefficients]] | None = None
    refused: Callable[[Coefficients], str | None] | None = None
    colour: str = _OTHER_COLOUR
    mark: str = _OTHER_MARK
    parameters: tuple[Parameter, ...] = ()
    clash: Callable[[Mapping[str, float]], str | None] | None = None
    leaves: Callable[[Mapping[str, float]], str | None] | None = None
    unit_is_plain: bool = True
    memory: float = 0.0
    growth: float = 1.0

    @property
    def draws(self) -> bool:
        """Whether a spec's seed matters."""
        return "seed" in self.reads

    @property
    def needs_ancestor(self) -> bool:
        """Whether its function is given the ancestor's tensor as well, as the keyword argument `ancestor`."""
        return "ancestor" in self.reads

    def read_parameters(self, given: Mapping[str, object]) -> dict[str, float]:
        """All parameters by name, those that are not given with their defaults.

        Args:
            given: values as found in a spec, by name.

        Raises:
            ValueError: naming every one that is unknown, missing, no number or outside of its limits, and what is
                wrong with all of them together.
        """
        names = [parameter.name for parameter in self.parameters]
        problems = [
            f"{quoted(name)} is no parameter of {self.name}{f', {hint(name, names)}' if names else ', which has none'}"
            for name in given
            if name not in names
        ]
        values: dict[str, float] = {}
        for parameter in self.parameters:
            value = given.get(parameter.name, parameter.default)
            if value is None:
                problems.append(f"{parameter.name}: missing; expected {parameter.limits()}: {parameter.meaning}")
                continue
            try:
                values[parameter.name] = parameter.read(value)
            except ValueError as error:
                problems.append(f"{parameter.name}: {error}")
        if not problems and self.clash is not None and (clash := self.clash(values)):
            problems.append(clash)
        if problems:
            raise ValueError("; ".join(problems))
        return values


def total_weight(weights: Coefficients) -> float:
    """The sum of both weights, without the last digits of decimal fractions added: 0.8 + 0.4 is 1.2.

    Args:
        weights: of the MLLM and of the base.
    """
    return _rounded(weights.model + weights.base_model)


def normalized_weights(weights: Coefficients) -> Coefficients:
    """Both weights divided by their sum, rounded like `total_weight`.

    Args:
        weights: of the MLLM and of the base, of a sum other than zero.
    """
    total = weights.model + weights.base_model
    return Coefficients(_rounded(weights.model / total), _rounded(weights.base_model / total))


def _rounded(weight: float) -> float:
    return round(weight, 12)


def without_negative_zero(weights: Coefficients) -> Coefficients:
    """The same weights, with 0.0 for -0.0: they are equal and written differently.

    Args:
        weights: of the MLLM and of the base.
    """
    return Coefficients(weights.model + 0.0, weights.base_model + 0.0)
