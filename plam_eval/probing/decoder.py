"""The decoder of a multimodal LLM, and which of its input positions carry images.

Everything is read from the model's own config and `get_decoder`, so it holds for any HF MLLM that splices image
features into the token sequence in place of placeholder ids (LLaVA and NeXT, OneVision, Qwen-VL, InternVL, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from plam_eval.errors import PlamError

_TOKEN_IDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
_VISUAL_INPUTS = ("pixel_values", "image_patches", "image_embeds", "image_features", "video_embeds", "video_features")
_FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
_LAYER_TYPES = ("full_attention", "sliding_attention")


class ProbeError(PlamError, ValueError):
    """A model or a call the probe cannot answer for; says what was found, what was expected, and what to do."""


def decoder(model: nn.Module) -> nn.Module:
    """The module that runs the decoder layers: `get_decoder()`, followed until a module has `layers`.

    Args:
        model: an HF MLLM.

    Raises:
        ProbeError: no such module, or one whose text does not see images through self-attention alone.
    """
    name, module, tried = type(model).__name__, model, []
    for _ in range(4):
        get = getattr(module, "get_decoder", None)
        inner = get() if callable(get) else getattr(module, "language_model", None)
        if inner is None or inner is module:
            break
        module = inner
        tried.append(type(module).__name__)
        if isinstance(getattr(module, "layers", None), nn.ModuleList):
            break
    layers = getattr(module, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ProbeError(
            f"{name}: found no decoder layers; looked for a ModuleList `layers` in what get_decoder() or "
            f"`language_model` gives ({' -> '.join(tried) or 'nothing'}). Expected a decoder-only HF model"
        )
    config = text_config(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ProbeError(f"{name} is an encoder-decoder; expected a decoder-only model")
    if getattr(config, "cross_attention_layers", None):
        raise ProbeError(
            f"{name} sees images through cross-attention layers; expected image features among the input tokens"
        )
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - set(_LAYER_TYPES))
    if kinds:
        raise ProbeError(f"{name} has decoder layers of type {', '.join(kinds)}; expected {' or '.join(_LAYER_TYPES)}")
    if len(layers) != config.num_hidden_layers:
        raise ProbeError(
            f"{name}: {len(layers)} decoder layers in {type(module).__name__}, but the config's num_hidden_layers is "
            f"{config.num_hidden_layers}"
        )
    return module


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of an MLLM, first to last.

    Args:
        model: an HF MLLM.

    Raises:
        ProbeError: as `decoder`.
    """
    layers = decoder(model).layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def final_norm(model: nn.Module) -> nn.Module:
    """The norm between the last decoder layer and the output head.

    Args:
        model: an HF MLLM.

    Raises:
        ProbeError: the decoder has none by a name that is known.
    """
    module = decoder(model)
    norm = next((child for name, child in module.named_children() if name in _FINAL_NORMS), None)
    if norm is None:
        children = ", ".join(name for name, _ in module.named_children())
        raise ProbeError(
            f"{type(module).__name__} has {children}; expected a norm behind the layers, named "
            f"{' or '.join(_FINAL_NORMS)}"
        )
    return norm


def output_head(model: nn.Module) -> nn.Module:
    """The layer that makes logits over the vocabulary of the decoder's normed outputs.

    Args:
        model: an HF MLLM.

    Raises:
        ProbeError: it has none.
    """
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    if not isinstance(head, nn.Module):
        raise ProbeError(f"{type(model).__name__} has no output embeddings; expected a model that generates text")
    return head


def text_config(model: nn.Module) -> Any:
    """The config of an MLLM's decoder.

    Args:
        model: an HF MLLM.

    Raises:
        ProbeError: it is no model of transformers.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise ProbeError(f"{type(model).__name__} has no HF config; expected a model of transformers")
    return config.get_text_config(decoder=True)


def vision_token_ids(model: nn.Module) -> tuple[int, ...]:
    """Placeholder ids that image or video features replace. Delimiters around them are text.

    Args:
        model: an HF MLLM.

    Raises:
        ProbeError: the config names none.
    """
    values = (getattr(model.config, name, None) for name in _TOKEN_IDS)
    ids = tuple(dict.fromkeys(value for value in values if isinstance(value, int)))
    if not ids:
        raise ProbeError(
            f"{type(model).__name__}: its config ({type(model.config).__name__}) names no vision token; looked for "
            f"{', '.join(_TOKEN_IDS)}. Expected a model that takes images as placeholder tokens"
        )
    return ids


def vision_positions(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Where a batch holds vision tokens, as booleans of its shape.

    Args:
        model: an HF MLLM.
        input_ids: (documents, tokens).
    """
    ids = torch.tensor(vision_token_ids(model), device=input_ids.device)
    return torch.isin(input_ids, ids)


def has_visual_input(inputs: Mapping[str, Any]) -> bool:
    """Whether a forward call's keyword arguments bring images or videos.

    Without any, a placeholder id is a token like others: a model may well generate one.

    Args:
        inputs: the keyword arguments.
    """
    for name, value in inputs.items():
        if name == "mm_encoder_outputs":
            if value and any(output is not None for output in value.values()):
                return True
        elif value is not None and any(word in name for word in _VISUAL_INPUTS):
            return True
    return False


def cache_in(given: Mapping[str, Any]) -> tuple[str, Cache | None]:
    """The KV cache that a model or a decoder layer is given or gives, with its name; ("", None) without one.

    It is told by its class: transformers calls it `past_key_values` up to 5.23 and `cache` from 5.24 on, and what is
    looked up under the wrong name is None.

    Args:
        given: keyword arguments, or outputs.
    """
    return next(((name, value) for name, value in given.items() if isinstance(value, Cache)), ("", None))


def attention_implementation(model: nn.Module) -> str:
    """The name of the decoder's attention implementation, whichever it is.

    Args:
        model: an HF MLLM.
    """
    config: Any = decoder(model).config
    return str(config._attn_implementation)


def attention_backend(model: nn.Module) -> str:
    """The decoder's attention implementation, one that takes a mask over every (row, column): sdpa or eager.

    Args:
        model: an HF MLLM.

    Raises:
        ProbeError: it is another one.
    """
    backend = attention_implementation(model)
    if backend not in ("sdpa", "eager"):
        raise ProbeError(
            f"{type(model).__name__} runs with {backend} attention, which takes no mask of single positions; expected "
            'sdpa or eager. Call model.set_attn_implementation("sdpa"), or load with attn_implementation="sdpa"'
        )
    return backend
