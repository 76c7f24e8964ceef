"""Run folders beside each other: each against one of them, as far as they were asked alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from plam_eval.evaluation import records, stats
from plam_eval.evaluation.records import IncomparableError, RecordError, Run
from plam_eval.evaluation.stats import Paired


@dataclass(frozen=True)
class Comparisons:
    """Plain run folders against one of them."""

    reference: str
    rows: dict[str, list[Paired]]
    p_holm: dict[str, float]
    problems: dict[str, list[str]]
    warnings: dict[str, list[str]]


def compare(runs: Mapping[str, Run]) -> Comparisons | None:
    """Every run against the plain one, or else the first; None where there are not two."""
    if len(runs) < 2:
        return None
    plain = [name for name, run in runs.items() if run.block.get("plain")]
    reference = plain[0] if len(plain) == 1 else next(iter(runs))
    first, others = runs[reference], {name: run for name, run in runs.items() if name != reference}
    problems: dict[str, list[str]] = {}
    warnings: dict[str, list[str]] = {}
    for name, run in others.items():
        try:
            warnings[name] = records.check_comparable(first, run, (reference, name))
        except IncomparableError as error:
            problems[name] = error.problems
            continue
    comparable = {reference: first}
    for name in warnings:
        try:
            records.scored({reference: first, name: others[name]})
            comparable[name] = others[name]
        except RecordError as error:
            problems[name] = str(error).splitlines()[1:]
    while True:  # each has something in common with the reference, but maybe not all of them the same
        try:
            comparable, left_out = records.scored(comparable) if len(comparable) > 1 else ({}, [])
        except RecordError:
            name = [*comparable][-1]
            before = ", ".join([*comparable][:-1])
            problems[name] = [f"no document has a score in {name} and in all of {before}; report on fewer of them"]
            del comparable[name]
        else:
            break
    # Of single runs the page says this anyway.
    left_out = [note for note in left_out if records.LEFT_OUT not in note]
    left_out += records.mixed_directions(comparable[reference].directions) if comparable else []
    for notes in warnings.values():
        notes += left_out
    frames = {name: run.samples for name, run in comparable.items() if name != reference}
    rows = {}
    if frames:
        scored = comparable[reference]
        rows = stats.compare_many(scored.samples, frames, directions=scored.directions)
    adjusted = stats.holm([found[-1].p for found in rows.values()])
    return Comparisons(reference, rows, dict(zip(rows, adjusted, strict=True)), problems, warnings)
