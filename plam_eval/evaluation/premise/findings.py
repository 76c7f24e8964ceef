"""What a premise check found: base LLM, plain and merged MLLM, paired by document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from plam_eval import files
from plam_eval.evaluation import comparable, stats
from plam_eval.evaluation.premise.job import BASE, PremiseError, read_settings
from plam_eval.evaluation.premise.prompts import Prompts, compare_prompts
from plam_eval.evaluation.premise.restored import Restored, restored
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.stats import Paired, effect, format_p
from plam_eval.evaluation.sweep.folder import CELLS, LOG, PLAN, read_plan, read_state
from plam_eval.evaluation.sweep.grid import MERGED, PLAIN, Grid

_EXPECTED_TO_DIFFER = ("model differs", "pretrained differs", "model_commit differs", "model arguments differ")


@dataclass(frozen=True, repr=False)
class PremiseFindings:
    """A premise check, evaluated.

    Attributes:
        folder: of the check.
        model: the MLLM; `base`: its base LLM.
        lost: base (first) against plain (second), by task, the mean over tasks last.
        back: plain (first) against merged (second), likewise; none without a merge.
        restored: of what was lost, the share that the merge gives back, in the rows of `lost`; none without a merge.
        p_holm: p of both means over tasks, adjusted for both.
        prompts: whether base and MLLM were asked alike.
        runs: base, plain and, where there is one, merged; with the tasks and documents that are scored in all.
        warnings: what a reader should know.
    """

    folder: Path
    model: str
    base: str
    lost: tuple[Paired, ...]
    back: tuple[Paired, ...]
    restored: tuple[Restored, ...]
    p_holm: tuple[float, ...]
    prompts: Prompts
    runs: dict[str, Run]
    warnings: tuple[str, ...]

    @property
    def directions(self) -> Mapping[str, int]:
        """By task: 1 where a higher score is better, -1 where a lower one is."""
        return self.runs[PLAIN].directions

    @property
    def table(self) -> pd.DataFrame:
        """One row per task, "overall" last: documents, clusters, the three scores, both differences, and the share."""
        rows = []
        backs: Sequence[Paired | None] = self.back or [None] * len(self.lost)
        shares: Sequence[Restored | None] = self.restored or [None] * len(self.lost)
        for lost, back, share in zip(self.lost, backs, shares, strict=True):
            rows.append(
                {
                    "task": lost.task,
                    "documents": lost.documents,
                    "groups": lost.groups,
                    "base": lost.first,
                    "plain": lost.second,
                    "merged": back.second if back else math.nan,
                    **_difference("lost", lost),
                    **_difference("back", back),
                    "share": share.share if share else math.nan,
                    "share_low": share.low if share else math.nan,
                    "share_high": share.high if share else math.nan,
                    "no_share": share.why if share else "no merge was given",
                }
            )
        return pd.DataFrame(rows)

    def verdict(self) -> str:
        """The answer in words."""
        lost = self.lost[-1]
        words = [_of_loss(lost, self.p_holm[0], self._sign())]
        if self.back:
            words.append(_of_merge(self.back[-1], self.p_holm[1], self._sign()))
            share = self.restored[-1]
            if share.why:
                words.append(f"What share of a loss came back would mean nothing: {share.why}.")
            else:
                ends = f"95 % {_end(share.low)} to {_end(share.high)}"
                words.append(f"Of what was lost, {share.share:.0%} came back ({ends}).")
        return " ".join(words)

    def _sign(self) -> int:
        signs = set(self.directions.values())
        return next(iter(signs)) if len(signs) == 1 else 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON: folder, model, base, verdict, prompts and table, p_holm, warnings."""
        return {
            "folder": str(self.folder),
            "model": self.model,
            "base": self.base,
            "verdict": self.verdict(),
            "prompts": {**asdict(self.prompts), "sentence": self.prompts.sentence()},
            "tasks": self.table.to_dict("records"),
            "p_holm": list(self.p_holm),
            "warnings": list(self.warnings),
        }

    def __repr__(self) -> str:
        return f"PremiseFindings({self.folder}: {self.verdict()})"


def _difference(name: str, row: Paired | None) -> dict[str, Any]:
    fields = ("difference", "low", "high", "gained", "lost", "p")
    return {f"{name}_{field}": getattr(row, field) if row is not None else math.nan for field in fields}


