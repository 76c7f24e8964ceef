"""An API server on merged weights, its routes and its processes."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import merge_in_place
from plam_eval.serving.worker import why_not_remerged
from plam_eval.spec import load_spec
from tests.helpers import recipes
from tests.helpers.engines import FAST, picture
from tests.helpers.paths import PAIR
from tests.helpers.served_pair import BASE, DEMO, LONG, PAIR_PROMPTS, SWITCHES, environment, hf_answers

pytestmark = pytest.mark.vllm

TOKEN = "hf_PlantedToken123"


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    log: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ancestor: Path) -> Iterator[Server]:
    """An API server with two tensor-parallel workers: four processes. It does not outlive the last test here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folder = tmp_path_factory.mktemp("server")
    log, specs = folder / "log", folder / "specs"
    specs.mkdir()
    (specs / "late.yaml").write_text(json.dumps({**load_spec("demo", {"base": BASE}).to_dict(), "layer_range": [6, 8]}))
    third = {"rule": "ties", "ancestor": str(ancestor), "modules": "all", "base_weight": 1.2}
    (specs / "old.yaml").write_text(json.dumps(load_spec("demo", {"base": BASE, **third}).to_dict()))
    (specs / "bad.yaml").write_text(f"token: {TOKEN}\n")
    (folder / "demo.yaml").write_text(json.dumps(load_spec("demo", {"base": BASE}).to_dict()))
    given = {"MODEL": str(PAIR / "mllm"), "SPEC": str(folder / "demo.yaml"), "GPUS": "2"}
    serve, model, *words = recipes.words_of("serve", "vllm", **given)  # of docs/multi-gpu.md
    assert serve == "serve"  # the CPU build lacks the command
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *words]
    command += ["--host", "127.0.0.1", "--port", port, "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "16", "--skip-mm-profiling"]
    command += ["--limit-mm-per-prompt", json.dumps(FAST["limit_mm_per_prompt"])]
    cores = sorted(os.sched_getaffinity(0))  # a worker on each of two, or both on the only one
    given = environment(
        PLAM_SPECS=str(specs),
        PLAM_BASES=str(ancestor.parent),
        VLLM_PLUGINS="plam_eval",
        VLLM_CPU_OMP_THREADS_BIND="|".join(map(str, (cores * 2)[:2])),
        VLLM_LOGGING_LEVEL="INFO",
    )
    with log.open("w") as output:
        process = subprocess.Popen(command, env=given, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        assert "Worker_TP1" in log.read_text()
        yield Server(f"http://127.0.0.1:{port}", process, log)
    finally:
        process.terminate()
        process.wait(60)


def call(url: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_server_answers_with_merged_weights_and_goes_to_another_spec(server, fresh):
    text, _ = PAIR_PROMPTS[2]
    asked = {"model": "merged", "prompt": text, "temperature": 0, "max_tokens": 16, "ignore_eos": True}
    asked |= {"return_token_ids": True}

    def tokens() -> list[int]:
        status, answer = call(f"{server.url}/v1/completions", asked)
        assert status == 200, answer
        return answer["choices"][0]["token_ids"]

    def look() -> Any:
        buffer = io.BytesIO()
        picture(4, (64, 64)).save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": LONG}]
        body = {**asked, "messages": [{"role": "user", "content": content}], "logprobs": True}
        status, answer = call(f"{server.url}/v1/chat/completions", {k: v for k, v in body.items() if k != "prompt"})
        assert status == 200 and answer["choices"][0]["finish_reason"] == "length", answer
        return [round(token["logprob"], 3) for token in answer["choices"][0]["logprobs"]["content"]]

    assert tokens() == fresh(DEMO)[2][0]
    seen = look()
    status, state = call(f"{server.url}/plam/state")
    assert status == 200 and state["digest"] == load_spec("demo", {"base": BASE}).digest()
    assert str(PAIR) not in json.dumps(state)

    other = SWITCHES[2]
    status, told = call(f"{server.url}/plam/merge", other)
    assert status == 200 and told["report"]["tensors"] == 8 * 7, told
    assert tokens() == fresh(other)[2][0] != fresh(DEMO)[2][0]
    assert look() != seen  # an image that the server has met before

    for body in ({**DEMO, "layers": "3:12"}, {**DEMO, "layer": "3:5"}, {"layers": "3:5"}, ["demo"]):
        status, told = call(f"{server.url}/plam/merge", body)
        assert status == 400 and told["error"], told
    assert tokens() == fresh(other)[2][0]
    assert call(f"{server.url}/plam/state")[1]["digest"] == told_digest(other)

    status, told = call(f"{server.url}/plam/merge", {"plateau": "late.yaml"})
    assert status == 200 and told["report"]["tensors"] == 2 * 4, told
    for name in ("bad.yaml", str(server.log), "../log"):
        status, told = call(f"{server.url}/plam/merge", {"plateau": name})
        assert status == 400 and TOKEN not in told["error"], told


@dataclass
class Streamed:
    """An answer that is read as it comes."""

    response: Any
    text: str = ""
    error: str = ""

    def read(self, parts: int | None = None) -> Streamed:
        """So many further parts of it; all that are left by default."""
        for line in self.response:
            content = line.decode().strip().removeprefix("data:").strip()
            if not content or content == "[DONE]":
                continue
            part = json.loads(content)
            self.error += str(part.get("error") or "")
            self.text += "".join(choice["text"] for choice in part.get("choices", ()))
            if parts is not None and (parts := parts - 1) == 0:
                break
        return self


@contextlib.contextmanager
def nothing_generated(server: Server) -> Iterator[None]:
    """Engine and workers stand still; the API server in front of them goes on."""
    processes = psutil.Process(server.process.pid).children(recursive=True)
    try:
        for process in processes:
            process.suspend()
        yield
    finally:
        for process in processes:
            process.resume()


def test_a_stream_that_a_merge_comes_upon_is_of_one_version_to_its_end(server):
    """Two of them, and who comes while the merge waits is answered by the new weights: as the headers say."""
    asked = {"model": "merged", "prompt": LONG, "temperature": 0, "max_tokens": 200, "ignore_eos": True}

    def ask(**more: Any) -> tuple[str | None, Any]:
        body = json.dumps({**asked, **more}).encode()
        request = urllib.request.Request(f"{server.url}/v1/completions", body, {"Content-Type": "application/json"})
        response = urllib.request.urlopen(request, timeout=120)
        digest = response.headers["X-Plam-Digest"]
        return digest, Streamed(response) if more.get("stream") else json.load(response)

    def state() -> Any:
        return call(f"{server.url}/plam/state")[1]

    new, old = SWITCHES[2], DEMO
    assert call(f"{server.url}/plam/merge", new)[0] == 200
    other = state()
    digest, answer = ask()
    assert digest == told_digest(new) == other["weight_version"]
    by_new = answer["choices"][0]["text"]
    assert call(f"{server.url}/plam/merge", old)[0] == 200
    first = state()
    digest, answer = ask()
    assert digest == told_digest(old) == first["weight_version"] == first["digest"]
    by_old = answer["choices"][0]["text"]
    assert by_old != by_new
    # Each of both workers holds its half of every layer. The merge is of all eight layers.
    assert len(first["checksums"]) == 2 and first["checksums"][0] != first["checksums"][1]
    for mine, theirs in zip(first["checksums"], other["checksums"], strict=True):
        assert list(mine) == [*(f"layer {number}" for number in range(8)), "rest"]
        assert [place for place in mine if mine[place] == theirs[place]] == ["rest"]

    caught = [ask(stream=True) for _ in range(2)]
    for _, stream in caught:
        stream.read(parts=3)
    told: list[Any] = []
    threads = [threading.Thread(target=lambda: told.append(call(f"{server.url}/plam/merge", new)), daemon=True)]
    with nothing_generated(server):  # or both might end before the merge has come
        threads[0].start()
        time.sleep(0.2)
    while not state()["draining"]:  # the merge is there, and waits for both
        assert not told, told
        with nothing_generated(server):
            time.sleep(0.2)
    threads.append(threading.Thread(target=lambda: told.append(ask()), daemon=True))
    threads[1].start()
    for digest, stream in caught:
        assert digest == told_digest(old)
        assert (stream.read().text, stream.error) == (by_old, "")
    for thread in threads:
        thread.join(120)
    ((status, merged),) = [one for one in told if isinstance(one[0], int)]
    ((digest, late),) = [one for one in told if not isinstance(one[0], int)]
    assert status == 200 and merged["digest"] == digest == told_digest(new)
    assert late["choices"][0]["text"] == by_new
    assert {**state(), "report": None} == {**other, "report": None}, "checksums and all, as before"
    with urllib.request.urlopen(f"{server.url}/v1/models", timeout=60) as models:
        assert models.headers["X-Plam-Digest"] is None, "which no weights answered"


def test_two_workers_merge_with_an_ancestor(server, ancestor):
    """Each of them holds half of a tensor, and the rule looks at the whole of it."""
    from transformers import AutoModelForImageTextToText

    spec = load_spec(Path(server.log).parent / "specs" / "old.yaml")
    model = AutoModelForImageTextToText.from_pretrained(PAIR / "mllm", dtype=torch.float32).eval()
    expected = merge_in_place(model, spec, checkpoint=PAIR / "mllm")
    (answer,) = hf_answers(model, PAIR / "mllm", PAIR_PROMPTS[2:], 16)
    before = call(f"{server.url}/plam/state")[1]["digest"]
    status, told = call(f"{server.url}/plam/merge", {"plateau": "old.yaml", "ancestor": str(PAIR / "mllm")})
    assert status == 400 and "ancestor:" in told["error"] and "not allowed" in told["error"], told
    assert call(f"{server.url}/plam/state")[1]["digest"] == before
    status, told = call(f"{server.url}/plam/merge", {"plateau": "old.yaml"})
    assert status == 200 and told["digest"] == spec.digest(), told
    assert told["report"]["relative_change"] == {str(n): change for n, change in expected.relative_change.items()}
    status, state = call(f"{server.url}/plam/state")
    assert state["merged_from"]["ancestor"] == {"name": "old", "fingerprint": fingerprint(ancestor)}
    assert state["merged_from"]["base"]["fingerprint"] == fingerprint(BASE)
    assert not any(str(folder) in json.dumps(state) for folder in (PAIR, ancestor.parent))
    text, _ = PAIR_PROMPTS[2]
    asked = {"model": "merged", "prompt": text, "temperature": 0, "max_tokens": 16, "return_token_ids": True}
    tokens = call(f"{server.url}/v1/completions", asked)[1]["choices"][0]["token_ids"]
    assert tokens == answer


def fingerprint(folder: Path | str) -> str:
    return Checkpoint.open(folder).identity()["fingerprint"]


def test_the_client_of_the_page(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture(4, (64, 64)).save("picture.png")
    code = recipes.recipe("client").replace("http://localhost:8000", server.url)
    exec(compile(code, "docs/multi-gpu.md", "exec"), {})
    assert len(capsys.readouterr().out.strip()) > 1


def test_copies_behind_one_server_merge_when_they_start_and_not_again(tmp_path):
    """Up to vLLM's own config: its CPU build starts no two replicas."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    (tmp_path / "demo.yaml").write_text(json.dumps(load_spec("demo", {"base": BASE}).to_dict()))
    given = {"MODEL": str(PAIR / "mllm"), "SPEC": str(tmp_path / "demo.yaml"), "GPUS": "2"}
    _, model, *words = recipes.words_of("data parallel", "vllm", **given)  # of docs/multi-gpu.md
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    read, others = parser.parse_known_args(["--model", model, *words])
    assert others == ["--port", "8000"]
    config = AsyncEngineArgs.from_cli_args(read).create_engine_config()
    assert config.parallel_config.data_parallel_size == 2 and config.load_config.load_format == "plam"
    assert config.load_config.model_loader_extra_config["plateau"]["base_model"] == BASE
    assert "2 data-parallel replicas" in why_not_remerged(config)[0]


def told_digest(options: dict[str, Any]) -> str:
    rest = {key: value for key, value in options.items() if key != "plateau"}
    spec = load_spec(options["plateau"], rest)
    assert spec is not None
    return spec.digest()


def test_a_server_ends_when_its_engine_dies_during_a_merge(server):
    """The last test of `server`."""
    (core,) = [
        process
        for process in psutil.Process(server.process.pid).children(recursive=True)
        if any("EngineCore" in word for word in process.cmdline())
    ]
    core.suspend()  # so that the merge is under way, and waits, when the process dies
    told: list[tuple[int, Any]] = []
    asking = threading.Thread(target=lambda: told.append(call(f"{server.url}/plam/merge", DEMO)), daemon=True)
    asking.start()
    asking.join(2)
    assert asking.is_alive()
    core.kill()
    asking.join(60)
    assert told == [(500, {"error": "the engine died, and the server shuts down; its log says why. Start it again"})]
    assert server.process.wait(60) is not None
