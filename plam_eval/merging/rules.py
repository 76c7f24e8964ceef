"""Merge rules by name: the paper's weighted sum and its controls. Another published rule joins by `register_rule`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from plam_eval import spec as specs
from plam_eval.merging.names import Key
from plam_eval.spec import Weights

# (W_mllm, W_base, weights, generator) -> merged tensor, all of one shape and in float32 (in float64 where a checkpoint
# is stored in it). The operands are the rule's to overwrite, which keeps the merge at two such tensors. The generator
# is on the CPU, the tensors may be elsewhere.
Rule = Callable[[Tensor, Tensor, Weights, torch.Generator], Tensor]
RULES: dict[str, Rule] = {}
ELEMENTWISE: set[str] = set()
"""Rules by which an element of the result depends on the same element of the operands alone, whatever the part."""

_PART = 1 << 18  # elements


def register_rule(name: str, rule: Rule, *, draws: bool = False, elementwise: bool = False) -> None:
    """Make a rule known to specs by name.

    Args:
        draws: it uses the generator, so the spec's seed enters its digest.
        elementwise: each element of the result depends on the same element of the operands alone, so that tensors may
            be handed to the rule in parts, as vectors; others are handed over whole.
    """
    RULES[name] = rule
    ELEMENTWISE.discard(name)
    if elementwise:
        ELEMENTWISE.add(name)
    specs.RULES[name] = draws


def weighted_sum(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """w_model * W_mllm + w_base * W_base, not normalised (arXiv 2601.07645)."""
    if weights.base_model == 0:  # a zero term is left out: adding it would turn -0.0 into 0.0
        return w_mllm.mul_(weights.model)
    if weights.model == 0:
        return w_base.mul_(weights.base_model)
    return w_mllm.mul_(weights.model).add_(w_base.mul_(weights.base_model))


def self_scale(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """Control: (w_model + w_base) * W_mllm, the scale of the merge without the base."""
    return w_mllm.mul_(specs.scale(weights.model + weights.base_model))


def normalized(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """Control: the weights divided by their sum, the base without the scale."""
    model, base_model = specs.normalized_weights(weights)
    return weighted_sum(w_mllm, w_base, Weights(model=model, base_model=base_model), generator)


def noise(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """Control: W_mllm plus a random (Gaussian) direction of the same Frobenius norm as the merge's change."""
    change = norm(w_base.mul_(weights.base_model).add_(w_mllm, alpha=weights.model - 1))
    if change == 0:
        return w_mllm
    w_base.copy_(torch.randn(w_mllm.shape, generator=generator))
    return w_mllm.add_(w_base.mul_(change / norm(w_base)))


for _rule in (weighted_sum, self_scale, normalized):
    register_rule(_rule.__name__, _rule, elementwise=True)
register_rule("noise", noise, draws=True)


def norm(tensor: Tensor, minus: Tensor | None = None) -> float:
    """Frobenius norm of `tensor`, or of `tensor - minus`.

    In float64, so that every device and thread count comes to the same float32 scale; in parts, to need little memory.
    """
    parts = tensor.flatten().split(_PART)
    others = minus.flatten().split(_PART) if minus is not None else (0.0,) * len(parts)
    squares = [
        part.to(torch.float64, copy=True).sub_(other).square_().sum() for part, other in zip(parts, others, strict=True)
    ]
    return math.sqrt(torch.stack(squares).sum().item())


def generator_of(seed: int, key: Key) -> torch.Generator:
    """A CPU generator of this tensor alone: what it draws does not depend on order, device or sharding."""
    digest = hashlib.sha256(f"{seed}:{key[0]}:{key[1]}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
