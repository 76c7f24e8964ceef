"""One image of the user's and a question about it, asked as lmms-eval asks about a document of a benchmark."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plam_eval.errors import InputError, quoted

TASK, SPLIT = "image", "test"
"""Under which names the one document goes."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # PIL hands others to programs and readers of their own
_MARK = "<image>"  # for which a wrapper puts an image into the prompt


def read_image(path: str | Path) -> Any:
    """The PIL image in a file, in RGB, upright as its EXIF data say, as `datasets` decodes an image of a benchmark.

    Args:
        path: of the file.

    Raises:
        InputError: there is none, or a link, a folder or no image, or one of too many pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    expected = f"expected an image file ({', '.join(_FORMATS)})"
    if path.is_symlink():
        raise InputError(f"{path} is a link; {expected}, give the file that it leads to")
    if not path.exists():
        raise InputError(f"there is no file {path}; {expected}")
    if not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'no file'}; {expected}")
    try:
        with warnings.catch_warnings(), _whole_images():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{path}: has more than {Image.MAX_IMAGE_PIXELS} pixels, more than is read; make it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is no image that can be read; {expected}") from error
    except Exception as error:  # PIL's readers raise what they like for a damaged file
        raise InputError(f"{path} cannot be read as an image ({type(error).__name__}: {error}); {expected}") from error


@contextmanager
def _whole_images() -> Iterator[None]:
    """PIL refuses a file that ends too early meanwhile; lmms-eval has it fill the rest of the image with grey."""
    from PIL import ImageFile

    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def check_question(question: str) -> None:
    """Raise InputError for a question that no prompt can be made of.

    Args:
        question: the user's.
    """
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"question is {quoted(question)}; expected some words")
    if question.count(_MARK) > 1:
        raise InputError(f"question has {_MARK} {question.count(_MARK)} times, and there is one image; name it once")


def image_request(model: Any, image: Any, question: str, *, gen_kwargs: Mapping[str, Any] | None = None) -> Any:
    """A request that the wrapper's own loop answers as it would a document of a benchmark with this prompt.

    The wrapper knows the document from then on, as it knows those of the evaluation that it is in.

    Args:
        model: the wrapper, in simple or in chat mode.
        image: a PIL image, as `read_image` gives it.
        question: the prompt, as a task's `doc_to_text` would give it.
        gen_kwargs: generation settings over the default, the likeliest token each time and 64 tokens at most.

    Returns:
        lmms-eval's `Instance`, for `stock_answers` and everything else that takes requests.

    Raises:
        InputError: as `check_question`.
    """
    from lmms_eval.api.instance import Instance

    check_question(question)
    task = _OneDocument(image, question)
    settings = {"max_new_tokens": 64, "temperature": 0, "do_sample": False, **(gen_kwargs or {})}
    shown = (settings, task.doc_to_visual) if model.is_simple else (task.doc_to_messages, settings)
    model.task_dict[TASK] = task.dataset
    return Instance(
        request_type="generate_until",
        arguments=(question, *shown, 0, TASK, SPLIT),
        idx=0,
        metadata={"task": TASK, "doc_id": 0, "repeats": 1, "split": SPLIT},
    )


class _OneDocument:
    """What of a task of lmms-eval is asked for to answer its only document.

    Args:
        image: of the document.
        question: its prompt.
    """

    DATASET_PATH = None

    def __init__(self, image: Any, question: str) -> None:
        self.dataset = {SPLIT: [{"image": image, "question": question}]}

    def doc_to_visual(self, row: Mapping[str, Any]) -> list[Any]:
        return [row["image"]]

    def doc_to_messages(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": row["image"]}, {"type": "text", "text": row["question"]}]
        return [{"role": "user", "content": content}]
