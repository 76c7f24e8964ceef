"""What the folder of `plam attend` holds: what it was made with, the measures of each document, what was concluded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype, is_string_dtype

from plam_eval import files, table_files
from plam_eval.errors import DamagedFileError, changed_settings, listed
from plam_eval.evaluation.answer_store import AnswerStore, open_noted, stores_in
from plam_eval.evaluation.sweep.documents import Drawn, read_drawn
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.sampling import named_as_before
from plam_eval.layer_sets import MOST_LAYERS, layers_of, write_layers
from plam_eval.rule_parameters import describe_parameters
from plam_eval.rules import RULES
from plam_eval.spec import SpecError, load_spec

SETTINGS_FILE, FINDINGS_FILE = "attend.json", "findings.json"
MEASURES_FILE, ANSWERS_FILE, DEPTH_FILE = "attention.parquet", "answers.parquet", "depth.parquet"
FINDINGS_TABLE = "differences"
"""Name of a table, as CSV and parquet: a row for each measure, layer and pair of settings."""
ATTENTION_FIGURE, DEPTH_FIGURE = "attention", "depth"
"""Names of figures, each as .png and .svg: of measures by layer; of what layers are needed for and what they do."""
LOCK = "attend.lock"
PLAIN_RUN = "plain"
"""Folder in it: the run of the plain model, as lmms-eval writes one."""
DRAWN = "drawn.json"
"""The documents, in the order in which some to choose on are drawn; folders of before have none."""
SHOWN = "shown"
"""Folder in it: a file for each document that is drawn (`shown.ShownDocument`)."""

PLAIN, MERGED = "plain", "merged"
"""Settings: the model as it is, which is always there and first, and the merge that is looked at."""

QUERIES = {
    "last": "the last token of the prompt",
    "question": "the tokens of the question",
    "answer": "the tokens of the answer",
}
"""Whose attention it is, in words."""

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
        drawn: the order in which documents to choose on are drawn; None where the first ones are chosen on.
    """

    folder: Path
    made_with: dict[str, Any]
    measures: pd.DataFrame
    answers: pd.DataFrame
    depth: pd.DataFrame | None
    shown: tuple[Path, ...]
    drawn: Drawn | None = None

    @property
    def settings(self) -> list[str]:
        """Names of the settings, the plain model's first."""
        return list(self.made_with["settings"])

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model."""
        return int(self.made_with["num_layers"])

    @property
    def merged_layers(self) -> tuple[int, ...]:
        """The layers that `MERGED` merges, in order; none where it is not one of the settings."""
        spec = self.made_with["settings"].get(MERGED)
        return () if spec is None else layers_of(spec)

    def __repr__(self) -> str:
        documents = len(self.answers.drop_duplicates(["task", "doc_id"]))
        return f"Attended({self.folder}, {documents} documents: {', '.join(self.settings)})"


# ---- opening ---------------------------------------------------------------------------------------------------------

_REMEDY = "restore it from a copy, or run `plam attend` into another --output"
_AGAIN = "delete it and run the same `plam attend` again: what is finished is not done again"
_LARGEST = 1e15  # no share, entropy or rank is near it, and sums of larger ones overflow
_OPTIONAL = dict[str, type](target=str, answer=str, skipped=str, parsable=bool)
"""Columns in which a value may be missing, which is None then, and what it is otherwise."""
_KINDS: dict[str, Any] = {
    "wrapper": str,
    "pretrained": str,
    "mode": str,
    "dtype": str,
    "settings": dict,
    "num_layers": int,
    "queries": str,
    "depth": bool,
    "gen_kwargs": (str, type(None)),
    "versions": dict,
}


def check_folder(output: str | Path) -> None:
    """Raise FolderError where `output` cannot be written, or holds files of these names that are not of `plam attend`.

    Args:
        output: folder; need not exist.
    """
    files.check_writable(output)
    written = (MEASURES_FILE, ANSWERS_FILE, DEPTH_FILE, FINDINGS_FILE, DRAWN, SHOWN, PLAIN_RUN)
    tables = (f"{FINDINGS_TABLE}.csv", f"{FINDINGS_TABLE}.parquet")
    figures = (f"{name}{suffix}" for name in (ATTENTION_FIGURE, DEPTH_FIGURE) for suffix in (".png", ".svg"))
    others = (*stores_in(Path(output)), *files.used_locks(Path(output), LOCK))
    files.check_free(Path(output), (*written, *tables, *figures, *others), SETTINGS_FILE)


def open_store(folder: Path, made_with: dict[str, Any], rank: int) -> AnswerStore:
    """What a folder knows of documents so far, and the settings noted in it where there are none.

    Args:
        folder: made where it is missing.
        made_with: what answers and measures depend on, apart from the documents.
        rank: number of this process; the first one, 0, writes the settings.

    Raises:
        AttendError: the folder holds documents of other settings.
    """

    def changed() -> str:
        before = read_settings(folder)
        return changed_settings(_compared(before), _compared(named_as_before(before, made_with)))

    return open_noted(folder, SETTINGS_FILE, made_with, rank, changed, AttendError)


def _compared(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder was made with, each setting by itself, by what of its spec changes weights."""
    others = {key: value for key, value in made_with.items() if key not in ("settings", "equal")}
    return others | {f"setting {name}": _merge_of(spec) for name, spec in made_with["settings"].items()}


