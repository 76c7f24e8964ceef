from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from plam_eval.spec import GROUPS, MODULES, OVERRIDE_KEYS, PlateauSpec, SpecError, load_spec, packaged_specs

GOOD: dict[str, Any] = {
    "base_model": "org/base",
    "layer_range": [2, 5],
    "modules": ["q_proj", "k_proj"],
    "weights": {"model": 0.9, "base_model": 0.3},
}


def good(**changes: Any) -> PlateauSpec:
    spec = load_spec({**GOOD, **changes})
    assert spec is not None
    return spec


def problems(plateau: Any, overrides: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(SpecError) as error:
        load_spec(plateau, overrides)
    assert all(problem in str(error.value) for problem in error.value.problems)
    return error.value.problems


def test_every_field_is_read(tmp_path: Path) -> None:
    content = {**GOOD, "model": "org/mllm", "rule": "noise", "seed": 3, "evidence": {"curve": [0.1]}, "source": "here"}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(content))
    for spec in (load_spec(content), load_spec(path), load_spec(str(path))):
        assert spec is not None
        assert spec.to_dict() == content
        assert load_spec(spec) == spec
        assert load_spec(spec.to_dict()) == spec
        assert list(spec.layers) == [2, 3, 4]


@pytest.mark.parametrize("plain", [None, "none", "None", " none "])
def test_none_is_the_plain_model(plain: str | None) -> None:
    assert load_spec(plain) is None
    assert load_spec(plain, {"layers": None}) is None


def test_base_and_layers_alone_make_a_spec() -> None:
    spec = load_spec("none", {"base": "org/base", "layers": "2:5", "base_weight": 0.1})
    assert spec is not None
    assert spec.modules == GROUPS["qkvo"]
    assert (spec.weights.model, spec.weights.base_model) == (0.9, 0.1)
    for lone in ({"layers": "2:5"}, {"base": "x", "rule": "noise"}):
        assert "plateau=none" in problems(None, lone)[0]


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ({"base": "other"}, "base_model", "other"),
        ({"layers": "3:4"}, "layer_range", (3, 4)),
        ({"layers": [3, 4]}, "layer_range", (3, 4)),
        ({"layers": [3, 4]}, "layers", (3,)),
        ({"layers": "3+9+20"}, "layers", (3, 9, 20)),
        ({"layers": [3, 9, 20]}, "layers", (3, 9, 20)),
        ({"layers": "4:6+9"}, "layer_range", None),
        ({"layers": "4+5+6"}, "layer_range", (4, 7)),
        ({"modules": "q_proj+v_proj"}, "modules", ("q_proj", "v_proj")),
        ({"modules": "v_proj+q_proj"}, "modules", ("q_proj", "v_proj")),
        ({"modules": "vo+mlp"}, "modules", ("v_proj", "o_proj", *GROUPS["mlp"])),
        ({"modules": "all"}, "modules", tuple(MODULES)),
        ({"rule": "self_scale"}, "rule", "self_scale"),
        ({"seed": "7"}, "seed", 7),
    ],
)
def test_overrides(override: dict[str, Any], field: str, value: Any) -> None:
    spec = load_spec(GOOD, override)
    assert getattr(spec, field) == value
    both = {"layers", "layer_range"}
    rest = set(PlateauSpec.model_fields) - {field, "source"} - (both if field in both else set())
    assert all(getattr(spec, name) == getattr(good(), name) for name in rest)


@pytest.mark.parametrize("value", [0.5, "0.5", "5e-1"])
def test_one_weight_is_overridden_alone(value: Any) -> None:
    spec = load_spec(GOOD, {"model_weight": value})
    assert spec is not None
    assert (spec.weights.model, spec.weights.base_model) == (0.5, 0.3)


def test_a_changed_spec_does_not_keep_its_source_unsaid() -> None:
    spec = load_spec("qwen3-vl-8b", {"layers": "0:36"})
    assert spec is not None and spec.source is not None
    assert spec.source.endswith("(overridden: layers=0:36)")


