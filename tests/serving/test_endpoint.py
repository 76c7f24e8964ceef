"""The HTTP routes: who may call, what a request may hold, and an engine that dies meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.testclient import TestClient
from vllm.v1.engine.exceptions import EngineDeadError

from plam_eval.merging.report import MergeReport
from plam_eval.serving import endpoint as module
from plam_eval.serving.endpoint import HOSTS, REMOTE_SWITCH, MergeEndpoint
from plam_eval.serving.gate import BASES, MAX_BYTES, SPECS
from plam_eval.spec import load_spec
from tests.helpers.pico import PicoPair

pytestmark = pytest.mark.vllm

TOKEN = "hf_PlantedToken123"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (REMOTE_SWITCH, HOSTS, SPECS, BASES, module.PATIENCE, "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="vllm")  # an engine that another test started may have raised it
    return lambda: caplog.text


class Engine:
    """Engine client that merges nothing; `dies_in` names the call during which its process dies."""

    def __init__(self, pair: PicoPair, base: Path | None, dies_in: str | None = None) -> None:
        plateau = load_spec("none", {"base": str(base), "layers": "1:3"}) if base else None
        self.vllm_config = SimpleNamespace(
            load_config=SimpleNamespace(
                model_loader_extra_config={"plateau": plateau.to_dict() if plateau is not None else None}
            ),
            model_config=SimpleNamespace(model=str(pair.mllm), revision=None),
            parallel_config=SimpleNamespace(data_parallel_size=1),
            lora_config=None,
        )
        self.dies_in, self.errored, self.calls = dies_in, False, list[str]()
        self.labels: list[str] = []
        self.merged: list[Any] = []
        self.failure: Exception | None = None

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.errored:
            raise EngineDeadError()
        if name == self.dies_in:
            asyncio.get_running_loop().call_later(0.05, setattr, self, "errored", True)
            await asyncio.get_running_loop().create_future()  # as vLLM's client does: nobody ends it

    async def pause_generation(self, **given: Any) -> None:
        await self._call("pause_generation")

    async def reset_prefix_cache(self, **given: Any) -> bool:
        await self._call("reset_prefix_cache")
        return True

    async def reset_encoder_cache(self) -> None:
        await self._call("reset_encoder_cache")

    async def resume_generation(self) -> None:
        await self._call("resume_generation")

    async def update_weight_version(self, new_version: str) -> None:
        self.labels.append(new_version)

    async def get_weight_version(self) -> str:
        return self.labels[-1]

    async def generate(self, *given: Any) -> Any:
        yield given

    async def encode(self, *given: Any) -> Any:
        yield given

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[dict[str, Any]]:
        if method == "plam_state" and not args:  # what the label is made of
            return [{"digest": f"digest {len(self.merged)}", "broken": None}]
        await self._call(method)
        if self.failure:
            raise self.failure
        if method == "plam_state":
            base = self.vllm_config.load_config.model_loader_extra_config["plateau"]["base_model"]
            told = {"warnings": [f"{base}/config.json is odd"]}
            return [{"spec": {"base_model": base}, "report": told, "broken": None, "checksums": {"rest": "ab"}}]
        self.merged.append(args)
        spec, _ = args
        change = {1: 0.5}
        report = MergeReport(spec, "digest", self.vllm_config.model_config.model, None, 1, 0, 1, 0.1, change)
        return [{"report": report.to_dict() if spec else None}]


Start = Callable[..., tuple[TestClient, Engine]]


@pytest.fixture
def start(pico: Callable[[str], PicoPair], monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a server of our routes; gives a client on this machine, and the engine."""
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.02)

    def start(
        key: str | None = None, host: str | None = "127.0.0.1", dies_in: str | None = None, **client: Any
    ) -> tuple[TestClient, Engine]:
        pair = pico("llava")
        engine, endpoint, app = Engine(pair, pair.base, dies_in), MergeEndpoint(), Starlette()
        endpoint.attach_router(app)
        args = SimpleNamespace(api_key=[key] if key else None, host=host, api_server_count=1)
        asyncio.run(endpoint.init_state(engine, app.state, args))
        endpoint._one_at_a_time = asyncio.Lock()
        settings = {"base_url": "http://localhost:8000", "client": ("127.0.0.1", 5000)} | client
        return TestClient(app, raise_server_exceptions=True, **settings), engine

    yield start


