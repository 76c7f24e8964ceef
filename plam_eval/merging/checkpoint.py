"""A model checkpoint read lazily, tensor by tensor, from a folder or from the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from plam_eval.errors import PlamError

# In the order in which transformers looks for them, so that both read the same files.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class MergeError(PlamError, ValueError):
    """A merge that was refused, or undone. `faults` holds every reason; no parameter has changed."""

    def __init__(self, *faults: str) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(["nothing was merged:", *(f"  - {fault}" for fault in faults)]))


class TensorFile(Protocol):
    """One open weight file: names, and shape, dtype and tensor of a name."""

    def names(self) -> Iterable[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> torch.dtype | str: ...
    def tensor(self, name: str) -> Tensor: ...


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise MergeError(f"{path}: truncated or corrupt safetensors file ({error}); download it again") from error

    def names(self) -> Iterable[str]:
        return self._file.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype | str:
        return str(self._file.get_slice(name).get_dtype())

    def tensor(self, name: str) -> Tensor:
        return self._file.get_tensor(name)


class _BinFile:
    """A `.bin` shard: mapped, not read, and unpickled with tensors and plain containers allowed only."""

    def __init__(self, path: Path) -> None:
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:
            raise MergeError(
                f"{path}: cannot be read by torch.load(mmap=True, weights_only=True) ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}); it is truncated, in the format of before torch 1.6, or holds more "
                "than tensors. Download it again or convert it to safetensors"
            ) from error
        if not isinstance(content, Mapping):
            raise MergeError(f"{path}: found {type(content).__name__}, expected a mapping of names to tensors")
        self._tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}

    def names(self) -> Iterable[str]:
        return self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


class _RemoteHeader:
    """The header of a safetensors file on the hub, fetched by a range request: shapes without the weights."""

    def __init__(self, metadata: Any) -> None:
        self._tensors = metadata.tensors

    def names(self) -> Iterable[str]:
        return self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype | str:
        return str(self._tensors[name].dtype)

    def tensor(self, name: str) -> Tensor:
        raise RuntimeError(f"{name}: only the header was fetched; call Checkpoint.prefetch first")


class Checkpoint:
    """The weights and config of a model on disk or on the hub. Open it with `Checkpoint.open`.

    Attributes:
        name: the folder or hub id, as it was given.
        config: content of config.json.
        bytes_read: bytes of all tensors read so far.
    """

    def __init__(self, source: _Folder | _Hub) -> None:
        self._source = source
        self._files: dict[str, TensorFile] = {}
        self.name = source.name
        self.bytes_read = 0
        self.config: dict[str, Any] = self._json("config.json")
        self._weights = source.first(_WEIGHTS)
        if self._weights is None:
            raise MergeError(f"{self.name}: no weights found; expected one of {', '.join(_WEIGHTS)} ({source.remedy})")
        if self._weights.endswith(".index.json"):
            weight_map = self._json(self._weights).get("weight_map")
            if not isinstance(weight_map, dict):
                raise MergeError(f"{self.name}/{self._weights}: no weight_map in it; download it again")
        else:
            weight_map = dict.fromkeys(self._open(self._weights, header=True).names(), self._weights)
        self._file_of: dict[str, str] = weight_map

    @classmethod
    def open(cls, source: str | Path | Checkpoint, revision: str | None = None) -> Checkpoint:
        """Open a checkpoint folder, or a model of the hub (optionally at a branch, tag or commit).

        From the hub only config.json, the index and, later, the shards that are asked for are downloaded.

        Raises:
            MergeError: no such folder or model, no config.json, no weights, or not cached while offline.
        """
        if isinstance(source, Checkpoint):
            return source
        folder = Path(source).expanduser()
        if folder.is_dir():
            return cls(_Folder(str(source), folder))
        if isinstance(source, Path) or folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
            raise MergeError(f"{source}: no such folder; expected a checkpoint folder or a hub id (owner/name)")
        return cls(_Hub(source, revision))

    @property
    def location(self) -> str:
        """Absolute folder, or hub id: with `commit`, what opens the same checkpoint from anywhere."""
        return self._source.location

    @property
    def commit(self) -> str | None:
        """Commit on the hub; None for a folder."""
        return self._source.commit

    def _json(self, file: str) -> dict[str, Any]:
        path = self._source.find(file)
        if path is None:
            raise MergeError(f"{self.name}: {file} not found ({self._source.remedy})")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MergeError(f"{path}: cannot be read as JSON ({error}); download it again") from error
        if not isinstance(content, dict):
            raise MergeError(f"{path}: found {type(content).__name__}, expected a JSON object")
        return content

    def _open(self, file: str, header: bool = False) -> TensorFile:
        opened = self._files.get(file)
        if opened is None or (isinstance(opened, _RemoteHeader) and not header):
            opened = self._source.header(file) if header else None
            if opened is None:
                path = self._source.find(file)
                if path is None:
                    raise MergeError(
                        f"{self.name}: {file}, named by {self._weights}, not found ({self._source.remedy})"
                    )
                opened = _SafetensorsFile(path) if file.endswith(".safetensors") else _BinFile(path)
            self._files[file] = opened
        return opened

    def _holder(self, name: str, header: bool = False) -> TensorFile:
        holder = self._open(self.file(name), header)
        if name not in holder.names():
            raise MergeError(f"{self.name}: {name} is not in {self.file(name)}, where {self._weights} says it is")
        return holder

    def names(self) -> list[str]:
        return list(self._file_of)

    def file(self, name: str) -> str:
        """File that holds the tensor, for messages."""
        return self._file_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._holder(name, header=True).shape(name)

    def dtype(self, name: str) -> torch.dtype:
        dtype = self._holder(name, header=True).dtype(name)
        known = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if known is None:
            raise MergeError(
                f"{self.name}: {name} in {self.file(name)} is stored as {dtype}; expected F32, F16 or BF16"
            )
        return known

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU, mapped from the file. Raises `MergeError` when it cannot be read."""
        try:
            tensor = self._holder(name).tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise MergeError(f"{self.name}: {name} cannot be read from {self.file(name)}: {error}") from error
        self.bytes_read += tensor.nbytes
        return tensor

    def prefetch(self, names: Iterable[str]) -> None:
        """Download and open every file that holds one of `names`, so that reading them cannot fail for want of a file.

        Raises:
            MergeError: listing every file that is missing, truncated or corrupt.
        """
        faults = []
        for file in sorted({self.file(name) for name in names}):
            try:
                self._open(file)
            except MergeError as error:
                faults += error.faults
        if faults:
            raise MergeError(*faults)

    def identity(self) -> dict[str, Any]:
        """A JSON-able id that changes whenever config or weights may have changed; cheap, reads no weights."""
        return self._source.identity({"config.json", str(self._weights), *self._file_of.values()})


