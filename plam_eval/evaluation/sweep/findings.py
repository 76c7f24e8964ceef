"""What a sweep found: every setting against the plain model and its controls, with selection and report kept apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plam_eval.evaluation import comparable, stats
from plam_eval.evaluation.comparable import IncomparableError
from plam_eval.evaluation.label_free import Neighbours
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.second_parser import AGAIN, with_second_parser
from plam_eval.evaluation.stats import DIFFERENCE, SIGNIFICANT, Paired
from plam_eval.evaluation.stock_scores import StockScore, stock_scores
from plam_eval.evaluation.sweep import by_rule, random_layers
from plam_eval.evaluation.sweep.conclusion import NOTHING_YET, Conclusion, conclude
from plam_eval.evaluation.sweep.documents import (
    Drawn,
    names_of,
    read_drawn,
    rows_of,
    split_documents,
    to_choose_without_labels,
    with_documents_to_report,
)
from plam_eval.evaluation.sweep.folder import CELLS, DAMAGED, FAILED, FINISHED, LOG, PLAN, read_plan, read_state
from plam_eval.evaluation.sweep.grid import PLAIN, Cell, Grid, spec_columns
from plam_eval.evaluation.sweep.selection import (
    LabelFreeChoice,
    Selection,
    best_merge,
    choose_without_labels,
    neighbours_of,
)
from plam_eval.rules import SELF_SCALE
from plam_eval.table_files import write_table

_CONTROL_COLUMNS = ("merged", "rule", "control", "answers_differ", *DIFFERENCE)


@dataclass(frozen=True, repr=False)
class Findings:
    """A sweep's folder, evaluated.

    Attributes:
        folder, plan: the sweep's, and its `sweep.json`.
        cells: one row per cell of the plan: cell, kind, layers ("6:8"), start, end, modules, weights ("0.9 + 0.3", of a
            ramp over depth "0.9:0.5 + 0.3"), model_weight and base_weight (of the first of the layers), rule, seed,
            parameters, digest, status ("finished", "failed", "missing", or "damaged": what is in its folder is not
            whole, or not of this sweep), error (of failed and damaged ones), relative_change (mean over layers),
            merge_seconds, evaluate_seconds; and over the reported documents, mean over tasks, against plain: the fields
            of `stats.Paired` without `task`, and p_holm, adjusted for all comparisons with plain in this table;
            rescored_difference, rescored_p (Holm) and survives, of the second parser (`second_parser`). Merges
            between two others (`lines.coordinates_of`): differ_from_neighbours, of the documents to choose on.
        tasks: per finished cell and task (OVERALL last), the fields of `stats.Paired` against plain, with `cell`.
        controls: per merged cell and control of it: merged, rule, control (its cell), and the fields of `stats.Paired`
            for the mean over tasks, control first and merge second; answers_differ, of the reported documents.
        selection: None while fewer than one merged cell and plain are finished.
        label_free: the choice that reads no label; None where no merge is between two others.
        compared: what `tasks` shows, by cell.
        runs: finished runs by cell; once there is something to compare, with the reported documents only.
        warnings: differences between cells that a reader should know of.
    """

    folder: Path
    plan: dict[str, Any]
    cells: pd.DataFrame
    tasks: pd.DataFrame
    controls: pd.DataFrame
    selection: Selection | None
    label_free: LabelFreeChoice | None
    compared: dict[str, list[Paired]]
    runs: dict[str, Run]
    warnings: tuple[str, ...]

    def write(self) -> None:
        """Write `tables` into the sweep's folder, as CSV and parquet."""
        for name, table in self.tables.items():
            write_table(table, self.folder / name)

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """`cells`, `tasks` and `controls`, and where they have rows `rules` and `random_layers`, by name."""
        more = {"rules": self.rules, "random_layers": self.random_layers}
        always = {"cells": self.cells, "tasks": self.tasks, "controls": self.controls}
        return always | {name: table for name, table in more.items() if len(table)}

    @cached_property
    def random_layers(self) -> pd.DataFrame:
        """Each merge before the draws of its random layers, as `random_layers.among_draws` gives it."""
        layers = dict(zip(self.cells["cell"], self.cells["layers"], strict=True))
        controls, num_layers = self.plan["grid"]["controls"], self.plan.get("num_layers")
        return random_layers.among_draws(self.runs, controls, layers, num_layers)

    @cached_property
    def rules(self) -> pd.DataFrame:
        """The best merge by each rule, as `by_rule.best_by_rule` gives it; no rows where all are by one."""
        gains = self.selection.gains if self.selection else {}
        return by_rule.best_by_rule(self.runs, self.cells, self.controls, gains)

    @cached_property
    def stock(self) -> dict[str, tuple[StockScore, ...]]:
        """The chosen merge's stock scores against "plain" and, where it has one, "self_scale", on what is reported.

        Empty without a chosen merge. The sample logs of these cells are read again.
        """
        if (conclusion := self.conclusion) is None:
            return {}
        others = {PLAIN: PLAIN} | ({SELF_SCALE: conclusion.scale.cell} if conclusion.scale else {})
        chosen = self.runs[conclusion.cell]
        return {name: stock_scores(self.runs[cell], chosen) for name, cell in others.items()}

    @property
    def conclusion(self) -> Conclusion | None:
        """The answer as a record: the chosen merge beside plain and beside its scale control; None without one."""
        if self.selection is None:
            return None
        return conclude(self.selection, self.cells, self.controls, 1 if self.higher_is_better else -1)

    def verdict(self) -> str:
        """The answer in a sentence or two: `conclusion`'s text."""
        conclusion = self.conclusion
        return conclusion.text() if conclusion else NOTHING_YET

    def rules_in_words(self) -> str:
        """Which rule did best of how many; "" where all merges are by one."""
        if self.selection is None or not len(self.rules):
            return ""
        return by_rule.in_words(self.rules, 1 if self.higher_is_better else -1, held_out=self.selection.held_out)

    def random_layers_in_words(self, merged: str | None = None) -> str:
        """How a merge stands among the draws of its random layers; "" where it has none.

        Args:
            merged: its cell; the chosen merge by default.
        """
        if self.selection is None:
            return ""
        chosen = self.selection.cell
        drawn = self.random_layers[self.random_layers["merged"] == (merged or chosen)]
        sets = self._layer_sets() if merged in (None, chosen) else 1
        better = 1 if self.higher_is_better else -1
        return "".join(random_layers.in_words(row, sign=better, layer_sets=sets) for row in drawn.to_dict("records"))

    def _layer_sets(self) -> int:
        """Among how many sets of layers the merge was chosen, by the sweep itself or by the search that it is of."""
        own = int(self.cells.loc[self.cells["kind"] == "merged", "layers"].nunique())
        by_search = self.plan.get("chosen") or {}
        return max(own, by_search.get("layer_sets", 1))

    def further_verdicts(self) -> list[str]:
        """What else is said of the chosen merge: among the rules, and among the draws of its random layers."""
        return [text for text in (self.rules_in_words(), self.random_layers_in_words()) if text]

    def failures(self) -> list[str]:
        """Cells that failed or are damaged: which, why, and where their log is."""
        failed = self.cells[self.cells["status"].isin([FAILED, DAMAGED])]
        return [
            f"{row['status']}: {row['cell']}: {row['error']} ({self.folder / CELLS / row['cell'] / LOG})"
            for row in failed.to_dict("records")
        ]

    def to_dict(self, *, stock: bool = True) -> dict[str, Any]:
        """For JSON: folder, the tables, selection, label_free, verdict, conclusion, warnings, failures and more.

        Args:
            stock: whether `stock` is among them: a row for each metric, with what it is `against`.
        """
        return {
            "folder": str(self.folder),
            "verdict": self.verdict(),
            "further_verdicts": self.further_verdicts(),
            "conclusion": conclusion.to_dict() if (conclusion := self.conclusion) else None,
            "selection": asdict(self.selection) if self.selection else None,
            "label_free": asdict(self.label_free) if self.label_free else None,
            **{name: table.to_dict("records") for name, table in self.tables.items()},
            **({"stock": self._stock_rows()} if stock else {}),
            "warnings": list(self.warnings),
            "failures": self.failures(),
        }

    def _stock_rows(self) -> list[dict[str, Any]]:
        return [{"against": name, **asdict(score)} for name, scores in self.stock.items() for score in scores]

    def __repr__(self) -> str:
        return f"Findings({self.folder}, {len(self.cells)} cells: {self.verdict()})"

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is better in some of the tasks, or in all."""
        return set(self.runs[PLAIN].directions.values()) != {-1}


def read_findings(folder: str | Path, select: int | None = None) -> Findings:
    """Evaluate a sweep's folder as it is now, finished or not.

    A damaged cell counts as unfinished, and so does one that asked otherwise than plain.

    Args:
        folder: the --output of `plam sweep` or `plam compare`.
        select: choose on so many documents of each task, instead of as the sweep's config says; 0 chooses on all.

    Raises:
        SweepError: no sweep there. DamagedFileError: its plan cannot be read. RecordError: no task has a score.
            ValueError: `select` leaves nothing to report on.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    grid = Grid.from_dict(plan["grid"])
    select = plan["config"].get("select") if select is None else select
    states = [(cell, *read_state(folder, cell, plan["settings"])) for cell in grid.cells]
    cells = pd.DataFrame([_cell_row(cell, record, run) for cell, record, run in states])
    runs = {cell.name: run for cell, _, run in states if run is not None}
    differing = _set_apart_incomparable(folder, cells, runs)
    together = [record.get("together") or {} for _, record, _ in states]
    warnings = [*of_damaged(cells), *_of_answers_together(together), *differing, *comparable.notes_of(runs)]
    if PLAIN not in runs or len(runs) < 2:
        return _nothing_compared(folder, plan, cells, runs, warnings)
    drawn = read_drawn(plan, str(folder / PLAN), runs[PLAIN].samples)
    return _compared(folder, plan, grid, cells, runs, select or None, warnings, drawn=drawn)