def test_answers_and_embeddings_are_waited_for(start: Start) -> None:
    _, engine = start()
    assert {"generate", "encode"} <= vars(engine).keys(), "in the place of the client's own"


# ---- who may call ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "switch", "key", "header", "refused"),
    [
        ("127.0.0.1", None, None, "", None),
        ("::1", None, None, "", None),
        ("10.0.0.7", None, None, "", "from this machine"),
        ("testclient", None, None, "", "from this machine"),
        ("10.0.0.7", "1", None, "", None),
        ("10.0.0.7", "yes", None, "", "from this machine"),
        ("127.0.0.1", None, "secret", "", "API key"),
        ("127.0.0.1", None, "secret", "Bearer wrong", "API key"),
        ("127.0.0.1", None, "secret", "secret", "API key"),
        ("127.0.0.1", None, "secret", "Bearer secret", None),
        ("127.0.0.1", None, "secret", "bearer secret", None),
        ("::ffff:127.0.0.1", None, None, "", None),
        ("::ffff:10.0.0.7", None, None, "", "from this machine"),
    ],
)
def test_who_may_merge_over_http(client, switch, key, header, refused, start, monkeypatch):
    if switch:
        monkeypatch.setenv(REMOTE_SWITCH, switch)
    http, _ = start(key, client=(client, 5000))
    for headers in ({"authorization": header}, {"authorization": header, "origin": "http://page.example"}):
        expected = "web page" if "origin" in headers and refused != "from this machine" else refused
        for answer in (http.get("/plam/state", headers=headers), http.post("/plam/merge", headers=headers, json={})):
            assert (answer.status_code == 403) == (expected is not None)
            assert expected is None or expected in answer.json()["error"]


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Host"])
def test_a_proxy_is_not_this_machine(header, start, monkeypatch):
    """uvicorn takes X-Forwarded-For of a proxy on this machine for the client's address, whoever wrote it."""
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    for trusted, client in (("127.0.0.1,::1", "127.0.0.1"), ("*", "10.0.0.7")):
        http, _ = start(client=(client, 5000))
        proxied: Any = ProxyHeadersMiddleware(http.app, trusted)
        http = TestClient(proxied, base_url="http://localhost", client=(client, 5000))
        answer = http.get("/plam/state", headers={header: "127.0.0.1"})
        assert answer.status_code == 403
        if client == "127.0.0.1" or header == "X-Forwarded-For":
            assert f"passed on by a proxy (the request has the header {header.lower()})" in answer.json()["error"]
    monkeypatch.setenv(REMOTE_SWITCH, "1")
    http, _ = start()
    assert http.get("/plam/state", headers={header: "127.0.0.1"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "closed", "opened"),
    [
        ("localhost", True, True),
        ("localhost:8000", True, True),
        ("LOCALHOST:8000", True, True),
        ("127.0.0.1:8000", True, True),
        ("[::1]:8000", True, True),
        ("gpu7.lan", True, False),
        ("gpu8.lan", False, True),
        ("gpu9.lan:8001", False, True),
        ("10.0.0.7:8000", False, True),
        ("[2001:db8::7]:8000", False, True),
        ("evil.example:8000", False, False),
        ("localhost.evil.example", False, False),
        ("127.0.0.1.evil.example", False, False),
        ("localhost:8000@evil.example", False, False),
        ("[::1]evil.example", False, False),
        ("", False, False),
    ],
)
def test_the_host_header_names_this_server(host, closed, opened, start, monkeypatch):
    """Of a server on gpu7.lan for its own machine, and of one that is open to others as gpu8 and gpu9."""
    http, _ = start(host="gpu7.lan")
    answer = http.get("/plam/state", headers={"host": host})
    assert (answer.status_code == 200) == closed, answer.text
    assert closed or "Host header" in answer.json()["error"]
    monkeypatch.setenv(REMOTE_SWITCH, "1")
    monkeypatch.setenv(HOSTS, " gpu8.lan, gpu9.lan:8000,")
    http, _ = start(host="0.0.0.0", client=("10.0.0.9", 5000))
    assert (http.get("/plam/state", headers={"host": host}).status_code == 200) == opened


def test_two_host_headers_or_none():
    endpoint = MergeEndpoint()
    for hosts in ([], [(b"host", b"localhost"), (b"host", b"evil.example")]):
        request = SimpleNamespace(client=SimpleNamespace(host="127.0.0.1"), headers=Headers(raw=hosts))
        assert f"the Host header is {len(hosts)} of them" in str(endpoint._refusal(request))


