"""`plam sweep` and `plam compare`: many merges on one resident model, each an lmms-eval run folder of its own.

A sweep is a grid of merges (layer ranges, weights, modules) with controls beside each, and the plain model. What is
swept (`config`) makes cells (`grid`); a `job` has them in a `folder`; `runner` evaluates them here, `ray` on workers,
several cells' answers at once by `joint`. What the cells say is read back from their folders (`findings`).
"""

from __future__ import annotations

from plam_eval.evaluation.sweep.config import (  # shim
    MOST_CELLS,
    MOST_DOCUMENTS,
    SweepConfig,
    SweepError,
    split_arguments,
)
from plam_eval.evaluation.sweep.folder import (  # shim
    CELL,
    CELLS,
    DAMAGED,
    FAILED,
    FINISHED,
    LOCK,
    LOG,
    PLAN,
    TABLES,
    TOGETHER,
    read_cell,
    read_plan,
    read_run,
    read_state,
    record_failure,
    results_file,
)
from plam_eval.evaluation.sweep.folder import check_not_deleted as check_there  # shim
from plam_eval.evaluation.sweep.folder import lock_sweep as locked  # shim
from plam_eval.evaluation.sweep.grid import (  # shim
    MERGED,
    PLAIN,
    Cell,
    Grid,
    cell_arguments,
    layer_ranges,
    make_grid,
    module_group,
    pair_grid,
)
from plam_eval.evaluation.sweep.job import Job  # shim
from plam_eval.evaluation.sweep.job import chunks as groups  # shim
from plam_eval.evaluation.sweep.joint import Together  # shim
from plam_eval.evaluation.sweep.runner import check_tasks, load_model, run, run_cell  # shim

__all__ = [
    "CELL",
    "CELLS",
    "DAMAGED",
    "FAILED",
    "FINISHED",
    "LOCK",
    "LOG",
    "MERGED",
    "MOST_CELLS",
    "MOST_DOCUMENTS",
    "PLAIN",
    "PLAN",
    "TABLES",
    "TOGETHER",
    "Cell",
    "Grid",
    "Job",
    "SweepConfig",
    "SweepError",
    "Together",
    "cell_arguments",
    "check_tasks",
    "check_there",
    "groups",
    "layer_ranges",
    "load_model",
    "locked",
    "make_grid",
    "module_group",
    "pair_grid",
    "read_cell",
    "read_plan",
    "read_run",
    "read_state",
    "record_failure",
    "results_file",
    "run",
    "run_cell",
    "split_arguments",
]
