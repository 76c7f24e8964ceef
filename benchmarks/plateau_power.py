"""How often does the rule find the true plateau? `python benchmarks/plateau_power.py`.

Made-up scans whose plateau is known, through the parts of `find_plateau` itself: the bootstrap of `plam_eval.bootstrap`
and the rule that looks for the first cut of the run of cuts within the margin. 28 layers, true plateau from 20 on:
the unmasked model is right on 70 % of the documents; at each cut from 20 on a share d of the answers is other than the
unmasked model's, as many for the better as for the worse, so that accuracy is the same in truth; below 20 each layer
costs 5 points more, on the same documents, down to the blind model's 30 %. Changes are

- `independent` from cut to cut, or
- `alike`       nine in ten documents do at a cut what they do at the next one.

Cuts 0 and 18 to 28 are evaluated (those between fail beyond doubt). For every number of documents in all, in one task
or shared out over nine, the table has the share of scans in which the rule finds

- `right`       20
- `within one`  19, 20 or 21
- `late`        22 or more
- `none`        no plateau
- `too early`   below 20: promised to be at most 5 %

and `said`, the share `right` that `power.chance` works out beforehand (of which `what_can_be_found` speaks).

Prints a Markdown table, and writes it as CSV into the output folder where one is given.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plam_eval.bootstrap import Floats, mean_over_tasks, reweighted
from plam_eval.probing.plateau import first_of_run
from plam_eval.probing.power import chance

LAYERS, TRUE = 28, 20
CUTS = (0, *range(18, LAYERS + 1))
RIGHT, BLIND, STEP = 0.7, 0.3, 0.05  # accuracy unmasked and blind; what each layer below the plateau costs
COPIED = 0.9  # of the changes at the next cut, where they are alike
MARGIN, CONFIDENCE = 0.02, 0.95
DOCUMENTS = (150, 340, 500, 750, 1000, 1500, 2000, 3000)
CHANGED = (0.01, 0.02, 0.05, 0.10)
_AT_ONCE = 100  # scans


def answers(scans: int, documents: int, changed: float, copied: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether each answer is right: (cuts, documents, scans).

    Args:
        scans: how many are drawn.
        documents: of each.
        changed: share of answers that change at a late cut.
        copied: share of those that are as at the next cut.
        rng: what they are drawn from.
    """
    shape = (documents, scans)
    unmasked = rng.random(shape) < RIGHT
    at_risk = np.where(unmasked, changed / 2 / RIGHT, changed / 2 / (1 - RIGHT))
    threshold, luck = rng.random(shape), rng.random(shape)
    made = [unmasked]
    for cut in reversed(CUTS[:-1]):
        luck = np.where(rng.random(shape) < copied, luck, rng.random(shape))
        lost = min(STEP * max(0, TRUE - cut), RIGHT - BLIND) / RIGHT
        made.append(((luck < at_risk) ^ unmasked) & ~(unmasked & (threshold < lost)))
    return np.stack(made[::-1])


def plateaus(
    scans: int, documents: int, changed: float, copied: float, *, tasks: int = 1, resamples: int = 1000, seed: int = 0
) -> NDArray[np.intp]:
    """The cut from which on each scan has its plateau, 28 where it has none: (scans,).

    Args:
        scans: how many are drawn.
        documents: in all, shared out over the tasks.
        changed: share of answers that change at a late cut.
        copied: share of those that are as at the next cut.
        tasks: how many there are.
        resamples: of the documents, for the interval of each scan.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    cuts: list[int] = []
    sizes = {f"task{n}": documents // tasks + (n < documents % tasks) for n in range(tasks)}
    for start in range(0, scans, _AT_ONCE):
        now = min(_AT_ONCE, scans - start)
        by_task = {}
        for name, size in sizes.items():
            scores = answers(now, size, changed, copied, rng).transpose(1, 0, 2).reshape(size, -1).astype(float)
            draws = np.random.default_rng([0, *name.encode()])
            by_task[name] = reweighted(scores, np.arange(size), resamples, draws)
        resampled = mean_over_tasks(by_task, sizes) if tasks > 1 else by_task["task0"].with_unseen()
        means = resampled.means.reshape(resamples, len(CUTS), now)
        lower, upper = np.empty((len(CUTS), now)), np.empty((len(CUTS), now))
        for index in range(len(CUTS)):
            gain = means[:, index] - means[:, -1]
            lower[index] = resampled.lower(gain, -1, CONFIDENCE)
            upper[index] = resampled.upper(gain, 1, CONFIDENCE)
        cuts.extend(_plateau(lower[:, scan], upper[:, scan]) for scan in range(now))
    return np.array(cuts)


def _plateau(lower: Floats, upper: Floats) -> int:
    first = first_of_run(lower > -MARGIN)
    needed = lower[0] <= -MARGIN and upper[0] < 0
    return CUTS[first] if needed else LAYERS


def shares(cuts: NDArray[np.intp]) -> dict[str, float]:
    """How often the plateau starts where it truly does, near it, late, early or nowhere; `cuts` of each scan."""
    return {
        "right": float(np.mean(cuts == TRUE)),
        "within one": float(np.mean(abs(cuts - TRUE) <= 1)),
        "late": float(np.mean((cuts > TRUE + 1) & (cuts < LAYERS))),
        "none": float(np.mean(cuts == LAYERS)),
        "too early": float(np.mean(cuts < TRUE)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=400, help="of each row (default 400)")
    parser.add_argument("--output", type=Path, help="folder for plateau_power.csv")
    arguments = parser.parse_args()
    began, rows = time.perf_counter(), []
    for tasks, copied, changed, documents in itertools.product((1, 9), (0.0, COPIED), CHANGED, DOCUMENTS):
        cuts = plateaus(arguments.scans, documents, changed, copied, tasks=tasks)
        sizes = {f"task{n}": documents // tasks + (n < documents % tasks) for n in range(tasks)}
        said = chance(sizes, changed, MARGIN, CONFIDENCE, late=LAYERS - TRUE)
        row = {
            "tasks": tasks,
            "changes": "alike" if copied else "independent",
            "changed": changed,
            "documents": documents,
        }
        rows.append(row | shares(cuts) | {"said": said[1 if copied else 0]})
    table = pd.DataFrame(rows).round(3)
    print(table.to_markdown(index=False))
    print(f"\n{arguments.scans} scans a row, {time.perf_counter() - began:.0f} s")
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        table.to_csv(arguments.output / "plateau_power.csv", index=False)


if __name__ == "__main__":
    main()
