"""A folder that could mean more than one set of weights: what transformers and vLLM read there, and what we say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plam_eval.errors import CheckpointError
from plam_eval.merging import weight_files
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.names import by_layer
from tests.helpers.llamas import Pair, load, shard, write_llama
from tests.helpers.pico import PicoPair

Q1 = "model.layers.1.self_attn.q_proj.weight"
ONE, INDEX, BIN = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


@pytest.fixture
def folder(llamas: Pair, tmp_path: Path) -> Path:
    return shutil.copytree(llamas.base, tmp_path / "folder")


def other(folder: Path) -> dict[str, torch.Tensor]:
    """The folder's tensors, all of them other numbers."""
    return {name: value.flip(0).contiguous() + 1 for name, value in load_file(folder / ONE).items()}


def bin_beside(folder: Path) -> None:
    torch.save(other(folder), folder / BIN)


def bin_index_beside(folder: Path) -> None:
    torch.save(other(folder), folder / "pytorch_model-00001-of-00001.bin")
    weight_map = dict.fromkeys(other(folder), "pytorch_model-00001-of-00001.bin")
    (folder / f"{BIN}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def index_of_the_same(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(folder / ONE), ONE)}))


def stale_one_file(folder: Path) -> None:
    save_file(other(folder), folder / "stale")
    shard(folder)
    (folder / "stale").rename(folder / ONE)


def stale_bin(folder: Path) -> None:
    torch.save(other(folder), folder / "stale")
    shard(folder, bin=True)
    (folder / "stale").rename(folder / BIN)


def variant(folder: Path) -> None:
    save_file(other(folder), folder / "model.fp16.safetensors")


def variant_beside_shards(folder: Path) -> None:
    variant(folder)
    shard(folder)


def consolidated(folder: Path) -> None:
    save_file(other(folder), folder / "consolidated.safetensors")


def other_weights_named_by_config(folder: Path) -> None:
    save_file(other(folder), folder / "own.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "own.safetensors"}))


def training_state(folder: Path) -> None:
    torch.save(load_file(folder / ONE), folder / BIN)
    (folder / ONE).unlink()
    for name in ("training_args.bin", "optimizer.bin"):
        torch.save({}, folder / name)


def adapter_beside(folder: Path) -> None:
    save_file({Q1.replace("weight", "lora_A.weight"): torch.zeros(2, 32)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/other"}))


def nothing(folder: Path) -> None:
    pass


# What lies there -> refused by everybody, by vLLM alone, or by nobody; in the message.
FOLDERS: list[tuple[Callable[[Path], None], str, str]] = [
    (nothing, "", ""),
    (bin_beside, "", ""),
    (bin_index_beside, "", ""),
    (index_of_the_same, "", ""),
    (variant_beside_shards, "", ""),
    (training_state, "", ""),
    (stale_one_file, "all", r"holds model\.safetensors and model\.safetensors\.index\.json, which names other files"),
    (stale_bin, "all", r"holds pytorch_model\.bin and pytorch_model\.bin\.index\.json, which names other files"),
    (other_weights_named_by_config, "all", r"transformers_weights: 'own\.safetensors'"),
    (adapter_beside, "all", r"holds model\.safetensors and adapter_config\.json: transformers adds the adapter"),
    (
        variant,
        "vllm",
        r"vLLM would read model\.fp16\.safetensors, model\.safetensors, transformers model\.safetensors;",
    ),
    (consolidated, "vllm", r"vLLM would read consolidated\.safetensors, transformers model\.safetensors;"),
]


@pytest.mark.parametrize(("arrange", "refused", "says"), FOLDERS)
def test_transformers_and_we_read_the_same_weights(
    folder: Path, arrange: Callable[[Path], None], refused: str, says: str
) -> None:
    arrange(folder)
    if refused == "all":
        with pytest.raises(CheckpointError, match=says):
            Checkpoint.open(folder)
        return
    checkpoint = Checkpoint.open(folder)
    theirs = dict(load(folder).named_parameters())
    assert set(theirs) == set(checkpoint.names())
    assert all(torch.equal(checkpoint.tensor(name), theirs[name]) for name in theirs)


@pytest.mark.needs("vllm")
@pytest.mark.parametrize(("arrange", "refused", "says"), FOLDERS)
def test_vllm_reads_the_same_files_or_is_refused(
    folder: Path, arrange: Callable[[Path], None], refused: str, says: str
) -> None:
    """By the code with which its default loader chooses files."""
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    arrange(folder)
    loader = DefaultModelLoader(LoadConfig(load_format="auto"))
    _, paths, _, _ = loader._prepare_weights(str(folder), None, None, True, None)
    chosen = {Path(path).name for path in paths}
    names = {path.name for path in folder.iterdir()}
    indexed = {
        name: set(json.loads((folder / name).read_text())["weight_map"].values())
        for name in names
        if name.endswith(".index.json")
    }
    assert weight_files.read_by_vllm(names, indexed) == chosen
    if refused == "all":
        return
    checkpoint = Checkpoint.open(folder)
    if refused == "vllm":
        assert chosen != checkpoint.weight_files
        with pytest.raises(CheckpointError, match=says):
            checkpoint.check_read_by_vllm()
    else:
        checkpoint.check_read_by_vllm()
        assert chosen == checkpoint.weight_files


def test_a_tensor_in_two_shards_is_refused_and_one_outside_the_index_is_read(folder: Path) -> None:
    shard(folder)
    first, second = (folder / f"model-0000{number}-of-00004.safetensors" for number in (1, 2))
    content = load_file(first)
    save_file({**content, "model.extra.weight": torch.ones(3)}, first, metadata={"format": "pt"})
    assert Checkpoint.open(folder).file("model.extra.weight") == first.name
    save_file({**content, Q1: load_file(second)[Q1] + 1}, first, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{Q1} is in {first.name}, and .* says that it is in {second.name}"):
        Checkpoint.open(folder)


def only(*names: str) -> Callable[[Path], None]:
    def arrange(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")

    return arrange


def lora(folder: Path) -> None:
    only("adapter_config.json", "adapter_model.safetensors")(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/mllm"}))


def no_index(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).unlink()


def lfs(folder: Path) -> None:
    (folder / ONE).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 4096\n")


def lfs_config(folder: Path) -> None:
    lfs(folder)
    (folder / ONE).rename(folder / "config.json")


@pytest.mark.parametrize(
    ("arrange", "says"),
    [
        (lora, r"holds an adapter \(LoRA or the like of org/mllm\), not a model; .*merge_and_unload"),
        (only("adapter_config.json", "config.json"), "holds an adapter"),
        (only("model.Q4_K_M.gguf"), r"holds GGUF weights \(model\.Q4_K_M\.gguf\).*pass the model that they were"),
        (only("config.json", "consolidated.00.pth", "params.json"), r"Meta's own format \(consolidated\.00\.pth\)"),
        (only("consolidated.safetensors", "params.json"), r"Mistral's or Meta's own format"),
        (
            no_index,
            r"holds shards \(model-00001-of-00004\.safetensors, .* and 1 more\) without model\.safetensors\.index",
        ),
        (only("config.json", "pytorch_model-00001-of-00002.bin"), r"without pytorch_model\.bin\.index\.json"),
        (only("model_index.json", "unet/config.json"), "diffusers pipeline"),
        (only("config.json", "weights.ckpt", "tf_model.h5"), r"another format \(tf_model\.h5, weights\.ckpt\); save"),
        (
            only("config.json", "model.fp16.safetensors"),
            r"under other names \(model\.fp16\.safetensors\); expected one of",
        ),
        (only(), "it is empty; expected config.json and weights"),
        (only("checkpoint-500/config.json"), r"checkpoints in folders below it \(checkpoint-500\), none itself"),
        (
            only("README.md", "inner/config.json", "inner/model.safetensors", "old/config.json", "old/model.gguf"),
            r"checkpoints in folders below it \(inner, old\), none itself; pass the one that you mean",
        ),
        (only("README.md", "Q4/model-Q4.gguf"), r"holds GGUF weights \(Q4/model-Q4\.gguf\)"),
        (only("refs/main", f"snapshots/{'ab' * 20}/config.json"), "pass the hub id, or the folder of a commit in it"),
        (lfs, r"model\.safetensors: is a git-lfs pointer, not the file; run `git lfs pull`"),
        (lfs_config, r"config\.json: is a git-lfs pointer"),
    ],
)
def test_what_lies_where_no_checkpoint_is(folder: Path, arrange: Callable[[Path], None], says: str) -> None:
    arrange(folder)
    with pytest.raises(CheckpointError, match=says):
        Checkpoint.open(folder)


@pytest.mark.parametrize("weight_map", [None, [], 3, "x", {}])
def test_an_index_without_a_map(folder: Path, weight_map: object) -> None:
    shard(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: .*weight_map"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "file", [None, 3, ["x"], {}, "", "..", "/etc/passwd", "../outside.safetensors", "a\0b", "x.bin"]
)
def test_an_index_leads_nowhere_else(folder: Path, file: object) -> None:
    save_file(other(folder), folder.parent / "outside.safetensors")
    shard(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][Q1] = file
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors\.index\.json, weight_map, {Q1}: "):
        Checkpoint.open(folder)


def test_links_in_a_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    """As the hub's cache is made of them: what they lead to is read as weights or JSON, and quoted nowhere."""
    (folder / ONE).rename(tmp_path / "blob")
    (folder / ONE).symlink_to("../blob")
    assert Checkpoint.open(folder).shape(Q1) == (32, 32)
    (tmp_path / "secret").write_text("token-of-somebody")
    for name in (ONE, "config.json"):
        (folder / name).unlink()
        (folder / name).symlink_to("../secret")
        with pytest.raises(CheckpointError) as error:
            Checkpoint.open(folder)
        assert "token" not in str(error.value)


@pytest.mark.needs("vllm")
def test_plam_vllm_refuses_before_its_engine_starts(pico: Callable[[str], PicoPair], tmp_path: Path) -> None:
    from plam_eval.model_wrappers.vllm import PlamVLLMChat

    folder = shutil.copytree(pico("llava").mllm, tmp_path / "mllm")
    variant(folder)
    with pytest.raises(CheckpointError, match=r"pretrained=.*vLLM would read model\.fp16\.safetensors"):
        PlamVLLMChat(pretrained=str(folder))


@pytest.mark.parametrize("prefix", ["llm.model.", "thinker.model.", "language_model.", "llm_backbone.llm.model."])
def test_prefixes_of_the_same_layout_are_read(tmp_path: Path, prefix: str) -> None:
    def rename(tensors: dict[str, torch.Tensor], config: object) -> None:
        for name in [name for name in tensors if name.startswith("model.")]:
            tensors[prefix + name.removeprefix("model.")] = tensors.pop(name)
        tensors["talker.model.layers.0.self_attn.q_proj.weight"] = torch.zeros(2)
        tensors["thinker.audio_tower.layers.0.self_attn.q_proj.weight"] = torch.zeros(2)

    layers = by_layer(Checkpoint.open(write_llama(tmp_path / "mllm", 1, edit=rename)).names())
    assert sorted(layers) == [0, 1, 2]
    assert layers[0]["self_attn.q_proj.weight"] == [f"{prefix}layers.0.self_attn.q_proj.weight"]
