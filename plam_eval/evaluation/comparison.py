"""Runs on the same documents, compared: two as `plam compare` prints them, and several with one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from plam_eval.evaluation import comparable, second_parser, stats
from plam_eval.evaluation.comparable import IncomparableError
from plam_eval.evaluation.noise.floor import Noise, read_noise
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.second_parser import Second
from plam_eval.evaluation.stats import OVERALL, Paired, format_p
from plam_eval.evaluation.stock_scores import StockScore, stock_scores
from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.folder import CELLS, read_state
from plam_eval.evaluation.sweep.grid import MERGED, PLAIN, Grid
from plam_eval.harness.errors import RecordError


@dataclass(frozen=True, repr=False)
class Comparison:
    """Two runs, paired by document.

    Attributes:
        names: of both runs: "plain" and "merged", or the folders that were given.
        rows: by task, the mean over tasks last.
        runs: both, with the tasks that have a score per document. Their `samples` hold every answer.
        warnings: what a reader of the figures should know.
        folder: of the run folders, where they were made for this; None for runs that were there before.
        whole: both, with the tasks that have none, too, where they were given so.
        noise: how many documents flip when the same weights answer again, where `plam compare --noise` has asked.
    """

    names: tuple[str, str]
    rows: tuple[Paired, ...]
    runs: tuple[Run, Run]
    warnings: tuple[str, ...]
    folder: Path | None = None
    whole: tuple[Run, Run] | None = None
    noise: Noise | None = None

    @property
    def directions(self) -> Mapping[str, int]:
        """By task: 1 where a higher score is better, -1 where a lower one is."""
        return self.runs[0].directions

    @property
    def table(self) -> pd.DataFrame:
        """One row per task and "overall" last, with the fields of `stats.Paired`; second minus first."""
        return pd.DataFrame([asdict(row) for row in self.rows])

    @cached_property
    def second(self) -> dict[str, Second]:
        """By task, and of their mean, the comparison under the second parser; only of tasks that it reads."""
        first, second = self.runs
        return second_parser.second_look(first.samples, second.samples, self.rows)

    @cached_property
    def stock(self) -> tuple[StockScore, ...]:
        """What lmms-eval reports of each task, with the difference and its interval; the sample logs are read again."""
        return stock_scores(*(self.whole or self.runs))

    def to_dict(self, *, stock: bool = True) -> dict[str, Any]:
        """JSON-able, but for NaN: names, rows, second_parser, stock, warnings, folder, and noise where it was measured.

        Args:
            stock: whether `stock` is among them.
        """
        content: dict[str, Any] = {
            "names": list(self.names),
            "rows": [asdict(row) for row in self.rows],
            "second_parser": {"version": second_parser.VERSION, "rows": [asdict(row) for row in self.second.values()]},
            **({"stock": [asdict(score) for score in self.stock]} if stock else {}),
            "warnings": list(self.warnings),
            "folder": str(self.folder) if self.folder else None,
        }
        if self.noise is not None:
            standings = {row.task: self.noise.standing(row) for row in self.rows}
            content["noise"] = {**self.noise.to_dict(), "standings": standings}
        return content

    def __repr__(self) -> str:
        row = self.rows[-1]
        return (
            f"Comparison({self.names[1]} against {self.names[0]}, {row.documents} documents: {row.difference:+.3f}, "
            f"95 % {row.low:+.3f} to {row.high:+.3f}, p = {format_p(row.p)})"
        )


def compare_runs(first: Run, second: Run, names: tuple[str, str]) -> Comparison:
    """Compare two runs as they are.

    Args:
        first: a run, such as the plain model's.
        second: the other; differences are second minus first.
        names: what they are called.

    Raises:
        IncomparableError: they answer other documents, or were asked otherwise. RecordError: no task of theirs has a
            score per document.
    """
    warnings = comparable.check_comparable(first, second, names)
    compared, left_out = comparable.only_scored(dict(zip(names, (first, second), strict=True)))
    one, other = compared.values()
    warnings = [
        *warnings,
        *comparable.notes_of(compared),
        *left_out,
        *comparable.mixed_directions(one.directions),
    ]
    rows = stats.compare(one.samples, other.samples, directions=one.directions)
    return Comparison(names, tuple(rows), (one, other), tuple(warnings), whole=(first, second))


def comparison_of(findings: Findings) -> Comparison:
    """The comparison in the folder of a `plam compare` whose two cells are finished.

    Args:
        findings: of that folder.
    """
    runs = findings.runs[PLAIN], findings.runs[MERGED]
    rows = tuple(findings.compared[MERGED])
    noise = read_noise(findings.folder, findings.runs)
    whole = _whole(findings) if any(comparable.LEFT_OUT in warning for warning in findings.warnings) else None
    return Comparison((PLAIN, MERGED), rows, runs, findings.warnings, findings.folder / CELLS, whole, noise)


def _whole(findings: Findings) -> tuple[Run, Run] | None:
    """Plain and merged as they were evaluated, with the tasks that have no score per document."""
    cells = {cell.name: cell for cell in Grid.from_dict(findings.plan["grid"]).cells}
    states = (read_state(findings.folder, cells[name], findings.plan["settings"]) for name in (PLAIN, MERGED))
    first, second = (run for _, run in states)
    return None if first is None or second is None else (first, second)


@dataclass(frozen=True)
class Comparisons:
    """Several runs, each against one of them.

    Attributes:
        reference: the name of that one.
        rows: by name of another: by task, the mean over tasks last.
        p_holm: by name of another: p of its mean over tasks, adjusted for all of them.
        problems: by name of another that cannot be compared: why.
        warnings: by name of another that was asked alike: what a reader of its figures should know.
        directions: by task of the reference: 1 where a higher score is better, -1 where a lower one is.
        second: by name of another and by task, the same comparison under the second parser.
    """

    reference: str
    rows: dict[str, list[Paired]]
    p_holm: dict[str, float]
    problems: dict[str, list[str]]
    warnings: dict[str, list[str]]
    directions: Mapping[str, int]
    second: Mapping[str, Mapping[str, Second]] = field(default_factory=dict)

    def second_means(self) -> dict[str, Second]:
        """By name of another, the mean over tasks under the second parser, with p adjusted as in `p_holm`."""
        means = {name: by_task[OVERALL] for name, by_task in self.second.items() if OVERALL in by_task}
        own = {name: (self.rows[name][-1].difference, self.p_holm[name]) for name in means}
        return second_parser.adjusted(means, own)

    def effect(self, name: str) -> str | None:
        """How a run's mean over tasks stands to the reference's.

        Args:
            name: of a compared run.

        Returns:
            "better" or "worse"; "other" where lower is better in some tasks and higher in others, so that a difference
            is neither; None where no difference is shown.
        """
        signs = set(self.directions.values())
        shown = stats.effect(self.rows[name][-1].difference, self.p_holm[name], next(iter(signs)))
        return "other" if shown and len(signs) > 1 else shown


def worse_tasks(rows: Sequence[Paired], directions: Mapping[str, int]) -> list[Paired]:
    """Of several tasks those whose interval lies on the worse side of 0, which a mean over tasks can hide.

    Args:
        rows: of the tasks, and of the mean over them, as `stats.compare` gives them.
        directions: by task, 1 where higher is better, -1 where lower is.
    """
    tasks = [row for row in rows if row.task != OVERALL]
    worse = [row for row in tasks if (row.high if directions.get(row.task, 1) > 0 else -row.low) < 0]
    return worse if len(tasks) > 1 else []


def compare_with_one(runs: Mapping[str, Run]) -> Comparisons | None:
    """Every run against the plain one, or else the first; None where there are not two.

    All are compared on the documents that have a score in all of them.

    Args:
        runs: by name.
    """
    if len(runs) < 2:
        return None
    plain = [name for name, run in runs.items() if run.block.get("plain")]
    reference = plain[0] if len(plain) == 1 else next(iter(runs))
    warnings, problems = _asked_alike(runs, reference)
    candidates = {reference: runs[reference], **{name: runs[name] for name in warnings}}
    scored, left_out = _scored_alike(candidates, reference, problems)
    # Of single runs their notes say this.
    left_out = [note for note in left_out if comparable.LEFT_OUT not in note]
    left_out += comparable.mixed_directions(scored[reference].directions) if scored else []
    for notes in warnings.values():
        notes += left_out
    others = {name: run.samples for name, run in scored.items() if name != reference}
    rows = {}
    if others:
        rows = stats.compare_many(scored[reference].samples, others, directions=scored[reference].directions)
    adjusted = stats.holm([comparisons[-1].p for comparisons in rows.values()])
    p_holm = dict(zip(rows, adjusted, strict=True))
    again = second_parser.second_looks(scored[reference].samples, others, rows) if others else {}
    return Comparisons(reference, rows, p_holm, problems, warnings, runs[reference].directions, again)


def _asked_alike(runs: Mapping[str, Run], reference: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What a reader should know of each run that was asked as the reference was, and why others were not."""
    warnings: dict[str, list[str]] = {}
    problems: dict[str, list[str]] = {}
    for name, run in runs.items():
        if name == reference:
            continue
        try:
            warnings[name] = comparable.check_comparable(runs[reference], run, (reference, name))
        except IncomparableError as error:
            problems[name] = error.problems
    return warnings, problems


