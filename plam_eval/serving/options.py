"""What an engine is told beside vLLM's own options: a spec, its overrides, and which files it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from plam_eval import hub
from plam_eval.errors import InputError, quoted
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.spec_checkpoints import SpecCheckpoints
from plam_eval.spec import OVERRIDE_KEYS, PlateauSpec

LOAD_FORMAT = "plam"
SPEC_FILES = "plateau_files"
"""The option that hands `SpecFiles` from the process the user started to its workers."""

_OPTIONS = ("plateau", *OVERRIDE_KEYS, SPEC_FILES)


class Files(TypedDict):
    """Which files a checkpoint is: a folder, or a repository on the hub and its commit."""

    location: str
    commit: str | None


class SpecFiles(TypedDict):
    """Which files a spec's base and ancestor are, found once, so that every worker opens the same: JSON-able."""

    base: Files
    ancestor: Files | None


def split_options(extra: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our options, and those of vLLM's default loader.

    Args:
        extra: `model_loader_extra_config`, a mapping or None.

    Raises:
        InputError: it is neither.
    """
    if not isinstance(extra, Mapping) and extra is not None:
        raise InputError(
            f"model_loader_extra_config: found {quoted(extra)}, expected an object, such as "
            '{"plateau": "demo", "base": "owner/name"}'
        )
    extra = dict(extra or {})
    return {key: extra.pop(key) for key in _OPTIONS if key in extra}, extra


def spec_files(opened: SpecCheckpoints) -> SpecFiles:
    """What opens these checkpoints again, in any process.

    Args:
        opened: those of a spec.
    """
    base, ancestor = (None if one is None else Files(location=one.location, commit=one.commit) for one in opened)
    assert base is not None
    return {"base": base, "ancestor": ancestor}


def open_spec_files(spec: PlateauSpec, files: SpecFiles | None) -> SpecCheckpoints:
    """The base of a spec, and its ancestor where its rule takes one.

    Args:
        spec: what names them.
        files: what they were found to be; None: they are looked for by their names.

    Raises:
        MergeError: one is not there, or no checkpoint.
    """
    if files is None:
        return SpecCheckpoints.open(spec)
    base, ancestor = (
        None if found is None else Checkpoint.open(found["location"], revision=found["commit"])
        for found in (files["base"], files["ancestor"])
    )
    assert base is not None
    return SpecCheckpoints(base, ancestor)


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
