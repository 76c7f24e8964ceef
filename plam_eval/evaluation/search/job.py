"""A search's job: its space in its folder, checked against the checkpoints before anything is loaded or written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from plam_eval import files
from plam_eval.errors import DamagedFileError, changed_settings
from plam_eval.evaluation.search.answers import (
    ANSWERS,
    JOURNAL,
    PLAIN_SETTING,
    SEARCH,
    Answers,
    Documents,
    Setting,
    mean_gain,
)
from plam_eval.evaluation.search.config import SearchConfig, SearchError
from plam_eval.evaluation.search.space import Space
from plam_eval.evaluation.sweep.grid import Cell, Grid, grid_of
from plam_eval.evaluation.sweep.job import Job, count_layers, open_swept_model
from plam_eval.harness.sampling import named_as_before
from plam_eval.provenance import read_identity
from plam_eval.rules import RULES, SELF_SCALE, control_names
from plam_eval.spec import PlateauSpec, load_spec

DOCUMENTS, TRIALS, HELD_OUT = "documents.json", "trials", "heldout"
_REMEDY = "name another --output, or restore it from a copy"
_NOTED_AGAIN = "delete it, and the same search notes its documents again"
_DOCUMENT = {"task": str, "doc_id": int, "cluster": str, "prompt": str}


@dataclass(frozen=True)
class SearchJob:
    """A search in its folder.

    Attributes:
        config: what is searched; space: what settings are proposed from.
        folder: of the search.
        settings: what answers depend on besides the setting, and what the space is.
        num_layers: decoder layers of the model.
    """

    config: SearchConfig
    space: Space
    folder: Path
    settings: dict[str, Any]
    num_layers: int

    @classmethod
    def plan(cls, config: SearchConfig, folder: str | Path) -> SearchJob:
        """Check the space against the headers of all checkpoints; nothing is loaded or written.

        Args:
            config: what is searched.
            folder: where; it need not exist.

        Raises:
            SearchError: the folder holds a search of other settings. MergeError, SpecError: settings that cannot be
                merged. FolderError: the folder cannot be written, or holds something else. OutsideError: its sweep is a
                link that leads out.
        """
        folder = Path(folder)
        files.check_writable(folder)
        files.check_free(folder, (JOURNAL, ANSWERS, DOCUMENTS, f"{TRIALS}.csv", f"{TRIALS}.parquet"), SEARCH)
        files.inside(folder, HELD_OUT, str(folder))
        num_layers = count_layers(open_swept_model(config.sweep))
        space = Space.of(config, num_layers)
        tested = [*space.corners(), *(references := space.reference_settings(num_layers))]
        # The report may take a checkpoint that no setting takes: it is opened, and named, from the start.
        for spec in (*tested[:1], *references):
            tested += [_with_rule(spec, name) for name in _ancestor_controls(config, spec)]
        merges = {spec.digest(): spec for spec in tested if not spec.is_plain}
        cells = tuple(Cell(digest, "merged", spec) for digest, spec in merges.items())
        checked = Job.plan(config.sweep, folder / HELD_OUT, Grid(cells, {}))
        settings = {
            **checked.settings,
            "select": config.select,
            "seed": config.options.seed,
            "space": space.to_dict(),
        }
        if (folder / SEARCH).is_file():
            before = read_plan(folder)["settings"]
            settings = named_as_before(before, settings)
            changed = changed_settings(before, settings)
            if changed and any((folder / ANSWERS).glob("*.json")):
                raise SearchError(
                    f"{folder} holds a search of other settings: {changed}. Answers of both cannot be compared: name "
                    "another --output, or delete this one"
                )
        return cls(config, space, folder, settings, num_layers)

    def write(self) -> None:
        """Write the plan, in one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"config": self.config.to_dict(), "settings": self.settings, "num_layers": self.num_layers}
        files.write_json(self.folder / SEARCH, content)

    def note_documents(self, table: pd.DataFrame, directions: Mapping[str, int]) -> None:
        """Keep which documents are chosen on, or hold them against those that were kept.

        Args:
            table: task, doc_id, cluster, prompt of each.
            directions: of their tasks.

        Raises:
            SearchError: they are others than those that settings have been answered on.
        """
        rows = table[list(_DOCUMENT)].sort_values(["task", "doc_id"]).to_dict("records")
        content = {"directions": dict(directions), "documents": rows}
        file = self.folder / DOCUMENTS
        if file.is_file():
            if files.read_json(file, _NOTED_AGAIN) == content:
                return
            if any((self.folder / ANSWERS).glob("*.json")):
                raise SearchError(
                    f"{file}: the documents to choose on are others than those of this search (their number, images or "
                    "prompts changed), so answers of both cannot be compared; name another --output"
                )
        files.write_json(file, content)

    def held_out(self, chosen: Setting, tried: int, layer_sets: int, gain: float) -> Job:
        """The sweep that reports on the other documents: the chosen merge, its controls, and what it is held against.

        Args:
            chosen: the setting.
            tried: how many settings it was chosen from.
            layer_sets: how many different sets of layers they have.
            gain: of the chosen one over plain, on the documents to choose on.
        """
        merge, swept = chosen.spec, self.config.sweep
        assert merge is not None
        controls = tuple(dict.fromkeys((*swept.controls, *_ancestor_controls(self.config, merge))))
        scale = tuple(name for name in controls if name == SELF_SCALE)
        whole = load_spec(merge, {"layers": f"0:{self.num_layers}"})
        assert whole is not None
        beside = [spec for spec in (self.space.start, whole) if spec is not None and spec.digest() != merge.digest()]
        grid = grid_of([(merge, controls), *((other, scale) for other in beside)], swept, self.num_layers)
        by_search = {"digest": merge.digest(), "tried": tried, "layer_sets": layer_sets, "difference": gain}
        return Job.plan(swept, self.folder / HELD_OUT, grid, by_search)


