"""The settings that a model is looked at under: itself, its merge, and the controls and merges beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from plam_eval.errors import CheckpointError, InputError, MergeError, hint, listed
from plam_eval.evaluation.attend.folder import MERGED, PLAIN
from plam_eval.rules import NORMALIZED, RULES, SELF_SCALE
from plam_eval.spec import PlateauSpec, SpecError, load_spec, packaged_specs

if TYPE_CHECKING:
    from plam_eval.merging.checkpoint import Checkpoint

DEFAULT = (PLAIN, MERGED, SELF_SCALE, NORMALIZED)
"""What is looked at unless told otherwise, the merge being that of model_args."""
_SEED = 0


@dataclass(frozen=True)
class Settings:
    """Settings by name, each merge once.

    Attributes:
        specs: name -> spec, None for the plain model, which comes first.
        equal: name -> the setting in `specs` that is the same merge, and is looked at in its place.
    """

    specs: dict[str, PlateauSpec | None]
    equal: dict[str, str]

    @classmethod
    def read(cls, merge: PlateauSpec | None, words: Sequence[str] | None = None) -> Settings:
        """The settings that words name.

        Args:
            merge: the one that model_args describe, or a merged model has; None where there is none.
            words: "plain", "merged", rules that the merge is made by in place of its own, with seed 0 where one draws,
                and specs, as `load_spec` takes them. `DEFAULT` by default.

        Raises:
            InputError: naming every word that is none.
        """
        if merge is None and not words:
            raise InputError(
                "nothing to hold the plain model against: give plateau=SPEC in model_args, or settings that are specs"
            )
        chosen = list(dict.fromkeys([PLAIN, *(word.strip() for word in words or DEFAULT)]))
        specs, problems = dict[str, PlateauSpec | None](), list[str]()
        for word in chosen:
            try:
                spec = _spec_of(word, merge)
            except (SpecError, InputError) as error:
                problems += [f"{word}: {problem}" for problem in error.problems]
                continue
            name = _name_of(word)
            if name in specs:
                name = word
            if name in specs:
                problems.append(f"{word}: another setting has this name; rename the file")
            specs[name] = spec
        if problems:
            raise InputError(*problems, origin="settings")
        kept, equal, by_digest = dict[str, PlateauSpec | None](), dict[str, str](), dict[str, str]()
        for name, spec in specs.items():
            digest = PLAIN if spec is None or spec.is_plain else spec.digest()
            if digest in by_digest:
                equal[name] = by_digest[digest]
            else:
                by_digest[digest], kept[name] = name, spec
        if len(kept) == 1:
            raise InputError(
                f"{listed(equal) or 'no setting'}: every weight stays as it is in the plain model, so there is nothing "
                "to compare; expected a merge"
            )
        return cls(kept, equal)

    def notes(self) -> list[str]:
        """What is to be said of settings that are left out, a sentence each."""
        return [
            f"{name}: left out, because its weights are those of {other} to the bit"
            for name, other in self.equal.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Name -> spec as a mapping, None for the plain model; JSON-able."""
        return {name: None if spec is None else spec.to_dict() for name, spec in self.specs.items()}


def check_merges(settings: Settings, checkpoint: Checkpoint) -> dict[str, Checkpoint]:
    """Refuse settings that cannot be merged into a checkpoint, from file headers.

    Args:
        settings: of which specs are merged.
        checkpoint: the MLLM's.

    Returns:
        The checkpoints of base LLMs and ancestors, by the name that specs have them under.

    Raises:
        MergeError: naming every fault of every setting.
    """
    from plam_eval.merging.plan import plan_merge
    from plam_eval.merging.spec_checkpoints import SpecCheckpoints

    bases: dict[str, Checkpoint] = {}
    faults: list[str] = []
    for name, spec in settings.specs.items():
        if spec is None:
            continue
        try:
            opened = SpecCheckpoints.open(spec, known=bases)
            bases |= opened.by_name(spec)
            plan = plan_merge(spec, model=checkpoint, base=opened.base, ancestor=opened.ancestor)
        except CheckpointError as error:
            faults += [f"{name}: {problem}" for problem in error.problems]
        except (MergeError, SpecError) as error:
            faults += [f"{name}: {problem}" for problem in error.problems]
        else:
            opened.announce(plan)
    if faults:
        raise MergeError(*dict.fromkeys(faults))
    return bases


def _spec_of(word: str, merge: PlateauSpec | None) -> PlateauSpec | None:
    if word in (PLAIN, "none"):
        return None
    if word == MERGED or word in RULES:
        if merge is None:
            raise InputError("there is no merge that it could be of: give plateau=SPEC in model_args")
        control = merge if word == MERGED else load_spec(merge, {"rule": word, "seed": _SEED})
        return control and control.model_copy(update={"source": merge.source})
    try:
        return load_spec(word)
    except SpecError as error:
        if len(error.problems) == 1 and "no packaged spec" in error.problems[0]:
            names = [PLAIN, MERGED, *RULES, *packaged_specs()]
            raise InputError(f"no setting, packaged spec or file of that name; {hint(word, names)}") from error
        raise


def _name_of(word: str) -> str:
    """A rule's or a packaged spec's own name; of a file or a spec on the hub what it is called, without its folder."""
    stem = PurePath(word.replace(":", "/")).name.removesuffix(".yaml").removesuffix(".yml")
    return word if stem in (PLAIN, MERGED, *RULES, "none", "") else stem
