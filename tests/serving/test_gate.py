"""What a request may name, and that no answer shows a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from plam_eval.serving import gate
from plam_eval.serving.gate import BASES, SPECS, Gate, parse_request
from plam_eval.spec import load_spec, packaged_specs

TOKEN = "hf_PlantedToken123"
GOOD = "base_model: {base}\nlayer_range: [1, 3]\nmodules: [q_proj]\nweights: {{model: 1, base_model: 0.5}}\n"


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's working directory: specs, two bases, and a secret beside them."""
    for folder in ("specs/deep", "bases/one", "other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "secret").write_text(f"token: {TOKEN}\n")
    (tmp_path / "specs" / "good.yaml").write_text(GOOD.format(base=tmp_path / "bases" / "one"))
    (tmp_path / "specs" / "deep" / "good.yaml").write_text(GOOD.format(base=tmp_path / "bases" / "one"))
    (tmp_path / "specs" / "out.yaml").symlink_to(tmp_path / "secret")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gate_of(house: Path, base: str | None = None, bases: str = "", ancestor: str | None = None) -> Gate:
    return Gate.of({SPECS: str(house / "specs"), BASES: bases}, *filter(None, (base, ancestor)))


def test_files_below_the_folder_of_specs_are_read(house):
    here = gate_of(house, bases="bases")
    for name in ("good.yaml", "deep/good.yaml", "./good.yaml"):
        assert here.spec(name, {}) == load_spec(house / "specs" / "good.yaml")
    changed = here.spec("good.yaml", {"layers": "0:2"})
    assert changed == load_spec(house / "specs" / "good.yaml", {"layers": "0:2"})
    assert here.spec("none", {}) is None and here.spec(" NONE ", {}) is None


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "deep/../../secret",
        "{house}/secret",
        "{house}/specs/good.yaml",
        "out.yaml",
        "missing.yaml",
        "deep",
        "",
        "~",
        "C:\\secret",
        "..\\secret",
        "a\0b",
        "x" * 5000,
    ],
)
def test_no_other_file_is_opened_nor_told_from_one_that_is_absent(house, name):
    here = gate_of(house, bases="bases")
    with pytest.raises(ValueError, match="folder of specs") as found:
        here.spec(name.format(house=house), {})
    said = str(found.value)
    assert TOKEN not in said and str(house) not in said.replace(name.format(house=house), "")


def test_without_a_folder_of_specs_there_are_packaged_names_and_mappings_only(house):
    with pytest.raises(ValueError, match=f"started without {SPECS}.*JSON object"):
        Gate().spec("good.yaml", {})
    with pytest.raises(ValueError, match="did you mean 'qwen3-vl-8b'"):
        Gate().spec("qwen3-vl-8", {})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f"token: {TOKEN}\n", "no other keys than model, base_model"),
        (f"{TOKEN}: 1\n", "no other keys than"),
        (f"{TOKEN}", "expected a YAML mapping"),
        (f"- {TOKEN}\n", "expected a YAML mapping"),
        (f"a: [{TOKEN}\n", "expected a YAML mapping"),
        (f"a: !!python/object:{TOKEN} 1\n", "expected a YAML mapping"),
        (f"a: {TOKEN}\na: {TOKEN}\n", "expected a YAML mapping"),
        (GOOD.format(base="x") + f"seed: {TOKEN}\n", "seed: expected a whole number"),
        (GOOD.format(base="x") + f"rule: {TOKEN}\n", "rule: expected the name of a rule"),
        (GOOD.format(base="x").replace("[1, 3]", f"[1, {TOKEN}]"), r"layer_range: expected \[start, end\]"),
        (GOOD.format(base="x").replace("[q_proj]", f"[{TOKEN}]"), "modules: expected a list"),
        (GOOD.format(base="x").replace("model: 1", f"model: {TOKEN}"), "weights: expected {model: number"),
        (GOOD.format(base="x").replace("model: 1", f"{TOKEN}: 1"), "weights: expected {model: number"),
        (GOOD.format(base=TOKEN), "the base that 'bad.yaml' names is not allowed"),
        ("[" * 3000 + TOKEN, "expected a YAML mapping"),
        (GOOD.format(base="x") + f"evidence: {{a: {'[' * 40}{TOKEN}{']' * 40}}}\n", "nested too deeply|YAML"),
        (GOOD.format(base="x") + "evidence: {a: &a [*a]}\n", "nested too deeply|more than|YAML"),
    ],
)
def test_no_answer_shows_a_file(house, content, says):
    (house / "specs" / "bad.yaml").write_text(content)
    with pytest.raises(ValueError, match=says) as found:
        gate_of(house).spec("bad.yaml", {})
    assert TOKEN not in str(found.value)


