"""Archives of attackers: read in memory, within bounds, and refused with what is wrong with them."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plam_eval.publishing.bundle import archive as archives
from plam_eval.publishing.bundle.archive import BundleError, open_archive, write_archive
from plam_eval.publishing.bundle.manifest import parse_manifest
from plam_eval.publishing.bundle.verify import verify_bundle
from plam_eval.publishing.bundle.write import make_bundle
from tests.helpers.bundles import edited_manifest, forged, members_of
from tests.helpers.logged_runs import graded_rows, write_logs

_LOCAL, _CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle of a task that only declares a mean, so that nothing heavy is imported to verify it."""
    folder = tmp_path_factory.mktemp("small")
    results = {"some_task": {"exact_match,none": 0.5}}
    return make_bundle(
        [write_logs(folder / "run", {"some_task": graded_rows([1, 0])}, results=results)], folder / "b.zip"
    ).path


def with_member(bundle: Path, target: Path, name: str | zipfile.ZipInfo, content: bytes = b"x") -> Path:
    target.write_bytes(bundle.read_bytes())
    with warnings.catch_warnings(), zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # of a name that is there
        archive.writestr(name, content)
    return target


def info(name: str, mode: int = 0) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    return member


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("/etc/passwd", "plain relative path"),
        ("../../x", "plain relative path"),
        ("runs/../../x", "plain relative path"),
        ("C:/x", "plain relative path"),
        ("a//b", "plain relative path"),
        (".hidden", "plain relative path"),
        ("a b", "plain relative path"),
        ("a\x1b[2J", "plain relative path"),
        ("ä.json", "plain relative path"),
        ("x/" * 30 + "x", "plain relative path"),
        ("runs/", "plain relative path"),
        ("README.md", "more than once"),
        ("readme.MD", "more than once"),
        (info("link", stat.S_IFLNK | 0o777), "a link, folder or device"),
        (info("pipe", stat.S_IFIFO | 0o777), "a link, folder or device"),
        (info("disk", stat.S_IFBLK | 0o777), "a link, folder or device"),
    ],
)
def test_members_that_are_refused(bundle: Path, tmp_path: Path, member: Any, said: str) -> None:
    with pytest.raises(BundleError, match=said) as raised:
        verify_bundle(with_member(bundle, tmp_path / "b.zip", member))
    assert "\x1b" not in str(raised.value)


def test_a_backslash_is_no_name(bundle: Path, tmp_path: Path) -> None:
    file = with_member(bundle, tmp_path / "b.zip", "a_b.json")
    file.write_bytes(file.read_bytes().replace(b"a_b.json", b"a\\b.json"))
    with pytest.raises(BundleError, match="plain relative path"):
        verify_bundle(file)


def _flag_as_encrypted(content: bytes) -> bytes:
    place = content.rindex(_CENTRAL)
    return content[: place + 8] + bytes([content[place + 8] | 1]) + content[place + 9 :]


def _other_method(content: bytes) -> bytes:
    place = content.rindex(_CENTRAL)
    return content[: place + 10] + bytes([14, 0]) + content[place + 12 :]


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content)


def _zipped_again(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("appendix.zip", content)
    return buffer.getvalue()


def _commented(content: bytes) -> bytes:
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"#!/bin/sh"
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: b"", "is empty"),
        (lambda content: b"PK", "no zip file"),
        (lambda content: b'{"format": 1}', "no zip file"),
        (_gzip, "gzip"),
        (lambda content: content[: len(content) // 2], "cannot be read as a zip file"),
        (lambda content: content[:-1], "cannot be read as a zip file"),
        (lambda content: b"#!/bin/sh\n" + content, "no zip file"),
        (lambda content: _LOCAL + bytes(60) + content, "does not begin where"),
        (_flag_as_encrypted, "encrypted"),
        (_other_method, "method 14"),
        (_zipped_again, "unpack it once"),
        (_commented, "comment"),
    ],
)
def test_files_that_are_none(bundle: Path, tmp_path: Path, change: Callable[[bytes], bytes], said: str) -> None:
    file = tmp_path / "b.zip"
    file.write_bytes(change(bundle.read_bytes()))
    with pytest.raises(BundleError, match=said):
        verify_bundle(file)


def test_a_folder_and_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is a folder"):
        verify_bundle(tmp_path)
    with pytest.raises(FileNotFoundError):
        verify_bundle(tmp_path / "none.zip")


def test_bombs_are_not_unpacked(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = with_member(bundle, tmp_path / "b.zip", "zeros.json", bytes(20 << 20))
    with pytest.raises(BundleError, match="unpacks to more than 400 times its size"):
        verify_bundle(file)
    monkeypatch.setattr(archives, "LARGEST_BUNDLE", 1000)
    with pytest.raises(BundleError, match="unpacked it has"):
        verify_bundle(bundle)
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 1000)
    with pytest.raises(BundleError, match="larger than 1000 bytes"):
        verify_bundle(bundle)
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    with pytest.raises(BundleError, match="members, expected at most 2"):
        verify_bundle(bundle)


