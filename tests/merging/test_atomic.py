"""Every fault leaves the model as it was, bit by bit, and is told with its place."""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plam_eval.errors import MergeError
from plam_eval.merging import arithmetic, merge, rules, undo
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import merge_in_place
from plam_eval.merging.plan import plan_merge
from tests.helpers.llamas import Pair, bits, changed, load, shard, write_llama

Q1 = "model.layers.1.self_attn.q_proj.weight"
K2 = "model.layers.2.self_attn.k_proj.weight"


def refused(module: nn.Module, pair: Pair, expected: str, **arguments: Any) -> MergeError:
    """The merge is refused with `expected` in its message, and the module is what it was; also once merged."""
    spec = arguments.pop("spec", None) or pair.spec()
    before = bits(module)
    with pytest.raises(MergeError, match=expected) as error:
        merge_in_place(module, spec, **{"checkpoint": pair.mllm, **arguments})
    assert not changed(before, module)
    return error.value


# ---- faults of a base or checkpoint, whichever side they are on ------------------------------------------------------


def drop(name: str) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    def edit(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        del tensors[name]

    return edit


def put(name: str, value: Callable[[Tensor], Tensor], new_name: str = "") -> Any:
    def edit(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors[new_name or name] = value(tensors[name]).clone().contiguous()

    return edit


def poison(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[-1, -1] = value
        return tensor

    return change


def drop_layer(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    for name in [name for name in tensors if "layers.2." in name]:
        del tensors[name]


def drop_decoder(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    for name in [name for name in tensors if "layers." in name]:
        tensors["encoder." + name] = tensors.pop(name)


def configure(**values: Any) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, config: config.update(values)


FAULTS = [
    (drop(Q1), r"layer 1, self_attn\.q_proj\.weight: missing; nearest in this layer: self_attn\."),
    (drop(Q1.replace("weight", "bias")), r"layer 1, self_attn\.q_proj\.bias: in .* but not in .*; expected both"),
    (drop_layer, r"\[1, 3\) does not fit .*, which has 2 decoder layers"),
    (drop_decoder, "no decoder layers; expected names such as"),
    (put(Q1, lambda t: t[:16]), r"\[16, 32\].*\[32, 32\]|\[32, 32\].*\[16, 32\]"),
    (put(Q1, lambda t: t, "language_model." + Q1), "stored 2 times, as "),
    (put(Q1, lambda t: t, "llm." + Q1), r"several prefixes \(llm\.model\.layers, model\.layers\), expected one"),
    (put(Q1, lambda t: t, "model.layers.9.mlp.weight"), "has no tensor of layer 3, but some of layer 9"),
    (configure(num_hidden_layers=2), r"which has 2 decoder layers|has 2 decoder layers"),
    (put(Q1, lambda t: t.to(torch.int8)), r"is torch\.int8; expected float32"),
    (put(Q1, lambda t: t.to(torch.float8_e4m3fn)), r"is torch\.float8_e4m3fn; expected float32.*Quantised"),
    (put(Q1, lambda t: t[0], Q1.replace("weight", "weight_scale_inv")), "found weight_scale_inv, expected weight and"),
    (put(Q1, lambda t: t[0], Q1.replace("weight", "lora_A.weight")), r"found lora_A\.weight, .*adapters folded in"),
    (put(Q1, poison(float("nan"))), "q_proj.weight of .* holds NaN or Inf"),
    (put(K2, poison(float("inf"))), "k_proj.weight of .* holds NaN or Inf"),
    (configure(quantization_config={"quant_method": "awq"}), r"quantised \(awq\), says its config"),
    (configure(num_attention_heads=8), "num_attention_heads: "),
    (configure(head_dim=16, num_attention_heads=2), "head_dim: "),
    (configure(hidden_size=64), "hidden_size: "),
    (configure(num_key_value_heads=1), "num_key_value_heads: "),
]


@pytest.mark.parametrize(("edit", "expected"), FAULTS)
def test_faulty_base(llamas: Pair, tmp_path: Path, edit: Any, expected: str) -> None:
    base = write_llama(tmp_path / "base", 2, edit=edit)
    error = refused(load(llamas.mllm), llamas, expected, base=base)
    assert str(base) in str(error)


@pytest.mark.parametrize(("edit", "expected"), FAULTS)
def test_faulty_checkpoint(llamas: Pair, tmp_path: Path, edit: Any, expected: str) -> None:
    checkpoint = write_llama(tmp_path / "mllm", 1, edit=edit)
    error = refused(load(llamas.mllm), llamas, expected, checkpoint=checkpoint)
    assert str(checkpoint) in str(error)


def test_every_fault_of_both_sides_is_told_at_once(llamas: Pair, tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        tensors.pop(Q1)
        tensors[K2] = tensors[K2].to(torch.int8)
        config["hidden_size"] = 64

    checkpoint = write_llama(tmp_path / "mllm", 1, edit=drop(K2.replace("k_proj", "v_proj")))
    base = write_llama(tmp_path / "base", 2, edit=edit)
    error = refused(load(llamas.mllm), llamas, "nothing was merged", checkpoint=checkpoint, base=base)
    assert len(error.faults) == 4
    with pytest.raises(MergeError) as planned:
        plan_merge(llamas.spec(), model=Checkpoint.open(checkpoint), base=Checkpoint.open(base))
    assert planned.value.faults == error.faults
    both_missing = refused(load(llamas.mllm), llamas, "no such folder", checkpoint="/no/mllm", base="/no/base")
    assert len(both_missing.faults) == 2


def test_every_nan_is_told_at_once(llamas: Pair, tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for name in (Q1, K2):
            tensors[name][0, 0] = torch.nan

    base = write_llama(tmp_path / "base", 2, edit=edit)
    error = refused(load(llamas.mllm), llamas, "NaN", base=base)
    assert len(error.faults) == 2 and Q1 in error.faults[0] and K2 in error.faults[1]
    assert "model.safetensors" in error.faults[0]


def test_a_result_that_overflows(llamas: Pair) -> None:
    module = load(llamas.mllm, torch.float16)
    refused(module, llamas, r"overflows torch\.float16", spec=llamas.spec(model_weight=3e5))
    refused(module, llamas, r"overflows torch\.float16", spec=llamas.spec(model_weight=3e38, base_weight=3e38))


def test_layers_beyond_the_model(llamas: Pair) -> None:
    error = refused(load(llamas.mllm), llamas, r"\[1, 4\) does not fit", spec=llamas.spec(layers="1:4"))
    assert len(error.faults) == 3, "parameters, checkpoint and base, each by name"


def test_another_checkpoint_than_the_model_s(llamas: Pair, tmp_path: Path) -> None:
    module = load(llamas.mllm)
    refused(module, llamas, "expected a plain load of the checkpoint", checkpoint=llamas.base)
    merge_in_place(module, llamas.spec(), checkpoint=llamas.mllm)
    refused(module, llamas, "not the checkpoint of the last merge", checkpoint=llamas.base)
    edited = load(llamas.mllm)
    with torch.no_grad():
        edited.get_parameter(K2)[0, 0] += 1
    refused(edited, llamas, r"k_proj\.weight of the loaded model is not model\.layers\.2")


def test_a_checkpoint_that_changed_since_the_merge(llamas: Pair, tmp_path: Path) -> None:
    mllm = shutil.copytree(llamas.mllm, tmp_path / "mllm")
    module = load(llamas.mllm)
    merge_in_place(module, llamas.spec(), checkpoint=mllm)
    merged = bits(module)
    shutil.rmtree(mllm)
    write_llama(mllm, 7)
    with pytest.raises(MergeError, match="changed since"):
        merge_in_place(module, None)
    assert not changed(merged, module)


def test_a_shard_that_is_missing_or_truncated(llamas: Pair, tmp_path: Path) -> None:
    base = shard(shutil.copytree(llamas.base, tmp_path / "base"))
    last = base / "model-00003-of-00004.safetensors"
    content = last.read_bytes()
    last.write_bytes(content[:-10])
    refused(load(llamas.mllm), llamas, r"00003-of-00004\.safetensors: truncated or corrupt", base=base)
    last.unlink()
    refused(load(llamas.mllm), llamas, r"00003-of-00004\.safetensors, named by .* not found", base=base)
    (base / "model-00001-of-00004.safetensors").unlink()  # layer 0 is not merged, so nothing in it is needed
    last.write_bytes(content)
    assert merge_in_place(load(llamas.mllm), llamas.spec(), checkpoint=llamas.mllm, base=base).tensors == 16


# ---- faults of the loaded module -------------------------------------------------------------------------------------


class Params4bit(nn.Parameter):
    """bitsandbytes' class of this name, as far as it can be told by."""


class DTensor(nn.Parameter):
    """Likewise torch.distributed's."""


class Unheard(nn.Parameter):
    pass


def replace(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    module.get_submodule(owner)._parameters[attribute] = parameter


def offload(module: nn.Module) -> None:
    replace(module, Q1, nn.Parameter(module.get_parameter(Q1).to("meta")))


def zero3(module: nn.Module) -> None:
    module.get_parameter(Q1).ds_id = 3  # type: ignore[attr-defined]


def subclass(kind: type[nn.Parameter]) -> Callable[[nn.Module], None]:
    return lambda module: replace(module, Q1, kind(module.get_parameter(Q1).detach().clone()))


def int8(module: nn.Module) -> None:
    replace(module, Q1, nn.Parameter(module.get_parameter(Q1).to(torch.int8), requires_grad=False))


def tie(module: nn.Module) -> None:
    module.get_submodule("model.layers.0.self_attn.q_proj").weight = module.get_parameter(Q1)


def overlap(module: nn.Module) -> None:
    both = torch.cat([module.get_parameter(Q1).detach(), torch.zeros(8, 32)])
    replace(module, Q1, nn.Parameter(both[:32]))
    module.register_buffer("view", both[31:])


def gptq(module: nn.Module) -> None:
    layer = module.get_submodule("model.layers.1.self_attn.q_proj")
    del layer.weight
    layer.register_buffer("qweight", torch.zeros(4, 32, dtype=torch.int32))


def fsdp(module: nn.Module) -> None:
    inner: Any = module.model
    module.model = nn.Module()
    module.model.add_module("_fsdp_wrapped_module", inner)


def narrow(module: nn.Module) -> None:
    replace(module, Q1, nn.Parameter(module.get_parameter(Q1)[:16].clone()))


def fuse(module: nn.Module) -> None:
    attention = module.get_submodule("model.layers.1.self_attn")
    attention.qkv_proj = attention.q_proj
    del attention.q_proj


MODULE_FAULTS = [
    (offload, "is offloaded .meta device.; load the model without"),
    (zero3, "sharded by DeepSpeed ZeRO-3; merge before deepspeed"),
    (subclass(DTensor), "is a DTensor, sharded by FSDP or tensor parallelism"),
    (subclass(Params4bit), "is quantised by bitsandbytes .Params4bit."),
    (subclass(Unheard), "is a Unheard; expected a plain torch parameter"),
    (int8, r"is torch\.int8; expected float32"),
    (tie, r"shares its storage with model\.layers\.0\.self_attn\.q_proj\.weight"),
    (overlap, "shares its storage with view"),
    (gptq, "found qweight, expected weight and bias only; quantised .GPTQ"),
    (fsdp, "_fsdp_wrapped_module.* says it is sharded by FSDP"),
    (narrow, r"q_proj\.weight is \[16, 32\] in LlamaForCausalLM in memory .*\[32, 32\]"),
    (
        fuse,
        r"layer 1, self_attn\.q_proj\.weight: missing; this model keeps q, k and v in .*\(self_attn\.qkv_proj\.weight",
    ),
]


@pytest.mark.parametrize(("harm", "expected"), MODULE_FAULTS)
@pytest.mark.parametrize("known", [True, False])
def test_faulty_module(llamas: Pair, harm: Callable[[nn.Module], None], expected: str, known: bool) -> None:
    """Whether the module's checkpoint is known or not."""
    module = load(llamas.mllm)
    harm(module)
    refused(module, llamas, expected, checkpoint=llamas.mllm if known else None)


def test_parameters_side_by_side_in_one_buffer_are_fine(llamas: Pair) -> None:
    module = load(llamas.mllm)
    names = [Q1, K2]
    pool = torch.cat([module.get_parameter(name).detach().flatten() for name in names])
    for name, part in zip(names, pool.split([1024, 512]), strict=True):
        replace(module, name, nn.Parameter(part.view(module.get_parameter(name).shape)))
    expected = load(llamas.mllm)
    for each in (module, expected):
        merge_in_place(each, llamas.spec(), checkpoint=llamas.mllm)
    assert not changed(bits(expected), module)


def test_a_restored_parameter_is_checked_as_well(llamas: Pair) -> None:
    module = load(llamas.mllm)
    merge_in_place(module, llamas.spec(layers="1:2"), checkpoint=llamas.mllm)
    offload(module)
    refused(module, llamas, "is offloaded", spec=llamas.spec(layers="2:3"))
    fuse(module)
    refused(module, llamas, "merged before, and no longer there", spec=llamas.spec(layers="2:3"))


# ---- errors in the middle of writing ---------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "merged"])
def module(request: pytest.FixtureRequest, llamas: Pair) -> nn.Module:
    """A model in one of the two states that an error has to leave as they are."""
    module = load(llamas.mllm, torch.bfloat16)
    if request.param == "merged":
        merge_in_place(module, llamas.spec(layers="0:2", modules="all"), checkpoint=llamas.mllm)
    return module


def interrupt_after(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, count: int, error: BaseException) -> None:
    original, calls = getattr(where, name), iter(range(10_000))

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == count:
            raise error
        return original(*arguments, **keywords)

    monkeypatch.setattr(where, name, wrapped)


@pytest.mark.parametrize("count", [0, 1, 17])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(5, "Input/output error"), torch.OutOfMemoryError("out"), MergeError("x")]
)
def test_an_error_half_way(
    module: nn.Module, llamas: Pair, monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException
) -> None:
    before, spec = bits(module), llamas.spec()
    with monkeypatch.context() as patched:
        interrupt_after(patched, Checkpoint, "tensor", count, error)
        with pytest.raises(type(error)):
            merge_in_place(module, spec, checkpoint=llamas.mllm)
    assert not changed(before, module)
    again = merge_in_place(module, spec, checkpoint=llamas.mllm)
    expected = load(llamas.mllm, torch.bfloat16)
    merge_in_place(expected, spec, checkpoint=llamas.mllm)
    assert again.tensors == 16 and not changed(bits(expected), module), "the module's own record was undone too"


@pytest.mark.parametrize(("side", "remedy"), [("base", "merge again"), ("mllm", "load the model again")])
def test_a_checkpoint_that_is_overwritten_meanwhile(
    llamas: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, remedy: str
) -> None:
    own = {name: Path(shutil.copytree(getattr(llamas, name), tmp_path / name)) for name in ("mllm", "base")}
    other, module = write_llama(tmp_path / "other", 9), load(own["mllm"])
    before, tensor, calls = bits(module), Checkpoint.tensor, iter(range(10_000))

    def meanwhile(self: Checkpoint, name: str) -> Tensor:
        if next(calls) == 7:
            (own[side] / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
        return tensor(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "tensor", meanwhile)
        with pytest.raises(MergeError, match=f"{side}: changed on disk while it was merged.*; {remedy}"):
            merge_in_place(module, llamas.spec(), checkpoint=own["mllm"], base=own["base"])
    if side == "base":
        assert not changed(before, module)
        merge_in_place(module, llamas.spec(), checkpoint=own["mllm"], base=own["base"])


def test_a_read_error_names_tensor_and_file(llamas: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from plam_eval.merging.tensor_files import SafetensorsFile

    interrupt_after(monkeypatch, SafetensorsFile, "tensor", 5, OSError(5, "Input/output error"))
    module = load(llamas.mllm)
    refused(module, llamas, r"proj\.\w+ cannot be read from model\.safetensors: .*Input/output error")


@pytest.mark.parametrize("count", range(0, 12, 3))
def test_ctrl_c_while_writing_and_again_while_undoing(
    module: nn.Module, llamas: Pair, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    before = bits(module)
    original, calls = Tensor.copy_, iter(range(10_000))

    def copy(self: Tensor, value: Tensor, *rest: Any) -> Tensor:
        call = next(calls)
        result = original(self, value, *rest)
        if call in (count, count + 2):  # written, and then the signal arrives
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "copy_", copy)
        with pytest.raises(KeyboardInterrupt):
            merge_in_place(module, llamas.spec(), checkpoint=llamas.mllm)
    assert next(calls) > count
    assert not changed(before, module)


def test_nothing_is_written_to_disk_where_checkpoints_hold_the_way_back(
    module: nn.Module, llamas: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import collections

    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(undo.shutil, "disk_usage", lambda folder: usage(1, 1, 0))
    monkeypatch.setattr(undo.tempfile, "TemporaryFile", lambda **_: pytest.fail("a file was opened"))
    for layers, base in (("1:3", llamas.base), ("0:2", llamas.mllm)):
        before = bits(module)
        with monkeypatch.context() as patched:
            interrupt_after(patched, Checkpoint, "tensor", 20, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                merge_in_place(module, llamas.spec(layers=layers, rule="noise"), checkpoint=llamas.mllm, base=base)
        assert not changed(before, module)
        merge_in_place(module, llamas.spec(layers=layers, rule="noise"), checkpoint=llamas.mllm, base=base)
    before = bits(module)
    interrupt_after(monkeypatch, Tensor, "copy_", 9, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        merge_in_place(module, None)
    assert not changed(before, module)


def test_a_way_back_that_is_in_no_checkpoint_needs_room(llamas: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    import collections

    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(undo.shutil, "disk_usage", lambda folder: usage(1, 1, 0))
    refused(load(llamas.mllm), llamas, "needed to be able to undo the merge; free some, or set TMP", checkpoint=None)
    merged = load(llamas.mllm)
    merge_in_place(merged, llamas.spec(), checkpoint=llamas.mllm)
    twin = copy.deepcopy(merged)  # which knows of no base
    refused(twin, llamas, "needed to be able to undo the merge; free some, or set TMPDIR")


def overwrite_base(module: nn.Module, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_llama(base.with_name("other"), 9)
    (base / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())  # in place: it is mapped


def train(module: nn.Module, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module.get_parameter(Q1).data[3, 4] += 1  # which no version counter shows


def cast(module: nn.Module, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module.float()


def register_anew(module: nn.Module, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.FUNCTIONS, "weighted_sum", lambda model, base, weights, generator: model * 2)


@pytest.mark.parametrize("change", [overwrite_base, train, cast, register_anew])
def test_what_another_merge_would_not_bring_back_is_kept(
    llamas: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    base, module = shutil.copytree(llamas.base, tmp_path / "base"), load(llamas.mllm, torch.bfloat16)
    merge_in_place(module, llamas.spec(), checkpoint=llamas.mllm, base=base)
    change(module, base, monkeypatch)
    refused(module, llamas, "NaN", base=write_llama(tmp_path / "nan", 2, edit=put(K2, poison(float("nan")))))


def test_numbers_too_large_for_a_norm_are_a_fault(llamas: Pair, tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base", 2, edit=put(Q1, lambda tensor: poison(1e200)(tensor.double())))
    refused(load(llamas.mllm), llamas, rf"{Q1} of .* elements of up to 1e\+200", base=base)


def test_a_tensor_that_is_not_what_its_header_said(llamas: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    base, original = Checkpoint.open(llamas.base), Checkpoint.tensor

    def tensor(self: Checkpoint, name: str) -> Tensor:
        found = original(self, name)
        return found[:1, :1] if self is base and name == Q1 else found

    monkeypatch.setattr(Checkpoint, "tensor", tensor)
    refused(load(llamas.mllm), llamas, rf"{Q1} of .* is \[1, 1\]; expected \[32, 32\]", base=base)


def test_an_interrupt_once_all_is_written(module: nn.Module, llamas: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bits(module)
    interrupt_after(monkeypatch, merge, "MergeReport", 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        merge_in_place(module, llamas.spec(), checkpoint=llamas.mllm)
    assert not changed(before, module)


def test_a_model_that_is_thrown_away_needs_no_way_back(
    llamas: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(write_llama(tmp_path / "base", 2, edit=put(K2, poison(float("nan")))))
    monkeypatch.setattr(merge, "UndoLog", lambda *_: pytest.fail("a way back was kept"))
    monkeypatch.setattr(undo.shutil, "disk_usage", lambda folder: pytest.fail("room was looked for"))
    with pytest.raises(MergeError, match=r"k_proj\.weight of .* holds NaN or Inf"):
        merge_in_place(load(llamas.mllm), llamas.spec(base=base), checkpoint=llamas.mllm, thrown_away_on_error=True)
    module, expected = load(llamas.mllm), load(llamas.mllm)
    merge_in_place(module, llamas.spec(), checkpoint=llamas.mllm, thrown_away_on_error=True)
    monkeypatch.undo()
    merge_in_place(expected, llamas.spec(), checkpoint=llamas.mllm)
    assert not changed(bits(expected), module)


def test_a_disk_that_fills_up_on_the_way(llamas: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(llamas.mllm, torch.bfloat16)
    before, original = bits(module), undo.tempfile.TemporaryFile

    class Filling:
        def __init__(self, **arguments: Any) -> None:
            self.file, self.writes = original(**arguments), 0

        def write(self, data: Any) -> int:
            self.writes += 1
            if self.writes == 4:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def __enter__(self) -> Filling:
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(undo.tempfile, "TemporaryFile", Filling)
    with pytest.raises(OSError, match="No space left"):
        merge_in_place(module, llamas.spec())
    assert not changed(before, module)


def test_an_undo_that_fails_says_that_the_model_is_lost(llamas: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    original = undo.tempfile.TemporaryFile

    class Unreadable:
        def __init__(self, **arguments: Any) -> None:
            self.file = original(**arguments)

        def read(self, count: int) -> bytes:
            raise OSError(5, "Input/output error")

        def __enter__(self) -> Unreadable:
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(undo.tempfile, "TemporaryFile", Unreadable)
    interrupt_after(monkeypatch, Checkpoint, "tensor", 9, KeyboardInterrupt())
    with pytest.raises(RuntimeError, match="could not be undone: load the model again"):
        merge_in_place(load(llamas.mllm), llamas.spec())


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["weighted_sum", "normalized", "self_scale"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_beyond_the_model_is_that_of_a_part(
    llamas: Pair, monkeypatch: pytest.MonkeyPatch, rule: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(arithmetic, "_PART", 32)  # in proportion to the tensors
    module = load(llamas.mllm, dtype)
    file = (llamas.mllm / "model.safetensors").stat().st_size
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        merge_in_place(module, llamas.spec(modules="mlp", rule=rule), checkpoint=llamas.mllm)
    events = profile.profiler.kineto_results.events()
    records = sorted(
        (event.start_ns(), event.nbytes())
        for event in events
        if event.name() == "[memory]" and abs(event.nbytes()) < file
    )
    # A mapped file counts as one allocation of its size, but takes memory only as far as the system can spare it.
    held = list(itertools.accumulate(count for _, count in records))
    plain = 0 if dtype == torch.float32 else 32 * 48 * dtype.itemsize  # a tensor cast, to be found equal
    assert 2 * 32 * 4 <= max(held) <= plain + 4096, "operands of a part in float32, and their result"
    assert held[-1] == 0


def test_a_range_is_checked_in_the_module_too(llamas: Pair) -> None:
    module: Any = load(llamas.mllm)
    del module.model.layers[2]
    refused(module, llamas, "does not fit LlamaForCausalLM in memory, which has 2 decoder layers")


def test_a_module_without_config_is_warned_about(llamas: Pair) -> None:
    module: Any = load(llamas.mllm)
    module.config = None
    report = merge_in_place(module, llamas.spec())
    assert "has no config" in report.warnings[0]
