"""The root of plam-eval's own errors: what their messages say is enough, and no traceback is needed."""

from __future__ import annotations


class PlamError(Exception):
    """Says what was found, what was expected, where, and what to do. Commands print it as one message."""


class DamagedFileError(PlamError, ValueError):
    """A file that cannot be read as what it should be; the message names the file and the remedy."""


class OutsideError(PlamError, ValueError):
    """A name or path, read from a file, that would lead out of the folder that it belongs into."""


class FolderError(PlamError, ValueError):
    """An output folder that cannot be written, is in use, or holds what plam-eval has not made."""