def findings_of(grid: Grid, runs: Mapping[str, Run], select: int | None = None, *, resamples: int = 10_000) -> Findings:
    """What a sweep would have found whose cells gave these runs; its `plan` is the grid alone.

    Args:
        grid: of the sweep.
        runs: by cell; others count as missing.
        select: choose on so many documents of each task; None or 0 chooses on all.
        resamples: draws of the bootstrap, for the intervals; no p and no verdict depends on them.

    Raises:
        RecordError, ValueError: as `read_findings`.
    """
    runs = {cell.name: runs[cell.name] for cell in grid.cells if cell.name in runs}
    rows = [
        _cell_row(cell, {"status": FINISHED if cell.name in runs else "missing"}, runs.get(cell.name))
        for cell in grid.cells
    ]
    folder, plan, cells = Path(), {"grid": grid.to_dict()}, pd.DataFrame(rows)
    if PLAIN not in runs or len(runs) < 2:
        return _nothing_compared(folder, plan, cells, runs, ())
    return _compared(folder, plan, grid, cells, runs, select or None, (), resamples)


def _cell_row(cell: Cell, record: Mapping[str, Any], run: Run | None) -> dict[str, Any]:
    """A row of `Findings.cells`, before anything is compared."""
    spec, about = cell.spec, spec_columns(cell.spec)
    merge = (run.block.get("provenance") or {}).get("merge") or {} if run is not None else {}
    changes = merge.get("relative_change")
    return {
        "cell": cell.name,
        "kind": cell.kind,
        "layers": about["layers"],
        "start": spec.layers[0] if spec else None,
        "end": spec.layers[-1] + 1 if spec else None,
        **about,
        "digest": spec.digest() if spec else None,
        "status": record["status"],
        "error": record.get("error"),
        "relative_change": float(np.mean(list(changes.values()))) if changes else math.nan,
        "merge_seconds": record.get("seconds", {}).get("merge", math.nan),
        "evaluate_seconds": record.get("seconds", {}).get("evaluate", math.nan),
    }


