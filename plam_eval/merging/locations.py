"""Where the files of a checkpoint lie: in a folder, or in a repository of the hub and its local cache."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plam_eval import hub
from plam_eval.errors import CheckpointError
from plam_eval.merging import content_hash, weight_files
from plam_eval.merging.tensor_files import RemoteHeader, TensorFile, fingerprint_of

_LISTED = 10_000  # names in a folder that are looked at
_HUB_CACHE = re.compile(r"models--(.+)/snapshots/([0-9a-f]{40})")


class FolderFiles:
    """The files of a checkpoint in a folder.

    Args:
        name: of the checkpoint, as it was given.
        folder: that holds the files.
        argument: the name with its role ("base=..."), which begins every message.
    """

    commit = None
    remedy = "is this the folder save_pretrained wrote, and is it complete?"

    def __init__(self, name: str, folder: Path, argument: str) -> None:
        self.name, self._folder, self.argument, self.location = name, folder, argument, str(folder.resolve())
        cached = _HUB_CACHE.search(str(folder.absolute())) or _HUB_CACHE.search(self.location)
        self.model_name = cached[1].replace("--", "/") if cached else Path(self.location).name
        in_cache = _HUB_CACHE.search(self.location) if content_hash.in_hub_cache(folder) else None
        self.recorded_commit = in_cache[2] if in_cache else None

    def find(self, file: str) -> Path | None:
        """The path of `file`, a name in the folder; None where there is no such file."""
        path = self._folder / file
        try:
            return path if path.is_file() else None
        except OSError:  # such as a name that is too long
            return None

    def size(self, file: str) -> int | None:
        """Bytes of `file`; None where there is no such file."""
        path = self.find(file)
        return path.stat().st_size if path else None

    def listing(self) -> frozenset[str]:
        """Names of its files, and of those in the folders below it. Raises CheckpointError when it cannot be read."""
        paths = itertools.chain(self._folder.glob("*"), self._folder.glob("*/*"), self._folder.glob("*/*/*"))
        try:
            files = [path for path in itertools.islice(paths, _LISTED) if path.is_file()]
        except OSError as error:
            raise CheckpointError(f"{self.argument}: cannot be read ({error})") from error
        return frozenset(path.relative_to(self._folder).as_posix() for path in files)

    def header(self, file: str) -> TensorFile | None:
        """None: any `file` of a folder is opened itself."""
        return None

    def missing(self, files: Iterable[str]) -> dict[str, int | None]:
        """Of `files`, those that reading would download: none."""
        return {}

    def identity(self, files: Iterable[str]) -> dict[str, Any]:
        """The folder and a fingerprint of `files`, by sizes, times and headers: it changes when they may have."""
        digest = hashlib.sha256()
        for file in sorted(files):
            path = self.find(file)
            stat = path.stat() if path else None
            digest.update(
                repr(
                    (file, stat and (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns), path and fingerprint_of(path))
                ).encode()
            )
        return {"folder": self.location, "fingerprint": digest.hexdigest()}

    def hashes(self, files: Iterable[str]) -> dict[str, str]:
        """SHA-256 (hex) of those of `files` that are there. Raises OSError when one cannot be read."""
        paths = {file: path for file in files if (path := self.find(file))}
        digests = content_hash.sha256_of([*paths.values()])
        return {file: digests[path] for file, path in paths.items()}


class HubFiles:
    """The files of a checkpoint on the hub, all of one commit: cached ones first, others downloaded when asked for.

    Args:
        repository: owner/name.
        revision: branch, tag or commit; None for the repository's own default.
        argument: the name with its role ("base=..."), which begins every message.
        role: name of the argument that it was given as; "" where it has none.
        named: whether the revision stood behind the name, as in `owner/name@v1`.
    """

    def __init__(self, repository: str, revision: str | None, argument: str, role: str, named: bool) -> None:
        # A commit that was found belongs to no name that a user gave: every later look at the same files has it.
        shown = revision if revision and (named or not hub.COMMIT.fullmatch(revision)) else None
        self.name = f"{repository}@{shown}" if shown else repository
        self.location = self.model_name = repository
        self.revision, self.argument, self._role = revision, argument, role
        self.commit: str | None = None
        self._tree: dict[str, Any] | None = None
        self.remedy = (
            f"looked for in the local cache and, unless HF_HUB_OFFLINE is set, on the hub, at "
            f"{'revision ' + revision if revision else 'its default branch'}"
        )

    @property
    def recorded_commit(self) -> str | None:
        """The commit that the files are of; None before the first of them was looked for."""
        return self.commit

    def find(self, file: str) -> Path | None:
        """The path of `file` in the local cache, downloaded if need be; None when the repository has no such file.

        Raises CheckpointError when the hub refuses it, or is out of reach.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(self.location, file, revision=self.commit or self.revision))
        except LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError, but says nothing of the repository
            raise self._refused(file, error) from error
        except EntryNotFoundError:
            return None
        except Exception as error:  # of the HTTP library as well, which differs between versions of huggingface_hub
            raise self._refused(file, error) from error
        if self.commit is None and path.parent.parent.name == "snapshots":
            self.commit = path.parent.name  # every later file from the same commit, whatever the branch does meanwhile
        return path

    def _cached(self, file: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.location, file, revision=self.commit)
        return Path(path) if isinstance(path, str) else None

    def listing(self) -> frozenset[str]:
        """Names of the repository's files; those in the local cache alone while offline or out of reach."""
        return frozenset(self._files())

    def _files(self) -> dict[str, Any]:
        """Name -> what the hub says of the file; None where the local cache alone was asked."""
        from huggingface_hub import HfApi, constants

        if self._tree is None:
            cached = self._snapshot()
            try:
                if constants.is_offline_mode():
                    self._tree = cached
                else:
                    revision = self.commit or self.revision
                    tree = HfApi().list_repo_tree(self.location, recursive=True, revision=revision)
                    self._tree = {entry.path: entry for entry in tree if hasattr(entry, "size")}
            except Exception as error:
                if not weight_files.choose(cached):
                    raise self._refused("the list of files", error) from error
                self._tree = cached
        return self._tree

    def _snapshot(self) -> dict[str, Any]:
        config = self._cached("config.json")
        return dict.fromkeys(FolderFiles(self.name, config.parent, self.argument).listing()) if config else {}

    def header(self, file: str) -> TensorFile | None:
        """Header of a file that is not in the local cache, without its weights; None when it is cached.

        Args:
            file: its name in the repository, of safetensors or a `.bin`.

        Raises:
            CheckpointError: the header cannot be had or read, with what to do about it.
        """
        from huggingface_hub import HfApi, constants

        from plam_eval.merging import bin_header  # loads torch, which a mistake in a plan is told without

        if self._cached(file):
            return None
        size = None
        try:
            if file.endswith(".safetensors"):
                metadata = HfApi().parse_safetensors_file_metadata(self.location, file, revision=self.commit)
                return RemoteHeader(metadata.tensors)
            if constants.is_offline_mode():
                raise ConnectionError("offline")
            size = self.size(file)
            if size is None:
                raise bin_header.BinHeaderError("the hub does not say how large it is")
            remote: Any = hub.RemoteFile(self.location, file, self.commit, size)
            return RemoteHeader(bin_header.read_header(remote))
        except bin_header.LegacyError as error:
            raise CheckpointError(
                f"{self.argument}: {file} on the hub ({hub.in_words(size)}, not downloaded) cannot be used: {error}; "
                "expected safetensors, or a file that torch.save has written since"
            ) from error
        except (bin_header.BinHeaderError, hub.RangeError) as error:
            option = f" --revision {self.commit}" if self.revision else ""
            raise CheckpointError(
                f"{self.argument}: the shapes in {file} cannot be told without all of it, {hub.in_words(size)}, and "
                f"nothing is downloaded unasked ({error}); `hf download {self.location} {file}{option}` downloads it, "
                "and the same command goes on"
            ) from error
        except Exception as error:
            raise self._refused(file, error) from error

    def size(self, file: str) -> int | None:
        """Bytes of `file`, cached or as the hub says; None also where it does not answer, as the download will tell."""
        if cached := self._cached(file):
            return cached.stat().st_size
        try:
            size = getattr(self._files().get(file), "size", None)
        except CheckpointError:
            return None
        return size if isinstance(size, int) else None

    def missing(self, files: Iterable[str]) -> dict[str, int | None]:
        """Those of `files` that reading would download, and bytes of each, None where not known; {} while offline."""
        from huggingface_hub import constants

        if constants.is_offline_mode():
            return {}
        return {file: self.size(file) for file in sorted(files) if not self._cached(file)}

    def identity(self, files: Iterable[str]) -> dict[str, Any]:
        """Repository and commit, which say what all `files` hold."""
        return {"hub": self.location, "commit": self.commit}

    def hashes(self, files: Iterable[str]) -> dict[str, str]:
        """SHA-256 (hex) of those of `files` that are cached, or that the hub names one for (LFS)."""
        paths = {file: path for file in files if (path := self._cached(file))}
        digests = content_hash.sha256_of([*paths.values()])
        hashes = {file: digests[path] for file, path in paths.items()}
        for file in set(files) - hashes.keys():
            lfs = getattr(self._files().get(file), "lfs", None)
            if lfs is not None:
                hashes[file] = lfs.sha256
        return hashes

    def _refused(self, file: str, error: Exception) -> CheckpointError:
        """What the hub, or the way there, said; each with its own remedy."""
        remedy = f"download it elsewhere and pass the folder{f' as {self._role}=' if self._role else ''}"
        return CheckpointError(
            f"{self.argument}: {hub.download_refusal(self.location, self.revision, file, error, remedy=remedy)}"
        )
