"""Files of boards: read, checked, and written. What is read may be of anybody, and damaged."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plam_eval.errors import DamagedFileError, quoted
from plam_eval.files import check_depth, read_at_most
from plam_eval.publishing.boards.checks import TABLES, Checked, Row, Tally, check_rows, first_twice
from plam_eval.publishing.boards.record import Board

LARGEST = 1 << 30
"""Bytes of a file, unpacked, that is read: five times what the board of the most questions takes."""
MOST_ROWS = 1 << 20
"""Rows that are read: as many as a sheet of a workbook has, and twice what the board of the most questions takes."""
MOST_COLUMNS = 256
"""Columns of a table that are read."""
_MOST_TAGS = 1 << 23  # of a workbook's XML: five times those of the largest; each takes some hundred bytes of memory
_BLOCK = 1 << 20


# --- reading ----------------------------------------------------------------------------------------------------------


def check_file(board: Board, file: Path, questions: Collection[Hashable] | None = None) -> Checked:
    """What a board would say to a file.

    Args:
        board: its record.
        file: any file.
        questions: as for `check_rows`.

    Raises:
        OSError: it cannot be opened.
    """
    faults: list[str] = []
    rows = read_rows(board, file, faults)
    checked = check_rows(board, rows, questions)
    if faults and not rows:  # what cannot be read at all has no other faults
        checked.problems = []
    checked.problems = [*faults, *checked.problems]
    return checked


def read_rows(board: Board, file: Path, faults: list[str]) -> list[Row]:
    """The rows of a board's file, as far as it can be read.

    Args:
        board: its record, which says of which form the file is.
        file: any file.
        faults: to which everything is added that is wrong with the file itself, in words.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        content = read_at_most(file, LARGEST, "name the file that the board takes")
    except DamagedFileError as error:
        faults.append(str(error).removeprefix(f"{file}: "))
        return []
    if board.form == "xlsx":
        return _read_xlsx(content, faults)
    text = _text(content, board, faults)
    if board.form in ("csv", "tsv"):
        return _read_csv(text, board, faults)
    return _read_json_lines(text, faults) if board.form == "jsonl" else _read_json(text, board, faults)


