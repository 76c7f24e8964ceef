"""Workbooks for VLMEvalKit: of logs of the stock tasks, completed from VLMEvalKit's own tables of questions."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from plam_eval import api
from plam_eval.errors import DamagedFileError
from plam_eval.publishing.boards.submission import SubmissionError
from plam_eval.publishing.boards.table import BOARDS, without_board
from tests.helpers import board_logs, board_parsers_mm
from tests.helpers.board_logs import STEP, line, write_run

Row = dict[str, Any]


def table(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    """A table of VLMEvalKit's, with pictures."""
    file = folder / f"{name}.tsv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["image", *rows[0]], delimiter="\t")
        writer.writeheader()
        writer.writerows({"image": "x" * 150_000, **row} for row in rows)
    return file


# --- each data set: its table, its log, and what VLMEvalKit counts ----------------------------------------------------

SAID = ("A", "(B)", "neither", "it is B")
LETTERS = ("A", "A", "B", "B")


def mmstar() -> tuple[list[Row], list[Row]]:
    from lmms_eval.tasks.mmstar.utils import mmstar_doc_to_text, mmstar_process_results

    rows, log = [], []
    for n, (said, letter) in enumerate(zip(SAID, LETTERS, strict=True)):
        question, options = f"What is in {n}?", {"A": "=a cat", "B": "2", "C": "", "D": ""}
        document = {"index": n, "question": f"{question}\nOptions: A: =a cat, B: 2", "answer": letter}
        document |= {"category": "math", "l2_category": "geometry"}
        asked = mmstar_doc_to_text(document, {"pre_prompt": "", "post_prompt": "\nAnswer with the letter."})
        log.append(line(n, asked, said, mmstar_process_results(document, [said]), letter))
        rows.append({"index": n, "question": question, **options, "answer": letter, "category": "math"})
    return rows[::-1], log  # in whatever order


def realworldqa() -> tuple[list[Row], list[Row]]:
    from lmms_eval.tasks.realworldqa.utils import realworldqa_process_results

    rows, log = [], []
    for n, (said, letter) in enumerate(zip(SAID, LETTERS, strict=True)):
        question = f"Which way does car {n // 2} go?"  # two ask the same about two pictures
        log.append(
            line(n, f"{question}\n\nA. left\nB. right\nPlease answer with the letter.", said,
                 realworldqa_process_results({"answer": letter}, [said]), letter)
        )  # fmt: skip
        rows.append(
            {"index": n + 10, "question": question, "A": "left", "B": "right", "C": "", "D": "", "answer": letter}
        )
    return rows, log


def seedbench() -> tuple[list[Row], list[Row]]:
    from lmms_eval.tasks.seedbench_2_plus.utils import seed_doc_to_text, seed_process_result

    rows, log = [], []
    asked = {"img_token": "<image>", "post_prompt": "Answer with the letter."}
    for n, (said, letter) in enumerate(zip(SAID, LETTERS, strict=True)):
        texts = {"A": "one", "B": "two", "C": "three", "D": "four"}
        document = {"question": f"How many in {n}?", "answer": letter, "question_id": f"{n}_0"}
        document |= {f"choice_{letter}": text for letter, text in texts.items()}
        document |= {"question_image_type": "Chart", "question_image_subtype": "Chart"}
        log.append(line(n, seed_doc_to_text(document, asked), said, seed_process_result(document, [said]), letter))
        rows.append({"index": n, "question": document["question"], **texts, "answer": letter, "category": "Chart"})
    return rows, log


DATASETS: dict[str, tuple[str, Callable[[], tuple[list[Row], list[Row]]]]] = {
    "MMStar": ("mmstar", mmstar),
    "RealWorldQA": ("realworldqa", realworldqa),
    "SEEDBench2_Plus": ("seedbench_2_plus", seedbench),
}


