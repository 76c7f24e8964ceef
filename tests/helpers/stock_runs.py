"""Run folders as stock lmms-eval writes them, made by its own command line on offline copies of test splits.

Two runs of different models into one `--output_path` overwrite each other's files for servers (`submissions`), and
have results and sample logs of their own: what `plam submit` has to repair.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from lmms_eval.api.model import lmms

from tests.helpers.offline_copies import StockModel, write_copies
from tests.helpers.offline_tasks import judged
from tests.helpers.offline_tests import BOARD_COPIES, BOARD_TASKS


@dataclass(frozen=True)
class StockRuns:
    """Two runs of one `--output_path`.

    Attributes:
        hub: folder of the datasets, in which they were started.
        output: the path; `submissions` in it holds the files of the second run alone.
        folders: of the runs, in their order.
    """

    hub: Path
    output: Path
    folders: tuple[Path, Path]


def command_line(
    hub: Path, model: lmms, tasks: Iterable[str], *, output: Path | None = None, pretrained: str = "", limit: int = -1
) -> None:
    """Evaluate a model as `lmms-eval ...` would, started in `hub`; errors are raised and not printed.

    Args:
        hub: where the tasks find their datasets.
        model: ready-made, in place of the name of one.
        tasks: their names.
        output: `--output_path`, then with `--log_samples`.
        pretrained: what the run's folder is named by.
        limit: documents of each task; -1 is all.
    """
    from lmms_eval.__main__ import cli_evaluate_single, parse_eval_args

    words = ["--model_args", f"pretrained={pretrained}", "--tasks", ",".join(tasks), "--batch_size", "1"]
    words += ["--limit", str(limit), "--process_docs_parallel", "1"]
    words += ["--output_path", str(output), "--log_samples"] if output is not None else []
    with pytest.MonkeyPatch.context() as patch, judged():
        patch.chdir(hub)
        patch.setattr(sys, "argv", ["lmms-eval", *words])
        arguments = parse_eval_args()[1]
        arguments.model = model
        cli_evaluate_single(arguments)


def two_stock_runs(folder: Path, tasks: Iterable[str] = tuple(BOARD_TASKS), *, limit: int = -1) -> StockRuns:
    """Two models, of which the second gives every document the answer planned for the next one.

    Args:
        folder: an empty one, for the datasets (`hub`) and the runs (`runs`).
        tasks: some of `BOARD_TASKS`.
        limit: documents of each task; -1 is all.
    """
    hub, output, tasks = folder / "hub", folder / "runs", list(tasks)
    write_copies(hub, BOARD_COPIES)
    names = ["stock/first", "stock/second"]
    for shift, name in enumerate(names):
        model = StockModel(BOARD_TASKS, shift=shift)
        command_line(hub, model, tasks, output=output, pretrained=name, limit=limit)
    first, second = (output / name.replace("/", "__") for name in names)
    return StockRuns(hub, output, (first, second))