def _text(content: bytes, board: Board, faults: list[str]) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        faults.append(f"is written in UTF-16, expected {board.encoding}; save it as that")
        return ""
    if content.startswith(b"\xef\xbb\xbf"):
        content = content[3:]
        if board.form not in TABLES:
            faults.append("begins with a byte order mark, which readers of JSON refuse; save it without")
    if content.startswith(b"PK\x03\x04"):
        faults.append(f"is a workbook or another archive, expected {board.form}")
        return ""
    try:
        return content.decode(board.encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        faults.append(f"line {line}: byte {error.start} is not {board.encoding}: save the file as {board.encoding}")
        return content.decode(board.encoding, "replace")


class _Decoder(json.JSONDecoder):
    """Reads JSON, and remembers what Python takes and JSON, or other readers, do not."""

    def __init__(self) -> None:
        self.odd: list[str] = []
        super().__init__(object_pairs_hook=self._object, parse_constant=self._constant, parse_int=_whole)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            self.odd.append(f"{quoted(first_twice(name for name, _ in pairs))} stands twice in one object")
        return content

    def _constant(self, word: str) -> float:
        self.odd.append(f"{word} is not JSON")
        return float(word.replace("Infinity", "inf"))


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= 20 else float(digits)


_SPACE = re.compile(r"[ \t\n\r]*")


def _elements(text: str, decoder: _Decoder) -> Iterator[tuple[int, str | None, Any]]:
    """The elements of a list or an object of JSON: the line each begins in, its key, its value.

    Raises ValueError (JSONDecodeError among it) or RecursionError where the text ends being JSON.
    """
    place = _skip(text, 0)
    opening = text[place : place + 1]
    closing = {"[": "]", "{": "}"}[opening]
    line, counted = 1, 0
    place = _skip(text, place + 1)
    first = True
    while text[place : place + 1] != closing:
        if not first:
            if text[place : place + 1] != ",":
                raise json.JSONDecodeError(f"Expecting ',' or '{closing}'", text, place)
            place = _skip(text, place + 1)
        first = False
        line, counted = line + text.count("\n", counted, place), place
        key = None
        if opening == "{":
            key, place = decoder.raw_decode(text, place)
            place = _skip(text, place)
            if not isinstance(key, str) or text[place : place + 1] != ":":
                raise json.JSONDecodeError("Expecting a name and ':'", text, place)
            place = _skip(text, place + 1)
        value, place = decoder.raw_decode(text, place)
        yield line, key, value
        place = _skip(text, place)
    if _skip(text, place + 1) != len(text):
        raise json.JSONDecodeError("Extra data", text, _skip(text, place + 1))


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _read_json(text: str, board: Board, faults: list[str]) -> list[Row]:
    opening = "[" if board.form == "json list" else "{"
    start = text[_skip(text, 0) :][:1]
    if start != opening:
        expected = "a list of objects, [{...}, ...]" if opening == "[" else "one object, {id: answer, ...}"
        what = "nothing" if not start else f"JSON or text that begins with {start!r}"
        faults.append(f"found {what}, expected {expected}" if text or not faults else "cannot be read")
        return []
    decoder, rows, odd = _Decoder(), list[Row](), Tally()
    names = [column.name for column in board.columns if column is not board.id]
    in_lines = "\n" in text.strip()
    try:
        for line, key, value in _elements(text, decoder):
            where = f"line {line}" if in_lines else f"entry {len(rows) + 1}"
            if len(rows) == MOST_ROWS:
                faults.append(f"holds more than {MOST_ROWS} answers")
                break
            for words in decoder.odd:
                odd.add("not plain JSON", where, words)
            decoder.odd.clear()
            if key is not None:
                rest = {names[0]: value} if len(names) == 1 else value
                value = {board.id.name: key, **rest} if isinstance(rest, dict) else None
            if isinstance(value, dict):
                rows.append(Row(where, check_depth(value)))
            else:
                odd.add("no object", where)
    except (ValueError, RecursionError) as error:
        said = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        faults.append(f"is not whole JSON: {said}")
    faults += odd.lines()
    return rows


def _read_json_lines(text: str, faults: list[str]) -> list[Row]:
    if text[_skip(text, 0) :][:1] == "[":
        faults.append("is a JSON list, expected one JSON object per line")
        return []
    decoder, rows, odd = _Decoder(), list[Row](), Tally()
    for number, line in enumerate(io.StringIO(text, newline="\n"), start=1):
        where = f"line {number}"
        if number > MOST_ROWS:
            faults.append(f"has more than {MOST_ROWS} lines")
            break
        if not line.strip():
            if line.endswith("\n"):
                odd.add("an empty line", where)
            continue
        try:
            value = check_depth(decoder.decode(line))
        except (ValueError, RecursionError) as error:
            odd.add("no JSON object", where, f"{error}"[:120])
            continue
        for words in decoder.odd:
            odd.add("not plain JSON", where, words)
        decoder.odd.clear()
        if isinstance(value, dict):
            rows.append(Row(where, value))
        else:
            odd.add("no JSON object", where, f"found {quoted(value)}")
    faults += odd.lines()
    return rows


def _read_csv(text: str, board: Board, faults: list[str]) -> list[Row]:
    if "\0" in text:
        faults.append("holds NUL bytes, expected text; it may be a workbook, or damaged")
        return []
    csv.field_size_limit(LARGEST)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if board.form == "tsv" else ",", strict=True)
    whole = {column.name for column in board.columns if column.kind is int}
    rows: list[Row] = []
    odd = Tally()
    try:
        header = next(reader, [])
        if not _check_header(header, faults):
            return []
        for cells in reader:
            if not cells:
                continue
            if len(rows) == MOST_ROWS:
                faults.append(f"holds more than {MOST_ROWS} rows")
                break
            where = f"line {reader.line_num}"
            if len(cells) != len(header):
                odd.add("another number of cells than the header", where, f"{len(cells)}, expected {len(header)}")
            values = dict(zip(header, cells, strict=False))
            numbers = {k: int(v) for k, v in values.items() if k in whole and re.fullmatch(r"0|[1-9]\d{0,17}", v)}
            rows.append(Row(where, {**values, **numbers}))
    except csv.Error as error:
        faults.append(f"line {reader.line_num}: is no {board.form.upper()}: {error}")
    faults += odd.lines()
    return rows


def _check_header(header: Sequence[Any], faults: list[str]) -> bool:
    """Whether what follows a header can be read; what is wrong with it is added to `faults`."""
    if len(header) > MOST_COLUMNS:
        faults.append(f"has more than {MOST_COLUMNS} columns")
        return False
    if twice := sorted(str(name) for name, count in Counter(header).items() if name is not None and count > 1):
        faults.append(f"names a column twice: {', '.join(twice)}")
    return True


