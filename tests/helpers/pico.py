"""Random checkpoints of every supported family, small enough to be written and loaded in a test.

`write_pico(family, folder)` writes an MLLM below `folder/mllm` and a base LLM fit for its decoder below `folder/base`.
Both are complete checkpoints in the layout and with the tensor names of the family's repositories on the hub: config,
safetensors, fast tokenizer, and for the MLLM the processor and chat template. Weights are drawn from a fixed seed;
the base is correlated with the MLLM's decoder, as a real one is, and has no image tokens in its vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

LAYERS = 4
HIDDEN = 64
HEAD = 32

_BYTES = 256
LLAMA_TOKENS = ("<unk>", "<s>", "</s>")
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
LLAVA_NAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.vision_tower\.", "vision_tower.vision_model."),
    (r"^model\.", ""),
)
_QWEN2_VL_NAMES = ((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual."))
_INTERNVL_NAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.", ""),
)

# The templates take a message's content as a string or as a list of parts, as the simple and the chat wrappers send it.
LLAMA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>\\n' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ 'IMAGE' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class PicoPair:
    """Folders of one family's MLLM and base LLM."""

    family: str
    mllm: Path
    base: Path


@dataclass(frozen=True)
class Family:
    tokens: tuple[str, ...]
    """Special tokens the base LLM knows."""
    vision_tokens: tuple[str, ...]
    """Special tokens only the MLLM knows; they come after the base's."""
    template: str
    hub_names: tuple[tuple[str, str], ...]
    """(pattern, replacement): parameter name in memory -> tensor name on the hub; the first that fits applies."""
    build: Callable[[dict[str, Any], dict[str, int]], nn.Module]
    processor: Callable[[Any, str], Any]
    base_config: Callable[[dict[str, Any]], Any]
    embedding_scale: float = 1.0
    """Of token embeddings; Gemma's are multiplied by the root of the hidden size before they meet the image."""


def _decoder(tokens: dict[str, int]) -> dict[str, Any]:
    end = tokens.get("</s>", tokens.get("<|im_end|>"))
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HIDDEN // HEAD,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "max_position_embeddings": 4096,
        "vocab_size": _BYTES + len(tokens),
        "bos_token_id": tokens.get("<s>", tokens.get("<|endoftext|>")),
        "eos_token_id": end,
        "pad_token_id": tokens.get("<pad>", tokens.get("<|endoftext|>", end)),
        "tie_word_embeddings": False,
    }


def clip(model_type: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": HIDDEN,
    }


PINPOINTS = [[28, 56], [56, 28], [56, 56]]


def _llava(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=clip("clip_vision_model"),
            text_config={**decoder, "model_type": "llama"},
            image_token_index=tokens["<image>"],
            image_seq_length=4,
            tie_word_embeddings=False,
        )
    )


def _llava_processor(tokenizer: Any, template: str) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    return LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def _llava_next(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=clip("clip_vision_model"),
            text_config={**decoder, "model_type": "llama"},
            image_token_index=tokens["<image>"],
            image_grid_pinpoints=PINPOINTS,
            image_seq_length=4,
            tie_word_embeddings=False,
        )
    )


def _llava_next_processor(tokenizer: Any, template: str) -> Any:
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    return LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def _llava_onevision(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config={**clip("siglip_vision_model"), "vision_use_head": False},
            text_config={**decoder, "model_type": "qwen2"},
            image_token_index=tokens["<image>"],
            video_token_index=tokens["<video>"],
            image_grid_pinpoints=PINPOINTS,
            tie_word_embeddings=False,
        )
    )


def _llava_onevision_processor(tokenizer: Any, template: str) -> Any:
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    size = {"height": 28, "width": 28}
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=template,
    )


def qwen_vision_ids(tokens: dict[str, int]) -> dict[str, Any]:
    return {
        "image_token_id": tokens["<|image_pad|>"],
        "video_token_id": tokens["<|video_pad|>"],
        "vision_start_token_id": tokens["<|vision_start|>"],
        "vision_end_token_id": tokens["<|vision_end|>"],
        "bos_token_id": tokens["<|endoftext|>"],
        "eos_token_id": tokens["<|im_end|>"],
        "pad_token_id": tokens["<|endoftext|>"],
        "tie_word_embeddings": False,
    }


def mrope(sections: list[int], **extra: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, **extra}}


