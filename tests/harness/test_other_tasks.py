"""Tasks beyond the nine: stock tasks on copies of their data, answered as planned, scored as they score themselves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from plam_eval.evaluation.records import Run, read_run, sample_row
from plam_eval.harness.checks import check_tasks
from plam_eval.harness.errors import EvaluationError, NoScoreError
from plam_eval.harness.evaluate import evaluate
from plam_eval.harness.lookup import task_manager
from plam_eval.harness.task_row import ONE_EACH
from plam_eval.harness.tasks import TASKS, score_of_task
from tests.helpers.offline_copies import PlannedModel, write_copies
from tests.helpers.offline_tasks import COPIES, PLANNED, judged
from tests.helpers.paths import DOCS

NO_VERDICT_IN_SCAN = "hallusion_bench_image"  # its judge is asked when all answers are there


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copies")
    write_copies(folder, COPIES)
    return folder


@pytest.fixture(scope="module")
def evaluated(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, PlannedModel]:
    """All tasks in one call, read back from disk, and the model that answered."""
    model, output = PlannedModel(PLANNED), tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch, judged():
        patch.chdir(hub)
        evaluate(model, list(PLANNED), output=output)
    return read_run(output), model


@pytest.fixture(scope="module")
def run(evaluated: tuple[Run, PlannedModel]) -> Run:
    return evaluated[0]


def stock(run: Run, task: str) -> float:
    """A task's own figure of the metric that its documents' scores should come to."""
    values = run.results["results"][task]
    name = TASKS[task].score.stock
    return float(next(value for key, value in values.items() if key.partition(",")[0] == name))


def partition(groups: Any) -> list[int]:
    """For each document, the first one of its group."""
    listed = list(groups)
    return [listed.index(group) for group in listed]


def test_every_task_could_be_read(run: Run) -> None:
    assert run.tasks and set(run.tasks) == set(PLANNED)
    assert run.unscored == {}


@pytest.mark.parametrize("task", PLANNED)
def test_every_document_has_the_score_that_was_planned(run: Run, task: str) -> None:
    scores = run.samples.loc[run.samples["task"] == task, "score"].tolist()
    assert scores == pytest.approx([document.score for document in PLANNED[task][1]], nan_ok=True)


@pytest.mark.parametrize("task", PLANNED)
def test_their_mean_is_the_stock_metric(run: Run, task: str) -> None:
    # A document that no judge could score counts as 0 in MM-Vet's own figure.
    scores = run.samples.loc[run.samples["task"] == task, "score"].fillna(0.0).tolist()
    mean = sum(scores) / (1000 if task == "ocrbench" else len(scores))
    score = TASKS[task].score
    assert score is not None
    assert stock(run, task) == pytest.approx(score.scale * mean, abs=0.005 if score.scale == 100 else 1e-5)


def test_stock_metrics_have_the_values_that_were_worked_out_by_hand(run: Run) -> None:
    assert stock(run, "textvqa_val") == pytest.approx((1 + 0.9 + 0.6 + 0.3 + 0 + 1) / 6)
    assert stock(run, "docvqa_val") == pytest.approx((1 + 6 / 7 + 1 + 3 / 4) / 6)
    assert stock(run, "ocrbench") == pytest.approx(3 / 1000)
    assert stock(run, "refcoco_bbox_rec_val") == pytest.approx(1 / 2)
    assert stock(run, "blink_counting") == pytest.approx(1 / 2)
    assert stock(run, "mmvet") == pytest.approx(100 * 2.3 / 5)
    assert stock(run, "hallusion_bench_image") == pytest.approx(100 * 4 / 6, abs=5e-5)


def test_disagreement_is_said_only_where_a_judge_left_documents_without_a_score(run: Run) -> None:
    assert {note.partition(":")[0] for note in run.notes if "comes to" in note} == {"mmvet"}
    assert any("1 of 5 documents have no score" in note for note in run.notes if note.startswith("mmvet"))


@pytest.mark.parametrize("task", PLANNED)
def test_clusters_are_the_images_where_the_data_name_them(run: Run, task: str) -> None:
    copy, documents = PLANNED[task]
    groups = run.samples.loc[run.samples["task"] == task, "group"]
    if copy.names_image:
        assert partition(groups) == partition(document.picture for document in documents)
    else:
        assert TASKS[task].cluster is None, "a reader is not told that images may be shared"
        assert groups.nunique() == len(documents)


@pytest.mark.parametrize("task", PLANNED)
def test_a_scan_scores_the_same(evaluated: tuple[Run, PlannedModel], task: str) -> None:
    run, model = evaluated
    samples = [{"input": "", **sample} for sample in model.scanned if sample["task"] == task]
    score = score_of_task(task, run.results["configs"][task])
    if task == NO_VERDICT_IN_SCAN:
        with pytest.raises(NoScoreError, match="correct"):
            sample_row(task, samples[0], score)
        return
    rows = [sample_row(task, sample, score) for sample in samples]
    expected = run.samples[run.samples["task"] == task]
    assert [r["score"] for r in rows] == pytest.approx(expected["score"].tolist(), nan_ok=True)
    assert [r["group"] for r in rows] == expected["group"].tolist()


def test_of_two_filters_the_first_counts(run: Run) -> None:
    values = run.results["results"]["gsm8k_cot_zeroshot"]
    assert values["exact_match,strict-match"] == pytest.approx(2 / 5)
    assert values["exact_match,flexible-extract"] == pytest.approx(4 / 5)
    assert run.accuracy()["gsm8k_cot_zeroshot"] == pytest.approx(2 / 5)


def test_a_second_run_into_the_same_folder(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OCRBench sums up in a variable of its module; HallusionBench takes verdicts below its output path for its own."""
    monkeypatch.chdir(hub)
    runs = []
    for _ in range(2):
        with judged():
            evaluate(PlannedModel(PLANNED), ["ocrbench", NO_VERDICT_IN_SCAN], output=tmp_path)
        runs.append(read_run(tmp_path))
    assert runs[0].file != runs[1].file
    assert [stock(run, "ocrbench") for run in runs] == pytest.approx([3 / 1000] * 2)
    assert [run.unscored for run in runs] == [{}, {}]


