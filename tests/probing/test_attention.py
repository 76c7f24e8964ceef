from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AutoModelForImageTextToText, AutoProcessor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from plam_eval.errors import InputError
from plam_eval.probing.attention import attention_rows, last_tokens, noting_massive, tokens_behind_images
from plam_eval.probing.attention_measures import sink_dimensions, sink_tokens
from plam_eval.probing.decoder import ProbeError, cache_in
from plam_eval.probing.masking import mask_vision
from plam_eval.probing.row_capture import RowCapture
from tests.helpers.mllm import Mllm, backend, hooks, mixed, picture
from tests.helpers.pico import FAMILIES, OTHER_FAMILIES


def prompt(loaded) -> dict[str, Any]:
    """One image and a question, through the family's own template."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it red?"}]}
    text = loaded.processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    return dict(loaded.processor(text=[text], images=[[picture(0, (60, 40))]], return_tensors="pt"))


def all_rows(inputs) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in inputs["attention_mask"]]


@torch.no_grad()
def eager(loaded, inputs) -> torch.Tensor:
    """The model's own weights: (layers, documents, heads, tokens, keys)."""
    inputs = {name: value for name, value in inputs.items() if name != "labels"}  # which PaliGemma's processor adds
    with backend(loaded, "eager"):
        return torch.stack(loaded.model(**inputs, output_attentions=True).attentions)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [*FAMILIES, *OTHER_FAMILIES])
def test_rows_are_those_of_eager_attention(family, attention, mllm):
    loaded = mllm(family)
    inputs = prompt(loaded)
    expected = eager(loaded, inputs)
    with backend(loaded, attention):
        each = attention_rows(loaded.model, inputs, all_rows(inputs), heads="each")
        mean = attention_rows(loaded.model, inputs)
    torch.testing.assert_close(each.weights, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(mean.weights, expected.mean(2, keepdim=True)[:, :, :, -1:], atol=1e-5, rtol=0)
    assert mean.queries.tolist() == [[expected.shape[-1] - 1]] and mean.vision.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_padded_batch_with_several_images_and_none(family, mllm):
    loaded = mllm(family)
    inputs = mixed(loaded)
    queries = [positions[-1 - number :] for number, positions in enumerate(all_rows(inputs))]
    expected = eager(loaded, inputs)
    got = attention_rows(loaded.model, inputs, queries, heads="each")
    assert got.weights.shape[3] == 4 and got.vision.any(-1).tolist() == [True, True, False, True]
    for number, positions in enumerate(queries):
        own = torch.from_numpy(got.rows_of(number))
        torch.testing.assert_close(own, expected[:, number, :, positions], atol=1e-5, rtol=0)
        assert not got.weights[:, number, :, len(positions) :].any()
        assert (own.sum(-1) - 1).abs().max() < 1e-5


def test_the_model_computes_what_it_always_does(mllm):
    loaded = mllm("qwen2_5_vl")
    inputs = prompt(loaded)
    with torch.no_grad():
        loaded.model(**inputs)
        plain, before = loaded.model(**inputs).logits, hooks(loaded)
        noting = noting_massive(loaded.model, inputs["attention_mask"].bool())
        with RowCapture(loaded.model).expecting(torch.tensor([[1]])), noting:
            assert torch.equal(loaded.model(**inputs).logits, plain)
        assert torch.equal(loaded.model(**inputs).logits, plain) and hooks(loaded) == before


def test_memory_is_that_of_the_rows(mllm, monkeypatch):
    """No layer's product of all queries with all keys comes up, and the decoder keeps no keys."""
    loaded, shapes, caches = mllm("llava"), [], []
    inputs = loaded.batch(["Look: ", picture(0), " is it red? " * 20])
    tokens = inputs["input_ids"].shape[1]
    softmax = torch.Tensor.softmax

    def watched(scores, *args):
        shapes.append(scores.shape)
        return softmax(scores, *args)

    monkeypatch.setattr(torch.Tensor, "softmax", watched)
    handle = loaded.model.register_forward_hook(lambda _, args, output: caches.append(cache_in(output)[1]))
    attention_rows(loaded.model, inputs)
    handle.remove()
    assert shapes == [torch.Size([1, 2, 1, tokens])] * loaded.layers and caches == [None]


def test_sliding_windows_are_the_layers_own(mllm):
    loaded = mllm("gemma3")
    got = attention_rows(loaded.model, prompt(loaded))
    keys = (got.weights[:, 0, 0, 0] > 0).sum(-1).tolist()
    assert keys == [16, got.weights.shape[-1]] * 2


def test_inside_mask_vision_rows_are_the_masked_models(mllm):
    loaded = mllm("qwen3_vl")
    inputs = prompt(loaded)
    with mask_vision(loaded.model, 2):
        got = attention_rows(loaded.model, inputs)
    share = (got.weights * got.vision[:, None, None]).sum(-1).flatten()
    assert (share[:2] > 0.01).all() and (share[2:] == 0).all()


# ---- flash attention -------------------------------------------------------------------------------------------------


def flash(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **kwargs):
    """As a flash kernel sees: no mask but that of padding; causal, in a window where there is one."""
    assert attention_mask is None or attention_mask.dim() == 2
    column = torch.arange(key.shape[2])
    row = column[-query.shape[2] :]
    mask = column[None, :] <= row[:, None]
    if sliding_window is not None and key.shape[2] > sliding_window:
        mask = mask & (row[:, None] - column[None, :] <= sliding_window - 1)
    mask = mask[None, None].expand(query.shape[0], 1, -1, -1)
    if attention_mask is not None:
        mask = (mask & attention_mask.bool()[:, None, None, :]) | (column[None, :] == row[:, None])
    return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl"])
def test_rows_of_flash_attention(family, mllm, monkeypatch):
    """What transformers hands to a flash kernel, which itself needs a GPU: the kernel is stood in for."""
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash)
    loaded = mllm(family)
    for inputs in (mixed(loaded), prompt(loaded)):
        queries, expected = all_rows(inputs), eager(loaded, inputs)
        with backend(loaded, "flash_attention_2"):
            got = attention_rows(loaded.model, inputs, queries, heads="each")
        for number, positions in enumerate(queries):
            own = torch.from_numpy(got.rows_of(number))
            torch.testing.assert_close(own, expected[:, number, :, positions], atol=1e-5, rtol=0)


