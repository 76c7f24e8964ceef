"""Masking curves of a known shape, without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from plam_eval.probing.plateau import Curve


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
