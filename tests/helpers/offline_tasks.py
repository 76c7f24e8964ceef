"""Small offline copies of datasets beyond the nine: true columns, drawn images, a planned answer for every document.

Every document of `COPIES` says which answer `PlannedModel` gives to it, which score that answer has by the benchmark's
own rules, worked out by hand, and which picture it asks about: several ask about one where the real data does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.offline_copies import Copy, Document, Row, by_task, strings
from tests.helpers.offline_grounding import GROUNDED


def _people(answer: str, agreeing: int) -> list[str]:
    """Ten people's answers, of which some say `answer` and no two of the others the same."""
    return [answer] * agreeing + [f"other {number}" for number in range(10 - agreeing)]


# The VQA score leaves out each of ten people in turn: the share of agreement, min(1, agreeing others / 3), on average.
# One agrees: 9 times 1/3. Two: 2 times 1/3 and 8 times 2/3. Three: 3 times 2/3 and 7 times 1. Four and more: 1.
_AGREEMENT = {0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9, 4: 1.0, 7: 1.0}


# --- multiple choice --------------------------------------------------------------------------------------------------


def _scienceqa(config: str, task: str) -> Copy:
    planned = [
        ("B", "B", 1.0),
        ("C", "c", 1.0),  # case does not matter alone ...
        ("A", "A. the moon", 1.0),
        ("A", "a. the moon", 0.0),  # ... but before a full stop
        ("B", "The answer is B", 0.0),
        ("C", "", 0.0),
    ]
    columns = {
        "image": "image",
        "question": "string",
        "choices": ["string"],
        "answer": "int8",
        **strings("hint task grade subject topic category skill lecture solution"),
    }
    documents = [
        Document(
            {
                **dict.fromkeys(["task", "grade", "subject", "topic", "category", "skill", "lecture", "solution"], ""),
                "question": f"Which one is number {number}?",
                "choices": ["the moon", "the sun", "a star"],
                "answer": "ABC".index(letter),
                "hint": "" if number % 2 else "Look up.",
            },
            number,
            answer,
            score,
        )
        for number, (letter, answer, score) in enumerate(planned)
    ]
    return Copy("lmms-lab-encoder/ScienceQA", config, "test", columns, (task,), documents, False)


def _ai2d() -> Copy:
    planned = [(0, "C", 1.0), (0, "C. leaf", 1.0), (0, "c.", 1.0), (1, "D", 0.0), (1, "(C)", 1.0), (2, "leaf", 0.0)]
    documents = [
        Document(
            {"question": f"What is {number}?", "options": ["root", "stem", "leaf", "bud"], "answer": "2"},
            picture,
            answer,
            score,
        )
        for number, (picture, answer, score) in enumerate(planned)
    ]
    columns = {"question": "string", "options": ["string"], "answer": "string", "image": "image"}
    return Copy("lmms-lab-encoder/ai2d", "default", "test", columns, ("ai2d",), documents, False)


def _seedbench() -> Copy:
    planned = [
        (0, "image", "A", "A", 1.0),
        (0, "image", "B", "b", 1.0),
        (1, "image", "C", "C) three", 1.0),  # only the first character counts
        (1, "image", "D", "The answer is D", 0.0),
        (2, "video", "A", "A", 1.0),
        (3, "video", "B", "", 0.0),
    ]
    columns = {
        **strings("answer choice_a choice_b choice_c choice_d"),
        "data_id": ["string"],
        **strings("data_type question question_id"),
        "question_type_id": "int16",
        "image": ["image"],
        "segment": ["int64"],
    }
    documents = [
        Document(
            {
                **{f"choice_{letter}": letter * 3 for letter in "abcd"},
                "answer": truth,
                "data_id": [f"{1454426 + picture}_2591111986"],
                "data_type": kind,
                "question": f"How many are there in {number}?",
                "question_id": str(101669 + number),
                "question_type_id": 5,
                "segment": None,
            },
            picture,
            answer,
            score,
        )
        for number, (picture, kind, truth, answer, score) in enumerate(planned)
    ]
    return Copy("lmms-lab-encoder/SEED-Bench", "default", "test", columns, ("seedbench",), documents, True)


