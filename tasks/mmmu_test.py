"""What `plam_mmmu_test` does differently from lmms-eval's `mmmu_test`: it has answers, and scores by them.

Scoring is that of stock `mmmu_val`, whose rules read a letter or a phrase from an answer, but for one thing: where they
find no letter stock code draws one, and here the answer is wrong and counted as not readable.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from lmms_eval.tasks._task_utils.file_utils import generate_submission_file
from lmms_eval.tasks.mmmu import utils

from plam_eval.test_sets import prepare
from plam_eval.test_sets.mmmu import CHOICES, truth_of, with_answers

if TYPE_CHECKING:
    import datasets

TASK = "plam_mmmu_test"
_DOMAINS = {f"mmmu_acc_{name.replace(' ', '_')}": names for name, names in utils.DOMAIN_CAT2SUB_CAT.items()}
_DOMAIN_OF = {subject: metric for metric, subjects in _DOMAINS.items() for subject in subjects}


def process_docs(dataset: datasets.Dataset) -> datasets.Dataset:
    """The questions with the answers of the user's file; images are neither read nor copied.

    Args:
        dataset: the test split.

    Raises:
        AnswerFileError: no such file, or one of other questions.
    """
    prepared = prepare(TASK)
    assert prepared is not None
    asked = dataset.select_columns(["id", "question_type", "options"]).to_dict()
    columns = (asked["id"], asked["question_type"], asked["options"])
    answers = with_answers(prepared.file, prepared.content, *columns)
    return dataset.remove_columns("answer").add_column("answer", answers)


class _NothingReadError(Exception):
    """No letter was read from an answer."""


class _Letters(list[str]):
    """Letters to be looked through. Who asks how many there are, or takes one by its index, is about to draw one."""

    def __len__(self) -> int:
        raise _NothingReadError

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        raise _NothingReadError


def letter_of(answer: str, options: Sequence[str]) -> str:
    """The letter that MMMU's rules read from an answer; empty where they find none.

    Args:
        answer: the model's.
        options: the texts of the choices.
    """
    texts, letters = utils.get_multi_choice_info(options)
    try:
        return str(utils.parse_multi_choice_response(answer, _Letters(letters), texts))
    except _NothingReadError:
        return ""


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """What is logged of a document: under `mmmu_acc` and its domain what stock MMMU logs, and whether it was readable.

    Args:
        doc: a row of MMMU, with its answer.
        results: the answers to it, one for each repeat.
    """
    subject = utils.extract_subset_name(doc["id"])
    of_choices = doc["question_type"] == CHOICES
    if of_choices:
        options = ast.literal_eval(doc["options"])
        parsed: list[Any] = [letter_of(answer, options) for answer in results]
    else:  # in one order, whatever the seed of Python's hashes
        parsed = [sorted(utils.parse_open_response(answer), key=repr) for answer in results]
    entry = {
        "id": doc["id"],
        "subdomain": subject,
        "question_type": doc["question_type"],
        "answer": truth_of(doc["answer"]),
        "parsed_pred": parsed,
    }
    logged = {"mmmu_acc": entry}
    if subject in _DOMAIN_OF:
        logged[_DOMAIN_OF[subject]] = entry
    return {**logged, **({"unparsable": float(not any(parsed))} if of_choices else {})}


def _by_subject(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Subject -> `acc` and `num_example`, as the stock aggregation holds them."""
    subjects: dict[str, list[Mapping[str, Any]]] = {}
    for entry in results:
        subjects.setdefault(entry["subdomain"], []).append(entry)
    return {name: {**utils.evaluate_mmmu(own)[1], "num_example": len(own)} for name, own in subjects.items()}


def _accuracy(by_subject: Mapping[str, Any]) -> float:
    return round(float(utils.calculate_ins_level_acc(by_subject)), 5)


def plam_mmmu_test_domain(results: Sequence[Mapping[str, Any]]) -> float:
    """Accuracy over the questions of one domain, from 0 to 1, as stock `mmmu_val` prints it.

    Args:
        results: what was logged of its documents.
    """
    return _accuracy(_by_subject(results))


def plam_mmmu_test_overall(results: Sequence[Mapping[str, Any]], args: Any) -> float:
    """Accuracy over all questions, from 0 to 1, as stock `mmmu_val` reports it.

    Writes `plam_mmmu_test_results.json` with the accuracy and number of questions by domain and subject.

    Args:
        results: what was logged of all documents.
        args: lmms-eval's command line, which names the folder of the file.
    """
    by_subject = _by_subject(results)
    details: dict[str, Any] = {"Overall": {"num": len(results), "acc": _accuracy(by_subject)}}
    for name, subjects in utils.DOMAIN_CAT2SUB_CAT.items():
        own = {subject: by_subject[subject] for subject in subjects if subject in by_subject}
        if own:
            count = sum(each["num_example"] for each in own.values())
            details[f"Overall-{name}"] = {"num": count, "acc": _accuracy(own)}
        details |= {
            subject: {"num": each["num_example"], "acc": round(each["acc"], 5)} for subject, each in own.items()
        }
    file = Path(generate_submission_file("plam_mmmu_test_results.json", args))
    file.write_text(json.dumps(details, indent=2), encoding="utf-8")
    return float(details["Overall"]["acc"])
