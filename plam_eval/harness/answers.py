"""Answers as lmms-eval scores and logs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from plam_eval.harness.tasks import cluster_of_document, has_clusters, headline_filter


def note_clusters(tasks: Mapping[str, Any], samples: Mapping[str, list[dict[str, Any]]]) -> None:
    """Adds `group` to the sample logs of tasks whose documents share images: the logs themselves do not say it.

    Args:
        tasks: the task dictionary of an evaluation that has ended.
        samples: task -> lines of its log, which are changed.
    """
    from lmms_eval.evaluator_utils import get_task_list

    for output in get_task_list(tasks):
        if not has_clusters(output.task_name):
            continue
        documents = output.task.eval_docs_no_media  # rebuilt at every access
        for sample in samples.get(output.task_name, ()):
            cluster = cluster_of_document(output.task_name, documents[sample["doc_id"]])
            if cluster is not None:
                sample["group"] = cluster


def note_digests(
    samples: Mapping[str, list[dict[str, Any]]], records: Iterable[Mapping[str, Any]], digest: str
) -> None:
    """Adds `digest` to every line of the sample logs: which weights answered the document.

    Args:
        samples: task -> lines of its log, which are changed.
        records: `GenerationRecord.to_dict` of every process. A document that two weights had a share in has both
            digests, with a plus between them.
        digest: of documents that no record has: their answers were known, under these weights (lmms-eval's cache).
    """
    found: dict[tuple[Any, ...], dict[str, None]] = {}
    for record in records:
        for one, documents in record["digests"].items():
            for document in documents:
                found.setdefault(tuple(document), {})[one] = None
    for task, lines in samples.items():
        for line in lines:
            line["digest"] = "+".join(found.get((task, line["doc_id"]), [digest]))


def tasks_of(tasks: Mapping[str, Any]) -> set[str]:
    """Names of the tasks in a task dictionary.

    Args:
        tasks: the dictionary, which may nest tasks in groups.
    """
    return set(task_configs(tasks))


def task_configs(tasks: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Task -> its configuration as a results file has it.

    Args:
        tasks: a task dictionary, which may nest tasks in groups.
    """
    from lmms_eval.evaluator_utils import get_task_list

    return {output.task_name: dict(output.task_config) for output in get_task_list(tasks)}


def score_answers(tasks: Mapping[str, Any], answers: Mapping[tuple[str, int], list[str]]) -> Iterator[dict[str, Any]]:
    """Score any number of answers to each document by the tasks' own filters and metrics.

    Args:
        tasks: the task dictionary of an evaluation that has ended (`end_run` is given it).
        answers: (task, doc_id) -> answers. Documents of this process's share that are missing are left out.

    Yields:
        For each answer, lmms-eval's log of the document as if it had been given, with `task`, `turn` (the answer's
        number) and, where the task's documents share images, `group` beside it. Several filters: the one that counts
        (`tasks.headline_filter`).
    """
    from lmms_eval import evaluator
    from lmms_eval.evaluator_utils import get_task_list

    for output in get_task_list(tasks):
        task, name = output.task, output.task_name
        instances = {request.doc_id: request for request in task.instances}
        given = {doc_id: answers[name, doc_id] for doc_id in instances if (name, doc_id) in answers}
        documents = task.eval_docs_no_media
        tags = _reasoning_tags(task)
        headline = headline_filter(name, dict(output.task_config))
        for turn in range(max(map(len, given.values()), default=0)):
            answer_of = {doc_id: texts[turn] for doc_id, texts in given.items() if turn < len(texts)}
            for doc_id, request in instances.items():
                request.resps = [answer_of.get(doc_id, "")]
                request.filtered_resps, request.raw_filtered_resps = {}, {}
            task.apply_filters()
            for doc_id in sorted(answer_of):
                request = instances[doc_id]
                document = documents[doc_id]
                log = evaluator._process_document_results(
                    (doc_id, document, [request]),
                    task=task,
                    filter_key=headline if headline in request.filtered_resps else next(iter(request.filtered_resps)),
                    reasoning_tags=tags,
                    log_samples=True,
                ).logged_sample
                cluster = cluster_of_document(name, document)
                yield {**log, "task": name, "turn": turn, **({} if cluster is None else {"group": cluster})}


def _reasoning_tags(task: Any) -> Any:
    """Between which tags a task's answers may think aloud, as lmms-eval's own evaluation decides it."""
    from lmms_eval.api.reasoning import parse_reasoning_tags_config

    asked = getattr(getattr(task, "args", None), "reasoning_tags", None)
    return parse_reasoning_tags_config(cli_value=asked, task_value=getattr(task.config, "reasoning_tags", None))
