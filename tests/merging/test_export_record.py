"""The record in an exported checkpoint's folder: written, read back, and refused where it is damaged."""

import json

import pytest

from plam_eval.errors import CheckpointError
from plam_eval.merging.export_record import FILE, ExportedFile, ExportRecord, read_export_record

RECORD = ExportRecord(
    created="2026-03-01T12:00:00+00:00",
    command="plam export --model owner/mllm --plateau demo --output merged",
    spec={"base_model": "owner/base"},
    digest="ab" * 32,
    model={"name": "owner/mllm"},
    base={"name": "owner/base"},
    inputs={"model": {"config.json": "00" * 32}},
    files={"model.safetensors": ExportedFile(sha256="11" * 32, bytes=10, how="merged")},
    merge={"tensors": 1},
    versions={"plam-eval": "0.1.0"},
    notes=("float16 is rounded again in bfloat16",),
)


def test_it_is_read_back_as_it_was_written(tmp_path):
    RECORD.write(tmp_path)
    assert read_export_record(tmp_path) == RECORD and RECORD.sides.keys() == {"model", "base"}
    assert "ancestor" not in json.loads((tmp_path / FILE).read_text())
    third = RECORD.model_copy(update={"ancestor": {"name": "owner/old"}})
    third.write(tmp_path)
    assert read_export_record(tmp_path) == third and third.sides["ancestor"] == {"name": "owner/old"}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", 2, "format: found 2"),
        ("digest", 7, "digest: found 7"),
        ("files", {"x": {"sha256": "1", "bytes": 3, "how": "guessed"}}, "files.x.how"),
        ("files", {"x": {"sha256": "1", "bytes": 3, "how": "copied", "sise": 3}}, "files.x.sise: unknown key"),
        ("notes", 5, "notes"),
        ("speck", {}, "did you mean 'spec'"),
    ],
)
def test_a_damaged_record_is_refused_by_field(tmp_path, key, value, said):
    RECORD.write(tmp_path)
    file = tmp_path / FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=said) as caught:
        read_export_record(tmp_path)
    assert str(file) in str(caught.value)


def test_a_folder_without_one_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=FILE):
        read_export_record(tmp_path)
