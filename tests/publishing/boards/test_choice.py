"""MMBench, MMMU, MMMU-Pro, MM-Vet, MathVista: logs of the stock tasks become files that the boards' programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pytest

from plam_eval import api
from plam_eval.publishing.boards.submission import SubmissionError
from plam_eval.publishing.boards.table import BOARDS, without_board
from tests.helpers import board_logs, board_parsers_mm
from tests.helpers.board_logs import PRO, QUESTIONS, STEP, TRUTHS, write_run


def ids_file(folder: Path, ids: list[Any]) -> Path:
    """A board's questions, as plain ids."""
    file = folder / "ids.json"
    file.write_text(json.dumps([{"id": name, "index": name, "pid": name, "question_id": name} for name in ids]))
    return file


def said_of(submission: Any, word: str) -> str:
    notes = [note for note in submission.notes if word in note]
    assert len(notes) == 1, submission.notes
    return str(notes[0])


# --- MMBench ----------------------------------------------------------------------------------------------------------


def mmbench(folder: Path, answers=lambda n: "A", *, chinese=False, change=None, **rows) -> Path:
    given = board_logs.mmbench_rows(chinese=chinese, **rows)
    log = board_logs.mmbench_log(given, answers, chinese=chinese)
    if change is not None:
        log = change(log)
    return write_run(folder, {f"mmbench_{'cn' if chinese else 'en'}_test": log})


@pytest.mark.parametrize("chinese", [False, True])
@pytest.mark.parametrize(("first", "version"), [(7, ""), (3005, "_V11")])
def test_the_server_takes_mmbench_for_what_it_is(tmp_path, chinese, first, version):
    rows = board_logs.mmbench_rows(chinese=chinese, first=first)
    words = ("A", "(B)", "it is C.", "D", "none of them", "狗" if chinese else "dog")
    run = mmbench(tmp_path, lambda n: words[n % 6], chinese=chinese, first=first)
    questions = ids_file(tmp_path, [row["index"] for row in rows])
    [made] = api.submit(run, board=f"mmbench_{'cn' if chinese else 'en'}", questions=questions)
    truths = {row["index"]: next(x for x in "ABCD" if row[x] == rows[0]["B"]) for row in rows}
    dataset, right = board_parsers_mm.mmbench_server(made.file, truths)
    assert dataset == f"MMBench{'_CN' if chinese else ''}{version}"
    expected: dict[int, bool] = {}
    for n, row in enumerate(rows):
        choices = {x: row[x] for x in "ABCD" if row[x] != "nan"}
        hit = board_parsers_mm.letter_of(words[n % 6], choices) == truths[row["index"]]
        expected[row["index"] % STEP] = expected.get(row["index"] % STEP, True) and hit
    assert right == expected
    assert f"version {'1.1 (V11)' if version else '1.0'}" in said_of(made, "largest index")
    assert api.check_submission(made.file, made.board, questions=questions).problems == []


def test_mmbench_keeps_every_word_and_nothing_becomes_a_formula(tmp_path):
    odd = ("=1+1", "-A", "+B", "@C", "A\x07B\x00", "12", "a\r\nb", "'A", "#REF!", "nan")
    run = mmbench(tmp_path, lambda n: odd[n % len(odd)] or "A", first=3005)
    [made] = api.submit(run, board="mmbench_en")
    sheet = openpyxl.load_workbook(made.file).active
    header, *cells = list(sheet.iter_rows())
    names = [cell.value for cell in header]
    assert {cell.data_type for row in cells for cell in row} <= {"s", "n", "inlineStr"}
    predictions = [row[names.index("prediction")].value for row in cells]
    assert predictions[:4] == ["=1+1", "-A", "+B", "@C"] and predictions[5:8] == ["12", "a\nb", "'A"]
    assert cells[0][names.index("A")].value == "=cat"
    assert predictions[4] == "A B" and "(1)" in said_of(made, "control characters")
    assert all(row[names.index("index")].data_type == "n" for row in cells)


