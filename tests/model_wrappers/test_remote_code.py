"""A checkpoint that brings code of its own: none of it runs unless the user says so, whatever the stock class does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import dynamic_module_utils

from plam_eval.errors import ArgumentError
from tests.helpers.pico import PicoPair
from tests.helpers.planted import plant
from tests.helpers.wrappers import CASES


@pytest.fixture
def planted(pico: Callable[[str], PicoPair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`planted(family)`: a checkpoint with code in it, and the marker file that the code writes."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))

    def make(family: str) -> tuple[Path, Path]:
        folder, marker = tmp_path / f"{family}-planted", tmp_path / "ran"
        shutil.copytree(pico(family).mllm, folder)
        plant(folder, marker)
        return folder, marker

    return make


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_code_in_a_checkpoint_does_not_run(family, mode, load, planted):
    folder, marker = planted(family)
    model = load(family, mode, pretrained=folder)
    assert not marker.exists()
    assert type(model.model.config).__name__ != "Planted" and type(model.tokenizer).__name__ != "Planted"


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_it_runs_once_it_is_trusted(family, load, planted):
    """Which also shows that the code above would have run."""
    folder, marker = planted(family)
    model = load(family, "simple" if family == "qwen2_vl" else "chat", pretrained=folder, trust_remote_code="True")
    assert {"tokenizer", "processor"} <= set(marker.read_text().split())
    assert model.run_record([])["arguments"]["trust_remote_code"] == "True"


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_model_type_that_only_the_checkpoint_knows_is_refused(family, load, planted):
    folder, marker = planted(family)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "planted"}))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load(family, pretrained=folder)
    assert not marker.exists()


@pytest.mark.parametrize("trust", ["yes", 1, "None"])
def test_trust_is_true_or_false(trust, load):
    with pytest.raises(ArgumentError, match="expected true or false"):
        load("llava", trust_remote_code=trust)


def test_loading_is_afterwards_as_before(load, planted):
    from transformers import AutoTokenizer, PreTrainedModel

    before = [vars(loader)["from_pretrained"] for loader in (AutoTokenizer, PreTrainedModel)]
    load("llava")
    assert [vars(loader)["from_pretrained"] for loader in (AutoTokenizer, PreTrainedModel)] == before
