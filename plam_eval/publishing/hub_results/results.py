"""Results on the hub: entries of `.eval_results/` and `model-index`, from runs that may be published.

Files are huggingface_hub's own classes, read back and compared before they leave. The scale of `value` is the
benchmark's: its board is asked. An entry of ours is never "verified": only evaluations on the hub's own machines are.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from plam_eval import hub
from plam_eval.errors import InputError, ProblemsError, first_line, quoted
from plam_eval.evaluation import records
from plam_eval.harness.errors import EvaluationError
from plam_eval.publishing import upload
from plam_eval.publishing.boards.run_answers import faults_of_run, open_run
from plam_eval.publishing.card.licences import README
from plam_eval.publishing.hub_results.benchmarks import Benchmark, benchmark_of
from plam_eval.publishing.hub_results.chosen_on import chosen_on
from plam_eval.publishing.hub_results.reported_score import FRACTION, PERCENT, SCALES, ReportedScore
from plam_eval.publishing.hub_results.repository import ModelRepository, read_repository
from plam_eval.yaml_reader import Writer, parse_yaml

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry

_LEAST = 3  # results on a board that say which scale it has
_TYPE = "image-text-to-text"


class HubResultsError(ProblemsError, ValueError):
    """Results that cannot be published as they are: every reason. Nothing was pushed."""

    def _heading(self) -> str:
        return "nothing was published:"


@dataclass
class HubResults:
    """What goes to a model's repository.

    Attributes:
        repository: owner/name.
        files: path in it -> whole content of the file.
        replaced: entries that were there and are replaced, in words.
        notes: what to know before it is published.
        pushed: address of the commit; None for a dry run.
    """

    repository: str
    files: dict[str, str] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pushed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dict(vars(self))


def hub_results(
    runs: Sequence[Path],
    repository: str,
    *,
    task: str | None = None,
    scale: str | None = None,
    dataset: str | None = None,
    task_id: str | None = None,
    source_url: str | None = None,
    push: bool = False,
) -> HubResults:
    """Entries for a model's repository, and with `push` a commit that adds them and touches nothing else.

    Args:
        runs: results files of lmms-eval, or folders with the results of one model, of which the newest.
        repository: owner/name of the model.
        task: only this one of their tasks.
        scale: of `value`, one of `SCALES`; None asks the benchmark's board. A board that says otherwise comes first.
        dataset: repository of the benchmark, for a task that no row of `benchmarks.BENCHMARKS` names.
        task_id: of the task in it.
        source_url: where readers find more, such as the bundle of these runs.
        push: commit them; otherwise they are only returned.

    Raises:
        InputError: options that cannot be used, alone or together.
        HubResultsError: every reason why these results cannot be published.
        UploadError: a push that the hub refuses, or that cannot be tried.
    """
    _check_options(repository, scale, dataset, task_id, source_url)
    if push:
        upload.check_push(repository, public=True)
    remote = read_repository(repository)
    if push and not remote.exists:
        raise HubResultsError(f"{repository}: the hub has no such repository; push the model first, or check the name")
    problems: list[str] = []
    done = HubResults(repository, notes=list(remote.notes))
    results = _results(runs, task, _named(dataset, task_id), remote, problems, done.notes)
    entries = _entries(results, scale, source_url, remote, problems, done.notes)
    if problems:
        raise HubResultsError(*dict.fromkeys(problems))
    for path, own in entries.items():
        done.files[path] = _merged_entries(path, own, remote, done.replaced)
    if cards := _card_results(results, scale, source_url, problems):
        done.files[README] = _merged_card(cards, remote, done)
    if problems:
        raise HubResultsError(*dict.fromkeys(problems))
    done.notes[:] = dict.fromkeys(done.notes)
    if push:
        done.pushed = upload.push_files(repository, done.files, parent=remote.commit, message="Evaluation results")
    return done


def _check_options(
    repository: str, scale: str | None, dataset: str | None, task_id: str | None, source_url: str | None
) -> None:
    problems = []
    if not isinstance(repository, str) or not hub.is_repository(repository):
        problems.append(f"--hub: found {quoted(repository)}, expected owner/name")
    if scale is not None and scale not in SCALES:
        problems.append(f"--scale: found {quoted(scale)}, expected {', '.join(SCALES)}")
    if (dataset is None) != (task_id is None):
        problems.append("--dataset and --task-id name a benchmark together: give both, or leave both out")
    if dataset is not None and not hub.is_repository(dataset):
        problems.append(f"--dataset: found {quoted(dataset)}, expected owner/name")
    if task_id is not None and not re.fullmatch(r"[\w.+-]{1,100}", task_id, re.ASCII):
        problems.append(f"--task-id: found {quoted(task_id)}, expected one word, as the dataset's eval.yaml has it")
    if source_url is not None and not re.fullmatch(r"https?://[^\s<>\"']{1,500}", source_url):
        problems.append(f"--source-url: found {quoted(source_url)}, expected an address that begins with https://")
    if problems:
        raise InputError(*problems)


def _named(dataset: str | None, task_id: str | None) -> Benchmark | None:
    return Benchmark(dataset, task_id, (), "", "") if dataset is not None and task_id is not None else None


# --- which results may be published -----------------------------------------------------------------------------------


def _results(
    runs: Sequence[Path],
    task: str | None,
    named: Benchmark | None,
    remote: ModelRepository,
    problems: list[str],
    notes: list[str],
) -> list[ReportedScore]:
    results: list[ReportedScore] = []
    for path in dict.fromkeys(runs):
        try:
            source = open_run(path)
            run = records.read_run(source.file)
        except (ValueError, EvaluationError, OSError) as error:
            problems.append(str(error))
            continue
        notes += source.notes
        if task is not None and task not in run.tasks:
            problems.append(f"{run.file} has no task {quoted(task)}; it has {', '.join(run.tasks)}")
            continue
        problem, spec = remote.tie(run)
        if problem:
            problems.append(f"{run.file}: {problem}")
        for name in [task] if task is not None else run.tasks:
            result = ReportedScore(run, name, source.task_config(name), named or benchmark_of(name))
            faults, said = faults_of_run(source, name)
            refused, unknown = chosen_on(run, name, spec)
            problems += [f"{result.where}: {fault}" for fault in [*faults, *_unscored(result), *refused]]
            notes += [*(f"{result.where}: {note}" for note in said), *(f"{run.file}: {note}" for note in unknown)]
            results.append(result)
    if named is not None and len({result.task for result in results}) > 1:
        problems.append("--dataset and --task-id are of one task, and the runs have several: name it with --task")
    return results


def _unscored(result: ReportedScore) -> list[str]:
    """Why a task's score cannot be given, though its answers may be fine."""
    if why := result.run.unscored.get(result.task):
        return [f"has no score: {why}"]
    rows = result.run.samples[result.run.samples["task"] == result.task]
    faults = []
    if not len(rows):
        faults.append("has no documents")
    if without := int(rows["score"].isna().sum()):
        faults.append(f"{without} of {len(rows)} documents have no score; the judge gave none: run again")
    differing = f"{result.task}: the documents'"
    faults += [note.partition(": ")[2] for note in result.run.notes if note.startswith(differing)]
    return faults


