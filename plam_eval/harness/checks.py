"""What can be known of tasks before a model answers them: that they can be loaded, asked and scored."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plam_eval.errors import InputError, listed, quoted
from plam_eval.harness.dataset_errors import dataset_error
from plam_eval.harness.errors import EvaluationError, NoScoreError
from plam_eval.harness.evaluate import parse_model_args
from plam_eval.harness.lookup import (
    cause_of,
    check_limit,
    check_names,
    dataset_of,
    leaves_of,
    load_tasks,
    one_attempt,
    same_rows,
    task_manager,
    task_names,
)
from plam_eval.harness.registry import prompt_id
from plam_eval.harness.sampling import (
    Drawn,
    Excluded,
    Population,
    Sample,
    category_of_document,
    has_categories,
    may_share_clusters,
    may_share_images,
    shared_names,
)
from plam_eval.harness.task_row import Score
from plam_eval.harness.tasks import TASKS, falls, score_of_task
from plam_eval.test_sets import TEST_SETS

_ONLY = {  # setting of generation -> the one value of it under which an answer is one text, made by transformers itself
    "num_return_sequences": (1, "a document has one answer"),
    "custom_generate": (None, "it names code, which is never run"),
    "trust_remote_code": (False, "code of a checkpoint is allowed in model_args alone"),
    "assistant_model": (None, "a second model cannot be given here"),
}
_GREEDY = {"do_sample": False, "temperature": 0, "num_beams": 1}
_TRIED = 8  # documents of a task that is not known
_PATIENCE = 2.0  # seconds: a judge is asked over the network


@dataclass(frozen=True)
class CheckedTasks:
    """What can be known of tasks before a model answers them.

    Attributes:
        documents: task -> documents that an evaluation would ask about.
        clusters: scored task -> how many of them are independent: documents that share an image count once.
        unscored: task -> why its documents will have no score that could be compared.
        scored: the names that were given, groups that have unscored tasks in them being replaced by their other tasks.
        drawn: task -> its documents, cluster by cluster, in the order in which a sample of them is drawn.
        asking: what `evaluate.evaluate` is told of documents.
        notes: what there is to say of what is asked about, in words.
    """

    documents: dict[str, int]
    clusters: dict[str, int]
    unscored: dict[str, str]
    scored: tuple[str, ...]
    drawn: dict[str, Drawn] = field(default_factory=dict)
    asking: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def asked(self, task: str) -> list[int]:
        """The doc_ids of a task that are asked about, in order.

        Args:
            task: its name.
        """
        return sorted(doc_id for doc_ids in self.drawn[task] for doc_id in doc_ids)


def check_tasks(
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
    offset: int = 0,
    sample: Sample | None = None,
    include_path: str | Path | None = None,
    gen_kwargs: str | None = None,
    model: Any = None,
    by_document: bool = False,
    need_scores: bool = True,
) -> CheckedTasks:
    """What an evaluation of these tasks would ask and score; datasets are loaded for it, no model is.

    A task that `harness.tasks` does not know has answers to a few of these documents scored, right ones and wrong ones,
    as its evaluation would: some log a metric for a part of their documents only.

    Args:
        tasks: task or group names, as a list or separated by commas.
        limit: documents per task; None is all.
        offset: of the first document.
        sample: so many documents instead, what is left out, and the seed of the order that documents have.
        include_path: folder of further tasks.
        gen_kwargs: generation settings ("max_new_tokens=8") over the tasks' own.
        model: an id or an instance, for its prompts.
        by_document: answers will be scored one by one (`score_answers`), without the aggregation of all of them.
        need_scores: tasks without scores per document are of no use; where False, `scored` has all names.

    Raises:
        EvaluationError: unknown task, a task or dataset that cannot be loaded, no documents, a limit that MME cannot
            have, or no task at all whose documents have a score. InputError: as `check_generation`, or a sample and a
            limit or offset beside it.
    """
    check_generation(gen_kwargs)
    sample = Sample() if sample is None else sample
    check_sample(sample.size, bool(sample.excluded.origins), limit, offset)
    include = str(include_path) if include_path else None
    if include is not None and not Path(include).is_dir():
        raise EvaluationError(f"include_path {include}: no such folder; expected the folder of your task files")
    names = tuple(task_names(tasks))
    place = str(Path.cwd()), *((each.file.named, each.file.given_md5) for each in TEST_SETS.values())
    return _checked(names, limit, offset, sample, include, prompt_id(model), place, by_document, need_scores)


def check_sample(size: int | None, leaves_out: bool, limit: int | None, offset: int | None) -> None:
    """Refuse a sample and a limit or offset beside it: both say which documents are asked about.

    Args:
        size: of the sample; None where none was given.
        leaves_out: whether documents are to be left out.
        limit: documents of each task; None where none was given.
        offset: of the first document.

    Raises:
        InputError: naming what does not go together.
    """
    ours = [name for name, given in (("sample", size is not None), ("exclude", leaves_out)) if given]
    theirs = [f"{name} {given}" for name, given in (("limit", limit), ("offset", offset)) if given]
    if ours and theirs:
        raise InputError(
            f"{' and '.join(theirs)} beside {' and '.join(ours)}; each says which documents are asked about: leave the "
            "former out"
        )


def check_generation(gen_kwargs: str | None, *, greedy: bool = False) -> None:
    """Refuse generation settings that no answer can be had under.

    Args:
        gen_kwargs: as the command line takes them; None where there are none.
        greedy: the likeliest token has to be taken each time, as where variants are answered together.

    Raises:
        InputError: they are no `key=value`; otherwise naming each setting that is in the way.
    """
    given = parse_model_args(gen_kwargs or "", "gen_kwargs")
    problems = list[str]()
    for name, value in given.items():
        if name in _ONLY:
            only, why = _ONLY[name]
            if value != only:
                problems.append(f"{name}: found {quoted(value)}; {why}: leave it out")
        elif (expected := _expected(name, value)) is not None:
            problems.append(f"{name}: found {quoted(value)}, expected {expected}")
        elif greedy and name in _GREEDY and value != _GREEDY[name]:
            problems.append(
                f"{name}: found {quoted(value)}; variants are answered together, which is done greedily: leave it "
                f"out, or give {name}={_GREEDY[name]}"
            )
    if problems:
        raise InputError(*problems, origin="gen_kwargs")


def _expected(name: str, value: Any) -> str | None:
    """What a generation setting has to be, where this value of it is something else."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in ("max_new_tokens", "num_beams"):
        return None if type(value) is int and value >= 1 else "a whole number, 1 or more"
    if name in ("temperature", "top_p"):
        return None if number and 0 <= value < math.inf else "a number, 0 or more"
    if name == "do_sample":
        return None if isinstance(value, bool) else "True or False"
    return None


