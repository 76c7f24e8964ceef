"""A document answered under many variants of a model at once, through a wrapper's own generation loop.

The stock loop of the wrapper runs as in any evaluation; only its `model.generate` is exchanged for one that answers for
all variants. The loop runs once more for each other answer that some variant gave, to decode it, with images and inputs
kept from the first time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.requests import with_arguments
from plam_eval.harness.wrapper import HFWrapper, text_of


def answer_all(model: HFWrapper, request: Any, generate: Callable[..., Sequence[Any]]) -> list[Any]:
    """The answer of each variant, as the wrapper's own loop gives it.

    Args:
        model: the wrapper.
        request: lmms-eval's, of one document.
        generate: called with what the stock loop hands to `model.generate` for one document; gives the new tokens of
            each variant, one-dimensional.

    Returns:
        One answer for each variant; none where `generate` raised and the wrapper only counted it (as it does where
        failures are allowed, or with several processes).

    Raises:
        EvaluationError: the stock loop did not ask once, for one document, or too many generations failed.
    """
    request = _remembering(request)
    asked = _AskedOnce(model, generate)
    with model.quiet(), model.processing_once() as process_again:
        with model.generating(asked):
            last_answer = model.stock_answers([request])[0]
        if not asked.answers and model.generation.errors:
            return []
        if len(asked.answers) != 1 or len(asked.prompts[0]) != 1:
            raise EvaluationError(
                f"{model.model_id} called generate {len(asked.answers)} times for document {request.doc_id} of "
                f"{request.task_name}; expected once, for one document: variants cannot be answered together"
            )
        (tokens,), (prompt,) = asked.answers, asked.prompts
        rows = [tuple(row.tolist()) for row in tokens]
        answers = {rows[-1]: last_answer}
        for row, ids in zip(rows, tokens, strict=True):
            if row not in answers:
                process_again()
                with _replay(model, prompt, ids):
                    answers[row] = model.stock_answers([request], counted=False)[0]
    return [answers[row] for row in rows]


def answer_batch(
    model: HFWrapper, requests: Sequence[Any], generate: Callable[..., Sequence[Any]]
) -> tuple[list[list[Any]], list[int]]:
    """As `answer_all`, for several documents in one generation.

    Args:
        model: the wrapper.
        requests: lmms-eval's, with equal generation settings, no more than the wrapper's batch size.
        generate: gives (documents, new tokens) for each variant.

    Returns:
        By request: the answer of each variant, and the request's row in the batch. No answers at all where `generate`
        raised and the wrapper only counted it.

    Raises:
        EvaluationError: as `answer_all`.
    """
    asked = _AskedOnce(model, generate)
    with model.quiet(), model.processing_once() as process_again:

        def replayed(rows: Any) -> list[Any]:
            process_again()
            with _replay(model, asked.prompts[0], rows):
                return model.stock_answers(list(requests), counted=False)

        with model.generating(asked):
            last_answers = model.stock_answers(list(requests))
        if not asked.answers and model.generation.errors:
            return [], []
        if len(asked.answers) != 1 or len(asked.prompts[0]) != len(requests):
            raise EvaluationError(
                f"{model.model_id} called generate {len(asked.answers)} times for {len(requests)} documents; expected "
                "once, for all of them: give --batch_size 1"
            )
        tokens = asked.answers[0]
        rows = _rows_of(model, len(requests), tokens[-1], replayed)
        decoded = [{tuple(tokens[-1][row].tolist()): answer} for row, answer in zip(rows, last_answers, strict=True)]
        while True:
            # For each document one answer more whose text is not known yet, and what is known where all are.
            turn, missing = tokens[-1].clone(), False
            for texts, row in zip(decoded, rows, strict=True):
                more = (variant[row] for variant in tokens if tuple(variant[row].tolist()) not in texts)
                if (ids := next(more, None)) is not None:
                    turn[row], missing = ids, True
            if not missing:
                break
            for texts, row, answer in zip(decoded, rows, replayed(turn), strict=True):
                texts.setdefault(tuple(turn[row].tolist()), answer)
    answers = [[texts[tuple(v[row].tolist())] for v in tokens] for texts, row in zip(decoded, rows, strict=True)]
    return answers, rows


def _rows_of(model: HFWrapper, count: int, like: Any, replayed: Callable[[Any], list[Any]]) -> list[int]:
    """Which row of the batch each request is: stock loops sort. Every row is given its number for an answer."""
    import torch

    tokenizer = model.tokenizer
    written = [tokenizer(str(row), add_special_tokens=False)["input_ids"] for row in range(count)]
    longest, pad = max(map(len, written)), tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    rows = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in written], dtype=like.dtype)
    numbers = [text_of(answer).strip() for answer in replayed(rows)]
    if sorted(numbers) != sorted(map(str, range(count))):
        raise EvaluationError(f"{model.model_id} gave {numbers} for the numbers of a batch's rows; give --batch_size 1")
    return [int(text) for text in numbers]


class _AskedOnce:
    """Stands in for `model.generate`: answers for all variants, and gives the loop the last one's answer.

    Nothing here refers to itself, so that what `generate` holds goes with the last reference to it.
    """

    def __init__(self, model: HFWrapper, generate: Callable[..., Sequence[Any]]) -> None:
        self.model, self.generate = model, generate
        self.prompts: list[Any] = []
        self.answers: list[Sequence[Any]] = []

    def __call__(self, **inputs: Any) -> Any:
        with self.model.generating_itself():
            self.answers.append(self.generate(**inputs))
        self.prompts.append(inputs["input_ids"])
        return _continued(self.prompts[-1], self.answers[-1][-1])


def _replay(model: HFWrapper, prompt: Any, tokens: Any) -> AbstractContextManager[None]:
    """While it lasts, the stock loop gets an answer that is known."""
    answer = _continued(prompt, tokens)
    return model.generating(lambda **inputs: answer)


def _continued(prompt: Any, tokens: Any) -> Any:
    import torch

    return torch.cat([prompt, tokens.to(prompt.device).reshape(len(prompt), -1)], dim=1)


def _remembering(request: Any) -> Any:
    """The request with functions that read the document's images the first time only."""

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        results: list[Any] = []

        def remembered(*args: Any, **kwargs: Any) -> Any:
            if not results:
                results.append(function(*args, **kwargs))
            return copy.copy(results[0])

        return remembered

    return with_arguments(request, lambda argument: once(argument) if callable(argument) else argument)
