"""`plam sweep --ray`: cells as Ray tasks, one resident model per worker, on one machine or a cluster."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger
from tqdm import tqdm

from plam_eval import files
from plam_eval.arguments import read_whole_number
from plam_eval.errors import PlamError
from plam_eval.evaluation.sweep import runner
from plam_eval.evaluation.sweep.config import SweepConfig, SweepError, split_arguments
from plam_eval.evaluation.sweep.folder import (
    CELL,
    LOG,
    cell_places,
    check_not_deleted,
    lock_sweep,
    record_failure,
)
from plam_eval.evaluation.sweep.grid import Cell
from plam_eval.evaluation.sweep.job import Job
from plam_eval.evaluation.sweep.nodes import REMEDY, Needs, Resources, check_nodes, label, share_out, why
from plam_eval.rules import is_built_in

# What a worker on another machine needs of this process's environment.
_PASSED_ON = ("HF_", "TOKENIZERS_", "VLLM_", "PLAM_", "OMP_", "MKL_", "OPENBLAS_")
_MARK = ".ray-"
"""Of the file in a sweep's folder by which nodes know the folder again."""

TRIES = 3
"""Workers that a cell may be lost with before it is given up: a node that is taken away is not the cell's fault, and a
cell for which memory does not suffice ends every worker that it meets."""
_NODE_DIED = "its node has died"
"""In Ray's words on why a worker is gone."""
_LOOK = 5.0
"""Seconds after which the cluster is looked at again while nothing happens."""
PATIENCE = JOINING = 60.0
"""Seconds that a sweep waits for a node on which a worker would fit, where there is none any more; and, at its begin,
for nodes that are still to join, where there is no room for all workers yet."""


class _Worker:
    """A process with a resident model. Files are the sweep folder's: every node has to see it under the same path."""

    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self._model: Any = None

    def load(self) -> tuple[str, str | None]:
        """The node that this is on, and why no model could be loaded there; None where one was."""
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        try:
            if found := self._needs.problems():
                raise SweepError(*found, REMEDY)
            self._config = SweepConfig.model_validate(self._needs.config)
            self._model = runner.load_model(self._config)
        except Exception as error:  # whatever it is, it is this node's; others may load
            return node, why(error)
        return node, None

    def run(self, cell: dict[str, Any], attempt: int) -> dict[str, Any]:
        folder = Path(self._needs.folder)
        return runner.run_cell(self._model, Cell.from_dict(cell), self._config, folder, attempt=attempt)


def run(job: Job, workers: int | None = None) -> dict[str, dict[str, Any]]:
    """Evaluate every unfinished cell on `workers` resident models.

    Connects to the cluster that `RAY_ADDRESS` names, and waits a minute for nodes that are still to join, or starts
    Ray on this machine. A worker takes one GPU (`tensor_parallel_size` of them) where there are any, and otherwise its
    share of the cores.

    Args:
        job: the sweep.
        workers: by default as many as there are GPUs for, or one without any.

    Returns:
        The record of every cell of this call, by name, as `runner.run`. A cell whose worker or node is lost is
        answered again by another worker, `TRIES` times at most.

    Raises:
        SweepError: another process is at work in this folder, the cluster has too few GPUs, a node does not see the
            sweep's files, no worker could load the model, or no node is left that has room for one; `together` is
            asked for, or a rule that this process registered.
    """
    if job.config.together > 1:
        raise SweepError(
            f"--ray shares out single cells, and together is {job.config.together}; expected 1. To split documents "
            "over GPUs and keep cells together: torchrun --nproc_per_node N -m plam_eval.cli sweep ..."
        )
    if own_rules := {cell.spec.rule for cell in job.left() if cell.spec and not is_built_in(cell.spec.rule)}:
        raise SweepError(
            f"--ray: the workers do not know {', '.join(sorted(own_rules))}, registered in this process alone; sweep "
            "without --ray, or give the rule its place in plam_eval (docs/extending.md)"
        )
    try:
        import ray
    except ImportError as error:
        raise SweepError(f"--ray needs Ray: pip install '.[ray]' in a checkout of plam-eval ({error})") from error

    job = job.remembering(runner.check_tasks(job.config).drawn)
    arguments, _ = split_arguments(job.config.model_args)
    each = _gpus_of_a_worker(arguments)
    environment = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Without an address Ray would join whatever cluster was last started here, by whomever.
        named = os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {} if named else {"address": "local", "include_dashboard": False}
        try:
            ray.init(log_to_driver=False, runtime_env={"env_vars": environment}, **local)
        except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
            where = f"RAY_ADDRESS={named}" if named else "Ray on this machine"
            raise SweepError(f"{where}: cannot be used: {why(error)}") from error
    try:
        resources, count = _share_out(ray, workers, each, patience=JOINING if os.environ.get("RAY_ADDRESS") else 0)
        if workers and count < workers:
            logger.warning("--workers {}: the cluster has cores for {}, so there are as many", workers, count)
        options = {"num_gpus": resources.gpus} if resources.gpus else {}
        actor: Any = ray.remote(_Worker).options(num_cpus=resources.cores, **options)
        with lock_sweep(job.folder):
            job.write()
            with _marked(job.folder) as mark:
                needs = Needs.of(job, mark)
                check_nodes(ray, needs, resources)
                done = Schedule(ray, actor, job, needs, resources).run(count)
            check_not_deleted(job.folder, done)
            return done
    finally:
        if own:
            ray.shutdown()


