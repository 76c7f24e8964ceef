"""Runs read again: a planted wordy model, equal answers, and logs of which something is missing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import plam_eval
from plam_eval.errors import FolderError, InputError
from plam_eval.evaluation import second_parser, stats
from plam_eval.evaluation.comparison import compare_runs, compare_with_one
from plam_eval.evaluation.records import read_run
from plam_eval.evaluation.second_parser import ALONE, DOES_NOT, IN_NEITHER, SURVIVES, judge
from plam_eval.harness.answer_parser import VERSION
from plam_eval.harness.errors import RecordError
from plam_eval.harness.second_reading import read_again
from plam_eval.harness.tasks import TASKS
from plam_eval.report import rescored, tables
from plam_eval.terminal import Terminal
from tests.helpers.commands import Call, command_line
from tests.helpers.run_folders import Document, documents, write_run, write_sweep

LETTERS = "ABCD"


def stock_mmstar(answer: str, target: str) -> float:
    """What the installed lmms-eval gives an answer to MMStar."""
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer

    return float(extract_mcq_answer(answer, choices=list(LETTERS)) == target)


def asked(say: Any, *, tasks: str = "mmstar pope", count: int = 40) -> list[Document]:
    """Questions whose answers are all right, in the words of `say`; scored as the tasks themselves score them."""
    given: list[Document] = []
    for number in range(count):
        letter, verdict = LETTERS[number % 4], "yes" if number % 2 else "no"
        options = "Options: A: a cat, B: a dog, C: a cow, D: a hen"
        prompt = f"What is in picture {number}?\n{options}\nAnswer with the letter."
        answer = say(letter)
        given.append({"task": "mmstar", "doc_id": number, "prompt": prompt, "target": letter, "answer": answer})
        given[-1]["score"] = stock_mmstar(answer, letter)
        answer = say(verdict)
        given.append({"task": "pope", "doc_id": number, "prompt": "Is it?", "target": verdict, "answer": answer})
        given[-1]["score"] = float(answer.lower() == verdict)
    return [document for document in given if document["task"] in tasks.split()]


def terse(answer: str) -> str:
    return answer


def wordy(answer: str) -> str:
    return f"The answer is {answer} because A is too small."


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "terse", asked(terse))
    write_run(folder / "wordy", asked(wordy), plain=False)
    return [folder / "terse", folder / "wordy"]


def test_the_difference_of_a_wordy_model_vanishes(runs: list[Path]) -> None:
    done = plam_eval.rescore(runs)
    scores = done.tasks.set_index(["run", "task"])
    for task in ("mmstar", "pope"):
        plain, merged = (scores.loc[(str(run), task)] for run in runs)
        assert (plain["score"], plain["rescored"], plain["disagree"], plain["abstain"]) == (1, 1, 0, 0)
        assert merged["score"] < 0.5 and merged["rescored"] == 1 and merged["disagree"] == 1 - merged["score"]
    for row in done.pair.to_dict("records"):
        assert row["difference"] < -0.5 and row["p"] < 0.001 and row["high"] < 0
        assert row["rescored_difference"] == 0 and row["rescored_p"] == 1 and row["survives"] == DOES_NOT
        assert row["rescored_low"] < 0 < row["rescored_high"], "equal answers leave an interval"
    told = done.disagreements
    assert set(told["run"]) == {str(runs[1])} and (told["read"].str.upper() == told["target"].str.upper()).all()
    assert len(told) == (scores["disagree"] * scores["documents"]).sum() and done.version == VERSION


def test_equal_answers_differ_by_exactly_nothing_in_both(runs: list[Path]) -> None:
    for run in runs:
        pair = plam_eval.rescore([run, run]).pair
        assert (pair["difference"] == 0).all() and (pair["rescored_difference"] == 0).all()
        assert (pair["p"] == 1).all() and (pair["rescored_p"] == 1).all() and (pair["survives"] == IN_NEITHER).all()


def test_a_true_difference_survives(tmp_path: Path) -> None:
    write_run(tmp_path / "good", asked(terse))
    bad = [
        {**document, "answer": "A", "score": float(document["target"] == "A")}
        for document in asked(terse, tasks="mmstar")
    ]
    write_run(tmp_path / "bad", [*bad, *asked(terse, tasks="pope")])
    pair = plam_eval.rescore([tmp_path / "good", tmp_path / "bad"]).pair.set_index("task")
    assert pair.loc["mmstar", "survives"] == pair.loc["overall", "survives"] == SURVIVES
    assert pair.loc["pope", "survives"] == IN_NEITHER
    assert pair.loc["mmstar", "difference"] == pair.loc["mmstar", "rescored_difference"] == -0.75


@pytest.mark.parametrize(
    ("own", "again", "verdict"),
    [
        ((0.2, 0.01), (0.1, 0.04), SURVIVES),
        ((0.2, 0.01), (0.1, 0.05), DOES_NOT),
        ((0.2, 0.01), (-0.1, 0.01), DOES_NOT),
        ((0.2, 0.06), (0.1, 0.2), IN_NEITHER),
        ((0.0, 1.0), (0.1, 0.01), ALONE),
    ],
)
def test_verdicts(own: tuple[float, float], again: tuple[float, float], verdict: str) -> None:
    assert judge(*own, *again) == verdict


def test_what_is_asked_for_is_not_guessed_and_graded_tasks_are_left(tmp_path: Path) -> None:
    strange = [{**document, "task": "mystery"} for document in documents(["pope"], 3)]
    people = [{**document, "task": "textvqa_val"} for document in documents(["gqa"], 3)]
    write_run(tmp_path / "a", [*asked(wordy, tasks="pope"), *strange, *people])
    done = plam_eval.rescore(tmp_path / "a")
    (left,) = done.left_out.values()
    assert set(left) == {"mystery", "textvqa_val"} and "not known" in left["mystery"]
    assert left["textvqa_val"] == TASKS["textvqa_val"].form.unread and "several people" in left["textvqa_val"]
    assert list(done.tasks["task"]) == ["pope"] and not len(done.pair)


def _edit(folder: Path, task: str, change: Any) -> None:
    (log,) = folder.glob(f"*_samples_{task}.jsonl")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines):
        change(number, line)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: _edit(folder, "mmstar", lambda n, line: line.pop("filtered_resps")), "it has no answer"),
        (lambda folder: _edit(folder, "mmstar", lambda n, line: line.update(filtered_resps=None)), "has no answers"),
        (lambda folder: _edit(folder, "mmstar", lambda n, line: line.update(filtered_resps=[[]])), "has no answers"),
        (lambda folder: next(folder.glob("*_mmstar.jsonl")).unlink(), "run again with --log_samples"),
        (lambda folder: next(folder.glob("*_mmstar.jsonl")).write_text("{"), "line 1 is not a sample of lmms-eval"),
        (lambda folder: next(folder.glob("*_mmstar.jsonl")).write_bytes(b"{}\xff\n"), "it is not UTF-8 (byte 2"),
        (lambda folder: _edit(folder, "mmstar", lambda n, line: line.pop("target")), "it has no target"),
        (lambda folder: _edit(folder, "mmstar", lambda n, line: line.update(doc_id=["x" * 9**6])), "not a sample"),
        (lambda folder: next(folder.glob("*_mmstar.jsonl")).write_text(""), "no documents"),
    ],
)
def test_a_log_that_cannot_be_read_costs_its_task_alone(tmp_path: Path, damage: Any, said: str) -> None:
    write_run(tmp_path, asked(wordy))
    damage(tmp_path)
    done = plam_eval.rescore(tmp_path)
    assert list(done.tasks["task"]) == ["pope"] and done.tasks["rescored"].tolist() == [1.0]
    assert said in done.left_out[str(tmp_path)]["mmstar"]
    assert len(done.left_out[str(tmp_path)]["mmstar"]) < 800, "a damaged line may be as long as a file"


def test_a_log_that_the_system_does_not_give_costs_its_task_alone(tmp_path: Path) -> None:
    file = write_run(tmp_path, asked(terse))
    results = json.loads(file.read_text(encoding="utf-8"))
    results["configs"]["x" * 300] = {}
    file.write_text(json.dumps(results), encoding="utf-8")
    done = plam_eval.rescore(tmp_path)
    assert list(done.tasks["task"]) == ["mmstar", "pope"] and "too long" in done.left_out[str(tmp_path)]["x" * 300]


def test_a_run_without_a_log_costs_no_other_run(tmp_path: Path, runs: list[Path]) -> None:
    write_run(tmp_path / "gone", asked(terse))
    for log in (tmp_path / "gone").glob("*.jsonl"):
        log.unlink()
    done = plam_eval.rescore([runs[0], tmp_path / "gone", runs[1]])
    assert {*done.tasks["run"]} == {str(runs[0]), str(runs[1])}
    assert "run again with --log_samples" in done.left_out[str(tmp_path / "gone")]["pope"]
    assert list(done.pair["task"]) == ["mmstar", "pope", "overall"], "the two that are left are a pair"


def test_which_run_is_read_is_never_a_guess(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", {"plain": asked(terse)})
    with pytest.raises(InputError, match=r"runs of several models; expected one .*sweep/cells/plain"):
        plam_eval.rescore(tmp_path / "sweep")
    for name in ("old", "new"):
        write_run(tmp_path / "runs" / name, asked(terse))
    done = plam_eval.rescore(tmp_path / "runs")
    assert "the newest of 2 runs there is read" in done.notes[0]
    file = write_run(tmp_path / "none", asked(terse))
    file.write_text(json.dumps({"configs": {}, "results": {}}), encoding="utf-8")
    with pytest.raises(RecordError, match="names no task"):
        plam_eval.rescore(tmp_path / "none")


def test_documents_without_an_answer_are_said(tmp_path: Path) -> None:
    write_run(tmp_path, asked(terse, tasks="pope"))
    _edit(tmp_path, "pope", lambda n, line: line.update(filtered_resps=[] if n < 3 else line["filtered_resps"]))
    done = plam_eval.rescore(tmp_path)
    assert any("pope: 3 of 40 documents have no answer" in note for note in done.notes)
    assert done.tasks["abstain"].tolist() == [3 / 40]


def test_bad_calls(tmp_path: Path, runs: list[Path]) -> None:
    with pytest.raises(InputError):
        plam_eval.rescore([])
    with pytest.raises(RecordError, match="no such folder"):
        plam_eval.rescore(tmp_path / "nowhere")
    with pytest.raises(RecordError, match="has no task gqa"):
        plam_eval.rescore(runs[0], tasks="gqa")
    write_run(tmp_path / "gone", asked(terse, tasks="pope"))
    next((tmp_path / "gone").glob("*.jsonl")).unlink()
    with pytest.raises(RecordError, match="no log of answers can be read"):
        plam_eval.rescore(tmp_path / "gone")
    for name in ("rescored.json", "disagreements.csv"):
        (tmp_path / name[:4]).mkdir()
        (tmp_path / name[:4] / name).write_text("mine")
        with pytest.raises(FolderError, match="not overwritten"):
            plam_eval.rescore(runs[0], output=tmp_path / name[:4])
        assert (tmp_path / name[:4] / name).read_text() == "mine"


def test_runs_that_were_asked_otherwise_are_rescored_and_not_compared(tmp_path: Path, runs: list[Path]) -> None:
    others = [{**document, "prompt": "Another?"} for document in asked(terse)]
    write_run(tmp_path / "other", others)
    done = plam_eval.rescore([runs[0], tmp_path / "other"])
    assert len(done.tasks) == 4 and not len(done.pair) and "the prompts of 40 documents differ" in done.notes[-1]
    write_run(tmp_path / "pope", asked(terse, tasks="pope"))
    write_run(tmp_path / "mmstar", asked(terse, tasks="mmstar"))
    done = plam_eval.rescore([tmp_path / "pope", tmp_path / "mmstar"])
    assert "no rescored task in common" in done.notes[-1]


def test_runs_of_other_models_are_read(tmp_path: Path, runs: list[Path]) -> None:
    file = write_run(tmp_path, asked(wordy))
    results = json.loads(file.read_text(encoding="utf-8"))
    del results["plam_eval"]
    file.write_text(json.dumps(results), encoding="utf-8")
    done = plam_eval.rescore([runs[0], tmp_path])
    assert done.pair.iloc[-1]["survives"] == DOES_NOT


def test_the_command(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plam: Call = command_line(monkeypatch, capsys)
    code, out, _ = plam("rescore", *runs, "--output", tmp_path / "out", "--examples", 1)
    assert code == 0 and f"version {VERSION}" in out and "does not" in out
    assert out.count("second parser read") == 2 and "Answer with the letter." in out
    code, out, _ = plam("rescore", *runs, "--json", "--output", tmp_path / "out")  # ours is written again
    told = json.loads(out)
    assert (
        code == 0
        and told["second_parser"] == VERSION
        and told == json.loads((tmp_path / "out/rescored.json").read_text())
    )
    written = pd.read_csv(tmp_path / "out" / "disagreements.csv")
    assert len(written) == len(told["disagreements"]) > 40
    code, _, err = plam("rescore", tmp_path / "out")
    assert code == 1 and "no *_results.json below" in err


def test_tables_are_text_and_fit_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = [
        {**document, "answer": "[bold]B[/bold] \x1b[31m", "score": 1.0} for document in asked(terse, tasks="mmstar")
    ]
    write_run(tmp_path / "a", nasty)
    write_run(tmp_path / "b", asked(terse, tasks="mmstar"))
    rescored.show(plam_eval.rescore([tmp_path / "a", tmp_path / "b"]), Terminal(width=80), 1)
    out = capsys.readouterr().out
    assert "[bold]B[/bold]" in out and "\x1b" not in out
    assert all(len(line) <= 80 for line in out.splitlines() if "%" in line or "mean over" in line)


# --- in comparisons ---------------------------------------------------------------------------------------------------


def test_a_comparison_says_whether_it_survives(runs: list[Path]) -> None:
    first, second = map(read_run, runs)
    compared = compare_runs(first, second, ("a", "b"))
    assert [row.difference < 0 for row in compared.rows] == [True] * 3, "the task's own rule stays the headline"
    assert {task: look.verdict for task, look in compared.second.items()} == dict.fromkeys(
        ("mmstar", "pope", "overall"), DOES_NOT
    )
    again = compared.to_dict()["second_parser"]
    assert again["version"] == VERSION and [row["difference"] for row in again["rows"]] == [0.0] * 3
    for narrow, width in ((False, 170), (True, 80)):
        table = tables.comparison(compared.rows, second_parser=compared.second, narrow=narrow)
        console = Terminal(width=width, record=True, file=io.StringIO())
        console.show(table)
        out = console.export_text()
        assert out.count("does not") == 3 and f"second parser, version {VERSION}" in out
        assert max(map(len, out.splitlines())) <= width
    none = tables.comparison(compared.rows)
    assert "second parser" not in [column.header for column in none.columns]


def test_of_several_runs_p_is_adjusted_for_all(runs: list[Path], tmp_path: Path) -> None:
    write_run(tmp_path, asked(terse), plain=False)
    three = {"plain": read_run(runs[0]), "wordy": read_run(runs[1]), "same": read_run(tmp_path)}
    compared = compare_with_one(three)
    assert compared is not None
    means = compared.second_means()
    assert (means["wordy"].verdict, means["same"].verdict) == (DOES_NOT, IN_NEITHER)


def test_tasks_that_are_not_read_keep_their_scores_in_the_mean(tmp_path: Path) -> None:
    samples = [read_run(write_run(tmp_path / say.__name__, asked(say))).samples for say in (terse, wordy)]
    for table in samples:
        table.loc[table["task"] == "pope", "rescored"] = float("nan")
    one, other = samples
    rows = stats.compare(one, other)
    looks = second_parser.second_look(one, other, rows)
    assert set(looks) == {"mmstar", "overall"}
    assert looks["overall"].difference == pytest.approx(rows[1].difference / 2), "pope counts as its task scores it"
    for table in samples:
        table["rescored"] = float("nan")
    assert second_parser.second_look(one, other, rows) == {}
    older = [table.drop(columns="rescored") for table in samples]
    assert second_parser.second_look(older[0], older[1], rows) == {}


def test_letters_of_several_right_choices_are_read() -> None:
    """As MMMU's published answers have them, lists of one among them."""
    line = {"input": "What?\nA. red\nB. blue\nC. green\n\n", "mmmu_acc": {"question_type": "multiple-choice"}}
    for target, right in (("B", "B"), ('["B"]', "B"), ('["A", "B"]', "AB")):
        readings = {letter: read_again("plam_mmmu_test", {**line, "target": target}, letter) for letter in "ABC"}
        assert {letter for letter, reading in readings.items() if reading.score} == set(right)
        assert all(reading.read == letter and reading.parsable for letter, reading in readings.items())
