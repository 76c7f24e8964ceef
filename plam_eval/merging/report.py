"""What a merge did, as it is logged, printed and stored with results."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

from plam_eval.layer_sets import layers_of, tell_layers
from plam_eval.rule_parameters import describe_parameters
from plam_eval.terminal import PlainTable, Terminal
from plam_eval.weight_ramps import read_weights


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        spec, digest: the spec and its digest; None when the model went back to plain.
        model, base_model: where W_mllm and W_base came from; `model_commit`, `base_commit`: of which commits of the
            hub, None for what is not from there.
        tensors: merged tensors; `restored`: tensors put back to their plain values.
        bytes_read: bytes read from both checkpoints.
        ancestor, ancestor_commit: the third checkpoint likewise, of a rule that takes one.
        task_vectors: with it, over all merged tensors, the norms of model - ancestor ("model"), base - ancestor
            ("base_model") and model - base ("difference"), and the "cosine" of the first two.
        relative_change: layer -> ||W_new - W_mllm||_F / ||W_mllm||_F over its merged tensors, after rounding.
    """

    spec: dict[str, Any] | None
    digest: str | None
    model: str
    base_model: str | None
    tensors: int
    restored: int
    bytes_read: int
    seconds: float
    relative_change: dict[int, float]
    warnings: tuple[str, ...] = ()
    model_commit: str | None = None
    base_commit: str | None = None
    ancestor: str | None = None
    ancestor_commit: str | None = None
    task_vectors: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it back."""
        return {**asdict(self), "warnings": list(self.warnings)}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> MergeReport:
        """Read what `to_dict` made back.

        Args:
            stored: the fields by name, also after a round trip through JSON, which makes text of layers.

        Raises:
            KeyError, TypeError: it is no report.
        """
        change = {int(layer): value for layer, value in stored["relative_change"].items()}
        return cls(**{**stored, "relative_change": change, "warnings": tuple(stored["warnings"])})

    def table(self) -> PlainTable:
        """The report as a terminal shows it, without what does not apply."""
        table = PlainTable(title="Merge" if self.spec else "Back to plain", show_header=False, title_justify="left")
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        table.add_row("model", _at(self.model, self.model_commit))
        if self.spec:
            (of_model, of_base), layers = read_weights(self.spec["weights"]).written, layers_of(self.spec)
            parameters = describe_parameters(self.spec.get("parameters") or {})
            table.add_row("base", _at(str(self.base_model), self.base_commit))
            if self.ancestor:
                table.add_row("ancestor", _at(self.ancestor, self.ancestor_commit))
            table.add_row("rule", f"{self.spec['rule']}: {of_model} model, {of_base} base{parameters}")
            table.add_row("layers", f"{tell_layers(layers)}  {' '.join(self.spec['modules'])}")
            table.add_row("digest", str(self.digest)[:16])
        restored = f", {self.restored} restored" if self.restored else ""
        table.add_row("tensors", f"{self.tensors} merged{restored}")
        table.add_row("read", f"{self.bytes_read / 1e6:.1f} MB in {self.seconds:.2f} s")
        if self.relative_change:
            cells = "  ".join(f"{layer}: {change:.3f}" for layer, change in self.relative_change.items())
            table.add_row("relative change", cells)
        if vectors := self.task_vectors:
            norms = f"{vectors['model']:.4g} to the model, {vectors['base_model']:.4g} to the base"
            apart = f"{vectors['difference']:.4g} from one to the other"
            table.add_row("from the ancestor", f"{norms}, {apart}; cosine {vectors['cosine']:.3f}")
        for warning in self.warnings:
            table.add_row("warning", warning, style="yellow")
        return table

    def __str__(self) -> str:
        console = Terminal(file=io.StringIO(), width=100)
        console.print(self.table())
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]


def _at(name: str, commit: str | None) -> str:
    return f"{name} (commit {commit[:12]})" if commit and commit not in name else name
