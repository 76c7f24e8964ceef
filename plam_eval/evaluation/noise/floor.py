"""The noise floor: how much scores move when nothing but the way of computing changes, and what lies below it.

With s_i the score of document i and s'_i that of the same weights computed with in another way, on m documents:

    flip rate   f = sum_i |s'_i - s_i| / m

For scores that are right or wrong that is the share of documents that flip, in either direction (Dutta et al. 2024). No
net change can be larger: |sum_i (s'_i - s_i)| / m <= f. A difference d between two runs is *below* the floor where
|d| < f, *above* it where |d| is larger than the upper end of f's interval, and unclear in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plam_eval import files
from plam_eval.errors import PlamError
from plam_eval.evaluation import comparable, stats
from plam_eval.evaluation.noise.variant import Variant
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.stats import OVERALL, Paired
from plam_eval.evaluation.sweep.folder import CELLS, FINISHED, LOG, PLAN, identity_changes, read_plan, read_state
from plam_eval.evaluation.sweep.grid import Grid

NOISE = "noise"
"""Folder in that of a comparison: one of its own for each variant, laid out as a comparison's."""

BELOW, UNCLEAR, ABOVE = "below", "unclear", "above"
_FEW = 20
_MOST_VARIANTS = 100


@dataclass(frozen=True)
class Flips:
    """What changed on some documents when the same weights answered them again, in one task or on average over tasks.

    Attributes:
        variant: what was other, such as "batch_size=4".
        cell: whose weights: "plain" or "merged".
        task: its name, or OVERALL: the unweighted mean over tasks, and the sums of the counts.
        documents, groups: how many, and in how many clusters.
        answers: share of documents whose answer is another text.
        gained, lost: documents whose score became better, or worse.
        rate: mean absolute change of the score: the share of documents that flipped, where scores are right or wrong.
        low, high: 95 % interval of `rate`, over clusters.
        net: mean change of the score, the second time minus the first.
        p: two-sided, whether `net` is more than flips that go either way alike would give.
    """

    variant: str
    cell: str
    task: str
    documents: int
    groups: int
    answers: float
    gained: int
    lost: int
    rate: float
    low: float
    high: float
    net: float
    p: float


