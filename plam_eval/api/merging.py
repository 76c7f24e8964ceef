"""Merging into a model that is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.api.shared import Weight, overrides_of
from plam_eval.arguments import takes
from plam_eval.errors import ArgumentError, InputError
from plam_eval.spec import PlateauSpec, load_spec

if TYPE_CHECKING:
    from torch import nn

    from plam_eval.merging.report import MergeReport


_FROM_PARAMETERS = "_plam_from_parameters"  # kept on a model that was merged so


@takes()
def merge(
    model: nn.Module,
    plateau: str | Path | Mapping[str, Any] | PlateauSpec | None,
    *,
    base: str | Path | None = None,
    layers: str | Sequence[int] | None = None,
    modules: str | Sequence[str] | None = None,
    model_weight: Weight | None = None,
    base_weight: Weight | None = None,
    rule: str | None = None,
    seed: int | None = None,
    parameters: str | Mapping[str, float] | None = None,
    ancestor: str | Path | None = None,
    pretrained: str | Path | None = None,
    from_parameters: bool = False,
) -> MergeReport:
    """Bring a loaded Hugging Face model to a plateau spec, in place, whatever it was merged by before.

    The model may be on any devices, in float32, bfloat16 or float16. Its tensors become
    `model_weight * W_model + base_weight * W_base` (of the rule `weighted_sum`), computed in float32 from both
    checkpoints' own tensors and rounded once to the model's dtype; all tensors that the spec does not name keep their
    bits. `merge(model, "none")` puts every merged tensor back, to the bit.

    Args:
        model: what `from_pretrained` gave: a decoder whose layers are found by name. (A wrapper of ours has a method
            `merge` of its own.)
        plateau: name of a packaged spec, path of a YAML file, a mapping, or a spec. None or "none" with `base` and
            `layers` makes one (q, k, v, o; 0.9 + 0.3), and without them means the plain model.
        base: base LLM, folder or hub id, in place of the spec's.
        layers: decoder layers, 0-based, end exclusive: "24:36" or (24, 36); a set as "3+9+20".
        modules: "q_proj+k_proj", a group (qkvo, qk, vo, mlp, all), or a list of either.
        model_weight: coefficient of the MLLM; "0.9:0.5" and [0.9, 0.5] are ramps over the layers.
        base_weight: coefficient of the base LLM, likewise; the two need not sum to one.
        rule: the merge rule or control.
        seed: of a rule that draws.
        parameters: of a rule that has some: numbers by name, or "density:0.2+gamma:0.01".
        ancestor: what MLLM and base were both tuned from, folder or hub id, of a rule that takes it.
        pretrained: folder or hub id of the checkpoint that `model` was loaded from; by default the one that it names
            itself (`model.name_or_path`).
        from_parameters: take the model's own parameters for W_model, because no checkpoint holds them (it was trained
            here). Such a model is merged once and cannot be put back.

    Returns:
        What was merged: tensors, bytes read, seconds, and the relative change of each layer (a number without unit).

    Raises:
        SpecError: listing every problem of the spec. MergeError: a base that is not there, or every tensor that does
            not fit, or is not the checkpoint's. CheckpointError: no such checkpoint of `model`. ArgumentError: `model`
            is none. The model is then as it was.
    """
    overrides = overrides_of(base, layers, modules, model_weight, base_weight, rule, seed, parameters, ancestor)
    if not hasattr(model, "named_parameters"):
        own = "; a wrapper's own method is wrapper.merge(plateau)" if hasattr(model, "merge") else ""
        raise ArgumentError(f"model is a {type(model).__name__}; expected what from_pretrained gives{own}")
    if from_parameters and pretrained is not None:
        raise InputError(f"pretrained={pretrained} and from_parameters: give one of them")
    spec = load_spec(plateau, overrides)

    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.merging.merge import merge_in_place

    checkpoint = None
    name = pretrained if pretrained is not None else getattr(model, "name_or_path", None)
    if not (from_parameters or getattr(model, _FROM_PARAMETERS, False)) and name:
        revision = None if pretrained is not None else getattr(getattr(model, "config", None), "_commit_hash", None)
        checkpoint = Checkpoint.open(name, revision, role="pretrained")
    report = merge_in_place(model, spec, checkpoint=checkpoint)
    if from_parameters:
        setattr(model, _FROM_PARAMETERS, True)
    return report
