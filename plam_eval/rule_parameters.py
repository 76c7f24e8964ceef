"""Parameters of merge rules: what a rule declares of them, and how specs and model_args write them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from plam_eval.arguments import read_number
from plam_eval.errors import quoted

_FORM = "expected numbers by name: {density: 0.2} (in model_args density:0.2, several joined by +)"
_MOST_PARAMETERS = 50


@dataclass(frozen=True)
class Parameter:
    """A number that a rule takes beside the weights.

    Attributes:
        name: as a spec writes it, and as the rule's function is given it.
        meaning: what it is, for a reader.
        default: where a spec says nothing; None where it has to.
        least, most: its limits, of which it may be either.
        open_ends: the limits that it may not be, of "least" and "most".
    """

    name: str
    meaning: str
    default: float | None = None
    least: float = 0.0
    most: float = math.inf
    open_ends: tuple[Literal["least", "most"], ...] = ()

    def read(self, value: object) -> float:
        """The number that was given, or that text stands for.

        Args:
            value: as found in a spec.

        Raises:
            ValueError: it is none, or outside of the limits.
        """
        number = read_number(value)
        below = number <= self.least if "least" in self.open_ends else number < self.least
        above = number >= self.most if "most" in self.open_ends else number > self.most
        if below or above:
            raise ValueError(f"found {quoted(value)}, expected {self.limits()}: {self.meaning}")
        return number + 0.0

    def limits(self) -> str:
        """Which numbers it takes, in words."""
        least = f"{'more than' if 'least' in self.open_ends else 'at least'} {self.least:g}"
        if self.most == math.inf:
            return f"a number of {least}"
        return f"a number of {least} and {'less than' if 'most' in self.open_ends else 'at most'} {self.most:g}"


def split_parameters(value: object) -> Mapping[str, object]:
    """Parameters by name, as they were given.

    Args:
        value: a mapping, or text such as "density:0.2+gamma:0.01".

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        pairs = [word.split(":") for word in re.split(r"\+(?=\s*[^\W\d])", value)] if value.strip() else []
        by_name = {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
        value = by_name if len(by_name) == len(pairs) else value
    if not isinstance(value, Mapping) or len(value) > _MOST_PARAMETERS:
        raise ValueError(f"found {quoted(value)}, {_FORM}")
    return value


def describe_parameters(parameters: Mapping[str, float]) -> str:
    """Parameters of a rule behind its weights, for a reader: "; density 0.2, gamma 0.01"; empty where there are none.

    Args:
        parameters: values by name.
    """
    return f"; {', '.join(f'{name} {value:g}' for name, value in parameters.items())}" if parameters else ""


def write_parameters(parameters: Mapping[str, float]) -> str:
    """Parameters of a rule as model_args have them: "density:0.2+gamma:0.01".

    Args:
        parameters: values by name.
    """
    return "+".join(f"{name}:{value!r}" for name, value in parameters.items())