def _gpus_of_a_worker(arguments: Mapping[str, Any]) -> int:
    """`tensor_parallel_size` of `model_args`. Raises SweepError where it is no number of GPUs."""
    given = arguments.get("tensor_parallel_size", 1)
    try:
        if number := read_whole_number(given, 1024, "a number of GPUs"):
            return number
        raise ValueError("found 0, expected 1 or more")
    except ValueError as error:
        raise SweepError(f"model_args: tensor_parallel_size: {error}") from error


def _share_out(ray: Any, workers: int | None, each: int, patience: float) -> tuple[Resources, int]:
    """`share_out`, once nodes that are still being started have joined, or `patience` seconds have passed."""
    deadline, told = time.monotonic() + patience, False
    while True:
        late = time.monotonic() >= deadline
        try:
            resources, count = share_out(ray.nodes(), workers, each)
        except SweepError:
            if late:
                raise
        else:
            if late or count >= (workers or 1):
                return resources, count
        if not told:
            logger.warning("Ray's nodes have no room for {} worker(s); waiting for others to join", workers or 1)
            told = True
        time.sleep(1)


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[str]:
    """While it lasts, a file of a name that was never used lies in the folder, which is locked. Gives the name."""
    for left in folder.glob(f"{_MARK}*"):  # of a process that was killed
        left.unlink(missing_ok=True)
    file = folder / f"{_MARK}{uuid.uuid4().hex}"
    file.touch()
    try:
        yield file.name
    finally:
        file.unlink(missing_ok=True)


@dataclass(eq=False)
class _Member:
    """A worker, and what it is at: a cell, or loading."""

    actor: Any
    cell: Cell | None = None
    node: str = ""


