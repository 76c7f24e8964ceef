"""Random pairs of an MLLM and its base LLM, drawn on the device, and prompts for them that need no processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

TEXT = 64
"""Tokens of text in the longest prompt; a part of them stands before the image."""
BEFORE = 6


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, and how many image tokens a picture becomes: `side` squared.

    Attributes:
        hidden: size of the stream.
        inner: size inside a feed-forward.
        layers: of the decoder.
        heads: of attention.
        key_heads: of keys and values.
        vocabulary: token ids; the last four are the special ones.
        side: image tokens in a row.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    side: int

    @property
    def special(self) -> dict[str, int]:
        """The ids of the tokens that are no text."""
        return {name: self.vocabulary - 1 - i for i, name in enumerate(("image", "video", "pad", "end"))}


@dataclass(frozen=True)
class Family:
    """How a model of one family is built.

    Attributes:
        model: for which published checkpoint `large` stands, without most of its vision tower.
        large: the shape on a GPU.
        build: the random MLLM of a shape.
        base: the class of its base LLM.
        pixels: what the vision tower takes for so many pictures: keyword arguments of the model.
    """

    model: str
    large: Shape
    build: Callable[[Shape], nn.Module]
    base: str
    pixels: Callable[[Shape, int, str], dict[str, Tensor]]

    def shape(self, size: str, layers: int | None = None) -> Shape:
        """The shape to check at.

        Args:
            size: "7b" or "pico".
            layers: of the decoder, where it is not to have as many as the published model.
        """
        pico = Shape(64, 96, 4, 2, 1 if self.large.key_heads < self.large.heads else 2, 300, 2)
        shape = self.large if size == "7b" else pico
        return replace(shape, layers=layers) if layers else shape


def _decoder(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "head_dim": shape.hidden // shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 8192,
        "pad_token_id": shape.special["pad"],
        "eos_token_id": None,
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }


def _llava(shape: Shape) -> nn.Module:
    vision = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config={
                "model_type": "clip_vision_model",
                "image_size": 14 * shape.side,
                "patch_size": 14,
                **vision,
            },
            text_config={**_decoder(shape), "model_type": "llama"},
            image_token_index=shape.special["image"],
            image_seq_length=shape.side**2,
            tie_word_embeddings=False,
        )
    )


def _llava_pixels(shape: Shape, pictures: int, device: str) -> dict[str, Tensor]:
    return {"pixel_values": _drawn((pictures, 3, 14 * shape.side, 14 * shape.side), device)}


def _rope(shape: Shape, **more: Any) -> dict[str, Any]:
    half = shape.hidden // shape.heads // 2
    first = half // 4 if not more else half - 2 * (half * 5 // 16)
    second = (half - first) // 2
    sections = [first, second, half - first - second]
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections, **more}}


def _qwen_ids(shape: Shape) -> dict[str, Any]:
    text = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": shape.special["pad"]}
    vision = {"image_token_id": shape.special["image"], "video_token_id": shape.special["video"]}
    return {**text, **vision, "vision_start_token_id": 1, "vision_end_token_id": 2, "tie_word_embeddings": False}


def _qwen2_5_vl(shape: Shape) -> nn.Module:
    vision = {"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 96, "fullatt_block_indexes": [1]}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            vision_config={**vision, "out_hidden_size": shape.hidden},
            text_config={**_decoder(shape), **_rope(shape)},
            **_qwen_ids(shape),
        )
    )


def _qwen3_vl(shape: Shape) -> nn.Module:
    vision = {"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 96, "patch_size": 16}
    deep = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return transformers.Qwen3VLForConditionalGeneration(
        transformers.Qwen3VLConfig(
            vision_config={**vision, **deep, "out_hidden_size": shape.hidden},
            text_config={**_decoder(shape), **_rope(shape, mrope_interleaved=True)},
            **_qwen_ids(shape),
        )
    )


def _qwen_pixels(shape: Shape, pictures: int, device: str, patch: int = 14) -> dict[str, Tensor]:
    edge = 2 * shape.side
    grid = torch.tensor([[1, edge, edge]] * pictures, device=device)
    return {"pixel_values": _drawn((pictures * edge * edge, 3 * 2 * patch * patch), device), "image_grid_thw": grid}


def _qwen3_pixels(shape: Shape, pictures: int, device: str) -> dict[str, Tensor]:
    return _qwen_pixels(shape, pictures, device, patch=16)


FAMILIES = {
    "qwen2_5_vl": Family(
        "Qwen2.5-VL-7B",
        Shape(3584, 18944, 28, 28, 4, 152064, 24),
        _qwen2_5_vl,
        "Qwen2",
        _qwen_pixels,
    ),
    "llava": Family("LLaVA-1.5-7B", Shape(4096, 11008, 32, 32, 32, 32064, 24), _llava, "Llama", _llava_pixels),
    "qwen3_vl": Family("Qwen3-VL-8B", Shape(4096, 12288, 36, 32, 8, 151936, 24), _qwen3_vl, "Qwen3", _qwen3_pixels),
}


def _drawn(shape: tuple[int, ...], device: str) -> Tensor:
    """Drawn on the CPU, so that every device has the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[0])).to(device)


