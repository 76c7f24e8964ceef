from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plam_eval.evaluation.comparable import check_comparable, notes_of, only_scored
from plam_eval.evaluation.records import read_run, tables
from plam_eval.harness.errors import RecordError
from plam_eval.harness.run_files import samples_file
from plam_eval.harness.task_row import ONE_EACH, Score, Task
from plam_eval.harness.tasks import TASKS, as_score
from plam_eval.report.page import write_report
from tests.helpers import run_folders
from tests.helpers.logged_runs import MEAN, graded_rows, logged_run, write_logs

MMBENCH = {"index": 1, "answer": "B", "A": "red", "B": "blue", "C": "green", "D": "purple", "E": "nan"}
A, B = "a" * 64, "b" * 64  # digests
MMBENCH |= {"question": "?", "hint": "nan", "category": "c", "L2-category": "l", "source": "s", "split": "dev"}
MMMU = {"id": "validation_Art_1", "subdomain": "Art", "question_type": "multiple-choice", "answer": "D"}

# (what the task logs beside the answer, target, answer, score, parsable)
FORMS: dict[str, tuple[dict[str, Any], str, str, float, bool | None]] = {
    "number": ({"exact_match": 1.0}, "red", "red", 1.0, None),
    "score": ({"average": {"question_id": 0, "score": 0.0}}, "A", "B", 0.0, True),
    "yes": ({"pope_accuracy": {"score": 1.0, "prediction": "yes"}}, "yes", "Yes", 1.0, True),
    "no_form": ({"pope_accuracy": {"score": 0.0, "prediction": "maybe"}}, "yes", "maybe", 0.0, False),
    "pred": ({"seedbench_2_plus_all": {"pred": "c", "answer": "C"}}, "C", "c", 1.0, True),
    "mmbench": ({"gpt_eval_score": MMBENCH | {"prediction": "(B)"}}, "B", "(B)", 1.0, True),
    "mmbench_text": ({"gpt_eval_score": MMBENCH | {"prediction": "it is blue"}}, "B", "it is blue", 1.0, True),
    "mmbench_wrong": ({"gpt_eval_score": MMBENCH | {"prediction": "lorem"}}, "B", "lorem", 0.0, False),
    "mmmu": ({"mmmu_acc": MMMU | {"parsed_pred": ["D"]}}, "D", "D.", 1.0, True),
    "mmmu_wrong": ({"mmmu_acc": MMMU | {"parsed_pred": ["A"]}}, "D", "A", 0.0, True),
    "mmmu_open": (
        {"mmmu_acc": MMMU | {"question_type": "open", "answer": "blue", "parsed_pred": [["it is blue"]]}},
        *("blue", "it is blue", 1.0, None),
    ),
}


TASK_OF = {"number": "gqa", "score": "mmstar", "yes": "pope", "no_form": "pope", "pred": "seedbench_2_plus"}
TASK_OF |= {form: "mmbench_en_dev_static" for form in FORMS if form.startswith("mmbench")}
TASK_OF |= {form: "mmmu_val" for form in FORMS if form.startswith("mmmu")}


def _sample(form: str) -> dict[str, Any]:
    logged, target, answer, _, _ = FORMS[form]
    return {"doc_id": 0, "target": target, "filtered_resps": [answer], "input": "?", "doc_hash": "0", **logged}


def test_every_form_of_log_gives_a_score(tmp_path: Path) -> None:
    for form, (_, target, answer, score, parsable) in FORMS.items():
        task = TASK_OF[form]
        run = read_run(write_logs(tmp_path / form, {task: [_sample(form)]}))
        row = run.samples.iloc[0]
        assert (row["target"], row["answer"], row["score"], row["parsable"]) == (target, answer, score, parsable), form
        assert run.accuracy()[task] == score and run.unscored == {}


