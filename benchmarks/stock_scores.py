"""Do the intervals of stock metrics cover, and what do they cost? `python benchmarks/stock_scores.py`.

Made-up pairs of runs of the nine tasks, in the form of their sample logs. The second run answers some documents rightly
that the first has wrong, and fewer the other way round; documents of one cluster (an image, a pair, a question, a
subject) are alike.

- coverage: of clusters drawn from a population of which the true difference of the metric is known, the share of 95 %
  intervals that hold it, and their mean width, by method: `expanded` is the one in use, `percentile` and `BCa` are
  `scipy.stats.bootstrap`'s, on the same kind of resamples. Samples in which fewer than six clusters differ have no
  interval and are left out; their share is `none`.
- cost (`--cost`): `plam compare` of two finished folders of the benchmarks' own sizes, with and without stock scores.

Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Line = dict[str, Any]
Made = tuple[list[Line], list[Line]]

GAINED, LOST = 0.12, 0.04
"""Shares of wrong documents that become right, and of right ones that become wrong."""

CATEGORIES = (
    "coarse perception",
    "fine-grained perception",
    "instance reasoning",
    "logical reasoning",
    "science & technology",
    "math",
)
MMSTAR = [(CATEGORIES[number // 3], f"kind {number}") for number in range(18)]
MME = {
    "mme_perception_score": [
        "existence",
        "count",
        "position",
        "color",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
        "OCR",
    ],
    "mme_cognition_score": ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"],
}
SUBJECTS = [
    "Art",
    "Art_Theory",
    "Design",
    "Music",
    "Accounting",
    "Economics",
    "Finance",
    "Manage",
    "Marketing",
    "Biology",
    "Chemistry",
    "Geography",
    "Math",
    "Physics",
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
    "History",
    "Literature",
    "Sociology",
    "Psychology",
    "Agriculture",
    "Architecture_and_Engineering",
    "Computer_Science",
    "Electronics",
    "Energy_and_Power",
    "Materials",
    "Mechanical_Engineering",
]

AGGREGATIONS = {
    "mmstar": dict.fromkeys((*CATEGORIES, "average"), "mmstar_aggregate_results"),
    "mmbench_en_dev_static": {"gpt_eval_score": "mmbench_aggregate_dev_results_static"},
    "mmbench_cn_dev_static": {"gpt_eval_score": "aggregate_static"},
    "mme": dict.fromkeys(MME, "mme_aggregate_results"),
    "mmmu_val": {"mmmu_acc": "mmmu_aggregate_results"},
    "gqa": {"exact_match": "mean"},
    "pope": {
        f"pope_{name}": f"pope_aggregate_{name}"
        for name in ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
    },
    "realworldqa": {"exact_match": "mean"},
    "seedbench_2_plus": {
        f"seedbench_2_plus_{name}": "seed_aggregation_result" for name in ("Chart", "Map", "Web", "all")
    },
}
"""Metric -> the name of its aggregation, as results have it."""

CLUSTERS = {
    "mmstar": 1500,
    "mmbench_en_dev_static": 1164,
    "mmbench_cn_dev_static": 1164,
    "mme": 1187,
    "mmmu_val": 30,
    "gqa": 398,
    "pope": 500,
    "realworldqa": 765,
    "seedbench_2_plus": 700,
}
"""Of the benchmarks, about."""


def invented(task: str, clusters: int, generator: np.random.Generator) -> Made:
    """Two runs' lines of one task.

    Args:
        task: one of the nine.
        clusters: so many; of MMMU, subjects.
        generator: of all that is drawn.

    Returns:
        The lines of both sample logs, of the same documents.
    """
    both: Made = ([], [])
    for cluster in range(clusters):
        skill = generator.beta(3, 1.5)
        gained, lost = GAINED * generator.uniform(0, 2), LOST * generator.uniform(0, 2)
        kind = int(generator.integers(0, 1 << 30))
        for number in range(_size(task, kind)):
            first = generator.random() < skill
            second = generator.random() < (1 - lost if first else gained)
            document = len(both[0])
            for lines, right in zip(both, (first, second), strict=True):
                lines.append(_line(task, document, cluster, number, kind, bool(right)))
    return both


def _size(task: str, kind: int) -> int:
    """Documents of a cluster of `task`; `kind` decides."""
    if task.startswith("mmbench"):
        return 1 + kind % 4
    sizes = {"mme": 2, "mmmu_val": 30, "gqa": 1 + kind % 5, "pope": 6, "seedbench_2_plus": 1 + kind % 5}
    return sizes.get(task, 1)


def _line(task: str, document: int, cluster: int, number: int, kind: int, right: bool) -> Line:
    """A document's line, answered rightly or not."""
    true = "ABCD"[(kind + number) % 4]
    said = true if right else "ABCD"[(kind + number + 1 + kind % 3) % 4]
    line: Line = {
        "doc_id": document,
        "target": true,
        "filtered_resps": [said],
        "input": f"question {document} of {task}",
    }
    score = float(right)
    if task == "mmstar":
        category, second = MMSTAR[kind % 18]
        entry = {"question_id": document, "l2_category": second, "score": score}
        return {**line, category: entry, "average": entry}
    if task.startswith("mmbench"):
        entry = {"index": number * 1_000_000 + cluster, "question": "?", "answer": true, "prediction": said}
        entry |= {
            "hint": "nan",
            "source": "s",
            "split": "dev",
            "category": f"c{kind % 20}",
            "L2-category": f"l{kind % 6}",
        }
        entry |= {letter: f"thing {letter.lower()}{letter.lower()}" for letter in "ABCD"}
        return {**line, "gpt_eval_score": entry, "submission": entry}
    if task == "mme":
        metric, categories = [*MME.items()][int(kind % 9 == 0)]
        category = categories[kind // 9 % len(categories)]
        entry = {"question_id": f"{category}/{cluster}", "category": category, "score": score}
        return {**line, "target": "Yes", "group": f"{category}/{cluster}", metric: entry}
    if task == "mmmu_val":
        subject = SUBJECTS[cluster % len(SUBJECTS)] if cluster < len(SUBJECTS) else f"Subject_{cluster}"
        entry = {"id": f"validation_{subject}_{number}", "subdomain": subject, "question_type": "multiple-choice"}
        return {**line, "mmmu_acc": {**entry, "answer": true, "parsed_pred": [said]}}
    if task == "pope":
        truth = ("yes", "no")[(kind + number) % 2]
        answer = truth if right else "perhaps" if kind % 11 == 0 else {"yes": "no", "no": "yes"}[truth]
        entry = {"question_id": document, "score": score, "prediction": answer, "ground_truth": truth}
        line |= {"target": truth, "filtered_resps": [answer], "group": f"image {cluster}"}
        return {**line, **dict.fromkeys(AGGREGATIONS["pope"], entry)}
    if task == "seedbench_2_plus":
        entry = {"pred": said, "answer": true, "question_id": document}
        name = f"seedbench_2_plus_{('Chart', 'Map', 'Web')[kind % 3]}"
        return {**line, "group": f"image {cluster}", name: entry, "seedbench_2_plus_all": entry}
    return {**line, "group": f"image {cluster}", "exact_match": score}


def summed(task: str, metric: str, made: Made) -> Any:
    """A metric of two runs as a function of sums.

    Args:
        task: its name.
        metric: of the task.
        made: as `invented` gives it.
    """
    import pandas as pd

    from plam_eval.harness import tasks
    from plam_eval.harness.stock_metrics import KNOWN

    logging = [metric in line for line in made[0]]
    first, second = ([line for line, logs in zip(run, logging, strict=True) if logs] for run in made)
    cluster = pd.factorize(pd.Series([tasks.cluster_of(task, line)[0] for line in first]))[0]
    known = KNOWN[AGGREGATIONS[task][metric]]
    return known.sums([[line[metric] for line in first], [line[metric] for line in second]], cluster)


def drawn_from(population: Any, clusters: int, generator: np.random.Generator) -> Any:
    """The metric of clusters that are drawn from those of a larger one.

    Args:
        population: as `summed` gives it.
        clusters: so many.
        generator: of the draw.
    """
    from dataclasses import replace

    return replace(population, totals=population.totals[:, generator.integers(0, population.totals.shape[1], clusters)])


def held(
    population: Any, clusters: int, samples: int, interval: Callable[[Any, np.random.Generator], tuple[float, float]]
) -> tuple[int, int, float]:
    """How many intervals hold the true difference, of how many, and their mean width.

    Args:
        population: the metric of all clusters that there are.
        clusters: of a sample.
        samples: so many.
        interval: of a sample.
    """
    from plam_eval.evaluation.stock_scores import LEAST

    first, second = population.of_all()
    right, count, width = 0, 0, 0.0
    for seed in range(samples):
        generator = np.random.default_rng([7, seed])
        sample = drawn_from(population, clusters, generator)
        if (sample.totals[0] != sample.totals[1]).any(axis=-1).sum() < LEAST:
            continue
        low, high = interval(sample, generator)
        right, count, width = right + (low <= second - first <= high), count + 1, width + high - low
    return right, count, width / max(count, 1)


def expanded(sample: Any, generator: np.random.Generator) -> tuple[float, float]:
    """The interval in use, of `sample`, whose resamples `generator` draws."""
    from plam_eval.evaluation.stock_scores import paired_interval

    return paired_interval(sample, generator, resamples=2_000)


def of_scipy(method: str) -> Callable[[Any, np.random.Generator], tuple[float, float]]:
    """An interval of `scipy.stats.bootstrap`'s, by its `method`."""

    def interval(sample: Any, generator: np.random.Generator) -> tuple[float, float]:
        from scipy import stats

        clusters = sample.totals.shape[1]

        def difference(rows: Any, axis: int = -1) -> Any:
            counts = np.stack([np.bincount(row, minlength=clusters) for row in rows.reshape(-1, rows.shape[-1])])
            values = sample.value(np.einsum("bg,rgc->brc", counts, sample.totals))
            return (values[:, 1] - values[:, 0]).reshape(rows.shape[:-1])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = stats.bootstrap(
                (np.arange(clusters),), difference, n_resamples=2_000, method=method, rng=generator, batch=500
            )
        return made.confidence_interval.low, made.confidence_interval.high

    return interval


METHODS: dict[str, Callable[[Any, np.random.Generator], tuple[float, float]]] = {
    "expanded": expanded,
    "percentile": of_scipy("percentile"),
    "BCa": of_scipy("BCa"),
}


def coverage(samples: int, sizes: list[int], methods: list[str]) -> None:
    """Print the table of coverage.

    Args:
        samples: of each row.
        sizes: clusters of a sample.
        methods: some of `METHODS`.
    """
    print("| task, metric | clusters | none |", *(f" {name} |" for name in methods))
    print("|---|---|---|", *("---|" for _ in methods))
    for task, metric in (
        ("mmstar", "average"),
        ("mmbench_en_dev_static", "gpt_eval_score"),
        ("mme", "mme_perception_score"),
        ("mmmu_val", "mmmu_acc"),
        ("gqa", "exact_match"),
        ("pope", "pope_f1_score"),
        ("realworldqa", "exact_match"),
        ("seedbench_2_plus", "seedbench_2_plus_Chart"),
    ):
        population = summed(
            task, metric, invented(task, 600 if task == "mmmu_val" else 6_000, np.random.default_rng(1))
        )
        for clusters in sizes:
            cells = []
            for name in methods:
                right, count, width = held(population, clusters, samples, METHODS[name])
                cells.append(f" {right / max(count, 1):.2f} / {width:.3g} |")
            print(f"| {task}, {metric} | {clusters} | {1 - count / samples:.2f} |", *cells, flush=True)


def write_run(folder: Path, made: dict[str, list[Line]], date: str = "20260101_000000") -> Path:
    """A results file and sample logs as lmms-eval would write them, with the metrics of what is known of them.

    Args:
        folder: is made.
        made: task -> lines.
        date: in the names of its files.
    """
    from plam_eval.harness.stock_metrics import KNOWN

    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"results": {}, "configs": {}, "higher_is_better": {}, "versions": {}}
    for task, lines in made.items():
        metrics = AGGREGATIONS[task]
        listed = [{"metric": name, "aggregation": f"<function {each} at 0x7f>"} for name, each in metrics.items()]
        results["configs"][task] = {"task": task, "metric_list": listed}
        results["higher_is_better"][task] = dict.fromkeys(metrics, True)
        values = {}
        for name, aggregation in metrics.items():
            entries = [line[name] for line in lines if name in line]
            if entries:
                whole = KNOWN[aggregation].sums([entries], np.zeros(len(entries), dtype=np.intp))
                values[f"{name},none"] = float(whole.of_all()[0])
        results["results"][task] = {"alias": task, **values}
        log = folder / f"{date}_samples_{task}.jsonl"
        log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    file = folder / f"{date}_results.json"
    file.write_text(json.dumps(results), encoding="utf-8")
    return file


