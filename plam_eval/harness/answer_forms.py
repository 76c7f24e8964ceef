"""What form the answers to a task have, so that they can be read by other rules than its own (`answer_parser`).

A form looks at a line of the task's sample log: the logs have no row of the dataset, but the prompt, the right answer
and what the task logs of its own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plam_eval.harness.answer_parser import Asked
from plam_eval.harness.choices import choices_of, choices_on_one_line

Sample = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """The form of a task's answers.

    Attributes:
        words: what it is, for a table.
        ask: a line of a sample log -> what its document asks for; None where the line does not say it.
        unread: why answers are not read a second time; "" where they are.
    """

    words: str
    ask: Callable[[Sample], Asked | None] = lambda sample: None
    unread: str = ""


def unread(why: str) -> Form:
    """Of answers that are not read a second time.

    Args:
        why: in words.
    """
    return Form("no", unread=why)


NOT_KNOWN = unread("the form of its answers is not known")
FILTERED = unread("its log has what the task's own filter leaves of an answer, not the answer")


def _text(sample: Sample, name: str) -> str:
    return str(sample.get(name, ""))


def letter(letters: str) -> Form:
    """A letter, of the choices that the prompt lists, or else of some.

    Args:
        letters: of a question whose choices are not in its prompt.
    """

    def ask(sample: Sample) -> Asked | None:
        targets = tuple(each.strip().strip("()").upper() for each in _listed(_text(sample, "target").strip()))
        prompt = _text(sample, "input")
        listed = choices_of(prompt) or choices_on_one_line(prompt)
        choices = listed if set(targets) <= set(listed) else dict.fromkeys(letters, "")
        return Asked("letter", targets, choices) if targets and set(targets) <= set(choices) else None

    return Form("letter", ask)


def _verdict(sample: Sample) -> Asked | None:
    target = _text(sample, "target").strip().strip(".").lower()
    return Asked("yes or no", (target,)) if target in ("yes", "no") else None


def _words(sample: Sample) -> Asked | None:
    target = _text(sample, "target").strip()
    return Asked("words", (target,)) if target else None


LETTER = letter("ABCDEFGH")
LETTER_OF_TEN = letter("ABCDEFGHIJ")
VERDICT = Form("yes or no", _verdict)
VERDICT_OR_WORDS = Form(
    "yes or no where the right answer is, else words", lambda sample: _verdict(sample) or _words(sample)
)


def _letter_verdict_or_words(sample: Sample) -> Asked | None:
    if re.fullmatch(r"[A-D]", _text(sample, "target").strip(), re.IGNORECASE):
        return letter("ABCD").ask(sample)
    return VERDICT_OR_WORDS.ask(sample)


LETTER_VERDICT_OR_WORDS = Form("letter, or yes or no, where the right answer is, else words", _letter_verdict_or_words)


def _mmmu(sample: Sample) -> Asked | None:
    entry = sample.get("mmmu_acc")
    if not isinstance(entry, Mapping) or entry.get("question_type") != "open":
        return LETTER_OF_TEN.ask(sample)
    return Asked("words", targets) if (targets := _listed(_text(sample, "target"))) else None


def _listed(target: str) -> tuple[str, ...]:
    """Right answers, of which there may be several, written as a list."""
    if target.startswith("[") and len(target) < 10_000:
        try:
            listed = ast.literal_eval(target)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return (target,)
        return tuple(str(each) for each in listed if str(each).strip())
    return (target,) if target.strip() else ()


MMMU = Form("letter, or words where the question is open", _mmmu)


def _mmbench(sample: Sample) -> Asked | None:
    entry = sample.get("gpt_eval_score") or sample.get("circular_eval")
    target = _text(sample, "target").strip().upper()
    if not isinstance(entry, Mapping):
        return LETTER.ask(sample)
    texts = {key: str(entry[key]).strip() for key in "ABCDE" if entry.get(key) is not None}
    choices = {key: text for key, text in texts.items() if text and text.lower() != "nan"}
    return Asked("letter", (target,), choices) if target in choices else LETTER.ask(sample)


MMBENCH = Form("letter", _mmbench)
