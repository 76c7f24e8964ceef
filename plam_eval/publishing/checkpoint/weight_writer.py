"""Copying files byte for byte, and writing tensors into safetensors files without holding one in memory."""

from __future__ import annotations

import errno
import io
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from plam_eval.errors import CheckpointError
from plam_eval.merging.tensor_files import DTYPES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_BLOCK = 8 << 20  # bytes that are read, written or hashed at once
_FICLONE = 0x40049409  # linux/fs.h: share the extents of another file
_LARGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
_NOT_HERE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM, errno.EBADF)

Progress = Callable[[int], Any]
"""Called with the number of bytes that were just done."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a safetensors file.

    Attributes:
        dtype: as the header names it, a key of `DTYPES`.
        shape: elements in each dimension.
        start: first byte, counted from the beginning of the file.
        end: the byte behind its last one.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def copy_file(source: Path, target: Path, progress: Progress) -> None:
    """Copy a file byte for byte to one that is not there yet, and wait until it is on disk.

    The file system shares the content where it can; else the system copies it, or we do.

    Args:
        source: a file, no link.
        target: the copy; its folder is there.
        progress: told how far it is.

    Raises:
        OSError: it cannot be read or written, or has become longer or shorter meanwhile.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with io.FileIO(os.open(source, flags)) as one, target.open("xb", buffering=0) as other:
        size = os.fstat(one.fileno()).st_size
        if size and not _clone(one.fileno(), other.fileno()):
            _copy(one, other, size, progress)
        else:
            progress(size)
        os.fsync(other.fileno())
        if os.fstat(other.fileno()).st_size != size:
            raise OSError(errno.EIO, "changed while it was copied", str(source))


def _clone(source: int, target: int) -> bool:
    try:
        import fcntl

        fcntl.ioctl(target, _FICLONE, source)
    except (ImportError, OSError):  # whatever it is, an ordinary copy will tell
        return False
    return True


def _copy(source: BinaryIO | Any, target: BinaryIO | Any, size: int, progress: Progress) -> None:
    done, by_system = 0, hasattr(os, "copy_file_range")
    while done < size:
        count = 0
        if by_system:
            try:
                count = os.copy_file_range(source.fileno(), target.fileno(), min(_BLOCK, size - done), done, done)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
            by_system = count > 0  # some file systems say that a file has ended that has not
        if not by_system:
            source.seek(done)
            target.seek(done)
            block = source.read(min(_BLOCK, size - done))
            if not block:
                return
            count = target.write(block)
        done += count
        progress(count)


def read_places(path: Path) -> dict[str, Place]:
    """Where the tensors of a safetensors file lie.

    Args:
        path: of the file, which the safetensors library has opened before: it has checked the header as a whole.

    Raises:
        CheckpointError: the header does not say it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= _LARGEST_HEADER else b""
    try:
        content = json.loads(header)
        places = {
            name: Place(
                entry["dtype"], tuple(entry["shape"]), *(8 + length + offset for offset in entry["data_offsets"])
            )
            for name, entry in content.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: its header cannot be read ({error}); download it again") from error
    return places


def plan_header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> tuple[bytes, dict[str, Place]]:
    """The header of a new safetensors file, and where its tensors will lie.

    The largest elements come first, so that all are aligned, as the safetensors library writes them.

    Args:
        tensors: dtype and shape, by name.

    Raises:
        CheckpointError: naming every tensor of a dtype that the format does not have.
    """
    words = {name: word for word, name in DTYPES.items()}
    problems, entries, places, offset = [], dict[str, Any](), dict[str, Place](), 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        word = words.get(str(dtype).removeprefix("torch."))
        if word is None:
            problems.append(f"{name} is {dtype}, which cannot be written as safetensors; expected {', '.join(DTYPES)}")
            continue
        end = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": word, "shape": list(shape), "data_offsets": [offset, end]}
        places[name] = Place(word, shape, offset, end)
        offset = end
    if problems:
        raise CheckpointError(*problems)
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    shifted = {
        name: Place(place.dtype, place.shape, place.start + len(header), place.end + len(header))
        for name, place in places.items()
    }
    return header, shifted


def write_tensor(file: int, place: Place, tensor: Tensor) -> None:
    """Write a tensor's bytes where they belong.

    Args:
        file: descriptor of the safetensors file, open for writing.
        place: in the file.
        tensor: on the CPU, of the place's dtype and shape.

    Raises:
        CheckpointError: it is of another dtype or shape.
        OSError: it cannot be written.
    """
    import torch

    if str(tensor.dtype) != f"torch.{DTYPES.get(place.dtype)}" or tuple(tensor.shape) != place.shape:
        raise CheckpointError(
            f"a tensor is {tensor.dtype} {list(tensor.shape)}, expected {place.dtype} {list(place.shape)}, as its "
            "header says; download it again"
        )
    array: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    content = memoryview(array)
    if len(content) != place.end - place.start:
        raise CheckpointError(f"a tensor has {len(content)} bytes, and its header {place.end - place.start}")
    write_bytes(file, content, place.start)


def write_bytes(file: int, content: bytes | memoryview, start: int) -> None:
    """Write all of some bytes to their place in a file.

    Args:
        file: descriptor, open for writing.
        content: the bytes.
        start: where the first of them belongs.

    Raises:
        OSError: they cannot be written.
    """
    done = 0
    while done < len(content):
        done += os.pwrite(file, content[done : done + _BLOCK], start + done)
