"""Every cut in one generation, against one masked generation per cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from plam_eval.decoding.all_cuts import CutAnswers, generate_all_cuts
from plam_eval.probing.closed import ClosedTo
from plam_eval.probing.decoder import ProbeError
from plam_eval.probing.masking import mask_vision
from tests.helpers.mllm import PAD, Mllm, backend, hooks, mixed, picture
from tests.helpers.pico import FAMILIES, OTHER_FAMILIES


def one_by_one(
    found: Mllm, inputs: dict[str, Tensor], cuts: Sequence[int], closed_to: ClosedTo = "text", **kwargs: Any
) -> CutAnswers:
    tokens, first = [], []
    for cut in cuts:
        with mask_vision(found.model, cut, closed_to):
            tokens.append(found.generate(inputs, pad_token_id=PAD, **kwargs))
            first.append(found.model(**inputs).logits[:, -1].double().log_softmax(-1))
    longest = max(answer.shape[1] for answer in tokens)
    padded = [torch.nn.functional.pad(answer, (0, longest - answer.shape[1]), value=PAD) for answer in tokens]
    kl = torch.stack([(first[-1].exp() * (first[-1] - each)).sum(-1) for each in first])
    return CutAnswers(tuple(cuts), torch.stack(padded), kl.float())


def check(
    found: Mllm,
    inputs: dict[str, Tensor],
    cuts: Sequence[int] | None = None,
    closed_to: ClosedTo = "text",
    **kwargs: Any,
) -> CutAnswers:
    """Both ways give the same answers; returns them."""
    expected = one_by_one(found, inputs, range(found.layers + 1) if cuts is None else cuts, closed_to, **kwargs)
    got = generate_all_cuts(
        found.model, cuts, closed_to=closed_to, **inputs, do_sample=False, pad_token_id=PAD, **kwargs
    )
    assert got.cuts == expected.cuts
    assert got.tokens.dtype == torch.int64 and got.kl.dtype == torch.float32
    assert got.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(got.kl, expected.kl, atol=1e-4, rtol=0)
    return got


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_one_by_one(family, attention, mllm):
    found = mllm(family)
    with backend(found, attention):
        answers = check(found, mixed(found), max_new_tokens=16, eos_token_id=None)
    assert len({tuple(cut.flatten().tolist()) for cut in answers.tokens}) > 2  # cuts matter to this model
    assert answers.kl[:-1, [0, 1, 3]].min() > 1e-3 and not answers.kl[-1].any() and not answers.kl[:, 2].any()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("closed_to", ["question", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_the_image_closed_to_some_text(family, closed_to, attention, mllm):
    found = mllm(family)
    with backend(found, attention):
        answers = check(found, mixed(found), closed_to=closed_to, max_new_tokens=8, eos_token_id=None)
    assert len({tuple(cut.flatten().tolist()) for cut in answers.tokens}) > 2
    # Nothing reads what the question learns in the last layer.
    cuts = answers.kl[: -1 if closed_to == "last" else -2]
    assert cuts[:, :2].min() > 1e-5 and answers.kl[len(cuts) :].max() < 1e-6 and not answers.kl[:, 2].any()


@pytest.mark.slow
@pytest.mark.parametrize("closed_to", get_args(ClosedTo))
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_families_without_a_wrapper(family, closed_to, mllm):
    found = mllm(family)
    inputs = found.batch([picture(0), " is it ", picture(1), " or red?"])
    settings = {"closed_to": closed_to, "max_new_tokens": 5, "eos_token_id": None}
    refused = {
        "gemma3": "keeps its keys in DynamicSlidingWindowLayer",
        # All tokens of a prompt see each other there, so that a cut changes the image, too.
        "paligemma": None if closed_to == "text" else "lets tokens see what comes after them",
    }.get(family)
    if refused is None:
        assert check(found, inputs, **settings).kl[:-2].min() > 1e-6
    else:
        with pytest.raises(ProbeError, match=refused):
            check(found, inputs, **settings)


def test_the_three_ways_of_closing_are_three(mllm):
    found = mllm("qwen3_vl")
    each = [
        generate_all_cuts(found.model, [0], closed_to=closed_to, **mixed(found), do_sample=False, max_new_tokens=1).kl
        for closed_to in get_args(ClosedTo)
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (each[one][0, [0, 1, 3]] - each[other][0, [0, 1, 3]]).abs().min() > 1e-5
    with pytest.raises(ProbeError, match=r"closed_to is 'lost'; expected text, question or last \(did you mean last\?"):
        generate_all_cuts(found.model, closed_to="lost", **mixed(found))  # type: ignore[arg-type]


@pytest.mark.parametrize("closed_to", ["question", "last"])
def test_answers_that_end_early_with_the_image_closed_to_some_text(closed_to, mllm):
    found = mllm("qwen2_5_vl")
    inputs, settings = mixed(found), {"closed_to": closed_to, "max_new_tokens": 10}
    free = generate_all_cuts(found.model, **inputs, do_sample=False, eos_token_id=None, **settings).tokens
    ends = [int(free[0, 0, 2]), int(free[-1, 1, 5]), int(free[2, 3, 8])]
    answers = check(found, inputs, eos_token_id=ends, **settings)
    assert len(set((answers.tokens != PAD).sum(-1).flatten().tolist())) > 1


@pytest.mark.parametrize("new", [1, 5])
def test_short_answers(new, mllm):
    found = mllm("llava")
    assert check(found, mixed(found), max_new_tokens=new, eos_token_id=None).tokens.shape == (5, 4, new)


def test_answers_that_end_early(mllm):
    """An end token that some (cut, document) gives soon, some late and some never."""
    found = mllm("qwen2_5_vl")
    inputs = mixed(found)
    free = generate_all_cuts(found.model, **inputs, do_sample=False, max_new_tokens=12, eos_token_id=None).tokens
    ends = [int(free[0, 0, 2]), int(free[-1, 1, 5]), int(free[2, 3, 8])]
    answers = check(found, inputs, max_new_tokens=12, eos_token_id=ends)
    lengths = (answers.tokens != PAD).sum(-1)
    assert lengths.min() <= 3 and lengths.max() > 5


def test_one_cut_ends_before_the_others(mllm):
    """Alone in its batch, so that `generate` would stop at once for that cut."""
    found = mllm("llava")
    inputs = found.batch(["Look: ", picture(0), " is it red?"])
    free = generate_all_cuts(found.model, **inputs, do_sample=False, max_new_tokens=8, eos_token_id=None).tokens
    for cut in (0, 4):
        check(found, inputs, max_new_tokens=8, eos_token_id=int(free[cut, 0, 1]))


def test_stop_strings(mllm):
    found = mllm("llava_onevision")
    inputs, tokenizer = mixed(found), found.processor.tokenizer
    free = generate_all_cuts(found.model, **inputs, do_sample=False, max_new_tokens=6, eos_token_id=None).tokens
    printable = [(c, d, s) for c, d, s in (free < 128).nonzero().tolist() if free[c, d, s] >= 32 and 1 < s < 6]
    strings = [tokenizer.decode(free[c, d, s]) for c, d, s in printable[:3]]
    assert strings
    check(found, inputs, max_new_tokens=8, stop_strings=strings, tokenizer=tokenizer)
    # Without an end token a finished answer is written on until the whole batch is done.
    check(found, inputs, max_new_tokens=8, stop_strings=strings, tokenizer=tokenizer, eos_token_id=None)
    with pytest.raises(ProbeError, match="need the tokenizer"):
        generate_all_cuts(found.model, **inputs, max_new_tokens=2, stop_strings=strings)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 6},
        {"suppress_tokens": [56, 142, 177], "max_new_tokens": None, "max_length": 40},
    ],
)
def test_processors_of_generate(settings, mllm):
    found = mllm("qwen2_vl")
    inputs = found.batch(["Look: ", picture(0), " red?"], ["none here"])
    answers = check(found, inputs, **{"max_new_tokens": 10} | settings)
    plain = generate_all_cuts(found.model, **inputs, do_sample=False, max_new_tokens=answers.tokens.shape[-1])
    assert not torch.equal(plain.tokens, answers.tokens)


def test_the_models_own_generation_config_counts(mllm, monkeypatch):
    found = mllm("qwen3_vl")
    monkeypatch.setattr(found.model.generation_config, "repetition_penalty", 1.7)
    monkeypatch.setattr(found.model.generation_config, "max_new_tokens", 7)
    assert check(found, mixed(found)).tokens.shape[-1] == 7


class _Forbid(LogitsProcessor):
    """Another set of tokens for each document, which only works on a batch of all documents in order."""

    def __call__(self, input_ids, scores):
        for document in range(4):
            scores[document, document::4] = -1e9
        assert len(scores) == len(input_ids) == 4
        return scores


class _AtSpace(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] % 16 == 3


def test_processors_and_criteria_of_the_caller(mllm):
    found = mllm("internvl")
    inputs = mixed(found)
    check(found, inputs, max_new_tokens=10, logits_processor=[_Forbid()], stopping_criteria=[_AtSpace()])


@pytest.mark.parametrize("cuts", [[4], [0, 4], [1, 3, 4]])
def test_some_cuts_only(cuts, mllm):
    found = mllm("qwen3_vl")
    check(found, mixed(found), cuts, max_new_tokens=6)
    unordered = generate_all_cuts(found.model, [*reversed(cuts[:-1])], **mixed(found), max_new_tokens=6)
    assert unordered.cuts == tuple(cuts)  # L is always among them


@pytest.mark.parametrize("closed_to", ["text", "question", "last"])
@pytest.mark.parametrize("cuts", [None, [2], []])
def test_work_is_one_prompt_and_the_tokens_that_change_per_cut(cuts, closed_to, mllm):
    """Rows through decoder layers, counted: what is promised, for one document with new tokens n."""
    found, new = mllm("llava"), 3
    inputs = found.batch(["Look: ", picture(0, (28, 28)), " is it red?"])
    rows = []
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: rows.append(args[0].shape[:2].numel()), with_kwargs=True
        )
        for layer in found.model.get_decoder().layers
    ]
    settings = {"do_sample": False, "max_new_tokens": new, "eos_token_id": None}
    generate_all_cuts(found.model, cuts, closed_to=closed_to, **inputs, **settings)
    for handle in handles:
        handle.remove()
    chosen = range(found.layers) if cuts is None else cuts
    prompt, behind = inputs["input_ids"].shape[1], 1 if closed_to == "last" else len(" is it red?")
    beside = behind * sum(found.layers - cut for cut in chosen)
    decoded = (new - 1) * (len(chosen) + 1) * found.layers
    assert sum(rows) == found.layers * prompt + beside + decoded


def test_finished_answers_are_not_decoded_further(mllm):
    found = mllm("llava")
    inputs = found.batch(["Look: ", picture(0), " is it red?"])
    free = generate_all_cuts(found.model, **inputs, do_sample=False, max_new_tokens=6, eos_token_id=None).tokens[:, 0]
    end = int(free[-1, 0])
    batches = []
    layer = found.model.get_decoder().layers[0]
    handle = layer.register_forward_pre_hook(
        lambda _, args, kwargs: batches.append(args[0].shape[:2]), with_kwargs=True
    )
    check_end = generate_all_cuts(
        found.model, None, **inputs, do_sample=False, max_new_tokens=6, eos_token_id=end
    ).tokens
    handle.remove()
    running = [int(((free[:, :step] == end).sum(-1) == 0).sum()) for step in range(1, 6)]
    assert [batch for batch, tokens in batches if tokens == 1] == [count for count in running if count]
    assert running[0] < len(free) and check_end.shape[1] == 1


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_prompts_that_end_in_the_image(family, mllm):
    """The first token is the image's own row's, which no cut touches; the later ones are text."""
    found = mllm(family)
    if family == "llava":
        inputs = found.batch(["Look: ", picture(0)], [picture(1), "text"])
    else:  # there a delimiter comes last
        per_token = ("input_ids", "attention_mask", "mm_token_type_ids")
        inputs = found.batch(["Look: ", picture(0)])
        inputs |= {name: inputs[name][:, :-1] for name in per_token}
    answers = check(found, inputs, max_new_tokens=6, eos_token_id=None)
    assert not answers.kl[:, 0].any()
    assert len({tuple(answer.tolist()) for answer in answers.tokens[:, 0]}) > 1
    if family == "llava":
        with pytest.raises(ProbeError, match=r"documents \[1\] end in a vision token that has text"):
            generate_all_cuts(
                found.model, **found.batch(["a", picture(0), "b"], [picture(1), "b", picture(2)]), max_new_tokens=2
            )


@pytest.mark.parametrize("closed_to", ["question", "last"])
def test_prompts_that_end_in_an_image_closed_to_some_text(closed_to, mllm):
    """The rows of a later image are their own at each cut: they read the text that lost the first one."""
    found = mllm("llava")
    inputs = found.batch(["Look: ", picture(0)], [picture(1), "b", picture(2)], [picture(3), "what is it?"])
    answers = check(found, inputs, closed_to=closed_to, max_new_tokens=6, eos_token_id=None)
    assert not answers.kl[:, 0].any()
    assert bool(answers.kl[:-1, 1].any()) == (closed_to == "question")


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_what_a_decoder_adds_to_image_tokens_between_its_layers_reaches_every_cut(family, mllm):
    """Qwen3-VL adds image features behind its first layers, which later images of a cut prompt must get, too."""
    found = mllm(family)
    inputs = found.batch([picture(0), " and ", picture(1, (60, 40)), " or ", picture(2), " differ?"])
    decoder, added = found.model.get_decoder(), []
    if family == "llava":  # a decoder that does it without a method of its own

        def add(_, args):
            vision = inputs["input_ids"] == found.model.config.image_token_id
            if args[0].shape[:2] != vision.shape:
                return None
            added.append(1)
            return (torch.where(vision[..., None], args[0] + 0.5, args[0]), *args[1:])

        handle = decoder.layers[2].register_forward_pre_hook(add)
    check(found, inputs, closed_to="question", max_new_tokens=6, eos_token_id=None)
    if family == "llava":
        handle.remove()
        assert added
        handle = decoder.layers[2].register_forward_pre_hook(lambda _, args: (args[0] * 1.5, *args[1:]))
        with pytest.raises(ProbeError, match="changes text between its decoder layers"):
            generate_all_cuts(found.model, closed_to="question", **inputs, do_sample=False, max_new_tokens=2)
        handle.remove()


@pytest.mark.parametrize("closed_to", ["text", "question", "last"])
def test_videos(closed_to, mllm):
    found = mllm("qwen2_vl")
    frames = torch.randint(0, 256, (4, 3, 56, 56), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    text = ["Watch <|vision_start|><|video_pad|><|vision_end|> and tell"]
    inputs = dict(found.processor(text=text, videos=[frames], return_tensors="pt", do_sample_frames=False))
    answers = check(found, inputs, closed_to=closed_to, max_new_tokens=6, eos_token_id=None)
    assert answers.kl[:-2].min() > 1e-4


def test_text_alone_is_answered_once(mllm):
    found = mllm("llava_next")
    inputs = found.batch(["none"], ["none either"])
    answers = check(found, inputs, max_new_tokens=6)
    assert (answers.tokens == answers.tokens[-1]).all() and not answers.kl.any()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"do_sample": True}, "do_sample=True"),
        ({"num_beams": 2}, "num_beams=2"),
        ({"use_cache": False}, "use_cache=False"),
        ({"cache_implementation": "static"}, "cache_implementation='static', which gives StaticCache"),
        ({"max_time": 3.0}, r"max_time=3\.0"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate=True"),
        ({"streamer": object()}, "takes no streamer"),
        ({"cuts": [5]}, r"cuts \[5\] are not layers; expected integers from 0 to 4"),
    ],
)
def test_what_cannot_be_answered_is_refused(settings, named, mllm):
    found = mllm("llava")
    inputs = found.batch(["Look: ", picture(0), " red?"])
    found.model(**inputs)  # transformers hangs hooks of its own on a model when it is first called
    before = hooks(found)
    with pytest.raises(ProbeError, match=named):
        generate_all_cuts(found.model, **inputs, **{"max_new_tokens": 2, "do_sample": False} | settings)
    assert hooks(found) == before
    check(found, inputs, max_new_tokens=2)


def test_right_padding_and_sliding_windows_are_refused(mllm, monkeypatch):
    found = mllm("qwen2_vl")
    inputs = found.batch(["Look: ", picture(0), " red?"], [picture(1), "x"])
    mask = inputs["attention_mask"].flip(1)
    with pytest.raises(ProbeError, match="expected prompts padded on the left"):
        generate_all_cuts(found.model, **{**inputs, "attention_mask": mask}, do_sample=False, max_new_tokens=2)
    text = found.model.config.text_config
    monkeypatch.setattr(text, "sliding_window", 9)
    monkeypatch.setattr(text, "layer_types", ["sliding_attention"] * found.layers)
    with pytest.raises(ProbeError, match="keeps its keys in DynamicSlidingWindowLayer"):
        generate_all_cuts(found.model, **inputs, do_sample=False, max_new_tokens=2)


def test_a_failing_generation_leaves_the_model_as_it_was(mllm):
    found = mllm("llava")
    inputs = found.batch(["Look: ", picture(0), " red?"])
    before, config = hooks(found), found.model.get_decoder().config

    class Fails(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            if input_ids.shape[1] > inputs["input_ids"].shape[1] + 1:
                raise ZeroDivisionError
            return torch.zeros(len(input_ids), dtype=torch.bool)

    with pytest.raises(ZeroDivisionError):
        generate_all_cuts(found.model, **inputs, do_sample=False, max_new_tokens=4, stopping_criteria=[Fails()])
    assert hooks(found) == before and config._attn_implementation == "sdpa"
    with mask_vision(found.model, 1), pytest.raises(ProbeError, match="already"):
        generate_all_cuts(found.model, **inputs, do_sample=False, max_new_tokens=2)
    check(found, inputs, max_new_tokens=4)
