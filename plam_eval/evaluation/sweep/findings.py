"""What a sweep found: every setting against the plain model and its controls, with selection and report kept apart."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plam_eval.errors import InputError
from plam_eval.evaluation import records, stats
from plam_eval.evaluation.records import IncomparableError, Run
from plam_eval.evaluation.stats import Paired
from plam_eval.evaluation.sweep.folder import CELLS, DAMAGED, FAILED, LOG, read_plan, read_state
from plam_eval.evaluation.sweep.grid import PLAIN, Grid, module_group
from plam_eval.files import write_in_one_step

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Selection:
    """The merge that scored best, and on what.

    Attributes:
        cell: its name.
        tried: merged cells it was chosen from.
        held_out: whether it was chosen on other documents than those it is reported on. If not, its figures look better
            than they are.
        chosen_on, reported_on: documents by task.
        difference_chosen: its gain over plain on the documents it was chosen on, mean over tasks.
    """

    cell: str
    tried: int
    held_out: bool
    chosen_on: dict[str, int]
    reported_on: dict[str, int]
    difference_chosen: float


@dataclass(frozen=True, repr=False)
class Findings:
    """A sweep's folder, evaluated.

    Attributes:
        folder, plan: the sweep's, and its `sweep.json`.
        cells: one row per cell of the plan: cell, kind, layers ("6:8"), start, end, modules, model_weight, base_weight,
            rule, seed, digest, status ("finished", "failed", "missing", or "damaged": what is in its folder is not
            whole, or not of this sweep), error (of failed and damaged ones), relative_change (mean over layers),
            merge_seconds, evaluate_seconds; and over the reported documents, mean over tasks, against plain: the fields
            of `stats.Paired` without `task`, and p_holm, adjusted for all comparisons with plain in this table.
        tasks: per finished cell and task (OVERALL last), the fields of `stats.Paired` against plain, with `cell`.
        controls: per merged cell and control of it: merged, rule, control (its cell), and the fields of `stats.Paired`
            for the mean over tasks, control first and merge second; answers_differ, of the reported documents.
        selection: None while fewer than one merged cell and plain are finished.
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
    compared: dict[str, list[Paired]]
    runs: dict[str, Run]
    warnings: tuple[str, ...]

    def write(self) -> None:
        """Write `cells`, `tasks` and `controls` into the sweep's folder, as CSV and parquet."""
        for name in ("cells", "tasks", "controls"):
            write_table(getattr(self, name), self.folder / name)

    def verdict(self) -> str:
        """The answer in a sentence or two: the chosen merge beside plain and beside its scale control."""
        if self.selection is None:
            return "Nothing to say yet: the plain model and at least one merge have to be finished."
        row = self.cells.set_index("cell").loc[self.selection.cell]
        tried, where = self.selection.tried, "other" if self.selection.held_out else "the same"
        chosen = f"Best of {tried} merges, chosen on {where} documents" if tried > 1 else "One merge"
        text = (
            f"{chosen}: {describe(row)}. It scores {row['difference']:+.3f} against plain "
            f"({row['gained']} gained, {row['lost']} lost, p = {format_p(row['p'])}): "
        )
        beside = self.controls[(self.controls["merged"] == row.name) & (self.controls["rule"] == "self_scale")]
        against = beside.iloc[0] if len(beside) else None
        higher, lower = ("better", "worse") if self._higher_is_better else ("worse", "better")
        effect = higher if row["difference"] > 0 else lower
        chosen_here = not self.selection.held_out and tried > 1
        if row["p_holm" if chosen_here else "p"] >= SIGNIFICANT:
            text += "no difference is shown."
        elif against is None:
            text += (
                f"{effect} than plain, and no scale control was run that would say whether the base has a part in it."
            )
        elif against["p"] < SIGNIFICANT:
            beyond = higher if against["difference"] > 0 else lower
            link = "and" if beyond == effect else "but"
            text += f"{effect} than plain, {link} {beyond} than the same scale without the base."
        else:
            text += f"{effect} than plain, but not shown to differ from the same scale without the base."
        if against is not None:
            text += (
                f" Merge against scale control: {against['difference']:+.3f}, {against['gained']} gained, "
                f"{against['lost']} lost, p = {format_p(against['p'])}; {against['answers_differ']} of "
                f"{against['documents']} answers differ."
            )
        if chosen_here:
            text += (
                f" Chosen and reported on the same documents, so this looks better than it is; adjusted for all "
                f"settings p = {format_p(row['p_holm'])}."
            )
        return text

    def failures(self) -> list[str]:
        """Cells that failed or are damaged: which, why, and where their log is."""
        failed = self.cells[self.cells["status"].isin([FAILED, DAMAGED])]
        return [
            f"{row['status']}: {row['cell']}: {row['error']} ({self.folder / CELLS / row['cell'] / LOG})"
            for row in failed.to_dict("records")
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: folder, the three tables, selection, verdict, warnings, failures."""
        return {
            "folder": str(self.folder),
            "verdict": self.verdict(),
            "selection": asdict(self.selection) if self.selection else None,
            **{name: getattr(self, name).to_dict("records") for name in ("cells", "tasks", "controls")},
            "warnings": list(self.warnings),
            "failures": self.failures(),
        }

    def __repr__(self) -> str:
        return f"Findings({self.folder}, {len(self.cells)} cells: {self.verdict()})"

    @property
    def _higher_is_better(self) -> bool:
        return set(self.runs[PLAIN].directions.values()) != {-1}


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as `path`.parquet, exactly, and as `path`.csv (`write_csv`), each in one step."""
    write_csv(table, path.with_name(f"{path.name}.csv"))
    target = path.with_name(f"{path.name}.parquet")
    write_in_one_step(target, lambda partial: table.to_parquet(partial, index=False))


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, in one step; a text that a spreadsheet would run as a formula gets an apostrophe before it.

    Those are texts that begin with = + - @ (or their wide forms), a tab or a line end; numbers stay as they are.
    """
    texts = {
        name: column.astype(object).map(_no_formula)
        for name, column in table.items()
        if not pd.api.types.is_numeric_dtype(column.dtype)
    }
    escaped = table.assign(**{str(name): column for name, column in texts.items()}) if texts else table
    # Quoted: pandas leaves a lone carriage return in an answer bare, and readers take it for a line end.
    write_in_one_step(path, lambda partial: escaped.to_csv(partial, index=False, quoting=csv.QUOTE_NONNUMERIC))


_FORMULA = tuple("=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\uff0d\N{FULLWIDTH COMMERCIAL AT}")


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def describe(row: Mapping[str, Any] | pd.Series) -> str:
    """A cell in words: "layers 6:8, qkvo, 0.9 + 0.3"."""
    if row["kind"] == "plain":
        return "plain"
    weights = f"{row['model_weight']:g} + {row['base_weight']:g}"
    return ", ".join([f"layers {row['layers']}", row["modules"], weights, *describe_rule(row)])


def describe_rule(row: Mapping[str, Any] | pd.Series) -> list[str]:
    """The rule of a cell that is not the merge itself, and its seed if that is not the first."""
    if row["rule"] == "weighted_sum":
        return []
    return [str(row["rule"]), *([f"seed {row['seed']}"] if row["seed"] else [])]


def format_p(p: float) -> str:
    """Two digits that count, one below 0.001; "-" where there is none."""
    if math.isnan(p):
        return "-"
    return f"{p:.2f}" if p >= 0.1 else f"{p:.2g}" if p >= 0.001 else f"{p:.1g}"


def read_findings(folder: str | Path, select: int | None = None) -> Findings:
    """Evaluate a sweep's folder as it is now, finished or not.

    Args:
        select: choose on so many documents of each task, instead of as the sweep's config says; 0 chooses on all.

    Raises:
        SweepError: no sweep there. DamagedFileError: its plan cannot be read. RecordError: no task has a score.
            ValueError: `select` leaves nothing to report on. A damaged cell counts as unfinished, and so does one that
            asked otherwise than plain.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    grid = Grid.from_dict(plan["grid"])
    select = plan["config"].get("select") if select is None else select
    rows, runs, together = [], dict[str, Run](), list[dict[str, Any]]()
    for cell in grid.cells:
        record, run = read_state(folder, cell, plan["settings"])
        spec = cell.spec
        row = {
            "cell": cell.name,
            "kind": cell.kind,
            "layers": f"{spec.layer_range[0]}:{spec.layer_range[1]}" if spec else None,
            "start": spec.layer_range[0] if spec else None,
            "end": spec.layer_range[1] if spec else None,
            "modules": module_group(spec.modules) if spec else None,
            "model_weight": spec.weights.model if spec else None,
            "base_weight": spec.weights.base_model if spec else None,
            "rule": spec.rule if spec else None,
            "seed": spec.seed if spec else None,
            "digest": spec.digest() if spec else None,
            "status": record["status"],
            "error": record.get("error"),
            "relative_change": math.nan,
            "merge_seconds": record.get("seconds", {}).get("merge", math.nan),
            "evaluate_seconds": record.get("seconds", {}).get("evaluate", math.nan),
        }
        if run is not None:
            runs[cell.name] = run
            merge = (run.block.get("provenance") or {}).get("merge") or {}
            if changes := merge.get("relative_change"):
                row["relative_change"] = float(np.mean(list(changes.values())))
        rows.append(row)
        together.append(record.get("together") or {})
    cells = pd.DataFrame(rows)
    differ = []
    for name in list(runs) if PLAIN in runs else ():
        try:
            differ += [f"{name}: {w}" for w in records.check_comparable(runs[PLAIN], runs[name], (PLAIN, name))]
        except IncomparableError as error:
            remedy = f"delete {folder / CELLS / name}, and the same sweep evaluates it again"
            cells.loc[cells["cell"] == name, ["status", "error"]] = [DAMAGED, f"{error}\n{remedy}"]
            del runs[name]
    warnings = _of_damaged(cells) + _of_answers_together(together) + differ + records.notes_of(runs)
    return _evaluated(folder, plan, grid, cells, runs, select or None, tuple(warnings))


def _of_damaged(cells: pd.DataFrame) -> list[str]:
    damaged = cells[cells["status"] == DAMAGED]
    return [f"{row['cell']} counts as not evaluated: {row['error']}" for row in damaged.to_dict("records")]


def _of_answers_together(parts: list[dict[str, Any]]) -> list[str]:
    """What a reader should know of answers that cells were given together (`evaluation/together.py`)."""
    warnings = []
    asked, differ = (sum(part.get(key, 0) for part in parts) for key in ("rechecked", "differ"))
    if differ:
        warnings.append(
            f"{differ} of {asked} answers that were given for several cells at once are others than the merged model's "
            "own: differences between cells of about this share mean nothing. Without --together there are none"
        )
    for reason in sorted({reason for part in parts for reason in part.get("reasons", ())}):
        warnings.append(f"documents that were not answered for several cells at once: {reason}")
    return warnings


def _evaluated(
    folder: Path,
    plan: dict[str, Any],
    grid: Grid,
    cells: pd.DataFrame,
    runs: dict[str, Run],
    select: int | None,
    warnings: tuple[str, ...],
) -> Findings:
    paired = [name for name in PAIRED if name != "task"]
    empty = Findings(
        folder,
        plan,
        cells.assign(**dict.fromkeys((*paired, "p_holm"), math.nan)),
        pd.DataFrame(columns=["cell", *PAIRED]),
        pd.DataFrame(columns=["merged", "rule", "control", "answers_differ", *paired]),
        None,
        {},
        runs,
        warnings,
    )
    others = {name: run for name, run in runs.items() if name != PLAIN}
    if PLAIN not in runs or not others:
        return empty
    if len(others) * stats.SMALLEST_P >= SIGNIFICANT:
        warnings = (
            *warnings,
            f"{len(others)} settings: sign flips give no p below {stats.SMALLEST_P:g}, so p Holm cannot fall below "
            f"{SIGNIFICANT}",
        )
    whole = runs[PLAIN].samples
    runs, left_out = records.scored(runs)
    runs, short = _with_documents_to_report(runs, whole, select)
    others = {name: run for name, run in runs.items() if name != PLAIN}
    warnings = (*warnings, *left_out, *short, *records.mixed_directions(runs[PLAIN].directions))
    chosen_on, reported_on = split(runs[PLAIN].samples, select)
    reported = {name: replace(run, samples=_rows(run, reported_on)) for name, run in runs.items()}
    beside = [
        (merged, rule, name)
        for merged, by_rule in grid.controls.items()
        for rule, names in by_rule.items()
        for name in names
        if merged in reported and name in reported
    ]
    pairs = [*((PLAIN, name) for name in others), *((control, merged) for merged, _, control in beside)]
    every = stats.compare_pairs(
        {name: run.samples for name, run in reported.items()}, pairs, directions=runs[PLAIN].directions
    )
    compared = {name: every[PLAIN, name] for name in others}
    by_cell = pd.DataFrame([{"cell": n, **asdict(c[-1])} for n, c in compared.items()]).drop(columns="task")
    by_cell["p_holm"] = stats.holm(by_cell["p"].tolist())
    table = cells.merge(by_cell, on="cell", how="left")
    itself = table["cell"] == PLAIN
    table.loc[itself, "second"] = compared[next(iter(compared))][-1].first
    table.loc[itself, "parsable_second"] = compared[next(iter(compared))][-1].parsable_first
    counts = ["documents", "groups", "gained", "lost", "needed", "start", "end", "seed"]
    table = table.astype(dict.fromkeys(counts, "Int64"))
    controls = []
    for merged, rule, control in beside:
        overall = asdict(every[control, merged][-1])
        overall.pop("task")
        differ = _answers_differ(reported[control].samples, reported[merged].samples)
        controls.append({"merged": merged, "rule": rule, "control": control, "answers_differ": differ, **overall})
    return Findings(
        folder,
        plan,
        table,
        pd.DataFrame([{"cell": name, **asdict(task)} for name, c in compared.items() for task in c]).astype(
            {"needed": "Int64"}
        ),
        pd.DataFrame(controls).astype({"needed": "Int64"}) if controls else empty.controls,
        _select(table, runs, chosen_on, reported_on, held_out=select is not None),
        compared,
        reported,
        warnings,
    )


PAIRED = tuple(stats.Paired.__dataclass_fields__)


def split(samples: pd.DataFrame, select: int | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(task, doc_id) of the documents to choose on, and of those to report on; None gives all of them twice.

    Documents to choose on are the first `select` of each task and those that share an image or a question with one.
    Sharing a subject (MMMU) is no reason: what is asked is another question.
    """
    keys = samples[["task", "doc_id"]]
    if select is None:
        return keys, keys
    subject = samples["group"].str.startswith("subject ")
    bound = samples.assign(group=samples["group"].mask(subject, "document " + samples["doc_id"].astype(str)))
    ordered = bound.assign(order=pd.to_numeric(samples["doc_id"], errors="coerce")).sort_values(["task", "order"])
    first = ordered.groupby("task").head(select)
    groups = pd.MultiIndex.from_frame(first[["task", "group"]])
    chosen = pd.MultiIndex.from_frame(bound[["task", "group"]]).isin(groups)
    counts = samples[~chosen].groupby("task").size()
    if short := [str(task) for task in samples["task"].unique() if counts.get(task, 0) == 0]:
        raise InputError(
            f"choosing on {select} documents leaves none of {', '.join(short)} to report on; choose on fewer, or "
            "evaluate more"
        )
    return keys[chosen], keys[~chosen]


def _with_documents_to_report(
    runs: dict[str, Run], whole: pd.DataFrame, select: int | None
) -> tuple[dict[str, Run], list[str]]:
    """Runs without the tasks of which a judge left so few documents that none is there to report on, and their names.

    Args:
        whole: the documents before those without a verdict were left out.
    """

    def enough(samples: pd.DataFrame, task: str) -> bool:
        try:
            split(samples[samples["task"] == task], select)
        except InputError:
            return False
        return True

    kept = runs[PLAIN].samples
    short = [task for task in runs[PLAIN].tasks if not enough(kept, task) and enough(whole, task)]
    if not short or len(short) == len(runs[PLAIN].tasks):
        return runs, []
    left = [task for task in runs[PLAIN].tasks if task not in short]
    notes = [
        f"{task}: left out, its documents that a judge came to a verdict on are all among the {select} to choose on"
        for task in short
    ]
    return {name: run.only(left) for name, run in runs.items()}, notes


def _rows(run: Run, keys: pd.DataFrame) -> pd.DataFrame:
    wanted = pd.MultiIndex.from_frame(keys)
    found = pd.MultiIndex.from_frame(run.samples[["task", "doc_id"]]).isin(wanted)
    return run.samples[found].reset_index(drop=True)


def _answers_differ(one: pd.DataFrame, other: pd.DataFrame) -> int:
    answers = one.merge(other, on=["task", "doc_id"])
    return int((answers["answer_x"] != answers["answer_y"]).sum())


def _select(
    table: pd.DataFrame, runs: Mapping[str, Run], chosen_on: pd.DataFrame, reported_on: pd.DataFrame, *, held_out: bool
) -> Selection | None:
    candidates = [str(name) for name in table.loc[table["kind"] == "merged", "cell"] if name in runs]
    if not candidates:
        return None
    plain = _mean(_rows(runs[PLAIN], chosen_on), runs[PLAIN].directions)
    gains = {name: _mean(_rows(runs[name], chosen_on), runs[PLAIN].directions) - plain for name in candidates}
    best = max(gains, key=lambda name: gains[name])  # the first of equals
    return Selection(
        cell=best,
        tried=len(candidates),
        held_out=held_out,
        chosen_on={str(task): int(n) for task, n in chosen_on.groupby("task", sort=False).size().items()},
        reported_on={str(task): int(n) for task, n in reported_on.groupby("task", sort=False).size().items()},
        difference_chosen=gains[best],
    )


def _mean(samples: pd.DataFrame, directions: Mapping[str, int]) -> float:
    """Mean over tasks, lower-is-better ones negated."""
    by_task = samples.groupby("task")["score"].mean()
    return float(np.mean([directions.get(str(task), 1) * value for task, value in by_task.items()]))
