"""`key=value,...` as in `--model_args`, checked for what lmms-eval drops or stumbles on, and kinds of arguments."""

from __future__ import annotations

import functools
import inspect
import json
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar, cast

from plam_eval.errors import ArgumentError, InputError, hint, quoted

BOTH = 2
"""What `together` of a comparison means where no number is given: plain and merged at once."""

DEFAULT_NOISE = "default"
"""What `noise` of a comparison means where nothing is said: another batch size than the comparison's own."""

_LONGEST_NUMBER = 40  # digits; Python takes no number of some thousand
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)


def split_words(text: str) -> list[str]:
    """The words of `text` between commas; those inside quotes, braces and brackets part none, as in lmms-eval."""
    words, depth, quote, before = [""], 0, "", ""
    for letter in text:
        if letter in "\"'" and before != "\\":
            quote = letter if not quote else "" if letter == quote else quote
        elif not quote and letter in "{[":
            depth += 1
        elif not quote and letter in "}]":
            depth -= 1
        before = letter
        if letter == "," and depth == 0 and not quote:
            words.append("")
        else:
            words[-1] += letter
    return [word.strip() for word in words]


def read_words(text: str, origin: str) -> dict[str, str]:
    """The values of `key=value,...`, by key, as text.

    Args:
        text: as the user wrote it.
        origin: where the words were given, such as "model_args".

    Raises:
        InputError: naming every word without `=` or a value, every key that was given twice, numbers too long to read.
    """
    values: dict[str, str] = {}
    problems: list[str] = []
    last = ""
    for word in split_words(text) if text.strip() else []:
        key, equals, value = (side.strip() for side in word.partition("="))
        if not equals or not key:
            problems.append(f"found {quoted(word)}, expected key=value{_meant(last, values.get(last, ''), word)}")
            continue
        if not value:
            problems.append(f"found {quoted(word)}, expected a value behind =; leave {key} out for its default")
        if key in values:
            problems.append(f"{key} is given twice, as {quoted(values[key])} and as {quoted(value)}; give it once")
        if value.isnumeric() and (not value.isdecimal() or len(value) > _LONGEST_NUMBER):
            problems.append(f"{key}: found {quoted(value)}, expected a number of at most {_LONGEST_NUMBER} digits")
        values.setdefault(key, value)
        last = key
    if problems:
        raise InputError(*problems, origin=origin)
    return values


def write_words(arguments: str | Mapping[str, Any], origin: str) -> str:
    """`key=value,...` of a mapping, as the command line would be given it; None values are left out.

    Args:
        arguments: values by key; text, which is written so already, comes back as it is.
        origin: where they were given, such as "model_args", for the message.

    Raises:
        InputError: a value that cannot be written so.
    """
    if isinstance(arguments, str):
        return arguments
    words = []
    for key, value in arguments.items():
        if value is None:
            continue
        written = json.dumps(value) if isinstance(value, (dict, list)) else str(value).removeprefix("torch.")
        if len(split_words(written)) > 1:
            raise InputError(f"{origin}: {key}: found {quoted(value)}; a value cannot hold a comma")
        words.append(f"{key}={written}")
    return ",".join(words)


def _meant(key: str, value: str, word: str) -> str:
    """What may have been meant by a word that stands behind the comma of `key=value,`."""
    if not word:
        return "; is there a comma too many?"
    if not key or "=" in word:
        return ""
    number = value.lstrip("+-").isdecimal() and word.isdecimal()
    if key == "layers" and number:
        return f"; write layers={value}:{word} for layers from {value} up to, not including {word}"
    if key == "modules":
        return f"; modules are joined by +: write modules={value}+{word}"
    if number:
        return f"; a decimal fraction has a point: write {key}={value}.{word}"
    return f"; if it belongs to {key}, put all of that value into quotes or braces"


def read_number(value: Any) -> float:
    """A finite number, given as one or as text.

    Args:
        value: what was given.

    Raises:
        ValueError: saying what to write.
    """
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d{1,9},\d{1,9}\s*", value, re.ASCII):
        point = value.strip().replace(",", ".")
        raise ValueError(f"found {value!r}; a decimal fraction has a point: write {point}")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number and not (isinstance(value, str) and _NUMBER.fullmatch(value)):
        raise ValueError(f"found {quoted(value)}, expected a number such as 0.9")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"found {quoted(value)}, expected a finite number such as 0.9")
    return number


def read_whole_number(value: Any, largest: int, what: str = "a whole number") -> int:
    """A whole number from 0 to `largest`, given as one or as text.

    Args:
        value: what was given.
        largest: the largest that is taken.
        what: what is expected, for the message.

    Raises:
        ValueError: saying what was found and what is expected.
    """
    if isinstance(value, str) and value.strip().isdecimal() and len(value.strip()) <= len(str(largest)):
        value = int(value)
    if type(value) is not int or not 0 <= value <= largest:
        above = f", at most {largest}" if type(value) is int and value > largest else ""
        raise ValueError(f"found {quoted(value)}, expected {what}, 0 or more{above}")
    return value


