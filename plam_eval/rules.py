"""The merge rules and their controls: what each is, says and draws. Their arithmetic is in `plam_eval.merging.rules`.

A rule is added in two files: its function there, one record here. Specs, sweeps, reports, figures and the command line
read the record; nothing else lists rules by name. No torch is loaded, so that a spec can be checked without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from plam_eval.errors import InputError, quoted

WEIGHTED_SUM = "weighted_sum"
"""The rule of a spec that names none."""
SELF_SCALE = "self_scale"
"""The control that verdicts hold a merge against: the merge's scale without its base."""
NORMALIZED = "normalized"
"""The control that is the merge without its scale."""

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
        parameters: fields of a spec that it reads; `seed` where it draws random numbers or layers.
        elementwise: whether each element of the result depends on the same element of the operands alone, so that
            tensors may be handed to it in parts, as vectors; others are handed over whole.
        reference: where it comes from.
        equal_to: for weights, the rule and weights by which the same merge is written shortest; specs of one merge have
            one digest. None where there is no other.
        refused: for weights, why they cannot be used; None where they can.
        colour: of its estimates in figures; `mark`: theirs, as matplotlib names it.
    """

    name: str
    meaning: str = ""
    role: Literal["merge", "control"] = "merge"
    parameters: tuple[str, ...] = ("weights",)
    elementwise: bool = False
    reference: str = ""
    equal_to: Callable[[Coefficients], tuple[str, Coefficients]] | None = None
    refused: Callable[[Coefficients], str | None] | None = None
    colour: str = _OTHER_COLOUR
    mark: str = _OTHER_MARK

    @property
    def draws(self) -> bool:
        """Whether a spec's seed matters."""
        return "seed" in self.parameters


RULES: dict[str, Rule] = {}
"""Every rule that a spec can name, in the order in which reports list them."""


_BUILT_IN: set[str] = set()
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}", re.ASCII)
_OTHER_VALUES = ("none", "true", "false")


def register(rule: Rule) -> None:
    """Make a rule known by its name, in place of one of that name that was registered before.

    Args:
        rule: the record. `plam_eval.merging.rules` has its function, or `register_rule` there takes both.

    Raises:
        InputError: its name cannot be one, or is that of a rule of this package.
    """
    if problem := _name_problem(rule):
        raise InputError(f"a rule named {quoted(rule.name)}: {problem}")
    RULES[rule.name] = rule


def is_built_in(name: str) -> bool:
    """Whether a rule is one of this package, which every process knows, and not one that this process registered.

    Args:
        name: of the rule.
    """
    return name in _BUILT_IN


def _name_problem(rule: Rule) -> str | None:
    """Why no rule can have this name, which becomes a word of model_args and a part of the names of cells' folders."""
    if not isinstance(rule.name, str) or not _NAME.fullmatch(rule.name):
        return "expected a letter, then letters, digits, _ and -, 64 of them at most"
    if rule.name.lower() in _OTHER_VALUES:
        return f"the words {', '.join(_OTHER_VALUES)} mean something else where rules are named; expected another"
    if rule.name in _BUILT_IN:
        return f"one of plam-eval has this name; expected another than {', '.join(sorted(_BUILT_IN))}"
    for other in RULES.values():  # cells of rules that draw are named after rule and seed
        for drawing, name in ((other, rule.name), (rule, other.name)):
            if drawing.draws and re.fullmatch(rf"{re.escape(drawing.name)}\d+", name):
                return f"cells of {drawing.name!r} with a seed have names such as {name!r}; expected another"
    return None


def control_names() -> tuple[str, ...]:
    """The rules that are controls: those that a sweep runs beside every merge unless told otherwise."""
    return tuple(rule.name for rule in RULES.values() if rule.role == "control")


# ---- weights ---------------------------------------------------------------------------------------------------------


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


def _scale_alone(weights: Coefficients) -> tuple[str, Coefficients]:
    return SELF_SCALE, Coefficients(total_weight(without_negative_zero(weights)), 0.0)


def _sum(weights: Coefficients) -> tuple[str, Coefficients]:
    return (WEIGHTED_SUM, weights) if weights.base_model else _scale_alone(weights)


def _zero_sum(weights: Coefficients) -> str | None:
    if not math.isclose(weights.model, -weights.base_model, rel_tol=1e-9, abs_tol=1e-12):
        return None
    return (
        f"'normalized' divides by the sum of the weights, which is zero "
        f"({weights.model} + {weights.base_model}); expected another sum"
    )


# ---- the rules -------------------------------------------------------------------------------------------------------

register(
    Rule(
        WEIGHTED_SUM,
        "w_model W_mllm + w_base W_base, not normalised",
        elementwise=True,
        reference="PlaM, arXiv 2601.07645",
        equal_to=lambda weights: _sum(without_negative_zero(weights)),
        colour="#000000",
        mark="o",
    )
)
register(
    Rule(
        SELF_SCALE,
        "the model's own weights times the same sum",
        role="control",
        elementwise=True,
        equal_to=_scale_alone,
        colour="#D55E00",
        mark="s",
    )
)
register(
    Rule(
        NORMALIZED,
        "the merge with weights that sum to one",
        role="control",
        elementwise=True,
        equal_to=lambda weights: _sum(normalized_weights(weights)),
        refused=_zero_sum,
        colour="#0072B2",
        mark="^",
    )
)
register(
    Rule(
        "noise",
        "a random change of the same size",
        role="control",
        parameters=("weights", "seed"),
        colour="#8C6D00",
        mark="x",
    )
)
_BUILT_IN.update(RULES)
