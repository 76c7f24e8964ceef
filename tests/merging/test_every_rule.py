"""Every rule of this package against its formula in float64, and what has to hold of all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from plam_eval.errors import MergeError
from plam_eval.evaluation.sweep.config import SweepConfig
from plam_eval.evaluation.sweep.grid import cell_arguments, make_grid
from plam_eval.merging.ancestor_rules import dare_both, diga, task_arithmetic, ties
from plam_eval.merging.arithmetic import Buffers, Operand, merge_tensor
from plam_eval.merging.rules import FUNCTIONS, generator_of
from plam_eval.rules import RULES, why_not
from plam_eval.spec import PlateauSpec, SpecError, Weights, load_spec

KEY = (3, "self_attn.q_proj.weight")
SHAPES = [(24, 40), (40, 24), (30, 30), (1, 17), (17, 1), (1, 1), (19,), (1,)]
PARAMETERS: dict[str, dict[str, float]] = {
    "trim": {"density": 0.3},
    "dare": {"drop_rate": 0.4},
    "della": {"density": 0.6, "epsilon": 0.2},
    "breadcrumbs": {"density": 0.5, "gamma": 0.1},
    "nearswap": {"t": 0.02},
    "ties": {"density": 0.3},
    "dare_both": {"drop_rate": 0.4},
    "dim3": {"above_mean": 1.0},
    "diga_ties": {"density": 0.3},
    "diga_dare_both": {"drop_rate": 0.4},
}
Draw = Callable[[], np.ndarray]


# The formulas, in float64. `draw` gives the next numbers of [0, 1) that the tensor draws.


def kept(tau: np.ndarray, density: float, gamma: float = 0.0) -> np.ndarray:
    sizes = np.sort(np.abs(tau), axis=None)
    end = tau.size - int(gamma * tau.size)
    count = min(end, int(density * tau.size))
    if not count:
        return np.zeros(tau.shape, dtype=bool)
    return (np.abs(tau) >= sizes[end - count]) & (np.abs(tau) <= sizes[end - 1])  # and those that equal a limit


def by_rank(tau: np.ndarray, draw: Draw, density: float, epsilon: float) -> np.ndarray:
    rows = tau.reshape(-1, tau.shape[-1])
    spread = 2 * epsilon / (rows.shape[1] - 1) if rows.shape[1] > 1 else 0
    places = np.abs(rows).argsort(axis=1, kind="stable").argsort(axis=1)
    chances = places * spread + (density - epsilon if rows.shape[1] > 1 else density)
    return ((draw().reshape(rows.shape) < chances) * rows / chances).reshape(tau.shape)


def isotropic(tau: np.ndarray) -> np.ndarray:
    if tau.ndim < 2 or not tau.any():
        return tau
    u, values, v = np.linalg.svd(tau, full_matrices=False)
    return (u * (values > 1e-5 * values[0])) @ v * values.mean()


def elected(one: np.ndarray, other: np.ndarray, a: float, b: float, density: float) -> np.ndarray:
    vectors = [a * one * kept(one, density), b * other * kept(other, density)]
    sign = np.where(vectors[0] + vectors[1] >= 0, 1, -1)
    agree = [np.sign(vector) == sign for vector in vectors]
    return sum(v * g for v, g in zip(vectors, agree, strict=True)) / np.maximum(1, agree[0].astype(int) + agree[1])


def dropped(one: np.ndarray, other: np.ndarray, a: float, b: float, draw: Draw, drop_rate: float) -> np.ndarray:
    return (a * one * (draw() >= drop_rate) + b * other * (draw() >= drop_rate)) / (1 - drop_rate)


def shares(values: list[np.ndarray], above_mean: float, scale: float = 1.0) -> np.ndarray:
    stacked = np.stack(values)
    soft = np.exp(stacked / scale) / np.exp(stacked / scale).sum(axis=0)
    return np.where(stacked > above_mean * stacked.mean(axis=1, keepdims=True), 1, soft)


def places(values: np.ndarray) -> np.ndarray:
    return rankdata(values, method="min") - 1.0


def by_column(mllm: np.ndarray, base: np.ndarray, old: np.ndarray, above_mean: float) -> np.ndarray:
    """DiM3's shares of both sources, per column; per entry of a vector."""
    if old.ndim < 2:
        return shares([np.abs(mllm - old), np.abs(base - old)], above_mean)
    norm = np.linalg.norm
    bends, sizes = [], []
    for side in (mllm, base):
        both = np.sqrt((side * side).sum(axis=0) * (old * old).sum(axis=0))
        cosine = np.divide((side * old).sum(axis=0), both, out=np.zeros_like(both), where=both > 0)
        bends.append(places(1 - cosine))
        sizes.append(places(np.abs(norm(side, axis=0) - norm(old, axis=0))))
    columns = old.shape[1]
    return (shares(bends, above_mean, columns) + shares(sizes, above_mean, columns)) / 2


