"""What an export would do, what speaks against it, and what its readers have to know: before a byte is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

from plam_eval.errors import CheckpointError, ExportError, listed
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.export_record import FILE, read_export_record
from plam_eval.merging.plan import MergePlan, PlannedTensor, Problems, plan_merge
from plam_eval.merging.spec_checkpoints import SpecCheckpoints
from plam_eval.provenance import describe_checkpoint
from plam_eval.publishing.card.licences import Licence, read_licence
from plam_eval.publishing.checkpoint.output_folder import check_output, check_space, on_one_disk
from plam_eval.publishing.checkpoint.source_files import (
    Choice,
    SourceFile,
    choose_files,
    code_elsewhere,
    locate,
    named_by_code,
)
from plam_eval.publishing.checkpoint.weight_writer import plan_header
from plam_eval.publishing.upload import UploadError, check_push
from plam_eval.spec import PlateauSpec

_LARGEST_RECORD = 64 << 20  # bytes
_SHOWN = 12  # names of files that a note lists

# ---- what is to be done ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExportPlan:
    """An export, checked.

    Attributes:
        spec, checkpoint, base, ancestor: what is merged into what; no ancestor where the rule takes none.
        merge: the plan of the merge.
        choice: which files come along.
        files: by name, of all that is read of the MLLM.
        new_index: in place of the one of `.bin` files; None where there is none.
        licences: of "model", "base" and "ancestor".
        results: folders of runs for the card.
        notes: what a reader has to know.
    """

    spec: PlateauSpec
    checkpoint: Checkpoint
    base: Checkpoint
    ancestor: Checkpoint | None
    merge: MergePlan
    choice: Choice
    files: dict[str, SourceFile]
    new_index: dict[str, Any] | None
    licences: dict[str, Licence]
    results: list[Path]
    notes: list[str]

    @property
    def converts(self) -> bool:
        """Whether `.bin` files are written as safetensors."""
        return self.checkpoint.weights.endswith((".bin", ".bin.index.json"))

    def merged(self, weights: str) -> list[PlannedTensor]:
        """The merged tensors of `weights`, a file of them."""
        return [tensor for tensor in self.merge.tensors if self.checkpoint.file(tensor.model_name) == weights]


def plan_export(
    model: str | Path | Checkpoint,
    spec: PlateauSpec,
    output: Path,
    base: str | Path | Checkpoint | None,
    overwrite: bool,
    results: list[Path],
    push_to_hub: str | None,
    public: bool,
) -> ExportPlan:
    """Check an export; what is missing of models on the hub is downloaded once nothing else speaks against it.

    Args:
        model: folder or hub id of the MLLM.
        spec: what is merged.
        output: the new folder.
        base: the base LLM; None is the spec's own.
        overwrite: replace an export that is there.
        results: folders of runs for the card.
        push_to_hub: repository that it is pushed to; None where it is not.
        public: whether everybody may read that.

    Raises:
        ExportError: with everything that is wrong.
    """
    problems = Problems()
    if not spec.needs_ancestor:  # what nothing reads is not told
        spec = spec.model_copy(update={"ancestor": None})
    checkpoint, others = None, None
    with problems.collect():
        checkpoint = Checkpoint.open(model, role="model")
    with problems.collect():
        others = SpecCheckpoints.open(spec, base)
    opened = [one for one in (checkpoint, *(others or ())) if one is not None]
    if push_to_hub is not None:
        try:
            check_push(push_to_hub, public=public)
        except UploadError as error:
            problems += error.problems
    elif public:
        problems.append("--public is for --push-to-hub: name the repository")
    problems += check_output(output, [one.folder for one in opened if one.folder], overwrite=overwrite)
    problems += [f"--results {folder}: no such folder" for folder in results if not folder.exists()]
    if checkpoint is None or others is None:
        raise_any(problems)
    assert checkpoint is not None and others is not None
    merge, choice = None, Choice({}, ())
    files: dict[str, SourceFile] = {}
    with problems.collect():
        merge = plan_merge(spec, model=checkpoint, base=others.base, ancestor=others.ancestor)
    with problems.collect():
        choice = choose_files(checkpoint)
    names = [*choice.names, *sorted({checkpoint.weights, *checkpoint.weight_files})]
    if checkpoint.folder is not None:
        files = locate(checkpoint, names, problems)
    raise_any(problems)
    assert merge is not None
    with problems.collect():
        _check_space(output, names, checkpoint, others, merge)
    raise_any(problems)
    with problems.collect():
        checkpoint.prefetch(checkpoint.names())
    if not problems:
        problems += _absent(checkpoint)
    for other, needed in others.tensors(merge):
        with problems.collect():
            other.prefetch(needed)
    files = files or locate(checkpoint, names, problems)
    raise_any(problems)
    if more := named_by_code(choice, files):
        choice = Choice(
            {**choice.names, **dict.fromkeys(more, "named by code")},
            tuple(name for name in choice.left_out if name not in more),
        )
        files |= locate(checkpoint, more, problems)
    new_index = None
    with problems.collect():
        new_index = _converted_index(checkpoint)
        if checkpoint.weights.endswith((".bin", ".bin.index.json")):  # shared memory takes more, written one by one
            check_space(output, _converted_size(checkpoint) + sum(files[name].size for name in choice.names))
    if results:
        problems += _results_problems(results, spec, checkpoint, others, output)
    raise_any(problems)
    licences = {side: read_licence(one) for side, one in zip(("model", "base", "ancestor"), opened, strict=False)}
    plan = ExportPlan(spec, checkpoint, *others, merge, choice, files, new_index, licences, results, [])
    plan.notes.extend(_notes(plan))
    return plan


def raise_any(problems: list[str]) -> None:
    """Raise one ExportError of all `problems`, each told once; nothing happens where there are none."""
    if problems:
        raise ExportError(*dict.fromkeys(problems))


def _absent(checkpoint: Checkpoint) -> list[str]:
    """Tensors that an index puts into a file which does not hold them, each in words, the first ones alone."""
    problems = Problems()
    for name in checkpoint.names():
        with problems.collect():
            checkpoint.shape(name)
    more = [f"{checkpoint.name}: and {len(problems) - _SHOWN} more tensors"] if len(problems) > _SHOWN else []
    return [*problems[:_SHOWN], *more]


def _check_space(
    output: Path, names: Iterable[str], checkpoint: Checkpoint, others: SpecCheckpoints, merge: MergePlan
) -> None:
    """Raises ExportError where the disk has no room for the export, and for what is downloaded to the same disk."""
    size = sum(checkpoint.size(name) or 0 for name in names)
    downloads = [checkpoint.to_download(), *(other.to_download(needed) for other, needed in others.tensors(merge))]
    to_come = sum(count or 0 for missing in downloads for count in missing.values())
    if to_come and on_one_disk(output, Path(constants.HF_HUB_CACHE)):
        size += to_come
    check_space(output, size)


def _converted_size(checkpoint: Checkpoint) -> int:
    """Bytes of a `.bin` checkpoint's files as safetensors."""
    headers = [plan_header(tensors_of(checkpoint, file)) for file in checkpoint.weight_files]
    return sum(max([len(header), *(place.end for place in places.values())]) for header, places in headers)