def _cv_bench(config: str, task: str) -> Copy:
    planned = [
        (0, "ADE20K", "(A)", "A", 1.0),
        (0, "ADE20K", "(B)", "(b) left", 1.0),
        (0, "ADE20K", "(B)", "A", 0.0),
        (1, "COCO", "(A)", "Below", 0.0),  # its first letter is no choice
        (1, "COCO", "(C)", "C.", 1.0),
        (2, "COCO", "(A)", "", 0.0),
    ]
    columns = {
        "idx": "int64",
        **strings("type task"),
        "image": "image",
        "question": "string",
        "choices": ["string"],
        **strings("answer prompt filename source source_dataset source_filename target_class"),
        "target_size": "int64",
        "bbox": [["float64"]],
    }
    documents = [
        Document(
            {
                "idx": number,
                "type": "2D",
                "task": "Count",
                "question": f"How many are in {number}?",
                "choices": ["1", "2", "3"],
                "answer": truth,
                "prompt": f"How many are in {number}? (A) 1 (B) 2 (C) 3",
                "filename": f"img/2D/count/{number}.png",
                "source": source,
                "source_dataset": f"{source} validation",
                "source_filename": f"val_{picture:08d}.jpg",
                "target_class": None,
                "target_size": None,
                "bbox": None,
            },
            picture,
            answer,
            score,
        )
        for number, (picture, source, truth, answer, score) in enumerate(planned)
    ]
    return Copy("nyu-visionx/CV-Bench", config, "test", columns, (task,), documents, True)


def _blink(config: str, task: str) -> Copy:
    planned = [
        ("(A)", "A", 1.0),
        ("(B)", "The correct answer is (B).", 1.0),
        ("(B)", "(A)", 0.0),
        ("(A)", "I see nothing.", 0.0),
        ("(A)", "(B), no: (A)", 1.0),
        ("(A)", "", 0.0),
    ]
    columns = {
        **strings("idx question sub_task"),
        **{f"image_{number}": "image" for number in range(1, 5)},
        "choices": ["string"],
        **strings("answer prompt explanation"),
    }
    documents = [
        Document(
            {
                "idx": f"val_{config}_{number}",
                "question": "Which one?",
                "sub_task": config,
                "choices": ["first", "second"],
                "answer": truth,
                "prompt": f"Which one is {number}? (A) first (B) second",
                "explanation": "",
            },
            number,
            answer,
            score,
        )
        for number, (truth, answer, score) in enumerate(planned)
    ]
    return Copy("BLINK-Benchmark/BLINK", config, "val", columns, (task,), documents, False)


_TEN = [f"choice number {number}" for number in range(10)]


def _mmmu_pro(config: str, task: str, planned: Sequence[tuple[str, str, str, float]]) -> Copy:
    standard = config != "vision"
    columns: dict[str, Any] = {"id": "string"}
    if standard:
        columns |= {**strings("question options explanation"), **{f"image_{n}": "image" for n in range(1, 8)}}
        columns |= strings("img_type answer topic_difficulty subject")
    else:
        columns |= {"image": "image", **strings("options answer subject")}
    documents = []
    for number, (subject, truth, answer, score) in enumerate(planned):
        row: Row = {"id": f"test_{subject}_{number}", "options": repr(_TEN), "answer": truth, "subject": subject}
        if standard:
            row |= {
                "question": f"What is in <image 1>, number {number}?",
                "explanation": "",
                "img_type": "['Diagrams']",
            }
            row |= {"topic_difficulty": "Easy"}
        # Documents of a subject count as related, as in MMMU.
        documents.append(Document(row, ["Art", "Physics"].index(subject), answer, score))
    return Copy("MMMU/MMMU_Pro", config, "test", columns, (task,), documents, True)


