"""No answer of a server is of two merges: a merge waits until every request that is being answered has ended.

vLLM's own pause waits for what it runs, and not for what it has queued or preempted, which would go on under other
weights; and one request to a server may be several of the engine's (a list of prompts, a beam search, calls of tools).
So requests are let in here, before vLLM sees them, and the header `X-Plam-Digest` of an answer says what they were let
in to. vLLM's labels of tokens are held against it when they end.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from plam_eval.serving.engine import check_answered_by

HEADER = "X-Plam-Digest"
"""Header of answers: the digest of the spec that the answering weights are merged by, or "plain"."""

_NAME = HEADER.lower().encode()
_DIGEST = re.compile("[0-9a-f]+|plain")  # anything else, such as the end of a line, is left out of headers
_STREAMS = (b"text/event-stream", b"application/x-ndjson")

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Drain:
    """Who is being answered, and who waits until other weights are in place. For one event loop.

    Attributes:
        digest: of the weights in place, see `plam_eval.spec.digest_of`; None where they are not known.
        is_labelled: whether the engine labels its answers with it.
        inside: how many are being answered.
    """

    def __init__(self) -> None:
        self.digest: str | None = None
        self.is_labelled = False
        self.inside = 0
        self._opened, self._emptied = asyncio.Event(), asyncio.Event()
        self._opened.set()
        self._emptied.set()

    async def enter(self) -> None:
        """Go in, as soon as it is open."""
        while not self._opened.is_set():
            await self._opened.wait()
        self.inside += 1
        self._emptied.clear()

    def leave(self) -> None:
        """Go out."""
        self.inside -= 1
        if not self.inside:
            self._emptied.set()

    def close(self) -> None:
        """Let nobody in from here on; who comes waits."""
        self._opened.clear()

    @property
    def is_closed(self) -> bool:
        """Whether somebody waits for it to be empty, or changes weights."""
        return not self._opened.is_set()

    def open(self) -> None:
        """Let in who waits."""
        self._opened.set()

    async def emptied(self) -> None:
        """Wait until nobody is inside."""
        while self.inside:
            await self._emptied.wait()


class Visit:
    """A request to the server: inside from the first time that it asks the engine until it has been answered whole.

    What goes on after its answer, in the background, keeps it inside until the engine has answered that.

    Args:
        drain: that it goes through.
    """

    def __init__(self, drain: Drain) -> None:
        self._drain = drain
        self._entering = asyncio.Lock()
        self._is_inside = self.is_over = False
        self._calls = 0
        self.digest: str | None = None

    async def begin(self) -> None:
        """Go in; nothing where it is inside, since whoever is must be able to end."""
        async with self._entering:
            if not self._is_inside:
                await self._drain.enter()
                self._is_inside, self.digest = True, self._drain.digest

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """While entered, the engine is asked."""
        self._calls += 1
        try:
            await self.begin()
            yield
        finally:
            self._calls -= 1
            self._leave_if_done()

    def end(self) -> None:
        """The request is answered, so that it goes out with the last call of the engine, or now where there is none."""
        self.is_over = True
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self._is_inside and self.is_over and not self._calls:
            self._is_inside = False
            self._drain.leave()


_VISIT: ContextVar[Visit | None] = ContextVar("plam_visit", default=None)


def watched(drain: Drain, stock: Callable[..., Any], *, has_labels: bool = True) -> Callable[..., AsyncIterator[Any]]:
    """`generate` or `encode` of vLLM's engine client, for those that `drain` lets in.

    Args:
        drain: of the server.
        stock: the client's own.
        has_labels: whether vLLM labels its answers by weights; those of `encode` it does not.

    Returns:
        One that raises MixedWeightsError in the place of the last part of an answer that is not of one label.
    """

    async def answer(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        visit = _VISIT.get()
        if visit is None or visit.is_over:  # of no HTTP request, or of one before: this call alone
            visit = Visit(drain)
            visit.end()
        async with visit.asking(), contextlib.aclosing(stock(*args, **kwargs)) as outputs:
            async for output in outputs:
                if has_labels and drain.is_labelled and visit.digest is not None:
                    check_answered_by(output, visit.digest)
                yield output

    return answer


class StampedAnswers:
    """ASGI middleware: the header `HEADER` on every answer that the engine had a share in, streams included.

    Args:
        app: the application behind it.
        drain: of the server.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], drain: Drain) -> None:
        self._app, self._drain = app, drain

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        """Answer one request.

        Args:
            scope: of ASGI.
            receive: of ASGI.
            send: of ASGI.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = Visit(self._drain)
        before = _VISIT.set(visit)

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                # An application's own, which says nothing of these weights, would be read in the place of ours.
                headers = [each for each in message.get("headers", ()) if each[0].lower() != _NAME]
                # A stream's headers go out before the engine is asked, so it goes in here. One that is fetched (GET)
                # shows an answer that is given elsewhere.
                if scope["method"] == "POST" and _is_stream(headers):
                    await visit.begin()
                if visit.digest is not None and _DIGEST.fullmatch(visit.digest):
                    headers.append((_NAME, visit.digest.encode()))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, stamped)
        finally:
            visit.end()
            _VISIT.reset(before)


def _is_stream(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(
        name.lower() == b"content-type" and value.strip().lower().startswith(_STREAMS) for name, value in headers
    )
