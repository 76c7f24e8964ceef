"""A loaded module is merged, merged again, and put back; a stream gives the same bits."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file as load_numpy
from torch import Tensor, nn

from plam_eval.errors import MergeError
from plam_eval.merging import arithmetic
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import merge_in_place, merged_weights
from plam_eval.merging.names import decoder_tensor
from plam_eval.merging.plan import plan_merge
from plam_eval.merging.report import MergeReport
from plam_eval.merging.rules import FUNCTIONS, generator_of
from plam_eval.rules import RULES, Rule
from plam_eval.spec import MODULES, PlateauSpec, Weights, load_spec
from tests.helpers.llamas import Pair, bits, changed, load, shard, write_llama
from tests.helpers.pico import FAMILIES, PicoPair, write_pico

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def load_mllm(folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)


def spec_for(base: Path, **overrides: Any) -> PlateauSpec:
    spec = load_spec(None, {"base": str(base), "layers": "2:4", **overrides})
    assert spec is not None
    return spec


def named_by(spec: PlateauSpec, module: nn.Module) -> set[str]:
    """Names the spec asks for, worked out from the spec's definition alone."""
    ends = {
        f"layers.{layer}.{MODULES[name]}.{part}"
        for layer in spec.layers
        for name in spec.modules
        for part in ("weight", "bias")
    }
    return {name for name in module.state_dict() if any(name.endswith("." + end) for end in ends) and "vis" not in name}