def test_what_the_data_set_writes_as_nan_is_empty(tmp_path):
    [made] = api.submit(mmbench(tmp_path, chinese=True, first=3005), board="mmbench_cn")
    header, *cells = openpyxl.load_workbook(made.file).active.values
    rows = [dict(zip(header, row, strict=True)) for row in cells]
    assert all(row[name] not in ("nan", "NaN") for row in rows for name in header)
    two = [row for row in rows if row["index"] % STEP == 3007]
    assert len(two) == 2 and all(not row["C"] and not row["D"] and not row["hint"] for row in two)
    # The model was asked so, which is said, with how many and an example
    assert "(5)" in said_of(made, '"nan "') and "图中1" in said_of(made, '"nan "')
    english = api.submit(mmbench(tmp_path / "en", first=3005), board="mmbench_en")[0]
    assert not [note for note in english.notes if '"nan "' in note]


def lacks(index):
    return lambda log: [
        {**line, "doc_id": number}
        for number, line in enumerate(line for line in log if line["submission"]["index"] != index)
    ]


@pytest.mark.parametrize(
    ("index", "question"),
    [(3005 + 3 * STEP, 3005), (3005, 3005), (3006 + STEP, 3006), (3007 + STEP, 3007)],
    ids=["last of four", "first", "one of three", "second of two"],
)
def test_a_rotation_that_is_missing_is_refused(tmp_path, index, question):
    run = mmbench(tmp_path, first=3005, change=lacks(index))
    with pytest.raises(SubmissionError, match=f"all of their rotations .1.: {question} lacks {index}"):
        api.submit(run, board="mmbench_en")


def test_a_whole_number_of_version_one_is_asked_for(tmp_path):
    with pytest.raises(SubmissionError, match=r"version 1\.0.* found 9 rows of 3 questions, expected 6666 of 1784"):
        api.submit(mmbench(tmp_path), board="mmbench_en")


def test_as_many_rows_as_version_one_has_are_all_of_them(tmp_path, monkeypatch):
    """What turns is told by the choices' texts, which the data set's may differ in: its numbers say more."""
    monkeypatch.setattr("plam_eval.publishing.boards.choice._V1_ROWS", 8)
    monkeypatch.setattr("plam_eval.publishing.boards.choice._V1_QUESTIONS", 3)
    [made] = api.submit(mmbench(tmp_path, change=lacks(7 + 3 * STEP)), board="mmbench_en")
    assert made.rows == 8


@pytest.mark.parametrize("form", [float, str, lambda index: f"{index}.0"], ids=["float", "str", "text of a float"])
def test_indexes_are_numbers_however_they_were_logged(tmp_path, form):
    def change(log):
        for each in log:
            for name in ("submission", "gpt_eval_score"):
                each[name] = {**each[name], "index": form(each[name]["index"])}
        return log

    [made] = api.submit(mmbench(tmp_path, first=3005, change=change), board="mmbench_en")
    rows = list(openpyxl.load_workbook(made.file).active.iter_rows(min_row=2, max_col=2, values_only=True))
    assert rows[:2] == [(3005, 3005), (3005 + STEP, 3005)] and made.rows == 9


def test_files_of_another_language_or_split_are_refused(tmp_path):
    run = mmbench(tmp_path, chinese=True, first=3005)
    with pytest.raises(SubmissionError, match="most questions are Chinese"):
        api.submit(run, board="mmbench_en", task="mmbench_cn_test")
    dev = mmbench(tmp_path / "dev", first=3005, split="dev")
    with pytest.raises(SubmissionError, match="rows of the split dev, expected test"):
        api.submit(dev, board="mmbench_en")


