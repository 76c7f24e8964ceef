"""Sample logs of tasks that boards want answers of: own questions, scored by the stock tasks' own `process_results`."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

Row = dict[str, Any]
"""A row of a dataset, without its image."""


@dataclass(frozen=True)
class Question:
    """A question of MMMU's or MMMU-Pro's, and what a model said.

    Attributes:
        letter: what MMMU's rules read from `said`; None where they read none and would draw one.
    """

    id: str
    text: str
    options: tuple[str, ...]
    said: str
    letter: str | None = None


QUESTIONS = (
    Question("test_Accounting_1", "Which rate?\n<image 1>", ("$6", "$7", "$8", "$9"), "B", "B"),
    Question("test_Accounting_2", "Of <image 1>\nA. mice\nB. men?", ("one", "two"), "The answer is (A).", "A"),
    Question("test_Art_Theory_3", "<image 1>?", ("A cat", "Two\nlines", "Dürer"), "It was made by Dürer, he said", "C"),
    Question("test_Art_Theory_4", "Who <image 1>?", ("Ann", "Bob", "Cy", "Di", "Ed"), "I cannot tell.", None),
    Question("test_Math_5", "Draw <image 1>", ("<image 1>", "<image 2>"), "", None),
    Question("test_Math_6", "How many <image 1>?", (), "So the result is 1,234.5 or 12 of them", None),
    Question("test_Math_7", "Name it <image 1>", (), "=SUM(A1:A2)", None),
    Question("test_Math_8", "Sum <image 1>", ("", "1", "2"), "D", None),
)  # fmt: skip
"""MMMU's; those without options are open."""

PRO = (
    Question("test_Physics_1", "Force <image 1>?", tuple(f"{n} N" for n in range(10)), "J", "J"),
    Question("validation_Music_2", "Key <image 1>?", ("C", "D major", "E"), "We do not know", None),
)
"""MMMU-Pro's."""


def mmmu_row(question: Question) -> Row:
    kind = "multiple-choice" if question.options else "open"
    options = repr(list(question.options))
    subject = question.id.partition("_")[2].rpartition("_")[0]
    row = {"id": question.id, "question": question.text, "options": options, "question_type": kind, "answer": "?"}
    return {**row, "subject": subject, "subfield": subject}


def line(number: int, prompt: str, said: str, metrics: Mapping[str, Any], target: str = "?") -> Row:
    """A line of a sample log, as lmms-eval writes it: without the row itself."""
    return {"doc_id": number, "target": target, "input": prompt, "filtered_resps": said, **metrics}


def mmmu_log(*, group_images: bool = False, seed: int = 0) -> list[Row]:
    from lmms_eval.tasks.mmmu import utils, utils_group_img

    module = utils_group_img if group_images else utils
    random.seed(seed)  # of the letters that the stock code draws
    return [
        line(n, module.mmmu_doc_to_text(row := mmmu_row(q)), q.said, module.mmmu_process_results(row, [q.said]))
        for n, q in enumerate(QUESTIONS)
    ]


def mmmu_pro_log(seed: int = 0) -> list[Row]:
    from lmms_eval.tasks.mmmu_pro import utils

    random.seed(seed)
    asked = {"post_prompt": "Answer with the option letter from the given choices directly."}
    rows = [(mmmu_row(question), question.said) for question in PRO]
    return [
        line(n, utils.mmmu_pro_doc_to_text(row, asked), said, utils.mmmu_pro_process_results(row, [said]))
        for n, (row, said) in enumerate(rows)
    ]


STEP = 1_000_000
"""Between the indexes of two rotations of one question of MMBench's."""


def mmbench_rows(*, chinese: bool = False, first: int = 7, questions: int = 3, split: str = "test") -> list[Row]:
    """Questions of four, three and two choices under each rotation, as the data set has them: what is absent is "nan".

    Those from index 3000 on are of MMBench v1.1.
    """
    rows = []
    for number in range(questions):
        words = ("=猫", "狗", "马", "鸟") if chinese else ("=cat", "dog", "-2 horses", "None")
        options = words[: 4 - number % 3]
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            rows.append(
                {
                    "index": first + number + turn * STEP,
                    "question": f"图中{number}是什么？" if chinese else f"What is in {number}?",
                    "hint": "nan" if number else ("看图" if chinese else "Look."),
                    "answer": "nan" if split == "test" else "A",
                    **{letter: turned[n] if n < len(turned) else "nan" for n, letter in enumerate("ABCD")},
                    "category": "object_localization",
                    "L2-category": "finegrained_perception (instance-level)",
                    "source": "drawn",
                    "split": split,
                }
            )
    return rows


