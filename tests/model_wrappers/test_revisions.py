"""Revisions of the hub, through the wrappers: what is loaded, what is recorded, and that a record is enough."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plam_eval.errors import CheckpointError
from plam_eval.harness.evaluate import evaluate, make_model
from plam_eval.merging.report import MergeReport
from tests.helpers.hub import COMMIT, Hub, serving

OTHER, LATER = "a" * 40, "b" * 40
MARK = "<other revision>"


def changed(folder: Path, copy: Path) -> Path:
    """A copy of a checkpoint with other weights, and a chat template and generation config that tell it apart."""
    shutil.copytree(folder, copy)
    tensors = {name: tensor * 1.5 for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    for template in copy.glob("chat_template.jinja"):
        template.write_text(MARK + template.read_text())
    config = copy / "generation_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_length": 777}) if config.is_file() else "{}")
    return copy


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pico) -> Iterator[Hub]:
    for family in ("llava", "qwen2_vl"):
        for side in ("mllm", "base"):
            shutil.copytree(getattr(pico(family), side), tmp_path / "hub" / family / side)
    with serving(tmp_path / "hub", tmp_path / "cache", monkeypatch) as hub:
        for family in ("llava", "qwen2_vl"):
            for side in ("mllm", "base"):
                folder = changed(tmp_path / "hub" / family / side, tmp_path / "other" / family / side)
                hub.publish(f"{family}/{side}", folder, OTHER, "v2", "refs/pr/3")
        yield hub


@pytest.mark.parametrize(("family", "mode"), [("llava", "chat"), ("qwen2_vl", "simple")])
def test_a_revision_is_what_everything_is_loaded_from(hub, load, family, mode, tmp_path, in_suite, monkeypatch):
    """Of lmms-eval's classes one hands its revision to some loaders only, the other takes none."""
    model = load(family, mode, pretrained=f"{family}/mllm@v2", base=f"{family}/base@refs/pr/3", layers="1:3")
    expected = load(
        family, mode, pretrained=tmp_path / "other" / family / "mllm", base=tmp_path / "other" / family / "base",
        layers="1:3",
    )  # fmt: skip
    for name, value in expected.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], value), name
    assert model.model.generation_config.max_length == 777
    assert (getattr(model, "processor", None) or model._image_processor).chat_template.startswith(MARK)

    report = model.merge_report
    assert (report.model, report.model_commit, report.base_commit) == (f"{family}/mllm@v2", OTHER, OTHER)
    assert MergeReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert "(commit aaaaaaaaaaaa)" in str(report)
    run = evaluate(model, "mmstar", limit=1, gen_kwargs="max_new_tokens=2")
    made = run.results["plam_eval"]["provenance"]
    assert (made["checkpoint"]["name"], made["checkpoint"]["commit"]) == (f"{family}/mllm@v2", OTHER)
    assert made["spec"]["base_model"] == f"{family}/base@refs/pr/3"

    # The tag moves; what the record holds still leads to the same weights.
    hub.publish(f"{family}/mllm", tmp_path / "hub" / family / "mllm", LATER, "v2")
    hub.publish(f"{family}/base", tmp_path / "hub" / family / "base", LATER, "refs/pr/3")
    pinned = {
        "pretrained": "{hub}@{commit}".format(**made["checkpoint"]),
        "base": "{hub}@{commit}".format(**made["base"]),
    }
    again = load(family, mode, **pinned, layers="1:3")
    moved = load(family, mode, pretrained=f"{family}/mllm@v2", base=f"{family}/base@refs/pr/3", layers="1:3")
    q = next(name for name in expected.model.state_dict() if name.endswith("layers.1.self_attn.q_proj.weight"))
    assert torch.equal(again.model.state_dict()[q], expected.model.state_dict()[q])
    assert not torch.equal(moved.model.state_dict()[q], expected.model.state_dict()[q])
    assert moved.cache_fingerprint() != model.cache_fingerprint()
    assert load(family, mode, pretrained=f"{family}/mllm", revision=OTHER).merge_report is None


def test_a_revision_is_what_plam_hf_loads_everything_from(hub, tmp_path):
    """Its stock class takes no revision; `revision=` says the same as one behind the name."""
    device = {"device": "cpu", "dtype": "float32"}
    expected = make_model("plam_hf", {"pretrained": str(tmp_path / "other" / "llava" / "mllm"), **device})
    for given in ({"pretrained": "llava/mllm@v2"}, {"pretrained": "llava/mllm", "revision": "v2"}):
        model = make_model("plam_hf", {**given, **device})
        assert model.checkpoint.commit == OTHER
        for name, value in expected.model.state_dict().items():
            assert torch.equal(model.model.state_dict()[name], value), name
        assert model.model.generation_config.max_length == 777
        assert model.processor.chat_template.startswith(MARK)


def test_revisions_that_cannot_be_meant(hub, load, pico, tmp_path, monkeypatch):
    def refused(**given: object) -> str:
        with pytest.raises(CheckpointError) as error:
            load("llava", **given)
        return str(error.value)

    assert "names the revision 'v2', and revision=v1 is given" in refused(pretrained="llava/mllm@v2", revision="v1")
    assert "write it behind the name, as owner/name@7" in refused(pretrained="llava/mllm", revision="7")
    assert "is a folder, which has no revisions" in refused(revision="v2")
    assert "has no revision 'v9'" in refused(pretrained="llava/mllm@v9")
    for tricks in ("../../x", "v2/../../x", "-x", "a//b", "x.lock", ".git", "a\\b", "x\u200b", ""):
        assert "expected a branch, a tag or a commit" in refused(pretrained=f"llava/mllm@{tricks}"), tricks
    names = {path.name for path in (tmp_path / "cache").rglob("refs/**/*")}
    assert names <= {"main", "v2", "refs", "pr"}

    monkeypatch.chdir(tmp_path)
    shutil.copytree(pico("llava").mllm, tmp_path / "llava" / "mllm@v2")
    assert load("llava", pretrained="llava/mllm@v2").checkpoint.commit is None, "a folder of that name comes first"


def test_the_name_of_a_commit_belongs_to_no_name_of_the_user_s(hub):
    from huggingface_hub import constants

    from plam_eval.merging.checkpoint import Checkpoint

    assert Checkpoint.open("llava/mllm").recorded_commit == COMMIT
    assert Checkpoint.open("llava/mllm", revision=OTHER).name == "llava/mllm"
    assert Checkpoint.open("llava/mllm", revision="v2").name == Checkpoint.open("llava/mllm@v2").name == "llava/mllm@v2"
    whole = Checkpoint.open("llava/mllm@v2")
    whole.prefetch(whole.names())
    folder = Path(constants.HF_HUB_CACHE) / "models--llava--mllm" / "snapshots" / OTHER
    in_cache = Checkpoint.open(folder)
    assert (in_cache.commit, in_cache.recorded_commit, in_cache.model_name) == (None, OTHER, "llava/mllm")