# --- free answers -----------------------------------------------------------------------------------------------------


def _textvqa() -> Copy:
    planned = [(0, "Exit", 4), (0, "Exit", 3), (0, "exit", 2), (1, "42", 1), (1, "stop", 0), (2, "Stop.", 7)]
    columns = {
        "image_id": "string",
        "question_id": "int32",
        "question": "string",
        "question_tokens": ["string"],
        "image": "image",
        "image_width": "int32",
        "image_height": "int32",
        **strings("flickr_original_url flickr_300k_url"),
        "answers": ["string"],
        "image_classes": ["string"],
        "set_name": "string",
        "ocr_tokens": ["string"],
    }
    documents = [
        Document(
            {
                "image_id": f"003a8ae2ef43b90{picture}",
                "question_id": 34602 + number,
                "question": "what does it say?",
                "question_tokens": ["what", "does", "it", "say"],
                "image_width": 32,
                "image_height": 24,
                "flickr_original_url": "",
                "flickr_300k_url": "",
                "answers": _people(answer.lower().strip("."), agreeing),
                "image_classes": [],
                "set_name": "val",
                "ocr_tokens": [],
            },
            picture,
            answer,
            _AGREEMENT[agreeing],
        )
        for number, (picture, answer, agreeing) in enumerate(planned)
    ]
    return Copy("lmms-lab-encoder/textvqa", "default", "validation", columns, ("textvqa_val",), documents, True)


def _vqav2() -> Copy:
    planned = [(0, "yes", 7), (0, "Yes", 3), (0, "2", 2), (1, "two", 1), (1, "no", 0), (2, "the cat", 4)]
    columns = {
        **strings("question_type multiple_choice_answer"),
        "answers": [{"answer": "string", "answer_confidence": "string", "answer_id": "int64"}],
        "image_id": "int64",
        "answer_type": "string",
        "question_id": "int64",
        "question": "string",
        "image": "image",
    }
    documents = [
        Document(
            {
                "question_type": "what is",
                "multiple_choice_answer": answer,
                "answers": [
                    {"answer": said, "answer_confidence": "yes", "answer_id": person}
                    for person, said in enumerate(_people(answer, agreeing), start=1)
                ],
                "image_id": 262148 + picture,
                "answer_type": "other",
                "question_id": 262148000 + number,
                "question": f"What is number {number}?",
            },
            picture,
            answer,
            _AGREEMENT[agreeing],
        )
        for number, (picture, answer, agreeing) in enumerate(planned)
    ]
    return Copy("lmms-lab-encoder/VQAv2", "default", "validation", columns, ("vqav2_val",), documents, True)


def _vizwiz() -> Copy:
    planned = [("unanswerable", 3), ("Blue", 7), ("grey", 0), ("a dog", 1), ("soup", 2), ("soup", 4)]
    documents = [
        Document(
            {
                "question_id": f"VizWiz_val_{number:08d}.jpg",
                "question": "what is this?",
                "answers": _people(answer.lower().removeprefix("a "), agreeing),
                "category": "other",
            },
            number,
            answer,
            _AGREEMENT[agreeing],
        )
        for number, (answer, agreeing) in enumerate(planned)
    ]
    columns = {
        "question_id": "string",
        "image": "image",
        "question": "string",
        "answers": ["string"],
        "category": "string",
    }
    # One question for each image, as in the real data: no two documents are related.
    return Copy("lmms-lab-encoder/VizWiz-VQA", "default", "val", columns, ("vizwiz_vqa_val",), documents, True)


