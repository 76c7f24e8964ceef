"""Small offline copies of datasets: what one is, how it is written, and models that give the planned answers.

`write_copies(folder, copies)` writes one sub-folder per dataset, named like its hub repository, so that the *stock*
tasks find them in the working directory (see `plam_eval.demo.hub`, which does it for the nine and whose suites may lie
in the same folder). The copies themselves are in `offline_tasks` and, of test splits, in `offline_tests`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lmms_eval.api.model import lmms

from plam_eval.harness.answers import score_answers, tasks_of
from plam_eval.harness.wrapper import GenerationRecord, writable

Row = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """A row of a dataset without its image.

    Attributes:
        picture: number of the image that it asks about.
        answer: what `PlannedModel` says.
        score: what that is worth, from 0 to 1; NaN where no judge could say, or where a server would.
    """

    row: Row
    picture: int
    answer: str
    score: float


@dataclass(frozen=True)
class Copy:
    """One split of one config of a dataset.

    Attributes:
        columns: name -> a `datasets` value type, "image", a list of one of these, or a struct of them.
        tasks: those that read it.
        names_image: whether the columns say which documents ask about one image.
    """

    repo: str
    config: str
    split: str
    columns: Mapping[str, Any]
    tasks: tuple[str, ...]
    documents: Sequence[Document]
    names_image: bool


Planned = Mapping[str, tuple[Copy, Sequence[Document]]]
"""Task -> its data and what is planned for it."""


def strings(names: str) -> dict[str, Any]:
    """Columns of text, by their names."""
    return dict.fromkeys(names.split(), "string")


def by_task(copies: Sequence[Copy]) -> dict[str, tuple[Copy, Sequence[Document]]]:
    """The copies by the tasks that read them."""
    return {task: (copy, copy.documents) for copy in copies for task in copy.tasks}


# --- writing them -----------------------------------------------------------------------------------------------------


def write_copies(folder: Path, copies: Sequence[Copy]) -> None:
    """Write the datasets below `folder`, which may hold others, and other splits of the same ones."""
    for copy in copies:
        path = _write(folder, copy, [_with_images(copy, document) for document in _rows(copy)])
        _declare(folder / copy.repo / "README.md", copy, f"{copy.config}/{path.name}")


def _declare(card: Path, copy: Copy, path: str) -> None:
    """Tell `load_dataset`, in the header of the dataset's card, which file is which split of which config."""
    configs: list[Row] = []
    if card.exists():
        configs = yaml.safe_load(card.read_text(encoding="utf-8").split("---\n")[1])["configs"]
    names = [config["config_name"] for config in configs]
    if copy.config not in names:
        names.append(copy.config)
        configs.append({"config_name": copy.config, "data_files": []})
    files = configs[names.index(copy.config)]["data_files"]
    files[:] = [file for file in files if file["split"] != copy.split] + [{"split": copy.split, "path": path}]
    card.write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")


def _rows(copy: Copy) -> list[Document]:
    """A document for each row: RefCOCO's boxes are asked for once for each of their names, all of one row."""
    rows: list[Document] = []
    for document in copy.documents:
        if not rows or document.row != rows[-1].row:
            rows.append(document)
    return rows


def _with_images(copy: Copy, document: Document) -> Row:
    """Its row with the picture in every column of images, but for the optional ones (`image_2` and so on)."""
    row = dict(document.row)
    for name, kind in copy.columns.items():
        if kind in ("image", ["image"]):
            row[name] = None
            if not name[-1].isdigit() or name.endswith("_1"):
                picture = {"bytes": _png(document.picture), "path": None}
                row[name] = [picture] if isinstance(kind, list) else picture
    return row


def _png(number: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (40 * number % 256, 90, 160)).save(buffer, format="PNG")
    return buffer.getvalue()


def _feature(kind: Any) -> Any:
    import datasets

    if isinstance(kind, Mapping):
        return {name: _feature(value) for name, value in kind.items()}
    if isinstance(kind, list):
        inner = _feature(kind[0])
        return [inner] if isinstance(inner, Mapping) else datasets.Sequence(inner)
    return datasets.Image() if kind == "image" else datasets.Value(kind)


def _write(folder: Path, copy: Copy, rows: list[Row]) -> Path:
    """A parquet file that is named by its content: `datasets` caches a local dataset by the names of its files."""
    import datasets

    features = datasets.Features({name: _feature(kind) for name, kind in copy.columns.items()})
    path = folder / copy.repo / copy.config / "partial"
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return path.rename(path.with_name(f"{copy.split}-{digest}.parquet"))


# --- models that say what is planned ----------------------------------------------------------------------------------


class StockModel(lmms):
    """Says to every document what is planned for it; like any model of lmms-eval's, it knows nothing of our wrappers.

    Args:
        answers: the plan.
        shift: every document gets the answer that is planned for the one so many places after it: another model.
        raw: characters that no worksheet takes stay in the answers; ours take them out, and a stock run ends at them.
    """

    def __init__(self, answers: Planned, *, shift: int = 0, raw: bool = False) -> None:
        super().__init__()
        self._planned, self._shift, self._raw = answers, shift, raw

    def says(self, task: str, number: int) -> str:
        """The answer to a document of a task."""
        documents = self._planned[task][1]
        answer = documents[(number + self._shift) % len(documents)].answer
        return answer if self._raw else writable(answer)

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [self.says(request.task_name, request.doc_id) for request in requests]

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError


class PlannedModel(StockModel):
    """One that keeps to what the harness asks of our wrappers.

    Args:
        answers: the plan.
        folder: the end of the name of its runs' folder, which tells plain from merged.
        shift, raw: as in `StockModel`.
    """

    model_id = pretrained_name = "planned"
    spec = None
    max_error_share = 0.0

    def __init__(self, answers: Planned, *, folder: str = "planned", shift: int = 0, raw: bool = False) -> None:
        super().__init__(answers, shift=shift, raw=raw)
        self.folder = folder
        self.generation = GenerationRecord()
        self.scanned: list[Row] = []  # the same answers as a scan logs them

    def begin_run(self) -> None:
        self.generation = GenerationRecord()

    def end_run(self, tasks: dict[str, Any]) -> None:
        answers = {
            (task, number): [self.says(task, number)]
            for task in tasks_of(tasks)
            for number in range(len(self._planned[task][1]))
        }
        self.scanned = list(score_answers(tasks, answers))

    def run_record(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return {"folder": self.folder, "wrapper": "planned", "mode": "simple"}
