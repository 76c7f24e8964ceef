"""Attention rows of many merges in one generation, against one merge and one prefill each."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForImageTextToText, AutoProcessor, StoppingCriteria
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from plam_eval.decoding.all_merges import Merges, generate_all_merges
from plam_eval.decoding.merge_rows import MergeRows, generate_with_rows
from plam_eval.errors import InputError
from plam_eval.merging.merge import merge_in_place
from plam_eval.probing.attention import AttentionRows, attention_rows, tokens_behind_images
from plam_eval.probing.decoder import ProbeError, decoder_layers
from plam_eval.spec import PlateauSpec, load_spec
from tests.helpers.mllm import PAD, Mllm, backend, hooks, mixed, picture
from tests.helpers.pico import FAMILIES, OTHER_FAMILIES


def spec_of(base: Any, layers: tuple[int, int], modules: str = "qkvo", **more: Any) -> PlateauSpec:
    weights = {"model": 0.2, "base_model": 1.2}
    spec = load_spec(
        {"base_model": str(base), "layer_range": list(layers), "modules": modules, "weights": weights, **more}
    )
    assert spec is not None
    return spec


def specs_of(base: Any) -> list[PlateauSpec | None]:
    """Plain, and merges that part from it and from each other at every layer."""
    return [
        None,
        spec_of(base, (2, 4)),
        spec_of(base, (2, 4), rule="self_scale"),
        spec_of(base, (3, 4)),
        spec_of(base, (0, 2), "vo"),
        spec_of(base, (1, 3)),
    ]


def answered(found: Mllm, merges: Merges, inputs: dict[str, Tensor], **more: Any) -> MergeRows:
    settings = {"do_sample": False, "pad_token_id": PAD, "max_new_tokens": 5, "eos_token_id": 2}
    return generate_with_rows(found.model, merges, **{**inputs, **settings, **more})


def merges_of(found: Mllm, folders: Any, specs: list[PlateauSpec | None] | None = None) -> Merges:
    return Merges.of(found.model, specs or specs_of(folders.base), checkpoint=folders.mllm)


def one_by_one(found: Mllm, folders: Any, spec: PlateauSpec | None, *given: Any, **more: Any) -> AttentionRows:
    merge_in_place(found.model, spec, checkpoint=folders.mllm)
    try:
        return attention_rows(found.model, *given, **more)
    finally:
        merge_in_place(found.model, None, checkpoint=folders.mllm)


def with_answers(inputs: dict[str, Tensor], tokens: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], Any]:
    """Inputs with all tokens of the answers but their last appended, and the positions of these."""
    length, new = inputs["input_ids"].shape[1], int(lengths.max()) - 1
    read = torch.arange(new) < lengths[:, None] - 1
    more = {"input_ids": tokens[:, :new], "attention_mask": read.to(inputs["attention_mask"].dtype)}
    longer = {
        name: torch.cat([value, more.get(name, torch.zeros_like(more["input_ids"])).to(value.dtype)], dim=1)
        if value.shape == inputs["input_ids"].shape
        else value
        for name, value in inputs.items()
    }
    return longer, [(length + row.nonzero()[:, 0]).tolist() for row in read]


def check_same(got: AttentionRows, expected: AttentionRows, atol: float = 1e-5) -> None:
    torch.testing.assert_close(got.weights, expected.weights, atol=atol, rtol=0)
    assert got.queries.tolist() == expected.queries.tolist()
    assert got.vision.tolist() == expected.vision.tolist() and got.real.tolist() == expected.real.tolist()


# ---- rows ------------------------------------------------------------------------------------------------------------


def check_prompt(found: Mllm, folders: Any, inputs: dict[str, Tensor], heads: Literal["mean", "each"]) -> None:
    merges = merges_of(found, folders)
    plain = answered(found, merges, inputs, heads=heads)
    question = answered(found, merges, inputs, queries="question", heads=heads)
    settings = {"do_sample": False, "pad_token_id": PAD, "max_new_tokens": 5, "eos_token_id": 2}
    answers = generate_all_merges(found.model, merges, **{**inputs, **settings})
    for got in (plain, question):
        assert got.answers.tokens.tolist() == answers.tokens.tolist()
        assert got.answers.lengths.tolist() == answers.lengths.tolist()
    behind = tokens_behind_images(found.model, inputs)
    for number, spec in enumerate(merges.specs):
        check_same(plain.rows[number], one_by_one(found, folders, spec, inputs, heads=heads))
        check_same(question.rows[number], one_by_one(found, folders, spec, inputs, behind, heads=heads))
    differ = {round(float(rows.weights[-1].square().sum()), 5) for rows in plain.rows}
    assert len(differ) == len(merges.specs)  # merges matter to this model


def check_answers(found: Mllm, folders: Any, inputs: dict[str, Tensor], heads: Literal["mean", "each"]) -> None:
    merges = merges_of(found, folders)
    free = answered(found, merges, inputs).answers.tokens
    # An end token that some (merge, document) gives soon, some late and some never.
    ends = [int(free[0, 0, 1]), int(free[1, -1, 2])]
    got = answered(found, merges, inputs, queries="answer", heads=heads, eos_token_id=ends)
    lengths, prompt = got.answers.lengths, inputs["input_ids"].shape[1]
    assert lengths.min() < lengths.max() == 5
    for number, spec in enumerate(merges.specs):
        rows, own = got.rows[number], lengths[number]
        assert rows.weights.shape[3:] == (4, prompt + 4) and (rows.queries >= 0).sum(-1).tolist() == (own - 1).tolist()
        new = int(own.max()) - 1  # others may answer longer
        assert not rows.weights[:, :, :, new:].any() and not rows.weights[..., prompt + new :].any()
        assert not rows.real[:, prompt + new :].any()
        if not new:
            continue
        longer, positions = with_answers(inputs, got.answers.tokens[number], own)
        expected = one_by_one(found, folders, spec, longer, positions, heads=heads)
        cut = (slice(None), slice(prompt + new))
        check_same(
            AttentionRows(
                rows.weights[..., :new, : prompt + new], rows.queries[:, :new], rows.vision[cut], rows.real[cut]
            ),
            AttentionRows(expected.weights, expected.queries, rows.vision[cut], expected.real),
        )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_the_prompt_are_those_of_each_merge_alone(family, attention, mllm, pico):
    found = mllm(family)
    with backend(found, attention):
        check_prompt(found, pico(family), mixed(found), "each" if attention == "eager" else "mean")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_answers_are_those_of_a_prefill_of_prompt_and_answer(family, attention, mllm, pico):
    found = mllm(family)
    with backend(found, attention):
        check_answers(found, pico(family), mixed(found), "mean" if attention == "eager" else "each")


def templated(found: Mllm) -> dict[str, Tensor]:
    """One image and a question, through the family's own template."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it red?"}]}
    text = found.processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    inputs = dict(found.processor(text=[text], images=[[picture(0, (60, 40))]], return_tensors="pt"))
    return {name: value for name, value in inputs.items() if name != "labels"}  # which PaliGemma's adds


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_other_families_too_or_they_are_refused_by_name(family, mllm, pico):
    found, folders = mllm(family), pico(family)
    inputs = templated(found)
    if family == "gemma3":  # some of its layers have windows, so that joint answering refuses its cache
        with pytest.raises(ProbeError, match="generate_all_merges answers greedily, with a dynamic cache"):
            answered(found, merges_of(found, folders), inputs)
        return
    check_prompt(found, folders, inputs, "mean")
    if family != "paligemma":  # a prefill would let the prompt see the answer
        check_answers(found, folders, inputs, "mean")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "paligemma", "qwen3_vl_moe"])
