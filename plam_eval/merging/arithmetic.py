"""One merged tensor: operands in working precision, the rule, one rounding. Every path of a merge goes through it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plam_eval.errors import MergeError
from plam_eval.merging.names import Key
from plam_eval.merging.plan import Source
from plam_eval.merging.rules import FUNCTIONS, frobenius_norm, generator_of
from plam_eval.rules import RULES
from plam_eval.spec import PlateauSpec


@dataclass(frozen=True)
class Operand:
    """A tensor as stored, and `where`: its name, checkpoint and file, for messages."""

    tensor: Tensor
    where: str


@dataclass(frozen=True)
class TensorChange:
    """Frobenius norms of what a merge changed in one tensor, and of the plain tensor, in the dtype of the result."""

    difference: float
    plain: float


_PART = 1 << 20  # elements on a CPU, so that what a part needs stays in its caches
_LARGE_PART = 1 << 26  # elsewhere, where each part waits for the device


class Buffers:
    """The memory that merging needs, taken once: operands of a part in working precision, and its rounded result."""

    def __init__(self) -> None:
        self._held: dict[tuple[torch.device, torch.dtype, int], Tensor] = {}

    def take(self, which: int, like: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        """A vector to write into, with whatever it held last.

        Args:
            which: number of the vector; one number gives the same memory again, as long as dtype and device are equal.
            like: a tensor on the device that it is needed on.
            size: elements.
            dtype: of them.
        """
        key = like.device, dtype, which
        if key not in self._held or len(self._held[key]) < size:
            self._held[key] = torch.empty(size, dtype=dtype, device=like.device)
        return self._held[key][:size]


def merge_tensor(
    spec: PlateauSpec, key: Key, model: Operand, base: Operand, out: Tensor, buffers: Buffers
) -> TensorChange:
    """One tensor: computed on the device of `out`, and rounded once into it, part by part.

    In float32, or in float64 where one of the operands is stored in it, whose extra bits a cast would round first.

    Args:
        spec: the rule, its weights and its seed.
        key: layer and suffix of the tensor, on which a rule that draws depends.
        model: W_mllm, as stored.
        base: W_base, as stored.
        out: where the result is written, of the operands' shape; it may be the MLLM's own tensor.
        buffers: memory to work in.

    Raises:
        MergeError: the operands are of another shape than `out`, or hold NaN or Inf, or the result overflows. It may
            leave `out` written in part.
    """
    working = torch.float64 if torch.float64 in (model.tensor.dtype, base.tensor.dtype) else torch.float32
    function, generator = FUNCTIONS[spec.rule], generator_of(spec.seed, key)
    whole = not RULES[spec.rule].elementwise
    if wrong := [operand for operand in (model, base) if operand.tensor.shape != out.shape]:
        shapes = ", ".join(f"{operand.where} is {list(operand.tensor.shape)}" for operand in wrong)
        raise MergeError(f"{shapes}; expected {list(out.shape)}, as its header said. Download it again")
    flat = out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype, device=out.device)
    stored, other = model.tensor.reshape(-1), base.tensor.reshape(-1)
    size = flat.numel() if whole else min(flat.numel(), _PART if out.device.type == "cpu" else _LARGE_PART)
    change = total = 0.0
    for start in range(0, flat.numel(), max(1, size)):
        span = slice(start, min(start + size, flat.numel()))
        length = span.stop - start
        one, two = (buffers.take(which, out, length, working) for which in (0, 1))
        one.copy_(stored[span])
        two.copy_(other[span])
        squares = sum_of_squares(one)
        if not (math.isfinite(squares) and math.isfinite(sum_of_squares(two))):
            raise MergeError(*(not_finite(model, base) or _too_large(model, base)))
        shape = out.shape if whole else (length,)
        merged = function(one.view(shape), two.view(shape), spec.weights, generator, **spec.parameters).reshape(-1)
        rounded = buffers.take(2, out, length, out.dtype).copy_(merged)
        one.copy_(stored[span])
        if stored.dtype != out.dtype:  # then plain is rounded, too
            one.copy_(buffers.take(3, out, length, out.dtype).copy_(one))
            squares = sum_of_squares(one)
        two.copy_(rounded).sub_(one)
        difference = sum_of_squares(two)
        if not math.isfinite(difference):
            raise MergeError(
                f"{model.where}: the merged tensor overflows {out.dtype}; use smaller weights or another dtype"
            )
        flat[span].copy_(rounded)
        change, total = change + difference, total + squares
    if not out.is_contiguous():
        out.copy_(flat.view(out.shape))
    return TensorChange(math.sqrt(change), math.sqrt(total))


def sum_of_squares(vector: Tensor) -> float:
    """Sum of squares: NaN or infinite exactly where an element is, also where float32 overflows or underflows.

    Args:
        vector: of any length.
    """
    squares = float(torch.dot(vector, vector))
    if squares == 0 or not math.isfinite(squares):
        return frobenius_norm(vector) ** 2 if bool(torch.isfinite(vector).all()) else math.nan
    return squares


def not_finite(*operands: Operand) -> list[str]:
    """A problem for each operand that holds NaN or Inf.

    Args:
        operands: of one tensor.
    """
    return [
        f"{operand.where} holds NaN or Inf; expected finite weights. Download it again"
        for operand in operands
        if not bool(torch.isfinite(operand.tensor).all())
    ]


def _too_large(*operands: Operand) -> list[str]:
    """For float64 alone, whose elements can be too large for a sum of their squares."""
    return [
        f"{operand.where} holds elements of up to {float(operand.tensor.abs().max()):.3g}; expected weights"
        for operand in operands
        if not math.isfinite(frobenius_norm(operand.tensor))
    ]


class LayerChanges:
    """||W_new - W_mllm||_F and ||W_mllm||_F per layer, as sums of squares; `count` tensors of all layers."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, float]] = {}
        self.count = 0

    def add(self, layer: int, change: TensorChange) -> None:
        """Count one more tensor.

        Args:
            layer: the decoder layer that it is in.
            change: the norms of what the merge changed in it, and of its plain values.
        """
        difference, plain = self._sums.get(layer, (0.0, 0.0))
        self._sums[layer] = difference + change.difference**2, plain + change.plain**2
        self.count += 1

    def relative(self) -> dict[int, float]:
        """Layer -> ||W_new - W_mllm||_F / ||W_mllm||_F over its tensors; 0 for a layer of zeros."""
        return {
            layer: math.sqrt(difference / plain) if plain else 0.0
            for layer, (difference, plain) in sorted(self._sums.items())
        }


def read_operand(source: Source, name: str) -> Operand:
    """A tensor of a checkpoint or of a loaded module.

    Args:
        source: what holds it.
        name: the tensor's, in there.
    """
    return Operand(source.tensor(name), f"{name} of {source.name} ({source.file(name)})")