def test_every_problem_is_reported_at_once_with_the_nearest_name() -> None:
    bad = {
        "base_modle": "org/base",
        "layer_range": [5, 2],
        "modules": ["q_porj", "k_proj", "gates_proj"],
        "weights": {"model": float("nan"), "base": 0.3},
        "rule": "self_sale",
        "seed": -1,
    }
    found = problems(bad, {"layesr": "1:2"})
    text = "\n".join(found)
    for expected in (
        "layesr: unknown override, did you mean 'layers'?",
        "base_model: missing",
        "base_modle: unknown key, did you mean 'base_model'?",
        "layer_range: [5, 2) runs backwards",
        "unknown module 'q_porj', did you mean 'q_proj'?",
        "unknown module 'gates_proj', did you mean 'gate_proj'?",
        "weights.model: found nan",
        "weights.base_model: missing",
        "weights.base: unknown key, did you mean 'base_model'?",
        "unknown rule 'self_sale', did you mean 'self_scale'?",
        "seed: found -1",
    ):
        assert expected in text
    assert len(found) == 10  # both unknown modules are one problem of one field


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"layer_range": [2, 2]}, "[2, 2) is empty"),
        ({"layer_range": [-1, 2]}, "start of 0 or more"),
        ({"layer_range": [1]}, "expected [start, end]"),
        ({"layer_range": [1.0, 2.0]}, "whole numbers"),
        ({"layer_range": "1:"}, "whole numbers"),
        ({"layer_range": [True, 2]}, "whole numbers"),
        ({"modules": []}, "expected module names"),
        ({"modules": ["q_proj", "qk"]}, "q_proj named more than once"),
        ({"modules": 3}, "expected module names"),
        ({"weights": {"model": True, "base_model": 1}}, "expected a number"),
        ({"weights": 1.2}, "weights"),
        ({"rule": "normalized", "weights": {"model": 1, "base_model": -1}}, "which is zero"),
        ({"seed": 1.5}, "whole number"),
        ({"base_model": ""}, "base_model"),
        ({"layers": [1, 2]}, "beside layer_range: [2, 5]; expected one of them"),
        ({"layer_range": None}, "expected layer_range: [start, end], or layers: [3, 9, 20]"),
        ({"layer_range": None, "layers": [3, 3]}, "names layer 3 more than once"),
        ({"layer_range": None, "layers": []}, "expected a list of layers"),
    ],
)
def test_bad_values(change: dict[str, Any], expected: str) -> None:
    (problem,) = problems({**GOOD, **change})
    assert expected in problem


def test_an_overridden_field_is_named_as_the_user_wrote_it() -> None:
    (problem,) = problems(GOOD, {"base_weight": "much"})
    assert "override base_weight=" in problem and "'much'" in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2]", "found a list, expected"),
        ("", "found an empty file, expected"),
        ("base_model: [", "cannot be read"),
        ("seed: 1\nbase_model: x\nseed: 2", "key given twice: seed"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    assert expected in problems(path)[0]


def test_unknown_spec_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (problem,) = problems("qwen3vl-8b")
    assert "did you mean 'qwen3-vl-8b'?" in problem and f"no file qwen3vl-8b in {tmp_path}" in problem
    assert "expected a name, a path" in problems(3)[0]
    (problem,) = problems("scan/plateau.yml")
    assert f"no file plateau.yml in {tmp_path / 'scan'}" in problem
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "plateau.yaml").write_text("")
    assert f"it is a folder, expected a YAML file; write plateau={Path('scan/plateau.yaml')}" in problems("scan")[0]
    assert "cannot be read" in problems("x" * 5000)[0]
    assert problems("a\0b")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("layer_range: [024, 036]", "write 24"),
        ("layer_range: 24-36", "write 24:36"),
        ("layer_range: 24,36", "write 24:36"),
        ("layer_range: [0, 1000000000000]", "no decoder has as many"),
        ("layer_range: 0:1000000000000", "no decoder has as many"),
        ("layer_range: [0, 1_000]", "whole numbers"),
        ("weights: {model: 0,9, base_model: 0,3}", "write 0.9"),
        ("weights: {model: '0,9', base_model: 0.3}", "write 0.9"),
        ("weights: {model: 1_0, base_model: 0.3}", "found '1_0', expected a number such as 0.9"),
        ("weights: {model: .inf, base_model: 0.3}", "found inf, expected a finite number such as 0.9"),
        ("weights: {model: 1e999, base_model: 0.3}", "expected a finite number"),
        ("model: 8", 'found 8, expected text; put it into quotes, as "8"'),
        ("base_model: 1.5", 'put it into quotes, as "1.5"'),
        ("rule: true", "expected text"),
        ("seed: 99999999999999999999", "at most 9223372036854775807"),
        ("3: 4", "found 3 as a key, expected a word"),
        ("weights: [0.9, 0.3]", "weights: found [0.9, 0.3], expected both by name: {model: 0.9, base_model: 0.3}"),
        ("weights: 0.9+0.3", "expected both by name: {model: 0.9, base_model: 0.3}"),
        (
            "modules: q_proj, k_proj",
            "found 'q_proj, k_proj', expected names joined by +: write q_proj+k_proj, or a list",
        ),
    ],
)
def test_values_that_read_as_something_else(tmp_path: Path, line: str, says: str) -> None:
    content = {key: value for key, value in GOOD.items() if not line.startswith(f"{key}:")}
    path = tmp_path / "spec.yaml"
    path.write_text(f"{yaml.safe_dump(content)}{line}\n")
    assert says in "\n".join(problems(path))