def _chartqa() -> Copy:
    planned = [
        (0, "human_test", "40", "41.9", 1.0),  # within 5 per cent
        (0, "human_test", "40", "42.1", 0.0),
        (1, "human_test", "Blue", "blue", 1.0),
        (1, "augmented_test", "Blue", "light blue", 0.0),
        (2, "augmented_test", "0", "0", 1.0),
        (2, "augmented_test", "50%", "0.5", 1.0),
    ]
    documents = [
        Document({"type": kind, "question": f"What is {number}?", "answer": truth}, picture, answer, score)
        for number, (picture, kind, truth, answer, score) in enumerate(planned)
    ]
    columns = {**strings("type question answer"), "image": "image"}
    return Copy("lmms-lab-encoder/ChartQA", "default", "test", columns, ("chartqa",), documents, False)


def _ocrbench() -> Copy:
    planned = [
        ("IIIT5K", "Regular Text Recognition", ["EXIT"], "It says exit.", 1.0),
        ("IIIT5K", "Regular Text Recognition", ["EXIT"], "exi", 0.0),
        ("ESTVQA", "Scene Text-centric VQA", ["3", "three"], "three", 1.0),
        ("FUNSD", "Key Information Extraction", ["ITT"], "1tt", 0.0),
        ("HME100k", "Handwritten Mathematical Expression Recognition", ["x + 1"], "x+1", 1.0),
        ("HME100k", "Handwritten Mathematical Expression Recognition", ["X"], "x", 0.0),  # here case matters
    ]
    documents = [
        Document(
            {"dataset": source, "question": f"what is written in {number}?", "question_type": kind, "answer": truth},
            number,
            answer,
            score,
        )
        for number, (source, kind, truth, answer, score) in enumerate(planned)
    ]
    columns = {**strings("dataset question question_type"), "answer": ["string"], "image": "image"}
    return Copy("echo840/OCRBench", "default", "test", columns, ("ocrbench",), documents, False)


# ANLS: 1 - edits / length of the longer one, 0 below one half; the best of several true answers.
_ANLS: Sequence[tuple[int, list[str], str, float]] = (
    (0, ["January"], "january", 1.0),
    (0, ["January"], "januery", 6 / 7),
    (0, ["January", "Jan"], "Jan", 1.0),
    (1, ["1995"], "1990", 3 / 4),
    (1, ["1995"], "2090", 0.0),  # a quarter right
    (2, ["total"], "", 0.0),
)


def _docvqa() -> Copy:
    columns = {
        **strings("questionId question"),
        "question_types": ["string"],
        "image": "image",
        "docId": "int64",
        **strings("ucsf_document_id ucsf_document_page_no"),
        "answers": ["string"],
        "data_split": "string",
    }
    documents = [
        Document(
            {
                "questionId": str(49153 + number),
                "question": f"What is {number}?",
                "question_types": ["form"],
                "docId": 14465 + picture,
                "ucsf_document_id": "pybv0228",  # pages of one document are images of their own
                "ucsf_document_page_no": str(81 + picture),
                "answers": truth,
                "data_split": "val",
            },
            picture,
            answer,
            score,
        )
        for number, (picture, truth, answer, score) in enumerate(_ANLS)
    ]
    return Copy("lmms-lab-encoder/DocVQA", "DocVQA", "validation", columns, ("docvqa_val",), documents, True)


def _infovqa() -> Copy:
    columns = {
        **strings("questionId question"),
        "answers": ["string"],
        "answer_type": ["string"],
        "image": "image",
        "image_url": "string",
        "operation/reasoning": ["string"],
        **strings("ocr data_split"),
    }
    documents = [
        Document(
            {
                "questionId": str(98313 + number),
                "question": f"What is {number}?",
                "answers": truth,
                "answer_type": ["single span"],
                "image_url": f"https://example.org/infographic-{picture}.jpg",
                "operation/reasoning": [],
                "ocr": "{}",
                "data_split": "val",
            },
            picture,
            answer,
            score,
        )
        for number, (picture, truth, answer, score) in enumerate(_ANLS)
    ]
    return Copy("lmms-lab-encoder/DocVQA", "InfographicVQA", "validation", columns, ("infovqa_val",), documents, True)


