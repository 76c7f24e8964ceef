"""Each description and each intervention points at its layer, in a decoder whose layers' roles are known."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch

from plam_eval.decoding.all_cuts import generate_all_cuts
from plam_eval.decoding.all_merges import Merges
from plam_eval.evaluation.attend.depth import depth_of
from plam_eval.evaluation.attend.folder import PLAIN
from plam_eval.probing.attention import attention_rows, tokens_behind_images
from plam_eval.probing.closed import ClosedTo
from plam_eval.probing.decoder import decoder_layers
from plam_eval.probing.depth import hidden_states, layer_contribution, similarity
from plam_eval.probing.masking import mask_vision
from tests.helpers.roles import ANSWER, ASK, LOOK_UP, NOTHING, SEE, answers, prompts, toy

LAYERS, SHOWN = 8, 2
RELAY = {1: SEE, 3: ASK, 5: ANSWER}
"""The image sees itself in layer 1, the question reads it in layer 3, the last token the question in layer 5."""
DIRECT = {1: SEE, 5: LOOK_UP}
"""The last token looks up the image itself, in layer 5."""


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Small differences are looked at here."""


def described(model: Any, inputs: dict[str, Any]) -> dict[str, list[float]]:
    columns = depth_of(model, Merges.of(model, [None]), [PLAIN], {**inputs, "max_new_tokens": 1})[PLAIN]
    return {name: [math.nan if value is None else value for value in own] for name, own in columns.items()}


def right_from(model: Any, inputs: dict[str, Any], closed_to: ClosedTo) -> int:
    """The first cut from which on the answer is right; before, there is none. One by one and all at once."""
    found = generate_all_cuts(model, closed_to=closed_to, **inputs, do_sample=False, max_new_tokens=1)
    by_cut = answers(found.tokens)
    for cut, answer in enumerate(by_cut):
        with mask_vision(model, cut, closed_to):
            out = model.generate(**inputs, do_sample=False, max_new_tokens=1)
        assert answers(out[:, inputs["input_ids"].shape[1] :]) == [answer]
    first = by_cut.index(SHOWN)
    assert by_cut == [NOTHING] * first + [SHOWN] * (LAYERS + 1 - first)
    kl = found.kl[:, 0]
    assert (kl[:first] > 1).all() and (kl[first:] < 1e-6).all()
    return first


def layers_where(values: list[float], holds: Any) -> list[int]:
    return [layer for layer, value in enumerate(values) if holds(value)]


@pytest.mark.parametrize("shown", range(4))
def test_the_toy_answers_by_the_image(shown):
    model = toy(RELAY)
    assert int(model(**prompts(model, shown)).logits[0, -1].argmax()) == shown


def test_the_descriptions_of_a_relay_point_at_its_layers():
    model = toy(RELAY)
    columns = described(model, prompts(model, SHOWN))
    assert layers_where(columns["image_drift"], lambda drift: drift < 0.99) == [1]
    assert layers_where(columns["text_drift"], lambda drift: drift < 0.99) == [3, 5]
    assert columns["image_drift"][2:LAYERS] == pytest.approx([1.0] * 6, abs=1e-6)
    # Of the image's own work that of layer 1 alone is read by anybody.
    assert layers_where(columns["contribution"], lambda kl: kl > 1e-6) == [1]
    assert columns["contribution_flips"] == [0, 1, 0, 0, 0, 0, 0, 0]
    # Decided where layer 5 has brought the answer to the last token.
    assert columns["lens_rank"] == [1] * 6 + [0] * 3
    assert columns["lens_log_prob"][5] < -1 and columns["lens_log_prob"][6:] == pytest.approx([0.0] * 3, abs=0.1)
    # Image and text come nearer as text takes over what the image holds, or as it does nothing, stay as they are.
    moved = [later != earlier for earlier, later in zip(columns["image_text"], columns["image_text"][1:], strict=False)]
    assert [layer for layer, each in enumerate(moved) if each] == [1, 3, 5]


@pytest.mark.parametrize(
    ("roles", "text", "question", "last"),
    [
        (RELAY, 4, 4, 0),  # who reads is the question, in layer 3; the last token never does
        (DIRECT, 6, 0, 6),  # who reads is the last token, in layer 5; the question never does
        ({1: SEE, 3: ASK, 4: LOOK_UP, 5: ANSWER}, 4, 0, 0),  # both: closed to one of them, the other is enough
    ],
)
def test_an_image_closed_to_whoever_reads_it_is_missed_up_to_the_layer_that_reads(roles, text, question, last):
    model = toy(roles)
    inputs = prompts(model, SHOWN)
    assert right_from(model, inputs, "text") == text
    assert right_from(model, inputs, "question") == question
    assert right_from(model, inputs, "last") == last


@pytest.mark.parametrize(("roles", "reader", "layer"), [(RELAY, "question", 3), (DIRECT, "last", 5)])
def test_attention_to_the_image_is_where_it_is_read(roles, reader, layer):
    model = toy(roles)
    inputs = prompts(model, SHOWN)
    behind = tokens_behind_images(model, inputs)[0]
    queries = [behind[:-1] if reader == "question" else behind[-1:]]
    rows = attention_rows(model, inputs, queries)
    share = rows.weights[:, 0, 0, :, rows.vision[0]].sum(-1).mean(-1)
    assert float(share[layer]) == pytest.approx(1.0, abs=1e-4)
    idle = 4 / (min(queries[0]) + 1)  # what uniform attention gives, which a layer without a role has
    assert all(float(share[other]) < 1e-4 for other in roles if other != layer)
    assert float(share[0]) == pytest.approx(idle, abs=0.1)


def test_work_on_an_image_that_nobody_reads_moves_it_and_contributes_nothing():
    """What the drift shows need not be needed: a late layer turns the image, and no answer depends on it."""
    model = toy({**RELAY, 6: SEE})
    inputs = prompts(model, SHOWN)
    columns = described(model, inputs)
    assert layers_where(columns["image_drift"], lambda drift: drift < 0.99) == [1, 6]
    assert layers_where(columns["contribution"], lambda kl: kl > 1e-6) == [1]
    assert right_from(model, inputs, "text") == 4


def test_a_change_of_one_layer_shows_in_who_reads_its_work_from_its_depth_on():
    """As a merge would: the question's reading, in layer 3, is weakened."""
    model = toy(RELAY)
    inputs = prompts(model, SHOWN)
    reference = hidden_states(model, inputs)
    attention = cast("Any", decoder_layers(model)[3]).self_attn
    attention.o_proj.weight.mul_(0.1)
    found = similarity(model, inputs, reference)
    assert found.image_cosine[0].tolist() == pytest.approx([1.0] * 9, abs=1e-6)
    assert found.image_cka[0].tolist() == pytest.approx([1.0] * 9, abs=1e-5)
    assert found.text_cosine[0, :4].tolist() == pytest.approx([1.0] * 4, abs=1e-6)
    assert (found.text_cosine[0, 4:] < 0.99).all()
    contributed = layer_contribution(model, inputs)
    assert layers_where(contributed.kl[0].tolist(), lambda kl: kl > 1e-6) == [1]


def test_a_document_without_the_image_has_no_answer():
    model = toy(RELAY)
    inputs = prompts(model, SHOWN)
    del inputs["pixel_values"]
    inputs["input_ids"] = inputs["input_ids"][:, [0, 5, 6, 7]]
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    columns = described(model, inputs)
    assert all(math.isnan(each) for each in columns["image_drift"] + columns["contribution"])
    assert int(model(**inputs).logits[0, -1].argmax()) == NOTHING
