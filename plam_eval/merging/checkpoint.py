"""A model checkpoint read lazily, tensor by tensor, from a folder or from the hub."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from safetensors import safe_open

from plam_eval import hub
from plam_eval.errors import DamagedFileError, OutsideError, PlamError, first_line
from plam_eval.files import inside, read_json
from plam_eval.merging import content_hash, weight_files

if TYPE_CHECKING:  # a mistake in a call is told without torch, which takes seconds to import
    import torch
    from torch import Tensor

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_JSON_LIMIT = 1 << 28  # bytes; the index of the largest models has some ten million
_LISTED = 10_000  # names in a folder that are looked at
_HUB_CACHE = re.compile(r"models--(.+)/snapshots/([0-9a-f]{40})")

_ANNOUNCED: set[tuple[str, str | None, str]] = set()
"""Hub id, commit and name of files that were announced."""

T = TypeVar("T")


class MergeError(PlamError, ValueError):
    """A merge that was refused, or undone. `faults` holds every reason; no parameter has changed."""

    heading = "nothing was merged:"

    def __init__(self, *faults: str) -> None:
        self.faults = list(faults)
        super().__init__(self._told())

    def _told(self) -> str:
        return "\n".join([self.heading, *(f"  - {fault}" for fault in self.faults)])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(self.faults)


class CheckpointError(MergeError):
    """A checkpoint that cannot be read, for a merge or for anything else. `faults` holds every reason."""

    heading = "a checkpoint cannot be read:"

    def _told(self) -> str:
        return super()._told() if len(self.faults) > 1 else "".join(self.faults)


class TensorFile(Protocol):
    """One open weight file: names, and shape, dtype and tensor of a name. What it raises, `Checkpoint` translates."""

    def names(self) -> Iterable[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> torch.dtype | str: ...
    def tensor(self, name: str) -> Tensor: ...


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")
        except Exception as error:  # of a library that does not say which
            raise CheckpointError(
                _pointer(path)
                or f"{path}: truncated or corrupt safetensors file ({first_line(error)}); download it again"
            ) from error
        self._names = frozenset(self._file.keys())

    def names(self) -> Iterable[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype | str:
        return str(self._file.get_slice(name).get_dtype())

    def tensor(self, name: str) -> Tensor:
        return self._file.get_tensor(name)


class _BinFile:
    """A `.bin` shard: mapped, not read, and unpickled with tensors and plain containers allowed only."""

    def __init__(self, path: Path) -> None:
        import torch

        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:
            raise CheckpointError(
                _pointer(path)
                or f"{path}: cannot be read by torch.load(mmap=True, weights_only=True) ({type(error).__name__}: "
                f"{first_line(error)}); it is truncated, in the format of before torch 1.6, or holds more "
                "than tensors. Download it again or convert it to safetensors"
            ) from error
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{path}: found {type(content).__name__}, expected a mapping of names to tensors")
        self._tensors = {
            name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)
        }

    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        import torch

        tensor = self._tensors[name]
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise TypeError(f"it is {'on the meta device' if tensor.is_meta else tensor.layout}, not a plain tensor")
        return tensor


class _RemoteHeader:
    """The header of a file on the hub, fetched by range requests: shapes without the weights."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype | str:
        dtype: torch.dtype | str = self._tensors[name].dtype
        return dtype

    def tensor(self, name: str) -> Tensor:
        raise RuntimeError(f"{name}: only the header was fetched; call Checkpoint.prefetch first")


