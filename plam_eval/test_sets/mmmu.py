"""MMMU's test answers, as its repository publishes them, held against the questions of the dataset.

The file is a JSON object: id of a question -> `{"question_type": ..., "ground_truth": ...}`, the truth a text or a list
of texts that all count. The dataset has one column of text for it, so a list goes there as JSON.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plam_eval.errors import DamagedFileError, listed, quoted
from plam_eval.files import check_depth, read_at_most
from plam_eval.test_sets.answer_file import AnswerFileError, Located

SUBJECTS = frozenset(
    {
        "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science",
        "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design",
        "Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics", "Energy_and_Power", "Finance",
        "Geography", "History", "Literature", "Manage", "Marketing", "Materials", "Math", "Mechanical_Engineering",
        "Music", "Pharmacy", "Physics", "Psychology", "Public_Health", "Sociology",
    }
)  # fmt: skip
QUESTIONS = 10_500
"""Of the test split."""

CHOICES, OPEN = "multiple-choice", "open"
_TYPES = {"multiple-choice": CHOICES, "short-answer": OPEN, "open": OPEN}  # in the file -> in the dataset
_ID = re.compile(r"test_(.+)_[0-9]+")
_EXAMPLES = 3

Truth = str | list[str]


def read_answers(file: Located, largest: int) -> tuple[dict[str, tuple[str, Truth]], bool]:
    """The file's answers, and whether they are those of the released test split as far as the file alone tells.

    Args:
        file: that was located.
        largest: bytes that it may have.

    Returns:
        Id -> (type of the question as the dataset calls it, the truth); and whether they are as many as were released,
        of all subjects.

    Raises:
        AnswerFileError: it is no such file, or of another version that nobody vouches for. All problems at once.
    """
    pairs = _pairs(file, largest)
    counts = Counter(name for name, _ in pairs)
    problems = _several("ids that stand there twice", (name for name, count in counts.items() if count > 1))
    problems += _several(
        "keys that are no id of the test split (test_<Subject>_<n>, of one of MMMU's 30 subjects)",
        (quoted(name, 40) for name in counts if _subject(name) not in SUBJECTS),
    )
    answers, odd = dict[str, tuple[str, Truth]](), list[str]()
    for name, value in pairs:
        try:
            answers[name] = _answer(value)
        except (TypeError, ValueError, KeyError) as error:
            odd.append(f"{quoted(name, 40)} ({error})")
    problems += _several("entries that are not of the known form", odd)
    subjects = {_subject(name) for name in answers}
    released = len(answers) == QUESTIONS and subjects == SUBJECTS
    if not problems and not released and not file.vouched:
        problems.append(
            f"{len(answers)} answers of {len(subjects)} subjects, expected {QUESTIONS} of {len(SUBJECTS)}: it is part "
            f"of the file, or another version; if you vouch for it, give its MD5 ({file.md5})"
        )
    if problems:
        raise _refused(file, problems)
    return answers, released


def with_answers(
    file: Located,
    answers: Mapping[str, tuple[str, Truth]],
    ids: Sequence[str],
    types: Sequence[str],
    options: Sequence[str],
) -> list[str]:
    """The column of answers for the questions of the dataset, in their order.

    Args:
        file: that the answers are of.
        answers: from `read_answers`.
        ids: of the questions.
        types: of the questions, "multiple-choice" or "open".
        options: of the questions, each the text of a Python list.

    Raises:
        AnswerFileError: the questions of file and dataset are not the same, or a truth is no choice of its question.
    """
    asked, problems = set(ids), list[str]()
    problems += _several("questions of the dataset without an answer in the file", (i for i in ids if i not in answers))
    problems += _several("answers to no question of the dataset", (name for name in answers if name not in asked))
    other, letters = list[str](), list[str]()
    for name, kind, text in zip(ids, types, options, strict=True):
        known, truth = answers.get(name, (kind, ""))
        if known != kind:
            other.append(f"{name} ({known} in the file, {kind} in the dataset)")
        elif kind == CHOICES and name in answers:
            has = [chr(ord("A") + number) for number in range(_count(text))]
            if not set([truth] if isinstance(truth, str) else truth) <= set(has):
                letters.append(f"{name} ({quoted(truth, 40)} of {len(has)} choices)")
    problems += _several("questions of another type", other)
    problems += _several("answers that are no choice of their question", letters)
    if problems:
        raise _refused(file, problems, "it is of another version than the dataset: get both again")
    return [written(answers[name][1]) for name in ids]


def written(truth: Truth) -> str:
    """A truth as one text; `truth_of` reads it back.

    Args:
        truth: a text, or a list of them.
    """
    if isinstance(truth, str) and truth_of(truth) == truth:
        return truth
    return json.dumps([truth] if isinstance(truth, str) else truth, ensure_ascii=False)


def truth_of(text: str) -> Truth:
    """What `written` wrote: a text, or the list of texts of which each is right.

    Args:
        text: of the column `answer`.
    """
    if text.startswith("["):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
            return values[0] if len(values) == 1 else values
    return text


def _pairs(file: Located, largest: int) -> list[tuple[str, Any]]:
    try:
        content = read_at_most(file.path, largest, "expected answer_dict_test.json")
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != file.md5:
            raise AnswerFileError(f"{file.shown}: it has changed while it was read; start again")
        pairs = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_Object)
        check_depth([value for _, value in pairs.pairs] if isinstance(pairs, _Object) else pairs)
    except OSError as error:
        raise AnswerFileError(f"{file.shown}: cannot be read: {error.strerror or error}") from error
    except AnswerFileError:
        raise
    except (DamagedFileError, ValueError, RecursionError) as error:
        raise AnswerFileError(f"{file.shown}: no JSON that can be read ({error}); get it again") from error
    if not isinstance(pairs, _Object):
        raise AnswerFileError(f"{file.shown}: found {type(pairs).__name__}, expected a JSON object: id -> answer")
    return pairs.pairs


class _Object(dict[str, Any]):
    """A JSON object that keeps every pair, since of two equal keys a dictionary would keep the last in silence."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _answer(value: Any) -> tuple[str, Truth]:
    if not isinstance(value, dict):
        raise TypeError(f"found {quoted(value, 40)}, expected question_type and ground_truth")
    if missing := [key for key in ("question_type", "ground_truth") if key not in value]:
        raise KeyError(f"no {' and no '.join(missing)}")
    kind, truth = value["question_type"], value["ground_truth"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError(f"question_type {quoted(kind, 40)}, expected one of {', '.join(_TYPES)}")
    texts = truth if isinstance(truth, list) else [truth]
    if not texts or not all(isinstance(text, str) and text.strip() and text.strip() != "?" for text in texts):
        raise TypeError(f"ground_truth {quoted(truth, 40)}, expected a text, or a list of texts")
    for text in texts:
        text.encode("utf-8")  # half a surrogate pair, which no table holds, is a ValueError
    return _TYPES[kind], truth


def _count(options: str) -> int:
    try:
        parsed = ast.literal_eval(options)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return 0
    return len(parsed) if isinstance(parsed, (list, tuple)) else 0


def _subject(name: str) -> str:
    matched = _ID.fullmatch(name)
    return matched.group(1) if matched else ""


def _several(what: str, examples: Iterable[str]) -> list[str]:
    """One line for all examples of a fault; none where there are none."""
    every = list(examples)
    return [f"{what} ({len(every)}): {listed(every, _EXAMPLES)}"] if every else []


def _refused(file: Located, problems: Sequence[str], remedy: str = "") -> AnswerFileError:
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return AnswerFileError(f"{file.shown} (MD5 {file.md5}):\n{lines}" + (f"\n{remedy}" if remedy else ""))