def test_a_warning_where_other_machines_need_no_key(start, warned, monkeypatch):
    start()
    monkeypatch.setenv(REMOTE_SWITCH, "1")
    start(key="secret")
    assert "open to other machines" not in warned()
    start()
    assert "/plam/merge is open to other machines without a key" in warned()
    monkeypatch.setenv(REMOTE_SWITCH, "true")
    start()
    assert f"{REMOTE_SWITCH} is 'true'; expected 1" in warned()


def test_a_folder_of_specs_that_is_none_stops_the_server(start, monkeypatch):
    monkeypatch.setenv(SPECS, "/nowhere/specs")
    with pytest.raises(ValueError, match="PLAM_SPECS=/nowhere/specs: no such folder"):
        start()


# ---- what a request may hold -----------------------------------------------------------------------------------------


def post(http: TestClient, body: Any, **headers: str) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) or not isinstance(body, (dict, list)) else json.dumps(body)
    answer = http.post("/plam/merge", content=content, headers={"content-type": "application/json"} | headers)
    return answer.status_code, answer.json()


def test_a_merge_and_what_is_answered(start, pico):
    http, engine = start()
    base = str(pico("llava").base)
    status, told = post(http, {"plateau": "none", "base": base, "layers": "1:3"})
    assert status == 200 and told["digest"] == load_spec("none", {"base": base, "layers": "1:3"}).digest()
    assert engine.merged[0][1] == {"base": {"location": base, "commit": None}, "ancestor": None}
    assert engine.calls[0] == "pause_generation" and engine.calls[-2:] == ["plam_merge", "resume_generation"]
    assert engine.labels == ["digest 0", "digest 1"], "of the start and of the merge, before it answers"
    assert post(http, {"plateau": "none"}) == (200, {"digest": None, "report": None})
    assert post(http, {"plateau": "none"}, **{"content-type": "Application/JSON; charset=utf-8"})[0] == 200
    # Where folders lie is not told.
    assert told["report"]["model"] == "mllm" and told["report"]["spec"]["base_model"] == "base"
    state = http.get("/plam/state").json()
    assert state["spec"]["base_model"] == "base" and state["report"]["warnings"] == ["base/config.json is odd"]
    assert state["weight_version"] == engine.labels[-1] and state["checksums"] == [{"rest": "ab"}]


def test_an_ancestor_is_opened_where_the_server_allows_it(start, pico, tmp_path, monkeypatch):
    old = shutil.copytree(pico("llava").base, tmp_path / "place" / "old")
    asked = {"plateau": "none", "base": str(pico("llava").base), "layers": "1:3", "rule": "ties", "ancestor": str(old)}
    http, engine = start()
    status, told = post(http, asked)
    assert status == 400 and "ancestor:" in told["error"] and "is not allowed" in told["error"] and not engine.calls
    monkeypatch.setenv(BASES, str(tmp_path))
    http, engine = start()
    status, told = post(http, asked)
    assert status == 200 and engine.merged[0][1]["ancestor"] == {"location": str(old), "commit": None}
    assert told["report"]["spec"]["ancestor"] == "old", "where it lies is not told"
    status, told = post(http, {**asked, "ancestor": str(tmp_path / "none")})
    assert (status == 400 and "no such folder" in told["error"]) or "is not allowed" in told["error"]
    status, told = post(http, {**asked, "rule": "weighted_sum", "ancestor": "/somewhere/else"})
    assert status == 200 and "ancestor" not in told["report"]["spec"]


def test_only_whole_paths_are_shortened(start, pico):
    endpoint = MergeEndpoint()
    endpoint._engine = Engine(pico("llava"), None)
    endpoint._asked = {"/a", "/srv/bases", "/srv/bases/q", "/", "org/model"}
    text = "/a: /a/config.json, '/srv/bases/q/x' and /srv/bases; /b/a, /ab, /srv/bases2, org/model / 3"
    assert endpoint._shown([text]) == ["a: a/config.json, 'q/x' and bases; /b/a, /ab, /srv/bases2, org/model / 3"]


