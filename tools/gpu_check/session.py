"""One pair on one device, and its model, loaded once and brought back to plain before each check."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import is_merged, merge_in_place, merged_weights
from plam_eval.merging.names import Key, decoder_tensor
from plam_eval.merging.plan import Problems, locate_tensors
from plam_eval.probing.decoder import attention_implementation
from plam_eval.spec import PlateauSpec, load_spec
from tools.gpu_check.board import Board, Fault
from tools.gpu_check.pairs import Pair, load, prompts

BITS = {2: torch.int16, 4: torch.int32}


class Session:
    """What the checks of one pair share.

    Args:
        pair: on disk.
        board: that the checks are run by, with the device.
        scratch: folder for what they write.
    """

    def __init__(self, pair: Pair, board: Board, scratch: Path) -> None:
        self.pair, self.board, self.scratch = pair, board, scratch
        self.device, self.layers = board.device, pair.shape.layers
        self._model: Any = None

    def model(self, dtype: torch.dtype, attention: str = "sdpa") -> Any:
        """The plain model on the device.

        Args:
            dtype: of its parameters.
            attention: the implementation.
        """
        if self._model is not None and self._model.dtype != dtype:
            self.drop()
        if self._model is None:
            self._model = load(self.pair, self.device, dtype)
        if is_merged(self._model):
            merge_in_place(self._model, None)
        if attention_implementation(self._model) != attention:
            self._model.set_attn_implementation(attention)
        return self._model

    def drop(self) -> None:
        """Let go of the model, so that its memory is free."""
        self._model = None
        if self.board.is_cuda:
            torch.cuda.empty_cache()

    def prompts(self, dtype: torch.dtype, **named: Any) -> dict[str, Tensor]:
        """As `pairs.prompts`, on the device.

        Args:
            dtype: of the pixels.
            named: for `pairs.prompts`.
        """
        return prompts(self.pair, self.device, dtype, **named)

    def spec(
        self, first: int, end: int, modules: str = "qkvo", model: float = 0.9, base: float = 0.3, **more: Any
    ) -> PlateauSpec:
        """A merge of the pair.

        Args:
            first: layer.
            end: layer behind the last.
            modules: as a spec names them.
            model: weight of the MLLM.
            base: weight of the base LLM.
            more: fields of the spec.
        """
        weights = {"model": model, "base_model": base}
        fields = {
            "base_model": str(self.pair.base),
            "layer_range": [first, end],
            "modules": modules,
            "weights": weights,
        }
        spec = load_spec({**fields, **more})
        assert spec is not None
        return spec

    def values_on_cpu(
        self, spec: PlateauSpec | None, dtype: torch.dtype, layers: Container[int] | None = None
    ) -> Iterator[tuple[Key, Tensor]]:
        """Every decoder tensor as a CPU merges it, (layer, suffix) first.

        Args:
            spec: None for plain.
            dtype: that the merged ones are rounded to, and the others cast to.
            layers: which, all that are merged among them; None for all.
        """
        checkpoint = Checkpoint.open(self.pair.mllm)
        keys = {name: key for name in checkpoint.names() if (key := decoder_tensor(name)) is not None}
        stream = ((name, checkpoint.tensor(name)) for name in keys if layers is None or keys[name][0] in layers)
        for name, value in merged_weights(stream, spec, None, dtype):
            yield keys[name], value.to(dtype)

    def values_named(self, spec: PlateauSpec) -> Iterator[tuple[Key, str]]:
        """(layer, suffix) and name in the base of every tensor that a spec names.

        Args:
            spec: a merge of the pair.
        """
        problems = Problems()
        yield from locate_tensors(Checkpoint.open(self.pair.base), spec, problems).items()
        problems.raise_any()

    def compare_with_cpu(
        self, model: Any, spec: PlateauSpec | None, dtype: torch.dtype, layers: Container[int] | None = None
    ) -> dict[str, Any]:
        """Hold decoder tensors of a model against the CPU's merge, bit by bit; raises Fault.

        Args:
            model: on the device.
            spec: that it was merged by.
            dtype: of its parameters.
            layers: which, all that are merged among them; None for all.
        """
        own = decoder_parameters(model)
        own = {key: value for key, value in own.items() if layers is None or key[0] in layers}
        return same_bits(own, self.values_on_cpu(spec, dtype, layers))


def decoder_parameters(model: Any) -> dict[Key, Tensor]:
    """(layer, suffix) -> parameter of the decoder.

    Args:
        model: loaded.
    """
    return {key: value for name, value in model.named_parameters() if (key := decoder_tensor(name)) is not None}


def same_bits(parameters: dict[Key, Tensor], expected: Iterator[tuple[Key, Tensor]]) -> dict[str, Any]:
    """How many elements were compared; raises Fault where one differs, or a tensor is on one side only.

    Args:
        parameters: of a model.
        expected: what they should hold.
    """
    elements, wrong, seen = 0, {}, set()
    for key, value in expected:
        parameter = parameters[key].detach()
        own = value.to(parameter.device)
        if own.dtype != parameter.dtype or own.shape != parameter.shape:
            raise Fault(f"layer {key[0]}, {key[1]}: {parameter.dtype} {list(parameter.shape)} for {own.dtype}")
        bits = BITS[own.element_size()]
        differing = int((own.contiguous().view(bits) != parameter.contiguous().view(bits)).sum())
        if differing:
            apart = float((own.float() - parameter.float()).abs().max())
            wrong[key] = f"layer {key[0]}, {key[1]}: {differing} of {own.numel()} elements differ, by up to {apart:.2g}"
        elements += own.numel()
        seen.add(key)
    if wrong:
        raise Fault(f"{len(wrong)} of {len(seen)} tensors differ: " + "; ".join([*wrong.values()][:4]))
    if seen != parameters.keys():
        raise Fault(f"tensors {sorted(seen ^ parameters.keys())[:4]} are on one side only")
    return {"tensors": len(seen), "elements": elements, "differing": 0}
