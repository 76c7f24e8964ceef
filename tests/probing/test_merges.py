"""Many merges in one generation, against one merge and one generation each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from plam_eval.merging.merge import merge_in_place
from plam_eval.probing.decoder import decoder_layers
from plam_eval.probing.merges import MergeAnswers, Merges, generate_all_merges
from plam_eval.spec import PlateauSpec, load_spec
from tests.pico import FAMILIES
from tests.probing.conftest import Mllm
from tests.probing.test_scan import PAD, backend, mixed


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
        assert "forward" not in vars(decoder_layers(found.model)[2].self_attn.q_proj)
        return got

    return run


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_one_by_one(family, attention, mllm, check):
    found = mllm(family)
    with backend(found, attention):
        answers = check(family, mixed(found), max_new_tokens=12, eos_token_id=2)
    assert len({tuple(each.flatten().tolist()) for each in answers.tokens}) > 6  # merges matter to this model
