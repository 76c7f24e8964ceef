"""`owner/name@revision` through vLLM: its own configs get the repository and the one commit that was found."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plam_eval.errors import CheckpointError, MergeError
from tests.helpers.hub import Hub, serving
from tests.helpers.pico import PicoPair

pytestmark = pytest.mark.needs("vllm")
OTHER = "a" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pico: Callable[[str], PicoPair]) -> Iterator[Hub]:
    for side in ("mllm", "base"):
        shutil.copytree(getattr(pico("llava"), side), tmp_path / "hub" / "pico" / side)
    with serving(tmp_path / "hub", tmp_path / "cache", monkeypatch) as hub:
        for side in ("mllm", "base"):
            hub.publish(f"pico/{side}", tmp_path / "hub" / "pico" / side, OTHER, "v2")
        yield hub


def config_of(model: str, **given: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    extra = {"base": "pico/base@v2", "layers": "1:3"}
    arguments = EngineArgs(
        model=model, load_format="plam", model_loader_extra_config=extra, dtype="float32", max_model_len=256, **given
    )
    return arguments.create_engine_config()


def test_vllm_loads_the_commit_that_a_revision_is(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.serving import loader
    from plam_eval.serving.options import open_engine_model

    loader.register()
    config = config_of("pico/mllm@v2")
    model = config.model_config
    assert (model.model, model.revision, model.tokenizer_revision) == ("pico/mllm", OTHER, OTHER)
    files = config.load_config.model_loader_extra_config["plateau_files"]["base"]
    assert files == {"location": "pico/base", "commit": OTHER}
    assert config.load_config.model_loader_extra_config["plateau"]["base_model"] == "pico/base@v2"
    assert open_engine_model(model).recorded_commit == OTHER
    with pytest.raises(CheckpointError, match="names the revision 'v2', and revision=v1 is given"):
        config_of("pico/mllm@v2", revision="v1")

    for repository in ("pico/mllm@v2", "pico/base@v2"):
        whole = Checkpoint.open(repository)
        whole.prefetch(whole.names())
    # vLLM asks for every file of the repository when it looks for its folder.
    from huggingface_hub import snapshot_download

    snapshot_download("pico/mllm", revision="v2")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = config_of("pico/mllm@v2")
    assert Path(offline.model_config.model).name == OTHER
    opened = open_engine_model(offline.model_config)
    assert (opened.commit, opened.recorded_commit, opened.model_name) == (None, OTHER, "pico/mllm")
    assert open_engine_model(config_of("pico/mllm", revision="v2").model_config).recorded_commit == OTHER
    with pytest.raises(MergeError, match="names another revision than revision=v1"):
        config_of("pico/mllm@v2", revision="v1")
    with pytest.raises(MergeError, match="expected a branch, a tag or a commit"):
        config_of("pico/mllm@../../x")
