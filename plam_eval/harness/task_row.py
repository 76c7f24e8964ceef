"""What can be known of a task of lmms-eval: a row of the table in `tasks`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean as mean
from typing import Any

from plam_eval.harness.answer_forms import NOT_KNOWN, Form
from plam_eval.harness.errors import NoScoreError
from plam_eval.harness.rebuilt import Rebuild

Entry = Any
"""What a task logs for one document under the name of a metric."""
Document = Mapping[str, Any]
"""A row of a task's dataset."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of an image: edges, so that the whole image is (0, 0, width, height)."""
Boxes = list[list[Box]]
"""Of each image that a document shows, in the order of its task's `doc_to_visual`."""


def as_score(entry: Entry) -> float:
    """An entry that is the score itself.

    Args:
        entry: as it was logged.

    Raises:
        TypeError, ValueError: it is anything but a number.
    """
    if not isinstance(entry, (int, float)):
        raise TypeError(f"found {type(entry).__name__}, expected a number")
    if math.isnan(entry):
        raise ValueError("found NaN, expected a number")
    return float(entry)


@dataclass(frozen=True)
class Score:
    """How the score of a document is read from what its task logs.

    Attributes:
        metric: the name under which the task logs it.
        read: entry -> score, NaN where a judge gave none. May raise anything for an entry of another shape.
        also: other names under which the task logs some of its documents, in the same form.
        low, high: the range that scores are in.
        unjudged: values that stand for "could not be judged", such as -1; such a document has no score.
        stock: the metric in the results that is `scale` times the `aggregate` of the documents' scores; None where the
            task has none.
        aggregate: (scores, clusters) of all documents -> one value; their mean, but for tasks that count otherwise.
        filter: of a task that scores every answer several times, each after another filter: the one whose scores these
            are; "" for the task's first.
        late: whether the task writes it into its entries only when it aggregates them, which a scan does not do.
    """

    metric: str
    read: Callable[[Entry], float]
    also: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    unjudged: frozenset[float] = frozenset()
    stock: str | None = None
    scale: float = 1.0
    aggregate: Callable[[Sequence[float], Sequence[str]], float] = lambda scores, clusters: mean(scores)
    filter: str = ""
    late: bool = False

    def of(self, sample: Mapping[str, Any]) -> float:
        """A document's score; NaN where it could not be judged.

        Args:
            sample: the document's line of a sample log.

        Raises:
            NoScoreError: the line holds no score, or one out of range.
        """
        metric = next((name for name in (self.metric, *self.also) if name in sample), None)
        if metric is None:
            raise NoScoreError(f"expected {self.metric} in its log, found {words_or_nothing(entries_of(sample))}")
        entry = sample[metric]
        try:
            score = float(self.read(entry))
        except Exception as error:  # lmms-eval's own scoring runs here, on an entry that may be another task's
            raise NoScoreError(
                f"{metric} is not logged in the form that is known: found {_shortened(entry)} "
                f"({type(error).__name__}: {error})"
            ) from error
        if math.isnan(score) or score in self.unjudged:
            return math.nan
        if not self.low <= score <= self.high or math.isinf(score):
            raise NoScoreError(f"{metric} is {score:g}, expected {self.low:g} to {self.high:g}")
        return score


@dataclass(frozen=True)
class Cluster:
    """What documents that are not independent of each other have in common.

    Attributes:
        kind: "image", "question" (asked again with its choices rotated) or "subject".
        of_document: from a row of the dataset, which sample logs do not hold; our wrappers note it there.
        of_sample: from a line of a sample log, where the task's own entry says it.
        collection: what the names are of, where several tasks have clusters of the same names, such as MMBench's
            questions in English and in Chinese; "" where no other task is known to.
    """

    kind: str
    of_document: Callable[[Document], str] | None = None
    of_sample: Callable[[Mapping[str, Any]], str] | None = None
    collection: str = ""


ONE_EACH = Cluster("document")
"""Every document has an image of its own, or none."""


def column(*names: str) -> Callable[[Document], str]:
    """A document's category that stands in a column of the dataset, or in several.

    Args:
        names: of the columns.
    """
    return lambda document: " / ".join(str(document[name]) for name in names)


@dataclass(frozen=True)
class Task:
    """What is known of one task.

    Attributes:
        score: None where no score per document can be read, for the reason `unscored`.
        cluster: None where it is not known whether documents share images.
        category: from a row of the dataset, the kind of question by which samples are stratified; None where there are
            no kinds, or the dataset does not say them. May raise KeyError or TypeError for a row of another shape.
        form: of its answers, for whoever reads them by other rules than the task's own.
        in_pairs: the benchmark's name where it scores documents two by two, so that a limit has to be even.
        rebuild: what its scoring reads of a document, from a line of its log; None where the log does not have it.
        boxes: from a row of the dataset, where what the document asks about is; None where the dataset does not say
            it. May raise anything for a row of another shape, and give boxes that are none.
        units: metric -> "share" (0 to 1) or "percent" (0 to 100), of metrics that are not the score and whose
            aggregation does not say it.
    """

    score: Score | None = None
    cluster: Cluster | None = None
    unscored: str = ""
    form: Form = NOT_KNOWN
    in_pairs: str = ""
    rebuild: Rebuild | None = None
    boxes: Callable[[Document], Boxes] | None = None
    category: Callable[[Document], str] | None = None
    units: Mapping[str, str] = field(default_factory=dict)


_NO_METRIC = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "token_counts", "doc_hash", "digest"}
_NO_METRIC |= {"input", "input_media", "group", "task", "turn"}  # of a line of a sample log


def entries_of(sample: Mapping[str, Any]) -> list[str]:
    """Names under which a line of a sample log holds what its task logged.

    Args:
        sample: the line.
    """
    return [name for name in sample if name not in _NO_METRIC]


def words_or_nothing(words: Iterable[str]) -> str:
    """Words in a row, or that there are none.

    Args:
        words: that are named.
    """
    return ", ".join(words) or "nothing"


def _shortened(entry: Entry) -> str:
    text = repr(entry)
    return text if len(text) <= 120 else f"{text[:117]}..."
