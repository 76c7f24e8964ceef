"""The folder of `plam attend`: read back strictly, opened for the same settings only, and never anybody else's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plam_eval import table_files
from plam_eval.errors import DamagedFileError, FolderError, OutsideError
from plam_eval.evaluation.attend import folder as layout
from plam_eval.evaluation.attend.folder import AttendError, check_folder, load, open_store, read_settings
from plam_eval.evaluation.attend.shown import ShownDocument, file_of
from tests.helpers.attend_folders import write_attend_folder


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_attend_folder(tmp_path / "attend", depth=True, tasks={"gqa": 4, "pope": 2})


def test_what_was_written_is_read_back(written: Path) -> None:
    attended = load(written)
    assert attended.settings == ["plain", "merged", "self_scale", "normalized"] and attended.merged_layers == (
        4,
        5,
        6,
        7,
    )
    assert len(attended.measures) == 6 * 4 * 8 * 2 and len(attended.answers) == 6 * 4
    assert attended.depth is not None and len(attended.depth) == 6 * 4 * 9
    stored = pd.read_parquet(written / layout.MEASURES_FILE)
    pd.testing.assert_frame_equal(attended.measures, stored)
    assert [ShownDocument.read(file).doc_id for file in attended.shown] == [0, 1]
    assert "6 documents: plain, merged, self_scale, normalized" in repr(attended)


def test_what_is_empty_or_missing_is_a_value_that_is_not_there(written: Path) -> None:
    answers = pd.read_parquet(written / layout.ANSWERS_FILE)
    nothing = answers["doc_id"] == 0
    answers[["score", "image_tokens"]] = answers[["score", "image_tokens"]].astype(float)
    answers["parsable"] = answers["parsable"].astype(object)
    answers.loc[nothing, ["answer", "score", "image_tokens", "parsable"]] = [None, np.nan, np.nan, None]
    answers.loc[nothing, "skipped"] = "it has no image"
    answers.to_parquet(written / layout.ANSWERS_FILE)
    (written / layout.DEPTH_FILE).unlink()
    attended = load(written)
    assert attended.depth is None
    assert attended.answers["skipped"].dropna().unique().tolist() == ["it has no image"]
    assert set(attended.answers.loc[nothing, "answer"]) == {None}


@pytest.mark.parametrize("name", [layout.MEASURES_FILE, layout.ANSWERS_FILE, layout.DEPTH_FILE])
def test_a_damaged_table_is_told_with_what_to_do(written: Path, name: str) -> None:
    content = (written / name).read_bytes()
    (written / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedFileError, match=f"{name}: cannot be read .*run the same `plam attend` again"):
        load(written)
    table = _emptied(written, name, content)
    table.drop(columns="doc_id").to_parquet(written / name)
    with pytest.raises(DamagedFileError, match=f"{name}: has no column doc_id"):
        load(written)


def _emptied(written: Path, name: str, content: bytes) -> pd.DataFrame:
    (written / name).write_bytes(content)
    return pd.read_parquet(written / name)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("setting", "other"),
        ("layer", 8),
        ("sinks", "both"),
        ("task", None),
        ("entropy", "high"),
        ("cluster", 3),
        ("doc_id", 0.5),
    ],
)
def test_values_that_are_never_written_are_told(written: Path, column: str, value: Any) -> None:
    table = pd.read_parquet(written / layout.MEASURES_FILE)
    table[column] = [value] * len(table)
    table.to_parquet(written / layout.MEASURES_FILE)
    with pytest.raises(DamagedFileError, match=rf"attention.parquet: {column}: found values"):
        load(written)


def test_two_rows_of_one_document_are_told(written: Path) -> None:
    table = pd.read_parquet(written / layout.MEASURES_FILE)
    pd.concat([table, table.head(1)]).to_parquet(written / layout.MEASURES_FILE)
    with pytest.raises(DamagedFileError, match="has two rows of one task, doc_id, setting, layer, sinks"):
        load(written)


@pytest.mark.parametrize("name", [layout.MEASURES_FILE, layout.ANSWERS_FILE, layout.DEPTH_FILE])
def test_a_table_that_lacks_rows_is_told(written: Path, name: str) -> None:
    """Measures are laid out by document, setting and layer: of few rows that could be any amount of memory."""
    pd.read_parquet(written / name).drop(index=3).to_parquet(written / name)
    with pytest.raises(DamagedFileError, match=rf"{name}: found \d+ rows, expected \d+: each .* of a document"):
        load(written)


def test_rows_of_few_bytes_cannot_take_any_amount_of_memory(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written / layout.ANSWERS_FILE
    table = pq.read_table(file)
    text = pa.array(["x" * 1_000_000]).take(pa.array(np.zeros(len(table), int))).dictionary_encode()
    pq.write_table(table.set_column(table.schema.get_field_index("answer"), "answer", text), file)
    assert len(load(written).answers) == 24
    monkeypatch.setattr(table_files, "_MOST_TEXT", 23_999_999)
    with pytest.raises(DamagedFileError, match="more than 23999999 bytes of text in column answer"):
        load(written)
    monkeypatch.setattr(table_files, "_MOST_ROWS", 383)
    with pytest.raises(DamagedFileError, match=r"attention.parquet: cannot be read \(384 rows, of 383 at most\)"):
        load(written)


def test_lists_in_a_table_are_told(written: Path) -> None:
    file = written / layout.MEASURES_FILE
    table = pd.read_parquet(file)
    table["entropy"] = [[0.5]] * len(table)
    table.to_parquet(file)
    with pytest.raises(DamagedFileError, match="lists in column entropy, expected single values"):
        load(written)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_layers": 0}, "num_layers: found 0"),
        ({"num_layers": True}, "num_layers: found True"),
        ({"num_layers": 10**9}, "num_layers: found 1000000000"),
        ({"queries": "first"}, "queries: found 'first'"),
        ({"wrapper": None}, "wrapper: found None"),
        ({"settings": {"merged": None}}, "expected 'plain' first, and null for it"),
        ({"settings": {"plain": None, "merged": None}}, "merged: .*expected a plateau spec"),
        ({"settings": {"plain": None, "merged": "/etc/passwd"}}, "merged: .*expected a plateau spec"),
        ({"settings": {"plain": None, "merged": {"base_model": "b"}}}, "layers: missing"),
    ],
)
def test_settings_that_are_none_are_told(written: Path, change: dict[str, Any], says: str) -> None:
    file = written / layout.SETTINGS_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DamagedFileError, match=says):
        load(written)


def test_nothing_is_read_from_outside_of_the_folder(written: Path, tmp_path: Path) -> None:
    inside = written / layout.MEASURES_FILE
    inside.rename(tmp_path / "elsewhere.parquet")
    inside.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(OutsideError, match="expected a file inside"):
        load(written)
    inside.unlink()
    (tmp_path / "elsewhere.parquet").rename(inside)
    drawn = written / layout.SHOWN / "0.npz"
    drawn.rename(tmp_path / "0.npz")
    drawn.symlink_to(tmp_path / "0.npz")
    with pytest.raises(OutsideError, match="expected a file inside"):
        load(written)


def test_a_folder_without_an_end_says_how_to_go_on(written: Path, tmp_path: Path) -> None:
    (written / layout.ANSWERS_FILE).unlink()
    with pytest.raises(AttendError, match=r"`plam attend` has not finished .*run the same again"):
        load(written)
    with pytest.raises(AttendError, match="expected the --output of `plam attend`"):
        load(tmp_path)


def test_what_is_somebody_elses_is_not_overwritten(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    (tmp_path / layout.ANSWERS_FILE).write_text("mine")
    with pytest.raises(FolderError, match=r"holds answers.parquet and no attend.json"):
        check_folder(tmp_path)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("attention.png", "attention.svg", "depth.png", "depth.svg", "differences.csv", "shown", "plain"),
        *("attend.lock", "answers.rank0.jsonl", "answers.rank7.jsonl", "findings.json"),
    ],
)
def test_no_name_that_is_written_is_somebody_elses(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(FolderError, match=f"holds {name} and no attend.json"):
        check_folder(tmp_path)


def test_a_lock_that_a_kill_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / layout.LOCK).touch()
    check_folder(tmp_path)


def document(task: str = "gqa") -> dict[str, Any]:
    return {"task": task, "doc_id": 0, "prompt": "p"}


@pytest.fixture
def made_with(written: Path) -> dict[str, Any]:
    return read_settings(written)


def test_documents_of_other_settings_are_not_mixed(tmp_path: Path, made_with: dict[str, Any]) -> None:
    folder = tmp_path / "out"
    open_store(folder, made_with, 0).add(document())
    assert list(open_store(folder, made_with, 1).read()) == [document()]
    described = json.loads(json.dumps(made_with))
    described["settings"]["merged"] |= {"source": "another text about the same merge", "weights": {"model": 0.9}}
    described["settings"]["merged"]["weights"] = {"model": 0.9, "base_model": 0.3}
    open_store(folder, described, 0)

    def refused(change: Callable[[dict[str, Any]], Any], says: str) -> None:
        other = json.loads(json.dumps(made_with))
        change(other)
        with pytest.raises(AttendError, match=says):
            open_store(folder, other, 0)

    refused(lambda other: other.update(queries="answer"), r"queries \(was 'last', is 'answer'\).*another --output")
    refused(lambda other: other["settings"]["merged"].update(layer_range=[2, 8]), r"setting merged \(was .*4:8.*2:8")
    merged: dict[str, Any] = {"rule": "trim", "parameters": {"density": 0.4}}
    refused(lambda other: other["settings"]["merged"].update(merged), "is 'trim; density 0.4 of layers 4:8")
    merged |= {"rule": "ties", "ancestor": "org/old"}
    refused(lambda other: other["settings"]["merged"].update(merged), "setting merged .*ancestor org/old")
    refused(lambda other: other["settings"]["merged"].update(layer_range=None, layers=[4, 7]), r"is '.*layers 4\+7")
    renamed = json.loads(json.dumps(made_with))
    renamed["settings"]["normalized"] |= {"rule": "weighted_sum", "weights": {"model": 0.75, "base_model": 0.25}}
    open_store(folder, renamed, 0)  # to the bit what it was
    refused(lambda other: other["settings"].pop("normalized"), r"setting normalized \(was .*, is None\)")
    refused(lambda other: other.update(image={"sha256": "a"}), "image")
    assert read_settings(folder) == made_with


def test_settings_without_a_document_give_way(tmp_path: Path, made_with: dict[str, Any]) -> None:
    open_store(tmp_path / "out", made_with, 0)
    open_store(tmp_path / "out", {**made_with, "queries": "answer"}, 0)
    assert read_settings(tmp_path / "out")["queries"] == "answer"


def test_a_shown_document_has_a_file_that_stays_in_its_folder() -> None:
    assert file_of("gqa", 12) == "gqa-12.npz" and file_of("../x/y", 0) == "_x_y-0.npz"
