"""Which files of a checkpoint hold its weights, by their names alone: as transformers and vLLM choose, or why not."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

# In the order in which transformers looks for them (modeling_utils._get_resolved_checkpoint_files).
CANDIDATES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = "adapter_config.json"

# What vLLM leaves out of *.bin and *.pt (weight_utils.filter_files_not_needed_for_inference).
_TRAINING = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")

_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+(\.safetensors|\.bin)")
_CONVERT = (
    "convert them with the script that transformers has for this architecture, or pass the repository in Hugging Face "
    "format, if there is one"
)
_OTHER = (".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz", ".pkl", ".tflite", ".mlmodel")


def choose(files: Collection[str]) -> str | None:
    """The file by which transformers finds the weights: one file, or an index of several.

    Args:
        files: names in the folder or repository; None comes back where none of `CANDIDATES` is among them.
    """
    return next((name for name in CANDIDATES if name in files), None)


def index_beside(chosen: str, files: Collection[str]) -> str | None:
    """The index of the same format that lies beside a one-file checkpoint: transformers ignores it, vLLM does not.

    Args:
        chosen: the one file, as `choose` gives it.
        files: names in the folder or repository.
    """
    index = f"{chosen}.index.json"
    return index if index in files else None


def read_by_vllm(files: Collection[str], indexed: Mapping[str, Collection[str]]) -> set[str]:
    """The weight files that vLLM's default loader reads (0.32, load_format "auto").

    Args:
        files: names in the checkpoint's folder, without those in folders below it.
        indexed: for each index in the folder, the files that its weight_map names.
    """

    def matching(pattern: str) -> set[str]:
        return {name for name in files if fnmatchcase(name, pattern) and not name.startswith(".")}

    for pattern, index in (
        ("consolidated*.safetensors", "consolidated.safetensors.index.json"),
        ("*.safetensors", "model.safetensors.index.json"),
    ):
        if names := matching(pattern):
            return names & set(indexed[index]) if index in indexed else names
    for pattern in ("*.bin", "*.pt"):
        if names := matching(pattern):
            return {name for name in names if not name.endswith(_TRAINING)}
    return set()


def instead(files: Collection[str], adapter: Any = None) -> str:
    """What lies where no checkpoint is, and what to do about it: the rest of a sentence that begins with its name.

    Args:
        files: names in the folder or repository, with those in folders below it ("snapshots/...").
        adapter: content of adapter_config.json, if it is there and can be read.
    """

    nested = sorted({name.split("/")[0] for name in files if name.endswith("/config.json")})
    # Where there are checkpoints below it, the weights below it are theirs.
    looked_at = [name for name in files if not nested or "/" not in name or name.startswith(("snapshots/", "blobs/"))]

    def some(*patterns: str) -> list[str]:
        return sorted(name for name in looked_at if any(fnmatchcase(name, pattern) for pattern in patterns))

    if ADAPTER in files:
        model = adapter.get("base_model_name_or_path") if isinstance(adapter, Mapping) else None
        owner = f" of {model}" if isinstance(model, str) else ""
        return (
            f"holds an adapter (LoRA or the like{owner}), not a model; merge it into its model (peft: "
            "PeftModel.from_pretrained(...).merge_and_unload()), save that with save_pretrained and pass its folder"
        )
    if "model_index.json" in files:
        return "holds a diffusers pipeline (model_index.json), not a language model; pass the folder of its LLM"
    if some("snapshots/*", "blobs/*"):
        return "is a repository's folder in the hub's cache; pass the hub id, or the folder of a commit in it"
    if names := some("*.gguf"):
        return (
            f"holds GGUF weights ({_list(names)}), which are made for llama.cpp and mostly quantised; pass the model "
            "that they were converted from"
        )
    if names := some("consolidated.*", "consolidated-*"):
        return f"holds weights in Mistral's or Meta's own format ({_list(names)}); {_CONVERT}"
    if names := [name for name in sorted(files) if _SHARD.fullmatch(name)]:
        stem, suffix = _SHARD.fullmatch(names[0]).groups()  # type: ignore[union-attr]
        return f"holds shards ({_list(names)}) without {stem}{suffix}.index.json, their index; download it as well"
    if names := some("*.safetensors", "*.bin"):
        return (
            f"holds weights under other names ({_list(names)}); expected one of {', '.join(CANDIDATES)}. If one "
            "is the whole model (a variant such as fp16), pass a folder that has it under the expected name"
        )
    if names := some(*(f"*{suffix}" for suffix in _OTHER)):
        return f"holds weights in another format ({_list(names)}); save the model with save_pretrained, as safetensors"
    if not files:
        return "is empty; expected config.json and weights, as save_pretrained writes them"
    if nested:
        return f"holds checkpoints in folders below it ({_list(nested)}), none itself; pass the one that you mean"
    return f"holds no weights, only {_list(sorted(files))}; expected one of {', '.join(CANDIDATES)}"


def _list(names: Collection[str]) -> str:
    shown = [*names][:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
