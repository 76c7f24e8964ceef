"""The merge: W = w_model * W_mllm + w_base * W_base (PlaM, arXiv 2601.07645) over the tensors that a spec names.

One arithmetic serves a loaded module (`merge_in_place`) and a stream of checkpoint tensors (`merged_weights`, for vLLM
and export), so that all of them hold the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from plam_eval.errors import MergeError
from plam_eval.merging.arithmetic import Buffers, LayerChanges, Operand, merge_tensor, not_finite, read_operand
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.names import Key, decoder_tensor
from plam_eval.merging.plan import (
    FLOATS,
    MergePlan,
    Parameters,
    Problems,
    Source,
    compare_tensors,
    decoder_names,
    locate_tensors,
    open_ancestor,
    plan_merge,
)
from plam_eval.merging.report import MergeReport
from plam_eval.merging.rules import FUNCTIONS
from plam_eval.merging.spec_checkpoints import SpecCheckpoints
from plam_eval.merging.undo import (
    STATE,
    LastMerge,
    MergeState,
    NoUndo,
    TensorJob,
    UndoLog,
    checksum_of,
    holds_tensor,
    last_merge_of,
    remember_last_merge,
)
from plam_eval.spec import MODULES, PlateauSpec

# ---- a loaded module -------------------------------------------------------------------------------------------------


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
        MergeError: listing every problem. On this and on any other error, KeyboardInterrupt included, every parameter
            is bit-identical to before the call, unless `thrown_away_on_error`. What headers show (names, shapes,
            dtypes) is found before anything is written; weights that are not finite are found as they are merged.
        RuntimeError: it failed, and the checkpoints that it has to be undone from could not be read any more.
    """
    started = time.perf_counter()
    work = _prepare(module, spec, checkpoint, base)
    base_identity = work.base.identity() if work.base else {}  # before a tensor of it is read
    ancestor = work.plan.ancestor if work.plan else None
    ancestor_identity = ancestor.identity() if ancestor else None
    state, source, base_source, jobs, problems = work.state, work.source, work.base, work.jobs, Problems()
    new_state = MergeState(merged=frozenset(job.key for job in jobs if job.base_name))
    if isinstance(source, Checkpoint):
        new_state = replace(new_state, checkpoint=source.location, revision=source.commit, identity=source.identity())
    sides = [side for side in (source, base_source, ancestor) if side is not None]
    before = [(side, side.identity()) for side in sides if isinstance(side, Checkpoint)]
    read_before = sum(side.bytes_read for side in sides)
    changes, buffers = LayerChanges(), Buffers()
    size = sum(job.parameter.nbytes for job in jobs)
    undo = NoUndo() if thrown_away_on_error else UndoLog(module, jobs, state, source, last_merge_of(module))
    last: LastMerge | None = None
    with undo:
        for job in tqdm(jobs, "merging", unit="tensor", leave=False, disable=None if size > 1 << 28 else True):
            with problems.collect():
                # Once one tensor is at fault the rest is only looked at, to report every problem.
                _bring(job, work, spec, changes, buffers, None if problems else undo)
        problems.raise_any()
        _check_unchanged(before, source)
        if spec is not None and base_source is not None and isinstance(source, Checkpoint):
            merged = {job.key: job for job in jobs if job.base_name}
            names = {key: str(job.base_name) for key, job in merged.items()}
            written = {key: checksum_of(job.parameter) for key, job in merged.items()}
            of_ancestor = {key: job.ancestor_name for key, job in merged.items() if job.ancestor_name}
            last = LastMerge(
                *(spec, FUNCTIONS[spec.rule], base_source, base_identity, names, written),
                *(ancestor, ancestor_identity, of_ancestor),
            )
        report = MergeReport(
            spec=spec.to_dict() if spec else None,
            digest=spec.digest() if spec else None,
            model=source.name,
            base_model=base_source.name if base_source else None,
            tensors=changes.count,
            restored=len(jobs) - changes.count,
            bytes_read=sum(side.bytes_read for side in sides) - read_before,
            seconds=time.perf_counter() - started,
            relative_change=changes.relative(),
            warnings=(*(work.plan.warnings if work.plan else ()), *changes.warnings()),
            model_commit=source.recorded_commit if isinstance(source, Checkpoint) else None,
            base_commit=base_source.recorded_commit if base_source else None,
            **changes.of_ancestor(ancestor),
        )
        setattr(module, STATE, new_state)
    remember_last_merge(module, last)
    return report


