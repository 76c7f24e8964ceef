"""Hide the vision tokens of a multimodal LLM from a decoder layer on.

The probe of PlaM (arXiv 2601.07645): with cut layer c, text sees the image in layers 0..c-1 and no longer in c..L-1.
The full square attention mask stays, and the columns of all vision tokens are closed in it for the rows of text, in
the prompt and in generated tokens alike. Delimiters, text, positions and the rows of the vision tokens themselves stay
as they are. Text before an image never saw it, because masks are causal, and stays as it is too.

Two more interventions close the image to some of the text only, to tell who still reads it. With the last token of the
prompt and everything generated behind it as one, the *last token*, and all other text of the prompt as the *question*,

- closed to the question, what the answer knows of the image it has looked up itself, from layer c on;
- closed to the last token, it has it from the question.

They follow the attention knockouts of Zhang et al. (arXiv 2411.18620), and differ: theirs block a window of layers and
look at the first answer token, ours block from a cut layer on, generated tokens too; their question is its own words,
ours is all text behind an image but the last token (delimiters, instructions, the template's words), or the image would
pass through what is left open. So every text row is closed by exactly one of the two. In prompts of several images that
holds for text between images as well, and images that come later go on reading it, whatever it has learnt.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from plam_eval.errors import did_you_mean, quoted
from plam_eval.probing.closed import READERS, ClosedTo
from plam_eval.probing.decoder import (
    ProbeError,
    attention_backend,
    cache_in,
    decoder,
    decoder_layers,
    has_visual_input,
    text_config,
    vision_positions,
    vision_token_ids,
)

_CLAIMED: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


@contextmanager
def mask_vision(model: nn.Module, from_layer: int, closed_to: ClosedTo = "text") -> Iterator[None]:
    """While entered, text in decoder layers `from_layer` and later sees no vision token.

    Holds for `model(...)` and `model.generate(...)`, with a dynamic KV cache or none. Prompts may be fed in pieces as
    long as all of a cache is filled inside the context. With `from_layer` = L, or in a call without images, the model
    is bit by bit the plain one.

    Where the image is closed to a part of the text, it has to be known where the prompt ends: a call on an empty cache,
    or without one, is a whole prompt, and each later call on that cache is one generated token.

    Args:
        model: an HF MLLM with sdpa or eager attention.
        from_layer: the cut, 0 (blind) to L (the plain model).
        closed_to: which text loses the image: all "text"; the "question", which is the text of the prompt but its last
            token; or the "last" token of the prompt and those generated behind it.

    Raises:
        ProbeError: on entry, for a model, an attention backend, a cut or a `closed_to` that is not supported, or inside
            another probe of the same model; in a call, where vision tokens or the end of the prompt cannot be told.
    """
    check_closed_to(closed_to)
    layers = decoder_layers(model)
    vision_token_ids(model)
    if not isinstance(from_layer, int) or not 0 <= from_layer <= len(layers):
        raise ProbeError(f"from_layer is {from_layer!r}; expected an integer from 0 to {len(layers)}")
    if from_layer < len(layers):
        check_mask(model)
    attention_backend(model)
    with claimed(model, "mask_vision"):
        handles = _hide(model, layers, from_layer, closed_to) if from_layer < len(layers) else []
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def check_closed_to(closed_to: str) -> ClosedTo:
    """The part of the text that a word names.

    Args:
        closed_to: the word.

    Raises:
        ProbeError: it names none.
    """
    names = [*READERS]
    for name in names:
        if closed_to == name:
            return name
    near = did_you_mean(closed_to, names)
    raise ProbeError(f"closed_to is {quoted(closed_to)}; expected {', '.join(names[:-1])} or {names[-1]}{near}")


def closed_rows(closed_to: ClosedTo, vision: Tensor, last: Tensor) -> Tensor:
    """The rows that lose the image, as booleans.

    Args:
        closed_to: which text.
        vision: (documents, rows); where there are vision tokens, whose own rows are never closed.
        last: (documents, rows); the last token of a prompt, and generated tokens.
    """
    if closed_to == "text":
        return ~vision
    return ~vision & (last if closed_to == "last" else ~last)


@contextmanager
def claimed(model: nn.Module, by: str) -> Iterator[None]:
    """While entered, a model's decoder is nobody else's: of two that change it at once neither would be right.

    Args:
        model: an HF MLLM.
        by: the function that claims it, for the message that another one gets.

    Raises:
        ProbeError: it is claimed already.
    """
    layers = decoder_layers(model)
    if layers in _CLAIMED:
        raise ProbeError(f"{type(model).__name__} is inside {_CLAIMED[layers]} already; leave that first")
    _CLAIMED[layers] = by
    try:
        yield
    finally:
        del _CLAIMED[layers]


def square_mask(mask: Tensor | None, hidden: Tensor, columns: int, past: int, backend: str) -> Tensor:
    """The attention mask of a decoder layer in full: (documents, heads or 1, rows, columns).

    transformers leaves it out where attention is plainly causal, with no column padding or out of a window, and relies
    on a flag that only holds as long as there is no mask.

    Args:
        mask: what the layer was given, boolean or additive, for all documents or one, or None.
        hidden: the layer's input, (documents, rows, hidden size).
        columns: number of keys.
        past: number of tokens before the first row.
        backend: sdpa or eager.
    """
    documents, rows = hidden.shape[:2]
    if mask is None:
        row = torch.arange(past, past + rows, device=hidden.device)
        mask = (torch.arange(columns, device=hidden.device)[None, :] <= row[:, None])[None, None]
        if backend == "eager":
            mask = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device).masked_fill_(~mask, _low(hidden))
    if mask.dim() != 4 or mask.shape[-2:] != (rows, columns):
        raise ProbeError(
            f"a decoder layer was given an attention mask of shape {list(mask.shape)}; expected "
            f"[{documents}, 1, {rows}, {columns}]. Static caches are not supported: leave cache_implementation unset"
        )
    return mask.expand(documents, -1, -1, -1)


def closed_value(mask: Tensor) -> float | bool:
    """What closes a position in a mask.

    Args:
        mask: boolean or additive.
    """
    return False if mask.dtype == torch.bool else _low(mask)


def _low(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).min


@dataclass
class _Seen:
    """Vision tokens among the keys of one cache: (documents, tokens), and whether there are any."""

    vision: Tensor
    any: bool


@dataclass
class _Call:
    """One forward call of the model: its vision tokens, and what its layers have worked out.

    Attributes:
        cached: whether the call was given a KV cache, so that its layers have to be given one too.
        given: keyword arguments of the call.
        closed: (documents, rows); the rows that lose the image, None where the call has no such rows.
        layers: how many decoder layers have had their mask changed, or left as it is where no row is closed.
    """

    vision: Tensor
    cached: bool
    given: dict[str, Any] = field(default_factory=dict)
    seen: _Seen | None = None
    closed: Tensor | None = None
    masks: dict[Any, tuple[Tensor | None, Tensor]] = field(default_factory=dict)
    layers: int = 0


class _Hider:
    def __init__(self, model: nn.Module, backend: str, layers: int, closed_to: ClosedTo = "text") -> None:
        self.model = model
        self.closed_to: ClosedTo = closed_to
        self.backend = backend
        self.layers = layers
        self.call: _Call | None = None
        self.caches: weakref.WeakKeyDictionary[Any, _Seen] = weakref.WeakKeyDictionary()

    def begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = args[0] if args else kwargs.get("input_ids")
        if input_ids is None:
            raise ProbeError(
                f"{type(self.model).__name__} was called without input_ids, so its vision tokens cannot be told; pass "
                "input_ids and pixel values instead of inputs_embeds"
            )
        vision = vision_positions(self.model, input_ids)
        cache = cache_in(kwargs)[1]
        attended = kwargs.get("attention_mask")
        if cache is None and isinstance(attended, Tensor) and attended.shape[-1] > input_ids.shape[1]:
            raise ProbeError(
                f"{type(self.model).__name__} was called with {input_ids.shape[1]} tokens and an attention_mask of "
                f"{attended.shape[-1]}, so it has a past, but with no KV cache of transformers' class Cache; expected "
                "one, by name"
            )
        self.call = _Call(vision if has_visual_input(kwargs) else torch.zeros_like(vision), cache is not None, kwargs)

    def end(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call, self.call = self.call, None
        if output is None or call is None or not call.vision.any():  # no output: the call raised
            return
        if call.layers != self.layers:
            raise ProbeError(
                f"{type(self.model).__name__} passed {call.layers} of the {self.layers} decoder layers that should "
                "not see the image with their masks changed; expected all, each called once"
            )

    def hide(self, index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.call is None:
            raise ProbeError(
                f"a decoder layer ran outside a call of {type(self.model).__name__}; inside mask_vision, call the "
                "model that was given to it"
            )
        hidden = args[0] if args else kwargs["hidden_states"]
        cache = cache_in(kwargs)[1]
        if "attention_mask" not in kwargs or (cache is None and self.call.cached):
            missing = "attention_mask" if "attention_mask" not in kwargs else "the KV cache"
            raise ProbeError(
                f"{type(self.model).__name__} calls its decoder layers with {', '.join(kwargs) or 'nothing'} by name; "
                f"expected {missing} among them. This version of transformers lays out its layers otherwise than the "
                "probe knows: install one that `plam doctor` names as tested"
            )
        rows = hidden.shape[1]
        past, columns, first = 0, rows, 0
        if cache is not None:
            if cache.is_compileable:
                raise ProbeError(f"{type(cache).__name__} is not supported; leave cache_implementation unset")
            past = cache.get_seq_length(index)
            columns, first = cache.get_mask_sizes(rows, index)
        if self.call.seen is None:
            self.call.seen = self._seen(self.call.vision, cache, past, hidden)
            self.call.closed = self._closed_rows(past) if self.call.seen.any else None
        if not self.call.seen.any:
            return None
        self.call.layers += 1
        if self.call.closed is None:
            return None
        given = kwargs["attention_mask"]
        key = (id(given), columns, first, hidden.device)
        if key not in self.call.masks:
            mask = square_mask(given, hidden, columns, past, self.backend)
            vision = self.call.seen.vision[:, first : first + columns].to(hidden.device)
            closed = self.call.closed.to(hidden.device)
            hidden_pairs = closed[:, None, :, None] & vision[:, None, None, :]
            # The mask given is kept beside its successor, so that its id stays its own during the call.
            self.call.masks[key] = given, mask.masked_fill(hidden_pairs, closed_value(mask))
        return args, {**kwargs, "attention_mask": self.call.masks[key][1]}

    def _closed_rows(self, past: int) -> Tensor | None:
        """The rows of this call that lose the image, None where there are none."""
        assert self.call is not None
        vision, given = self.call.vision, self.call.given
        last = torch.ones_like(vision)
        if self.closed_to != "text":
            keep = given.get("logits_to_keep")
            unclear = {
                f"{vision.shape[1]} tokens on a KV cache of {past}": past and vision.shape[1] > 1,
                "use_cache=False, as `generate` does to pass the prompt again with every token": given.get("use_cache")
                is False,
                f"logits_to_keep={keep}, as `generate` does for candidates": isinstance(keep, int) and keep > 1,
            }
            why = next((reason for reason, holds in unclear.items() if holds), None)
            if why is not None:
                raise ProbeError(
                    f"{type(self.model).__name__} was called with {why}, so the last token of its prompt cannot be "
                    f"told, which closed_to={self.closed_to!r} needs; expected the whole prompt in one call, and then "
                    "one token at a time on its cache"
                )
            if not past:
                last = _ends(vision, given.get("attention_mask"))
        closed = closed_rows(self.closed_to, vision, last)
        return closed if self.closed_to == "text" or bool(closed.any()) else None

    def _seen(self, new: Tensor, cache: Any, past: int, hidden: Tensor) -> _Seen:
        if new.shape != hidden.shape[:2]:
            raise ProbeError(
                f"input_ids are {list(new.shape)}, but the decoder runs on {list(hidden.shape[:2])} tokens; expected "
                "one token of the decoder per input id"
            )
        seen = _Seen(new, bool(new.any()))
        if past:
            before = self.caches.get(cache)
            if before is None or before.vision.shape[1] < past or before.vision.shape[0] != new.shape[0]:
                raise ProbeError(
                    f"the KV cache holds {past} tokens of which "
                    f"{0 if before is None else min(past, before.vision.shape[1])} were fed inside this mask_vision; "
                    "expected all. Start from an empty cache inside the context"
                )
            # A cache may have been cropped since (assisted decoding takes candidates back).
            seen = _Seen(torch.cat([before.vision[:, :past], new], dim=1), before.any or seen.any)
        if cache is not None:
            self.caches[cache] = seen
        return seen


def _ends(vision: Tensor, attended: Any) -> Tensor:
    """The last token of each prompt, as booleans (documents, tokens); padding behind it counts for nothing."""
    column = torch.arange(vision.shape[1], device=vision.device)
    last = column[-1:]
    if isinstance(attended, Tensor) and attended.shape == vision.shape:
        last = (attended.to(vision.device).bool() * column).amax(-1, keepdim=True)
    return (column == last).expand_as(vision)


def _hide(model: nn.Module, layers: nn.ModuleList, from_layer: int, closed_to: ClosedTo) -> list[RemovableHandle]:
    hider = _Hider(model, attention_backend(model), len(layers) - from_layer, closed_to)
    return [
        model.register_forward_pre_hook(hider.begin, with_kwargs=True),
        model.register_forward_hook(hider.end, with_kwargs=True, always_call=True),
        *_hooks(hider, layers, from_layer),
    ]


def _hooks(hider: _Hider, layers: nn.ModuleList, from_layer: int) -> list[RemovableHandle]:
    return [
        layers[index].register_forward_pre_hook(partial(hider.hide, index), with_kwargs=True)
        for index in range(from_layer, len(layers))
    ]


# ---- the self-check --------------------------------------------------------------------------------------------------

_CHECKED: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()
_TOKENS = 6
_HIDDEN = slice(1, 3)  # the positions that stand for an image in the tiny input
_AFTER = slice(3, None)


def check_mask(model: nn.Module) -> None:
    """Try out, on the model's own decoder, that what is hidden has no influence; once per model and backend.

    Six random embeddings pass the decoder, two of which stand for an image: plainly, with nothing hidden, and with
    those two hidden from every layer. The last token comes by itself, on the KV cache of the others, as a generated
    one does. Required are

    - outputs that are finite;
    - with nothing hidden, the plain model's outputs bit by bit, if it repeats them at all;
    - unhidden, other outputs of the tokens behind once the two are others;
    - hidden, the same outputs bit by bit, or (where kernels add up in another order, as mixtures of experts do) a
      gradient that is zero.

    Args:
        model: an HF MLLM.

    Raises:
        ProbeError: naming the model, transformers' version, and what was not as required.
    """
    backend = attention_backend(model)
    if backend in _CHECKED.setdefault(decoder(model), set()):
        return
    try:
        with torch.inference_mode(False), torch.no_grad(), _evaluating(decoder(model)):
            problem = _problem(model, backend)
    except (ProbeError, torch.OutOfMemoryError):  # too little memory says nothing about the model
        raise
    except Exception as error:
        problem = f"its decoder does not run on embeddings alone ({type(error).__name__}: {error})"
    if problem:
        raise ProbeError(
            f"{type(model).__name__} (transformers {transformers.__version__}, {backend} attention): {problem}. What "
            "the probe found would not be the masked model's. Try the other one of sdpa and eager attention "
            '(attn_implementation="eager"), or a version of transformers that `plam doctor` names as tested'
        )
    _CHECKED[decoder(model)].add(backend)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout, which would draw from the caller's random numbers, and with a KV cache in any case."""
    training = [each for each in module.modules() if each.training]
    for each in training:
        each.training = False
    try:
        yield
    finally:
        for each in training:
            each.training = True


