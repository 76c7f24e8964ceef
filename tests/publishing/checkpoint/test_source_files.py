"""Which files come along with an export, which stay behind, and which are refused."""

from __future__ import annotations

import ast
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path

import pytest
from huggingface_hub import constants

from plam_eval import export
from plam_eval.errors import CheckpointError, ExportError
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.publishing.checkpoint.export import export_checkpoint
from plam_eval.publishing.checkpoint.source_files import choose_files, kind_of
from plam_eval.spec import load_spec
from tests.helpers.hub import COMMIT, Hub, serving
from tests.helpers.llamas import Pair, shard, write_llama

LAYERS = "1:3"
COMES = {
    "configuration": ("config.json", "generation_config.json", "config.4.0.0.json"),
    "tokenizer": (
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
        *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken", "tekken.json"),
        *("qformer_tokenizer/vocab.txt", "qformer_tokenizer/tokenizer.json"),
    ),
    "chat template": ("chat_template.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"),
    "processor": ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    "code": ("modeling_own.py", "custom_generate/generate.py", "custom_generate/requirements.txt"),
    "licence": ("LICENSE", "license.txt", "LICENCE.md", "NOTICE", "Notice.txt", "USE_POLICY.md", "MODEL_LICENSE"),
}
STAYS = (
    *(
        "README.md",
        ".gitattributes",
        ".eval_results/mmmu.yaml",
        "results.json",
        "all_results.json",
        "eval_results.json",
    ),
    *("trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"),
    *("consolidated.safetensors", "model.fp16.safetensors", "model.gguf", "model.onnx", "tf_model.h5"),
    *(
        "flax_model.msgpack",
        "adapter_model.safetensors",
        "picture.png",
        "license.png",
        "assets/demo.jpg",
        ".git/config",
    ),
    *("plam_export.json", "plateau.yaml", "checkpoint-10/config.json", "onnx/model.onnx", "params.json", ".env"),
)


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("llamas")
    return Pair(write_llama(folder / "mllm", 1), write_llama(folder / "base", 2))


@pytest.fixture
def pair(llamas: Pair, tmp_path: Path) -> Pair:
    """Copies of an MLLM and its base, to be changed."""
    return Pair(*(Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in (llamas.mllm, llamas.base)))


def fill(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text("{}" if file.suffix == ".json" else f"of {name}\n")


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_loading_needs_comes_along_and_nothing_else(pair: Pair, tmp_path: Path) -> None:
    comes = [name for names in COMES.values() for name in names]
    fill(pair.mllm, *comes, *STAYS)
    (pair.mllm / "adapter_config.json").unlink(missing_ok=True)
    done = export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS)
    assert files_of(tmp_path / "out") == {*comes, "model.safetensors", "plam_export.json", "README.md"}
    for name in comes:
        assert (tmp_path / "out" / name).read_bytes() == (pair.mllm / name).read_bytes()
    said = choose_files(Checkpoint.open(pair.mllm))
    assert {name.split("/")[0] + "/" * ("/" in name) for name in STAYS} == set(said.left_out)
    assert any(note.startswith("Left out of") and "README.md" in note for note in done.record.notes)


@pytest.mark.parametrize("kind", COMES)
def test_the_kind_of_a_file_is_told_by_its_name(kind: str) -> None:
    assert {kind_of(name) for name in COMES[kind]} == {kind}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays_is_of_no_kind(name: str) -> None:
    assert kind_of(name) is None


def test_every_vocabulary_of_transformers_comes_along() -> None:
    """Its tokenizers name their files in `VOCAB_FILES_NAMES`; read without importing any of them."""
    spec = util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    names: set[str] = set()
    for file in (Path(spec.origin).parent / "models").glob("*/tokenization*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == [
                "VOCAB_FILES_NAMES"
            ]:
                assert isinstance(node.value, ast.Dict)
                names |= {str(value.value) for value in node.value.values if isinstance(value, ast.Constant)}
    assert len(names) > 20 and {"spiece.model", "merges.txt", "vocab.json"} <= names
    assert {name for name in names if kind_of(name) != "tokenizer"} == set()


