"""MMBench 1.1's test sets from the user's file: questions in the prompts of the stock tasks, scored by rules alone.

An answer is read as lmms-eval's judge-free variant reads it (`mmbench_en_dev_static`); one without a letter or the text
of one choice is wrong, and counted as not readable. No letter is drawn, and no judge is asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval.tasks._task_utils.file_utils import generate_submission_file
from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
from lmms_eval.tasks.mmbench import cn_utils, en_utils

from plam_eval.test_sets import prepare

if TYPE_CHECKING:
    import datasets

_OF_THE_QUESTION = ("index", "question", "answer", "hint", "source", "split", "category", "L2-category")


def english_docs(dataset: datasets.Dataset) -> datasets.Dataset:
    """The English questions of the user's file.

    Args:
        dataset: what lmms-eval has loaded, which is nothing: it wants a dataset before it asks.

    Raises:
        AnswerFileError: no such file, or not the one it should be.
    """
    return _docs("en")


def chinese_docs(dataset: datasets.Dataset) -> datasets.Dataset:
    """The Chinese questions of the user's file.

    Args:
        dataset: as for `english_docs`.

    Raises:
        AnswerFileError: no such file, or not the one it should be.
    """
    return _docs("cn")


def _docs(language: str) -> Any:
    prepared = prepare(f"plam_mmbench_{language}_test_v11")
    assert prepared is not None
    return prepared.content


def letter_of(entry: Mapping[str, Any]) -> str:
    """The letter that the judge-free rules read from an answer; empty where they find none.

    Args:
        entry: the question's choices, and the answer as `prediction`.
    """
    evaluator = en_utils.mmbench_evaluator
    choices = sorted(evaluator.build_choices(entry))
    return str(evaluator.prefetch_answer(entry) or extract_mcq_answer(entry["prediction"], choices=choices))


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """What is logged of a row: question, answer and truth, whether it is right, and whether it was readable.

    Args:
        doc: a row of the table.
        results: the answer to it.
    """
    entry = {name: doc[name] for name in _OF_THE_QUESTION}
    entry |= {"prediction": results[0].strip(), **{letter: doc[letter] for letter in "ABCD"}}
    letter = letter_of(entry)
    return {
        "circular_eval": entry,
        "row_accuracy": 100.0 * (letter == doc["answer"]),
        "unparsable": float(not letter),
    }


def circular_eval_en(results: Sequence[Mapping[str, Any]], args: Any) -> float:
    """MMBench's accuracy in percent: a question is right if it is under every rotation of its choices that was asked.

    Writes `plam_mmbench_en_test_v11_results.json` with the accuracy by category.

    Args:
        results: what was logged of all rows.
        args: lmms-eval's command line, which names the folder of the file.
    """
    return _circular_eval(results, args, en_utils.mmbench_evaluator, "en")


def circular_eval_cn(results: Sequence[Mapping[str, Any]], args: Any) -> float:
    """As `circular_eval_en`, of the Chinese questions.

    Args:
        results: what was logged of all rows.
        args: lmms-eval's command line, which names the folder of the file.
    """
    return _circular_eval(results, args, cn_utils.mmbench_evaluator, "cn")


def _circular_eval(results: Sequence[Mapping[str, Any]], args: Any, evaluator: Any, language: str) -> float:
    overall, by_category, by_l2_category = evaluator.eval_result(results, eval_method="static")
    details = {"overall_acc": overall, "category_acc": by_category, "l2_category_acc": by_l2_category}
    file = Path(generate_submission_file(f"plam_mmbench_{language}_test_v11_results.json", args))
    file.write_text(json.dumps(details), encoding="utf-8")
    return float(overall * 100)