def test_a_window_of_flash_attention(mllm, monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", partial(flash, sliding_window=5))
    loaded = mllm("llava")
    with backend(loaded, "flash_attention_2"):
        # The kernel's window is no layer's: rows without it do not give the kernel's output.
        with pytest.raises(ProbeError, match=r"give another output than the layer's own in layers 0 "):
            attention_rows(loaded.model, prompt(loaded))
        for layer in loaded.model.get_decoder().layers:
            call = layer.self_attn.forward
            monkeypatch.setattr(layer.self_attn, "forward", partial(call, sliding_window=5))
        monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash)
        got = attention_rows(loaded.model, prompt(loaded))
    assert ((got.weights[:, 0, 0, 0] > 0).sum(-1) == 5).all()


# ---- more than a prefill of as many documents ------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
@torch.no_grad()
def test_rows_of_new_tokens(attention, mllm, monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash)
    loaded = mllm("llava")
    inputs, new = mixed(loaded), torch.tensor([[65], [66], [67], [68]])
    longer = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], new], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1),
    }
    expected = eager(loaded, longer)[..., -1:, :]
    with backend(loaded, attention):
        capture = RowCapture(loaded.model, "each")
        name, cache = cache_in(loaded.model(**inputs, use_cache=True))
        with capture.expecting(torch.tensor([[0], [0], [-1], [0]])):
            loaded.model(input_ids=new, attention_mask=longer["attention_mask"], **{name: cache})
        got = torch.stack(capture.take())
        assert not got[:, 2].any()
        expected[:, 2] = 0
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
        with capture.expecting(torch.tensor([[0]] * 4)):  # the same capture, of the token after that
            more = torch.cat([longer["attention_mask"], torch.ones_like(new)], dim=1)
            loaded.model(input_ids=new, attention_mask=more, **{name: cache})
        assert {rows.shape for rows in capture.take()} == {(4, 2, 1, expected.shape[-1] + 1)}