@functools.lru_cache(maxsize=8)  # a command checks before it loads a model, and the evaluation that it calls does, too
def _checked(
    names: tuple[str, ...],
    limit: int | None,
    offset: int,
    sample: Sample,
    include_path: str | None,
    model: Any,
    place: tuple[Any, ...],
    by_document: bool,
    need_scores: bool,
) -> CheckedTasks:
    manager = task_manager(include_path, model)
    check_names(names, manager.all_tasks)
    leaves = leaves_of(manager, names)
    check_limit(limit, leaves)
    never = {leaf: TASKS[leaf].unscored for leaf in sorted(leaves) if leaf in TASKS}
    if need_scores and len(never) == len(leaves) and all(never.values()):  # without fetching a dataset to find it out
        raise EvaluationError(_nothing_scored(never))
    documents, clusters, unscored = dict[str, int](), dict[str, int](), dict[str, str]()
    drawn, notes = dict[str, Drawn](), list[str]()
    with one_attempt():
        shared, beyond = _shared(manager, leaves, sample.excluded)
        try:
            for output in load_tasks(manager, names):
                task, rows = output.task_name, output.task.eval_docs_no_media
                barred = _barred(manager, task, output.task_config, sample.excluded)
                beyond += _beyond(task, barred, rows)
                population = Population.of(task, rows, excluded=barred, shared=shared)
                if sample.is_whole:
                    end = len(rows) if limit is None else min(len(rows), offset + limit)
                    notes += _of_limit(task, rows, range(offset, end)) if limit is not None else []
                    population = population.only(range(offset, end))
                else:
                    notes += _of_sample(population, sample)
                drawn[task] = population.drawn(sample.size, sample.seed)
                asked = sorted(doc_id for doc_ids in drawn[task] for doc_id in doc_ids)
                documents[task] = len(asked)
                if asked and (why := _no_score(output, asked, by_document)) is not None:
                    unscored[task] = why
                else:
                    clusters[task] = len(drawn[task])
        except Exception as error:  # a task's own code: some want a package that is not there, or a key for their judge
            raise EvaluationError(_not_loaded(manager, names, error)) from error
    _check_some_left(documents, beyond, sample, offset)
    asking: dict[str, Any] = {"limit": limit, "offset": offset}
    if not sample.is_whole:
        of_task = {task: sorted(doc_id for each in clusters for doc_id in each) for task, clusters in drawn.items()}
        asking = {"documents": of_task, "sample": sample.to_dict()}
    done = CheckedTasks(documents, clusters, unscored, names, drawn, asking, tuple(notes))
    if not need_scores:
        return done
    if unscored and len(unscored) == len(documents):
        raise EvaluationError(_nothing_scored(unscored))
    scored = []
    for name in names:
        members = sorted(leaves_of(manager, [name]))
        with_score = [leaf for leaf in members if leaf in documents and leaf not in unscored]
        scored += with_score if set(members) & set(unscored) else [name]
    return replace(done, scored=tuple(scored))


