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
    model: str | Path | None,
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
        model: folder or hub id of the MLLM; the spec's own if None.
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
        SpecError: listing every problem of the spec. InputError: there is nothing to merge, or no model is named.
            ExportError: listing every problem of the checkpoints and the output; nothing was written. FolderError:
            another process writes there.
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
    name = model if model is not None else spec.model
    if name is None:
        raise InputError(f"plateau {plateau} names no model; give one with --model")

    from plam_eval.publishing.checkpoint import export_checkpoint

    words = ["plam", "export", "--model", str(name)]
    if plateau is None or isinstance(plateau, (str, Path)):
        given = {"plateau": plateau, **overrides}
        words += [word for key, value in given.items() if value is not None for word in _option(key, value)]
    else:
        words += ["--plateau", "plateau.yaml"]  # as the export has it, overrides and all
    return export_checkpoint(
        name, spec, output, overwrite=overwrite, command=shlex.join([*words, "--output", str(output)])
    )


def _option(key: str, value: Any) -> tuple[str, str]:
    """An option of the command line, and its value as that takes it."""
    if not isinstance(value, str) and isinstance(value, Sequence):
        value = (":" if key == "layers" else "+").join(map(str, value))
    return f"--{key.replace('_', '-')}", str(value)