class Schedule:
    """Hands cells to workers as they become free, and cells that were lost with a worker to another one.

    Args:
        ray: the module, connected.
        actor: class of the workers, with what each takes of its node.
        job: the sweep.
        needs: what a worker has to see.
        resources: of a worker.
    """

    def __init__(self, ray: Any, actor: Any, job: Job, needs: Needs, resources: Resources) -> None:
        self._ray, self._actor, self._job, self._needs, self._resources = ray, actor, job, needs, resources
        self._waiting = deque(job.left())
        self._busy: dict[Any, _Member] = {}
        self._idle: list[_Member] = []
        # By why they could not load. They are kept: no other worker is then placed where they are.
        self._unfit: dict[str, list[_Member]] = {}
        self._lost: Counter[str] = Counter()  # workers, by the cell that they were at
        self._lost_loading = 0  # since one has loaded
        self._done: dict[str, dict[str, Any]] = {}
        self._labels: dict[str, str] = {}  # of all nodes that were seen

    def run(self, count: int) -> dict[str, dict[str, Any]]:
        """Evaluate every cell that is left.

        Args:
            count: workers at one time.

        Returns:
            The records by cell.

        Raises:
            SweepError: no worker is left, and none can be had.
        """
        total, since = len(self._waiting), time.monotonic()
        for cell in self._waiting:  # of a call that was stopped
            for attempt in range(1, TRIES):
                _remove_partial(self._job.folder, cell.name, attempt)
        with tqdm(total=total, desc=f"sweep on {min(count, total)} worker(s)", unit="cell") as progress:
            while len(self._done) < total:
                self._look_at_nodes()
                self._hand_out(count)
                ended, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=min(_LOOK, PATIENCE))
                if ended or any(member.cell for member in self._busy.values()):
                    since = time.monotonic()
                elif time.monotonic() - since >= PATIENCE:
                    self._check_room()
                for reference in ended:
                    self._take(reference, self._busy.pop(reference))
                progress.update(len(self._done) - progress.n)
        return self._done

    def _look_at_nodes(self) -> None:
        """Note what nodes are called, and leave free workers whose node is gone."""
        nodes = self._ray.nodes()
        self._labels |= {node["NodeID"]: label(node) for node in nodes}
        gone = {node["NodeID"] for node in nodes if not node["Alive"]}
        self._idle = [member for member in self._idle if member.node not in gone]

    def _hand_out(self, count: int) -> None:
        """Give waiting cells to free workers, and start workers for those that are left over."""
        while self._waiting and self._idle:
            member = self._idle.pop()
            member.cell = cell = self._waiting.popleft()
            self._busy[member.actor.run.remote(cell.to_dict(), self._lost[cell.name])] = member
        loading = sum(member.cell is None for member in self._busy.values())
        taken = len(self._busy) + len(self._idle) + sum(map(len, self._unfit.values()))
        for _ in range(min(len(self._waiting) - loading, count - taken)):
            member = _Member(self._actor.remote(self._needs))
            self._busy[member.actor.load.remote()] = member
        if not self._busy:
            raise SweepError(*self._unfit, origin="no worker could load the model, or none is left that could")

    def _take(self, reference: Any, member: _Member) -> None:
        """What came of a worker's job."""
        errors, cell = self._ray.exceptions, member.cell
        try:
            result = self._ray.get(reference)
        except errors.RayTaskError as error:  # it raised outside of the evaluation, and lives
            assert cell is not None, error
            result = record_failure(self._job.folder, cell, why(error), self._lost[cell.name])
        except errors.RayError as error:
            self._lose(member, error)
            return
        if cell is not None:
            self._done[cell.name] = result
        else:
            member.node, reason = result
            if reason is not None:
                self._leave_out(member, f"{self._where(member)}: {reason}")
                return
            self._lost_loading = 0
        member.cell = None
        self._idle.append(member)

    def _leave_out(self, member: _Member, told: str) -> None:
        """No worker in this one's place; the sweep goes on with others, if there are any."""
        self._unfit.setdefault(told, []).append(member)
        if self._busy or self._idle:
            logger.warning("a worker takes no part in this sweep, it could not load the model: {}", told)

    def _where(self, member: _Member) -> str:
        return self._labels.get(member.node, "a node of the cluster")

    def _lose(self, member: _Member, error: Exception) -> None:
        """A worker died, or its node did: what it was at is given to another one, unless that was tried often."""
        with contextlib.suppress(Exception):
            self._ray.kill(member.actor)  # one that only cannot be reached any more
        where, reason, cell = self._where(member), _cause(error), member.cell
        if cell is None:
            if _NODE_DIED in reason:  # no sign of a model that cannot load
                return
            self._lost_loading += 1
            if self._lost_loading >= TRIES:
                self._leave_out(member, f"{self._lost_loading} workers in a row died while they loaded: {reason}")
            return
        self._lost[cell.name] += 1
        lost = self._lost[cell.name]
        if lost < TRIES:
            logger.warning("{}: a worker was lost at {} ({}); another answers it again", where, cell.name, reason)
            _remove_partial(self._job.folder, cell.name, lost - 1)
            self._waiting.appendleft(cell)
            return
        told = f"{lost} workers were lost at this cell, the last one on {where}: {reason}"
        self._done[cell.name] = record_failure(self._job.folder, cell, told, lost - 1)

    def _check_room(self) -> None:
        """Raises SweepError where no living node has room for a worker, apart from those that are left out."""
        nodes = self._ray.nodes()
        alive = {node["NodeID"] for node in nodes if node["Alive"]}
        left_out = sum(member.node in alive for members in self._unfit.values() for member in members)
        if sum(map(self._resources.fit_on, nodes)) > left_out:
            return  # others use it, or a worker is still loading there
        gone = sorted({label(node) for node in nodes if not node["Alive"]})
        raise SweepError(
            f"no node is left that has room for a worker ({self._resources}); lost: {', '.join(gone) or 'none'}. "
            f"{len(self._done)} cell(s) of this call have ended and are kept, {len(self._waiting)} wait: start nodes "
            "again (`ray start --address=FIRST_NODE:6379` on each), and the same command goes on",
            *self._unfit,
        )


def _cause(error: Exception) -> str:
    """Why a worker is gone, in Ray's words: the line that says it."""
    told = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in told if line.startswith(("The actor died because", "The actor is dead"))), told[0])


def _remove_partial(folder: Path, name: str, attempt: int) -> None:
    """What a lost worker has left of its cell. One that still lives, cut off, then finds its folder gone."""
    with contextlib.suppress(OSError, PlamError):
        files.remove_own(cell_places(folder, name, attempt)[1], LOG, CELL)