def ulp(values: np.ndarray) -> np.ndarray:
    """One unit in the last of bfloat16's 8 significant bits, at each value."""
    return 2.0 ** (np.floor(np.log2(np.maximum(np.abs(values), 2.0**-126))) - 7)


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PicoPair]:
    """A family's pair stored in float16, as LLaVA is, to be loaded as bfloat16. Do not modify."""
    written: dict[str, PicoPair] = {}

    def get(family: str) -> PicoPair:
        if family not in written:
            written[family] = write_pico(family, tmp_path_factory.mktemp(family), dtype=torch.float16)
        return written[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_families(halves: Callable[[str], PicoPair], family: str) -> None:
    """float16 checkpoints in a bfloat16 model: exact values, nothing else touched, the stream equal, back to plain."""
    pair = halves(family)
    module = load_mllm(pair.mllm, torch.bfloat16)
    plain = bits(module)
    spec = spec_for(pair.base)
    report = merge_in_place(module, spec, checkpoint=pair.mllm)
    names = named_by(spec, module)
    assert changed(plain, module) == names and len(names) == report.tensors >= 8

    stored, base = (load_numpy(folder / "model.safetensors") for folder in (pair.mllm, pair.base))
    mllm_of, base_of = ({decoder_tensor(name): name for name in side} for side in (stored, base))
    merged = module.state_dict()
    for name in names:
        key = decoder_tensor(name)
        term, other = 0.9 * stored[mllm_of[key]].astype(np.float64), 0.3 * base[base_of[key]].astype(np.float64)
        exact, arithmetic = term + other, 2.0**-23 * (np.abs(term) + np.abs(other))  # float32, where terms cancel
        assert np.all(np.abs(merged[name].double().numpy() - exact) <= ulp(exact) + arithmetic)

    checkpoint = Checkpoint.open(pair.mllm)
    stream = dict(
        merged_weights(
            ((n, checkpoint.tensor(n)) for n in checkpoint.names()), spec, Checkpoint.open(pair.base), torch.bfloat16
        )
    )
    assert set(stream) == set(stored)
    for name, tensor in stream.items():
        key = decoder_tensor(name)
        if key in {decoder_tensor(n) for n in names}:
            assert torch.equal(tensor, merged[next(n for n in names if decoder_tensor(n) == key)])
        else:
            assert torch.equal(tensor, checkpoint.tensor(name))

    merge_in_place(module, None)
    assert not changed(plain, module)


def test_a_set_of_layers_changes_these_alone_on_every_path(halves: Callable[[str], PicoPair]) -> None:
    pair = halves("llava")
    module, whole = load_mllm(pair.mllm, torch.bfloat16), load_mllm(pair.mllm, torch.bfloat16)
    plain = bits(module)
    spec = spec_for(pair.base, layers="0+2:4")
    report = merge_in_place(module, spec, checkpoint=pair.mllm)
    assert changed(plain, module) == named_by(spec, module) and [*report.relative_change] == [0, 2, 3]
    assert "0, 2, 3  q_proj" in str(report)
    merge_in_place(whole, spec_for(pair.base, layers="0:4"), checkpoint=pair.mllm)
    assert changed(bits(whole), module) == named_by(spec_for(pair.base, layers="1:2"), module)
    checkpoint, merged = Checkpoint.open(pair.mllm), module.state_dict()
    weights = ((name, checkpoint.tensor(name)) for name in checkpoint.names())
    streamed = {
        decoder_tensor(name): tensor
        for name, tensor in merged_weights(weights, spec, None, torch.bfloat16)
        if decoder_tensor(name)
    }
    names = named_by(spec, module)
    assert len(names) >= 12 and all(torch.equal(merged[name], streamed[decoder_tensor(name)]) for name in names)
    with pytest.raises(MergeError, match=r"layers: 1, 9 does not fit .* which has 4 decoder layers"):
        merge_in_place(module, spec_for(pair.base, layers="1+9"))
    merge_in_place(module, None)
    assert not changed(plain, module)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_resident_model_goes_from_spec_to_spec_and_back(
    halves: Callable[[str], PicoPair], family: str, dtype: torch.dtype
) -> None:
    pair = halves(family)
    fresh = bits(load_mllm(pair.mllm, dtype))
    specs = [
        spec_for(pair.base),
        spec_for(pair.base, layers="1:3", modules="vo+mlp", rule="noise"),
        None,
        spec_for(pair.base, layers="0:4", modules="all", rule="self_scale"),
        spec_for(pair.base, layers="3:4", modules="q_proj", model_weight=0, base_weight=1),
        spec_for(pair.base),
        None,
    ]
    resident = load_mllm(pair.mllm, dtype)
    for spec in specs:
        merge_in_place(resident, spec, checkpoint=pair.mllm)
        expected = load_mllm(pair.mllm, dtype)
        if spec is not None:
            assert merge_in_place(expected, spec, checkpoint=pair.mllm).restored == 0
            assert changed(fresh, expected)
        assert not changed(bits(expected), resident)
    assert not changed(fresh, resident)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unit_weights(llamas: Pair, dtype: torch.dtype) -> None:
    module, base = load(llamas.mllm, dtype), load(llamas.base, dtype).state_dict()
    plain = bits(module)
    report = merge_in_place(module, llamas.spec(model_weight=1, base_weight=0), checkpoint=llamas.mllm)
    assert not changed(plain, module)
    assert set(report.relative_change.values()) == {0.0}
    spec = llamas.spec(model_weight=0, base_weight=1)
    merge_in_place(module, spec)
    names = named_by(spec, module)
    assert changed(plain, module) == names
    assert all(torch.equal(module.state_dict()[name], base[name]) for name in names)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_rounding_from_the_stored_values(llamas: Pair, dtype: torch.dtype) -> None:
    """The model's own parameters are rounded float32 values: merging those would round twice."""
    spec = llamas.spec()
    stored, from_parameters = load(llamas.mllm, dtype), load(llamas.mllm, dtype)
    merge_in_place(stored, spec, checkpoint=llamas.mllm)
    merge_in_place(from_parameters, spec)
    mllm, base = (load_numpy(folder / "model.safetensors") for folder in (llamas.mllm, llamas.base))
    twice = 0
    for name in named_by(spec, stored):
        expected = torch.from_numpy(np.float32(0.9) * mllm[name] + np.float32(0.3) * base[name]).to(dtype)
        assert torch.equal(stored.state_dict()[name], expected)
        twice += int((from_parameters.state_dict()[name] != expected).sum())
    assert (twice > 0) == (dtype != torch.float32)


def test_a_model_merged_from_its_parameters_has_no_way_back(llamas: Pair) -> None:
    module = load(llamas.mllm)
    plain = bits(module)
    assert merge_in_place(module, None).tensors == 0
    merge_in_place(module, llamas.spec())
    once = bits(module)
    for spec in (None, llamas.spec(), llamas.spec(rule="noise")):
        with pytest.raises(MergeError, match="plain values are gone; pass checkpoint="):
            merge_in_place(module, spec)
        assert not changed(once, module)
    merge_in_place(module, None, checkpoint=llamas.mllm)
    assert not changed(plain, module)


def test_the_state_goes_with_a_copy_of_the_model(llamas: Pair) -> None:
    module = load(llamas.mllm)
    plain = bits(module)
    merge_in_place(module, llamas.spec(), checkpoint=llamas.mllm)
    twin = copy.deepcopy(module)
    merge_in_place(module, None)
    assert not changed(plain, module)
    assert changed(plain, twin)
    merge_in_place(twin, None)
    assert not changed(plain, twin)


def test_another_layout_of_the_base_changes_nothing(llamas: Pair, tmp_path: Path) -> None:
    one, other = load(llamas.mllm), load(llamas.mllm)
    merge_in_place(one, llamas.spec(), checkpoint=llamas.mllm)
    base = shard(shutil.copytree(llamas.base, tmp_path / "base"), bin=True)
    merge_in_place(other, llamas.spec(), checkpoint=Checkpoint.open(llamas.mllm), base=Checkpoint.open(base))
    assert not changed(bits(one), other)


def test_checkpoints_are_only_read(llamas: Pair) -> None:
    before = {path: path.read_bytes() for folder in (llamas.mllm, llamas.base) for path in folder.iterdir()}
    module = load(llamas.mllm)  # its parameters may be mapped from the very file
    merge_in_place(module, llamas.spec(), checkpoint=llamas.mllm)
    merge_in_place(module, None)
    assert {path: path.read_bytes() for path in before} == before


def test_merged_parameters_still_train(llamas: Pair) -> None:
    module = load(llamas.mllm)
    merge_in_place(module, llamas.spec(), checkpoint=llamas.mllm)
    module(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    gradient = module.get_parameter("model.layers.2.self_attn.q_proj.weight").grad
    assert gradient is not None and gradient.abs().sum() > 0
    with torch.inference_mode():
        cold = load(llamas.mllm)
    merge_in_place(cold, llamas.spec(), checkpoint=llamas.mllm)
    assert not changed(bits(module), cold)


def test_report(llamas: Pair) -> None:
    module, spec = load(llamas.mllm), llamas.spec(modules="qk", seed=0)
    plain = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    report = merge_in_place(module, spec, checkpoint=llamas.mllm)
    merged = module.state_dict()
    for layer in (1, 2):
        names = [name for name in named_by(spec, module) if f"layers.{layer}." in name]
        change = torch.cat([(merged[name] - plain[name]).double().flatten() for name in names]).norm()
        norm = torch.cat([plain[name].double().flatten() for name in names]).norm()
        assert report.relative_change[layer] == pytest.approx(float(change / norm), rel=1e-5)
    assert list(report.relative_change) == [1, 2]
    size = sum(plain[name].nbytes for name in named_by(spec, module))
    assert report.bytes_read == 2 * size, "only the named tensors are read, each side once"
    assert (report.tensors, report.restored, report.digest) == (8, 0, spec.digest())
    assert report.seconds > 0
    content = json.loads(json.dumps(report.to_dict()))
    assert MergeReport.from_dict(content) == report
    assert content["spec"] == spec.to_dict() and content["relative_change"].keys() == {"1", "2"}
    text = str(report)
    assert all(part in text for part in ("8 merged", "[1, 3)  q_proj k_proj", "0.9 model, 0.3 base", "1: 0."))
    assert text.count("\n") < 15
    back = merge_in_place(module, None)
    assert (back.tensors, back.restored, back.digest, back.bytes_read) == (0, 8, None, size)
    assert "8 restored" in str(back)


def test_differences_that_only_deserve_a_warning(llamas: Pair, tmp_path: Path) -> None:
    def edit(tensors: Any, config: dict[str, Any]) -> None:
        config["rms_norm_eps"] = 1e-5
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}

    base = write_llama(tmp_path / "base", 2, edit=edit)
    plan = plan_merge(llamas.spec(), model=Checkpoint.open(llamas.mllm), base=Checkpoint.open(base))
    assert [warning.split(":")[0] for warning in plan.warnings] == ["rms_norm_eps", "rope_theta"]
    assert "500000.0" in plan.warnings[1] and str(base) in plan.warnings[1]
    report = merge_in_place(load(llamas.mllm), llamas.spec(), checkpoint=llamas.mllm, base=base)
    assert report.warnings == plan.warnings
    assert "rope_theta" in str(report)


def test_plan_reads_no_weights(llamas: Pair) -> None:
    model, base = Checkpoint.open(llamas.mllm), Checkpoint.open(llamas.base)
    plan = plan_merge(llamas.spec(), model=model, base=base)
    assert model.bytes_read == base.bytes_read == 0
    assert [(t.layer, t.suffix) for t in plan.tensors] == sorted((t.layer, t.suffix) for t in plan.tensors)
    first = next(t for t in plan.tensors if t.suffix == "self_attn.k_proj.weight")
    assert (first.layer, first.shape, first.model_dtype) == (1, (16, 32), torch.float32)
    report = merge_in_place(load(llamas.mllm), llamas.spec(), checkpoint=model, base=base)
    assert plan.model_bytes + plan.base_bytes == report.bytes_read


# ---- the stream ------------------------------------------------------------------------------------------------------


def stream(pair: Pair, without: str = "", twice: str = "") -> Any:
    checkpoint = Checkpoint.open(pair.mllm)
    for name in checkpoint.names():
        if name != without:
            yield name, checkpoint.tensor(name)
        if name == twice:
            yield name, checkpoint.tensor(name)


Q1 = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "rule", ["weighted_sum", "self_scale", "normalized", "noise", "trim", "dare", "slerp", "iso_c"]
)
def test_stream_rounds_to_its_dtype_and_reports(llamas: Pair, rule: str) -> None:
    reports: list[MergeReport] = []
    spec, base = llamas.spec(rule=rule), Checkpoint.open(llamas.base)
    for dtype in (None, torch.float16, torch.bfloat16):
        module = load(llamas.mllm, dtype or torch.float32)
        expected = merge_in_place(module, spec, checkpoint=llamas.mllm)
        result = dict(merged_weights(stream(llamas), spec, base, dtype, reports.append))
        names = named_by(spec, module)
        assert all(torch.equal(result[name], module.state_dict()[name]) for name in names)
        assert all(tensor.dtype == torch.float32 for name, tensor in result.items() if name not in names)
        assert reports[-1].tensors == expected.tensors and reports[-1].bytes_read == expected.bytes_read
        assert reports[-1].relative_change == pytest.approx(expected.relative_change)


