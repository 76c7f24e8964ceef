"""What a sweep says: the chosen merge against plain and against its scale control, as a record and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from plam_eval.evaluation import stats
from plam_eval.evaluation.stats import format_p
from plam_eval.evaluation.sweep.grid import PLAIN, describe_cell
from plam_eval.evaluation.sweep.selection import Selection
from plam_eval.rules import SELF_SCALE

if TYPE_CHECKING:
    import pandas as pd

NOTHING_YET = "Nothing to say yet: the plain model and at least one merge have to be finished."


@dataclass(frozen=True)
class Against:
    """The chosen merge minus another cell, mean over tasks of the reported documents.

    Attributes:
        cell: the other one: plain, or the scale control.
        difference: of the scores.
        gained, lost: documents that the merge scores better or worse on.
        p: of this one comparison.
        p_adjusted: for all comparisons of which this one was chosen (Holm): of all settings with plain, or of all
            merges with their scale controls.
        effect: "better" or "worse" than the other cell; None where no difference is shown. It goes by `p_adjusted`
            where the merge was chosen among several on the documents it is reported on, and by `p` otherwise.
    """

    cell: str
    difference: float
    gained: int
    lost: int
    p: float
    p_adjusted: float
    effect: str | None


@dataclass(frozen=True)
class Conclusion:
    """The answer of a sweep.

    Attributes:
        cell: the chosen merge.
        description: it in words, "layers 6:8, qkvo, 0.9 + 0.3".
        tried: merges that it was chosen from.
        held_out: whether it was chosen on other documents than the reported ones.
        documents: reported ones.
        plain: it against plain.
        scale: it against the same scale without the base; None where no such control is finished.
        answers_differ: documents that merge and scale control answer differently; None where there is no control.
    """

    cell: str
    description: str
    tried: int
    held_out: bool
    documents: int
    plain: Against
    scale: Against | None
    answers_differ: int | None

    @property
    def against_plain(self) -> str | None:
        """ "better" or "worse" than plain; None where no difference is shown."""
        return self.plain.effect

    @property
    def against_scale(self) -> str | None:
        """ "better" or "worse" than the scale control; None where no difference is shown, or no control was run."""
        return self.scale.effect if self.scale else None

    @property
    def positive(self) -> bool:
        """Whether the base is shown to help: better than plain, and better than the same scale without the base."""
        return self.against_plain == self.against_scale == "better"

    @property
    def optimistic(self) -> bool:
        """Whether it is the best of several on the very documents that it is reported on."""
        return not self.held_out and self.tried > 1

    def text(self) -> str:
        """The same in a sentence or two."""
        return " ".join(filter(None, [self._plain_in_words(), self._scale_in_words(), self._optimism_in_words()]))

    def _plain_in_words(self) -> str:
        where, plain = "other" if self.held_out else "the same", self.plain
        chosen = f"Best of {self.tried} merges, chosen on {where} documents" if self.tried > 1 else "One merge"
        text = (
            f"{chosen}: {self.description}. It scores {plain.difference:+.3f} against plain ({plain.gained} gained, "
            f"{plain.lost} lost, p = {format_p(plain.p)}): "
        )
        if plain.effect is None:
            return f"{text}no difference is shown."
        if self.scale is None:
            none = "no scale control was run that would say whether the base has a part in it."
            return f"{text}{plain.effect} than plain, and {none}"
        if self.scale.effect is None:
            return f"{text}{plain.effect} than plain, but not shown to differ from the same scale without the base."
        link = "and" if self.scale.effect == plain.effect else "but"
        return f"{text}{plain.effect} than plain, {link} {self.scale.effect} than the same scale without the base."

    def _scale_in_words(self) -> str:
        if self.scale is None:
            return ""
        return (
            f"Merge against scale control: {self.scale.difference:+.3f}, {self.scale.gained} gained, "
            f"{self.scale.lost} lost, p = {format_p(self.scale.p)}; {self.answers_differ} of {self.documents} answers "
            "differ."
        )

    def _optimism_in_words(self) -> str:
        if not self.optimistic:
            return ""
        beside = f", against the scale control p = {format_p(self.scale.p_adjusted)}" if self.scale else ""
        return (
            "Chosen and reported on the same documents, so this looks better than it is; adjusted for all settings "
            f"p = {format_p(self.plain.p_adjusted)}{beside}."
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the attributes, against_plain, against_scale, positive."""
        return {
            **asdict(self),
            "against_plain": self.against_plain,
            "against_scale": self.against_scale,
            "positive": self.positive,
        }


def conclude(selection: Selection, cells: pd.DataFrame, controls: pd.DataFrame, sign: int) -> Conclusion:
    """What the tables of a sweep say of the chosen merge.

    Args:
        selection: which merge was chosen.
        cells: as `Findings.cells`.
        controls: as `Findings.controls`.
        sign: 1 where a higher score is better, -1 where a lower one is.
    """
    row = cells.set_index("cell").loc[selection.cell]
    adjusted = not selection.held_out and selection.tried > 1
    beside = controls[controls["rule"] == SELF_SCALE].drop_duplicates("merged").set_index("merged")
    scale = beside.loc[selection.cell] if selection.cell in beside.index else None
    p_holm = dict(zip(beside.index, stats.holm(beside["p"].tolist()), strict=True))
    return Conclusion(
        cell=selection.cell,
        description=describe_cell(row),
        tried=selection.tried,
        held_out=selection.held_out,
        documents=int(row["documents"]),
        plain=_against(PLAIN, row, row["p_holm"], sign, adjusted),
        scale=_against(scale["control"], scale, p_holm[selection.cell], sign, adjusted) if scale is not None else None,
        answers_differ=int(scale["answers_differ"]) if scale is not None else None,
    )


def _against(cell: str, compared: pd.Series, p_adjusted: float, sign: int, adjusted: bool) -> Against:
    """A row of `Findings.cells` or `Findings.controls` as one side of a conclusion."""
    difference, p = float(compared["difference"]), float(compared["p"])
    return Against(
        cell=cell,
        difference=difference,
        gained=int(compared["gained"]),
        lost=int(compared["lost"]),
        p=p,
        p_adjusted=float(p_adjusted),
        effect=stats.effect(difference, float(p_adjusted) if adjusted else p, sign),
    )
