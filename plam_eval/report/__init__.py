"""The report page and what else finished work is shown in. Called, it is its function `report`.

`plam_eval.report` is this folder of modules once one of them is imported, and the function of that name before. So that
both are always there, the module can be called. Importing it imports nothing heavy.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from plam_eval.arguments import PATH, TEXT, count, paths, takes


@takes(folders=paths, output=PATH, title=TEXT, select=count(0), data=PATH, include_path=PATH, examples=count(0))
def report(
    folders: str | Path | Iterable[str | Path],
    output: str | Path = "report",
    *,
    title: str | None = None,
    select: int | None = None,
    data: str | Path | None = None,
    include_path: str | Path | None = None,
    examples: int = 6,
) -> Path:
    """Write one self-contained HTML page, and its tables as CSV and parquet, from finished work.

    Args:
        folders: of sweeps, comparisons, scans, `plam attend`, lmms-eval runs and exports, or folders above such.
        output: folder for index.html and tables/.
        title: of the page; by default it names the models.
        select: choose the best merge on so many documents of each task, for every sweep.
        data: folder from which the tasks find their datasets, for example images; by default the working directory.
        include_path: folder of further tasks, whose Python code is run to find example images.
        examples: gained and lost documents to show, of each.

    Returns:
        The page's path.

    Raises:
        ReportError: nothing could be read. FolderError: `output` cannot be written, or holds another page.
    """
    from plam_eval.report.page import write_report

    return write_report(
        [Path(folder) for folder in paths(folders)],
        Path(output),
        title=title,
        select=select,
        data=None if data is None else Path(data),
        include_path=None if include_path is None else Path(include_path),
        examples=examples,
    )


class _Report(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return report(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(report)


sys.modules[__name__].__class__ = _Report
