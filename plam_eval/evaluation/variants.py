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

from plam_eval.errors import FolderError
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
    request = _remembering(request)
    asked = _AskedOnce(model, generate)
    with quiet(model), _processed_once(model) as again, asked.installed(asked):
        answer = model.generated(partial(stock, model), [request])[0]
        if not asked.found and model.journal.errors:
            return []
        if len(asked.found) != 1 or len(asked.prompts[0]) != 1:
            raise EvaluationError(
                f"{model.model_id} called generate {len(asked.found)} times for document {request.doc_id} of "
                f"{request.task_name}; expected once, for one document: variants cannot be answered together"
            )
        (tokens,), (prompt,) = asked.found, asked.prompts
        rows = [tuple(row.tolist()) for row in tokens]
        answers = {rows[-1]: answer}
        for row, ids in zip(rows, tokens, strict=True):
            if row not in answers:
                again()
                with asked.installed(_Replay(_continued(prompt, ids))):
                    answers[row] = stock(model, [with_own_settings(request)])[0]
    return [answers[row] for row in rows]


def answer_batch(
    model: Any, requests: Sequence[Any], generate: Callable[..., Sequence[Any]]
) -> tuple[list[list[Any]], list[int]]:
    """As `answer_all`, for several documents in one generation.

    Args:
        requests: with equal generation settings, no more than the wrapper's batch size.
        generate: gives (documents, new tokens) for each variant.

    Returns:
        By request: the answer of each variant, and the request's row in the batch. No answers at all where `generate`
        raised and the wrapper only counted it.

    Raises:
        EvaluationError: as `answer_all`.
    """
    from plam_eval.model_wrappers.mixin import stock_class, with_own_settings

    stock = stock_class(type(model)).generate_until
    asked = _AskedOnce(model, generate)
    with quiet(model), _processed_once(model) as again, asked.installed(asked):

        def replayed(rows: Any) -> list[Any]:
            again()
            with asked.installed(_Replay(_continued(asked.prompts[0], rows))):
                return list(stock(model, [with_own_settings(request) for request in requests]))

        last = model.generated(partial(stock, model), list(requests))
        if not asked.found and model.journal.errors:
            return [], []
        if len(asked.found) != 1 or len(asked.prompts[0]) != len(requests):
            raise EvaluationError(
                f"{model.model_id} called generate {len(asked.found)} times for {len(requests)} documents; expected "
                "once, for all of them: give --batch_size 1"
            )
        tokens = asked.found[0]
        rows = _rows_of(model, len(requests), tokens[-1], replayed)
        known = [{tuple(tokens[-1][row].tolist()): answer} for row, answer in zip(rows, last, strict=True)]
        while True:
            # For each document one answer more whose text is not known yet, and what is known where all are.
            turn, missing = tokens[-1].clone(), False
            for found, row in zip(known, rows, strict=True):
                more = (variant[row] for variant in tokens if tuple(variant[row].tolist()) not in found)
                if (ids := next(more, None)) is not None:
                    turn[row], missing = ids, True
            if not missing:
                break
            for found, row, answer in zip(known, rows, replayed(turn), strict=True):
                found.setdefault(tuple(turn[row].tolist()), answer)
    return [[found[tuple(v[row].tolist())] for v in tokens] for found, row in zip(known, rows, strict=True)], rows


def _rows_of(model: Any, count: int, like: Any, replayed: Callable[[Any], list[Any]]) -> list[int]:
    """Which row of the batch each request is: stock loops sort. Every row is given its number for an answer."""
    import torch

    tokenizer = model.processor.tokenizer
    written = [tokenizer(str(row), add_special_tokens=False)["input_ids"] for row in range(count)]
    longest, pad = max(map(len, written)), tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    rows = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in written], dtype=like.dtype)
    found = [text_of(answer).strip() for answer in replayed(rows)]
    if sorted(found) != sorted(map(str, range(count))):
        raise EvaluationError(f"{model.model_id} gave {found} for the numbers of a batch's rows; give --batch_size 1")
    return [int(text) for text in found]


