"""lmms-eval run folders, ours or not, as tidy pandas tables."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from plam_eval.evaluation.stats import is_binary, parsable_share, proportion_interval
from plam_eval.harness import tasks as known_tasks
from plam_eval.harness.errors import NoScoreError, RecordError
from plam_eval.harness.run_files import RECORD_KEY, read_results, result_files, samples_file
from plam_eval.harness.sample_lines import read_samples, silent_logs, texts_of
from plam_eval.harness.second_reading import read_again
from plam_eval.harness.task_row import Score
from plam_eval.layer_sets import layers_of, write_layers
from plam_eval.test_sets import vouched_note
from plam_eval.weight_ramps import read_weights

_MODE = re.compile(r"\((chat|simple)\)$")
_ROUNDED = 1e-4
"""How far the mean of the documents' scores (from 0 to 1) may be from a stock metric: tasks round to 4 or 5 digits."""

UNKNOWN_CLUSTERS = (
    "which documents share an image is not known here, so they count as independent; if some do, p is too small and "
    "intervals are too narrow"
)
_COLUMNS = ("task", "doc_id", "group", "prompt", "target", "answer", "score", "metric", "parsable", "read", "rescored")


@dataclass(frozen=True)
class Run:
    """One run read back from disk.

    `results` is the results JSON. `samples` has one row per document:

    - task, doc_id, prompt, target, answer;
    - score: as the task's row in `harness.tasks` says; NaN in tasks of `unscored`, and where a judge gave no verdict;
      metric: where it comes from;
    - parsable: whether a letter, or yes or no, can be read from the answer; None for free words and unknown forms;
    - read, rescored: what the second parser reads (`rescore`), None where it abstains, and 1 where that is right, 0
      where it is not; NaN where the form of the answer is not known;
    - group: the document's cluster, what documents that are not independent have in common: an image (GQA, MME, POPE),
      a subject (MMMU), a question (MMBench's rotations).

    `unscored` says of tasks why they have no score per document. `notes` are what a reader of the scores has to know.
    """

    file: Path
    results: dict[str, Any]
    samples: pd.DataFrame
    unscored: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Run({self.file}, {len(self.samples)} documents of {', '.join(self.tasks)})"

    @property
    def block(self) -> dict[str, Any]:
        """What our wrappers recorded; empty for a run of another model."""
        block: dict[str, Any] = self.results.get(RECORD_KEY) or {}
        return block

    @property
    def tasks(self) -> list[str]:
        """The names of its tasks, in the order of the results."""
        return list(self.results["configs"])

    @property
    def mode(self) -> str | None:
        """ "chat" or "simple"; None where the results do not say."""
        backend = _MODE.search(str(self.config.get("model_backend") or ""))
        return self.block.get("mode") or (backend.group(1) if backend else None)

    @property
    def config(self) -> dict[str, Any]:
        """How lmms-eval was called, in its own record."""
        return self.results.get("config") or {}

    def accuracy(self) -> pd.Series:
        """Mean score by task, in the order of the results."""
        return self.samples.groupby("task", sort=False)["score"].mean()

    def mean_score(self) -> float:
        """Mean over tasks of their mean scores, without those of no score; NaN where that is all."""
        return float(self.accuracy().mean())

    def only(self, tasks: Iterable[str]) -> Run:
        """The run with some of its tasks.

        Args:
            tasks: their names.

        Raises:
            RecordError: it does not have one of them.
        """
        tasks = list(tasks)
        if missing := [task for task in tasks if task not in self.tasks]:
            raise RecordError(f"{self.file} has no task {', '.join(missing)}; it has {', '.join(self.tasks)}")
        configs = {task: config for task, config in self.results["configs"].items() if task in tasks}
        samples = self.samples[self.samples["task"].isin(tasks)].reset_index(drop=True)
        results = {**self.results, "configs": configs}
        if self.block and len(configs) < len(self.tasks):
            # Its generation settings are those of all tasks together; which were for which, it does not say.
            results[RECORD_KEY] = {**self.block, "generation": {}}
        unscored = {task: why for task, why in self.unscored.items() if task in tasks}
        notes = tuple(note for note in self.notes if note.partition(":")[0] in tasks)
        return replace(self, results=results, samples=samples, unscored=unscored, notes=notes)

    @property
    def higher_is_better(self) -> dict[str, Mapping[str, Any]]:
        """By task and metric, whether a higher value is better, as far as the results say it."""
        stored = self.results.get("higher_is_better") or {}
        return {task: by_metric or {} for task, by_metric in stored.items()}

    @cached_property
    def directions(self) -> dict[str, int]:
        """By task: 1 where a higher score is better, -1 where a lower one is."""
        metrics = {str(task): rows.iloc[0] for task, rows in self.samples.groupby("task", sort=False)["metric"]}
        stored = self.higher_is_better
        return {task: -1 if stored.get(task, {}).get(metric) is False else 1 for task, metric in metrics.items()}

    def summary(self) -> dict[str, Any]:
        """One row of the table of runs: what was evaluated, and by what."""
        config, block = self.config, self.block
        provenance = block.get("provenance") or {}
        spec = provenance.get("spec") or {}
        versions = provenance.get("versions") or {}
        weights = read_weights(spec["weights"]) if spec.get("weights") else None
        first = weights.at(0, (0,)) if weights else None  # of a ramp, in the first of its layers
        return {
            "model": block.get("wrapper") or config.get("model") or self.results.get("model_source"),
            "pretrained": (provenance.get("checkpoint") or {}).get("name") or self.results.get("model_name"),
            "model_args": config.get("model_args"),
            "plain": block.get("plain"),
            "digest": provenance.get("digest"),
            "model_commit": (provenance.get("checkpoint") or {}).get("commit"),
            "base_model": spec.get("base_model"),
            "base_commit": (provenance.get("base") or {}).get("commit"),
            "layers": write_layers(layers_of(spec)) if spec else None,
            "modules": "+".join(spec["modules"]) if spec else None,
            "weights": weights.tell() if weights else None,
            "model_weight": first.model if first else None,
            "base_weight": first.base_model if first else None,
            "rule": spec.get("rule"),
            "documents": len(self.samples),
            "accuracy": self.mean_score(),
            "mode": self.mode,
            "dtype": block.get("dtype"),
            "limit": config.get("limit"),
            "offset": config.get("offset"),
            "sample": _number((config.get("sample") or {}).get("size")),
            "seed": _number((config.get("sample") or {}).get("seed")),
            "gen_kwargs": config.get("gen_kwargs") or None,
            "date": self.results.get("date"),
            "seconds": _number(self.results.get("total_evaluation_time_seconds")),
            "lmms_eval": versions.get("lmms-eval") or _release(self.results.get("lmms_eval_version")),
            "plam_eval": versions.get("plam-eval"),
            "transformers": versions.get("transformers"),
            "torch": versions.get("torch"),
            "commit": provenance.get("commit"),
            "file": str(self.file),
        }


