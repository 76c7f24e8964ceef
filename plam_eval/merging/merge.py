"""The merge: W = w_model * W_mllm + w_base * W_base (PlaM, arXiv 2601.07645) over the tensors that a spec names.

One arithmetic serves a loaded module (`merge_in_place`) and a stream of checkpoint tensors (`merged_weights`, for vLLM
and export), so that all of them hold the same bits.
"""

from __future__ import annotations

import io
import math
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from plam_eval.merging.checkpoint import Checkpoint, MergeError
from plam_eval.merging.names import Key, decoder_tensor
from plam_eval.merging.plan import (
    FLOATS,
    Faults,
    MergePlan,
    Parameters,
    PlannedTensor,
    Source,
    check,
    compare_tensors,
    decoder_names,
    locate,
    plan_merge,
)
from plam_eval.merging.rules import ELEMENTWISE, RULES, Rule, generator_of, norm, register_rule
from plam_eval.spec import MODULES, PlateauSpec
from plam_eval.terminal import PlainTable, Terminal

__all__ = [
    "RULES",
    "MergeError",
    "MergePlan",
    "MergeReport",
    "PlannedTensor",
    "is_merged",
    "merge_in_place",
    "merged_values",
    "merged_weights",
    "plan_merge",
    "register_rule",
]


@dataclass
class _Operand:
    tensor: Tensor
    where: str  # tensor, checkpoint and file, for messages


@dataclass
class _Merged:
    change: float  # ||value - plain||_F
    norm: float  # ||plain||_F, plain being W_mllm in the same dtype


_PART = 1 << 20  # elements on a CPU, so that what a part needs stays in its caches
_LARGE_PART = 1 << 26  # elsewhere, where each part waits for the device


class _Space:
    """The memory that merging needs, taken once: operands of a part in working precision, and its rounded result."""

    def __init__(self) -> None:
        self._held: dict[tuple[torch.device, torch.dtype, int], Tensor] = {}

    def take(self, which: int, like: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        """Vector number `which` of `size` elements, with whatever it held last."""
        key = like.device, dtype, which
        if key not in self._held or len(self._held[key]) < size:
            self._held[key] = torch.empty(size, dtype=dtype, device=like.device)
        return self._held[key][:size]


def _merge(spec: PlateauSpec, key: Key, model: _Operand, base: _Operand, out: Tensor, space: _Space) -> _Merged:
    """One tensor: computed on the device of `out`, and rounded once into it, part by part.

    In float32, or in float64 where one of the operands is stored in it, whose extra bits a cast would round first.
    `out` may be the MLLM's own tensor. Raises `MergeError` on NaN or Inf, which may leave `out` written in part.
    """
    working = torch.float64 if torch.float64 in (model.tensor.dtype, base.tensor.dtype) else torch.float32
    rule, generator = RULES[spec.rule], generator_of(spec.seed, key)
    whole = spec.rule not in ELEMENTWISE
    if wrong := [operand for operand in (model, base) if operand.tensor.shape != out.shape]:
        found = ", ".join(f"{operand.where} is {list(operand.tensor.shape)}" for operand in wrong)
        raise MergeError(f"{found}; expected {list(out.shape)}, as its header said. Download it again")
    flat = out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype, device=out.device)
    stored, other = model.tensor.reshape(-1), base.tensor.reshape(-1)
    size = flat.numel() if whole else min(flat.numel(), _PART if out.device.type == "cpu" else _LARGE_PART)
    change = total = 0.0
    for start in range(0, flat.numel(), max(1, size)):
        part = slice(start, min(start + size, flat.numel()))
        length = part.stop - start
        one, two = (space.take(which, out, length, working) for which in (0, 1))
        one.copy_(stored[part])
        two.copy_(other[part])
        squares = _square(one)
        if not (math.isfinite(squares) and math.isfinite(_square(two))):
            raise MergeError(*(_not_finite(model, base) or _too_large(model, base)))
        shape = out.shape if whole else (length,)
        merged = rule(one.view(shape), two.view(shape), spec.weights, generator).reshape(-1)
        rounded = space.take(2, out, length, out.dtype).copy_(merged)
        one.copy_(stored[part])
        if stored.dtype != out.dtype:  # then plain is rounded, too
            one.copy_(space.take(3, out, length, out.dtype).copy_(one))
            squares = _square(one)
        two.copy_(rounded).sub_(one)
        difference = _square(two)
        if not math.isfinite(difference):
            raise MergeError(
                f"{model.where}: the merged tensor overflows {out.dtype}; use smaller weights or another dtype"
            )
        flat[part].copy_(rounded)
        change, total = change + difference, total + squares
    if not out.is_contiguous():
        out.copy_(flat.view(out.shape))
    return _Merged(math.sqrt(change), math.sqrt(total))


