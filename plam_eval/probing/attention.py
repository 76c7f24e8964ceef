"""Where a multimodal LLM looks: the attention of single tokens to all others, layer by layer.

sdpa and flash attention return no weights, and eager attention over a whole prompt needs memory for every pair of
tokens. `attention_rows` computes the wanted rows alone, in one prefill; how they are had is `row_capture`'s matter.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from plam_eval.errors import InputError
from plam_eval.probing.decoder import ProbeError, cache_in, decoder_layers, has_visual_input, vision_positions
from plam_eval.probing.row_capture import Heads, RowCapture

SINK_THRESHOLD = 20.0
"""Of a hidden state's largest element over its root mean square, from which on a token is a sink (VisAttnSink)."""
FIRST_SINK_LAYER = 2
"""Massive activations come up in the first layers: nothing is looked for below this one (0-based)."""


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
    return [[int(real.nonzero()[-1])] for real in real_tokens(inputs)]


def tokens_behind_images(model: nn.Module, inputs: Mapping[str, Any]) -> list[list[int]]:
    """The positions of all text behind each prompt's last vision token: the question, where it follows the image.

    What a chat template puts there is among them. Of a prompt without images, all of it.

    Args:
        model: an HF MLLM.
        inputs: as for `last_tokens`.
    """
    vision, real = vision_tokens(model, inputs), real_tokens(inputs)
    column = torch.arange(real.shape[1])
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
    real, vision = real_tokens(inputs), vision_tokens(model, inputs)
    if queries is None:
        queries = last_tokens(inputs)
    _check_queries(queries, real)
    positions = padded_positions(queries)
    taken = inspect.signature(model.forward).parameters.values()
    spared: dict[str, Any] = {}  # neither keys nor logits of the prompt are of use to anybody
    if any(each.name == "use_cache" or each.kind is each.VAR_KEYWORD for each in taken):
        spared["use_cache"] = False
    if any(each.name == "logits_to_keep" for each in taken):
        spared["logits_to_keep"] = 1
    entries: list[Tensor] = []
    noting = noting_massive(model, real) if massive else nullcontext(entries)
    with RowCapture(model, heads).expecting(positions) as capture, noting as entries:
        prompt = {name: value for name, value in inputs.items() if name != "labels"}  # they would ask for a loss
        model(**{**prompt, **spared})
    weights, noted = torch.stack(capture.take()), massive_entries(entries) if massive else None
    return AttentionRows(weights, positions, vision, real, noted)


@contextmanager
def noting_massive(model: nn.Module, among: Tensor) -> Iterator[list[Tensor]]:
    """While entered, the next call of a model notes where the input of its decoder layers is massive.

    Gives a list, which the call fills for each layer from `FIRST_SINK_LAYER` on: (entries, 4) int64 of layer, row of
    the batch, token and dimension.

    Args:
        model: an HF MLLM.
        among: (documents, tokens) bool; the tokens to look at. The batch may be a multiple of the documents.
    """
    entries: list[Tensor] = []

    def note(index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = (args[0] if args else kwargs["hidden_states"]).float()
        high = hidden.abs() > SINK_THRESHOLD * hidden.square().mean(-1, keepdim=True).sqrt()
        where = (high & among.to(high.device).repeat(len(high) // len(among), 1)[..., None]).nonzero()
        entries.append(nn.functional.pad(where, (1, 0), value=index))

    handles = [
        layer.register_forward_pre_hook(partial(note, index), with_kwargs=True)
        for index, layer in enumerate(decoder_layers(model))
        if index >= FIRST_SINK_LAYER
    ]
    try:
        yield entries
    finally:
        for handle in handles:
            handle.remove()


def massive_entries(entries: Sequence[Tensor]) -> Tensor:
    """One tensor of what layers have noted, on the CPU: (entries, 4), as `AttentionRows.massive`.

    Args:
        entries: (entries, 4) of each layer.
    """
    return torch.cat([torch.empty(0, 4, dtype=torch.long), *(each.cpu() for each in entries)])


def real_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """Where a batch of prompts is no padding, (documents, tokens) bool on the CPU.

    Args:
        inputs: as for `last_tokens`.

    Raises:
        ProbeError: an attention mask of another shape.
    """
    given, ids = inputs.get("attention_mask"), inputs["input_ids"]
    if given is not None and given.shape != ids.shape:
        raise ProbeError(
            f"attention_mask is {list(given.shape)} for input_ids of {list(ids.shape)}; expected one entry per token"
        )
    return torch.ones(ids.shape, dtype=torch.bool) if given is None else given.bool().cpu()


def vision_tokens(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Where a batch of prompts holds vision tokens, (documents, tokens) bool on the CPU; nowhere without images.

    Args:
        model: an HF MLLM.
        inputs: as for `last_tokens`, and the pixels, if any.
    """
    ids = inputs["input_ids"].cpu()
    return vision_positions(model, ids) if has_visual_input(inputs) else torch.zeros(ids.shape, dtype=torch.bool)


def padded_positions(queries: Sequence[Sequence[int]]) -> Tensor:
    """Positions of each document as one tensor, (documents, rows) int64, -1 where a document has fewer than another.

    Args:
        queries: positions, for each document.
    """
    rows = max((len(positions) for positions in queries), default=0)
    padded = [[*positions, *[-1] * (rows - len(positions))] for positions in queries]
    return torch.tensor(padded, dtype=torch.long).reshape(len(queries), rows)


def _check_queries(queries: Sequence[Sequence[int]], real: Tensor) -> None:
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
    if not any(len(positions) for positions in queries):
        raise InputError("queries names no position; expected at least one")
