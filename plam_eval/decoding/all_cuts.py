"""The answers of a multimodal LLM under every cut layer at once.

`generate_all_cuts` gives what `mask_vision(model, c)` and `model.generate` would give for each cut c = 0..L, for
little more than one generation. What it saves rests on three facts about a model cut at layer c:

- text before the first vision token, and the vision tokens themselves as far as any text sees them, are the plain
  model's at every layer;
- below layer c everything is the plain model's;
- from layer c on, text after the first vision token attends to text alone.

So the prompt runs once, plainly. Beside it, at every decoder layer l, the text after the first vision token runs once
more for each cut c <= l, all cuts in one batch: about `1 + L/2 * (such tokens / all tokens)` prompts of work in place
of L + 1. Then all cuts of all documents are decoded as one batch. Keys and values of the prompt are kept once per
document; a cut keeps its own only for the text after the first vision token, in the layers from its cut on.

Where the image is closed to a part of the text only (`closed_to`), other tokens run beside the prompt, and the rest is
the same:

- closed to the last token, that token alone changes, and what is generated attends to text alone;
- closed to the question, everything behind the first text that is closed changes, later images among it, because they
  and the last token read that text; what is generated attends to all tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from plam_eval.decoding.greedy import check_call, check_settings, document_dim, of_rows, own_stop_strings
from plam_eval.probing.closed import ClosedTo
from plam_eval.probing.cuts import ascending_cuts
from plam_eval.probing.decoder import (
    ProbeError,
    attention_backend,
    cache_in,
    decoder,
    decoder_layers,
    has_visual_input,
    vision_positions,
    vision_token_ids,
)
from plam_eval.probing.masking import (
    check_closed_to,
    check_mask,
    claimed,
    closed_rows,
    closed_value,
    square_mask,
)
from plam_eval.probing.skeleton import check_shared_keys


@dataclass(frozen=True, eq=False)
class CutAnswers:
    """Greedy answers of one batch of documents under each cut.

    Attributes:
        cuts: decoder layers, ascending, each in 0..L; the last is L, the unmasked model.
        tokens: (cuts, documents, new tokens) int64; after its end an answer is padded as `generate` pads.
        kl: (cuts, documents) float32; KL(unmasked || cut) in nats between the distributions of the first answer token,
            before any logits processor.
    """

    cuts: tuple[int, ...]
    tokens: Tensor
    kl: Tensor


@torch.no_grad()
def generate_all_cuts(
    model: nn.Module, cuts: Sequence[int] | None = None, *, closed_to: ClosedTo = "text", **generate_kwargs: Any
) -> CutAnswers:
    """What `model.generate(**generate_kwargs)` answers under each cut, token for token.

    Decoding is greedy and otherwise that of `generate`: lengths, end tokens, logits processors, stop strings and
    stopping criteria of the call and of the generation config. Processors and criteria are called for each cut in turn
    on the whole batch, so they must keep no state between calls. Batches must be padded on the left.

    Equal token for token in float32. In lower precision sums are rounded in another order, as between batch sizes, and
    two tokens that the model holds equally likely may change places.

    Args:
        model: an HF MLLM that `mask_vision` takes, without sliding windows.
        cuts: cut layers in 0..L, all of them by default; L is always added. Fewer cost less.
        closed_to: which text loses the image, as for `mask_vision`.
        generate_kwargs: as for `model.generate`, prompt included.

    Raises:
        ProbeError: for a model or settings it cannot answer for, before anything runs where that shows.
    """
    check_closed_to(closed_to)
    layers = len(decoder_layers(model))
    vision_token_ids(model)
    attention_backend(model)
    chosen = ascending_cuts(cuts, layers)
    check_shared_keys(model)
    check_call("generate_all_cuts", generate_kwargs)
    check_mask(model)
    with claimed(model, "generate_all_cuts"):
        answers: CutAnswers = model.generate(  # type: ignore[operator]
            **own_stop_strings(model, generate_kwargs), custom_generate=partial(_generate, chosen, closed_to)
        )
    return answers


# ---- the decoding loop -----------------------------------------------------------------------------------------------


def _generate(
    cuts: tuple[int, ...],
    closed_to: ClosedTo,
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> CutAnswers:
    """`generate`'s greedy loop over (cut, document) rows in place of documents. Called by `generate` itself."""
    check_settings("generate_all_cuts", generation_config, model_kwargs)
    prompt = _Prompt.of(model, input_ids, model_kwargs, closed_to)
    rows = _Rows.of(cuts, prompt)
    cache_name, shared = cache_in(model_kwargs)
    assert isinstance(shared, DynamicCache)  # says check_settings
    scan = _Scan(model, cuts, prompt, shared)

    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    with scan.prefilling():
        outputs = model(**inputs, return_dict=True)
    model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
    model_kwargs = of_rows(model_kwargs, rows.documents, input_ids.shape[0])
    model_kwargs[cache_name] = scan.cache

    logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
    del outputs
    kl = _divergence(logits, rows, cuts, input_ids.shape[0])
    answers = _Answers(cuts, input_ids, logits_processor, stopping_criteria, generation_config)
    with scan.decoding(rows):
        while True:
            answers.extend(logits, rows)
            keep = answers.unfinished(rows)
            if not any(keep):
                break
            if not all(keep):
                kept = torch.tensor([index for index, kept in enumerate(keep) if kept], device=input_ids.device)
                rows, model_kwargs = rows.select(keep), of_rows(model_kwargs, kept, len(keep))
                scan.select(kept, rows)
            inputs = model.prepare_inputs_for_generation(
                answers.ids_of(rows), next_sequence_length=1, **{**model_kwargs, cache_name: scan.cache}
            )
            outputs = scan.step(inputs)
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
            del outputs
    return CutAnswers(cuts, answers.tokens(), kl)


