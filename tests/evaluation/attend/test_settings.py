"""Which settings a model is looked at under, and what is said of them before it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plam_eval.errors import InputError, MergeError
from plam_eval.evaluation.attend.folder import MERGED, PLAIN
from plam_eval.evaluation.attend.settings import Settings, check_merges
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.spec import PlateauSpec, load_spec


def spec(**changed: Any) -> PlateauSpec:
    given = {"base_model": "base", "layer_range": [2, 4], "modules": "qkvo"}
    found = load_spec({**given, "weights": {"model": 0.9, "base_model": 0.3}, **changed})
    assert found is not None
    return found


def test_the_merge_and_its_controls_are_looked_at_unless_told_otherwise() -> None:
    settings = Settings.read(spec())
    assert list(settings.specs) == [PLAIN, MERGED, "self_scale", "normalized"] and not settings.equal
    assert settings.specs[PLAIN] is None and settings.specs[MERGED] == spec()
    assert settings.specs["self_scale"] == spec(rule="self_scale") and settings.notes() == []
    assert load_spec(settings.to_dict()["normalized"]) == spec(rule="normalized")


def test_words_name_rules_with_seed_0_and_specs_and_plain_is_always_first(tmp_path: Path) -> None:
    file = tmp_path / "early.yaml"
    file.write_text("base_model: b\nlayer_range: [0, 2]\nmodules: [q_proj]\nweights: {model: 1, base_model: 0.2}\n")
    settings = Settings.read(spec(rule="noise", seed=7), ["noise", MERGED, str(file), "demo", "noise"])
    assert list(settings.specs) == [PLAIN, "noise", MERGED, "early", "demo"]
    noise, merged, early = (settings.specs[name] for name in ("noise", MERGED, "early"))
    assert noise and merged and early and (noise.seed, merged.seed, early.layer_range) == (0, 7, (0, 2))
    alone = Settings.read(None, [str(file)])
    assert list(alone.specs) == [PLAIN, "early"]


@pytest.mark.parametrize(
    ("weights", "equal"),
    [
        ({"model": 0.6, "base_model": 0.4}, {"self_scale": PLAIN, "normalized": MERGED}),
        ({"model": 1.2, "base_model": 0.0}, {"self_scale": MERGED, "normalized": PLAIN}),
    ],
)
def test_a_merge_is_looked_at_once_whatever_it_is_called(weights: Any, equal: dict[str, str]) -> None:
    settings = Settings.read(spec(weights=weights))
    assert list(settings.specs) == [PLAIN, MERGED] and settings.equal == equal
    assert (
        settings.notes()[0]
        == f"self_scale: left out, because its weights are those of {equal['self_scale']} to the bit"
    )


def test_a_file_that_is_called_like_a_setting_keeps_its_path(tmp_path: Path) -> None:
    file = tmp_path / "merged.yaml"
    file.write_text("base_model: b\nlayer_range: [0, 2]\nmodules: [q_proj]\nweights: {model: 1, base_model: 0.2}\n")
    assert list(Settings.read(spec(), [MERGED, str(file)]).specs) == [PLAIN, MERGED, str(file)]


def test_what_is_no_setting_is_named_all_at_once(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("base_model: b\n")
    with pytest.raises(InputError, match="settings: ") as refused:
        Settings.read(spec(), ["self_scal", str(file), MERGED])
    assert "self_scal: no setting, packaged spec or file of that name; did you mean 'self_scale'?" in str(refused.value)
    assert f"{file}: layers: missing" in str(refused.value)
    with pytest.raises(InputError, match="nothing to hold the plain model against: give plateau=SPEC in model_args"):
        Settings.read(None)
    with pytest.raises(InputError, match="self_scale: there is no merge that it could be of"):
        Settings.read(None, ["demo", "self_scale"])
    with pytest.raises(InputError, match="every weight stays as it is in the plain model"):
        Settings.read(spec(weights={"model": 1, "base_model": 0}))
    with pytest.raises(InputError, match="no setting: every weight stays as it is"):
        Settings.read(spec(), [PLAIN])


def test_every_fault_of_every_setting_is_known_from_headers(pico: Any, tmp_path: Path) -> None:
    pair = pico("llava")
    checkpoint = Checkpoint.open(str(pair.mllm))
    good = spec(base_model=str(pair.base))
    bases = check_merges(Settings.read(good), checkpoint)
    assert list(bases) == [str(pair.base)]
    file = tmp_path / "deep.yaml"
    deep = {"base_model": str(pair.base), "layer_range": [2, 9], "modules": ["q_proj"]}
    file.write_text(f"{deep}"[:-1] + ", weights: {model: 1, base_model: 0.2}}")
    with pytest.raises(MergeError) as refused:
        check_merges(Settings.read(good, [str(file), MERGED, str(_other(tmp_path))]), checkpoint)
    said = str(refused.value)
    assert "deep: " in said and "[2, 9)" in said and "nowhere: " in said and "merged: " not in said


def _other(folder: Path) -> Path:
    file = folder / "nowhere.yaml"
    file.write_text(
        "{base_model: ./no/such, layer_range: [2, 4], modules: [q_proj], weights: {model: 1, base_model: 1}}"
    )
    return file


def test_a_control_of_a_rule_with_parameters_leaves_them_behind() -> None:
    trimmed = spec(rule="trim", parameters={"density": 0.4}, layer_range=None, layers=[1, 3])
    settings = Settings.read(trimmed, [MERGED, "self_scale", "dare", "trim"])
    assert settings.specs["self_scale"] == spec(rule="self_scale", layer_range=None, layers=[1, 3])
    dare = settings.specs["dare"]
    assert dare is not None and dare.parameters == {"drop_rate": 0.9} and settings.equal == {"trim": MERGED}


def test_controls_of_a_rule_with_parameters_leave_them_to_it() -> None:
    content = {"base_model": "org/base", "layers": [1, 3], "modules": "qkvo", "rule": "ties", "ancestor": "org/old"}
    merge = load_spec({**content, "weights": {"model": 0.9, "base_model": 0.3}, "parameters": {"density": 0.4}})
    specs = Settings.read(merge, ["merged", "self_scale", "task_arithmetic"]).specs
    assert [spec.parameters for spec in specs.values() if spec] == [{"density": 0.4}, {}, {}]
    assert specs["task_arithmetic"].ancestor == "org/old"
    assert list(Settings.read(merge, ["merged", "ties"]).equal) == ["ties"], "its own parameters"


def test_the_ancestor_is_among_the_checkpoints_that_are_watched(pico: Any, tmp_path: Path) -> None:
    pair = pico("llava")
    given = {"base": str(pair.base), "layers": "1:3", "rule": "ties", "ancestor": str(pair.mllm)}
    opened = Checkpoint.open(pair.mllm)
    watched = check_merges(Settings.read(load_spec(None, given)), opened)
    assert set(watched) == {str(pair.base), str(pair.mllm)}
    lost = load_spec(None, {**given, "ancestor": str(tmp_path / "none")})
    with pytest.raises(MergeError, match=r"merged: ancestor=.*none: no such folder"):
        check_merges(Settings.read(lost), opened)
