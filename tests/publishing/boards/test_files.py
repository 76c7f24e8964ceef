"""Files of boards, of any origin: read with every fault and its place, and written so that they read back the same."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pytest

from plam_eval.publishing.boards import files as board_files
from plam_eval.publishing.boards.files import check_file, read_rows, write_rows
from plam_eval.publishing.boards.record import Board, Column, entry
from plam_eval.publishing.boards.table import BOARDS

DOCVQA, SEED, VIZWIZ, GQA = (
    replace(BOARDS[name], questions=None) for name in ("docvqa", "seedbench_2_plus", "vizwiz", "gqa")
)
TABLE = Board(
    "table",
    "A table",
    "xlsx",
    Column("index", int),
    Column("prediction"),
    entry("submission"),
    more=(Column("question"), Column("C", needed=False)),
    order=("index", "question", "C", "prediction"),
)
OBJECT = replace(DOCVQA, form="json object", id=Column("id"), answer=Column("answer"), more=())
SEVERAL = replace(OBJECT, more=(Column("score", object),))
NASTY = [
    "=1+1",
    "+1",
    "@x",
    "#N/A",
    "nan",
    "None",
    "007",
    "1e5",
    "TRUE",
    " spaced ",
    'a "b", c',
    "two\nlines",
    "a return\rin it",
    "\u6771\u4eac",
    "",
]


def checked(board: Board, content: str | bytes, folder: Path, questions: Any = None) -> Any:
    file = folder / f"file{board.suffix}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return check_file(board, file, questions)


def rows_of(answers: list[str]) -> str:
    return json.dumps([{"questionId": n, "answer": answer} for n, answer in enumerate(answers)], indent=1)


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["xlsx", "csv", "tsv", "json list", "jsonl"])
def test_text_comes_back_as_it_was(tmp_path: Path, form: Any) -> None:
    board = replace(TABLE, form=form)
    rows = [{"index": n, "question": "?", "C": "c", "prediction": text} for n, text in enumerate(NASTY)]
    file = tmp_path / f"file{board.suffix}"
    write_rows(board, rows, file)
    faults: list[str] = []
    back = [dict(row.values) for row in read_rows(board, file, faults)]
    assert faults == [] and [(row["index"], row["prediction"] or "") for row in back] == list(enumerate(NASTY))
    assert list(back[0]) == ["index", "question", "C", "prediction"]
    assert check_file(board, file).problems == []


def test_a_worksheet_holds_text_where_pandas_would_write_a_formula(tmp_path: Path) -> None:
    file = tmp_path / "file.xlsx"
    write_rows(TABLE, [{"index": n, "question": "?", "prediction": text} for n, text in enumerate(NASTY[:-1])], file)
    sheet = openpyxl.load_workbook(file).worksheets[0]
    assert {cell.data_type for cell in sheet["D"]} == {"s"}
    frame = pd.read_excel(file, keep_default_na=False)
    assert list(frame["prediction"]) == NASTY[:-1] and list(frame["index"]) == list(range(len(NASTY) - 1))
    assert frame["index"].dtype == "int64"


@pytest.mark.parametrize(("board", "value"), [(OBJECT, "red"), (SEVERAL, {"answer": "red", "score": [1, None]})])
def test_an_object_is_keyed_by_its_ids(tmp_path: Path, board: Board, value: Any) -> None:
    row = {"id": "test_1", **(value if isinstance(value, dict) else {"answer": value})}
    file = tmp_path / "file.json"
    write_rows(board, [row], file)
    assert json.loads(file.read_text()) == {"test_1": value}
    faults: list[str] = []
    assert [dict(each.values) for each in read_rows(board, file, faults)] == [row] and faults == []


# --- reading what is whole --------------------------------------------------------------------------------------------


def test_a_file_of_another_layout_is_whole(tmp_path: Path) -> None:
    for text in (
        rows_of(["a", "b"]),
        json.dumps(json.loads(rows_of(["a", "b"]))),
        rows_of(["a", "b"]).replace("\n", "\r\n"),
    ):
        result = checked(DOCVQA, text, tmp_path, {0, 1})
        assert (result.problems, result.rows) == ([], 2)
    assert (
        checked(
            SEED, '{"question_id": "1", "prediction": "A"}\r\n{"question_id": "2", "prediction": ""}', tmp_path
        ).empty
        == 1
    )


def test_a_table_with_columns_beside_is_whole_and_they_are_said(tmp_path: Path) -> None:
    board = replace(TABLE, form="tsv")
    result = checked(board, "\ufeffindex\tquestion\tC\tprediction\tanswer\n1\t?\t\tA\tB\n", tmp_path)
    assert result.problems == [] and "'answer', which the board does not have" in result.notes[0]


def test_answers_that_are_not_normalised_are_said_and_no_fault(tmp_path: Path) -> None:
    board = replace(BOARDS["vqav2"], questions=None)
    result = checked(board, '[{"question_id": 1, "answer": "The dog."}]', tmp_path)
    assert result.problems == [] and "answer not in lower case" in result.notes[0]


# --- reading what is not ----------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Board, str | bytes, str]] = {
    "empty": (DOCVQA, "", "found nothing"),
    "an object": (DOCVQA, '{"1": "a"}', "expected a list of objects"),
    "a list": (OBJECT, "[]", "expected one object"),
    "torn": (
        DOCVQA,
        '[{"questionId": 1, "answer": "a"},\n{"questionId": 2, "ans',
        "not whole JSON: Unterminated string",
    ),
    "more behind": (DOCVQA, '[{"questionId": 1, "answer": "a"}] x', "Extra data"),
    "no comma": (DOCVQA, '[{"questionId": 1, "answer": "a"}\n{"questionId": 2, "answer": "b"}]', "line 2 column 1"),
    "mark": (DOCVQA, b"\xef\xbb\xbf" + rows_of(["a"]).encode(), "byte order mark"),
    "utf-16": (DOCVQA, rows_of(["a"]).encode("utf-16"), "UTF-16"),
    "latin-1": (DOCVQA, rows_of(["a"]).replace("a", "\xe9").encode("latin-1"), "not utf-8"),
    "NUL": (DOCVQA, rows_of(["a"]).encode().replace(b"a", b"\0", 1), "not whole JSON"),
    "NaN": (DOCVQA, '[{"questionId": 1, "answer": NaN}]', "NaN is not JSON"),
    "key twice": (DOCVQA, '[\n{"questionId": 1, "answer": "a", "answer": "b"}]', "line 2: 'answer' stands twice"),
    "digits": (DOCVQA, '[{"questionId": ' + "9" * 5000 + ', "answer": "a"}]', "questionId of another type"),
    "float": (DOCVQA, '[{"questionId": 262144.0, "answer": "a"}]', "found 262144.0"),
    "text": (DOCVQA, '[{"questionId": "262144", "answer": "a"}]', "found '262144'"),
    "truth": (DOCVQA, '[{"questionId": true, "answer": "a"}]', "found True"),
    "a number": (DOCVQA, '[{"questionId": 1, "answer": 2}]', "answer of another type"),
    "null": (DOCVQA, '[{"questionId": 1, "answer": null}]', "answer of another type"),
    "half a pair": (DOCVQA, '[{"questionId": 1, "answer": "\\ud83d"}]', "surrogate"),
    "other names": (DOCVQA, '[{"question_id": 1, "answer": "a"}]', "did you mean questionId?"),
    "no object": (DOCVQA, '[{"questionId": 1, "answer": "a"}, 2]', "entry 2"),
    "deep": (DOCVQA, "[" * 100_000, "nested too deeply"),
    "twice": (
        DOCVQA,
        '[{"questionId": 1, "answer": "a"},\n {"questionId": 1, "answer": "b"}]',
        "line 2: 1, as in line 1",
    ),
    "jpg twice": (VIZWIZ, '[{"image": "VizWiz_test_00000000.jpg.jpg", "answer": ""}]', "image outside the form"),
    "no zeros": (VIZWIZ, '[{"image": "VizWiz_test_0.jpg", "answer": ""}]', "image outside the form"),
    "number of GQA": (GQA, '[{"questionId": 20, "prediction": "a"}]', "questionId of another type"),
    "stock's list": (SEED, '[{"question_id": "1", "prediction": "A"}]', "is a JSON list"),
    "empty line": (
        SEED,
        '{"question_id": "1", "prediction": "A"}\n\n{"question_id": "2", "prediction": "A"}',
        "line 2",
    ),
    "torn line": (SEED, '{"question_id": "1", "prediction": "A"}\n{"quest', "no JSON object (1): line 2"),
    "words": (SEED, '{"question_id": "1", "prediction": "The answer"}', "expected A, B, C or D"),
    "csv as xlsx": (TABLE, "index,question,prediction\n1,?,A\n", "is no xlsx workbook"),
    "torn workbook": (TABLE, b"PK\x03\x04 torn", "cannot be read as a workbook"),
    "xlsx as json": (DOCVQA, b"PK\x03\x04 whatever", "is a workbook"),
    "ragged": (replace(TABLE, form="csv"), "index,question,C,prediction\n1,?\n", "another number of cells"),
    "open quote": (replace(TABLE, form="csv"), 'index,question,C,prediction\n1,?,c,"a\n', "is no CSV"),
    "NUL in a table": (replace(TABLE, form="csv"), "index,question,C,prediction\n1,?,c,\0\n", "NUL bytes"),
    "zeros in a table": (replace(TABLE, form="csv"), "index,question,C,prediction\n007,?,c,a\n", "found '007'"),
    "a column twice": (
        replace(TABLE, form="csv"),
        "index,question,C,prediction,C\n1,?,c,a,c\n",
        "names a column twice: C",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_board_would_refuse_is_named(tmp_path: Path, case: str) -> None:
    board, content, said = BAD[case]
    assert said in "\n".join(checked(board, content, tmp_path).problems)


def test_every_fault_is_told_with_its_place_and_number(tmp_path: Path) -> None:
    rows = [{"questionId": n, "answer": "a"} for n in range(20)]
    for n in range(10):
        rows[n]["answer"] = n
    rows[12] = {"questionId": 11, "answer": "b"}
    rows[13] = {"questionId": 99, "answer": "b"}
    text = "[" + ",\n".join(map(json.dumps, rows)) + "]"
    problems = "\n".join(checked(DOCVQA, text, tmp_path, set(range(20))).problems)
    assert "expected text (10): line 1: found 0" in problems and "and 5 more" in problems
    assert "line 13: 11, as in line 12" in problems and "line 14: 99" in problems
    assert "without an answer, of 20 questions (2): 12; 13" in problems
    problems = "\n".join(checked(replace(DOCVQA, questions=40), text, tmp_path).problems)
    assert "another number of questions: found 19, expected 40" in problems
    problems = "\n".join(checked(DOCVQA, text, tmp_path, set(range(40))).problems)
    assert "(22): 12; 13; 20; 21; 22; and 17 more" in problems, "five of them are named"


def _formula(sheet: Any) -> None:
    sheet["D2"] = "=1+1"


def _error(sheet: Any) -> None:
    sheet["D2"] = "#N/A"
    sheet["D2"].data_type = "e"


def _float(sheet: Any) -> None:
    sheet["A2"] = 1.5


def _truth(sheet: Any) -> None:
    sheet["D2"] = True


def _no_answer_column(sheet: Any) -> None:
    sheet["D1"] = "Prediction"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_formula, "prediction is a formula"),
        (_error, "prediction is an error"),
        (_float, "index of another type"),
        (_truth, "found True"),
        (_no_answer_column, "no prediction"),
    ],
)
def test_cells_that_are_no_text_are_named_by_their_row(
    tmp_path: Path, change: Callable[[Any], None], said: str
) -> None:
    file = tmp_path / "file.xlsx"
    write_rows(TABLE, [{"index": 1, "question": "?", "C": "c", "prediction": "A"}], file)
    book = openpyxl.load_workbook(file)
    change(book.worksheets[0])
    book.save(file)
    problems = "\n".join(check_file(TABLE, file).problems)
    assert said in problems and "row 2" in problems


def test_a_workbook_that_names_its_first_cell_only_is_read_whole(tmp_path: Path) -> None:
    plain, odd = tmp_path / "plain.xlsx", tmp_path / "odd.xlsx"
    pd.DataFrame({"index": [1, 2], "question": "?", "C": "c", "prediction": "A"}).to_excel(plain, index=False)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(odd, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b'<dimension ref="A1:D3"', b'<dimension ref="A1:A1"'))
    assert odd.read_bytes() != plain.read_bytes()
    assert (check_file(TABLE, odd).problems, check_file(TABLE, odd).rows) == ([], 2)


def test_a_cell_holds_so_many_characters(tmp_path: Path) -> None:
    for board, problems in ((TABLE, 1), (replace(TABLE, form="csv"), 0)):
        rows = [board_files.Row("document 0", {"index": 1, "question": "?", "prediction": "x" * 32_768})]
        said = board_files.check_rows(board, rows).problems
        assert len(said) == problems and all("32768 characters" in each for each in said)


def test_what_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.xlsx"
    write_rows(TABLE, [{"index": 1, "question": "?", "prediction": "x" * 30_000}], file)
    monkeypatch.setattr(board_files, "LARGEST", file.stat().st_size + 1)
    assert "unpacks to" in check_file(TABLE, file).problems[0]
    monkeypatch.setattr(board_files, "LARGEST", 100)
    assert "is larger than 100 bytes" in check_file(TABLE, file).problems[0]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert check_file(DOCVQA, tmp_path).problems == [
        "is a folder, and a file is expected; name the file that the board takes"
    ]
    with pytest.raises(FileNotFoundError):
        check_file(DOCVQA, tmp_path / "nowhere")


def _sheet(rows: str) -> bytes:
    """A workbook with this XML as the rows of its sheet."""
    plain, made = io.BytesIO(), io.BytesIO()
    openpyxl.Workbook().save(plain)
    xml = f'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>{rows}</sheetData>'
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            sheet = name == "xl/worksheets/sheet1.xml"
            target.writestr(name, f"{xml}</worksheet>" if sheet else source.read(name))
    return made.getvalue()


@pytest.mark.parametrize(
    ("form", "content", "said"),
    [
        ("json list", "[{" + ",".join(f'"{n}":1' for n in range(200_000)) + ',"z":1,"z":2}]', "'z' stands twice"),
        ("jsonl", "{" + ",".join(f'"{n}":1' for n in range(200_000)) + ',"z":1,"z":2}\n', "'z' stands twice"),
        ("csv", ",".join(map(str, range(200_000))) + "\n", "more than 256 columns"),
        ("jsonl", "{}\n" * 300, "has more than 99 lines"),
        ("json list", "[" + ",".join(["{}"] * 300) + "]", "holds more than 99 answers"),
        ("csv", "id,answer\n" + "1,A\n" * 300, "holds more than 99 rows"),
        ("xlsx", _sheet("<row>" + '<c t="n"/>' * 3000 + "</row>"), "more than 2000 tags"),
        ("xlsx", _sheet("<row>" + "<c><v>1</v></c>" * 300 + "</row>"), "more than 256 columns"),
        ("xlsx", _sheet('<row r="9999999999999"><c r="A9999999999999"/></row>'), "holds none"),
    ],
)
def test_a_file_that_would_take_hours_is_refused_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any, content: str | bytes, said: str
) -> None:
    """Where limits did not hold, real files of these kinds would take hours."""
    monkeypatch.setattr(board_files, "MOST_ROWS", 99)
    monkeypatch.setattr(board_files, "_MOST_TAGS", 2000)
    problems = checked(replace(DOCVQA, form=form), content, tmp_path).problems
    assert said in "\n".join(problems)


def test_a_row_of_many_names_is_one_fault(tmp_path: Path) -> None:
    rows = [dict.fromkeys(map(str, range(1000)), 1), *({f"n{n}": 1} for n in range(500))]
    problems = checked(DOCVQA, json.dumps(rows), tmp_path).problems
    assert len(problems) < 120
    assert any("something else wrong (4" in problem for problem in problems)
