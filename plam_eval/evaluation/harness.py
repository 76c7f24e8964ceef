"""The names of `plam_eval.harness` that stood here before it was a package of its own."""

from plam_eval.harness.answers import score_answers, task_configs, tasks_of
from plam_eval.harness.checks import CheckedTasks, check_tasks
from plam_eval.harness.errors import EvaluationError, GenerationError, TaskNameError
from plam_eval.harness.evaluate import Evaluation as Run
from plam_eval.harness.evaluate import check_model, evaluate, make_model, parse_model_args
from plam_eval.harness.images import document_images
from plam_eval.harness.patches import check_failures, install
from plam_eval.harness.processes import all_ranks, end_together
from plam_eval.harness.registry import extend_task_manager, prompt_id, task_folder
from plam_eval.harness.run_files import RECORD_KEY

__all__ = [
    "RECORD_KEY",
    "CheckedTasks",
    "EvaluationError",
    "GenerationError",
    "Run",
    "TaskNameError",
    "all_ranks",
    "check_failures",
    "check_model",
    "check_tasks",
    "document_images",
    "end_together",
    "evaluate",
    "extend_task_manager",
    "install",
    "make_model",
    "parse_model_args",
    "prompt_id",
    "score_answers",
    "task_configs",
    "task_folder",
    "tasks_of",
]