def _square(vector: Tensor) -> float:
    """Sum of squares: NaN or infinite exactly where an element is, also where float32 overflows or underflows."""
    found = float(torch.dot(vector, vector))
    if found == 0 or not math.isfinite(found):
        return norm(vector) ** 2 if bool(torch.isfinite(vector).all()) else math.nan
    return found


def _not_finite(*operands: _Operand) -> list[str]:
    return [
        f"{operand.where} holds NaN or Inf; expected finite weights. Download it again"
        for operand in operands
        if not bool(torch.isfinite(operand.tensor).all())
    ]


def _too_large(*operands: _Operand) -> list[str]:
    """For float64 alone, whose elements can be too large for a sum of their squares."""
    return [
        f"{operand.where} holds elements of up to {float(operand.tensor.abs().max()):.3g}; expected weights"
        for operand in operands
        if not math.isfinite(norm(operand.tensor))
    ]


# ---- report ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        spec, digest: the spec and its digest; None when the model went back to plain.
        model, base_model: where W_mllm and W_base came from; `model_commit`, `base_commit`: of which commits of the
            hub, None for what is not from there.
        tensors: merged tensors; `restored`: tensors put back to their plain values.
        bytes_read: bytes read from both checkpoints.
        relative_change: layer -> ||W_new - W_mllm||_F / ||W_mllm||_F over its merged tensors, after rounding.
    """

    spec: dict[str, Any] | None
    digest: str | None
    model: str
    base_model: str | None
    tensors: int
    restored: int
    bytes_read: int
    seconds: float
    relative_change: dict[int, float]
    warnings: tuple[str, ...] = ()
    model_commit: str | None = None
    base_commit: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it back."""
        return {**asdict(self), "warnings": list(self.warnings)}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> MergeReport:
        """The report that `to_dict` made, also after a round trip through JSON."""
        change = {int(layer): value for layer, value in stored["relative_change"].items()}
        return cls(**{**stored, "relative_change": change, "warnings": tuple(stored["warnings"])})

    def table(self) -> PlainTable:
        table = PlainTable(title="Merge" if self.spec else "Back to plain", show_header=False, title_justify="left")
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        table.add_row("model", _at(self.model, self.model_commit))
        if self.spec:
            weights, layers = self.spec["weights"], self.spec["layer_range"]
            table.add_row("base", _at(str(self.base_model), self.base_commit))
            table.add_row("rule", f"{self.spec['rule']}: {weights['model']} model, {weights['base_model']} base")
            table.add_row("layers", f"[{layers[0]}, {layers[1]})  {' '.join(self.spec['modules'])}")
            table.add_row("digest", str(self.digest)[:16])
        restored = f", {self.restored} restored" if self.restored else ""
        table.add_row("tensors", f"{self.tensors} merged{restored}")
        table.add_row("read", f"{self.bytes_read / 1e6:.1f} MB in {self.seconds:.2f} s")
        if self.relative_change:
            cells = "  ".join(f"{layer}: {change:.3f}" for layer, change in self.relative_change.items())
            table.add_row("relative change", cells)
        for warning in self.warnings:
            table.add_row("warning", warning, style="yellow")
        return table

    def __str__(self) -> str:
        console = Terminal(file=io.StringIO(), width=100)
        console.print(self.table())
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]


