"""The embedded pair with a known effect planted in it, or known to have none: what a sweep must see, and must not.

The MLLM's late attention gets noise of known size: each tensor W of `MODULES` in the last two decoder layers becomes
scale * (W + damage * norm(W) * G / norm(G)), G Gaussian (Frobenius norms). Beside it stands one of four bases
(`BASES`):

- `undamaged`  the MLLM's own decoder without the noise: a merge repairs by construction. With weights (a, b) the
               merged tensor is that of the undamaged MLLM times a + b, with noise of a / (a + b) times the size; with
               weights that sum to one it is that of an MLLM that was damaged a times as much.
- `own`        the pair's own base: the same share of the noise goes, and what the base differs in comes.
- `itself`     the damaged MLLM's decoder: a merge multiplies by a + b, and nothing else.
- `noisy`      that decoder plus noise, its projections as far from the damaged MLLM's as those of the pair's own base:
               a merge changes as much as with the own base, in a random direction.

Only `own` and `undamaged` know anything that the damaged MLLM does not. With a scale of 3, say, weights that sum to a
third repair with every base, and no base has a part in that.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from plam_eval.errors import FolderError, InputError, did_you_mean, quoted
from plam_eval.merging.names import Key, decoder_tensor

if TYPE_CHECKING:
    from torch import Tensor

BASES = ("undamaged", "own", "itself", "noisy")
REPAIRING = ("undamaged", "own")
"""The bases that know what the damaged MLLM has lost."""

LAYERS = (6, 7)
"""Decoder layers that are damaged: the last two of the pair's eight."""

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class DamagedPair:
    """A damaged MLLM and a base to merge into it.

    Attributes:
        mllm: folder of the MLLM, as `pretrained=` takes it.
        base: folder of the base LLM, as `base=` takes it.
    """

    mllm: Path
    base: Path


def write_damaged(
    folder: str | Path, damage: float, base: str = "undamaged", seed: int = 0, scale: float = 1.0
) -> DamagedPair:
    """Write a damaged MLLM and a base into `folder`, as `mllm` and `base`; all other tensors stay bit-identical.

    The damage depends on `seed` alone, not on `base`: the same MLLM can be merged with each of the bases.

    Args:
        folder: a new one, or an empty one.
        damage: norm of the noise in a tensor over the tensor's own norm; 0 leaves the MLLM as it is.
        base: one of `BASES`.
        seed: of all noise.
        scale: what the damaged tensors are multiplied by.

    Raises:
        InputError: `damage`, `base`, `seed` or `scale` are not such. FolderError: `folder` holds something.
    """
    from safetensors.torch import load_file

    _check(damage, base, seed, scale)
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise FolderError(f"{folder}: holds something; name a new folder, or an empty one")
    pair = Path(str(resources.files("plam_eval.demo") / "pair"))
    undamaged, own = load_file(pair / "mllm" / WEIGHTS), load_file(pair / "base" / WEIGHTS)
    damaged = {
        name: scale * _with_noise(tensor, damage * float(tensor.norm()), f"damage:{seed}:{name}")
        for name, tensor in undamaged.items()
        if _is_projection(decoder_tensor(name), LAYERS)
    }
    after = {**undamaged, **damaged}
    places = {key: name for name in undamaged if (key := decoder_tensor(name)) is not None}
    in_base = {name: places[key] for name in own if (key := decoder_tensor(name)) is not None}
    changed: dict[str, Tensor] = {}
    if base == "undamaged":
        changed = {name: undamaged[place] for name, place in in_base.items()}
    elif base == "itself":
        changed = {name: after[place] for name, place in in_base.items()}
    elif base == "noisy":
        changed = {name: after[place] for name, place in in_base.items()}
        changed |= {
            name: _with_noise(tensor, float((own[name] - tensor).norm()), f"base:{seed}:{name}")
            for name, tensor in changed.items()
            if _is_projection(decoder_tensor(name))
        }
    written = DamagedPair(folder / "mllm", folder / "base")
    _write(pair / "mllm", written.mllm, undamaged, damaged)
    _write(pair / "base", written.base, own, changed)
    return written


def _check(damage: float, base: str, seed: int, scale: float) -> None:
    problems = []
    if not (math.isfinite(damage) and damage >= 0):
        problems.append(f"damage is {damage}: expected a share of the tensors' norm, 0 or more")
    if not (math.isfinite(scale) and scale > 0):
        problems.append(f"scale is {scale}: expected a factor above 0")
    if base not in BASES:
        problems.append(f"base is {quoted(base)}{did_you_mean(base, BASES)}: expected one of {', '.join(BASES)}")
    if seed < 0:
        problems.append(f"seed is {seed}: expected 0 or more")
    if problems:
        raise InputError(*problems)


def _is_projection(key: Key | None, layers: tuple[int, ...] | None = None) -> bool:
    """Whether a decoder tensor is an attention projection, of one of `layers` where they are given."""
    if key is None or (layers is not None and key[0] not in layers):
        return False
    return key[1] in {f"self_attn.{module}.weight" for module in MODULES}


def _with_noise(tensor: Tensor, norm: float, drawn_for: str) -> Tensor:
    """A tensor plus Gaussian noise of this norm.

    Drawn otherwise than the control `noise` of a sweep, whose direction would else be that of the damage.
    """
    import torch

    digest = hashlib.sha256(drawn_for.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    noise = torch.randn(tensor.shape, generator=generator)
    return tensor + noise * (norm / noise.norm()) if norm else tensor


def _write(source: Path, target: Path, tensors: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> None:
    """Copy the files of a checkpoint, with other tensors in the places of some."""
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.name != WEIGHTS:
            shutil.copyfile(file, target / file.name)
    whole = {name: changed.get(name, tensor).clone() for name, tensor in tensors.items()}
    save_file(whole, target / WEIGHTS, metadata={"format": "pt"})
