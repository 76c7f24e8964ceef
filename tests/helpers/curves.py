"""Made-up curves with known stages, without a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from plam_eval.probing.curve import Curve

NINE = [
    *("gqa", "mmbench_cn_dev", "mmbench_en_dev_static", "mme", "mmmu_val"),
    *("mmstar", "pope", "realworldqa", "seedbench_2_plus"),
]


def rows(
    accuracy: Callable[[int], float],
    *,
    layers: int = 8,
    documents: int = 400,
    tasks: Sequence[str] = ("pope",),
    cuts: Sequence[int] | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """A scan of right and wrong answers in which exactly round(accuracy(cut) * documents) are right, but for noise.

    Easy documents stay right as accuracy falls; `noise` is the share of answers that a cut turns round at random.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for task in tasks:
        for cut in range(layers + 1) if cuts is None else cuts:
            right = np.arange(documents) < round(accuracy(cut) * documents)
            if cut < layers:
                right ^= rng.random(documents) < noise
            kl = 0.0 if cut == layers else 2.0 * math.exp(-cut)
            parts.append({"task": task, "cut": cut, "score": right.astype(float), "kl": kl})
    frame = pd.concat([pd.DataFrame(part).assign(doc_id=range(documents)) for part in parts], ignore_index=True)
    return frame.assign(parsable=True)


def curve(accuracy: Callable[[int], float], *, layers: int = 8, resamples: int = 2000, **how: Any) -> Curve:
    return Curve(rows(accuracy, layers=layers, **how), layers, resamples=resamples)


def three_stages(cut: int) -> float:
    """Blind up to cut 2, as good as unmasked from cut 5 on."""
    return {3: 0.45, 4: 0.6}.get(cut, 0.3 if cut < 3 else 0.7)


def curve_of(layers: int, tasks: Sequence[str], *, cuts: Sequence[int] | None = None, flat: bool = False) -> Curve:
    """Blind up to a quarter of the layers, as good as unmasked from half of them on; no noise."""
    documents = 200
    parts = []
    for number, task in enumerate(tasks):
        for cut in range(layers + 1) if cuts is None else cuts:
            rise = 1.0 if flat else min(max(4 * cut / layers - 1, 0), 1)
            score = np.arange(documents) < round((0.2 + 0.02 * number + 0.5 * rise) * documents)
            kl = 0.0 if cut == layers else math.exp(-12 * cut / layers)
            part = pd.DataFrame({"doc_id": range(documents), "score": score.astype(float)})
            parts.append(part.assign(task=task, cut=cut, kl=kl, parsable=np.arange(documents) >= layers - cut))
    return Curve(pd.concat(parts), layers, resamples=500)
