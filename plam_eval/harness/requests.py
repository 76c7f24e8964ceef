"""What lmms-eval asks a model: one request for each document, laid out by mode.

A request's `args` begin with the prompt. The third is what it is generated under: the generation settings in chat mode,
the task's function for images in simple mode.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

Key = tuple[str, int]
"""(task, doc_id)"""


def key_of(request: Any) -> Key:
    """Which document a request asks about.

    Args:
        request: lmms-eval's.
    """
    return request.task_name, request.doc_id


def prompt_of(request: Any) -> str:
    """A short digest of what a request asks.

    Args:
        request: lmms-eval's.
    """
    return hashlib.sha256(str(request.args[0]).encode()).hexdigest()[:16]


def generated_alike(one: Any, other: Any) -> bool:
    """Whether two requests can be answered in one generation: under the same settings, or in simple mode of one task.

    Args:
        one: a request of lmms-eval's.
        other: another of the same evaluation.
    """
    return bool(one.args[2] == other.args[2])


def parts_of(requests: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Requests in order, in parts of one task.

    Args:
        requests: lmms-eval's.
        size: of a part, at most.
    """
    for _, of_task in itertools.groupby(requests, lambda request: request.task_name):
        while part := list(itertools.islice(of_task, size)):
            yield part


def is_padding(request: Any) -> bool:
    """Whether lmms-eval only asks so that all processes are asked equally often; nobody reads the answer.

    Args:
        request: lmms-eval's.
    """
    return bool(request.metadata.get("__padding_only__"))


def without_none(request: Any) -> Any:
    """A copy of a request whose functions give an empty list where a document shows nothing, and not None.

    A task of text alone has no function for images, and lmms-eval then gives None, which stock loops cannot go through.

    Args:
        request: lmms-eval's.
    """

    def asking(function: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*args: Any, **kwargs: Any) -> Any:
            return [] if (given := function(*args, **kwargs)) is None else given

        return asked

    return with_arguments(request, lambda argument: asking(argument) if callable(argument) else argument)


def with_own_settings(requests: Iterable[Any]) -> list[Any]:
    """Requests with generation settings of their own, and with no images rather than None where there are none.

    Stock wrappers edit those they are given, and the response cache would then store answers under keys it never looks
    up.

    Args:
        requests: lmms-eval's.
    """

    def own_settings(argument: Any) -> Any:
        return copy.deepcopy(argument) if isinstance(argument, dict) else argument

    return [with_arguments(without_none(request), own_settings) for request in requests]


def asking_the_same(request: Any, *, simple: bool) -> Any:
    """Of a request for a likelihood, one that asks for an answer to the same prompt.

    Args:
        request: lmms-eval's: prompt, text to be scored, function for images, document, task, split.
        simple: laid out as simple mode has it, otherwise as chat mode.
    """
    prompt, _, doc_to_visual, *document = request.args

    def doc_to_messages(doc: Any) -> list[dict[str, Any]]:
        return [user_message(doc_to_visual(doc) or [], prompt)]

    own = copy.copy(request)
    own.arguments = (prompt, {}, doc_to_visual, *document) if simple else (prompt, doc_to_messages, {}, *document)
    return own


def as_message(request: Any) -> Any:
    """A request as simple mode lays it out, as chat mode does: its prompt is what the user says, without an image.

    Args:
        request: lmms-eval's, of simple mode.
    """
    prompt, settings, _, *document = request.args
    own = copy.copy(request)
    own.arguments = (prompt, lambda _: [user_message([], prompt)], settings, *document)
    return own


def user_message(visuals: Sequence[Any], prompt: str) -> dict[str, Any]:
    """What a user shows and says, as a message of chat mode.

    Args:
        visuals: images, in the order of the prompt.
        prompt: the text behind them.
    """
    return {
        "role": "user",
        "content": [*({"type": "image", "url": each} for each in visuals), {"type": "text", "text": prompt}],
    }


def scored_text_of(request: Any, datasets: Any) -> str:
    """The text whose likelihood a request asks for.

    Args:
        request: lmms-eval's: prompt, text or a function of the document, function for images, document, task, split.
        datasets: documents by task, split and number.
    """
    _, text, _, number, task, split = request.args
    return str(text(datasets[task][split][number]) if callable(text) else text)


def with_arguments(request: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a request with other arguments; the request itself stays as it is.

    Args:
        request: lmms-eval's.
        change: what it makes of an argument takes that argument's place.
    """
    own = copy.copy(request)
    own.arguments = tuple(change(argument) for argument in request.args)
    return own
