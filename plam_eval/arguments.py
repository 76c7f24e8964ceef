"""`key=value,...` as in `--model_args` and `--gen_kwargs`, checked for what lmms-eval drops or stumbles on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from plam_eval.errors import InputError, quoted

_LONGEST_NUMBER = 40  # digits; Python takes no number of some thousand


def split_words(text: str) -> list[str]:
    """The words between commas. Commas inside quotes, braces and brackets do not part them, as in lmms-eval."""
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
        origin: where the words were given, such as "model_args".

    Raises:
        InputError: naming every word without `=` or a value, every key that was given twice, numbers too long to read.
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    last = ""
    for word in split_words(text) if text.strip() else []:
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals or not key:
            problems.append(f"found {quoted(word)}, expected key=value{_meant(last, found.get(last, ''), word)}")
            continue
        if not value:
            problems.append(f"found {quoted(word)}, expected a value behind =; leave {key} out for its default")
        if key in found:
            problems.append(f"{key} is given twice, as {quoted(found[key])} and as {quoted(value)}; give it once")
        if value.isnumeric() and (not value.isdecimal() or len(value) > _LONGEST_NUMBER):
            problems.append(f"{key}: found {quoted(value)}, expected a number of at most {_LONGEST_NUMBER} digits")
        found.setdefault(key, value)
        last = key
    if problems:
        raise InputError("\n".join([f"{origin}: {len(problems)} problem(s)", *(f"  - {line}" for line in problems)]))
    return found


def write_words(arguments: str | Mapping[str, Any], origin: str) -> str:
    """`key=value,...` of a mapping, as the command line would be given it; None values are left out. Text stays.

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
