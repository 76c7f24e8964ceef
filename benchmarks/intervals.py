"""Do the intervals of a difference cover, and agree with p? `python benchmarks/intervals.py`.

Made-up pairs of runs, of which the true difference is known, through `stats.compare_pairs` as it is:

- graded scores, by task and for the mean over tasks: the share of 95 % intervals that hold the true difference, their
  mean width over that of a t interval over clusters, and how often p < 0.05 and "the interval does not hold 0" are the
  same; `old` is one unseen document that changes by the whole range of scores, as it is for right or wrong answers, `t`
  the t interval itself
- clusters: the share of p < 0.05 where in truth nothing changed, with questions grouped by image and taken singly

Each row is one kind of scores:

- `textvqa`   soft accuracy 0, 0.3, 0.6, 0.9 or 1; one answer in five is drawn anew (`better`: half the wrong ones of
              these are made right)
- `anls`      a quarter 0, half 1, the others between; 15 % are drawn anew
- `gains`     as textvqa, but 5 % change, all for the better
- `sparse`    as gains, in both directions
- `small`     every score changes a little: 0.01 on average, standard deviation 0.05
- `skewed`    every score gains, exponential with mean 0.05
- `flips`     a third change by 0.05 up or down, and 3 % go from 0 to 1: what a small sample may not show
- `errors`    counts of errors, 0 and up, 4 on average

Questions on one image share their fate with probability one half (`ALIKE`).

p is of 999 sign flips and the bootstrap of 2,000 copies here, of 19,999 and 10,000 in use: the two then agree better.

Prints two Markdown tables and writes them as CSV into the output folder, where one is given.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from scipy.stats import t as student

from plam_eval.bootstrap import Floats
from plam_eval.evaluation import stats

ALIKE = 0.5
RESAMPLES, FLIPS = 2000, 999
SOFT, OFTEN = [0.0, 0.3, 0.6, 0.9, 1.0], [0.3, 0.05, 0.05, 0.1, 0.5]

Scores = tuple[Floats, Floats]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Scores]


def textvqa(rng: np.random.Generator, shape: tuple[int, ...], better: bool = False) -> Scores:
    """Scores of `shape` from `rng` in steps of a human vote; `better`: half of the second run's zeros become ones."""
    first, other = rng.choice(SOFT, shape, p=OFTEN), rng.choice(SOFT, shape, p=OFTEN)
    if better:
        other = np.where((other == 0) & (rng.random(shape) < 0.5), 1.0, other)
    return first, np.where(rng.random(shape) < 0.2, other, first)


def anls(rng: np.random.Generator, shape: tuple[int, ...]) -> Scores:
    """Scores of `shape` from `rng` that are 0, 1 or anything from a half on, as DocVQA's edit distances are."""

    def some() -> Floats:
        place = rng.random(shape)
        return np.where(place < 0.25, 0, np.where(place < 0.75, 1, 0.5 + 0.5 * rng.random(shape)))

    first = some()
    return first, np.where(rng.random(shape) < 0.15, some(), first)


def gains(rng: np.random.Generator, shape: tuple[int, ...], lost: float = 0) -> Scores:
    """Scores of `shape` from `rng`, a twentieth of which change, all upwards but for the share `lost`."""
    change = np.where(rng.random(shape) < 0.05, rng.choice([0.3, 0.6, 1], shape), 0.0)
    down = rng.random(shape) < lost
    return np.where(down, change, 0.0), np.where(down, 0.0, change)


def small(rng: np.random.Generator, shape: tuple[int, ...]) -> Scores:
    """Scores of `shape` from `rng` that each differ a little."""
    return np.full(shape, 0.5), 0.5 + rng.normal(0.01, 0.05, shape)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> Scores:
    """Scores of `shape` from `rng` whose differences have a long tail."""
    return np.full(shape, 0.2), 0.2 + rng.exponential(0.05, shape)


def flips(rng: np.random.Generator, shape: tuple[int, ...]) -> Scores:
    """Scores of `shape` from `rng`: a few change wholly, a third of the others a little."""
    little = np.where(rng.random(shape) < 1 / 3, rng.choice([-0.05, 0.05], shape), 0.0)
    flip = rng.random(shape) < 0.03
    return np.where(flip, 0.0, 0.5), np.where(flip, 1.0, 0.5 + little)


def errors(rng: np.random.Generator, shape: tuple[int, ...]) -> Scores:
    """Counts of errors of `shape` from `rng`, without an upper bound."""
    first = rng.poisson(4, shape)
    return first.astype(float), (first - rng.binomial(first, 0.1) + rng.poisson(0.3, shape)).astype(float)