# --- entries of .eval_results -----------------------------------------------------------------------------------------


def _entries(
    results: Iterable[ReportedScore],
    scale: str | None,
    source_url: str | None,
    remote: ModelRepository,
    problems: list[str],
    notes: list[str],
) -> dict[str, list[EvalResultEntry]]:
    """By file, what goes into it."""
    from huggingface_hub import EvalResultEntry

    by_benchmark: dict[tuple[str, str], list[ReportedScore]] = {}
    for result in results:
        if result.benchmark is not None:
            key = (result.benchmark.dataset, result.benchmark.task_id)
            by_benchmark.setdefault(key, []).append(result)
    files: dict[str, list[EvalResultEntry]] = {}
    for (dataset, task_id), several in by_benchmark.items():
        if len(several) > 1:
            problems.append(
                f"{dataset}, {task_id}: {len(several)} results for one entry ({', '.join(r.where for r in several)}); "
                "name one of them, or its task with --task"
            )
            continue
        (result,) = several
        problem, chosen = _scale(dataset, scale, remote, notes)
        if problem or chosen is None:
            problems.append(f"{result.where}: {problem}")
            continue
        try:
            values = result.values(chosen)
        except ValueError as error:
            if not _unscored(result):
                problems.append(f"{result.where}: {error}")
            continue
        if len(values) > 1:
            problems.append(
                f"{result.where}: reports {' and '.join(values)}, and an entry of a benchmark has one value"
            )
            continue
        ((metric, value),) = values.items()
        notes.append(f"{result.where}: value {value:g} ({chosen}) for {dataset}, {task_id}")
        source = {"source_url": source_url, "source_name": "plam-eval"} if source_url else {}
        assert result.benchmark is not None
        files.setdefault(result.benchmark.file, []).append(
            EvalResultEntry(
                dataset_id=dataset, task_id=task_id, value=value, date=result.date, notes=result.notes(metric), **source
            )
        )
    return files