@pytest.mark.parametrize("dataset", DATASETS)
def test_vlmevalkit_scores_the_workbook(tmp_path, dataset):
    task, make = DATASETS[dataset]
    rows, log = make()
    run = write_run(tmp_path, {task: log})
    [made] = api.submit(run, board=f"openvlm_{dataset}", questions=table(tmp_path, dataset, rows))
    assert board_parsers_mm.vlmevalkit_dataset(made.file) == dataset
    by_index = {row["index"]: row["answer"] for row in rows}
    right = board_parsers_mm.vlmevalkit_choice(made.file, by_index)
    assert [right[index] for index in sorted(right)] == [True, False, False, True]
    assert any("MD5" in note for note in made.notes)


@pytest.mark.parametrize("dataset", DATASETS)
def test_rows_that_were_asked_otherwise_are_refused(tmp_path, dataset):
    task, make = DATASETS[dataset]
    rows, log = make()
    run, board = write_run(tmp_path, {task: log}), f"openvlm_{dataset}"
    swapped = [{**row, "question": "How old?"} if n == 1 else row for n, row in enumerate(rows)]
    with pytest.raises(SubmissionError, match="another question or answer"):
        api.submit(run, board=board, questions=table(tmp_path, dataset, swapped))
    answers = [{**row, "answer": "C"} if n == 1 else row for n, row in enumerate(rows)]
    with pytest.raises(SubmissionError, match="another question or answer"):
        api.submit(run, board=board, questions=table(tmp_path, dataset, answers))
    with pytest.raises(SubmissionError, match=r"without an answer, of 5 questions \(1\): 99"):
        api.submit(
            run, board=board, questions=table(tmp_path, dataset, [*rows, {**rows[0], "index": 99, "answer": "D"}])
        )


def test_positions_are_not_trusted(tmp_path):
    rows, log = realworldqa()
    run = write_run(tmp_path, {"realworldqa": log})
    with pytest.raises(SubmissionError, match="another question or answer"):
        api.submit(run, board="openvlm_RealWorldQA", questions=table(tmp_path, "RealWorldQA", rows[::-1]))


def test_the_present_table_of_a_data_set_is_known():
    """As VLMEvalKit's image_mcq.py names them; of MMMU it names another one than before, and users have either."""
    files = dict(BOARDS["openvlm_MMMU_DEV_VAL"].question_files)
    assert files == dict.fromkeys(
        ["585e8ad75e73f75dcad265dfd0417d64", "521afc0f3bf341e6654327792781644d"], "MMMU_DEV_VAL.tsv"
    )


def test_a_word_is_the_choice_that_it_stands_at(tmp_path):
    """Where a question asks for a word, its table may have it as a choice."""
    rows, log = realworldqa()
    log[1] |= {"target": "Left", "filtered_resps": "left"}  # choice A, which is right
    run = write_run(tmp_path, {"realworldqa": log})
    [made] = api.submit(run, board="openvlm_RealWorldQA", questions=table(tmp_path, "RealWorldQA", rows))
    assert made.rows == len(rows)
    log[1]["target"] = "right"
    with pytest.raises(SubmissionError, match="another question or answer"):
        api.submit(
            write_run(tmp_path / "other", {"realworldqa": log}),
            board="openvlm_RealWorldQA",
            questions=table(tmp_path, "RealWorldQA", rows),
        )


