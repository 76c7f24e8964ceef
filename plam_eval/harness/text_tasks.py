"""What lmms-eval 0.7.3 needs to run its own tasks of text alone: shots, choices in chat mode, likelihoods.

As it is, it cannot run them: a task with shots and no `fewshot_config` (GSM8K) has no sampler and ends in an
AttributeError; in chat mode tasks of `multiple_choice` are refused; a pair of a likelihood and whether the choice is
the greedy one becomes its text on the way to the metric. And in chat mode the shots of a document are drawn anew when
it is asked, so that it is asked with others than its log says.

Each function here takes one of these away and leaves alone what works. Likelihoods are what `ConfigurableTask` scores
by in 0.7.3, whose smallest value is the answer: minus the log-likelihood of the whole choice, summed over its tokens.
That makes `acc` and `acc_norm` (per letter of the choice) those of EleutherAI's lm-evaluation-harness.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plam_eval.harness.dataset_errors import dataset_error
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.lookup import cause_of, check_names, dataset_of, leaves_of, load_tasks, one_attempt, task_manager
from plam_eval.patching import wrap_once

LIKELIHOODS = ("loglikelihood", "multiple_choice")
"""Output types of tasks that are scored by the likelihood of given texts, and generate none."""
_ANSWERED = ("generate_until", *LIKELIHOODS)
_LOOKED_AT = 8  # documents of a task


def patch_text_tasks() -> None:
    """All of it. Calling it again does nothing."""
    from lmms_eval import evaluator
    from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask

    wrap_once(ConfigurableTask, "set_fewshot_seed", _set_fewshot_seed)
    wrap_once(ConfigurableTask, "fewshot_context", _fewshot_context)
    wrap_once(ConfigurableMessagesTask, "construct_requests", _construct_requests)
    wrap_once(evaluator, "unwrap_generation_output", _unwrap_generation_output)


def _set_fewshot_seed(stock: Any, self: Any, seed: int | None = None) -> None:
    """lmms-eval's evaluator calls it for every task, once the number of shots is known."""
    stock(self, seed)
    if (self.config.num_fewshot or 0) > 0 and not hasattr(self, "sampler"):
        from lmms_eval.api import samplers

        self.sampler = samplers.get_sampler("default")(list(self.fewshot_docs()), self, rnd=self.fewshot_rnd)


def _fewshot_context(stock: Any, self: Any, doc: Any, num_fewshot: int, *args: Any, **kwargs: Any) -> Any:
    """What a document was asked with is what it is asked with again: the shots that stand in its log."""
    if not num_fewshot or getattr(self, "sampler", None) is None:
        return stock(self, doc, num_fewshot, *args, **kwargs)
    contexts = self.__dict__.setdefault("_plam_contexts", {})
    given = [repr(value) for value in (*args, *(value for _, value in sorted(kwargs.items()))) if value]
    key = json.dumps([doc, num_fewshot, given], sort_keys=True, default=str)
    if key not in contexts:
        contexts[key] = stock(self, doc, num_fewshot, *args, **kwargs)
    return contexts[key]


def _construct_requests(stock: Any, self: Any, doc_id: int, ctx: str, **kwargs: Any) -> Any:
    if self.OUTPUT_TYPE not in LIKELIHOODS:
        return stock(self, doc_id, ctx, **kwargs)
    from lmms_eval.api.task import ConfigurableTask

    return ConfigurableTask.construct_requests(self, doc_id, ctx, **kwargs)


def _unwrap_generation_output(stock: Any, output: Any) -> Any:
    if is_likelihood(output):
        return tuple(output), None
    return stock(output)


def is_likelihood(response: Any) -> bool:
    """Whether a response is (minus a log-likelihood, whether the text is the greedy one), as JSON has it, too.

    Args:
        response: of a model, or of a sample log.
    """
    return (
        isinstance(response, (tuple, list))
        and len(response) == 2
        and isinstance(response[0], (int, float))
        and not isinstance(response[0], bool)
        and isinstance(response[1], bool)
    )


def chosen(responses: Any) -> int | None:
    """Which of a document's choices is the likeliest, from 0; None where its responses are no likelihoods.

    Args:
        responses: of one document, as a sample log has them.
    """
    if not isinstance(responses, list) or not responses or not all(map(is_likelihood, responses)):
        return None
    return min(range(len(responses)), key=lambda number: responses[number][0])


def check_text_tasks(
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    offset: int = 0,
    include_path: str | Path | None = None,
    model: Any = None,
) -> None:
    """Whether these tasks can be asked of an LLM that reads text alone; a few documents of each are looked at.

    Args:
        tasks: names of tasks, groups and tags.
        limit: documents per task; None is all.
        offset: of the first document.
        include_path: folder of further tasks.
        model: an id or an instance, for its prompts.

    Raises:
        TaskNameError: a name that is none. EvaluationError: naming every task that shows something, or is answered in
            rounds or pictures, or cannot be loaded.
    """
    manager = task_manager(include_path, model)
    check_names(list(tasks), manager.all_tasks)
    problems: list[str] = []
    for leaf in sorted(leaves_of(manager, tasks)):
        try:
            with one_attempt():
                outputs = load_tasks(manager, [leaf])
        except Exception as error:  # a task's own code
            problems.append(dataset_error(leaf, dataset_of(manager, leaf), error))
            continue
        for output in outputs:
            problems += _not_of_text(output.task_name, output.task, limit, offset)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise EvaluationError(f"not every task can be asked of a base LLM:\n{listed}")


def _not_of_text(name: str, task: Any, limit: int | None, offset: int) -> list[str]:
    """Why a task cannot be asked in text alone; nothing where it can, as far as some documents show."""
    if task.OUTPUT_TYPE not in _ANSWERED:
        return [f"{name}: is answered by {task.OUTPUT_TYPE}; expected {', '.join(_ANSWERED)}"]
    documents = task.eval_docs
    end = len(documents) if limit is None else min(len(documents), offset + limit)
    numbers = range(offset, end)
    if not numbers:
        return [f"{name}: no documents: it has {len(documents)}, and the first is {offset}"]
    for step in range(_LOOKED_AT):
        number = numbers[round(step * (len(numbers) - 1) / (_LOOKED_AT - 1))]
        try:
            shows = _shows(task, documents[number])
        except Exception as error:  # a task's own code
            cause = cause_of(error)
            return [f"{name}: document {number} cannot be read: {type(cause).__name__}: {cause}"]
        if shows:
            return [
                f"{name}: its documents show images or the like (document {number} does), which the base LLM cannot "
                "see; give tasks of text alone. Plain against merged on what is seen: plam compare"
            ]
    return []


def _shows(task: Any, document: Any) -> bool:
    if task.config.doc_to_visual is not None and task.doc_to_visual(document):
        return True
    make = task.config.doc_to_messages
    if not callable(make):
        return False
    contents = [message.get("content") for message in task.doc_to_messages(document)]
    return any(part.get("type") != "text" for content in contents if isinstance(content, list) for part in content)
