"""Files that tasks write while they sum up an evaluation: into the folder of their own run, and never at its cost.

Tasks of test splits write a file for a server, others their details. lmms-eval puts them below `--output_path` under
one name for every model, or into the working directory, so that each run overwrites the files of the one before; and
where one cannot be written, the evaluation ends, with the answers of all its tasks.

While an evaluation of our wrappers is summed up, each task stands in a folder of its own: `args.output_path` leads
there, and so does every relative name, whatever writes to it. What a task reads by a relative name is found where the
evaluation was started, as ever. When the run's name and date are known, its files are moved to
`<run>/<date>_stock/`.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import functools
import io
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from loguru import logger

from plam_eval.files import write_in_one_step
from plam_eval.harness.run_files import later_than_others, stock_folder

_STAGED = "plam_eval_stock_files"  # where results say, until they are saved, where their files wait
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class StockFiles:
    """The files of one evaluation, in a folder for each task, until it is known where they belong."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._tasks: list[str] = []

    def folder_for(self, task: str) -> Path:
        """A new, empty folder for the files of a task.

        Args:
            task: its name, which may be that of another one's folder as well.
        """
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="plam-eval-", ignore_cleanup_errors=True)
        self._tasks.append(task)
        folder = Path(self._folder.name, str(len(self._tasks) - 1))
        folder.mkdir()
        return folder

    def written(self) -> list[tuple[str, Path, Path]]:
        """The files so far, each with its task and the task's folder."""
        if self._folder is None:
            return []
        folders = [Path(self._folder.name, str(number)) for number in range(len(self._tasks))]
        return [(task, folder, file) for task, folder in zip(self._tasks, folders, strict=True) for file in _in(folder)]

    def move_to(self, target: Path) -> None:
        """Moves the files into one folder, which is made if there are any; a failure is a warning.

        They keep the names that tasks gave them, and have folders of their tasks where two have the same name.

        Args:
            target: the folder.
        """
        written, moved = self.written(), []
        names = Counter(file.name for _, _, file in written)
        for task, folder, file in written:
            unique = names[file.name] == 1
            destination = target / file.name if unique else target / task / file.relative_to(folder)
            try:
                destination.parent.mkdir(parents=True, exist_ok=True)
                write_in_one_step(destination, functools.partial(shutil.copyfile, file))
            except OSError as error:
                logger.warning("{}: {} of this run is lost: {}{}", task, file.name, error, _REMEDY)
            else:
                moved.append(destination)
        self.discard()
        if moved:
            logger.info("the tasks' own files of this run: {}", ", ".join(map(str, moved)))

    def discard(self) -> None:
        """Deletes what is still here."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


_REMEDY = "; the run goes on, and `plam submit` writes the file of a board from the sample log (--log_samples)"
_current: ContextVar[StockFiles | None] = ContextVar("stock_files", default=None)
_waiting: dict[str, StockFiles] = {}


# --- while an evaluation is summed up ---------------------------------------------------------------------------------


@contextmanager
def collected() -> Iterator[StockFiles]:
    """While it lasts, what tasks write as they sum up this evaluation goes to the files it gives."""
    files = StockFiles()
    token = _current.set(files)
    try:
        yield files
    except BaseException:
        files.discard()
        raise
    finally:
        _current.reset(token)


def aggregate(stock: Any, output: Any, bootstrap_iters: int = 100000) -> None:
    """In place of `TaskOutput.calculate_aggregate_metric`, which sums up one task, metric by metric.

    A metric whose file cannot be written has the value None, as metrics that are nothing but a file have in any case.

    Args:
        stock: lmms-eval's own.
        output: the `TaskOutput`.
        bootstrap_iters: as lmms-eval gives it.
    """
    files = _current.get()
    if files is None:
        stock(output, bootstrap_iters=bootstrap_iters)
        return
    folder = files.folder_for(output.task_name)
    task, metrics = output.task, output.sample_metrics
    given = task.args
    task.args = argparse.Namespace(**{**vars(given or argparse.Namespace()), "output_path": str(folder)})
    try:
        with _standing_in(folder):
            for (metric, name), items in metrics.items():
                before = _states(folder)
                output.sample_metrics = {(metric, name): items}  # one by one: the others are summed up all the same
                try:
                    stock(output, bootstrap_iters=bootstrap_iters)
                except Exception as error:  # a task's own code runs here
                    if not _is_of_writing(metric, error):
                        raise
                    for file in set(_states(folder).items()) - set(before.items()):
                        file[0].unlink(missing_ok=True)  # a part of it is worse than none
                    output.agg_metrics[f"{metric},{name}"] = None
                    output.agg_metrics[f"{metric}_stderr,{name}"] = "N/A"
                    output.sample_len = len(items)
                    text = f"{output.task_name}: {metric}: {type(error).__name__}: {error}"
                    logger.warning("a file could not be written: {}{}", text, _REMEDY)
    finally:
        output.sample_metrics, task.args = metrics, given


def _is_of_writing(metric: str, error: Exception) -> bool:
    """Whether it was a file that failed, and not a score."""
    if "submission" in metric:  # nothing else comes of it
        return True
    if isinstance(error, OSError):  # not those of the network
        return error.filename is not None or error.errno in _DISK
    return isinstance(error, UnicodeEncodeError) or type(error).__name__ == "IllegalCharacterError"  # openpyxl's


@contextmanager
def _standing_in(folder: Path) -> Iterator[None]:
    """While it lasts, `folder` is the working directory; files that are not there are read from the one before."""
    try:
        before = Path.cwd()
    except OSError:  # it was deleted
        before = folder
    stock = builtins.open, io.open

    def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, (str, Path)) and not set(mode) & set("wax+") and not Path(file).exists():
            file = before / file
        return stock[1](file, mode, *args, **kwargs)

    os.chdir(folder)
    builtins.open = io.open = open_
    try:
        yield
    finally:
        builtins.open, io.open = stock
        os.chdir(before)


def _in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _states(folder: Path) -> dict[Path, tuple[int, int]]:
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in _in(folder)}


# --- when it has ended ------------------------------------------------------------------------------------------------


def keep(files: StockFiles, results: dict[str, Any]) -> None:
    """Lets an evaluation's files wait until its results are saved; where nobody does, they go with the process.

    Args:
        files: of the evaluation.
        results: lmms-eval's, which say so until then.
    """
    results[_STAGED] = uuid.uuid4().hex
    _waiting[results[_STAGED]] = files


def taken(results: dict[str, Any]) -> StockFiles:
    """The files that wait for these results, which no longer say so.

    Args:
        results: lmms-eval's.
    """
    return _waiting.pop(results.pop(_STAGED, ""), None) or StockFiles()


def move_to_submissions(files: StockFiles, run: str, date: str) -> None:
    """Moves the files of a run that is not saved into a folder of its own in `./submissions`, where stock runs write.

    Args:
        files: of the evaluation.
        run: a name for it, without its date.
        date: of the run, as lmms-eval writes it.
    """
    folder = Path("submissions", run).absolute()
    while files.written():
        target = stock_folder(folder, date)
        try:
            target.mkdir(parents=True)
        except FileExistsError:  # of another process as well, that ended in this second
            date = later_than_others(date, folder)
        except OSError as error:
            logger.warning("{}: {}{}", target, error, _REMEDY)
            files.discard()
        else:
            files.move_to(target)
