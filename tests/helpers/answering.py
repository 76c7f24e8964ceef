"""A model without weights: it answers by document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmms_eval.api.model import lmms


class Answering(lmms):
    """A chat model that answers by document and keeps the messages it was sent."""

    is_simple = False

    def __init__(self, answer: Callable[[str, int], str]) -> None:
        super().__init__()
        self.answer = answer
        self.messages: dict[tuple[str, int], list[dict[str, Any]]] = {}

    def generate_until(self, requests: list[Any]) -> list[str]:
        answers = []
        for _, doc_to_messages, _, index, task, split in (request.args for request in requests):
            self.messages[task, index] = doc_to_messages(self.task_dict[task][split][index])
            answers.append(self.answer(task, index))
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError
