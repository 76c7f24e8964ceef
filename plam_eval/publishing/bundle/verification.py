"""What verifying a bundle says, metric by metric and task by task."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CheckedMetric:
    """One metric of a run.

    Attributes:
        run: its label.
        task: the task's name, or a group's.
        metric: its name and that of the filter, as in the results ("exact_match,none").
        stored: its value there; None where it is missing.
        recomputed: None where it could not be.
        equal: None where it could not be told.
        how: in words, how it was recomputed, or why it was not.
    """

    run: str
    task: str
    metric: str
    stored: float | None
    recomputed: float | None
    equal: bool | None
    how: str


@dataclass(frozen=True)
class CheckedAnswers:
    """The answers to one task of a run.

    Attributes:
        run: its label.
        task: the task's name.
        documents: how many there are.
        checked: of how many the answer was scored again.
        differing: documents whose log does not follow from the answer, in words; empty where all do.
        drawn: of how many the score was drawn at random, so that it says nothing of the answer.
        how: in words, how they were scored again, or why they were not.
    """

    run: str
    task: str
    documents: int
    checked: int
    differing: tuple[str, ...]
    drawn: int
    how: str


@dataclass
class Verification:
    """What came of verifying a bundle.

    Attributes:
        path: of the archive.
        sha256: of the archive, to be compared with the one that was published.
        problems: hashes that differ, members that are missing or too many, specs that are not those of their digest.
        metrics: every metric, in the order of runs and results.
        answers: every task's.
        unverified: what nobody could check here, in words.
    """

    path: Path
    sha256: str
    problems: list[str] = field(default_factory=list)
    metrics: list[CheckedMetric] = field(default_factory=list)
    answers: list[CheckedAnswers] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing that could be checked differs."""
        differs = any(each.equal is False for each in self.metrics) or any(each.differing for each in self.answers)
        return not (self.problems or differs)

    @property
    def complete(self) -> bool:
        """Whether it holds, and everything in it could be checked."""
        return self.holds and not self.unverified

    def differences(self) -> list[str]:
        """Everything that differs, in words."""
        metrics = [
            f"{each.run}, {each.task}: {each.metric} is {_shown(each.stored)}, recomputed {_shown(each.recomputed)} "
            f"({each.how})"
            for each in self.metrics
            if each.equal is False
        ]
        answers = [f"{each.run}, {each.task}: {problem}" for each in self.answers for problem in each.differing]
        return [*self.problems, *metrics, *answers]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "holds": self.holds,
            "complete": self.complete,
            "differences": self.differences(),
            "unverified": self.unverified,
            "metrics": [vars(each) for each in self.metrics],
            "answers": [vars(each) for each in self.answers],
        }


def _shown(value: float | None) -> str:
    return "missing" if value is None else f"{value:.10g}"
