"""The way back from a merge that fails: what a module's parameters held, noted as they are written."""

from __future__ import annotations

import io
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from plam_eval.errors import MergeError
from plam_eval.merging.arithmetic import Buffers, Operand, merge_tensor, read_operand
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.names import Key
from plam_eval.merging.plan import Source
from plam_eval.merging.rules import FUNCTIONS, RuleFunction
from plam_eval.spec import PlateauSpec


@dataclass(frozen=True)
class TensorJob:
    """One parameter to write: merged, or plain where there is no base name."""

    key: Key
    parameter_name: str
    parameter: Tensor
    model_name: str
    base_name: str | None
    ancestor_name: str | None = None


STATE = "_plam_merge_state"
"""Attribute of a module that was merged: its `MergeState`."""


@dataclass(frozen=True)
class MergeState:
    """Kept on the module: which of its tensors are not plain, and the checkpoint that holds their plain values."""

    checkpoint: str | None = None
    revision: str | None = None
    identity: dict[str, Any] | None = None
    merged: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class LastMerge:
    """Of the merge that a module holds: what brings its merged tensors back, were the next one to fail."""

    spec: PlateauSpec
    function: RuleFunction  # a rule can be registered anew under the name that the spec has
    base: Checkpoint
    base_identity: dict[str, Any]
    base_names: dict[Key, str]
    written: dict[Key, Checksum]
    ancestor: Checkpoint | None = None
    ancestor_identity: dict[str, Any] | None = None
    ancestor_names: dict[Key, str] = field(default_factory=dict)

    def is_unchanged(self) -> bool:
        """Whether the checkpoints beside the MLLM hold what they held when they were merged."""
        sides = [(self.base, self.base_identity), (self.ancestor, self.ancestor_identity)]
        return all(_unchanged(side, identity or {}) for side, identity in sides if side is not None)

    def operand_of_ancestor(self, key: Key) -> Operand | None:
        """The ancestor's tensor; None where the rule takes none.

        Args:
            key: of the tensor.
        """
        return read_operand(self.ancestor, self.ancestor_names[key]) if self.ancestor is not None else None

    def still_makes(self, job: TensorJob) -> bool:
        """Whether merging again gives what the parameter of `job` holds: nobody has written to it or cast it since."""
        return (
            job.key in self.base_names
            and FUNCTIONS.get(self.spec.rule) is self.function
            and self.written.get(job.key) == checksum_of(job.parameter)
        )


Checksum = tuple[torch.dtype, str, int]
_CHUNK = 256  # words
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum_of(parameter: Tensor) -> Checksum:
    """What tells whether a parameter still holds what was written to it, at the cost of reading it once.

    Args:
        parameter: as it is now.
    """
    flat = parameter.detach().contiguous().view(-1)
    size = flat.element_size()
    is_aligned = flat.nbytes % 8 == 0 and flat.storage_offset() * size % 8 == 0
    words = flat.view(torch.int64 if is_aligned else _BITS[size])
    whole = len(words) // _CHUNK * _CHUNK
    sums = words[:whole].view(-1, _CHUNK).sum(dim=1)  # modulo 2**64, as all that follows
    places = torch.arange(1, len(sums) + 1, device=sums.device)
    return parameter.dtype, str(parameter.device), int((sums * places).sum() + words[whole:].sum())


def _unchanged(checkpoint: Checkpoint, identity: dict[str, Any]) -> bool:
    """Whether what is read from an open checkpoint is what was read before: its files are mapped, not copied."""
    try:
        return checkpoint.identity() == identity
    except MergeError:
        return False


_LAST: weakref.WeakKeyDictionary[nn.Module, LastMerge] = weakref.WeakKeyDictionary()
# Not on the module: its files are open, so a copy of the module could not have it.


def last_merge_of(module: nn.Module) -> LastMerge | None:
    """What would bring a module's merged tensors back; None where that is not known.

    Args:
        module: as it was merged.
    """
    return _LAST.get(module)


def remember_last_merge(module: nn.Module, last: LastMerge | None) -> None:
    """Keep what would bring a module's merged tensors back, in place of what was kept before.

    Args:
        module: as it is merged now.
        last: of this merge; None where nothing would.
    """
    _LAST.pop(module, None)
    if last is not None:
        _LAST[module] = last


