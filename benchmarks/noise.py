"""Is it noise? How often plain against plain comes out significant, and what flips when the demo pair answers again.

`python benchmarks/noise.py` simulates: a share of the documents is on the fence, and each time that one is asked it is
right with probability one half, whatever the weights. Two runs of one model then differ in the flip rate, half of that
share. Documents may lie on images, of which half share the fate of the first (`per image`). In each of many data sets
the two runs are compared as `plam compare` does (`p < 0.05`), and 200 documents of a task are answered once more for
the noise floor (`below`, `unclear`, `above`). With `gain`, so many documents are right in the second run that were
wrong.

`--runs FOLDER` compares real runs as well: `FOLDER` is made by

    python -m plam_eval.demo.hub FOLDER --documents 120; cd FOLDER
    plam compare --model plam_llava --model_args pretrained=PAIR/mllm,base=PAIR/base,plateau=demo,dtype=float32 \\
        --tasks plam9 --output compare --noise_documents 120 \\
        --noise attn_implementation=eager,dtype=bfloat16,dtype=float16,model=plam_vllm

and read from its `compare`. Prints Markdown tables; shares have exact 95 % intervals.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from plam_eval.evaluation import stats
from plam_eval.evaluation.noise.floor import Flips, Noise, read_noise
from plam_eval.evaluation.noise.run import DOCUMENTS
from plam_eval.evaluation.sweep.findings import read_findings

RIGHT = 0.6
"""Share of documents that are right where they are not on the fence."""


def share(count: int, total: int) -> str:
    """A share with its exact interval.

    Args:
        count: of them.
        total: of how many.
    """
    interval = scipy_stats.binomtest(count, total).proportion_ci(0.95)
    return f"{count / total:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def runs_of(
    generator: np.random.Generator, documents: int, rate: float, per_image: int, gain: float
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Two runs, and one more of the first model, as tables of samples.

    Args:
        generator: of everything.
        documents: of the task.
        rate: flip rate.
        per_image: documents of an image; half of them share the fate of its first.
        gain: share of the documents that the second model has right and the first has wrong.
    """
    number = np.arange(documents)
    image = number // per_image
    shared = (generator.random(documents) < 0.5) & (per_image > 1)

    def fate(chance: np.ndarray) -> np.ndarray:
        first = chance[image * per_image]
        return np.where(shared, first, chance)

    on_fence = fate(generator.random(documents)) < 2 * rate
    right = fate(generator.random(documents)) < RIGHT
    better = ~on_fence & ~right & (generator.random(documents) < gain / ((1 - RIGHT) * (1 - 2 * rate)))

    def table(known: np.ndarray) -> pd.DataFrame:
        scores = np.where(on_fence, fate(generator.random(documents)) < 0.5, known).astype(float)
        return pd.DataFrame(
            {
                "task": "task",
                "doc_id": number,
                "group": [f"image {name}" for name in image],
                "answer": np.where(scores == 1, "yes", "no"),
                "score": scores,
                "parsable": True,
            }
        )

    return table(right), table(right | better), table(right)


def floor_of(first: pd.DataFrame, again: pd.DataFrame) -> Noise:
    """The noise floor of a sample: whole images, `DOCUMENTS` documents.

    Args:
        first: the first run.
        again: of the same model.
    """
    kept = first["doc_id"] < DOCUMENTS  # documents are exchangeable
    before, after = first[kept], again[kept]
    moved = before.assign(score=(after["score"] - before["score"]).abs())
    (row, _) = stats.compare(before.assign(score=0.0), moved, resamples=2000)
    flips = Flips(
        "", "plain", "task", row.documents, row.groups, 0, 0, 0, row.difference, max(0, row.low), row.high, 0, 1
    )
    return Noise((flips,))


def simulate(seeds: int) -> pd.DataFrame:
    """A row for each kind of data.

    Args:
        seeds: data sets of each.
    """
    kinds = [
        (400, 0.01, 1, 0.0),
        (400, 0.03, 1, 0.0),
        (400, 0.10, 1, 0.0),
        (400, 0.03, 5, 0.0),
        (400, 0.10, 5, 0.0),
        (2000, 0.03, 1, 0.0),
        (2000, 0.03, 5, 0.0),
        (2000, 0.03, 1, 0.01),
        (2000, 0.03, 1, 0.02),
        (2000, 0.03, 1, 0.05),
        (2000, 0.03, 1, 0.10),
    ]
    rows = []
    for documents, rate, per_image, gain in kinds:
        significant, standings = 0, Counter[str]()
        for seed in range(seeds):
            generator = np.random.default_rng([seed, documents, round(1000 * rate), per_image, round(1000 * gain)])
            first, second, again = runs_of(generator, documents, rate, per_image, gain)
            (row, _) = stats.compare(first, second, resamples=200)
            significant += row.p < stats.SIGNIFICANT
            standings[str(floor_of(first, again).standing(row))] += 1
        rows.append(
            {
                "documents": documents,
                "flip rate": rate,
                "per image": per_image,
                "gain": gain,
                "p < 0.05": share(significant, seeds),
                **{word: share(standings[word], seeds) for word in ("below", "unclear", "above")},
            }
        )
    return pd.DataFrame(rows)


def real(folder: Path) -> pd.DataFrame:
    """What flipped in real runs, mean over tasks.

    Args:
        folder: of the comparison.
    """
    noise = read_noise(folder, read_findings(folder).runs)
    if noise is None:
        raise SystemExit(f"{folder}: no noise was measured there")
    for line in (*noise.warnings, *noise.failures):
        print(line)
    table = noise.table[noise.table["task"] == stats.OVERALL]
    smallest = noise.table[noise.table["task"] != stats.OVERALL].groupby(["variant", "cell"])["p"].agg(["min", "size"])
    rows = [
        {
            "changed": row["variant"],
            "model": row["cell"],
            "documents": row["documents"],
            "answers changed": f"{row['answers']:.2%}",
            "better, worse": f"{row['gained']}, {row['lost']}",
            "flip rate": f"{row['rate']:.4f} ({row['low']:.4f} to {row['high']:.4f})",
            "net": f"{row['net']:+.4f}",
            "p": stats.format_p(row["p"]),
            "smallest p of a task": "{} of {}".format(*_smallest(smallest.loc[(row["variant"], row["cell"])])),
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _smallest(row: pd.Series) -> tuple[str, int]:
    return stats.format_p(float(row["min"])), int(row["size"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000, help="data sets of each kind; 0 simulates none")
    parser.add_argument("--runs", type=Path, help="folder of a `plam compare --noise`")
    given = parser.parse_args(arguments)
    if given.seeds:
        print(simulate(given.seeds).to_markdown(index=False))
    if given.runs:
        print(real(given.runs).to_markdown(index=False))


if __name__ == "__main__":
    main()
