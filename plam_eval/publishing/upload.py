"""Pushing to the hub: what is checked before anything heavy, the upload, and what the hub refuses, in words.

No token is ever printed: what huggingface_hub says is shown with every token that is known taken out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval import hub
from plam_eval.errors import CheckpointError, OutsideError, ProblemsError, first_line, listed, quoted
from plam_eval.files import MARKER, inside
from plam_eval.merging.content_hash import sha256_of
from plam_eval.merging.export_record import FILE, ExportRecord, read_export_record
from plam_eval.publishing.card.licences import README
from plam_eval.publishing.card.model_card import without_paths
from plam_eval.terminal import one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LISTED = 10_000  # files of a folder that are looked at
_WEIGHTS = (".safetensors", ".bin", ".index.json", ".pt", ".pth", ".gguf")


class UploadError(ProblemsError, ValueError):
    """Something that cannot be pushed; the message says why, and what to do. Nothing was uploaded, or not all."""


def check_push(repository: str, *, public: bool = False) -> None:
    """Raise unless this machine can push to a repository: asked before anything that takes long.

    Args:
        repository: owner/name.
        public: whether it may be one that everybody can read.

    Raises:
        UploadError: its name is none, the hub is out of reach or switched off, nobody is logged in, the token may not
            write there, or it is there and public while a private one was asked for.
    """
    if problem := _name_problem(repository):
        raise UploadError(problem)
    from huggingface_hub import HfApi, constants, errors

    if constants.is_offline_mode():
        raise UploadError(f"{repository}: HF_HUB_OFFLINE is set, so nothing can be pushed; unset it")
    api = HfApi()
    with in_our_words(repository):
        who = api.whoami()
        _check_owner(repository, who)
        try:
            info = api.repo_info(repository)
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError:
            return
    if info.private is False and not public:
        raise UploadError(
            f"{repository} is there already, and public; give --public if everybody may read what is pushed, or name "
            "another repository"
        )


def push_export(folder: Path, repository: str, *, public: bool = False) -> str:
    """Push an exported checkpoint, its record last, so that a repository without one is not complete.

    The pushed record names folders without their paths on this machine. An upload that was stopped goes on.

    Args:
        folder: of the export.
        repository: owner/name; it is made, private unless told otherwise, where there is none.
        public: whether everybody may read it.

    Returns:
        The address of the repository.

    Raises:
        UploadError: as `check_push`; or the folder's files are not those of its record, or the repository holds other
            weights; every one is named. CheckpointError: the folder has no record that can be read.
    """
    folder = Path(folder)
    record = read_export_record(folder)
    _check_files(folder, record)
    check_push(repository, public=public)
    from huggingface_hub import HfApi

    api = HfApi()
    with in_our_words(repository):
        address = api.create_repo(repository, private=not public, exist_ok=True)
        _check_nothing_else(api, repository, record)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"Merged checkpoint, plam-eval digest {record.digest[:16]}",
            ignore_patterns=[FILE, MARKER],
        )
        api.upload_file(
            repo_id=repository,
            path_or_fileobj=record_text(record),
            path_in_repo=FILE,
            commit_message="Record of the export: complete",
        )
    return str(address)


def push_files(repository: str, files: Mapping[str, str], *, parent: str | None, message: str) -> str:
    """One commit that writes some files of a repository, and touches no other.

    Args:
        repository: owner/name.
        files: path in it -> content.
        parent: the commit that they were made from; the hub refuses where there is a later one.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        UploadError: the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(path, content.encode()) for path, content in files.items()]
    with in_our_words(repository):
        done = HfApi().create_commit(repository, operations, commit_message=message, parent_commit=parent)
    return str(done.commit_url)


def _name_problem(repository: str) -> str | None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    expected = "expected owner/name, such as your-name/mllm-merged"
    if not isinstance(repository, str) or not hub.is_repository(repository):
        return f"{quoted(repository)} is no name of a repository to push to; {expected}"
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        return f"{quoted(repository)} is no name of a repository ({first_line(error)}); {expected}"
    return None


def _check_owner(repository: str, who: Mapping[str, Any]) -> None:
    """Raises UploadError where the one who is logged in has no right to write there, as far as the hub says it."""
    owner, name = repository.split("/")[0], str(who.get("name"))
    token = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
    if token == "read":
        raise UploadError(
            f"{repository}: the token in use can only read; make one that can write "
            "(huggingface.co/settings/tokens) and log in with it: `hf auth login`, or set HF_TOKEN"
        )
    roles = {str(org.get("name")): org.get("roleInOrg") for org in who.get("orgs") or () if isinstance(org, Mapping)}
    mine = [name, *(org for org, role in roles.items() if role != "read")]
    if owner.lower() not in {one.lower() for one in mine}:
        raise UploadError(
            f"{repository}: you are logged in as {name}, who can write below {', '.join(mine)} and not below {owner}; "
            "name a repository there, or log in as somebody else (`hf auth login`)"
        )


