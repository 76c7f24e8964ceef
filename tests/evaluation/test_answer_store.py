"""Answers on disk: what is known of a document, and what a kill or a full disk leaves."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest

from plam_eval.errors import FolderError
from plam_eval.evaluation import answer_store
from plam_eval.evaluation.answer_store import AnswerStore, document_of, prompt_problem
from plam_eval.harness.requests import key_of


def request(doc_id: int, prompt: str = "Is there a dog?") -> Any:
    return SimpleNamespace(task_name="pope", doc_id=doc_id, args=(prompt, None, {}))


def test_what_is_known_of_a_document(tmp_path):
    mine, other = AnswerStore(tmp_path, 0), AnswerStore(tmp_path, 1)
    for store, doc_id, text in ((mine, 0, "yes"), (other, 0, "no"), (other, 1, "no")):
        store.add({**document_of(request(doc_id)), "text": text})
    assert [record["text"] for record in mine.of(key_of(request(0)))] == ["yes"] and not mine.of(("pope", 1))
    store = AnswerStore(tmp_path, 0)
    assert not store.of(("pope", 0))
    store.load(lambda record: "text" in record, lambda record: record["text"] == "no")
    assert [record["text"] for record in store.of(("pope", 0))] == ["no"] and len(store.of(("pope", 1))) == 1
    store.load(lambda record: "text" in record)
    assert [record["text"] for record in store.of(("pope", 0))] == ["no", "yes", "no"]  # by process, then by line


def test_a_line_that_a_kill_cut_off_is_answered_again(tmp_path):
    store = AnswerStore(tmp_path, 0)
    store.add(document_of(request(0)))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + b'{"task": "pope", "doc')
    store = AnswerStore(tmp_path, 0)
    store.add(document_of(request(1)))
    assert [record["doc_id"] for record in store.read()] == [0, 1]


def test_another_prompt_is_another_document():
    record = document_of(request(7))
    assert prompt_problem(request(7), record, "that was answered") is None
    assert prompt_problem(request(7, "Is there a cat?"), record, "that was answered") == (
        "document 7 of pope is another than the one that was answered (its prompt changed); name another --output"
    )


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    file = AnswerStore(tmp_path, 0)
    file.add({"task": "a", "doc_id": 0})
    dumps = json.dumps

    class Full(str):
        def __add__(self, other: str) -> str:
            with file._file.open("a") as out:
                out.write('{"task": "a", "doc')
            raise OSError("no space left on device")

    monkeypatch.setattr(answer_store.json, "dumps", lambda *args, **kwargs: Full("x"))
    with pytest.raises(OSError, match="no space"):
        file.add({"task": "a", "doc_id": 1})
    monkeypatch.setattr(answer_store.json, "dumps", dumps)
    file.add({"task": "a", "doc_id": 2})
    assert [line["doc_id"] for line in AnswerStore(tmp_path, 0).read()] == [0, 2]


def test_a_line_of_anything_is_left_out(tmp_path):
    """Of numbers that no array holds, of lists inside lists, or of text that no file holds."""
    (tmp_path / "answers.rank1.jsonl").write_bytes(
        b'{"task": "a", "doc_id": 1, "of": 1e999}\n'
        + b"[" * 100_000
        + b"\n"
        + b'{"d": '
        + b"[" * 200
        + b"]" * 200
        + b"}\n"
        b'{"task": "a", "doc_id": 2, "of": 7, "text": "half \\ud83d"}\n'
    )

    def is_whole(record):
        return int(record["of"]) == 7  # OverflowError for the first one

    assert list(AnswerStore(tmp_path, 0).read(is_whole)) == [{"task": "a", "doc_id": 2, "of": 7, "text": "half ?"}]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "answers.rank1.jsonl")
    store = AnswerStore(tmp_path, 0)
    assert list(store.read()) == []
    with pytest.raises(FolderError, match="found no file that can be written"):
        AnswerStore(tmp_path, 1)
