"""What each decoder layer does to image and text, and when the answer is there: descriptions.

They are read off a model as it runs. What a layer is seen to do need not be needed: only an intervention, such as
`mask_vision`, says what an answer depends on. `layer_contribution` stands between: it leaves image tokens of one layer
as they were, and tells which layers still compute on the image, where the mask tells from where on nobody reads it.

What the stream is, depth by depth, and which tokens are image and which text, says `stream`.

All figures are per document: a mean over documents is the caller's, who also knows which of them to resample together.
Everything is worked out while the prompt passes, layer by layer, in float32; beside the prompt's own memory there is
the stream at one depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plam_eval.probing.decoder import ProbeError, decoder, decoder_layers, final_norm, output_head
from plam_eval.probing.masking import claimed
from plam_eval.probing.stream import Prompt, Visit, check_logits, next_logits, prefill


@dataclass(frozen=True, eq=False)
class Lens:
    """What the last prompt token would say at each depth, read through the final norm and the output head.

    The logit lens (nostalgebraist, 2020, "interpreting GPT: the logit lens"). At depth L it is the model's own next
    token; below, it is how far the stream points to a token in the basis of the last layer, which early layers need not
    use. Tensors are (documents, L + 1).

    Attributes:
        answer: (documents,) int64; the token that is looked for.
        log_prob: float32; log probability of the answer token, nats.
        rank: int64; how many tokens are more likely than it.
        top: int64; the likeliest token.
    """

    answer: Tensor
    log_prob: Tensor
    rank: Tensor
    top: Tensor

    @property
    def decided(self) -> Tensor:
        """(documents,) int64; the first depth from which on the answer token is the likeliest; L + 1 for none."""
        leads = self.rank == 0
        return leads.shape[1] - leads.flip(1).long().cumprod(1).sum(1)


@dataclass(frozen=True, eq=False)
class LayerContribution:
    """How much the next token's distribution changes when one layer leaves image tokens as they were.

    Layer contribution for visual tokens (ShortV, arXiv 2504.00502): in that layer image tokens are read, by its own
    keys and values, but neither attend nor pass its feed-forward.

    Attributes:
        layers: the layers that were tried.
        kl: (documents, layers) float32; KL(plain || changed) in nats at the last prompt token, NaN without an image.
        flips: (documents, layers) bool; another token is the likeliest.
    """

    layers: tuple[int, ...]
    kl: Tensor
    flips: Tensor


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """The stream of a model at all depths, to compare another setting of the model with.

    Attributes:
        input_ids: (documents, tokens) of the prompts.
        depths: for each of 0..L, (documents, tokens, hidden size) on the CPU in the model's dtype.
    """

    input_ids: Tensor
    depths: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Similarity:
    """Two settings of a model on the same prompts, such as plain and merged: (documents, L + 1) float32 each.

    Linear CKA (Kornblith et al., arXiv 1905.00414) compares how tokens lie to each other and does not see a rotation of
    all of them or their scale, cosines see a rotation. With fewer tokens than dimensions CKA is high between any two
    settings, and a few tokens of great norm decide it: compare depths and settings, not its height.

    Attributes:
        image_cosine, text_cosine: cosine between a token in one and in the other, mean over tokens.
        image_cka, text_cka: linear CKA over the tokens of one document; NaN for fewer than two.
    """

    image_cosine: Tensor
    text_cosine: Tensor
    image_cka: Tensor
    text_cka: Tensor


@dataclass(frozen=True, eq=False)
class Description:
    """One prompt of each document, layer by layer. NaN where a document has no such tokens or pairs.

    Drift and clouds are cosines as in Shukor and Cord (arXiv 2405.16700). Clouds are compared by the mean over pairs of
    tokens, and say something only side by side: image and text lie in one cone as far as `image_text` comes near
    `image_image` and `text_text`.

    Attributes:
        image_tokens, text_tokens: (documents,) int64; how many there are.
        image_drift, text_drift: (documents, L) float32; cosine between a token at depth l and at l + 1, mean over
            tokens. 1: layer l leaves their direction as it was.
        image_text: (documents, L + 1) float32; cosine between an image and a text token, mean over all pairs.
        image_image, text_text: (documents, L + 1) float32; the same among tokens of one kind, each with all others.
        lens: the logit lens, None where it was not asked for.
        states: the stream at all depths, None where it was not asked for.
        similarity: to a reference, None where none was given.
    """

    image_tokens: Tensor
    text_tokens: Tensor
    image_drift: Tensor
    text_drift: Tensor
    image_text: Tensor
    image_image: Tensor
    text_text: Tensor
    lens: Lens | None
    states: HiddenStates | None = None
    similarity: Similarity | None = None


@torch.no_grad()
def describe(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    answer: Tensor | None = None,
    lens: bool = True,
    states: bool = False,
    reference: HiddenStates | None = None,
) -> Description:
    """Drift, clouds and logit lens of a batch of prompts, in one prefill. May be called inside `mask_vision`.

    Args:
        model: an HF MLLM.
        inputs: as for `model(...)`: input_ids, attention_mask, pixel values; padded on the left.
        answer: (documents,) token ids for the lens; by default the model's own next tokens.
        lens: whether to read the stream through the output head.
        states: whether to keep the stream, as `hidden_states` does.
        reference: the stream of another setting of the model, to compare with, as `similarity` does.

    Raises:
        ProbeError: for a model whose stream, or whose logits for the lens, cannot be followed; for a reference of
            other prompts or of another model.
    """
    prompt = Prompt.of(model, inputs)
    clouds, ends = _Clouds(prompt), list[Tensor]()
    kept = _Kept(inputs) if states else None
    compared = None if reference is None else _Compared(model, inputs, prompt, reference)

    def end(depth: int, hidden: Tensor) -> None:
        ends.append(hidden[:, -1].clone())

    visits: list[Visit] = [clouds.visit, *([end] if lens else [])]
    visits += [each.visit for each in (kept, compared) if each is not None]
    logits = prefill(model, inputs, prompt, *visits)
    image_drift, text_drift = (torch.stack(each, 1) for each in clouds.drift)
    image, text = (torch.stack(each, 1) for each in clouds.within)
    return Description(
        image_tokens=prompt.image.sum(-1).cpu(),
        text_tokens=prompt.text.sum(-1).cpu(),
        image_drift=image_drift,
        text_drift=text_drift,
        image_text=torch.stack(clouds.across, 1),
        image_image=image,
        text_text=text,
        lens=_lens(model, ends, logits, answer) if lens else None,
        states=None if kept is None else kept.states(),
        similarity=None if compared is None else compared.similarity(),
    )


@torch.no_grad()
def layer_contribution(
    model: nn.Module, inputs: Mapping[str, Any], layers: Sequence[int] | None = None
) -> LayerContribution:
    """What each layer's work on image tokens contributes to the next token, by a pass of the decoder for each layer.

    Images are encoded once; the memory is that of one prefill.

    Args:
        model: an HF MLLM.
        inputs: as for `describe`.
        layers: decoder layers to try, 0..L-1; all by default.

    Raises:
        ProbeError: for layers that the model does not have, a model whose logits cannot be followed, or one inside
            another probe that changes its decoder.
    """
    stack, module, head = decoder_layers(model), decoder(model), output_head(model)
    chosen = tuple(range(len(stack))) if layers is None else tuple(layers)
    wrong = [layer for layer in chosen if type(layer) is not int or not 0 <= layer < len(stack)]
    if wrong or not chosen:
        raise ProbeError(
            f"layers {wrong or list(chosen)} are not of {type(model).__name__}; expected integers from 0 to "
            f"{len(stack) - 1}, at least one"
        )
    prompt = Prompt.of(model, inputs)
    kl, flips = [], []
    with claimed(model, "layer_contribution"):
        (args, kwargs), end = _decoder_call(model, inputs)
        plain = head(end).float()
        blind = ~prompt.image.any(-1).to(plain.device)
        for index in chosen:
            handle = stack[index].register_forward_hook(partial(_leave, prompt.image), with_kwargs=True)
            try:
                logits = head(module(*args, **kwargs).last_hidden_state[:, -1]).float()
            finally:
                handle.remove()
            kl.append(_divergence(plain, logits).masked_fill(blind, float("nan")).cpu())
            flips.append((logits.argmax(-1) != plain.argmax(-1)).cpu())
    return LayerContribution(chosen, torch.stack(kl, 1), torch.stack(flips, 1))


@torch.no_grad()
def hidden_states(model: nn.Module, inputs: Mapping[str, Any]) -> HiddenStates:
    """The stream of a batch of prompts at all depths, in one prefill: (L + 1) x tokens x hidden size of main memory.

    Args:
        model: an HF MLLM.
        inputs: as for `describe`.

    Raises:
        ProbeError: as `describe`.
    """
    kept = _Kept(inputs)
    prefill(model, inputs, Prompt.of(model, inputs), kept.visit)
    return kept.states()


@torch.no_grad()
def similarity(model: nn.Module, inputs: Mapping[str, Any], reference: HiddenStates) -> Similarity:
    """How near a model's stream is to that of another setting of it, such as the plain one before a merge.

    Args:
        model: an HF MLLM.
        inputs: as for `describe`; the prompts of the reference.
        reference: what `hidden_states` gave for the other setting.

    Raises:
        ProbeError: the reference is of other prompts or of another model; as `describe`.
    """
    prompt = Prompt.of(model, inputs)
    compared = _Compared(model, inputs, prompt, reference)
    prefill(model, inputs, prompt, compared.visit)
    return compared.similarity()


# ---- the decoder's own call ------------------------------------------------------------------------------------------


def _decoder_call(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[tuple[tuple[Any, ...], dict[str, Any]], Tensor]:
    """What the decoder is called with for these inputs, images encoded, and its output for the last token."""
    module = decoder(model)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    ends: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True),
        module.register_forward_hook(lambda _, args, output: ends.append(output.last_hidden_state[:, -1].clone())),
    ]
    try:
        own = next_logits(model, {**inputs, "use_cache": False})
    finally:
        for handle in handles:
            handle.remove()
    if len(ends) != 1:
        raise ProbeError(f"{type(model).__name__} called its {type(module).__name__} {len(ends)} times; expected once")
    check_logits(model, ends[0], own)
    return calls[0], ends[0]


def _leave(
    image: Tensor, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Tensor | tuple[Any, ...]:
    """The layer's output, with its input in place of it for image tokens."""
    hidden = args[0] if args else kwargs["hidden_states"]
    made = output if isinstance(output, Tensor) else output[0]
    left = torch.where(image.to(made.device)[..., None], hidden.to(made.device), made)
    return left if isinstance(output, Tensor) else (left, *output[1:])


