"""What the folder of `plam attend` holds: what it was made with, the measures of each document, what was concluded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from plam_eval.harness.errors import EvaluationError

SETTINGS_FILE, FINDINGS_FILE = "attend.json", "findings.json"
MEASURES_FILE, ANSWERS_FILE, DEPTH_FILE = "attention.parquet", "answers.parquet", "depth.parquet"
FINDINGS_TABLE = "differences"
"""Name of a table, as CSV and parquet: a row for each measure, layer and pair of settings."""
LOCK = "attend.lock"
PLAIN_RUN = "plain"
"""Folder in it: the run of the plain model, as lmms-eval writes one."""
SHOWN = "shown"
"""Folder in it: a file for each document that is drawn (`shown.ShownDocument`)."""

PLAIN, MERGED = "plain", "merged"
"""The settings that are always there: the model as it is, and the merge that is looked at."""

WITH_SINKS, WITHOUT_SINKS = "with", "without"

MEASURES = (
    "image_share",
    "entropy",
    "spatial_entropy",
    "box_share",
    "box_share_of_image",
    "chance",
    "other_box_share_of_image",
    "other_chance",
    "sink_share",
    "sink_share_of_image",
)
"""Columns of `MEASURES_FILE`, floats, NaN where there is nothing to measure. As in `attention_measures.Measures`, and
`other_*`: the same with the boxes of another document, by which attention should be at chance."""

MEASURE_KEYS = ("task", "doc_id", "cluster", "setting", "layer", "sinks")
"""The other columns: a row for each document, setting, layer (0-based) and `WITH_SINKS` or `WITHOUT_SINKS`."""

ANSWER_COLUMNS = (
    "task",
    "doc_id",
    "cluster",
    "setting",
    "target",
    "answer",
    "score",
    "parsable",
    "image_tokens",
    "skipped",
)
"""Of `ANSWERS_FILE`: a row for each document and setting. `skipped` says why a document has no measures, or is None."""

DEPTH_KEYS = ("task", "doc_id", "cluster", "setting", "depth")
DEPTH_OF_LAYERS = ("image_drift", "text_drift", "contribution", "contribution_flips")
"""Columns of `DEPTH_FILE` that are of decoder layer `depth`, NaN at depth L; contributions of the plain model alone."""
DEPTH_OF_STREAM = (
    "image_text",
    "image_image",
    "text_text",
    "lens_log_prob",
    "lens_rank",
    "image_cosine",
    "text_cosine",
    "image_cka",
    "text_cka",
)
"""Columns that are of the stream at `depth`, 0 to L. The lens looks for the plain model's next token in every setting;
`*_cosine` and `*_cka` compare with the plain model and are NaN for it."""


class AttendError(EvaluationError):
    """An `attend` that cannot go on; the message says what was found and what to do. Finished documents are kept."""


@dataclass(frozen=True, repr=False)
class Attended:
    """What `plam attend` has measured.

    Attributes:
        folder: where it is.
        made_with: the content of `SETTINGS_FILE`: `settings` (name -> spec or None, in order, the plain one first),
            `num_layers`, `queries` ("last", "question" or "answer"), wrapper, pretrained, versions and the like.
        measures: of `MEASURE_KEYS` and `MEASURES`.
        answers: of `ANSWER_COLUMNS`.
        depth: of `DEPTH_KEYS`, `DEPTH_OF_LAYERS` and `DEPTH_OF_STREAM`; None where it was not asked for.
        shown: files of the documents to draw.
    """

    folder: Path
    made_with: dict[str, Any]
    measures: pd.DataFrame
    answers: pd.DataFrame
    depth: pd.DataFrame | None
    shown: tuple[Path, ...]

    @property
    def settings(self) -> list[str]:
        """Names of the settings, the plain model's first."""
        return list(self.made_with["settings"])

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model."""
        return int(self.made_with["num_layers"])

    @property
    def plateau(self) -> tuple[int, int] | None:
        """The layers that `MERGED` merges, end exclusive; None where it is not one of the settings."""
        spec = self.made_with["settings"].get(MERGED)
        return None if spec is None else (int(spec["layer_range"][0]), int(spec["layer_range"][1]))

    def __repr__(self) -> str:
        return f"Attended({self.folder}, {self.answers['doc_id'].nunique()} documents: {', '.join(self.settings)})"


def load(folder: Path) -> Attended:
    """What a folder holds.

    Args:
        folder: of a `plam attend`.

    Raises:
        AttendError: there is none. DamagedFileError, OutsideError: it cannot be read.
    """
    from plam_eval import files

    if not (folder / SETTINGS_FILE).is_file():
        raise AttendError(f"{folder}: no attend there (no {SETTINGS_FILE}); expected the --output of `plam attend`")
    at = {
        name: files.inside(folder, name, str(folder))
        for name in (SETTINGS_FILE, MEASURES_FILE, ANSWERS_FILE, DEPTH_FILE)
    }
    shown = sorted((folder / SHOWN).glob("*.npz"))
    return Attended(
        folder=folder,
        made_with=files.read_json(at[SETTINGS_FILE], "attend into another --output"),
        measures=pd.read_parquet(at[MEASURES_FILE]),
        answers=pd.read_parquet(at[ANSWERS_FILE]),
        depth=pd.read_parquet(at[DEPTH_FILE]) if at[DEPTH_FILE].is_file() else None,
        shown=tuple(files.inside(folder, f"{SHOWN}/{file.name}", str(folder)) for file in shown),
    )
