"""The second parser's cases: answers and what is to be read from them, in tests/harness/answer_cases.jsonl."""

from __future__ import annotations

import json
from typing import NamedTuple

from plam_eval.harness.answer_parser import Asked
from tests.helpers.paths import ROOT


class Case(NamedTuple):
    """`of`: its kind; `asks`: what the question wants, a name of `CHOICES` for a letter; `reads`: None to abstain."""

    of: str
    asks: str
    answer: str
    reads: str | None


CHOICES = {
    "letter": dict.fromkeys("ABCD", ""),
    "texts": {"A": "a triangle", "B": "red", "C": "dark red", "D": "the nucleus"},
    "numbers": {"A": "1", "B": "2", "C": "12", "D": "1.5"},
    "chinese": {"A": "红色", "B": "蓝色"},
    "verdicts": {"A": "Yes", "B": "No"},
    "ten": dict.fromkeys("ABCDEFGHIJ", ""),
}
CASES = [
    Case(*json.loads(line))
    for line in (ROOT / "tests" / "harness" / "answer_cases.jsonl").read_text(encoding="utf-8").splitlines()
]


def asked_of(asks: str) -> Asked:
    """What a case wants."""
    if asks in CHOICES:
        return Asked("letter", (), CHOICES[asks])
    return Asked("yes or no") if asks == "yes or no" else Asked("words")