def _check_unchanged(before: Sequence[tuple[Checkpoint, dict[str, Any]]], source: Source) -> None:
    """Raises MergeError where a checkpoint is no longer the one whose first tensors were read."""
    changed = [side for side, identity in before if side.identity() != identity]
    if changed:
        names = " and ".join(dict.fromkeys(side.name for side in changed))
        remedy = "load the model again" if source in changed else "merge again"
        raise MergeError(f"{names}: changed on disk while it was merged, so that tensors would be of both; {remedy}")


def merged_values(
    module: nn.Module,
    spec: PlateauSpec,
    *,
    checkpoint: str | Path | Checkpoint | None = None,
    base: str | Path | Checkpoint | None = None,
    computed: dict[tuple[str, str], Tensor] | None = None,
) -> dict[str, Tensor]:
    """What `merge_in_place` would write, by parameter name, on the parameters' devices; the model stays as it is.

    Args:
        module: as for `merge_in_place`.
        spec: what would be merged.
        checkpoint: as for `merge_in_place`.
        base: as for `merge_in_place`.
        computed: (`PlateauSpec.recipe`, parameter name) -> value of earlier merges, taken instead of read again; what
            is read is added.

    Raises:
        MergeError: as `merge_in_place`.
    """
    work = _prepare(module, spec, checkpoint, base)
    problems, changes, buffers, values = Problems(), LayerChanges(), Buffers(), dict[str, Tensor]()
    computed = {} if computed is None else computed
    for job in work.jobs:
        if job.base_name is None:
            continue
        known_by = spec.recipe(job.key[0]), job.parameter_name
        if known_by in computed:
            values[job.parameter_name] = computed[known_by]
        else:
            with problems.collect():
                values[job.parameter_name] = computed[known_by] = value = torch.empty_like(
                    job.parameter, requires_grad=False
                )
                _bring(replace(job, parameter=value), work, spec, changes, buffers, NoUndo(), found_in=job.parameter)
    problems.raise_any()
    return values


def is_merged(module: nn.Module) -> bool:
    """Whether `merge_in_place` has left the model with merged tensors.

    Args:
        module: the loaded model.
    """
    return bool(getattr(module, STATE, MergeState()).merged)


@dataclass(frozen=True)
class _Work:
    """What a merge has to do, checked as far as headers show it."""

    state: MergeState
    source: Source
    base: Checkpoint | None
    plan: MergePlan | None
    jobs: list[TensorJob]


def _prepare(
    module: nn.Module,
    spec: PlateauSpec | None,
    checkpoint: str | Path | Checkpoint | None,
    base: str | Path | Checkpoint | None,
) -> _Work:
    """Raises `MergeError` listing every problem."""
    state: MergeState = getattr(module, STATE, MergeState())
    target, problems = Parameters(module), Problems()
    source, base_source, ancestor = _open(target, state, spec, checkpoint, base)
    plan = None
    if spec is not None and base_source is not None:
        plan = plan_merge(spec, model=source, base=base_source, target=target, ancestor=ancestor)
    jobs = _jobs(target, source, plan, state)
    if isinstance(source, Checkpoint):
        with problems.collect():
            source.prefetch(job.model_name for job in jobs)
    if base_source:
        with problems.collect():
            base_source.prefetch(job.base_name for job in jobs if job.base_name)
    if plan and plan.ancestor:
        with problems.collect():
            plan.ancestor.prefetch(job.ancestor_name for job in jobs if job.ancestor_name)
    problems.raise_any()
    return _Work(state, source, base_source, plan, jobs)


