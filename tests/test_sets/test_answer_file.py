"""Files that the user names: found, fetched, refused."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from plam_eval.test_sets import TEST_SETS, answer_file
from plam_eval.test_sets.answer_file import AnswerFile, AnswerFileError, NotFetchedError

CONTENT = b'{"test_Art_1": 1}'
MD5 = hashlib.md5(CONTENT).hexdigest()
FILE = AnswerFile("plam_some_test", "answers.json", "its page", None, 1000)
KNOWN = AnswerFile("plam_some_test", "answers.json", "its page", MD5, 1000)


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for end in ("", "_MD5"):
        monkeypatch.delenv(f"PLAM_SOME_TEST_ANSWERS{end}", raising=False)


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "answers.json"
    path.write_bytes(CONTENT)
    monkeypatch.setenv("PLAM_SOME_TEST_ANSWERS", str(path))
    return path


def refusal(file: AnswerFile = FILE) -> str:
    with pytest.raises(AnswerFileError) as caught:
        file.locate()
    return str(caught.value)


def test_the_variable_is_the_tasks_name() -> None:
    assert {name: each.file.variable for name, each in TEST_SETS.items()} == {
        "plam_mmmu_test": "PLAM_MMMU_TEST_ANSWERS",
        "plam_mmbench_en_test_v11": "PLAM_MMBENCH_EN_TEST_V11_ANSWERS",
        "plam_mmbench_cn_test_v11": "PLAM_MMBENCH_CN_TEST_V11_ANSWERS",
    }


def test_no_file_is_named() -> None:
    said = refusal()
    assert "PLAM_SOME_TEST_ANSWERS is not set" in said and "answers.json" in said and "its page" in said


def test_a_path(named: Path) -> None:
    located = FILE.locate()
    assert (located.path, located.md5, located.vouched) == (named, MD5, False)
    assert not KNOWN.locate().vouched


def test_a_link_to_a_file_is_the_users_own_choice(named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(named)
    monkeypatch.setenv("PLAM_SOME_TEST_ANSWERS", str(link))
    assert KNOWN.locate().md5 == MD5


@pytest.mark.parametrize("kind", ["absent", "folder", "link to nothing", "link to itself", "pipe", "null byte"])
def test_what_is_no_file_is_said(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "named"
    expected = "No such file"
    if kind == "folder":
        path.mkdir()
        expected = "is a folder, and a file is expected"
    elif kind == "link to nothing":
        path.symlink_to(tmp_path / "nothing")
    elif kind == "link to itself":
        path.symlink_to(path)
        expected = "cannot be read"
    elif kind == "pipe":
        os.mkfifo(path)
        expected = "no file that holds something"
    monkeypatch.setenv("PLAM_SOME_TEST_ANSWERS", str(path))
    said = refusal()
    assert expected in said and "PLAM_SOME_TEST_ANSWERS" in said and str(path) in said


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"<HTML>404</HTML>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"\x1f\x8b\x08\x00", "compressed"),
        (b"PK\x03\x04rest", "compressed"),
        (b"\xff\xfe{\x00", "UTF-16"),
        (b"", "empty"),
        (b" \n", "empty"),
        (b"x" * 1001, "is larger than 1000 bytes"),
    ],
)
def test_what_is_another_kind_of_file_is_said(named: Path, content: bytes, what: str) -> None:
    named.write_bytes(content)
    assert what in refusal(), what
    assert what in refusal(KNOWN)  # before its MD5, which says less


def test_another_version_is_refused_with_both_md5(named: Path) -> None:
    named.write_bytes(CONTENT + b" ")
    other = hashlib.md5(CONTENT + b" ").hexdigest()
    said = refusal(KNOWN)
    assert other in said and MD5 in said and f"PLAM_SOME_TEST_ANSWERS_MD5={other}" in said


def test_a_known_file_of_another_set_is_named(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["plam_eval.test_sets.answer_file"].KNOWN_MD5, MD5, "MMBench_DEV_EN_V11.tsv")
    said = refusal(AnswerFile("plam_some_test", "answers.json", "", "0" * 32, 1000))
    assert "MMBench_DEV_EN_V11.tsv" in said and "vouch" not in said


def test_a_user_whom_the_machine_does_not_know_is_told(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FILE.variable, "~nobody-of-this-name/answers.json")
    with pytest.raises(AnswerFileError, match=rf"{FILE.variable}=~nobody-of-this-name/answers.json: .*home directory"):
        FILE.locate()


def test_a_version_is_vouched_for_by_its_md5(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named.write_bytes(CONTENT + b" ")
    monkeypatch.setenv("PLAM_SOME_TEST_ANSWERS_MD5", hashlib.md5(CONTENT + b" ").hexdigest().upper())
    assert KNOWN.locate().vouched and FILE.locate().vouched
    monkeypatch.setenv("PLAM_SOME_TEST_ANSWERS_MD5", MD5)
    assert "PLAM_SOME_TEST_ANSWERS_MD5 says" in refusal(KNOWN)
    named.write_bytes(CONTENT)
    assert not KNOWN.locate().vouched  # it is the known one
    monkeypatch.setenv("PLAM_SOME_TEST_ANSWERS_MD5", "yes")
    assert "32 hexadecimal digits" in refusal(KNOWN)


def test_a_file_that_changes_is_read_again(named: Path) -> None:
    before = FILE.locate().md5
    named.write_bytes(CONTENT[::-1])
    assert FILE.locate().md5 != before


# --- fetched ----------------------------------------------------------------------------------------------------------


class Server:
    """Serves one content under every path."""

    def __init__(self) -> None:
        self.content, self.status, self.asked = CONTENT, 200, list[str]()
        self.length: int | None = None
        self.location = ""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                self.send_response(server.status)
                if server.location:
                    self.send_header("Location", server.location)
                self.send_header("Content-Length", str(server.length or len(server.content)))
                self.end_headers()
                self.wfile.write(server.content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/files/answers.json?token=secret"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server()
    monkeypatch.setenv("PLAM_SOME_TEST_ANSWERS", served.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=served.http.serve_forever, daemon=True)
    thread.start()
    yield served
    served.http.shutdown()
    served.http.server_close()
    thread.join()


def test_a_url_is_fetched_once_and_kept(server: Server, tmp_path: Path) -> None:
    located = FILE.locate()
    assert (located.md5, located.path.read_bytes()) == (MD5, CONTENT)
    assert located.path.is_relative_to(tmp_path / "cache" / "plam-eval")
    assert FILE.locate() == KNOWN.locate(fetch=False) == located and len(server.asked) == 1
    said = "".join(path.read_text() for path in located.path.parent.iterdir() if path.name == "source.json")
    assert "answers.json" in said and "secret" not in said


def test_nothing_is_fetched_where_nothing_may_be(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFetchedError):
        FILE.locate(fetch=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal() and not server.asked


def test_two_processes_fetch_once(server: Server) -> None:
    code = (
        "from plam_eval.test_sets.answer_file import AnswerFile\n"
        "print(AnswerFile('plam_some_test', 'answers.json', '', None, 1000).locate().md5)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in started] == [MD5, MD5]
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "content", "length", "said"),
    [
        (404, b"no", None, "the server answered 404"),
        (200, b"<!doctype html>", None, "a web page"),
        (200, b"x" * 1001, None, "is larger than 1000 bytes"),
        (200, CONTENT, 100, f"{len(CONTENT)} bytes came of 100"),
        (200, CONTENT + b" ", None, f"expected {MD5}"),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    server: Server, tmp_path: Path, status: int, content: bytes, length: int | None, said: str
) -> None:
    server.status, server.content, server.length = status, content, length
    found = refusal(KNOWN)
    assert re.search(said, found) and "secret" not in found
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]
    server.status, server.content, server.length = 200, CONTENT, None
    assert KNOWN.locate().md5 == MD5


def test_what_was_damaged_or_replaced_in_the_cache_is_fetched_again(server: Server, tmp_path: Path) -> None:
    path = FILE.locate().path
    path.write_bytes(b"{}")
    assert FILE.locate().md5 == MD5 and path.read_bytes() == CONTENT
    path.unlink()
    other = tmp_path / "other.json"
    other.write_bytes(CONTENT)
    path.symlink_to(other)
    assert FILE.locate().md5 == MD5 and not path.is_symlink() and len(server.asked) == 3


def test_a_server_that_is_not_there(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAM_SOME_TEST_ANSWERS", "http://127.0.0.1:1/answers.json")
    assert "cannot be fetched" in refusal()
    for other in ("ftp://example.org/a.json", "file:///etc/passwd"):
        monkeypatch.setenv("PLAM_SOME_TEST_ANSWERS", other)
        assert "a URL that begins with https://" in refusal()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://user:secret@[bad/a.json", "found no name of a server"),
        ("http://user:secret@127.0.0.1/a.json", "found a user or a password in it"),  # taken for a port, and shown
        ("http://127.0.0.1:1/a.json?token=secret\n", "http://127.0.0.1:1/a.json: cannot be fetched"),
        ("http://127.0.0.1:1/a\tb?token=secret", "found a control character"),
        ("http://127.0.0.1:99999/a.json?token=secret", "or no port"),
        ("http:///a.json?token=secret", "found no name of a server"),
        ("http://exa mple/a.json?token=secret", "found no name of a server"),
    ],
)
def test_an_address_that_is_none_is_said_without_what_is_secret(
    monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    monkeypatch.setenv("PLAM_SOME_TEST_ANSWERS", address)
    assert said in (found := refusal()) and "secret" not in found and found.isprintable()


def test_an_address_is_sent_in_ascii(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    host = server.url.partition("/files")[0]
    for named, sent in (
        ("/\u00fc b.json?a=\u00e9 f#part", "/%C3%BC%20b.json?a=%C3%A9%20f"),
        ("/%C3%BC%2Fb.json?a=1&b=x%26y+z/~", "/%C3%BC%2Fb.json?a=1&b=x%26y+z/~"),
    ):
        monkeypatch.setenv("PLAM_SOME_TEST_ANSWERS", host + named)
        assert FILE.locate().md5 == MD5 and server.asked[-1] == sent
    server.status = 404
    monkeypatch.setenv("PLAM_SOME_TEST_ANSWERS", f"{host}/a%0a%1b[31mred?token=secret")
    assert refusal().isprintable() and refusal().startswith(f"PLAM_SOME_TEST_ANSWERS={host}/a%0a%1b[31mred: ")


def test_a_redirect_leads_to_no_file_of_this_machine(server: Server) -> None:
    server.status, server.location = 302, "file:///etc/passwd"
    assert "the server answered 302" in refusal() and "root:" not in refusal()
    server.location = server.url
    assert refusal().isprintable() and "infinite loop" in refusal()


def test_a_cache_that_cannot_be_written_is_said_and_read(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    located = FILE.locate()

    def refused(*_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30), str(tmp_path))

    monkeypatch.setattr(answer_file, "locked", refused)
    assert FILE.locate() == located and len(server.asked) == 1
    monkeypatch.setenv("PLAM_SOME_TEST_ANSWERS", f"{server.url}&other")
    assert re.search(r"cannot be kept in .*Read-only file system.*; set XDG_CACHE_HOME", refusal())
    with pytest.raises(NotFetchedError):
        FILE.locate(fetch=False)
