"""Can a sweep see an effect that is there, and none where there is none? `python benchmarks/power.py`.

The embedded pair with noise of known size in its late attention (`plam_eval.demo.damaged`), merged by `plam sweep` with
one of its bases:

- `undamaged`, `own`   a merge repairs: the verdict should be "better than plain, and better than the same scale"
- `itself`, `noise`    a merge cannot: the verdict should be anything else
- `itself_scaled`, `noise_scaled`   the MLLM's late attention is multiplied by 3 instead, and weights that sum to 0.4
  repair it whatever the base is: "better than plain", but not better than the same scale

Each seed has noise and documents of its own: `DOCUMENTS` of each of `TASKS` that no other seed has, `SELECT` of
them, drawn, to choose between two merges. A sweep is `plam_eval.api.sweep` over checkpoints on disk, with the scale
control; those of seed 0 go through the command `plam sweep`, with all the controls that it has by default.

What a sweep said is kept in a file of its own, so that a run that was stopped goes on, and several may run at once on
one folder. Seeds are gone through one by one, every kind and damage in each. Prints how often each was called better,
with exact intervals (Clopper and Pearson 1934), and writes the same as `power.csv`, all sweeps as `sweeps.csv`, and
the figure `power.png`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pandas as pd
from matplotlib.figure import Figure

from plam_eval import api
from plam_eval.demo import damaged, hub
from plam_eval.evaluation.sweep.findings import Findings, read_findings
from plam_eval.figures import COLOURS, save_figure
from plam_eval.files import locked, read_json, write_in_one_step, write_json

TASKS, DOCUMENTS, SELECT = "mme,gqa,pope", 50, 10
MOST_SEEDS = 30  # that the suite has documents for
LAYERS = f"{damaged.LAYERS[0]}:{damaged.LAYERS[-1] + 1}"


@dataclass(frozen=True)
class Kind:
    """What is planted.

    Attributes:
        base: one of `damaged.BASES`.
        repairs: whether the base has a part in what a merge repairs.
        damages: sizes of the noise, by default.
        words: of it in the figure.
        scale: of the damaged tensors.
        weights: of the two merges. Of those by default the first has plain as its scale control.
    """

    base: str
    repairs: bool
    damages: tuple[float, ...]
    words: str
    scale: float = 1.0
    weights: str = "0.5+0.5,0.9+0.3"


KINDS = {
    "undamaged": Kind("undamaged", True, (0.0, 1.0, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0), "repairs: the MLLM undamaged"),
    "own": Kind("own", True, (2.0, 2.5), "repairs: the pair's own base"),
    "itself": Kind("itself", False, (2.0,), "cannot: the MLLM itself"),
    "noise": Kind("noisy", False, (2.0,), "cannot: noise"),
    "itself_scaled": Kind("itself", False, (0.0,), "scale repairs: the MLLM itself", 3.0, "0.2+0.2,0.3+0.1"),
    "noise_scaled": Kind("noisy", False, (0.0,), "scale repairs: noise", 3.0, "0.2+0.2,0.3+0.1"),
}


@dataclass(frozen=True)
class Case:
    """One sweep: over a pair of this kind, a key of `KINDS`, with this damage and seed."""

    kind: str
    damage: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder and of its record."""
        return f"{self.kind}_{self.damage:g}_{self.seed}"


def cases(damages: Mapping[str, Sequence[float]], seeds: range) -> Iterator[Case]:
    """Every kind and damage of a seed before the next seed.

    Args:
        damages: by kind.
        seeds: of noise and documents.
    """
    for seed in seeds:
        for kind, sizes in damages.items():
            for damage in sizes:
                yield Case(kind, damage, seed)


