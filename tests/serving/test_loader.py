"""The real vLLM engine on merged weights: against HF merged in place, saved checkpoints and fresh engines."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("vllm", reason="vLLM is not installed")

from plam_eval.merging.checkpoint import Checkpoint, MergeError
from plam_eval.merging.merge import merge_in_place, merged_weights
from plam_eval.serving import loader
from plam_eval.serving.loader import (
    EngineBrokenError,
    PlamModelLoader,
    PlateauWorker,
    merge_engine,
    remerge_way,
)
from plam_eval.spec import SpecError, load_spec
from tests.helpers import recipes
from tests.helpers.engines import FAST, answers, engine, inputs, picture
from tests.helpers.llamas import shard
from tests.helpers.paths import PAIR
from tests.helpers.pico import FAMILIES, PicoPair

pytestmark = pytest.mark.vllm

BASE = str(PAIR / "base")
TOKEN = "hf_PlantedToken123"
DEMO = {"plateau": "demo", "base": BASE}
Prompts = list[tuple[str, list[Image.Image]]]


def prompts_of(model: Path) -> Prompts:
    """One image, none, and two."""
    from transformers import AutoProcessor

    template = AutoProcessor.from_pretrained(model).apply_chat_template

    def prompt(text: str, *images: Image.Image) -> tuple[str, list[Image.Image]]:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        return template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True), list(
            images
        )

    return [prompt("What is it?", picture(1)), prompt("Which day?"), prompt("Same?", picture(2), picture(3, (28, 56)))]


def hf_answers(model: Any, folder: Path, prompts: Prompts, tokens: int = 12) -> list[list[int]]:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    found = []
    for text, images in prompts:
        inputs = processor(text=text, images=images or None, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
        found.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def save_merged(pair: PicoPair, spec: Any, folder: Path) -> Path:
    shutil.copytree(pair.mllm, folder)
    stored = load_file(pair.mllm / "model.safetensors")
    merged = dict(merged_weights(stored.items(), spec, Checkpoint.open(pair.base), None))
    save_file(merged, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("family", [*FAMILIES, "the embedded pair"])
def test_equals_hf_merged_in_place_and_a_saved_checkpoint(family, pico, tmp_path):
    from transformers import AutoModelForImageTextToText

    pair = pico(family) if family in FAMILIES else PicoPair(family, PAIR / "mllm", PAIR / "base")
    options = {"base": str(pair.base), "layers": "1:4", "modules": "all", "model_weight": 0.7, "base_weight": 0.5}
    spec = load_spec(None, options)
    prompts = prompts_of(pair.mllm)
    model = AutoModelForImageTextToText.from_pretrained(pair.mllm, dtype=torch.float32).eval()
    plain = hf_answers(model, pair.mllm, prompts)
    merge_in_place(model, spec, checkpoint=pair.mllm)
    merged = hf_answers(model, pair.mllm, prompts)
    differ = [one != other for one, other in zip(plain, merged, strict=True)]
    assert all(differ) if family in FAMILIES else any(differ)

    with engine(pair.mllm, options) as llm:
        assert answers(llm, prompts) == merged
        (state,) = llm.collective_rpc("plam_state")
        assert state["digest"] == spec.digest() and state["report"]["tensors"] >= 3 * 7
        assert merge_engine(llm, "none") is None
        assert answers(llm, prompts) == plain
    if family in (FAMILIES[0], "the embedded pair"):  # an engine takes seconds to start, and a file knows no family
        saved = save_merged(pair, spec, tmp_path / "merged")
        with engine(saved, load_format="auto", model_loader_extra_config={}) as llm:
            assert answers(llm, prompts) == merged


# ---- one resident engine on the embedded pair ------------------------------------------------------------------------

LONG = "ASSISTANT: the sky is blue and the circle is red. " * 12
"""Longer than a block of the prefix cache, which is 128 tokens on a CPU."""
PAIR_PROMPTS: Prompts = [
    ("USER: <image>\nWhat is to the left of the star? " + LONG, [picture(4, (64, 64))]),
    ("USER: <image>\nHow many? ASSISTANT:", [picture(4, (64, 64))]),
    (LONG + "USER: Where is the square? ASSISTANT:", []),
]
SWITCHES: list[dict[str, Any]] = [
    {"plateau": "none"},
    DEMO,
    {**DEMO, "layers": "0:8", "modules": "all"},
    {**DEMO, "layers": "2:5", "modules": "mlp"},
    {**DEMO, "rule": "self_scale", "model_weight": 1.6},
    {**DEMO, "rule": "noise", "seed": 3, "base_weight": 0.9},
    {**DEMO, "rule": "normalized", "base_weight": 2.0},
    {**DEMO, "modules": "vo", "base_weight": 1.5},
    {"plateau": "none"},
    {**DEMO, "layers": "0:4", "model_weight": 0, "base_weight": 1},
]

STARTED = (*SWITCHES[:3], SWITCHES[5])
"""Those that an engine is started for; all of them are merged in an HF model."""


def detailed(llm: Any) -> list[tuple[list[int], float]]:
    """Tokens and their log-probability, which shows a change of weights that no token does."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0, max_tokens=16, logprobs=1, ignore_eos=True)
    done = [output.outputs[0] for output in llm.generate(inputs(PAIR_PROMPTS), parameters, use_tqdm=False)]
    return [(list(output.token_ids), round(output.cumulative_logprob, 3)) for output in done]


