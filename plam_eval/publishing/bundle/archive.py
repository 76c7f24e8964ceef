"""A bundle's archive: written so that the same content gives the same bytes, read as if an attacker had made it.

It is a zip file. Of its members a reader sees names and sizes before anything is unpacked, each can be read alone and
as a stream, there are no links or devices in it that anything would follow, and every system opens it. A tar.gz has to
be unpacked from its beginning to know what is in it.
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from plam_eval.errors import ProblemsError, listed, quoted
from plam_eval.files import digest_of, write_in_one_step

MOST_MEMBERS = 20_000
LARGEST_MEMBER, LARGEST_BUNDLE = 1 << 31, 1 << 34
"""Bytes of one member, and of all together, when unpacked."""
SMALL, MOST_DENSE = 1 << 24, 400
"""A member of more than `SMALL` bytes has at least one byte in the archive for so many; logs have one for 5 to 60."""

_LARGEST_DIRECTORY = 1 << 23  # bytes of the list of members: zipfile reads it whole, and each takes it half a kilobyte
_END, _END_64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_LENGTH, _END_64_LENGTH = 22, 20 + 56
_NAME = re.compile(r"(?:[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,199}/){0,8}[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,199}", re.ASCII)
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can hold
_REGULAR = (stat.S_IFREG | 0o644) << 16
_LEVEL = 9
_SHOWN = 20  # problems of a kind


class BundleError(ProblemsError, ValueError):
    """A bundle that cannot be made, or a file that is none; `problems` holds everything that is wrong with it."""


class Written(NamedTuple):
    """SHA-256 in hex and size in bytes of a member's content."""

    sha256: str
    bytes: int


class Writer:
    """Writes members into an archive, in the order in which they come; `write_archive` gives one.

    Args:
        archive: open for writing.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def add(self, name: str, chunks: Iterable[bytes]) -> Written:
        """Write one member, as its content comes.

        Args:
            name: of the member.
            chunks: its content.

        Raises:
            BundleError: it is larger, or denser, than what a reader would take.
        """
        info = zipfile.ZipInfo(name, _DATE)
        info.compress_type, info.external_attr, info.create_system = zipfile.ZIP_DEFLATED, _REGULAR, 3
        digest, size = hashlib.sha256(), 0
        with self._archive.open(info, "w", force_zip64=False) as member:
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                if size >= LARGEST_MEMBER:
                    raise BundleError(f"{name}: is larger than {LARGEST_MEMBER} bytes; bundle fewer runs or tasks")
                member.write(chunk)
        if _is_dense(info):
            raise BundleError(
                f"{name}: repeats itself so much that a reader would take it for a bomb ({size} bytes in "
                f"{info.compress_size}); bundle the other tasks or runs without it"
            )
        return Written(digest.hexdigest(), size)


def write_archive(path: Path, write: Callable[[Writer], Any]) -> None:
    """Write an archive in one step: a kill leaves the old file or the new one.

    The bytes depend on the members and on the zlib that compresses them, and on nothing else.

    Args:
        path: of the archive.
        write: adds its members.

    Raises:
        OSError: it cannot be written. BundleError: what `write` raises.
    """

    def write_all(partial: Path) -> None:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
            write(Writer(archive))

    write_in_one_step(path, write_all)


class Reader:
    """Members of an archive, by name; `open_archive` gives one. Nothing is unpacked to disk.

    Args:
        path: of the archive.
        archive: open for reading.

    Attributes:
        path: of the archive.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive = path, archive
        self._members = {member.filename: member for member in archive.infolist()}

    @property
    def names(self) -> list[str]:
        """Of all members, in their order."""
        return list(self._members)

    def size(self, name: str) -> int:
        """Bytes of the member `name`, as the archive says; it is never read beyond them."""
        return self._members[name].file_size

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A member as a stream.

        Args:
            name: of the member.

        Raises:
            BundleError: while it is read: it is damaged.
        """
        try:
            with self._archive.open(self._members[name]) as stream:
                yield stream
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise BundleError(f"{self.path}: {name}: is damaged ({error}); copy the bundle again") from error

    def read(self, name: str, most: int) -> bytes:
        """A member's content.

        Args:
            name: of the member.
            most: bytes that it may have.

        Raises:
            BundleError: it has more, or is damaged.
        """
        if self.size(name) > most:
            raise BundleError(f"{self.path}: {name}: has {self.size(name)} bytes, expected at most {most}")
        with self.open(name) as stream:
            return stream.read(most + 1)

    def digest(self, name: str) -> str:
        """SHA-256 of the member `name`, in hex, read as a stream; raises BundleError where it is damaged."""
        with self.open(name) as stream:
            return digest_of(stream)


@contextmanager
def open_archive(path: Path) -> Iterator[Reader]:
    """The members of a bundle, once their names, kinds and sizes are known to be harmless.

    Args:
        path: of the archive.

    Raises:
        BundleError: it is no zip file, or one that `write_archive` would not write; every problem is listed.
        OSError: it cannot be opened.
    """
    if path.is_dir():
        raise BundleError(f"{path}: is a folder, expected the file that `plam submit --bundle` wrote")
    with path.open("rb") as file:
        begin = file.read(4)
        file.seek(max(0, file.seek(0, 2) - _END_LENGTH - _END_64_LENGTH))
        end = file.read()
    if begin != b"PK\x03\x04":
        what = "is empty" if not begin else "is no zip file that begins with a member"
        what = "is a gzip file" if begin[:2] == b"\x1f\x8b" else what
        raise BundleError(f"{path}: {what}; expected the file that `plam submit --bundle` wrote")
    if (size := _directory_size(end)) is None:
        raise BundleError(
            f"{path}: cannot be read as a zip file: it was cut off, or something was put behind it, such as a comment, "
            "which bundles do not have; copy it again"
        )
    if size > _LARGEST_DIRECTORY:
        raise BundleError(
            f"{path}: the list of its members has {size} bytes, expected at most {_LARGEST_DIRECTORY}, for at most "
            f"{MOST_MEMBERS} members"
        )
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, EOFError, OverflowError) as error:
        raise BundleError(f"{path}: cannot be read as a zip file ({error}); copy it again") from error
    with archive:
        if problems := list(_problems(archive)):
            raise BundleError(*problems, origin=f"{path} is no bundle that can be trusted")
        yield Reader(path, archive)


def _directory_size(end: bytes) -> int | None:
    """Bytes of a zip file's list of members, by its last bytes, `end`; None where it does not end as bundles do."""
    last, large = end[-_END_LENGTH:], end[-_END_LENGTH - _END_64_LENGTH : -_END_LENGTH]
    if last[:4] != _END:
        return None
    size = int.from_bytes(last[12:16], "little")
    if large[56:60] != _LOCATOR:
        return size
    return max(size, int.from_bytes(large[40:48], "little")) if large[:4] == _END_64 else None


