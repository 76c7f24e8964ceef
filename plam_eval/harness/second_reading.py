"""Answers of a sample log, read by the second parser (`answer_parser`), whose rules are no task's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from plam_eval.harness.answer_forms import NOT_KNOWN, Form
from plam_eval.harness.answer_parser import is_right, read_answer
from plam_eval.harness.tasks import TASKS


def _form_of(task: str) -> Form:
    return TASKS[task].form if task in TASKS else NOT_KNOWN


class SecondReading(NamedTuple):
    """An answer as `answer_parser` reads it.

    Attributes:
        read: a letter, "yes" or "no", or words; None where the parser abstains, or the form is not known.
        score: 1 where that is right, 0 where it is not or the parser abstains; NaN where the form is not known.
        parsable: whether a letter, or yes or no, was read; None where words are asked for, or nobody knows what.
    """

    read: str | None
    score: float
    parsable: bool | None


def read_again(task: str, sample: Mapping[str, Any], answer: str) -> SecondReading:
    """What the second parser makes of an answer.

    Args:
        task: its name.
        sample: the document's line of a sample log.
        answer: the model's, of that line.
    """
    asked = _form_of(task).ask(sample)
    if asked is None:
        return SecondReading(None, math.nan, None)
    reading = read_answer(answer, asked)
    parsable = None if asked.kind == "words" else reading.value is not None
    right = is_right(reading, answer, asked)
    read = asked.targets[0] if right and reading.value is None else reading.value
    return SecondReading(read, float(right), parsable)


def not_read_again(task: str) -> str:
    """Why the answers to a task are not read by the second parser; "" where they are.

    Args:
        task: its name.
    """
    return _form_of(task).unread