def families(tau: np.ndarray, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DiGA's orientation and structure of a task vector."""
    if old.shape[0] < old.shape[1]:
        one, other = families(tau.T, old.T)
        return one.T, other.T
    q = np.linalg.qr(old)[0]
    turn = q @ (q.T @ tau - tau.T @ q) / 2
    return turn, tau - turn


def expected(
    rule: str,
    sides: list[np.ndarray],
    weights: tuple[float, float],
    generator: torch.Generator,
    **given: float,
) -> np.ndarray:
    mllm, base, old = (side.astype(np.float64) for side in sides)
    (a, b), tau, one, other = weights, mllm - base, mllm - old, base - old
    merged = a * mllm + b * base

    def draw() -> np.ndarray:
        return torch.rand(mllm.shape, generator=generator).numpy()

    def changed(change: np.ndarray) -> np.ndarray:
        return (a + b) * base + a * change

    if rule == "noise":
        direction = torch.randn(mllm.shape, generator=generator).double().numpy()
        return mllm + direction * np.linalg.norm(merged - mllm) / np.linalg.norm(direction)
    if rule == "slerp":
        both = np.linalg.norm(mllm) * np.linalg.norm(base)
        cosine = (mllm * base).sum() / both if both else 1
        if abs(cosine) > 0.9995:
            return merged
        angle, share = np.arccos(cosine), a / (a + b)
        return (a + b) * (np.sin(share * angle) * mllm + np.sin((1 - share) * angle) * base) / np.sin(angle)
    if rule.startswith("diga_"):
        wrapped = elected if rule == "diga_ties" else dropped
        more: dict[str, Any] = {**given, **({"draw": draw} if wrapped is dropped else {})}
        if old.ndim < 2:
            return old + wrapped(one, other, a, b, **more)
        pairs = zip(families(one, old), families(other, old), strict=True)
        return old + sum(wrapped(mine, theirs, a, b, **more) for mine, theirs in pairs)
    if rule == "dim3":
        omega = by_column(mllm, base, old, **given)
        return old + a * omega[0] * one + b * omega[1] * other
    formulas: dict[str, Callable[[], np.ndarray]] = {
        "weighted_sum": lambda: merged,
        "self_scale": lambda: (a + b) * mllm,
        "normalized": lambda: merged / (a + b),
        "trim": lambda: changed(tau * kept(tau, **given)),
        "dare": lambda: changed(tau * (draw() >= given["drop_rate"]) / (1 - given["drop_rate"])),
        "della": lambda: changed(by_rank(tau, draw, **given)),
        "breadcrumbs": lambda: changed(tau * kept(tau, **given)),
        "nearswap": lambda: mllm + np.clip(merged - mllm, -given["t"], given["t"]),
        "iso_c": lambda: changed(isotropic(tau)),
        "task_arithmetic": lambda: old + a * one + b * other,
        "from_ancestor": lambda: old + a * one + b * other,
        "ties": lambda: old + elected(one, other, a, b, **given),
        "dare_both": lambda: old + dropped(one, other, a, b, draw, **given),
    }
    return formulas[rule]()


# What is done with them


def operands(shape: tuple[int, ...] = (24, 40), seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """MLLM, base and ancestor, as stored."""
    random = np.random.default_rng(seed)
    old, one, two = (random.standard_normal(shape) for _ in range(3))
    return [torch.from_numpy(side).to(dtype) for side in (old + 0.1 * one, old + 0.1 * two, old)]


def spec_of(rule: str, weights: tuple[float, float] = (0.9, 0.3), **changes: Any) -> PlateauSpec:
    content = {
        "base_model": "org/base",
        "ancestor": "org/ancestor",
        "layer_range": [0, 4],
        "modules": ["q_proj"],
        "weights": {"model": weights[0], "base_model": weights[1]},
        "rule": rule,
        "parameters": PARAMETERS.get(rule, {}),
    }
    spec = load_spec({**content, **changes})
    assert spec is not None
    return spec


def merge(spec: PlateauSpec, sides: list[Tensor], out: torch.dtype | None = None, key: Any = KEY) -> Tensor:
    """As every path merges a tensor."""
    mllm, base, old = (Operand(side.clone(), name) for side, name in zip(sides, ("m", "b", "a"), strict=True))
    result = torch.empty(sides[0].shape, dtype=out or sides[0].dtype)
    merge_tensor(spec, key, mllm, base, result, Buffers(), old if spec.needs_ancestor else None)
    return result


def exact(spec: PlateauSpec, sides: list[Tensor], key: Any = KEY) -> np.ndarray:
    pair = spec.weights_at(spec.layers[0])
    weights = (pair.model, pair.base_model)
    wide = [side.double().numpy() for side in sides]
    return expected(spec.rule, wide, weights, generator_of(spec.seed, key), **spec.parameters)


def near(value: Tensor, formula: np.ndarray, scale: float = 8.0) -> bool:
    """Within some roundings of float32, and one of the result's own precision."""
    unit = {torch.float64: 0, torch.float32: 0}.get(value.dtype, torch.finfo(value.dtype).eps)
    return bool(np.all(np.abs(value.double().numpy() - formula) <= scale * 2.0**-22 + unit * np.abs(formula)))


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_formula_in_float64(rule: str, shape: tuple[int, ...]) -> None:
    for weights, seed in itertools.product([(0.9, 0.3), (1.0, 1.0), (0.4, 0.6), (1.0, 0.0), (0.0, 1.0)], (0, 1)):
        spec, sides = spec_of(rule, weights, seed=seed), operands(shape, seed)
        assert near(merge(spec, sides), exact(spec, sides)), (weights, seed)


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_formula_in_every_precision(rule: str, dtype: torch.dtype) -> None:
    spec, sides = spec_of(rule, seed=2), operands((20, 33), 2, dtype)
    merged = merge(spec, sides)
    assert merged.dtype == dtype and near(merged, exact(spec, sides))
    wide = merge(spec, [side.double() for side in sides])
    assert near(merge(spec, sides, torch.float32), wide.numpy()), "stored in whatever precision, computed in float32"


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (11,)], ids=str)
def test_sources_that_are_equal_or_nothing(rule: str, shape: tuple[int, ...]) -> None:
    mllm, base, old = operands(shape)
    nothing = torch.zeros(shape)
    cases = {
        "all equal": [mllm, mllm, mllm],
        "one model twice": [mllm, mllm, old],
        "base is the ancestor": [mllm, old, old],
        "MLLM is the ancestor": [old, base, old],
        "no MLLM": [nothing, base, old],
        "no base": [mllm, nothing, old],
        "no ancestor": [mllm, base, nothing],
        "nothing at all": [nothing, nothing, nothing],
    }
    for name, sides in cases.items():
        spec = spec_of(rule)
        merged = merge(spec, sides)
        if rule != "noise" or not torch.equal(sides[0], sides[1]) or sides[0].any():
            formula = exact(spec, sides) if sides[0].any() or sides[1].any() or rule != "noise" else nothing.numpy()
            assert near(merged, formula), name
        assert bool(merged.isfinite().all()), name
    assert not merge(spec_of(rule), [nothing] * 3).any(), "of nothing comes nothing"


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.needs_ancestor])
def test_the_end_that_is_the_ancestor_alone(rule: str) -> None:
    sides = operands()
    assert torch.equal(merge(spec_of(rule, (0.0, 0.0)), sides), sides[2])
    alone = spec_of(rule, (0.0, 0.0)).digest()
    assert alone == spec_of("task_arithmetic", (0.0, 0.0), parameters={}).digest()
    assert near(merge(spec_of(rule), [sides[2]] * 3), sides[2].double().numpy()), "no task vector, no change"


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(rule: str, wrong: float) -> None:
    for place in range(3 if RULES[rule].needs_ancestor else 2):
        sides = operands()
        sides[place][2, 3] = wrong
        with pytest.raises(MergeError, match=f"  - {'mba'[place]} holds NaN or Inf"):
            merge(spec_of(rule), sides)


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.draws])
def test_a_draw_is_of_seed_and_tensor_alone(rule: str) -> None:
    sides, one = operands(), spec_of(rule, seed=7)
    first = merge(one, sides)
    torch.manual_seed(5)
    merge(one, operands(seed=4), key=(2, KEY[1]))
    assert torch.equal(merge(one, sides), first), "whatever was merged before"
    others = [
        merge(spec_of(rule, seed=8), sides),
        merge(one, sides, key=(4, KEY[1])),
        merge(one, sides, key=(3, "self_attn.k_proj.weight")),
    ]
    assert not any(torch.equal(other, first) for other in others)
    assert one.digest() != spec_of(rule, seed=8).digest()


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if not rule.draws])
def test_what_draws_nothing_has_no_seed(rule: str) -> None:
    sides = operands()
    assert torch.equal(merge(spec_of(rule, seed=1), sides), merge(spec_of(rule, seed=2), sides))
    assert spec_of(rule, seed=1).digest() == spec_of(rule, seed=2).digest()