def test_variants_of_documents_in_one_batch(mllm):
    loaded = mllm("llava")
    inputs = loaded.batch(["Look: ", picture(0), " red?"], ["A ", picture(1)])
    twice = {name: torch.cat([value, value]) for name, value in inputs.items()}
    behind = tokens_behind_images(loaded.model, inputs)
    assert [len(positions) for positions in behind] == [5, 0]
    queries = torch.tensor([behind[0], [-1] * 5])
    capture = RowCapture(loaded.model)
    with torch.no_grad(), capture.expecting(queries):
        loaded.model(**twice)
    rows = torch.stack(capture.take())
    assert rows.shape[:2] == (4, 4) and not rows[:, [1, 3]].any()
    expected = attention_rows(loaded.model, inputs, behind).weights[:, 0]
    torch.testing.assert_close(rows[:, 0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[:, 2], expected, atol=1e-5, rtol=0)


# ---- what cannot be had ----------------------------------------------------------------------------------------------


def test_backends_of_which_it_is_not_known_what_they_see(mllm):
    loaded = mllm("llava")
    with (
        backend(loaded, "flex_attention"),
        pytest.raises(
            ProbeError, match=r"LlavaFor.* runs with flex_attention attention.*expected eager, sdpa or flash"
        ),
    ):
        attention_rows(loaded.model, prompt(loaded))


def scaled(module, query, *args, **kwargs):
    return sdpa_attention_forward(module, query * 1.1, *args, **kwargs)


def uncausal(module, query, key, value, mask, **kwargs):
    return sdpa_attention_forward(module, query, key, value, None, **{**kwargs, "is_causal": False})


@pytest.mark.parametrize("other", [scaled, uncausal])
def test_attention_that_is_something_else_is_refused(other, mllm, monkeypatch):
    loaded = mllm("qwen2_vl")
    inputs = prompt(loaded)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", other)
    with pytest.raises(ProbeError, match=r"Qwen2VL.* with sdpa attention: .*another output.*in layers 0 \(\d"):
        attention_rows(loaded.model, inputs, [[inputs["input_ids"].shape[1] - 3]])


def test_a_model_whose_layers_pass_by_the_interface_is_refused(mllm, monkeypatch):
    loaded = mllm("llava")
    layer = loaded.model.get_decoder().layers[2].self_attn
    monkeypatch.setattr(layer, "forward", lambda hidden_states, **kwargs: (hidden_states, None))
    with pytest.raises(ProbeError, match=r"decoder layers \[2\] of 4 did not take their attention from"):
        attention_rows(loaded.model, prompt(loaded))


def ignoring(module, query, key, value, mask, scaling=None, **kwargs):
    return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)


@pytest.mark.parametrize("name", ["s_aux", "position_bias", "cu_seq_lens_q"])
def test_additions_to_attention_are_refused_by_name(name, mllm, monkeypatch):
    loaded = mllm("llava")
    attention = loaded.model.get_decoder().layers[1].self_attn
    monkeypatch.setattr(attention, "forward", partial(attention.forward, **{name: torch.zeros(2)}))
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", ignoring)
    with pytest.raises(ProbeError, match=r"LlamaAttention adds .*; the attention rows of LlavaFor.* cannot be had"):
        attention_rows(loaded.model, prompt(loaded))


def test_a_soft_cap_is_that_of_the_backend(mllm, monkeypatch):
    loaded = mllm("gemma3")
    inputs = prompt(loaded)
    plain = attention_rows(loaded.model, inputs, all_rows(inputs), heads="each").weights
    for layer in loaded.model.get_decoder().layers:
        monkeypatch.setattr(layer.self_attn, "forward", partial(layer.self_attn.forward, softcap=0.5))
    expected = eager(loaded, inputs)
    assert (expected[0] - plain[0]).abs().max() > 0.01
    with backend(loaded, "eager"):
        capped = attention_rows(loaded.model, inputs, all_rows(inputs), heads="each").weights
    torch.testing.assert_close(capped, expected, atol=1e-5, rtol=0)
    try:
        sdpa = attention_rows(loaded.model, inputs, all_rows(inputs), heads="each").weights
    except ValueError as error:  # from transformers 5.24 on
        assert "`sdpa` attention does not support `softcap`" in str(error)
    else:  # sdpa took no notice of the cap, so that the model itself is another one there
        torch.testing.assert_close(sdpa, plain, atol=1e-6, rtol=0)


def test_calls_that_are_no_prefill_are_refused(mllm):
    loaded = mllm("llava")
    inputs = prompt(loaded)
    name, cache = cache_in(loaded.model(**inputs, use_cache=True))
    with pytest.raises(ProbeError, match="found a KV cache in inputs"):
        attention_rows(loaded.model, {**inputs, name: cache})
    with pytest.raises(ProbeError, match="expected input_ids among them"):
        attention_rows(loaded.model, {"inputs_embeds": torch.zeros(1, 3, 64)})
    with RowCapture(loaded.model).expecting(torch.tensor([[0]])) as capture:
        with pytest.raises(ProbeError, match=r"2 tokens with .* expected .* as many keys as tokens, or one"):
            loaded.model(input_ids=torch.tensor([[65, 66]]), **{name: cache})
        loaded.model(**inputs)
        with pytest.raises(ProbeError, match="decoder layer 0 of LlavaForConditionalGeneration ran twice"):
            loaded.model(**inputs)
    assert len(capture.take()) == 4
    two = torch.tensor([[0], [0]])
    with RowCapture(loaded.model).expecting(two), pytest.raises(ProbeError, match="expected 2 documents"):
        loaded.model(**inputs)


def test_dropout_is_found(mllm, monkeypatch):
    loaded = mllm("llava")
    for layer in loaded.model.get_decoder().layers:
        monkeypatch.setattr(layer.self_attn, "attention_dropout", 0.5)
    loaded.model.train()
    try:
        with pytest.raises(ProbeError, match=r"model\.eval\(\)"):
            attention_rows(loaded.model, prompt(loaded))
    finally:
        loaded.model.eval()


