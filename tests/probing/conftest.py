"""Pico MLLMs of every family, loaded once, and prompts that mix text and images freely."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

_MARKERS = {
    "llava": "<image>",
    "llava_next": "<image>",
    "llava_onevision": "<image>",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "internvl": "<IMG_CONTEXT>",
}
Part = str | Image.Image


def picture(seed: int, size: tuple[int, int] = (56, 56)) -> Image.Image:
    """A picture of noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@dataclass(frozen=True)
class Mllm:
    family: str
    model: Any
    processor: Any

    @property
    def layers(self) -> int:
        return self.model.config.get_text_config().num_hidden_layers

    def batch(self, *documents: Sequence[Part]) -> dict[str, Tensor]:
        """Model inputs; each document is a sequence of texts and pictures. Padded on the left."""
        texts = ["".join(p if isinstance(p, str) else _MARKERS[self.family] for p in doc) for doc in documents]
        images = [[p for p in doc if not isinstance(p, str)] for doc in documents]
        images = [group for group in images if group] or None
        self.processor.tokenizer.padding_side = "left"
        return dict(self.processor(text=texts, images=images, padding=True, return_tensors="pt"))

    def generate(self, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Greedy new tokens."""
        out = self.model.generate(**inputs, do_sample=False, **kwargs)
        return out[:, inputs["input_ids"].shape[1] :]


@pytest.fixture(scope="session")
def mllm(pico) -> Callable[[str], Mllm]:
    """`mllm(family)`: the family's pico model with sdpa attention, in float32. Leave it as it was."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    loaded: dict[str, Mllm] = {}

    def get(family: str) -> Mllm:
        if family not in loaded:
            folder = pico(family).mllm
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
            loaded[family] = Mllm(family, model, AutoProcessor.from_pretrained(folder))
        return loaded[family]

    return get


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
