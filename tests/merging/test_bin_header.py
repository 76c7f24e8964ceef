"""Headers of torch `.bin` files: what torch writes is told, what would run code is not read, and a hub sends little."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plam_eval.errors import CheckpointError
from plam_eval.merging.bin_header import BinHeaderError, LegacyError, read_header, tensors_of
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import merge_in_place
from plam_eval.merging.plan import plan_merge
from tests.helpers.hub import COMMIT, Hub, serving
from tests.helpers.llamas import Pair, load, shard, write_llama

LINEAR = torch.nn.Linear(3, 4)
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.bool, torch.uint16, torch.float8_e4m3fn),
)
CONTENTS: dict[str, Any] = {
    "a state dict": LINEAR.state_dict(),
    "parameters": dict(LINEAR.named_parameters()),
    "every dtype": {str(dtype): torch.zeros(2, 3).to(dtype) for dtype in DTYPES},
    "views and scalars": {"one": torch.tensor(3), "view": torch.zeros(4, 6).t()[:2], "empty": torch.zeros(0, 5)},
    "and other things": {
        "w": torch.zeros(2), "settings": [1, 2.5, "x", None, True, 2**70, (1, (2,))], "size": torch.Size([1, 2]),
        "ordered": OrderedDict(a=1),
    },
}  # fmt: skip


def saved(content: Any, **settings: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file, **settings)
    file.seek(0)
    return file


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("what", CONTENTS)
def test_what_torch_writes_is_told(what: str, protocol: int) -> None:
    content = CONTENTS[what]
    found = read_header(saved(content, pickle_protocol=protocol))
    expected = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    assert {name: (record.shape, record.dtype) for name, record in found.items()} == {
        name: (tuple(value.shape), value.dtype) for name, value in expected.items()
    }


class Runs:
    def __init__(self, called: Any, *arguments: Any) -> None:
        self.called, self.arguments = called, arguments

    def __reduce__(self) -> Any:
        return self.called, self.arguments


class Plain:
    """An object with attributes, which unpickling would import and build."""

    def __init__(self) -> None:
        self.x = 1


NESTED = b"\x80\x02)" + b"\x85" * 100_000
HOSTILE: dict[str, bytes] = {
    "a call": pickle.dumps({"w": Runs(os.system, "touch ran")}, 2),
    "a call by a name on the stack": pickle.dumps({"w": Runs(os.system, "touch ran")}, 4),
    "a class": pickle.dumps({"w": Plain()}, 2),
    "a name that torch would import for it": b"\x80\x02ctorch\n_dynamo\n)R.",
    "an old instance": b"(S'touch ran'\nios\nsystem\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "attributes of a list": b"\x80\x02]}b.",
    "a persistent id that is text": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "a storage of a class of its own": b"\x80\x02(X\x07\x00\x00\x00storagecos\nsystem\nK\x00K\x00K\x01tQ.",
    "a nested key": NESTED + b"q\x00}h\x00K\x01s.",
    "nesting alone": NESTED + b".",
    "a memo that was never filled": b"\x80\x02j\xff\xff\xff\x7f.",
    "no mark": b"\x80\x02t.",
    "an empty stack": b"\x80\x02.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "noise": bytes(range(256)),
    "a list": pickle.dumps([1], 2),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_mapping_of_tensors_is_not_read(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BinHeaderError):
        tensors_of(HOSTILE[what])
    assert not list(tmp_path.iterdir())


def test_a_memo_of_any_number_takes_no_memory() -> None:
    """Python's own unpickler makes a table of as many entries as the number of one."""
    assert tensors_of(b"\x80\x02}r\xff\xff\xff\x7f.") == {}


@pytest.mark.parametrize("kind", ["compressed", "two", "none", "truncated", "directory"])
def test_archives_that_torch_does_not_write(kind: str) -> None:
    pickled, file = pickle.dumps({}, 2), io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED) as archive:
        for folder in {"two": ("a", "b"), "none": ()}.get(kind, ("a",)):
            archive.writestr(f"{folder}/data.pkl", pickled)
    content = bytearray(file.getvalue())
    if kind == "truncated":
        del content[-30:]
    if kind == "directory":  # which says that it is larger than any memory
        struct.pack_into("<I", content, len(content) - 10, 0xFFFFFFF0)
    with pytest.raises(BinHeaderError):
        read_header(io.BytesIO(content))


