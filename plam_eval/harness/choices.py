"""What a sample log's prompt holds beside the question: the log itself has no row of the dataset."""

from __future__ import annotations

import re

_MARK = re.compile(r"^(?:([A-Z])\. |\(([A-Z])\) )", re.MULTILINE)
"""Where a choice begins: "A. " or "(A) " at the start of a line."""


def choices_of(prompt: str) -> dict[str, str]:
    """The choices that a prompt lists, letter -> text; empty where it lists fewer than two.

    Each is on lines of its own, as MMMU, MMMU-Pro and MMBench write them, from A on in one style. They are the last
    such list of a prompt: a question may bring its own. What is asked behind them stands apart by an empty line or,
    where there is none, on the next line.

    Args:
        prompt: `input` of a line of a sample log.
    """
    marks = list(_MARK.finditer(prompt))
    for number in range(len(marks) - 1, -1, -1):
        if (run := _run(marks[number:])) is not None:
            return {letter: prompt[begin:end] for letter, begin, end in _spans(prompt, run)}
    return {}


def _run(marks: list[re.Match[str]]) -> list[re.Match[str]] | None:
    """The marks of one list that begins with the first of them: A, B and so on in its style."""
    style = 1 if marks[0][1] else 2
    run: list[re.Match[str]] = []
    for mark in marks:
        if mark[style] == chr(ord("A") + len(run)):
            run.append(mark)
    return run if len(run) > 1 and run[0] is marks[0] else None


def _spans(prompt: str, run: list[re.Match[str]]) -> list[tuple[str, int, int]]:
    """Letter, begin and end of each choice."""
    last = run[-1].end()
    end = prompt.rfind("\n\n", last)
    if end < 0:
        end = prompt.find("\n", last)
    ends = [*(mark.start() - 1 for mark in run[1:]), end if end >= 0 else len(prompt)]
    return [(mark[1] or mark[2], mark.end(), stop) for mark, stop in zip(run, ends, strict=True)]


def choices_on_one_line(prompt: str) -> dict[str, str]:
    """The choices that a prompt lists behind "Options:" on one line, letter -> text; empty where it does not.

    So MMStar writes them: "Options: A: a cat, B: a dog". They are the last such line.

    Args:
        prompt: `input` of a line of a sample log.
    """
    _, behind, line = prompt.rpartition("Options:")
    line = line.partition("\n")[0] if line[:1] != "\n" else line[1:].partition("\n")[0]
    choices: dict[str, str] = {}
    letter, begin = "A", line.find("A: ") if behind else -1
    while begin >= 0:
        following = chr(ord(letter) + 1)
        end = line.find(f", {following}: ", begin + 3) if letter < "Z" else -1
        choices[letter] = line[begin + 3 : end if end >= 0 else len(line)].strip()
        letter, begin = following, end + 2 if end >= 0 else -1
    return choices if len(choices) > 1 else {}
