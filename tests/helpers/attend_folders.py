"""Folders as `plam attend` writes them, with differences between settings that are known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plam_eval.evaluation.attend import folder as layout
from plam_eval.evaluation.attend.shown import ShownDocument

SPEC: dict[str, Any] = {
    "model": "mllm",
    "base_model": "llm",
    "layer_range": [4, 8],
    "modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "weights": {"model": 0.9, "base_model": 0.3},
    "rule": "weighted_sum",
}


def write_attend_folder(
    folder: Path,
    *,
    shift: Mapping[str, float] | None = None,
    tasks: Mapping[str, int] | None = None,
    layers: int = 8,
    depth: bool = False,
    boxes: bool = True,
    shown: int = 2,
    seed: int = 0,
    merged: Sequence[int] | None = None,
) -> Path:
    """Write a folder of `plam attend`.

    Args:
        folder: which one.
        shift: setting -> by how much its in-box share is above the plain model's in layers 4 to 7.
        tasks: documents of each task, two of each image.
        layers: of the decoder.
        depth: whether there is a depth table.
        boxes: whether documents have boxes.
        shown: documents to draw.
        seed: of the draws.
        merged: the layers that specs name; 4 to 7 by default.
    """
    shift = {"merged": 0.1, "self_scale": 0.1, "normalized": 0.0} if shift is None else dict(shift)
    tasks = {"gqa": 40, "pope": 20} if tasks is None else dict(tasks)
    draw = np.random.default_rng(seed)
    settings: dict[str, Any] = {"plain": None}
    for setting in shift:
        rule = setting if setting in ("self_scale", "normalized") else "weighted_sum"
        settings[setting] = {**SPEC, "rule": rule}
        if merged is not None:
            settings[setting] |= {"layers": list(merged), "layer_range": None}
    measures, answers, deep = [], [], []
    for task, count in tasks.items():
        for doc_id in range(count):
            cluster = f"image{doc_id // 2}"
            of_document = draw.normal(0, 0.02, layers)
            for setting in settings:
                late = np.arange(layers) >= layers // 2
                noise = draw.normal(0, 0.01, (2, layers))
                share = np.clip(0.3 + of_document + shift.get(setting, 0.0) * late, 0.01, 0.99)
                right = float(draw.random() < 0.7)
                answers.append(
                    {
                        "task": task,
                        "doc_id": doc_id,
                        "cluster": cluster,
                        "setting": setting,
                        "target": "A",
                        "answer": "A" if right else "B",
                        "score": right,
                        "parsable": True,
                        "image_tokens": 16,
                        "skipped": None,
                    }
                )
                for sinks, own in zip((layout.WITH_SINKS, layout.WITHOUT_SINKS), noise, strict=True):
                    in_box = np.clip(share + own, 0.01, 0.99) if boxes else np.full(layers, np.nan)
                    chance = np.full(layers, 0.25 if boxes else np.nan)
                    columns = {
                        "image_share": np.clip(0.5 + own, 0, 1),
                        "entropy": 2.0 - share + own,
                        "spatial_entropy": 1.0 - share + own,
                        "box_share": in_box * 0.5,
                        "box_share_of_image": in_box,
                        "chance": chance,
                        "other_box_share_of_image": chance + own if boxes else chance,
                        "other_chance": chance,
                        "sink_share": np.full(layers, 0.1 if sinks == layout.WITH_SINKS else 0.0),
                        "sink_share_of_image": np.full(layers, 0.2 if sinks == layout.WITH_SINKS else 0.0),
                    }
                    for layer in range(layers):
                        measures.append(
                            {
                                "task": task,
                                "doc_id": doc_id,
                                "cluster": cluster,
                                "setting": setting,
                                "layer": layer,
                                "sinks": sinks,
                                **{name: float(values[layer]) for name, values in columns.items()},
                            }
                        )
                for at in range(layers + 1) if depth else ():
                    of_layer, plain = at < layers, setting == "plain"
                    deep.append(
                        {
                            "task": task,
                            "doc_id": doc_id,
                            "cluster": cluster,
                            "setting": setting,
                            "depth": at,
                            "image_drift": 0.9 + own[0] if of_layer else np.nan,
                            "text_drift": 0.8 + own[0] if of_layer else np.nan,
                            "contribution": 0.5 / (at + 1) if of_layer and plain else np.nan,
                            "contribution_flips": float(at < 2) if of_layer and plain else np.nan,
                            "image_text": 0.1 + 0.05 * at,
                            "image_image": 0.6,
                            "text_text": 0.5,
                            "lens_log_prob": -5.0 + 5.0 * at / layers,
                            "lens_rank": float(layers - at),
                            "image_cosine": np.nan if plain else 1.0 - 0.01 * at,
                            "text_cosine": np.nan if plain else 1.0 - 0.02 * at,
                            "image_cka": np.nan if plain else 1.0,
                            "text_cka": np.nan if plain else 1.0,
                        }
                    )
    folder.mkdir(parents=True, exist_ok=True)
    made_with = {
        "wrapper": "plam_llava",
        "pretrained": "pair/mllm",
        "mode": "simple",
        "dtype": "float32",
        "settings": settings,
        "num_layers": layers,
        "queries": "last",
        "depth": depth,
        "gen_kwargs": None,
        "versions": {},
    }
    (folder / layout.SETTINGS_FILE).write_text(json.dumps(made_with))
    pd.DataFrame(measures, columns=[*layout.MEASURE_KEYS, *layout.MEASURES]).to_parquet(folder / layout.MEASURES_FILE)
    pd.DataFrame(answers, columns=list(layout.ANSWER_COLUMNS)).to_parquet(folder / layout.ANSWERS_FILE)
    if depth:
        names = [*layout.DEPTH_KEYS, *layout.DEPTH_OF_LAYERS, *layout.DEPTH_OF_STREAM]
        pd.DataFrame(deep, columns=names).to_parquet(folder / layout.DEPTH_FILE)
    (folder / layout.SHOWN).mkdir(exist_ok=True)
    for number in range(shown):
        maps = {setting: (draw.random((layers, 4, 4)) / 32).astype(np.float32) for setting in settings}
        ShownDocument(
            task=next(iter(tasks)),
            doc_id=number,
            question="What color is the star?\nAnswer with one word.",
            target="blue",
            answers=dict.fromkeys(settings, "blue" if number else "red"),
            image=draw.integers(0, 255, (56, 56, 3), np.uint8, endpoint=True),
            size=(56, 56),
            boxes=[(28.0, 0.0, 56.0, 28.0)] if boxes else [],
            maps=maps,
            frame=(0.0, 0.0, 56.0, 56.0),
        ).write(folder / layout.SHOWN / f"{number}.npz")
    return folder
