"""Requests that are being answered, and those that come, while a merge wants in; and what answers say gave them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.outputs import CompletionOutput, WeightVersionSpan

from plam_eval.serving.drain import HEADER, Drain, StampedAnswers, watched
from plam_eval.serving.engine import EngineBrokenError, MixedWeightsError, check_answered_by, digest_held

pytestmark = pytest.mark.vllm

OLD, NEW = "a" * 64, "plain"


def part(versions: list[str], *, finished: bool = True) -> Any:
    """An output of vLLM's whose tokens were drawn under these labels, one token each."""
    spans = [WeightVersionSpan(version, place, place + 1) for place, version in enumerate(versions)]
    completion = CompletionOutput(0, "", [], None, None, weight_versions=spans if finished else None)
    return SimpleNamespace(request_id="r", finished=finished, outputs=[completion])


class Server:
    """A server whose engine gives one part per `step` that a test allows, under the label that holds by then."""

    def __init__(self) -> None:
        self.drain = Drain()
        self.drain.digest, self.drain.is_labelled = OLD, True
        self.label = OLD
        self.steps = asyncio.Semaphore(0)
        self.closed = 0
        self.generate = watched(self.drain, self._stock)

    async def _stock(self, tokens: int) -> AsyncIterator[Any]:
        drawn: list[str] = []
        try:
            for number in range(tokens):
                await self.steps.acquire()
                drawn.append(self.label)
                yield part(list(drawn), finished=number == tokens - 1)
        finally:
            self.closed += 1

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """`calls`: tokens of each call of the engine; `stream` says whether headers go out before them."""
        kind = b"text/event-stream" if scope["stream"] else b"application/json"
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
        body, failed = [], None
        if scope["stream"]:
            await send(start)
        for tokens in scope["calls"]:
            try:
                async for output in self.generate(tokens):
                    body += [span.version for span in output.outputs[0].weight_versions or ()]
            except MixedWeightsError as error:
                failed = str(error)
        if not scope["stream"]:
            await send(start)
        await send({"type": "http.response.body", "body": (failed or ",".join(body)).encode()})

    async def ask(self, *calls: int, stream: bool = False, method: str = "POST") -> tuple[str | None, str]:
        """The digest in the header of an answer, and which weights gave its tokens."""
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "stream": stream, "calls": calls}
        await StampedAnswers(self.app, self.drain)(scope, None, send)
        headers = dict(sent[0]["headers"])
        return headers.get(HEADER.lower().encode(), b"").decode() or None, sent[1]["body"].decode()

    async def merge(self) -> None:
        self.drain.close()
        await self.drain.emptied()
        self.label = self.drain.digest = NEW
        self.drain.open()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def run(scene: Callable[[Server], Any]) -> Any:
    async def act() -> Any:
        return await asyncio.wait_for(scene(Server()), 20)

    return asyncio.run(act())


@pytest.mark.parametrize("stream", [False, True])
def test_a_merge_waits_for_the_whole_answer_and_who_comes_waits_for_the_merge(stream: bool) -> None:
    async def scene(server: Server) -> None:
        early = asyncio.ensure_future(server.ask(2, 3, stream=stream))  # two calls of the engine for one answer
        await settle()
        server.steps.release()
        await settle()
        merge = asyncio.ensure_future(server.merge())
        await settle()
        late = asyncio.ensure_future(server.ask(2, stream=stream))
        for _ in range(3):
            server.steps.release()
        await settle()
        assert not merge.done() and not early.done(), "the fifth token is still to come"
        server.steps.release()
        await merge
        assert await early == (OLD, ",".join([OLD] * 5))
        for _ in range(2):
            server.steps.release()
        assert await late == (NEW, f"{NEW},{NEW}")
        assert server.closed == 3

    run(scene)


def test_each_part_that_says_what_gave_it_is_checked() -> None:
    """Of several answers to one prompt vLLM ends the request with the last of them."""

    async def parts() -> AsyncIterator[Any]:
        first, last = part([NEW]), part([OLD])
        first.finished = False
        yield first
        yield last

    async def scene(server: Server) -> None:
        with pytest.raises(MixedWeightsError, match=f"tokens 0 to 1 by {NEW}; expected all by {OLD}"):
            _ = [output async for output in watched(server.drain, parts)()]

    run(scene)


def test_what_has_no_labels_is_waited_for_and_not_checked() -> None:
    async def scene(server: Server) -> None:
        server.generate = watched(server.drain, server._stock, has_labels=False)
        server.label = "an embedding has none"
        early = asyncio.ensure_future(server.ask(2))
        await settle()
        merge = asyncio.ensure_future(server.merge())
        await settle()
        assert not merge.done()
        for _ in range(2):
            server.steps.release()
        await merge
        assert (await early)[0] == OLD

    run(scene)


