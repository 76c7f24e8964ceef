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

    name: str
    location: str
    commit: str | None
    identity: dict[str, Any]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ReadFiles:
        """What an open `checkpoint` is, to be found again. Raises CheckpointError when its files cannot be read."""
        return cls(checkpoint.name, checkpoint.location, checkpoint.commit, checkpoint.identity())

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
        sources: name in a spec -> files of every base and ancestor that was merged so far. A digest holds their names,
            not what is in them, so one that changed on disk must not be merged under the same digest.
        broken: why it holds neither the old nor the new weights.
    """

    spec: PlateauSpec | None = None
    report: MergeReport | None = None
    model: ReadFiles | None = None
    sources: Mapping[str, ReadFiles] = field(default_factory=dict)
    broken: str | None = None

    def merged_from(self) -> dict[str, dict[str, Any]]:
        """What the MLLM, the base and the ancestor were when they were read, without where they lie; JSON-able.

        Each has the name it was given by, and what tells other content: `fingerprint` of a folder, `commit` of a
        repository on the hub. What was not read is left out.
        """
        read = {} if self.model is None else {"model": (self.model.name, self.model)}
        if self.spec is not None:
            read["base"] = self.spec.base_model, self.sources[self.spec.base_model]
            if self.spec.needs_ancestor:
                read["ancestor"] = str(self.spec.ancestor), self.sources[str(self.spec.ancestor)]
        return {
            side: {"name": name, **{key: value for key, value in files.identity.items() if key != "folder"}}
            for side, (name, files) in read.items()
        }


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