def test_rows_of_an_answer_are_what_its_steps_attend_to(family, mllm, pico):
    """The model's own weights, step by step: where a prompt is seen both ways, no prefill of the answer gives these."""
    found, folders = mllm(family), pico(family)
    inputs = templated(found)
    specs = [None, spec_of(folders.base, (1, 3)), spec_of(folders.base, (2, 4), "qk")]
    got = answered(found, merges_of(found, folders, specs), inputs, queries="answer", heads="each", eos_token_id=None)
    length = inputs["input_ids"].shape[1]
    for number, spec in enumerate(specs):
        merge_in_place(found.model, spec, checkpoint=folders.mllm)
        try:
            with backend(found, "eager"):
                out = found.model.generate(
                    **inputs,
                    do_sample=False,
                    max_new_tokens=5,
                    eos_token_id=None,
                    output_attentions=True,
                    return_dict_in_generate=True,
                )
        finally:
            merge_in_place(found.model, None, checkpoint=folders.mllm)
        assert out.sequences[0, length:].tolist() == got.answers.tokens[number, 0].tolist()
        for step, attentions in enumerate(out.attentions[1:]):
            own = got.rows[number].weights[:, :, :, step]
            torch.testing.assert_close(
                own[..., : length + step + 1], torch.stack(attentions)[:, :, :, 0], atol=1e-5, rtol=0
            )
            assert not own[..., length + step + 1 :].any()


