"""One image and a question, answered as a document of a benchmark is, and where its parts lie among the tokens."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plam_eval.errors import InputError
from plam_eval.harness.documents import Documents
from plam_eval.harness.evaluate import evaluate, make_model, parse_model_args
from plam_eval.harness.single_image import check_question, image_request, read_image
from plam_eval.harness.wrapper import text_of, writable
from plam_eval.model_wrappers.processors import is_processor
from plam_eval.probing.token_grid import token_grids
from tests.helpers.pico import PicoPair
from tests.helpers.wrappers import CASES, WRAPPER, answers, arguments

Pico = Callable[[str], PicoPair]
SQUARE = (60, 24, 84, 42)
"""Left, top, right, bottom of what is bright in `PICTURE`."""
PICTURE = Image.new("RGB", (150, 90))
PICTURE.paste((255, 255, 255), SQUARE)


def wrapper(pico: Pico, family: str, mode: str) -> Any:
    given = parse_model_args(arguments(pico(family)))
    return make_model(WRAPPER[family][0], given, force_simple=mode == "simple")


class Watched:
    """A processor, and what it was given and gave out."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.images: list[Image.Image] = []
        self.inputs: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = kwargs["images"]
        self.images = [image for each in given for image in (each if isinstance(each, list) else [each])]
        self.inputs = self.processor(*args, **kwargs)
        return self.inputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)


@contextmanager
def watching(model: Any) -> Iterator[Watched]:
    """While it lasts, it is known what the wrapper's processor gets."""
    name, processor = next((name, value) for name, value in vars(model).items() if is_processor(value))
    watched = Watched(processor)
    setattr(model, name, watched)
    try:
        yield watched
    finally:
        setattr(model, name, processor)


def bright(image: Image.Image) -> np.ndarray:
    """Where the bright square lies, as shares of the image's width and height."""
    rows, columns = np.nonzero(np.asarray(image.convert("L")) > 127)
    width, height = image.size
    edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return np.array(edges) / [width, height, width, height]


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_a_place_in_the_image_is_the_same_share_of_what_the_processor_gets(pico: Pico, family: str, mode: str) -> None:
    """So boxes in pixels of the image meet the right cells, though Qwen-VL's wrappers resize the image."""
    model = wrapper(pico, family, mode)
    request = image_request(model, PICTURE, "Where is it?", gen_kwargs={"max_new_tokens": 1})
    with watching(model) as watched, model.quiet():
        model.stock_answers([request], counted=False)
    pictures = Documents().of_request(request)
    assert pictures.sizes == [PICTURE.size] and pictures.boxes is None
    (given,) = watched.images
    assert (given.size == PICTURE.size) is not family.startswith("qwen")
    assert bright(given) == pytest.approx(np.array(SQUARE) / [150, 90, 150, 90], abs=1 / 28)
    grids = [
        token_grids(model.model, watched.processor, watched.inputs, sizes)[0][0]
        for sizes in (pictures.sizes, [given.size])
    ]
    shares = [grid.boxes / np.tile(grid.size, 2) for grid in grids]
    assert np.allclose(shares[0], shares[1], equal_nan=True, atol=0.02)
    assert (grids[0].row == grids[1].row).all() and (grids[0].column == grids[1].column).all()


@pytest.mark.parametrize(("family", "mode"), [("llava", "simple"), ("qwen2_5_vl", "chat"), ("internvl", "chat")])
def test_the_answer_is_that_to_a_document_with_this_prompt(
    pico: Pico, in_suite: Path, tmp_path: Path, family: str, mode: str
) -> None:
    model = wrapper(pico, family, mode)
    asked: list[Any] = []

    class Asked:
        """Answers as the wrapper does, and keeps what it was asked."""

        def answer(self, requests: list[Any]) -> list[Any]:
            asked.extend(requests)
            return list(model.own_answers(requests))

        def end_run(self, tasks: Any) -> None:
            pass

    with model.answering(Asked()):
        run = evaluate(model, "pope", limit=1, gen_kwargs="max_new_tokens=8")
    (shown,) = Documents().of_request(asked[0]).images
    shown.save(tmp_path / "scene.png")
    request = image_request(
        model, read_image(tmp_path / "scene.png"), asked[0].args[0], gen_kwargs={"max_new_tokens": 8}
    )
    with model.quiet():
        own = text_of(model.stock_answers([request], counted=False)[0])
        other = image_request(model, Image.new("RGB", shown.size, "red"), "No?", gen_kwargs={"max_new_tokens": 8})
        different = text_of(model.stock_answers([other], counted=False)[0])
    assert writable(own).strip() == answers(run)["pope", 0] and own != different


def test_settings_are_greedy_and_short_by_default(pico: Pico) -> None:
    model = wrapper(pico, "llava", "simple")
    request = image_request(model, PICTURE, "Where is it?")
    assert request.args[1] == {"max_new_tokens": 64, "temperature": 0, "do_sample": False}
    assert image_request(model, PICTURE, "Where?", gen_kwargs={"max_new_tokens": 5}).args[1]["max_new_tokens"] == 5


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_image_is_read_upright_and_in_rgb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    PICTURE.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (90, 150)
    for name, mode in (("grey.png", "L"), ("palette.gif", "P"), ("alpha.webp", "RGBA"), ("plain.bmp", "RGB")):
        PICTURE.convert(mode).save(tmp_path / name)
        image = read_image(str(tmp_path / name))
        assert (image.mode, image.size) == ("RGB", PICTURE.size)


def bomb(side: int) -> bytes:
    """A PNG whose header says it has so many pixels a side."""
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunks = (header, b"IDAT")
    lengths = [(len(chunk) - 4).to_bytes(4, "big") for chunk in chunks]
    sums = [zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(b"".join(each) for each in zip(lengths, chunks, sums, strict=True))


def test_what_is_no_image_is_told(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "picture.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "picture.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("a cat")
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "cut.png").write_bytes((tmp_path / "picture.png").read_bytes()[:80])
    (tmp_path / "large.png").write_bytes(bomb(10_000))
    (tmp_path / "huge.png").write_bytes(bomb(100_000))
    for name, said in {
        "missing.png": "there is no file .*missing.png; expected an image file",
        ".": "is a folder; expected an image file",
        "link.png": "is a link; .*give the file that it leads to",
        "lost.png": "is a link",
        "pipe.png": "is no file; expected",
        "text.png": "is no image that can be read",
        "program.eps": "is no image that can be read",
        "cut.png": "cannot be read as an image",
        "large.png": "pixels, more than is read; make it smaller",
        "huge.png": "pixels, more than is read; make it smaller",
    }.items():
        with pytest.raises(InputError, match=said):
            pytest.fail(f"{name} was read: {read_image(tmp_path / name)}")


@pytest.mark.parametrize(
    ("question", "said"), [("", "expected some words"), (" \n", "expected some words"), ("<image> or <image>?", "once")]
)
def test_questions_that_make_no_prompt(question: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_question(question)
    check_question("What is <image>?")