def _qwen2_vl(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            vision_config={"depth": 2, "embed_dim": HIDDEN, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2},
            text_config={**decoder, **mrope([4, 6, 6])},
            **qwen_vision_ids(tokens),
        )
    )


def _qwen2_5_vl(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config={
                "depth": 2,
                "hidden_size": HIDDEN,
                "out_hidden_size": HIDDEN,
                "num_heads": 2,
                "intermediate_size": 96,
                "fullatt_block_indexes": [1],
            },
            text_config={**decoder, **mrope([4, 6, 6])},
            **qwen_vision_ids(tokens),
        )
    )


def _qwen2_vl_processor(tokenizer: Any, template: str, kind: str = "Qwen2VL") -> Any:
    import transformers

    side = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    processor = transformers.Qwen2_5_VLProcessor if kind == "Qwen2_5_VL" else transformers.Qwen2VLProcessor
    return processor(
        transformers.Qwen2VLImageProcessor(**side),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(**side),
        chat_template=template,
    )


def _qwen2_5_vl_processor(tokenizer: Any, template: str) -> Any:
    return _qwen2_vl_processor(tokenizer, template, "Qwen2_5_VL")


QWEN3_VISION_CONFIG = {
    "depth": 2,
    "hidden_size": HIDDEN,
    "out_hidden_size": HIDDEN,
    "num_heads": 2,
    "intermediate_size": 96,
    "patch_size": 16,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}


def _qwen3_vl(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            vision_config={**QWEN3_VISION_CONFIG},
            text_config={**decoder, **mrope([6, 5, 5], mrope_interleaved=True)},
            **qwen_vision_ids(tokens),
        )
    )


def qwen3_vl_processor(tokenizer: Any, template: str) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64, **half),
        tokenizer,
        Qwen3VLVideoProcessor(size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}, **half),
        chat_template=template,
    )


def _internvl(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    return InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config={
                "hidden_size": HIDDEN,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": [56, 56],
                "patch_size": [14, 14],
            },
            text_config={**decoder, "model_type": "qwen2"},
            image_token_id=tokens["<IMG_CONTEXT>"],
            image_seq_length=4,
            tie_word_embeddings=False,
        )
    )


def _internvl_processor(tokenizer: Any, template: str) -> Any:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    size = {"height": 56, "width": 56}
    return InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=2),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=template,
    )


def llama_config(decoder: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**decoder, architectures=["LlamaForCausalLM"])


def _qwen2_config(decoder: dict[str, Any]) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**decoder, architectures=["Qwen2ForCausalLM"])


def _qwen3_config(decoder: dict[str, Any]) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**decoder, architectures=["Qwen3ForCausalLM"])


def _template(image: str) -> str:
    return QWEN_TEMPLATE.replace("IMAGE", image)


QWEN_IMAGE = _template("<|vision_start|><|image_pad|><|vision_end|>")
_INTERNVL_VISION = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
_FAMILIES: dict[str, Family] = {
    "llava": Family(
        LLAMA_TOKENS, ("<image>", "<pad>"), LLAMA_TEMPLATE, LLAVA_NAMES, _llava, _llava_processor, llama_config
    ),
    "llava_next": Family(
        LLAMA_TOKENS,
        ("<image>", "<pad>"),
        LLAMA_TEMPLATE,
        LLAVA_NAMES,
        _llava_next,
        _llava_next_processor,
        llama_config,
    ),
    "llava_onevision": Family(
        QWEN_TOKENS,
        ("<image>", "<video>"),
        _template("<image>\\n"),
        LLAVA_NAMES,
        _llava_onevision,
        _llava_onevision_processor,
        _qwen2_config,
    ),
    "qwen2_vl": Family(
        QWEN_TOKENS, QWEN_VISION, QWEN_IMAGE, _QWEN2_VL_NAMES, _qwen2_vl, _qwen2_vl_processor, _qwen2_config
    ),
    "qwen2_5_vl": Family(
        QWEN_TOKENS, QWEN_VISION, QWEN_IMAGE, _QWEN2_VL_NAMES, _qwen2_5_vl, _qwen2_5_vl_processor, _qwen2_config
    ),
    "qwen3_vl": Family(QWEN_TOKENS, QWEN_VISION, QWEN_IMAGE, (), _qwen3_vl, qwen3_vl_processor, _qwen3_config),
    "internvl": Family(
        QWEN_TOKENS,
        _INTERNVL_VISION,
        _template("<IMG_CONTEXT>\\n"),
        _INTERNVL_NAMES,
        _internvl,
        _internvl_processor,
        _qwen2_config,
    ),
}

