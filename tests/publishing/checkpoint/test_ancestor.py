"""Exports by rules that take an ancestor: their bits, what is recorded of the three sources, faults of the third."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from plam_eval import export
from plam_eval.errors import ExportError
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.export_record import FILE, read_export_record
from plam_eval.merging.merge import merge_in_place
from plam_eval.merging.report import MergeReport
from plam_eval.publishing.card.licences import README
from plam_eval.publishing.checkpoint import export as module
from plam_eval.spec import load_spec
from tests.helpers.commands import command_line
from tests.helpers.hub import sha256
from tests.helpers.llamas import bits, load, shard, write_llama

RULES = ("task_arithmetic", "ties", "from_ancestor")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Trio(NamedTuple):
    mllm: Path
    base: Path
    ancestor: Path

    def given(self, rule: str = "ties", **changes: Any) -> dict[str, Any]:
        overrides = {"base": str(self.base), "ancestor": str(self.ancestor), "layers": "1:3", "modules": "all"}
        return {**overrides, "rule": rule, **changes}


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Bits are compared here."""


def trio(folder: Path, dtype: torch.dtype = torch.float32, **edits: Any) -> Trio:
    sides = enumerate(("mllm", "base", "ancestor"))
    return Trio(*(write_llama(folder / name, seed, dtype=dtype, edit=edits.get(name)) for seed, name in sides))


def refused(three: Trio, output: Path, **changes: Any) -> str:
    with pytest.raises(ExportError) as caught:
        export(three.mllm, None, output, **three.given(**changes))
    assert not output.exists()
    return str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_the_bits_are_those_of_a_merge_in_place(tmp_path: Path, rule: str, dtype: torch.dtype) -> None:
    """The ancestor in another dtype than MLLM and base, and in the other forms that a checkpoint has."""
    form, old = {torch.float16: ("bin", torch.bfloat16), torch.bfloat16: ("sharded", torch.float32)}.get(
        dtype, ("single", torch.float16)
    )
    mllm, base = (write_llama(tmp_path / name, seed, dtype=dtype) for seed, name in enumerate(("mllm", "base")))
    ancestor = write_llama(tmp_path / "ancestor", 2, dtype=old)
    three = Trio(mllm, base, ancestor if form == "single" else shard(ancestor, bin=form == "bin"))
    model = load(mllm, dtype)
    spec = load_spec(None, three.given(rule))
    report = merge_in_place(model, spec, checkpoint=mllm)
    done = export(mllm, None, tmp_path / "out", **three.given(rule))
    expected: dict[str, Tensor] = bits(model)
    written = {
        name: tensor.flatten().view(torch.uint8)
        for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items()
    }
    assert [name for name in written if not torch.equal(written[name], expected[name])] == []
    told = MergeReport.from_dict(done.record.merge)
    assert told.relative_change == report.relative_change and told.bytes_read == report.bytes_read
    assert told.task_vectors == report.task_vectors and told.ancestor == str(three.ancestor)
    assert told.warnings == report.warnings


def test_the_record_and_the_card_name_all_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    three = trio(tmp_path / "private")
    for side, licence in zip(three, ("mit", "mit", "llama2"), strict=True):
        (side / README).write_text(f"---\nlicense: {licence}\n---\n")
    done = export(three.mllm, None, tmp_path / "out", **three.given())
    record = read_export_record(tmp_path / "out")
    assert record == done.record
    opened = Checkpoint.open(three.ancestor)
    assert record.ancestor == {"name": opened.name, **opened.identity(), **opened.content()}
    assert record.inputs["ancestor"] == {
        name: sha256(three.ancestor / name) for name in ("config.json", "model.safetensors")
    }
    card = (tmp_path / "out" / README).read_text()
    assert "license: other\n" in card and "| ancestor | llama2 |" in card and "all three sources" in card
    assert "and of ancestor, the ancestor that both were tuned from" in card and str(tmp_path) not in card
    assert "The ancestor was a folder (ancestor), so no hub id is given" in card

    words = shlex.split(record.command)
    assert words[words.index("--ancestor") + 1] == str(three.ancestor)
    (tmp_path / "out").rename(tmp_path / "first")
    code, _, err = command_line(monkeypatch, capsys)(*words[1:])
    assert code == 0, err
    assert read_export_record(tmp_path / "out").files == record.files
    spec = load_spec(None, three.given("task_arithmetic"))
    from_python = export(three.mllm, spec, tmp_path / "third")
    assert "--rule task_arithmetic" in from_python.record.command and from_python.record.digest == spec.digest()
    assert f"--ancestor {three.ancestor}" in from_python.record.command


