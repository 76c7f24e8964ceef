"""What a whole scan, sweep, search or comparison takes, worked out from a few documents that were answered for it.

Nothing is assumed of the machine: the same code answers the same kind of documents with the same model, in a folder
that is thrown away, and what grows with documents (seconds of answering, logs, answers) is multiplied. In seconds:

    load + cells * (merge + rest of an evaluation + sum over tasks of documents * mean seconds of a document)

The rest of an evaluation (laying out requests, scoring, writing) is measured with the few documents, and with more of
them that are given an empty answer, so that what grows with documents is known of it, too.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, variance
from typing import Any, cast

import pandas as pd

from plam_eval.errors import InputError
from plam_eval.evaluation import scan as scans
from plam_eval.evaluation.machine import machine, peak_memory, reset_peak, sizes
from plam_eval.evaluation.search.answers import Setting
from plam_eval.evaluation.search.job import SearchJob
from plam_eval.evaluation.sweep import runner
from plam_eval.evaluation.sweep.config import SweepConfig
from plam_eval.evaluation.sweep.folder import CELLS
from plam_eval.evaluation.sweep.grid import PLAIN, Cell, Grid
from plam_eval.evaluation.sweep.job import Job, chunks
from plam_eval.evaluation.sweep.joint import RECHECKED, Together
from plam_eval.harness import evaluate, processes
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.sampling import Drawn, beginning, documents_in
from plam_eval.harness.wrapper import HFWrapper, PlateauWrapper, Timed

_DONE = "all of it is finished: nothing was loaded, and nothing is left to do"
SAMPLED = 20
"""Documents that are answered for an estimate, where nobody says how many."""
_EMPTY = 40
"""Documents of each task that are given an empty answer, at most."""
_ANSWER = 120
"""Bytes of an answer that a search keeps: a line of its setting's file."""


