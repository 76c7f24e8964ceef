"""What a search found: every setting with its gain on the documents to choose on, and the chosen one on the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from plam_eval import files, table_files
from plam_eval.evaluation.label_free import compare_neighbours, least_differing
from plam_eval.evaluation.search.answers import PLAIN_SETTING, Answers
from plam_eval.evaluation.search.config import SearchConfig
from plam_eval.evaluation.search.job import HELD_OUT, TRIALS, Standing, read_documents, read_plan
from plam_eval.evaluation.stats import format_p
from plam_eval.evaluation.sweep.findings import Findings, read_findings
from plam_eval.evaluation.sweep.folder import PLAN
from plam_eval.evaluation.sweep.grid import SPEC_COLUMNS, Cell, describe_cell, spec_columns
from plam_eval.evaluation.sweep.lines import coordinates_of
from plam_eval.rules import SELF_SCALE
from plam_eval.spec import PlateauSpec

_COLUMNS = ("number", "setting", *SPEC_COLUMNS, "documents", "gain", "whole", "chosen")


@dataclass(frozen=True, repr=False)
class SearchFindings:
    """A search's folder, evaluated.

    Attributes:
        folder: of the search.
        trials: one row per setting that has answers: number (of its proposal; below 0: what the search began with),
            setting (its digest), layers, modules, weights (as in `Findings.cells`), model_weight and base_weight (of
            the first of the layers), rule, seed, parameters, documents (answered), gain (over plain, on these, mean
            over tasks), whole (all documents to choose on are answered; else it was given up, or is being answered),
            chosen.
        sampler: what proposed them.
        documents: to choose on.
        held_out: the sweep on the other documents, with the chosen merge beside its controls and the merges that it is
            held against; None before it has begun.
        label_free: digest of the setting whose answers differ least from its neighbours' (docs/comparing.md), which
            needs no labels; None where no whole setting lies between two others.
        chosen: the best setting's spec; None before one is whole.
        failed: settings of this call that failed, with their error.
    """

    folder: Path
    trials: pd.DataFrame
    sampler: str
    documents: int
    held_out: Findings | None
    label_free: str | None
    chosen: PlateauSpec | None
    failed: dict[str, str]

    @property
    def tried(self) -> int:
        """Different settings that have answers, those that were given up among them."""
        return len(self.trials)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know of the cells on the other documents."""
        return self.held_out.warnings if self.held_out is not None else ()

    def write(self) -> None:
        """Write `trials` into the search's folder, and the tables of the sweep into its own."""
        table_files.write_table(self.trials, self.folder / TRIALS)
        if self.held_out is not None:
            self.held_out.write()

    def failures(self) -> list[str]:
        """Settings that failed in this call, and cells on the other documents that did: which, and why."""
        own = [f"failed: {what[:12]}: {error}" for what, error in self.failed.items()]
        return [*own, *(self.held_out.failures() if self.held_out is not None else [])]

    def verdict(self) -> str:
        """The chosen setting, and what it is worth on documents that it was not chosen on."""
        if self.chosen is None:
            return "Nothing to say yet: no setting has answered all documents to choose on."
        row = self.trials[self.trials["chosen"]].iloc[0]
        text = (
            f"Chosen of {self.tried} settings ({self.sampler}) on {self.documents} documents: "
            f"{describe_cell({**row.to_dict(), 'kind': 'merged'})}, a gain of {row['gain']:+.3f} over plain there. "
        )
        for other in self.trials[self.trials["setting"] == self.label_free].to_dict("records"):
            without_labels = describe_cell({**other, "kind": "merged"})
            text += f"Without labels it would have been {without_labels}, a gain of {other['gain']:+.3f}. "
        cell = self._cell()
        if cell is None or self.held_out is None:
            return f"{text}The other documents are not answered yet."
        text += (
            f"On the {cell['documents']} other documents: {cell['difference']:+.3f} against plain, p = "
            f"{format_p(cell['p'])}; times {self.tried} settings, which is more than held-out documents need, p = "
            f"{format_p(min(1.0, cell['p'] * self.tried))}."
        )
        if not self.held_out.higher_is_better:
            text += " A lower score is better here: a gain is a difference below zero."
        return text + self._beside(cell)

    def _cell(self) -> pd.Series | None:
        """The row of the chosen merge among the cells on the other documents, once it is compared."""
        if self.held_out is None or self.chosen is None:
            return None
        cells = self.held_out.cells
        rows = cells[(cells["digest"] == self.chosen.digest()) & cells["difference"].notna()]
        return rows.iloc[0] if len(rows) else None

    def _beside(self, cell: pd.Series) -> str:
        """How the chosen merge stands beside its scale, random layers, and the merges that it is held against."""
        assert self.held_out is not None
        text = ""
        controls = self.held_out.controls
        of_it = controls[controls["merged"] == cell["cell"]]
        for scale in of_it[of_it["rule"] == SELF_SCALE].to_dict("records"):
            text += f" Against the same scale without the base: {scale['difference']:+.3f}, p = {format_p(scale['p'])}."
        if said := self.held_out.random_layers_in_words(cell["cell"]):
            text += f" {said}"
        others = self.held_out.cells
        others = others[(others["kind"] == "merged") & (others["cell"] != cell["cell"]) & others["difference"].notna()]
        for other in others.to_dict("records"):
            text += f" Beside it, {describe_cell(other)}: {other['difference']:+.3f} against plain."
        return text

    def to_dict(self) -> dict[str, Any]:
        """For JSON: folder, verdict, tried, chosen (its spec), trials, held_out (as of a sweep), warnings, failures."""
        return {
            "folder": str(self.folder),
            "verdict": self.verdict(),
            "tried": self.tried,
            "label_free": self.label_free,
            "chosen": self.chosen.to_dict() if self.chosen is not None else None,
            "trials": self.trials.to_dict("records"),
            "held_out": self.held_out.to_dict() if self.held_out is not None else None,
            "warnings": list(self.warnings),
            "failures": self.failures(),
        }

    def __repr__(self) -> str:
        return f"SearchFindings({self.folder}, {self.tried} settings: {self.verdict()})"