def right_or_wrong(rng: np.random.Generator, shape: tuple[int, ...], changed: float = 0.1) -> Scores:
    """Scores of `shape` from `rng` that are 0 or 1, the share `changed` of them changed."""
    first = rng.random(shape) < 0.5
    return first.astype(float), (first ^ (rng.random(shape) < changed)).astype(float)


DRAWS: dict[str, Draw] = {
    "textvqa": textvqa,
    "textvqa better": lambda rng, shape: textvqa(rng, shape, better=True),
    "anls": anls,
    "gains": gains,
    "sparse": lambda rng, shape: gains(rng, shape, lost=0.5),
    "small": small,
    "skewed": skewed,
    "flips": flips,
    "errors": errors,
    "right or wrong": right_or_wrong,
}


def images(documents: int, most: int) -> np.ndarray:
    """The image of each of `documents`: one question on the first, two on the second, up to `most`, and again."""
    sizes = np.resize(np.arange(1, most + 1), documents)
    return np.repeat(np.arange(documents), sizes)[:documents]


def draw(kind: str, documents: int, most: int, experiments: int, rng: np.random.Generator) -> tuple[Scores, np.ndarray]:
    """Scores (experiments, documents) of both runs, and the image of each document.

    Args:
        kind: a key of `DRAWS`.
        documents: of one experiment.
        most: questions on one image.
        experiments: how many are drawn.
        rng: what they are drawn from.
    """
    image = images(documents, most)
    first, second = DRAWS[kind](rng, (experiments, documents))
    leader = np.searchsorted(image, image)  # the first question on each one's image
    source = np.where(rng.random((experiments, documents)) < ALIKE, leader, np.arange(documents))
    return (np.take_along_axis(first, source, 1), np.take_along_axis(second, source, 1)), image


def truth(kind: str) -> float:
    """The true mean difference of scores of one `kind`, from two million."""
    first, second = DRAWS[kind](np.random.default_rng(99), (2_000_000,))
    return float((second - first).mean())


def experiments_as_runs(made: Sequence[tuple[str, Scores, np.ndarray]]) -> tuple[dict[str, pd.DataFrame], list[Any]]:
    """Tables of every experiment's two runs, and the pairs of their names.

    Args:
        made: tasks as (name, scores of both runs, cluster of each document).
    """
    runs: dict[str, pd.DataFrame] = {}
    for experiment in range(len(made[0][1][0])):
        for side in (0, 1):
            frames = [
                pd.DataFrame(
                    {"task": task, "doc_id": range(len(cluster)), "group": cluster, "score": scores[side][experiment]}
                )
                for task, scores, cluster in made
            ]
            runs[f"{experiment} {side}"] = pd.concat(frames, ignore_index=True).assign(parsable=True)
    return runs, [(f"{n} 0", f"{n} 1") for n in range(len(made[0][1][0]))]


def student_width(made: Sequence[tuple[str, Scores, np.ndarray]]) -> Floats:
    """Of the t interval over clusters, of the mean over tasks: (experiments,).

    Args:
        made: tasks as (name, scores of both runs, cluster of each document).
    """
    variance, freedom = np.zeros(len(made[0][1][0])), 0
    for _, (first, second), cluster in made:
        difference, clusters = second - first, int(cluster.max()) + 1
        spread = difference - difference.mean(axis=1, keepdims=True)
        sums = np.stack([spread[:, cluster == g].sum(axis=1) for g in range(clusters)], axis=1)
        variance += (sums**2).sum(axis=1) * clusters / (clusters - 1) / (len(cluster) * len(made)) ** 2
        freedom += clusters - 1
    return np.asarray(2 * student.ppf(0.975, freedom) * np.sqrt(variance))


