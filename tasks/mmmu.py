"""MMMU with a reproducible score.

Stock `mmmu_val` draws a letter for an answer it cannot parse, from Python's global random state and in whatever order
its threads finish. Two runs with the same answers then differ, most of all for a model that answers badly.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from lmms_eval.tasks.mmmu.utils import get_multi_choice_info, mmmu_process_results, parse_multi_choice_response


class _Settled(list[str]):
    """Choices of which an index, as `random.choice` takes one, is always the same one. Iteration is not affected."""

    def __init__(self, choices: Sequence[str], seed: str) -> None:
        super().__init__(choices)
        self._chosen = choices[int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big") % len(choices)]

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        return super().__getitem__(index) if isinstance(index, slice) else self._chosen


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The stock scoring, with the letter for an unparseable answer drawn by the document's id.

    Args:
        doc: a row of MMMU.
        results: the answers to it, one for each repeat.
    """
    if doc["question_type"] == "multiple-choice":
        index2ans, letters = get_multi_choice_info(ast.literal_eval(doc["options"]))
        settled = _Settled(letters, doc["id"])
        results = [parse_multi_choice_response(answer, settled, index2ans) for answer in results]
    return mmmu_process_results(doc, results)
