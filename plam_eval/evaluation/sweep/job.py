"""A sweep's job: its grid in its folder, checked against the checkpoints before anything is loaded or written."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plam_eval import files
from plam_eval.errors import MergeError, changed_settings, listed
from plam_eval.evaluation.answer_store import delete_answers
from plam_eval.evaluation.excluded import read_excluded
from plam_eval.evaluation.sweep.config import SweepConfig, SweepError, split_arguments
from plam_eval.evaluation.sweep.documents import Drawn, read_drawn, write_drawn
from plam_eval.evaluation.sweep.folder import FINISHED, PLAN, TABLES, TOGETHER, read_cell, read_plan, read_state
from plam_eval.evaluation.sweep.grid import Cell, Grid, make_grid
from plam_eval.harness.sampling import Sample, named_as_before
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.provenance import versions


@dataclass(frozen=True)
class Job:
    """A sweep's grid in its folder: what is done, and what is left to do."""

    config: SweepConfig
    grid: Grid
    folder: Path
    settings: dict[str, Any]
    num_layers: int
    bytes_to_read: dict[str, int]
    """By merged or control cell: of all checkpoints, to reach it."""
    bytes_merged: dict[str, int]
    """By merged or control cell: of the tensors that are not plain in it, as they are stored."""
    chosen: Mapping[str, Any] | None = None
    """The merge that a search has chosen: `digest`; `tried`, how many settings, and `layer_sets`, how many different
    sets of layers among them; `difference` from plain on the documents to choose on."""
    drawn: Drawn | None = None
    """Its documents in the order in which they are drawn; None before they are known, and in sweeps of before."""

    @classmethod
    def plan(
        cls,
        config: SweepConfig,
        folder: str | Path,
        grid: Grid | None = None,
        chosen: Mapping[str, Any] | None = None,
        also: Mapping[str, Any] | None = None,
    ) -> Job:
        """Check every cell against the headers of its checkpoints; nothing is loaded or written.

        Args:
            config: what is swept.
            folder: where; it need not exist.
            grid: its cells; those that `config` describes by default.
            chosen: the merge among them that a search has chosen, if one has.
            also: what its answers depend on beside the config, for its settings.

        Raises:
            SweepError: the folder holds a sweep of other settings, or of another base. MergeError, SpecError: a cell
                cannot be merged. FolderError: the folder cannot be written, or holds something else.
        """
        from plam_eval.merging.plan import plan_merge
        from plam_eval.merging.spec_checkpoints import SpecCheckpoints

        folder = Path(folder)
        files.check_writable(folder)
        files.check_free(folder, TABLES, PLAN)
        checkpoint = open_swept_model(config)
        num_layers = count_layers(checkpoint)
        grid = grid or make_grid(config, num_layers)
        bases: dict[str, Checkpoint] = {}
        sizes: dict[str, int] = {}
        merged: dict[str, int] = {}
        for cell in grid.cells:
            if cell.spec is not None:
                opened = SpecCheckpoints.open(cell.spec, known=bases)
                bases |= opened.by_name(cell.spec)
                merge = plan_merge(cell.spec, model=checkpoint, base=opened.base, ancestor=opened.ancestor)
                sizes[cell.name], merged[cell.name] = merge.bytes, merge.model_bytes
        settings = {**sweep_settings(config, checkpoint, bases), **(also or {})}
        if (sample := sample_of(config)) != Sample():
            settings["sample"] = sample.to_dict()
        if (folder / PLAN).is_file():
            settings = named_as_before(read_plan(folder)["settings"], settings)
            grid = with_cells_before(folder, settings, grid)
        return cls(config, grid, folder, settings, num_layers, sizes, merged, chosen)

    def write(self) -> None:
        """Write the plan, in one step, and drop what only an unfinished sweep needs from a finished one."""
        content = {
            "config": self.config.model_dump(mode="json"),
            "settings": self.settings,
            "grid": self.grid.to_dict(),
            "num_layers": self.num_layers,
            **({"chosen": dict(self.chosen)} if self.chosen else {}),
            **({"drawn": self._drawn()} if self._drawn() else {}),
            "working_directory": str(Path.cwd()),
            "command": _command_line(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(self.folder / PLAN, content)
        if not self.left():
            delete_answers(self.folder / TOGETHER)

    def _drawn(self) -> dict[str, Any] | None:
        """What the plan says of documents; what it said before where they are not known here."""
        if self.drawn is not None:
            return write_drawn(self.drawn, self.config.seed)
        stored = read_plan(self.folder).get("drawn") if (self.folder / PLAN).is_file() else None
        return dict(stored) if isinstance(stored, Mapping) else None

    def remembering(self, drawn: Drawn) -> Job:
        """The job with its documents, which are those that its folder remembers, if it has finished cells.

        Args:
            drawn: as `checks.CheckedTasks.drawn`.

        Raises:
            SweepError: its folder has cells of other documents. DamagedFileError: what it remembers cannot be read.
        """
        if not (self.folder / PLAN).is_file() or len(self.left()) == len(self.grid.cells):
            return replace(self, drawn=drawn)
        before = read_drawn(read_plan(self.folder), str(self.folder / PLAN))
        if before is None:  # it chooses on the first ones, and goes on so
            return self
        if changed := [task for task in drawn if tuple(map(tuple, before.get(task, ()))) != tuple(drawn[task])]:
            raise SweepError(
                f"{self.folder} holds cells of other documents of {listed(changed)} than these options name now: the "
                "dataset was changed, or what is left out. Cells of both cannot be compared: name another --output"
            )
        return replace(self, drawn=drawn)

    @property
    def answers_together(self) -> Path:
        """Where answers that several cells were given at once are kept, for these settings and no others."""
        text = json.dumps(self.settings, sort_keys=True, default=str)
        return self.folder / TOGETHER / hashlib.sha256(text.encode()).hexdigest()[:16]

    def seconds_per_cell(self) -> float | None:
        """Mean time of the finished cells; None before there are any."""
        recorded = [read_cell(self.folder, cell) or {} for cell in self.grid.cells]
        finished = [record for record in recorded if record.get("status") == FINISHED]
        if not finished:
            return None
        own = sum(sum(record["seconds"].values()) for record in finished) / len(finished)
        # Answering for many cells is counted with the first of them.
        together = [record["together"] for record in finished if record.get("together", {}).get("cells")]
        cells = sum(counts["cells"] for counts in together)
        return own + (sum(counts["seconds"] for counts in together) / cells if cells else 0)

    def left(self) -> list[Cell]:
        """Cells that have no finished run, failed and damaged ones included."""
        cells = self.grid.cells
        return [cell for cell in cells if read_state(self.folder, cell, self.settings)[0].get("status") != FINISHED]


def chunks(cells: Sequence[Cell], size: int) -> list[Sequence[Cell]]:
    """Cells in chunks whose documents are answered together.

    Args:
        cells: in the order in which they are evaluated.
        size: `SweepConfig.together`.
    """
    return [cells[start : start + size] for start in range(0, len(cells), size)]


def _command_line() -> list[str]:
    """What this process was started as; nothing in a notebook or console, whose own command does not say it."""
    started = Path(sys.argv[0])
    name = started.name
    if name == "plam" or started.parts[-3:] == ("plam_eval", "cli", "__main__.py"):  # the latter under torchrun
        return ["plam", *sys.argv[1:]]
    return [] if hasattr(sys, "ps1") or name in ("", "-c") else list(sys.argv)


def with_cells_before(folder: Path, settings: Mapping[str, Any], grid: Grid) -> Grid:
    """The grid with the cells of the sweep that a folder holds; alone, where nothing of that sweep is worth keeping.

    Args:
        folder: a sweep's.
        settings: what answers depend on now, as `sweep_settings` gives them.
        grid: the cells of this call.

    Raises:
        SweepError: the folder's cells are of other settings.
    """
    before = read_plan(folder)
    earlier = Grid.from_dict(before["grid"])
    added = {name: settings["bases"][name] for name in settings["bases"] if name not in before["settings"]["bases"]}
    changed = changed_settings({**before["settings"], "bases": before["settings"]["bases"] | added}, settings)
    if not changed:
        specs = [cell.spec for cell in earlier.cells if cell.spec]
        named = {spec.base_model for spec in specs} | {str(spec.ancestor) for spec in specs if spec.needs_ancestor}
        unknown = named - set(settings["bases"])
        if unknown:  # it would be fetched, or opened wherever it is
            raise SweepError(
                f"{folder / PLAN}: has cells of the base {', '.join(sorted(unknown))}, which this sweep does not name; "
                "name another --output"
            )
        try:
            return grid.with_earlier(earlier)
        except SweepError as error:
            raise SweepError(f"{folder}: {error}") from None
    if not any((read_cell(folder, cell) or {}).get("status") == FINISHED for cell in earlier.cells):
        return grid
    raise SweepError(
        f"{folder} holds a sweep of other settings: {changed}. Cells of both cannot be compared: name "
        "another --output, or delete this one"
    )


def sample_of(config: SweepConfig) -> Sample:
    """Which documents a sweep is asked for, beside its limit and offset.

    Args:
        config: of the sweep.

    Raises:
        InputError: as `excluded.read_excluded`.
    """
    if not config.exclude:
        return Sample(config.sample, config.seed)
    plateau = split_arguments(config.model_args)[1].get("plateau")
    return Sample(config.sample, config.seed, read_excluded(config.exclude, plateau))


def open_swept_model(config: SweepConfig) -> Checkpoint:
    """The checkpoint of the MLLM that a sweep is of; its headers only are read.

    Args:
        config: of the sweep.

    Raises:
        SweepError: its model_args name none. CheckpointError: it cannot be opened.
    """
    arguments, _ = split_arguments(config.model_args)
    if not arguments.get("pretrained"):
        raise SweepError(f"model_args is {config.model_args!r}; expected pretrained=FOLDER_OR_HUB_ID in it")
    return Checkpoint.open(str(arguments["pretrained"]), revision=arguments.get("revision"), role="pretrained")


def count_layers(checkpoint: Checkpoint) -> int:
    """Decoder layers that the names of a checkpoint's tensors show.

    Args:
        checkpoint: of an MLLM.

    Raises:
        MergeError: they show none.
    """
    from plam_eval.merging.plan import decoder_names

    layers = {layer for layer, _ in decoder_names(checkpoint)}
    if not layers:
        raise MergeError(f"{checkpoint.name} has no decoder layers that are known by name")
    return max(layers) + 1


def sweep_settings(config: SweepConfig, checkpoint: Checkpoint, bases: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """What answers depend on besides the cell; equal settings make cells comparable.

    Args:
        config: of the sweep.
        checkpoint: of the MLLM.
        bases: checkpoints of the base LLMs, and of ancestors that merges take, by the names that specs give them.
    """
    arguments, _ = split_arguments(config.model_args)
    return {
        "model": config.model,
        "model_args": {key: str(value) for key, value in sorted(arguments.items())},
        "tasks": list(config.tasks),
        **{key: getattr(config, key) for key in ("limit", "offset", "gen_kwargs", "include_path", "force_simple")},
        "checkpoint": checkpoint.identity(),
        "bases": {name: base.identity() for name, base in sorted(bases.items())},
        "versions": versions(),
    }
