"""What a sweep is asked for, from files and flags."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from plam_eval.evaluation.sweep.config import SweepConfig, SweepError

ARGS = "pretrained=mllm,base=org/base,layers=6:8"


def config(**changes: Any) -> SweepConfig:
    return SweepConfig.load(
        **{"model": "plam_llava", "model_args": ARGS, "tasks": "pope", "controls": "none", **changes}
    )


def test_a_file_and_flags_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    content = {
        "model": "plam_llava",
        "model_args": ARGS,
        "tasks": ["pope", "mme"],
        "layers": ["6:8", "starts:4"],
        "weights": [[0.9, 0.3], "0.8+0.4"],
        "modules": ["qkvo", "q_proj+v_proj"],
        "controls": ["self_scale"],
        "seeds": [0, 1],
        "select": 40,
        "limit": 120,
    }
    file.write_text(yaml.safe_dump(content))
    flags = {"tasks": "pope, mme", "layers": "6:8,starts:4", "weights": "0.9+0.3, 0.8 + 0.4", "seeds": "0,1"}
    flags |= {"modules": "qkvo,q_proj+v_proj", "controls": "self_scale"}
    read = SweepConfig.load(file)
    assert read == SweepConfig.load(model="plam_llava", model_args=ARGS, select=40, limit=120, **flags)
    assert read.weights == ((0.9, 0.3), (0.8, 0.4))
    assert SweepConfig.model_validate(read.model_dump(mode="json")) == read
    assert SweepConfig.load(file, limit=8, select=None).limit == 8
    assert SweepConfig.load(file, limit=8, select=None).select == 40


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("weights", [0.9, 0.3], ((0.9, 0.3),)),
        ("weights", "-0.5+1.5", ((-0.5, 1.5),)),
        ("weights", [[1, 1]], ((1.0, 1.0),)),
        ("weights", "0.9:0.5+0.1:0.5,0.9+0.3", (((0.9, 0.5), (0.1, 0.5)), (0.9, 0.3))),
        ("weights", "-1:1e-3 + 0.3", (((-1.0, 0.001), 0.3),)),
        ("weights", "0.9:0.9+0.3", ((0.9, 0.3),)),
        ("weights", [[[0.9, 0.5], 0.3], "1+1:2"], (((0.9, 0.5), 0.3), (1.0, (1.0, 2.0)))),
        ("weights", [[0.9, 0.5], [0.1, 0.5]], ((0.9, 0.5), (0.1, 0.5))),
        ("layers", "all", ("all",)),
        ("seeds", 3, (3,)),
        ("controls", "none", ()),
        ("controls", [], ()),
        ("tasks", "pope,", ("pope",)),
    ],
)
def test_short_forms(key: str, written: Any, value: Any) -> None:
    assert getattr(config(**{key: written}), key) == value


def test_all_controls_unless_said_otherwise() -> None:
    read = SweepConfig.load(model="plam_llava", tasks="pope")
    assert (read.controls, read.seeds, read.layers) == (("self_scale", "normalized", "noise"), (0,), ("plateau",))


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    bad = {"model": "plam_lava", "layer": "all", "weights": "0.9", "controls": "noice", "limit": 0, "seeds": "x"}
    file.write_text(yaml.safe_dump(bad))
    with pytest.raises(SweepError) as error:
        SweepConfig.load(file)
    text = str(error.value)
    for line in (
        f"sweep {file}: 7 problem(s)",
        "model: unknown model 'plam_lava', did you mean 'plam_llava'?",
        "layer: unknown key, did you mean 'layers'?",
        "weights: found '0.9', expected pairs such as 0.9+0.3",
        "controls: unknown control 'noice', did you mean 'noise'?",
        "limit: found 0",
        "seeds: found 'x'",
        "tasks: missing",
    ):
        assert line in text, line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ""}, "tasks: found"),
        ({"select": -1}, "select: found -1"),
        ({"offset": -1}, "offset: found -1"),
        ({"controls": "weighted_sum"}, "unknown control 'weighted_sum'"),
        ({"weights": [[0.9]]}, "weights.0"),
    ],
)
def test_bad_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SweepError, match=message):
        config(**change)


@pytest.mark.parametrize(
    ("content", "message"),
    [("- a", "found a list, expected"), ("", "found an empty file"), ("a: [", "cannot be read")],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "sweep.yaml").write_text(content)
    with pytest.raises(SweepError, match=message):
        SweepConfig.load(tmp_path / "sweep.yaml")
    with pytest.raises(SweepError, match="cannot be read"):
        SweepConfig.load(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"weights": 0.9}, "weights: found 0.9, expected pairs"),
        ({"seeds": [True]}, "seeds: found True, expected whole numbers"),
        ({"seeds": "-1"}, "seeds: found '-1', expected whole numbers"),
        ({"layers": ""}, "layers: found '', expected at least one word"),
        ({"layers": [["1:2"]]}, r"layers: found \['1:2'\], expected words"),
        ({"layers": [24, 36]}, 'layers: found .24, 36., expected ranges .* write "24:36"'),
        ({"layers": [[24, 36], [0, 8]]}, 'layers: found .* expected ranges .* write "24:36"'),
        ({"layers": ["plateau", 5]}, "layers: found .* expected ranges .* write 24:36, or words"),
        ({"layers": [(4.5, 8)]}, "layers: found .* expected ranges .* write 24:36, or words"),
        ({"layers": "24-36"}, "layers: found '24-36', expected start:end; write 24:36"),
        ({"tasks": [8]}, 'tasks: found 8, expected words; put it into quotes, as "8"'),
        ({"weights": "0,9+0,3"}, "a decimal fraction has a point"),
        ({"weights": [0, 9, 0, 3]}, r"write \[0.9, 0.3\]"),
        ({"weights": [[math.inf, 0.3]]}, "found inf, expected a finite number"),
        ({"weights": "0.9.1+0.3"}, "found '0.9.1', expected a number"),
        ({"weights": "0.9:0.5"}, "found '0.9:0.5', expected pairs such as .* or ramps, 0.9:0.5[+]0.1:0.5"),
        ({"weights": "0.9:0.7:0.5+0.1"}, "found '0.9:0.7:0.5[+]0.1', expected pairs"),
        (
            {"weights": [[[0.9, 0.7, 0.5], 0.1]]},
            "found .0.9, 0.7, 0.5., expected a number such as 0.9, or two for a ramp",
        ),
        ({"base_model": 8}, 'base_model: found 8, expected text; put it into quotes, as "8"'),
        ({"seeds": "9" * 5000}, "seeds: found '9999"),
        ({"seeds": [10**5000]}, "seeds: found a whole number of about"),
        ({"limit": 10**30}, "limit: found 1000"),
        ({"layers": "windows:" + "9" * 5000}, "layers: found 'windows:99"),
    ],
)
def test_forms_that_mean_nothing(given: dict[str, Any], says: str) -> None:
    with pytest.raises(SweepError, match=says):
        SweepConfig.load(**{"model": "plam_llava", "tasks": "pope", **given})


def test_a_sweep_file_is_read_strictly(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    head = "model: plam_llava\ntasks: pope\n"
    file.write_text(f"{head}layers: [24:36, 1:2]\n")
    assert SweepConfig.load(file).layers == ("24:36", "1:2")
    for more, says in (
        ("limit: 8\nselect: 4\nlimit: 9\n", r"key given twice: limit \(lines 3 and 5\)"),
        ("weights: [[0,9, 0,3]]\n", "weights.0"),
        ("limit: 010\n", "write 10"),
        ("3: 4\n", "found 3 as a key, expected a word"),
    ):
        file.write_text(head + more)
        with pytest.raises(SweepError, match=says):
            SweepConfig.load(file)


@pytest.mark.parametrize(
    "given", [{}, {"controls": "none", "modules": "vo", "weights": "0.5+0.7,1:0.5+0.2", "select": 4}]
)
def test_a_config_is_read_back_from_what_is_stored(given: dict[str, Any]) -> None:
    """As sweep.json holds it, and as workers are given it."""
    made = SweepConfig.load(model="plam_llava", model_args=ARGS, tasks="pope", **given)
    assert SweepConfig.model_validate(json.loads(json.dumps(made.model_dump(mode="json")))) == made
