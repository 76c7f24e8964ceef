"""Rules that change the difference between MLLM and base: formulas in float64, ends, draws, equal bits on all paths."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plam_eval.errors import InputError
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import merge_in_place, merged_values, merged_weights
from plam_eval.merging.names import decoder_tensor
from plam_eval.merging.rules import FUNCTIONS, generator_of, register_rule
from plam_eval.rule_parameters import Parameter, split_parameters, write_parameters
from plam_eval.rules import RULES, why_not
from plam_eval.spec import PlateauSpec, SpecError, Weights, load_spec
from tests.helpers.llamas import bits, changed, load, write_llama

KEY = (3, "self_attn.q_proj.weight")
PARAMETERS: dict[str, dict[str, float]] = {
    "trim": {"density": 0.3},
    "dare": {"drop_rate": 0.4},
    "della": {"density": 0.6, "epsilon": 0.2},
    "breadcrumbs": {"density": 0.5, "gamma": 0.1},
    "slerp": {},
    "nearswap": {"t": 0.02},
    "iso_c": {},
}
UNCHANGED = {
    "trim": {"density": 1.0},
    "dare": {"drop_rate": 0.0},
    "della": {"density": 1.0, "epsilon": 0.0},
    "breadcrumbs": {"density": 1.0, "gamma": 0.0},
    "nearswap": {"t": 1e9},
}
"""Parameters that leave nothing of a rule but the weighted sum."""
WEIGHTS = [(0.9, 0.3), (1.0, 0.0), (0.3, 0.7)]


def operands(shape: tuple[int, ...] = (24, 40), seed: int = 0, apart: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    base = random.standard_normal(shape).astype(np.float32)
    return base + (apart * random.standard_normal(shape)).astype(np.float32), base


def apply(
    rule: str, sides: tuple[np.ndarray, np.ndarray], weights: tuple[float, float], seed: int = 0, **more: float
) -> np.ndarray:
    mllm, base = (torch.from_numpy(side.copy()) for side in sides)
    given = Weights(model=weights[0], base_model=weights[1])
    result: Tensor = FUNCTIONS[rule](mllm, base, given, generator_of(seed, KEY), **more)
    return result.numpy()


def near(value: np.ndarray, exact: np.ndarray, scale: float = 4.0) -> bool:
    return bool(np.abs(value - exact).max() <= 8 * 2.0**-24 * scale)


def exact_sum(sides: tuple[np.ndarray, np.ndarray], weights: tuple[float, float], change: np.ndarray) -> np.ndarray:
    return sum(weights) * sides[1].astype(np.float64) + weights[0] * change


def difference(sides: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return sides[0].astype(np.float64) - sides[1].astype(np.float64)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [(24, 40), (60,)])
def test_trim_and_breadcrumbs_are_their_formulas(weights: tuple[float, float], shape: tuple[int, ...]) -> None:
    sides = operands(shape)
    tau = difference(sides)
    places = np.abs(tau).ravel().argsort().argsort().reshape(shape)  # 0 is the smallest
    for density in (0.0, 0.1, 0.3, 1.0):
        kept = places >= tau.size - int(density * tau.size)
        assert near(apply("trim", sides, weights, density=density), exact_sum(sides, weights, tau * kept))
    for density, gamma in ((0.5, 0.1), (0.8, 0.2), (0.001, 0.1), (1.0, 0.0)):
        end = tau.size - int(gamma * tau.size)
        kept = (places < end) & (places >= end - int(density * tau.size))
        merged = apply("breadcrumbs", sides, weights, density=density, gamma=gamma)
        assert near(merged, exact_sum(sides, weights, tau * kept))


def test_trim_keeps_what_peft_keeps() -> None:
    utils = pytest.importorskip("peft.utils.merge_utils")
    sides = operands()
    tau = torch.from_numpy(sides[0] - sides[1])
    for density in (0.05, 0.2, 0.77):
        pruned = utils.prune(tau, density=density, method="magnitude").numpy()
        assert near(apply("trim", sides, (1, 0), density=density), sides[1].astype(np.float64) + pruned)


def test_equals_at_a_limit_are_kept_so_that_their_order_does_not_matter() -> None:
    base = np.zeros(8, np.float32)
    mllm = np.array([1, -1, 1, 1, 0.5, -0.5, 0.25, 2], np.float32)
    assert apply("trim", (mllm, base), (1, 0), density=0.25).tolist() == [1, -1, 1, 1, 0, 0, 0, 2]
    merged = apply("breadcrumbs", (mllm, base), (1, 0), density=0.25, gamma=0.25)
    assert merged.tolist() == [1, -1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_dare_drops_at_its_rate_and_makes_up_for_it(weights: tuple[float, float]) -> None:
    sides = operands((200, 300))
    tau, merged = difference(sides), apply("dare", sides, weights, drop_rate=0.9)
    dropped = exact_sum(sides, weights, 0 * tau)
    kept = np.abs(merged - exact_sum(sides, weights, tau / 0.1)) < np.abs(merged - dropped)
    assert near(merged, np.where(kept, exact_sum(sides, weights, tau / 0.1), dropped), 40)
    assert abs(kept.mean() - 0.1) < 5 * math.sqrt(0.09 / kept.size)


def test_means_over_seeds_are_the_weighted_sum() -> None:
    sides, seeds = operands((6, 10)), 2000
    tau = difference(sides)
    for rule, variance in (("dare", 0.4 / 0.6), ("della", 0.6 / 0.4)):  # of mask / probability, its largest
        mean = np.mean([apply(rule, sides, (0.9, 0.3), seed, **PARAMETERS[rule]) for seed in range(seeds)], axis=0)
        error = 0.9 * np.abs(tau) * math.sqrt(variance / seeds)
        assert np.all(np.abs(mean - exact_sum(sides, (0.9, 0.3), tau)) < 5 * error + 1e-5)


def test_della_keeps_by_rank_within_a_row() -> None:
    sides, seeds = operands((4, 11)), 1500
    tau = difference(sides)
    chances = 0.4 + 0.4 * np.abs(tau).argsort(axis=1).argsort(axis=1) / 10
    frequency = np.zeros_like(tau)
    for seed in range(seeds):
        merged = apply("della", sides, (1, 0), seed, density=0.6, epsilon=0.2)
        kept = np.abs(merged - sides[1]) > np.abs(tau) / 2
        assert near(merged, exact_sum(sides, (1, 0), kept * tau / chances))
        frequency += kept / seeds
    assert np.all(np.abs(frequency - chances) < 5 * np.sqrt(0.25 / seeds))
    lone = operands((1,))
    assert {apply("della", lone, (1, 0), seed, density=0.5, epsilon=0.2)[0] for seed in range(20)} == {
        lone[1][0],
        np.float32(np.float32(lone[0][0] - lone[1][0]) * 2 + lone[1][0]),
    }


@pytest.mark.parametrize("weights", [(0.9, 0.3), (0.3, 0.7), (1.0, 0.0), (0.0, 1.0)])
def test_slerp_goes_along_the_sphere(weights: tuple[float, float]) -> None:
    sides = operands(apart=1.5)
    mllm, base = (side.astype(np.float64) for side in sides)
    angle = math.acos((mllm * base).sum() / np.linalg.norm(mllm) / np.linalg.norm(base))
    assert math.cos(angle) < 0.9
    share = weights[0] / sum(weights)
    exact = (math.sin((1 - share) * angle) * base + math.sin(share * angle) * mllm) * sum(weights) / math.sin(angle)
    merged = apply("slerp", sides, weights)
    assert near(merged, exact)
    if 0 in weights:
        assert np.array_equal(merged, sides[0] if weights[0] else sides[1])
    close = operands(apart=0.01)
    assert np.array_equal(apply("slerp", close, weights), apply("weighted_sum", close, weights)), "alike: it is linear"
    nothing = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert np.array_equal(apply("slerp", nothing, weights), apply("weighted_sum", nothing, weights))


def test_nearswap_changes_no_entry_by_more_than_t() -> None:
    sides = operands()
    mllm, base = (side.astype(np.float64) for side in sides)
    published = mllm + np.clip(0.05 / np.abs(base - mllm), 0, 1) * (base - mllm)
    assert near(apply("nearswap", sides, (0, 1), t=0.05), published)
    for weights in WEIGHTS:
        change = weights[0] * mllm + weights[1] * base - mllm
        assert near(apply("nearswap", sides, weights, t=0.05), mllm + np.clip(change, -0.05, 0.05))
    assert np.array_equal(apply("nearswap", sides, (0, 1), t=0), sides[0])


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_iso_c_makes_all_singular_values_their_mean(shape: tuple[int, int]) -> None:
    sides = operands(shape)
    u, values, v = np.linalg.svd(difference(sides), full_matrices=False)
    for weights in WEIGHTS:
        assert near(apply("iso_c", sides, weights), exact_sum(sides, weights, u @ v * values.mean()))
    vector = operands((30,))
    assert np.array_equal(apply("iso_c", vector, (0.9, 0.3)), apply("weighted_sum", vector, (0.9, 0.3)))


def test_iso_c_invents_no_direction() -> None:
    base = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
    mllm = base + np.outer(np.arange(20), np.ones(30)).astype(np.float32)
    change = apply("iso_c", (mllm, base), (1, 0)).astype(np.float64) - base
    values = np.linalg.svd(change, compute_uv=False)
    assert values[0] == pytest.approx(np.linalg.norm(difference((mllm, base))) / 20, rel=1e-5)
    assert values[1] < 1e-4 * values[0]
    assert np.array_equal(apply("iso_c", (base, base), (1, 0)), base)


@pytest.mark.parametrize("rule", sorted(PARAMETERS))
def test_ends(rule: str) -> None:
    sides = operands()
    if rule in UNCHANGED:
        for weights in WEIGHTS:
            assert np.array_equal(
                apply(rule, sides, weights, 0, **UNCHANGED[rule]), apply("weighted_sum", sides, weights)
            )
        one = _spec(rule, parameters=UNCHANGED[rule])
        if rule != "nearswap":
            assert one.digest() == _spec("weighted_sum").digest()
    if rule != "nearswap":
        assert np.array_equal(apply(rule, sides, (0, 1), 0, **PARAMETERS[rule]), sides[1]), "the base alone"
        base = {"model": 0, "base_model": 1}
        assert _spec(rule, weights=base).digest() == _spec("weighted_sum", parameters={}, weights=base).digest()
    alike = sides[1], sides[1]
    expected = 1.2 * sides[1].astype(np.float64)
    if rule == "nearswap":
        expected = sides[1] + np.clip(0.2 * sides[1].astype(np.float64), -0.02, 0.02)
    assert near(apply(rule, alike, (0.9, 0.3), 0, **PARAMETERS[rule]), expected), "no difference, no task vector"


# Specs


def _spec(rule: str, **changes: Any) -> PlateauSpec:
    content = {
        "base_model": "org/base",
        "layer_range": [0, 2],
        "modules": ["q_proj"],
        "weights": {"model": 0.9, "base_model": 0.3},
        "rule": rule,
        "parameters": PARAMETERS.get(rule, {}),
    }
    spec = load_spec({**content, **changes})
    assert spec is not None
    return spec


def test_digests_tell_parameters_apart_and_not_their_notation() -> None:
    spec = _spec("breadcrumbs")
    assert spec.parameters == {"density": 0.5, "gamma": 0.1}
    assert load_spec(spec.to_dict()) == spec
    assert _spec("breadcrumbs", parameters="gamma:.1+density:5e-1").digest() == spec.digest()
    assert _spec("breadcrumbs", parameters={"density": 0.5}).parameters == {"density": 0.5, "gamma": 0.01}
    assert load_spec(spec, {"parameters": write_parameters(spec.parameters)}).digest() == spec.digest()
    plain_unit = {"model": 1, "base_model": 0}
    specs = [_spec(rule) for rule in sorted(PARAMETERS)]
    specs += [_spec(rule, weights=plain_unit) for rule in sorted(PARAMETERS) if rule not in ("slerp", "nearswap")]
    specs += [_spec("dare", seed=1), _spec("dare", parameters={"drop_rate": 0.5}), _spec("weighted_sum")]
    assert len({spec.digest() for spec in specs}) == len(specs)
    assert not any(spec.is_plain for spec in specs), "weights of 1 + 0 are what the literature calls these rules with"
    assert _spec("slerp", weights=plain_unit).is_plain and _spec("nearswap", weights=plain_unit).is_plain


def test_breadcrumbs_that_drop_nothing_large_are_trim() -> None:
    sides = operands()
    crumbs = {"density": 0.3, "gamma": 0.0}
    same = apply("breadcrumbs", sides, (0.9, 0.3), 0, **crumbs)
    assert np.array_equal(same, apply("trim", sides, (0.9, 0.3), 0, density=0.3))
    trim = _spec("trim", parameters={"density": 0.3})
    assert _spec("breadcrumbs", parameters=crumbs).digest() == trim.digest()
    assert _spec("breadcrumbs", parameters={"density": 0.3, "gamma": 0.1}).digest() != trim.digest()


def test_another_rule_over_a_spec_leaves_the_parameters_of_the_first_behind() -> None:
    spec = load_spec(_spec("trim"), {"rule": "noise"})
    assert spec is not None and spec.parameters == {} and "parameters" not in spec.to_dict()
    other = load_spec(_spec("trim"), {"parameters": "drop_rate:0.2", "rule": "dare"})
    assert other is not None and other.parameters == {"drop_rate": 0.2}


@pytest.mark.parametrize(
    ("rule", "parameters", "says"),
    [
        ("trim", {"densty": 0.2}, "'densty' is no parameter of trim, did you mean 'density'?"),
        ("noise", {"density": 0.2}, "'density' is no parameter of noise, which has none"),
        ("trim", {"density": 1.5}, "density: found 1.5, expected a number of more than 0 and at most 1"),
        # Nothing of the vector would be left, under a digest of its own.
        ("trim", {"density": 0}, "density: found 0, expected a number of more than 0"),
        ("nearswap", {"t": 0}, "t: found 0, expected a number of more than 0"),
        ("trim", {"density": "much"}, "density: found 'much', expected a number"),
        ("trim", {"density": True}, "density: found True, expected a number"),
        ("trim", {"density": math.nan}, "density: found nan"),
        ("trim", [0.2], "expected numbers by name"),
        ("trim", "0.2", "expected numbers by name"),
        ("trim", "density:0.2+density:0.3", "expected numbers by name"),
        ("trim", "density:0.2:3", "expected numbers by name"),
        ("dare", {"drop_rate": 1}, "at least 0 and less than 1"),
        ("della", {}, "density: missing; expected a number of more than 0 and at most 1"),
        ("della", {"density": 0.1}, "density - epsilon is -0.05; expected more than 0"),
        ("della", {"density": 0.9}, "density + epsilon is 1.05; expected at most 1"),
        ("breadcrumbs", {"density": 1}, "density + gamma is 1.01; expected at most 1"),
        ("nearswap", {"t": -1}, "t: found -1, expected a number of more than 0"),
    ],
)
def test_parameters_are_checked_by_what_the_rule_declares(rule: str, parameters: Any, says: str) -> None:
    with pytest.raises(SpecError) as refused:
        _spec(rule, parameters=parameters)
    assert says in str(refused.value) and len(refused.value.problems) == 1


@pytest.mark.parametrize("rule", ["ties", "trim"])
def test_a_rule_that_keeps_nothing_of_a_vector_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="found 0, expected a number of more than 0"):
        RULES[rule].read_parameters({"density": 0})


def test_every_problem_of_parameters_is_told_at_once() -> None:
    with pytest.raises(SpecError) as refused:
        _spec("breadcrumbs", parameters={"density": 2, "gama": 1}, seed=-1)
    assert all(word in str(refused.value) for word in ("density: found 2", "did you mean 'gamma'", "seed"))


def test_slerp_refuses_weights_that_are_no_place_on_the_way() -> None:
    for weights in ({"model": -1, "base_model": 2}, {"model": 0, "base_model": 0}):
        with pytest.raises(SpecError, match="'slerp' goes from one source to the other"):
            _spec("slerp", weights=weights)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wudi", "task vector itself"),
        ("OptMerge", "task vector itself"),
        ("TSV-M", "share of the rank"),
        ("sce", "is zero"),
        ("model_stock", "two tuned models"),
        ("linear", "'normalized' of any weights a and b"),
        ("wise-ft", "weighted_sum"),
    ],
)
def test_rules_that_degenerate_are_refused_by_name(name: str, says: str) -> None:
    with pytest.raises(SpecError, match=rf"{name!r} is no rule here: .*{says}"):
        _spec(name)
    assert why_not("weighted_sum") is None and why_not("nonsense") is None


def test_words_of_parameters() -> None:
    assert split_parameters("t:1e-3+x:-2") == {"t": "1e-3", "x": "-2"} and split_parameters("") == {}
    assert write_parameters({"t": 1e-05, "x": -2.0}) == "t:1e-05+x:-2.0"
    assert split_parameters(write_parameters({"t": 1e20, "x": 0.1})) == {"t": "1e+20", "x": "0.1"}


@pytest.mark.usefixtures("own_rules")
def test_a_rule_of_ones_own_has_parameters_too(tmp_path: Path) -> None:
    def bounded(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator, *, most: float) -> Tensor:
        return w_mllm + (w_base - w_mllm).clamp(-most, most)

    register_rule("bounded", bounded, elementwise=True, parameters=[Parameter("most", "the most that changes", 0.5)])
    assert _spec("bounded").parameters == {"most": 0.5}
    mllm, base = write_llama(tmp_path / "mllm", 1), write_llama(tmp_path / "base", 2)
    model = load(mllm)
    merge_in_place(model, _spec("bounded", base_model=str(base), parameters={"most": 0.0}), checkpoint=mllm)
    assert all(
        torch.equal(one, other) for one, other in zip(bits(model).values(), bits(load(mllm)).values(), strict=True)
    )
    with pytest.raises(InputError, match="one of plam-eval has this name"):
        register_rule("trim", bounded)


# One result on every path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return write_llama(folder / "mllm", 1, dtype=torch.bfloat16), write_llama(folder / "base", 2, dtype=torch.bfloat16)


@pytest.mark.parametrize("rule", sorted(PARAMETERS))
def test_in_place_in_a_stream_and_beside_the_model_are_the_same_bits(rule: str, pair: tuple[Path, Path]) -> None:
    mllm, base = pair
    weights = {"model": 1, "base_model": 0.1}
    spec = _spec(rule, base_model=str(base), modules="all", weights=weights, seed=5)
    model = load(mllm, torch.bfloat16)
    plain = bits(model)
    beside = merged_values(model, spec, checkpoint=mllm)
    report = merge_in_place(model, spec, checkpoint=mllm)
    merged = model.state_dict()
    assert report.tensors == len(beside) and all(torch.equal(merged[name], value) for name, value in beside.items())
    assert write_parameters(spec.parameters).partition(":")[0] in str(report)
    checkpoint = Checkpoint.open(mllm)
    backwards = ((name, checkpoint.tensor(name)) for name in reversed(checkpoint.names()))
    stream = {decoder_tensor(name): tensor for name, tensor in merged_weights(backwards, spec, None, torch.bfloat16)}
    assert all(torch.equal(stream[decoder_tensor(name)], merged[name]) for name in beside)
    for name in sorted(beside)[:3]:  # and of the definition, rounded once
        key = decoder_tensor(name)
        sides = [Checkpoint.open(folder).tensor(name).float() for folder in pair]
        given = Weights(model=1, base_model=0.1)
        one = FUNCTIONS[rule](*sides, given, generator_of(5, key), **spec.parameters).to(torch.bfloat16)
        assert torch.equal(merged[name], one)
    merge_in_place(model, None)
    assert not changed(plain, model)


def test_what_a_rule_declares_of_itself() -> None:
    for name in PARAMETERS:
        rule = RULES[name]
        assert rule.role == "merge" and rule.meaning and rule.reference
        assert rule.elementwise == (name == "nearswap") and rule.draws == (name in ("dare", "della"))
        assert all(parameter.meaning for parameter in rule.parameters)


@pytest.mark.parametrize("rule", ["dare", "della"])
def test_a_draw_belongs_to_seed_and_tensor(rule: str) -> None:
    sides: Callable[[], tuple[np.ndarray, np.ndarray]] = operands
    first = apply(rule, sides(), (1, 0), 3, **PARAMETERS[rule])
    assert np.array_equal(first, apply(rule, sides(), (1, 0), 3, **PARAMETERS[rule]))
    assert not np.array_equal(first, apply(rule, sides(), (1, 0), 4, **PARAMETERS[rule]))
