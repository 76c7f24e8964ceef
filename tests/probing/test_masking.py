"""`mask_vision` against a reference that shares nothing with it, and against what the mask has to mean."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, StaticCache

from plam_eval.probing.closed import ClosedTo
from plam_eval.probing.decoder import ProbeError, cache_in
from plam_eval.probing.masking import check_mask, mask_vision
from tests.helpers.mllm import Mllm, backend, hooks, picture
from tests.helpers.pico import FAMILIES

NEW = 4


@contextmanager
def reference(
    loaded: Mllm, real: Tensor, vision: Tensor, cut: int, closed_to: str = "text", prompt: int = 0
) -> Iterator[None]:
    """Attention written out: softmax over the columns that a row may see, one row at a time in the definition.

    real, vision: (documents, tokens) of the whole sequence; there is no cache. prompt: its tokens, padded on the left.
    """
    index = torch.arange(real.shape[1])
    answers = index >= prompt - 1  # and what they are written from
    loses = ~vision & {"text": torch.tensor(True), "question": ~answers, "last": answers}[closed_to]

    def attend(module, query, key, value, attention_mask, scaling, **kwargs):
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        sees = (index[None, :] <= index[:, None]) & real[:, None, :]
        window = kwargs.get("sliding_window")
        if window is not None:
            sees = sees & (index[:, None] - index[None, :] < window)
        if module.layer_idx >= cut:
            sees = sees & ~(vision[:, None, :] & loses[:, :, None])
        sees = sees | torch.eye(len(index), dtype=torch.bool)  # padding sees itself, which nobody sees
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
        weights = scores.masked_fill(~sees[:, None], -1e30).softmax(-1)
        return torch.einsum("bhqk,bhkd->bqhd", weights, value), None

    AttentionInterface.register("test_reference", attend)
    with backend(loaded, "test_reference"):
        yield


def lengthened(inputs: dict[str, Tensor], new: Tensor) -> dict[str, Tensor]:
    """The same prompts with tokens behind them, for a forward without cache."""
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], new], 1)}
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(new)], 1)
    if "mm_token_type_ids" in inputs:
        longer["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new)], 1)
    return longer


def placeholders(loaded: Mllm, ids: Tensor) -> Tensor:
    tokens = ("<image>", "<|image_pad|>", "<IMG_CONTEXT>")
    vocabulary = loaded.processor.tokenizer.get_vocab()
    return torch.isin(ids, torch.tensor([vocabulary[token] for token in tokens if token in vocabulary]))


def check_against_reference(
    loaded: Mllm, inputs: dict[str, Tensor], cut: int, closed_to: ClosedTo = "text", **settings: Any
) -> None:
    """Prompt in one call and tokens one by one with a cache, against one forward of everything without."""
    forbidden = placeholders(loaded, torch.arange(300)).nonzero()[:, 0].tolist()  # no family could read its own image
    with mask_vision(loaded.model, cut, closed_to):
        prompt = loaded.model(**inputs).logits
        out = loaded.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=None,
            suppress_tokens=forbidden,
            output_logits=True,
            return_dict_in_generate=True,
            **settings,
        )
    length = inputs["input_ids"].shape[1]
    longer = lengthened(inputs, out.sequences[:, length:])
    real = longer["attention_mask"].bool()
    with reference(loaded, real, placeholders(loaded, longer["input_ids"]), cut, closed_to, length):
        expected = loaded.model(**longer, use_cache=False).logits
    rows = real[:, :length]
    torch.testing.assert_close(prompt[rows], expected[:, :length][rows], atol=2e-4, rtol=0)
    steps = torch.stack(out.logits, 1)
    torch.testing.assert_close(steps, expected[:, length - 1 : length - 1 + NEW], atol=2e-4, rtol=0)


def mixed(loaded: Mllm) -> dict[str, Tensor]:
    return loaded.batch(
        ["Look: ", picture(0), " red?"],
        ["A ", picture(1), " or ", picture(2, (60, 40)), " differ"],
        ["none here"],
        [picture(3), "x"],
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_naive_reference(family, attention, mllm):
    loaded = mllm(family)
    inputs = mixed(loaded)
    with backend(loaded, attention):
        for cut in (0, 2):
            check_against_reference(loaded, inputs, cut)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("closed_to", ["question", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_naive_reference_where_the_image_is_closed_to_some_text(family, closed_to, attention, mllm):
    loaded = mllm(family)
    with backend(loaded, attention):
        check_against_reference(loaded, mixed(loaded), 1, closed_to)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sliding_windows_stay(attention, pico):
    """Windows shorter than the prompt, in some layers, whose cache forgets the image while it is generating."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    folder = pico("qwen2_vl").mllm
    config = AutoConfig.from_pretrained(folder)
    text = config.text_config
    text.use_sliding_window, text.sliding_window, text.max_window_layers = True, 9, 1
    text.layer_types = ["full_attention"] + ["sliding_attention"] * (text.num_hidden_layers - 1)
    model = AutoModelForImageTextToText.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    loaded = Mllm("qwen2_vl", model, AutoProcessor.from_pretrained(folder))
    inputs = loaded.batch(["Look: ", picture(0), "it is?"], ["and ", picture(1), "this one"])
    with backend(loaded, attention):
        for closed_to in get_args(ClosedTo):
            check_against_reference(loaded, inputs, 1, closed_to)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_cut_and_text_alone_are_the_plain_model_bit_by_bit(family, mllm):
    loaded = mllm(family)
    images, text = mixed(loaded), loaded.batch(["text"], ["and longer text"])
    plain = loaded.model(**images).logits, loaded.generate(images, max_new_tokens=NEW), loaded.model(**text).logits
    with mask_vision(loaded.model, loaded.layers):
        assert torch.equal(loaded.model(**images).logits, plain[0])
        assert torch.equal(loaded.generate(images, max_new_tokens=NEW), plain[1])
    with mask_vision(loaded.model, 0):
        assert torch.equal(loaded.model(**text).logits, plain[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_change_no_text_when_nothing_sees_them(family, mllm):
    loaded = mllm(family)
    one, other = (loaded.batch(["Look: ", picture(s), "and", picture(s + 1), " red?"]) for s in (0, 5))
    text = ~placeholders(loaded, one["input_ids"])
    with mask_vision(loaded.model, 0):
        blind = [loaded.model(**inputs).logits for inputs in (one, other)]
    with mask_vision(loaded.model, 1):
        sighted = [loaded.model(**inputs).logits for inputs in (one, other)]
    assert torch.equal(blind[0][text], blind[1][text])
    assert not torch.equal(blind[0][~text], blind[1][~text])
    assert not torch.allclose(sighted[0][0, -1], sighted[1][0, -1], atol=1e-3)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_from_the_cut_on_image_rows_do_not_matter_to_text(family, mllm):
    """Image rows are replaced by noise at the cut; whatever text knows by then is left."""
    loaded, cut = mllm(family), 2
    inputs = loaded.batch(["Look: ", picture(0), "and", picture(1), " red?"])
    vision = placeholders(loaded, inputs["input_ids"])

    def disturb(_, args, kwargs):
        hidden = args[0].clone()
        hidden[vision] = torch.randn(int(vision.sum()), hidden.shape[-1])
        return (hidden, *args[1:]), kwargs

    layer = loaded.model.get_decoder().layers[cut]
    logits = {}
    for masked in (cut, loaded.layers):
        with mask_vision(loaded.model, masked):
            before = loaded.model(**inputs).logits
            handle = layer.register_forward_pre_hook(disturb, with_kwargs=True)
            logits[masked] = before, loaded.model(**inputs).logits
            handle.remove()
    assert torch.equal(logits[cut][0][~vision], logits[cut][1][~vision])
    assert not torch.allclose(logits[loaded.layers][0][~vision], logits[loaded.layers][1][~vision], atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_stays_causal_and_text_before_the_image_is_untouched(family, mllm):
    loaded = mllm(family)
    inputs = loaded.batch(["Look: ", picture(0), " is it red?"])
    first = int(placeholders(loaded, inputs["input_ids"])[0].int().argmax())
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][0, -3] = 66
    plain = loaded.model(**inputs).logits
    with mask_vision(loaded.model, 1):
        logits, other = loaded.model(**inputs).logits, loaded.model(**changed).logits
    assert torch.equal(logits[:, :-3], other[:, :-3])
    assert not torch.allclose(logits[:, -3:], other[:, -3:], atol=1e-3)
    # The masked model adds up in another kernel, hence not bit by bit.
    torch.testing.assert_close(logits[:, :first], plain[:, :first], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_documents_answer_as_alone(family, mllm):
    loaded = mllm(family)
    documents = [["Look: ", picture(0), " red?"], ["A much longer question about ", picture(1), " and more."]]
    with mask_vision(loaded.model, 1):
        together = loaded.generate(loaded.batch(*documents), max_new_tokens=NEW, eos_token_id=None)
        alone = [
            loaded.generate(loaded.batch(document), max_new_tokens=NEW, eos_token_id=None) for document in documents
        ]
    assert torch.equal(together, torch.cat(alone))


def test_a_prompt_may_come_in_pieces(mllm):
    """Each piece brings its own image; the rows of the second must not see the first image either."""
    loaded = mllm("llava")
    whole = loaded.batch(["Look: ", picture(0), " and ", picture(1), " differ?"])
    vision = placeholders(loaded, whole["input_ids"])
    middle = int(vision[0].nonzero()[vision.sum() // 2 - 1]) + 3
    with mask_vision(loaded.model, 1):
        expected = loaded.model(**whole).logits
        name, _ = cache_in(loaded.model(**whole, use_cache=True))
        cache, pieces = DynamicCache(config=loaded.model.config), []
        for image, (start, end) in enumerate([(0, middle), (middle, whole["input_ids"].shape[1])]):
            piece = loaded.model(
                input_ids=whole["input_ids"][:, start:end],
                attention_mask=whole["attention_mask"][:, :end],
                pixel_values=whole["pixel_values"][image : image + 1],
                **{name: cache},
            )
            pieces.append(piece.logits)
        again = loaded.model(**whole).logits  # a new cache is a new start
    torch.testing.assert_close(torch.cat(pieces, 1), expected, atol=1e-4, rtol=0)
    assert torch.equal(again, expected)


def test_a_generated_placeholder_is_text(mllm):
    loaded = mllm("llava")
    inputs = loaded.batch(["Look: ", picture(0), " red?"])
    new = torch.tensor([[loaded.model.config.image_token_id, 70, 71]])
    longer = lengthened(inputs, new)
    vision = placeholders(loaded, longer["input_ids"])
    vision[:, -3:] = False
    with mask_vision(loaded.model, 1):
        name, cache = cache_in(loaded.model(**inputs, use_cache=True))
        got = loaded.model(input_ids=new, attention_mask=longer["attention_mask"], **{name: cache}).logits
    decoder, spliced = loaded.model.get_decoder(), []
    handle = decoder.register_forward_pre_hook(lambda _, args, kwargs: spliced.append(kwargs), with_kwargs=True)
    loaded.model(**inputs)
    handle.remove()
    embeds = torch.cat([spliced[0]["inputs_embeds"], loaded.model.get_input_embeddings()(new)], 1)
    with reference(loaded, longer["attention_mask"].bool(), vision, 1):
        hidden = decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state
    torch.testing.assert_close(got, loaded.model.lm_head(hidden[:, -3:]), atol=1e-4, rtol=0)


def test_generation_that_reorders_or_crops_its_cache(mllm):
    loaded = mllm("qwen3_vl")
    settings = {"max_new_tokens": 6, "eos_token_id": None, "suppress_tokens": [loaded.model.config.image_token_id]}
    inputs = loaded.batch(["Look: ", picture(0), " red?"], ["A ", picture(1), "b", picture(2), "what?"])
    alone = loaded.batch(["Look: ", picture(0), " red red red?"])
    with mask_vision(loaded.model, 1):
        beams = [loaded.generate(inputs, num_beams=3, use_cache=cache, **settings) for cache in (True, False)]
        assert torch.equal(*beams)
        looked_up = loaded.generate(alone, prompt_lookup_num_tokens=3, **settings)
        assert torch.equal(looked_up, loaded.generate(alone, **settings))


def test_hooks_go_with_the_context_whatever_happens(mllm):
    loaded = mllm("llava")
    inputs = loaded.batch(["Look: ", picture(0), " red?"])
    plain, before = loaded.model(**inputs).logits, hooks(loaded)
    with pytest.raises(ZeroDivisionError), mask_vision(loaded.model, 0):
        assert not torch.equal(loaded.model(**inputs).logits, plain)
        raise ZeroDivisionError
    assert hooks(loaded) == before
    with pytest.raises(ValueError), mask_vision(loaded.model, 0):
        loaded.model(**{**inputs, "pixel_values": torch.ones(1)})
    assert torch.equal(loaded.model(**inputs).logits, plain)
    assert hooks(loaded) == before


def test_one_probe_at_a_time(mllm):
    loaded = mllm("llava")
    with mask_vision(loaded.model, 1):
        with pytest.raises(ProbeError, match="inside mask_vision already"):
            mask_vision(loaded.model, 2).__enter__()
        with pytest.raises(ProbeError, match="already"):
            mask_vision(loaded.model.model, 2).__enter__()
    with mask_vision(loaded.model, 2):
        pass


# ---- the image closed to some of the text ----------------------------------------------------------------------------


@pytest.fixture
def layers_that_read(mllm):
    """`layers_that_read(loaded, *indices)`: attention of all other layers, and every feed-forward, adds nothing."""

    @contextmanager
    def only(loaded: Mllm, *indices: int) -> Iterator[None]:
        layers = loaded.model.get_decoder().layers
        still = [layer.mlp for layer in layers]
        still += [layer.self_attn for index, layer in enumerate(layers) if index not in indices]
        handles = [
            module.register_forward_hook(
                lambda _, args, out: (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0
            )
            for module in still
        ]
        yield
        for handle in handles:
            handle.remove()

    return only


@pytest.mark.parametrize(
    ("reading", "closed_to", "cut", "sees"),
    [
        # One layer reads, so the last token has the image at first hand or not at all.
        ((1,), "text", 1, False),
        ((1,), "question", 0, True),
        ((1,), "last", 1, False),
        ((1,), "last", 2, True),
        # Two read: the question first, and then the last token in the question.
        ((1, 2), "text", 1, False),
        ((1, 2), "question", 0, True),
        ((1, 2), "last", 0, True),
        ((1, 2), "last", 2, True),
    ],
)
def test_what_the_last_token_knows_of_the_image_has_come_the_way_that_is_open(
    reading, closed_to, cut, sees, mllm, layers_that_read
):
    loaded = mllm("llava")
    one, other = (loaded.batch(["Look: ", picture(seed), " is it red?"]) for seed in (0, 5))
    with layers_that_read(loaded, *reading), mask_vision(loaded.model, cut, closed_to):
        ends = [loaded.model(**inputs).logits[0, -1] for inputs in (one, other)]
    assert torch.equal(*ends) is not sees


def test_closing_the_question_and_the_last_token_in_turn(mllm, layers_that_read):
    """In the layer that reads, the rows that each leaves open are the plain model's and the others the blind one's."""
    loaded = mllm("qwen2_5_vl")
    inputs = loaded.batch(["Look: ", picture(0), " and ", picture(1), " red?"])
    text = ~placeholders(loaded, inputs["input_ids"])[0]
    last = torch.zeros_like(text)
    last[-1] = True
    with layers_that_read(loaded, 1):
        plain = loaded.model(**inputs).logits[0]
        logits = {}
        for closed_to in get_args(ClosedTo):
            with mask_vision(loaded.model, 1, closed_to):
                logits[closed_to] = loaded.model(**inputs).logits[0]
    blind = logits["text"]
    for closed_to, closed in (("question", text & ~last), ("last", last)):
        torch.testing.assert_close(logits[closed_to][closed], blind[closed], atol=1e-5, rtol=0)
        torch.testing.assert_close(logits[closed_to][~closed], plain[~closed], atol=1e-5, rtol=0)
    behind = text.clone()
    behind[: int((~text).int().argmax())] = False
    assert (blind - plain)[behind].abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("closed_to", ["question", "last"])
def test_padding_on_either_side_leaves_the_last_token_where_it_is(closed_to, mllm):
    loaded = mllm("llava")
    documents = ["Look: ", picture(0), " red?"], ["A much longer question about ", picture(1), " and more."]
    left = loaded.batch(*documents)
    loaded.processor.tokenizer.padding_side = "right"
    right = dict(
        loaded.processor(
            text=["".join(part if isinstance(part, str) else "<image>" for part in each) for each in documents],
            images=[[each[1]] for each in documents],
            padding=True,
            return_tensors="pt",
        )
    )
    with mask_vision(loaded.model, 1, closed_to):
        sides = [loaded.model(**inputs).logits[inputs["attention_mask"].bool()] for inputs in (left, right)]
    torch.testing.assert_close(*sides, atol=1e-5, rtol=0)


@pytest.mark.parametrize("closed_to", ["question", "last"])
def test_where_the_prompt_ends_must_be_known(closed_to, mllm):
    loaded = mllm("llava")
    inputs = loaded.batch(["Look: ", picture(0), " red red red"])
    with mask_vision(loaded.model, 1, closed_to):
        for settings, named in (
            ({"use_cache": False}, "use_cache=False, as `generate` does"),
            ({"prompt_lookup_num_tokens": 3}, r"logits_to_keep=\d, as `generate` does for candidates"),
        ):
            with pytest.raises(ProbeError, match=f"{named}.*expected the whole prompt in one call"):
                loaded.generate(inputs, max_new_tokens=4, **settings)
        name, cache = cache_in(loaded.model(**inputs, use_cache=True))
        ids = inputs["input_ids"][:, -2:]
        longer = torch.ones(1, inputs["input_ids"].shape[1] + 2, dtype=torch.long)
        with pytest.raises(ProbeError, match=r"2 tokens on a KV cache of \d+, so the last token of its prompt"):
            loaded.model(input_ids=ids, attention_mask=longer, **{name: cache})
        text = loaded.batch(["none here"])
        assert loaded.generate(text, max_new_tokens=2, use_cache=False, eos_token_id=None).shape[1] == 2
        beams = loaded.generate(inputs, num_beams=3, max_new_tokens=4, eos_token_id=None)
    assert beams.shape[1] == 4


def test_a_part_of_the_text_has_a_name(mllm):
    with pytest.raises(ProbeError, match=r"closed_to is 'questions'; .* \(did you mean question\?\)"):
        mask_vision(mllm("llava").model, 1, "questions").__enter__()  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [-1, 5, 1.0])
def test_a_cut_is_a_layer(cut, mllm):
    with pytest.raises(ProbeError, match=r"from_layer is .* expected an integer from 0 to 4"):
        mask_vision(mllm("llava").model, cut).__enter__()


def test_calls_whose_vision_tokens_cannot_be_told_are_refused(mllm):
    loaded = mllm("llava")
    inputs = loaded.batch(["Look: ", picture(0), " red?"])
    length = inputs["input_ids"].shape[1]
    name, outside = cache_in(loaded.model(**inputs, use_cache=True))
    step = {"input_ids": inputs["input_ids"][:, -1:], "attention_mask": torch.ones(1, length + 1, dtype=torch.long)}
    with mask_vision(loaded.model, 1):
        with pytest.raises(ProbeError, match=f"KV cache holds {length} tokens of which 0 were fed inside"):
            loaded.model(**step, **{name: outside})
        with pytest.raises(ProbeError, match="so it has a past, but with no KV cache"):
            loaded.model(**step)
        with pytest.raises(ProbeError, match="without input_ids"):
            loaded.model(inputs_embeds=torch.zeros(1, 3, 64))
        with pytest.raises(ProbeError, match="outside a call of LlavaForConditionalGeneration"):
            loaded.model.model(**inputs)
        with pytest.raises(ProbeError, match="StaticCache is not supported"):
            cache = StaticCache(config=loaded.model.config.text_config, max_cache_len=length + 2)
            loaded.model(**inputs, **{name: cache})


# ---- layers that do not do as they are told --------------------------------------------------------------------------


@pytest.fixture
def rewired(pico):
    """`rewired(index, change)`: a pico model one of whose decoder layers gets its keyword arguments from `change`."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    def load(index: int, change, attention: str = "sdpa") -> Mllm:
        folder = pico("llava").mllm
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        ).eval()
        layer = model.get_decoder().layers[index]
        forward = layer.forward
        layer.forward = lambda *args, **kwargs: forward(*args, **change(kwargs))
        return Mllm("llava", model, AutoProcessor.from_pretrained(folder))

    return load


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_layer_that_passes_by_its_mask_is_found_before_anything_is_answered(attention, rewired):
    """As when a new version of transformers names the mask otherwise: the layer runs on, and hides nothing."""
    loaded = rewired(2, lambda kwargs: {**kwargs, "attention_mask": None}, attention)
    for cut in (0, 3):
        with pytest.raises(ProbeError, match=r"LlavaFor.*transformers 5.*hidden tokens still reach"):
            mask_vision(loaded.model, cut).__enter__()
    with mask_vision(loaded.model, loaded.layers):  # hides nothing, and so has nothing to check
        pass


def test_a_layer_without_its_cache_is_found(rewired):
    """The prompt would be masked right, and generated tokens not at all."""

    def without_cache(kwargs):
        return {name: value for name, value in kwargs.items() if name != cache_in(kwargs)[0]}

    with pytest.raises(ProbeError, match=r"hidden tokens still reach|does not run"):
        mask_vision(rewired(0, without_cache).model, 0).__enter__()


def test_outputs_that_differ_in_the_last_bits_are_no_leak(mllm, monkeypatch):
    """As from mixtures of experts, and kernels that add up in another order at every call: the gradient decides."""
    loaded = mllm("llava")
    text, norm = loaded.model.get_decoder(), loaded.model.get_decoder().norm
    calls = iter(range(1, 100))

    def by_call(_, args, output):
        return output * (1 + 1e-6 * next(calls))

    def by_what_is_hidden(_, args, output):  # but by no path
        return output * (1 + 1e-6 * float(args[0].detach()[0, 1 if args[0].shape[1] > 1 else 0, 0]))

    def by_being_probed(_, args, output):
        return output * (1.5 if text.layers[0]._forward_pre_hooks else 1)

    for change, fault in (
        (by_call, None),
        (by_what_is_hidden, None),
        (by_being_probed, "with no token hidden its outputs are not the plain model's"),
    ):
        monkeypatch.setattr("plam_eval.probing.masking._CHECKED", weakref.WeakKeyDictionary())
        handle = norm.register_forward_hook(change)
        with pytest.raises(ProbeError, match=fault) if fault else nullcontext():
            check_mask(loaded.model)
        handle.remove()


def test_the_check_runs_once_and_leaves_nothing_behind(mllm, monkeypatch):
    monkeypatch.setattr("plam_eval.probing.masking._CHECKED", weakref.WeakKeyDictionary())
    loaded, calls = mllm("qwen3_vl"), []
    loaded.model(**loaded.batch(["text"]))  # transformers hangs hooks of its own on a model when it is first called
    before = hooks(loaded)
    handle = loaded.model.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        check_mask(loaded.model)
    handle.remove()
    assert 0 < len(calls) <= 10 and hooks(loaded) == before
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_the_check_tells_weights_that_are_no_numbers_and_too_little_memory_from_a_mask_that_is_passed_by(
    mllm, monkeypatch
):
    monkeypatch.setattr("plam_eval.probing.masking._CHECKED", weakref.WeakKeyDictionary())
    model = mllm("llava").model
    weight = model.get_decoder().layers[1].self_attn.v_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = float("nan")
    try:
        with pytest.raises(ProbeError, match=r"not finite in torch\.float32: weights hold NaN or Inf"):
            check_mask(model)
    finally:
        with torch.no_grad():
            weight.copy_(before)

    def full(*given):
        raise torch.OutOfMemoryError("no memory left")

    handle = model.get_decoder().layers[0].register_forward_pre_hook(full)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
            check_mask(model)
    finally:
        handle.remove()


def test_the_check_of_a_model_in_training_draws_nothing(mllm, monkeypatch):
    monkeypatch.setattr("plam_eval.probing.masking._CHECKED", weakref.WeakKeyDictionary())
    model = mllm("llava").model
    part = model.get_decoder().layers[0].self_attn
    monkeypatch.setattr(part, "attention_dropout", 0.5)
    model.train()
    part.eval()
    modes, before = [each.training for each in model.modules()], torch.get_rng_state()
    try:
        check_mask(model)
        assert [each.training for each in model.modules()] == modes
        part.train()
        monkeypatch.setattr("plam_eval.probing.masking._CHECKED", weakref.WeakKeyDictionary())
        check_mask(model)
    finally:
        model.eval()
    assert torch.equal(before, torch.get_rng_state())


def test_layers_called_in_a_way_the_probe_does_not_know_are_refused_by_name(mllm, monkeypatch):
    loaded = mllm("llava")
    inputs = loaded.batch(["Look: ", picture(0), " red?"])
    layer = loaded.model.get_decoder().layers[1]
    with mask_vision(loaded.model, 1):
        call = layer._call_impl

        def renamed(hidden, **kwargs):
            mask = kwargs.pop("attention_mask")
            return call(hidden, **kwargs, mask_of_another_name=mask)

        monkeypatch.setattr(layer, "_call_impl", renamed)
        with pytest.raises(ProbeError, match="mask_of_another_name by name; expected attention_mask among them"):
            loaded.model(**inputs)
        monkeypatch.setattr(layer, "_call_impl", lambda hidden, **kwargs: hidden)
        with pytest.raises(ProbeError, match="passed 2 of the 3 decoder layers"):
            loaded.model(**inputs)