def mmbench_log(rows: Sequence[Row], answers: Callable[[int], str], *, chinese: bool = False) -> list[Row]:
    """The log of `mmbench_{en,cn}_test` or `_dev` for rows; `answers` says what a model says to the n-th."""
    from lmms_eval.tasks.mmbench import cn_utils, en_utils

    module = cn_utils if chinese else en_utils
    asked = {"pre_prompt": "", "post_prompt": "\n请直接回答。" if chinese else "\nAnswer with the letter."}
    return [
        line(n, module.mmbench_doc_to_text(row, asked), answers(n), module.mmbench_process_results(row, [answers(n)]))
        for n, row in enumerate(rows)
    ]


MATHVISTA: tuple[Row, ...] = (
    {"pid": "1", "question": "Who?", "choices": ["cat", "dog"], "question_type": "multi_choice", "answer_type": "text"},
    {"pid": "2", "question": "How many?", "choices": None, "question_type": "free_form", "answer_type": "integer"},
    {"pid": "3", "question": "How long?", "choices": None, "question_type": "free_form", "answer_type": "float"},
)  # fmt: skip
TRUTHS = {"1": "dog", "2": "3", "3": "1.5"}


def mathvista_log(
    answers: Sequence[str], *, split: str = "testmini", judge: Callable[[str], str] = lambda prompt: ""
) -> list[Row]:
    """The log of MathVista; `judge` is what a judge makes of the prompt that it is given. One that fails says ""."""
    from lmms_eval.api.metrics import levenshtein_distance

    metadata = dict.fromkeys(("language", "source", "category", "task", "context", "grade"), "x")
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "none")  # asked for when the task is loaded
        patch.setitem(sys.modules, "Levenshtein", SimpleNamespace(distance=levenshtein_distance))
        from lmms_eval.tasks.mathvista import utils

        evaluator = utils.mathvista_evaluator
        patch.setattr(evaluator, "get_chat_response", lambda prompt, **_: judge(prompt))
        for number, (given, answer) in enumerate(zip(MATHVISTA, answers, strict=True)):
            choices = "\nChoices:\n(A) cat\n(B) dog" if given["choices"] else ""
            row = {
                **given,
                "query": f"Hint: Please answer.\nQuestion: {given['question']}{choices}",
                "precision": 1 if given["answer_type"] == "float" else None,
                "answer": TRUTHS[given["pid"]] if split == "testmini" else "",
                "metadata": {**metadata, "split": split, "skills": ["s"]},
            }
            lines.append(line(number, row["query"], answer, utils.mathvista_process_results(row, [answer])))
    return lines


def mmvet_log(answers: Mapping[str, str]) -> list[Row]:
    """The log of MM-Vet, as its `process_results` writes it when no judge answers."""
    return [
        line(number, "?", answer, {"gpt_eval_score": {
            "question_id": name, "question": "?", "gt_answer": "x", "capabilities": "ocr", "pred_answer": answer,
            "score": 0.0, "eval_model": "",
        }})
        for number, (name, answer) in enumerate(answers.items())
    ]  # fmt: skip


def write_run(
    folder: Path, logs: Mapping[str, Sequence[Row]], *, date: str = "20260301_120000", **results: Any
) -> Path:
    """A run folder of stock lmms-eval's over these logs; the results JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, lines in logs.items():
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines)
        (folder / f"{date}_samples_{task}.jsonl").write_text(text, encoding="utf-8")
    counts = {task: {"original": len(lines), "effective": len(lines)} for task, lines in logs.items()}
    configs = {task: {"task": task, "metric_list": [{"metric": "submission"}]} for task in logs}
    head = {"configs": configs, "results": {}, "n-samples": counts, "config": {"model": "llava_hf", "limit": None}}
    file = folder / f"{date}_results.json"
    file.write_text(json.dumps({**head, **results}), encoding="utf-8")
    return file
