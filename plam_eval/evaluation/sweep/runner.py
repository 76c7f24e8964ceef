"""Evaluating the cells of a sweep on one resident model, each an lmms-eval run folder of its own.

Cells are finished one by one, each moved into place when it is complete, so that a sweep that was killed goes on with
the first unfinished cell. `run` does so in this process (or under torchrun); `ray.run` shares cells out to workers.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

from loguru import logger
from tqdm import tqdm

from plam_eval import files
from plam_eval.evaluation.sweep.config import SweepConfig, SweepError, split_arguments
from plam_eval.evaluation.sweep.documents import documents_of, read_drawn
from plam_eval.evaluation.sweep.folder import (
    CELL,
    FAILED,
    FINISHED,
    LOG,
    PLAN,
    cell_places,
    check_not_deleted,
    finish_cell,
    identity_changes,
    lock_sweep,
    read_plan,
)
from plam_eval.evaluation.sweep.grid import Cell, cell_arguments
from plam_eval.evaluation.sweep.job import Job, chunks, open_swept_model, sample_of
from plam_eval.evaluation.sweep.joint import Together
from plam_eval.harness import checks, evaluate, processes
from plam_eval.harness.sampling import beginning
from plam_eval.harness.wrapper import HFWrapper, PlateauWrapper
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.terminal import one_line


def load_model(config: SweepConfig) -> PlateauWrapper:
    """The plain model in its wrapper, as lmms-eval's command line would make it.

    Args:
        config: of the sweep.

    Raises:
        What `evaluate.check_model` and `check_tasks` raise, before anything is loaded.
    """
    arguments, _ = split_arguments(config.model_args)
    evaluate.check_model(config.model, arguments, force_simple=config.force_simple)
    check_tasks(config)
    return evaluate.make_model(config.model, arguments, batch_size=config.batch_size, force_simple=config.force_simple)


def check_tasks(config: SweepConfig, *, by_document: bool = False) -> checks.CheckedTasks:
    """`checks.check_tasks` of what a sweep asks for.

    Args:
        config: of the sweep.
        by_document: answers will be scored one by one, as a search does.

    Raises:
        SweepError: `select` leaves no document of a task to report on. EvaluationError: as `checks.check_tasks`.
    """
    checked = checks.check_tasks(
        config.tasks,
        limit=config.limit,
        offset=config.offset,
        sample=sample_of(config),
        include_path=config.include_path,
        gen_kwargs=config.gen_kwargs,
        model=config.model,
        by_document=by_document,
    )
    select = config.select or 0
    if short := [task for task in checked.clusters if select and _leaves_none(checked, task, select)]:
        raise SweepError(
            f"choosing on {config.select} documents leaves none of {', '.join(short)} to report on, which has "
            f"{min(checked.documents[task] for task in short)}; choose on fewer, or evaluate more"
        )
    return checked


def _leaves_none(checked: checks.CheckedTasks, task: str, select: int) -> bool:
    """Whether choosing on so many documents of a task leaves none to report on."""
    return sum(map(len, beginning(checked.drawn.get(task, ()), select))) >= checked.documents[task]


def run(
    job: Job, model: PlateauWrapper | None = None, *, documents: Mapping[str, Sequence[int]] | None = None
) -> dict[str, dict[str, Any]]:
    """Evaluate every unfinished cell on one resident model, in order.

    Args:
        job: the sweep.
        model: the wrapper; loaded from the job's config by default.
        documents: task -> doc_ids, of every task, in place of the config's limit and offset.

    Returns:
        The record of every cell of this call, by name. A cell that failed has `status` "failed", and the others go on;
        under several processes a failure in one of them ends them all.

    Raises:
        SweepError: another process is at work in this folder, or it was deleted or replaced meanwhile; a checkpoint
            has changed since the sweep began. EvaluationError: as `checks.check_tasks`.
    """
    checked = check_tasks(job.config)  # before a plan with a mistyped one is written
    lm = model if model is not None else load_model(job.config)
    first, alone = lm.rank == 0, lm.world_size == 1
    if first:
        for task, why in checked.unscored.items():
            logger.warning("{}: evaluated, but not compared, no score per document is known: {}", task, why)
        for note in checked.notes:
            logger.warning(note)
    done: dict[str, dict[str, Any]] = {}
    with lock_sweep(job.folder) if first else nullcontext():
        if first:
            job = job.remembering(checked.drawn)
            job.write()
        # One process decides for all: another may see the folder before the first one's files reach it.
        left = [cell.to_dict() for cell in job.left()] if first else []
        cells = [Cell.from_dict(stored) for stored in processes.all_ranks({"cells": left})[0]["cells"]]
        with tqdm(total=len(cells), desc="sweep", unit="cell", disable=not first) as progress:
            for chunk in chunks(cells, job.config.together):
                specs = [cell.spec for cell in chunk]
                together = (
                    Together(cast(HFWrapper, lm), specs, job.answers_together, sys.stderr) if len(chunk) > 1 else None
                )
                for cell in chunk:
                    progress.set_postfix_str(one_line(cell.name))
                    done[cell.name] = run_cell(
                        lm, cell, job.config, job.folder, alone=alone, together=together, documents=documents
                    )
                    progress.update()
        if first:
            check_not_deleted(job.folder, done)
            job.write()
    return done


def run_cell(
    lm: PlateauWrapper,
    cell: Cell,
    config: SweepConfig,
    folder: Path,
    *,
    alone: bool = True,
    together: Together | None = None,
    documents: Mapping[str, Sequence[int]] | None = None,
    attempt: int = 0,
) -> dict[str, Any]:
    """Merge, evaluate and store one cell; what goes wrong is stored, too.

    Everything is written beside the cell's folder and moved there once it is complete.

    Args:
        lm: the wrapper.
        cell: one of the sweep's.
        config: of the sweep.
        folder: the sweep's.
        alone: whether no other process is at this cell; if one is, a failure ends them all.
        together: answers of the chunk of cells that this one is of.
        documents: as for `run`.
        attempt: at this cell, as for `folder.cell_places`.

    Returns:
        The record of the cell, with its `status`.

    Raises:
        SweepError: the sweep's folder is gone, or a checkpoint has changed since it began. FolderError: something that
            is no cell stands where this one is to be.
    """
    first = lm.rank == 0
    _check_unchanged(folder, cell, config)
    target, partial = cell_places(folder, cell.name, attempt)
    if first:
        files.check_own(target, CELL)  # known before the cell is paid for
        files.remove_own(partial, LOG, CELL)
        files.make_own(partial)
    processes.all_ranks({})
    record: dict[str, Any] = {**cell.to_dict(), "digest": cell.spec.digest() if cell.spec else None}
    seconds: dict[str, float] = {}
    try:
        with _logged(partial / LOG if first else None), together.installed() if together else nullcontext():
            started = time.perf_counter()
            lm.merge(cell.spec)
            seconds["merge"] = time.perf_counter() - started
            started = time.perf_counter()
            evaluated = evaluate.evaluate(
                lm,
                list(config.tasks),
                model_args=cell_arguments(config, cell),
                **({"documents": documents} if documents else _asking(folder, config)),
                output=partial,
                gen_kwargs=config.gen_kwargs,
                batch_size=config.batch_size,
                include_path=config.include_path,
                force_simple=config.force_simple,
            )
            seconds["evaluate"] = time.perf_counter() - started
        _check_unchanged(folder, cell, config)
        record["status"] = FINISHED
        if together is not None:
            seconds["evaluate"] -= together.record()["seconds"]
            record["together"] = _added_up(processes.all_ranks(together.record()))
        if evaluated is not None and evaluated.results_file is not None:
            record["results"] = str(evaluated.results_file.relative_to(partial))
    except Exception as error:  # whatever it is, it is this cell's, and is kept with it
        if not alone:
            raise
        if not partial.is_dir():
            raise SweepError(f"{folder}: was deleted while the sweep ran; the same command begins it anew") from error
        record |= {"status": FAILED, "error": f"{type(error).__name__}: {error}"}
        with (partial / LOG).open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
    record["seconds"] = {key: round(value, 4) for key, value in seconds.items()}
    if first:
        finish_cell(partial, target, record)
    return record


def _asking(folder: Path, config: SweepConfig) -> dict[str, Any]:
    """What `evaluate.evaluate` is told of documents: those that the folder remembers, where they were drawn."""
    if config.sample is None and not config.exclude:
        return {"limit": config.limit, "offset": config.offset}
    plan = read_plan(folder)
    drawn = read_drawn(plan, str(folder / PLAN))
    if drawn is None:
        raise SweepError(f"{folder / PLAN}: does not say which documents were drawn; name another --output")
    return {"documents": documents_of(drawn), "sample": plan["settings"].get("sample")}


def _check_unchanged(folder: Path, cell: Cell, config: SweepConfig) -> None:
    """Raises SweepError where a checkpoint is no longer what `sweep.json` says: cells would not be of one model.

    Hub ids are left to what the wrapper recorded: they would be asked for over the network.
    """
    check_not_deleted(folder)
    settings = read_plan(folder)["settings"]
    opened: list[tuple[str, Mapping[str, Any], Callable[[], Checkpoint]]] = []
    if "folder" in settings["checkpoint"]:
        opened.append(("pretrained", settings["checkpoint"], lambda: open_swept_model(config)))
    sides: dict[str, str | None] = {}
    if cell.spec is not None:
        sides = {"base": cell.spec.base_model, "ancestor": cell.spec.ancestor if cell.spec.needs_ancestor else None}
    for what, name in sides.items():
        if name and "folder" in settings["bases"].get(name, {}):
            opened.append((what, settings["bases"][name], partial(Checkpoint.open, name)))
    for what, before, open_again in opened:
        if problem := identity_changes(before, open_again().identity()):
            raise SweepError(
                f"{what}: the checkpoint was changed since this sweep began ({problem}), so cells would not be of one "
                "model; name another --output, or put the files back as they were"
            )


def _added_up(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The processes' records of a cell that was answered together with others, as one."""
    return {
        **{key: sum(record[key] for record in records) for key in ("documents", "apart", "rechecked", "differ")},
        **{key: round(max(record[key] for record in records), 4) for key in ("cells", "seconds")},
        "reasons": sorted({reason for record in records for reason in record["reasons"]}),
    }


@contextmanager
def _logged(file: Path | None) -> Iterator[None]:
    """What lmms-eval prints and logs goes into a file: a sweep would print a screenful per cell."""
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context((file or Path(os.devnull)).open("a", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(stream))
        stack.enter_context(contextlib.redirect_stderr(stream))
        handler = logger.add(stream, level="INFO")
        stack.callback(logger.remove, handler)
        yield
