"""An export: what is copied bit for bit, what is merged, and that it loads without its source."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from plam_eval import export
from plam_eval.errors import ExportError, InputError
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.export_record import FILE, read_export_record
from plam_eval.merging.merge import merge_in_place
from plam_eval.publishing.card.licences import README
from plam_eval.spec import load_spec
from tests.helpers.commands import command_line
from tests.helpers.hub import sha256
from tests.helpers.llamas import bits, load, shard, write_llama
from tests.helpers.mllm import picture
from tests.helpers.pico import FAMILIES, PicoPair, write_pico
from tests.helpers.planted import plant

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LAYERS = "1:3"


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Bits are compared here."""


def raw(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint's safetensors files, as bytes."""
    tensors: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= {name: tensor.flatten().view(torch.uint8) for name, tensor in load_file(file).items()}
    return tensors


def merged_in_place(folder: Path, base: Path, dtype: torch.dtype, **overrides: Any) -> dict[str, Tensor]:
    """Bits of all parameters of a loaded Llama, merged in the dtype that it is stored in."""
    module = load(folder, dtype)
    merge_in_place(module, load_spec(None, {"base": str(base), "layers": LAYERS, **overrides}), checkpoint=folder)
    return bits(module)


def as_bin(folder: Path, *, tied: bool = False) -> Path:
    """Rewrites a one-file checkpoint as pytorch_model.bin; the head shares the embedding's memory if it is tied."""
    tensors = load_file(folder / "model.safetensors")
    if tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["single", "sharded", "bin", "bin shards"])
def test_merged_tensors_have_the_bits_of_a_merge_in_place(tmp_path: Path, dtype: torch.dtype, form: str) -> None:
    model, base = (write_llama(tmp_path / name, seed, dtype=dtype) for name, seed in (("mllm", 1), ("base", 2)))
    expected = merged_in_place(model, base, dtype)
    plain = raw(model)
    if form == "bin":
        as_bin(model)
    elif form != "single":
        shard(model, bin=form == "bin shards")
    done = export(model, None, tmp_path / "out", base=base, layers=LAYERS)
    written = raw(tmp_path / "out")
    assert written.keys() == expected.keys()
    assert [name for name in written if not torch.equal(written[name], expected[name])] == []
    changed = {name for name in written if not torch.equal(written[name], plain[name])}
    assert {name.split(".")[2] for name in changed} == {"1", "2"} and len(changed) == done.record.merge["tensors"] == 16


@pytest.mark.parametrize(
    ("rule", "parameters"),
    [
        *((rule, None) for rule in ("self_scale", "noise", "normalized", "slerp", "iso_c", "trim", "dare")),
        *(("della", "density:0.5"), ("breadcrumbs", "density:0.5+gamma:0.1"), ("nearswap", "t:0.05")),
    ],
)
def test_every_rule_gives_the_bits_of_a_merge_in_place(tmp_path: Path, rule: str, parameters: str | None) -> None:
    model, base = (write_llama(tmp_path / name, seed) for name, seed in (("mllm", 1), ("base", 2)))
    expected = merged_in_place(model, base, torch.float32, rule=rule, parameters=parameters, seed=3)
    export(model, None, tmp_path / "out", base=base, layers=LAYERS, rule=rule, parameters=parameters, seed=3)
    written = raw(tmp_path / "out")
    assert [name for name in written if not torch.equal(written[name], expected[name])] == []


def test_untouched_shards_are_the_same_files_and_the_record_names_every_one(tmp_path: Path) -> None:
    model = shard(write_llama(tmp_path / "mllm", 1, dtype=torch.bfloat16))
    base = write_llama(tmp_path / "base", 2, dtype=torch.bfloat16)
    done = export(model, None, tmp_path / "out", base=base, layers=LAYERS)
    out, record = tmp_path / "out", read_export_record(tmp_path / "out")
    assert record == done.record
    assert {path.name for path in out.iterdir()} == {FILE, README, *record.files}
    for name, file in record.files.items():
        assert (file.sha256, file.bytes) == (sha256(out / name), (out / name).stat().st_size)
        if file.how == "copied":
            assert file.sha256 == record.inputs["model"][name] == sha256(model / name)
    merged = {name for name, file in record.files.items() if file.how == "merged"}
    assert len(merged) == 2 and all(name.startswith("model-") for name in merged)
    index = "model.safetensors.index.json"
    assert record.files[index].how == "copied" and (out / index).read_bytes() == (model / index).read_bytes()
    assert record.inputs["base"] == {name: sha256(base / name) for name in ("config.json", "model.safetensors")}
    # Headers stay, byte for byte, also where tensors were written.
    for name in merged:
        before, after = (folder / name for folder in (model, out))
        length = 8 + int.from_bytes(before.read_bytes()[:8], "little")
        assert before.read_bytes()[:length] == after.read_bytes()[:length]