def test_a_file_of_questions_that_is_not_the_known_one_is_said(tmp_path):
    run = mmbench(tmp_path, first=3005)
    tsv = tmp_path / "MMBench_TEST_EN_V11.tsv"
    rows = board_logs.mmbench_rows(first=3005)
    tsv.write_text("index\tquestion\timage\n" + "".join(f"{row['index']}\tq\t{'x' * 200_000}\n" for row in rows))
    [made] = api.submit(run, board="mmbench_en", questions=tsv)
    assert "8d1a704e791df6f5d9fb3ef782b65365" in said_of(made, "MD5")
    assert any("MD5" in note for note in api.check_submission(made.file, "mmbench_en", questions=tsv).notes)
    tsv.write_text(tsv.read_text() + "9999\tq\tx\n")
    with pytest.raises(SubmissionError, match=r"without an answer, of 10 questions \(1\): 9999"):
        api.submit(run, board="mmbench_en", questions=tsv)


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_tables_of_text_are_checked_as_the_server_took_them(tmp_path, suffix, separator):
    rows = board_logs.mmbench_rows()
    questions = ids_file(tmp_path, [row["index"] for row in rows])
    [made] = api.submit(mmbench(tmp_path / "run"), board="mmbench_en", questions=questions)
    table = pd.read_excel(made.file, keep_default_na=False)
    file = tmp_path / f"answers.{suffix.upper()}"
    table.to_csv(file, index=False, sep=separator)
    assert api.check_submission(file, "mmbench_en", questions=questions).problems == []
    table.assign(index=[*table["index"][:-1], table["index"][0]]).to_csv(file, index=False, sep=separator)
    assert any("twice" in problem for problem in api.check_submission(file, "mmbench_en").problems)
    file.rename(tmp_path / "answers.xlsx")
    [problem] = api.check_submission(tmp_path / "answers.xlsx", "mmbench_en").problems
    assert "workbook" in problem


def test_stock_workbooks_are_checked(tmp_path):
    """What lmms-eval writes itself: its column of letters is whole, and what is absent stands there as "nan"."""
    import pandas as pd

    log = board_logs.mmbench_log(board_logs.mmbench_rows(first=3005), lambda n: "B")
    file = tmp_path / "mmbench_en_test_results.xlsx"
    pd.DataFrame([line["submission"] for line in log]).to_excel(file, index=False)
    checked = api.check_submission(file, "mmbench_en")
    assert checked.rows == 9 and not [problem for problem in checked.problems if "rotation" in problem]
    pd.DataFrame([line["submission"] for line in log]).drop(columns=["C"]).to_excel(file, index=False)
    assert any("no column C" in problem for problem in api.check_submission(file, "mmbench_en").problems)


# --- MMMU -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_images", [False, True])
def test_mmmu_files_hold_no_drawn_letter(tmp_path, group_images):
    task = "mmmu_test_group_img" if group_images else "mmmu_test"
    questions = ids_file(tmp_path, [question.id for question in QUESTIONS])
    files = []
    for seed in range(3):
        log = board_logs.mmmu_log(group_images=group_images, seed=seed)
        run = write_run(tmp_path / str(seed), {task: log})
        [made] = api.submit(run, board="mmmu_test", questions=questions)
        files.append(made)
    answers = json.loads(files[0].file.read_text())
    assert len({made.sha256 for made in files}) == 1, "the draws of three seeds differ, the files do not"
    assert answers == {q.id: (q.letter or "") if q.options else q.said for q in QUESTIONS}
    note = said_of(files[0], "no letter in an answer")
    assert "(3)" in note and "test_Art_Theory_4" in note and "I cannot tell." in note and "lmms-eval draws" in note


def test_mmmu_counts_what_has_no_letter_as_wrong(tmp_path):
    questions = ids_file(tmp_path, [question.id for question in QUESTIONS])
    run = write_run(tmp_path, {"mmmu_test": board_logs.mmmu_log()})
    [made] = api.submit(run, board="mmmu_test", questions=questions)
    truths: dict[str, dict[str, Any]] = {
        q.id: {"question_type": "multiple-choice" if q.options else "open", "ground_truth": q.letter or "B"}
        for q in QUESTIONS
    }
    truths["test_Math_6"]["ground_truth"] = ["12", "x"]
    truths["test_Math_7"]["ground_truth"] = "SUM(A1:A2)"
    counted = board_parsers_mm.mmmu_eval_only(made.file, truths)
    assert counted == {"Accounting": (2, 1.0), "Art_Theory": (2, 0.5), "Math": (4, 0.5)}


