"""An ancestor for the embedded pair, which has none."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from plam_eval.merging.names import decoder_tensor
from tests.helpers.paths import PAIR


def write_ancestor(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A third checkpoint for the embedded pair: halfway between MLLM and base in every decoder layer."""
    shutil.copytree(PAIR / "base", folder)
    base, mllm = (load_file(PAIR / side / "model.safetensors") for side in ("base", "mllm"))
    by_key = {decoder_tensor(name): tensor for name, tensor in mllm.items()}
    halves = {
        name: tensor if (key := decoder_tensor(name)) is None else (tensor.float() + by_key[key].float()) / 2
        for name, tensor in base.items()
    }
    save_file({name: tensor.to(dtype) for name, tensor in halves.items()}, folder / "model.safetensors")
    return folder