def _divergence(plain: Tensor, other: Tensor) -> Tensor:
    """KL(plain || other) in nats, (documents,), of logits (documents, vocabulary)."""
    p, q = plain.log_softmax(-1), other.log_softmax(-1)
    return torch.where(p > float("-inf"), p.exp() * (p - q), 0.0).sum(-1).clamp(min=0)


def _lens(model: nn.Module, ends: Sequence[Tensor], own: Tensor, answer: Tensor | None) -> Lens:
    norm, head = final_norm(model), output_head(model)
    normed = [norm(hidden.to(ends[-1].device)[:, None])[:, 0] for hidden in ends]
    check_logits(model, normed[-1], own)
    token = own.argmax(-1) if answer is None else answer.to(own.device)
    if token.shape != own.shape[:1] or bool(((token < 0) | (token >= own.shape[-1])).any()):
        raise ProbeError(
            f"answer is {token.tolist()!s:.80}; expected a token id from 0 to {own.shape[-1] - 1} for each of "
            f"{len(own)} documents"
        )
    log_prob, rank, top = [], [], []
    for hidden in normed:  # one depth at a time: each makes a row of the vocabulary
        logits = head(hidden).float().to(own.device)
        chosen = logits.gather(-1, token[:, None])
        log_prob.append((chosen[:, 0] - logits.logsumexp(-1)).cpu())
        rank.append((logits > chosen).sum(-1).cpu())
        top.append(logits.argmax(-1).cpu())
    return Lens(token.cpu(), *(torch.stack(each, 1) for each in (log_prob, rank, top)))


