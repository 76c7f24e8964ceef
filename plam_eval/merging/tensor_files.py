"""One file of weights, open for reading: safetensors, `.bin`, or the header alone of a file on the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import safe_open

from plam_eval.errors import CheckpointError, first_line

if TYPE_CHECKING:  # a mistake in a call is told without torch, which takes seconds to import
    import torch
    from torch import Tensor

DTYPES = {
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


class TensorFile(Protocol):
    """One open weight file. What it raises for a damaged one, `Checkpoint` translates."""

    def names(self) -> Iterable[str]:
        """Of its tensors, as stored."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Elements of the tensor `name` in each dimension."""
        ...

    def dtype(self, name: str) -> torch.dtype | str:
        """Of the tensor `name`, torch's own or a key of `DTYPES`."""
        ...

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` as stored, on the CPU, mapped where the format allows it."""
        ...


class SafetensorsFile(TensorFile):
    """A `.safetensors` file, mapped.

    Args:
        path: of the file.

    Raises:
        CheckpointError: it is truncated or corrupt, or the pointer that git-lfs leaves in its place.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")
        except Exception as error:  # of a library that does not say which
            raise CheckpointError(
                lfs_pointer(path)
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


class BinFile(TensorFile):
    """A `.bin` shard: mapped, not read, and unpickled with tensors and plain containers allowed only.

    Args:
        path: of the file.

    Raises:
        CheckpointError: torch cannot map it, or it holds something else than a mapping of names to tensors.
    """

    def __init__(self, path: Path) -> None:
        import torch

        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:
            raise CheckpointError(
                lfs_pointer(path)
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


class RemoteHeader(TensorFile):
    """The header of a file on the hub, fetched by range requests: shapes without the weights.

    Args:
        tensors: name -> record with `shape` and `dtype`, as the hub's client or `bin_header.read_header` gives it.
    """

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


def lfs_pointer(path: Path) -> str | None:
    """The message for a pointer of git-lfs, which a clone without git-lfs leaves in a file's place.

    Args:
        path: of the file; None comes back where it is no pointer, or cannot be opened.
    """
    try:
        with path.open("rb") as file:
            if not file.read(64).startswith(b"version https://git-lfs.github.com/spec/"):
                return None
    except OSError:
        return None
    return f"{path}: is a git-lfs pointer, not the file; run `git lfs pull` there, or download it with `hf download`"


def fingerprint_of(path: Path) -> str:
    """SHA-256 (hex) of a config, of a safetensors header, or of the end of a `.bin`: a zip directory with checksums.

    Args:
        path: of the file; its suffix says which part of it is read.

    Raises:
        OSError: it cannot be read.
    """
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
