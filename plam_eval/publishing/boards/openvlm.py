"""Workbooks that `vlmutil eval` of VLMEvalKit reads, whose scores the OpenVLM board shows.

VLMEvalKit knows a data set by the end of a file's name, a question by the `index` of its own TSV, and a choice by the
columns A, B and so on; what a log of lmms-eval does not hold of these is taken from that TSV (`--questions`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from plam_eval.publishing.boards.choice import FIRST_OF_V11, is_whole, mmbench_entry, rotation_problems, said
from plam_eval.publishing.boards.record import TABLE, Board, Column, Line, Table, Together, Values, stripped
from plam_eval.test_sets.mmbench import STEP

_RULES = (
    "its own end of the name says the data set: hand it on as <model>_<data set>.xlsx",
    "the answers are to lmms-eval's prompts, which are not VLMEvalKit's: say so beside the score",
    "the board itself shows runs of VLMEvalKit, by a pull request to it, for which plam export writes a checkpoint",
)


def _board(dataset: str, title: str, md5: str, **record: Any) -> Board:
    return Board(
        f"openvlm_{dataset}",
        f"{title} for VLMEvalKit",
        "xlsx",
        Column("index", int),
        Column("prediction", canonical=stripped),
        question_ids=("index",),
        answers="without white space around them",
        question_files=tuple((each, f"{dataset}.tsv") for each in md5.split()),
        by_name=True,
        rules=record.pop("rules", _RULES),
        server="none",
        standing="no server: vlmutil eval scores the file, with a judge where it finds no letter",
        sources=(
            "https://github.com/open-compass/VLMEvalKit/blob/main/vlmeval/tools.py",
            "https://github.com/open-compass/VLMEvalKit/blob/main/vlmeval/dataset/image_mcq.py",
            "https://github.com/open-compass/VLMEvalKit/blob/main/vlmeval/dataset/image_yorn.py",
        ),
        read_on="2026-11",
        **record,
    )


# --- MMBench: its logs hold all columns -------------------------------------------------------------------------------

_DEV_ROWS, _DEV_QUESTIONS = 4329, 1164  # of version 1.0
_MMBENCH = ("question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "split")


def _mmbench_row(line: Line) -> dict[str, Any]:
    values = mmbench_entry(line)
    return {**values, "l2-category": values["L2-category"]}


def _mmbench_together(new: bool) -> Together:
    def check(rows: Values, compared: bool) -> tuple[list[str], list[str]]:
        indexed = [row for row in rows if type(row.get("index")) is int]
        whole = compared or (not new and is_whole(indexed, _DEV_ROWS, _DEV_QUESTIONS))
        problems = [] if whole else rotation_problems(indexed)
        if odd := [row["index"] for row in indexed if row.get("g_index") != row["index"] % STEP]:
            problems.append(f"g_index other than index % {STEP} ({len(odd)}): index {odd[0]}")
        largest = max((row["index"] % STEP for row in indexed), default=0)
        if indexed and (largest >= FIRST_OF_V11) != new:
            versions = ("1.1, from 3000 on", "1.0, below 3000")
            found, expected = versions if not new else versions[::-1]
            problems.append(f"largest index {largest}: questions of version {found}, expected those of {expected}")
        return problems, []

    return check


def _mmbench(dataset: str, md5: str, *tasks: str) -> Board:
    new = dataset.endswith("V11")
    lost = () if new else ("VLMEvalKit has dropped version 1.0 in 2026: take a release that knows the data set",)
    return _board(
        dataset,
        dataset.replace("_", " "),
        md5,
        read=_mmbench_row,
        tasks=tasks,
        more=(Column("g_index", int), *(Column(name, needed=name == "question") for name in _MMBENCH)),
        order=("index", "g_index", *_MMBENCH, "prediction"),
        together=_mmbench_together(new),
        split="dev" if "DEV" in dataset else "test",
        rules=(*_RULES, *lost),
    )


# --- the others: their questions are VLMEvalKit's own -----------------------------------------------------------------


def _asked(row: Mapping[str, str]) -> str:
    """The question of a row, without what the tasks of lmms-eval leave out or write otherwise."""
    return re.sub(r"\s*Please answer yes or no\.\s*$", "", row["question"])


def _joined(*names: str) -> Callable[[Line], dict[str, Any]]:
    def read(line: Line) -> dict[str, Any]:
        row = line[TABLE]
        return {"index": row["index"], "prediction": said(line), **{name: row.get(name, "") for name in names}}

    return read


def _of_table(
    dataset: str,
    title: str,
    md5: str,
    tasks: tuple[str, ...],
    columns: str,
    of_row: Callable[[Mapping[str, str], int], Hashable | None],
    of_line: Callable[[Line], Hashable],
    same_answer: bool = True,
    **record: Any,
) -> Board:
    names = ("question", *columns.split())
    return _board(
        dataset,
        title,
        md5,
        read=_joined(*names),
        tasks=tasks,
        more=tuple(Column(name, needed=name == "question") for name in names),
        order=("index", *names, "prediction"),
        table=Table(f"{dataset}.tsv", of_row, of_line, _asked, same_answer),
        **record,
    )


def _mme_image(line: Line) -> Hashable:
    logged = line.get("mme_perception_score") or line["mme_cognition_score"]
    return logged["category"], _name(logged["question_id"])


def _name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2].rpartition(".")[0] or path


_ABCD = "A B C D answer category l2-category"

OPENVLM_BOARDS: tuple[Board, ...] = (
    _mmbench("MMBench_DEV_EN", "b6caf1133a01c6bb705cf753bb527ed8", "mmbench_en_dev", "mmbench_en_dev_static"),
    _mmbench("MMBench_DEV_CN", "08b8fc3324a5ed74155350f57be69fbd", "mmbench_cn_dev", "mmbench_cn_dev_static"),
    _mmbench("MMBench_DEV_EN_V11", "8b7b30bb78b8f4a87ffc6b2258890a39"),
    _mmbench("MMBench_DEV_CN_V11", "6e2f5cb803ae65e3b9f7c5f7abdbb2a3"),
    _mmbench("MMBench_TEST_EN_V11", "8d1a704e791df6f5d9fb3ef782b65365", "plam_mmbench_en_test_v11"),
    _mmbench("MMBench_TEST_CN_V11", "156e6569f9547afb16603eca16e85373", "plam_mmbench_cn_test_v11"),
    _of_table(
        "MMStar",
        "MMStar",
        "e1ecd2140806c1b1bbf54b43372efb9e",
        ("mmstar",),
        _ABCD,
        lambda row, _: int(row["index"]),
        lambda line: int(line["average"]["question_id"]),
    ),
    _of_table(
        "MMMU_DEV_VAL",
        "MMMU validation",
        "585e8ad75e73f75dcad265dfd0417d64 521afc0f3bf341e6654327792781644d",  # now, and before
        ("mmmu_val",),
        "id A B C D E F G H I answer category l2-category split",
        lambda row, _: row["id"] if row["id"].startswith("validation_") else None,
        lambda line: line["mmmu_acc"]["id"],
        same_answer=False,
        split="validation; the TSV's 150 questions of dev are left out",
    ),
    _of_table(
        "MME",
        "MME",
        "b36b43c3f09801f5d368627fb92187c3",
        ("mme",),
        "answer category image_path",
        lambda row, _: (row["category"], _name(row["image_path"])),
        _mme_image,
    ),
    _of_table(
        "RealWorldQA",
        "RealWorldQA",
        "4de008f55dc4fd008ca9e15321dc44b7",
        ("realworldqa",),
        _ABCD,
        lambda row, number: number,
        lambda line: line["doc_id"],
    ),
    _of_table(
        "SEEDBench2_Plus",
        "SEED-Bench-2-Plus",
        "e32d3216dc4f452b0fe497a52015d1fd",
        ("seedbench_2_plus",),
        _ABCD,
        lambda row, number: number,
        lambda line: line["doc_id"],
    ),
)
"""The boards of this file; POPE is none of them: VLMEvalKit joins its questions, and names no picture."""