class UndoLog:
    """On any error, puts back every parameter that was noted.

    What a parameter held is in a checkpoint, if it was plain (and has just been found equal to its tensor there), or is
    what the last merge made of two checkpoints; these are read again. Where there is no checkpoint, or not both, or the
    parameter, the base or the rule is not what it was after that merge, it is appended to an unnamed temporary file
    before it is overwritten. Memory: one tensor at a time, provided that TMPDIR is not in memory itself.

    Args:
        module: the loaded model.
        jobs: all parameters that are to be written.
        state: of the module before the merge, put back with the parameters.
        source: of the plain values.
        last: the merge that the module holds; None where it is plain, or nothing is known of it.

    Raises:
        MergeError: the temporary folder has not enough room for what can be had from no checkpoint.
    """

    def __init__(
        self, module: nn.Module, jobs: Sequence[TensorJob], state: MergeState, source: Source, last: LastMerge | None
    ) -> None:
        self._module, self._state, self._source, self._last = module, state, source, last
        self._entries: list[tuple[TensorJob, int]] = []
        if last is not None and not last.is_unchanged():
            self._last = None
        self._stored = {job.key for job in jobs if self._is_stored(job)}
        needed = sum(job.parameter.nbytes for job in jobs if job.key not in self._stored)
        folder = tempfile.gettempdir()
        if needed and (free := shutil.disk_usage(folder).free) < needed:
            raise MergeError(
                f"{folder}: {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB needed to be able to undo the merge; free "
                "some, or set TMPDIR to a folder with room"
            )
        self._needed = needed

    def _is_stored(self, job: TensorJob) -> bool:
        """Whether what a parameter holds can be had from checkpoints again."""
        if not isinstance(self._source, Checkpoint):
            return False
        return job.key not in self._state.merged or (self._last is not None and self._last.still_makes(job))

    def __enter__(self) -> UndoLog:
        self._file = tempfile.TemporaryFile(prefix="plam-undo-") if self._needed else io.BytesIO()
        return self

    def note(self, job: TensorJob) -> None:
        """To be called before the parameter of `job` is written to. Raises OSError when its file cannot be written."""
        offset = -1
        if job.key not in self._stored:
            offset = self._file.tell()
            self._file.write(job.parameter.detach().cpu().flatten().view(torch.uint8).numpy().data)
            self._file.flush()  # a full disk shows here, before the parameter is touched
        self._entries.append((job, offset))

    @torch.inference_mode()
    def _undo(self) -> None:
        buffers = Buffers()
        while self._entries:
            job, offset = self._entries[-1]
            try:
                if offset >= 0:
                    self._file.seek(offset)
                    old = torch.frombuffer(bytearray(self._file.read(job.parameter.nbytes)), dtype=job.parameter.dtype)
                    job.parameter.copy_(old.view(job.parameter.shape))
                elif job.key in self._state.merged and self._last is not None:
                    model = read_operand(self._source, job.model_name)
                    base = read_operand(self._last.base, self._last.base_names[job.key])
                    ancestor = self._last.operand_of_ancestor(job.key)
                    merge_tensor(self._last.spec, job.key, model, base, job.parameter, buffers, ancestor)
                else:
                    job.parameter.copy_(self._source.tensor(job.model_name).to(job.parameter.device))
                self._entries.pop()
            except KeyboardInterrupt:
                continue  # an impatient second Ctrl-C must not leave the model half restored
            except Exception as error:
                raise RuntimeError("the merge failed and could not be undone: load the model again") from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._file:
            if kind is not None:
                self._undo()
                setattr(self._module, STATE, self._state)


class NoUndo:
    """For a model that its owner throws away when the merge fails."""

    def __enter__(self) -> NoUndo:
        return self

    def note(self, job: TensorJob) -> None:
        """Nothing has to be kept of any `job`."""

    def __exit__(self, *raised: object) -> None:
        """Nothing is put back."""


def holds_tensor(parameter: Tensor, stored: Tensor) -> bool:
    """Whether a parameter is a stored tensor, cast, bit by bit.

    Args:
        parameter: of a loaded module.
        stored: the tensor of its checkpoint.
    """
    if stored.data_ptr() == parameter.data_ptr() and stored.dtype == parameter.dtype:
        return True  # it is the source of its own plain values
    plain = stored.to(device=parameter.device, dtype=parameter.dtype)
    bits = _BITS[parameter.element_size()]
    return torch.equal(parameter.detach().contiguous().view(bits), plain.contiguous().view(bits))