@pytest.mark.parametrize(
    ("content", "says"),
    [("base_model:org/base\n", "a space belongs behind each colon"), ("", "an empty file"), ("- a\n", "found a list")],
)
def test_a_file_without_fields(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "spec.yaml").write_text(content)
    (problem,) = problems(tmp_path / "spec.yaml")
    assert says in problem and "expected fields, one a line, as `base_model: org/name`" in problem


def test_a_home_folder_is_that_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(GOOD))
    assert load_spec("~/spec.yaml") == load_spec(GOOD)
    assert "no file other.yaml in" in problems("~/other.yaml")[0]
    assert problems("~nobody-of-this-name/spec.yaml")
    assert "found no name, expected a packaged spec" in problems("")[0]


def test_a_range_in_words_is_one_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    content = {key: value for key, value in GOOD.items() if key != "layer_range"}
    path.write_text(f"{yaml.safe_dump(content)}layer_range: 24:36\n")
    spec = load_spec(path)
    assert spec is not None and spec.layer_range == (24, 36)


def test_numbers_of_many_digits_are_neither_read_nor_written() -> None:
    many: Any
    for many in (10**5000, "9" * 5000, [0, 10**5000], f"0:{'9' * 5000}"):
        for field in ("layer_range", "seed", "modules", "rule", "model"):
            if not (field in ("model",) and isinstance(many, str)):
                assert all(len(problem) < 400 for problem in problems({**GOOD, field: many}))
        assert all(len(problem) < 400 for problem in problems({**GOOD, "weights": {"model": many, "base_model": 1}}))
    assert len(problems({**GOOD, "modules": ["all"] * 100_000})[0]) < 400


def test_a_base_of_digits_says_how_to_write_it() -> None:
    assert "write base=./8" in problems(GOOD, {"base": 8})[0]


def test_an_error_goes_from_one_process_to_another() -> None:
    error = SpecError("one", "two", origin="spec 'a'")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.problems == ["one", "two"]


def test_range_against_a_model() -> None:
    spec = good(layer_range=[24, 40])
    spec.check_layers(40, "big")
    with pytest.raises(SpecError, match=r"\[24, 40\) does not fit org/mllm, which has 36 decoder layers"):
        spec.check_layers(36, "org/mllm")


def test_packaged_specs_say_where_their_numbers_come_from() -> None:
    names = packaged_specs()
    assert {"qwen3-vl-8b", "qwen3-vl-4b", "qwen2.5-vl-7b", "qwen2.5-vl-3b", "llava-1.5-7b"} <= set(names)
    for name in names:
        spec = load_spec(name)
        assert spec is not None and spec.model and spec.source
    certainty = {name: load_spec(name).source for name in names}
    assert "[C]" in certainty["qwen3-vl-8b"] and "[U]" in certainty["qwen2.5-vl-7b"]
    assert "scan first" in certainty["llava-1.5-7b"]