def _at(name: str, commit: str | None) -> str:
    return f"{name} (commit {commit[:12]})" if commit and commit not in name else name


class _Changes:
    """||W_new - W_mllm|| and ||W_mllm|| per layer, as sums of squares."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, float]] = {}
        self.count = 0

    def add(self, layer: int, merged: _Merged) -> None:
        change, norm = self._sums.get(layer, (0.0, 0.0))
        self._sums[layer] = change + merged.change**2, norm + merged.norm**2
        self.count += 1

    def relative(self) -> dict[int, float]:
        return {layer: math.sqrt(c / n) if n else 0.0 for layer, (c, n) in sorted(self._sums.items())}


# ---- a loaded module -------------------------------------------------------------------------------------------------

_STATE = "_plam_merge_state"


@dataclass(frozen=True)
class _State:
    """Kept on the module: which of its tensors are not plain, and the checkpoint that holds their plain values."""

    checkpoint: str | None = None
    revision: str | None = None
    identity: dict[str, Any] | None = None
    merged: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class _LastMerge:
    """Of the merge that a module holds: what brings its merged tensors back, were the next one to fail."""

    spec: PlateauSpec
    rule: Rule  # a rule can be registered anew under the name that the spec has
    base: Checkpoint
    base_identity: dict[str, Any]
    base_names: dict[Key, str]
    written: dict[Key, _Written]

    def still_makes(self, job: _Job) -> bool:
        """Whether merging again gives what a parameter holds: nobody has written to it, or cast it, since."""
        return (
            job.key in self.base_names
            and RULES.get(self.spec.rule) is self.rule
            and self.written.get(job.key) == _written(job.parameter)
        )


_Written = tuple[torch.dtype, str, int]
_CHUNK = 256  # words


def _written(parameter: Tensor) -> _Written:
    """What tells whether a parameter still holds what was written to it, at the cost of reading it once."""
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


_LAST: weakref.WeakKeyDictionary[nn.Module, _LastMerge] = weakref.WeakKeyDictionary()
# Not on the module: its files are open, so a copy of the module could not have it.


class _Undo:
    """On any error, puts back every parameter that was noted.

    What a parameter held is in a checkpoint, if it was plain (and has just been found equal to its tensor there), or is
    what the last merge made of two checkpoints; these are read again. Where there is no checkpoint, or not both, or the
    parameter, the base or the rule is not what it was after that merge, it is appended to an unnamed temporary file
    before it is overwritten. Memory: one tensor at a time, provided that TMPDIR is not in memory itself.
    """

    def __init__(
        self, module: nn.Module, jobs: Sequence[_Job], state: _State, source: Source, last: _LastMerge | None
    ) -> None:
        self._module, self._state, self._source, self._last = module, state, source, last
        self._entries: list[tuple[_Job, int]] = []
        if last is not None and not _unchanged(last.base, last.base_identity):
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

    def _is_stored(self, job: _Job) -> bool:
        """Whether what a parameter holds can be had from checkpoints again."""
        if not isinstance(self._source, Checkpoint):
            return False
        return job.key not in self._state.merged or (self._last is not None and self._last.still_makes(job))

    def __enter__(self) -> _Undo:
        self._file = tempfile.TemporaryFile(prefix="plam-undo-") if self._needed else io.BytesIO()
        return self

    def note(self, job: _Job) -> None:
        """To be called before a parameter is written to."""
        offset = -1
        if job.key not in self._stored:
            offset = self._file.tell()
            self._file.write(job.parameter.detach().cpu().flatten().view(torch.uint8).numpy().data)
            self._file.flush()  # a full disk shows here, before the parameter is touched
        self._entries.append((job, offset))

    @torch.inference_mode()
    def _undo(self) -> None:
        space = _Space()
        while self._entries:
            job, offset = self._entries[-1]
            try:
                if offset >= 0:
                    self._file.seek(offset)
                    old = torch.frombuffer(bytearray(self._file.read(job.parameter.nbytes)), dtype=job.parameter.dtype)
                    job.parameter.copy_(old.view(job.parameter.shape))
                elif job.key in self._state.merged and self._last is not None:
                    model = _operand(self._source, job.model_name)
                    base = _operand(self._last.base, self._last.base_names[job.key])
                    _merge(self._last.spec, job.key, model, base, job.parameter, space)
                else:
                    job.parameter.copy_(self._source.tensor(job.model_name))
                self._entries.pop()
            except KeyboardInterrupt:
                continue  # an impatient second Ctrl-C must not leave the model half restored
            except Exception as error:
                raise RuntimeError("the merge failed and could not be undone: load the model again") from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._file:
            if kind is not None:
                self._undo()
                setattr(self._module, _STATE, self._state)


class _NoUndo:
    """For a model that its owner throws away when the merge fails."""

    def __enter__(self) -> _NoUndo:
        return self

    def note(self, job: _Job) -> None:
        """Nothing has to be kept."""

    def __exit__(self, *raised: object) -> None:
        """Nothing is put back."""


def merge_in_place(
    module: nn.Module,
    spec: PlateauSpec | None,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    base: str | Path | Checkpoint | None = None,
    thrown_away_on_error: bool = False,
) -> MergeReport:
    """Bring a loaded model to the state that `spec` describes, whatever spec it was merged by before.

    The arithmetic runs in float32 on each parameter's device (in float64 where an operand is stored in it) and is
    rounded once, to the parameter's dtype.

    Args:
        module: the loaded model, all of its merged layers on real devices and unsharded.
        spec: what to merge; None puts the model back to plain.
        checkpoint: folder or hub id that `module` was loaded from. Its tensors are W_mllm, and the way back to plain.
            Remembered on the module, so that later calls need not repeat it. Without it W_mllm is the parameter
            itself, and the model can be merged only once.
        base: folder or hub id of the base LLM, `spec.base_model` unless given.
        thrown_away_on_error: whoever calls this drops the model when it raises, so nothing is kept for a way back.

    Raises:
        MergeError: listing every fault. On this and on any other error, KeyboardInterrupt included, every parameter is
            bit-identical to before the call, unless `thrown_away_on_error`. What headers show (names, shapes, dtypes)
            is found before anything is written; weights that are not finite are found as they are merged.
        RuntimeError: it failed, and the checkpoints that it has to be undone from could not be read any more.
    """
    started = time.perf_counter()
    work = _prepare(module, spec, checkpoint, base)
    base_identity = work.base.identity() if work.base else {}  # before a tensor of it is read
    state, source, base_source, jobs, faults = work.state, work.source, work.base, work.jobs, Faults()
    new_state = _State(merged=frozenset(job.key for job in jobs if job.base_name))
    if isinstance(source, Checkpoint):
        new_state = replace(new_state, checkpoint=source.location, revision=source.commit, identity=source.identity())
    read_before = source.bytes_read + (base_source.bytes_read if base_source else 0)
    changes, space = _Changes(), _Space()
    size = sum(job.parameter.nbytes for job in jobs)
    undo = _NoUndo() if thrown_away_on_error else _Undo(module, jobs, state, source, _LAST.get(module))
    last: _LastMerge | None = None
    with undo:
        for job in tqdm(jobs, "merging", unit="tensor", leave=False, disable=None if size > 1 << 28 else True):
            with faults.collect():
                # Once one tensor is at fault the rest is only looked at, to report every fault.
                _bring(job, work, spec, changes, space, None if faults else undo)
        faults.raise_any()
        if spec is not None and base_source is not None and isinstance(source, Checkpoint):
            merged = {job.key: job for job in jobs if job.base_name}
            names = {key: str(job.base_name) for key, job in merged.items()}
            written = {key: _written(job.parameter) for key, job in merged.items()}
            last = _LastMerge(spec, RULES[spec.rule], base_source, base_identity, names, written)
        report = MergeReport(
            spec=spec.to_dict() if spec else None,
            digest=spec.digest() if spec else None,
            model=source.name,
            base_model=base_source.name if base_source else None,
            tensors=changes.count,
            restored=len(jobs) - changes.count,
            bytes_read=source.bytes_read + (base_source.bytes_read if base_source else 0) - read_before,
            seconds=time.perf_counter() - started,
            relative_change=changes.relative(),
            warnings=work.plan.warnings if work.plan else (),
            model_commit=source.recorded_commit if isinstance(source, Checkpoint) else None,
            base_commit=base_source.recorded_commit if base_source else None,
        )
        setattr(module, _STATE, new_state)
    _LAST.pop(module, None)
    if last is not None:
        _LAST[module] = last
    return report


def merged_values(
    module: nn.Module,
    spec: PlateauSpec,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    base: str | Path | Checkpoint | None = None,
    known: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """What `merge_in_place` would write, by parameter name, on the parameters' devices; the model stays as it is.

    Args:
        module, spec, checkpoint, base: as for `merge_in_place`.
        known: values of an equal merge of other layers or modules, to be taken from there instead of read again.

    Raises:
        MergeError: as `merge_in_place`.
    """
    work = _prepare(module, spec, checkpoint, base)
    faults, changes, space, values = Faults(), _Changes(), _Space(), dict[str, Tensor]()
    for job in work.jobs:
        if known and job.parameter_name in known:
            values[job.parameter_name] = known[job.parameter_name]
        elif job.base_name is not None:
            with faults.collect():
                values[job.parameter_name] = value = torch.empty_like(job.parameter, requires_grad=False)
                _bring(replace(job, parameter=value), work, spec, changes, space, _NoUndo(), found_in=job.parameter)
    faults.raise_any()
    return values


def is_merged(module: nn.Module) -> bool:
    """Whether `merge_in_place` has left the model with merged tensors."""
    return bool(getattr(module, _STATE, _State()).merged)


@dataclass(frozen=True)
class _Work:
    """What a merge has to do, checked as far as headers show it."""

    state: _State
    source: Source
    base: Checkpoint | None
    plan: MergePlan | None
    jobs: list[_Job]


def _prepare(
    module: nn.Module,
    spec: PlateauSpec | None,
    checkpoint: str | Path | Checkpoint | None,
    base: str | Path | Checkpoint | None,
) -> _Work:
    """Raises `MergeError` listing every fault."""
    state: _State = getattr(module, _STATE, _State())
    target, faults = Parameters(module), Faults()
    source, base_source = _open(target, state, spec, checkpoint, base)
    plan = check(spec, source, base_source, target) if spec and base_source else None
    jobs = _jobs(target, source, plan, state)
    if isinstance(source, Checkpoint):
        with faults.collect():
            source.prefetch(job.model_name for job in jobs)
    if base_source:
        with faults.collect():
            base_source.prefetch(job.base_name for job in jobs if job.base_name)
    faults.raise_any()
    return _Work(state, source, base_source, plan, jobs)


@dataclass(frozen=True)
class _Job:
    """One parameter to write: merged, or plain where there is no base name."""

    key: Key
    parameter_name: str
    parameter: Tensor
    model_name: str
    base_name: str | None


def _jobs(target: Parameters, source: Source, plan: MergePlan | None, state: _State) -> list[_Job]:
    """First what goes back to plain, then what is merged. Raises `MergeError` when the former cannot."""
    planned = {tensor.key: tensor for tensor in plan.tensors} if plan else {}
    parameters, plain = decoder_names(target), decoder_names(source)
    restored = sorted(state.merged - planned.keys())
    faults = Faults(
        f"{place.name}: layer {key[0]}, {key[1]}: merged before, and no longer there"
        for key in restored
        for place, names in ((target, parameters), (source, plain))
        if key not in names
    )
    faults.raise_any()
    compare_tensors(target, {k: parameters[k] for k in restored}, source, {k: plain[k] for k in restored}, faults)
    faults += [fault for key in restored if (fault := target.fault(parameters[key]))]
    faults.raise_any()
    back = [_Job(key, parameters[key], target.tensor(parameters[key]), plain[key], None) for key in restored]
    return back + [
        _Job(key, parameters[key], target.tensor(parameters[key]), tensor.model_name, tensor.base_name)
        for key, tensor in planned.items()
    ]


@torch.inference_mode()  # which may write normal parameters and those of a model loaded under it alike
def _bring(
    job: _Job,
    work: _Work,
    spec: PlateauSpec | None,
    changes: _Changes,
    space: _Space,
    undo: _Undo | _NoUndo | None,
    found_in: Tensor | None = None,
) -> None:
    """Write one parameter, noted in `undo` before; None only looks whether it could be. Raises `MergeError`.

    Args:
        found_in: the parameter as it is loaded, if that is not the one that is written.
    """
    model, parameter = _operand(work.source, job.model_name), job.parameter
    if spec is None or work.base is None or job.base_name is None:
        if undo is not None:
            undo.note(job)
            parameter.copy_(model.tensor)
        return
    base = _operand(work.base, job.base_name)
    if job.key not in work.state.merged and not _holds(parameter if found_in is None else found_in, model.tensor):
        if faults := _not_finite(model, base):  # which explains it
            raise MergeError(*faults)
        raise MergeError(
            f"{job.parameter_name} of the loaded model is not {model.where} in {parameter.dtype}; expected a plain "
            "load of the checkpoint. Pass the checkpoint that the model was loaded from, or none"
        )
    if undo is None:
        parameter = torch.empty_like(parameter)
    else:
        undo.note(job)
    changes.add(job.key[0], _merge(spec, job.key, model, base, parameter, space))


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _holds(parameter: Tensor, stored: Tensor) -> bool:
    """Whether a parameter is a stored tensor, cast, bit by bit."""
    if stored.data_ptr() == parameter.data_ptr() and stored.dtype == parameter.dtype:
        return True  # it is the source of its own plain values
    plain = stored.to(device=parameter.device, dtype=parameter.dtype)
    bits = _BITS[parameter.element_size()]
    return torch.equal(parameter.detach().contiguous().view(bits), plain.contiguous().view(bits))


def _operand(source: Source, name: str) -> _Operand:
    return _Operand(source.tensor(name), f"{name} of {source.name} ({source.file(name)})")


def _open(
    target: Parameters,
    state: _State,
    spec: PlateauSpec | None,
    checkpoint: str | Path | Checkpoint | None,
    base: str | Path | Checkpoint | None,
) -> tuple[Source, Checkpoint | None]:
    faults = Faults()
    source: Source = target
    base_source = None
    with faults.collect():
        source = _plain_source(target, state, checkpoint)
    if spec is not None:
        with faults.collect():
            base_source = Checkpoint.open(spec.base_model if base is None else base, role="base")
    faults.raise_any()
    return source, base_source


def _plain_source(target: Parameters, state: _State, checkpoint: str | Path | Checkpoint | None) -> Source:
    """Where the plain values of a module are: its checkpoint if one is or was given, else the module itself."""
    if checkpoint is None and state.checkpoint is None:
        if state.merged:
            raise MergeError(
                f"{target.name}: already merged, from its parameters, so its plain values are gone; pass checkpoint= "
                "(before the first merge, if it is to be undone), or load the model again"
            )
        return target
    source = Checkpoint.open(
        checkpoint if checkpoint is not None else str(state.checkpoint), state.revision, role="checkpoint"
    )
    if state.identity is not None and source.identity() != state.identity:
        raise MergeError(
            f"{source.name}: not the checkpoint of the last merge, or changed since (was {state.identity}, is "
            f"{source.identity()}); load the model again"
        )
    return source


# ---- a stream of checkpoint tensors ----------------------------------------------------------------------------------


def merged_weights(
    weights: Iterable[tuple[str, Tensor]],
    spec: PlateauSpec | None,
    base: Checkpoint | None,
    dtype: torch.dtype | None,
    on_report: Callable[[MergeReport], None] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Merge a stream of a checkpoint's (name, tensor) pairs; every other tensor passes through untouched.

    A merged tensor has the bits that `merge_in_place` writes into a parameter of dtype `dtype`. The base is checked
    before the first tensor; `plan_merge` checks both sides where the streamed checkpoint is at hand.

    Args:
        weights: tensors as stored, named as in a checkpoint.
        spec: what to merge; None passes everything through.
        base: the base LLM; None is the spec's own.
        dtype: dtype to round merged tensors to; None is each tensor's own.
        on_report: called with the report after the last tensor.

    Raises:
        MergeError: the base does not fit; while streaming, a tensor of the spec does not fit its counterpart, comes
            twice or, at the end, never came.
    """
    if spec is None:
        return iter(weights)
    base = base or Checkpoint.open(spec.base_model, role="base")
    faults = Faults()
    there = locate(base, spec, faults)
    faults.raise_any()
    base.prefetch(there.values())
    return _stream(weights, spec, base, there, dtype, on_report)