# DARE on both task vectors


def call(rule: Callable[..., Tensor], sides: list[Tensor], weights: tuple[float, float], seed: int = 0, **more: float):
    mllm, base, old = (side.clone() for side in sides)
    given = Weights(model=weights[0], base_model=weights[1])
    return rule(mllm, base, given, generator_of(seed, KEY), ancestor=old, **more)


@pytest.mark.parametrize("rule", ["dare_both", "diga_dare_both"])
def test_the_mean_over_seeds_is_task_arithmetic(rule: str) -> None:
    sides, seeds, weights = operands((6, 10)), 2000, (0.9, 0.3)
    wide = [side.double().numpy() for side in sides]
    drawn = np.stack(
        [call(FUNCTIONS[rule], sides, weights, seed, drop_rate=0.4).double().numpy() for seed in range(seeds)]
    )
    taus = [wide[0] - wide[2], wide[1] - wide[2]]
    split = [families(tau, wide[2]) if rule.startswith("diga") else (tau,) for tau in taus]
    variance = sum(
        (weight * part) ** 2 * 0.4 / 0.6 for weight, parts in zip(weights, split, strict=True) for part in parts
    )
    target = wide[2] + weights[0] * taus[0] + weights[1] * taus[1]
    assert np.all(np.abs(drawn.mean(axis=0) - target) < 5 * np.sqrt(variance / seeds) + 1e-6)
    spread = drawn.var(axis=0, ddof=1) / variance  # as of masks that have nothing to do with each other
    assert abs(spread.mean() - 1) < 0.05, spread.mean()