def test_one_merge_alone_and_a_document_without_an_image(mllm, pico):
    found, folders = mllm("qwen2_vl"), pico("qwen2_vl")
    spec = spec_of(folders.base, (2, 4))
    merges, inputs = merges_of(found, folders, [spec]), found.batch(["no image at all"])
    for queries, wanted in (("last", None), ("question", [list(range(15))])):
        got = answered(found, merges, inputs, queries=queries)
        assert len(got.rows) == 1 and not got.rows[0].vision.any()
        check_same(got.rows[0], one_by_one(found, folders, spec, inputs, wanted))


def test_prompts_share_their_rows_up_to_the_layer_in_which_they_part(mllm, pico, monkeypatch):
    found, folders = mllm("llava"), pico("llava")
    softmax, batches = torch.Tensor.softmax, []

    def counting(scores: Tensor, *args: Any) -> Tensor:
        batches.append(len(scores))
        return softmax(scores, *args)

    monkeypatch.setattr(torch.Tensor, "softmax", counting)
    specs = [None, spec_of(folders.base, (3, 4)), spec_of(folders.base, (2, 4)), spec_of(folders.base, (2, 3))]
    inputs = found.batch(["A ", picture(0), " b"], ["Look: ", picture(1), " is it red?"])
    ran: list[int] = []
    handles = [
        layer.register_forward_hook(lambda _, __, output: ran.append(len(output)))
        for layer in decoder_layers(found.model)
    ]
    try:
        answered(found, merges_of(found, folders, specs), inputs, max_new_tokens=1)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == batches == [2, 2, 4, 8]


def test_massive_activations_are_those_of_each_merge(mllm, pico, monkeypatch):
    monkeypatch.setattr("plam_eval.probing.attention.SINK_THRESHOLD", 2.8)
    found, folders = mllm("llava"), pico("llava")
    inputs = mixed(found)
    merges = merges_of(found, folders)
    for queries in ("last", "answer"):
        got = answered(found, merges, inputs, queries=queries, massive=True)
        for number, spec in enumerate(merges.specs):
            expected = one_by_one(found, folders, spec, inputs, massive=True).massive
            assert expected is not None and len(expected) > 3
            assert got.rows[number].massive.tolist() == expected.tolist()
    assert answered(found, merges, inputs).rows[0].massive is None


