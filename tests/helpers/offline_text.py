"""Offline copies of stock tasks of text alone, with the columns of the real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.offline_copies import Copy, Document, Row, strings, write_copies

TASKS = ("gsm8k", "mmlu_anatomy", "mmlu_anatomy_generative", "ifeval", "arc_easy", "arc_challenge", "hellaswag")
"""What `write_text_tasks` makes runnable offline."""


def write_text_tasks(folder: Path, documents: int = 6) -> None:
    """Write the datasets of TASKS below `folder`, each split with so many rows."""
    write_copies(
        folder, [*_gsm8k(documents), *_mmlu(documents), _ifeval(documents), *_arc(documents), _swag(documents)]
    )


def _of(rows: list[Row]) -> list[Document]:
    return [Document(row, 0, "", 0.0) for row in rows]


def _gsm8k(count: int) -> list[Copy]:
    def rows(first: int, number: int) -> list[Row]:
        return [
            {
                "question": f"Ann has {n} apples and gets 2. How many has she?",
                "answer": f"{n} + 2 = <<{n}+2={n + 2}>>{n + 2}\n#### {n + 2}",
            }
            for n in range(first, first + number)
        ]

    columns = strings("question answer")
    return [
        Copy("gsm8k", "main", "train", columns, ("gsm8k",), _of(rows(100, 8)), False),
        Copy("gsm8k", "main", "test", columns, ("gsm8k",), _of(rows(1, count)), False),
    ]


def _mmlu(count: int) -> list[Copy]:
    columns = {**strings("question subject"), "choices": ["string"], "answer": "int64"}

    def rows(what: str, number: int) -> list[Row]:
        return [
            {
                "question": f"Which {what} bone is number {n}?",
                "subject": "anatomy",
                "choices": ["the femur", "the tibia", "the ulna", "the radius"],
                "answer": n % 4,
            }
            for n in range(number)
        ]

    tasks = ("mmlu_anatomy", "mmlu_anatomy_generative")
    return [
        Copy("hails/mmlu_no_train", "anatomy", "test", columns, tasks, _of(rows("long", count)), False),
        Copy("hails/mmlu_no_train", "anatomy", "dev", columns, tasks, _of(rows("short", 5)), False),
    ]


_IFEVAL_SETTINGS = (
    "num_highlights relation num_words num_placeholders prompt_to_repeat num_bullets section_spliter num_sections "
    "capital_relation capital_frequency keywords num_paragraphs language let_relation letter let_frequency end_phrase "
    "forbidden_words keyword frequency num_sentences postscript_marker first_word nth_paragraph"
)


def _ifeval(count: int) -> Copy:
    settings = [*strings(_IFEVAL_SETTINGS)]
    numbers = {name for name in settings if name.startswith("num_") or "frequency" in name or name == "nth_paragraph"}
    kinds: dict[str, Any] = {name: "int64" if name in numbers else "string" for name in settings}
    kinds |= {"keywords": ["string"], "forbidden_words": ["string"]}
    columns = {"key": "int64", "prompt": "string", "instruction_id_list": ["string"], "kwargs": [kinds]}
    rows = [
        {
            "key": 1000 + n,
            "prompt": f"Write about number {n}. Do not use any commas.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [dict.fromkeys(settings)],
        }
        for n in range(count)
    ]
    return Copy("wis-k/instruction-following-eval", "default", "train", columns, ("ifeval",), _of(rows), False)


def _arc(count: int) -> list[Copy]:
    columns = {
        **strings("id question"),
        "choices": {"text": ["string"], "label": ["string"]},
        "answerKey": "string",
    }
    rows = [
        {
            "id": f"Mercury_{n}",
            "question": f"What makes ice melt, number {n}?",
            "choices": {"text": ["heat", "darkness", "loud sounds", "wind"], "label": list("ABCD")},
            "answerKey": "A",
        }
        for n in range(count)
    ]
    copies = []
    for config, task in (("ARC-Easy", "arc_easy"), ("ARC-Challenge", "arc_challenge")):
        copies += [
            Copy("allenai/ai2_arc", config, split, columns, (task,), _of(rows), False)
            for split in ("train", "validation", "test")
        ]
    return copies


def _swag(count: int) -> Copy:
    columns = {
        "ind": "int32",
        **strings("activity_label ctx_a ctx_b ctx"),
        "endings": ["string"],
        **strings("source_id split split_type label"),
    }
    rows = [
        {
            "ind": n,
            "activity_label": "Removing ice from car",
            "ctx_a": "A man is outside.",
            "ctx_b": "he",
            "ctx": "A man is outside. he",
            "endings": [
                f"scrapes window {n}.",
                "flies away.",
                "is [substeps] a bird.",
                "sings until noon.",
            ],
            "source_id": f"activitynet~{n}",
            "split": "val",
            "split_type": "indomain",
            "label": "0",
        }
        for n in range(count)
    ]
    return Copy("hellaswag", "default", "validation", columns, ("hellaswag",), _of(rows), False)