def _set_apart_incomparable(folder: Path, cells: pd.DataFrame, runs: dict[str, Run]) -> list[str]:
    """What a reader should know of the others against plain; runs that asked otherwise are dropped, and damaged."""
    warnings = []
    for name in list(runs) if PLAIN in runs else ():
        try:
            warnings += [f"{name}: {w}" for w in comparable.check_comparable(runs[PLAIN], runs[name], (PLAIN, name))]
        except IncomparableError as error:
            remedy = f"delete {folder / CELLS / name}, and the same sweep evaluates it again"
            cells.loc[cells["cell"] == name, ["status", "error"]] = [DAMAGED, f"{error}\n{remedy}"]
            del runs[name]
    return warnings


def of_damaged(cells: pd.DataFrame) -> list[str]:
    """Which cells are damaged, and so left out of everything, and why.

    Args:
        cells: as `Findings.cells`.
    """
    damaged = cells[cells["status"] == DAMAGED]
    return [f"{row['cell']} counts as not evaluated: {row['error']}" for row in damaged.to_dict("records")]


def _of_answers_together(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader should know of answers that cells were given together, by `joint.Together.record` of each."""
    warnings = []
    asked, differ = (sum(record.get(key, 0) for record in records) for key in ("rechecked", "differ"))
    if differ:
        warnings.append(
            f"{differ} of {asked} answers that were given for several cells at once are others than the merged model's "
            "own: differences between cells of about this share mean nothing. Without --together there are none"
        )
    for reason in sorted({reason for record in records for reason in record.get("reasons", ())}):
        warnings.append(f"documents that were not answered for several cells at once: {reason}")
    return warnings


def _nothing_compared(
    folder: Path, plan: dict[str, Any], cells: pd.DataFrame, runs: dict[str, Run], warnings: Sequence[str]
) -> Findings:
    """While plain or everything beside it is unfinished."""
    return Findings(
        folder=folder,
        plan=plan,
        cells=cells.assign(**dict.fromkeys((*DIFFERENCE, "p_holm", *AGAIN, "differ_from_neighbours"), math.nan)),
        tasks=pd.DataFrame(columns=["cell", "task", *DIFFERENCE]),
        controls=pd.DataFrame(columns=list(_CONTROL_COLUMNS)),
        selection=None,
        label_free=None,
        compared={},
        runs=runs,
        warnings=tuple(warnings),
    )


def _compared(
    folder: Path,
    plan: dict[str, Any],
    grid: Grid,
    cells: pd.DataFrame,
    runs: dict[str, Run],
    select: int | None,
    warnings: Sequence[str],
    resamples: int = 10_000,
    drawn: Drawn | None = None,
) -> Findings:
    """Every run against plain and its controls, on the documents that nothing was chosen on."""
    scored, left_out = _scored_runs(runs, select, drawn)
    chosen_on, reported_on = split_documents(scored[PLAIN].samples, select, drawn)
    reported = {name: replace(run, samples=rows_of(run, reported_on)) for name, run in scored.items()}
    beside = _controls_beside(grid, reported)
    others = [name for name in reported if name != PLAIN]
    pairs = [*((PLAIN, name) for name in others), *((control, merged) for merged, _, control in beside)]
    paired = stats.compare_pairs(
        {name: run.samples for name, run in reported.items()},
        pairs,
        directions=reported[PLAIN].directions,
        resamples=resamples,
    )
    with_plain = {name: paired[PLAIN, name] for name in others}
    held_out = select is not None
    unlabelled = to_choose_without_labels(runs[PLAIN].samples, select, reported_on, drawn)
    neighbours = neighbours_of(grid, runs, unlabelled)
    samples = {name: reported[name].samples for name in others}
    table = _with_differences(cells, with_plain, neighbours)
    table = with_second_parser(table, reported[PLAIN].samples, samples, with_plain)
    return Findings(
        folder=folder,
        plan=plan,
        cells=table,
        tasks=_task_table(with_plain),
        controls=_control_table(beside, paired, reported),
        selection=best_merge(table, scored, chosen_on, reported_on, held_out=held_out, by_search=plan.get("chosen")),
        label_free=choose_without_labels(neighbours, table, with_plain, held_out=held_out),
        compared=with_plain,
        runs=reported,
        warnings=(*warnings, *_of_many_settings(len(runs) - 1), *left_out),
    )


def _of_many_settings(settings: int) -> list[str]:
    """What to say where so many settings are compared that no adjusted p can show a difference."""
    if settings * stats.SMALLEST_P < SIGNIFICANT:
        return []
    return [
        f"{settings} settings: sign flips give no p below {stats.SMALLEST_P:g}, so p Holm cannot fall below "
        f"{SIGNIFICANT}"
    ]


def _scored_runs(runs: dict[str, Run], select: int | None, drawn: Drawn | None) -> tuple[dict[str, Run], list[str]]:
    """Runs with the tasks and documents that are scored in all of them, and what was left out, in words."""
    scored, left_out = comparable.only_scored(runs)
    scored, short = with_documents_to_report(scored, runs[PLAIN].samples, select, drawn)
    return scored, [*left_out, *short, *comparable.mixed_directions(scored[PLAIN].directions)]


def _controls_beside(grid: Grid, runs: Mapping[str, Run]) -> list[tuple[str, str, str]]:
    """(merged cell, rule, cell of its control) where both have a run."""
    return [
        (merged, rule, control)
        for merged, by_rule in grid.controls.items()
        for rule, controls in by_rule.items()
        for control in controls
        if merged in runs and control in runs
    ]


def _with_differences(
    cells: pd.DataFrame, with_plain: Mapping[str, Sequence[Paired]], neighbours: Mapping[str, Neighbours]
) -> pd.DataFrame:
    """`Findings.cells`: the rows of cells with their means over tasks against plain, p adjusted for all of them."""
    overall = [{"cell": name, **asdict(comparisons[-1])} for name, comparisons in with_plain.items()]
    differences = pd.DataFrame(overall).drop(columns="task")
    differences["p_holm"] = stats.holm(differences["p"].tolist())
    table = cells.merge(differences, on="cell", how="left")
    any_overall = next(iter(with_plain.values()))[-1]  # plain's own score is the same in each
    itself = table["cell"] == PLAIN
    table.loc[itself, "second"] = any_overall.first
    table.loc[itself, "parsable_second"] = any_overall.parsable_first
    differ = {name: between.differ for name, between in neighbours.items()}
    table["differ_from_neighbours"] = table["cell"].map(differ)
    counts = ["differ_from_neighbours", "documents", "groups", "gained", "lost", "needed", "start", "end", "seed"]
    return table.astype(dict.fromkeys(counts, "Int64"))


def _task_table(with_plain: Mapping[str, Sequence[Paired]]) -> pd.DataFrame:
    """`Findings.tasks`."""
    rows = [{"cell": name, **asdict(task)} for name, comparisons in with_plain.items() for task in comparisons]
    return pd.DataFrame(rows).astype({"needed": "Int64"})


def _control_table(
    beside: Sequence[tuple[str, str, str]],
    paired: Mapping[tuple[str, str], Sequence[Paired]],
    runs: Mapping[str, Run],
) -> pd.DataFrame:
    """`Findings.controls`."""
    rows = []
    for merged, rule, control in beside:
        overall = asdict(paired[control, merged][-1])
        overall.pop("task")
        differ = _answers_differ(runs[control].samples, runs[merged].samples)
        rows.append({"merged": merged, "rule": rule, "control": control, "answers_differ": differ, **overall})
    return pd.DataFrame(rows).astype({"needed": "Int64"}) if rows else pd.DataFrame(columns=list(_CONTROL_COLUMNS))


def _answers_differ(one: pd.DataFrame, other: pd.DataFrame) -> int:
    """How many documents two runs answer differently."""
    answers = dict(zip(names_of(one), one["answer"], strict=True))
    return sum(answers[document] != answer for document, answer in zip(names_of(other), other["answer"], strict=True))