def _jobs(target: Parameters, source: Source, plan: MergePlan | None, state: MergeState) -> list[TensorJob]:
    """First what goes back to plain, then what is merged. Raises `MergeError` when the former cannot."""
    planned = {tensor.key: tensor for tensor in plan.tensors} if plan else {}
    parameters, plain = decoder_names(target), decoder_names(source)
    restored = sorted(state.merged - planned.keys())
    problems = Problems(
        f"{place.name}: layer {key[0]}, {key[1]}: merged before, and no longer there"
        for key in restored
        for place, names in ((target, parameters), (source, plain))
        if key not in names
    )
    problems.raise_any()
    compare_tensors(target, {k: parameters[k] for k in restored}, source, {k: plain[k] for k in restored}, problems)
    problems += [problem for key in restored if (problem := target.problem(parameters[key]))]
    problems.raise_any()
    back = [TensorJob(key, parameters[key], target.tensor(parameters[key]), plain[key], None) for key in restored]
    return back + [
        TensorJob(
            key,
            parameters[key],
            target.tensor(parameters[key]),
            tensor.model_name,
            tensor.base_name,
            tensor.ancestor_name,
        )
        for key, tensor in planned.items()
    ]


@torch.inference_mode()  # which may write normal parameters and those of a model loaded under it alike
def _bring(
    job: TensorJob,
    work: _Work,
    spec: PlateauSpec | None,
    changes: LayerChanges,
    buffers: Buffers,
    undo: UndoLog | NoUndo | None,
    found_in: Tensor | None = None,
) -> None:
    """Write one parameter, noted in `undo` before; None only looks whether it could be. Raises `MergeError`.

    `found_in` is the parameter as it is loaded, if that is not the one that is written.
    """
    parameter = job.parameter
    model = read_operand(work.source, job.model_name).on(parameter.device)
    if spec is None or work.base is None or job.base_name is None:
        if undo is not None:
            undo.note(job)
            parameter.copy_(model.tensor)
        return
    base = read_operand(work.base, job.base_name)
    if job.key not in work.state.merged and not holds_tensor(parameter if found_in is None else found_in, model.tensor):
        if problems := not_finite(model, base):  # which explains it
            raise MergeError(*problems)
        raise MergeError(
            f"{job.parameter_name} of the loaded model is not {model.where} in {parameter.dtype}; expected a plain "
            "load of the checkpoint. Pass the checkpoint that the model was loaded from, or none"
        )
    if undo is None:
        parameter = torch.empty_like(parameter)
    else:
        undo.note(job)
    plan, ancestor = work.plan, None
    if plan is not None and plan.ancestor is not None and job.ancestor_name is not None:
        ancestor = read_operand(plan.ancestor, job.ancestor_name)
    changes.add(job.key[0], merge_tensor(spec, job.key, model, base, parameter, buffers, ancestor))


def _open(
    target: Parameters,
    state: MergeState,
    spec: PlateauSpec | None,
    checkpoint: str | Path | Checkpoint | None,
    base: str | Path | Checkpoint | None,
) -> tuple[Source, Checkpoint | None, Checkpoint | None]:
    problems = Problems()
    source: Source = target
    base_source, ancestor = None, None
    with problems.collect():
        source = _plain_source(target, state, checkpoint)
    if spec is not None:
        with problems.collect():
            base_source, ancestor = SpecCheckpoints.open(spec, base)
    problems.raise_any()
    return source, base_source, ancestor