def test_the_format_of_before_torch_1_6() -> None:
    with pytest.raises(LegacyError):
        read_header(saved({"w": torch.zeros(2)}, _use_new_zipfile_serialization=False))


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = shard(write_llama(tmp_path / "hub" / "org" / "base", 2), bin=True)
    for file in folder.glob("*.bin"):  # as large a shard as shows what was left out
        content = torch.load(file)
        torch.save({**content, f"beside-{file.name}": torch.zeros(1_000_000)}, file)
    with serving(tmp_path / "hub", tmp_path / "cache", monkeypatch) as hub:
        yield hub


LAYER1 = "pytorch_model-00002-of-00004.bin"


def test_a_plan_with_bin_shards_reads_their_headers(
    hub: Hub, llamas: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = llamas.spec(base="org/base", layers="1:2")
    plan = plan_merge(spec, model=Checkpoint.open(llamas.mllm), base=Checkpoint.open("org/base"))
    local = plan_merge(
        spec, model=Checkpoint.open(llamas.mllm), base=Checkpoint.open(tmp_path / "hub" / "org" / "base")
    )
    assert plan.tensors == local.tensors
    sent = {file: count for file, count in hub.downloaded().items() if file.endswith(".bin")}
    assert sent.keys() == {LAYER1} and sent[LAYER1] <= 3 * (1 << 16), "of four million bytes"
    assert not list((tmp_path / "cache").rglob("*.bin")) and "Downloads" not in capsys.readouterr().err

    model, expected = load(llamas.mllm), load(llamas.mllm)
    merge_in_place(model, spec, checkpoint=llamas.mllm)
    said = capsys.readouterr().err
    assert f"Downloads 4.0 MB of org/base (commit {COMMIT[:12]}) into the hub's cache: {LAYER1}" in said
    assert {path.name for path in (tmp_path / "cache").rglob("*.bin")} == {LAYER1}
    merge_in_place(expected, spec, checkpoint=llamas.mllm, base=llamas.base)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_what_needs_the_whole_file_is_not_downloaded_unasked(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, hf_hub_download

    q1 = "model.layers.1.self_attn.q_proj.weight"
    hub.ranges = False
    with pytest.raises(CheckpointError, match=rf"all of it, 4\.0 MB, .*unasked.*`hf download org/base {LAYER1}`"):
        Checkpoint.open("org/base").shape(q1)
    assert not list((tmp_path / "cache").rglob("*.bin"))

    file = tmp_path / "hub" / "org" / "base" / LAYER1
    content = torch.load(file)
    torch.save(content, file, _use_new_zipfile_serialization=False)
    hub.ranges = True
    with pytest.raises(CheckpointError, match=r"\(4\.0 MB, not downloaded\) cannot be used: .*before torch 1\.6"):
        Checkpoint.open("org/base").shape(q1)
    torch.save({"w": torch.zeros(2), "code": Runs(os.system, "true")}, file)
    with pytest.raises(CheckpointError, match=r"holds more than tensors \(posix\.system\).*hf download"):
        Checkpoint.open("org/base").shape(q1)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=rf"{LAYER1} is not in the local cache, and HF_HUB_OFFLINE is set"):
        Checkpoint.open("org/base").shape(q1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    torch.save(content, file)
    hf_hub_download("org/base", LAYER1)
    hub.ranges = False
    assert Checkpoint.open("org/base").shape(q1) == (32, 32), "what is in the cache needs no request"


@pytest.mark.parametrize(
    ("content", "call", "expected"),
    [
        (b"N" * 2000, b"ctorch\nSize\n", "found list, expected tuple"),
        (b"](K\x01K\x02e" * 200, b"ccollections\nOrderedDict\n", "again and again"),
    ],
)
def test_a_list_is_not_copied_again_and_again(content: bytes, call: bytes, expected: str) -> None:
    """Each call would take many times the bytes of the list, for a few of the pickle."""
    pickled = b"\x80\x02](" + content + b"eq\x00" + (call + b"h\x00\x85R") * 100 + b"."
    with pytest.raises(BinHeaderError, match=expected):
        tensors_of(pickled)


def test_a_name_without_end_is_shortened() -> None:
    with pytest.raises(
        BinHeaderError, match=r"more than tensors \(os\.s{20,80}\.\.\. \(100003 characters\)\)"
    ) as error:
        tensors_of(b"\x80\x02cos\n" + b"s" * 100_000 + b"\n)R.")
    assert len(str(error.value)) < 300
