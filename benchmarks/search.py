"""Search against grid against random, with one budget of settings: `python benchmarks/search.py`.

On questions of GQA's form, `--trials` settings of each of the embedded pairs are tried on the first `--select`, by

- `tpe`      Optuna's, which is what `plam search` does by default; once for each of `--seeds`
- `gp`       a Gaussian process in its place, if `--gp` is given; once for each seed
- `random`   settings at random; once for each seed
- `grid`     what one would sweep: from every layer to the last, by as many weights as fit the budget; once

and each one's choice is held against plain and against its own scale without the base on the other documents. All of
them share one store of answers (a setting's answers are the same, whoever asks), so the time of one says nothing;
what a search saves by giving up hopeless settings is told as the share of documents that it asked for.

Prints a Markdown table and writes `search.json` with the same figures into the output folder. Stopped, the same command
goes on.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from plam_eval.demo import run as demo
from plam_eval.evaluation.records import clusters_by_content
from plam_eval.evaluation.search.answers import Answers, Documents, mean_gain, setting_of
from plam_eval.evaluation.search.config import SearchConfig
from plam_eval.evaluation.search.evaluator import Evaluator, evaluate_inside
from plam_eval.evaluation.search.job import SearchJob
from plam_eval.evaluation.search.runner import standing_of, try_settings
from plam_eval.evaluation.sweep.documents import split_documents
from plam_eval.evaluation.sweep.runner import load_model
from plam_eval.provenance import versions
from plam_eval.spec import PlateauSpec, load_spec

PAIRS, TASK = ("pair", "trio"), "gqa"
MODEL_WEIGHTS, BASE_WEIGHTS = "0.5:0.9:0.2", "0.1:0.5:0.2"


class Shared:
    """An evaluator whose answers are kept in one store for every search.

    Args:
        evaluator: the resident model.
        folder: of the store.
    """

    def __init__(self, evaluator: Evaluator, folder: Path) -> None:
        self._evaluator, self._answers = evaluator, Answers(folder)
        self._documents = evaluator.documents()
        self.asked = 0

    def documents(self) -> pd.DataFrame:
        """As the resident model's."""
        return self._documents

    def directions(self) -> dict[str, int]:
        """As the resident model's."""
        return self._evaluator.directions()

    def answers(self, spec: PlateauSpec | None, keys: Sequence[tuple[str, int]]) -> pd.DataFrame:
        """From the store, or the model's.

        Args:
            spec: of the merge; None for the plain model.
            keys: (task, doc_id) of the documents.
        """
        self.asked += len(keys)
        setting = self._answers.of(setting_of(spec))
        known = set() if setting is None else set(zip(setting.rows["task"], setting.rows["doc_id"], strict=True))
        if missing := [key for key in keys if key not in known]:
            setting = self._answers.add(spec, 0, self._evaluator.answers(spec, missing))
        assert setting is not None
        return setting.rows.set_index(["task", "doc_id"]).loc[list(keys)].reset_index()


