"""Weights that change over depth: each rule is given those of its tensor's layer, with equal bits on all paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import merge_in_place, merged_values, merged_weights
from plam_eval.merging.names import decoder_tensor
from plam_eval.merging.rules import FUNCTIONS, generator_of
from plam_eval.publishing.checkpoint.export import export_checkpoint
from plam_eval.rules import RULES
from plam_eval.serving.gate import Gate
from plam_eval.spec import PlateauSpec, Weights, load_spec
from tests.helpers.llamas import LAYERS, bits, load, write_llama

MODEL, BASE = (0.9, 0.3), (0.2, 0.6)
PARAMETERS = {"della": {"density": 0.6, "epsilon": 0.2}, "breadcrumbs": {"density": 0.5}, "nearswap": {"t": 0.05}}


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """MLLM, base and ancestor. Do not modify."""
    folder = tmp_path_factory.mktemp("ramps")
    return {name: write_llama(folder / name, seed) for seed, name in enumerate(("mllm", "base", "ancestor"))}


def spec_of(trio: dict[str, Path], rule: str = "weighted_sum", **changes: Any) -> PlateauSpec:
    content = {
        "base_model": str(trio["base"]),
        "layers": [*range(LAYERS)],
        "modules": "all",
        "weights": {"model": MODEL, "base_model": BASE},
        "rule": rule,
        "parameters": PARAMETERS.get(rule, {}),
        **({"ancestor": str(trio["ancestor"])} if RULES[rule].needs_ancestor else {}),
    }
    spec = load_spec({**content, **changes})
    assert spec is not None
    return spec


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_is_given_the_weights_of_its_layer(trio: dict[str, Path], rule: str) -> None:
    model = load(trio["mllm"])
    values = merged_values(model, spec_of(trio, rule), checkpoint=trio["mllm"])
    stored = {name: load_file(folder / "model.safetensors") for name, folder in trio.items()}
    assert len(values) == LAYERS * (7 + 4)
    for name, value in values.items():
        key = decoder_tensor(name)
        assert key is not None
        share = key[0] / (LAYERS - 1)
        pair = Weights(model=MODEL[0] + share * (MODEL[1] - MODEL[0]), base_model=BASE[0] + share * (BASE[1] - BASE[0]))
        more: dict[str, Any] = dict(spec_of(trio, rule).parameters)
        if RULES[rule].needs_ancestor:
            more["ancestor"] = stored["ancestor"][name].double()
        sides = (stored[side][name].double() for side in ("mllm", "base"))
        exact = FUNCTIONS[rule](*sides, pair, generator_of(0, key), **more)
        assert float((value - exact).abs().max()) < 2e-6 * max(1.0, float(exact.abs().max())), name
        alone = spec_of(trio, rule, layers=[key[0]], weights=spec_of(trio, rule).weights_at(key[0]))
        assert spec_of(trio, rule).recipe(key[0]) == alone.recipe(key[0])
    middle = spec_of(trio, rule, layers=[1], weights={"model": 0.6, "base_model": 0.4})
    for name, value in merged_values(model, middle, checkpoint=trio["mllm"]).items():
        assert torch.equal(value, values[name]), "as with the pair of this layer alone, to the bit"


def test_memory_stream_export_and_a_request_are_one(trio: dict[str, Path], tmp_path: Path) -> None:
    spec = spec_of(trio)
    module = load(trio["mllm"], torch.float32)
    plain = bits(module)
    report = merge_in_place(module, spec, checkpoint=trio["mllm"])
    merged = {name: value.clone() for name, value in module.state_dict().items()}
    assert "weighted_sum: 0.9:0.3 model, 0.2:0.6 base" in str(report)
    weights = load_file(trio["mllm"] / "model.safetensors").items()
    for name, value in merged_weights(weights, spec, Checkpoint.open(trio["base"]), torch.float32):
        assert torch.equal(value, merged[name]), name
    export_checkpoint(str(trio["mllm"]), spec, tmp_path / "out", results=[], command="plam export")
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(value, merged[name]), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "weights 0.9:0.3 (MLLM) and 0.2:0.6 (base), from the first of these layers to the last" in card
    asked = json.loads(json.dumps(spec.to_dict()))
    given = Gate.of({}, str(trio["base"])).spec(asked, {"base_weight": "0.2:0.6"})
    assert given is not None and given.digest() == spec.digest()
    assert PlateauSpec.model_validate(asked) == spec  # as a worker is given it
    merge_in_place(module, None)
    assert all(torch.equal(value, plain[name]) for name, value in bits(module).items())


def test_what_is_shared_between_specs_is_equal(trio: dict[str, Path]) -> None:
    module, held = load(trio["mllm"]), dict[tuple[str, str], torch.Tensor]()
    specs = [
        spec_of(trio),
        spec_of(trio, weights={"model": 0.6, "base_model": 0.4}),  # as the ramp in its middle
        spec_of(trio, weights={"model": [0.9, 0.6], "base_model": [0.2, 0.4]}),  # at its ends as one of each
        spec_of(trio, "self_scale"),
        spec_of(trio, "noise"),
        spec_of(trio, "noise", weights={"model": 0.6, "base_model": 0.4}),
    ]
    for spec in specs:
        computed = merged_values(module, spec, checkpoint=trio["mllm"], computed=held)
        fresh = merged_values(module, spec, checkpoint=trio["mllm"])
        assert computed.keys() == fresh.keys()
        assert all(torch.equal(value, fresh[name]) for name, value in computed.items())
    of_a_layer = 7 + 4
    assert len(held) == of_a_layer * (3 + 2 + 1 + 3 + 3 + 2)
