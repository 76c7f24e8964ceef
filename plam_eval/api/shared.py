"""What several functions take and do."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.arguments import write_words

if TYPE_CHECKING:
    from plam_eval.harness.sampling import Sample

Words = str | Sequence[str]
"""Words, as a list or in one text with commas."""
Weight = float | str | Sequence[float]
"""A number, or a ramp from the first merged layer to the last: "0.9:0.5" or [0.9, 0.5]."""
Arguments = str | Mapping[str, Any]
"""`key=value,...` as lmms-eval takes it, or a mapping."""


def words_of(words: Words) -> list[str]:
    """The words of `words` as a list; in one text they stand between commas."""
    return [word.strip() for word in words.split(",")] if isinstance(words, str) else list(words)


def sample_of(
    sample: int | None,
    seed: int,
    exclude: Words | Path | Sequence[Path],
    *,
    limit: int | None,
    offset: int,
    plateau: Any = None,
) -> Sample:
    """Which documents a function is asked for, beside its limit and offset.

    Args:
        sample: so many of each task; None for all.
        seed: of the drawing.
        exclude: folders and words whose documents are left out.
        limit: as the function was given it, to be held against the others.
        offset: likewise.
        plateau: of the merge, whose scan "scan" means.

    Raises:
        InputError: they do not go together, or a word leads to no documents.
    """
    from plam_eval.evaluation.excluded import read_excluded
    from plam_eval.harness.checks import check_sample
    from plam_eval.harness.sampling import Excluded, Sample

    words = paths_of(exclude)
    check_sample(sample, bool(words), limit, offset)
    return Sample(sample, seed, read_excluded(words, plateau) if words else Excluded())


def paths_of(given: Words | Path | Sequence[Path]) -> list[str]:
    """One path or several, as texts; in one text they stand between commas.

    Args:
        given: as a function was given it.
    """
    if isinstance(given, str):
        return words_of(given)
    return [str(path) for path in ([given] if isinstance(given, Path) else given)]


def overrides_of(
    base: str | Path | None,
    layers: str | Sequence[int] | None,
    modules: str | Sequence[str] | None,
    model_weight: Weight | None,
    base_weight: Weight | None,
    rule: str | None,
    seed: int | None,
    parameters: str | Mapping[str, float] | None = None,
    ancestor: str | Path | None = None,
) -> dict[str, Any]:
    """What goes over a spec, by the names that `spec.load_spec` takes; None leaves what the spec says.

    Args:
        base: base LLM, folder or hub id.
        layers: decoder layers, 0-based, end exclusive.
        modules: names, a group, or a list of either.
        model_weight: of the MLLM's weights.
        base_weight: of the base LLM's.
        rule: of the merge.
        seed: of a rule that draws.
        ancestor: what MLLM and base were tuned from, folder or hub id.
        parameters: of a rule that has some: numbers by name, or "density:0.2+gamma:0.01".
    """
    return {
        "base": None if base is None else str(base),
        "layers": layers,
        "modules": modules,
        "model_weight": model_weight,
        "base_weight": base_weight,
        "rule": rule,
        "seed": seed,
        "parameters": parameters,
        "ancestor": None if ancestor is None else str(ancestor),
    }


def read_config(config: Any, given: dict[str, Any]) -> tuple[str | Path | None, dict[str, Any]]:
    """The file and the fields of a sweep or search, of what a function was called with.

    Args:
        config: file, or mapping, over which the other arguments go; None for neither.
        given: the other arguments by name; None leaves what the config says.
    """
    given = {name: value for name, value in given.items() if name != "base"} | {"base_model": given.get("base")}
    for name in ("base_model", "ancestor", "include_path"):
        if isinstance(given.get(name), Path):
            given[name] = str(given[name])
    if given.get("exclude") is not None:
        given["exclude"] = paths_of(given["exclude"])
    if given.get("model_args") is not None:
        given["model_args"] = write_words(given["model_args"], "model_args")
    if isinstance(config, Mapping):
        return None, {**config, **{key: value for key, value in given.items() if value is not None}}
    return config, given


def free_memory() -> None:
    """Give a GPU back what a dropped model held of it: in a notebook the next call loads another, beside it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()  # a wrapper refers to itself
        torch.cuda.empty_cache()