def measure(
    tasks: Sequence[tuple[str, int, int]], experiments: int, *, seed: int = 0, old: bool = True
) -> dict[str, float]:
    """Coverage, width and agreement over experiments.

    Args:
        tasks: (kind, documents, most questions on one image); of more than one, the mean over tasks is measured.
        experiments: how many are drawn.
        seed: of the draws.
        old: whether to measure the old interval, too.
    """
    rng = np.random.default_rng(seed)
    made = [(f"t{n}", *draw(*task, experiments, rng)) for n, task in enumerate(tasks)]
    true = float(np.mean([truth(kind) for kind, _, _ in tasks]))
    runs, pairs = experiments_as_runs(made)
    with mock.patch.object(stats, "_FLIPS", FLIPS):
        new = [rows[-1] for rows in stats.compare_pairs(runs, pairs, resamples=RESAMPLES).values()]
    p = np.array([overall.p for overall in new])
    intervals = {"new": np.array([(overall.low, overall.high) for overall in new])}
    if old:
        with (
            mock.patch.object(stats, "sign_flip", lambda differences: 1.0),
            mock.patch.object(stats, "_cautious", lambda differences, confidence: [True] * len(differences)),
        ):
            before = [rows[-1] for rows in stats.compare_pairs(runs, pairs, resamples=RESAMPLES).values()]
        intervals["old"] = np.array([(overall.low, overall.high) for overall in before])
    centre, width = np.array([overall.difference for overall in new]), student_width(made)
    intervals["t"] = np.column_stack([centre - width / 2, centre + width / 2])
    measured = {"p < 0.05": float((p < 0.05).mean())}
    for name, ends in intervals.items():
        low, high = ends.T
        measured[f"coverage {name}"] = float(((low <= true + 1e-9) & (true - 1e-9 <= high)).mean())
        measured[f"width {name}"] = float((high - low).mean() / width.mean())
        measured[f"agree {name}"] = float((((low > 1e-12) | (high < -1e-12)) == (p < 0.05)).mean())
    return measured


def false_positives(kind: str, documents: int, most: int, experiments: int, *, seed: int = 0) -> dict[str, float]:
    """Share of p < 0.05 where nothing changed in truth, with the images known and with every question for itself.

    Args:
        kind: a key of `DRAWS`.
        documents: of one experiment.
        most: questions on one image.
        experiments: how many are drawn.
        seed: of the draws.
    """
    (first, second), image = draw(kind, documents, most, experiments, np.random.default_rng(seed))
    shares = {}
    for name, cluster in (("images known", image), ("taken singly", np.arange(documents))):
        with mock.patch.object(stats, "_FLIPS", FLIPS):
            runs, pairs = experiments_as_runs([("t", (first, second), cluster)])
            compared = stats.compare_pairs(runs, pairs, resamples=10)
        shares[name] = float(np.mean([rows[0].p < 0.05 for rows in compared.values()]))
    return shares


SCENARIOS: list[tuple[str, list[tuple[str, int, int]]]] = [
    *((kind, [(kind, n, 1)]) for kind in list(DRAWS)[:-1] for n in (20, 60, 200)),
    *((kind, [(kind, n, 5)]) for kind in ("textvqa", "anls", "gains", "small", "flips") for n in (60, 200)),
    ("3 graded tasks", [("textvqa", 20, 1), ("anls", 60, 1), ("small", 150, 1)]),
    ("9 graded tasks", [(kind, 60, 1) for kind in ("textvqa", "anls", "small") * 3]),
    ("3 graded, gains in the smallest", [("gains", 20, 1), ("textvqa", 60, 1), ("small", 150, 1)]),
    ("4 tasks of gains", [("gains", 60, 1)] * 4),
    ("2 graded, 2 right or wrong", [(kind, 60, 1) for kind in ("textvqa", "anls", *["right or wrong"] * 2)]),
]
CLUSTERS = [(kind, n, most) for kind in ("right or wrong", "textvqa", "anls") for n in (100, 400) for most in (1, 5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=300, help="of each row (default 300)")
    parser.add_argument("--output", type=Path, help="folder for intervals.csv and clusters.csv")
    arguments = parser.parse_args()
    began = time.perf_counter()
    rows = []
    for name, tasks in SCENARIOS:
        sizes = sorted({documents for _, documents, _ in tasks})
        documents = ", ".join(map(str, sizes)) + (" each" if len(tasks) > 1 and len(sizes) == 1 else "")
        rows.append(
            {"scores": name, "documents": documents, "questions on an image": tasks[0][2]}
            | measure(tasks, arguments.experiments)
        )
    intervals = pd.DataFrame(rows).round(3)
    print(intervals.to_markdown(index=False))
    clusters = pd.DataFrame(
        [
            {"scores": kind, "documents": n, "questions on an image": most}
            | false_positives(kind, n, most, 2 * arguments.experiments)
            for kind, n, most in CLUSTERS
        ]
    ).round(3)
    print(
        f"\n{clusters.to_markdown(index=False)}\n\n{arguments.experiments} experiments a row, "
        f"{time.perf_counter() - began:.0f} s"
    )
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        intervals.to_csv(arguments.output / "intervals.csv", index=False)
        clusters.to_csv(arguments.output / "clusters.csv", index=False)


if __name__ == "__main__":
    main()
