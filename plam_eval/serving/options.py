"""What an engine is told beside vLLM's own options: a spec, its overrides, and which files its base is."""

from __future__ import annotations

from typing import Any, TypedDict

from plam_eval import hub
from plam_eval.errors import MergeError
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.spec import OVERRIDE_KEYS, PlateauSpec

LOAD_FORMAT = "plam"
BASE_FILES = "plateau_base"
"""The option that hands `BaseFiles` from the process the user started to its workers."""

_OPTIONS = ("plateau", *OVERRIDE_KEYS, BASE_FILES)


class BaseFiles(TypedDict):
    """Which files a spec's base is, found once, so that every worker opens the same: JSON-able."""

    location: str
    commit: str | None


def split_options(extra: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our options, and those of vLLM's default loader.

    Args:
        extra: `model_loader_extra_config`, a mapping or None.
    """
    extra = dict(extra or {})
    return {key: extra.pop(key) for key in _OPTIONS if key in extra}, extra


def base_files(base: Checkpoint) -> BaseFiles:
    """What opens this base again, in any process.

    Args:
        base: an opened checkpoint.
    """
    return {"location": base.location, "commit": base.commit}


def check_served(spec: PlateauSpec | None) -> None:
    """Refuse a merge that vLLM's workers cannot make.

    Args:
        spec: what is asked for; None for the plain model.

    Raises:
        MergeError: its rule takes an ancestor: the workers open two checkpoints, not three.
    """
    if spec is not None and spec.needs_ancestor:
        raise MergeError(
            f"rule {spec.rule} takes an ancestor, and vLLM's workers open the MLLM and its base alone; evaluate it "
            "through an HF wrapper, such as plam_hf"
        )


def open_base(spec: PlateauSpec, files: BaseFiles | None) -> Checkpoint:
    """The base of a spec.

    Args:
        spec: what names it.
        files: what it was found to be; None: it is looked for by its name.

    Raises:
        MergeError: it is not there, or no checkpoint.
    """
    return Checkpoint.open(files["location"], revision=files["commit"]) if files else Checkpoint.open(spec.base_model)


def open_engine_model(config: Any) -> Checkpoint:
    """The checkpoint that an engine serves.

    While offline vLLM puts the folder of the hub's cache in the place of the name, and leaves the revision beside it.

    Args:
        config: the engine's arguments or its model config.

    Raises:
        MergeError: it is not there, or no checkpoint.
    """
    revision = None if hub.is_folder(str(config.model)) else config.revision
    return Checkpoint.open(config.model, revision=revision, role="model")
