"""A prompt on its way through the decoder: which tokens are image and which text, and the stream at each depth.

The *stream* at depth l, for l = 0..L, is what enters decoder layer l, and at depth L what leaves the last layer, before
the final norm. Image features that a decoder adds between layers belong to the next depth. *Image tokens* are those
that `vision_positions` names, *text tokens* all others that are no padding, delimiters and template among them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plam_eval.probing.decoder import ProbeError, decoder_layers, has_visual_input, output_head, vision_positions

Visit = Callable[[int, Tensor], None]
"""Called with a depth, 0..L, and the stream there, (documents, tokens, hidden size)."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """The tokens of a batch of prompts by kind; padding is neither.

    Attributes:
        image, text: (documents, tokens) bool each.
    """

    image: Tensor
    text: Tensor

    @classmethod
    def of(cls, model: nn.Module, inputs: Mapping[str, Any]) -> Prompt:
        """Tell them in the inputs of a model's call.

        Args:
            model: an HF MLLM.
            inputs: as for `model(...)`, padded on the left.

        Raises:
            ProbeError: there are no input ids, or prompts are not padded on the left.
        """
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor):
            raise ProbeError(
                f"inputs hold {', '.join(inputs) or 'nothing'}; expected input_ids, to tell image tokens by"
            )
        image = vision_positions(model, ids)
        if not has_visual_input(inputs):
            image = torch.zeros_like(image)
        attended = inputs.get("attention_mask")
        real = torch.ones_like(image) if attended is None else attended.bool()
        if real.shape != image.shape or not bool(real[:, -1].all()):
            raise ProbeError(
                f"attention_mask is {list(real.shape)} for input_ids of {list(image.shape)}, or closes the last token; "
                "expected prompts padded on the left (padding_side='left')"
            )
        return cls(image & real, ~image & real)


def prefill(model: nn.Module, inputs: Mapping[str, Any], prompt: Prompt, *visits: Visit) -> Tensor:
    """Let a batch of prompts pass the model once.

    Args:
        model: an HF MLLM.
        inputs: as for `model(...)`.
        prompt: their tokens.
        *visits: each sees the stream at every depth, in order. What it gets is the model's own: to be copied, where it
            is kept.

    Returns:
        The logits behind the last prompt token, (documents, vocabulary).

    Raises:
        ProbeError: the stream cannot be followed.
    """
    seen: list[int] = []

    def at(depth: int, hidden: Tensor) -> None:
        if hidden.shape[:2] != prompt.image.shape:
            raise ProbeError(
                f"input_ids are {list(prompt.image.shape)}, but the decoder runs on {list(hidden.shape[:2])} tokens; "
                "expected one token of the decoder per input id"
            )
        seen.append(depth)
        for visit in visits:
            visit(depth, hidden)

    with _following(model, at):
        logits = next_logits(model, inputs)
    if seen != list(range(len(decoder_layers(model)) + 1)):
        raise ProbeError(
            f"{type(model).__name__} passed the depths {seen} of its {len(decoder_layers(model))} decoder layers; "
            "expected each layer once, in order"
        )
    return logits


@contextmanager
def _following(model: nn.Module, at: Visit) -> Iterator[None]:
    layers = decoder_layers(model)

    def enters(depth: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        at(depth, args[0] if args else kwargs["hidden_states"])

    def leaves(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        at(len(layers), output if isinstance(output, Tensor) else output[0])

    handles = [
        *(layer.register_forward_pre_hook(partial(enters, i), with_kwargs=True) for i, layer in enumerate(layers)),
        layers[-1].register_forward_hook(leaves),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def next_logits(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Logits behind the last token alone, (documents, vocabulary): all of them may take more memory than the prompt.

    Args:
        model: an HF MLLM.
        inputs: as for `model(...)`.
    """
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    given = {name: value for name, value in inputs.items() if name != "labels"}  # some processors bring them
    logits: Tensor = model(**{**given, **keep}).logits[:, -1]
    return logits


def check_logits(model: nn.Module, end: Tensor, own: Tensor) -> None:
    """Raise ProbeError where the head, given the normed stream at depth L, does not give the model's own logits.

    Args:
        model: an HF MLLM.
        end: (documents, hidden size), behind the final norm.
        own: (documents, vocabulary).
    """
    eps = max(torch.finfo(end.dtype).eps, 64 * torch.finfo(torch.float32).eps)
    own = own.float()
    apart, size = float((output_head(model)(end).to(own) - own).abs().max()), float(own.abs().max())
    if not apart <= 4 * eps * size:  # nor NaN
        raise ProbeError(
            f"{type(model).__name__}: final norm and output head give logits {apart:.3g} away from the model's own, "
            f"which reach {size:.3g}; expected the same. It caps or scales them, or they are no numbers"
        )
