"""A merged checkpoint in the MLLM's own layout: its files copied byte for byte, the merged tensors written over theirs.

A merged tensor has the dtype and the shape of the one that it takes the place of, so the header of a safetensors file
stays as it is, and so does every byte of what is not merged. Nothing is loaded into a model and nothing goes through
`save_pretrained`, which renames tensors.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from plam_eval.errors import CheckpointError, ExportError
from plam_eval.files import write_json
from plam_eval.merging.arithmetic import Buffers, LayerChanges, merge_tensor, read_operand
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.export_record import FILE, ExportedFile, ExportRecord
from plam_eval.merging.plan import MergePlan, PlannedTensor, Problems, plan_merge
from plam_eval.merging.report import MergeReport
from plam_eval.probing.spec_file import write_spec
from plam_eval.provenance import describe_checkpoint, versions
from plam_eval.publishing.output_folder import built, check_output, check_space
from plam_eval.publishing.source_files import Choice, SourceFile, choose_files, code_elsewhere, locate, named_by_code
from plam_eval.publishing.weight_writer import (
    Place,
    copy_file,
    plan_header,
    read_places,
    sha256_of_copy,
    write_tensor,
)
from plam_eval.spec import PlateauSpec

SPEC_FILE = "plateau.yaml"
"""The spec in the folder of an export, which `plateau=` reads, from the hub as well."""

_LONG = 1 << 28  # bytes from which on progress is shown
_INDEX = "model.safetensors.index.json"
_SHOWN = 12  # names of files that a note lists


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        folder: that holds it.
        record: what it says of itself.
    """

    folder: Path
    record: ExportRecord

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the folder, its bytes, and the record."""
        return {"folder": str(self.folder), "bytes": self.bytes, "record": self.record.model_dump(mode="json")}

    @property
    def bytes(self) -> int:
        """Of all files that the record names."""
        return sum(file.bytes for file in self.record.files.values())


def export_checkpoint(
    model: str | Path | Checkpoint,
    spec: PlateauSpec,
    output: str | Path,
    *,
    base: str | Path | Checkpoint | None = None,
    overwrite: bool = False,
    command: str | None = None,
) -> Export:
    """Write a merged checkpoint that loads wherever the model itself does.

    The merged tensors have the bits that `merge_in_place` writes into a model that was loaded in their stored dtype.
    Everything is checked before the first byte is written, and what is written is a folder of that name only when it is
    complete. Memory: two tensors and what an elementwise merge works in, whatever the size of the files.

    Args:
        model: folder or hub id of the MLLM.
        spec: what is merged.
        output: the new folder.
        base: folder or hub id of the base LLM, the spec's own unless given.
        overwrite: replace an export that is there, once the new one is complete.
        command: that makes it again, for the record; made of the names if left out.

    Raises:
        ExportError: listing every problem; nothing was written, or nothing of it is left.
        FolderError: another process writes there.
        OSError: it cannot be read or written; nothing is left.
    """
    plan = _plan(model, spec, Path(output), base, overwrite)
    command = command or shlex.join(
        ["plam", "export", "--model", plan.checkpoint.name, "--plateau", SPEC_FILE, "--output", str(output)]
    )
    with built(Path(output), overwrite=overwrite) as folder:
        record = _write(plan, folder, command)
        record.write(folder)
        _sync(folder / FILE)
    return Export(Path(output), record)


# ---- what is to be done ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """An export, checked."""

    spec: PlateauSpec
    checkpoint: Checkpoint
    base: Checkpoint
    merge: MergePlan
    choice: Choice
    files: dict[str, SourceFile]
    """By name, of all that is read of the MLLM."""
    new_index: dict[str, Any] | None
    """In place of the one of `.bin` files."""
    notes: list[str]

    @property
    def converts(self) -> bool:
        return self.checkpoint.weights.endswith((".bin", ".bin.index.json"))

    def merged(self, weights: str) -> list[PlannedTensor]:
        """The merged tensors of a file of weights."""
        return [tensor for tensor in self.merge.tensors if self.checkpoint.file(tensor.model_name) == weights]


def _plan(
    model: str | Path | Checkpoint,
    spec: PlateauSpec,
    output: Path,
    base: str | Path | Checkpoint | None,
    overwrite: bool,
) -> _Plan:
    """Raises ExportError with everything that is wrong, as far as it can be told before anything is downloaded."""
    problems = Problems()
    opened: list[Checkpoint] = []
    for source, role in ((model, "model"), (spec.base_model if base is None else base, "base")):
        with problems.collect():
            opened.append(Checkpoint.open(source, role=role))
    problems += check_output(output, [one.folder for one in opened if one.folder], overwrite=overwrite)
    if len(opened) < 2:
        _raise_any(problems)
    checkpoint, base_checkpoint = opened
    merge, choice = None, Choice({}, ())
    files: dict[str, SourceFile] = {}
    with problems.collect():
        merge = plan_merge(spec, model=checkpoint, base=base_checkpoint)
    with problems.collect():
        choice = choose_files(checkpoint)
    names = [*choice.names, *sorted({checkpoint.weights, *checkpoint.weight_files})]
    if checkpoint.folder is not None:
        files = locate(checkpoint, names, problems)
    if not problems:
        _check_space(output, names, checkpoint, problems)
    _raise_any(problems)
    assert merge is not None
    with problems.collect():
        checkpoint.prefetch(checkpoint.names())
    with problems.collect():
        base_checkpoint.prefetch(tensor.base_name for tensor in merge.tensors)
    files = files or locate(checkpoint, names, problems)
    _raise_any(problems)
    if more := named_by_code(choice, files):
        choice = Choice(
            {**choice.names, **dict.fromkeys(more, "named by code")},
            tuple(name for name in choice.left_out if name not in more),
        )
        files |= locate(checkpoint, more, problems)
    new_index = None
    with problems.collect():
        new_index = _converted_index(checkpoint)
    _raise_any(problems)
    plan = _Plan(spec, checkpoint, base_checkpoint, merge, choice, files, new_index, [])
    plan.notes.extend(_notes(plan))
    return plan


def _raise_any(problems: list[str]) -> None:
    if problems:
        raise ExportError(*dict.fromkeys(problems))


def _check_space(output: Path, names: Iterable[str], checkpoint: Checkpoint, problems: list[str]) -> None:
    sizes = [checkpoint.size(name) for name in names]
    try:
        check_space(output, sum(size for size in sizes if size is not None))
    except ExportError as error:
        problems += error.problems


def _as_safetensors(name: str) -> str:
    folder, _, file = name.rpartition("/")
    stem = file.removesuffix(".bin")
    stem = "model" + stem.removeprefix("pytorch_model") if stem.startswith("pytorch_model") else stem
    return f"{folder}{'/' if folder else ''}{stem}.safetensors"


def _converted_index(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The index of a `.bin` checkpoint's files once they are safetensors; None where there is none.

    Raises CheckpointError where a tensor or a name cannot be converted.
    """
    if not checkpoint.weights.endswith((".bin", ".bin.index.json")):
        return None
    problems = []
    if "transformers_weights" in checkpoint.config:
        problems.append(
            f"{checkpoint.name}: its config.json names its weights (transformers_weights), and config.json is copied "
            "as it is, though the weights get other names; take that line out in a copy"
        )
    targets = {name: _as_safetensors(name) for name in sorted(checkpoint.weight_files)}
    if len(set(targets.values())) < len(targets):
        problems.append(f"{checkpoint.name}: two of {', '.join(targets)} would get one name as safetensors; rename one")
    weight_map, size = {}, 0
    for name in checkpoint.names():
        weight_map[name] = targets[checkpoint.file(name)]
    for file in targets:
        try:
            places = plan_header(_tensors(checkpoint, file))[1]
            size += sum(place.end - place.start for place in places.values())
        except CheckpointError as error:
            problems += [f"{checkpoint.name}: {file}: {problem}" for problem in error.problems]
    if problems:
        raise CheckpointError(*problems)
    if not checkpoint.weights.endswith(".index.json"):
        return None
    return {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}


