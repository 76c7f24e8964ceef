"""What a proposal stands for."""

from __future__ import annotations

import json
import math

import optuna
import pytest

from plam_eval.evaluation.search.config import SearchError
from plam_eval.evaluation.search.space import Space
from tests.helpers.searching import config, space


def drawn(made: Space, count: int) -> list[dict]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [study.ask(made.distributions()).params for _ in range(count)]


@pytest.mark.parametrize("kind", ["ranges", "sets"])
def test_every_proposal_is_a_setting_of_the_space(kind) -> None:
    made = space(layers=kind, within="2:8", min_layers=2, max_layers=4, modules="qkvo,qk", rules="weighted_sum,trim")
    specs = [made.spec(parameters) for parameters in drawn(made, 200)]
    for spec in specs:
        assert {*spec.layers} <= {*range(2, 8)} and 2 <= len(spec.layers) <= 4
        assert spec.layer_range is not None or kind == "sets"
        assert spec.weights.model in (0.7, 0.9) and spec.weights.base_model in (0.1, 0.3)
    assert {len(spec.layers) for spec in specs} == {2, 3, 4}
    assert {spec.rule for spec in specs} == {"weighted_sum", "trim"} and len({spec.modules for spec in specs}) == 2
    assert len({spec.digest() for spec in specs}) < len(specs), "steps, so that settings come again"


def test_a_set_is_of_the_highest_keys() -> None:
    made = space(4, layers="sets")
    keys = {"layer_0": 0.1, "layer_1": 0.9, "layer_2": 0.2, "layer_3": 0.8}
    assert made.spec({"size": 2, **keys, "model_weight": 0, "base_weight": 1}).layers == (1, 3)


def test_a_weight_between_two_is_taken_as_it_is() -> None:
    made = space(4, base_weight="0.1:0.4")
    spec = made.spec({"start": 0, "length": 2, "model_weight": 1, "base_weight": 0.234})
    assert (spec.weights.model, spec.weights.base_model) == (0.9, 0.234)
    assert made.size() is None


def test_a_grid_has_every_setting_once() -> None:
    made = space(within="1:6", min_layers=2, max_layers=3, rules="weighted_sum,dare:drop_rate:0.5")
    points = made.points(0)
    specs = [made.spec(point) for point in points]
    assert len({spec.digest() for spec in specs}) == len(specs) == made.size() == (4 + 3) * 4 * 2
    assert made.points(1) != points and made.points(0) == points
    assert {spec.parameters.get("drop_rate") for spec in specs} == {None, 0.5}


def test_the_size_of_sets() -> None:
    assert space(8, layers="sets", min_layers=2, max_layers=3).size() == (math.comb(8, 2) + math.comb(8, 3)) * 4


def test_what_does_not_fit_the_decoder() -> None:
    with pytest.raises(SearchError, match="0:8"):
        space(8, within="4:12")
    with pytest.raises(SearchError, match="at most 8"):
        space(8, min_layers=9)
    with pytest.raises(SearchError, match="no base LLM"):
        space(8, base_model=None)


def test_the_plateau_of_model_args_and_all_layers_come_first() -> None:
    made = Space.of(config(), 8)
    first, whole = made.reference_settings(8)
    assert first == made.start and whole.layers == tuple(range(8)) and whole.weights == first.weights
    assert json.loads(json.dumps(made.to_dict()))["start"] == first.to_dict()


def test_an_ancestor_needs_no_plateau() -> None:
    made = space(ancestor="an/ancestor", rules="task_arithmetic,ties")
    assert {spec.ancestor for spec in made.corners()} == {"an/ancestor"}


def test_corners_hold_every_tensor() -> None:
    made = space(layers="sets", within="2:8", modules="qk,mlp", rules="weighted_sum,trim", max_layers=2)
    assert {(spec.layers, spec.rule) for spec in made.corners()} == {
        (tuple(range(2, 8)), "weighted_sum"),
        (tuple(range(2, 8)), "trim"),
    }
    assert len({spec.modules for spec in made.corners()}) == 2