@dataclass(frozen=True)
class Estimate:
    """What the whole of a command takes, as far as a few documents tell.

    Attributes:
        what: "scan", "sweep", "search" or "comparison".
        sampled: documents that were answered for it.
        machine: where they were.
        cells: evaluations of all documents that are left to do: cells, settings of a search, or 1 for a scan.
        documents: by task, of each of them.
        generations: documents of all cells together.
        prompt_tokens, answer_tokens: of all generations, images included.
        seconds, low, high: of all of it. The range is that of a mean of so few documents (two standard errors), and of
            a search also of how early its settings are given up.
        load: seconds of them until the model is loaded; it is, again, whenever the command goes on.
        memory: bytes, the most that was in use while the few documents were answered; None where nobody says.
        memory_of: whose: "GPU", or "host" where the model runs on a CPU.
        disk: bytes that it leaves in its folder.
        notes: what a reader should know.
    """

    what: str
    sampled: int
    machine: str
    cells: int
    documents: dict[str, int]
    generations: int
    prompt_tokens: int
    answer_tokens: int
    seconds: float
    low: float
    high: float
    load: float
    memory: int | None
    memory_of: str
    disk: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON, by the names of the attributes."""
        return asdict(self)

    def __repr__(self) -> str:
        return (
            f"Estimate({self.what}: {self.generations:,} generations, {self.seconds / 3600:.2f} hours "
            f"({self.low / 3600:.2f} to {self.high / 3600:.2f}), {self.disk / 1e6:.1f} MB)"
        )


@dataclass
class Measured:
    """What a few documents took, on a model that is loaded.

    Attributes:
        load: seconds until it was.
        times: of answering, in parts of one or a few documents of one task.
        rest: seconds of an evaluation beside the answering; `rest_growth`, of each document more.
        prompt_tokens, answer_tokens: of a document, by mean.
        files: bytes of a cell's folder that do not grow with documents; `growing`, of each document.
        merging: seconds to bring the model to a merge.
        setup, together: seconds of merging for a chunk of cells that are answered together, and of each document then.
    """

    load: float = 0.0
    times: list[Timed] = field(default_factory=list)
    rest: float = 0.0
    rest_growth: float = 0.0
    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0
    files: int = 0
    growing: float = 0.0
    merging: float = 0.0
    setup: float = 0.0
    together: float | None = None
    memory: int | None = None
    memory_of: str = "host"

    @property
    def sampled(self) -> int:
        """Documents that were answered."""
        return sum(part.documents for part in self.times)

    def answering(self, documents: Mapping[str, int]) -> tuple[float, float]:
        """Seconds of answering so many documents of each task, and their standard error.

        Args:
            documents: by task.
        """
        own: dict[str, list[float]] = {}
        for part in self.times:
            own.setdefault(part.task, []).append(part.seconds / part.documents)
        every = [seconds for values in own.values() for seconds in values]
        pooled = variance(every) if len(every) > 1 else 0.0
        total, squared = 0.0, 0.0
        for task, count in documents.items():
            values = own.get(task, every)
            total += count * fmean(values)
            spread = variance(values) if len(values) > 2 else pooled
            squared += count**2 * spread / len(values)
        return total, math.sqrt(squared)

    def evaluating(self, documents: Mapping[str, int]) -> float:
        """Seconds of one evaluation beside the answering.

        Args:
            documents: by task.
        """
        return self.rest + self.rest_growth * max(0, sum(documents.values()) - self.sampled)

    def disk(self, documents: Mapping[str, int]) -> float:
        """Bytes of one evaluation's folder.

        Args:
            documents: by task.
        """
        return self.files + self.growing * sum(documents.values())


def check_alone() -> None:
    """Raise InputError under several processes, which share documents out."""
    if (size := processes.number()) > 1:
        raise InputError(
            f"--dry-run answers documents in one process, and the launcher started {size}; start it without a launcher "
            f"and divide its hours by {size}, or give --dry-run 0, which answers none"
        )


def draw_few(drawn: Mapping[str, Drawn], size: int) -> dict[str, list[int]]:
    """Task -> the first documents of its order, as many of each task as of the others, one cluster at least.

    Args:
        drawn: task -> its documents, cluster by cluster, in the order in which they are drawn.
        size: documents of all tasks together, or as near as one of each and whole clusters come.
    """
    share, more = divmod(size, len(drawn))
    sizes_of = {task: share + (place < more) for place, task in enumerate(drawn)}
    return {task: documents_in(beginning(clusters, max(1, sizes_of[task]))) for task, clusters in drawn.items()}


def of_job(
    job: Job, documents: Mapping[str, int], drawn: Mapping[str, Drawn], sampled: int, what: str = "sweep"
) -> Estimate:
    """What is left of a sweep or comparison takes; loads the model and answers a few documents.

    Args:
        job: the sweep; nothing is written into its folder.
        documents: by task, of each cell.
        drawn: these documents, as `draw_few` takes them.
        sampled: documents to answer.
        what: it is called.

    Raises:
        EvaluationError: the documents cannot be answered. Besides, what loading the model raises.
    """
    left = job.left()
    if not left:
        return Estimate(what, 0, machine(), 0, dict(documents), 0, 0, 0, 0.0, 0.0, 0.0, 0.0, None, "host", 0, (_DONE,))
    with _loaded(job.config) as (model, load):
        specs = [cell.spec for cell in left if cell.spec is not None]
        size = job.config.together
        chunk = [cell.spec for cell in left[:size]] if size > 1 and len(left) > 1 else []
        measured = _measure(model, job, drawn, sampled, specs[0] if specs else None, chunk)
    measured.load = load
    return _of_cells(what, measured, job, len(left), len(specs), documents)


def of_search(
    job: SearchJob, documents: Mapping[str, int], drawn: Mapping[str, Drawn], tried: int, sampled: int
) -> Estimate:
    """What a search and its report take; loads the model and answers a few documents.

    Settings that are given up early are why its range is wide: none of them, or all after the first rung.

    Args:
        job: the search; nothing is written into its folder.
        documents: by task, all of them.
        drawn: these documents, as `draw_few` takes them.
        tried: settings that have answers already.
        sampled: documents to answer.

    Raises:
        EvaluationError: the documents cannot be answered. Besides, what loading the model raises.
    """
    options, select = job.config.options, job.config.select
    spec = job.space.corners()[0]
    report = job.held_out(Setting(spec, 0, pd.DataFrame()), 1, 1, 0.0)
    with _loaded(job.config.sweep) as (model, load):
        measured = _measure(model, report, drawn, sampled, spec)
    measured.load = load
    after = _of_cells("search", measured, report, len(report.left()), len(report.left()) - 1, documents)
    chosen_on = {task: len(documents_in(beginning(drawn[task], select))) for task in documents}
    settings = max(0, options.trials - tried) + (1 if tried == 0 else 0)  # and the plain model
    answering, error = measured.answering(chosen_on)
    most = settings * (measured.merging + answering)
    least = settings * (measured.merging + min(options.rungs, default=1.0) * answering) if options.prune else most
    total = settings * sum(chosen_on.values())
    return replace(
        after,
        cells=settings + after.cells,
        generations=total + after.generations,
        prompt_tokens=round(total * measured.prompt_tokens) + after.prompt_tokens,
        answer_tokens=round(total * measured.answer_tokens) + after.answer_tokens,
        seconds=after.seconds + most,
        low=after.low + max(0.0, least - 2 * settings * error),
        high=after.high + most + 2 * settings * error,
        disk=after.disk + round(total * _ANSWER),
        notes=(
            f"{settings} settings, plain among them, on {sum(chosen_on.values())} documents, "
            f"then a report of {after.cells} cells on all; settings that are given up early take less",
        ),
    )


def of_scan(
    load: Callable[[], HFWrapper],
    tasks: Sequence[str],
    documents: Mapping[str, int],
    drawn: Mapping[str, Drawn],
    sampled: int,
    *,
    cuts: str | None,
    **given: Any,
) -> Estimate:
    """What a scan takes; loads the model and scans a few documents.

    Args:
        load: gives the model.
        tasks: names of tasks or groups.
        documents: by task, those that have a score.
        drawn: these documents, as `draw_few` takes them.
        sampled: documents to scan.
        cuts: as for `scan.scan`.
        given: what else `scan.scan` takes of how documents are answered.

    Raises:
        EvaluationError: the documents cannot be answered. Besides, what loading the model raises.
    """
    check_alone()
    reset_peak()
    started = time.perf_counter()
    model = load()
    measured = Measured(load=time.perf_counter() - started)
    few, first, size = draw_few(drawn, sampled), draw_few(drawn, 1), given.get("batch_size", 1)
    with tempfile.TemporaryDirectory(prefix="plam-eval-") as scratch, _silent():
        scans.scan(model, tasks, Path(scratch) / "first", cuts=cuts, documents=first, **given)
        started = time.perf_counter()
        with model.timed(size) as times:
            done = scans.scan(model, tasks, Path(scratch) / "scan", cuts=cuts, documents=few, **given)
        taken = time.perf_counter() - started
        assert done is not None
        measured.times = [part for part in times if part.task in documents]
        measured.rest = max(0.0, taken - sum(part.seconds for part in times))
        generation, curve = model.generation, done.curve
        answered = sum(part.documents for part in times)  # calls are those of choices where these are compared
        measured.prompt_tokens = generation.prompt_tokens / answered
        measured.answer_tokens = generation.answer_tokens / answered
        fixed, growing = sizes(done.folder)
        measured.files, measured.growing = fixed, growing / measured.sampled
    measured.memory, measured.memory_of = peak_memory()
    answering, error = measured.answering(documents)
    total, number = sum(documents.values()), len(curve.table()["cut"].unique())
    seconds = measured.load + measured.rest + answering
    return Estimate(
        what="scan",
        sampled=measured.sampled,
        machine=machine(),
        cells=1,
        documents=dict(documents),
        generations=total,
        prompt_tokens=round(total * measured.prompt_tokens),
        answer_tokens=round(total * number * measured.answer_tokens),
        seconds=seconds,
        low=max(measured.load, seconds - 2 * error),
        high=seconds + 2 * error,
        load=measured.load,
        memory=measured.memory,
        memory_of=measured.memory_of,
        disk=round(measured.disk(documents)),
        notes=(f"each generation answers under {number} cuts at once",),
    )


def _of_cells(
    what: str, measured: Measured, job: Job, cells: int, merges: int, documents: Mapping[str, int]
) -> Estimate:
    answering, error = measured.answering(documents)
    each = measured.evaluating(documents)
    total = sum(documents.values())
    seconds = measured.load + merges * measured.merging + cells * each
    if measured.together is None:
        seconds, error = seconds + cells * answering, cells * error
    else:
        parts = len(chunks(range(cells), job.config.together))  # type: ignore[arg-type]  # of numbers, to count them
        again = {task: min(RECHECKED, count) for task, count in documents.items()}
        seconds += cells * measured.answering(again)[0]
        seconds += parts * (measured.setup + total * measured.together)
        error = parts * error * measured.together * total / max(answering, 1e-9)
    return Estimate(
        what=what,
        sampled=measured.sampled,
        machine=machine(),
        cells=cells,
        documents=dict(documents),
        generations=cells * total,
        prompt_tokens=round(cells * total * measured.prompt_tokens),
        answer_tokens=round(cells * total * measured.answer_tokens),
        seconds=seconds,
        low=max(measured.load, seconds - 2 * error),
        high=seconds + 2 * error,
        load=measured.load,
        memory=measured.memory,
        memory_of=measured.memory_of,
        disk=round(cells * measured.disk(documents)),
    )


@contextlib.contextmanager
def _loaded(config: SweepConfig) -> Iterator[tuple[PlateauWrapper, float]]:
    """The model of a sweep, and the seconds until it was loaded; dropped at the end."""
    check_alone()
    reset_peak()
    started = time.perf_counter()
    model = runner.load_model(config)
    try:
        yield model, time.perf_counter() - started
    finally:
        del model


def _measure(
    model: PlateauWrapper,
    job: Job,
    drawn: Mapping[str, Drawn],
    sampled: int,
    merge: Any,
    chunk: Sequence[Any] = (),
) -> Measured:
    """What a few documents take under the plain model, and under a chunk of cells where these are answered together."""
    config, measured = job.config, Measured()
    few = draw_few(drawn, sampled)
    cell = Cell(PLAIN, "plain", None)
    with tempfile.TemporaryDirectory(prefix="plam-eval-") as scratch, _silent():
        tried = replace(job, grid=Grid((cell,), {}), folder=Path(scratch) / "first", chosen=None)
        _answer(tried, model, draw_few(drawn, 1))  # what is slow only once
        tried = replace(tried, folder=Path(scratch) / "plain")
        with model.timed(config.batch_size) as times:
            record = _answer(tried, model, few)
        measured.times = times
        answering = sum(part.seconds for part in times)
        measured.rest = max(0.0, record["seconds"]["evaluate"] - answering)
        generation = model.generation
        answered = sum(part.documents for part in times)  # calls are those of choices where these are compared
        measured.prompt_tokens = generation.prompt_tokens / answered
        measured.answer_tokens = generation.answer_tokens / answered
        # The log of the timed cell has a progress bar for each part, so the first one's counts.
        measured.files, _ = sizes(Path(scratch) / "first" / CELLS / PLAIN)
        _, growing = sizes(tried.folder / CELLS / PLAIN)
        measured.growing = growing / measured.sampled
        measured.rest_growth = _growth(model, config, measured, draw_few(drawn, _EMPTY * len(few)))
        if merge is not None:
            started = time.perf_counter()
            model.merge(merge)
            measured.merging = time.perf_counter() - started
            model.merge(None)
        if chunk:
            _measure_together(model, config, measured, chunk, few, Path(scratch) / "together")
    measured.memory, measured.memory_of = peak_memory()
    return measured


def _answer(job: Job, model: PlateauWrapper, documents: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The record of a job's one cell, answered on some documents."""
    (record,) = runner.run(job, model, documents=documents).values()
    if "error" in record:
        raise EvaluationError(f"the sampled documents could not be answered: {record['error']}")
    return record