def test_a_log_without_a_score_is_not_a_wrong_answer(tmp_path: Path) -> None:
    row = {"doc_id": 0, "target": "x", "filtered_resps": ["x"], "input": "?", "submission": {"0": "x"}}
    run = read_run(write_logs(tmp_path, {"odd": [row]}))
    assert math.isnan(run.samples["score"][0])
    assert run.unscored == {"odd": "expected exact_match in its log, found submission"}


def test_the_newest_run_of_a_folder_is_read(tmp_path: Path) -> None:
    write_logs(tmp_path / "model", {"number": [_sample("number")]})
    newest = write_logs(tmp_path / "model", {"pope": [_sample("yes")]}, date="20260102_000000")
    run = read_run(tmp_path)
    assert run.file == newest and list(run.samples["task"]) == ["pope"]


def test_missing_results_or_samples_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no \*_results\.json"):
        read_run(tmp_path)
    file = write_logs(tmp_path, {"yes": [_sample("yes")]})
    (tmp_path / "20260101_000000_samples_yes.jsonl").unlink()
    with pytest.raises(RecordError, match="--log_samples"):
        read_run(file)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"configs": null}', "3"])
def test_a_results_file_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "20260101_000000_results.json"
    file.write_text(content)
    with pytest.raises(RecordError, match=f"{file} is not a results file"):
        read_run(tmp_path)


PROVENANCES: list[dict[str, Any]] = [
    *({"spec": {"a": 1}}, {"spec": {"modules": [3], "layer_range": [1, 2]}}, {"checkpoint": math.nan}),
    *({"versions": "x"}, {"merge": {"relative_change": {"7": {}}}}, {"merge": {"warnings": "x"}}),
    *({"base": "x"}, {"merge": {"relative_change": [1.0]}}),
]


@pytest.mark.parametrize(
    "change",
    [
        {"results": []},
        {"results": {"yes": "x"}},
        {"configs": {"yes": "x"}},
        {"configs": {"../yes": {}}},
        {"configs": {"a\0": {}}},
        {"configs": {"yes": {"metric_list": "x"}}},
        {"higher_is_better": {"yes": 3}},
        {"n-samples": {"yes": [2]}},
        {"config": "x"},
        {"config": {"resolved_cli_args": [1]}},
        {"config": {"limit": math.inf}},
        {"config": {"offset": "2"}},
        {"plam_eval": 3},
        {"plam_eval": {"generation": {"calls": "9", "settings": []}}},
        {"plam_eval": {"generation": {"calls": 9, "settings": [3]}}},
        {"plam_eval": {"altered_answers": 3}},
        *({"plam_eval": {"provenance": provenance}} for provenance in PROVENANCES),
    ],
)
def test_a_results_file_with_values_of_other_kinds_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    file = write_logs(tmp_path, {"yes": [_sample("yes")]}, **change)
    with pytest.raises(RecordError, match=re.escape(str(file))):
        read_run(file)


def test_a_results_file_is_read_as_any_other(tmp_path: Path) -> None:
    file = write_logs(tmp_path, {"yes": [_sample("yes")]})
    file.write_text("[" * 100_000)
    with pytest.raises(RecordError, match="is not a results file"):
        read_run(file)


def test_a_log_without_lines_does_not_fill_the_memory(tmp_path: Path) -> None:
    file = write_logs(tmp_path, {"yes": [_sample("yes")]})
    with (tmp_path / "20260101_000000_samples_yes.jsonl").open("wb") as log:
        log.truncate(1 << 40)  # takes no space
    with pytest.raises(RecordError, match=r"samples_yes\.jsonl: has a line of more than"):
        read_run(file)


@pytest.mark.parametrize(
    "line",
    [
        b'{"doc_id": 1%s, "target": "A", "filtered_resps": []}' % (b"0" * 30),
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"doc_id": 1}',
        b'{"doc_id": 1, "target": "A"}',
        b"",
    ],
)
def test_a_corrupted_line_is_named(tmp_path: Path, line: bytes) -> None:
    file = write_logs(tmp_path, {"yes": [_sample("yes")]})
    log = tmp_path / "20260101_000000_samples_yes.jsonl"
    log.write_bytes(log.read_bytes() + line + b"\n")
    with pytest.raises(RecordError, match=f"{log}, line 2 is not a sample"):
        read_run(file)


