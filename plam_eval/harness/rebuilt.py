"""What scoring reads of a document, taken from a line of its task's sample log: where the dataset is not at hand.

Each function gives the documents that the line may be of, most likely first. They hold the columns that the task's own
`process_results` reads and no others. The right answer is the line's `target`, not the one in the task's own entry, so
that an entry that was changed alone does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Sample = Mapping[str, Any]
Rebuild = Callable[[Sample], list[dict[str, Any]]]
"""Line of a sample log -> documents it may be of; raises KeyError or TypeError for a line of another form."""


def only_target(sample: Sample) -> list[dict[str, Any]]:
    """Of tasks whose scoring reads the right answer alone.

    Args:
        sample: the line.
    """
    return [{"answer": sample["target"]}]


def with_entry(*names: str, **renamed: str) -> Rebuild:
    """Of tasks that log what they read beside the right answer in their own entry.

    Args:
        *names: under which the entry stands; the first one that is there.
        **renamed: column of the dataset = field of the entry.
    """

    def rebuild(sample: Sample) -> list[dict[str, Any]]:
        entry = next(sample[name] for name in names if name in sample)
        return [{"answer": sample["target"], **{column: entry[field] for column, field in renamed.items()}}]

    return rebuild


def submitted(column: str) -> Rebuild:
    """Of tasks of test splits that log what a server takes, and score nothing.

    Args:
        column: of the dataset, and of the entry, that names the question.
    """
    return lambda sample: [{column: sample["submission"][column]}]


def textvqa(sample: Sample) -> list[dict[str, Any]]:
    """TextVQA scores its test split too: people's answers are absent, or empty as an answer may be.

    Args:
        sample: the line.
    """
    question = {"question_id": sample["submission"]["question_id"]}
    return [question, {**question, "answers": [""] * 10}]


def vizwiz(sample: Sample) -> list[dict[str, Any]]:
    """VizWiz logs the name of an image, to which it adds an ending.

    Args:
        sample: the line.
    """
    return [{"question_id": sample["submission"]["image"].removesuffix(".jpg")}]


def mmstar(sample: Sample) -> list[dict[str, Any]]:
    """MMStar names an entry by the document's category.

    Args:
        sample: the line.
    """
    entry = sample["average"]
    own = [name for name, other in sample.items() if name != "average" and isinstance(other, dict)]
    same = {"answer": sample["target"], "index": entry["question_id"], "l2_category": entry["l2_category"]}
    return [{**same, "category": name} for name in own]


def seedbench_2_plus(sample: Sample) -> list[dict[str, Any]]:
    """SEED-Bench-2-Plus names an entry by the type of the image.

    Args:
        sample: the line.
    """
    stem = "seedbench_2_plus_"
    kinds = [name.removeprefix(stem) for name in sample if name.startswith(stem) and name != f"{stem}all"]
    question = sample[f"{stem}all"]["question_id"]
    return [{"answer": sample["target"], "question_image_type": kind, "question_id": question} for kind in kinds]


def mmbench(sample: Sample) -> list[dict[str, Any]]:
    """MMBench logs the whole question.

    Args:
        sample: the line.
    """
    entry = {**sample["submission"], **sample["gpt_eval_score"]}
    entry.pop("prediction")
    return [{**entry, "answer": sample["target"]}]


def mmbench_v11(sample: Sample) -> list[dict[str, Any]]:
    """Our tasks of MMBench 1.1 log the whole question, too.

    Args:
        sample: the line.
    """
    entry = {name: value for name, value in sample["circular_eval"].items() if name != "prediction"}
    return [{**entry, "answer": sample["target"]}]


def mmmu(sample: Sample) -> list[dict[str, Any]]:
    """MMMU does not log its options; they stand in the prompt, and what follows the last of them may be one more line.

    Args:
        sample: the line.
    """
    entry = sample["mmmu_acc"]
    same = {"answer": sample["target"], "id": entry["id"], "question_type": entry["question_type"]}
    if entry["question_type"] != "multiple-choice":
        return [{**same, "options": "[]"}]
    prompt = sample["input"]
    begin = prompt.rfind("\nA. ")
    if begin < 0:
        return []
    options, rest, letter = list[str](), prompt[begin + 4 :], ord("B")
    while (end := rest.find(f"\n{chr(letter)}. ")) >= 0:
        options.append(rest[:end])
        rest, letter = rest[end + 4 :], letter + 1
    last = [rest.rpartition("\n\n")[0], rest.rpartition("\n")[0], rest]
    return [{**same, "options": repr([*options, text])} for text in dict.fromkeys(text for text in last if text)]
