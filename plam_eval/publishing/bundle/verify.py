"""What a bundle claims, recomputed: hashes, metrics from logged entries, and entries from answers."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plam_eval.errors import PlamError, listed, quoted
from plam_eval.files import LARGEST_JSON, json_object, sha256_of_file
from plam_eval.harness import tasks
from plam_eval.harness.errors import NoScoreError
from plam_eval.harness.recompute import (
    Rescored,
    StockTask,
    UnavailableError,
    find_task,
    installed_version,
    same_entry,
    same_number,
    stripped_of_thoughts,
    time_limit,
    weighted_by_size,
)
from plam_eval.harness.run_files import RECORD_KEY, check_results
from plam_eval.harness.sample_lines import Digests, expected_documents, samples_by_filter, silent_logs
from plam_eval.harness.task_row import entries_of
from plam_eval.harness.text_tasks import chosen
from plam_eval.publishing.bundle.archive import BundleError, Reader, open_archive
from plam_eval.publishing.bundle.manifest import (
    LARGEST,
    NAME,
    BundledRun,
    BundledTask,
    Manifest,
    config_digest,
    parse_manifest,
)
from plam_eval.publishing.bundle.verification import CheckedAnswers, CheckedMetric, Verification
from plam_eval.spec import SpecError, load_spec

Sample = Mapping[str, Any]
_SHOWN = 5  # documents, of many that differ in the same way
_SECONDS, _SECONDS_EACH = 60, 0.05  # that scoring a task again may take: at all, and for each document beside that
_ROUNDED = 1e-4  # of a score from 0 to 1: tasks round their metrics to 4 or 5 digits


def verify_bundle(path: Path) -> Verification:
    """Recompute every metric of a bundle from the answers in it, and compare every hash.

    Nothing of it is unpacked to disk or executed. What differs is in the result; what is no bundle raises.

    Args:
        path: of the archive.

    Raises:
        BundleError: it is no bundle, of another format, damaged, or not harmless to read; every problem is listed.
        OSError: it cannot be opened.
    """
    with open_archive(path) as archive:
        if NAME not in archive.names:
            raise BundleError(f"{path}: holds no {NAME}; expected the file that `plam submit --bundle` wrote")
        manifest = parse_manifest(archive.read(NAME, LARGEST), str(path))
        done = Verification(path, sha256_of_file(path))
        whole = _check_members(archive, manifest, done)
        done.problems += _differing_records(archive, manifest, whole)
        for run in manifest.runs:
            needed = {run.results, *(task.samples for task in run.tasks.values())}
            if needed <= whole:
                _verify_run(archive, manifest, run, done)
            else:
                done.unverified.append(f"{run.label}: nothing was recomputed, since a file of it is missing or changed")
    return done


# --- hashes -----------------------------------------------------------------------------------------------------------


def _check_members(archive: Reader, manifest: Manifest, done: Verification) -> set[str]:
    """Compare members with the manifest; gives those whose content can be read, changed or not."""
    present = set(archive.names) - {NAME}
    done.problems += [f"{name}: is missing" for name in manifest.files if name not in present]
    done.problems += [f"{quoted(name)}: is not listed in {NAME}" for name in sorted(present - set(manifest.files))]
    readable = set()
    for name, entry in manifest.files.items():
        if name not in present:
            continue
        try:
            digest = archive.digest(name)
        except BundleError as error:
            done.problems += error.problems
            continue
        readable.add(name)
        if archive.size(name) != entry.bytes or digest != entry.sha256:
            done.problems.append(f"{name}: SHA-256 is {digest}, expected {entry.sha256}; it was changed")
    return readable


def _differing_records(archive: Reader, manifest: Manifest, readable: set[str]) -> list[str]:
    """Records that are not what they should be."""
    problems = []
    for name in manifest.records:
        if name in readable and name.endswith(".json"):
            try:
                json_object(archive.read(name, LARGEST_JSON), name, "copy the bundle again")
            except PlamError as error:
                problems.append(str(error))
    return problems


# --- runs -------------------------------------------------------------------------------------------------------------


def _verify_run(archive: Reader, manifest: Manifest, run: BundledRun, done: Verification) -> None:
    try:
        text = archive.read(run.results, LARGEST_JSON)
        results = check_results(json_object(text, run.results, "copy the bundle again"), run.results)
    except PlamError as error:
        done.problems.append(str(error))
        return
    configs = {str(task): config or {} for task, config in results["configs"].items()}
    done.problems += [f"{run.label}: {problem}" for problem in _differing_settings(run, results, configs)]
    _check_spec(run, results, manifest.files[run.results].left_out, done)
    recomputed: dict[str, dict[str, float]] = {}
    are_told: dict[str, bool] = {}
    for task, bundled in run.tasks.items():
        if task in configs:
            checked = _Task(archive, run, task, bundled, results, configs[task], done)
            recomputed[task] = checked.verify()
            if checked.are_told is not None:
                are_told[bundled.samples] = checked.are_told
    done.problems += map(str, silent_logs(results, are_told).values())
    _verify_groups(run, results, configs, recomputed, done)


def _differing_settings(run: BundledRun, results: Mapping[str, Any], configs: Mapping[str, Any]) -> Iterator[str]:
    """Where the results are of other tasks or settings than the manifest says."""
    for task in sorted(configs.keys() ^ run.tasks.keys()):
        yield f"{quoted(task)} is in {'the results' if task in configs else 'the manifest'} only"
    for task, bundled in run.tasks.items():
        if task in configs and config_digest(configs[task]) != bundled.config_sha256:
            yield f"{task}: the configuration in the results is not the one that the manifest has the hash of"
        if task in configs and str((results.get("versions") or {}).get(task, "")) != bundled.version:
            yield f"{task}: the version in the results is not {bundled.version!r:.40}, which the manifest has"


def _check_spec(run: BundledRun, results: Mapping[str, Any], left_out: Mapping[str, str], done: Verification) -> None:
    """Whether the digest of the spec is the digest of the spec."""
    provenance = (results.get(RECORD_KEY) or {}).get("provenance") or {}
    spec, digest = provenance.get("spec"), provenance.get("digest")
    if run.digest != (str(digest) if digest else None):
        done.problems.append(f"{run.label}: its results name the digest {quoted(digest)}, the manifest {run.digest}")
    if spec is None and digest is None:
        return
    stem = f"{RECORD_KEY}/provenance/spec"
    if hidden := {stem, f"{stem}/base_model", f"{stem}/ancestor"} & set(left_out):
        whose = "ancestor's" if hidden == {f"{stem}/ancestor"} else "base's"
        done.unverified.append(f"{run.label}: the digest of its spec, of which the {whose} path was left out")
        return
    try:
        made = load_spec(spec) if isinstance(spec, Mapping) else None
        own = made.digest() if made is not None else None
    except (SpecError, ValueError, RecursionError) as error:
        done.problems.append(f"{run.label}: its spec cannot be read: {error}")
        return
    if own != digest:
        done.problems.append(f"{run.label}: the digest of its spec is {own}, its results say {quoted(digest)}")


class _Task:
    """One task of a run, being verified."""

    def __init__(
        self,
        archive: Reader,
        run: BundledRun,
        task: str,
        bundled: BundledTask,
        results: Mapping[str, Any],
        config: Mapping[str, Any],
        done: Verification,
    ) -> None:
        self.archive, self.run, self.task, self.bundled, self.done = archive, run, task, bundled, done
        self.results, self.config = results, config
        self.filters = tasks.filters_of(config)
        self.headline = tasks.headline_filter(task, config)
        self.are_told: bool | None = None  # whether its lines say what answered; None where none were read
        self.other_version = run.lmms_eval if run.lmms_eval not in (None, installed_version()) else None

    def verify(self) -> dict[str, float]:
        """Verify metrics and answers; gives the task's metrics, recomputed where they could be."""
        log, digests = self.bundled.samples, Digests(self.bundled.samples)
        try:
            with self.archive.open(log) as stream:
                expected = expected_documents(self.results, self.task)
                by_filter = samples_by_filter(stream, log, self.config, expected, digests=digests)
        except PlamError as error:
            self.done.problems.append(str(error))
            return {}
        if any(by_filter):
            self.are_told = digests.are_told
        try:
            digests.check(self.results)
        except PlamError as error:
            self.done.problems.append(str(error))
        scored = by_filter[self.filters.index(self.headline)]
        if len(scored) != self.bundled.documents:
            self.done.problems.append(
                f"{self.bundled.samples}: holds {len(scored)} documents, the manifest says {self.bundled.documents}"
            )
        stock: StockTask | None = None
        why = ""
        try:
            stock = find_task(self.task, self.config)
        except UnavailableError as error:
            why = str(error)
        values = self._metrics(by_filter, scored, stock, why)
        self._answers(scored, stock, why)
        return values

    # --- metrics ---

    def _metrics(
        self, by_filter: Sequence[Sequence[Sample]], scored: Sequence[Sample], stock: StockTask | None, why: str
    ) -> dict[str, float]:
        stored = _numbers_of((self.results.get("results") or {}).get(self.task))
        by_stock: dict[str, float] = {}
        failures: dict[str, str] = {}
        if stock is not None:
            for name, samples in zip(self.filters, by_filter, strict=True):
                try:
                    with time_limit(_allowed(samples)):
                        values, failed = stock.metrics(samples, name)
                except UnavailableError as error:
                    values, failed, why = {}, {}, str(error)
                by_stock |= values
                failures |= {f"{metric},{name}": reason for metric, reason in failed.items()}
        by_row = self._by_row(scored)
        used = {}
        for metric in [*stored, *(name for name in by_stock if name not in stored and "_stderr" not in name)]:
            row = self._metric(metric, stored.get(metric), by_stock, by_row, failures.get(metric, why))
            self.done.metrics.append(row)
            if row.recomputed is not None:
                used[metric] = row.recomputed
            if row.equal is None:
                self.done.unverified.append(f"{self.run.label}, {self.task}: {metric} ({row.how})")
        return used

    def _metric(
        self,
        metric: str,
        stored: float | None,
        by_stock: Mapping[str, float],
        by_row: Mapping[str, float],
        why: str,
    ) -> CheckedMetric:
        def row(recomputed: float | None, equal: bool | None, how: str) -> CheckedMetric:
            return CheckedMetric(self.run.label, self.task, metric, stored, recomputed, equal, how)

        if metric in by_stock:
            value = by_stock[metric]
            how = f"lmms-eval {installed_version()}'s own aggregation of what was logged"
            if stored is not None and same_number(stored, value):
                return row(value, True, how)
            if self.other_version is None:
                return row(value, False, how)
            why = f"lmms-eval {self.other_version} made it, and {installed_version()} comes to {value:.6g}"
        if metric in by_row and stored is not None:
            value = by_row[metric]
            equal = abs(value - stored) <= _ROUNDED * max(1.0, abs(stored))
            return row(value, equal, "the mean, or what the task takes for it, of the documents' logged scores")
        if "_stderr" in metric:
            why = why or "a standard error that was drawn at random, or that lmms-eval no longer computes"
        return row(None, None, why or "no document logs it")

    def _by_row(self, samples: Sequence[Sample]) -> dict[str, float]:
        """The metric that the documents' scores come to, where what we know of the task says which it is."""
        with contextlib.suppress(NoScoreError, ValueError, ArithmeticError), time_limit(_allowed(samples)):
            score = tasks.score_of_task(self.task, self.config)
            if score.stock is not None:
                pairs = [(score.of(sample), tasks.cluster_of(self.task, sample)[0]) for sample in samples]
                if any(
                    math.isnan(each) for each, _ in pairs
                ):  # a judge gave none, and the task counts that its own way
                    return {}
                value = score.scale * score.aggregate([each for each, _ in pairs], [group for _, group in pairs])
                return {f"{score.stock},{self.headline}": float(value)}
        return {}

    # --- answers ---

    def _answers(self, samples: Sequence[Sample], stock: StockTask | None, why: str) -> None:
        how, document_of = why, None
        if stock is not None:
            document_of, how = self._documents(stock, len(samples))
        differing: dict[str, list[Any]] = {}
        counts = Counter[str]()
        reasons = Counter[str]()
        if stock is not None and document_of is not None:
            end = time.monotonic() + _allowed(samples)
            for sample in samples:
                if (left := end - time.monotonic()) <= 0:
                    reasons["scoring takes too long"] += 1
                    continue
                try:
                    with time_limit(left):
                        problem, drawn = self._answer(sample, stock, document_of)
                except UnavailableError as error:
                    reasons[str(error)] += 1
                    continue
                counts["checked"] += 1
                counts["drawn"] += drawn
                if problem:
                    differing.setdefault(problem, []).append(sample["doc_id"])
        words = tuple(_several(problem, documents) for problem, documents in differing.items())
        if self.other_version is not None and words:
            how = f"{how}; lmms-eval {self.other_version} made them, and {installed_version()} scores some otherwise"
            reasons[f"lmms-eval {self.other_version} made them; {words[0]}"] += sum(map(len, differing.values()))
            words = ()
        row = CheckedAnswers(self.run.label, self.task, len(samples), counts["checked"], words, counts["drawn"], how)
        self.done.answers.append(row)
        name = f"{self.run.label}, {self.task}"
        self.done.unverified += [f"{name}: the answers to {n} documents ({reason})" for reason, n in reasons.items()]
        if document_of is None:
            self.done.unverified.append(f"{name}: the answers to {len(samples)} documents ({how})")
        elif counts["drawn"]:
            self.done.unverified.append(f"{name}: the scores of {counts['drawn']} documents were drawn at random")

    def _documents(self, stock: StockTask, count: int) -> tuple[Callable[[Sample], list[Any]] | None, str]:
        """From a sample to the documents that it may be of, and how that is known."""
        rebuild = tasks.TASKS[self.task].rebuild
        original = ((self.results.get("n-samples") or {}).get(self.task) or {}).get("original")
        try:
            rows = stock.documents()
            if len(rows) != original:
                raise UnavailableError(f"the dataset on this machine has {len(rows)} documents, not {original}")
        except UnavailableError as error:
            if rebuild is None:
                return None, f"{error}, and the log does not hold all that scoring reads"
            return rebuild, "scored again, from the log"

        def of_dataset(sample: Sample) -> list[Any]:
            number = sample["doc_id"]
            return [rows[number]] if isinstance(number, int) and 0 <= number < len(rows) else []

        return of_dataset, "scored again, on the dataset"

    def _answer(self, sample: Sample, stock: StockTask, document_of: Callable[[Sample], list[Any]]) -> tuple[str, bool]:
        """What is wrong with a sample, "" where nothing is, and whether its score was drawn at random."""
        answer = sample["filtered_resps"]
        by_likelihood = chosen(answer) is not None
        if not by_likelihood and isinstance(answer, list) and len(answer) == 1:  # as lmms-eval before 0.7 logs it
            (answer,) = answer
        if not by_likelihood and not isinstance(answer, str):
            raise UnavailableError("they have several answers each")
        try:
            documents = document_of(sample)
        except (KeyError, TypeError, AttributeError, ValueError, StopIteration):
            return "what was logged lacks what the task logs", False
        if not documents:
            raise UnavailableError("what scoring reads of them is not in the log")
        if isinstance(raw := sample.get("resps"), str):
            config = self.results.get("config") or {}
            tags = self.config.get("reasoning_tags", (config.get("resolved_cli_args") or {}).get("reasoning_tags"))
            if stripped_of_thoughts(raw, tags) != answer:
                return "the answer that was scored is not the one that the model gave", False
        results = [stock.rescore(document, answer) for document in documents]
        if any(self._fits(result, sample) for result in results):
            if len(documents) == 1 and "answer" in documents[0] and stock.target_of(documents[0]) != sample["target"]:
                return "the right answer is not the dataset's", False
            return "", False
        if stock.scoring == "stock" and any(result.drawn for result in results):
            return "", True
        return "what was logged does not follow from the answer", False

    def _fits(self, result: Rescored, sample: Sample) -> bool:
        logged = {name: sample[name] for name in entries_of(sample)}
        return logged.keys() == result.entries.keys() and same_entry(logged, result.entries)


