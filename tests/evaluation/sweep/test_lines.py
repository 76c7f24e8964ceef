"""Which merges of a grid have neighbours."""

from __future__ import annotations

from typing import Any

from plam_eval.evaluation.sweep.config import SweepConfig
from plam_eval.evaluation.sweep.grid import Grid, make_grid
from plam_eval.evaluation.sweep.lines import coordinates_of


def grid(**given: Any) -> Grid:
    arguments = "pretrained=mllm,base=org/base,layers=6:8"
    return make_grid(SweepConfig.load(model="plam_llava", model_args=arguments, tasks="gqa", **given), 8)


def lines(grid: Grid) -> list[list[str]]:
    """Names of the cells of each line, in order."""
    on: dict[Any, list[Any]] = {}
    for name, (line, place) in coordinates_of(grid.cells).items():
        on.setdefault(line, []).append((place, name))
    return [[name for _, name in sorted(points)] for points in on.values()]


def test_weights_are_in_the_order_of_the_bases_share() -> None:
    made = grid(layers="6:8,all", weights="0.7+0.3,0.5+0.5,0.9+0.3,1+0.2", controls="self_scale,noise")
    expected = ["1+0.2", "0.9+0.3", "0.7+0.3", "0.5+0.5"]  # shares 0.17, 0.25, 0.3, 0.5
    assert lines(made) == [[f"layers-{where}_qkvo_{weights}" for weights in expected] for where in ("6-8", "0-8")]


def test_equal_shares_are_in_the_order_of_their_sum() -> None:
    assert lines(grid(weights="0.9+0.3,0.75+0.25", controls="none")) == [
        ["layers-6-8_qkvo_0.75+0.25", "layers-6-8_qkvo_0.9+0.3"]
    ]


def test_a_sum_of_nothing_and_a_negative_weight_have_a_place() -> None:
    made = grid(weights="0.5+-0.5,1+0.5,1+-0.1", controls="none")
    assert lines(made) == [[f"layers-6-8_qkvo_{weights}" for weights in ("0.5+-0.5", "1+-0.1", "1+0.5")]]


def test_what_comes_to_one_share_and_one_sum_has_places_of_its_own() -> None:
    ramps = grid(weights="0.9:0.5+0.1:0.5,0.7+0.3,0.5:0.9+0.5:0.1", controls="none")
    nothing = grid(weights="1+-1,0.5+-0.5", controls="none")
    for made in (ramps, nothing):
        places = [place for _, place in coordinates_of(made.cells).values()]
        assert len(places) > 1 and len(set(places)) == len(places)


def test_modules_and_rules_are_lines_of_their_own() -> None:
    made = grid(weights="0.9+0.3,0.7+0.3", modules="qk,vo", rules="weighted_sum,trim:density:0.2,trim:density:0.3")
    assert [len(line) for line in lines(made)] == [2] * 6


def test_with_one_pair_of_weights_nested_layers_are_the_line() -> None:
    assert lines(grid(layers="starts:2", controls="self_scale,random_layers")) == [
        [f"layers-{start}-8_qkvo_0.9+0.3" for start in (6, 4, 2, 0)]
    ]
    assert lines(grid(layers="2+4,all,2+3+4")) == [[f"layers-{name}_qkvo_0.9+0.3" for name in ("2+4", "2-5", "0-8")]]


def test_layers_side_by_side_are_no_line() -> None:
    assert lines(grid(layers="windows:2")) == []
    assert lines(grid(layers="early,middle,late,all")) == []