# Kinds of values, for functions that are called from Python: each gives the value back, or raises ValueError that says
# what was expected. The command line has checked its options before.

Kind = Callable[[Any], Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _kind(fits: Callable[[Any], bool], expected: str) -> Kind:
    def read(value: Any) -> Any:
        if not fits(value):
            raise ValueError(expected)
        return value

    return read


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and os.fspath(value) != ""


def _is_words(value: Any) -> bool:
    listed = isinstance(value, (list, tuple, set, frozenset)) and all(isinstance(word, str) for word in value)
    return isinstance(value, str) or listed


def _are_paths(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_path, value))


def _is_arguments(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and all(isinstance(key, str) for key in value))


TEXT = _kind(lambda value: isinstance(value, str), "text")
PATH = _kind(_is_path, "a path")
PATH_OR_MAPPING = _kind(lambda value: _is_path(value) or isinstance(value, Mapping), "a path or a mapping")
WORDS = _kind(_is_words, "words, as a list or in one text with commas")
ARGUMENTS = _kind(_is_arguments, "text such as 'key=value,key=value', or a mapping")


PATHS = _kind(lambda value: _is_path(value) or _is_words(value) or _are_paths(value), "paths, or words with commas")
NAME = _kind(lambda value: isinstance(value, (str, os.PathLike)), "a hub id or a folder")
NAME_OR_NONE = _kind(lambda value: value is None or isinstance(value, (str, os.PathLike)), "a hub id or a folder")


def paths(value: Any) -> list[Any]:
    """A list of one path or several.

    Args:
        value: what was given: a path, or paths in any iterable.

    Raises:
        ValueError: it is something else.
    """
    listed = [value] if isinstance(value, (str, os.PathLike)) else list(value) if isinstance(value, Iterable) else [0]
    if not all(map(_is_path, listed)):
        raise ValueError("a path, or a list of paths")
    return listed


def count(least: int) -> Kind:
    """The kind of whole numbers from `least` on, NumPy's included."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"a whole number, {least} or more")
        return operator.index(value)

    return read


def switch_or_count(value: Any) -> bool | int:
    """`value`, if it is True or False, or a whole number from 1 on; raises ValueError for anything else."""
    if isinstance(value, bool):
        return value
    try:
        return count(1)(value)
    except ValueError as error:
        raise ValueError(f"True, False, or {error}") from None


def switch_or_words(value: Any) -> bool | str | list[str]:
    """`value`, if it is True or False, or words; raises ValueError for anything else."""
    if isinstance(value, bool):
        return value
    try:
        words: str | list[str] = WORDS(value)
        return words
    except ValueError as error:
        raise ValueError(f"True, False, or {error}") from None


def real(value: Any) -> float:
    """`value` as a float, if it is a finite number, NumPy's included; raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError("a number")
    return float(value)


_BIND = "_plam_eval_bind"


def takes(**kinds: Kind) -> Callable[[_Function], _Function]:
    """Decorate a function so that it is called with values of these kinds only.

    None passes where it is the default. The function raises ArgumentError, which names every argument of another kind,
    one that nobody takes, and one that is missing.

    Args:
        **kinds: of the function's parameters, by name; a parameter without one takes anything.
    """

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        named = signature.parameters
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in named.values())

        def bind(*args: Any, **given: Any) -> inspect.BoundArguments:
            unknown = [] if open_ended else [key for key in given if key not in named]
            problems = [f"{key}: unknown argument, {hint(key, named)}" for key in unknown]
            if not problems:
                try:
                    bound = signature.bind(*args, **given)
                except TypeError as error:
                    raise ArgumentError(f"{function.__name__}: {error}") from None
                for key, kind in kinds.items():
                    value = bound.arguments.get(key)
                    if key not in bound.arguments or (value is None and named[key].default is None):
                        continue
                    try:
                        bound.arguments[key] = kind(value)
                    except ValueError as error:
                        problems.append(f"{key}: found {quoted(value)}, expected {error}")
            if problems:
                raise ArgumentError(*problems, origin=function.__name__)
            return bound

        @functools.wraps(function)
        def checked(*args: Any, **given: Any) -> Any:
            bound = bind(*args, **given)
            return function(*bound.args, **bound.kwargs)

        setattr(checked, _BIND, bind)
        return cast(_Function, checked)

    return decorate


def arguments_of(function: Callable[..., Any], *args: Any, **given: Any) -> dict[str, Any]:
    """What a function that `takes` decorates would be called with, by name; what was not given has its default.

    Args:
        function: that is not called.
        *args: by place.
        **given: by name.

    Raises:
        ArgumentError: as the function would.
    """
    bound: inspect.BoundArguments = getattr(function, _BIND)(*args, **given)
    bound.apply_defaults()
    return dict(bound.arguments)