def test_a_document_twice_in_one_log_is_refused(tmp_path: Path) -> None:
    file = write_logs(tmp_path, {"yes": [_sample("yes"), _sample("yes") | {"doc_id": 3}, _sample("yes")]})
    with pytest.raises(RecordError, match=r"samples_yes\.jsonl, line 3: document 0 once more"):
        read_run(file)


@pytest.mark.parametrize(
    ("lines", "own", "says"),
    [
        (["plain"] * 4, None, None),
        ([A] * 4, A, None),
        ([None] * 4, A, None),
        ([A] * 4, None, rf"digest '{A}' \(document 0\); expected one for all, 'plain', as in the results beside it"),
        ([B] * 4, A, rf"digest '{B}' \(document 0\); expected one for all, '{A}'"),
        ([A, A, B, A], A, rf"digest '{A}' \(document 0\), '{B}' \(document 2\); expected one for all"),
        ([A, f"{A}+{B}", A, A], A, r"\(document 1\); expected one for all"),
        ([A, A, A, None], A, r"none \(document 3\); expected one for all"),
        ([A, [1], A, A], A, r"\[1\] \(document 1\)"),
        (["d\nOK: accepted\x1b[2J"] * 4, A, r"digest 'd\\nOK: accepted\\x1b\[2J' \(document 0\)"),
        (["[1]", [1], "[1]", "[1]"], None, r"'\[1\]' \(document 0\), \[1\] \(document 1\)"),
    ],
)
def test_lines_that_other_weights_answered_are_refused(tmp_path, lines, own, says):
    file = run_folders.write_run(tmp_path, run_folders.documents(["pope"], 4))
    results = json.loads(file.read_text(encoding="utf-8"))
    results["plam_eval"]["provenance"]["digest"] = own
    file.write_text(json.dumps(results), encoding="utf-8")
    log = samples_file(file, "pope")
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    told = [{**row, **({} if one is None else {"digest": one})} for row, one in zip(rows, lines, strict=True)]
    log.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    if says is None:
        assert len(read_run(tmp_path).samples) == 4
    else:
        with pytest.raises(RecordError, match=says):
            read_run(tmp_path)


def _tell(log: Path, digest: str) -> None:
    rows = [json.loads(line) | {"digest": digest} for line in log.read_text(encoding="utf-8").splitlines()]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_log_that_does_not_say_what_answered_beside_one_that_does_is_refused(tmp_path: Path) -> None:
    file = run_folders.write_run(tmp_path, run_folders.documents(["pope", "gqa"], 4))
    assert len(read_run(tmp_path).samples) == 8, "of an earlier version, whose logs all do not"
    _tell(samples_file(file, "gqa"), "plain")
    with pytest.raises(RecordError, match=r"samples_pope\.jsonl: its lines do not say .* as in .*samples_gqa\.jsonl"):
        read_run(tmp_path)
    unreadable: dict[str, str] = {}
    run = read_run(tmp_path, unreadable)
    assert list(unreadable) == ["pope"] and run.tasks == ["gqa"] and set(run.samples["task"]) == {"gqa"}
    assert not [note for note in run.notes if note.startswith("pope")]
    results = json.loads(file.read_text(encoding="utf-8"))
    del results["plam_eval"]
    file.write_text(json.dumps(results), encoding="utf-8")
    assert len(read_run(tmp_path).samples) == 8, "no run of ours"


