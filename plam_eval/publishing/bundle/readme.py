"""What stands in the README of a bundle: for whoever opens a paper's appendix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plam_eval.harness import tasks
from plam_eval.publishing.bundle.manifest import BundledRun

_TEXT = """\
# Results that can be checked

A bundle of plam-eval: the metrics of the runs below, every answer behind them, what was merged, and with which
versions.

| run | | spec digest | tasks | documents |
|---|---|---|---|---|
{rows}

- `runs/NNN/results.json`: metrics, task configurations, spec, hashes of checkpoints, versions
- `runs/NNN/samples_TASK.jsonl`: a line for each document: prompt, right answer, the model's answer, what the task
  logged. Images are not in it.
{others}- `manifest.json`: SHA-256 and size of every file, and what each is

{taken}

## To check it

    pip install plam-eval
    plam submit --verify THIS_FILE.zip

compares all hashes, recomputes the metrics from what was logged, scores the answers again by the rules of the tasks,
and says for each task what could be checked. {unknown}

Hashes in a file protect against accidents. Against a change on purpose, compare the SHA-256 of the archive with the one
that was published beside it. A right answer or a prompt that was changed together with everything that follows from it
is seen only where the dataset is at hand.
"""


def readme_of(runs: Sequence[BundledRun], kinds: Mapping[str, str], anonymous: bool, left_out: bool) -> str:
    """The README of a bundle.

    Args:
        runs: that are in it.
        kinds: its other members, and what they are.
        anonymous: whether what names authors was left out.
        left_out: whether anything was.
    """
    rows = [
        f"| {number} | {_cell(run.label)} | {(run.digest or 'none')[:12]} | {len(run.tasks)} | "
        f"{sum(task.documents for task in run.tasks.values())} |"
        for number, run in enumerate(runs, start=1)
    ]
    taken = "Every file is the run's own, byte for byte."
    if left_out:
        authors = ", commits and free text of the authors" if anonymous else ""
        taken = (
            f"Left out of records were paths and names of the machine, accounts, secrets{authors}. `manifest.json`\n"
            "names each field under `left_out`, with the SHA-256 of the file that it stood in."
        )
    unknown = sorted({task for run in runs for task in run.tasks if task not in tasks.TASKS})
    return _TEXT.format(
        rows="\n".join(rows),
        others="".join(f"- `{name}`: {kind}\n" for name, kind in kinds.items()),
        taken=taken,
        unknown=f"Of {', '.join(unknown)}, only metrics that are declared means are recomputed." if unknown else "",
    )


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
