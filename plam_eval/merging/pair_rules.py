"""The arithmetic of the merge rules that take an MLLM and its base: a function each, of the name of its record."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plam_eval import rules
from plam_eval.spec import Weights

CHUNK = 1 << 18
"""Elements of the parts in which sums over a tensor are taken."""
_ALIKE = 0.9995  # cosine above which the angle between two tensors is not told from 0


def weighted_sum(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator | None = None) -> Tensor:
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


def trim(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator, *, density: float) -> Tensor:
    """The weighted sum in the entries where MLLM and base differ most, W_base of the same scale in the others.

    With weights of l + (1 - l) this is W_base + l trim(W_mllm - W_base), TIES-merging (arXiv 2306.01708) with one task
    vector. Entries as large as the smallest that is kept are kept as well, so that no order of equals matters.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: w_model and w_base.
        generator: unused: nothing is drawn.
        density: share of the entries that are kept.
    """
    size, count = (w_mllm - w_base).abs_(), int(density * w_mllm.numel())
    if count == 0:
        return w_base.mul_(rules.total_weight(weights.coefficients))
    smallest = smallest_from(size, size.numel() - count)
    return _sum_where(size >= smallest, w_mllm, w_base, weights)


def breadcrumbs(
    w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator, *, density: float, gamma: float
) -> Tensor:
    """As `trim`, without the largest entries (arXiv 2312.06795). Entries that equal a limit are kept.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: w_model and w_base.
        generator: unused: nothing is drawn.
        density: share of the entries that are kept.
        gamma: share of the entries that are dropped as too large.
    """
    size = (w_mllm - w_base).abs_()
    end = size.numel() - int(gamma * size.numel())
    count = min(end, int(density * size.numel()))
    if count == 0:
        return w_base.mul_(rules.total_weight(weights.coefficients))
    smallest, largest = smallest_from(size, end - count), smallest_from(size, end - 1)
    return _sum_where((size >= smallest) & (size <= largest), w_mllm, w_base, weights)


def smallest_from(values: Tensor, place: int) -> Tensor:
    """The value that so many others come before, in order of size.

    Args:
        values: of any shape.
        place: how many others.
    """
    return values.flatten().kthvalue(place + 1).values


def _sum_where(kept: Tensor, w_mllm: Tensor, w_base: Tensor, weights: Weights) -> Tensor:
    """The weighted sum where `kept`, elsewhere W_base times the sum of the weights."""
    base = w_base * rules.total_weight(weights.coefficients)
    merged = weighted_sum(w_mllm, w_base, weights)
    return merged.copy_(torch.where(kept, merged, base))


def dare(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator, *, drop_rate: float) -> Tensor:
    """(w_model + w_base) W_base + w_model mask (W_mllm - W_base) / (1 - drop_rate), the mask random (arXiv 2311.03099).

    Its mean over seeds is the weighted sum.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: w_model and w_base.
        generator: of the mask, on the CPU.
        drop_rate: share of the entries that are dropped.
    """
    if drop_rate == 0:  # bit by bit, where adding a difference would round
        return weighted_sum(w_mllm, w_base, weights)
    kept = (torch.rand(w_mllm.shape, generator=generator) >= drop_rate).to(w_mllm.device)
    change = w_mllm.sub_(w_base).mul_(kept).mul_(weights.model / (1 - drop_rate))
    return change.add_(w_base.mul_(rules.total_weight(weights.coefficients)))


def della(
    w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator, *, density: float, epsilon: float
) -> Tensor:
    """As `dare`, keeping entries by their rank within a row (MagPrune, arXiv 2406.11617).

    The smallest entry of a row is kept with probability density - epsilon, the largest with density + epsilon, and each
    is divided by its own. A vector is one row.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: w_model and w_base.
        generator: of what is kept, on the CPU.
        density: share of the entries that are kept, on average.
        epsilon: half of the difference between the largest and the smallest probability.
    """
    if density == 1:
        return weighted_sum(w_mllm, w_base, weights)
    drawn = torch.rand(w_mllm.shape, generator=generator).view(-1, w_mllm.shape[-1])
    change = w_mllm.sub_(w_base).view(-1, w_mllm.shape[-1])
    columns = change.shape[1]
    ranks = torch.arange(columns, device=change.device)
    for start in range(0, len(change), max(1, CHUNK // columns)):
        rows = slice(start, start + max(1, CHUNK // columns))
        part = change[rows]
        order = part.abs().argsort(dim=1, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, ranks.expand_as(order))
        kept = (rank * (2 * epsilon / max(1, columns - 1)) + (density - epsilon if columns > 1 else density)).to(part)
        part.mul_(drawn[rows].to(part.device) < kept).div_(kept)
    change.mul_(weights.model)
    return change.view(w_base.shape).add_(w_base.mul_(rules.total_weight(weights.coefficients)))


def slerp(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of the flattened tensors, times the sum of the weights.

    How far it goes from W_base to W_mllm is w_model / (w_model + w_base). Where the cosine between them is
    beyond 0.9995 either way it is the weighted sum, as in other implementations.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: w_model and w_base, neither below zero.
        generator: unused: nothing is drawn.
    """
    norms = frobenius_norm(w_mllm) * frobenius_norm(w_base)
    cosine = inner_product(w_mllm, w_base) / norms if norms else 1.0
    if abs(cosine) > _ALIKE:
        return weighted_sum(w_mllm, w_base, weights)
    total, angle = rules.total_weight(weights.coefficients), math.acos(cosine)
    share = weights.model / (weights.model + weights.base_model)
    model, base_model = (total * math.sin(s * angle) / math.sin(angle) for s in (share, 1 - share))
    return weighted_sum(w_mllm, w_base, Weights(model=model, base_model=base_model))