def test_what_a_scan_cannot_score_is_named_beforehand(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub)
    tasks = ["blink_counting", NO_VERDICT_IN_SCAN]
    assert check_tasks(tasks).unscored == {}
    checked = check_tasks(tasks, by_document=True)
    assert checked.unscored == {NO_VERDICT_IN_SCAN: "aAcc is only judged when all answers are there"}
    assert checked.scored == ("blink_counting",)


def test_a_task_whose_judge_has_no_key_is_refused_beforehand(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub)
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EvaluationError, match="task mmvet: OpenAIError: Missing credentials"):
        check_tasks(["mmvet"])


# --- tasks without a score per document -------------------------------------------------------------------------------


def test_captions_are_named_as_unscored(tmp_path: Path) -> None:
    from lmms_eval.tasks.flickr30k.utils import flickr_process_result

    lines = []
    for number, answer in enumerate(["A dog runs.", "purple nonsense"]):
        document = {"img_id": str(number), "caption": ["A dog runs.", "A running dog."]}
        sample = {"doc_id": number, "target": "", "filtered_resps": answer, "input": "Describe it."}
        lines.append(json.dumps(sample | flickr_process_result(document, [answer])))
    metrics = [{"metric": "flickr_CIDEr", "aggregation": "<function flickr_cider at 0x7f>", "higher_is_better": True}]
    results = {
        "results": {"flickr30k_test": {"alias": "flickr30k_test", "flickr_CIDEr,none": 0.4}},
        "configs": {"flickr30k_test": {"task": "flickr30k_test", "metric_list": metrics}},
    }
    (tmp_path / "20260101_000000_results.json").write_text(json.dumps(results), encoding="utf-8")
    log = tmp_path / "20260101_000000_samples_flickr30k_test.jsonl"
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")

    run = read_run(tmp_path)
    assert run.unscored == {"flickr30k_test": "captions are scored over all documents together"}
    assert run.samples["score"].isna().all()


@pytest.mark.parametrize(
    "task",
    ["coco2017_cap_val", "nocaps_val", "textcaps_val", "refcoco_bbox_val", "refcoco+_seg_testA", "refcocog_seg_test"],
)
def test_tasks_of_captions(task: str) -> None:
    with pytest.raises(NoScoreError, match="captions are scored over all documents together"):
        score_of_task(task, {"metric_list": [{"metric": "exact_match", "aggregation": "mean"}]})


def test_an_entry_under_the_name_of_another_splits_metric_is_no_score() -> None:
    """DocVQA's test split logs its answers as `anls`."""
    with pytest.raises(NoScoreError, match="scored by a server"):
        score_of_task("docvqa_test", {"metric_list": [{"metric": "submission"}]})


# --- entries, one by one ----------------------------------------------------------------------------------------------


def of(task: str, entry: Any) -> float:
    score = TASKS[task].score
    assert score is not None
    return score.of({"doc_id": 0, score.metric: entry})


