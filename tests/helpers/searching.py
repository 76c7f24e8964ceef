"""Searches without a model: an evaluator whose answers follow from the setting, and a small space of the pair's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from plam_eval.evaluation.search.config import SearchConfig
from plam_eval.evaluation.search.job import SearchJob
from plam_eval.evaluation.search.space import Space
from plam_eval.spec import PlateauSpec
from tests.helpers.sweeps import ARGUMENTS, SPEC

SMALL: dict[str, Any] = {
    "model": "plam_llava",
    "model_args": SPEC,
    "tasks": "pope,mmstar",
    "select": 24,
    "trials": 9,
    "rungs": "0.5",
    "model_weight": "0.7:0.9:0.2",
    "base_weight": "0.1:0.3:0.2",
}
"""Of the embedded pair, whose headers alone are read."""


def config(**given: Any) -> SearchConfig:
    """The small search with other options."""
    return SearchConfig.load(**(SMALL | given))


def job(folder: Path, **given: Any) -> SearchJob:
    """The small search, planned."""
    return SearchJob.plan(config(**given), folder)


def space(num_layers: int = 8, **given: Any) -> Space:
    """A space without a plateau to begin with."""
    return Space.of(config(**{"model_args": ARGUMENTS, "base_model": "a/base", **given}), num_layers)


def layers_matter(spec: PlateauSpec) -> float:
    """A share of right answers that is highest for the layers 2 to 5."""
    near = len({*spec.layers} & {2, 3, 4, 5}) - len({*spec.layers} - {2, 3, 4, 5})
    return 0.5 + 0.1 * near


class Fake:
    """Answers as a model would: a document is right where its own luck is below the setting's share.

    Args:
        quality: share of right answers by spec.
        documents: of each of two tasks; two share an image.
        at_call: told the number of each call before it answers; what it raises is raised.
    """

    def __init__(
        self,
        quality: Callable[[PlateauSpec], float] = layers_matter,
        documents: int = 60,
        at_call: Callable[[int], None] = lambda call: None,
    ) -> None:
        self.quality, self.number, self.at_call = quality, documents, at_call
        self.calls: list[tuple[PlateauSpec | None, list[tuple[str, int]]]] = []

    def documents(self) -> pd.DataFrame:
        rows = [
            {
                "task": task,
                "doc_id": number,
                "group": f"image {(number * 7 % self.number) // 2}",
                "prompt": f"p{number}",
            }
            for task in ("mmstar", "pope")
            for number in range(self.number)
        ]
        return pd.DataFrame(rows)

    def directions(self) -> dict[str, int]:
        return {"mmstar": 1, "pope": 1}

    def answers(self, spec: PlateauSpec | None, keys: Sequence[tuple[str, int]]) -> pd.DataFrame:
        self.at_call(len(self.calls))
        self.calls.append((spec, list(keys)))
        share = 0.5 if spec is None else self.quality(spec)
        rows = []
        for task, doc_id in keys:
            luck = int(hashlib.sha256(f"{task} {doc_id}".encode()).hexdigest()[:8], 16) / 2**32
            right = float(luck < share)
            rows.append({"task": task, "doc_id": doc_id, "answer": "yes" if right else "no", "score": right})
        return pd.DataFrame(rows)

    def asked(self) -> int:
        """Documents that were asked for."""
        return sum(len(keys) for _, keys in self.calls)