def _barred(manager: Any, task: str, config: Mapping[str, Any], excluded: Excluded) -> set[int]:
    """Documents of a task that are left out: its own, and those of tasks over the same rows."""
    return {
        doc_id
        for other, doc_ids in excluded.documents.items()
        if other == task or same_rows(manager, other, config)
        for doc_id in doc_ids
    }


def _beyond(task: str, doc_ids: Collection[int], rows: Any) -> list[str]:
    """What to say of the last document that is left out, where a dataset has no such one."""
    last = max(doc_ids, default=-1)
    return [f"document {last} of {task}, whose dataset has {len(rows)} here"] if last >= len(rows) else []


def _check_some_left(documents: Mapping[str, int], beyond: Sequence[str], sample: Sample, offset: int) -> None:
    """Raises EvaluationError where a task has no documents, or what is left out is of another dataset than is here."""
    origins, empty = (
        ", ".join(sample.excluded.origins),
        ", ".join(task for task, count in documents.items() if not count),
    )
    if beyond:
        raise EvaluationError(
            f"exclude: {origins} has {'; '.join(beyond)}: it looked at another version of the dataset, so that which "
            "documents it looked at is not known; use that version"
        )
    if empty and sample.is_whole:
        raise EvaluationError(f"offset is {offset}, which leaves no document of {empty}; give a smaller one")
    if empty:
        raise EvaluationError(
            f"exclude: {origins} has every document of {empty}, or its image or question; leave the task out, or look "
            "at fewer of its documents first"
        )


def _shared(manager: Any, leaves: Collection[str], excluded: Excluded) -> tuple[frozenset[str], list[str]]:
    """Names of what is left out, where it is known by its doc_ids alone by the rows of the task that it is of.

    And what to say of those that are of another version of that task's dataset. Raises EvaluationError where that takes
    a dataset which cannot be loaded.
    """
    names, beyond = set(excluded.shared), list[str]()
    for other in sorted(excluded.nameless):
        alike = [task for task in sorted(leaves) if may_share_clusters(task, other)]
        if not alike:
            continue
        try:
            [output] = load_tasks(manager, [other])
            rows = output.task.eval_docs_no_media
            names |= shared_names(other, rows, excluded.documents[other])
            beyond += [] if other in leaves else _beyond(other, excluded.documents[other], rows)
        except Exception as error:  # a task's own code, as below
            raise EvaluationError(
                f"exclude: {', '.join(excluded.origins)} has numbers of documents of {other}, and no name of what they "
                f"show or ask, which {', '.join(alike)} may show or ask, too; that takes its dataset: "
                f"{dataset_error(other, dataset_of(manager, other), error)}. Or name the folder of the scan"
            ) from error
    return frozenset(names), beyond


def _of_limit(task: str, rows: Any, asked: range) -> list[str]:
    """What a limit takes, where that is not a little of everything."""
    if not has_categories(task):
        return []
    kinds = [category_of_document(task, row) for row in rows]
    every, taken = (sorted({kind for kind in some if kind}) for some in (kinds, [kinds[at] for at in asked]))
    if len(taken) == len(every):
        return []
    return [
        f"{task}: the documents {asked.start} to {asked.stop - 1} that a limit takes are of {len(taken)} of its "
        f"{len(every)} categories ({listed(taken, 4)}); a sample takes some of each"
    ]


