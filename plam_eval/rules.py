"""Which merge rules and controls there are: those of this package, and those that a process registers."""

from __future__ import annotations

import re

from plam_eval.built_in_rules import (
    LAYER_CONTROLS,
    NORMALIZED,
    NOT_RULES,
    RANDOM_LAYERS,
    RECORDS,
    SELF_SCALE,
    WEIGHTED_SUM,
)
from plam_eval.errors import InputError, quoted
from plam_eval.rule_parameters import Parameter
from plam_eval.rule_record import Coefficients, Rule, normalized_weights, total_weight, without_negative_zero

__all__ = [
    "LAYER_CONTROLS",
    "NORMALIZED",
    "RANDOM_LAYERS",
    "RULES",
    "SELF_SCALE",
    "WEIGHTED_SUM",
    "Coefficients",
    "Parameter",
    "Rule",
    "control_names",
    "is_built_in",
    "normalized_weights",
    "register",
    "rule_or_control",
    "total_weight",
    "why_not",
    "without_negative_zero",
]

RULES: dict[str, Rule] = {rule.name: rule for rule in RECORDS}
"""Every rule that a spec can name, in the order in which reports list them."""

_BUILT_IN = frozenset((*RULES, *LAYER_CONTROLS))
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


def rule_or_control(name: str) -> Rule:
    """The record of a rule, or of a control that changes a merge's layers.

    Args:
        name: of either.

    Raises:
        KeyError: there is none of that name.
    """
    return LAYER_CONTROLS[name] if name in LAYER_CONTROLS else RULES[name]


def why_not(name: str) -> str | None:
    """Why a rule that the literature has under some name is none here; None for any other name.

    Args:
        name: as somebody wrote it.
    """
    return NOT_RULES.get(re.sub(r"[^a-z]", "", name[:100].lower())) or None