def _of_loss(row: Paired, p: float, sign: int) -> str:
    shown = effect(row.difference, p, sign) if sign else None
    figures = (
        f"base {row.first:.3f}, MLLM {row.second:.3f}, difference {row.difference:+.3f}, 95 % {row.low:+.3f} to "
        f"{row.high:+.3f}, p = {format_p(p)}"
    )
    if shown == "worse":
        return f"The MLLM has lost text ability to its base LLM ({figures})."
    if shown == "better":
        return f"The MLLM does better on these texts than its base LLM: nothing was lost ({figures})."
    return f"No loss of text ability is shown ({figures})."


def _of_merge(row: Paired, p: float, sign: int) -> str:
    shown = effect(row.difference, p, sign) if sign else None
    figures = (
        f"merged {row.second:.3f}, difference {row.difference:+.3f}, 95 % {row.low:+.3f} to {row.high:+.3f}, "
        f"p = {format_p(p)}"
    )
    if shown == "better":
        return f"The merge gives some back ({figures})."
    if shown == "worse":
        return f"The merge makes it worse ({figures})."
    return f"That the merge gives anything back is not shown ({figures})."


def _end(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else "open"


def read_premise(folder: str | Path) -> PremiseFindings:
    """What a premise check found.

    Args:
        folder: the --output of `plam premise`, finished.

    Raises:
        PremiseError: none there, or one that has not finished. IncomparableError: the base was asked otherwise.
            RecordError: no task has a score per document.
    """
    folder = Path(folder)
    base, template = read_settings(folder)
    runs, problems = dict[str, Run](), list[str]()
    for where in (files.inside(folder, BASE, str(folder)), folder):
        if not (where / PLAN).is_file():
            problems.append(f"{where}: not begun")
            continue
        plan = read_plan(where)
        for cell in Grid.from_dict(plan["grid"]).cells:
            name = BASE if where != folder else cell.name
            if name not in (BASE, PLAIN, MERGED):
                continue
            record, run = read_state(where, cell, plan["settings"])
            if run is None:
                why = f": {record['error']} ({where / CELLS / cell.name / LOG})" if record.get("error") else ""
                problems.append(f"{name}: {record['status']}{why}")
            else:
                runs[name] = run
    if problems:
        raise PremiseError(*problems, "the same command goes on", origin=str(folder))
    return findings_of(folder, base, template, runs)


def findings_of(folder: Path, base: str, template: str, runs: Mapping[str, Run]) -> PremiseFindings:
    """What these runs say.

    Args:
        folder: of the check.
        base: the base LLM, as it was named.
        template: whose chat template the base was asked in.
        runs: by name: BASE, PLAIN and, where there is a merge, MERGED.

    Raises:
        IncomparableError, RecordError: as `read_premise`.
    """
    warnings: list[str] = []
    for name in (BASE, MERGED):
        if name in runs:
            said = comparable.check_comparable(runs[PLAIN], runs[name], (PLAIN, name))
            if name == BASE:
                said = [text for text in said if not text.startswith(_EXPECTED_TO_DIFFER)]
            warnings += [f"{name}: {text}" for text in said]
    names = [name for name in (BASE, PLAIN, MERGED) if name in runs]
    scored, left_out = comparable.only_scored({name: runs[name] for name in names})
    directions = scored[PLAIN].directions
    warnings += [*comparable.notes_of(scored), *left_out, *comparable.mixed_directions(directions)]
    samples = {name: run.samples for name, run in scored.items()}
    pairs = [(BASE, PLAIN), *([(PLAIN, MERGED)] if MERGED in scored else [])]
    paired = stats.compare_pairs(samples, pairs, directions=directions)
    lost = paired[BASE, PLAIN]
    back = paired.get((PLAIN, MERGED), [])
    adjusted = stats.holm([rows[-1].p for rows in paired.values()])
    judged = [*lost[:-1], replace(lost[-1], p=adjusted[0])]  # the verdict must not share out a loss that it denies
    shares = restored(samples[BASE], samples[PLAIN], samples[MERGED], judged, directions) if back else []
    prompts = compare_prompts(runs[PLAIN], runs[BASE], template)
    model = str(runs[PLAIN].summary()["pretrained"])
    return PremiseFindings(
        folder,
        model,
        base,
        tuple(lost),
        tuple(back),
        tuple(shares),
        tuple(adjusted),
        prompts,
        scored,
        tuple(warnings),
    )