def read_search(folder: str | Path, failed: dict[str, str] | None = None) -> SearchFindings:
    """What a search's folder holds now, finished or not. Nothing is written, and no file that it names is opened.

    Args:
        folder: the --output of `plam search`.
        failed: what failed in this call.

    Raises:
        SearchError: no search there. DamagedFileError: its plan, documents or answers cannot be read. OutsideError: a
            link leads out of it.
    """
    folder = Path(folder)
    config = SearchConfig.of(read_plan(folder)["config"], f"search {folder}")
    documents = read_documents(folder, config.options.rungs, config.options.seed)
    standing = Standing([], [], [], None) if documents is None else Standing.of(Answers(folder), documents)
    chosen = standing.settings[standing.best].spec if standing.best is not None else None
    report = files.inside(folder, HELD_OUT, str(folder))
    has_report = chosen is not None and (report / PLAN).is_file()
    return SearchFindings(
        folder,
        trials=_table(standing),
        sampler=config.options.sampler,
        documents=0 if documents is None else len(documents.table),
        held_out=read_findings(report) if has_report else None,
        label_free=_without_labels(Answers(folder), standing),
        chosen=chosen,
        failed=failed or {},
    )


def _without_labels(answers: Answers, standing: Standing) -> str | None:
    """The digest of the whole setting whose answers differ least from its neighbours'."""
    plain = answers.of(PLAIN_SETTING)
    whole = [
        s for s, is_whole in zip(standing.settings, standing.whole, strict=True) if is_whole and s.spec is not None
    ]
    if plain is None:
        return None
    rows = {setting.spec.digest(): setting for setting in whole if setting.spec is not None}
    places = coordinates_of(Cell(name, "merged", setting.spec) for name, setting in rows.items())
    compared = {name: (place, _texts(rows[name].rows)) for name, place in places.items()}
    return least_differing(compare_neighbours(compared, _texts(plain.rows)))


def _texts(rows: pd.DataFrame) -> dict[tuple[str, int], str]:
    return dict(zip(zip(rows["task"], rows["doc_id"], strict=True), rows["answer"], strict=True))


def _table(standing: Standing) -> pd.DataFrame:
    """`SearchFindings.trials`."""
    rows = []
    for index, setting in enumerate(standing.settings):
        assert setting.spec is not None
        rows.append(
            {
                "number": setting.number,
                "setting": setting.spec.digest(),
                **spec_columns(setting.spec),
                "documents": len(setting.rows),
                "gain": standing.gains[index],
                "whole": standing.whole[index],
                "chosen": index == standing.best,
            }
        )
    return pd.DataFrame(rows, columns=list(_COLUMNS))
