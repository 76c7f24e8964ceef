from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from plam_eval import provenance as module
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import merge_in_place
from plam_eval.provenance import describe_checkpoint, git_commit, provenance, read_identity, versions
from tests.helpers.llamas import Pair, load, write_llama


def test_versions_are_those_installed() -> None:
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    for name in ("plam-eval", "lmms-eval", "torch", "transformers"):
        assert found[name] == metadata.version(name)


def test_the_record_is_complete_and_json_able(tmp_path: Path) -> None:
    pair = Pair(write_llama(tmp_path / "mllm", 1), write_llama(tmp_path / "base", 2))
    spec = pair.spec()
    checkpoint, base = Checkpoint.open(pair.mllm), Checkpoint.open(pair.base)
    report = merge_in_place(load(pair.mllm), spec, checkpoint=checkpoint, base=base)
    record = json.loads(json.dumps(provenance(spec, checkpoint=checkpoint, base=base, report=report)))
    assert record["spec"] == spec.to_dict() and record["digest"] == spec.digest() == record["merge"]["digest"]
    assert record["checkpoint"] == {"name": str(pair.mllm), **checkpoint.identity(), **checkpoint.content()}
    assert record["base"]["sha256"] != record["checkpoint"]["sha256"]
    copy = Checkpoint.open(shutil.copytree(pair.mllm, tmp_path / "copy"))
    same = json.loads(json.dumps(provenance(None, checkpoint=copy)))["checkpoint"]
    assert (
        same["sha256"] == record["checkpoint"]["sha256"] and same["fingerprint"] != record["checkpoint"]["fingerprint"]
    )
    assert record["merge"]["tensors"] == 16
    plain = provenance(None)
    assert [plain[key] for key in ("spec", "digest", "checkpoint", "base", "merge")] == [None] * 5


def test_a_checkpoint_that_changed_since_it_was_loaded_is_not_hashed(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "mllm", 1)
    checkpoint = Checkpoint.open(folder)
    loaded = checkpoint.identity()
    assert "sha256" in describe_checkpoint(checkpoint, loaded)
    shutil.copy(write_llama(tmp_path / "other", 2) / "model.safetensors", folder)
    record = describe_checkpoint(checkpoint, loaded)
    assert record == {"name": str(folder), **loaded, "not hashed": "the files have changed since they were loaded"}
    shutil.rmtree(folder)
    assert "config.json" not in describe_checkpoint(checkpoint, loaded) and "sha256" not in describe_checkpoint(
        checkpoint, loaded
    )


def test_hashing_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(write_llama(tmp_path / "mllm", 1))
    monkeypatch.setenv("PLAM_CONTENT_HASHES", "off")
    assert describe_checkpoint(checkpoint) == {"name": checkpoint.name, **checkpoint.identity()}


def test_a_stored_fingerprint_is_read_under_its_old_name() -> None:
    assert read_identity({"name": "x", "folder": "/x", "sha256": "ab"}) == {
        "name": "x",
        "folder": "/x",
        "fingerprint": "ab",
    }
    for stored in ({"folder": "/x", "fingerprint": "ab", "sha256": "cd"}, {"hub": "a/b", "commit": "ef"}):
        assert read_identity(stored) == stored


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    run = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return run.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_of_a_checkout_and_of_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    package.mkdir()
    source = package / "provenance.py"
    source.write_text("")
    monkeypatch.setattr(module, "__file__", str(source))

    def commit() -> str | None:
        git_commit.cache_clear()
        return git_commit()

    try:
        git(tmp_path, "init", "-q")
        assert commit() is None, "installed below a checkout of something else"
        git(tmp_path, "add", "package")
        git(tmp_path, "commit", "-qm", "one")
        head = git(tmp_path, "rev-parse", "HEAD")
        assert commit() == head
        (package / "new.txt").write_text("")
        assert commit() == head
        source.write_text("edited")
        assert commit() == f"{head}-dirty"
    finally:
        git_commit.cache_clear()


def test_provenance_imports_no_torch() -> None:
    command = "import sys, plam_eval.provenance as p; p.provenance(None); print({'torch', 'vllm'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