@pytest.fixture(scope="module")
def fresh() -> Callable[[dict[str, Any]], list[tuple[list[int], float]]]:
    """What an engine started with these options answers; each is started once."""
    known: dict[str, Any] = {}

    def get(options: dict[str, Any]) -> list[tuple[list[int], float]]:
        key = json.dumps(options)
        if key not in known:
            with engine(PAIR / "mllm", options) as llm:
                known[key] = detailed(llm)
        return known[key]

    return get


@pytest.fixture(scope="module")
def resident(fresh: Callable[..., Any]) -> Iterator[Any]:
    for options in STARTED:  # while no other engine is alive: one process holds one world of workers
        fresh(options)
    with engine(PAIR / "mllm", DEMO) as llm:
        yield llm


# Tests with `resident` come first: an engine that another test shuts down takes the process's world of workers along.


def test_ten_switches_of_one_engine_each_equal_a_fresh_engine_or_model(resident, fresh):
    from transformers import AutoModelForImageTextToText

    assert remerge_way()[0] == "layers"
    found = set()
    for options in SWITCHES:
        merge_engine(resident, **options)
        told = detailed(resident)
        if options in STARTED:
            assert told == fresh(options), options
        model = AutoModelForImageTextToText.from_pretrained(PAIR / "mllm", dtype=torch.float32).eval()
        rest = {key: value for key, value in options.items() if key != "plateau"}
        if (spec := load_spec(options["plateau"], rest)) is not None:
            merge_in_place(model, spec, checkpoint=PAIR / "mllm")
        for expected, (tokens, _) in zip(hf_answers(model, PAIR / "mllm", PAIR_PROMPTS, 16), told, strict=True):
            assert tokens[: len(expected)] == expected, options  # HF ends where the engine was told to go on
        found.add(json.dumps(told))
    assert len(found) == 9  # plain comes twice


def test_switches_through_vllms_own_reload_of_all_weights(resident, fresh, monkeypatch):
    monkeypatch.setattr(loader, "remerge_way", lambda: ("all", "for this test"))
    for options in (SWITCHES[2], SWITCHES[0], SWITCHES[1]):
        merge_engine(resident, **options)
        assert detailed(resident) == fresh(options), options


@pytest.mark.parametrize("way", ["layers", "all"])
def test_a_fault_in_the_data_leaves_the_old_weights(way, resident, fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "remerge_way", lambda: (way, "for this test"))
    merge_engine(resident, **DEMO)
    bad = tmp_path / "base"
    shutil.copytree(BASE, bad)
    tensors = load_file(bad / "model.safetensors")
    tensors["model.layers.7.self_attn.v_proj.weight"][3, 5] = float("nan")  # the last block but one to be reloaded
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"layers\.7\.self_attn\.v_proj\.weight .*NaN"):
        merge_engine(resident, **{**DEMO, "base": str(bad), "layers": "0:8", "modules": "all"})
    assert detailed(resident) == fresh(DEMO)
    assert resident.collective_rpc("plam_state")[0]["digest"] == load_spec("demo", {"base": BASE}).digest()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({**DEMO, "layers": "4:9"}, MergeError, r"\[4, 9\) does not fit"),
        ({**DEMO, "base": "/nowhere/base"}, MergeError, "no such folder"),
        ({**DEMO, "layer": "4:8"}, SpecError, "did you mean 'layers'"),
    ],
)
def test_a_bad_spec_changes_nothing(options, error, says, resident, fresh):
    merge_engine(resident, **DEMO)
    with pytest.raises(error, match=says):
        merge_engine(resident, **options)
    assert detailed(resident) == fresh(DEMO)


