"""Optuna's study in a search's folder: what was proposed, by which process, and what it scored.

The journal is Optuna's own, as lines of JSON. It is read as data: nothing that Optuna would unpickle (its snapshots,
the state of CMA-ES) is taken from it, and what cannot be replayed is a damaged file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from plam_eval import files
from plam_eval.beside import gone
from plam_eval.errors import DamagedFileError, FolderError
from plam_eval.evaluation.search.answers import JOURNAL
from plam_eval.evaluation.search.config import SearchError, SearchOptions
from plam_eval.evaluation.search.space import Space

RUNNING = "running"
_LOCK, _PATIENCE = "study.lock", 60.0  # seconds: another process asks for a setting
_LARGEST = 1 << 28
_SYSTEM_ATTRIBUTE = re.compile(r"fixed_params|(tpe|gp):relative_params:\d+")
"""What Optuna notes of a proposal for the samplers that there are here, all of it JSON."""
_REMEDY = "delete it: answers are kept apart from it, and the same search takes them from there"


class Journal(BaseJournalBackend):
    """The lines of a study's file. A line that a kill has cut off is dropped before the next is written.

    Args:
        folder: the search's.

    Raises:
        SearchError: the file is a link or a pipe.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / JOURNAL
        self._held: list[dict[str, Any]] | None = None  # while `at_once`, what is to be written
        if self._file.is_symlink() or (self._file.exists() and not self._file.is_file()):
            raise SearchError(f"{self._file}: found a link or no file, expected a file of plam-eval's own; delete it")

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """The entries from a number on.

        Args:
            log_number_from: of the first one.

        Raises:
            FolderError: there were more before.
        """
        entries = [entry for line in self._lines() for entry in _entries(line, self._file)]
        entries += self._held or ()
        if len(entries) < log_number_from:
            raise gone(self._folder)
        return entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write entries behind the others, all or none of them.

        Args:
            logs: JSON-able.
        """
        if self._held is not None:
            self._held += logs
            return
        with self._alone():
            self._append(logs)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """While it lasts, entries are kept, and then written together: a kill leaves all of them or none.

        No other process writes meanwhile, so that entries have the numbers in the file that they have here.
        """
        with self._alone():
            self._held = []
            try:
                yield
                held, self._held = self._held, None
                self._append(held)
            finally:
                self._held = None

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        return files.locked(self._folder, f"{JOURNAL}.lock", SearchError, patience=_PATIENCE)

    def _append(self, logs: list[dict[str, Any]]) -> None:
        if not logs:
            return
        size = sum(len(line) + 1 for line in self._lines())
        with self._file.open("ab") as file:
            file.truncate(size)
            try:
                # One line, since a kill may cut a write off anywhere.
                file.write(json.dumps(logs[0] if len(logs) == 1 else logs).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:  # a full disk
                os.truncate(self._file, size)
                raise

    def _lines(self) -> list[bytes]:
        if not self._file.exists():
            return []
        return files.read_at_most(self._file, _LARGEST, _REMEDY).split(b"\n")[:-1]


def _entries(line: bytes, file: Path) -> list[dict[str, Any]]:
    """The entries of a line of the journal, one or a list of those that belong together; raises as `_entry`."""
    try:
        content = files.check_depth(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{file}: a line is no JSON ({error}); {_REMEDY}") from error
    several = content if isinstance(content, list) and content else [content]
    return [_entry(entry, file) for entry in several]


def _entry(entry: Any, file: Path) -> dict[str, Any]:
    """An entry of the journal. Raises DamagedFileError where Optuna would take code from it, or it is none."""
    if not isinstance(entry, dict) or type(entry.get("op_code")) is not int:
        raise DamagedFileError(f"{file}: found {entry!r:.80}, expected an operation of Optuna's journal; {_REMEDY}")
    for key in ("system_attr", "system_attrs"):
        noted = entry.get(key) or {}
        if not isinstance(noted, dict) or not all(map(_SYSTEM_ATTRIBUTE.fullmatch, noted)):
            raise DamagedFileError(f"{file}: found {noted!r:.80} as {key}, which no search here writes; {_REMEDY}")
    return entry


class Study:
    """The study of one search, shared by every process that works on it.

    Args:
        folder: the search's.
        space: that settings are proposed from.
        options: its sampler, seed and number of trials.
        settings: what answers depend on: a search of others is another study.

    Raises:
        DamagedFileError: its file is none that this writes. OutsideError: its locks' folder is a link that leads out.
    """

    def __init__(self, folder: Path, space: Space, options: SearchOptions, settings: Mapping[str, Any]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._folder, self._options = folder, options
        self._distributions = space.distributions()
        self._points = space.points(options.seed) if options.sampler == "grid" else None
        name = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        files.inside(folder, RUNNING, str(folder))  # files are deleted there
        with self._asking(), _replayed(folder):
            self._journal = Journal(folder)
            storage = optuna.storages.JournalStorage(self._journal)
            self._study = optuna.create_study(
                study_name=name, storage=storage, direction="maximize", load_if_exists=True
            )
            self.trials()

    def trials(self) -> list[FrozenTrial]:
        """Every proposal so far, of all processes, in order."""
        with _replayed(self._folder):
            trials = self._study.get_trials(deepcopy=False)
        if strange := [trial.number for trial in trials if not all(self._has(*each) for each in trial.params.items())]:
            raise DamagedFileError(f"{self._folder / JOURNAL}: trial {strange[0]} is of another search; {_REMEDY}")
        return trials

    def _has(self, name: str, value: Any) -> bool:
        """Whether a parameter of this search may have a value."""
        distribution: Any = self._distributions.get(name)
        if isinstance(distribution, CategoricalDistribution):
            return value in distribution.choices
        return distribution is not None and bool(distribution.low <= value <= distribution.high)

    def is_whole(self, trial: FrozenTrial) -> bool:
        """Whether a proposal has all of its parameters: a kill may have come before the last was written.

        Args:
            trial: of this study.
        """
        return trial.params.keys() == self._distributions.keys() and trial.distributions == self._distributions

    @contextlib.contextmanager
    def next(self, wanted: Any) -> Iterator[FrozenTrial | None]:
        """A proposal that this process works on while the block lasts: one that a killed process left, or a new one.

        Args:
            wanted: asked whether there shall be a new one, given the trials so far.

        Yields:
            The proposal; None where none is left and no new one is wanted, or there is no other.
        """
        with contextlib.ExitStack() as held:
            with self._asking():
                trial = self._abandoned(held)
                if trial is None and wanted(self.trials()):
                    trial = self._proposed(held)
            yield trial
            if trial is not None:
                (self._folder / RUNNING / f"{trial.number}.lock").unlink(missing_ok=True)

    def tell(self, trial: FrozenTrial, value: float | None) -> None:
        """Say what a proposal scored.

        Args:
            trial: of this study.
            value: its gain over plain; None where it could not be had.
        """
        if value is None:
            self._study.tell(trial.number, state=TrialState.FAIL)
        else:
            self._study.tell(trial.number, value)

    def unfinished(self) -> bool:
        """Whether a proposal is being answered, or was left by a process that was killed."""
        return bool(self._running())

    @contextlib.contextmanager
    def alone_at(self, name: str, *, wait: bool) -> Iterator[bool]:
        """While it lasts, no other process is at something of this name; gives whether that is so.

        Args:
            name: of a setting that is no proposal.
            wait: for another process to finish it, however long that takes.
        """
        with contextlib.ExitStack() as held:
            yield self._hold(name, held, patience=-1 if wait else 0)

    def _asking(self) -> contextlib.AbstractContextManager[None]:
        return files.locked(self._folder, _LOCK, SearchError, patience=_PATIENCE)

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING]

    def _hold(self, name: int | str, held: contextlib.ExitStack, patience: float = 0) -> bool:
        """Whether this process has a proposal for itself from now on; a process that has it lives."""
        try:
            held.enter_context(files.locked(self._folder / RUNNING, f"{name}.lock", _HeldError, patience=patience))
        except _HeldError:
            return False
        return True

    def _abandoned(self, held: contextlib.ExitStack) -> FrozenTrial | None:
        for left in self._running():
            with contextlib.ExitStack() as tried:
                if not self._hold(left.number, tried):
                    continue
                trial = self.trials()[left.number]
                if trial.state != TrialState.RUNNING:  # its process has finished it since
                    (self._folder / RUNNING / f"{trial.number}.lock").unlink(missing_ok=True)
                elif self.is_whole(trial):
                    held.enter_context(tried.pop_all())
                    return trial
                else:
                    self.tell(trial, None)
        return None

    def _proposed(self, held: contextlib.ExitStack) -> FrozenTrial | None:
        trials = self.trials()
        number = len(trials)
        # A sampler of its own for each proposal: one that was seeded once would begin anew after a kill, and repeat.
        self._study.sampler = _sampler(self._options, number)
        # A proposal of which a kill kept a part would be no proposal, and the following ones would be others.
        with self._journal.at_once():
            if self._points is not None and not any(trial.state == TrialState.WAITING for trial in trials):
                if number >= len(self._points):
                    return None
                self._study.enqueue_trial(self._points[number])
            asked = self._study.ask(self._distributions)
        self._hold(asked.number, held)
        return next(trial for trial in self.trials() if trial.number == asked.number)


class _HeldError(Exception):
    """Another process has it."""


def _sampler(options: SearchOptions, number: int) -> optuna.samplers.BaseSampler:
    seed = int(hashlib.sha256(f"search:{options.seed}:{number}".encode()).hexdigest()[:8], 16)
    first = max(4, min(10, options.trials // 4))
    if options.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=first, multivariate=True, constant_liar=True)
    if options.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=first)
    return optuna.samplers.RandomSampler(seed=seed)


@contextlib.contextmanager
def _replayed(folder: Path) -> Iterator[None]:
    """While Optuna makes trials of the journal: whatever it raises of what it holds is a damaged file."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, optuna.exceptions.OptunaError) as error:
        if isinstance(error, (DamagedFileError, FolderError, SearchError)):
            raise
        raise DamagedFileError(
            f"{folder / JOURNAL}: cannot be replayed ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error
