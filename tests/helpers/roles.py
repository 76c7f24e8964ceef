"""A LLaVA whose decoder layers have known roles: every weight is set by hand, attention and cache are transformers'.

The stream has blocks of four dimensions, one for each class that an image may be of, and markers that say what a token
is. A layer of a role copies one block of the tokens that it reads into another block of the tokens that read; everybody
else attends to the first token, which has nothing in any block. Layers without a role leave the stream as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SIZE, CLASSES, PATCHES = 32, 4, 4
MARKERS = {"image": 0, "first": 1, "question": 2, "last": 3}
ONE = 4
"""The dimension that is 1 in every token."""
BLOCKS = {"pixels": 8, "seen": 12, "asked": 16, "answer": 20}
NOTHING, FIRST, QUESTION, LAST, IMAGE = range(CLASSES, CLASSES + 5)
"""Ids behind those of the answers, 0 to 3; the head says NOTHING where the answer's block is empty."""
PROMPT = (FIRST, *[IMAGE] * PATCHES, QUESTION, QUESTION, LAST)
_GAIN = 8.0
_SLOW = (SIZE // 2 - 2, SIZE // 2 - 1)  # dimensions of queries and keys that RoPE all but leaves as they are


@dataclass(frozen=True)
class Role:
    """In a layer, tokens of kind `reader` copy the block `source` of those of kind `read` into their block `target`."""

    reader: str
    read: str
    source: str
    target: str


SEE = Role("image", "image", "pixels", "seen")
ASK = Role("question", "image", "seen", "asked")
ANSWER = Role("last", "question", "asked", "answer")
LOOK_UP = Role("last", "image", "seen", "answer")


class _Projector(nn.Module):
    """Image features of a class, whatever the vision tower has made of the pixels."""

    shown = 0

    def forward(self, features: Tensor) -> Tensor:
        made = torch.zeros(*features.shape[:2], SIZE)
        made[..., [MARKERS["image"], ONE]] = 1.0
        # The patches of an image are not all alike.
        made[..., BLOCKS["pixels"] + self.shown] = torch.linspace(1, 2, features.shape[1])
        return made


def toy(roles: dict[int, Role], layers: int = 8) -> Any:
    """The model.

    Args:
        roles: by layer; the others do nothing.
        layers: of the decoder.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    decoder = {
        "model_type": "llama",
        "hidden_size": SIZE,
        "intermediate_size": 8,
        "num_hidden_layers": layers,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": SIZE,
        "vocab_size": IMAGE + 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e30},
        "pad_token_id": NOTHING,
        "bos_token_id": FIRST,
        "eos_token_id": None,
    }
    tower = {"model_type": "clip_vision_model", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 1, "image_size": 28, "patch_size": 14, "projection_dim": 8}
    config = LlavaConfig(
        vision_config=tower,
        text_config=decoder,
        image_token_index=IMAGE,
        image_seq_length=PATCHES,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.requires_grad_(False)
    model.model.multi_modal_projector = _Projector()
    inner: Any = model.model.language_model
    embedding = inner.embed_tokens.weight.zero_()
    embedding[:, ONE] = 1.0
    for marker, token in (("first", FIRST), ("question", QUESTION), ("last", LAST)):
        embedding[token, MARKERS[marker]] = 1.0
    for index, layer in enumerate(inner.layers):
        attention = layer.self_attn
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, layer.mlp.down_proj):
            linear.weight.zero_()
        if index in roles:
            _set(attention, roles[index])
    head = model.lm_head.weight.zero_()
    head[NOTHING, ONE] = 1.0
    for number in range(CLASSES):
        head[number, BLOCKS["answer"] + number] = 10.0
    return model


def _set(attention: Any, role: Role) -> None:
    reads, rests = _SLOW
    query, key = attention.q_proj.weight, attention.k_proj.weight
    query[reads, MARKERS[role.reader]] = _GAIN
    query[rests, ONE] = _GAIN
    query[rests, MARKERS[role.reader]] = -_GAIN
    key[reads, MARKERS[role.read]] = _GAIN
    key[rests, MARKERS["first"]] = _GAIN
    for number in range(CLASSES):
        attention.v_proj.weight[number, BLOCKS[role.source] + number] = 1.0
        attention.o_proj.weight[BLOCKS[role.target] + number, number] = 1.0


def prompts(model: Any, shown: int, documents: int = 1) -> dict[str, Tensor]:
    """Inputs of an image of a class, the question behind it, and the last token.

    Args:
        model: what `toy` gave; it shows this image from now on.
        shown: the class, 0 to 3, which is also the id of the right answer.
        documents: so many times the same.
    """
    model.model.multi_modal_projector.shown = shown
    ids = torch.tensor([PROMPT] * documents)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.zeros(documents, 3, 28, 28),
    }


def answers(tokens: Tensor) -> Sequence[int]:
    """First answer tokens, of (documents, tokens) or (cuts, documents, tokens) of one document."""
    return [int(each) for each in tokens.reshape(-1, tokens.shape[-1])[:, 0]]