def _divergence(logits: Tensor, rows: _Rows, cuts: tuple[int, ...], documents: int) -> Tensor:
    log_p = logits.log_softmax(-1)
    reference = {doc: row for row, (cut, doc) in enumerate(rows.pairs) if cut == cuts[-1]}
    kl = torch.zeros(len(cuts), documents, device=logits.device)
    for row, (cut, doc) in enumerate(rows.pairs):
        plain = log_p[reference[doc]]
        # Tokens a model rules out have no log to compare, and no probability.
        terms = torch.where(plain > float("-inf"), plain.exp() * (plain - log_p[row]), 0.0)
        kl[cuts.index(cut), doc] = terms.sum().clamp(min=0)
    return kl


class _Answers:
    """Token ids of every cut, extended as `generate` extends them."""

    def __init__(
        self,
        cuts: tuple[int, ...],
        input_ids: Tensor,
        processor: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
    ) -> None:
        self.cuts, self.processor, self.criteria = cuts, processor, criteria
        self.documents, self.prompt_length = input_ids.shape
        self.pad = config._pad_token_tensor.to(input_ids.device) if config._pad_token_tensor is not None else None
        self.pads_finished = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        self.ids = dict.fromkeys(cuts, input_ids)
        self.open = {cut: input_ids.new_ones(self.documents) for cut in cuts}
        self.running = set(cuts)

    def extend(self, logits: Tensor, rows: _Rows) -> None:
        """One more token for every cut that `generate` would still be running for; logits: (rows, vocabulary)."""
        for cut in sorted(self.running):
            where = [rows.row_of.get((cut, doc)) for doc in range(self.documents)]
            # A row that has gone belongs to a finished answer, and what is scored for it becomes padding.
            own = logits[torch.tensor([0 if row is None else row for row in where], device=logits.device)]
            chosen = self.processor(self.ids[cut], own).argmax(-1)  # type: ignore[arg-type]
            if self.pads_finished and self.pad is not None:
                chosen = chosen * self.open[cut] + self.pad * (1 - self.open[cut])
            self.ids[cut] = torch.cat([self.ids[cut], chosen[:, None]], dim=-1)
            self.open[cut] = self.open[cut] & ~self.criteria(self.ids[cut], None)
        going = torch.stack([self.open[cut].any() for cut in sorted(self.running)]).tolist()
        self.running = {cut for cut, goes in zip(sorted(self.running), going, strict=True) if goes}

    def unfinished(self, rows: _Rows) -> list[bool]:
        """Which rows are to be decoded further."""
        still = {cut: self.open[cut].bool().tolist() for cut in self.running}
        # Without an end token `generate` goes on writing finished answers while another of the batch is not.
        wanted = {
            rows.row_of[cut, doc]
            for cut, documents in still.items()
            for doc, goes in enumerate(documents)
            if (goes or not self.pads_finished) and (cut, doc) in rows.row_of
        }
        return [row in wanted for row in range(len(rows.pairs))]

    def ids_of(self, rows: _Rows) -> Tensor:
        """Token ids so far, (rows, tokens)."""
        # A row of a document without images speaks for all cuts, of which the unmasked may not be the last to run.
        return torch.stack(
            [self.ids[cut if cut in self.running else max(self.running)][doc] for cut, doc in rows.pairs]
        )

    def tokens(self) -> Tensor:
        new = [self.ids[cut][:, self.prompt_length :] for cut in self.cuts]
        longest = max(ids.shape[1] for ids in new)
        if self.pad is None and any(ids.shape[1] != longest for ids in new):
            raise ProbeError("answers end at different lengths and there is no pad token; pass pad_token_id=")
        fill = 0 if self.pad is None else int(self.pad)
        return torch.stack([nn.functional.pad(ids, (0, longest - ids.shape[1]), value=fill) for ids in new])


