"""What is known of tasks before a model answers them, with tasks of a user's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from plam_eval.errors import InputError
from plam_eval.harness import checks
from plam_eval.harness.checks import check_generation, check_tasks
from plam_eval.harness.errors import EvaluationError

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
process_results: !function scores.{name}
metric_list:
  - {{metric: {metric}, aggregation: {aggregation}, higher_is_better: true}}
generation_kwargs: {{max_new_tokens: 4}}
"""
SCORES = """
def own_mean(doc, results):
    return {"right": float(results[0] == doc["answer"]), "caption": {"pred": results[0], "answer": doc["answer"]}}

def own_captions(doc, results):
    return {"cider": {"pred": results[0], "answer": doc["answer"]}}

def own_judge(doc, results):
    return {"verdict": -1}

def own_other_name(doc, results):
    return {"right_of_text": 1.0}

def own_crash(doc, results):
    raise RuntimeError("no judge to be reached")

def own_part(doc, results):
    return {"right_of_low" if int(doc["answer"]) < 3 else "right_of_high": 1.0}

def own_errors(doc, results):
    return {"errors": 3.0 * abs(float(results[0]) - float(doc["answer"]))}

def own_penalty(doc, results):
    return {"points": 1.0 if results[0] == doc["answer"] else -0.25}

def cider(entries):
    return 1.0
"""
METRICS = {"own_mean": "right", "own_captions": "cider", "own_judge": "verdict", "own_other_name": "right"}
METRICS |= {"own_crash": "right", "own_part": "right_of_low", "own_penalty": "points"}


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of tasks, as `include_path` takes it; one for all tests, since lmms-eval's are indexed beside it."""
    tmp_path = tmp_path_factory.mktemp("own")
    data = tmp_path / "documents.jsonl"
    data.write_text("".join(json.dumps({"question": f"{n}?", "answer": str(n)}) + "\n" for n in range(5)))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "scores.py").write_text(SCORES)
    for name, metric in METRICS.items():
        aggregation = "!function scores.cider" if name == "own_captions" else "mean"
        text = TASK.format(name=name, data=data, metric=metric, aggregation=aggregation)
        (folder / f"{name}.yaml").write_text(text)
    errors = TASK.format(name="own_errors", data=data, metric="errors", aggregation="mean")
    (folder / "own_errors.yaml").write_text(errors.replace("higher_is_better: true", "higher_is_better: false"))
    choices = TASK.format(name="own_choices", data=data, metric="acc", aggregation="mean")
    choices = choices.replace("process_results: !function scores.own_choices\n", 'doc_to_choice: ["0", "1", "2"]\n')
    choices = choices.replace("generate_until", "multiple_choice")
    (folder / "own_choices.yaml").write_text(choices)
    absent = TASK.format(name="own_absent", data=tmp_path / "absent.jsonl", metric="right", aggregation="mean")
    (folder / "own_absent.yaml").write_text(absent.replace("scores.own_absent", "scores.own_mean"))
    (folder / "both.yaml").write_text("group: own_group\ntask: [own_mean, own_captions]\n")
    yield folder
    checks._checked.cache_clear()


def test_tasks_that_will_have_no_score_are_named_beforehand(own_tasks: Path) -> None:
    checked = check_tasks(list(METRICS), limit=3, include_path=own_tasks)
    assert checked.documents == dict.fromkeys(METRICS, 3)
    assert checked.scored == ("own_mean", "own_part")
    assert checked.unscored == {
        "own_captions": "it declares no metric that is a mean over documents; it declares cider (cider)",
        "own_judge": "verdict is -1, expected 0 to 1",
        "own_other_name": "expected right in its log, found right_of_text",
        "own_crash": "scoring an answer to document 0 raised RuntimeError: no judge to be reached",
        "own_penalty": "points is -0.25, expected 0 to 1",
    }


