"""`plam submit`: what it says, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

from plam_eval.publishing.boards import BOARDS
from tests.helpers.commands import Call
from tests.helpers.nasty import NASTY
from tests.helpers.submission_runs import DATE, questions_file, submission_run


def test_a_run_is_written_and_its_file_checked(plam: Call, tmp_path: Path) -> None:
    submission_run(tmp_path / "run", "docvqa", ["a", ""])
    questions = questions_file(tmp_path, "docvqa", 2)
    options = ("--board", "docvqa", "--questions", questions)
    code, out, _ = plam("submit", tmp_path / "run", *options)
    file = tmp_path / "run" / f"{DATE}_submission_docvqa.json"
    assert code == 0 and file.exists() and f"{file}: 2 answers to docvqa_test" in out
    assert "warning: an empty answer (1)" in out and "Robust Reading" in out
    assert plam("submit", "--check", file, *options)[0] == 0
    code, out, _ = plam("submit", "--check", file, "--board", "docvqa")
    assert code == 1 and "found 2, expected 5188" in out


def test_a_refusal_is_an_error_and_names_every_fault(plam: Call, tmp_path: Path) -> None:
    submission_run(tmp_path / "run", "docvqa", ["a"], lambda results, _: results["config"].update(limit=1.0, offset=1))
    code, out, err = plam("submit", tmp_path / "run")
    assert code == 1 and out == "" and "nothing was written" in err
    assert "--limit 1.0" in err and "--offset 1" in err and "expected 5188" in err


def test_the_result_as_json(plam: Call, tmp_path: Path) -> None:
    submission_run(tmp_path / "run", "docvqa", ["a"])
    questions = questions_file(tmp_path, "docvqa", 1)
    code, out, _ = plam("submit", tmp_path / "run", "--board", "docvqa", "--questions", questions, "--json")
    (written,) = json.loads(out)["submissions"]
    assert code == 0 and written["rows"] == 1 and Path(written["file"]).exists()
    code, out, _ = plam("submit", "--check", written["file"], "--board", "docvqa", "--json")
    assert code == 1 and len(json.loads(out)["problems"]) == 1


def test_the_boards_are_listed(plam: Call) -> None:
    code, out, _ = plam("submit", "--boards")
    assert code == 0 and all(name in out for name in BOARDS) and "MMStar has no server" in out
    code, out, _ = plam("submit", "--boards", "--json")
    assert code == 0 and {board["name"] for board in json.loads(out)["boards"]} == set(BOARDS)


def test_modes_exclude_each_other(plam: Call, tmp_path: Path) -> None:
    for words, said in (
        ((), "give run folders"),
        (("run", "--boards"), "run folders and --boards exclude each other"),
        (("--check", "x", "--boards"), "--check and --boards exclude each other"),
        (("--check", "x"), "one --board"),
        (("--check", "x", "--board", "docvqa", "--task", "t"), "--task with --check"),
        (("--check", "x", "--board", "docvqa", "--blank-invalid"), "--blank-invalid with --check"),
        (("--check", tmp_path / "x", "--board", "docvqa"), "No such file"),
        (("run", "--board", "docvq"), "did you mean 'docvqa'"),
    ):
        code, _, err = plam("submit", *words)
        assert code == 1 and said in err, words


def test_answers_are_shown_as_text(plam: Call, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"question_id": "1", "prediction": NASTY}) + "\n")
    code, out, _ = plam("submit", "--check", file, "--board", "seedbench_2_plus")
    assert code == 1 and "\x1b" not in out and "[bold]" in out
