"""Random checkpoints of families that have no wrapper of their own, for `plam_hf`. `tests.helpers.pico` writes them."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.helpers.pico import (
    HIDDEN,
    LLAMA_TEMPLATE,
    LLAMA_TOKENS,
    LLAVA_NAMES,
    PINPOINTS,
    QWEN3_VISION_CONFIG,
    QWEN_IMAGE,
    QWEN_TEMPLATE,
    QWEN_TOKENS,
    QWEN_VISION,
    Family,
    clip,
    llama_config,
    mrope,
    qwen3_vl_processor,
    qwen_vision_ids,
)

_PIXTRAL_NAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.", ""),
)
_PIXTRAL_TOKENS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]", "<pad>")
_IDEFICS_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<video>", "<pad>")
_GEMMA_TOKENS = ("<start_of_image>", "<end_of_image>", "<image_soft_token>", "<pad>")
_GLM_TOKENS = (
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|video|>",
)


def _template(image: str) -> str:
    return LLAMA_TEMPLATE.replace("<image>\\n", image)


def _siglip(**more: Any) -> dict[str, Any]:
    return {**clip("siglip_vision_model"), "vision_use_head": False, **more}


def _pixtral_tower() -> dict[str, Any]:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {"model_type": "pixtral", "image_size": 56, "patch_size": 14, **sizes}


def _named(tokenizer: Any, **tokens: str) -> Any:
    """The tokenizer with names for tokens that are its own already."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        unk_token=tokenizer.unk_token,
        extra_special_tokens=tokens,
    )


def _gemma3(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            vision_config=_siglip(image_size=56),
            text_config={
                **decoder,
                "query_pre_attn_scalar": 32,
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            mm_tokens_per_image=4,
            boi_token_index=tokens["<start_of_image>"],
            eoi_token_index=tokens["<end_of_image>"],
            image_token_index=tokens["<image_soft_token>"],
            tie_word_embeddings=False,
        )
    )


def _gemma3_processor(tokenizer: Any, template: str) -> Any:
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    images = Gemma3ImageProcessor(size={"height": 56, "width": 56}, image_seq_length=4)
    return Gemma3Processor(images, _named(tokenizer, **names), chat_template=template, image_seq_length=4)


def _gemma3_base(decoder: dict[str, Any]) -> Any:
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        **decoder,
        query_pre_attn_scalar=32,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        architectures=["Gemma3ForCausalLM"],
    )


def _paligemma(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config=_siglip(),
            text_config={**decoder, "model_type": "gemma"},
            image_token_index=tokens["<image>"],
            projection_dim=HIDDEN,
            hidden_size=HIDDEN,
            tie_word_embeddings=False,
        )
    )


def _paligemma_processor(tokenizer: Any, template: str) -> Any:
    from transformers import PaliGemmaProcessor, SiglipImageProcessor

    images: Any = SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    return PaliGemmaProcessor(images, _named(tokenizer, image_token="<image>"), chat_template=template)


def _paligemma_base(decoder: dict[str, Any]) -> Any:
    from transformers import GemmaConfig

    return GemmaConfig(**decoder, architectures=["GemmaForCausalLM"])


def _idefics3(decoder: dict[str, Any], tokens: dict[str, int], kind: str = "Idefics3") -> nn.Module:
    import transformers

    sizes = {"hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(
        vision_config={**sizes, "image_size": 56, "patch_size": 14},
        text_config={**decoder, "model_type": "llama"},
        image_token_id=tokens["<image>"],
        pad_token_id=tokens["<pad>"],
        scale_factor=2,
        tie_word_embeddings=False,
    )
    model: nn.Module = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return model


def _idefics3_processor(tokenizer: Any, template: str) -> Any:
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    edge = {"longest_edge": 56}
    images = Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)


def _smolvlm(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    return _idefics3(decoder, tokens, "SmolVLM")


def _smolvlm_processor(tokenizer: Any, template: str) -> Any:
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    edge = {"longest_edge": 56}
    return SmolVLMProcessor(
        SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False),
        tokenizer,
        SmolVLMVideoProcessor(size=edge, max_image_size=edge),
        image_seq_len=4,
        chat_template=template,
    )


def _mistral3(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            vision_config=_pixtral_tower(),
            text_config={**decoder, "model_type": "mistral", "sliding_window": None},
            image_token_index=tokens["[IMG]"],
            spatial_merge_size=2,
            tie_word_embeddings=False,
        )
    )


def _mistral3_processor(tokenizer: Any, template: str, merge: int = 2) -> Any:
    from transformers import PixtralImageProcessor, PixtralProcessor

    side = 14 * merge
    images = PixtralImageProcessor(size={"longest_edge": 56}, patch_size=side)
    return PixtralProcessor(images, tokenizer, patch_size=14, spatial_merge_size=merge, chat_template=template)


def _mistral_base(decoder: dict[str, Any]) -> Any:
    from transformers import MistralConfig

    return MistralConfig(**decoder, sliding_window=None, architectures=["MistralForCausalLM"])


def _pixtral(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=_pixtral_tower(),
            text_config={**decoder, "model_type": "mistral", "sliding_window": None},
            image_token_index=tokens["[IMG]"],
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=False,
        )
    )


