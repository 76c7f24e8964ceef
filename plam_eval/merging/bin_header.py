"""Names, shapes and dtypes of a torch `.bin` file from a few of its bytes, without unpickling it.

Such a file is a zip archive with one pickle, `data.pkl`, and the bytes of the tensors (torch/serialization.py).
The pickle is read as data: `pickletools` cuts it into opcodes, and what they build here are records of tensors, text,
numbers and plain containers. Nothing is imported and nothing is called, whatever the file says; an opcode or a name
that a file of tensors has no need of ends the reading.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch

LARGEST_PICKLE = 1 << 22  # bytes; that of a shard of 10 GB has some 30 thousand

_NAMED = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_DTYPES = {
    **_NAMED,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
_PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")


# What zipfile raises for archives that are none.
_DAMAGED = (
    *(zipfile.BadZipFile, struct.error, NotImplementedError, RuntimeError),
    *(EOFError, ValueError, OverflowError, IndexError),
)


class BinHeaderError(ValueError):
    """A file whose tensors cannot be told without reading all of it; the message says why."""


class LegacyError(BinHeaderError):
    """A file in the format of before torch 1.6, which is no archive."""


@dataclass(frozen=True)
class TensorRecord:
    """What is known of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Global:
    """A name that the pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        name = f"{self.module}.{self.name}"
        return name if len(name) <= 100 else f"{name[:80]}... ({len(name)} characters)"

    @property
    def dtype(self) -> torch.dtype | None:
        return _DTYPES.get(self.name) if self.module == "torch" else None


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype | None  # of an untyped one, none


class _Mark:
    """What opcodes such as TUPLE take everything above of."""


def read_header(file: IO[bytes]) -> dict[str, TensorRecord]:
    """Tensors of a `.bin` file that holds a mapping of names to tensors, by name.

    Args:
        file: seekable. The end, where an archive has its table of contents, and the pickle are all that is read.

    Raises:
        BinHeaderError: no such archive, damaged, or more than tensors in it.
        OSError: it cannot be read.
    """
    if not file.read(4).startswith(b"PK"):
        raise LegacyError("it is no zip archive, but in the format of before torch 1.6, or of something else")
    try:
        with zipfile.ZipFile(file) as archive:
            pickles = [entry for entry in archive.infolist() if entry.filename.partition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise BinHeaderError(f"it holds {len(pickles)} files data.pkl, expected one")
            if pickles[0].compress_type != zipfile.ZIP_STORED or pickles[0].file_size > LARGEST_PICKLE:
                raise BinHeaderError(f"its data.pkl is compressed, or has more than {LARGEST_PICKLE} bytes")
            content = archive.read(pickles[0])
    except BinHeaderError:
        raise
    except _DAMAGED as error:
        raise BinHeaderError(f"its archive cannot be read ({error})") from error
    return tensors_of(content)


def tensors_of(pickled: bytes) -> dict[str, TensorRecord]:
    """Tensors of a pickled mapping of names to tensors, by name.

    Args:
        pickled: content of data.pkl.

    Raises:
        BinHeaderError: damaged, or more than tensors in it.
    """
    try:
        content = _Reader().read(pickled)
    except BinHeaderError:
        raise
    except Exception as error:  # of a pickle that no pickler writes
        raise BinHeaderError(f"its data.pkl is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(content, Mapping):
        raise BinHeaderError(f"found {type(content).__name__}, expected a mapping of names to tensors")
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, TensorRecord)}


class _Reader:
    """The stack machine of pickle (`pickletools`), for the opcodes that torch.save writes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = 0

    def read(self, pickled: bytes) -> Any:
        self.left = len(pickled)
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                return self.stack.pop()
            step = getattr(self, f"_{opcode.name.lower()}", None)
            if step is not None:
                step(argument)
            elif opcode.name in _LITERALS:
                self.stack.append(argument)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise BinHeaderError(f"it holds more than tensors (the opcode {opcode.name})")
        raise BinHeaderError("its data.pkl has no end")

    def _marked(self) -> list[Any]:
        """What lies above the last mark."""
        mark = len(self.stack) - 1
        while not isinstance(self.stack[mark], _Mark):
            mark -= 1  # to an IndexError, where there is none
        above = self.stack[mark + 1 :]
        del self.stack[mark:]
        return above

    # ---- the memo: values that come again ----------------------------------------------------------------------------

    def _binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _long_binput = _put = _binput

    def _memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _long_binget = _get = _binget

    # ---- plain values ------------------------------------------------------------------------------------------------

    def _mark(self, _: None) -> None:
        self.stack.append(_Mark())

    def _none(self, _: None) -> None:
        self.stack.append(None)

    def _newtrue(self, _: None) -> None:
        self.stack.append(True)

    def _newfalse(self, _: None) -> None:
        self.stack.append(False)

    def _empty_dict(self, _: None) -> None:
        self.stack.append({})

    def _empty_list(self, _: None) -> None:
        self.stack.append([])

    def _empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def _tuple(self, _: None) -> None:
        self.stack.append(tuple(self._marked()))

    def _tuple1(self, _: None) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _tuple2(self, _: None) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self, _: None) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _append(self, _: None) -> None:
        value = self.stack.pop()
        _a(list, self.stack[-1]).append(value)

    def _appends(self, _: None) -> None:
        values = self._marked()
        _a(list, self.stack[-1]).extend(values)

    def _setitem(self, _: None) -> None:
        key, value = self.stack[-2:]
        del self.stack[-2:]
        _a(dict, self.stack[-1])[_key(key)] = value

    def _setitems(self, _: None) -> None:
        values = self._marked()
        _a(dict, self.stack[-1]).update(zip(map(_key, values[::2]), values[1::2], strict=True))

    def _pop(self, _: None) -> None:
        self.stack.pop()

    # ---- what would import and call ----------------------------------------------------------------------------------

    def _global(self, name: str) -> None:
        self.stack.append(_Global(*name.split(" ", 1)))

    def _stack_global(self, _: None) -> None:
        module, name = self.stack[-2:]
        self.stack[-2:] = [_Global(_a(str, module), _a(str, name))]

    def _binpersid(self, _: None) -> None:
        """("storage", its class, key, device, elements): the bytes of a tensor."""
        reference = _a(tuple, self.stack.pop())
        kind = reference[1] if len(reference) == 5 and reference[0] == "storage" else None
        if not isinstance(kind, _Global):
            raise BinHeaderError("it refers to something else than the bytes of a tensor")
        untyped = kind == _Global("torch.storage", "UntypedStorage")
        if kind.dtype is None and not untyped:
            raise BinHeaderError(f"it holds more than tensors ({kind})")
        self.stack.append(_Storage(kind.dtype))

    def _reduce(self, _: None) -> None:
        arguments = _a(tuple, self.stack.pop())
        # A list can be named again in two bytes, and copied each time. A pickler names one where it belongs only.
        self.left -= sum(len(each) for each in arguments if isinstance(each, list))
        if self.left < 0:
            raise BinHeaderError("its data.pkl is damaged (it copies one list again and again)")
        self.stack[-1] = _rebuilt(_a(_Global, self.stack[-1]), arguments)

    def _build(self, _: None) -> None:
        """Attributes: a state dict has `_metadata`, of which nothing is needed."""
        self.stack.pop()
        _a(dict, self.stack[-1])


