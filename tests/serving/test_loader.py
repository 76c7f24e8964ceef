"""The real vLLM engine on merged weights: against HF merged in place and saved checkpoints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("vllm", reason="vLLM is not installed")

from plam_eval.errors import MergeError
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import merge_in_place, merged_weights
from plam_eval.serving import engine as engine_module
from plam_eval.serving import loader, options
from plam_eval.serving.engine import check_engine_merge, merge_engine
from plam_eval.serving.loader import PlamModelLoader
from plam_eval.spec import load_spec
from tests.helpers.ancestors import write_ancestor
from tests.helpers.engines import answers, engine, picture
from tests.helpers.llamas import shard
from tests.helpers.paths import PAIR
from tests.helpers.pico import FAMILIES, PicoPair
from tests.helpers.served_pair import (
    ANCESTRAL,
    BASE,
    DEMO,
    PAIR_PROMPTS,
    Prompts,
    detailed,
    environment,
    hf_answers,
)

pytestmark = pytest.mark.vllm


def prompts_of(model: Path) -> Prompts:
    """One image, none, and two."""
    from transformers import AutoProcessor

    template = AutoProcessor.from_pretrained(model).apply_chat_template

    def prompt(text: str, *images: Image.Image) -> tuple[str, list[Image.Image]]:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        return template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True), list(
            images
        )

    return [prompt("What is it?", picture(1)), prompt("Which day?"), prompt("Same?", picture(2), picture(3, (28, 56)))]


def save_merged(pair: PicoPair, spec: Any, folder: Path) -> Path:
    shutil.copytree(pair.mllm, folder)
    stored = load_file(pair.mllm / "model.safetensors")
    merged = dict(merged_weights(stored.items(), spec, Checkpoint.open(pair.base), None))
    save_file(merged, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


_ALWAYS = ("qwen3_vl",)  # the embedded pair is a LLaVA


@pytest.mark.parametrize(
    "family",
    [
        *(pytest.param(name, marks=[] if name in _ALWAYS else pytest.mark.long) for name in FAMILIES),
        "the embedded pair",
    ],
)
def test_equals_hf_merged_in_place_and_a_saved_checkpoint(family, pico, tmp_path):
    from transformers import AutoModelForImageTextToText

    pair = pico(family) if family in FAMILIES else PicoPair(family, PAIR / "mllm", PAIR / "base")
    options = {"base": str(pair.base), "layers": "1:4", "modules": "all", "model_weight": 0.7, "base_weight": 0.5}
    spec = load_spec(None, options)
    prompts = prompts_of(pair.mllm)
    model = AutoModelForImageTextToText.from_pretrained(pair.mllm, dtype=torch.float32).eval()
    plain = hf_answers(model, pair.mllm, prompts)
    merge_in_place(model, spec, checkpoint=pair.mllm)
    merged = hf_answers(model, pair.mllm, prompts)
    differ = [one != other for one, other in zip(plain, merged, strict=True)]
    assert all(differ) if family in FAMILIES else any(differ)

    with engine(pair.mllm, options) as llm:
        assert answers(llm, prompts) == merged
        (state,) = llm.collective_rpc("plam_state")
        assert state["digest"] == spec.digest() and state["report"]["tensors"] >= 3 * 7
        assert merge_engine(llm, "none") is None
        assert answers(llm, prompts) == plain
    if family in (FAMILIES[0], "the embedded pair"):  # an engine takes seconds to start, and a file knows no family
        saved = save_merged(pair, spec, tmp_path / "merged")
        with engine(saved, load_format="auto", model_loader_extra_config={}) as llm:
            assert answers(llm, prompts) == merged


def test_a_start_with_an_ancestor_equals_hf_merged_in_place(ancestor, tmp_path):
    """The ancestor in another dtype than base and MLLM, and in shards."""
    from transformers import AutoModelForImageTextToText

    old = shard(write_ancestor(tmp_path / "old", torch.bfloat16))
    options = {**DEMO, **ANCESTRAL[1], "ancestor": str(old)}
    model = AutoModelForImageTextToText.from_pretrained(PAIR / "mllm", dtype=torch.float32).eval()
    plain = hf_answers(model, PAIR / "mllm", PAIR_PROMPTS)
    spec = load_spec("demo", {key: value for key, value in options.items() if key != "plateau"})
    report = merge_in_place(model, spec, checkpoint=PAIR / "mllm")
    merged = hf_answers(model, PAIR / "mllm", PAIR_PROMPTS)
    assert merged != plain
    with engine(PAIR / "mllm", options) as llm:
        told = answers(llm, PAIR_PROMPTS)
        assert told == merged
        (state,) = llm.collective_rpc("plam_state")
        assert state["digest"] == spec.digest() and state["report"]["ancestor"] == str(old)
        assert state["report"]["task_vectors"] == pytest.approx(report.task_vectors)
        read = state["merged_from"]
        identity = Checkpoint.open(old).identity()
        assert read["ancestor"] == {"name": str(old), "fingerprint": identity["fingerprint"]}
        assert read["base"]["name"] == BASE and read["model"]["name"] == str(PAIR / "mllm")
        assert merge_engine(llm, "none") is None
        assert answers(llm, PAIR_PROMPTS) == plain
        assert llm.collective_rpc("plam_state")[0]["merged_from"].keys() == {"model"}
        merge_engine(llm, **DEMO, ancestor=str(ancestor))  # names it, reads none
        assert llm.collective_rpc("plam_state")[0]["merged_from"].keys() == {"model", "base"}


@pytest.mark.parametrize("form", ["sharded", pytest.param("bin", marks=pytest.mark.long)])
def test_base_in_other_forms(form, fresh, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    shard(base, bin=form == "bin")
    with engine(PAIR / "mllm", {**DEMO, "base": str(base)}) as llm:
        assert detailed(llm) == fresh(DEMO)


# ---- the engine and we read the same files ---------------------------------------------------------------------------


def test_a_hub_id_is_resolved_once(monkeypatch):
    """To one commit each, for vLLM, for all its workers, and for the way back."""
    commits = {"org/mllm": "a" * 40, "org/base": "b" * 40, "org/old": "d" * 40}
    opened = []

    def open_checkpoint(source: str, revision: str | None = None, role: str | None = None) -> Any:
        opened.append((source, revision))
        found = {"name": source, "location": source, "loaded_by": source, "commit": commits[source]}
        return SimpleNamespace(**found, check_read_by_vllm=lambda: None, announce=lambda names=None: None)

    monkeypatch.setattr(Checkpoint, "open", open_checkpoint)
    for module in (loader, engine_module):
        monkeypatch.setattr(module, "plan_merge", lambda spec, **sides: SimpleNamespace(tensors=()))
    spec = load_spec("none", {"base": "org/base", "layers": "1:3", "rule": "ties", "ancestor": "org/old"})
    assert spec is not None
    arguments = SimpleNamespace(model="org/mllm", revision="main", worker_extension_cls="")
    arguments.model_loader_extra_config = {"plateau": spec.to_dict(), "enable_multithread_load": True}
    loader.prepare_arguments(arguments)
    assert arguments.revision == "a" * 40
    files: Any = {
        "base": {"location": "org/base", "commit": "b" * 40},
        "ancestor": {"location": "org/old", "commit": "d" * 40},
    }
    assert arguments.model_loader_extra_config == {
        "plateau": spec.to_dict(),
        "plateau_files": files,
        "enable_multithread_load": True,
    }
    opened.clear()
    options.open_spec_files(spec, files)
    assert opened == [("org/base", "b" * 40), ("org/old", "d" * 40)]
    commits["org/base"] = "c" * 40  # the branch moved; another start looks again
    loader.prepare_arguments(arguments)
    assert arguments.model_loader_extra_config["plateau_files"]["base"]["commit"] == "c" * 40

    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "1")
    with pytest.raises(MergeError, match="org/mllm: vLLM would load it from ModelScope"):
        loader.prepare_arguments(arguments)

    config = SimpleNamespace(
        model_config=SimpleNamespace(model="org/mllm", revision="a" * 40),
        parallel_config=SimpleNamespace(data_parallel_size=1),
        lora_config=None,
    )
    files["base"]["commit"] = "c" * 40
    assert check_engine_merge(config, spec) == files
    plain = load_spec(spec, {"rule": "weighted_sum"})
    assert check_engine_merge(config, plain) == {**files, "ancestor": None}, "what no rule reads is not opened"
    assert ("org/mllm", "a" * 40) in opened


@pytest.mark.parametrize("beside", ["stray", "consolidated"])
def test_a_folder_of_which_vllm_loads_other_files_is_refused(beside, pico, tmp_path):
    from vllm.config.load import LoadConfig

    folder = shutil.copytree(pico("llava").mllm, tmp_path / "mllm")
    loader, checkpoint = PlamModelLoader(LoadConfig(load_format="plam")), Checkpoint.open(folder)

    def choose() -> list[str]:
        loader._checkpoint = checkpoint
        return [Path(file).name for file in loader._prepare_weights(str(folder), None, None, True, None)[1]]

    assert choose() == ["model.safetensors"]
    shutil.copy(folder / "model.safetensors", folder / f"{beside}.safetensors")
    with pytest.raises(MergeError, match=f"more than one set of weights: only vLLM loads {beside}.safetensors"):
        choose()


# ---- faults before the engine starts ---------------------------------------------------------------------------------


def faulty(kind: str, pico: Callable[[str], PicoPair], folder: Path) -> tuple[Path, dict[str, Any], str]:
    """Model, options and what the error says."""
    pair = pico("llava")
    good = {"base": str(pair.base), "layers": "1:4"}
    if kind == "base missing":
        return pair.mllm, {**good, "base": str(folder / "none")}, "no such folder"
    if kind == "wrong base":
        return pair.mllm, {**good, "base": BASE}, "expected equal shapes"
    if kind == "range out of bounds":
        return pair.mllm, {**good, "layers": "1:5"}, r"\[1, 5\) does not fit"
    if kind == "spec for another model":
        return pair.mllm, DEMO, r"\[4, 8\) does not fit"
    if kind == "set out of bounds":
        return pair.mllm, {**good, "layers": "1+5"}, "layers: 1, 5 does not fit"
    if kind == "ancestor missing":
        lost = {"base": str(folder / "base"), "ancestor": str(folder / "none")}
        return pair.mllm, {**good, "rule": "ties", **lost}, r"(?s)base=.*base: no such folder.*ancestor=.*none: no such"
    if kind == "wrong ancestor":
        return pair.mllm, {**good, "rule": "ties", "ancestor": BASE}, "expected equal shapes"
    if kind == "unknown option":
        return pair.mllm, {**good, "plateu": "demo"}, "plateu"
    quantised = folder / "quantised"
    shutil.copytree(pair.mllm, quantised)
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    (quantised / "config.json").write_text(json.dumps(config))
    return quantised, good, r"quantised \(gptq\)"


@pytest.mark.parametrize(
    "kind",
    [
        *("base missing", "wrong base", "range out of bounds", "set out of bounds", "spec for another model"),
        *("ancestor missing", "wrong ancestor", "unknown option", "quantised"),
    ],
)
def test_bad_input_never_starts_an_engine(kind, pico, tmp_path):
    model, options, says = faulty(kind, pico, tmp_path)
    with pytest.raises(ValueError, match=says), engine(model, options):
        pass


def test_an_engine_in_its_own_process_fails_with_our_message_last(pico, tmp_path):
    model, options, _ = faulty("wrong base", pico, tmp_path)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--load-format"]
    command += ["plam", "--model-loader-extra-config", json.dumps(options), "--dtype", "float32"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "expected equal" in last and "as between an MLLM and the very LLM it was built from" in last, done.stderr
