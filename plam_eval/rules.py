"""The merge rules and their controls: what each is, says and draws. Their arithmetic is in `plam_eval.merging.rules`.

A rule is added in two files: its function there, one record here. Specs, sweeps, reports, figures and the command line
read the record; nothing else lists rules by name. No torch is loaded, so that a spec can be checked without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from plam_eval.errors import InputError, hint, quoted
from plam_eval.rule_parameters import Parameter

WEIGHTED_SUM = "weighted_sum"
"""The rule of a spec that names none."""
SELF_SCALE = "self_scale"
"""The control that verdicts hold a merge against: the merge's scale without its base."""
NORMALIZED = "normalized"
"""The control that is the merge without its scale."""

RANDOM_LAYERS = "random_layers"
"""The control that asks whether the layers are special: the same merge in as many others."""

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
        is_sum: for the values of all parameters, whether they leave nothing of the rule but the weighted sum.
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
    is_sum: Callable[[Mapping[str, float]], bool] | None = None
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


def control_names(*, ancestor: bool = False) -> tuple[str, ...]:
    """The rules that are controls: those that a sweep runs beside every merge unless told otherwise.

    Args:
        ancestor: whether those that need an ancestor are among them.
    """
    return tuple(
        rule.name for rule in RULES.values() if rule.role == "control" and (ancestor or not rule.needs_ancestor)
    )


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
        reads=("weights", "seed"),
        memory=1,
        colour="#8C6D00",
        mark="x",
    )
)


def _task_vector(weights: Coefficients, name: str) -> tuple[str, Coefficients]:
    """Without a share of the MLLM there is no task vector, so nothing is left but the base."""
    return (name, weights) if weights.model else (WEIGHTED_SUM, weights)


def _in_between(weights: Coefficients) -> str | None:
    if weights.model >= 0 and weights.base_model >= 0 and sum(weights) > 0:
        return None
    return (
        f"'slerp' goes from one source to the other, and found the weights {weights.model} + {weights.base_model}; "
        "expected none below zero, and a sum above it"
    )


def _above_one(rule: str, parameter: str, both: float) -> str | None:
    return f"{rule}: density + {parameter} is {both:g}; expected at most 1" if both > 1 + 1e-12 else None


def _clash_of_della(values: Mapping[str, float]) -> str | None:
    density, epsilon = values["density"], values["epsilon"]
    if density - epsilon <= 0:
        return (
            f"della: density - epsilon is {density - epsilon:g}; expected more than 0, the least that is kept of a row"
        )
    return _above_one("della", "epsilon", density + epsilon)


register(
    Rule(
        "trim",
        "the entries in which MLLM and base differ most, the base elsewhere",
        reference="TIES-merging with one task vector, arXiv 2306.01708",
        equal_to=lambda weights: _task_vector(weights, "trim"),
        parameters=(Parameter("density", "share of the entries of a tensor that are kept", 0.2, 0, 1),),
        is_sum=lambda values: values["density"] == 1,
        unit_is_plain=False,
        memory=4,
        mark="v",
    )
)
register(
    Rule(
        "dare",
        "random entries of the difference to the base, larger by as much as was dropped",
        reads=("weights", "seed"),
        reference="DARE, arXiv 2311.03099",
        equal_to=lambda weights: _task_vector(weights, "dare"),
        parameters=(Parameter("drop_rate", "share of the entries that are dropped", 0.9, 0, 1, open_ends=("most",)),),
        is_sum=lambda values: values["drop_rate"] == 0,
        unit_is_plain=False,
        memory=1.25,
        mark="<",
    )
)
register(
    Rule(
        "della",
        "random entries of the difference to the base, larger ones more likely",
        reads=("weights", "seed"),
        reference="DELLA-merging (MagPrune), arXiv 2406.11617",
        equal_to=lambda weights: _task_vector(weights, "della"),
        parameters=(
            Parameter("density", "mean share of the entries that are kept", None, 0, 1, open_ends=("least",)),
            Parameter("epsilon", "how much more likely the largest of a row are kept than the mean", 0.15, 0, 0.5),
        ),
        clash=_clash_of_della,
        is_sum=lambda values: values["density"] == 1,
        unit_is_plain=False,
        memory=1.5,
        mark=">",
    )
)
register(
    Rule(
        "breadcrumbs",
        "the difference to the base without its largest and its smallest entries",
        reference="Model Breadcrumbs, arXiv 2312.06795",
        equal_to=lambda weights: _task_vector(weights, "breadcrumbs"),
        parameters=(
            Parameter("density", "share of the entries that are kept", None, 0, 1, open_ends=("least",)),
            Parameter("gamma", "share of the entries, the largest, that are dropped", 0.01, 0, 1, open_ends=("most",)),
        ),
        clash=lambda values: _above_one("breadcrumbs", "gamma", values["density"] + values["gamma"]),
        is_sum=lambda values: values["density"] == 1,
        unit_is_plain=False,
        memory=4,
        mark="p",
    )
)
register(
    Rule(
        "slerp",
        "the way along the sphere from base to MLLM, as far as the MLLM's share of the weights, times their sum",
        reference="Shoemake 1985",
        refused=_in_between,
        equal_to=lambda weights: _sum(weights) if 0 in weights else ("slerp", weights),
        mark="*",
    )
)
register(
    Rule(
        "nearswap",
        "the weighted sum, but no entry further from the MLLM's than t",
        elementwise=True,
        reference="the method of this name in mergekit's documentation, which is this with the weights 0 + 1",
        parameters=(Parameter("t", "the most by which an entry may change"),),
        mark="h",
    )
)
register(
    Rule(
        "iso_c",
        "the difference to the base with all its singular values made their mean",
        reference="Iso-C, arXiv 2502.04959",
        equal_to=lambda weights: _task_vector(weights, "iso_c"),
        unit_is_plain=False,
        memory=16,
        growth=1.5,
        mark="8",
    )
)


