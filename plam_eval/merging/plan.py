"""What a merge would do and why it may not: every check that headers and configs allow, before a weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plam_eval import hub
from plam_eval.errors import MergeError, near_names
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.geometry import decoder_geometry
from plam_eval.merging.names import Key, by_layer, decoder_prefixes, decoder_tensor
from plam_eval.spec import MODULES, PlateauSpec, SpecError

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Problems(list[str]):
    """Problems found so far, so that one `MergeError` can tell them all."""

    @contextmanager
    def collect(self) -> Iterator[None]:
        """While entered, add what a `MergeError` says instead of raising it."""
        try:
            yield
        except MergeError as error:
            self += error.problems or [str(error)]

    def raise_any(self) -> None:
        """Raise one `MergeError` of all of them, each told once; nothing happens where there are none."""
        if self:
            raise MergeError(*dict.fromkeys(self))


class Parameters:
    """A loaded module seen as a checkpoint: its parameters are both a source of tensors and what is written.

    Args:
        module: as transformers loads it.
    """

    bytes_read = 0

    def __init__(self, module: nn.Module) -> None:
        self.name = f"{type(module).__name__} in memory"
        self.config = getattr(module, "config", None)
        self._tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        self._tensors.update(module.named_buffers())  # where GPTQ and AWQ keep qweight
        self._shared = _overlaps(module)

    def names(self) -> list[str]:
        """Of all parameters and buffers."""
        return list(self._tensors)

    def file(self, name: str) -> str:
        """Where the tensor `name` is, for messages: all of them are in memory."""
        return "memory"

    def shape(self, name: str) -> tuple[int, ...]:
        """Elements of the tensor `name` in each dimension."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Of the tensor `name`."""
        return self._tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` itself, without its gradient: what is written to it is written to the module."""
        return self._tensors[name].detach()

    def problem(self, name: str) -> str | None:
        """Why the parameter `name` cannot be merged into: sharded, quantised, offloaded, shared. None where it can."""
        tensor = self._tensors[name]
        kinds = {kind.__name__ for kind in type(tensor).__mro__} | {type(tensor.data).__name__}
        if hasattr(tensor, "ds_id") or hasattr(tensor, "ds_tensor"):
            why = "is sharded by DeepSpeed ZeRO-3; merge before deepspeed.initialize, or use ZeRO-2"
        elif "DTensor" in kinds:
            why = "is a DTensor, sharded by FSDP or tensor parallelism; merge before sharding"
        elif kinds & {"Params4bit", "Int8Params"}:
            why = f"is quantised by bitsandbytes ({type(tensor).__name__}); load the model unquantised"
        elif tensor.is_meta:
            why = "is offloaded (meta device); load the model without CPU or disk offloading"
        elif not isinstance(tensor, nn.Parameter):
            why = "is a buffer; expected a parameter"
        elif not kinds <= {"Parameter", "Tensor", "TensorBase", "_TensorBase", "object"}:
            why = f"is a {type(tensor).__name__}; expected a plain torch parameter"
        elif name in self._shared:
            why = f"shares its storage with {self._shared[name]}; merging one would change the other"
        else:
            return None
        return f"{self.name}: {name} {why}"


def _overlaps(module: nn.Module) -> dict[str, str]:
    """name -> another tensor of the module that lies in the same memory."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    spans = sorted(
        (str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, name)
        for name, tensor in tensors
        if type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and tensor.nbytes
    )
    shared: dict[str, str] = {}
    last = ("", 0, 0, "")  # of the spans so far, the one that reaches furthest
    for span in spans:
        if span[0] == last[0] and span[1] < last[2]:
            shared.setdefault(span[3], last[3])
            shared.setdefault(last[3], span[3])
        if span[0] != last[0] or span[2] > last[2]:
            last = span
    return shared


Source = Checkpoint | Parameters


def locate_tensors(source: Source, spec: PlateauSpec, problems: Problems) -> dict[Key, str]:
    """(layer, suffix) -> name of every tensor the spec names: weights, and biases where there are any.

    Args:
        source: what is looked through.
        spec: names layers and modules.
        problems: what is missing, ambiguous, quantised or sharded is added to it.
    """
    layers = by_layer(source.names())
    sharded = [name for name in source.names() if "_flat_param" in name or "_fsdp_wrapped_module" in name]
    if sharded:
        problems.append(f"{source.name}: {sharded[0]} says it is sharded by FSDP; merge before wrapping the model")
        return {}
    if not layers:
        problems.append(
            f"{source.name}: no decoder layers; expected names such as model.layers.0.self_attn.q_proj.weight"
        )
        return {}
    prefixes = decoder_prefixes(source.names())
    if len(prefixes) > 1:
        several = ", ".join(f"{prefix}layers" for prefix in prefixes)
        problems.append(
            f"{source.name}: has decoder layers of several prefixes ({several}), expected one; it "
            "cannot be told which of them is the language decoder"
        )
    gap = _gap(layers)
    if gap is not None:
        problems.append(
            f"{source.name}: has no tensor of layer {gap}, but some of layer {max(layers)}; download it again"
        )
        return {}
    depth = _depth(source, layers)
    if spec.layers[-1] >= depth:
        try:
            spec.check_layers(depth, source.name)
        except SpecError as error:
            problems += error.problems
    names_of: dict[Key, str] = {}
    for layer in (layer for layer in spec.layers if layer < depth):
        suffixes = layers.get(layer, {})
        for module in (MODULES[name] for name in spec.modules):
            stored = {
                s.removeprefix(module + "."): names for s, names in suffixes.items() if s.startswith(module + ".")
            }
            foreign = sorted(set(stored) - {"weight", "bias"})
            place = f"{source.name}: layer {layer}, {module}"
            if foreign:
                problems.append(
                    f"{place}: found {', '.join(foreign)}, expected weight and bias only; quantised (GPTQ, AWQ, FP8, "
                    "...) or adapted (LoRA) weights cannot be merged. Use the full-precision model, adapters folded in"
                )
            elif "weight" not in stored:
                near = near_names(module + ".weight", suffixes, most=3, cutoff=0.0)
                problems.append(
                    f"{place}.weight: missing; {_fused(module, suffixes)}nearest in this layer: "
                    f"{', '.join(near) or 'nothing'}"
                )
            for kind in sorted(set(stored) & {"weight", "bias"}):
                with problems.collect():
                    names_of[layer, f"{module}.{kind}"] = _single(source, stored[kind], place)
    return names_of


_FUSED = re.compile(r"qkv|query_key_value|W_pack|c_attn|Wqkv|wqkv")
_FUSED_MLP = re.compile(r"(^|\.)(gate_up_proj|experts)(\.|$)")


def _fused(module: str, suffixes: Iterable[str]) -> str:
    """Why a layer has no such module, where its other tensors tell: several modules in one, or experts."""
    block = module.split(".")[0]
    for suffix in sorted(suffixes, key=lambda suffix: (not suffix.endswith("weight"), suffix)):
        if block == "self_attn" and _FUSED.search(suffix):
            return f"this model keeps q, k and v in one tensor ({suffix}), which is not split for a merge; "
        if block == "mlp" and (fused := _FUSED_MLP.search(suffix)):
            if fused[2] == "experts":
                return (
                    f"this model has a mixture of experts here ({suffix}), whose experts are not merged; leave it at "
                    "attention modules (modules: q_proj+k_proj+v_proj+o_proj); "
                )
            return f"this model keeps gate and up projection in one tensor ({suffix}), which is not split for a merge; "
    return ""


def _single(source: Source, names: list[str], place: str) -> str:
    if len(names) > 1:
        raise MergeError(f"{place}: stored {len(names)} times, as {', '.join(names)}; expected one")
    problem = source.problem(names[0]) if isinstance(source, Parameters) else None
    if problem:
        raise MergeError(problem)
    dtype = source.dtype(names[0])
    if dtype not in FLOATS:
        raise MergeError(
            f"{source.name}: {names[0]} in {source.file(names[0])} is {dtype}; expected float32, bfloat16, float16 or "
            "float64. Quantised weights cannot be merged: use the full-precision model"
        )
    return names[0]


def decoder_names(source: Source) -> dict[Key, str]:
    """(layer, suffix) -> name of every decoder tensor of a source.

    Args:
        source: a checkpoint or a loaded module.
    """
    return {key: name for name in source.names() if (key := decoder_tensor(name)) is not None}


def compare_tensors(
    one: Source, one_names: dict[Key, str], other: Source, other_names: dict[Key, str], problems: Problems
) -> None:
    """Note every tensor whose shapes differ, and every bias that only one side has.

    Args:
        one: a source.
        one_names: its tensors, by layer and suffix.
        other: the source that it has to be like.
        other_names: that one's.
        problems: what differs is added to it.
    """
    for key in sorted(one_names.keys() & other_names.keys()):
        name, other_name = one_names[key], other_names[key]
        with problems.collect():
            shape, other_shape = one.shape(name), other.shape(other_name)
            if shape != other_shape:
                problems.append(
                    f"{name} is {list(shape)} in {one.name} ({one.file(name)}), but {other_name} is "
                    f"{list(other_shape)} in {other.name} ({other.file(other_name)}); expected equal shapes, as "
                    "between an MLLM and the very LLM it was built from"
                )
    for key in sorted(one_names.keys() ^ other_names.keys()):
        weight = (key[0], key[1].removesuffix("bias") + "weight")
        # Where a weight is missing, too, its own problem says it.
        if key[1].endswith(".bias") and weight in one_names and weight in other_names:
            has, lacks = (one, other) if key in one_names else (other, one)
            problems.append(
                f"layer {key[0]}, {key[1]}: in {has.name} but not in {lacks.name}; expected both or neither"
            )


def _gap(layers: Mapping[int, Any]) -> int | None:
    """The first layer that is missing in front of another."""
    return next((layer for layer in range(len(layers)) if layer not in layers), None)


def _depth(source: Source, layers: Mapping[int, Any]) -> int:
    """Decoder layers of a source: those with tensors, without any that its config does not count.

    Behind them some checkpoints keep layers that predict further tokens, which are no part of the decoder.
    """
    said = None
    if source.config is not None:
        with Problems().collect():  # a config that cannot be read is told by _compare_configs
            said = decoder_geometry(source.config)["num_hidden_layers"]
    return min(len(layers), said) if said else len(layers)


def _compare_layers(model: Source, base: Checkpoint, spec: PlateauSpec, problems: Problems) -> None:
    """Note where layer n of the MLLM cannot be layer n of the base: other depth, or other layers in between."""
    mine, theirs = by_layer(model.names()), by_layer(base.names())
    if not mine or not theirs or _gap(mine) is not None or _gap(theirs) is not None:
        return  # told by locate_tensors
    depths = _depth(model, mine), _depth(base, theirs)
    lacking = [{n for n, layer in layers.items() if not _kinds(layer) & {"self_attn"}} for layers in (mine, theirs)]
    nowhere = "layers cannot be mapped onto each other yet, so only decoders of equal layers can be merged"
    if depths[0] != depths[1]:
        between = lacking[0] - lacking[1]
        cross = f" Layers {_some(between)} of the former have no self-attention." if between else ""
        problems.append(
            f"{model.name} has {depths[0]} decoder layers, {base.name} has {depths[1]}; layer n of the one is not "
            "layer n of the other, as where cross-attention layers stand in between or layers were cut off."
            f"{cross} {nowhere}"
        )
    for layer in sorted(n for n in lacking[0] ^ lacking[1] if n < min(*depths, spec.layers[-1] + 1)):
        has, lacks = (base, model) if layer in lacking[0] else (model, base)
        kinds = ", ".join(sorted(_kinds((mine if lacks is model else theirs)[layer])))
        problems.append(
            f"layer {layer} has self-attention in {has.name}, but not in {lacks.name} (it has {kinds}): from there on "
            f"layer n of the one is not layer n of the other. {nowhere}"
        )


def _kinds(layer: Mapping[str, Any]) -> set[str]:
    return {suffix.split(".")[0] for suffix in layer}


def _some(numbers: Iterable[int]) -> str:
    listed = sorted(numbers)
    return ", ".join(map(str, listed[:10])) + (", ..." if len(listed) > 10 else "")


def _compare_configs(model: Source, base: Checkpoint, problems: Problems, warnings: list[str]) -> None:
    sizes: list[dict[str, Any]] = []
    for source in (model, base):
        if source.config is None:
            warnings.append(f"{source.name} has no config: heads and head size are not compared with the base's")
            continue
        config = source.config if isinstance(source.config, Mapping) else source.config.to_dict()
        for section in (config, config.get("text_config"), config.get("llm_config")):
            quantised = section.get("quantization_config") if isinstance(section, Mapping) else None
            if quantised:
                method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
                problems.append(
                    f"{source.name}: quantised ({method or 'unnamed method'}), says its config; use the full-precision "
                    "model"
                )
        try:
            sizes.append(decoder_geometry(source.config))
        except MergeError as error:
            problems += [f"{source.name}: {problem}" for problem in error.problems]
    if len(sizes) < 2:
        return
    for field in sizes[0]:
        mine, theirs = (size[field] for size in sizes)
        if mine == theirs or mine is None or theirs is None or field == "num_hidden_layers":
            continue  # the depth is compared with what the files hold, by _compare_layers
        text = f"{field}: {mine} in {model.name} (config), {theirs} in {base.name} (config)"
        if field in ("rms_norm_eps", "rope_theta"):
            warnings.append(f"{text}; is this the LLM that the MLLM was built from?")
        else:
            problems.append(f"{text}; expected equal values, as between an MLLM and the very LLM it was built from")


def _made_for(name: str, model: Checkpoint) -> bool:
    """Whether a spec's `model` can mean this checkpoint: owners are left out, revisions count where both have one."""
    repository = hub.repository_of(name)
    if Path(repository).name != Path(model.model_name).name:
        return False
    revision = hub.split_revision(name)[1] if repository != name else None
    mine = {hub.split_revision(model.name)[1], model.recorded_commit} - {None}
    return revision is None or not mine or revision in mine


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor that a merge would change."""

    layer: int
    suffix: str
    model_name: str
    base_name: str
    shape: tuple[int, ...]
    model_dtype: torch.dtype
    base_dtype: torch.dtype
    ancestor_name: str | None = None
    ancestor_dtype: torch.dtype | None = None

    @property
    def key(self) -> Key:
        """Layer and suffix, by which either side's tensor is known."""
        return self.layer, self.suffix


@dataclass(frozen=True)
class MergePlan:
    """What a merge would do, known from headers and configs alone. Bytes are those to read from each side.

    `ancestor` is the third checkpoint, where the rule takes one.
    """

    spec: PlateauSpec
    tensors: tuple[PlannedTensor, ...]
    model_bytes: int
    base_bytes: int
    warnings: tuple[str, ...]
    ancestor: Checkpoint | None = None
    ancestor_bytes: int = 0

    @property
    def bytes(self) -> int:
        """To read of all sides together."""
        return self.model_bytes + self.base_bytes + self.ancestor_bytes


def open_ancestor(spec: PlateauSpec) -> Checkpoint | None:
    """The ancestor that a merge takes tensors of; None where it takes none.

    Args:
        spec: what to merge.

    Raises:
        MergeError: it is not there, or no checkpoint.
    """
    return Checkpoint.open(str(spec.ancestor), role="ancestor") if spec.needs_ancestor else None


def plan_merge(
    spec: PlateauSpec,
    *,
    model: Source,
    base: Checkpoint,
    target: Parameters | None = None,
    ancestor: Checkpoint | None = None,
) -> MergePlan:
    """Check a merge without reading a weight.

    Args:
        spec: what to merge.
        model: where W_mllm is read from: a checkpoint, or a loaded module.
        base: the base LLM.
        target: the parameters that the results will be written to, if they are to be checked as well.
        ancestor: the ancestor of a rule that takes one; None is the spec's own.

    Raises:
        MergeError: listing every problem: layers or modules missing or ambiguous on either side, unequal shapes or
            geometry, dtypes that are not floating, files missing or corrupt.
    """
    problems, warnings = Problems(), list[str]()
    model_names, base_names = locate_tensors(model, spec, problems), locate_tensors(base, spec, problems)
    compare_tensors(model, model_names, base, base_names, problems)
    ancestor_names = dict[Key, str]()
    if not spec.needs_ancestor:
        ancestor = None
    elif ancestor is None:
        with problems.collect():
            ancestor = open_ancestor(spec)
    if ancestor is not None:
        ancestor_names = locate_tensors(ancestor, spec, problems)
        compare_tensors(model, model_names, ancestor, ancestor_names, problems)
        _compare_layers(model, ancestor, spec, problems)
        _compare_configs(model, ancestor, problems, warnings)
    if target is not None and target is not model:
        compare_tensors(target, locate_tensors(target, spec, problems), model, model_names, problems)
    _compare_layers(model, base, spec, problems)
    _compare_configs(model, base, problems, warnings)
    if spec.model and isinstance(model, Checkpoint) and not _made_for(spec.model, model):
        warnings.append(f"the spec was made for {spec.model}, and this is {model.name}")
    problems.raise_any()
    tensors = tuple(
        PlannedTensor(
            *(*key, name, base_names[key], model.shape(name), model.dtype(name), base.dtype(base_names[key])),
            *((ancestor_names[key], ancestor.dtype(ancestor_names[key])) if ancestor is not None else ()),
        )
        for key, name in sorted(model_names.items())
    )
    model_bytes = sum(math.prod(t.shape) * t.model_dtype.itemsize for t in tensors)
    base_bytes = sum(math.prod(t.shape) * t.base_dtype.itemsize for t in tensors)
    third = sum(math.prod(t.shape) * t.ancestor_dtype.itemsize for t in tensors if t.ancestor_dtype is not None)
    return MergePlan(spec, tensors, model_bytes, base_bytes, tuple(dict.fromkeys(warnings)), ancestor, third)
