"""Rows of attention, taken from the layers of a model as it runs, with any backend.

transformers hands each layer's queries and keys, after RoPE and with the layer's mask and scale, to one function,
whichever backend runs. It is wrapped while rows are captured; the backend computes what it always does. Each row is
held against it: its weights times the layer's values have to be what the backend gave out for that token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from plam_eval.errors import InputError
from plam_eval.patching import wrap_once
from plam_eval.probing.decoder import ProbeError, attention_implementation, decoder_layers

Heads = Literal["mean", "each"]
"""What is kept of a row: the mean over heads, or every head's."""

_CAPTURING: ContextVar[RowCapture | None] = ContextVar("plam_attention_rows", default=None)
_NOT_REPRODUCED = {"s_aux": "learned sinks", "position_bias": "a position bias", "cu_seq_lens_q": "packed sequences"}
# Relative difference of a row's output that rounding leaves; another scale, mask or cap gives far more.
_ALIKE = 5e-3


def backend_problem(backend: str) -> str | None:
    """Why the rows of an attention implementation cannot be had, in words that follow a model's name; None: they can.

    Args:
        backend: its name, as transformers takes it.
    """
    if backend in ("eager", "sdpa") or "flash" in backend:
        return None
    return (
        f"runs with {backend} attention, of which it is not known what a row is allowed to see; expected eager, sdpa "
        "or flash attention"
    )