@pytest.mark.parametrize(
    ("answered", "right"),
    [
        ([0.0, 0.0, 0.5, 1.0], 1.0),
        ([0.25, 0.0, 0.75, 1.0], 0.0),  # a third of what both cover
        ([0.5, 0.0, 1.0, 1.0], 0.0),
        ([0.0, 0.0, 0.0, 0.0], 0.0),
        ([0.5, 1.0, 0.0, 0.0], 0.0),  # the wrong way round
    ],
)
def test_boxes_are_right_from_half_an_overlap(answered: list[float], right: float) -> None:
    entry = {"answer": "left", "pred": answered, "ann_id": "1", "bbox": [0.0, 0.0, 0.5, 1.0]}
    assert of("refcoco_bbox_rec_val", entry) == right
    assert of("refcoco_grounding_test", entry) == right


def test_no_verdict_of_mmvets_judge_is_no_score() -> None:
    assert math.isnan(of("mmvet", {"score": 0.0, "eval_model": ""}))
    assert of("mmvet", {"score": 0.0, "eval_model": "gpt-4o"}) == 0.0
    with pytest.raises(NoScoreError, match="expected 0 to 1"):
        of("mmvet", {"score": 7, "eval_model": "gpt-4o"})


def test_entries_of_tasks_that_share_a_metrics_name_are_told_apart() -> None:
    pro = {"id": "test_Art_1", "subject": "Art", "answer": "C", "parsed_pred": "C"}
    assert of("mmmu_pro_standard", pro) == 1.0
    with pytest.raises(NoScoreError, match="not logged in the form that is known"):
        of("mmmu_val", pro)
    with pytest.raises(NoScoreError, match="expected two texts"):
        of("mmmu_pro_standard", {**pro, "answer": ["C", "D"], "parsed_pred": ["C", ""]})
    with pytest.raises(NoScoreError):
        of("mmvet", {"index": 1, "answer": "A", "prediction": "A"})  # MMBench's


@pytest.mark.parametrize(
    ("task", "entry", "score"),
    [
        ("visualwebbench_element_ground", 100.0, 1.0),
        ("visualwebbench_action_prediction", 0.0, 0.0),
        ("visualwebbench_element_ocr", 25.0, 0.25),
    ],
)
def test_visualwebbench_logs_scores_of_a_hundred(task: str, entry: float, score: float) -> None:
    assert of(task, entry) == score
    with pytest.raises(NoScoreError, match=r"is 1\.5, expected 0 to 1"):
        of(task, 150.0)
    with pytest.raises(NoScoreError, match="not logged in the form"):
        of(task, {"accuracy": entry})


def test_seedbench_2_minds_case_as_its_own_count_does() -> None:
    assert of("seedbench_2", {"pred": "a", "answer": "A"}) == 0.0
    assert of("seedbench", {"pred": "a", "answer": "A"}) == 1.0


# --- the table --------------------------------------------------------------------------------------------------------


def test_rows_are_of_tasks_that_exist_and_of_metrics_that_they_declare() -> None:
    from lmms_eval.utils import load_yaml_config

    index = task_manager().task_index
    for task, known in TASKS.items():
        assert task in index, f"lmms-eval has no task {task}"
        config = load_yaml_config(index[task]["yaml_path"], mode="simple")
        metrics = {str(metric["metric"]).strip() for metric in config["metric_list"]}
        if known.score is not None:
            assert {known.score.metric, known.score.stock or known.score.metric} <= metrics, task
        else:
            assert known.unscored, task


def cell(known: Any) -> str:
    """What docs/tasks.md says of what clusters a task's documents, but for the columns."""
    if known.cluster is None:
        return "not known"
    return "none do" if known.cluster is ONE_EACH else known.cluster.kind


def test_the_page_of_tasks_says_what_the_table_says() -> None:
    page = DOCS / "tasks.md"
    told: dict[str, tuple[str, ...]] = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [text.strip() for text in line.strip("|").split("|")]
        if line.startswith("| ") and not line.startswith("| `"):
            of_tasks = cells[0] == "tasks"
        if not line.startswith("| `") or not of_tasks:
            continue
        for name in cells[0].replace("`", "").split(", "):
            assert name not in told, f"{name} stands there twice"
            told[name] = (cells[1].strip("`"), *(text.partition(" (")[0] for text in cells[2:]))
    assert set(told) == set(TASKS)
    for task, known in TASKS.items():
        boxes = "no" if known.boxes is None else "yes"
        if known.score is None:
            assert told[task] == (known.unscored, boxes), task
        else:
            metric = ", ".join([known.score.metric, *known.score.also])
            factor = f"{known.score.scale:g}" if known.score.stock else "no"
            assert told[task] == (metric, factor, cell(known), known.form.words, boxes), task