def test_each_source_has_a_mask_of_its_own() -> None:
    sides = operands((100, 100))
    mine = call(dare_both, sides, (1, 0), 1, drop_rate=0.5) != sides[2]
    theirs = call(dare_both, sides, (0, 1), 1, drop_rate=0.5) != sides[2]
    for mask in (mine, theirs):
        assert abs(mask.double().mean() - 0.5) < 5 * 0.5 / 100
    assert abs((mine & theirs).double().mean() - 0.25) < 5 * 0.44 / 100


def test_dare_of_given_masks_is_that_of_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("peft.utils.merge_utils")
    sides, weights = operands(seed=6), (0.9, 0.3)
    generator = generator_of(0, KEY)
    monkeypatch.setattr(
        torch, "bernoulli", lambda chances: (torch.rand(chances.shape, generator=generator) >= 0.4) * 1.0
    )
    change = utils.dare_linear([side - sides[2] for side in sides[:2]], torch.tensor(weights), 0.6)
    merged = call(dare_both, sides, weights, drop_rate=0.4)
    assert near(merged, (sides[2] + change).double().numpy())
    plain = utils.task_arithmetic([side - sides[2] for side in sides[:2]], torch.tensor(weights))
    assert near(call(task_arithmetic, sides, weights), (sides[2] + plain).double().numpy())
    generator = generator_of(0, KEY)
    lone = utils.prune(sides[0] - sides[1], 0.6, method="random", rescale=True)
    assert near(merge(spec_of("dare", (1, 0)), sides), (sides[1] + lone).double().numpy())


