"""An accuracy curve over cut layers -> the three stages. Pure arithmetic: no model, no torch.

The definitions, and which of them are our own, are on the docs page "Finding the plateau".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from plam_eval.bootstrap import Floats
from plam_eval.errors import InputError
from plam_eval.probing.closed import READERS, ClosedTo
from plam_eval.probing.curve import Curve

# Mean KL (nats) under which hiding the image counts as no change: the default of VTW's code (arXiv 2405.05803), which
# sets 0.0005 and 0.0001 for two models. It is an opinion beside the accuracy rule, never part of it.
KL_THRESHOLD = 0.003

_ALL_CUTS = "up to about four times as many for a good one at eight late cuts"  # simulated: benchmarks/plateau_power.py


# Why there is, or is not, a plateau. In words: `Stages.reason`.
Outcome = Literal[
    "plateau",
    "image_not_needed",  # blind, too, is as good as unmasked
    "image_gain_not_shown",  # unmasked is not shown to be better than blind
    "image_used_to_the_end",  # hiding the image from the last layers alone costs more than the margin
    "too_few_documents",  # the intervals are too wide for the margin
    "rise_not_seen",  # every evaluated cut is as good as unmasked, and blind was not evaluated
    "needed_until",  # closed to some of the text alone: from some cut on it is as good as unmasked
]


class Stages(BaseModel):
    """The stages of one curve.

    With e = `separation_end` and k = `plateau[0]`, decoder layers [0, e) are modal separation, [e, k) modal alignment,
    [k, L) modal degradation, the plateau.

    Where the image was closed to the question or to the last token alone, cut 0 is not blind, and there are no such
    stages: nothing is said but from which cut on that text needs to see the image no longer, `needed_until`.

    Attributes:
        num_layers: L.
        cuts: those evaluated.
        outcome, reason: whether there is a plateau and why, for programs and for readers.
        plateau: (k, L), or None.
        plateau_after: the evaluated cut before k; the first layer of the plateau lies in (plateau_after, k].
        separation_end: e, or None where there is no plateau or cut 0 was not evaluated.
        separation_before: the evaluated cut after e; the end of separation lies in [e, separation_before).
        accuracy: mean over tasks of the unmasked model, at k (`plateau`) and of the blind one (`blind`); where the
            image was closed to some of the text, at `needed_until` and at cut 0 (`closed`).
        loss: accuracy at k minus unmasked (`difference`) and its one-sided lower bound (`lower`), or that at
            `needed_until`; None where there is neither.
        margin, confidence: of the rule; confidence is one-sided.
        kl_cut: the KL rule's k; `num_layers` where it finds no plateau.
        kl_threshold: its threshold, nats.
        documents: by task.
        curve_digest: `Curve.digest` of the curve they were found on.
        warnings: what a reader should know before using the plateau.
        closed_to: whom the image was closed to.
        needed_until: the cut from which on that text does without the image, where it is not all text; 0 where it needs
            it in no layer, None where there is no such cut.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_layers: int
    cuts: tuple[int, ...]
    outcome: Outcome
    reason: str
    plateau: tuple[int, int] | None
    plateau_after: int | None
    separation_end: int | None
    separation_before: int | None
    accuracy: dict[str, float]
    loss: dict[str, float] | None
    margin: float
    confidence: float
    kl_cut: int
    kl_threshold: float
    documents: dict[str, int]
    curve_digest: str
    warnings: tuple[str, ...]
    closed_to: ClosedTo = "text"
    needed_until: int | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Stages:
        if (self.outcome == "plateau") != (self.plateau is not None):
            raise ValueError(f"outcome is {self.outcome!r} and plateau is {self.plateau}")
        if self.plateau and not (self.plateau[0] in self.cuts and self.plateau[0] < self.plateau[1] == self.num_layers):
            raise ValueError(f"plateau is {self.plateau}, expected [k, {self.num_layers}), k among the cuts")
        if self.closed_to != "text" and self.plateau is not None:
            raise ValueError(f"plateau is {self.plateau} where the image was closed to {READERS[self.closed_to]} alone")
        if self.needed_until is not None and (self.closed_to == "text" or self.needed_until not in self.cuts):
            raise ValueError(f"needed_until is {self.needed_until} of cuts closed to {READERS[self.closed_to]}")
        return self

    def stage_from(self, cut: int) -> str:
        """The stage of the layers from a cut to the next: "separation", "alignment", "plateau", "" if unknown.

        Args:
            cut: an evaluated one.
        """
        if self.plateau is None or cut == self.num_layers:
            return ""
        if cut >= self.plateau[0]:
            return "plateau"
        return "separation" if self.separation_end is not None and cut < self.separation_end else "alignment"

    @property
    def kl_in_words(self) -> str:
        """What the KL rule says: a cut, or none."""
        if self.kl_cut < self.num_layers:
            return f"cut {self.kl_cut}"
        return "no plateau" if self.closed_to == "text" else "no cut"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields; `from_dict` reads them back to equal stages."""
        only_of_some_text = {"closed_to", "needed_until"} if self.closed_to == "text" else set()
        return self.model_dump(mode="json", exclude=only_of_some_text)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Stages:
        """Read what `to_dict` gave.

        Args:
            fields: by name.

        Raises:
            ValueError: one is missing, unknown or of the wrong kind.
        """
        return cls.model_validate(dict(fields))


def confidence_in_words(confidence: float) -> str:
    """A `confidence` between 0 and 1 in words: 95%, 99.9%; never rounded up to 100%."""
    return f"{100 * confidence:.10g}%"


def check_criteria(margin: float, confidence: float, kl_threshold: float = KL_THRESHOLD) -> None:
    """Refuse criteria that `find_plateau` cannot use; a scan asks before it answers anything.

    Args:
        margin: in accuracy, 0 to 1.
        confidence: of each one-sided bound, 0.5 to 1.
        kl_threshold: nats.

    Raises:
        InputError: one of them is out of range.
    """
    if not 0 < margin < 1:
        raise InputError(f"margin: found {margin}, expected a share of accuracy, between 0 and 1")
    if not 0.5 < confidence < 1:
        raise InputError(f"confidence: found {confidence}, expected a number between 0.5 and 1")
    if not kl_threshold >= 0:
        raise InputError(f"kl_threshold: found {kl_threshold}, expected 0 nats or more")


def find_plateau(
    curve: Curve,
    *,
    margin: float = 0.02,
    confidence: float = 0.95,
    kl_threshold: float = KL_THRESHOLD,
    closed_to: ClosedTo = "text",
) -> Stages:
    """The stages of a curve, from the mean over its tasks.

    The plateau starts at the smallest cut k such that every evaluated cut >= k is not worse than the unmasked model by
    `margin`: the one-sided lower bound of the paired difference lies above -margin. Separation ends at the largest cut
    e such that every evaluated cut <= e is not better than blind by `margin`: the upper bound lies below it. There is a
    plateau only if the image is shown to be needed: the upper bound of blind minus unmasked lies below 0.

    Of a curve whose cuts close the image to some of the text alone, k is `Stages.needed_until`, and no stage follows.

    Args:
        curve: scores per document at every cut.
        margin: in accuracy, 0 to 1.
        confidence: of each one-sided bound, 0.5 to 1. Cuts are tested in a fixed order up to the first failure, so it
            is also the confidence of "every cut from k on", without a correction (Maurer, Hothorn and Lehmacher 1995).
        kl_threshold: nats, for the second opinion: the smallest cut from which on the mean KL stays at or under it.
        closed_to: whom the cuts close the image to.

    Raises:
        InputError: a criterion out of range.
    """
    check_criteria(margin, confidence, kl_threshold)
    facts = _Facts(curve, margin, confidence, closed_to)
    cuts, first = curve.cuts, facts.first
    k = cuts[first]
    outcome, reason = _outcome(facts) if closed_to == "text" else _outcome_of_some_text(facts)
    warnings: list[str] = []
    end = before = until = None
    if closed_to != "text" and outcome in ("image_not_needed", "needed_until"):
        until = 0 if outcome == "image_not_needed" else k
        warnings += _warnings(facts, cuts.index(until))
    if outcome == "plateau":
        if cuts[0] == 0:
            calm = [c < margin for c in facts.over_blind_upper[1:first]]  # up to k: what follows is the plateau
            last = calm.index(False) if False in calm else len(calm)
            end, before = cuts[last], cuts[last + 1]
        else:
            warnings.append("cut 0 was not evaluated: chance is not known, nor is the end of the separation stage")
        warnings += _warnings(facts, first)
    kl = curve.samples.groupby(["task", "cut"])["kl"].mean().groupby("cut").mean().to_numpy()
    has_plateau = outcome == "plateau"
    at = first if has_plateau else None if until is None else cuts.index(until)
    accuracy = {"unmasked": facts.accuracy[-1]}
    if at is not None:
        accuracy["plateau" if has_plateau else "needed_until"] = facts.accuracy[at]
    if cuts[0] == 0:
        accuracy["blind" if closed_to == "text" else "closed"] = facts.accuracy[0]
    return Stages(
        num_layers=curve.num_layers,
        cuts=cuts,
        outcome=outcome,
        reason=reason,
        plateau=(k, curve.num_layers) if has_plateau else None,
        plateau_after=cuts[first - 1] if has_plateau else None,
        separation_end=end,
        separation_before=before,
        accuracy={name: round(float(value), 6) for name, value in accuracy.items()},
        loss=None
        if at is None
        else {"difference": round(float(facts.gain[at]), 6), "lower": round(float(facts.lower[at]), 6)},
        margin=margin,
        confidence=confidence,
        kl_cut=cuts[first_of_run(kl <= kl_threshold)],
        kl_threshold=kl_threshold,
        documents=curve.documents,
        curve_digest=curve.digest(),
        warnings=tuple(warnings),
        closed_to=closed_to,
        needed_until=until,
    )


def first_of_run(holds: NDArray[np.bool_]) -> int:
    """Index of the first cut of the run, up to the unmasked model, for which a rule holds.

    Args:
        holds: (cuts,), whether the rule holds at each; at the last, the unmasked model, it does in any case.
    """
    fails = np.flatnonzero(~holds[:-1])
    return int(fails[-1]) + 1 if len(fails) else 0


def least_documents(tasks: int, margin: float, confidence: float) -> int:
    """How many documents in each task let a bound lie within the margin when no score differs at all.

    Args:
        tasks: number of tasks.
        margin: in accuracy, 0 to 1.
        confidence: of the one-sided bound, 0.5 to 1.
    """
    reach = margin * tasks  # one task alone may lose this much
    return 1 if reach >= 1 else math.floor(math.log(1 - confidence) / math.log1p(-reach)) + 1


class _Facts:
    """What the rule looks at, for the mean over tasks; arrays are over the evaluated cuts, the last one unmasked."""

    def __init__(self, curve: Curve, margin: float, confidence: float, closed_to: ClosedTo) -> None:
        self.curve, self.margin, self.confidence, self.closed_to = curve, margin, confidence, closed_to
        resampled = self.resampled = curve.resampled()
        self.accuracy: Floats = curve.accuracy()
        self.gain = self.accuracy - self.accuracy[-1]
        gain, over_blind = resampled.means - resampled.means[:, -1:], resampled.means - resampled.means[:, :1]
        self.lower = resampled.lower(gain, -1, confidence)
        self.upper = resampled.upper(gain, 1, confidence)
        self.over_blind_upper = resampled.upper(over_blind, 1, confidence)
        self.first = first_of_run(self.lower > -margin)

    @property
    def clusters(self) -> int:
        """Independent documents of the task with the fewest."""
        return min(self.curve.clusters.values())

    def clusters_for(self, half_width: float, needed: float) -> str:
        """In words, how many documents would narrow a bound to `needed`: widths go with one over the square root.

        So many give an even chance: the difference that is found then falls on either side as often.
        """
        if needed <= 0:
            return "no number of documents would help if the difference is what it looks like"
        least = least_documents(len(self.curve.tasks), self.margin, self.confidence)
        number = max(self.clusters * (half_width / needed) ** 2, least)
        if number > 1e6:
            return "more than a million documents would be needed if the difference is what it looks like"
        digits = max(0, len(str(math.ceil(number))) - 2)
        return f"about {math.ceil(number / 10**digits) * 10**digits} in each task would be needed"

    @property
    def least(self) -> str:
        """`clusters`, in words."""
        return f"{self.clusters} independent documents in the smallest task"

    def told(self, index: int) -> str:
        """Accuracy at a cut against that of the unmasked model, in words."""
        return (
            f"{self.accuracy[index]:.3f} against {self.accuracy[-1]:.3f} unmasked "
            f"(difference {self.gain[index]:+.3f}, one-sided {confidence_in_words(self.confidence)} bounds "
            f"{self.lower[index]:+.3f} and {self.upper[index]:+.3f}; margin {self.margin:g})"
        )

    def for_a_gain(self) -> str:
        """In words, how many documents would show that cut 0 is worse than unmasked."""
        return f"{self.clusters_for(self.upper[0] - self.gain[0], -self.gain[0])} ({self.least})"


def _outcome(facts: _Facts) -> tuple[Outcome, str]:
    cuts, first, told = facts.curve.cuts, facts.first, facts.told
    if cuts[0] == 0 and facts.lower[0] > -facts.margin:
        compared = "better than" if facts.lower[0] > 0 else "as good as"
        return (
            "image_not_needed",
            f"no plateau can be located: the blind model (cut 0) is {compared} the unmasked one, {told(0)}; choose "
            "tasks that need the image",
        )
    if first == len(cuts) - 1:
        return _none_at_the_end(facts)
    if first == 0:
        return (
            "rise_not_seen",
            f"no plateau can be located: every evaluated cut is as good as unmasked, the smallest, {cuts[0]}, with "
            f"{told(0)}; evaluate smaller cuts, 0 among them",
        )
    if cuts[0] == 0 and facts.upper[0] >= 0:
        return (
            "image_gain_not_shown",
            f"no plateau can be located: the image is not shown to help, blind accuracy is {told(0)}; "
            f"{facts.for_a_gain()}, or tasks that need the image",
        )
    k = cuts[first]
    return (
        "plateau",
        f"from cut {k} on, no evaluated cut is worse than unmasked by the margin: at cut {k} accuracy is {told(first)}",
    )


def _outcome_of_some_text(facts: _Facts) -> tuple[Outcome, str]:
    """Where the image was closed to the question or the last token alone."""
    cuts, first, told, reader = facts.curve.cuts, facts.first, facts.told, READERS[facts.closed_to]
    cannot_tell = f"cannot tell from which layer on {reader} no longer needs to see the image"
    if cuts[0] == 0 and facts.lower[0] > -facts.margin:
        return (
            "image_not_needed",
            f"{reader} needs to see the image in no layer: closed to it in all of them (cut 0), accuracy is {told(0)}",
        )
    if first == len(cuts) - 1:
        return _none_at_the_end(facts)
    if first == 0:
        return (
            "rise_not_seen",
            f"{cannot_tell}: every evaluated cut is as good as unmasked, the smallest, {cuts[0]}, with {told(0)}; "
            "evaluate smaller cuts, 0 among them",
        )
    if cuts[0] == 0 and facts.upper[0] >= 0:
        return (
            "image_gain_not_shown",
            f"{cannot_tell}: closed to it in all layers (cut 0) it is not shown to cost anything, accuracy is "
            f"{told(0)}; {facts.for_a_gain()}",
        )
    k = cuts[first]
    return (
        "needed_until",
        f"from cut {k} on, {reader} no longer needs to see the image: no evaluated cut is worse than unmasked by the "
        f"margin, at cut {k} accuracy is {told(first)}",
    )


def _none_at_the_end(facts: _Facts) -> tuple[Outcome, str]:
    """Where no cut but the unmasked model is shown to be within the margin."""
    curve, cuts, margin, first, least = facts.curve, facts.curve.cuts, facts.margin, facts.first, facts.least
    last = first - 1
    where = f"at cut {cuts[last]}, the last evaluated before {cuts[-1]}, accuracy is {facts.told(last)}"
    if facts.upper[last] < -margin:
        hint = "" if cuts[last] == curve.num_layers - 1 else "; evaluate the cuts in between"
        if facts.closed_to != "text":
            reader = READERS[facts.closed_to]
            return "image_used_to_the_end", f"{reader} needs to see the image up to the last layers: {where}{hint}"
        return "image_used_to_the_end", f"no plateau: {where}, so the image is used up to the last layers{hint}"
    if facts.clusters < (enough := least_documents(len(curve.tasks), margin, facts.confidence)):
        number = f"at least {enough} in each task are needed"
        tell = f"{least} cannot show a difference smaller than the margin even where no answer changes"
        return "too_few_documents", f"cannot tell: {tell}; {number}"
    if facts.gain[last] < -margin:  # looks worse than the margin; shown it would be image_used_to_the_end
        number = facts.clusters_for(facts.upper[last] - facts.gain[last], -margin - facts.gain[last])
    else:
        number = facts.clusters_for(facts.gain[last] - facts.lower[last], facts.gain[last] + margin)
        if last > 0 and number.startswith("about"):
            number += f", as a guide, for an even chance at this cut alone, and {_ALL_CUTS}"
    return "too_few_documents", f"cannot tell: {where}, neither within the margin nor beyond it; {number} ({least})"


def _warnings(facts: _Facts, at: int) -> list[str]:
    """What qualifies a plateau that begins at a cut, the one with the number `at`, or what is said of some text."""
    return [*_of_skipped_cuts(facts, at), *_of_other_cuts(facts), *_of_single_tasks(facts, at)]


def _of_skipped_cuts(facts: _Facts, at: int) -> Iterator[str]:
    cuts = facts.curve.cuts
    k = cuts[at]
    if at and k - cuts[at - 1] > 1:
        what = "the plateau" if facts.closed_to == "text" else "what is said of the layers from a cut on"
        yield f"cuts {cuts[at - 1] + 1} to {k - 1} were not evaluated: {what} starts at one of them or at {k}"
    if skipped := sorted(set(range(k, cuts[-1])) - set(cuts)):
        yield f"cuts {', '.join(map(str, skipped))} were not evaluated and are taken to be like their neighbours"


def _of_other_cuts(facts: _Facts) -> Iterator[str]:
    """Where accuracy does not rise and then stay, or is best with the image hidden from late layers."""
    cuts, margin, first, means = facts.curve.cuts, facts.margin, facts.first, facts.resampled.means
    if early := [cut for cut, lower in zip(cuts[:first], facts.lower[:first], strict=True) if lower > -margin]:
        names = ", ".join(map(str, early))
        yield f"not monotone: cut(s) {names} before {cuts[first]} are within the margin too, but a larger cut is not"
    drops = []
    for later in range(1, len(cuts)):
        best = int(np.argmax(facts.accuracy[:later]))
        upper = facts.resampled.upper((means[:, later] - means[:, best])[:, None], 1, facts.confidence)[0]
        if upper < -margin:
            drops.append((facts.accuracy[best] - facts.accuracy[later], cuts[best], cuts[later]))
    if drops:
        size, best, later = max(drops, key=lambda drop: (round(drop[0], 9), -drop[2]))  # the first of equal ones
        yield f"not monotone: accuracy falls by {size:.3f} between cut {best} and cut {later}"
    top = int(np.argmax(facts.accuracy))
    if facts.lower[top] > margin:
        yield (
            f"the image hurts in late layers: cut {cuts[top]} is better than unmasked by {facts.gain[top]:.3f}, more "
            "than the margin"
        )


def _of_single_tasks(facts: _Facts, at: int) -> Iterator[str]:
    curve, worse = facts.curve, []
    for task in curve.tasks if len(curve.tasks) > 1 else ():
        resampled = curve.resampled(task)
        gain = (resampled.means[:, at] - resampled.means[:, -1])[:, None]
        if resampled.upper(gain, 1, facts.confidence)[0] < -facts.margin:
            accuracy = curve.accuracy(task)
            worse.append(f"{task} ({accuracy[at] - accuracy[-1]:+.3f})")
    if worse:
        yield (
            f"at cut {curve.cuts[at]} single tasks are worse than unmasked by more than the margin: {', '.join(worse)}"
        )