def sweep(case: Case, folder: Path, *, command: bool) -> Findings:
    """The sweep of a case, in a folder that is not there; the working directory is the suite.

    Args:
        case: which.
        folder: for the pair and the sweep.
        command: whether to run `plam sweep`, with all controls, rather than `plam_eval.api.sweep` in this process.
    """
    kind = KINDS[case.kind]
    pair = damaged.write_damaged(folder, case.damage, kind.base, case.seed, kind.scale)
    arguments = f"pretrained={pair.mllm},base={pair.base},layers={LAYERS},device_map=cpu"
    shared: dict[str, Any] = {"tasks": TASKS, "weights": kind.weights, "select": SELECT, "together": 16}
    shared |= {"limit": DOCUMENTS, "offset": DOCUMENTS * case.seed, "output": folder / "sweep"}
    if not command:
        findings = api.sweep(model="plam_llava", model_args=arguments, controls="self_scale", **shared)
        assert findings is not None
        return findings
    options = [word for name, value in shared.items() for word in (f"--{name}", str(value))]
    words = ["sweep", "--model", "plam_llava", "--model_args", arguments, *options]
    subprocess.run([sys.executable, "-m", "plam_eval.cli", *words], stdout=subprocess.DEVNULL, check=True)
    return read_findings(folder / "sweep")


def record(case: Case, findings: Findings, seconds: float) -> dict[str, Any]:
    """What a sweep said, for JSON.

    Args:
        case: which.
        findings: of the sweep.
        seconds: that it took.
    """
    conclusion = findings.conclusion
    assert conclusion is not None and conclusion.scale is not None and not findings.failures(), findings.failures()
    row = findings.cells.set_index("cell").loc[conclusion.cell]
    return {
        "kind": case.kind,
        "damage": case.damage,
        "seed": case.seed,
        "positive": conclusion.positive,
        "verdict": findings.verdict(),
        "weights": f"{row['model_weight']:g}+{row['base_weight']:g}",
        "documents": conclusion.documents,
        "plain": float(row["first"]),
        "merged": float(row["second"]),
        "scale": float(row["second"]) - conclusion.scale.difference,
        "p_plain": conclusion.plain.p,
        "p_scale": conclusion.scale.p,
        "seconds": round(seconds, 1),
    }


def run(case: Case, output: Path, *, command: bool) -> bool:
    """Sweep a case and keep what it said, unless that is done, or another process is at it.

    Args:
        case: which.
        output: folder of records.
        command: as for `sweep`.

    Returns:
        Whether it was swept.
    """
    file, folder = output / "cases" / f"{case.name}.json", output / "at_work" / case.name
    if file.is_file():
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(output / "locks", f"{case.name}.lock", _ElsewhereError):
            if file.is_file():
                return False
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            began = time.perf_counter()
            said = record(case, sweep(case, folder, command=command), time.perf_counter() - began)
            write_json(file, said)
            shutil.rmtree(folder)
    except _ElsewhereError:
        return False
    return True


class _ElsewhereError(Exception):
    """Another process is at this case."""


def read_records(output: Path) -> pd.DataFrame:
    """All sweeps that are finished, a row for each.

    Args:
        output: folder of records.
    """
    files = sorted((output / "cases").glob("*.json"))
    table = pd.DataFrame([read_json(file, "delete it, and run the script again") for file in files])
    return table.sort_values(["kind", "damage", "seed"], key=_in_order, ignore_index=True)


def _in_order(column: pd.Series) -> pd.Series:
    """Kinds in the order of `KINDS`, and all else as it is."""
    return column.map(list(KINDS).index) if column.name == "kind" else column