def test_the_command_in_the_record_makes_the_same_files_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, base = write_llama(tmp_path / "m l'lm", 1), write_llama(tmp_path / "base", 2)
    done = export(
        model, None, tmp_path / "out", base=base, layers=(1, 3), modules=["q_proj", "k_proj"], base_weight=0.5
    )
    (tmp_path / "out").rename(tmp_path / "first")
    words = shlex.split(done.record.command)
    assert words[:2] == ["plam", "export"]
    code, _, err = command_line(monkeypatch, capsys)(*words[1:])
    assert code == 0, err
    again = read_export_record(tmp_path / "out")
    assert again.digest == done.record.digest
    assert again.files == done.record.files


def test_a_spec_from_python_is_written_out_in_the_command(tmp_path: Path) -> None:
    model, base = write_llama(tmp_path / "mllm", 1), write_llama(tmp_path / "base", 2)
    spec = load_spec(None, {"base": str(base), "layers": LAYERS, "modules": "qk", "base_weight": 0.25})
    assert spec is not None
    done = export(model, spec, tmp_path / "out")
    words = shlex.split(done.record.command)[2:]
    given = {key[2:].replace("-", "_"): value for key, value in zip(words[::2], words[1::2], strict=True)}
    assert (given.pop("model"), given.pop("output")) == (str(model), str(tmp_path / "out"))
    again = load_spec(None, given)
    assert again is not None and again.digest() == done.record.digest == spec.digest()


