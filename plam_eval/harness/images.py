"""What documents look like: their images, which sample logs do not hold."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from plam_eval.harness.documents import shown_images
from plam_eval.harness.lookup import cause_of, load_tasks, one_attempt, task_manager


def document_images(
    documents: Mapping[str, Mapping[int, str]],
    folder: Path | None = None,
    *,
    model: str | None = None,
    include_path: str | Path | None = None,
) -> tuple[dict[tuple[str, int], list[Any]], dict[str, str]]:
    """Images of documents from the tasks' datasets, as far as this machine has them.

    Args:
        documents: task -> doc_id -> the prompt that was logged. A document that is asked otherwise now gets no image:
            the dataset that was found is not the one that was evaluated.
        folder: where datasets are looked for that a relative path names; the working directory by default.
        model: id of the model that was evaluated, for its prompts.
        include_path: folder of further tasks, whose code is run.

    Returns:
        PIL images by (task, doc_id), and by task why some are missing. Nothing is downloaded.
    """
    manager = task_manager(include_path, model)
    images: dict[tuple[str, int], list[Any]] = {}
    missing: dict[str, str] = {}
    with one_attempt(), _offline(folder):
        for name, prompts in documents.items():
            try:
                (output,) = load_tasks(manager, [name])
                rows = output.task.eval_docs  # rebuilt at every access
                for doc_id, prompt in prompts.items():
                    if (pictures := _images_of(output.task, rows, doc_id, prompt)) is None:
                        missing[name] = "the dataset that was found holds other questions"
                    else:
                        images[name, doc_id] = pictures
            except Exception as error:  # a task's own code runs here, and may raise anything
                cause = cause_of(error)
                absent = isinstance(cause, (ConnectionError, FileNotFoundError))
                missing[name] = "its dataset is not on this machine" if absent else f"{type(cause).__name__}: {cause}"
    return images, missing


def _images_of(task: Any, rows: Any, doc_id: int, prompt: str) -> list[Any] | None:
    """The images of a document; None where the document of this number is asked otherwise."""
    document = rows[doc_id] if doc_id < len(rows) else None
    if document is None or task.doc_to_text(document) != prompt:
        return None
    return shown_images(task.doc_to_visual(document))


@contextmanager
def _offline(folder: Path | None) -> Iterator[None]:
    """No hub is asked, and relative paths begin in `folder`."""
    import datasets
    import huggingface_hub.constants

    with ExitStack() as stack:
        for owner in (datasets.config, huggingface_hub.constants):
            stack.callback(setattr, owner, "HF_HUB_OFFLINE", owner.HF_HUB_OFFLINE)
            setattr(owner, "HF_HUB_OFFLINE", True)  # noqa: B010  (a constant, to mypy)
        if folder is not None:
            stack.callback(os.chdir, Path.cwd())
            os.chdir(folder)
        yield