@torch.no_grad()
def _draw(model: nn.Module) -> None:
    """Weights of unit gain, so that every layer and the image move the answer."""
    for name, value in model.named_parameters():
        if "norm" in name or "ln_q" in name:
            value.normal_(std=0.1)
            if not name.endswith("bias"):
                value.add_(1.0)
        elif value.dim() < 2:
            value.normal_(std=0.2)
        else:
            value.normal_(std=1.0 if "embed" in name or "position" in name else value[0].numel() ** -0.5)


@dataclass(frozen=True)
class Pair:
    """Two checkpoints on disk, and prompts that fit.

    Attributes:
        family: of `FAMILIES`.
        shape: of the decoder.
        mllm, base: their folders.
        nbytes: of the weights of both.
    """

    family: str
    shape: Shape
    mllm: Path
    base: Path
    nbytes: int


def write_pair(family: str, shape: Shape, folder: Path, device: str, dtype: torch.dtype = torch.bfloat16) -> Pair:
    """Draw a pair on the device and write it below `folder`, as `mllm` and `base`.

    Args:
        family: of `FAMILIES`.
        shape: of the decoder.
        folder: where to.
        device: to draw on.
        dtype: on disk.
    """
    torch.manual_seed(0)
    recipe = FAMILIES[family]
    model = _drawn_model(lambda: recipe.build(shape), device, dtype)
    made = _save(model, folder / "mllm", shape)
    keys = {**_decoder(shape), "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    config = getattr(transformers, f"{recipe.base}Config")(**keys)
    base = _drawn_model(lambda: getattr(transformers, f"{recipe.base}ForCausalLM")(config), device, dtype)
    own = dict(model.get_decoder().layers.named_parameters())
    with torch.no_grad():
        for name, value in base.model.layers.named_parameters():  # near the MLLM's decoder, as a real one is
            value.mul_(0.6).add_(own[name], alpha=0.8)
    del model, own
    made += _save(base, folder / "base", shape)
    return Pair(family, shape, folder / "mllm", folder / "base", made)


def _drawn_model(build: Callable[[], nn.Module], device: str, dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = build()
    finally:
        torch.set_default_dtype(before)
    _draw(model)
    return model


def _save(model: Any, folder: Path, shape: Shape) -> int:
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = shape.special["pad"], None
    model.save_pretrained(folder)
    return sum(value.nbytes for value in model.parameters())


def load(pair: Pair, device: Any, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """The MLLM of a pair.

    Args:
        pair: its folders.
        device: a device, or a `device_map`.
        dtype: to load it in.
        attention: the implementation.
    """
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        pair.mllm, dtype=dtype, device_map=device, attn_implementation=attention
    )
    return model.eval()


def prompts(pair: Pair, device: str, dtype: torch.dtype, documents: int = 2, blind: bool = False) -> dict[str, Tensor]:
    """A batch padded on the left: each document has text, a picture and a question, the later ones shorter questions.

    Args:
        pair: whose vocabulary and image size they fit.
        device: where they are put.
        dtype: of the pixels.
        documents: with a picture each.
        blind: one more document, without.
    """
    shape, generator = pair.shape, torch.Generator().manual_seed(1)
    text = TEXT if shape.hidden > 64 else 16
    low = min(shape.special.values())
    rows = []
    for index in range(documents + blind):
        words = torch.randint(3, low, (text - 5 * index,), generator=generator).tolist()
        picture = [1, *[shape.special["image"]] * shape.side**2, 2] if index < documents else []
        rows.append([*words[:BEFORE], *picture, *words[BEFORE:]])
    longest = max(map(len, rows))
    ids = torch.tensor([[shape.special["pad"]] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if pair.family != "llava":
        inputs["mm_token_type_ids"] = (ids == shape.special["image"]).long().to(device)
    pixels = FAMILIES[pair.family].pixels(shape, documents, device)
    return inputs | {name: value.to(dtype) if value.is_floating_point() else value for name, value in pixels.items()}


def answering(pair: Pair, new_tokens: int) -> dict[str, Any]:
    """Keyword arguments of a greedy `generate` whose answers all have so many tokens.

    Args:
        pair: whose special tokens are not to be answered.
        new_tokens: of each answer.
    """
    special = pair.shape.special
    return {
        "do_sample": False,
        "max_new_tokens": new_tokens,
        "eos_token_id": special["end"],
        "pad_token_id": special["pad"],
        "suppress_tokens": sorted(special.values()),
    }