def test_a_metric_of_a_part_of_the_documents_is_named_beforehand(own_tasks: Path) -> None:
    tasks = ["own_mean", "own_part"]
    expected = {"own_part": "expected right_of_low in its log, found right_of_high"}
    assert check_tasks(tasks, include_path=own_tasks).unscored == expected
    assert check_tasks(tasks, limit=4, include_path=own_tasks).unscored == expected
    assert check_tasks(tasks, offset=3, include_path=own_tasks).unscored == expected
    assert check_tasks(tasks, limit=3, include_path=own_tasks).unscored == {}


def test_where_lower_is_better_there_is_no_upper_end_and_no_curve(own_tasks: Path) -> None:
    assert check_tasks(["own_errors"], include_path=own_tasks).unscored == {}
    with pytest.raises(EvaluationError, match="own_errors: lower is better in errors, and a curve is of scores"):
        check_tasks(["own_errors"], include_path=own_tasks, by_document=True)


def test_likelihoods_are_scored_but_in_scans(own_tasks: Path) -> None:
    assert check_tasks(["own_choices"], include_path=own_tasks).unscored == {}
    with pytest.raises(EvaluationError, match=r"own_choices: it is answered by likelihoods \(multiple_choice\)"):
        check_tasks(["own_choices"], include_path=own_tasks, by_document=True)


def test_of_a_group_the_tasks_with_scores_are_kept(own_tasks: Path) -> None:
    assert check_tasks(["own_group"], include_path=own_tasks).scored == ("own_mean",)
    assert check_tasks(["own_mean"], offset=1, include_path=own_tasks).documents == {"own_mean": 4}


def test_nothing_that_can_be_compared_is_refused(own_tasks: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no score per document is known for any(.|\n)*own_judge: verdict is -1"):
        check_tasks(["own_captions", "own_judge"], include_path=own_tasks)


def test_an_offset_behind_the_documents_is_refused(own_tasks: Path) -> None:
    with pytest.raises(EvaluationError, match="offset is 5, which leaves no document of own_mean"):
        check_tasks(["own_mean"], offset=5, include_path=own_tasks)


def test_a_dataset_that_is_not_there_is_named(own_tasks: Path) -> None:
    with pytest.raises(EvaluationError, match=r"a task or its dataset could not be loaded: .*absent\.jsonl"):
        check_tasks(["own_absent"], include_path=own_tasks)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("custom_generate=someone/code", "custom_generate: found 'someone/code'; it names code, which is never run"),
        ("trust_remote_code=True", "trust_remote_code: found True"),
        ("num_return_sequences=2", "num_return_sequences: found 2; a document has one answer"),
        ("max_new_tokens=abc", "max_new_tokens: found 'abc', expected a whole number, 1 or more"),
        ("max_new_tokens=0", "max_new_tokens: found 0"),
        ("max_new_tokens=1.5", "max_new_tokens: found 1.5"),
        ("temperature=warm", "temperature: found 'warm', expected a number, 0 or more"),
        ("do_sample=maybe", "do_sample: found 'maybe', expected True or False"),
        ("max_new_tokens=-1,custom_generate=x", "(?s)max_new_tokens: found .*custom_generate: found 'x'"),
    ],
)
def test_generation_settings_that_no_answer_can_be_had_under(given: str, said: str, greedy: bool) -> None:
    with pytest.raises(InputError, match=said):
        check_generation(given, greedy=greedy)


def test_what_is_greedy() -> None:
    for odd in ("do_sample=True", "temperature=0.7", "num_beams=3"):
        check_generation(odd)
        with pytest.raises(InputError, match=odd.split("=")[0] + ": found .*greedily: leave it out"):
            check_generation(odd, greedy=True)
    check_generation("max_new_tokens=8,temperature=0,do_sample=False,num_beams=1,num_return_sequences=1", greedy=True)


def test_tasks_are_not_loaded_for_settings_that_are_refused() -> None:
    with pytest.raises(InputError, match="custom_generate"):
        check_tasks("no_such_task", gen_kwargs="custom_generate=x")