modules = st.lists(st.sampled_from(list(MODULES)), min_size=1, unique=True)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(modules, st.randoms(use_true_random=False), finite, finite, st.integers(0, 50), st.integers(1, 50))
def test_digest_ignores_notation(names: list[str], random: Any, a: float, b: float, start: int, length: int) -> None:
    shuffled = random.sample(names, len(names))
    weights = {"model": a, "base_model": b}
    spec = good(modules=names, weights=weights, layer_range=[start, start + length])
    same = good(
        modules="+".join(shuffled),
        weights={"base_model": repr(b), "model": repr(a)},
        layer_range=f"{start}:{start + length}",
        seed=5,
        source="elsewhere",
        model="another",
        evidence={"a": 1},
    )
    assert same.digest() == spec.digest()
    assert good(modules=names, weights=weights, layer_range=[start, start + length + 1]).digest() != spec.digest()


def test_digest_follows_what_changes_weights() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"base_model": "org/other"},
        {"layer_range": [1, 5]},
        {"modules": ["q_proj"]},
        {"weights": {"model": 0.3, "base_model": 0.9}},
        {"rule": "self_scale"},
        {"rule": "noise"},
        {"rule": "noise", "seed": 1},
    ]
    assert len({good(**change).digest() for change in changes}) == len(changes)
    assert good(seed=1).digest() == good().digest(), "a rule that draws nothing does not depend on the seed"
    assert good(weights={"model": 1, "base_model": -0.0}) == good(weights={"model": 1.0, "base_model": 0})
    assert len(good().digest()) == 64


def _merge(model: float, base: float, **changes: Any) -> PlateauSpec:
    return good(weights={"model": model, "base_model": base}, **changes)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (_merge(0.9, 0.3, rule="normalized"), _merge(0.75, 0.25)),
        (_merge(0.9, 0.3, rule="normalized"), _merge(1.8, 0.6, rule="normalized")),
        (_merge(0.9, 0.3, rule="self_scale"), _merge(0.8, 0.4, rule="self_scale")),  # 1.2000000000000002 in floats
        (_merge(0.9, 0.3, rule="self_scale"), _merge(1.2, 0)),
        (_merge(0.9, 0.3, rule="self_scale"), _merge(0.9, 0.3, rule="self_scale", base_model="org/other")),
        (_merge(1.2, 0), _merge(1.2, -0.0, base_model="org/other")),
        (_merge(2, 0, rule="normalized"), _merge(1, 0)),
        (_merge(0.7, 0.3, rule="self_scale"), _merge(1, 0, rule="noise", seed=3)),  # nothing changes
    ],
)
def test_one_merge_has_one_digest_whatever_it_is_called(one: PlateauSpec, other: PlateauSpec) -> None:
    assert one.digest() == other.digest()
    assert one.is_plain == other.is_plain


def test_different_merges_have_different_digests() -> None:
    specs = [
        *(_merge(*weights) for weights in ((0.9, 0.3), (0.75, 0.25), (1.2, 0), (0, 1.2), (1, 0), (0, 1))),
        _merge(0.75, 0.25, base_model="org/other"),
        _merge(0.9, 0.3, rule="noise"),
        _merge(0.75, 0.25, rule="noise"),
        _merge(0.9, 0.3, rule="noise", seed=1),
        _merge(1.1, 0.1, rule="noise"),
        _merge(0.9, 0.2, rule="self_scale"),
        _merge(1.2, 0, layer_range=[2, 4]),
        _merge(1.2, 0, modules=["q_proj"]),
    ]
    assert len({spec.digest() for spec in specs}) == len(specs)