def test_answers_of_any_language_are_read(tmp_path: Path) -> None:
    answer = "第一\u2028行\x85"  # what str.splitlines takes for ends of lines
    file = write_logs(tmp_path, {"yes": [_sample("yes") | {"filtered_resps": answer}]})
    log = tmp_path / "20260101_000000_samples_yes.jsonl"
    log.write_text(json.dumps(json.loads(log.read_text()), ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_run(file).samples["answer"][0] == answer


# Is what is read whole, and what the task itself says?


def _gsm8k(strict: list[float], flexible: list[float]) -> list[dict[str, Any]]:
    """As lmms-eval logs two filters: all documents of the first, then all of the second; no line says which."""
    words = {"target": "4", "filtered_resps": ["4"], "input": "2 + 2"}
    return [{"doc_id": n, **words, "exact_match": score} for part in (strict, flexible) for n, score in enumerate(part)]


FILTERS = {"gsm8k": MEAN | {"filter_list": [{"name": "strict-match"}, {"name": "flexible-extract"}]}}
STOCK = {"gsm8k": {"exact_match,strict-match": 0.25, "exact_match,flexible-extract": 0.75}}


def test_of_several_filters_the_first_one_is_read(tmp_path: Path) -> None:
    rows = {"gsm8k": _gsm8k([0, 1, 0, 0], [1, 1, 0, 1])}
    run = read_run(write_logs(tmp_path, rows, configs=FILTERS, results=STOCK))
    assert run.samples["score"].tolist() == [0, 1, 0, 0] and run.samples["doc_id"].tolist() == [0, 1, 2, 3]
    assert not [note for note in run.notes if "comes to" in note]  # the first filter's value, not the second's
    metrics = tables({"run": run}).metrics
    named = dict(zip(metrics["metric"], metrics["value"], strict=True))
    assert named == {"exact_match, strict-match": 0.25, "exact_match, flexible-extract": 0.75}
    page = write_report([tmp_path], tmp_path / "page", examples=0).read_text(encoding="utf-8")
    assert all(name in page.replace("<wbr>", "") for name in named)


@pytest.mark.parametrize("other", [B, None])
def test_lines_of_every_filter_are_of_the_same_weights(tmp_path: Path, other: str | None) -> None:
    rows = _gsm8k([0, 1, 0, 0], [1, 1, 0, 1])
    for place, row in enumerate(rows):
        row |= {} if place == 6 and other is None else {"digest": other if place == 6 else A}
    said = f"'{A}' \\(document 0\\), {repr(other) if other else 'none'} \\(document 2\\); expected one for all"
    with pytest.raises(RecordError, match=said):
        read_run(write_logs(tmp_path, {"gsm8k": rows}, configs=FILTERS))


def test_a_log_of_several_filters_that_is_cut_is_named(tmp_path: Path) -> None:
    rows = {"gsm8k": _gsm8k([0, 1, 0, 0], [1, 1])}
    with pytest.raises(RecordError, match=r"document 2 stands there 1 times, .*strict-match, .*not whole"):
        read_run(write_logs(tmp_path, rows, configs=FILTERS))


def test_a_log_cut_at_the_end_of_a_line_is_named(tmp_path: Path) -> None:
    counts: dict[str, Any] = {
        "n-samples": {"gqa": {"original": 30, "effective": 6}},
        "config": {"limit": 6.0, "offset": 0},
    }
    logs = {"gqa": graded_rows([1, 0, 1, 1, 0, 1])}
    assert len(read_run(write_logs(tmp_path / "whole", logs, **counts)).samples) == 6
    file = write_logs(tmp_path / "cut", {"gqa": logs["gqa"][:2]}, **counts)
    with pytest.raises(RecordError, match=r"samples_gqa\.jsonl holds 2 documents, but .* of 6 \(n-samples\)"):
        read_run(file)


@pytest.mark.parametrize(
    ("counts", "config", "whole"),
    [
        ({"original": 30, "effective": 6}, {"offset": 27}, 3),  # fewer are left behind the offset
        ({"original": 30, "effective": 30}, {}, 30),
        (
            {"original": 30, "effective": 0.1},
            {"limit": 0.1},
            None,
        ),  # a share, which lmms-eval keeps
        ({"original": "?"}, {}, None),
        ({}, {}, None),
    ],
)
def test_how_many_documents_a_log_should_hold(
    tmp_path: Path, counts: dict[str, Any], config: dict[str, Any], whole: int | None
) -> None:
    settings: dict[str, Any] = {"n-samples": {"gqa": counts}}
    for documents in (3, 30):
        file = write_logs(
            tmp_path / str(documents),
            {"gqa": graded_rows([1] * documents)},
            config=config,
            **settings,
        )
        if whole in (None, documents):
            assert len(read_run(file).samples) == documents
        else:
            with pytest.raises(RecordError, match=f"holds {documents} documents, but .* of {whole}"):
                read_run(file)


def test_scores_that_do_not_come_to_the_tasks_own_metric_are_told(tmp_path: Path) -> None:
    logs = {"gqa": graded_rows([1, 0, 1, 1])}
    agreeing = read_run(write_logs(tmp_path / "a", logs, results={"gqa": {"exact_match,none": 0.75}}))
    assert not [note for note in agreeing.notes if "comes to" in note]
    other = read_run(write_logs(tmp_path / "b", logs, results={"gqa": {"exact_match,none": 0.5}}))
    (note,) = [note for note in other.notes if "comes to" in note]
    assert note.startswith("gqa: the documents' exact_match comes to 0.75, but exact_match in the results is 0.5")


def test_mmbench_counts_a_question_once_for_all_its_rotations(tmp_path: Path) -> None:
    right, wrong = MMBENCH | {"prediction": "B"}, MMBENCH | {"prediction": "C"}
    entries = [right, wrong | {"index": 1_000_001}, right | {"index": 2}, right | {"index": 1_000_002}]
    words = {"target": "B", "filtered_resps": ["B"], "input": "?"}
    logs = {"mmbench_en_dev_static": [{"doc_id": n, **words, "gpt_eval_score": e} for n, e in enumerate(entries)]}
    stock = {"mmbench_en_dev_static": {"gpt_eval_score,none": 50.0}}  # of two questions one under every rotation
    run = read_run(write_logs(tmp_path, logs, results=stock))
    assert run.samples["score"].tolist() == [1, 0, 1, 1] and run.notes == ()


def test_one_task_that_cannot_be_read_leaves_the_others(tmp_path: Path) -> None:
    captions = {
        "doc_id": 0,
        "target": "a dog",
        "filtered_resps": ["a dog"],
        "CIDEr": {"pred": "a dog", "answer": "a dog"},
    }
    configs = {"gqa": MEAN, "flickr": {"metric_list": [{"metric": "CIDEr", "aggregation": "<function cider at 0x1>"}]}}
    logs = {"gqa": graded_rows([1.0]), "flickr": [captions]}
    runs = {name: read_run(write_logs(tmp_path / name, logs, configs=configs)) for name in ("one", "two")}
    assert list(runs["one"].unscored) == ["flickr"] and math.isnan(runs["one"].accuracy()["flickr"])
    kept, notes = only_scored(runs)
    assert [run.tasks for run in kept.values()] == [["gqa"], ["gqa"]]
    assert notes == [
        "flickr: left out, no score per document is known (one: it declares no metric that is a mean over documents; "
        "it declares CIDEr (cider))"
    ]
    with pytest.raises(RecordError, match=r"nothing can be compared:\n  - flickr: left out"):
        only_scored({name: run.only(["flickr"]) for name, run in runs.items()})


def test_documents_without_a_verdict_are_left_out_of_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Score("verdict", as_score, unjudged=frozenset({-1.0}))
    monkeypatch.setitem(TASKS, "judged", Task(judged, ONE_EACH))
    runs = {}
    for name, verdicts in {"one": [1, -1, 0, 1], "two": [1, 1, 0, -1]}.items():
        rows = [{"doc_id": n, "target": "x", "filtered_resps": ["x"], "verdict": v} for n, v in enumerate(verdicts)]
        runs[name] = read_run(write_logs(tmp_path / name, {"judged": rows}))
    assert runs["one"].accuracy()["judged"] == pytest.approx(2 / 3)  # of those judged; -1 is no score
    assert runs["one"].notes == ("judged: 1 of 4 documents have no score; the judge gave none",)
    kept, notes = only_scored(runs)
    assert [run.samples["doc_id"].tolist() for run in kept.values()] == [[0, 2], [0, 2]]
    assert notes == ["judged: 2 documents left out that a judge came to no verdict on in some run"]


def test_notes_are_told_once(tmp_path: Path) -> None:
    runs = {name: replace(logged_run(tmp_path / name), notes=("gqa: a", f"gqa: {name}")) for name in ("one", "two")}
    assert notes_of(runs) == ["gqa: a", "one: gqa: one", "two: gqa: two"]


def test_what_is_said_of_several_tasks_is_said_once_and_of_scored_ones_only(tmp_path: Path) -> None:
    captions = {"doc_id": 0, "target": "x", "filtered_resps": ["x"], "CIDEr": {"pred": "x"}}
    logs = {"heard": graded_rows([1.0]), "unheard": graded_rows([0.5]), "flickr": [captions]}
    runs = {name: read_run(write_logs(tmp_path / name, logs)) for name in ("one", "two")}
    assert set(runs["one"].unscored) == {"flickr"}
    assert notes_of(runs) == [
        "heard, unheard: which documents share an image is not known here, so they count as independent; if some do, "
        "p is too small and intervals are too narrow"
    ]


def test_where_lower_is_better_a_score_may_be_above_one(tmp_path: Path) -> None:
    """More words can be wrong than there are to be right."""
    declared = [{"metric": "wer", "aggregation": "mean", "higher_is_better": False}]
    configs = {"asr": {"metric_list": declared}}
    rows = [{"doc_id": n, "target": "x", "filtered_resps": ["x"], "wer": w} for n, w in enumerate([0.0, 0.5, 2.5])]
    results = {"asr": {"wer,none": 1.0}}
    run = read_run(write_logs(tmp_path / "a", {"asr": rows}, configs=configs, results=results))
    assert run.unscored == {} and run.samples["score"].tolist() == [0.0, 0.5, 2.5]
    assert not [note for note in run.notes if "comes to" in note]
    other = read_run(write_logs(tmp_path / "b", {"asr": rows}, configs=configs, results={"asr": {"wer,none": 0.9}}))
    assert [note for note in other.notes if "comes to" in note]
    for wrong in (-1.0, math.inf):
        run = read_run(write_logs(tmp_path / f"{wrong}", {"asr": [rows[0] | {"wer": wrong}]}, configs=configs))
        assert list(run.unscored) == ["asr"]


# What documents have in common


@pytest.mark.parametrize(
    ("task", "logged", "group", "known"),
    [
        ("unheard_of", {"exact_match": 1.0}, "document 5", False),
        ("unheard_of", {"exact_match": 1.0, "group": "n1234"}, "image n1234", True),
        ("gqa", {"exact_match": 1.0}, "document 5", False),  # a stock log does not say it
        ("gqa", {"exact_match": 1.0, "group": "n1234"}, "image n1234", True),
        ("gqa", {"exact_match": 1.0, "group": None}, "document 5", False),
        ("realworldqa", {"exact_match": 1.0}, "document 5", True),
        (
            *("mme", {"mme_perception_score": {"question_id": "OCR/0.jpg", "category": "OCR", "score": 1.0}}),
            *("image OCR/0.jpg", True),
        ),
        ("mme", {"mme_cognition_score": {"question_id": "c/1.png", "score": 1.0}}, "image c/1.png", True),
        ("mmstar", {"average": {"question_id": 5, "l2_category": "x", "score": 0.0}}, "document 5", True),
        ("pope", {"pope_accuracy": {"question_id": "5", "score": 1.0}}, "document 5", False),
        ("mmmu_val", {"mmmu_acc": MMMU | {"parsed_pred": ["D"]}}, "subject Art", True),
        ("mmbench_en_dev", {"gpt_eval_score": MMBENCH | {"prediction": "B"}}, "question 1", True),
        (  # choices rotated
            *("mmbench_cn_dev", {"gpt_eval_score": MMBENCH | {"index": 3_000_001, "prediction": "B"}}),
            *("question 1", True),
        ),
    ],
)
def test_groups(tmp_path: Path, task: str, logged: dict[str, Any], group: str, known: bool) -> None:
    sample = {"doc_id": 5, "target": "D", "filtered_resps": ["D"], "input": "?", **logged}
    run = read_run(write_logs(tmp_path, {task: [sample]}))
    assert run.samples["group"][0] == group
    said = [note for note in run.notes if "which documents share an image is not known" in note]
    assert [note.partition(":")[0] for note in said] == ([] if known else [task])


@pytest.mark.parametrize(
    ("target", "answer", "parsable"),
    [
        *(("A", answer, True) for answer in ("B", "(B)", "B.", "B: red", " C\n", "b", "The answer is B")),
        *(
            ("A", answer, False)
            for answer in ("", "Because", "A1", "red", "I", "A triangle has three sides.", "B or C.")
        ),
        *(("Yes", answer, True) for answer in ("yes", "No.", "NO, it is", " yes")),
        *(("no", answer, False) for answer in ("", "none", "yesterday", "it is")),
        *((target, "A", None) for target in ("red", "I", "AB", "yes it is", "3")),
    ],
)
def test_form_of_answers(tmp_path: Path, target: str, answer: str, parsable: bool | None) -> None:
    sample = {"doc_id": 5, "target": target, "filtered_resps": [[answer]], "exact_match": 0.0}
    found = read_run(write_logs(tmp_path, {"realworldqa": [sample]})).samples.iloc[0]
    assert (found["answer"], found["parsable"]) == (answer, parsable)


def test_the_form_of_an_unknown_task_is_not_guessed(tmp_path: Path) -> None:
    sample = {"doc_id": 5, "target": "A", "filtered_resps": ["A"], "exact_match": 1.0}
    found = read_run(write_logs(tmp_path, {"task": [sample]})).samples.iloc[0]
    assert found["parsable"] is None and found["read"] is None and math.isnan(found["rescored"])


def test_metric_and_its_direction(tmp_path: Path) -> None:
    rows = {"up": [_sample("number")], "down": [_sample("number")], "pope": [_sample("yes")]}
    known = {"up": {"exact_match": True}, "down": {"exact_match": False}, "pope": {"pope_f1_score": False}}
    run = read_run(write_logs(tmp_path, rows, higher_is_better=known))
    assert run.samples["metric"].tolist() == ["exact_match", "exact_match", "pope_accuracy"]
    assert run.directions == {"up": 1, "down": -1, "pope": 1}
    assert read_run(write_logs(tmp_path / "b", rows)).directions == {"up": 1, "down": 1, "pope": 1}


# Runs as made by hand


def test_tables(tmp_path: Path) -> None:
    found = tables({"one": logged_run(tmp_path / "a"), "two": logged_run(tmp_path / "b")})
    assert found.runs["run"].tolist() == ["one", "two"]
    expected = {
        **{"model": "plam_llava", "pretrained": "org/mllm", "plain": False, "digest": "d1", "base_model": "org/base"},
        **{"layers": "2:5", "modules": "q_proj+v_proj", "model_weight": 0.9, "base_weight": 0.3, "rule": "noise"},
        **{"documents": 7, "accuracy": 0.625, "mode": "chat", "dtype": "float32", "limit": 4.0, "gen_kwargs": None},
        **{"seconds": 12.5, "lmms_eval": "0.7.3", "plam_eval": "0.1", "torch": "2.0", "transformers": None},
    }
    row = found.runs.iloc[0]
    assert {
        key: row[key] if isinstance(row[key], str) or row[key] == row[key] else None for key in expected
    } == expected
    pope, gqa = (
        found.tasks[(found.tasks["run"] == "two") & (found.tasks["task"] == t)].iloc[0] for t in ("pope", "gqa")
    )
    assert pope[["documents", "groups", "accuracy", "parsable"]].tolist() == [4, 4, 0.75, 0.75]
    assert (pope["low"], pope["high"]) == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson, 3 of 4
    assert gqa[["documents", "groups", "accuracy"]].tolist() == [3, 1, 0.5]
    assert all(math.isnan(gqa[key]) for key in ("low", "high", "parsable"))  # graded scores, free words
    metrics = found.metrics[found.metrics["run"] == "one"]
    assert metrics[["task", "metric", "value"]].values.tolist() == [
        ["pope", "accuracy", 75.0],
        ["gqa", "exact_match", 0.5],
    ]
    assert found.samples.groupby("run").size().to_dict() == {"one": 7, "two": 7}


def test_tables_of_nothing() -> None:
    assert all(table.empty for table in tables({}))


def test_a_run_of_another_model(tmp_path: Path) -> None:
    def foreign(results: dict[str, Any], logs: Any) -> None:
        del results["plam_eval"]
        results["config"] |= {"model": "qwen3_vl", "model_backend": "lmms_eval.models.chat.qwen3_vl.Qwen3_VL (chat)"}
        results["model_name"] = "Qwen/Qwen3-VL-4B-Instruct"

    run = logged_run(tmp_path, foreign)
    assert (run.block, run.mode) == ({}, "chat")
    found = run.summary()
    assert (found["model"], found["pretrained"]) == ("qwen3_vl", "Qwen/Qwen3-VL-4B-Instruct")
    assert [found[key] for key in ("plain", "digest", "layers", "modules", "rule", "dtype")] == [None] * 6
    del run.results["config"]["model_backend"]
    assert run.mode is None


def test_only_some_tasks(tmp_path: Path) -> None:
    run = logged_run(tmp_path)
    one = run.only(["gqa"])
    assert (one.tasks, set(one.samples["task"]), len(one.samples)) == (["gqa"], {"gqa"}, 3)
    assert list(one.samples.index) == [0, 1, 2]
    assert run.tasks == ["pope", "gqa"]
    assert run.only(["gqa", "pope"]).tasks == run.tasks
    with pytest.raises(RecordError, match="has no task mme, mmstar; it has pope, gqa"):
        run.only(["mme", "gqa", "mmstar"])


def test_half_a_surrogate_pair_is_readable(tmp_path: Path) -> None:
    row = _sample("number") | {"filtered_resps": ["\ud83d red"], "input": "\udc00?"}
    run = read_run(write_logs(tmp_path, {"number": [row]}))
    assert (run.samples["answer"][0], run.samples["prompt"][0]) == ("? red", "??")


def test_a_branch_is_no_version_of_lmms_eval(tmp_path: Path) -> None:
    """Run from within any checkout, lmms-eval notes that one's branch and commit as its own version."""
    runs = []
    for place, version in enumerate(("main@1234567", "0.7.3")):
        file = write_logs(tmp_path / str(place), {"yes": [_sample("yes")]}, lmms_eval_version=version)
        runs.append(read_run(file))
    assert [run.summary()["lmms_eval"] for run in runs] == [None, "0.7.3"]
    assert check_comparable(runs[0], runs[1]) == []


def test_a_ramp_is_a_row_like_others(tmp_path: Path) -> None:
    def ramped(results: dict[str, Any], _: Any) -> None:
        results["plam_eval"]["provenance"]["spec"]["weights"] = {"model": [0.9, 0.5], "base_model": [0.3, 0.3]}

    found = tables({"pair": logged_run(tmp_path / "a"), "ramp": logged_run(tmp_path / "b", ramped)}).runs
    assert found["weights"].tolist() == ["0.9 + 0.3", "0.9:0.5 + 0.3"] and found["model_weight"].tolist() == [0.9, 0.9]
    found.to_parquet(tmp_path / "runs.parquet")

    def damaged(results: dict[str, Any], _: Any) -> None:
        results["plam_eval"]["provenance"]["spec"]["weights"] = {"model": [0.9, 0.5, 1], "base_model": 0.3}

    with pytest.raises(RecordError, match=r"as weights, expected .*it was damaged"):
        logged_run(tmp_path / "c", damaged)
