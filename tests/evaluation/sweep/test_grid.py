"""The cells that a sweep's configuration makes. Nothing is merged here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from plam_eval.evaluation.sweep.config import SweepConfig, SweepError, split_arguments
from plam_eval.evaluation.sweep.grid import (
    Cell,
    Grid,
    cell_arguments,
    layers_of_word,
    make_grid,
    module_group,
    pair_grid,
)
from plam_eval.rules import RULES, Rule
from plam_eval.spec import GROUPS, PlateauSpec, SpecError, load_spec

ARGS = "pretrained=mllm,base=org/base,layers=6:8"


def config(**changes: Any) -> SweepConfig:
    return SweepConfig.load(
        **{"model": "plam_llava", "model_args": ARGS, "tasks": "pope", "controls": "none", **changes}
    )


def grid(depth: int = 8, /, **changes: Any) -> Grid:
    return make_grid(config(**changes), depth)


def names(made: Grid, kind: str) -> list[str]:
    return [cell.name for cell in made.cells if cell.kind == kind]


def spec(made: Grid, name: str) -> PlateauSpec:
    (found,) = [cell.spec for cell in made.cells if cell.name == name]
    assert found is not None
    return found


def refused(**changes: Any) -> str:
    with pytest.raises(SweepError) as error:
        grid(**changes)
    return str(error.value)


# Words for layers


@pytest.mark.parametrize(
    ("word", "layers", "ranges"),
    [
        ("all", 8, [(0, 8)]),
        ("early", 8, [(0, 2)]),
        ("middle", 8, [(2, 6)]),
        ("late", 8, [(6, 8)]),
        ("early", 28, [(0, 9)]),
        ("middle", 28, [(9, 19)]),
        ("late", 28, [(19, 28)]),
        ("early", 36, [(0, 12)]),
        ("middle", 36, [(12, 24)]),
        ("late", 36, [(24, 36)]),
        ("24:36", 36, [(24, 36)]),
        ("0:1", 8, [(0, 1)]),
        ("starts", 3, [(0, 3), (1, 3), (2, 3)]),
        ("starts:4", 8, [(0, 8), (4, 8)]),
        ("starts:12", 28, [(0, 28), (12, 28), (24, 28)]),
        ("windows:4", 8, [(0, 4), (4, 8)]),
        ("windows:4:2", 8, [(0, 4), (2, 6), (4, 8)]),
        ("windows:12", 28, [(0, 12), (12, 24)]),  # a rest of four is no window
        ("windows:8", 8, [(0, 8)]),
    ],
)
def test_layer_words(word: str, layers: int, ranges: list[tuple[int, int]]) -> None:
    assert layers_of_word(word, layers) == [tuple(range(*ends)) for ends in ranges]


@pytest.mark.parametrize(
    "word",
    [
        *("7:9", "5:5", "6:2", "-1:4", "1:2:3", "3", "a:b", "x", "early:2"),
        *("starts:0", "starts:1:2", "windows", "windows:0", "windows:9", "windows:2:0"),
    ],
)
def test_words_that_mean_nothing(word: str) -> None:
    with pytest.raises(SweepError, match=r"expected start:end within 0:8, plateau, early, middle, late, all, starts"):
        layers_of_word(word, 8)


def test_sets_of_layers_are_words_too() -> None:
    assert layers_of_word("3+9+20:22", 36) == [(3, 9, 20, 21)]
    for beyond in ("3+36", "3+3", "3+x"):
        with pytest.raises(SweepError, match=r"or a set such as 3\+9\+20:24"):
            layers_of_word(beyond, 36)
    made = grid(layers="1+3,6:8,6+7,0:2+5", controls="self_scale")
    assert [cell.name for cell in made.cells if cell.kind == "merged"] == [
        "layers-1+3_qkvo_0.9+0.3",
        "layers-6-8_qkvo_0.9+0.3",
        "layers-0-2+5_qkvo_0.9+0.3",
    ]
    assert Grid.from_dict(made.to_dict()) == made
    again = [load_spec(None, split_arguments(cell_arguments(config(), cell))[1]) for cell in made.cells if cell.spec]
    assert [spec.digest() for spec in again if spec] == [cell.spec.digest() for cell in made.cells if cell.spec]


def test_cells_of_a_rule_with_parameters_are_named_after_them() -> None:
    made = grid(model_args=f"{ARGS},rule=breadcrumbs,parameters=density:0.5", controls="self_scale,normalized,noise")
    merged, *controls = (cell for cell in made.cells if cell.spec)
    assert merged.name == "layers-6-8_qkvo_0.9+0.3_breadcrumbs_density=0.5_gamma=0.01"
    assert len(controls) == 3 and all(cell.spec and not cell.spec.parameters for cell in controls)
    assert Grid.from_dict(made.to_dict()) == made
    again = load_spec(None, split_arguments(cell_arguments(config(), merged))[1])
    assert again is not None and merged.spec is not None and again.digest() == merged.spec.digest()


def test_plateau_is_the_range_of_the_spec() -> None:
    assert layers_of_word("plateau", 36, load_spec("qwen3-vl-8b")) == [tuple(range(24, 36))]
    with pytest.raises(SweepError, match="'plateau' needs a plateau in --model_args"):
        layers_of_word("plateau", 36)
    with pytest.raises(SweepError, match="'early' of a decoder of 2 layers is empty"):
        layers_of_word("early", 2)


def test_names_of_module_sets() -> None:
    assert [module_group(modules) for modules in GROUPS.values()] == list(GROUPS)
    assert module_group(("q_proj", "v_proj")) == "q_proj+v_proj"


# Cells


def test_a_grid_is_every_combination_and_plain_first() -> None:
    made = grid(layers="6:8,all", weights="0.9+0.3,0.8+0.4", modules="qkvo,q_proj+v_proj")
    assert made.cells[0] == Cell("plain", "plain", None)
    assert len(names(made, "merged")) == len(made.cells) - 1 == 8
    assert len({cell.name for cell in made.cells}) == len({c.spec.digest() for c in made.cells if c.spec}) + 1 == 9
    one = spec(made, "layers-0-8_q_proj+v_proj_0.8+0.4")
    assert (one.base_model, one.layer_range, one.modules) == ("org/base", (0, 8), ("q_proj", "v_proj"))
    assert (one.weights.model, one.weights.base_model, one.rule) == (0.8, 0.4, "weighted_sum")
    assert made.controls == {name: {} for name in names(made, "merged")}


def test_what_the_grid_leaves_out_is_the_plateaus() -> None:
    made = grid(36, model_args="pretrained=mllm,plateau=qwen3-vl-8b,modules=qk")
    assert names(made, "merged") == ["layers-24-36_qk_0.9+0.3"]
    assert spec(made, "layers-24-36_qk_0.9+0.3").base_model == "Qwen/Qwen3-8B"
    given = grid(36, model_args="pretrained=mllm,plateau=qwen3-vl-8b", base_model="org/mine")
    assert spec(given, names(given, "merged")[0]).base_model == "org/mine"
    bare = grid(model_args="pretrained=mllm", base_model="org/base", layers="late")
    assert names(bare, "merged") == ["layers-6-8_qkvo_0.9+0.3"]


def test_ranges_named_twice_run_once() -> None:
    assert names(grid(layers="late,6:8,plateau,windows:2:6"), "merged") == [
        "layers-6-8_qkvo_0.9+0.3",
        "layers-0-2_qkvo_0.9+0.3",
    ]


def test_every_rule_controls_every_merge() -> None:
    made = grid(layers="6:8,0:2", controls="self_scale,normalized,noise", seeds="0,7")
    assert len(names(made, "merged")) == 2 and len(names(made, "control")) == 8
    name = "layers-6-8_qkvo_0.9+0.3"
    assert made.controls[name] == {
        "self_scale": (f"{name}_self_scale",),
        "normalized": (f"{name}_normalized",),
        "noise": (f"{name}_noise0", f"{name}_noise7"),  # only it draws
    }
    assert spec(made, f"{name}_noise7").seed == 7
    assert spec(made, f"{name}_self_scale").rule == "self_scale"
    assert all(spec(made, c).layer_range == (6, 8) for c in sum(made.controls[name].values(), ()))


def test_one_scale_controls_all_merges_of_its_sum() -> None:
    made = grid(weights="0.9+0.3,0.8+0.4", controls="self_scale")
    assert names(made, "control") == ["layers-6-8_qkvo_0.9+0.3_self_scale"]
    first, second = names(made, "merged")
    assert made.controls[first] == made.controls[second] == {"self_scale": ("layers-6-8_qkvo_0.9+0.3_self_scale",)}


@pytest.mark.parametrize("weights", ["0.9+0.3,0.75+0.25", "0.75+0.25,0.9+0.3"])
def test_a_merge_that_controls_another_counts_as_a_merge(weights: str) -> None:
    made = grid(weights=weights, controls="normalized")
    assert len(names(made, "merged")) == 2 and names(made, "control") == []
    normalised = next(c for c in made.cells if c.spec and c.spec.weights.model == 0.75)
    other = next(c.name for c in made.cells if c.spec and c.spec.weights.model == 0.9)
    assert normalised.kind == "merged"
    assert made.controls[other] == {"normalized": (normalised.name,)}
    assert made.controls[normalised.name] == {}  # it is its own


def test_scale_alone_as_a_merge_is_a_cell_of_its_own_kind() -> None:
    made = grid(weights="0.9+0.3,1.2+0", controls="self_scale,normalized")
    (scaled,) = [cell for cell in made.cells if cell.spec and cell.spec.weights.model == 1.2]
    assert scaled.kind == "merged"
    assert made.controls["layers-6-8_qkvo_0.9+0.3"]["self_scale"] == (scaled.name,)
    assert made.controls[scaled.name] == {"normalized": ("plain",)}  # 1.2 / 1.2 leaves everything as it is


def test_merges_that_change_nothing_are_left_out() -> None:
    assert names(grid(weights="1+0,0.9+0.3"), "merged") == ["layers-6-8_qkvo_0.9+0.3"]
    assert "leaves the model as it is; expected other weights than 1 + 0" in refused(weights="1+0")


def test_a_grid_survives_its_file() -> None:
    made = grid(layers="starts:4", controls="self_scale,noise", seeds="1,2")
    assert Grid.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_cells_of_an_earlier_call_are_kept() -> None:
    early, late = grid(layers="0:2,6:8", controls="self_scale"), grid(layers="6:8,all")
    both = late.with_earlier(early)
    assert names(both, "merged") == [*names(late, "merged"), "layers-0-2_qkvo_0.9+0.3"]
    assert names(both, "control") == names(early, "control")
    assert [cell.name for cell in both.cells].count("plain") == 1
    assert set(both.controls) == set(names(both, "merged"))
    assert both.controls["layers-0-2_qkvo_0.9+0.3"] == early.controls["layers-0-2_qkvo_0.9+0.3"]
    assert late.with_earlier(late) == late


def test_a_merge_that_was_a_control_keeps_its_name() -> None:
    early = grid(controls="normalized")  # 0.9 + 0.3 divided by its sum
    late = grid(weights="0.75+0.25", controls="self_scale,noise")
    both = late.with_earlier(early)
    assert Grid.from_dict(json.loads(json.dumps(both.to_dict()))) == both
    (normalized,) = names(early, "control")
    assert names(both, "merged") == [normalized, "layers-6-8_qkvo_0.9+0.3"]
    assert both.controls["layers-6-8_qkvo_0.9+0.3"] == {"normalized": (normalized,)}
    assert both.controls[normalized] == late.controls["layers-6-8_qkvo_0.75+0.25"]
    assert early.with_earlier(both).controls.keys() == both.controls.keys()


def test_a_comparison_and_a_sweep_do_not_share_a_folder() -> None:
    swept, pair = grid(controls="self_scale"), pair_grid(config())
    with pytest.raises(SweepError, match="holds what `plam sweep` has found, and this is `plam compare`; name another"):
        pair.with_earlier(swept)
    with pytest.raises(SweepError, match="holds what `plam compare` has found, and this is `plam sweep`"):
        swept.with_earlier(pair)
    assert pair.with_earlier(pair) == pair


def test_one_name_for_two_merges_is_refused() -> None:
    early, late = grid(), grid(base_model="org/another")
    with pytest.raises(SweepError, match=r"layers-6-8_qkvo_0\.9\+0\.3: finished before with another merge"):
        late.with_earlier(early)


@pytest.mark.parametrize("word", ["base_weight=0.5", "rule=noise", "modules=qk", "plateau=none,base=org/base"])
def test_overrides_of_nothing_are_refused(word: str) -> None:
    said = refused(model_args=f"pretrained=mllm,{word}", layers="6:8", **({} if "base=" in word else BASE))
    assert (
        f"found {word.removeprefix('plateau=none,')} without a plateau to override; give a plateau, or both base="
        in said
    )


BASE = {"base_model": "org/base"}


def test_what_cannot_be_a_grid() -> None:
    assert "no base LLM: give --base" in refused(model_args="pretrained=mllm", layers="all")
    assert "the plateau's rule is self_scale" in refused(model_args=f"{ARGS},rule=self_scale")
    assert "layers: found '6:9'" in refused(layers="6:9")
    with pytest.raises(SpecError, match=r"\[6, 8\) does not fit the model, which has 7 decoder layers"):
        grid(7)
    with pytest.raises(SpecError, match="unknown module 'qkv', did you mean 'qkvo'"):
        grid(modules="qkv")


@pytest.mark.parametrize(
    ("given", "layers", "says"),
    [
        (
            {"seeds": list(range(5_000)), "controls": "noise", "layers": "windows:1"},
            8,
            "up to 40008 cells: 8 layer ranges",
        ),
        ({"weights": [[0.9, i / 1e4] for i in range(1, 400)], "layers": "starts"}, 36, "expected at most 10000"),
        ({"layers": "starts"}, 10**12, "names 1000000000000 decoder layers"),
    ],
)
def test_a_grid_of_too_many_cells_is_refused_before_it_is_made(given: dict[str, Any], layers: int, says: str) -> None:
    with pytest.raises(SweepError, match=says):
        make_grid(config(**given), layers)


def test_a_control_that_cannot_be_is_said_in_words() -> None:
    config = SweepConfig.load(
        model="plam_llava", model_args="pretrained=m", base_model="b", tasks="pope", layers="all", weights="1+-1"
    )
    with pytest.raises(ValueError, match="divides by the sum of the weights"):
        make_grid(config, 8)


def test_weights_that_differ_late_have_names_of_their_own() -> None:
    config = SweepConfig.load(
        model="plam_llava",
        model_args="pretrained=m",
        base_model="b",
        tasks="pope",
        layers="all",
        weights="0.3333333+0.5,0.3333334+0.5",
        controls="none",
    )
    assert [cell.name for cell in make_grid(config, 8).cells[1:]] == [
        "layers-0-8_qkvo_0.3333333+0.5",
        "layers-0-8_qkvo_0.3333334+0.5",
    ]


# Rules of one's own


def test_a_rule_of_ones_own_is_swept_as_the_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "mean", Rule("mean"))
    given = {"model_args": f"{ARGS},rule=mean", "layers": "6:8,all", "controls": "self_scale"}
    made = grid(**given)
    assert names(made, "merged") == ["layers-6-8_qkvo_0.9+0.3_mean", "layers-0-8_qkvo_0.9+0.3_mean"]
    assert [spec(made, name).rule for name in names(made, "merged")] == ["mean", "mean"]
    assert made.controls["layers-6-8_qkvo_0.9+0.3_mean"] == {"self_scale": ("layers-6-8_qkvo_0.9+0.3_self_scale",)}
    assert Grid.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert cell_arguments(config(**given), made.cells[1]).endswith("model_weight=0.9,base_weight=0.3,rule=mean")
    stock = grid(layers="6:8", controls="self_scale")
    assert names(made.with_earlier(stock), "merged") == [*names(made, "merged"), *names(stock, "merged")]


def test_a_rule_that_draws_keeps_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "shuffle", Rule("shuffle", reads=("weights", "seed")))
    made = grid(model_args=f"{ARGS},rule=shuffle,seed=3", layers="6:8", controls="shuffle,noise", seeds="3,4")
    assert names(made, "merged") == ["layers-6-8_qkvo_0.9+0.3_shuffle3"]
    assert made.controls[names(made, "merged")[0]] == {
        "shuffle": ("layers-6-8_qkvo_0.9+0.3_shuffle4",),
        "noise": ("layers-6-8_qkvo_0.9+0.3_noise3", "layers-6-8_qkvo_0.9+0.3_noise4"),
    }


def test_a_rule_that_nobody_knows_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown rule 'mean'"):
        grid(model_args=f"{ARGS},rule=mean")


# Rules beside each other, and layers drawn at random


def test_rules_are_swept_beside_each_other() -> None:
    made = grid(rules="weighted_sum,dare:drop_rate:0.5,trim", weights="0.9+0.3,0.5+0.5", controls="self_scale")
    merged = [spec(made, name) for name in names(made, "merged")]
    assert [one.rule for one in merged] == ["weighted_sum"] * 2 + ["dare"] * 2 + ["trim"] * 2
    assert merged[2].parameters == {"drop_rate": 0.5}
    assert merged[4].parameters == {"density": 0.2}  # its default
    scales = {made.controls[name]["self_scale"] for name in names(made, "merged")}
    assert len(scales) == 2  # one for each pair of weights, whatever the rule


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ("trimm", "did you mean 'trim'"),
        ("optmerge", "degenerate with one task vector"),
        ("self_scale", "a control"),
        ("random_layers", "a control"),
        ("dare:rate:0.5", "'rate' is no parameter of dare"),
        ("della", "density: missing"),
    ],
)
def test_rules_that_cannot_be_swept(rules: str, says: str) -> None:
    assert says in refused(rules=rules)


def test_random_layers_are_the_same_merge_elsewhere() -> None:
    made = grid(controls="random_layers", draws=4)
    (merge,) = names(made, "merged")
    drawn = [spec(made, name) for name in made.controls[merge]["random_layers"]]
    assert len(drawn) == 4
    assert len({one.layers for one in drawn}) == 4
    assert (6, 7) not in {one.layers for one in drawn}
    for one in drawn:
        assert len(one.layers) == 2
        assert (one.rule, one.weights, one.modules) == (
            spec(made, merge).rule,
            spec(made, merge).weights,
            GROUPS["qkvo"],
        )
    assert Grid.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_random_layers_of_all_layers_are_none() -> None:
    made = grid(controls="random_layers", layers="all")
    assert made.controls == {names(made, "merged")[0]: {}}


def test_random_layers_are_no_rule_of_a_spec() -> None:
    with pytest.raises(SpecError, match="a control of `plam sweep`"):
        load_spec(
            {
                "base_model": "b",
                "layer_range": [0, 2],
                "modules": "qkvo",
                "weights": {"model": 1, "base_model": 1},
                "rule": "random_layers",
            }
        )


# Ramps over depth


def test_ramps_are_swept_beside_pairs() -> None:
    made = grid(weights="0.9:0.5+0.1:0.5,0.9+0.1", layers="4:8,2+5", controls="self_scale,random_layers", draws=1)
    name, gaps = "layers-4-8_qkvo_0.9to0.5+0.1to0.5", "layers-2+5_qkvo_0.9to0.5+0.1to0.5"
    assert names(made, "merged") == [name, gaps, "layers-4-8_qkvo_0.9+0.1", "layers-2+5_qkvo_0.9+0.1"]
    assert [spec(made, name).weights_at(layer).model for layer in (4, 7)] == [0.9, 0.5]
    assert spec(made, gaps).weights_at(5).base_model == 0.5
    assert "self_scale" not in made.controls[name] or made.controls[name]["self_scale"] == ("plain",)  # sums of one
    (elsewhere,) = made.controls[name]["random_layers"]
    assert spec(made, elsewhere).weights == spec(made, name).weights
    assert Grid.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    for cell in made.cells:
        _, ours = split_arguments(cell_arguments(config(), cell))
        again = load_spec(ours.pop("plateau", None), ours)
        assert (again.digest() if again else None) == (cell.spec.digest() if cell.spec else None)


def test_a_ramp_of_the_plateau_is_swept() -> None:
    made = grid(model_args=f"{ARGS},model_weight=0.9:0.5", layers="4:8", controls="self_scale")
    assert names(made, "merged") == ["layers-4-8_qkvo_0.9to0.5+0.3"]
    assert names(made, "control") == ["layers-4-8_qkvo_0.9to0.5+0.3_self_scale"]


@pytest.mark.parametrize("name", ["layers-4-8_qkvo_0.9to+0.3", "layers-4-8_qkvo_0.9to0.5to0.1+0.3", "../x"])
def test_a_cell_of_a_ramp_has_the_name_of_one(name: str) -> None:
    (cell,) = [cell for cell in grid(weights="0.9:0.5+0.3", layers="4:8").cells if cell.spec]
    with pytest.raises(SweepError, match=r"expected 'layers-4-8_qkvo_0\.9to0\.5"):
        Cell.from_dict({**cell.to_dict(), "name": name})