def _of_sample(population: Population, sample: Sample) -> list[str]:
    """What is drawn, where it is not what was asked for to the letter."""
    task, notes = population.task, list[str]()
    if population.left_out:
        notes.append(f"{task}: {population.left_out} documents left out, with those that share an image or a question")
    elif sample.excluded.origins:
        notes.append(f"{task}: none left out, {', '.join(sample.excluded.origins)} has no document of it")
    shared = [other for other in sorted(sample.excluded.documents) if may_share_images(task, other)]
    if shared and (sample.excluded.documents[shared[0]]):
        notes.append(
            f"{task}: shows images of COCO, as {', '.join(shared)} does, under names that do not tell which are the "
            "same; some that are left out there may be shown here"
        )
    if sample.size is None or not population.size:
        return notes
    count = sum(map(len, population.drawn(sample.size, sample.seed)))
    if count == population.size and sample.size >= count:
        notes += [f"{task}: all of its {count} documents, which are not more than {sample.size}"]
    elif count != sample.size:
        notes.append(f"{task}: {count} documents, as near to {sample.size} as whole images or questions allow")
    if not has_categories(task):
        notes.append(f"{task}: no categories of its documents are known, so the sample is of all alike")
    return notes


def _nothing_scored(unscored: Mapping[str, str]) -> str:
    reasons = "\n".join(f"  - {task}: {why}" for task, why in unscored.items())
    names = ",".join(unscored)
    return (
        f"no score per document is known for any of these tasks:\n{reasons}\n"
        "Name a task that has scores beside them, and their answers are logged with its own. For their answers alone, "
        f"and for the files of boards: lmms-eval --tasks {names} --log_samples --output_path FOLDER, with the same "
        "model, and plam submit FOLDER"
    )


def _not_loaded(manager: Any, names: Sequence[str], error: Exception) -> str:
    """Which of the tasks cannot be loaded, and why; `error` is what loading all of them raised."""
    lines = []
    for leaf in sorted(leaves_of(manager, names)):
        try:
            load_tasks(manager, [leaf])
        except Exception as own:  # as above
            lines.append(dataset_error(leaf, dataset_of(manager, leaf), own))
    lines = lines or [dataset_error(", ".join(names), None, error)]
    text = f" {lines[0]}" if len(lines) == 1 else "".join(f"\n  - {line}" for line in lines)
    return f"a task or its dataset could not be loaded:{text}"


def _no_score(output: Any, asked: Sequence[int], by_document: bool) -> str | None:
    """Why the documents of a task will have no score; None where they will have one, as far as trying tells."""
    name, task = output.task_name, output.task
    config = dict(output.task_config)
    try:
        score = score_of_task(name, config)
    except NoScoreError as error:
        return str(error)
    if by_document:
        if score.late:
            return f"{score.metric} is only judged when all answers are there"
        if falls(score.metric, config):
            return f"lower is better in {score.metric}, and a curve is of scores from 0 to 1 in which higher is better"
    if name in TASKS or not asked:
        return None
    kind = getattr(task, "OUTPUT_TYPE", None)
    if kind in ("loglikelihood", "multiple_choice"):  # scored by likelihoods, not by an answer that could be tried
        return f"it is answered by likelihoods ({kind}), and a scan generates answers" if by_document else None
    return _tried(task, score, asked)


def _tried(task: Any, score: Score, asked: Sequence[int]) -> str | None:
    """What is wrong with the scores of a few documents, each answered as it should be and as another one should be."""
    numbers = sorted({asked[round(step * (len(asked) - 1) / (_TRIED - 1))] for step in range(_TRIED)})
    started, documents = time.monotonic(), task.eval_docs
    for index, number in enumerate(numbers):
        try:
            document = documents[number]
            for other in {number, numbers[index - 1]}:
                score.of(task.process_results(document, [str(task.doc_to_target(documents[other]))]))
        except NoScoreError as error:
            return str(error)
        except Exception as error:  # a task's own code runs here, and may raise anything
            cause = cause_of(error)
            return f"scoring an answer to document {number} raised {type(cause).__name__}: {cause}"
        if time.monotonic() - started > _PATIENCE:
            break
    return None