def test_blocks_that_vllm_names_otherwise_are_not_passed_over(resident, fresh, monkeypatch):
    merge_engine(resident, **DEMO)
    model = resident.llm_engine.model_executor.driver_worker.worker.get_model()
    renamed = [(name.replace(".6.self_attn", ".6.attention"), module) for name, module in model.named_modules()]
    monkeypatch.setattr(model, "named_modules", lambda: iter(renamed))
    with pytest.raises(MergeError, match="no module of its own for self_attn of layer 6"):
        merge_engine(resident, "none")
    monkeypatch.undo()
    assert detailed(resident) == fresh(DEMO)


def test_a_checkpoint_that_changed_under_the_engine_is_refused(fresh, tmp_path):
    copies = {name: shutil.copytree(PAIR / name, tmp_path / name) for name in ("mllm", "base")}
    options = {**DEMO, "base": str(copies["base"])}
    with engine(copies["mllm"], options) as llm:
        stamp = (copies["base"] / "model.safetensors").stat()
        os.utime(copies["base"] / "model.safetensors", ns=(1, 1))
        with pytest.raises(MergeError, match="base: changed since the engine loaded it"):
            merge_engine(llm, **options, layers="0:4")
        assert stamp.st_mtime_ns != 1 and detailed(llm) == fresh(DEMO)
        merge_engine(llm, "none")  # needs no base
        with pytest.raises(MergeError, match="base: changed since the engine loaded it"):
            merge_engine(llm, **options)
        os.utime(copies["mllm"] / "model.safetensors", ns=(1, 1))
        with pytest.raises(MergeError, match="mllm: changed since the engine loaded it"):
            merge_engine(llm, **DEMO)


def fail_in_the_third_block(llm: Any, error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llm.llm_engine.model_executor.driver_worker.worker.get_model()
    real, calls = model.load_weights, []

    def load_weights(weights: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise error
        return real(weights)

    monkeypatch.setattr(model, "load_weights", load_weights)


def test_neither_old_nor_new_weights_stop_the_engine(monkeypatch):
    with engine(PAIR / "mllm", DEMO) as llm:
        fail_in_the_third_block(llm, OSError("no space left on device"), monkeypatch)
        with pytest.raises(EngineBrokenError, match=r"neither the old nor the new weights; start it again.*no space"):
            merge_engine(llm, "none")
        with pytest.raises(RuntimeError, match="neither the old nor the new weights"):
            detailed(llm)
        assert "start it again" in llm.collective_rpc("plam_state")[0]["broken"]
        monkeypatch.undo()
        assert llm.collective_rpc("plam_merge", args=(None,))[0]["broken"]  # and stays so


def test_an_interrupt_half_way_stops_the_engine(monkeypatch):
    with engine(PAIR / "mllm", DEMO) as llm:
        fail_in_the_third_block(llm, KeyboardInterrupt, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            merge_engine(llm, "none")
        with pytest.raises(RuntimeError, match="interrupted half-way"):
            detailed(llm)


def test_the_way_back_wants_the_base_it_came_from(fresh, tmp_path, monkeypatch):
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    with engine(PAIR / "mllm", {**DEMO, "base": str(base)}) as llm:
        tensors = load_file(base / "model.safetensors")
        tensors["model.layers.7.self_attn.v_proj.weight"] *= 2
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        bad = tmp_path / "bad"
        shutil.copytree(BASE, bad)
        tensors["model.layers.7.self_attn.v_proj.weight"][0, 0] = float("nan")
        save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(EngineBrokenError, match="changed since the engine loaded it"):
            merge_engine(llm, **{**DEMO, "base": str(bad)})


@pytest.mark.parametrize(("field", "says"), [("replicas", "2 data-parallel replicas"), ("lora", "LoRA enabled")])
def test_engines_that_cannot_be_re_merged_say_so(field, says):
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(data_parallel_size=2 if field == "replicas" else 1),
        lora_config=object() if field == "lora" else None,
    )
    llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config))
    with pytest.raises(MergeError, match=says):
        merge_engine(llm, "none")


