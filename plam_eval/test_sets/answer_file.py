"""A file that the user names for a released test set: found or fetched, held against its MD5, and kept.

It is named by an environment variable, since lmms-eval hands tasks nothing of its command line, and every process of an
evaluation has the same environment. What is fetched is kept below the user's cache and is never fetched twice.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from plam_eval.errors import DamagedFileError, InputError, PlamError, first_line, quoted, system_error
from plam_eval.files import check_size, digest_of, expanded, locked, read_json, write_in_one_step, write_json

KNOWN_MD5 = {
    "8b7b30bb78b8f4a87ffc6b2258890a39": "MMBench_DEV_EN_V11.tsv",
    "6e2f5cb803ae65e3b9f7c5f7abdbb2a3": "MMBench_DEV_CN_V11.tsv",
    "8d1a704e791df6f5d9fb3ef782b65365": "MMBench_TEST_EN_V11.tsv",
    "156e6569f9547afb16603eca16e85373": "MMBench_TEST_CN_V11.tsv",
    "f9c363f74de7928b02fdd578dc6152a7": "MMBench_V11.tsv",
    "4338802f2f40511ca20d660733a89544": "MMBench_CN_V11.tsv",
}
"""Files of MMBench 1.1 that VLMEvalKit names, so that one that was taken for another can be told."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_MD5 = re.compile(r"[0-9a-f]{32}")
_PATIENCE = 60  # seconds that a server may say nothing
_BLOCK = 1 << 20
_BEGINNINGS = (  # what a file begins with that is something else
    ((b"<!doctype", b"<html", b"<head"), "a web page: the page about the file, or an error, was saved in its place"),
    ((b"version https://git-lfs",), "a pointer of Git LFS, which stands for the file"),
    ((b"\x1f\x8b", b"pk\x03\x04", b"\xfd7zxz", b"bzh"), "compressed: unpack it"),
    ((b"\xff\xfe", b"\xfe\xff"), "UTF-16 text, expected UTF-8"),
)


class AnswerFileError(PlamError, ValueError):
    """A file of a released test set that is absent, or not the one it should be."""


class NotFetchedError(AnswerFileError):
    """A URL whose file was not fetched yet, where nothing may be."""


@dataclass(frozen=True)
class Located:
    """A file that can be read.

    Attributes:
        path: where it lies on this machine.
        md5: of its content.
        vouched: the user gave this MD5, and it is none that is known here.
    """

    path: Path
    md5: str
    vouched: bool

    @property
    def shown(self) -> str:
        """How messages call it."""
        return str(self.path)


