"""What the programs behind some boards do with a file, in our own words: what they open, ask for, and count.

Described from their public sources, read in November 2026; where a judge would answer, only what needs none is done.

- MMBench's server: open-compass/VLMEvalKit, scripts/mmb_eval_gradio.py (it no longer runs; VLMEvalKit still reads the
  same file), with vlmeval/dataset/utils/multiple_choice.py and vlmeval/utils/matching_util.py behind it.
- `vlmutil eval`: open-compass/VLMEvalKit, vlmeval/tools.py, vlmeval/dataset/image_mcq.py, image_yorn.py, utils/yorn.py.
- MMMU: MMMU-Benchmark/MMMU, eval/main_eval_only.py (in later versions mmmu/main_eval_only.py).
- MM-Vet: yuweihao/MM-Vet, mm-vet_evaluator.py and v2/mm-vet-v2_evaluator.py.
- MathVista: lupantech/MathVista, evaluation/extract_answer.py and calculate_score.py.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

CHINESE = re.compile("[\u4e00-\u9fff]")
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


class RefusedError(Exception):
    """What a board's program says, or where it would stop."""


# --- VLMEvalKit, and MMBench's server, which is made of it ------------------------------------------------------------


def _table(file: Path, *, letters: str) -> pd.DataFrame:
    """The table of a file, with the names of columns in lower case but for the letters of choices."""
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".xlsx": pd.read_excel,
        ".tsv": lambda path: pd.read_csv(path, sep="\t"),
        ".csv": pd.read_csv,
    }
    if file.suffix not in readers:
        raise RefusedError(f"a file that ends with {', '.join(readers)}")
    table = readers[file.suffix](file)
    table.columns = [name if name in letters else name.lower() for name in table.columns]
    return table


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def letter_of(prediction: str, choices: Mapping[str, Any]) -> str | None:
    """The choice that is meant: the one letter among the words, or else the one choice whose text is in the answer."""
    words = prediction.translate(MARKS).split()
    named = [letter for letter in choices if letter in words]
    if len(named) == 1:
        return named[0]
    said = prediction.lower()
    if named or len(said) > 2 * sum(len(str(text)) for text in choices.values()):
        return None
    meant = [letter for letter, text in choices.items() if str(text).lower() in said]
    return meant[0] if len(meant) == 1 else None


def _choices(row: Mapping[str, Any]) -> dict[str, Any]:
    return {letter: row[letter] for letter in "ABCDEFGHIJ" if letter in row and not pd.isna(row[letter])}


def mmbench_server(file: Path, answers: Mapping[int, str]) -> tuple[str, dict[int, bool]]:
    """The data set that the server takes a file for, and the questions that it counts as right.

    Args:
        file: that was made for the board.
        answers: index, of every rotation -> the right letter.
    """
    table = _table(file, letters="ABCD")
    if missing := [name for name in ("index", "prediction", *"ABCD") if name not in table]:
        raise RefusedError(f"a column named {missing[0]}")
    largest = max(index for index in map(int, table["index"]) if index < 100_000)
    chinese = sum(bool(CHINESE.search(question)) for question in table["question"]) > len(table) / 2
    if largest < 1000 and "l2-category" not in table:
        if not chinese:
            raise RefusedError("cannot determine the dataset")
        return "CCBench", {}
    dataset = f"MMBench{'_CN' if chinese else ''}{'' if largest < 3000 else '_V11'}"
    return dataset, _circular(table, answers)


def _circular(table: pd.DataFrame, answers: Mapping[int, str]) -> dict[int, bool]:
    """By question, whether it was answered right under all of its rotations that are there."""
    if any(type(index) is not int for index in table["index"].tolist()):
        raise RefusedError("an index is not a whole number")
    right: dict[int, bool] = {}
    for row in _rows(table):
        if row["index"] not in answers:
            continue
        question = int(row["index"] % 1_000_000)
        hit = letter_of(str(row["prediction"]), _choices(row)) == answers[row["index"]]
        right[question] = right.get(question, True) and hit
    return right


DATASETS = (
    "MMBench_DEV_EN", "MMBench_DEV_CN", "MMBench_TEST_EN", "MMBench_TEST_CN",
    "MMBench_DEV_EN_V11", "MMBench_DEV_CN_V11", "MMBench_TEST_EN_V11", "MMBench_TEST_CN_V11",
    "MMStar", "MMMU_DEV_VAL", "MMMU_TEST", "POPE", "MME", "RealWorldQA", "SEEDBench2_Plus",
)  # fmt: skip


def vlmevalkit_dataset(file: Path) -> str | None:
    """The data set that `vlmutil eval` takes a file for, by its name: the longest end of it that is one."""
    words = file.stem.split("_")
    ends = ("_".join(words[first:]) for first in range(len(words)))
    return next((end for end in ends if end in DATASETS), None)


