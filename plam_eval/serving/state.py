"""What a worker's model was merged by, and from which files: left on it by the loader, replaced by a re-merge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from plam_eval.errors import MergeError
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.report import MergeReport
from plam_eval.spec import PlateauSpec

_STATE = "_plam_state"


@dataclass(frozen=True)
class ReadFiles:
    """A checkpoint that was read: what opens it again from any working directory, and what it was."""

    location: str
    commit: str | None
    identity: dict[str, Any]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ReadFiles:
        """What an open `checkpoint` is, to be found again. Raises CheckpointError when its files cannot be read."""
        return cls(checkpoint.location, checkpoint.commit, checkpoint.identity())

    def open(self) -> Checkpoint:
        """The checkpoint, opened anew. Raises MergeError when it has changed, or is gone."""
        checkpoint = Checkpoint.open(self.location, revision=self.commit)
        self.verify(checkpoint)
        return checkpoint

    def verify(self, checkpoint: Checkpoint) -> None:
        """Refuse another checkpoint than the engine has read.

        Args:
            checkpoint: opened at the same location.

        Raises:
            MergeError: it has changed.
        """
        identity = checkpoint.identity()
        if identity != self.identity:
            raise MergeError(
                f"{checkpoint.name}: changed since the engine loaded it (was {self.identity}, is {identity}); "
                "start the engine again"
            )


@dataclass(frozen=True)
class ModelState:
    """What a model was merged by, from which files, and why it must not be used, if so.

    Attributes:
        spec: None where it is plain.
        report: of the merge.
        model: files of the MLLM; None where another load format than ours has loaded it.
        base: files of the spec's base.
        broken: why it holds neither the old nor the new weights.
        bases: name in a spec -> files of every base that was merged so far. A digest holds the name of a base, not what
            is in it, so a base that changed on disk must not be merged under the same digest.
    """

    spec: PlateauSpec | None = None
    report: MergeReport | None = None
    model: ReadFiles | None = None
    base: ReadFiles | None = None
    broken: str | None = None
    bases: Mapping[str, ReadFiles] = field(default_factory=dict)


def state_of(model: nn.Module) -> ModelState:
    """The state that was left on a model; an empty one where there is none.

    Args:
        model: vLLM's.
    """
    state: ModelState = getattr(model, _STATE, ModelState())
    return state


def set_state(model: nn.Module, state: ModelState) -> None:
    """Leave a state on a model.

    Args:
        model: vLLM's.
        state: what it is in from now on.
    """
    setattr(model, _STATE, state)


def named_report(
    report: MergeReport, checkpoint: Checkpoint, spec: PlateauSpec | None, warnings: tuple[str, ...]
) -> MergeReport:
    """The report of a stream of tensors, with what only its caller knows.

    Args:
        report: of the stream.
        checkpoint: the MLLM.
        spec: what it was merged by; None: it is plain.
        warnings: of the plan.
    """
    base, commit = spec.base_model if spec is not None else None, checkpoint.recorded_commit
    return dataclasses.replace(report, model=checkpoint.name, model_commit=commit, base_model=base, warnings=warnings)
