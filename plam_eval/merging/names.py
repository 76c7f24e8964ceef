"""Names of decoder tensors: every layout a checkpoint or a loaded model uses <-> (layer, suffix)."""

from __future__ import annotations

import re
from collections.abc import Iterable

# `model.layers.N.` (text LMs, Qwen2-VL on the hub), `language_model.model.layers.N.` (LLaVA and InternVL on the hub),
# `model.language_model.layers.N.` (Qwen3-VL, and every family in memory), `llm.model.layers.N.` (MiniCPM-V),
# `thinker.model.layers.N.` (Qwen-Omni). Anchored at the start, so that the layers of a vision or audio tower
# (`vision_tower.vision_model.encoder.layers.N.`, `thinker.audio_tower.layers.N.`, `visual.blocks.N.`) and of a speech
# decoder (`talker.model.layers.N.`) cannot match.
_PREFIX = r"(?:(?:model|language_model|text_model|llm|llm_backbone|thinker)\.)*"
_LAYER = re.compile(rf"({_PREFIX})layers\.(0|[1-9][0-9]{{0,4}})\.(.+)")

Key = tuple[int, str]


def decoder_tensor(name: str) -> Key | None:
    """(layer, suffix) of a language-decoder tensor, such as (3, "self_attn.q_proj.weight"); None for any other.

    Args:
        name: of the tensor, in a checkpoint or a loaded model.
    """
    match = _LAYER.fullmatch(name)
    return (int(match[2]), match[3]) if match else None


def decoder_prefixes(names: Iterable[str]) -> list[str]:
    """What stands before `layers.N.` in the names of decoder tensors; more than one of them are several decoders.

    Args:
        names: of all tensors of a checkpoint or model.
    """
    return sorted({match[1] for name in names if (match := _LAYER.fullmatch(name))})


def by_layer(names: Iterable[str]) -> dict[int, dict[str, list[str]]]:
    """layer -> suffix -> the names that stand for it; more than one name means an ambiguous source.

    Args:
        names: of all tensors of a checkpoint or model; those outside the language decoder are left out.
    """
    layers: dict[int, dict[str, list[str]]] = {}
    for name in names:
        key = decoder_tensor(name)
        if key is not None:
            layers.setdefault(key[0], {}).setdefault(key[1], []).append(name)
    return layers
