"""Exports of every family, at the dtype that it is stored in: what the plain class computes, and what a hash proves."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plam_eval import export
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import merge_in_place
from plam_eval.merging.names import decoder_tensor
from plam_eval.spec import load_spec
from tests.helpers.llamas import shard
from tests.helpers.mllm import picture
from tests.helpers.pico import FAMILIES, OTHER_FAMILIES, PicoPair, write_pico

LAYERS = "1:3"
DTYPE = {"llava": torch.float16, "llava_next": torch.float16}
"""As the family's repositories store it; the others' is bfloat16."""


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Bits are compared here."""


def tie(folder: Path) -> None:
    """The output embedding of a one-file checkpoint becomes the input embedding, and is stored once."""
    tensors = load_file(folder / "model.safetensors")
    heads = [name for name in tensors if name.endswith("lm_head.weight")]
    assert len(heads) == 1
    del tensors[heads[0]]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))


def computed(folder: Path, merged_by: PicoPair | None = None) -> tuple[dict[str, Tensor], Tensor, list[int]]:
    """Inputs of a chat about a picture, the logits and the greedy answer, by what `folder` holds and the plain class.

    `merged_by` merges the loaded model in place.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    model, info = loaded
    assert not any(info.values())
    if merged_by is not None:
        spec = load_spec(None, {"base": str(merged_by.base), "layers": LAYERS})
        merge_in_place(model, spec, checkpoint=folder)
    processor = AutoProcessor.from_pretrained(folder)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is red?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=[picture(1)], text=text, return_tensors="pt")
    on_model = inputs.to(model.dtype)
    with torch.inference_mode():
        logits = model(**on_model).logits
        answer = model.generate(**on_model, do_sample=False, max_new_tokens=8)[0].tolist()
    return dict(inputs), logits, answer


def check(pair: PicoPair, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export answers as the source does that is merged in place, bit for bit, and without the source."""
    plain = computed(pair.mllm)
    inputs, logits, answer = computed(pair.mllm, merged_by=pair)
    assert logits.dtype == DTYPE.get(pair.family, torch.bfloat16) and not torch.equal(logits, plain[1])
    export(pair.mllm, None, folder / "out", base=pair.base, layers=LAYERS)
    shutil.rmtree(pair.mllm)
    shutil.rmtree(pair.base)
    monkeypatch.chdir(folder)
    found = computed(Path("out"))
    assert found[0].keys() == inputs.keys() and all(torch.equal(found[0][name], inputs[name]) for name in inputs)
    assert torch.equal(found[1].view(torch.int16), logits.view(torch.int16)) and found[2] == answer


@pytest.mark.slow
@pytest.mark.parametrize("form", ["shards", "bin shards", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_a_merge_in_place(
    family: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = write_pico(family, tmp_path / "source", dtype=DTYPE.get(family, torch.bfloat16))
    if form == "tied":
        tie(pair.mllm)
    else:
        shard(pair.mllm, bin=form == "bin shards")
    check(pair, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_families_without_a_wrapper_of_their_own_as_well(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(write_pico(family, tmp_path / "source", dtype=torch.bfloat16), tmp_path, monkeypatch)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("family", FAMILIES)
def test_that_the_vision_tower_is_untouched_can_be_checked_with_hashes_alone(family: str, tmp_path: Path) -> None:
    """By a reader who has the source and the export, and nothing of ours: their JSON, their files."""
    pair = write_pico(family, tmp_path)
    out = tmp_path / "out"
    export(shard(pair.mllm).resolve(), None, out, base=pair.base, layers=LAYERS)
    record = json.loads((out / "plam_export.json").read_text())
    weight_map = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    merged = {file for name, file in weight_map.items() if (key := decoder_tensor(name)) and key[0] in (1, 2)}
    untouched = set(weight_map.values()) - merged
    seeing = [name for name in weight_map if "vis" in name or "image_newline" in name or "projector" in name]
    assert len(seeing) > 10 and {weight_map[name] for name in seeing} <= untouched and len(merged) == 2
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - {"README.md"} == {
        "plam_export.json",
        *record["files"],
    }
    for name, entry in record["files"].items():
        assert (sha256(out / name), (out / name).stat().st_size) == (entry["sha256"], entry["bytes"]), name
        if entry["how"] == "copied":
            assert entry["sha256"] == sha256(pair.mllm / name) == record["inputs"]["model"][name]
    assert {name for name, entry in record["files"].items() if entry["how"] == "merged"} == merged
    assert all(record["files"][name]["how"] == "copied" for name in untouched)
    for name in merged:  # of these, each tensor beside the merged ones
        before, after = load_file(pair.mllm / name), load_file(out / name)
        changed = {tensor for tensor in before if not torch.equal(before[tensor], after[tensor])}
        assert {key[1].split(".")[1] for key in map(decoder_tensor, changed)} == {
            *("q_proj", "k_proj", "v_proj", "o_proj")
        }
    for side, source in (("model", pair.mllm), ("base", pair.base)):
        assert record["inputs"][side] == {name: sha256(source / name) for name in record["inputs"][side]}
    assert record["inputs"]["model"].keys() >= Checkpoint.open(pair.mllm).weight_files