def test_positions_that_are_none_are_told_all_at_once(mllm):
    loaded = mllm("llava")
    inputs = loaded.batch(["a ", picture(0)], ["a longer one ", picture(1)])
    last = inputs["input_ids"].shape[1] - 1
    with pytest.raises(InputError) as raised:
        attention_rows(loaded.model, inputs, [[0, last], [last + 1, -1]])
    assert raised.value.problems == [
        "document 0, position 0: it is padding",
        f"document 1, position {last + 1}: expected one from 0 to {last}",
        f"document 1, position -1: expected one from 0 to {last}",
    ]
    with pytest.raises(InputError, match="positions for 1 documents; expected 2"):
        attention_rows(loaded.model, inputs, [[1]])
    with pytest.raises(InputError, match="names no position"):
        attention_rows(loaded.model, inputs, [[], []])
    with pytest.raises(InputError, match="expected 'mean' or 'each'"):
        attention_rows(loaded.model, inputs, heads="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_not_taken_for_other_attention(attention, dtype, pico):
    for family in ("llava", "qwen2_5_vl", "qwen3_vl"):
        folder = pico(family).mllm
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
        with torch.no_grad():  # products as large as those of real models, whose rounding weighs most
            for layer in model.get_decoder().layers:
                layer.self_attn.q_proj.weight *= 8
        loaded = Mllm(family, model, AutoProcessor.from_pretrained(folder))
        inputs = prompt(loaded)
        got = attention_rows(model, inputs, all_rows(inputs))
        assert got.weights.dtype == torch.float32 and (got.weights.sum(-1) - 1).abs().max() < 1e-5


# ---- queries and sinks -----------------------------------------------------------------------------------------------


def test_which_tokens_look(mllm):
    loaded = mllm("llava")
    inputs = loaded.batch(["Look: ", picture(0), " red?"], ["A much longer one, ", picture(1), " or ", picture(2), "?"])
    end = inputs["input_ids"].shape[1]
    assert last_tokens(inputs) == [[end - 1], [end - 1]]
    assert tokens_behind_images(loaded.model, inputs) == [[*range(end - 5, end)], [end - 1]]
    right = {
        "input_ids": torch.tensor([[65, 66, 0], [65, 66, 67]]),
        "attention_mask": torch.tensor([[1, 1, 0], [1] * 3]),
    }
    assert last_tokens(right) == [[1], [2]] and tokens_behind_images(loaded.model, right) == [[0, 1], [0, 1, 2]]


def test_massive_activations_are_those_of_the_hidden_states(mllm, monkeypatch):
    loaded, threshold = mllm("llava"), 2.8
    monkeypatch.setattr("plam_eval.probing.attention.SINK_THRESHOLD", threshold)
    inputs = loaded.batch(["Look: ", picture(0), " is it red?"], [picture(1), "x"])
    got = attention_rows(loaded.model, inputs, massive=True)
    with torch.no_grad():
        hidden = torch.stack(loaded.model(**inputs, output_hidden_states=True).hidden_states[:-1])
    ratio = hidden.abs() / hidden.square().mean(-1, keepdim=True).sqrt()
    ratio[:, ~inputs["attention_mask"].bool()] = 0
    ratio[:2] = 0
    assert got.massive.tolist() == (ratio > threshold).nonzero().tolist() and len(got.massive) > 3
    with pytest.raises(InputError, match="massive=True"):
        attention_rows(loaded.model, inputs).massive_of(0)


def test_a_planted_sink_is_found_and_its_dimension_with_it(mllm, monkeypatch):
    """The first token and one of the image are massive in dimension 5 from the second layer's output on."""
    loaded = mllm("llava")
    monkeypatch.setattr("plam_eval.probing.attention.SINK_THRESHOLD", 7.0)  # of a hidden size of 64 at most 8
    inputs = loaded.batch(["Look: ", picture(0), " is it red?"], ["text"])
    image = int(attention_rows(loaded.model, inputs).vision[0].nonzero()[1])

    def plant(_, args, kwargs):
        hidden = args[0].clone()
        hidden[0, [0, image], 5] = 1000.0
        hidden[1, :2, 5] = 1000.0  # the padding of another document
        return (hidden, *args[1:]), kwargs

    handle = loaded.model.get_decoder().layers[2].register_forward_pre_hook(plant, with_kwargs=True)
    try:
        got = attention_rows(loaded.model, inputs, massive=True)
    finally:
        handle.remove()
    dimensions = sink_dimensions([got.massive_of(0)], [got.text_of(0)])
    assert dimensions == (5,)
    sunk = sink_tokens(got.massive_of(0), dimensions, layers=4, tokens=got.real.shape[1])
    assert np.argwhere(sunk).tolist() == [[2, 0], [2, image], [3, 0], [3, image]]
    assert not len(got.massive_of(1))