def cost(repeats: int, sizes: dict[str, int], file: Path | None = None) -> None:
    """Print what stock scores add to a comparison of two finished folders.

    Args:
        repeats: how often it is measured.
        sizes: task -> its clusters.
        file: where the figures go as JSON.
    """
    import measured

    from plam_eval.evaluation import stock_scores
    from plam_eval.evaluation.comparison import compare_runs
    from plam_eval.evaluation.records import read_run

    with tempfile.TemporaryDirectory() as scratch:
        made = {task: invented(task, number, np.random.default_rng(3)) for task, number in sizes.items()}
        folders = [Path(scratch, name) for name in ("plain", "merged")]
        for number, folder in enumerate(folders):
            write_run(folder, {task: lines[number] for task, lines in made.items()})
        documents = sum(len(lines[0]) for lines in made.values())
        print(f"{documents} documents of {len(made)} tasks, seconds of processor time, smallest of {repeats}")
        without, stock = [], []
        for _ in range(repeats):
            began = time.process_time()
            first, second = map(read_run, folders)
            compare_runs(first, second, ("plain", "merged"))
            between = time.process_time()
            rows = stock_scores.stock_scores(first, second)
            without.append(between - began)
            stock.append(time.process_time() - between)
        reasons = {row.why for row in rows if row.why}
        assert all("differ" in why for why in reasons), reasons
    print(f"comparison {min(without):.2f}, stock scores {min(stock):.2f}, ratio {1 + min(stock) / min(without):.2f}")
    row = measured.row(
        "a comparison of two finished runs",
        ("with stock scores", [one + other for one, other in zip(without, stock, strict=True)]),
        ("without", without),
        ideal=1.0,
        ideal_is="no cost",
    )
    measured.write_rows(file, [row], f"{documents:,} documents of {len(made)} tasks; CPU seconds")


def main() -> None:
    """Read options and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400, help="of each row of the table of coverage")
    parser.add_argument("--clusters", type=int, nargs="+", default=[30, 100, 400], help="of a sample")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--cost", action="store_true", help="measure the cost instead")
    parser.add_argument("--repeats", type=int, default=3, help="of --cost")
    parser.add_argument("--share", type=int, default=1, help="of --cost: one in so many of the benchmarks' clusters")
    parser.add_argument("--json", type=Path, metavar="FILE", help="of --cost: write rounds and ratios there, too")
    options = parser.parse_args()
    if options.cost:
        cost(options.repeats, {task: max(30, n // options.share) for task, n in CLUSTERS.items()}, options.json)
    else:
        coverage(options.samples, options.clusters, options.methods)


if __name__ == "__main__":
    main()
