from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from lmms_eval import evaluator
from lmms_eval.tasks import TaskManager
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
from lmms_eval.utils import load_yaml_config

from plam_eval.demo import questions
from plam_eval.demo.hub import read_manifest, write_hub
from plam_eval.tasks import FOLDER
from tests.helpers.answering import Answering

DOCUMENTS = 60
NINE = (
    *("mmstar", "mmbench_en_dev_static", "mmbench_cn_dev_static", "mme", "mmmu_val"),
    *("gqa", "pope", "realworldqa", "seedbench_2_plus"),
)
LETTER_TASKS = ("mmstar", "mmbench_en_dev_static", "mmbench_cn_dev_static", "seedbench_2_plus")


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(FOLDER), model_name="llava_hf")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The offline suite as working directory, as a user has it, with a dataset cache of its own and no judge."""
    folder = write_hub(tmp_path_factory.mktemp("suite"), documents_per_task=DOCUMENTS)
    cache = tmp_path_factory.mktemp("cache")

    def judge(*_: Any) -> None:
        raise AssertionError("a judge was asked")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(cache))
        patch.setattr(MMBench_Evaluator, "get_chat_response", judge)
        patch.setattr(MMBench_Evaluator, "_post_request", judge)
        yield folder


@pytest.fixture(scope="module")
def run(suite: Path, manager: TaskManager) -> Callable[[Callable[[str, int], str]], tuple[dict[str, Any], Answering]]:
    def evaluate(answer: Callable[[str, int], str]) -> tuple[dict[str, Any], Answering]:
        model = Answering(answer)
        results = evaluator.simple_evaluate(
            model, tasks=["plam9"], task_manager=manager, batch_size=1, log_samples=False, bootstrap_iters=0
        )
        scores = {
            task: {key.removesuffix(",none"): value for key, value in metrics.items() if "stderr" not in key}
            for task, metrics in results["results"].items()
        }
        return scores, model

    return evaluate


@pytest.fixture(scope="module")
def truthful(suite: Path, run: Callable[..., Any]) -> tuple[dict[str, Any], Answering]:
    tasks = read_manifest(suite)["tasks"]
    return run(lambda task, index: tasks[task]["documents"][index]["answer"])


def test_the_truth_scores_full_marks_on_all_nine(truthful: tuple[dict[str, Any], Answering]) -> None:
    scores, model = truthful
    assert set(scores) == {"plam9", *NINE}
    assert all(scores["mmstar"][metric] == 1 for metric in scores["mmstar"] if metric != "alias")
    for language in ("en", "cn"):
        assert scores[f"mmbench_{language}_dev_static"]["gpt_eval_score"] == 100
    assert scores["mme"]["mme_perception_score"] == 2000
    assert scores["mme"]["mme_cognition_score"] == 800
    assert scores["mmmu_val"]["mmmu_acc"] == 1
    assert scores["gqa"]["exact_match"] == scores["realworldqa"]["exact_match"] == 1
    assert [scores["pope"][f"pope_{m}"] for m in ("accuracy", "precision", "recall", "f1_score")] == [1, 1, 1, 1]
    assert [scores["seedbench_2_plus"][f"seedbench_2_plus_{m}"] for m in ("Chart", "Map", "Web", "all")] == [1] * 4
    assert {task: sum(t == task for t, _ in model.messages) for task in NINE} == dict.fromkeys(NINE, DOCUMENTS)


def test_a_constant_answer_scores_its_share(suite: Path, run: Callable[..., Any]) -> None:
    scores, _ = run(lambda task, _: "B" if task in (*LETTER_TASKS, "mmmu_val", "realworldqa") else "yes")
    shares = {
        task: dataset["answers"].get("B", dataset["answers"].get("yes"))
        for task, dataset in read_manifest(suite)["tasks"].items()
    }
    assert scores["mmbench_en_dev_static"]["gpt_eval_score"] == scores["mmbench_cn_dev_static"]["gpt_eval_score"] == 25
    assert scores["seedbench_2_plus"]["seedbench_2_plus_all"] == 0.25
    for task, metric in {"mmmu_val": "mmmu_acc", "gqa": "exact_match", "realworldqa": "exact_match"}.items():
        assert scores[task][metric] == pytest.approx(shares[task] / DOCUMENTS), task
    assert scores["pope"]["pope_accuracy"] == 0.5
    # Half of the single answers of each of 10 and 4 categories are right, and no pair is.
    assert (scores["mme"]["mme_perception_score"], scores["mme"]["mme_cognition_score"]) == (500, 200)


def test_garbage_scores_nothing_and_asks_no_judge(run: Callable[..., Any]) -> None:
    scores, _ = run(lambda task, index: "lorem ipsum")
    for task, metric in {
        "mmbench_en_dev_static": "gpt_eval_score",
        "mmbench_cn_dev_static": "gpt_eval_score",
        "gqa": "exact_match",
        "pope": "pope_accuracy",
        "realworldqa": "exact_match",
        "seedbench_2_plus": "seedbench_2_plus_all",
        "mmstar": "average",
    }.items():
        assert scores[task][metric] == 0, task
    assert 0 < scores["mmmu_val"]["mmmu_acc"] < 0.5  # letters drawn for want of an answer


def test_prompts_are_the_forms_used_in_training(suite: Path, truthful: tuple[dict[str, Any], Answering]) -> None:
    _, model = truthful
    manifest = read_manifest(suite)
    forms = {"mmbench_en_dev_static": "mmbench_en", "mmbench_cn_dev_static": "mmbench_cn", "mmmu_val": "mmmu"}
    chinese = datasets.load_dataset("lmms-lab-encoder/MMBench", "cn", split="dev")
    for (task, index), messages in model.messages.items():
        document = manifest["tasks"][task]["documents"][index]
        image, text = messages[0]["content"]
        assert (image["type"], text["type"], len(messages)) == ("image", "text", 1)
        choices = tuple(document["choices"] or (document["answer"].lower(),))
        form = forms.get(task, task)
        if task == "mmmu_val" and not document["choices"]:
            form = "mmmu_open"
        text_zh = chinese[index]["question"] if task == "mmbench_cn_dev_static" else ""
        answer = choices["ABCD".index(document["answer"])] if document["choices"] else choices[0]
        question = questions.Question(document["kind"], document["question"], text_zh, answer, choices)
        expected, expected_answer = questions.FORMS[form](question)
        assert text["text"] == expected, (task, index)
        assert document["answer"].lower() == expected_answer.lower(), (task, index)


def test_no_chinese_prompt_starts_with_nan(suite: Path, manager: TaskManager) -> None:
    row = datasets.load_dataset("lmms-lab-encoder/MMBench", "cn", split="dev")[0]
    stock = manager._get_config("mmbench_cn_dev")["doc_to_text"]
    ours = manager._get_config("mmbench_cn_dev_static")["doc_to_text"]
    asked = {"post_prompt": "!"}
    assert row["hint"] == "nan"
    assert stock(row, asked) == "nan " + ours(row, asked)
    assert row["hint"] == "nan"
    for none in ("", None, float("nan")):
        assert ours({**row, "hint": none}, asked) == ours(row, asked)
    assert ours({**row, "hint": "看图"}, asked) == stock({**row, "hint": "看图"}, asked)


def test_the_chinese_task_is_the_stock_one_but_for_scoring_and_hint(manager: TaskManager) -> None:
    stock, ours = manager._get_config("mmbench_cn_dev"), manager._get_config("mmbench_cn_dev_static")
    assert ours["task"] == "mmbench_cn_dev_static"

    def said(value: Any) -> str:  # functions of a YAML are loaded anew each time: compare them by name
        return value.__name__ if callable(value) else str(value)

    changed = {key for key in stock.keys() | ours.keys() if said(stock.get(key)) != said(ours.get(key))}
    assert changed == {"task", "doc_to_text", "metric_list"}
    assert ours["doc_to_text"].__module__ == "mmbench_cn"


def test_our_yamls_hold_no_machine_path() -> None:
    for path in FOLDER.glob("*.yaml"):
        loaded = load_yaml_config(str(path), mode="simple")
        assert "task" in loaded
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert not [line for line in lines if "/" in line and not re.fullmatch(r"dataset_path: [\w-]+/[\w-]+", line)]


def test_the_nine_of_the_group_are_stock_tasks_but_the_chinese_one(manager: TaskManager) -> None:
    names = [task if isinstance(task, str) else task["task"] for task in manager._get_config("plam9")["task"]]
    assert tuple(names) == NINE
    ours = {name for name in names if Path(manager.task_index[name]["yaml_path"]).parent == FOLDER}
    assert ours == {"mmbench_cn_dev_static"}


def mmmu_document(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "question_type": "multiple-choice",
        "options": "['red', 'green', 'blue', 'star']",
        "answer": "A",
    }


def test_an_unparseable_mmmu_answer_gets_the_letter_of_its_document(manager: TaskManager) -> None:
    process_results = next(t for t in manager._get_config("plam9")["task"] if isinstance(t, dict))["process_results"]
    documents = [mmmu_document(f"validation_Art_{i}") for i in range(40)]

    def letters(answer: str) -> list[str]:
        return [process_results(doc, [answer])["mmmu_acc"]["parsed_pred"][0] for doc in documents]

    drawn = letters("lorem ipsum")
    assert all(letters("lorem ipsum") == drawn for _ in range(5))
    assert set(drawn) == set("ABCD")


@pytest.mark.parametrize(
    "answer", ["B", "(C)", "B.", "The answer is D", "it must be green because of the grass", "A B"]
)
def test_a_parseable_mmmu_answer_is_scored_as_the_stock_task_does(answer: str, manager: TaskManager) -> None:
    from lmms_eval.tasks.mmmu.utils import mmmu_process_results

    process_results = next(t for t in manager._get_config("plam9")["task"] if isinstance(t, dict))["process_results"]
    for doc in (mmmu_document("validation_Art_1"), {**mmmu_document("validation_Art_2"), "question_type": "open"}):
        assert process_results(doc, [answer]) == mmmu_process_results(doc, [answer])


def test_importing_the_package_is_light() -> None:
    code = "import sys, plam_eval.tasks; print(sorted({'torch', 'lmms_eval', 'datasets', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