def _scale(dataset: str, given: str | None, remote: ModelRepository, notes: list[str]) -> tuple[str, str | None]:
    """("", scale) of a benchmark's board, or of what was given; (why, None) where nothing says it for sure."""
    if remote.offline:
        if given is None:
            return (
                f"the scale of {dataset} cannot be asked ({remote.offline}): look at its board, and say --scale",
                None,
            )
        notes.append(f"the scale of {dataset} is as given ({given}); its board was not asked ({remote.offline})")
        return "", given
    values, why = remote.board(dataset)
    asked, seen = scale_of(values)
    if asked is None:
        why = why or seen
        if given is None:
            return f"{why}: look at huggingface.co/datasets/{dataset}, and say --scale", None
        notes.append(f"the scale of {dataset} is as given ({given}): {why}")
        return "", given
    if given is not None and given != asked:
        return f"--scale {given} was given, and the board of {dataset} has {seen}, which is {asked}", None
    notes.append(f"the scale of {dataset} is {asked}: its board has {seen}")
    return "", given or asked


def scale_of(values: Sequence[float]) -> tuple[str | None, str]:
    """The scale of a board, "fraction" or "percent", or None where its values leave it open; and what they are.

    Args:
        values: of the results on it.
    """
    if not values:
        return None, "its board has no results that would say its scale"
    seen = f"{len(values)} results from {min(values):g} to {max(values):g}"
    if len(values) < _LEAST:
        return None, f"its board has only {seen}"
    if min(values) < 0 or max(values) > 100:
        return None, f"its board has {seen}, which is neither a share nor a percentage"
    if max(values) <= 1:
        return FRACTION, seen
    if min(values) > 1:
        return PERCENT, seen
    return None, f"its board has {seen}, so results of two scales"


def _merged_entries(path: str, own: Sequence[EvalResultEntry], remote: ModelRepository, replaced: list[str]) -> str:
    """The content of a file: what is there, entry by entry, and ours in place of the same dataset and task."""
    from huggingface_hub import eval_result_entries_to_yaml, parse_eval_result_entries

    keys = {(entry.dataset_id, entry.task_id) for entry in own}
    kept = []
    for entry in remote.entries(path):
        fields = entry["dataset"]
        if (fields["id"], fields["task_id"]) in keys:
            verified = " (which was verified)" if entry.get("verifyToken") else ""
            replaced.append(f"{path}: {fields['id']}, {fields['task_id']}: {entry['value']}{verified} is replaced")
        else:
            kept.append(entry)
    text = _dumped([*kept, *eval_result_entries_to_yaml(list(own))])
    again = parse_yaml(text)
    if again[: len(kept)] != kept or parse_eval_result_entries(again[len(kept) :]) != list(own):
        raise HubResultsError(f"{path}: read back it is something else than was written; please report it")
    return text


def _dumped(content: Any) -> str:
    return yaml.dump(content, Dumper=Writer, sort_keys=False, allow_unicode=True, width=1000)


