"""`plam submit`: what it says, and how it ends."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from plam_eval.publishing.boards.table import BOARDS
from tests.helpers.bundles import edited_results, forged
from tests.helpers.commands import Call
from tests.helpers.logged_runs import graded_rows, write_logs
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
    assert "--limit 1" in err and "--offset 1" in err and "expected 5188" in err


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


def test_a_bundle_is_written_and_verified(plam: Call, tmp_path: Path) -> None:
    results = {"some_task": {"exact_match,none": 0.5}}
    write_logs(tmp_path / "run", {"some_task": graded_rows([1, 0])}, results=results, git_branch="jane")
    file = tmp_path / "b.zip"
    code, out, _ = plam("submit", tmp_path / "run", "--bundle", file, "--anonymous")
    assert code == 0 and "run: 2 answers to some_task" in out and "Left out of 1 file, 1 field:" in out
    assert f"SHA-256, to be printed beside it: {hashlib.sha256(file.read_bytes()).hexdigest()}" in out
    code, out, _ = plam("submit", "--verify", file)
    assert code == 0 and "1 of 1" in out and "what could be checked holds; 1 thing(s) could not be" in out
    code, out, _ = plam("submit", "--verify", file, "--json")
    assert code == 0 and json.loads(out)["holds"] and not json.loads(out)["complete"]
    bad = forged(file, tmp_path / "bad.zip", edited_results(lambda read: read["results"]["some_task"].update(
        {"exact_match,none": 0.75}
    )))  # fmt: skip
    code, out, _ = plam("submit", "--verify", bad)
    assert code == 1 and "exact_match,none is 0.75, recomputed 0.5" in out and "does not hold" in out
    code, out, err = plam("submit", "--verify", bad, "--quiet")
    assert code == 1 and out == "" and "recomputed 0.5" in err


def test_options_of_bundles_are_theirs_alone(plam: Call, tmp_path: Path) -> None:
    for words, said in (
        (("--bundle", "x.zip"), "give run folders"),
        (("run", "--verify", "x.zip"), "run folders and --verify exclude each other"),
        (("--verify", "x.zip", "--check", "y"), "--check and --verify exclude each other"),
        (("run", "--anonymous"), "--anonymous and --hide are of --bundle"),
        (("run", "--bundle", "x.zip", "--board", "docvqa"), "--board: of leaderboards"),
        (("run", "--bundle", "x.zip"), "run: no such folder"),
        (("--verify", tmp_path), "is a folder"),
    ):
        code, _, err = plam("submit", *words)
        assert code == 1 and said in err, words


def test_what_a_bundle_says_is_shown_as_text(plam: Call, tmp_path: Path) -> None:
    rows = graded_rows([1, 0], doc_id=NASTY)
    rows[1]["doc_id"] = 2
    write_logs(tmp_path / "run", {"[bold] \x1b[31m\u202e": rows})
    code, out, err = plam("submit", tmp_path / "run", "--bundle", tmp_path / "b.zip")
    assert code == 0 and "\x1b" not in out + err
    code, out, err = plam("submit", "--verify", tmp_path / "b.zip")
    assert code == 0 and "\x1b" not in out + err and "[bold]" in out
