"""HTTP routes of a vLLM API server that say what the served weights are and re-merge them.

vLLM finds `MergeEndpoint` through the group of entry points `vllm.endpoint_plugins`, in an API server that names it.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from vllm.logger import init_logger
from vllm.v1.engine.exceptions import EngineDeadError

from plam_eval.merging.report import MergeReport
from plam_eval.serving import versions
from plam_eval.serving.drain import Drain, StampedAnswers, watched
from plam_eval.serving.engine import (
    WATCH_SECONDS,
    EngineBrokenError,
    check_engine_merge,
    digest_held,
    is_labelled,
    outcome_of,
)
from plam_eval.serving.gate import MAX_BYTES, Gate, parse_request
from plam_eval.serving.options import SpecFiles
from plam_eval.serving.worker import EXTENSION
from plam_eval.spec import PlateauSpec

REMOTE_SWITCH = "PLAM_MERGE_FROM_ANYWHERE"
HOSTS = "PLAM_HOSTS"
"""Environment variable: names, separated by commas, under which clients know this server, for the Host header."""
PATIENCE = "PLAM_DRAIN_SECONDS"
"""Environment variable: how long a merge waits for the requests that were let in; nothing is merged after that."""
DEFAULT_PATIENCE = 300.0
MAX_MESSAGE = 4000

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(?::\d{1,5})?")
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")

T = TypeVar("T")

# In vLLM's own namespace: its logging is configured for that one alone.
logger = init_logger("vllm.plam_eval")


class _TooLarge(ValueError):
    """A request with more bytes than any spec has."""


async def while_alive(engine: Any, call: Awaitable[T]) -> T:
    """What `call`, a call of vLLM's engine client, gives.

    A call that is under way when the engine's process dies is never ended by vLLM, and the server, which waits for its
    requests before it shuts down, does not end either.

    Args:
        engine: vLLM's engine client.
        call: of a method of it.

    Raises:
        EngineDeadError: the engine died.
    """
    task = asyncio.ensure_future(call)
    try:
        while not (await asyncio.wait({task}, timeout=WATCH_SECONDS))[0]:
            if engine.errored:
                raise EngineDeadError()
        return task.result()
    finally:
        task.cancel()


class _BusyError(RuntimeError):
    """Requests are still being answered, so nothing was merged."""


class MergeEndpoint:
    """The routes of a vLLM API server that is started with `VLLM_PLUGINS=plam_eval`.

    `GET /plam/state` says what the served weights are. `POST /plam/merge` takes a JSON object, `plateau` and overrides,
    waits until the requests that were let in are answered, re-merges and lets in those that came meanwhile. Every
    answer carries the digest of the weights that gave it (`plam_eval.serving.drain`). What a request may name:
    `plam_eval.serving.gate`. Who may call: programs on this machine, unless `PLAM_MERGE_FROM_ANYWHERE=1` is set in the
    server's environment; never a web page; and with the server's API key, where it has one.
    """

    name = "plam_eval"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._engine: Any = None
        self._gate = Gate()
        self._keys: list[str] = []
        self._hosts = frozenset({"localhost"})
        self._servers = 1
        self._asked: set[str] = set()  # bases and ancestors of specs that were let in, as they were written
        self._one_at_a_time = asyncio.Lock()
        self._drain, self._patience = Drain(), DEFAULT_PATIENCE

    def attach_router(self, app: Any) -> None:
        """Add our routes to the server, and our header to its answers.

        Args:
            app: a Starlette application.
        """
        app.add_route("/plam/state", self._answer(self._show), methods=["GET"])
        app.add_route("/plam/merge", self._answer(self._merge), methods=["POST"])
        app.add_middleware(StampedAnswers, drain=self._drain)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Get ready before the server starts.

        Args:
            engine_client: vLLM's.
            state: of the server; unused.
            args: the server's.

        Raises:
            ValueError: an environment variable of ours names what is not there; the server does not start.
            LayoutError: the installed vLLM is another than this was written for.
        """
        versions.check_installed(versions.SERVING)
        self._engine, self._patience = engine_client, _patience(os.environ.get(PATIENCE))
        engine_client.generate = watched(self._drain, engine_client.generate)
        if (encode := getattr(engine_client, "encode", None)) is not None:  # for pooling; it need not be there
            engine_client.encode = watched(self._drain, encode, has_labels=False)
        if getattr(engine_client.vllm_config.parallel_config, "worker_extension_cls", EXTENSION) == EXTENSION:
            await self._label()
        self._gate = Gate.of(os.environ, *_named_at_start(engine_client.vllm_config))
        self._keys = [key for key in (args.api_key or [os.environ.get("VLLM_API_KEY")]) if key]
        self._servers = getattr(args, "api_server_count", None) or 1
        named = [getattr(args, "host", None) or "", *os.environ.get(HOSTS, "").split(",")]
        self._hosts |= {_host(name) for name in named} - {"", "0.0.0.0", "::"}
        switch = os.environ.get(REMOTE_SWITCH)
        if switch == "1" and not self._keys:
            logger.warning(
                "/plam/merge is open to other machines without a key (%s=1): whoever reaches this server can change "
                "its weights. Start it with --api-key, or without %s",
                REMOTE_SWITCH,
                REMOTE_SWITCH,
            )
        elif switch not in (None, "", "0", "1"):
            logger.warning("%s is %r; expected 1, so /plam/merge is open to this machine only", REMOTE_SWITCH, switch)

    def _answer(self, route: Callable[[Any], Awaitable[dict[str, Any]]]) -> Callable[[Any], Any]:
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse

        async def answer(request: Any) -> Any:
            refused = self._refusal(request)
            if refused:
                return JSONResponse({"error": refused}, status_code=403)
            try:
                return JSONResponse(self._shown(await route(request)))
            except ClientDisconnect:
                status, text = 400, "the client left before its request was complete"
            except _TooLarge as error:
                status, text = 413, str(error)
            except ValueError as error:  # SpecError and MergeError among them
                status, text = 400, str(error)
            except EngineDeadError:
                status, text = 500, "the engine died, and the server shuts down; its log says why. Start it again"
                logger.error("%s: %s", request.url.path, text)
            except _BusyError as error:
                status, text = 503, str(error)
            except (EngineBrokenError, _EngineRefusedError) as error:
                status, text = 500, str(error)
                logger.error("%s: %s", request.url.path, text)
            except Exception as error:  # not ours: what its text holds is for the log
                status, text = 500, f"failed with {type(error).__name__}; the server's log says why"
                logger.exception("%s failed", request.url.path)
            text = self._shown(text)
            return JSONResponse({"error": text[:MAX_MESSAGE] + " ..." * (len(text) > MAX_MESSAGE)}, status_code=status)

        return answer

    # ---- who may call ------------------------------------------------------------------------------------------------

    def _refusal(self, request: Any) -> str | None:
        anywhere = os.environ.get(REMOTE_SWITCH) == "1"
        client = request.client.host if request.client else ""
        if not anywhere:
            if not _is_loopback(client):
                asked = f"asked from {client}" if client else "asked from an unknown address"
                return f"{asked}; expected from this machine (or {REMOTE_SWITCH}=1 in the server's environment)"
            # uvicorn believes these headers of a proxy on this machine, so that `client` is what they say; and one
            # that leaves them out would look like this machine itself.
            passed = next((header for header in _FORWARDED if header in request.headers), None)
            if passed:
                return (
                    f"passed on by a proxy (the request has the header {passed}); expected straight from this machine "
                    f"(or {REMOTE_SWITCH}=1 in the server's environment)"
                )
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._is_our_host(hosts[0], anywhere):  # a page whose name now leads to this machine
            asked = repr(hosts[0][:200]) if len(hosts) == 1 else f"{len(hosts)} of them"
            return (
                f"the Host header is {asked}; expected localhost, a loopback address, the --host of the server, or a "
                f"name in {HOSTS} in its environment"
            )
        if "origin" in request.headers:  # any page that is open in a browser on this machine could send this
            return "asked by a web page (the request has an Origin header); expected a program"
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        keys = self._keys if scheme.lower() == "bearer" else []
        if self._keys and not any(hmac.compare_digest(key.encode(), mine.encode()) for mine in keys):
            return "no or wrong API key; expected the header Authorization: Bearer KEY"
        return None

    def _is_our_host(self, header: str, anywhere: bool) -> bool:
        host = _host(header)
        if host in self._hosts or _is_loopback(host):
            return True
        return anywhere and _address(host) is not None  # only a name can be made to lead elsewhere

    # ---- what is answered --------------------------------------------------------------------------------------------

    def _shown(self, content: Any) -> Any:
        """`content` for an answer: of each folder that this server knows only the name, not where it lies."""
        config, gate = self._engine.vllm_config, self._gate
        started = config.model_config.model, *_named_at_start(config)
        named = [Path(folder) for folder in (*started, *self._asked, *gate.bases, *gate.below, gate.specs) if folder]
        paths = [path for folder in named if folder.is_absolute() for path in (folder, folder.resolve())]
        folders = sorted({str(path) for path in paths if path.name}, key=len, reverse=True)
        anywhere = "|".join(re.escape(folder) for folder in folders) or "(?!)"
        return _without(re.compile(rf"(?<![\w./-])(?:{anywhere})(?![\w-])"), content)

    async def _show(self, request: Any) -> dict[str, Any]:
        states = await while_alive(self._engine, self._engine.collective_rpc("plam_state", args=(True,)))
        label = await while_alive(self._engine, self._engine.get_weight_version())
        return {
            **states[0],
            "broken": next((state["broken"] for state in states if state["broken"]), None),
            "weight_version": label,
            "draining": self._drain.is_closed,
            "checksums": [state["checksums"] for state in states],
        }

    async def _label(self) -> None:
        """Have answers carry what the weights are merged by now. Raises EngineBrokenError where workers differ."""
        engine = self._engine
        digest = digest_held(await while_alive(engine, engine.collective_rpc("plam_state")))
        if is_labelled(engine.vllm_config):
            await while_alive(engine, engine.update_weight_version(digest))
            self._drain.is_labelled = True
        self._drain.digest = digest

    async def _merge(self, request: Any) -> dict[str, Any]:
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise ValueError(f"Content-Type is {kind[:100]!r}; expected application/json")
        body = parse_request(await _read(request))
        if "plateau" not in body:
            raise ValueError('expected a JSON object with "plateau" (a name, a spec, or "none")')
        if self._servers > 1:
            raise ValueError(f"--api-server-count is {self._servers}; only a single API server can re-merge its engine")
        spec, files = await asyncio.to_thread(self._wanted, body)
        # Once begun it is finished, whether or not the client still waits.
        report = await asyncio.shield(asyncio.ensure_future(self._swap(spec, files)))
        return {"digest": spec.digest() if spec is not None else None, "report": report.to_dict() if report else None}

    def _wanted(self, body: dict[str, Any]) -> tuple[PlateauSpec | None, SpecFiles | None]:
        spec = self._gate.spec(body.pop("plateau"), body)
        if spec is not None:
            self._asked |= {name for name in (spec.base_model, spec.ancestor) if name}
        return spec, check_engine_merge(self._engine.vllm_config, spec)

    async def _swap(self, spec: PlateauSpec | None, files: SpecFiles | None = None) -> MergeReport | None:
        content = spec.to_dict() if spec is not None else None
        async with self._one_at_a_time:  # here, since a swap goes on without the client who asked for it
            self._drain.close()
            try:
                await self._emptied()
                return await self._swap_weights(content, files)
            finally:
                self._drain.open()

    async def _emptied(self) -> None:
        """Wait for all who are inside; one that stops reading its stream is so for good, and nobody else is let in."""
        try:
            await asyncio.wait_for(while_alive(self._engine, self._drain.emptied()), self._patience)
        except asyncio.TimeoutError:
            raise _BusyError(
                f"{self._drain.inside} requests are still being answered after {self._patience:g} s (a client may have "
                f"stopped reading), so the weights were left as they are; ask again, or start the server with "
                f"{PATIENCE} in its environment"
            ) from None

    async def _swap_weights(self, content: dict[str, Any] | None, files: SpecFiles | None) -> MergeReport | None:
        """Merge while no request is inside. vLLM's own pause covers a step that it makes for one that has left."""
        engine = self._engine
        try:
            await while_alive(engine, engine.pause_generation(mode="wait", clear_cache=False))
            reset = engine.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
            if not await while_alive(engine, reset):
                raise _EngineRefusedError("vLLM could not reset its prefix cache, so its weights were left as they are")
            await while_alive(engine, engine.reset_encoder_cache())
            self._drain.digest = None  # no answer is of the old weights until it is known what came of this
            try:
                results = await while_alive(engine, engine.collective_rpc("plam_merge", args=(content, files)))
            finally:
                await self._label()
            return outcome_of(results)
        finally:
            await while_alive(engine, engine.resume_generation())


