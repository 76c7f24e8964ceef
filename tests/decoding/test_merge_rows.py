"""Attention rows of many merges in one generation, against one merge and one prefill each."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from plam_eval.decoding.all_merges import Merges, generate_all_merges
from plam_eval.decoding.merge_rows import MergeRows, generate_with_rows
from plam_eval.merging.merge import merge_in_place
from plam_eval.probing.attention import AttentionRows, attention_rows, tokens_behind_images
from plam_eval.spec import PlateauSpec, load_spec
from tests.helpers.mllm import PAD, Mllm, backend, mixed
from tests.helpers.pico import FAMILIES


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
        spec_of(base, (0, 2), "mlp"),
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
