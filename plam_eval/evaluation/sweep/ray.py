"""`plam sweep --ray`: cells as Ray tasks, one resident model per worker, on one machine or a cluster."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plam_eval.evaluation.sweep import runner
from plam_eval.evaluation.sweep.config import SweepConfig, SweepError, split_arguments
from plam_eval.evaluation.sweep.folder import check_not_deleted, lock_sweep, record_failure
from plam_eval.evaluation.sweep.grid import Cell
from plam_eval.evaluation.sweep.job import Job
from plam_eval.rules import is_built_in

# What a worker on another machine needs of this process's environment.
_PASSED_ON = ("HF_", "TOKENIZERS_", "VLLM_", "PLAM_", "OMP_", "MKL_", "OPENBLAS_")


class _Worker:
    """A process with a resident model. Files are the sweep folder's: every node has to see it under the same path."""

    def __init__(self, config: dict[str, Any], folder: str, working_directory: str) -> None:
        os.chdir(working_directory)  # offline datasets and relative checkpoints are found from there
        self._config = SweepConfig.model_validate(config)
        self._folder = Path(folder)
        self._model = runner.load_model(self._config)

    def ready(self) -> str:
        return str(os.getpid())

    def run(self, cell: dict[str, Any]) -> dict[str, Any]:
        return runner.run_cell(self._model, Cell.from_dict(cell), self._config, self._folder)


def run(job: Job, workers: int | None = None) -> dict[str, dict[str, Any]]:
    """Evaluate every unfinished cell on `workers` resident models.

    Connects to the cluster that `RAY_ADDRESS` names, or starts Ray on this machine. A worker takes one GPU
    (`tensor_parallel_size` of them) where there are any, and otherwise its share of the cores.

    Args:
        job: the sweep.
        workers: by default as many as there are GPUs for, or one without any.

    Returns:
        The record of every cell of this call, by name, as `runner.run`. A worker that dies fails the cell it was at;
        another one takes its place.

    Raises:
        SweepError: another process is at work in this folder, the cluster has too few GPUs, or no worker could load
            the model; `together` is asked for, or a rule that this process registered.
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
    each = int(arguments.get("tensor_parallel_size", 1))
    environment = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(log_to_driver=False, runtime_env={"env_vars": environment}, **local)
    try:
        total = ray.cluster_resources()
        gpus, cores = int(total.get("GPU", 0)), int(total.get("CPU", 1))
        count = workers or max(1, gpus // each)
        if gpus and count * each > gpus:
            raise SweepError(f"{count} workers of {each} GPU(s) need {count * each}; the cluster has {gpus}")
        resources = {"num_gpus": each, "num_cpus": 1} if gpus else {"num_cpus": max(1, cores // count)}
        actor: Any = ray.remote(_Worker).options(**resources)
        with lock_sweep(job.folder):
            job.write()
            done = _schedule(ray, actor, job, count)
            check_not_deleted(job.folder, done)
            return done
    finally:
        if own:
            ray.shutdown()


def _schedule(ray: Any, actor: Any, job: Job, count: int) -> dict[str, dict[str, Any]]:
    """Hand cells to workers as they become free; a cell is tried once."""
    waiting = deque(job.left())
    done: dict[str, dict[str, Any]] = {}
    if not waiting:
        return done

    def start() -> tuple[Any, Any]:
        worker = actor.remote(job.config.model_dump(mode="json"), str(job.folder.resolve()), str(Path.cwd()))
        return worker.ready.remote(), worker

    busy: dict[Any, tuple[Any, Cell | None]] = {}
    for _ in range(min(count, len(waiting))):
        reference, worker = start()
        busy[reference] = worker, None
    with tqdm(total=len(waiting), desc=f"sweep on {len(busy)} worker(s)", unit="cell") as progress:
        while busy:
            (reference,), _ = ray.wait(list(busy), num_returns=1)
            worker, cell = busy.pop(reference)
            lives = True
            try:
                result = ray.get(reference)
            except ray.exceptions.RayError as error:
                if cell is None:  # the model did not load, and would not the next time either
                    for other, _ in busy.values():
                        ray.kill(other)
                    raise SweepError(f"a worker could not load the model: {error}") from error
                lives = isinstance(error, ray.exceptions.RayTaskError)  # it raised outside of the evaluation
                why = f"{type(error.cause).__name__}: {error.cause}" if lives else f"the worker died: {error}"
                result = record_failure(job.folder, cell, why)
            if cell is not None:
                done[cell.name] = result
                progress.update()
            if lives and waiting:
                following = waiting.popleft()
                busy[worker.run.remote(following.to_dict())] = worker, following
            elif not lives and len(waiting) > len(busy):
                reference, replacement = start()
                busy[reference] = replacement, None
    return done