def _gsm8k() -> Copy:
    """Two filters: strict-match, the first, wants "The answer is 4."; flexible-extract takes the last number."""
    planned = [
        ("So. The answer is 4.", 1.0),
        ("It is 4.", 0.0),
        ("The answer is $4.", 0.0),
        ("The answer is 5. Or 4", 0.0),
        ("The answer is 4. Or 5", 1.0),
    ]
    documents = [
        Document({"question": f"What is 2 + 2, {number}?", "answer": "2 + 2 = 4\n#### 4"}, number, *plan)
        for number, plan in enumerate(planned)
    ]
    return Copy("gsm8k", "main", "test", strings("question answer"), ("gsm8k_cot_zeroshot",), documents, True)


# --- boxes ------------------------------------------------------------------------------------------------------------

_REFCOCO_COLUMNS = {
    "question_id": "string",
    "image": "image",
    "question": "string",
    "answer": ["string"],
    "segmentation": ["float32"],
    "bbox": ["float32"],
    "iscrowd": "int8",
    "file_name": "string",
}


def _region(number: int, picture: int, names: list[str], box: list[float]) -> Row:
    """A region of a picture of 32 x 24 pixels, its box given as left, top, width, height."""
    return {
        "question_id": str(1719310 + number),
        "question": "Please carefully observe the area and give a caption.",
        "answer": names,
        "segmentation": [0.0, 0.0, 8.0, 0.0, 8.0, 6.0],
        "bbox": box,
        "iscrowd": 0,
        "file_name": f"COCO_train2014_{581857 + picture:012d}_{number}.jpg",  # an image, and the region's number
    }


