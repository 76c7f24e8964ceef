"""Tasks and groups by name, as lmms-eval finds and loads them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plam_eval.errors import did_you_mean
from plam_eval.harness.errors import EvaluationError, TaskNameError
from plam_eval.harness.registry import extend_task_manager, prompt_id
from plam_eval.harness.tasks import TASKS

_INCLUDE = re.compile(r"^include:\s*['\"]?([^\s'\"#]+)", re.MULTILINE)


def task_names(tasks: str | Sequence[str]) -> list[str]:
    """Names, as they are given to commands, one by one.

    Args:
        tasks: as a list, or as one text, separated by commas.
    """
    words = tasks.split(",") if isinstance(tasks, str) else tasks
    return [word.strip() for word in words if word.strip()]


def task_manager(include_path: str | Path | None = None, model: Any = None) -> Any:
    """A task manager of lmms-eval's.

    Indexing two thousand YAML files takes seconds and depends on no model, so it is done once.

    Args:
        include_path: a folder of further tasks, searched before ours.
        model: an id or an instance, for its prompts.
    """
    extend_task_manager()
    manager = _task_index(str(include_path) if include_path else None)
    manager.task_group_map.clear()  # it counts group members, and would rename those it has met before
    manager.model_name = prompt_id(model)
    return manager


@functools.lru_cache(maxsize=4)
def _task_index(include_path: str | None) -> Any:
    from lmms_eval.tasks import TaskManager

    return TaskManager("WARNING", include_path=include_path)


def load_tasks(manager: Any, names: Iterable[str]) -> list[Any]:
    """lmms-eval's `TaskOutput` of each task below some names: its name, the task with its dataset, its configuration.

    Args:
        manager: from `task_manager`.
        names: of tasks, groups and tags.

    Raises:
        Exception: anything, since a task's own code runs.
    """
    from lmms_eval.evaluator_utils import get_task_list
    from lmms_eval.tasks import get_task_dict

    manager.task_group_map.clear()
    outputs: list[Any] = get_task_list(get_task_dict(list(names), manager, "simple"))
    return outputs


def leaves_of(manager: Any, names: Iterable[str]) -> set[str]:
    """Names of the tasks below some names.

    Args:
        manager: from `task_manager`.
        names: of tasks, groups and tags.
    """
    leaves: set[str] = set()
    for name in names:
        entry = manager.task_index.get(name, {"type": "task"})
        if entry["type"] == "group":
            members = manager._get_config(name)["task"]
            leaves |= leaves_of(manager, [m["task"] if isinstance(m, dict) else m for m in members])
        elif entry["type"] == "tag":
            leaves |= leaves_of(manager, entry["task"])
        else:
            leaves.add(name)
    return leaves


def check_names(names: Sequence[str], existing: list[str]) -> None:
    """Whether all tasks exist.

    Args:
        names: that were given.
        existing: of tasks, groups and tags.

    Raises:
        TaskNameError: with the near names of each that does not exist.
    """
    if not names:
        raise TaskNameError("tasks: found no name, expected names of tasks or groups, separated by commas")
    if unknown := [name for name in names if name not in existing]:
        hints = [f"{name!r}{did_you_mean(name, existing, most=3)}" for name in unknown]
        apart = any(mark in name for name in unknown for mark in " ;\t")
        raise TaskNameError(
            f"no task or group of this name: {'; '.join(hints)}{'; names are separated by commas' if apart else ''}"
        )


def check_limit(limit: int | None, leaves: Iterable[str]) -> None:
    """Whether a limit leaves documents together that are scored together.

    Args:
        limit: documents of each task; None is all.
        leaves: names of tasks.

    Raises:
        EvaluationError: it parts some.
    """
    for name in sorted(leaves):
        task = TASKS.get(name)
        if limit is not None and limit % 2 and task is not None and task.in_pairs:
            raise EvaluationError(
                f"limit is {limit}, but {task.in_pairs} scores documents in pairs; give an even number"
            )


def dataset_of(manager: Any, task: str) -> str | None:
    """Hub id or folder of a task's dataset, if its YAML can be read at all.

    Args:
        manager: from `task_manager`.
        task: its name.
    """
    try:
        path = manager._get_config(task).get("dataset_path")
    except Exception:  # it imports the task's code
        return None
    return None if path is None else str(path)


def same_rows(manager: Any, task: str, config: Mapping[str, Any]) -> bool:
    """Whether a task is over the same rows of the same dataset as another one, so that doc_ids mean the same.

    Args:
        manager: from `task_manager`.
        task: its name.
        config: the other's configuration.
    """
    try:
        own = manager._get_config(task)
    except Exception:  # it is not installed, or its code cannot be imported
        return False

    def rows_of(one: Mapping[str, Any]) -> list[Any]:
        split = one.get("test_split") or one.get("validation_split")
        process = one.get("process_docs")
        named = getattr(process, "__name__", None) if process is not None else None
        files = {key: (one.get("dataset_kwargs") or {}).get(key) for key in ("data_files", "data_dir")}
        return [one.get("dataset_path"), one.get("dataset_name"), split, named, files]

    return own.get("dataset_path") is not None and rows_of(own) == rows_of(config)


def yaml_files(manager: Any, task: str) -> list[Path]:
    """The YAML file of an installed task and those that it includes, the last one last; none where it has none.

    Args:
        manager: from `task_manager`.
        task: its name.
    """
    path = manager.task_index.get(task, {}).get("yaml_path", -1)
    files: list[Path] = []
    while path not in (-1, None) and Path(path).is_file() and Path(path) not in files:
        files.append(Path(path))
        included = _INCLUDE.search(files[-1].read_text(encoding="utf-8"))
        path = files[-1].parent / included.group(1) if included else None
    return files


@contextmanager
def one_attempt() -> Iterator[None]:
    """lmms-eval tries to load a dataset again for half a minute; what is not there does not come by waiting."""
    import tenacity
    from lmms_eval.api.task import ConfigurableTask

    retry: Any = ConfigurableTask.download.retry
    before, retry.stop = retry.stop, tenacity.stop_after_attempt(1)
    try:
        yield
    finally:
        retry.stop = before


def cause_of(error: BaseException) -> BaseException:
    """What raised, where lmms-eval tried again and again.

    Args:
        error: that came of it.
    """
    import tenacity

    if isinstance(error, tenacity.RetryError):
        return error.last_attempt.exception() or error
    return error
