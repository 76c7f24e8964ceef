"""Intervals and paired tests for scores on the same documents. scipy does the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from scipy import stats


def proportion_interval(right: int, total: int) -> tuple[float, float]:
    """95 % Wilson interval of a share (Wilson 1927)."""
    interval = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Paired:
    """Two runs on the same documents: how many only the second got right (gained), how many only the first (lost).

    `p` is the exact two-sided McNemar test: a binomial test of gained among gained + lost at one half.
    """

    gained: int
    lost: int
    documents: int

    @property
    def difference(self) -> float:
        return (self.gained - self.lost) / self.documents

    @property
    def p(self) -> float:
        discordant = self.gained + self.lost
        return float(stats.binomtest(self.gained, discordant).pvalue) if discordant else 1.0


def paired(first: pd.DataFrame, second: pd.DataFrame) -> Paired:
    """Compare two sample tables (`records.Run.samples`) of right/wrong answers.

    Raises ValueError when the documents, their order aside, or their prompts differ.
    """
    keys = ["task", "doc_id"]
    both = first.merge(second, on=keys, how="outer", suffixes=("_first", "_second"), indicator=True)
    alone = both[both["_merge"] != "both"]
    if len(alone):
        raise ValueError(f"{len(alone)} documents are in one run only, the first {_first(alone)}")
    changed = both[both["prompt_first"] != both["prompt_second"]]
    if len(changed):
        raise ValueError(f"{len(changed)} prompts differ between the runs, the first {_first(changed)}")
    gained = int((both["score_second"] > both["score_first"]).sum())
    lost = int((both["score_second"] < both["score_first"]).sum())
    return Paired(gained, lost, len(both))


def _first(rows: pd.DataFrame) -> str:
    return f"document {rows['doc_id'].iloc[0]} of {rows['task'].iloc[0]}"