def test_stream_without_a_spec_passes_through(llamas: Pair) -> None:
    result = dict(merged_weights(stream(llamas), None, Checkpoint.open(llamas.base), torch.float16))
    assert all(tensor.dtype == torch.float32 for tensor in result.values())


def test_stream_checks_the_base_before_the_first_tensor(llamas: Pair) -> None:
    def never() -> Any:
        pytest.fail("asked for a tensor")
        yield

    with pytest.raises(MergeError, match="has 3 decoder layers"):
        merged_weights(never(), llamas.spec(layers="1:9"), Checkpoint.open(llamas.base), None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"without": Q1}, "layer 1, self_attn.q_proj.weight: never came"),
        ({"twice": Q1}, f"{Q1}: came twice"),
    ],
)
def test_stream_must_bring_every_tensor_once(llamas: Pair, change: dict[str, str], expected: str) -> None:
    with pytest.raises(MergeError, match=expected):
        list(merged_weights(stream(llamas, **change), llamas.spec(), Checkpoint.open(llamas.base), None))


@pytest.mark.parametrize(
    ("tensor", "name", "expected"),
    [
        (torch.zeros(3, 2), Q1, r"\[3, 2\], but .*q_proj.weight .* is \[32, 32\]"),
        (torch.zeros(32, 32, dtype=torch.int8), Q1, "is torch.int8; expected float32"),
        (torch.full((32, 32), torch.inf), Q1, "holds NaN or Inf"),
        (torch.zeros(3), Q1.replace("weight", "qweight"), "has no such tensor"),
    ],
)
def test_stream_refuses_what_does_not_fit(llamas: Pair, tensor: torch.Tensor, name: str, expected: str) -> None:
    with pytest.raises(MergeError, match=expected):
        list(merged_weights([(name, tensor)], llamas.spec(), Checkpoint.open(llamas.base), None))


