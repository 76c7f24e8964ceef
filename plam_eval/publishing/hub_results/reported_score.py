"""One task's score of a run as it is published: its values by metric, and the words that say how it was made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from plam_eval.errors import quoted
from plam_eval.evaluation.records import Run
from plam_eval.harness.run_files import date_of
from plam_eval.harness.tasks import TASKS, falls, headline_filter, score_of_task
from plam_eval.publishing.hub_results.benchmarks import Benchmark
from plam_eval.terminal import one_line

FRACTION, PERCENT, OWN = "fraction", "percent", "own"
SCALES = (FRACTION, PERCENT, OWN)
"""0 to 1; 0 to 100; as the task itself reports it."""


@dataclass(frozen=True)
class ReportedScore:
    """A task of a run.

    Attributes:
        run: the run.
        task: name of the task.
        config: its configuration, as the results have it.
        benchmark: of the hub; None where it goes to the model card.
    """

    run: Run
    task: str
    config: Mapping[str, Any]
    benchmark: Benchmark | None

    @property
    def where(self) -> str:
        """Results file and task, for messages."""
        return f"{self.run.file}, {self.task}"

    def values(self, scale: str | None) -> dict[str, float]:
        """The score by metric: one, or several where a task reports its documents under several names, as MME does.

        Args:
            scale: one of `SCALES`; None is the task's own where it reports one, else a fraction.

        Raises:
            ValueError: the task has no value on that scale.
        """
        score = score_of_task(self.task, self.config)
        own = self._own()
        if scale == OWN or (scale is None and own):
            if not own:
                raise ValueError(f"the results hold no value of {score.stock or score.metric} that the task reports")
            return own
        row = TASKS.get(self.task)
        if row is not None and row.in_pairs:
            raise ValueError(f"{row.in_pairs} scores its questions in pairs, which is no share; give --scale {OWN}")
        if (score.low, score.high) != (0, 1):
            raise ValueError(
                f"scores go from {score.low:g} to {score.high:g}, so there is no share; give --scale {OWN}"
            )
        rows = self.run.samples[self.run.samples["task"] == self.task]
        share = score.aggregate(rows["score"].tolist(), rows["group"].tolist())
        # The task's own metric of that name may be another mean: of categories, or by a judge.
        name = score.stock or f"{score.metric}, mean over documents"
        return {name: round(share * (100 if scale == PERCENT else 1), 6)}

    def _own(self) -> dict[str, float]:
        """What the task itself reports, by metric."""
        score = score_of_task(self.task, self.config)
        stored = (self.run.results.get("results") or {}).get(self.task) or {}
        names = [score.stock] if score.stock else [score.metric, *score.also]
        values = {name: stored.get(f"{name},{headline_filter(self.task, self.config)}") for name in names}
        return {
            name: round(float(value), 6)
            for name, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        }

    @property
    def date(self) -> str | None:
        """When the run began, as an ISO date; None where its files are not named by it."""
        with suppress(ValueError):
            return datetime.strptime(date_of(self.run.file)[:8], "%Y%m%d").date().isoformat()
        return None

    @property
    def split(self) -> str:
        """Of the dataset."""
        return str(self.config.get("test_split") or self.config.get("validation_split") or "not recorded")

    def notes(self, metric: str) -> str:
        """Task, prompt, split, documents, spec and versions, on one line.

        Args:
            metric: the name that its value is of.
        """
        row, provenance = self.run.summary(), self.run.block.get("provenance") or {}
        prompts = self.config.get("lmms_eval_specific_kwargs")
        # Beside the prompts in use stand those of models that have their own, as mappings.
        used = prompts.items() if isinstance(prompts, Mapping) else ()
        asked = [f"{key} {quoted(value)}" for key, value in used if value and not isinstance(value, Mapping)]
        shots = self.config.get("num_fewshot")
        mode = [row["mode"]] if row["mode"] else []
        prompt = ", ".join([*([f"{shots}-shot"] if shots is not None else []), *asked, *mode])
        digest = provenance.get("digest")
        merge = f"plam-eval merge, spec digest {digest[:16]}" if digest else "no merge at load"
        count = int((self.run.samples["task"] == self.task).sum())
        made = f"lmms-eval {row['lmms_eval'] or 'of unknown version'}, task {self.task}, {metric}"
        made += " (lower is better)" if falls(metric, self.config) else ""
        return one_line(
            f"{made}; split {self.split}, {count:,} documents; prompt: {prompt or 'not recorded'}; {merge}; "
            f"dtype {row['dtype'] or 'not recorded'}"
        )
