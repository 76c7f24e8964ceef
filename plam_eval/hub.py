"""The Hugging Face hub: how its repositories are named, `owner/name@revision`, and what it refuses, in words.

Imports huggingface_hub inside of functions only: a spec can be read where nothing is looked for on the hub.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import NamedTuple

from plam_eval.errors import PlamError, first_line, listed, quoted

_LISTED = 10_000  # files of a repository that are looked at
COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
HUB_FILE = "plateau.yaml"
"""The spec of a repository, where no file is named; `plam scan` writes one of this name."""
_SUFFIXES = (".yaml", ".yml")
_FILE = re.compile(r"[A-Za-z0-9._/+=-]{1,200}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+=-]{0,199}", re.ASCII)


def split_revision(name: str) -> tuple[str, str | None]:
    """Repository and revision of a `name` such as `owner/name@revision`; no revision where there is no "@"."""
    repository, separator, revision = name.partition("@")
    return repository, revision if separator else None


def is_repository(name: str) -> bool:
    """Whether `name` has the form of `owner/name`, without a revision."""
    return bool(_REPOSITORY.fullmatch(name))


def repository_of(name: str) -> str:
    """`owner/name` of a `name` with or without a revision; what is no such name comes back as it is."""
    repository, _ = split_revision(name)
    return repository if is_repository(repository) else name


def revision_problem(revision: object) -> str | None:
    """Why `revision`, as it was read, cannot be a branch, tag or commit; None where it can.

    The hub's cache keeps a file of a branch's name, so that text which leads out of a folder must not get there.
    """
    expected = "expected a branch, a tag or a commit, such as main, v1.0 or refs/pr/3"
    if not isinstance(revision, str):  # lmms-eval reads digits as a number, and drops zeros in front
        return f"found {revision!r}, which was read as no text; write it behind the name, as owner/name@{revision}"
    if not revision:
        return f"found nothing, {expected}"
    levels = revision.split("/")
    plain = _REVISION.fullmatch(revision) and ".." not in revision
    hidden = any(level.startswith(".") or level.endswith((".", ".lock")) for level in levels)
    if not plain or not all(levels) or hidden:
        return f"found {revision[:80]!r}, {expected}"
    return None


def is_folder(name: str) -> bool:
    """Whether `name`, a model's, is that of a folder, which then comes before a hub id of the same name."""
    try:
        return bool(name.strip()) and Path(name).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):  # too long a name, an unknown user, a null byte
        return False


def name_problem(name: str) -> str | None:
    """What is wrong with the revision in `name`, a model's; None where there is none, or the name is a folder's."""
    repository, revision = split_revision(name)
    if revision is None or not is_repository(repository) or is_folder(name):
        return None
    problem = revision_problem(revision)
    return f"{name[:120]!r}: behind the @ {problem}" if problem else None


class HubError(PlamError, ValueError):
    """A file of the hub that cannot be had; the message says why, and what to do."""


def small_file(repository: str, file: str, revision: str | None, largest: int) -> tuple[Path, str | None]:
    """A file in the hub's cache, downloaded if need be, and the commit that it is of.

    Args:
        repository: owner/name.
        file: its path in the repository.
        revision: branch, tag or commit; None for the repository's own default.
        largest: bytes above which it is not downloaded.

    Raises:
        HubError: no such repository, revision or file (then with the files of the same kind that there are), too
            large, or not cached while the hub is out of reach.
    """
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    missing = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)
    unreachable: Exception | None = None
    try:
        if not constants.is_offline_mode():
            try:
                size = get_hf_file_metadata(hf_hub_url(repository, file, revision=revision)).size
            except (*missing, errors.HFValidationError):
                raise
            except Exception as error:  # of the network, whose library differs between versions of huggingface_hub
                unreachable = error
            else:
                if size is None or size > largest:
                    raise HubError(f"{file} in {repository} has {in_words(size)}, expected at most {largest} bytes")
        offline = unreachable is not None
        path = Path(hf_hub_download(repository, file, revision=revision, local_files_only=offline))
    except HubError:
        raise
    except errors.LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError, but says nothing of the hub
        remedy = "download it elsewhere and pass the file"
        raise HubError(download_refusal(repository, revision, file, unreachable or error, remedy=remedy)) from error
    except errors.EntryNotFoundError as error:
        raise HubError(_instead(repository, file, revision)) from error
    except Exception as error:
        raise HubError(download_refusal(repository, revision, file, error, remedy="pass a file")) from error
    return path, commit_of(path)