@pytest.mark.parametrize("rule", ["dare_both", "diga_dare_both"])
def test_nothing_dropped_is_task_arithmetic(rule: str) -> None:
    sides = operands()
    for weights in ((0.9, 0.3), (0.4, 0.6), (1.0, 0.0)):
        whole = spec_of(rule, weights, parameters={"drop_rate": 0})
        plain = spec_of("task_arithmetic", weights)
        assert torch.equal(merge(whole, sides), merge(plain, sides))
        assert whole.digest() == plain.digest() != spec_of(rule, weights).digest()
    summed = spec_of(rule, (0.4, 0.6), parameters={"drop_rate": 0})
    assert summed.digest() == spec_of("weighted_sum", (0.4, 0.6)).digest()


# DiGA


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)], ids=str)
def test_diga_changes_nothing_of_a_linear_rule(shape: tuple[int, ...]) -> None:
    sides = operands(shape)
    for weights in ((0.9, 0.3), (1.0, 1.0), (-0.5, 2.0)):
        turned, plain = (call(rule, sides, weights) for rule in (diga(task_arithmetic), task_arithmetic))
        assert near(turned, plain.double().numpy())
    assert not near(call(diga(ties), sides, (1, 1), density=0.3), call(ties, sides, (1, 1), density=0.3).numpy())


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)], ids=str)
def test_orientation_and_structure_are_orthogonal_and_add_up(shape: tuple[int, ...]) -> None:
    given = operands(shape)
    tau, old = (given[0] - given[2]).double(), given[2].double()
    seen: list[Tensor] = []

    def noted(w_mllm: Tensor, w_base: Tensor, *rest: Any, ancestor: Tensor) -> Tensor:
        assert not ancestor.any(), "a rule is given task vectors, from an ancestor that is nothing"
        seen.append(w_mllm.double().clone())
        return ancestor

    noted.__name__ = "ties"
    assert torch.equal(call(diga(noted), given, (1, 1)), given[2])
    turn, rest = seen
    assert torch.allclose(turn + rest, tau, atol=1e-6) and 0.05 < turn.norm() / tau.norm() < 0.95
    assert abs(float((turn * rest).sum())) < 1e-6 * float(tau.norm() ** 2)
    q = torch.linalg.qr(old if shape[0] >= shape[1] else old.T)[0]
    skew = q.T @ turn if shape[0] >= shape[1] else turn @ q
    assert torch.allclose(skew, -skew.T, atol=1e-6), "an infinitesimal rotation"
    again = [turn.float() + given[2], given[1], given[2]]
    seen.clear()
    call(diga(noted), again, (1, 1))
    assert seen[1].norm() < 1e-5 * tau.norm(), "an orientation has no structure"


def test_a_vector_has_no_orientation() -> None:
    for shape in ((19,), (1, 19), (19, 1)):
        sides = operands(shape)
        for weights in ((0.9, 0.3), (1.0, 1.0)):
            turned = call(FUNCTIONS["diga_ties"], sides, weights, density=0.5)
            assert near(turned, call(ties, sides, weights, density=0.5).double().numpy())


