"""What the documents of a `plam attend` say together: settings beside each other, by layer, and in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from plam_eval import files
from plam_eval.errors import InputError
from plam_eval.evaluation import stats
from plam_eval.evaluation.attend import folder as layout
from plam_eval.evaluation.attend.compared import compare
from plam_eval.evaluation.attend.folder import ATTENTION_FIGURE, DEPTH_FIGURE, Attended, AttendError
from plam_eval.evaluation.attend.sentence import sentence_of, warnings_of
from plam_eval.evaluation.attend.summary import AttendFindings
from plam_eval.layer_sets import write_layers


def conclude(folder: str | Path, *, select: int | None = None, scans: Sequence[Path] = ()) -> AttendFindings:
    """From the measures in a folder to findings and figures; what an earlier call wrote is replaced.

    Args:
        folder: of a `plam attend`.
        select: as `find` takes it.
        scans: folders of scans of the same model, whose curves stand above what layers do.

    Raises:
        AttendError: no such folder, no document in it has measures, or a scan is of another number of layers.
            ScanError: no finished scan there. InputError: as `find`. DamagedFileError, OutsideError: it cannot be read.
    """
    from plam_eval.evaluation import scan_folder
    from plam_eval.evaluation.attend.depth_plot import depth_figure
    from plam_eval.evaluation.attend.overlays import write_overlays
    from plam_eval.evaluation.attend.plot import attention_figure
    from plam_eval.figures import save_figure

    attended = layout.load(Path(folder))
    findings = find(attended, select=select)
    drawn = {ATTENTION_FIGURE: attention_figure(attended, findings)}
    if attended.depth is not None or scans:
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

    Layers to quote are chosen on some documents of each task, drawn in whole clusters (the first ones in folders of
    before), and reported on the others.

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
    if not np.isfinite(attended.measures[list(layout.MEASURES)].to_numpy(float)).any():
        why = "; answers of one token are never fed back, so look with --queries last" * (
            attended.made_with["queries"] == "answer"
        )
        raise AttendError(f"{attended.folder}: no document has a number in {layout.MEASURES_FILE}{why}")
    if (merged := attended.merged_layers) and merged[-1] >= attended.num_layers:
        raise AttendError(
            f"{attended.folder}: layers {write_layers(merged)} are merged, and the decoder has {attended.num_layers}"
        )
    compared = compare(attended, select)
    return AttendFindings(
        folder=attended.folder,
        settings=tuple(attended.settings),
        num_layers=attended.num_layers,
        merged_layers=attended.merged_layers,
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
    return [f"{stats.count_of(count, 'document')} without measures: {reason}" for reason, count in skipped.items()]


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
