"""Where a multimodal LLM looks under many merges, and what it answers, in one generation.

`generate_with_rows` is `generate_all_merges`, with the attention rows of `attention_rows` for each merge. In the
prompt, merges that are the same up to a layer share its rows as they share its computation; in the answer each has its
own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from plam_eval.decoding.all_merges import MergeAnswers, Merges, Watch, generate_all_merges
from plam_eval.errors import InputError, did_you_mean
from plam_eval.probing.attention import (
    FIRST_SINK_LAYER,
    AttentionRows,
    last_tokens,
    massive_entries,
    noting_massive,
    padded_positions,
    real_tokens,
    tokens_behind_images,
    vision_tokens,
)
from plam_eval.probing.decoder import text_config
from plam_eval.probing.row_capture import Heads, RowCapture

Queries = Literal["last", "question", "answer"]
"""Whose rows: the last token of the prompt, all text behind its last image, or the tokens of the answer."""


@dataclass(frozen=True, eq=False)
class MergeRows:
    """Answers of one batch of documents under each merge, and where the model looked.

    Attributes:
        answers: as `generate_all_merges` gives them.
        rows: of each spec, all of one shape.
    """

    answers: MergeAnswers
    rows: tuple[AttentionRows, ...]


def generate_with_rows(
    model: nn.Module,
    merges: Merges,
    *,
    queries: Queries = "last",
    heads: Heads = "mean",
    massive: bool = False,
    **generate_kwargs: Any,
) -> MergeRows:
    """What `generate_all_merges` answers, and the attention rows of some tokens under each merge.

    Rows of the prompt are those of `attention_rows(model, inputs, ...)` on the model merged in place. Rows of the
    answer are those of each of its tokens but the last, which the model never reads: keys are the prompt's, then the
    answer's up to that token. They are padded with zeros to the longest answer (`real` is False there, `queries` -1),
    and there are none of an answer of one token.

    Args:
        model: the model that `merges` was made of, with eager, sdpa or flash attention.
        merges: as `Merges.of` gives them.
        queries: whose rows.
        heads: "mean" keeps the mean over heads, "each" every head.
        massive: also note massive activations of the prompt, as `attention_rows`, under each merge.
        generate_kwargs: as for `generate_all_merges`.

    Raises:
        InputError: for a word that is none of `queries` or `heads`.
        ProbeError: for a backend, a model, a call or settings it cannot answer for.
    """
    if queries not in get_args(Queries):
        near = did_you_mean(str(queries), get_args(Queries))
        raise InputError(f"queries is {queries!r}; expected {', '.join(get_args(Queries)[:-1])} or answer{near}")
    watch = _Rows(model, RowCapture(model, heads), queries, massive)
    answers = generate_all_merges(model, merges, watch=watch, **generate_kwargs)
    lengths = answers.lengths.cpu()
    return MergeRows(answers, tuple(watch.of_spec(spec, lengths[spec]) for spec in range(len(merges.specs))))


class _Rows(Watch):
    """Keeps the rows of a generation's calls, and makes of them those of each spec."""

    def __init__(self, model: nn.Module, capture: RowCapture, queries: Queries, massive: bool) -> None:
        self.model, self.capture, self.queries, self.massive = model, capture, queries, massive
        self.of_prompt: tuple[Tensor, ...] = ()  # of each layer
        self.entries: list[Tensor] = []
        self.steps: list[tuple[Tensor, Tensor]] = []  # of each new token: its places, and (layers, places, heads, keys)

    @contextmanager
    def prompt(self, inputs: Mapping[str, Any], shared: Sequence[Sequence[int]]) -> Iterator[None]:
        self.shared, self.real, self.vision = shared, real_tokens(inputs), vision_tokens(self.model, inputs)
        wanted: list[list[int]] = [[] for _ in self.real]
        if self.queries != "answer":
            wanted = last_tokens(inputs) if self.queries == "last" else tokens_behind_images(self.model, inputs)
        self.positions = padded_positions(wanted)
        with ExitStack() as looks:
            if self.massive:
                self.entries = looks.enter_context(noting_massive(self.model, self.real))
            if self.positions.numel():
                looks.enter_context(self.capture.expecting(self.positions))
            yield
        if self.positions.numel():
            self.of_prompt = self.capture.take()

    @contextmanager
    def step(self, places: Tensor) -> Iterator[None]:
        if self.queries != "answer":
            yield
            return
        with self.capture.expecting(torch.zeros(len(places), 1, dtype=torch.long)):
            yield
        self.steps.append((places.cpu(), torch.stack([rows[:, :, 0] for rows in self.capture.take()])))

    def of_spec(self, spec: int, lengths: Tensor) -> AttentionRows:
        """The rows of one spec.

        Args:
            spec: its number.
            lengths: (documents,) int64; of its answers.
        """
        massive = self._massive_of(spec) if self.massive else None
        documents, prompt = self.real.shape
        if self.queries != "answer":
            weights = self._empty(self.positions.shape[1], prompt)
            for layer, (rows, shared) in enumerate(zip(self.of_prompt, self.shared, strict=False)):
                weights[layer] = rows[shared[spec] * documents :][:documents]
            return AttentionRows(weights, self.positions, self.vision, self.real, massive)
        new = torch.arange(len(self.steps))
        read = new < lengths[:, None] - 1
        weights = self._empty(len(new), prompt + len(new))
        for number, (places, rows) in enumerate(self.steps):
            own = places // documents == spec
            weights[:, :, :, number, : rows.shape[-1]].index_copy_(1, places[own] % documents, rows[:, own])
        return AttentionRows(
            weights,
            torch.where(read, prompt + new, -1),
            torch.cat([self.vision, torch.zeros_like(read)], dim=-1),
            torch.cat([self.real, read], dim=-1),
            massive,
        )

    def _empty(self, rows: int, keys: int) -> Tensor:
        heads = 1 if self.capture.heads == "mean" else int(text_config(self.model).num_attention_heads)
        return torch.zeros(self.capture.layers, len(self.real), heads, rows, keys)

    def _massive_of(self, spec: int) -> Tensor:
        documents, own = len(self.real), []
        for layer, entries in enumerate(self.entries, FIRST_SINK_LAYER):
            kept = entries[entries[:, 1] // documents == self.shared[layer][spec]]
            kept[:, 1] %= documents
            own.append(kept)
        return massive_entries(own)
