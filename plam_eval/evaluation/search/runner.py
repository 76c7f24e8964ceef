"""A search at work: asks the study for settings until enough are tried, and has each answered, rung by rung.

Everything that a killed process had finished is in the folder, so the same command goes on; several processes may be at
one search, and the last to finish reports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from loguru import logger
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from plam_eval import files
from plam_eval.beside import gone
from plam_eval.errors import DamagedFileError, FolderError, OutsideError
from plam_eval.evaluation.records import clusters_by_content
from plam_eval.evaluation.search.answers import PLAIN_SETTING, Answers, Documents, is_hopeless, mean_gain, setting_of
from plam_eval.evaluation.search.config import SearchError
from plam_eval.evaluation.search.evaluator import Evaluator, evaluate_inside
from plam_eval.evaluation.search.job import SearchJob, Standing, read_documents
from plam_eval.evaluation.search.study import Study
from plam_eval.evaluation.sweep import runner as sweep_runner
from plam_eval.evaluation.sweep.documents import Drawn, split_documents
from plam_eval.evaluation.sweep.folder import identity_changes
from plam_eval.evaluation.sweep.job import Job, open_swept_model
from plam_eval.harness.wrapper import PlateauWrapper
from plam_eval.spec import PlateauSpec, SpecError

_PATIENCE = 5
"""Settings that may fail in a row before a search gives up."""
_OF_THE_SEARCH = (SearchError, FolderError, DamagedFileError, OutsideError, OSError)
"""Errors that are no setting's."""
_REPEATS = 10
"""Proposals per setting that is wanted: a small space is proposed over and over."""
_PLAN_LOCK, _REPORT_LOCK, _SECONDS = "search.lock", "report.lock", 60.0


def run(job: SearchJob, model: PlateauWrapper | None = None) -> dict[str, str]:
    """Try settings until enough are tried, then evaluate the chosen one on the other documents.

    Args:
        job: the search.
        model: the wrapper; loaded from the job's config by default.

    Returns:
        The settings that failed, by what they are, with their error. The others went on.

    Raises:
        SearchError: settings keep failing; a checkpoint has changed since the search began; several processes share
            the model's documents. EvaluationError: as `checks.check_tasks`.
    """
    # Before a plan with a mistyped task is written.
    checked = sweep_runner.check_tasks(job.config.sweep, by_document=True)
    left = held_out_left(job)
    if left == [] and (finished := held_out_job(job)) is not None:
        finished.write()  # of another choice, maybe, whose cells are finished
        return {}
    lm = model if model is not None else sweep_runner.load_model(job.config.sweep)
    failed: dict[str, str] = {}
    if left is None:
        for note in checked.notes:
            logger.warning(note)
        evaluate_inside(
            lm, job.config.sweep, lambda evaluator: failed.update(try_settings(job, evaluator, checked.drawn))
        )
        lm.merge(None)
        left = held_out_left(job)
    chosen = held_out_job(job) if left else None
    if chosen is not None:
        try:
            with files.locked(job.folder, _REPORT_LOCK, _ElsewhereError):
                sweep_runner.run(chosen, lm)
        except _ElsewhereError:
            logger.warning("{}: another process reports on the other documents", job.folder)
    return failed


class _ElsewhereError(Exception):
    """Another process does it."""


def held_out_job(job: SearchJob) -> Job | None:
    """The sweep on the other documents, of the setting that is best now; None where there is none.

    Args:
        job: the search.
    """
    standing = standing_of(job)
    if standing is None or standing.best is None:
        return None
    chosen = standing.settings[standing.best]
    layer_sets = len({setting.spec.layers for setting in standing.settings if setting.spec is not None})
    return job.held_out(chosen, len(standing.settings), layer_sets, standing.gains[standing.best])


def standing_of(job: SearchJob) -> Standing | None:
    """Where a search stands by what is in its folder; None before its documents are known.

    Args:
        job: the search.
    """
    documents = read_documents(job.folder, job.config.options.rungs, job.config.options.seed)
    return None if documents is None else Standing.of(Answers(job.folder), documents)