def test_a_client_that_leaves_is_no_failure_of_the_server(start, warned):
    from starlette.requests import ClientDisconnect

    http, _ = start()

    async def stream() -> Any:
        raise ClientDisconnect
        yield

    headers = Headers({"host": "localhost", "content-type": "application/json"})
    request = SimpleNamespace(client=SimpleNamespace(host="127.0.0.1"), headers=headers, stream=stream)
    route = next(route for route in http.app.routes if route.path == "/plam/merge")
    assert asyncio.run(route.endpoint(request)).status_code == 400
    assert "Traceback" not in warned()


def test_a_file_that_is_no_spec_is_not_shown(start, tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text(f"login: token: {TOKEN}\n")  # whose message of a YAML parser shows the line
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "bad.yaml").write_text(f"layer_range: [{TOKEN}\n")
    for specs in (None, str(tmp_path / "specs")):
        if specs:
            monkeypatch.setenv(SPECS, specs)
        http, engine = start()
        for name in (str(secret), "bad.yaml", "../secret"):
            for more in ({}, {"layers": "1:3"}, {"base": str(secret)}):
                status, told = post(http, {"plateau": name, **more})
                assert status == 400 and TOKEN not in json.dumps(told) and not engine.calls


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not JSON"),
        (b'{"plateau": "none", "plateau": "demo"}', "given twice"),
        (b'{"plateau": "none", "seed": NaN}', "found NaN"),
        (b'{"plateau": ' + b"[" * 60_000, "nested too deeply"),
        (b'{"plateau": "none", "seed": ' + b"9" * 6000 + b"}", "thousands of digits"),
        (b'{"plateau": "\\udfff"}', "half a surrogate pair"),
        ([], "found a list"),
        ({}, '"plateau"'),
        ({"layers": "1:3"}, '"plateau"'),
        ({"plateau": None}, "found null"),
        ({"plateau": 3}, "found a number"),
        ({"plateau": "none", "layer": "1:3"}, "did you mean 'layers'"),
        ({"plateau": "none", "base": "BASE", "layers": "0:1000000000000"}, "layer_range"),
        ({"plateau": "none", "base": "BASE", "layers": [10**17, 10**18]}, "layer_range"),
        ({"plateau": "none", "base": "BASE", "layers": f"0:{'9' * 1000}"}, "layer_range"),
        ({"plateau": "none", "base": "/etc", "layers": "1:3"}, "is not allowed"),
        ({"plateau": "none", "base": "../x", "layers": "1:3"}, "is not allowed"),
        ({"plateau": "qwen3-vl-8b"}, "is not allowed"),
    ],
)
def test_a_bad_request_is_one_sentence_and_touches_nothing(body, says, start, pico):
    http, engine = start()
    if isinstance(body, dict) and body.get("base") == "BASE":
        body = {**body, "base": str(pico("llava").base)}
    status, told = post(http, body)
    assert status == 400 and says in told["error"] and "Traceback" not in told["error"]
    assert len(told["error"]) <= module.MAX_MESSAGE + 4 and not engine.calls


def test_a_merge_gives_up_on_requests_that_do_not_end(start, monkeypatch):
    monkeypatch.setenv(module.PATIENCE, "0.05")
    http, engine = start()
    (stamped,) = http.app.user_middleware
    drain = stamped.kwargs["drain"]
    asyncio.run(drain.enter())
    status, told = post(http, {"plateau": "none"})
    assert status == 503 and "1 requests are still being answered after 0.05 s" in told["error"]
    assert not engine.calls and not drain.is_closed and engine.labels == ["digest 0"]
    drain.leave()
    assert post(http, {"plateau": "none"})[0] == 200


def test_a_merge_whose_client_left_is_finished_before_the_next_begins(start):
    """As a middleware of Starlette's does it, which cancels the route."""
    http, engine = start()
    (merge,) = (route.endpoint for route in http.app.routes if route.path == "/plam/merge")
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/plam/merge", "headers": headers, "client": ("127.0.0.1", 1)}

    async def body() -> Any:
        return {"type": "http.request", "body": b'{"plateau": "none"}', "more_body": False}

    async def scene() -> None:
        going_on, begun = asyncio.Event(), asyncio.Event()
        stock = engine.pause_generation

        async def paused(**given: Any) -> None:
            await stock(**given)
            begun.set()
            await going_on.wait()

        engine.pause_generation = paused
        first = asyncio.ensure_future(merge(Request(scope, body)))
        await begun.wait()
        first.cancel()
        second = asyncio.ensure_future(merge(Request(scope, body)))
        await asyncio.sleep(0.1)
        assert engine.calls == ["pause_generation"]
        going_on.set()
        assert (await second).status_code == 200

    asyncio.run(asyncio.wait_for(scene(), 20))
    once = ["pause_generation", "reset_prefix_cache", "reset_encoder_cache", "plam_merge", "resume_generation"]
    assert engine.calls == once * 2