@dataclass(frozen=True)
class Noise:
    """The flips of a comparison.

    Attributes:
        flips: by variant, cell and task, OVERALL last.
        warnings: what a reader of them should know.
        failures: what could not be answered, and why; the same command tries it again.
    """

    flips: tuple[Flips, ...]
    warnings: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def table(self) -> pd.DataFrame:
        """One row for each of `flips`, with its fields."""
        return pd.DataFrame([asdict(each) for each in self.flips], columns=list(Flips.__dataclass_fields__))

    def floor(self, task: str) -> Flips | None:
        """The largest flip rate of a task, of all variants and both models; None where there is none.

        Args:
            task: its name, or OVERALL.
        """
        of_task = [each for each in self.flips if each.task == task]
        return max(of_task, key=lambda each: (each.rate, each.high), default=None)

    def standing(self, row: Paired) -> str | None:
        """How a difference stands to the floor of its task: BELOW, UNCLEAR or ABOVE; None where there is no floor.

        Args:
            row: of the comparison.
        """
        floor = self.floor(row.task)
        if floor is None:
            return None
        size = abs(row.difference)
        return BELOW if size < floor.rate else ABOVE if size > floor.high else UNCLEAR

    def in_words(self, rows: Sequence[Paired]) -> list[str]:
        """Which differences of a comparison are below the floor, and which are not above it, a sentence each.

        Args:
            rows: of the comparison, the mean over tasks last.
        """
        sentences = []
        by_standing: dict[str, list[Paired]] = {BELOW: [], UNCLEAR: []}
        for row in rows if len(rows) != 2 else rows[:1]:  # of one task the mean says the same
            if (standing := self.standing(row)) in by_standing:
                by_standing[standing].append(row)
        for row in by_standing[BELOW]:
            floor = self.floor(row.task)
            assert floor is not None
            sentences.append(
                f"{_name(row.task)}: the difference of {row.difference:+.3f} is below the noise floor: with nothing "
                f"changed but {floor.variant} the {floor.cell} model's scores change by {floor.rate:.3f} "
                f"({floor.low:.3f} to {floor.high:.3f}, {floor.gained} better, {floor.lost} worse of {floor.documents})"
            )
        if unclear := by_standing[UNCLEAR]:
            names = ", ".join(_name(row.task) for row in unclear)
            sentences.append(
                f"not shown to be above the noise floor: {names}; the floor of so few documents may be as large "
                "(more: --noise_documents)"
            )
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, but for NaN: flips, warnings, failures."""
        rows = [asdict(each) for each in self.flips]
        return {"flips": rows, "warnings": list(self.warnings), "failures": list(self.failures)}


def _name(task: str) -> str:
    return "mean over tasks" if task == OVERALL else task


def flips_between(first: Run, second: Run, variant: str, cell: str) -> list[Flips]:
    """What changed between two runs of the same weights: by task, OVERALL last.

    Args:
        first: with scores for all of its documents.
        second: of the same documents.
        variant: what was other in it.
        cell: whose weights both are of.
    """
    keys = ["task", "doc_id"]
    again = first.samples[keys].merge(second.samples, on=keys, how="left", validate="one_to_one")
    other = (first.samples["answer"].to_numpy() != again["answer"].to_numpy()).astype(float)
    moved = np.abs(again["score"].to_numpy(dtype=float) - first.samples["score"].to_numpy(dtype=float))
    paired = stats.compare(first.samples, second.samples, directions=first.directions)
    rates = stats.compare(first.samples.assign(score=0.0), first.samples.assign(score=moved))
    texts = first.samples.assign(other=other).groupby("task", sort=False)["other"].mean()
    flips = []
    for row, rate in zip(paired, rates, strict=True):
        flips.append(
            Flips(
                variant=variant,
                cell=cell,
                task=row.task,
                documents=row.documents,
                groups=row.groups,
                answers=float(texts.mean() if row.task == OVERALL else texts[row.task]),
                gained=row.gained,
                lost=row.lost,
                rate=rate.difference,
                low=max(0.0, rate.low),
                high=rate.high,
                net=row.difference,
                p=row.p,
            )
        )
    return flips


def read_noise(folder: Path, runs: Mapping[str, Run]) -> Noise | None:
    """The flips of a comparison; None where it was made without `--noise`.

    What is damaged, or is of another model than the comparison, is left out and named.

    Args:
        folder: of the comparison.
        runs: its runs by cell, as they are compared.
    """
    flips, warnings, failures = list[Flips](), list[str](), list[str]()
    warnings += _of_link(folder)
    found = bool(warnings)
    for name, sub in _variants(folder):
        found = True
        try:
            plan = read_plan(sub)
            if problem := identity_changes(read_plan(folder)["settings"]["checkpoint"], plan["settings"]["checkpoint"]):
                raise ValueError(f"is of another model than the comparison: {problem}")
            grid = Grid.from_dict(plan["grid"])
        except (PlamError, OSError, ValueError) as error:
            warnings.append(f"noise, {name}: left out: {error}")
            continue
        for cell in grid.cells:
            if cell.name not in runs:
                continue
            record, run = read_state(sub, cell, plan["settings"])
            if run is None:
                if record["status"] != "missing":
                    failures.append(
                        f"{record['status']}: noise, {name}, {cell.name}: {record.get('error')} "
                        f"({sub / CELLS / cell.name / LOG})"
                    )
                elif record["status"] != FINISHED:
                    warnings.append(f"noise, {name}: {cell.name} is not answered yet; the same command goes on")
                continue
            try:
                first, second, notes = _same_documents(runs[cell.name], run)
            except (PlamError, ValueError) as error:
                warnings.append(f"noise, {name}, {cell.name}: left out: {error}")
                continue
            warnings += [f"noise, {name}, {cell.name}: {note}" for note in notes]
            flips += flips_between(first, second, name, cell.name)
    if not found:
        return None
    warnings += _of_together(folder)
    few = {each.task: each for each in flips if each.task != OVERALL and each.documents < _FEW}
    if few:
        named = ", ".join(f"{task} ({each.documents})" for task, each in few.items())
        warnings.append(f"noise: few documents of {named}: flips of some percent would not show there")
    return Noise(tuple(flips), tuple(dict.fromkeys(warnings)), tuple(failures))


def _of_link(folder: Path) -> list[str]:
    """What to say where the folder of variants is a link, whose files may be of anything."""
    if not (folder / NOISE).is_symlink():
        return []
    return [f"noise: left out: {folder / NOISE} is a link; a comparison's own folder was expected there"]


def _of_together(folder: Path) -> list[str]:
    """What to say where the comparison in a folder answered in a way that answering again does not."""
    if (read_plan(folder).get("config") or {}).get("together", 1) < 2:
        return []
    return [
        "noise: the comparison answered for both models at once (--together), and this one by one: what that changes "
        "is in the flip rates, too"
    ]


def _variants(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of each variant below a comparison's folder; links and other folders are none."""
    noise = folder / NOISE
    if noise.is_symlink() or not noise.is_dir():
        return
    for below in sorted(noise.iterdir())[:_MOST_VARIANTS]:
        try:
            Variant.read(below.name)
        except ValueError:
            continue
        if not below.is_symlink() and (below / PLAN).is_file():
            yield below.name, files.inside(folder, f"{NOISE}/{below.name}", str(folder))


def _same_documents(first: Run, second: Run) -> tuple[Run, Run, list[str]]:
    """Both runs with the documents that both have, asked alike, and what a reader should know of them.

    Raises:
        IncomparableError, RecordError: they were asked otherwise, or share no document that has a score.
    """
    keys = ["task", "doc_id"]
    tasks = [task for task in first.tasks if task in second.tasks]
    has_score = first.samples["score"].notna() & first.samples["task"].isin(tasks)
    asked = list(first.samples.loc[has_score, "task"].unique())
    first, second = first.only(tasks), second.only(tasks)
    shared = first.samples[keys].merge(second.samples[keys], on=keys)
    index = pd.MultiIndex.from_frame(shared)

    def kept(run: Run) -> Run:
        rows = pd.MultiIndex.from_frame(run.samples[keys]).isin(index)
        return replace(run, samples=run.samples[rows].reset_index(drop=True))

    first, second = kept(first), kept(second)
    comparable.check_comparable(first, second, ("the comparison", "the same weights again"))
    scored, left_out = comparable.only_scored({"first": first, "second": second})
    left_out = [note for note in left_out if comparable.LEFT_OUT not in note]
    known = set(scored["first"].samples["task"])
    left_out += [
        f"{task}: no flips are known: its documents have no score the second time"
        for task in asked
        if task not in known
    ]
    return scored["first"], scored["second"], left_out
