"""What a scan of so many documents can find, worked out before a model has answered any."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from plam_eval.probing.closed import READERS, ClosedTo
from plam_eval.probing.plateau import confidence_in_words, least_documents

_FAIR = 0.8  # the chance that `what_can_be_found` speaks of
# Where nine in ten changes are the same at the next cut, each further cut is so much of a first: plateau_power.py.
_ALIKE = 0.2


def chance(
    documents: Mapping[str, int], changed: float, margin: float = 0.02, confidence: float = 0.95, *, late: int = 8
) -> tuple[float, float]:
    """Chance that `find_plateau` finds the true plateau: that every late cut is shown to be within the margin.

    For right or wrong answers of which a share `changed` is other than the unmasked model's at each late cut, for the
    better as often as for the worse, so that gained and lost are Poisson counts; the bound that they give, from its
    first three moments (Cornish and Fisher 1938). `benchmarks/plateau_power.py` simulates the rule itself beside it;
    docs: "Finding the plateau".

    Args:
        documents: independent documents by task.
        changed: share of the answers that are other ones, 0 to 1.
        margin: of `find_plateau`.
        confidence: of `find_plateau`.
        late: evaluated cuts from the true plateau on, the unmasked model aside.

    Returns:
        Where changes are independent from cut to cut, and where nine in ten are the same at the next cut.
    """
    sizes = np.array(list(documents.values()), dtype=float)
    if not len(sizes) or sizes.min() < least_documents(len(sizes), margin, confidence):
        return 0.0, 0.0
    number = len(sizes) ** 2 / float(np.sum(1 / sizes))  # documents in all, were all tasks of one size
    one = _passes(number, number / (len(sizes) * sizes.min()), changed, margin, confidence)
    return one**late, one ** (1 + _ALIKE * (late - 1))


def _passes(documents: float, unseen: float, changed: float, margin: float, confidence: float) -> float:
    """Chance that one cut is shown to be within the margin; `unseen`: what the unseen document counts for."""
    if changed == 0:
        return 1.0  # there are enough documents for that
    mean, z = documents * changed / 2, NormalDist().inv_cdf(confidence)
    if mean > 1000:  # normal, and too many counts to go through
        reach = documents * margin - unseen - z * math.sqrt(2 * mean + unseen**2)
        return NormalDist().cdf(reach / math.sqrt(2 * mean))
    counts = np.arange(math.ceil(mean + 8 * math.sqrt(mean)) + 1)
    share = np.exp(counts * math.log(mean) - mean - np.array([math.lgamma(count + 1) for count in counts]))
    lost, gained = counts[:, None], counts[None]
    variance, skew = lost + gained + unseen**2, 2 * (lost - gained + unseen**3)
    bound = lost - gained + unseen + z * np.sqrt(variance) + (z**2 - 1) / 6 * skew / variance
    return min(1.0, float(share @ (bound < documents * margin) @ share))


def what_can_be_found(
    documents: Mapping[str, int],
    margin: float = 0.02,
    confidence: float = 0.95,
    *,
    late: int = 8,
    closed_to: ClosedTo = "text",
) -> list[str]:
    """What a scan of so many documents can find, in sentences; before a model has answered any.

    Args:
        documents: independent documents by task: those that share an image count once.
        margin: of `find_plateau`.
        confidence: of `find_plateau`.
        late: cuts that the true plateau is taken to have; see `chance`.
        closed_to: whom the image is closed to; what is found by the same rule is a plateau only for all text.
    """
    if not documents:
        return []
    end, long = "a plateau", f"a plateau of {late}"
    if closed_to != "text":
        end = f"that {READERS[closed_to]} does without the image"
        long = f"{end} at {late}"
    enough, task = least_documents(len(documents), margin, confidence), min(documents, key=documents.__getitem__)
    rule = f"margin {margin:g}, {confidence_in_words(confidence)} confidence"
    if documents[task] < enough:
        return [
            f"{documents[task]} documents of {task} cannot show {end} even where no answer changes: at least "
            f"{enough} in each task are needed ({rule})."
        ]
    limits = []
    for which in (0, 1):
        low, high = 0.0, 0.5  # bisection: the more answers change, the smaller the chance
        for _ in range(12):
            middle = (low + high) / 2
            likely = chance(documents, middle, margin, confidence, late=late)[which] >= _FAIR
            low, high = (middle, high) if likely else (low, middle)
        limits.append(low)
    independently, alike = (f"{100 * limit:.1f} %" for limit in limits)
    tasks, cuts = "task" if len(documents) == 1 else "tasks", "cut" if late == 1 else "cuts"
    return [
        f"{sum(documents.values())} documents of {len(documents)} {tasks} (those on one image count as one) find "
        f"{long} {cuts} in four scans of five if, at each of them, up to about {independently} of the "
        f"answers change, independently from cut to cut, or {alike}, nine in ten of them the same at the next cut "
        f"({rule}).",
        "Where more change, it is found too late or not at all. A guide, from simulated right or wrong answers.",
    ]
