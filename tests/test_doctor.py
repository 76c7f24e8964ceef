from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from plam_eval import cli, doctor
from plam_eval.harness import registry
from plam_eval.merging.rules import FUNCTIONS
from plam_eval.spec import OVERRIDE_KEYS, SpecError

if TYPE_CHECKING:
    from tests.helpers.pico import PicoPair

runner = CliRunner()


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_says_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_NEEDED", ("torch", "transformers"))
    monkeypatch.setattr(doctor, "_OPTIONAL", ("no_such_package",))
    result = runner.invoke(cli.app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "torch " in result.output and "qwen3-vl-8b" in result.output
    assert "not installed (optional)" in result.output
    lines = {cells[1]: cells for line in result.output.splitlines() if len(cells := line.split("│")) > 3}
    rows = {name.strip(): cells[3].strip() for name, cells in lines.items()}
    assert rows["transformers"].split()[0] in ("tested", "allowed")


def test_every_override_of_a_spec_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_NEEDED", ())
    monkeypatch.setattr(doctor, "_OPTIONAL", ())
    given: dict[str, object] = {}
    monkeypatch.setattr("plam_eval.spec.load_spec", lambda plateau, overrides: None)
    monkeypatch.setattr(doctor, "check_merge", lambda model, plateau, overrides: given.update(overrides))
    words = [word for key in OVERRIDE_KEYS for word in (f"--{key.replace('_', '-')}", f"{key}?")]
    assert runner.invoke(cli.app, ["doctor", *words]).exit_code == 0
    assert given == {key: f"{key}?" for key in OVERRIDE_KEYS}


def test_json_has_the_rows_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_NEEDED", ("safetensors",))
    monkeypatch.setattr(doctor, "_OPTIONAL", ())
    parts = json.loads(runner.invoke(cli.app, ["doctor", "--json"]).stdout)["installation"]
    assert list(parts) == ["plam-eval", "python", "safetensors"] and "commit" in parts["plam-eval"]
    assert parts["python"]["version"] == platform.python_version() and parts["python"]["standing"]


def test_a_mistyped_spec_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_installation", lambda: pytest.fail("looked at the installation"))
    with pytest.raises(SpecError, match="did you mean 'demo'"):
        runner.invoke(cli.app, ["doctor", "--plateau", "dmo"], catch_exceptions=False)


def test_one_thread_is_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for threads, said in ((1, "(1 thread)"), (2, "(2 threads)")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert doctor._accelerators().endswith(said)


def test_a_missing_part_that_is_needed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_NEEDED", ("torch", "no_such_package"))
    monkeypatch.setattr(doctor, "_OPTIONAL", ())
    assert runner.invoke(cli.app, ["doctor"]).exit_code == 1


def test_a_refused_version_fails_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.metadata.version
    monkeypatch.setattr(doctor, "_NEEDED", ("safetensors",))
    monkeypatch.setattr(doctor, "_OPTIONAL", ())
    monkeypatch.setattr(doctor.metadata, "version", lambda name: {"safetensors": "0.4.0"}.get(name) or found(name))
    result = runner.invoke(cli.app, ["doctor"])
    assert result.exit_code == 1
    assert "safetensors 0.4.0 is refused (safetensors>=0.4.5)" in result.output
    monkeypatch.setattr(doctor, "_NEEDED", ())
    monkeypatch.setattr(doctor, "_OPTIONAL", ("safetensors",))
    assert runner.invoke(cli.app, ["doctor"]).exit_code == 0


def test_what_is_not_installed_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "version", lambda name: _absent(name) if "vllm" in name else "1.0")
    monkeypatch.setattr(doctor, "_NEEDED", ())
    monkeypatch.setattr(doctor, "_OPTIONAL", ("vllm",))
    monkeypatch.setattr(doctor.versions.platform, "python_version_tuple", lambda: ("3", "10", "4"))
    monkeypatch.setattr(doctor.versions.platform, "system", lambda: "Linux")
    assert "not installed (optional): vLLM is for Python 3.11 or newer" in runner.invoke(cli.app, ["doctor"]).output
    monkeypatch.setattr(doctor.versions.platform, "system", lambda: "Windows")
    assert "vLLM has wheels for Linux only" in runner.invoke(cli.app, ["doctor", "--vllm"]).output


def _absent(name: str) -> str:
    raise doctor.metadata.PackageNotFoundError(name)


def test_a_filelock_that_lmms_eval_cannot_use_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_NEEDED", ("lmms_eval",))
    monkeypatch.setattr(doctor, "_OPTIONAL", ())
    assert runner.invoke(cli.app, ["doctor"]).exit_code == 0
    found = registry.importlib.util.find_spec
    monkeypatch.setattr(
        registry.importlib.util,
        "find_spec",
        lambda name, *more: None if name == "filelock._api" else found(name, *more),
    )
    result = runner.invoke(cli.app, ["doctor"])
    said = re.sub(r"[\s│]+", "", result.output)  # in a narrow terminal the cell has several lines
    assert result.exit_code == 1 and "no:itimportsfilelock._api;pipinstall'filelock<4.3'" in said


def test_shows_what_a_spec_would_merge(pico: Callable[[str], PicoPair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.doctor, "_say_installation", lambda console: True)
    pair = pico("llava")
    arguments = ["doctor", "--model", str(pair.mllm), "--base", str(pair.base), "--layers", "1:3", "--modules", "qk"]
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "2 x 64 x 64, float32 and float32" in result.output  # q_proj of two layers
    assert "2 x 32 x 64" in result.output  # k_proj: one head of 32
    assert "o_proj" not in result.output
    # q 64 x 64 and k 32 x 64, two layers, four bytes
    assert f"{2 * (64 * 64 + 32 * 64) * 4 / 1e6:.1f} MB of the base" in result.output


def test_time_and_memory_are_those_of_the_rule(
    pico: Callable[[str], PicoPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pico("llava")
    given = {"base": str(pair.base), "layers": "0+2:4", "modules": "all", "ancestor": str(pair.base)}
    merges = {
        rule: doctor.check_merge(str(pair.mllm), "none", {**given, "rule": rule})
        for rule in ("weighted_sum", "trim", "ties", "iso_c")
    }
    largest = 4 * max(t.shape[0] * t.shape[-1] for t in merges["trim"].plan.tensors if len(t.shape) > 1)
    assert {rule: merge.memory / largest for rule, merge in merges.items() if merge} == {
        **{"weighted_sum": 3, "trim": 3 + 4, "ties": 3 + 2 + 6, "iso_c": 3 + 16}
    }
    assert all(merge is not None and merge.seconds > 0 for merge in merges.values())
    called: list[int] = []
    function = FUNCTIONS["trim"]

    def noted(*args: Any, **more: Any) -> Any:
        called.append(1)
        return function(*args, **more)

    monkeypatch.setitem(FUNCTIONS, "trim", noted)
    doctor.check_merge(str(pair.mllm), "none", {**given, "rule": "trim"})
    assert called, "the rule itself is timed"
    monkeypatch.setattr(doctor, "_NEEDED", ())
    monkeypatch.setattr(doctor, "_OPTIONAL", ())
    options = [f"--{key}={value}" for key, value in {**given, "rule": "ties", "parameters": "density:0.5"}.items()]
    result = runner.invoke(cli.app, ["doctor", "--model", str(pair.mllm), *options])
    assert result.exit_code == 0, result.output
    for words in ("ancestor", "ties: 0.9 model, 0.3 base; density 0.5", "0, 2, 3", "MB at a time, besides the model"):
        assert words in result.output


def test_faults_are_the_last_words(
    pico: Callable[[str], PicoPair], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.doctor, "_say_installation", lambda console: True)
    pair = pico("llava")
    arguments = ["plam", "doctor", "--model", str(pair.mllm), "--base", str(pair.base), "--layers", "2:9"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "has 4 decoder layers" in capsys.readouterr().err


def test_a_model_needs_a_spec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli.doctor, "_say_installation", lambda console: True)
    monkeypatch.setattr("sys.argv", ["plam", "doctor", "--model", "some/model"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "name one with --plateau" in capsys.readouterr().err