def _growth(
    model: PlateauWrapper, config: SweepConfig, measured: Measured, documents: Mapping[str, Sequence[int]]
) -> float:
    """Seconds that each document adds to an evaluation beside its answer."""
    more = sum(map(len, documents.values())) - measured.sampled
    if more <= 0:
        return 0.0
    with model.answering(_Nothing()), model.timed(config.batch_size) as times:
        started = time.perf_counter()
        _evaluate(model, config, documents)
        taken = time.perf_counter() - started
    taken -= sum(part.seconds for part in times)  # likelihoods of choices are measured, whoever answers
    return max(0.0, taken - measured.rest) / more


def _evaluate(model: PlateauWrapper, config: SweepConfig, documents: Mapping[str, Sequence[int]]) -> None:
    evaluate.evaluate(
        model,
        list(config.tasks),
        documents=documents,
        gen_kwargs=config.gen_kwargs,
        batch_size=config.batch_size,
        include_path=config.include_path,
        force_simple=config.force_simple,
    )


class _Nothing:
    """Answers every request with an empty text."""

    def answer(self, requests: list[Any]) -> list[Any]:
        return [""] * len(requests)

    def end_run(self, tasks: dict[str, Any]) -> None:
        pass


def _measure_together(
    model: PlateauWrapper,
    config: SweepConfig,
    measured: Measured,
    chunk: Sequence[Any],
    few: Mapping[str, Sequence[int]],
    folder: Path,
) -> None:
    together = Together(cast(HFWrapper, model), chunk, folder, io.StringIO())
    with together.installed():
        model.merge(chunk[0])
        _evaluate(model, config, few)
        seconds = together.record()["seconds"]
    model.merge(None)
    measured.setup = min(seconds, measured.merging * len(chunk))
    measured.together = (seconds - measured.setup) / measured.sampled


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the progress bars and tables of what is only tried."""
    print("answering a few documents to see what they take ...", file=sys.stderr, flush=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
