"""What the documents of a `plam attend` say together: settings beside each other, by layer, and in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from plam_eval import files
from plam_eval.errors import InputError
from plam_eval.evaluation import scan_folder, stats
from plam_eval.evaluation.attend import folder as layout
from plam_eval.evaluation.attend.compared import (
    CHOSEN,
    DIFFERENCE,
    OTHER_OVER_CHANCE,
    OVER_CHANCE,
    REPORTED,
    compare,
)
from plam_eval.evaluation.attend.folder import MERGED, WITHOUT_SINKS, Attended, AttendError
from plam_eval.evaluation.attend.sentence import sentence_of, warnings_of

ATTENTION_FIGURE, DEPTH_FIGURE = "attention", "depth"
"""Names of the figures of measures by layer, and of what layers are needed for and do, as .png and .svg."""

_IN_A_TERMINAL = (OVER_CHANCE, OTHER_OVER_CHANCE, "entropy", "spatial_entropy", "image_share")


@dataclass(frozen=True, repr=False, eq=False)
class AttendFindings:
    """The folder of a `plam attend`, evaluated.

    A *pair* is a first and a second setting; differences are second minus first: every setting against plain, and
    merged against every other one. Means are over tasks, each of which counts the same. Documents without a value on
    either side are left out of a row.

    Attributes:
        folder: where it is.
        settings: their names, the plain one first.
        num_layers: of the decoder.
        plateau: the layers that are merged, end exclusive; None without a merge.
        queries: whose attention it is: "last", "question" or "answer".
        differences: a row for each measure of `compared.COMPARED`, sinks ("with" or "without"), pair and layer, over
            all documents: measure, sinks, first, second, layer, first_mean, second_mean, difference, low, high (95 %
            interval; NaN where a task has too few clusters for one), p, p_holm (adjusted for the layers of this measure
            and pair), documents, clusters, tasks. Means of `over_chance` and `other_over_chance` are logarithms of
            ratios to chance.
        levels: a row for each measure, sinks, setting and layer: these, mean, low, high, documents, clusters, tasks.
        quoted: as `differences`, without p_holm, of few places: measure, sinks, place ("chosen": the layer where merged
            differs most from plain, in standard errors, on documents to choose on; "plateau": the mean over its
            layers), on ("reported" or "all" documents), layer (NA for the plateau), and so on.
        held_out: whether layers were chosen on other documents than those they are reported on.
        chosen_on, reported_on: documents by task; both are all of them where not held out.
        answers: a row for each setting: setting, score (mean over tasks), parsable (share), documents.
        skipped: documents without measures, by reason.
        sentence: what can be said of merged against plain and against its scale alone.
        warnings: what a reader of the figures should know.
        select: documents of each task that were asked for to choose layers on; None for half of them.
    """

    folder: Path
    settings: tuple[str, ...]
    num_layers: int
    plateau: tuple[int, int] | None
    queries: str
    differences: pd.DataFrame
    levels: pd.DataFrame
    quoted: pd.DataFrame
    held_out: bool
    chosen_on: dict[str, int]
    reported_on: dict[str, int]
    answers: pd.DataFrame
    skipped: dict[str, int]
    sentence: str
    warnings: tuple[str, ...]
    select: int | None = None

    def chosen_layer(self, measure: str) -> int | None:
        """The layer that is quoted of a measure; None where none could be chosen.

        Args:
            measure: of `compared.COMPARED`.
        """
        rows = self.quoted[(self.quoted["measure"] == measure) & (self.quoted["place"] == CHOSEN)]
        return int(rows["layer"].iloc[0]) if len(rows) else None

    def table(self) -> pd.DataFrame:
        """What a terminal has room for: merged against the others on the reported documents, sinks left out.

        Returns:
            Columns: measure, layers ("12", or "8:16" for their mean), first, second, first_mean, second_mean,
            difference, low, high, p, documents, clusters.
        """
        quoted = self.quoted
        wanted = quoted["measure"].isin(_IN_A_TERMINAL) & (quoted["sinks"] == WITHOUT_SINKS)
        rows = quoted[wanted & (quoted["second"] == MERGED) & (quoted["on"] == REPORTED)]
        span = "{}:{}".format(*self.plateau) if self.plateau else ""
        layers = [span if pd.isna(layer) else str(layer) for layer in rows["layer"]]
        columns = ["measure", "layers", "first", "second", *DIFFERENCE[:-1]]
        return rows.assign(layers=layers)[columns].reset_index(drop=True)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: sentence, warnings, what is quoted, how layers were chosen, answers. By layer: the tables."""
        return {
            "folder": str(self.folder),
            "settings": list(self.settings),
            "num_layers": self.num_layers,
            "plateau": list(self.plateau) if self.plateau else None,
            "queries": self.queries,
            "sentence": self.sentence,
            "warnings": list(self.warnings),
            "select": self.select,
            "held_out": self.held_out,
            "chosen_on": self.chosen_on,
            "reported_on": self.reported_on,
            "answers": _records(self.answers),
            "skipped": self.skipped,
            "quoted": _records(self.quoted),
        }

    def write(self) -> None:
        """Write the findings as JSON into the folder, and the differences by layer as CSV and parquet."""
        files.write_table(self.differences, files.inside(self.folder, layout.FINDINGS_TABLE, str(self.folder)))
        files.write_json(files.inside(self.folder, layout.FINDINGS_FILE, str(self.folder)), self.to_dict())

    def __repr__(self) -> str:
        return f"AttendFindings({self.folder}, {', '.join(self.settings)}: {self.sentence})"


