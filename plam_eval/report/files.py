"""The tables behind a page, as files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from plam_eval.evaluation import records, stats
from plam_eval.evaluation.comparison import Comparisons, changed_table
from plam_eval.evaluation.records import Run
from plam_eval.report.sections.layers import depth_by_layer
from plam_eval.report.sections.shared import chosen_beside
from plam_eval.report.sources import Sources

_PREFIX = 60  # letters of a folder's name in those of its tables


class TableFiles(NamedTuple):
    """Tables by the name of their file, and those names by the source (a sweep's, a scan's, "runs") and the table."""

    frames: dict[str, pd.DataFrame]
    names: dict[tuple[str, str], str]


def tables_of(sources: Sources, compared: Comparisons | None) -> TableFiles:
    """Every table of the page, those of two sources told apart by their names.

    Args:
        sources: what the page is of.
        compared: its run folders against one of them; None where there are fewer than two.
    """
    by_source: list[tuple[str, dict[str, pd.DataFrame]]] = []
    for name, findings in sources.sweeps.items():
        tables = findings.tables
        tables |= _run_tables(findings.runs) if findings.runs else {}
        if findings.selection is not None:
            tables["changed"] = changed_table(chosen_beside(findings))
        by_source.append((name, tables))
    for name, scanned in sources.scans.items():
        by_source.append((name, {"curve": scanned.curve.table()}))
    for name, (attended, found) in sources.looks.items():
        tables = {"attention": found.levels, "differences": found.differences, "quoted": found.quoted}
        tables |= {"settings": found.answers} | ({} if attended.depth is None else {"depth": depth_by_layer(attended)})
        by_source.append((name, {table: _storable(frame) for table, frame in tables.items()}))
    if sources.runs:
        tables = _run_tables(sources.runs)
        if compared is not None and compared.rows:
            tables["tasks"] = pd.concat(
                [
                    stats.comparison_table(rows).assign(run=name, against=compared.reference)
                    for name, rows in compared.rows.items()
                ]
            )
            changed = [
                changed_table({"reference": sources.runs[compared.reference], "compared": sources.runs[name]}).assign(
                    run=name, against=compared.reference
                )
                for name in compared.rows
            ]
            tables["changed"] = pd.concat(changed, ignore_index=True)
        by_source.append(("runs", tables))
    counts = Counter(table for _, tables in by_source for table in tables)
    named: dict[str, pd.DataFrame] = {}
    names: dict[tuple[str, str], str] = {}
    prefixes: set[str] = set()
    for source, tables in by_source:
        shared = any(counts[table] > 1 for table in tables)
        prefix = plain = re.sub(r"[^\w.+-]", "-", source)[:_PREFIX].lstrip(".")
        while prefix in prefixes:  # names that differ only in what a file's may not hold
            prefix = f"{plain}-{len(prefixes) + 1}"
        prefixes.add(prefix)
        for table, frame in tables.items():
            name = names[source, table] = f"{prefix}-{table}" if shared else table
            named[name] = frame
    return TableFiles(named, names)


def _run_tables(runs: Mapping[str, Run]) -> dict[str, pd.DataFrame]:
    tables = records.tables(dict(runs))
    samples = tables.samples.assign(parsable=tables.samples["parsable"].astype("boolean"))
    frames = {"runs": tables.runs, "accuracy": tables.tasks, "metrics": tables.metrics, "samples": samples}
    return {name: _storable(frame) for name, frame in frames.items()}


def _storable(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns that hold values of several types, or dictionaries, as text: parquet wants one type."""
    frame = frame.copy()
    for name, column in frame.items():
        types = {type(value) for value in column if value is not None}
        if column.dtype == object and (len(types) > 1 or types & {dict, list}):
            texts = [None if v is None else v if isinstance(v, str) else json.dumps(v) for v in column]
            frame[name] = pd.Series(texts, index=frame.index)
    return frame
