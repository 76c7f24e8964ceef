"""The arithmetic of the merge rules: one function per rule, of the name that `plam_eval.rules` has it under."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from plam_eval import rules
from plam_eval.merging.names import Key
from plam_eval.spec import Weights

# (W_mllm, W_base, weights, generator) -> merged tensor, all of one shape and in float32 (in float64 where a checkpoint
# is stored in it). The operands are the rule's to overwrite, which keeps the merge at two such tensors. The generator
# is on the CPU, the tensors may be elsewhere.
RuleFunction = Callable[[Tensor, Tensor, Weights, torch.Generator], Tensor]

_CHUNK = 1 << 18  # elements


def weighted_sum(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """w_model * W_mllm + w_base * W_base, not normalised (arXiv 2601.07645).

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: w_model and w_base.
        generator: unused: nothing is drawn.
    """
    if weights.base_model == 0:  # a zero term is left out: adding it would turn -0.0 into 0.0
        return w_mllm.mul_(weights.model)
    if weights.model == 0:
        return w_base.mul_(weights.base_model)
    return w_mllm.mul_(weights.model).add_(w_base.mul_(weights.base_model))


def self_scale(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """(w_model + w_base) * W_mllm, the scale of the merge without the base.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: unused: the base has no share.
        weights: w_model and w_base, of which the sum is used.
        generator: unused: nothing is drawn.
    """
    return w_mllm.mul_(rules.total_weight(weights.coefficients))


def normalized(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """The weights divided by their sum, the base without the scale.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: w_model and w_base, of a sum other than zero.
        generator: unused: nothing is drawn.
    """
    model, base_model = rules.normalized_weights(weights.coefficients)
    return weighted_sum(w_mllm, w_base, Weights(model=model, base_model=base_model), generator)


def noise(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """W_mllm plus a random (Gaussian) direction of the same Frobenius norm as the merge's change.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: of the merge whose change gives the norm.
        generator: of the direction, on the CPU.
    """
    change = frobenius_norm(w_base.mul_(weights.base_model).add_(w_mllm, alpha=weights.model - 1))
    if change == 0:
        return w_mllm
    w_base.copy_(torch.randn(w_mllm.shape, generator=generator))
    return w_mllm.add_(w_base.mul_(change / frobenius_norm(w_base)))


FUNCTIONS: dict[str, RuleFunction] = {name: globals()[name] for name in rules.RULES}
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

    Raises:
        InputError: `name` cannot be one, or is that of a rule of this package.
    """
    parameters = ("weights", "seed") if draws else ("weights",)
    rules.register(
        rules.Rule(name, meaning, role=role, parameters=parameters, elementwise=elementwise, reference=reference)
    )
    FUNCTIONS[name] = function


def frobenius_norm(tensor: Tensor) -> float:
    """Frobenius norm of a tensor.

    In float64, so that every device and thread count comes to the same float32 scale; in parts, to need little memory.

    Args:
        tensor: of any shape.
    """
    chunks = tensor.flatten().split(_CHUNK)
    squares = [chunk.to(torch.float64, copy=True).square_().sum() for chunk in chunks]
    return math.sqrt(torch.stack(squares).sum().item())


def generator_of(seed: int, key: Key) -> torch.Generator:
    """A CPU generator of this tensor alone: what it draws does not depend on order, device or sharding.

    Args:
        seed: the spec's.
        key: layer and suffix of the tensor.
    """
    digest = hashlib.sha256(f"{seed}:{key[0]}:{key[1]}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
