"""What each layer does under each setting, of one document at a time: descriptions, beside where the model looks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from plam_eval.evaluation.attend.folder import DEPTH_KEYS, DEPTH_OF_LAYERS, DEPTH_OF_STREAM, PLAIN

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plam_eval.decoding.all_merges import Merges
    from plam_eval.probing.depth import Description

Columns = dict[str, list[float | None]]
"""Column of `DEPTH_FILE` -> its value in each layer, or at each depth; None where there is nothing to measure."""

_DIGITS = 7  # that float32 has


def depth_of(
    model: nn.Module, merges: Merges, settings: Sequence[str], generate_kwargs: Mapping[str, Any]
) -> dict[str, Columns]:
    """Drift, clouds, logit lens, contribution and similarity of one document, layer by layer, by setting.

    One prefill for each setting, and for the plain model another one and a pass of the decoder for each layer. The
    plain model's stream at all depths is held on the CPU meanwhile. Where the plain model is none of the settings, as
    when they are worked out in several calls, it is run for the others to be compared with.

    Args:
        model: an HF MLLM, plain; the one that `merges` was made of.
        merges: of the settings.
        settings: names of `merges.specs`, in their order; `PLAIN` is the plain model.
        generate_kwargs: as for `model.generate`, of one document; settings of generation are left out.

    Returns:
        JSON-able. Without an image, columns of image tokens hold None.

    Raises:
        ProbeError: for a model that `describe` or `layer_contribution` cannot answer for.
    """
    from plam_eval.decoding.greedy import model_inputs
    from plam_eval.probing.depth import describe, layer_contribution

    inputs = model_inputs(generate_kwargs)
    plain = describe(model, inputs, states=True)
    assert plain.lens is not None and plain.states is not None  # as asked
    columns: dict[str, Columns] = {}
    for number, setting in enumerate(settings):
        if setting == PLAIN:
            columns[setting] = _described(plain)
            if int(plain.image_tokens[0]):
                contributed = layer_contribution(model, inputs)
                columns[setting]["contribution"] = _written(contributed.kl)
                columns[setting]["contribution_flips"] = _written(contributed.flips)
            continue
        with merges.applied(number):
            described = describe(model, inputs, answer=plain.lens.answer, reference=plain.states)
        columns[setting] = _described(described)
    return columns


def depth_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The content of `DEPTH_FILE`: a row for each document, setting and depth, 0 to L.

    Args:
        records: of each document its `task`, `doc_id` and `cluster`, and what `depth_of` gave as `depth`.
    """
    names = [*DEPTH_OF_LAYERS, *DEPTH_OF_STREAM]
    pieces = []
    for record in records:
        for setting, columns in record["depth"].items():
            depths = len(columns[DEPTH_OF_STREAM[0]])
            values = {name: columns[name] + [None] * (depths - len(columns[name])) for name in names}
            keys = {name: record[name] for name in ("task", "doc_id", "cluster")}
            pieces.append(pd.DataFrame({**keys, "setting": setting, "depth": range(depths), **values}))
    table = pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame(columns=[*DEPTH_KEYS, *names])
    return table.astype(dict.fromkeys(names, float))


def _described(found: Description) -> Columns:
    """The columns of the one document that was described; those of a comparison are empty where there was none."""
    layers, depths = found.image_drift.shape[1], found.image_text.shape[1]
    assert found.lens is not None
    columns: dict[str, Tensor | None] = {
        "image_drift": found.image_drift,
        "text_drift": found.text_drift,
        "image_text": found.image_text,
        "image_image": found.image_image,
        "text_text": found.text_text,
        "lens_log_prob": found.lens.log_prob,
        "lens_rank": found.lens.rank,
    }
    for name in ("image_cosine", "text_cosine", "image_cka", "text_cka"):
        columns[name] = None if found.similarity is None else getattr(found.similarity, name)
    empty: Columns = {name: [None] * layers for name in DEPTH_OF_LAYERS}
    empty |= {name: [None] * depths for name in DEPTH_OF_STREAM}
    return empty | {name: _written(values) for name, values in columns.items() if values is not None}


def _written(values: Tensor) -> list[float | None]:
    """The first document's values, as JSON holds them."""
    numbers = (float(value) for value in values[0].tolist())
    return [float(f"{number:.{_DIGITS}g}") if math.isfinite(number) else None for number in numbers]
