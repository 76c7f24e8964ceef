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
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from plam_eval.merging.rules import RULES, generator_of, norm, register_rule
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

    def copy(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return self.tensor.to(device=device, dtype=dtype, copy=True)


@dataclass
class _Merged:
    value: Tensor
    plain: Tensor  # W_mllm in the same dtype
    change: float  # ||value - plain||_F
    norm: float  # ||plain||_F


def _merge(
    spec: PlateauSpec, key: Key, model: _Operand, base: _Operand, dtype: torch.dtype, device: torch.device
) -> _Merged:
    """One tensor: computed on `device`, rounded once to `dtype`. Raises `MergeError` on NaN or Inf.

    In float32, or in float64 where one of the operands is stored in it, whose extra bits a cast would round first.
    """
    working = torch.float64 if torch.float64 in (model.tensor.dtype, base.tensor.dtype) else torch.float32
    w_mllm, w_base = model.copy(device, working), base.copy(device, working)
    faults = [
        f"{operand.where} holds NaN or Inf; expected finite weights. Download it again"
        for operand, tensor in ((model, w_mllm), (base, w_base))
        if not _finite(tensor)
    ]
    if faults:
        raise MergeError(*faults)
    value = RULES[spec.rule](w_mllm, w_base, spec.weights, generator_of(spec.seed, key))
    del w_mllm, w_base  # before the next allocation
    value = value.to(dtype)
    if not _finite(value):
        raise MergeError(f"{model.where}: the merged tensor overflows {dtype}; use smaller weights or another dtype")
    plain = model.tensor.to(device=device, dtype=dtype)
    return _Merged(value, plain, norm(value, plain), norm(plain))


def _finite(tensor: Tensor) -> bool:
    # Any NaN or Inf makes the sum one; the element-wise look settles a sum that merely overflowed.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


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


class _Journal:
    """Writes parameters and, on any error, puts every one back.

    The value a parameter had is appended to an unnamed temporary file before it is overwritten. Checking everything in
    a first pass and writing in a second would read both checkpoints twice and still leave the model half merged by a
    read error or a Ctrl-C in the second; restoring from the checkpoints relies on the very files that just failed, and
    cannot bring back a model merged from its parameters. Measured: a tenth more processor time, against twice as much.
    Memory: one tensor at a time, provided that TMPDIR is not in memory itself.
    """

    def __init__(self, needed: int) -> None:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise MergeError(
                f"{folder}: {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB needed to be able to undo the merge; free "
                "some, or set TMPDIR to a folder with room"
            )
        self._entries: list[tuple[Tensor, int]] = []

    def __enter__(self) -> _Journal:
        self._file = tempfile.TemporaryFile(prefix="plam-undo-")
        return self

    @torch.inference_mode()  # which may write normal parameters and those of a model loaded under it alike
    def write(self, parameter: Tensor, value: Tensor) -> None:
        offset = self._file.tell()
        self._file.write(parameter.detach().cpu().flatten().view(torch.uint8).numpy().data)
        self._file.flush()  # a full disk shows here, before the parameter is touched
        self._entries.append((parameter, offset))
        parameter.copy_(value)

    @torch.inference_mode()
    def _undo(self) -> None:
        while self._entries:
            parameter, offset = self._entries[-1]
            try:
                self._file.seek(offset)
                old = torch.frombuffer(bytearray(self._file.read(parameter.nbytes)), dtype=parameter.dtype)
                parameter.copy_(old.view(parameter.shape))
                self._entries.pop()
            except KeyboardInterrupt:
                continue  # an impatient second Ctrl-C must not leave the model half restored
            except OSError as error:
                raise RuntimeError("the merge failed and could not be undone: load the model again") from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._file:
            if kind is not None:
                self._undo()


def merge_in_place(
    module: nn.Module,
    spec: PlateauSpec | None,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    base: str | Path | Checkpoint | None = None,
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

    Raises:
        MergeError: listing every fault. On this and on any other error, KeyboardInterrupt included, every parameter is
            bit-identical to before the call.
    """
    started = time.perf_counter()
    work = _prepare(module, spec, checkpoint, base)
    state, source, base_source, jobs, faults = work.state, work.source, work.base, work.jobs, Faults()
    new_state = _State(merged=frozenset(job.key for job in jobs if job.base_name))
    if isinstance(source, Checkpoint):
        new_state = replace(new_state, checkpoint=source.location, revision=source.commit, identity=source.identity())
    read_before = source.bytes_read + (base_source.bytes_read if base_source else 0)
    changes = _Changes()
    size = sum(job.parameter.nbytes for job in jobs)
    try:
        with _Journal(size) as journal:
            for job in tqdm(jobs, "merging", unit="tensor", leave=False, disable=None if size > 1 << 28 else True):
                with faults.collect():
                    value = _value(job, spec, source, base_source, job.key in state.merged, changes)
                    if not faults:  # once one tensor is at fault the rest is only looked at, to report every fault
                        journal.write(job.parameter, value)
                    del value
            faults.raise_any()
            setattr(module, _STATE, new_state)
    except BaseException:
        setattr(module, _STATE, state)
        raise

    return MergeReport(
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
    faults, changes, values = Faults(), _Changes(), dict[str, Tensor]()
    for job in work.jobs:
        if known and job.parameter_name in known:
            values[job.parameter_name] = known[job.parameter_name]
        elif job.base_name is not None:
            with faults.collect():
                merged = job.key in work.state.merged
                values[job.parameter_name] = _value(job, spec, work.source, work.base, merged, changes)
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


def _value(
    job: _Job, spec: PlateauSpec | None, source: Source, base: Checkpoint | None, was_merged: bool, changes: _Changes
) -> Tensor:
    """What to write into one parameter, in its dtype and on its device. Raises `MergeError`."""
    model = _operand(source, job.model_name)
    if spec is None or base is None or job.base_name is None:
        return model.tensor.to(device=job.parameter.device, dtype=job.parameter.dtype)
    merged = _merge(spec, job.key, model, _operand(base, job.base_name), job.parameter.dtype, job.parameter.device)
    if not was_merged and not torch.equal(job.parameter, merged.plain):
        raise MergeError(
            f"{job.parameter_name} of the loaded model is not {model.where} in {job.parameter.dtype}; expected a plain "
            "load of the checkpoint. Pass the checkpoint that the model was loaded from, or none"
        )
    changes.add(job.key[0], merged)
    return merged.value


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
    changes, seen, bytes_in = _Changes(), dict[Key, str](), 0
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
        operand = _Operand(tensor, name)
        merged = _merge(spec, key, operand, _operand(base, there[key]), dtype or tensor.dtype, tensor.device)
        changes.add(key[0], merged)
        bytes_in += tensor.nbytes
        yield name, merged.value
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
