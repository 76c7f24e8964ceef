"""The functions of the merge rules by name, those of one's own, and what a rule draws its random numbers from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from plam_eval import rules
from plam_eval.merging import ancestor_rules, pair_rules
from plam_eval.merging.names import Key

# (W_mllm, W_base, weights, generator, **parameters) -> merged tensor, all of one shape and in float32 (in float64 where
# a checkpoint is stored in it). The operands are the rule's to overwrite, which keeps the merge at two such tensors
# and what the rule declares. The generator is on the CPU, the tensors may be elsewhere.
RuleFunction = Callable[..., Tensor]

FUNCTIONS: dict[str, RuleFunction] = {
    name: vars(ancestor_rules if rule.needs_ancestor else pair_rules)[name] for name, rule in rules.RULES.items()
}
"""The function of every rule, by name."""


def register_rule(
    name: str,
    function: RuleFunction,
    *,
    role: Literal["merge", "control"] = "merge",
    draws: bool = False,
    elementwise: bool = False,
    meaning: str = "",
    reference: str = "",
    parameters: Sequence[rules.Parameter] = (),
) -> None:
    """Make a rule of your own known to specs, sweeps and reports by its name.

    Args:
        name: as a spec writes it: letters, digits, _ and -.
        function: (W_mllm, W_base, weights, generator) -> merged tensor. The tensors are of one shape, in float32, or in
            float64 where a checkpoint is stored in it, and the function's to overwrite; the generator is on the CPU.
        role: "merge" for a rule that brings something of the base in, which a sweep can sweep; "control" for one that a
            merge is held against, which a sweep runs beside every merge.
        draws: it uses the generator, so the spec's seed enters its digest.
        elementwise: each element of the result depends on the same element of the operands alone, so that tensors may
            be handed to the rule in parts, as vectors; others are handed over whole.
        meaning: what it makes, for readers of a report, as "a random change of the same size".
        reference: where it comes from.
        parameters: numbers that it takes beside the weights, which a spec gives under `parameters`; the function has
            each as a keyword argument of its name.

    Raises:
        InputError: `name` cannot be one, or is that of a rule of this package.
    """
    reads = ("weights", "seed") if draws else ("weights",)
    rules.register(
        rules.Rule(
            name,
            meaning,
            role=role,
            reads=reads,
            elementwise=elementwise,
            reference=reference,
            parameters=tuple(parameters),
        )
    )
    FUNCTIONS[name] = function


def generator_of(seed: int, key: Key) -> torch.Generator:
    """A CPU generator of this tensor alone: what it draws does not depend on order, device or sharding.

    Args:
        seed: the spec's.
        key: layer and suffix of the tensor.
    """
    digest = hashlib.sha256(f"{seed}:{key[0]}:{key[1]}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