class _Folder:
    commit = None
    remedy = "is this the folder save_pretrained wrote, and is it complete?"

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder, self.location = name, folder, str(folder.resolve())

    def find(self, file: str) -> Path | None:
        path = self._folder / file
        return path if path.is_file() else None

    def first(self, files: Iterable[str]) -> str | None:
        return next((file for file in files if self.find(file)), None)

    def header(self, file: str) -> TensorFile | None:
        return None

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
        return {"folder": self.location, "sha256": digest.hexdigest()}


class _Hub:
    def __init__(self, name: str, revision: str | None) -> None:
        self.name, self.location, self.revision = name, name, revision
        self.commit: str | None = None
        self.remedy = (
            f"looked for in the local cache and, unless HF_HUB_OFFLINE is set, on the hub, at "
            f"{'revision ' + revision if revision else 'its default branch'}"
        )

    def find(self, file: str) -> Path | None:
        """The file in the local cache, downloaded if need be; None when the repository has no such file."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(self.name, file, revision=self.commit or self.revision))
        except LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError, but says nothing of the repository
            raise self._unreachable(file, error) from error
        except EntryNotFoundError:
            return None
        except (OSError, ValueError) as error:  # no such repository or revision, no access, an id that is none
            raise self._unreachable(file, error) from error
        if self.commit is None and path.parent.parent.name == "snapshots":
            self.commit = path.parent.name  # every later file from the same commit, whatever the branch does meanwhile
        return path

    def _cached(self, file: str) -> bool:
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(self.name, file, revision=self.commit), str)

    def first(self, files: Iterable[str]) -> str | None:
        """The first of `files` in the local cache or else, without downloading it, in the repository."""
        from huggingface_hub import HfApi, constants

        cached = next((file for file in files if self._cached(file)), None)
        if cached or constants.is_offline_mode():
            return cached
        try:
            return next((file for file in files if HfApi().file_exists(self.name, file, revision=self.commit)), None)
        except Exception as error:  # of the HTTP library as well, which differs between versions of huggingface_hub
            raise self._unreachable("the list of weights", error) from error

    def header(self, file: str) -> TensorFile | None:
        """Header of a file that is not in the local cache; None when it is cached, or has to be downloaded for it."""
        from huggingface_hub import HfApi

        if self._cached(file) or not file.endswith(".safetensors"):
            return None
        try:
            return _RemoteHeader(HfApi().parse_safetensors_file_metadata(self.name, file, revision=self.commit))
        except Exception as error:
            raise self._unreachable(file, error) from error

    def identity(self, files: Iterable[str]) -> dict[str, Any]:
        return {"hub": self.name, "commit": self.commit}

    def _unreachable(self, file: str, error: Exception) -> MergeError:
        return MergeError(
            f"{self.name}: {file} is not in the local cache and could not be fetched from the hub "
            f"({type(error).__name__}: {(str(error) or 'no message').strip().splitlines()[0]}). {self.name!r} is no "
            "folder either. Check the name, go online and unset HF_HUB_OFFLINE, or download it elsewhere and pass the "
            "folder as base="
        )


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
