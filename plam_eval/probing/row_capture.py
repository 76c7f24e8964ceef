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
        exist: (batch, 1, rows, 1) bool.
        all_exist: whether it is True everywhere.
        closed: what is added to scores, by the mask that a layer is given and what else decides it; layers share masks.
    """

    rows: Tensor
    exist: Tensor
    all_exist: bool
    closed: dict[Any, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)
    _index: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def of(self, values: Tensor) -> Tensor:
        """The wanted rows of `values` (batch, heads, tokens, size): (batch, heads, rows, size)."""
        heads, size = values.shape[1], values.shape[3]
        if (heads, size) not in self._index:
            self._index[heads, size] = self.rows[:, None, :, None].expand(-1, heads, -1, size)
        return values.gather(2, self._index[heads, size])


@dataclass(eq=False)
class _Watched:
    """The wanted rows of one layer, before they are made into what is kept.

    Attributes:
        layer: its number.
        wanted: what was wanted of the call.
        weights: (batch, heads, rows, keys) float32.
        ours: (batch, heads, rows, value size) float32; what they make of the values.
        theirs: (batch, heads, rows, value size); what the backend gave out.
        largest: the largest score, zero where it is of no matter.
    """

    layer: int
    wanted: _Wanted
    weights: Tensor
    ours: Tensor
    theirs: Tensor
    largest: Tensor


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
    """

    model: nn.Module
    heads: Heads = "mean"
    layer_of: dict[nn.Module, int] = field(init=False, repr=False)
    queries: Tensor = field(init=False, repr=False)
    rows: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    _differences: list[tuple[list[int], Tensor]] = field(default_factory=list, init=False, repr=False)
    _ran: set[int] = field(default_factory=set, init=False, repr=False)
    _waiting: list[_Watched] = field(default_factory=list, init=False, repr=False)
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
        self._clear()
        token = _CAPTURING.set(self)
        try:
            yield self
        finally:
            _CAPTURING.reset(token)

    def _clear(self) -> None:
        for each in (self.rows, self._differences, self._ran, self._waiting):
            each.clear()

    def take(self) -> tuple[Tensor, ...]:
        """The rows of the last call by layer, (batch, heads, rows, keys) float32 on the CPU each; they are handed over.

        Raises:
            ProbeError: layers are missing, differ in their keys, or rows are not those of the backend.
        """
        missing = [index for index in range(self.layers) if index not in self._ran]
        if missing:
            raise ProbeError(
                f"{self._name}: decoder layers {missing} of {self.layers} did not take their attention from "
                "transformers' attention interface; expected all. Its attention rows cannot be had"
            )
        self._finish()
        self._check_differences()
        rows = [self.rows[index] for index in range(self.layers)]
        self._clear()
        sizes = {(row.shape[1], row.shape[3]) for row in rows}
        if len(sizes) > 1:
            words = ", ".join(f"{heads} heads and {keys} keys" for heads, keys in sorted(sizes))
            raise ProbeError(f"{self._name} has layers of {words}; expected as many of each in all layers")
        # One copy from the device, not one for each layer, which would wait for it each time.
        return torch.cat([row.to(rows[0].device) for row in rows]).cpu().split([len(row) for row in rows])

    def _finish(self) -> None:
        """Makes what is kept of the layers that wait for it, of all at once: each of these steps is small."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        weights, ours = (torch.cat([getattr(each, name) for each in waiting]) for name in ("weights", "ours"))
        theirs = torch.cat([each.theirs for each in waiting]).float()
        if not waiting[0].wanted.all_exist:
            exist = torch.cat([each.wanted.exist for each in waiting])
            weights, ours, theirs = (torch.where(exist, each, 0.0) for each in (weights, ours, theirs))
        sizes = [len(each.weights) for each in waiting]
        squares = torch.stack([(ours - theirs).square().sum((1, 2, 3)), theirs.square().sum((1, 2, 3))])
        each_layer = [own.sum(1) for own in squares.split(sizes, dim=1)]
        figures = torch.cat([torch.stack(each_layer), torch.stack([each.largest for each in waiting])[:, None]], dim=1)
        self._differences.append(([each.layer for each in waiting], figures))
        if self.heads == "mean":
            weights = weights.mean(1, keepdim=True)
        for each, rows in zip(waiting, weights.split(sizes), strict=True):
            self.rows[each.layer] = rows

    def _check_differences(self) -> None:
        tiny = torch.finfo(torch.float32).tiny
        wrong = []
        for layers, figures in self._differences:
            for index, (difference, norm, largest) in zip(layers, figures.tolist(), strict=True):
                relative = (difference / max(norm, tiny)) ** 0.5
                # In half precision eager attention rounds the products, which the exponential makes a factor.
                if not relative <= _ALIKE + self._rounding * (4 + largest):
                    wrong.append(f"{index} ({relative:.1e})")
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
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = _products(wanted.of(query).float().mul_(scale), key.float().transpose(-1, -2))
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        half = query.dtype != torch.float32
        largest = torch.linalg.vector_norm(scores, float("inf")) if half else scores.new_zeros(())
        closed = self._closed(wanted, module, query, key, attention_mask, kwargs)
        if closed is not None:
            scores += closed
        weights = scores.softmax(-1)
        ours = _products(weights, value.float())
        theirs = wanted.of(output[0].reshape(*ours.shape[:1], -1, ours.shape[1], ours.shape[3]).transpose(1, 2))
        self._rounding = torch.finfo(query.dtype).eps
        self._wait(_Watched(layer, wanted, weights, ours, theirs, largest), query.nbytes)
        return output

    def _wait(self, watched: _Watched, limit: int) -> None:
        """What one layer leaves waits for others, up to as many bytes as its queries have."""
        waiting = self._waiting
        last = waiting[-1] if waiting else watched
        alike = last.weights.shape[1:] == watched.weights.shape[1:] and last.ours.shape[1:] == watched.ours.shape[1:]
        if not alike or last.weights.device != watched.weights.device:
            self._finish()
        self._waiting.append(watched)
        self._ran.add(watched.layer)
        if sum(each.weights.nbytes + each.ours.nbytes + each.theirs.nbytes for each in self._waiting) > limit:
            self._finish()

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
        if layer in self._ran:
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
            places = queries.clamp(min=0).to(device), exist[:, None, :, None].to(device)
            self._wanted[device, batch] = _Wanted(*places, bool(exist.all()))
        return self._wanted[device, batch]

    def _closed(
        self,
        wanted: _Wanted,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        kwargs: Mapping[str, Any],
    ) -> Tensor | None:
        """What is added to the scores of the rows, (batch, 1 or heads, rows, keys): -inf where they may not look."""
        given, window = kwargs.get("is_causal"), kwargs.get("sliding_window")
        causal = getattr(module, "is_causal", True) if given is None else given
        about = id(mask), causal, window
        if about not in wanted.closed:
            closed = self._closed_by(mask, wanted.rows, query, key, bool(causal), window)
            if closed is not None and closed.dtype == torch.bool:
                closed = torch.zeros(closed.shape, device=closed.device).masked_fill_(closed, float("-inf"))
            # The mask is kept beside it, so that no other one takes its id.
            wanted.closed[about] = mask, closed
        return wanted.closed[about][1]

    def _closed_by(
        self, mask: Tensor | None, queries: Tensor, query: Tensor, key: Tensor, causal: bool, window: int | None
    ) -> Tensor | None:
        """The same, or as booleans where the rows may not look; None where they may look anywhere."""
        batch, keys = key.shape[0], key.shape[2]
        if mask is not None and mask.dim() == 4:
            own = mask[..., :keys].expand(batch, -1, -1, -1)
            rows = own.gather(2, queries[:, None, :, None].expand(-1, own.shape[1], -1, keys))
            return ~rows if rows.dtype == torch.bool else rows.float()
        if self.backend == "eager":  # it adds the mask it is given, and closes nothing without one
            if mask is None:
                return None
            raise ProbeError(f"{self._name}: eager attention was given a mask of {list(mask.shape)}; expected a square")
        column, row = torch.arange(keys, device=key.device), queries[:, None, :, None] + keys - query.shape[2]
        closed = column > row if causal else torch.zeros_like(column > row)
        if "flash" in self.backend and window is not None:
            closed = closed | ((column - row).abs() >= window)
        if mask is not None:  # which keys are no padding
            closed = closed | ~mask.bool()[:, None, None, :keys]
        return closed


def _products(rows: Tensor, shared: Tensor) -> Tensor:
    """Rows of all heads, (batch, heads, rows, n), times what groups of heads share, (batch, key heads, n, m)."""
    batch, heads, count, inner = rows.shape
    return (rows.reshape(batch, shared.shape[1], -1, inner) @ shared).view(batch, heads, count, -1)
