from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from safetensors import safe_open

from plam_eval.merging.names import by_layer, decoder_tensor
from tests.helpers.pico import FAMILIES, LAYERS, PicoPair


@pytest.mark.parametrize(
    "prefix", ["", "model.", "language_model.model.", "model.language_model.", "language_model.", "model.text_model."]
)
def test_decoder_layouts(prefix: str) -> None:
    assert decoder_tensor(f"{prefix}layers.12.self_attn.q_proj.weight") == (12, "self_attn.q_proj.weight")


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.vision_model.encoder.layers.3.self_attn.q_proj.weight",
        "model.vision_tower.encoder.layer.3.attention.q_proj.weight",
        "model.visual.blocks.3.attn.qkv.weight",
        "model.vision_model.layers.3.self_attn.q_proj.weight",
        "model.embed_tokens.weight",
        "model.layers.weight",
        "xmodel.layers.3.self_attn.q_proj.weight",
        "model.layers.3.",
    ],
)
def test_everything_else_is_no_decoder_tensor(name: str) -> None:
    assert decoder_tensor(name) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_s_decoder_is_found_whole_and_alone(pico: Callable[[str], PicoPair], family: str) -> None:
    pair = pico(family)
    suffixes = []
    for folder in (pair.mllm, pair.base):
        with safe_open(folder / "model.safetensors", "pt") as file:
            layers = by_layer(file.keys())
        assert sorted(layers) == list(range(LAYERS))
        assert all(len(names) == 1 for suffixes in layers.values() for names in suffixes.values())
        suffixes.append({layer: set(found) for layer, found in layers.items()})
    assert suffixes[0] == suffixes[1], "an MLLM's decoder layers have the tensors of its base LLM, no vision among them"
    assert "vision_config" in json.loads((pair.mllm / "config.json").read_text())
