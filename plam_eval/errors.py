"""plam-eval's own errors, and the words that they share: what a message says is enough, no traceback is needed."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_REMEDIES = {
    **dict.fromkeys(_FULL, "free some space, and the same command goes on where it was"),
    errno.EROFS: "it lies on a file system that is read-only; name a folder that can be written",
    errno.EACCES: "give yourself access to it, or name another",
    errno.EPERM: "give yourself access to it, or name another",
    errno.ENOTDIR: "a file lies where a folder is expected; name another folder, or move the file",
    errno.EEXIST: "something of this name is in the way; name another, or move it",
    errno.EISDIR: "it is a folder, and a file is expected; name a file",
    errno.ENOENT: "check the path, and the folder in which the command was started",
    errno.ENAMETOOLONG: "the name is too long for the file system; name a shorter one",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n), and the same command goes on",
}


class PlamError(Exception):
    """Says what was found, what was expected, where, and what to do. Commands print it as one message."""


class ProblemsError(PlamError):
    """Everything that is wrong with one thing, told at once: `problems` holds it one by one.

    Args:
        problems: in words.
        origin: what they are problems of, in words. Without it the message is the problems alone, one a line.
    """

    def __init__(self, *problems: str, origin: str | None = None) -> None:
        self.problems, self.origin = list(problems), origin
        heading = self._heading()
        lines = self.problems if heading is None else [heading, *(f"  - {problem}" for problem in self.problems)]
        super().__init__("\n".join(lines))

    def _heading(self) -> str | None:
        """The line above the list; None where there is no list."""
        return None if self.origin is None else f"{self.origin}: {len(self.problems)} problem(s)"

    def __reduce__(self) -> tuple[Any, ...]:  # it goes from one process to another
        return partial(type(self), origin=self.origin), tuple(self.problems)


class InputError(ProblemsError, ValueError):
    """Arguments, options or values that cannot be used, alone or together."""


class ArgumentError(ProblemsError, TypeError):
    """An argument of a name that nobody takes, or text where a number is expected."""


class DamagedFileError(PlamError, ValueError):
    """A file that cannot be read as what it should be; the message names the file and the remedy."""


class OutsideError(PlamError, ValueError):
    """A name or path, read from a file, that would lead out of the folder that it belongs into."""


class FolderError(PlamError, ValueError):
    """An output folder that cannot be written, is in use, or holds what plam-eval has not made."""


class MergeError(ProblemsError, ValueError):
    """A merge that was refused, or undone; no parameter has changed."""

    @property
    def faults(self) -> list[str]:
        """`problems`, as a merge calls them."""
        return self.problems

    def _heading(self) -> str | None:
        return "nothing was merged:"


class CheckpointError(MergeError):
    """A checkpoint that cannot be read, for a merge or for anything else."""

    def _heading(self) -> str | None:
        return "a checkpoint cannot be read:" if len(self.problems) > 1 else None


class ExportError(MergeError):
    """An export that was refused or given up; nothing was left where it was to be."""

    def _heading(self) -> str | None:
        return "nothing was exported:" if len(self.problems) > 1 else None


def system_error(error: OSError) -> str:
    """What an `error` of the operating system means, for a reader: cause, file and remedy."""
    if error.errno is None or error.strerror is None:  # of a library, in its own words
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    files = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    cause = f"{files}: {error.strerror}" if files else str(error.strerror)
    remedy = _REMEDIES.get(error.errno)
    return f"{cause}; {remedy}" if remedy else cause


def first_line(error: BaseException) -> str:
    """What an `error` of another library says, without what follows; the name of its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def quoted(value: object, most: int = 80) -> str:
    """`value` as it would be written in Python, shortened where it is long; a number of too many digits has only them.

    Python refuses to write whole numbers of more than some thousand digits, and so to name them in a message.

    Args:
        value: what a message names.
        most: characters; what is longer is cut, and its length told.
    """
    if isinstance(value, int) and value.bit_length() > 4 * most:
        return f"a whole number of about {value.bit_length() * 3 // 10} digits"
    try:
        written = repr(value)
    except ValueError:  # such a number inside of a list
        return f"{type(value).__name__} with a whole number of too many digits"
    return written if len(written) <= most else f"{written[: most - 20]}... ({len(written)} characters)"


def listed(words: Iterable[str], most: int = 5) -> str:
    """Words with commas between them; of many the first ones, and how many more there are.

    Args:
        words: in the order in which they are told.
        most: so many of them are told.
    """
    words = list(words)
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def near_names(word: object, names: Iterable[str], *, most: int = 1, cutoff: float = 0.5) -> list[str]:
    """The known names that are most like a word, the nearest first.

    Args:
        word: what was found in place of one of them.
        names: those that there are.
        most: so many of them at most.
        cutoff: how alike a name has to be, from 0 (not at all) to 1 (equal): `difflib.get_close_matches`.
    """
    return difflib.get_close_matches(str(word)[:80], list(names), n=most, cutoff=cutoff)


def did_you_mean(word: object, names: Iterable[str], *, most: int = 1) -> str:
    """For an error that lists unknown words, after each: " (did you mean mme?)", or nothing where none is near.

    Args:
        word: what was found.
        names: those that could have been meant.
        most: so many of them at most.
    """
    near = near_names(word, names, most=most, cutoff=0.6)
    return f" (did you mean {', '.join(near)}?)" if near else ""


def hint(word: object, words: Iterable[str]) -> str:
    """For an error about an unknown word: the nearest known one, and all of them.

    Args:
        word: what was found.
        words: those that could have been meant.
    """
    words = list(words)
    near = near_names(word, words)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(words)}"


def validation_problems(
    error: ValidationError,
    keys: Mapping[str, Iterable[str]],
    *,
    meant: Mapping[str, str] | None = None,
    tags: Collection[str] = (),
) -> list[tuple[str, str]]:
    """What pydantic found, in our words: for each problem its field ("weights.model") and what is wrong with it.

    Args:
        error: what validating a record raised.
        keys: the known keys of each record, by the field that it stands in; "" is the record itself.
        meant: other words for keys of the record itself, by the word.
        tags: names of the forms that a field may have, which are no part of its own name.
    """
    problems = []
    for finding in error.errors(include_url=False):
        *parents, key = (str(word) for word in finding["loc"] if word not in tags)
        if finding["type"] == "extra_forbidden":
            expected = list(keys[".".join(parents)])
            renamed = (meant or {}).get(key) if not parents else None
            nearest = f"did you mean {renamed!r}? known: {', '.join(expected)}" if renamed else hint(key, expected)
            text = f"unknown key, {nearest}"
        elif finding["type"] == "missing":
            text = "missing; expected a value"
        elif finding["type"] == "value_error":
            text = str(finding["ctx"]["error"])
        else:
            text = f"found {quoted(finding['input'])}: {finding['msg']}"
        problems.append((".".join([*parents, key]), text))
    return problems


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, each with both values, as "limit (was 8, is 16); ..."; empty where none does.

    Args:
        before: what a folder was made with.
        now: what is asked of it now.
    """
    names = dict.fromkeys([*before, *now])
    return "; ".join(f"{name} (was {was!r}, is {value!r})" for name, was, value in changes(before, now, names))


def changes(before: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> list[tuple[str, Any, Any]]:
    """Each of some names whose value is another one now, with the value before and that of now.

    Args:
        before: values by name; None stands for one that is missing.
        now: the same, later.
        names: those that are looked at.
    """
    values = [(name, before.get(name), now.get(name)) for name in names]
    return [(name, was, value) for name, was, value in values if was != value]
