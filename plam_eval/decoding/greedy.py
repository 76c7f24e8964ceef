"""What decoding loops of our own need from transformers' `generate`, which calls them with everything prepared."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import DynamicCache, GenerationConfig, GenerationMixin, StoppingCriteriaList, StopStringCriteria
from transformers.cache_utils import DynamicLayer

from plam_eval.probing.decoder import ProbeError, cache_in

_UNSUPPORTED = (
    "assistant_model",
    "cache",
    "custom_generate",
    "inputs_embeds",
    "negative_prompt_ids",
    "past_key_values",
    "prefix_allowed_tokens_fn",
    "streamer",
)


def check_call(caller: str, generate_kwargs: Mapping[str, Any]) -> None:
    """Refuse what a decoding loop of ours cannot honour.

    Args:
        caller: name of the function that was called, for the message.
        generate_kwargs: what it was given for `model.generate`.

    Raises:
        ProbeError: naming every argument that is in the way.
    """
    given = [name for name in _UNSUPPORTED if generate_kwargs.get(name) is not None]
    if given:
        raise ProbeError(f"{caller} takes no {', '.join(given)}; use the model's own generate, one variant at a time")


def model_inputs(generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Of what `generate` was given, that which it hands to the model: the prompt and its images, no settings.

    Args:
        generate_kwargs: as for `model.generate`.
    """
    config = GenerationConfig()
    settings = {*inspect.signature(GenerationMixin.generate).parameters, "tokenizer", "assistant_tokenizer"}
    return {
        name: value
        for name, value in generate_kwargs.items()
        if value is not None and name not in settings and not hasattr(config, name)
    }


def own_stop_strings(model: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `generate`, with stop strings made into a stopping criterion.

    `generate` drops the tokenizer, which that criterion needs, when it is given a decoding loop.

    Args:
        model: its generation config may hold stop strings, too.
        kwargs: for `model.generate`.

    Raises:
        ProbeError: there are stop strings, and no tokenizer.
    """
    kwargs = dict(kwargs)
    tokenizer = kwargs.pop("tokenizer", None)
    configs = (kwargs.get("generation_config"), model.generation_config)
    strings = kwargs.get("stop_strings") or next((c.stop_strings for c in configs if c and c.stop_strings), None)
    if strings and tokenizer is None:
        raise ProbeError(f"stop_strings {strings!r} need the tokenizer; pass tokenizer=")
    if strings:
        criteria = StoppingCriteriaList(kwargs.get("stopping_criteria") or [])
        criteria.append(StopStringCriteria(tokenizer=tokenizer, stop_strings=strings))
        kwargs |= {"stopping_criteria": criteria, "stop_strings": None}
    return kwargs


def check_settings(caller: str, config: GenerationConfig, model_kwargs: Mapping[str, Any]) -> None:
    """Refuse what is not greedy decoding with a dynamic cache.

    Args:
        caller: name of the function that was called, for the message.
        config: what `generate` has made of its arguments and the model's own config.
        model_kwargs: what it hands to the loop, the cache among it.

    Raises:
        ProbeError: naming every such setting.
    """
    problems = [
        f"{name}={value!r}"
        for name, value, wanted in (
            ("do_sample", config.do_sample, False),
            ("num_beams", config.num_beams, 1),
            ("num_return_sequences", config.num_return_sequences, 1),
            ("use_cache", config.use_cache, True),
            ("return_dict_in_generate", config.return_dict_in_generate, False),
            ("output_attentions", config.output_attentions, False),
            ("output_hidden_states", config.output_hidden_states, False),
            ("guidance_scale", config.guidance_scale, 1),
            ("max_time", config.max_time, None),
            ("prefill_chunk_size", config.prefill_chunk_size, None),
            ("penalty_alpha", config.penalty_alpha, None),
            ("prompt_lookup_num_tokens", config.prompt_lookup_num_tokens, None),
        )
        if value != wanted and value is not None
    ]
    _, cache = cache_in(model_kwargs)
    if (
        type(cache) is not DynamicCache
        or cache.offloading
        or any(type(layer) is not DynamicLayer for layer in cache.layers)
    ):
        problems.append(f"cache_implementation={config.cache_implementation!r}, which gives {type(cache).__name__}")
    if problems:
        raise ProbeError(
            f"{caller} answers greedily, with a dynamic cache, and returns tokens; found {', '.join(problems)}. "
            "Pass do_sample=False, num_beams=1 and leave the others unset"
        )


def document_dim(name: str, value: Tensor) -> int:
    """The dimension that counts documents in what a model or a decoder layer is given by this name.

    M-RoPE puts its sections before them: in position_ids, and up to transformers 5.16 in position_embeddings too.

    Args:
        name: of the keyword argument.
        value: its tensor.
    """
    behind = {"position_ids": 2, "position_embeddings": 3}.get(name)  # documents, tokens, and the head size
    return 0 if behind is None else max(value.dim() - behind, 0)


def of_rows(model_kwargs: Mapping[str, Any], index: Tensor, size: int) -> dict[str, Any]:
    """The loop's keyword arguments for rows instead of documents, or for some rows.

    Args:
        model_kwargs: what the loop was given, or its rows.
        index: (rows,), for each row the document, or row, it is made of.
        size: number of documents, or rows, before.
    """

    def pick(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim():
            return value
        dim = document_dim(name, value)
        return value.index_select(dim, index.to(value.device)) if value.shape[dim] == size else value

    return {name: pick(name, value) for name, value in model_kwargs.items()}