# ---- links and what is no file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokenizer.json", "LICENSE", "modeling.py", "additional_chat_templates/x.jinja"])
@pytest.mark.parametrize("target", ["/etc/passwd", "../base/config.json", "/nowhere"])
def test_a_link_that_leads_out_is_refused(pair: Pair, tmp_path: Path, name: str, target: str) -> None:
    (pair.mllm / name).parent.mkdir(exist_ok=True)
    up = "../" * (name.count("/") if target.startswith("..") else 0)
    (pair.mllm / name).symlink_to(up + target)
    with pytest.raises(ExportError, match="leads out of the checkpoint"):
        export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_link_leads_out_as_well(pair: Pair, tmp_path: Path) -> None:
    fill(tmp_path / "secrets", "key.jinja")
    (pair.mllm / "additional_chat_templates").symlink_to(tmp_path / "secrets")
    with pytest.raises(ExportError, match=r"key\.jinja: is a link that leads out"):
        export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS)


def test_weights_that_are_links_out_are_refused(pair: Pair, tmp_path: Path) -> None:
    (pair.mllm / "model.safetensors").rename(tmp_path / "weights.safetensors")
    (pair.mllm / "model.safetensors").symlink_to(tmp_path / "weights.safetensors")
    with pytest.raises(ExportError, match=r"model\.safetensors: is a link that leads out"):
        export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS)


def test_a_link_inside_of_the_checkpoint_is_copied_as_a_file(pair: Pair, tmp_path: Path) -> None:
    fill(pair.mllm, "data/words.json")
    (pair.mllm / "tokenizer.json").symlink_to("data/words.json")
    (tmp_path / "way").symlink_to("mllm")
    export(tmp_path / "way", None, tmp_path / "out", base=pair.base, layers=LAYERS)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (os.mkfifo, "is a pipe, expected a file"),
        (os.mkdir, "is a folder, expected a file"),
        (lambda path: path.symlink_to(path), "link"),
        (lambda path: path.symlink_to("nothing"), "leads to nothing"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "git-lfs pointer"),
    ],
    ids=["pipe", "folder", "loop", "nothing", "pointer"],
)
def test_what_is_no_file_is_refused(pair: Pair, tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    make(pair.mllm / "tokenizer.json")
    with pytest.raises(ExportError, match=f"tokenizer.json.*{said}"):
        export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS)
    assert not (tmp_path / "out").exists()


def test_names_of_any_letters_are_copied_and_shown_as_text(pair: Pair, tmp_path: Path) -> None:
    name = "vocab\x1b[31m\n[red].model"
    fill(pair.mllm, name, "\x1b[2Jevil.bin.txt")
    done = export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS)
    assert name in done.record.files and (tmp_path / "out" / name).is_file()


def test_names_that_are_one_elsewhere_or_that_no_record_holds_are_refused(pair: Pair, tmp_path: Path) -> None:
    fill(pair.mllm, "tokenizer.model", "Tokenizer.model")
    (pair.mllm / os.fsdecode(b"LICENSE\xff.txt")).touch()
    with pytest.raises(ExportError) as raised:
        export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS)
    said = "\n".join(raised.value.problems)
    assert "Tokenizer.model and tokenizer.model differ in the case of letters alone" in said
    assert r"'LICENSE\udcff.txt' is no name in UTF-8" in said
    assert not (tmp_path / "out").exists()


