"""The checkpoints that a spec names, opened together, so that what is wrong with either is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.plan import MergePlan, Problems
from plam_eval.spec import PlateauSpec


class SpecCheckpoints(NamedTuple):
    """The base LLM, and the ancestor where the rule of a spec takes one."""

    base: Checkpoint
    ancestor: Checkpoint | None

    @classmethod
    def open(
        cls,
        spec: PlateauSpec,
        base: str | Path | Checkpoint | None = None,
        *,
        known: Mapping[str, Checkpoint] | None = None,
    ) -> SpecCheckpoints:
        """Open them by their names.

        Args:
            spec: what to merge.
            base: the base LLM; None is the spec's own.
            known: checkpoints that are open, by the names that specs have them under; not opened again.

        Raises:
            MergeError: one of them is not there, or no checkpoint; of both where it is both.
        """
        problems, opened, ancestor, known = Problems(), None, None, known or {}
        with problems.collect():
            named = spec.base_model if base is None else base
            opened = Checkpoint.open(known.get(str(named), named), role="base")
        if spec.needs_ancestor:
            with problems.collect():
                ancestor = Checkpoint.open(known.get(str(spec.ancestor), str(spec.ancestor)), role="ancestor")
        problems.raise_any()
        assert opened is not None
        return cls(opened, ancestor)

    def by_name(self, spec: PlateauSpec) -> dict[str, Checkpoint]:
        """By the names that the spec has them under; one where both have the same.

        Args:
            spec: that they were opened for.
        """
        third = {} if self.ancestor is None else {str(spec.ancestor): self.ancestor}
        return {spec.base_model: self.base, **third}

    def announce(self, plan: MergePlan) -> None:
        """Say on stderr what a merge will download of them.

        Args:
            plan: of the merge.
        """
        for checkpoint, names in self.tensors(plan):
            checkpoint.announce(names)

    def tensors(self, plan: MergePlan) -> list[tuple[Checkpoint, list[str]]]:
        """Each of them, and the names of the tensors that a merge reads of it.

        Args:
            plan: of the merge.
        """
        read = [(self.base, [tensor.base_name for tensor in plan.tensors])]
        if self.ancestor is not None:
            read.append((self.ancestor, [str(tensor.ancestor_name) for tensor in plan.tensors]))
        return read
