"""How likely a model finds given texts behind a prompt: what tasks of choices are scored by."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from plam_eval.errors import quoted
from plam_eval.harness.errors import EvaluationError

_TAIL = 16  # tokens of a prompt that are looked at, to see how the first of a text behind it is written


def continuation(tokenizer: Any, prompt: Sequence[int], text: str) -> list[int]:
    """The token ids of a text behind a prompt.

    Tokenizers write the first word of a text otherwise than one within, so prompt and text are encoded together.

    Args:
        tokenizer: of the model.
        prompt: its token ids.
        text: what follows.

    Raises:
        EvaluationError: it has no tokens.
    """
    tail = tokenizer.decode(prompt[-_TAIL:], skip_special_tokens=False)
    if tail[-1:].isspace():
        text = text.lstrip(" ")
    before = tokenizer.encode(tail, add_special_tokens=False)
    both = tokenizer.encode(tail + text, add_special_tokens=False)
    ids = both[len(before) :] if both[: len(before)] == before else tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise EvaluationError(f"a text that is to be scored has no tokens: {quoted(text)}")
    return list(ids)


@torch.inference_mode()
def score_rows(model: Any, prompt: Mapping[str, Any], rows: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
    """Of each row of token ids behind a prompt, minus its log-likelihood, and whether all are the greedy ones.

    Args:
        model: of transformers.
        prompt: the model's inputs, (1, tokens) where they are per token.
        rows: token ids, padded on the right in here, where no token sees the padding.
    """
    ids = prompt["input_ids"]
    longest = max(map(len, rows))
    behind = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], device=ids.device)
    inputs = {
        name: torch.cat([value.expand(len(rows), -1), _behind(name, value, behind)], dim=1)
        if is_per_token(value, ids)
        else value
        for name, value in prompt.items()
    }
    inputs["input_ids"] = torch.cat([ids.expand(len(rows), -1), behind], dim=1)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = longest + 1
    logits = model(**inputs, use_cache=False).logits[:, -longest - 1 : -1].float()
    chances = logits.log_softmax(dim=-1)
    each = chances.gather(-1, behind[..., None])[..., 0]
    greedy = logits.argmax(dim=-1) == behind
    return [
        (-float(each[row, : len(ids_)].double().sum()), bool(greedy[row, : len(ids_)].all()))
        for row, ids_ in enumerate(rows)
    ]


def is_per_token(value: torch.Tensor, ids: torch.Tensor) -> bool:
    """Whether an input of a model says something of each token, as its attention mask does.

    Args:
        value: of the input.
        ids: the token ids, (1, tokens).
    """
    return value.shape == ids.shape and not value.is_floating_point()


def _behind(name: str, value: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """What an input that is per token says of tokens of text: to be attended to, and of no image."""
    return torch.full_like(ids, 1 if name == "attention_mask" else 0, dtype=value.dtype)