def _verify_groups(
    run: BundledRun,
    results: Mapping[str, Any],
    configs: Mapping[str, Any],
    recomputed: Mapping[str, Mapping[str, float]],
    done: Verification,
) -> None:
    """Metrics of groups: means over those of their tasks."""
    groups = {name: values for name, values in (results.get("results") or {}).items() if name not in configs}
    for group, values in groups.items():
        for metric, stored in _numbers_of(values).items():
            of_tasks = [(values_of[metric], run.tasks[task].documents) for task, values_of in recomputed.items()
                     if metric in values_of and task in _members(results, group)]  # fmt: skip
            weighted = weighted_by_size(group) if of_tasks and "_stderr" not in metric else None
            if weighted is None:
                why = "the group is not installed, or how it is taken of its tasks is not known"
                done.metrics.append(CheckedMetric(run.label, group, metric, stored, None, None, why))
                done.unverified.append(f"{run.label}, {group}: {metric} ({why})")
                continue
            weights = [count if weighted else 1 for _, count in of_tasks]
            value = sum(each * weight for (each, _), weight in zip(of_tasks, weights, strict=True)) / sum(weights)
            how = f"the mean over its {'documents' if weighted else 'tasks'}"
            done.metrics.append(CheckedMetric(run.label, group, metric, stored, value, same_number(value, stored), how))


def _members(results: Mapping[str, Any], group: str) -> set[str]:
    """The tasks of a group, those of groups in it among them, as the results list them."""
    subtasks = results.get("group_subtasks")
    subtasks = subtasks if isinstance(subtasks, dict) else {}
    members, left = set[str](), [group]
    while left:
        inner = subtasks.get(left.pop())
        new = {name for name in inner if isinstance(name, str)} - members if isinstance(inner, list) else set()
        members |= new
        left += new
    return members


def _allowed(samples: Sequence[Sample]) -> float:
    return _SECONDS + _SECONDS_EACH * len(samples)


def _numbers_of(values: Any) -> dict[str, float]:
    """The metrics with a value among what results hold for a task, by "metric,filter"."""
    pairs = values.items() if isinstance(values, Mapping) else ()
    return {
        str(name): float(value)
        for name, value in pairs
        if "," in str(name) and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _several(problem: str, documents: Sequence[Any]) -> str:
    shown = listed((quoted(each, 40) for each in documents), _SHOWN)
    return f"document{'s' * (len(documents) > 1)} {shown}: {problem}"