def nearswap(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator, *, t: float) -> Tensor:
    """The weighted sum where it is no further than `t` from W_mllm, elsewhere W_mllm moved by `t` towards it.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: w_model and w_base.
        generator: unused: nothing is drawn.
        t: the most by which an entry changes.
    """
    merged = weighted_sum(w_mllm.clone(), w_base, weights)
    change = merged - w_mllm
    return torch.where(change.abs() <= t, merged, w_mllm.add_(change.clamp_(-t, t)))


def iso_c(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """(w_model + w_base) W_base + w_model mean(S) U V', where W_mllm - W_base = U S V' (Iso-C, arXiv 2502.04959).

    In float64, since directions of small singular values are ill-conditioned. Directions in which the sources do not
    differ, to float32's precision, have none and stay out. A vector is the weighted sum: its one singular value is the
    mean of itself.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: w_model and w_base.
        generator: unused: nothing is drawn.
    """
    if w_mllm.dim() < 2:
        return weighted_sum(w_mllm, w_base, weights)
    difference = w_mllm.sub_(w_base).double()
    u, values, v = torch.linalg.svd(difference.flatten(1), full_matrices=False)
    is_there = values > values[0] * max(difference.shape) * torch.finfo(torch.float32).eps
    change = (u * is_there) @ v * (values.mean() * weights.model)
    return w_mllm.copy_(change.view(w_mllm.shape)).add_(w_base.mul_(rules.total_weight(weights.coefficients)))


def frobenius_norm(tensor: Tensor) -> float:
    """Frobenius norm of a tensor.

    In float64, so that every device and thread count comes to the same float32 scale; in parts, to need little memory.

    Args:
        tensor: of any shape.
    """
    chunks = tensor.flatten().split(CHUNK)
    squares = [chunk.to(torch.float64, copy=True).square_().sum() for chunk in chunks]
    return math.sqrt(torch.stack(squares).sum().item())


def inner_product(one: Tensor, other: Tensor) -> float:
    """Sum of the products of their elements, in float64 and in parts, as `frobenius_norm`.

    Args:
        one: of any shape.
        other: of the same.
    """
    parts = zip(one.flatten().split(CHUNK), other.flatten().split(CHUNK), strict=True)
    return float(torch.stack([(a.double() * b.double()).sum() for a, b in parts]).sum())