def shares(sweeps: pd.DataFrame) -> pd.DataFrame:
    """How often each kind and damage was called better, with exact 95 % intervals, and the scores behind it.

    Args:
        sweeps: as `read_records`.
    """
    from scipy.stats import binomtest

    rows = []
    for (kind, damage), each in sweeps.groupby(["kind", "damage"], sort=False):
        positive, total = int(each["positive"].sum()), len(each)
        interval = binomtest(positive, total).proportion_ci(0.95, method="exact")
        gains = each["merged"] - each["plain"]
        rows.append(
            {
                "kind": kind,
                "damage": damage,
                "sweeps": total,
                "called better": positive,
                "share": positive / total,
                "low": interval.low,
                "high": interval.high,
                "plain": each["plain"].mean(),
                "merged": each["merged"].mean(),
                "scale control": each["scale"].mean(),
                "gain": gains.mean(),
                "smallest": gains.min(),
                "largest": gains.max(),
            }
        )
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, sweeps: pd.DataFrame, file: Path) -> None:
    """The share called better against the size of the damage, above the gains that were there.

    Args:
        table: as `shares` gives it.
        sweeps: as `read_records`.
        file: of the figure.
    """
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    kinds = [name for name in KINDS if name in set(table["kind"])]
    for index, name in enumerate(kinds):
        rows, each = table[table["kind"] == name], sweeps[sweeps["kind"] == name]
        aside = (index - (len(kinds) - 1) / 2) * 0.03  # intervals of two kinds at one damage are both seen
        looks: dict[str, Any] = {"color": COLOURS[index], "marker": "osD^vX"[index], "label": KINDS[name].words}
        looks["linestyle"] = "-" if KINDS[name].repairs else "none"
        ends = (rows["share"] - rows["low"], rows["high"] - rows["share"])
        upper.errorbar(rows["damage"] + aside, rows["share"], yerr=ends, capsize=3, **looks)
        gains = each["merged"] - each["plain"]
        lower.plot(each["damage"] + aside, gains, ".", color=COLOURS[index], alpha=0.5)
        lower.plot(rows["damage"] + aside, rows["gain"], **looks)
    upper.axhline(0.8, color="grey", linewidth=0.8, linestyle=":")
    upper.set(ylim=(-0.03, 1.03), ylabel="share of sweeps that\ncall the merge better")
    documents = sorted(sweeps["documents"].unique())
    upper.set_title(
        f"{min(table['sweeps'])} sweeps a point or more, {documents[-1]} documents reported, 95 % intervals"
    )
    upper.legend(loc="center left")
    lower.axhline(0, color="grey", linewidth=0.8)
    lower.set(xlabel="damage: norm of the noise over the norm of the tensor", ylabel="merge minus plain")
    save_figure(figure, file)


def report(output: Path) -> None:
    """Print and write what the sweeps said that are finished.

    Args:
        output: folder of records.
    """
    sweeps = read_records(output)
    table = shares(sweeps)
    print(table.round(3).to_markdown(index=False))
    print(f"\n{len(sweeps)} sweeps of {sweeps['documents'].min()} to {sweeps['documents'].max()} reported documents")
    write_in_one_step(output / "power.csv", lambda file: table.round(4).to_csv(file, index=False))
    write_in_one_step(output / "sweeps.csv", lambda file: sweeps.round(4).to_csv(file, index=False))
    draw(table, sweeps, output / "power.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/power"))
    parser.add_argument("--seeds", type=int, default=20, help=f"how many, at most {MOST_SEEDS} (default 20)")
    parser.add_argument("--first", type=int, default=0, help="of the seeds (default 0)")
    parser.add_argument("--seconds", type=float, help="begin no sweep after so many; the same call goes on")
    for name, kind in KINDS.items():
        default = ",".join(f"{size:g}" for size in kind.damages)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, default=default, help=f"damages of this kind (default {default or 'none'})")
    arguments = parser.parse_args()
    began, output = time.perf_counter(), arguments.output.absolute()
    damages = {name: [float(word) for word in getattr(arguments, name).split(",") if word] for name in KINDS}
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    if seeds.start < 0 or seeds.stop > MOST_SEEDS:
        parser.error(f"seeds {seeds.start} to {seeds.stop - 1}: the suite has documents for 0 to {MOST_SEEDS - 1}")
    output.mkdir(parents=True, exist_ok=True)
    with locked(output, "suite.lock", patience=-1):
        os.chdir(hub.write_hub(output / "suite", documents_per_task=DOCUMENTS * MOST_SEEDS))
    for case in cases(damages, seeds):
        if arguments.seconds is not None and time.perf_counter() - began > arguments.seconds:
            print("out of time; the same call goes on", file=sys.stderr)
            break
        run(case, output, command=case.seed == 0)
    if any((output / "cases").glob("*.json")):
        report(output)


if __name__ == "__main__":
    main()