# ---- what the prompt is made of --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prompt:
    """What of a batch's prompts a cut changes, and what is read beside it. Documents have vision tokens, or no cuts.

    Attributes:
        documents: number of documents.
        length: number of tokens, padding included.
        seeing: the documents with vision tokens; the tensors below have a row for each of them.
        real: (documents, length); False where there is padding.
        vision: (seeing, length); vision tokens.
        closed: (seeing, length); the rows that lose the image from the cut on.
        changed: (seeing, length); tokens that a cut changes and that somebody reads.
        before, before_real: (seeing, S); tokens that no cut changes, read by those and by what is generated, aligned to
            the end, and which of them are real.
        after, after_real: (seeing, P); the changed tokens, aligned to the end.
        seen_after: some changed token is a vision token.
    """

    documents: int
    length: int
    seeing: tuple[int, ...]
    real: Tensor
    vision: Tensor
    closed: Tensor
    changed: Tensor
    before: Tensor
    before_real: Tensor
    after: Tensor
    after_real: Tensor
    seen_after: bool

    @classmethod
    def of(
        cls, model: nn.Module, input_ids: Tensor, model_kwargs: dict[str, Any], closed_to: ClosedTo = "text"
    ) -> _Prompt:
        vision = vision_positions(model, input_ids)
        if not has_visual_input(model_kwargs):
            vision = torch.zeros_like(vision)
        given = model_kwargs.get("attention_mask")
        real = torch.ones_like(vision) if given is None else given.bool()
        if real.shape != vision.shape or not bool(real[:, -1].all()):
            raise ProbeError(
                f"attention_mask is {list(real.shape)} for input_ids of {list(vision.shape)}, or closes the last token"
                "; expected prompts padded on the left (padding_side='left')"
            )
        seeing = vision.any(-1).nonzero()[:, 0]
        own, own_vision = real[seeing], vision[seeing]
        column = torch.arange(input_ids.shape[1], device=input_ids.device)
        closed = closed_rows(closed_to, own_vision, (column == len(column) - 1).expand_as(own_vision))
        changed = own & closed & (column > own_vision.int().argmax(-1, keepdim=True))
        if closed_to == "question":  # whose tokens others read that still see the image: the last token, later images
            changed = own & (changed.cumsum(-1) > 0)
        readable = own if closed_to == "question" else own & ~own_vision
        before, before_real = _aligned(readable & ~changed)
        after, after_real = _aligned(changed)
        unread = (own_vision[:, -1] & after_real.any(-1) & ~changed[:, -1]).nonzero()[:, 0].tolist()
        if unread:
            raise ProbeError(
                f"documents {[int(seeing[row]) for row in unread]} end in a vision token that has text and other "
                "vision tokens before it; use mask_vision and generate"
            )
        return cls(
            documents=input_ids.shape[0],
            length=input_ids.shape[1],
            seeing=tuple(seeing.tolist()),
            real=real,
            vision=own_vision,
            closed=closed,
            changed=changed,
            before=before,
            before_real=before_real,
            after=after,
            after_real=after_real,
            seen_after=bool((changed & own_vision).any()),
        )


