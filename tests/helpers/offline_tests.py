"""Offline copies of test splits, whose answers nobody has: their tasks score nothing and write a file for a server.

Columns, types and ids are those of the datasets, as far as they are public: no answers, or "nan", "?" and "" in their
place, identifiers as numbers or text, MMBench's rotated questions. Planned answers are of every kind that a board may
meet: letters alone, in sentences and in brackets, words, nothing at all, several lines, other scripts, quotation marks,
and characters that no worksheet takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.helpers.offline_copies import Copy, Document, Row, by_task, strings
from tests.helpers.offline_tasks import PLANNED

ROTATED = 1_000_000
"""MMBench adds it to the index of a question for each rotation of its choices."""
UNWRITABLE = "B\x0b\x07"
"""An answer with characters that no worksheet takes: one that counts as white space, and a bell."""


def _documents(rows: Sequence[tuple[int, str, Row]]) -> list[Document]:
    """From (picture, planned answer, row); a server would score them."""
    return [Document(row, picture, answer, math.nan) for picture, answer, row in rows]


def _mmbench(language: str, answers: Sequence[str]) -> Copy:
    """Two questions under every rotation of their choices, one with four of them and one with two, and one alone."""
    columns = {
        "index": "int64",
        **strings("question hint answer A B C D category"),
        "image": "image",
        **strings("source L2-category comment split"),
    }
    chinese = language == "cn"
    questions = [
        (241, "图中有什么?" if chinese else "What is in it?", "nan", ["sun", "moon", "star", "sky"], 4),
        (252, "哪一个更大?" if chinese else "Which one is larger?", "Look closely.", ["left", "right"], 2),
        (300, '"=SUM(A1)"是什么?' if chinese else 'What is "=SUM(A1)"?', "nan", ["a formula", "42", "-1", "None"], 1),
    ]
    rows: list[tuple[int, str, Row]] = []
    for picture, (index, question, hint, choices, rotations) in enumerate(questions):
        for turn in range(rotations):
            rotated = choices[turn:] + choices[:turn]
            row = {
                "index": index + turn * ROTATED,
                "question": question,
                "hint": hint,
                "answer": "nan",
                **{letter: (rotated[n] if n < len(rotated) else "nan") for n, letter in enumerate("ABCD")},
                "category": "object_localization",
                "source": "reasonseg",
                "L2-category": "finegrained_perception (instance-level)",
                "comment": "nan",
                "split": "test",
            }
            rows.append((picture, answers[len(rows)], row))
    return Copy(
        "lmms-lab-encoder/MMBench",
        language,
        "test",
        columns,
        (f"mmbench_{language}_test",),
        _documents(rows),
        False,
    )


_LETTERS = ("A", "D", "C. star", "The answer is B.", "b", UNWRITABLE, "I cannot see it.")


def _mmmu() -> Copy:
    """Letters, a phrase for an open question, an answer that cannot be parsed: the task draws a letter for it."""
    columns = {
        **strings("id question options explanation"),
        **{f"image_{number}": "image" for number in range(1, 8)},
        **strings("img_type answer topic_difficulty question_type subfield"),
    }
    asked = [
        ("Accounting", 1, ["$6", "$7", "$8", "$9"], "B"),
        ("Accounting", 2, ["$1", "$2"], "(A)"),
        ("Art", 1, ["oil", "ink", "chalk", "wax"], "It cannot be told."),
        ("Art", 2, [], "The vanishing point"),
        ("Art", 10, [], "12.5"),
        ("Agriculture_and_Food", 3, ["rust", "mildew", "blight"], "A\x0b"),
    ]
    subjects = list(dict.fromkeys(subject for subject, *_ in asked))
    rows = [
        (
            subjects.index(subject),  # documents of a subject count as related
            answer,
            {
                "id": f"test_{subject}_{number}",
                "question": f"What is in <image 1>, number {number}?",
                "options": repr(options),
                "explanation": "",
                "img_type": "['Diagrams']",
                "answer": "?",
                "topic_difficulty": "Easy",
                "question_type": "multiple-choice" if options else "open",
                "subfield": subject,
            },
        )
        for subject, number, options, answer in asked
    ]
    repo = "lmms-lab-encoder/MMMU"
    return Copy(repo, "default", "test", columns, ("mmmu_test",), _documents(rows), True)


_WORDS = ("Yes", "2 cats", "The \u201cred\u201d one", "", "a dog\nand a cat", 'he said "no"', "\u6c34\x0b")


def _vqav2() -> Copy:
    columns = {
        **strings("question_type multiple_choice_answer"),
        "answers": [{"answer": "string", "answer_confidence": "string", "answer_id": "int64"}],
        "image_id": "int64",
        "answer_type": "string",
        "question_id": "int64",
        "question": "string",
        "image": "image",
    }
    rows = [
        (
            number // 2,
            answer,
            {
                **dict.fromkeys(["question_type", "multiple_choice_answer", "answers", "answer_type"]),
                "image_id": 262144 + number // 2,
                "question_id": 262144000 + number,
                "question": f"What is number {number}?",
            },
        )
        for number, answer in enumerate(_WORDS)
    ]
    return Copy("lmms-lab-encoder/VQAv2", "default", "test", columns, ("vqav2_test",), _documents(rows), True)


def _vizwiz() -> Copy:
    """Images are named with and without `.jpg`: the task adds one to either."""
    columns = {
        "question_id": "string",
        "image": "image",
        "question": "string",
        "answers": ["string"],
        "category": "string",
    }
    rows = [
        (
            number,
            answer,
            {
                "question_id": f"VizWiz_test_{number:08d}" + (".jpg" if number % 2 == 0 else ""),
                "question": "what is this?",
                "answers": None,
                "category": None,
            },
        )
        for number, answer in enumerate(("Unanswerable", *_WORDS))
    ]
    repo = "lmms-lab-encoder/VizWiz-VQA"
    return Copy(repo, "default", "test", columns, ("vizwiz_vqa_test",), _documents(rows), False)


def _textvqa() -> Copy:
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
    rows = [
        (
            number // 2,
            answer,
            {
                "image_id": f"fc4a4d2fb1a6{number // 2:04x}",
                "question_id": 39602 + number,
                "question": "what does it say?",
                "question_tokens": ["what", "does", "it", "say"],
                "image_width": 32,
                "image_height": 24,
                "flickr_original_url": "",
                "flickr_300k_url": "",
                "answers": [""] * 10,
                "image_classes": ["Poster"],
                "set_name": "test",
                "ocr_tokens": ["EXIT"],
            },
        )
        for number, answer in enumerate(_WORDS)
    ]
    return Copy("lmms-lab-encoder/textvqa", "default", "test", columns, ("textvqa_test",), _documents(rows), True)


_READ = ("January", " 1995 ", "", "$ 4,000.00", "line one\nline two", "\u00e9t\u00e9\x0b")


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
    rows = [
        (
            number // 2,
            answer,
            {
                "questionId": str(57344 + number),
                "question": f"What is {number}?",
                "question_types": None,
                "docId": 4720 + number // 2,
                "ucsf_document_id": "xqpm0227",
                "ucsf_document_page_no": str(1 + number // 2),
                "answers": None,
                "data_split": "test",
            },
        )
        for number, answer in enumerate(_READ)
    ]
    return Copy("lmms-lab-encoder/DocVQA", "DocVQA", "test", columns, ("docvqa_test",), _documents(rows), True)


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
    rows = [
        (
            number // 2,
            answer,
            {
                "questionId": str(64535 + number),
                "question": f"What is {number}?",
                "answers": None,
                "answer_type": None,
                "image_url": f"https://example.org/infographic-{number // 2}.jpg",
                "operation/reasoning": None,
                "ocr": "{}",
                "data_split": "test",
            },
        )
        for number, answer in enumerate(_READ)
    ]
    repo = "lmms-lab-encoder/DocVQA"
    return Copy(repo, "InfographicVQA", "test", columns, ("infovqa_test",), _documents(rows), True)


def _stvqa() -> Copy:
    columns = {"question_id": "string", "image": "image", "question": "string"}
    rows = [
        (number, answer, {"question_id": str(78000 + number), "question": f"What does sign {number} say?"})
        for number, answer in enumerate(_READ)
    ]
    return Copy("lmms-lab-encoder/ST-VQA", "default", "test", columns, ("stvqa",), _documents(rows), False)


def _mathvista() -> Copy:
    """As testmini, without answers; what is to be extracted from free text is asked of a judge all the same."""
    copy, _ = PLANNED["mathvista_testmini_cot"]
    asked = [
        ("multi_choice", "text", ["circle", "square"], "square"),
        ("multi_choice", "text", ["circle", "square"], "extract (A)"),
        ("free_form", "integer", None, "14"),
        ("free_form", "float", None, "extract 1.2"),
        ("free_form", "integer", None, ""),
    ]
    rows = []
    for number, (kind, form, choices, answer) in enumerate(asked):
        row = dict(copy.documents[0].row)
        row |= {"pid": str(number + 1), "choices": choices, "question_type": kind, "answer_type": form, "answer": ""}
        row |= {"precision": 1.0 if form == "float" else None, "metadata": {**row["metadata"], "split": "test"}}
        rows.append((number, answer, row))
    return Copy(copy.repo, copy.config, "test", copy.columns, ("mathvista_test",), _documents(rows), False)


TESTS: tuple[Copy, ...] = (
    _mmbench("en", _LETTERS),
    _mmbench("cn", _LETTERS),
    _mmmu(),
    _vqav2(),
    _vizwiz(),
    _textvqa(),
    _docvqa(),
    _infovqa(),
    _stvqa(),
    _mathvista(),
)

SUBMITTED = by_task(TESTS)
"""Task -> its data and what is planned for it; without a score of any document."""

_WITH_A_BOARD = [f"mathvista_testmini_{shots}" for shots in ("cot", "format", "solution")]
_WITH_A_BOARD += ["mmvet", "mmmu_pro_standard", "mmmu_pro_vision"]

BOARD_COPIES: tuple[Copy, ...] = (*TESTS, *{id(PLANNED[task][0]): PLANNED[task][0] for task in _WITH_A_BOARD}.values())
BOARD_TASKS = {**SUBMITTED, **{task: PLANNED[task] for task in _WITH_A_BOARD}}
"""Besides, the tasks that score themselves and whose answers a board or its authors' evaluator takes."""
