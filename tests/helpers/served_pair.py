"""The embedded pair in vLLM: prompts, and specs that an engine is taken through."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers.engines import inputs, picture
from tests.helpers.paths import PAIR

BASE = str(PAIR / "base")
DEMO = {"plateau": "demo", "base": BASE}
Prompts = list[tuple[str, list[Image.Image]]]

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
    {**DEMO, "layers": "1+3:5+7", "rule": "dare", "parameters": "drop_rate:0.5", "seed": 2},
    {**DEMO, "layers": "0:4", "model_weight": 0, "base_weight": 1},
]

STARTED = (*SWITCHES[:3], SWITCHES[5])
"""Those that an engine is started for; all of them are merged in an HF model."""


ANCESTRAL: tuple[dict[str, Any], ...] = (
    {"rule": "task_arithmetic"},
    {"rule": "ties", "parameters": "density:0.6", "modules": "all", "base_weight": 1.2},
    {"rule": "from_ancestor", "layers": "1+3:5+7", "model_weight": 0.6, "base_weight": 0.6},
)
"""Overrides of `DEMO` by rules that take an ancestor."""


def hf_answers(model: Any, folder: Path, prompts: Prompts, tokens: int = 12) -> list[list[int]]:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    found = []
    for text, images in prompts:
        inputs = processor(text=text, images=images or None, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
        found.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def detailed(llm: Any) -> list[tuple[list[int], float]]:
    """Tokens and their log-probability, which shows a change of weights that no token does."""
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0, max_tokens=16, logprobs=1, ignore_eos=True)
    done = [output.outputs[0] for output in llm.generate(inputs(PAIR_PROMPTS), parameters, use_tqdm=False)]
    return [(list(output.token_ids), round(output.cumulative_logprob, 3)) for output in done]


def environment(**given: str) -> dict[str, str]:
    """Of a process that runs the engine in a process of its own, as users' do."""
    kept = {key: value for key, value in os.environ.items() if key != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    return {**kept, **given}
