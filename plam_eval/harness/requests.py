"""What lmms-eval asks a model: one request for each document, laid out by mode.

A request's `args` begin with the prompt. The third is what it is generated under: the generation settings in chat mode,
the task's function for images in simple mode.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
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


def with_arguments(request: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a request with other arguments; the request itself stays as it is.

    Args:
        request: lmms-eval's.
        change: what it makes of an argument takes that argument's place.
    """
    own = copy.copy(request)
    own.arguments = tuple(change(argument) for argument in request.args)
    return own
