"""Metrics again from logged entries, and entries again from logged answers, by the installed lmms-eval's own code.

The samples may come from anybody, so only the code of tasks that `harness.tasks` knows is run on them (it was read, and
evaluates nothing of what it is given), with the network out of reach and a folder that is deleted as the working
directory: tasks ask judges and write files. A name in somebody's results selects an installed task and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import json
import math
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from plam_eval.errors import PlamError, first_line
from plam_eval.harness.lookup import load_tasks, one_attempt, task_manager
from plam_eval.harness.task_row import entries_of
from plam_eval.harness.tasks import TASKS, function_name

_OURS = "plam9"
"""The group in which a task of lmms-eval's may have scoring of ours."""


class UnavailableError(PlamError, ValueError):
    """What cannot be recomputed here; the message says why."""


class _TooLongError(BaseException):
    """Raised in a task's code, whose `except Exception` must not go on."""


class JudgeAskedError(BaseException):
    """A task's code wanted the network. No `except Exception` of that code may take it for a judge who is away."""


@dataclass(frozen=True)
class Rescored:
    """What a task logs for an answer.

    Attributes:
        entries: metric -> entry, as a sample log would have it.
        drawn: whether scoring drew at random.
    """

    entries: dict[str, Any]
    drawn: bool


@dataclass(frozen=True)
class StockTask:
    """An installed task without its dataset; `find_task` makes it.

    Attributes:
        name: of the task.
        version: that the task declares, as results have it.
        task: lmms-eval's own object.
        scoring: how the results were scored: "stock", or "plam9" for the scoring that our group gives the task.
    """

    name: str
    version: Any
    task: Any
    scoring: str

    def metrics(self, samples: Sequence[Mapping[str, Any]], filter_name: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Every metric of the samples of one filter, with its standard errors where these are not drawn at random.

        Args:
            samples: lines of the task's sample log, in its order.
            filter_name: of the filter that they are of.

        Returns:
            Values by their names in results ("exact_match,none"), and for other metrics why they have none.
        """
        from lmms_eval.api.metrics import mean
        from lmms_eval.evaluator_utils import TaskOutput

        aggregations: Mapping[str, Any] = self.task.aggregation()
        items: dict[str, list[Any]] = {}
        for sample in samples:
            for name in entries_of(sample):
                if name in aggregations:
                    items.setdefault(name, []).append(json.loads(json.dumps(sample[name])))  # aggregations change them
        values, failures = dict[str, Any](), dict[str, str]()
        settings = {name: getattr(self.task.config, name, None) for name in ("cluster_key", "score_key")}
        for name, entries in items.items():
            aggregation = aggregations[name]
            with _apart() as scratch:
                shell = SimpleNamespace(aggregation=lambda: aggregations, args=SimpleNamespace(output_path=scratch))
                output = TaskOutput(task=shell, task_name=self.name, task_config=settings)
                output.sample_metrics[name, filter_name] = entries
                try:
                    output.calculate_aggregate_metric(bootstrap_iters=1 if aggregation is mean else 0)
                    with contextlib.suppress(AttributeError):  # of versions that have none
                        output.calculate_clt_aggregate_metric()
                except JudgeAskedError:
                    failures[name] = "a judge makes it, who is not asked again"
                except Exception as error:  # a task's own code, on entries that may be of another form
                    failures[name] = f"its aggregation raised {type(error).__name__}: {first_line(error)}"
            if name not in failures:
                values |= {key: float(value) for key, value in output.agg_metrics.items() if _is_number(value)}
        return values, failures

    def again(self, name: str, selections: Iterable[Sequence[Any]]) -> list[float]:
        """One metric of several selections of entries, by the task's own aggregation.

        Args:
            name: of the metric.
            selections: entries of documents, as the sample log has them; a document that stands twice in one counts
                twice only if the aggregation does not group by something that both copies have.

        Raises:
            UnavailableError: the aggregation asks a judge, draws at random, keeps something from one call to the next,
                raises, or gives no number.
        """
        import numpy

        aggregation = self.task.aggregation().get(name)
        if aggregation is None:
            raise UnavailableError("the installed task has no such metric")
        before = random.getstate(), numpy.random.get_state(legacy=False)
        values, first = list[float](), None
        try:
            # A seed that is set is no draw: MMBench sets one, and draws where a judge has no answer.
            with _apart() as scratch, mock.patch.object(random, "seed"), mock.patch.object(numpy.random, "seed"):
                settings = {"args": SimpleNamespace(output_path=scratch)}
                given = settings if "args" in inspect.signature(aggregation).parameters else {}
                variables = _Variables(aggregation)

                def value_of(entries: Sequence[Any]) -> float:
                    try:
                        return float(aggregation(json.loads(json.dumps(list(entries))), **given))
                    finally:
                        variables.put_back()

                for entries in selections:
                    first = entries if first is None else first
                    values.append(value_of(entries))
                repeated = first is None or same_number(values[0], value_of(first))
            drawn = random.getstate() != before[0] or _place(numpy.random.get_state(legacy=False)) != _place(before[1])
        except JudgeAskedError as error:
            raise UnavailableError("a judge makes it, who is not asked again") from error
        except Exception as error:  # a task's own code, on entries that may be of another form
            raise UnavailableError(f"its aggregation raised {type(error).__name__}: {first_line(error)}") from error
        finally:
            random.setstate(before[0])
            numpy.random.set_state(before[1])
        if drawn:
            raise UnavailableError("its aggregation draws at random")
        if not repeated:
            raise UnavailableError("its aggregation gives another value when it is called again")
        return values

    def documents(self) -> Any:
        """The rows of the task's dataset, if it is on this machine: the network is not asked.

        Raises:
            UnavailableError: it is not, or cannot be loaded.
        """
        try:
            with _no_network(), _offline(), one_attempt(), _silent():
                [output] = load_tasks(task_manager(), [self.name])
                loaded = output.task
                return loaded.eval_docs if loaded.config.process_results_use_image else loaded.eval_docs_no_media
        except (Exception, JudgeAskedError, SystemExit) as error:  # whatever loading a dataset may raise
            raise UnavailableError("its dataset is not on this machine") from error

    def target_of(self, document: Mapping[str, Any]) -> str:
        """The right answer as a sample log has it.

        Args:
            document: a row of the task's dataset.
        """
        self.task.features, self.task.multiple_target = list(document), 0
        return str(self.task.doc_to_target(document))

    def rescore(self, document: Mapping[str, Any], answer: str | list[Any]) -> Rescored:
        """What the task logs for an answer.

        Args:
            document: a row of the task's dataset, or what its scoring reads of one.
            answer: as the task's filter left it; of a task that is answered by likelihoods, those of its choices.

        Raises:
            UnavailableError: a judge is asked, or the task's code raises.
        """
        import numpy
        from lmms_eval.utils import handle_non_serializable

        self.task.features, self.task.multiple_target, self.task.multiple_input = list(document), 0, 0
        scoring = type(self.task).process_results
        scoring = getattr(scoring, "__wrapped__", scoring)  # without waiting and trying again
        before = random.getstate(), numpy.random.get_state(legacy=False)
        try:
            with _no_network(), _silent():
                logged = scoring(self.task, dict(document), [answer] if isinstance(answer, str) else answer)
            entries = json.loads(json.dumps(logged, default=handle_non_serializable))
            drawn = random.getstate() != before[0] or _place(numpy.random.get_state(legacy=False)) != _place(before[1])
        except JudgeAskedError as error:
            raise UnavailableError("a judge scores it, who is not asked again") from error
        except Exception as error:
            raise UnavailableError(f"scoring raised {type(error).__name__}: {first_line(error)}") from error
        finally:
            random.setstate(before[0])
            numpy.random.set_state(before[1])
        return Rescored(entries, drawn)


class _Variables:
    """What the module of an aggregation keeps in variables: OCRBench adds to one, call after call.

    Args:
        aggregation: a task's.
    """

    def __init__(self, aggregation: Any) -> None:
        own = getattr(inspect.unwrap(aggregation), "__globals__", {})
        held = [value for name, value in own.items() if not name.startswith("__") and type(value) in (dict, list, set)]
        self._before = list[tuple[Any, Any]]()
        for value in held:
            with contextlib.suppress(Exception):  # of things that cannot be copied
                self._before.append((value, copy.deepcopy(value)))

    def put_back(self) -> None:
        """As they were."""
        for value, before in self._before:
            if value != before:
                value.clear()
                (value.extend if isinstance(value, list) else value.update)(copy.deepcopy(before))


def find_task(name: str, config: Mapping[str, Any]) -> StockTask:
    """The installed task that results are of.

    Args:
        name: as the results have it.
        config: the task's, as the results have it: which functions scored it.

    Raises:
        UnavailableError: no such task, none whose code may be run on samples of others, or its code is another one.
    """
    row = TASKS.get(name)
    if row is None or (row.score is None and row.rebuild is None):
        raise UnavailableError(
            "its code is not run on somebody's samples: "
            + ("it is no task of the table in harness/tasks.py" if row is None else row.unscored)
        )
    manager = task_manager()
    if name not in manager.all_tasks or not manager._name_is_task(name):
        raise UnavailableError("it is no task of the installed lmms-eval")
    try:
        stock = manager._get_config(name)
    except Exception as error:  # its YAML file imports its code, which may want a package that is not here
        raise UnavailableError(f"its code cannot be loaded ({type(error).__name__}: {first_line(error)})") from error
    logged = function_name(config.get("process_results"))
    variants = [("stock", stock), *((_OURS, {**stock, **own}) for own in _own_settings(manager, name))]
    for scoring, settings in variants:
        process = settings.get("process_results")
        if logged == (process.__name__ if callable(process) else str(process)):
            return StockTask(name, _version(settings), _without_dataset(settings), scoring)
    raise UnavailableError(f"its results were scored by {logged}, which is not the installed task's code")


def installed_version() -> str | None:
    """Of lmms-eval; None where it is not installed."""
    from importlib import metadata

    try:
        return metadata.version("lmms-eval")
    except metadata.PackageNotFoundError:
        return None


def weighted_by_size(group: str) -> bool | None:
    """Whether a group's metric is the mean over documents (else over its tasks); None where no such group is installed.

    Args:
        group: its name.
    """
    manager = task_manager()
    if manager.task_index.get(group, {}).get("type") != "group":
        return None
    rows = manager._get_config(group).get("aggregate_metric_list") or []
    rows = rows if isinstance(rows, list) else [rows]
    return all(bool(row.get("weight_by_size", True)) for row in rows) if rows else None


def stripped_of_thoughts(text: str, tags: Any) -> str:
    """An answer without what stands between tags of thought, as lmms-eval scores it.

    Args:
        text: the answer as the model gave it.
        tags: as lmms-eval's command line or a task has them: pairs, as JSON text or a list; None is no tags.

    Raises:
        UnavailableError: they are no such pairs.
    """
    from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags

    try:
        pairs = parse_reasoning_tags_config(cli_value=tags)
        if pairs is None:
            return text
        if not all(isinstance(tag, str) and tag for begin, end in pairs for tag in (begin, end)):
            raise ValueError("found empty tags")
        return str(strip_reasoning_tags(text, pairs))
    except (ValueError, TypeError, RecursionError) as error:
        raise UnavailableError(f"the tags of thoughts cannot be read ({first_line(error)})") from error


def _own_settings(manager: Any, name: str) -> list[dict[str, Any]]:
    members = manager._get_config(_OURS)["task"] if _OURS in manager.all_tasks else []
    return [member for member in members if isinstance(member, dict) and member.get("task") == name]


def _version(settings: Mapping[str, Any]) -> Any:
    metadata = settings.get("metadata")
    return metadata.get("version", "Yaml") if isinstance(metadata, Mapping) else "Yaml"


def _without_dataset(settings: Mapping[str, Any]) -> Any:
    """lmms-eval's task object as far as scoring needs it; its own constructor would load the dataset."""
    from lmms_eval.api.task import ConfigurableTask, TaskConfig

    if "class" in settings:
        raise UnavailableError("it is a task with a class of its own")
    task = object.__new__(ConfigurableTask)
    try:
        task._config = TaskConfig(**settings)
        task.OUTPUT_TYPE = task.config.output_type
        task._prepare_metric_and_aggregation()
    except Exception as error:  # another version of lmms-eval's
        raise UnavailableError(f"the installed task cannot be made ({type(error).__name__}: {error})") from error
    return task


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (hasattr(value, "item") and isinstance(value.item(), (int, float)))


def _place(state: Any) -> tuple[Any, ...]:
    return state["state"]["pos"], int(state["state"]["key"][0]), state["has_gauss"]


def same_entry(one: Any, other: Any) -> bool:
    """Whether two entries hold the same, numbers but for rounding of the last digits.

    Args:
        one: an entry, as JSON has it.
        other: another.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_entry(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_entry, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return same_number(one, other)
    return type(one) is type(other) and bool(one == other)


def same_number(one: float, other: float) -> bool:
    """Whether two metrics are equal, but for the last digits that the order of a sum decides.

    Args:
        one: a value.
        other: another.
    """
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(one) and math.isnan(other))


# --- apart from the rest of the machine -------------------------------------------------------------------------------


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """While entered, code may take so long: answers can be made such that scoring them takes hours.

    There is no limit outside of the main thread, or on a system without such a clock.

    Args:
        seconds: that it may take.

    Raises:
        UnavailableError: it took longer.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _TooLongError

    started, handler = time.monotonic(), signal.signal(signal.SIGALRM, stop)
    # Again and again, for code that catches everything.
    left, interval = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), 1)
    try:
        yield
    except _TooLongError:
        raise UnavailableError(f"it takes more than {seconds:.0f} seconds") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 0.001), interval)


@contextlib.contextmanager
def _apart() -> Iterator[str]:
    """Without the network, silent, and in a working directory that is deleted; gives its path."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch, _no_network(), _silent():
        os.chdir(scratch)
        try:
            yield scratch
        finally:
            os.chdir(before)


@contextlib.contextmanager
def _no_network() -> Iterator[None]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise JudgeAskedError

    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> Any:
        if self.family != getattr(socket, "AF_UNIX", None):  # between processes of this machine
            raise JudgeAskedError
        return connect(self, address)

    with (
        mock.patch.object(socket, "getaddrinfo", refuse),
        mock.patch.object(socket.socket, "connect", connect_here),
        mock.patch.object(socket.socket, "connect_ex", refuse),
    ):
        yield


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """The hub's client and `datasets` look into their caches at once; both read the environment at import only."""
    import datasets
    from huggingface_hub import constants

    with contextlib.ExitStack() as stack:
        for holder, name in (
            (constants, "HF_HUB_OFFLINE"),
            (datasets.config, "HF_HUB_OFFLINE"),
            (datasets.config, "HF_DATASETS_OFFLINE"),
        ):
            if hasattr(holder, name):
                stack.enter_context(mock.patch.object(holder, name, True))
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Tasks print tables."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