def test_code_cannot_bring_the_record_of_another_export(pair: Pair, tmp_path: Path) -> None:
    fill(pair.mllm, "plam_export.json", "vocabulary.dat")
    (pair.mllm / "modeling_own.py").write_text("FILES = 'plam_export.json', 'vocabulary.dat'\n")
    done = export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS)
    assert done.record.files.keys() == {"config.json", "model.safetensors", "modeling_own.py", "vocabulary.dat"}


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """`owner/mllm`, sharded and with more in it than a checkpoint needs, and `owner/base`."""
    owner = tmp_path / "served" / "owner"
    owner.mkdir(parents=True)
    pair.mllm.rename(owner / "mllm")
    pair.base.rename(owner / "base")
    shard(owner / "mllm")
    shard(owner / "base")
    fill(owner / "mllm", "tokenizer.json", "processor_config.json", "LICENSE", "README.md", "big.onnx", "x/y.txt")
    with serving(tmp_path / "served", tmp_path / "cache", monkeypatch) as served:
        yield served


def test_of_the_hub_only_what_comes_along_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    done = export("owner/mllm@v1", None, tmp_path / "out", base="owner/base", layers=LAYERS)
    served = hub.root / "owner" / "mllm"
    for name, file in done.record.files.items():
        if file.how == "copied":
            assert (tmp_path / "out" / name).read_bytes() == (served / name).read_bytes()
    assert {"tokenizer.json", "processor_config.json", "LICENSE"} <= done.record.files.keys()
    assert not {"big.onnx", "x/y.txt"} & set(hub.downloaded())
    assert (tmp_path / "out" / "README.md").read_bytes() != (served / "README.md").read_bytes()
    assert done.record.model["commit"] == done.record.base["commit"] == COMMIT
    assert len(done.record.inputs["base"]) == 2 + 2  # config, index, the two shards of the merged layers
    left_out = next(note for note in done.record.notes if note.startswith("Left out"))
    assert left_out == "Left out of owner/mllm@v1: README.md, big.onnx, x/."
    # Again from the cache alone, by its snapshot folder, whose files are links to blobs.
    snapshot = next((tmp_path / "cache").glob("models--owner--mllm/snapshots/*"))
    again = export(snapshot, None, tmp_path / "again", base=hub.root / "owner" / "base", layers=LAYERS)
    assert again.record.files == done.record.files


def test_a_blob_that_is_a_link_itself_is_refused(hub: Hub, tmp_path: Path) -> None:
    export("owner/mllm", None, tmp_path / "out", base="owner/base", layers=LAYERS)
    snapshot = next((tmp_path / "cache").glob("models--owner--mllm/snapshots/*"))
    blob = (snapshot / "tokenizer.json").resolve()
    blob.unlink()
    blob.symlink_to("/etc/passwd")
    with pytest.raises(ExportError, match="leads out of the checkpoint"):
        export(snapshot, None, tmp_path / "again", base="owner/base", layers=LAYERS)


def test_offline_the_cache_is_what_there_is_and_it_is_said(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Checkpoint.open("owner/mllm").prefetch(Checkpoint.open("owner/mllm").names())  # weights and config alone
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = export("owner/mllm", None, tmp_path / "out", base=hub.root / "owner" / "base", layers=LAYERS)
    assert "tokenizer.json" not in done.record.files
    assert any("HF_HUB_OFFLINE" in note and "tokenizer" in note for note in done.record.notes)


def test_a_file_that_the_hub_lists_and_does_not_give_is_named(hub: Hub, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open("owner/mllm")
    assert "tokenizer.json" in checkpoint.listing()
    checkpoint.prefetch(checkpoint.names())
    (hub.root / "owner" / "mllm" / "tokenizer.json").unlink()
    spec = load_spec(None, {"base": "owner/base", "layers": LAYERS})
    assert spec is not None
    with pytest.raises(ExportError, match=r"tokenizer\.json is listed, and not there"):
        export_checkpoint(checkpoint, spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_listed_is_an_error_of_ours(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(pair.mllm)
    shutil.rmtree(pair.mllm)
    with pytest.raises(CheckpointError, match="cannot be read"):
        choose_files(checkpoint)
