"""MMBench 1.1's test questions with their answers, from the TSV that VLMEvalKit reads, as a table of `datasets`.

A line is a question under one rotation of its choices; `index` is that of the question plus 1,000,000 for each
rotation. `image` is base64, or the index of another line that has it. The file is checked as a whole, images
included, when it is read for the first time; the table is kept in the cache and mapped into memory after that, so that
the processes of an evaluation share it and images are decoded as they are asked for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from plam_eval.errors import first_line, listed, quoted, system_error
from plam_eval.files import write_in_one_step
from plam_eval.test_sets.answer_file import AnswerFileError, Located, cache_folder, kept_in

if TYPE_CHECKING:
    import datasets

STEP = 1_000_000
"""Between the indexes of two rotations of one question."""
LETTERS = "ABCD"
FORM = 1
"""Of the kept table; another number makes those of before unknown."""

_COLUMNS = ("index", "question", "hint", *LETTERS, "answer", "category", "l2-category", "image")
_MOST_ROTATIONS = 26
_LONGEST_REFERENCE = 64  # characters: a longer image is one
_LARGEST_IMAGE, _MOST_PIXELS = 1 << 26, 1 << 26  # characters of base64; width times height
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_CHINESE = re.compile("[\u4e00-\u9fff]")
_EXAMPLES = 3
_BATCH = 64
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream

Row = dict[str, Any]


def table(file: Located, *, chinese: bool) -> datasets.Dataset:
    """The questions in the order of their index, the rotations of each side by side.

    Args:
        file: the TSV.
        chinese: whether questions are to be Chinese.

    Raises:
        AnswerFileError: it is no such file; every problem is named, with the index of its line.
    """
    import datasets

    folder = cache_folder() / "tables"
    target = folder / f"{file.md5}-{'cn' if chinese else 'en'}-{FORM}.arrow"
    if (kept := _kept(target)) is not None:
        return kept
    with kept_in(folder, f".{file.md5}.lock", f"{file.shown}: its table"):  # the first process makes it
        if (kept := _kept(target)) is not None:
            return kept
        rows = read_rows(file, chinese=chinese)
        try:
            write_in_one_step(target, lambda partial: _write(partial, rows))
        except OSError as error:
            raise AnswerFileError(f"{file.shown}: its table cannot be kept: {system_error(error)}") from error
        return datasets.Dataset.from_file(str(target))


def _kept(target: Path) -> datasets.Dataset | None:
    """The table that was made before; None where there is none, or not all of it."""
    import datasets

    with suppress(Exception):  # damaged: pyarrow raises what it likes
        if not target.is_symlink() and _ends(target):
            return datasets.Dataset.from_file(str(target))
    return None


def _ends(target: Path) -> bool:
    """Whether an Arrow stream ends as one does: pyarrow reads one that was cut between two batches as if it did."""
    with target.open("rb") as stream:
        stream.seek(-len(_END), io.SEEK_END)
        return stream.read() == _END


def read_rows(file: Located, *, chinese: bool) -> list[Row]:
    """The lines of the file by index, checked, with `image` as base64.

    Args:
        file: the TSV.
        chinese: whether questions are to be Chinese.

    Raises:
        AnswerFileError: as `table`.
    """
    rows, problems = _indexed(file, _lines(file))
    by_index = {row["index"]: row for row in rows}
    problems += _rotations(by_index)
    problems += _several("lines", (problem for row in rows for problem in _wrong(row)))
    if file.vouched:  # of the released files there is nothing to find out
        problems += _several("rotations that are of another question", _strangers(rows, by_index))
    asked = sum(bool(_CHINESE.search(row["question"] or "")) for row in rows)
    if rows and (asked > len(rows) / 2) != chinese:
        found, expected = ("Chinese", "English") if asked > len(rows) / 2 else ("not Chinese", "Chinese")
        problems.append(f"most of its questions are {found}, expected {expected} ones")
    if not rows and not problems:
        problems.append("no question")
    sources, absent = dict[int, str](), list[str]()
    for row in rows:
        try:
            sources[row["index"]] = _image_of(row, by_index)
        except ValueError as error:
            absent.append(f"{row['index']} ({error})")
    problems += _several("images that cannot be used, of index", [*absent, *_undecodable(sources)])
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise AnswerFileError(f"{file.shown} (MD5 {file.md5}):\n{lines}")
    for row in rows:
        row["image"] = sources[row["index"]]
    return sorted(rows, key=lambda row: (row["index"] % STEP, row["index"]))


def _lines(file: Located) -> list[Row]:
    """Lines by column; what is empty, or the text "nan", is None."""
    import pandas as pd

    try:
        content = pd.read_csv(
            file.path, sep="\t", dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8-sig"
        )
        if not isinstance(content.index, pd.RangeIndex):  # pandas takes the first cells for names of the lines
            raise ValueError("its first line has more cells than there are columns")
    except OSError as error:
        raise AnswerFileError(f"{file.shown}: cannot be read: {system_error(error)}") from error
    except (ValueError, OverflowError) as error:  # of pandas' parser, and of text that is not UTF-8
        raise AnswerFileError(f"{file.shown}: no TSV that can be read ({first_line(error)}); get it again") from error
    if "l2-category" not in content.columns:
        content = content.rename(columns={"L2-category": "l2-category"})
    if missing := [name for name in _COLUMNS if name not in content.columns]:
        raise AnswerFileError(
            f"{file.shown}: no column {', '.join(missing)}; found {listed(map(quoted, content.columns), 12)}, expected "
            f"{', '.join(_COLUMNS)}, parted by tabs"
        )
    content = content[list(_COLUMNS)].astype(object)
    content = content.where(content.notna() & (content != "nan"), None)
    return content.to_dict("records")


def _indexed(file: Located, lines: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The lines that have an index of their own, as a number; and what is wrong with the others."""
    rows, odd, seen, twice = list[Row](), list[str](), set[int](), list[str]()
    for number, line in enumerate(lines, start=2):  # the first line has the names of the columns
        text = line["index"] or ""
        if not re.fullmatch(r"[0-9]{1,9}(\.0)?", text) or int(float(text)) >= _MOST_ROTATIONS * STEP:
            odd.append(f"line {number} ({quoted(text, 40)})")
            continue
        index = int(float(text))
        if index in seen:
            twice.append(str(index))
            continue
        seen.add(index)
        rows.append({**line, "index": index})
    problems = _several("indexes that are no number of a question and its rotation", odd)
    return rows, problems + _several("indexes that stand there twice", twice)