def conclude(folder: str | Path, *, select: int | None = None, scans: Sequence[Path] = ()) -> AttendFindings:
    """From the measures in a folder to findings and figures; what an earlier call wrote is replaced.

    Args:
        folder: of a `plam attend`.
        select: as `find` takes it.
        scans: folders of scans of the same model, whose curves stand above what layers do.

    Raises:
        AttendError: no such folder, no document in it has measures, or a scan is of another number of layers.
            InputError: as `find`. ScanError, DamagedFileError, OutsideError: what cannot be read.
    """
    from plam_eval.evaluation.attend.overlays import write_overlays
    from plam_eval.evaluation.attend.plot import attention_figure
    from plam_eval.figures import save_figure

    attended = layout.load(Path(folder))
    findings = find(attended, select=select)
    drawn = {ATTENTION_FIGURE: attention_figure(attended, findings)}
    if attended.depth is not None or scans:
        from plam_eval.evaluation.attend.depth_plot import depth_figure

        drawn[DEPTH_FIGURE] = depth_figure(attended, [scan_folder.load(Path(scan)) for scan in scans])
    for (name, figure), suffix in product(drawn.items(), (".png", ".svg")):
        file = files.inside(attended.folder, f"{name}{suffix}", str(attended.folder))
        files.write_in_one_step(file, partial(save_figure, figure))
    if undrawn := write_overlays(attended, findings):
        findings = replace(findings, warnings=(*findings.warnings, *undrawn))
    findings.write()
    return findings


def find(attended: Attended, *, select: int | None = None) -> AttendFindings:
    """Compare the settings of a folder.

    Layers to quote are chosen on some documents of each task, the first ones and those that share a cluster with one of
    them, and reported on the others.

    Args:
        attended: the folder's content.
        select: so many documents of each task to choose on, half of them by default; 0 chooses on all that are
            reported.

    Raises:
        AttendError: no document has measures, or layers are merged that the decoder has not.
        InputError: `select` leaves none of a task to report on.
    """
    if select is not None and select < 0:
        raise InputError(f"select is {select}; expected a number of documents, 0 or more")
    skipped = _skipped(attended.answers)
    if attended.measures.empty:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in skipped.items())
        raise AttendError(f"{attended.folder}: no document has measures" + (f": {reasons}" if reasons else ""))
    if attended.plateau is not None and attended.plateau[1] > attended.num_layers:
        start, end = attended.plateau
        raise AttendError(
            f"{attended.folder}: layers {start}:{end} are merged, and the decoder has {attended.num_layers}"
        )
    compared = compare(attended, select)
    return AttendFindings(
        folder=attended.folder,
        settings=tuple(attended.settings),
        num_layers=attended.num_layers,
        plateau=attended.plateau,
        queries=str(attended.made_with["queries"]),
        differences=compared.differences,
        levels=compared.levels,
        quoted=compared.quoted,
        held_out=compared.held_out,
        chosen_on=compared.chosen_on,
        reported_on=compared.reported_on,
        answers=_answers(attended),
        skipped=skipped,
        sentence=sentence_of(attended, compared),
        warnings=(*_of_skipped(skipped), *warnings_of(attended, compared)),
        select=select,
    )


def selected(folder: Path) -> int | None:
    """The `select` that a folder was concluded with last, to be read as it was said; None for half of each task.

    Args:
        folder: of a `plam attend`.

    Raises:
        OutsideError: its conclusions lie elsewhere. DamagedFileError: they cannot be read.
    """
    file = files.inside(folder, layout.FINDINGS_FILE, str(folder))
    if not file.is_file():
        return None
    select = files.read_json(file, "run the same `plam attend` again").get("select")
    return select if type(select) is int and select >= 0 else None


def _skipped(answers: pd.DataFrame) -> dict[str, int]:
    """Documents without measures by reason, the most frequent first."""
    reasons = answers.dropna(subset="skipped").drop_duplicates(["task", "doc_id"])["skipped"]
    return {str(reason): int(count) for reason, count in reasons.value_counts().items()}


def _of_skipped(skipped: dict[str, int]) -> list[str]:
    return [f"{count} documents have no measures: {reason}" for reason, count in skipped.items()]


def _answers(attended: Attended) -> pd.DataFrame:
    """`AttendFindings.answers`."""
    rows = []
    for setting in attended.settings:
        own = attended.answers[attended.answers["setting"] == setting]
        by_task = own.assign(score=own["score"].astype(float)).groupby("task")["score"].mean()
        rows.append(
            {
                "setting": setting,
                "score": float(by_task.mean()),
                "parsable": stats.parsable_share(own["parsable"]),
                "documents": len(own),
            }
        )
    return pd.DataFrame(rows)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON holds them."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]
