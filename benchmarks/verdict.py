"""How often does a sweep's verdict see what is not there? `python benchmarks/verdict.py`.

Sweeps are simulated from the answers of three real ones, of six merges of the embedded pair (three ranges of layers,
two pairs of weights), their scale controls and the plain model on the offline suite, and judged by the product's own
`findings_of`. What is counted is the verdict of a whole sweep, its choice among the merges included:

- `plain against plain`  the answers with the pair's own base; in each cluster of documents (those of one image, say)
                         all cells keep their scores, or, with probability one half, right and wrong are swapped in all
                         of them. So every difference between two cells has either sign with the same chance: nothing
                         is better than anything, while cells differ in as many documents, and as alike, as in truth.
- `itself`               a merge with the MLLM itself is nothing but a scale: it may be better than plain, never better
                         than its scale control.
- `noise`                a base as far from the MLLM as the pair's own, in a random direction: likewise.

In all of them clusters are drawn anew, with replacement, for each simulated sweep, in a random order, of which the
first `SELECT` documents of each task choose where the sweep holds documents out. To be quick, the nine tasks are
taken as `POOLED`. `itself` and `noise` are without swaps, so a scale that truly helps may be called better than plain
there, and this noise may by luck have done a little good or harm: `true` is the difference from plain of the merges
that were chosen, in all documents of the real sweep.

Counted are verdicts "better than plain", "better than the scale control", and both; each has half the level, 0.025,
since tests are two-sided. `by p alone` is what either would be without the adjustment of p. Prints a Markdown table
with exact 95 % intervals (Clopper and Pearson 1934), and writes it as CSV into the output folder. What is there
already, real sweeps and simulated ones, is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from plam_eval import api
from plam_eval.demo import damaged
from plam_eval.demo import run as demo
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.stats import SIGNIFICANT
from plam_eval.evaluation.sweep.findings import findings_of
from plam_eval.evaluation.sweep.grid import PLAIN, Grid

DOCUMENTS = 60  # of each of nine tasks
POOLED, SELECT = 3, 60  # tasks that they are taken as, and documents of each of these to choose on
LAYERS, WEIGHTS = "6:8,2:6,0:8", "0.9+0.3,0.7+0.3"  # the scale control of the second is the plain model
ONE = "layers-6-8_qkvo_0.9+0.3"  # the merge of sweeps that have one alone
BASES = {"plain against plain": "own", "itself": "itself", "noise": "noisy"}


def evaluate(folder: Path, base: str) -> tuple[Grid, dict[str, Run]]:
    """The cells and runs of one real sweep, evaluated where the folder does not hold it.

    Args:
        folder: for the suite, the pairs and the sweeps.
        base: "own", or one of `damaged.BASES`.
    """
    suite = demo.prepare(folder / "suite", DOCUMENTS)
    pair = folder / base
    if base != "own" and not pair.is_dir():
        damaged.write_damaged(pair, 0.0, base)
    beside = Path("pair") if base == "own" else pair  # in the suite
    before = Path.cwd()
    os.chdir(suite)  # where lmms-eval's tasks find their datasets
    try:
        findings = api.sweep(
            model="plam_llava",
            model_args=f"pretrained={beside / 'mllm'},base={beside / 'base'},layers=6:8,device_map=cpu",
            tasks="plam9",
            limit=DOCUMENTS,
            layers=LAYERS,
            weights=WEIGHTS,
            controls="self_scale",
            together=99,
            output=folder / f"sweep-{base}",
        )
    finally:
        os.chdir(before)
    assert findings is not None and not findings.failures(), findings
    return Grid.from_dict(findings.plan["grid"]), findings.runs


def with_merges(grid: Grid, merges: set[str]) -> Grid:
    """The part of a grid that has these merges only, with their controls.

    Args:
        grid: of the whole sweep.
        merges: names of cells.
    """
    controls = {name: beside for name, beside in grid.controls.items() if name in merges}
    needed = {PLAIN, *merges, *(cell for beside in controls.values() for names in beside.values() for cell in names)}
    return Grid(tuple(cell for cell in grid.cells if cell.name in needed), controls)


@dataclass(frozen=True)
class Simulated:
    """Sweeps drawn from the answers of a real one.

    Attributes:
        runs: of the real sweep, by cell, all in the order of plain's documents.
        rows: of each cluster, by pooled task.
        swap: whether right and wrong are swapped in half of the clusters, at random.
    """

    runs: dict[str, Run]
    rows: dict[str, list[np.ndarray]]
    swap: bool

    @classmethod
    def of(cls, runs: Mapping[str, Run], *, swap: bool) -> Simulated:
        """From the runs of a sweep.

        Args:
            runs: by cell.
            swap: as the attribute.
        """
        order = pd.MultiIndex.from_frame(runs[PLAIN].samples[["task", "doc_id"]])
        aligned = {
            name: replace(run, samples=run.samples.set_index(["task", "doc_id"]).loc[order].reset_index())
            for name, run in runs.items()
        }
        plain = aligned[PLAIN].samples
        tasks = plain["task"].unique().tolist()
        rows: dict[str, list[np.ndarray]] = {f"pool {number}": [] for number in range(POOLED)}
        for (task, _), own in plain.groupby(["task", "group"], sort=False):
            rows[f"pool {tasks.index(task) % POOLED}"].append(own.index.to_numpy())
        return cls(aligned, rows, swap)

    def draw(self, rng: np.random.Generator) -> dict[str, Run]:
        """The runs of one simulated sweep.

        Args:
            rng: what it is drawn from.
        """
        taken, tasks, places, signs = [], [], [], []
        for task, clusters in self.rows.items():
            for place, number in enumerate(rng.integers(0, len(clusters), len(clusters))):
                rows = clusters[number]
                taken.append(rows)
                tasks += [task] * len(rows)
                places += [place] * len(rows)
                signs += [bool(rng.integers(2)) and self.swap] * len(rows)
        index, swapped = np.concatenate(taken), np.array(signs)
        groups = self.runs[PLAIN].samples["group"].take(index).reset_index(drop=True)
        # A cluster that was drawn twice is two.
        same = {"task": tasks, "doc_id": np.arange(len(index)), "group": groups + [f" {place}" for place in places]}
        drawn = {}
        for name, run in self.runs.items():
            own = run.samples.take(index).reset_index(drop=True)
            scores = own["score"].to_numpy()
            assert np.isin(scores, (0, 1)).all(), "only right and wrong can be swapped"
            own["score"] = np.where(swapped, 1 - scores, scores)
            results: dict[str, Any] = {"configs": {task: {} for task in self.rows}}
            drawn[name] = Run(run.file, results, own.assign(**same))
        return drawn


def simulate(folder: Path, null: str, sweeps: int, seed: int) -> list[dict[str, Any]]:
    """What simulated sweeps say, one record for each sweep, merges in the grid and documents chosen on.

    Args:
        folder: of `evaluate`; each sweep is kept there when it is simulated, so that a stopped run goes on.
        null: a key of `BASES`.
        sweeps: how many are drawn.
        seed: of the draws.
    """
    kept = folder / f"said-{BASES[null]}-{seed}.jsonl"
    lines = kept.read_text(encoding="utf-8").split("\n")[:-1] if kept.is_file() else []  # the last may be torn
    if len(lines) < sweeps:
        grid, runs = evaluate(folder, BASES[null])
        merges = {cell.name for cell in grid.cells if cell.kind == "merged"}
        grids = {len(merges): grid, 1: with_merges(grid, {ONE})}
        simulated = Simulated.of(runs, swap=null == "plain against plain")
        kept.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        with kept.open("a", encoding="utf-8") as file:
            for number in range(len(lines), sweeps):
                drawn = simulated.draw(np.random.default_rng([seed, number]))
                lines.append(json.dumps(_said(drawn, grids, runs)))
                file.write(lines[-1] + "\n")
                file.flush()
    return [record for line in lines[:sweeps] for record in json.loads(line)]


def _said(drawn: Mapping[str, Run], grids: Mapping[int, Grid], runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """What one simulated sweep says with each of the grids, and what its merges truly gain in the real one."""
    records = []
    for tried, part in grids.items():
        for where, select in (("others", SELECT), ("the same", None)):
            conclusion = findings_of(part, drawn, select, resamples=2).conclusion
            assert conclusion is not None
            gain = runs[conclusion.cell].mean_score() - runs[PLAIN].mean_score()
            records.append({"merges": tried, "chosen on": where, "true": gain, **conclusion.to_dict()})
    return records


def counted(said: list[dict[str, Any]]) -> dict[str, Any]:
    """How many conclusions say better than plain, better than the scale control, and both, with exact intervals.

    Args:
        said: as `simulate` gives them.
    """
    row: dict[str, Any] = {}
    for what, wrong in (
        ("better than plain", [one["against_plain"] == "better" for one in said]),
        ("by p alone", [one["plain"]["p"] < SIGNIFICANT and one["plain"]["difference"] > 0 for one in said]),
        ("better than the scale", [one["against_scale"] == "better" for one in said]),
        ("scale by p alone", [one["scale"]["p"] < SIGNIFICANT and one["scale"]["difference"] > 0 for one in said]),
        ("both", [one["positive"] for one in said]),
    ):
        exact = binomtest(sum(wrong), len(wrong)).proportion_ci(0.95, method="exact")
        row[what] = f"{sum(wrong) / len(wrong):.3f} ({exact.low:.3f} to {exact.high:.3f})"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nulls", nargs="+", choices=list(BASES), default=list(BASES))
    parser.add_argument("--sweeps", type=int, default=400, help="simulated from each real one (default 400)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--output", type=Path, default=Path("out/benchmark-verdict"))
    arguments = parser.parse_args()
    output, rows = arguments.output.absolute(), []
    for null in arguments.nulls:
        began = time.perf_counter()
        records = pd.DataFrame(simulate(output, null, arguments.sweeps, arguments.seed))
        for (tried, where), said in records.groupby(["merges", "chosen on"], sort=False):
            true = 0.0 if null == "plain against plain" else said["true"].mean()
            row = {"null": null, "merges": tried, "chosen on": where, "true": true}
            rows.append(row | counted(said.to_dict("records")))
        print(f"{null}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    table = pd.DataFrame(rows)
    print(table.to_markdown(index=False, floatfmt=".3f"))
    print(f"{arguments.sweeps} sweeps a row; {platform.machine()}, {os.cpu_count()} cores")
    if arguments.nulls == list(BASES):
        table.to_csv(output / "verdict.csv", index=False)


if __name__ == "__main__":
    main()
