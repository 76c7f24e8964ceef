"""The random checkpoints themselves: complete, in the hub's layout, and loadable by the stock classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.helpers.pico import FAMILIES

HUB_LAYER = {
    "llava": "language_model.model.layers.0.self_attn.q_proj.weight",
    "llava_next": "language_model.model.layers.0.self_attn.q_proj.weight",
    "llava_onevision": "language_model.model.layers.0.self_attn.q_proj.weight",
    "qwen2_vl": "model.layers.0.self_attn.q_proj.weight",
    "qwen2_5_vl": "model.layers.0.self_attn.q_proj.weight",
    "qwen3_vl": "model.language_model.layers.0.self_attn.q_proj.weight",
    "internvl": "language_model.model.layers.0.self_attn.q_proj.weight",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_pico_pair_loads_whole_and_sees_the_image(family, pico):
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    pair = pico(family)
    with safe_open(pair.mllm / "model.safetensors", "pt") as file:
        assert HUB_LAYER[family] in file.keys()  # noqa: SIM118 (safe_open is no mapping)

    loaded: Any = AutoModelForImageTextToText.from_pretrained(pair.mllm, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    loaded = AutoModelForCausalLM.from_pretrained(pair.base, output_loading_info=True)
    base, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]

    processor = AutoProcessor.from_pretrained(pair.mllm)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it red? é"}]}]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    answers = []
    for colour in ("red", "blue"):
        inputs = processor(text=prompt, images=[Image.new("RGB", (60, 40), colour)], return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answers.append(out[0, inputs["input_ids"].shape[1] :].tolist())
    assert answers[0] != answers[1]

    tokenizer = AutoTokenizer.from_pretrained(pair.base)
    assert tokenizer.decode(tokenizer("café?").input_ids) == "café?"
    assert torch.isfinite(base(**tokenizer("hello", return_tensors="pt")).logits).all()
