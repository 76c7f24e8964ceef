"""The merge: W = w_model * W_mllm + w_base * W_base (PlaM, arXiv 2601.07645) over the tensors that a spec names.

One arithmetic serves a loaded module (`merge_in_place`) and a stream of checkpoint tensors (`merged_weights`, for vLLM
and export), so that all of them hold the same bits.
"""

from __future__ import annotations

import hashlib
import io
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

from plam_eval import spec as specs
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
from plam_eval.spec import MODULES, PlateauSpec, Weights

__all__ = [
    "RULES",
    "MergeError",
    "MergePlan",
    "MergeReport",
    "PlannedTensor",
    "merge_in_place",
    "merged_weights",
    "plan_merge",
    "register_rule",
]

# ---- rules -----------------------------------------------------------------------------------------------------------

# (W_mllm, W_base, weights, generator) -> merged tensor, all float32 and of one shape. The operands are the rule's to
# overwrite, which keeps the merge at two float32 tensors. The generator is on the CPU, the tensors may be elsewhere.
Rule = Callable[[Tensor, Tensor, Weights, torch.Generator], Tensor]
RULES: dict[str, Rule] = {}


def register_rule(name: str, rule: Rule, *, draws: bool = False) -> None:
    """Make a rule known to specs by name. `draws`: it uses the generator, so the spec's seed enters its digest."""
    RULES[name] = rule
    specs.RULES[name] = draws


