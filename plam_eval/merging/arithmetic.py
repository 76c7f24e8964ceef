"""One merged tensor: operands in working precision, the rule, one rounding. Every path of a merge goes through it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plam_eval.errors import MergeError
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.names import Key
from plam_eval.merging.pair_rules import frobenius_norm
from plam_eval.merging.plan import Source
from plam_eval.merging.rules import FUNCTIONS, generator_of
from plam_eval.rules import RULES
from plam_eval.spec import PlateauSpec


@dataclass(frozen=True)
class Operand:
    """A tensor as stored, and `where`: its name, checkpoint and file, for messages."""

    tensor: Tensor
    where: str

    def on(self, device: torch.device) -> Operand:
        """The operand there, still as it is stored: torch casts what it copies to a GPU before it copies, on the CPU.

        Args:
            device: where it is worked with.
        """
        return Operand(self.tensor.to(device), self.where)


@dataclass(frozen=True)
class TaskVectors:
    """How MLLM and base lie to their ancestor A, over tensors: sums of squares, and one of products.

    Attributes:
        model: ||W_mllm - A||^2.
        base: ||W_base - A||^2.
        product: the inner product of both.
    """

    model: float = 0.0
    base: float = 0.0
    product: float = 0.0

    def __add__(self, other: TaskVectors) -> TaskVectors:
        return TaskVectors(self.model + other.model, self.base + other.base, self.product + other.product)

    def to_dict(self) -> dict[str, float]:
        """Norms of W_mllm - A, of W_base - A and of W_mllm - W_base, and the cosine of the first two; 0 without one."""
        both = math.sqrt(self.model * self.base)
        apart = max(0.0, self.model + self.base - 2 * self.product)
        return {
            "model": math.sqrt(self.model),
            "base_model": math.sqrt(self.base),
            "difference": math.sqrt(apart),
            "cosine": self.product / both if both else 0.0,
        }

    def warning(self) -> str | None:
        """That what was given can hardly be the ancestor; None where it can."""
        norms = self.to_dict()
        if norms["model"] <= norms["difference"]:
            return None
        return (
            f"the MLLM is further from the ancestor ({norms['model']:.4g}) than from its base "
            f"({norms['difference']:.4g}), so this is probably not the checkpoint that both were tuned from"
        )


@dataclass(frozen=True)
class TensorChange:
    """Frobenius norms of what a merge changed in one tensor, and of the plain tensor, in the dtype of the result."""

    difference: float
    plain: float
    vectors: TaskVectors | None = None


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
    spec: PlateauSpec,
    key: Key,
    model: Operand,
    base: Operand,
    out: Tensor,
    buffers: Buffers,
    ancestor: Operand | None = None,
) -> TensorChange:
    """One tensor: computed on the device of `out`, and rounded once into it, part by part.

    In float32, or in float64 where one of the operands is stored in it, whose extra bits a cast would round first.

    Args:
        spec: the rule, its weights and its seed.
        key: layer and suffix of the tensor, on which weights may depend, and what a rule draws.
        model: W_mllm, as stored.
        base: W_base, as stored.
        out: where the result is written, of the operands' shape; it may be the MLLM's own tensor.
        buffers: memory to work in.
        ancestor: A, as stored, where the rule takes it.

    Raises:
        MergeError: the operands are of another shape than `out`, or hold NaN or Inf, or the result overflows. It may
            leave `out` written in part.
    """
    operands = [operand for operand in (model, base, ancestor) if operand is not None]
    is_wide = any(operand.tensor.dtype == torch.float64 for operand in operands)
    working = torch.float64 if is_wide else torch.float32
    function, generator, weights = FUNCTIONS[spec.rule], generator_of(spec.seed, key), spec.weights_at(key[0])
    whole = not RULES[spec.rule].elementwise
    if wrong := [operand for operand in operands if operand.tensor.shape != out.shape]:
        shapes = ", ".join(f"{operand.where} is {list(operand.tensor.shape)}" for operand in wrong)
        raise MergeError(f"{shapes}; expected {list(out.shape)}, as its header said. Download it again")
    flat = out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype, device=out.device)
    stored, other = (operand.on(out.device).tensor.reshape(-1) for operand in (model, base))
    size = flat.numel() if whole else min(flat.numel(), _PART if out.device.type == "cpu" else _LARGE_PART)
    change, total, vectors = 0.0, 0.0, TaskVectors() if ancestor is not None else None
    for start in range(0, flat.numel(), max(1, size)):
        span = slice(start, min(start + size, flat.numel()))
        length = span.stop - start
        one, two = (buffers.take(which, out, length, working) for which in (0, 1))
        one.copy_(stored[span])
        two.copy_(other[span])
        squares = sum_of_squares(one)
        if not (math.isfinite(squares) and math.isfinite(sum_of_squares(two))):
            raise MergeError(*(not_finite(*operands) or _too_large(*operands)))
        shape = out.shape if whole else (length,)
        more: dict[str, Any] = {**spec.parameters}
        if ancestor is not None and vectors is not None:
            three = buffers.take(4, out, length, working).copy_(ancestor.tensor.reshape(-1)[span])
            if not math.isfinite(sum_of_squares(three)):
                raise MergeError(*(not_finite(*operands) or _too_large(*operands)))
            vectors += _task_vectors(one, two, three, buffers.take(5, out, length, working))
            more["ancestor"] = three.view(shape)
        merged = function(one.view(shape), two.view(shape), weights, generator, **more).reshape(-1)
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
    return TensorChange(math.sqrt(change), math.sqrt(total), vectors)


def _task_vectors(one: Tensor, two: Tensor, three: Tensor, space: Tensor) -> TaskVectors:
    """Of vectors, by 2 x.y = x^2 + y^2 - (x - y)^2: one vector of space is enough."""
    pairs = (one, three), (two, three), (one, two)
    model, base, apart = (sum_of_squares(torch.sub(a, b, out=space)) for a, b in pairs)
    return TaskVectors(model, base, (model + base - apart) / 2)


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
    """||W_new - W_mllm||_F and ||W_mllm||_F per layer, as sums of squares; `count` tensors of all layers.

    `vectors` has sums over all tensors, where there is an ancestor.
    """

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, float]] = {}
        self.count = 0
        self.vectors: TaskVectors | None = None

    def add(self, layer: int, change: TensorChange) -> None:
        """Count one more tensor.

        Args:
            layer: the decoder layer that it is in.
            change: the norms of what the merge changed in it, and of its plain values.
        """
        difference, plain = self._sums.get(layer, (0.0, 0.0))
        self._sums[layer] = difference + change.difference**2, plain + change.plain**2
        self.count += 1
        if change.vectors is not None:
            self.vectors = (self.vectors or TaskVectors()) + change.vectors

    def warnings(self) -> tuple[str, ...]:
        """What the tensors themselves have shown, beside what was seen in headers."""
        warning = self.vectors.warning() if self.vectors is not None else None
        return (warning,) if warning else ()

    def of_ancestor(self, ancestor: Checkpoint | None) -> dict[str, Any]:
        """The fields of a `MergeReport` that only a merge with an ancestor has; none without one.

        Args:
            ancestor: that the tensors were merged with.
        """
        if ancestor is None or self.vectors is None:
            return {}
        return {
            "ancestor": ancestor.name,
            "ancestor_commit": ancestor.recorded_commit,
            "task_vectors": self.vectors.to_dict(),
        }

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
