"""The record of what a `plam attend` found; `findings` makes it, figures and pages read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from plam_eval import files, table_files
from plam_eval.evaluation.attend import folder as layout
from plam_eval.evaluation.attend.compared import CHOSEN, DIFFERENCE, OTHER_OVER_CHANCE, OVER_CHANCE, REPORTED
from plam_eval.evaluation.attend.folder import MERGED, WITHOUT_SINKS
from plam_eval.layer_sets import write_layers

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
        merged_layers: the layers that are merged, in order; none without a merge.
        queries: whose attention it is: "last", "question" or "answer".
        differences: a row for each measure of `compared.COMPARED`, sinks ("with" or "without"), pair and layer, over
            all documents: measure, sinks, first, second, layer, first_mean, second_mean, difference, low, high (95 %
            interval; NaN where a task has too few clusters for one), p, p_holm (adjusted for the layers of this measure
            and pair), documents, clusters, tasks. Means of `over_chance` and `other_over_chance` are logarithms of
            ratios to chance.
        levels: a row for each measure, sinks, setting and layer: these, mean, low, high, documents, clusters, tasks.
        quoted: as `differences`, of few places: measure, sinks, place ("chosen": the layer where merged differs most
            from plain, in standard errors, on documents to choose on; "plateau": the mean over all that are merged), on
            ("reported" or "all" documents), layer (NA for a mean), and so on. Here p_holm is adjusted where the
            layer was chosen on the documents that it is reported on, and is p elsewhere.
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
    merged_layers: tuple[int, ...]
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
            Columns: measure, layers ("12", or "8:16" and "3+9+20" for their mean), first, second, first_mean,
            second_mean, difference, low, high, p (p_holm of `quoted`), documents, clusters.
        """
        quoted = self.quoted
        wanted = quoted["measure"].isin(_IN_A_TERMINAL) & (quoted["sinks"] == WITHOUT_SINKS)
        rows = quoted[wanted & (quoted["second"] == MERGED) & (quoted["on"] == REPORTED)]
        span = write_layers(self.merged_layers) if self.merged_layers else ""
        layers = [span if pd.isna(layer) else str(layer) for layer in rows["layer"]]
        columns = ["measure", "layers", "first", "second", *DIFFERENCE[:-1]]
        return rows.assign(layers=layers, p=rows["p_holm"])[columns].reset_index(drop=True)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: sentence, warnings, what is quoted, how layers were chosen, answers. By layer: the tables."""
        return {
            "folder": str(self.folder),
            "settings": list(self.settings),
            "num_layers": self.num_layers,
            "merged_layers": list(self.merged_layers),
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
        table_files.write_table(self.differences, files.inside(self.folder, layout.FINDINGS_TABLE, str(self.folder)))
        files.write_json(files.inside(self.folder, layout.FINDINGS_FILE, str(self.folder)), self.to_dict())

    def __repr__(self) -> str:
        return f"AttendFindings({self.folder}, {', '.join(self.settings)}: {self.sentence})"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON holds them."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]