@dataclass(frozen=True, repr=False)
class _Merge:
    """A setting as folders are compared by: two are one where their tensors are, however their specs are written."""

    digest: str | None
    words: str = field(compare=False)

    def __repr__(self) -> str:
        return repr(self.words)


def _merge_of(stored: Mapping[str, Any] | None) -> _Merge:
    spec = None if stored is None else load_spec(stored)
    if spec is None:
        return _Merge(None, PLAIN)
    rule = RULES[spec.rule]
    words = [
        f"{spec.rule}{describe_parameters(spec.parameters)} of layers {write_layers(spec.layers)}",
        "+".join(spec.modules),
        f"{spec.weights.tell()} {spec.base_model}",
        *([f"ancestor {spec.ancestor}"] if rule.needs_ancestor else []),
        *([f"seed {spec.seed}"] if rule.draws else []),
    ]
    return _Merge(None if spec.is_plain else spec.digest(), ", ".join(words))


def write_tables(
    folder: Path, measures: pd.DataFrame, answers: pd.DataFrame, depth: pd.DataFrame | None = None
) -> None:
    """Write what was measured, each table in one step; what was there before is replaced.

    Args:
        folder: which one.
        measures: of `MEASURE_KEYS` and `MEASURES`.
        answers: of `ANSWER_COLUMNS`.
        depth: of `DEPTH_KEYS`, `DEPTH_OF_LAYERS` and `DEPTH_OF_STREAM`.
    """
    tables = {MEASURES_FILE: measures, ANSWERS_FILE: answers, DEPTH_FILE: depth}
    for name, table in tables.items():
        if table is not None:
            files.write_in_one_step(folder / name, partial(table.to_parquet, index=False))


# ---- reading ---------------------------------------------------------------------------------------------------------


def load(folder: str | Path) -> Attended:
    """What `plam attend` has measured into a folder.

    Args:
        folder: of `plam attend`.

    Raises:
        AttendError: there is none, or it has not finished. DamagedFileError, OutsideError: it cannot be read.
    """
    folder = Path(folder)
    made_with = read_settings(folder)
    if not (folder / ANSWERS_FILE).is_file() or not (folder / MEASURES_FILE).is_file():
        raise AttendError(
            f"{folder}: `plam attend` has not finished (no {ANSWERS_FILE} and {MEASURES_FILE}); run the same again"
        )
    settings, layers = list(made_with["settings"]), range(made_with["num_layers"])
    known = {"setting": settings, "sinks": [WITH_SINKS, WITHOUT_SINKS], "layer": layers}
    measures = _table(folder, MEASURES_FILE, MEASURE_KEYS, MEASURES, known)
    answers = _table(folder, ANSWERS_FILE, ANSWER_COLUMNS, ("score", "image_tokens"), known)
    depth = None
    if made_with["depth"] and (folder / DEPTH_FILE).is_file():
        depths = {"setting": settings, "depth": range(len(layers) + 1)}
        depth = _table(folder, DEPTH_FILE, DEPTH_KEYS, (*DEPTH_OF_LAYERS, *DEPTH_OF_STREAM), depths)
    shown = folder / SHOWN
    drawn = sorted(shown.glob("*.npz")) if shown.is_dir() and not shown.is_symlink() else []
    inside = tuple(files.inside(folder, f"{SHOWN}/{file.name}", str(folder)) for file in drawn)
    order: Drawn | None = None
    if (folder / DRAWN).is_file():
        file = files.inside(folder, DRAWN, str(folder))
        order = read_drawn(files.read_json(file, _AGAIN), str(file))
    return Attended(folder, made_with, measures, answers, depth, inside, order)