def held_out_left(job: SearchJob) -> list[str] | None:
    """Names of the cells that are left of the report on the other documents; None while settings are to be tried.

    Args:
        job: the search.
    """
    standing = standing_of(job)
    if standing is None or standing.best is None:
        return None
    settings = zip(standing.settings, standing.whole, strict=True)
    answered = {setting_of(setting.spec) for setting, is_whole in settings if is_whole}
    if not answered >= {setting_of(spec) for spec in job.space.reference_settings(job.num_layers)}:
        return None
    study = Study(job.folder, job.space, job.config.options, job.settings)
    search = _Search(job, None, study)
    if search.wants_more(study.trials()) or search.lost() or study.unfinished():
        return None
    chosen = held_out_job(job)
    return [cell.name for cell in chosen.left()] if chosen else None


def try_settings(job: SearchJob, evaluator: Evaluator, drawn: Drawn | None = None) -> dict[str, str]:
    """Have settings answered on the documents to choose on, until enough are tried.

    Args:
        job: the search.
        evaluator: the resident model.
        drawn: the order in which documents to choose on are drawn; the first of each task are chosen on without it.

    Returns:
        What failed, by what it is, with its error.
    """
    options = job.config.options
    table = evaluator.documents()  # of all documents, which may take longer than others wait
    chosen_on, _ = split_documents(table, job.config.select, drawn)
    chosen = table.assign(cluster=clusters_by_content(table)).merge(chosen_on, on=["task", "doc_id"])
    with files.locked(job.folder, _PLAN_LOCK, SearchError, patience=_SECONDS):
        job.write()
        job.note_documents(chosen, evaluator.directions())
    documents = read_documents(job.folder, options.rungs, options.seed)
    assert documents is not None
    study = Study(job.folder, job.space, options, job.settings)
    search = _Search(job, evaluator, study, documents)
    search.begin()
    search.answer_lost()
    with tqdm(total=options.trials, desc="search", unit="setting") as progress:
        search.show(progress)
        while True:
            with study.next(search.wants_more) as trial:
                if trial is None:
                    break
                search.take(trial)
            search.show(progress)
        search.begin()  # what it begins with may have been left to a process that was killed since
        search.show(progress)
    return search.failed