def _aligned(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Positions where `chosen` (documents, tokens) holds, aligned to the end: (positions, which are real)."""
    counts = chosen.sum(-1)
    width = max(int(counts.max()), 1) if len(counts) else 1
    # A stable sort of booleans keeps positions in order and moves the chosen ones to the end.
    positions = chosen.int().argsort(dim=-1, stable=True)[:, -width:]
    return positions, torch.arange(width, device=chosen.device) >= width - counts[:, None]


@dataclass(frozen=True)
class _Rows:
    """The batch that is decoded: (cut, document) pairs in order of their cuts.

    A document without images has the same answer under every cut and therefore one row, that of the unmasked model.
    """

    pairs: tuple[tuple[int, int], ...]
    row_of: dict[tuple[int, int], int]
    """Row that speaks for a cut and a document."""
    documents: Tensor

    @classmethod
    def of(cls, cuts: tuple[int, ...], prompt: _Prompt) -> _Rows:
        pairs = [(cut, doc) for cut in cuts[:-1] for doc in prompt.seeing]
        pairs += [(cuts[-1], doc) for doc in range(prompt.documents)]
        own = {pair: row for row, pair in enumerate(pairs)}
        row_of = {
            (cut, doc): own.get((cut, doc), own[cuts[-1], doc]) for cut in cuts for doc in range(prompt.documents)
        }
        return cls(tuple(pairs), row_of, torch.tensor([doc for _, doc in pairs], device=prompt.real.device))

    def select(self, keep: list[bool]) -> _Rows:
        moved = {old: new for new, old in enumerate(row for row, kept in enumerate(keep) if kept)}
        return _Rows(
            tuple(pair for pair, kept in zip(self.pairs, keep, strict=True) if kept),
            {pair: moved[row] for pair, row in self.row_of.items() if row in moved},
            self.documents[torch.tensor(keep, device=self.documents.device)],
        )

    def cut_by(self, layer: int) -> int:
        """How many rows, which are the first ones, are cut at or below `layer`."""
        return sum(cut <= layer for cut, _ in self.pairs)


# ---- the model's layers ----------------------------------------------------------------------------------------------


class _Keys(CacheLayerMixin):
    """Keys and values of one decoder layer, (documents or rows, heads, tokens, head size) each."""

    def __init__(self, shared: DynamicCache, index: int) -> None:
        super().__init__()
        self.shared, self.index = shared, index
        self.before: tuple[Tensor, Tensor] | None = None
        """Per document with vision tokens: what no cut changes, as far as somebody reads it."""
        self.after: tuple[Tensor, Tensor] | None = None
        """Per row cut at or below this layer: the changed tokens."""
        self.new: tuple[Tensor, Tensor] | None = None
        """Per row: generated tokens."""
        self.prefilling: Tensor | None = None
        """While cut prompts run: for each of their rows, which of the documents with vision tokens it is of."""
        self.parts: list[tuple[Tensor, Tensor]] = []

    def prompt(self) -> tuple[Tensor, Tensor]:
        layer = self.shared.layers[self.index]
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        return layer.keys, layer.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        new = key_states, value_states
        if self.prefilling is not None:
            assert self.before is not None
            self.parts.append(new)
            keys, values = (
                torch.cat([shared[self.prefilling], own], dim=-2) for shared, own in zip(self.before, new, strict=True)
            )
            return keys, values
        self.new = (
            new
            if self.new is None
            else tuple(  # type: ignore[assignment]
                torch.cat(pair, dim=-2) for pair in zip(self.new, new, strict=True)
            )
        )
        return new

    def join(self) -> int:
        """Makes `after` of its parts; the number of its rows."""
        if not self.parts:
            return 0
        keys, values = zip(*self.parts, strict=True)
        self.parts, self.after = [], (torch.cat(keys), torch.cat(values))
        return len(self.after[0])

    def select(self, kept: Tensor, cut_rows: int) -> None:
        """`cut_rows`: how many of the kept rows are cut at or below this layer."""

        def pick(pair: tuple[Tensor, Tensor] | None, rows: Tensor) -> tuple[Tensor, Tensor] | None:
            return None if pair is None else (pair[0][rows.to(pair[0].device)], pair[1][rows.to(pair[1].device)])

        self.new = pick(self.new, kept)
        self.after = pick(self.after, kept[:cut_rows])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: lengths are known from the prompt."""

    def get_seq_length(self) -> int:
        keys = self.prompt()[0]
        return int(keys.shape[-2]) + (0 if self.new is None else self.new[0].shape[-2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class _Scan:
    """Runs the cuts beside the plain prompt, and then all rows on shared keys."""

    def __init__(self, model: Any, cuts: tuple[int, ...], prompt: _Prompt, shared: DynamicCache) -> None:
        self.model, self.cuts, self.prompt = model, cuts, prompt
        self.backend = attention_backend(model)
        self.layers = decoder_layers(model)
        self.keys = [_Keys(shared, index) for index in range(len(self.layers))]
        self.cache = Cache(layers=[*self.keys])
        self.hidden: Tensor | None = None
        self.plain: Tensor | None = None
        self.extra: dict[str, Any] | None = None
        self.inside = False
        self.calls = 0

    # The prompt.

    @contextmanager
    def prefilling(self) -> Iterator[None]:
        last = len(self.layers) - 1
        handles = [
            layer.register_forward_hook(partial(self._beside, index, index == last), with_kwargs=True)
            for index, layer in enumerate(self.layers)
            if index == last or (self.prompt.seeing and index >= self.cuts[0])
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.hidden = self.plain = self.extra = None

    def _beside(
        self, index: int, last: bool, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """After the plain layer: the same layer for all cuts up to it. Of the last one, the rows to be answered."""
        if self.inside:
            return None
        if not isinstance(output, Tensor):
            raise ProbeError(f"{type(layer).__name__} gives {type(output).__name__}; expected hidden states alone")
        plain = args[0] if args else kwargs["hidden_states"]
        if self.hidden is not None and self.prompt.seen_after and plain is not self.plain:
            self.hidden = self.hidden + self._added(plain)
        self.plain = output
        if index in self.cuts and self.prompt.seeing:
            joining = self._after_rows(plain)
            self.hidden = joining if self.hidden is None else torch.cat([self.hidden, joining])
        if self.hidden is not None:
            self.hidden = self._run(index, layer, plain, kwargs)
        if not last:
            return None
        ends = output[:, -1:]
        if self.hidden is None:
            return ends
        cut, ends_cut = len(self.cuts) - 1, ends[list(self.prompt.seeing)]
        # The end of a prompt that no cut changes: a vision token, whose row nothing is closed to.
        shared = ~self.prompt.changed[:, -1].to(ends.device)[:, None, None].repeat(cut, 1, 1)
        return torch.cat([torch.where(shared, ends_cut.repeat(cut, 1, 1), self.hidden[:, -1:]), ends])

    def _added(self, plain: Tensor) -> Tensor:
        """What the decoder has added to changed vision tokens since its last layer, for all cuts: (rows, P, size).

        Some decoders add image features between their first layers (DeepStack).
        """
        assert self.hidden is not None and self.plain is not None
        added = self._after_rows(plain) - self._after_rows(self.plain.to(plain.device))
        text = self.prompt.after_real & ~self.prompt.vision.gather(1, self.prompt.after)
        if bool(added[text.to(plain.device)].any()):
            raise ProbeError(
                f"{type(self.model).__name__} changes text between its decoder layers, which the scan does not know; "
                "use mask_vision and generate"
            )
        return added.repeat(len(self.hidden) // len(added), 1, 1).to(self.hidden.device)

    def _after_rows(self, value: Tensor, dim: int = 0) -> Tensor:
        """The changed tokens: (..., seeing, P, ...).

        Args:
            value: (..., documents or 1, tokens, ...).
            dim: that of the documents.
        """
        after = self.prompt.after.to(value.device)
        seeing = torch.tensor(self.prompt.seeing, device=value.device)
        value = value.movedim((dim, dim + 1), (0, 1))
        value = value.expand(self.prompt.documents, *value.shape[1:])[seeing[:, None], after]
        return value.movedim((0, 1), (dim, dim + 1))

    def _run(self, index: int, layer: nn.Module, plain: Tensor, kwargs: dict[str, Any]) -> Tensor:
        assert self.hidden is not None
        keys = self.keys[index]
        seeing = torch.tensor(self.prompt.seeing, device=plain.device)[:, None]
        before = self.prompt.before.to(plain.device)
        prompt_keys, prompt_values = (states.transpose(1, 2)[seeing, before] for states in keys.prompt())
        keys.before = prompt_keys.transpose(1, 2), prompt_values.transpose(1, 2)
        cache_name, _ = cache_in(kwargs)
        if not cache_name or "attention_mask" not in kwargs:
            raise ProbeError(
                f"{type(layer).__name__} was called with {', '.join(kwargs) or 'nothing'} by name; expected a KV cache "
                "and attention_mask among them. Use mask_vision and generate"
            )
        if self.extra is None:
            self.extra = self._of_cut_rows(plain, kwargs)
        documents = torch.arange(len(seeing), device=plain.device).repeat(len(self.hidden) // len(seeing))
        # In parts no larger than the prompt itself, so that activations need no more memory than the plain pass.
        size = max(plain.shape[:2].numel() // self.hidden.shape[1], 1)
        self.inside = True
        try:
            parts = []
            for hidden, keys.prefilling in zip(self.hidden.split(size), documents.split(size), strict=True):
                own = {name: _take(name, value, keys.prefilling) for name, value in self.extra.items()}
                parts.append(layer(hidden, **{**kwargs, **own, cache_name: self.cache}))
        finally:
            self.inside, keys.prefilling = False, None
        if keys.join() != len(self.hidden):
            raise ProbeError(f"{type(layer).__name__} does not use its KV cache; expected keys and values to pass it")
        return torch.cat(parts)

    def _of_cut_rows(self, plain: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The layer's masks and positions for the changed tokens: (seeing, ...) each."""

        def behind(name: str, value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(behind(name, part) for part in value)
            return self._after_rows(value, document_dim(name, value))

        own = {"attention_mask": self._mask(plain, kwargs.get("attention_mask"))}
        for name in ("position_embeddings", "position_ids"):
            if kwargs.get(name) is not None:
                own[name] = behind(name, kwargs[name])
        strange = [
            name
            for name, value in kwargs.items()
            if name not in own and isinstance(value, Tensor) and self.prompt.length in value.shape
        ]
        if strange:
            raise ProbeError(
                f"{type(self.model).__name__}: decoder layers take {', '.join(strange)} per token, which the scan does "
                "not know how to split; use mask_vision and generate"
            )
        return own

    def _mask(self, plain: Tensor, given: Tensor | None) -> Tensor:
        """What the changed tokens see of unchanged ones and of themselves: (seeing, heads or 1, P, S + P)."""
        full = square_mask(given, plain, self.prompt.length, 0, self.backend).movedim(1, -1)
        prompt, device = self.prompt, plain.device
        seeing = torch.tensor(prompt.seeing, device=device)[:, None, None]
        before, after = prompt.before.to(device), prompt.after.to(device)
        vision, closed = prompt.vision.to(device), prompt.closed.to(device)
        columns = torch.cat([before, after], dim=1)
        real = torch.cat([prompt.before_real, prompt.after_real], dim=1).to(device)
        if given is not None:
            rows = full[seeing[:, 0], before] != closed_value(full)
            loses = vision[:, None, :] & closed.gather(1, before)[:, :, None]
            changes = (prompt.changed.to(device)[:, None, :] | loses) & prompt.before_real.to(device)[:, :, None]
            if bool((rows & changes[..., None]).any()):
                raise ProbeError(
                    f"{type(self.model).__name__} lets tokens see what comes after them, so that what stands before an "
                    "image, or before text that loses it, is not the same for all cuts; use mask_vision and generate"
                )
        mask = full[seeing, after[:, :, None], columns[:, None, :]].movedim(-1, 1)
        shut = closed.gather(1, after)[:, :, None] & vision.gather(1, columns)[:, None, :]
        return mask.masked_fill((shut | ~real[:, None, :])[:, None], closed_value(mask))

    # Generated tokens.

    @contextmanager
    def decoding(self, rows: _Rows) -> Iterator[None]:
        self.select(None, rows)
        every: list[Any] = [getattr(module, "config", None) for module in decoder(self.model).modules()]
        configs = {id(config): config for config in every if hasattr(config, "_attn_implementation")}
        before = {key: config._attn_implementation for key, config in configs.items()}
        token = _DECODING.set(self)
        try:
            for config in configs.values():
                config._attn_implementation = _ATTENTION
            yield
        finally:
            _DECODING.reset(token)
            for key, config in configs.items():
                config._attn_implementation = before[key]

    def select(self, kept: Tensor | None, rows: _Rows) -> None:
        """From now on the rows are `rows`, those that were at `kept` before."""
        self.rows = rows
        self.shared_rows: dict[int, tuple[_SharedRows, _SharedRows]] = {}
        seeing = {doc: index for index, doc in enumerate(self.prompt.seeing)}
        self.seeing_of_rows = torch.tensor([seeing.get(doc, 0) for _, doc in rows.pairs], device=rows.documents.device)
        if kept is not None:
            for index, keys in enumerate(self.keys):
                keys.select(kept, rows.cut_by(index))

    def step(self, inputs: dict[str, Any]) -> Any:
        self.calls = 0
        outputs = self.model(**inputs, return_dict=True)
        if self.calls != len(self.layers):
            raise ProbeError(
                f"{type(self.model).__name__}: {self.calls} of {len(self.layers)} decoder layers took their attention "
                "from transformers' attention interface; expected all. Use mask_vision and generate"
            )
        return outputs

    def attend(self, layer: int, query: Tensor, scaling: float) -> Tensor:
        """Attention of one new token per row, query (rows, heads, 1, head size), to the keys its cut lets it see.

        Rows of one document share most keys. They are multiplied with them as one matrix, in place of a copy of the
        keys per row.
        """
        self.calls += 1
        keys = self.keys[layer]
        assert keys.new is not None
        count, heads, _, size = query.shape
        key_heads = keys.new[0].shape[1]
        query = query.reshape(count, key_heads, heads // key_heads, size) * scaling
        cut = self.rows.cut_by(layer)
        if cut not in self.shared_rows:
            documents, seeing = self.rows.documents, self.seeing_of_rows
            self.shared_rows[cut] = _SharedRows.of(seeing[:cut]), _SharedRows.of(documents[cut:])
        blind, sighted = (rows.to(query.device) for rows in self.shared_rows[cut])
        real = self.prompt.real.to(query.device)
        new = query @ keys.new[0].transpose(-1, -2)
        outputs = []
        if cut:
            assert keys.before is not None and keys.after is not None
            before_real, after_real = (
                part.to(query.device)[blind.document] for part in (self.prompt.before_real, self.prompt.after_real)
            )
            before = _closed(blind.scores(query[:cut], keys.before[0]), before_real)
            after = _closed(query[:cut] @ keys.after[0].transpose(-1, -2), after_real)
            weights = _weights([before, after, new[:cut]])
            outputs.append(
                blind.values(weights[0], keys.before[1]) + weights[1] @ keys.after[1] + weights[2] @ keys.new[1][:cut]
            )
        if cut < count:
            prompt_keys, prompt_values = keys.prompt()
            prompt = _closed(sighted.scores(query[cut:], prompt_keys), real[sighted.document])
            weights = _weights([prompt, new[cut:]])
            outputs.append(sighted.values(weights[0], prompt_values) + weights[1] @ keys.new[1][cut:])
        return torch.cat(outputs).reshape(count, 1, heads, -1)


def _take(name: str, value: Any, rows: Tensor) -> Any:
    if isinstance(value, tuple):
        return tuple(_take(name, part, rows) for part in value)
    return value.index_select(document_dim(name, value), rows.to(value.device))


def _closed(scores: Tensor, real: Tensor) -> Tensor:
    """Scores (rows, key_heads, heads, tokens) without the tokens that are not `real` (rows, tokens)."""
    return scores.masked_fill(~real[:, None, None, :], float("-inf"))


def _weights(parts: list[Tensor]) -> list[Tensor]:
    """Softmax over the parts together, in float32."""
    weights = torch.cat(parts, dim=-1).softmax(-1, dtype=torch.float32).to(parts[0].dtype)
    return list(weights.split([part.shape[-1] for part in parts], dim=-1))


@dataclass
class _SharedRows:
    """Rows that share keys by their document: the row has place `slot` among the `slots` of `document`."""

    document: Tensor
    slot: Tensor
    slots: int
    placed: dict[torch.device, _SharedRows] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, documents: Tensor) -> _SharedRows:
        seen: Counter[int] = Counter()
        slots = []
        for document in documents.tolist():
            slots.append(seen[document])
            seen[document] += 1
        return cls(
            documents, torch.tensor(slots, dtype=torch.long, device=documents.device), max(seen.values(), default=0)
        )

    def to(self, device: torch.device) -> _SharedRows:
        if device == self.document.device:
            return self
        if device not in self.placed:
            self.placed[device] = _SharedRows(self.document.to(device), self.slot.to(device), self.slots)
        return self.placed[device]

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """(rows, K, heads, size) and (documents, K, tokens, size) -> (rows, K, heads, tokens), for K key heads."""
        return self._multiply(query, keys.transpose(-1, -2))

    def values(self, weights: Tensor, values: Tensor) -> Tensor:
        """(rows, K, heads, tokens) and (documents, K, tokens, size) -> (rows, K, heads, size), for K key heads."""
        return self._multiply(weights, values)

    def _multiply(self, rows: Tensor, shared: Tensor) -> Tensor:
        _, key_heads, heads, width = rows.shape
        by_document = rows.new_zeros(shared.shape[0], key_heads, self.slots, heads, width)
        by_document[self.document, :, self.slot] = rows
        product = by_document.flatten(2, 3) @ shared
        return product.unflatten(2, (self.slots, heads))[self.document, :, self.slot]


_ATTENTION = "plam_scan"
_DECODING: ContextVar[_Scan] = ContextVar("plam_scan")


def _scan_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface, for the one new token of each row of the scan being decoded."""
    odd = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if odd or attention_mask is not None:
        raise ProbeError(
            f"{type(module).__name__} adds {', '.join(odd) or 'a mask'} to its attention, which the scan does not "
            "know; use mask_vision and generate"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _DECODING.get().attend(int(module.layer_idx), query, scale), None  # type: ignore[arg-type]


AttentionInterface.register(_ATTENTION, _scan_attention)
