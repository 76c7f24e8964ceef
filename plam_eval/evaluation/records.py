"""lmms-eval run folders, ours or not, as tidy pandas tables, and whether two runs may be compared at all."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from plam_eval.errors import PlamError
from plam_eval.evaluation import harness

_LETTER = re.compile(r"^\(?([A-H])(?![A-Za-z0-9])")
_YES_NO = re.compile(r"^(yes|no)(?![a-z])", re.IGNORECASE)
_MODE = re.compile(r"\((chat|simple)\)$")
_ROTATED = 1_000_000  # MMBench adds multiples of it to the index of a question whose choices it has rotated
_NO_SCORE = {"doc_id", "target", "doc_hash"}  # of a sample log, what may be a number and is no score

# Of a results file's task configuration, what decides how the task is asked and answered. Functions are logged with
# their address in memory, so they cannot be compared; prompts are.
_TASK_SETTINGS = ("generation_kwargs", "repeats", "output_type", "num_fewshot")


class RecordError(PlamError, ValueError):
    """A folder that holds no readable run; the message names the file and what was expected in it."""


class IncomparableError(PlamError, ValueError):
    """Two runs that do not answer the same questions in the same way. `problems` holds every difference."""

    def __init__(self, first: str, second: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"{first} and {second} cannot be compared:\n" + "\n".join(f"  - {p}" for p in problems))


@dataclass(frozen=True)
class Run:
    """One run read back from disk.

    `results` is the results JSON. `samples` has one row per document:

    - task, doc_id, prompt, target, answer;
    - score: 0 to 1 in the nine tasks, NaN where the log holds nothing that can be scored; metric: where it comes from;
    - parsable: whether the answer has the form its target asks for: a letter, yes or no; None for tasks of free words;
    - group: what documents that are not independent have in common: an image (GQA, MME, POPE), a subject (MMMU), a
      question (MMBench's rotations).
    """

    file: Path
    results: dict[str, Any]
    samples: pd.DataFrame

    @property
    def block(self) -> dict[str, Any]:
        """What our wrappers recorded; empty for a run of another model."""
        found: dict[str, Any] = self.results.get(harness.RECORD_KEY) or {}
        return found

    @property
    def tasks(self) -> list[str]:
        return list(self.results["configs"])

    @property
    def mode(self) -> str | None:
        """ "chat" or "simple"; None where the results do not say."""
        found = _MODE.search(str(self._config.get("model_backend") or ""))
        return self.block.get("mode") or (found.group(1) if found else None)

    @property
    def _config(self) -> dict[str, Any]:
        return self.results.get("config") or {}

    def accuracy(self) -> pd.Series:
        """Mean score by task, in the order of the results."""
        return self.samples.groupby("task", sort=False)["score"].mean()

    def only(self, tasks: Iterable[str]) -> Run:
        """The run with some of its tasks. Raises RecordError for one that it does not have."""
        tasks = list(tasks)
        if missing := [task for task in tasks if task not in self.tasks]:
            raise RecordError(f"{self.file} has no task {', '.join(missing)}; it has {', '.join(self.tasks)}")
        configs = {task: config for task, config in self.results["configs"].items() if task in tasks}
        samples = self.samples[self.samples["task"].isin(tasks)].reset_index(drop=True)
        results = {**self.results, "configs": configs}
        if self.block and len(configs) < len(self.tasks):
            # Its generation settings are those of all tasks together; which were for which, it does not say.
            results[harness.RECORD_KEY] = {**self.block, "generation": {}}
        return Run(self.file, results, samples)

    @cached_property
    def directions(self) -> dict[str, int]:
        """By task: 1 where a higher score is better, -1 where a lower one is."""
        known = self.results.get("higher_is_better") or {}
        metrics = {str(task): rows.iloc[0] for task, rows in self.samples.groupby("task", sort=False)["metric"]}
        return {task: -1 if (known.get(task) or {}).get(metric) is False else 1 for task, metric in metrics.items()}

    def summary(self) -> dict[str, Any]:
        """One row of the table of runs: what was evaluated, and by what."""
        config, block = self._config, self.block
        provenance = block.get("provenance") or {}
        spec = provenance.get("spec") or {}
        versions = provenance.get("versions") or {}
        layers, weights = spec.get("layer_range"), spec.get("weights") or {}
        return {
            "model": block.get("wrapper") or config.get("model") or self.results.get("model_source"),
            "pretrained": (provenance.get("checkpoint") or {}).get("name") or self.results.get("model_name"),
            "model_args": config.get("model_args"),
            "plain": block.get("plain"),
            "digest": provenance.get("digest"),
            "base_model": spec.get("base_model"),
            "layers": f"{layers[0]}:{layers[1]}" if layers else None,
            "modules": "+".join(spec["modules"]) if spec else None,
            "model_weight": weights.get("model"),
            "base_weight": weights.get("base_model"),
            "rule": spec.get("rule"),
            "documents": len(self.samples),
            "accuracy": self.accuracy().mean(),
            "mode": self.mode,
            "dtype": block.get("dtype"),
            "limit": config.get("limit"),
            "offset": config.get("offset"),
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
        tasks: per run and task: documents, groups, accuracy, low and high (95 % Wilson interval, where every score is
            right or wrong), parsable.
        metrics: per run, task and stock metric: its value, on the task's own scale.
        samples: per run and document, as `Run.samples`.
    """

    runs: pd.DataFrame
    tasks: pd.DataFrame
    metrics: pd.DataFrame
    samples: pd.DataFrame


def tables(runs: dict[str, Run]) -> Tables:
    """Tables of runs by name."""
    from plam_eval.evaluation.stats import is_binary, proportion_interval

    by_task, metrics, samples = [], [], []
    for name, run in runs.items():
        samples.append(run.samples.assign(run=name))
        for task, rows in run.samples.groupby("task", sort=False):
            low, high = (
                proportion_interval(int(rows["score"].sum()), len(rows))
                if is_binary(rows["score"])
                else (math.nan, math.nan)
            )
            counts = {"documents": len(rows), "groups": rows["group"].nunique(), "accuracy": rows["score"].mean()}
            row = {"run": name, "task": task, **counts, "low": low, "high": high, "parsable": share(rows["parsable"])}
            by_task.append(row)
        for task in run.tasks:
            found = run.results["results"].get(task, {})
            metrics += [
                {"run": name, "task": task, "metric": key.partition(",")[0], "value": float(value)}
                for key, value in found.items()
                if "," in key and "_stderr" not in key and isinstance(value, (int, float))
            ]
    return Tables(
        pd.DataFrame([{"run": name, **run.summary()} for name, run in runs.items()]),
        pd.DataFrame(by_task),
        pd.DataFrame(metrics, columns=["run", "task", "metric", "value"]),
        pd.concat(samples, ignore_index=True) if samples else pd.DataFrame(),
    )


def share(parsable: pd.Series) -> float:
    """Share of true among what is true or false; NaN where no answer has a form to keep."""
    known = parsable.dropna()
    return float(known.astype(float).mean()) if len(known) else math.nan


def result_files(folder: Path) -> list[Path]:
    """Results JSONs below `folder`, oldest first, without the files of like names that tasks put into `submissions`."""
    files = [file for file in folder.rglob("*_results.json") if file.parent.name != "submissions"]
    return sorted(files, key=lambda file: file.name)


def read_run(path: str | Path) -> Run:
    """Read a results JSON, or the newest one below a folder, with its sample logs.

    Raises RecordError when there is none, or its samples are missing (lmms-eval writes them with `--log_samples`).
    """
    path = Path(path)
    files = [path] if path.is_file() else result_files(path)
    if not files:
        raise RecordError(f"no *_results.json below {path}: expected the --output_path of an lmms-eval run")
    file = files[-1]
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        names = list(results["configs"])
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{file} is not a results file of lmms-eval: {error!r}") from error
    date = file.name.removesuffix("_results.json")
    rows: list[dict[str, Any]] = []
    for task in names:
        log = file.with_name(f"{date}_samples_{task}.jsonl")
        if not log.is_file():
            raise RecordError(f"{file} has results of {task} but there is no {log.name}: run again with --log_samples")
        lines, seen = log.read_bytes().splitlines(), set[Any]()
        for number, line in enumerate(lines, start=1):
            try:
                found = row(task, json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RecordError(f"{log}, line {number} is not a sample of lmms-eval: {error!r}") from error
            if found["doc_id"] in seen:
                raise RecordError(
                    f"{log}, line {number}: document {found['doc_id']} a second time; two runs that started in one "
                    "second write into one log: run again"
                )
            seen.add(found["doc_id"])
            rows.append(found)
    return Run(file, results, pd.DataFrame(rows, columns=list(_COLUMNS)))


_COLUMNS = ("task", "doc_id", "group", "prompt", "target", "answer", "score", "metric", "parsable")


def row(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    """A line of a sample log as a row of `Run.samples`."""
    answer = sample["filtered_resps"]
    while isinstance(answer, list):
        answer = answer[0] if answer else ""
    answer, target, prompt = (_storable(str(text)) for text in (answer, sample["target"], sample.get("input", "")))
    parsable: bool | None = None
    if re.fullmatch(r"[A-H]", target):
        parsable = bool(_LETTER.match(answer.strip()))
    elif target.lower() in ("yes", "no"):
        parsable = bool(_YES_NO.match(answer.strip()))
    metric, score = _score(sample)
    return {
        "task": task,
        "doc_id": sample["doc_id"],
        "group": _group(sample),
        "prompt": prompt,
        "target": target,
        "answer": answer,
        "score": score,
        "metric": metric,
        "parsable": parsable,
    }


def _storable(text: str) -> str:
    """Half a surrogate pair, which a log may hold and no file of text, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _score(sample: dict[str, Any]) -> tuple[str | None, float]:
    """A document's score, from whichever of the forms in use its task logs it in, and the metric's name."""
    for metric in harness.DOCUMENT_SCORES:
        if metric in sample:
            return metric, float(harness.DOCUMENT_SCORES[metric](sample[metric]))
    for metric, value in sample.items():
        if isinstance(value, dict):
            if isinstance(value.get("score"), (int, float)):
                return metric, float(value["score"])
            if "pred" in value and "answer" in value:
                return metric, float(str(value["pred"]).strip().lower() == str(value["answer"]).strip().lower())
    for metric, value in sample.items():
        if metric not in _NO_SCORE and isinstance(value, (int, float)):
            return metric, float(value)
    return None, math.nan


def _group(sample: dict[str, Any]) -> str:
    """What a document shares with others: our log says it (`group`), or the task's own entry does."""
    if isinstance(sample.get("group"), str):
        return f"image {sample['group']}"
    for metric, value in sample.items():
        if isinstance(value, dict):
            if metric == "gpt_eval_score" and "index" in value:  # MMBench asks again with its choices rotated
                return f"question {int(value['index']) % _ROTATED}"
            if "subdomain" in value:  # MMMU
                return f"subject {value['subdomain']}"
            if "question_id" in value and "category" in value and str(value["question_id"]).count("/"):  # MME
                return f"image {value['question_id']}"
    return f"document {sample['doc_id']}"


def _release(version: Any) -> str | None:
    """lmms-eval's version where its results name one: they also name the branch of whatever folder it was called in."""
    return str(version) if re.match(r"\d+\.", str(version)) else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


# --- may two runs be compared? ----------------------------------------------------------------------------------------


def check_comparable(first: Run, second: Run, names: Sequence[str] = ("the first run", "the second run")) -> list[str]:
    """What a reader should know before trusting a comparison, such as another dtype or version.

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
        values = [run.results.get(key) or run._config.get(key) or None for run in (first, second)]
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
    engines = [found[0] for found in used if found]
    if len(set(engines)) == 1 and None not in used and used[0] != used[1]:
        problems.append(f"generation settings in use: {used[0]} and {used[1]}")
    if problems:
        raise IncomparableError(str(names[0]), str(names[1]), problems)
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
    shown = [{k: v for k, v in entry.items() if k != "calls"} for entry in generation["settings"]]
    engine = "vllm" if any("max_tokens" in entry for entry in shown) else "hf"
    return [engine, *sorted({json.dumps(entry, sort_keys=True) for entry in shown})]


def _warnings(first: Run, second: Run) -> list[str]:
    found = []
    one, other = first.summary(), second.summary()
    for key in ("model", "pretrained", "dtype", "lmms_eval", "transformers", "torch"):
        if one[key] != other[key] and None not in (one[key], other[key]):
            found.append(f"{key} differs: {one[key]} and {other[key]}")
    versions = [run.results.get("versions") or {} for run in (first, second)]
    found += [
        f"version of {task} differs: {versions[0].get(task)} and {versions[1].get(task)}"
        for task in first.tasks
        if versions[0].get(task) != versions[1].get(task)
    ]
    mine, theirs = (run.block.get("arguments") for run in (first, second))
    if None not in (mine, theirs) and mine != theirs:
        found.append(f"model arguments differ: {mine} and {theirs}")
    return found