def _results_problems(
    results: list[Path], spec: PlateauSpec, checkpoint: Checkpoint, others: SpecCheckpoints, output: Path
) -> list[str]:
    """Why runs cannot stand on the card; those of an export that is to be replaced by the same merge can."""
    from plam_eval.evaluation.exported_merge import ExportedMerge
    from plam_eval.publishing.card.results import ResultsError, read_results

    files = None
    if (output / FILE).is_file():
        before = read_export_record(output)
        files = {name: file.sha256 for name, file in before.files.items()} if before.digest == spec.digest() else None
    sides = describe_checkpoint(checkpoint), describe_checkpoint(others.base)
    ancestor = None if others.ancestor is None else describe_checkpoint(others.ancestor)
    try:
        read_results(results, ExportedMerge(spec, spec.digest(), *sides, files, ancestor))
    except ResultsError as error:
        return error.problems
    return []


def as_safetensors(name: str) -> str:
    """What a `.bin` file of this `name` is called as safetensors, as transformers would call it."""
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
    targets = {name: as_safetensors(name) for name in sorted(checkpoint.weight_files)}
    if len(set(targets.values())) < len(targets):
        problems.append(f"{checkpoint.name}: two of {', '.join(targets)} would get one name as safetensors; rename one")
    weight_map, size = {}, 0
    for name in checkpoint.names():
        weight_map[name] = targets[checkpoint.file(name)]
    for file in targets:
        try:
            places = plan_header(tensors_of(checkpoint, file))[1]
            size += sum(place.end - place.start for place in places.values())
        except CheckpointError as error:
            problems += [f"{checkpoint.name}: {file}: {problem}" for problem in error.problems]
    if problems:
        raise CheckpointError(*problems)
    if not checkpoint.weights.endswith(".index.json"):
        return None
    return {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}


