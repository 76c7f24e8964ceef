"""What is known of single tasks of lmms-eval, in one table keyed by task; a benchmark that is added is a row in it.

A row (`task_row.Task`) says how a document is scored, what documents share, what form an answer has, and whether
documents are scored in pairs. A score is never guessed from the shape of a log entry. It is read as the task's row
says, or, for a task without a row, from a metric that the task itself declares as a mean over documents. For any other
task there is no score per document, and why is said. docs/tasks.md shows the table.

Importing this module imports neither torch nor lmms-eval.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from plam_eval.harness import answer_forms, boxes, rebuilt
from plam_eval.harness.boxes import plausible
from plam_eval.harness.errors import NoScoreError
from plam_eval.harness.rebuilt import Rebuild
from plam_eval.harness.task_row import (
    ONE_EACH,
    Boxes,
    Cluster,
    Document,
    Score,
    Task,
    as_score,
    column,
    words_or_nothing,
)
from plam_eval.harness.task_scores import (
    all_rotations,
    equal_letters,
    equal_texts,
    field,
    half_overlap,
    mmbench,
    mmmu,
    mmvet,
    of_hundred,
)
from plam_eval.harness.text_rows import TEXT_ROWS
from plam_eval.test_sets.mmbench import STEP

# --- the table --------------------------------------------------------------------------------------------------------


def _mmbench_task(
    stock: str | None,
    metric: str = "gpt_eval_score",
    rebuild: Rebuild = rebuilt.mmbench,
    collection: str = "MMBench dev",
) -> Task:
    question = Cluster(
        "question",
        of_document=lambda doc: str(int(doc["index"]) % STEP),
        of_sample=lambda s: str(int(s[metric]["index"]) % STEP),
        collection=collection,
    )
    score = Score(metric, mmbench, stock=stock, scale=100, aggregate=all_rotations)
    return Task(score, question, form=answer_forms.MMBENCH, rebuild=rebuild, category=column("category"))


_MMMU_TASK = Task(
    Score("mmmu_acc", mmmu, stock="mmmu_acc"),
    Cluster("subject", of_sample=lambda sample: str(sample["mmmu_acc"]["subdomain"])),
    form=answer_forms.MMMU,
    rebuild=rebuilt.mmmu,
    category=lambda doc: re.sub(r"^[^_]+_|_\d+$", "", str(doc["id"])),  # validation_Accounting_1
)


def _image(*columns: str, collection: str = "") -> Cluster:
    """Documents share an image when these columns of the dataset are the same."""
    return Cluster(
        "image", of_document=lambda doc: " ".join(_text(doc[column]) for column in columns), collection=collection
    )


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _coco_image(document: Document) -> str:
    """RefCOCO names a file by its image and by the region in it: COCO_train2014_000000581857_16.jpg."""
    return re.sub(r"(_\d{12})_\d+(?=\.)", r"\1", str(document["file_name"]))


def _each(names: str, task: Task) -> dict[str, Task]:
    """One row for tasks that differ in their documents only."""
    return dict.fromkeys(names.split(), task)


_EXACT_MATCH = Score("exact_match", as_score, stock="exact_match")
_ANLS = Score("anls", as_score, stock="anls")
_SEVERAL_PEOPLE = answer_forms.unread("answers are held against those of several people, which its log does not have")
_IN_PART = answer_forms.unread("answers that are nearly right count in it, by rules of its own")
_JUDGED = answer_forms.unread("a judge reads its answers")
_CAPTIONS = Task(unscored="captions are scored over all documents together")
_SUBMISSION = Task(unscored="its answers are scored by a server, from the file that the task writes")
_SEED = Task(cluster=_image("data_id", collection="SEED-Bench"), category=column("question_type_id"))
_CHART = Score("relaxed_overall", as_score, stock="relaxed_overall")
_SEVERAL = Task(unscored="a document holds several questions, and each counts")
_REGION = Cluster("image", of_document=_coco_image)
_CLICKED = {
    task: Score(f"{task}_action_acc", field("correct"), stock=f"{task}_action_acc")
    for task in ("screenspot_v2", "screenspot_pro")
}

TASKS: dict[str, Task] = {
    "gqa": Task(
        Score("exact_match", as_score, stock="exact_match"),
        Cluster("image", of_document=lambda doc: str(doc["imageId"])),
        form=answer_forms.VERDICT_OR_WORDS,
        rebuild=rebuilt.only_target,
    ),
    # The judge of the other variants reads an answer as the static rules do wherever these can.
    "mmbench_en_dev": _mmbench_task(None),
    "mmbench_en_dev_static": _mmbench_task("gpt_eval_score"),
    "mmbench_cn_dev": _mmbench_task(None),
    "mmbench_cn_dev_static": _mmbench_task("gpt_eval_score"),
    "mme": Task(
        Score("mme_perception_score", field("score"), also=("mme_cognition_score",)),  # by a document's category
        Cluster(
            "image",
            of_document=lambda doc: str(doc["question_id"]),
            of_sample=lambda s: str((s.get("mme_perception_score") or s["mme_cognition_score"])["question_id"]),
        ),
        form=answer_forms.VERDICT,
        in_pairs="MME",
        rebuild=rebuilt.with_entry(
            "mme_perception_score", "mme_cognition_score", question_id="question_id", category="category"
        ),
        category=column("category"),
    ),
    "mmmu_val": _MMMU_TASK,
    "mmstar": Task(
        Score("average", field("score")),
        ONE_EACH,
        form=answer_forms.LETTER,
        rebuild=rebuilt.mmstar,
        category=column("category", "l2_category"),
    ),
    "pope": Task(
        Score("pope_accuracy", field("score"), stock="pope_accuracy"),
        Cluster("image", of_document=lambda doc: str(doc["image_source"])),
        form=answer_forms.VERDICT,
        rebuild=rebuilt.with_entry("pope_accuracy", question_id="question_id"),
        category=column("category"),
    ),
    "realworldqa": Task(
        Score("exact_match", as_score, stock="exact_match"),
        ONE_EACH,
        form=answer_forms.LETTER_VERDICT_OR_WORDS,
        rebuild=rebuilt.only_target,
    ),
    "seedbench_2_plus": Task(
        Score("seedbench_2_plus_all", equal_letters, stock="seedbench_2_plus_all"),
        # The name of an image's file has it. Were it another for every question, each would be its own cluster.
        Cluster("image", of_document=lambda doc: str(doc["data_id"])),
        form=answer_forms.LETTER,
        rebuild=rebuilt.seedbench_2_plus,
        category=column("question_image_type"),
    ),
    # --- released test sets, with a file of the user's ---
    "plam_mmmu_test": replace(_MMMU_TASK, units={"unparsable": "share"}),
    **_each(
        "plam_mmbench_en_test_v11 plam_mmbench_cn_test_v11",
        replace(
            _mmbench_task("circular_eval", "circular_eval", rebuilt.mmbench_v11, "MMBench 1.1 test"),
            units={"row_accuracy": "percent", "unparsable": "share"},
        ),
    ),
    # --- beyond the nine ---
    **_each("scienceqa scienceqa_img", Task(_EXACT_MATCH, form=answer_forms.LETTER, category=column("subject"))),
    **_each(
        "textvqa_val textvqa_val_lite",
        Task(_EXACT_MATCH, _image("image_id", collection="TextVQA"), form=_SEVERAL_PEOPLE),
    ),
    **_each(
        "vqav2_val vqav2_val_lite", Task(_EXACT_MATCH, _image("image_id", collection="VQAv2"), form=_SEVERAL_PEOPLE)
    ),
    **_each("vizwiz_vqa_val vizwiz_vqa_val_lite", Task(_EXACT_MATCH, ONE_EACH, form=_SEVERAL_PEOPLE)),
    **_each("ok_vqa_val2014 ok_vqa_val2014_lite", Task(_EXACT_MATCH, form=_SEVERAL_PEOPLE)),
    **_each("chartqa chartqa_lite", Task(_CHART, form=_IN_PART, category=column("type"))),
    **_each("ai2d ai2d_lite ai2d_no_mask", Task(_EXACT_MATCH, form=answer_forms.FILTERED)),
    "ocrbench": Task(
        Score(
            "ocrbench_accuracy",
            field("score"),
            stock="ocrbench_accuracy",
            aggregate=lambda scores, _: sum(scores) / 1000,  # documents of the whole benchmark, whatever the limit
        ),
        form=_IN_PART,
        category=column("question_type"),
    ),
    **_each(
        "docvqa_val docvqa_val_lite",
        Task(_ANLS, _image("ucsf_document_id", "ucsf_document_page_no", collection="DocVQA"), form=_IN_PART),
    ),
    **_each(
        "infovqa_val infovqa_val_lite", Task(_ANLS, _image("image_url", collection="InfographicVQA"), form=_IN_PART)
    ),
    **_each("seedbench seedbench_lite", replace(_SEED, score=Score("seed_all", equal_letters, stock="seed_all"))),
    "seedbench_ko": replace(_SEED, score=Score("seed_image", equal_letters, stock="seed_image")),
    "seedbench_2": Task(
        Score("seed_all", lambda entry: equal_texts(entry, "pred", "answer"), stock="seed_all"),
        _image("data_id"),
        form=answer_forms.LETTER,
    ),
    **_each(
        "cv_bench cv_bench_2d cv_bench_3d",
        Task(
            Score("cv_bench_acc", field("is_correct"), stock="cv_bench_acc"),
            _image("source_dataset", "source_filename", collection="CV-Bench"),
            category=column("task"),
            form=answer_forms.LETTER,
        ),
    ),
    **_each(
        "blink_art_style blink_counting blink_forensic_detection blink_functional_correspondence blink_iq_test "
        "blink_jigsaw blink_multi_view_reasoning blink_object_localization blink_relative_depth "
        "blink_relative_reflectance blink_semantic_correspondence blink_spatial_relation blink_visual_correspondence "
        "blink_visual_similarity",
        Task(Score("blink_acc", field("is_correct"), stock="blink_acc"), form=answer_forms.LETTER),
    ),
    **_each(
        "mmmu_pro_standard mmmu_pro_standard_cot mmmu_pro_vision mmmu_pro_vision_cot",
        Task(
            Score("mmmu_acc", lambda entry: equal_texts(entry, "parsed_pred", "answer"), stock="mmmu_acc"),
            Cluster("subject", of_sample=lambda sample: str(sample["mmmu_acc"]["subject"])),
            category=column("subject"),
            form=answer_forms.LETTER_OF_TEN,
        ),
    ),
    **_each("mmmu_pro_composite mmmu_pro_composite_cot", _SEVERAL),
    **_each(
        "refcoco_bbox_rec_val refcoco_bbox_rec_test refcoco_bbox_rec_testA refcoco_bbox_rec_testB "
        "refcoco+_bbox_rec_val refcoco+_bbox_rec_testA refcoco+_bbox_rec_testB "
        "refcocog_bbox_rec_val refcocog_bbox_rec_test",
        # In shares of the image, which the task makes of them when it loads.
        Task(Score("refcoco_ACC@0.5", half_overlap, stock="refcoco_ACC@0.5"), _REGION, boxes=boxes.shares()),
    ),
    **_each(
        "refcoco_grounding_test refcoco_grounding_testA refcoco_grounding_testB refcoco_plus_grounding_testA "
        "refcoco_plus_grounding_testB refcocog_grounding_test",
        Task(
            Score("refcoco_grounding_ACC@0.5", half_overlap, stock="refcoco_grounding_ACC@0.5"),
            _REGION,
            boxes=boxes.corner_and_size(),
        ),
    ),
    "screenspot_rec_test": Task(
        Score("screenspot_ACC@0.5", half_overlap, stock="screenspot_ACC@0.5"),
        _image("file_name"),
        boxes=boxes.shares(),
    ),
    "screenspot_v2": Task(_CLICKED["screenspot_v2"], boxes=boxes.screenspot_v2),
    "screenspot_pro": Task(_CLICKED["screenspot_pro"], boxes=boxes.shares_or_pixels()),
    "osworld_g": Task(Score("osworld_g_acc", field("correct"), stock="osworld_g_acc"), boxes=boxes.osworld_g),
    "groundingme": Task(
        Score("groundingme_ACC@0.5", field("acc_5"), stock="groundingme_ACC@0.5"), boxes=boxes.groundingme
    ),
    "multihopspatial": Task(
        Score("mcq_acc", field("mcq_correct"), stock="mcq_acc", scale=100), boxes=boxes.corner_and_size()
    ),
    **_each(
        "visualwebbench_element_ground visualwebbench_action_ground",
        Task(Score("accuracy", of_hundred, stock="accuracy", scale=100), boxes=boxes.of_choice),
    ),
    "visualwebbench_action_prediction": Task(
        Score("accuracy", of_hundred, stock="accuracy", scale=100), boxes=boxes.shares_or_pixels()
    ),
    "visualwebbench_element_ocr": Task(
        Score("rouge_l", of_hundred, stock="rouge_l", scale=100), boxes=boxes.shares_or_pixels()
    ),
    **TEXT_ROWS,
    # --- with a judge's verdict ---
    **_each("mmvet mmvetv2", Task(Score("gpt_eval_score", mmvet, stock="gpt_eval_score", scale=100), form=_JUDGED)),
    **_each(
        "mathvista_testmini_cot mathvista_testmini_format mathvista_testmini_solution",
        Task(Score("llm_as_judge_eval", field("true_false"), stock="llm_as_judge_eval", scale=100), form=_JUDGED),
    ),
    "hallusion_bench_image": Task(
        # "unclear" is wrong, as the task counts it
        Score("aAcc", field("correct"), stock="aAcc", scale=100, late=True),
        Cluster("image", of_sample=lambda sample: str(sample["aAcc"]["filename"])),
        form=_JUDGED,
    ),
    # --- without a score per document ---
    **_each(
        "flickr30k_test flickr30k_test_lite coco2014_cap_val coco2017_cap_val coco2017_cap_val_lite coco_karpathy_val "
        "coco_karpathy_test coco_cap_chair nocaps_val nocaps_val_lite textcaps_train textcaps_val textcaps_val_lite",
        _CAPTIONS,
    ),
    **_each(  # a region is drawn into the image, as a box or as an outline, and asked about
        "refcoco_bbox_val refcoco_bbox_val_lite refcoco_bbox_test refcoco_bbox_testA refcoco_bbox_testB "
        "refcoco_seg_val refcoco_seg_test refcoco_seg_testA refcoco_seg_testB "
        "refcoco+_bbox_val refcoco+_bbox_testA refcoco+_bbox_testB "
        "refcoco+_seg_val refcoco+_seg_testA refcoco+_seg_testB "
        "refcocog_bbox_val refcocog_bbox_test refcocog_seg_val refcocog_seg_test",
        replace(_CAPTIONS, cluster=_REGION, boxes=boxes.corner_and_size()),
    ),
    "screenspot_reg_test": replace(_CAPTIONS, cluster=_image("file_name"), boxes=boxes.shares()),  # a box is drawn
    "odinw13": Task(unscored="its boxes are scored over all documents together", boxes=boxes.several()),
    # Their answers are scored nowhere here; that a log's entries follow from them can be checked all the same.
    **_each("mmbench_en_test mmbench_cn_test", replace(_SUBMISSION, rebuild=rebuilt.mmbench)),
    "mmmu_test": replace(_SUBMISSION, rebuild=rebuilt.mmmu),
    "textvqa_test": replace(_SUBMISSION, rebuild=rebuilt.textvqa),
    **_each("vqav2_test stvqa", replace(_SUBMISSION, rebuild=rebuilt.submitted("question_id"))),
    "vizwiz_vqa_test": replace(_SUBMISSION, rebuild=rebuilt.vizwiz),
    **_each("docvqa_test infovqa_test", replace(_SUBMISSION, rebuild=rebuilt.submitted("questionId"))),
    **_each("mathvista_test coco2014_cap_test coco2017_cap_test nocaps_test textcaps_test", _SUBMISSION),
}


# --- reading by it ----------------------------------------------------------------------------------------------------

_UNKNOWN = Task()


def score_of_task(task: str, config: Mapping[str, Any]) -> Score:
    """How a task's documents are scored.

    Args:
        task: its name.
        config: the task's configuration, as lmms-eval writes it into a results file.

    Raises:
        NoScoreError: the task is known to have no score per document, or is not known and declares no mean.
    """
    if (row := TASKS.get(task)) is not None:
        if row.score is None:
            raise NoScoreError(row.unscored)
        return row.score
    declared = declared_metrics(config)
    for metric, aggregation in declared.items():
        if aggregation == "mean":
            # Error rates and counts have no upper end: an answer may have more wrong words than its target has words.
            return Score(metric, as_score, stock=metric, high=math.inf if falls(metric, config) else 1.0)
    metrics = words_or_nothing(f"{metric} ({function_name(aggregation)})" for metric, aggregation in declared.items())
    raise NoScoreError(f"it declares no metric that is a mean over documents; it declares {metrics}")


def declared_metrics(config: Mapping[str, Any]) -> dict[str, Any]:
    """Metric -> aggregation, of a task's metric_list.

    Args:
        config: the task's configuration.
    """
    return {str(row["metric"]): row.get("aggregation") for row in _rows(config, "metric_list") if "metric" in row}


def falls(metric: str, config: Mapping[str, Any]) -> bool:
    """Whether a task declares that a lower value of a metric is better.

    Args:
        metric: its name.
        config: the task's configuration.
    """
    rows = _rows(config, "metric_list")
    return any(row.get("metric") == metric and row.get("higher_is_better") is False for row in rows)


def filters_of(config: Mapping[str, Any]) -> list[str]:
    """Names of a task's filters, in its own order, which is that of its log.

    Args:
        config: the task's configuration.
    """
    return [str(row.get("name")) for row in _rows(config, "filter_list")] or ["none"]


def headline_filter(task: str, config: Mapping[str, Any]) -> str:
    """Which of a task's filters its documents' scores are of: the one that its row names, or else its first.

    Args:
        task: its name.
        config: the task's configuration.
    """
    names = filters_of(config)
    row = TASKS.get(task)
    named = row.score.filter if row is not None and row.score is not None else ""
    return named if named in names else names[0]


def headline_filters(configs: Mapping[str, Mapping[str, Any] | None]) -> dict[str, tuple[str, list[str]]]:
    """Of tasks with several filters, the one that counts, and the others.

    Args:
        configs: task -> its configuration.
    """
    several = {task: filters_of(config or {}) for task, config in configs.items()}
    chosen = {task: headline_filter(task, configs[task] or {}) for task, names in several.items() if len(names) > 1}
    return {task: (one, [name for name in several[task] if name != one]) for task, one in chosen.items()}


def _rows(config: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    rows = config.get(key)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, (list, tuple)) else []


def unit_of(task: str, metric: str) -> str:
    """The unit of a metric that is neither its task's score nor told by its aggregation; "" where it is not known.

    Args:
        task: its name.
        metric: its name.
    """
    return TASKS.get(task, _UNKNOWN).units.get(metric, "")


def cluster_of(task: str, sample: Mapping[str, Any]) -> tuple[str, bool]:
    """What a document shares with others, such as "image n1234", and whether that is known.

    Where it is not, the document counts as independent ("document 5").

    Args:
        task: its name.
        sample: the document's line of a sample log.
    """
    cluster = TASKS[task].cluster if task in TASKS else None
    if isinstance(sample.get("group"), str):
        kind = cluster.kind if cluster is not None and cluster is not ONE_EACH else "image"
        return f"{kind} {sample['group']}", True
    if cluster is not None and cluster.of_sample is not None:
        try:
            return f"{cluster.kind} {cluster.of_sample(sample)}", True
        except (KeyError, TypeError, ValueError):
            pass
    return f"document {sample['doc_id']}", cluster is ONE_EACH


def has_clusters(task: str) -> bool:
    """Whether the rows of a task's dataset say what documents share, and its sample logs do not.

    Args:
        task: its name.
    """
    row = TASKS.get(task)
    return row is not None and row.cluster is not None and row.cluster.of_document is not None


def cluster_of_document(task: str, document: Document) -> str | None:
    """What a document shares with others; None where the task's own sample log says it, or nothing is known.

    Args:
        task: its name.
        document: its row of the task's dataset.
    """
    cluster = TASKS[task].cluster if has_clusters(task) else None
    if cluster is None or cluster.of_document is None:
        return None
    try:
        return cluster.of_document(document)
    except (KeyError, TypeError):  # a copy of the dataset without that column
        return None


def boxes_of_document(task: str, document: Document) -> Boxes | None:
    """Where in its images the thing is that a document asks about; None where its row does not say it, or not rightly.

    Args:
        task: its name.
        document: its row of the task's dataset; images may be decoded or not.
    """
    row = TASKS.get(task, _UNKNOWN)
    try:
        return None if row.boxes is None else plausible(row.boxes(document))
    except Exception:  # whatever a row holds: of it nothing is known then
        return None


def function_name(value: Any) -> str:
    """The name of a function, such as an aggregation, as a results file has it: with its address in memory, or plain.

    Args:
        value: of the file; anything that is no function comes back as text.
    """
    text = str(value)
    return text.split()[1].rpartition(".")[2] if re.match(r"<function \S+ at ", text) else text