def test_a_file_with_bytes_that_are_no_text_or_too_many(house):
    (house / "specs" / "bad.yaml").write_bytes(b"\xff\xfe" + TOKEN.encode())
    with pytest.raises(ValueError, match="its content is not shown"):
        gate_of(house).spec("bad.yaml", {})
    (house / "specs" / "bad.yaml").write_bytes(b"# " + b"x" * gate.MAX_BYTES)
    with pytest.raises(ValueError, match="at most 262144 bytes"):
        gate_of(house).spec("bad.yaml", {})
    os.mkfifo(house / "specs" / "pipe")
    with pytest.raises(ValueError, match="no file of that name"):
        gate_of(house).spec("pipe", {})


# ---- bases -----------------------------------------------------------------------------------------------------------


def asked(base: str) -> dict[str, Any]:
    return {
        "base_model": base,
        "layer_range": [1, 3],
        "modules": ["q_proj"],
        "weights": {"model": 1, "base_model": 0.5},
    }


@pytest.mark.parametrize("way", ["mapping", "override", "base and layers"])
def test_only_bases_that_the_server_allows(way, house):
    def ask(here: Gate, base: str) -> Any:
        if way == "mapping":
            return here.spec(asked(base), {})
        return here.spec(asked("org/allowed") if way == "override" else "none", {"base": base, "layers": "1:3"})

    here = gate_of(house, base="bases/one", bases=f"org/allowed, {house / 'other'}")
    for base in ("bases/one", "./bases/one", str(house / "bases" / "one"), "org/allowed", "other"):
        assert ask(here, base).base_model == base
    (house / "other" / "inner").mkdir()
    (house / "other" / "link").symlink_to(house / "bases")
    assert ask(here, "other/inner")
    for base in ("bases", "other/link", "other/../specs", "/etc", "/nowhere", "org/other", "~", "", "a\0b", "x" * 5000):
        with pytest.raises(ValueError):
            ask(here, base)
    for base in ("/etc", "/nowhere/at/all"):  # one sentence, whether it exists or not
        with pytest.raises(ValueError, match=f"base_model: '{base}' is not allowed; expected the base that the server"):
            ask(here, base)


def old(ancestor: str, **changes: Any) -> dict[str, Any]:
    return {**asked("org/base"), "rule": "ties", "ancestor": ancestor, **changes}


def test_only_ancestors_that_the_server_allows(house):
    here = gate_of(house, base="org/base", bases=f"org/allowed, {house / 'other'}", ancestor="bases/one")
    for ancestor in ("bases/one", str(house / "bases" / "one"), "org/allowed", "other", "org/base"):
        assert here.spec(old(ancestor), {}).ancestor == ancestor
        changed = here.spec(old("org/allowed"), {"ancestor": ancestor, "rule": "task_arithmetic"})
        assert changed.ancestor == ancestor
    (house / "other" / "link").symlink_to(house / "bases")
    for ancestor in ("bases", "other/link", "other/../specs", "/etc", "/nowhere", "org/other", "~", "a\0b", "x" * 5000):
        for body, overrides in ((old(ancestor), {}), (old("org/allowed"), {"ancestor": ancestor})):
            with pytest.raises(ValueError):
                here.spec(body, overrides)
    for ancestor in ("/etc", "/nowhere/at/all"):  # one sentence, whether it exists or not
        with pytest.raises(ValueError, match=f"ancestor: '{ancestor}' is not allowed; expected the ancestor that the"):
            here.spec(old(ancestor), {})
    with pytest.raises(ValueError, match=r"base_model: '/etc' is not allowed.*; ancestor: '/srv' is not allowed"):
        here.spec(old("/srv", base_model="/etc"), {})


def test_an_ancestor_that_no_rule_reads_is_neither_refused_nor_told(house):
    here = gate_of(house, base="org/base")
    spec = here.spec(old("/etc", rule="weighted_sum"), {})
    assert spec is not None and spec.ancestor is None
    assert spec.digest() == load_spec(old("/etc", rule="weighted_sum")).digest()