def _instead(repository: str, file: str, revision: str | None) -> str:
    """What a repository holds where a file is not."""
    from huggingface_hub import HfApi

    suffix = Path(file).suffix
    try:
        tree = HfApi().list_repo_tree(repository, recursive=True, revision=revision)
        names = [entry.path for entry in itertools.islice(tree, _LISTED)]
    except Exception as error:  # the file is missing, whatever else fails
        return f"{repository} has no {file}, and its files cannot be listed ({first_line(error)})"
    alike = [name for name in names if name.endswith(suffix)]
    named = f"{repository}@{revision}" if revision else repository
    if not alike:
        return f"{named} has no {file}, and no other {suffix} file"
    return f"{named} has no {file}; it has {listed(alike, 10)}. Write {named}:{alike[0]}"


def download_refusal(repository: str, revision: str | None, file: str, error: Exception, *, remedy: str) -> str:
    """What the hub, or the way there, said when a file was asked for, each with what to do.

    Args:
        repository: owner/name.
        revision: branch, tag or commit; None where none was named.
        file: the file, or in words what else was asked for.
        error: what asking for it raised.
        remedy: what to do where the hub is out of reach.
    """
    from huggingface_hub import constants, errors

    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    page = f"{constants.ENDPOINT}/{repository}"
    at_revision = f" at revision {revision}" if revision else ""
    if isinstance(cause, errors.HFValidationError):
        return f"is no folder, and no hub id (owner/name) either: {first_line(cause)}"
    if isinstance(cause, errors.GatedRepoError):
        return (
            f"its repository is gated: accept its licence at {page}, log in with `hf auth login` (or set HF_TOKEN) "
            "as the user who did, and try again"
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"its repository has no revision {revision!r}; branches, tags and commits: {page}/tree/main"
    if isinstance(cause, errors.RepositoryNotFoundError):
        return (
            f"is no folder, and the hub has no such repository, or shows it to its members only; check the name "
            f"({page}), and if it is private, log in with `hf auth login`"
        )
    if status == 401:
        return (
            "the hub refuses the token that was sent with the request (401), which is wrong or has expired; log in "
            "again with `hf auth login`, or correct HF_TOKEN"
        )
    if constants.is_offline_mode():
        return (
            f"{file} is not in the local cache{at_revision}, and HF_HUB_OFFLINE is set (the name is no folder either); "
            f"unset it to download, or {remedy}"
        )
    if isinstance(cause, errors.SafetensorsParsingError):
        return f"{file} on the hub has a header that cannot be read ({first_line(cause)}); it is damaged there"
    said = f"answered {status}" if status else "cannot be reached"
    return (
        f"{file} is not in the local cache{at_revision}, and the hub at {constants.ENDPOINT} {said} "
        f"({type(cause).__name__}: {first_line(cause)}); check network and proxy, or {remedy}"
    )


class RangeError(OSError):
    """A file of the hub that cannot be read in parts."""


class RemoteFile:
    """A file of the hub that is read in parts, by range requests; as much of a file as zipfile asks for.

    Args:
        repository: owner/name.
        file: its path in the repository.
        revision: branch, tag or commit; None for the repository's own default.
        size: bytes of the file, as the hub says.
    """

    _LEAST = 1 << 16  # bytes of a request
    _MOST = 1 << 26  # bytes of all of them

    def __init__(self, repository: str, file: str, revision: str | None, size: int) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        self._url, self._size, self._at = hf_hub_url(repository, file, revision=revision), size, 0
        self._headers = {**build_hf_headers(), "accept-encoding": "identity"}
        self._parts: list[tuple[int, bytes]] = []

    def seekable(self) -> bool:
        """Always: nothing is fetched before it is read."""
        return True

    def tell(self) -> int:
        """Bytes before the next one that is read."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go on reading elsewhere.

        Args:
            offset: bytes, before the file's beginning none.
            whence: what they count from: 0 the beginning, 1 the next byte, 2 the end.
        """
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def read(self, count: int = -1) -> bytes:
        """The next bytes.

        Args:
            count: at most so many; below 0, all to the end.

        Raises:
            RangeError: the server sends no parts, or more is asked for than describes tensors; and the errors of
                huggingface_hub.
        """
        first = min(self._at, self._size)
        last = self._size if count is None or count < 0 else min(first + count, self._size)
        if last == first:
            return b""
        self._at = last
        for start, content in self._parts:
            if start <= first and last <= start + len(content):
                return content[first - start : last - start]
        start = max(0, min(first, self._size - self._LEAST))
        content = self._fetch(start, min(max(last, start + self._LEAST), self._size))
        self._parts.append((start, content))
        return content[first - start : last - start]

    def _fetch(self, first: int, last: int) -> bytes:
        from huggingface_hub.utils import get_session, hf_raise_for_status

        if sum(len(content) for _, content in self._parts) + last - first > self._MOST:
            raise RangeError(f"what describes its tensors takes more than {self._MOST} bytes")
        headers = {**self._headers, "range": f"bytes={first}-{last - 1}"}
        with get_session().stream("GET", self._url, headers=headers, follow_redirects=True, timeout=30) as response:
            if response.status_code >= 400:
                response.read()
                hf_raise_for_status(response)
            if response.status_code != 206:
                raise RangeError("the server sends the file as a whole only")
            content = bytearray()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) >= last - first:
                    break
        if len(content) != last - first:
            raise RangeError(f"the server sent {len(content)} bytes of {last - first}")
        return bytes(content)


