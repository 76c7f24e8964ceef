"""Sizes of the language decoder that a config describes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from plam_eval.errors import MergeError

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")


def decoder_geometry(config: Any) -> dict[str, Any]:
    """Sizes of the language decoder that a config describes.

    Fields that a config leaves out have their model type's default, as on loading; None where neither says.

    Args:
        config: config.json's content, or a transformers config.

    Raises:
        MergeError: transformers knows the model type and refuses the config, or a size is no number.
    """
    if isinstance(config, Mapping):
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        model_type = config.get("model_type")
        if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
            try:
                config = CONFIG_MAPPING[model_type].from_dict(dict(config))
            except Exception as error:
                raise MergeError(f"config.json is invalid for {model_type}: {' '.join(str(error).split())}") from error
        else:  # a type with remote code: only what the file itself says
            config = config.get("thinker_config") or config
            config = _mapping(config, "thinker_config")
            config = _mapping(config.get("text_config") or config.get("llm_config") or config, "text_config")
    if hasattr(config, "get_text_config"):
        try:
            config = config.get_text_config(decoder=True).to_dict()
        except Exception as error:
            raise MergeError(f"the config describes no language decoder: {' '.join(str(error).split())}") from error
    rope = _mapping(config.get("rope_parameters") or {}, "rope_parameters")
    sizes = {
        **{field: config.get(field) for field in (*_SIZES, "rms_norm_eps")},
        "rope_theta": rope.get("rope_theta", config.get("rope_theta")),
    }
    problems = [
        f"config: {field} is {value!r}; expected a {'whole ' if field in _SIZES else ''}number above 0"
        for field, value in sizes.items()
        if value is not None and not _number(value, whole=field in _SIZES)
    ]
    if problems:
        raise MergeError(*problems)
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    sizes["num_key_value_heads"] = sizes["num_key_value_heads"] or heads
    sizes["head_dim"] = sizes["head_dim"] or (width // heads if width and heads else None)
    return sizes


def _mapping(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise MergeError(f"config: {field} is {type(value).__name__}, expected a mapping")
    return value


def _number(value: Any, *, whole: bool) -> bool:
    kinds = (int,) if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < math.inf