class Checkpoint:
    """The weights and config of a model on disk or on the hub. Open it with `Checkpoint.open`.

    It reads the files that transformers reads, and a folder that transformers and vLLM would read differently is
    refused. What it reads is data: names in it lead to no file outside the folder, and no code in it runs.

    Attributes:
        name: the folder or hub id, as it was given, with the branch or tag (`owner/name@v1`) if one was.
        config: content of config.json.
        bytes_read: bytes of all tensors read so far.
    """

    def __init__(self, source: _Folder | _Hub) -> None:
        self._source = source
        self._files: dict[str, TensorFile] = {}
        self.name = source.name
        self.bytes_read = 0
        self.config: dict[str, Any] = self._json("config.json")
        files = source.listing()
        chosen = weight_files.choose(files)
        if chosen is None:
            raise self._nothing("weights", files)
        self._weights = chosen
        self._file_of: dict[str, str] = {}
        self._check_alone(files)
        if chosen.endswith(".index.json"):
            self._file_of = self._index(chosen)
            self._check_shards()
        else:
            self._file_of = dict.fromkeys(self._open(chosen, header=True).names(), chosen)

    @classmethod
    def open(cls, source: str | Path | Checkpoint, revision: str | None = None, *, role: str = "") -> Checkpoint:
        """Open a checkpoint folder, or a model of the hub: `owner/name`, or `owner/name@revision`.

        A folder of that very name comes first, also if there is an "@" in it. From the hub only config.json, the index
        and, later, the shards that are asked for are downloaded. Symbolic links in a folder are followed, as the hub's
        cache is made of them: what they lead to is only ever read as weights or JSON, and quoted nowhere.

        Args:
            revision: branch, tag or commit, in place of one in the name.
            role: name of the argument that `source` was given as, such as "pretrained", for messages.

        Raises:
            CheckpointError: no such folder or model, no config.json, no weights or more than one set of them, damaged
                files, or not cached while offline; a revision that is none, of a folder, or another than in the name.
        """
        if isinstance(source, Checkpoint):
            return source
        argument = f"{role}={source}" if role else str(source)
        try:
            folder = Path(source).expanduser()
            is_folder, is_file = bool(str(source).strip()) and folder.is_dir(), folder.is_file()
        except (OSError, RuntimeError, ValueError) as error:  # too long a name, an unknown user, a null byte
            raise CheckpointError(
                f"{argument}: cannot be looked up ({error}); expected a folder or a hub id"
            ) from error
        if is_folder:
            if revision is not None:
                raise CheckpointError(
                    f"{argument}: is a folder, which has no revisions, and revision={revision} is given; leave it out, "
                    "or give the hub id"
                )
            return cls(_Folder(str(source), folder, argument))
        if is_file:
            raise CheckpointError(f"{argument}: is a file; pass the folder that holds it")
        repository, named = hub.split_revision(str(source))
        if (
            isinstance(source, Path)
            or folder.is_absolute()
            or source.startswith((".", "~"))
            or repository.count("/") > 1
        ):
            raise CheckpointError(
                f"{argument}: no such folder; expected a checkpoint folder, or a hub id such as owner/name or "
                "owner/name@revision"
            )
        for given, where in ((named, argument), (revision, f"{argument}: revision")):
            problem = None if given is None else hub.revision_problem(given)
            if problem:
                raise CheckpointError(f"{where}: {problem}")
        if named is not None and revision is not None and named != revision:
            raise CheckpointError(
                f"{argument}: names the revision {named!r}, and revision={revision} is given; give one of them"
            )
        return cls(_Hub(repository, named or revision, argument, role, named is not None))

    @property
    def loaded_by(self) -> str:
        """What transformers and vLLM open it by, together with `commit`: the folder as given, or the hub id."""
        return self.name if isinstance(self._source, _Folder) else self.location

    @property
    def location(self) -> str:
        """Absolute folder, or hub id: with `commit`, what opens the same checkpoint from anywhere."""
        return self._source.location

    @property
    def commit(self) -> str | None:
        """Commit on the hub; None for a folder."""
        return self._source.commit

    @property
    def recorded_commit(self) -> str | None:
        """Commit on the hub, also of a folder in the hub's own cache; None where the files are of no commit."""
        return self._source.recorded_commit

    @property
    def model_name(self) -> str:
        """The hub id, also of a folder in the hub's cache; else the folder's own name."""
        return self._source.model_name

    @property
    def weight_files(self) -> frozenset[str]:
        """Names of the files that hold the tensors, as they stand in the folder or repository."""
        return frozenset(self._file_of.values())

    # ---- which files, and whether they are whole ---------------------------------------------------------------------

    def _nothing(self, missing: str, files: frozenset[str]) -> CheckpointError:
        """Says what there is where `missing` is not."""
        adapter = None
        if weight_files.ADAPTER in files:
            with contextlib.suppress(CheckpointError):  # its presence says enough
                adapter = self._json(weight_files.ADAPTER)
        chosen = weight_files.choose(files)
        there = f"beside {chosen}" if chosen else f"in it: it {weight_files.instead(files, adapter)}"
        return CheckpointError(f"{self._source.argument}: no {missing} {there} ({self._source.remedy})")

    def _check_alone(self, files: frozenset[str]) -> None:
        """Raises where the folder could mean other weights than those that were chosen."""
        faults = []
        index = weight_files.index_beside(self._weights, files)
        if index and set(self._index(index).values()) != {self._weights}:
            faults.append(
                f"holds {self._weights} and {index}, which names other files: transformers reads the former, vLLM the "
                "latter. Remove the one that is out of date"
            )
        named = self.config.get("transformers_weights")
        if named is not None and named != self._weights:
            faults.append(
                f"holds {self._weights}, and its config.json names other weights for transformers "
                f"(transformers_weights: {named!r}), which vLLM does not look at. Remove one of them"
            )
        if weight_files.ADAPTER in files:
            faults.append(
                f"holds {self._weights} and {weight_files.ADAPTER}: transformers adds the adapter to the weights when "
                "it loads them, vLLM does not. Fold it in (peft: merge_and_unload(), save_pretrained) or remove it"
            )
        if faults:
            raise CheckpointError(*(f"{self._source.argument}: {fault}" for fault in faults))

    def check_read_by_vllm(self) -> None:
        """Refuse what vLLM's loader would read other weights from than transformers and this class.

        Raises:
            CheckpointError: naming the files of either side.
        """
        files = self._source.listing()
        indexed: dict[str, set[str]] = {
            name: set(self._index(name).values())
            for name in ("model.safetensors.index.json", "consolidated.safetensors.index.json")
            if name in files
        }
        theirs = weight_files.read_by_vllm(files, indexed)
        if theirs != self.weight_files:
            raise CheckpointError(
                f"{self._source.argument}: vLLM would read {_names(theirs) or 'no weights'}, transformers "
                f"{_names(self.weight_files)}; pass a folder with the latter alone (`hf download` has --exclude)"
            )

    def _index(self, file: str) -> dict[str, str]:
        """Tensor name -> file, of an index whose every entry names a file of this folder."""
        content = self._json(file)
        where = f"{self.name}/{file}"
        weight_map = content.get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(
                f"{where}: no weight_map in it (a mapping of tensor names to files); download it again"
            )
        if not weight_map:
            raise CheckpointError(f"{where}: its weight_map is empty; download it again")
        faults: list[str] = []
        suffix = file.removesuffix(".index.json").rpartition(".")[2]
        for name, holder in weight_map.items():
            try:
                inside(Path(self.name), holder, f"{where}, weight_map, {name}", follow_links=False)
                if not holder.endswith(f".{suffix}"):
                    faults.append(f"{where}, weight_map, {name}: names {holder!r}, expected a .{suffix} file")
            except OutsideError as error:
                faults.append(str(error))
        if faults:
            more = [f"{where}: and {len(faults) - 10} more like these"] if len(faults) > 10 else []
            raise CheckpointError(*faults[:10], *more)
        return dict(weight_map)

    def _check_shards(self) -> None:
        """Add what a folder's shards hold besides what the index says: transformers and vLLM load all of it.

        Raises where a tensor is in two of them. A shard that is missing or damaged is told once a tensor of it is asked
        for; shards on the hub are compared when they are opened.
        """
        if isinstance(self._source, _Folder):
            for file in sorted(self.weight_files):
                try:
                    opened = self._open(file)
                except CheckpointError:
                    if file in self._files:  # it can be read: what is wrong is what it holds
                        raise
                else:
                    self._file_of.update(dict.fromkeys(opened.names(), file))

    def _json(self, file: str) -> dict[str, Any]:
        path = self._source.find(file)
        if path is None:
            raise self._nothing(file, self._source.listing())
        try:
            if path.stat().st_size > _JSON_LIMIT:
                raise CheckpointError(
                    f"{path}: has {path.stat().st_size:,} bytes, which is no {file}; download it again"
                )
            return read_json(path, "download it again")
        except DamagedFileError as error:
            raise CheckpointError(_pointer(path) or str(error)) from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from error

    # ---- tensors -----------------------------------------------------------------------------------------------------

    def _open(self, file: str, header: bool = False) -> TensorFile:
        opened = self._files.get(file)
        if opened is None or (isinstance(opened, _RemoteHeader) and not header):
            opened = self._source.header(file) if header else None
            if opened is None:
                path = self._source.find(file)
                if path is None:
                    raise CheckpointError(
                        f"{self.name}: {file}, named by {self._weights}, not found ({self._source.remedy})"
                    )
                opened = _SafetensorsFile(path) if file.endswith(".safetensors") else _BinFile(path)
            self._files[file] = opened
            elsewhere = [name for name in opened.names() if self._file_of.get(name, file) != file]
            if elsewhere:
                raise CheckpointError(
                    f"{self.name}: {elsewhere[0]} is in {file}, and {self._weights} says that it is in "
                    f"{self._file_of[elsewhere[0]]}; transformers and vLLM load the one that they come to last. "
                    "Download it again, into an empty folder"
                )
        return opened

    def _holder(self, name: str, header: bool = False) -> TensorFile:
        holder = self._open(self.file(name), header)
        if name not in holder.names():
            raise CheckpointError(f"{self.name}: {name} is not in {self.file(name)}, where {self._weights} says it is")
        return holder

    def _read(self, name: str, read: Callable[[TensorFile], T], header: bool = False) -> T:
        try:
            return read(self._holder(name, header))
        except MergeError:
            raise
        except Exception as error:  # of libraries that parse what may be damaged
            raise CheckpointError(
                f"{self.name}: {name} cannot be read from {self.file(name)}: {first_line(error)}; download it again"
            ) from error

    def names(self) -> list[str]:
        return list(self._file_of)

    def file(self, name: str) -> str:
        """File that holds the tensor, for messages."""
        try:
            return self._file_of[name]
        except KeyError:
            raise CheckpointError(f"{self.name}: has no tensor {name}") from None

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._read(name, lambda file: file.shape(name), header=True)
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise CheckpointError(
                f"{self.name}: {name} in {self.file(name)} has the shape {shape!r}; download it again"
            )
        return shape

    def dtype(self, name: str) -> torch.dtype:
        dtype = self._read(name, lambda file: file.dtype(name), header=True)
        if not isinstance(dtype, str):
            return dtype
        if dtype not in _DTYPES:
            raise CheckpointError(
                f"{self.name}: {name} in {self.file(name)} is stored as {dtype}; expected F64, F32, F16 or BF16"
            )
        import torch

        known: torch.dtype = getattr(torch, _DTYPES[dtype])
        return known

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU, mapped from the file. Raises `CheckpointError` when it cannot be read."""
        tensor = self._read(name, lambda file: file.tensor(name))
        self.bytes_read += tensor.nbytes
        return tensor

    def prefetch(self, names: Iterable[str]) -> None:
        """Download and open every file that holds one of `names`, so that reading them cannot fail for want of a file.

        Raises:
            CheckpointError: listing every file that is missing, truncated or corrupt.
        """
        faults = []
        names = list(names)
        self.announce(names)
        for file in sorted({self.file(name) for name in names}):
            try:
                self._open(file)
            except MergeError as error:
                faults += error.faults
        if faults:
            raise CheckpointError(*faults)

    def to_download(self, names: Iterable[str] | None = None) -> dict[str, int | None]:
        """Files that reading these tensors (all by default) will download, and bytes of each, None where not known."""
        return self._source.missing(self.weight_files if names is None else {self.file(name) for name in names})

    def announce(self, names: Iterable[str] | None = None) -> None:
        """Say how much reading these tensors (all by default) will download, once for each file, before it begins."""
        missing = self.to_download(names)
        new = {file: size for file, size in missing.items() if (self.location, self.commit, file) not in _ANNOUNCED}
        _ANNOUNCED.update((self.location, self.commit, file) for file in new)
        if new and os.environ.get("LOCAL_RANK", "0") == "0":
            sizes = [size for size in new.values() if size is not None]
            size = hub.in_words(sum(sizes) if len(sizes) == len(new) else None)
            print(
                f"Downloads {size} of {self.name} (commit {str(self.commit)[:12]}) into the hub's cache: {_names(new)}",
                file=sys.stderr,
                flush=True,
            )

    # ---- what it is --------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """A JSON-able id that changes whenever config or weights may have changed; cheap, reads no weights.

        It names these files in this place: a byte-identical copy has another. `content` is what a copy shares.

        Raises:
            CheckpointError: a file of it cannot be read.
        """
        try:
            return self._source.identity({"config.json", self._weights, *self.weight_files})
        except OSError as error:
            raise CheckpointError(f"{self.name}: cannot be read ({error})") from error

    def content(self) -> dict[str, Any]:
        """SHA-256 of what the checkpoint holds, equal for every copy of it, wherever it lies.

        Returns:
            {"files": {name: SHA-256} of config, index and weights, and "sha256" of these lines as sha256sum writes
            them}. Files of the hub are named by the hub's own ids; one that was never downloaded is left out while
            offline, and "sha256" with it.

        Raises:
            CheckpointError: a file of it cannot be read.
        """
        names = {"config.json", self._weights, *self.weight_files}
        try:
            found = self._source.hashes(names)
        except OSError as error:
            raise CheckpointError(f"{self.name}: cannot be read ({error})") from error
        lines = "".join(f"{found[name]}  {name}\n" for name in sorted(found))
        whole = {"sha256": hashlib.sha256(lines.encode()).hexdigest()} if found.keys() == names else {}
        return {**whole, "files": dict(sorted(found.items()))}


class _Folder:
    commit = None
    remedy = "is this the folder save_pretrained wrote, and is it complete?"

    def __init__(self, name: str, folder: Path, argument: str) -> None:
        self.name, self._folder, self.argument, self.location = name, folder, argument, str(folder.resolve())
        cached = _HUB_CACHE.search(str(folder.absolute())) or _HUB_CACHE.search(self.location)
        self.model_name = cached[1].replace("--", "/") if cached else Path(self.location).name
        known = _HUB_CACHE.search(self.location) if content_hash.in_hub_cache(folder) else None
        self.recorded_commit = known[2] if known else None

    def find(self, file: str) -> Path | None:
        path = self._folder / file
        try:
            return path if path.is_file() else None
        except OSError:  # such as a name that is too long
            return None

    def listing(self) -> frozenset[str]:
        """Names of its files, and of those in the folders below it."""
        paths = itertools.chain(self._folder.glob("*"), self._folder.glob("*/*"), self._folder.glob("*/*/*"))
        try:
            files = [path for path in itertools.islice(paths, _LISTED) if path.is_file()]
        except OSError as error:
            raise CheckpointError(f"{self.argument}: cannot be read ({error})") from error
        return frozenset(path.relative_to(self._folder).as_posix() for path in files)

    def header(self, file: str) -> TensorFile | None:
        return None

    def missing(self, files: Iterable[str]) -> dict[str, int | None]:
        return {}

    def identity(self, files: Iterable[str]) -> dict[str, Any]:
        digest = hashlib.sha256()
        for file in sorted(files):
            path = self.find(file)
            stat = path.stat() if path else None
            digest.update(
                repr(
                    (file, stat and (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns), path and _fingerprint(path))
                ).encode()
            )
        return {"folder": self.location, "fingerprint": digest.hexdigest()}

    def hashes(self, files: Iterable[str]) -> dict[str, str]:
        paths = {file: path for file in files if (path := self.find(file))}
        digests = content_hash.sha256_of([*paths.values()])
        return {file: digests[path] for file, path in paths.items()}


class _Hub:
    def __init__(self, repository: str, revision: str | None, argument: str, role: str, named: bool) -> None:
        """`named`: whether the revision stood behind the name."""
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
        return self.commit

    def find(self, file: str) -> Path | None:
        """The file in the local cache, downloaded if need be; None when the repository has no such file."""
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

        found = try_to_load_from_cache(self.location, file, revision=self.commit)
        return Path(found) if isinstance(found, str) else None

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
        return dict.fromkeys(_Folder(self.name, config.parent, self.argument).listing()) if config else {}

    def header(self, file: str) -> TensorFile | None:
        """Header of a file that is not in the local cache; None when it is cached."""
        from huggingface_hub import HfApi, constants

        from plam_eval.merging import bin_header  # loads torch, which a mistake in a plan is told without

        if self._cached(file):
            return None
        size = None
        try:
            if file.endswith(".safetensors"):
                metadata = HfApi().parse_safetensors_file_metadata(self.location, file, revision=self.commit)
                return _RemoteHeader(metadata.tensors)
            if constants.is_offline_mode():
                raise ConnectionError("offline")
            size = self.size(file)
            if size is None:
                raise bin_header.BinHeaderError("the hub does not say how large it is")
            remote: Any = hub.RemoteFile(self.location, file, self.commit, size)
            return _RemoteHeader(bin_header.read_header(remote))
        except bin_header.LegacyError as error:
            raise CheckpointError(
                f"{self.argument}: {file} on the hub ({hub.in_words(size)}, not downloaded) cannot be used: {error}; "
                "expected safetensors, or a file that torch.save has written since"
            ) from error
        except (bin_header.BinHeaderError, hub.RangeError) as error:
            at = f" --revision {self.commit}" if self.revision else ""
            raise CheckpointError(
                f"{self.argument}: the shapes in {file} cannot be told without all of it, {hub.in_words(size)}, and "
                f"nothing is downloaded unasked ({error}); `hf download {self.location} {file}{at}` downloads it, and "
                "the same command goes on"
            ) from error
        except Exception as error:
            raise self._refused(file, error) from error

    def size(self, file: str) -> int | None:
        """Bytes of a file, as far as the hub says; None also where it does not answer, which the download will tell."""
        try:
            size = getattr(self._files().get(file), "size", None)
        except CheckpointError:
            return None
        return size if isinstance(size, int) else None

    def missing(self, files: Iterable[str]) -> dict[str, int | None]:
        """Those that reading would download, and their sizes."""
        from huggingface_hub import constants

        if constants.is_offline_mode():
            return {}
        return {file: self.size(file) for file in sorted(files) if not self._cached(file)}

    def identity(self, files: Iterable[str]) -> dict[str, Any]:
        return {"hub": self.location, "commit": self.commit}

    def hashes(self, files: Iterable[str]) -> dict[str, str]:
        paths = {file: path for file in files if (path := self._cached(file))}
        digests = content_hash.sha256_of([*paths.values()])
        found = {file: digests[path] for file, path in paths.items()}
        for file in set(files) - found.keys():
            lfs = getattr(self._files().get(file), "lfs", None)
            if lfs is not None:
                found[file] = lfs.sha256
        return found

    def _refused(self, file: str, error: Exception) -> CheckpointError:
        """What the hub, or the way there, said; each with its own remedy."""
        remedy = f"download it elsewhere and pass the folder{f' as {self._role}=' if self._role else ''}"
        return CheckpointError(
            f"{self.argument}: {hub.refusal(self.location, self.revision, file, error, remedy=remedy)}"
        )


def _names(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def _pointer(path: Path) -> str | None:
    """The message for a pointer of git-lfs, which a clone without git-lfs leaves in a file's place."""
    try:
        with path.open("rb") as file:
            if not file.read(64).startswith(b"version https://git-lfs.github.com/spec/"):
                return None
    except OSError:
        return None
    return f"{path}: is a git-lfs pointer, not the file; run `git lfs pull` there, or download it with `hf download`"


def _fingerprint(path: Path) -> str:
    """SHA-256 of a config, of a safetensors header, or of the end of a `.bin` (a zip directory with its checksums)."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            length = file.read(8)
            content = length + file.read(min(int.from_bytes(length, "little"), 100_000_000))
        elif path.suffix == ".bin":
            file.seek(max(0, path.stat().st_size - 65_536))
            content = file.read()
        else:
            content = file.read()
    return hashlib.sha256(content).hexdigest()
