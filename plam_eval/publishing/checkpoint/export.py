"""A merged checkpoint in the MLLM's own layout: its files copied byte for byte, the merged tensors written over theirs.

A merged tensor has the dtype and the shape of the one that it takes the place of, so the header of a safetensors file
stays as it is, and so does every byte of what is not merged. Nothing is loaded into a model and nothing goes through
`save_pretrained`, which renames tensors.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from plam_eval.errors import ExportError
from plam_eval.files import sha256_of_file, write_json
from plam_eval.merging.arithmetic import Buffers, LayerChanges, merge_tensor, read_operand
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.export_record import FILE, ExportedFile, ExportRecord, How
from plam_eval.merging.plan import PlannedTensor, Problems
from plam_eval.merging.report import MergeReport
from plam_eval.merging.spec_checkpoints import SpecCheckpoints
from plam_eval.provenance import describe_checkpoint, versions
from plam_eval.publishing.card.licences import README
from plam_eval.publishing.card.model_card import model_card
from plam_eval.publishing.checkpoint.output_folder import built, sync
from plam_eval.publishing.checkpoint.plan import ExportPlan, as_safetensors, plan_export, raise_any, tensors_of
from plam_eval.publishing.checkpoint.weight_writer import (
    Place,
    copy_file,
    plan_header,
    read_places,
    write_bytes,
    write_tensor,
)
from plam_eval.publishing.upload import UploadError, push_export
from plam_eval.spec import PlateauSpec

_LONG = 1 << 28  # bytes from which on progress is shown
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        folder: that holds it.
        record: what it says of itself.
        address: of its repository on the hub; None where it was not pushed.
    """

    folder: Path
    record: ExportRecord
    address: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: folder, bytes, address, and the record."""
        return {
            "folder": str(self.folder),
            "bytes": self.bytes,
            "address": self.address,
            "record": self.record.to_dict(),
        }

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
    results: Iterable[Path] = (),
    push_to_hub: str | None = None,
    public: bool = False,
    overwrite: bool = False,
    command: str = "",
) -> Export:
    """Write a merged checkpoint that loads wherever the model itself does.

    The merged tensors have the bits that `merge_in_place` writes into a model that was loaded in their stored dtype.
    Everything is checked before the first byte is written, and what is written is a folder of that name only when it is
    complete. Memory: the rule's operands and what it works in, one tensor at a time, whatever the size of the files.

    Args:
        model: folder or hub id of the MLLM.
        spec: what is merged.
        output: the new folder.
        base: folder or hub id of the base LLM, the spec's own unless given.
        results: folders of runs of this merge, of the plain model and of controls, for the card.
        push_to_hub: owner/name of a repository on the hub that the export is pushed to, checked before all else.
        public: whether everybody may read that repository.
        overwrite: replace an export that is there, once the new one is complete.
        command: that makes it again, for the record.

    Raises:
        ExportError: listing every problem; nothing was written, or nothing of it is left.
        FolderError: another process writes there.
        OSError: it cannot be read or written; nothing is left.
        UploadError: the export is there, and cannot be pushed.
    """
    plan = plan_export(model, spec, Path(output), base, overwrite, list(results), push_to_hub, public)
    with built(Path(output), overwrite=overwrite) as folder:
        record = _write(plan, folder, command)
        record.write(folder)
        card = model_card(
            record,
            model_config=plan.checkpoint.config,
            licences=plan.licences,
            results=plan.results,
            repository=push_to_hub,
        )
        (folder / README).write_text(card, encoding="utf-8")
        for name in (FILE, README):
            sync(folder / name)
    address = None
    if push_to_hub is not None:
        try:
            address = push_export(Path(output), push_to_hub, public=public)
        except UploadError as error:
            more = (
                f"The export itself is complete: {output}. The same command with --overwrite makes and pushes it again"
            )
            raise UploadError(*error.problems, more, origin=error.origin) from error
    return Export(Path(output), record, address)


# ---- doing it --------------------------------------------------------------------------------------------------------


def _write(plan: ExportPlan, folder: Path, command: str) -> ExportRecord:
    """Everything but the record. Raises ExportError, MergeError and OSError."""
    started, checkpoint, base, ancestor = time.perf_counter(), plan.checkpoint, plan.base, plan.ancestor
    sides = [checkpoint, base, *([ancestor] if ancestor is not None else [])]
    identities = [side.identity() for side in sides]
    inputs = {"model": dict(sorted(checkpoint.hashes({"config.json", *plan.files}).items()))}
    others = SpecCheckpoints(base, ancestor).tensors(plan.merge)
    for name, (other, read) in zip(("base", "ancestor"), others, strict=False):
        files = {"config.json", other.weights, *map(other.file, read)}
        inputs[name] = dict(sorted(other.hashes(files).items()))
    # Each file is written and read again, one with merged tensors is read twice.
    total = sum(file.size * (3 if name in checkpoint.weight_files else 2) for name, file in plan.files.items())
    with tqdm(
        desc="exporting", total=total, unit="B", unit_scale=True, leave=False, disable=None if total > _LONG else True
    ) as bar:
        writer = _Writer(plan, folder, inputs["model"], bar.update)
        writer.write()
    if [side.identity() for side in sides] != identities:
        names = " or ".join(side.name for side in sides)
        raise ExportError(f"{names} changed on disk while it was exported; export again")
    _check_result(folder, checkpoint)
    report = MergeReport(
        spec=plan.spec.to_dict(),
        digest=plan.spec.digest(),
        model=checkpoint.name,
        base_model=base.name,
        tensors=writer.changes.count,
        restored=0,
        bytes_read=plan.merge.bytes,
        seconds=time.perf_counter() - started,
        relative_change=writer.changes.relative(),
        warnings=(*plan.merge.warnings, *writer.changes.warnings()),
        model_commit=checkpoint.recorded_commit,
        base_commit=base.recorded_commit,
        **writer.changes.of_ancestor(ancestor),
    )
    return ExportRecord(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        spec=plan.spec.to_dict(),
        digest=plan.spec.digest(),
        model=describe_checkpoint(checkpoint),
        base=describe_checkpoint(base),
        ancestor=None if ancestor is None else describe_checkpoint(ancestor),
        inputs=inputs,
        files=dict(sorted(writer.files.items())),
        merge=json.loads(json.dumps(report.to_dict())),  # layers become text here, as they do in the file
        versions=versions(),
        notes=tuple(plan.notes),
    )


class _Writer:
    """Writes the files of an export, each of them waited for until it is on disk; another thread hashes what is done.

    Args:
        plan: of the export.
        folder: to write into.
        hashes: of the source's files, by name.
        progress: told of bytes that were written or hashed.
    """

    def __init__(
        self, plan: ExportPlan, folder: Path, hashes: Mapping[str, str], progress: Callable[[int], Any]
    ) -> None:
        self.plan, self.folder, self.hashes = plan, folder, hashes
        self.files: dict[str, ExportedFile] = {}
        self.changes, self.buffers, self.problems = LayerChanges(), Buffers(), Problems()
        self._progress, self._lock = progress, threading.Lock()
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="hashing")
        self._hashed: list[tuple[str, How, Future[str]]] = []

    def write(self) -> None:
        """Write all of them. Raises ExportError and OSError."""
        try:
            self._write()
            for name, how, future in self._hashed:
                size = (self.folder / name).stat().st_size
                self.files[name] = ExportedFile(sha256=future.result(), bytes=size, how=how)
        finally:
            self._hasher.shutdown(cancel_futures=True)

    def _write(self) -> None:
        plan, weights = self.plan, self.plan.checkpoint.weight_files
        for name in plan.files:
            if name not in weights and not (plan.converts and name == plan.checkpoint.weights):
                self._hashed.append((name, "copied", self._copied(name)))
        if plan.new_index is not None:
            index = self._target(_INDEX)
            write_json(index, plan.new_index)
            sync(index)
            self._hash(_INDEX, "converted")
        waiting: list[tuple[str, list[PlannedTensor], Future[str]]] = []
        for name in sorted(weights):
            if plan.converts:
                self._converted(name)
            elif tensors := plan.merged(name):
                waiting.append((name, tensors, self._copied(name)))
            else:
                self._hashed.append((name, "copied", self._copied(name)))
            while len(waiting) > 1:  # its copy is hashed by now, while the next one was made
                self._merged(*waiting.pop(0))
        for entry in waiting:
            self._merged(*entry)
        raise_any(self.problems)

    def _target(self, name: str) -> Path:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _done(self, count: int) -> None:
        with self._lock:
            self._progress(count)

    def _hash(self, name: str, how: How) -> None:
        self._hashed.append((name, how, self._hasher.submit(sha256_of_file, self.folder / name, self._done)))

    def _copied(self, name: str) -> Future[str]:
        """Copy a file. Returns the SHA-256 of the copy, which is an ExportError where it is not the source's."""
        source, target = self.plan.files[name], self._target(name)
        copy_file(source.path, target, self._done)

        def check() -> str:
            sha256 = sha256_of_file(target, self._done)
            if sha256 != self.hashes[name]:
                raise ExportError(
                    f"{source.path}: its copy has the SHA-256 {sha256}, and it {self.hashes[name]}; it has changed "
                    "meanwhile, or is damaged. Export again, or download it again"
                )
            return sha256

        return self._hasher.submit(check)

    def _merged(self, name: str, tensors: Iterable[PlannedTensor], copied: Future[str]) -> None:
        """Write merged tensors over theirs in the copy of a file, once that was found equal."""
        copied.result()
        places = read_places(self.folder / name)
        with (self.folder / name).open("r+b", buffering=0) as file:
            for tensor in sorted(tensors, key=lambda tensor: places[tensor.model_name].start):
                self._put(file.fileno(), places[tensor.model_name], tensor)
            os.fsync(file.fileno())
        self._hash(name, "merged")

    def _converted(self, name: str) -> None:
        """Write a `.bin` file as safetensors."""
        checkpoint, new = self.plan.checkpoint, as_safetensors(name)
        merged = {tensor.model_name: tensor for tensor in self.plan.merged(name)}
        header, places = plan_header(tensors_of(checkpoint, name))
        with self._target(new).open("xb", buffering=0) as file:
            write_bytes(file.fileno(), header, 0)
            for stored, place in places.items():
                if stored in merged:
                    self._put(file.fileno(), place, merged[stored])
                else:
                    write_tensor(file.fileno(), place, checkpoint.tensor(stored))
                self._done(place.end - place.start)
            os.fsync(file.fileno())
        self._hash(new, "converted")

    @torch.inference_mode()
    def _put(self, file: int, place: Place, tensor: PlannedTensor) -> None:
        """Merge one tensor into its place; after the first problem the rest is only looked at, to report them all."""
        plan = self.plan
        with self.problems.collect():
            model, base = (
                read_operand(plan.checkpoint, tensor.model_name),
                read_operand(plan.base, tensor.base_name),
            )
            third = None
            if plan.ancestor is not None and tensor.ancestor_name is not None:
                third = read_operand(plan.ancestor, tensor.ancestor_name)
            value: Tensor = torch.empty(tensor.shape, dtype=tensor.model_dtype)
            self.changes.add(tensor.layer, merge_tensor(plan.spec, tensor.key, model, base, value, self.buffers, third))
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