def test_prompts_and_answers_that_have_no_rows(mllm, pico):
    found, folders = mllm("llava"), pico("llava")
    specs = [None, spec_of(folders.base, (2, 4))]
    merges, inputs = merges_of(found, folders, specs), found.batch(["Look: ", picture(0)])
    length = inputs["input_ids"].shape[1]
    for heads, count in (("mean", 1), ("each", 2)):
        behind = answered(found, merges, inputs, queries="question", heads=heads)
        answer = answered(found, merges, inputs, queries="answer", heads=heads, max_new_tokens=1)
        for rows in (*behind.rows, *answer.rows):
            assert rows.weights.shape == (4, 1, count, 0, length) and rows.queries.shape == (1, 0)
            assert rows.real.shape == rows.vision.shape == (1, length) and rows.rows_of(0).shape[2] == 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_half_precision(family, attention, pico):
    folders = pico(family)
    model = AutoModelForImageTextToText.from_pretrained(
        folders.mllm, dtype=torch.bfloat16, attn_implementation=attention
    )
    found = Mllm(family, model.eval(), AutoProcessor.from_pretrained(folders.mllm))
    inputs = mixed(found)
    merges = merges_of(found, folders)
    settings = {"do_sample": False, "pad_token_id": PAD, "max_new_tokens": 5, "eos_token_id": 2}
    answers = generate_all_merges(model, merges, **{**inputs, **settings})
    for queries in ("last", "question", "answer"):
        got = answered(found, merges, inputs, queries=queries)
        assert got.answers.tokens.tolist() == answers.tokens.tolist()
        for rows in got.rows:
            sums = rows.weights.sum(-1)[:, rows.queries[:, None].expand(-1, 1, -1) >= 0]
            assert rows.weights.dtype == torch.float32 and sums.numel() and (sums - 1).abs().max() < 1e-5
        if queries == "last":
            expected = [one_by_one(found, folders, spec, inputs) for spec in merges.specs]
            for rows, alone in zip(got.rows, expected, strict=True):
                check_same(rows, alone, atol=0.02)


# ---- what cannot be had ----------------------------------------------------------------------------------------------


def sharper_when(decoding: bool) -> Any:
    def attention(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        return sdpa_attention_forward(
            module, query * (1.1 if (query.shape[2] == 1) == decoding else 1), *args, **kwargs
        )

    return attention


@pytest.mark.parametrize(("queries", "decoding"), [("last", False), ("question", False), ("answer", True)])
def test_attention_that_is_something_else_is_refused(queries, decoding, mllm, pico, monkeypatch):
    found, folders = mllm("qwen2_vl"), pico("qwen2_vl")
    inputs, merges, before = mixed(found), merges_of(found, folders), hooks(found)
    expected = found.generate(inputs, pad_token_id=PAD, max_new_tokens=2)
    with monkeypatch.context() as patched:
        patched.setitem(AttentionInterface._global_mapping, "sdpa", sharper_when(decoding))
        with pytest.raises(ProbeError, match=r"another output than the layer's own in layers 0 \(\d"):
            answered(found, merges, inputs, queries=queries)
        patched.setitem(AttentionInterface._global_mapping, "sdpa", sharper_when(not decoding))
        answered(found, merges, inputs, queries=queries)  # nobody asked for rows of the other
    assert hooks(found) == before and found.generate(inputs, pad_token_id=PAD, max_new_tokens=2).equal(expected)


def test_refusals(mllm, pico):
    found, folders = mllm("llava"), pico("llava")
    merges, inputs = merges_of(found, folders), found.batch(["A ", picture(0), " b"])
    with pytest.raises(
        InputError, match="queries is 'answers'; expected last, question or answer \\(did you mean answer"
    ):
        answered(found, merges, inputs, queries="answers")
    with pytest.raises(InputError, match="heads is 'all'; expected 'mean' or 'each'"):
        answered(found, merges, inputs, heads="all")
    with pytest.raises(ProbeError, match="num_beams=2"):
        answered(found, merges, inputs, num_beams=2)
    with backend(found, "flex_attention"), pytest.raises(ProbeError, match="runs with flex_attention attention"):
        answered(found, merges, inputs)


def test_a_generation_that_fails_leaves_nothing_behind(mllm, pico):
    found, folders = mllm("qwen3_vl"), pico("qwen3_vl")
    merges, inputs, before = merges_of(found, folders), found.batch(["A ", picture(0), " b"]), hooks(found)

    class Fails(StoppingCriteria):
        def __call__(self, ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            if ids.shape[1] > inputs["input_ids"].shape[1] + 1:
                raise KeyboardInterrupt
            return torch.zeros(len(ids), dtype=torch.bool)

    for queries in ("last", "answer"):
        with pytest.raises(KeyboardInterrupt):
            answered(found, merges, inputs, queries=queries, massive=True, stopping_criteria=[Fails()])
    assert hooks(found) == before
    with torch.no_grad():
        found.model(**inputs)
        found.model(**inputs)  # a capture still on would say that layers ran twice