def _tensors(checkpoint: Checkpoint, file: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    names = [name for name in checkpoint.names() if checkpoint.file(name) == file]
    tensors = {name: checkpoint.tensor(name) for name in names}  # mapped
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


# ---- what a reader has to know ---------------------------------------------------------------------------------------


def _notes(plan: _Plan) -> list[str]:
    checkpoint, choice = plan.checkpoint, plan.choice
    notes = [*plan.merge.warnings, _dtype_note(plan)]
    if plan.converts:
        notes.append(
            f"The weights of {checkpoint.name} are .bin files ({_listed(sorted(checkpoint.weight_files))}); they are "
            "written as safetensors, each tensor with its own bits, under the corresponding names."
        )
        if shared := _shared(checkpoint):
            notes.append(
                f"Tensors that share memory in the .bin files are written one by one, as safetensors asks: "
                f"{_listed(shared)}."
            )
    if code := choice.of_kind("code"):
        notes.append(
            f"Python code comes along from {checkpoint.name} ({_listed(code)}); it runs only where a user passes "
            "trust_remote_code=True."
        )
    if more := choice.of_kind("named by code"):
        notes.append(f"Comes along because the code names it: {_listed(more)}.")
    notes += code_elsewhere(checkpoint, plan.files)
    try:
        checkpoint.check_read_by_vllm()
    except CheckpointError as error:
        notes.append(f"{error}. The export holds those of transformers alone.")
    if choice.left_out:
        notes.append(f"Left out of {checkpoint.name}: {_listed(choice.left_out)}.")
    missing = [kind for kind in ("tokenizer", "processor") if not choice.of_kind(kind)]
    if missing:
        notes.append(
            f"{checkpoint.name} has no files of a {' or a '.join(missing)}{_offline(checkpoint)}: the export "
            "loads only with those of somewhere else."
        )
    return notes


def _offline(checkpoint: Checkpoint) -> str:
    from huggingface_hub import constants

    if checkpoint.folder is None and constants.is_offline_mode():
        return " in the local cache, and the hub is not asked, as HF_HUB_OFFLINE is set"
    return ""


def _dtype_note(plan: _Plan) -> str:
    stored = sorted({str(tensor.model_dtype).removeprefix("torch.") for tensor in plan.merge.tensors})
    config = plan.checkpoint.config
    sections = [config, *(config.get(key) for key in ("text_config", "llm_config"))]
    said = [
        str(section.get("dtype") or section.get("torch_dtype"))
        for section in sections
        if isinstance(section, Mapping) and (section.get("dtype") or section.get("torch_dtype"))
    ]
    words = " and ".join(stored)
    again = (
        f"The merged tensors are rounded once, to {words}, in which the source stores them. Loaded in another dtype "
        "they are rounded again, and differ from a merge at load in that dtype"
    )
    if others := sorted(set(said[:1]) - set(stored)):
        return f"{again}: config.json says dtype {others[0]}, so that is what loading does unless told otherwise."
    if stored == ["float16"]:
        return (
            f"{again}: this happens with dtype=bfloat16, in which float16 checkpoints such as LLaVA-1.5 are often run."
        )
    if stored == ["float32"]:
        return f"{again}: vLLM loads float32 in a half precision unless it is given --dtype float32."
    return f"{again}."


def _shared(checkpoint: Checkpoint) -> list[str]:
    """Tensors of `.bin` files that lie in the memory of another one."""
    first: dict[tuple[str, int], str] = {}
    shared = set[str]()
    for name in checkpoint.names():
        place = checkpoint.file(name), checkpoint.tensor(name).untyped_storage().data_ptr()
        if first.setdefault(place, name) != name:
            shared |= {first[place], name}
    return sorted(shared)


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")


# ---- doing it --------------------------------------------------------------------------------------------------------

How = Literal["copied", "merged", "converted", "written"]


def _write(plan: _Plan, folder: Path, command: str) -> ExportRecord:
    """Everything but the record. Raises ExportError, MergeError and OSError."""
    started, checkpoint, base = time.perf_counter(), plan.checkpoint, plan.base
    identities = checkpoint.identity(), base.identity()
    read_of_base = {"config.json", base.weights, *(base.file(tensor.base_name) for tensor in plan.merge.tensors)}
    inputs = {
        "model": dict(sorted(checkpoint.hashes({"config.json", *plan.files}).items())),
        "base": dict(sorted(base.hashes(read_of_base).items())),
    }
    # Each file is written and read again, one with merged tensors is read twice.
    total = sum(file.size * (3 if name in checkpoint.weight_files else 2) for name, file in plan.files.items())
    with tqdm(
        desc="exporting", total=total, unit="B", unit_scale=True, leave=False, disable=None if total > _LONG else True
    ) as bar:
        writer = _Writer(plan, folder, inputs["model"], bar.update)
        writer.write()
    if (checkpoint.identity(), base.identity()) != identities:
        raise ExportError(f"{checkpoint.name} or {base.name} changed on disk while it was exported; export again")
    _check_result(folder, checkpoint)
    report = MergeReport(
        spec=plan.spec.to_dict(),
        digest=plan.spec.digest(),
        model=checkpoint.name,
        base_model=base.name,
        tensors=writer.changes.count,
        restored=0,
        bytes_read=plan.merge.model_bytes + plan.merge.base_bytes,
        seconds=time.perf_counter() - started,
        relative_change=writer.changes.relative(),
        warnings=plan.merge.warnings,
        model_commit=checkpoint.recorded_commit,
        base_commit=base.recorded_commit,
    )
    return ExportRecord(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        spec=plan.spec.to_dict(),
        digest=plan.spec.digest(),
        model=describe_checkpoint(checkpoint),
        base=describe_checkpoint(base),
        inputs=inputs,
        files=dict(sorted(writer.files.items())),
        merge=json.loads(json.dumps(report.to_dict())),  # layers become text here, as they do in the file
        versions=versions(),
        notes=tuple(plan.notes),
    )


class _Writer:
    """Writes the files of an export one by one, each of them waited for until it is on disk."""

    def __init__(self, plan: _Plan, folder: Path, hashes: Mapping[str, str], progress: Callable[[int], Any]) -> None:
        self.plan, self.folder, self.progress = plan, folder, progress
        self.hashes = hashes
        self.files: dict[str, ExportedFile] = {}
        self.changes, self.buffers, self.problems = LayerChanges(), Buffers(), Problems()

    def write(self) -> None:
        plan, weights = self.plan, self.plan.checkpoint.weight_files
        for name in plan.files:
            if name not in weights and not (plan.converts and name == plan.checkpoint.weights):
                self._copied(name)
        if plan.new_index is not None:
            index = plan.new_index
            self._written(_INDEX, "converted", lambda path: write_json(path, index))
        self._written(SPEC_FILE, "written", lambda path: write_spec(plan.spec, path))
        for name in sorted(weights):
            merged = plan.merged(name)
            if plan.converts:
                self._converted(name, merged)
            else:
                target = self._copied(name)
                if merged:
                    self._merged(name, target, merged)
        _raise_any(self.problems)

    def _target(self, name: str) -> Path:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _note(self, name: str, how: How, sha256: str) -> None:
        self.files[name] = ExportedFile(sha256=sha256, bytes=(self.folder / name).stat().st_size, how=how)

    def _copied(self, name: str) -> Path:
        source, target = self.plan.files[name], self._target(name)
        copy_file(source.path, target, self.progress)
        sha256 = sha256_of_copy(target, self.progress)
        if sha256 != self.hashes[name]:
            raise ExportError(
                f"{source.path}: its copy has the SHA-256 {sha256}, and it {self.hashes[name]}; it has changed "
                "meanwhile, or is damaged. Export again, or download it again"
            )
        self._note(name, "copied", sha256)
        return target

    def _written(self, name: str, how: How, write: Callable[[Path], object]) -> None:
        target = self._target(name)
        write(target)
        _sync(target)
        self._note(name, how, sha256_of_copy(target, self.progress))

    def _merged(self, name: str, target: Path, merged: Iterable[PlannedTensor]) -> None:
        places = read_places(target)
        with target.open("r+b", buffering=0) as file:
            for tensor in sorted(merged, key=lambda tensor: places[tensor.model_name].start):
                self._put(file.fileno(), places[tensor.model_name], tensor)
            os.fsync(file.fileno())
        self._note(name, "merged", sha256_of_copy(target, self.progress))

    def _converted(self, name: str, merged: Iterable[PlannedTensor]) -> None:
        checkpoint, planned = self.plan.checkpoint, {tensor.model_name: tensor for tensor in merged}
        target = self._target(_as_safetensors(name))
        header, places = plan_header(_tensors(checkpoint, name))
        with target.open("xb", buffering=0) as file:
            file.write(header)
            for stored, place in places.items():
                if stored in planned:
                    self._put(file.fileno(), place, planned[stored])
                else:
                    write_tensor(file.fileno(), place, checkpoint.tensor(stored))
                self.progress(place.end - place.start)
            os.fsync(file.fileno())
        self._note(_as_safetensors(name), "converted", sha256_of_copy(target, self.progress))

    @torch.inference_mode()
    def _put(self, file: int, place: Place, tensor: PlannedTensor) -> None:
        """Merge one tensor into its place; after the first problem the rest is only looked at, to report them all."""
        plan = self.plan
        with self.problems.collect():
            model, base = (
                read_operand(plan.checkpoint, tensor.model_name),
                read_operand(plan.base, tensor.base_name),
            )
            value: Tensor = torch.empty(tensor.shape, dtype=tensor.model_dtype)
            self.changes.add(tensor.layer, merge_tensor(plan.spec, tensor.key, model, base, value, self.buffers))
            if not self.problems:
                write_tensor(file, place, value)


def _check_result(folder: Path, checkpoint: Checkpoint) -> None:
    """Raises ExportError unless what is written opens as a checkpoint of the same tensors, for vLLM as well."""
    problems = Problems()
    with problems.collect():
        written = Checkpoint.open(folder)
        written.check_read_by_vllm()
        for name in dict.fromkeys([*checkpoint.names(), *written.names()]):
            with problems.collect():
                if (written.shape(name), written.dtype(name)) != (checkpoint.shape(name), checkpoint.dtype(name)):
                    problems.append(f"{name} is written in another form than it was read")
    if problems:
        raise ExportError(*problems)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
