"""Documents that were looked at before, to be left out of a sample: those of scans, sweeps, searches and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from plam_eval import files, table_files
from plam_eval.document_sets import read_by_task
from plam_eval.errors import DamagedFileError, InputError
from plam_eval.evaluation import records, scan_folder
from plam_eval.harness.errors import RecordError
from plam_eval.harness.sampling import Excluded, shared_name
from plam_eval.spec import PlateauSpec, load_spec

SCAN = "scan"
"""The word for the scan that the plateau spec comes from; a folder of that name is written ./scan."""
_SEARCH, _SWEEP, _ATTEND = "search.json", "sweep.json", "attend.json"
_EXPECTED = (
    "expected the folder of a scan, sweep, search, comparison, attend or lmms-eval run, a plateau spec that a scan "
    f"wrote, or {SCAN} for that of the plateau"
)


def read_excluded(words: Sequence[str], plateau: str | Path | PlateauSpec | None = None) -> Excluded:
    """What is left out by words of the user's.

    Args:
        words: folders, files of specs, or "scan".
        plateau: of the merge, as `load_spec` takes it, whose scan "scan" means.

    Raises:
        InputError: naming every word that leads to no documents. What reading a folder raises where it is damaged.
    """
    documents: dict[str, set[int]] = {}
    shared: set[str] = set()
    nameless: set[str] = set()
    problems: list[str] = []
    for word in words:
        try:
            table = _of_plateau(plateau) if word == SCAN else _of_path(word)
        except InputError as error:
            problems += [f"{word}: {problem}" for problem in error.problems]
            continue
        for task, rows in table.groupby("task"):
            documents.setdefault(str(task), set()).update(int(doc_id) for doc_id in rows["doc_id"])
        groups = table["group"] if "group" in table else pd.Series(None, index=table.index, dtype=object)
        for task, own in groups.groupby(table["task"]):
            names = {shared_name(str(task), group if isinstance(group, str) else None) for group in own.unique()}
            shared |= {name for name in names if name}
            if None in names:  # of a document alone, or of one whose image or question nothing says
                nameless.add(str(task))
    if problems:
        raise InputError(*problems, origin="exclude")
    ordered = {task: tuple(sorted(doc_ids)) for task, doc_ids in sorted(documents.items())}
    return Excluded(ordered, frozenset(shared), tuple(words), frozenset(nameless))


def _of_plateau(plateau: str | Path | PlateauSpec | None) -> pd.DataFrame:
    """The documents of the scan that a spec comes from: of its folder where the spec lies in it."""
    spec = load_spec(plateau) if not isinstance(plateau, PlateauSpec) else plateau
    if spec is None:
        raise InputError("the model is plain, so no scan stands behind it; name the scan's folder")
    if isinstance(plateau, (str, Path)):
        file = files.expanded(plateau)
        folder = file.parent
        if file.is_file() and (folder / scan_folder.SETTINGS).is_file():
            return _of_scan(folder)
    return _of_evidence(spec, str(plateau) if isinstance(plateau, (str, Path)) else "the plateau spec")


def _of_evidence(spec: PlateauSpec, origin: str) -> pd.DataFrame:
    evidence = spec.evidence or {}
    if "doc_ids" not in evidence:
        counts = evidence.get("documents")
        which = f" but the number of its documents ({counts})" if isinstance(counts, Mapping) else ""
        raise InputError(f"{origin} says nothing of a scan{which}; name the scan's folder")
    try:
        by_task = read_by_task(evidence["doc_ids"])
    except ValueError as error:
        raise DamagedFileError(f"{origin}: evidence: doc_ids: {error}; name the scan's folder instead") from error
    rows = [(task, doc_id) for task, doc_ids in by_task.items() for doc_id in doc_ids]
    return pd.DataFrame(rows, columns=["task", "doc_id"])


def _of_path(word: str) -> pd.DataFrame:
    if not word.strip():  # such as that of a variable of the shell which is not set: nothing would be left out
        raise InputError(f"found an empty word; {_EXPECTED}")
    path = files.expanded(word)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return _of_plateau(path)
    if not path.exists():
        raise InputError(f"no such folder; {_EXPECTED}")
    folder = path.parent if path.is_file() and not path.name.endswith("_results.json") else path
    for mark, read in (
        (scan_folder.SETTINGS, _of_scan),
        (_SEARCH, _of_search),
        (_SWEEP, _of_sweep),
        (_ATTEND, _of_attend),
    ):
        if (folder / mark).is_file():
            return read(folder)
    try:
        return _own(records.read_run(path).samples)
    except RecordError as error:
        raise InputError(f"{error}; {_EXPECTED}") from error


def _of_scan(folder: Path) -> pd.DataFrame:
    if not (folder / scan_folder.SAMPLES).is_file():
        raise InputError("the scan has not finished, so its documents are not known; run the same `plam scan` again")
    scan_folder.whole_settings(folder)
    file = files.inside(folder, scan_folder.SAMPLES, str(folder))
    return _own(table_files.read_parquet(file, ["task", "doc_id", "group"], "run the same `plam scan` again"), file)


def _of_attend(folder: Path) -> pd.DataFrame:
    from plam_eval.evaluation.attend import folder as layout

    return _own(layout.load(folder).answers.rename(columns={"cluster": "group"}))


def _of_search(folder: Path) -> pd.DataFrame:
    """Those it chooses on."""
    if not (folder / "documents.json").is_file():
        raise InputError("the search has not begun, so its documents are not known; run the same `plam search` again")
    file = files.inside(folder, "documents.json", str(folder))
    rows = files.read_json(file, "name another folder").get("documents")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DamagedFileError(f"{file}: holds no documents as a search writes them; name another folder")
    return _own(pd.DataFrame(rows).rename(columns={"cluster": "group"}), file)


def _of_sweep(folder: Path) -> pd.DataFrame:
    """Those it chooses on, and all of them where it chooses on all."""
    from plam_eval.evaluation.sweep.documents import read_drawn, split_documents
    from plam_eval.evaluation.sweep.folder import CELLS, read_cell, read_plan, results_file
    from plam_eval.evaluation.sweep.grid import PLAIN

    plan = read_plan(folder)
    record = read_cell(folder, PLAIN) or {}
    if record.get("status") != "finished":
        raise InputError("its plain cell is not finished, so its documents are not known; run the same command again")
    samples = records.read_run(results_file(folder / CELLS / PLAIN, record)).samples
    drawn = read_drawn(plan, str(folder), samples)
    chosen_on, _ = split_documents(samples, plan["config"]["select"] or None, drawn)
    keys = pd.MultiIndex.from_frame(chosen_on)
    return _own(samples[pd.MultiIndex.from_frame(samples[["task", "doc_id"]]).isin(keys)])


def _own(table: pd.DataFrame, file: Path | None = None) -> pd.DataFrame:
    """Columns task, doc_id and group, with whole numbers for documents."""
    missing = [column for column in ("task", "doc_id") if column not in table]
    numbers = pd.to_numeric(table["doc_id"], errors="coerce") if not missing else pd.Series(dtype=float)
    if missing or numbers.isna().any() or (numbers < 0).any():
        raise DamagedFileError(f"{file or 'the run'}: found documents without a number, expected doc_id from 0")
    kept = [column for column in ("task", "group") if column in table]
    return table[kept].assign(doc_id=numbers.astype("int64"))