def test_who_leaves_lets_the_merge_in() -> None:
    async def scene(server: Server) -> None:
        leaving = asyncio.ensure_future(server.ask(5, stream=True))
        await settle()
        server.steps.release()
        await settle()
        merge = asyncio.ensure_future(server.merge())
        await settle()
        assert not merge.done()
        leaving.cancel()
        await merge
        assert server.closed == 1, "vLLM was told that nobody waits for it any more"

    run(scene)


@pytest.mark.parametrize("stream", [False, True])
def test_weights_that_change_in_the_midst_of_an_answer_are_told(stream: bool) -> None:
    """By whatever went round the drain, such as vLLM's own routes for developers."""

    async def scene(server: Server) -> tuple[str | None, str]:
        asked = asyncio.ensure_future(server.ask(2, stream=stream))
        await settle()
        server.steps.release()
        await settle()
        server.label = NEW
        server.steps.release()
        answer: tuple[str | None, str] = await asked
        return answer

    _, told = run(scene)
    assert f"tokens 0 to 1 by {OLD}, tokens 1 to 2 by {NEW}; expected all by {OLD}" in told


def test_calls_of_no_request_are_let_in_one_by_one() -> None:
    async def scene(server: Server) -> None:
        outputs = server.generate(1)
        server.drain.close()
        first = asyncio.ensure_future(anext(outputs))
        server.steps.release()
        await settle()
        assert not first.done() and server.steps.locked() is False
        server.drain.open()
        await first
        await outputs.aclose()  # type: ignore[attr-defined]
        await asyncio.wait_for(server.drain.emptied(), 5)

    run(scene)


def test_what_a_request_leaves_to_the_background_is_waited_for() -> None:
    """Responses with `background` are answered as "queued", and the engine goes on."""

    async def scene(server: Server) -> list[str]:
        drawn: list[str] = []

        async def background() -> None:
            async for output in server.generate(2):
                drawn.extend(span.version for span in output.outputs[0].weight_versions or ())

        tasks: list[asyncio.Task[None]] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            tasks.append(asyncio.create_task(background()))
            await settle()  # the engine is asked before the answer is sent

        async def send(message: Any) -> None: ...

        await StampedAnswers(app, server.drain)({"type": "http", "method": "POST"}, None, send)
        server.steps.release()
        merge = asyncio.ensure_future(server.merge())
        await settle()
        assert not merge.done(), "the second token is still to come"
        server.steps.release()
        await tasks[0]
        await merge
        return drawn

    assert run(scene) == [OLD, OLD]


def test_what_the_engine_had_no_share_in_carries_no_digest() -> None:
    assert run(lambda server: server.ask()) == (None, "")
    assert run(lambda server: server.ask(stream=True, method="GET")) == (None, "")


@pytest.mark.parametrize(
    ("held", "calls", "kind", "stamps"),
    [
        (OLD, 0, b"TEXT/Event-Stream; charset=utf-8", [OLD]),
        (OLD, 0, b"Application/X-NDJSON", [OLD]),
        (OLD, 1, b"application/json", [OLD]),
        (OLD, 0, b"application/json", []),
        (f"{OLD}\r\nSet-Cookie: a=b", 1, b"application/json", []),
        ("plain\n", 1, b"application/json", []),
    ],
)
def test_the_header_is_ours_alone(held: str, calls: int, kind: bytes, stamps: list[str]) -> None:
    async def scene(server: Server) -> list[str]:
        server.drain.digest, server.drain.is_labelled = held, False
        server.steps.release()
        sent: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            for _ in range(calls):
                async for _ in server.generate(1):
                    pass
            headers = [(b"Content-Type", kind), (b"X-PLAM-Digest", b"c" * 64)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def send(message: Any) -> None:
            sent.append(message)

        await StampedAnswers(app, server.drain)({"type": "http", "method": "POST"}, None, send)
        assert (b"Content-Type", kind) in sent[0]["headers"]
        return [value.decode() for name, value in sent[0]["headers"] if name.lower() == HEADER.lower().encode()]

    assert run(scene) == stamps


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ([{"digest": OLD, "broken": None}, {"digest": None, "broken": None}], f"different weights: {OLD}, plain"),
        ([{"digest": OLD, "broken": None}, {"digest": OLD, "broken": "half loaded"}], "half loaded"),
    ],
)
def test_workers_that_differ_give_no_label(states: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(EngineBrokenError, match=says):
        digest_held(states)
    assert digest_held(states[:1]) == OLD and digest_held([{"digest": None, "broken": None}]) == "plain"


def test_an_answer_without_tokens_is_nobodys() -> None:
    check_answered_by(part([]), OLD)
    with pytest.raises(MixedWeightsError, match="by default; expected all by"):
        check_answered_by(part(["default"]), OLD)
