"""What `--noise` may change, and what is said where it cannot."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from plam_eval.errors import InputError
from plam_eval.evaluation.noise.variant import Variant, read_variants
from plam_eval.evaluation.sweep.config import SweepConfig, split_arguments
from tests.helpers.sweeps import SPEC


def config(**given: Any) -> SweepConfig:
    return SweepConfig.load(**{"model": "plam_llava", "model_args": SPEC, "tasks": "pope", **given})


def qwen(pico: Any, **given: Any) -> SweepConfig:
    words = f"pretrained={pico('qwen2_5_vl').mllm},device=cpu"
    return config(model="plam_qwen2_5_vl", model_args=words, **given)


def test_words_are_one_after_the_other_and_joined_at_once(pico: Any) -> None:
    found = read_variants("batch_size=4, dtype=bfloat16+batch_size=2", qwen(pico))
    assert [variant.name for variant in found] == ["batch_size=4", "dtype=bfloat16+batch_size=2"]
    assert [variant.resident for variant in found] == [True, False]
    assert read_variants(["dtype=bfloat16"], config())[0].name == "dtype=bfloat16"


@pytest.mark.parametrize(("own", "other"), [(1, 4), (4, 1), (8, 1)])
def test_by_default_the_batch_size_is_another(pico: Any, own: int, other: int) -> None:
    (variant,) = read_variants("default", qwen(pico, batch_size=own))
    assert variant.config(qwen(pico, batch_size=own)).batch_size == other


def test_what_is_not_changed_stays() -> None:
    before = config(batch_size=1, limit=9, gen_kwargs="max_new_tokens=3")
    after = Variant.read("dtype=bfloat16").config(before)
    arguments, spec = split_arguments(after.model_args)
    assert arguments == {**split_arguments(before.model_args)[0], "dtype": "bfloat16"}
    assert spec == split_arguments(before.model_args)[1]
    assert (after.tasks, after.gen_kwargs) == (before.tasks, before.gen_kwargs)


def test_another_engine_gets_what_is_of_both() -> None:
    after = Variant.read("model=plam_vllm").config(config())
    arguments, spec = split_arguments(after.model_args)
    assert after.model == "plam_vllm" and set(arguments) == {"pretrained", "dtype"} and "plateau" in spec
    with pytest.raises(InputError, match="max_pixels among model_args: plam_vllm may not take it"):
        Variant.read("model=plam_vllm").config(config(model_args=f"{SPEC},max_pixels=90"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("default", "plam_llava answers one document at a time.*attn_implementation=eager.*dtype=float32.*plam_vllm"),
        ("batch_size=1", r"the comparison answers 1 document\(s\) at once itself"),
        ("batch_size=0", "a whole number from 1"),
        ("batch_size=two", "a whole number from 1"),
        ("dtype=float32", "the comparison runs in float32 itself"),
        ("dtype=int8", "dtype: .*known: float32, bfloat16, float16"),
        ("model=plam_lava", "unknown model 'plam_lava', did you mean 'plam_llava'"),
        ("model=plam_llava", "the comparison runs through plam_llava itself"),
        ("model=plam_hf", "plam_hf and plam_llava are one engine"),
        ("attn_implementation=eagre", "did you mean 'eager'"),
        ("model=plam_vllm+attn_implementation=eager", "plam_vllm chooses its own attention"),
        ("batchsize=4", "unknown key 'batchsize', did you mean 'batch_size'"),
        ("dtype", "found 'dtype', expected such as batch_size=4"),
        ("dtype=bfloat16+dtype=float16", "each key once"),
        ("dtype=bfloat16,dtype=bfloat16", "given twice"),
        ("", "found nothing"),
        ("../x=1", "expected such as"),
    ],
)
def test_what_cannot_be_changed_is_told(words: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_variants(words, config())


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InputError) as told:
        read_variants("batch_size=4,dtype=float32,color=red", config())
    assert len(told.value.problems) == 3
    with pytest.raises(InputError) as told:
        read_variants("batch_size=4,default", config())
    assert len(told.value.problems) == 2, "what is given twice has its problems once"


def test_an_engine_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else stock(name))
    with pytest.raises(InputError, match="vLLM is not installed here"):
        read_variants("model=plam_vllm", config())
