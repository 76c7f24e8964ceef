"""Released test sets through the real harness, on invented copies: truth, shuffled truth, and what nobody can read."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lmms_eval.tasks import TaskManager

from plam_eval.demo import test_sets as demo
from plam_eval.demo.hub import write_hub
from plam_eval.demo.questions import LETTERS
from plam_eval.evaluation.comparable import check_comparable
from plam_eval.evaluation.records import Run, read_run
from plam_eval.evaluation.stats import compare
from plam_eval.evaluation.stock_scores import LEAST, stock_scores
from plam_eval.evaluation.sweep.documents import split_documents
from plam_eval.harness.checks import check_tasks
from plam_eval.harness.errors import EvaluationError
from plam_eval.harness.evaluate import evaluate
from plam_eval.harness.lookup import load_tasks, task_manager
from plam_eval.harness.patches import check_same_files
from plam_eval.harness.recompute import find_task, same_entry, same_number
from plam_eval.harness.run_files import samples_file
from plam_eval.harness.tasks import TASKS as ROWS
from plam_eval.publishing.boards.table import boards_of
from plam_eval.tasks import FOLDER
from plam_eval.test_sets import TEST_SETS, AnswerFileError
from tests.helpers.offline_copies import PlannedModel
from tests.helpers.released import STEP, md5, planned, truths, tsv

DOCUMENTS = 30
MMMU, ENGLISH, CHINESE = TEST_SETS
TASKS = list(TEST_SETS)


class Answered(NamedTuple):
    """What was answered, by task, the run that came of it, and the same answers as a scan logs them."""

    answers: Mapping[str, Sequence[str]]
    run: Run
    scanned: list[dict[str, Any]]

    def metric(self, task: str, name: str) -> float:
        return float(self.run.results["results"][task][f"{name},none"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The invented test sets as working directory, with what `answers.env` says in the environment."""
    suite = write_hub(tmp_path_factory.mktemp("suite"), documents_per_task=DOCUMENTS)
    folder = demo.write_test_sets(suite)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name, value in demo.environment(folder).items():
            patch.setenv(name, value)
        yield folder


def answered(answers: Mapping[str, Sequence[str]], output: Path) -> Answered:
    model = PlannedModel(planned(answers), folder=output.name)
    evaluate(model, TASKS, output=output)
    return Answered(answers, read_run(output), model.scanned)


def one_of(truth: Any) -> str:
    """What a model that knows it would say: one of several right answers."""
    return str(truth[-1] if isinstance(truth, list) else truth)


