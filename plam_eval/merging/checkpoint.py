"""A model checkpoint read lazily, tensor by tensor, from a folder or from the hub."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from plam_eval import hub
from plam_eval.errors import CheckpointError, DamagedFileError, MergeError, OutsideError, first_line
from plam_eval.files import inside, read_json
from plam_eval.merging import weight_files
from plam_eval.merging.locations import FolderFiles, HubFiles
from plam_eval.merging.tensor_files import DTYPES, BinFile, RemoteHeader, SafetensorsFile, TensorFile, lfs_pointer

if TYPE_CHECKING:  # a mistake in a call is told without torch, which takes seconds to import
    import torch
    from torch import Tensor

_JSON_LIMIT = 1 << 28  # bytes; the index of the largest models has some ten million

_ANNOUNCED: set[tuple[str, str | None, str]] = set()
"""Hub id, commit and name of files that were announced."""

T = TypeVar("T")


class Checkpoint:
    """The weights and config of a model on disk or on the hub. Open it with `Checkpoint.open`.

    It reads the files that transformers reads, and a folder that transformers and vLLM would read differently is
    refused. What it reads is data: names in it lead to no file outside the folder, and no code in it runs.

    Attributes:
        name: the folder or hub id, as it was given, with the branch or tag (`owner/name@v1`) if one was.
        config: content of config.json.
        bytes_read: bytes of all tensors read so far.
    """

    def __init__(self, source: FolderFiles | HubFiles) -> None:
        """Reads the config and the index. `source` finds the files; what it raises is that of `open`."""
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
            source: folder or hub id; a checkpoint that is open is given back.
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
            return cls(FolderFiles(str(source), folder, argument))
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
        return cls(HubFiles(repository, named or revision, argument, role, named is not None))

    @property
    def loaded_by(self) -> str:
        """What transformers and vLLM open it by, together with `commit`: the folder as given, or the hub id."""
        return self.name if isinstance(self._source, FolderFiles) else self.location

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

    @property
    def weights(self) -> str:
        """Name of the file by which its weights are told: the one that holds them all, or the index of several."""
        return self._weights

    @property
    def folder(self) -> Path | None:
        """The folder that holds its files; None for a model of the hub."""
        return Path(self.location) if isinstance(self._source, FolderFiles) else None

    def listing(self) -> frozenset[str]:
        """Names of all its files; of the hub's those in the local cache alone while offline.

        Raises CheckpointError when they cannot be listed.
        """
        return self._source.listing()

    def find(self, file: str) -> Path | None:
        """The path of `file`, one of its names, downloaded if need be; None where it has no such file.

        Raises CheckpointError when the hub refuses it, or is out of reach.
        """
        return self._source.find(file)

    def size(self, file: str) -> int | None:
        """Bytes of `file`, one of its names, without downloading it; None where nobody says."""
        return self._source.size(file)

    def hashes(self, files: Iterable[str]) -> dict[str, str]:
        """SHA-256 (hex) of those of `files`, by their names, that are here; of the hub's also of large ones elsewhere.

        Raises CheckpointError when one cannot be read.
        """
        try:
            return self._source.hashes(files)
        except OSError as error:
            raise CheckpointError(f"{self.name}: cannot be read ({error})") from error

    # ---- which files, and whether they are whole ---------------------------------------------------------------------

    def _nothing(self, missing: str, files: frozenset[str]) -> CheckpointError:
        """Says what there is where `missing` is not."""
        adapter = None
        if weight_files.ADAPTER in files:
            with contextlib.suppress(CheckpointError):  # its presence says enough
                adapter = self._json(weight_files.ADAPTER)
        chosen = weight_files.choose(files)
        instead = f"beside {chosen}" if chosen else f"in it: it {weight_files.instead(files, adapter)}"
        return CheckpointError(f"{self._source.argument}: no {missing} {instead} ({self._source.remedy})")

    def _check_alone(self, files: frozenset[str]) -> None:
        """Raises where the folder could mean other weights than those that were chosen."""
        problems = []
        index = weight_files.index_beside(self._weights, files)
        if index and set(self._index(index).values()) != {self._weights}:
            problems.append(
                f"holds {self._weights} and {index}, which names other files: transformers reads the former, vLLM the "
                "latter. Remove the one that is out of date"
            )
        named = self.config.get("transformers_weights")
        if named is not None and named != self._weights:
            problems.append(
                f"holds {self._weights}, and its config.json names other weights for transformers "
                f"(transformers_weights: {named!r}), which vLLM does not look at. Remove one of them"
            )
        if weight_files.ADAPTER in files:
            problems.append(
                f"holds {self._weights} and {weight_files.ADAPTER}: transformers adds the adapter to the weights when "
                "it loads them, vLLM does not. Fold it in (peft: merge_and_unload(), save_pretrained) or remove it"
            )
        if problems:
            raise CheckpointError(*(f"{self._source.argument}: {problem}" for problem in problems))

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
        problems: list[str] = []
        suffix = file.removesuffix(".index.json").rpartition(".")[2]
        for name, holder in weight_map.items():
            try:
                inside(Path(self.name), holder, f"{where}, weight_map, {name}", follow_links=False)
                if not holder.endswith(f".{suffix}"):
                    problems.append(f"{where}, weight_map, {name}: names {holder!r}, expected a .{suffix} file")
            except OutsideError as error:
                problems.append(str(error))
        if problems:
            more = [f"{where}: and {len(problems) - 10} more like these"] if len(problems) > 10 else []
            raise CheckpointError(*problems[:10], *more)
        return dict(weight_map)

    def _check_shards(self) -> None:
        """Add what a folder's shards hold besides what the index says: transformers and vLLM load all of it.

        Raises where a tensor is in two of them. A shard that is missing or damaged is told once a tensor of it is asked
        for; shards on the hub are compared when they are opened.
        """
        if isinstance(self._source, FolderFiles):
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
            raise CheckpointError(lfs_pointer(path) or str(error)) from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from error

    # ---- tensors -----------------------------------------------------------------------------------------------------

    def _open(self, file: str, header: bool = False) -> TensorFile:
        opened = self._files.get(file)
        if opened is None or (isinstance(opened, RemoteHeader) and not header):
            opened = self._source.header(file) if header else None
            if opened is None:
                path = self._source.find(file)
                if path is None:
                    raise CheckpointError(
                        f"{self.name}: {file}, named by {self._weights}, not found ({self._source.remedy})"
                    )
                opened = SafetensorsFile(path) if file.endswith(".safetensors") else BinFile(path)
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
        """Of all tensors, as stored."""
        return list(self._file_of)

    def file(self, name: str) -> str:
        """File that holds the tensor `name`, as it stands in the folder. Raises CheckpointError where there is none."""
        try:
            return self._file_of[name]
        except KeyError:
            raise CheckpointError(f"{self.name}: has no tensor {name}") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Elements of the tensor `name` in each dimension, from its file's header.

        Raises CheckpointError when it cannot be read.
        """
        shape = self._read(name, lambda file: file.shape(name), header=True)
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise CheckpointError(
                f"{self.name}: {name} in {self.file(name)} has the shape {shape!r}; download it again"
            )
        return shape

    def dtype(self, name: str) -> torch.dtype:
        """Of the tensor `name`, from its file's header. Raises CheckpointError when it cannot be read or is unknown."""
        dtype = self._read(name, lambda file: file.dtype(name), header=True)
        if not isinstance(dtype, str):
            return dtype
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{self.name}: {name} in {self.file(name)} is stored as {dtype}; expected F64, F32, F16 or BF16"
            )
        import torch

        stored_as: torch.dtype = getattr(torch, DTYPES[dtype])
        return stored_as

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` as stored, on the CPU, mapped from its file; its bytes are added to `bytes_read`.

        Raises CheckpointError when it cannot be read.
        """
        tensor = self._read(name, lambda file: file.tensor(name))
        self.bytes_read += tensor.nbytes
        return tensor

    def prefetch(self, names: Iterable[str]) -> None:
        """Download and open every file that holds one of the tensors `names`: reading them lacks no file then.

        Raises:
            CheckpointError: listing every file that is missing, truncated or corrupt.
        """
        problems = []
        names = list(names)
        self.announce(names)
        for file in sorted({self.file(name) for name in names}):
            try:
                self._open(file)
            except MergeError as error:
                problems += error.problems
        if problems:
            raise CheckpointError(*problems)

    def to_download(self, names: Iterable[str] | None = None) -> dict[str, int | None]:
        """Files that reading the tensors `names` (all by default) will download.

        Returns:
            Bytes by file, None where the hub does not say.
        """
        return self._source.missing(self.weight_files if names is None else {self.file(name) for name in names})

    def announce(self, names: Iterable[str] | None = None) -> None:
        """Say on stderr what reading the tensors `names` (all by default) will download, once for each file."""
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
        hashes = self.hashes(names)
        lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
        whole = {"sha256": hashlib.sha256(lines.encode()).hexdigest()} if hashes.keys() == names else {}
        return {**whole, "files": dict(sorted(hashes.items()))}


def _names(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
