"""The watch sees what no reader may do, so that its silence says something."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plam_eval.errors import PlamError
from tests.helpers import watching
from tests.helpers.paths import ROOT
from tests.helpers.readers import of_ours
from tests.helpers.watching import Fault, watched


class _Planted:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.getenv, ("HOME",)


def _spin() -> None:
    while True:
        pass


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "writes beside": (lambda outside: (outside / "x").write_text("x"), "for writing"),
    "appends": (lambda outside: os.close(os.open(outside / "x", os.O_CREAT | os.O_APPEND)), "for writing"),
    "makes a folder": (lambda outside: (outside / "new").mkdir(), "os.mkdir"),
    "makes a link": (lambda outside: (outside / "link").symlink_to("x"), "os.symlink"),
    "moves": (lambda outside: (outside / "given" / "own").rename(outside / "moved"), "os.rename"),
    "deletes": (lambda outside: (outside / "secret").unlink(), "os.remove"),
    "reads beside": (lambda outside: (outside / "given" / ".." / "secret").read_text(), "outside of what it was given"),
    "runs a program": (lambda outside: subprocess.run([sys.executable, "-c", ""], check=True), "subprocess.Popen"),
    "calls the shell": (lambda outside: os.system("true"), "os.system"),
    "unpickles": (lambda outside: pickle.loads(pickle.dumps(_Planted())), "pickle.find_class"),
    "runs code of the folder": (
        lambda outside: exec(compile("x = 1", str(outside / "given" / "own.py"), "exec"), {}),
        r"own\.py",
    ),
    "does not end": (lambda outside: _spin(), "not done after"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_no_reader_may_do_is_seen(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_SECONDS", 0.2)
    (tmp_path / "given").mkdir()
    for name in ("secret", "given/own"):
        (tmp_path / name).write_text("x")
    do, said = BAD[what]
    with pytest.raises(Fault, match=said), watched(tmp_path / "given", tmp_path / "given", tmp_path / "secret"):
        do(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="the size of a process is read from /proc")
def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_MEMORY", 1 << 26)
    with pytest.raises(MemoryError), watched(tmp_path, tmp_path):
        bytes(1 << 30)
    bytes(1 << 28)  # and it is lifted


def test_what_a_reader_may_do_is_none_of_it(tmp_path: Path) -> None:
    with watched(tmp_path, tmp_path, tmp_path.parent / "secret"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / "x").write_text("x")
        (tmp_path / "x").rename(tmp_path / "y")
        (tmp_path / "y").unlink()
        Path(os.devnull).write_text("x")
        Path(os.__file__).read_text(encoding="utf-8")


ROW = {
    "ours": ("raise ValueError('found x, expected 1')", True),
    "a class of ours": ("from plam_eval.errors import InputError\nraise InputError('found x')", True),
    "a file's": ("open('/nowhere/at/all')", True),
    "of int": ("int('x')", False),
    "of int, raised on": ("try:\n    int('x')\nexcept ValueError:\n    raise", False),
    "of json": ("import json\njson.loads('{')", False),
    "of UTF-8": ("b'\\xff'.decode()", False),
    "of numpy": ("import numpy\nnumpy.zeros(3).reshape(2)", False),
    "a plain one of another library": ("import ipaddress\nipaddress.ip_address('x')", False),
}


@pytest.mark.parametrize("what", ROW)
def test_whose_message_it_is(what: str) -> None:
    source, expected = ROW[what]
    code = compile(source, str(ROOT / "plam_eval" / "reader.py"), "exec")
    with pytest.raises((PlamError, OSError, ValueError)) as caught:
        exec(code, {})
    assert of_ours(caught.value) == expected


def test_a_message_from_outside_of_the_library_is_none_of_its_own() -> None:
    with pytest.raises(ValueError) as caught:
        raise ValueError("found x, expected 1")
    assert not of_ours(caught.value)
