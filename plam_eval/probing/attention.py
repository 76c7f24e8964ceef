"""Where a multimodal LLM looks: the attention of single tokens to all others, layer by layer.

sdpa and flash attention return no weights, and eager attention over a whole prompt needs memory for every pair of
tokens. `attention_rows` computes the wanted rows alone, in one prefill: transformers hands each layer's queries and
keys, after RoPE and with the layer's mask and scale, to one function, whichever backend runs. It is wrapped while rows
are captured; the backend computes what it always does. Each row is held against it: its weights times the layer's
values have to be what the backend gave out for that token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface

from plam_eval.errors import InputError
from plam_eval.patching import wrap_once
from plam_eval.probing.decoder import (
    ProbeError,
    attention_implementation,
    cache_in,
    decoder_layers,
    has_visual_input,
    vision_positions,
)

SINK_THRESHOLD = 20.0
"""Of a hidden state's largest element over its root mean square, from which on a token is a sink (VisAttnSink)."""
FIRST_SINK_LAYER = 2
"""Massive activations come up in the first layers: nothing is looked for below this one (0-based)."""

Heads = Literal["mean", "each"]


@dataclass(frozen=True, eq=False)
class AttentionRows:
    """Attention of some tokens of a batch of prompts to all tokens, on the CPU.

    Attributes:
        weights: (layers, documents, heads, rows, keys) float32; heads is 1 for their mean. A row sums to 1; the rows of
            a document that asked for fewer than another one are zero.
        queries: (documents, rows) int64; the position that a row is of, -1 where there is none.
        vision: (documents, keys) bool; keys that are image or video tokens.
        real: (documents, keys) bool; keys that are no padding.
        massive: (entries, 4) int64, (layer, document, token, dimension) each, where the hidden state that enters a
            layer has abs(x_d) / rms(x) over `SINK_THRESHOLD`; ascending, without padding, layers from
            `FIRST_SINK_LAYER` on. None if it was not asked for.
    """

    weights: Tensor
    queries: Tensor
    vision: Tensor
    real: Tensor
    massive: Tensor | None = None

    def rows_of(self, document: int) -> NDArray[np.float32]:
        """The rows of one document: (layers, heads, rows, keys), those that it has not asked for left out.

        Args:
            document: its number in the batch.
        """
        return self.weights[:, document, :, self.queries[document] >= 0].numpy()

    def massive_of(self, document: int) -> NDArray[np.int64]:
        """The massive activations of one document: (entries, 3) of layer, token and dimension.

        Args:
            document: its number in the batch.

        Raises:
            InputError: none were asked for.
        """
        if self.massive is None:
            raise InputError("massive activations were not asked for; call attention_rows with massive=True")
        return self.massive[self.massive[:, 1] == document][:, [0, 2, 3]].numpy()

    def text_of(self, document: int) -> NDArray[np.bool_]:
        """Which tokens of a document are text, (keys,) bool: neither padding nor vision tokens.

        Args:
            document: its number in the batch.
        """
        return (self.real & ~self.vision)[document].numpy()


def last_tokens(inputs: Mapping[str, Any]) -> list[list[int]]:
    """The position of each prompt's last token, whichever side it is padded on.

    Args:
        inputs: of the model, `input_ids` (documents, tokens) and, where there is padding, `attention_mask` among them.
    """
    return [[int(real.nonzero()[-1])] for real in _real(inputs)]


def tokens_behind_images(model: nn.Module, inputs: Mapping[str, Any]) -> list[list[int]]:
    """The positions of all text behind each prompt's last vision token: the question, where it follows the image.

    What a chat template puts there is among them. Of a prompt without images, all of it.

    Args:
        model: an HF MLLM.
        inputs: as for `last_tokens`.
    """
    vision, real = _vision(model, inputs), _real(inputs)
    column = torch.arange(real.shape[1], device=real.device)
    last = torch.where(vision, column, -1).amax(-1, keepdim=True)
    return [positions.nonzero()[:, 0].tolist() for positions in real & (column > last)]