class _EngineRefusedError(RuntimeError):
    """vLLM would not take a step that has to come before a re-merge."""


def _without(folder: re.Pattern[str], content: Any) -> Any:
    """`content` with only the last component of every path that `folder` matches, and as text that UTF-8 can hold."""
    if isinstance(content, dict):
        return {key: _without(folder, value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without(folder, value) for value in content]
    if not isinstance(content, str):
        return content
    return folder.sub(lambda match: Path(match[0]).name, content).encode("utf-8", "backslashreplace").decode()


async def _read(request: Any) -> bytes:
    """The body of a request, refused as soon as it is too large, whatever its headers say of its length."""
    told = request.headers.get("content-length", "0")
    content = bytearray()
    if told.isdecimal() and len(told) < 20 and int(told) <= MAX_BYTES:
        async for chunk in request.stream():
            content += chunk
            if len(content) > MAX_BYTES:
                break
        else:
            return bytes(content)
    raise _TooLarge(f"the request is larger than {MAX_BYTES} bytes; expected a plateau spec")


def _named_at_start(vllm_config: Any) -> list[str]:
    """Base and ancestor of the spec that the engine was started with; of none, or by another load format, none."""
    extra = getattr(getattr(vllm_config, "load_config", None), "model_loader_extra_config", None)
    spec = extra.get("plateau") if isinstance(extra, dict) else None
    return [str(spec[key]) for key in ("base_model", "ancestor") if spec.get(key)] if isinstance(spec, dict) else []


def _patience(given: str | None) -> float:
    """Seconds in the environment variable. Raises ValueError where they are none."""
    try:
        seconds = float(given or DEFAULT_PATIENCE)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{PATIENCE} is {given!r}; expected a number of seconds above 0")
    return seconds


def _host(header: str) -> str:
    """Name or address in a Host header, or as a user gives it, without port and brackets; empty where it is neither."""
    host = header.strip().lower()
    match = _HOST.fullmatch(host)
    return host if _address(host) is not None else match[1].strip("[]") if match else ""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    mapped = getattr(address, "ipv4_mapped", None)  # 127.0.0.1, seen by a server that listens on ::
    return address is not None and bool((mapped or address).is_loopback)