def test_the_ancestor_in_a_file_is_not_shown(house):
    content = GOOD.format(base=house / "bases" / "one") + f"rule: ties\nancestor: {TOKEN}\n"
    (house / "specs" / "old.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"ancestor: the ancestor that 'old.yaml' names is not allowed") as found:
        gate_of(house, bases="bases").spec("old.yaml", {})
    assert TOKEN not in str(found.value)
    assert gate_of(house, bases="bases").spec("old.yaml", {"ancestor": "bases/one"}).ancestor == "bases/one"


def test_what_looks_like_an_id_and_is_a_folder_is_one(house):
    here = gate_of(house, base="org/model")
    assert here.allows("org/model")
    (house / "org" / "model").mkdir(parents=True)  # since the server was started
    assert not here.allows("org/model")
    assert gate_of(house, base="org/model").bases == {house / "org" / "model"}


def test_packaged_specs_need_their_base_allowed(house):
    plain = gate_of(house)
    for name in packaged_specs():
        with pytest.raises(ValueError, match="is not allowed"):
            plain.spec(name, {})
    spec = load_spec("qwen3-vl-8b")
    assert spec is not None and gate_of(house, bases=spec.base_model).spec("qwen3-vl-8b", {}) == spec
    assert gate_of(house, base="bases/one").spec("qwen3-vl-8b", {"base": "bases/one"})


@pytest.mark.parametrize("variable", [SPECS, BASES])
def test_a_folder_that_is_none_stops_the_start(variable, house):
    with pytest.raises(ValueError, match=f"{variable}.*/nowhere/at/all"):
        Gate.of({variable: "/nowhere/at/all"})


# ---- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON .* at character 1"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"[]", "found a list, expected a JSON object"),
        (b"null", "found null"),
        (b"3", "found a number"),
        (b'{"a": NaN}', "found NaN"),
        (b'{"a": -Infinity}', "found -Infinity"),
        (b'{"a": 1e999}', "beyond the range of a float"),
        (b'{"a": ' + b"9" * 30 + b"}", "beyond 64 bits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b'{"plateau": "demo", "plateau": "none"}', "the key 'plateau' is given twice"),
        (b'{"a": {"b": 1, "b": 2}}', "the key 'b' is given twice"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (json.dumps({"a": "x" * 5000}).encode(), "found a text of length 5000"),
        (json.dumps({"a": [0] * 5000}).encode(), "found a list of length 5000"),
        (json.dumps({str(number): number for number in range(30_000)}).encode(), "found an object of length 30000"),
    ],
)
def test_requests_that_are_none(body, says):
    with pytest.raises(ValueError, match=says) as found:
        parse_request(body)
    assert "\n" not in str(found.value) and len(str(found.value)) < 300


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"plateau": None}, "found null, expected a name"),
        ({"plateau": 3}, "found a number"),
        ({"plateau": True}, "found true"),
        ({"plateau": ["demo"]}, "found a list"),
        ({"plateau": {}}, "layers: missing"),
        ({"plateau": asked("org/allowed"), "layer": 3}, "layer: unknown override, did you mean 'layers'"),
        ({"plateau": {**asked("org/allowed"), "wieghts": 3}}, "did you mean 'weights'"),
        ({"plateau": asked("org/allowed"), "base": {"a": 1}}, "base_model"),
        ({"plateau": asked("org/allowed"), "layers": {"a": 1}}, r"expected \[start, end\]"),
        ({"plateau": asked("org/allowed"), "modules": {"a": 1}}, "expected module names"),
        ({"plateau": asked("org/allowed"), "modules": "q+" * 2000}, "modules"),
        ({"plateau": asked("org/allowed"), "model_weight": "much"}, "weights.model"),
        ({"plateau": asked("org/allowed"), "rule": []}, "rule"),
        ({"plateau": asked("org/allowed"), "seed": -1}, "expected a whole number"),
    ],
)
def test_specs_that_are_none(body, says, house):
    here = gate_of(house, base="org/allowed")
    content = parse_request(json.dumps(body).encode())
    with pytest.raises(ValueError, match=says):
        here.spec(content.pop("plateau"), content)