def _problems(archive: zipfile.ZipFile) -> Iterator[str]:
    members = archive.infolist()
    if len(members) > MOST_MEMBERS:
        yield f"it has {len(members)} members, expected at most {MOST_MEMBERS}"
        return
    if archive.comment:
        yield "it has a comment, which bundles do not have"
    repeated = [name for name, count in Counter(member.filename.casefold() for member in members).items() if count > 1]
    if repeated:
        yield f"names stand in it more than once: {listed(map(quoted, repeated), _SHOWN)}"
    if len(members) == 1 and members[0].filename.lower().endswith((".zip", ".gz", ".tar", ".tgz")):
        yield f"it holds {quoted(members[0].filename)} and nothing else; unpack it once, and verify what is in it"
        return
    wrong: dict[str, list[str]] = {}
    for member in members:
        for problem in _member_problems(member):
            wrong.setdefault(problem, []).append(member.filename)
    yield from (f"{problem}: {listed(map(quoted, names), _SHOWN)}" for problem, names in wrong.items())
    if (total := sum(member.file_size for member in members)) > LARGEST_BUNDLE:
        yield f"unpacked it has {total} bytes, expected at most {LARGEST_BUNDLE}"
    end = 0
    for member in sorted(members, key=lambda each: each.header_offset):
        if member.header_offset < end or (end == 0 and member.header_offset):
            yield f"{quoted(member.filename)}: does not begin where the member before it ends"
            break
        end = member.header_offset + 30 + len(member.orig_filename.encode()) + member.compress_size


def _is_dense(member: zipfile.ZipInfo) -> bool:
    return member.file_size > max(SMALL, MOST_DENSE * member.compress_size)


def _member_problems(member: zipfile.ZipInfo) -> Iterator[str]:
    if not _NAME.fullmatch(member.orig_filename) or member.orig_filename != member.filename:
        yield "a name that is no plain relative path"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or member.external_attr & 0x10:
        yield "a link, folder or device, expected files"
    if member.flag_bits & 0x1:
        yield "an encrypted member"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield f"compressed by method {member.compress_type}, expected deflate"
    if member.file_size > LARGEST_MEMBER:
        yield f"larger than {LARGEST_MEMBER} bytes"
    if _is_dense(member):
        yield f"unpacks to more than {MOST_DENSE} times its size"