def test_weights_of_one_and_zero_change_nothing(tmp_path: Path) -> None:
    model, base = write_llama(tmp_path / "mllm", 1), write_llama(tmp_path / "base", 2)
    export(model, None, tmp_path / "out", base=base, layers=LAYERS, model_weight=1, base_weight=0)
    assert sha256(tmp_path / "out" / "model.safetensors") == sha256(model / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_loads_without_its_source(
    tmp_path: Path, pico: Callable[[str], PicoPair], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    pair = pico(family)
    source = Path(shutil.copytree(pair.mllm, tmp_path / "mllm"))
    done = export(source, None, tmp_path / "out", base=pair.base, layers=LAYERS)
    module = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    merge_in_place(module, load_spec(None, {"base": str(pair.base), "layers": LAYERS}), checkpoint=source)
    expected, processor = bits(module), AutoProcessor.from_pretrained(source)
    shutil.rmtree(source)
    monkeypatch.chdir(tmp_path)
    loaded: Any = AutoModelForImageTextToText.from_pretrained("out", dtype=torch.float32, output_loading_info=True)
    assert not any(loaded[1].values())
    found = bits(loaded[0])
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    again = AutoProcessor.from_pretrained("out")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    inputs = [
        one(images=picture(1), text=one.apply_chat_template(chat, add_generation_prompt=True), return_tensors="pt")
        for one in (processor, again)
    ]
    assert inputs[0].keys() == inputs[1].keys() and all(torch.equal(inputs[0][k], inputs[1][k]) for k in inputs[0])
    assert not [note for note in done.record.notes if "no files" in note or "Left out" in note]


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    def tie(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        del tensors["lm_head.weight"]
        config["tie_word_embeddings"] = True

    model, base = write_llama(tmp_path / "mllm", 1, edit=tie), write_llama(tmp_path / "base", 2)
    expected = merged_in_place(model, base, torch.float32)
    export(model, None, tmp_path / "out", base=base, layers=LAYERS)
    assert "lm_head.weight" not in raw(tmp_path / "out")
    found = bits(load(tmp_path / "out"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("tied", [False, True])
def test_bin_files_become_safetensors_and_it_is_said(tmp_path: Path, tied: bool) -> None:
    model = as_bin(write_llama(tmp_path / "mllm", 1, dtype=torch.float16), tied=tied)
    base = write_llama(tmp_path / "base", 2, dtype=torch.float16)
    done = export(model, None, tmp_path / "out", base=base, layers=LAYERS)
    assert {name: file.how for name, file in done.record.files.items()} == {
        **{"config.json": "copied", "model.safetensors": "converted"}
    }
    assert set(done.record.inputs["model"]) == {"config.json", "pytorch_model.bin"}
    notes = " ".join(done.record.notes)
    assert "pytorch_model.bin" in notes and "safetensors" in notes
    assert ("share memory" in notes and "lm_head.weight" in notes) == tied
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert torch.equal(file.get_tensor("lm_head.weight"), file.get_tensor("model.embed_tokens.weight")) == tied


def test_an_index_of_bin_files_is_converted_with_them(tmp_path: Path) -> None:
    model = shard(write_llama(tmp_path / "mllm", 1), bin=True)
    base = write_llama(tmp_path / "base", 2)
    done = export(model, None, tmp_path / "out", base=base, layers=LAYERS)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    before = json.loads((model / "pytorch_model.bin.index.json").read_text())["weight_map"]
    assert {n: f.replace("pytorch_model", "model").replace(".bin", ".safetensors") for n, f in before.items()} == (
        index["weight_map"]
    )
    assert index["metadata"]["total_size"] == sum(tensor.numel() for tensor in raw(tmp_path / "out").values())
    assert not list((tmp_path / "out").glob("*.bin*")) and "pytorch_model.bin.index.json" in done.record.inputs["model"]
    load(tmp_path / "out")


def test_tensors_of_every_kind_survive_the_conversion(tmp_path: Path) -> None:
    def more(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors["visual.kinds"] = torch.arange(6).view(2, 3)
        tensors["visual.scale"] = torch.tensor(0.5, dtype=torch.float64)
        tensors["visual.mask"] = torch.tensor([True, False])
        tensors["visual.none"] = torch.empty(0, 4)

    model = write_llama(tmp_path / "mllm", 1, edit=more)
    plain = {name: tensor.clone() for name, tensor in load_file(model / "model.safetensors").items()}
    plain["visual.turned"] = torch.arange(6.0).view(2, 3).T  # not contiguous
    torch.save(plain, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    export(model, None, tmp_path / "out", base=write_llama(tmp_path / "base", 2), layers=LAYERS)
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name in [name for name in plain if name.startswith("visual.")]:
        assert written[name].dtype == plain[name].dtype and torch.equal(written[name], plain[name]), name


def test_what_cannot_be_written_as_safetensors_is_named(tmp_path: Path) -> None:
    model = as_bin(write_llama(tmp_path / "mllm", 1))
    content = torch.load(model / "pytorch_model.bin", weights_only=True)
    torch.save({**content, "visual.spectrum": torch.ones(2, dtype=torch.complex64)}, model / "pytorch_model.bin")
    with pytest.raises(ExportError, match=r"visual\.spectrum is torch\.complex64"):
        export(model, None, tmp_path / "out", base=write_llama(tmp_path / "base", 2), layers=LAYERS)


def test_code_comes_along_and_never_runs(tmp_path: Path) -> None:
    pair = write_pico("llava", tmp_path)
    plant(pair.mllm, tmp_path / "marker")
    (pair.mllm / "words.dat").write_text("a vocabulary under a name of its own")
    (pair.mllm / "planted_tokenizer.py").open("a").write('\nVOCABULARY = "words.dat"\n')
    (pair.mllm / "generation_config.json").write_text(
        json.dumps({"auto_map": {"AutoModel": "else/where--modeling.Model"}})
    )
    done = export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS)
    assert not (tmp_path / "marker").exists()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.py")) == [
        *("planted_config.py", "planted_model.py", "planted_processor.py", "planted_tokenizer.py")
    ]
    assert (tmp_path / "out" / "words.dat").is_file()
    notes = "\n".join(done.record.notes)
    assert "planted_model.py" in notes and "trust_remote_code=True" in notes and "words.dat" in notes
    assert "else/where" in notes


def test_nan_in_the_weights_leaves_nothing_and_names_every_tensor(tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (1, 2)]

    def spoil(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for name in names:
            tensors[name][0, 0] = float("nan")

    model, base = write_llama(tmp_path / "mllm", 1, edit=spoil), write_llama(tmp_path / "base", 2)
    with pytest.raises(ExportError) as caught:
        export(model, None, tmp_path / "out", base=base, layers=LAYERS)
    assert all(name in str(caught.value) for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "mllm"]


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    model, base = write_llama(tmp_path / "mllm", 1), write_llama(tmp_path / "base", 2)
    (model / "tokenizer.json").symlink_to("/etc/hostname")
    with pytest.raises(ExportError) as caught:
        export(model, None, model / "out", base=base, layers="2:40")
    said = str(caught.value)
    assert "lies inside of" in said and "40" in said and "tokenizer.json: is a link that leads out" in said


def test_an_index_of_tensors_that_are_nowhere_is_refused_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, base = shard(write_llama(tmp_path / "mllm", 1)), write_llama(tmp_path / "base", 2)
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    file = next(iter(content["weight_map"].values()))
    content["weight_map"] |= {f"ghost{number}.weight": file for number in range(30)}
    index.write_text(json.dumps(content))
    monkeypatch.setattr(
        "plam_eval.publishing.checkpoint.export.copy_file", lambda *arguments: pytest.fail("it was begun")
    )
    with pytest.raises(ExportError, match=r"ghost0\.weight is not in .*(?s:.)*18 more tensors") as caught:
        export(model, None, tmp_path / "out", base=base, layers=LAYERS)
    assert str(model) in str(caught.value) and ".partial" not in str(caught.value)


def test_an_export_of_an_export_says_so_and_takes_nothing_over(tmp_path: Path) -> None:
    model, base = write_llama(tmp_path / "mllm", 1), write_llama(tmp_path / "base", 2)
    first = export(model, None, tmp_path / "first", base=base, layers=LAYERS)
    second = export(tmp_path / "first", None, tmp_path / "second", base=base, layers=LAYERS, base_weight=0.1)
    assert [note for note in second.record.notes if "is itself an export" in note and first.record.digest in note]
    assert not [note for note in first.record.notes if "itself" in note]
    assert read_export_record(tmp_path / "second") == second.record != first.record
    (tmp_path / "first" / FILE).write_text("{}")
    again = export(tmp_path / "first", None, tmp_path / "third", base=base, layers=LAYERS, base_weight=0.1)
    assert not [note for note in again.record.notes if "itself" in note]


def test_the_plain_model_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing would be merged"):
        export(tmp_path, "none", tmp_path / "out")


@pytest.mark.parametrize(
    ("stored", "config", "said"),
    [
        (torch.float16, "float16", "dtype=bfloat16"),
        (torch.float16, "bfloat16", "config.json says dtype bfloat16"),
        (torch.float32, "float32", "vLLM loads float32 in a half precision"),
        (torch.bfloat16, "bfloat16", "rounded once, to bfloat16"),
    ],
)
def test_a_second_rounding_is_warned_of(tmp_path: Path, stored: torch.dtype, config: str, said: str) -> None:
    model = write_llama(tmp_path / "mllm", 1, dtype=stored, edit=lambda tensors, content: None)
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**content, "dtype": config}))
    done = export(model, None, tmp_path / "out", base=write_llama(tmp_path / "base", 2, dtype=stored), layers=LAYERS)
    assert [note for note in done.record.notes if said in note]


def test_weights_that_vllm_alone_would_read_stay_behind(tmp_path: Path) -> None:
    model, base = write_llama(tmp_path / "mllm", 1), write_llama(tmp_path / "base", 2)
    shutil.copy(base / "model.safetensors", model / "consolidated.safetensors")
    done = export(model, None, tmp_path / "out", base=base, layers=LAYERS)
    Checkpoint.open(tmp_path / "out").check_read_by_vllm()
    notes = "\n".join(done.record.notes)
    assert "vLLM would read consolidated.safetensors" in notes and "Left out" in notes