# ---- in parts --------------------------------------------------------------------------------------------------------


def _at_once(spec: PlateauSpec, key: tuple[int, str], mllm: Tensor, base: Tensor, dtype: torch.dtype) -> Tensor:
    """The merge as it is defined: whole tensors in float32 (float64 where one is stored in it), rounded once."""
    wide = torch.float64 if torch.float64 in (mllm.dtype, base.dtype) else torch.float32
    operands = mllm.to(wide, copy=True), base.to(wide, copy=True)
    return FUNCTIONS[spec.rule](*operands, spec.weights, generator_of(spec.seed, key)).to(dtype)


@given(
    shape=st.sampled_from([(1,), (7,), (64,), (65,), (5, 13), (12, 32)]),
    rule=st.sampled_from(["weighted_sum", "self_scale", "normalized", "noise"]),
    stored=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    other=st.sampled_from([torch.bfloat16, torch.float32]),
    running=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    weights=st.sampled_from([(0.9, 0.3), (0.7, 0.3), (1, 0), (0, 1), (1, 0.1), (-0.5, 1.25)]),
    seed=st.integers(0, 1000),
    transposed=st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_parts_give_the_bits_of_the_whole(shape, rule, stored, other, running, weights, seed, transposed) -> None:
    generator = torch.Generator().manual_seed(seed)
    mllm, base = ((torch.randn(shape, generator=generator) * 0.3).to(dtype) for dtype in (stored, other))
    mllm[mllm < -0.4] = -0.0
    spec = load_spec(None, {"base": "b", "layers": "0:1", "rule": rule})
    spec = spec.model_copy(update={"weights": Weights(model=weights[0], base_model=weights[1])})
    key = (3, "self_attn.q_proj.weight")
    expected = _at_once(spec, key, mllm, base, running)
    transposed = transposed and len(shape) == 2
    out = torch.empty(shape[::-1], dtype=running).t() if transposed else torch.empty(shape, dtype=running)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "_PART", 64)
        first, second = (arithmetic.Operand(tensor, "x") for tensor in (mllm, base))
        found = arithmetic.merge_tensor(spec, key, first, second, out, arithmetic.Buffers())
    assert out.contiguous().view(torch.uint8).equal(expected.view(torch.uint8))
    plain = mllm.to(running).double()
    assert found.plain == pytest.approx(float(plain.norm()), rel=1e-5)
    assert found.difference == pytest.approx(float((expected.double() - plain).norm()), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_squares_that_float32_cannot_hold(size: float) -> None:
    values = torch.full((100,), size)
    assert arithmetic.sum_of_squares(values) == pytest.approx(100 * size**2, rel=1e-6)
    values[50] = torch.inf
    assert not math.isfinite(arithmetic.sum_of_squares(values))
    assert arithmetic.sum_of_squares(torch.zeros(3)) == 0


def test_a_rule_of_somebody_elses_sees_whole_tensors(llamas: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = set()

    def rule(mllm: Tensor, base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
        shapes.add(tuple(mllm.shape))
        return mllm - mllm.mean()

    monkeypatch.setitem(FUNCTIONS, "own", rule)
    monkeypatch.setitem(RULES, "own", Rule("own"))
    monkeypatch.setattr(arithmetic, "_PART", 8)
    merge_in_place(load(llamas.mllm), llamas.spec(modules="q_proj", rule="own"), checkpoint=llamas.mllm)
    assert shapes == {(32, 32), (32,)}