def test_a_prompt_without_choices_is_refused_and_nothing_is_guessed(tmp_path):
    log = board_logs.mmmu_log()
    log[0] |= {"input": "Which rate?"}
    with pytest.raises(SubmissionError, match=r"prompt lists none, so that a drawn letter cannot be told"):
        api.submit(write_run(tmp_path, {"mmmu_test": log}), board="mmmu_test")


def test_a_logged_letter_that_was_not_read_from_the_answer_is_said(tmp_path):
    log = board_logs.mmmu_log()
    log[0]["mmmu_acc"]["parsed_pred"] = ["D"]
    questions = ids_file(tmp_path, [question.id for question in QUESTIONS])
    [made] = api.submit(write_run(tmp_path, {"mmmu_test": log}), board="mmmu_test", questions=questions)
    assert json.loads(made.file.read_text())["test_Accounting_1"] == "B"
    assert "is B, logged" in said_of(made, "another letter")


def test_mmmu_without_its_metric_is_read_from_submission_and_prompt(tmp_path):
    log = [{k: v for k, v in line.items() if not k.startswith("mmmu_acc")} for line in board_logs.mmmu_log()]
    questions = ids_file(tmp_path, [question.id for question in QUESTIONS])
    [made] = api.submit(write_run(tmp_path, {"mmmu_test": log}), board="mmmu_test", questions=questions)
    assert json.loads(made.file.read_text()) == {q.id: (q.letter or "") if q.options else q.said for q in QUESTIONS}


def test_mmmu_knows_its_ids_and_their_number(tmp_path):
    from lmms_eval.tasks.mmmu.utils import DOMAIN_CAT2SUB_CAT

    log = board_logs.mmmu_log()
    with pytest.raises(SubmissionError, match="found 8, expected 10500"):
        api.submit(write_run(tmp_path, {"mmmu_test": log}), board="mmmu_test")
    board = BOARDS["mmmu_test"]
    names = [f"test_{subject}_12" for subjects in DOMAIN_CAT2SUB_CAT.values() for subject in subjects]
    assert len(names) == 30 and all(map(board.id.fits, names)) and not board.id.fits("validation_Art_1")
    assert board.together([{"id": name} for name in names], False) == ([], [])
    file = tmp_path / "other.json"
    file.write_text('{"test_Arts_1": "A"}')
    assert "ids of no subject of MMMU (1): test_Arts_1" in api.check_submission(file, "mmmu_test").problems


def test_mmmu_pro(tmp_path):
    board = "mmmu_pro_standard"
    questions = ids_file(tmp_path, [question.id for question in PRO])
    runs = [write_run(tmp_path / str(seed), {board: board_logs.mmmu_pro_log(seed)}) for seed in (0, 1)]
    standard, again = (api.submit(run, board=board, questions=questions)[0] for run in runs)
    assert json.loads(standard.file.read_text()) == {"test_Physics_1": "J", "validation_Music_2": ""}
    assert standard.sha256 == again.sha256 and "validation_Music_2" in said_of(standard, "no letter")
    vision = [{**line, "input": "Answer with the option letter."} for line in board_logs.mmmu_pro_log()]
    run = write_run(tmp_path / "vision", {"mmmu_pro_vision": vision})
    [made] = api.submit(run, board="mmmu_pro_vision", questions=questions)
    assert json.loads(made.file.read_text()) == {"test_Physics_1": "J", "validation_Music_2": ""}
    assert "several questions" in without_board("mmmu_pro_composite")