def test_mme_joins_two_questions_of_a_picture(tmp_path):
    from lmms_eval.tasks.mme.utils import mme_doc_to_text, mme_process_results

    rows: list[Row] = []
    log: list[Row] = []
    said = ["Yes.", "No", "yes", "Yes"]
    for n, (answer, text) in enumerate(zip(("Yes", "No", "Yes", "No"), said, strict=True)):
        document = {"question": f"Is it a {('cat', 'dog')[n % 2]}? Please answer yes or no.", "answer": answer}
        document |= {"question_id": f"existence/00{n // 2}.jpg", "category": "existence"}
        asked = mme_doc_to_text(document, {"pre_prompt": "", "post_prompt": "\nOne word."})
        log.append(line(n, asked, text, mme_process_results(document, [text]), answer))
        rows.append(
            {"index": n, "category": "existence", "image_path": f"00{n // 2}.jpg", "question": document["question"]}
            | {"answer": answer}
        )
    run = write_run(tmp_path, {"mme": log})
    [made] = api.submit(run, board="openvlm_MME", questions=table(tmp_path, "MME", rows[::-1]))
    assert board_parsers_mm.vlmevalkit_mme(made.file) == {"existence": 75.0 + 50.0}


def test_mmmu_val_leaves_dev_out_and_draws_nothing(tmp_path):
    log = board_logs.mmmu_log()
    rows: list[Row] = []
    for n, (question, each) in enumerate(zip(board_logs.QUESTIONS, log, strict=True)):
        name = question.id.replace("test_", "validation_")
        each["mmmu_acc"]["id"] = name
        letters = dict.fromkeys("ABCDEFGHI", "") | dict(zip("ABCDEFGHI", question.options, strict=False))
        rows.append(
            {"index": n + 150, "id": name, "question": question.text, **letters, "answer": "B", "split": "validation"}
        )
    rows = [{**rows[0], "index": 1, "id": "dev_Art_1", "split": "dev"}, *rows]
    run = write_run(tmp_path, {"mmmu_val": log})
    [made] = api.submit(run, board="openvlm_MMMU_DEV_VAL", questions=table(tmp_path, "MMMU_DEV_VAL", rows))
    right = board_parsers_mm.vlmevalkit_choice(made.file, {row["index"]: row["answer"] for row in rows})
    assert made.rows == len(board_logs.QUESTIONS) and right[150] and not right[153]


@pytest.mark.parametrize("chinese", [False, True])
@pytest.mark.parametrize("new", [False, True])
def test_mmbench_needs_no_table(tmp_path, chinese, new):
    language, task = ("CN", "mmbench_cn_dev") if chinese else ("EN", "mmbench_en_dev")
    rows = board_logs.mmbench_rows(chinese=chinese, first=3005 if new else 7, split="dev")
    log = board_logs.mmbench_log(rows, lambda n: "B", chinese=chinese)
    run = write_run(tmp_path, {task: log})
    dataset = f"MMBench_DEV_{language}{'_V11' if new else ''}"
    [made] = api.submit(run, board=f"openvlm_{dataset}", task=task)
    assert board_parsers_mm.vlmevalkit_dataset(made.file) == dataset
    truths = {row["index"]: "B" for row in rows} | {rows[-1]["index"]: "A"}
    last = rows[-1]["index"] % STEP
    # pandas reads the choice "None" as an absent one, of VLMEvalKit's own files as well: the first is lost to it
    expected = {last - 2: chinese, last - 1: True, last: False}
    assert board_parsers_mm.vlmevalkit_choice(made.file, truths) == expected
    with pytest.raises(SubmissionError, match="questions of version"):
        api.submit(run, board=f"openvlm_MMBench_DEV_{language}{'' if new else '_V11'}", task=task)


def test_a_table_is_asked_for_and_has_to_be_one(tmp_path):
    run = write_run(tmp_path, {"mmstar": mmstar()[1]})
    with pytest.raises(SubmissionError, match=r"MMStar\.tsv of VLMEvalKit with --questions"):
        api.submit(run, board="openvlm_MMStar")
    with pytest.raises(DamagedFileError, match="no column 'index'"):
        api.submit(run, board="openvlm_MMStar", questions=table(tmp_path, "x", [{"question": "?"}]))
    # A run's tasks alone do not ask for a workbook, and are told of it
    with pytest.raises(SubmissionError, match="openvlm_MMStar writes a workbook for VLMEvalKit"):
        api.submit(run)
    assert "workbook" not in without_board("pope")