def weighted_sum(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """w_model * W_mllm + w_base * W_base, not normalised (arXiv 2601.07645)."""
    if weights.base_model == 0:  # a zero term is left out: adding it would turn -0.0 into 0.0
        return w_mllm.mul_(weights.model)
    if weights.model == 0:
        return w_base.mul_(weights.base_model)
    return w_mllm.mul_(weights.model).add_(w_base.mul_(weights.base_model))


def self_scale(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """Control: (w_model + w_base) * W_mllm, the scale of the merge without the base."""
    return w_mllm.mul_(weights.model + weights.base_model)


def normalized(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """Control: the weights divided by their sum, the base without the scale."""
    total = weights.model + weights.base_model
    shares = Weights(model=weights.model / total, base_model=weights.base_model / total)
    return weighted_sum(w_mllm, w_base, shares, generator)


def noise(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    """Control: W_mllm plus a random (Gaussian) direction of the same Frobenius norm as the merge's change."""
    change = _norm(w_base.mul_(weights.base_model).add_(w_mllm, alpha=weights.model - 1))
    if change == 0:
        return w_mllm
    w_base.copy_(torch.randn(w_mllm.shape, generator=generator))
    return w_mllm.add_(w_base.mul_(change / _norm(w_base)))


for _rule, _draws in ((weighted_sum, False), (self_scale, False), (normalized, False), (noise, True)):
    register_rule(_rule.__name__, _rule, draws=_draws)


def _norm(tensor: Tensor) -> float:
    # In float64, so that every device and thread count comes to the same float32 scale; in parts, for its memory.
    parts = tensor.flatten().split(1 << 22)
    return math.sqrt(sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in parts))


def _generator(seed: int, key: Key) -> torch.Generator:
    """A CPU generator of this tensor alone: what it draws does not depend on order, device or sharding."""
    digest = hashlib.sha256(f"{seed}:{key[0]}:{key[1]}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass
class _Operand:
    tensor: Tensor
    where: str  # tensor, checkpoint and file, for messages

    def float32(self, device: torch.device) -> Tensor:
        return self.tensor.to(device=device, dtype=torch.float32, copy=True)


@dataclass
class _Merged:
    value: Tensor
    plain: Tensor  # W_mllm in the same dtype
    change: float  # ||value - plain||_F
    norm: float  # ||plain||_F


def _merge(
    spec: PlateauSpec, key: Key, model: _Operand, base: _Operand, dtype: torch.dtype, device: torch.device
) -> _Merged:
    """One tensor: float32 arithmetic on `device`, one rounding to `dtype`. Raises `MergeError` on NaN or Inf."""
    w_mllm, w_base = model.float32(device), base.float32(device)
    faults = [
        f"{operand.where} holds NaN or Inf; expected finite weights. Download it again"
        for operand, tensor in ((model, w_mllm), (base, w_base))
        if not _finite(tensor)
    ]
    if faults:
        raise MergeError(*faults)
    value = RULES[spec.rule](w_mllm, w_base, spec.weights, _generator(spec.seed, key)).to(dtype)
    del w_mllm, w_base
    if not _finite(value):
        raise MergeError(f"{model.where}: the merged tensor overflows {dtype}; use smaller weights or another dtype")
    plain = model.tensor.to(device=device, dtype=dtype)
    change = torch.linalg.vector_norm(value.float().sub_(plain))
    return _Merged(value, plain, float(change), float(torch.linalg.vector_norm(plain, dtype=torch.float32)))


def _finite(tensor: Tensor) -> bool:
    # Any NaN or Inf makes the sum one; the element-wise look settles a sum that merely overflowed.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


# ---- report ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        spec, digest: the spec and its digest; None when the model went back to plain.
        model, base_model: where W_mllm and W_base came from.
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

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "warnings": list(self.warnings)}

    def table(self) -> Table:
        table = Table(title="Merge" if self.spec else "Back to plain", show_header=False, title_justify="left")
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        table.add_row("model", self.model)
        if self.spec:
            weights, layers = self.spec["weights"], self.spec["layer_range"]
            table.add_row("base", str(self.base_model))
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
        console = Console(file=io.StringIO(), width=100)
        console.print(self.table())
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]


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
    cannot bring back a model merged from its parameters. Memory: one tensor at a time.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        needed, folder = sum(p.nbytes for p in parameters), tempfile.gettempdir()
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

    @torch.no_grad()
    def write(self, parameter: Tensor, value: Tensor) -> None:
        offset = self._file.tell()
        self._file.write(parameter.detach().cpu().flatten().view(torch.uint8).numpy().data)
        self._file.flush()  # a full disk shows here, before the parameter is touched
        self._entries.append((parameter, offset))
        parameter.copy_(value)

    @torch.no_grad()
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

    The arithmetic runs in float32 on each parameter's device and is rounded once, to the parameter's dtype.

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
    state: _State = getattr(module, _STATE, _State())
    target = Parameters(module)
    faults = Faults()
    source: Source | None = None
    base_source: Checkpoint | None = None
    with faults.collect():
        source = _plain_source(target, state, checkpoint)
    if spec is not None:
        with faults.collect():
            base_source = Checkpoint.open(spec.base_model if base is None else base)
    faults.raise_any()
    assert source is not None

    plan = check(spec, source, base_source, target) if spec and base_source else None
    planned = {tensor.key: tensor for tensor in plan.tensors} if plan else {}
    parameter_of, plain_of = decoder_names(target), decoder_names(source)
    restored = sorted(state.merged - planned.keys())
    compare_tensors(
        target, {key: parameter_of[key] for key in restored}, source, {key: plain_of[key] for key in restored}, faults
    )
    faults += [fault for key in restored if (fault := target.fault(parameter_of[key]))]
    faults.raise_any()
    if isinstance(source, Checkpoint):
        with faults.collect():
            source.prefetch([*(t.model_name for t in planned.values()), *(plain_of[key] for key in restored)])
    if base_source:
        with faults.collect():
            base_source.prefetch(t.base_name for t in planned.values())
    faults.raise_any()

    read_before = source.bytes_read + (base_source.bytes_read if base_source else 0)
    changes = _Changes()
    keys = [*restored, *planned]
    parameters = {key: target.tensor(parameter_of[key]) for key in keys}
    size = sum(parameter.nbytes for parameter in parameters.values())
    with _Journal(list(parameters.values())) as journal:
        for key in tqdm(keys, "merging", unit="tensor", leave=False, disable=None if size > 1 << 28 else True):
            parameter = parameters[key]
            with faults.collect():
                if key not in planned:
                    journal.write(parameter, source.tensor(plain_of[key]).to(parameter.device, parameter.dtype))
                    continue
                assert spec and base_source
                operands = _operand(source, planned[key].model_name), _operand(base_source, planned[key].base_name)
                merged = _merge(spec, key, *operands, parameter.dtype, parameter.device)
                if key not in state.merged and not torch.equal(parameter, merged.plain):
                    raise MergeError(
                        f"{target.name}: {parameter_of[key]} is not {operands[0].where} in {parameter.dtype}; expected "
                        "a plain load of the checkpoint. Pass the checkpoint the model was loaded from, or none"
                    )
                changes.add(key[0], merged)
                if not faults:  # once one tensor is at fault the rest is only looked at, to report every fault
                    journal.write(parameter, merged.value)
        faults.raise_any()

    new_state = _State(merged=frozenset(planned))
    if isinstance(source, Checkpoint):
        new_state = replace(new_state, checkpoint=source.location, revision=source.commit, identity=source.identity())
    setattr(module, _STATE, new_state)
    read = source.bytes_read + (base_source.bytes_read if base_source else 0) - read_before
    return MergeReport(
        spec=spec.to_dict() if spec else None,
        digest=spec.digest() if spec else None,
        model=source.name,
        base_model=base_source.name if base_source else None,
        tensors=len(planned),
        restored=len(restored),
        bytes_read=read,
        seconds=time.perf_counter() - started,
        relative_change=changes.relative(),
        warnings=plan.warnings if plan else (),
    )


def _operand(source: Source, name: str) -> _Operand:
    return _Operand(source.tensor(name), f"{name} of {source.name} ({source.file(name)})")


def _plain_source(target: Parameters, state: _State, checkpoint: str | Path | Checkpoint | None) -> Source:
    """Where the plain values of a module are: its checkpoint if one is or was given, else the module itself."""
    if checkpoint is None and state.checkpoint is None:
        if state.merged:
            raise MergeError(
                f"{target.name}: already merged, from its parameters, so its plain values are gone; pass checkpoint= "
                "(before the first merge, if it is to be undone), or load the model again"
            )
        return target
    source = Checkpoint.open(checkpoint if checkpoint is not None else str(state.checkpoint), state.revision)
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
    base: Checkpoint,
    dtype: torch.dtype | None,
    on_report: Callable[[MergeReport], None] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Merge a stream of a checkpoint's (name, tensor) pairs; every other tensor passes through untouched.

    A merged tensor has the bits that `merge_in_place` writes into a parameter of dtype `dtype`. The base is checked
    before the first tensor; `plan_merge` checks both sides where the streamed checkpoint is at hand.

    Args:
        weights: tensors as stored, named as in a checkpoint.
        spec: what to merge; None passes everything through.
        base: the base LLM.
        dtype: dtype to round merged tensors to; None is each tensor's own.
        on_report: called with the report after the last tensor.

    Raises:
        MergeError: the base does not fit; while streaming, a tensor of the spec does not fit its counterpart, comes
            twice or, at the end, never came.
    """
    if spec is None:
        return iter(weights)
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
            raise MergeError(f"{name}: is {tensor.dtype}; expected float32, bfloat16 or float16")
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
            )
        )
