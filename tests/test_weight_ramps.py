"""Weights of a spec: a pair, or a ramp over depth; read strictly, one digest for one merge."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plam_eval.spec import PlateauSpec, SpecError, load_spec
from plam_eval.weight_ramps import Ramp, Weights, read_weights

GOOD: dict[str, Any] = {"base_model": "org/base", "layer_range": [2, 7], "modules": ["q_proj"]}
weights = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(-4, 4, width=32)
few_weights = st.sampled_from([0.0, 0.5, 1.0])  # so that merges meet
layer_sets = st.sets(st.integers(0, 30), min_size=1, max_size=8).map(sorted)
few_layers = st.sampled_from([[2], [2, 3], [3, 4], [2, 3, 4], [2, 4]])


def spec_of(model: Any, base: Any, **changes: Any) -> PlateauSpec:
    given = {key: value for key, value in GOOD.items() if key != "layer_range" or "layers" not in changes}
    spec = load_spec({**given, "weights": {"model": model, "base_model": base}, **changes})
    assert spec is not None
    return spec


def test_a_ramp_is_linear_in_the_number_of_the_layer() -> None:
    spec = spec_of([0.9, 0.5], [0.1, 0.5])
    assert [spec.weights_at(layer).model for layer in spec.layers] == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert [spec.weights_at(layer).base_model for layer in spec.layers] == [0.1, 0.2, 0.3, 0.4, 0.5]
    gaps = spec_of([1.0, 0.0], 0.25, layers=[3, 4, 7, 11])
    assert [gaps.weights_at(layer).model for layer in gaps.layers] == [1.0, 0.875, 0.5, 0.0]
    assert {gaps.weights_at(layer).base_model for layer in gaps.layers} == {0.25}
    assert spec_of([0.9, 0.5], [0.1, 0.5], layers=[6]).weights_at(6) == Weights(model=0.9, base_model=0.1)
    exact = spec_of([1 / 3, 2 / 3], 0.5)
    assert (exact.weights_at(2).model, exact.weights_at(6).model) == (1 / 3, 2 / 3)


@pytest.mark.parametrize("model", [[0.9, 0.5], (0.9, 0.5), "0.9:0.5", " 0.9 : 0.5 ", ["0.9", 0.5]])
def test_every_spelling_is_one_spec(model: Any) -> None:
    spec = spec_of(model, 0.3)
    assert spec == spec_of([0.9, 0.5], [0.3, 0.3]) and spec.digest() == spec_of("0.9:0.5", "0.3:0.3").digest()
    assert load_spec(spec.to_dict()) == spec and read_weights(spec.to_dict()["weights"]) == spec.weights
    assert spec.weights.written == ("0.9:0.5", "0.3") and spec.weights.tell() == "0.9:0.5 + 0.3"
    assert load_spec(spec_of(0.9, 0.3), {"model_weight": model}).weights == spec.weights
    assert load_spec(spec, {"base_weight": "0.3:1"}).weights.written == ("0.9:0.5", "0.3:1")


def test_a_ramp_that_does_not_change_is_the_pair() -> None:
    assert spec_of([0.9, 0.9], "0.3:0.3") == spec_of(0.9, 0.3)
    assert spec_of("0.9:0.9", 0.3).to_dict()["weights"] == {"model": 0.9, "base_model": 0.3}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": [0.9], "base_model": 0.3}, "weights.model: found [0.9], expected a number such as 0.9, or two"),
        ({"model": [0.9, 0.5, 0.1], "base_model": 0.3}, "weights.model: found [0.9, 0.5, 0.1], expected a number"),
        ({"model": "0.9:", "base_model": 0.3}, "weights.model: found '0.9:', expected a number such as 0.9, or two"),
        ({"model": "0.9:0.7:0.5", "base_model": 0.3}, "or two for a ramp over depth"),
        ({"model": [[0.9, 0.5], 0.1], "base_model": 0.3}, "weights.model: found"),
        ({"model": [True, 0.5], "base_model": 0.3}, "weights.model: found True, expected a number such as 0.9"),
        ({"model": "0,9:0,5", "base_model": 0.3}, "write 0.9"),
        ({"model": [0.9, float("inf")], "base_model": 0.3}, "expected a finite number"),
        ({"model": [0.9, 0.5], "base": 0.3}, "weights.base: unknown key, did you mean 'base_model'?"),
        ({"model": [0.9, 0.5]}, "weights.base_model: missing"),
        ([[0.9, 0.5], [0.1, 0.5]], "expected both by name"),
    ],
)
def test_what_is_no_ramp_is_refused_and_said_where(given: Any, says: str) -> None:
    with pytest.raises(SpecError) as refused:
        load_spec({**GOOD, "weights": given})
    assert says in str(refused.value)
    with pytest.raises(ValueError, match="as weights"):
        read_weights(given)


def test_every_problem_is_told_by_field_and_override() -> None:
    with pytest.raises(SpecError) as refused:
        load_spec({**GOOD, "weights": {"model": 1, "base_model": 1}}, {"model_weight": "0.9:x", "base_weight": "y:1"})
    assert len(refused.value.problems) == 2
    assert "weights.model (override model_weight=): found 'x'" in str(refused.value)


def test_a_rule_refuses_the_weights_of_any_of_the_layers() -> None:
    with pytest.raises(SpecError, match="layer 4: 'normalized' divides by the sum of the weights, which is zero"):
        spec_of([1, -1], 0, rule="normalized")
    with pytest.raises(SpecError, match="layer 5: 'slerp' goes from one source to the other"):
        spec_of([0.9, -0.5], 0.5, rule="slerp")
    assert spec_of([1, -1], 0, rule="normalized", layers=[2, 3, 6]).weights_at(3).model == 0.5


def by_layer(spec: PlateauSpec) -> dict[int, str]:
    """The digest of each layer merged by itself, with its pair of weights; layers that stay as they are left out."""
    alone = {}
    for layer in spec.layers:
        pair = spec.weights_at(layer)
        one = spec_of(
            *(pair.model, pair.base_model), layers=[layer], rule=spec.rule, seed=spec.seed, base_model=spec.base_model
        )
        if not one.is_plain:
            alone[layer] = one.digest()
    return alone


def ramp(draw: st.DrawFn) -> PlateauSpec:
    rules = ("weighted_sum", "self_scale", "normalized", "noise", "trim", "dare", "slerp")
    ends = [[draw(few_weights) for _ in range(2)] for _ in range(2)]
    rule = draw(st.sampled_from(rules))
    if rule in ("normalized", "slerp"):
        ends = [[end + 0.5 for end in both] for both in ends]
    base = draw(st.sampled_from(["org/base", "org/other"]))
    return spec_of(*ends, layers=draw(few_layers), rule=rule, seed=draw(st.integers(0, 1)), base_model=base)


@given(st.composite(ramp)(), st.composite(ramp)())
def test_ramps_have_one_digest_where_every_layer_is_merged_alike(one: PlateauSpec, other: PlateauSpec) -> None:
    assert (one.digest() == other.digest()) == (by_layer(one) == by_layer(other)) or one.is_plain or other.is_plain
    assert one.is_plain == (not by_layer(one))
    assert load_spec(one.to_dict()).digest() == one.digest()
    for layer in set(one.layers) & set(other.layers):
        alike = by_layer(one).get(layer) == by_layer(other).get(layer)
        assert (one.recipe(layer) == other.recipe(layer)) == alike


@given(weights, weights, layer_sets)
def test_a_pair_has_the_digest_of_every_ramp_that_comes_to_it(model: float, base: float, layers: list[int]) -> None:
    pair = spec_of(model, base, layers=layers)
    assert spec_of([model, model], f"{base!r}:{base!r}", layers=layers).digest() == pair.digest()
    one = spec_of(model, base, layers=layers[:1])
    assert spec_of([model, 5.0], [base, 6.0], layers=layers[:1]).digest() == one.digest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (spec_of([0.9, 0.6], [0.3, 0.2], rule="normalized"), spec_of(0.75, 0.25)),
        (spec_of([0.9, 0.6], [0.3, 0.6], rule="self_scale"), spec_of(1.2, 0)),
        (spec_of([0.75, 0.5], [0.25, 0.5], rule="self_scale"), spec_of(1, 0)),  # nothing changes
        (spec_of([1, 0.5], [0, 0.5]), spec_of([0.875, 0.5], [0.125, 0.5], layers=[3, 4, 5, 6])),  # layer 2 stays
        (spec_of([0, 1], [1, 0]), spec_of([0, 0.75], [1, 0.25], layer_range=[2, 6])),
        (
            spec_of([0.75, 0.5], 0.25, rule="trim", parameters={"density": 1}),
            spec_of([0.75, 0.5], 0.25, rule="weighted_sum"),
        ),
    ],
)
def test_one_merge_has_one_digest_whichever_way_it_is_written(one: PlateauSpec, other: PlateauSpec) -> None:
    assert one.digest() == other.digest() and one.is_plain == other.is_plain


def test_ramps_that_differ_have_other_digests() -> None:
    specs = [
        spec_of([0.9, 0.5], [0.1, 0.5]),
        spec_of([0.5, 0.9], [0.1, 0.5]),
        spec_of([0.9, 0.5], [0.5, 0.1]),
        spec_of([0.9, 0.5], 0.1),
        spec_of(0.9, [0.1, 0.5]),
        spec_of(0.9, 0.1),
        spec_of([0.9, 0.5], [0.1, 0.5], layer_range=[2, 6]),
        spec_of([0.9, 0.5], 0.3, rule="self_scale"),
        spec_of([0.9, 0.5], [0.1, 0.5], base_model="org/other"),
        *(spec_of([0.9, 0.5], [0.1, 0.5], rule="noise", seed=seed) for seed in (0, 1)),
    ]
    assert len({spec.digest() for spec in specs}) == len(specs)


def test_a_ramp_is_told_apart_from_a_pair() -> None:
    ramp, pair = spec_of([0.9, 0.5], 1).weights, spec_of(0.9, 1).weights
    assert isinstance(ramp, Ramp) and isinstance(pair, Weights) and pair.tell() == "0.9 + 1"