def _refcoco_rec() -> Copy:
    """The left half of the picture, 16 x 24; a region with two names is asked for twice. Boxes are shares of it."""
    left = [0.0, 0.0, 16.0, 24.0]
    planned = [
        (0, "[0.0, 0.0, 0.5, 1.0]", 1.0),
        (0, "It is at [0.0, 0.0, 0.25, 1.0].", 1.0),  # half of it: exactly the 0.5 that is asked for
        (1, "[0.0, 0.0, 0.2, 1.0]", 0.0),
        (1, "I do not know.", 0.0),
        (2, "[0, 0, 1, 1]", 1.0),
        (2, "[0.5, 0.0, 1.0, 1.0]", 0.0),
    ]
    documents = [
        # Regions 0 and 1 are in picture 0, region 2 in picture 1.
        Document(_region(region, region // 2, ["left half", "the half on the left"], left), region // 2, answer, score)
        for region, answer, score in planned
    ]
    return Copy(
        "lmms-lab-encoder/RefCOCO", "default", "val", _REFCOCO_COLUMNS, ("refcoco_bbox_rec_val",), documents, True
    )


def _refcoco_grounding() -> Copy:
    """The left half again, in pixels or thousandths; several boxes: the best counts."""
    planned = [
        (0, '```json\n[{"bbox_2d": [0, 0, 16, 24]}]\n```', 1.0),
        (0, '{"bbox": [0, 0, 500, 1000]}', 1.0),
        (1, "[20, 0, 32, 24]", 0.0),
        (1, "[[20, 0, 32, 24], [0, 0, 15, 24]]", 1.0),
        (2, "nowhere", 0.0),
        (3, "(0, 0), (4, 4)", 0.0),
    ]
    documents = [
        Document(_region(number, picture, ["left half"], [0.0, 0.0, 16.0, 24.0]), picture, answer, score)
        for number, (picture, answer, score) in enumerate(planned)
    ]
    return Copy(
        "lmms-lab-encoder/RefCOCO", "default", "test", _REFCOCO_COLUMNS, ("refcoco_grounding_test",), documents, True
    )


# --- tasks with a judge -----------------------------------------------------------------------------------------------

NO_VERDICT = "no verdict"
"""A word in an answer to which `judge` says nothing."""


def _mmvet() -> Copy:
    """The judge grants what the answer says; no verdict is no score, though MM-Vet counts it as 0."""
    nan = float("nan")
    planned = [("grade 1.0", 1.0), ("grade 0.5", 0.5), ("grade 0.0", 0.0), (NO_VERDICT, nan), ("grade 0.8", 0.8)]
    documents = [
        Document(
            {
                "question_id": f"v1_{number}",
                "question": "What is x in the equation?",
                "answer": "-1<AND>-5",
                "image_source": "CS_Student",
                "capability": "ocr,math",
            },
            number,
            *plan,
        )
        for number, plan in enumerate(planned)
    ]
    columns = {
        "question_id": "string",
        "image": "image",
        **strings("question answer image_source capability"),
    }
    return Copy("lmms-lab-encoder/MMVet", "default", "test", columns, ("mmvet",), documents, False)


def _mathvista() -> Copy:
    planned = [
        ("multi_choice", "text", ["circle", "square"], "square", "square", 1.0),
        ("multi_choice", "text", ["circle", "square"], "square", "extract (B)", 1.0),
        ("multi_choice", "text", ["circle", "square"], "square", "extract A", 0.0),
        ("free_form", "integer", None, "14", "14", 1.0),
        ("free_form", "integer", None, "14", "extract 15", 0.0),
        ("free_form", "integer", None, "14", NO_VERDICT, 0.0),  # nothing was extracted, and that is a wrong answer
    ]
    metadata = strings("category context grade")
    metadata |= {"img_height": "int64", "img_width": "int64", "language": "string", "skills": ["string"]}
    metadata |= strings("source split task")
    columns = {
        **strings("pid question image"),
        "decoded_image": "image",
        "choices": ["string"],
        "unit": "string",
        "precision": "float64",
        **strings("answer question_type answer_type"),
        "metadata": metadata,
        "query": "string",
    }
    documents = [
        Document(
            {
                "pid": str(number + 1),
                "question": f"What is number {number}?",
                "image": f"images/{number + 1}.jpg",
                "choices": choices,
                "unit": None,
                "precision": None,
                "answer": truth,
                "question_type": kind,
                "answer_type": form,
                "metadata": {
                    **dict.fromkeys(["category", "context", "grade", "language", "source", "task"], "any"),
                    "img_height": 24,
                    "img_width": 32,
                    "skills": ["geometry reasoning"],
                    "split": "testmini",
                },
                "query": f"Question: What is number {number}?",
            },
            number,
            answer,
            score,
        )
        for number, (kind, form, choices, truth, answer, score) in enumerate(planned)
    ]
    tasks = ("mathvista_testmini_cot", "mathvista_testmini_format", "mathvista_testmini_solution")
    return Copy("AI4Math/MathVista", "default", "testmini", columns, tasks, documents, False)


def _hallusion() -> Copy:
    """The judge's "unclear" counts as wrong, except where a question about a missing figure was asked."""
    planned = [
        ("VD", "illusion", "0", "0", "0", "this is correct", 1.0),
        ("VD", "illusion", "0", "0", "1", "this is incorrect", 0.0),
        ("VD", "illusion", "0", "1", "0", NO_VERDICT, 0.0),
        ("VS", "chart", "0", "0", "0", NO_VERDICT, 1.0),
        ("VS", "chart", "0", "1", "0", "this is correct", 1.0),
        ("VS", "chart", "0", "1", "1", "this is correct", 1.0),
    ]
    names = "category subcategory visual_input set_id figure_id sample_note question_id question gt_answer_details"
    documents = []
    figures: dict[str, int] = {}
    for category, subcategory, group, figure, question, answer, score in planned:
        filename = f"./{category}/{subcategory}/{group}_{figure}.png"
        row = {
            "category": category,
            "subcategory": subcategory,
            "visual_input": "1",
            "set_id": group,
            "figure_id": figure,
            "sample_note": "circle",
            "question_id": question,
            "question": f"Is circle {question} larger?",
            "gt_answer_details": "They are the same.",
            "gt_answer": "0",
            "filename": filename,
        }
        documents.append(Document(row, figures.setdefault(filename, len(figures)), answer, score))
    columns = {**strings(f"{names} gt_answer filename"), "image": "image"}
    return Copy(
        "lmms-lab-encoder/HallusionBench", "default", "image", columns, ("hallusion_bench_image",), documents, True
    )


@contextmanager
def judged() -> Iterator[None]:
    """Tasks with a judge ask `judge` instead of a server, and load where MathVista's edit distance is not installed."""
    import requests
    from lmms_eval.api.metrics import levenshtein_distance
    from lmms_eval.llm_judge.providers.openai import OpenAIProvider

    def evaluate(self: Any, request: Any) -> SimpleNamespace:
        return SimpleNamespace(content=judge(request.messages[0]["content"]), model_used="judge", success=True)

    def post(url: str, *, json: Row, **_: Any) -> SimpleNamespace:
        reply = {"choices": [{"message": {"content": judge(json["messages"][0]["content"])}}]}
        return SimpleNamespace(raise_for_status=lambda: None, json=lambda: reply)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "none")  # asked for when these tasks are loaded
        patch.setitem(sys.modules, "Levenshtein", SimpleNamespace(distance=levenshtein_distance))
        patch.setattr(OpenAIProvider, "evaluate", evaluate)
        patch.setattr(requests, "post", post)
        yield


def judge(prompt: str) -> str:
    """What a judge says to a prompt that ends with one of the planned answers; "" where it has no verdict."""
    said = prompt.rpartition("grade ")[2].split(" ")[0] if "| grade " in prompt else ""
    if "\n\nextract " in prompt:
        said = prompt.rpartition("\n\nextract ")[2].split("\n")[0]
    for verdict in ("incorrect", "correct"):
        if f"this is {verdict}" in prompt:
            return verdict
    return said


COPIES: tuple[Copy, ...] = (
    _scienceqa("ScienceQA-IMG", "scienceqa_img"),
    _scienceqa("ScienceQA-FULL", "scienceqa"),
    _ai2d(),
    _seedbench(),
    _cv_bench("2D", "cv_bench_2d"),
    _cv_bench("default", "cv_bench"),
    _blink("Counting", "blink_counting"),
    _blink("Art_Style", "blink_art_style"),
    _mmmu_pro(
        "standard (10 options)",
        "mmmu_pro_standard",
        [
            ("Art", "C", "C", 1.0),
            ("Art", "C", "The answer is (C).", 1.0),
            ("Art", "D", "(C)", 0.0),
            ("Physics", "J", "J.", 1.0),
            ("Physics", "A", "choice number 9 is what I would choose here", 0.0),
        ],
    ),
    _mmmu_pro(
        "vision",
        "mmmu_pro_vision",
        [
            ("Art", "C", "C", 1.0),
            ("Art", "C", "C.", 0.0),  # not parsed: the letter alone is right
            ("Art", "D", "d", 0.0),
            ("Physics", "J", "J", 1.0),
            ("Physics", "A", "B", 0.0),
        ],
    ),
    _textvqa(),
    _vqav2(),
    _vizwiz(),
    _chartqa(),
    _ocrbench(),
    _docvqa(),
    _infovqa(),
    _gsm8k(),
    _refcoco_rec(),
    _refcoco_grounding(),
    *(grounding.copy for grounding in GROUNDED),
    _mmvet(),
    _mathvista(),
    _hallusion(),
)

PLANNED = by_task(COPIES)
"""Task -> its data and what is planned for it."""