def _read_xlsx(content: bytes, faults: list[str]) -> list[Row]:
    """The rows of a workbook's first sheet."""
    import openpyxl  # takes long to import

    if not content.startswith(b"PK\x03\x04"):
        begins = content[:40].decode("utf-8", "replace")
        faults.append(f"is no xlsx workbook: it begins with {quoted(begins)}, as a file of text; write it as xlsx")
        return []
    rows: list[Row] = []
    odd = Tally()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > LARGEST:
                faults.append(f"unpacks to {size} bytes, more than {LARGEST}")
                return []
            if _has_too_many_tags(archive):
                faults.append(f"holds more than {_MOST_TAGS} tags of XML")
                return []
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, keep_links=False)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # some writers name one cell only
        header: list[Any] = []
        # Bounded: between a cell and one that names a place far away, openpyxl makes up all the others.
        for number, cells in enumerate(sheet.iter_rows(max_row=MOST_ROWS, max_col=MOST_COLUMNS + 1), start=1):
            if number == 1:
                header = [cell.value for cell in cells]
                while header and header[-1] is None:
                    header.pop()
                if not _check_header(header, faults):
                    return []
                continue
            if all(cell.value is None for cell in cells):
                continue
            for name, cell in zip(header, cells, strict=False):
                if cell.data_type in ("f", "e"):
                    kind = "a formula" if cell.data_type == "f" else "an error"
                    odd.add(f"{name} is {kind}, expected text", f"row {number}", quoted(cell.value))
            values = {str(name): cell.value for name, cell in zip(header, cells, strict=False) if name is not None}
            rows.append(Row(f"row {number}", values))
    except Exception as error:  # whatever openpyxl says to a damaged workbook
        faults.append(f"cannot be read as a workbook ({type(error).__name__}: {error})")
    faults += odd.lines()
    return rows


def _has_too_many_tags(archive: zipfile.ZipFile) -> bool:
    """Whether a workbook takes too much memory when it is read; it is unpacked block by block to find out."""
    count = 0
    for member in archive.infolist():
        with archive.open(member) as stream:
            while block := stream.read(_BLOCK):
                if (count := count + block.count(b"<")) > _MOST_TAGS:
                    return True
    return False


# --- writing ----------------------------------------------------------------------------------------------------------


def write_rows(board: Board, rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write a board's file; two writings of the same rows are the same bytes, but for the time in a workbook.

    Args:
        board: its record.
        rows: column -> value, every one checked.
        file: where to.
    """
    names = [column.name for column in board.columns]
    ordered = [{name: row[name] for name in names if name in row} for row in rows]
    if board.form == "xlsx":
        _write_xlsx(names, ordered, file)
        return
    with file.open("w", encoding=board.encoding, newline="") as stream:
        if board.form in ("csv", "tsv"):
            form: Any = {"delimiter": "\t" if board.form == "tsv" else ",", "lineterminator": "\n"}
            plain, quoting = csv.writer(stream, **form), csv.writer(stream, **form, quoting=csv.QUOTE_NONNUMERIC)
            plain.writerow(names)
            for row in ordered:
                cells = [row.get(name) for name in names]
                # Python leaves a lone carriage return bare, and readers take it for the end of a line.
                held = any(isinstance(cell, str) and "\r" in cell for cell in cells)
                (quoting if held else plain).writerow(cells)
        elif board.form == "jsonl":
            stream.writelines(f"{json.dumps(row)}\n" for row in ordered)
        elif board.form == "json list":
            _write_json(stream, "[]", map(json.dumps, ordered))
        else:
            _write_json(stream, "{}", (_pair(board, row) for row in ordered))


def _pair(board: Board, row: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in row.items() if name != board.id.name}
    value = rest if len(board.columns) > 2 else rest[board.answer.name]
    return f"{json.dumps(str(row[board.id.name]))}: {json.dumps(value)}"


def _write_json(stream: io.TextIOBase, brackets: str, elements: Iterable[str]) -> None:
    """One element a line, so that a line number finds it."""
    stream.write(brackets[0])
    for number, element in enumerate(elements):
        stream.write(f"{',' if number else ''}\n{element}")
    stream.write(f"\n{brackets[1]}\n")


def _write_xlsx(names: Sequence[str], rows: Iterable[Mapping[str, Any]], file: Path) -> None:
    import openpyxl  # takes long to import
    from openpyxl.cell import WriteOnlyCell

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(names)

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        written = WriteOnlyCell(sheet, value=value)
        written.data_type = "s"  # what looks like a formula or an error stays text
        return written

    for row in rows:
        sheet.append([cell(row.get(name)) for name in names])
    book.save(file)
