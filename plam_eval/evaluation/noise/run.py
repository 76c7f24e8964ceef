"""Answering a sample of a comparison's documents again, each variant in a folder of its own, as a comparison's is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from loguru import logger

from plam_eval import files
from plam_eval.errors import InputError
from plam_eval.evaluation.noise.floor import NOISE
from plam_eval.evaluation.noise.variant import FEWEST, Variant, read_variants, same_dtype
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.sweep import runner
from plam_eval.evaluation.sweep.folder import lock_sweep, read_state, record_failure
from plam_eval.evaluation.sweep.grid import PLAIN
from plam_eval.evaluation.sweep.job import Job
from plam_eval.harness import processes
from plam_eval.harness.sampling import beginning, documents_in
from plam_eval.harness.wrapper import PlateauWrapper

DOCUMENTS = 200
"""Documents of each task that are answered again, at most, where nobody says how many."""


@dataclass(frozen=True)
class NoisePlan:
    """What is answered again beside a comparison.

    Attributes:
        job: of the comparison.
        parts: by variant: its own job, as planned from headers.
        documents: of each task, at most.
    """

    job: Job
    parts: Mapping[Variant, Job]
    documents: int

    @classmethod
    def plan(cls, job: Job, words: str | Sequence[str], documents: int | None) -> NoisePlan:
        """Check what is asked for, from headers; nothing is loaded or written.

        Args:
            job: of the comparison.
            words: as `variant.read_variants` takes them.
            documents: of each task, at most; `DOCUMENTS` by default.

        Raises:
            InputError: listing every problem. SweepError, FolderError: a folder holds something else.
        """
        number = DOCUMENTS if documents is None else documents
        if number < FEWEST:
            missed = 1 - 0.05 ** (1 / number)
            raise InputError(
                f"noise_documents is {number}: if none of so few flips, {missed:.0%} of all may flip (95 %); "
                f"expected at least {FEWEST}, {DOCUMENTS} by default"
            )
        parts = {}
        for variant in read_variants(words, job.config):
            folder = job.folder / NOISE / variant.name
            files.inside(job.folder, f"{NOISE}/{variant.name}", str(job.folder))
            also = {"noise_documents": number}
            parts[variant] = Job.plan(variant.config(job.config), folder, job.grid, also=also)
        plan = cls(job, parts, number)
        if (plain := plan._plain()) is not None:
            plan._check_other(plain.block.get("dtype"), plain.block.get("attention"))
        return plan

    def check_resident(self, model: PlateauWrapper) -> None:
        """Raise InputError where a variant changes nothing, which the loaded model shows: dtype and attention.

        Args:
            model: of the comparison.
        """
        self._check_other(model.running_dtype, model.running_attention)

    def _check_other(self, dtype: str | None, attention: str | None) -> None:
        problems = []
        for variant in self.parts:
            changes = dict(variant.changes)
            if len(changes) > 1:
                continue
            if same_dtype(changes.get("dtype"), dtype):
                problems.append(f"{variant.name}: the model runs in {dtype} by itself; expected another dtype")
            if attention is not None and changes.get("attn_implementation") == attention:
                problems.append(f"{variant.name}: the model runs with {attention} by itself; expected another one")
        if problems:
            raise InputError(*problems, origin="--noise")

    def left(self) -> bool:
        """Whether something is to be answered yet."""
        return any(part.left() for part in self.parts.values())

    def run_on(self, model: PlateauWrapper) -> None:
        """Answer what the model that is loaded for the comparison can answer: other batch sizes.

        Args:
            model: of the comparison, whose two cells are finished.
        """
        for variant, part in self.parts.items():
            if variant.resident and self._is_left(part):
                with model.in_batches_of(part.config.batch_size):
                    self._run(part, lambda: model)

    def run_others(self, free_memory: Callable[[], None]) -> None:
        """Answer what is left, each variant on a model that is loaded for it. What fails is recorded, not raised.

        Args:
            free_memory: gives memory back that a dropped model held.
        """
        for part in self.parts.values():
            if self._is_left(part):
                self._run(part, partial(runner.load_model, part.config))
                free_memory()

    def _is_left(self, part: Job) -> bool:
        """As the first process sees it: another may see the folder before the first one's files reach it."""
        own = bool(part.left()) if processes.is_first_process() else False
        return bool(processes.all_ranks({"left": own})[0]["left"])

    def _run(self, part: Job, model: Callable[[], PlateauWrapper]) -> None:
        documents = self._documents() if processes.is_first_process() else None
        documents = processes.all_ranks({"documents": documents})[0]["documents"]
        if documents is None:  # plain has no run, which the comparison itself says
            return
        try:
            runner.run(self._of_scored(part), model(), documents=documents)
        except Exception as error:  # an engine that does not start, say: the comparison is there all the same
            if processes.number() > 1:  # the others may be at work: what one of them raises ends them all
                raise
            logger.warning("{}: {}", part.folder, error)
            part.write()
            with lock_sweep(part.folder):
                for cell in part.left():
                    record_failure(part.folder, cell, f"{type(error).__name__}: {error}")

    def _documents(self) -> dict[str, list[int]] | None:
        """The first ones of the comparison's documents, in the order in which a sample is drawn; None without plain."""
        if self._plain() is None:
            return None
        checked = runner.check_tasks(self.job.config)
        return {
            task: documents_in(beginning(clusters, self.documents))
            for task, clusters in checked.drawn.items()
            if task not in checked.unscored
        }

    def _of_scored(self, part: Job) -> Job:
        """A variant's job without tasks that have no score per document: nothing of theirs can flip."""
        checked = runner.check_tasks(self.job.config)
        if not checked.unscored:
            return part
        logger.warning("noise: {} not answered again: no score per document", ", ".join(checked.unscored))
        return replace(part, config=part.config.model_copy(update={"tasks": checked.scored}))

    def _plain(self) -> Run | None:
        """The comparison's plain run, once it is finished."""
        cell = next(cell for cell in self.job.grid.cells if cell.name == PLAIN)
        return read_state(self.job.folder, cell, self.job.settings)[1]
