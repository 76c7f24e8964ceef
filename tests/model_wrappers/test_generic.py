"""`plam_hf` on families that have no wrapper of their own, through the harness, and what it refuses."""

from __future__ import annotations

import copy
import json
import re
import shutil
from typing import Any

import pytest
import torch
from lmms_eval.models.chat import huggingface as stock
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from plam_eval.errors import InputError, MergeError
from plam_eval.evaluation import scan as scans
from plam_eval.harness.evaluate import Evaluation as Run
from plam_eval.harness.evaluate import check_model, evaluate, make_model
from plam_eval.harness.wrapper import writable
from plam_eval.merging.plan import decoder_names
from plam_eval.model_wrappers.generic import Processor
from plam_eval.probing.decoder import ProbeError
from plam_eval.probing.masking import mask_vision
from tests.helpers.pico import LAYERS, OTHER_FAMILIES

SHORT = "max_new_tokens=4"
CPU = {"device": "cpu", "dtype": "float32"}
WINDOWS = ("gemma3",)  # their caches forget, which all cuts at once cannot work with


def answers(run: Run | None) -> list[str]:
    assert run is not None
    return [row["filtered_resps"][0] for row in run.samples["mmstar"]]


def prompts(run: Run | None) -> list[Any]:
    assert run is not None
    return [row["arguments"][0] for row in run.samples["mmstar"]]


class Mended:
    """Stands for AutoProcessor in the stock wrapper, which hands every processor an argument that it refuses."""

    @staticmethod
    def from_pretrained(*args: Any, **kwargs: Any) -> Processor:
        return Processor(AutoProcessor.from_pretrained(*args, **kwargs))


@pytest.fixture
def mended(monkeypatch):
    """The stock wrapper able to run at all: with the model class that it means to load, and with `Mended`."""
    monkeypatch.setattr(stock, "AutoModel", AutoModelForImageTextToText)
    monkeypatch.setattr(stock, "AutoProcessor", Mended)


# One whose images have no fixed number of tokens, one with row breaks, one with rotary positions of images, one with
# experts; the others go through the same code.
_ALWAYS = ("gemma3", "pixtral", "glm4v", "qwen3_vl_moe")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in _ALWAYS else pytest.mark.long) for name in OTHER_FAMILIES]
)
def test_plain_merged_and_masked_through_the_harness(family, pico, in_suite, tmp_path, mended):
    pair = pico(family)
    merge = {"base": str(pair.base), "layers": "1:3", "base_weight": 2.0}
    model = make_model("plam_hf", {"pretrained": str(pair.mllm), **CPU, **merge})
    loaded = {name: value.clone() for name, value in model.model.state_dict().items()}
    merged = evaluate(model, "mmstar", limit=2, gen_kwargs=SHORT)
    assert merged.results["plam_eval"]["wraps"] == "huggingface"
    assert merged.results["plam_eval"]["generation"]["failed"] == 0
    assert model.merge_report.tensors >= 2 * 4

    model.merge("none")
    plain = evaluate(model, "mmstar", limit=2, gen_kwargs=SHORT)
    assert prompts(plain) == prompts(merged) and answers(plain) != answers(merged)
    names = decoder_names(model.checkpoint).values()
    assert len(names) > LAYERS * 4  # the decoder's tensors are known by their names on the hub as well
    changed = {name for name, value in model.model.state_dict().items() if not torch.equal(value, loaded[name])}
    assert {name.rsplit(".layers.", 1)[1].partition(".")[0] for name in changed} == {"1", "2"}
    assert all(".self_attn." in name and "vision" not in name and "visual" not in name for name in changed)

    own = make_model("plam_hf", {"pretrained": str(pair.mllm), "device": "cpu"})
    theirs = evaluate(
        "huggingface",
        "mmstar",
        model_args=f"pretrained={pair.mllm},device=cpu,device_map=cpu",
        limit=2,
        gen_kwargs=SHORT,
    )
    assert prompts(theirs) == prompts(plain)
    # In bfloat16, which is all that the stock wrapper loads.
    assert answers(evaluate(own, "mmstar", limit=2, gen_kwargs=SHORT)) == [writable(a) for a in answers(theirs)]

    if family in WINDOWS:
        with pytest.raises(ProbeError, match="DynamicSlidingWindowLayer"):
            scans.check_scannable(str(pair.mllm))
        with mask_vision(model.model, 0):
            assert answers(evaluate(model, "mmstar", limit=2, gen_kwargs=SHORT)) != answers(plain)
        return
    scans.check_scannable(str(pair.mllm))
    scans.scan(model, "mmstar", tmp_path / "scan", limit=2, gen_kwargs=SHORT, cuts="1")
    rows = [json.loads(line) for line in (tmp_path / "scan" / "answers.rank0.jsonl").read_text().splitlines()]
    cut, unmasked = ([row["answers"][row["by_cut"][index]] for row in rows] for index in (0, 1))
    assert [writable(answer) for answer in unmasked] == answers(plain)
    with mask_vision(model.model, 1):
        assert [writable(a) for a in cut] == answers(evaluate(model, "mmstar", limit=2, gen_kwargs=SHORT))