def compare(pair: str, suite: Path, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every way on one pair; a row for each of them and seed.

    Args:
        pair: "pair" or "trio".
        suite: folder of the offline suite, which is the working directory.
        folder: of answers and searches.
        options: of the command line.
    """
    given = {
        "model": "plam_llava",
        "model_args": f"pretrained={suite}/{pair}/mllm,device=cpu,dtype=float32",
        "base_model": f"{suite}/{pair}/base",
        "tasks": TASK,
        "limit": options.documents,
        "select": options.select,
        "trials": options.trials,
        "model_weight": MODEL_WEIGHTS,
        "base_weight": BASE_WEIGHTS,
    }
    rows: list[dict[str, Any]] = []

    def work(evaluator: Evaluator) -> None:
        shared = Shared(evaluator, folder / "all")
        table = shared.documents()
        chosen_on, reported_on = split_documents(table, options.select)
        clusters = table.assign(cluster=clusters_by_content(table))
        parts = [
            Documents.of(clusters.merge(keys, on=["task", "doc_id"]), shared.directions(), (), 0)
            for keys in (chosen_on, reported_on)
        ]

        def gain(spec: PlateauSpec, part: Documents, than: PlateauSpec | None = None) -> float:
            first, second = (shared.answers(one, part.missing(None)) for one in (than, spec))
            return mean_gain(part.gains(first, second))

        def report(way: str, seed: int | None, spec: PlateauSpec, asked: int, settings: int) -> None:
            scale = load_spec(spec, {"rule": "self_scale"})
            assert scale is not None
            rows.append(
                {
                    "pair": pair,
                    "way": way,
                    "seed": seed,
                    "chosen": f"{list(spec.layers)} {spec.weights.model:g} + {spec.weights.base_model:g}",
                    "settings": settings,
                    "asked": asked / (settings * len(chosen_on)),
                    "gain on the chosen": gain(spec, parts[0]),
                    "gain on others": gain(spec, parts[1]),
                    "over scale": gain(spec, parts[1], None if scale.is_plain else scale),
                    "chosen on": len(chosen_on),
                    "others": len(reported_on),
                }
            )
            print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)

        for seed in range(options.seeds):
            for way in (*("tpe", "random"), *(["gp"] if options.gp else [])):
                config = SearchConfig.of({**given, "sampler": way, "seed": seed}, "benchmark")
                job = SearchJob.plan(config, folder / f"{way}-{seed}")
                try_settings(job, shared)
                standing = standing_of(job)
                assert standing is not None and standing.best is not None
                best = standing.settings[standing.best].spec
                assert best is not None
                asked = sum(len(setting.rows) for setting in standing.settings)
                report(way, seed, best, asked, len(standing.settings))
        job = SearchJob.plan(SearchConfig.of(given, "benchmark"), folder / "tpe-0")
        specs = grid(job, options.trials)
        gains = [gain(spec, parts[0]) for spec in specs]
        report("grid", None, specs[gains.index(max(gains))], len(specs) * len(chosen_on), len(specs))

    config = SearchConfig.of(given, "benchmark").sweep
    evaluate_inside(load_model(config), config, work)
    return rows


def grid(job: SearchJob, most: int) -> list[PlateauSpec]:
    """From every layer to the last, by as many weights as `most` settings allow, the largest share of the MLLM first.

    Args:
        job: whose space it is of.
        most: settings.
    """
    space = job.space
    steps = [len(space.weights[name].values() or []) for name in ("model_weight", "base_weight")]
    pairs = [(model, base) for base in range(steps[1]) for model in reversed(range(steps[0]))]
    return [
        space.spec({"start": start, "length": space.end - start, "model_weight": model, "base_weight": base})
        for model, base in pairs[: most // job.num_layers]
        for start in range(job.num_layers)
    ]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line for each pair and way: means over seeds, with the least and the most.

    Args:
        rows: as `compare` returns them.
    """
    lines = []
    for (pair, way), runs in rows.groupby(["pair", "way"], sort=False):
        line = {"pair": pair, "way": way, "seeds": len(runs), "settings": int(runs["settings"].mean())}
        line["documents asked"] = f"{runs['asked'].mean():.0%}"
        for column in ("gain on the chosen", "gain on others", "over scale"):
            spread = f" ({runs[column].min():+.3f} to {runs[column].max():+.3f})" if len(runs) > 1 else ""
            line[column] = f"{runs[column].mean():+.3f}{spread}"
        lines.append(line)
    return pd.DataFrame(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, choices=PAIRS)
    parser.add_argument("--documents", type=int, default=400, help="questions of GQA's form")
    parser.add_argument("--select", type=int, default=100, help="of these, to choose on")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--gp", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("out/benchmark-search"))
    options = parser.parse_args()
    output = options.output.absolute()
    rows = []
    for pair in options.pairs:
        suite = output / f"suite-{pair}"
        demo.prepare(suite, options.documents, models=pair)
        os.chdir(suite)
        folder = output / f"{pair}-{options.documents}-{options.select}-{options.trials}"
        rows += compare(pair, suite, folder, options)
    table = pd.DataFrame(rows)
    print(summary(table).to_markdown(index=False, disable_numparse=True))
    record = {"options": {**vars(options), "output": str(options.output)}, "versions": versions(), "rows": rows}
    (output / "search.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