def vlmevalkit_choice(file: Path, meta: Mapping[int, str]) -> dict[int, bool]:
    """By index, whether a question of multiple choice is right; the column g_index makes it one of rotations.

    Args:
        file: that was made for the board.
        meta: index -> the right letter, as VLMEvalKit's own TSV has them.
    """
    table = _table(file, letters="ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    for name in ("index", "question", "prediction"):
        if name not in table:
            raise RefusedError(f"KeyError: {name}")
    if unknown := [index for index in table["index"].tolist() if index not in meta]:
        raise RefusedError(f"the same as or a subset of the dataset: {unknown[0]}")
    if "g_index" in table:
        if any(row["index"] % 1_000_000 != row["g_index"] for row in _rows(table)):
            raise RefusedError("g_index")
        return _circular(table, meta)
    rows = _rows(table)
    if "MMMU" in (vlmevalkit_dataset(file) or ""):  # open questions become a choice between the answer and others
        rows = [{**row, "A": row["answer"], "B": "Other Answers"} if pd.isna(row["A"]) else row for row in rows]
    return {row["index"]: letter_of(str(row["prediction"]), _choices(row)) == meta[row["index"]] for row in rows}


def vlmevalkit_mme(file: Path) -> dict[str, float]:
    """MME's score by category: accuracy, and the share of images with both questions right, in percent."""
    table = _table(file, letters="")
    images: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in _rows(table):
        words = re.sub(r"[^\w\s]", " ", str(row["prediction"]).lower()).split()
        said = "Yes" if "yes" in words and "no" not in words else "No" if "no" in words and "yes" not in words else ""
        images[row["category"]][row["image_path"]].append(said == row["answer"])
    scores = {}
    for category, by_image in images.items():
        single = [hit for hits in by_image.values() for hit in hits]
        both = [hits[0] and hits[1] for hits in by_image.values()]
        scores[category] = 100 * sum(single) / len(single) + 100 * sum(both) / len(both)
    return scores


# --- MMMU -------------------------------------------------------------------------------------------------------------


def mmmu_eval_only(file: Path, answers: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, float]]:
    """By subject, how many answers were counted and what share of them is right; an absent one is not counted.

    Args:
        file: that was made for the board.
        answers: id -> `question_type` and `ground_truth`, as the public answers have them.
    """
    from lmms_eval.tasks.mmmu.utils import eval_multi_choice, eval_open, parse_open_response  # MMMU's own functions

    right: dict[str, list[bool]] = defaultdict(list)
    for name, said in json.loads(file.read_text(encoding="utf-8")).items():
        subject = "_".join(name.split("_")[1:-1])
        if answers[name]["question_type"] == "multiple-choice":
            hit = eval_multi_choice(answers[name]["ground_truth"], said)
        else:
            hit = eval_open(answers[name]["ground_truth"], parse_open_response(said))
        right[subject].append(hit)
    return {subject: (len(hits), sum(hits) / len(hits)) for subject, hits in right.items()}


# --- MM-Vet -----------------------------------------------------------------------------------------------------------


def mmvet_prompts(file: Path, questions: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """What MM-Vet's evaluator asks GPT-4 about each of its questions.

    Args:
        file: that was made for the board.
        questions: id -> question and true answer, as the data set has them.
    """
    given = json.loads(file.read_text(encoding="utf-8"))
    return {name: " | ".join([question, answer, given[name], ""]) for name, (question, answer) in questions.items()}


# --- MathVista --------------------------------------------------------------------------------------------------------


def mathvista_to_extract(file: Path) -> list[str]:
    """The problems whose answers are still to be extracted from the responses: these have none, or an empty one."""
    given = json.loads(file.read_text(encoding="utf-8"))
    for problem in given.values():
        _ = problem["response"], problem["question_type"], problem["answer_type"], problem["choices"], problem["query"]
    return [pid for pid, problem in given.items() if not str(problem.get("extraction", "")).strip()]


def mathvista_score(file: Path, truths: Mapping[str, str]) -> tuple[float, Collection[str]]:
    """The share of right answers, and the problems whose prediction or verdict is another than the script's.

    Args:
        file: that was made for the board.
        truths: pid -> the true answer.
    """
    given = json.loads(file.read_text(encoding="utf-8"))
    right, other = [], []
    for pid, problem in given.items():
        extraction = problem["extraction"].strip()
        prediction: str | None = extraction
        if problem["question_type"] == "multi_choice":
            bracket = re.findall(r"\(([a-zA-Z])\)", extraction)
            letter = bracket[0].upper() if bracket else extraction
            if letter in [chr(ord("A") + n) for n in range(len(problem["choices"]))]:
                prediction = problem["choices"][ord(letter) - ord("A")]
            elif letter not in problem["choices"]:
                raise RefusedError("the most similar choice, by the number of edits: not done here")
        elif problem["answer_type"] == "integer":
            prediction = str(int(float(extraction))) if re.fullmatch(r"-?[\d.]+", extraction) else None
        elif problem["answer_type"] == "float":
            digits = int(problem["precision"])
            prediction = str(round(float(extraction), digits)) if re.fullmatch(r"-?[\d.]+", extraction) else None
        hit = prediction == truths[pid]
        if (problem["prediction"], problem["true_false"]) != (prediction, hit):
            other.append(pid)
        right.append(hit)
        _ = [{**problem, **problem["metadata"]}[key] for key in ("language", "source", "category", "task", "skills")]
    return sum(right) / len(right), other
