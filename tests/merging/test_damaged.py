"""Damaged files of every kind: a MergeError that names the file, or the checkpoint itself, and no other exception."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plam_eval.errors import CheckpointError, MergeError
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.geometry import decoder_geometry
from plam_eval.merging.plan import plan_merge
from tests.helpers.llamas import Pair, shard, write_llama

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    float("inf"),
    "4",
    "",
    [],
    [1],
    {},
    {"x": 1},
    "\ud800",
    "x" * 5000,
)


def everything(folder: Path, pair: Pair, spec: Any = None) -> None:
    """All that reads a checkpoint, as MLLM and as base."""
    spec = spec or pair.spec()
    checkpoint = Checkpoint.open(folder)
    for name in checkpoint.names():
        for read in (checkpoint.shape, checkpoint.dtype, checkpoint.tensor):
            try:
                read(name)
            except MergeError:
                continue
    checkpoint.identity()
    checkpoint.content()
    for model, base in ((folder, pair.base), (pair.mllm, folder)):
        plan_merge(spec, model=Checkpoint.open(model), base=Checkpoint.open(base))


def survives(folder: Path, pair: Pair) -> str:
    """What was said; empty where nothing was wrong. Another exception than MergeError ends the test."""
    try:
        everything(folder, pair)
    except MergeError as error:
        return str(error)
    return ""


@pytest.fixture
def copies(llamas: Pair, tmp_path: Path) -> Callable[[], Path]:
    count = iter(range(10_000))
    return lambda: shutil.copytree(llamas.base, tmp_path / f"copy{next(count)}")


@pytest.mark.parametrize(
    "field",
    [
        *("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("rms_norm_eps", "rope_theta", "rope_parameters", "text_config", "llm_config", "thinker_config"),
        *("quantization_config", "transformers_weights", "architectures", "layer_types", "vision_config"),
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "llava", "qwen3_vl", "unknown"])
def test_odd_values_in_a_config(llamas: Pair, copies: Callable[[], Path], field: str, model_type: str) -> None:
    folder = copies()
    config = json.loads((folder / "config.json").read_text())
    for value in ODD:
        (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type, field: value}))
        survives(folder, llamas)
        if model_type == "llava":
            nested = {"model_type": "llava", "text_config": {**config, field: value}}
            (folder / "config.json").write_text(json.dumps(nested))
            survives(folder, llamas)


def test_a_text_for_a_number_is_named() -> None:
    with pytest.raises(MergeError, match=r"num_hidden_layers is '4'; expected a whole number above 0"):
        decoder_geometry({"model_type": "unknown", "num_hidden_layers": "4"})
    with pytest.raises(MergeError, match=r"text_config is list, expected a mapping"):
        decoder_geometry({"model_type": "unknown", "text_config": [1]})


def test_odd_values_in_an_index(llamas: Pair, copies: Callable[[], Path]) -> None:
    folder = shard(copies())
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = "model.layers.1.self_attn.q_proj.weight"
    for value in (*ODD, "..", "/etc/passwd", "../base/model.safetensors", "model-00009-of-00004.safetensors"):
        path.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], name: value}}))
        assert path.name in survives(folder, llamas), value
        path.write_text(json.dumps({**index, "weight_map": value}))
        assert path.name in survives(folder, llamas), value
    path.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], f"model.layers.{'9' * 5000}.x": "a"}}))
    assert survives(folder, llamas)


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(file: Path, header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_odd_values_in_a_safetensors_header(llamas: Pair, copies: Callable[[], Path]) -> None:
    folder = copies()
    file = folder / "model.safetensors"
    header, data = header_of(file)
    name = "model.layers.1.self_attn.q_proj.weight"
    for field, values in {
        "dtype": (*ODD, "F8_E8M0", "F4", "U64", "C64", "F16", "BOOL"),
        "shape": (*ODD, [32, -32], [0, 32], [2**62, 2**62], ["32", 32], [32], [[32, 32]], [1024]),
        "data_offsets": (*ODD, [0, 0], [0, 2**63], [-1, 5], [5, 1], ["0", 1]),
    }.items():
        for value in values:
            write_header(file, {**header, name: {**header[name], field: value}}, data)
            assert survives(folder, llamas), (field, value)
    headers: tuple[Any, ...] = (None, [], "x", {name: None}, {name: []}, {}, {"__metadata__": 3})
    for whole in headers:
        write_header(file, whole, data)
        assert survives(folder, llamas), whole
    for size in (0, 2**63, 2**64 - 1, 100_000_001):
        file.write_bytes(struct.pack("<Q", size) + data)
        assert "model.safetensors: truncated or corrupt" in survives(folder, llamas)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(32, 32).to_sparse(), "not a plain tensor"),
        (torch.zeros(32, 32, device="meta"), "on the meta device"),
        ("text", "missing"),
        (torch.zeros(32, 32, dtype=torch.complex64), "complex64"),
    ],
)
def test_odd_tensors_in_a_bin(llamas: Pair, copies: Callable[[], Path], value: Any, says: str) -> None:
    from safetensors.torch import load_file

    folder = copies()
    tensors: dict[Any, Any] = dict(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    name = "model.layers.1.self_attn.q_proj.weight"
    torch.save({**tensors, 3: torch.zeros(2), name: value}, folder / "pytorch_model.bin")
    try:
        checkpoint = Checkpoint.open(folder)
        if "missing" in says or "64" in says:
            plan_merge(llamas.spec(), model=Checkpoint.open(llamas.mllm), base=checkpoint)
        checkpoint.tensor(name)
    except MergeError as error:
        assert says in str(error) or "cannot be read by torch.load" in str(error)
    else:
        raise AssertionError("nothing was said")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "model-00002-of-00004.safetensors"])
def test_random_damage(llamas: Pair, copies: Callable[[], Path], file: str) -> None:
    folder, draw = shard(copies()), random.Random(0)
    whole = (folder / file).read_bytes()
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 3, 30))):
            content[draw.randrange(min(len(content), 4000))] = draw.randrange(256)
        if draw.random() < 0.3:
            del content[draw.randrange(len(content)) :]
        (folder / file).write_bytes(content)
        survives(folder, llamas)


@pytest.mark.parametrize("source", ["x" * 5000, "~nobody-of-this-name/x", "a\0b", "", " ", "org/" + "x" * 300])
def test_odd_names(source: str) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint.open(source, role="pretrained")


def test_a_file_instead_of_its_folder(llamas: Pair) -> None:
    with pytest.raises(CheckpointError, match=r"base=.*: is a file; pass the folder that holds it"):
        Checkpoint.open(llamas.base / "model.safetensors", role="base")


def test_a_json_of_a_size_that_none_has(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "mllm", 1)
    with (folder / "config.json").open("r+b") as file:
        file.truncate(1 << 36)  # sparse
    with pytest.raises(CheckpointError, match=r"config\.json: has 68,719,476,736 bytes"):
        Checkpoint.open(folder)


def test_errors_survive_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(CheckpointError("one", "two")))
    assert type(error) is CheckpointError and error.faults == ["one", "two"]