class _Search:
    """One process at a search."""

    def __init__(
        self, job: SearchJob, evaluator: Evaluator | None, study: Study, documents: Documents | None = None
    ) -> None:
        self._job, self._evaluator, self._study, self._documents = job, evaluator, study, documents
        self._answers = Answers(job.folder)
        self._begun = job.space.reference_settings(job.num_layers)
        self._names: dict[int, str | None] = {}  # of trials
        self._known: dict[int, Any] = {}  # settings and what they are worth
        self._in_a_row = 0
        self.failed: dict[str, str] = {}

    def begin(self) -> None:
        """The plain model, and the settings that a search begins with; raises what they raise."""
        assert self._documents is not None and self._evaluator is not None
        self._check_unchanged()
        with self._study.alone_at(PLAIN_SETTING, wait=True):
            if missing := self._documents.missing(self._rows(PLAIN_SETTING)):
                self._answers.add(None, -1, self._evaluator.answers(None, missing))
        for place, spec in enumerate(self._begun):
            with self._study.alone_at(setting_of(spec), wait=False) as alone:
                if alone:
                    self.gain_of(spec, place - len(self._begun), prune=False)

    def lost(self) -> dict[str, FrozenTrial]:
        """Proposals that were answered, by their settings, and whose answers are no longer there."""
        finished = [trial for trial in self._study.trials() if trial.state == TrialState.COMPLETE]
        named = {name: trial for trial in finished if (name := self._name(trial))}
        return {name: trial for name, trial in named.items() if self._rows(name) is None}

    def answer_lost(self) -> None:
        """Answer again what was damaged and deleted; what fails now is left to the next call."""
        for name, trial in self.lost().items():
            with self._study.alone_at(name, wait=False) as alone:
                if not alone:
                    continue
                try:
                    self.gain_of(self._job.space.spec(trial.params), trial.number)
                except _OF_THE_SEARCH:
                    raise
                except Exception as error:  # whatever it is, it is this setting's
                    self.failed[name] = f"{type(error).__name__}: {error}"
                    logger.warning("{}: its answers are gone, and cannot be had again: {}", name, self.failed[name])

    def wants_more(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether fewer different settings are tried, or being tried, than the search is to try.

        Args:
            trials: all proposals so far.
        """
        options = self._job.config.options
        if len(trials) >= _REPEATS * options.trials + len(self.failed):
            return False
        wanted = {setting_of(spec) for spec in self._begun} | {*self.failed}
        wanted |= {name for trial in trials if trial.state != TrialState.FAIL and (name := self._name(trial))}
        return len(wanted) < options.trials

    def take(self, trial: FrozenTrial) -> None:
        """Have a proposal answered, and tell the study what it scored.

        Args:
            trial: the proposal, which this process holds.
        """
        try:
            spec = self._job.space.spec(trial.params)
        except SpecError as error:
            self._fail(trial, f"trial {trial.number}", str(error))
            return
        if spec.is_plain:
            self._study.tell(trial, 0.0)
            return
        self._check_unchanged()
        try:
            gain = self.gain_of(spec, trial.number)
        except _OF_THE_SEARCH:
            raise
        except Exception as error:  # whatever it is, it is this setting's
            self._fail(trial, setting_of(spec), f"{type(error).__name__}: {error}")
            return
        if math.isnan(gain):
            self._fail(trial, setting_of(spec), "no document has a score")
            return
        self._in_a_row = 0
        self._study.tell(trial, gain)

    def gain_of(self, spec: PlateauSpec, number: int, *, prune: bool = True) -> float:
        """A setting's gain over plain, mean over tasks, of all documents or, of a hopeless one, of those it was asked.

        Args:
            spec: of the merge.
            number: of the proposal.
            prune: whether it may be given up.
        """
        assert self._documents is not None and self._evaluator is not None
        documents, name = self._documents, setting_of(spec)
        plain = self._rows(PLAIN_SETTING)
        if plain is None:
            raise gone(self._job.folder)
        rows = self._rows(name)
        for rung in range(documents.rungs):
            if missing := documents.missing(rows, rung):
                rows = self._answers.add(spec, number, self._evaluator.answers(spec, missing)).rows
            if not documents.missing(rows):
                break
            if prune and self._is_hopeless(documents.gains(plain, rows)):
                break
        return mean_gain(documents.gains(plain, rows))

    def show(self, progress: Any) -> None:
        """Bring a progress bar up to what is known.

        Args:
            progress: of tqdm's.
        """
        assert self._documents is not None
        standing = Standing.of(self._answers, self._documents, self._known)
        progress.n = min(len(standing.settings), progress.total)
        given_up = standing.whole.count(False)
        best = "none yet" if standing.best is None else f"{standing.gains[standing.best]:+.3f}"
        progress.set_postfix_str(f"best gain {best}" + (f", {given_up} given up" if given_up else ""))
        progress.refresh()

    def _rows(self, name: str) -> Any:
        setting = self._answers.of(name)
        return None if setting is None else setting.rows

    def _is_hopeless(self, gains: Any) -> bool:
        assert self._documents is not None
        standing = Standing.of(self._answers, self._documents, self._known)
        if standing.best is None:
            return False
        best = self._documents.gains(self._rows(PLAIN_SETTING), standing.settings[standing.best].rows)
        return is_hopeless(gains, best, self._job.config.options.prune)

    def _name(self, trial: FrozenTrial) -> str | None:
        """The setting of a proposal; None where it is none, or the plain model."""
        if not self._study.is_whole(trial):
            return None
        if trial.number not in self._names:
            try:
                spec = self._job.space.spec(trial.params)
                self._names[trial.number] = None if spec.is_plain else setting_of(spec)
            except SpecError:
                self._names[trial.number] = None
        return self._names[trial.number]

    def _fail(self, trial: FrozenTrial, what: str, error: str) -> None:
        logger.warning("trial {} of the search failed, {}: {}", trial.number, trial.params, error)
        self._study.tell(trial, None)
        self.failed[what] = error
        self._in_a_row += 1
        if self._in_a_row >= _PATIENCE:
            raise SearchError(f"{_PATIENCE} settings in a row failed, the last one with: {error}")

    def _check_unchanged(self) -> None:
        """Raises SearchError where the MLLM's files are no longer those that the search began with."""
        before = self._job.settings["checkpoint"]
        if "folder" not in before:
            return
        if problem := identity_changes(before, open_swept_model(self._job.config.sweep).identity()):
            raise SearchError(
                f"pretrained: the checkpoint was changed since this search began ({problem}), so settings would not be "
                "of one model; name another --output, or put the files back as they were"
            )
