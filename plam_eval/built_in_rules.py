"""The records of this package's merge rules and controls; their functions are in `pair_rules` and `ancestor_rules`.

A rule is added in two files: its function there (of `plam_eval.merging`), one record here. Specs, sweeps, reports,
figures and the command line read the record; nothing else lists rules by name. No torch is loaded, so that a spec can
be checked without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from plam_eval.rule_parameters import Parameter
from plam_eval.rule_record import Coefficients, Rule, normalized_weights, total_weight, without_negative_zero

WEIGHTED_SUM = "weighted_sum"
"""The rule of a spec that names none."""
SELF_SCALE = "self_scale"
"""The control that verdicts hold a merge against: the merge's scale without its base."""
NORMALIZED = "normalized"
"""The control that is the merge without its scale."""
TASK_ARITHMETIC = "task_arithmetic"
"""The merge without the share of the ancestor by which its weights exceed one."""

RANDOM_LAYERS = "random_layers"
"""The control that asks whether the layers are special: the same merge in as many others."""


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


def _left_at(rule: str = WEIGHTED_SUM, **values: float) -> Callable[[Mapping[str, float]], str | None]:
    """That a rule is another one at a value of a parameter."""
    return lambda given: rule if all(given[name] == value for name, value in values.items()) else None


def _left_of_breadcrumbs(given: Mapping[str, float]) -> str | None:
    if given["density"] == 1:
        return WEIGHTED_SUM
    return None if given["gamma"] else "trim"


def _clash_of_della(values: Mapping[str, float]) -> str | None:
    density, epsilon = values["density"], values["epsilon"]
    if density - epsilon <= 0:
        return (
            f"della: density - epsilon is {density - epsilon:g}; expected more than 0, the least that is kept of a row"
        )
    return _above_one("della", "epsilon", density + epsilon)


def _above_ancestor(weights: Coefficients, name: str) -> tuple[str, Coefficients]:
    """Weights that sum to one leave no share of the ancestor."""
    return (name, weights) if total_weight(weights) != 1 else (WEIGHTED_SUM, weights)


def _from_ancestor(weights: Coefficients, name: str) -> tuple[str, Coefficients]:
    """Without a share of either task vector nothing is left but the ancestor."""
    return (name, weights) if weights != (0, 0) else (TASK_ARITHMETIC, weights)


_DENSITY_OF_TIES = Parameter(
    "density", "share of the entries of a task vector that are kept", 0.2, 0, 1, open_ends=("least",)
)
_DROP_RATE = Parameter("drop_rate", "share of the entries that are dropped", 0.9, 0, 1, open_ends=("most",))


