"""Two runs on the same documents, compared: what `plam compare` prints, as a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from plam_eval.evaluation import records, stats
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.stats import Paired
from plam_eval.evaluation.sweep import CELLS, MERGED, PLAIN
from plam_eval.evaluation.sweep.findings import Findings, format_p


@dataclass(frozen=True, repr=False)
class Comparison:
    """Two runs, paired by document.

    Attributes:
        names: of both runs: "plain" and "merged", or the folders that were given.
        rows: by task, the mean over tasks last.
        runs: both, with the tasks that have a score per document. Their `samples` hold every answer.
        warnings: what a reader of the figures should know.
        folder: of the run folders, where they were made for this; None for runs that were there before.
    """

    names: tuple[str, str]
    rows: tuple[Paired, ...]
    runs: tuple[Run, Run]
    warnings: tuple[str, ...]
    folder: Path | None = None

    @property
    def directions(self) -> Mapping[str, int]:
        """By task: 1 where a higher score is better, -1 where a lower one is."""
        return self.runs[0].directions

    @property
    def table(self) -> pd.DataFrame:
        """One row per task and "overall" last, with the fields of `stats.Paired`; second minus first."""
        return pd.DataFrame([asdict(row) for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, but for NaN: names, rows, warnings, folder."""
        rows = [asdict(row) for row in self.rows]
        folder = str(self.folder) if self.folder else None
        return {"names": list(self.names), "rows": rows, "warnings": list(self.warnings), "folder": folder}

    def __repr__(self) -> str:
        row = self.rows[-1]
        return (
            f"Comparison({self.names[1]} against {self.names[0]}, {row.documents} documents: {row.difference:+.3f}, "
            f"95 % {row.low:+.3f} to {row.high:+.3f}, p = {format_p(row.p)})"
        )


def compare_runs(first: Run, second: Run, names: tuple[str, str]) -> Comparison:
    """Compare two runs as they are.

    Raises:
        IncomparableError: they answer other documents, or were asked otherwise. RecordError: no task of theirs has a
            score per document.
    """
    warnings = records.check_comparable(first, second, names)
    compared, left_out = records.scored(dict(zip(names, (first, second), strict=True)))
    one, other = compared.values()
    warnings = [
        *warnings,
        *records.notes_of(compared),
        *left_out,
        *records.mixed_directions(one.directions),
    ]
    rows = stats.compare(one.samples, other.samples, directions=one.directions)
    return Comparison(names, tuple(rows), (one, other), tuple(warnings))


def comparison_of(found: Findings) -> Comparison:
    """The comparison in the folder of a `plam compare` whose two cells are finished."""
    runs = found.runs[PLAIN], found.runs[MERGED]
    rows = tuple(found.compared[MERGED])
    return Comparison((PLAIN, MERGED), rows, runs, found.warnings, found.folder / CELLS)
