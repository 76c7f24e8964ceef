"""A model in hand, merged from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

import plam_eval
from plam_eval.errors import ArgumentError, CheckpointError, InputError, MergeError
from plam_eval.merging.merge import merge_in_place
from plam_eval.spec import SpecError, load_spec


@pytest.fixture
def loaded(pico: Callable[[str], Any]) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(pico("llava").mllm, dtype=torch.float32)


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_merge_is_the_merge_of_the_wrappers_and_goes_back(pico: Callable[[str], Any], loaded: Any) -> None:
    pair, plain = pico("llava"), bits(loaded)
    report = plam_eval.merge(loaded, None, base=pair.base, layers=(2, 4), modules="qk", model_weight=0.8)
    assert report.tensors == 4 and set(report.relative_change) == {2, 3} and report.model == str(pair.mllm)
    merged = bits(loaded)
    assert not same(plain, merged)
    plam_eval.merge(loaded, "none")
    assert same(plain, bits(loaded))
    spec = load_spec(None, {"base": str(pair.base), "layers": "2:4", "modules": "qk", "model_weight": 0.8})
    merge_in_place(loaded, spec, checkpoint=pair.mllm)
    assert same(merged, bits(loaded))


def test_a_model_that_no_checkpoint_holds(pico: Callable[[str], Any], loaded: Any) -> None:
    pair = pico("llava")
    weight = loaded.model.language_model.layers[2].self_attn.q_proj.weight
    with torch.no_grad():
        weight += 1
    before = weight.detach().clone()
    overrides: dict[str, Any] = {"base": pair.base, "layers": "2:3", "modules": "q_proj"}
    with pytest.raises(MergeError, match="expected a plain load of the checkpoint"):
        plam_eval.merge(loaded, None, **overrides)
    assert torch.equal(weight, before)
    plam_eval.merge(loaded, None, **overrides, base_weight=0, model_weight=2, from_parameters=True)
    assert torch.equal(weight, 2 * before)
    with pytest.raises(MergeError, match="already merged, from its parameters"):
        plam_eval.merge(loaded, "none")  # the checkpoint that it names would put other weights there
    assert torch.equal(weight, 2 * before)


def test_merge_says_what_is_wrong(pico: Callable[[str], Any], loaded: Any) -> None:
    with pytest.raises(SpecError, match="did you mean 'demo'"):
        plam_eval.merge(loaded, "dmo")
    with pytest.raises(MergeError, match="base=/nowhere/at/all: no such folder"):
        plam_eval.merge(loaded, None, base="/nowhere/at/all", layers="2:4")
    with pytest.raises(CheckpointError, match="pretrained=/nowhere"):
        plam_eval.merge(loaded, "demo", pretrained="/nowhere")
    with pytest.raises(ArgumentError, match="model is a str; expected what from_pretrained gives"):
        plam_eval.merge("llava", "none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="give one of them"):
        plam_eval.merge(loaded, "none", pretrained="a/b", from_parameters=True)