def _pixtral_processor(tokenizer: Any, template: str) -> Any:
    return _mistral3_processor(tokenizer, template, merge=1)


def _glm4v(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]}
    return Glm4vForConditionalGeneration(
        Glm4vConfig(
            vision_config={
                "depth": 2,
                "hidden_size": HIDDEN,
                "out_hidden_size": HIDDEN,
                "num_heads": 2,
                "intermediate_size": 96,
                "image_size": 56,
                "patch_size": 14,
            },
            text_config={**decoder, "rope_parameters": rope},
            image_token_id=tokens["<|image|>"],
            video_token_id=tokens["<|video|>"],
            image_start_token_id=tokens["<|begin_of_image|>"],
            image_end_token_id=tokens["<|end_of_image|>"],
            video_start_token_id=tokens["<|begin_of_video|>"],
            video_end_token_id=tokens["<|end_of_video|>"],
            tie_word_embeddings=False,
        )
    )


def _glm4v_processor(tokenizer: Any, template: str) -> Any:
    from transformers import Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    size = {"shortest_edge": 28 * 28, "longest_edge": 2 * 56 * 56}
    return Glm4vProcessor(
        Glm4vImageProcessor(size=size), tokenizer, Glm4vVideoProcessor(size=size), chat_template=template
    )


def _glm4_base(decoder: dict[str, Any]) -> Any:
    from transformers import Glm4Config

    return Glm4Config(**decoder, architectures=["Glm4ForCausalLM"])


_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
}


def _qwen3_vl_moe(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    return Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(
            vision_config={**QWEN3_VISION_CONFIG},
            text_config={**decoder, **mrope([6, 5, 5], mrope_interleaved=True), **_EXPERTS},
            **qwen_vision_ids(tokens),
        )
    )


def _qwen3_moe_base(decoder: dict[str, Any]) -> Any:
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(**decoder, **_EXPERTS, architectures=["Qwen3MoeForCausalLM"])


def _llava_next_video(decoder: dict[str, Any], tokens: dict[str, int]) -> nn.Module:
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    return LlavaNextVideoForConditionalGeneration(
        LlavaNextVideoConfig(
            vision_config=clip("clip_vision_model"),
            text_config={**decoder, "model_type": "llama"},
            image_token_index=tokens["<image>"],
            video_token_index=tokens["<video>"],
            image_grid_pinpoints=PINPOINTS,
            image_seq_length=4,
            tie_word_embeddings=False,
        )
    )


def _llava_next_video_processor(tokenizer: Any, template: str) -> Any:
    from transformers import LlavaNextImageProcessor, LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor

    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    return LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**size),
        LlavaNextImageProcessor(**size, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        chat_template=template,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


_GLM_TEMPLATE = QWEN_TEMPLATE.replace("IMAGE", "<|begin_of_image|><|image|><|end_of_image|>")
# PaliGemma's prompts begin with the image. Its checkpoints on the hub bring no template.
_PALIGEMMA_TEMPLATE = (
    "{% for m in messages %}{% for kind in ['image', 'text'] %}{% for c in m['content'] %}{% if c['type'] == kind %}"
    "{{ '<image>' if kind == 'image' else c['text'] }}{% endif %}{% endfor %}{% endfor %}{% endfor %}"
)
OTHERS: dict[str, Family] = {
    "gemma3": Family(
        LLAMA_TOKENS,
        _GEMMA_TOKENS,
        _template("<start_of_image>"),
        LLAVA_NAMES,
        _gemma3,
        _gemma3_processor,
        _gemma3_base,
    ),
    "idefics3": Family(
        LLAMA_TOKENS, _IDEFICS_TOKENS, _template("<image>"), (), _idefics3, _idefics3_processor, llama_config
    ),
    "smolvlm": Family(
        LLAMA_TOKENS, _IDEFICS_TOKENS, _template("<image>"), (), _smolvlm, _smolvlm_processor, llama_config
    ),
    "paligemma": Family(
        LLAMA_TOKENS,
        ("<image>", "<pad>"),
        _PALIGEMMA_TEMPLATE,
        LLAVA_NAMES,
        _paligemma,
        _paligemma_processor,
        _paligemma_base,
        HIDDEN**-0.5,
    ),
    "mistral3": Family(
        LLAMA_TOKENS, _PIXTRAL_TOKENS, _template("[IMG]"), _PIXTRAL_NAMES, _mistral3, _mistral3_processor, _mistral_base
    ),
    "pixtral": Family(
        LLAMA_TOKENS, _PIXTRAL_TOKENS, _template("[IMG]"), _PIXTRAL_NAMES, _pixtral, _pixtral_processor, _mistral_base
    ),
    "glm4v": Family(QWEN_TOKENS, _GLM_TOKENS, _GLM_TEMPLATE, (), _glm4v, _glm4v_processor, _glm4_base),
    "qwen3_vl_moe": Family(
        QWEN_TOKENS, QWEN_VISION, QWEN_IMAGE, (), _qwen3_vl_moe, qwen3_vl_processor, _qwen3_moe_base
    ),
    "llava_next_video": Family(
        LLAMA_TOKENS,
        ("<image>", "<video>", "<pad>"),
        LLAMA_TEMPLATE,
        LLAVA_NAMES,
        _llava_next_video,
        _llava_next_video_processor,
        llama_config,
    ),
}
