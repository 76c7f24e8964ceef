"""Whether two runs may be compared, and which of their tasks and documents: those asked alike, and scored in all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from plam_eval.errors import ProblemsError
from plam_eval.evaluation.records import UNKNOWN_CLUSTERS, Run
from plam_eval.harness.errors import RecordError

LEFT_OUT = "left out, no score per document is known"

# Of a results file's task configuration, what decides how the task is asked and answered. Functions are logged with
# their address in memory, so they cannot be compared; prompts are.
_SAMPLING = ("temperature", "top_p", "top_k")
"""Generation settings that say nothing where nothing is drawn; some wrappers hand them over all the same."""
_TASK_SETTINGS = ("generation_kwargs", "repeats", "output_type", "num_fewshot")


class IncomparableError(ProblemsError, ValueError):
    """Two runs that do not answer the same questions in the same way; `origin` names them, `problems` what differs."""

    def _heading(self) -> str:
        return f"{self.origin} cannot be compared:"


def check_comparable(first: Run, second: Run, names: Sequence[str] = ("the first run", "the second run")) -> list[str]:
    """What a reader should know before trusting a comparison, such as another dtype or version.

    Args:
        first: a run.
        second: the one to be compared with it.
        names: what messages call them.

    Raises:
        IncomparableError: tasks, documents, prompts, targets, mode or generation settings differ. Its message lists
            every difference.
    """
    problems: list[str] = []
    for index, (run, other) in enumerate(((first, second), (second, first))):
        if only := [task for task in run.tasks if task not in other.tasks]:
            problems.append(f"tasks: {', '.join(only)} in {names[index]} only; compare the others with --tasks")
    if first.mode != second.mode and None not in (first.mode, second.mode):
        problems.append(f"mode: {first.mode} and {second.mode}; both have to be chat or both simple")
    for key in ("gen_kwargs", "system_instruction", "chat_template"):
        values = [run.results.get(key) or run.config.get(key) or None for run in (first, second)]
        if values[0] != values[1]:
            problems.append(f"{key}: {values[0]!r} and {values[1]!r}")
    for task in (task for task in first.tasks if task in second.tasks):
        configs = [run.results["configs"][task] or {} for run in (first, second)]
        problems += [
            f"{task}, {key}: {configs[0].get(key)!r} and {configs[1].get(key)!r}"
            for key in _TASK_SETTINGS
            if configs[0].get(key) != configs[1].get(key)
        ]
        problems += _differing_documents(task, first.samples, second.samples, names)
    used = [_used_settings(run) for run in (first, second)]
    engines = [settings[0] for settings in used if settings]
    if len(set(engines)) == 1 and None not in used and used[0] != used[1]:
        problems.append(f"generation settings in use: {used[0]} and {used[1]}")
    if problems:
        raise IncomparableError(*problems, origin=f"{names[0]} and {names[1]}")
    warnings = _warnings(first, second)
    if len(set(engines)) == 2:
        warnings.append(f"engine differs: {' and '.join(engines)}; which settings each used is not compared")
    return warnings


def _differing_documents(task: str, first: pd.DataFrame, second: pd.DataFrame, names: Sequence[str]) -> list[str]:
    columns = ["doc_id", "prompt", "target"]
    one, other = (samples.loc[samples["task"] == task, columns] for samples in (first, second))
    both = one.merge(other, on="doc_id", how="outer", suffixes=("_first", "_second"), indicator=True)
    problems = []
    for side, name in (("left_only", names[0]), ("right_only", names[1])):
        alone = both[both["_merge"] == side]
        if len(alone):
            problems.append(f"{task}: {len(alone)} documents in {name} only, such as {alone['doc_id'].iloc[0]}")
    both = both[both["_merge"] == "both"]
    for column in ("prompt", "target"):
        changed = both[both[f"{column}_first"] != both[f"{column}_second"]]
        if len(changed):
            values = " and ".join(repr(str(changed[f"{column}_{side}"].iloc[0])[:80]) for side in ("first", "second"))
            problems.append(
                f"{task}: the {column}s of {len(changed)} documents differ, such as that of document "
                f"{changed['doc_id'].iloc[0]}: {values}"
            )
    return problems


def _used_settings(run: Run) -> list[str] | None:
    """The engine, and the generation settings that our wrappers saw in use; None where not those of every document.

    vLLM and HF name them differently, so runs through different engines are judged by the tasks' settings alone.
    """
    generation = run.block.get("generation") or {}
    if not generation.get("calls") or generation["calls"] < len(run.samples):  # answers came from the response cache
        return None
    shown = [
        {k: v for k, v in entry.items() if k != "calls" and not (k in _SAMPLING and entry.get("do_sample") is False)}
        for entry in generation["settings"]
    ]
    engine = "vllm" if any("max_tokens" in entry for entry in shown) else "hf"
    return [engine, *sorted({json.dumps(entry, sort_keys=True) for entry in shown})]


def _warnings(first: Run, second: Run) -> list[str]:
    warnings = []
    one, other = first.summary(), second.summary()
    for key in ("model", "pretrained", "model_commit", "dtype", "lmms_eval", "transformers", "torch"):
        if one[key] != other[key] and None not in (one[key], other[key]):
            warnings.append(f"{key} differs: {one[key]} and {other[key]}")
    versions = [run.results.get("versions") or {} for run in (first, second)]
    warnings += [
        f"version of {task} differs: {versions[0].get(task)} and {versions[1].get(task)}"
        for task in first.tasks
        if versions[0].get(task) != versions[1].get(task)
    ]
    mine, theirs = (run.block.get("arguments") for run in (first, second))
    if None not in (mine, theirs) and mine != theirs:
        warnings.append(f"model arguments differ: {mine} and {theirs}")
    return warnings


def only_scored(runs: Mapping[str, Run]) -> tuple[dict[str, Run], list[str]]:
    """Runs with only what can be compared: tasks that are scored by document in all of them, and documents that are.

    Args:
        runs: by name.

    Returns:
        The runs, and what was left out, in words.

    Raises:
        RecordError: nothing is left.
    """
    notes: list[str] = []
    reasons: dict[str, str] = {}
    for name, run in runs.items():
        for task, why in run.unscored.items():
            reasons.setdefault(task, f"{task}: {LEFT_OUT} ({name}: {why})")
    notes += reasons.values()
    kept = {name: run.only(task for task in run.tasks if task not in reasons) for name, run in runs.items()}
    without = pd.concat(
        [run.samples.loc[run.samples["score"].isna(), ["task", "doc_id"]] for run in kept.values()]
    ).drop_duplicates()
    for task, rows in without.groupby("task", sort=False):
        notes.append(f"{task}: {len(rows)} documents left out that a judge came to no verdict on in some run")
    if len(without):
        keys = pd.MultiIndex.from_frame(without)
        kept = {name: _without(run, keys) for name, run in kept.items()}
    if not any(len(run.samples) for run in kept.values()):
        raise RecordError("nothing can be compared:\n" + "\n".join(f"  - {note}" for note in notes))
    return kept, notes


def _without(run: Run, documents: pd.MultiIndex) -> Run:
    samples = run.samples[~pd.MultiIndex.from_frame(run.samples[["task", "doc_id"]]).isin(documents)]
    tasks = set(samples["task"])
    smaller = run.only(task for task in run.tasks if task in tasks)
    return replace(smaller, samples=samples.reset_index(drop=True))


def mixed_directions(directions: Mapping[str, int]) -> list[str]:
    """What to say of a mean over tasks in some of which a lower score is better.

    Args:
        directions: as `Run.directions`.
    """
    if len(set(directions.values())) < 2:
        return []
    falling = ", ".join(task for task, direction in directions.items() if direction < 0)
    return [f"lower is better in {falling}, higher in the others: their mean says nothing"]


def notes_of(runs: Mapping[str, Run]) -> list[str]:
    """The notes of some runs, each once; with the names of those it is of, unless it is of all.

    Args:
        runs: by name.
    """
    names: dict[str, list[str]] = {}
    for name, run in runs.items():
        for note in run.notes:
            names.setdefault(note, []).append(name)
    return [
        note if len(of) == len(runs) else f"{', '.join(of[:3])}{' and others' if len(of) > 3 else ''}: {note}"
        for note, of in join_notes(names).items()
    ]


def join_notes(notes: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Notes and the names of the runs they are of; what is said of several tasks of the same runs is said once.

    Args:
        notes: by note, the names of the runs it is of.
    """
    tasks: dict[tuple[str, ...], list[str]] = {}
    for note, names in notes.items():
        if note.endswith(f": {UNKNOWN_CLUSTERS}"):
            tasks.setdefault(tuple(names), []).append(note.partition(":")[0])
    whole = {note: names for note, names in notes.items() if not note.endswith(f": {UNKNOWN_CLUSTERS}")}
    return whole | {f"{', '.join(of)}: {UNKNOWN_CLUSTERS}": list(names) for names, of in tasks.items()}