def tensors_of(checkpoint: Checkpoint, file: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of every tensor in a file, by name.

    Args:
        checkpoint: that it belongs to.
        file: of weights.

    Raises:
        CheckpointError: one cannot be read.
    """
    names = [name for name in checkpoint.names() if checkpoint.file(name) == file]
    tensors = {name: checkpoint.tensor(name) for name in names}  # mapped
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


# ---- what a reader has to know ---------------------------------------------------------------------------------------


def _notes(plan: ExportPlan) -> list[str]:
    checkpoint, choice = plan.checkpoint, plan.choice
    notes = [_dtype_note(plan), *_merged_before(checkpoint)]
    if plan.converts:
        notes.append(
            f"The weights of {checkpoint.name} are .bin files ({listed(sorted(checkpoint.weight_files), _SHOWN)}); "
            "they are written as safetensors, each tensor with its own bits, under the corresponding names."
        )
        if shared := _shared(checkpoint):
            notes.append(
                f"Tensors that share memory in the .bin files are written one by one, as safetensors asks: "
                f"{listed(shared, _SHOWN)}."
            )
    if code := choice.of_kind("code"):
        notes.append(
            f"Python code comes along from {checkpoint.name} ({listed(code, _SHOWN)}); it runs only where a user "
            "passes trust_remote_code=True."
        )
    if more := choice.of_kind("named by code"):
        notes.append(f"Comes along because the code names it: {listed(more, _SHOWN)}.")
    notes += code_elsewhere(checkpoint, plan.files)
    try:
        checkpoint.check_read_by_vllm()
    except CheckpointError as error:
        notes.append(f"{error}. The export holds those of transformers alone.")
    if choice.left_out:
        notes.append(f"Left out of {checkpoint.name}: {listed(choice.left_out, _SHOWN)}.")
    missing = [kind for kind in ("tokenizer", "processor") if not choice.of_kind(kind)]
    if missing:
        notes.append(
            f"{checkpoint.name} has no files of a {' or a '.join(missing)}{_offline(checkpoint)}: the export "
            "loads only with those of somewhere else."
        )
    return notes


def _merged_before(checkpoint: Checkpoint) -> list[str]:
    """What is to be said of a model that is an export itself, as it says; nothing of its record is taken over."""
    path = checkpoint.find(FILE) if FILE in checkpoint.listing() else None
    if path is None or path.stat().st_size > _LARGEST_RECORD:
        return []
    try:
        digest = read_export_record(path.parent).digest
    except CheckpointError:
        return []
    named = f" (digest {digest})" if re.fullmatch("[0-9a-f]{64}", digest) else ""
    return [
        f"{checkpoint.name} is itself an export, of another merge{named}: this one is made of its tensors, merged ones "
        "included, and its base LLM is not named here."
    ]


def _offline(checkpoint: Checkpoint) -> str:
    if checkpoint.folder is None and constants.is_offline_mode():
        return " in the local cache, and the hub is not asked, as HF_HUB_OFFLINE is set"
    return ""


def _dtype_note(plan: ExportPlan) -> str:
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
