"""A re-merge from Python: what is refused before, and an engine that dies meanwhile."""

from __future__ import annotations

import signal
import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.engine.exceptions import EngineDeadError

from plam_eval.errors import MergeError
from plam_eval.serving import engine as engine_module
from plam_eval.serving.engine import merge_engine

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(("field", "says"), [("replicas", "2 data-parallel replicas"), ("lora", "LoRA enabled")])
def test_engines_that_cannot_be_re_merged_say_so(field, says):
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(data_parallel_size=2 if field == "replicas" else 1),
        lora_config=object() if field == "lora" else None,
    )
    llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config))
    with pytest.raises(MergeError, match=says):
        merge_engine(llm, "none")


def test_a_merge_from_python_ends_when_the_engine_dies(monkeypatch):
    monkeypatch.setattr(engine_module, "WATCH_SECONDS", 0.02)
    resources = SimpleNamespace(engine_dead=False)
    engine = SimpleNamespace(engine_core=SimpleNamespace(resources=resources))
    never = threading.Event()

    def call() -> None:
        threading.Timer(0.05, setattr, (resources, "engine_dead", True)).start()
        never.wait()

    with pytest.raises(EngineDeadError):
        engine_module._while_alive(engine, call)
    never.set()
    resources.engine_dead = False
    assert engine_module._while_alive(engine, lambda: 3) == 3
    with pytest.raises(KeyError, match="from the call"):
        engine_module._while_alive(engine, lambda: dict[str, int]()["from the call"])


@pytest.mark.parametrize("at", ["caches", "merge"])
def test_ctrl_c_leaves_no_merge_that_begins_after_it(monkeypatch, at):
    """Whoever asks next what the engine holds is told what it goes on with."""
    monkeypatch.setattr(engine_module, "WATCH_SECONDS", 0.02)
    engine = SimpleNamespace(engine_core=SimpleNamespace(resources=SimpleNamespace(engine_dead=False)))
    ended: list[str] = []

    def step(name: str) -> None:
        if name == at:
            signal.raise_signal(signal.SIGINT)  # the main thread handles it
            time.sleep(0.1)
        ended.append(name)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be left out
    try:
        with pytest.raises(KeyboardInterrupt):
            engine_module._while_alive(engine, lambda: step("caches"), lambda: step("merge"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == (["caches"] if at == "caches" else ["caches", "merge"])
    time.sleep(0.1)
    assert len(ended) == (1 if at == "caches" else 2)