@torch.no_grad()
def attention_rows(
    model: nn.Module,
    inputs: Mapping[str, Any],
    queries: Sequence[Sequence[int]] | None = None,
    *,
    heads: Heads = "mean",
    massive: bool = False,
) -> AttentionRows:
    """The attention rows of some tokens in every layer, by one prefill; memory is that of the rows.

    Inside `mask_vision` they are the masked model's.

    Args:
        model: an HF MLLM in evaluation mode, with eager, sdpa or flash attention.
        inputs: what `model(**inputs)` takes: `input_ids` with the whole prompt, and the pixels. To have the rows of
            answer tokens, append these to the prompt.
        queries: for each document the positions of the tokens that look; its last token by default.
        heads: "mean" keeps the mean over heads, "each" every head.
        massive: also note massive activations, of which sinks are found.

    Raises:
        InputError: positions outside the prompt, or of padding.
        ProbeError: a backend, a model or a call whose rows cannot be had; naming what was found.
    """
    if "input_ids" not in inputs:
        raise ProbeError(f"found {', '.join(inputs) or 'nothing'} in inputs; expected input_ids among them")
    if cache_in(inputs)[1] is not None:
        raise ProbeError("found a KV cache in inputs; expected the whole prompt, to be run once, without one")
    real, vision = _real(inputs), _vision(model, inputs)
    positions = _positions(last_tokens(inputs) if queries is None else queries, real)
    taken = inspect.signature(model.forward).parameters.values()
    spared: dict[str, Any] = {}  # neither keys nor logits of the prompt are of use to anybody
    if any(each.name == "use_cache" or each.kind is each.VAR_KEYWORD for each in taken):
        spared["use_cache"] = False
    if any(each.name == "logits_to_keep" for each in taken):
        spared["logits_to_keep"] = 1
    with capture_rows(model, positions, heads=heads, massive_of=real if massive else None) as capture:
        prompt = {name: value for name, value in inputs.items() if name != "labels"}  # they would ask for a loss
        model(**{**prompt, **spared})
    return AttentionRows(capture.weights(), positions.cpu(), vision.cpu(), real.cpu(), capture.massive())


@contextmanager
def capture_rows(
    model: nn.Module, queries: Tensor, *, heads: Heads = "mean", massive_of: Tensor | None = None
) -> Iterator[RowCapture]:
    """While entered, the next call of a model, or of its decoder, leaves its attention rows behind.

    Args:
        model: an HF MLLM.
        queries: (documents, rows) int64; positions in the call's tokens, -1 for no row.
        heads: as for `attention_rows`.
        massive_of: (documents, tokens) bool; among which tokens to note massive activations, None for no such note.

    Raises:
        ProbeError: on entry, for a backend that is not known; in the call, for what cannot be reproduced.
    """
    capture = RowCapture(model, queries, heads)
    wrap_once(AttentionInterface, "get_interface", _interface)
    handles = []
    if massive_of is not None:
        capture.entries = []
        handles = [
            layer.register_forward_pre_hook(partial(capture.note_massive, index, massive_of), with_kwargs=True)
            for index, layer in enumerate(decoder_layers(model))
            if index >= FIRST_SINK_LAYER
        ]
    token = _CAPTURING.set(capture)
    try:
        yield capture
    finally:
        _CAPTURING.reset(token)
        for handle in handles:
            handle.remove()


def _real(inputs: Mapping[str, Any]) -> Tensor:
    """(documents, tokens) bool; where there is no padding."""
    given, ids = inputs.get("attention_mask"), inputs["input_ids"]
    real = torch.ones_like(ids, dtype=torch.bool) if given is None else given.bool()
    if real.shape != ids.shape:
        raise ProbeError(
            f"attention_mask is {list(real.shape)} for input_ids of {list(ids.shape)}; expected one entry per token"
        )
    return real