class Tables(NamedTuple):
    """Tidy tables of some runs; `run` is the name a run was given.

    Attributes:
        runs: one row per run, as `Run.summary`.
        tasks: per run and task: documents, groups (so many clusters), accuracy, low and high (95 % Wilson interval,
            where every score is right or wrong), parsable.
        metrics: per run, task and stock metric: its value, on the task's own scale. One that a task has of several
            filters is named with its filter ("exact_match, strict-match").
        samples: per run and document, as `Run.samples`.
    """

    runs: pd.DataFrame
    tasks: pd.DataFrame
    metrics: pd.DataFrame
    samples: pd.DataFrame

    def parsable_by_run(self) -> pd.Series:
        """By run, the mean over its tasks of the share of parsable answers; NaN where no task asks for a form."""
        return self.tasks.groupby("run")["parsable"].mean()


def tables(runs: dict[str, Run]) -> Tables:
    """Tables of some runs.

    Args:
        runs: by the name that the tables give them.
    """
    by_task, metrics, samples = [], [], []
    for name, run in runs.items():
        samples.append(run.samples.assign(run=name))
        for task, rows in run.samples.groupby("task", sort=False):
            low, high, scores = math.nan, math.nan, rows["score"].dropna()
            if len(scores) and is_binary(scores):
                low, high = proportion_interval(int(scores.sum()), len(scores))
            counts = {"documents": len(rows), "groups": rows["group"].nunique(), "accuracy": rows["score"].mean()}
            share = parsable_share(rows["parsable"])
            by_task.append({"run": name, "task": task, **counts, "low": low, "high": high, "parsable": share})
        for task in run.tasks:
            stored = run.results["results"].get(task, {})
            reported = {tuple(key.rpartition(",")[::2]): value for key, value in stored.items() if "," in key}
            several = Counter(metric for metric, _ in reported)
            metrics += [
                {
                    "run": name,
                    "task": task,
                    "metric": f"{metric}, {filter_name}" if several[metric] > 1 else metric,
                    "value": float(value),
                }
                for (metric, filter_name), value in reported.items()
                if "_stderr" not in metric and isinstance(value, (int, float))
            ]
    return Tables(
        pd.DataFrame([{"run": name, **run.summary()} for name, run in runs.items()]),
        pd.DataFrame(by_task),
        pd.DataFrame(metrics, columns=["run", "task", "metric", "value"]),
        pd.concat(samples, ignore_index=True) if samples else pd.DataFrame(),
    )


