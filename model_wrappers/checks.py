"""Arguments of a wrapper, checked before anything is loaded: who takes them, and what they may be."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, get_args

from plam_eval.errors import ArgumentError, InputError, did_you_mean
from plam_eval.spec import OVERRIDE_KEYS


def check_arguments(
    model_id: str, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], own: Iterable[str]
) -> None:
    """Refuses names nobody takes: some stock wrappers swallow them, and a misspelt `plateau` would then be ignored.

    Args:
        model_id: of the wrapper.
        given: the arguments, by name.
        parameters: of the stock class's constructor.
        own: names that our class takes besides those of every wrapper.

    Raises:
        ArgumentError: listing every name that nobody takes, or every text that stands for a number.
    """
    stock = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    taken = [*dict.fromkeys(["pretrained", "plateau", *OVERRIDE_KEYS, "max_error_share", *own, *stock])]
    unknown = [name for name in given if name not in taken and name != "max_batch_size"]
    if unknown:
        hints = [f"{name}{did_you_mean(name, taken)}" for name in unknown]
        raise ArgumentError(f"{model_id} takes no argument {', '.join(hints)}; known: {', '.join(taken)}")
    problems = [
        f"{name} is {value!r}; expected {' or '.join(kind.__name__ for kind in kinds)}"
        for name, value in given.items()
        if isinstance(value, str)
        and name in parameters
        and (kinds := _numbers(parameters[name].annotation))
        and not _reads_as(value, kinds)
    ]
    if problems:
        raise ArgumentError(f"{model_id}: {'; '.join(problems)}")


def _numbers(annotation: Any) -> tuple[type, ...]:
    """The types that an annotation names, if text is none of them: numbers and truth values alone."""
    kinds = tuple(kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType)
    return kinds if all(kind in (bool, int, float) for kind in kinds) else ()


def _reads_as(text: str, kinds: tuple[type, ...]) -> bool:
    """Whether a text stands for a number, as lmms-eval's command line hands over the batch size."""
    for kind in set(kinds) - {bool}:
        with contextlib.suppress(ValueError):
            kind(text)
            return True
    return False


def check_trust(trust_remote_code: Any) -> None:
    """Refuses what is neither True nor False: the text "no" would count as yes.

    Args:
        trust_remote_code: as it was given.
    """
    if not isinstance(trust_remote_code, bool):
        raise ArgumentError(f"trust_remote_code is {trust_remote_code!r}; expected true or false")


def check_share(max_error_share: Any) -> None:
    """Refuses what is no share from 0 to 1.

    Args:
        max_error_share: as it was given.
    """
    if not isinstance(max_error_share, (int, float)):
        raise ArgumentError(f"max_error_share is {max_error_share!r}; expected a number")
    if not 0 <= max_error_share <= 1:
        raise InputError(f"max_error_share is {max_error_share}; expected a share from 0 to 1")
