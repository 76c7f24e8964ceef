"""A tiny Llama, a stand-in for MLLM and base alike where the layout of names does not matter, and its faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from plam_eval.spec import PlateauSpec, load_spec

LAYERS = 3
Edit = Callable[[dict[str, Tensor], dict[str, Any]], None]


def write_llama(folder: Path, seed: int, *, dtype: torch.dtype = torch.float32, edit: Edit | None = None) -> Path:
    """A random Llama with biases on q, k, v, o; `edit` may change tensors and config before they are written."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=16,
        attention_bias=True,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (torch.randn(value.shape, generator=generator) * 0.3).to(dtype)
        for name, value in LlamaForCausalLM(config).state_dict().items()
    }
    content = {**config.to_dict(), "dtype": str(dtype).removeprefix("torch.")}
    if edit:
        edit(tensors, content)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(content))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def shard(folder: Path, *, bin: bool = False) -> Path:
    """Rewrites a one-file checkpoint as one shard per decoder layer and one for the rest, with an index."""
    from safetensors.torch import load_file

    from plam_eval.merging.names import decoder_tensor

    stem, suffix = ("pytorch_model", ".bin") if bin else ("model", ".safetensors")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key = decoder_tensor(name)
        number = LAYERS + 1 if key is None else key[0] + 1
        shards.setdefault(f"{stem}-{number:05}-of-{LAYERS + 1:05}{suffix}", {})[name] = tensor.clone()
    for file, content in shards.items():
        if bin:
            torch.save(content, folder / file)
        else:
            save_file(content, folder / file)
    weight_map = {name: file for file, content in shards.items() for name in content}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def bits(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, as bytes: equal only where every bit is, NaN and -0.0 included."""
    return {
        name: tensor.detach().clone().flatten().contiguous().view(torch.uint8)
        for name, tensor in module.state_dict().items()
        if not tensor.is_meta
    }


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    after = bits(module)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@dataclass(frozen=True)
class Pair:
    mllm: Path
    base: Path

    def spec(self, **overrides: Any) -> PlateauSpec:
        spec = load_spec(None, {"base": str(self.base), "layers": "1:3", **overrides})
        assert spec is not None
        return spec
