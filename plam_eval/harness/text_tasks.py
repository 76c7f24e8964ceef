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
from typing import Any

from plam_eval.patching import wrap_once

LIKELIHOODS = ("loglikelihood", "multiple_choice")
"""Output types of tasks that are scored by the likelihood of given texts, and generate none."""


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