def _ancestor_controls(config: SearchConfig, merge: PlateauSpec) -> tuple[str, ...]:
    """The controls of a merge that take an ancestor: those that were named, or all where none were and it has one."""
    if merge.ancestor and not config.own_controls:
        return tuple(name for name in control_names(ancestor=True) if RULES[name].needs_ancestor)
    return tuple(name for name in config.sweep.controls if name in RULES and RULES[name].needs_ancestor)


def _with_rule(merge: PlateauSpec, name: str) -> PlateauSpec:
    spec = load_spec(merge, {"rule": name})
    assert spec is not None
    return spec


def read_plan(folder: Path) -> dict[str, Any]:
    """What a search's folder was made with: `config`, `settings`, `num_layers`.

    Args:
        folder: the --output of `plam search`.

    Raises:
        SearchError: there is no search. DamagedFileError: its plan is none that we write.
    """
    if not (folder / SEARCH).is_file():
        raise SearchError(f"{folder}: no search there (no {SEARCH}); expected the --output of `plam search`")
    plan = files.read_json(files.inside(folder, SEARCH, str(folder)), _REMEDY)
    kinds = {"config": dict, "settings": dict, "settings/checkpoint": dict, "settings/bases": dict, "num_layers": int}
    for path, kind in kinds.items():
        value: Any = plan
        for name in path.split("/"):
            value = value.get(name)
        if not isinstance(value, kind):
            raise DamagedFileError(
                f"{folder / SEARCH}: {path}: found {value!r:.80}, expected {kind.__name__}; {_REMEDY}"
            )
    settings = plan["settings"]
    settings["checkpoint"] = read_identity(settings["checkpoint"])
    return plan


def _twice(rows: list[dict[str, Any]]) -> bool:
    return len({(row["task"], row["doc_id"]) for row in rows}) < len(rows)


def read_documents(folder: Path, rungs: tuple[float, ...], seed: int) -> Documents | None:
    """The documents that a search chooses on; None before they are known.

    Args:
        folder: of the search.
        rungs: as in its options.
        seed: as in its options.

    Raises:
        DamagedFileError: they cannot be read.
    """
    file = folder / DOCUMENTS
    if not file.is_file():
        return None
    content = files.read_json(files.inside(folder, DOCUMENTS, str(folder)), _NOTED_AGAIN)
    rows, directions = content.get("documents"), content.get("directions")
    whole = isinstance(rows, list) and all(
        isinstance(row, dict) and all(type(row.get(name)) is kind for name, kind in _DOCUMENT.items()) for row in rows
    )
    signed = isinstance(directions, dict) and all(sign in (1, -1) for sign in directions.values())
    if not isinstance(rows, list) or not isinstance(directions, dict) or not (whole and signed) or _twice(rows):
        raise DamagedFileError(f"{file}: holds no documents as a search writes them; {_NOTED_AGAIN}")
    return Documents.of(pd.DataFrame(rows, columns=list(_DOCUMENT)), directions, rungs, seed)


@dataclass(frozen=True)
class Standing:
    """Where a search stands: every setting that it has answers of, with its gain on the documents to choose on.

    Attributes:
        settings: in the order in which they were proposed.
        gains: over plain, mean over tasks, of the documents that are answered.
        whole: whether all documents are answered.
        best: index of the best whole one; the first of equals, None where there is none.
    """

    settings: list[Setting]
    gains: list[float]
    whole: list[bool]
    best: int | None

    @classmethod
    def of(cls, answers: Answers, documents: Documents, known: dict[int, _Worth] | None = None) -> Standing:
        """Where a search stands by the answers that there are.

        Args:
            answers: of its folder.
            documents: that it chooses on.
            known: what earlier calls found, which this one adds to.

        Raises:
            DamagedFileError: answers that cannot be read.
        """
        known = {} if known is None else known
        plain = answers.of(PLAIN_SETTING)
        if plain is None:
            return cls([], [], [], None)
        settings = answers.merges()
        for setting in settings:
            if id(setting) not in known:
                gain = mean_gain(documents.gains(plain.rows, setting.rows))
                known[id(setting)] = _Worth(setting, gain, not documents.missing(setting.rows))
        worth = [known[id(setting)] for setting in settings]
        candidates = [index for index, each in enumerate(worth) if each.whole and not math.isnan(each.gain)]
        best = max(candidates, key=lambda index: worth[index].gain) if candidates else None
        return cls(settings, [each.gain for each in worth], [each.whole for each in worth], best)


class _Worth(NamedTuple):
    """A setting, which is kept so that no other one has its id; its gain, and whether all documents are answered."""

    setting: Setting
    gain: float
    whole: bool