@pytest.mark.parametrize("form", ["sharded", "bin"])
def test_base_in_other_forms(form, fresh, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    shard(base, bin=form == "bin")
    with engine(PAIR / "mllm", {**DEMO, "base": str(base)}) as llm:
        assert detailed(llm) == fresh(DEMO)


# ---- the engine and we read the same files ---------------------------------------------------------------------------


def test_a_hub_id_is_resolved_once(monkeypatch):
    """To one commit each, for vLLM, for all its workers, and for the way back."""
    commits = {"org/mllm": "a" * 40, "org/base": "b" * 40}
    opened = []

    def open_checkpoint(source: str, revision: str | None = None, role: str | None = None) -> Any:
        opened.append((source, revision))
        found = {"name": source, "location": source, "loaded_by": source, "commit": commits[source]}
        return SimpleNamespace(**found, check_read_by_vllm=lambda: None, announce=lambda names=None: None)

    monkeypatch.setattr(loader.Checkpoint, "open", open_checkpoint)
    monkeypatch.setattr(loader, "plan_merge", lambda spec, model, base: SimpleNamespace(tensors=()))
    spec = load_spec("none", {"base": "org/base", "layers": "1:3"})
    assert spec is not None
    arguments = SimpleNamespace(model="org/mllm", revision="main", worker_extension_cls="")
    arguments.model_loader_extra_config = {"plateau": spec.to_dict(), "enable_multithread_load": True}
    loader._prepare(arguments)
    assert arguments.revision == "a" * 40
    files: Any = {"location": "org/base", "commit": "b" * 40}
    assert arguments.model_loader_extra_config == {
        "plateau": spec.to_dict(),
        "plateau_base": files,
        "enable_multithread_load": True,
    }
    opened.clear()
    loader._open_base(spec, files)
    assert opened == [("org/base", "b" * 40)]
    commits["org/base"] = "c" * 40  # the branch moved; another start looks again
    loader._prepare(arguments)
    assert arguments.model_loader_extra_config["plateau_base"]["commit"] == "c" * 40

    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "1")
    with pytest.raises(MergeError, match="org/mllm: vLLM would load it from ModelScope"):
        loader._prepare(arguments)

    engine = SimpleNamespace(
        model_config=SimpleNamespace(model="org/mllm", revision="a" * 40),
        parallel_config=SimpleNamespace(data_parallel_size=1),
        lora_config=None,
    )
    assert loader.check_merge(engine, spec) == {"location": "org/base", "commit": "c" * 40}
    assert ("org/mllm", "a" * 40) in opened


@pytest.mark.parametrize("beside", ["stray", "consolidated"])
def test_a_folder_of_which_vllm_loads_other_files_is_refused(beside, pico, tmp_path):
    from vllm.config.load import LoadConfig

    folder = shutil.copytree(pico("llava").mllm, tmp_path / "mllm")
    loader, checkpoint = PlamModelLoader(LoadConfig(load_format="plam")), Checkpoint.open(folder)

    def choose() -> list[str]:
        loader._checkpoint = checkpoint
        return [Path(file).name for file in loader._prepare_weights(str(folder), None, None, True, None)[1]]

    assert choose() == ["model.safetensors"]
    shutil.copy(folder / "model.safetensors", folder / f"{beside}.safetensors")
    with pytest.raises(MergeError, match=f"more than one set of weights: only vLLM loads {beside}.safetensors"):
        choose()


SPEC = {"modules": ["q_proj"], "weights": {"model": 0.9, "base_model": 0.3}}


def test_a_range_longer_than_any_model_is_not_written_out(pico, monkeypatch):
    pair = pico("llava")
    config = SimpleNamespace(
        model_config=SimpleNamespace(model=str(pair.mllm), revision=None),
        parallel_config=SimpleNamespace(data_parallel_size=1),
        lora_config=None,
    )

    class Worker(PlateauWorker):
        vllm_config = config
        model = torch.nn.Module()

        def get_model(self) -> torch.nn.Module:
            return self.model

    monkeypatch.setattr(loader, "_all_workers", lambda faults: faults)
    spec = {**SPEC, "base_model": str(pair.base), "layer_range": [0, 10**12]}
    try:
        faults = Worker().plam_merge(spec)["faults"]
    except ValueError as error:  # of the spec itself
        faults = [str(error)]
    assert any("1000000000000" in fault for fault in faults)


