"""What reading and comparing a large sweep costs: `python benchmarks/report.py`.

Cells of the nine tasks in their real sizes (about 38,000 documents) and their real kinds of clusters, in the logs that
lmms-eval writes, with drawn answers: of each document one in `--change` differs from plain. CPU seconds for

- `read`: the cell's logs into scores, the mean over a few cells times their number;
- `compare`: every cell against plain, task by task and over all, with intervals and p values;
- one test by sign flips in which every document differs.

Prints a Markdown table. Where signs are drawn one by one (`--singly`), as for few differences, for comparison.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measured
import numpy as np
import pandas as pd

from plam_eval.evaluation import records, stats

SIZES = {
    "gqa": (12_578, 398),  # documents, and what they share: images, questions or subjects
    "mmbench_en_dev_static": (4_329, 1_164),
    "mmbench_cn_dev_static": (4_329, 1_164),
    "mme": (2_374, 1_187),
    "mmmu_val": (900, 30),
    "mmstar": (1_500, 1_500),
    "pope": (9_000, 500),
    "realworldqa": (765, 765),
    "seedbench_2_plus": (2_277, 567),
}


def logged(task: str, number: int, clusters: int, right: bool) -> dict[str, Any]:
    """What lmms-eval's task logs of a document that is answered so.

    Args:
        task: its name.
        number: of the document.
        clusters: images that the task's documents share.
        right: whether the answer is.
    """
    letter, other = "AB" if number % 2 else "BA"
    answer = letter if right else other
    options = {"A": "a dog", "B": "a cat", "C": "a house", "D": "nan"}
    entry: Any = float(right)
    metric = "exact_match"
    if task.startswith("mmbench"):
        metric, index = "gpt_eval_score", number % clusters + 1_000_000 * (number // clusters)
        entry = {"index": index, "question": "What is it?", "answer": letter, "prediction": answer, **options}
        entry |= {"hint": "nan", "category": "identity", "split": "dev", "l2-category": "coarse"}
    elif task == "mme":
        metric, entry = "mme_perception_score", {"question_id": str(number % clusters), "score": float(right)}
    elif task == "mmmu_val":
        metric = "mmmu_acc"
        entry = {"id": str(number), "question_type": "multiple-choice", "answer": letter, "parsed_pred": [answer]}
        entry["subdomain"] = f"subject {number % clusters}"
    elif task == "mmstar":
        metric, entry = "average", {"score": float(right)}
    elif task == "pope":
        metric, entry = "pope_accuracy", {"score": float(right)}
    elif task == "seedbench_2_plus":
        metric, entry = "seedbench_2_plus_all", {"pred": answer, "answer": letter}
    return {
        "doc_id": number,
        "doc": {"question": "What is it?", **options},
        "target": letter,
        "input": f"What is it? Document {number}.\nAnswer with the option's letter from the given choices directly.",
        "resps": [[answer]],
        "filtered_resps": [answer],
        "doc_hash": "0" * 64,
        "group": str(number % clusters),
        metric: entry,
    }


def write_run(folder: Path, wrong: dict[str, np.ndarray]) -> None:
    """Write a run into `folder`, a new one; `wrong` holds the wrongly answered documents of each task."""
    folder.mkdir()
    results = {"results": {task: {} for task in SIZES}, "configs": {task: {"task": task} for task in SIZES}}
    (folder / "20260101_000000_results.json").write_text(json.dumps(results))
    for task, (documents, clusters) in SIZES.items():
        lines = (json.dumps(logged(task, n, clusters, not wrong[task][n])) + "\n" for n in range(documents))
        (folder / f"20260101_000000_samples_{task}.jsonl").write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--change", type=float, default=0.1, help="share of documents that a cell answers otherwise")
    parser.add_argument("--read", type=int, default=3, help="cells that are written and read")
    parser.add_argument("--singly", action="store_true", help="draw the sign of each difference on its own")
    parser.add_argument("--rounds", type=int, default=5, help="of what is measured for --json")
    measured.add_json_argument(parser)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    plain = {task: generator.random(documents) < 0.3 for task, (documents, _) in SIZES.items()}

    def another() -> dict[str, np.ndarray]:
        return {task: wrong ^ (generator.random(len(wrong)) < options.change) for task, wrong in plain.items()}

    with tempfile.TemporaryDirectory() as scratch:
        runs: dict[str, pd.DataFrame] = {}
        spent = 0.0
        for number in range(options.read):
            write_run(Path(scratch, str(number)), another() if number else plain)
            started = time.process_time()
            runs[str(number)] = records.read_run(Path(scratch, str(number))).samples
            spent += time.process_time() - started
        told = told_of(Path(scratch, "0"), generator, options.rounds) if options.json else []
    reference = runs["0"]
    for number in range(1, options.cells + 1):
        wrong = np.concatenate([another()[task] for task in SIZES])
        runs[str(number)] = reference.assign(score=1.0 - wrong)
    if options.singly:
        stats._SINGLY = 10**9
    started = time.process_time()
    stats.compare_pairs(runs, [("0", name) for name in runs if name != "0"])
    compared = time.process_time() - started
    started = time.process_time()
    stats.sign_flip(generator.choice([-1.0, 1.0], len(reference)))
    flipped = time.process_time() - started
    read = spent / options.read * (options.cells + 1)
    print(f"{options.cells} cells of {len(reference):,} documents\n\n| | CPU seconds |\n|---|---|")
    print(f"| read | {read:.0f} |\n| compare | {compared:.0f} |\n| together | {read + compared:.0f} |")
    print(f"| one test of as many differences as documents | {flipped:.3f} |")
    raw = {"cells": options.cells, "read": read, "compare": compared, "sign flips": flipped}
    setting = f"a run of the nine tasks, {len(reference):,} documents; CPU seconds"
    measured.write_rows(options.json, told, setting, **raw)


def told_of(run: Path, generator: np.random.Generator, rounds: int) -> list[measured.Row]:
    """Rows for `--json`: reading a run beside parsing its lines, and a test beside one that draws each sign.

    Args:
        run: folder of a run.
        generator: of the differences.
        rounds: so many.
    """
    files = [file.read_bytes() for file in sorted(run.glob("*.jsonl"))]
    differences = generator.choice([-1.0, 1.0], sum(file.count(b"\n") for file in files))
    usual = stats._SINGLY

    def flip(singly: int) -> None:
        stats._SINGLY = singly
        try:
            stats.sign_flip(differences)
        finally:
            stats._SINGLY = usual

    def cpu(action: Callable[[], object]) -> Callable[[], float]:
        return lambda: measured.clock(action, time.process_time)

    found = measured.in_turn(
        {
            "read": cpu(lambda: records.read_run(run)),
            "parsed": cpu(lambda: [json.loads(line) for file in files for line in file.splitlines()]),
            "by sizes": cpu(lambda: flip(usual)),
            "singly": cpu(lambda: flip(10**9)),
        },
        rounds,
    )
    return [
        measured.row(
            "a run's logs into scores",
            ("read_run", found["read"]),
            ("json.loads of its lines", found["parsed"]),
            ideal=1.0,
            ideal_is="parsing alone",
        ),
        measured.row(
            "a sign flip test in which all documents differ",
            ("each sign drawn", found["singly"]),
            ("drawn size by size", found["by sizes"]),
            ideal=None,
            ideal_is="one number per resample in place of one per document: more than can be timed",
        ),
    ]


if __name__ == "__main__":
    main()
