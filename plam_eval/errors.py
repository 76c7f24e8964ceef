"""The root of plam-eval's own errors: what their messages say is enough, and no traceback is needed."""

from __future__ import annotations

import errno

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


class InputError(PlamError, ValueError):
    """Arguments, options or values that cannot be used, alone or together."""


class ArgumentError(PlamError, TypeError):
    """An argument of a name that nobody takes, or text where a number is expected."""


class DamagedFileError(PlamError, ValueError):
    """A file that cannot be read as what it should be; the message names the file and the remedy."""


class OutsideError(PlamError, ValueError):
    """A name or path, read from a file, that would lead out of the folder that it belongs into."""


class FolderError(PlamError, ValueError):
    """An output folder that cannot be written, is in use, or holds what plam-eval has not made."""


def system_error(error: OSError) -> str:
    """What an error of the operating system means, for a reader: cause, file and remedy."""
    if error.errno is None or error.strerror is None:  # of a library, in its own words
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    files = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    cause = f"{files}: {error.strerror}" if files else str(error.strerror)
    remedy = _REMEDIES.get(error.errno)
    return f"{cause}; {remedy}" if remedy else cause


def first_line(error: BaseException) -> str:
    """What an error of another library says, without what follows; the name of its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def quoted(value: object, most: int = 80) -> str:
    """`value` as it would be written in Python, shortened where it is long; a number of too many digits has only them.

    Python refuses to write whole numbers of more than some thousand digits, and so to name them in a message.
    """
    if isinstance(value, int) and value.bit_length() > 4 * most:
        return f"a whole number of about {value.bit_length() * 3 // 10} digits"
    try:
        written = repr(value)
    except ValueError:  # such a number inside of a list
        return f"{type(value).__name__} with a whole number of too many digits"
    return written if len(written) <= most else f"{written[: most - 20]}... ({len(written)} characters)"
