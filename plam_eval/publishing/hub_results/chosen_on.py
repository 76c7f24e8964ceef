"""Whether a merge was chosen on documents that a result is about to report on, as far as anything recorded says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from plam_eval.evaluation.records import Run
from plam_eval.evaluation.sweep import findings
from plam_eval.evaluation.sweep.folder import PLAN
from plam_eval.evaluation.sweep.grid import PLAIN
from plam_eval.harness.errors import EvaluationError

_VARIANT = re.compile(r"(_static|_lite|_no_mask|_cot|_format|_solution|_reasoning)+$")
"""Endings of tasks that ask the questions of another one, or some of them."""
_ABOVE = 5  # folders above a run's results in which a sweep's plan is looked for


def chosen_on(run: Run, task: str, spec: Mapping[str, Any] | None) -> tuple[list[str], list[str]]:
    """Why a task's result cannot be reported, and what cannot be checked.

    The documents of a scan stand in the evidence of its spec. Those of a sweep are told by the sweep's folder, where
    the run lies in one.

    Args:
        run: of a merge, or of the plain model.
        task: one of its tasks.
        spec: of the merge; None for the plain model, of which nothing was chosen.
    """
    if spec is None:
        return [], ["no merge at load: if its checkpoint holds one, what that was chosen on is not recorded here"]
    refused, unknown = [], []
    evidence = spec.get("evidence")
    documents = evidence.get("documents") if isinstance(evidence, Mapping) else None
    if isinstance(documents, Mapping) and documents:
        for scanned, count in documents.items():
            if same_questions(str(scanned), task, run):
                refused.append(
                    f"the plateau was scanned on {count} documents of {scanned}, so this score is not of unseen ones; "
                    "report on other tasks, or choose on others"
                )
    else:
        unknown.append("the spec records no scan, so whether its layers were chosen on these documents is not checked")
    more, open_ = _of_the_sweep(run, task)
    return [*refused, *more], [*unknown, *open_]


def same_questions(scanned: str, task: str, run: Run) -> bool:
    """Whether two tasks ask some of the same questions: variants of one, or of one dataset's one split.

    Args:
        scanned: name of one.
        task: name of the other.
        run: whose results have the configurations of its tasks.
    """
    if _VARIANT.sub("", scanned) == _VARIANT.sub("", task):
        return True
    configs = run.results["configs"]
    ours, theirs = (configs.get(name) or {} for name in (task, scanned))
    keys = ("dataset_path", "dataset_name", "test_split")
    return bool(ours.get("dataset_path")) and all(ours.get(key) == theirs.get(key) for key in keys)


def _of_the_sweep(run: Run, task: str) -> tuple[list[str], list[str]]:
    """What the sweep that a run lies in says."""
    folder = next((parent for parent in list(run.file.absolute().parents)[:_ABOVE] if (parent / PLAN).is_file()), None)
    if folder is None:
        return [], [
            "the run lies in no sweep's folder, so whether its weights were chosen on these documents is not checked"
        ]
    try:
        swept = findings.read_findings(folder)
    except (ValueError, EvaluationError, OSError) as error:
        return [
            f"lies in the folder of a sweep that cannot be read ({error}), so what it was chosen on is not known"
        ], []
    chosen = swept.selection
    if chosen is None or chosen.tried < 2:
        return [], []
    own = next((name for name, other in swept.runs.items() if other.file.resolve() == run.file.resolve()), None)
    if own == PLAIN or task not in chosen.chosen_on:
        return [], []
    if own != chosen.cell:
        return [], [f"one of {chosen.tried} merges that a sweep tried, and not the one that it chose"]
    where = f"on {chosen.chosen_on[task]} of these documents" if chosen.held_out else "on these very documents"
    return [
        f"the sweep in {folder} chose this merge among {chosen.tried} {where}; report on tasks, or evaluate documents, "
        "that it was not chosen on"
    ], []
