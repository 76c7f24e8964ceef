"""Pushing an export to a stand-in for the hub: what is checked first, what is sent, and what the hub refuses."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from plam_eval.files import MARKER
from plam_eval.merging.export_record import FILE, ExportedFile, read_export_record
from plam_eval.publishing.upload import UploadError, check_push, push_export, without_tokens
from tests.helpers.exports import record_of, spec_of
from tests.helpers.hub import Hub, serving

TOKEN = "hf_aVerySecretToken"
HOME = "/home/some body"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "hub").mkdir()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(tmp_path / "hub", tmp_path / "cache", monkeypatch) as hub:
        hub.user[TOKEN] = {
            "name": "me",
            "orgs": [{"name": "lab", "roleInOrg": "write"}, {"name": "guests", "roleInOrg": "read"}],
            "auth": {"accessToken": {"role": "write"}},
        }
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export, as it lies on a disk."""
    folder = tmp_path / "export"
    (folder / "code").mkdir(parents=True)
    contents = {"config.json": b"{}", "model.safetensors": b"weights", "code/modeling.py": b"x = 1"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    files = {
        name: ExportedFile(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content), how="copied")
        for name, content in contents.items()
    }
    base = {"name": f"{HOME}/vicuna", "folder": f"{HOME}/vicuna", "fingerprint": "f"}
    spec = spec_of(base_model=base["name"])
    record_of(spec, files=files, base=base, command=f"plam export --base '{HOME}/vicuna'").write(folder)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A\n")
    (folder / MARKER).touch()
    return folder


def refused(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(UploadError) as caught:
        call(*arguments, **options)
    assert TOKEN not in str(caught.value)
    return str(caught.value)


def test_an_export_arrives_private_and_its_record_comes_last(hub: Hub, folder: Path, tmp_path: Path) -> None:
    assert push_export(folder, "me/merged") == f"{hub.url}/me/merged"
    assert "me/merged" in hub.private
    there = tmp_path / "hub" / "me" / "merged"
    sent = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert sent == {"config.json", "model.safetensors", "code/modeling.py", "README.md", FILE}
    assert [(repository, FILE in names) for repository, _, names in hub.commits] == [
        ("me/merged", False),
        ("me/merged", True),
    ]
    assert hub.commits[-1][2] == (FILE,)
    text = (there / FILE).read_text()
    assert "/home" not in text and "some body" not in text, "paths of this machine stay here"
    pushed, own = read_export_record(there), read_export_record(folder)
    assert pushed.files == own.files and pushed.digest == own.digest and pushed.spec["base_model"] == "vicuna"


def test_an_upload_can_be_repeated_and_be_public(hub: Hub, folder: Path) -> None:
    push_export(folder, "lab/merged", public=True)
    assert "lab/merged" not in hub.private
    push_export(folder, "lab/merged", public=True)
    said = refused(push_export, folder, "lab/merged")
    assert "is there already, and public; give --public" in said


@pytest.mark.parametrize("name", ["merged", "me/", "a/b/c", "me/x@main", "me/a..b", "me/x.git", "../x/y", "", "me/ü"])
def test_names_of_no_repository(hub: Hub, name: str) -> None:
    assert "expected owner/name" in refused(check_push, name)
    assert not hub.requests and not hub.commits


def test_who_may_not_write_there_is_told_first(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(push_export, folder, "other/merged")
    assert "logged in as me, who can write below me, lab and not below other" in said
    assert "not below guests" in refused(check_push, "guests/merged")
    hub.user[TOKEN]["auth"]["accessToken"]["role"] = "read"
    assert "can only read" in refused(check_push, "me/merged")
    hub.user.clear()
    assert "refuses the token in use (401)" in refused(check_push, "me/merged")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/no/such/token")
    assert "nobody is logged in" in refused(check_push, "me/merged")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(check_push, "me/merged")
    assert not hub.commits


def test_what_the_hub_refuses_is_told_without_the_token(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for status, said in ((403, "refuses to write there (403)"), (404, "no such repository"), (500, "answered 500")):
        hub.refusals = {"/api/models/me/merged/commit": (status, "", f"no, {TOKEN}")}
        assert said in refused(push_export, folder, "me/merged"), status
    hub.refusals = {"/api/repos/create": (400, "", f"bad name, token {TOKEN}")}
    said = refused(push_export, folder, "me/merged")
    assert "the hub refuses it (400" in said and "[token]" in said
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert "cannot be reached" in refused(check_push, "me/merged")


def test_a_folder_that_is_not_as_it_was_exported_is_refused(hub: Hub, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weightz")
    (folder / "config.json").unlink()
    (folder / "code" / "modeling.py").write_bytes(b"x = 11")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "secret").symlink_to("/etc/passwd")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/passwd")
    with pytest.raises(UploadError) as caught:
        push_export(folder, "me/merged")
    said = "\n".join(caught.value.problems)
    for words in (
        "safetensors: its SHA-256 is",
        "config.json: is not there",
        "has 6 bytes, and plam_export.json says 5",
    ):
        assert words in said
    for words in ("adapter_config.json: is not of the export", "secret: is not of the export", "'README.md' leads to"):
        assert words in said
    assert len(caught.value.problems) == 6 and not hub.commits and not (hub.root / "me").exists()


def test_a_record_s_names_lead_nowhere_else(hub: Hub, folder: Path) -> None:
    record = json.loads((folder / FILE).read_text())
    record["files"]["../outside"] = record["files"]["config.json"]
    (folder / FILE).write_text(json.dumps(record))
    assert "'../outside', expected a file inside" in refused(push_export, folder, "me/merged")


def test_weights_that_would_stay_beside_are_in_the_way(hub: Hub, folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "hub" / "me" / "merged"
    there.mkdir(parents=True)
    (there / ".gitattributes").write_text("")
    (there / "pytorch_model.bin").write_text("old")
    hub.private.add("me/merged")
    assert "holds other weights (pytorch_model.bin)" in refused(push_export, folder, "me/merged")
    assert not hub.commits


def test_tokens_are_taken_out_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "odd token")
    assert without_tokens("Bearer odd token, hf_abcdefghij and hf_x") == "Bearer [token], [token] and hf_x"