def _plain_source(target: Parameters, state: MergeState, checkpoint: str | Path | Checkpoint | None) -> Source:
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
    ancestor: Checkpoint | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Merge a stream of a checkpoint's (name, tensor) pairs; every other tensor passes through untouched.

    A merged tensor has the bits that `merge_in_place` writes into a parameter of dtype `dtype`. Base and ancestor are
    checked before the first tensor; `plan_merge` checks all sides where the streamed checkpoint is at hand.

    Args:
        weights: tensors as stored, named as in a checkpoint.
        spec: what to merge; None passes everything through.
        base: the base LLM; None is the spec's own.
        dtype: dtype to round merged tensors to; None is each tensor's own.
        on_report: called with the report after the last tensor.
        ancestor: the ancestor of a rule that takes one; None is the spec's own.

    Raises:
        MergeError: the base, or the ancestor, does not fit; while streaming, a tensor of the spec does not fit its
            counterpart, comes twice or, at the end, never came.
    """
    if spec is None:
        return iter(weights)
    problems = Problems()
    with problems.collect():
        base = base or Checkpoint.open(spec.base_model, role="base")
    with problems.collect():
        ancestor = (ancestor or open_ancestor(spec)) if spec.needs_ancestor else None
    problems.raise_any()
    assert base is not None
    base_names, ancestor_names = locate_tensors(base, spec, problems), dict[Key, str]()
    if ancestor is not None:
        ancestor_names = locate_tensors(ancestor, spec, problems)
        compare_tensors(ancestor, ancestor_names, base, base_names, problems)
    problems.raise_any()
    for side, names in ((base, base_names), (ancestor, ancestor_names)):
        if side is not None:
            with problems.collect():
                side.prefetch(names.values())
    problems.raise_any()
    return _stream(weights, spec, base, base_names, dtype, on_report, ancestor, ancestor_names)


def _stream(
    weights: Iterable[tuple[str, Tensor]],
    spec: PlateauSpec,
    base: Checkpoint,
    base_names: dict[Key, str],
    dtype: torch.dtype | None,
    on_report: Callable[[MergeReport], None] | None,
    ancestor: Checkpoint | None,
    ancestor_names: dict[Key, str],
) -> Iterator[tuple[str, Tensor]]:
    sides = [base] if ancestor is None else [base, ancestor]
    started, read_before = time.perf_counter(), sum(side.bytes_read for side in sides)
    changes, buffers, seen, bytes_in = LayerChanges(), Buffers(), dict[Key, str](), 0
    stems = tuple(MODULES[module] + "." for module in spec.modules)
    for name, tensor in weights:
        key = decoder_tensor(name)
        if key is None or key[0] not in spec.layers or not key[1].startswith(stems):
            yield name, tensor
            continue
        if key not in base_names:
            raise MergeError(f"{name}: {base.name} has no such tensor (layer {key[0]}, {key[1]})")
        if key in seen:
            raise MergeError(f"{name}: came twice, before as {seen[key]}")
        if tensor.dtype not in FLOATS:
            raise MergeError(f"{name}: is {tensor.dtype}; expected float32, bfloat16, float16 or float64")
        base_name = base_names[key]
        if tuple(tensor.shape) != base.shape(base_name):
            raise MergeError(
                f"{name}: is {list(tensor.shape)}, but {base_name} of {base.name} ({base.file(base_name)}) is "
                f"{list(base.shape(base_name))}; expected equal shapes"
            )
        seen[key] = name
        value = torch.empty_like(tensor, dtype=dtype or tensor.dtype, requires_grad=False)
        operands = Operand(tensor, name), read_operand(base, base_name)
        third = read_operand(ancestor, ancestor_names[key]) if ancestor is not None else None
        change = merge_tensor(spec, key, *operands, value, buffers, third)
        changes.add(key[0], change)
        bytes_in += tensor.nbytes
        yield name, value
    missing = [f"layer {layer}, {suffix}: never came" for layer, suffix in sorted(base_names.keys() - seen.keys())]
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
                bytes_read=bytes_in + sum(side.bytes_read for side in sides) - read_before,
                seconds=time.perf_counter() - started,
                relative_change=changes.relative(),
                base_commit=base.recorded_commit,
                warnings=changes.warnings(),
                **changes.of_ancestor(ancestor),
            )
        )