def test_weights_that_nobody_knows_after_a_merge_have_no_digest(start, monkeypatch):
    http, engine = start()
    (stamped,) = http.app.user_middleware
    drain = stamped.kwargs["drain"]
    assert drain.digest == "digest 0"

    async def failed(new_version: str) -> None:
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "update_weight_version", failed)
        assert post(http, {"plateau": "none"})[0] == 500 and drain.digest is None and engine.merged
    assert post(http, {"plateau": "none"})[0] == 200 and drain.digest == "digest 2"
    engine.failure = RuntimeError("no")  # before anything was touched
    assert post(http, {"plateau": "none"})[0] == 500 and drain.digest == "digest 2"


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "inf"])
def test_patience_that_is_no_number_of_seconds_stops_the_server(seconds, start, monkeypatch):
    monkeypatch.setenv(module.PATIENCE, seconds)
    with pytest.raises(ValueError, match=f"PLAM_DRAIN_SECONDS is '{seconds}'; expected a number of seconds"):
        start()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_another_content_type(kind, start):
    http, engine = start()
    status, told = post(http, {"plateau": "none"}, **{"content-type": kind})
    assert status == 400 and "expected application/json" in told["error"] and not engine.calls


@pytest.mark.parametrize("told", ["length", "chunked", "a lie"])
def test_a_request_that_is_too_large(told, start):
    http, engine = start()
    body: Any = b" " * (MAX_BYTES + 1)
    if told == "chunked":
        body = (b" " * 4096 for _ in range(MAX_BYTES // 4096 + 1))
    status, answer = post(http, body, **({"content-length": "10"} if told == "a lie" else {}))
    assert status == 413 and str(MAX_BYTES) in answer["error"] and not engine.calls


def test_reading_stops_at_the_limit():
    taken = []

    async def stream() -> Any:
        while True:  # without an end
            taken.append(1)
            yield b" " * 4096

    request = SimpleNamespace(headers=Headers({}), stream=stream)
    with pytest.raises(ValueError, match="larger than"):
        asyncio.run(module._read(request))
    assert len(taken) == MAX_BYTES // 4096 + 1


def test_what_is_not_ours_stays_in_the_log(start, warned):
    http, engine = start()
    engine.failure = RuntimeError(f"a path and {TOKEN}")
    status, told = post(http, {"plateau": "none"})
    assert status == 500 and told["error"] == "failed with RuntimeError; the server's log says why"
    assert TOKEN in warned() and engine.calls[-1] == "resume_generation"


# ---- an engine that dies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call", ["pause_generation", "reset_prefix_cache", "reset_encoder_cache", "plam_merge", "resume_generation"]
)
def test_a_merge_ends_when_the_engine_dies(call, start):
    http, engine = start(dies_in=call)
    status, told = post(http, {"plateau": "none"})
    assert status == 500 and "the engine died" in told["error"] and call in engine.calls
    status, told = post(http, {"plateau": "none"})  # and the next one does not wait for it
    assert status == 500 and "the engine died" in told["error"]


def test_asking_for_the_state_ends_when_the_engine_dies(start):
    http, _ = start(dies_in="plam_state")
    answer = http.get("/plam/state")
    assert answer.status_code == 500 and "the engine died" in answer.json()["error"]


def test_a_server_goes_on_after_a_pause_that_failed(start):
    calls: list[str] = []

    class Paused:
        errored = False

        async def pause_generation(self, **given: Any) -> None:
            calls.append("pause")
            raise RuntimeError("no")

        async def resume_generation(self) -> None:
            calls.append("resume")

    endpoint = MergeEndpoint()
    endpoint._engine = Paused()
    with pytest.raises(RuntimeError, match="no"):
        asyncio.run(endpoint._swap(None))
    assert calls == ["pause", "resume"]


def test_vllm_finds_the_routes_by_their_entry_point():
    (point,) = metadata.entry_points(group="vllm.endpoint_plugins", name="plam_eval")
    assert point.load() is MergeEndpoint