# ---- faults before the engine starts ---------------------------------------------------------------------------------


def faulty(kind: str, pico: Callable[[str], PicoPair], folder: Path) -> tuple[Path, dict[str, Any], str]:
    """Model, options and what the error says."""
    pair = pico("llava")
    good = {"base": str(pair.base), "layers": "1:4"}
    if kind == "base missing":
        return pair.mllm, {**good, "base": str(folder / "none")}, "no such folder"
    if kind == "wrong base":
        return pair.mllm, {**good, "base": BASE}, "expected equal shapes"
    if kind == "range out of bounds":
        return pair.mllm, {**good, "layers": "1:5"}, r"\[1, 5\) does not fit"
    if kind == "spec for another model":
        return pair.mllm, DEMO, r"\[4, 8\) does not fit"
    if kind == "unknown option":
        return pair.mllm, {**good, "plateu": "demo"}, "plateu"
    quantised = folder / "quantised"
    shutil.copytree(pair.mllm, quantised)
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    (quantised / "config.json").write_text(json.dumps(config))
    return quantised, good, r"quantised \(gptq\)"


@pytest.mark.parametrize(
    "kind",
    ["base missing", "wrong base", "range out of bounds", "spec for another model", "unknown option", "quantised"],
)
def test_bad_input_never_starts_an_engine(kind, pico, tmp_path):
    model, options, says = faulty(kind, pico, tmp_path)
    with pytest.raises(ValueError, match=says), engine(model, options):
        pass


def environment(**given: str) -> dict[str, str]:
    """Of a process that runs the engine in a process of its own, as users' do."""
    kept = {key: value for key, value in os.environ.items() if key != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    return {**kept, **given}


def test_an_engine_in_its_own_process_fails_with_our_message_last(pico, tmp_path):
    model, options, _ = faulty("wrong base", pico, tmp_path)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--load-format"]
    command += ["plam", "--model-loader-extra-config", json.dumps(options), "--dtype", "float32"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "expected equal" in last and "as between an MLLM and the very LLM it was built from" in last, done.stderr


# ---- several processes -----------------------------------------------------------------------------------------------


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    log: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An API server with two tensor-parallel workers: four processes. It does not outlive the last test here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folder = tmp_path_factory.mktemp("server")
    log, specs = folder / "log", folder / "specs"
    specs.mkdir()
    (specs / "late.yaml").write_text(json.dumps({**load_spec("demo", {"base": BASE}).to_dict(), "layer_range": [6, 8]}))
    (specs / "bad.yaml").write_text(f"token: {TOKEN}\n")
    (folder / "demo.yaml").write_text(json.dumps(load_spec("demo", {"base": BASE}).to_dict()))
    given = {"MODEL": str(PAIR / "mllm"), "SPEC": str(folder / "demo.yaml"), "GPUS": "2"}
    serve, model, *words = recipes.words_of("serve", "vllm", **given)  # of docs/multi-gpu.md
    assert serve == "serve"  # the CPU build lacks the command
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *words]
    command += ["--host", "127.0.0.1", "--port", port, "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "16", "--skip-mm-profiling"]
    command += ["--limit-mm-per-prompt", json.dumps(FAST["limit_mm_per_prompt"])]
    given = environment(
        PLAM_SPECS=str(specs), VLLM_PLUGINS="plam_eval", VLLM_CPU_OMP_THREADS_BIND="0|1", VLLM_LOGGING_LEVEL="INFO"
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
    assert "2 data-parallel replicas" in loader._unfit(config)[0]


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


# ---- versions --------------------------------------------------------------------------------------------------------


def test_an_untested_version_takes_vllms_own_reload(monkeypatch):
    monkeypatch.setattr(loader, "VLLM_VERSION", "0.33.1+cpu")
    way, why = remerge_way()
    assert way == "all" and "0.33.1" in why


def test_doctor_says_how_vllm_would_be_used(monkeypatch):
    from plam_eval import doctor
    from plam_eval.terminal import Terminal

    console = Terminal(record=True, width=200)
    assert doctor.check_vllm(console)
    assert "only the attention and MLP blocks" in console.export_text()
    monkeypatch.setattr(loader, "VLLM_VERSION", "0.40.0")
    assert doctor.check_vllm(console)
    said = console.export_text()
    assert "warning" in said and "every tensor is read and loaded again" in said