def test_a_processor_is_handed_what_there_is_and_can_be_copied():
    def made(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    setattr(made, "chat_template", "...")  # noqa: B010  a function has none that a type checker knows
    processor = copy.deepcopy(Processor(made))
    assert processor.chat_template == "..."
    assert processor("text", images=[1], videos=[], audios=None, padding=True) == (
        ("text",),
        {"images": [1], "padding": True},
    )
    assert processor(audios=[2]) == ((), {"audio": [2]})


# ---- what is refused, from config and headers alone ------------------------------------------------------------------


@pytest.fixture
def described(tmp_path):
    """`described(config)`: a checkpoint of that config, whose only tensor nobody could load a model from."""

    def write(config: Any) -> str:
        config.save_pretrained(tmp_path)
        save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors")
        return str(tmp_path)

    return write


def test_models_whose_decoder_or_image_tokens_cannot_be_told_are_refused_by_name(described):
    from transformers import Blip2Config, LlamaConfig, MllamaConfig

    for config, reason in (
        (MllamaConfig(), r"'mllama'.*plam_hf cannot probe or merge.*cross-attention layers.*--model huggingface"),
        (Blip2Config(), r"'blip-2'.*names no vision token"),
        (LlamaConfig(num_hidden_layers=1), r"'llama'.*no image-text-to-text model of LlamaConfig"),
    ):
        with pytest.raises(InputError, match=reason):
            check_model("plam_hf", {"pretrained": described(config)})
        with pytest.raises(ProbeError):
            scans.check_scannable(described(config))


def copied(pair: Any, folder: Any) -> Any:
    shutil.copytree(pair.mllm, folder)
    return folder


def test_a_processor_without_a_template_is_refused(pico, tmp_path):
    folder = copied(pico("pixtral"), tmp_path / "mllm")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"PixtralProcessor\) has no chat template.*add chat_template.jinja"):
        check_model("plam_hf", {"pretrained": str(folder)})


def test_a_package_that_a_processor_needs_is_named(pico, monkeypatch):
    smolvlm = str(pico("smolvlm").mllm)
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(InputError, match=r"its processor cannot be loaded .*pip install num2words"):
        check_model("plam_hf", {"pretrained": smolvlm})


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("tokenizer.json", "{", r"its processor cannot be loaded \(JSONDecodeError"),
        ("processor_config.json", "[]", r"its processor cannot be loaded \("),
        ("processor_config.json", None, r"its processor cannot be loaded \(OSError: .*there, and whole"),
        ("config.json", '{"model_type": ["llava"]}', r"model_type \['llava'\], which plam_hf cannot probe or merge"),
        ("config.json", '{"model_type": "llava", "text_config": "x"}', r"cannot probe or merge .*'text_config'"),
    ],
)
def test_files_that_are_damaged_are_told_without_a_traceback(pico, tmp_path, file, content, reason):
    folder = copied(pico("pixtral"), tmp_path / "mllm")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=reason):
        check_model("plam_hf", {"pretrained": str(folder)})


def test_modules_that_are_no_tensors_of_their_own_are_refused_with_the_reason(pico, tmp_path):
    def refused(pair: Any, modules: str, folder: Any = None) -> str:
        merge = {"base": str(pair.base), "layers": "1:3", "modules": modules}
        with pytest.raises(MergeError) as error:
            check_model("plam_hf", {"pretrained": str(folder or pair.mllm), **merge})
        return str(error.value)

    assert "mixture of experts here (mlp.experts." in refused(pico("qwen3_vl_moe"), "mlp")
    assert "gate and up projection in one tensor (mlp.gate_up_proj.weight)" in refused(pico("glm4v"), "mlp")

    pair, folder = pico("llava_next_video"), copied(pico("llava_next_video"), tmp_path / "fused")
    tensors = load_file(folder / "model.safetensors")
    fused: dict[str, Any] = {}
    for name, value in tensors.items():
        found = re.fullmatch(r"(language_model\.model\.layers\.\d+\.self_attn\.)[qkv]_proj\.weight", name)
        fused.setdefault(f"{found[1]}qkv_proj.weight" if found else name, []).append(value)
    save_file(
        {name: torch.cat(values) if len(values) > 1 else values[0] for name, values in fused.items()},
        folder / "model.safetensors",
    )
    assert "keeps q, k and v in one tensor (self_attn.qkv_proj.weight)" in refused(pair, "qk", folder)


@pytest.mark.parametrize("model_id", ["plam_llava", "plam_qwen2_5_vl", "plam_qwen3_vl", "plam_internvl"])
def test_wrappers_of_one_family_name_the_one_for_others(model_id, pico):
    with pytest.raises(InputError, match=r"model_type 'idefics3'; .* For others there is --model plam_hf"):
        check_model(model_id, {"pretrained": str(pico("idefics3").mllm)})


def test_a_batch_is_padded_in_front(pico, in_suite):
    """Prompts of different lengths answer as alone."""
    single, batched = (
        make_model("plam_hf", {"pretrained": str(pico("mistral3").mllm), **CPU}, batch_size=size) for size in (1, 3)
    )
    alone = evaluate(single, "mmstar", limit=3, gen_kwargs=SHORT)
    assert answers(evaluate(batched, "mmstar", limit=3, gen_kwargs=SHORT)) == answers(alone)