@pytest.mark.parametrize(
    ("spec", "plain"),
    [
        (_merge(1, 0), True),
        (_merge(0.7, 0.3, rule="self_scale"), True),
        (_merge(0.1, 0.9, rule="self_scale"), True),
        (_merge(5, 0, rule="normalized"), True),
        (_merge(1, 0, rule="noise"), True),  # noise of the size of no change
        (_merge(1, 0.1), False),
        (_merge(0.7, 0.3), False),
        (_merge(0.7, 0.3, rule="normalized"), False),
        (_merge(0, 1), False),
        (_merge(1.0001, 0), False),
        (_merge(0.9, 0.3, rule="self_scale"), False),
        (_merge(0.7, 0.3, rule="noise"), False),
    ],
)
def test_plain_is_what_changes_no_weight(spec: PlateauSpec, plain: bool) -> None:
    assert spec.is_plain is plain


PACKAGED = {
    "demo": "184fba6c519598d22b01055c8599ac650eca1e55ecdbb8b2290cb57f69457344",
    "llava-1.5-7b": "06d04f6e34e6cdb1ec3c38f62b853e5ee6f016a568a42d73e186b4e92b48516f",
    "qwen2.5-vl-3b": "f1bd761be45269a1b21cfcd82e15b68000408bb323c306ab5f2ec697bb62684e",
    "qwen2.5-vl-7b": "94ec6b0438d73ab7e9498682dd7cdfc5e6c605a07a1168bdd897083af45b3666",
    "qwen3-vl-4b": "bd4449d900e4c3f28073de74b834dff648d551e6d1b995616369d89adfbc6b70",
    "qwen3-vl-8b": "2a1e6419c3ede26605fcaac30dc5891a158e737c36e5dd7b9eee2e1557a23886",
}


def test_digests_of_packaged_specs_stay_what_results_were_recorded_with() -> None:
    specs = {name: load_spec(name) for name in packaged_specs()}
    assert {name: spec.digest() for name, spec in specs.items() if spec} == PACKAGED


def test_layers_have_one_digest_whichever_way_they_are_written() -> None:
    rest = {key: value for key, value in GOOD.items() if key != "layer_range"}
    spec = load_spec({**rest, "layers": [4, 2, 3]})
    assert spec == good() and spec is not None and spec.digest() == good().digest()
    assert spec.layer_range == (2, 5) and spec.to_dict() == good().to_dict(), "an old reader reads it, too"
    gap = load_spec({**rest, "layers": [4, 2]})
    assert gap is not None and (gap.layers, gap.layer_range) == ((2, 4), None)
    assert gap.to_dict()["layers"] == [2, 4] and "layer_range" not in gap.to_dict()
    assert load_spec(gap.to_dict()) == gap
    overridden = load_spec(GOOD, {"layers": "2+4"})
    assert overridden is not None and overridden.digest() == gap.digest()
    assert load_spec(gap, {"layers": "2:5"}).digest() == spec.digest() != gap.digest()
    assert gap.recipe(2) == spec.recipe(4), "tensors of both come out the same"


def test_a_set_beyond_the_decoder_is_refused() -> None:
    spec = load_spec(GOOD, {"layers": "3+40"})
    assert spec is not None
    spec.check_layers(41, "big")
    with pytest.raises(SpecError, match=r"layers: 3, 40 does not fit small, which has 40 .* layers of at most 39"):
        spec.check_layers(40, "small")


def test_digest_is_the_same_in_every_process() -> None:
    command = f"from plam_eval.spec import load_spec; print(load_spec({GOOD!r}).digest())"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == good().digest()


def test_specs_are_checked_without_torch() -> None:
    command = "import sys, plam_eval.spec; print({'torch', 'transformers', 'lmms_eval', 'vllm'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_override_keys_are_all_handled() -> None:
    values = ("b", "org/old", "1:2", "q_proj", 0.1, 0.2, "dare", "drop_rate:0.5", 3)
    spec = load_spec(GOOD, dict(zip(OVERRIDE_KEYS, values, strict=True)))
    assert spec == PlateauSpec(
        base_model="b",
        layer_range=(1, 2),
        modules=("q_proj",),
        weights={"model": 0.1, "base_model": 0.2},  # type: ignore[arg-type]
        rule="dare",
        parameters={"drop_rate": 0.5},
        seed=3,
        ancestor="org/old",
        source=spec.source if spec else None,
    )