def _problem(model: nn.Module, backend: str) -> str | None:
    """What is not as the mask's meaning requires, or None."""
    weight: Any = model.get_input_embeddings().weight  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, _TOKENS, text_config(model).hidden_size, generator=generator)
    dtype: Any = weight.dtype if weight.dtype.is_floating_point else model.dtype
    one = drawn[:1].to(weight.device, dtype)
    other = one.clone()
    other[:, _HIDDEN] = drawn[1:, _HIDDEN].to(one)
    none, two = torch.zeros(1, _TOKENS, dtype=torch.bool), torch.zeros(1, _TOKENS, dtype=torch.bool)
    two[:, _HIDDEN] = True

    plain = _outputs(model, one)
    if not bool(torch.isfinite(plain).all()):
        return f"its outputs are not finite in {dtype}: weights hold NaN or Inf, or another dtype is needed"
    unhidden = _outputs(model, one, backend, none)
    # Some kernels add up in another order at every call; then the plain model does not repeat itself either.
    if not torch.equal(plain, unhidden) and torch.equal(plain, _outputs(model, one)):
        return "with no token hidden its outputs are not the plain model's"
    if torch.equal(plain, _outputs(model, other)):
        return "its outputs do not depend on the tokens before them"
    if torch.equal(_outputs(model, one, backend, two), _outputs(model, other, backend, two)):
        return None
    with torch.enable_grad():
        embeddings = one.clone().requires_grad_()
        outputs = _outputs(model, embeddings, backend, two)
        towards = torch.randn(outputs.shape, generator=generator).to(outputs)
        (gradient,) = torch.autograd.grad((outputs * towards).sum(), embeddings)
    if bool(gradient[:, _HIDDEN].any()):
        return "hidden tokens still reach those behind them: its layers pass by the mask or the KV cache given to them"
    return None


def _outputs(model: nn.Module, embeddings: Tensor, backend: str = "", vision: Tensor | None = None) -> Tensor:
    """Of the decoder, for the tokens behind the hidden ones: (1, tokens, hidden size). Without `vision`, plainly."""
    module, layers = decoder(model), decoder_layers(model)
    hider = _Hider(model, backend, len(layers))
    handles = [] if vision is None else _hooks(hider, layers, 0)
    past: dict[str, Any] = {}
    outputs = []
    try:
        for tokens in (slice(0, -1), slice(-1, None)):
            if vision is not None:
                hider.call = _Call(vision[:, tokens].to(embeddings.device), bool(past))
            out = module(inputs_embeds=embeddings[:, tokens], use_cache=True, **past)
            name, cache = cache_in(out)
            if cache is None:
                raise ProbeError(f"{type(module).__name__} returns no KV cache; expected one among its outputs")
            past = {name: cache}
            outputs.append(out.last_hidden_state)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(outputs, dim=1)[:, _AFTER]