FAMILIES = tuple(_FAMILIES)
"""The families that have a wrapper of their own."""
OTHER_FAMILIES = (
    *("gemma3", "idefics3", "smolvlm", "paligemma", "mistral3", "pixtral", "glm4v", "qwen3_vl_moe"),
    "llava_next_video",
)
"""Families for `plam_hf`."""


def _recipe(family: str) -> Family:
    from tests.helpers.pico_others import OTHERS

    return {**_FAMILIES, **OTHERS}[family]


def _ids(tokens: tuple[str, ...]) -> dict[str, int]:
    return {token: _BYTES + index for index, token in enumerate(tokens)}


def _tokenizer(tokens: tuple[str, ...]) -> Any:
    """A byte-level tokenizer without merges: one token per byte, then the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    llama = "</s>" in tokens
    named: dict[str, Any] = {
        "bos_token": "<s>" if llama else None,
        "eos_token": "</s>" if llama else "<|im_end|>",
        "pad_token": "<|endoftext|>" if not llama else "<pad>" if "<pad>" in tokens else "<unk>",
    }
    if llama:
        named["unk_token"] = "<unk>"
    if "<IMG_CONTEXT>" in tokens:
        named["extra_special_tokens"] = {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    return PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=4096, clean_up_tokenization_spaces=False, **named
    )


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Weights of unit gain, so that every layer and the image move the output."""
    noise = torch.randn(shape, generator=generator)
    if "norm" in name or "ln_q" in name or "lambda" in name:
        return 0.1 * noise + (0.0 if name.endswith("bias") else 1.0)
    if name.endswith("bias"):
        return 0.2 * noise
    if "embed_tokens" in name or "position" in name or "pos_embed" in name or len(shape) == 1:
        return noise
    fan_in = shape[1:].numel()
    return noise * fan_in**-0.5


def _hub_name(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def write_pico(family: str, folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> PicoPair:
    """Writes one family's pair below `folder`; `dtype` is the dtype on disk (real LLaVA checkpoints are float16)."""
    recipe = _recipe(family)
    tokens = recipe.tokens + recipe.vision_tokens
    generator = torch.Generator().manual_seed(seed)
    model = recipe.build(_decoder(_ids(tokens)), _ids(tokens))

    tensors = {name: _draw(name, value.shape, generator) for name, value in model.state_dict().items()}
    for name in tensors:
        if name.endswith("embed_tokens.weight"):
            tensors[name] *= recipe.embedding_scale
    mllm = folder / "mllm"
    mllm.mkdir(parents=True, exist_ok=True)
    save_file(
        {_hub_name(name, recipe.hub_names): value.to(dtype).contiguous() for name, value in tensors.items()},
        mllm / "model.safetensors",
        metadata={"format": "pt"},
    )
    config: Any = model.config
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    config.save_pretrained(mllm)
    ids = _decoder(_ids(tokens))
    generation = {key: ids[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (mllm / "generation_config.json").write_text(json.dumps(generation, indent=2))
    recipe.processor(_tokenizer(tokens), recipe.template).save_pretrained(mllm)

    base = folder / "base"
    base.mkdir(parents=True, exist_ok=True)
    vocabulary = _BYTES + len(recipe.tokens)
    decoder = {}
    for name, value in tensors.items():
        short = re.sub(r"^model\.(language_model|text_model)\.", "model.", name)
        if short == name and name != "lm_head.weight":
            continue
        kept = value[:vocabulary] if short in ("model.embed_tokens.weight", "lm_head.weight") else value
        drawn = _draw(name, kept.shape, generator)
        decoder[short] = (0.8 * kept + 0.6 * (drawn - drawn.mean())).to(dtype).contiguous()
    save_file(decoder, base / "model.safetensors", metadata={"format": "pt"})
    base_config = recipe.base_config(_decoder(_ids(recipe.tokens)))
    base_config.dtype = dtype
    base_config.save_pretrained(base)
    _tokenizer(recipe.tokens).save_pretrained(base)
    return PicoPair(family, mllm, base)
