"""A document answered under many variants of a model at once, through a wrapper's own generation loop.

The stock loop of the wrapper runs as in any evaluation; only its `model.generate` is exchanged for one that answers for
all variants. The loop runs once more for each other answer that some variant gave, to decode it, with images and inputs
kept from the first time.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from plam_eval.evaluation.harness import EvaluationError

Key = tuple[str, int]
"""(task, doc_id)"""


def prompt_of(request: Any) -> str:
    """A short digest of what a request asks."""
    return hashlib.sha256(str(request.args[0]).encode()).hexdigest()[:16]


def answer_all(model: Any, request: Any, generate: Callable[..., Sequence[Any]]) -> list[Any]:
    """The answer of each variant, as the wrapper's own loop gives it.

    Args:
        model: one of the HF wrappers.
        generate: called with what the stock loop hands to `model.generate` for one document; gives the new tokens of
            each variant, one-dimensional.

    Returns:
        One answer for each variant; none where `generate` raised and the wrapper only counted it (as it does where
        failures are allowed, or with several processes).

    Raises:
        EvaluationError: the stock loop did not ask once, for one document, or too many generations failed.
    """
    from plam_eval.model_wrappers.mixin import stock_class, with_own_settings

    stock = stock_class(type(model)).generate_until
    own_generate = model._generate
    prompts: list[Any] = []
    found: list[Any] = []

    def all_variants(**inputs: Any) -> Any:
        planned, model._planned = model._planned, None
        model._generate = own_generate
        try:
            found.append(generate(**inputs))
        finally:
            model._planned, model._generate = planned, all_variants
        prompts.append(inputs["input_ids"])
        return _continued(prompts[-1], found[-1][-1])

    request = _remembering(request)
    with _quiet(model), _processed_once(model) as again:
        model._generate = all_variants
        try:
            answer = model.generated(partial(stock, model), [request])[0]
        finally:
            model._generate = own_generate
        if not found and model.journal.errors:
            return []
        if len(found) != 1 or len(prompts[0]) != 1:
            raise EvaluationError(
                f"{model.model_id} called generate {len(found)} times for document {request.doc_id} of "
                f"{request.task_name}; expected once, for one document: variants cannot be answered together"
            )
        rows = [tuple(tokens.tolist()) for tokens in found[0]]
        answers = {rows[-1]: answer}
        for row, tokens in zip(rows, found[0], strict=True):
            if row in answers:
                continue
            replayed = _continued(prompts[0], tokens)
            again()
            model._generate = lambda replayed=replayed, **inputs: replayed
            try:
                answers[row] = stock(model, [with_own_settings(request)])[0]
            finally:
                model._generate = own_generate
    return [answers[row] for row in rows]


def text_of(answer: Any) -> str:
    """The text of a wrapper's answer, which lmms-eval may wrap with its number of tokens."""
    return answer if isinstance(answer, str) else str(answer.text)


def _continued(prompt: Any, tokens: Any) -> Any:
    import torch

    return torch.cat([prompt, tokens.to(prompt.device)[None]], dim=1)


def _remembering(request: Any) -> Any:
    """The request with functions that read the document's images the first time only."""

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        results: list[Any] = []

        def remembered(*args: Any, **kwargs: Any) -> Any:
            if not results:
                results.append(function(*args, **kwargs))
            return copy.copy(results[0])

        return remembered

    own = copy.copy(request)
    own.arguments = tuple(once(part) if callable(part) else part for part in request.args)
    return own


@contextmanager
def _quiet(model: Any) -> Iterator[None]:
    """No progress bar and no log line of the stock loop, which would come once per document."""
    from loguru import logger

    rank, model._rank = model._rank, -1
    logger.disable("lmms_eval")
    try:
        yield
    finally:
        logger.enable("lmms_eval")
        model._rank = rank


def _is_processor(value: Any) -> bool:
    from transformers import ProcessorMixin

    return isinstance(value, ProcessorMixin)


@contextmanager
def _processed_once(model: Any) -> Iterator[Callable[[], None]]:
    """While it lasts, the wrapper's processor keeps what it made of its inputs; the function given starts a replay."""
    kept: list[Any] = []
    turn = [-1]  # the next kept result to give; -1 while they are being made

    class Remembering:
        def __init__(self, processor: Any) -> None:
            self._processor = processor

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if turn[0] < 0:
                kept.append(self._processor(*args, **kwargs))
                return copy.copy(kept[-1])
            turn[0] += 1
            return copy.copy(kept[turn[0] - 1])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._processor, name)

    def again() -> None:
        turn[0] = 0

    names = [name for name, value in vars(model).items() if _is_processor(value)]
    before = {name: getattr(model, name) for name in names}
    for name, processor in before.items():
        setattr(model, name, Remembering(processor))
    try:
        yield again
    finally:
        for name, processor in before.items():
            setattr(model, name, processor)


# ---- answers on disk -------------------------------------------------------------------------------------------------


class AnswerFile:
    """Answers by document, a line each, written as soon as they are known; every process writes a file of its own."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._file = folder / f"answers.rank{rank}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if self._file.is_file():  # a line that a kill cut off is not finished work
            content = self._file.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(self._file, content.rfind(b"\n") + 1)

    def read(self) -> Iterator[dict[str, Any]]:
        """What all processes have written."""
        for file in sorted(self._folder.glob("answers.rank*.jsonl")):
            *lines, _ = file.read_bytes().split(b"\n")  # the last is empty, or another process is writing it
            yield from map(json.loads, lines)

    def add(self, record: dict[str, Any]) -> None:
        """Append a line."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
