"""Each wrapper on a random checkpoint of its family, evaluated in process through the harness."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from plam_eval.errors import ArgumentError, CheckpointError, InputError, MergeError
from plam_eval.harness.errors import EvaluationError, GenerationError
from plam_eval.harness.evaluate import Evaluation as Run
from plam_eval.harness.evaluate import evaluate
from plam_eval.harness.registry import WRAPPERS
from plam_eval.spec import SpecError
from tests.helpers.pico import LAYERS
from tests.helpers.wrappers import CASES, NINE, answers, arguments

SHORT = "max_new_tokens=6"


def inputs(run: Run | None) -> dict[tuple[str, int], Any]:
    assert run is not None
    return {(task, row["doc_id"]): row["arguments"][0] for task, rows in run.samples.items() for row in rows}


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_merges_at_load_and_goes_back_to_plain(family, mode, load, pico, in_suite):
    base = pico(family).base
    model = load(family, mode, base=base, layers="1:4", modules="all")
    loaded = {name: value.clone() for name, value in model.model.state_dict().items()}
    merged = evaluate(model, "mmstar", limit=4, gen_kwargs=SHORT)

    record = merged.results["plam_eval"]
    assert record["mode"] == mode and record["wraps"] == WRAPPERS[record["wrapper"]].wrapped_id
    assert (record["device"], record["dtype"], record["attention"]) == ("cpu", "float32", "sdpa")
    assert {value.dtype for value in model.model.parameters()} == {torch.float32}
    assert record["generation"]["calls"] == 4 and record["generation"]["failed"] == 0
    spec = record["provenance"]["spec"]
    assert spec["layer_range"] == [1, 4] and spec["base_model"] == str(base)
    assert model.merge_report.tensors >= 3 * 7

    model.merge("none")
    plain = evaluate(model, "mmstar", limit=4, gen_kwargs=SHORT)
    assert plain.results["plam_eval"]["plain"] and inputs(plain) == inputs(merged)
    digest = record["provenance"]["digest"]
    told = [[row["digest"] for row in run.samples["mmstar"]] for run in (merged, plain)]
    assert told == [[digest] * 4, ["plain"] * 4]
    assert answers(plain) != answers(merged)
    changed = {name for name, value in model.model.state_dict().items() if not torch.equal(value, loaded[name])}
    layers = {
        re.search(r"language_model\.layers\.(\d+)\.(self_attn|mlp)\.\w+_proj\.", name).group(1) for name in changed
    }
    assert layers == {"1", "2", "3"}

    model.merge(None, base=str(base), layers="1:4", modules="all")
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, loaded[name]), name


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_runs_in_the_dtype_it_is_given(family, load, pico, in_suite):
    mode = "simple" if family == "qwen2_vl" else "chat"
    model = load(family, mode, dtype="bfloat16", base=pico(family).base, layers="2:4")
    assert {value.dtype for value in model.model.parameters()} == {torch.bfloat16}
    run = evaluate(model, "mmstar", limit=1, gen_kwargs=SHORT)
    assert run.results["plam_eval"]["dtype"] == "bfloat16"


def test_device_map_alone_places_the_model(load):
    """The stock wrapper takes `device_map` and still moves inputs to CUDA."""
    model = load("llava", device=None, device_map="cpu")
    assert model.device.type == "cpu" and {value.device.type for value in model.model.parameters()} == {"cpu"}


@pytest.mark.parametrize("mode", ["chat", "simple"])
def test_plain_answers_are_the_stock_wrappers_and_garbage_costs_nothing(mode, load, pico, in_suite, tmp_path):
    from plam_eval.harness.wrapper import writable

    simple = mode == "simple"
    model = load("llava", mode)
    ours = evaluate(model, "plam9", limit=4, gen_kwargs=SHORT, output=tmp_path)
    assert set(ours.samples) == set(NINE) and ours.results_file.exists()

    stock_args = f"pretrained={pico('llava').mllm},device=cpu,device_map=cpu,dtype=float32"
    without_worksheet = [task for task in NINE if not task.startswith("mmbench")]
    stock = evaluate(
        "llava_hf", without_worksheet, model_args=stock_args, limit=4, gen_kwargs=SHORT, force_simple=simple
    )
    assert inputs(stock) == {key: text for key, text in inputs(ours).items() if key[0] in without_worksheet}
    assert answers(ours).items() >= {key: writable(text) for key, text in answers(stock).items()}.items()

    # The answers above do hold what a worksheet refuses, and it is kept where it was replaced.
    altered = ours.results["plam_eval"]["altered_answers"]
    assert altered
    for row in altered:
        given = answers(ours)[row["task"], row["doc_id"]]
        assert row["raw"] != writable(row["raw"])
        assert writable(row["raw"]).strip() == given.strip() == writable(given).strip()


OTHERS = [
    pytest.param(*case, marks=[] if case[1] == "chat" or case[0] == "qwen2_vl" else pytest.mark.long)
    for case in CASES
    if case[0] != "llava"
]


@pytest.mark.parametrize(("family", "mode"), OTHERS)
def test_plain_answers_are_the_stock_wrappers_in_their_own_dtype(family, mode, load, pico, in_suite):
    from plam_eval.harness.wrapper import writable

    model = load(family, mode, dtype=None)
    ours = evaluate(model, "mmmu_val", limit=3, gen_kwargs=SHORT)
    stock = evaluate(
        model.wrapped_id,
        "mmmu_val",
        model_args=arguments(pico(family), dtype=None, device_map="cpu"),
        limit=3,
        gen_kwargs=SHORT,
        force_simple=mode == "simple",
    )
    assert len(answers(ours)) == 3 and inputs(ours) == inputs(stock)
    assert answers(ours) == {key: writable(text) for key, text in answers(stock).items()}


def test_stock_wrapper_loses_the_run_to_an_unwritable_answer(pico, in_suite, tmp_path):
    """Why `writable` exists: if this stops failing, the mixin can stop replacing characters."""
    from openpyxl.utils.exceptions import IllegalCharacterError

    stock_args = f"pretrained={pico('llava').mllm},device=cpu,device_map=cpu,dtype=float32"
    with pytest.raises(IllegalCharacterError):
        evaluate("llava_hf", "mmbench_en_dev_static", model_args=stock_args, limit=6, gen_kwargs="max_new_tokens=12")


def test_writable_answers_fit_a_worksheet(tmp_path):
    import pandas as pd

    from plam_eval.harness.wrapper import writable

    every = [f"a{chr(code)}b" for code in (*range(0x20), 0x7F, 0x85, 0x2028, 0xD800, 0xFFFE, 0xFFFF, 0x1F600)]
    pd.DataFrame({"prediction": [writable(text) for text in every]}).to_excel(tmp_path / "answers.xlsx")
    assert writable("A. yes\n\tネコ 😀") == "A. yes\n\tネコ 😀"
    assert writable("\x0cA\x1f").strip() == "\x0cA\x1f".strip() == "A"
    assert writable("\x07A").strip() == "\ufffdA", "a letter behind a bell is no answer, and stays none"


@pytest.fixture
def spec_file(pico, tmp_path) -> Callable[..., Path]:
    base = tmp_path / "base"
    shutil.copytree(pico("llava").base, base)

    def write(**changes: Any) -> Path:
        spec = {
            "base_model": str(base),
            "layer_range": [1, LAYERS],
            "modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
            "weights": {"model": 0.9, "base_model": 0.3},
        }
        file = tmp_path / "spec.yaml"
        file.write_text(yaml.safe_dump(spec | changes))
        return file

    return write


def test_response_cache_knows_the_weights(spec_file, pico, in_suite, tmp_path):
    """Same `--model_args` text each time, as in lmms-eval's own cache key; only what it points to changes."""
    file = spec_file()
    model_args = arguments(pico("llava"), plateau=file)

    def run() -> tuple[dict[tuple[str, int], str], int]:
        done = evaluate(
            "plam_llava", "mmstar", model_args=model_args, limit=4, gen_kwargs=SHORT, use_cache=tmp_path / "cache"
        )
        return answers(done), done.results["plam_eval"]["generation"]["calls"]

    first, calls = run()
    assert calls == 4
    assert run() == (first, 0)
    spec_file(weights={"model": 0.2, "base_model": 0.9})
    second, calls = run()
    assert calls == 4 and second != first
    weights = tmp_path / "base" / "model.safetensors"
    save_file({name: value.flip(0) for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    third, calls = run()
    assert calls == 4 and third != second
    spec_file()
    assert run()[1] == 4, "the base checkpoint of the first spec is another now"


def test_cache_fingerprint_names_what_was_merged_not_what_lies_on_disk_now(spec_file, load, tmp_path):
    file = spec_file()
    model = load("llava", plateau=file)
    merged = model.cache_fingerprint()
    weights = tmp_path / "base" / "model.safetensors"
    save_file({name: value.flip(0) for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    assert model.cache_fingerprint() == merged
    model.merge(file)
    again = model.cache_fingerprint()
    model.merge(None)
    assert len({merged, again, model.cache_fingerprint()}) == 3
    assert model.cache_fingerprint() == load("llava", plateau="none").cache_fingerprint()
    assert model.cache_fingerprint() != load("llava", dtype="bfloat16").cache_fingerprint()


def test_plain_and_merged_runs_have_folders_of_their_own(load, pico, in_suite, tmp_path):
    model = load("llava")
    files = [evaluate(model, "mmstar", limit=1, gen_kwargs=SHORT, output=tmp_path).results_file]
    model.merge(None, base=str(pico("llava").base), layers="2:4")
    files.append(evaluate(model, "mmstar", limit=1, gen_kwargs=SHORT, output=tmp_path).results_file)
    model.merge(None, base=str(pico("llava").base), layers="3:4")
    files.append(evaluate(model, "mmstar", limit=1, gen_kwargs=SHORT, output=tmp_path).results_file)
    assert len({file.parent for file in files}) == 3
    assert Counter(file.parent.name.rpartition("__")[2][:5] for file in files) == {"plam-": 3}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])  # one swallows what generation raises, one does not
def test_failed_generations_fail_the_run(family, load, in_suite, tmp_path):
    model = load(family)
    generate, calls = model.own_generate, []

    def breaking(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("cell 7 is on fire")
        return generate(*args, **kwargs)

    model.own_generate = breaking
    with pytest.raises(GenerationError, match=r"1 of 2 generations raised.*cell 7 is on fire"):
        evaluate(model, "mmstar", limit=4, gen_kwargs=SHORT, output=tmp_path)
    assert not list(tmp_path.rglob("*.json*"))

    calls.clear()
    model.max_error_share = 0.25
    run = evaluate(model, "mmstar", limit=4, gen_kwargs=SHORT)
    generation = run.results["plam_eval"]["generation"]
    assert (generation["calls"], generation["failed"]) == (4, 1) and "cell 7" in generation["errors"][0]
    assert sum(text == "" for text in answers(run).values()) == 1
    model.max_error_share = 0.2
    calls.clear()
    with pytest.raises(GenerationError):
        evaluate(model, "mmstar", limit=4, gen_kwargs=SHORT)


def test_a_failed_batch_counts_all_its_documents(load, in_suite):
    model = load("qwen2_5_vl", batch_size=2)
    whole = evaluate(model, "mmstar", limit=4, gen_kwargs=SHORT)
    assert whole.results["plam_eval"]["generation"]["calls"] == 4

    model.own_generate = lambda **kwargs: torch.zeros(1) / None  # a TypeError
    model.max_error_share = 0.25  # one document may fail, and a batch holds two
    with pytest.raises(GenerationError, match="2 of 2 generations raised"):
        evaluate(model, "mmstar", limit=4, gen_kwargs=SHORT)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"plateu": "none"}, TypeError, r"no argument plateu \(did you mean plateau\?\)"),
        ({"plateau": "no-such-spec"}, SpecError, "no packaged spec of that name, and no file"),
        ({"base": "BASE", "layers": "2:9"}, (SpecError, MergeError), "4 decoder layers"),
        ({"base": "BASE", "layers": "2:4", "rule": "weighted"}, SpecError, "weighted_sum"),
        ({"dtype": "float23"}, ValueError, "float32"),
        ({"device_map": "cuda:0"}, ValueError, "device is cpu and device_map is cuda:0"),
        ({"max_error_share": 2}, ValueError, "from 0 to 1"),
        ({"max_error_share": "none"}, ArgumentError, "max_error_share is 'none'; expected a number"),
        ({"use_cache": "yes"}, ArgumentError, "use_cache is 'yes'; expected bool"),
        ({"model": "x/y"}, ArgumentError, "takes no argument model"),
        ({"pretrained": "/no/such/mllm"}, CheckpointError, "^pretrained=/no/such/mllm: no such folder"),
        ({"base": "/no/such/base", "layers": "2:4"}, CheckpointError, "^base=/no/such/base: no such folder"),
    ],
)
@pytest.mark.parametrize("family", ["llava", "internvl"])  # the stock InternVL wrapper swallows unknown arguments
def test_mistakes_are_named_before_the_model_is_loaded(family, given, error, message, load, pico, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", refuse)
    given = {key: pico(family).base if value == "BASE" else value for key, value in given.items()}
    with pytest.raises(error, match=message):
        load(family, **given)


def test_a_setting_given_twice_must_agree(load, pico):
    from lmms_eval.models import get_model

    cls = get_model("plam_llava")
    with pytest.raises(ValueError, match="device is cpu in --model_args and cuda as --device"):
        cls.create_from_arg_string(arguments(pico("llava")), {"device": "cuda"})
    assert cls.create_from_arg_string(arguments(pico("llava")), {"device": "cpu"}).device.type == "cpu"


def test_evaluate_refuses_what_cannot_give_results(load, in_suite):
    with pytest.raises(EvaluationError, match=r"'mmstra' \(did you mean mmstar"):
        evaluate("plam_llava", "mmstra")
    with pytest.raises(EvaluationError, match="MME scores documents in pairs"):
        evaluate("plam_llava", "plam9", limit=5)
    with pytest.raises(EvaluationError, match="whole number"):
        evaluate("plam_llava", "plam9", limit=0.5)  # type: ignore[arg-type]


def test_a_device_that_is_none_says_what_to_write() -> None:
    from plam_eval.model_wrappers import checks, hf

    with pytest.raises(InputError, match="device is 'gpu'; expected cpu, cuda"):
        hf._device("gpu")
    with pytest.raises(InputError, match="max_error_share is 2; expected a share"):
        checks.check_share(2)