def read_settings(folder: Path) -> dict[str, Any]:
    """What a folder was made with, known to hold what `plam attend` writes; specs among it are valid ones.

    Args:
        folder: of `plam attend`.

    Raises:
        AttendError: there is none. DamagedFileError, OutsideError: it cannot be read.
    """
    if not (folder / SETTINGS_FILE).is_file():
        raise AttendError(f"{folder}: no {SETTINGS_FILE} there; expected the --output of `plam attend`")
    file = files.inside(folder, SETTINGS_FILE, str(folder))
    made_with = files.read_json(file, _REMEDY)
    for key, kind in _KINDS.items():
        value = made_with.get(key)
        if key not in made_with or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise DamagedFileError(f"{file}: {key}: found {value!r:.80}; {_REMEDY}")
    if made_with["queries"] not in QUERIES:
        raise DamagedFileError(f"{file}: queries: found {made_with['queries']!r:.80}; {_REMEDY}")
    if not 0 < made_with["num_layers"] <= MOST_LAYERS:
        raise DamagedFileError(f"{file}: num_layers: found {made_with['num_layers']}; {_REMEDY}")
    specs = made_with["settings"]
    if next(iter(specs), None) != PLAIN or specs[PLAIN] is not None:
        raise DamagedFileError(f"{file}: settings: expected {PLAIN!r} first, and null for it; {_REMEDY}")
    for name, spec in specs.items():
        try:
            if name != PLAIN and (not isinstance(spec, Mapping) or load_spec(spec) is None):
                raise SpecError(f"found {spec!r:.80}, expected a plateau spec")
        except SpecError as error:
            raise DamagedFileError(f"{file}: settings: {name}: {error}; {_REMEDY}") from error
    return made_with


def _table(
    folder: Path, name: str, columns: Sequence[str], numbers: Sequence[str], known: Mapping[str, Sequence[Any]]
) -> pd.DataFrame:
    """A table of the folder with these columns; `numbers` are floats, and columns of `known` hold no other values."""
    file = files.inside(folder, name, str(folder))
    wanted = list(dict.fromkeys([*columns, *numbers]))
    table = table_files.read_parquet(file, wanted, _AGAIN)
    if missing := [column for column in wanted if column not in table.columns]:
        raise DamagedFileError(f"{file}: has no column {listed(missing)}; {_AGAIN}")
    table = table[wanted].reset_index(drop=True)
    whole = [column for column in ("doc_id", "layer", "depth") if column in columns]
    odd = [column for column in whole if len(table) and table[column].dtype.kind not in "iu"]
    for column in numbers:
        if is_numeric_dtype(table[column].dtype) or table[column].isna().all():
            table[column] = table[column].astype(float)
            sizes = table[column].abs()
            odd += [column] if ((sizes > _LARGEST) & np.isfinite(sizes)).any() else []
        else:
            odd.append(column)
    odd += [column for column, values in known.items() if column in columns and not table[column].isin(values).all()]
    texts = [column for column in ("task", "cluster") if column in columns and len(table)]
    odd += [column for column in texts if not is_string_dtype(table[column]) or table[column].isna().any()]
    for column, kind in _OPTIONAL.items():
        if column in columns:
            table[column] = table[column].astype(object).where(table[column].notna(), None)
            values = table[column].dropna()
            odd += [] if values.map(type).isin([kind]).all() else [column]
    keys = [column for column in ("task", "doc_id", "setting", "layer", "sinks", "depth") if column in columns]
    if odd:
        raise DamagedFileError(f"{file}: {listed(odd)}: found values that `plam attend` does not write; {_AGAIN}")
    if table.duplicated(keys).any():
        raise DamagedFileError(f"{file}: has two rows of one {', '.join(keys)}; {_AGAIN}")
    # Tables are laid out by document, setting and layer: a few rows must not stand for a large one.
    expected = len(table.drop_duplicates(["task", "doc_id"])) * math.prod(
        len(values) for column, values in known.items() if column in columns
    )
    if len(table) != expected:
        raise DamagedFileError(
            f"{file}: found {len(table)} rows, expected {expected}: each {listed(keys[2:])} of a document; {_AGAIN}"
        )
    return table