# ---- what looks at the stream ----------------------------------------------------------------------------------------


class _Clouds:
    """Directions of image and text tokens at one depth, and what was found so far: (documents,) for each depth."""

    def __init__(self, prompt: Prompt) -> None:
        self.kinds = (prompt.image, prompt.text)
        self.before: list[list[Tensor]] | None = None
        self.drift: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.within: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.across: list[Tensor] = []

    def visit(self, depth: int, hidden: Tensor) -> None:
        units = [[_units(tokens) for tokens in _tokens(hidden, kind)] for kind in self.kinds]
        for index, each in enumerate(units):
            self.within[index].append(_gathered([_among(tokens) for tokens in each]))
            if self.before is not None:
                pairs = zip(self.before[index], each, strict=True)
                self.drift[index].append(_gathered([_cosine(x.to(y.device), y) for x, y in pairs]))
        # The mean over all pairs is the product of the mean directions.
        self.across.append(_gathered([(x.mean(0) * y.mean(0)).sum() for x, y in zip(*units, strict=True)]))
        self.before = units


class _Kept:
    """The stream at each depth, copied to the CPU."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self.input_ids: Tensor = inputs["input_ids"].detach().clone().cpu()
        self.depths: list[Tensor] = []

    def visit(self, depth: int, hidden: Tensor) -> None:
        self.depths.append(hidden.detach().clone().cpu())

    def states(self) -> HiddenStates:
        return HiddenStates(self.input_ids, tuple(self.depths))


class _Compared:
    """How near the stream is to that of a reference, at each depth."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any], prompt: Prompt, reference: HiddenStates) -> None:
        if not torch.equal(reference.input_ids, inputs["input_ids"].cpu()):
            raise ProbeError(
                f"the reference is of {list(reference.input_ids.shape)} input_ids, other than the "
                f"{list(prompt.image.shape)} given; expected the same prompts, padded alike"
            )
        if len(reference.depths) != len(decoder_layers(model)) + 1:
            raise ProbeError(
                f"the reference has {len(reference.depths) - 1} layers, {type(model).__name__} has "
                f"{len(decoder_layers(model))}; expected two settings of one model"
            )
        self.kinds, self.reference = {"image": prompt.image, "text": prompt.text}, reference
        self.by_depth: dict[str, list[Tensor]] = {f"{kind}_{of}": [] for kind in self.kinds for of in ("cosine", "cka")}

    def visit(self, depth: int, hidden: Tensor) -> None:
        other = self.reference.depths[depth].to(hidden.device)
        for name, kind in self.kinds.items():
            pairs = [*zip(_tokens(hidden, kind), _tokens(other, kind), strict=True)]
            self.by_depth[f"{name}_cosine"].append(_gathered([_cosine(_units(x), _units(y)) for x, y in pairs]))
            self.by_depth[f"{name}_cka"].append(_gathered([_linear_cka(x, y) for x, y in pairs]))

    def similarity(self) -> Similarity:
        return Similarity(**{name: torch.stack(each, 1) for name, each in self.by_depth.items()})


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def _tokens(hidden: Tensor, kind: Tensor) -> list[Tensor]:
    """The tokens of one kind for each document, (tokens, hidden size) float32."""
    return [own[where].float() for own, where in zip(hidden, kind.to(hidden.device), strict=True)]


def _units(tokens: Tensor) -> Tensor:
    return nn.functional.normalize(tokens, dim=-1)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Between the tokens of one and of the other, mean over tokens; (tokens, hidden size) directions each."""
    return (one * other).sum(-1).mean()


def _among(units: Tensor) -> Tensor:
    """Cosine of each token with all others, mean over pairs."""
    count = len(units)
    total = units.double().sum(0).square().sum() - units.double().square().sum()
    return (total / (count * (count - 1))).float() if count > 1 else units.new_tensor(float("nan"))


def _linear_cka(one: Tensor, other: Tensor) -> Tensor:
    """Linear CKA over tokens, (tokens, hidden size) each, by the smaller of both Gram matrices."""
    count, size = one.shape
    if count < 2:
        return one.new_tensor(float("nan"))
    x, y = one - one.mean(0), other - other.mean(0)
    # Its scale drops out, and fourth powers of what large streams hold would not fit float32.
    x, y = x / x.norm(), y / y.norm()
    if count <= size:
        first, second = x @ x.T, y @ y.T
        return (first * second).sum() / (first.norm() * second.norm())
    return (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def _gathered(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.float() for value in values]).cpu()