# --- model-index ------------------------------------------------------------------------------------------------------


def _card_results(
    results: Iterable[ReportedScore], scale: str | None, source_url: str | None, problems: list[str]
) -> list[EvalResult]:
    """Of benchmarks that are not registered."""
    from huggingface_hub import EvalResult

    rows: dict[Any, EvalResult] = {}
    for result in (result for result in results if result.benchmark is None):
        try:
            values = result.values(scale)
        except ValueError as error:
            problems.append(f"{result.where}: {error}")
            continue
        path = str(result.config.get("dataset_path") or result.task)
        config = result.config.get("dataset_name")
        for metric, value in values.items():
            row = EvalResult(
                task_type=_TYPE,
                dataset_type=path if hub.is_repository(path) else Path(path).name,
                dataset_name=Path(path).name,
                metric_type=metric,
                metric_name=f"{metric} ({result.task})",
                metric_value=value,
                metric_args={"notes": result.notes(metric), **({"date": result.date} if result.date else {})},
                dataset_config=str(config) if config else None,
                dataset_split=result.split,
                source_url=source_url,
                source_name="plam-eval" if source_url else None,
            )
            if _same(row) in rows:
                problems.append(f"{result.where}: another run has a result of {result.task}, too; name one of them")
            rows[_same(row)] = row
    return list(rows.values())


def _same(row: EvalResult) -> tuple[Any, ...]:
    return (*row.unique_identifier, row.metric_type, row.metric_name)


def _merged_card(own: Sequence[EvalResult], remote: ModelRepository, done: HubResults) -> str:
    """The card of the repository with our rows in its `model-index`; its text stays as it is."""
    from huggingface_hub import ModelCard

    text = remote.text(README)
    if text is None:
        done.notes.append(
            f"{README}: only its front matter is shown" if remote.offline else f"{README}: there is none yet"
        )
    _check_no_aliases(text or "", remote.name)
    try:
        card = ModelCard(text if text is not None else "---\n{}\n---\n")
    except Exception as error:  # of yaml, or of what the front matter holds
        raise HubResultsError(
            f"{README} of {remote.name} cannot be read ({first_line(error)}); mend it there"
        ) from error
    data: Any = card.data  # of a model's card
    before, keys = list(data.eval_results or []), {_same(row) for row in own}
    done.replaced += [
        f"{README}: {row.metric_name or row.metric_type} on {row.dataset_name}: {row.metric_value} is replaced"
        for row in before
        if _same(row) in keys
    ]
    kept = [row for row in before if _same(row) not in keys]
    data.eval_results = [*kept, *(_in_its_group(row, kept) for row in own)]
    data.model_name = data.model_name or remote.name.partition("/")[2]
    content = str(card)
    again: Any = ModelCard(content)
    alike = sorted(map(repr, again.data.eval_results or [])) == sorted(map(repr, data.eval_results))
    if not alike or again.text != card.text:
        raise HubResultsError(
            f"{README} of {remote.name}: its model-index has rows of one dataset under several names or sources, which "
            "huggingface_hub cannot write back as they are; mend it there"
        )
    return content


def _check_no_aliases(text: str, repository: str) -> None:
    """Raises HubResultsError where a card's front matter has aliases: a few lines of them stand for gigabytes."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(text)
    with contextlib.suppress(yaml.YAMLError):  # which huggingface_hub says better
        if block and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(block[2], Loader=yaml.SafeLoader)):
            raise HubResultsError(
                f"{README} of {repository}: its front matter has YAML aliases (*name), which are not read; write the "
                "values again there"
            )


def _in_its_group(row: EvalResult, others: Sequence[EvalResult]) -> EvalResult:
    """A row with the words for task, dataset and source of those of the same dataset: all of them share one entry."""
    beside = next((other for other in others if other.unique_identifier == row.unique_identifier), None)
    if beside is None:
        return row
    shared = ("task_name", "dataset_name", "dataset_args", "source_url", "source_name")
    return replace(row, **{name: getattr(beside, name) for name in shared})