# DiM3


def test_dim3_with_a_limit_out_of_reach_is_the_softmax_alone() -> None:
    sides = operands()
    wide = sides[0].double().numpy(), sides[1].double().numpy(), sides[2].double().numpy()
    omega = by_column(*wide, 2.0)
    assert 1 / (1 + np.e) < omega.min() < omega.max() < 1 / (1 + 1 / np.e)
    assert np.allclose(omega.sum(axis=0), 1)
    most = by_column(*wide, 1.0)
    assert most.max() == 1 and (most > omega).mean() > 0.5
    for limit in (2.0, 50.0):
        formula = wide[2] + omega[0] * (wide[0] - wide[2]) + omega[1] * (wide[1] - wide[2])
        assert near(call(FUNCTIONS["dim3"], sides, (1, 1), above_mean=limit), formula)


def test_dim3_tells_directions_apart_that_float32_does_not() -> None:
    random = np.random.default_rng(3)
    old = random.standard_normal((64, 50)).astype(np.float32)
    sizes = 1e-4 * (1 + np.arange(50)) / 50  # 1 - cosine is of the order of 1e-9
    mllm, base = (old + (sizes * random.standard_normal(old.shape)).astype(np.float32) for _ in range(2))
    sides = [torch.from_numpy(side) for side in (mllm, base, old)]
    omega = by_column(mllm.astype(float), base.astype(float), old.astype(float), 1.0)
    change = call(FUNCTIONS["dim3"], [side.double() for side in sides], (1, 0), above_mean=1.0) - sides[2].double()
    assert torch.allclose(change, torch.from_numpy(omega[0]) * (sides[0].double() - sides[2].double()), atol=1e-12)


def test_equal_sources_get_equal_shares_in_dim3() -> None:
    mllm, _, old = operands()
    merged = call(FUNCTIONS["dim3"], [mllm, mllm, old], (1, 1), above_mean=2.0)
    assert near(merged, mllm.double().numpy()), "half of each"


# Names


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("frank", "not established"),
        ("IP-Merging", "not established"),
        ("neuron_fusion", "not established"),
        ("diga", "around another rule: diga_ties"),
        ("diga_task_arithmetic", "it is task_arithmetic"),
        ("dare_linear", "DARE on both task vectors"),
    ],
)
def test_names_that_are_no_rules_are_refused_with_the_reason(name: str, says: str) -> None:
    with pytest.raises(SpecError, match=rf"{name!r} is no rule here: .*{says}"):
        spec_of(name, parameters={})
    assert not any(why_not(rule) for rule in RULES)


def test_a_sweep_spells_them_as_any_other() -> None:
    words = "dare_both:drop_rate:0.5,dim3,diga_ties:density:0.3,diga_dare_both"
    arguments = "pretrained=model,base=base,ancestor=old,layers=0:2"
    config = SweepConfig.load(model="plam_hf", tasks="mme", model_args=arguments, rules=words, controls="none")
    made = [cell for cell in make_grid(config, 4).cells if cell.spec is not None]
    assert [cell.spec.rule for cell in made] == ["dare_both", "dim3", "diga_ties", "diga_dare_both"]
    assert len({cell.name for cell in made}) == 4
    for cell in made:
        given = dict(word.split("=", 1) for word in cell_arguments(config, cell).split(","))
        again = load_spec(None, {key: given[key] for key in ("base", "ancestor", "layers", "rule", "parameters")})
        assert again is not None and again.digest() == cell.spec.digest()


def test_rules_of_an_ancestor_need_one() -> None:
    for rule in ("dare_both", "dim3", "diga_ties", "diga_dare_both"):
        with pytest.raises(SpecError, match=f"ancestor: missing; {rule} needs the checkpoint"):
            spec_of(rule, ancestor=None)
        assert not RULES[rule].elementwise and RULES[rule].memory and RULES[rule].reference
