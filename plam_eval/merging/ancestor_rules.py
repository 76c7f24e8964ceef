"""The arithmetic of the merge rules that take the ancestor of MLLM and base as well: a function each, as `pair_rules`.

Their task vectors are tau_m = W_mllm - A and tau_b = W_base - A, where A is the ancestor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from plam_eval import rules
from plam_eval.merging.pair_rules import CHUNK, smallest_from, weighted_sum
from plam_eval.spec import Weights


def task_arithmetic(
    w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator, *, ancestor: Tensor
) -> Tensor:
    """A + w_model (W_mllm - A) + w_base (W_base - A), where A is the ancestor (arXiv 2212.04089).

    This is the weighted sum and 1 - w_model - w_base of A, and is computed so: weights that sum to one do without A.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: w_model and w_base.
        generator: unused: nothing is drawn.
        ancestor: A, of the same shape and dtype, overwritten.
    """
    merged = weighted_sum(w_mllm, w_base, weights)
    share = 1 - rules.total_weight(weights.coefficients)
    return merged.add_(ancestor.mul_(share)) if share else merged


from_ancestor = task_arithmetic


def ties(
    w_mllm: Tensor,
    w_base: Tensor,
    weights: Weights,
    generator: torch.Generator,
    *,
    ancestor: Tensor,
    density: float,
) -> Tensor:
    """A plus the mean of the weighted task vectors that have the sign of their sum (TIES-merging, arXiv 2306.01708).

    Of W_mllm - A and W_base - A the `density` largest entries are kept each, equals with them, and weighted. In every
    entry those that have the sign of the sum of both are averaged, so that one that stands alone counts in full.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: w_model and w_base.
        generator: unused: nothing is drawn.
        ancestor: A, of the same shape and dtype, overwritten.
        density: share of the entries of either task vector that are kept.
    """
    for vector, weight in _weighed(w_mllm, w_base, weights):
        size, count = vector.sub_(ancestor).abs(), int(density * vector.numel())
        if count:
            vector.mul_(size >= smallest_from(size, size.numel() - count)).mul_(weight)
        else:
            vector.zero_()
    is_positive = w_mllm + w_base >= 0
    counts = torch.zeros_like(w_mllm)
    for vector in (w_mllm, w_base):
        agrees = torch.where(is_positive, vector > 0, vector < 0)
        vector.mul_(agrees)
        counts.add_(agrees)
    return ancestor.add_(w_mllm.add_(w_base).div_(counts.clamp_(min=1)))


def _weighed(w_mllm: Tensor, w_base: Tensor, weights: Weights) -> tuple[tuple[Tensor, float], tuple[Tensor, float]]:
    return (w_mllm, weights.model), (w_base, weights.base_model)


def dare_both(
    w_mllm: Tensor,
    w_base: Tensor,
    weights: Weights,
    generator: torch.Generator,
    *,
    ancestor: Tensor,
    drop_rate: float,
) -> Tensor:
    """A + (w_model mask_m tau_m + w_base mask_b tau_b) / (1 - drop_rate), both masks random (arXiv 2311.03099).

    The masks are drawn one after the other, that of the MLLM first. The mean over seeds is `task_arithmetic`.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: w_model and w_base.
        generator: of the masks, on the CPU.
        ancestor: A, of the same shape and dtype, overwritten.
        drop_rate: share of the entries of either task vector that are dropped.
    """
    if drop_rate == 0:  # bit by bit, where adding differences would round
        return task_arithmetic(w_mllm, w_base, weights, generator, ancestor=ancestor)
    for vector, weight in _weighed(w_mllm, w_base, weights):
        kept = (torch.rand(vector.shape, generator=generator) >= drop_rate).to(vector.device)
        vector.sub_(ancestor).mul_(kept).mul_(weight / (1 - drop_rate))
    return ancestor.add_(w_mllm).add_(w_base)


def dim3(
    w_mllm: Tensor,
    w_base: Tensor,
    weights: Weights,
    generator: torch.Generator,
    *,
    ancestor: Tensor,
    above_mean: float,
) -> Tensor:
    """A + w_model omega_m tau_m + w_base omega_b tau_b, a share omega per column and source (DiM3, arXiv 2605.12960).

    A column's share is the mean of one for how much its norm and one for how much its direction (1 - cosine) is
    another than in A. Either comes of the column's place, the number of its tensor's columns that changed less: a
    softmax over both sources of place / columns, and 1 where the place is above `above_mean` times the mean place. So
    the authors' code has it (with an order of equals, which have one place here); weights of 1 + 1 are theirs. A column
    of zeros has no direction, and counts as perpendicular. In a vector the sizes of its entries' changes stand for
    places, as there.

    In float64, since 1 - cosine of columns that hardly differ is lost in float32.

    Args:
        w_mllm: W_mllm, overwritten.
        w_base: W_base, of the same shape and dtype, overwritten.
        weights: w_model and w_base.
        generator: unused: nothing is drawn.
        ancestor: A, of the same shape and dtype, overwritten.
        above_mean: how many times the mean place counts as much; with 2 none is, and the softmax stands alone.
    """
    sides = w_mllm, w_base
    if w_mllm.dim() < 2:
        sizes = torch.stack([torch.sub(side, ancestor).abs_().double() for side in sides])
        shares = _shares(sizes, sizes, above_mean * sizes.mean(dim=1, keepdim=True))
    else:
        columns, shares = w_mllm.flatten(1).shape[1], torch.zeros(())
        norms, directions = zip(*(_deviations(side.flatten(1), ancestor.flatten(1)) for side in sides), strict=True)
        for deviations in (norms, directions):
            stacked = torch.stack(deviations)
            places = torch.searchsorted(stacked.sort(dim=1).values, stacked).double()  # how many come before
            shares = shares.to(places) + _shares(places / columns, places, above_mean * (columns - 1) / 2) / 2
    for (side, weight), share in zip(_weighed(w_mllm, w_base, weights), shares, strict=True):
        change = side.sub_(ancestor)
        change = change.flatten(1) if change.dim() > 1 else change
        change.mul_((weight * share).to(change))
    return ancestor.add_(w_mllm).add_(w_base)


def _shares(salience: Tensor, values: Tensor, limit: Tensor | float) -> Tensor:
    """The softmax of salience over the sources (rows), 1 where values are above the limit."""
    return salience.softmax(dim=0).masked_fill_(values > limit, 1)


def _deviations(side: Tensor, ancestor: Tensor) -> tuple[Tensor, Tensor]:
    """How far each column's norm, and its direction, is from that of the ancestor; in parts, to need little memory."""
    squares, others, products = torch.zeros(3, side.shape[1], dtype=torch.float64, device=side.device)
    for one, other in zip(*(t.split(max(1, CHUNK // side.shape[1])) for t in (side, ancestor)), strict=True):
        wide, wide_other = one.double(), other.double()
        squares += (wide * wide).sum(dim=0)
        others += (wide_other * wide_other).sum(dim=0)
        products += (wide * wide_other).sum(dim=0)
    norms = (squares * others).sqrt()  # so that the cosine of equals is 1 to the last digit
    cosines = torch.where(norms > 0, products / norms, torch.zeros_like(norms))
    return (squares.sqrt() - others.sqrt()).abs(), 1 - cosines


def diga(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A rule applied to what turns the ancestor and to the rest of both task vectors, one after the other (DiGA, 2026).

    With the reduced QR decomposition A = Q H, each tau is T + R, where T = Q skew(Q' tau) is its orientation and R its
    structure, orthogonal to each other; with more columns than rows, all of it transposed. The rule's changes by both
    families are added to A. A linear rule comes out as it is. A vector has no QR: the rule is applied to it as it is.

    In float64, since Q is as ill-conditioned as A. T depends on the signs of Q's columns, which are those of
    Householder's reflections, as in the authors' code.

    Args:
        rule: one of this module whose change depends on the task vectors alone, by the name of its record.
    """

    @functools.wraps(rule)
    def on_both_families(
        w_mllm: Tensor,
        w_base: Tensor,
        weights: Weights,
        generator: torch.Generator,
        *,
        ancestor: Tensor,
        **parameters: float,
    ) -> Tensor:
        leaves = rules.RULES[rule.__name__].leaves
        if w_mllm.dim() < 2 or (leaves is not None and leaves(parameters) is not None):
            return rule(w_mllm, w_base, weights, generator, ancestor=ancestor, **parameters)
        turns = _split_off_turns(w_mllm, w_base, ancestor)
        for family in (turns, (w_mllm, w_base)):
            ancestor.add_(rule(*family, weights, generator, ancestor=torch.zeros_like(ancestor), **parameters))
        return ancestor

    return on_both_families


def _split_off_turns(w_mllm: Tensor, w_base: Tensor, ancestor: Tensor) -> tuple[Tensor, Tensor]:
    """The orientation of both task vectors; what is left of them, their structure, stands in W_mllm and W_base then."""
    rows, columns = ancestor.flatten(1).shape
    upright = (lambda matrix: matrix) if rows >= columns else (lambda matrix: matrix.T)
    q = torch.linalg.qr(upright(ancestor.flatten(1).double()))[0]
    turns = []
    for side in (w_mllm, w_base):
        product = q.T @ upright(side.sub_(ancestor).flatten(1).double())
        turn = upright(q @ (product - product.T).mul_(0.5)).to(side.dtype).reshape(side.shape)
        side.sub_(turn)
        turns.append(turn)
    return turns[0], turns[1]


diga_ties = diga(ties)
"""`ties` on orientation and structure."""
diga_dare_both = diga(dare_both)
"""`dare_both` on orientation and structure, with masks of their own."""
