"""What `--noise` changes: how equal weights are computed with, as it is written, and checked beforehand."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plam_eval.arguments import DEFAULT_NOISE
from plam_eval.errors import InputError, hint, quoted
from plam_eval.evaluation.sweep.config import SweepConfig, split_arguments
from plam_eval.harness.registry import WRAPPERS
from plam_eval.spec import OVERRIDE_KEYS

FEWEST = 10
"""Documents of each task below which flips are not asked for: with 9 a flip rate of 28 % may go unseen (95 %)."""

_DTYPES = ("float32", "bfloat16", "float16")
_KEYS = {
    "batch_size": "batch_size=4",
    "dtype": "dtype=float32",
    "model": "model=plam_vllm",
    "attn_implementation": "attn_implementation=eager",
}
_NAME = re.compile(r"[A-Za-z0-9_]+=[A-Za-z0-9_.]+(\+[A-Za-z0-9_]+=[A-Za-z0-9_.]+)*", re.ASCII)
_OF_ENGINE = ("device", "device_map", "attn_implementation", "use_cache", "batch_size")
"""Arguments that say where and how a wrapper runs: another engine has its own."""
_OF_BOTH = ("pretrained", "revision", "trust_remote_code", "dtype", "max_error_share", "max_new_tokens", "until")
_AS_ASKED = "`--noise`: key=value, with commas one after the other, joined by + at once"


@dataclass(frozen=True)
class Variant:
    """One other way to compute with the same weights.

    Attributes:
        changes: what is other than in the comparison, by key, in the order in which it was written.
    """

    changes: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """As it was written, "batch_size=4+dtype=float32": its folder, and what messages call it."""
        return "+".join(f"{key}={value}" for key, value in self.changes)

    @property
    def resident(self) -> bool:
        """Whether the model that is loaded can answer so: only the number of documents in a generation changes."""
        return [key for key, _ in self.changes] == ["batch_size"]

    @classmethod
    def read(cls, name: str) -> Variant:
        """A variant by its name.

        Args:
            name: as `name` gives it.

        Raises:
            ValueError: it is none.
        """
        if len(name) > 200 or not _NAME.fullmatch(name):
            raise ValueError(f"found {quoted(name)}, expected such as {', '.join(_KEYS.values())}")
        changes = tuple((key, value) for key, _, value in (word.partition("=") for word in name.split("+")))
        keys = [key for key, _ in changes]
        for key in keys:
            if key not in _KEYS:
                raise ValueError(f"unknown key {key!r}, {hint(key, _KEYS)}")
        if len(set(keys)) < len(keys):
            raise ValueError(
                f"found {quoted(name)}, expected each key once; several values are several words, with commas"
            )
        return cls(changes)

    def config(self, config: SweepConfig) -> SweepConfig:
        """The comparison in this other way: of the same spec, tasks and settings.

        Args:
            config: of the comparison.

        Raises:
            InputError: the other wrapper does not take an argument that images or answers depend on.
        """
        changes = dict(self.changes)
        arguments, spec = split_arguments(config.model_args)
        model = changes.pop("model", config.model)
        given: dict[str, Any] = {"together": 1, "batch_size": int(changes.pop("batch_size", config.batch_size))}
        if model != config.model:
            left = [key for key in arguments if key not in (*_OF_ENGINE, *_OF_BOTH)]
            if left:
                raise InputError(
                    f"{', '.join(left)} among model_args: {model} may not take it as {config.model} does, and images "
                    "or answers would be others for that; leave it out, or leave out model="
                )
            arguments = {key: value for key, value in arguments.items() if key in _OF_BOTH}
        arguments |= changes
        words = ",".join(f"{key}={value}" for key, value in {**arguments, **spec}.items())
        return config.model_copy(update={"model": model, "model_args": words, **given})


def read_variants(words: str | Sequence[str], config: SweepConfig) -> tuple[Variant, ...]:
    """The variants that `--noise` asks for, checked against the comparison; nothing is loaded for it.

    Args:
        words: "batch_size=4,dtype=float32" or a list of such; "default" is another batch size: 4, or
            1 where the comparison's own is more than 1.
        config: of the comparison.

    Raises:
        InputError: listing every word that means nothing, changes nothing, or cannot be had here.
    """
    asked = words.split(",") if isinstance(words, str) else list(words)
    variants, problems = list[Variant](), list[str]()
    for word in (word.strip() for word in asked):
        if not word:
            continue
        try:
            variant = Variant.read(default_name(config) if word == DEFAULT_NOISE else word)
        except ValueError as error:
            problems.append(str(error))
            continue
        if variant in variants:
            problems.append(f"{variant.name} is given twice; give it once")
            continue
        problems += [f"{variant.name}: {problem}" for problem in _problems(variant, config)]
        variants.append(variant)
    if not variants and not problems:
        problems.append(f"found nothing, expected such as {', '.join(_KEYS.values())}")
    if problems:
        raise InputError(*problems, origin=_AS_ASKED)
    return tuple(variants)


def default_name(config: SweepConfig) -> str:
    """The variant that `--noise` without a value asks for.

    Args:
        config: of the comparison.
    """
    return f"batch_size={4 if config.batch_size == 1 else 1}"


def _problems(variant: Variant, config: SweepConfig) -> list[str]:
    changes = dict(variant.changes)
    problems = []
    model = changes.get("model", config.model)
    if "model" in changes:
        problems += _of_model(model, config)
    if model in WRAPPERS:
        if "batch_size" in changes:
            problems += _of_batch_size(changes["batch_size"], model, config)
        if "attn_implementation" in changes and not WRAPPERS[model].hf:
            problems.append(f"{model} chooses its own attention; expected attn_implementation with an HF wrapper")
    arguments, _ = split_arguments(config.model_args)
    if "dtype" in changes:
        if changes["dtype"] not in _DTYPES:
            problems.append(f"dtype: {hint(changes['dtype'], _DTYPES)}")
        elif same_dtype(changes["dtype"], arguments.get("dtype")):
            problems.append(f"the comparison runs in {changes['dtype']} itself; expected another dtype")
    if "attn_implementation" in changes and changes["attn_implementation"] == arguments.get("attn_implementation"):
        problems.append("the comparison has the same attn_implementation; expected another one")
    if not problems:
        try:
            other = variant.config(config)
            _check_arguments(other)
        except InputError as error:
            problems += error.problems
    return problems


def same_dtype(asked: str | None, runs_in: Any) -> bool:
    """Whether two names of dtypes are of one.

    Args:
        asked: a name; None where none is asked for.
        runs_in: another, with or without "torch."; None where it is not known.
    """
    return asked is not None and runs_in is not None and str(runs_in).removeprefix("torch.") == asked


def _of_model(model: str, config: SweepConfig) -> list[str]:
    if model not in WRAPPERS:
        return [f"unknown model {model!r}, {hint(model, WRAPPERS)}"]
    if model == config.model:
        return [f"the comparison runs through {model} itself; expected another wrapper, such as model=plam_vllm"]
    if not WRAPPERS[model].hf and importlib.util.find_spec("vllm") is None:
        return ["vLLM is not installed here; install it (docs/install.md), or give dtype=float32 in its place"]
    if WRAPPERS[model].hf == WRAPPERS[config.model].hf:
        return [f"{model} and {config.model} are one engine, with prompts of their own; expected HF against vLLM"]
    return []


def _of_batch_size(written: str, model: str, config: SweepConfig) -> list[str]:
    if not (written.isdecimal() and 1 <= int(written) <= 10_000):
        return [f"batch_size: found {quoted(written)}, expected a whole number from 1 to 10000"]
    size, wrapper = int(written), WRAPPERS[model]
    if model == config.model and size == config.batch_size:
        return [f"the comparison answers {size} document(s) at once itself; expected another batch size"]
    if size > 1 and wrapper.hf and not wrapper.batched:
        return [
            f"{model} answers one document at a time: the stock loop behind it takes no batches, or pads prompts so "
            "that answers in a batch are no longer the model's. Expected attn_implementation=eager (sums in another "
            "order), dtype=float32, or model=plam_vllm"
        ]
    return []


def _check_arguments(config: SweepConfig) -> None:
    """Raises InputError where a wrapper refuses its arguments, as far as that shows before it is made."""
    from plam_eval.errors import PlamError
    from plam_eval.harness.evaluate import check_model

    arguments = {key: value for key, value in split_arguments(config.model_args)[0].items() if key not in OVERRIDE_KEYS}
    if not WRAPPERS[config.model].hf:  # vLLM's is made before its engine starts, and imports all of vLLM
        return
    try:
        check_model(config.model, arguments, force_simple=config.force_simple)
    except PlamError as error:
        raise InputError(str(error)) from error
