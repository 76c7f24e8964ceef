"""MMBench's TSV: read as a table, or refused with the index of what is wrong."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import ImageFile

from plam_eval.test_sets import mmbench
from plam_eval.test_sets.answer_file import AnswerFileError, Located
from tests.helpers.released import COLUMNS, STEP, md5, png, tsv_rows, write_tsv

Rows = list[dict[str, str]]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval leaves it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def located(path: Path) -> Located:
    return Located(path, md5(path), vouched=True)


def test_the_rotations_of_a_question_are_side_by_side(tmp_path: Path) -> None:
    rows = tsv_rows()
    table = mmbench.table(located(write_tsv(tmp_path / "a.tsv", rows[::2] + rows[1::2])), chinese=False)
    assert table["index"][:] == [3000, 3000 + STEP, 3001, 3001 + STEP, 3002, 3002 + STEP]
    first, second, other = table[0], table[1], table[2]
    assert (first["A"], second["A"], first["C"], first["hint"]) == ("left", "right", None, None)
    assert (first["L2-category"], first["split"], first["answer"], second["answer"]) == ("fine", "test", "A", "B")
    pixels = [each["image"].getpixel((0, 0)) for each in (first, second, other)]
    assert pixels[0] == pixels[1] != pixels[2]  # a rotation refers to the image of the first


def test_a_table_is_made_once_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = located(write_tsv(tmp_path / "a.tsv", tsv_rows()))
    mmbench.table(file, chinese=False)
    (kept,) = (tmp_path / "cache").rglob("*.arrow")
    with monkeypatch.context() as patch:
        patch.setattr(mmbench, "read_rows", lambda *_, **__: pytest.fail("read again"))
        table = mmbench.table(file, chinese=False)
    assert [Path(each["filename"]) for each in table.cache_files] == [kept]
    kept.write_bytes(kept.read_bytes()[:40])  # a disk that lost the rest
    assert len(mmbench.table(file, chinese=False)) == 6


def test_a_kept_table_that_was_cut_between_two_batches_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    monkeypatch.setattr(mmbench, "_BATCH", 2)
    file = located(write_tsv(tmp_path / "a.tsv", tsv_rows()))
    mmbench.table(file, chinese=False)
    (kept,) = (tmp_path / "cache").rglob("*.arrow")
    with pa.OSFile(str(kept)) as stream:
        pa.ipc.open_stream(stream).read_next_batch()
        end = stream.tell()
    kept.write_bytes(kept.read_bytes()[:end])  # pyarrow takes the rest for whole
    assert len(mmbench.table(file, chinese=False)) == 6


def test_words_that_pandas_takes_for_nothing_stay_choices(tmp_path: Path) -> None:
    rows = tsv_rows(1)
    for row, (a, b) in zip(rows, (("None", "NA"), ("NA", "None")), strict=True):
        row |= {"A": a, "B": b, "C": "nan", "hint": "nan"}
    table = mmbench.table(located(write_tsv(tmp_path / "a.tsv", rows)), chinese=False)
    assert [(row["A"], row["B"], row["C"], row["hint"]) for row in table] == [
        ("None", "NA", None, None),
        ("NA", "None", None, None),
    ]


def _set(number: int, **values: str) -> Callable[[Rows], Rows]:
    return lambda rows: [row | values if at == number else row for at, row in enumerate(rows)]


def _without(number: int) -> Callable[[Rows], Rows]:
    return lambda rows: [row for at, row in enumerate(rows) if at != number]


WHOLE = base64.b64decode(png(size=(64, 64), noisy=True))
DAMAGED = base64.b64encode(WHOLE[: len(WHOLE) // 2]).decode()
NOT_AN_IMAGE = base64.b64encode(b"no image at all, but text that is long enough to be one by its length").decode()

REFUSED = {
    "base64 with a hole": (_set(2, image=png()[:40] + "*" + png()[40:]), "3001 (no base64"),
    "an image that was cut": (_set(2, image=DAMAGED), "3001 ("),
    "bytes that are no image": (_set(0, image=NOT_AN_IMAGE), "of index (2): 3000 (UnidentifiedImageError"),
    "no image": (_set(4, image=""), "3002 (none)"),
    "an image that is nowhere": (_set(1, image="9999"), f"{3000 + STEP} (refers to index 9999, which has none)"),
    "a reference to a reference": (_set(3, image=str(3000 + STEP)), f"refers to index {3000 + STEP}"),
    "a reference to itself": (_set(1, image=str(3000 + STEP)), f"refers to index {3000 + STEP}"),
    "an index that is no number": (_set(2, index="abc"), "line 4 ('abc')"),
    "an index below nothing": (_set(2, index="-3"), "line 4 ('-3')"),
    "an index of too many digits": (_set(2, index="9" * 400), "line 4 ("),
    "an index that stands there twice": (_set(2, index="3000"), "twice (1): 3000"),
    "a rotation without the first": (_without(0), "3000 (lacks 3000)"),
    "a rotation too few": (_set(1, index=str(3000 + 2 * STEP)), f"3000 (lacks {3000 + STEP})"),
    "no question": (_set(0, question=""), "index 3000 has no question"),
    "no second choice": (_set(0, B=""), "index 3000 has no B"),
    "no answer": (_set(0, answer=""), "index 3000 has no answer"),
    "an answer that is no choice": (_set(0, answer="C"), "index 3000 has the answer 'C', expected one of A, B"),
    "an answer in words": (_set(0, answer="left"), "index 3000 has the answer 'left'"),
    "Chinese questions": (
        lambda rows: [row | {"question": "\u56fe\u4e2d"} for row in rows],
        "most of its questions are Chinese, expected English",
    ),
    "a rotation of another question": (
        _set(3, question="What is it?", A="a cat", B="a dog"),
        f"rotations that are of another question (1): {3001 + STEP} (asks 'What is it?', 3001 'Where is it, 1?')",
    ),
    "no rows": (lambda rows: [], "no question"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_is_wrong_is_said_with_its_index(tmp_path: Path, kind: str) -> None:
    change, said = REFUSED[kind]
    file = located(write_tsv(tmp_path / "a.tsv", change(tsv_rows())))
    with pytest.raises(AnswerFileError) as caught:
        mmbench.table(file, chinese=False)
    assert said in str(caught.value) and str(file.path) in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_rotations_of_a_released_file_are_taken_as_they_are(tmp_path: Path) -> None:
    file = write_tsv(tmp_path / "a.tsv", _set(3, question="What is it?", A="a cat", B="a dog")(tsv_rows()))
    assert len(mmbench.table(Located(file, md5(file), vouched=False), chinese=False)) == 6


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    rows = _set(5, answer="D")(_set(0, image="")(_set(2, index="x")(tsv_rows())))
    with pytest.raises(AnswerFileError) as caught:
        mmbench.read_rows(located(write_tsv(tmp_path / "a.tsv", rows)), chinese=True)
    for said in ("line 4", "3001 (lacks 3001)", "answer 'D'", "3000 (none)", "not Chinese"):
        assert said in str(caught.value), said


def test_images_have_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = located(write_tsv(tmp_path / "a.tsv", tsv_rows()))
    monkeypatch.setattr(mmbench, "_MOST_PIXELS", 47)
    with pytest.raises(AnswerFileError, match=r"3000 \(8 x 6 pixels, of 47 at most\)"):
        mmbench.table(file, chinese=False)
    monkeypatch.setattr(mmbench, "_LARGEST_IMAGE", 70)
    with pytest.raises(AnswerFileError, match=r"characters, of 70 at most"):
        mmbench.table(file, chinese=False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"index\tquestion\n1\tx\n", "no column hint, A, B, C, D"),
        (b"index,question,hint\n1,2,3\n", "no column index"),
        ("\t".join(COLUMNS).encode() + b"\n" + b"1\t" * 30 + b"\n", "no TSV that can be read"),
        (("\t".join(COLUMNS) + "\n1\t\u00e9").encode("latin-1"), "no TSV that can be read"),
        (b'index\t"question\n', "no TSV that can be read"),
    ],
)
def test_what_is_no_such_table_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(content)
    with pytest.raises(AnswerFileError, match=said):
        mmbench.table(located(path), chinese=False)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(mmbench, "_write", full)
    with pytest.raises(AnswerFileError, match=r"its table cannot be kept: .*No space left"):
        mmbench.table(located(write_tsv(tmp_path / "a.tsv", tsv_rows())), chinese=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.raises(AnswerFileError, match=r"its table: cannot be kept in /proc/nowhere.*; set XDG_CACHE_HOME"):
        mmbench.table(located(tmp_path / "a.tsv"), chinese=False)
