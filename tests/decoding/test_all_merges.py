"""Many merges in one generation, against one merge and one generation each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StoppingCriteria

from plam_eval.decoding.all_merges import MergeAnswers, Merges, generate_all_merges
from plam_eval.errors import MergeError
from plam_eval.merging.merge import merge_in_place
from plam_eval.probing.decoder import ProbeError, decoder, decoder_layers
from plam_eval.probing.masking import mask_vision
from plam_eval.spec import PlateauSpec, load_spec
from tests.helpers.mllm import PAD, Mllm, backend, mixed, picture
from tests.helpers.pico import FAMILIES


def specs_of(base: Any) -> list[PlateauSpec | None]:
    """Plain, early, late, overlapping, everywhere, the MLP alone, and each control: weights large enough to matter."""

    def spec(layers: tuple[int, int], weights: tuple[float, float], modules: str = "qkvo", **more: Any) -> Any:
        pair = {"model": weights[0], "base_model": weights[1]}
        return load_spec(
            {"base_model": str(base), "layer_range": list(layers), "modules": modules, "weights": pair, **more}
        )

    return [
        spec((2, 4), (0.2, 1.2)),
        None,
        spec((0, 2), (0.2, 1.2)),
        spec((1, 3), (0.5, 0.9), "qk"),
        spec((3, 4), (0.2, 1.2)),
        spec((0, 4), (0.3, 1.0), "all"),
        spec((2, 4), (0.2, 1.2), "mlp"),
        spec((2, 4), (0.2, 1.2), rule="self_scale"),
        spec((2, 4), (0.2, 1.2), rule="normalized"),
        spec((1, 4), (0.2, 1.2), rule="noise", seed=3),
    ]


def one_by_one(found: Mllm, folder: Any, specs: Sequence[Any], inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    tokens = []
    try:
        for spec in specs:
            merge_in_place(found.model, spec, checkpoint=folder)
            tokens.append(found.generate(inputs, pad_token_id=PAD, **kwargs))
    finally:
        merge_in_place(found.model, None, checkpoint=folder)
    longest = max(answer.shape[1] for answer in tokens)
    return torch.stack([torch.nn.functional.pad(t, (0, longest - t.shape[1]), value=PAD) for t in tokens])


@pytest.fixture
def check(mllm, pico):
    """`check(family, inputs(found), **kwargs)`: both ways give the same answers; returns them."""

    def run(family: str, inputs: dict[str, Tensor], specs: Sequence[Any] | None = None, **kwargs: Any) -> MergeAnswers:
        found, folders = mllm(family), pico(family)
        specs = specs_of(folders.base) if specs is None else specs
        before = {name: value.clone() for name, value in found.model.state_dict().items()}
        expected = one_by_one(found, folders.mllm, specs, inputs, **kwargs)
        merges = Merges.of(found.model, specs, checkpoint=folders.mllm)
        got = generate_all_merges(found.model, merges, **inputs, do_sample=False, pad_token_id=PAD, **kwargs)
        assert got.tokens.dtype == got.lengths.dtype == torch.int64
        assert got.tokens.tolist() == expected.tolist()
        assert all(torch.equal(value, before[name]) for name, value in found.model.state_dict().items())
        attention: Any = decoder_layers(found.model)[2].self_attn
        assert "forward" not in vars(attention.q_proj)
        return got

    return run


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_one_by_one(family, attention, mllm, check):
    found = mllm(family)
    with backend(found, attention):
        answers = check(family, mixed(found), max_new_tokens=12, eos_token_id=2)
    assert len({tuple(each.flatten().tolist()) for each in answers.tokens}) > 6  # merges matter to this model


def spec_of(base: Any, layers: tuple[int, int], **more: Any) -> PlateauSpec:
    spec = load_spec(
        {
            "base_model": str(base),
            "layer_range": list(layers),
            "modules": "qkvo",
            "weights": {"model": 0.2, "base_model": 1.2},
            **more,
        }
    )
    assert spec is not None
    return spec


def test_answers_that_end_early(mllm, pico, check):
    """An end token that some (merge, document) gives soon, some late and some never."""
    found = mllm("qwen2_5_vl")
    inputs = mixed(found)
    free = check("qwen2_5_vl", inputs, max_new_tokens=10, eos_token_id=511).tokens
    ends = [int(free[0, 0, 2]), int(free[5, 1, 5]), int(free[2, 3, 7])]
    answers = check("qwen2_5_vl", inputs, max_new_tokens=10, eos_token_id=ends)
    assert answers.lengths.min() <= 3 and answers.lengths.max() > 5
    real = torch.arange(answers.tokens.shape[-1]) < answers.lengths[..., None]
    assert not answers.tokens[~real].any()
    last = answers.tokens.gather(-1, answers.lengths[..., None] - 1)[..., 0]
    ended = answers.lengths < 10
    assert ended.any() and torch.isin(last[ended], torch.tensor(ends)).all()


def test_stop_strings_and_processors(mllm, check):
    found = mllm("llava")
    tokenizer, one = found.processor.tokenizer, found.batch(["Look: ", picture(0), " is it red?"])
    check("llava", mixed(found), max_new_tokens=8, eos_token_id=2, repetition_penalty=1.5, no_repeat_ngram_size=2)
    free = check("llava", one, max_new_tokens=8, eos_token_id=None).tokens
    strings = [tokenizer.decode(free[0, 0, 3]), tokenizer.decode(free[4, 0, 5])]
    answers = check("llava", one, max_new_tokens=8, eos_token_id=None, stop_strings=strings, tokenizer=tokenizer)
    assert answers.lengths.min() < 8


def test_merges_share_what_they_have_in_common(mllm, pico, monkeypatch):
    """Rows of the prompt part at the first layer that differs; tensors merged alike are held once."""
    found, folders = mllm("llava"), pico("llava")
    specs = [None, spec_of(folders.base, (3, 4)), spec_of(folders.base, (2, 4)), spec_of(folders.base, (2, 3))]
    merges = Merges.of(found.model, specs, checkpoint=folders.mllm)
    attention: Any = decoder_layers(found.model)[2].self_attn
    layer = sum(p.nbytes for n, p in attention.named_parameters() if n.endswith("proj.weight"))
    assert merges.nbytes == 2 * layer
    rows: list[tuple[int, int]] = []
    images: list[int] = []
    handles = [
        layer.register_forward_hook(lambda _, __, output, index=index: rows.append((index, output.shape[0])))
        for index, layer in enumerate(decoder_layers(found.model))
    ]
    tower = found.model.model.vision_tower
    handles.append(tower.register_forward_pre_hook(lambda _, args, kwargs: images.append(1), with_kwargs=True))
    try:
        inputs = found.batch(["A ", picture(0), " b"])
        generate_all_merges(found.model, merges, **inputs, do_sample=False, max_new_tokens=2, eos_token_id=None)
    finally:
        for handle in handles:
            handle.remove()
    assert rows == [(0, 1), (1, 1), (2, 2), (3, 4), *((index, 4) for index in range(4))]
    assert len(images) == 1


def test_the_model_is_left_as_it_was_whatever_happens(mllm, pico):
    found, folders = mllm("qwen3_vl"), pico("qwen3_vl")
    merges = Merges.of(found.model, [None, spec_of(folders.base, (0, 2))], checkpoint=folders.mllm)
    inputs = found.batch(["A ", picture(0), " b"])
    expected = found.generate(inputs, max_new_tokens=3)

    class Fails(StoppingCriteria):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise KeyboardInterrupt

    settings = {"do_sample": False, "max_new_tokens": 3}
    with pytest.raises(KeyboardInterrupt):
        generate_all_merges(found.model, merges, **inputs, **settings, stopping_criteria=[Fails()])
    assert found.generate(inputs, max_new_tokens=3).tolist() == expected.tolist()
    layers = decoder_layers(found.model)
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in layers.modules())
    assert "_deepstack_process" not in vars(decoder(found.model))
    answers = generate_all_merges(found.model, merges, **inputs, **settings)
    assert answers.tokens[0].tolist() == expected.tolist()


def test_refusals(mllm, pico):
    found, folders = mllm("llava"), pico("llava")
    spec = spec_of(folders.base, (2, 4))
    merges = Merges.of(found.model, [None, spec], checkpoint=folders.mllm)
    inputs = found.batch(["A ", picture(0), " b"])
    settings = {"do_sample": False, "max_new_tokens": 2}
    for wrong, message in (
        ({"num_beams": 2}, "num_beams=2"),
        ({"do_sample": True}, "do_sample=True"),
        ({"streamer": object()}, "takes no streamer"),
        ({"stop_strings": ["a"]}, "need the tokenizer"),
    ):
        with pytest.raises(ProbeError, match=message):
            generate_all_merges(found.model, merges, **inputs, **{**settings, **wrong})
    with pytest.raises(ProbeError, match="without an end token"):
        generate_all_merges(found.model, merges, **mixed(found), **settings, eos_token_id=None)
    with mask_vision(found.model, 2), pytest.raises(ProbeError, match="inside mask_vision"):
        generate_all_merges(found.model, merges, **inputs, **settings)
    with pytest.raises(ProbeError, match="is not the model"):
        generate_all_merges(mllm("qwen2_vl").model, merges, **inputs, **settings)
    with pytest.raises(MergeError, match="nothing was merged"):
        Merges.of(found.model, [spec_of(folders.base, (2, 9))], checkpoint=folders.mllm)
    with pytest.raises(ValueError, match="specs is empty"):
        Merges.of(found.model, [])
    merge_in_place(found.model, spec, checkpoint=folders.mllm)
    try:
        with pytest.raises(ProbeError, match="was merged since"):
            generate_all_merges(found.model, merges, **inputs, **settings)
        with pytest.raises(ProbeError, match="is merged; expected the plain model"):
            Merges.of(found.model, [None], checkpoint=folders.mllm)
    finally:
        merge_in_place(found.model, None, checkpoint=folders.mllm)


def test_one_of_the_merges_under_the_model_by_pointer(mllm, pico):
    """Bit by bit the model merged in place, and afterwards the plain one, with the tensors that it had."""
    found, folders = mllm("qwen2_5_vl"), pico("qwen2_5_vl")
    inputs, specs = mixed(found), specs_of(folders.base)
    merges = Merges.of(found.model, specs, checkpoint=folders.mllm)
    places = {name: value.data_ptr() for name, value in found.model.named_parameters()}

    def logits() -> Tensor:
        with torch.no_grad():
            out: Tensor = found.model(**inputs).logits
        return out

    plain, seen = logits(), set()
    for number, spec in enumerate(specs):
        with merges.applied(number):
            got = logits()
        assert torch.equal(logits(), plain)
        merge_in_place(found.model, spec, checkpoint=folders.mllm)
        expected = logits()
        merge_in_place(found.model, None, checkpoint=folders.mllm)
        assert torch.equal(got, expected) and torch.equal(got, plain) == (spec is None)
        seen.add(float(got.sum()))
    assert len(seen) == len(specs)
    with pytest.raises(KeyboardInterrupt), merges.applied(0):
        raise KeyboardInterrupt
    assert torch.equal(logits(), plain)
    assert places == {name: value.data_ptr() for name, value in found.model.named_parameters()}


def test_ramps_answer_as_one_by_one_and_share_what_they_have_alike(mllm, pico, check):
    found, folders = mllm("llava"), pico("llava")
    ramp = {"model": [0.2, 0.8], "base_model": [1.2, 0.3]}
    late = {"model": 0.8, "base_model": 0.3}
    specs = [
        spec_of(folders.base, (0, 4), weights=ramp),
        None,
        spec_of(folders.base, (3, 4), weights=late),  # the last layer of the ramp
        spec_of(folders.base, (0, 4), weights=late),
        spec_of(folders.base, (0, 4), weights=ramp, rule="self_scale"),
        spec_of(folders.base, (0, 4), weights=ramp, rule="noise"),
        spec_of(folders.base, (1, 4), weights=ramp),
    ]
    check("llava", mixed(found), specs, max_new_tokens=8, eos_token_id=2)
    one, *_ = merged = [Merges.of(found.model, [spec], checkpoint=folders.mllm).nbytes for spec in specs]
    layer = one // 4
    together = Merges.of(found.model, specs, checkpoint=folders.mllm).nbytes
    assert merged[2] == layer and together == sum(merged) - 3 * layer  # the last layers of four specs are one
