"""What merging does to the embedded trio, and what it costs: `python benchmarks/trio.py`.

One sweep of GQA's copy in the offline suite over each of

- `reasoning`            questions of counting, comparing, relations and sums, which the MLLM has unlearned
- `with another image`   the same questions and answers, each with the image of another scene
- `what is where`        questions that need no reasoning, which it was tuned on

with the same merges by the weighted sum and by task arithmetic, and their scale controls. Nothing is chosen: every
merge is reported on all `--documents`, with its interval, and p adjusted for all settings of its sweep. Prints a
Markdown table and writes `trio.csv` with the same figures into the output folder. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pandas as pd

from plam_eval import api
from plam_eval.demo import hub, run
from plam_eval.evaluation.stats import format_p
from plam_eval.evaluation.sweep.findings import Findings

SUITES = {  # what GQA's copy asks, and which images it shows
    "reasoning": ("reasoning", "own"),
    "with another image": ("reasoning", "swapped"),
    "what is where": ("perception", "own"),
}
LAYERS, WEIGHTS = "4:8,6:8,0:4,0:8", "0.9+0.3,0.7+0.3,0.5+0.5,0.3+0.7"
KEYS = ["layers", "rule", "weights"]


def sweep(name: str, output: Path, documents: int, trio: Path) -> Findings:
    """The sweep over one suite.

    Args:
        name: a key of `SUITES`.
        output: folder of suites and sweeps.
        documents: that are reported.
        trio: folder of `mllm`, `base` and `ancestor`.
    """
    asked, images = SUITES[name]
    folder = name.replace(" ", "-")
    suite = hub.write_hub(output / "suites" / folder, documents_per_task=documents, gqa=asked, images=images)
    os.chdir(suite)
    findings = api.sweep(
        model="plam_llava",
        model_args=f"pretrained={trio}/mllm,base={trio}/base,ancestor={trio}/ancestor,layers=4:8,device_map=cpu",
        tasks="gqa",
        rules="weighted_sum,task_arithmetic",
        layers=LAYERS,
        weights=WEIGHTS,
        controls="self_scale",
        together=16,
        output=output / folder,
    )
    assert findings is not None and not findings.failures(), "some cells have no results"
    return findings


def table_of(name: str, findings: Findings) -> pd.DataFrame:
    """A row per setting: its score, the difference to plain with interval and adjusted p, and that to its scale.

    Args:
        name: of the suite; the columns' first level.
        findings: of its sweep.
    """
    cells = findings.cells.set_index("cell")
    scale = findings.controls[findings.controls["rule"] == "self_scale"].set_index("merged")["difference"]
    plain = cells.loc["plain"]
    score = float(findings.runs["plain"].samples["score"].mean())
    rows = [{**dict.fromkeys(KEYS, ""), "layers": "plain", "score": score, "documents": plain["documents"]}]
    for cell, row in cells[cells["kind"] != "plain"].iterrows():
        rows.append(
            {
                **{key: row[key] for key in KEYS},
                "score": row["second"],
                "documents": row["documents"],
                **{field: row[field] for field in ("difference", "low", "high", "gained", "lost", "p_holm")},
                "minus scale": scale.get(cell),
            }
        )
    table = pd.DataFrame(rows).set_index(KEYS)
    table.columns = pd.MultiIndex.from_product([[name], table.columns])
    return table


def shown(table: pd.DataFrame) -> str:
    """The table in Markdown, settings in the order of the sweep.

    Args:
        table: of all suites.
    """
    lines = pd.DataFrame(index=table.index)
    for name in SUITES:
        own = table[name]
        lines[name] = [f"{score:.3f}" for score in own["score"]]
        lines[f"{name}: difference"] = [
            "" if pd.isna(row["difference"]) else f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
            for _, row in own.iterrows()
        ]
        if name == "reasoning":
            lines["p Holm"] = ["" if pd.isna(p) else format_p(p) for p in own["p_holm"]]
            lines["minus `self_scale`"] = ["" if pd.isna(gain) else f"{gain:+.3f}" for gain in own["minus scale"]]
    return str(lines.reset_index().to_markdown(index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("out/trio_merges"))
    parser.add_argument("--documents", type=int, default=1000)
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    trio = run.prepare(output / "trio", hub.MINIMUM_DOCUMENTS, models="trio") / "trio"
    tables = [table_of(name, sweep(name, output, arguments.documents, trio)) for name in SUITES]
    table = pd.concat(tables, axis=1)
    table.to_csv(output / "trio.csv")
    print(shown(table))


if __name__ == "__main__":
    main()
