"""lmms-eval run folders, ours or not, as tidy pandas tables, and whether two runs may be compared at all."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from plam_eval.errors import DamagedFileError, PlamError, quoted
from plam_eval.evaluation import harness
from plam_eval.files import LARGEST_JSON, read_json
from plam_eval.harness import tasks as known_tasks
from plam_eval.harness.tasks import NoScoreError, Score

_MODE = re.compile(r"\((chat|simple)\)$")
_ROUNDED = 1e-4
"""How far the mean of the documents' scores (from 0 to 1) may be from a stock metric: tasks round to 4 or 5 digits."""

LEFT_OUT = "left out, no score per document is known"
UNKNOWN_CLUSTERS = (
    "which documents share an image is not known here, so they count as independent; if some do, p is too small and "
    "intervals are too narrow"
)

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
    - score: as the task's row in `harness.tasks` says; NaN in tasks of `unscored`, and where a judge gave no verdict;
      metric: where it comes from;
    - parsable: whether the answer has the form its target asks for: a letter, yes or no; None for tasks of free words;
    - group: what documents that are not independent have in common: an image (GQA, MME, POPE), a subject (MMMU), a
      question (MMBench's rotations).

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
        unscored = {task: why for task, why in self.unscored.items() if task in tasks}
        notes = tuple(note for note in self.notes if note.partition(":")[0] in tasks)
        return replace(self, results=results, samples=samples, unscored=unscored, notes=notes)

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
            "model_commit": (provenance.get("checkpoint") or {}).get("commit"),
            "base_model": spec.get("base_model"),
            "base_commit": (provenance.get("base") or {}).get("commit"),
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
            low, high, scores = math.nan, math.nan, rows["score"].dropna()
            if len(scores) and is_binary(scores):
                low, high = proportion_interval(int(scores.sum()), len(scores))
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
    if not path.exists():
        raise RecordError(f"{path}: no such folder")
    files = [path] if path.is_file() else result_files(path)
    if not files:
        raise RecordError(f"no *_results.json below {path}: expected the --output_path of an lmms-eval run")
    file = files[-1]
    results = _read_results(file)
    configs = {task: config or {} for task, config in results["configs"].items()}
    date = file.name.removesuffix("_results.json")
    rows: list[dict[str, Any]] = []
    unscored: dict[str, str] = {}
    notes: list[str] = []
    for task, config in configs.items():
        if "/" in task or "\0" in task:
            raise RecordError(f"{file}: found a task named {task!r:.80}, expected the name of a task of lmms-eval")
        log = file.with_name(f"{date}_samples_{task}.jsonl")
        if not log.is_file():
            raise RecordError(f"{file} has results of {task} but there is no {log.name}: run again with --log_samples")
        samples = _read_log(log, config, _expected_documents(results, task))
        try:
            task_rows = [row(task, sample, known_tasks.score_of_task(task, config)) for sample in samples]
            notes += _differing_mean(task, config, task_rows, results)
        except NoScoreError as error:
            task_rows = [row(task, sample, None) for sample in samples]
            unscored[task] = str(error)
        if task not in unscored and not all(known_tasks.cluster_of(task, sample)[1] for sample in samples):
            notes.append(f"{task}: {UNKNOWN_CLUSTERS}")
        rows += task_rows
    return Run(file, results, pd.DataFrame(rows, columns=list(_COLUMNS)), unscored, tuple(notes))


_TEXT, _NUMBER, _LIST, _OBJECT = (str,), (int, float), (list,), (dict,)  # or null
_KINDS: dict[str, tuple[type, ...]] = {
    "configs/*": _OBJECT,
    "configs/*/metric_list": _LIST,
    "results/*": _OBJECT,
    "higher_is_better/*": _OBJECT,
    "n-samples/*": _OBJECT,
    "versions": _OBJECT,
    "config/resolved_cli_args": _OBJECT,
    "config/limit": _NUMBER,
    "config/offset": _NUMBER,
    f"{harness.RECORD_KEY}/provenance/versions": _OBJECT,
    f"{harness.RECORD_KEY}/provenance/checkpoint": _OBJECT,
    f"{harness.RECORD_KEY}/provenance/base": _OBJECT,
    f"{harness.RECORD_KEY}/provenance/spec/modules/[]": _TEXT,
    f"{harness.RECORD_KEY}/provenance/spec/layer_range/[]": _NUMBER,
    f"{harness.RECORD_KEY}/provenance/spec/weights/*": _NUMBER,
    f"{harness.RECORD_KEY}/provenance/merge/relative_change/*": _NUMBER,
    f"{harness.RECORD_KEY}/provenance/merge/warnings/[]": _TEXT,
    f"{harness.RECORD_KEY}/generation/calls": _NUMBER,
    f"{harness.RECORD_KEY}/generation/failed": _NUMBER,
    f"{harness.RECORD_KEY}/generation/settings/[]": _OBJECT,
    f"{harness.RECORD_KEY}/altered_answers": _LIST,
}
"""What a results file holds where it is read, by path: "*" is every value of an object, "[]" every entry of a list."""


def _read_results(file: Path) -> dict[str, Any]:
    """A results file whose values are of the kinds that its readers take for granted, or null. Raises RecordError."""
    try:
        results = read_json(file, "copy it again, or run again")
    except DamagedFileError as error:
        raise RecordError(f"{file} is not a results file of lmms-eval: {error}") from error
    if not isinstance(results.get("configs"), dict):
        raise RecordError(f"{file} is not a results file of lmms-eval: found no object 'configs'")
    results["results"] = {} if results.get("results") is None else results["results"]
    for path, kinds in _KINDS.items():
        for where, value in _values(file, results, path):
            if value is not None:
                _check_kind(file, where, value, kinds)
    for limit in ("limit", "offset"):
        if not math.isfinite((results.get("config") or {}).get(limit) or 0):
            raise RecordError(f"{file}: config/{limit}: found no finite number; copy it again, or run again")
    spec = ((results.get(harness.RECORD_KEY) or {}).get("provenance") or {}).get("spec")
    if spec and (len(spec.get("layer_range") or ()) != 2 or not spec.get("modules")):
        raise RecordError(f"{file}: found a spec without a layer range or modules; copy it again, or run again")
    return results


def _values(file: Path, content: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Where a path of `_KINDS` leads in a results file, and what is there. Raises RecordError for another shape."""
    found = [("", content)]
    for part in path.split("/"):
        deeper: list[tuple[str, Any]] = []
        for where, value in found:
            if value is None:
                continue
            _check_kind(file, where, value, list if part == "[]" else dict)
            if part in ("*", "[]"):
                pairs: Iterable[tuple[Any, Any]] = enumerate(value) if part == "[]" else value.items()
            else:
                pairs = [(part, value.get(part))]
            deeper += [(f"{where}/{key}".lstrip("/"), inner) for key, inner in pairs]
        found = deeper
    yield from found


def _check_kind(file: Path, where: str, value: Any, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind):
        expected = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise RecordError(
            f"{file}: {where}: found {quoted(value)}, expected {expected}; it was damaged: copy it again, or run again"
        )


def _read_log(log: Path, config: Mapping[str, Any], expected: int | None) -> list[dict[str, Any]]:
    """One sample per document: those of the task's first filter, which lmms-eval logs first.

    Raises RecordError for a line that is no sample, a document too often, and another number than `expected`.
    """
    filters = known_tasks.filters_of(config)
    first: dict[Any, dict[str, Any]] = {}
    counts: Counter[Any] = Counter()
    for number, line in enumerate(_lines(log), start=1):
        try:
            sample = json.loads(line)
            _check_sample(sample)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RecordError(f"{log}, line {number} is not a sample of lmms-eval: {error!r}") from error
        document = sample["doc_id"]
        counts[document] += 1
        first.setdefault(document, sample)
        if counts[document] > len(filters):
            raise RecordError(
                f"{log}, line {number}: document {document} once more than the task has filters "
                f"({', '.join(filters)}); two runs that started in one second write into one log: run again"
            )
    if missing := [document for document, count in counts.items() if count < len(filters)]:
        raise RecordError(
            f"{log}: document {missing[0]} stands there {counts[missing[0]]} times, expected once for each of the "
            f"task's filters ({', '.join(filters)}): the log is not whole; run again"
        )
    if expected is not None and len(first) != expected:
        raise RecordError(
            f"{log} holds {len(first)} documents, but the results beside it are of {expected} (n-samples): the log is "
            "not whole; copy it again, or run again"
        )
    return list(first.values())


def _lines(log: Path) -> Iterator[bytes]:
    """The lines of a log. Raises RecordError for a longer one than any document has."""
    with log.open("rb") as file:
        while line := file.readline(LARGEST_JSON + 1):
            if len(line) > LARGEST_JSON:
                raise RecordError(f"{log}: has a line of more than {LARGEST_JSON} bytes, which is no sample; run again")
            yield line.rstrip(b"\r\n")


def _check_sample(sample: Any) -> None:
    """Raises KeyError, TypeError or ValueError when a line of a log is no sample."""
    if not isinstance(sample, dict):
        raise TypeError(f"found {type(sample).__name__}, expected a JSON object")
    if not isinstance(sample["doc_id"], (int, str)) or isinstance(sample["doc_id"], bool):
        raise TypeError(f"doc_id is {sample['doc_id']!r}, expected a number or text")
    if isinstance(sample["doc_id"], int) and not -(2**63) <= sample["doc_id"] < 2**63:
        raise ValueError(f"doc_id is {quoted(sample['doc_id'])}, expected a number of at most 64 bits")
    _ = sample["target"], sample["filtered_resps"]


def _expected_documents(results: Mapping[str, Any], task: str) -> int | None:
    """How many documents of a task the results are of; None where they do not say."""
    counts = (results.get("n-samples") or {}).get(task) or {}
    config = results.get("config") or {}
    numbers = [counts.get("original"), counts.get("effective"), config.get("offset") or 0]
    whole = [int(n) for n in numbers if isinstance(n, (int, float)) and math.isfinite(n) and n == int(n)]
    if len(whole) < len(numbers):
        return None  # a fractional --limit: lmms-eval leaves it as it was given
    original, effective, offset = whole
    return max(0, min(effective, original - offset))


def _differing_mean(
    task: str, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], results: Mapping[str, Any]
) -> list[str]:
    """What to say where the documents' scores do not come to the stock metric that they should come to."""
    score = known_tasks.score_of_task(task, config)
    filters = known_tasks.filters_of(config)
    stored = (results.get("results") or {}).get(task) or {}
    value = stored.get(f"{score.stock},{filters[0]}")
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


_COLUMNS = ("task", "doc_id", "group", "prompt", "target", "answer", "score", "metric", "parsable")


def row(task: str, sample: dict[str, Any], score: Score | None) -> dict[str, Any]:
    """A line of a sample log as a row of `Run.samples`.

    Args:
        score: how the task is scored; None gives no score.

    Raises NoScoreError when the line does not hold what `score` reads.
    """
    answer = sample["filtered_resps"]
    while isinstance(answer, list):
        answer = answer[0] if answer else ""
    answer, target, prompt = (_storable(str(text)) for text in (answer, sample["target"], sample.get("input", "")))
    return {
        "task": task,
        "doc_id": sample["doc_id"],
        "group": known_tasks.cluster_of(task, sample)[0],
        "prompt": prompt,
        "target": target,
        "answer": answer,
        "score": score.of(sample) if score is not None else math.nan,
        "metric": score.metric if score is not None else None,
        "parsable": known_tasks.has_its_form(task, target, answer),
    }


def _storable(text: str) -> str:
    """Half a surrogate pair, which a log may hold and no file of text, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def scored(runs: Mapping[str, Run]) -> tuple[dict[str, Run], list[str]]:
    """Runs with only what can be compared: tasks that are scored by document in all of them, and documents that are.

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
    """What to say of a mean over tasks in some of which a lower score is better; see `Run.directions`."""
    if len(set(directions.values())) < 2:
        return []
    falling = ", ".join(task for task, direction in directions.items() if direction < 0)
    return [f"lower is better in {falling}, higher in the others: their mean says nothing"]


def notes_of(runs: Mapping[str, Run]) -> list[str]:
    """The notes of some runs, each once; with the names of those it is of, unless it is of all."""
    names: dict[str, list[str]] = {}
    for name, run in runs.items():
        for note in run.notes:
            names.setdefault(note, []).append(name)
    return [
        note if len(of) == len(runs) else f"{', '.join(of[:3])}{' and others' if len(of) > 3 else ''}: {note}"
        for note, of in joined(names).items()
    ]


def joined(notes: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Notes and the names of the runs they are of; what is said of several tasks of the same runs is said once."""
    tasks: dict[tuple[str, ...], list[str]] = {}
    for note, names in notes.items():
        if note.endswith(f": {UNKNOWN_CLUSTERS}"):
            tasks.setdefault(tuple(names), []).append(note.partition(":")[0])
    whole = {note: names for note, names in notes.items() if not note.endswith(f": {UNKNOWN_CLUSTERS}")}
    return whole | {f"{', '.join(of)}: {UNKNOWN_CLUSTERS}": list(names) for names, of in tasks.items()}


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
    for key in ("model", "pretrained", "model_commit", "dtype", "lmms_eval", "transformers", "torch"):
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
