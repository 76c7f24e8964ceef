"""What tells the weights in a worker's memory from others, a number for each decoder layer.

vLLM's own `compute_weight_checksums` hashes parameters. Its CPU build packs the weights of linear layers where no
parameter shows them: their parameters are empty, and so those hashes stay as they are whatever is merged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from plam_eval.merging.names import decoder_tensor
from plam_eval.merging.undo import checksum_of

PROBES, _SEED = 4, 20
"""How many inputs a packed layer is probed with."""
REST = "rest"
"""The key of all that is in no decoder layer."""
UNREAD = "unread"
"""The key of parameters that are empty and cannot be probed: their names. Absent where there are none."""


def weight_checksums(model: nn.Module) -> dict[str, str]:
    """Of each decoder layer of a worker's share of a model ("layer 3"), and of the rest, a checksum: 16 hex digits.

    Equal weights of equal shape and dtype, on one device under one build of vLLM, have equal checksums. Of a parameter
    that can be read it is a sum over its bits, on its device, in which places count by blocks; of a linear layer whose
    weights are packed, one over the bits of its outputs for `PROBES` drawn inputs: a change of single weights may hide
    in their rounding, a merge does not.

    Args:
        model: vLLM's.
    """
    sums: dict[str, Any] = {}
    unread = []
    with torch.inference_mode():
        for name, tensor in _tensors(model):
            if tensor is None:
                unread.append(name)
                continue
            key = decoder_tensor(name)
            place = f"layer {key[0]}" if key else REST
            dtype, _, total = checksum_of(tensor)
            told = f"{name} {dtype} {tuple(tensor.shape)} {total}\n"
            sums.setdefault(place, hashlib.sha256()).update(told.encode())
    return {
        **{place: sums[place].hexdigest()[:16] for place in sorted(sums, key=_order)},
        **({UNREAD: ", ".join(unread)} if unread else {}),
    }


def _order(place: str) -> tuple[bool, int]:
    return place == REST, 0 if place == REST else int(place.split()[1])


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    """What stands for each parameter, by name: itself, a packed layer's outputs, or None where neither can be had."""
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            where = f"{prefix}.{name}" if prefix else name
            if parameter.numel() or name != "weight":
                yield where, parameter
            else:
                yield where, _outputs(module)


def _outputs(module: nn.Module) -> Tensor | None:
    packed, width = getattr(module, "cpu_linear", None), getattr(module, "input_size_per_partition", None)
    width = width or getattr(module, "input_size", None)
    if packed is None or not width:
        return None
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    drawn = torch.randn(PROBES, width, generator=torch.Generator().manual_seed(_SEED)).to(weight.dtype)
    outputs = packed(drawn, weight, bias)
    return outputs if isinstance(outputs, Tensor) else None
