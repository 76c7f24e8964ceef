"""Publishing what was merged and measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.arguments import NAME, PATH, takes
from plam_eval.errors import InputError
from plam_eval.spec import PlateauSpec, load_spec

if TYPE_CHECKING:
    from plam_eval.publishing.checkpoint import Export


@takes(model=NAME, output=PATH, base=NAME)
def export(
    model: str | Path,
    plateau: str | Path | Mapping[str, Any] | PlateauSpec | None,
    output: str | Path,
    *,
    base: str | Path | None = None,
    layers: str | Sequence[int] | None = None,
    modules: str | Sequence[str] | None = None,
    model_weight: float | None = None,
    base_weight: float | None = None,
    rule: str | None = None,
    seed: int | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a merged checkpoint in the MLLM's own layout, which loads wherever the MLLM itself does.

    Files that nothing is merged into are copied byte for byte; merged tensors have the bits of `merge` on a model that
    was loaded in their stored dtype. Nothing is loaded into a model: memory is that of two tensors.

    Args:
        model: folder or hub id of the MLLM.
        plateau: as for `merge`; "none" with `base` and `layers` makes one.
        output: the new folder. It has this name only once it is complete.
        base: as for `merge`.
        layers: as for `merge`.
        modules: as for `merge`.
        model_weight: as for `merge`.
        base_weight: as for `merge`.
        rule: as for `merge`.
        seed: as for `merge`.
        overwrite: replace an export that is there, once the new one is complete.

    Returns:
        Its folder and its record: SHA-256 of every file that was read or written, the merge, notes for readers.

    Raises:
        SpecError: listing every problem of the spec. InputError: there is nothing to merge. ExportError: listing
            every problem of the checkpoints and the output; nothing was written. FolderError: another process writes
            there.
    """
    overrides = {
        "base": None if base is None else str(base),
        "layers": layers,
        "modules": modules,
        "model_weight": model_weight,
        "base_weight": base_weight,
        "rule": rule,
        "seed": seed,
    }
    spec = load_spec(plateau, overrides)
    if spec is None:
        raise InputError("plateau none: nothing would be merged, and the plain model is there already; name a plateau")

    from plam_eval.publishing.checkpoint import SPEC_FILE, export_checkpoint

    named = str(plateau) if isinstance(plateau, (str, Path)) else SPEC_FILE if plateau is not None else "none"
    words = ["plam", "export", "--model", str(model), "--plateau", named, "--output", str(output)]
    if named != SPEC_FILE or isinstance(plateau, (str, Path)):  # the file of a spec has the overrides in it
        for key, value in overrides.items():
            if value is not None:
                words += [f"--{key.replace('_', '-')}", _written(key, value)]
    return export_checkpoint(model, spec, output, overwrite=overwrite, command=shlex.join(words))


def _written(key: str, value: Any) -> str:
    """An override as the command line takes it."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return str(value)
    return (":" if key == "layers" else "+").join(map(str, value))