def in_words(size: int | None) -> str:
    """`size`, a number of bytes, for a reader; None is one that is not known."""
    if size is None:
        return "of unknown size"
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def commit_of(path: Path) -> str | None:
    """The commit of the file `path` that huggingface_hub has put into its cache; None where its folder says none."""
    snapshot = path.parent
    while snapshot.parent.name != "snapshots" and snapshot != snapshot.parent:
        snapshot = snapshot.parent
    return snapshot.name if COMMIT.fullmatch(snapshot.name) else None


class HubSpec(NamedTuple):
    """A spec file on the hub: `owner/repo`, `owner/repo@revision`, `owner/repo:file.yaml`, `owner/repo@revision:file`.

    Attributes:
        written: as it was given; `file`: `HUB_FILE` where it names none.
    """

    written: str
    repository: str
    revision: str | None
    file: str

    @classmethod
    def read(cls, written: str) -> HubSpec | None:
        """What `written` names; None for text of another form, such as a file's path or a packaged name."""
        name, colon, file = written.partition(":")
        repository, revision = split_revision(name)
        if not is_repository(repository) or (not colon and name.endswith(_SUFFIXES)):
            return None
        return cls(written, repository, revision, file if colon else HUB_FILE)

    def problem(self) -> str | None:
        """Why it can lead to no file; None where it can."""
        if self.revision is not None and (problem := revision_problem(self.revision)):
            return f"behind the @ {problem}"
        parts = self.file.split("/")
        if not _FILE.fullmatch(self.file) or not self.file.endswith(_SUFFIXES) or {"", ".", ".."} & set(parts):
            return f"behind the : found {quoted(self.file)}, expected a YAML file of the repository, such as {HUB_FILE}"
        return None
