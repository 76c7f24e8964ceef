"""Reading checkpoints: folders in every format, their faults, and the hub through huggingface_hub's own code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plam_eval.errors import CheckpointError, MergeError
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.geometry import decoder_geometry
from plam_eval.merging.merge import merge_in_place
from plam_eval.merging.plan import plan_merge
from plam_eval.merging.tensor_files import fingerprint_of
from tests.helpers.hub import COMMIT, Hub, serving, sha256
from tests.helpers.llamas import Pair, load, shard, write_llama

Q1 = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def copy(llamas: Pair, tmp_path: Path) -> Path:
    return shutil.copytree(llamas.base, tmp_path / "copy")


@pytest.mark.parametrize("layout", ["one file", "shards", "bin", "bin shards"])
def test_every_layout_gives_the_same_tensors(copy: Path, layout: str) -> None:
    expected = load_file(copy / "model.safetensors")
    if "shards" in layout:
        shard(copy, bin="bin" in layout)
    elif layout == "bin":
        torch.save(expected, copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()
    checkpoint = Checkpoint.open(copy)
    assert set(checkpoint.names()) == set(expected)
    for name, tensor in expected.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == tensor.dtype
    assert checkpoint.bytes_read == 0, "headers are not weights"
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in expected.items())
    assert checkpoint.bytes_read == sum(tensor.nbytes for tensor in expected.values())
    assert checkpoint.config["hidden_size"] == 32


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def corrupt_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def pickle_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({Q1: torch.zeros(2), "code": os.system}, folder / "pytorch_model.bin")


def truncate_bin(folder: Path) -> None:
    torch.save({Q1: torch.zeros(2000)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:3000])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def bad_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


def bin_list(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (truncate, r"model\.safetensors: truncated or corrupt"),
        (corrupt_header, r"model\.safetensors: truncated or corrupt"),
        (truncate_bin, r"pytorch_model\.bin: cannot be read .*truncated"),
        (pickle_code, r"pytorch_model\.bin: cannot be read .*holds more than tensors"),
        (bin_list, "found list, expected a mapping"),
        (no_weights, r"no weights in it: it holds no weights, only config\.json"),
        (no_config, r"no config\.json beside model\.safetensors"),
        (bad_config, "cannot be read as JSON"),
        (bad_index, "no weight_map"),
    ],
)
def test_folders_that_cannot_be_opened(copy: Path, harm: Callable[[Path], None], expected: str) -> None:
    harm(copy)
    with pytest.raises(MergeError, match=expected):
        Checkpoint.open(copy)


def test_an_index_that_names_a_missing_file_or_tensor(copy: Path) -> None:
    shard(copy)
    missing = copy / "model-00002-of-00004.safetensors"
    content = load_file(missing)
    missing.unlink()
    checkpoint = Checkpoint.open(copy)
    with pytest.raises(MergeError, match=r"model-00002-of-00004\.safetensors, named by .*index\.json, not found"):
        checkpoint.shape(Q1)
    with pytest.raises(MergeError, match="00002"):
        checkpoint.prefetch([Q1, "model.layers.0.self_attn.q_proj.weight"])
    del content[Q1]
    save_file(content, missing)
    with pytest.raises(MergeError, match=r"q_proj\.weight is not in model-00002"):
        Checkpoint.open(copy).tensor(Q1)


@pytest.mark.parametrize("source", ["/no/such/folder", "./none", "~/none", "a/b/c", Path("none")])
def test_what_looks_like_a_folder_is_not_looked_for_on_the_hub(source: str | Path) -> None:
    with pytest.raises(MergeError, match="no such folder"):
        Checkpoint.open(source)


def test_identity_changes_with_the_weights(copy: Path) -> None:
    before = Checkpoint.open(copy).identity()
    assert Checkpoint.open(copy).identity() == before
    json.dumps(before)

    path, config = copy / "model.safetensors", copy / "config.json"
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    edited = Checkpoint.open(copy).identity()
    assert edited != before

    config.write_text(config.read_text() + " ")
    assert Checkpoint.open(copy).identity() not in (before, edited)
    assert Checkpoint.open(copy).identity() != Checkpoint.open(shutil.copytree(copy, copy.parent / "two")).identity()


def testfingerprint_ofs_follow_content_where_times_do_not_tell(tmp_path: Path) -> None:
    for file in ("pytorch_model.bin", "model.safetensors", "config.json"):
        found = []
        for count in (50_000, 50_001):
            path = tmp_path / file
            if path.suffix == ".bin":  # equal size: the checksums at its end tell
                torch.save({Q1: torch.full((50_000,), float(count))}, path)
            elif path.suffix == ".safetensors":
                save_file({f"name-{count}": torch.zeros(4)}, path)
            else:
                path.write_text(str(count))
            found.append((path.stat().st_size, fingerprint_of(path)))
        assert found[0][0] == found[1][0] and found[0][1] != found[1][1]


def test_geometry_fills_in_what_a_config_leaves_to_its_class() -> None:
    llava = {"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": {}}
    vicuna = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32}
    assert decoder_geometry(llava) == decoder_geometry(vicuna)
    assert decoder_geometry(vicuna)["head_dim"] == 128
    remote = {"model_type": "not-known", "llm_config": {"hidden_size": 64, "num_attention_heads": 4, "rope_theta": 5.0}}
    found = decoder_geometry(remote)
    assert (found["head_dim"], found["num_key_value_heads"], found["rope_theta"]) == (16, 4, 5.0)
    with pytest.raises(MergeError, match="invalid for llama"):
        decoder_geometry({"model_type": "llama", "num_attention_heads": "many"})


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    shard(write_llama(tmp_path / "hub" / "org" / "base", 2))
    write_llama(tmp_path / "hub" / "org" / "one-file", 2)
    with serving(tmp_path / "hub", tmp_path / "cache", monkeypatch) as hub:
        yield hub


def test_only_the_shards_of_the_named_layers_are_downloaded(
    hub: Hub, llamas: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    spec = llamas.spec(base="org/base", layers="1:2")
    shards = {f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)}
    layer1 = "model-00002-of-00004.safetensors"

    plan = plan_merge(spec, model=Checkpoint.open(llamas.mllm), base=Checkpoint.open("org/base"))
    assert len(plan.tensors) == 8
    found = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink() or path.is_file()}
    assert not found & shards, "a plan needs headers only, by range requests"
    assert shards & hub.downloaded().keys() == {layer1}

    model = load(llamas.mllm)
    merge_in_place(model, spec, checkpoint=llamas.mllm)
    assert shards & hub.downloaded().keys() == {layer1}
    local = load(llamas.mllm)
    merge_in_place(local, spec, checkpoint=llamas.mllm, base=llamas.base)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), local.parameters(), strict=True))

    checkpoint = Checkpoint.open("org/base", revision="v1")
    assert checkpoint.identity() == {"hub": "org/base", "commit": COMMIT}
    hub.requests.clear()
    checkpoint.tensor(Q1)
    assert not hub.requests, "a cached shard of a known commit needs no request"

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = Checkpoint.open("org/base")
    assert torch.equal(again.tensor(Q1), checkpoint.tensor(Q1))
    with pytest.raises(MergeError, match=r"model-00001-of-00004\.safetensors is not in the local cache"):
        again.tensor("model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(MergeError, match=r"model-00003-of-00004\.safetensors is not in the local cache"):
        again.shape("model.layers.2.self_attn.q_proj.weight")
    assert not hub.requests


def test_a_plan_with_a_one_file_checkpoint_needs_its_header_only(hub: Hub, llamas: Pair) -> None:
    base = Checkpoint.open("org/one-file")
    plan_merge(llamas.spec(), model=Checkpoint.open(llamas.mllm), base=base)
    spans = [count for method, file, count in hub.requests if method == "GET" and file == "model.safetensors"]
    assert len(spans) == 1 and spans[0] <= 100_001
    assert torch.equal(base.tensor(Q1), load_file(llamas.base / "model.safetensors")[Q1])


def test_a_repository_without_weights(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "hub" / "org" / "one-file" / "model.safetensors").rename(
        tmp_path / "hub" / "org" / "one-file" / "one-file.Q4_K_M.gguf"
    )
    with pytest.raises(CheckpointError, match=r"org/one-file: no weights in it: it holds GGUF weights \(one-file\.Q4"):
        Checkpoint.open("org/one-file")


HUB_ERRORS = [
    ((404, "RepoNotFound", ""), r"no folder, and the hub has no such repository.*check the name.*`hf auth login`"),
    (
        (403, "GatedRepo", "restricted"),
        r"is gated: accept its licence at http://127\.0\.0\.1:\d+/org/base, log in with `hf",
    ),
    (
        (401, "", "Invalid credentials in Authorization header"),
        r"refuses the token .*\(401\).*`hf auth login`.*HF_TOKEN",
    ),
    ((503, "", "maintenance"), r"the hub at http.* (answered 503|cannot be reached) .*pass the folder as pretrained="),
    ((404, "RevisionNotFound", ""), r"has no revision 'v9'; branches, tags and commits: http.*/org/base/tree/main"),
]


@pytest.mark.parametrize(("refusal", "says"), HUB_ERRORS)
def test_what_the_hub_refuses_has_its_own_remedy(hub: Hub, refusal: tuple[int, str, str], says: str) -> None:
    hub.refusal = refusal
    with pytest.raises(CheckpointError, match=rf"^pretrained=org/base: .*{says}") as error:
        Checkpoint.open("org/base", revision="v9" if "Revision" in refusal[1] else None, role="pretrained")
    assert "nothing was merged" not in str(error.value) and "as base=" not in str(error.value)


def test_no_network(hub: Hub) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(CheckpointError, match=r"base=org/base: .*cannot be reached.*network and proxy.*as base="):
        Checkpoint.open("org/base", role="base")


def test_hub_id_while_offline(llamas: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = load(llamas.mllm)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    says = (
        r"base=org/base: config\.json is not in the local cache, and HF_HUB_OFFLINE is set .*pass the folder as base="
    )
    with pytest.raises(MergeError, match=says):
        merge_in_place(model, llamas.spec(base="org/base"), checkpoint=llamas.mllm)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="pretrained=not an id: is no folder, and no hub id"):
        Checkpoint.open("not an id", role="pretrained")


def test_a_folder_of_the_hub_s_cache_is_known_by_its_id(hub: Hub, llamas: Pair, tmp_path: Path) -> None:
    Checkpoint.open("org/base")
    folder = tmp_path / "cache" / "models--org--base" / "snapshots" / COMMIT
    assert Checkpoint.open(folder).model_name == "org/base" == Checkpoint.open("org/base").model_name
    shutil.copy(tmp_path / "hub" / "org" / "one-file" / "model.safetensors", folder / "model.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    spec = llamas.spec().model_copy(update={"model": "org/base"})
    warnings = plan_merge(spec, model=Checkpoint.open(folder), base=Checkpoint.open(llamas.base)).warnings
    assert not [text for text in warnings if "was made for" in text]
    with pytest.raises(CheckpointError, match=r"it is a repository's folder in the hub's cache; pass the hub id"):
        Checkpoint.open(folder.parent.parent)


def test_contents_of_a_copy_are_equal_and_those_of_the_hub_are_its_own(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder, its copy, the hub's headers alone, and the hub's cache once everything is downloaded."""
    origin = tmp_path / "hub" / "org" / "base"
    one = Checkpoint.open(origin)
    two = Checkpoint.open(shutil.copytree(origin, tmp_path / "two"))
    content = one.content()
    assert one.identity() != two.identity() and content == two.content()
    assert content["files"]["config.json"] == sha256(origin / "config.json")
    assert len(content["files"]) == 6
    lines = "".join(f"{digest}  {name}\n" for name, digest in content["files"].items())
    assert content["sha256"] == hashlib.sha256(lines.encode()).hexdigest()

    remote = Checkpoint.open("org/base")
    assert remote.content() == content
    assert not [name for name in hub.downloaded() if name.startswith("model-")], "no weight was fetched for it"
    remote.prefetch([Q1])
    assert remote.content() == content

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = Checkpoint.open("org/base").content()
    assert "sha256" not in offline and offline["files"].items() < content["files"].items()