_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
)


def _rebuilt(called: _Global, arguments: tuple[Any, ...]) -> Any:
    """A record of what the call of a name would make."""
    name = called.name
    if called == _Global("collections", "OrderedDict"):
        if not arguments:
            return {}
        pairs = _a(list, arguments[0])
        return {_key(key): value for key, value in pairs}
    if called == _Global("torch", "Size"):
        return _a(tuple, arguments[0])
    if called.module == "torch._utils" and name in _PARAMETERS:
        return _a(TensorRecord, arguments[0])
    if called.module == "torch._utils" and name in _TENSORS:
        storage, shape = _a(_Storage, arguments[0]), _a(tuple, arguments[2])
        dtype = storage.dtype
        if name == "_rebuild_tensor_v3":
            dtype = _a(_Global, arguments[6]).dtype
        if dtype is None or any(type(size) is not int or size < 0 for size in shape):
            raise BinHeaderError(f"it holds a tensor of an impossible shape, or of the dtype {dtype}")
        return TensorRecord(shape, dtype)
    raise BinHeaderError(f"it holds more than tensors ({called})")


def _key(value: Any) -> Any:
    """A key of a mapping: no container, which would be hashed, however deeply it is nested."""
    if not isinstance(value, (str, int)):
        raise BinHeaderError(f"its data.pkl is damaged (found {type(value).__name__} as a key)")
    return value


def _a(kind: type, value: Any) -> Any:
    """The value, known to be of a kind. Raises BinHeaderError."""
    if not isinstance(value, kind):
        raise BinHeaderError(f"its data.pkl is damaged (found {type(value).__name__}, expected {kind.__name__})")
    return value