@dataclass(frozen=True)
class AnswerFile:
    """What is known of a file before it is there.

    Attributes:
        task: that reads it, such as "plam_mmmu_test".
        name: that it is published by.
        page: where.
        md5: of the published version; None where its owner names none.
        largest: bytes that it may have.
    """

    task: str
    name: str
    page: str
    md5: str | None
    largest: int

    @property
    def variable(self) -> str:
        """The environment variable that names the file: a path or a URL."""
        return f"{self.task.upper()}_ANSWERS"

    @property
    def md5_variable(self) -> str:
        """The environment variable with the MD5 of a version that the user vouches for."""
        return f"{self.variable}_MD5"

    @property
    def named(self) -> str:
        """What the user named; empty where nothing is named."""
        return os.environ.get(self.variable, "").strip()

    @property
    def given_md5(self) -> str:
        """What the user gave as its MD5, in lower case; empty where nothing is given."""
        return os.environ.get(self.md5_variable, "").strip().lower()

    @property
    def where(self) -> str:
        """Variable and file, for messages; of a URL no user, password or query."""
        return f"{self.variable}={_public(self.named)}"

    def locate(self, *, fetch: bool = True) -> Located:
        """The file, fetched if need be, with the MD5 that it is expected to have.

        Args:
            fetch: a URL may be fetched; False looks into the cache alone.

        Raises:
            AnswerFileError: no file is named, or it cannot be had, or is another one, with what was found, what was
                expected and what to do.
        """
        if not self.named:
            raise AnswerFileError(
                f"{self.task}: {self.variable} is not set; expected the path or URL of {self.name}, which its owners "
                f"publish ({self.page}) and which does not come with plam-eval"
            )
        if self.given_md5 and not _MD5.fullmatch(self.given_md5):
            raise AnswerFileError(
                f"{self.md5_variable}: found {quoted(self.given_md5)}, expected the 32 hexadecimal digits that "
                f"`md5sum` prints for the file, or nothing"
            )
        scheme = _URL.match(self.named)
        if scheme is None:
            try:
                path = expanded(self.named)
            except InputError as error:
                raise AnswerFileError(f"{self.variable}={error}") from error
            return self._checked(path, _md5_of(path, self))
        if scheme.group(1).lower() not in ("http", "https"):
            raise AnswerFileError(f"{self.where}: expected a path, or a URL that begins with https://")
        return self._fetched(fetch)

    @property
    def _expected(self) -> str | None:
        return self.given_md5 or self.md5

    def _checked(self, path: Path, md5: str) -> Located:
        if self._expected is not None and md5 != self._expected:
            raise AnswerFileError(self._another_version(md5))
        return Located(path, md5, vouched=bool(self.given_md5) and md5 != self.md5)

    def _another_version(self, md5: str) -> str:
        which = f", which is {KNOWN_MD5[md5]}" if md5 in KNOWN_MD5 else ""
        found = f"{self.where}: found a file with MD5 {md5}{which}"
        if self.given_md5:
            return f"{found}; {self.md5_variable} says {self.given_md5}: correct one of them"
        remedy = (
            "get that file"
            if which
            else (
                f"it is damaged, or another version: get it again, or, if you vouch for this version, set "
                f"{self.md5_variable}={md5}, which the results and the report will say"
            )
        )
        return f"{found}; expected {self.md5}, which is {self.name}; {remedy}"

    def _fetched(self, fetch: bool) -> Located:
        address = self._address()
        folder = cache_folder() / "answers" / hashlib.sha256(self.named.encode()).hexdigest()[:32]
        file = folder / "content"
        if (kept := self._kept(folder, file)) is not None:
            return kept
        if not fetch:
            raise NotFetchedError(f"{self.where}: not fetched yet; the first evaluation does it")
        with kept_in(folder, ".lock", self.where):  # the first process fetches, the others wait
            if (kept := self._kept(folder, file)) is not None:
                return kept
            from huggingface_hub import constants

            if constants.is_offline_mode():
                raise AnswerFileError(
                    f"{self.where}: not in {folder}, and HF_HUB_OFFLINE is set; unset it, or name the path of a file"
                )
            content: dict[str, Any] = {}

            def write(partial: Path) -> None:
                content["md5"], content["size"] = _fetch(self, address, partial)
                refuse_by_beginning(partial, self.where)
                self._checked(partial, content["md5"])

            write_in_one_step(file, write)
            write_json(folder / "source.json", {"url": _public(self.named), **content})
            return self._checked(file, content["md5"])

    def _kept(self, folder: Path, file: Path) -> Located | None:
        """What was fetched before, if it is what is expected; None where nothing was, or it has changed since."""
        try:
            if file.is_symlink() or not file.is_file():
                return None
            stored = read_json(folder / "source.json", "delete it").get("md5")
            if not isinstance(stored, str) or stored != (self._expected or stored) or _md5_of(file, self) != stored:
                return None
            return self._checked(file, stored)
        except (OSError, DamagedFileError, AnswerFileError):
            return None

    def _address(self) -> str:
        """The URL as it is sent, in ASCII."""
        problem = None
        try:
            parts = urlsplit(self.named)
            host, port = parts.hostname or "", parts.port
            if parts.username is not None:
                problem = "found a user or a password in it, which is not sent"
            elif not host or re.search(r"[\s%\x00-\x1f\x7f]", host):
                problem = "found no name of a server"
            elif re.search(r"[\x00-\x1f\x7f]", self.named):
                problem = "found a control character in it"
            else:
                host = f"[{host}]" if ":" in host else host.encode("idna").decode()
        except ValueError:  # a port that is none, brackets that do not close, a name that no server can have
            problem = "found no name of a server, or no port"
        if problem:
            raise AnswerFileError(f"{self.where}: {problem}; {_REMEDY}")
        # What is written with % stays, and what no address may hold is written so.
        path, query = (quote(text, safe="/%:@!$&'()*+,;=~?") for text in (parts.path, parts.query))
        return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path}{f'?{query}' if query else ''}"


