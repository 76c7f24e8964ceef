"""Does a difference survive when the same answers are read by the second parser (`harness.answer_parser`)?

The task's own rule stays the headline. The second one is one set of rules with a version, declared before any result
and chosen after none, so that there is one more look at a difference and no choice between looks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from plam_eval.evaluation import stats
from plam_eval.evaluation.stats import OVERALL, SIGNIFICANT, Paired, format_p
from plam_eval.harness.answer_parser import VERSION

SURVIVES, DOES_NOT, IN_NEITHER, ALONE = "survives", "does not", "not shown in either", "in the second alone"
"""Verdicts: shown by both, in one direction; by the task's own rule alone; by neither; by the second parser alone."""

BRIEFLY = {SURVIVES: SURVIVES, DOES_NOT: DOES_NOT, IN_NEITHER: "neither", ALONE: "2nd only"}
"""The same for narrow tables."""

AGAIN = ("rescored_difference", "rescored_p", "survives")
"""Columns of a table of cells: the difference under the second parser, its p (Holm), and the verdict."""

_NO_INTERVAL = 2  # draws of a bootstrap whose interval nobody reads


@dataclass(frozen=True)
class Second:
    """A difference between two runs under the second parser, beside that of the task's own rule.

    Attributes:
        task: its name, or OVERALL.
        first, second: mean scores under the second parser.
        difference: second minus first.
        p: of it, by the same test.
        verdict: SURVIVES, DOES_NOT, IN_NEITHER or ALONE.
    """

    task: str
    first: float
    second: float
    difference: float
    p: float
    verdict: str

    def words(self) -> str:
        """Difference, p and verdict on one line."""
        return f"{self.difference:+.3f} (p {format_p(self.p)}) {self.verdict}"


def judge(difference: float, p: float, again: float, p_again: float) -> str:
    """Whether a difference survives.

    Args:
        difference: by the task's own rule.
        p: of it; adjusted where it is one of several.
        again: the difference under the second parser.
        p_again: of that, adjusted likewise.
    """
    shown, shown_again = p < SIGNIFICANT, p_again < SIGNIFICANT
    if shown:
        return SURVIVES if shown_again and (difference > 0) == (again > 0) else DOES_NOT
    return ALONE if shown_again else IN_NEITHER


def rescored(samples: pd.DataFrame) -> tuple[pd.DataFrame, set[str]]:
    """Documents with the scores of the second parser, and the tasks that it reads.

    Documents whose form it does not know keep the score of their task.

    Args:
        samples: as `records.Run.samples`.
    """
    if "rescored" not in samples:
        return samples, set()
    again = samples["rescored"].astype(float)
    read = set(samples.loc[again.notna(), "task"])
    return samples.assign(score=again.where(again.notna(), samples["score"])), read


def second_looks(
    first: pd.DataFrame, others: Mapping[str, pd.DataFrame], rows: Mapping[str, Sequence[Paired]]
) -> dict[str, dict[str, Second]]:
    """By the name of a run, and by task: its comparison with the first under the second parser.

    Tasks that the second parser does not read are left out. The mean over tasks has them with their own scores; where
    it reads none of them, it is left out, too.

    Args:
        first: as `records.Run.samples`.
        others: likewise, by name.
        rows: by name, what `stats.compare_many` gives of these under the tasks' own rules.
    """
    plain, read = rescored(first)
    if not read:
        return {name: {} for name in others}
    again = {name: rescored(samples)[0] for name, samples in others.items()}
    compared = stats.compare_many(plain, again, resamples=_NO_INTERVAL)
    looks: dict[str, dict[str, Second]] = {}
    for name, pairs in compared.items():
        own = {row.task: row for row in rows[name]}
        looks[name] = {
            row.task: Second(
                *(row.task, row.first, row.second, row.difference, row.p),
                judge(own[row.task].difference, own[row.task].p, row.difference, row.p),
            )
            for row in pairs
            if row.task in read or row.task == OVERALL
        }
    return looks


def second_look(first: pd.DataFrame, second: pd.DataFrame, rows: Sequence[Paired]) -> dict[str, Second]:
    """By task, the comparison of two runs under the second parser, as `second_looks` gives it.

    Args:
        first: as `records.Run.samples`.
        second: likewise.
        rows: what `stats.compare` gives of both under the tasks' own rules.
    """
    return second_looks(first, {"second": second}, {"second": rows})["second"]


def adjusted(looks: Mapping[str, Second], own: Mapping[str, tuple[float, float]]) -> dict[str, Second]:
    """Several looks with p adjusted for their number (Holm), and judged by it.

    Args:
        looks: by name.
        own: by name, the difference by the task's own rule, and its p, which is adjusted for as many.
    """
    p_holm = stats.holm([look.p for look in looks.values()])
    return {
        name: replace(look, p=p, verdict=judge(*own[name], look.difference, p))
        for (name, look), p in zip(looks.items(), p_holm, strict=True)
    }


def with_second_parser(
    cells: pd.DataFrame, first: pd.DataFrame, others: Mapping[str, pd.DataFrame], rows: Mapping[str, Sequence[Paired]]
) -> pd.DataFrame:
    """A table of cells with the columns `AGAIN`, of their means over tasks.

    Args:
        cells: with `cell`, and with `difference` and `p_holm` by the tasks' own rules.
        first: the samples that the others are compared with.
        others: samples by cell.
        rows: by cell, the comparisons by the tasks' own rules.
    """
    means = {
        name: by_task[OVERALL] for name, by_task in second_looks(first, others, rows).items() if OVERALL in by_task
    }
    own = {
        str(row["cell"]): (float(row["difference"]), float(row["p_holm"]))
        for row in cells.to_dict("records")
        if row["cell"] in means
    }
    looks = adjusted(means, own)
    nothing = Second(OVERALL, math.nan, math.nan, math.nan, math.nan, "")
    found = [looks.get(str(name), nothing) for name in cells["cell"]]
    verdicts: list[Any] = [look.verdict or None for look in found]
    return cells.assign(
        rescored_difference=[look.difference for look in found],
        rescored_p=[look.p for look in found],
        survives=verdicts,
    )


def reading_again(*, with_p: bool = True) -> str:
    """What a column of the second parser is, for below a table.

    Args:
        with_p: whether it has p.
    """
    has = "difference, p," if with_p else "difference,"
    return f"second parser, version {VERSION}: {has} and whether the difference survives other reading rules"
