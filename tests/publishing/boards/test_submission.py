"""Files for boards out of runs: whole, in the run's own folder, and refused with every reason at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plam_eval
from plam_eval.errors import InputError
from plam_eval.harness.run_files import samples_file
from plam_eval.publishing.boards import submission
from plam_eval.publishing.boards.submission import SubmissionError
from plam_eval.publishing.boards.table import BOARDS
from tests.helpers.board_parsers import PARSERS
from tests.helpers.submission_runs import DATE, TASKS, Line, question, questions_file, submission_run

ANSWERS = ["The Two Dogs.", " yes\n", "Straße, 東京", "=1+1", "NA", "1,000"]
WORDS = ["2 dogs", "yes", "straße 東京", "1 1", "na", "1000"]
STRIPPED = ["The Two Dogs.", "yes", *ANSWERS[2:]]
EXPECTED = {
    **dict.fromkeys(("vqav2", "textvqa", "vizwiz"), WORDS),
    **dict.fromkeys(("docvqa", "infovqa", "stvqa", "gqa"), STRIPPED),
    "seedbench_2_plus": list("ABCDAA"),
}
Change = Callable[[dict[str, Any], list[Line]], object]


def answers_of(board: str) -> list[str]:
    return list("ABCDaA") if board == "seedbench_2_plus" else ANSWERS


def submit(folder: Path, board: str = "docvqa", count: int = len(ANSWERS), **options: Any) -> list[Any]:
    questions = questions_file(folder / "questions", board, count)
    task = TASKS[board] if board == "gqa" else None
    return plam_eval.submit(folder / "run", board=board, questions=questions, task=task, **options)


def refused(folder: Path, board: str = "docvqa", **options: Any) -> str:
    with pytest.raises(SubmissionError) as caught:
        submit(folder, board, **options)
    written = [file.name for file in (folder / "run").iterdir() if "_submission_" in file.name]
    assert written == [] or "stays" in str(caught.value) or "move it away" in str(caught.value)
    return str(caught.value)


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("board", sorted(BOARDS.keys() & PARSERS.keys()))
def test_a_board_reads_what_it_is_given(tmp_path: Path, board: str) -> None:
    submission_run(tmp_path / "run", board, answers_of(board))
    (written,) = submit(tmp_path, board)
    assert written.file == tmp_path / "run" / f"{DATE}_submission_{board}{BOARDS[board].suffix}"
    ids = [question(board, n) for n in range(len(ANSWERS))]
    assert PARSERS[board](written.file, ids) == dict(zip(ids, EXPECTED[board], strict=True))
    checked = plam_eval.check_submission(
        written.file, board, questions=tmp_path / "questions" / f"{board}_questions.json"
    )
    assert (checked.problems, checked.rows) == ([], len(ANSWERS))


def test_what_lies_beside_it_says_what_it_was_made_of(tmp_path: Path) -> None:
    def ours(results: dict[str, Any], _: list[Line]) -> None:
        checkpoint = {"name": "org/mllm", "sha256": "ab" * 32}
        results["plam_eval"] = {"wrapper": "plam_llava", "provenance": {"digest": "d1", "checkpoint": checkpoint}}

    submission_run(tmp_path / "run", "docvqa", ["a", ""], ours)
    (written,) = submit(tmp_path, count=2)
    about = json.loads(written.about.read_text())
    assert written.about.name == f"{DATE}_submission_docvqa.about.json"
    assert about["checkpoint"]["sha256"] == "ab" * 32 and about["digest"] == "d1" and about["model"] == "plam_llava"
    assert about["sha256"] == written.sha256 and about["task"] == "docvqa_test"
    assert (about["answers"], about["empty_answers"]) == (2, 1)
    assert "org/mllm" not in written.file.read_text()
    assert any("empty answer" in note and "document 1" in note for note in written.notes)


def test_runs_whose_own_files_overwrote_each_other_get_one_each(tmp_path: Path) -> None:
    questions = questions_file(tmp_path, "docvqa", 2)
    folders = [tmp_path / name for name in ("plain", "merged")]
    for folder, answer in zip(folders, ("red", "blue"), strict=True):
        submission_run(folder, "docvqa", [answer, answer])
    written = plam_eval.submit(folders, board="docvqa", questions=questions)
    texts = [json.loads(each.file.read_text())[0]["answer"] for each in written]
    assert texts == ["red", "blue"] and [each.file.parent for each in written] == folders
    assert sorted(file.name for file in tmp_path.iterdir()) == ["docvqa_questions.json", "merged", "plain"]


def test_the_same_run_is_written_again_and_nothing_else_is_replaced(tmp_path: Path) -> None:
    submission_run(tmp_path / "run", "docvqa", ANSWERS)
    (first,) = submit(tmp_path)
    content = first.file.read_bytes()
    (again,) = submit(tmp_path)
    assert again.sha256 == first.sha256 and again.file.read_bytes() == content
    first.file.write_bytes(content + b" ")
    assert "was changed since" in refused(tmp_path) and first.file.read_bytes() == content + b" "
    first.about.unlink()
    assert "is not of plam submit" in refused(tmp_path) and first.file.read_bytes() == content + b" "


@pytest.mark.parametrize("name", ["json", "about.json"])
def test_a_link_is_not_written_through(tmp_path: Path, name: str) -> None:
    submission_run(tmp_path / "run", "docvqa", ANSWERS)
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "run" / f"{DATE}_submission_docvqa.{name}").symlink_to(outside)
    assert "is a link" in refused(tmp_path) and outside.read_text() == "mine"


def test_a_kill_between_both_files_leaves_what_can_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission_run(tmp_path / "run", "docvqa", ANSWERS)
    submit(tmp_path)
    whole = submission.write_json

    def killed(path: Path, content: Any) -> None:
        whole(path, content | {"sha256": "of what a kill kept from its place"})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(submission, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            submit(tmp_path)
    assert len(submit(tmp_path)) == 1
    assert not [file for file in (tmp_path / "run").iterdir() if "partial" in file.name]


def test_a_file_that_cannot_be_read_back_is_not_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submission_run(tmp_path / "run", "docvqa", ANSWERS)
    whole = submission.write_rows
    monkeypatch.setattr(submission, "write_rows", lambda board, rows, file: whole(board, rows[:-1], file))
    assert "without an answer" in refused(tmp_path)


# --- which run, which board -------------------------------------------------------------------------------------------


def test_of_several_runs_in_a_folder_the_newest_is_used_and_said(tmp_path: Path) -> None:
    old = submission_run(tmp_path / "run", "docvqa", ["old"], date="20260101_000000")
    submission_run(tmp_path / "run", "docvqa", ["new"])
    (written,) = submit(tmp_path, count=1)
    assert "new" in written.file.read_text() and any("the newest of 2 runs" in note for note in written.notes)
    questions = tmp_path / "questions" / "docvqa_questions.json"
    (written,) = plam_eval.submit(old, board="docvqa", questions=questions)
    assert "old" in written.file.read_text() and not any("newest" in note for note in written.notes)


def test_a_folder_of_several_models_is_refused(tmp_path: Path) -> None:
    for model in ("one", "other"):
        submission_run(tmp_path / "run" / model, "docvqa", ANSWERS)
    assert "several models" in refused(tmp_path)


def test_without_a_board_every_task_of_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(results: dict[str, Any], _: list[Line]) -> None:
        results["configs"]["pope"] = {"task": "pope"}

    submission_run(tmp_path / "run", "stvqa", ANSWERS, both)
    (written,) = plam_eval.submit(tmp_path / "run")
    assert written.board == "stvqa" and any("pope" in note and "no server" in note for note in written.notes)
    assert any("--questions FILE would say it" in note for note in written.notes)


@pytest.mark.parametrize(
    ("task", "said"), [("mme", "no server"), ("gqa", "testdev"), ("some_task", "no board is known")]
)
def test_a_task_without_a_board_says_what_is_known(tmp_path: Path, task: str, said: str) -> None:
    submission_run(tmp_path / "run", "docvqa", ANSWERS, task=task)
    with pytest.raises(SubmissionError, match=said):
        plam_eval.submit(tmp_path / "run")


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    submission_run(tmp_path / "run", "docvqa", ANSWERS)
    with pytest.raises(InputError, match="did you mean 'docvqa'"):
        plam_eval.submit(tmp_path / "run", board="docvqua")
    for options in ({"task": "docvqa_test"}, {"questions": tmp_path / "q"}):
        with pytest.raises(InputError, match="name that board"):
            plam_eval.submit(tmp_path / "run", **options)
    with pytest.raises(InputError, match="give run folders"):
        plam_eval.submit([])
    with pytest.raises(SubmissionError, match="wants answers to vqav2_test"):
        plam_eval.submit(tmp_path / "run", board="vqav2")
    with pytest.raises(SubmissionError, match="no task 'vqav2_tset'"):
        plam_eval.submit(tmp_path / "run", board="vqav2", task="vqav2_tset")


def test_differences_between_runs_are_said(tmp_path: Path) -> None:
    def other(results: dict[str, Any], _: list[Line]) -> None:
        results["lmms_eval_version"] = "0.6.1"
        results["configs"]["docvqa_test"]["generation_kwargs"] = {"max_new_tokens": 99}

    submission_run(tmp_path / "one", "docvqa", ["a"])
    submission_run(tmp_path / "two", "docvqa", ["b"], other)
    questions = questions_file(tmp_path, "docvqa", 1)
    written = plam_eval.submit([tmp_path / "one", tmp_path / "two"], board="docvqa", questions=questions)
    for each in written:
        assert any("lmms-eval differs" in note and "0.6.1" in note for note in each.notes)
        assert any("generation_kwargs differs" in note for note in each.notes)
    (alone,) = plam_eval.submit(tmp_path / "one", board="docvqa", questions=questions)
    assert not any("differs" in note for note in alone.notes)


# --- what is refused --------------------------------------------------------------------------------------------------


def of_results(path: str, value: Any) -> Change:
    """Sets one value of the results."""

    def change(results: dict[str, Any], _: list[Line]) -> None:
        *parents, key = path.split("/")
        inner = results
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[key] = value

    return change


def of_line(number: int, **fields: Any) -> Change:
    """Sets fields of one line of the log."""
    return lambda _, rows: rows[number].update(fields)


def of_the_second_filter(results: dict[str, Any], rows: list[Line]) -> None:
    """Two filters, and a line of the second that other weights answered."""
    results["configs"][TASK]["filter_list"] = [{"name": "strict"}, {"name": "loose"}]
    rows[:] = [row | {"digest": one * 64} for one in "ab" for row in rows]


TASK = "docvqa_test"
SETTINGS = [{"max_new_tokens": 16, "calls": 3}, {"max_new_tokens": 32, "calls": 3}]
REFUSED: dict[str, tuple[Change, str]] = {
    "limit": (of_results("config/limit", 6.0), "--limit 6:"),
    "fraction": (of_results("config/limit", 0.5), "--limit 0.5"),
    "offset": (of_results("config/offset", 2), "--offset 2"),
    "the command line's limit": (of_results("config/resolved_cli_args", {"limit": 3}), "--limit 3"),
    "effective": (of_results(f"n-samples/{TASK}/effective", 2), "answered 2 of 6 documents"),
    "failed": (of_results("plam_eval/generation", {"calls": 6, "failed": 1}), "1 generations failed"),
    "mixed settings": (of_results("plam_eval/generation", {"settings": SETTINGS}), "several generation settings"),
    "repeats": (of_results(f"configs/{TASK}/repeats", 3), "answered 3 times"),
    "missing": (lambda _, rows: rows.pop(2), "documents missing in the log, of 6"),
    "twice": (lambda _, rows: rows.append(rows[0]), "document 0: 2 lines"),
    "one more": (lambda _, rows: rows.append(rows[0] | {"doc_id": 6}), "documents beyond the task's 6"),
    "responses": (of_line(1, filtered_resps=["a", "b"]), "several responses"),
    "one id twice": (of_line(1, submission={"questionId": question("docvqa", 0), "answer": "a"}), "questionId twice"),
    "unknown id": (of_line(1, submission={"questionId": 7, "answer": "a"}), "none of the questions"),
    "fraction of an id": (of_line(1, submission={"questionId": 7.5, "answer": "a"}), "found 7.5 as questionId"),
    "leading zeros": (of_line(1, submission={"questionId": "007", "answer": "a"}), "found '007'"),
    "other weights": (of_line(1, digest="ab" * 32), "answered by weights of digest"),
    "other weights of a filter": (of_the_second_filter, f"'{'b' * 64}' (document 0)"),
    "no answer": (of_line(1, submission={"questionId": question("docvqa", 1), "answer": None}), "found None"),
    "NaN": (of_line(1, submission={"questionId": question("docvqa", 1), "answer": float("nan")}), "found nan"),
    "a list": (of_line(1, submission={"questionId": question("docvqa", 1), "answer": ["a"]}), "found ['a']"),
    "another version": (lambda _, rows: [row.pop("submission") for row in rows], "another version of lmms-eval (6)"),
    "another entry": (of_line(1, submission=0.5), "submission is float"),
    "no document": (of_line(1, doc_id=None), "expected an object with a doc_id"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_that_is_not_whole_is_refused(tmp_path: Path, case: str) -> None:
    change, said = REFUSED[case]
    submission_run(tmp_path / "run", "docvqa", ANSWERS, change)
    assert said in refused(tmp_path)


def test_a_log_that_does_not_say_what_answered_beside_one_that_does_is_refused(tmp_path: Path) -> None:
    def with_another(results: dict[str, Any], _: list[Line]) -> None:
        results["configs"]["gqa"] = {}
        results["plam_eval"] = {"provenance": {"digest": None}}

    file = submission_run(tmp_path / "run", "docvqa", ANSWERS, with_another)
    other = samples_file(file, "gqa")
    other.write_text(json.dumps({"doc_id": 0, "target": "", "filtered_resps": [""]}) + "\n", encoding="utf-8")
    submit(tmp_path)
    for written in file.parent.glob("*_submission_*"):
        written.unlink()
    told = {"doc_id": 0, "target": "", "filtered_resps": [""], "digest": "plain"}
    other.write_text(json.dumps(told) + "\n", encoding="utf-8")
    assert "its lines do not say which weights answered them" in refused(tmp_path)


def test_every_fault_of_every_run_is_told_at_once(tmp_path: Path) -> None:
    def broken(results: dict[str, Any], rows: list[Line]) -> None:
        for change, _ in (REFUSED[case] for case in ("limit", "failed", "unknown id", "missing")):
            change(results, rows)

    submission_run(tmp_path / "one", "docvqa", ANSWERS, broken)
    submission_run(tmp_path / "two", "docvqa", ANSWERS, REFUSED["offset"][0])
    submission_run(tmp_path / "good", "docvqa", ANSWERS)
    questions = questions_file(tmp_path, "docvqa", len(ANSWERS))
    with pytest.raises(SubmissionError) as caught:
        plam_eval.submit([tmp_path / name for name in ("good", "one", "two")], board="docvqa", questions=questions)
    said = "\n".join(caught.value.problems)
    for words in ("--limit 6:", "1 generations failed", "none of the questions", "documents missing", "--offset 2"):
        assert words in said
    assert not list(tmp_path.rglob("*_submission_*"))


def test_without_its_questions_a_board_knows_their_number(tmp_path: Path) -> None:
    submission_run(tmp_path / "run", "docvqa", ANSWERS)
    with pytest.raises(SubmissionError, match=r"found 6, expected 5188"):
        plam_eval.submit(tmp_path / "run")


def test_answers_outside_the_form_are_listed_or_blanked(tmp_path: Path) -> None:
    submission_run(tmp_path / "run", "seedbench_2_plus", ["A", "The answer is B", "(C)", "", "d", "I"])
    said = refused(tmp_path, "seedbench_2_plus")
    assert "expected A, B, C or D (3)" in said and "found 'T'" in said and "found '('" in said
    assert "--blank-invalid writes" in said and "--blank-invalid" not in refused(
        tmp_path, "seedbench_2_plus", blank_invalid=True, count=7
    )
    (written,) = submit(tmp_path, "seedbench_2_plus", blank_invalid=True)
    rows = [json.loads(line) for line in written.file.read_text().splitlines()]
    assert [row["prediction"] for row in rows] == ["A", "", "", "", "D", ""] and written.empty == 4
    assert any("written as an empty one (3)" in note for note in written.notes)


def test_thoughts_in_answers_are_said(tmp_path: Path) -> None:
    answers = ["<think>a dog, or", "red</think>blue", "I think so", *ANSWERS[3:]]
    submission_run(tmp_path / "run", "docvqa", answers)
    (written,) = submit(tmp_path)
    (note,) = [note for note in written.notes if "thoughts" in note]
    assert "(2): line 1, document 0; line 2, document 1" in note


@pytest.mark.parametrize(
    ("ending", "expected"), [("", ".jpg"), (".jpg", ".jpg"), (".jpg.jpg", ".jpg"), (".png", None), (".JPG", None)]
)
def test_a_vizwiz_image_ends_once(tmp_path: Path, ending: str, expected: str | None) -> None:
    def image(_: dict[str, Any], rows: list[Line]) -> None:
        rows[0]["submission"]["image"] = f"VizWiz_test_00000000{ending}"

    submission_run(tmp_path / "run", "vizwiz", ["yes"], image)
    if expected is None:
        assert "VizWiz_test_00000000" in refused(tmp_path, "vizwiz", count=1)
    else:
        (written,) = submit(tmp_path, "vizwiz", count=1)
        assert json.loads(written.file.read_text())[0]["image"] == f"VizWiz_test_00000000{expected}"


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_log_that_is_not_there_is_named(tmp_path: Path) -> None:
    results = submission_run(tmp_path / "run", "docvqa", ANSWERS)
    log = results.with_name(f"{DATE}_samples_{TASK}.jsonl")
    log.rename(results.with_name(f"{DATE}_samples_other.jsonl"))
    said = refused(tmp_path)
    assert f"there is no {log.name}" in said and "samples_other" in said and "--log_samples" in said
    results.unlink()
    assert "copied in part" in refused(tmp_path)


@pytest.mark.parametrize(("lost", "rest"), [(3, ""), (6, "; and 1 more")])
def test_what_is_missing_is_counted_as_it_is_shown(tmp_path: Path, lost: int, rest: str) -> None:
    submission_run(tmp_path / "run", "docvqa", ANSWERS, lambda _, rows: rows.__delitem__(slice(lost)))
    said = refused(tmp_path)
    documents = "; ".join(f"document {number}" for number in range(min(lost, 5)))
    assert f"({lost}): {documents}{rest}\n" in said
    ids = "; ".join(str(question("docvqa", number)) for number in range(min(lost, 5)))
    assert f"without an answer, of 6 questions ({lost}): {ids}{rest}" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"doc_id": 0, "submission": {"questionId": 26214', "line 7: not whole JSON"),
        (b'{"doc_id": 0, "target": "\xff\xfe"}\n', "line 7: byte 25 is not UTF-8"),
        (b'{"doc_id": 0, "doc_id": 1}\n', "'doc_id' stands twice"),
        (b"\x00\x00\x00\n", "line 7: not whole JSON"),
        (b'{"doc_id": ' + b"9" * 5000 + b"}\n", "line 7"),
        (b"[" * 100_000 + b"\n", "line 7"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path: Path, content: bytes, said: str) -> None:
    results = submission_run(tmp_path / "run", "docvqa", ANSWERS)
    log = results.with_name(f"{DATE}_samples_{TASK}.jsonl")
    damaged = log.read_bytes() + content
    log.write_bytes(damaged)
    assert said in refused(tmp_path)
    assert log.read_bytes() == damaged


def test_a_log_of_other_line_ends_and_more_fields_is_read(tmp_path: Path) -> None:
    def newer(results: dict[str, Any], rows: list[Line]) -> None:
        results["lmms_eval_version"] = "0.9.0"
        for row in rows:
            row |= {
                "something_new": {"of": ["another", "version"]},
                "filtered_resps": ["a"],
                "doc_id": str(row["doc_id"]),
            }
            row["submission"]["questionId"] = f"{row['submission']['questionId']}.0"

    results = submission_run(tmp_path / "run", "docvqa", ANSWERS, newer)
    log = results.with_name(f"{DATE}_samples_{TASK}.jsonl")
    log.write_bytes(b"\xef\xbb\xbf" + log.read_bytes().replace(b"\n", b"\r\n"))
    (written,) = submit(tmp_path)
    assert [row["questionId"] for row in json.loads(written.file.read_text())] == [
        question("docvqa", n) for n in range(len(ANSWERS))
    ]


def test_text_that_no_reader_takes_is_mended_and_said(tmp_path: Path) -> None:
    submission_run(tmp_path / "run", "docvqa", ["a\x00b\x1bc", "\ud83d half", "caf\u00e9", 'say "hi"\\', "nan", "007"])
    (written,) = submit(tmp_path)
    answers = [row["answer"] for row in json.loads(written.file.read_text())]
    assert answers == ["a b c", "? half", "caf\u00e9", 'say "hi"\\', "nan", "007"]
    notes = "\n".join(written.notes)
    assert "control characters, written as spaces (1)" in notes and "surrogate pair, written as ? (1)" in notes


def test_answers_that_were_logged_as_numbers_are_text(tmp_path: Path) -> None:
    def numbers(_: dict[str, Any], rows: list[Line]) -> None:
        rows[0]["submission"]["answer"] = 12

    submission_run(tmp_path / "run", "docvqa", ["a"], numbers)
    (written,) = submit(tmp_path, count=1)
    assert json.loads(written.file.read_text())[0]["answer"] == "12"
    assert any("logged as a number" in note for note in written.notes)


def test_a_task_with_several_filters_gives_its_first_and_says_so(tmp_path: Path) -> None:
    def filters(results: dict[str, Any], rows: list[Line]) -> None:
        results["configs"][TASK]["filter_list"] = [{"name": "strict"}, {"name": "loose"}]
        rows += [{**row, "submission": {**row["submission"], "answer": "loose"}} for row in list(rows)]

    submission_run(tmp_path / "run", "docvqa", ANSWERS, filters)
    (written,) = submit(tmp_path)
    assert "loose" not in written.file.read_text() and any("these are of strict" in note for note in written.notes)


@pytest.mark.parametrize("name", ["../up", "a/b"])
def test_a_task_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    file = submission_run(tmp_path / "run", "docvqa", ANSWERS)
    results = json.loads(file.read_text())
    results["configs"][name] = {}
    file.write_text(json.dumps(results))
    with pytest.raises(SubmissionError, match="expected the name of a task"):
        plam_eval.submit(tmp_path / "run", board="docvqa", task=name)


@pytest.mark.parametrize("linked", ["log", "results"])
def test_a_link_that_leads_out_is_not_read(tmp_path: Path, linked: str) -> None:
    results = submission_run(tmp_path / "run", "docvqa", ANSWERS)
    file = results if linked == "results" else results.with_name(f"{DATE}_samples_{TASK}.jsonl")
    file.rename(tmp_path / file.name)
    file.symlink_to(tmp_path / file.name)
    assert "leads to" in refused(tmp_path)


def test_a_damaged_results_file_is_named(tmp_path: Path) -> None:
    results = submission_run(tmp_path / "run", "docvqa", ANSWERS)
    results.write_text(results.read_text()[:-20])
    assert "is not a results file" in refused(tmp_path)
    with pytest.raises(SubmissionError, match="no such file or folder"):
        plam_eval.submit(tmp_path / "nowhere")


# --- the same run again -----------------------------------------------------------------------------------------------


def test_the_order_of_a_log_makes_no_other_file(tmp_path: Path) -> None:
    submission_run(tmp_path / "run", "docvqa", ANSWERS, lambda _, rows: rows.reverse())
    (written,) = submit(tmp_path)
    assert [row["questionId"] for row in json.loads(written.file.read_text())] == [
        question("docvqa", n) for n in range(len(ANSWERS))
    ]


def test_ids_that_were_logged_as_fractions_are_whole(tmp_path: Path) -> None:
    def fractions(_: dict[str, Any], rows: list[Line]) -> None:
        for row in rows:
            row["submission"]["questionId"] = float(row["submission"]["questionId"])

    submission_run(tmp_path / "run", "docvqa", ANSWERS, fractions)
    (written,) = submit(tmp_path)
    assert all(type(row["questionId"]) is int for row in json.loads(written.file.read_text()))


def test_a_file_of_another_run_is_not_replaced(tmp_path: Path) -> None:
    submission_run(tmp_path / "run", "docvqa", ANSWERS)
    (written,) = submit(tmp_path)
    about = json.loads(written.about.read_text())
    written.about.write_text(json.dumps(about | {"run": "20250101_000000_results.json"}))
    assert "is not of plam submit and this run" in refused(tmp_path)


def test_one_file_is_not_written_twice(tmp_path: Path) -> None:
    results = submission_run(tmp_path / "run", "docvqa", ANSWERS)
    questions = questions_file(tmp_path, "docvqa", len(ANSWERS))
    with pytest.raises(SubmissionError, match="would be written 2 times"):
        plam_eval.submit([results, tmp_path / "run"], board="docvqa", questions=questions)
    assert len(plam_eval.submit([results, results], board="docvqa", questions=questions)) == 1


def test_an_answer_that_comes_back_changed_is_not_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submission_run(tmp_path / "run", "docvqa", ANSWERS)
    whole = submission.write_rows

    def other(board: Any, rows: Any, file: Path) -> None:
        whole(board, [{**row, "answer": row["answer"].upper()} for row in rows], file)

    monkeypatch.setattr(submission, "write_rows", other)
    assert "what was read back is not what was written" in refused(tmp_path)
