"""A stand-in for the Hugging Face hub over a local server: its HTTP interface for files and for pushing them."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Published(NamedTuple):
    """What a name leads to at some revision."""

    commit: str
    folder: Path


class Hub:
    """Serves the folders `root/<owner>/<name>` as `main`, `v1` and COMMIT, and what `publish` adds.

    Attributes:
        requests: method, file and bytes sent of every request for a file.
        refusal: status, error code and message of every answer, if set.
        ranges: whether a request for a part of a file is answered with that part, or with all of it.
        user: who is logged in, as the hub says it, by token.
        private: repositories that are.
        refusals: status, error code and message of answers to single paths, by how these begin.
        commits: repository, message and files of every commit that was pushed.
        boards: by dataset, what its leaderboard holds.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[tuple[str, str, int]] = []
        self.refusal: tuple[int, str, str] | None = None
        self.ranges = True
        self.user: dict[str, dict[str, Any]] = {}
        self.private: set[str] = set()
        self.refusals: dict[str, tuple[int, str, str]] = {}
        self.commits: list[tuple[str, str, tuple[str, ...]]] = []
        self.boards: dict[str, list[dict[str, Any]]] = {}
        self._published: dict[tuple[str, str], Published] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                if hub.refusal is not None:
                    return self.refuse(*hub.refusal)
                for start, refusal in hub.refusals.items():
                    if self.path.startswith(start):
                        return self.refuse(*refusal)
                if self.path == "/api/whoami-v2":
                    who = hub.user.get((self.headers.get("authorization") or "").removeprefix("Bearer "))
                    return self.send(who) if who else self.refuse(401, "", "Invalid token")
                if self.path.startswith("/api/datasets/"):
                    dataset = urlsplit(self.path).path.removeprefix("/api/datasets/").removesuffix("/leaderboard")
                    known = dataset in hub.boards
                    return self.send(hub.boards[dataset]) if known else self.refuse(404, "RepoNotFound", "")
                if self.path.startswith("/api/models/"):
                    return self.tree()
                if self.path.count("/") < 5:  # of what a library tells the hub about itself
                    return self.refuse(404, "", "")
                _, owner, repo, _, revision, file = self.path.split("/", 5)
                found = hub.at(f"{owner}/{repo}", unquote(revision))
                path = found.folder / unquote(file) if found else None
                content = path.read_bytes() if path and path.is_file() else None
                part, status = content or b"", 200 if content is not None else 404
                span = self.headers.get("range") if hub.ranges else None
                if content is not None and span:
                    first, last = span.removeprefix("bytes=").split("-")
                    part, status = content[int(first) : int(last) + 1 if last else None], 206
                self.send_response(status)
                if content is None:
                    known = (hub.root / owner / repo).is_dir()
                    self.send_header(
                        "X-Error-Code", "EntryNotFound" if found else "RevisionNotFound" if known else "RepoNotFound"
                    )
                self.send_header("X-Repo-Commit", found.commit if found else COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                sent = self.command == "GET"
                hub.requests.append((self.command, file, len(part) if sent else 0))
                if sent:
                    with suppress(BrokenPipeError, ConnectionResetError):  # of a client that has seen enough
                        self.wfile.write(part)

            def tree(self) -> None:
                _, _, _, owner, repo, *rest = urlsplit(self.path).path.split("/", 7)
                what, revision, *below = rest or ["", "main"]
                found = hub.at(f"{owner}/{repo}", unquote(revision))
                if found is None:
                    known = (hub.root / owner / repo).is_dir()
                    return self.refuse(404, "RevisionNotFound" if known else "RepoNotFound", "")
                if what != "tree":
                    files = [path for path in found.folder.rglob("*") if path.is_file()]
                    siblings = [{"rfilename": path.relative_to(found.folder).as_posix()} for path in files]
                    private = f"{owner}/{repo}" in hub.private
                    told = {"id": f"{owner}/{repo}", "sha": found.commit, "private": private, "siblings": siblings}
                    return self.send(told)
                folder = found.folder.joinpath(*map(unquote, below))
                if not folder.is_dir():
                    return self.refuse(404, "EntryNotFound", "")
                paths = sorted(path for path in folder.rglob("*") if path.is_file())
                entries = [
                    {
                        "type": "file",
                        "path": path.relative_to(found.folder).as_posix(),
                        "size": path.stat().st_size,
                        "oid": "0" * 40,
                        **(
                            {"lfs": {"oid": sha256(path), "size": path.stat().st_size, "pointerSize": 1}}
                            if path.suffix in LARGE
                            else {}
                        ),
                    }
                    for path in paths
                ]
                self.send(entries)

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers.get("content-length") or 0))
                path = urlsplit(self.path).path
                for start, refusal in hub.refusals.items():
                    if path.startswith(start):
                        return self.refuse(*refusal)
                if path == "/api/validate-yaml":
                    return self.send({"errors": [], "warnings": []})
                if path == "/api/repos/create":
                    asked = json.loads(sent)
                    name = f"{asked['organization']}/{asked['name']}"
                    if (hub.root / name).is_dir():
                        return self.send({"url": f"{hub.url}/{name}"}, 409)
                    (hub.root / name).mkdir(parents=True)
                    if asked.get("visibility") == "private":
                        hub.private.add(name)
                    return self.send({"url": f"{hub.url}/{name}"})
                _, _, _, owner, repo, what, _ = path.split("/", 6)
                if what == "preupload":  # everything is small here, and sent with the commit
                    files = [file["path"] for file in json.loads(sent)["files"]]
                    modes = [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
                    return self.send({"files": modes})
                header, *changes = [json.loads(line) for line in sent.splitlines()]
                folder = hub.root / owner / repo
                for change in changes:
                    assert change["key"] == "file", change
                    target = folder / change["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(change["value"]["content"]))
                names = tuple(change["value"]["path"] for change in changes)
                hub.commits.append((f"{owner}/{repo}", header["value"]["summary"], names))
                self.send({"commitUrl": f"{hub.url}/{owner}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

            def send(self, answer: Any, status: int = 200) -> None:
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def refuse(self, status: int, code: str, message: str) -> None:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", message)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD = answer

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def at(self, repository: str, revision: str) -> Published | None:
        found = self._published.get((repository, revision))
        if found is not None:
            return found
        folder = self.root / repository
        return Published(COMMIT, folder) if folder.is_dir() and revision in ("main", "v1", COMMIT) else None

    def publish(self, repository: str, folder: Path, commit: str, *names: str) -> None:
        """Serve a folder as this commit of a repository, and under the names of branches and tags."""
        for revision in (commit, *names):
            self._published[repository, revision] = Published(commit, folder)

    def downloaded(self) -> dict[str, int]:
        """Bytes sent, by file."""
        sums: dict[str, int] = {}
        for method, file, count in self.requests:
            if method == "GET" and count:
                sums[file] = sums.get(file, 0) + count
        return sums


@contextmanager
def serving(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub over the folders in `root`, which huggingface_hub takes for the one and only, with an empty cache."""
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    hub = Hub(root)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(hf_api.constants, "ENDPOINT", hub.url)
    patient = SimpleNamespace(**{**vars(_http.time), "sleep": lambda seconds: None})
    monkeypatch.setattr(_http, "time", patient)  # it tries again for half a minute
    try:
        yield hub
    finally:
        _http.close_session()  # the next server may get the same port, and the old connections lead to this one
        hub.server.shutdown()
        hub.server.server_close()