def cache_folder() -> Path:
    """Where files of released test sets are kept: below `$XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plam-eval" / "test-sets"


@contextmanager
def kept_in(folder: Path, lock: str, origin: str) -> Iterator[None]:
    """While entered, no other process writes into a folder of the cache, which is made where there is none.

    Args:
        folder: in the cache.
        lock: file in it.
        origin: what messages call that which is kept there.

    Raises:
        AnswerFileError: it cannot be made or locked, as on a disk that takes no files.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, lock, AnswerFileError, patience=-1))
        except OSError as error:
            raise AnswerFileError(
                f"{origin}: cannot be kept in {folder}: {system_error(error)}; set XDG_CACHE_HOME to a folder that can "
                "be written"
            ) from error
        yield


def refuse_by_beginning(path: Path, origin: str) -> None:
    """Refuse what shows by its first bytes to be something else, such as a web page that was saved for the file.

    Args:
        path: of a file.
        origin: what messages call it.

    Raises:
        AnswerFileError: it is.
    """
    with path.open("rb") as stream:
        beginning = stream.read(64)
    for marks, what in _BEGINNINGS:
        if beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(marks) or beginning.startswith(marks):
            raise AnswerFileError(f"{origin}: it is {what}; of a file on GitHub, take the address of its raw content")
    if not beginning.strip():
        raise AnswerFileError(f"{origin}: it is empty; get it again")


def _public(named: str) -> str:
    """What of a path or URL may stand in messages and files: of the latter no user, password or query."""
    scheme = _URL.match(named)
    if scheme is None:
        return named
    try:
        parts = urlsplit(named)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:  # no address
        return f"{scheme.group(0)}..."
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def _md5_of(path: Path, file: AnswerFile) -> str:
    try:
        check_size(path, file.largest, f"expected {file.name}")
        state = path.stat()
        refuse_by_beginning(path, file.where)
        return _md5(path.resolve(), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    except DamagedFileError as error:
        raise AnswerFileError(f"{file.variable}: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:  # links that lead to each other; a null byte in the name
        if isinstance(error, AnswerFileError):
            raise
        said = system_error(error) if isinstance(error, OSError) else first_line(error)
        raise AnswerFileError(f"{file.where}: cannot be read: {said}") from error


@lru_cache(maxsize=16)  # of an unchanged file once in a process
def _md5(path: Path, *state: int) -> str:
    with path.open("rb") as stream:
        return digest_of(stream, "md5")


def _fetch(file: AnswerFile, address: str, target: Path) -> tuple[str, int]:
    """Write what the URL gives to `target`; its MD5, and how many bytes it has."""
    import urllib.error  # here, since lmms-eval imports this module whatever it evaluates
    import urllib.request
    from http.client import HTTPException

    digest, size = hashlib.md5(usedforsecurity=False), 0
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "plam-eval"})
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer, target.open("wb") as stream:
            length = answer.headers.get("Content-Length")
            while block := answer.read(_BLOCK):
                size += len(block)
                if size > file.largest:
                    raise AnswerFileError(f"{file.where}: is larger than {file.largest} bytes, expected {file.name}")
                digest.update(block)
                stream.write(block)
    except urllib.error.HTTPError as error:
        said = str(error.reason).partition("\n")[0]
        raise AnswerFileError(f"{file.where}: the server answered {error.code} {said}; {_REMEDY}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException, ValueError) as error:
        if isinstance(error, AnswerFileError):
            raise
        raise AnswerFileError(f"{file.where}: cannot be fetched ({first_line(error)}); {_REMEDY}") from error
    if length is not None and length.isdigit() and int(length) != size:
        raise AnswerFileError(f"{file.where}: {size} bytes came of {length}; try again")
    return digest.hexdigest(), size


_REMEDY = "check the address and the network, or fetch it yourself and name its path"