def _scored_alike(
    runs: Mapping[str, Run], reference: str, problems: dict[str, list[str]]
) -> tuple[dict[str, Run], list[str]]:
    """Runs with what has a score in all of them, and what was left out; runs that share none go into `problems`."""
    kept = {reference: runs[reference]}
    for name, run in runs.items():
        if name == reference:
            continue
        try:
            comparable.only_scored({reference: runs[reference], name: run})
            kept[name] = run
        except RecordError as error:
            problems[name] = str(error).splitlines()[1:]
    while len(kept) > 1:  # each has something in common with the reference, but maybe not all of them the same
        try:
            return comparable.only_scored(kept)
        except RecordError:
            *before, last = kept
            problems[last] = [
                f"no document has a score in {last} and in all of {', '.join(before)}; report on fewer of them"
            ]
            del kept[last]
    return {}, []


def changed_table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Every document of which the second run's answer or score is not the first's, with the answers of all.

    Args:
        runs: by name; documents are those that the first two have.

    Returns:
        Columns: task, doc_id, change ("gained", "lost", or "other answer": the score is the same), prompt, target, and
        by run its answer and score.
    """
    first, second = list(runs)[:2]
    table = _side_by_side(runs)
    change = _change(table, first, second, runs[first].directions)
    table.insert(2, "change", change)
    return table[table["change"] != ""].reset_index(drop=True)


def _side_by_side(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Documents that the first two of some runs have, with the answers and scores of all."""
    keys = ["task", "doc_id"]
    first, second = list(runs)[:2]
    table = runs[first].samples[[*keys, "prompt", "target"]]
    for name, run in runs.items():
        columns = {"answer": f"{name}_answer", "score": f"{name}_score"}
        own = run.samples[[*keys, *columns]].rename(columns=columns)
        table = table.merge(own, on=keys, how="inner" if name in (first, second) else "left")
    return table


def _change(table: pd.DataFrame, first: str, second: str, directions: Mapping[str, int]) -> pd.Series:
    """By document "gained", "lost", "other answer", or nothing."""
    sign = table["task"].map(lambda task: directions.get(task, 1))
    difference = (table[f"{second}_score"] - table[f"{first}_score"]) * sign
    other = table[f"{first}_answer"] != table[f"{second}_answer"]
    kinds = [(difference > 0, "gained"), (difference < 0, "lost"), (other, "other answer")]
    change = pd.Series("", index=table.index)
    for is_kind, kind in kinds:
        change = change.mask((change == "") & is_kind, kind)
    return change