RECORDS: tuple[Rule, ...] = (
    Rule(
        WEIGHTED_SUM,
        "w_model W_mllm + w_base W_base, not normalised",
        elementwise=True,
        reference="PlaM, arXiv 2601.07645",
        equal_to=lambda weights: _sum(without_negative_zero(weights)),
        colour="#000000",
        mark="o",
    ),
    Rule(
        SELF_SCALE,
        "the model's own weights times the same sum",
        role="control",
        elementwise=True,
        equal_to=_scale_alone,
        colour="#D55E00",
        mark="s",
    ),
    Rule(
        NORMALIZED,
        "the merge with weights that sum to one",
        role="control",
        elementwise=True,
        equal_to=lambda weights: _sum(normalized_weights(weights)),
        refused=_zero_sum,
        colour="#0072B2",
        mark="^",
    ),
    Rule(
        "noise",
        "a random change of the same size",
        role="control",
        reads=("weights", "seed"),
        memory=1,
        colour="#8C6D00",
        mark="x",
    ),
    Rule(
        "trim",
        "the entries in which MLLM and base differ most, the base elsewhere",
        reference="TIES-merging with one task vector, arXiv 2306.01708",
        equal_to=lambda weights: _task_vector(weights, "trim"),
        parameters=(
            Parameter("density", "share of the entries of a tensor that are kept", 0.2, 0, 1, open_ends=("least",)),
        ),
        leaves=_left_at(density=1),
        unit_is_plain=False,
        memory=4,
        mark="v",
    ),
    Rule(
        "dare",
        "random entries of the difference to the base, larger by as much as was dropped",
        reads=("weights", "seed"),
        reference="DARE, arXiv 2311.03099",
        equal_to=lambda weights: _task_vector(weights, "dare"),
        parameters=(_DROP_RATE,),
        leaves=_left_at(drop_rate=0),
        unit_is_plain=False,
        memory=1.25,
        mark="<",
    ),
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
        leaves=_left_at(density=1),
        unit_is_plain=False,
        memory=1.5,
        mark=">",
    ),
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
        leaves=_left_of_breadcrumbs,
        unit_is_plain=False,
        memory=4,
        mark="p",
    ),
    Rule(
        "slerp",
        "the way along the sphere from base to MLLM, as far as the MLLM's share of the weights, times their sum",
        reference="Shoemake 1985",
        refused=_in_between,
        equal_to=lambda weights: _sum(weights) if 0 in weights else ("slerp", weights),
        mark="*",
    ),
    Rule(
        "nearswap",
        "the weighted sum, but no entry further from the MLLM's than t",
        elementwise=True,
        reference="the method of this name in mergekit's documentation, which is this with the weights 0 + 1",
        parameters=(Parameter("t", "the most by which an entry may change", open_ends=("least",)),),
        mark="h",
    ),
    Rule(
        "iso_c",
        "the difference to the base with all its singular values made their mean",
        reference="Iso-C, arXiv 2502.04959",
        equal_to=lambda weights: _task_vector(weights, "iso_c"),
        unit_is_plain=False,
        memory=16,
        growth=1.5,
        mark="8",
    ),
    Rule(
        TASK_ARITHMETIC,
        "the ancestor plus what MLLM and base have learnt since, each by its weight",
        reads=("weights", "ancestor"),
        elementwise=True,
        reference="task arithmetic, arXiv 2212.04089",
        equal_to=lambda weights: _above_ancestor(weights, TASK_ARITHMETIC),
        mark="P",
    ),
    Rule(
        "from_ancestor",
        "the same merge without the share of the ancestor by which its weights exceed one",
        role="control",
        reads=("weights", "ancestor"),
        elementwise=True,
        equal_to=lambda weights: _above_ancestor(weights, TASK_ARITHMETIC),
        colour="#009E73",
        mark="P",
    ),
    Rule(
        "ties",
        "the ancestor plus the largest changes of MLLM and base since, where they agree in sign",
        reads=("weights", "ancestor"),
        reference="TIES-merging, arXiv 2306.01708",
        equal_to=lambda weights: _from_ancestor(weights, "ties"),
        parameters=(_DENSITY_OF_TIES,),
        unit_is_plain=False,
        memory=6,
        mark="X",
    ),
    Rule(
        "dare_both",
        "the ancestor plus random entries of what MLLM and base have learnt since, larger by as much as was dropped",
        reads=("weights", "ancestor", "seed"),
        reference="DARE, arXiv 2311.03099",
        equal_to=lambda weights: _from_ancestor(weights, "dare_both"),
        parameters=(_DROP_RATE,),
        leaves=_left_at(TASK_ARITHMETIC, drop_rate=0),
        unit_is_plain=False,
        memory=1.25,
        mark="H",
    ),
    Rule(
        "dim3",
        "the ancestor plus the changes of MLLM and base since, more of columns that have changed much",
        reads=("weights", "ancestor"),
        reference="DiM3, arXiv 2605.12960, as its code has it (github.com/wzj1718/DiM)",
        equal_to=lambda weights: _from_ancestor(weights, "dim3"),
        parameters=(Parameter("above_mean", "columns of a place above so many times the mean count in full", 1.0),),
        unit_is_plain=False,
        memory=0.5,
        mark="1",
    ),
    Rule(
        "diga_ties",
        "TIES on what turns the ancestor and on the rest of what MLLM and base have learnt since, one by one",
        reads=("weights", "ancestor"),
        reference="DiGA, 2026 (github.com/wzj1718/DiGA), around TIES-merging, arXiv 2306.01708",
        equal_to=lambda weights: _from_ancestor(weights, "diga_ties"),
        parameters=(_DENSITY_OF_TIES,),
        unit_is_plain=False,
        memory=9,
        growth=1.5,
        mark="+",
    ),
    Rule(
        "diga_dare_both",
        "DARE on what turns the ancestor and on the rest of what MLLM and base have learnt since, one by one",
        reads=("weights", "ancestor", "seed"),
        reference="DiGA, 2026 (github.com/wzj1718/DiGA), around DARE, arXiv 2311.03099",
        equal_to=lambda weights: _from_ancestor(weights, "diga_dare_both"),
        parameters=(_DROP_RATE,),
        leaves=_left_at(TASK_ARITHMETIC, drop_rate=0),
        unit_is_plain=False,
        memory=9,
        growth=1.5,
        mark="2",
    ),
)
"""The rules of this package, in the order in which reports list them."""

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

_SAME_FAMILY = (
    "it is weighted_sum with weights that sum to one: W_base + l (W_mllm - W_base) is l W_mllm + (1 - l) W_base; "
    "'normalized' of any weights a and b is the same with l = a / (a + b)"
)
_NOT_ESTABLISHED = "not established: its formula was not confirmed by its paper or its code, "
_DEGENERATE = "degenerate with one task vector: "
NOT_RULES: dict[str, str] = {
    "randomlayers": "it is a control of `plam sweep` (--controls), which draws layers; a spec names them, as 3+9+20",
    "linear": _SAME_FAMILY,
    "wiseft": _SAME_FAMILY,
    "average": _SAME_FAMILY,
    "wudi": _DEGENERATE + "its optimum is the task vector itself, so it is weighted_sum",
    "optmerge": _DEGENERATE + "its optimum is the task vector itself, so it is weighted_sum",
    "tsv": _DEGENERATE + "each task's share of the rank is all of it, so it is weighted_sum",
    "tsvm": _DEGENERATE + "each task's share of the rank is all of it, so it is weighted_sum",
    "sce": _DEGENERATE + "the variance between task vectors, by which it selects entries, is zero",
    "frank": _NOT_ESTABLISHED + "arXiv 2505.16151",
    "ipmerging": _NOT_ESTABLISHED + "arXiv 2510.14387",
    "neuronfusion": _NOT_ESTABLISHED + "arXiv 2505.16703",
    "diga": "it goes around another rule: diga_ties, diga_dare_both",
    "digataskarithmetic": "DiGA changes nothing of a linear rule, so it is task_arithmetic",
    "darelinear": "it is dare_both, DARE on both task vectors, or dare, on the difference between MLLM and base",
    "modelstock": _DEGENERATE + "it takes the angle between two tuned models and their ancestor",
}
"""Rules of the literature that are none here, by their name in letters alone, and why."""
