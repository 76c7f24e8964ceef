"""How much narrower is an interval on MMMU's test split than on validation? `python benchmarks/test_set_intervals.py`.

Made-up pairs of runs through `stats.compare` as it is, with the subject as the cluster: 30 subjects of 30 questions
(validation) and of 350 (10,500 questions, as many as the test split has; how many each subject has is not known here).
A share of the answers changes, as often for the better as for the worse but for the gain of the question's own subject,
which is drawn for each subject: what a merge really does to Physics and to Art may differ.

- `ratio`     mean width of the 95 % interval on 900 questions over that on 10,500
- `documents` the same, with every question for itself: as if the 30 subjects were all there is
- `formula`   of the standard error by subject: sqrt((t^2 + s^2 / 30) / (t^2 + s^2 / 350)), t the standard deviation of
              the subjects' own gains and s that of a question's difference
- `covers`    share of the intervals by subject, on 10,500 questions, that hold the mean gain of all subjects that could
              have been drawn; and of those by question
- `uneven`    `ratio` where the test split's subjects have from about 90 to 900 questions

Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd

from plam_eval.bootstrap import Floats
from plam_eval.evaluation import stats

SUBJECTS, VALIDATION, TEST = 30, 30, 350
CHANGED = 0.15
OWN = (0.0, 0.01, 0.02, 0.05)
"""Standard deviations of the subjects' own gains."""
GAIN = 0.01


def pair(rng: np.random.Generator, sizes: Sequence[int], own: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two runs on as many questions of each subject as `sizes` says.

    Args:
        rng: of everything that is drawn.
        sizes: questions by subject.
        own: standard deviation of the subjects' gains around `GAIN`.
    """
    subject = np.repeat(np.arange(len(sizes)), sizes)
    gain = np.clip(rng.normal(GAIN, own, len(sizes)), -CHANGED, CHANGED)[subject]
    draw = rng.random(len(subject))
    change = np.where(draw < (CHANGED + gain) / 2, 1.0, np.where(draw < CHANGED, -1.0, 0.0))
    first = np.where(change == 0, rng.random(len(subject)) < 0.5, change < 0).astype(float)
    return table(subject, first), table(subject, first + change)


def table(subject: np.ndarray[tuple[int], np.dtype[np.intp]], score: Floats) -> pd.DataFrame:
    """Scores of questions as `records.Run.samples` has them.

    Args:
        subject: of each question.
        score: of each question.
    """
    groups = [f"subject {number}" for number in subject]
    same = {"task": "mmmu", "doc_id": range(len(score)), "group": groups, "parsable": None}
    return pd.DataFrame({**same, "score": score})


def interval(runs: tuple[pd.DataFrame, pd.DataFrame], *, by_subject: bool, resamples: int) -> tuple[float, float]:
    """The interval of the second run minus the first.

    Args:
        runs: both.
        by_subject: the subject is the cluster; otherwise every question is one.
        resamples: draws of the bootstrap.
    """
    first, second = runs
    if not by_subject:
        first = first.assign(group=[f"document {number}" for number in first["doc_id"]])
    compared = stats.compare(first, second, resamples=resamples)[0]
    return compared.low, compared.high


def row(own: float, experiments: int, resamples: int) -> list[float]:
    """What is measured with one spread of the subjects' gains.

    Args:
        own: their standard deviation.
        experiments: pairs of runs.
        resamples: draws of the bootstrap.
    """
    rng = np.random.default_rng(0)
    uneven = np.exp(np.linspace(np.log(90), np.log(900), SUBJECTS))
    sizes = {
        "validation": [VALIDATION] * SUBJECTS,
        "test": [TEST] * SUBJECTS,
        "uneven": [round(size) for size in uneven * SUBJECTS * TEST / uneven.sum()],
    }
    widths: dict[tuple[str, bool], list[float]] = {}
    covers: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(experiments):
        for name, own_sizes in sizes.items():
            runs = pair(rng, own_sizes, own)
            for by_subject in (True, False):
                low, high = interval(runs, by_subject=by_subject, resamples=resamples)
                widths.setdefault((name, by_subject), []).append(high - low)
                if name == "test":
                    covers[by_subject].append(low <= GAIN <= high)
    mean = {key: float(np.mean(values)) for key, values in widths.items()}
    variance = CHANGED - GAIN**2
    formula = np.sqrt((own**2 + variance / VALIDATION) / (own**2 + variance / TEST))
    return [
        mean["validation", True] / mean["test", True],
        mean["validation", False] / mean["test", False],
        float(formula),
        float(np.mean(covers[True])),
        float(np.mean(covers[False])),
        mean["validation", True] / mean["uneven", True],
        100 * mean["validation", True] / 2,
        100 * mean["test", True] / 2,
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table.

    Args:
        arguments: words of the command line; None for those of this process.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=2000)
    options = parser.parse_args(arguments)
    print(
        "| subjects' gains, sd | ratio | documents | formula | covers | by question | uneven | ± at 900 | ± at 10,500 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for own in OWN:
        values = row(own, options.experiments, options.resamples)
        shown = [f"{value:.2f}" for value in values]
        print(f"| {100 * own:.0f} points | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
