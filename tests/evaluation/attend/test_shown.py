"""Documents to draw: read back as they were written, and refused where they hold anything else, whatever its size."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plam_eval.errors import DamagedFileError
from plam_eval.evaluation.attend import folder as layout
from plam_eval.evaluation.attend.shown import ShownDocument
from tests.helpers.attend_folders import write_attend_folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = write_attend_folder(tmp_path / "attend", tasks={"gqa": 2}, shown=1)
    return folder / layout.SHOWN / "0.npz"


def stored(file: Path) -> dict[str, Any]:
    with np.load(file) as arrays:
        return {**arrays, "words": json.loads(arrays["words"].tobytes())}


def store(file: Path, **arrays: Any) -> None:
    words = arrays.pop("words")
    words = words if isinstance(words, bytes) else json.dumps(words).encode()
    np.savez_compressed(file, words=np.frombuffer(words, np.uint8), **arrays)


def refused(file: Path) -> str:
    with pytest.raises(DamagedFileError, match="holds no document to draw") as caught:
        ShownDocument.read(file)
    return str(caught.value)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no side": lambda arrays: arrays["words"].update(size=[0, 56]),
    "an endless side": lambda arrays: arrays["words"].update(size=[float("inf"), 56]),
    "a far side": lambda arrays: arrays["words"].update(size=[10**12, 56]),
    "a box of NaN": lambda arrays: arrays["words"].update(boxes=[[float("nan"), 0, 1, 1]]),
    "a box turned round": lambda arrays: arrays["words"].update(boxes=[[9, 0, 1, 1]]),
    "many boxes": lambda arrays: arrays["words"].update(boxes=[[0, 0, 1, 1]] * 100_000),
    "a frame of no width": lambda arrays: arrays["words"].update(frame=[5, 0, 5, 56]),
    "a frame of NaN": lambda arrays: arrays["words"].update(frame=[0, 0, float("nan"), 56]),
    "an image of no pixels": lambda arrays: arrays.update(image=np.zeros((0, 5, 3), np.uint8)),
    "a wide image": lambda arrays: arrays.update(image=np.zeros((1, 5000, 3), np.uint8)),
    "maps of no cells": lambda arrays: arrays.update(maps=np.zeros((4, 8, 0, 4), np.float32)),
    "maps of infinite values": lambda arrays: arrays.update(maps=np.full((4, 8, 4, 4), np.inf, np.float32)),
    "answers that are no mapping": lambda arrays: arrays["words"].update(answers=["a", "b", "c", "d"]),
    "deep words": lambda arrays: arrays.update(words=b"[" * 100_000),
    "pickled maps": lambda arrays: arrays.update(maps=np.array([object()])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_drawn_is_told(file: Path, change: str) -> None:
    arrays = stored(file)
    CHANGES[change](arrays)
    store(file, **arrays)
    assert "delete it; the document is then not drawn" in refused(file)


def test_half_a_surrogate_pair_becomes_a_question_mark(file: Path) -> None:
    arrays = stored(file)
    arrays["words"]["question"] = "what \ud83d?"
    store(file, **arrays)
    assert ShownDocument.read(file).question == "what ??"


def repacked(file: Path, name: str, content: bytes) -> None:
    """Replace one array of a file by these bytes."""
    with zipfile.ZipFile(file) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, before in members.items():
            archive.writestr(member, content if member == f"{name}.npy" else before)


@pytest.mark.parametrize("name", ["words", "image", "maps"])
def test_a_small_file_cannot_take_any_amount_of_memory(file: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with zeros that compress to nothing, nor with a head that promises more numbers than there are."""
    asked: list[int] = []
    read = zipfile.ZipExtFile.read

    def noted(member: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        asked.append(-1 if n is None else n)
        return read(member, n)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", noted)
    whole = io.BytesIO()
    np.lib.format.write_array(whole, np.zeros((1 << 27) + 1, np.uint8))
    repacked(file, name, whole.getvalue())
    del whole
    asked.clear()
    assert "bytes" in refused(file)
    assert asked and all(0 <= count <= (1 << 27) + 1 for count in asked)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    repacked(file, name, head.getvalue())
    assert f"{name} of (1099511627776,)" in refused(file)


def test_what_is_no_file_is_not_waited_for(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DamagedFileError, match="is no file that holds something"):
        ShownDocument.read(file)