def test_an_ancestor_that_no_rule_reads_is_not_opened_and_not_told(tmp_path: Path) -> None:
    three = trio(tmp_path)
    content = load_spec(None, three.given("weighted_sum")).to_dict()
    spec = load_spec({**content, "ancestor": str(tmp_path / "secret" / "nowhere"), "source": None})
    done = export(three.mllm, spec, tmp_path / "out")
    assert done.record.digest == spec.digest() and done.record.inputs.keys() == {"model", "base"}
    for file in (FILE, README):
        assert "nowhere" not in (tmp_path / "out" / file).read_text()
    assert "ancestor" not in json.loads((tmp_path / "out" / FILE).read_text()), "as versions before this one read it"


def test_faults_of_the_third_source_are_told_with_the_others_before_a_byte_is_written(tmp_path: Path) -> None:
    def wide(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 32)
        del tensors["model.layers.2.self_attn.q_proj.bias"]

    def lacking(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        del tensors["model.layers.2.mlp.down_proj.weight"]

    three = trio(tmp_path, base=lacking, ancestor=wide)
    said = refused(three, tmp_path / "out")
    assert "down_proj.weight: missing" in said and "[3, 32]" in said
    assert "self_attn.q_proj.bias: in" in said and "but not in" in said
    said = refused(three, tmp_path / "out", base=str(tmp_path / "a"), ancestor=str(tmp_path / "b"))
    assert f"base={tmp_path / 'a'}: no such" in said and f"ancestor={tmp_path / 'b'}: no such" in said
    inside = refused(three, three.ancestor / "out")
    assert str(three.ancestor) in inside and "[3, 32]" in inside


def test_nan_in_the_ancestor_leaves_nothing(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        for layer in (1, 2):
            tensors[f"model.layers.{layer}.mlp.up_proj.weight"][0, 0] = float("nan")

    three = trio(tmp_path, ancestor=spoil)
    with pytest.raises(Exception, match="holds NaN or Inf") as caught:
        export(three.mllm, None, tmp_path / "out", **three.given())
    assert all(f"model.layers.{layer}.mlp.up_proj.weight of" in str(caught.value) for layer in (1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ancestor", "base", "mllm"]


def test_an_ancestor_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three = trio(tmp_path)
    real: Callable[..., Any] = module.merge_tensor

    def merge_and_touch(*args: Any) -> Any:
        shutil.copy(three.base / "model.safetensors", three.ancestor / "model.safetensors.new")
        (three.ancestor / "model.safetensors.new").replace(three.ancestor / "model.safetensors")
        return real(*args)

    monkeypatch.setattr(module, "merge_tensor", merge_and_touch)
    assert "ancestor changed on disk while it was exported" in refused(three, tmp_path / "out")


@pytest.mark.parametrize("same", ["base", "mllm"])
def test_one_checkpoint_in_two_places(tmp_path: Path, same: str) -> None:
    """As its own ancestor the base has learnt nothing, or the MLLM has: a sum of the two that are left."""
    three = trio(tmp_path)
    three = three._replace(ancestor=getattr(three, same))
    given = three.given("task_arithmetic", model_weight=0.9, base_weight=0.3)
    warnings = export(three.mllm, None, tmp_path / "out", **given).record.merge["warnings"]
    assert warnings == [], "either may be"
    written = load_file(tmp_path / "out" / "model.safetensors")
    mllm, base = (load_file(side / "model.safetensors") for side in three[:2])
    for name in written:
        if ".layers.1." in name and "proj" in name:
            share = 0.9 if same == "base" else 0.7
            assert torch.allclose(written[name], share * mllm[name] + (1 - share) * base[name], atol=1e-6)