def _check_files(folder: Path, record: ExportRecord) -> None:
    """Raises UploadError where a folder holds other files than its record says, by name and content."""
    problems, paths = [], {}
    for name, file in record.files.items():
        try:
            path = inside(folder, name, FILE)
        except OutsideError as error:
            problems.append(str(error))
            continue
        if not path.is_file():
            problems.append(f"{name}: is not there")
        elif path.stat().st_size != file.bytes:
            problems.append(f"{name}: has {path.stat().st_size:,} bytes, and {FILE} says {file.bytes:,}")
        else:
            paths[name] = path
    hashes = sha256_of([*paths.values()])
    problems += [
        f"{name}: its SHA-256 is {hashes[path]}, and {FILE} says {record.files[name].sha256}"
        for name, path in paths.items()
        if hashes[path] != record.files[name].sha256
    ]
    own = {*record.files, FILE, README, MARKER}
    for number, path in enumerate(folder.rglob("*")):
        if number >= _LISTED:
            problems.append(f"more than {_LISTED} files lie in it")
            break
        name = path.relative_to(folder).as_posix()
        if name in own and path.is_symlink():
            try:
                inside(folder, name, str(folder))
            except OutsideError as error:
                problems.append(str(error))
        elif name not in own and (path.is_symlink() or not path.is_dir()):
            problems.append(f"{name}: is not of the export; move it elsewhere")
    if problems:
        raise UploadError(*dict.fromkeys(problems), origin=f"{folder} is not as it was exported, export it again")


def _check_nothing_else(api: HfApi, repository: str, record: ExportRecord) -> None:
    """Raises UploadError where a repository holds weights that would stay beside those of the export."""
    names = api.list_repo_files(repository)
    others = sorted(name for name in names if name.endswith(_WEIGHTS) and name not in record.files)
    if others:
        raise UploadError(
            f"{repository} holds other weights ({listed(others)}), which would stay beside those of the export and "
            "might be loaded in their place; name a new repository, or delete them there"
        )


def record_text(record: ExportRecord) -> bytes:
    """The record as it is pushed: as JSON, without paths of this machine.

    Args:
        record: of the export.
    """
    return (json.dumps(without_paths(record).model_dump(mode="json"), indent=2) + "\n").encode()


# --- what the hub says ------------------------------------------------------------------------------------------------


@contextmanager
def in_our_words(repository: str) -> Iterator[None]:
    """What huggingface_hub, or the network below it, raises becomes an UploadError; a mistake of ours stays one.

    Args:
        repository: owner/name, for the message.
    """
    from huggingface_hub import errors

    try:
        yield
    except (UploadError, CheckpointError):
        raise
    except Exception as error:
        expected = isinstance(error, (errors.HfHubHTTPError, errors.HFValidationError, ValueError, OSError))
        if not expected and type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "requests"):
            raise
        raise UploadError(_refusal(repository, error)) from None


def _refusal(repository: str, error: BaseException) -> str:
    """What the hub, or the way there, said to a push, with what to do, and without a token.

    Args:
        repository: owner/name.
        error: what pushing raised.
    """
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    said = without_tokens(one_line(getattr(error, "server_message", None) or first_line(error)))
    page = f"{constants.ENDPOINT}/{repository}"
    again = "the same command goes on where it was"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return (
            f"{repository}: nobody is logged in; log in with `hf auth login`, or set HF_TOKEN to a token that can write"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{repository}: HF_HUB_OFFLINE is set, so the hub cannot be reached; unset it"
    if status == 401:
        return (
            f"{repository}: the hub refuses the token in use (401), which is wrong or has expired; log in again with "
            "`hf auth login`, or correct HF_TOKEN, which comes before a login"
        )
    if status == 403:
        return (
            f"{repository}: the hub refuses to write there (403): the token can only read, or has no right to this "
            "repository; make one that can write (huggingface.co/settings/tokens), or name another repository"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return (
            f"{repository}: the hub has no such repository, or shows it to its members only (404); check the name "
            f"({page}) and who is logged in (`hf auth whoami`)"
        )
    if status == 429:
        return f"{repository}: the hub wants fewer requests (429); wait some minutes, and {again}"
    if status in (409, 412):
        return f"{repository}: somebody else changed it meanwhile ({status}: {said}); look at {page}, and try again"
    if status is not None and status < 500:
        return f"{repository}: the hub refuses it ({status}: {said})"
    if status is not None:
        return f"{repository}: the hub answered {status} ({said}); try again later, {again}"
    if isinstance(error, ValueError):
        return f"{repository}: refused before it was sent: {said}"
    return (
        f"{repository}: the hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}: {said}); check "
        f"network and proxy, and {again}"
    )


def without_tokens(text: str) -> str:
    """`text` with the token of this machine's login, and whatever has the form of one, taken out."""
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "[token]") if token else text
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}", "[token]", text)