def _vision(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    vision = vision_positions(model, inputs["input_ids"])
    return vision if has_visual_input(inputs) else torch.zeros_like(vision)


def _positions(queries: Sequence[Sequence[int]], real: Tensor) -> Tensor:
    documents, tokens = real.shape
    if len(queries) != documents:
        raise InputError(f"queries has positions for {len(queries)} documents; expected {documents}")
    wrong = [
        f"document {number}, position {position}: "
        + ("it is padding" if 0 <= position < tokens else f"expected one from 0 to {tokens - 1}")
        for number, positions in enumerate(queries)
        for position in positions
        if not 0 <= position < tokens or not real[number, position]
    ]
    if wrong:
        raise InputError(*wrong[:10], origin="queries")
    rows = max((len(positions) for positions in queries), default=0)
    if not rows:
        raise InputError("queries names no position; expected at least one")
    padded = [[*positions, *[-1] * (rows - len(positions))] for positions in queries]
    return torch.tensor(padded, dtype=torch.long, device=real.device)


# ---- capturing -------------------------------------------------------------------------------------------------------

_CAPTURING: ContextVar[RowCapture | None] = ContextVar("plam_attention_rows", default=None)
_NOT_REPRODUCED = {"s_aux": "learned sinks", "position_bias": "a position bias", "cu_seq_lens_q": "packed sequences"}
# Relative difference of a row's output that rounding leaves; another scale, mask or cap gives far more.
_ALIKE = 5e-3


def _interface(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """In place of the lookup of an attention function: the same function, watched while rows are captured."""
    function: Callable[..., Any] = stock(*args, **kwargs)
    capture = _CAPTURING.get()
    return function if capture is None else partial(capture.watch, function)


@dataclass(eq=False)
class RowCapture:
    """What the layers of one call leave behind.

    Args:
        model: whose rows are captured.
        queries: (documents, rows) int64; -1 for no row.
        heads: "mean" or "each".

    Attributes:
        layer_of: the decoder layer that a module is part of.
        rows: by layer, (documents, heads, rows, keys) float32 on the layer's device.
        differences: by layer, relative difference between the rows' outputs and the backend's, and what is allowed.
        entries: massive activations by layer; None while nobody asks for them.
    """

    model: nn.Module
    queries: Tensor
    heads: Heads = "mean"
    layer_of: dict[nn.Module, int] = field(init=False, repr=False)
    rows: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    differences: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)
    entries: list[Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.heads not in ("mean", "each"):
            raise InputError(f"heads is {self.heads!r}; expected 'mean' or 'each'")
        self.backend = attention_implementation(self.model)
        if self.backend not in ("eager", "sdpa") and "flash" not in self.backend:
            raise ProbeError(
                f"{self._name} runs with {self.backend} attention, of which it is not known what a row is allowed to "
                'see; expected eager, sdpa or flash attention. Call model.set_attn_implementation("sdpa")'
            )
        layers = decoder_layers(self.model)
        self.layer_of = {module: index for index, layer in enumerate(layers) for module in layer.modules()}
        self.layers = len(layers)

    @property
    def _name(self) -> str:
        return type(self.model).__name__

    def weights(self) -> Tensor:
        """The rows of all layers, (layers, documents, heads, rows, keys) float32 on the CPU.

        Raises:
            ProbeError: layers are missing, or rows are not those of the backend.
        """
        missing = [index for index in range(self.layers) if index not in self.rows]
        if missing:
            raise ProbeError(
                f"{self._name}: decoder layers {missing} of {self.layers} did not take their attention from "
                "transformers' attention interface; expected all. Its attention rows cannot be had"
            )
        wrong = [
            f"{index} ({float(difference):.1e})"
            for index, (difference, allowed) in sorted(self.differences.items())
            if not float(difference) <= float(allowed)
        ]
        if wrong:
            raise ProbeError(
                f"{self._name} with {self.backend} attention: the rows computed from queries and keys give another "
                f"output than the layer's own in layers {', '.join(wrong)}; expected differences by rounding alone. "
                "Its attention is more than the softmax of scaled products under its mask (or drops out: call "
                "model.eval()), and its attention rows cannot be had"
            )
        return torch.stack([self.rows[index].cpu() for index in range(self.layers)])

    def massive(self) -> Tensor | None:
        """Massive activations as `AttentionRows` has them, or None."""
        if self.entries is None:
            return None
        return torch.cat([torch.empty(0, 4, dtype=torch.long), *(each.cpu() for each in self.entries)])

    def note_massive(
        self, index: int, among: Tensor, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Before decoder layer `index`: where its input is massive. The other parameters are those of a forward hook.

        Args:
            index: of the layer.
            among: (documents, tokens) bool; the tokens to look at.
            args: with the hidden states (documents, tokens, hidden size) first.
            kwargs: or with them by name.
        """
        assert self.entries is not None
        hidden = (args[0] if args else kwargs["hidden_states"]).float()
        high = hidden.abs() > SINK_THRESHOLD * hidden.square().mean(-1, keepdim=True).sqrt()
        where = (high & among.to(high.device)[..., None]).nonzero()
        self.entries.append(nn.functional.pad(where, (1, 0), value=index))

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
            query: (documents, heads, tokens, head size).
            key: (documents, key heads, keys, head size).
            value: (documents, key heads, keys, value size).
            attention_mask: what the backend takes, or None.
            args: of the function.
            kwargs: of the function.
        """
        output = function(module, query, key, value, attention_mask, *args, **kwargs)
        if (layer := self.layer_of.get(module)) is None:  # the vision tower's
            return output
        self._check_call(layer, module, query, key, attention_mask, kwargs)
        scaling = kwargs.get("scaling")
        # Where a model has a cap, transformers' sdpa computes without it, or from 5.24 on refuses it.
        cap = None if self.backend == "sdpa" else kwargs.get("softcap")
        queries = self.queries.to(query.device)
        allowed = self._allowed(module, queries.clamp(min=0), key, attention_mask, kwargs)
        scores = _scores(query, key, queries.clamp(min=0), query.shape[-1] ** -0.5 if scaling is None else scaling)
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        largest = scores.abs().amax()
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf")) if allowed.dtype == torch.bool else scores + allowed
        exists = (queries >= 0)[:, None, :, None]
        weights = torch.where(exists, scores.softmax(-1), 0.0)
        self.differences[layer] = _difference(weights, value, output[0], queries, largest)
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
            raise ProbeError(f"decoder layer {layer} of {self._name} ran twice; expected one prefill, once")
        documents, tokens = query.shape[0], query.shape[2]
        if key.shape[2] != tokens or documents != len(self.queries) or int(self.queries.max()) >= tokens:
            raise ProbeError(
                f"{self._name} runs its decoder on {documents} documents of {tokens} tokens with {key.shape[2]} keys; "
                f"expected {len(self.queries)} documents, whole, with as many keys as tokens and as positions are of"
            )

    def _allowed(
        self, module: nn.Module, queries: Tensor, key: Tensor, mask: Tensor | None, kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """What the rows may see, (documents, 1 or heads, rows, keys), boolean or to be added; None: all."""
        keys, documents = key.shape[2], key.shape[0]
        if mask is not None and mask.dim() == 4:
            own = mask[..., :keys].expand(documents, -1, -1, -1)
            rows = own.gather(2, queries[:, None, :, None].expand(-1, own.shape[1], -1, keys))
            return rows if rows.dtype == torch.bool else rows.float()
        if self.backend == "eager":  # it adds the mask it is given, and closes nothing without one
            if mask is None:
                return None
            raise ProbeError(f"{self._name}: eager attention was given a mask of {list(mask.shape)}; expected a square")
        column, row = torch.arange(keys, device=key.device), queries[:, None, :, None]
        given = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if given is None else given
        seen = column <= row if causal else torch.ones_like(column <= row)
        if "flash" in self.backend and (window := kwargs.get("sliding_window")) is not None:
            seen = seen & ((column - row).abs() < window)
        if mask is not None:  # which keys are no padding
            seen = seen & mask.bool()[:, None, None, :keys]
        return seen


def _scores(query: Tensor, key: Tensor, queries: Tensor, scaling: float) -> Tensor:
    """Scaled products of the wanted rows with all keys: (documents, heads, rows, keys) float32."""
    documents, heads, _, size = query.shape
    key_heads, rows = key.shape[1], queries.shape[1]
    wanted = query.gather(2, queries[:, None, :, None].expand(-1, heads, -1, size)).float() * scaling
    products = wanted.reshape(documents, key_heads, -1, size) @ key.float().transpose(-1, -2)
    return products.reshape(documents, heads, rows, -1)


def _difference(
    weights: Tensor, value: Tensor, output: Tensor, queries: Tensor, largest: Tensor
) -> tuple[Tensor, Tensor]:
    """How far the rows' outputs are from the backend's, (documents, tokens, heads, value size); and what is allowed."""
    documents, heads, rows, keys = weights.shape
    ours = weights.reshape(documents, value.shape[1], -1, keys) @ value.float()
    ours = ours.reshape(documents, heads, rows, -1)
    where = queries.clamp(min=0)[:, :, None, None].expand(-1, -1, heads, value.shape[-1])
    theirs = output.unflatten(-1, (heads, -1)) if output.dim() == 3 else output
    theirs = theirs.gather(1, where).transpose(1, 2).float() * (queries >= 0)[:, None, :, None]
    difference = (ours - theirs).norm() / theirs.norm().clamp(min=torch.finfo(torch.float32).tiny)
    # In half precision eager attention rounds the products themselves, which the exponential makes a factor.
    return difference, _ALIKE + torch.finfo(output.dtype).eps * (4 + largest)