class _AskedOnce:
    """Stands in for `model.generate`: answers for all variants, and gives the loop the last one's answer.

    Nothing here refers to itself, so that what `generate` holds goes with the last reference to it.
    """

    def __init__(self, model: Any, generate: Callable[..., Sequence[Any]]) -> None:
        self.model, self.generate, self.own = model, generate, model._generate
        self.prompts: list[Any] = []
        self.found: list[Sequence[Any]] = []

    @contextmanager
    def installed(self, generate: Callable[..., Any]) -> Iterator[None]:
        before, self.model._generate = self.model._generate, generate
        try:
            yield
        finally:
            self.model._generate = before

    def __call__(self, **inputs: Any) -> Any:
        planned, self.model._planned = self.model._planned, None
        try:
            with self.installed(self.own):
                self.found.append(self.generate(**inputs))
        finally:
            self.model._planned = planned
        self.prompts.append(inputs["input_ids"])
        return _continued(self.prompts[-1], self.found[-1][-1])


class _Replay:
    """Stands in for `model.generate`: gives an answer that is known."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, **inputs: Any) -> Any:
        return self.answer


def text_of(answer: Any) -> str:
    """The text of a wrapper's answer, which lmms-eval may wrap with its number of tokens."""
    return answer if isinstance(answer, str) else str(answer.text)


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

    own = copy.copy(request)
    own.arguments = tuple(once(part) if callable(part) else part for part in request.args)
    return own


@contextmanager
def quiet(model: Any) -> Iterator[None]:
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


class _Remembering:
    """A processor that keeps what it made of its inputs in `kept`, and in a replay (`turn` from 0) gives it again."""

    def __init__(self, processor: Any, kept: list[Any], turn: list[int]) -> None:
        self._processor, self._kept, self._turn = processor, kept, turn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._turn[0] < 0:
            self._kept.append(self._processor(*args, **kwargs))
            return copy.copy(self._kept[-1])
        self._turn[0] += 1
        return copy.copy(self._kept[self._turn[0] - 1])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)


@contextmanager
def _processed_once(model: Any) -> Iterator[Callable[[], None]]:
    """While it lasts, the wrapper's processor keeps what it made of its inputs; the function given starts a replay."""
    kept: list[Any] = []
    turn = [-1]  # the next kept result to give; -1 while they are being made

    def again() -> None:
        turn[0] = 0

    before = {name: value for name, value in vars(model).items() if _is_processor(value)}
    for name, processor in before.items():
        setattr(model, name, _Remembering(processor, kept, turn))
    try:
        yield again
    finally:
        for name, processor in before.items():
            setattr(model, name, processor)


# ---- answers on disk -------------------------------------------------------------------------------------------------

_ANSWERS = "answers.rank*.jsonl"


def delete_answers(folder: Path) -> None:
    """Delete the answer files in the folders below `folder`, and what is empty then; all else stays."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for below in folder.iterdir():
        if below.is_symlink() or not below.is_dir():
            continue
        for file in below.glob(_ANSWERS):
            file.unlink()
        if not any(below.iterdir()):
            below.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


class AnswerFile:
    """Answers by document, a line each, written as soon as they are known; every process writes a file of its own."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._file = folder / f"answers.rank{rank}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if self._file.is_symlink():
            raise FolderError(f"{self._file}: found a link, expected a file of plam-eval's own; name another output")
        if self._file.is_file():  # a line that a kill cut off is not finished work
            content = self._file.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(self._file, content.rfind(b"\n") + 1)

    def read(self, is_whole: Callable[[dict[str, Any]], bool] = bool) -> Iterator[dict[str, Any]]:
        """What all processes have written. Lines that are damaged are left out, and named in a warning.

        Args:
            is_whole: whether a line holds what it should; may raise ValueError, LookupError or TypeError where not.
        """
        from loguru import logger

        for file in sorted(self._folder.glob(_ANSWERS)):
            if file.is_symlink():
                continue
            *lines, _ = file.read_bytes().split(b"\n")  # the last is empty, or another process is writing it
            damaged = []
            for number, line in enumerate(lines, start=1):
                try:
                    record = json.loads(line)
                    whole = isinstance(record, dict) and is_whole(record)
                except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                    whole = False
                if whole:
                    yield record
                else:
                    damaged.append(number)
            if damaged:
                numbers = ", ".join(map(str, damaged[:10])) + (", ..." if len(damaged) > 10 else "")
                logger.warning(f"{file}: damaged in line {numbers}; these documents are answered again")

    def add(self, record: dict[str, Any]) -> None:
        """Append a line, or nothing of it."""
        self._file.touch()
        size = self._file.stat().st_size
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError:  # a full disk, of which the next line must not become a part
            os.truncate(self._file, size)
            raise