def read_run(path: str | Path, unreadable: dict[str, str] | None = None) -> Run:
    """Read a results JSON, or the newest one below a folder, with its sample logs.

    Args:
        path: of the results JSON, of its folder, or of one above it.
        unreadable: where given, tasks whose sample logs cannot be read are left out of the run and put in here, with
            the reason.

    Raises:
        RecordError: there is none, or its samples are missing (lmms-eval writes them with `--log_samples`) or damaged.
    """
    file = _newest(Path(path))
    results = read_results(file)
    configs = {task: config or {} for task, config in results["configs"].items()}
    rows: dict[str, list[dict[str, Any]]] = {}
    are_told: dict[Path, bool] = {}  # by log that has lines: whether they say what answered, which all or none do
    unscored: dict[str, str] = {}
    notes: list[str] = []
    for task, config in list(configs.items()):
        if "/" in task or "\0" in task:
            raise RecordError(f"{file}: found a task named {task!r:.80}, expected the name of a task of lmms-eval")
        try:
            samples = _samples_of(file, task, config, results)
        except (RecordError, OSError) as error:
            if unreadable is None:
                raise
            unreadable[task] = str(error)
            del results["configs"][task]
            continue
        if samples:
            are_told[samples_file(file, task)] = samples[0].get("digest") is not None
        try:
            task_rows = [sample_row(task, sample, known_tasks.score_of_task(task, config)) for sample in samples]
            notes += _differing_mean(task, config, task_rows, results)
        except NoScoreError as error:
            task_rows = [sample_row(task, sample, None) for sample in samples]
            unscored[task] = str(error)
        if (note := vouched_note(task, config)) is not None:
            notes.append(note)
        if task not in unscored and not all(known_tasks.cluster_of(task, sample)[1] for sample in samples):
            notes.append(f"{task}: {UNKNOWN_CLUSTERS}")
        rows[task] = task_rows
    silent = silent_logs(results, are_told)
    for task in [task for task in rows if samples_file(file, task) in silent]:
        why = silent[samples_file(file, task)]
        if unreadable is None:
            raise why
        unreadable[task] = str(why)
        del results["configs"][task], rows[task]
        unscored.pop(task, None)
        notes = [note for note in notes if note.partition(":")[0] != task]
    notes += [
        f"{task}: scores are those of its filter {one}; {', '.join(others)}: not mixed in"
        for task, (one, others) in known_tasks.headline_filters(configs).items()
        if task in rows and task not in unscored
    ]
    every_row = [row for task_rows in rows.values() for row in task_rows]
    return Run(file, results, pd.DataFrame(every_row, columns=list(_COLUMNS)), unscored, tuple(notes))


def _newest(path: Path) -> Path:
    if not path.exists():
        raise RecordError(f"{path}: no such folder")
    files = [path] if path.is_file() else result_files(path)
    if not files:
        raise RecordError(f"no *_results.json below {path}: expected the --output_path of an lmms-eval run")
    return files[-1]


def _samples_of(file: Path, task: str, config: Mapping[str, Any], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    log = samples_file(file, task)
    if not log.is_file():
        raise RecordError(f"{file} has results of {task} but there is no {log.name}: run again with --log_samples")
    return read_samples(log, results, task, known_tasks.headline_filter(task, config))


def sample_row(task: str, sample: Mapping[str, Any], score: Score | None) -> dict[str, Any]:
    """A line of a sample log as a row of `Run.samples`.

    Args:
        task: its name.
        sample: the line.
        score: how the task is scored; None gives no score.

    Raises:
        NoScoreError: the line does not hold what `score` reads.
    """
    prompt, target, answer = texts_of(sample)
    again = read_again(task, sample, answer)
    return {
        "task": task,
        "doc_id": sample["doc_id"],
        "group": known_tasks.cluster_of(task, sample)[0],
        "prompt": prompt,
        "target": target,
        "answer": answer,
        "score": score.of(sample) if score is not None else math.nan,
        "metric": score.metric if score is not None else None,
        "parsable": again.parsable,
        "read": again.read,
        "rescored": again.score,
    }


def clusters_by_content(samples: pd.DataFrame) -> pd.Series:
    """By document, the cluster of those that share its image or question. Sharing a subject (MMMU) makes none.

    Args:
        samples: as `Run.samples`, or its columns `doc_id` and `group`.
    """
    of_subject = samples["group"].str.startswith("subject ")
    return samples["group"].mask(of_subject, "document " + samples["doc_id"].astype(str))


def _differing_mean(
    task: str, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
) -> list[str]:
    """What to say where the documents' scores do not come to the stock metric that they should come to."""
    score = known_tasks.score_of_task(task, config)
    stored = (results.get("results") or {}).get(task) or {}
    value = stored.get(f"{score.stock},{known_tasks.headline_filter(task, config)}")
    judged = [row for row in rows if not math.isnan(row["score"])]
    notes = []
    if len(judged) < len(rows):
        notes.append(f"{task}: {len(rows) - len(judged)} of {len(rows)} documents have no score; the judge gave none")
    if not judged or not isinstance(value, (int, float)) or isinstance(value, bool):
        return notes
    ours = score.scale * score.aggregate([row["score"] for row in judged], [row["group"] for row in judged])
    spread = abs(value) if math.isinf(score.high) else score.high - score.low
    if not abs(ours - value) <= _ROUNDED * score.scale * max(1.0, spread):
        notes.append(
            f"{task}: the documents' {score.metric} comes to {ours:.5g}, but {score.stock} in the results is "
            f"{value:.5g}: what is compared here is not what the task reports"
        )
    return notes


def _release(version: Any) -> str | None:
    """lmms-eval's version where its results name one: they also name the branch of whatever folder it was called in."""
    return str(version) if re.match(r"\d+\.", str(version)) else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