@pytest.fixture(scope="module")
def right(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    known = {task: [one_of(truth) for truth in own] for task, own in truths(folder).items()}
    return answered(known, tmp_path_factory.mktemp("right"))


@pytest.fixture(scope="module")
def shuffled(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    answers = {}
    for task, own in truths(folder).items():
        answers[task] = [one_of(truth) for truth in own]
        random.Random(task).shuffle(answers[task])
    return answered(answers, tmp_path_factory.mktemp("shuffled"))


@pytest.fixture(scope="module")
def unreadable(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    words = {task: ["lorem ipsum"] * len(own) for task, own in truths(folder).items()}
    return answered(words, tmp_path_factory.mktemp("unreadable"))


def test_the_truth_has_full_marks(right: Answered) -> None:
    stored = right.run.results["results"]
    metrics = {key.partition(",")[0]: value for key, value in stored[MMMU].items() if "," in key and "std" not in key}
    assert len([name for name in metrics if name.startswith("mmmu_acc")]) == 7
    assert {name: value for name, value in metrics.items() if name != "unparsable"} == dict.fromkeys(
        set(metrics) - {"unparsable"}, 1
    )
    for task in (ENGLISH, CHINESE):
        assert right.metric(task, "circular_eval") == right.metric(task, "row_accuracy") == 100
    assert [right.metric(task, "unparsable") for task in TASKS] == [0, 0, 0]
    assert (right.run.samples["score"] == 1).all() and not right.run.unscored


def test_shuffled_truth_has_about_chance_and_exactly_what_it_earns(folder: Path, shuffled: Answered) -> None:
    """The figures are counted here from the files, by code that shares nothing with the harness."""
    truth = truths(folder)
    hits = [
        said in known if isinstance(known, list) else said == known
        for said, known in zip(shuffled.answers[MMMU], truth[MMMU], strict=True)
    ]
    assert shuffled.metric(MMMU, "mmmu_acc") == round(sum(hits) / len(hits), 5) and 0 < sum(hits) < len(hits) / 2
    for task, language in ((ENGLISH, "en"), (CHINESE, "cn")):
        rows = tsv(folder, language)
        row_hits = [said == row["answer"] for said, row in zip(shuffled.answers[task], rows, strict=True)]
        questions: dict[int, list[bool]] = {}
        for row, hit in zip(rows, row_hits, strict=True):
            questions.setdefault(int(row["index"]) % STEP, []).append(hit)
        assert len(questions) == DOCUMENTS and {len(turns) for turns in questions.values()} == {3, 4}
        circular = 100 * sum(map(all, questions.values())) / len(questions)
        assert shuffled.metric(task, "circular_eval") == pytest.approx(circular)
        assert shuffled.metric(task, "row_accuracy") == pytest.approx(100 * sum(row_hits) / len(row_hits))
        assert 12 < shuffled.metric(task, "row_accuracy") < 38 and circular < 10  # four choices, three or four times


def test_stock_scores_have_intervals(folder: Path, right: Answered, tmp_path: Path) -> None:
    """Of both accuracies of MMBench, and of MMMU and its domains; what is drawn are questions, with their rotations."""
    known = {task: [one_of(truth) for truth in own] for task, own in truths(folder).items()}
    some = {task: [said if at % 9 else "lorem ipsum" for at, said in enumerate(own)] for task, own in known.items()}
    partly = answered(some, tmp_path / "some")
    scores = {(score.task, score.metric): score for score in stock_scores(right.run, partly.run)}
    for task in (ENGLISH, CHINESE):
        score = scores[task, "circular_eval"]
        assert (score.unit, score.over, score.clusters, score.note) == ("percent", "clusters", DOCUMENTS, "")
        assert score.first == 100 and 0 < score.second == partly.metric(task, "circular_eval") < 100
        assert score.low < score.difference < score.high < 0
        assert [scores[task, name].unit for name in ("row_accuracy", "unparsable")] == ["percent", "share"]
    assert scores[MMMU, "unparsable"].unit == "share"
    whole, *domains = (score for (task, metric), score in scores.items() if task == MMMU and metric != "unparsable")
    assert whole.metric == "mmmu_acc" and len(domains) == 6 and sum(each.documents for each in domains) == DOCUMENTS
    for score in (whole, *domains):
        assert score.unit == "share" and score.second == partly.metric(MMMU, score.metric) and not score.note
        assert score.low < score.difference < score.high if score.differing >= LEAST else "differ" in score.why


def test_what_cannot_be_read_is_wrong_and_never_drawn(folder: Path, unreadable: Answered) -> None:
    assert unreadable.metric(MMMU, "mmmu_acc") == 0 and unreadable.metric(MMMU, "unparsable") == 1
    for task in (ENGLISH, CHINESE):
        assert [unreadable.metric(task, name) for name in ("circular_eval", "row_accuracy", "unparsable")] == [0, 0, 1]
    asked = load_tasks(task_manager(), TASKS)
    before = random.getstate()
    for output in asked:
        document = output.task.eval_docs[0]
        logged = [output.task.process_results(dict(document), ["lorem ipsum"]) for _ in range(3)]
        assert logged[0] == logged[1] == logged[2] and logged[0]["unparsable"] == 1
    assert random.getstate() == before


def test_an_open_answer_is_never_called_unreadable(right: Answered) -> None:
    lines = [json.loads(line) for line in samples_file(right.run.file, MMMU).read_text().splitlines()]
    kinds = {line["mmmu_acc"]["question_type"]: "unparsable" in line for line in lines}
    assert kinds == {"multiple-choice": True, "open": False}
    assert any(isinstance(line["mmmu_acc"]["answer"], list) for line in lines)


def test_prompts_and_settings_are_those_of_the_stock_tasks(folder: Path) -> None:
    manager = task_manager()
    stock = {MMMU: "mmmu_test", ENGLISH: "mmbench_en_test", CHINESE: "mmbench_cn_test"}
    for output in load_tasks(manager, TASKS):
        own, name = output.task, output.task_name
        theirs = manager._get_config(stock[name])
        document = own.eval_docs[0]
        asked = (theirs.get("lmms_eval_specific_kwargs") or {}).get("default")
        prompt = theirs["doc_to_text"]({**document, "hint": document.get("hint") or float("nan")}, asked)
        assert own.doc_to_text(document) == prompt and "nan" not in prompt.split()
        settings = own.config.generation_kwargs
        assert {name: settings[name] for name in theirs["generation_kwargs"]} == theirs["generation_kwargs"]
        assert own.config.doc_to_visual.__name__ == theirs["doc_to_visual"].__name__
        assert [image.mode for image in own.doc_to_visual(document)] == ["RGB"]


def test_runs_say_which_file_they_were_scored_with(folder: Path, right: Answered) -> None:
    for task in TASKS:
        name = TEST_SETS[task].file.name
        said = right.run.results["configs"][task]["metadata"]["answers"]
        assert said == {"file": name, "md5": md5(folder / name), "released": False}
    configs = json.dumps(right.run.results["configs"])
    assert str(folder) not in configs and str(FOLDER) not in configs
    assert sorted(note.partition(":")[0] for note in right.run.notes) == sorted(TASKS)
    assert all("vouched for that version" in note for note in right.run.notes)


def test_clusters_are_questions_and_subjects(right: Answered, shuffled: Answered) -> None:
    groups = right.run.samples.groupby("task")["group"]
    assert groups.nunique().to_dict() == dict.fromkeys(TASKS, DOCUMENTS)
    assert {str(group).split()[0] for group in right.run.samples["group"]} == {"question", "subject"}
    assert not check_comparable(right.run, shuffled.run)
    by_task = {each.task: each for each in compare(right.run.samples, shuffled.run.samples, resamples=200)}
    assert by_task[ENGLISH].test == "sign-flip" and by_task[ENGLISH].groups == DOCUMENTS
    assert by_task[ENGLISH].documents > 3 * DOCUMENTS and by_task[ENGLISH].p < 0.01
    rows = right.run.samples[right.run.samples["task"] == ENGLISH]
    chosen, reported = (set(rows.merge(side)["group"]) for side in split_documents(rows, 40))
    assert chosen and reported and not chosen & reported  # rotations of a question stay together


def test_a_scan_scores_as_an_evaluation_does(shuffled: Answered) -> None:
    scanned = {(line["task"], line["doc_id"]): ROWS[line["task"]].score.of(line) for line in shuffled.scanned}
    rows = shuffled.run.samples
    assert scanned == {(row.task, row.doc_id): row.score for row in rows.itertuples()}


@pytest.mark.parametrize("task", TASKS)
def test_what_was_logged_can_be_recomputed_without_the_file(
    shuffled: Answered, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TEST_SETS[task].file.variable)
    stock = find_task(task, shuffled.run.results["configs"][task])
    lines = [json.loads(line) for line in samples_file(shuffled.run.file, task).read_text().splitlines()]
    values, failures = stock.metrics(lines, "none")
    stored = shuffled.run.results["results"][task]
    assert not failures and set(values) >= {name for name in stored if "," in name and "stderr" not in name}
    assert all(same_number(value, stored[name]) for name, value in values.items() if "stderr" not in name)
    for line in lines:
        rebuild = ROWS[task].rebuild
        assert rebuild is not None
        logged = {name: line[name] for name in stock.rescore(rebuild(line)[0], line["filtered_resps"][0]).entries}
        again = [stock.rescore(document, line["filtered_resps"][0]) for document in rebuild(line)]
        assert any(same_entry(each.entries, logged) and not each.drawn for each in again)


def test_figures_by_category_lie_with_the_run(shuffled: Answered) -> None:
    (stock,) = shuffled.run.file.parent.glob("*_stock")
    details = {path.name: json.loads(path.read_text()) for path in stock.iterdir()}
    assert sorted(details) == sorted(f"{task}_results.json" for task in TASKS)
    mmmu = details[f"{MMMU}_results.json"]
    assert mmmu["Overall"] == {"num": DOCUMENTS, "acc": shuffled.metric(MMMU, "mmmu_acc")}
    assert mmmu["Overall-Science"]["num"] == 5 and mmmu["Physics"]["num"] == 1
    assert mmmu["Overall-Science"]["acc"] == shuffled.metric(MMMU, "mmmu_acc_Science")
    english = details[f"{ENGLISH}_results.json"]
    assert 100 * english["overall_acc"] == pytest.approx(shuffled.metric(ENGLISH, "circular_eval"))
    assert len(english["l2_category_acc"]) == 6


def test_boards_read_their_logs(folder: Path, shuffled: Answered) -> None:
    boards = {task: [board.name for board in boards_of(task)] for task in TASKS}
    assert boards == {MMMU: ["mmmu_test"], ENGLISH: ["mmbench_en"], CHINESE: ["mmbench_cn"]}
    for task in TASKS:
        (board,) = boards_of(task)
        lines = [json.loads(line) for line in samples_file(shuffled.run.file, task).read_text().splitlines()]
        rows = [board.read(line) for line in lines]
        said = list(shuffled.answers[task])
        if task == MMMU:  # an open question's answer, said of one with choices, is none of its letters
            kinds = [line["mmmu_acc"]["question_type"] for line in lines]
            read = [one if kind == "open" or one in LETTERS else "" for one, kind in zip(said, kinds, strict=True)]
            assert [row["answer"] for row in rows] == read
        else:
            assert [row["prediction"] for row in rows] == said
            assert [row["index"] for row in rows] == [int(row["index"]) for row in tsv(folder, task[13:15])]


# --- refused before a model is loaded ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_wrong_file_is_refused_when_the_task_is_named(
    folder: Path, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TEST_SETS[task].file
    check_tasks([task])
    manager = TaskManager("ERROR")
    assert manager.match_tasks([task]) == [task]
    monkeypatch.setenv(file.md5_variable, "0" * 32)
    for refused in (check_tasks, manager.match_tasks):
        with pytest.raises((EvaluationError, AnswerFileError), match=f"{file.md5_variable} says {'0' * 32}"):
            refused([task])
    monkeypatch.delenv(file.md5_variable)
    with pytest.raises(AnswerFileError, match="vouch"):
        manager.match_tasks([task])
    monkeypatch.delenv(file.variable)
    with pytest.raises(EvaluationError, match=f"{file.variable} is not set"):
        check_tasks([task])
    with pytest.raises(AnswerFileError, match=f"{file.variable} is not set"):  # after one attempt, not five
        evaluate(PlannedModel({}), [task])
    assert manager.match_tasks(["mmmu_test"]) == ["mmmu_test"]


def test_answers_to_other_questions_are_refused_before_a_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = json.loads((folder / "answer_dict_test.json").read_text())
    answers["test_Art_999"] = answers.pop("test_Art_1")
    other = tmp_path / "other.json"
    other.write_text(json.dumps(answers))
    monkeypatch.setenv("PLAM_MMMU_TEST_ANSWERS", str(other))
    monkeypatch.setenv("PLAM_MMMU_TEST_ANSWERS_MD5", md5(other))
    with pytest.raises(EvaluationError) as caught:
        check_tasks([MMMU])
    said = str(caught.value)
    assert "test_Art_1" in said and "test_Art_999" in said and "another version than the dataset" in said


def test_an_evaluation_of_processes_with_other_files_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def two_ranks(value: dict[str, Any]) -> list[dict[str, Any]]:
        return [value, {MMMU: {"md5": "1"}}] if MMMU in value else [value]

    monkeypatch.setattr("plam_eval.harness.patches.all_ranks", two_ranks)
    answers = {MMMU: ["A"] * DOCUMENTS}
    with pytest.raises(EvaluationError, match=r"plam_mmmu_test: processes scored with other files .*rank 1"):
        evaluate(PlannedModel(planned(answers)), [MMMU])


def test_processes_with_other_files_are_told() -> None:
    one, other = {"plam_mmmu_test": {"md5": "1"}}, {"plam_mmmu_test": {"md5": "2"}}
    check_same_files([one, dict(one)])
    check_same_files([{}, {}])
    with pytest.raises(EvaluationError, match=r"plam_mmmu_test: processes scored with other files .*rank 1"):
        check_same_files([one, other])


# --- the copies -------------------------------------------------------------------------------------------------------


def test_copies_are_written_by_a_command_and_stay_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = demo.environment(folder)
    assert demo.main([str(folder.parent)]) == 0
    assert "answers.env" in capsys.readouterr().out and demo.environment(folder) == before
    lines = (folder / demo.ENVIRONMENT).read_text().splitlines()
    assert sorted(lines) == sorted(f"export {name}={value}" for name, value in before.items())
    assert demo.main([str(tmp_path)]) == 1 and "write the suite with" in capsys.readouterr().err


def test_a_folder_of_somebody_elses_is_left(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "suite"
    (suite / demo.FOLDER).mkdir(parents=True)
    (suite / "plam_offline_suite.json").write_text((folder.parent / "plam_offline_suite.json").read_text())
    (suite / demo.FOLDER / "theirs.txt").write_text("x")
    assert demo.main([str(suite)]) == 1 and "plam-eval has not made it" in capsys.readouterr().err
    assert (suite / demo.FOLDER / "theirs.txt").read_text() == "x"
