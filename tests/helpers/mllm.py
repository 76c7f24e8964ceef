"""A pico MLLM in memory, prompts that mix text and images freely, and what is looked at in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
    "gemma3": "<start_of_image>",
    "idefics3": "<image>",
    "smolvlm": "<image>",
    "paligemma": "<image>",
    "mistral3": "[IMG]",
    "pixtral": "[IMG]",
    "glm4v": "<|begin_of_image|><|image|><|end_of_image|>",
    "qwen3_vl_moe": "<|vision_start|><|image_pad|><|vision_end|>",
    "llava_next_video": "<image>",
}
Part = str | Image.Image
PAD = 0
"""What answers are filled up with."""


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


@contextmanager
def backend(loaded: Mllm, name: str) -> Iterator[None]:
    """The decoder computes attention by the implementation of that name."""
    config = loaded.model.get_decoder().config
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


def hooks(loaded: Mllm) -> list[int]:
    """How many each module has; transformers keeps some of its own."""
    return [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in loaded.model.modules()]


def mixed(loaded: Mllm) -> dict[str, Any]:
    """Text before, between and behind one or more images, nothing before them, and none at all; unequal lengths."""
    return loaded.batch(
        ["Look: ", picture(0), " is it red?"],
        ["A ", picture(1), " or ", picture(2, (60, 40)), " what differs here?"],
        ["no image at all"],
        [picture(3), "x"],
    )
