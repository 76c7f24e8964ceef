"""What is known of leaderboards: one record per board, and no more: reading, checking and writing go by it.

A record says which file a board takes, how its questions are named, which answers it accepts, and whether somebody
still reads the file. What nobody has published, such as how many questions there are, is None, and not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from plam_eval.errors import InputError, hint, quoted
from plam_eval.harness import scoring
from plam_eval.publishing.boards.choice import CHOICE_BOARDS
from plam_eval.publishing.boards.openvlm import OPENVLM_BOARDS
from plam_eval.publishing.boards.record import Board, Column, SelfReported, entry, stripped

# --- how logs are read ------------------------------------------------------------------------------------------------


def vqa_words(answer: str) -> str:
    """An answer as VQAv2's evaluation compares it.

    Args:
        answer: the model's.
    """
    return scoring.vqa_words(_one_line(answer), split=False)


def split_vqa_words(answer: str) -> str:
    """An answer as the evaluations of TextVQA and VizWiz compare it.

    Args:
        answer: the model's.
    """
    return scoring.vqa_words(_one_line(answer), split=True)


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _letter(answer: str) -> str:
    """A letter as the board has it; the task itself takes small ones for the same."""
    return answer.strip().upper() if len(answer.strip()) == 1 else answer.strip()


def _vizwiz_image(name: str) -> str:
    """The name of an image file, whose ending a log may lack or have twice."""
    return re.sub(r"(\.jpe?g)+$", "", name) + ".jpg"


def _answer(name: str = "answer", canonical: Callable[[Any], Any] = stripped, **options: Any) -> Column:
    return Column(name, canonical=canonical, **options)


# --- the table --------------------------------------------------------------------------------------------------------

_WORDS = "in lower case, without articles and punctuation, numbers as digits, as the evaluation compares them"
_STRIPPED = "without white space around them"
_RRC = "Robust Reading Competition, channel {}, task {}; with an account; no word of its end"

_BOARDS = (
    Board(
        "seedbench_2_plus",
        "SEED-Bench-2-Plus",
        "jsonl",
        Column("question_id", canonical=str),
        _answer("prediction", _letter, pattern="[A-D]", expected="A, B, C or D"),
        entry("seedbench_2_plus_all", question_id="question_id", prediction="pred"),
        tasks=("seedbench_2_plus",),
        questions=2277,
        answers="the first letter of what was answered, as the task logs it",
        rules=("the authors' own evaluation calls such a file results.json, with one object per line",),
        standing="a form on the hub page AILab-CVC/SEED-Bench_Leaderboard; the answers are public, too",
        sources=(
            "https://github.com/AILab-CVC/SEED-Bench",
            "https://evalscope.readthedocs.io/en/v1.6.0/benchmarks/seed_bench_2_plus.html",
        ),
        read_on="2026-11",
    ),
    Board(
        "vqav2",
        "VQAv2",
        "json list",
        Column("question_id", int),
        _answer(canonical=vqa_words),
        entry("submission", question_id="question_id", answer="answer"),
        tasks=("vqav2_test",),
        questions=447_793,
        split="test, of which the server takes test-dev and test-standard",
        answers=_WORDS,
        rules=("answers to all questions of test, also for test-dev",),
        standing="EvalAI challenge 830 takes files; since November 2025 users report that it does not read them",
        sources=(
            "https://visualqa.org/challenge.html",
            "https://github.com/GT-Vision-Lab/VQA",
            "https://github.com/Cloud-CV/EvalAI/issues/4807",
            "https://github.com/Cloud-CV/EvalAI/issues/4883",
        ),
        read_on="2026-11",
    ),
    Board(
        "vizwiz",
        "VizWiz-VQA",
        "json list",
        Column(
            "image",
            pattern=r"VizWiz_test_[0-9]{8}\.jpg",
            expected="the name of an image, such as VizWiz_test_00000000.jpg",
            canonical=_vizwiz_image,
        ),
        _answer(canonical=split_vqa_words),
        entry("submission", image="image", answer="answer"),
        tasks=("vizwiz_vqa_test",),
        questions=8000,
        question_ids=("image",),
        answers=_WORDS,
        server="mail",
        standing="EvalAI challenge 2185 was closed by December 2025; by mail to the organisers, a user says",
        sources=("https://vizwiz.org/tasks-and-datasets/vqa/", "https://github.com/haotian-liu/LLaVA/issues/1916"),
        read_on="2026-11",
    ),
    Board(
        "textvqa",
        "TextVQA",
        "json list",
        Column("question_id", int),
        _answer(canonical=split_vqa_words),
        entry("submission", question_id="question_id", answer="answer"),
        tasks=("textvqa_test",),
        questions=5734,
        answers=_WORDS,
        standing="EvalAI challenge 874 outlived its contest; whether it still reads files is not known",
        sources=("https://textvqa.org", "https://github.com/X-PLUG/mPLUG-DocOwl/issues/54"),
        read_on="2026-11",
    ),
    Board(
        "docvqa",
        "DocVQA (single page)",
        "json list",
        Column("questionId", int),
        _answer(),
        entry("submission", questionId="questionId", answer="answer"),
        tasks=("docvqa_test",),
        questions=5188,
        answers=_STRIPPED,
        standing=_RRC.format(17, 1),
        sources=("https://rrc.cvc.uab.es/?ch=17&com=tasks", "https://huggingface.co/datasets/lmms-lab/DocVQA"),
        read_on="2026-11",
    ),
    Board(
        "infovqa",
        "InfographicVQA",
        "json list",
        Column("questionId", int),
        _answer(),
        entry("submission", questionId="questionId", answer="answer"),
        tasks=("infovqa_test",),
        questions=3288,
        answers=_STRIPPED,
        standing=_RRC.format(17, 3),
        sources=("https://rrc.cvc.uab.es/?ch=17&com=tasks", "https://huggingface.co/datasets/lmms-lab/DocVQA"),
        read_on="2026-11",
    ),
    Board(
        "stvqa",
        "ST-VQA (end to end)",
        "json list",
        Column("question_id", int),
        _answer(),
        entry("submission", question_id="question_id", answer="answer"),
        tasks=("stvqa",),
        split="test, task 3",  # its size is published rounded only: "4.07k"
        answers=_STRIPPED,
        standing=_RRC.format(11, 3),
        sources=("https://rrc.cvc.uab.es/?ch=11&com=tasks", "https://huggingface.co/datasets/lmms-lab/ST-VQA"),
        read_on="2026-11",
    ),
    Board(
        "gqa",
        "GQA",
        "json list",
        Column("questionId", pattern="[0-9]+", expected="digits as text, with the zeros that some begin with"),
        _answer("prediction"),
        entry("submission", questionId="questionId", prediction="prediction"),
        split="test, which lmms-eval does not carry: its task gqa is testdev, and its log does not name questions",
        answers=_STRIPPED,
        rules=("answers to all questions of the split; one that is missing ends the evaluation",),
        standing="EvalAI challenge 225; users reported in 2023 that it does not read files",
        sources=(
            "https://cs.stanford.edu/people/dorarad/gqa/evaluate.html",
            "https://github.com/Cloud-CV/EvalAI/issues/4197",
        ),
        read_on="2026-11",
    ),
)

BOARDS: dict[str, Board] = {board.name: board for board in (*_BOARDS, *CHOICE_BOARDS, *OPENVLM_BOARDS)}
"""The boards that files are written for, by name."""

SELF_REPORTED: tuple[SelfReported, ...] = (
    SelfReported(
        "OK-VQA",
        ("ok_vqa_val2014", "ok_vqa_val2014_lite"),
        "has no test server: report the accuracy on val2014; the file that lmms-eval writes has VizWiz's fields and is "
        "for nobody",
    ),
    SelfReported("MME", ("mme",), "has no server: report perception and cognition, each of its own total"),
    SelfReported("POPE", ("pope",), "has no server: report accuracy and F1, and which of its three settings"),
    SelfReported(
        "MMMU-Pro composite",
        ("mmmu_pro_composite", "mmmu_pro_composite_cot"),
        "has several questions in a document, which is not how MMMU-Pro is reported, and no file is written",
    ),
    SelfReported("MMStar", ("mmstar",), "has no server: its answers are public; report the average of its six skills"),
    SelfReported("RealWorldQA", ("realworldqa",), "has no server: its answers are public"),
    SelfReported(
        "GQA testdev",
        ("gqa", "gqa_lite"),
        "has public answers; the board gqa takes the test split, which is another",
    ),
)
"""Benchmarks without a server."""


def boards_of(task: str) -> list[Board]:
    """The boards that a task's answers are for, but for those that have to be named.

    Args:
        task: its name.
    """
    return [board for board in BOARDS.values() if task in board.tasks and not board.by_name]


def board_named(name: str) -> Board:
    """The board of a name.

    Args:
        name: as `--board` takes it.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    if name not in BOARDS:
        raise InputError(f"found board {quoted(name)}; {hint(name, BOARDS)}")
    return BOARDS[name]


def without_board(task: str) -> str:
    """What there is to say of a task that no file is written for.

    Args:
        task: its name.
    """
    named = [board.name for board in BOARDS.values() if task in board.tasks and board.by_name]
    also = f"; --board {' or '.join(named)} writes a workbook for VLMEvalKit" if named else ""
    for benchmark in SELF_REPORTED:
        if task in benchmark.tasks:
            return f"{task}: {benchmark.title} {benchmark.say}; say which prompt and which split{also}"
    return f"{task}: no board is known that takes its answers{also}"
