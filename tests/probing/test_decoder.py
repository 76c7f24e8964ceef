from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from plam_eval.probing.decoder import (
    ProbeError,
    attention_backend,
    decoder_layers,
    has_visual_input,
    vision_positions,
    vision_token_ids,
)
from tests.helpers.mllm import picture
from tests.helpers.pico import FAMILIES, LAYERS


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_and_vision_tokens_of_every_family(family, mllm):
    found = mllm(family)
    layers = decoder_layers(found.model)
    assert len(layers) == LAYERS and all(hasattr(layer, "self_attn") for layer in layers)

    inputs = found.batch(["a", picture(0, (60, 40)), "b", picture(1), "c"], ["no picture"])
    spliced = []
    handle = found.model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: spliced.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    found.model(**inputs)
    handle.remove()
    # Where the model itself put something else than the embedding of the id.
    replaced = (spliced[0] != found.model.get_input_embeddings()(inputs["input_ids"])).any(-1)
    assert torch.equal(vision_positions(found.model, inputs["input_ids"]), replaced)
    assert replaced[0].any() and not replaced[1].any()


def test_video_placeholders_are_vision_and_delimiters_are_not(mllm):
    model = mllm("qwen2_vl").model
    config = model.config
    assert vision_token_ids(model) == (config.image_token_id, config.video_token_id)
    ids = torch.tensor([[config.vision_start_token_id, config.video_token_id, config.vision_end_token_id, 65]])
    assert vision_positions(model, ids).tolist() == [[False, True, False, False]]


@pytest.mark.parametrize(
    ("inputs", "visual"),
    [
        ({}, False),
        ({"pixel_values": None, "image_sizes": torch.ones(1)}, False),
        ({"mm_encoder_outputs": {"image": None}}, False),
        ({"mm_encoder_outputs": {"image": object()}}, True),
        ({"pixel_values_videos": torch.ones(1)}, True),
    ],
)
def test_visual_input(inputs, visual):
    assert has_visual_input(inputs) is visual


def _tiny(**extra):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=8, **extra))


def test_models_without_decoder_or_vision_are_refused_with_what_was_looked_for():
    with pytest.raises(ProbeError, match=r"Linear: found no decoder layers; looked for .*get_decoder"):
        decoder_layers(nn.Linear(1, 1))
    with pytest.raises(ProbeError, match=r"LlamaForCausalLM: .*names no vision token; looked for image_token_id"):
        vision_token_ids(_tiny())


def test_models_that_see_otherwise_than_by_self_attention_are_refused():
    crossed = _tiny()
    crossed.config.cross_attention_layers = [0]
    with pytest.raises(ProbeError, match="cross-attention"):
        decoder_layers(crossed)
    linear = _tiny()
    linear.config.layer_types = ["linear_attention"]
    with pytest.raises(ProbeError, match="of type linear_attention"):
        decoder_layers(linear)


def test_attention_without_masks_is_refused(mllm, monkeypatch):
    model = mllm("llava").model
    assert attention_backend(model) == "sdpa"
    monkeypatch.setattr(model.get_decoder().config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ProbeError, match=r"flash_attention_2.*set_attn_implementation\(\"sdpa\"\)"):
        attention_backend(model)
