"""Layer n of the MLLM has to be layer n of the base, or the merge is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plam_eval.merging.checkpoint import Checkpoint, MergeError
from plam_eval.merging.merge import merge_in_place, plan_merge
from plam_eval.merging.names import decoder_tensor
from tests.helpers.llamas import Edit, Pair, load, write_llama
from tests.helpers.pico import FAMILIES, PicoPair

CROSS = 1  # a cross-attention layer stands here, and the base's layers from here on come one later


def with_cross_attention(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """As Llama-3.2-Vision has it: a layer with `cross_attn` instead of `self_attn`, between those of the base."""
    for name in sorted((name for name in tensors if decoder_tensor(name)), reverse=True):
        layer, suffix = decoder_tensor(name)
        if layer >= CROSS:
            tensors[f"model.layers.{layer + 1}.{suffix}"] = tensors[name].clone()
    for name in [name for name in tensors if f"layers.{CROSS}.self_attn" in name]:
        tensors[name.replace("self_attn", "cross_attn")] = tensors.pop(name)
    config["num_hidden_layers"] += 1


def of_another_kind(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    for name in [name for name in tensors if f"layers.{CROSS}.self_attn" in name]:
        tensors[name.replace("self_attn", "cross_attn")] = tensors.pop(name)


def truncated(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    for name in [name for name in tensors if "layers.2." in name]:
        del tensors[name]
    config["num_hidden_layers"] = 2


def truncated_by_its_config(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    config["num_hidden_layers"] = 2


def unequal(pair: Pair, tmp_path: Path, edit: Edit, layers: str) -> str:
    model = Checkpoint.open(write_llama(tmp_path / "edited", 1, edit=edit))
    with pytest.raises(MergeError) as error:
        plan_merge(pair.spec(layers=layers), model=model, base=Checkpoint.open(pair.base))
    return str(error.value)


@pytest.mark.parametrize("layers", ["2:3", "0:1"])
def test_cross_attention_layers_in_between(llamas: Pair, tmp_path: Path, layers: str) -> None:
    says = unequal(llamas, tmp_path, with_cross_attention, layers)
    assert "has 4 decoder layers" in says and "has 3; layer n of the one is not layer n of the other" in says
    assert "Layers 1 of the former have no self-attention. layers cannot be mapped onto each other yet" in says


def test_a_layer_of_another_kind_in_front_of_the_range(llamas: Pair, tmp_path: Path) -> None:
    says = unequal(llamas, tmp_path, of_another_kind, "2:3")
    assert "layer 1 has self-attention in" in says and "but not in" in says and "cross_attn" in says
    model = Checkpoint.open(tmp_path / "edited")
    plan_merge(llamas.spec(layers="0:1"), model=model, base=Checkpoint.open(llamas.base))


def test_layers_of_another_kind_on_both_sides_are_no_obstacle(tmp_path: Path) -> None:
    """As linear attention is, every few layers, in an MLLM and its base alike."""
    pair = Pair(
        *(write_llama(tmp_path / name, seed, edit=of_another_kind) for name, seed in (("mllm", 1), ("base", 2)))
    )
    model, base = Checkpoint.open(pair.mllm), Checkpoint.open(pair.base)
    assert len(plan_merge(pair.spec(layers="2:3"), model=model, base=base).tensors) == 8
    with pytest.raises(MergeError, match=r"layer 1, self_attn\.q_proj\.weight: missing"):
        plan_merge(pair.spec(layers="1:3"), model=model, base=base)


@pytest.mark.parametrize("edit", [truncated, truncated_by_its_config])
def test_a_truncated_base_or_model(llamas: Pair, tmp_path: Path, edit: Edit) -> None:
    assert "has 2 decoder layers" in unequal(llamas, tmp_path, edit, "0:2")
    spec = llamas.spec(base=str(tmp_path / "edited"), layers="0:2")
    module = load(llamas.mllm)
    with pytest.raises(MergeError, match=r"has 3 decoder layers, .*edited has 2"):
        merge_in_place(module, spec)


def test_layers_behind_the_decoder_do_not_count(llamas: Pair, tmp_path: Path) -> None:
    """Some base LLMs keep a layer there that predicts the token after the next, and their MLLM has none."""

    def predicting(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for name in [name for name in tensors if "layers.2." in name]:
            tensors[name.replace("layers.2.", "layers.3.")] = tensors[name].clone()
        tensors["model.layers.3.eh_proj.weight"] = torch.ones(2)

    base = Checkpoint.open(write_llama(tmp_path / "base", 2, edit=predicting))
    assert len(plan_merge(llamas.spec(), model=Checkpoint.open(llamas.mllm), base=base).tensors) == 16
    with pytest.raises(MergeError, match="has 3 decoder layers"):
        plan_merge(llamas.spec(layers="2:4"), model=Checkpoint.open(llamas.mllm), base=base)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_s_decoder_has_its_base_s_depth(pico: Callable[[str], PicoPair], family: str) -> None:
    pair = pico(family)
    spec = Pair(pair.mllm, pair.base).spec(layers="0:4")
    plan = plan_merge(spec, model=Checkpoint.open(pair.mllm), base=Checkpoint.open(pair.base))
    assert {tensor.layer for tensor in plan.tensors} == {0, 1, 2, 3}
    assert json.loads((pair.mllm / "config.json").read_text())


# ---- float64 ---------------------------------------------------------------------------------------------------------


def test_float64_is_merged_in_float64(tmp_path: Path) -> None:
    pair = Pair(
        write_llama(tmp_path / "mllm", 1, dtype=torch.float64), write_llama(tmp_path / "base", 2, dtype=torch.float64)
    )

    def fine(folder: Path) -> None:  # below what float32 can tell apart
        from safetensors.torch import load_file, save_file

        tensors = {name: value + 2.0**-40 for name, value in load_file(folder / "model.safetensors").items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    fine(pair.mllm)
    name = "model.layers.1.self_attn.q_proj.weight"
    mllm, base = (Checkpoint.open(folder).tensor(name) for folder in (pair.mllm, pair.base))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        module = load(pair.mllm, dtype)
        merge_in_place(module, pair.spec(), checkpoint=pair.mllm)
        assert torch.equal(dict(module.named_parameters())[name], (0.9 * mllm + 0.3 * base).to(dtype))
        merge_in_place(module, pair.spec(model_weight=1.0, base_weight=0.0))
        assert torch.equal(dict(module.named_parameters())[name], mllm.to(dtype))


def test_one_float64_side_is_enough(llamas: Pair, tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base", 2, dtype=torch.float64)
    module = load(llamas.mllm)
    merge_in_place(module, llamas.spec(), checkpoint=llamas.mllm, base=base)
    name = "model.layers.1.self_attn.q_proj.weight"
    mine, theirs = Checkpoint.open(llamas.mllm).tensor(name), Checkpoint.open(base).tensor(name)
    expected = (0.9 * mine.double() + 0.3 * theirs).float()
    assert torch.equal(dict(module.named_parameters())[name], expected)