def _interface(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """In place of the lookup of an attention function: the same function, watched while rows are captured."""
    function: Callable[..., Any] = stock(*args, **kwargs)
    capture = _CAPTURING.get()
    return function if capture is None else partial(capture.watch, function)


@dataclass(eq=False)
class _Wanted:
    """The wanted rows of one call, on the device of the layers that run.

    Attributes:
        rows: (batch, rows) int64; positions among the call's tokens, 0 where there is no row.
        exist: (batch, 1, rows, 1) bool; None where all do.
        seen: what the rows may see, by the mask that a layer is given and what else decides it. Layers share masks.
    """

    rows: Tensor
    exist: Tensor | None
    seen: dict[Any, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)


@dataclass(eq=False)
class RowCapture:
    """The attention rows of a model's calls: `with capture.expecting(queries)` a call, then `capture.take()`.

    Args:
        model: an HF MLLM.
        heads: which are kept.

    Raises:
        InputError: for a word that is none of `heads`.
        ProbeError: for a backend that is not known.

    Attributes:
        layer_of: the decoder layer that a module is part of.
        queries: what the next call was said to leave behind.
        rows: by layer, (batch, heads, rows, keys) float32 on the layer's device.
        differences: by layer, what `_difference` gives, and the largest score.
    """

    model: nn.Module
    heads: Heads = "mean"
    layer_of: dict[nn.Module, int] = field(init=False, repr=False)
    queries: Tensor = field(init=False, repr=False)
    rows: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    differences: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    _wanted: dict[tuple[torch.device, int], _Wanted] = field(default_factory=dict, init=False, repr=False)
    _end: int = field(default=0, init=False, repr=False)
    _rounding: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.heads not in ("mean", "each"):
            raise InputError(f"heads is {self.heads!r}; expected 'mean' or 'each'")
        self.backend = attention_implementation(self.model)
        if (problem := backend_problem(self.backend)) is not None:
            raise ProbeError(f'{self._name} {problem}. Call model.set_attn_implementation("sdpa")')
        wrap_once(AttentionInterface, "get_interface", _interface)
        layers = decoder_layers(self.model)
        self.layer_of = {module: index for index, layer in enumerate(layers) for module in layer.modules()}
        self.layers = len(layers)

    @property
    def _name(self) -> str:
        return type(self.model).__name__

    @contextmanager
    def expecting(self, queries: Tensor) -> Iterator[RowCapture]:
        """While entered, the next call of the model, or of its decoder, leaves rows behind; gives the capture itself.

        Args:
            queries: (documents, rows) int64; positions among the call's tokens, -1 for no row. Layers may run several
                variants of each document: the batch is then that many times all documents.

        Raises:
            ProbeError: in the call, for what cannot be reproduced.
        """
        self.queries = queries.cpu()
        self._end = int(self.queries.max()) + 1
        self._wanted.clear()
        self.rows.clear()
        self.differences.clear()
        token = _CAPTURING.set(self)
        try:
            yield self
        finally:
            _CAPTURING.reset(token)

    def take(self) -> tuple[Tensor, ...]:
        """The rows of the last call by layer, (batch, heads, rows, keys) float32 on the CPU each; they are handed over.

        Raises:
            ProbeError: layers are missing, differ in their keys, or rows are not those of the backend.
        """
        missing = [index for index in range(self.layers) if index not in self.rows]
        if missing:
            raise ProbeError(
                f"{self._name}: decoder layers {missing} of {self.layers} did not take their attention from "
                "transformers' attention interface; expected all. Its attention rows cannot be had"
            )
        self._check_differences()
        rows = [self.rows[index] for index in range(self.layers)]
        sizes = {(row.shape[1], row.shape[3]) for row in rows}
        if len(sizes) > 1:
            words = ", ".join(f"{heads} heads and {keys} keys" for heads, keys in sorted(sizes))
            raise ProbeError(f"{self._name} has layers of {words}; expected as many of each in all layers")
        self.rows.clear()
        # One copy from the device, not one for each layer, which would wait for it each time.
        return torch.cat([row.to(rows[0].device) for row in rows]).cpu().split([len(row) for row in rows])

    def _check_differences(self) -> None:
        device = self.differences[0].device
        values = torch.stack([self.differences[index].to(device) for index in range(self.layers)]).tolist()
        self.differences.clear()
        tiny = torch.finfo(torch.float32).tiny
        wrong = [
            f"{index} ({difference / max(norm, tiny):.1e})"
            for index, (difference, norm, largest) in enumerate(values)
            # In half precision eager attention rounds the products themselves, which the exponential makes a factor.
            if not difference <= (_ALIKE + self._rounding * (4 + largest)) * max(norm, tiny)
        ]
        if wrong:
            raise ProbeError(
                f"{self._name} with {self.backend} attention: the rows computed from queries and keys give another "
                f"output than the layer's own in layers {', '.join(wrong)}; expected differences by rounding alone. "
                "Its attention is more than the softmax of scaled products under its mask (or drops out: call "
                "model.eval()), and its attention rows cannot be had"
            )

    @torch.no_grad()
    def watch(
        self,
        function: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """In place of an attention function: calls it, and keeps the rows of a decoder layer.

        Args:
            function: what is called.
            module: the attention module.
            query: (batch, heads, tokens, head size).
            key: (batch, key heads, keys, head size).
            value: (batch, key heads, keys, value size).
            attention_mask: what the backend takes, or None.
            args: of the function.
            kwargs: of the function.
        """
        output = function(module, query, key, value, attention_mask, *args, **kwargs)
        if (layer := self.layer_of.get(module)) is None:  # the vision tower's
            return output
        self._check_call(layer, module, query, key, attention_mask, kwargs)
        wanted = self._wanted_of(query)
        scaling = kwargs.get("scaling")
        # Where a model has a cap, transformers' sdpa computes without it, or from 5.24 on refuses it.
        cap = None if self.backend == "sdpa" else kwargs.get("softcap")
        scores = _scores(query, key, wanted.rows, query.shape[-1] ** -0.5 if scaling is None else scaling)
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        largest = torch.linalg.vector_norm(scores, float("inf"))
        seen = self._seen(wanted, module, query, key, attention_mask, kwargs)
        if seen is not None:
            scores = scores.masked_fill_(~seen, float("-inf")) if seen.dtype == torch.bool else scores.add_(seen)
        weights = scores.softmax(-1)
        if wanted.exist is not None:
            weights = torch.where(wanted.exist, weights, 0.0)
        self.differences[layer] = torch.stack([*_difference(weights, value, output[0], wanted), largest])
        self._rounding = torch.finfo(output[0].dtype).eps
        self.rows[layer] = weights if self.heads == "each" else weights.mean(1, keepdim=True)
        return output

    def _check_call(
        self, layer: int, module: nn.Module, query: Tensor, key: Tensor, mask: Any, kwargs: Mapping[str, Any]
    ) -> None:
        odd = [words for name, words in _NOT_REPRODUCED.items() if kwargs.get(name) is not None]
        if odd:
            raise ProbeError(
                f"{type(module).__name__} adds {', '.join(odd)} to its attention; the attention rows of "
                f"{self._name} cannot be had"
            )
        if mask is not None and not isinstance(mask, Tensor):
            raise ProbeError(f"{type(module).__name__} was given a {type(mask).__name__}; expected a mask as a tensor")
        if layer in self.rows:
            raise ProbeError(
                f"decoder layer {layer} of {self._name} ran twice; expected one call, once, before its rows are taken"
            )
        batch, tokens, keys, documents = query.shape[0], query.shape[2], key.shape[2], len(self.queries)
        if batch % documents or not batch or self._end > tokens or (keys != tokens and tokens > 1):
            raise ProbeError(
                f"{self._name} runs its decoder on {batch} documents of {tokens} tokens with {keys} keys; expected "
                f"{documents} documents or a multiple, at least {self._end} tokens, and as many keys as tokens, or one "
                "token"
            )

    def _wanted_of(self, query: Tensor) -> _Wanted:
        batch, device = query.shape[0], query.device
        if (device, batch) not in self._wanted:
            queries = self.queries.repeat(batch // len(self.queries), 1)
            exist = queries >= 0
            missing = None if bool(exist.all()) else exist[:, None, :, None].to(device)
            self._wanted[device, batch] = _Wanted(queries.clamp(min=0).to(device), missing)
        return self._wanted[device, batch]

    def _seen(
        self,
        wanted: _Wanted,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        kwargs: Mapping[str, Any],
    ) -> Tensor | None:
        """What the rows may see, (batch, 1 or heads, rows, keys), boolean or to be added; None: all."""
        given, window = kwargs.get("is_causal"), kwargs.get("sliding_window")
        causal = getattr(module, "is_causal", True) if given is None else given
        about = id(mask), causal, window
        if about not in wanted.seen:
            # The mask is kept beside it, so that no other one takes its id.
            wanted.seen[about] = mask, self._seen_under(mask, wanted.rows, query, key, bool(causal), window)
        return wanted.seen[about][1]

    def _seen_under(
        self, mask: Tensor | None, queries: Tensor, query: Tensor, key: Tensor, causal: bool, window: int | None
    ) -> Tensor | None:
        batch, keys = key.shape[0], key.shape[2]
        if mask is not None and mask.dim() == 4:
            own = mask[..., :keys].expand(batch, -1, -1, -1)
            rows = own.gather(2, queries[:, None, :, None].expand(-1, own.shape[1], -1, keys))
            return rows if rows.dtype == torch.bool else rows.float()
        if self.backend == "eager":  # it adds the mask it is given, and closes nothing without one
            if mask is None:
                return None
            raise ProbeError(f"{self._name}: eager attention was given a mask of {list(mask.shape)}; expected a square")
        column, row = torch.arange(keys, device=key.device), queries[:, None, :, None] + keys - query.shape[2]
        seen = column <= row if causal else torch.ones_like(column <= row)
        if "flash" in self.backend and window is not None:
            seen = seen & ((column - row).abs() < window)
        if mask is not None:  # which keys are no padding
            seen = seen & mask.bool()[:, None, None, :keys]
        return seen


def _scores(query: Tensor, key: Tensor, queries: Tensor, scaling: float) -> Tensor:
    """Scaled products of the wanted rows with all keys: (batch, heads, rows, keys) float32."""
    batch, heads, _, size = query.shape
    key_heads, rows = key.shape[1], queries.shape[1]
    wanted = query.gather(2, queries[:, None, :, None].expand(-1, heads, -1, size)).float() * scaling
    products = wanted.reshape(batch, key_heads, -1, size) @ key.float().transpose(-1, -2)
    return products.reshape(batch, heads, rows, -1)


def _difference(weights: Tensor, value: Tensor, output: Tensor, wanted: _Wanted) -> tuple[Tensor, Tensor]:
    """Norms of how far the rows' outputs are from the backend's, (batch, tokens, heads, value size), and of these."""
    batch, heads, rows, keys = weights.shape
    ours = (weights.reshape(batch, value.shape[1], -1, keys) @ value.float()).reshape(batch, heads, rows, -1)
    where = wanted.rows[:, :, None, None].expand(-1, -1, heads, value.shape[-1])
    theirs = output.unflatten(-1, (heads, -1)) if output.dim() == 3 else output
    theirs = theirs.gather(1, where).transpose(1, 2).float()
    if wanted.exist is not None:
        theirs = theirs * wanted.exist
    return torch.linalg.vector_norm(ours - theirs), torch.linalg.vector_norm(theirs)