@pytest.mark.parametrize(
    ("said", "logged", "letter"),
    [
        ("B. I see it.", "B", "B"),  # of four choices
        ("B. I see it.", "I", "I"),  # of ten
        ("I cannot tell.", "C", "I"),  # of four, where it was drawn: no choice, and counted as wrong
        ("Nothing", "C", ""),
        ("(D)", "", "D"),  # as ours logs what is not read
    ],
)
def test_letters_of_choices_that_stand_in_a_picture(tmp_path, said, logged, letter):
    log = [board_logs.line(0, "?", said, {"mmmu_acc": {"id": "test_Art_1", "answer": "A", "parsed_pred": logged}})]
    run = write_run(tmp_path, {"mmmu_pro_vision": log})
    [made] = api.submit(run, board="mmmu_pro_vision", questions=ids_file(tmp_path, ["test_Art_1"]))
    assert json.loads(made.file.read_text()) == {"test_Art_1": letter}


# --- MM-Vet, MathVista ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("board", "version"), [("mmvet", 1), ("mmvetv2", 2)])
def test_mmvet(tmp_path, board, version):
    answers = {f"v{version}_{n}": said for n, said in enumerate(["x = 3", "a | b\nc", "", "=1", "é\u2028"])}
    run = write_run(tmp_path, {board: board_logs.mmvet_log(answers)})
    questions = ids_file(tmp_path, list(answers))
    [made] = api.submit(run, board=board, questions=questions)
    prompts = board_parsers_mm.mmvet_prompts(made.file, dict.fromkeys(answers, ("Q", "T")))
    assert prompts == {name: f"Q | T | {said} | " for name, said in answers.items()}
    with pytest.raises(SubmissionError, match=f"found 5, expected {BOARDS[board].questions}"):
        api.submit(run, board=board)
    other = board_logs.mmvet_log({f"v{3 - version}_0": "x"})
    with pytest.raises(SubmissionError, match="expected such as"):
        api.submit(write_run(tmp_path / "other", {board: other}), board=board)


def mathvista(folder: Path, split: str, answers: list[str], judge=lambda prompt: "") -> Any:
    task = "mathvista_test" if split == "test" else "mathvista_testmini_cot"
    run = write_run(folder, {task: board_logs.mathvista_log(answers, split=split, judge=judge)})
    [made] = api.submit(run, board=f"mathvista_{split}", questions=ids_file(folder, list(TRUTHS)))
    return made


def test_mathvista_is_scored_as_it_was_judged(tmp_path):
    made = mathvista(
        tmp_path, "testmini", ["It is (B)", "about 3", "1.50"], lambda p: "(B)" if "It is (B)" in p else "3"
    )
    assert board_parsers_mm.mathvista_to_extract(made.file) == []
    assert board_parsers_mm.mathvista_score(made.file, TRUTHS) == (1.0, [])
    problem = json.loads(made.file.read_text())["1"]
    assert (problem["question"], problem["response"], problem["true_false"]) == ("Who?", "It is (B)", True)


def test_an_extraction_that_is_no_number_has_no_prediction(tmp_path):
    made = mathvista(tmp_path, "testmini", ["dog", "some", "1.5"], lambda p: "some")
    assert board_parsers_mm.mathvista_score(made.file, TRUTHS) == (2 / 3, [])
    assert json.loads(made.file.read_text())["2"]["prediction"] is None


def test_what_no_judge_made_is_absent_and_said(tmp_path):
    made = mathvista(tmp_path / "mini", "testmini", ["I think a dog", "about 3", "1.5"])
    problems = json.loads(made.file.read_text())
    assert board_parsers_mm.mathvista_to_extract(made.file) == ["1", "2"]
    assert not {"extraction", "prediction", "true_false"} & {*problems["1"], *problems["2"]}
    assert problems["3"]["true_false"] is True and "(2)" in said_of(made, "no extraction")
    test = mathvista(tmp_path / "test", "test", ["dog", "3", "1.5"])
    problems = json.loads(test.file.read_text())
    assert all("true_false" not in each and each["extraction"] for each in problems.values())
    assert "(3)" in said_of(test, "no verdict")