def _rotations(by_index: Mapping[int, Row]) -> list[str]:
    turns: dict[int, set[int]] = {}
    for index in by_index:
        turns.setdefault(index % STEP, set()).add(index // STEP)
    lacking = [
        f"{question} (lacks {', '.join(str(question + turn * STEP) for turn in sorted(absent))})"
        for question, there in turns.items()
        if (absent := set(range(max(there) + 1)) - there)
    ]
    return _several("questions without one of their rotations, or without the first", lacking)


def _strangers(rows: Sequence[Row], by_index: Mapping[int, Row]) -> Iterator[str]:
    """Rows whose index makes them rotations of a question that asks and answers something else."""
    for row in rows:
        first = by_index.get(row["index"] % STEP)
        if first is None or row["question"] == first["question"]:
            continue
        right, truth = (each.get(each["answer"] or "") for each in (row, first))
        if right != truth:
            one, other = (quoted(each["question"], 40) for each in (row, first))
            yield f"{row['index']} (asks {one}, {first['index']} {other})"


def _wrong(row: Row) -> Iterator[str]:
    absent = [name for name in ("question", "A", "B", "answer", "category", "l2-category") if row[name] is None]
    if absent:
        yield f"index {row['index']} has no {', '.join(absent)}"
    elif row["answer"] not in (letters := [letter for letter in LETTERS if row[letter] is not None]):
        yield f"index {row['index']} has the answer {quoted(row['answer'], 40)}, expected one of {', '.join(letters)}"


def _image_of(row: Row, by_index: Mapping[int, Row]) -> str:
    """The base64 text of a line's image, which may stand in another line."""
    text = row["image"]
    if text is None:
        raise ValueError("none")
    if len(text) > _LONGEST_REFERENCE or not re.fullmatch(r"[0-9]{1,9}", text):
        return str(text)
    source = by_index.get(int(text), {}).get("image")
    if source is None or (len(source) <= _LONGEST_REFERENCE and source.isdigit()):
        raise ValueError(f"refers to index {text}, which has none")
    return str(source)


def _undecodable(sources: Mapping[int, str]) -> Iterator[str]:
    """Each image is decoded once and thrown away, so that one that is damaged is told now and not hours later.

    Strictly: lmms-eval has PIL show what there is of an image that was cut.
    """
    from PIL import ImageFile

    seen: dict[bytes, str | None] = {}
    with mock.patch.object(ImageFile, "LOAD_TRUNCATED_IMAGES", False):
        for index, text in sources.items():
            key = hashlib.sha256(text.encode("utf-8", "replace")).digest()
            if key not in seen:
                seen[key] = _fault(text)
            if seen[key] is not None:
                yield f"{index} ({seen[key]})"


def _fault(text: str) -> str | None:
    import warnings

    from PIL import Image

    if len(text) > _LARGEST_IMAGE:
        return f"{len(text)} characters, of {_LARGEST_IMAGE} at most"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, whose size is looked at here
            with Image.open(io.BytesIO(_bytes(text)), formats=_FORMATS) as image:
                if image.width * image.height > _MOST_PIXELS:
                    return f"{image.width} x {image.height} pixels, of {_MOST_PIXELS} at most"
                image.load()
    except binascii.Error as error:
        return f"no base64: {first_line(error)}"
    except Exception as error:  # what decoders raise for damaged bytes
        return f"{type(error).__name__}: {first_line(error)[:80]}"
    return None


def _bytes(text: str) -> bytes:
    return base64.b64decode(text.strip(), validate=True)


def _several(what: str, examples: Iterator[str] | Sequence[str]) -> list[str]:
    every = list(examples)
    return [f"{what} ({len(every)}): {listed(every, _EXAMPLES)}"] if every else []


def _write(target: Path, rows: Sequence[Row]) -> None:
    import datasets
    import pyarrow as pa

    texts = ("question", "hint", *LETTERS, "answer", "category", "L2-category", "source", "split")
    features = datasets.Features(
        {"index": datasets.Value("int64"), "image": datasets.Image(), **dict.fromkeys(texts, datasets.Value("string"))}
    )
    schema = features.arrow_schema
    with pa.OSFile(str(target), "wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
        for start in range(0, len(rows), _BATCH):
            batch = [_stored(row) for row in rows[start : start + _BATCH]]
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))


def _stored(row: Row) -> Row:
    same = {name: row[name] for name in ("index", "question", "hint", *LETTERS, "answer", "category")}
    image = {"bytes": _bytes(row["image"]), "path": f"{row['index']}.png"}
    return {**same, "L2-category": row["l2-category"], "image": image, "source": None, "split": "test"}