def _above_ancestor(weights: Coefficients, name: str) -> tuple[str, Coefficients]:
    """Weights that sum to one leave no share of the ancestor."""
    return (name, weights) if total_weight(weights) != 1 else (WEIGHTED_SUM, weights)


register(
    Rule(
        "task_arithmetic",
        "the ancestor plus what MLLM and base have learnt since, each by its weight",
        reads=("weights", "ancestor"),
        elementwise=True,
        reference="task arithmetic, arXiv 2212.04089",
        equal_to=lambda weights: _above_ancestor(weights, "task_arithmetic"),
        mark="P",
    )
)
register(
    Rule(
        "from_ancestor",
        "the same merge without the share of the ancestor by which its weights exceed one",
        role="control",
        reads=("weights", "ancestor"),
        elementwise=True,
        equal_to=lambda weights: _above_ancestor(weights, "task_arithmetic"),
        colour="#009E73",
        mark="P",
    )
)
register(
    Rule(
        "ties",
        "the ancestor plus the largest changes of MLLM and base since, where they agree in sign",
        reads=("weights", "ancestor"),
        reference="TIES-merging, arXiv 2306.01708",
        parameters=(Parameter("density", "share of the entries of a task vector that are kept", 0.2, 0, 1),),
        unit_is_plain=False,
        memory=6,
        mark="X",
    )
)
LAYER_CONTROLS: dict[str, Rule] = {
    RANDOM_LAYERS: Rule(
        RANDOM_LAYERS,
        "the same merge in as many layers, drawn at random",
        role="control",
        reads=("layers", "seed"),
        colour="#CC79A7",
        mark="d",
    )
}
"""Controls that change a merge's layers and not its arithmetic: a sweep can name them, and a spec has the layers."""
_BUILT_IN.update(RULES, LAYER_CONTROLS)


def rule_or_control(name: str) -> Rule:
    """The record of a rule, or of a control that changes a merge's layers.

    Args:
        name: of either.

    Raises:
        KeyError: there is none of that name.
    """
    return LAYER_CONTROLS[name] if name in LAYER_CONTROLS else RULES[name]


_SAME_FAMILY = (
    "it is weighted_sum with weights that sum to one: W_base + l (W_mllm - W_base) is l W_mllm + (1 - l) W_base; "
    "'normalized' of any weights a and b is the same with l = a / (a + b)"
)
_DEGENERATE = "degenerate with one task vector: "
_NOT_RULES = {
    "randomlayers": "it is a control of `plam sweep` (--controls), which draws layers; a spec names them, as 3+9+20",
    "linear": _SAME_FAMILY,
    "wiseft": _SAME_FAMILY,
    "average": _SAME_FAMILY,
    "wudi": _DEGENERATE + "its optimum is the task vector itself, so it is weighted_sum",
    "optmerge": _DEGENERATE + "its optimum is the task vector itself, so it is weighted_sum",
    "tsv": _DEGENERATE + "each task's share of the rank is all of it, so it is weighted_sum",
    "tsvm": _DEGENERATE + "each task's share of the rank is all of it, so it is weighted_sum",
    "sce": _DEGENERATE + "the variance between task vectors, by which it selects entries, is zero",
    "modelstock": _DEGENERATE + "it takes the angle between two tuned models and their ancestor",
}


def why_not(name: str) -> str | None:
    """Why a rule that the literature has under some name is none here; None for any other name.

    Args:
        name: as somebody wrote it.
    """
    return _NOT_RULES.get(re.sub(r"[^a-z]", "", name[:100].lower())) or None
