"""Made-up curves with known stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from plam_eval.probing.curve import Curve


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
