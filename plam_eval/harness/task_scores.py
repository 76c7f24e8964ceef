"""How the score of a document is read from what its task logged of it.

Importing this module imports neither torch nor lmms-eval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean as mean

from plam_eval.harness import scoring
from plam_eval.harness.task_row import Entry, as_score


def field(name: str) -> Callable[[Entry], float]:
    """The score that stands in an entry under a name.

    Args:
        name: of the field.
    """
    return lambda entry: as_score(entry[name])


def of_hundred(entry: Entry) -> float:
    """A score that the task logs as one from 0 to 100.

    Args:
        entry: the score.
    """
    return as_score(entry) / 100


def equal_letters(entry: Entry) -> float:
    """Whether `pred` and `answer` are one word, as the SEED-Bench tasks compare them.

    Args:
        entry: with both.
    """
    return float(entry["pred"].lower().strip() == entry["answer"].lower().strip())


def equal_texts(entry: Entry, given: str, true: str) -> float:
    """Whether two texts of an entry are the same, letter by letter.

    Args:
        entry: with both.
        given: name of the one.
        true: name of the other.

    Raises:
        TypeError: one of them is no text.
    """
    texts = entry[given], entry[true]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"found {given} {texts[0]!r} and {true} {texts[1]!r}, expected two texts")
    return float(texts[0] == texts[1])


def mmvet(entry: Entry) -> float:
    """MM-Vet's score, NaN where the judge did not answer: it logs 0 there, and no judge's name.

    Args:
        entry: with `score` and `eval_model`.
    """
    return as_score(entry["score"]) if entry["eval_model"] else math.nan


def half_overlap(entry: Entry) -> float:
    """Whether the box that was answered and the true one have half of what they cover together in common.

    Boxes are left, top, right, bottom; one that is the wrong way round covers nothing.

    Args:
        entry: with the boxes `bbox` and `pred`.
    """
    (left, top, right, bottom), (left_, top_, right_, bottom_) = entry["bbox"], entry["pred"]
    common = max(0, min(right, right_) - max(left, left_)) * max(0, min(bottom, bottom_) - max(top, top_))
    if common == 0:
        return 0.0
    either = (right - left) * (bottom - top) + (right_ - left_) * (bottom_ - top_) - common
    return float(common / either >= 0.5)


def mmbench(entry: Entry) -> float:
    """MMBench logs the answer and no score; this is the judge-free scoring of its static variant.

    Args:
        entry: with the question's choices, its `answer` and the model's `prediction`.

    Raises:
        TypeError: it is no mapping.
    """
    if not isinstance(entry, dict):
        raise TypeError(f"found {type(entry).__name__}, expected a mapping")
    return scoring.mmbench(entry)


def mmmu(entry: Entry) -> float:
    """MMMU logs the parsed answer; whether it is right depends on the type of question.

    Args:
        entry: as the task logs it.
    """
    return scoring.mmmu(entry)


def all_rotations(scores: Sequence[float], questions: Sequence[str]) -> float:
    """MMBench's accuracy: a question is right if it was answered right under every rotation of its choices.

    Args:
        scores: of documents.
        questions: the question that each document asks.
    """
    right: dict[str, float] = {}
    for score, question in zip(scores, questions, strict=True):
        right[question] = min(score, right.get(question, 1.0))
    return mean(list(right.values()))