def _stream(
    weights: Iterable[tuple[str, Tensor]],
    spec: PlateauSpec,
    base: Checkpoint,
    there: dict[Key, str],
    dtype: torch.dtype | None,
    on_report: Callable[[MergeReport], None] | None,
) -> Iterator[tuple[str, Tensor]]:
    started, read_before = time.perf_counter(), base.bytes_read
    changes, space, seen, bytes_in = _Changes(), _Space(), dict[Key, str](), 0
    stems = tuple(MODULES[module] + "." for module in spec.modules)
    for name, tensor in weights:
        key = decoder_tensor(name)
        if key is None or key[0] not in spec.layers or not key[1].startswith(stems):
            yield name, tensor
            continue
        if key not in there:
            raise MergeError(f"{name}: {base.name} has no such tensor (layer {key[0]}, {key[1]})")
        if key in seen:
            raise MergeError(f"{name}: came twice, before as {seen[key]}")
        if tensor.dtype not in FLOATS:
            raise MergeError(f"{name}: is {tensor.dtype}; expected float32, bfloat16, float16 or float64")
        if tuple(tensor.shape) != base.shape(there[key]):
            raise MergeError(
                f"{name}: is {list(tensor.shape)}, but {there[key]} of {base.name} ({base.file(there[key])}) is "
                f"{list(base.shape(there[key]))}; expected equal shapes"
            )
        seen[key] = name
        value = torch.empty_like(tensor, dtype=dtype or tensor.dtype, requires_grad=False)
        merged = _merge(spec, key, _Operand(tensor, name), _operand(base, there[key]), value, space)
        changes.add(key[0], merged)
        bytes_in += tensor.nbytes
        yield name, value
    missing = [f"layer {layer}, {suffix}: never came" for layer, suffix in sorted(there.keys() - seen.keys())]
    if missing:
        raise MergeError(*missing)
    if on_report:
        on_report(
            MergeReport(
                spec=spec.to_dict(),
                digest=spec.digest(),
                model="a stream of checkpoint tensors",
                base_model=base.name,
                tensors=changes.count,
                restored=0,
                bytes_read=bytes_in + base.bytes_read - read_before,
                seconds=time.perf_counter() - started,
                relative_change=changes.relative(),
                base_commit=base.recorded_commit,
            )
        )
