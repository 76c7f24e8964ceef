"""Whether a model can be probed, from its config alone: minutes of loading come before any other answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, DynamicCache

from plam_eval.errors import first_line
from plam_eval.probing.decoder import ProbeError, decoder, text_config, vision_token_ids


def skeleton(config: Any, *, trust_remote_code: bool = False) -> nn.Module:
    """The multimodal LLM that an HF config describes, without weights: its parameters have shapes only.

    Args:
        config: of the model, as `AutoConfig` gives it.
        trust_remote_code: whether code of the checkpoint's own may define the model.

    Raises:
        ProbeError: transformers has no such model, or cannot make one of this config.
    """
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ProbeError(
            f"transformers makes no image-text-to-text model of {type(config).__name__}: {first_line(error)}"
        ) from error
    return model


def check_probeable(model: nn.Module) -> None:
    """Refuse a model, or a skeleton of one, whose decoder or whose image tokens cannot be told.

    Args:
        model: an HF MLLM.

    Raises:
        ProbeError: as `decoder` and `vision_token_ids`.
    """
    decoder(model)
    vision_token_ids(model)


def check_shared_keys(model: nn.Module) -> None:
    """Refuse a model, or a skeleton of one, whose layers do not keep the keys of all tokens, which cuts share.

    Args:
        model: an HF MLLM.

    Raises:
        ProbeError: naming the kinds of layers found.
    """
    layers = DynamicCache(config=text_config(model)).layers
    kinds = sorted({type(layer).__name__ for layer in layers} - {"DynamicLayer"})
    if kinds:
        raise ProbeError(
            f"{type(model).__name__} keeps its keys in {', '.join(kinds)}; expected layers that keep all keys and "
            "values, because cuts share them. Use mask_vision and generate, one cut at a time"
        )