def test_what_a_reader_would_take_for_a_bomb_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "b.zip"
    with pytest.raises(BundleError, match=r"samples\.jsonl: repeats itself so much"):
        write_archive(file, lambda writer: writer.add("samples.jsonl", [bytes(20 << 20)]))
    assert not list(tmp_path.iterdir())


def test_members_that_share_their_bytes_are_refused(bundle: Path, tmp_path: Path) -> None:
    content = bundle.read_bytes()
    first = content.index(_CENTRAL)
    second = content.index(_CENTRAL, first + 1)
    file = tmp_path / "b.zip"  # the second member's entry leads to the place of the first
    file.write_bytes(content[: second + 42] + content[first + 42 : first + 46] + content[second + 46 :])
    with pytest.raises(BundleError, match="does not begin where"):
        verify_bundle(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(format=2), "format 2, and this plam-eval reads format 1"),
        (lambda m: m.update(format=True), "format True"),
        (lambda m: m.update(kind="x"), "not that of a bundle"),
        (lambda m: m.update(more=1), "more: unknown key"),
        (lambda m: m.update(runs=[]), "found none"),
        (lambda m: m["runs"][0].update(results="../../x"), "is not in files"),
        (lambda m: m["runs"][0].update(results="README.md"), "named 2 times"),
        (lambda m: m["files"]["README.md"].update(sha256="x"), "sha256"),
        (lambda m: m["files"]["README.md"].update(bytes="1"), "bytes"),
        (lambda m: m["files"].update({"x": {"sha256": "0" * 64, "bytes": 1}}), "nothing says what it is"),
    ],
)
def test_manifests_are_read_strictly(bundle: Path, tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        verify_bundle(forged(bundle, tmp_path / "b.zip", edited_manifest(change), hashes=False))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b'{"a":' * 100_000, b"[" * 100_000, b'{"format": 1e999}'])
def test_manifests_that_are_none(text: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(text, "b.zip")


def test_without_a_manifest(bundle: Path, tmp_path: Path) -> None:
    file = forged(bundle, tmp_path / "b.zip", lambda members: members.pop("manifest.json"), hashes=False)
    with pytest.raises(BundleError, match=r"holds no manifest\.json"):
        verify_bundle(file)


def test_an_archive_is_written_in_one_step(tmp_path: Path) -> None:
    file = tmp_path / "b.zip"
    write_archive(file, lambda writer: writer.add("a.json", [b"1"]))
    before = file.read_bytes()

    def stopped(writer: archives.Writer) -> None:
        writer.add("a.json", [b"2"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_archive(file, stopped)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
    with open_archive(file) as archive:
        assert archive.names == ["a.json"] and archive.read("a.json", 1) == b"1"


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_is_found_or_changes_nothing(bundle: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(bundle.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] = data.draw(st.integers(0, 255))
        else:
            del content[place : place + data.draw(st.integers(1, 200))]
        if not content:
            return
    file = tmp_path / "damaged.zip"
    file.write_bytes(content)
    try:
        done = verify_bundle(file)
    except BundleError:
        return
    assert not done.holds or members_of(file) == members_of(bundle)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_value_in_any_record_is_an_answer_or_an_error(bundle: Path, tmp_path: Path, data: st.DataObject) -> None:
    members = members_of(bundle)
    name = data.draw(st.sampled_from(sorted(name for name in members if name.endswith((".json", ".jsonl")))))
    value = json.loads(members[name].splitlines()[0] if name.endswith(".jsonl") else members[name])
    holder = value
    while isinstance(holder, dict) and holder:
        key = data.draw(st.sampled_from(sorted(holder)))
        if not isinstance(holder[key], dict) or data.draw(st.booleans()):
            holder[key] = data.draw(_JSON)
            break
        holder = holder[key]
    changed = json.dumps(value).encode() + b"\n"
    if name.endswith(".jsonl"):
        changed += b"".join(members[name].splitlines(keepends=True)[1:])
    file = forged(bundle, tmp_path / "f.zip", lambda all_: all_.update({name: changed}), hashes=name != "manifest.json")
    with contextlib.suppress(BundleError):
        verify_bundle(file)


@pytest.mark.parametrize("large", [False, True])
def test_a_list_of_millions_of_members_is_not_read(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """zipfile makes an object of each before their number can be asked, also where the list's size has 64 bits."""
    content = bundle.read_bytes()
    begin = content.index(_CENTRAL)
    listed = content[begin:-22] * 200
    end = content[-22:-10] + len(listed).to_bytes(4, "little") + content[-6:]
    if large:
        sizes = struct.pack("<QQQQ", 1, 1, len(listed), begin)
        record = b"PK\x06\x06" + struct.pack("<QHHII", 44, 45, 45, 0, 0) + sizes
        locator = b"PK\x06\x07" + struct.pack("<IQI", 0, begin + len(listed), 1)
        end = record + locator + content[-22:-10] + b"\0\0\0\0" + content[-6:]
    file = tmp_path / "many.zip"
    file.write_bytes(content[:begin] + listed + end)
    monkeypatch.setattr(archives, "_LARGEST_DIRECTORY", len(listed) - 1)
    monkeypatch.setattr(archives.zipfile, "ZipFile", None)
    with pytest.raises(BundleError, match=f"the list of its members has {len(listed)} bytes"), open_archive(file):
        pass
